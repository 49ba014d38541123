package vfs

import (
	"io/fs"
	"time"
)

// image is the contents of a file: pages that were never written are nil and read as zero.
type image struct {
	size  int64
	pages []*[pageSize]byte
}

// readAt copies what the image holds at off into p.
func (m *image) readAt(p []byte, off int64) int {
	if off >= m.size {
		return 0
	}
	p = p[:min(int64(len(p)), m.size-off)]
	for done := 0; done < len(p); {
		at := off + int64(done)
		dst := p[done:min(len(p), done+int(pageSize-at%pageSize))]
		if page := m.page(at); page != nil {
			copy(dst, page[at%pageSize:])
		} else {
			clear(dst)
		}
		done += len(dst)
	}
	return len(p)
}

// page returns the page that holds offset off, nil when there is none.
func (m *image) page(off int64) *[pageSize]byte {
	if i := off / pageSize; i < int64(len(m.pages)) {
		return m.pages[i]
	}
	return nil
}

// writeAt writes p at off. alloc is asked before each new page; when it says no, the write ends there.
func (m *image) writeAt(p []byte, off int64, alloc func() bool) int {
	for done := 0; done < len(p); {
		at := off + int64(done)
		for int64(len(m.pages)) <= at/pageSize {
			m.pages = append(m.pages, nil)
		}
		if m.pages[at/pageSize] == nil {
			if !alloc() {
				return done
			}
			m.pages[at/pageSize] = new([pageSize]byte)
		}
		done += copy(m.pages[at/pageSize][at%pageSize:], p[done:])
		m.size = max(m.size, off+int64(done))
	}
	return len(p)
}

// truncate sets the size and returns how many pages that freed.
func (m *image) truncate(size int64) (freed int64) {
	if size < m.size {
		keep := (size + pageSize - 1) / pageSize
		for i := keep; i < int64(len(m.pages)); i++ {
			if m.pages[i] != nil {
				m.pages[i] = nil
				freed++
			}
		}
		m.pages = m.pages[:min(keep, int64(len(m.pages)))]
		if page := m.page(size); page != nil {
			clear(page[size%pageSize:])
		}
	}
	m.size = size
	return freed
}

// allocated counts the image's pages.
func (m *image) allocated() (n int64) {
	for _, p := range m.pages {
		if p != nil {
			n++
		}
	}
	return n
}

func always() bool { return true }

// writeLocked writes to a file, as far as the capacity allows.
func (t *tree) writeLocked(n *node, name string, p []byte, off int64) (int, error) {
	done := n.img.writeAt(p, off, func() bool {
		if t.capacity > 0 && t.used+pageSize > t.capacity {
			return false
		}
		t.used += pageSize
		return true
	})
	n.mtime = time.Now()
	if t.track && done > 0 {
		n.recordWrite(p[:done], off)
	}
	if done < len(p) {
		return done, pathErr("write", name, errNoSpace)
	}
	return done, nil
}

func (t *tree) truncateLocked(n *node, size int64) {
	if size == n.img.size {
		return
	}
	t.used -= n.img.truncate(size) * pageSize
	n.mtime = time.Now()
	if t.track {
		n.pending = append(n.pending, change{size: size, off: -1})
	}
}

// syncLocked makes the contents durable.
func (t *tree) syncLocked(n *node) {
	for _, c := range n.pending {
		n.durable.apply(c)
	}
	n.pending = nil
}

// setEntryLocked names n in dir.
func (t *tree) setEntryLocked(dir *node, base string, n *node) {
	t.recordLocked(dirChange{dir: dir, set: base, node: n})
	old := dir.entries[base]
	dir.entries[base] = n
	n.links++
	t.unlinkLocked(old)
}

// dropEntryLocked removes a name from dir.
func (t *tree) dropEntryLocked(dir *node, base string) {
	t.recordLocked(dirChange{dir: dir, drop: base, node: dir.entries[base]})
	old := dir.entries[base]
	delete(dir.entries, base)
	t.unlinkLocked(old)
}

func (t *tree) renameLocked(fromDir *node, fromBase string, toDir *node, toBase string, n *node) {
	if fromDir == toDir {
		t.recordLocked(dirChange{dir: fromDir, set: toBase, drop: fromBase, node: n})
	} else {
		t.nextOp++
		op := t.nextOp
		t.recordLocked(dirChange{dir: toDir, set: toBase, node: n, op: op})
		t.recordLocked(dirChange{dir: fromDir, drop: fromBase, node: n, op: op})
	}
	old := toDir.entries[toBase]
	toDir.entries[toBase] = n
	delete(fromDir.entries, fromBase)
	t.unlinkLocked(old)
}

// recordLocked remembers a change to a directory until SyncDir.
func (t *tree) recordLocked(c dirChange) {
	if !t.track {
		return
	}
	if c.op == 0 {
		t.nextOp++
		c.op = t.nextOp
	}
	c.dir.pendingDir = append(c.dir.pendingDir, c)
}

// unlinkLocked notes that a name of n is gone.
func (t *tree) unlinkLocked(n *node) {
	if n != nil {
		n.links--
		t.releaseLocked(n)
	}
}

// releaseLocked gives back the space of a file that nothing names or has open. What a power loss could
// bring back is kept by the durable image, which does not count as used.
func (t *tree) releaseLocked(n *node) {
	if n.links > 0 || n.opens > 0 || n.mode.IsDir() {
		return
	}
	t.used -= n.img.allocated() * pageSize
	n.img = image{size: n.img.size}
}

func (t *tree) syncDirLocked(dir *node) {
	for _, c := range dir.pendingDir {
		c.applyTo(dir.durableEntries)
	}
	dir.pendingDir = nil
}

// info is the fs.FileInfo of a node.
type info struct {
	name  string
	size  int64
	mode  fs.FileMode
	mtime time.Time
}

func (n *node) info(name string) fs.FileInfo {
	return info{name: name, size: n.img.size, mode: n.mode, mtime: n.mtime}
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) Mode() fs.FileMode  { return i.mode }
func (i info) ModTime() time.Time { return i.mtime }
func (i info) IsDir() bool        { return i.mode.IsDir() }
func (i info) Sys() any           { return nil }
