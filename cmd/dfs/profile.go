package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime/debug"
	"time"

	"github.com/hashicorp/go-hclog"

	"dfs/internal/rpc"
)

// limitMemory sets the heap size above which the collector works harder, unless the Go runtime's own variable GOMEMLIMIT has
// been set. It is soft: a process that needs more takes more.
func limitMemory(env *environ, limit byteSize) {
	if limit > 0 && env.getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(int64(limit))
	}
}

// serveProfiled is serve with Go's profiles on a loopback address meanwhile; an empty address means none.
func serveProfiled(ctx context.Context, s server, address string, log hclog.Logger) error {
	if address == "" {
		return serve(ctx, s, log)
	}
	if err := rpc.CheckListenAddr(address); err != nil {
		return fmt.Errorf("pprof: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("pprof: cannot listen on %s: %w", address, opCause(err))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	h := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	log.Info("serving profiles", "address", l.Addr().String())
	done := make(chan error, 1)
	go func() { done <- h.Serve(l) }()
	err = serve(ctx, s, log)
	closeErr := h.Close()
	if e := <-done; err == nil && !errors.Is(e, http.ErrServerClosed) {
		err = e
	}
	return errors.Join(err, closeErr)
}
