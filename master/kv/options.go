package kv

import (
	"fmt"
	"strings"

	"github.com/dgraph-io/badger/v4"
	badgeroptions "github.com/dgraph-io/badger/v4/options"
	"github.com/hashicorp/go-hclog"

	"dfs/internal/dfs"
)

// Options configures a DB. The zero value is usable.
type Options struct {
	// CacheBytes bounds the block and index caches together. 0 means 64 MiB.
	CacheBytes int64
	// MemtableBytes is the size of one memtable; three may exist. It also bounds one transaction, at 15 % of it. 0 means 16 MiB, the least is 8 MiB.
	// All masters of a cluster must use the same value.
	MemtableBytes int64
	// Cluster is written to snapshots and compared when one is restored. 0 means that it is not checked.
	Cluster dfs.ClusterID
	// OnFail is called once, from any goroutine, when the DB is poisoned. It must not block. nil means nobody is told.
	OnFail func(error)
	// Logger receives Badger's messages. nil discards them.
	Logger hclog.Logger
}

const minMemtable = 8 << 20

// txnBytes bounds the changes of one index, by the measure of overlay: Badger's own bound, 15 % of a memtable, less what the applied record takes. It is the same
// on every master, so that all of them refuse the same commands.
func (o Options) txnBytes() int { return int(o.MemtableBytes*15/100) - 16<<10 }

func (o Options) withDefaults() Options {
	if o.CacheBytes <= 0 {
		o.CacheBytes = 64 << 20
	}
	if o.MemtableBytes <= 0 {
		o.MemtableBytes = 16 << 20
	}
	o.MemtableBytes = max(o.MemtableBytes, minMemtable) // a value of MaxValue must fit into one transaction
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.OnFail == nil {
		o.OnFail = func(error) {}
	}
	return o
}

// badger returns Badger's options for a generation in dir.
func (o Options) badger(dir string) badger.Options {
	return badger.DefaultOptions(dir).
		WithSyncWrites(false).                                      // the Raft log is the durability, see SyncTo
		WithDetectConflicts(false).                                 // one writer
		WithNumVersionsToKeep(1).                                   // of those at or below the discard timestamp
		WithChecksumVerificationMode(badgeroptions.NoVerification). // verifyTables has done it
		WithMemTableSize(o.MemtableBytes).
		WithNumMemtables(3).
		WithBaseTableSize(1 << 20). // a compaction builds a dozen tables at a time, each in memory of twice its size
		WithNumCompactors(2).
		WithNumLevelZeroTables(4).
		WithNumLevelZeroTablesStall(12).
		WithBlockCacheSize(o.CacheBytes * 3 / 4).
		WithIndexCacheSize(o.CacheBytes / 4).
		WithCompression(badgeroptions.Snappy).
		WithValueThreshold(1 << 20).
		WithValueLogFileSize(2 << 20). // never used: see ValueThreshold
		WithMetricsEnabled(false).
		WithLogger(badgerLog{o.Logger})
}

// badgerLog hands Badger's messages to hclog; its Info is our Debug.
type badgerLog struct{ l hclog.Logger }

func (b badgerLog) Errorf(f string, a ...any)   { logf(b.l.Error, f, a) }
func (b badgerLog) Warningf(f string, a ...any) { logf(b.l.Warn, f, a) }
func (b badgerLog) Infof(f string, a ...any) {
	if b.l.IsDebug() {
		logf(b.l.Debug, f, a)
	}
}

func (b badgerLog) Debugf(f string, a ...any) {
	if b.l.IsTrace() {
		logf(b.l.Trace, f, a)
	}
}

// logf formats a message of Badger's and hands it to one of hclog's levels.
func logf(level func(string, ...any), format string, args []any) {
	level(strings.TrimSpace(fmt.Sprintf(format, args...)))
}
