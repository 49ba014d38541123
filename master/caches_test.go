package master

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/fsm"
	dfsv1 "dfs/proto/dfs/v1"
)

// cacheWorld is a table with sessions 1 and 2 attached on stream 1, at index 100.
type cacheWorld struct {
	t *testing.T
	*cacheTable
}

func inCacheBubble(t *testing.T, f func(w *cacheWorld)) {
	synctest.Test(t, func(t *testing.T) {
		w := &cacheWorld{t, newCacheTable(nil)}
		for id := dfs.SessionID(1); id <= 2; id++ {
			if _, err := w.attach(id, 1); err != nil {
				t.Fatal(err)
			}
			if _, err := w.heard(id, 1, 0, true); err != nil {
				t.Fatal(err)
			}
		}
		f(w)
	})
}

func (w *cacheWorld) granted(id dfs.SessionID, inode dfs.InodeID, at dfs.Index, want bool) {
	w.t.Helper()
	if got := w.grant(id, inode, at); got != want {
		w.t.Fatalf("grant to session %d on inode %d as of %d: %v, want %v", id, inode, at, got, want)
	}
}

func (w *cacheWorld) change(index dfs.Index, h *dfsv1.MutationHeader, inodes ...dfs.InodeID) {
	w.observe(fsm.Change{Index: index, Header: h, Touched: inodes})
}

// waits begins to wait for a command's recalls and returns a channel that is closed when they are over.
func (w *cacheWorld) waits(d *deps) <-chan struct{} {
	over := make(chan struct{})
	go func() {
		if err := w.await(context.Background(), d); err != nil {
			w.t.Error(err)
		}
		close(over)
	}()
	synctest.Wait()
	return over
}

func isOver(ch <-chan struct{}) bool {
	synctest.Wait()
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func onCommand(index dfs.Index) *deps { return &deps{indexes: []dfs.Index{index}} }
func onInode(id dfs.InodeID) *deps    { return &deps{inodes: []dfs.InodeID{id}} }

func TestCacheRecall(t *testing.T) {
	inCacheBubble(t, func(w *cacheWorld) {
		w.granted(1, 7, 100, true)
		w.granted(2, 8, 100, true)
		w.change(101, &dfsv1.MutationHeader{Session: 2}, 7)
		command, reader, other := w.waits(onCommand(101)), w.waits(onInode(7)), w.waits(onInode(8))
		if isOver(command) || isOver(reader) || !isOver(other) {
			t.Fatalf("command over: %v, reader of it: %v, reader of another inode: %v", isOver(command), isOver(reader), isOver(other))
		}
		w.granted(2, 7, 101, false) // under recall
		number, inodes := w.take(1, 1)
		if number != 1 || len(inodes) != 1 || inodes[0] != 7 {
			t.Fatalf("recall %d of %v", number, inodes)
		}
		if _, err := w.heard(1, 1, number, false); err != nil {
			t.Fatal(err)
		}
		if !isOver(command) || !isOver(reader) {
			t.Fatal("confirmed, and still waiting")
		}
		w.granted(1, 7, 100, false) // read before the change
		w.granted(1, 7, 101, true)
		if leases, recalls := w.counts(); leases != 2 || recalls != 0 || len(w.registered()) != 0 {
			t.Fatalf("%d leases, %d recalls, %d waits", leases, recalls, len(w.registered()))
		}
	})
}

// registered returns the registered waits.
func (w *cacheWorld) registered() map[dfs.Index]*cacheWait {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cacheTable.waits
}

// A command that only looked at what is under recall, one that failed for instance, is not answered either.
func TestCacheRead(t *testing.T) {
	inCacheBubble(t, func(w *cacheWorld) {
		w.granted(1, 7, 100, true)
		w.change(101, nil, 7)
		w.observe(fsm.Change{Index: 102, Read: []dfs.InodeID{7}})
		w.observe(fsm.Change{Index: 103, Read: []dfs.InodeID{8}})
		looked, others := w.waits(onCommand(102)), w.waits(onCommand(103))
		if isOver(looked) || !isOver(others) {
			t.Fatal("the wrong one waits")
		}
		number, _ := w.take(1, 1)
		if _, err := w.heard(1, 1, number, false); err != nil {
			t.Fatal(err)
		}
		if !isOver(looked) {
			t.Fatal("still waiting")
		}
	})
}

func TestCacheCovers(t *testing.T) {
	inCacheBubble(t, func(w *cacheWorld) {
		w.granted(1, 7, 100, true)
		w.granted(2, 7, 100, true)
		w.change(101, &dfsv1.MutationHeader{Session: 1, Cache: 1, Covers: []uint64{7}}, 7)
		if n, _ := w.take(1, 1); n != 0 {
			t.Fatal("the session that covers the inode was told")
		}
		n, _ := w.take(2, 1)
		if n == 0 {
			t.Fatal("the other one was not told")
		}
		if _, err := w.heard(2, 1, n, false); err != nil {
			t.Fatal(err)
		}
		// Of another inode, on an older stream, or too much.
		for i, h := range []*dfsv1.MutationHeader{
			{Session: 1, Cache: 1, Covers: []uint64{8}},
			{Session: 1, Cache: 2, Covers: []uint64{7}},
			{Session: 1, Cache: 1, Covers: []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9}},
		} {
			index := dfs.Index(110 + i)
			w.granted(1, 7, index-1, true)
			w.change(index, h, 7)
			n, _ := w.take(1, 1)
			if n == 0 {
				t.Fatalf("%v counts", h)
			}
			if _, err := w.heard(1, 1, n, false); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A session that is not heard of delays a change until it cannot trust its cache any more, and no longer.
func TestCacheLapse(t *testing.T) {
	inCacheBubble(t, func(w *cacheWorld) {
		w.granted(1, 7, 100, true)
		time.Sleep(time.Second)
		w.change(101, nil, 7)
		begun := time.Now()
		over := w.waits(onCommand(101))
		<-over
		if d := time.Since(begun); d < dfs.CacheWait-time.Second || d > dfs.CacheWait-time.Second+10*time.Millisecond {
			t.Fatalf("waited %v for a session last heard of 1 s before", d)
		}
		w.granted(1, 8, 101, false) // it has lapsed
		// The next change of what it had finds nothing to wait for.
		w.change(102, nil, 7)
		if !isOver(w.waits(onCommand(102))) {
			t.Fatal("waits for a session that has lapsed")
		}
		if _, err := w.heard(1, 1, 0, true); err != nil {
			t.Fatal(err)
		}
		w.granted(1, 8, 102, true)
	})
}

// Keep-alive messages lengthen the wait, but not those of a session that does not confirm.
func TestCacheDeafSession(t *testing.T) {
	inCacheBubble(t, func(w *cacheWorld) {
		w.granted(1, 7, 100, true)
		w.change(101, nil, 7)
		begun := time.Now()
		over := w.waits(onCommand(101))
		w.take(1, 1)
		time.Sleep(confirmWithin)
		if answer, err := w.heard(1, 1, 0, true); !answer || err != nil {
			t.Fatalf("soon after the recall: %v, %v", answer, err)
		}
		time.Sleep(time.Second)
		if answer, err := w.heard(1, 1, 0, true); answer || err != nil {
			t.Fatalf("long after the recall: %v, %v", answer, err)
		}
		<-over
		if d := time.Since(begun); d > confirmWithin+dfs.CacheWait+10*time.Millisecond {
			t.Fatalf("waited %v", d)
		}
		if answer, err := w.heard(1, 1, 0, true); !answer || err != nil {
			t.Fatalf("after it had lapsed: %v, %v", answer, err)
		}
	})
}

// A stream that never confirms is ended.
func TestCacheMutiny(t *testing.T) {
	inCacheBubble(t, func(w *cacheWorld) {
		w.granted(1, 7, 100, true)
		w.change(101, nil, 7)
		time.Sleep(confirmWithin)
		if answer, err := w.heard(1, 1, 0, true); !answer || err != nil {
			t.Fatalf("soon after the recall: %v, %v", answer, err)
		}
		time.Sleep(dfs.CacheWait) // its trust ends only now
		if _, err := w.heard(1, 1, 0, true); !errors.Is(err, dfserr.ErrBusy) {
			t.Fatalf("it may go on: %v", err)
		}
	})
}

func TestCacheStreams(t *testing.T) {
	inCacheBubble(t, func(w *cacheWorld) {
		w.granted(1, 7, 100, true)
		w.change(101, nil, 7)
		over := w.waits(onCommand(101))
		w.granted(1, 8, 101, true)
		if _, err := w.attach(1, 2); err != nil { // it holds nothing
			t.Fatal(err)
		}
		if !isOver(over) {
			t.Fatal("waits for what was held under an earlier stream")
		}
		if leases, _ := w.counts(); leases != 0 {
			t.Fatalf("%d leases of an earlier stream", leases)
		}
		if _, err := w.heard(1, 1, 0, true); !errors.Is(err, dfserr.ErrBusy) {
			t.Fatalf("a message of an earlier stream: %v", err)
		}
		if _, err := w.attach(1, 1); !errors.Is(err, dfserr.ErrBusy) {
			t.Fatalf("an earlier stream that comes late: %v", err)
		}
		w.granted(1, 7, 101, true)
		w.end(1)
		w.granted(1, 7, 101, false)
		if leases, _ := w.counts(); leases != 0 {
			t.Fatalf("%d leases of a session that has ended", leases)
		}
	})
}

// After a change of leader nothing is answered until no lease of the earlier one can be trusted.
func TestCacheReign(t *testing.T) {
	for name, c := range map[string]struct {
		unknown []dfs.SessionID
		do      func(w *cacheTable)
		want    time.Duration
	}{
		"no sessions":     {nil, func(*cacheTable) {}, 0},
		"silent sessions": {[]dfs.SessionID{1, 2}, func(*cacheTable) {}, dfs.CacheWait},
		"one is silent":   {[]dfs.SessionID{1, 2}, func(w *cacheTable) { _, _ = w.attach(1, 5) }, dfs.CacheWait},
		"all have come":   {[]dfs.SessionID{1, 2}, func(w *cacheTable) { _, _ = w.attach(1, 5); w.end(2) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				w := newCacheTable(c.unknown)
				go w.outlast(t.Context())
				c.do(w)
				if err := w.awaitReady(t.Context()); err != nil {
					t.Fatal(err)
				}
				if d := time.Since(begun); d != c.want {
					t.Fatalf("ready after %v, want %v", d, c.want)
				}
			})
		})
	}
}

func TestCacheBounds(t *testing.T) {
	inCacheBubble(t, func(w *cacheWorld) {
		for i := range maxSessionLeases {
			w.granted(1, dfs.InodeID(i+10), 100, true)
		}
		w.granted(1, 5, 100, false)
		number, inodes := w.take(1, 1)
		if len(inodes) != maxSessionLeases/recallShare+1 || inodes[0] != 10 {
			t.Fatalf("%d inodes are called back, the first is %d", len(inodes), inodes[0])
		}
		if _, err := w.heard(1, 1, number, false); err != nil {
			t.Fatal(err)
		}
		w.granted(1, 5, 100, true)
		// What was changed so long ago that it is forgotten counts as changed.
		for i := range changedKept + 1 {
			w.change(dfs.Index(200+i), nil, dfs.InodeID(1e6+i))
		}
		w.granted(2, 6, 199, false)
		w.granted(2, 6, 200, true)
	})
}
