package namespace

import (
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// AttrChange says which attributes SetAttr changes; nil and false leave them.
type AttrChange struct {
	Mode        *uint32 // permission bits with setuid, setgid and sticky; type bits are ignored
	UID, GID    *uint32
	Atime       *int64
	Mtime       *int64
	AtimeNow    bool
	MtimeNow    bool
	Replication *uint32 // of a regular file
}

// SetAttr changes attributes, all of them or none.
//
// Mode: the owner and root; setgid is dropped when the caller is neither root nor in the file's group. UID: root. GID: root, and the owner to a
// group of its own. A change of owner or group of anything but a directory drops setuid and setgid, unless Mode is given too.
// Times: the owner and root, and for the present time whoever may write. Replication: whoever may write; the caller of this function
// changes the chunk records. ctime becomes the command's time.
//
// Errors: of Resolve; ErrNotPermitted; ErrPermission; ErrUnsupported for the mode of a symbolic link; ErrIsDir, ErrInvalid for
// the replication.
func SetAttr(tx Txn, env Env, ref Ref, a AttrChange) (dfs.InodeID, Inode, error) {
	id, n, err := Resolve(tx, env.Caller, ref)
	if err != nil {
		return 0, Inode{}, err
	}
	if err := maySetAttr(env.Caller, id, &n, a); err != nil {
		return 0, Inode{}, err
	}
	if a == (AttrChange{}) {
		return id, n, nil
	}
	if a.UID != nil {
		n.UID = *a.UID
	}
	if a.UID != nil || a.GID != nil {
		if !n.IsDir() {
			dropPrivileges(env.Caller, &n)
		}
	}
	if a.GID != nil {
		n.GID = *a.GID
	}
	if a.Mode != nil {
		n.Mode = n.Type() | *a.Mode&PermMask
		if !env.Caller.IsRoot() && !env.Caller.InGroup(n.GID) {
			n.Mode &^= SetGID
		}
	}
	if a.Atime != nil {
		n.Atime = *a.Atime
	}
	if a.Mtime != nil {
		n.Mtime = *a.Mtime
	}
	if a.AtimeNow {
		n.Atime = env.Now
	}
	if a.MtimeNow {
		n.Mtime = env.Now
	}
	if a.Replication != nil {
		n.Replication = *a.Replication
	}
	n.Ctime, n.Version = env.Now, env.Index
	tx.SetInode(id, n)
	return id, n, nil
}

func maySetAttr(c Caller, id dfs.InodeID, n *Inode, a AttrChange) error {
	owner := c.IsRoot() || c.UID == n.UID
	if a.UID != nil && !c.IsRoot() && (!owner || *a.UID != n.UID) {
		return dfserr.Errorf(dfserr.ErrNotPermitted, "change owner of inode %d", id)
	}
	if a.GID != nil && !c.IsRoot() && (!owner || *a.GID != n.GID && !c.InGroup(*a.GID)) {
		return dfserr.Errorf(dfserr.ErrNotPermitted, "change group of inode %d", id)
	}
	if a.Mode != nil {
		if !owner {
			return dfserr.Errorf(dfserr.ErrNotPermitted, "change mode of inode %d", id)
		}
		if n.IsSymlink() {
			return dfserr.Errorf(dfserr.ErrUnsupported, "change mode of symbolic link %d", id)
		}
	}
	if (a.Atime != nil || a.Mtime != nil) && !owner {
		return dfserr.Errorf(dfserr.ErrNotPermitted, "set times of inode %d", id)
	}
	if (a.AtimeNow || a.MtimeNow) && !owner {
		if err := Check(c, id, n, Write); err != nil {
			return err
		}
	}
	if a.Replication != nil {
		if err := checkRegular(id, n); err != nil {
			return err
		}
		if !owner {
			if err := Check(c, id, n, Write); err != nil {
				return err
			}
		}
		if *a.Replication > dfs.MaxReplication {
			return dfserr.Errorf(dfserr.ErrInvalid, "replication %d of inode %d, the limit is %d", *a.Replication, id, dfs.MaxReplication)
		}
	}
	return nil
}

// ForTruncate finds the file that a truncation to length names, and checks it: through a handle (an inode id; write
// permission was checked at open) or, when that is 0, through a reference. The inode returned has its times set and privileges
// dropped; the caller sets its length and stores it with SetFile. old is as it is in the state. Errors: of Resolve; ErrPermission; ErrIsDir;
// ErrInvalid; ErrFileTooLarge.
func ForTruncate(tx Txn, env Env, ref Ref, handle dfs.InodeID, length int64) (id dfs.InodeID, old, n Inode, err error) {
	if handle != 0 {
		id = handle
		old, err = Get(tx, handle)
	} else {
		id, old, err = Resolve(tx, env.Caller, ref)
	}
	if err != nil {
		return 0, Inode{}, Inode{}, err
	}
	if err := checkRegular(id, &old); err != nil {
		return 0, Inode{}, Inode{}, err
	}
	if handle == 0 {
		if err := Check(env.Caller, id, &old, Write); err != nil {
			return 0, Inode{}, Inode{}, err
		}
	}
	switch {
	case length < 0:
		return 0, Inode{}, Inode{}, dfserr.Errorf(dfserr.ErrInvalid, "truncate inode %d to %d", id, length)
	case length > dfs.MaxFileLength:
		return 0, Inode{}, Inode{}, dfserr.Errorf(dfserr.ErrFileTooLarge, "truncate inode %d to %d", id, length)
	}
	n = old
	Modified(env, &n)
	return id, old, n, nil
}
