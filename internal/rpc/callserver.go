package rpc

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// CallService is a service whose unary methods can be called over a call stream.
type CallService struct {
	Desc *grpc.ServiceDesc
	Impl any // implements the service
}

// RegisterCalls makes s serve call streams (Pool.GetCalls) for services, which are registered with s as well. Handlers see no difference.
func RegisterCalls(s grpc.ServiceRegistrar, o ServerOptions, services ...CallService) {
	o = o.withDefaults()
	c := &callServer{edge: serverEdge{o.Logger, o.ID}, buffers: o.Buffers, methods: make(map[string]callMethod)}
	for _, service := range services {
		for _, m := range service.Desc.Methods {
			c.methods["/"+service.Desc.ServiceName+"/"+m.MethodName] = callMethod{service.Impl, m.Handler}
		}
	}
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: callsService, HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: callsStream, Handler: c.serve, ServerStreams: true, ClientStreams: true}},
	}, c)
}

// callServer serves call streams.
type callServer struct {
	edge    serverEdge
	buffers *Buffers
	methods map[string]callMethod
}

type callMethod struct {
	impl   any
	handle grpc.MethodHandler
}

// servedStream is one call stream at its server.
type servedStream struct {
	*callServer
	ctx   context.Context
	out   *outbox
	work  chan servedCall // to goroutines that have handled one call and wait for another
	slots chan struct{}   // one for each call in progress
	wg    sync.WaitGroup

	mu    sync.Mutex
	calls map[uint64]context.CancelFunc // guarded by mu; in progress
	idle  int                           // guarded by mu; goroutines waiting at work
}

// servedCall is a call in progress.
type servedCall struct {
	id      uint64
	ctx     context.Context
	method  callMethod
	message []byte
}

// serve handles a stream's calls until it ends.
func (c *callServer) serve(_ any, stream grpc.ServerStream) error {
	ctx, cancel := context.WithCancel(stream.Context())
	s := &servedStream{
		callServer: c, ctx: ctx, out: newOutbox(c.buffers), work: make(chan servedCall), slots: make(chan struct{}, DefaultMaxStreams),
		calls: make(map[uint64]context.CancelFunc),
	}
	s.wg.Go(func() {
		s.out.send(ctx, stream)
		cancel() // what cannot be answered need not be done
	})
	err := s.receive(stream)
	cancel()
	s.out.close()
	s.wg.Wait()
	return err
}

func (s *servedStream) receive(stream grpc.ServerStream) error {
	var f Frame
	for {
		if err := stream.RecvMsg(&f); err != nil {
			return err
		}
		err := records(f.Bytes(), s.take)
		f.Free()
		if err != nil {
			return dfserr.ToStatus(err)
		}
	}
}

// take begins a call or ends one's context. It waits while too many are in progress.
func (s *servedStream) take(r record) error {
	switch r.kind {
	case recordCancel:
		s.mu.Lock()
		cancel := s.calls[r.call]
		s.mu.Unlock()
		if cancel != nil {
			cancel()
		}
		return nil
	case recordRequest:
	default:
		return errRecord
	}
	select {
	case s.slots <- struct{}{}:
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
	call := servedCall{id: r.call, message: append([]byte(nil), r.message...)}
	var cancel context.CancelFunc
	if r.timeoutMicros > 0 {
		call.ctx, cancel = context.WithTimeout(s.ctx, time.Duration(min(r.timeoutMicros, maxTimeoutMicros))*time.Microsecond)
	} else {
		call.ctx, cancel = context.WithCancel(s.ctx)
	}
	call.method = s.methods[string(r.method)]
	if call.method.handle == nil {
		call.method.handle = unknownMethod(string(r.method))
	}
	s.mu.Lock()
	if _, used := s.calls[r.call]; used {
		s.mu.Unlock()
		cancel()
		<-s.slots
		return errRecord
	}
	s.calls[r.call] = cancel
	waiting := s.idle > 0
	if waiting {
		s.idle--
	}
	s.mu.Unlock()
	if !waiting {
		s.wg.Go(func() { s.handleMany(call) })
		return nil
	}
	select {
	case s.work <- call:
		return nil
	case <-s.ctx.Done(): // who waited may be gone
		cancel()
		return s.ctx.Err()
	}
}

// maxTimeoutMicros keeps a time-out within a time.Duration.
const maxTimeoutMicros = uint64(1<<63-1) / 1000

// handleMany handles a call, and then others: a goroutine that stays need not grow its stack again. At most streamWorkers wait.
func (s *servedStream) handleMany(call servedCall) {
	for {
		s.handle(call)
		s.mu.Lock()
		if s.idle >= streamWorkers {
			s.mu.Unlock()
			return
		}
		s.idle++
		s.mu.Unlock()
		select {
		case call = <-s.work:
		case <-s.ctx.Done():
			return
		}
	}
}

// handle runs a method and queues the answer.
func (s *servedStream) handle(call servedCall) {
	reply, err := call.method.handle(call.method.impl, call.ctx, func(m any) error {
		if err := proto.Unmarshal(call.message, m.(proto.Message)); err != nil {
			return dfserr.Errorf(dfserr.ErrInvalid, "request: %v", err)
		}
		return nil
	}, s.edge.unary)
	kind, message := byte(recordReply), []byte(nil)
	if err == nil {
		message, err = proto.Marshal(reply.(proto.Message))
	}
	if err == nil && len(message) > maxRecord {
		err = dfserr.Errorf(dfserr.ErrTooBig, "reply of %d bytes, the limit is %d", len(message), maxRecord)
	}
	if err != nil {
		// Of what a status is made of, only the text is of any length.
		kind, message = recordFailure, failureOf(err)
	}
	s.mu.Lock()
	cancel := s.calls[call.id]
	delete(s.calls, call.id)
	s.mu.Unlock()
	s.out.add(s.ctx, requestOverhead+len(message), func(b []byte) []byte { return appendAnswer(b, kind, call.id, message) })
	cancel()
	<-s.slots
}

// failureOf returns the message of a failure record.
func failureOf(err error) []byte {
	st := status.Convert(dfserr.ToStatus(err))
	b, marshalErr := proto.Marshal(st.Proto())
	if marshalErr != nil || len(b) > maxFailure {
		b, _ = proto.Marshal(status.New(st.Code(), "").Proto())
	}
	return b
}

// maxFailure bounds a failure record.
const maxFailure = 64 * dfs.KiB

func unknownMethod(method string) grpc.MethodHandler {
	return func(any, context.Context, func(any) error, grpc.UnaryServerInterceptor) (any, error) {
		return nil, dfserr.Errorf(dfserr.ErrUnsupported, "method %q", method)
	}
}
