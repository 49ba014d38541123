package rpc

import (
	"context"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"

	"dfs/internal/dfserr"
)

// ServerOptions configures NewServer. The zero value is usable.
type ServerOptions struct {
	// Logger gets, once, every error of a handler that wraps no sentinel. Nil: none is logged.
	Logger hclog.Logger
	// MaxStreams bounds the calls in progress per connection; 0 means DefaultMaxStreams.
	MaxStreams uint32
	// Buffers is where received messages are put; nil makes a new pool.
	Buffers *Buffers
}

// NewServer returns a gRPC server with the limits of this package, the frame codec, and interceptors that turn
// handlers' errors into statuses. Register services, then Serve a listener of a Network. Stop ends all calls by
// cancelling their contexts, waits for the handlers, and joins every goroutine.
func NewServer(o ServerOptions) *grpc.Server {
	if o.MaxStreams == 0 {
		o.MaxStreams = DefaultMaxStreams
	}
	if o.Buffers == nil {
		o.Buffers = NewBuffers()
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	e := serverErrors{o.Logger}
	return grpc.NewServer(
		grpc.ForceServerCodecV2(Codec()),
		experimental.BufferPool(o.Buffers),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.MaxConcurrentStreams(o.MaxStreams),
		grpc.MaxHeaderListSize(MaxHeaderList),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.StaticStreamWindowSize(StreamWindow),
		grpc.StaticConnWindowSize(ConnWindow),
		grpc.ReadBufferSize(ioBufferSize),
		grpc.WriteBufferSize(ioBufferSize),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveFloor, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(e.unary),
		grpc.StreamInterceptor(e.stream),
	)
}

// serverErrors translates errors at the server's edge.
type serverErrors struct{ log hclog.Logger }

func (e serverErrors) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	reply, err := h(ctx, req)
	return reply, e.status(err, info.FullMethod)
}

func (e serverErrors) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	return e.status(h(srv, serverStream{ss}), info.FullMethod)
}

func (e serverErrors) status(err error, method string) error {
	if err == nil {
		return nil
	}
	if dfserr.Sentinel(err) == nil {
		e.log.Error("call failed for a reason outside the error table", "method", method, "error", err)
	}
	return dfserr.ToStatus(err)
}

// serverStream gives handlers the package's errors instead of statuses.
type serverStream struct{ grpc.ServerStream }

func (s serverStream) RecvMsg(m any) error { return dfserr.FromStatus(s.ServerStream.RecvMsg(m)) }
func (s serverStream) SendMsg(m any) error { return dfserr.FromStatus(s.ServerStream.SendMsg(m)) }
