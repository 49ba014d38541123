package client

import (
	"context"

	"dfs/client/metacache"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// What Inodes answers from memory, and what its changes do to it. See metacache.Tree for when that is allowed.

// lease prepares a request for something that may be cached: the session to grant a lease to, 0 when nothing is to be cached, and the moment.
func (c *Client) lease() (session uint64, m metacache.Mark) {
	if c.tree == nil {
		return 0, 0
	}
	c.session.wanted()
	m = c.tree.Mark()
	if e := c.session.current(); e != nil {
		session = e.id
	}
	return session, m
}

// cachedLookup answers a lookup from memory, if it can: err is then nil or ErrNotExist.
func (c *Client) cachedLookup(who Caller, parent dfs.InodeID, name []byte) (a Attr, ok bool, err error) {
	if c.tree == nil || dfs.CheckName(name) != nil || !c.maySearch(who, parent) {
		return Attr{}, false, nil
	}
	a, absent, ok := c.tree.Lookup(metacache.Name{Dir: parent, Name: string(name)})
	if absent {
		err = dfserr.Errorf(dfserr.ErrNotExist, "%q in directory %d", name, parent)
	}
	return a, ok, err
}

// maySearch reports whether a caller is known to be allowed to look up names in a directory.
func (c *Client) maySearch(who Caller, dir dfs.InodeID) bool {
	if who.UID == 0 {
		return true
	}
	a, ok := c.tree.Attr(dir)
	if !ok {
		return false
	}
	perm := permBits(a.Mode)
	switch {
	case who.UID == a.UID:
		return perm&0o100 != 0
	case inGroup(who, a.GID):
		return perm&0o010 != 0
	}
	return perm&0o001 != 0
}

func inGroup(who Caller, gid uint32) bool {
	if who.GID == gid {
		return true
	}
	for _, g := range who.Groups {
		if g == gid {
			return true
		}
	}
	return false
}

// keepAttr stores attributes that came under a lease.
func (c *Client) keepAttr(m metacache.Mark, a Attr) {
	if c.tree != nil {
		c.tree.PutAttr(m, a.Inode, a)
	}
}

// keepPage stores a page of a directory that came under leases.
func (c *Client) keepPage(m metacache.Mark, dir dfs.InodeID, reply *dfsv1.ReadDirReply, entries []*FileInfo) {
	if c.tree == nil || !reply.GetDirLeased() {
		return
	}
	for i, e := range reply.GetEntries() {
		if e.GetLeased() {
			c.tree.PutAttr(m, entries[i].Attr.Inode, entries[i].Attr)
			c.tree.PutName(m, metacache.Name{Dir: dir, Name: entries[i].name}, entries[i].Attr.Inode)
		}
	}
}

// ownChange is what a request of this client changes of what it may have cached.
type ownChange struct {
	attrs []dfs.InodeID // inodes whose attributes change, directories of names included
	names []metacache.Name
	// outcome says, after success, what the names stand for now (nil: not known) and what the attributes of attrs[0] are (nil: not known). It
	// may store what else the answer tells, as of the moment.
	outcome func(m metacache.Mark) (targets []dfs.InodeID, attr *Attr)
}

// mutateOwn is mutate for a change that concerns the cache. What it changes is not answered from memory before it is over, so that the master need not recall it from us.
func (c *Client) mutateOwn(ctx context.Context, o ownChange, attempt func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) error) error {
	if c.tree == nil {
		return c.mutate(ctx, attempt)
	}
	change := c.tree.Begin(o.attrs, o.names...)
	stream := c.session.currentStream() // after Begin: what a later stream grants is recalled from us too
	covers := make([]uint64, len(o.attrs))
	for i, inode := range o.attrs {
		covers[i] = uint64(inode)
	}
	err := c.mutate(ctx, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) error {
		h.Cache, h.Covers = stream, covers
		return attempt(ctx, m, h)
	})
	switch {
	case err == nil && o.outcome != nil:
		change.End(o.outcome(change.Mark()))
	case err == nil:
		change.End(nil, nil)
	case refused(err) && len(o.names) > 0:
		change.Cancel()
	case refused(err):
		change.End(nil, nil) // a truncation may have done a part
	default:
		// It may be carried out at any time from now on, and we would not be told.
		c.session.dropCache()
		change.End(nil, nil)
	}
	return err
}

// known returns attributes for the cache, unless they are of a file whose length lives elsewhere.
func known(a *dfsv1.Attr) *Attr {
	if a == nil || a.GetTailOpen() || a.GetLengthIsBound() {
		return nil
	}
	out := attrOf(a)
	return &out
}

// changeOwn is change for an inode whose attributes the answer tells.
func (t Inodes) changeOwn(ctx context.Context, who Caller, inode dfs.InodeID, do func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error)) (Attr, error) {
	var reply *dfsv1.AttrReply
	own := ownChange{attrs: []dfs.InodeID{inode}, outcome: func(metacache.Mark) ([]dfs.InodeID, *Attr) { return nil, known(reply.GetAttr()) }}
	return t.changeAs(ctx, who, own, &reply, do)
}

// changeAs makes a mutation on behalf of who that is answered with attributes, by way of reply.
func (t Inodes) changeAs(ctx context.Context, who Caller, own ownChange, reply **dfsv1.AttrReply, do func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error)) (Attr, error) {
	err := t.c.mutateOwn(ctx, own, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (err error) {
		h.Caller = callerMessage(who)
		*reply, err = do(ctx, m, h)
		return err
	})
	if err != nil {
		return Attr{}, err
	}
	t.c.masters.observe((*reply).GetIndex())
	return attrOf((*reply).GetAttr()), nil
}

// changeOwn makes a mutation of the file that is answered with its attributes.
func (f *file) changeOwn(ctx context.Context, do func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error)) error {
	_, err := f.c.Inodes().changeOwn(ctx, *f.c.cfg.Caller, f.inode, do)
	return err
}

// target adds to attrs what a name stands for, if that is known.
func (t Inodes) target(attrs []dfs.InodeID, name metacache.Name) (list []dfs.InodeID, inode dfs.InodeID, ok bool) {
	if t.c.tree == nil {
		return attrs, 0, false
	}
	inode, ok = t.c.tree.Target(name)
	if inode != 0 {
		attrs = append(attrs, inode)
	}
	return attrs, inode, ok
}
