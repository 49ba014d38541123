package chunkserver

import (
	"context"
	"errors"

	"dfs/chunkserver/store"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

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
	c.ready, c.end.may = false, false
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
		ctx, cancel := context.WithTimeout(ctx, a.c.srv.cfg.PeerTimeout)
		defer cancel()
		peer, err := a.c.srv.peerUp(ctx, server)
		if err != nil {
			return err
		}
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
