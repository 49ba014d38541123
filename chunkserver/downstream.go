package chunkserver

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// A frame of at most inlineSend bytes is sent by the goroutine that has it when at most inlineOutstanding mutations are on
// their way: so little fits gRPC's 64 KiB of buffer per stream, and the send cannot block.
const (
	inlineSend        = 12 * dfs.KiB
	inlineOutstanding = 3
)

// downstream is the stream of mutations from this server to one successor, shared by all chunks that have it next in
// their chains. It lives until an error; then every chunk with unacknowledged mutations on it hears of it.
type downstream struct {
	srv    *Server
	peer   dfs.ServerID
	cancel context.CancelFunc
	wake   chan struct{} // holds at most one token: the queue has frames, or the stream is closed

	// outstanding counts mutations in the queue or sent, and neither acknowledged nor given up.
	outstanding atomic.Int64

	mu        sync.Mutex
	stream    grpc.BidiStreamingClient[dfsv1.ForwardFrame, dfsv1.ForwardAck] // guarded by mu; nil until open
	queue     []*work                                                        // guarded by mu
	sending   bool                                                           // guarded by mu: somebody is in SendMsg
	sendingAt time.Time                                                      // guarded by mu: since when
	closed    error                                                          // guarded by mu: why it is of no use
	users     map[*chunk]struct{}                                            // guarded by mu
}

// downstreams holds the open streams, one per successor.
type downstreams struct {
	srv *Server
	mu  sync.Mutex
	m   map[dfs.ServerID]*downstream // guarded by mu
}

// get returns the stream to a successor, making it when there is none. It does not block; a stream that cannot be
// opened fails later.
func (ds *downstreams) get(id dfs.ServerID) (*downstream, error) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if d := ds.m[id]; d != nil {
		return d, nil
	}
	client, err := ds.srv.dataPeer(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ds.srv.ctx)
	d := &downstream{srv: ds.srv, peer: id, cancel: cancel, wake: make(chan struct{}, 1), users: make(map[*chunk]struct{})}
	ds.m[id] = d
	ds.srv.start(func() { d.run(ctx, client) })
	return d, nil
}

// all returns the open streams.
func (ds *downstreams) all() []*downstream {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	list := make([]*downstream, 0, len(ds.m))
	for _, d := range ds.m {
		list = append(list, d)
	}
	return list
}

// drop forgets a stream that has failed.
func (ds *downstreams) drop(d *downstream) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if ds.m[d.peer] == d {
		delete(ds.m, d.peer)
	}
}

// join makes a chunk hear of the stream's end.
func (d *downstream) join(c *chunk) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed != nil {
		return d.closed
	}
	d.users[c] = struct{}{}
	return nil
}

// leave ends that; so many of the chunk's mutations will not be waited for.
func (d *downstream) leave(c *chunk, unacked int64) {
	d.outstanding.Add(-unacked)
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.users, c)
}

// push puts a frame, with one hold on its payload, into the queue. Calls for one chunk come in order of seq.
func (d *downstream) push(w *work) {
	if w.link.GetKind() != dfsv1.MutationKind_MUTATION_UNSPECIFIED {
		d.outstanding.Add(1)
	}
	d.mu.Lock()
	if d.closed != nil {
		d.mu.Unlock()
		w.release()
		return
	}
	d.queue = append(d.queue, w)
	d.mu.Unlock()
}

// flush gets what was pushed on its way: at once when that cannot block, else through the stream's goroutine. w is
// what the caller pushed.
func (d *downstream) flush(w *work) {
	inline := w.frame.Len() <= inlineSend && d.outstanding.Load() <= inlineOutstanding
	if inline {
		d.mu.Lock()
		if d.stream != nil && !d.sending && len(d.queue) == 1 && d.closed == nil {
			d.sendQueueLocked()
			more := len(d.queue) > 0
			d.mu.Unlock()
			if !more {
				return
			}
		} else {
			d.mu.Unlock()
		}
	}
	d.wakeUp()
}

// wakeUp has the stream's goroutine look at the queue.
func (d *downstream) wakeUp() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// sendQueueLocked sends what is in the queue now. It unlocks mu meanwhile, with sending set.
func (d *downstream) sendQueueLocked() {
	batch := d.queue
	d.queue = nil
	d.sending = true
	stream := d.stream
	frame := rpc.Frame{}
	for i, w := range batch {
		d.sendingAt = time.Now()
		d.mu.Unlock()
		frame.Header, frame.Data = &w.link, w.frame.Data
		err := stream.SendMsg(&frame)
		w.release()
		batch[i] = nil
		d.mu.Lock()
		if err != nil || d.closed != nil {
			// The receiving side learns the cause; here only the rest is dropped.
			for _, w := range batch[i+1:] {
				w.release()
			}
			break
		}
	}
	d.sending = false
}

// run opens the stream and sends what the queue holds until the stream fails.
func (d *downstream) run(ctx context.Context, client dfsv1.ChunkClient) {
	stream, err := client.Forward(ctx)
	if err != nil {
		d.fail(err)
		return
	}
	d.mu.Lock()
	if d.closed != nil {
		d.mu.Unlock()
		return
	}
	d.stream = stream
	d.mu.Unlock()
	d.srv.start(func() { d.receive(stream) })
	for {
		d.mu.Lock()
		for len(d.queue) > 0 && !d.sending && d.closed == nil {
			d.sendQueueLocked()
		}
		closed := d.closed
		d.mu.Unlock()
		if closed != nil {
			return
		}
		<-d.wake // woken by flush and by fail
	}
}

// receive takes acknowledgements until the stream fails.
func (d *downstream) receive(stream grpc.BidiStreamingClient[dfsv1.ForwardFrame, dfsv1.ForwardAck]) {
	ack := new(dfsv1.ForwardAck)
	for {
		if err := stream.RecvMsg(ack); err != nil {
			d.fail(err)
			return
		}
		if c := d.srv.chunks.find(dfs.ChunkID(ack.GetChunk())); c != nil { // else its activation is void
			c.downAcked(d, ack)
		}
	}
}

// fail ends the stream. Chunks are told on this goroutine.
func (d *downstream) fail(err error) {
	d.mu.Lock()
	if d.closed != nil {
		d.mu.Unlock()
		return
	}
	d.closed = dfserr.Errorf(dfserr.ErrUnavailable, "forward stream to chunkserver %s: %v", d.peer, err)
	users, queue := d.users, d.queue
	d.users, d.queue = nil, nil
	d.mu.Unlock()
	d.cancel()
	d.srv.downs.drop(d)
	d.wakeUp()
	for _, w := range queue {
		w.release()
	}
	for c := range users {
		c.downFailed(d, d.closed)
	}
}

// stuck reports whether a send has been blocked since before the given time.
func (d *downstream) stuck(before time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sending && d.sendingAt.Before(before)
}
