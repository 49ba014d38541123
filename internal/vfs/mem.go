package vfs

import (
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
)

// Mem is an FS in memory. Nothing outlives it; the Sync methods only check their operands. With a capacity
// it refuses writes that do not fit, after writing the part that does, as a full disk does.
type Mem struct {
	*tree
}

// NewMem returns an empty Mem of unlimited capacity.
func NewMem() *Mem { return &Mem{newTree(false)} }

// pageSize is the unit in which the in-memory implementations allocate.
const pageSize = 4096

// tree is the file tree that Mem and Crashable share. With track set it also remembers what is durable.
type tree struct {
	mu       sync.Mutex
	track    bool
	root     *node
	capacity int64 // bytes; 0 means unlimited
	used     int64 // bytes in allocated pages of files that are linked or open
	locks    map[string]*memLock
	life     *life // of the handles given out now
	nextOp   int   // numbers pending directory operations, to order them across directories
}

// life is one run of the "process" that uses the tree: when it ends, its handles stop working.
type life struct {
	ended bool
}

// node is a file or a directory. The fields are guarded by tree.mu.
type node struct {
	mode  fs.FileMode
	mtime time.Time
	links int // directory entries that name it, now or durably
	opens int

	img     image    // contents of a file
	durable image    // contents after the last Sync, when tracked
	pending []change // what came after it

	entries        map[string]*node // of a directory
	durableEntries map[string]*node
	pendingDir     []dirChange
}

func newTree(track bool) *tree {
	return &tree{track: track, root: newNode(fs.ModeDir | 0o755), locks: map[string]*memLock{}, life: &life{}}
}

func newNode(mode fs.FileMode) *node {
	n := &node{mode: mode, mtime: time.Now()}
	if mode.IsDir() {
		n.entries, n.durableEntries = map[string]*node{}, map[string]*node{}
	}
	return n
}

// SetCapacity limits the file contents to capacity bytes, 0 for no limit. Contents already there stay.
func (t *tree) SetCapacity(capacity int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.capacity = capacity
}

func pathErr(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// check refuses names that leave the root, and calls by an ended life.
func (t *tree) checkLocked(l *life, op, name string) (string, error) {
	if l.ended {
		return "", pathErr(op, name, fs.ErrClosed)
	}
	clean := path.Clean(name)
	if !fs.ValidPath(clean) {
		return "", pathErr(op, name, fs.ErrInvalid)
	}
	return clean, nil
}

// lookup returns the node called name, which is clean.
func (t *tree) lookupLocked(op, name string) (*node, error) {
	n := t.root
	if name == "." {
		return n, nil
	}
	for _, part := range strings.Split(name, "/") {
		if !n.mode.IsDir() {
			return nil, pathErr(op, name, errNotDir)
		}
		next, ok := n.entries[part]
		if !ok {
			return nil, pathErr(op, name, fs.ErrNotExist)
		}
		n = next
	}
	return n, nil
}

// parentLocked returns the directory that holds name, which is clean, and the last part of the name.
func (t *tree) parentLocked(op, name string) (*node, string, error) {
	if name == "." {
		return nil, "", pathErr(op, name, fs.ErrInvalid)
	}
	dir, err := t.lookupLocked(op, path.Dir(name))
	if err != nil {
		return nil, "", err
	}
	if !dir.mode.IsDir() {
		return nil, "", pathErr(op, name, errNotDir)
	}
	return dir, path.Base(name), nil
}

// OpenFile implements FS.
func (t *tree) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.openLocked(t.life, name, flag, perm)
}

func (t *tree) openLocked(l *life, name string, flag int, perm fs.FileMode) (File, error) {
	clean, err := t.checkLocked(l, "open", name)
	if err != nil {
		return nil, err
	}
	n, err := t.lookupLocked("open", clean)
	switch {
	case err == nil && flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL:
		return nil, pathErr("open", name, fs.ErrExist)
	case err == nil && n.mode.IsDir():
		return nil, pathErr("open", name, errIsDir)
	case err != nil && flag&os.O_CREATE == 0:
		return nil, err
	case err != nil:
		dir, base, parentErr := t.parentLocked("open", clean)
		if parentErr != nil {
			return nil, parentErr
		}
		n = newNode(perm.Perm())
		t.setEntryLocked(dir, base, n)
	}
	f := &memFile{tree: t, life: l, node: n, name: name, writable: flag&(os.O_WRONLY|os.O_RDWR) != 0}
	if flag&os.O_TRUNC != 0 && f.writable {
		t.truncateLocked(n, 0)
	}
	n.opens++
	return f, nil
}

// Mkdir implements FS.
func (t *tree) Mkdir(name string, perm fs.FileMode) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	clean, err := t.checkLocked(t.life, "mkdir", name)
	if err != nil {
		return err
	}
	if _, err := t.lookupLocked("mkdir", clean); err == nil {
		return pathErr("mkdir", name, fs.ErrExist)
	}
	dir, base, err := t.parentLocked("mkdir", clean)
	if err != nil {
		return err
	}
	t.setEntryLocked(dir, base, newNode(fs.ModeDir|perm.Perm()))
	return nil
}

// Rename implements FS.
func (t *tree) Rename(oldname, newname string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	from, err := t.checkLocked(t.life, "rename", oldname)
	if err != nil {
		return err
	}
	to, err := t.checkLocked(t.life, "rename", newname)
	if err != nil {
		return err
	}
	fromDir, fromBase, err := t.parentLocked("rename", from)
	if err != nil {
		return err
	}
	n, ok := fromDir.entries[fromBase]
	if !ok {
		return pathErr("rename", oldname, fs.ErrNotExist)
	}
	toDir, toBase, err := t.parentLocked("rename", to)
	if err != nil {
		return err
	}
	if n.mode.IsDir() && (to == from || strings.HasPrefix(to, from+"/")) {
		return pathErr("rename", newname, fs.ErrInvalid)
	}
	if old, ok := toDir.entries[toBase]; ok {
		switch {
		case old == n:
			return nil
		case old.mode.IsDir() && !n.mode.IsDir():
			return pathErr("rename", newname, errIsDir)
		case !old.mode.IsDir() && n.mode.IsDir():
			return pathErr("rename", newname, errNotDir)
		case old.mode.IsDir() && len(old.entries) > 0:
			return pathErr("rename", newname, errNotEmpty)
		}
	}
	t.renameLocked(fromDir, fromBase, toDir, toBase, n)
	return nil
}

// Remove implements FS.
func (t *tree) Remove(name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	clean, err := t.checkLocked(t.life, "remove", name)
	if err != nil {
		return err
	}
	dir, base, err := t.parentLocked("remove", clean)
	if err != nil {
		return err
	}
	n, ok := dir.entries[base]
	if !ok {
		return pathErr("remove", name, fs.ErrNotExist)
	}
	if n.mode.IsDir() && len(n.entries) > 0 {
		return pathErr("remove", name, errNotEmpty)
	}
	t.dropEntryLocked(dir, base)
	return nil
}

// ReadDir implements FS.
func (t *tree) ReadDir(name string) ([]fs.DirEntry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	clean, err := t.checkLocked(t.life, "readdir", name)
	if err != nil {
		return nil, err
	}
	n, err := t.lookupLocked("readdir", clean)
	if err != nil {
		return nil, err
	}
	if !n.mode.IsDir() {
		return nil, pathErr("readdir", name, errNotDir)
	}
	entries := make([]fs.DirEntry, 0, len(n.entries))
	for base, child := range n.entries {
		entries = append(entries, fs.FileInfoToDirEntry(child.info(base)))
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

// Stat implements FS.
func (t *tree) Stat(name string) (fs.FileInfo, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	clean, err := t.checkLocked(t.life, "stat", name)
	if err != nil {
		return nil, err
	}
	n, err := t.lookupLocked("stat", clean)
	if err != nil {
		return nil, err
	}
	return n.info(path.Base(clean)), nil
}

// SyncDir implements FS.
func (t *tree) SyncDir(name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	clean, err := t.checkLocked(t.life, "syncdir", name)
	if err != nil {
		return err
	}
	n, err := t.lookupLocked("syncdir", clean)
	if err != nil {
		return err
	}
	if !n.mode.IsDir() {
		return pathErr("syncdir", name, errNotDir)
	}
	t.syncDirLocked(n)
	return nil
}

// Usage implements FS. Without a capacity it reports one of 1 TiB.
func (t *tree) Usage() (capacity, free int64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.life.ended {
		return 0, 0, pathErr("statfs", ".", fs.ErrClosed)
	}
	capacity = t.capacity
	if capacity == 0 {
		capacity = 1 << 40
	}
	return capacity, max(0, capacity-t.used), nil
}

// memLock is a held lock.
type memLock struct {
	tree *tree
	name string
}

// Lock implements FS.
func (t *tree) Lock(name string) (Unlocker, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, err := t.openLocked(t.life, name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	f.(*memFile).closeLocked()
	clean := path.Clean(name)
	if t.locks[clean] != nil {
		return nil, pathErr("lock", name, ErrLocked)
	}
	l := &memLock{tree: t, name: clean}
	t.locks[clean] = l
	return l, nil
}

// Close implements Unlocker.
func (l *memLock) Close() error {
	l.tree.mu.Lock()
	defer l.tree.mu.Unlock()
	if l.tree.locks[l.name] != l {
		return fs.ErrClosed
	}
	delete(l.tree.locks, l.name)
	return nil
}

// memFile is an open file of a tree.
type memFile struct {
	tree     *tree
	life     *life
	node     *node
	name     string
	writable bool
	closed   bool
}

func (f *memFile) checkLocked(op string, write bool) error {
	switch {
	case f.closed || f.life.ended:
		return pathErr(op, f.name, fs.ErrClosed)
	case write && !f.writable:
		return pathErr(op, f.name, fs.ErrPermission)
	}
	return nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	if err := f.checkLocked("read", false); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, pathErr("read", f.name, fs.ErrInvalid)
	}
	n := f.node.img.readAt(p, off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	return f.writeLocked(p, off)
}

func (f *memFile) WriteVAt(bufs [][]byte, off int64) (int, error) {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	written := 0
	for _, b := range bufs {
		n, err := f.writeLocked(b, off+int64(written))
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

func (f *memFile) writeLocked(p []byte, off int64) (int, error) {
	if err := f.checkLocked("write", true); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, pathErr("write", f.name, fs.ErrInvalid)
	}
	return f.tree.writeLocked(f.node, f.name, p, off)
}

func (f *memFile) Truncate(size int64) error {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	if err := f.checkLocked("truncate", true); err != nil {
		return err
	}
	if size < 0 {
		return pathErr("truncate", f.name, fs.ErrInvalid)
	}
	f.tree.truncateLocked(f.node, size)
	return nil
}

func (f *memFile) Sync() error {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	if err := f.checkLocked("sync", false); err != nil {
		return err
	}
	f.tree.syncLocked(f.node)
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	if err := f.checkLocked("size", false); err != nil {
		return 0, err
	}
	return f.node.img.size, nil
}

func (f *memFile) Close() error {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	if err := f.checkLocked("close", false); err != nil {
		return err
	}
	f.closeLocked()
	return nil
}

func (f *memFile) closeLocked() {
	f.closed = true
	f.node.opens--
	f.tree.releaseLocked(f.node)
}
