package namespace

import (
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// RenameArgs names the two ends of a rename. At most one of the flags is set.
type RenameArgs struct {
	OldParent Ref
	OldName   []byte
	NewParent Ref
	NewName   []byte
	NoReplace bool // a new name that exists is ErrExist
	Exchange  bool // the two names swap what they stand for
}

// Rename moves a name, replacing what the new name stands for (which becomes an orphan when that was its last name), as renameat2(2). Two
// names of one inode are left alone. It returns the inode moved.
//
// Errors: of Resolve; ErrNotExist; ErrExist; ErrInvalid for a directory into itself or below, or both flags; ErrNotEmpty; ErrIsDir,
// ErrNotDir when kinds do not fit; ErrPermission; ErrNotPermitted by a sticky directory.
func Rename(tx Txn, env Env, a RenameArgs) (dfs.InodeID, Inode, error) {
	if a.NoReplace && a.Exchange {
		return 0, Inode{}, dfserr.Errorf(dfserr.ErrInvalid, "rename %q: both no-replace and exchange", a.OldName)
	}
	from, err := LookupPlace(tx, env.Caller, a.OldParent, a.OldName)
	if err != nil {
		return 0, Inode{}, err
	}
	to, err := LookupPlace(tx, env.Caller, a.NewParent, a.NewName)
	if err != nil {
		return 0, Inode{}, err
	}
	if err := checkEnds(tx, a, &from, &to); err != nil {
		return 0, Inode{}, err
	}
	if from.Child == to.Child {
		return from.Child, from.Inode, nil
	}
	if err := mayRename(tx, env.Caller, a, &from, &to); err != nil {
		return 0, Inode{}, err
	}
	moved := from.Inode
	moved.Ctime, moved.Version = env.Now, env.Index
	if moved.IsDir() {
		moved.Parent = to.Dir
	}
	// The two directories may be one: both ends then change the same value.
	oldDir, newDir := &from.Parent, &to.Parent
	if from.Dir == to.Dir {
		newDir = oldDir
	}
	linkOut(tx, env, from.Dir, oldDir, a.OldName, moved.Type())
	if to.Child != 0 {
		linkOut(tx, env, to.Dir, newDir, a.NewName, to.Inode.Type())
	}
	linkIn(tx, env, to.Dir, newDir, a.NewName, from.Child, moved.Type())
	if a.Exchange {
		back := to.Inode
		back.Ctime, back.Version = env.Now, env.Index
		if back.IsDir() {
			back.Parent = from.Dir
		}
		tx.SetInode(to.Child, back)
		linkIn(tx, env, from.Dir, oldDir, a.OldName, to.Child, back.Type())
	}
	tx.SetInode(from.Dir, *oldDir)
	if from.Dir != to.Dir {
		tx.SetInode(to.Dir, *newDir)
	}
	tx.SetInode(from.Child, moved)
	if to.Child != 0 && !a.Exchange {
		if err := unlinked(tx, env, to.Child, to.Inode); err != nil {
			return 0, Inode{}, err
		}
	}
	return from.Child, moved, nil
}

// checkEnds finds what is wrong with the two ends whoever asks.
func checkEnds(tx Txn, a RenameArgs, from, to *Place) error {
	switch {
	case from.Child == 0:
		return dfserr.Errorf(dfserr.ErrNotExist, "%q", a.OldName)
	case a.Exchange && to.Child == 0:
		return dfserr.Errorf(dfserr.ErrNotExist, "%q", a.NewName)
	case a.NoReplace && to.Child != 0:
		return dfserr.Errorf(dfserr.ErrExist, "%q", a.NewName)
	}
	if from.Dir == to.Dir {
		return nil
	}
	if from.Inode.IsDir() {
		below, err := inSubtree(tx, to.Dir, from.Child)
		if err != nil {
			return err
		}
		if below {
			return dfserr.Errorf(dfserr.ErrInvalid, "move directory %q into itself", a.OldName)
		}
	}
	if to.Child != 0 && to.Inode.IsDir() {
		above, err := inSubtree(tx, from.Dir, to.Child)
		if err != nil {
			return err
		}
		if above && a.Exchange {
			return dfserr.Errorf(dfserr.ErrInvalid, "move directory %q into itself", a.NewName)
		}
		if above {
			return dfserr.Errorf(dfserr.ErrNotEmpty, "%q", a.NewName)
		}
	}
	return nil
}

// mayRename checks permissions and kinds, in the order of Linux.
func mayRename(tx Txn, c Caller, a RenameArgs, from, to *Place) error {
	if err := mayDelete(c, from.Dir, &from.Parent, &from.Inode); err != nil {
		return err
	}
	if to.Child == 0 {
		if err := mayAdd(tx, c, to.Dir, &to.Parent); err != nil {
			return err
		}
	} else {
		if err := mayDelete(c, to.Dir, &to.Parent, &to.Inode); err != nil {
			return err
		}
		if err := checkLive(tx, to.Dir, &to.Parent); err != nil {
			return err
		}
		if !a.Exchange {
			switch {
			case from.Inode.IsDir() && !to.Inode.IsDir():
				return dfserr.Errorf(dfserr.ErrNotDir, "%q", a.NewName)
			case !from.Inode.IsDir() && to.Inode.IsDir():
				return dfserr.Errorf(dfserr.ErrIsDir, "%q", a.NewName)
			}
		}
	}
	if a.Exchange {
		if err := checkLive(tx, from.Dir, &from.Parent); err != nil {
			return err
		}
	}
	if from.Dir != to.Dir {
		// A directory that changes its parent has its ".." written.
		if from.Inode.IsDir() && !allowed(c, &from.Inode, Write) {
			return dfserr.Errorf(dfserr.ErrPermission, "move directory %q", a.OldName)
		}
		if a.Exchange && to.Inode.IsDir() && !allowed(c, &to.Inode, Write) {
			return dfserr.Errorf(dfserr.ErrPermission, "move directory %q", a.NewName)
		}
	}
	if to.Child != 0 && !a.Exchange && to.Inode.Entries > 0 {
		return dfserr.Errorf(dfserr.ErrNotEmpty, "%q", a.NewName)
	}
	return nil
}
