package client

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
)

// Caller is on whose behalf a Client works; the master checks permissions by it.
type Caller struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
}

// ProcessCaller returns the identity of this process.
func ProcessCaller() Caller {
	c := Caller{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	if groups, err := os.Getgroups(); err == nil {
		for _, g := range groups {
			c.Groups = append(c.Groups, uint32(g))
		}
	}
	return c
}

// Config says how to reach a cluster. Only Masters is required.
type Config struct {
	// Masters are the masters' addresses, "host:port", tried in turn.
	Masters []string
	// ClusterID, when not 0, is the only cluster to talk to; another one gives ErrWrongCluster.
	ClusterID dfs.ClusterID
	// Network dials; nil means TCP.
	Network rpc.Network
	// Caller is on whose behalf to work; nil means ProcessCaller.
	Caller *Caller
	// Name says in the master's lists who the client is; "" means program, host and pid.
	Name string
	// Logger gets what the caller does not see otherwise: retries, lost sessions. Nil: nothing is logged.
	Logger hclog.Logger

	// OpTimeout bounds every operation whose context has no earlier deadline: how long failures are retried before
	// the error comes out. 0 means 60 s.
	OpTimeout time.Duration
	// DialTimeout bounds Dial likewise. 0 means 5 s.
	DialTimeout time.Duration
	// CallTimeout bounds one attempt of a call to a master. 0 means 10 s.
	CallTimeout time.Duration
	// AckTimeout is how long an acknowledgement of a write, or one attempt of a read, may stay out before the
	// chunkserver counts as failed. 0 means 10 s.
	AckTimeout time.Duration
	// LocationTTL is how long a chunk's location may be used without asking the master, so for how long a read may return
	// what another client has since cut off or replaced by truncation. (Overwrites and appends are always seen.) 0 means
	// 1 s; negative: every read asks.
	LocationTTL time.Duration
	// Readahead is the largest amount fetched ahead of a sequential reader, in bytes. 0 means 8 MiB; negative: none.
	Readahead int64
	// HedgeAfter is how long a read waits before it is sent to a second replica. 0: adaptive, from what is usual for
	// the server; negative: never.
	HedgeAfter time.Duration
	// NearServer is the chunkserver on the same host, preferred for reading and for the first replica; 0: none.
	NearServer dfs.ServerID
	// CacheNames makes Inodes answer from memory what attributes are and what names stand for, as far as the master has granted
	// leases: a recall takes them back before another client's change is acknowledged, so it is seen at once all the same. For mounts;
	// calls by path ask the master in any case.
	CacheNames bool
	// DataConns is how many connections carry data to each chunkserver. 0 means 1.
	DataConns int
	// Faults, in tests, decides the fate of each unary call.
	Faults rpc.FaultFunc
	// Umask is taken off the permission bits of what is created, as the umask of a process is.
	Umask uint32
}

// defaults of Config.
const (
	defaultOpTimeout   = 60 * time.Second
	defaultDialTimeout = 5 * time.Second
	defaultCallTimeout = 10 * time.Second
	defaultAckTimeout  = 10 * time.Second
	defaultLocationTTL = time.Second
	defaultReadahead   = 8 * dfs.MiB
)

// validate checks the configuration and fills in defaults.
func (c *Config) validate() error {
	if len(c.Masters) == 0 {
		return dfserr.Errorf(dfserr.ErrInvalid, "client: no master's address is given")
	}
	if slices.Contains(c.Masters, "") {
		return dfserr.Errorf(dfserr.ErrInvalid, "client: one of the masters' addresses %q is empty", c.Masters)
	}
	c.Masters = slices.Clone(c.Masters)
	if c.Caller == nil {
		caller := ProcessCaller()
		c.Caller = &caller
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "?"
		}
		c.Name = fmt.Sprintf("%s on %s, pid %d", filepath.Base(os.Args[0]), host, os.Getpid())
	}
	setDefault(&c.OpTimeout, defaultOpTimeout)
	setDefault(&c.DialTimeout, defaultDialTimeout)
	setDefault(&c.CallTimeout, defaultCallTimeout)
	setDefault(&c.AckTimeout, defaultAckTimeout)
	if c.LocationTTL == 0 {
		c.LocationTTL = defaultLocationTTL
	}
	if c.Readahead == 0 {
		c.Readahead = defaultReadahead
	}
	return nil
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d <= 0 {
		*d = v
	}
}

// randomID draws a number that is not zero.
func randomID() uint64 {
	for {
		if id := rand.Uint64(); id != 0 {
			return id
		}
	}
}
