package chunkio_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/mem"

	"dfs/client/chunkio"
	"dfs/client/internal/fake"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is one IO on a fake cluster with one chunk.
type bench struct {
	*fake.Cluster
	x     *chunkio.IO
	pool  *rpc.Pool
	chunk uint64
}

// source asks the fake master.
type source struct {
	b       *bench
	locates atomic.Int64
}

func location(k *dfsv1.ChunkConfig) chunkio.Location {
	l := chunkio.Location{Chunk: dfs.ChunkID(k.GetChunk()), Version: dfs.Version(k.GetVersion()), ChunkSize: k.GetChunkSize()}
	for _, r := range k.GetReplicas() {
		l.Replicas = append(l.Replicas, chunkio.Replica{Server: dfs.ServerID(r.GetServer()), Addr: r.GetAddr(), Alive: true})
	}
	return l
}

func (s *source) Locate(_ context.Context, l chunkio.Location, _ bool) (chunkio.Location, error) {
	s.locates.Add(1)
	k := s.b.Config(uint64(l.Chunk))
	if k == nil {
		return l, dfserr.Errorf(dfserr.ErrNotExist, "chunk %s", l.Chunk)
	}
	return location(k), nil
}

func (s *source) Report(ctx context.Context, l chunkio.Location, f chunkio.Failure) (chunkio.Location, error) {
	cc, err := s.b.pool.Get(fake.MasterAddr)
	if err != nil {
		return l, err
	}
	r, err := dfsv1.NewMasterClient(cc).ReportFailure(ctx, &dfsv1.ReportFailureRequest{
		Chunk: uint64(l.Chunk), Version: uint64(l.Version), Server: uint64(f.Server), Reason: f.Reason, Corrupt: f.Corrupt,
	})
	return location(r.GetConfig()), err
}

// run runs f in a bubble with a cluster of three chunkservers and one chunk of 4 MiB.
func run(t *testing.T, cfg chunkio.Config, f func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{Cluster: fake.Start(t, 3)}
		b.pool = rpc.NewPool(b.Net.Host("client"), rpc.PoolOptions{})
		cfg.Pool, cfg.Source = b.pool, &source{b: b}
		b.x = chunkio.New(cfg)
		b.chunk = b.NewChunk(4 << 20)
		t.Cleanup(func() {
			b.x.Close()
			b.pool.Close()
		})
		f(t, b)
	})
}

func (b *bench) loc() chunkio.Location { return location(b.Config(b.chunk)) }

func write(off int64, data []byte) chunkio.Mutation {
	return chunkio.Mutation{
		Kind: dfsv1.MutationKind_WRITE, Off: off, Len: int64(len(data)),
		Data: mem.BufferSlice{mem.SliceBuffer(data)}, CRCs: dfs.BlockCRCs(off, data),
	}
}

func appendOf(data []byte) chunkio.Mutation {
	return chunkio.Mutation{Kind: dfsv1.MutationKind_APPEND, Len: int64(len(data)), Data: mem.BufferSlice{mem.SliceBuffer(data)}, CRC: dfs.CRC(data)}
}

func random(n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

// fill writes n random bytes at the chunk's start.
func (b *bench) fill(t *testing.T, n int) []byte {
	t.Helper()
	data := random(n)
	w := b.x.NewWriter(b.loc())
	for off := 0; off < n; off += dfs.FrameSize {
		if _, err := w.Do(t.Context(), write(int64(off), data[off:min(n, off+dfs.FrameSize)])); err != nil {
			t.Fatal(err)
		}
	}
	return data
}

func (b *bench) read(t *testing.T, off, n int64) []byte {
	t.Helper()
	p, err := b.x.Read(t.Context(), b.loc(), off, n)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Free()
	out := make([]byte, p.Len)
	p.CopyTo(out, 0)
	return out
}

func TestWriteAndRead(t *testing.T) {
	run(t, chunkio.Config{}, func(t *testing.T, b *bench) {
		data := b.fill(t, 3<<20+12345)
		for _, r := range []dfs.Range{{Off: 0, Len: 1 << 20}, {Off: 4096, Len: 4096}, {Off: 5, Len: 7}, {Off: 4090, Len: 10000}, {Off: 2<<20 + 1, Len: 1<<20 - 1}} {
			if got := b.read(t, r.Off, r.Len); !bytes.Equal(got, data[r.Off:r.End()]) {
				t.Errorf("%v: wrong bytes", r)
			}
		}
		p, err := b.x.Read(t.Context(), b.loc(), 3<<20, 1<<20)
		if err != nil || p.Len != 12345 || p.ChunkLength != 3<<20+12345 {
			t.Fatalf("at the end: %+v, %v", p, err)
		}
		part := make([]byte, 100)
		if n := p.CopyTo(part, 12300); n != 45 || !bytes.Equal(part[:45], data[3<<20+12300:]) {
			t.Errorf("CopyTo with skip gave %d bytes", n)
		}
		p.Free()
		if _, err := b.x.Read(t.Context(), b.loc(), 4<<20-1, 2); !errors.Is(err, dfserr.ErrInvalid) {
			t.Errorf("beyond the chunk: %v", err)
		}
		if n, err := b.x.Length(t.Context(), b.loc()); n != 3<<20+12345 || err != nil {
			t.Errorf("Length: %d, %v", n, err)
		}
		if err := b.x.Sync(t.Context(), b.loc()); err != nil {
			t.Errorf("Sync: %v", err)
		}
	})
}

func TestReadFailsOver(t *testing.T) {
	run(t, chunkio.Config{HedgeAfter: -1}, func(t *testing.T, b *bench) {
		data := b.fill(t, 10000)
		b.Net.Kill(b.Servers[0].Host)
		b.Net.Kill(b.Servers[1].Host)
		start := time.Now()
		for range 5 {
			if got := b.read(t, 0, 10000); !bytes.Equal(got, data) {
				t.Fatal("wrong bytes")
			}
		}
		if d := time.Since(start); d > 100*time.Millisecond {
			t.Errorf("reading past two dead servers took %v", d)
		}
		if len(b.Reports()) != 0 {
			t.Errorf("a reader reported dead servers: %v", b.Reports())
		}
	})
}

func TestReadCorruptReplicas(t *testing.T) {
	for _, how := range []string{"the server notices", "only the reader can notice"} {
		t.Run(how, func(t *testing.T) {
			run(t, chunkio.Config{HedgeAfter: -1}, func(t *testing.T, b *bench) {
				data := b.fill(t, 20000)
				bad := b.Servers[:2]
				for _, s := range bad {
					if how == "the server notices" {
						s.Corrupt()
					} else {
						s.Mangle = func(d []byte) { d[len(d)/2] ^= 4 }
					}
				}
				// Several chunks' worth of readers, so that each order of replicas occurs.
				for range 20 {
					x := chunkio.New(chunkio.Config{Pool: b.pool, Source: &source{b: b}, HedgeAfter: -1})
					p, err := x.Read(t.Context(), b.loc(), 100, 15000)
					if err != nil {
						t.Fatal(err)
					}
					got := make([]byte, p.Len)
					p.CopyTo(got, 0)
					p.Free()
					x.Close()
					if !bytes.Equal(got, data[100:15100]) {
						t.Fatal("wrong bytes")
					}
				}
				synctest.Wait()
				reported := map[uint64]bool{}
				for _, r := range b.Reports() {
					if !r.GetCorrupt() || r.GetReporter() != 0 {
						t.Errorf("report %v", r)
					}
					reported[r.GetServer()] = true
				}
				if !reported[1] || !reported[2] || reported[3] {
					t.Errorf("reported: %v", reported)
				}
			})
		})
	}
}

func TestReadAllCorrupt(t *testing.T) {
	run(t, chunkio.Config{}, func(t *testing.T, b *bench) {
		b.fill(t, 20000)
		for _, s := range b.Servers {
			s.Corrupt()
		}
		start := time.Now()
		_, err := b.x.Read(t.Context(), b.loc(), 0, 4096)
		if !errors.Is(err, dfserr.ErrCorrupt) || time.Since(start) > 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestReadStaleVersionAsksMaster(t *testing.T) {
	run(t, chunkio.Config{}, func(t *testing.T, b *bench) {
		data := b.fill(t, 5000)
		old := b.loc()
		b.Reconfigure(b.chunk, b.Servers[2])
		// The old replicas answer that they are behind or have nothing.
		for _, s := range b.Servers[:2] {
			s.OnRead = func(context.Context, *dfsv1.ReadRequest) error { return dfserr.ErrLeaseExpired }
		}
		p, err := b.x.Read(t.Context(), old, 0, 5000)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, p.Len)
		p.CopyTo(got, 0)
		p.Free()
		if !bytes.Equal(got, data) {
			t.Error("wrong bytes")
		}
	})
}

func TestReadGivesUp(t *testing.T) {
	run(t, chunkio.Config{OpTimeout: 20 * time.Second}, func(t *testing.T, b *bench) {
		b.fill(t, 100)
		for _, s := range b.Servers {
			b.Net.Kill(s.Host)
		}
		start := time.Now()
		_, err := b.x.Read(t.Context(), b.loc(), 0, 100)
		if !errors.Is(err, dfserr.ErrNoReplica) || time.Since(start) > 25*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		_, err = b.x.Read(ctx, b.loc(), 0, 100)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 1100*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestHedgedRead(t *testing.T) {
	run(t, chunkio.Config{}, func(t *testing.T, b *bench) {
		data := b.fill(t, 8192)
		for range 30 { // what is usual
			b.read(t, 0, 4096)
		}
		var stuck atomic.Int64
		for _, s := range b.Servers {
			first := true
			s.OnRead = func(ctx context.Context, _ *dfsv1.ReadRequest) error {
				if stuck.Load() == 0 && first {
					first = false
					stuck.Add(1)
					<-ctx.Done()
					return ctx.Err()
				}
				return nil
			}
		}
		start := time.Now()
		if got := b.read(t, 0, 8192); !bytes.Equal(got, data) {
			t.Error("wrong bytes")
		}
		if stuck.Load() != 1 {
			t.Fatal("the fault did not fire")
		}
		if d := time.Since(start); d > 50*time.Millisecond || d == 0 {
			t.Errorf("the second replica answered after %v", d)
		}
	})
}

func TestHedgingHasABudget(t *testing.T) {
	run(t, chunkio.Config{HedgeAfter: time.Millisecond}, func(t *testing.T, b *bench) {
		b.fill(t, 4096)
		for _, s := range b.Servers {
			s.OnRead = func(context.Context, *dfsv1.ReadRequest) error { time.Sleep(10 * time.Millisecond); return nil }
			s.Reads.Store(0)
		}
		const reads = 200
		for range reads {
			b.read(t, 0, 4096)
		}
		total := int64(0)
		for _, s := range b.Servers {
			total += s.Reads.Load()
		}
		if hedged := total - reads; hedged < 8 || hedged > 8+reads/20 {
			t.Errorf("%d of %d reads were hedged", hedged, reads)
		}
	})
}

func TestWriteSurvivesPrimary(t *testing.T) {
	run(t, chunkio.Config{}, func(t *testing.T, b *bench) {
		w := b.x.NewWriter(b.loc())
		data := random(3 << 20)
		var pending []*chunkio.Pending
		for off := 0; off < len(data); off += 64 << 10 {
			if off == 1<<20 {
				synctest.Wait()
				b.Net.Kill(b.Primary(b.chunk).Host)
			}
			p, err := w.Start(t.Context(), write(int64(off), data[off:off+64<<10]))
			if err != nil {
				t.Fatal(err)
			}
			pending = append(pending, p)
		}
		for i, p := range pending {
			if res, err := p.Wait(t.Context()); err != nil || res.Off != int64(i)*64<<10 {
				t.Fatalf("frame %d: %+v, %v", i, res, err)
			}
		}
		if !bytes.Equal(b.Bytes(b.chunk), data) {
			t.Error("wrong bytes")
		}
		if len(b.Reports()) == 0 {
			t.Error("the failure was not reported")
		}
		if !w.Idle() {
			t.Error("something is outstanding")
		}
	})
}

// TestAppendIsNotRepeated loses acknowledgements, and the configuration changes under the writer: each append is there once.
func TestAppendIsNotRepeated(t *testing.T) {
	run(t, chunkio.Config{AckTimeout: time.Second}, func(t *testing.T, b *bench) {
		var mu sync.Mutex
		seen := map[uint64]int{}
		lost := 0
		for _, s := range b.Servers {
			s.OnAck = func(h *dfsv1.WriteHeader) error {
				mu.Lock()
				defer mu.Unlock()
				seen[h.GetRequest()]++
				if h.GetRequest()%3 == 0 && seen[h.GetRequest()] == 1 {
					lost++
					if lost == 2 {
						go b.Reconfigure(b.chunk, b.Servers[2], b.Servers[0])
					}
					return fake.ErrSilent
				}
				return nil
			}
		}
		w := b.x.NewWriter(b.loc())
		want := map[string]bool{}
		for i := range 20 {
			rec := fmt.Sprintf("record %03d|", i)
			want[rec] = true
			res, err := w.Do(t.Context(), appendOf([]byte(rec)))
			if err != nil {
				t.Fatal(err)
			}
			if got := b.Bytes(b.chunk)[res.Off:]; !bytes.HasPrefix(got, []byte(rec)) {
				t.Fatalf("append %d is not at %d", i, res.Off)
			}
		}
		all := b.Bytes(b.chunk)
		if len(all) != 20*11 {
			t.Errorf("%d bytes, want %d: %q", len(all), 20*11, all)
		}
		if lost < 6 {
			t.Errorf("only %d acknowledgements were lost", lost)
		}
	})
}

func TestOverlappingWritesKeepTheirOrder(t *testing.T) {
	run(t, chunkio.Config{}, func(t *testing.T, b *bench) {
		// The first attempt of each request with an odd number is refused.
		var mu sync.Mutex
		refused := map[uint64]bool{}
		for _, s := range b.Servers {
			s.OnWrite = func(_ context.Context, h *dfsv1.WriteHeader) error {
				mu.Lock()
				defer mu.Unlock()
				if h.GetRequest()%2 == 1 && !refused[h.GetRequest()] {
					refused[h.GetRequest()] = true
					return dfserr.ErrLeaseHeld
				}
				return nil
			}
		}
		w := b.x.NewWriter(b.loc())
		want := make([]byte, 4096)
		var all []*chunkio.Pending
		for i := range 40 {
			data := bytes.Repeat([]byte{byte(i + 1)}, 1000)
			off := (i * 37) % 3000
			copy(want[off:], data)
			p, err := w.Start(t.Context(), write(int64(off), data))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, p)
		}
		for _, p := range all {
			if _, err := p.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		got := b.Bytes(b.chunk)
		if !bytes.Equal(got, want[:len(got)]) {
			t.Error("overlapping writes took effect out of order")
		}
		if len(refused) != 20 {
			t.Errorf("%d requests were refused", len(refused))
		}
	})
}

func TestWindow(t *testing.T) {
	run(t, chunkio.Config{}, func(t *testing.T, b *bench) {
		hold := make(chan struct{})
		var most, now atomic.Int64
		primary := b.Primary(b.chunk)
		primary.OnWrite = func(context.Context, *dfsv1.WriteHeader) error {
			<-hold
			return nil
		}
		w := b.x.NewWriter(b.loc())
		var wg sync.WaitGroup
		start := func(m chunkio.Mutation) {
			wg.Go(func() {
				p, err := w.Start(t.Context(), m)
				if err != nil {
					t.Error(err)
					return
				}
				most.Store(max(most.Load(), now.Add(1)))
				if _, err := p.Wait(t.Context()); err != nil {
					t.Error(err)
				}
				now.Add(-1)
			})
		}
		for i := range 300 {
			start(write(int64(i)*10, []byte("0123456789")))
		}
		synctest.Wait()
		if n := now.Load(); n != dfs.WriterWindow/2 {
			t.Errorf("%d requests outstanding, want %d", n, dfs.WriterWindow/2)
		}
		close(hold)
		wg.Wait()

		hold = make(chan struct{})
		primary.OnWrite = func(context.Context, *dfsv1.WriteHeader) error { <-hold; return nil }
		now.Store(0)
		big := b.NewChunk(64 << 20)
		b.Primary(big).OnWrite = primary.OnWrite
		w = b.x.NewWriter(location(b.Config(big)))
		for i := range 20 {
			start(write(int64(i)<<20, make([]byte, 1<<20)))
		}
		synctest.Wait()
		if n := now.Load(); n != chunkio.WindowBytes>>20 {
			t.Errorf("%d MiB outstanding, want %d", n, chunkio.WindowBytes>>20)
		}
		// A caller that goes away while it waits for room leaves nothing behind.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if _, err := w.Start(ctx, write(40<<20, []byte("x"))); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Start: %v", err)
		}
		cancel()
		close(hold)
		wg.Wait()
	})
}

func TestWriteErrors(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer error
		want   error
		took   time.Duration // at least
	}{
		{"no space ends it", dfserr.ErrNoSpace, dfserr.ErrNoSpace, 0},
		{"full chunk ends it", dfserr.ErrChunkFull, dfserr.ErrChunkFull, 0},
		{"too few replicas is waited for", dfserr.ErrTooFewReplicas, dfserr.ErrTooFewReplicas, 5 * time.Second},
		{"damaged on the way is sent again a few times", dfserr.ErrCorrupt, dfserr.ErrCorrupt, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run(t, chunkio.Config{OpTimeout: 5 * time.Second}, func(t *testing.T, b *bench) {
				for _, s := range b.Servers {
					s.OnWrite = func(context.Context, *dfsv1.WriteHeader) error { return tc.answer }
				}
				start := time.Now()
				_, err := b.x.NewWriter(b.loc()).Do(t.Context(), write(0, []byte("x")))
				if !errors.Is(err, tc.want) || time.Since(start) < tc.took || time.Since(start) > tc.took+time.Second {
					t.Errorf("%v after %v", err, time.Since(start))
				}
			})
		})
	}
}

func TestWriteTimesOutAtAllServersDead(t *testing.T) {
	run(t, chunkio.Config{OpTimeout: 8 * time.Second}, func(t *testing.T, b *bench) {
		for _, s := range b.Servers {
			b.Net.Kill(s.Host)
		}
		start := time.Now()
		_, err := b.x.NewWriter(b.loc()).Do(t.Context(), write(0, []byte("x")))
		if !errors.Is(err, dfserr.ErrUnavailable) || time.Since(start) > 12*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// TestHungPrimary: a primary that takes frames and never answers is given up.
func TestHungPrimary(t *testing.T) {
	run(t, chunkio.Config{AckTimeout: 2 * time.Second}, func(t *testing.T, b *bench) {
		b.Net.Pause(b.Primary(b.chunk).Host)
		start := time.Now()
		if _, err := b.x.NewWriter(b.loc()).Do(t.Context(), write(0, []byte("hello"))); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < 2*time.Second || d > 4*time.Second {
			t.Errorf("took %v", d)
		}
		if string(b.Bytes(b.chunk)) != "hello" {
			t.Errorf("wrote %q", b.Bytes(b.chunk))
		}
		b.Net.Resume(b.Servers[0].Host)
		b.Net.Resume(b.Servers[1].Host)
		b.Net.Resume(b.Servers[2].Host)
	})
}

func TestCancelledWriteIsNotRetried(t *testing.T) {
	run(t, chunkio.Config{}, func(t *testing.T, b *bench) {
		var tries atomic.Int64
		for _, s := range b.Servers {
			s.OnWrite = func(context.Context, *dfsv1.WriteHeader) error { tries.Add(1); return dfserr.ErrSafeMode }
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		w := b.x.NewWriter(b.loc())
		if _, err := w.Do(ctx, write(0, []byte("x"))); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Do: %v", err)
		}
		time.Sleep(2 * time.Second)
		n := tries.Load()
		time.Sleep(10 * time.Second)
		if tries.Load() != n || n == 0 {
			t.Errorf("%d tries, then %d more", n, tries.Load()-n)
		}
		if !w.Idle() {
			t.Error("something is outstanding")
		}
	})
}

func TestVanishedChunk(t *testing.T) {
	run(t, chunkio.Config{}, func(t *testing.T, b *bench) {
		l := b.loc()
		b.Drop(b.chunk)
		if _, err := b.x.NewWriter(l).Do(t.Context(), write(0, []byte("x"))); !errors.Is(err, dfserr.ErrNotExist) {
			t.Errorf("write: %v", err)
		}
		if _, err := b.x.Read(t.Context(), l, 0, 10); !errors.Is(err, dfserr.ErrNotExist) {
			t.Errorf("read: %v", err)
		}
		if err := b.x.Sync(t.Context(), l); !errors.Is(err, dfserr.ErrNotExist) {
			t.Errorf("sync: %v", err)
		}
	})
}

func TestSyncFollowsThePrimary(t *testing.T) {
	run(t, chunkio.Config{}, func(t *testing.T, b *bench) {
		b.fill(t, 100)
		old := b.loc()
		b.Net.Kill(b.Primary(b.chunk).Host)
		if err := b.x.Sync(t.Context(), old); err != nil {
			t.Fatal(err)
		}
		if b.Primary(b.chunk).Syncs.Load() != 1 {
			t.Error("the new primary was not asked")
		}
	})
}

func TestCloseFailsWhatIsOutstanding(t *testing.T) {
	run(t, chunkio.Config{}, func(t *testing.T, b *bench) {
		for _, s := range b.Servers {
			s.OnAck = func(*dfsv1.WriteHeader) error { return fake.ErrSilent }
		}
		w := b.x.NewWriter(b.loc())
		p, err := w.Start(t.Context(), write(0, []byte("x")))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		b.x.Close()
		if _, err := p.Wait(t.Context()); !errors.Is(err, dfserr.ErrClosed) {
			t.Errorf("got %v", err)
		}
		if _, err := w.Do(t.Context(), write(0, []byte("x"))); !errors.Is(err, dfserr.ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
}

// TestStreamIsShared: many writers use one stream per server, and it goes away when nobody uses it.
func TestStreamIsShared(t *testing.T) {
	run(t, chunkio.Config{}, func(t *testing.T, b *bench) {
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				if _, err := b.x.NewWriter(b.loc()).Do(t.Context(), write(int64(i)*100, random(100))); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := chunkio.Streams(b.x); n != 1 {
			t.Errorf("%d streams", n)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := chunkio.Streams(b.x); n != 0 {
			t.Errorf("%d streams after two idle minutes", n)
		}
		b.fill(t, 100)
	})
}
