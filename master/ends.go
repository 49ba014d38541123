package master

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sync/errgroup"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/chunks"
	"dfs/master/fsm"
	"dfs/master/namespace"
)

// Where files end, as far as chunkservers must be told: appends go there, and what lies beyond is not read.

// fileEnds knows whose end is about to move to where the primary of the last chunk cannot see it: beyond that chunk, or in it without a
// write. Meanwhile no primary gets leave to append to the file.
type fileEnds struct {
	locks keyedLocks[dfs.InodeID]

	mu     sync.Mutex
	moving map[dfs.InodeID]struct{} // guarded by mu
}

// move begins to move the end of a file, once nobody else does; done ends that. The caller reads the inode in between, has the primary of the last chunk hold its
// appends (holdTail), and commits.
func (e *fileEnds) move(ctx context.Context, id dfs.InodeID) (done func(), err error) {
	unlock, err := e.locks.lock(ctx, id)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.moving == nil {
		e.moving = map[dfs.InodeID]struct{}{}
	}
	e.moving[id] = struct{}{}
	return func() {
		e.mu.Lock()
		delete(e.moving, id)
		e.mu.Unlock()
		unlock()
	}, nil
}

func (e *fileEnds) moves(id dfs.InodeID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, ok := e.moving[id]
	return ok
}

// holdTail returns the exact length of a file, 0 when its tail is not open, and sees to it that no append is taken before the primary
// has asked again.
func (m *leader) holdTail(ctx context.Context, id dfs.InodeID, n *namespace.Inode) (int64, error) {
	for range 16 {
		length, err := int64(0), error(nil)
		if n.TailOpen {
			length, err = m.exactLength(ctx, id, n, true)
		} else {
			err = m.holdClosedTail(ctx, id, n)
		}
		if !errors.Is(err, dfserr.ErrStaleVersion) {
			return length, err
		}
		again, err := m.inode(id)
		if err != nil {
			return 0, err
		}
		n = &again
	}
	return 0, dfserr.Errorf(dfserr.ErrBusy, "inode %d keeps changing", id)
}

// holdClosedTail is holdTail for a file whose tail is not open, but may be any moment: a primary that still has the lease, from before the last writer closed, takes appends at
// once.
func (m *leader) holdClosedTail(ctx context.Context, id dfs.InodeID, n *namespace.Inode) error {
	if n.Chunks == 0 {
		return nil
	}
	last, ok, err := m.fileChunk(id, n.Chunks-1)
	if err == nil && !ok {
		err = dfserr.Errorf(dfserr.ErrStaleVersion, "inode %d: its last chunk has gone", id)
	}
	if err != nil || !m.fleet.mayOrder(last) {
		return err
	}
	_, err = m.chunkLength(ctx, last, true)
	if isGone(err) {
		err = dfserr.Errorf(dfserr.ErrStaleVersion, "inode %d: chunk %s has gone", id, last)
	}
	return err
}

// appendsAt returns the least offset at which an append may go in a chunk, or that none may go there because the file does not end in it.
func (m *leader) appendsAt(r *chunks.Record) (from int64, none bool, err error) {
	// In this order: an end that has moved by the time of the first look shows in the second.
	if m.ends.moves(r.Inode) {
		return 0, true, nil
	}
	n, err := m.inode(r.Inode)
	if errors.Is(err, dfserr.ErrStaleInode) {
		return 0, true, nil
	}
	begin, end := r.Index<<r.ChunkSizeLog2, (r.Index+1)<<r.ChunkSizeLog2
	if r.Index != n.Chunks-1 || n.Length > end {
		return 0, true, err
	}
	return max(0, n.Length-begin), false, err
}

// fenceBatch bounds one call to a server, and fenceParallel how many servers are called at a time.
const (
	fenceBatch    = 1024
	fenceParallel = 32
)

// fenceDropped returns when the chunks that the command at index has cut off take no writes and answer no reads any more: each server with a replica was told, or cannot
// serve any longer. It is the command of a truncation, which is not over before; one that removes a name leaves those who have the file open alone. inherited says that the leader before
// this one may have cut off other chunks for the same request.
func (m *leader) fenceDropped(ctx context.Context, index dfs.Index, inherited bool) error {
	v, err := m.view()
	if err != nil {
		return err
	}
	var dropped []dfs.ChunkID
	perServer := map[dfs.ServerID][]replicaItem{}
	err = v.GarbageList(fsm.GarbageID{Index: index}, func(id fsm.GarbageID, g chunks.Garbage) bool {
		if id.Index != index {
			return false
		}
		dropped = append(dropped, id.Chunk)
		for _, s := range g.Replicas {
			perServer[s] = append(perServer[s], replicaItem{id.Chunk, dfs.Version(index)})
		}
		// A server that has had a gap in its leases since asks for the chunk and learns that it is gone; any other gets no further lease until it was told.
		m.fleet.exclude(id.Chunk, g.Replicas)
		m.fleet.committed(id.Chunk, g.Replicas)
		return true
	})
	v.Close()
	if err != nil || len(dropped) == 0 {
		return err
	}
	m.background(func(ctx context.Context) {
		var g errgroup.Group
		g.SetLimit(fenceParallel)
		for server, items := range perServer {
			g.Go(func() error {
				m.fenceAt(ctx, server, items)
				return nil
			})
		}
		_ = g.Wait() // its functions return no errors
	})
	for _, id := range dropped {
		m.fleet.forgetLeases(id)
		if err := m.fleet.awaitFence(ctx, id, inherited); err != nil {
			return dfserr.Errorf(dfserr.ErrBusy, "chunk %s was cut off and may still be read (%v)", id, err)
		}
	}
	return nil
}

// fenceAt has one server fence replicas of chunks that are gone. Those that it does not confirm remain exclusions.
func (m *leader) fenceAt(ctx context.Context, server dfs.ServerID, items []replicaItem) {
	for len(items) > 0 {
		batch := items[:min(len(items), fenceBatch)]
		items = items[len(batch):]
		done, err := m.deleteReplicas(ctx, server, batch, true)
		if err != nil {
			m.log.Debug("chunks that were cut off are not fenced yet", "server", server.String(), "chunks", len(batch), "error", err)
			return
		}
		for _, it := range batch {
			if done[it.chunk] {
				m.fleet.fenced(it.chunk, server)
			}
		}
	}
}
