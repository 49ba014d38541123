// Package namespace is the POSIX tree: inodes, dentries, symbolic and hard links, extended attributes, permissions.
//
// Every operation is a function of a Txn (the state), an Env (who asks, when, at which Raft index) and its
// arguments. It is deterministic: no clock, no disk, no randomness, no iteration over Go maps. An operation that
// returns an error may have used its Txn already (Create with MakeParents does): the caller discards it.
//
// What it does not do: chunks. It knows that a regular file has a number of them and that its bytes may be inline, and
// leaves what that means to package chunks; Create and Reclaim tell their caller when there is something to do there.
// It knows no sessions either: an inode whose last name has gone becomes an orphan (o/<inode>), and the
// caller decides when to reclaim it.
//
// # Rules
//
// The order in which errors are found is Linux's (search permission, existence, write permission, sticky bit,
// type, emptiness), because programs depend on it. Uid 0 is root: it passes every check, except that executing a file
// needs one x bit. Times are those of the command, taken as given: they may go backwards.
//
// # Invariants
//
// A directory's Entries is the number of its dentries, Subdirs that of its directories among them, Nlink is Subdirs + 2, or 0 once it
// has no name. Any other inode's Nlink is the number of dentries that name it. An inode with Nlink 0 has an orphan
// record, and one with an orphan record has Nlink 0. A directory has exactly one dentry, in Parent; the parents form no cycle. The one
// exception is a detached subtree (Remove with Tree): its root is an orphan, what lies below is as it was until it is reclaimed, and no
// name can be added anywhere in it.
package namespace

import (
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// Mode bits, as in stat(2).
const (
	TypeMask    = 0o170000
	TypeSocket  = 0o140000
	TypeSymlink = 0o120000
	TypeRegular = 0o100000
	TypeBlock   = 0o060000
	TypeDir     = 0o040000
	TypeChar    = 0o020000
	TypeFifo    = 0o010000

	SetUID   = 0o4000
	SetGID   = 0o2000
	Sticky   = 0o1000
	PermMask = 0o7777 // permission bits with setuid, setgid and sticky
)

// Access is a set of permissions asked for.
type Access uint32

// The permissions, with the values of access(2).
const (
	Exec  Access = 1 // of a directory: search
	Write Access = 2
	Read  Access = 4
)

// Caller is on whose behalf an operation runs.
type Caller struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
}

// Root is the caller that passes permission checks.
func Root() Caller { return Caller{} }

// IsRoot reports whether the caller passes permission checks.
func (c Caller) IsRoot() bool { return c.UID == 0 }

// InGroup reports whether gid is the caller's group or one of its supplementary groups.
func (c Caller) InGroup(gid uint32) bool {
	if c.GID == gid {
		return true
	}
	for _, g := range c.Groups {
		if g == gid {
			return true
		}
	}
	return false
}

// Env is what an operation knows besides the state and its arguments.
type Env struct {
	Caller Caller
	Now    int64     // the command's time, nanoseconds since the Unix epoch
	Index  dfs.Index // of the command; the new version of every inode it changes
}

// Inode is everything the master knows about one inode, except its chunks and extended attributes. Values are
// copied freely; the byte slices in it are shared and never modified in place.
type Inode struct {
	Mode  uint32 // type and permission bits
	UID   uint32
	GID   uint32
	Nlink uint32
	Rdev  uint32 // of a device

	Length int64 // bytes, committed; of a file, a lower bound while TailOpen; of a symlink, of its target; of a directory 0
	Atime  int64 // nanoseconds since the Unix epoch, as all times here
	Mtime  int64
	Ctime  int64
	Btime  int64

	Target []byte // of a symlink

	ChunkSizeLog2 uint32 // of a regular file
	Replication   uint32 // wanted replicas per chunk, of a regular file
	Inline        []byte // at most dfs.InlineMax; bytes from here up to Length read as zero; empty when Chunks > 0
	TailOpen      bool   // the last chunk's primary knows the length better; false when Chunks is 0
	Chunks        int64  // index of the last chunk + 1; 0 means that the file is inline

	Parent  dfs.InodeID // of a directory; the root's is itself
	Entries int64       // of a directory: dentries
	Subdirs int64       // of a directory: dentries that are directories

	Xattrs     uint32    // number of extended attributes
	XattrBytes int64     // sum of the lengths of their names and values, and 32 for each
	Version    dfs.Index // of the last command that changed this value
}

// Type returns the type bits.
func (n *Inode) Type() uint32 { return n.Mode & TypeMask }

// IsDir reports whether n is a directory.
func (n *Inode) IsDir() bool { return n.Type() == TypeDir }

// IsRegular reports whether n is a regular file.
func (n *Inode) IsRegular() bool { return n.Type() == TypeRegular }

// IsSymlink reports whether n is a symbolic link.
func (n *Inode) IsSymlink() bool { return n.Type() == TypeSymlink }

// ChunkSize returns the chunk size of a regular file in bytes, 0 of anything else.
func (n *Inode) ChunkSize() int64 {
	if n.ChunkSizeLog2 == 0 {
		return 0
	}
	return 1 << n.ChunkSizeLog2
}

// Dentry is what a name in a directory stands for.
type Dentry struct {
	Inode dfs.InodeID
	Type  uint32 // type bits of the inode's mode
}

// Orphan says that an inode has no name left.
type Orphan struct {
	UnlinkedAt int64
	Subtree    bool // a directory that was detached with its contents
}

// Totals are the counts this package keeps, besides the next inode id.
type Totals struct {
	NextInode   dfs.InodeID
	Inodes      int64 // all, also orphans
	Directories int64
	Bytes       int64 // sum of the Length of regular files
	Orphans     int64
	Subtrees    int64 // orphans that are detached subtrees
}

// Reader is the state as lookups need it. The bool of a getter says whether there is such a value; an error means
// that the state could not be read, and the operation must fail with it.
type Reader interface {
	Inode(id dfs.InodeID) (Inode, bool, error)
	Dentry(dir dfs.InodeID, name []byte) (Dentry, bool, error)
	// Dentries calls fn for the entries of dir with names strictly above after, in byte order, until it returns false. fn must not
	// keep name. Changes of the running command need not be seen.
	Dentries(dir dfs.InodeID, after []byte, fn func(name []byte, d Dentry) bool) error
	Xattr(id dfs.InodeID, name []byte) ([]byte, bool, error)
	// XattrNames calls fn for each attribute name in byte order until it returns false; as Dentries.
	XattrNames(id dfs.InodeID, fn func(name []byte) bool) error
}

// Txn is the state as operations need it: reads see the changes of the running command. Setters cannot fail; what they take is
// theirs to keep.
type Txn interface {
	Reader
	SetInode(id dfs.InodeID, n Inode)
	DeleteInode(id dfs.InodeID)
	SetDentry(dir dfs.InodeID, name []byte, d Dentry)
	DeleteDentry(dir dfs.InodeID, name []byte)
	SetXattr(id dfs.InodeID, name, value []byte)
	DeleteXattr(id dfs.InodeID, name []byte)
	Orphan(id dfs.InodeID) (Orphan, bool, error)
	SetOrphan(id dfs.InodeID, o Orphan)
	DeleteOrphan(id dfs.InodeID)
	Totals() (Totals, error)
	SetTotals(Totals)
}

// Format makes the root directory, owned by uid and gid with mode 0755. It returns ErrExist when there is one.
func Format(tx Txn, env Env, uid, gid uint32) error {
	if _, ok, err := tx.Inode(dfs.RootInode); err != nil {
		return err
	} else if ok {
		return dfserr.Errorf(dfserr.ErrExist, "format: the root directory")
	}
	tx.SetInode(dfs.RootInode, Inode{
		Mode: TypeDir | 0o755, UID: uid, GID: gid, Nlink: 2, Parent: dfs.RootInode,
		Atime: env.Now, Mtime: env.Now, Ctime: env.Now, Btime: env.Now, Version: env.Index,
	})
	tx.SetTotals(Totals{NextInode: dfs.RootInode + 1, Inodes: 1, Directories: 1})
	return nil
}

// Get returns an inode that a caller names by its id. One that does not exist (any more) is ErrStaleInode.
func Get(r Reader, id dfs.InodeID) (Inode, error) {
	n, ok, err := r.Inode(id)
	if err != nil {
		return Inode{}, err
	}
	if !ok {
		return Inode{}, dfserr.Errorf(dfserr.ErrStaleInode, "inode %d", id)
	}
	return n, nil
}

// GetFile returns a regular file that a caller names by its id: ErrStaleInode when it does not exist, ErrIsDir of a
// directory, ErrInvalid of anything else that is not a regular file.
func GetFile(r Reader, id dfs.InodeID) (Inode, error) {
	n, err := Get(r, id)
	if err != nil {
		return Inode{}, err
	}
	return n, checkRegular(id, &n)
}

func checkRegular(id dfs.InodeID, n *Inode) error {
	switch {
	case n.IsDir():
		return dfserr.Errorf(dfserr.ErrIsDir, "inode %d", id)
	case !n.IsRegular():
		return dfserr.Errorf(dfserr.ErrInvalid, "inode %d is not a regular file", id)
	}
	return nil
}

// SetFile stores a regular file whose length or layout has changed from old to n and keeps the totals right.
func SetFile(tx Txn, env Env, id dfs.InodeID, old, n Inode) error {
	n.Version = env.Index
	tx.SetInode(id, n)
	if n.Length == old.Length {
		return nil
	}
	t, err := tx.Totals()
	if err != nil {
		return err
	}
	t.Bytes += n.Length - old.Length
	tx.SetTotals(t)
	return nil
}

// Modified marks file contents as changed now by the caller: mtime and ctime, and, unless the caller is root, setuid and setgid are
// dropped as write(2) does.
func Modified(env Env, n *Inode) {
	n.Mtime, n.Ctime = env.Now, env.Now
	if !env.Caller.IsRoot() {
		dropPrivileges(env.Caller, n)
	}
}

// dropPrivileges clears setuid, and setgid of what the group may execute. Setgid without group execution marks mandatory
// locking and stays, unless the caller is a stranger to the group.
func dropPrivileges(c Caller, n *Inode) {
	n.Mode &^= SetUID
	if n.Mode&0o010 != 0 || !c.IsRoot() && !c.InGroup(n.GID) {
		n.Mode &^= SetGID
	}
}
