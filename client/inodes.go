package client

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"time"

	"dfs/client/metacache"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// Inodes is the tree by inode number, for programs that keep inodes instead of paths and act for many users: a mount. Names
// are bytes. Errors wrap the sentinels of internal/dfserr without a *fs.PathError, as there is no path. Its methods
// are safe for concurrent use.
type Inodes struct{ c *Client }

// Inodes returns the tree by inode number.
func (c *Client) Inodes() Inodes { return Inodes{c} }

func callerMessage(who Caller) *dfsv1.Caller {
	return &dfsv1.Caller{Uid: who.UID, Gid: who.GID, Groups: who.Groups}
}

func inodeRef(inode dfs.InodeID) *dfsv1.Ref { return &dfsv1.Ref{Inode: uint64(inode)} }

// GetAttr describes an inode. Reading attributes needs no permission.
func (t Inodes) GetAttr(ctx context.Context, inode dfs.InodeID) (Attr, error) {
	a, _, err := t.GetAttrShared(ctx, inode)
	return a, err
}

// Lookup describes the entry name of a directory, or with ".." its parent; a symbolic link is not followed.
func (t Inodes) Lookup(ctx context.Context, who Caller, parent dfs.InodeID, name []byte) (Attr, error) {
	if a, ok, err := t.c.cachedLookup(who, parent, name); ok {
		return a, err
	}
	session, mark := t.c.lease()
	req := &dfsv1.GetAttrRequest{
		Caller: callerMessage(who), MinIndex: t.c.minIndex(), Session: session, Lease: session != 0,
		Ref: &dfsv1.Ref{Inode: uint64(parent), Path: name, NoFollow: true},
	}
	var reply *dfsv1.AttrReply
	err := t.c.ask(ctx, func(ctx context.Context, m dfsv1.MasterClient) (err error) {
		reply, err = m.GetAttr(ctx, req)
		return err
	})
	if err != nil {
		return Attr{}, err
	}
	t.c.masters.observe(reply.GetIndex())
	a := attrOf(reply.GetAttr())
	if reply.GetLeased() {
		t.c.keepAttr(mark, a)
	}
	if reply.GetDirLeased() {
		// For an absent name the inode is 0.
		t.c.tree.PutName(mark, metacache.Name{Dir: parent, Name: string(name)}, a.Inode)
	}
	if reply.GetAbsent() {
		return Attr{}, dfserr.Errorf(dfserr.ErrNotExist, "%q in directory %d", name, parent)
	}
	return a, nil
}

// ReadDir returns at most limit entries of a directory whose names follow after in byte order, and whether those are
// the last.
func (t Inodes) ReadDir(ctx context.Context, who Caller, dir dfs.InodeID, after []byte, limit int) (entries []*FileInfo, end bool, err error) {
	session, mark := t.c.lease()
	req := &dfsv1.ReadDirRequest{Caller: callerMessage(who), Ref: inodeRef(dir), After: after, Limit: uint32(limit), MinIndex: t.c.minIndex(), Session: session}
	var reply *dfsv1.ReadDirReply
	err = t.c.ask(ctx, func(ctx context.Context, m dfsv1.MasterClient) (err error) {
		reply, err = m.ReadDir(ctx, req)
		return err
	})
	if err != nil {
		return nil, false, err
	}
	t.c.masters.observe(reply.GetIndex())
	entries = make([]*FileInfo, 0, len(reply.GetEntries()))
	for _, e := range reply.GetEntries() {
		entries = append(entries, &FileInfo{name: string(e.GetName()), Attr: attrOf(e.GetAttr())})
	}
	t.c.keepPage(mark, dir, reply, entries)
	return entries, reply.GetEnd(), nil
}

// AttrChange is a partial update of attributes: nil fields stay as they are.
type AttrChange struct {
	Mode               *uint32 // permission, setuid, setgid and sticky bits of st_mode
	UID, GID           *uint32
	Atime, Mtime       *time.Time
	AtimeNow, MtimeNow bool // the master's time
}

// SetAttr changes attributes as chmod, chown and utimensat do.
func (t Inodes) SetAttr(ctx context.Context, who Caller, inode dfs.InodeID, change AttrChange) (Attr, error) {
	return t.changeOwn(ctx, who, inode, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error) {
		req := &dfsv1.SetAttrRequest{
			Header: h, Ref: inodeRef(inode), Mode: change.Mode, Uid: change.UID, Gid: change.GID,
			AtimeNow: change.AtimeNow, MtimeNow: change.MtimeNow,
		}
		if change.Atime != nil {
			ns := change.Atime.UnixNano()
			req.AtimeNs = &ns
		}
		if change.Mtime != nil {
			ns := change.Mtime.UnixNano()
			req.MtimeNs = &ns
		}
		return m.SetAttr(ctx, req)
	})
}

// Truncate sets a file's length by inode. byHandle says that who holds it open for writing, so that permission was
// checked at open. Chunk locations that the change outdates are dropped.
func (t Inodes) Truncate(ctx context.Context, who Caller, inode dfs.InodeID, length int64, byHandle bool) (Attr, error) {
	if err := checkLength(length); err != nil {
		return Attr{}, err
	}
	a, err := t.changeOwn(ctx, who, inode, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error) {
		req := &dfsv1.TruncateRequest{Header: h, Ref: inodeRef(inode), Length: length}
		if byHandle {
			req.HandleInode = uint64(inode)
		}
		return m.Truncate(ctx, req)
	})
	t.c.cache.InvalidateFrom(inode, 0)
	return a, err
}

// NewNode says what Make creates.
type NewNode struct {
	Mode   uint32 // st_mode: type and permission bits, umask already applied
	Rdev   uint32 // of a device
	Target []byte // of a symbolic link
}

// Make creates an inode of any type under a name that must be free.
func (t Inodes) Make(ctx context.Context, who Caller, parent dfs.InodeID, name []byte, node NewNode) (Attr, error) {
	reply, err := t.create(ctx, who, parent, name, func(r *dfsv1.CreateRequest) {
		r.Mode, r.Rdev, r.SymlinkTarget, r.Exclusive = node.Mode, node.Rdev, node.Target, true
	})
	if err != nil {
		return Attr{}, err
	}
	return attrOf(reply.GetAttr()), nil
}

func (t Inodes) create(ctx context.Context, who Caller, parent dfs.InodeID, name []byte, fill func(*dfsv1.CreateRequest)) (*dfsv1.OpenReply, error) {
	if err := dfs.CheckName(name); err != nil {
		return nil, err
	}
	var reply *dfsv1.OpenReply
	entry := metacache.Name{Dir: parent, Name: string(name)}
	attrs, _, free := t.target([]dfs.InodeID{parent}, entry)
	own := ownChange{attrs: attrs, names: []metacache.Name{entry}, outcome: func(m metacache.Mark) ([]dfs.InodeID, *Attr) {
		return t.created(m, reply, free && len(attrs) == 1)
	}}
	err := t.c.mutateOwn(ctx, own, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (err error) {
		h.Caller = callerMessage(who)
		req := &dfsv1.CreateRequest{Header: h, Parent: inodeRef(parent), Name: name}
		fill(req)
		reply, err = m.Create(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	t.c.masters.observe(reply.GetIndex())
	return reply, nil
}

// created stores what a create has made. free says that the name was known to be free; otherwise what was made may be the target of a symbolic link with that name.
func (t Inodes) created(m metacache.Mark, reply *dfsv1.OpenReply, free bool) ([]dfs.InodeID, *Attr) {
	a := attrOf(reply.GetAttr())
	if !reply.GetCreated() || !free && a.Mode.IsRegular() {
		return nil, nil
	}
	if reply.GetLeased() {
		if a.Mode.IsDir() {
			t.c.tree.PutEmptyDir(m, a.Inode, a)
		} else {
			t.c.tree.PutAttr(m, a.Inode, a)
		}
	}
	return []dfs.InodeID{a.Inode}, nil
}

// CreateFile makes and opens a regular file for reading and writing, or opens the existing one unless exclusive; truncate
// cuts an existing one to length 0. mode holds permission bits, umask already applied.
func (t Inodes) CreateFile(ctx context.Context, who Caller, parent dfs.InodeID, name []byte, mode uint32, exclusive, truncate bool) (*File, Attr, error) {
	handle := randomID()
	reply, err := t.create(ctx, who, parent, name, func(r *dfsv1.CreateRequest) {
		r.Mode, r.Exclusive, r.Truncate, r.Open, r.Handle = modeRegular|mode, exclusive, truncate, true, handle
		r.NearServer = uint64(t.c.cfg.NearServer)
	})
	if err != nil {
		t.c.abandon(handle, err)
		return nil, Attr{}, err
	}
	inode := dfs.InodeID(reply.GetAttr().GetInode())
	if !reply.GetCreated() && truncate {
		t.c.cache.InvalidateFrom(inode, 0)
	}
	return t.c.newFile(string(name), os.O_RDWR, reply, handle, true), attrOf(reply.GetAttr()), nil
}

// OpenFile opens a regular file by inode.
func (t Inodes) OpenFile(ctx context.Context, who Caller, inode dfs.InodeID, read, write bool) (*File, Attr, error) {
	var reply *dfsv1.OpenReply
	handle := randomID()
	err := t.c.inSession(ctx, func(ctx context.Context, m dfsv1.MasterClient, session uint64) (err error) {
		reply, err = m.Open(ctx, &dfsv1.OpenRequest{
			Caller: callerMessage(who), Ref: inodeRef(inode), Session: session, MinIndex: t.c.minIndex(), Read: read, Write: write, Handle: handle,
		})
		return err
	})
	if err != nil {
		t.c.abandon(handle, err)
		return nil, Attr{}, err
	}
	t.c.masters.observe(reply.GetIndex())
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR // the kernel reads pages that it writes in part, also through a write-only handle
	}
	return t.c.newFile(fmt.Sprintf("inode %d", inode), flag, reply, handle, write), attrOf(reply.GetAttr()), nil
}

// Remove takes away one name: of an empty directory if dir, else of anything else.
func (t Inodes) Remove(ctx context.Context, who Caller, parent dfs.InodeID, name []byte, dir bool) error {
	what := dfsv1.RemoveRequest_FILE
	if dir {
		what = dfsv1.RemoveRequest_DIRECTORY
	}
	entry := metacache.Name{Dir: parent, Name: string(name)}
	attrs, _, _ := t.target([]dfs.InodeID{parent}, entry)
	own := ownChange{attrs: attrs, names: []metacache.Name{entry}, outcome: func(metacache.Mark) ([]dfs.InodeID, *Attr) { return []dfs.InodeID{0}, nil }}
	return t.c.mutateOwn(ctx, own, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) error {
		h.Caller = callerMessage(who)
		reply, err := m.Remove(ctx, &dfsv1.RemoveRequest{Header: h, Parent: inodeRef(parent), Name: name, What: what})
		t.c.masters.observe(reply.GetIndex())
		return err
	})
}

// Rename moves a name, replacing what rename(2) would replace.
func (t Inodes) Rename(ctx context.Context, who Caller, oldParent dfs.InodeID, oldName []byte, newParent dfs.InodeID, newName []byte) error {
	var reply *dfsv1.AttrReply
	from, to := metacache.Name{Dir: oldParent, Name: string(oldName)}, metacache.Name{Dir: newParent, Name: string(newName)}
	attrs := []dfs.InodeID{oldParent}
	if newParent != oldParent {
		attrs = append(attrs, newParent)
	}
	attrs, moved, _ := t.target(attrs, from)
	attrs, replaced, known := t.target(attrs, to)
	own := ownChange{attrs: attrs, names: []metacache.Name{from, to}, outcome: func(metacache.Mark) ([]dfs.InodeID, *Attr) {
		if moved == 0 || !known || moved == replaced {
			return nil, nil // two names of one inode both stay
		}
		return []dfs.InodeID{0, moved}, nil
	}}
	if from == to || moved != 0 && moved == replaced {
		own.attrs, own.names = nil, nil // nothing is covered: the master recalls what changes
	}
	_, err := t.changeAs(ctx, who, own, &reply, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error) {
		return m.Rename(ctx, &dfsv1.RenameRequest{Header: h, OldParent: inodeRef(oldParent), OldName: oldName, NewParent: inodeRef(newParent), NewName: newName})
	})
	return err
}

// Link gives an inode another name.
func (t Inodes) Link(ctx context.Context, who Caller, inode, parent dfs.InodeID, name []byte) (Attr, error) {
	var reply *dfsv1.AttrReply
	own := ownChange{
		attrs: []dfs.InodeID{inode, parent}, names: []metacache.Name{{Dir: parent, Name: string(name)}},
		outcome: func(metacache.Mark) ([]dfs.InodeID, *Attr) { return []dfs.InodeID{inode}, known(reply.GetAttr()) },
	}
	return t.changeAs(ctx, who, own, &reply, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error) {
		return m.Link(ctx, &dfsv1.LinkRequest{Header: h, Target: inodeRef(inode), Parent: inodeRef(parent), Name: name})
	})
}

// GetXattr returns an extended attribute's value.
func (t Inodes) GetXattr(ctx context.Context, who Caller, inode dfs.InodeID, name string) ([]byte, error) {
	// The kernel asks for this one before every write. Everybody may.
	if name == "security.capability" && t.c.tree != nil && t.c.tree.Bare(inode) {
		return nil, dfserr.Errorf(dfserr.ErrNoAttr, "%s of inode %d", name, inode)
	}
	req := &dfsv1.GetXattrRequest{Caller: callerMessage(who), Ref: inodeRef(inode), Name: []byte(name), MinIndex: t.c.minIndex()}
	var reply *dfsv1.GetXattrReply
	err := t.c.ask(ctx, func(ctx context.Context, m dfsv1.MasterClient) (err error) {
		reply, err = m.GetXattr(ctx, req)
		return err
	})
	t.c.masters.observe(reply.GetIndex())
	return reply.GetValue(), err
}

// ListXattr returns the names of an inode's extended attributes in byte order.
func (t Inodes) ListXattr(ctx context.Context, who Caller, inode dfs.InodeID) ([]string, error) {
	req := &dfsv1.ListXattrRequest{Caller: callerMessage(who), Ref: inodeRef(inode), MinIndex: t.c.minIndex()}
	var reply *dfsv1.ListXattrReply
	err := t.c.ask(ctx, func(ctx context.Context, m dfsv1.MasterClient) (err error) {
		reply, err = m.ListXattr(ctx, req)
		return err
	})
	t.c.masters.observe(reply.GetIndex())
	names := make([]string, 0, len(reply.GetNames()))
	for _, n := range reply.GetNames() {
		names = append(names, string(n))
	}
	return names, err
}

// SetXattr sets an extended attribute.
func (t Inodes) SetXattr(ctx context.Context, who Caller, inode dfs.InodeID, name string, value []byte, mode XattrMode) error {
	if err := checkXattr(name, value); err != nil {
		return err
	}
	_, err := t.changeOwn(ctx, who, inode, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error) {
		if t.c.tree != nil {
			t.c.tree.BareNoMore(inode) // here the change has begun
		}
		return m.SetXattr(ctx, &dfsv1.SetXattrRequest{
			Header: h, Ref: inodeRef(inode), Name: []byte(name), Value: value, Create: mode == XattrCreate, Replace: mode == XattrReplace,
		})
	})
	return err
}

// RemoveXattr takes away an extended attribute.
func (t Inodes) RemoveXattr(ctx context.Context, who Caller, inode dfs.InodeID, name string) error {
	_, err := t.changeOwn(ctx, who, inode, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error) {
		return m.RemoveXattr(ctx, &dfsv1.RemoveXattrRequest{Header: h, Ref: inodeRef(inode), Name: []byte(name)})
	})
	return err
}

// StatMode returns st_mode for Go's form of a mode.
func StatMode(m fs.FileMode) uint32 { return statMode(m) }
