// Package master is the master process: it serves dfs.v1.Master to clients and dfs.v1.Cluster to chunkservers over a replicated
// state machine, and runs what has to happen in the background.
//
// Metadata is changed only by commands in the Raft log (packages raftlog, fsm, kv) and read, linearizably, from the state they make.
// A handler decodes, checks limits, proposes a command or takes a read barrier, and encodes. What is not in the log is
// the leader's soft state: chunkservers and leases (fleet.go), sessions' deadlines and opens (sessions.go), what they may have cached
// (caches.go), who waits for locks (lockqueue.go), repairs under way (repairs.go). It begins empty with each reign and is filled by heartbeats and re-announcements.
//
// What it does not do: file bytes never pass through it, except those of files small enough to live in their inode.
//
// # Reigns
//
// While this node leads, one *leader exists; losing the lead ends its context, joins its goroutines and drops it. Without one, every call
// is refused with ErrNotLeader.
//
// # Failure model
//
// A disk error, a checksum mismatch or a state hash that differs stops the process: Failed is closed, and no call is
// answered any more. A state that was found damaged when it was opened is set aside and rebuilt from the log.
// When the disk is nearly full, what would grow the metadata is refused with ErrNoSpace; reads, deletions and repairs go on.
//
// # Locks
//
// A chunk's lock (leader.chunkLocks) is held across proposals and calls to chunkservers by whoever changes the chunk's configuration or
// deletes replicas of it; several are taken only in ascending order of chunk id. Below it, and never held across
// anything that blocks: sessionTable.mu, repairs.mu, complaints.mu, unsettled.mu, cacheTable.mu (also taken by
// Raft's goroutine, for each command); repairs.mu is taken before fleet.mu and deps.mu before cacheTable.mu, all others are leaves.
//
// # Goroutines
//
// gRPC's (joined by Server.Stop), Raft's and Badger's (joined by their Close), and those started through Master.wg and
// leader.background, which Close joins.
package master

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	"dfs/internal/vfs"
	"dfs/master/fsm"
	"dfs/master/kv"
	"dfs/master/raftlog"
	dfsv1 "dfs/proto/dfs/v1"
)

// Master is one master process. Its methods are safe for concurrent use.
type Master struct {
	cfg Config
	log hclog.Logger

	dir    *dataDir
	space  *kv.Space
	db     *kv.DB
	fsm    *fsm.FSM
	node   *raftlog.Node
	pool   *rpc.Pool
	server *grpc.Server
	lis    net.Listener

	ctx    context.Context // ends with Close; the process's own, not a caller's
	cancel context.CancelFunc
	wg     sync.WaitGroup

	leader atomic.Pointer[leader]
	led    chan struct{} // closed when the first reign has begun
	ledFor sync.Once

	failOnce sync.Once
	failed   chan struct{}
	failure  atomic.Pointer[error]

	closeOnce sync.Once
	closeErr  error
}

// New returns a master that has touched nothing yet. The error wraps ErrInvalid.
func New(cfg Config) (*Master, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	return &Master{cfg: cfg, log: cfg.Logger, led: make(chan struct{}), failed: make(chan struct{})}, nil
}

// Start opens the data directory, making a new cluster in an empty one, listens, and returns when this master answers calls. On an error
// everything is closed again. Errors name the directory or address and the way out; they wrap ErrInUse, ErrWrongCluster, ErrFormat, ErrCorrupt,
// ErrInvalid, fs.ErrPermission or ctx's error. Start is called once.
func (m *Master) Start(ctx context.Context) error {
	m.ctx, m.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := m.start(ctx); err != nil {
		return errors.Join(err, m.Close())
	}
	return nil
}

func (m *Master) start(ctx context.Context) error {
	var err error
	if m.dir, err = openDir(m.cfg.Dir, m.cfg.ClusterID); err != nil {
		return err
	}
	m.log.Info("data directory", "dir", m.cfg.Dir, "cluster", m.dir.ident.Cluster.String(), "new", m.dir.fresh)
	if m.space, err = kv.NewSpace(m.cfg.Dir, kv.SpaceOptions{MinFree: m.cfg.MinFree, Ballast: m.cfg.Ballast, Usage: m.cfg.DiskUsage}); err != nil {
		return err
	}
	if err := m.space.CheckAny(); err != nil { // Badger would end the process
		return err
	}
	if err := m.openState(ctx); err != nil {
		return err
	}
	m.fsm = fsm.New(m.db, fsm.Config{CacheBytes: m.cfg.CacheBytes / 2, OnFail: m.fail, Logger: m.log.Named("fsm")})
	m.pool = rpc.NewPool(m.cfg.Network, rpc.PoolOptions{Faults: m.cfg.Faults})
	if m.lis, err = m.cfg.Network.Listen(ctx, m.cfg.Listen); err != nil {
		return fmt.Errorf("master cannot listen on %s: %w", m.cfg.Listen, err)
	}
	if err := m.openLog(ctx); err != nil {
		return err
	}
	m.serve()
	m.wg.Go(func() {
		select {
		case <-m.node.Failed():
			m.fail(m.node.Err())
		case <-m.ctx.Done():
		}
	})
	select {
	case <-m.led:
		return nil
	case <-m.failed:
		return *m.failure.Load()
	case <-ctx.Done():
		return fmt.Errorf("master in %s does not lead: %w", m.cfg.Dir, ctx.Err())
	}
}

// verifyAtOnce is up to how many keys the state hash is recomputed before anything is served; beyond, it is done beside.
const verifyAtOnce = 100_000

// openState opens the materialised state, or sets a damaged one aside so that it is rebuilt from the log.
func (m *Master) openState(ctx context.Context) error {
	// What is found wrong before it is used can be mended, and does not count as the failure of the process.
	var inUse atomic.Bool
	opts := kv.Options{CacheBytes: m.cfg.CacheBytes / 2, Cluster: m.dir.ident.Cluster, Logger: m.log.Named("kv"), OnFail: func(err error) {
		if inUse.Load() {
			m.fail(err)
		}
	}}
	db, err := kv.Open(m.dir.statePath(), opts)
	beside := err == nil && db.Keys() > verifyAtOnce
	if err == nil && !beside {
		if err = db.VerifyHash(ctx); err != nil {
			err = errors.Join(err, db.Close())
		}
	}
	if errors.Is(err, dfserr.ErrCorrupt) {
		m.log.Error("the materialised state is damaged; it is set aside and rebuilt from the log", "dir", m.dir.statePath(), "error", err)
		if err := kv.Discard(m.dir.statePath()); err != nil {
			return fmt.Errorf("master data directory %s: the damaged state cannot be set aside: %w", m.cfg.Dir, err)
		}
		db, err = kv.Open(m.dir.statePath(), opts)
	}
	if err != nil {
		return fmt.Errorf("master data directory %s: %w", m.cfg.Dir, err)
	}
	inUse.Store(true)
	m.db = db
	if beside {
		m.wg.Go(m.verifyBeside)
	}
	return nil
}

// verifyBeside recomputes the state hash while the master works; a difference stops it.
func (m *Master) verifyBeside() {
	if err := m.db.VerifyHash(m.ctx); err != nil && m.ctx.Err() == nil {
		m.fail(err)
	}
}

// openLog joins the Raft group.
func (m *Master) openLog(ctx context.Context) error {
	logFS := m.cfg.LogFS
	if logFS == nil {
		disk, err := vfs.OS(m.cfg.Dir)
		if err != nil {
			return fmt.Errorf("master data directory %s: %w", m.cfg.Dir, err)
		}
		logFS = disk
	}
	if m.dir.ident.Formatted {
		// A directory that has held a log never gets a new, empty one: that would be a silent loss of everything.
		if entries, err := logFS.ReadDir(logDir); err != nil || len(entries) == 0 {
			return dfserr.Errorf(dfserr.ErrCorrupt, "master data directory %s: its Raft log in %s is missing (restore it; what is in %s alone is not trusted)",
				m.cfg.Dir, filepath.Join(m.cfg.Dir, logDir), stateDir)
		}
	}
	node, err := raftlog.Open(ctx, raftlog.Config{
		FS: logFS, Dir: logDir, ID: fmt.Sprintf("%016x", m.dir.ident.Node), Bind: m.cfg.RaftListen, Network: m.cfg.Network,
		Bootstrap: true, FSM: m.fsm, State: m.db, OnLead: m.reign, Logger: m.log.Named("raft"),
	})
	if err != nil {
		return fmt.Errorf("master data directory %s: %w", m.cfg.Dir, err)
	}
	m.node = node
	return nil
}

// serve starts answering calls.
func (m *Master) serve() {
	options := rpc.ServerOptions{Logger: m.log}
	m.server = rpc.NewServer(options)
	service := masterService{Master: m}
	dfsv1.RegisterMasterServer(m.server, service)
	rpc.RegisterCalls(m.server, options, rpc.CallService{Desc: &dfsv1.Master_ServiceDesc, Impl: service})
	dfsv1.RegisterClusterServer(m.server, clusterService{Master: m})
	m.wg.Go(func() {
		if err := m.server.Serve(m.lis); err != nil && m.ctx.Err() == nil {
			m.fail(fmt.Errorf("master on %s: %w", m.lis.Addr(), err))
		}
	})
}

// reign is this node's lead, from when it has caught up until ctx ends.
func (m *Master) reign(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(m.ctx, cancel)
	defer stop()
	if err := m.ensureFormat(ctx); err != nil {
		if ctx.Err() == nil {
			m.fail(err)
		}
		return
	}
	l, err := newLeader(ctx, m)
	if err != nil {
		if ctx.Err() == nil {
			m.fail(err)
		}
		return
	}
	m.leader.Store(l)
	m.ledFor.Do(func() { close(m.led) })
	l.run()
	m.leader.Store(nil)
	l.close()
}

// ensureFormat makes the cluster when the log is empty, and otherwise checks that it is the one in the identity file.
func (m *Master) ensureFormat(ctx context.Context) error {
	v, err := m.fsm.View()
	if err != nil {
		return err
	}
	id, err := v.Cluster()
	v.Close()
	if err != nil {
		return err
	}
	if id == 0 {
		if m.dir.ident.Formatted {
			return dfserr.Errorf(dfserr.ErrCorrupt, "master data directory %s: the log holds no cluster although one was made here", m.cfg.Dir)
		}
		cmd := &dfsv1.Command{TimeNs: time.Now().UnixNano(), Op: &dfsv1.Command_Format{Format: &dfsv1.FormatCommand{
			ClusterId: uint64(m.dir.ident.Cluster), Uid: m.cfg.UID, Gid: m.cfg.GID,
		}}}
		b, err := fsm.Encode(cmd)
		if err != nil {
			return err
		}
		if _, _, err := m.node.Propose(ctx, b); err != nil {
			return err
		}
		id = m.dir.ident.Cluster
	}
	if id != m.dir.ident.Cluster {
		return dfserr.Errorf(dfserr.ErrWrongCluster, "master data directory %s: its log is of cluster %s, its identity file says %s", m.cfg.Dir, id, m.dir.ident.Cluster)
	}
	return m.dir.markFormatted()
}

// lead returns the soft state of the reign, or ErrNotLeader, or why the process has failed.
func (m *Master) lead() (*leader, error) {
	if p := m.failure.Load(); p != nil {
		return nil, dfserr.Errorf(dfserr.ErrUnavailable, "master has failed and must be restarted (%v)", *p)
	}
	l := m.leader.Load()
	if l == nil {
		return nil, dfserr.Errorf(dfserr.ErrNotLeader, "master %016x", m.dir.ident.Node)
	}
	return l, nil
}

// fail notes the first error after which the process must stop.
func (m *Master) fail(err error) {
	m.failOnce.Do(func() {
		m.failure.Store(&err)
		m.log.Error("master has failed", "error", err)
		close(m.failed)
	})
}

// Failed is closed when the master has failed for good: a disk error or damaged state. The process must then stop; Err says why.
func (m *Master) Failed() <-chan struct{} { return m.failed }

// Err returns why the master failed, nil while it has not.
func (m *Master) Err() error {
	if p := m.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// Addr returns the address that clients and chunkservers dial; valid after Start.
func (m *Master) Addr() string { return m.lis.Addr().String() }

// ClusterID returns the cluster's id; valid after Start.
func (m *Master) ClusterID() dfs.ClusterID { return m.dir.ident.Cluster }

// Close ends the process cleanly: calls in progress fail, everything on disk is synced and closed, all goroutines are joined. It takes
// under two seconds on a healthy disk. Further calls return the same error.
func (m *Master) Close() error {
	m.closeOnce.Do(func() { m.closeErr = m.shut() })
	return m.closeErr
}

// Kill ends the process as if it had died: nobody is told, nothing is flushed that a killed process would not have flushed by
// itself, and its connections are gone. All goroutines are joined.
func (m *Master) Kill() {
	m.closeOnce.Do(func() {
		// From here on fail has been called: the failures that follow are not the disk's.
		m.failOnce.Do(func() {
			err := dfserr.Errorf(dfserr.ErrClosed, "master was killed")
			m.failure.Store(&err)
			close(m.failed)
		})
		if m.node != nil {
			m.node.Abandon()
		}
		if m.db != nil {
			m.db.Abandon()
		}
		_ = m.shut() // a dead process tells nobody
	})
}

// shut undoes as much of Start as was done.
func (m *Master) shut() error {
	if m.cancel == nil {
		return nil // never started
	}
	m.cancel()
	var errs []error
	switch {
	case m.server != nil:
		m.server.Stop() // also closes the listener
	case m.lis != nil:
		errs = append(errs, m.lis.Close())
	}
	if m.node != nil {
		errs = append(errs, m.node.Close())
	}
	m.wg.Wait()
	if m.pool != nil {
		m.pool.Close()
	}
	if m.db != nil {
		dropped, err := m.space.DropBallast()
		if dropped {
			m.log.Warn("the disk is full: the ballast made room for closing the metadata store", "dir", m.cfg.Dir)
		}
		errs = append(errs, err, m.db.Close())
	}
	if m.dir != nil {
		errs = append(errs, m.dir.close())
	}
	return errors.Join(errs...)
}
