package testcluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"dfs/client"
	"dfs/internal/dfserr"
)

// Processes is a cluster of real processes on loopback, run with the `local` commands of a dfs binary.
type Processes struct {
	bin, dir string
	n        int

	mu     sync.Mutex
	info   clusterFile  // guarded by mu
	paused map[int]bool // guarded by mu: chunkservers stopped with SIGSTOP
}

var _ Nodes = (*Processes)(nil)

// Node is one process of the cluster, as `dfs local` notes it in cluster.json.
type Node struct {
	Role    string `json:"role"` // "master" or "chunkserver"
	Name    string `json:"name"`
	Address string `json:"address"`
	PID     int    `json:"pid"`
	DataDir string `json:"data_dir"`
	LogFile string `json:"log_file"`
}

// clusterFile is the part of cluster.json that is read here.
type clusterFile struct {
	Masters []string `json:"masters"`
	Nodes   []Node   `json:"nodes"`
}

// StartProcesses starts one master and n chunkservers of the dfs binary bin, with all data under dir, and returns
// when the cluster serves.
func StartProcesses(ctx context.Context, bin, dir string, n int) (*Processes, error) {
	p := &Processes{bin: bin, dir: dir, n: n, paused: map[int]bool{}}
	if err := p.local(ctx, "up", "--chunkservers", fmt.Sprint(n)); err != nil {
		return nil, err
	}
	return p, nil
}

// local runs one `dfs local` command and reads the state of the cluster anew.
func (p *Processes) local(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, p.bin, append(append([]string{"local"}, args...), "--dir", p.dir)...)
	// What `local` notes as the current cluster is the test's own business.
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+filepath.Join(p.dir, "config"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("dfs local %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	b, err := os.ReadFile(filepath.Join(p.dir, "cluster.json"))
	if os.IsNotExist(err) && args[0] == "down" {
		return nil
	}
	if err != nil {
		return err
	}
	var info clusterFile
	if err := json.Unmarshal(b, &info); err != nil {
		return fmt.Errorf("cluster.json: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.info = info
	return nil
}

// Nodes returns the processes with the given role, in the order of cluster.json.
func (p *Processes) Nodes(role string) []Node {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Node
	for _, n := range p.info.Nodes {
		if n.Role == role {
			out = append(out, n)
		}
	}
	return out
}

// chunkserver returns chunkserver i's process.
func (p *Processes) chunkserver(i int) (Node, error) {
	if nodes := p.Nodes("chunkserver"); i >= 0 && i < len(nodes) {
		return nodes[i], nil
	}
	return Node{}, dfserr.Errorf(dfserr.ErrInvalid, "chunkserver %d of %d", i, p.n)
}

// master returns the master's process.
func (p *Processes) master() (Node, error) {
	if nodes := p.Nodes("master"); len(nodes) > 0 {
		return nodes[0], nil
	}
	return Node{}, dfserr.Errorf(dfserr.ErrInvalid, "cluster.json in %s lists no master", p.dir)
}

// Client implements Nodes.
func (p *Processes) Client(ctx context.Context, name string) (*client.Client, error) {
	return client.Dial(ctx, client.Config{Masters: p.Masters(), Name: name})
}

// Masters implements Nodes.
func (p *Processes) Masters() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.info.Masters...)
}

// Chunkservers implements Nodes.
func (p *Processes) Chunkservers() int { return p.n }

// onChunkserver runs `dfs local <command> <chunkserver i>`.
func (p *Processes) onChunkserver(ctx context.Context, command string, i int) error {
	n, err := p.chunkserver(i)
	if err != nil {
		return err
	}
	return p.local(ctx, command, n.Name)
}

// KillChunkserver implements Nodes.
func (p *Processes) KillChunkserver(ctx context.Context, i int) error {
	return p.onChunkserver(ctx, "kill", i)
}

// StartChunkserver implements Nodes.
func (p *Processes) StartChunkserver(ctx context.Context, i int) error {
	return p.onChunkserver(ctx, "start", i)
}

// PauseChunkserver implements Nodes.
func (p *Processes) PauseChunkserver(_ context.Context, i int) error {
	return p.signal(i, syscall.SIGSTOP, true)
}

// ResumeChunkserver implements Nodes.
func (p *Processes) ResumeChunkserver(_ context.Context, i int) error {
	return p.signal(i, syscall.SIGCONT, false)
}

func (p *Processes) signal(i int, sig syscall.Signal, pause bool) error {
	n, err := p.chunkserver(i)
	if err != nil {
		return err
	}
	if err := syscall.Kill(n.PID, sig); err != nil {
		return fmt.Errorf("%v to %s (pid %d): %w", sig, n.Name, n.PID, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused[i] = pause
	return nil
}

// KillMaster implements Nodes.
func (p *Processes) KillMaster(ctx context.Context) error { return p.onMaster(ctx, "kill") }

// StartMaster implements Nodes.
func (p *Processes) StartMaster(ctx context.Context) error { return p.onMaster(ctx, "start") }

func (p *Processes) onMaster(ctx context.Context, command string) error {
	n, err := p.master()
	if err != nil {
		return err
	}
	return p.local(ctx, command, n.Name)
}

// Close implements Nodes.
func (p *Processes) Close() error {
	p.mu.Lock()
	paused := p.paused
	p.paused = map[int]bool{}
	p.mu.Unlock()
	for i, is := range paused {
		if is {
			// A process that is gone needs no waking.
			_ = p.signal(i, syscall.SIGCONT, false)
		}
	}
	return p.local(context.Background(), "down")
}
