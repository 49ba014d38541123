package raftlog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// layer is raft.StreamLayer on a Network. Behind a closed latch it refuses to dial and its connections carry nothing out, so no vote and no acknowledgement leaves a node whose storage has failed.
type layer struct {
	net.Listener
	network   Network
	advertise net.Addr
	latch     *latch
	ctx       context.Context // of dials; ended by Close
	stop      context.CancelFunc

	mu     sync.Mutex
	conns  map[*latchedConn]struct{} // open ones, of both directions. Guarded by mu.
	closed bool                      // Guarded by mu.
	served sync.WaitGroup            // accepted connections that Raft has not let go of
}

// address is a net.Addr of any network.
type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

// listen makes the layer.
func listen(ctx context.Context, cfg Config, l *latch) (*layer, error) {
	ln, err := cfg.Network.Listen(ctx, cfg.Bind)
	if err != nil {
		return nil, fmt.Errorf("raft: listen on %q: %w", cfg.Bind, err)
	}
	advertise := ln.Addr()
	if cfg.Advertise != "" {
		advertise = address(cfg.Advertise)
	}
	s := &layer{Listener: ln, network: cfg.Network, advertise: advertise, latch: l, conns: make(map[*latchedConn]struct{})}
	s.ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	return s, nil
}

// Addr returns the address that others dial; Raft takes it for its own.
func (s *layer) Addr() net.Addr { return s.advertise }

// Accept returns the next connection.
func (s *layer) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return s.track(c, true)
}

// track wraps a connection and remembers it, so that Close can end it: Raft leaves accepted ones open until the other side closes them.
func (s *layer) track(c net.Conn, accepted bool) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	l := &latchedConn{Conn: c, layer: s, accepted: accepted}
	s.conns[l] = struct{}{}
	if accepted {
		s.served.Add(1)
	}
	return l, nil
}

// Dial connects to another master.
func (s *layer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	if err := s.latch.err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	c, err := s.network.Dial(ctx, string(addr))
	if err != nil {
		return nil, err
	}
	return s.track(c, false)
}

// Close stops listening and dialling, ends all connections, and waits until Raft has let go of those that it served.
func (s *layer) Close() error {
	s.stop()
	err := s.Listener.Close()
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		_ = c.Conn.Close() // whoever uses it sees that
	}
	s.mu.Unlock()
	s.served.Wait()
	return err
}

// latchedConn writes nothing behind a closed latch.
type latchedConn struct {
	net.Conn
	layer    *layer
	accepted bool
	once     sync.Once
}

func (c *latchedConn) Write(p []byte) (int, error) {
	if err := c.layer.latch.err(); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// Close ends the connection. Raft's goroutine for an accepted one calls it last.
func (c *latchedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.layer.mu.Lock()
		defer c.layer.mu.Unlock()
		delete(c.layer.conns, c)
		if c.accepted {
			c.layer.served.Done()
		}
	})
	return err
}
