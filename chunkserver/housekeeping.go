package chunkserver

import (
	"context"
	"time"

	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// houseInterval is how often idle and stalled chunks are looked for.
const houseInterval = 500 * time.Millisecond

// keepHouse looks after chunks until the server stops.
func (s *Server) keepHouse() {
	tick := time.NewTicker(houseInterval)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		for _, d := range s.downs.all() {
			if d.stuck(now.Add(-s.cfg.StallTimeout)) {
				d.fail(dfserr.Errorf(dfserr.ErrUnavailable, "it takes no data"))
			}
		}
		for _, c := range s.chunks.all() {
			c.lookAfter(now)
		}
		s.chunks.evict(now)
	}
}

// lookAfter gives up a successor that stalls, tells an idle chunk's secondaries how far it is committed, and begins to give the lease
// back when it is not used.
func (c *chunk) lookAfter(now time.Time) {
	c.mu.Lock()
	if !c.ready {
		c.mu.Unlock()
		return
	}
	patience := c.srv.cfg.StallTimeout + time.Duration(len(c.rest))*c.srv.cfg.StallTimeout/2
	if c.next != 0 && c.sentSeq > c.downSeq && now.Sub(c.movedAt) > patience {
		c.downLostLocked(dfserr.Errorf(dfserr.ErrUnavailable, "no acknowledgement for %v", patience))
		c.mu.Unlock()
		return
	}
	if c.role != rolePrimary {
		c.mu.Unlock()
		return
	}
	idle := c.srv.cfg.IdleRelease
	if idle == 0 {
		idle = time.Duration(c.srv.writeLease.Load())
	}
	release := idle > 0 && now.Sub(c.touchedAt) >= idle && len(c.pending) == 0 && c.flight == nil
	rep, committed := c.rep, c.committed
	var down *downstream
	w := &work{}
	if len(c.pending) == 0 && c.notified < committed && c.down != nil {
		c.notified = committed
		l := &w.link
		l.Chunk, l.Version, l.Activation, l.CommittedSeq, l.Chain = uint64(c.id), uint64(c.promised), c.activation, uint64(committed), c.rest
		l.Kind = dfsv1.MutationKind_MUTATION_UNSPECIFIED
		w.frame.Header = l
		w.holders.Store(1)
		down = c.down
		down.push(w)
	}
	c.mu.Unlock()
	if down != nil {
		down.wakeUp()
		c.noteCommitted(rep, committed)
	}
	if release {
		c.srv.start(func() {
			ctx, cancel := context.WithTimeout(c.srv.ctx, c.srv.cfg.CopyTimeout)
			defer cancel()
			c.releaseLease(ctx, idle)
		})
	}
}

// releaseLease syncs a chunk everywhere and gives its lease back, unless it was used within idle of now. The master takes a lease that was given
// back to mean that all data of the chunk is on stable storage; so one that has run out, while no master could be reached, is no reason not to sync.
func (c *chunk) releaseLease(ctx context.Context, idle time.Duration) {
	now := time.Now()
	c.mu.Lock()
	v := view{rep: c.rep, version: c.promised, activation: c.activation}
	primary := c.role == rolePrimary && c.ready
	busy := c.releasing
	dirty := c.committed > c.syncedSeq
	c.releasing = true
	c.mu.Unlock()
	if busy {
		return
	}
	defer func() {
		c.mu.Lock()
		c.releasing = false
		c.mu.Unlock()
	}()
	if primary && dirty {
		if err := c.syncAll(ctx, v); err != nil {
			c.srv.log.Warn("sync before giving a lease back failed", "chunk", c.id, "error", err)
			return
		}
	}
	c.mu.Lock()
	done := c.role == rolePrimary && c.ready && c.activation == v.activation && len(c.pending) == 0 && len(c.queue) == 0 && !c.working && c.flight == nil &&
		c.committed <= c.syncedSeq && now.Sub(c.touchedAt) >= idle
	if done {
		c.retireLocked(dfserr.Errorf(dfserr.ErrLeaseExpired, "chunk %s: the lease was given back", c.id))
	}
	c.mu.Unlock()
	if done {
		c.srv.beatMu.Lock()
		c.srv.released = append(c.srv.released, c.id)
		c.srv.beatMu.Unlock()
	}
}
