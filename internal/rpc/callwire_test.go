package rpc

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
)

// FuzzRecords: parsing ends, with records that are written the same way again, or with an error.
func FuzzRecords(f *testing.F) {
	f.Add(appendRequest(nil, 7, 1000, "/a/B", []byte("message")))
	f.Add(appendCancel(appendAnswer(appendAnswer(nil, recordReply, 1, nil), recordFailure, 1<<63, []byte("x")), 3))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{2, 1, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, b []byte) {
		var again []byte
		if records(b, func(r record) error {
			switch r.kind {
			case recordRequest:
				again = appendRequest(again, r.call, r.timeoutMicros, string(r.method), r.message)
			case recordCancel:
				again = appendCancel(again, r.call)
			default:
				again = appendAnswer(again, r.kind, r.call, r.message)
			}
			return nil
		}) != nil {
			return
		}
		var first, second []record
		keep := func(to *[]record) func(record) error {
			return func(r record) error { *to = append(*to, r); return nil }
		}
		if records(b, keep(&first)) != nil || records(again, keep(&second)) != nil || len(first) != len(second) {
			t.Fatalf("%x was written again as %x", b, again)
		}
		for i, r := range first {
			s := second[i]
			if r.kind != s.kind || r.call != s.call || r.timeoutMicros != s.timeoutMicros || !bytes.Equal(r.method, s.method) || !bytes.Equal(r.message, s.message) {
				t.Fatalf("record %d: %+v was written again as %+v", i, r, s)
			}
		}
	})
}

// TestOutboxIsBounded: what is queued stays in order and within the bound; who waits for room goes on when there is, or gives up with its context.
func TestOutboxIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(NewBuffers())
		piece := make([]byte, 100_000)
		add := func(ctx context.Context, mark byte) bool {
			return o.add(ctx, len(piece)+1, func(b []byte) []byte { return append(append(b, mark), piece...) })
		}
		n := 0
		for o.bytes < outboxBytes {
			if !add(t.Context(), byte(n)) {
				t.Fatalf("refused with %d bytes", o.bytes)
			}
			n++
		}
		ctx, cancel := context.WithCancel(t.Context())
		gaveUp, went := make(chan bool), make(chan bool)
		go func() { gaveUp <- add(ctx, 0) }()
		synctest.Wait()
		cancel()
		if <-gaveUp {
			t.Error("added beyond the bound")
		}
		go func() { went <- add(t.Context(), byte(n)) }()
		synctest.Wait()
		var sent []byte
		drain := func() {
			for _, b := range o.take() {
				if len(*b) > batchBytes && len(*b) != len(piece)+1 {
					t.Errorf("a batch of %d bytes", len(*b))
				}
				sent = append(sent, *b...)
			}
		}
		drain()
		if !<-went {
			t.Error("refused although there is room")
		}
		drain()
		for i := range n + 1 {
			if got := sent[i*(len(piece)+1)]; got != byte(i) {
				t.Fatalf("record %d bears mark %d", i, got)
			}
		}
		if want := (n + 1) * (len(piece) + 1); len(sent) != want || o.bytes != 0 {
			t.Fatalf("%d bytes came out, want %d; %d are left", len(sent), want, o.bytes)
		}
		o.close()
		if add(t.Context(), 0) {
			t.Error("added to a closed outbox")
		}
	})
}
