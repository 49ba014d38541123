// Package rpc is how processes talk: it dials and serves gRPC with one set of limits, deadlines and error
// rules, carries file bytes without copying them (Frame), and lets a test put a whole cluster on an
// in-memory network (Mem). It knows no service and holds no state of its own.
//
// # Errors
//
// A handler returns errors that wrap a sentinel of dfserr; NewServer's interceptors put the sentinel's
// reason into the status, and a Pool's interceptors take it out again, for unary calls and for streams, so
// errors.Is works across a connection. A peer that cannot be reached gives ErrUnavailable with the address
// in the text, or ErrRefused when the machine answered and nothing listened (IsRefused).
//
// # Frames and buffers
//
// Messages shaped {Header header = 1; bytes data = 2;} are sent and received as *Frame through the generated
// streams' SendMsg and RecvMsg. On the wire a Frame is exactly that protobuf message. The payload stays in
// reference-counted buffers (google.golang.org/grpc/mem) on both sides:
//
//   - The sender gives buffers; SendMsg takes its own references and returns before the bytes are on the wire.
//     A payload buffer may be written to again only after its release callback ran (see Lend), or when it came
//     from a Buffers pool, which takes it back by itself. After SendMsg the sender drops its own reference with Frame.Free.
//   - The receiver owns one reference to everything in Frame.Data after RecvMsg and ends it with Frame.Free.
//
// # Networks
//
// Network is the seam for time and sockets: TCP is the real one, Mem.Host gives one host's view of an in-memory
// network with faults, fit for testing/synctest. There is no TLS, so TCP refuses to listen on anything but loopback.
//
// # Call streams
//
// CallConn makes unary calls as records on one stream that many share, which takes half the processor time of a stream for each; RegisterCalls serves
// such streams (docs/adr/0014-call-stream.md). The records are described in callwire.go.
//
// # Goroutines
//
// Apart from those inside gRPC, each call stream has two at the client, joined by Pool.Close, and some at the server, joined by grpc.Server.Stop.
package rpc

import (
	"context"
	"net"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// Limits that hold on every connection, both sides.
const (
	// MaxMessage bounds one message, in bytes: a frame's payload, its header, and metadata replies.
	MaxMessage = 4 * dfs.MiB
	// MaxHeaderList bounds the HTTP/2 headers of one call, in bytes.
	MaxHeaderList = 16 * dfs.KiB
	// DefaultMaxStreams is how many calls one connection may have in progress at a server.
	DefaultMaxStreams = 4096
	// StreamWindow and ConnWindow are the static HTTP/2 flow-control windows, in bytes: what a receiver may
	// be made to buffer per call and per connection.
	StreamWindow = 8 * dfs.MiB
	ConnWindow   = 16 * dfs.MiB
	// ioBufferSize is the size of a connection's read and write buffers, in bytes. Every byte is copied through both, so
	// they are to stay in the processor's cache: 32 KiB costs system calls, 256 KiB and more measured slower than 64.
	ioBufferSize = 64 * dfs.KiB

	// DefaultCallTimeout bounds a unary call whose context has no deadline.
	DefaultCallTimeout = 30 * time.Second

	reconnectBase   = 50 * time.Millisecond
	reconnectMax    = time.Second
	dialTimeout     = 3 * time.Second
	handshakeTime   = 10 * time.Second
	keepaliveTime   = 10 * time.Second
	keepaliveTimout = 5 * time.Second
	keepaliveFloor  = 5 * time.Second // a client pinging more often is cut off
	idleTimeout     = 5 * time.Minute
)

// Network listens and dials. Addresses are "host:port". Both calls return errors that wrap a sentinel;
// implementations are safe for concurrent use.
type Network interface {
	// Listen accepts connections on addr; port 0 draws a free port, which the listener's Addr tells.
	Listen(ctx context.Context, addr string) (net.Listener, error)
	// Dial connects to addr until ctx ends. Nothing listening there gives an error for which IsRefused is true.
	Dial(ctx context.Context, addr string) (net.Conn, error)
}

// IsRefused reports whether err says that the peer's machine answered and nothing listened on the address:
// the process is gone, as opposed to slow, paused or cut off.
func IsRefused(err error) bool { return dfserr.IsRefused(err) }

// CheckListenAddr returns nil when addr ("host:port") may be listened on: only loopback addresses and
// "localhost", because connections are neither encrypted nor authenticated. The error wraps ErrInvalid and names addr.
func CheckListenAddr(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return dfserr.Errorf(dfserr.ErrInvalid, "listen address %q: want HOST:PORT", addr)
	}
	if port == "" {
		return dfserr.Errorf(dfserr.ErrInvalid, "listen address %q has no port", addr)
	}
	if host == "localhost" {
		return nil
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
		return nil
	}
	return dfserr.Errorf(dfserr.ErrInvalid,
		"listen address %q is not a loopback address, and TLS is not available: use 127.0.0.1, [::1] or localhost", addr)
}
