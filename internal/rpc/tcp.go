package rpc

import (
	"context"
	"net"

	"dfs/internal/dfserr"
)

// TCP returns the real network. It listens on loopback only (CheckListenAddr) and dials directly, without
// proxies.
func TCP() Network { return tcpNetwork{} }

type tcpNetwork struct{}

func (tcpNetwork) Listen(ctx context.Context, addr string) (net.Listener, error) {
	if err := CheckListenAddr(addr); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", addr)
}

func (tcpNetwork) Dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err == nil {
		return conn, nil
	}
	if dfserr.IsRefused(err) {
		return nil, dfserr.Errorf(dfserr.ErrRefused, "dial %s", addr)
	}
	if ctx.Err() != nil {
		return nil, dfserr.Errorf(ctx.Err(), "dial %s", addr)
	}
	return nil, dfserr.Errorf(dfserr.ErrUnavailable, "dial %s: %v", addr, err)
}
