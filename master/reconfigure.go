package master

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	"dfs/master/chunks"
	"dfs/master/cluster"
	"dfs/master/fsm"
	"dfs/master/repair"
	dfsv1 "dfs/proto/dfs/v1"
)

// Changing a chunk's configuration. Whoever does so holds the chunk's lock (Master.chunkLocks) from reading the
// record to the commit, so that reports about one chunk coalesce and a deletion never meets a copy.

// config describes a chunk's record to a client or a chunkserver.
func (m *leader) config(id dfs.ChunkID, r *chunks.Record) *dfsv1.ChunkConfig {
	c := fsm.ConfigOf(id, r)
	m.fill(c)
	return c
}

// fill puts addresses into configurations that have only server ids.
func (m *leader) fill(configs ...*dfsv1.ChunkConfig) {
	m.fleet.mu.Lock()
	defer m.fleet.mu.Unlock()
	now := time.Now()
	for _, c := range configs {
		for _, r := range c.GetReplicas() {
			m.fleet.addressLocked(r, now)
		}
	}
}

// chunkRecord reads a chunk's record as of now, from the applied state. ErrNotExist when there is none.
func (m *leader) chunkRecord(id dfs.ChunkID) (chunks.Record, error) {
	v, err := m.view()
	if err != nil {
		return chunks.Record{}, err
	}
	defer v.Close()
	r, ok, err := v.Chunk(id)
	if err == nil && !ok {
		err = dfserr.Errorf(dfserr.ErrNotExist, "chunk %s", id)
	}
	return r, err
}

// reconfigure commits a configuration of the given servers, primary first, in place of the one in r, and sees to it
// that those left out are fenced. It returns the new record. The caller holds the chunk's lock.
func (m *leader) reconfigure(ctx context.Context, id dfs.ChunkID, r chunks.Record, replicas []dfs.ServerID, why string) (chunks.Record, error) {
	var dropped []dfs.ServerID
	for _, s := range r.Replicas {
		if !slices.Contains(replicas, s) {
			dropped = append(dropped, s)
		}
	}
	replicas = seasonedFirst(replicas, &r)
	m.fleet.exclude(id, dropped)
	cmd := &dfsv1.ReconfigureCommand{Chunk: uint64(id), ExpectVersion: uint64(r.Version), Replicas: serverNumbers(replicas)}
	// The outcome matters more than the caller's patience.
	pctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reconfigurePatience)
	_, err := m.propose(pctx, &dfsv1.Command{Op: &dfsv1.Command_Reconfigure{Reconfigure: cmd}})
	cancel()
	if err != nil {
		if errors.Is(err, dfserr.ErrStaleVersion) || isGone(err) {
			// Refused: the exclusions did not come to be by this command.
			m.fleet.committed(id, dropped)
		}
		m.resolveSoon(id, dropped)
		return r, err
	}
	m.fleet.committed(id, dropped)
	m.resolveSoon(id, dropped)
	m.fleet.revokeLease(id)
	now, err := m.chunkRecord(id)
	if err != nil {
		return r, err
	}
	m.log.Info("chunk reconfigured", "chunk", id.String(), "from", r.Version, "to", now.Version,
		"replicas", len(now.Replicas), "dropped", len(dropped), "reason", why)
	m.repairs.changed(id)
	return now, nil
}

// seasoned reports whether a server's replica is known to have everything acknowledged so far.
func seasoned(s dfs.ServerID, r *chunks.Record) bool {
	return slices.Contains(r.Replicas, s) && !slices.Contains(r.Joining, s)
}

// seasonedFirst orders the servers of a configuration that follows r: the primary is one that has everything.
func seasonedFirst(replicas []dfs.ServerID, r *chunks.Record) []dfs.ServerID {
	ordered := slices.Clone(replicas)
	slices.SortStableFunc(ordered, func(a, b dfs.ServerID) int {
		return cmp.Compare(btoi(seasoned(b, r)), btoi(seasoned(a, r)))
	})
	return ordered
}

// reconfigurePatience bounds waiting for a configuration to be committed.
const reconfigurePatience = 30 * time.Second

// resolveSoon has exclusions resolved without waiting for it.
func (m *leader) resolveSoon(id dfs.ChunkID, dropped []dfs.ServerID) {
	for _, s := range dropped {
		m.background(func(ctx context.Context) { m.resolveExclusion(ctx, exclusion{chunk: id, server: s}) })
	}
}

// resolveExclusion has a server fence a replica that is out of its chunk's configuration; whether it is then deleted or completed is
// the repair planner's decision. A server that cannot be told is tried again by the sweep, or its lease lapses. No lock is needed: what is
// fenced is below the present version, so a copy that joins the chunk meanwhile is not touched.
func (m *leader) resolveExclusion(ctx context.Context, e exclusion) {
	if e.unsure {
		// A command of the same leader that is applied later settles the fate of the one in doubt.
		_, err := m.propose(ctx, &dfsv1.Command{Op: &dfsv1.Command_CutDone{CutDone: &dfsv1.CutDoneCommand{Chunk: uint64(e.chunk)}}})
		if err != nil && !isGone(err) {
			return
		}
		m.fleet.committed(e.chunk, []dfs.ServerID{e.server})
	}
	r, err := m.chunkRecord(e.chunk)
	item := replicaItem{chunk: e.chunk, version: r.Version - 1}
	switch {
	case isGone(err):
		item.version = dfs.Version(m.db.Applied())
	case err != nil:
		return
	case slices.Contains(r.Replicas, e.server):
		m.fleet.fenced(e.chunk, e.server)
		return
	}
	done, err := m.deleteReplicas(ctx, e.server, []replicaItem{item}, true)
	if err != nil {
		m.log.Debug("excluded replica not fenced yet", "chunk", e.chunk.String(), "server", e.server.String(), "error", err)
		return
	}
	if done[e.chunk] {
		m.fleet.fenced(e.chunk, e.server)
		m.repairs.noteStray(e.chunk, repair.Stray{Server: e.server, Version: item.version})
	}
}

// liveReplicas counts the servers that are alive.
func (m *leader) liveReplicas(replicas []dfs.ServerID) int {
	n := 0
	for _, s := range replicas {
		if m.fleet.alive(s) {
			n++
		}
	}
	return n
}

// complaint is a report that a replica could not be used.
type complaint struct {
	chunk    dfs.ChunkID
	version  dfs.Version
	server   dfs.ServerID
	reporter dfs.ServerID // 0: a client
	corrupt  bool         // known to be unusable
	reason   string
}

// repeatFor is how long a client's complaint about a primary that the master can reach must have been made again and
// again before it is believed: the path between those two may be broken.
const repeatFor = 3 * time.Second

// takeComplaint decides about a complaint and returns the chunk's record as it then is, changed or not.
func (m *leader) takeComplaint(ctx context.Context, c complaint) (chunks.Record, error) {
	unlock, err := m.chunkLocks.lock(ctx, c.chunk)
	if err != nil {
		return chunks.Record{}, err
	}
	defer unlock()
	r, err := m.chunkRecord(c.chunk)
	if err != nil {
		return r, err
	}
	if r.Version != c.version || !slices.Contains(r.Replicas, c.server) {
		return r, nil
	}
	if c.corrupt {
		m.repairs.noteCorrupt(c.chunk, c.server)
	}
	if !m.believe(ctx, c, &r) {
		m.repairs.wake()
		return r, nil
	}
	if c.server != c.reporter && slices.Contains(r.Replicas, c.reporter) && m.fleet.alive(c.server) && m.accuserCutOff(ctx, c.reporter, c.server, r.Replicas) {
		other := c
		other.server, other.reason = c.reporter, "cut off: others reach "+c.server.String()+", of which it says: "+c.reason
		now, err := m.excludeReplica(ctx, other, r)
		if err != nil || now.Version != r.Version {
			return now, err
		}
	}
	return m.excludeReplica(ctx, c, r)
}

// believe decides whether the complaint costs the replica its place in the configuration.
//
// A complaint by a member of the chain about another, or about itself, is believed: those two must work together. (Which of the two is to
// go, takeComplaint asks witnesses.) That a replica is corrupt is believed of nobody but its own server (verifyReplica).
// A client only ever needs the primary; when a secondary does not answer it, it reads elsewhere, and a
// replica that merely cannot be read by someone keeps its place. What it says of the primary is checked.
func (m *leader) believe(ctx context.Context, c complaint, r *chunks.Record) bool {
	switch {
	case c.corrupt:
		return true
	case c.reporter == c.server:
		return true
	case c.reporter == r.Replicas[0]:
		return true
	case c.server != r.Replicas[0]:
		return false
	}
	if !m.fleet.alive(c.server) && !m.reachable(ctx, c.server) {
		return true
	}
	if m.fleet.alive(c.server) && !m.answers(ctx, c.server, c.chunk) {
		return true
	}
	return m.complaints.repeated(c.chunk, c.server, c.version)
}

// reachable reports whether a fresh connection to the server can be made.
func (m *leader) reachable(ctx context.Context, id dfs.ServerID) bool {
	s, ok := m.fleet.lookup(id)
	if !ok || s.State == cluster.Gone || s.State == cluster.Dead {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	dialedAt := time.Now()
	err := m.probe(ctx, id, s.Addr)
	if rpc.IsRefused(err) && s.State == cluster.Unknown {
		m.fleet.gone(id, s.Incarnation, dialedAt)
	}
	return err == nil
}

// answers reports whether the server answers a question about the chunk; that it has no replica is an answer.
func (m *leader) answers(ctx context.Context, id dfs.ServerID, chunk dfs.ChunkID) bool {
	_, err := m.replicaState(ctx, id, chunk)
	return err == nil || !errors.Is(err, dfserr.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, dfserr.ErrRefused)
}

// excludeReplica commits a configuration without the replica complained of and without those on servers that are not
// alive, provided that a live one with all data is left: the last such replica stays, whatever is said of it. The caller
// holds the chunk's lock.
func (m *leader) excludeReplica(ctx context.Context, c complaint, r chunks.Record) (chunks.Record, error) {
	if m.fleet.returning(r.Replicas, 2*m.cfg.ServingLease) {
		return r, nil // right after a start, servers that have not come back yet are not to be dropped with the one complained of
	}
	var left []dfs.ServerID
	complete := false
	for _, s := range r.Replicas {
		if s != c.server && m.fleet.alive(s) && !m.repairs.isCorrupt(c.chunk, s) {
			left = append(left, s)
			complete = complete || seasoned(s, &r)
		}
	}
	if !complete {
		m.log.Warn("replica complained of stays: no other live one", "chunk", c.chunk.String(), "server", c.server.String(), "reason", c.reason)
		m.repairs.wake()
		return r, nil
	}
	now, err := m.reconfigure(ctx, c.chunk, r, left, c.reason)
	if err != nil {
		return r, err
	}
	m.complaints.forget(c.chunk)
	return now, nil
}

// activateChunk has the primary of the chunk's configuration bring its replicas into step, and records what that
// means: replicas exist, a seed is stored, a cut is made. It returns the record and the primary's committed length.
// The caller does not hold the chunk's lock.
func (m *leader) activateChunk(ctx context.Context, id dfs.ChunkID) (chunks.Record, int64, error) {
	for {
		r, err := m.chunkRecord(id)
		if err != nil {
			return r, 0, err
		}
		if err := m.awaitFence(ctx, id, &r); err != nil {
			return r, 0, err
		}
		state, err := m.activate(ctx, m.config(id, &r))
		if err == nil {
			return m.activated(ctx, id, r, state)
		}
		if ctx.Err() != nil {
			return r, 0, err
		}
		if now, changed := m.recoverFrom(ctx, id, r, err); !changed {
			return now, 0, err
		}
	}
}

// recoverFrom reacts to a primary that failed a call of the master's: it goes through the complaint rules, and reports whether the
// configuration has changed since r, so that the call is worth making again.
func (m *leader) recoverFrom(ctx context.Context, id dfs.ChunkID, r chunks.Record, cause error) (chunks.Record, bool) {
	if now, err := m.chunkRecord(id); err != nil || now.Version != r.Version {
		return now, err == nil
	}
	unreachable := errors.Is(cause, dfserr.ErrUnavailable) || errors.Is(cause, dfserr.ErrRefused) || errors.Is(cause, context.DeadlineExceeded)
	if !unreachable {
		return r, false
	}
	now, err := m.takeComplaint(ctx, complaint{chunk: id, version: r.Version, server: r.Replicas[0], reason: "master: " + cause.Error()})
	return now, err == nil && now.Version != r.Version
}

// activated records what a successful Activate has done.
func (m *leader) activated(ctx context.Context, id dfs.ChunkID, r chunks.Record, state *dfsv1.ReplicaState) (chunks.Record, int64, error) {
	length := state.GetLength()
	if r.Born && len(r.Seed) == 0 && r.CutVersion == 0 && len(r.Joining) == 0 {
		return r, length, nil
	}
	cmd := &dfsv1.CutDoneCommand{
		Chunk: uint64(id), CutVersion: uint64(r.CutVersion), SeedStored: len(r.Seed) > 0, Born: true, InStepVersion: uint64(r.Version),
	}
	if _, err := m.propose(ctx, &dfsv1.Command{Op: &dfsv1.Command_CutDone{CutDone: cmd}}); err != nil {
		return r, length, err
	}
	now, err := m.chunkRecord(id)
	return now, length, err
}

func serverNumbers(ids []dfs.ServerID) []uint64 {
	n := make([]uint64, len(ids))
	for i, id := range ids {
		n[i] = uint64(id)
	}
	return n
}
