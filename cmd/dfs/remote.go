package main

import (
	"context"
	"io"
	"io/fs"
	"time"
)

// remote is everything the shell asks of a cluster. sdk.go implements it with package client; fake_test.go with a
// file system in memory. Paths are absolute and may hold any bytes but NUL. Failures wrap the sentinels of
// internal/dfserr. All methods are safe for concurrent use.
type remote interface {
	namespace
	contents
	inspector
	// URI is "dfs://host:port" of the cluster's first master, without a trailing slash.
	URI() string
	// Close ends the session.
	Close() error
}

// namespace is the tree: names, attributes and links.
type namespace interface {
	// Stat follows a last symbolic link, Lstat does not. Neither waits long for an exact size: fileInfo.SizeIsBound.
	Stat(ctx context.Context, path string) (fileInfo, error)
	Lstat(ctx context.Context, path string) (fileInfo, error)
	// ReadDir calls each for every entry in byte order of name, with attributes; an error of each ends it.
	ReadDir(ctx context.Context, path string, each func(fileInfo) error) error
	Mkdir(ctx context.Context, path string, perm fs.FileMode) error
	// MkdirAll makes missing parents too and is content with an existing directory.
	MkdirAll(ctx context.Context, path string, perm fs.FileMode) error
	// Remove takes away one name: a file, a link or an empty directory. RemoveAll takes a whole tree, on the server.
	Remove(ctx context.Context, path string) error
	RemoveAll(ctx context.Context, path string) error
	// Rename moves old to new; without replace an existing new is ErrExist.
	Rename(ctx context.Context, old, new string, replace bool) error
	Link(ctx context.Context, old, new string) error
	Symlink(ctx context.Context, target, path string) error
	Chmod(ctx context.Context, path string, mode fs.FileMode) error
	// Chown leaves an id of -1 as it is and does not follow a last symbolic link.
	Chown(ctx context.Context, path string, uid, gid int) error
	// Chtimes leaves a zero time as it is.
	Chtimes(ctx context.Context, path string, atime, mtime time.Time) error
	Truncate(ctx context.Context, path string, length int64) error
	SetReplication(ctx context.Context, path string, n int) error
}

// contents is file data.
type contents interface {
	Open(ctx context.Context, path string) (reader, error)
	// Create makes a regular file and opens it for writing; it fails with ErrExist if the name is taken. large says that more than
	// dfs.InlineMax bytes are coming.
	Create(ctx context.Context, path string, perm fs.FileMode, large bool) (writer, error)
	// OpenAppend opens an existing file so that every write goes to its end.
	OpenAppend(ctx context.Context, path string) (writer, error)
	// WriteSmall makes a whole file of at most dfs.InlineMax bytes in one atomic operation; with replace it takes the
	// place of an existing file's content.
	WriteSmall(ctx context.Context, path string, data []byte, perm fs.FileMode, replace bool) error
}

// reader is an open file. Read works through ctx of the Open call.
type reader interface {
	io.Reader
	io.ReaderAt
	Size(ctx context.Context) (int64, error)
	Close() error
}

// writer is a file open for writing. After a successful Close the data is where DESIGN §9 says; CloseAs gives the file another name
// in the same step, as Rename would; Abandon gives up without caring for the content.
type writer interface {
	io.Writer
	Close() error
	CloseAs(path string, replace bool) error
	Abandon()
}

// inspector is what administration looks at.
type inspector interface {
	StatFS(ctx context.Context) (fsTotals, error)
	Chunks(ctx context.Context, path string) ([]chunkInfo, error)
	Report(ctx context.Context) (clusterReport, error)
	// Fsck calls each for every problem under path and returns the totals.
	Fsck(ctx context.Context, path string, each func(finding) error) (fsckTotals, error)
}

// fileInfo is what the shell prints about one inode. Name is the last name of the path asked for.
type fileInfo struct {
	Name        string
	Inode       uint64
	Mode        fs.FileMode
	UID, GID    uint32
	Nlink       uint32
	Size        int64
	SizeIsBound bool // the chunkservers that know the exact length do not answer: it is at least Size
	ATime       time.Time
	MTime       time.Time
	Target      string // of a symbolic link
	ChunkSize   int64
	Replication int
	Inline      bool
}

// chunkInfo is one chunk of a file with its replicas, primary first.
type chunkInfo struct {
	Index    int64
	ID       string
	Version  uint64
	Length   int64
	Want     int
	Replicas []replicaInfo
}

// replicaInfo is one replica as its chunkserver has it. State is "valid", "stale", "corrupt", "missing",
// "unreachable" or "copying".
type replicaInfo struct {
	Server  string `json:"server"`
	Addr    string `json:"address"`
	Version uint64 `json:"version"`
	Length  int64  `json:"length"`
	State   string `json:"state"`
}

// fsTotals is the cluster's space, in bytes over all live chunkservers.
type fsTotals struct {
	Capacity, Used, Free int64
	Inodes, Chunks, Data int64
}

// clusterReport is the state of the cluster.
type clusterReport struct {
	ClusterID       string
	Leader          string
	SafeMode        bool
	Totals          fsTotals
	UnderReplicated int64
	Missing         int64
	Corrupt         int64
	PendingDeletion int64
	RepairsRunning  int64
	Scanned         bool // the counts are from a scan that finished after the last change
	Servers         []serverReport
}

// serverReport is one chunkserver in a clusterReport. State is "live" or "dead".
type serverReport struct {
	ID             string        `json:"id"`
	Addr           string        `json:"address"`
	Rack           string        `json:"rack"`
	State          string        `json:"state"`
	Capacity       int64         `json:"capacity_bytes"`
	Used           int64         `json:"used_bytes"`
	Free           int64         `json:"free_bytes"`
	Chunks         int64         `json:"chunks"`
	HeartbeatAgo   time.Duration `json:"-"`
	HeartbeatAgoMS int64         `json:"last_heartbeat_ms_ago"`
	Software       string        `json:"version"`
	ReadOnly       bool          `json:"read_only"`
}

// finding is one problem that fsck found. Problem is "missing", "under-replicated" or "corrupt".
type finding struct {
	Path    string `json:"path"`
	Chunk   string `json:"chunk"`
	Index   int64  `json:"index"`
	Problem string `json:"problem"`
	Live    int    `json:"live"`
	Want    int    `json:"want"`
	Length  int64  `json:"length"`
}

// fsckTotals is what fsck counted.
type fsckTotals struct {
	Bytes               int64 `json:"bytes"`
	Directories         int64 `json:"directories"`
	Files               int64 `json:"files"`
	Symlinks            int64 `json:"symlinks"`
	Chunks              int64 `json:"chunks"`
	MissingChunks       int64 `json:"missing_chunks"`
	MissingFiles        int64 `json:"missing_files"`
	MissingBytes        int64 `json:"missing_bytes"`
	UnderReplicated     int64 `json:"under_replicated"`
	OverReplicated      int64 `json:"over_replicated"`
	CorruptChunks       int64 `json:"corrupt_chunks"`
	MissingReplicas     int64 `json:"missing_replicas"`
	Replicas            int64 `json:"replicas"`
	DefaultReplication  int   `json:"default_replication"`
	LiveServers         int64 `json:"live_servers"`
	Racks               int64 `json:"racks"`
	MinimallyReplicated int64 `json:"minimally_replicated"`
}
