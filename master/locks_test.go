package master

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// locker is one session that locks.
type locker struct {
	w       *world
	session uint64
	seq     atomic.Uint64
	wait    uint64
}

// locker opens a session that stays.
func (w *world) locker() *locker {
	w.open()
	return &locker{w: w, session: w.session}
}

// posix is a lock of an owner on bytes first to last.
func posix(owner uint64, first, last int64, exclusive bool) *dfsv1.LockSpec {
	return &dfsv1.LockSpec{Posix: true, Owner: owner, First: first, Last: last, Exclusive: exclusive}
}

// flock is a lock of an owner on a whole file.
func flock(owner uint64, exclusive bool) *dfsv1.LockSpec {
	return &dfsv1.LockSpec{Owner: owner, Exclusive: exclusive}
}

func (k *locker) call(r *dfsv1.LockRequest) (*dfsv1.LockReply, error) {
	r.Header = &dfsv1.MutationHeader{Session: k.session, Seq: k.seq.Add(1), Caller: &dfsv1.Caller{}}
	return k.w.client.Lock(k.w.ctx(), r)
}

func (k *locker) try(ino uint64, l *dfsv1.LockSpec) error {
	_, err := k.call(&dfsv1.LockRequest{Inode: ino, Lock: l})
	return err
}

func (k *locker) must(ino uint64, l *dfsv1.LockSpec) {
	k.w.t.Helper()
	if err := k.try(ino, l); err != nil {
		k.w.t.Fatal(err)
	}
}

func (k *locker) unlock(ino uint64, l *dfsv1.LockSpec) {
	k.w.t.Helper()
	if _, err := k.call(&dfsv1.LockRequest{Inode: ino, Lock: l, Unlock: true}); err != nil {
		k.w.t.Fatal(err)
	}
}

// waiting is a lock that somebody waits for.
type waiting struct {
	k    *locker
	got  chan error // one result
	stop context.CancelFunc
}

// acquire waits for a lock as clients do, in the background. It returns when the waiter has its place or its lock.
func (k *locker) acquire(ino uint64, l *dfsv1.LockSpec) *waiting {
	k.wait++
	wait := k.wait
	ctx, stop := context.WithCancel(k.w.ctx())
	w := &waiting{k, make(chan error, 1), stop}
	go func() { w.got <- k.await(ctx, ino, l, wait) }()
	synctest.Wait()
	return w
}

func (k *locker) await(ctx context.Context, ino uint64, l *dfsv1.LockSpec, wait uint64) error {
	place := uint64(0)
	for {
		_, err := k.call(&dfsv1.LockRequest{Inode: ino, Lock: l, Wait: place, Patient: true})
		if !errors.Is(err, dfserr.ErrWouldBlock) {
			return err
		}
		for place = wait; ; {
			r, err := k.w.client.AwaitLock(ctx, &dfsv1.AwaitLockRequest{Session: k.session, Inode: ino, Lock: l, Wait: wait})
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case errors.Is(err, dfserr.ErrNotLeader), errors.Is(err, dfserr.ErrUnavailable), errors.Is(err, context.Canceled):
				time.Sleep(50 * time.Millisecond) // the master is being restarted
				continue
			case err != nil:
				return err
			}
			if r.GetReady() {
				break
			}
		}
	}
}

// still wants the lock not to have been granted.
func (w *waiting) still() {
	w.k.w.t.Helper()
	synctest.Wait()
	select {
	case err := <-w.got:
		w.k.w.t.Fatalf("it does not wait any more: %v", err)
	default:
	}
}

// done wants an end of the waiting, within a second unless within says otherwise.
func (w *waiting) done(want error, within ...time.Duration) {
	w.k.w.t.Helper()
	limit := time.Second
	if len(within) > 0 {
		limit = within[0]
	}
	select {
	case err := <-w.got:
		if !errors.Is(err, want) {
			w.k.w.t.Fatalf("got %v, want %v", err, want)
		}
	case <-time.After(limit):
		w.k.w.t.Fatalf("still waiting after %v, want %v", limit, want)
	}
}

// inLockBubble runs f with a file and three sessions besides the world's own. Sessions live for as long as the test.
func inLockBubble(t *testing.T, f func(w *world, a, b, c *locker, ino uint64)) {
	inBubble(t, func(t *testing.T, w *world) {
		a, b, c := w.locker(), w.locker(), w.locker()
		w.open()
		f(w, a, b, c, w.create("f").GetAttr().GetInode())
	}, func(c *Config) { c.SessionTTL = time.Hour })
}

func TestLockWaitersAreServedInOrder(t *testing.T) {
	inLockBubble(t, func(w *world, a, b, c *locker, ino uint64) {
		a.must(ino, flock(1, true))
		wb := b.acquire(ino, flock(1, true))
		wc := c.acquire(ino, flock(1, true))
		wd := a.acquire(ino, flock(2, true))
		time.Sleep(time.Minute) // several calls; each keeps its place
		wb.still()
		a.unlock(ino, flock(1, false))
		wb.done(nil)
		wc.still()
		wantErr(t, "a try while another holds it", a.try(ino, flock(9, false)), dfserr.ErrWouldBlock)
		b.unlock(ino, flock(1, false))
		wc.done(nil)
		wd.still()
		c.unlock(ino, flock(1, false))
		wd.done(nil)
	})
}

// TestReadersDoNotStarveAWriter has readers follow one another without a gap while a writer waits: those who are prepared to wait come behind it.
func TestReadersDoNotStarveAWriter(t *testing.T) {
	inLockBubble(t, func(w *world, a, b, c *locker, ino uint64) {
		a.must(ino, posix(1, 0, 9, false))
		writer := b.acquire(ino, posix(1, 5, 5, true))
		reader := c.acquire(ino, posix(1, 0, 9, false))
		elsewhere := c.acquire(ino, posix(2, 6, 9, false))
		elsewhere.done(nil)
		c.must(ino, posix(3, 0, 0, false)) // not in the writer's way
		writer.still()
		reader.still()
		a.unlock(ino, posix(1, 0, 9, false))
		writer.done(nil)
		reader.still()
		b.unlock(ino, posix(1, 0, 9, false))
		reader.done(nil)
	})
}

// TestOrderMakesNoDeadlock: a reader passes the writer that waits for the reader's own locks, here and on another file.
func TestOrderMakesNoDeadlock(t *testing.T) {
	inLockBubble(t, func(w *world, a, b, c *locker, ino uint64) {
		other := w.create("g").GetAttr().GetInode()
		a.must(ino, posix(1, 0, 0, false))
		writer := b.acquire(ino, posix(1, 0, 9, true))
		a.acquire(ino, posix(1, 5, 5, false)).done(nil)

		// a holds ino; c holds other and waits for ino; b's second process waits for other, before a, who can share it with c.
		c.must(other, posix(1, 0, 9, false))
		wc := c.acquire(ino, posix(1, 0, 0, true))
		wb := b.acquire(other, posix(2, 0, 9, true))
		wc.still()
		wb.still()
		a.acquire(other, posix(1, 0, 9, false)).done(nil)
		wb.still()
		a.unlock(ino, posix(1, 0, 9, false))
		writer.done(nil)
		b.unlock(ino, posix(1, 0, 9, false))
		wc.done(nil)
		a.unlock(other, posix(1, 0, 9, false))
		c.unlock(other, posix(1, 0, 9, false))
		wb.done(nil)
	})
}

func TestDeadlock(t *testing.T) {
	inLockBubble(t, func(w *world, a, b, c *locker, ino uint64) {
		a.must(ino, posix(1, 0, 0, true))
		b.must(ino, posix(1, 1, 1, true))
		wa := a.acquire(ino, posix(1, 1, 1, true))
		wa.still()
		b.acquire(ino, posix(1, 0, 0, true)).done(dfserr.ErrDeadlock)
		wa.still()
		b.unlock(ino, posix(1, 1, 1, true))
		wa.done(nil)

		// Three owners, over two files. Two of one session are two owners.
		other := w.create("g").GetAttr().GetInode()
		c.must(other, posix(1, 0, 9, true))
		c.must(other, posix(2, 10, 19, true))
		wa = a.acquire(other, posix(1, 5, 5, false))
		wc := c.acquire(other, posix(1, 12, 12, false))
		c.acquire(ino, posix(2, 0, 9, false)).done(dfserr.ErrDeadlock)
		c.unlock(other, posix(2, 0, 30, false))
		wc.done(nil)
		c.unlock(other, posix(1, 0, 30, false))
		wa.done(nil)

		// Two who share and both want more: the second hears it.
		third := w.create("h").GetAttr().GetInode()
		a.must(third, posix(1, 0, 9, false))
		b.must(third, posix(1, 0, 9, false))
		wa = a.acquire(third, posix(1, 0, 9, true))
		b.acquire(third, posix(1, 0, 9, true)).done(dfserr.ErrDeadlock)
		b.unlock(third, posix(1, 0, 9, false))
		wa.done(nil)

		// flock has no such thing: they wait, until somebody gives up.
		f1, f2 := w.create("i").GetAttr().GetInode(), w.create("j").GetAttr().GetInode()
		a.must(f1, flock(1, true))
		b.must(f2, flock(1, true))
		wa = a.acquire(f2, flock(1, true))
		wb := b.acquire(f1, flock(1, true))
		time.Sleep(time.Minute)
		wa.still()
		wb.still()
		b.unlock(f2, flock(1, true))
		wa.done(nil)
		a.unlock(f1, flock(1, true))
		wb.done(nil)
	})
}

// TestLostWaiterHoldsNobodyUp: a waiter that does not come back loses its place, one that gives up at once.
func TestLostWaiterHoldsNobodyUp(t *testing.T) {
	inLockBubble(t, func(w *world, a, b, c *locker, ino uint64) {
		a.must(ino, flock(1, false))
		lost := b.acquire(ino, flock(1, true))
		reader := c.acquire(ino, flock(1, false))
		reader.still()
		lost.stop()
		lost.done(context.Canceled)
		reader.done(nil, lockGrace+2*lockSweepTime)

		// One that was called and does not try. Nothing is promised to it after a while.
		c.unlock(ino, flock(1, false))
		r, err := w.client.AwaitLock(w.ctx(), &dfsv1.AwaitLockRequest{Session: b.session, Inode: ino, Lock: flock(1, false), Wait: 77})
		if err != nil || !r.GetReady() {
			t.Fatalf("%v, %v", r, err)
		}
		a.unlock(ino, flock(1, false))
		wantErr(t, "what is promised", c.try(ino, flock(1, true)), dfserr.ErrWouldBlock)
		time.Sleep(lockGrace + 2*lockSweepTime)
		c.must(ino, flock(1, true))

		// One that leaves.
		left := b.acquire(ino, flock(1, true))
		shared := a.acquire(ino, flock(1, false))
		if _, err := w.client.AwaitLock(w.ctx(), &dfsv1.AwaitLockRequest{Session: b.session, Inode: ino, Wait: b.wait, Leave: true}); err != nil {
			t.Fatal(err)
		}
		c.must(ino, flock(1, false)) // weaker
		shared.done(nil)
		left.stop()
		left.done(context.Canceled)
	})
}

// TestSessionsEndGivesLocksAndPlacesUp ends one session that holds and one that waits.
func TestSessionsEndGivesLocksAndPlacesUp(t *testing.T) {
	inLockBubble(t, func(w *world, a, b, c *locker, ino uint64) {
		a.must(ino, flock(1, true))
		a.must(ino, posix(1, 3, 4, true))
		waits := b.acquire(ino, flock(1, true))
		next := c.acquire(ino, flock(1, true))
		ranges := c.acquire(ino, posix(1, 0, 9, false))
		end := func(k *locker) {
			t.Helper()
			if _, err := w.client.CloseSession(w.ctx(), &dfsv1.CloseSessionRequest{Session: k.session}); err != nil {
				t.Fatal(err)
			}
		}
		end(b)
		waits.done(dfserr.ErrUnknownSession)
		next.still()
		end(a)
		next.done(nil)
		ranges.done(nil)
		wantErr(t, "a lock of a session that has ended", a.try(ino, flock(1, false)), dfserr.ErrUnknownSession)
		_, err := w.client.AwaitLock(w.ctx(), &dfsv1.AwaitLockRequest{Session: b.session, Inode: ino, Lock: flock(1, false), Wait: 5})
		wantErr(t, "waiting in a session that has ended", err, dfserr.ErrUnknownSession)
	})
}

// TestLocksOutliveTheMaster kills the master: what was held still is, and who waited comes back.
func TestLocksOutliveTheMaster(t *testing.T) {
	inLockBubble(t, func(w *world, a, b, c *locker, ino uint64) {
		a.must(ino, flock(1, true))
		a.must(ino, posix(1, 0, 9, false))
		wb := b.acquire(ino, flock(1, true))
		w.restart(true)
		time.Sleep(5 * time.Second)
		wantErr(t, "held before the restart", c.try(ino, flock(1, false)), dfserr.ErrWouldBlock)
		wantErr(t, "held before the restart", c.try(ino, posix(1, 9, 9, true)), dfserr.ErrWouldBlock)
		wb.still()
		a.unlock(ino, flock(1, true))
		wb.done(nil, 5*time.Second)
	})
}

func TestGetLock(t *testing.T) {
	inLockBubble(t, func(w *world, a, b, c *locker, ino uint64) {
		l := posix(1, 10, 19, true)
		l.Pid = 4711
		a.must(ino, l)
		get := func(k *locker, l *dfsv1.LockSpec) *dfsv1.GetLockReply {
			t.Helper()
			r, err := w.client.GetLock(w.ctx(), &dfsv1.GetLockRequest{Session: k.session, Inode: ino, Lock: l})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		r := get(b, posix(1, 0, 12, false))
		if c := r.GetConflict(); c.GetFirst() != 10 || c.GetLast() != 19 || !c.GetExclusive() || c.GetPid() != 4711 || c.GetOwner() != 1 || r.GetOwnSession() {
			t.Errorf("%v", r)
		}
		if r := get(a, posix(2, 0, 12, false)); r.GetConflict() == nil || !r.GetOwnSession() {
			t.Errorf("another owner of the same session: %v", r)
		}
		for _, free := range []*dfsv1.GetLockReply{get(a, posix(1, 0, 99, true)), get(b, posix(1, 0, 9, true)), get(b, flock(1, true))} {
			if free.GetConflict() != nil {
				t.Errorf("%v", free)
			}
		}
	})
}

func TestLockRequestsAreChecked(t *testing.T) {
	inLockBubble(t, func(w *world, a, b, c *locker, ino uint64) {
		wantErr(t, "a backwards range", a.try(ino, posix(1, 5, 4, true)), dfserr.ErrInvalid)
		wantErr(t, "a file that is not there", a.try(ino+99, posix(1, 0, 4, true)), dfserr.ErrStaleInode)
		_, err := w.client.Lock(w.ctx(), &dfsv1.LockRequest{Inode: ino, Lock: flock(1, true)})
		wantErr(t, "no header", err, dfserr.ErrInvalid)
		_, err = w.client.AwaitLock(w.ctx(), &dfsv1.AwaitLockRequest{Session: a.session, Inode: ino, Lock: flock(1, true)})
		wantErr(t, "waiting without a number", err, dfserr.ErrInvalid)
		a.must(ino, flock(1, true))
		held := b.acquire(ino, flock(1, true))
		_, err = w.client.AwaitLock(w.ctx(), &dfsv1.AwaitLockRequest{Session: b.session, Inode: ino, Lock: flock(1, false), Wait: b.wait})
		wantErr(t, "a place for another lock", err, dfserr.ErrInvalid)
		held.stop()
		held.done(context.Canceled)
	})
}
