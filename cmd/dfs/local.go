package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"dfs/fusefs"
)

// A local cluster is real processes on this machine under one directory:
//
//	D/cluster.json        what runs where; replaced atomically
//	D/lock                held while a command changes the cluster
//	D/master1, D/chunkserverN   data
//	D/logs/NAME.log       what the process printed
//
// A mount of the cluster (--mount) is a node like the others, with a directory in place of an address.

// Roles of nodes.
const (
	roleMaster      = "master"
	roleChunkserver = "chunkserver"
	roleMount       = "mount"
)

// Names of files in a cluster's directory.
const (
	clusterFileName = "cluster.json"
	lockName        = "lock"
)

// Time limits of local clusters.
const (
	readyTimeout = 60 * time.Second // until a started cluster serves
	readyPoll    = 50 * time.Millisecond
	stopPatience = 10 * time.Second // between SIGTERM and SIGKILL
)

// localNode is one process of a local cluster. A stopped node keeps its last process.
type localNode struct {
	Role    string `json:"role"`
	Name    string `json:"name"`
	Address string `json:"address"` // "" for a mount
	processID
	DataDir string `json:"data_dir"` // for a mount, where it is
	LogFile string `json:"log_file"`
}

// localCluster is the content of cluster.json.
type localCluster struct {
	Masters []string    `json:"masters"`
	Nodes   []localNode `json:"nodes"`

	dir string
	env *environ
	// children are the processes started by this command, with a channel that is closed when they end.
	children map[int]<-chan struct{}
	// extra is added to the environment of started processes.
	extra []string
	// say prints a line of talk.
	say func(format string, args ...any)
}

// openLocalCluster reads the cluster of a directory and takes its lock until release is called.
func openLocalCluster(env *environ, dir string, create bool) (c *localCluster, release func(), err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, nil, err
	}
	if create {
		if err := os.MkdirAll(filepath.Join(dir, "logs"), 0o755); err != nil {
			return nil, nil, err
		}
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, nil, fmt.Errorf("no local cluster in %s (dfs local up --dir %s makes one): %w", dir, dir, cause(err))
	}
	release = func() { lock.Close() } //nolint:errcheck // closing gives the lock back
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		release()
		return nil, nil, fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	c = &localCluster{dir: dir, env: env, children: map[int]<-chan struct{}{}}
	c.say = func(format string, args ...any) { fmt.Fprintf(env.err, format+"\n", args...) }
	b, err := os.ReadFile(c.path(clusterFileName))
	switch {
	case errors.Is(err, fs.ErrNotExist) && create:
	case errors.Is(err, fs.ErrNotExist):
		release()
		return nil, nil, fmt.Errorf("no local cluster in %s; dfs local up --dir %s makes one", dir, dir)
	case err != nil:
		release()
		return nil, nil, err
	default:
		if err := json.Unmarshal(b, c); err != nil {
			release()
			return nil, nil, fmt.Errorf("%s is damaged: %w", c.path(clusterFileName), err)
		}
	}
	return c, release, nil
}

func (c *localCluster) path(name string) string { return filepath.Join(c.dir, name) }

func (c *localCluster) save() error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return writeFileAtomic(c.path(clusterFileName), append(b, '\n'))
}

func (c *localCluster) node(name string) (*localNode, error) {
	var names []string
	for i := range c.Nodes {
		if c.Nodes[i].Name == name {
			return &c.Nodes[i], nil
		}
		names = append(names, c.Nodes[i].Name)
	}
	return nil, fmt.Errorf("no node %q; there are %s", name, strings.Join(names, ", "))
}

// plan adds the nodes that a cluster of so many chunkservers, mounted on mountDir unless that is "", lacks.
func (c *localCluster) plan(chunkservers int, mountDir string) {
	add := func(role, name, dir string) {
		if _, err := c.node(name); err == nil {
			return
		}
		c.Nodes = append(c.Nodes, localNode{Role: role, Name: name, DataDir: dir, LogFile: filepath.Join(c.dir, "logs", name+".log")})
	}
	add(roleMaster, "master1", c.path("master1"))
	for i := range chunkservers {
		name := fmt.Sprintf("chunkserver%d", i+1)
		add(roleChunkserver, name, c.path(name))
	}
	mounts := c.nodesOf(roleMount)
	if mountDir != "" && !slices.ContainsFunc(mounts, func(n *localNode) bool { return n.DataDir == mountDir }) {
		add(roleMount, fmt.Sprintf("mount%d", len(mounts)+1), mountDir)
	}
}

func (c *localCluster) nodesOf(role string) []*localNode {
	var nodes []*localNode
	for i := range c.Nodes {
		if c.Nodes[i].Role == role {
			nodes = append(nodes, &c.Nodes[i])
		}
	}
	return nodes
}

// up starts what does not run and returns when the cluster serves, with every chunkserver registered and every mount there.
func (c *localCluster) up(ctx context.Context) error {
	start := func(role string) error {
		for _, n := range c.nodesOf(role) {
			if n.alive() {
				continue
			}
			if err := c.start(ctx, n); err != nil {
				return err
			}
		}
		return nil
	}
	if err := start(roleMaster); err != nil {
		return err
	}
	if err := start(roleChunkserver); err != nil {
		return err
	}
	if err := c.waitReady(ctx); err != nil {
		return err
	}
	if err := start(roleMount); err != nil {
		return err
	}
	return c.waitMounted(ctx)
}

// start launches the process of a node on its address, or on the next free one if that is taken.
func (c *localCluster) start(ctx context.Context, n *localNode) error {
	if n.Role == roleMount {
		if _, err := makeMountPoint(n.DataDir); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		if err := c.launch(n); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		return c.save()
	}
	promised := map[string]bool{}
	for _, other := range c.Nodes {
		if other.Name != n.Name {
			promised[other.Address] = true
		}
	}
	wanted := n.Address
	if wanted == "" {
		wanted = "127.0.0.1:" + defaultMasterPort
		if n.Role == roleChunkserver {
			wanted = "127.0.0.1:7410"
		}
	}
	address, err := nextFreePort(ctx, wanted, promised)
	if err != nil {
		return err
	}
	if address != wanted && n.Role == roleMaster && c.anyAlive(roleChunkserver) {
		return fmt.Errorf("%s: %s is taken by another program, and chunkservers that run expect the master there; dfs local down --dir %s first", n.Name, wanted, c.dir)
	}
	if address != wanted && !promised[wanted] {
		c.say("%s: %s is taken, using %s", n.Name, wanted, address)
	}
	n.Address = address
	if n.Role == roleMaster {
		c.Masters = []string{address}
	}
	if err := c.launch(n); err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	return c.save()
}

func (c *localCluster) anyAlive(role string) bool {
	return slices.ContainsFunc(c.Nodes, func(n localNode) bool { return n.Role == role && n.alive() })
}

// arguments are the command line of a node.
func (c *localCluster) arguments(n *localNode) []string {
	switch n.Role {
	case roleMaster:
		return []string{"master", "--dir", n.DataDir, "--listen", n.Address, "--log-format", "json"}
	case roleMount:
		return []string{"mount", strings.Join(c.Masters, ","), n.DataDir}
	}
	return []string{"chunkserver", "--dirs", n.DataDir, "--listen", n.Address, "--masters", strings.Join(c.Masters, ","), "--log-format", "json"}
}

// launch runs this binary as a process of its own, in its own session, with its output in the node's log.
func (c *localCluster) launch(n *localNode) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(n.LogFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self, c.arguments(n)...) //nolint:noctx // the process outlives this command
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), c.extra...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	id, err := identify(cmd.Process.Pid)
	if err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	n.processID = id
	ended := make(chan struct{})
	go func() {
		cmd.Wait() //nolint:errcheck // how it ended is in its log
		close(ended)
	}()
	c.children[id.Pid] = ended
	return nil
}

// waitReady returns when a master answers and every chunkserver is registered and alive, or says who is missing.
func (c *localCluster) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	begin := c.env.now()
	said := begin
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	var fsys remote
	defer func() {
		if fsys != nil {
			fsys.Close() //nolint:errcheck // only asked questions
		}
	}()
	waiting := "the master"
	for {
		for i := range c.Nodes {
			if n := &c.Nodes[i]; n.Role != roleMount && !n.alive() {
				return fmt.Errorf("%s ended by itself; the end of %s:\n%s", n.Name, n.LogFile, tailOf(n.LogFile, 10))
			}
		}
		if fsys == nil {
			dialed, err := c.env.dial(ctx, target{masters: c.Masters, source: c.path(clusterFileName)})
			if err == nil {
				fsys = dialed
			}
		}
		if fsys != nil {
			missing, err := c.missing(ctx, fsys)
			if err == nil && missing == "" {
				return nil
			}
			if err == nil {
				waiting = missing
			}
		}
		select {
		case <-ctx.Done():
			if interrupted(ctx) {
				return ctx.Err()
			}
			return fmt.Errorf("the cluster does not serve after %s: still waiting for %s; the logs are in %s:\n%s",
				readyTimeout, waiting, c.path("logs"), tailOf(c.Nodes[0].LogFile, 10))
		case <-tick.C:
		}
		if now := c.env.now(); now.Sub(said) >= time.Second {
			said = now
			c.say("waiting for %s (%.0f s)", waiting, now.Sub(begin).Seconds())
		}
	}
}

// waitMounted returns when every mount is there, or says which one ended instead.
func (c *localCluster) waitMounted(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for _, n := range c.nodesOf(roleMount) {
		for !n.mounted(c.Masters) {
			if !n.alive() {
				return fmt.Errorf("%s ended by itself; the end of %s:\n%s", n.Name, n.LogFile, tailOf(n.LogFile, 10))
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s: nothing is mounted on %s yet: %w; its log is %s", n.Name, n.DataDir, context.Cause(ctx), n.LogFile)
			case <-tick.C:
			}
		}
	}
	return nil
}

// mounted reports whether the cluster is mounted where the node says. A dead mount left there does not count: asking it fails.
func (n *localNode) mounted(masters []string) bool {
	source, _, ok := fusefs.MountedOn(n.DataDir)
	if !ok || source != mountSource(masters, "") {
		return false
	}
	_, err := os.Stat(n.DataDir)
	return err == nil
}

// missing names the chunkservers that have not registered, or says that the master is in safe mode.
func (c *localCluster) missing(ctx context.Context, fsys remote) (string, error) {
	r, err := fsys.Report(ctx)
	if err != nil {
		return "", err
	}
	var names []string
	for _, n := range c.Nodes {
		if n.Role != roleChunkserver {
			continue
		}
		if !slices.ContainsFunc(r.Servers, func(s serverReport) bool { return s.Addr == n.Address && s.usable() }) {
			names = append(names, n.Name)
		}
	}
	if len(names) == 0 && r.SafeMode {
		return "the master to leave safe mode", nil
	}
	return strings.Join(names, ", "), nil
}

// usable reports whether new chunks can be placed on the server: it is live and has reported its disks.
func (s serverReport) usable() bool { return s.State == "live" && s.Capacity > 0 }

// stopNode ends a node cleanly and says if it had to be forced.
func (c *localCluster) stopNode(ctx context.Context, n *localNode) error {
	forced, err := n.stop(ctx, stopPatience)
	if forced {
		c.say("%s did not stop within %s and was killed", n.Name, stopPatience)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	c.reap(n)
	return n.unmountRest()
}

// unmountRest takes away what a mount that was killed has left on its directory.
func (n *localNode) unmountRest() error {
	if n.Role != roleMount {
		return nil
	}
	if _, err := os.Stat(n.DataDir); !fusefs.IsDead(err) {
		return nil
	}
	return fusefs.Unmount(n.DataDir, true)
}

// reap waits for a process that this command started itself.
func (c *localCluster) reap(n *localNode) {
	if ended, ok := c.children[n.Pid]; ok {
		<-ended
		delete(c.children, n.Pid)
	}
}

// down stops every node: mounts while they can still flush, then chunkservers, then the master; those of a kind all at once.
func (c *localCluster) down(ctx context.Context) error {
	for _, role := range []string{roleMount, roleChunkserver, roleMaster} {
		results := make(chan error)
		nodes := c.nodesOf(role)
		for _, n := range nodes {
			go func() {
				forced, err := n.stop(ctx, stopPatience)
				if forced && err == nil {
					err = fmt.Errorf("did not stop within %s and was killed", stopPatience)
				}
				err = errors.Join(err, n.unmountRest())
				if err != nil {
					err = fmt.Errorf("%s: %w", n.Name, err)
				}
				results <- err
			}()
		}
		var errs []error
		for range nodes {
			errs = append(errs, <-results)
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	for i := range c.Nodes {
		c.reap(&c.Nodes[i])
	}
	return nil
}

// printStatus prints a row per node.
func (c *localCluster) printStatus(w io.Writer, asJSON bool) {
	state := func(n localNode) string {
		if n.alive() {
			return "running"
		}
		return "stopped"
	}
	if asJSON {
		type row struct {
			localNode
			State string `json:"state"`
		}
		rows := []row{}
		for _, n := range c.Nodes {
			rows = append(rows, row{n, state(n)})
		}
		encodeJSON(w, map[string]any{"masters": c.Masters, "dir": c.dir, "nodes": rows}, "")
		return
	}
	t := table{}
	t.add("NODE", "STATE", "ADDRESS", "PID", "DATA", "LOG")
	for _, n := range c.Nodes {
		pid := "-"
		if n.alive() {
			pid = fmt.Sprint(n.Pid)
		}
		t.add(n.Name, state(n), cmp.Or(n.Address, "-"), pid, n.DataDir, n.LogFile)
	}
	t.print(w)
}

func localCommand(env *environ) *cobra.Command {
	local := &cobra.Command{Use: "local", Short: "Run a cluster of real processes on this machine"}
	var dir string
	var asJSON bool
	local.PersistentFlags().StringVar(&dir, "dir", "dfs-local", "the cluster's directory")
	local.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON")

	// within opens the cluster, runs do on it and notes what has changed.
	within := func(create bool, do func(ctx context.Context, c *localCluster, args []string) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			c, release, err := openLocalCluster(env, dir, create)
			if err != nil {
				return err
			}
			defer release()
			return do(cmd.Context(), c, args)
		}
	}
	eachNode := func(do func(ctx context.Context, c *localCluster, n *localNode) error) func(context.Context, *localCluster, []string) error {
		return func(ctx context.Context, c *localCluster, args []string) error {
			for _, name := range args {
				n, err := c.node(name)
				if err != nil {
					return err
				}
				if err := do(ctx, c, n); err != nil {
					return err
				}
			}
			return nil
		}
	}

	var chunkservers int
	var mountDir string
	up := &cobra.Command{
		Use: "up", Short: "Start the cluster, or what of it does not run, and return when it serves", Args: cobra.NoArgs,
		RunE: within(true, func(ctx context.Context, c *localCluster, _ []string) error {
			if chunkservers < 1 || chunkservers > 100 {
				return &usageError{text: fmt.Sprintf("--chunkservers %d: want 1 to 100", chunkservers)}
			}
			if mountDir != "" {
				var err error
				if mountDir, err = filepath.Abs(mountDir); err != nil {
					return err
				}
			}
			c.plan(chunkservers, mountDir)
			if err := c.up(ctx); err != nil {
				return err
			}
			if err := env.setCurrent(c.Masters); err != nil {
				return err
			}
			c.printStatus(env.out, asJSON)
			return nil
		}),
	}
	up.Flags().StringVar(&mountDir, "mount", "", "also mount the cluster on this directory, which is made if it is missing; down unmounts it")
	up.Flags().IntVar(&chunkservers, "chunkservers", 4, "how many chunkservers; an existing cluster only grows")

	local.AddCommand(
		up,
		&cobra.Command{
			Use: "status", Short: "Print which processes run", Args: cobra.NoArgs,
			RunE: within(false, func(_ context.Context, c *localCluster, _ []string) error {
				c.printStatus(env.out, asJSON)
				return nil
			}),
		},
		&cobra.Command{
			Use: "down", Short: "Stop every process; the data stays", Args: cobra.NoArgs,
			RunE: within(false, func(ctx context.Context, c *localCluster, _ []string) error {
				env.dropCurrent(c.Masters)
				return c.down(ctx)
			}),
		},
		&cobra.Command{
			Use: "stop NODE ...", Short: "Stop processes cleanly (SIGTERM)", Args: cobra.MinimumNArgs(1),
			RunE: within(false, eachNode(func(ctx context.Context, c *localCluster, n *localNode) error { return c.stopNode(ctx, n) })),
		},
		&cobra.Command{
			Use: "kill NODE ...", Short: "Kill processes (SIGKILL)", Args: cobra.MinimumNArgs(1),
			RunE: within(false, eachNode(func(ctx context.Context, c *localCluster, n *localNode) error {
				if err := n.kill(ctx); err != nil {
					return fmt.Errorf("%s: %w", n.Name, err)
				}
				return nil
			})),
		},
		&cobra.Command{
			Use: "start NODE ...", Short: "Start processes again and return when they serve", Args: cobra.MinimumNArgs(1),
			RunE: within(false, func(ctx context.Context, c *localCluster, args []string) error {
				err := eachNode(func(ctx context.Context, c *localCluster, n *localNode) error {
					if n.alive() {
						return nil
					}
					return c.start(ctx, n)
				})(ctx, c, args)
				if err != nil {
					return err
				}
				return c.waitServing(ctx, args)
			}),
		},
	)
	return local
}

// waitServing is waitReady for some nodes: the others may be stopped.
func (c *localCluster) waitServing(ctx context.Context, names []string) error {
	some := *c
	some.Nodes = slices.DeleteFunc(slices.Clone(c.Nodes), func(n localNode) bool { return !slices.Contains(names, n.Name) })
	if err := some.waitReady(ctx); err != nil {
		return err
	}
	return some.waitMounted(ctx)
}
