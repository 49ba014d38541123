package master

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"dfs/internal/dfs"
	"dfs/master/chunks"
	"dfs/master/cluster"
	"dfs/master/fsm"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

// Bounds of the background removal.
const (
	orphanPage   = 1024 // orphans looked at and named per command
	reclaimLimit = 2048 // entries and chunks handled per command
	reclaimPause = 50 * time.Millisecond
	reclaimEvery = 5 * time.Second
	garbagePage  = 4096
	garbageEvery = 5 * time.Second
)

// reclaimLoop removes what has no name any more and nobody has open: it looks when poked, a little later so that
// removals gather, and now and then.
func (m *leader) reclaimLoop(ctx context.Context) {
	every := time.NewTicker(reclaimEvery)
	defer every.Stop()
	for {
		select {
		case <-m.reclaim:
		case <-every.C:
		case <-ctx.Done():
			return
		}
		for again := true; again; {
			pause := time.NewTimer(reclaimPause)
			select {
			case <-pause.C:
			case <-ctx.Done():
				pause.Stop()
				return
			}
			var err error
			if again, err = m.reclaimPass(ctx); err != nil {
				if ctx.Err() == nil {
					m.log.Warn("removing unlinked inodes failed", "error", err)
				}
				break
			}
		}
	}
}

// reclaimPass walks the orphans once. It reports whether another pass will find work soon.
func (m *leader) reclaimPass(ctx context.Context) (again bool, err error) {
	if !m.sessions.settled() {
		return false, nil
	}
	after := dfs.InodeID(0)
	for {
		v, err := m.view()
		if err != nil {
			return false, err
		}
		var page []dfs.InodeID
		err = v.Orphans(after, func(id dfs.InodeID, _ namespace.Orphan) bool {
			page = append(page, id)
			return len(page) < orphanPage
		})
		v.Close()
		if err != nil {
			return false, err
		}
		if len(page) == 0 {
			return again, nil
		}
		after = page[len(page)-1]
		claimed, later := m.sessions.claim(page)
		again = again || later
		if len(claimed) > 0 {
			res, err := m.propose(ctx, &dfsv1.Command{Op: &dfsv1.Command_Reclaim{Reclaim: &dfsv1.ReclaimCommand{
				Inodes: inodeNumbers(claimed), Limit: reclaimLimit,
			}}})
			m.sessions.release(claimed)
			if err != nil {
				return false, err
			}
			again = again || res.GetMore()
		}
		if len(page) < orphanPage {
			return again, nil
		}
	}
}

// garbageLoop removes the replicas of deleted chunks once their grace is over.
func (m *leader) garbageLoop(ctx context.Context) {
	every := time.NewTicker(max(time.Millisecond, min(garbageEvery, m.cfg.GarbageGrace)))
	defer every.Stop()
	for {
		select {
		case <-every.C:
		case <-ctx.Done():
			return
		}
		if m.fleet.safeMode().On {
			continue
		}
		if err := m.garbagePass(ctx); err != nil && ctx.Err() == nil {
			m.log.Warn("removing deleted chunks failed", "error", err)
		}
	}
}

// garbageItem is a deleted chunk.
type garbageItem struct {
	index dfs.Index
	chunk dfs.ChunkID
	chunks.Garbage
}

// garbagePass walks the deleted chunks, oldest first, to the first whose grace is not over.
func (m *leader) garbagePass(ctx context.Context) error {
	var after fsm.GarbageID
	due := time.Now().Add(-m.cfg.GarbageGrace).UnixNano()
	for {
		v, err := m.view()
		if err != nil {
			return err
		}
		var page []garbageItem
		fresh := false
		err = v.GarbageList(after, func(id fsm.GarbageID, g chunks.Garbage) bool {
			if g.DeletedAt > due {
				fresh = true
				return false
			}
			page = append(page, garbageItem{id.Index, id.Chunk, g})
			return len(page) < garbagePage
		})
		v.Close()
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return nil
		}
		last := page[len(page)-1]
		after = fsm.GarbageID{Index: last.index, Chunk: last.chunk}
		if err := m.removeGarbage(ctx, page); err != nil {
			return err
		}
		if fresh || len(page) < garbagePage {
			return nil
		}
	}
}

// removeGarbage has the servers delete the replicas of deleted chunks, and forgets the chunks of which every server has
// either done so or is dead: what a dead one brings back is found by its chunk report.
func (m *leader) removeGarbage(ctx context.Context, page []garbageItem) error {
	perServer := map[dfs.ServerID][]int{}
	left := make([]int, len(page))
	states := m.servers()
	for i, g := range page {
		for _, s := range g.Replicas {
			if st, ok := states[s]; ok && st.State != cluster.Dead {
				perServer[s] = append(perServer[s], i)
				left[i]++
			}
		}
	}
	type result struct {
		indexes []int
		done    map[dfs.ChunkID]bool
	}
	results := make(chan result, len(perServer))
	var g errgroup.Group
	g.SetLimit(16)
	for server, indexes := range perServer {
		if states[server].State != cluster.Live {
			continue // it may come back before it is declared dead
		}
		g.Go(func() error {
			items := make([]replicaItem, len(indexes))
			for i, n := range indexes {
				items[i] = replicaItem{page[n].chunk, page[n].Version}
			}
			done, err := m.deleteReplicas(ctx, server, items, false)
			if err != nil {
				m.log.Debug("deleting replicas failed", "server", server.String(), "error", err)
				return nil
			}
			results <- result{indexes, done}
			return nil
		})
	}
	_ = g.Wait() // its functions return no errors
	close(results)
	for r := range results {
		for _, n := range r.indexes {
			if r.done[page[n].chunk] {
				left[n]--
			}
		}
	}
	cmd := &dfsv1.GarbageDoneCommand{}
	for i, n := range left {
		if n == 0 {
			cmd.Items = append(cmd.Items, &dfsv1.GarbageDoneCommand_Item{Index: uint64(page[i].index), Chunk: uint64(page[i].chunk)})
			m.fleet.forgetLeases(page[i].chunk)
		}
	}
	if len(cmd.GetItems()) == 0 {
		return nil
	}
	_, err := m.propose(ctx, &dfsv1.Command{Op: &dfsv1.Command_GarbageDone{GarbageDone: cmd}})
	return err
}

func inodeNumbers(ids []dfs.InodeID) []uint64 {
	n := make([]uint64, len(ids))
	for i, id := range ids {
		n[i] = uint64(id)
	}
	return n
}
