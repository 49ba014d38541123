package chunkserver

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"dfs/chunkserver/scrub"
	"dfs/chunkserver/store"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// closeTime is how long a clean stop may take for what others must answer.
const closeTime = 1200 * time.Millisecond

// Server is one chunkserver process. Its methods may be called from any goroutine.
type Server struct {
	cfg         Config
	log         hclog.Logger
	incarnation uint64
	buffers     *rpc.Buffers
	control     *rpc.Pool // for short calls
	data        *rpc.Pool // for streams of file bytes, so that they do not hold the short calls up

	ctx    context.Context // ends when the server stops
	cancel context.CancelFunc
	wg     sync.WaitGroup // all goroutines begun by start

	rpcs     *grpc.Server
	listener net.Listener

	idMu    sync.Mutex
	id      dfs.ServerID  // guarded by idMu
	cluster dfs.ClusterID // guarded by idMu; 0: not a member of any cluster yet

	opened atomic.Pointer[store.Store] // nil until the disks are formatted and open

	members members
	serving *serving
	chunks  chunkTable
	downs   downstreams
	copies  copySet

	lowSpace   atomic.Bool  // some disk may become full soon
	writeLease atomic.Int64 // duration of write leases, as the master last said; 0: not said
	reporting  atomic.Bool  // a full chunk report is on its way

	beatWake chan struct{} // holds at most one token: send a heartbeat now
	beatMu   sync.Mutex
	leader   string                   // guarded by beatMu: address of the master that answered last
	released []dfs.ChunkID            // guarded by beatMu: leases to give back with the next heartbeat
	corrupt  map[dfs.ChunkID]struct{} // guarded by beatMu: damaged replicas the master has not acknowledged

	verifying chan struct{} // holds a token for each replica being verified on demand

	ready     chan struct{}
	readyOnce sync.Once
	failed    chan error // has room for one
	closeOnce sync.Once
	closeErr  error
}

// New checks the configuration and makes a server; it touches neither disks nor network.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	s := &Server{
		cfg: cfg, log: cfg.Logger, buffers: rpc.NewBuffers(), serving: newServing(),
		beatWake: make(chan struct{}, 1), corrupt: make(map[dfs.ChunkID]struct{}), verifying: make(chan struct{}, maxVerifies), ready: make(chan struct{}), failed: make(chan error, 1),
	}
	s.incarnation = s.random()
	s.chunks = chunkTable{srv: s, limit: cfg.MaxChunks, m: make(map[dfs.ChunkID]*chunk)}
	s.downs = downstreams{srv: s, m: make(map[dfs.ServerID]*downstream)}
	s.copies = copySet{limit: cfg.MaxCopies, m: make(map[dfs.ChunkID]struct{})}
	return s, nil
}

// Start opens formatted disks, listens, and begins to register with the leading master; Ready tells when that has
// succeeded. Disks that are not formatted are formatted when the master has said which cluster it leads. The server runs until Close
// or Kill; ctx bounds only the start.
func (s *Server) Start(ctx context.Context) error {
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.control = rpc.NewPool(s.cfg.Network, rpc.PoolOptions{Buffers: s.buffers, Faults: s.cfg.Faults})
	s.data = rpc.NewPool(s.cfg.Network, rpc.PoolOptions{Buffers: s.buffers})
	s.rpcs = rpc.NewServer(rpc.ServerOptions{Logger: s.log, Buffers: s.buffers, ID: s.ID})
	dfsv1.RegisterChunkServer(s.rpcs, &handlers{srv: s})
	err := s.begin(ctx)
	if err != nil {
		s.Kill()
	}
	return err
}

func (s *Server) begin(ctx context.Context) error {
	complete, err := s.identify()
	if err != nil {
		return err
	}
	if s.listener, err = s.cfg.Network.Listen(ctx, s.cfg.Listen); err != nil {
		return err
	}
	if complete {
		if err := s.openStore(ctx); err != nil {
			return err
		}
	}
	s.start(func() {
		if err := s.heartbeats(s.ctx); err != nil {
			s.log.Error("chunkserver cannot go on", "error", err)
			s.fail(err)
		}
	})
	s.start(s.keepHouse)
	return nil
}

// identify reads the disks' identities and adopts theirs or draws one. complete: the cluster is known.
func (s *Server) identify() (complete bool, err error) {
	for _, d := range s.cfg.Disks {
		id, err := store.ReadIdentity(d)
		switch {
		case err == nil && s.id == 0:
			s.id, s.cluster = id.Server, id.Cluster
		case errors.Is(err, dfserr.ErrNotExist): // to be formatted: the master need not hear of a server that cannot be
			if err := store.CheckWritable(d); err != nil && !errors.Is(err, dfserr.ErrDiskFailed) {
				return false, err
			}
		case err == nil, errors.Is(err, dfserr.ErrDiskFailed): // store.Open judges
		default:
			return false, err
		}
	}
	if s.id == 0 {
		s.id = dfs.ServerID(s.random())
	}
	return s.cluster != 0, nil
}

// openStore formats the disks that are not, opens the store, and begins to serve.
func (s *Server) openStore(ctx context.Context) error {
	for _, d := range s.cfg.Disks {
		if _, err := store.ReadIdentity(d); !errors.Is(err, dfserr.ErrNotExist) {
			continue
		}
		id := store.Identity{Cluster: s.clusterID(), Server: s.ID(), Disk: s.random()}
		if err := store.Format(d, id); err != nil {
			return err
		}
		s.log.Info("disk formatted", "disk", d.Name, "cluster", id.Cluster, "server", id.Server)
	}
	st, err := store.Open(ctx, s.cfg.Disks, store.Options{
		Cluster: s.clusterID(), Server: s.ID(), Reserve: s.cfg.Reserve, MaxOpen: s.cfg.MaxOpen, Logger: s.log,
	})
	if err != nil {
		return err
	}
	s.opened.Store(st)
	s.start(func() {
		if err := s.rpcs.Serve(s.listener); err != nil && s.ctx.Err() == nil {
			s.fail(err)
		}
	})
	if s.cfg.ScrubInterval > 0 {
		s.start(func() {
			scrub.Run(s.ctx, st, scrub.Options{Interval: s.cfg.ScrubInterval, Rate: s.cfg.ScrubRate, Logger: s.log, Corrupt: s.scrubbed})
		})
	}
	return nil
}

// scrubbed handles a damaged replica that scrubbing found.
func (s *Server) scrubbed(id dfs.ChunkID, err error) {
	c, acquireErr := s.chunks.acquire(id)
	if acquireErr != nil {
		s.noteCorrupt(id)
		return
	}
	defer s.chunks.release(c)
	c.markCorrupt(err)
}

// join takes over the cluster's id from a master on the first start, and refuses another cluster's.
func (s *Server) join(cluster dfs.ClusterID) error {
	if cluster == 0 {
		return dfserr.Errorf(dfserr.ErrInvalid, "the master does not say which cluster it leads")
	}
	own := s.clusterID()
	if own != 0 && own != cluster {
		return dfserr.Errorf(dfserr.ErrWrongCluster, "these disks belong to cluster %s and the master leads cluster %s: correct the address of the master, or use empty directories",
			own, cluster)
	}
	if s.storeIfOpen() != nil {
		return nil
	}
	s.idMu.Lock()
	s.cluster = cluster
	s.idMu.Unlock()
	if err := s.openStore(s.ctx); err != nil {
		return fmt.Errorf("%w: %w", errFatal, err)
	}
	return nil
}

// ID returns the server's id; it is known once Start has returned.
func (s *Server) ID() dfs.ServerID {
	s.idMu.Lock()
	defer s.idMu.Unlock()
	return s.id
}

// Addr returns the address that others are told; it is known once Start has returned.
func (s *Server) Addr() string {
	if s.cfg.Advertise != "" {
		return s.cfg.Advertise
	}
	if s.listener == nil {
		return s.cfg.Listen
	}
	return s.listener.Addr().String()
}

// Ready returns a channel that is closed when a master has accepted the registration for the first time.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Failed returns a channel that gets the error for which the server cannot go on: the disks are of another cluster,
// another process has its id, the disks cannot be opened. The owner then calls Close.
func (s *Server) Failed() <-chan error { return s.failed }

func (s *Server) fail(err error) {
	select {
	case s.failed <- err:
	default:
	}
}

func (s *Server) registered() { s.readyOnce.Do(func() { close(s.ready) }) }

func (s *Server) clusterID() dfs.ClusterID {
	s.idMu.Lock()
	defer s.idMu.Unlock()
	return s.cluster
}

// store returns the open store; it is only for what runs after it was opened.
func (s *Server) store() *store.Store { return s.opened.Load() }

// storeIfOpen returns the store, or nil.
func (s *Server) storeIfOpen() *store.Store { return s.opened.Load() }

// start runs f on a goroutine that Close waits for. It is called by Start, by handlers, and by goroutines that it
// started itself.
func (s *Server) start(f func()) { s.wg.Go(f) }

// random draws a number that is not 0.
func (s *Server) random() uint64 {
	for {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails (crypto/rand)
		if n := binary.LittleEndian.Uint64(b[:]); n != 0 {
			return n
		}
	}
}

// Close stops the server cleanly within about two seconds: chunks written to are synced everywhere, their leases given
// back, the logs closed with their indexes. It returns what could not be made durable.
func (s *Server) Close() error {
	s.closeOnce.Do(func() {
		if s.cancel == nil {
			return
		}
		s.giveBack()
		s.stop()
		if st := s.storeIfOpen(); st != nil {
			s.closeErr = st.Close()
		}
	})
	return s.closeErr
}

// Kill stops the server as if the process had died: nothing is synced and nobody is told.
func (s *Server) Kill() {
	s.closeOnce.Do(func() {
		if s.cancel == nil {
			return
		}
		s.stop()
		if st := s.storeIfOpen(); st != nil {
			st.Kill()
		}
	})
}

// stop ends all calls and joins all goroutines.
func (s *Server) stop() {
	s.cancel()
	s.serving.end()
	s.control.Close()
	s.data.Close()
	s.rpcs.Stop()
	if s.listener != nil {
		_ = s.listener.Close() // closed by Serve already, unless that never ran
	}
	s.wg.Wait()
}

// giveBack syncs what this server is primary of and gives the leases back, as far as the time for it goes.
func (s *Server) giveBack() {
	ctx, cancel := context.WithTimeout(s.ctx, closeTime)
	defer cancel()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	any := false
	for _, c := range s.leases(time.Now()) {
		any = true
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			c.releaseLease(ctx, 0)
		})
	}
	wg.Wait()
	if any {
		s.lastBeat(ctx)
	}
}

// lastBeat waits until the list of released leases was taken into a heartbeat.
func (s *Server) lastBeat(ctx context.Context) {
	s.beatNow()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for {
		s.beatMu.Lock()
		sent := len(s.released) == 0
		s.beatMu.Unlock()
		if sent {
			return
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return
		}
	}
}

// handlers serve the Chunk service.
type handlers struct {
	dfsv1.UnimplementedChunkServer
	srv *Server
}

// copySet is the set of copies being made on the master's order.
type copySet struct {
	limit int
	mu    sync.Mutex
	m     map[dfs.ChunkID]struct{} // guarded by mu
}

// begin notes a copy; false: the chunk is being copied already, or enough others are.
func (s *copySet) begin(id dfs.ChunkID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.m[id]; ok || len(s.m) >= s.limit {
		return false
	}
	s.m[id] = struct{}{}
	return true
}

func (s *copySet) end(id dfs.ChunkID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, id)
}
