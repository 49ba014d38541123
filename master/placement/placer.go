package placement

import (
	"fmt"
	"slices"
	"strings"

	"dfs/internal/dfs"
)

// BoundFactor is how far above its share of the mean load a server may go.
const BoundFactor = 1.25

// Placer chooses servers by ring and load. It has no lock: calls must not overlap. Loads cost O(log n) to
// change; only Update with other servers, racks or noticeably other weights builds a new ring.
type Placer struct {
	opts  Options
	ring  *Ring
	nodes []Node // ascending by ID, parallel to ring.nodes, with current load and flags

	// Over the nodes that may take replicas: not full, not draining, of positive weight.
	openLoad, openWeight float64
	changes              uint64
}

// NewPlacer returns a placer over the nodes.
func NewPlacer(nodes []Node, opts Options) *Placer {
	p := &Placer{opts: opts, ring: NewRing(nodes, opts)}
	p.adopt(sortedNodes(nodes))
	return p
}

// Update replaces all nodes, loads and flags, and reports whether that took a new ring.
func (p *Placer) Update(nodes []Node) (rebuilt bool) {
	sorted := sortedNodes(nodes)
	counts, unit := pointCounts(sorted, p.opts)
	same := unit == p.ring.unit && slices.Equal(counts, p.ring.counts) &&
		slices.EqualFunc(sorted, p.ring.nodes, func(a, b Node) bool { return a.ID == b.ID && a.Rack == b.Rack })
	if !same {
		p.ring = p.ring.with(sorted, p.opts)
	}
	if !slices.EqualFunc(sorted, p.nodes, func(a, b Node) bool { return a.ID == b.ID && a.Rack == b.Rack && a.open() == b.open() }) {
		p.changes++
	}
	p.adopt(sorted)
	return !same
}

// adopt takes over nodes that match the ring and recomputes the sums.
func (p *Placer) adopt(sorted []Node) {
	p.nodes = sorted
	p.openLoad, p.openWeight = 0, 0
	for i := range p.nodes {
		p.count(i, 1)
	}
}

// count adds node i to the sums over open nodes, or with sign -1 takes it out.
func (p *Placer) count(i int, sign float64) {
	if n := &p.nodes[i]; n.open() {
		p.openLoad += sign * float64(n.Load)
		p.openWeight += sign * float64(n.Weight)
	}
}

// open reports whether the node may take replicas.
func (n *Node) open() bool { return n.Weight > 0 && !n.Full && !n.Draining }

// Changes returns a counter that grows whenever other servers than before may take replicas: what could not be
// placed may find a place now.
func (p *Placer) Changes() uint64 { return p.changes }

// Ring returns the current ring.
func (p *Placer) Ring() *Ring { return p.ring }

// Node returns a server with its current load and flags.
func (p *Placer) Node(id dfs.ServerID) (Node, bool) {
	i, ok := p.ring.index(id)
	if !ok {
		return Node{}, false
	}
	return p.nodes[i], true
}

// SetLoad records what a server said about itself. An unknown server is ignored: it comes with Update.
func (p *Placer) SetLoad(id dfs.ServerID, load int64, full, draining bool) {
	i, ok := p.ring.index(id)
	if !ok {
		return
	}
	p.count(i, -1)
	was := p.nodes[i].open()
	p.nodes[i].Load, p.nodes[i].Full, p.nodes[i].Draining = load, full, draining
	if p.nodes[i].open() != was {
		p.changes++
	}
	p.count(i, 1)
}

// AddLoad adds delta to a server's load, so that choices made before its next word about itself take
// account of those before them. A load never falls below zero. An unknown server is ignored.
func (p *Placer) AddLoad(id dfs.ServerID, delta int64) {
	if i, ok := p.ring.index(id); ok {
		p.count(i, -1)
		p.nodes[i].Load = max(0, p.nodes[i].Load+delta)
		p.count(i, 1)
	}
}

// Request asks for servers for one chunk.
type Request struct {
	Chunk dfs.ChunkID
	// Replicas is how many servers to choose, not counting Existing.
	Replicas int
	// Near is the chunkserver of the writer, or 0: the first choice is that server, else one in its rack, as far
	// as the rules allow.
	Near dfs.ServerID
	// Existing are the replicas that stay: never chosen again, and their racks count.
	Existing []dfs.ServerID
	// Exclude are servers not to be chosen for other reasons.
	Exclude []dfs.ServerID
	// Size is the load that one replica adds, in the unit of Node.Load. Zero: 1.
	Size int64
}

// Choice is the answer to a Request.
type Choice struct {
	// Replicas are the chosen servers, the one to be primary first, at most as many as were asked for.
	Replicas []dfs.ServerID
	// Short is how many are lacking.
	Short int
	// OneRack says that all replicas, existing and chosen, are in one rack although there are others:
	// none of those can take the chunk.
	OneRack bool
	// OverBound is how many of the chosen were beyond the load bound, for want of others that keep the
	// rules above it.
	OverBound int
	// Tally counts the servers by why they could not be chosen; it is filled in when Short > 0 or OneRack.
	Tally Tally
}

// Tally counts servers by the first reason that rules them out.
type Tally struct {
	Known, NoWeight, Draining, Full, Existing, Excluded int
	// Racks counts the racks of the servers that nothing rules out.
	Racks int
}

// Why says in words what the choice lacks; "" when it lacks nothing.
func (c Choice) Why() string {
	var parts []string
	if c.Short > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d replicas have no server", c.Short, c.Short+len(c.Replicas)))
	}
	if c.OneRack {
		parts = append(parts, "all replicas are in one rack")
	}
	if len(parts) == 0 {
		return ""
	}
	t := c.Tally
	parts = append(parts, fmt.Sprintf("of %d servers %d already hold the chunk, %d are excluded, %d full, %d draining, %d without capacity",
		t.Known, t.Existing, t.Excluded, t.Full, t.Draining, t.NoWeight))
	return strings.Join(parts, "; ")
}

// Choose picks servers by the rules of the package comment. It changes no load: call AddLoad for the replicas
// that come into being.
func (p *Placer) Choose(req Request) Choice {
	c := chooser{p: p, req: req, hash: chunkHash(req.Chunk), size: float64(max(1, req.Size)), oneRack: -1}
	if p.openWeight > 0 {
		c.bound = BoundFactor * (p.openLoad + c.size*float64(max(0, req.Replicas))) / p.openWeight
	}
	for _, id := range req.Existing {
		if i, ok := p.ring.index(id); ok {
			c.addRack(i)
		}
	}
	for len(c.picked) < req.Replicas {
		i := c.next()
		if i < 0 {
			break
		}
		c.picked = append(c.picked, i)
		c.addRack(i)
	}
	return c.choice()
}

// chooser is one run of Choose.
type chooser struct {
	p     *Placer
	req   Request
	hash  uint64
	size  float64
	bound float64 // load per weight at which a server takes no more

	picked    []int // indexes of nodes
	oneRack   int   // the rack of every replica so far; -1: none yet, -2: several
	overBound int
}

// addRack notes that node i holds a replica.
func (c *chooser) addRack(i int) {
	switch rack := c.p.ring.rack[i]; c.oneRack {
	case -1:
		c.oneRack = rack
	case rack:
	default:
		c.oneRack = -2
	}
}

// next returns the node for the next replica, or -1.
func (c *chooser) next() int {
	last := len(c.picked) == c.req.Replicas-1
	if last && c.oneRack >= 0 {
		rack := c.oneRack
		if i := c.best(func(i int) bool { return c.p.ring.rack[i] != rack }); i >= 0 {
			return i
		}
	}
	if len(c.picked) == 0 && c.req.Near != 0 {
		if i, ok := c.p.ring.index(c.req.Near); ok {
			if c.allowed(i) && c.within(i) {
				return i
			}
			rack := c.p.ring.rack[i]
			near := func(i int) bool { return c.p.ring.rack[i] == rack && c.allowed(i) && c.within(i) }
			if i := c.p.ring.first(c.hash, near); i >= 0 {
				return i
			}
		}
	}
	return c.best(func(int) bool { return true })
}

// best returns the first node in ring order that fits and is within the load bound, else the one with the
// least load for its weight, else -1.
func (c *chooser) best(fits func(i int) bool) int {
	if i := c.p.ring.first(c.hash, func(i int) bool { return fits(i) && c.allowed(i) && c.within(i) }); i >= 0 {
		return i
	}
	least, leastLoad := -1, 0.0
	for i := range c.p.nodes {
		if !c.allowed(i) || !fits(i) {
			continue
		}
		load := float64(c.p.nodes[i].Load) / float64(c.p.nodes[i].Weight)
		if least < 0 || load < leastLoad {
			least, leastLoad = i, load
		}
	}
	if least >= 0 {
		c.overBound++
	}
	return least
}

// allowed reports whether rule 1 permits node i.
func (c *chooser) allowed(i int) bool {
	n := &c.p.nodes[i]
	return n.open() && !slices.Contains(c.picked, i) &&
		!slices.Contains(c.req.Existing, n.ID) && !slices.Contains(c.req.Exclude, n.ID)
}

// within reports whether node i has not yet reached its share of the load.
func (c *chooser) within(i int) bool {
	n := &c.p.nodes[i]
	return float64(n.Load) < c.bound*float64(n.Weight)
}

// choice puts the answer together.
func (c *chooser) choice() Choice {
	out := Choice{Short: max(0, c.req.Replicas-len(c.picked)), OverBound: c.overBound}
	for _, i := range c.picked {
		out.Replicas = append(out.Replicas, c.p.nodes[i].ID)
	}
	out.OneRack = c.oneRack >= 0 && len(c.req.Existing)+len(c.picked) > 1 && len(c.p.ring.racks) > 1
	if out.Short > 0 || out.OneRack {
		out.Tally = c.tally()
	}
	return out
}

// tally counts why servers were not chosen.
func (c *chooser) tally() Tally {
	t := Tally{Known: len(c.p.nodes)}
	racks := make(map[int]bool)
	for i := range c.p.nodes {
		n := &c.p.nodes[i]
		switch {
		case slices.Contains(c.req.Existing, n.ID):
			t.Existing++
		case slices.Contains(c.req.Exclude, n.ID):
			t.Excluded++
		case n.Weight <= 0:
			t.NoWeight++
		case n.Draining:
			t.Draining++
		case n.Full:
			t.Full++
		default:
			racks[c.p.ring.rack[i]] = true
		}
	}
	t.Racks = len(racks)
	return t
}
