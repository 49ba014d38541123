package chunkserver

import (
	"errors"
	"testing"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

func TestWriteAndReadThroughChain(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		cfg := w.master.configure(testChunk, nil, w.nodes...)
		wr := w.writer(w.nodes[0])
		model := make([]byte, 0)
		apply := func(off int64, data []byte) {
			if n := off + int64(len(data)); n > int64(len(model)) {
				model = append(model, make([]byte, n-int64(len(model)))...)
			}
			copy(model[off:], data)
		}
		for i, c := range []struct{ off, n int }{{0, 10}, {10, 4096}, {5, 20}, {100_000, 1 << 20}, {4095, 2}, {3 << 20, 1 << 20}} {
			data := text(i, c.n)
			ack, err := wr.put(int64(c.off), data, 9, uint64(i+1))
			if err != nil {
				t.Fatalf("write %d: %v", i, err)
			}
			apply(int64(c.off), data)
			if ack.GetOffset() != int64(c.off) || ack.GetSeq() != uint64(i+1) || ack.GetChunkLength() != int64(len(model)) {
				t.Fatalf("write %d: acknowledged as %v, want length %d", i, ack, len(model))
			}
		}
		for _, nd := range w.nodes {
			w.mustRead(nd, cfg.GetVersion(), 0, model)
			w.mustRead(nd, cfg.GetVersion(), 4090, model[4090:200_000])
		}
		if got := w.sameEverywhere(w.nodes...); len(got) != len(model) {
			t.Fatalf("replicas have %d bytes, want %d", len(got), len(model))
		}
		// Past the end there is nothing, and the length says so.
		got, h, err := w.read(w.nodes[1], cfg.GetVersion(), int64(len(model)), 100)
		if err != nil || len(got) != 0 || h.GetChunkLength() != int64(len(model)) {
			t.Fatalf("read past the end: %d bytes, %v, %v", len(got), h, err)
		}
		if len(w.master.failures) != 0 {
			t.Fatalf("failures reported: %v", w.master.failures)
		}
	})
}

func TestAppendZeroTruncate(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		cfg := w.master.configure(testChunk, nil, w.nodes...)
		v := cfg.GetVersion()
		wr := w.writer(w.nodes[0])
		var want []byte
		for i := range 5 {
			data := text(i, 3000)
			ack, err := answer(wr.send(appendHeader(testChunk, v, data, 5, uint64(i+1)), data))
			if err != nil || ack.GetOffset() != int64(len(want)) {
				t.Fatalf("append %d: %v, %v", i, ack, err)
			}
			want = append(want, data...)
		}
		if _, err := answer(wr.send(&dfsv1.WriteHeader{Chunk: testChunk, Version: v, Kind: dfsv1.MutationKind_ZERO, Offset: 100, Length: 5000, Writer: 5, Request: 6}, nil)); err != nil {
			t.Fatal(err)
		}
		clear(want[100:5100])
		ack, err := answer(wr.send(&dfsv1.WriteHeader{Chunk: testChunk, Version: v, Kind: dfsv1.MutationKind_TRUNCATE, Offset: 7000, Writer: 5, Request: 7}, nil))
		if err != nil || ack.GetChunkLength() != 7000 {
			t.Fatalf("truncate: %v, %v", ack, err)
		}
		want = want[:7000]
		data := text(9, 10)
		h := appendHeader(testChunk, v, data, 5, 8)
		h.MinOffset = 9000
		if ack, err = answer(wr.send(h, data)); err != nil || ack.GetOffset() != 9000 {
			t.Fatalf("append at a least offset: %v, %v", ack, err)
		}
		want = append(append(want, make([]byte, 2000)...), data...)
		for _, nd := range w.nodes {
			w.mustRead(nd, v, 0, want)
		}
		big := text(1, dfs.FrameSize)
		for i := range 4 {
			_, err = answer(wr.send(appendHeader(testChunk, v, big, 5, uint64(9+i)), big))
			if i < 3 && err != nil {
				t.Fatal(err)
			}
		}
		if !errors.Is(err, dfserr.ErrChunkFull) {
			t.Fatalf("append to a full chunk: %v", err)
		}
		w.sameEverywhere(w.nodes...)
	})
}

func TestRepeatedRequests(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		v := w.master.configure(testChunk, nil, w.nodes...).GetVersion()
		a, b := w.writer(w.nodes[0]), w.writer(w.nodes[0])
		one, two := text(1, 100), text(2, 100)
		first, err := answer(a.send(appendHeader(testChunk, v, one, 5, 1), one))
		if err != nil {
			t.Fatal(err)
		}
		again, err := answer(b.send(appendHeader(testChunk, v, one, 5, 1), one))
		if err != nil || again.GetOffset() != first.GetOffset() || again.GetSeq() != first.GetSeq() {
			t.Fatalf("repeated append: %v, %v, first %v", again, err, first)
		}
		// A write that was overtaken by a newer one does not come back.
		if _, err := a.put(0, two, 5, 2); err != nil {
			t.Fatal(err)
		}
		if _, err := a.put(0, text(3, 100), 6, 1); err != nil {
			t.Fatal(err)
		}
		if ack, err := b.put(0, two, 5, 2); err != nil || ack.GetSeq() != 2 {
			t.Fatalf("delayed duplicate: %v, %v", ack, err)
		}
		w.mustRead(w.nodes[2], v, 0, text(3, 100))
		// The same on a new primary that only has the log.
		w.kill(w.nodes[0])
		cfg := w.master.configure(testChunk, nil, w.nodes[1], w.nodes[2])
		c := w.writer(w.nodes[1])
		if ack, err := answer(c.send(appendHeader(testChunk, cfg.GetVersion(), one, 5, 1), one)); err != nil || ack.GetSeq() != 1 || ack.GetOffset() != 0 {
			t.Fatalf("repeated append at the next primary: %v, %v", ack, err)
		}
		// Far behind the window it is not known any more.
		for i := range dfs.WriterWindow + 5 {
			if _, err := c.put(0, []byte{byte(i)}, 5, uint64(i+3)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := answer(c.send(appendHeader(testChunk, cfg.GetVersion(), one, 5, 1), one)); !errors.Is(err, dfserr.ErrDuplicate) {
			t.Fatalf("request behind the window: %v", err)
		}
	})
}

func TestMalformedFramesAreRefused(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		v := w.master.configure(testChunk, nil, w.nodes...).GetVersion()
		wr := w.writer(w.nodes[0])
		data := text(1, 5000)
		if _, err := wr.put(0, data, 5, 1); err != nil {
			t.Fatal(err)
		}
		tests := []struct {
			name   string
			change func(h *dfsv1.WriteHeader) []byte
			want   error
		}{
			{"negative offset", func(h *dfsv1.WriteHeader) []byte { h.Offset = -1; return data }, dfserr.ErrInvalid},
			{"overflowing offset", func(h *dfsv1.WriteHeader) []byte { h.Offset = 1<<63 - 2; return data }, dfserr.ErrInvalid},
			{"past the chunk", func(h *dfsv1.WriteHeader) []byte { h.Offset = 4*dfs.MiB - 10; return data }, dfserr.ErrInvalid},
			{"wrong length", func(h *dfsv1.WriteHeader) []byte { h.Length++; return data }, dfserr.ErrInvalid},
			{"too few checksums", func(h *dfsv1.WriteHeader) []byte { h.Crcs = h.Crcs[1:]; return data }, dfserr.ErrInvalid},
			{"wrong checksum", func(h *dfsv1.WriteHeader) []byte { h.Crcs[1]++; return data }, dfserr.ErrCorrupt},
			{"damaged data", func(*dfsv1.WriteHeader) []byte { d := text(1, 5000); d[7]++; return d }, dfserr.ErrCorrupt},
			{"no data", func(h *dfsv1.WriteHeader) []byte { h.Length, h.Crcs = 0, nil; return nil }, dfserr.ErrInvalid},
			{"too much data", func(h *dfsv1.WriteHeader) []byte {
				d := text(1, dfs.FrameSize+1)
				h.Length, h.Crcs = int64(len(d)), dfs.BlockCRCs(0, d)
				return d
			}, dfserr.ErrInvalid},
			{"unknown kind", func(h *dfsv1.WriteHeader) []byte { h.Kind = 77; return nil }, dfserr.ErrUnsupported},
			{"no kind", func(h *dfsv1.WriteHeader) []byte { h.Kind = 0; return nil }, dfserr.ErrUnsupported},
			{"append checksum", func(h *dfsv1.WriteHeader) []byte {
				h.Kind, h.AppendCrc, h.Crcs = dfsv1.MutationKind_APPEND, 5, nil
				return data
			}, dfserr.ErrCorrupt},
			{"append far away", func(h *dfsv1.WriteHeader) []byte {
				h.Kind, h.MinOffset = dfsv1.MutationKind_APPEND, -5
				return data
			}, dfserr.ErrInvalid},
			{"truncate with length", func(h *dfsv1.WriteHeader) []byte { h.Kind, h.Crcs = dfsv1.MutationKind_TRUNCATE, nil; return nil }, dfserr.ErrInvalid},
			{"zero with data", func(h *dfsv1.WriteHeader) []byte { h.Kind = dfsv1.MutationKind_ZERO; return data }, dfserr.ErrInvalid},
			{"request 0", func(h *dfsv1.WriteHeader) []byte { h.Request = 0; return data }, nil},
			{"chunk 0", func(h *dfsv1.WriteHeader) []byte { h.Chunk = 0; return data }, dfserr.ErrInvalid},
			{"older version", func(h *dfsv1.WriteHeader) []byte { h.Version--; return data }, dfserr.ErrStaleVersion},
			{"newer version", func(h *dfsv1.WriteHeader) []byte { h.Version++; return data }, dfserr.ErrLeaseExpired},
		}
		for i, tt := range tests {
			h := writeHeader(testChunk, v, 0, data, 5, uint64(i+2))
			d := tt.change(h)
			_, err := answer(wr.send(h, d))
			if tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
			}
			if tt.want == nil && err == nil {
				t.Errorf("%s: accepted", tt.name)
			}
		}
		if _, err := wr.put(0, data, 5, 100); err != nil {
			t.Fatalf("write on the same stream afterwards: %v", err)
		}
		if len(w.master.failures) != 0 {
			t.Fatalf("failures reported: %v", w.master.failures)
		}
		for _, req := range []*dfsv1.ReadRequest{{Chunk: testChunk, Offset: -1, Length: 5}, {Chunk: testChunk, Offset: 1 << 62, Length: 1 << 62}, {Length: 5}} {
			stream, err := w.client(w.nodes[0]).Read(w.ctx, req)
			if err == nil {
				_, err = stream.Recv()
			}
			if !errors.Is(err, dfserr.ErrInvalid) {
				t.Errorf("read %v: %v", req, err)
			}
		}
		w.sameEverywhere(w.nodes...)
	})
}
