package fusefs

import (
	"context"
	"errors"
	"sync"

	"bazil.org/fuse"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// Locks are the cluster's. The kernel passes on flock(2), fcntl(2) and the unlocking that a close implies, and keeps nothing of its own.
//
// The owner of a flock lock is the open file, which is our handle: its number is used, because the kernel's own for it may be used again before the RELEASE has come. The
// owner of a POSIX lock is the process, as the kernel numbers its table of descriptors; the FLUSH of any close of the file ends its locks. Open file description
// locks (F_OFD_SETLK) look the same, with a number that no FLUSH names: they end with the RELEASE of the handle they were taken through.

// lockOwners remembers which owners have POSIX locks, perhaps, and through which handles they took them.
//
// It also knows the files of which locks are being given up. The kernel does not wait for the answer to a RELEASE, nor a process that was killed for that to its FLUSH; but who locks a
// file after that process has ended must find it free. So locking waits for what was read before it.
type lockOwners struct {
	mu      sync.Mutex
	closing map[dfs.InodeID]*closing // guarded by mu

	of map[dfs.InodeID]map[fuse.LockOwner]map[fuse.HandleID]struct{} // guarded by mu; nothing in it is empty
}

// closing is a file of which locks are being given up.
type closing struct {
	n    int           // guarded by lockOwners.mu
	over chan struct{} // closed when n has become 0
}

func newLockOwners() *lockOwners {
	return &lockOwners{closing: map[dfs.InodeID]*closing{}, of: map[dfs.InodeID]map[fuse.LockOwner]map[fuse.HandleID]struct{}{}}
}

// begin notes that locks of a file are being given up, until done.
func (o *lockOwners) begin(inode dfs.InodeID) (done func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := o.closing[inode]
	if c == nil {
		c = &closing{over: make(chan struct{})}
		o.closing[inode] = c
	}
	c.n++
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if c.n--; c.n == 0 {
			delete(o.closing, inode)
			close(c.over)
		}
	}
}

// settled waits until no locks of a file are being given up.
func (o *lockOwners) settled(ctx context.Context, inode dfs.InodeID) error {
	o.mu.Lock()
	c := o.closing[inode]
	o.mu.Unlock()
	if c == nil {
		return nil
	}
	select {
	case <-c.over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// note remembers an owner that is about to lock.
func (o *lockOwners) note(inode dfs.InodeID, owner fuse.LockOwner, handle fuse.HandleID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.of[inode] == nil {
		o.of[inode] = map[fuse.LockOwner]map[fuse.HandleID]struct{}{}
	}
	if o.of[inode][owner] == nil {
		o.of[inode][owner] = map[fuse.HandleID]struct{}{}
	}
	o.of[inode][owner][handle] = struct{}{}
}

// flushed forgets an owner that has closed the file, and reports whether it may have locks.
func (o *lockOwners) flushed(inode dfs.InodeID, owner fuse.LockOwner) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.of[inode][owner]
	o.forgetLocked(inode, owner)
	return ok
}

// released forgets a handle, and returns the owners that may have locks and no other handle.
func (o *lockOwners) released(inode dfs.InodeID, handle fuse.HandleID) (owners []fuse.LockOwner) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for owner, handles := range o.of[inode] {
		if _, ok := handles[handle]; !ok {
			continue
		}
		if delete(handles, handle); len(handles) == 0 {
			owners = append(owners, owner)
			o.forgetLocked(inode, owner)
		}
	}
	return owners
}

func (o *lockOwners) forgetLocked(inode dfs.InodeID, owner fuse.LockOwner) {
	if delete(o.of[inode], owner); len(o.of[inode]) == 0 {
		delete(o.of, inode)
	}
}

// lockOf converts the kernel's lock.
func lockOf(r *fuse.LockRequest) Lock {
	l := Lock{
		Owner: uint64(r.LockOwner), PID: uint32(r.Lock.PID), Exclusive: r.Lock.Type == fuse.LockWrite,
		First: int64(min(r.Lock.Start, lastByte)), Last: int64(min(r.Lock.End, lastByte)),
	}
	if r.LockFlags&fuse.LockFlock != 0 {
		l.Flock, l.Owner = true, uint64(r.Handle)
	}
	return l
}

// lockIn returns the lock of a request that is about one, else nil.
func lockIn(r fuse.Request) *Lock {
	var l Lock
	switch r := r.(type) {
	case *fuse.LockRequest:
		l = lockOf(r)
	case *fuse.LockWaitRequest:
		l = lockOf((*fuse.LockRequest)(r))
	case *fuse.UnlockRequest:
		l = lockOf((*fuse.LockRequest)(r))
	case *fuse.QueryLockRequest:
		l = lockOf(&fuse.LockRequest{LockOwner: r.LockOwner, Lock: r.Lock, LockFlags: r.LockFlags, Handle: r.Handle})
	default:
		return nil
	}
	return &l
}

// lastByte is the end of a range that goes on for ever.
const lastByte = 1<<63 - 1

// setLock answers SETLK and SETLKW.
func (s *Server) setLock(ctx context.Context, r *fuse.LockRequest, wait bool) error {
	h, err := s.file(r.Handle)
	if err != nil {
		return err
	}
	l := lockOf(r)
	if l.Flock {
		h.flocked.Store(true)
	} else {
		s.owners.note(h.inode, r.LockOwner, r.Handle)
	}
	if err := s.owners.settled(ctx, h.inode); err != nil {
		return err
	}
	if err := h.file.SetLock(ctx, l, wait); err != nil {
		return err
	}
	// Reads through a handle would find out by themselves that the pages are old; those through a mapping do not ask.
	a, shared, err := s.backend.GetAttrShared(ctx, h.inode)
	if err != nil || !s.pages.good(&a, shared, s.backend.Lease(h.inode)) {
		s.dropPages(r.Node, h.inode)
	}
	r.Respond()
	return nil
}

// dropPages makes the kernel forget what it caches of a file; what was stored through a mapping is written first.
func (s *Server) dropPages(node fuse.NodeID, inode dfs.InodeID) {
	if err := s.conn.InvalidateNode(node, 0, 0); err != nil && !errors.Is(err, fuse.ErrNotCached) {
		s.log.Debug("dropping cached pages", "inode", inode, "error", err)
	}
}

// unlock answers SETLK and SETLKW with F_UNLCK. An error of an earlier write is reported, but the lock goes all the same.
func (s *Server) unlock(ctx context.Context, r *fuse.LockRequest) error {
	h, err := s.file(r.Handle)
	if err != nil {
		return err
	}
	err = h.file.Flush(ctx)
	if uerr := h.file.Unlock(ctx, lockOf(r)); err == nil {
		err = uerr
	}
	if err != nil {
		return err
	}
	r.Respond()
	return nil
}

// queryLock answers GETLK.
func (s *Server) queryLock(ctx context.Context, r *fuse.QueryLockRequest) error {
	h, err := s.file(r.Handle)
	if err != nil {
		return err
	}
	if err := s.owners.settled(ctx, h.inode); err != nil {
		return err
	}
	l, err := h.file.TestLock(ctx, *lockIn(r))
	if err != nil {
		return err
	}
	out := fuse.FileLock{Type: fuse.LockUnlock}
	if l != nil {
		out = fuse.FileLock{Start: uint64(l.First), End: uint64(l.Last), Type: fuse.LockRead, PID: int32(l.PID)}
		if l.Exclusive {
			out.Type = fuse.LockWrite
		}
	}
	r.Respond(&fuse.QueryLockResponse{Lock: out})
	return nil
}

// releaseOwner gives up the POSIX locks of a process that closes a file. It is done even when the process does not wait for it any more, as one that was
// killed does not.
func (s *Server) releaseOwner(ctx context.Context, h *fileHandle, owner fuse.LockOwner) error {
	if !s.owners.flushed(h.inode, owner) {
		return nil
	}
	done, over := make(chan error, 1), s.owners.begin(h.inode)
	s.wg.Go(func() {
		defer over()
		err := h.file.ReleaseLocks(context.WithoutCancel(ctx), false, uint64(owner))
		if err != nil {
			s.log.Warn("giving up locks of a file", "inode", h.inode, "error", err)
		}
		done <- err
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return dfserr.Errorf(ctx.Err(), "giving up locks of inode %d", h.inode)
	}
}

// releaseHandle gives up what was locked through a handle that is gone, and by nobody else.
func (s *Server) releaseHandle(ctx context.Context, id fuse.HandleID, h *fileHandle) {
	var errs []error
	if h.flocked.Load() {
		errs = append(errs, h.file.ReleaseLocks(ctx, true, uint64(id)))
	}
	for _, owner := range s.owners.released(h.inode, id) {
		errs = append(errs, h.file.ReleaseLocks(ctx, false, uint64(owner)))
	}
	if err := errors.Join(errs...); err != nil {
		s.log.Warn("giving up locks of a file", "inode", h.inode, "error", err)
	}
}
