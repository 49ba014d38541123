package master

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// world is a master on an in-memory network, with clients and scripted chunkservers. It lives in a synctest bubble, so its time
// is virtual; only the master's disk is real.
type world struct {
	t   *testing.T
	net *rpc.Mem
	cfg Config
	m   *Master

	pool    *rpc.Pool
	client  dfsv1.MasterClient
	nonce   uint64
	session uint64
	seq     uint64
	servers []*fakeServer
}

// newWorld starts a master.
func newWorld(t *testing.T, change ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, net: rpc.NewMem()}
	w.cfg = Config{
		Dir: t.TempDir(), Listen: "master:7000", Network: w.net.Host("master"), Ballast: -1, MinFree: 1 << 20, CacheBytes: 8 << 20,
		Software: "test", Logger: testLogger(t),
	}
	for _, c := range change {
		c(&w.cfg)
	}
	w.start()
	w.pool = rpc.NewPool(w.net.Host("client"), rpc.PoolOptions{NoJitter: true})
	conn, err := w.pool.Get("master:7000")
	if err != nil {
		t.Fatal(err)
	}
	w.client = dfsv1.NewMasterClient(conn)
	w.open()
	return w
}

func testLogger(t *testing.T) hclog.Logger {
	if !testing.Verbose() {
		return hclog.NewNullLogger()
	}
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: logWriter{t}, DisableTime: true})
}

type logWriter struct{ t *testing.T }

func (l logWriter) Write(p []byte) (int, error) {
	fmt.Printf("%s", p)
	return len(p), nil
}

func (w *world) start() {
	w.t.Helper()
	m, err := New(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := m.Start(w.ctx()); err != nil {
		w.t.Fatalf("start: %v", err)
	}
	w.m = m
}

// restart closes or kills the master and starts it on the same directory. The session lives on.
func (w *world) restart(kill bool) {
	w.t.Helper()
	if kill {
		w.m.Kill()
	} else if err := w.m.Close(); err != nil {
		w.t.Fatalf("close: %v", err)
	}
	w.cfg.Network = w.net.Host("master")
	w.start()
}

// open begins a session.
func (w *world) open() {
	w.t.Helper()
	w.nonce++
	r, err := w.client.OpenSession(w.ctx(), &dfsv1.OpenSessionRequest{Client: "test", Nonce: w.nonce})
	if err != nil {
		w.t.Fatalf("open session: %v", err)
	}
	w.session, w.seq = r.GetSession(), 0
}

// close ends everything; goroutines that are left make synctest fail.
func (w *world) close() {
	w.t.Helper()
	for _, s := range w.servers {
		s.stop()
	}
	w.pool.Close()
	if err := w.m.Close(); err != nil {
		w.t.Errorf("close: %v", err)
	}
}

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	w.t.Cleanup(cancel)
	return ctx
}

func (w *world) header() *dfsv1.MutationHeader {
	w.seq++
	return &dfsv1.MutationHeader{Session: w.session, Seq: w.seq, Caller: &dfsv1.Caller{}}
}

func path(p string) *dfsv1.Ref { return &dfsv1.Ref{Path: []byte(p)} }

func inode(id uint64) *dfsv1.Ref { return &dfsv1.Ref{Inode: id} }

// create makes a regular file in the root directory and opens it.
func (w *world) create(name string, change ...func(*dfsv1.CreateRequest)) *dfsv1.OpenReply {
	w.t.Helper()
	r := &dfsv1.CreateRequest{Header: w.header(), Parent: path("/"), Name: []byte(name), Mode: 0o100644, Open: true, ChunkSize: dfs.MinChunkSize}
	for _, c := range change {
		c(r)
	}
	reply, err := w.client.Create(w.ctx(), r)
	if err != nil {
		w.t.Fatalf("create %s: %v", name, err)
	}
	return reply
}

func (w *world) mkdir(name string) *dfsv1.OpenReply {
	w.t.Helper()
	reply, err := w.client.Create(w.ctx(), &dfsv1.CreateRequest{Header: w.header(), Parent: path("/"), Name: []byte(name), Mode: 0o040755})
	if err != nil {
		w.t.Fatalf("mkdir %s: %v", name, err)
	}
	return reply
}

func (w *world) stat(p string) (*dfsv1.Attr, error) {
	r, err := w.client.GetAttr(w.ctx(), &dfsv1.GetAttrRequest{Ref: path(p), Caller: &dfsv1.Caller{}})
	return r.GetAttr(), err
}

func (w *world) mustStat(p string) *dfsv1.Attr {
	w.t.Helper()
	a, err := w.stat(p)
	if err != nil {
		w.t.Fatalf("stat %s: %v", p, err)
	}
	return a
}

func (w *world) remove(name string) error {
	_, err := w.client.Remove(w.ctx(), &dfsv1.RemoveRequest{Header: w.header(), Parent: path("/"), Name: []byte(name), What: dfsv1.RemoveRequest_ANY})
	return err
}

func (w *world) addChunk(ino uint64, index int64) *dfsv1.AddChunkReply {
	w.t.Helper()
	r, err := w.client.AddChunk(w.ctx(), &dfsv1.AddChunkRequest{Header: w.header(), Inode: ino, Index: index})
	if err != nil {
		w.t.Fatalf("add chunk %d of inode %d: %v", index, ino, err)
	}
	return r
}

func (w *world) report() *dfsv1.ClusterReportReply {
	w.t.Helper()
	r, err := w.client.ClusterReport(w.ctx(), &dfsv1.ClusterReportRequest{})
	if err != nil {
		w.t.Fatalf("cluster report: %v", err)
	}
	return r
}

// eventually waits, in virtual time, until ok returns true.
func (w *world) eventually(what string, within time.Duration, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("%s: not within %v", what, within)
		}
	}
}

// fakeReplica is a replica as a scripted chunkserver keeps it: numbers, no bytes.
type fakeReplica struct {
	version uint64
	length  int64
	fenced  uint64 // nothing is served at or below this version
}

// fakeServer is a scripted chunkserver: it registers, sends heartbeats, reports, takes leases, and answers the master's
// calls from a map of replicas. Reads and writes go through serve and write, under the rules that a real one has.
type fakeServer struct {
	dfsv1.UnimplementedChunkServer
	w           *world
	id          uint64
	host        string
	rack        string
	incarnation uint64
	grpc        *grpc.Server
	pool        *rpc.Pool
	cancel      context.CancelFunc
	wg          sync.WaitGroup

	mu         sync.Mutex
	replicas   map[uint64]*fakeReplica
	serveUntil time.Time
	members    int
	reports    int
	hbErr      error
	corrupt    []uint64
	diskFree   int64
	failCalls  error // what the master's calls get instead of an answer
	copyErr    string
	copyMute   bool          // nobody is told of copies
	copyHold   chan struct{} // copies wait for it
	copies     int
	cutOff     bool            // no other chunkserver reaches it, nor it them
	rotten     map[uint64]bool // what verifying a chunk's replica finds
	verified   []uint64
	cannot     uint64 // a server whose replica this one, as primary, cannot bring into step
	activated  []uint64
	deleted    []uint64
	fences     int
	stats      int
	leases     map[uint64]time.Time
}

func (w *world) addServer(n int) *fakeServer {
	w.t.Helper()
	s := &fakeServer{
		w: w, id: uint64(n), host: fmt.Sprintf("cs%d", n), incarnation: uint64(time.Now().UnixNano()) + uint64(n), diskFree: 1 << 40,
		replicas: map[uint64]*fakeReplica{}, leases: map[uint64]time.Time{},
	}
	w.servers = append(w.servers, s)
	s.run()
	return s
}

// addServers starts n scripted chunkservers and waits until they may serve.
func (w *world) addServers(n int) []*fakeServer {
	w.t.Helper()
	for range n {
		w.addServer(len(w.servers) + 1)
	}
	w.eventually("registration", 10*time.Second, func() bool {
		for _, s := range w.servers {
			if !s.serving() {
				return false
			}
		}
		return true
	})
	return w.servers
}

// run starts the server's process.
func (s *fakeServer) run() {
	s.w.t.Helper()
	network := s.w.net.Host(s.host)
	lis, err := network.Listen(context.Background(), s.host+":1")
	if err != nil {
		s.w.t.Fatal(err)
	}
	s.grpc = rpc.NewServer(rpc.ServerOptions{})
	dfsv1.RegisterChunkServer(s.grpc, s)
	s.pool = rpc.NewPool(network, rpc.PoolOptions{NoJitter: true})
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	srv := s.grpc
	s.wg.Go(func() { _ = srv.Serve(lis) })
	s.wg.Go(func() { s.heartbeats(ctx) })
}

// stop ends the process; a second call does nothing.
func (s *fakeServer) stop() {
	if s.cancel == nil {
		return
	}
	s.cancel()
	s.cancel = nil
	s.mu.Lock()
	if s.copyHold != nil {
		close(s.copyHold)
		s.copyHold = nil
	}
	s.mu.Unlock()
	s.grpc.Stop()
	s.wg.Wait()
	s.pool.Close()
}

// kill ends the process as a crash does.
func (s *fakeServer) kill() {
	s.w.net.Kill(s.host)
	s.stop()
	s.mu.Lock()
	s.serveUntil = time.Time{}
	s.mu.Unlock()
}

// back starts a killed process again, with what it had on disk.
func (s *fakeServer) back() {
	s.incarnation++
	s.mu.Lock()
	for _, r := range s.replicas {
		r.fenced = 0
	}
	s.mu.Unlock()
	s.run()
}

func (s *fakeServer) addr() string { return s.host + ":1" }

func (s *fakeServer) serving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.serveUntil)
}

func (s *fakeServer) cluster() dfsv1.ClusterClient {
	conn, err := s.pool.Get("master:7000")
	if err != nil {
		s.w.t.Error(err)
	}
	return dfsv1.NewClusterClient(conn)
}

func (s *fakeServer) beat(number uint64) *dfsv1.HeartbeatRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &dfsv1.HeartbeatRequest{
		Number: number, Chunks: int64(len(s.replicas)), CorruptChunks: s.corrupt,
		Disks: []*dfsv1.DiskUsage{{Dir: "/d", CapacityBytes: 2 << 40, FreeBytes: s.diskFree, UsedBytes: 1 << 20}},
	}
}

// heartbeats keeps a stream up until ctx ends.
func (s *fakeServer) heartbeats(ctx context.Context) {
	for ctx.Err() == nil {
		err := s.stream(ctx)
		s.mu.Lock()
		s.hbErr = err
		s.serveUntil = time.Time{}
		s.mu.Unlock()
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (s *fakeServer) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.cluster().Heartbeat(ctx)
	if err != nil {
		return err
	}
	sent := map[uint64]time.Time{1: time.Now()}
	first := s.beat(1)
	first.Server, first.Addr, first.Rack, first.Incarnation, first.Software = s.id, s.addr(), s.rack, s.incarnation, "fake"
	if err := stream.Send(first); err != nil {
		_, err = stream.Recv()
		return err
	}
	failed := make(chan error, 1)
	var mu sync.Mutex
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	interval := make(chan time.Duration, 1)
	wg.Go(func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			mu.Lock()
			at := sent[r.GetNumber()]
			mu.Unlock()
			s.mu.Lock()
			if until := at.Add(time.Duration(r.GetServingLeaseMs()) * time.Millisecond); r.GetServingLeaseMs() > 0 && until.After(s.serveUntil) {
				s.serveUntil = until
			}
			if len(r.GetMembers()) > 0 {
				s.members = len(r.GetMembers())
			}
			s.mu.Unlock()
			select {
			case interval <- time.Duration(r.GetIntervalMs()) * time.Millisecond:
			default:
			}
			if r.GetReportChunks() {
				wg.Go(func() { s.sendReport(ctx) })
			}
		}
	})
	wait := 100 * time.Millisecond
	for number := uint64(2); ; number++ {
		select {
		case err := <-failed:
			return err
		case d := <-interval:
			wait = d
			number--
			continue
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		mu.Lock()
		sent[number] = time.Now()
		mu.Unlock()
		if err := stream.Send(s.beat(number)); err != nil {
			return <-failed
		}
	}
}

// sendReport sends the list of replicas, two ids per message.
func (s *fakeServer) sendReport(ctx context.Context) {
	s.mu.Lock()
	var ids []uint64
	for id := range s.replicas {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	slices.Sort(ids)
	stream, err := s.cluster().ReportChunks(ctx)
	if err != nil {
		return
	}
	for first := true; first || len(ids) > 0; first = false {
		n := min(2, len(ids))
		if stream.Send(&dfsv1.ChunkReport{Server: s.id, Incarnation: s.incarnation, Chunks: ids[:n]}) != nil {
			break
		}
		ids = ids[n:]
	}
	if _, err := stream.CloseAndRecv(); err == nil {
		s.mu.Lock()
		s.reports++
		s.mu.Unlock()
	}
}

func (s *fakeServer) broken() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failCalls
}

// acquire asks for the write lease, as a primary does before it orders a write.
func (s *fakeServer) acquire(chunk uint64) (*dfsv1.AcquireLeaseReply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	r, err := s.cluster().AcquireLease(ctx, &dfsv1.AcquireLeaseRequest{Server: s.id, Chunk: chunk})
	if err == nil {
		s.mu.Lock()
		s.leases[chunk] = time.Now().Add(time.Duration(r.GetLeaseMs()) * time.Millisecond)
		s.mu.Unlock()
	}
	return r, err
}

// put gives the server a replica.
func (s *fakeServer) put(chunk, version uint64, length int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replicas[chunk] = &fakeReplica{version: version, length: length}
}

func (s *fakeServer) get(chunk uint64) (fakeReplica, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.replicas[chunk]; r != nil {
		return *r, true
	}
	return fakeReplica{}, false
}

// write has the primary take a lease and lengthen every replica of the configuration, as acknowledged writes do.
func (w *world) write(config *dfsv1.ChunkConfig, length int64) *dfsv1.AcquireLeaseReply {
	w.t.Helper()
	lease, err := w.server(config.GetReplicas()[0].GetServer()).acquire(config.GetChunk())
	if err != nil {
		w.t.Fatalf("lease on chunk %d: %v", config.GetChunk(), err)
	}
	for _, r := range lease.GetConfig().GetReplicas() {
		w.server(r.GetServer()).put(config.GetChunk(), lease.GetConfig().GetVersion(), length)
	}
	return lease
}

func (w *world) server(id uint64) *fakeServer {
	w.t.Helper()
	for _, s := range w.servers {
		if s.id == id {
			return s
		}
	}
	w.t.Fatalf("no server %d", id)
	return nil
}

func (s *fakeServer) Stat(_ context.Context, r *dfsv1.ChunkStatRequest) (*dfsv1.ChunkStatReply, error) {
	if err := s.broken(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.stats++
	rep := s.replicas[r.GetChunk()]
	state := "valid"
	if r.GetVerify() {
		s.verified = append(s.verified, r.GetChunk())
		if s.rotten[r.GetChunk()] {
			state = "corrupt"
			s.corrupt = append(s.corrupt, r.GetChunk())
		}
	}
	var have fakeReplica
	if rep != nil {
		have = *rep
	}
	s.mu.Unlock()
	if r.GetExact() {
		if rep == nil || have.version < r.GetVersion() || time.Now().After(s.leaseOf(r.GetChunk())) {
			lease, err := s.acquire(r.GetChunk())
			if err != nil {
				return nil, err
			}
			if rep == nil && lease.GetConfig().GetBorn() {
				return nil, dfserr.Errorf(dfserr.ErrNotExist, "chunk %d", r.GetChunk())
			}
			s.adopt(lease.GetConfig())
			have, _ = s.get(r.GetChunk())
		}
	} else if rep == nil {
		return nil, dfserr.Errorf(dfserr.ErrNotExist, "chunk %d", r.GetChunk())
	}
	return &dfsv1.ChunkStatReply{Replica: &dfsv1.ReplicaState{
		Chunk: r.GetChunk(), Server: s.id, Version: have.version, Length: have.length, State: state,
	}}, nil
}

func (s *fakeServer) Probe(_ context.Context, r *dfsv1.ProbeRequest) (*dfsv1.ProbeReply, error) {
	if err := s.broken(); err != nil {
		return nil, err
	}
	other := s.w.server(r.GetServer())
	other.mu.Lock()
	defer other.mu.Unlock()
	return &dfsv1.ProbeReply{Reached: !other.cutOff}, nil
}

func (s *fakeServer) leaseOf(chunk uint64) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leases[chunk]
}

// adopt brings the replicas of a configuration to its version: seed, cut, and equal lengths.
func (s *fakeServer) adopt(c *dfsv1.ChunkConfig) {
	own, ok := s.get(c.GetChunk())
	if !ok {
		own.length = int64(len(c.GetSeed()))
	}
	if c.GetCutVersion() != 0 && own.version < c.GetCutVersion() {
		own.length = min(own.length, c.GetCutLength())
	}
	for _, r := range c.GetReplicas() {
		s.w.server(r.GetServer()).put(c.GetChunk(), c.GetVersion(), own.length)
	}
}

func (s *fakeServer) Activate(_ context.Context, r *dfsv1.ActivateRequest) (*dfsv1.ActivateReply, error) {
	if err := s.broken(); err != nil {
		return nil, err
	}
	c := r.GetConfig()
	s.mu.Lock()
	s.activated = append(s.activated, c.GetVersion())
	cannot := s.cannot
	s.mu.Unlock()
	if cannot != 0 && slices.Contains(ids(c), cannot) {
		// As a real one: it tells the master, and goes on with what the master says.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		reply, err := s.w.client.ReportFailure(ctx, &dfsv1.ReportFailureRequest{
			Chunk: c.GetChunk(), Version: c.GetVersion(), Server: cannot, Reporter: s.id, Reason: "refused by the test",
		})
		if err != nil {
			return nil, err
		}
		c = reply.GetConfig()
	}
	if _, err := s.acquire(c.GetChunk()); err != nil {
		return nil, err
	}
	s.adopt(c)
	have, _ := s.get(c.GetChunk())
	return &dfsv1.ActivateReply{Replica: &dfsv1.ReplicaState{Chunk: c.GetChunk(), Server: s.id, Version: c.GetVersion(), Length: have.length}}, nil
}

func (s *fakeServer) CopyReplica(_ context.Context, r *dfsv1.CopyReplicaRequest) (*dfsv1.CopyReplicaReply, error) {
	if err := s.broken(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.copies++
	hold, fail, mute := s.copyHold, s.copyErr, s.copyMute
	s.mu.Unlock()
	s.wg.Go(func() {
		if hold != nil {
			<-hold
		}
		src, ok := s.w.server(r.GetSource()).get(r.GetConfig().GetChunk())
		if !ok && fail == "" {
			fail = "the source has no replica"
		}
		if fail == "" {
			s.mu.Lock()
			s.corrupt = slices.DeleteFunc(s.corrupt, func(id uint64) bool { return id == r.GetConfig().GetChunk() })
			s.mu.Unlock()
			s.put(r.GetConfig().GetChunk(), r.GetConfig().GetVersion(), src.length)
		}
		if mute {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, _ = s.cluster().ReplicaCopied(ctx, &dfsv1.ReplicaCopiedRequest{
			Server: s.id, Chunk: r.GetConfig().GetChunk(), Version: r.GetConfig().GetVersion(), Error: fail,
		})
	})
	return &dfsv1.CopyReplicaReply{}, nil
}

func (s *fakeServer) DeleteReplicas(_ context.Context, r *dfsv1.DeleteReplicasRequest) (*dfsv1.DeleteReplicasReply, error) {
	if err := s.broken(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	reply := &dfsv1.DeleteReplicasReply{}
	for _, it := range r.GetItems() {
		rep := s.replicas[it.GetChunk()]
		if rep != nil && rep.version > it.GetVersion() {
			continue
		}
		reply.Deleted = append(reply.Deleted, it.GetChunk())
		if r.GetFenceOnly() {
			s.fences++
			if rep != nil {
				rep.fenced = it.GetVersion()
			}
			continue
		}
		if rep != nil {
			s.deleted = append(s.deleted, it.GetChunk())
		}
		s.corrupt = slices.DeleteFunc(s.corrupt, func(id uint64) bool { return id == it.GetChunk() })
		delete(s.replicas, it.GetChunk())
	}
	return reply, nil
}
