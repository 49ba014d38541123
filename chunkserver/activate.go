package chunkserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"dfs/chunkserver/store"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// Bounds on starting over, within one activation and from one to the next.
const (
	maxAttempts = 8
	maxFaults   = 6
)

// activateLocked begins activation, or joins the one in progress.
func (c *chunk) activateLocked() *flight {
	if c.flight != nil {
		return c.flight
	}
	f := newFlight()
	c.flight = f
	c.srv.start(func() { c.fly(f) })
	return f
}

// fly runs activation until the chunk is active or it is given up, and then answers those who wait.
func (c *chunk) fly(f *flight) {
	ctx, cancel := context.WithTimeout(c.srv.ctx, c.srv.cfg.CopyTimeout+2*c.srv.cfg.MasterTimeout)
	defer cancel()
	for {
		err := c.activate(ctx)
		c.mu.Lock()
		if err == nil && !c.ready && c.role == rolePrimary && c.faults <= maxFaults {
			c.mu.Unlock() // broken again already
			continue
		}
		if err == nil && c.role != rolePrimary {
			err = dfserr.Errorf(dfserr.ErrNotPrimary, "chunk %s", c.id)
		} else if err == nil && !c.ready {
			err = dfserr.Errorf(dfserr.ErrUnavailable, "chunk %s: its replicas fail one after the other", c.id)
		}
		if err != nil {
			c.srv.log.Debug("activation failed", "chunk", c.id, "error", err)
			c.faults = 0
			outcome := asRefresh(err)
			if errors.Is(err, dfserr.ErrNotExist) || errors.Is(err, dfserr.ErrNoReplica) {
				outcome = err
			}
			if !c.ready {
				c.dropWaitersLocked(0, outcome)
			}
			c.refuseQueuedLocked(outcome)
		}
		c.flight, f.err = nil, err
		c.mu.Unlock()
		close(f.done)
		c.kick(false)
		return
	}
}

// peerError says that the replica on a server cannot be used.
type peerError struct {
	server dfs.ServerID
	err    error
}

func (e *peerError) Error() string { return fmt.Sprintf("replica on server %s: %v", e.server, e.err) }
func (e *peerError) Unwrap() error { return e.err }

// activate makes this server the active primary: with the lease, and with every replica of the configuration in step. It
// reports replicas that fail and goes on with the configuration that the master then commits.
func (c *chunk) activate(ctx context.Context) error {
	stale := 0
	for range maxAttempts {
		c.mu.Lock()
		fault := c.fault
		c.fault = nil
		c.mu.Unlock()
		if fault != nil {
			cfg, err := c.srv.reportFailure(ctx, c.id, *fault)
			if err != nil {
				c.mu.Lock()
				c.fault = fault
				c.mu.Unlock()
				return err
			}
			if fault.server == c.srv.ID() {
				return c.giveUp(fault, cfg)
			}
		}
		period, err := c.srv.serving.wait(ctx, c.srv.cfg.PeerTimeout)
		if err != nil {
			return err
		}
		c.mu.Lock()
		holds := c.end.holds
		c.mu.Unlock()
		grant, err := c.srv.acquireLease(ctx, c.id)
		grant.holds = holds
		if err != nil {
			if errors.Is(err, dfserr.ErrNotPrimary) || errors.Is(err, dfserr.ErrNotExist) {
				c.mu.Lock()
				if c.role == rolePrimary {
					c.retireLocked(dfserr.Errorf(dfserr.ErrNotPrimary, "chunk %s", c.id))
				}
				c.mu.Unlock()
			}
			return err
		}
		if grant.cfg.chunk != c.id || grant.cfg.primary() != c.srv.ID() {
			return dfserr.Errorf(dfserr.ErrNotPrimary, "chunk %s version %d", c.id, grant.cfg.version)
		}
		if c.renewed(grant, period) {
			return nil
		}
		err = c.prepareAll(ctx, grant, period)
		var peer *peerError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &peer) && errors.Is(err, dfserr.ErrStaleVersion):
			// The peer knows a newer version than the one granted; a newer grant will come.
			if stale++; stale > 2 {
				return dfserr.Errorf(dfserr.ErrStaleVersion, "activate chunk %s version %d: %v", c.id, grant.cfg.version, err)
			}
		case errors.As(err, &peer):
			c.srv.log.Warn("replica cannot be brought into step", "chunk", c.id, "version", grant.cfg.version, "server", peer.server, "error", peer.err)
			c.mu.Lock()
			c.fault = &failure{server: peer.server, version: grant.cfg.version, reason: peer.err.Error(), corrupt: errors.Is(peer.err, dfserr.ErrCorrupt)}
			c.mu.Unlock()
		default:
			return err
		}
		if ctx.Err() != nil {
			return dfserr.Errorf(dfserr.ErrUnavailable, "activate chunk %s: %v", c.id, ctx.Err())
		}
	}
	return dfserr.Errorf(dfserr.ErrUnavailable, "activate chunk %s: given up after %d configurations", c.id, maxAttempts)
}

// giveUp ends the role after this server's own replica was reported lost; cfg is what the master goes on with.
func (c *chunk) giveUp(f *failure, cfg *chunkConfig) error {
	sentinel := dfserr.ErrNotPrimary
	if cfg.primary() == c.srv.ID() { // there is no other
		sentinel = dfserr.ErrNoReplica
	}
	out := dfserr.Errorf(sentinel, "chunk %s version %d: the replica on this server is lost: %s", c.id, cfg.version, f.reason)
	c.mu.Lock()
	c.retireLocked(out)
	c.mu.Unlock()
	return out
}

// renewed extends the lease of a primary that is active in the granted configuration.
func (c *chunk) renewed(g grantReply, period uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.role != rolePrimary || !c.ready || c.promised != g.cfg.version {
		return false
	}
	c.leaseUntil, c.currentIn, c.minReplicas = g.until, period, g.minReplicas
	c.touchedAt = time.Now()
	c.end.learn(g, c.touchedAt)
	return true
}

// prepareAll takes the granted configuration up: prepares the other replicas, finds the longest log, brings all into step with
// it, applies what the master has ordered to come first, and makes this server active.
func (c *chunk) prepareAll(ctx context.Context, g grantReply, period uint64) error {
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer func() { <-c.token }() // the flight looks at the queue when it ends
	cfg := g.cfg
	a := &activation{c: c, cfg: cfg, number: c.srv.random()}
	if err := a.begin(); err != nil {
		return a.self(err)
	}
	long, done := c.interruptible(ctx)
	defer done()
	for _, step := range []func(context.Context) error{a.prepareOthers, a.alignSelf, a.alignOthers} {
		err := step(long)
		if err != nil && long.Err() != nil && ctx.Err() == nil {
			return a.self(dfserr.Errorf(dfserr.ErrStaleVersion, "activate chunk %s version %d: a newer one is being prepared", c.id, cfg.version))
		}
		if err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.activation != a.number { // fenced by the master, which needs no token
		return a.self(dfserr.Errorf(dfserr.ErrStaleVersion, "activate chunk %s version %d: the role was taken away meanwhile", c.id, cfg.version))
	}
	c.becomeActiveLocked(a, g, period)
	return nil
}

// becomeActiveLocked starts ordering writes: everything in the log is on every replica, so what clients wait for is
// done.
func (c *chunk) becomeActiveLocked(a *activation, g grantReply, period uint64) {
	c.rep = a.rep
	last := a.own.last
	c.minReplicas, c.leaseUntil, c.currentIn, c.touchedAt = g.minReplicas, g.until, period, time.Now()
	c.localSeq, c.sentSeq, c.downSeq, c.committed, c.notified = last, last, last, last, 0
	c.length, c.commitLen = a.state.Length, a.state.Length
	c.syncedSeq = 0
	c.end.last = 0
	c.end.learn(g, c.touchedAt)
	c.next, c.rest = 0, nil
	if chain := a.cfg.replicas[1:]; len(chain) > 0 {
		c.next = chain[0]
		for _, id := range chain[1:] {
			c.rest = append(c.rest, uint64(id))
		}
	}
	c.ready = true
	c.noteCommitted(a.rep, last)
	c.dropWaitersLocked(a.kept, dfserr.Errorf(dfserr.ErrStaleVersion, "write to chunk %s", c.id))
	if c.tooFewLocked() {
		c.dropPendingLocked(0, dfserr.Errorf(dfserr.ErrTooFewReplicas, "write to chunk %s version %d, which has %d replicas", c.id, c.promised, len(c.cfg.replicas)))
	}
	for _, p := range c.pending {
		p.ws.done(p.tag, p.off, p.seq, p.length)
	}
	c.pending = nil
	c.wakeLocked()
}

// setReplica notes the replica after it was made or replaced. The caller holds the token.
func (c *chunk) setReplica(rep *store.Replica) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rep, c.corrupt = rep, nil
	c.made++
}

// replica returns the replica that is in use, or nil.
func (c *chunk) replica() *store.Replica {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rep
}

// endOf describes a log for comparison.
func endOf(s store.State) logEnd {
	end := logEnd{exists: true, last: s.LastSeq, base: s.BaseSeq}
	for _, e := range s.Epochs {
		end.epochs = append(end.epochs, epoch{e.Version, e.First})
	}
	return end
}
