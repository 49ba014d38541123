package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/go-hclog"

	"dfs/internal/dfs"
	"dfs/internal/vfs"
)

const (
	testCluster = dfs.ClusterID(0xc1)
	testServer  = dfs.ServerID(0x51)
	testChunk   = dfs.ChunkID(0xabcd)
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
}

// testLogger logs to the standard error when DFS_TEST_LOG is set.
func testLogger() hclog.Logger {
	if os.Getenv("DFS_TEST_LOG") == "" {
		return hclog.NewNullLogger()
	}
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Debug})
}

// testNonces returns a source of predictable nonces.
func testNonces() func() uint64 {
	var n atomic.Uint64
	n.Store(0x1000)
	return func() uint64 { return n.Add(1) }
}

func testOptions() Options {
	return Options{NoCompaction: true, Reserve: -1, Nonce: testNonces(), Logger: testLogger()}
}

// formatted formats fsys as a disk.
func formatted[F vfs.FS](t testing.TB, fsys F) F {
	t.Helper()
	must(t, Format(Disk{Name: "/disk", FS: fsys}, Identity{Cluster: testCluster, Server: testServer, Disk: 1}))
	return fsys
}

func openStore(t testing.TB, fsys vfs.FS, opts Options) *Store {
	t.Helper()
	s, err := Open(context.Background(), []Disk{{Name: "/disk", FS: fsys}}, opts)
	must(t, err)
	t.Cleanup(s.Kill)
	return s
}

func replica(t testing.TB, s *Store, id dfs.ChunkID) *Replica {
	t.Helper()
	r, err := s.Replica(id)
	must(t, err)
	return r
}

func state(t testing.TB, r *Replica) State {
	t.Helper()
	st, err := r.State()
	must(t, err)
	return st
}

// fill returns n bytes that differ by seed.
func fill(seed byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i*7) + byte(i>>8)
	}
	return b
}

// write makes a mutation that writes data; version and seq are left to next.
func write(off int64, data []byte) *Mutation {
	return &Mutation{Kind: KindWrite, Off: off, Len: int64(len(data)), Data: [][]byte{data}, CRCs: dfs.BlockCRCs(off, data)}
}

// next gives a mutation the replica's version and next seq, and appends it.
func next(t testing.TB, r *Replica, m *Mutation) dfs.Seq {
	t.Helper()
	st := state(t, r)
	m.Version, m.Seq = st.Version, st.LastSeq+1
	must(t, r.Append(m))
	return m.Seq
}

// readAll returns the chunk's bytes up to its length, and checks the checksums that came with them.
func readAll(t testing.TB, r *Replica) []byte {
	t.Helper()
	return readRange(t, r, 0, state(t, r).Length)
}

func readRange(t testing.TB, r *Replica, off, n int64) []byte {
	t.Helper()
	var out []byte
	for n > 0 {
		res, err := r.ReadAt(off, min(n, dfs.FrameSize))
		must(t, err)
		checkResult(t, off, res)
		if len(res.Data) == 0 {
			break
		}
		out = append(out, res.Data...)
		off, n = off+int64(len(res.Data)), n-int64(len(res.Data))
		res.Release()
	}
	return out
}

func checkResult(t testing.TB, off int64, res *ReadResult) {
	t.Helper()
	want := dfs.BlockCRCs(off, res.Data)
	if fmt.Sprint(want) != fmt.Sprint(res.CRCs) {
		t.Fatalf("read at %d: checksums %x, data has %x", off, res.CRCs, want)
	}
}

// copyLog sends r's log to another store.
func copyLog(t testing.TB, r *Replica, to *Store, after dfs.Seq, whole bool) (*Replica, error) {
	t.Helper()
	lr, err := r.LogReader(after, whole)
	if err != nil {
		return nil, err
	}
	defer lr.Close()
	rc, err := to.Receive(r.ID(), ReceiveOptions{Whole: whole, Size: lr.Size()})
	if err != nil {
		return nil, err
	}
	defer rc.Abort()
	if _, err := io.CopyBuffer(struct{ io.Writer }{rc}, struct{ io.Reader }{lr}, make([]byte, 7001)); err != nil {
		return nil, err
	}
	return rc.Commit()
}

// model is a chunk as a plain array, with its history.
type model struct {
	data    []byte
	history [][]byte // after each mutation; history[0] is empty
	cut     dfs.Version
}

func newModel() *model { return &model{history: [][]byte{nil}} }

// apply carries out a mutation.
func (m *model) apply(mut *Mutation) {
	switch mut.Kind {
	case KindWrite:
		if end := int(mut.Off + mut.Len); len(m.data) < end {
			m.data = append(m.data, make([]byte, end-len(m.data))...)
		}
		copy(m.data[mut.Off:], bytes.Join(mut.Data, nil))
	case KindZero:
		from, to := min(int(mut.Off), len(m.data)), min(int(mut.Off+mut.Len), len(m.data))
		clear(m.data[from:to])
	case KindTruncate:
		if n := int(mut.Off); n <= len(m.data) {
			m.data = m.data[:n:n]
		} else {
			m.data = append(m.data, make([]byte, n-len(m.data))...)
		}
		m.cut = max(m.cut, mut.CutVersion)
	}
	m.history = append(m.history, bytes.Clone(m.data))
}

// drop undoes the mutations after seq.
func (m *model) drop(seq dfs.Seq) {
	m.history = m.history[:seq+1]
	m.data = bytes.Clone(m.history[seq])
}

// randomMutation draws a mutation of a chunk of about size bytes.
func randomMutation(rng *rand.Rand, size int) *Mutation {
	off := rng.IntN(size)
	if rng.IntN(2) == 0 {
		off = off / dfs.BlockSize * dfs.BlockSize
	}
	n := 1 + rng.IntN(min(size, 5*dfs.BlockSize))
	if rng.IntN(3) == 0 {
		n = 1 + rng.IntN(200)
	}
	switch rng.IntN(10) {
	case 0:
		return &Mutation{Kind: KindZero, Off: int64(off), Len: int64(n)}
	case 1:
		return &Mutation{Kind: KindTruncate, Off: int64(off)}
	}
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	m := write(int64(off), data)
	m.Writer, m.Request = 1+uint64(rng.IntN(3)), 0
	for rest := data; len(rest) > 0 && len(m.Data) < 5; {
		k := 1 + rng.IntN(len(rest))
		if len(m.Data) == 1 && len(m.Data[0]) == n {
			m.Data = nil
		}
		m.Data, rest = append(m.Data, rest[:k]), rest[k:]
		if len(m.Data) == 4 && len(rest) > 0 {
			m.Data, rest = append(m.Data, rest), nil
		}
	}
	return m
}
