package rpc_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// shred cuts data into buffers, some of them empty, at places drawn from seed.
func shred(data []byte, seed uint64) mem.BufferSlice {
	r := rand.New(rand.NewPCG(seed, 1))
	var out mem.BufferSlice
	for len(data) > 0 {
		n := min(len(data), r.IntN(7))
		out = append(out, mem.SliceBuffer(data[:n]))
		data = data[n:]
	}
	return out
}

func FuzzFrame(f *testing.F) {
	full, _ := proto.Marshal(&dfsv1.WriteFrame{
		Header: &dfsv1.WriteHeader{Tag: 7, Chunk: 1 << 40, Kind: dfsv1.MutationKind_WRITE, Offset: 4096, Length: 5, Crcs: []uint32{1, 2, 3}},
		Data:   []byte("hello"),
	})
	f.Add(full, uint64(1))
	f.Add([]byte{}, uint64(0))
	f.Add([]byte{0x0a, 0x00, 0x12, 0x00}, uint64(2))
	f.Add([]byte{0x12, 0x02, 'a', 'b', 0x0a, 0x02, 0x08, 0x05, 0x12, 0x01, 'c'}, uint64(3))
	f.Add(append([]byte{0x1b, 0x20, 0x01, 0x1c, 0x25, 1, 2, 3, 4}, full...), uint64(4))
	f.Add([]byte{0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, uint64(5))
	f.Add(append(append([]byte(nil), full...), full...), uint64(6))
	c := rpc.Codec()
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) {
		var want dfsv1.WriteFrame
		wantErr := proto.Unmarshal(data, &want)
		got := rpc.Frame{Header: &dfsv1.WriteHeader{Tag: 99}}
		gotErr := c.Unmarshal(shred(data, seed), &got)
		if (wantErr == nil) != (gotErr == nil) {
			t.Fatalf("%x: protobuf says %v, the frame codec says %v", data, wantErr, gotErr)
		}
		if wantErr != nil {
			if got.Data != nil {
				t.Fatalf("%x: a failed parse left data", data)
			}
			return
		}
		wantHeader := want.GetHeader()
		if wantHeader == nil {
			wantHeader = &dfsv1.WriteHeader{}
		}
		if !proto.Equal(wantHeader, got.Header) {
			t.Fatalf("%x: header %v, want %v", data, got.Header, wantHeader)
		}
		if !bytes.Equal(got.Bytes(), want.GetData()) {
			t.Fatalf("%x: data %x, want %x", data, got.Bytes(), want.GetData())
		}

		back, err := c.Marshal(&got)
		if err != nil {
			t.Fatal(err)
		}
		ref, err := proto.Marshal(&dfsv1.WriteFrame{Header: wantHeader, Data: want.GetData()})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(back.Materialize(), ref) {
			t.Fatalf("marshalled %x, protobuf has %x", back.Materialize(), ref)
		}
	})
}

func TestFrameWithoutHeader(t *testing.T) {
	c := rpc.Codec()
	out, err := c.Marshal(&rpc.Frame{Data: mem.BufferSlice{mem.SliceBuffer("xy")}})
	if err != nil {
		t.Fatal(err)
	}
	if got := out.Materialize(); string(got) != "\x12\x02xy" {
		t.Fatalf("got %q", got)
	}
	var f rpc.Frame // no header wanted: the field is passed over
	if err := c.Unmarshal(mem.BufferSlice{mem.SliceBuffer("\x0a\x01\x08\x12\x02xy")}, &f); err != nil || string(f.Bytes()) != "xy" {
		t.Fatalf("got %q, %v", f.Bytes(), err)
	}
}

func TestFrameDeepGroups(t *testing.T) {
	for depth, ok := range map[int]bool{9_000: true, 10_001: false} {
		data := bytes.Repeat(protowire.AppendTag(nil, 5, protowire.StartGroupType), depth)
		data = append(data, bytes.Repeat(protowire.AppendTag(nil, 5, protowire.EndGroupType), depth)...)
		err := rpc.Codec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, &rpc.Frame{})
		if (err == nil) != ok {
			t.Errorf("depth %d: %v", depth, err)
		}
	}
}

// countingPool tells when its buffers come back.
type countingPool struct {
	mem.BufferPool
	got, put int
}

func (p *countingPool) Get(n int) *[]byte { p.got++; return p.BufferPool.Get(n) }
func (p *countingPool) Put(b *[]byte)     { p.put++; p.BufferPool.Put(b) }

func TestFrameReferences(t *testing.T) {
	pool := &countingPool{BufferPool: rpc.NewBuffers()}
	c := rpc.Codec()
	payload := pool.Get(64 << 10)
	send := rpc.Frame{Header: &dfsv1.WriteHeader{Tag: 1}, Data: mem.BufferSlice{mem.NewBuffer(payload, pool)}}
	wire, err := c.Marshal(&send)
	if err != nil {
		t.Fatal(err)
	}
	send.Free()
	send.Free() // again: nothing
	if pool.put != 0 {
		t.Fatal("the payload went back while the codec's output refers to it")
	}
	recv := rpc.Frame{Header: &dfsv1.WriteHeader{}}
	if err := c.Unmarshal(wire, &recv); err != nil {
		t.Fatal(err)
	}
	wire.Free()
	if pool.put != 0 {
		t.Fatal("the payload went back while the received frame refers to it")
	}
	if n := recv.Len(); n != 64<<10 {
		t.Fatalf("received %d bytes", n)
	}
	taken := recv.Take()
	recv.Free()
	if pool.put != 0 {
		t.Fatal("Take did not move the references")
	}
	taken.Free()
	if pool.put != 1 {
		t.Fatalf("the payload went back %d times", pool.put)
	}
}

func TestBuffers(t *testing.T) {
	b := rpc.NewBuffers()
	for _, n := range []int{0, 1, 1023, 1024, 1025, 4096, 16384, 1 << 20, 1<<20 + 1, 4 << 20, 4<<20 + 1} {
		p := b.Get(n)
		if len(*p) != n {
			t.Errorf("Get(%d) has length %d", n, len(*p))
		}
		if n <= 4<<20 && cap(*p) > 2*max(n, 1024) {
			t.Errorf("Get(%d) has capacity %d", n, cap(*p))
		}
		b.Put(p)
	}
	odd := make([]byte, 3000)
	b.Put(&odd) // not the pool's: dropped
	if p := b.Get(3000); cap(*p) != 4096 {
		t.Errorf("Get(3000) has capacity %d", cap(*p))
	}
	if f := b.Frame(); len(*f) != 1<<20 {
		t.Errorf("Frame has length %d", len(*f))
	}
}

func TestLend(t *testing.T) {
	for _, n := range []int{10, 1 << 20} {
		p := bytes.Repeat([]byte{'a'}, n)
		released := 0
		b := rpc.Lend(p, func() { released++ })
		b.Ref()
		b.Free()
		if n > 1024 && released != 0 {
			t.Fatal("released while referenced")
		}
		if n <= 1024 { // copied: the lender may reuse p already
			if released != 1 {
				t.Fatal("a small buffer is to be released at once")
			}
			p[0] = 'z'
		}
		if got := b.ReadOnlyData(); len(got) != n || got[0] != 'a' {
			t.Fatalf("%d bytes: wrong content", n)
		}
		b.Free()
		if released != 1 {
			t.Fatalf("%d bytes: released %d times", n, released)
		}
	}
}
