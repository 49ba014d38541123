package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// fakeFS is a whole cluster in memory: a working remote for tests of the shell. Faults are injected by hook, which is
// called before every operation with its name and path.
type fakeFS struct {
	mu      sync.Mutex
	root    *fakeNode
	next    uint64
	now     func() time.Time
	uid     uint32
	gid     uint32
	hook    func(op, path string) error
	report  clusterReport
	fsck    fsckTotals
	found   []finding
	totals  fsTotals
	renamed []string
}

type fakeNode struct {
	inode        uint64
	mode         fs.FileMode
	uid, gid     uint32
	nlink        uint32
	atime, mtime time.Time
	data         []byte
	target       string
	repl         int
	children     map[string]*fakeNode
	chunks       []chunkInfo
}

func newFakeFS(now func() time.Time) *fakeFS {
	f := &fakeFS{now: now, next: 1}
	f.root = f.node(fs.ModeDir | 0o755)
	return f
}

func (f *fakeFS) node(mode fs.FileMode) *fakeNode {
	n := &fakeNode{inode: f.next, mode: mode, uid: f.uid, gid: f.gid, nlink: 1, atime: f.now(), mtime: f.now(), repl: dfs.DefaultReplication}
	f.next++
	if mode.IsDir() {
		n.children = map[string]*fakeNode{}
	}
	return n
}

// begin runs the hook and takes the lock.
func (f *fakeFS) begin(ctx context.Context, op, path string) (func(), error) {
	if f.hook != nil {
		if err := f.hook(op, path); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, &fs.PathError{Op: op, Path: path, Err: err}
	}
	f.mu.Lock()
	return f.mu.Unlock, nil
}

func fakeErr(op, path string, sentinel error) error {
	return &fs.PathError{Op: op, Path: path, Err: dfserr.Errorf(sentinel, "fake %s", op)}
}

func (f *fakeFS) walk(path string, follow bool, depth int) (*fakeNode, error) {
	if depth > dfs.SymlinkDepth {
		return nil, dfserr.ErrLoop
	}
	stack := []*fakeNode{f.root}
	names, err := dfs.SplitPath([]byte(path))
	if err != nil {
		return nil, err
	}
	at := ""
	for i, b := range names {
		name := string(b)
		dir := stack[len(stack)-1]
		if !dir.mode.IsDir() {
			return nil, dfserr.ErrNotDir
		}
		if name == ".." {
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
			continue
		}
		n := dir.children[name]
		if n == nil {
			return nil, dfserr.ErrNotExist
		}
		if n.mode&fs.ModeSymlink != 0 && (follow || i < len(names)-1) {
			target := n.target
			if !strings.HasPrefix(target, "/") {
				target = at + "/" + target
			}
			if n, err = f.walk(target, true, depth+1); err != nil {
				return nil, err
			}
		}
		at += "/" + name
		stack = append(stack, n)
	}
	return stack[len(stack)-1], nil
}

func (f *fakeFS) parent(path string) (*fakeNode, string, error) {
	dir, base, err := dfs.SplitDirBase(path)
	if err != nil {
		return nil, "", err
	}
	n, err := f.walk(dir, true, 0)
	if err == nil && !n.mode.IsDir() {
		err = dfserr.ErrNotDir
	}
	return n, base, err
}

func (n *fakeNode) info(name string) fileInfo {
	i := fileInfo{
		Name: name, Inode: n.inode, Mode: n.mode, UID: n.uid, GID: n.gid, Nlink: n.nlink, ATime: n.atime, MTime: n.mtime,
		Target: n.target, Size: int64(len(n.data)),
	}
	if n.mode.IsRegular() {
		i.ChunkSize, i.Replication, i.Inline = dfs.DefaultChunkSize, n.repl, len(n.data) <= dfs.InlineMax && n.chunks == nil
	}
	return i
}

func (f *fakeFS) URI() string  { return "dfs://127.0.0.1:7400" }
func (f *fakeFS) Close() error { return nil }

func (f *fakeFS) Stat(ctx context.Context, path string) (fileInfo, error) {
	return f.stat(ctx, path, true)
}

func (f *fakeFS) Lstat(ctx context.Context, path string) (fileInfo, error) {
	return f.stat(ctx, path, false)
}

func (f *fakeFS) stat(ctx context.Context, path string, follow bool) (fileInfo, error) {
	end, err := f.begin(ctx, "stat", path)
	if err != nil {
		return fileInfo{}, err
	}
	defer end()
	n, err := f.walk(path, follow, 0)
	if err != nil {
		return fileInfo{}, fakeErr("stat", path, err)
	}
	return n.info(path[strings.LastIndexByte(path, '/')+1:]), nil
}

func (f *fakeFS) ReadDir(ctx context.Context, path string, each func(fileInfo) error) error {
	end, err := f.begin(ctx, "readdir", path)
	if err != nil {
		return err
	}
	n, err := f.walk(path, true, 0)
	if err == nil && !n.mode.IsDir() {
		err = dfserr.ErrNotDir
	}
	var infos []fileInfo
	if err == nil {
		for name, c := range n.children {
			infos = append(infos, c.info(name))
		}
	}
	end()
	if err != nil {
		return fakeErr("readdir", path, err)
	}
	slices.SortFunc(infos, func(a, b fileInfo) int { return strings.Compare(a.Name, b.Name) })
	for _, i := range infos {
		if err := each(i); err != nil {
			return err
		}
	}
	return nil
}

// add makes a name.
func (f *fakeFS) add(ctx context.Context, op, path string, n func() *fakeNode) error {
	end, err := f.begin(ctx, op, path)
	if err != nil {
		return err
	}
	defer end()
	dir, base, err := f.parent(path)
	if err == nil && dir.children[base] != nil {
		err = dfserr.ErrExist
	}
	if err != nil {
		return fakeErr(op, path, err)
	}
	dir.children[base] = n()
	dir.mtime = f.now()
	return nil
}

func (f *fakeFS) Mkdir(ctx context.Context, path string, perm fs.FileMode) error {
	return f.add(ctx, "mkdir", path, func() *fakeNode { return f.node(fs.ModeDir | perm) })
}

func (f *fakeFS) MkdirAll(ctx context.Context, path string, perm fs.FileMode) error {
	at := ""
	for _, name := range strings.Split(strings.Trim(path, "/"), "/") {
		at += "/" + name
		if err := f.Mkdir(ctx, at, perm); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if i, err := f.Stat(ctx, path); err != nil || !i.Mode.IsDir() {
		return fakeErr("mkdir", path, dfserr.ErrNotDir)
	}
	return nil
}

func (f *fakeFS) Remove(ctx context.Context, path string) error { return f.remove(ctx, path, false) }

func (f *fakeFS) RemoveAll(ctx context.Context, path string) error { return f.remove(ctx, path, true) }

func (f *fakeFS) remove(ctx context.Context, path string, all bool) error {
	end, err := f.begin(ctx, "remove", path)
	if err != nil {
		return err
	}
	defer end()
	dir, base, err := f.parent(path)
	if err == nil {
		switch n := dir.children[base]; {
		case n == nil:
			err = dfserr.ErrNotExist
		case len(n.children) > 0 && !all:
			err = dfserr.ErrNotEmpty
		}
	}
	if err != nil {
		return fakeErr("remove", path, err)
	}
	dir.children[base].nlink--
	delete(dir.children, base)
	return nil
}

func (f *fakeFS) Rename(ctx context.Context, old, new string, replace bool) error {
	end, err := f.begin(ctx, "rename", old)
	if err != nil {
		return err
	}
	defer end()
	from, oldBase, err := f.parent(old)
	if err != nil {
		return fakeErr("rename", old, err)
	}
	to, newBase, err := f.parent(new)
	n := from.children[oldBase]
	switch {
	case err != nil:
	case n == nil:
		err = dfserr.ErrNotExist
	case to.children[newBase] != nil && !replace:
		err = dfserr.ErrExist
	case to.children[newBase] != nil && to.children[newBase].mode.IsDir() && !n.mode.IsDir():
		err = dfserr.ErrIsDir
	}
	if err != nil {
		return fakeErr("rename", old, err)
	}
	delete(from.children, oldBase)
	to.children[newBase] = n
	f.renamed = append(f.renamed, new)
	return nil
}

func (f *fakeFS) Link(ctx context.Context, old, new string) error {
	n, err := f.walk(old, false, 0)
	if err != nil {
		return fakeErr("link", old, err)
	}
	return f.add(ctx, "link", new, func() *fakeNode {
		n.nlink++
		return n
	})
}

func (f *fakeFS) Symlink(ctx context.Context, target, path string) error {
	return f.add(ctx, "symlink", path, func() *fakeNode {
		n := f.node(fs.ModeSymlink | 0o777)
		n.target = target
		return n
	})
}

// change applies do to the inode at path.
func (f *fakeFS) change(ctx context.Context, op, path string, follow bool, do func(*fakeNode) error) error {
	end, err := f.begin(ctx, op, path)
	if err != nil {
		return err
	}
	defer end()
	n, err := f.walk(path, follow, 0)
	if err == nil {
		err = do(n)
	}
	if err != nil {
		return fakeErr(op, path, err)
	}
	return nil
}

func (f *fakeFS) Chmod(ctx context.Context, path string, mode fs.FileMode) error {
	return f.change(ctx, "chmod", path, true, func(n *fakeNode) error {
		n.mode = n.mode.Type() | mode
		return nil
	})
}

func (f *fakeFS) Chown(ctx context.Context, path string, uid, gid int) error {
	return f.change(ctx, "chown", path, false, func(n *fakeNode) error {
		if uid >= 0 {
			n.uid = uint32(uid)
		}
		if gid >= 0 {
			n.gid = uint32(gid)
		}
		return nil
	})
}

func (f *fakeFS) Chtimes(ctx context.Context, path string, atime, mtime time.Time) error {
	return f.change(ctx, "chtimes", path, true, func(n *fakeNode) error {
		if !atime.IsZero() {
			n.atime = atime
		}
		if !mtime.IsZero() {
			n.mtime = mtime
		}
		return nil
	})
}

func (f *fakeFS) Truncate(ctx context.Context, path string, length int64) error {
	return f.change(ctx, "truncate", path, true, func(n *fakeNode) error {
		n.data = append(slices.Clone(n.data), make([]byte, max(0, length-int64(len(n.data))))...)[:length]
		return nil
	})
}

func (f *fakeFS) SetReplication(ctx context.Context, path string, count int) error {
	return f.change(ctx, "setrep", path, true, func(n *fakeNode) error {
		n.repl = count
		return nil
	})
}

type fakeReader struct {
	*bytes.Reader
	ctx  context.Context
	f    *fakeFS
	n    *fakeNode
	path string
}

func (r fakeReader) Read(p []byte) (int, error) {
	end, err := r.f.begin(r.ctx, "read", r.path)
	if err != nil {
		return 0, err
	}
	defer end()
	return r.Reader.Read(p)
}

func (r fakeReader) Close() error { return nil }

func (r fakeReader) Size(context.Context) (int64, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	return int64(len(r.n.data)), nil
}

func (r fakeReader) ReadAt(p []byte, off int64) (int, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	return bytes.NewReader(r.n.data).ReadAt(p, off)
}

func (f *fakeFS) Open(ctx context.Context, path string) (reader, error) {
	var r reader
	err := f.change(ctx, "open", path, true, func(n *fakeNode) error {
		if n.mode.IsDir() {
			return dfserr.ErrIsDir
		}
		r = fakeReader{bytes.NewReader(slices.Clone(n.data)), ctx, f, n, path}
		return nil
	})
	return r, err
}

type fakeWriter struct {
	ctx  context.Context
	f    *fakeFS
	n    *fakeNode
	path string
}

func (w *fakeWriter) Write(p []byte) (int, error) {
	end, err := w.f.begin(w.ctx, "write", w.path)
	if err != nil {
		return 0, err
	}
	defer end()
	w.n.data = append(w.n.data, p...)
	return len(p), nil
}

func (w *fakeWriter) Close() error {
	end, err := w.f.begin(w.ctx, "close", w.path)
	if err != nil {
		return err
	}
	end()
	return nil
}

func (w *fakeWriter) CloseAs(path string, replace bool) error {
	if err := w.Close(); err != nil {
		return err
	}
	return w.f.Rename(w.ctx, w.path, path, replace)
}

func (w *fakeWriter) Abandon() {}

func (f *fakeFS) Create(ctx context.Context, path string, perm fs.FileMode, _ bool) (writer, error) {
	var n *fakeNode
	err := f.add(ctx, "create", path, func() *fakeNode {
		n = f.node(perm)
		return n
	})
	if err != nil {
		return nil, err
	}
	return &fakeWriter{ctx, f, n, path}, nil
}

func (f *fakeFS) OpenAppend(ctx context.Context, path string) (writer, error) {
	var w writer
	err := f.change(ctx, "open", path, true, func(n *fakeNode) error {
		w = &fakeWriter{ctx, f, n, path}
		return nil
	})
	return w, err
}

func (f *fakeFS) WriteSmall(ctx context.Context, path string, data []byte, perm fs.FileMode, replace bool) error {
	if len(data) > dfs.InlineMax {
		return fmt.Errorf("WriteSmall of %d bytes", len(data))
	}
	err := f.add(ctx, "create", path, func() *fakeNode {
		n := f.node(perm)
		n.data = slices.Clone(data)
		return n
	})
	if replace && errors.Is(err, fs.ErrExist) {
		return f.change(ctx, "create", path, true, func(n *fakeNode) error {
			if n.mode.IsDir() {
				return dfserr.ErrIsDir
			}
			n.data = slices.Clone(data)
			return nil
		})
	}
	return err
}

func (f *fakeFS) StatFS(context.Context) (fsTotals, error) { return f.totals, nil }

func (f *fakeFS) Chunks(ctx context.Context, path string) ([]chunkInfo, error) {
	var chunks []chunkInfo
	err := f.change(ctx, "chunks", path, true, func(n *fakeNode) error {
		chunks = n.chunks
		return nil
	})
	return chunks, err
}

func (f *fakeFS) Report(context.Context) (clusterReport, error) { return f.report, nil }

func (f *fakeFS) Fsck(_ context.Context, _ string, each func(finding) error) (fsckTotals, error) {
	for _, x := range f.found {
		if err := each(x); err != nil {
			return fsckTotals{}, err
		}
	}
	return f.fsck, nil
}

// content returns the bytes of a file for tests.
func (f *fakeFS) content(path string) (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.walk(path, true, 0)
	if err != nil {
		return "", false
	}
	return string(n.data), true
}

// names lists every path, for tests.
func (f *fakeFS) names() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	var down func(at string, n *fakeNode)
	down = func(at string, n *fakeNode) {
		for name, c := range n.children {
			all = append(all, at+"/"+name)
			down(at+"/"+name, c)
		}
	}
	down("", f.root)
	slices.Sort(all)
	return all
}

var (
	_ remote      = (*fakeFS)(nil)
	_ io.ReaderAt = fakeReader{}
)
