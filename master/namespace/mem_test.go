package namespace

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"dfs/internal/dfs"
)

// memTxn is a Txn over Go maps. Errors roll back through run.
type memTxn struct {
	inodes   map[dfs.InodeID]Inode
	dentries map[dfs.InodeID]map[string]Dentry
	xattrs   map[dfs.InodeID]map[string]string
	orphans  map[dfs.InodeID]Orphan
	totals   Totals
}

func newMem() *memTxn {
	return &memTxn{
		inodes: map[dfs.InodeID]Inode{}, dentries: map[dfs.InodeID]map[string]Dentry{},
		xattrs: map[dfs.InodeID]map[string]string{}, orphans: map[dfs.InodeID]Orphan{},
	}
}

// clone copies the state.
func (m *memTxn) clone() *memTxn {
	c := newMem()
	c.inodes, c.orphans, c.totals = maps.Clone(m.inodes), maps.Clone(m.orphans), m.totals
	for id, d := range m.dentries {
		c.dentries[id] = maps.Clone(d)
	}
	for id, x := range m.xattrs {
		c.xattrs[id] = maps.Clone(x)
	}
	return c
}

func (m *memTxn) Inode(id dfs.InodeID) (Inode, bool, error) {
	n, ok := m.inodes[id]
	return n, ok, nil
}

func (m *memTxn) Dentry(dir dfs.InodeID, name []byte) (Dentry, bool, error) {
	d, ok := m.dentries[dir][string(name)]
	return d, ok, nil
}

func (m *memTxn) Dentries(dir dfs.InodeID, after []byte, fn func(name []byte, d Dentry) bool) error {
	for _, name := range slices.Sorted(maps.Keys(m.dentries[dir])) {
		if name > string(after) && !fn([]byte(name), m.dentries[dir][name]) {
			break
		}
	}
	return nil
}

func (m *memTxn) Xattr(id dfs.InodeID, name []byte) ([]byte, bool, error) {
	v, ok := m.xattrs[id][string(name)]
	return []byte(v), ok, nil
}

func (m *memTxn) XattrNames(id dfs.InodeID, fn func(name []byte) bool) error {
	for _, name := range slices.Sorted(maps.Keys(m.xattrs[id])) {
		if !fn([]byte(name)) {
			break
		}
	}
	return nil
}

func (m *memTxn) SetInode(id dfs.InodeID, n Inode) { m.inodes[id] = n }
func (m *memTxn) DeleteInode(id dfs.InodeID)       { delete(m.inodes, id) }
func (m *memTxn) SetDentry(dir dfs.InodeID, name []byte, d Dentry) {
	if m.dentries[dir] == nil {
		m.dentries[dir] = map[string]Dentry{}
	}
	m.dentries[dir][string(name)] = d
}

func (m *memTxn) DeleteDentry(dir dfs.InodeID, name []byte) {
	delete(m.dentries[dir], string(name))
	if len(m.dentries[dir]) == 0 {
		delete(m.dentries, dir)
	}
}

func (m *memTxn) SetXattr(id dfs.InodeID, name, value []byte) {
	if m.xattrs[id] == nil {
		m.xattrs[id] = map[string]string{}
	}
	m.xattrs[id][string(name)] = string(value)
}

func (m *memTxn) DeleteXattr(id dfs.InodeID, name []byte) {
	delete(m.xattrs[id], string(name))
	if len(m.xattrs[id]) == 0 {
		delete(m.xattrs, id)
	}
}

func (m *memTxn) Orphan(id dfs.InodeID) (Orphan, bool, error) {
	o, ok := m.orphans[id]
	return o, ok, nil
}
func (m *memTxn) SetOrphan(id dfs.InodeID, o Orphan) { m.orphans[id] = o }
func (m *memTxn) DeleteOrphan(id dfs.InodeID)        { delete(m.orphans, id) }
func (m *memTxn) Totals() (Totals, error)            { return m.totals, nil }
func (m *memTxn) SetTotals(t Totals)                 { m.totals = t }

// world is a tree with a caller and a clock; run makes each operation all or nothing.
type world struct {
	t   testing.TB
	m   *memTxn
	env Env
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, m: newMem(), env: Env{Now: 1000, Index: 1}}
	if err := Format(w.m, w.env, 0, 0); err != nil {
		t.Fatal(err)
	}
	return w
}

// run executes one operation as the current caller.
func (w *world) run(fn func(tx Txn, env Env) error) error {
	w.env.Now += 1000
	w.env.Index++
	tx := w.m.clone()
	err := fn(tx, w.env)
	if err == nil {
		w.m = tx
	}
	return err
}

// invariants returns the first violation of what the package comment promises.
func (m *memTxn) invariants() error {
	links := map[dfs.InodeID]uint32{}
	parent := map[dfs.InodeID]dfs.InodeID{}
	for dir, entries := range m.dentries {
		n, ok := m.inodes[dir]
		if !ok || !n.IsDir() {
			return fmt.Errorf("names in %d, which is no directory", dir)
		}
		var subdirs int64
		for name, d := range entries {
			c, ok := m.inodes[d.Inode]
			if !ok || c.Type() != d.Type {
				return fmt.Errorf("name %q in %d: inode %d exists: %v, type %o, dentry says %o", name, dir, d.Inode, ok, c.Type(), d.Type)
			}
			links[d.Inode]++
			if c.IsDir() {
				subdirs++
				parent[d.Inode] = dir
			}
		}
		if n.Entries != int64(len(entries)) || n.Subdirs != subdirs {
			return fmt.Errorf("directory %d counts %d entries and %d directories, has %d and %d", dir, n.Entries, n.Subdirs, len(entries), subdirs)
		}
	}
	var t Totals
	t.NextInode = m.totals.NextInode
	for id, n := range m.inodes {
		t.Inodes++
		o, orphan := m.orphans[id]
		if orphan != (n.Nlink == 0) {
			return fmt.Errorf("inode %d has nlink %d and orphan record: %v", id, n.Nlink, orphan)
		}
		if orphan {
			t.Orphans++
			if o.Subtree {
				t.Subtrees++
			}
		}
		if n.IsDir() {
			t.Directories++
			switch {
			case len(m.dentries[id]) == 0 && (n.Entries != 0 || n.Subdirs != 0):
				return fmt.Errorf("directory %d counts %d entries, has none", id, n.Entries)
			case id == dfs.RootInode:
				if n.Parent != id || links[id] != 0 {
					return fmt.Errorf("the root has parent %d and %d names", n.Parent, links[id])
				}
			case orphan && links[id] != 0, !orphan && links[id] != 1:
				return fmt.Errorf("directory %d has %d names", id, links[id])
			case !orphan && parent[id] != n.Parent:
				return fmt.Errorf("directory %d has its name in %d, and parent %d", id, parent[id], n.Parent)
			}
			if !orphan && n.Nlink != uint32(n.Subdirs)+2 {
				return fmt.Errorf("directory %d has nlink %d with %d directories", id, n.Nlink, n.Subdirs)
			}
		} else {
			t.Bytes += fileBytes(&n)
			if links[id] != n.Nlink {
				return fmt.Errorf("inode %d has nlink %d and %d names", id, n.Nlink, links[id])
			}
		}
		if id >= m.totals.NextInode {
			return fmt.Errorf("inode %d is not below the next id %d", id, m.totals.NextInode)
		}
		var bytes int64
		for name, v := range m.xattrs[id] {
			bytes += int64(len(name)+len(v)) + xattrOverhead
		}
		if int(n.Xattrs) != len(m.xattrs[id]) || n.XattrBytes != bytes {
			return fmt.Errorf("inode %d counts %d attributes, has %d", id, n.Xattrs, len(m.xattrs[id]))
		}
	}
	for id := range m.xattrs {
		if _, ok := m.inodes[id]; !ok {
			return fmt.Errorf("attributes of inode %d, which does not exist", id)
		}
	}
	for id := range m.orphans {
		if _, ok := m.inodes[id]; !ok {
			return fmt.Errorf("orphan %d does not exist", id)
		}
	}
	for id, n := range m.inodes { // no cycles
		at := id
		for depth := 0; n.IsDir() && at != dfs.RootInode; depth++ {
			if depth > len(m.inodes) {
				return fmt.Errorf("directory %d is in a cycle", id)
			}
			p, ok := m.inodes[at]
			if !ok || p.Nlink == 0 {
				break
			}
			at = p.Parent
		}
	}
	if t != m.totals {
		return fmt.Errorf("totals are %+v, counted %+v", m.totals, t)
	}
	return nil
}

// reclaimAll reclaims orphans in pieces of limit names until none is left.
func (w *world) reclaimAll(limit int) error {
	for len(w.m.orphans) > 0 {
		id := slices.Sorted(maps.Keys(w.m.orphans))[0]
		err := w.run(func(tx Txn, env Env) error {
			_, empty, err := ReclaimEntries(tx, env, id, limit, 1<<20)
			if err != nil || !empty {
				return err
			}
			_, err = Drop(tx, id)
			return err
		})
		if err != nil {
			return err
		}
		if err := w.m.invariants(); err != nil {
			return err
		}
	}
	return nil
}
