package chunkserver

import (
	"context"
	"sync"
	"time"

	"dfs/chunkserver/store"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// role is what a replica does in its configuration; the package comment describes the roles.
type role uint8

const (
	roleNone role = iota
	roleSecondary
	rolePrimary
)

// chunk is the state of one replica's role. It outlives roles and is dropped when idle; the log is the store's.
type chunk struct {
	id  dfs.ChunkID
	srv *Server

	// token is the right to change the log and the role; holding it means being in the channel.
	token chan struct{}

	// refs and usedAt are guarded by chunkTable.mu.
	refs   int
	usedAt time.Time

	mu sync.Mutex
	// All below is guarded by mu; rep, promised and the log are changed only with the token too, and a role is
	// taken up only with it.

	rep        *store.Replica // nil: not looked up, or there is none
	made       uint64         // grows when the replica is made, replaced or deleted
	promised   dfs.Version    // nothing of a lower version is accepted any more; 0: nothing prepared since the start
	fenced     dfs.Version    // nothing up to this version is accepted: the master has put the replica out of it
	activation uint64         // drawn by the primary of promised; 0: none
	role       role
	cfg        *chunkConfig // of promised; nil with role none
	ready      bool         // the log is in step; a primary with it is active
	corrupt    error        // the log cannot be trusted: nothing is served but what recovers it

	currentIn uint64 // serving period in which the master named cfg the committed configuration; 0: none

	// Of a primary.
	leaseUntil  time.Time
	touchedAt   time.Time // last use that needs the lease
	minReplicas int
	pending     []pending // ascending by seq: ordered and not committed
	repeats     []pending // repeated requests that wait for the commit of the first
	waiters     []commitWaiter
	fault       *failure // why ready was lost; told to the master when activation begins again
	faults      int      // activations begun again since something was committed
	flight      *flight  // activation in progress
	notified    dfs.Seq  // committed seq that the successor was told
	releasing   bool     // the lease is being given back
	syncedSeq   dfs.Seq  // on stable storage everywhere, within this activation
	syncRun     *flight  // running Sync
	syncNext    *flight  // the one after it, which covers whoever comes now
	end         fileEnd

	// Of a secondary.
	resolving *flight        // finding out the configuration
	upstream  *forwardStream // where acknowledgements go

	// Of both, while ready.
	localSeq  dfs.Seq   // in the log here
	sentSeq   dfs.Seq   // given to the successor
	downSeq   dfs.Seq   // in the logs of all successors
	committed dfs.Seq   // of a primary: everywhere; of a secondary: as told
	length    int64     // after localSeq
	commitLen int64     // after committed
	movedAt   time.Time // downSeq last rose, or sentSeq rose from it
	down      *downstream
	next      dfs.ServerID // the successor; 0: none
	rest      []uint64     // the chain after it

	// interrupt ends what the holder of the token waits for; nil when that is nothing long.
	interrupt context.CancelFunc

	queue      []*work
	queueBytes int64
	working    bool // somebody works the queue off
}

// pending is a mutation that a client waits for.
type pending struct {
	seq    dfs.Seq
	ws     *writeStream
	tag    uint64
	off    int64
	length int64 // of the chunk after the mutation
}

// commitWaiter is told when seq is committed (nil) or can no longer be waited for.
type commitWaiter struct {
	seq  dfs.Seq
	done chan error // has room for one
}

// flight is an attempt that any number wait for. err may be read once done is closed.
type flight struct {
	done chan struct{}
	err  error
}

func newFlight() *flight { return &flight{done: make(chan struct{})} }

// wait waits for the end of the attempt and returns its outcome.
func (f *flight) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return dfserr.Errorf(ctx.Err(), "wait for a chunk to be ready")
	}
}

// lock takes the token.
func (c *chunk) lock(ctx context.Context) error {
	select {
	case c.token <- struct{}{}:
		return nil
	case <-ctx.Done():
		return dfserr.Errorf(ctx.Err(), "wait for chunk %s", c.id)
	}
}

// unlock returns the token and has the queue looked at.
func (c *chunk) unlock() {
	<-c.token
	c.kick(false)
}

// interruptible returns a context for a long wait of the token's holder, which a Prepare of a higher version ends.
func (c *chunk) interruptible(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.interrupt = cancel
	return ctx, func() {
		c.mu.Lock()
		c.interrupt = nil
		c.mu.Unlock()
		cancel()
	}
}

// enqueue takes a frame. It is refused, and answered, when too much waits already.
func (c *chunk) enqueue(w *work) {
	n := int64(w.frame.Len())
	c.mu.Lock()
	if w.fromClient() && len(c.queue) > 0 && c.queueBytes+n > c.srv.cfg.ChunkQueue {
		c.mu.Unlock()
		w.refuse(0, dfserr.Errorf(dfserr.ErrBusy, "write to chunk %s: %d bytes wait already", c.id, c.queueBytes))
		return
	}
	c.queue = append(c.queue, w)
	c.queueBytes += n
	idle := !c.working && c.flight == nil
	c.mu.Unlock()
	switch {
	case !idle: // whoever works, or the activation when it ends, gets to it
	case n >= largeFrame:
		c.srv.start(func() { c.kick(false) })
	default:
		c.kick(true)
	}
}

// inlineFrames is how many frames a stream's goroutine works off before it hands over.
const inlineFrames = 16

// kick works the queue off unless somebody does. An inline caller is let go after a while.
func (c *chunk) kick(inline bool) {
	limit := 0
	if inline {
		limit = inlineFrames
	}
	for {
		c.mu.Lock()
		runnable := len(c.queue) > 0 && c.flight == nil
		c.mu.Unlock()
		if !runnable {
			return
		}
		select {
		case c.token <- struct{}{}:
		default:
			return // the holder looks again after letting go
		}
		more := c.drain(limit)
		<-c.token
		if more && inline {
			c.srv.start(func() { c.kick(false) })
			return
		}
	}
}

// drain works off up to limit frames (0: all). The caller holds the token. It reports whether it stopped for the limit.
func (c *chunk) drain(limit int) bool {
	for n := 0; ; n++ {
		c.mu.Lock()
		if len(c.queue) == 0 || c.flight != nil {
			c.working = false
			c.mu.Unlock()
			return false
		}
		if limit > 0 && n == limit {
			c.working = false
			c.mu.Unlock()
			return true
		}
		c.working = true
		w := c.queue[0]
		if w.fromClient() {
			c.orderLocked(w) // unlocks
		} else {
			c.followLocked(w) // unlocks
		}
	}
}

// popLocked takes the first frame out of the queue.
func (c *chunk) popLocked() {
	w := c.queue[0]
	c.queue[0] = nil
	if len(c.queue) == 1 {
		c.queue = c.queue[:0]
	} else {
		c.queue = c.queue[1:]
	}
	c.queueBytes -= int64(w.frame.Len())
}

// open returns the replica, looking it up when that has not been done. ErrNotExist: there is none. It may wait for the
// disk.
func (c *chunk) open() (*store.Replica, error) {
	c.mu.Lock()
	rep, made := c.rep, c.made
	c.mu.Unlock()
	if rep != nil {
		return rep, nil
	}
	rep, err := c.srv.store().Replica(c.id)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rep == nil && c.made == made {
		c.rep = rep
	}
	if c.rep == nil {
		return nil, dfserr.Errorf(dfserr.ErrNotExist, "replica of chunk %s", c.id)
	}
	return c.rep, nil
}

// advanceLocked commits what the log here and all after it hold. Only for a primary; the caller holds mu.
func (c *chunk) advanceLocked() {
	to := c.localSeq
	if c.next != 0 {
		to = min(to, c.downSeq)
	}
	if to <= c.committed {
		return
	}
	c.committed, c.faults = to, 0
	n := 0
	for n < len(c.pending) && c.pending[n].seq <= to {
		p := &c.pending[n]
		c.commitLen = p.length
		if p.ws != nil {
			p.ws.done(p.tag, p.off, p.seq, p.length)
		}
		n++
	}
	clear(c.pending[:n])
	if n == len(c.pending) {
		n = 0
		c.pending = c.pending[:0]
	}
	c.pending = c.pending[n:]
	c.wakeLocked()
}

// wakeLocked tells those who wait for a commit that has come.
func (c *chunk) wakeLocked() {
	if len(c.repeats) > 0 {
		keep := c.repeats[:0]
		for _, p := range c.repeats {
			if p.seq <= c.committed {
				p.ws.done(p.tag, p.off, p.seq, p.length)
			} else {
				keep = append(keep, p)
			}
		}
		c.repeats = keep
	}
	if len(c.waiters) > 0 {
		keep := c.waiters[:0]
		for _, w := range c.waiters {
			if w.seq <= c.committed {
				w.done <- nil
			} else {
				keep = append(keep, w)
			}
		}
		c.waiters = keep
	}
}

// dropPendingLocked answers every client that waits for a mutation after keep with err: whether it took effect is
// not known.
func (c *chunk) dropPendingLocked(keep dfs.Seq, err error) {
	drop := func(list []pending) []pending {
		kept := list[:0]
		for _, p := range list {
			if p.seq <= keep {
				kept = append(kept, p)
			} else if p.ws != nil {
				p.ws.fail(p.tag, err, 0)
			}
		}
		return kept
	}
	c.pending, c.repeats = drop(c.pending), drop(c.repeats)
}

// dropWaitersLocked is dropPendingLocked, and for those who wait for a commit too.
func (c *chunk) dropWaitersLocked(keep dfs.Seq, err error) {
	c.dropPendingLocked(keep, err)
	kept := c.waiters[:0]
	for _, w := range c.waiters {
		if w.seq <= keep {
			kept = append(kept, w)
		} else {
			w.done <- err
		}
	}
	c.waiters = kept
}

// refuseQueuedLocked answers all frames that wait, of clients.
func (c *chunk) refuseQueuedLocked(err error) {
	kept := c.queue[:0]
	for _, w := range c.queue {
		if w.fromClient() {
			c.queueBytes -= int64(w.frame.Len())
			w.refuse(0, err)
		} else {
			kept = append(kept, w)
		}
	}
	clear(c.queue[len(kept):])
	c.queue = kept
}

// detachLocked ends the use of the successor's stream.
func (c *chunk) detachLocked() {
	if c.down != nil {
		c.down.leave(c, int64(c.sentSeq-c.downSeq))
		c.down = nil
	}
}

// breakLocked ends an active primary's or a secondary's being in step. A primary begins activation again, with f for
// the master if it is not nil.
func (c *chunk) breakLocked(f *failure) {
	if !c.ready {
		return
	}
	c.ready = false
	c.detachLocked()
	if c.role != rolePrimary {
		return
	}
	c.fault = f
	c.faults++
	c.activateLocked()
}

// retireLocked takes the role away: somebody else orders writes, or nobody.
func (c *chunk) retireLocked(err error) {
	c.ready, c.role, c.cfg, c.activation, c.fault = false, roleNone, nil, 0, nil
	c.currentIn = 0
	c.end.may = false
	c.detachLocked()
	c.upstream = nil
	c.dropWaitersLocked(0, err)
}

// usableLocked reports whether an active primary may act at now.
func (c *chunk) usableLocked(now time.Time) bool {
	return c.role == rolePrimary && c.ready && now.Before(c.leaseUntil) && c.srv.serving.holds(c.currentIn, now)
}

// markCorrupt notes damage, so that the replica is not used any more, and has the master told.
func (c *chunk) markCorrupt(err error) {
	c.mu.Lock()
	first := c.corrupt == nil
	c.corrupt = err
	c.mu.Unlock()
	if first {
		c.srv.log.Error("replica is corrupt", "chunk", c.id, "error", err)
	}
	c.srv.noteCorrupt(c.id)
}
