package chunkserver

import (
	"errors"
	"testing"

	"google.golang.org/grpc/mem"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// TestForwardIsFenced speaks to a secondary as primaries would: of an older version, of another activation under the same
// version, with gaps, repetitions and damage.
func TestForwardIsFenced(t *testing.T) {
	inBubble(t, 2, nil, func(w *world) {
		cfg := w.master.configure(testChunk, nil, w.nodes...)
		w.retry(0, text(1, 100), 9, 1)
		s := w.client(w.nodes[1])
		primary := uint64(w.nodes[0].srv().ID())
		prepare := func(activation uint64, c *dfsv1.ChunkConfig) (*dfsv1.PrepareReply, error) {
			return s.Prepare(w.ctx, &dfsv1.PrepareRequest{Config: c, Primary: primary, Activation: activation, Settled: true, LastSeq: 1, LastVersion: cfg.GetVersion()})
		}
		if r, err := prepare(50, cfg); err != nil || !r.GetReady() || r.GetLastSeq() != 1 {
			t.Fatalf("prepare: %v, %v", r, err)
		}
		stream, err := s.Forward(w.ctx)
		if err != nil {
			t.Fatal(err)
		}
		data := text(2, 100)
		ask := func(change func(h *dfsv1.ForwardHeader)) error {
			t.Helper()
			h := &dfsv1.ForwardHeader{
				Chunk: testChunk, Version: cfg.GetVersion(), Seq: 2, Kind: dfsv1.MutationKind_WRITE, Offset: 50, Length: 100, Writer: 9, Request: 2,
				Crcs: dfs.BlockCRCs(50, data), CommittedSeq: 1, Activation: 50,
			}
			change(h)
			if err := stream.SendMsg(&rpc.Frame{Header: h, Data: mem.BufferSlice{mem.SliceBuffer(data)}}); err != nil {
				t.Fatal(err)
			}
			ack, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if ack.GetActivation() != h.GetActivation() || ack.GetChunk() != h.GetChunk() {
				t.Fatalf("%v answered by %v", h, ack)
			}
			return dfserr.FromReason(ack.GetErrorReason(), ack.GetErrorText())
		}
		for _, tt := range []struct {
			name   string
			change func(h *dfsv1.ForwardHeader)
			want   error
		}{
			{"older version", func(h *dfsv1.ForwardHeader) { h.Version-- }, dfserr.ErrStaleVersion},
			{"newer version", func(h *dfsv1.ForwardHeader) { h.Version++ }, dfserr.ErrLeaseExpired},
			{"another activation", func(h *dfsv1.ForwardHeader) { h.Activation = 49 }, dfserr.ErrLeaseExpired},
			{"no activation", func(h *dfsv1.ForwardHeader) { h.Activation = 0 }, dfserr.ErrLeaseExpired},
			{"unknown chunk", func(h *dfsv1.ForwardHeader) { h.Chunk = 3 }, dfserr.ErrLeaseExpired},
			{"repetition", func(h *dfsv1.ForwardHeader) { h.Seq = 1 }, nil},
			{"the next", func(*dfsv1.ForwardHeader) {}, nil},
		} {
			if err := ask(tt.change); !errors.Is(err, tt.want) {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
			}
		}
		// What breaks the chain ends the activation; a new one begins after it.
		for i, tt := range []struct {
			name   string
			change func(h *dfsv1.ForwardHeader)
			want   error
		}{
			{"gap", func(h *dfsv1.ForwardHeader) { h.Seq = 9 }, dfserr.ErrUnavailable},
			{"damaged data", func(h *dfsv1.ForwardHeader) { h.Seq, h.Crcs[0] = 3, 5 }, dfserr.ErrCorrupt},
			{"checksums missing", func(h *dfsv1.ForwardHeader) { h.Seq, h.Crcs = 3, nil }, dfserr.ErrInvalid},
			{"past the chunk", func(h *dfsv1.ForwardHeader) { h.Seq, h.Offset = 3, 1<<62 }, dfserr.ErrInvalid},
			{"negative length", func(h *dfsv1.ForwardHeader) { h.Seq, h.Length = 3, -1 }, dfserr.ErrInvalid},
		} {
			activation := uint64(60 + i)
			if _, err := s.Prepare(w.ctx, &dfsv1.PrepareRequest{Config: cfg, Primary: primary, Activation: activation, Settled: true, LastSeq: 2, LastVersion: cfg.GetVersion()}); err != nil {
				t.Fatal(err)
			}
			if err := ask(func(h *dfsv1.ForwardHeader) { h.Activation = activation; tt.change(h) }); !errors.Is(err, tt.want) {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
			}
			if err := ask(func(h *dfsv1.ForwardHeader) { h.Activation, h.Seq = activation, 3 }); !errors.Is(err, dfserr.ErrLeaseExpired) {
				t.Errorf("%s, and then the next: %v", tt.name, err)
			}
		}
		if _, state := w.nodes[1].onDisk(t); state.LastSeq != 2 {
			t.Errorf("%d mutations in the log, want 2", state.LastSeq)
		}
		// The primary's process, had it sent all that and died, would find the longer log when it comes back.
		w.kill(w.nodes[0])
		w.boot(w.nodes[0])
		w.retry(100, text(3, 10), 9, 3)
		if got := w.sameEverywhere(w.nodes...); string(got[50:110]) != string(append(text(2, 100)[:50:50], text(3, 10)...)) {
			t.Error("the mutation that only the secondary had is lost")
		}

		older := &dfsv1.ChunkConfig{Chunk: testChunk, Version: cfg.GetVersion() - 1, Replicas: cfg.GetReplicas(), ChunkSize: cfg.GetChunkSize(), Replication: 2}
		if _, err := prepare(70, older); !errors.Is(err, dfserr.ErrStaleVersion) {
			t.Errorf("prepare for an older version: %v", err)
		}
		for name, bad := range map[string]*dfsv1.PrepareRequest{
			"no config":     {Primary: primary, Activation: 5},
			"other primary": {Config: cfg, Primary: 5, Activation: 5},
			"no activation": {Config: cfg, Primary: primary},
			"not a member":  {Config: &dfsv1.ChunkConfig{Chunk: 5, Version: 5, ChunkSize: dfs.MiB, Replicas: []*dfsv1.ServerAddr{{Server: primary}}}, Primary: primary, Activation: 5},
		} {
			if _, err := s.Prepare(w.ctx, bad); !errors.Is(err, dfserr.ErrInvalid) {
				t.Errorf("prepare with %s: %v", name, err)
			}
		}
		if _, err := s.CatchUp(w.ctx, &dfsv1.CatchUpRequest{Config: cfg, Source: primary, Activation: 1234}); !errors.Is(err, dfserr.ErrLeaseExpired) {
			t.Errorf("catch-up of another activation: %v", err)
		}
		if _, err := s.SyncReplica(w.ctx, &dfsv1.SyncRequest{Chunk: testChunk, Version: cfg.GetVersion() - 1}); !errors.Is(err, dfserr.ErrStaleVersion) {
			t.Errorf("sync of an older version: %v", err)
		}
	})
}
