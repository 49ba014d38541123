package chunkserver

import (
	"context"
	"errors"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// maxDeletes bounds one DeleteReplicas call.
const maxDeletes = 100_000

// Stat describes this server's replica. With exact, only the active primary answers, with the committed length.
func (h *handlers) Stat(ctx context.Context, req *dfsv1.ChunkStatRequest) (*dfsv1.ChunkStatReply, error) {
	s := h.srv
	c, err := s.chunks.acquire(dfs.ChunkID(req.GetChunk()))
	if err != nil {
		return nil, err
	}
	defer s.chunks.release(c)
	if req.GetVerify() {
		if err := c.verify(ctx); err != nil {
			return nil, err
		}
	}
	if req.GetExact() {
		v, err := c.primaryView(ctx, dfs.Version(req.GetVersion()))
		if err == nil && req.GetHoldAppends() {
			err = c.holdAppends(ctx, v)
		}
		if err != nil {
			return nil, err
		}
	}
	state, err := c.describe()
	if err != nil {
		return nil, err
	}
	if req.GetVersion() > state.GetVersion() {
		return nil, dfserr.Errorf(dfserr.ErrStaleVersion, "stat of chunk %s version %d: this replica has version %d", c.id, req.GetVersion(), state.GetVersion())
	}
	return &dfsv1.ChunkStatReply{Replica: state}, nil
}

// maxVerifies is how many replicas are verified at once on demand.
const maxVerifies = 2

// verify reads the whole log and checks all of it. Damage is noted, as by the scrubber, and is no error here. ErrBusy: enough is being verified.
func (c *chunk) verify(ctx context.Context) error {
	select {
	case c.srv.verifying <- struct{}{}:
	default:
		return dfserr.Errorf(dfserr.ErrBusy, "verify chunk %s: enough replicas are being verified", c.id)
	}
	defer func() { <-c.srv.verifying }()
	rep, err := c.open()
	if err != nil {
		return err
	}
	if err := c.noticeDamage(rep.Verify(ctx, nil)); err != nil && !errors.Is(err, dfserr.ErrCorrupt) {
		return err
	}
	return nil
}

// probePatience is how long another server may take to answer before it counts as not reached.
const probePatience = time.Second

// Probe says whether this server reaches another.
func (h *handlers) Probe(ctx context.Context, req *dfsv1.ProbeRequest) (*dfsv1.ProbeReply, error) {
	s, id := h.srv, dfs.ServerID(req.GetServer())
	addr, err := s.members.lookup(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	return &dfsv1.ProbeReply{Reached: s.answers(ctx, id, addr)}, nil
}

// describe returns the replica's state. ErrNotExist: there is none.
func (c *chunk) describe() (*dfsv1.ReplicaState, error) {
	rep, err := c.open()
	if err != nil {
		return nil, err
	}
	state, err := rep.State()
	if err != nil && !errors.Is(err, dfserr.ErrCorrupt) {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	out := &dfsv1.ReplicaState{
		Chunk: uint64(c.id), Server: uint64(c.srv.ID()), Version: uint64(state.Version), Seq: uint64(state.LastSeq),
		CommittedSeq: uint64(state.Committed), Length: state.Length, DiskBytes: state.DiskBytes, State: "valid",
	}
	// What is committed only the primary knows: the others are told with the next mutation. Their length is that
	// of what they hold.
	if c.role == rolePrimary && c.ready {
		out.CommittedSeq, out.Length = uint64(c.committed), c.commitLen
	}
	switch {
	case err != nil || c.corrupt != nil || state.Corrupt:
		out.State = "corrupt"
	case c.promised > state.Version:
		out.State = "copying"
	}
	return out, nil
}

// Activate brings all replicas of a new configuration, of which this server is the primary, into step.
func (h *handlers) Activate(ctx context.Context, req *dfsv1.ActivateRequest) (*dfsv1.ActivateReply, error) {
	s := h.srv
	cfg, err := s.configFor(req.GetConfig())
	if err != nil {
		return nil, err
	}
	if cfg.primary() != s.ID() {
		return nil, dfserr.Errorf(dfserr.ErrNotPrimary, "activate chunk %s version %d: its primary is server %s", cfg.chunk, cfg.version, cfg.primary())
	}
	c, err := s.chunks.acquire(cfg.chunk)
	if err != nil {
		return nil, err
	}
	defer s.chunks.release(c)
	if _, err := c.primaryView(ctx, cfg.version); err != nil {
		return nil, err
	}
	state, err := c.describe()
	if err != nil {
		return nil, err
	}
	return &dfsv1.ActivateReply{Replica: state}, nil
}

// CopyReplica accepts the order to copy a replica to this server; the outcome goes to the master by ReplicaCopied. ErrBusy:
// too many copies are being made. ErrExist: this server takes part in the configuration.
func (h *handlers) CopyReplica(_ context.Context, req *dfsv1.CopyReplicaRequest) (*dfsv1.CopyReplicaReply, error) {
	s := h.srv
	cfg, err := parseConfig(req.GetConfig())
	if err != nil {
		return nil, err
	}
	source := dfs.ServerID(req.GetSource())
	if cfg.has(s.ID()) {
		return nil, dfserr.Errorf(dfserr.ErrExist, "copy chunk %s version %d: this server has a replica", cfg.chunk, cfg.version)
	}
	if !cfg.has(source) {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "copy chunk %s version %d from server %s, which has no replica", cfg.chunk, cfg.version, source)
	}
	c, err := s.chunks.acquire(cfg.chunk)
	if err != nil {
		return nil, err
	}
	if !s.copies.begin(cfg.chunk) {
		s.chunks.release(c)
		return nil, dfserr.Errorf(dfserr.ErrBusy, "copy chunk %s: enough copies are being made", cfg.chunk)
	}
	s.members.learn(cfg.wire.GetReplicas())
	s.start(func() {
		defer s.chunks.release(c)
		defer s.copies.end(cfg.chunk)
		seq, err := c.copyFrom(s.ctx, cfg, source)
		if err != nil {
			s.log.Warn("copy of replica failed", "chunk", cfg.chunk, "version", cfg.version, "source", source, "error", err)
		}
		if err := s.replicaCopied(s.ctx, cfg, seq, err); err != nil {
			s.log.Warn("report of copied replica failed", "chunk", cfg.chunk, "version", cfg.version, "error", err)
		}
	})
	return &dfsv1.CopyReplicaReply{}, nil
}

// copyFrom replaces whatever is here by a copy of the source's replica, which is durable when it returns. The copy
// serves nothing until a primary prepares it.
func (c *chunk) copyFrom(ctx context.Context, cfg *chunkConfig, source dfs.ServerID) (dfs.Seq, error) {
	ctx, cancel := context.WithTimeout(ctx, copyFactor*c.srv.cfg.CopyTimeout)
	defer cancel()
	if err := c.lock(ctx); err != nil {
		return 0, err
	}
	defer c.unlock()
	ctx, done := c.interruptible(ctx)
	defer done()
	c.mu.Lock()
	// That the master has put this server out of the version does not matter: a copy takes part only in later ones.
	if c.promised > cfg.version || (c.promised == cfg.version && c.role != roleNone) {
		promised := c.promised
		c.mu.Unlock()
		return 0, dfserr.Errorf(dfserr.ErrStaleVersion, "copy chunk %s version %d: version %d was prepared here", c.id, cfg.version, promised)
	}
	c.retireLocked(dfserr.Errorf(dfserr.ErrNotPrimary, "chunk %s", c.id))
	c.mu.Unlock()
	if rep, err := c.open(); err == nil {
		if state, err := rep.State(); err == nil && state.Version > cfg.version {
			return 0, dfserr.Errorf(dfserr.ErrStaleVersion, "copy chunk %s version %d: the replica here has version %d", c.id, cfg.version, state.Version)
		}
	}
	rep, err := c.srv.fetch(ctx, c.id, pullRequest{source: source, version: cfg.version, whole: true})
	if err != nil {
		return 0, err
	}
	c.setReplica(rep)
	state, err := rep.State()
	return state.LastSeq, err
}

// copyFactor is how much longer than bringing a replica into step a copy in the background may take.
const copyFactor = 10

// DeleteReplicas removes replicas that the master no longer wants, or, with fence_only, only ends their use. One with a higher version than the master names
// is kept: it may be the only trace of what the master has forgotten.
func (h *handlers) DeleteReplicas(ctx context.Context, req *dfsv1.DeleteReplicasRequest) (*dfsv1.DeleteReplicasReply, error) {
	s := h.srv
	if len(req.GetItems()) > maxDeletes {
		return nil, dfserr.Errorf(dfserr.ErrTooBig, "delete %d replicas, at most %d", len(req.GetItems()), maxDeletes)
	}
	reply := &dfsv1.DeleteReplicasReply{}
	for _, item := range req.GetItems() {
		remove := s.deleteReplica
		if req.GetFenceOnly() {
			remove = s.fenceReplica
		}
		err := remove(ctx, dfs.ChunkID(item.GetChunk()), dfs.Version(item.GetVersion()))
		switch {
		case err == nil:
			reply.Deleted = append(reply.Deleted, item.GetChunk())
		case ctx.Err() != nil:
			return reply, nil
		default:
			s.log.Warn("replica is not deleted", "chunk", dfs.ChunkID(item.GetChunk()), "up to version", item.GetVersion(), "error", err)
		}
	}
	return reply, nil
}

// fenceReplica takes the role of a replica of at most the given version away: it serves nothing until the master has
// been asked again, and acknowledges nothing until it is prepared again.
func (s *Server) fenceReplica(_ context.Context, id dfs.ChunkID, version dfs.Version) error {
	c, err := s.chunks.acquire(id)
	if err != nil {
		return err
	}
	defer s.chunks.release(c)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.promised > version {
		return dfserr.Errorf(dfserr.ErrStaleVersion, "fence chunk %s up to version %d: version %d was prepared here", id, version, c.promised)
	}
	c.fenced = max(c.fenced, version)
	c.retireLocked(dfserr.Errorf(dfserr.ErrNotPrimary, "chunk %s", id))
	return nil
}

// deleteReplica removes one replica of at most the given version; that there is none is success.
func (s *Server) deleteReplica(ctx context.Context, id dfs.ChunkID, version dfs.Version) error {
	c, err := s.chunks.acquire(id)
	if err != nil {
		return err
	}
	defer s.chunks.release(c)
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	c.mu.Lock()
	if c.promised > version {
		promised := c.promised
		c.mu.Unlock()
		return dfserr.Errorf(dfserr.ErrStaleVersion, "delete chunk %s up to version %d: version %d was prepared here", id, version, promised)
	}
	c.retireLocked(dfserr.Errorf(dfserr.ErrNotExist, "chunk %s", id))
	c.rep, c.corrupt = nil, nil
	c.made++
	c.mu.Unlock()
	if err := s.store().Delete(id, version); err != nil && !errors.Is(err, dfserr.ErrNotExist) {
		return err
	}
	s.forgetCorrupt(id)
	return nil
}
