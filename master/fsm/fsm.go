// Package fsm is the master's replicated state machine: it applies dfsv1.Command entries of the Raft log, in order, to master/kv, and gives
// views of the result to the handlers.
//
// Apply is a pure function of (state, index, command): the packages namespace, chunks and locks do the work, this one decodes, keeps sessions and the
// reply cache, stores, and encodes. Replicas that have applied the same entries have the same kv state hash.
//
// # One entry, one transaction
//
// Each entry is one kv.Txn with the entry's index. A command's changes are collected decoded, and stored only when it succeeds; a failed
// command leaves nothing but its cached reply. Its error is a result (Result.error_reason), not a failure. Failures are: an
// entry that does not decode, a command that is not known, a state that cannot be read or contradicts itself, a write that fails. They stop the
// replica: OnFail is called once, and every later entry is answered with the same error, an error value instead of a *dfsv1.Result.
//
// # Repeated requests
//
// A command with a session in its header is executed once: r/<session>/<seq mod ReplyWindow> keeps the Result of the latest
// request in that slot. The same seq again gets that Result; an older one ErrDuplicate. Not kept are results that invite a
// retry under the same seq: errors whose class is not GiveUp, and results with more set, after which the same command is proposed
// again to go on (Create and Truncate that delete many chunks, SetAttr with a replication that changes many). Without a session nothing is remembered.
//
// # Views
//
// View is the state as of the latest applied index. Hot values are served from a cache of decoded values, bounded in bytes; see cache
// for why a view cannot see a value of another index.
//
// # Concurrency
//
// ApplyBatch, Apply, Snapshot and Restore belong to Raft's FSM goroutine. Everything else is safe for concurrent use, except that one View belongs to
// one goroutine. The package starts no goroutines.
package fsm

import (
	"context"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/kv"
	dfsv1 "dfs/proto/dfs/v1"
)

// Config configures a state machine. The zero value is usable.
type Config struct {
	// CacheBytes bounds the cache of decoded values, by an estimate of the memory it takes. 0 means 64 MiB.
	CacheBytes int64
	// OnFail is called once, from Raft's goroutine, when the replica must stop. It must not block. nil means nobody is told.
	OnFail func(error)
	// Logger receives the failure. nil discards it.
	Logger hclog.Logger
}

const defaultCacheBytes = 64 << 20

// FSM is the state machine. It implements raft.BatchingFSM.
type FSM struct {
	db    *kv.DB
	cfg   Config
	cache atomic.Pointer[cache] // nil while a snapshot is being installed
	txn   txn                   // of the running command; Raft's goroutine
	watch atomic.Pointer[func(Change)]

	failOnce sync.Once
	failed   atomic.Pointer[error]
}

var _ raft.BatchingFSM = (*FSM)(nil)

// New returns a state machine over an open DB, which it does not close. Entries at or below db.Applied are skipped.
func New(db *kv.DB, cfg Config) *FSM {
	if cfg.CacheBytes <= 0 {
		cfg.CacheBytes = defaultCacheBytes
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.OnFail == nil {
		cfg.OnFail = func(error) {}
	}
	f := &FSM{db: db, cfg: cfg}
	f.cache.Store(newCache(cfg.CacheBytes))
	return f
}

// Change is what one command did to the tree, or, when it failed, what its failure depends on.
type Change struct {
	Index   dfs.Index
	Header  *dfsv1.MutationHeader // nil: not a client's
	Touched []dfs.InodeID         // whose attributes, entries, extended attributes or inline bytes have changed; may repeat
	Read    []dfs.InodeID         // that it looked at, or in; may repeat
}

// Watch has fn called for each command, from Raft's goroutine, after its outcome is known and before any view can see it. fn must not block and
// must not keep the slices. nil ends that.
func (f *FSM) Watch(fn func(Change)) {
	if fn == nil {
		f.watch.Store(nil)
		return
	}
	f.watch.Store(&fn)
}

// tell calls the watcher, if there is one.
func (f *FSM) tell(t *txn, cmd *dfsv1.Command) {
	if fn := f.watch.Load(); fn != nil {
		t.touched = t.dirty.inodes(t.touched[:0])
		(*fn)(Change{Index: t.index, Header: cmd.GetHeader(), Touched: t.touched, Read: t.seen})
	}
}

// Applied returns the index of the newest command that views see. Raft's own entries do not count: it may stay below Raft's applied index.
func (f *FSM) Applied() dfs.Index { return f.db.Applied() }

// Err returns the error that stopped the replica, or nil.
func (f *FSM) Err() error {
	if p := f.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// fail stops the replica and returns the error that did so first.
func (f *FSM) fail(err error) error {
	f.failOnce.Do(func() {
		f.failed.Store(&err)
		f.cfg.Logger.Error("state machine stopped", "error", err)
		f.cfg.OnFail(err)
	})
	return *f.failed.Load()
}

// Apply applies one entry; see ApplyBatch.
func (f *FSM) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch applies entries in order and returns when all of them are visible. For each it returns a *dfsv1.Result, an error when the replica has
// stopped, or nil for an entry that is not a command or was applied before a restart.
func (f *FSM) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	begun := f.db.Applied()
	for i, l := range logs {
		index := dfs.Index(l.Index)
		switch err := f.Err(); {
		case err != nil:
			out[i] = err
		case l.Type != raft.LogCommand || index <= begun:
		default:
			res, err := f.applyEntry(index, l.Data)
			if err != nil {
				out[i] = f.fail(err)
				continue
			}
			out[i] = res
		}
	}
	// Also after a failure: what is answered must be visible.
	if err := f.db.Flush(); err != nil {
		err = f.fail(err)
		for i := range out {
			if out[i] != nil {
				out[i] = err
			}
		}
	}
	return out
}

// Snapshot pins the state as of now. The pin is held until the snapshot is released.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) {
	index := f.db.Applied()
	if err := f.db.Pin(index); err != nil {
		return nil, err
	}
	return &snapshot{db: f.db, index: index}, nil
}

// snapshot is the state as of one index, streamed on demand.
type snapshot struct {
	db    *kv.DB
	index dfs.Index
}

// Persist makes the state durable here and writes it out.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := s.db.SyncTo(); err != nil {
		return cancel(sink, err)
	}
	if err := s.db.WriteSnapshot(context.Background(), s.index, sink); err != nil {
		return cancel(sink, err)
	}
	return sink.Close()
}

func cancel(sink raft.SnapshotSink, err error) error {
	if cancelErr := sink.Cancel(); cancelErr != nil {
		return dfserr.Errorf(dfserr.ErrDiskFailed, "snapshot: %v, then its cancellation: %v", err, cancelErr)
	}
	return err
}

// Release gives up the pin.
func (s *snapshot) Release() { s.db.Unpin(s.index) }

// Restore replaces the state by a snapshot's, atomically. It waits until all views opened before are closed. After an error the old state is still there.
func (f *FSM) Restore(r io.ReadCloser) error {
	defer r.Close()
	f.cache.Store(nil)
	defer func() { f.cache.Store(newCache(f.cfg.CacheBytes)) }()
	return f.db.InstallSnapshot(context.Background(), r)
}
