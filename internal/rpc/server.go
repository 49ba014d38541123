package rpc

import (
	"context"
	"strconv"
	"strings"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"dfs/internal/dfs"
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
	// ID returns the id of this chunkserver, 0 while it has none. Calls that were meant for another one (Pool.GetServer)
	// get ErrRefused, as if nothing listened: addresses are used again, ids are not. Nil: this is no chunkserver.
	ID func() dfs.ServerID
}

func (o ServerOptions) withDefaults() ServerOptions {
	if o.MaxStreams == 0 {
		o.MaxStreams = DefaultMaxStreams
	}
	if o.Buffers == nil {
		o.Buffers = NewBuffers()
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.ID == nil {
		o.ID = func() dfs.ServerID { return 0 }
	}
	return o
}

// serverSuffix marks an authority that is a chunkserver's id and not just an address.
const serverSuffix = ".chunkserver"

// streamWorkers is how many goroutines stay to handle calls; more calls than that at a time get goroutines of their own. A fresh
// goroutine grows its stack during its first call, which was a fifth of the processor time of a small call.
const streamWorkers = 64

// NewServer returns a gRPC server with the limits of this package, the frame codec, and interceptors that turn
// handlers' errors into statuses. Register services, then Serve a listener of a Network. Stop ends all calls by
// cancelling their contexts, waits for the handlers, and joins every goroutine.
func NewServer(o ServerOptions) *grpc.Server {
	o = o.withDefaults()
	e := serverEdge{o.Logger, o.ID}
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
		grpc.NumStreamWorkers(streamWorkers),
		grpc.UnaryInterceptor(e.unary),
		grpc.StreamInterceptor(e.stream),
	)
}

// serverEdge turns away calls for others and translates errors.
type serverEdge struct {
	log hclog.Logger
	id  func() dfs.ServerID
}

// meant returns an error if a call was meant for another chunkserver.
func (e serverEdge) meant(ctx context.Context) error {
	for _, authority := range metadata.ValueFromIncomingContext(ctx, ":authority") {
		text, ok := strings.CutSuffix(authority, serverSuffix)
		if !ok {
			continue
		}
		meant, err := strconv.ParseUint(text, 16, 64)
		if own := e.id(); err == nil && own != 0 && own != dfs.ServerID(meant) {
			return dfserr.Errorf(dfserr.ErrRefused, "the call is for chunkserver %s, this is %s", text, own)
		}
	}
	return nil
}

func (e serverEdge) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	if err := e.meant(ctx); err != nil {
		return nil, dfserr.ToStatus(err)
	}
	reply, err := h(ctx, req)
	return reply, e.status(err, info.FullMethod)
}

func (e serverEdge) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	if err := e.meant(ss.Context()); err != nil {
		return dfserr.ToStatus(err)
	}
	return e.status(h(srv, serverStream{ss}), info.FullMethod)
}

func (e serverEdge) status(err error, method string) error {
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
