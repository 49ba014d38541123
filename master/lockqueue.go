package master

import (
	"slices"
	"sync"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/locks"
)

// lockQueues is the leader's memory of who waits for locks. Held locks are in the Raft state; who waits for them is not: after a change of leaders the
// waiters come again by themselves.
//
// A file's waiters stand in order of arrival. A waiter is called when nothing that is held, or promised to one called before, stands in its way, and
// nobody who came before it wants what it wants; it then tries the lock, by a command in the log like any other. Until it has, the range is
// promised to it. So nobody starves, and grants have one path: the command.
//
// Nobody waits for the sake of order alone when that could be for ever: a waiter passes one that waits, directly or not, for itself (mayPass).
// That is judged by owners and processes, which does not see everything (a descriptor passed to another process), so after passAfter it passes all the same.
//
// Memory: one waiter per call that waits, bounded per file. lockQueues.mu is held while the state is looked at, so that what one waiter sees is not older than
// what the last one saw: of two owners that begin to wait for one another, the second finds the deadlock.
type lockQueues struct {
	// look returns the locks held on a file by the newest applied state.
	look func(inode dfs.InodeID) (locks.Record, error)

	mu     sync.Mutex
	files  map[dfs.InodeID][]*lockWaiter // guarded by mu; none is empty
	places map[lockPlace]*lockWaiter     // guarded by mu
}

// lockPlace names a place in a queue: a session's number for one wait.
type lockPlace struct {
	session dfs.SessionID
	wait    uint64
}

// lockWaiter is one who waits. Its fields, except the first four, are guarded by lockQueues.mu.
type lockWaiter struct {
	place   lockPlace
	inode   dfs.InodeID
	kind    locks.Kind
	want    locks.Lock
	arrived time.Time
	seen    time.Time     // when the last call that asked for it ended
	calls   int           // that are asking for it now
	called  bool          // it may try
	over    bool          // its session has ended
	news    chan struct{} // closed when called or over becomes true
}

// Times and bounds of waiting.
const (
	lockHold      = 8 * time.Second  // how long one call waits
	lockGrace     = 3 * time.Second  // how long a place is kept between calls
	passAfter     = 30 * time.Second // after which order is not kept for the sake of those who came first
	maxLockQueue  = 4096             // waiters on one file
	lockSweepTime = time.Second
)

func newLockQueues(look func(dfs.InodeID) (locks.Record, error)) *lockQueues {
	return &lockQueues{look: look, files: map[dfs.InodeID][]*lockWaiter{}, places: map[lockPlace]*lockWaiter{}}
}

// join takes a place in the queue, or finds the one taken before, for one call, which part ends. news is closed when there is something to hear. ErrDeadlock: its owner would wait for itself. ErrNoLocks: too many wait.
func (q *lockQueues) join(place lockPlace, inode dfs.InodeID, k locks.Kind, want locks.Lock) (w *lockWaiter, news <-chan struct{}, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	w = q.places[place]
	if w != nil && (w.inode != inode || w.kind != k || w.want != want) {
		return nil, nil, dfserr.Errorf(dfserr.ErrInvalid, "place %d of session %d is for another lock", place.wait, place.session)
	}
	if w == nil {
		if len(q.files[inode]) >= maxLockQueue {
			return nil, nil, dfserr.Errorf(dfserr.ErrNoLocks, "%d wait for locks on inode %d, the limit", maxLockQueue, inode)
		}
		w = &lockWaiter{place: place, inode: inode, kind: k, want: want, arrived: time.Now(), news: make(chan struct{})}
		q.files[inode] = append(q.files[inode], w)
		q.places[place] = w
	}
	deadlock, err := q.deadlockLocked(w)
	if err == nil && deadlock {
		err = dfserr.Errorf(dfserr.ErrDeadlock, "bytes %d to %d of inode %d", want.First, want.Last, inode)
	}
	if err == nil {
		err = q.advanceLocked(inode)
	}
	if err != nil {
		q.removeLocked(w)
		q.tryAdvanceLocked(inode)
		return nil, nil, err
	}
	w.calls++
	return w, w.news, nil
}

// part ends a call that waited; the place is kept for lockGrace. It reports whether the waiter may try now, and whether its session has ended.
func (q *lockQueues) part(w *lockWaiter) (called, over bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	w.calls--
	w.seen = time.Now()
	return w.called, w.over
}

// leave gives a place up; one that is not there is ignored.
func (q *lockQueues) leave(place lockPlace) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w := q.places[place]; w != nil {
		q.removeLocked(w)
		q.tryAdvanceLocked(w.inode)
	}
}

// tried is told how the try of one who was called went: with the lock its place is gone, else it waits again.
func (q *lockQueues) tried(place lockPlace, granted bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	w := q.places[place]
	if w == nil {
		return
	}
	if granted {
		q.removeLocked(w)
		return
	}
	if w.called && !w.over {
		w.called, w.news = false, make(chan struct{})
	}
}

// changed is told that locks on a file were taken away or weakened.
func (q *lockQueues) changed(inode dfs.InodeID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.tryAdvanceLocked(inode)
}

// endSession drops a session's waiters; what it held has gone from the state.
func (q *lockQueues) endSession(id dfs.SessionID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range q.places {
		if w.place.session == id {
			q.removeLocked(w)
			w.over = true
			if !w.called {
				close(w.news)
			}
		}
	}
	for inode := range q.files {
		q.tryAdvanceLocked(inode)
	}
}

// sweep drops the places that nobody has asked for lately, and lets those pass who have waited long enough.
func (q *lockQueues) sweep(now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range q.places {
		if w.calls == 0 && now.Sub(w.seen) > lockGrace {
			q.removeLocked(w)
		}
	}
	for inode := range q.files {
		q.tryAdvanceLocked(inode)
	}
}

func (q *lockQueues) removeLocked(w *lockWaiter) {
	delete(q.places, w.place)
	rest := slices.DeleteFunc(q.files[w.inode], func(o *lockWaiter) bool { return o == w })
	if len(rest) == 0 {
		delete(q.files, w.inode)
		return
	}
	q.files[w.inode] = rest
}

// tryAdvanceLocked is advanceLocked where a state that cannot be read only means that those who wait go on waiting: the failure stops
// the process elsewhere.
func (q *lockQueues) tryAdvanceLocked(inode dfs.InodeID) { _ = q.advanceLocked(inode) }

// advanceLocked calls the waiters of a file whose turn has come.
func (q *lockQueues) advanceLocked(inode dfs.InodeID) error {
	queue := q.files[inode]
	if len(queue) == 0 {
		return nil
	}
	r, err := q.look(inode)
	if err != nil {
		return err
	}
	now := time.Now()
	for i, w := range queue {
		if w.called || r.Conflict(w.kind, &w.want) != nil {
			continue
		}
		held, err := q.heldBackLocked(w, queue[:i], now)
		if err != nil {
			return err
		}
		if !held {
			w.called = true
			close(w.news)
		}
	}
	return nil
}

// promised reports whether a lock may not be tried although nothing held stands in its way: it is promised to one who was called, or, for one who is prepared to
// wait, it is wanted by one who came first.
func (q *lockQueues) promised(place lockPlace, inode dfs.InodeID, k locks.Kind, want locks.Lock, patient bool) (bool, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	queue := q.files[inode]
	if len(queue) == 0 {
		return false, nil
	}
	now := time.Now()
	w := q.places[place]
	if w == nil || w.inode != inode {
		w = &lockWaiter{place: place, inode: inode, kind: k, want: want, arrived: now}
	}
	if w.called {
		return false, nil
	}
	var before []*lockWaiter
	if patient {
		before = queue
		if i := slices.Index(queue, w); i >= 0 {
			before = queue[:i]
		}
	}
	return q.heldBackLocked(w, before, now)
}

// heldBackLocked reports whether a waiter must let others go first: those who were called, and those before it.
func (q *lockQueues) heldBackLocked(w *lockWaiter, before []*lockWaiter, now time.Time) (bool, error) {
	for _, o := range q.files[w.inode] {
		if o.called && o != w && o.kind == w.kind && o.want.Conflicts(&w.want) {
			return true, nil
		}
	}
	for _, o := range before {
		if o.called || o.kind != w.kind || !o.want.Conflicts(&w.want) {
			continue
		}
		pass, err := q.mayPassLocked(w, o, now)
		if err != nil || !pass {
			return err == nil, err
		}
	}
	return false, nil
}

// mayPassLocked reports whether w need not wait for o, who came first: o waits for w's owner or process, directly or through others, so that w's waiting for o would
// be for ever; or w has waited long enough.
func (q *lockQueues) mayPassLocked(w, o *lockWaiter, now time.Time) (bool, error) {
	if now.Sub(w.arrived) > passAfter {
		return true, nil
	}
	return q.reachesLocked(o, func(k locks.Kind, l *locks.Lock) bool {
		return k == w.kind && l.Owner == w.want.Owner || sameProcess(l, &w.want)
	}, true)
}

// sameProcess reports whether two locks are of one process, as far as is known.
func sameProcess(a, b *locks.Lock) bool {
	return a.PID != 0 && a.PID == b.PID && a.Owner.Session == b.Owner.Session
}

// deadlockLocked reports whether a waiter waits for itself: its lock conflicts with one held by an owner that waits in its turn, and so on back to it.
// Only POSIX locks have this, as fcntl(2) says.
func (q *lockQueues) deadlockLocked(w *lockWaiter) (bool, error) {
	if w.kind != locks.Posix {
		return false, nil
	}
	return q.reachesLocked(w, func(k locks.Kind, l *locks.Lock) bool { return k == locks.Posix && l.Owner == w.want.Owner }, false)
}

// reachesLocked follows who waits for whom from a waiter on, and reports whether it comes to a lock that is: one that is held, or promised to one who was
// called. wide: owners of both kinds count, all of a process are taken together, and so does waiting for those who came first.
func (q *lockQueues) reachesLocked(from *lockWaiter, is func(locks.Kind, *locks.Lock) bool, wide bool) (bool, error) {
	seen := map[*lockWaiter]bool{from: true}
	for todo := []*lockWaiter{from}; len(todo) > 0; {
		w := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		blockers, err := q.blockersLocked(w, wide)
		if err != nil {
			return false, err
		}
		for i := range blockers {
			b := &blockers[i]
			if is(w.kind, b) {
				return true, nil
			}
			for _, next := range q.places {
				owns := next.kind == w.kind && next.want.Owner == b.Owner || wide && sameProcess(&next.want, b)
				if owns && !next.called && !seen[next] && (wide || next.kind == locks.Posix) {
					seen[next] = true
					todo = append(todo, next)
				}
			}
		}
	}
	return false, nil
}

// blockersLocked returns the locks, held or promised, that a waiter waits for, with wide also those wanted by others who came first.
func (q *lockQueues) blockersLocked(w *lockWaiter, wide bool) ([]locks.Lock, error) {
	r, err := q.look(w.inode)
	if err != nil {
		return nil, err
	}
	var out []locks.Lock
	for _, l := range r.Of(w.kind) {
		if l.Conflicts(&w.want) {
			out = append(out, l)
		}
	}
	first := true
	for _, o := range q.files[w.inode] {
		if o == w {
			first = false
			continue
		}
		if o.kind == w.kind && o.want.Conflicts(&w.want) && (o.called || wide && first) {
			out = append(out, o.want)
		}
	}
	return out, nil
}
