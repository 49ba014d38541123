package master

import (
	"cmp"
	"slices"
	"time"

	"dfs/internal/dfs"
	"dfs/master/cluster"
	"dfs/master/placement"
)

// The fleet's placement of chunks.

// choice is what place found.
type choice struct {
	servers []dfs.ServerID // primary first
	known   int            // servers that ever registered
	live    int            // of those, alive now
	full    int            // of those, without room
}

// place chooses up to n servers for a new chunk of the given size among those that are alive and have room.
func (f *fleet) place(chunk dfs.ChunkID, n int, near dfs.ServerID, chunkSize int64) choice {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	all := f.refreshPlacerLocked(now)
	c := choice{known: len(all)}
	var exclude, tight []dfs.ServerID
	for _, s := range all {
		switch {
		case !aliveNow(s, now):
			exclude = append(exclude, s.ID)
		case s.Full(dfs.MinChunkSize):
			c.live++
			c.full++
		case s.Full(chunkSize):
			c.live++
			tight = append(tight, s.ID)
		default:
			c.live++
		}
	}
	req := placement.Request{Chunk: chunk, Replicas: n, Near: near, Exclude: slices.Concat(exclude, tight)}
	got := f.placer.Choose(req)
	if got.Short > 0 && len(tight) > 0 {
		// Servers without room for a whole chunk are better than too few.
		req.Exclude = exclude
		got = f.placer.Choose(req)
	}
	for _, id := range got.Replicas {
		f.recent[id]++
		f.placer.AddLoad(id, 1)
	}
	c.servers = got.Replicas
	return c
}

// refreshPlacerLocked brings the placer up to date and returns all servers in order of id.
func (f *fleet) refreshPlacerLocked(now time.Time) []cluster.Server {
	all := f.state.Snapshot(now)
	nodes := f.nodesLocked(all)
	if f.placed != f.state.Changes() {
		f.placed = f.state.Changes()
		f.placer.Update(nodes)
		return all
	}
	for _, n := range nodes {
		if have, ok := f.placer.Node(n.ID); !ok || have.Weight != n.Weight {
			f.placer.Update(nodes)
			return all
		}
		f.placer.SetLoad(n.ID, n.Load, n.Full, false)
	}
	return all
}

// nodesLocked turns servers into placement's nodes. The load is what the server last reported and what was placed
// on it since.
func (f *fleet) nodesLocked(all []cluster.Server) []placement.Node {
	nodes := make([]placement.Node, 0, len(all))
	for _, s := range all {
		nodes = append(nodes, placement.Node{
			ID: s.ID, Weight: s.Capacity, Rack: s.Rack, Load: s.Chunks + f.recent[s.ID], Full: s.Full(dfs.MinChunkSize),
		})
	}
	return nodes
}

// placer copies for the repair planner: it must not hold the fleet's lock while it plans.
func (f *fleet) placementNodes() []placement.Node {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	all := f.state.Snapshot(now)
	nodes := f.nodesLocked(all)
	for i, s := range all {
		nodes[i].Full = nodes[i].Full || !aliveNow(s, now)
	}
	return nodes
}

// chain orders the servers of a configuration: the present primary stays if it is among them and alive, and those
// that are alive come first.
func chain(replicas []dfs.ServerID, alive func(dfs.ServerID) bool) []dfs.ServerID {
	ordered := slices.Clone(replicas)
	slices.SortStableFunc(ordered, func(a, b dfs.ServerID) int {
		return cmp.Compare(btoi(alive(b)), btoi(alive(a)))
	})
	return ordered
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
