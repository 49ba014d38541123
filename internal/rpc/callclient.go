package rpc

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"dfs/internal/dfserr"
)

// CallConn makes unary calls to one peer over a call stream, which the peer must serve (RegisterCalls). Deadlines, cancellation, errors and a test's faults
// are as for unary calls on a connection of the Pool; call options have no effect. Streams go over the connection as usual. Safe for concurrent use.
type CallConn struct {
	pool *Pool
	peer *peer
	cc   *grpc.ClientConn

	mu      sync.Mutex  // before Pool.mu
	current *callStream // guarded by mu; nil: the next call opens one
}

var _ grpc.ClientConnInterface = (*CallConn)(nil)

// GetCalls is Get for a peer that serves a call stream.
func (p *Pool) GetCalls(addr string) (*CallConn, error) {
	p.mu.Lock()
	if pe := p.peers[peerKey{addr: addr}]; pe != nil && pe.calls != nil {
		pe.usedAt = time.Now()
		p.mu.Unlock()
		return pe.calls, nil
	}
	p.mu.Unlock()
	cc, err := p.Get(addr)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pe := p.peers[peerKey{addr: addr}]
	if pe == nil {
		return nil, dfserr.Errorf(dfserr.ErrClosed, "dial %s: connections", addr)
	}
	if pe.calls == nil {
		pe.calls = &CallConn{pool: p, peer: pe, cc: cc}
	}
	return pe.calls, nil
}

// NewStream begins a stream on the connection.
func (c *CallConn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return c.cc.NewStream(ctx, desc, method, opts...)
}

// Invoke makes a unary call.
func (c *CallConn) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	return c.pool.edge(ctx, c.peer, method, reply, func(ctx context.Context) error { return c.call(ctx, method, args, reply) })
}

// call makes a unary call; its errors are statuses or errors of the table.
func (c *CallConn) call(ctx context.Context, method string, args, reply any) error {
	if err := ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	in, ok := reply.(proto.Message)
	out, ok2 := args.(proto.Message)
	if !ok || !ok2 {
		return dfserr.Errorf(dfserr.ErrInvalid, "%s: messages of type %T and %T", method, args, reply)
	}
	message, err := proto.Marshal(out)
	if err != nil {
		return dfserr.Errorf(dfserr.ErrInvalid, "%s: %v", method, err)
	}
	if len(message) > maxRecord {
		return dfserr.Errorf(dfserr.ErrTooBig, "%s: request of %d bytes, the limit is %d", method, len(message), maxRecord)
	}
	timeout := uint64(0)
	if deadline, ok := ctx.Deadline(); ok {
		timeout = uint64(max(1, time.Until(deadline).Microseconds()))
	}
	s, id, waiting, err := c.begin()
	if err != nil {
		return err
	}
	s.out.add(ctx, requestOverhead+len(method)+len(message), func(b []byte) []byte {
		return appendRequest(b, id, timeout, method, message)
	}) // false: the stream's end or the context's shows below
	select {
	case a := <-waiting:
		if a.err != nil {
			return a.err
		}
		if err := proto.Unmarshal(a.message, in); err != nil {
			return dfserr.Errorf(dfserr.ErrInvalid, "%s: reply: %v", method, err)
		}
		return nil
	case <-ctx.Done():
		if s.forget(id) {
			// Without room it is not sent, and the handler's own time-out will have to do.
			s.out.add(ctx, requestOverhead, func(b []byte) []byte { return appendCancel(b, id) })
		}
		return status.FromContextError(ctx.Err()).Err()
	}
}

// requestOverhead is more than a record takes besides its method and message.
const requestOverhead = 32

// begin registers a call on the current stream, or a new one.
func (c *CallConn) begin() (s *callStream, id uint64, waiting <-chan answer, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.current; s != nil {
		if id, waiting, ok := s.register(); ok {
			return s, id, waiting, nil
		}
	}
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	if c.pool.closed {
		return nil, 0, nil, dfserr.Errorf(dfserr.ErrClosed, "call to %s: connections", c.peer.addr)
	}
	s = &callStream{out: newOutbox(c.pool.opts.Buffers), calls: make(map[uint64]chan<- answer)}
	c.current = s
	id, waiting, _ = s.register() // before it can break
	c.pool.streams.Go(func() { s.run(c.cc) })
	return s, id, waiting, nil
}

// callStream is one call stream, from before it is open until it breaks.
type callStream struct {
	out *outbox

	mu    sync.Mutex
	calls map[uint64]chan<- answer // guarded by mu; buffered; nil once the stream is broken
	last  uint64                   // guarded by mu; highest number given to a call
}

// answer is what became of a call.
type answer struct {
	message []byte
	err     error
}

// register makes room for an answer; it is false on a broken stream.
func (s *callStream) register() (id uint64, waiting <-chan answer, ok bool) {
	ch := make(chan answer, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls == nil {
		return 0, nil, false
	}
	s.last++
	s.calls[s.last] = ch
	return s.last, ch, true
}

// forget gives up a call and reports whether it was still unanswered.
func (s *callStream) forget(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.calls[id]
	delete(s.calls, id)
	return ok
}

// run opens the stream, sends and receives until it breaks, and gives the calls that are left its error.
func (s *callStream) run(cc *grpc.ClientConn) {
	ctx, cancel := context.WithCancel(context.Background())
	var sender sync.WaitGroup
	stream, err := cc.NewStream(ctx, &grpc.StreamDesc{StreamName: callsStream, ServerStreams: true, ClientStreams: true}, callsMethod)
	if err == nil {
		sender.Go(func() { s.out.send(ctx, stream) })
		err = s.receive(stream)
	}
	cancel()
	if errors.Is(err, io.EOF) {
		err = dfserr.Errorf(dfserr.ErrUnavailable, "the peer ended the call stream")
	}
	s.mu.Lock()
	left := s.calls
	s.calls = nil
	s.mu.Unlock()
	s.out.close()
	for _, ch := range left {
		ch <- answer{err: err}
	}
	sender.Wait()
}

// receive hands out answers until the stream breaks.
func (s *callStream) receive(stream grpc.ClientStream) error {
	var f Frame
	for {
		if err := stream.RecvMsg(&f); err != nil {
			return err
		}
		err := records(f.Bytes(), s.deliver)
		f.Free()
		if err != nil {
			return err
		}
	}
}

// deliver hands a record to the call that waits for it; one that nobody waits for any more is dropped.
func (s *callStream) deliver(r record) error {
	var a answer
	switch r.kind {
	case recordReply:
		a.message = append([]byte(nil), r.message...)
	case recordFailure:
		st := &spb.Status{}
		if err := proto.Unmarshal(r.message, st); err != nil {
			return err
		}
		if a.err = status.FromProto(st).Err(); a.err == nil {
			return errRecord
		}
	default:
		return errRecord
	}
	s.mu.Lock()
	ch := s.calls[r.call]
	delete(s.calls, r.call)
	s.mu.Unlock()
	if ch != nil {
		ch <- a
	}
	return nil
}
