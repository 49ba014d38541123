package master

import (
	"sync"
	"time"

	"dfs/internal/dfs"
)

// complaints remembers since when clients have complained about primaries that look well from here. At most
// maxComplaints, each for complaintMemory after the last one.
type complaints struct {
	mu   sync.Mutex
	open map[complaintKey]complaintTimes // guarded by mu
}

type complaintKey struct {
	chunk  dfs.ChunkID
	server dfs.ServerID
}

type complaintTimes struct {
	version     dfs.Version
	first, last time.Time
}

const (
	maxComplaints   = 10_000
	complaintMemory = 10 * time.Second
)

// repeated notes a complaint and reports whether the same one has been made for repeatFor already.
func (c *complaints) repeated(chunk dfs.ChunkID, server dfs.ServerID, version dfs.Version) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	k := complaintKey{chunk, server}
	t, ok := c.open[k]
	if !ok || t.version != version || now.Sub(t.last) > complaintMemory {
		if c.open == nil {
			c.open = map[complaintKey]complaintTimes{}
		}
		if len(c.open) >= maxComplaints {
			c.expireLocked(now)
		}
		if len(c.open) < maxComplaints {
			c.open[k] = complaintTimes{version, now, now}
		}
		return false
	}
	t.last = now
	c.open[k] = t
	return now.Sub(t.first) >= repeatFor
}

// forget drops what was said about a chunk's former configuration.
func (c *complaints) forget(chunk dfs.ChunkID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.open {
		if k.chunk == chunk {
			delete(c.open, k)
		}
	}
}

func (c *complaints) expireLocked(now time.Time) {
	for k, t := range c.open {
		if now.Sub(t.last) > complaintMemory {
			delete(c.open, k)
		}
	}
}
