// Package store keeps the replicas of a chunkserver's chunks on its disks: one append-only log per replica
// (DESIGN §8; docs/format/replica-log.md has the bytes and the recovery rules). It checks and keeps the
// checksums that writing clients computed, and knows nothing of leases, chains or the network.
//
// Invariants:
//   - A log only grows; nothing acknowledged is overwritten in place. Replacing one (compaction, whole copy)
//     goes through a temporary file, fsync, rename, fsync of the directory.
//   - Mutations in a log have consecutive seqs and versions that do not fall; the version a replica was told
//     never falls, also not across compaction, copies and process kills.
//   - What Sync returned nil for is there after any crash, or the replica says that it is corrupt. A log is
//     shortened only behind the point up to which it is known to have been durable.
//   - Bytes come back as they were appended or not at all (ErrCorrupt): every byte read from a disk is verified.
//
// Failure model: a disk may fail any operation, lose what was not synced at a power loss, and return wrong
// bytes later. The first failed write or sync condemns the disk: it takes no more writes, reads are still tried,
// and a note on it keeps it so after a restart, until Readmit. A full disk is not a failure: new data is refused
// (ErrNoSpace) and everything else goes on.
//
// Concurrency: everything exported is safe for concurrent use except LogReader and Receiver. Each replica has one
// writer at a time and any number of readers, which no disk I/O of a writer blocks. Logs are opened on first
// use and closed, least recently used first, beyond Options.MaxOpen. The only goroutine of a Store compacts; it
// ends when there is nothing to compact, and Close and Kill wait for it. The lock order stands at openLog.
package store
