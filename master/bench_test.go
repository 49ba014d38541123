package master

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// benchMaster starts a master on a real socket and a real disk, with a session.
func benchMaster(b *testing.B) (dfsv1.MasterClient, uint64, *atomic.Uint64) {
	b.Helper()
	m, err := New(Config{Dir: b.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	if err := m.Start(ctx); err != nil {
		b.Fatal(err)
	}
	pool := rpc.NewPool(rpc.TCP(), rpc.PoolOptions{})
	b.Cleanup(func() {
		pool.Close()
		if err := m.Close(); err != nil {
			b.Error(err)
		}
	})
	conn, err := pool.Get(m.Addr())
	if err != nil {
		b.Fatal(err)
	}
	c := dfsv1.NewMasterClient(conn)
	s, err := c.OpenSession(ctx, &dfsv1.OpenSessionRequest{Client: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	return c, s.GetSession(), new(atomic.Uint64)
}

// cpuTime returns the processor time that this process, clients and master, has used: what a busy machine does not change much.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// callers runs f from 64 goroutines (on any number of processors), b.N times in all.
func callers(b *testing.B, f func(n uint64) error) {
	b.Helper()
	const n = 64
	var next, failed atomic.Uint64
	done := make(chan error, n)
	b.ReportAllocs()
	began := cpuTime(b)
	b.ResetTimer()
	for range n {
		go func() {
			for {
				i := next.Add(1)
				if i > uint64(b.N) || failed.Load() > 0 {
					done <- nil
					return
				}
				if err := f(i); err != nil {
					failed.Store(1)
					done <- err
					return
				}
			}
		}()
	}
	for range n {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
	b.ReportMetric(float64((cpuTime(b)-began).Microseconds())/float64(b.N), "cpu-µs/op")
}

// BenchmarkBareCall is the base of the others: a gRPC call that does nothing.
func BenchmarkBareCall(b *testing.B) {
	c, session, _ := benchMaster(b)
	callers(b, func(uint64) error {
		_, err := c.Close(context.Background(), &dfsv1.CloseRequest{Session: session, Inode: 1})
		return err
	})
}

func BenchmarkStat(b *testing.B) {
	c, session, seq := benchMaster(b)
	ctx := context.Background()
	for i := range 1000 {
		_, err := c.Create(ctx, &dfsv1.CreateRequest{
			Header: &dfsv1.MutationHeader{Session: session, Seq: seq.Add(1), Caller: &dfsv1.Caller{}}, Parent: &dfsv1.Ref{Path: []byte("/a/b/c")}, MakeParents: true,
			Name: fmt.Appendf(nil, "f%d", i), Mode: 0o100644,
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	callers(b, func(n uint64) error {
		_, err := c.GetAttr(ctx, &dfsv1.GetAttrRequest{Caller: &dfsv1.Caller{}, Ref: &dfsv1.Ref{Path: fmt.Appendf(nil, "/a/b/c/f%d", n%1000)}})
		return err
	})
}

func benchCreate(b *testing.B, mode uint32, data []byte) {
	c, session, seq := benchMaster(b)
	callers(b, func(n uint64) error {
		_, err := c.Create(context.Background(), &dfsv1.CreateRequest{
			Header: &dfsv1.MutationHeader{Session: session, Seq: seq.Add(1), Caller: &dfsv1.Caller{}}, Parent: &dfsv1.Ref{Path: []byte("/")},
			Name: fmt.Appendf(nil, "n%d", n), Mode: mode, Data: data,
		})
		return err
	})
}

func BenchmarkMkdir(b *testing.B)      { benchCreate(b, 0o040755, nil) }
func BenchmarkCreate4KiB(b *testing.B) { benchCreate(b, 0o100644, make([]byte, 4096)) }

func BenchmarkRename(b *testing.B) {
	c, session, seq := benchMaster(b)
	ctx := context.Background()
	for i := range 64 {
		_, err := c.Create(ctx, &dfsv1.CreateRequest{
			Header: &dfsv1.MutationHeader{Session: session, Seq: seq.Add(1), Caller: &dfsv1.Caller{}}, Parent: &dfsv1.Ref{Path: []byte("/")}, Name: fmt.Appendf(nil, "d%d", i), Mode: 0o040755,
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	// Each name is moved back and forth; two callers never hold one at once, because they take turns of 64.
	names := make(chan [2]string, 64)
	for i := range 64 {
		names <- [2]string{fmt.Sprintf("d%d", i), fmt.Sprintf("e%d", i)}
	}
	callers(b, func(uint64) error {
		n := <-names
		_, err := c.Rename(ctx, &dfsv1.RenameRequest{
			Header:    &dfsv1.MutationHeader{Session: session, Seq: seq.Add(1), Caller: &dfsv1.Caller{}},
			OldParent: &dfsv1.Ref{Path: []byte("/")}, NewParent: &dfsv1.Ref{Path: []byte("/")}, OldName: []byte(n[0]), NewName: []byte(n[1]),
		})
		names <- [2]string{n[1], n[0]}
		return err
	})
}

// BenchmarkReadDir lists a directory of 10,000 files with attributes, page by page.
func BenchmarkReadDir(b *testing.B) {
	c, session, seq := benchMaster(b)
	ctx := context.Background()
	const files = 10_000
	done := make(chan error, 64)
	for g := range 64 {
		go func() {
			for i := g; i < files; i += 64 {
				_, err := c.Create(ctx, &dfsv1.CreateRequest{
					Header: &dfsv1.MutationHeader{Session: session, Seq: seq.Add(1), Caller: &dfsv1.Caller{}}, Parent: &dfsv1.Ref{Path: []byte("/")}, Name: fmt.Appendf(nil, "n%d", i), Mode: 0o100644,
				})
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 64 {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	for range b.N {
		var after []byte
		for n := 0; ; {
			r, err := c.ReadDir(ctx, &dfsv1.ReadDirRequest{Caller: &dfsv1.Caller{}, Ref: &dfsv1.Ref{Path: []byte("/")}, After: after, Limit: 4096})
			if err != nil {
				b.Fatal(err)
			}
			n += len(r.GetEntries())
			if r.GetEnd() {
				if n != files {
					b.Fatalf("%d entries", n)
				}
				break
			}
			after = r.GetEntries()[len(r.GetEntries())-1].GetName()
		}
	}
	b.ReportMetric(float64(b.N)*files/b.Elapsed().Seconds(), "entries/s")
}
