package chunkio

import (
	"cmp"
	"context"
	"errors"
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
}

// stream is a Write call to one chunkserver, shared by all Writers. It dies as a whole: every attempt on it then fails, and
// the next mutation opens another.
type stream struct {
	x      *IO
	addr   string
	ctx    context.Context
	cancel context.CancelCauseFunc
	wake   chan struct{} // holds a token while queue may have grown

	mu     sync.Mutex
	queue  []*sending          // guarded by mu: to be sent
	out    map[uint64]*sending // guarded by mu: sent or being sent, by tag
	tag    uint64              // guarded by mu: last given out
	usedAt time.Time           // guarded by mu: of the last mutation or acknowledgement
	ackAt  time.Time           // guarded by mu: of the last acknowledgement, at first of the opening
	dead   bool                // guarded by mu: takes nothing any more
}

// send gives an attempt to the stream to addr. It does not block. False: the IO is closed, and nothing was taken.
func (x *IO) send(addr string, s *sending) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return false
	}
	if st := x.streams[addr]; st != nil && st.put(s) {
		return true
	}
	st := &stream{x: x, addr: addr, wake: make(chan struct{}, 1), out: map[uint64]*sending{}, usedAt: time.Now(), ackAt: time.Now()}
	st.ctx, st.cancel = context.WithCancelCause(x.ctx)
	x.streams[addr] = st
	st.put(s)
	x.wg.Go(st.run)
	return true
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
	select {
	case st.wake <- struct{}{}:
	default:
	}
	return true
}

// pop takes the next attempt to send and gives it a tag; nil when there is none.
func (st *stream) pop() *sending {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.queue) == 0 {
		return nil
	}
	s := st.queue[0]
	st.queue[0] = nil
	st.queue = st.queue[1:]
	st.tag++
	s.header.Tag = st.tag
	s.sentAt = time.Now()
	st.out[st.tag] = s
	return s
}

// run is the stream's life.
func (st *stream) run() {
	err := st.serve()
	if err == nil {
		err = dfserr.Errorf(dfserr.ErrUnavailable, "stream to %s ended", st.addr)
	}
	if cause := context.Cause(st.ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause // why we ended it ourselves
	}
	st.cancel(nil)
	st.x.mu.Lock()
	if st.x.streams[st.addr] == st {
		delete(st.x.streams, st.addr)
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
	cc, err := st.x.pool.Get(st.addr)
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
	for {
		s := st.pop()
		if s == nil {
			select {
			case <-st.wake:
				continue
			case err := <-received:
				return err
			}
		}
		err := call.SendMsg(&rpc.Frame{Header: s.header, Data: s.data})
		s.data.Free()
		if err != nil {
			st.cancel(nil)
			return <-received // the stream's own end says more than "EOF"
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
		s := st.out[ack.GetTag()]
		delete(st.out, ack.GetTag())
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
		late := dfserr.Errorf(dfserr.ErrUnavailable, "no acknowledgement from %s for %v", st.addr, limit)
		now := time.Now()
		var overdue []*sending
		st.mu.Lock()
		busy := len(st.out)+len(st.queue) > 0
		silent := now.Sub(st.ackAt) >= limit
		for tag, s := range st.out {
			if now.Sub(s.sentAt) >= limit {
				overdue = append(overdue, s)
				if !silent {
					delete(st.out, tag)
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
