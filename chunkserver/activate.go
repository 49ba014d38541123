package chunkserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"dfs/chunkserver/store"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
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
		grant, err := c.srv.acquireLease(ctx, c.id)
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
	c.becomeActiveLocked(a, g, period)
	return nil
}

// activation is one attempt to bring the replicas of a configuration into step. It is used with the chunk's token held.
type activation struct {
	c      *chunk
	cfg    *chunkConfig
	number uint64
	rep    *store.Replica // this server's; nil while it does not exist
	own    logEnd
	state  store.State // of rep
	orders bool        // the configuration has a seed or a cut that may have to be applied
	others []peerLog
	kept   dfs.Seq // mutations up to this one were in the log here all along
}

// peerLog is another replica.
type peerLog struct {
	server dfs.ServerID
	end    logEnd
	ready  bool // in step without a copy
}

// self says that this server's own replica cannot be used.
func (a *activation) self(err error) error { return &peerError{a.c.srv.ID(), err} }

// begin looks at the log here and takes the role on.
func (a *activation) begin() error {
	c, cfg := a.c, a.cfg
	rep, state, err := c.inspect(cfg.version)
	switch {
	case errors.Is(err, dfserr.ErrNotExist) && cfg.born:
		return dfserr.Errorf(dfserr.ErrNoReplica, "chunk %s", c.id)
	case errors.Is(err, dfserr.ErrNotExist):
	case err != nil:
		return err
	default:
		if err := rep.SetVersion(cfg.version); err != nil {
			return err
		}
		a.rep, a.state, a.own = rep, state, endOf(state)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refusesLocked(cfg.version); err != nil {
		return err
	}
	c.ready = false
	c.detachLocked()
	c.role, c.promised, c.activation, c.cfg = rolePrimary, cfg.version, a.number, cfg
	c.currentIn, c.upstream = 0, nil
	a.orders = (a.own.last == 0 && len(cfg.seed) > 0) || cfg.cutVersion > a.state.CutVersion
	a.kept = a.own.last
	return nil
}

// inspect returns the replica and its state if it may take part in a configuration of the given version. The caller
// holds the token. ErrNotExist: there is none.
func (c *chunk) inspect(version dfs.Version) (*store.Replica, store.State, error) {
	none := func(err error) (*store.Replica, store.State, error) { return nil, store.State{}, err }
	c.mu.Lock()
	corrupt := c.corrupt
	c.mu.Unlock()
	if corrupt != nil {
		return none(corrupt)
	}
	rep, err := c.open()
	if err != nil {
		return none(err)
	}
	state, err := rep.State()
	switch {
	case errors.Is(err, dfserr.ErrNotExist): // made before a crash and never durable
		c.setReplica(nil)
		return none(err)
	case err != nil:
		return none(c.noticeDamage(err))
	case state.Corrupt:
		return none(c.noticeDamage(dfserr.Errorf(dfserr.ErrCorrupt, "chunk %s: %s", c.id, state.CorruptReason)))
	case state.Version > version:
		c.srv.log.Error("replica is newer than the configuration it is wanted for; it is kept and not used", "chunk", c.id,
			"replica version", state.Version, "configuration version", version)
		return none(dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %s version %d: the replica has version %d", c.id, version, state.Version))
	}
	return rep, state, nil
}

// prepareOthers binds the other replicas to this attempt and learns how far their logs reach.
func (a *activation) prepareOthers(ctx context.Context) error {
	req := &dfsv1.PrepareRequest{
		Config: a.cfg.wire, Primary: uint64(a.c.srv.ID()), Activation: a.number,
		Settled: !a.orders, LastSeq: uint64(a.own.last), LastVersion: uint64(a.own.lastVersion()),
	}
	a.others = make([]peerLog, len(a.cfg.replicas)-1)
	return a.each(func(i int, server dfs.ServerID) error {
		peer, err := a.c.srv.peer(server)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, a.c.srv.cfg.PeerTimeout)
		defer cancel()
		reply, err := peer.Prepare(ctx, req)
		if err != nil {
			return err
		}
		end := logEnd{exists: reply.GetExists(), last: dfs.Seq(reply.GetLastSeq()), base: dfs.Seq(reply.GetBaseSeq())}
		for _, e := range reply.GetEpochs() {
			end.epochs = append(end.epochs, epoch{dfs.Version(e.GetVersion()), dfs.Seq(e.GetFirstSeq())})
		}
		a.others[i] = peerLog{server, end, reply.GetReady()}
		return nil
	})
}

// each calls f for every other replica at the same time and returns the first failure, in chain order, as a *peerError.
func (a *activation) each(f func(i int, server dfs.ServerID) error) error {
	servers := a.cfg.replicas[1:]
	errs := make([]error, len(servers))
	done := make(chan struct{}, len(servers))
	for i := 1; i < len(servers); i++ {
		a.c.srv.start(func() {
			errs[i] = f(i, servers[i])
			done <- struct{}{}
		})
	}
	if len(servers) > 0 {
		errs[0] = f(0, servers[0])
	}
	for i := 1; i < len(servers); i++ {
		<-done
	}
	// A newer version somewhere makes everything else moot.
	for i, err := range errs {
		if errors.Is(err, dfserr.ErrStaleVersion) {
			return &peerError{servers[i], err}
		}
	}
	for i, err := range errs {
		if err != nil {
			return &peerError{servers[i], err}
		}
	}
	return nil
}

// alignSelf makes the log here the longest of all and brings it up to the configuration.
func (a *activation) alignSelf(ctx context.Context) error {
	c := a.c
	best := -1
	for i, p := range a.others {
		if p.end.exists && compareLogs(p.end, a.bestOf(best)) > 0 {
			best = i
		}
	}
	if a.rep == nil {
		if best >= 0 && a.others[best].end.last > 0 {
			return a.self(dfserr.Errorf(dfserr.ErrNoReplica, "chunk %s: others have %d mutations and there is no replica here", c.id, a.others[best].end.last))
		}
		rep, err := c.srv.store().Create(c.id, a.cfg.version)
		if err != nil {
			return a.self(err)
		}
		c.setReplica(rep)
		a.rep, best = rep, -1
	}
	if best >= 0 {
		p := a.others[best]
		keep, whole := copyPlan(p.end, a.own)
		c.srv.log.Info("primary copies from a replica with a longer log", "chunk", c.id, "version", a.cfg.version, "server", p.server,
			"from", a.own.last, "to", p.end.last, "whole", whole)
		a.kept = keep
		if whole {
			a.kept = 0
		}
		if err := c.pull(ctx, pullRequest{source: p.server, version: a.cfg.version, keep: keep, whole: whole, last: p.end.last}); err != nil {
			return &peerError{p.server, err}
		}
		a.rep = c.replica()
		for i := range a.others {
			a.others[i].ready = false
		}
	}
	if err := a.applyOrders(); err != nil {
		return a.self(err)
	}
	state, err := a.rep.State()
	if err != nil {
		return a.self(err)
	}
	a.state, a.own = state, endOf(state)
	return nil
}

// bestOf returns the longest log found so far.
func (a *activation) bestOf(i int) logEnd {
	if i < 0 {
		return a.own
	}
	return a.others[i].end
}

// applyOrders appends the seed and the cut that the master wants before any other mutation, unless the log has them.
func (a *activation) applyOrders() error {
	state, err := a.rep.State()
	if err != nil {
		return err
	}
	seq := state.LastSeq
	if seq == 0 && len(a.cfg.seed) > 0 {
		seq++
		err := a.rep.Append(&store.Mutation{
			Kind: store.KindWrite, Version: a.cfg.version, Seq: seq, Len: int64(len(a.cfg.seed)),
			Data: [][]byte{a.cfg.seed}, CRCs: dfs.BlockCRCs(0, a.cfg.seed),
		})
		if err != nil {
			return err
		}
		state.Length = int64(len(a.cfg.seed))
	}
	if a.cfg.cutVersion > state.CutVersion {
		seq++
		return a.rep.Append(&store.Mutation{
			Kind: store.KindTruncate, Version: a.cfg.version, Seq: seq, Off: min(state.Length, a.cfg.cutLength), CutVersion: a.cfg.cutVersion,
		})
	}
	return nil
}

// alignOthers brings every other replica into step with the log here.
func (a *activation) alignOthers(ctx context.Context) error {
	return a.each(func(i int, server dfs.ServerID) error {
		p := a.others[i]
		if p.ready {
			return nil
		}
		peer, err := a.c.srv.peer(server)
		if err != nil {
			return err
		}
		keep, whole := copyPlan(a.own, p.end)
		if whole || keep != a.own.last || keep != p.end.last {
			a.c.srv.log.Info("replica is brought into step", "chunk", a.c.id, "version", a.cfg.version, "server", server,
				"has", p.end.last, "keeps", keep, "to", a.own.last, "whole", whole)
		}
		ctx, cancel := context.WithTimeout(ctx, a.c.srv.cfg.CopyTimeout)
		defer cancel()
		reply, err := peer.CatchUp(ctx, &dfsv1.CatchUpRequest{
			Config: a.cfg.wire, Source: uint64(a.c.srv.ID()), KeepSeq: uint64(keep), Whole: whole, Activation: a.number, LastSeq: uint64(a.own.last),
		})
		if err != nil {
			return err
		}
		if dfs.Seq(reply.GetLastSeq()) != a.own.last {
			return dfserr.Errorf(dfserr.ErrUnavailable, "copy ended at mutation %d, not %d", reply.GetLastSeq(), a.own.last)
		}
		return nil
	})
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
