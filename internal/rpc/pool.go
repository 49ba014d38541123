package rpc

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// PoolOptions configures NewPool. The zero value is usable.
type PoolOptions struct {
	// CallTimeout bounds unary calls whose context has no deadline; 0 means DefaultCallTimeout.
	CallTimeout time.Duration
	// Conns is how many connections are kept per address, used in turn by successive Gets; 0 means 1.
	Conns int
	// MaxAddrs is how many addresses are kept; beyond it those unused for longest are closed. 0 means 4096.
	MaxAddrs int
	// Buffers is where received messages are put; nil makes a new pool.
	Buffers *Buffers
	// Faults, in tests, decides the fate of each unary call; nil means none.
	Faults FaultFunc
	// NoJitter makes reconnection times exact, for reproducible tests.
	NoJitter bool
}

// Pool shares connections: one (or Conns) per address, made on first use, closed after five idle minutes, and
// made again when needed. Calls fail at once while an address cannot be reached; reconnection is tried after
// 50 ms, growing to 1 s. It never retries a call. Safe for concurrent use.
type Pool struct {
	network Network
	opts    PoolOptions

	mu     sync.Mutex
	closed bool              // guarded by mu
	peers  map[peerKey]*peer // guarded by mu

	streams sync.WaitGroup // goroutines of call streams; none is added once closed is set
}

// peerKey names connections: an address that two chunkservers have had, one after the other, has two.
type peerKey struct {
	addr   string
	server dfs.ServerID // 0: whoever listens
}

// peer is what is known about one address.
type peer struct {
	peerKey
	conns   []*grpc.ClientConn // guarded by Pool.mu
	next    int                // guarded by Pool.mu
	calls   *CallConn          // guarded by Pool.mu; nil until GetCalls
	usedAt  time.Time          // guarded by Pool.mu
	mu      sync.Mutex
	dialErr error // guarded by mu: of the last dial; nil after a success
}

// NewPool returns an empty pool that dials through network (nil: TCP). Close ends it.
func NewPool(network Network, o PoolOptions) *Pool {
	if network == nil {
		network = TCP()
	}
	if o.CallTimeout <= 0 {
		o.CallTimeout = DefaultCallTimeout
	}
	if o.Conns <= 0 {
		o.Conns = 1
	}
	if o.MaxAddrs <= 0 {
		o.MaxAddrs = 4096
	}
	if o.Buffers == nil {
		o.Buffers = NewBuffers()
	}
	return &Pool{network: network, opts: o, peers: make(map[peerKey]*peer)}
}

// Buffers returns the pool of message buffers that the connections use, for payloads to be sent.
func (p *Pool) Buffers() *Buffers { return p.opts.Buffers }

// Get returns a connection to addr without waiting for it; the connection stays the pool's and must not be
// closed. Errors: ErrClosed, ErrInvalid for an empty address.
func (p *Pool) Get(addr string) (*grpc.ClientConn, error) { return p.GetServer(addr, 0) }

// GetServer is Get for calls meant for one chunkserver: another one that has the address by now answers them with
// ErrRefused (ServerOptions.ID). id 0 means whoever listens.
func (p *Pool) GetServer(addr string, id dfs.ServerID) (*grpc.ClientConn, error) {
	if addr == "" {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "dial: the address is empty")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, dfserr.Errorf(dfserr.ErrClosed, "dial %s: connections", addr)
	}
	key := peerKey{addr, id}
	pe := p.peers[key]
	if pe == nil {
		p.evictLocked()
		pe = &peer{peerKey: key}
		p.peers[key] = pe
	}
	pe.usedAt = time.Now()
	if len(pe.conns) < p.opts.Conns {
		cc, err := p.dial(pe)
		if err != nil {
			return nil, err
		}
		pe.conns = append(pe.conns, cc)
		return cc, nil
	}
	cc := pe.conns[pe.next%len(pe.conns)]
	pe.next++
	return cc, nil
}

// GetUp is GetServer for a chunkserver that is said to be up. When the last dial was refused, it looks whether that is still so: if not, calls need not
// fail until reconnection is tried by itself.
func (p *Pool) GetUp(ctx context.Context, addr string, id dfs.ServerID) (*grpc.ClientConn, error) {
	cc, err := p.GetServer(addr, id)
	if err != nil || cc.GetState() != connectivity.TransientFailure {
		return cc, err
	}
	p.mu.Lock()
	pe := p.peers[peerKey{addr, id}]
	p.mu.Unlock()
	if pe == nil || !pe.refused() || p.Probe(ctx, addr) != nil {
		return cc, nil
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	cc.ResetConnectBackoff()
	cc.WaitForStateChange(ctx, connectivity.TransientFailure)
	return cc, nil
}

// refused reports whether nobody listened at the last dial.
func (pe *peer) refused() bool {
	pe.mu.Lock()
	defer pe.mu.Unlock()
	return IsRefused(pe.dialErr)
}

// evictLocked makes room for one more address by closing the one unused for longest that has no connection up.
func (p *Pool) evictLocked() {
	if len(p.peers) < p.opts.MaxAddrs {
		return
	}
	var oldest *peer
	for _, pe := range p.peers {
		if time.Since(pe.usedAt) < time.Minute || (oldest != nil && !pe.usedAt.Before(oldest.usedAt)) {
			continue
		}
		busy := false
		for _, cc := range pe.conns {
			busy = busy || cc.GetState() == connectivity.Ready
		}
		if !busy {
			oldest = pe
		}
	}
	if oldest == nil {
		return
	}
	delete(p.peers, oldest.peerKey)
	oldest.close()
}

// close closes the connections; call streams on them end.
func (pe *peer) close() {
	for _, cc := range pe.conns {
		_ = cc.Close()
	}
}

// Forget closes and drops the connections to addr; calls in progress on them fail.
func (p *Pool) Forget(addr string) {
	var closing []*peer
	p.mu.Lock()
	for key, pe := range p.peers {
		if key.addr == addr {
			delete(p.peers, key)
			closing = append(closing, pe)
		}
	}
	p.mu.Unlock()
	for _, pe := range closing {
		pe.close()
	}
}

// Probe opens a fresh connection to addr and closes it: nil when something listens there. IsRefused of the
// error tells a process that is gone from one that cannot be reached.
func (p *Pool) Probe(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := p.network.Dial(ctx, addr)
	if err != nil {
		return err
	}
	return conn.Close()
}

// Close closes every connection, failing the calls in progress, and joins gRPC's goroutines.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	peers := p.peers
	p.peers = nil
	p.mu.Unlock()
	for _, pe := range peers {
		pe.close()
	}
	p.streams.Wait()
}

// dial makes a connection object; gRPC connects it when it is first used.
func (p *Pool) dial(pe *peer) (*grpc.ClientConn, error) {
	jitter := 0.2
	if p.opts.NoJitter {
		jitter = 0
	}
	authority := pe.addr
	if pe.server != 0 {
		authority = pe.server.String() + serverSuffix
	}
	cc, err := grpc.NewClient("passthrough:///"+pe.addr,
		grpc.WithAuthority(authority),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := p.network.Dial(ctx, pe.addr)
			pe.mu.Lock()
			pe.dialErr = err
			pe.mu.Unlock()
			return conn, err
		}),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithIdleTimeout(idleTimeout),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: reconnectBase, Multiplier: 1.6, Jitter: jitter, MaxDelay: reconnectMax},
			MinConnectTimeout: dialTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimout}),
		grpc.WithStaticStreamWindowSize(StreamWindow),
		grpc.WithStaticConnWindowSize(ConnWindow),
		grpc.WithReadBufferSize(ioBufferSize),
		grpc.WithWriteBufferSize(ioBufferSize),
		grpc.WithMaxHeaderListSize(MaxHeaderList),
		experimental.WithBufferPool(p.opts.Buffers),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(Codec()),
			grpc.MaxCallRecvMsgSize(MaxMessage),
			grpc.MaxCallSendMsgSize(MaxMessage),
		),
		grpc.WithUnaryInterceptor(p.unary(pe)),
		grpc.WithStreamInterceptor(pe.stream),
	)
	if err != nil {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "dial %q: %v", pe.addr, err)
	}
	return cc, nil
}

// unary puts edge around a unary call.
func (p *Pool) unary(pe *peer) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		return p.edge(ctx, pe, method, reply, func(ctx context.Context) error { return invoke(ctx, method, req, reply, cc, opts...) })
	}
}

// edge makes a unary call with the default deadline and the test's faults, and translates the error.
func (p *Pool) edge(ctx context.Context, pe *peer, method string, reply any, invoke func(context.Context) error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.opts.CallTimeout)
		defer cancel()
	}
	if p.opts.Faults != nil {
		call := func() error { return pe.translate(invoke(ctx)) }
		return p.opts.Faults(ctx, pe.addr, method).apply(ctx, pe.addr, reply, call)
	}
	return pe.translate(invoke(ctx))
}

func (pe *peer) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	cs, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, pe.translate(err)
	}
	return &clientStream{cs, pe}, nil
}

// clientStream translates the errors of a stream. io.EOF passes unchanged.
type clientStream struct {
	grpc.ClientStream
	peer *peer
}

func (s *clientStream) RecvMsg(m any) error { return s.peer.translate(s.ClientStream.RecvMsg(m)) }
func (s *clientStream) SendMsg(m any) error { return s.peer.translate(s.ClientStream.SendMsg(m)) }

// translate turns a status into an error of the table. What gRPC itself raises because the peer cannot be reached
// gets the address and, when the last dial failed, why.
func (pe *peer) translate(err error) error {
	if err == nil {
		return nil
	}
	out := dfserr.FromStatus(err)
	st, ok := status.FromError(err)
	if !ok || len(st.Details()) > 0 || dfserr.Sentinel(out) != dfserr.ErrUnavailable {
		return out
	}
	pe.mu.Lock()
	dialErr := pe.dialErr
	pe.mu.Unlock()
	if dialErr != nil {
		sentinel := dfserr.ErrUnavailable
		if IsRefused(dialErr) {
			sentinel = dfserr.ErrRefused
		}
		return &unreachable{text: fmt.Sprintf("cannot reach %s: %v", pe.addr, dialErr), sentinel: sentinel}
	}
	return &unreachable{text: fmt.Sprintf("connection to %s: %s", pe.addr, st.Message()), sentinel: dfserr.ErrUnavailable}
}

// unreachable says that a connection could not be made or broke.
type unreachable struct {
	text     string
	sentinel error
}

func (u *unreachable) Error() string { return u.text }
func (u *unreachable) Unwrap() error { return u.sentinel }
