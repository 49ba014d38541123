package chunkio

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/mem"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// streamIdle is how long a stream without anything outstanding is kept.
const streamIdle = time.Minute

// sending is one attempt of a mutation on a stream.
type sending struct {
	p       *Pending
	header  *dfsv1.WriteHeader
	data    mem.BufferSlice // one reference, freed once sent
	version dfs.Version
	sentAt  time.Time // guarded by stream.mu; zero: not yet
	size    int       // guarded by stream.mu: bytes of data, once sent
}

// stream is a Write call to one chunkserver, shared by all Writers. It dies as a whole: every attempt on it then fails, and
// the next mutation opens another.
type stream struct {
	x      *IO
	to     peer
	ctx    context.Context
	cancel context.CancelCauseFunc
	wake   chan struct{} // holds a token while queue may have grown

	sendMu sync.Mutex // held while taking from queue and sending: keeps the order; taken before mu

	mu     sync.Mutex
	queue  []*sending              // guarded by mu: to be sent
	out    map[uint64]*sending     // guarded by mu: sent or being sent, by tag
	tag    uint64                  // guarded by mu: last given out
	usedAt time.Time               // guarded by mu: of the last mutation or acknowledgement
	ackAt  time.Time               // guarded by mu: of the last acknowledgement, at first of the opening
	dead   bool                    // guarded by mu: takes nothing any more
	call   dfsv1.Chunk_WriteClient // guarded by mu: nil until the call is open
	bytes  int                     // guarded by mu: payload in out
}

// peer is a chunkserver at an address.
type peer struct {
	server dfs.ServerID
	addr   string
}

// send gives an attempt to the stream to a server. It does not block. Nil: the IO is closed, and nothing was taken.
// The caller calls pump on the stream once it holds no lock.
func (x *IO) send(to peer, s *sending) *stream {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return nil
	}
	if st := x.streams[to]; st != nil && st.put(s) {
		return st
	}
	st := &stream{x: x, to: to, wake: make(chan struct{}, 1), out: map[uint64]*sending{}, usedAt: time.Now(), ackAt: time.Now()}
	st.ctx, st.cancel = context.WithCancelCause(x.ctx)
	x.streams[to] = st
	st.put(s)
	x.wg.Go(st.run)
	return st
}

// put queues an attempt; false when the stream is dead.
func (st *stream) put(s *sending) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.dead {
		return false
	}
	st.queue = append(st.queue, s)
	st.usedAt = time.Now()
	return true
}

// directBytes is how much may be under way for a caller to send by itself: so little that SendMsg, which gives each
// stream 64 KiB to buffer, does not wait.
const directBytes = 48 << 10

// pump sees to it that the queue is sent: here and now when that is a little and nobody else is at it, which spares a
// small write the way through another goroutine; else by the stream's own.
func (st *stream) pump() {
	if st.small() && st.sendMu.TryLock() {
		s, call := st.pop(directBytes)
		if s != nil {
			st.transmit(call, s)
		}
		st.sendMu.Unlock()
		if s != nil && st.idle() {
			return
		}
	}
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// small reports whether a single attempt is queued and it may be sent directly.
func (st *stream) small() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.call != nil && len(st.queue) == 1 && st.bytes+st.queue[0].data.Len() <= directBytes
}

// idle reports whether nothing is queued.
func (st *stream) idle() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return len(st.queue) == 0
}

// transmit sends one attempt. The caller holds sendMu. Any error ends the stream.
func (st *stream) transmit(call dfsv1.Chunk_WriteClient, s *sending) {
	err := call.SendMsg(&rpc.Frame{Header: s.header, Data: s.data})
	s.data.Free()
	if err != nil {
		st.cancel(nil)
	}
}

// pop takes the next attempt to send and gives it a tag; nil when there is none, or when with it more than limit bytes
// were under way. The caller holds sendMu.
func (st *stream) pop(limit int) (*sending, dfsv1.Chunk_WriteClient) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.queue) == 0 || st.bytes+st.queue[0].data.Len() > limit {
		return nil, nil
	}
	s := st.queue[0]
	st.queue[0] = nil
	st.queue = st.queue[1:]
	st.tag++
	s.header.Tag = st.tag
	s.sentAt = time.Now()
	s.size = s.data.Len()
	st.out[st.tag] = s
	st.bytes += s.size
	return s, st.call
}

// takeLocked ends the stream's interest in an attempt.
func (st *stream) takeLocked(tag uint64) *sending {
	s := st.out[tag]
	if s != nil {
		delete(st.out, tag)
		st.bytes -= s.size
	}
	return s
}

// run is the stream's life.
func (st *stream) run() {
	err := st.serve()
	if err == nil {
		err = dfserr.Errorf(dfserr.ErrUnavailable, "stream to %s ended", st.to.addr)
	}
	if cause := context.Cause(st.ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause // why we ended it ourselves
	}
	st.cancel(nil)
	st.x.mu.Lock()
	if st.x.streams[st.to] == st {
		delete(st.x.streams, st.to)
	}
	st.x.mu.Unlock()

	st.mu.Lock()
	st.dead = true
	unsent := st.queue
	lost := make([]*sending, 0, len(st.out)+len(unsent))
	for _, s := range st.out {
		lost = append(lost, s)
	}
	slices.SortFunc(lost, func(a, b *sending) int { return cmp.Compare(a.header.GetTag(), b.header.GetTag()) })
	lost = append(lost, unsent...)
	st.queue, st.out = nil, nil
	st.mu.Unlock()
	for _, s := range unsent {
		s.data.Free()
	}
	for _, s := range lost {
		s.p.w.broke(s, err)
	}
}

// serve opens the call and sends until something ends it.
func (st *stream) serve() error {
	cc, err := st.x.pool.GetServer(st.to.addr, st.to.server)
	if err != nil {
		return err
	}
	call, err := dfsv1.NewChunkClient(cc).Write(st.ctx)
	if err != nil {
		return err
	}
	received := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer st.cancel(nil)
	wg.Go(func() {
		err := st.receive(call)
		st.cancel(nil) // a blocked send ends
		received <- err
	})
	wg.Go(st.watch)
	st.mu.Lock()
	st.call = call
	st.mu.Unlock()
	for {
		st.sendMu.Lock()
		s, _ := st.pop(math.MaxInt)
		if s != nil {
			st.transmit(call, s)
		}
		st.sendMu.Unlock()
		if s != nil && st.ctx.Err() == nil {
			continue
		}
		select {
		case <-st.wake:
		case err := <-received: // the stream's own end, which says more than a failed send
			return err
		}
	}
}

// receive hands acknowledgements to their Writers.
func (st *stream) receive(call dfsv1.Chunk_WriteClient) error {
	var ack dfsv1.WriteAck
	for {
		if err := call.RecvMsg(&ack); err != nil {
			return err
		}
		st.mu.Lock()
		s := st.takeLocked(ack.GetTag())
		st.ackAt = time.Now()
		st.usedAt = st.ackAt
		st.mu.Unlock()
		if s != nil {
			s.p.w.acked(s, &ack)
		}
	}
}

// watch gives up attempts whose acknowledgement stays out, the whole stream when none comes any more, and a
// stream that nobody uses.
func (st *stream) watch() {
	limit := st.x.cfg.AckTimeout
	ticker := time.NewTicker(limit / 4)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-st.ctx.Done():
			return
		}
		late := dfserr.Errorf(dfserr.ErrUnavailable, "no acknowledgement from %s for %v", st.to.addr, limit)
		now := time.Now()
		var overdue []*sending
		st.mu.Lock()
		busy := len(st.out)+len(st.queue) > 0
		silent := now.Sub(st.ackAt) >= limit
		for tag, s := range st.out {
			if now.Sub(s.sentAt) >= limit {
				overdue = append(overdue, s)
				if !silent {
					st.takeLocked(tag)
				}
			}
		}
		if !busy && now.Sub(st.usedAt) >= streamIdle {
			st.dead = true // under mu: nothing can have been put since
		}
		dead := st.dead
		st.mu.Unlock()
		switch {
		case dead:
			st.cancel(nil)
			return
		case len(overdue) > 0 && silent:
			st.cancel(late)
			return
		}
		slices.SortFunc(overdue, func(a, b *sending) int { return cmp.Compare(a.header.GetTag(), b.header.GetTag()) })
		for _, s := range overdue {
			s.p.w.broke(s, late)
		}
	}
}
