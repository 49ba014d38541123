// Package raftlog is the master's replicated log: hashicorp/raft with our own log store, stable store and snapshot store.
//
// There is one code path for one voter and for several. Node.Propose appends an entry and returns what the state machine answered; Node.ReadBarrier
// returns an index that a linearizable read must have seen. The state machine keeps its state on disk (package kv), so Raft never restores it at
// start: it replays what the state machine has not applied.
//
// # Failure model
//
// Disks may fail, lie by a flipped bit, or lose power; they do not make up data with a valid checksum. The first write or sync error of the log, the stable store or
// a snapshot, and the first checksum mismatch, close a latch (Node.Failed): from then on nothing is written, nothing is applied, nothing is acknowledged, and no byte
// leaves through the transport. The process is expected to exit; only a restart, which recovers from what is on disk, opens the latch. Behind the closed latch the Raft library is kept
// turning with harmless answers, because it panics on some errors of its stores and carries on after others; nothing it then decides can be seen from outside.
//
// # Log
//
// The log is a sequence of segment files of checksummed, chained records (docs/format/raft-log.md); one append is one write and one fsync, whatever the number of entries. When a log is opened all of
// it is read and verified. A bad record that lies before a later record's synced mark is corruption and Open refuses; after it, it is the torn tail of an append
// that was never acknowledged and is cut off. A flip in the very last append looks like a torn one; it is found when the node was closed cleanly (mark of the clean end), or when the
// state machine is ahead of the log, and Open refuses then too. raft-wal was not used: it cuts the log at the first bad frame header wherever that is, verifies
// nothing on reads, and does not join its goroutine.
//
// Each entry also travels in an envelope with its own CRC32C, made in Propose and verified before apply, so that damage in memory or on the way between masters stops the replica that
// sees it.
//
// # Snapshots and the way back
//
// A snapshot is O(1): State.SyncTo, then a record {index, term, configuration} on disk; the state at that index stays pinned in the state machine's store, from which it is streamed when a follower needs it. Raft then
// drops log entries, never above the record and never the last TrailingLogs.
//
// Beside that, every CheckpointEntries the state is streamed into a checkpoint file, and the log is kept from the checkpoint on. So there are always two ways to the current state:
// the state machine's store plus the log behind it, and the checkpoint plus the log behind that. If the store was lost or discarded, Open loads the checkpoint into it and replays the
// log; if neither the log nor a checkpoint reaches back far enough, Open refuses with ErrCorrupt and names what is missing; the way out is then to empty this master's directories and let
// it rejoin from the other masters, or, with a single master, to restore a backup. A state rebuilt from a checkpoint has no history from before the checkpoint.
//
// # Reads
//
// ReadBarrier makes sure that this node leads, in a term in which it has committed an entry, and waits until everything that was committed when it was called has been applied. With several voters
// it asks a majority (VerifyLeader); concurrent callers share one question. As the only voter a node needs to ask nobody: see soleVoter.
//
// # Goroutines and locks
//
// Open starts Raft's own goroutines, the proposer, the completer, the barrier loop and the leadership loop; Close joins them all. Locks are leaves: none is held while another is taken, and none while a callback runs.
package raftlog
