package fusefs_test

import (
	"bytes"
	"context"
	"strconv"
	"sync"
	"syscall"

	"dfs/fusefs"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// fake is a Backend in memory: one directory of numbered empty files, "0000000" and on. Files that are created or removed by name
// come and go; there is nothing to read or write. It exists for listings of a size that would take long to make on a cluster.
type fake struct {
	mu      sync.Mutex
	n       int             // guarded by mu: numbered files that exist from the start
	removed map[string]bool // guarded by mu
	added   map[string]bool // guarded by mu
}

func newFake(entries string) fusefs.Backend {
	n, err := strconv.Atoi(entries)
	if err != nil {
		panic(err)
	}
	return &fake{n: n, removed: map[string]bool{}, added: map[string]bool{}}
}

func fakeName(i int) string { return "n-" + pad(i) }

func pad(i int) string { return string(strconv.AppendInt(nil, int64(i)+10_000_000, 10)) }

func (f *fake) hasLocked(name string) bool {
	if f.added[name] {
		return true
	}
	if f.removed[name] || len(name) != 10 || name[:2] != "n-" {
		return false
	}
	i, err := strconv.Atoi(name[2:])
	return err == nil && i >= 10_000_000 && i < 10_000_000+f.n
}

func fakeInode(name []byte) dfs.InodeID {
	h := uint64(1469598103934665603)
	for _, c := range name {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return dfs.InodeID(h | 1<<20)
}

func fakeDir() fusefs.Attr {
	return fusefs.Attr{Inode: dfs.RootInode, Mode: syscall.S_IFDIR | 0o1777, Nlink: 2}
}

func fakeFile(name []byte) fusefs.Attr {
	return fusefs.Attr{Inode: fakeInode(name), Mode: syscall.S_IFREG | 0o644, Nlink: 1}
}

func (f *fake) Lookup(_ context.Context, _ fusefs.Caller, _ dfs.InodeID, name []byte) (fusefs.Attr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if string(name) == ".." {
		return fakeDir(), nil
	}
	if !f.hasLocked(string(name)) {
		return fusefs.Attr{}, dfserr.ErrNotExist
	}
	return fakeFile(name), nil
}

func (f *fake) GetAttr(_ context.Context, inode dfs.InodeID) (fusefs.Attr, error) {
	if inode == dfs.RootInode {
		return fakeDir(), nil
	}
	return fusefs.Attr{Inode: inode, Mode: syscall.S_IFREG | 0o644, Nlink: 1}, nil
}

func (f *fake) Lease(dfs.InodeID) uint64 { return 0 }

func (f *fake) GetAttrShared(ctx context.Context, inode dfs.InodeID) (fusefs.Attr, bool, error) {
	a, err := f.GetAttr(ctx, inode)
	return a, false, err
}

func (f *fake) Make(_ context.Context, _ fusefs.Caller, _ dfs.InodeID, name []byte, _ fusefs.NewNode) (fusefs.Attr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hasLocked(string(name)) {
		return fusefs.Attr{}, dfserr.ErrExist
	}
	f.added[string(name)] = true
	return fakeFile(name), nil
}

func (f *fake) Remove(_ context.Context, _ fusefs.Caller, _ dfs.InodeID, name []byte, _ bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.hasLocked(string(name)) {
		return dfserr.ErrNotExist
	}
	delete(f.added, string(name))
	f.removed[string(name)] = true
	return nil
}

// ReadDir merges the numbered names with those added.
func (f *fake) ReadDir(_ context.Context, _ fusefs.Caller, _ dfs.InodeID, after []byte, limit int) ([]fusefs.DirEntry, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := func(after string) string {
		best := ""
		for name := range f.added {
			if name > after && (best == "" || name < best) {
				best = name
			}
		}
		i := 0
		if after >= fakeName(0) {
			i = f.n
			if len(after) >= 10 && after[:2] == "n-" {
				if v, err := strconv.Atoi(after[2:10]); err == nil {
					i = v - 10_000_000 + 1
				}
			}
		}
		for ; i < f.n; i++ {
			if name := fakeName(i); name > after && !f.removed[name] {
				if best == "" || name < best {
					best = name
				}
				break
			}
		}
		return best
	}
	var out []fusefs.DirEntry
	at := string(bytes.Clone(after))
	for len(out) < limit {
		name := next(at)
		if name == "" {
			return out, true, nil
		}
		out = append(out, fusefs.DirEntry{Name: []byte(name), Inode: fakeInode([]byte(name)), Mode: syscall.S_IFREG})
		at = name
	}
	return out, false, nil
}

func (f *fake) StatFS(context.Context) (fusefs.Totals, error) {
	return fusefs.Totals{Capacity: 1 << 40, Free: 1 << 39, Inodes: 5}, nil
}

// The rest is not there.

func (f *fake) SetAttr(ctx context.Context, _ fusefs.Caller, inode dfs.InodeID, _ fusefs.Change) (fusefs.Attr, error) {
	return f.GetAttr(ctx, inode)
}

func (f *fake) Truncate(ctx context.Context, _ fusefs.Caller, inode dfs.InodeID, _ int64, _ bool) (fusefs.Attr, error) {
	return f.GetAttr(ctx, inode)
}

func (f *fake) Create(context.Context, fusefs.Caller, dfs.InodeID, []byte, uint32, bool, bool) (fusefs.File, fusefs.Attr, error) {
	return nil, fusefs.Attr{}, dfserr.ErrUnsupported
}

func (f *fake) Open(context.Context, fusefs.Caller, dfs.InodeID, bool, bool) (fusefs.File, fusefs.Attr, error) {
	return nil, fusefs.Attr{}, dfserr.ErrUnsupported
}

func (f *fake) Rename(context.Context, fusefs.Caller, dfs.InodeID, []byte, dfs.InodeID, []byte) error {
	return dfserr.ErrUnsupported
}

func (f *fake) Link(context.Context, fusefs.Caller, dfs.InodeID, dfs.InodeID, []byte) (fusefs.Attr, error) {
	return fusefs.Attr{}, dfserr.ErrUnsupported
}

func (f *fake) GetXattr(context.Context, fusefs.Caller, dfs.InodeID, string) ([]byte, error) {
	return nil, dfserr.ErrNoAttr
}

func (f *fake) ListXattr(context.Context, fusefs.Caller, dfs.InodeID) ([]string, error) {
	return nil, nil
}

func (f *fake) SetXattr(context.Context, fusefs.Caller, dfs.InodeID, string, []byte, bool, bool) error {
	return dfserr.ErrUnsupported
}

func (f *fake) RemoveXattr(context.Context, fusefs.Caller, dfs.InodeID, string) error {
	return dfserr.ErrUnsupported
}
