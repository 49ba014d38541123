package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"dfs/chunkserver"
	"dfs/chunkserver/store"
	"dfs/internal/rpc"
	"dfs/internal/vfs"
	"dfs/master"
	"dfs/master/cluster"
	"dfs/master/repair"
)

// daemonCommands are the commands that run servers.
func daemonCommands(env *environ) []*cobra.Command {
	return []*cobra.Command{masterCommand(env), chunkserverCommand(env), miniCommand(env), localCommand(env), demoCommand(env)}
}

// server is a master or a chunkserver of this process.
type server interface {
	Start(ctx context.Context) error
	Addr() string
	Close() error
	// wait returns nil when ctx ends, or why the server cannot go on.
	wait(ctx context.Context) error
}

type masterServer struct{ *master.Master }

func (m masterServer) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-m.Failed():
		return m.Err()
	}
}

// chunkServer owns its data directories.
type chunkServer struct {
	*chunkserver.Server
	disks []*vfs.Disk
}

func (s chunkServer) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.Failed():
		return err
	}
}

// Close stops the server and gives its directories back.
func (s chunkServer) Close() error {
	errs := []error{s.Server.Close()}
	for _, d := range s.disks {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}

// logger makes the log of a daemon on standard error.
func (env *environ) logger(name string, s logSettings) (hclog.Logger, error) {
	level := hclog.LevelFromString(s.LogLevel)
	if level == hclog.NoLevel {
		return nil, fmt.Errorf("log level %q: want error, warn, info, debug or trace", s.LogLevel)
	}
	asJSON := false
	switch s.LogFormat {
	case "json":
		asJSON = true
	case "text":
	case "auto":
		asJSON = !env.terminal
	default:
		return nil, fmt.Errorf("log format %q: want text, json or auto", s.LogFormat)
	}
	return hclog.New(&hclog.LoggerOptions{Name: name, Level: level, Output: env.err, JSONFormat: asJSON}), nil
}

func masterCommand(env *environ) *cobra.Command {
	settings := defaultMaster()
	l := newLayered("master", settings)
	c := &cobra.Command{
		Use: "master", Short: "Run a master: it keeps the names and decides where data lives", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := l.load(cmd.Flags(), env.getenv); err != nil {
				return err
			}
			log, err := env.logger("master", settings.logSettings)
			if err != nil {
				return err
			}
			if settings.Listen, err = choosePort(cmd.Context(), log, settings.Listen, l.origin["listen"] == "default"); err != nil {
				return err
			}
			limitMemory(env, settings.MemoryLimit)
			m, err := newMaster(env, settings, log)
			if err != nil {
				return err
			}
			return serveProfiled(cmd.Context(), m, settings.Pprof, log)
		},
	}
	l.addFlags(c.Flags())
	return c
}

func newMaster(env *environ, s *masterSettings, log hclog.Logger) (server, error) {
	if err := rpc.CheckListenAddr(s.Listen); err != nil {
		return nil, err
	}
	fence := cluster.FenceProcess
	switch s.Fence {
	case "process":
	case "lease":
		fence = cluster.FenceLease
	default:
		return nil, fmt.Errorf("fence %q: want process or lease", s.Fence)
	}
	m, err := master.New(master.Config{
		Dir: s.Dir, Listen: s.Listen, MinReplicas: s.MinReplicas, Fence: fence,
		DeadAfter: orAtOnce(s.DeadAfter), GarbageGrace: orAtOnce(s.GarbageGrace), SafeModeTimeout: orAtOnce(s.SafeModeTimeout),
		Repair:     repair.Limits{Copies: s.RepairCopies, CopiesPerServer: s.RepairCopiesPerServer, BytesPerSecond: int64(s.RepairRate)},
		CacheBytes: int64(s.CacheSize), UID: env.ids.uid, GID: env.ids.gid, Software: version, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	return masterServer{m}, nil
}

func chunkserverCommand(env *environ) *cobra.Command {
	settings := defaultChunkserver()
	l := newLayered("chunkserver", settings)
	c := &cobra.Command{
		Use: "chunkserver", Short: "Run a chunkserver: it keeps the bytes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := l.load(cmd.Flags(), env.getenv); err != nil {
				return err
			}
			log, err := env.logger("chunkserver", settings.logSettings)
			if err != nil {
				return err
			}
			if settings.Listen, err = choosePort(cmd.Context(), log, settings.Listen, l.origin["listen"] == "default"); err != nil {
				return err
			}
			s, err := newChunkserver(settings, log)
			if err != nil {
				return err
			}
			return serveProfiled(cmd.Context(), s, settings.Pprof, log)
		},
	}
	l.addFlags(c.Flags())
	return c
}

// newChunkserver opens the data directories, which are made if need be, and constructs the server.
func newChunkserver(s *chunkserverSettings, log hclog.Logger) (server, error) {
	if err := rpc.CheckListenAddr(s.Listen); err != nil {
		return nil, err
	}
	masters, err := parseMasters(strings.Join(s.Masters, ","))
	if err != nil {
		return nil, fmt.Errorf("masters: %w", err)
	}
	var disks []store.Disk
	var opened []*vfs.Disk
	giveUp := func(err error) (server, error) {
		errs := []error{err}
		for _, d := range opened {
			errs = append(errs, d.Close())
		}
		return nil, errors.Join(errs...)
	}
	for _, dir := range s.Dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return giveUp(fmt.Errorf("data directory: %w", err))
		}
		d, err := vfs.OS(dir)
		if err != nil {
			return giveUp(fmt.Errorf("data directory: %w", err))
		}
		opened = append(opened, d)
		disks = append(disks, store.Disk{Name: dir, FS: d})
	}
	c, err := chunkserver.New(chunkserver.Config{
		Disks: disks, Listen: s.Listen, Masters: masters, Rack: s.Rack, Reserve: int64(s.Reserve),
		ScrubInterval: time.Duration(s.ScrubInterval), ScrubRate: int64(s.ScrubRate), Software: version, Logger: log,
	})
	if err != nil {
		return giveUp(err)
	}
	return chunkServer{c, opened}, nil
}

// serve runs a server until the context is cancelled, or until it fails by itself.
func serve(ctx context.Context, s server, log hclog.Logger) error {
	if err := s.Start(ctx); err != nil {
		if closeErr := s.Close(); closeErr != nil {
			log.Debug("closing after a failed start", "error", closeErr)
		}
		if interrupted(ctx) {
			return nil
		}
		return err
	}
	log.Info("serving", "address", s.Addr(), "version", version, "pid", os.Getpid())
	err := s.wait(ctx)
	if err != nil {
		log.Error("stopping because of a failure", "error", err)
	} else {
		log.Info("stopping")
	}
	if closeErr := s.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// portTries is how many ports are looked at before giving up.
const portTries = 200

// choosePort returns address if its port is free. If it is taken and may move, the next free port is taken and said;
// otherwise that is an error.
func choosePort(ctx context.Context, log hclog.Logger, address string, mayMove bool) (string, error) {
	if err := rpc.CheckListenAddr(address); err != nil {
		return "", err
	}
	if !mayMove {
		if err := portFree(ctx, address); err != nil {
			return "", fmt.Errorf("cannot listen on %s: %w; choose another with --listen", address, err)
		}
		return address, nil
	}
	chosen, err := nextFreePort(ctx, address, nil)
	if err == nil && chosen != address {
		log.Warn("port is taken, using the next free one", "wanted", address, "using", chosen)
	}
	return chosen, err
}

// nextFreePort looks for a free port from address on; avoid are ports that are promised to others.
func nextFreePort(ctx context.Context, address string, avoid map[string]bool) (string, error) {
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("listen address %q: want host:port", address)
	}
	port, err := strconv.Atoi(portText)
	if err != nil || port < 0 || port > 65535 {
		return "", fmt.Errorf("listen address %q: want host:port", address)
	}
	if port == 0 {
		return address, nil
	}
	for p := port; p < min(port+portTries, 65536); p++ {
		candidate := net.JoinHostPort(host, strconv.Itoa(p))
		if !avoid[candidate] && portFree(ctx, candidate) == nil {
			return candidate, nil
		}
	}
	return "", fmt.Errorf("no free port from %s on", address)
}

// portFree tries to listen.
func portFree(ctx context.Context, address string) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return cause(opCause(err))
	}
	return l.Close()
}

// opCause takes the wrapper off a network error.
func opCause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// orAtOnce keeps a configured zero from meaning the default.
func orAtOnce(d duration) time.Duration { return time.Duration(max(1, d)) }

// madeHere reports whether dir is missing, empty, or marked as made by this command.
func madeHere(dir, mark string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if e.Name() == mark {
			return true, nil
		}
	}
	return len(entries) == 0, nil
}
