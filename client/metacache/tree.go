package metacache

import (
	"container/list"
	"sync"
	"time"

	"dfs/internal/dfs"
)

// Tree remembers attributes of type A by inode, and what names in directories stand for or that they are absent, as far as the master has granted leases on them.
// Everything in it is true while it is trusted (Answered): whoever changes an inode has it dropped here first (Drop). The changes of its own client come in between
// Begin and End, and what they concern is not answered meanwhile.
//
// An answer of the master that was on its way while something about its inode changed is not stored: every call for one takes a Mark before it is sent, and the Put
// functions compare. The memory is bounded; the inodes used least recently are forgotten, which the master need not know. Safe for concurrent use.
type Tree[A any] struct {
	limit int
	trust time.Duration
	bare  func(A) bool

	mu      sync.Mutex
	until   time.Time                // guarded by mu: trusted before
	usedAt  time.Time                // guarded by mu: when something was last asked for
	clock   Mark                     // guarded by mu: grows with every change
	nodes   map[dfs.InodeID]*node[A] // guarded by mu
	recent  list.List                // guarded by mu: of *node[A], most recently used first
	serial  uint64                   // guarded by mu: of the newest node
	size    int                      // guarded by mu: nodes and names
	changed map[dfs.InodeID]Mark     // guarded by mu: when an inode was last changed, if after floor
	floor   Mark                     // guarded by mu: what was asked for before may be out of date
	attrs   map[dfs.InodeID]*own     // guarded by mu: own changes of attributes under way
	names   map[Name]*own            // guarded by mu: own changes of names under way
}

// Mark is a moment in the life of a Tree.
type Mark uint64

// Name is a name in a directory.
type Name struct {
	Dir  dfs.InodeID
	Name string
}

// node is what is known of an inode with a lease.
type node[A any] struct {
	inode    dfs.InodeID
	serial   uint64
	attr     A
	known    bool                   // attr is
	bare     bool                   // there are no extended attributes, whatever else may have changed
	names    map[string]dfs.InodeID // 0: absent
	complete bool                   // what is not in names is absent
	at       *list.Element
}

// own counts the client's own changes of one thing.
type own struct {
	pending int
	mixed   bool // there were several at a time: their order is not known
}

// changedMax bounds the memory of changes.
const changedMax = 1 << 16

// NewTree returns a Tree of at most limit inodes and names, which is trusted for the given time after the sending of a message that was answered.
// bare says that attributes are of an inode without extended attributes.
func NewTree[A any](limit int, trust time.Duration, bare func(A) bool) *Tree[A] {
	return &Tree[A]{
		limit: max(2, limit), trust: trust, bare: bare, nodes: map[dfs.InodeID]*node[A]{}, changed: map[dfs.InodeID]Mark{},
		attrs: map[dfs.InodeID]*own{}, names: map[Name]*own{},
	}
}

// Answered says that a message sent at an instant has been answered by a master that leads, so that the Tree is trusted for a while longer. When trust
// had ended everything is forgotten: the master may have thought so and not have told us of changes.
func (t *Tree[A]) Answered(sentAt time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.trustedLocked() {
		t.resetLocked()
	}
	if until := sentAt.Add(t.trust); until.After(t.until) {
		t.until = until
	}
}

// Reset forgets everything and ends trust.
func (t *Tree[A]) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resetLocked()
	t.until = time.Time{}
}

func (t *Tree[A]) resetLocked() {
	t.clock++
	t.floor = t.clock
	clear(t.changed)
	clear(t.nodes)
	t.recent.Init()
	t.size = 0
}

// trustedLocked compares by the monotonic clock, and by the wall clock too: the former stands still while a machine is suspended.
func (t *Tree[A]) trustedLocked() bool {
	now := time.Now()
	return now.Before(t.until) && now.Round(0).Before(t.until.Round(0))
}

// UsedSince reports whether anything was asked for after an instant.
func (t *Tree[A]) UsedSince(at time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.usedAt.After(at)
}

// Mark returns the present moment. It is taken before the master is asked for what is to be stored.
func (t *Tree[A]) Mark() Mark {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.clock
}

// Attr returns the attributes of an inode, if they are known.
func (t *Tree[A]) Attr(inode dfs.InodeID) (attr A, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.attrLocked(inode)
}

func (t *Tree[A]) attrLocked(inode dfs.InodeID) (attr A, ok bool) {
	t.usedAt = time.Now()
	n := t.nodes[inode]
	if n == nil || !n.known || t.attrs[inode] != nil || !t.trustedLocked() {
		return attr, false
	}
	t.recent.MoveToFront(n.at)
	return n.attr, true
}

// Lookup returns the attributes of what a name stands for, or that it is absent. ok is false when either is not known.
func (t *Tree[A]) Lookup(name Name) (attr A, absent, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.usedAt = time.Now()
	n := t.nodes[name.Dir]
	if n == nil || t.names[name] != nil {
		return attr, false, false
	}
	inode, known := n.names[name.Name]
	switch {
	case !known && !n.complete:
		return attr, false, false
	case inode == 0:
		if !t.trustedLocked() {
			return attr, false, false
		}
		t.recent.MoveToFront(n.at)
		return attr, true, true
	}
	if attr, ok = t.attrLocked(inode); ok {
		t.recent.MoveToFront(n.at)
	}
	return attr, false, ok
}

// Serial returns a number of the lease under which something about an inode is held, 0 when nothing is. While it stays the same nobody but this client has changed
// the inode or had it open for writing.
func (t *Tree[A]) Serial(inode dfs.InodeID) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[inode]; n != nil && t.trustedLocked() {
		return n.serial
	}
	return 0
}

// Target returns the inode that a name stands for, 0 when it is absent, trusted or not. ok is false when that is not known. When it is, it is so as long as the
// lease on the directory is not recalled.
func (t *Tree[A]) Target(name Name) (inode dfs.InodeID, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[name.Dir]
	if n == nil || t.names[name] != nil {
		return 0, false
	}
	inode, ok = n.names[name.Name]
	return inode, ok || n.complete
}

// PutAttr stores attributes that came under a lease, if nothing about the inode has changed since m.
func (t *Tree[A]) PutAttr(m Mark, inode dfs.InodeID, attr A) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.freshLocked(m, inode) || t.attrs[inode] != nil {
		return
	}
	n := t.nodeLocked(inode)
	n.attr, n.known, n.bare = attr, true, t.bare(attr)
	t.shrinkLocked()
}

// Bare reports whether an inode is known to have no extended attributes.
func (t *Tree[A]) Bare(inode dfs.InodeID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.usedAt = time.Now()
	n := t.nodes[inode]
	return n != nil && n.bare && t.trustedLocked()
}

// BareNoMore says that a change that has begun sets an extended attribute.
func (t *Tree[A]) BareNoMore(inode dfs.InodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[inode]; n != nil {
		n.bare = false
	}
}

// PutName stores what a name stands for, 0 if it is absent, as it came under a lease on the directory.
func (t *Tree[A]) PutName(m Mark, name Name, inode dfs.InodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.freshLocked(m, name.Dir) || t.names[name] != nil {
		return
	}
	t.setNameLocked(t.nodeLocked(name.Dir), name.Name, inode)
	t.shrinkLocked()
}

// PutEmptyDir stores the attributes of a directory that was made just now, under a lease: nothing is in it.
func (t *Tree[A]) PutEmptyDir(m Mark, inode dfs.InodeID, attr A) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.freshLocked(m, inode) || t.nodes[inode] != nil {
		return
	}
	n := t.nodeLocked(inode)
	n.attr, n.known, n.complete = attr, true, true
	t.shrinkLocked()
}

func (t *Tree[A]) freshLocked(m Mark, inode dfs.InodeID) bool {
	return m >= t.floor && m >= t.changed[inode]
}

func (t *Tree[A]) nodeLocked(inode dfs.InodeID) *node[A] {
	n := t.nodes[inode]
	if n == nil {
		t.serial++
		n = &node[A]{inode: inode, serial: t.serial}
		n.at = t.recent.PushFront(n)
		t.nodes[inode] = n
		t.size++
	} else {
		t.recent.MoveToFront(n.at)
	}
	return n
}

func (t *Tree[A]) setNameLocked(n *node[A], name string, inode dfs.InodeID) {
	if n.names == nil {
		n.names = map[string]dfs.InodeID{}
	}
	if _, ok := n.names[name]; !ok {
		t.size++
	}
	n.names[name] = inode
	if len(n.names) > t.limit/2 { // one directory may not push everything else out
		t.size -= len(n.names)
		n.names, n.complete = nil, false
	}
}

func (t *Tree[A]) shrinkLocked() {
	for t.size > t.limit {
		t.forgetLocked(t.recent.Back().Value.(*node[A]))
	}
}

func (t *Tree[A]) forgetLocked(n *node[A]) {
	t.recent.Remove(n.at)
	delete(t.nodes, n.inode)
	t.size -= 1 + len(n.names)
}

// Drop forgets inodes, because others are about to change them.
func (t *Tree[A]) Drop(inodes ...dfs.InodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, inode := range inodes {
		if n := t.nodes[inode]; n != nil {
			t.forgetLocked(n)
		}
		t.touchLocked(inode)
	}
}

// touchLocked makes answers that are on their way worthless.
func (t *Tree[A]) touchLocked(inode dfs.InodeID) {
	t.clock++
	if len(t.changed) >= changedMax {
		clear(t.changed)
		t.floor = t.clock
	}
	t.changed[inode] = t.clock
}

// Change is one change that the client makes itself.
type Change[A any] struct {
	t     *Tree[A]
	mark  Mark
	attrs []dfs.InodeID
	names []Name
	nodes []*node[A] // of attrs and then of the directories of names, as they were at the beginning
}

// Begin says that a request is about to be sent that changes the attributes of inodes, those of the names' directories included, and what names stand for. End or
// Cancel follows, once.
func (t *Tree[A]) Begin(attrs []dfs.InodeID, names ...Name) *Change[A] {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := &Change[A]{t: t, mark: t.clock, attrs: attrs, names: names, nodes: make([]*node[A], 0, len(attrs)+len(names))}
	for _, inode := range attrs {
		t.attrs[inode] = t.attrs[inode].begin()
		c.nodes = append(c.nodes, t.nodes[inode])
	}
	for _, name := range names {
		t.names[name] = t.names[name].begin()
		c.nodes = append(c.nodes, t.nodes[name.Dir])
	}
	return c
}

func (o *own) begin() *own {
	if o == nil {
		o = &own{}
	}
	o.pending++
	o.mixed = o.mixed || o.pending > 1
	return o
}

// Mark returns the moment of the beginning: what the answer tells of inodes that are not among the changed ones is stored as of it.
func (c *Change[A]) Mark() Mark { return c.mark }

// Cancel says that the request was refused: nothing has changed.
func (c *Change[A]) Cancel() {
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	for _, inode := range c.attrs {
		endOwn(c.t.attrs, inode)
	}
	for _, name := range c.names {
		endOwn(c.t.names, name)
	}
}

func endOwn[K comparable](m map[K]*own, k K) *own {
	o := m[k]
	if o.pending--; o.pending == 0 {
		delete(m, k)
	}
	return o
}

// End says that the request has been answered, or never will be (then the caller calls Reset). targets are what the names stand for now, 0: absent; nil when that is not known.
// attr, unless nil, is what the attributes of the first inode are now.
func (c *Change[A]) End(targets []dfs.InodeID, attr *A) {
	t := c.t
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, inode := range c.attrs {
		o, n := endOwn(t.attrs, inode), t.nodes[inode]
		if n != nil {
			var none A
			n.attr, n.known = none, false
			// With the same node the lease was there all the time, so nobody else has changed the inode.
			if i == 0 && attr != nil && n == c.nodes[i] && !o.mixed {
				n.attr, n.known = *attr, true
			}
		}
		t.touchLocked(inode)
	}
	for i, name := range c.names {
		o, n := endOwn(t.names, name), t.nodes[name.Dir]
		switch {
		case n == nil:
		case targets != nil && !o.mixed && n == c.nodes[len(c.attrs)+i]:
			t.setNameLocked(n, name.Name, targets[i])
		default:
			if _, ok := n.names[name.Name]; ok {
				delete(n.names, name.Name)
				t.size--
			}
			n.complete = false
		}
		t.touchLocked(name.Dir)
	}
	t.shrinkLocked()
}

// Len returns how many inodes and names are held.
func (t *Tree[A]) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.size
}
