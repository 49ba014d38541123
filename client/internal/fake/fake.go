// Package fake is a cluster in memory for the client's tests: one master and some chunkservers that speak the real
// protocol over an rpc.Mem and do what they are asked, without Raft, disks, leases or chains. Hooks let a test make any
// call fail, stall or lie. It does not check permissions.
//
// Cluster.mu guards all state; hooks are called without it.
package fake

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc"

	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// Cluster is the whole cluster.
type Cluster struct {
	Net *rpc.Mem

	// Before, if set, sees each call to the master before it is handled, After after it; an error is returned to the caller in
	// place of the reply.
	Before, After func(method string, req any) error

	Servers []*Server

	mu       sync.Mutex
	index    uint64
	next     uint64
	inodes   map[uint64]*inode
	chunks   map[uint64]*chunk
	sessions map[uint64]bool
	replies  map[[2]uint64]reply
	opens    map[uint64]int
	calls    map[string]int
	reports  []*dfsv1.ReportFailureRequest
	stops    []func()
	master   *masterService
}

// reply is what a numbered request returned.
type reply struct {
	msg any
	err error
}

type inode struct {
	attr    *dfsv1.Attr
	data    []byte
	chunks  map[int64]uint64
	entries map[string]uint64
}

type chunk struct {
	id       uint64
	inode    uint64
	index    int64
	version  uint64
	size     int64
	replicas []*Server
	seq      uint64
	done     map[[2]uint64]int64 // (writer, request) → offset
}

// MasterAddr is where the master listens.
const MasterAddr = "master:1"

// Start runs a cluster of n chunkservers until the test ends. Call it inside the test's bubble, if there is one.
func Start(t *testing.T, n int) *Cluster {
	t.Helper()
	c := &Cluster{
		Net: rpc.NewMem(), inodes: map[uint64]*inode{}, chunks: map[uint64]*chunk{}, sessions: map[uint64]bool{},
		replies: map[[2]uint64]reply{}, opens: map[uint64]int{}, calls: map[string]int{}, next: 1,
	}
	c.inodes[1] = &inode{attr: &dfsv1.Attr{Inode: 1, Mode: 0o040755, Nlink: 2, MtimeNs: 1}, entries: map[string]uint64{}}
	c.master = &masterService{c: c}
	c.serve(t, "master", MasterAddr, c.registerMaster)
	for i := range n {
		s := &Server{c: c, ID: uint64(i + 1), Host: fmt.Sprintf("cs%d", i+1), data: map[uint64][]byte{}}
		s.Addr = s.Host + ":1"
		c.Servers = append(c.Servers, s)
		s.start(t)
	}
	t.Cleanup(c.Stop)
	return c
}

func (c *Cluster) registerMaster(s *grpc.Server) {
	dfsv1.RegisterMasterServer(s, c.master)
	rpc.RegisterCalls(s, rpc.ServerOptions{}, rpc.CallService{Desc: &dfsv1.Master_ServiceDesc, Impl: c.master})
}

func (c *Cluster) serve(t *testing.T, host, addr string, register func(*grpc.Server)) {
	t.Helper()
	l, err := c.Net.Host(host).Listen(context.Background(), addr)
	if err != nil {
		t.Fatal(err)
	}
	s := rpc.NewServer(rpc.ServerOptions{})
	register(s)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stops = append(c.stops, func() { s.Stop(); <-done })
}

// Stop ends every process of the cluster; it may be called early.
func (c *Cluster) Stop() {
	c.mu.Lock()
	stops := c.stops
	c.stops = nil
	c.mu.Unlock()
	for _, stop := range stops {
		stop()
	}
}

// RestartMaster makes the master listen again after Net.Kill("master").
func (c *Cluster) RestartMaster(t *testing.T) {
	c.serve(t, "master", MasterAddr, c.registerMaster)
}

// Calls returns how often a master method ("Create") was called.
func (c *Cluster) Calls(method string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[method]
}

// TotalCalls returns how many calls the master got, streams not counted.
func (c *Cluster) TotalCalls() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, k := range c.calls {
		n += k
	}
	return n
}

// Reports returns the failures reported so far.
func (c *Cluster) Reports() []*dfsv1.ReportFailureRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*dfsv1.ReportFailureRequest(nil), c.reports...)
}

// Opens returns how many handles the master counts on all files.
func (c *Cluster) Opens() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, k := range c.opens {
		n += k
	}
	return n
}

// ForgetSessions ends every session, as after a long silence.
func (c *Cluster) ForgetSessions() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions = map[uint64]bool{}
	c.replies = map[[2]uint64]reply{}
	c.opens = map[uint64]int{}
}

// Reconfigure gives a chunk a new version with the given servers, primary first; replicas that are new get the old primary's
// bytes.
func (c *Cluster) Reconfigure(id uint64, replicas ...*Server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reconfigureLocked(c.chunks[id], replicas)
}

func (c *Cluster) reconfigureLocked(k *chunk, replicas []*Server) {
	c.index++
	old := k.replicas[0].data[k.id]
	for _, r := range replicas {
		if !slices.Contains(k.replicas, r) {
			r.data[k.id] = append([]byte(nil), old...)
		}
	}
	k.version, k.replicas = c.index, replicas
}

// Config returns a chunk's configuration, nil when there is no such chunk.
func (c *Cluster) Config(id uint64) *dfsv1.ChunkConfig {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.chunks[id] == nil {
		return nil
	}
	return c.configLocked(c.chunks[id])
}

// Drop deletes a chunk.
func (c *Cluster) Drop(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.chunks, id)
}

func (c *Cluster) configLocked(k *chunk) *dfsv1.ChunkConfig {
	m := &dfsv1.ChunkConfig{Chunk: k.id, Version: k.version, ChunkSize: k.size, Index: k.index, Inode: k.inode, Replication: 3}
	for _, r := range k.replicas {
		m.Replicas = append(m.Replicas, &dfsv1.ServerAddr{Server: r.ID, Addr: r.Addr, Alive: true})
	}
	return m
}

// NewChunk makes a chunk that belongs to no file, on all servers, and returns its id.
func (c *Cluster) NewChunk(size int64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newChunkLocked(0, 0, size).id
}

func (c *Cluster) newChunkLocked(inode uint64, index, size int64) *chunk {
	c.next++
	c.index++
	k := &chunk{id: c.next, inode: inode, index: index, version: c.index, size: size, done: map[[2]uint64]int64{}}
	for i := range min(3, len(c.Servers)) {
		s := c.Servers[(int(c.next)+i)%len(c.Servers)]
		k.replicas = append(k.replicas, s)
		s.data[k.id] = nil
	}
	c.chunks[k.id] = k
	return k
}

// Bytes returns a chunk's content at its primary.
func (c *Cluster) Bytes(id uint64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.chunks[id]
	return append([]byte(nil), k.replicas[0].data[id]...)
}

// Primary returns a chunk's primary.
func (c *Cluster) Primary(id uint64) *Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.chunks[id].replicas[0]
}

// lengthLocked returns a file's exact length.
func (c *Cluster) lengthLocked(n *inode) int64 {
	length := n.attr.GetLength()
	for i, id := range n.chunks {
		if k := c.chunks[id]; k != nil {
			if l := int64(len(k.replicas[0].data[id])); l > 0 {
				length = max(length, i*n.attr.GetChunkSize()+l)
			}
		}
	}
	return length
}

// errNotFound is the answer about names and inodes that do not exist.
func errNotFound(what any) error { return dfserr.Errorf(dfserr.ErrNotExist, "%v", what) }
