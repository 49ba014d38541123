package chunkserver

import (
	"context"
	"errors"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// Sync puts everything acknowledged before the call on stable storage, on every replica.
func (h *handlers) Sync(ctx context.Context, req *dfsv1.SyncRequest) (*dfsv1.SyncReply, error) {
	s := h.srv
	c, err := s.chunks.acquire(dfs.ChunkID(req.GetChunk()))
	if err != nil {
		return nil, err
	}
	defer s.chunks.release(c)
	for range maxTries {
		var v view
		if v, err = c.primaryView(ctx, dfs.Version(req.GetVersion())); err != nil {
			return nil, err
		}
		if err = c.syncAll(ctx, v); err == nil {
			return &dfsv1.SyncReply{ChunkLength: c.committedLength()}, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, asRefresh(err)
}

// syncAll waits for a sync, on every replica, of what is committed now. Calls that come while one is running share the
// next.
func (c *chunk) syncAll(ctx context.Context, v view) error {
	c.mu.Lock()
	if c.activation != v.activation || !c.ready {
		c.mu.Unlock()
		return dfserr.Errorf(dfserr.ErrStaleVersion, "sync chunk %s version %d: prepared anew", c.id, v.version)
	}
	if c.syncedSeq >= c.committed && c.committed > 0 {
		c.mu.Unlock()
		return nil
	}
	f := c.syncNext
	switch {
	case f != nil:
	case c.syncRun == nil:
		f = newFlight()
		c.syncRun = f
		c.srv.start(c.runSyncs)
	default:
		f = newFlight()
		c.syncNext = f
	}
	c.mu.Unlock()
	return f.wait(ctx)
}

// runSyncs syncs until nobody waits.
func (c *chunk) runSyncs() {
	for {
		err := c.syncOnce(c.srv.ctx)
		c.mu.Lock()
		f := c.syncRun
		f.err = err
		c.syncRun, c.syncNext = c.syncNext, nil
		more := c.syncRun != nil
		c.mu.Unlock()
		close(f.done)
		if !more {
			return
		}
	}
}

// syncOnce syncs every replica. One that cannot is reported: its disk is not to be trusted, and asking it again
// would be (docs/durability.md).
func (c *chunk) syncOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.srv.cfg.CopyTimeout)
	defer cancel()
	c.mu.Lock()
	if !c.ready || c.role != rolePrimary {
		c.mu.Unlock()
		return dfserr.Errorf(dfserr.ErrLeaseExpired, "sync chunk %s", c.id)
	}
	cfg, rep, number, target := c.cfg, c.rep, c.activation, c.committed
	c.mu.Unlock()
	a := &activation{c: c, cfg: cfg}
	others := make(chan error, 1)
	c.srv.start(func() {
		others <- a.each(func(_ int, server dfs.ServerID) error {
			peer, err := c.srv.peer(server)
			if err != nil {
				return err
			}
			_, err = peer.SyncReplica(ctx, &dfsv1.SyncRequest{Chunk: uint64(c.id), Version: uint64(cfg.version), Seq: uint64(target)})
			return err
		})
	})
	own := rep.Sync()
	err := <-others
	c.mu.Lock()
	defer c.mu.Unlock()
	if own != nil {
		c.srv.log.Error("sync of replica failed", "chunk", c.id, "error", own)
		c.srv.beatNow()
		if c.activation == number {
			c.breakLocked(&failure{server: c.srv.ID(), version: cfg.version, reason: own.Error()})
		}
		return own
	}
	var peer *peerError
	if errors.As(err, &peer) {
		c.srv.log.Warn("sync of a replica failed", "chunk", c.id, "version", cfg.version, "server", peer.server, "error", peer.err)
		switch {
		case c.activation != number:
		case errors.Is(err, dfserr.ErrStaleVersion) || errors.Is(err, dfserr.ErrLeaseExpired):
			c.breakLocked(nil)
		default:
			c.breakLocked(&failure{server: peer.server, version: cfg.version, reason: peer.err.Error()})
		}
		return err
	}
	if c.activation != number {
		return dfserr.Errorf(dfserr.ErrStaleVersion, "sync chunk %s version %d: prepared anew", c.id, cfg.version)
	}
	c.syncedSeq = max(c.syncedSeq, target)
	return nil
}
