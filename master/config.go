package master

import (
	"cmp"
	"errors"
	"net"
	"time"

	"github.com/hashicorp/go-hclog"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	"dfs/internal/vfs"
	"dfs/master/cluster"
	"dfs/master/repair"
)

// Config configures a master. Dir and Listen are required; a zero in any other field means the default in brackets.
type Config struct {
	// Dir is the data directory. It is created when it does not exist.
	Dir string
	// LogFS, when not nil, holds the Raft log instead of Dir; tests crash it.
	LogFS vfs.FS
	// Listen is the address ("host:port", port 0 draws one) that clients and chunkservers dial.
	Listen string
	// RaftListen is the address that other masters dial. [Listen's host, a free port]
	RaftListen string
	// Network makes connections. [TCP]
	Network rpc.Network

	// ClusterID is the cluster that the data must belong to, or the id of the new one. [any, or drawn at random]
	ClusterID dfs.ClusterID
	// UID and GID own the root directory of a new cluster.
	UID, GID uint32

	// MinReplicas is how many replicas must take a write of a file with at least that replication. [2]
	MinReplicas int
	// Fence says when a chunkserver that left a configuration is known to serve no more reads. [cluster.FenceProcess]
	Fence cluster.Fence
	// SessionTTL is how long a session lives after its last word. [30 s]
	SessionTTL time.Duration
	// WriteLease is how long a chunk's primary may order writes without renewal. [30 s]
	WriteLease time.Duration
	// ServingLease is how long a chunkserver may serve reads after its last heartbeat. [3 s]
	ServingLease time.Duration
	// HeartbeatInterval is how often chunkservers are to send heartbeats. [ServingLease/4]
	HeartbeatInterval time.Duration
	// DeadAfter is how long a chunkserver is silent before what it holds is copied elsewhere. [60 s]
	DeadAfter time.Duration
	// SafeModeTimeout ends safe mode after a start however few chunkservers have come back. [30 s]
	SafeModeTimeout time.Duration
	// GarbageGrace is how long the replicas of a deleted chunk stay. [60 s]
	GarbageGrace time.Duration
	// Repair bounds re-replication.
	Repair repair.Limits

	// MinFree is the free space of Dir's disk, in bytes, below which only reads and deletions are accepted. [512 MiB]
	MinFree int64
	// Ballast is the size in bytes of a file in Dir that an operator may delete on a full disk; negative: none. [64 MiB]
	Ballast int64
	// DiskUsage replaces the question to Dir's disk, in tests.
	DiskUsage func() (capacity, free int64, err error)
	// CacheBytes bounds the metadata caches together. [128 MiB]
	CacheBytes int64

	// Faults, in tests, decides the fate of calls to chunkservers.
	Faults rpc.FaultFunc
	// Software is the version shown to others.
	Software string
	// Logger receives messages. [none]
	Logger hclog.Logger
}

// Validate says what is wrong with the configuration. Errors wrap ErrInvalid and name the field.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, dfserr.Errorf(dfserr.ErrInvalid, format, args...))
	}
	if c.Dir == "" {
		bad("master: no data directory")
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		bad("master: listen address %q: want HOST:PORT", c.Listen)
	}
	if c.RaftListen != "" {
		if _, _, err := net.SplitHostPort(c.RaftListen); err != nil {
			bad("master: raft listen address %q: want HOST:PORT", c.RaftListen)
		}
	}
	if c.MinReplicas < 0 || c.MinReplicas > dfs.MaxReplication {
		bad("master: min_replicas %d: want 1 to %d", c.MinReplicas, dfs.MaxReplication)
	}
	if c.Fence != cluster.FenceProcess && c.Fence != cluster.FenceLease {
		bad("master: fence %d is not known", c.Fence)
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"session_ttl", c.SessionTTL},
		{"write_lease", c.WriteLease},
		{"serving_lease", c.ServingLease},
		{"heartbeat_interval", c.HeartbeatInterval},
		{"dead_after", c.DeadAfter},
		{"safe_mode_timeout", c.SafeModeTimeout},
		{"garbage_grace", c.GarbageGrace},
	} {
		if d.value < 0 {
			bad("master: %s %v is negative", d.name, d.value)
		}
	}
	if c.HeartbeatInterval > 0 && c.HeartbeatInterval*2 > cmp.Or(c.ServingLease, defaultServingLease) {
		bad("master: heartbeat_interval %v: want at most half of the serving lease", c.HeartbeatInterval)
	}
	if c.MinFree < 0 || c.CacheBytes < 0 {
		bad("master: min_free and cache sizes must not be negative")
	}
	return errors.Join(errs...)
}

const defaultServingLease = 3 * time.Second

// withDefaults fills in the zero fields.
func (c Config) withDefaults() Config {
	c.MinReplicas = cmp.Or(c.MinReplicas, dfs.DefaultMinReplicas)
	c.SessionTTL = cmp.Or(c.SessionTTL, 30*time.Second)
	c.WriteLease = cmp.Or(c.WriteLease, 30*time.Second)
	c.ServingLease = cmp.Or(c.ServingLease, defaultServingLease)
	c.HeartbeatInterval = cmp.Or(c.HeartbeatInterval, c.ServingLease/4)
	c.DeadAfter = cmp.Or(c.DeadAfter, time.Minute)
	c.SafeModeTimeout = cmp.Or(c.SafeModeTimeout, 30*time.Second)
	c.GarbageGrace = cmp.Or(c.GarbageGrace, time.Minute)
	c.Repair.CopyUnit = cmp.Or(c.Repair.CopyUnit, 16*dfs.MiB)
	c.Repair.CopyTimeout = cmp.Or(c.Repair.CopyTimeout, 5*time.Minute)
	c.CacheBytes = cmp.Or(c.CacheBytes, 128*dfs.MiB)
	if c.Network == nil {
		c.Network = rpc.TCP()
	}
	if c.RaftListen == "" {
		host, _, err := net.SplitHostPort(c.Listen)
		if err == nil {
			c.RaftListen = net.JoinHostPort(host, "0")
		}
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	return c
}

// clusterConfig is what package cluster needs of it.
func (c *Config) clusterConfig() cluster.Config {
	return cluster.Config{
		ServingLease: c.ServingLease, DeadAfter: c.DeadAfter, Fence: c.Fence, SafeModeTimeout: c.SafeModeTimeout,
		// The leader before this one was a process that held the lock on the same directory, which is free now; zero means a default.
		LeaderOverlap: time.Nanosecond,
	}
}
