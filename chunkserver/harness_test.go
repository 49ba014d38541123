package chunkserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"dfs/chunkserver/store"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	"dfs/internal/vfs"
	dfsv1 "dfs/proto/dfs/v1"
)

const (
	testCluster  = 0xc1
	testChunk    = 0x77
	testLease    = 3 * time.Second
	testInterval = time.Second
)

// fakeMaster is a master that works: it keeps configurations, gives leases, fences what it leaves out, and answers
// failure reports the way DESIGN §6 says.
type fakeMaster struct {
	dfsv1.UnimplementedClusterServer
	dfsv1.UnimplementedMasterServer
	t    testing.TB
	rpcs *grpc.Server
	addr string

	mu       sync.Mutex
	cluster  uint64
	version  uint64
	chunks   map[uint64]*dfsv1.ChunkConfig
	servers  map[uint64]*fakeSeat
	fences   map[uint64]time.Time // when replicas put out of a chunk's configuration surely serve no more
	minimum  uint32
	grants   int
	lookups  int
	failures []*dfsv1.ReportFailureRequest
	released []uint64
	corrupt  []uint64
	reported map[uint64][]uint64
	copied   []*dfsv1.ReplicaCopiedRequest
	refuse   func(method string) error // tests: fails calls
	frozen   bool                      // reports change nothing
}

// fakeSeat is a chunkserver's heartbeat stream.
type fakeSeat struct {
	addr   string
	until  time.Time // of the serving lease
	cancel context.CancelFunc
}

func newFakeMaster(t testing.TB, network rpc.Network, addr string) *fakeMaster {
	m := &fakeMaster{
		t: t, cluster: testCluster, version: 100, chunks: map[uint64]*dfsv1.ChunkConfig{}, servers: map[uint64]*fakeSeat{}, minimum: 2,
		reported: map[uint64][]uint64{}, fences: map[uint64]time.Time{},
	}
	l, err := network.Listen(context.Background(), addr)
	if err != nil {
		t.Fatal(err)
	}
	m.addr = l.Addr().String()
	m.rpcs = rpc.NewServer(rpc.ServerOptions{})
	dfsv1.RegisterClusterServer(m.rpcs, m)
	dfsv1.RegisterMasterServer(m.rpcs, m)
	go func() { _ = m.rpcs.Serve(l) }()
	return m
}

func (m *fakeMaster) Heartbeat(stream grpc.BidiStreamingServer[dfsv1.HeartbeatRequest, dfsv1.HeartbeatReply]) error {
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	if id := req.GetClusterId(); id != 0 && id != m.cluster {
		return dfserr.Errorf(dfserr.ErrWrongCluster, "cluster %x", id)
	}
	id := req.GetServer()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	seat := &fakeSeat{addr: req.GetAddr(), cancel: cancel}
	m.mu.Lock()
	if old := m.servers[id]; old != nil {
		seat.until = old.until
		old.cancel()
	}
	m.servers[id] = seat
	m.mu.Unlock()
	requests := make(chan *dfsv1.HeartbeatRequest, 1)
	requests <- req
	go func() {
		defer cancel()
		for {
			req, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- req:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case req = <-requests:
		case <-ctx.Done():
			return dfserr.Errorf(dfserr.ErrUnavailable, "seat taken away")
		}
		m.mu.Lock()
		m.released = append(m.released, req.GetReleaseLeases()...)
		m.corrupt = append(m.corrupt, req.GetCorruptChunks()...)
		reply := &dfsv1.HeartbeatReply{
			ClusterId: m.cluster, Number: req.GetNumber(), ServingLeaseMs: testLease.Milliseconds(), WriteLeaseMs: 30_000,
			IntervalMs: testInterval.Milliseconds(), ReportChunks: req.GetNumber() == 1,
		}
		for id, s := range m.servers {
			reply.Members = append(reply.Members, &dfsv1.ServerAddr{Server: id, Addr: s.addr})
		}
		seat.until = time.Now().Add(testLease)
		m.mu.Unlock()
		if err := stream.Send(reply); err != nil {
			return err
		}
	}
}

func (m *fakeMaster) ReportChunks(stream grpc.ClientStreamingServer[dfsv1.ChunkReport, dfsv1.ChunkReportReply]) error {
	var all []uint64
	var id uint64
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		id = r.GetServer()
		all = append(all, r.GetChunks()...)
	}
	m.mu.Lock()
	m.reported[id] = all
	m.mu.Unlock()
	return stream.SendAndClose(&dfsv1.ChunkReportReply{})
}

func (m *fakeMaster) refused(method string) error {
	m.mu.Lock()
	refuse := m.refuse
	m.mu.Unlock()
	if refuse != nil {
		return refuse(method)
	}
	return nil
}

func (m *fakeMaster) AcquireLease(ctx context.Context, req *dfsv1.AcquireLeaseRequest) (*dfsv1.AcquireLeaseReply, error) {
	if err := m.refused("AcquireLease"); err != nil {
		return nil, err
	}
	for {
		m.mu.Lock()
		cfg := m.chunks[req.GetChunk()]
		if cfg == nil {
			m.mu.Unlock()
			return nil, dfserr.Errorf(dfserr.ErrNotExist, "chunk")
		}
		if cfg.GetReplicas()[0].GetServer() != req.GetServer() {
			m.mu.Unlock()
			return nil, dfserr.Errorf(dfserr.ErrNotPrimary, "chunk")
		}
		wait := time.Until(m.fences[req.GetChunk()])
		if wait <= 0 {
			m.grants++
			m.mu.Unlock()
			return &dfsv1.AcquireLeaseReply{Config: cfg, LeaseMs: 30_000, MinReplicas: m.minimum}, nil
		}
		m.mu.Unlock()
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (m *fakeMaster) ReportFailure(_ context.Context, req *dfsv1.ReportFailureRequest) (*dfsv1.ReportFailureReply, error) {
	if err := m.refused("ReportFailure"); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	cfg := m.chunks[req.GetChunk()]
	if cfg == nil {
		return nil, dfserr.Errorf(dfserr.ErrNotExist, "chunk")
	}
	if req.GetServer() == 0 {
		m.lookups++
		return &dfsv1.ReportFailureReply{Config: cfg}, nil
	}
	m.failures = append(m.failures, req)
	if req.GetVersion() != cfg.GetVersion() || m.frozen {
		return &dfsv1.ReportFailureReply{Config: cfg}, nil
	}
	left := slices.Clone(cfg.GetReplicas())
	left = slices.DeleteFunc(left, func(r *dfsv1.ServerAddr) bool { return r.GetServer() == req.GetServer() })
	if len(left) == 0 || len(left) == len(cfg.GetReplicas()) {
		return &dfsv1.ReportFailureReply{Config: cfg}, nil
	}
	return &dfsv1.ReportFailureReply{Config: m.reconfigureLocked(cfg, left)}, nil
}

func (m *fakeMaster) ReplicaCopied(_ context.Context, req *dfsv1.ReplicaCopiedRequest) (*dfsv1.ReplicaCopiedReply, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.copied = append(m.copied, req)
	return &dfsv1.ReplicaCopiedReply{}, nil
}

// reconfigureLocked commits a configuration, ending the serving leases of those left out.
func (m *fakeMaster) reconfigureLocked(cfg *dfsv1.ChunkConfig, replicas []*dfsv1.ServerAddr) *dfsv1.ChunkConfig {
	m.version += 10
	next := &dfsv1.ChunkConfig{
		Chunk: cfg.GetChunk(), Version: m.version, Replicas: replicas, ChunkSize: cfg.GetChunkSize(), Replication: cfg.GetReplication(),
		Born: cfg.GetBorn(), Seed: cfg.GetSeed(), CutLength: cfg.GetCutLength(), CutVersion: cfg.GetCutVersion(),
	}
	m.chunks[cfg.GetChunk()] = next
	for _, old := range cfg.GetReplicas() {
		if !slices.ContainsFunc(replicas, func(r *dfsv1.ServerAddr) bool { return r.GetServer() == old.GetServer() }) {
			seat := m.servers[old.GetServer()]
			if m.fences[cfg.GetChunk()].Before(seat.until) {
				m.fences[cfg.GetChunk()] = seat.until
			}
			seat.cancel() // it comes back with a new stream, and asks again about each chunk
		}
	}
	return next
}

// configure commits a configuration of the given servers.
func (m *fakeMaster) configure(chunk uint64, change func(*dfsv1.ChunkConfig), servers ...*node) *dfsv1.ChunkConfig {
	m.mu.Lock()
	defer m.mu.Unlock()
	var replicas []*dfsv1.ServerAddr
	for _, n := range servers {
		replicas = append(replicas, &dfsv1.ServerAddr{Server: uint64(n.srv().ID()), Addr: n.srv().Addr()})
	}
	cfg := m.chunks[chunk]
	if cfg == nil {
		cfg = &dfsv1.ChunkConfig{Chunk: chunk, Version: 100, Replicas: replicas, ChunkSize: 4 * dfs.MiB, Replication: uint32(len(servers))}
		m.chunks[chunk] = cfg
	} else {
		cfg = m.reconfigureLocked(cfg, replicas)
	}
	if change != nil {
		change(cfg)
	}
	return cfg
}

func (m *fakeMaster) config(chunk uint64) *dfsv1.ChunkConfig {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.chunks[chunk]
}

// node is one chunkserver of a test, with its disk.
type node struct {
	host string
	disk *vfs.Inject
	fs   *vfs.Mem
	now  atomic.Pointer[Server] // the process that runs, or ran last
}

func (nd *node) srv() *Server { return nd.now.Load() }

// world is a master and some chunkservers on one in-memory network.
type world struct {
	t      testing.TB
	net    *rpc.Mem
	master *fakeMaster
	nodes  []*node
	pool   *rpc.Pool
	ctx    context.Context
	tune   func(*Config)
}

// newWorld starts n chunkservers and waits until they have registered.
func newWorld(t testing.TB, n int, tune func(*Config)) *world {
	w := &world{t: t, net: rpc.NewMem(), tune: tune}
	w.ctx = context.Background()
	w.master = newFakeMaster(t, w.net.Host("master"), "master:1")
	for i := range n {
		fs := vfs.NewMem()
		nd := &node{host: fmt.Sprintf("cs%d", i+1), disk: vfs.NewInject(fs), fs: fs}
		w.nodes = append(w.nodes, nd)
		w.boot(nd)
	}
	w.pool = rpc.NewPool(w.net.Host("client"), rpc.PoolOptions{NoJitter: true})
	time.Sleep(testInterval + time.Second) // everybody knows everybody
	t.Cleanup(func() {})
	return w
}

// boot starts a node's process and waits until it is registered.
func (w *world) boot(nd *node) {
	w.t.Helper()
	cfg := Config{
		Disks: []store.Disk{{Name: nd.host, FS: nd.disk}}, Listen: nd.host + ":7", Masters: []string{"master:1"},
		Network: w.net.Host(nd.host), ScrubInterval: -1,
	}
	if testing.Verbose() {
		cfg.Logger = hclog.New(&hclog.LoggerOptions{Name: nd.host, Level: hclog.Debug})
	}
	if w.tune != nil {
		w.tune(&cfg)
	}
	srv, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := srv.Start(w.ctx); err != nil {
		w.t.Fatal(err)
	}
	nd.now.Store(srv)
	select {
	case <-srv.Ready():
	case err := <-srv.Failed():
		w.t.Fatal(err)
	case <-time.After(time.Minute):
		w.t.Fatalf("%s does not register", nd.host)
	}
}

// kill ends a node's process at once.
func (w *world) kill(nd *node) {
	w.net.Kill(nd.host)
	nd.srv().Kill()
}

func (w *world) close() {
	for _, nd := range w.nodes {
		nd.srv().Kill()
	}
	w.pool.Close()
	w.master.rpcs.Stop()
}

func (w *world) client(nd *node) dfsv1.ChunkClient {
	cc, err := w.pool.Get(nd.srv().Addr())
	if err != nil {
		w.t.Fatal(err)
	}
	return dfsv1.NewChunkClient(cc)
}

// inBubble runs a test with virtual time; goroutines left behind fail it.
func inBubble(t *testing.T, n int, tune func(*Config), f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, n, tune)
		defer w.close()
		f(w)
	})
}

// writer is a client's Write stream.
type writer struct {
	w      *world
	stream grpc.BidiStreamingClient[dfsv1.WriteFrame, dfsv1.WriteAck]
	cancel context.CancelFunc

	mu      sync.Mutex
	tag     uint64
	waiting map[uint64]chan *dfsv1.WriteAck
	err     error
}

func (w *world) writer(nd *node) *writer {
	w.t.Helper()
	wr, err := w.tryWriter(nd)
	if err != nil {
		w.t.Fatal(err)
	}
	return wr
}

func (w *world) tryWriter(nd *node) (*writer, error) {
	ctx, cancel := context.WithCancel(w.ctx)
	stream, err := w.client(nd).Write(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	wr := &writer{w: w, stream: stream, cancel: cancel, waiting: map[uint64]chan *dfsv1.WriteAck{}}
	go func() {
		for {
			ack, err := stream.Recv()
			wr.mu.Lock()
			if err != nil {
				wr.err = err
				for _, ch := range wr.waiting {
					close(ch)
				}
				wr.waiting = nil
				wr.mu.Unlock()
				return
			}
			ch := wr.waiting[ack.GetTag()]
			delete(wr.waiting, ack.GetTag())
			wr.mu.Unlock()
			if ch != nil {
				ch <- ack
			}
		}
	}()
	return wr, nil
}

// send sends a frame as it is and returns where its answer will come.
func (wr *writer) send(h *dfsv1.WriteHeader, data []byte) chan *dfsv1.WriteAck {
	ch := make(chan *dfsv1.WriteAck, 1)
	wr.mu.Lock()
	wr.tag++
	h.Tag = wr.tag
	if wr.waiting == nil {
		close(ch)
		wr.mu.Unlock()
		return ch
	}
	wr.waiting[h.Tag] = ch
	wr.mu.Unlock()
	f := rpc.Frame{Header: h}
	if len(data) > 0 {
		f.Data = mem.BufferSlice{mem.SliceBuffer(slices.Clone(data))}
	}
	_ = wr.stream.SendMsg(&f)
	return ch
}

// answer waits for an answer. A stream that broke gives ErrUnavailable.
func answer(ch chan *dfsv1.WriteAck) (*dfsv1.WriteAck, error) {
	ack, ok := <-ch
	if !ok {
		return nil, dfserr.Errorf(dfserr.ErrUnavailable, "stream broke")
	}
	return ack, dfserr.FromReason(ack.GetErrorReason(), ack.GetErrorText())
}

func writeHeader(chunk, version uint64, off int64, data []byte, writer, request uint64) *dfsv1.WriteHeader {
	return &dfsv1.WriteHeader{
		Chunk: chunk, Version: version, Kind: dfsv1.MutationKind_WRITE, Offset: off, Length: int64(len(data)), Writer: writer, Request: request,
		Crcs: dfs.BlockCRCs(off, data),
	}
}

func appendHeader(chunk, version uint64, data []byte, writer, request uint64) *dfsv1.WriteHeader {
	return &dfsv1.WriteHeader{
		Chunk: chunk, Version: version, Kind: dfsv1.MutationKind_APPEND, Length: int64(len(data)), Writer: writer, Request: request, AppendCrc: dfs.CRC(data),
	}
}

// put writes and waits for the acknowledgement.
func (wr *writer) put(off int64, data []byte, writer, request uint64) (*dfsv1.WriteAck, error) {
	return answer(wr.send(writeHeader(testChunk, wr.w.master.config(testChunk).GetVersion(), off, data, writer, request), data))
}

// read reads from one node, verifying checksums.
func (w *world) read(nd *node, version uint64, off, n int64) ([]byte, *dfsv1.ReadHeader, error) {
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	stream, err := w.client(nd).Read(ctx, &dfsv1.ReadRequest{Chunk: testChunk, Version: version, Offset: off, Length: n})
	if err != nil {
		return nil, nil, err
	}
	var out []byte
	var last *dfsv1.ReadHeader
	for {
		h := new(dfsv1.ReadHeader)
		f := rpc.Frame{Header: h}
		err := stream.RecvMsg(&f)
		if errors.Is(err, io.EOF) {
			return out, last, nil
		}
		if err != nil {
			return nil, nil, err
		}
		b := slices.Clone(f.Bytes())
		f.Free()
		if h.GetOffset() != off+int64(len(out)) || h.GetLength() != int64(len(b)) || !slices.Equal(h.GetCrcs(), dfs.BlockCRCs(h.GetOffset(), b)) {
			return nil, nil, fmt.Errorf("bad frame %v with %d bytes", h, len(b))
		}
		out, last = append(out, b...), h
	}
}

// mustRead reads and compares.
func (w *world) mustRead(nd *node, version uint64, off int64, want []byte) {
	w.t.Helper()
	got, _, err := w.read(nd, version, off, int64(len(want)))
	if err != nil {
		w.t.Fatalf("read from %s: %v", nd.host, err)
	}
	if !bytes.Equal(got, want) {
		w.t.Fatalf("read from %s: %d bytes at %d differ: %.40q, want %.40q", nd.host, len(want), off, got, want)
	}
}

// onDisk returns a replica's bytes as the store has them, whatever the role.
func (nd *node) onDisk(t testing.TB) ([]byte, store.State) {
	t.Helper()
	rep, err := nd.srv().store().Replica(testChunk)
	if err != nil {
		t.Fatalf("%s: %v", nd.host, err)
	}
	state, err := rep.State()
	if err != nil {
		t.Fatalf("%s: %v", nd.host, err)
	}
	var out []byte
	for int64(len(out)) < state.Length {
		res, err := rep.ReadAt(int64(len(out)), min(dfs.FrameSize, state.Length-int64(len(out))))
		if err != nil {
			t.Fatalf("%s: %v", nd.host, err)
		}
		out = append(out, res.Data...)
		res.Release()
	}
	return out, state
}

// sameEverywhere checks that the replicas on the given nodes hold the same bytes.
func (w *world) sameEverywhere(nodes ...*node) []byte {
	w.t.Helper()
	first, firstState := nodes[0].onDisk(w.t)
	for _, nd := range nodes[1:] {
		got, state := nd.onDisk(w.t)
		if !bytes.Equal(got, first) || state.LastSeq != firstState.LastSeq {
			w.t.Fatalf("%s has %d bytes up to mutation %d, %s has %d up to %d, and they differ", nodes[0].host, len(first), firstState.LastSeq, nd.host, len(got), state.LastSeq)
		}
	}
	return first
}

// text makes n recognisable bytes.
func text(seed, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(seed*31 + i*7 + i>>8)
	}
	return b
}

// mutation makes a write for a replica's log.
func mutation(v dfs.Version, seq dfs.Seq, off int64, data []byte, writer, request uint64) *store.Mutation {
	return &store.Mutation{
		Kind: store.KindWrite, Version: v, Seq: seq, Off: off, Len: int64(len(data)), Writer: writer, Request: request,
		Data: [][]byte{data}, CRCs: dfs.BlockCRCs(off, data),
	}
}
