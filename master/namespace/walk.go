package namespace

import (
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// Ref names an inode: the one reached from Inode (0 means the root) along Path. Slashes at the front of Path mean nothing. A
// trailing slash, "." or ".." demands a directory. The last symbolic link is followed unless NoFollow.
type Ref struct {
	Inode    dfs.InodeID
	Path     []byte
	NoFollow bool
}

// maxParents bounds every walk towards the root: a tree that is deeper is a cycle, that is, a corrupt state.
const maxParents = 1 << 20

// Check returns ErrPermission unless the caller has all the wanted permissions on n.
func Check(c Caller, id dfs.InodeID, n *Inode, want Access) error {
	if allowed(c, n, want) {
		return nil
	}
	return dfserr.Errorf(dfserr.ErrPermission, "inode %d", id)
}

func allowed(c Caller, n *Inode, want Access) bool {
	if c.IsRoot() {
		return want&Exec == 0 || n.IsDir() || n.Mode&0o111 != 0
	}
	bits := n.Mode
	switch {
	case c.UID == n.UID:
		bits >>= 6
	case c.InGroup(n.GID):
		bits >>= 3
	}
	return Access(bits)&want == want
}

// Resolve walks a reference and returns the inode it names. Each directory on the way needs search permission. Errors:
// ErrNotExist, ErrNotDir, ErrPermission, ErrLoop after dfs.SymlinkDepth links, ErrInvalid and ErrNameTooLong of a malformed
// path, ErrStaleInode when ref.Inode is gone.
func Resolve(r Reader, c Caller, ref Ref) (dfs.InodeID, Inode, error) {
	w := walker{r: r, caller: c}
	return w.resolve(ref)
}

// Place is a name in a directory, and what it stands for now. The name itself may be free.
type Place struct {
	Dir    dfs.InodeID
	Parent Inode
	Name   []byte
	Child  dfs.InodeID // 0: the name is free
	Inode  Inode       // of Child
}

// LookupPlace resolves a directory and looks name up in it, following no link there. A name that is free is no error. Errors
// as of Resolve, and of dfs.CheckName.
func LookupPlace(r Reader, c Caller, dir Ref, name []byte) (Place, error) {
	w := walker{r: r, caller: c}
	return w.place(dir, name)
}

// walker is one walk: its count of symbolic links is shared by everything the walk passes through.
type walker struct {
	r      Reader
	caller Caller
	links  int
}

// need is what the last name of a path may be.
type need struct {
	dir      bool // a directory, or a link to one
	noFollow bool
}

func (w *walker) resolve(ref Ref) (dfs.InodeID, Inode, error) {
	start := ref.Inode
	if start == 0 {
		start = dfs.RootInode
	}
	n, err := Get(w.r, start)
	if err != nil {
		return 0, Inode{}, err
	}
	if len(ref.Path) == 0 {
		return start, n, nil
	}
	return w.walk(start, n, ref.Path, ref.NoFollow)
}

// place resolves a directory and looks one name up in it.
func (w *walker) place(dir Ref, name []byte) (Place, error) {
	if err := dfs.CheckName(name); err != nil {
		return Place{}, err
	}
	id, n, err := w.resolve(dir)
	if err != nil {
		return Place{}, err
	}
	return w.placeIn(id, n, name)
}

func (w *walker) placeIn(dir dfs.InodeID, n Inode, name []byte) (Place, error) {
	p := Place{Dir: dir, Parent: n, Name: name}
	d, ok, err := w.lookup(dir, &n, name)
	if err != nil || !ok {
		return p, err
	}
	p.Child = d.Inode
	p.Inode, err = child(w.r, d)
	return p, err
}

// lookup finds one name in a directory, with search permission.
func (w *walker) lookup(dir dfs.InodeID, n *Inode, name []byte) (Dentry, bool, error) {
	if !n.IsDir() {
		return Dentry{}, false, dfserr.Errorf(dfserr.ErrNotDir, "inode %d", dir)
	}
	if !allowed(w.caller, n, Exec) {
		return Dentry{}, false, dfserr.Errorf(dfserr.ErrPermission, "search directory %d", dir)
	}
	return w.r.Dentry(dir, name)
}

// child reads the inode of a dentry; that it exists is an invariant.
func child(r Reader, d Dentry) (Inode, error) {
	n, ok, err := r.Inode(d.Inode)
	if err == nil && !ok {
		err = dfserr.Errorf(dfserr.ErrCorrupt, "a name stands for inode %d, which does not exist", d.Inode)
	}
	return n, err
}

// trailing reports whether a path ends in a way that demands a directory.
func trailing(path []byte) bool {
	end := len(path)
	start := end
	for start > 0 && path[start-1] != '/' {
		start--
	}
	last := string(path[start:end])
	return last == "" || last == "." || last == ".."
}

func (w *walker) walk(at dfs.InodeID, n Inode, path []byte, noFollow bool) (dfs.InodeID, Inode, error) {
	names, err := dfs.SplitPath(path)
	if err != nil {
		return 0, Inode{}, err
	}
	return w.walkNames(at, n, names, need{dir: trailing(path), noFollow: noFollow})
}

// walkNames follows names from a directory.
func (w *walker) walkNames(at dfs.InodeID, n Inode, names [][]byte, last need) (dfs.InodeID, Inode, error) {
	for i, name := range names {
		if string(name) == ".." {
			if !n.IsDir() {
				return 0, Inode{}, dfserr.Errorf(dfserr.ErrNotDir, "%q", name)
			}
			if !allowed(w.caller, &n, Exec) {
				return 0, Inode{}, dfserr.Errorf(dfserr.ErrPermission, "search directory %d", at)
			}
			at = n.Parent
			next, err := Get(w.r, at)
			if err != nil {
				return 0, Inode{}, err
			}
			n = next
			continue
		}
		d, ok, err := w.lookup(at, &n, name)
		if err != nil {
			return 0, Inode{}, err
		}
		if !ok {
			return 0, Inode{}, dfserr.Errorf(dfserr.ErrNotExist, "%q", name)
		}
		next, err := child(w.r, d)
		if err != nil {
			return 0, Inode{}, err
		}
		isLast := i == len(names)-1
		if next.IsSymlink() && (!isLast || last.dir || !last.noFollow) {
			at, n, err = w.follow(at, n, next.Target)
			if err != nil {
				return 0, Inode{}, err
			}
			continue
		}
		at, n = d.Inode, next
	}
	if last.dir && !n.IsDir() {
		return 0, Inode{}, dfserr.Errorf(dfserr.ErrNotDir, "inode %d", at)
	}
	return at, n, nil
}

// follow walks a symbolic link's target from the directory that holds the link.
func (w *walker) follow(dir dfs.InodeID, n Inode, target []byte) (dfs.InodeID, Inode, error) {
	if err := w.countLink(); err != nil {
		return 0, Inode{}, err
	}
	dir, n, err := w.base(dir, n, target)
	if err != nil {
		return 0, Inode{}, err
	}
	return w.walk(dir, n, target, false)
}

// base returns where a link's target starts: an absolute one at the root.
func (w *walker) base(dir dfs.InodeID, n Inode, target []byte) (dfs.InodeID, Inode, error) {
	if len(target) == 0 || target[0] != '/' {
		return dir, n, nil
	}
	root, err := Get(w.r, dfs.RootInode)
	return dfs.RootInode, root, err
}

func (w *walker) countLink() error {
	w.links++
	if w.links > dfs.SymlinkDepth {
		return dfserr.Errorf(dfserr.ErrLoop, "after %d symbolic links", dfs.SymlinkDepth)
	}
	return nil
}

// inSubtree reports whether dir is top or lies below it.
func inSubtree(r Reader, dir, top dfs.InodeID) (bool, error) {
	for range maxParents {
		if dir == top {
			return true, nil
		}
		if dir == dfs.RootInode {
			return false, nil
		}
		n, ok, err := r.Inode(dir)
		if err != nil {
			return false, err
		}
		if !ok || n.Nlink == 0 {
			return false, nil
		}
		dir = n.Parent
	}
	return false, dfserr.Errorf(dfserr.ErrCorrupt, "directory %d has more than %d ancestors", dir, maxParents)
}

// checkLive returns ErrNotExist when no name can be added in a directory because it has been removed, or is part of a detached subtree.
func checkLive(tx Txn, dir dfs.InodeID, n *Inode) error {
	if n.Nlink == 0 {
		return dfserr.Errorf(dfserr.ErrNotExist, "directory %d has been removed", dir)
	}
	t, err := tx.Totals()
	if err != nil || t.Subtrees == 0 {
		return err
	}
	live, err := inSubtree(tx, dir, dfs.RootInode)
	if err != nil {
		return err
	}
	if !live {
		return dfserr.Errorf(dfserr.ErrNotExist, "directory %d is part of a removed tree", dir)
	}
	return nil
}

// mayAdd checks that the caller may add a name to a directory.
func mayAdd(tx Txn, c Caller, dir dfs.InodeID, n *Inode) error {
	if err := checkLive(tx, dir, n); err != nil {
		return err
	}
	if !allowed(c, n, Write|Exec) {
		return dfserr.Errorf(dfserr.ErrPermission, "change directory %d", dir)
	}
	return nil
}

// mayDelete checks that the caller may take the name of n out of a directory.
func mayDelete(c Caller, dir dfs.InodeID, parent, n *Inode) error {
	if !allowed(c, parent, Write|Exec) {
		return dfserr.Errorf(dfserr.ErrPermission, "change directory %d", dir)
	}
	if parent.Mode&Sticky != 0 && !c.IsRoot() && c.UID != n.UID && c.UID != parent.UID {
		return dfserr.Errorf(dfserr.ErrNotPermitted, "directory %d is sticky", dir)
	}
	return nil
}
