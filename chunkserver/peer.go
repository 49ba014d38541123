package chunkserver

import (
	"context"
	"errors"

	"dfs/chunkserver/store"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// configFor checks a configuration that a peer or the master sent to this server as one of its replicas.
func (s *Server) configFor(w *dfsv1.ChunkConfig) (*chunkConfig, error) {
	cfg, err := parseConfig(w)
	if err != nil {
		return nil, err
	}
	if !cfg.has(s.ID()) {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "configuration of chunk %s version %d has no replica on server %s", cfg.chunk, cfg.version, s.ID())
	}
	return cfg, nil
}

// Prepare binds this replica to one activation by a primary: from now on it refuses lower versions and other
// activations. It says how far the log reaches.
func (h *handlers) Prepare(ctx context.Context, req *dfsv1.PrepareRequest) (*dfsv1.PrepareReply, error) {
	s := h.srv
	cfg, err := s.configFor(req.GetConfig())
	if err != nil {
		return nil, err
	}
	if dfs.ServerID(req.GetPrimary()) != cfg.primary() || cfg.primary() == s.ID() || req.GetActivation() == 0 {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "prepare chunk %s version %d by server %x", cfg.chunk, cfg.version, req.GetPrimary())
	}
	c, err := s.chunks.acquire(cfg.chunk)
	if err != nil {
		return nil, err
	}
	defer s.chunks.release(c)
	if err := c.makeWay(cfg.version); err != nil {
		return nil, err
	}
	if !s.members.knows(cfg.replicas) {
		// A server that has just joined: the master's answer has its address. Without it the chain breaks here and is made anew.
		if _, err := s.lookupConfig(ctx, cfg.chunk); err != nil {
			s.log.Debug("addresses of a configuration not learnt", "chunk", cfg.chunk, "error", err)
		}
	}
	if err := c.lock(ctx); err != nil {
		return nil, err
	}
	defer c.unlock()
	return c.prepare(cfg, req)
}

// makeWay refuses a version that is too low, and ends what an older configuration is waiting for.
func (c *chunk) makeWay(v dfs.Version) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refusesLocked(v); err != nil {
		return err
	}
	if c.promised < v && c.interrupt != nil {
		c.interrupt()
	}
	return nil
}

// refusesLocked returns why a configuration of version v is not taken up, or nil.
func (c *chunk) refusesLocked(v dfs.Version) error {
	switch {
	case c.promised > v:
		return dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %s version %d: version %d was prepared here", c.id, v, c.promised)
	case c.fenced >= v:
		return dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %s version %d: the master has put this replica out of version %d", c.id, v, c.fenced)
	}
	return nil
}

// prepare is Prepare with the token.
func (c *chunk) prepare(cfg *chunkConfig, req *dfsv1.PrepareRequest) (*dfsv1.PrepareReply, error) {
	if err := c.makeWay(cfg.version); err != nil {
		return nil, err
	}
	reply := &dfsv1.PrepareReply{}
	rep, state, err := c.inspect(cfg.version)
	switch {
	case errors.Is(err, dfserr.ErrNotExist):
		if cfg.born || !req.GetSettled() || req.GetLastSeq() != 0 {
			break // a whole copy will come
		}
		if rep, err = c.srv.store().Create(c.id, cfg.version); err != nil {
			return nil, err
		}
		c.setReplica(rep)
		reply.Ready = true
	case err != nil:
		return nil, err
	default:
		if err := rep.SetVersion(cfg.version); err != nil {
			return nil, err
		}
		end := endOf(state)
		reply.Exists, reply.Version, reply.LastSeq, reply.BaseSeq = true, uint64(state.Version), uint64(end.last), uint64(end.base)
		for _, e := range end.epochs {
			reply.Epochs = append(reply.Epochs, &dfsv1.Epoch{Version: uint64(e.version), FirstSeq: uint64(e.first)})
		}
		reply.Ready = req.GetSettled() && req.GetLastSeq() == uint64(end.last) && req.GetLastVersion() == uint64(end.lastVersion())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.becomeSecondaryLocked(cfg, req.GetActivation())
	if reply.Ready {
		c.inStepLocked(state)
	}
	return reply, nil
}

// inStepLocked makes a secondary ready for the mutations after those in its log.
func (c *chunk) inStepLocked(state store.State) {
	c.localSeq, c.sentSeq, c.downSeq, c.committed = state.LastSeq, state.LastSeq, state.LastSeq, min(state.Committed, state.LastSeq)
	c.ready = true
}

// becomeSecondaryLocked binds the replica to an activation; its log is not in step yet.
func (c *chunk) becomeSecondaryLocked(cfg *chunkConfig, activation uint64) {
	c.ready = false
	c.detachLocked()
	c.dropWaitersLocked(0, dfserr.Errorf(dfserr.ErrNotPrimary, "chunk %s", c.id))
	if c.promised != cfg.version {
		c.currentIn = 0
	}
	c.role, c.promised, c.activation, c.cfg, c.fault = roleSecondary, cfg.version, activation, cfg, nil
	c.upstream, c.next, c.rest = nil, 0, nil
}

// CatchUp makes the log here equal to the primary's.
func (h *handlers) CatchUp(ctx context.Context, req *dfsv1.CatchUpRequest) (*dfsv1.CatchUpReply, error) {
	s := h.srv
	cfg, err := s.configFor(req.GetConfig())
	if err != nil {
		return nil, err
	}
	c, err := s.chunks.acquire(cfg.chunk)
	if err != nil {
		return nil, err
	}
	defer s.chunks.release(c)
	if err := c.lock(ctx); err != nil {
		return nil, err
	}
	defer c.unlock()
	c.mu.Lock()
	bound := c.role == roleSecondary && c.promised == cfg.version && c.activation == req.GetActivation()
	missing := c.rep == nil
	if bound {
		c.ready = false
	}
	c.mu.Unlock()
	if !bound {
		return nil, dfserr.Errorf(dfserr.ErrLeaseExpired, "bring chunk %s version %d into step: not prepared for this", c.id, cfg.version)
	}
	if missing && !req.GetWhole() {
		return nil, dfserr.Errorf(dfserr.ErrNoReplica, "bring chunk %s version %d into step", c.id, cfg.version)
	}
	ctx, done := c.interruptible(ctx)
	defer done()
	p := pullRequest{
		source: dfs.ServerID(req.GetSource()), version: cfg.version, keep: dfs.Seq(req.GetKeepSeq()), whole: req.GetWhole(), last: dfs.Seq(req.GetLastSeq()),
	}
	if err := c.pull(ctx, p); err != nil {
		return nil, err
	}
	rep := c.replica()
	if err := rep.SetVersion(cfg.version); err != nil { // a whole copy may have brought a lower one
		return nil, err
	}
	state, err := rep.State()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.activation != req.GetActivation() { // fenced by the master, which needs no token
		return nil, dfserr.Errorf(dfserr.ErrStaleVersion, "bring chunk %s version %d into step: the role was taken away meanwhile", c.id, cfg.version)
	}
	c.inStepLocked(state)
	return &dfsv1.CatchUpReply{LastSeq: uint64(state.LastSeq)}, nil
}

// Committed answers, at the active primary, once everything up to a seq is committed.
func (h *handlers) Committed(ctx context.Context, req *dfsv1.CommittedRequest) (*dfsv1.CommittedReply, error) {
	s := h.srv
	c, err := s.chunks.acquire(dfs.ChunkID(req.GetChunk()))
	if err != nil {
		return nil, err
	}
	defer s.chunks.release(c)
	if unprepared := dfs.ServerID(req.GetUnprepared()); unprepared != 0 {
		c.prepareAgain(dfs.Version(req.GetVersion()), unprepared)
	}
	v, err := c.primaryView(ctx, dfs.Version(req.GetVersion()))
	if err != nil {
		return nil, err
	}
	if v.version != dfs.Version(req.GetVersion()) {
		return nil, dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %s version %d, which has version %d", c.id, req.GetVersion(), v.version)
	}
	if err := c.awaitCommit(ctx, v, dfs.Seq(req.GetSeq())); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return &dfsv1.CommittedReply{CommittedSeq: uint64(c.committed)}, nil
}

// prepareAgain has an active primary prepare its replicas anew, because one of them has forgotten that it was.
func (c *chunk) prepareAgain(version dfs.Version, server dfs.ServerID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.role == rolePrimary && c.ready && c.promised == version && c.cfg.has(server) && server != c.srv.ID() {
		c.breakLocked(nil)
	}
}

// SyncReplica puts this replica's log up to a seq on stable storage.
func (h *handlers) SyncReplica(ctx context.Context, req *dfsv1.SyncRequest) (*dfsv1.SyncReply, error) {
	s := h.srv
	c, err := s.chunks.acquire(dfs.ChunkID(req.GetChunk()))
	if err != nil {
		return nil, err
	}
	defer s.chunks.release(c)
	c.mu.Lock()
	ok := c.role == roleSecondary && c.ready && c.promised == dfs.Version(req.GetVersion())
	rep, local, promised := c.rep, c.localSeq, c.promised
	c.mu.Unlock()
	switch {
	case promised > dfs.Version(req.GetVersion()):
		return nil, dfserr.Errorf(dfserr.ErrStaleVersion, "sync chunk %s version %d, which has version %d", c.id, req.GetVersion(), promised)
	case !ok:
		return nil, dfserr.Errorf(dfserr.ErrLeaseExpired, "sync chunk %s version %d: not prepared", c.id, req.GetVersion())
	case local < dfs.Seq(req.GetSeq()):
		return nil, dfserr.Errorf(dfserr.ErrUnavailable, "sync chunk %s up to mutation %d: the log ends at %d", c.id, req.GetSeq(), local)
	}
	if err := rep.Sync(); err != nil {
		s.beatNow()
		return nil, err
	}
	return &dfsv1.SyncReply{}, nil
}
