// Package testcluster runs whole dfs clusters for tests: this project's, and those of programs that use the SDK.
//
// Start gives a Cluster inside the test's process: one master and several chunkservers, either on an in-memory
// network with in-memory disks (the default, fit for testing/synctest) or on loopback TCP with real directories.
// StartProcesses gives the same as real processes. Both can kill, pause and restart nodes; Nodes is what they
// have in common, so that one scenario runs on either.
//
// The master's Badger always lives in a real directory. A Cluster is safe for concurrent use; the test that started it owns
// it, and its Close joins everything it started.
package testcluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/go-hclog"

	"dfs/chunkserver"
	"dfs/chunkserver/store"
	"dfs/client"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	"dfs/internal/vfs"
	"dfs/master"
)

// Nodes is what a test can do to a cluster, however it runs. Chunkservers are numbered from 0.
type Nodes interface {
	// Client dials the cluster. The caller closes the client.
	Client(ctx context.Context, name string) (*client.Client, error)
	// Masters returns the masters' addresses.
	Masters() []string
	// Chunkservers returns how many chunkservers the cluster was started with.
	Chunkservers() int
	// KillChunkserver ends chunkserver i as `kill -9` does; StartChunkserver brings it back on its disks.
	KillChunkserver(ctx context.Context, i int) error
	StartChunkserver(ctx context.Context, i int) error
	// PauseChunkserver stops chunkserver i as SIGSTOP does, seen from outside; ResumeChunkserver goes on.
	PauseChunkserver(ctx context.Context, i int) error
	ResumeChunkserver(ctx context.Context, i int) error
	// KillMaster and StartMaster do the same for the master.
	KillMaster(ctx context.Context) error
	StartMaster(ctx context.Context) error
	// Close stops everything. Data of a Config.Dir that the caller gave is kept.
	Close() error
}

// Config says what Start builds. The zero value of each field has the meaning named there.
type Config struct {
	Chunkservers int          // 0: 4
	Dir          string       // real directory for the master, and for disks when Real; must exist
	Real         bool         // loopback TCP and real directories instead of the in-memory ones
	Logger       hclog.Logger // nil: silent
	// Master and Chunkserver change a node's configuration before it is made, at every start of it.
	Master      func(*master.Config)
	Chunkserver func(i int, c *chunkserver.Config)
	// Client changes the configuration of every client.
	Client func(*client.Config)
	// Faults, if set, is asked about every unary call between nodes and from clients (in-memory only).
	Faults rpc.FaultFunc

	disk func(i int) vfs.FS // nil: vfs.NewMem; in-memory only
}

// Cluster is a cluster inside this process.
type Cluster struct {
	// Net is the in-memory network for faults between hosts (MasterHost, ChunkserverHost, ClientHost); nil when Real.
	Net *rpc.Mem

	cfg   Config
	addr  string // the master's
	disks []vfs.FS

	mu      sync.Mutex
	master  *master.Master        // guarded by mu; nil while down
	servers []*chunkserver.Server // guarded by mu; nil while down
	clients int                   // guarded by mu; how many were made, for host names
}

var _ Nodes = (*Cluster)(nil)

// MasterHost is the master's host on the in-memory network.
const MasterHost = "127.0.0.1"

// ChunkserverHost returns chunkserver i's host on the in-memory network.
func ChunkserverHost(i int) string { return fmt.Sprintf("127.0.0.%d", 10+i) }

// ClientHost returns the host of the n-th client made, from 0.
func ClientHost(n int) string { return fmt.Sprintf("127.0.1.%d", 1+n) }

// Start builds a cluster and returns when every chunkserver has registered.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	if cfg.Chunkservers == 0 {
		cfg.Chunkservers = 4
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: io.Discard})
	}
	if cfg.Dir == "" {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "testcluster: Config.Dir is empty; give a directory such as t.TempDir()")
	}
	c := &Cluster{cfg: cfg, servers: make([]*chunkserver.Server, cfg.Chunkservers)}
	if !cfg.Real {
		c.Net = rpc.NewMem()
	}
	for i := range cfg.Chunkservers {
		disk, err := c.makeDisk(i)
		if err != nil {
			return nil, err
		}
		c.disks = append(c.disks, disk)
	}
	if err := c.start(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	if err := c.StartMaster(ctx); err != nil {
		return err
	}
	for i := range c.servers {
		if err := c.StartChunkserver(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// makeDisk returns chunkserver i's disk, which outlives its process.
func (c *Cluster) makeDisk(i int) (vfs.FS, error) {
	switch {
	case !c.cfg.Real && c.cfg.disk != nil:
		return c.cfg.disk(i), nil
	case !c.cfg.Real:
		return vfs.NewMem(), nil
	}
	dir := filepath.Join(c.cfg.Dir, fmt.Sprintf("chunkserver-%d", i))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return vfs.OS(dir)
}

// network returns the network as a host sees it.
func (c *Cluster) network(host string) rpc.Network {
	if c.cfg.Real {
		return rpc.TCP()
	}
	return c.Net.Host(host)
}

// listenAddr is where a host listens: a port of its own in memory, any free one on TCP.
func (c *Cluster) listenAddr(host string, port int) string {
	if c.cfg.Real {
		return "127.0.0.1:0"
	}
	return fmt.Sprintf("%s:%d", host, port)
}

// Masters implements Nodes.
func (c *Cluster) Masters() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return []string{c.addr}
}

// Chunkservers implements Nodes.
func (c *Cluster) Chunkservers() int { return c.cfg.Chunkservers }

// StartMaster implements Nodes: the master comes up on its data and, after a kill, on its old address.
func (c *Cluster) StartMaster(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.master != nil {
		return nil
	}
	listen := c.addr
	if listen == "" {
		listen = c.listenAddr(MasterHost, 7400)
	}
	cfg := master.Config{
		Dir:     filepath.Join(c.cfg.Dir, "master"),
		Listen:  listen,
		Network: c.network(MasterHost),
		Logger:  c.cfg.Logger.Named("master"),
		Faults:  c.cfg.Faults,
	}
	if c.cfg.Master != nil {
		c.cfg.Master(&cfg)
	}
	m, err := master.New(cfg)
	if err != nil {
		return err
	}
	if err := m.Start(ctx); err != nil {
		m.Close()
		return err
	}
	c.master, c.addr = m, m.Addr()
	return nil
}

// KillMaster implements Nodes.
func (c *Cluster) KillMaster(context.Context) error {
	c.mu.Lock()
	m := c.master
	c.master = nil
	c.mu.Unlock()
	if m == nil {
		return nil
	}
	if c.Net != nil {
		c.Net.Kill(MasterHost)
	}
	m.Kill()
	return nil
}

// StartChunkserver implements Nodes; it returns when the chunkserver has registered.
func (c *Cluster) StartChunkserver(ctx context.Context, i int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.servers[i] != nil {
		return nil
	}
	host := ChunkserverHost(i)
	cfg := chunkserver.Config{
		Disks:   []store.Disk{{Name: fmt.Sprintf("disk-%d", i), FS: c.disks[i]}},
		Listen:  c.listenAddr(host, 7410),
		Masters: []string{c.addr},
		Network: c.network(host),
		Logger:  c.cfg.Logger.Named(fmt.Sprintf("chunkserver-%d", i)),
		Faults:  c.cfg.Faults,
	}
	if c.cfg.Chunkserver != nil {
		c.cfg.Chunkserver(i, &cfg)
	}
	s, err := chunkserver.New(cfg)
	if err != nil {
		return err
	}
	if err := s.Start(ctx); err != nil {
		s.Close()
		return err
	}
	c.servers[i] = s
	select {
	case <-s.Ready():
		return nil
	case <-ctx.Done():
		return dfserr.Errorf(ctx.Err(), "chunkserver %d has not registered with %s", i, c.addr)
	}
}

// KillChunkserver implements Nodes. Its disk keeps what the process had written, synced or not.
func (c *Cluster) KillChunkserver(_ context.Context, i int) error {
	c.mu.Lock()
	s := c.servers[i]
	c.servers[i] = nil
	c.mu.Unlock()
	if s == nil {
		return nil
	}
	if c.Net != nil {
		c.Net.Kill(ChunkserverHost(i))
	}
	s.Kill()
	return nil
}

// PauseChunkserver implements Nodes; only in-memory clusters can.
func (c *Cluster) PauseChunkserver(_ context.Context, i int) error {
	if c.Net == nil {
		return dfserr.Errorf(dfserr.ErrUnsupported, "pausing a chunkserver inside the test's process")
	}
	c.Net.Pause(ChunkserverHost(i))
	return nil
}

// ResumeChunkserver implements Nodes.
func (c *Cluster) ResumeChunkserver(_ context.Context, i int) error {
	if c.Net != nil {
		c.Net.Resume(ChunkserverHost(i))
	}
	return nil
}

// Disk returns chunkserver i's disk.
func (c *Cluster) Disk(i int) vfs.FS { return c.disks[i] }

// Client implements Nodes. On the in-memory network the n-th client has the host ClientHost(n).
func (c *Cluster) Client(ctx context.Context, name string) (*client.Client, error) {
	c.mu.Lock()
	host := ClientHost(c.clients)
	c.clients++
	c.mu.Unlock()
	cfg := client.Config{
		Masters: c.Masters(),
		Network: c.network(host),
		Logger:  c.cfg.Logger.Named(name),
		Name:    name,
		Faults:  c.cfg.Faults,
	}
	if c.cfg.Client != nil {
		c.cfg.Client(&cfg)
	}
	return client.Dial(ctx, cfg)
}

// Close implements Nodes.
func (c *Cluster) Close() error {
	c.mu.Lock()
	servers, m := c.servers, c.master
	c.servers, c.master = make([]*chunkserver.Server, len(servers)), nil
	c.mu.Unlock()
	var first error
	keep := func(err error) {
		if err != nil && first == nil {
			first = err
		}
	}
	for _, s := range servers {
		if s != nil {
			keep(s.Close())
		}
	}
	if m != nil {
		keep(m.Close())
	}
	return first
}
