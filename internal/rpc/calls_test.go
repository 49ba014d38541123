package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// callsService answers Stat, the one method of these tests, with a function.
type callsService struct {
	dfsv1.UnimplementedChunkServer
	stat func(ctx context.Context, r *dfsv1.ChunkStatRequest) (*dfsv1.ChunkStatReply, error)
}

func (s *callsService) Stat(ctx context.Context, r *dfsv1.ChunkStatRequest) (*dfsv1.ChunkStatReply, error) {
	return s.stat(ctx, r)
}

func echo(_ context.Context, r *dfsv1.ChunkStatRequest) (*dfsv1.ChunkStatReply, error) {
	return &dfsv1.ChunkStatReply{Replica: &dfsv1.ReplicaState{Chunk: r.GetChunk()}}, nil
}

// serveCalls runs a server of call streams at addr until the returned function is called.
func serveCalls(t testing.TB, n rpc.Network, addr string, svc *callsService) (string, func()) {
	t.Helper()
	l, err := n.Listen(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	s := rpc.NewServer(rpc.ServerOptions{})
	dfsv1.RegisterChunkServer(s, svc)
	rpc.RegisterCalls(s, rpc.ServerOptions{}, rpc.CallService{Desc: &dfsv1.Chunk_ServiceDesc, Impl: svc})
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	return l.Addr().String(), func() { s.Stop(); <-done }
}

func callClient(t testing.TB, p *rpc.Pool, addr string) dfsv1.ChunkClient {
	t.Helper()
	cc, err := p.GetCalls(addr)
	if err != nil {
		t.Fatal(err)
	}
	return dfsv1.NewChunkClient(cc)
}

// callWorld runs f with a client of a peer that answers with stat.
func callWorld(t *testing.T, o rpc.PoolOptions, stat func(context.Context, *dfsv1.ChunkStatRequest) (*dfsv1.ChunkStatReply, error),
	f func(t *testing.T, m *rpc.Mem, addr string, c dfsv1.ChunkClient),
) {
	synctest.Test(t, func(t *testing.T) {
		m := rpc.NewMem()
		addr, stop := serveCalls(t, m.Host("cs"), "cs:7", &callsService{stat: stat})
		defer stop()
		p := rpc.NewPool(m.Host("client"), o)
		defer p.Close()
		f(t, m, addr, callClient(t, p, addr))
	})
}

// TestCallsAnswersFindTheirCalls: answers come in any order, and each goes to its call.
func TestCallsAnswersFindTheirCalls(t *testing.T) {
	const callers, each = 200, 20
	var most, now atomic.Int64
	slow := func(ctx context.Context, r *dfsv1.ChunkStatRequest) (*dfsv1.ChunkStatReply, error) {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		time.Sleep(time.Duration(r.GetChunk()%7) * time.Millisecond)
		if r.GetChunk()%5 == 0 {
			return nil, dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %d", r.GetChunk())
		}
		return echo(ctx, r)
	}
	callWorld(t, rpc.PoolOptions{}, slow, func(t *testing.T, _ *rpc.Mem, _ string, c dfsv1.ChunkClient) {
		var wg sync.WaitGroup
		for caller := range callers {
			wg.Go(func() {
				for i := range each {
					chunk := uint64(caller*each + i)
					reply, err := c.Stat(t.Context(), &dfsv1.ChunkStatRequest{Chunk: chunk})
					switch {
					case chunk%5 == 0:
						if !errors.Is(err, dfserr.ErrStaleVersion) || !strings.Contains(err.Error(), fmt.Sprintf("chunk %d:", chunk)) {
							t.Errorf("chunk %d: %v", chunk, err)
						}
					case err != nil || reply.GetReplica().GetChunk() != chunk:
						t.Errorf("chunk %d: %v, %v", chunk, reply, err)
					}
				}
			})
		}
		wg.Wait()
		if most.Load() < callers/4 {
			t.Errorf("at most %d calls were handled at a time", most.Load())
		}
		if _, err := c.Sync(t.Context(), &dfsv1.SyncRequest{}); !errors.Is(err, dfserr.ErrUnsupported) {
			t.Errorf("a method that the service lacks: %v", err)
		}
		if _, err := c.Stat(t.Context(), &dfsv1.ChunkStatRequest{Chunk: 1}); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// TestCallsEndWithTheirContexts: a time-out travels to the handler, and so does a cancellation; other calls on the stream go on.
func TestCallsEndWithTheirContexts(t *testing.T) {
	ended := make(chan error, 1)
	stat := func(ctx context.Context, r *dfsv1.ChunkStatRequest) (*dfsv1.ChunkStatReply, error) {
		if r.GetChunk() == 0 {
			return echo(ctx, r)
		}
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, ctx.Err()
	}
	callWorld(t, rpc.PoolOptions{CallTimeout: 7 * time.Second}, stat, func(t *testing.T, _ *rpc.Mem, _ string, c dfsv1.ChunkClient) {
		began := time.Now()
		_, err := c.Stat(context.Background(), &dfsv1.ChunkStatRequest{Chunk: 1})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 7*time.Second {
			t.Errorf("without an answer: %v after %v", err, time.Since(began))
		}
		if err := <-ended; err == nil {
			t.Error("the handler's context did not end")
		}
		ctx, cancel := context.WithCancel(t.Context())
		began = time.Now()
		time.AfterFunc(time.Second, cancel)
		_, err = c.Stat(ctx, &dfsv1.ChunkStatRequest{Chunk: 1})
		if !errors.Is(err, context.Canceled) || time.Since(began) != time.Second {
			t.Errorf("cancelled: %v after %v", err, time.Since(began))
		}
		if err := <-ended; !errors.Is(err, context.Canceled) || time.Since(began) != time.Second {
			t.Errorf("the handler of a cancelled call saw %v after %v", err, time.Since(began))
		}
		if _, err := c.Stat(ctx, &dfsv1.ChunkStatRequest{}); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that has ended: %v", err)
		}
		if _, err := c.Stat(t.Context(), &dfsv1.ChunkStatRequest{}); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// TestCallsUnreachable: a peer that is away, dies under a call, is cut off and comes back looks as it does to unary calls.
func TestCallsUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := rpc.NewMem()
		p := rpc.NewPool(m.Host("client"), rpc.PoolOptions{})
		defer p.Close()
		c := callClient(t, p, "cs:7")
		_, err := c.Stat(t.Context(), &dfsv1.ChunkStatRequest{})
		if !rpc.IsRefused(err) || !errors.Is(err, dfserr.ErrUnavailable) || !strings.Contains(err.Error(), "cs:7") {
			t.Fatalf("nobody listens: %v", err)
		}
		for range 300 { // each opens a stream, which may break before the call waits for it
			began := time.Now()
			if _, err := c.Stat(t.Context(), &dfsv1.ChunkStatRequest{}); !rpc.IsRefused(err) || time.Since(began) > time.Second {
				t.Fatalf("nobody listens: %v after %v", err, time.Since(began))
			}
		}
		reached := make(chan struct{}, 1)
		stat := func(ctx context.Context, r *dfsv1.ChunkStatRequest) (*dfsv1.ChunkStatReply, error) {
			if r.GetChunk() == 0 {
				return echo(ctx, r)
			}
			reached <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		_, stop := serveCalls(t, m.Host("cs"), "cs:7", &callsService{stat: stat})
		time.Sleep(1200 * time.Millisecond)
		if _, err := c.Stat(t.Context(), &dfsv1.ChunkStatRequest{}); err != nil {
			t.Fatalf("after it came up: %v", err)
		}
		// Stopped while it handles a call.
		lost := make(chan error, 1)
		go func() {
			_, err := c.Stat(t.Context(), &dfsv1.ChunkStatRequest{Chunk: 1})
			lost <- err
		}()
		<-reached
		stop()
		if err := <-lost; !errors.Is(err, dfserr.ErrUnavailable) && !errors.Is(err, context.Canceled) {
			t.Fatalf("the peer stopped during the call: %v", err)
		}
		_, stop = serveCalls(t, m.Host("cs"), "cs:7", &callsService{stat: stat})
		defer func() { stop() }()
		time.Sleep(1200 * time.Millisecond)
		if _, err := c.Stat(t.Context(), &dfsv1.ChunkStatRequest{}); err != nil {
			t.Fatalf("after it was started again: %v", err)
		}
		// Cut off: the keepalive finds out.
		m.Cut("client", "cs")
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err = c.Stat(ctx, &dfsv1.ChunkStatRequest{})
		cancel()
		if !errors.Is(err, dfserr.ErrUnavailable) || time.Since(began) > 20*time.Second {
			t.Fatalf("cut off: %v after %v", err, time.Since(began))
		}
		m.Heal("client", "cs")
		time.Sleep(5 * time.Second)
		if _, err := c.Stat(t.Context(), &dfsv1.ChunkStatRequest{}); err != nil {
			t.Fatalf("after healing: %v", err)
		}
		p.Close()
		if _, err := c.Stat(t.Context(), &dfsv1.ChunkStatRequest{}); !errors.Is(err, dfserr.ErrClosed) {
			t.Fatalf("after Close: %v", err)
		}
	})
}

// TestCallsTooLarge: a message over the limit fails its own call only.
func TestCallsTooLarge(t *testing.T) {
	stat := func(ctx context.Context, r *dfsv1.ChunkStatRequest) (*dfsv1.ChunkStatReply, error) {
		switch r.GetChunk() {
		case 1:
			return &dfsv1.ChunkStatReply{Replica: &dfsv1.ReplicaState{State: strings.Repeat("x", rpc.MaxMessage)}}, nil
		case 2:
			return &dfsv1.ChunkStatReply{Replica: &dfsv1.ReplicaState{State: strings.Repeat("x", rpc.MaxMessage*9/10)}}, nil
		case 3:
			return nil, dfserr.Errorf(dfserr.ErrStaleVersion, "%s", strings.Repeat("x", 1<<20))
		}
		return echo(ctx, r)
	}
	callWorld(t, rpc.PoolOptions{}, stat, func(t *testing.T, _ *rpc.Mem, _ string, c dfsv1.ChunkClient) {
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				kind := uint64(i % 4)
				reply, err := c.Stat(t.Context(), &dfsv1.ChunkStatRequest{Chunk: kind})
				switch ok := err == nil; {
				case kind%2 == 0 && !ok, kind%2 == 1 && ok:
					t.Errorf("kind %d: %v", kind, err)
				case kind == 2 && len(reply.GetReplica().GetState()) != rpc.MaxMessage*9/10:
					t.Errorf("a long reply came back with %d bytes", len(reply.GetReplica().GetState()))
				}
			})
		}
		wg.Wait()
	})
}

func TestCallsFaults(t *testing.T) {
	var next rpc.Fault
	calls := 0
	stat := func(ctx context.Context, r *dfsv1.ChunkStatRequest) (*dfsv1.ChunkStatReply, error) {
		calls++
		return echo(ctx, r)
	}
	faults := func(_ context.Context, addr, method string) rpc.Fault {
		if addr != "cs:7" || method != dfsv1.Chunk_Stat_FullMethodName {
			t.Errorf("asked about %s %s", addr, method)
		}
		return next
	}
	callWorld(t, rpc.PoolOptions{Faults: faults}, stat, func(t *testing.T, _ *rpc.Mem, _ string, c dfsv1.ChunkClient) {
		for fault, want := range map[rpc.Fault]int{{}: 1, {DropRequest: true}: 0, {DropReply: true}: 1, {Duplicate: true}: 2} {
			next, calls = fault, 0
			reply, err := c.Stat(t.Context(), &dfsv1.ChunkStatRequest{Chunk: 3})
			lost := fault.DropRequest || fault.DropReply
			if calls != want || lost != errors.Is(err, dfserr.ErrUnavailable) || !lost && reply.GetReplica().GetChunk() != 3 {
				t.Errorf("%+v: %d calls, %v, %v", fault, calls, reply, err)
			}
		}
	})
}

// TestCallsRubbish: a server ends a stream that it cannot read, and the handlers of its calls, and goes on serving others.
func TestCallsRubbish(t *testing.T) {
	entered, left := make(chan struct{}), make(chan struct{})
	stat := func(ctx context.Context, r *dfsv1.ChunkStatRequest) (*dfsv1.ChunkStatReply, error) {
		if r.GetChunk() == 1 {
			close(entered)
			<-ctx.Done()
			close(left)
		}
		return echo(ctx, r)
	}
	synctest.Test(t, func(t *testing.T) {
		m := rpc.NewMem()
		addr, stop := serveCalls(t, m.Host("cs"), "cs:7", &callsService{stat: stat})
		defer stop()
		p := rpc.NewPool(m.Host("client"), rpc.PoolOptions{})
		defer p.Close()
		cc, err := p.Get(addr)
		if err != nil {
			t.Fatal(err)
		}
		request := []byte{1, 9, 0}
		request = append(append(request, byte(len(dfsv1.Chunk_Stat_FullMethodName))), dfsv1.Chunk_Stat_FullMethodName...)
		request = append(request, 2, 0x08, 1)
		for name, b := range map[string][]byte{
			"unknown type": append(request, 7, 1), "ends early": append(request, 1, 2), "number used twice": append(request, request...),
			"an answer": append(request, 2, 9, 0), "a method too long": append(request, 1, 8, 0, 0xff, 0xff, 0x7f),
		} {
			entered, left = make(chan struct{}), make(chan struct{})
			stream, err := cc.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/dfs.rpc.Calls/Carry")
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.SendMsg(&rpc.Frame{Data: mem.BufferSlice{mem.SliceBuffer(request)}}); err != nil {
				t.Fatal(err)
			}
			<-entered
			if err := stream.SendMsg(&rpc.Frame{Data: mem.BufferSlice{mem.SliceBuffer(b[len(request):])}}); err != nil {
				t.Fatal(err)
			}
			<-left
			for {
				var f rpc.Frame
				if err = stream.RecvMsg(&f); err != nil {
					break
				}
				f.Free()
			}
			if !strings.Contains(err.Error(), "malformed record") {
				t.Errorf("%s: the stream ends with %v", name, err)
			}
		}
		if _, err := callClient(t, p, addr).Stat(t.Context(), &dfsv1.ChunkStatRequest{}); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}
