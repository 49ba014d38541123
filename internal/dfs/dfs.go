// Package dfs is the vocabulary of the project: typed identifiers, sizes, limits, and the rules for
// names and paths. It does no I/O, holds no state, and every function in it is safe for concurrent use.
//
// The words are those of docs/glossary.md. An identifier type exists for each idea so that the compiler
// keeps them apart; zero is never a valid identifier.
package dfs

import (
	"fmt"
	"strconv"
	"time"
)

// InodeID names an inode. Ids are allocated by the master's state machine and never reused; the high
// 16 bits are a shard number (0 today).
type InodeID uint64

// RootInode is the inode of "/".
const RootInode InodeID = 1

// ChunkID names a chunk. Ids are allocated by the master's state machine and never reused.
type ChunkID uint64

// String returns the fixed-width hexadecimal form used in file names, logs and command output.
func (c ChunkID) String() string { return fmt.Sprintf("%016x", uint64(c)) }

// ParseChunkID reads the form that String prints.
func ParseChunkID(s string) (ChunkID, error) {
	if len(s) != 16 {
		return 0, fmt.Errorf("chunk id %q: want 16 hexadecimal digits", s)
	}
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		return 0, fmt.Errorf("chunk id %q: want 16 hexadecimal digits", s)
	}
	return ChunkID(n), nil
}

// ServerID names a chunkserver. It is chosen at random when a chunkserver's first data directory is
// formatted and stays with the data.
type ServerID uint64

// String returns the fixed-width hexadecimal form.
func (s ServerID) String() string { return fmt.Sprintf("%016x", uint64(s)) }

// ClusterID names a cluster; it is chosen at random when the first master is formatted. Every data
// directory and every connection carries it, so that nodes of two clusters never mix.
type ClusterID uint64

// String returns the fixed-width hexadecimal form.
func (c ClusterID) String() string { return fmt.Sprintf("%016x", uint64(c)) }

// SessionID names a client's presence at the master (DESIGN §5).
type SessionID uint64

// Index is an index in the master's Raft log; it versions all metadata.
type Index uint64

// Version is a chunk's configuration number: the Raft index of the commit that made the configuration.
type Version uint64

// Seq is the order of a mutation within a chunk. It keeps growing across versions; (Version, Seq) is to
// a chunk what (term, index) is to Raft.
type Seq uint64

// Sizes, in bytes unless said otherwise.
const (
	KiB = 1 << 10
	MiB = 1 << 20
	GiB = 1 << 30

	// BlockSize is the checksum unit inside a chunk. Blocks are aligned to chunk offset 0.
	BlockSize = 4 * KiB
	// FrameSize is the largest payload of one data frame on the wire and of one record in a replica log.
	FrameSize = 1 * MiB

	// MinChunkSize, MaxChunkSize and DefaultChunkSize bound a file's chunk size, a power of two.
	MinChunkSize     = 1 * MiB
	MaxChunkSize     = 1 * GiB
	DefaultChunkSize = 64 * MiB

	// InlineMax is the largest file whose bytes live in its inode.
	InlineMax = 4 * KiB

	// MaxFileLength is the largest length of a file: 2^60 bytes.
	MaxFileLength = int64(1) << 60

	// DefaultReplication and MaxReplication are replicas per chunk.
	DefaultReplication = 3
	MaxReplication     = 16
	// DefaultMinReplicas is the fewest replicas that may acknowledge a write of a file with
	// replication 3 or more; see MinReplicas.
	DefaultMinReplicas = 2

	// NameMax and PathMax bound one name and one path, in bytes; SymlinkMax bounds a link's target.
	NameMax    = 255
	PathMax    = 4096
	SymlinkMax = 4095
	// SymlinkDepth is how many symbolic links one path may pass through.
	SymlinkDepth = 40
	// LinkMax is the largest number of hard links to one inode.
	LinkMax = 65_000

	// XattrNameMax, XattrValueMax and XattrTotalMax bound extended attributes as Linux does.
	XattrNameMax  = 255
	XattrValueMax = 64 * KiB
	XattrTotalMax = 256 * KiB

	// MaxEntrySize is the largest Raft log entry.
	MaxEntrySize = 1 * MiB
	// CacheTrust is for how long after it sent the last keep-alive message that was answered a client trusts what it has cached under leases.
	CacheTrust = 2 * time.Second
	// CacheWait is for how long after it received that message the master counts with the client's trust. The difference is what
	// clocks may run apart in that time.
	CacheWait = 2800 * time.Millisecond
	// CacheRenew is how often a client that uses its cache sends keep-alive messages.
	CacheRenew = 500 * time.Millisecond
	// ReplyWindow is how many mutations one session may have outstanding: the master remembers that
	// many replies per session, so a request id may only be reused after ReplyWindow later ones.
	ReplyWindow = 1024
	// WriterWindow is how many writes one writer may have outstanding on one chunk: replicas remember
	// that many request ids per writer to recognise duplicates.
	WriterWindow = 256
)

// MinReplicas returns how many replicas must hold a write before it is acknowledged, for a file that
// asks for the given replication while the cluster's setting is minReplicas: never more than asked for,
// never less than one.
func MinReplicas(replication, minReplicas int) int {
	return max(1, min(replication, minReplicas))
}

// ValidChunkSize reports whether n may be a file's chunk size.
func ValidChunkSize(n int64) bool {
	return n >= MinChunkSize && n <= MaxChunkSize && n&(n-1) == 0
}

// Range is a span of bytes of a file or of a chunk: Off is inclusive and counted from its start, Len is in bytes.
type Range struct {
	Off, Len int64
}

// End returns the first offset after the range.
func (r Range) End() int64 { return r.Off + r.Len }

// CheckRange reports whether [off, off+length) is a legal span of a file of at most limit bytes:
// neither number negative, and the end, computed without overflow, not beyond limit.
func CheckRange(off, length, limit int64) bool {
	return off >= 0 && length >= 0 && off <= limit && length <= limit-off
}

// ChunkSpan is the part of a byte range that lies in one chunk.
type ChunkSpan struct {
	Index      int64 // index of the chunk in the file
	OffInChunk int64
	Len        int64
	OffInRange int64 // where this part begins, counted from the start of the split range
}

// SplitRange cuts a legal file range (see CheckRange) at chunk boundaries, in ascending order. An empty
// range gives no spans.
func SplitRange(off, length, chunkSize int64) []ChunkSpan {
	var spans []ChunkSpan
	for done := int64(0); done < length; {
		index := (off + done) / chunkSize
		offInChunk := (off + done) % chunkSize
		n := min(chunkSize-offInChunk, length-done)
		spans = append(spans, ChunkSpan{Index: index, OffInChunk: offInChunk, Len: n, OffInRange: done})
		done += n
	}
	return spans
}
