package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// chunkService is the smallest peer: Stat echoes or fails, Read streams zeros, Write swallows.
type chunkService struct {
	dfsv1.UnimplementedChunkServer
	fail     error
	stats    atomic.Int64
	received atomic.Int64
	block    chan struct{} // not nil: Stat waits for it or its context
}

func (s *chunkService) Stat(ctx context.Context, r *dfsv1.ChunkStatRequest) (*dfsv1.ChunkStatReply, error) {
	s.stats.Add(1)
	if s.block != nil {
		select {
		case <-s.block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if s.fail != nil {
		return nil, fmt.Errorf("stat chunk %d: %w", r.GetChunk(), s.fail)
	}
	return &dfsv1.ChunkStatReply{Replica: &dfsv1.ReplicaState{Chunk: r.GetChunk()}}, nil
}

func (s *chunkService) Read(r *dfsv1.ReadRequest, stream grpc.ServerStreamingServer[dfsv1.ReadFrame]) error {
	payload := make([]byte, 1<<20)
	for n := int64(0); n < r.GetLength(); n += int64(len(payload)) {
		err := stream.SendMsg(&rpc.Frame{Header: &dfsv1.ReadHeader{Offset: n}, Data: mem.BufferSlice{mem.SliceBuffer(payload)}})
		if err != nil {
			return err
		}
	}
	return s.fail
}

func (s *chunkService) Write(stream grpc.BidiStreamingServer[dfsv1.WriteFrame, dfsv1.WriteAck]) error {
	f := rpc.Frame{Header: &dfsv1.WriteHeader{}}
	for {
		err := stream.RecvMsg(&f)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		s.received.Add(int64(f.Len()))
		tag := f.Header.(*dfsv1.WriteHeader).GetTag()
		f.Free()
		if err := stream.Send(&dfsv1.WriteAck{Tag: tag}); err != nil {
			return err
		}
	}
}

// serve runs svc at addr until the returned function is called.
func serve(t testing.TB, n rpc.Network, addr string, svc *chunkService) (string, func()) {
	t.Helper()
	l, err := n.Listen(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	s := rpc.NewServer(rpc.ServerOptions{})
	dfsv1.RegisterChunkServer(s, svc)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	return l.Addr().String(), func() { s.Stop(); <-done }
}

func chunkClient(t testing.TB, p *rpc.Pool, addr string) dfsv1.ChunkClient {
	t.Helper()
	cc, err := p.Get(addr)
	if err != nil {
		t.Fatal(err)
	}
	return dfsv1.NewChunkClient(cc)
}

func TestErrorsCrossConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := rpc.NewMem()
		svc := &chunkService{fail: dfserr.ErrStaleVersion}
		addr, stop := serve(t, m.Host("cs"), ":0", svc)
		defer stop()
		p := rpc.NewPool(m.Host("client"), rpc.PoolOptions{})
		defer p.Close()
		c := chunkClient(t, p, addr)
		_, err := c.Stat(t.Context(), &dfsv1.ChunkStatRequest{Chunk: 5})
		if !errors.Is(err, dfserr.ErrStaleVersion) || !strings.Contains(err.Error(), "stat chunk 5") {
			t.Fatalf("unary: %v", err)
		}
		r, err := c.Read(t.Context(), &dfsv1.ReadRequest{Length: 2 << 20})
		if err != nil {
			t.Fatal(err)
		}
		f := rpc.Frame{Header: &dfsv1.ReadHeader{}}
		frames := 0
		for {
			if err = r.RecvMsg(&f); err != nil {
				break
			}
			f.Free()
			frames++
		}
		if frames != 2 || !errors.Is(err, dfserr.ErrStaleVersion) {
			t.Fatalf("stream: %v after %d frames", err, frames)
		}
		if _, err = c.Sync(t.Context(), &dfsv1.SyncRequest{}); !errors.Is(err, dfserr.ErrUnsupported) {
			t.Fatalf("unknown method: %v", err)
		}
	})
}

func TestUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := rpc.NewMem()
		p := rpc.NewPool(m.Host("client"), rpc.PoolOptions{})
		defer p.Close()
		c := chunkClient(t, p, "cs:7")
		_, err := c.Stat(t.Context(), &dfsv1.ChunkStatRequest{})
		if !rpc.IsRefused(err) || !errors.Is(err, dfserr.ErrUnavailable) || !strings.Contains(err.Error(), "cs:7") {
			t.Fatalf("nobody listens: %v", err)
		}
		if err := p.Probe(t.Context(), "cs:7"); !rpc.IsRefused(err) {
			t.Fatalf("probe: %v", err)
		}

		// It comes up: reconnection within the longest pause, without a new Get.
		_, stop := serve(t, m.Host("cs"), "cs:7", &chunkService{})
		time.Sleep(1200 * time.Millisecond)
		if _, err := c.Stat(t.Context(), &dfsv1.ChunkStatRequest{}); err != nil {
			t.Fatalf("after it came up: %v", err)
		}
		if err := p.Probe(t.Context(), "cs:7"); err != nil {
			t.Fatalf("probe: %v", err)
		}

		// Cut off: probe gives up by itself and is not a refusal; a call ends with its deadline.
		m.Cut("client", "cs")
		if err := p.Probe(t.Context(), "cs:7"); err == nil || rpc.IsRefused(err) {
			t.Fatalf("probe while cut: %v", err)
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err = c.Stat(ctx, &dfsv1.ChunkStatRequest{})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 2*time.Second {
			t.Fatalf("call while cut: %v after %v", err, time.Since(start))
		}
		// With a longer deadline the keepalive finds out.
		start = time.Now()
		ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
		_, err = c.Stat(ctx, &dfsv1.ChunkStatRequest{})
		cancel()
		if !errors.Is(err, dfserr.ErrUnavailable) || time.Since(start) > 20*time.Second {
			t.Fatalf("call while cut: %v after %v", err, time.Since(start))
		}
		m.Heal("client", "cs")
		time.Sleep(5 * time.Second)
		if _, err := c.Stat(t.Context(), &dfsv1.ChunkStatRequest{}); err != nil {
			t.Fatalf("after healing: %v", err)
		}

		// Killed: the next call fails at once.
		m.Kill("cs")
		start = time.Now()
		_, err = c.Stat(t.Context(), &dfsv1.ChunkStatRequest{})
		if !errors.Is(err, dfserr.ErrUnavailable) || time.Since(start) > 100*time.Millisecond {
			t.Fatalf("after the kill: %v after %v", err, time.Since(start))
		}
		stop()
	})
}

// TestGetUp: whoever knows that a peer has come back need not wait for reconnection.
func TestGetUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := rpc.NewMem()
		p := rpc.NewPool(m.Host("client"), rpc.PoolOptions{})
		defer p.Close()
		stat := func(get func() (*grpc.ClientConn, error)) error {
			cc, err := get()
			if err != nil {
				return err
			}
			_, err = dfsv1.NewChunkClient(cc).Stat(t.Context(), &dfsv1.ChunkStatRequest{})
			return err
		}
		plain := func() (*grpc.ClientConn, error) { return p.GetServer("cs:7", 0) }
		up := func() (*grpc.ClientConn, error) { return p.GetUp(t.Context(), "cs:7", 0) }
		for range 5 { // until the pauses are long
			if err := stat(up); !rpc.IsRefused(err) {
				t.Fatalf("nobody listens: %v", err)
			}
			time.Sleep(time.Second)
		}
		_, stop := serve(t, m.Host("cs"), "cs:7", &chunkService{})
		defer stop()
		began := time.Now()
		if err := stat(plain); !rpc.IsRefused(err) {
			t.Fatalf("it came up a moment ago, which nobody was told: %v", err)
		}
		if err := stat(up); err != nil || time.Since(began) != 0 {
			t.Fatalf("it is said to be up: %v after %v", err, time.Since(began))
		}
		if err := stat(plain); err != nil {
			t.Fatalf("afterwards: %v", err)
		}
	})
}

func TestDefaultDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := rpc.NewMem()
		addr, stop := serve(t, m.Host("cs"), ":0", &chunkService{block: make(chan struct{})})
		defer stop()
		p := rpc.NewPool(m.Host("client"), rpc.PoolOptions{CallTimeout: 7 * time.Second})
		defer p.Close()
		start := time.Now()
		_, err := chunkClient(t, p, addr).Stat(context.Background(), &dfsv1.ChunkStatRequest{})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 7*time.Second {
			t.Fatalf("%v after %v", err, time.Since(start))
		}
	})
}

func TestFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := rpc.NewMem()
		svc := &chunkService{}
		addr, stop := serve(t, m.Host("cs"), ":0", svc)
		defer stop()
		var next rpc.Fault
		p := rpc.NewPool(m.Host("client"), rpc.PoolOptions{NoJitter: true, Faults: func(_ context.Context, a, method string) rpc.Fault {
			if a != addr || method != dfsv1.Chunk_Stat_FullMethodName {
				t.Errorf("asked about %s %s", a, method)
			}
			return next
		}})
		defer p.Close()
		c := chunkClient(t, p, addr)
		for _, tc := range []struct {
			name  string
			fault rpc.Fault
			calls int64
			ok    bool
			took  time.Duration
		}{
			{"none", rpc.Fault{}, 1, true, 0},
			{"request lost", rpc.Fault{DropRequest: true}, 0, false, 0},
			{"reply lost", rpc.Fault{DropReply: true}, 1, false, 0},
			{"duplicated", rpc.Fault{Duplicate: true}, 2, true, 0},
			{"late", rpc.Fault{Delay: time.Second}, 1, true, time.Second},
		} {
			next = tc.fault
			svc.stats.Store(0)
			start := time.Now()
			reply, err := c.Stat(t.Context(), &dfsv1.ChunkStatRequest{Chunk: 3})
			if svc.stats.Load() != tc.calls || (err == nil) != tc.ok || time.Since(start) != tc.took {
				t.Errorf("%s: %d calls, %v, after %v", tc.name, svc.stats.Load(), err, time.Since(start))
			}
			if err != nil && !errors.Is(err, dfserr.ErrUnavailable) {
				t.Errorf("%s: %v", tc.name, err)
			}
			if err == nil && reply.GetReplica().GetChunk() != 3 {
				t.Errorf("%s: reply %v", tc.name, reply)
			}
		}
	})
}

func TestPool(t *testing.T) {
	p := rpc.NewPool(nil, rpc.PoolOptions{Conns: 2})
	a, _ := p.Get("127.0.0.1:1")
	b, _ := p.Get("127.0.0.1:1")
	c, _ := p.Get("127.0.0.1:1")
	if a == b || a != c {
		t.Error("two connections are to be used in turn")
	}
	p.Forget("127.0.0.1:1")
	if d, _ := p.Get("127.0.0.1:1"); d == a || d == b {
		t.Error("a forgotten connection came back")
	}
	if _, err := p.Get(""); !errors.Is(err, dfserr.ErrInvalid) {
		t.Errorf("empty address: %v", err)
	}
	p.Close()
	if _, err := p.Get("127.0.0.1:1"); !errors.Is(err, dfserr.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestPoolEvicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := rpc.NewPool(rpc.NewMem().Host("client"), rpc.PoolOptions{MaxAddrs: 2})
		defer p.Close()
		a, _ := p.Get("a:1")
		time.Sleep(2 * time.Minute)
		b, _ := p.Get("b:1")
		_, _ = p.Get("c:1")
		if again, _ := p.Get("b:1"); again != b {
			t.Error("b was used a moment ago and is gone")
		}
		if again, _ := p.Get("a:1"); again == a {
			t.Error("a was unused for longest and is still there")
		}
	})
}

func TestMalformedFrames(t *testing.T) {
	m := rpc.NewMem()
	svc := &chunkService{}
	addr, stop := serve(t, m.Host("cs"), ":0", svc)
	defer stop()
	p := rpc.NewPool(m.Host("client"), rpc.PoolOptions{})
	defer p.Close()
	cc, err := p.Get(addr)
	if err != nil {
		t.Fatal(err)
	}
	send := func(b []byte) error {
		cs, err := cc.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, dfsv1.Chunk_Write_FullMethodName, grpc.ForceCodecV2(rawCodec{}))
		if err != nil {
			return err
		}
		_ = cs.SendMsg(b)
		var reply []byte
		return cs.RecvMsg(&reply)
	}
	for _, b := range [][]byte{{0x12, 0x7f}, {0x0a, 0x01, 0xff}, {0x00}, bytes.Repeat([]byte{0xff}, 20), make([]byte, 5<<20)} {
		if err := send(b); err == nil {
			t.Errorf("%.20x was accepted", b)
		}
	}
	if _, err := dfsv1.NewChunkClient(cc).Stat(t.Context(), &dfsv1.ChunkStatRequest{}); err != nil {
		t.Errorf("the server no longer answers: %v", err)
	}
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (rawCodec) Unmarshal(d mem.BufferSlice, v any) error {
	*v.(*[]byte) = d.Materialize()
	return nil
}

func TestCheckListenAddr(t *testing.T) {
	for addr, ok := range map[string]bool{
		"127.0.0.1:9000": true, "[::1]:9000": true, "localhost:0": true, "127.9.9.9:1": true,
		"0.0.0.0:9000": false, ":9000": false, "10.1.2.3:9": false, "[::]:9": false, "example.com:9": false, "nonsense": false, "127.0.0.1:": false,
	} {
		err := rpc.CheckListenAddr(addr)
		if (err == nil) != ok {
			t.Errorf("%s: %v", addr, err)
		}
		if err != nil && (!errors.Is(err, dfserr.ErrInvalid) || !strings.Contains(err.Error(), addr)) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	_, err := rpc.TCP().Listen(t.Context(), "0.0.0.0:0")
	if err == nil || !strings.Contains(err.Error(), "TLS is not available") {
		t.Errorf("listening on everything: %v", err)
	}
}

func TestTCPRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	if _, err := rpc.TCP().Dial(t.Context(), addr); !rpc.IsRefused(err) || !strings.Contains(err.Error(), addr) {
		t.Errorf("got %v", err)
	}
	p := rpc.NewPool(nil, rpc.PoolOptions{})
	defer p.Close()
	_, err = chunkClient(t, p, addr).Stat(t.Context(), &dfsv1.ChunkStatRequest{})
	if !rpc.IsRefused(err) {
		t.Errorf("through the pool: %v", err)
	}
}

// TestStreamAllocations moves payload both ways over TCP and checks what it costs the heap.
func TestStreamAllocations(t *testing.T) {
	const total = 256 << 20
	svc := &chunkService{}
	addr, stop := serve(t, rpc.TCP(), "127.0.0.1:0", svc)
	defer stop()
	p := rpc.NewPool(nil, rpc.PoolOptions{})
	defer p.Close()
	c := chunkClient(t, p, addr)
	measure := func(name string, move func()) {
		move()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		move()
		d := time.Since(start)
		runtime.ReadMemStats(&after)
		perGiB := float64(after.TotalAlloc-before.TotalAlloc) / total * 1024
		t.Logf("%s: %.0f MiB/s, %.1f MiB allocated per GiB", name, total/float64(1<<20)/d.Seconds(), perGiB)
		if perGiB > 32 && !raceEnabled {
			t.Errorf("%s: %.1f MiB allocated per GiB, the limit is 32", name, perGiB)
		}
	}
	measure("read", func() {
		r, err := c.Read(t.Context(), &dfsv1.ReadRequest{Length: total})
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		f := rpc.Frame{Header: &dfsv1.ReadHeader{}}
		for {
			err := r.RecvMsg(&f)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got += f.Len()
			f.Free()
		}
		if got != total {
			t.Fatalf("got %d bytes", got)
		}
	})
	measure("write", func() {
		svc.received.Store(0)
		w, err := c.Write(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		h := &dfsv1.WriteHeader{}
		for n := 0; n < total; n += 1 << 20 {
			h.Tag++
			f := rpc.Frame{Header: h, Data: mem.BufferSlice{p.Buffers().Own(p.Buffers().Frame())}}
			if err := w.SendMsg(&f); err != nil {
				t.Fatal(err)
			}
			f.Free()
			if h.Tag > 8 {
				if _, err := w.Recv(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = w.CloseSend()
		for {
			if _, err := w.Recv(); err != nil {
				break
			}
		}
		if svc.received.Load() != total {
			t.Fatalf("the server got %d bytes", svc.received.Load())
		}
	})
}

// TestLentBuffersComeBack cancels a stream whose peer does not read and expects every lent buffer back.
func TestLentBuffersComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := rpc.NewMem()
		addr, stop := serve(t, m.Host("cs"), ":0", &chunkService{})
		p := rpc.NewPool(m.Host("client"), rpc.PoolOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		w, err := chunkClient(t, p, addr).Write(ctx)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		m.Cut("client", "cs")
		var lent, back atomic.Int64
		go func() {
			for {
				f := rpc.Frame{Header: &dfsv1.WriteHeader{}, Data: mem.BufferSlice{rpc.Lend(make([]byte, 1<<20), func() { back.Add(1) })}}
				lent.Add(1)
				err := w.SendMsg(&f)
				f.Free()
				if err != nil {
					return
				}
			}
		}()
		synctest.Wait()
		if lent.Load() == back.Load() {
			t.Fatal("nothing was kept: the fault did not fire")
		}
		cancel()
		m.Heal("client", "cs")
		synctest.Wait()
		p.Close()
		stop()
		synctest.Wait()
		if lent.Load() != back.Load() {
			t.Fatalf("%d buffers lent, %d came back", lent.Load(), back.Load())
		}
	})
}

func BenchmarkUnary(b *testing.B) {
	addr, stop := serve(b, rpc.TCP(), "127.0.0.1:0", &chunkService{})
	defer stop()
	p := rpc.NewPool(nil, rpc.PoolOptions{})
	defer p.Close()
	c := chunkClient(b, p, addr)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Stat(context.Background(), &dfsv1.ChunkStatRequest{Chunk: 1}); err != nil {
			b.Fatal(err)
		}
	}
}
