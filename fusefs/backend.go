package fusefs

import (
	"context"

	"dfs/internal/dfs"
)

// Backend is what the mount asks of a cluster. Errors wrap the sentinels of internal/dfserr. All methods
// are safe for concurrent use. Names are bytes without '/' and NUL.
type Backend interface {
	Lookup(ctx context.Context, who Caller, parent dfs.InodeID, name []byte) (Attr, error)
	GetAttr(ctx context.Context, inode dfs.InodeID) (Attr, error)
	// GetAttrShared also tells whether others may have the file open for writing, so that its bytes may change
	// without a change of its attributes.
	GetAttrShared(ctx context.Context, inode dfs.InodeID) (a Attr, shared bool, err error)
	// Lease returns a number that stays the same as long as nobody but this backend can have changed the file; 0 when that is not known.
	Lease(inode dfs.InodeID) uint64
	SetAttr(ctx context.Context, who Caller, inode dfs.InodeID, change Change) (Attr, error)
	// Truncate sets a file's length. byHandle says that the caller holds it open for writing, so that its
	// permission was checked at open.
	Truncate(ctx context.Context, who Caller, inode dfs.InodeID, length int64, byHandle bool) (Attr, error)
	// Make creates anything but an open file; it fails if the name exists.
	Make(ctx context.Context, who Caller, parent dfs.InodeID, name []byte, node NewNode) (Attr, error)
	// Create makes and opens a regular file, or opens the existing one unless exclusive.
	Create(ctx context.Context, who Caller, parent dfs.InodeID, name []byte, mode uint32, exclusive, truncate bool) (File, Attr, error)
	Open(ctx context.Context, who Caller, inode dfs.InodeID, read, write bool) (File, Attr, error)
	// Remove takes away one name: of a directory if dir, else of anything else.
	Remove(ctx context.Context, who Caller, parent dfs.InodeID, name []byte, dir bool) error
	Rename(ctx context.Context, who Caller, oldParent dfs.InodeID, oldName []byte, newParent dfs.InodeID, newName []byte) error
	Link(ctx context.Context, who Caller, inode, parent dfs.InodeID, name []byte) (Attr, error)
	// ReadDir returns at most limit entries whose names follow after in byte order, and whether that is the end.
	ReadDir(ctx context.Context, who Caller, dir dfs.InodeID, after []byte, limit int) (entries []DirEntry, end bool, err error)
	GetXattr(ctx context.Context, who Caller, inode dfs.InodeID, name string) ([]byte, error)
	ListXattr(ctx context.Context, who Caller, inode dfs.InodeID) ([]string, error)
	// SetXattr honours XATTR_CREATE and XATTR_REPLACE through create and replace.
	SetXattr(ctx context.Context, who Caller, inode dfs.InodeID, name string, value []byte, create, replace bool) error
	RemoveXattr(ctx context.Context, who Caller, inode dfs.InodeID, name string) error
	StatFS(ctx context.Context) (Totals, error)
}

// File is an open file of the backend.
type File interface {
	// ReadAt reads up to len(p) bytes at off in the file; fewer only at the end of the file, without an error.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// WriteAt writes all of p at off. What its return promises is dfs's write promise: the bytes are in the
	// memory of every replica.
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Append writes p at the end of the file, wherever that is when it gets there, and returns where that was.
	Append(ctx context.Context, p []byte) (off int64, err error)
	// Zero makes n bytes at off read as zero without changing the length (punch hole).
	Zero(ctx context.Context, off, n int64) error
	// Flush is what close(2) waits for: the modification time is recorded, and an error that an earlier write met is
	// returned.
	Flush(ctx context.Context) error
	// Sync makes everything written through any handle durable.
	Sync(ctx context.Context) error
	// Close records the length and ends the handle.
	Close(ctx context.Context) error

	// SetLock takes a lock in place of what its owner has within the range; with wait it waits until ctx ends while others have locks in the way. What is
	// read afterwards is what they wrote before they unlocked.
	SetLock(ctx context.Context, l Lock, wait bool) error
	// Unlock gives up what the owner has within the range.
	Unlock(ctx context.Context, l Lock) error
	// ReleaseLocks gives up everything of one kind that an owner has locked of the file, also after Close.
	ReleaseLocks(ctx context.Context, flock bool, owner uint64) error
	// TestLock returns a lock of another owner that keeps l from being set, nil when there is none. PID is 0 when the owner is elsewhere.
	TestLock(ctx context.Context, l Lock) (*Lock, error)
	// MayChange returns nil when the file may be changed as far as locks go. WriteAt, Append and Zero ask by themselves.
	MayChange(ctx context.Context) error
}

// Lock is an advisory lock: of flock(2) on the whole file, or of fcntl(2) on the bytes First to Last, both inclusive.
type Lock struct {
	Flock       bool
	Owner       uint64
	PID         uint32
	Exclusive   bool
	First, Last int64
}

// Caller is on whose behalf the kernel asks.
type Caller struct {
	UID, GID uint32
	Groups   []uint32
}

// Attr is what stat(2) reports. Times are nanoseconds since the epoch; Mode is st_mode with type bits.
type Attr struct {
	Inode                     dfs.InodeID
	Mode, UID, GID            uint32
	Nlink, Rdev               uint32
	Length                    int64
	AtimeNS, MtimeNS, CtimeNS int64
	Target                    []byte // of a symbolic link
	Version                   uint64 // changes with every change of the attributes that the backend was told of
}

// Change is a partial update of attributes; nil fields stay.
type Change struct {
	Mode, UID, GID     *uint32 // Mode: permission bits, setuid, setgid, sticky
	AtimeNS, MtimeNS   *int64
	AtimeNow, MtimeNow bool
}

// NewNode says what Make creates. Mode has type and permission bits, umask already applied.
type NewNode struct {
	Mode, Rdev uint32
	Target     []byte // of a symbolic link
}

// DirEntry is one name in a directory.
type DirEntry struct {
	Name  []byte
	Inode dfs.InodeID
	Mode  uint32 // st_mode; only its type bits count
}

// Totals is the space of the cluster, in bytes, and its inode count.
type Totals struct {
	Capacity, Free, Inodes int64
}
