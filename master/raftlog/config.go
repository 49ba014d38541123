package raftlog

import (
	"context"
	"io"
	"net"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

// Network makes the connections between masters. Packages that provide one encrypt and authenticate; raftlog does not.
type Network interface {
	Listen(ctx context.Context, addr string) (net.Listener, error)
	Dial(ctx context.Context, addr string) (net.Conn, error)
}

// State is the state machine's store, as far as snapshots need it; *kv.DB implements it. Methods are safe for concurrent use, except that none runs
// beside FSM.Restore.
type State interface {
	// Applied returns the index of the newest entry in the state, 0 for none.
	Applied() dfs.Index
	// SyncTo makes the state durable and returns up to which index: at least Applied at the time of the call.
	SyncTo() (dfs.Index, error)
	// Pin keeps the state as of index for WriteSnapshot until Unpin.
	Pin(index dfs.Index) error
	Unpin(index dfs.Index)
	// WriteSnapshot streams the state as of index. The same index always gives the same bytes. The stream verifies itself when read back.
	WriteSnapshot(ctx context.Context, index dfs.Index, w io.Writer) error
}

// Config configures a Node. Fields without a stated default are required.
type Config struct {
	// FS holds the log, the stable store, the snapshot records and the checkpoints, in directory Dir, which is created (its parent must exist). Dir "" means the root.
	FS  vfs.FS
	Dir string
	// ID names this master among the voters and never changes.
	ID string
	// Bind is where to listen for the other masters; Advertise is what they dial, "" for the listener's own address.
	Bind, Advertise string
	// Network makes the connections.
	Network Network
	// Bootstrap makes a new cluster with this node as the only voter when nothing is stored yet; otherwise it has no effect.
	Bootstrap bool
	// FSM applies entries: ApplyBatch gets those with data, in order, each once per life of the state, all above State.Applied. Entries of other types do not reach it. The data is what was given to Propose. It must have
	// flushed to State what it returns answers for. Restore replaces the state by a snapshot stream. Apply and Snapshot are not called.
	FSM   raft.BatchingFSM
	State State
	// Admit is asked before each proposal and may refuse it (full disk). nil admits all.
	Admit func() error
	// OnLead runs, in a goroutine of its own, while this node leads and has caught up: from then until ctx ends. A new one starts only when the last has returned. nil means none.
	OnLead func(ctx context.Context)
	// Heartbeat is how long a follower waits for a word of the leader before it stands for election, and how long an election may take; the leader gives up after 4/5 of it without a majority. 0 means 200 ms, right for one
	// voter; several voters want 1 s.
	Heartbeat time.Duration
	// SnapshotEntries is how many entries cause a snapshot, TrailingEntries how many stay in the log after one. 0 means 100,000 each.
	SnapshotEntries, TrailingEntries uint64
	// CheckpointEntries is how many entries lie between two checkpoints, at least. 0 means 1,000,000; negative means that none are made: a lost state then
	// needs another master.
	CheckpointEntries int64
	// SnapshotInterval is how often the number of entries is looked at. 0 means 30 s.
	SnapshotInterval time.Duration
	// SegmentBytes is the size at which the log starts a new file. 0 means 32 MiB.
	SegmentBytes int64
	// Logger receives messages. nil discards them.
	Logger hclog.Logger
}

// Validate checks the fields that have no default. Errors wrap ErrInvalid.
func (c *Config) Validate() error {
	switch {
	case c.FS == nil:
		return dfserr.Errorf(dfserr.ErrInvalid, "raftlog: no FS")
	case c.ID == "":
		return dfserr.Errorf(dfserr.ErrInvalid, "raftlog: no ID")
	case c.Network == nil:
		return dfserr.Errorf(dfserr.ErrInvalid, "raftlog: no Network")
	case c.FSM == nil || c.State == nil:
		return dfserr.Errorf(dfserr.ErrInvalid, "raftlog: no state machine")
	case c.SegmentBytes > maxSegment:
		return dfserr.Errorf(dfserr.ErrInvalid, "raftlog: segments of %d bytes, the limit is %d", c.SegmentBytes, int64(maxSegment))
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.Heartbeat <= 0 {
		c.Heartbeat = 200 * time.Millisecond
	}
	if c.SnapshotEntries == 0 {
		c.SnapshotEntries = 100_000
	}
	if c.TrailingEntries == 0 {
		c.TrailingEntries = 100_000
	}
	if c.CheckpointEntries == 0 {
		c.CheckpointEntries = 1_000_000
	}
	if c.SnapshotInterval <= 0 {
		c.SnapshotInterval = 30 * time.Second
	}
	if c.SegmentBytes <= 0 {
		c.SegmentBytes = 32 << 20
	}
	if c.Admit == nil {
		c.Admit = func() error { return nil }
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	return c
}

// raftConfig returns the library's settings.
func (c Config) raftConfig(notify chan<- bool) *raft.Config {
	r := raft.DefaultConfig()
	r.LocalID = raft.ServerID(c.ID)
	r.HeartbeatTimeout = c.Heartbeat
	r.ElectionTimeout = c.Heartbeat
	r.LeaderLeaseTimeout = c.Heartbeat * 4 / 5
	r.CommitTimeout = 50 * time.Millisecond
	r.MaxAppendEntries = maxAppendEntries
	r.BatchApplyCh = true
	r.TrailingLogs = c.TrailingEntries
	r.SnapshotThreshold = c.SnapshotEntries
	r.SnapshotInterval = c.SnapshotInterval
	r.NoSnapshotRestoreOnStart = true
	r.NoLegacyTelemetry = true
	r.NotifyCh = notify
	r.Logger = c.Logger
	return r
}

// maxAppendEntries is how many entries one append and one apply take at most.
const maxAppendEntries = 1024
