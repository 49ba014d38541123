package raftlog

import (
	"context"
	"errors"
	"fmt"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

// Node is one master's part in the group. All methods are safe for concurrent use.
type Node struct {
	cfg    Config
	latch  *latch
	raft   *raft.Raft
	log    *segmentLog
	stable *stableStore
	snaps  *snapshotStore
	fsm    *stateMachine
	trans  *raft.NetworkTransport
	lock   vfs.Unlocker

	proposals chan *proposal
	inFlight  chan proposed
	barrier   barrier
	leading   atomic.Pointer[leadership]
	leaderMu  sync.Mutex
	leaderCh  chan struct{} // closed and replaced when leading changes. Guarded by leaderMu.

	notify   chan bool
	intake   context.Context // proposals are taken until it ends
	stopIn   context.CancelFunc
	pipeline sync.WaitGroup  // of the proposer and the completer
	ctx      context.Context // of the other loops
	stop     context.CancelFunc
	wg       sync.WaitGroup
	closing  sync.Once
	closeErr error
}

// leadership is a term in which this node leads and has committed an entry; everything up to barrier has been applied.
type leadership struct {
	term    uint64
	barrier dfs.Index
}

// Open recovers what is on disk and joins the group. It returns before a leader is known: see WaitLeader. Errors wrap ErrInvalid for a bad Config, ErrInUse when another
// process has the directory, ErrCorrupt when what is on disk must not be used (the text says what is damaged or missing), and ErrFormat for an unknown format.
func Open(ctx context.Context, cfg Config) (_ *Node, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	n := &Node{
		cfg:       cfg,
		latch:     newLatch(cfg.Logger),
		proposals: make(chan *proposal, maxAppendEntries),
		inFlight:  make(chan proposed, 4*maxAppendEntries),
		leaderCh:  make(chan struct{}),
		notify:    make(chan bool, 64),
	}
	n.ctx, n.stop = context.WithCancel(context.WithoutCancel(ctx))
	n.intake, n.stopIn = context.WithCancel(n.ctx)
	defer func() {
		if err != nil {
			err = errors.Join(err, n.shut())
		}
	}()
	if err := n.openStores(ctx); err != nil {
		return nil, err
	}
	layer, err := listen(ctx, cfg, n.latch)
	if err != nil {
		return nil, err
	}
	n.trans = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:                  layer,
		MaxPool:                 4,
		Timeout:                 10 * time.Second,
		Logger:                  cfg.Logger,
		MsgpackUseNewTimeFormat: true,
	})
	conf := cfg.raftConfig(n.notify)
	if cfg.Bootstrap {
		if err := n.bootstrap(conf); err != nil {
			return nil, err
		}
	}
	if err := n.latch.err(); err != nil {
		return nil, err
	}
	logs, err := raft.NewLogCache(logCacheEntries, n.log)
	if err != nil {
		return nil, fmt.Errorf("raftlog: %w", err)
	}
	n.raft, err = raft.NewRaft(conf, n.fsm, logs, n.stable, n.snaps, n.trans)
	if err != nil {
		return nil, fmt.Errorf("raftlog: start: %w", errors.Join(n.latch.err(), err))
	}
	n.barrier.init()
	n.pipeline.Go(n.propose)
	n.pipeline.Go(n.complete)
	n.wg.Go(n.leadershipLoop)
	n.wg.Go(n.barrierLoop)
	return n, nil
}

// logCacheEntries is how many of the newest entries stay in memory for followers.
const logCacheEntries = 512

// openStores opens everything on disk and brings the state up to the newest snapshot.
func (n *Node) openStores(ctx context.Context) error {
	cfg := n.cfg
	if cfg.Dir != "" {
		if err := mkdirDurable(cfg.FS, cfg.Dir); err != nil {
			return err
		}
	}
	lock, err := cfg.FS.Lock(path.Join(cfg.Dir, "LOCK"))
	if err != nil {
		return dfserr.Errorf(dfserr.ErrInUse, "raft directory %q (%v)", cfg.Dir, err)
	}
	n.lock = lock
	if n.log, err = openLog(cfg.FS, cfg.Dir, cfg.SegmentBytes, n.latch, cfg.Logger); err != nil {
		return err
	}
	if n.stable, err = openStable(cfg.FS, cfg.Dir, n.latch); err != nil {
		return err
	}
	if err := n.checkEnd(); err != nil {
		return err
	}
	if n.snaps, err = openSnapshots(ctx, cfg, n.latch); err != nil {
		return err
	}
	n.log.keepFrom = n.snaps.checkpointIndex
	n.fsm = &stateMachine{cfg: cfg, latch: n.latch, snaps: n.snaps}
	n.fsm.applied.init(cfg.State.Applied())
	return n.recover(ctx)
}

// Failed is closed when the node has failed for good: a disk error or corruption. The process must then exit; Err says why.
func (n *Node) Failed() <-chan struct{} { return n.latch.ch }

// Err returns why the node failed, or nil.
func (n *Node) Err() error { return n.latch.err() }

// ID returns Config.ID.
func (n *Node) ID() string { return n.cfg.ID }

// Addr returns the address that other masters dial.
func (n *Node) Addr() string { return string(n.trans.LocalAddr()) }

// Applied returns the index of the newest entry applied here.
func (n *Node) Applied() dfs.Index { return n.fsm.applied.get() }

// Term returns the current term.
func (n *Node) Term() uint64 { return n.raft.CurrentTerm() }

// Snapshot takes a snapshot now, without waiting for SnapshotEntries, and lets the log shrink accordingly. It returns nil when there is nothing new.
func (n *Node) Snapshot(ctx context.Context) error {
	f := n.raft.Snapshot()
	done := make(chan error, 1)
	n.wg.Go(func() { done <- f.Error() })
	select {
	case err := <-done:
		if errors.Is(err, raft.ErrNothingNewToSnapshot) {
			return nil
		}
		return n.translate(err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close leaves the group, in the sense of going silent, and closes what is on disk. It waits for every goroutine. It does not close State.
func (n *Node) Close() error {
	n.closing.Do(func() { n.closeErr = n.shut() })
	return n.closeErr
}

// shut undoes as much of Open as was done.
func (n *Node) shut() error {
	var errs []error
	// The loops end first: Raft answers what they have asked while it runs, and forgets some of it when it is shut down.
	n.stopIn()
	n.pipeline.Wait()
	n.stop()
	n.wg.Wait()
	if n.raft != nil {
		errs = append(errs, n.raft.Shutdown().Error()) // also closes the transport
	} else if n.trans != nil {
		errs = append(errs, n.trans.Close())
	}
	if n.snaps != nil {
		n.snaps.close()
	}
	if n.log != nil {
		if n.stable != nil && n.raft != nil && n.latch.err() == nil {
			errs = append(errs, n.stable.markEnd(n.log.tail()))
		}
		errs = append(errs, n.log.close())
	}
	if n.lock != nil {
		errs = append(errs, n.lock.Close())
	}
	return errors.Join(errs...)
}
