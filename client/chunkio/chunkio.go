// Package chunkio reads and writes one chunk at a time: it turns "these bytes of this chunk" into calls to chunkservers, with
// failover, hedging, retries under the same request ids, and checksums made and checked at this end. It does not know
// files, names or lengths of files; package client builds those on it.
//
// # Reading
//
// A read goes to one replica of the chunk's configuration: in the order of the configuration rotated by a number of the
// client's own and the chunk, the near one first, recently failed ones last. When it is slower than is usual for that server, a second
// replica is asked as well (within a budget of one hedged read in twenty) and the first good answer wins. Every answer's checksums
// are verified. A replica that is corrupt, or says so, is reported. When all have failed, the master is asked for the
// current configuration, until the deadline.
//
// # Writing
//
// A Writer sends mutations of one chunk to its primary, over one stream per chunkserver that all writers of the process
// share. Each mutation has (writer, request) ids that never change; however often it is sent, replicas carry it out once.
// At most half of dfs.WriterWindow requests and WindowBytes bytes are outstanding per Writer. A mutation that
// overlaps one still outstanding waits for it, so overlapping mutations of one Writer take effect in the order in which they were
// started; others may be retried independently. On failure the Writer tells the master, takes the configuration it gets, and sends the
// unacknowledged mutations again, in order.
//
// # Goroutines and locks
//
// Per stream two goroutines, per Writer in trouble one, per hedged read one, per report to the master one; IO.Close ends
// and joins them. Lock order: Writer.mu, then stream.mu; neither is held across a call.
package chunkio

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"dfs/internal/dfs"
	"dfs/internal/rpc"
)

// Replica is one copy of a chunk and where to find it.
type Replica struct {
	Server dfs.ServerID
	Addr   string // "" when not known
	Alive  bool   // as the master believed
}

// Location is a chunk's configuration, primary first, and the chunk's place in its file.
type Location struct {
	Chunk     dfs.ChunkID
	Version   dfs.Version
	Inode     dfs.InodeID
	Index     int64 // which chunk of the file
	ChunkSize int64 // bytes
	Replicas  []Replica
}

// primary returns the replica that orders mutations.
func (l *Location) primary() (Replica, bool) {
	if len(l.Replicas) == 0 || l.Replicas[0].Addr == "" {
		return Replica{}, false
	}
	return l.Replicas[0], true
}

// Failure is what to tell the master about a replica.
type Failure struct {
	Server  dfs.ServerID
	Reason  string
	Corrupt bool // the replica's bytes are wrong
}

// Source is the master, as far as this package needs it. Implementations retry what can be retried before they return
// an error, and are safe for concurrent use.
type Source interface {
	// Locate returns the current configuration of the chunk at l; write says that it is going to be written. ErrNotExist: that
	// chunk is no longer the file's.
	Locate(ctx context.Context, l Location, write bool) (Location, error)
	// Report tells that a replica of the configuration l could not be used, and returns the configuration to
	// use next, which may be the same.
	Report(ctx context.Context, l Location, f Failure) (Location, error)
}

// Config is what an IO needs. Pool and Source are required.
type Config struct {
	Pool   *rpc.Pool
	Source Source
	Logger hclog.Logger // nil: nothing is logged
	// Near is the chunkserver to prefer for reading; 0: none.
	Near dfs.ServerID
	// OpTimeout bounds how long one read or mutation is retried; 0 means 60 s.
	OpTimeout time.Duration
	// AckTimeout is how long one attempt may take; 0 means 10 s.
	AckTimeout time.Duration
	// HedgeAfter is how long to wait before a second replica is asked; 0: adaptive; negative: never.
	HedgeAfter time.Duration
}

// WindowBytes bounds the payload that one Writer has outstanding.
const WindowBytes = 8 * dfs.MiB

// windowRequests bounds the requests that one Writer has outstanding, counted from the oldest one.
const windowRequests = dfs.WriterWindow / 2

// IO reads and writes chunks. Safe for concurrent use.
type IO struct {
	cfg  Config
	pool *rpc.Pool
	src  Source
	log  hclog.Logger
	seed uint64 // rotates the order of replicas, differently for each client

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	closed    bool                     // guarded by mu: no new goroutine from here on
	streams   map[peer]*stream         // guarded by mu
	servers   map[dfs.ServerID]*server // guarded by mu
	reporting map[reportKey]struct{}   // guarded by mu: reports on their way
	hedges    float64                  // guarded by mu: hedged reads in the budget
}

type reportKey struct {
	chunk  dfs.ChunkID
	server dfs.ServerID
}

// New returns an IO. Close ends it.
func New(cfg Config) *IO {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.OpTimeout <= 0 {
		cfg.OpTimeout = 60 * time.Second
	}
	if cfg.AckTimeout <= 0 {
		cfg.AckTimeout = 10 * time.Second
	}
	x := &IO{
		cfg: cfg, pool: cfg.Pool, src: cfg.Source, log: cfg.Logger, seed: rand.Uint64(),
		streams: map[peer]*stream{}, servers: map[dfs.ServerID]*server{}, reporting: map[reportKey]struct{}{}, hedges: hedgeBurst,
	}
	x.ctx, x.cancel = context.WithCancel(context.Background())
	return x
}

// Close ends every stream, fails what is outstanding with ErrClosed, and joins all goroutines.
func (x *IO) Close() {
	x.mu.Lock()
	x.closed = true
	x.mu.Unlock()
	x.cancel()
	x.wg.Wait()
}

// start runs f in a goroutine that Close joins; false when closed.
func (x *IO) start(f func()) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return false
	}
	x.wg.Go(f)
	return true
}

// report tells the master about a bad replica in the background, once at a time per replica.
func (x *IO) report(l Location, f Failure) {
	key := reportKey{l.Chunk, f.Server}
	x.mu.Lock()
	_, busy := x.reporting[key]
	x.reporting[key] = struct{}{}
	x.mu.Unlock()
	if busy {
		return
	}
	done := func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		delete(x.reporting, key)
	}
	started := x.start(func() {
		defer done()
		ctx, cancel := context.WithTimeout(x.ctx, x.cfg.OpTimeout)
		defer cancel()
		if _, err := x.src.Report(ctx, l, f); err != nil {
			x.log.Warn("a bad replica could not be reported", "chunk", l.Chunk, "server", f.Server, "error", err)
		}
	})
	if !started {
		done()
	}
}

// newBackoff returns the pauses between attempts at a chunkserver.
func newBackoff() rpc.Backoff {
	return rpc.Backoff{First: 5 * time.Millisecond, Last: 500 * time.Millisecond}
}
