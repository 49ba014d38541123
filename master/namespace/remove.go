package namespace

import (
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// What says which kinds of thing Remove takes away.
type What int

// The kinds.
const (
	Any       What = iota // a file or an empty directory
	File                  // anything but a directory, as unlink(2)
	Directory             // an empty directory, as rmdir(2)
	Tree                  // anything; a directory with all that is in it
)

// Remove takes away a name. An inode that has no other becomes an orphan: it keeps its contents, for those who have it open, until
// Reclaim.
//
// Tree detaches a directory in one step, however much is in it: what is below is reclaimed later, in bounded pieces. Since
// nothing below is visited, permissions below are not checked either. A caller other than root needs what rmdir needs for the name, and, unless the
// directory is empty, read, write and search permission on the directory itself; directories further down may deny
// the caller and go all the same. (rm -r would stop there. It could rename them away, though.)
//
// Errors: of Resolve; ErrNotExist; ErrPermission; ErrNotPermitted by a sticky directory; ErrIsDir, ErrNotDir by kind; ErrNotEmpty.
func Remove(tx Txn, env Env, parent Ref, name []byte, what What) error {
	p, err := LookupPlace(tx, env.Caller, parent, name)
	if err != nil {
		return err
	}
	if p.Child == 0 {
		return dfserr.Errorf(dfserr.ErrNotExist, "%q", name)
	}
	if err := mayDelete(env.Caller, p.Dir, &p.Parent, &p.Inode); err != nil {
		return err
	}
	n := p.Inode
	if n.IsDir() {
		switch {
		case what == File:
			return dfserr.Errorf(dfserr.ErrIsDir, "%q", name)
		case n.Entries > 0 && what != Tree:
			return dfserr.Errorf(dfserr.ErrNotEmpty, "%q", name)
		case n.Entries > 0 && !allowed(env.Caller, &n, Read|Write|Exec):
			return dfserr.Errorf(dfserr.ErrPermission, "remove the tree %q", name)
		}
	} else if what == Directory {
		return dfserr.Errorf(dfserr.ErrNotDir, "%q", name)
	}
	linkOut(tx, env, p.Dir, &p.Parent, name, n.Type())
	tx.SetInode(p.Dir, p.Parent)
	return unlinked(tx, env, p.Child, n)
}

// unlinked counts a name out of an inode, whose dentry is gone, and makes it an orphan when that was the last one.
func unlinked(tx Txn, env Env, id dfs.InodeID, n Inode) error {
	n.Ctime, n.Version = env.Now, env.Index
	if !n.IsDir() && n.Nlink > 1 {
		n.Nlink--
		tx.SetInode(id, n)
		return nil
	}
	n.Nlink = 0
	tx.SetInode(id, n)
	o := Orphan{UnlinkedAt: env.Now, Subtree: n.Entries > 0}
	tx.SetOrphan(id, o)
	t, err := tx.Totals()
	if err != nil {
		return err
	}
	t.Orphans++
	if o.Subtree {
		t.Subtrees++
	}
	tx.SetTotals(t)
	return nil
}

// entryCost is what one name costs ReclaimEntries at most, in bytes written, besides the inline data and link target of its inode, which is rewritten.
const entryCost = 1024

// ReclaimEntries empties an orphaned directory by up to limit names, fewer when that would write more than about room bytes, but at least one: what loses its last name with
// that becomes an orphan in its turn. It returns how many names went, and whether the directory is empty now.
func ReclaimEntries(tx Txn, env Env, dir dfs.InodeID, limit int, room int64) (int, bool, error) {
	n, err := Get(tx, dir)
	if err != nil {
		return 0, false, err
	}
	type entry struct {
		name []byte
		d    Dentry
	}
	var entries []entry
	err = tx.Dentries(dir, nil, func(name []byte, d Dentry) bool {
		if len(entries) >= limit {
			return false
		}
		entries = append(entries, entry{append([]byte(nil), name...), d})
		return true
	})
	if err != nil {
		return 0, false, err
	}
	for i, e := range entries {
		c, err := child(tx, e.d)
		if err != nil {
			return 0, false, err
		}
		if room -= entryCost + int64(len(c.Inline)+len(c.Target)); room < 0 && i > 0 {
			entries = entries[:i]
			break
		}
		linkOut(tx, env, dir, &n, e.name, c.Type())
		if err := unlinked(tx, env, e.d.Inode, c); err != nil {
			return 0, false, err
		}
	}
	tx.SetInode(dir, n)
	return len(entries), n.Entries == 0, nil
}

// Drop deletes an orphan for good: the inode, its extended attributes and its orphan record. The caller has seen to its chunks; a
// directory must be empty. It returns how many values it deleted.
func Drop(tx Txn, id dfs.InodeID) (int, error) {
	n, err := Get(tx, id)
	if err != nil {
		return 0, err
	}
	o, ok, err := tx.Orphan(id)
	if err != nil {
		return 0, err
	}
	if !ok || n.Nlink != 0 || n.Entries != 0 {
		return 0, dfserr.Errorf(dfserr.ErrBusy, "inode %d is not an empty orphan", id)
	}
	var names [][]byte
	if n.Xattrs > 0 {
		err := tx.XattrNames(id, func(name []byte) bool {
			names = append(names, append([]byte(nil), name...))
			return true
		})
		if err != nil {
			return 0, err
		}
	}
	for _, name := range names {
		tx.DeleteXattr(id, name)
	}
	tx.DeleteOrphan(id)
	tx.DeleteInode(id)
	t, err := tx.Totals()
	if err != nil {
		return 0, err
	}
	t.Inodes--
	t.Orphans--
	if o.Subtree {
		t.Subtrees--
	}
	if n.IsDir() {
		t.Directories--
	}
	t.Bytes -= fileBytes(&n)
	tx.SetTotals(t)
	return len(names) + 2, nil
}
