package master

import (
	"context"
	"slices"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/repair"
	dfsv1 "dfs/proto/dfs/v1"
)

// Carrying out what the repair planner says.

// actLoop carries out what the planner says.
func (r *repairs) actLoop(ctx context.Context) {
	tick := time.NewTicker(repairTick)
	defer tick.Stop()
	for {
		select {
		case <-r.act:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if r.m.fleet.safeMode().On {
			continue
		}
		r.askCopies()
		r.mu.Lock()
		if r.planner.Queued() == 0 && r.planner.Running() == 0 {
			idle := r.changes == r.scanned
			r.mu.Unlock()
			if !idle {
				poke(r.trigger)
			}
			continue
		}
		r.updatePlacerLocked()
		out := r.planner.Next(time.Now())
		for _, c := range out.Commands {
			if c.Kind == repair.Copy {
				r.inFlight[c.Chunk] = copyOrder{c.Source, c.Target, c.Version, time.Now().Add(askCopyAfter)}
			}
		}
		r.mu.Unlock()
		for _, c := range out.Commands {
			r.m.background(func(ctx context.Context) { r.carryOut(ctx, c) })
		}
	}
}

// askCopyAfter is how long after its order, and after the last question, a target is asked what became of a copy: its word that it is
// done may have been lost.
const askCopyAfter = 10 * time.Second

// askCopies asks the targets of copies that have not been heard of for a while.
func (r *repairs) askCopies() {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, c := range r.inFlight {
		if now.Before(c.askAt) {
			continue
		}
		c.askAt = now.Add(askCopyAfter)
		r.inFlight[id] = c
		r.m.background(func(ctx context.Context) {
			state, err := r.m.replicaState(ctx, c.target, id)
			if err != nil || dfs.Version(state.GetVersion()) < c.version || state.GetState() != "valid" {
				return // still being made, or failed: then the planner's time-out ends it
			}
			if err := r.m.copied(ctx, id, c.target); err != nil {
				r.m.log.Debug("copied replica not taken into the configuration", "chunk", id.String(), "target", c.target.String(), "error", err)
			}
		})
	}
}

// stepPause is how long after a step has failed its chunk is looked at again.
const stepPause = time.Second

// carryOut executes one command of the planner.
func (r *repairs) carryOut(ctx context.Context, c repair.Command) {
	var err error
	switch c.Kind {
	case repair.Copy:
		if err = r.orderCopy(ctx, c); err != nil {
			r.mu.Lock()
			r.endCopyLocked(c.Chunk, c.Target, true)
			r.mu.Unlock()
		}
	case repair.Reconfigure:
		err = r.trim(ctx, c)
	case repair.Delete:
		var newer int64
		err = r.m.dropStrays(ctx, c.Target, []replicaItem{{c.Chunk, c.Version}}, &newer)
	}
	if err != nil && ctx.Err() == nil {
		r.m.log.Debug("repair step failed", "command", c.String(), "error", err)
		pause := time.NewTimer(stepPause)
		defer pause.Stop()
		select {
		case <-pause.C:
			r.observe(c.Chunk)
		case <-ctx.Done():
		}
	}
}

// orderCopy has the target begin; ReplicaCopied tells how it ended.
func (r *repairs) orderCopy(ctx context.Context, c repair.Command) error {
	rec, err := r.m.chunkRecord(c.Chunk)
	if err != nil {
		return err
	}
	if rec.Version != c.Version {
		return dfserr.Errorf(dfserr.ErrStaleVersion, "copy chunk %s", c.Chunk)
	}
	return r.m.copyReplica(ctx, c.Target, r.m.config(c.Chunk, &rec), c.Source)
}

// trim commits a smaller configuration. A chunk that is being written is left alone while its tail is warm, except to
// take out bad replicas.
func (r *repairs) trim(ctx context.Context, c repair.Command) error {
	unlock, err := r.m.chunkLocks.lock(ctx, c.Chunk)
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := r.m.chunkRecord(c.Chunk)
	if err != nil {
		return err
	}
	if rec.Version != c.Version {
		return dfserr.Errorf(dfserr.ErrStaleVersion, "reconfigure chunk %s", c.Chunk)
	}
	_, err = r.m.reconfigure(ctx, c.Chunk, rec, c.Replicas, "repair: "+c.Reason)
	return err
}

// ReplicaCopied ends a copy: a complete replica joins the configuration, and the primary brings it the last tail.
func (s clusterService) ReplicaCopied(ctx context.Context, req *dfsv1.ReplicaCopiedRequest) (*dfsv1.ReplicaCopiedReply, error) {
	m, err := s.lead()
	if err != nil {
		return nil, err
	}
	id, target := dfs.ChunkID(req.GetChunk()), dfs.ServerID(req.GetServer())
	if req.GetError() != "" {
		m.log.Warn("copying a replica failed", "chunk", id.String(), "target", target.String(), "error", req.GetError())
		m.repairs.endCopy(id, target, true)
		return &dfsv1.ReplicaCopiedReply{}, nil
	}
	if err := m.copied(ctx, id, target); err != nil {
		return nil, err
	}
	return &dfsv1.ReplicaCopiedReply{}, nil
}

// copied takes a complete copy into the configuration, has it brought into step, and then ends its order.
func (m *leader) copied(ctx context.Context, id dfs.ChunkID, target dfs.ServerID) error {
	if !m.repairs.copying(id, target) {
		return dfserr.Errorf(dfserr.ErrStaleVersion, "copy of chunk %s on server %s was not ordered by this master, or has timed out", id, target)
	}
	if err := m.admitReplica(ctx, id, target); err != nil {
		m.repairs.endCopy(id, target, true)
		return err
	}
	m.background(func(ctx context.Context) {
		// With a member that is away it would only cost that member its place; the next use activates it.
		r, err := m.chunkRecord(id)
		if err == nil && m.liveReplicas(r.Replicas) == len(r.Replicas) {
			if _, _, err := m.activateChunk(ctx, id); err != nil && ctx.Err() == nil {
				m.log.Debug("new configuration is not active yet", "chunk", id.String(), "error", err)
			}
			r, err = m.chunkRecord(id)
		}
		// A target that cannot be brought into step is out again: the copy has failed, and is not made again at once.
		m.repairs.endCopy(id, target, err == nil && !slices.Contains(r.Replicas, target))
		m.repairs.changed(id)
	})
	return nil
}

func (r *repairs) endCopy(id dfs.ChunkID, target dfs.ServerID, failed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endCopyLocked(id, target, failed)
}

// admitReplica commits the configuration that package repair wants once a copy is complete: the target is appended, and members that are dead or bad
// are left out.
func (m *leader) admitReplica(ctx context.Context, id dfs.ChunkID, target dfs.ServerID) error {
	unlock, err := m.chunkLocks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := m.chunkRecord(id)
	if err != nil {
		return err
	}
	if slices.Contains(r.Replicas, target) {
		return nil
	}
	states := m.servers()
	m.repairs.mu.Lock()
	replicas := repair.Joined(m.repairs.chunkLocked(id, &r, 0, states), target)
	m.repairs.mu.Unlock()
	if replicas == nil {
		return dfserr.Errorf(dfserr.ErrNoReplica, "chunk %s: the source of the copy has gone", id)
	}
	if _, err = m.reconfigure(ctx, id, r, replicas, "replica copied"); err == nil {
		m.repairs.replaced(id, target)
	}
	return err
}
