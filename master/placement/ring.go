package placement

import (
	"cmp"
	"iter"
	"math/bits"
	"slices"

	"dfs/internal/dfs"
)

// Node is one chunkserver as placement sees it.
type Node struct {
	ID dfs.ServerID
	// Weight is the capacity, in bytes or any unit that all nodes share. A server of weight zero or less
	// takes nothing.
	Weight int64
	// Rack is the failure domain; servers with equal strings fail together. "" is a rack like any other.
	Rack string
	// Load is what the server holds, in any unit that all nodes and Request.Size share; replicas, say.
	Load int64
	// Full servers have no room; Draining ones are being emptied. Both keep their place on the ring.
	Full, Draining bool
}

// Options adjusts a ring. The zero value is the default.
type Options struct {
	// Unit is the weight that gets pointsPerUnit virtual nodes. Zero: the largest power of two that is not
	// above the median of the positive weights.
	Unit int64
}

const (
	// pointsPerUnit is the number of virtual nodes per unit of weight. The share of the ring that a server
	// gets has a relative standard deviation of about 1/sqrt(points): 4 % here, and less for its share of
	// replicas, because a chunk has several.
	pointsPerUnit = 512
	// maxPoints bounds the virtual nodes of one server.
	maxPoints = 64 * pointsPerUnit
)

// Ring is an immutable consistent-hash ring. It is safe for concurrent use.
type Ring struct {
	nodes  []Node   // ascending by ID; only ID, Weight and Rack are used
	counts []int    // virtual nodes of nodes[i]
	rack   []int    // index into racks of nodes[i]
	racks  []string // ascending
	hashes []uint64 // ascending: the virtual nodes
	owner  []int32  // owner[i] indexes nodes: whose virtual node hashes[i] is
	unit   int64
}

// point is a virtual node: a place on the ring and whose it is.
type point struct {
	hash  uint64
	owner int32 // index of nodes
}

// comparePoints orders by place; of two in one place the server with the smaller id comes first.
func comparePoints(a, b point) int {
	return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.owner, b.owner))
}

// NewRing builds a ring. Nodes may come in any order; of several with one ID the first counts. It takes
// time in proportion to the number of virtual nodes, about 512 to 1023 for a typical server.
func NewRing(nodes []Node, opts Options) *Ring { return (&Ring{}).with(sortedNodes(nodes), opts) }

// with returns the ring of other nodes, ascending by ID. It is the one that NewRing would build, but only the
// virtual nodes that r does not have are computed and sorted.
func (r *Ring) with(nodes []Node, opts Options) *Ring {
	n := &Ring{nodes: nodes}
	n.counts, n.unit = pointCounts(nodes, opts)
	n.racks, n.rack = rackTable(nodes)
	total := 0
	kept := make([]int32, len(r.nodes)) // where nodes of r are in n, -1 when they are not, or have other points
	for i := range kept {
		kept[i] = -1
	}
	var fresh []point
	for i, node := range nodes {
		total += n.counts[i]
		if j, ok := r.index(node.ID); ok && r.counts[j] == n.counts[i] {
			kept[j] = int32(i)
			continue
		}
		for k := range n.counts[i] {
			fresh = append(fresh, point{pointHash(node.ID, k), int32(i)})
		}
	}
	slices.SortFunc(fresh, comparePoints)
	n.hashes, n.owner = make([]uint64, 0, total), make([]int32, 0, total)
	add := func(p point) { n.hashes, n.owner = append(n.hashes, p.hash), append(n.owner, p.owner) }
	for i, hash := range r.hashes {
		old := point{hash, kept[r.owner[i]]}
		if old.owner < 0 {
			continue
		}
		for len(fresh) > 0 && comparePoints(fresh[0], old) < 0 {
			add(fresh[0])
			fresh = fresh[1:]
		}
		add(old)
	}
	for _, p := range fresh {
		add(p)
	}
	return n
}

// sortedNodes returns the nodes ascending by ID, each once.
func sortedNodes(nodes []Node) []Node {
	sorted := slices.Clone(nodes)
	slices.SortStableFunc(sorted, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	return slices.CompactFunc(sorted, func(a, b Node) bool { return a.ID == b.ID })
}

// pointCounts returns how many virtual nodes each node has, and the unit.
func pointCounts(nodes []Node, opts Options) ([]int, int64) {
	unit := opts.Unit
	if unit <= 0 {
		var weights []int64
		for _, n := range nodes {
			if n.Weight > 0 {
				weights = append(weights, n.Weight)
			}
		}
		unit = 1
		if len(weights) > 0 {
			slices.Sort(weights)
			unit = 1 << (bits.Len64(uint64(weights[(len(weights)-1)/2])) - 1)
		}
	}
	counts := make([]int, len(nodes))
	for i, n := range nodes {
		if n.Weight > 0 {
			counts[i] = int(min(maxPoints, max(1, float64(n.Weight)*pointsPerUnit/float64(unit))))
		}
	}
	return counts, unit
}

// rackTable returns the distinct racks, ascending, and the index of each node's rack.
func rackTable(nodes []Node) (racks []string, of []int) {
	for _, n := range nodes {
		racks = append(racks, n.Rack)
	}
	slices.Sort(racks)
	racks = slices.Compact(racks)
	of = make([]int, len(nodes))
	for i, n := range nodes {
		of[i], _ = slices.BinarySearch(racks, n.Rack)
	}
	return racks, of
}

// Len returns the number of servers.
func (r *Ring) Len() int { return len(r.nodes) }

// Points returns the number of virtual nodes of all servers together.
func (r *Ring) Points() int { return len(r.hashes) }

// Racks returns the number of distinct racks.
func (r *Ring) Racks() int { return len(r.racks) }

// Rack returns the rack of a server, and whether the ring knows it.
func (r *Ring) Rack(id dfs.ServerID) (string, bool) {
	i, ok := r.index(id)
	if !ok {
		return "", false
	}
	return r.nodes[i].Rack, true
}

// Walk yields every server of positive weight once, in the order in which the ring prefers them for the
// chunk. Loads, flags and racks play no part.
func (r *Ring) Walk(chunk dfs.ChunkID) iter.Seq[dfs.ServerID] {
	return func(yield func(dfs.ServerID) bool) {
		seen := make([]bool, len(r.nodes))
		left := 0
		for _, n := range r.counts {
			if n > 0 {
				left++
			}
		}
		start := r.start(chunkHash(chunk))
		for i := 0; i < len(r.owner) && left > 0; i++ {
			n := r.owner[(start+i)%len(r.owner)]
			if seen[n] {
				continue
			}
			seen[n] = true
			left--
			if !yield(r.nodes[n].ID) {
				return
			}
		}
	}
}

// Ideal returns the n servers that the ring and the rack rule alone give the chunk, fewer when there are
// fewer: where rebalancing would like the replicas to be.
func (r *Ring) Ideal(chunk dfs.ChunkID, n int) []dfs.ServerID {
	picked := r.ideal(chunkHash(chunk), n)
	ids := make([]dfs.ServerID, len(picked))
	for i, p := range picked {
		ids[i] = r.nodes[p].ID
	}
	return ids
}

// ideal is Ideal for a hash, as indexes of nodes.
func (r *Ring) ideal(hash uint64, n int) []int {
	picked := make([]int, 0, n)
	for len(picked) < n {
		needRack := len(picked) == n-1 && n > 1 && len(r.racks) > 1
		for _, p := range picked {
			needRack = needRack && r.rack[p] == r.rack[picked[0]]
		}
		fits := func(i int) bool { return !slices.Contains(picked, i) }
		other := func(i int) bool { return fits(i) && r.rack[i] != r.rack[picked[0]] }
		next := -1
		if needRack {
			next = r.first(hash, other)
		}
		if next < 0 {
			next = r.first(hash, fits)
		}
		if next < 0 {
			break
		}
		picked = append(picked, next)
	}
	return picked
}

// scanAfter is how many virtual nodes first visits before it asks whether any node is acceptable at all.
const scanAfter = 1024

// first returns the index of the first node at or after hash that accept takes, or -1. accept is
// called more than once for a node and must not change its mind.
func (r *Ring) first(hash uint64, accept func(i int) bool) int {
	start := r.start(hash)
	for i := range r.owner {
		at := start + i
		if at >= len(r.owner) {
			at -= len(r.owner)
		}
		if n := int(r.owner[at]); accept(n) {
			return n
		}
		if i == scanAfter && !r.any(accept) {
			return -1
		}
	}
	return -1
}

// any reports whether accept takes some node that has a place on the ring.
func (r *Ring) any(accept func(i int) bool) bool {
	for i := range r.nodes {
		if r.counts[i] > 0 && accept(i) {
			return true
		}
	}
	return false
}

// start returns the position of the first virtual node at or after hash, 0 after the last.
func (r *Ring) start(hash uint64) int {
	i, _ := slices.BinarySearch(r.hashes, hash)
	if i == len(r.hashes) {
		return 0
	}
	return i
}

// index returns the place of a server in nodes.
func (r *Ring) index(id dfs.ServerID) (int, bool) {
	return slices.BinarySearchFunc(r.nodes, id, func(n Node, id dfs.ServerID) int { return cmp.Compare(n.ID, id) })
}

// Moves returns how many of the chunks' replicas the new ring wants on servers other than the old
// ring does, and how many replicas there are: n per chunk, or fewer where a ring has fewer servers.
func Moves(old, updated *Ring, chunks []dfs.ChunkID, n int) (moved, total int) {
	for _, c := range chunks {
		before, after := old.Ideal(c, n), updated.Ideal(c, n)
		total += len(after)
		for _, id := range after {
			if !slices.Contains(before, id) {
				moved++
			}
		}
	}
	return moved, total
}

// Share returns the exact fraction of all replicas, over the whole hash space, that a change of rings moves:
// what Moves tends to as the number of chunks grows. It takes time in proportion to both rings' virtual nodes.
func Share(old, updated *Ring, n int) float64 {
	if len(old.hashes) == 0 || len(updated.hashes) == 0 || n <= 0 {
		return 0
	}
	edges := slices.Concat(old.hashes, updated.hashes)
	slices.Sort(edges)
	edges = slices.Compact(edges)
	var moved, total float64
	previous := edges[len(edges)-1]
	for _, e := range edges {
		width := float64(e - previous) // wraps around zero for the first edge
		previous = e
		before, after := old.ideal(e, n), updated.ideal(e, n)
		total += width * float64(len(after))
		for _, i := range after {
			if j, ok := old.index(updated.nodes[i].ID); !ok || !slices.Contains(before, j) {
				moved += width
			}
		}
	}
	return moved / total
}

// The hash functions are part of what "deterministic across processes" means: changing them moves nearly every
// replica that rebalancing has an opinion about.

// mix is the finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection in which every input bit
// affects every output bit.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// pointHash places virtual node j of a server on the ring.
func pointHash(id dfs.ServerID, j int) uint64 {
	return mix(mix(uint64(id)) ^ mix(uint64(j)+0x5851f42d4c957f2d))
}

// chunkHash places a chunk on the ring.
func chunkHash(id dfs.ChunkID) uint64 { return mix(mix(uint64(id)) ^ 0xd1342543de82ef95) }
