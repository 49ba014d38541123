package master

import (
	"testing"

	"dfs/internal/dfs"
	dfsv1 "dfs/proto/dfs/v1"
)

// TestRepeatedOpensCountOnce sends opens, creates and closes several times, as a client does whose replies are lost and a network does that is slow: each handle counts once while it
// is open, and not at all afterwards.
func TestRepeatedOpensCountOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		l, err := w.m.lead()
		if err != nil {
			t.Fatal(err)
		}
		wantOpen := func(when string, ino uint64, writers int, open bool) {
			t.Helper()
			if got := l.sessions.writers(dfs.InodeID(ino)); got != writers {
				t.Errorf("%s: %d writers, want %d", when, got, writers)
			}
			if _, inodes := l.sessions.counts(); (inodes > 0) != open {
				t.Errorf("%s: %d inodes are open", when, inodes)
			}
		}
		create := &dfsv1.CreateRequest{Header: w.header(), Parent: path("/"), Name: []byte("f"), Mode: 0o100644, Open: true, Handle: 11}
		var ino uint64
		for range 3 {
			r, err := w.client.Create(w.ctx(), create)
			if err != nil {
				t.Fatal(err)
			}
			ino = r.GetAttr().GetInode()
		}
		wantOpen("created", ino, 1, true)
		open := &dfsv1.OpenRequest{Caller: &dfsv1.Caller{}, Ref: path("/f"), Session: w.session, Read: true, Write: true, Handle: 12}
		for range 3 {
			if _, err := w.client.Open(w.ctx(), open); err != nil {
				t.Fatal(err)
			}
		}
		wantOpen("opened", ino, 2, true)
		for range 3 {
			if _, err := w.client.Close(w.ctx(), &dfsv1.CloseRequest{Session: w.session, Inode: ino, Write: true, Handle: 11}); err != nil {
				t.Fatal(err)
			}
		}
		wantOpen("closed", ino, 1, true)
		release := &dfsv1.CommitLengthRequest{Header: w.header(), Inode: ino, Modified: true, Closing: true, Release: true, Handle: 12}
		for range 3 {
			if _, err := w.client.CommitLength(w.ctx(), release); err != nil {
				t.Fatal(err)
			}
		}
		wantOpen("released", ino, 0, false)
		// Late copies.
		if _, err := w.client.Open(w.ctx(), open); err != nil {
			t.Fatal(err)
		}
		if _, err := w.client.Create(w.ctx(), create); err != nil {
			t.Fatal(err)
		}
		wantOpen("late copies", ino, 0, false)
		// A handle that the client gave up before it knew of it.
		if _, err := w.client.Close(w.ctx(), &dfsv1.CloseRequest{Session: w.session, Handle: 13}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.client.Open(w.ctx(), &dfsv1.OpenRequest{Caller: &dfsv1.Caller{}, Ref: path("/f"), Session: w.session, Read: true, Handle: 13}); err != nil {
			t.Fatal(err)
		}
		wantOpen("given up", ino, 0, false)
		// The same path, another file.
		if _, err := w.client.Open(w.ctx(), &dfsv1.OpenRequest{Caller: &dfsv1.Caller{}, Ref: path("/f"), Session: w.session, Read: true, Handle: 14}); err != nil {
			t.Fatal(err)
		}
		if err := w.remove("f"); err != nil {
			t.Fatal(err)
		}
		other := w.create("f", func(r *dfsv1.CreateRequest) { r.Open = false }).GetAttr().GetInode()
		r, err := w.client.Open(w.ctx(), &dfsv1.OpenRequest{Caller: &dfsv1.Caller{}, Ref: path("/f"), Session: w.session, Read: true, Handle: 14})
		if err != nil || r.GetAttr().GetInode() != other {
			t.Fatalf("%v, %v", r, err)
		}
		if _, err := w.client.Close(w.ctx(), &dfsv1.CloseRequest{Session: w.session, Inode: other, Handle: 14}); err != nil {
			t.Fatal(err)
		}
		wantOpen("two files under one name", ino, 0, false)
	})
}

// TestOpenThatFailsCountsNothing: a failed copy of an open takes its count back, unless another has succeeded.
func TestOpenThatFailsCountsNothing(t *testing.T) {
	st := newSessionTable(1<<40, func(_, _ []dfs.InodeID) {})
	st.add(1)
	begin := func() {
		t.Helper()
		if err := st.openNamed(1, 5, true, 9); err != nil {
			t.Fatal(err)
		}
	}
	begin()
	st.endOpen(1, 5, true, 9, false)
	if n := st.writers(5); n != 0 {
		t.Fatalf("%d writers after a failure", n)
	}
	begin()
	begin()
	st.endOpen(1, 5, true, 9, false)
	if n := st.writers(5); n != 1 {
		t.Fatalf("%d writers with one copy under way", n)
	}
	st.endOpen(1, 5, true, 9, true)
	begin()
	st.endOpen(1, 5, true, 9, false)
	if n := st.writers(5); n != 1 {
		t.Fatalf("%d writers after a success and a failure", n)
	}
	for i := range uint64(3 * endedKept) {
		st.closeNamed(1, 5, true, 9+i)
	}
	if n := len(st.sessions[1].named.byName); n > endedKept {
		t.Fatalf("%d closed handles are remembered", n)
	}
	if _, inodes := st.counts(); inodes != 0 {
		t.Fatalf("%d inodes are open", inodes)
	}
}
