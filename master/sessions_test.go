package master

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// keepAlive runs one stream that announces the given inodes, until stop is called.
func (w *world) keepAlive(session uint64, inodes ...uint64) (stop func()) {
	w.t.Helper()
	stream, err := w.client.KeepAlive(w.ctx())
	if err != nil {
		w.t.Fatal(err)
	}
	beat := func(r *dfsv1.KeepAliveRequest) error {
		if err := stream.Send(r); err != nil {
			return err
		}
		_, err := stream.Recv()
		return err
	}
	if err := beat(&dfsv1.KeepAliveRequest{Session: session, OpenInodes: inodes}); err != nil {
		w.t.Fatalf("keepalive: %v", err)
	}
	end := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-time.After(5 * time.Second):
				if beat(&dfsv1.KeepAliveRequest{Session: session}) != nil {
					return
				}
			case <-end:
				_ = stream.CloseSend()
				return
			}
		}
	})
	return func() { close(end); wg.Wait() }
}

func (w *world) openFile(ref *dfsv1.Ref, write bool) (*dfsv1.OpenReply, error) {
	return w.client.Open(w.ctx(), &dfsv1.OpenRequest{Caller: &dfsv1.Caller{}, Ref: ref, Session: w.session, Read: true, Write: write})
}

func (w *world) closeFile(ino uint64, write bool) {
	w.t.Helper()
	if _, err := w.client.Close(w.ctx(), &dfsv1.CloseRequest{Session: w.session, Inode: ino, Write: write}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) exists(ino uint64) bool {
	w.t.Helper()
	_, err := w.client.GetAttr(w.ctx(), &dfsv1.GetAttrRequest{Caller: &dfsv1.Caller{}, Ref: inode(ino)})
	if err != nil && !errors.Is(err, dfserr.ErrStaleInode) {
		w.t.Fatal(err)
	}
	return err == nil
}

func TestSessionExpires(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		stop := w.keepAlive(w.session)
		time.Sleep(2 * time.Minute)
		w.mkdir("alive")
		stop()
		time.Sleep(40 * time.Second)
		_, err := w.client.Create(w.ctx(), &dfsv1.CreateRequest{Header: w.header(), Parent: path("/"), Name: []byte("late"), Mode: 0o100644})
		wantErr(t, "mutation after expiry", err, dfserr.ErrUnknownSession)
		stream, err := w.client.KeepAlive(w.ctx())
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(&dfsv1.KeepAliveRequest{Session: w.session})
		_, err = stream.Recv()
		wantErr(t, "keepalive after expiry", err, dfserr.ErrUnknownSession)
		w.open()
		if _, err := w.client.CloseSession(w.ctx(), &dfsv1.CloseSessionRequest{Session: w.session}); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "mutation after close", w.remove("alive"), dfserr.ErrUnknownSession)
		w.open()
	})
}

func TestUnlinkedWhileOpen(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		stop := w.keepAlive(w.session)
		defer stop()
		f := w.create("f", func(r *dfsv1.CreateRequest) { r.Data = []byte("x") }).GetAttr().GetInode()
		if _, err := w.openFile(path("/f"), false); err != nil {
			t.Fatal(err)
		}
		if err := w.remove("f"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		if !w.exists(f) {
			t.Fatal("an open file was reclaimed")
		}
		w.closeFile(f, true)
		time.Sleep(10 * time.Second)
		if !w.exists(f) {
			t.Fatal("a file with one handle left was reclaimed")
		}
		w.closeFile(f, false)
		w.eventually("reclaim", 10*time.Second, func() bool { return !w.exists(f) })
		_, err := w.openFile(inode(f), false)
		wantErr(t, "open of a reclaimed inode", err, dfserr.ErrStaleInode)
	})
}

// TestOrphanSurvivesRestart has a session announce its handle after the master has come back, and another that never does.
func TestOrphanSurvivesRestart(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		kept := w.create("kept").GetAttr().GetInode()
		mine := w.session
		w.open()
		lost := w.create("lost").GetAttr().GetInode()
		for _, n := range []string{"kept", "lost"} {
			if err := w.remove(n); err != nil {
				t.Fatal(err)
			}
		}
		w.restart(true)
		stop := w.keepAlive(mine, kept)
		defer stop()
		time.Sleep(20 * time.Second)
		if !w.exists(kept) || !w.exists(lost) {
			t.Fatal("reclaimed before every session had its time to announce")
		}
		w.eventually("end of the silent session's file", 40*time.Second, func() bool { return !w.exists(lost) })
		if !w.exists(kept) {
			t.Fatal("an announced file was reclaimed")
		}
		if _, err := w.client.Close(w.ctx(), &dfsv1.CloseRequest{Session: mine, Inode: kept}); err != nil {
			t.Fatal(err)
		}
		w.eventually("reclaim", 10*time.Second, func() bool { return !w.exists(kept) })
		w.open()
	})
}

func TestTreeRemoval(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(3)
		stop := w.keepAlive(w.session)
		defer stop()
		w.mkdir("d")
		var open uint64
		for i := range 30 {
			r := w.create(fmt.Sprintf("f%d", i), func(r *dfsv1.CreateRequest) {
				r.Parent, r.MakeParents = path(fmt.Sprintf("/d/sub%d", i%5)), true
				r.Open, r.WantChunk = i == 7, true
			})
			for _, s := range r.GetChunks()[0].GetReplicas() {
				w.server(s.GetServer()).put(r.GetChunks()[0].GetChunk(), r.GetChunks()[0].GetVersion(), 1)
			}
			if i == 7 {
				open = r.GetAttr().GetInode()
			}
		}
		_, err := w.client.Remove(w.ctx(), &dfsv1.RemoveRequest{Header: w.header(), Parent: path("/"), Name: []byte("d"), What: dfsv1.RemoveRequest_TREE})
		if err != nil {
			t.Fatal(err)
		}
		totals := func() *dfsv1.StatFsReply { return w.report().GetTotals() }
		w.eventually("reclaim", 30*time.Second, func() bool { return totals().GetInodes() == 2 })
		if !w.exists(open) {
			t.Fatal("an open file below a removed tree was reclaimed")
		}
		if n := w.report().GetPendingDeletion(); n != 29 {
			t.Fatalf("%d chunks pending deletion, want 29", n)
		}
		w.closeFile(open, true)
		w.eventually("everything", 3*time.Minute, func() bool { return totals().GetInodes() == 1 && w.report().GetPendingDeletion() == 0 })
		for _, s := range w.servers {
			s.mu.Lock()
			if len(s.replicas) != 0 {
				t.Errorf("server %d still has %d replicas", s.id, len(s.replicas))
			}
			s.mu.Unlock()
		}
	})
}

// TestGarbageWaitsForServers deletes a file while one of its servers is away for a moment, and another while one is dead.
func TestGarbageWaitsForServers(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(3)
		stop := w.keepAlive(w.session)
		defer stop()
		f := w.create("f", func(r *dfsv1.CreateRequest) { r.WantChunk = true })
		c := f.GetChunks()[0]
		w.write(c, 10)
		away := w.server(c.GetReplicas()[2].GetServer())
		away.kill()
		if err := w.remove("f"); err != nil {
			t.Fatal(err)
		}
		w.closeFile(f.GetAttr().GetInode(), true)
		time.Sleep(15 * time.Second)
		if n := w.report().GetPendingDeletion(); n != 1 {
			t.Fatalf("%d pending, want 1 while a server is away", n)
		}
		w.eventually("end of the wait for a dead server", 2*time.Minute, func() bool { return w.report().GetPendingDeletion() == 0 })
		if _, ok := away.get(c.GetChunk()); !ok {
			t.Fatal("the script is wrong: the dead server has lost its replica by itself")
		}
		away.back()
		w.eventually("removal of what the dead server brought back", 20*time.Second, func() bool {
			_, ok := away.get(c.GetChunk())
			return !ok
		})
	}, func(c *Config) { c.GarbageGrace = 5 * time.Second })
}

// TestSessionTableClaim pins the order of claims and creates down.
func TestSessionTableClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newSessionTable(time.Minute, func(_, _ []dfs.InodeID) {})
		st.add(1)
		ticket := st.beginCreate()
		if c, again := st.claim([]dfs.InodeID{7}); len(c) != 0 || !again {
			t.Fatalf("claimed %v during a create", c)
		}
		later := st.beginCreate()
		st.endCreate(ticket)
		if c, _ := st.claim([]dfs.InodeID{7}); len(c) != 1 {
			t.Fatal("not claimed although only a later create is under way")
		}
		st.endCreate(later)
		wantErr(t, "open of a claimed inode", st.open(1, 7, false), dfserr.ErrStaleInode)
		st.release([]dfs.InodeID{7})
		if err := st.open(1, 7, false); err != nil {
			t.Fatal(err)
		}
		if c, again := st.claim([]dfs.InodeID{7}); len(c) != 0 || again {
			t.Fatalf("claimed %v while open", c)
		}
		st.close(1, 7, false)
		st.close(1, 7, false) // a repeated close does no harm
		if c, _ := st.claim([]dfs.InodeID{7}); len(c) != 1 {
			t.Fatal("not claimed after the close")
		}
	})
}

func TestSessionTableAnnounce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gone []dfs.InodeID
		st := newSessionTable(time.Minute, func(_, g []dfs.InodeID) { gone = append(gone, g...) })
		st.load([]dfs.SessionID{1, 2})
		if st.settled() {
			t.Fatal("settled before anyone announced")
		}
		if err := st.announce(1, []dfs.InodeID{5, 5, 6}); err != nil {
			t.Fatal(err)
		}
		if _, ok := st.beginClosing(9); ok {
			t.Fatal("a tail may be settled before everyone has announced")
		}
		st.end(2)
		if !st.settled() {
			t.Fatal("not settled although the other session has ended")
		}
		st.close(1, 5, false)
		st.close(1, 6, true)
		if len(gone) != 1 || gone[0] != 6 {
			t.Fatalf("gone: %v", gone)
		}
		if st.writers(5) != 1 {
			t.Fatalf("%d writers of 5", st.writers(5))
		}
		// What is not announced and is old is dropped; what is young stays.
		time.Sleep(2 * time.Minute)
		if err := st.open(1, 8, false); err != nil {
			t.Fatal(err)
		}
		if err := st.announce(1, nil); err != nil {
			t.Fatal(err)
		}
		if _, inodes := st.counts(); inodes != 1 {
			t.Fatalf("%d inodes open, want only the young one", inodes)
		}
		if len(st.expired(time.Now().Add(time.Hour))) != 1 {
			t.Fatal("the session did not expire")
		}
		wantErr(t, "renewal of an ending session", st.renew(1), dfserr.ErrUnknownSession)
		st.revive(1)
		if err := st.renew(1); err != nil {
			t.Fatal(err)
		}
	})
}

// TestHeldUpMasterEndsNoSession: time in which the master did not run is not time in which its clients were silent.
func TestHeldUpMasterEndsNoSession(t *testing.T) {
	st := newSessionTable(30*time.Second, func(_, _ []dfs.InodeID) {})
	now := time.Now()
	st.add(7)
	for range 10 {
		now = now.Add(st.lookEvery())
		if ended := st.expired(now); len(ended) != 0 {
			t.Fatalf("ended %v within the TTL", ended)
		}
	}
	now = now.Add(5 * time.Minute)
	if ended := st.expired(now); len(ended) != 0 {
		t.Fatalf("ended %v after the master was held up", ended)
	}
	for deadline := now.Add(30 * time.Second); now.Before(deadline); {
		now = now.Add(st.lookEvery())
		if len(st.expired(now)) == 1 {
			return
		}
	}
	t.Fatal("the session did not end although it was silent for its whole TTL while the master ran")
}
