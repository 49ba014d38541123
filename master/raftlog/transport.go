package raftlog

import (
	"context"
	"fmt"
	"net"
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
	s := &layer{Listener: ln, network: cfg.Network, advertise: advertise, latch: l}
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
	return &latchedConn{c, s.latch}, nil
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
	return &latchedConn{c, s.latch}, nil
}

// Close stops listening and dialling.
func (s *layer) Close() error {
	s.stop()
	return s.Listener.Close()
}

// latchedConn writes nothing behind a closed latch.
type latchedConn struct {
	net.Conn
	latch *latch
}

func (c *latchedConn) Write(p []byte) (int, error) {
	if err := c.latch.err(); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
