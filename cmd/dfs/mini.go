package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"dfs/internal/dfs"
	"dfs/internal/vfs"
)

// miniServers is how many chunkservers `dfs mini` runs: as many as a file has replicas.
const miniServers = dfs.DefaultReplication

// miniMark is a file that says that a directory was made by mini, so that --reset wipes nothing else.
const miniMark = "dfs-mini.lock"

// miniBanner is what `dfs mini --json` prints.
type miniBanner struct {
	Version      string   `json:"version"`
	Masters      []string `json:"masters"`
	Chunkservers []string `json:"chunkservers"`
	Replication  int      `json:"replication"`
	DataDir      string   `json:"data_dir"`
	FreeBytes    int64    `json:"free_bytes"`
	ReadyMS      int64    `json:"ready_ms"`
	Mount        string   `json:"mount,omitempty"`
}

func miniCommand(env *environ) *cobra.Command {
	var dir, mountDir string
	var reset, asJSON bool
	logs := logSettings{LogLevel: "warn", LogFormat: "auto"}
	c := &cobra.Command{
		Use: "mini", Short: "Run a whole cluster in this process: nothing to configure", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := env.logger("dfs", logs)
			if err != nil {
				return err
			}
			m := &mini{env: env, dir: dir, mountDir: mountDir, log: log}
			return m.run(cmd.Context(), reset, asJSON)
		},
	}
	c.Flags().StringVar(&dir, "dir", "dfs-data", "where the data lives")
	c.Flags().StringVar(&mountDir, "mount", "", "also mount the cluster on this directory, which is made if it is missing")
	c.Flags().BoolVar(&reset, "reset", false, "wipe the data first")
	c.Flags().BoolVar(&asJSON, "json", false, "print what runs where as JSON")
	c.Flags().StringVar(&logs.LogLevel, "log-level", logs.LogLevel, "error, warn, info, debug or trace")
	c.Flags().StringVar(&logs.LogFormat, "log-format", logs.LogFormat, "text, json or auto")
	return c
}

// mini is a cluster in this process.
type mini struct {
	env      *environ
	dir      string
	mountDir string // "": not mounted
	log      hclog.Logger
	master   server
	servers  []server
	attached *attached
}

func (m *mini) run(ctx context.Context, reset, asJSON bool) (err error) {
	env := m.env
	begin := env.now()
	if m.dir, err = filepath.Abs(m.dir); err != nil {
		return err
	}
	unlock, err := prepareMini(m.dir, reset)
	if err != nil {
		return err
	}
	defer unlock()
	speak := m.hush()
	defer func() {
		m.hush()
		if closeErr := m.close(); err == nil {
			err = closeErr
		}
	}()
	if err := m.start(ctx); err != nil {
		if interrupted(ctx) {
			return nil
		}
		return err
	}
	masters := []string{m.master.Addr()}
	if err := m.waitReady(ctx, masters); err != nil {
		if interrupted(ctx) {
			return nil
		}
		return err
	}
	if err := m.mount(ctx, masters); err != nil {
		return err
	}
	if err := env.setCurrent(masters); err != nil {
		return err
	}
	defer env.dropCurrent(masters)
	if err := m.banner(asJSON, env.now().Sub(begin)); err != nil {
		return err
	}
	speak()
	return m.wait(ctx)
}

// hush keeps warnings off the terminal until the returned function is called, unless somebody wants to see more than
// warnings: while all parts start or stop at once, they miss one another, and that is nothing to warn of.
func (m *mini) hush() (speak func()) {
	level := m.log.GetLevel()
	if level == hclog.Warn {
		m.log.SetLevel(hclog.Error)
	}
	return func() { m.log.SetLevel(level) }
}

// wait returns nil when ctx ends, or the failure of the first server that cannot go on.
func (m *mini) wait(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range append([]server{m.master}, m.servers...) {
		g.Go(func() error { return s.wait(ctx) })
	}
	return g.Wait()
}

// mount serves the mount that was asked for, in this process.
func (m *mini) mount(ctx context.Context, masters []string) (err error) {
	if m.mountDir == "" {
		return nil
	}
	if m.mountDir, err = makeMountPoint(m.mountDir); err != nil {
		return err
	}
	args := newMountArgs()
	args.dir, args.opts.Logger = m.mountDir, m.log.Named("mount")
	m.attached, err = args.attach(ctx, target{masters: masters, source: "mini"})
	return err
}

// prepareMini makes and locks the data directory; with reset it is emptied, if it is one.
func prepareMini(dir string, reset bool) (unlock func(), err error) {
	ours, err := madeHere(dir, miniMark)
	if err != nil {
		return nil, err
	}
	if !ours {
		return nil, fmt.Errorf("%s holds something else than the data of dfs mini; choose another directory with --dir", dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, miniMark), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is in use by another dfs mini; stop that one, or choose another directory with --dir", dir), lock.Close())
	}
	if reset {
		entries, err := os.ReadDir(dir)
		for _, e := range entries {
			if e.Name() != miniMark && err == nil {
				err = os.RemoveAll(filepath.Join(dir, e.Name()))
			}
		}
		if err != nil {
			return nil, errors.Join(err, lock.Close())
		}
	}
	return func() { lock.Close() }, nil //nolint:errcheck // closing gives the lock back
}

func (m *mini) start(ctx context.Context) error {
	avoid := map[string]bool{}
	pick := func(wanted string) (string, error) {
		address, err := nextFreePort(ctx, wanted, avoid)
		avoid[address] = true
		return address, err
	}
	settings := defaultMaster()
	settings.Dir = filepath.Join(m.dir, "master")
	wanted := settings.Listen
	var err error
	if settings.Listen, err = pick(wanted); err != nil {
		return err
	}
	if settings.Listen != wanted {
		fmt.Fprintf(m.env.err, "%s is taken, the master uses %s\n", wanted, settings.Listen)
	}
	if m.master, err = newMaster(m.env, settings, m.log.Named("master")); err != nil {
		return err
	}
	if err := m.master.Start(ctx); err != nil {
		return err
	}
	for i := range miniServers {
		s := defaultChunkserver()
		s.Dirs = []string{filepath.Join(m.dir, fmt.Sprintf("chunks%d", i+1))}
		s.Masters = []string{m.master.Addr()}
		if s.Listen, err = pick(s.Listen); err != nil {
			return err
		}
		server, err := newChunkserver(s, m.log.Named(fmt.Sprintf("chunkserver%d", i+1)))
		if err != nil {
			return err
		}
		m.servers = append(m.servers, server)
		if err := server.Start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// waitReady returns when every chunkserver is registered, and makes the user's directory so that relative paths work.
func (m *mini) waitReady(ctx context.Context, masters []string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	fsys, err := m.env.dial(ctx, target{masters: masters, source: "mini"})
	if err != nil {
		return err
	}
	defer fsys.Close() //nolint:errcheck // nothing is open
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		r, err := fsys.Report(ctx)
		if err != nil {
			return err
		}
		live := 0
		for _, s := range r.Servers {
			if s.usable() {
				live++
			}
		}
		if live >= miniServers && !r.SafeMode {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("only %d of %d chunkservers have registered: %w", live, miniServers, ctx.Err())
		case <-tick.C:
		}
	}
	home := "/user/" + m.env.user
	if err := fsys.MkdirAll(ctx, home, 0o755); err != nil && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("making %s: %w", home, err)
	}
	return nil
}

func (m *mini) banner(asJSON bool, took time.Duration) error {
	disk, err := vfs.OS(m.dir)
	if err != nil {
		return err
	}
	_, free, err := disk.Usage()
	if err = errors.Join(err, disk.Close()); err != nil {
		return err
	}
	b := miniBanner{
		Version: version, Masters: []string{m.master.Addr()}, Replication: dfs.DefaultReplication,
		DataDir: m.dir, FreeBytes: free, ReadyMS: took.Milliseconds(), Mount: m.mountDir,
	}
	for _, s := range m.servers {
		b.Chunkservers = append(b.Chunkservers, s.Addr())
	}
	if asJSON {
		encodeJSON(m.env.out, b, "")
		return nil
	}
	mounted := ""
	if m.mountDir != "" {
		mounted = fmt.Sprintf("    Mounted on  %s\n", m.mountDir)
	}
	fmt.Fprintf(m.env.out, `  dfs %s · all-in-one (1 master, %d chunkservers, replication %d)    ready in %.1f s
    Masters     %s
    Data        %s   %s free
%s  Try:   dfs put README.md /hello && dfs cat /hello
  Ctrl-C stops everything; data is kept.  'dfs mini --reset' wipes it.
`, b.Version, len(b.Chunkservers), b.Replication, took.Seconds(), b.Masters[0], b.DataDir, byteDesc(b.FreeBytes), mounted)
	return nil
}

// close stops everything: the mount while it can still flush, then the chunkservers, all at once, then the master.
func (m *mini) close() error {
	var errs []error
	if m.attached != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
		errs = append(errs, m.attached.detach(ctx))
		cancel()
	}
	results := make(chan error)
	for _, s := range m.servers {
		go func() { results <- s.Close() }()
	}
	for range m.servers {
		errs = append(errs, <-results)
	}
	if m.master != nil {
		errs = append(errs, m.master.Close())
	}
	return errors.Join(errs...)
}
