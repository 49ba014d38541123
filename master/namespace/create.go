package namespace

import (
	"math/bits"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// CreateArgs describes what Create makes. Layout and Data are of regular files.
type CreateArgs struct {
	Parent      Ref
	Name        []byte
	Mode        uint32 // type (none: regular) and permission bits, umask applied
	Rdev        uint32 // of a device
	Target      []byte // of a symlink
	Exclusive   bool   // a name that exists is ErrExist; implied for everything but regular files
	MakeParents bool   // make missing directories of Parent.Path; an existing directory is success
	Truncate    bool   // cut an existing regular file to length 0
	Writing     bool   // an existing regular file is opened for writing
	Data        []byte // inline content, at most dfs.InlineMax

	ChunkSize      int64 // 0: default
	Replication    uint32
	ReplicationSet bool // Replication is meant even when 0
}

// Created is what Create did.
type Created struct {
	ID      dfs.InodeID
	Inode   Inode
	Created bool // a new inode; otherwise the name existed
	// Cut asks the caller to cut the existing file to length 0, with its chunks, and to store Data after that. The
	// inode's times are set already.
	Cut bool
}

// Create makes an inode and its name. Without Exclusive, a regular file that exists is returned (a last symbolic link is followed, and what a dangling
// one names is made); that needs write permission when Truncate or Writing. Data is not written to a file that exists unless Truncate.
//
// With MakeParents, missing directories get the owner and group they would get from mkdir, and the permission bits of Mode with search where there
// is read permission, and u+wx.
//
// Errors: of Resolve; ErrExist; ErrIsDir when a regular file is asked for and a directory exists; ErrPermission; ErrNotPermitted for a device
// and not root; ErrNotExist in a removed directory; ErrInvalid for a mode, chunk size, replication or link target that cannot be; ErrFileTooLarge
// for too much data.
func Create(tx Txn, env Env, a CreateArgs) (Created, error) {
	log2, err := a.check()
	if err != nil {
		return Created{}, err
	}
	w := walker{r: tx, caller: env.Caller}
	var p Place
	if a.MakeParents {
		p, err = makeParents(tx, env, &w, a)
	} else {
		p, err = w.place(a.Parent, a.Name)
	}
	if err != nil {
		return Created{}, err
	}
	if p.Child != 0 && p.Inode.IsSymlink() && a.regular() && !a.Exclusive {
		if p, err = w.chase(p); err != nil {
			return Created{}, err
		}
	}
	if p.Child != 0 {
		return existing(tx, env, a, p)
	}
	if err := mayAdd(tx, env.Caller, p.Dir, &p.Parent); err != nil {
		return Created{}, err
	}
	if t := a.Mode & TypeMask; (t == TypeBlock || t == TypeChar) && !env.Caller.IsRoot() {
		return Created{}, dfserr.Errorf(dfserr.ErrNotPermitted, "make device %q", a.Name)
	}
	n := newInode(env, a.Mode, &p.Parent)
	n.Rdev, n.Target, n.Inline = a.Rdev, a.Target, a.Data
	n.Length = int64(len(a.Target) + len(a.Data))
	if a.regular() {
		n.ChunkSizeLog2, n.Replication = log2, a.Replication
		if !a.ReplicationSet && a.Replication == 0 {
			n.Replication = dfs.DefaultReplication
		}
	}
	id, n, err := add(tx, env, p.Dir, p.Parent, p.Name, n)
	return Created{ID: id, Inode: n, Created: true}, err
}

func (a *CreateArgs) regular() bool { return a.Mode&TypeMask == TypeRegular }

// check completes and validates the arguments and returns the logarithm of the chunk size.
func (a *CreateArgs) check() (uint32, error) {
	if a.Mode&TypeMask == 0 {
		a.Mode |= TypeRegular
	}
	if a.Mode&^(TypeMask|PermMask) != 0 {
		return 0, dfserr.Errorf(dfserr.ErrInvalid, "create %q: mode %#o", a.Name, a.Mode)
	}
	switch a.Mode & TypeMask {
	case TypeRegular, TypeDir, TypeFifo, TypeSocket:
		a.Rdev = 0
	case TypeSymlink:
		a.Rdev = 0
		a.Mode |= 0o777
		switch {
		case len(a.Target) == 0:
			return 0, dfserr.Errorf(dfserr.ErrNotExist, "create %q: a symbolic link to nothing", a.Name)
		case len(a.Target) > dfs.SymlinkMax:
			return 0, dfserr.Errorf(dfserr.ErrNameTooLong, "create %q: the link's target is %d bytes long, the limit is %d", a.Name, len(a.Target), dfs.SymlinkMax)
		}
		for _, c := range a.Target {
			if c == 0 {
				return 0, dfserr.Errorf(dfserr.ErrInvalid, "create %q: the link's target contains a NUL byte", a.Name)
			}
		}
	case TypeBlock, TypeChar:
	default:
		return 0, dfserr.Errorf(dfserr.ErrInvalid, "create %q: mode %#o has no known type", a.Name, a.Mode)
	}
	if a.Mode&TypeMask != TypeSymlink && len(a.Target) > 0 {
		return 0, dfserr.Errorf(dfserr.ErrInvalid, "create %q: a link target, but not a symbolic link", a.Name)
	}
	if !a.regular() {
		if len(a.Data) > 0 || a.Truncate {
			return 0, dfserr.Errorf(dfserr.ErrInvalid, "create %q: data is for regular files", a.Name)
		}
		return 0, nil
	}
	if a.ChunkSize == 0 {
		a.ChunkSize = dfs.DefaultChunkSize
	}
	switch {
	case len(a.Data) > dfs.InlineMax:
		return 0, dfserr.Errorf(dfserr.ErrFileTooLarge, "create %q: %d inline bytes, the limit is %d", a.Name, len(a.Data), dfs.InlineMax)
	case !dfs.ValidChunkSize(a.ChunkSize):
		return 0, dfserr.Errorf(dfserr.ErrInvalid, "create %q: chunk size %d", a.Name, a.ChunkSize)
	case a.Replication > dfs.MaxReplication:
		return 0, dfserr.Errorf(dfserr.ErrInvalid, "create %q: replication %d, the limit is %d", a.Name, a.Replication, dfs.MaxReplication)
	}
	return uint32(bits.TrailingZeros64(uint64(a.ChunkSize))), nil
}

// chase follows a symbolic link at a place to where a regular file is, or may be made.
func (w *walker) chase(p Place) (Place, error) {
	for p.Child != 0 && p.Inode.IsSymlink() {
		if err := w.countLink(); err != nil {
			return Place{}, err
		}
		target := p.Inode.Target
		dir, n, err := w.base(p.Dir, p.Parent, target)
		if err != nil {
			return Place{}, err
		}
		names, err := dfs.SplitPath(target)
		if err != nil {
			return Place{}, err
		}
		if len(names) == 0 || trailing(target) {
			id, _, err := w.walkNames(dir, n, names, need{dir: true})
			if err == nil {
				err = dfserr.Errorf(dfserr.ErrIsDir, "inode %d", id)
			}
			return Place{}, err
		}
		dir, n, err = w.walkNames(dir, n, names[:len(names)-1], need{dir: true})
		if err != nil {
			return Place{}, err
		}
		if p, err = w.placeIn(dir, n, names[len(names)-1]); err != nil {
			return Place{}, err
		}
	}
	return p, nil
}

// existing answers a Create whose name exists.
func existing(tx Txn, env Env, a CreateArgs, p Place) (Created, error) {
	if a.MakeParents && a.Mode&TypeMask == TypeDir && p.Inode.IsSymlink() {
		w := walker{r: tx, caller: env.Caller}
		if id, n, err := w.follow(p.Dir, p.Parent, p.Inode.Target); err == nil {
			p.Child, p.Inode = id, n
		}
	}
	switch {
	case a.MakeParents && a.Mode&TypeMask == TypeDir && p.Inode.IsDir() && !a.Exclusive:
		return Created{ID: p.Child, Inode: p.Inode}, nil
	case a.Exclusive || !a.regular():
		return Created{}, dfserr.Errorf(dfserr.ErrExist, "%q", a.Name)
	case p.Inode.IsDir():
		return Created{}, dfserr.Errorf(dfserr.ErrIsDir, "%q", a.Name)
	}
	if a.Truncate || a.Writing {
		if err := Check(env.Caller, p.Child, &p.Inode, Write); err != nil {
			return Created{}, err
		}
	}
	c := Created{ID: p.Child, Inode: p.Inode}
	if a.Truncate && p.Inode.IsRegular() {
		c.Cut = true
		Modified(env, &c.Inode)
	}
	return c, nil
}

// makeParents walks to the place, making the directories that are missing.
func makeParents(tx Txn, env Env, w *walker, a CreateArgs) (Place, error) {
	if err := dfs.CheckName(a.Name); err != nil {
		return Place{}, err
	}
	names, err := dfs.SplitPath(a.Parent.Path)
	if err != nil {
		return Place{}, err
	}
	at, n, err := w.resolve(Ref{Inode: a.Parent.Inode})
	if err != nil {
		return Place{}, err
	}
	perm := a.Mode & 0o777
	mode := TypeDir | perm | perm&0o444>>2 | 0o300
	for _, name := range names {
		if string(name) != ".." {
			_, ok, err := w.lookup(at, &n, name)
			if err != nil {
				return Place{}, err
			}
			if !ok {
				if err := mayAdd(tx, env.Caller, at, &n); err != nil {
					return Place{}, err
				}
				if at, n, err = add(tx, env, at, n, name, newInode(env, mode, &n)); err != nil {
					return Place{}, err
				}
				continue
			}
		}
		if at, n, err = w.walkNames(at, n, [][]byte{name}, need{dir: true}); err != nil {
			return Place{}, err
		}
	}
	return w.placeIn(at, n, a.Name)
}

// newInode returns an inode owned by the caller, with what it inherits from its parent.
func newInode(env Env, mode uint32, parent *Inode) Inode {
	n := Inode{
		Mode: mode, UID: env.Caller.UID, GID: env.Caller.GID, Nlink: 1,
		Atime: env.Now, Mtime: env.Now, Ctime: env.Now, Btime: env.Now, Version: env.Index,
	}
	if parent.Mode&SetGID != 0 {
		n.GID = parent.GID
		switch {
		case mode&TypeMask == TypeDir:
			n.Mode |= SetGID
		case mode&(SetGID|0o010) == SetGID|0o010 && !env.Caller.IsRoot() && !env.Caller.InGroup(n.GID):
			n.Mode &^= SetGID
		}
	}
	return n
}

// add gives a new inode an id and a name. parent is the directory as it is in the state.
func add(tx Txn, env Env, dir dfs.InodeID, parent Inode, name []byte, n Inode) (dfs.InodeID, Inode, error) {
	t, err := tx.Totals()
	if err != nil {
		return 0, Inode{}, err
	}
	id := t.NextInode
	t.NextInode++
	t.Inodes++
	t.Bytes += fileBytes(&n)
	if n.IsDir() {
		t.Directories++
		n.Nlink, n.Parent = 2, dir
	}
	tx.SetTotals(t)
	tx.SetInode(id, n)
	linkIn(tx, env, dir, &parent, name, id, n.Type())
	tx.SetInode(dir, parent)
	return id, n, nil
}

// fileBytes is what an inode counts for in Totals.Bytes.
func fileBytes(n *Inode) int64 {
	if n.IsRegular() {
		return n.Length
	}
	return 0
}

// linkIn adds a dentry and counts it in the directory, which the caller stores.
func linkIn(tx Txn, env Env, dir dfs.InodeID, parent *Inode, name []byte, id dfs.InodeID, typ uint32) {
	tx.SetDentry(dir, name, Dentry{Inode: id, Type: typ})
	parent.Entries++
	if typ == TypeDir {
		parent.Subdirs++
		parent.Nlink++
	}
	parent.Mtime, parent.Ctime, parent.Version = env.Now, env.Now, env.Index
}

// linkOut removes a dentry and counts it out of the directory, which the caller stores.
func linkOut(tx Txn, env Env, dir dfs.InodeID, parent *Inode, name []byte, typ uint32) {
	tx.DeleteDentry(dir, name)
	parent.Entries--
	if typ == TypeDir {
		parent.Subdirs--
		if parent.Nlink > 0 { // 0: a detached subtree
			parent.Nlink--
		}
	}
	parent.Mtime, parent.Ctime, parent.Version = env.Now, env.Now, env.Index
}

// Link makes a further name for an inode that is not a directory. A last symbolic link in target is followed unless target.NoFollow, as link(2) does
// not. Errors: of Resolve; ErrExist; ErrPermission; ErrNotPermitted for a directory; ErrNotExist for an inode that has no name left;
// ErrTooManyLinks.
func Link(tx Txn, env Env, target, parent Ref, name []byte) (dfs.InodeID, Inode, error) {
	id, n, err := Resolve(tx, env.Caller, target)
	if err != nil {
		return 0, Inode{}, err
	}
	p, err := LookupPlace(tx, env.Caller, parent, name)
	if err != nil {
		return 0, Inode{}, err
	}
	if p.Child != 0 {
		return 0, Inode{}, dfserr.Errorf(dfserr.ErrExist, "%q", name)
	}
	if err := mayAdd(tx, env.Caller, p.Dir, &p.Parent); err != nil {
		return 0, Inode{}, err
	}
	switch {
	case n.IsDir():
		return 0, Inode{}, dfserr.Errorf(dfserr.ErrNotPermitted, "hard link to directory %d", id)
	case n.Nlink == 0:
		return 0, Inode{}, dfserr.Errorf(dfserr.ErrNotExist, "inode %d has been removed", id)
	case n.Nlink >= dfs.LinkMax:
		return 0, Inode{}, dfserr.Errorf(dfserr.ErrTooManyLinks, "inode %d", id)
	}
	n.Nlink++
	n.Ctime, n.Version = env.Now, env.Index
	tx.SetInode(id, n)
	linkIn(tx, env, p.Dir, &p.Parent, name, id, n.Type())
	tx.SetInode(p.Dir, p.Parent)
	return id, n, nil
}
