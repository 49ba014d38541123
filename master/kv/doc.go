// Package kv is the master's materialised metadata: Badger in managed mode, with the Raft index as the commit
// timestamp.
//
// The Raft log is the truth, this package is a cache of it that can be rebuilt (DESIGN §4). It therefore promises two
// things and nothing more: what it returns is what was stored (or an error), and it never claims to have applied an
// entry of which it has lost a part. It does not promise that anything it holds survives a power loss, except what
// lies at or below the index that SyncTo returned.
//
// # Writing
//
// One goroutine, the state machine's, writes: Begin(index), reads and changes, Commit, Begin(next index), … and Flush at
// the end of the batch. Each index is one Badger transaction, which also holds the applied record: the index before it,
// the running state hash, the number of keys, and the discard floor. Commits are asynchronous; until Flush, the changes of
// the batch live in an overlay that the writer's reads see. Readers see a batch after its Flush, all of it at once.
//
// # Integrity
//
// Every value is stored in an envelope {format, CRC32C over key and value}, so that a value that was changed, or is
// found under another key, reads as dfserr.ErrCorrupt. The checksums of all of Badger's tables are verified by Open, before Badger sees them
// (verifyTables says why not by Badger; its modes that verify later stop an iteration early without an error, or panic). The first ErrCorrupt or
// failed write poisons the DB: each later call returns that error, and Options.OnFail is called once. The process is
// expected to stop.
//
// The state hash is the lane-wise sum of SHA-256 (truncated to 128 bits) over all (key, value) pairs; it does not depend on order, so
// it is kept up incrementally, is equal on all masters at the same index, and VerifyHash can recompute it by a scan.
//
// # Opening
//
// Badger may come back short after a power loss or a flipped bit in its write-ahead file, without an error, and even with a
// hole when the files of two memtables reached the disk in the wrong order. Open finds both: each applied record names the one before it,
// and Open walks that chain from the newest back to the index that was last synced (file SYNCED), or compares with what the clean
// Close noted (file CLEAN). A state that fails is dfserr.ErrCorrupt; the master then calls Discard and rebuilds from a snapshot and the
// log (package raftlog). A state that is merely short is fine: the log is replayed from Applied.
//
// # Files
//
// dir/CURRENT names the live generation, dir/gen-…/ is a Badger directory with SYNCED and CLEAN beside Badger's files.
// Installing a snapshot builds a new generation, verifies it, and replaces CURRENT by a rename. See docs/format/metadata.md.
//
// # History
//
// Versions above the discard floor are kept, so ReadAt works for any index from the floor to Applied. SetDiscard and Pin move
// and hold the floor. NumVersionsToKeep is 1 because Badger counts only versions at or below the discard
// timestamp: compaction keeps all above, and below only what the floor itself still sees. Values never exceed the value threshold (1 MiB), so
// everything is in the LSM tree and value-log garbage collection has nothing to do.
//
// # Concurrency
//
// Begin, Txn and Flush belong to one goroutine. Everything else is safe for concurrent use. Lock order: DB.installMu, then
// DB.mu; neither is held while user callbacks run, and no disk is touched under mu. Badger's goroutines are joined by Close.
package kv
