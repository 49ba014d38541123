package store

import (
	"github.com/hashicorp/go-hclog"

	"dfs/internal/dfs"
	"dfs/internal/vfs"
)

// Disk is one data directory: a name for messages (its path) and the file system rooted in it.
type Disk struct {
	Name string
	FS   vfs.FS
}

// Options configure a Store.
type Options struct {
	// Cluster and Server must be those of the disks' identity files. Zero accepts what the disks say, which
	// must still be the same on all of them.
	Cluster dfs.ClusterID
	Server  dfs.ServerID
	// Reserve is how many bytes of each disk stay free: what would use them is refused with ErrNoSpace, but
	// reads, deletes, truncations and configuration changes go on. Zero means DefaultReserve of each disk's
	// capacity, negative reserves nothing.
	Reserve int64
	// MaxOpen bounds the replicas whose file and index are kept open while nobody uses them. Zero means
	// DefaultMaxOpen.
	MaxOpen int
	// CompactMin is the size in bytes under which a replica's log is never compacted. Zero means
	// DefaultCompactMin.
	CompactMin int64
	// NoCompaction switches automatic compaction off; Replica.Compact still works.
	NoCompaction bool
	// Nonce draws the random number that marks a new log file; it is called concurrently. Nil draws it from
	// crypto/rand; tests of exact bytes set it.
	Nonce func() uint64
	// Logger receives what an operator should know: condemned disks, corrupt replicas, torn tails. Nil
	// discards it.
	Logger hclog.Logger
}

// Defaults of Options.
const (
	DefaultMaxOpen    = 1024
	DefaultCompactMin = 1 * dfs.MiB
)

// DefaultReserve returns how much of a disk of so many bytes stays free unless told otherwise: a twentieth, but
// not more than 1 GiB.
func DefaultReserve(capacity int64) int64 { return min(capacity/20, 1*dfs.GiB) }

// Kind says what a mutation does to the chunk.
type Kind uint8

// The kinds of mutation. A replica never stores an append: its primary has turned it into a write.
const (
	KindWrite    Kind = 1 // Data replaces [Off, Off+Len); the chunk becomes at least Off+Len bytes long
	KindZero     Kind = 2 // [Off, Off+Len) reads as zero; the length does not change
	KindTruncate Kind = 3 // the chunk's length becomes Off; bytes a later growth uncovers read as zero
)

// Mutation is one change to a chunk, as its primary ordered it.
type Mutation struct {
	Kind    Kind
	Version dfs.Version // configuration under which the primary ordered it
	Seq     dfs.Seq     // one more than that of the mutation before it
	Off     int64       // in the chunk
	Len     int64       // bytes: of Data, or of the zeroed range; 0 for a truncation
	Writer  uint64      // names the writer for ever; 0: none, no duplicate detection
	Request uint64      // 1, 2, 3 … per writer and chunk
	// CutVersion, of a truncation ordered by the master, is the version at which the chunk was cut; else 0.
	CutVersion dfs.Version
	// Data holds Len bytes in pieces of any size. The store does not keep or change it.
	Data [][]byte
	// CRCs are the checksums of Data cut at block boundaries of the chunk (dfs.BlockCRCs), as the writing
	// client computed them.
	CRCs []uint32
}

// Epoch says that the mutations ordered under Version begin at First. An epoch without mutations yet has
// First one above the last seq.
type Epoch struct {
	Version dfs.Version
	First   dfs.Seq
}

// State describes a replica at one instant.
type State struct {
	// Version is the highest configuration version the replica was told (Create, SetVersion); it never falls.
	Version dfs.Version
	// LastSeq is the last mutation in the log, 0 when there is none.
	LastSeq dfs.Seq
	// BaseSeq is the mutation up to which compaction has merged the log: single mutations exist only after it.
	BaseSeq dfs.Seq
	// Epochs are in ascending order of version; those that ended before BaseSeq may be missing.
	Epochs []Epoch
	// Committed is the highest mutation known to be on every replica (SetCommitted). It is soft state: after a
	// crash it is what the log happened to record, at least BaseSeq and never too high.
	Committed dfs.Seq
	// Length is the chunk's length in bytes after all mutations, CommittedLength after those up to Committed.
	Length, CommittedLength int64
	// CutVersion is the highest CutVersion of a truncation in the log.
	CutVersion dfs.Version
	// Synced is the mutation up to which the log is known to be on stable storage.
	Synced dfs.Seq
	// DiskBytes is the length of the log file.
	DiskBytes int64
	// Corrupt says that damage was found. The replica refuses what it cannot do rightly (ErrCorrupt): with
	// Structural set that is everything, else only reads of the damaged bytes and copies of the log.
	// CorruptReason says what was found.
	Corrupt, Structural bool
	CorruptReason       string
	// Disk is the name of the disk that holds the replica.
	Disk string
}

// ReadResult is what Replica.ReadAt returns.
type ReadResult struct {
	// Data are the bytes from the offset asked for, cut at Length. It is valid until Release.
	Data []byte
	// CRCs are the checksums of Data cut at block boundaries of the chunk (dfs.BlockCRCs): those the writing
	// clients computed, except where an overwrite or the range asked for cuts a piece in two.
	CRCs []uint32
	// Length is the chunk's length after all mutations in the log at the instant of the read, CommittedLength
	// after the committed ones, Version the replica's version.
	Length, CommittedLength int64
	Version                 dfs.Version
	// DirtyUpTo is the highest mutation above the committed one that changes bytes of the range asked for, 0
	// for none. When it is not 0 the result may be given out only once that mutation is committed; Data is then
	// right as it is. After a crash, when the committed seq is not known, that is what protects a reader.
	DirtyUpTo dfs.Seq

	buf *[]byte
}

// DiskUsage describes one disk.
type DiskUsage struct {
	Name     string
	ID       uint64 // from the identity file; random
	Capacity int64  // bytes
	Free     int64  // bytes beyond the reserve, never negative; 0 for a condemned disk
	Used     int64  // bytes of the replicas' logs, as long as the files are
	Replicas int
	Failed   error // why the disk is condemned, nil while it is not
}

// ReceiveOptions say what a Receiver is sent.
type ReceiveOptions struct {
	// Whole replaces the replica, or makes it, by a copy of a whole log; otherwise the records are appended
	// to the replica, which must exist.
	Whole bool
	// Size is about how many bytes will come, to choose a disk and to refuse early; 0 if unknown.
	Size int64
}
