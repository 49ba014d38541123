package vfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// sectorSize is the unit that a disk writes atomically, in bytes.
const sectorSize = 512

// Crashable is an FS in memory that can lose power. It remembers, for each file, the contents at the last
// Sync and every write (cut at 512-byte sectors) and truncation since; for each directory, the entries at
// the last SyncDir and every change since. Crash keeps an arbitrary subset of those: sectors of one write
// independently of one another, a later write without an earlier one, a new length without the data (which then
// reads as zero), data without its length (which is then lost), a directory entry without the file's contents.
// A rename within one directory is atomic; one between two directories is atomic until one of them is synced.
//
// That is at least as bad as what ext4, XFS and Btrfs do with default mount options (ALICE, OSDI'14), and
// it assumes of the disk that a sector is written wholly or not at all and that a flush is honoured.
type Crashable struct {
	*tree
}

// NewCrashable returns an empty Crashable of unlimited capacity.
func NewCrashable() *Crashable { return &Crashable{newTree(true)} }

// change is one write of at most a sector, or, with off < 0, a truncation to size.
type change struct {
	off  int64
	size int64
	data []byte
}

// dirChange is one atomic change to a directory: drop removes a name, set adds one.
type dirChange struct {
	op        int // changes of two directories that belong together have the same number
	dir       *node
	set, drop string // "" for none
	node      *node
}

// recordWrite remembers a write, cut at sectors, and the length it led to.
func (n *node) recordWrite(p []byte, off int64) {
	data := slices.Clone(p)
	for done := 0; done < len(data); {
		at := off + int64(done)
		end := min(len(data), done+int(sectorSize-at%sectorSize))
		n.pending = append(n.pending, change{off: at, data: data[done:end:end]})
		done = end
	}
	n.pending = append(n.pending, change{off: off + int64(len(data)), size: -1})
}

// extends reports whether the change only says that the file has become at least off bytes long.
func (c change) extends() bool { return c.size == -1 }

// apply carries out a change on an image in which everything before it has been carried out.
func (m *image) apply(c change) {
	switch {
	case c.off < 0:
		m.truncate(c.size)
	case c.extends():
		m.size = max(m.size, c.off)
	default:
		m.writeAt(c.data, c.off, always)
	}
}

// applyTo carries out a change on a directory's entries.
func (c dirChange) applyTo(entries map[string]*node) {
	if c.drop != "" && entries[c.drop] == c.node {
		delete(entries, c.drop)
	}
	if c.set != "" {
		entries[c.set] = c.node
	}
}

// Kill ends the process that uses the FS: its handles and locks stop working (fs.ErrClosed) and the returned
// FS shows everything that was written, still as durable or not as it was.
func (c *Crashable) Kill() *Crashable {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.tree
	fresh := newTree(true)
	fresh.root, fresh.capacity, fresh.nextOp = old.root, old.capacity, old.nextOp
	old.life.ended = true
	fresh.walkLocked(func(n *node) {
		n.opens = 0
		fresh.used += n.img.allocated() * pageSize
	})
	old.root = newNode(old.root.mode)
	return &Crashable{fresh}
}

// Crash cuts the power: every handle and lock stops working (fs.ErrClosed) and the returned FS holds what
// the disk holds afterwards, chosen by rng among everything that may be. All of it is durable.
func (c *Crashable) Crash(rng *rand.Rand) *Crashable {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.crashLocked(func() bool { return rng.IntN(2) == 0 }, rng)
}

// CrashKeepNothing cuts the power and keeps only what is durable: the most forgetful outcome of Crash.
func (c *Crashable) CrashKeepNothing() *Crashable {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.crashLocked(func() bool { return false }, nil)
}

func (c *Crashable) crashLocked(coin func() bool, rng *rand.Rand) *Crashable {
	old := c.tree
	old.life.ended = true
	fresh := newTree(true)
	fresh.capacity = old.capacity
	decided := map[int]bool{} // by number of the directory operation
	keepOp := func(op int) bool {
		keep, ok := decided[op]
		if !ok {
			keep = coin()
			decided[op] = keep
		}
		return keep
	}
	copies := map[*node]*node{}
	var copyNode func(n *node) *node
	copyNode = func(n *node) *node {
		if done := copies[n]; done != nil {
			return done
		}
		m := newNode(n.mode)
		m.mtime = n.mtime
		copies[n] = m
		if n.mode.IsDir() {
			entries := maps.Clone(n.durableEntries)
			for _, ch := range n.pendingDir {
				if keepOp(ch.op) {
					ch.applyTo(entries)
				}
			}
			for _, base := range slices.Sorted(maps.Keys(entries)) {
				child := copyNode(entries[base])
				child.links++
				m.entries[base], m.durableEntries[base] = child, child
			}
			return m
		}
		m.img = n.afterCrash(coin, rng)
		m.durable = m.img.clone()
		fresh.used += m.img.allocated() * pageSize
		return m
	}
	fresh.root = copyNode(old.root)
	return &Crashable{fresh}
}

// afterCrash returns what the disk holds of a file: the durable contents and some of the changes. With a
// source of randomness, each file is treated evenly, or favours keeping or losing, so that long runs of
// changes are also kept and lost whole.
func (n *node) afterCrash(coin func() bool, rng *rand.Rand) image {
	if rng != nil {
		share := [...]int{0, 5, 50, 95, 100}[rng.IntN(5)]
		coin = func() bool { return rng.IntN(100) < share }
	}
	img := n.durable.clone()
	var sizes []int // indexes in pending of kept changes of length, which data does not bring about itself
	for i, ch := range n.pending {
		if (ch.off < 0 || ch.extends()) && coin() {
			sizes = append(sizes, i)
		}
	}
	size := img.size
	next := 0
	for i, ch := range n.pending {
		switch {
		case next < len(sizes) && sizes[next] == i:
			next++
			if ch.extends() {
				size = max(size, ch.off)
			} else {
				img.truncate(ch.size)
				size = ch.size
			}
		case ch.off >= 0 && !ch.extends() && coin():
			img.apply(ch)
		}
		// Data beyond the length is on the disk but not in the file, unless a later length covers it.
		img.size = max(img.size, size)
	}
	img.truncate(size)
	return img
}

// clone returns a deep copy.
func (m *image) clone() image {
	c := image{size: m.size, pages: make([]*[pageSize]byte, len(m.pages))}
	for i, p := range m.pages {
		if p != nil {
			page := *p
			c.pages[i] = &page
		}
	}
	return c
}

// walkLocked visits each node that a name leads to once.
func (t *tree) walkLocked(visit func(*node)) {
	seen := map[*node]bool{}
	var walk func(n *node)
	walk = func(n *node) {
		if seen[n] {
			return
		}
		seen[n] = true
		visit(n)
		for _, child := range n.entries {
			walk(child)
		}
	}
	walk(t.root)
}

// DropSynced makes the FS forget, as a failing disk does, that file name was synced: the durable contents
// become empty and a power loss keeps nothing of it. It is the effect of lost writes below a lying cache.
func (c *Crashable) DropSynced(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.lookupLocked("dropsynced", name)
	if err != nil {
		return err
	}
	n.durable, n.pending = image{}, nil
	return nil
}

// Corrupt applies damage to the stored bytes of file name, durably, as bit rot does: it is given the contents
// and changes them in place.
func (t *tree) Corrupt(name string, damage func(contents []byte)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.lookupLocked("corrupt", name)
	if err != nil {
		return err
	}
	buf := make([]byte, n.img.size)
	n.img.readAt(buf, 0)
	damage(buf)
	n.img.writeAt(buf, 0, always)
	if t.track {
		n.durable, n.pending = n.img.clone(), nil
	}
	return nil
}
