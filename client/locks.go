package client

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// LockKind is which of the two systems of locks a lock belongs to. They do not see one another.
type LockKind int

// The kinds.
const (
	WholeFile LockKind = iota // as flock(2): on the whole file
	ByteRange                 // as fcntl(2): on a range of bytes
)

// LockMode is what a lock allows others.
type LockMode int

// The modes.
const (
	SharedLock    LockMode = iota // others may have shared locks
	ExclusiveLock                 // others may have none
)

// LastByte is the end of a range that goes on for ever.
const LastByte = 1<<63 - 1

// LockSpec is a lock as a mount needs it, which acts for many processes: with an explicit owner. Locks of one owner never conflict.
type LockSpec struct {
	Kind        LockKind
	Owner       uint64 // unique within this Client for the kind
	PID         uint32 // of the process, for those who ask what stands in their way; 0: unknown
	Mode        LockMode
	First, Last int64 // bytes of the file, both inclusive; of a ByteRange only
}

// message is the lock on the wire.
func (s *LockSpec) message() *dfsv1.LockSpec {
	return &dfsv1.LockSpec{
		Posix: s.Kind == ByteRange, Owner: s.Owner, Pid: s.PID, First: s.First, Last: s.Last, Exclusive: s.Mode == ExclusiveLock,
	}
}

// Lock takes a lock on the whole file (flock), in place of what this File has, and waits for as long as ctx lives while others have locks that exclude it. It
// returns the fencing token: the index of the grant in the cluster's log. Of two locks that exclude one another the later has the greater. Waiters are served in the order in which they
// came.
//
// The lock is held by the cluster for this client's session, until Unlock, Close of this File, the end of the client, or the loss of its session. After a
// loss another client may have the lock: writing, locking and unlocking through files that were open then fail with ErrLocksLost, until
// they are closed. Locks are advisory: who does not ask is not stopped. What others wrote before they unlocked is read after Lock.
//
// To make a shared lock exclusive, or the reverse, is not atomic when it has to wait: as with flock(2), the old lock is given up first.
//
// When ctx ends while the lock is being taken it is not held afterwards, if this File had none of the kind; had it one, it may
// have become the one asked for.
//
// Errors: ErrWouldBlock never; ErrNoLocks at a limit; ErrLocksLost; ErrClosed.
func (f *File) Lock(ctx context.Context, mode LockMode) (dfs.Index, error) {
	return f.SetLock(ctx, LockSpec{Kind: WholeFile, Owner: f.owner, Mode: mode}, true)
}

// TryLock is Lock without waiting: ErrWouldBlock when another has a lock that excludes it. What this File has stays then.
func (f *File) TryLock(ctx context.Context, mode LockMode) (dfs.Index, error) {
	return f.SetLock(ctx, LockSpec{Kind: WholeFile, Owner: f.owner, Mode: mode}, false)
}

// Unlock gives up this File's lock on the whole file; none is success. What was written through this File before is seen by who locks it next.
func (f *File) Unlock(ctx context.Context) error {
	return f.ClearLock(ctx, LockSpec{Kind: WholeFile, Owner: f.owner})
}

// LockRange takes a lock on the bytes from first to last, inclusive (LastByte: for ever), as fcntl(2) does: in place of what this File has
// there, and waiting for as long as ctx lives. A shared lock needs a file that is open for reading, an exclusive one a file that is open for writing: ErrBadHandle. ErrDeadlock
// when the owner of a lock in the way waits, directly or not, for one of this File's. Else as Lock.
func (f *File) LockRange(ctx context.Context, mode LockMode, first, last int64) (dfs.Index, error) {
	return f.SetLock(ctx, LockSpec{Kind: ByteRange, Owner: f.owner, Mode: mode, First: first, Last: last}, true)
}

// TryLockRange is LockRange without waiting: ErrWouldBlock when another has a lock that excludes it.
func (f *File) TryLockRange(ctx context.Context, mode LockMode, first, last int64) (dfs.Index, error) {
	return f.SetLock(ctx, LockSpec{Kind: ByteRange, Owner: f.owner, Mode: mode, First: first, Last: last}, false)
}

// UnlockRange gives up what this File has locked of the bytes from first to last, inclusive.
func (f *File) UnlockRange(ctx context.Context, first, last int64) error {
	return f.ClearLock(ctx, LockSpec{Kind: ByteRange, Owner: f.owner, First: first, Last: last})
}

// SetLock is Lock and LockRange, or without wait TryLock and TryLockRange, for an explicit owner.
func (f *File) SetLock(ctx context.Context, s LockSpec, wait bool) (dfs.Index, error) {
	token, err := f.setLock(ctx, s, wait)
	return token, pathErr("lock", f.name, err)
}

func (f *File) setLock(ctx context.Context, s LockSpec, wait bool) (dfs.Index, error) {
	if err := f.use("lock"); err != nil {
		return 0, err
	}
	if access := f.flag & accessMask; s.Kind == ByteRange && (s.Mode == SharedLock && access == os.O_WRONLY || s.Mode == ExclusiveLock && access == os.O_RDONLY) {
		return 0, dfserr.ErrBadHandle
	}
	number, place := randomID(), lockPlace{}
	defer func() { f.c.leaveLockQueue(place) }()
	for {
		o := f.oneLock(ctx, &dfsv1.LockRequest{Inode: uint64(f.inode), Lock: s.message(), Wait: place.wait, Patient: wait}, s.key(f.inode))
		if o.err == nil {
			place = lockPlace{}
			f.changed()
			f.c.cache.InvalidateFrom(f.inode, 0)
			return dfs.Index(o.reply.GetIndex()), nil
		}
		if !wait || !errors.Is(o.err, dfserr.ErrWouldBlock) {
			return 0, o.err
		}
		if s.Kind == WholeFile && f.c.locks.count(s.key(f.inode)) > 0 {
			// As flock(2): two that share and both want more would else wait for one another.
			if err := f.clearLock(ctx, s); err != nil {
				return 0, err
			}
		}
		place = lockPlace{o.e, number}
		err := f.c.awaitLock(ctx, o.e, &dfsv1.AwaitLockRequest{Session: o.e.id, Inode: uint64(f.inode), Lock: s.message(), Wait: number})
		if errors.Is(err, dfserr.ErrUnknownSession) {
			f.c.session.lose(o.e)
			place = lockPlace{}
			continue
		}
		if err != nil {
			return 0, err
		}
	}
}

// ClearLock gives up what an owner has locked within a range, or of a whole file.
func (f *File) ClearLock(ctx context.Context, s LockSpec) error {
	if err := f.use("unlock"); err != nil {
		return err
	}
	return pathErr("unlock", f.name, f.clearLock(ctx, s))
}

func (f *file) clearLock(ctx context.Context, s LockSpec) error {
	if err := f.c.locks.lostBy(f); err != nil {
		return err
	}
	return f.oneLock(ctx, &dfsv1.LockRequest{Inode: uint64(f.inode), Lock: s.message(), Unlock: true}, s.key(f.inode)).err
}

// ReleaseLocks gives up everything of one kind that an owner has locked of the file, also when the session has been lost. It costs nothing when there is nothing.
func (f *File) ReleaseLocks(ctx context.Context, kind LockKind, owner uint64) error {
	return pathErr("unlock", f.name, f.releaseLocks(ctx, kind, owner))
}

func (f *file) releaseLocks(ctx context.Context, kind LockKind, owner uint64) error {
	s := LockSpec{Kind: kind, Owner: owner, Last: LastByte}
	if f.c.locks.idle(s.key(f.inode)) {
		return nil
	}
	return f.oneLock(ctx, &dfsv1.LockRequest{Inode: uint64(f.inode), Lock: s.message(), Unlock: true}, s.key(f.inode)).err
}

// unlocked gives up the locks of this File itself, after its close; the error of that comes first.
func (f *File) unlocked(err error) error {
	for _, kind := range []LockKind{WholeFile, ByteRange} {
		if uerr := f.releaseLocks(f.ctx, kind, f.owner); err == nil {
			err = pathErr("close", f.name, uerr)
		}
	}
	return err
}

// LockConflict is a lock that stands in the way of another.
type LockConflict struct {
	LockSpec
	Own bool // it is of this Client: Owner and PID mean something here
}

// TestLock returns the first lock of another owner that would keep a lock from being set, nil when there is none.
func (f *File) TestLock(ctx context.Context, s LockSpec) (*LockConflict, error) {
	if err := f.use("lock"); err != nil {
		return nil, err
	}
	if err := f.c.locks.lostBy(f.file); err != nil {
		return nil, pathErr("lock", f.name, err)
	}
	req := &dfsv1.GetLockRequest{Inode: uint64(f.inode), Lock: s.message(), MinIndex: f.c.minIndex()}
	if e := f.c.session.current(); e != nil {
		req.Session = e.id
	}
	var reply *dfsv1.GetLockReply
	err := f.c.ask(ctx, func(ctx context.Context, m dfsv1.MasterClient) (err error) {
		reply, err = m.GetLock(ctx, req)
		return err
	})
	if err != nil {
		return nil, pathErr("lock", f.name, err)
	}
	f.c.masters.observe(reply.GetIndex())
	c := reply.GetConflict()
	if c == nil {
		return nil, nil
	}
	found := &LockConflict{LockSpec{Kind: s.Kind, Owner: c.GetOwner(), PID: c.GetPid(), First: c.GetFirst(), Last: c.GetLast()}, reply.GetOwnSession()}
	if c.GetExclusive() {
		found.Mode = ExclusiveLock
	}
	return found, nil
}

// lockKey is whose locks on which file.
type lockKey struct {
	inode dfs.InodeID
	kind  LockKind
	owner uint64
}

func (s *LockSpec) key(inode dfs.InodeID) lockKey { return lockKey{inode, s.Kind, s.Owner} }

// lockPlace is a place in a queue at the master: e is nil when there is none.
type lockPlace struct {
	e    *epoch
	wait uint64
}

// lockOutcome is how a change of locks ended, and in which session.
type lockOutcome struct {
	reply *dfsv1.LockReply
	e     *epoch
	err   error
}

// oneLock makes one change of an owner's locks. Such changes come one after another, and each is followed to its end even when ctx ends first: else a request
// that is late could undo the next one. A lock that its caller has given up is given back when the owner had none before.
func (f *file) oneLock(ctx context.Context, r *dfsv1.LockRequest, key lockKey) lockOutcome {
	t := f.c.locks
	release, err := t.turn(ctx, key)
	if err != nil {
		return lockOutcome{err: err}
	}
	var settled atomic.Bool // set by whoever is first: the end of the change, or the caller who gives it up
	done := make(chan lockOutcome, 1)
	before := t.count(key)
	running := t.spawn(f.c, func() {
		defer release()
		octx, cancel := f.c.opContext(f.c.ctx)
		defer cancel()
		o := f.changeLock(octx, r, key)
		if !settled.CompareAndSwap(false, true) && o.err == nil && !r.GetUnlock() && before == 0 {
			back := &dfsv1.LockRequest{Inode: r.GetInode(), Lock: r.GetLock(), Unlock: true}
			if o := f.changeLock(octx, back, key); o.err != nil {
				f.c.cfg.Logger.Warn("a lock that nobody waits for any more was not given back", "inode", key.inode, "error", o.err)
			}
		}
		done <- o
	})
	if !running {
		release()
		return lockOutcome{err: dfserr.Errorf(dfserr.ErrClosed, "client")}
	}
	select {
	case o := <-done:
		return o
	case <-ctx.Done():
		if settled.CompareAndSwap(false, true) {
			return lockOutcome{err: ctx.Err()}
		}
		return <-done
	}
}

// changeLock asks the master, in whatever session there is. What a lost session had locked is gone, so that a change in doubt is none.
func (f *file) changeLock(ctx context.Context, r *dfsv1.LockRequest, key lockKey) lockOutcome {
	for {
		e := f.c.session.current()
		if r.GetUnlock() {
			if e == nil {
				return lockOutcome{} // gone with the session
			}
		} else {
			err := f.c.locks.lostBy(f)
			if err == nil {
				e, err = f.c.session.get(ctx)
			}
			if err != nil {
				return lockOutcome{err: err}
			}
		}
		var reply *dfsv1.LockReply
		_, err := f.c.mutateIn(ctx, e, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (err error) {
			reply, err = m.Lock(ctx, &dfsv1.LockRequest{
				Header: h, Inode: r.GetInode(), Lock: r.GetLock(), Unlock: r.GetUnlock(), Wait: r.GetWait(), Patient: r.GetPatient(),
			})
			return err
		})
		switch {
		case errors.Is(err, dfserr.ErrUnknownSession):
			f.c.session.lose(e)
		case err != nil:
			return lockOutcome{e: e, err: err}
		case f.c.locks.note(e, key, reply.GetHeld()):
			f.c.masters.observe(reply.GetIndex())
			return lockOutcome{reply: reply, e: e}
		}
	}
}

// awaitLock waits in the master's queue until a lock is worth trying, for as long as ctx lives and masters answer.
func (c *Client) awaitLock(ctx context.Context, e *epoch, r *dfsv1.AwaitLockRequest) error {
	select {
	case c.locks.waits <- struct{}{}:
		defer func() { <-c.locks.waits }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		var reply *dfsv1.AwaitLockReply
		err := c.ask(ctx, func(ctx context.Context, m dfsv1.MasterClient) (err error) {
			reply, err = m.AwaitLock(ctx, r)
			return err
		})
		if err != nil && ctx.Err() != nil {
			return ctx.Err() // and not that no master answered in time
		}
		if err != nil || reply.GetReady() {
			return err
		}
		select {
		case <-e.lost:
			return dfserr.Errorf(dfserr.ErrUnknownSession, "session %d", e.id)
		default:
		}
	}
}

// leaveTime bounds what giving up a place costs; the master drops it by itself soon after.
const leaveTime = 2 * time.Second

// leaveLockQueue tells the master that a place is not needed any more, in the background.
func (c *Client) leaveLockQueue(p lockPlace) {
	if p.e == nil {
		return
	}
	c.locks.spawn(c, func() {
		ctx, cancel := context.WithTimeout(c.ctx, leaveTime)
		defer cancel()
		err := c.ask(ctx, func(ctx context.Context, m dfsv1.MasterClient) error {
			_, err := m.AwaitLock(ctx, &dfsv1.AwaitLockRequest{Session: p.e.id, Wait: p.wait, Leave: true})
			return err
		})
		if err != nil {
			c.cfg.Logger.Debug("the master was not told that nobody waits for a lock any more", "error", err)
		}
	})
}

// maxLockWaits bounds the waits that a client has at the master at a time; others wait for their turn to ask. Calls on a connection are bounded, and an unlock
// must always find room.
const maxLockWaits = 1024

// lockTable is what a client knows of the locks of its session, and of those it has lost. Lock order: session.mu, lockTable.mu.
type lockTable struct {
	waits chan struct{} // one for each wait at the master

	// noted counts files in held and lost; while it is 0 a write has nothing to check.
	noted atomic.Int64

	mu     sync.Mutex
	closed bool                              // guarded by mu: no new goroutines
	held   map[dfs.InodeID]map[lockKey]int64 // guarded by mu: how many locks, of the present session; none is 0 or empty
	lost   map[dfs.InodeID]uint64            // guarded by mu: the number of the latest loss that took locks on the file
	losses uint64                            // guarded by mu: sessions that were lost
	turns  map[lockKey]*lockTurn             // guarded by mu: owners with changes under way
}

// lockTurn lets changes of one owner's locks follow one another.
type lockTurn struct {
	users int // guarded by lockTable.mu
	held  chan struct{}
}

func newLockTable() *lockTable {
	return &lockTable{
		waits: make(chan struct{}, maxLockWaits),
		held:  map[dfs.InodeID]map[lockKey]int64{}, lost: map[dfs.InodeID]uint64{}, turns: map[lockKey]*lockTurn{},
	}
}

// spawn runs f in a goroutine of the client, false when the client is closed.
func (t *lockTable) spawn(c *Client, f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	c.wg.Go(f)
	return true
}

// stop lets no new goroutines begin.
func (t *lockTable) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
}

// turn waits until no other change of an owner's locks is under way.
func (t *lockTable) turn(ctx context.Context, key lockKey) (release func(), err error) {
	t.mu.Lock()
	turn := t.turns[key]
	if turn == nil {
		turn = &lockTurn{held: make(chan struct{}, 1)}
		t.turns[key] = turn
	}
	turn.users++
	t.mu.Unlock()
	drop := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if turn.users--; turn.users == 0 {
			delete(t.turns, key)
		}
	}
	select {
	case turn.held <- struct{}{}:
		return func() { <-turn.held; drop() }, nil
	case <-ctx.Done():
		drop()
		return nil, ctx.Err()
	}
}

// count returns how many locks an owner has, by the last answer.
func (t *lockTable) count(key lockKey) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.held[key.inode][key]
}

// idle reports whether an owner has no locks and no change under way.
func (t *lockTable) idle(key lockKey) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.held[key.inode][key] == 0 && t.turns[key] == nil
}

// note keeps how many locks an owner has now; false when the session they are in has been lost meanwhile.
func (t *lockTable) note(e *epoch, key lockKey, n int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.locksLost {
		return false
	}
	of := t.held[key.inode]
	switch {
	case n > 0 && of == nil:
		t.held[key.inode] = map[lockKey]int64{key: n}
	case n > 0:
		of[key] = n
	default:
		delete(of, key)
		if len(of) == 0 {
			delete(t.held, key.inode)
		}
	}
	t.noted.Store(int64(len(t.held) + len(t.lost)))
	return true
}

// lose is told that a session has been lost, and with it all locks.
func (t *lockTable) lose(e *epoch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.locksLost = true
	t.losses++
	for inode := range t.held {
		t.lost[inode] = t.losses
	}
	clear(t.held)
	t.noted.Store(int64(len(t.lost)))
}

// forget is told that this client has closed its last handle of a file.
func (t *lockTable) forget(inode dfs.InodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.lost, inode)
	t.noted.Store(int64(len(t.held) + len(t.lost)))
}

// begun returns the number of losses so far, for a file that is being opened.
func (t *lockTable) begun() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.losses
}

// lostBy returns ErrLocksLost for a file that was open when this client lost locks on it.
func (t *lockTable) lostBy(f *file) error {
	_, err := t.standing(f)
	return err
}

// standing reports whether this client has locks on a file; ErrLocksLost when it had some, and lost them while the file was open.
func (t *lockTable) standing(f *file) (locked bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lost[f.inode] > f.begun {
		return false, dfserr.Errorf(dfserr.ErrLocksLost, "inode %d", f.inode)
	}
	return len(t.held[f.inode]) > 0, nil
}

// underLocks is a change of a file's bytes by a client that may have locks on it.
type underLocks struct {
	ctx    context.Context // for the change; below alive, whose end it does not outlive by a moment
	alive  context.Context // ends when the locks may be gone; nil: there are none
	cancel context.CancelFunc
	detach func() bool // from the caller's context
}

// underLocks begins a change of the file's bytes; end ends it. A client that has locks on the file must be sure that it still has them: when it has not heard from a master for
// so long that its session may have ended, it waits until it has; and a change that is still under way by then is given up. ErrLocksLost when they are gone.
func (f *file) underLocks(ctx context.Context) (underLocks, error) {
	if f.c.locks.noted.Load() == 0 {
		return underLocks{ctx: ctx}, nil
	}
	octx, cancel := f.c.opContext(ctx)
	defer cancel()
	for {
		locked, err := f.c.locks.standing(f)
		if err != nil {
			return underLocks{}, err
		}
		alive, news := f.c.session.sure()
		if !locked || alive == nil && news == nil {
			return underLocks{ctx: ctx}, nil
		}
		if alive != nil {
			u := underLocks{alive: alive}
			u.ctx, u.cancel = context.WithCancel(alive)
			u.detach = context.AfterFunc(ctx, u.cancel)
			return u, nil
		}
		select {
		case <-news:
		case <-octx.Done():
			return underLocks{}, f.c.masters.gaveUp(octx.Err(), dfserr.Errorf(dfserr.ErrUnavailable, "no master has confirmed the session that holds locks on the file"))
		}
	}
}

// end ends the change and returns its error.
func (u *underLocks) end(err error) error {
	if u.alive == nil {
		return err
	}
	if err != nil && u.alive.Err() != nil {
		err = dfserr.Errorf(dfserr.ErrLocksLost, "the session may have ended while the file was being written (%v)", err)
	}
	u.detach()
	u.cancel()
	return err
}

// MayChange returns nil when the file may be changed as far as locks go, ErrLocksLost when this client has lost locks on it. What changes it through the File
// asks by itself; this is for changes by other ways.
func (f *File) MayChange(ctx context.Context) error {
	u, err := f.underLocks(ctx)
	if err == nil {
		err = u.end(nil)
	}
	return pathErr("write", f.name, err)
}
