package fsm

import (
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/locks"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

// lock sets a lock that is free, or takes locks away. The index of the command is the lock's fencing token.
func (o op) lock(c *dfsv1.LockCommand) (*dfsv1.Result, error) {
	r := c.GetRequest()
	inode := dfs.InodeID(r.GetInode())
	kind, l := LockOf(dfs.SessionID(o.cmd.GetHeader().GetSession()), r.GetLock())
	if r.GetUnlock() {
		held, err := locks.Unlock(o.t, inode, kind, l.Owner, l.First, l.Last)
		return &dfsv1.Result{LocksHeld: int64(held)}, err
	}
	if _, err := namespace.Get(o.t, inode); err != nil {
		return nil, err
	}
	if c.GetPromised() {
		return nil, dfserr.Errorf(dfserr.ErrWouldBlock, "bytes %d to %d of inode %d, promised to another", l.First, l.Last, inode)
	}
	held, err := locks.Set(o.t, locks.Env{Index: o.env.Index}, inode, kind, l)
	return &dfsv1.Result{LocksHeld: int64(held)}, err
}
