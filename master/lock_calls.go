package master

import (
	"context"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/fsm"
	"dfs/master/locks"
	dfsv1 "dfs/proto/dfs/v1"
)

// Calls about locks. A lock is set by a command, in one try; who has to wait asks awaitLock when it is worth trying again.

// lookLocks returns the locks on a file by the newest applied state.
func (l *leader) lookLocks(inode dfs.InodeID) (locks.Record, error) {
	v, err := l.view()
	if err != nil {
		return locks.Record{}, err
	}
	defer v.Close()
	r, _, err := v.Locks(inode)
	return r, err
}

// lock sets a lock that is free, or takes locks away.
func (l *leader) lock(ctx context.Context, r *dfsv1.LockRequest) (*dfsv1.LockReply, error) {
	if err := checkHeader(r.GetHeader()); err != nil {
		return nil, err
	}
	inode, session := dfs.InodeID(r.GetInode()), dfs.SessionID(r.GetHeader().GetSession())
	kind, want := fsm.LockOf(session, r.GetLock())
	place := lockPlace{session, r.GetWait()}
	c := &dfsv1.LockCommand{Request: r}
	if !r.GetUnlock() {
		var err error
		if c.Promised, err = l.locks.promised(place, inode, kind, want, r.GetPatient()); err != nil {
			return nil, err
		}
	}
	res, err := l.propose(ctx, &dfsv1.Command{Header: r.GetHeader(), Op: &dfsv1.Command_Lock{Lock: c}})
	l.locks.tried(place, err == nil)
	// Also a grant can make room for others: it may have replaced an exclusive lock by a shared one.
	l.locks.changed(inode)
	if err != nil {
		return nil, err
	}
	return &dfsv1.LockReply{Index: res.GetIndex(), Held: res.GetLocksHeld()}, nil
}

// answerTime is how long before the caller's deadline a wait is answered; a caller in a greater hurry hears of its deadline.
const answerTime = 500 * time.Millisecond

// awaitLock waits until a lock is worth trying, for a bounded time.
func (l *leader) awaitLock(ctx context.Context, r *dfsv1.AwaitLockRequest) (*dfsv1.AwaitLockReply, error) {
	session := dfs.SessionID(r.GetSession())
	place := lockPlace{session, r.GetWait()}
	if r.GetWait() == 0 {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "waiting for a lock needs a number")
	}
	if r.GetLeave() {
		l.locks.leave(place)
		return &dfsv1.AwaitLockReply{}, nil
	}
	hold := lockHold
	if end, ok := ctx.Deadline(); ok && time.Until(end) > 2*answerTime {
		hold = min(hold, time.Until(end)-answerTime)
	}
	kind, want := fsm.LockOf(session, r.GetLock())
	w, news, err := l.locks.join(place, dfs.InodeID(r.GetInode()), kind, want)
	if err != nil {
		return nil, err
	}
	// After it has joined, so that an end of the session that this does not see yet finds the waiter.
	if !l.sessions.alive(session) {
		l.locks.part(w)
		l.locks.leave(place)
		return nil, dfserr.Errorf(dfserr.ErrUnknownSession, "session %d", session)
	}
	timer := time.NewTimer(hold)
	defer timer.Stop()
	select {
	case <-news:
	case <-timer.C:
	case <-ctx.Done():
		err = ctx.Err()
	case <-l.ctx.Done():
		err = dfserr.Errorf(dfserr.ErrNotLeader, "master at %s", l.addr)
	}
	called, over := l.locks.part(w)
	switch {
	case err != nil:
		return nil, err
	case over:
		return nil, dfserr.Errorf(dfserr.ErrUnknownSession, "session %d", session)
	}
	return &dfsv1.AwaitLockReply{Ready: called}, nil
}

// getLock tells what stands in the way of a lock.
func (l *leader) getLock(ctx context.Context, r *dfsv1.GetLockRequest) (*dfsv1.GetLockReply, error) {
	v, err := l.read(ctx, r.GetMinIndex())
	if err != nil {
		return nil, err
	}
	defer v.Close()
	session := dfs.SessionID(r.GetSession())
	kind, want := fsm.LockOf(session, r.GetLock())
	held, _, err := v.Locks(dfs.InodeID(r.GetInode()))
	if err != nil {
		return nil, err
	}
	reply := &dfsv1.GetLockReply{Index: uint64(v.Index())}
	if c := held.Conflict(kind, &want); c != nil {
		reply.OwnSession = c.Owner.Session == session
		reply.Conflict = &dfsv1.LockSpec{
			Posix: kind == locks.Posix, Owner: c.Owner.ID, Pid: c.PID, First: c.First, Last: c.Last, Exclusive: c.Mode == locks.Exclusive,
		}
	}
	return reply, nil
}

// lockLoop keeps the queues of waiters in order.
func (l *leader) lockLoop(ctx context.Context) {
	tick := time.NewTicker(lockSweepTime)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			l.locks.sweep(now)
		case <-ctx.Done():
			return
		}
	}
}
