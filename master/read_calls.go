package master

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/fsm"
	dfsv1 "dfs/proto/dfs/v1"
)

// Calls that read the namespace.

func (l *leader) getAttr(ctx context.Context, r *dfsv1.GetAttrRequest) (*dfsv1.AttrReply, error) {
	v, err := l.read(ctx, r.GetMinIndex())
	if err != nil {
		return nil, err
	}
	a, err := v.LookupPath(r.GetCaller(), r.GetRef())
	index := v.Index()
	absent := errors.Is(err, dfserr.ErrNotExist) && r.GetLease() && plainName(r.GetRef()) && dirExists(v, dfs.InodeID(r.GetRef().GetInode()))
	v.Close()
	if absent {
		return &dfsv1.AttrReply{Absent: true, Index: uint64(index), DirLeased: l.grantDir(r, index)}, nil
	}
	if err != nil {
		return nil, err
	}
	if a.GetTailOpen() && r.GetBoundOk() {
		ctx, cancel := context.WithTimeout(ctx, boundPatience)
		defer cancel()
		if a, err = l.completeOrBound(ctx, a); err != nil {
			return nil, err
		}
	} else if a.GetTailOpen() {
		if a, err = l.completeAttr(ctx, a); err != nil {
			return nil, err
		}
	}
	reply := &dfsv1.AttrReply{Attr: a, Index: uint64(index)}
	session := dfs.SessionID(r.GetSession())
	if r.GetLease() {
		reply.Leased = l.grantAttr(session, a, index)
		reply.DirLeased = plainName(r.GetRef()) && l.grantDir(r, index)
	}
	if session != 0 {
		// After the grant: who opens the file for writing from here on recalls it.
		reply.OtherWriters = l.sessions.othersWrite(session, dfs.InodeID(a.GetInode()))
		reply.Leased = reply.GetLeased() && !reply.GetOtherWriters()
	}
	return reply, nil
}

// plainName reports whether a reference is one name in a directory given by its inode.
func plainName(r *dfsv1.Ref) bool {
	return r.GetInode() != 0 && r.GetNoFollow() && dfs.CheckName(r.GetPath()) == nil
}

// dirExists reports whether a directory is there: what is missing in one that has gone is not the name.
func dirExists(v *fsm.View, id dfs.InodeID) bool {
	_, ok, err := v.Inode(id)
	return ok && err == nil
}

// grantDir grants a lease on the directory that a request has looked in.
func (l *leader) grantDir(r *dfsv1.GetAttrRequest, index dfs.Index) bool {
	return l.caches.grant(dfs.SessionID(r.GetSession()), dfs.InodeID(r.GetRef().GetInode()), index)
}

// grantAttr grants a lease on attributes as of an index. Those of a file whose tail is open change without a command.
func (l *leader) grantAttr(session dfs.SessionID, a *dfsv1.Attr, index dfs.Index) bool {
	return !a.GetTailOpen() && !a.GetLengthIsBound() && l.caches.grant(session, dfs.InodeID(a.GetInode()), index)
}

// dirPageBytes bounds the entries of one reply, by an estimate.
const dirPageBytes = 3 * dfs.MiB

func (l *leader) readDir(ctx context.Context, r *dfsv1.ReadDirRequest) (*dfsv1.ReadDirReply, error) {
	v, err := l.read(ctx, r.GetMinIndex())
	if err != nil {
		return nil, err
	}
	limit := int(min(r.GetLimit(), 4096))
	page, err := v.ReadDir(r.GetCaller(), r.GetRef(), r.GetAfter(), limit, r.GetNamesOnly())
	index := v.Index()
	v.Close()
	if err != nil {
		return nil, err
	}
	size := 0
	for i, e := range page.Entries {
		// Names and link targets are what can be long; 160 is more than the rest of an entry takes.
		if size += 160 + len(e.GetName()) + len(e.GetAttr().GetSymlinkTarget()); size > dirPageBytes {
			page.Entries, page.End = page.Entries[:i], false
			break
		}
	}
	if err := l.completeEntries(ctx, page.Entries); err != nil {
		return nil, err
	}
	reply := &dfsv1.ReadDirReply{Entries: page.Entries, End: page.End, Index: uint64(index), Dir: page.Dir}
	if session := dfs.SessionID(r.GetSession()); session != 0 && !r.GetNamesOnly() {
		l.grantEntries(session, reply, index)
	}
	return reply, nil
}

// grantEntries grants leases on a page of a directory and what it lists.
func (l *leader) grantEntries(session dfs.SessionID, reply *dfsv1.ReadDirReply, index dfs.Index) {
	if reply.DirLeased = l.caches.grant(session, dfs.InodeID(reply.GetDir().GetInode()), index); !reply.GetDirLeased() {
		return
	}
	for _, e := range reply.GetEntries() {
		a := e.GetAttr()
		if a.GetNlink() == 0 {
			continue // not the attributes: the caller may not search the directory
		}
		e.Leased = l.grantAttr(session, a, index) && !l.sessions.othersWrite(session, dfs.InodeID(a.GetInode()))
	}
}

// boundPatience bounds how long a call that may answer with a lower bound asks for exact lengths: one file whose
// chunkservers are all gone must not keep a directory from being listed.
const boundPatience = 2 * time.Second

// completeOrBound is completeAttr, except that a length that cannot be learnt now becomes a lower bound.
func (l *leader) completeOrBound(ctx context.Context, a *dfsv1.Attr) (*dfsv1.Attr, error) {
	exact, err := l.completeAttr(ctx, a)
	switch {
	case err == nil:
		return exact, nil
	case errors.Is(err, context.DeadlineExceeded), dfserr.ClassOf(err) == dfserr.Backoff, dfserr.ClassOf(err) == dfserr.OtherReplica:
		a.LengthIsBound = true
		return a, nil
	}
	return nil, err
}

// completeEntries makes the lengths of files that are being written exact, as far as boundPatience allows.
func (l *leader) completeEntries(ctx context.Context, entries []*dfsv1.DirEntry) error {
	ctx, cancel := context.WithTimeout(ctx, boundPatience)
	defer cancel()
	var g *errgroup.Group
	for _, e := range entries {
		if !e.GetAttr().GetTailOpen() {
			continue
		}
		if g == nil {
			g, ctx = errgroup.WithContext(ctx)
			g.SetLimit(tailParallel)
		}
		g.Go(func() error {
			a, err := l.completeOrBound(ctx, e.GetAttr())
			if err != nil {
				return dfserr.Errorf(err, "entry %q", e.GetName())
			}
			e.Attr = a
			return nil
		})
	}
	if g == nil {
		return nil
	}
	return g.Wait()
}

func (l *leader) getXattr(ctx context.Context, r *dfsv1.GetXattrRequest) (*dfsv1.GetXattrReply, error) {
	v, err := l.read(ctx, r.GetMinIndex())
	if err != nil {
		return nil, err
	}
	defer v.Close()
	value, err := v.GetXattr(r.GetCaller(), r.GetRef(), r.GetName())
	if err != nil {
		return nil, err
	}
	return &dfsv1.GetXattrReply{Value: value, Index: uint64(v.Index())}, nil
}

func (l *leader) listXattr(ctx context.Context, r *dfsv1.ListXattrRequest) (*dfsv1.ListXattrReply, error) {
	v, err := l.read(ctx, r.GetMinIndex())
	if err != nil {
		return nil, err
	}
	defer v.Close()
	names, err := v.ListXattr(r.GetCaller(), r.GetRef())
	if err != nil {
		return nil, err
	}
	return &dfsv1.ListXattrReply{Names: names, Index: uint64(v.Index())}, nil
}

func (l *leader) statFs(ctx context.Context, _ *dfsv1.StatFsRequest) (*dfsv1.StatFsReply, error) {
	v, err := l.read(ctx, 0)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	return l.totals(v)
}

func (l *leader) totals(v *fsm.View) (*dfsv1.StatFsReply, error) {
	stats, err := v.Stats()
	if err != nil {
		return nil, err
	}
	t := l.fleet.totals()
	return &dfsv1.StatFsReply{
		CapacityBytes: t.Capacity, FreeBytes: t.Free, UsedBytes: t.Used, Inodes: stats.Inodes, Chunks: stats.Chunks, DataBytes: stats.Bytes,
	}, nil
}

// openChunks is how many chunk configurations an open returns, to save a round trip.
const openChunks = 4

func (l *leader) open(ctx context.Context, r *dfsv1.OpenRequest) (*dfsv1.OpenReply, error) {
	v, err := l.read(ctx, r.GetMinIndex())
	if err != nil {
		return nil, err
	}
	id, n, err := v.Open(r.GetCaller(), r.GetRef(), r.GetRead(), r.GetWrite())
	if err == nil && n.IsSymlink() {
		err = dfserr.Errorf(dfserr.ErrLoop, "open the symbolic link %q itself", r.GetRef().GetPath())
	}
	index := v.Index()
	v.Close()
	if err != nil {
		return nil, err
	}
	session := dfs.SessionID(r.GetSession())
	if session != 0 {
		if err := l.sessions.openNamed(session, id, r.GetWrite(), r.GetHandle()); err != nil {
			return nil, err
		}
		if r.GetWrite() {
			l.caches.recall(id, session)
		}
		depsOf(ctx).inode(id)
		// Counted: from here on the inode stays, if it is still there.
		if n, err = l.inode(id); err != nil {
			l.sessions.endOpen(session, id, r.GetWrite(), r.GetHandle(), false)
			return nil, err
		}
	}
	reply, err := l.openReply(ctx, id, &n, index)
	if session != 0 {
		l.sessions.endOpen(session, id, r.GetWrite(), r.GetHandle(), err == nil)
	}
	return reply, err
}
