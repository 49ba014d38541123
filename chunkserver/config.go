package chunkserver

import (
	"cmp"
	"time"

	"github.com/hashicorp/go-hclog"

	"dfs/chunkserver/store"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
)

// Config describes a chunkserver process. Sizes are bytes.
type Config struct {
	// Disks are the data directories; at least one. They are formatted when they are empty.
	Disks []store.Disk
	// Listen is the address to serve on, host:port; port 0 draws one.
	Listen string
	// Advertise is the address that others are told; empty: the one listened on.
	Advertise string
	// Masters are the addresses of all masters; at least one.
	Masters []string
	// Network is what to listen and dial on; nil: TCP.
	Network rpc.Network
	// Rack names the failure domain; empty: the default rack.
	Rack string
	// Reserve is the room kept free on each disk; 0: a twentieth of it, at most 1 GiB; negative: none.
	Reserve int64
	// MaxOpen bounds how many replicas' files are open at once; 0: the store's default.
	MaxOpen int
	// Software is the version shown in reports.
	Software string
	// Logger gets messages for the operator; nil: none.
	Logger hclog.Logger

	// PeerTimeout bounds one short call to another chunkserver. [5 s]
	PeerTimeout time.Duration
	// CopyTimeout bounds bringing one replica into step, which may copy a whole chunk. [60 s]
	CopyTimeout time.Duration
	// MasterTimeout bounds one call to the master. It must exceed the serving lease, for which the master
	// may have to wait before it grants a write lease. [15 s]
	MasterTimeout time.Duration
	// StallTimeout is how long the last two servers of a chain may leave a mutation unacknowledged before the successor is given
	// up; a server with more successors waits half as long again for each. [6 s]
	StallTimeout time.Duration
	// IdleRelease is how long a primary keeps its lease without use; 0: the lease's own duration.
	IdleRelease time.Duration
	// StreamWindow bounds the payload that one Write or Forward stream may have inside the server. [64 MiB]
	StreamWindow int64
	// ChunkQueue bounds the payload that waits for one chunk while it is being prepared. [16 MiB]
	ChunkQueue int64
	// MaxChunks is how many chunks the process keeps roles of before it forgets idle ones. [4096]
	MaxChunks int
	// MaxCopies is how many replicas are copied to this server at once on the master's order; the master, which knows their sizes, keeps to
	// fewer. [64]
	MaxCopies int
	// ScrubInterval is the time in which every replica is read and verified once. [7 days; negative: never]
	ScrubInterval time.Duration
	// ScrubRate bounds scrubbing, in bytes per second. [32 MiB]
	ScrubRate int64
	// Faults, in tests, decides the fate of unary calls made by this server.
	Faults rpc.FaultFunc
}

// withDefaults fills in the zero fields.
func (c Config) withDefaults() Config {
	if c.Network == nil {
		c.Network = rpc.TCP()
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	c.PeerTimeout = cmp.Or(c.PeerTimeout, 5*time.Second)
	c.CopyTimeout = cmp.Or(c.CopyTimeout, time.Minute)
	c.MasterTimeout = cmp.Or(c.MasterTimeout, 15*time.Second)
	c.StallTimeout = cmp.Or(c.StallTimeout, 6*time.Second)
	c.StreamWindow = cmp.Or(c.StreamWindow, 64*dfs.MiB)
	c.ChunkQueue = cmp.Or(c.ChunkQueue, 16*dfs.MiB)
	c.MaxChunks = cmp.Or(c.MaxChunks, 4096)
	c.MaxCopies = cmp.Or(c.MaxCopies, 64)
	c.ScrubInterval = cmp.Or(c.ScrubInterval, 7*24*time.Hour)
	c.ScrubRate = cmp.Or(c.ScrubRate, 32*dfs.MiB)
	return c
}

// Validate reports the first setting that cannot be used; the error wraps ErrInvalid and names it.
func (c Config) Validate() error {
	bad := func(format string, args ...any) error {
		return dfserr.Errorf(dfserr.ErrInvalid, "chunkserver: "+format, args...)
	}
	switch {
	case len(c.Disks) == 0:
		return bad("no disks given")
	case c.Listen == "":
		return bad("no listen address given")
	case len(c.Masters) == 0:
		return bad("no masters given")
	case c.StreamWindow != 0 && c.StreamWindow < dfs.FrameSize:
		return bad("stream window is %d bytes, a frame needs %d", c.StreamWindow, dfs.FrameSize)
	case c.ChunkQueue != 0 && c.ChunkQueue < dfs.FrameSize:
		return bad("chunk queue is %d bytes, a frame needs %d", c.ChunkQueue, dfs.FrameSize)
	case c.MaxOpen < 0 || c.MaxChunks < 0 || c.MaxCopies < 0 || c.ScrubRate < 0:
		return bad("a limit is negative")
	case c.PeerTimeout < 0 || c.CopyTimeout < 0 || c.MasterTimeout < 0 || c.StallTimeout < 0 || c.IdleRelease < 0:
		return bad("a time limit is negative")
	}
	seen := make(map[string]bool)
	for _, d := range c.Disks {
		if d.FS == nil || d.Name == "" {
			return bad("a disk has no name or no file system")
		}
		if seen[d.Name] {
			return bad("disk %q is given twice", d.Name)
		}
		seen[d.Name] = true
	}
	for _, m := range c.Masters {
		if m == "" {
			return bad("a master's address is empty")
		}
	}
	return nil
}
