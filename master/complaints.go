package master

import (
	"context"
	"maps"
	"slices"
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

// verifications remembers which replicas servers were asked to verify of late: at most maxComplaints, each for verifyPause.
type verifications struct {
	mu    sync.Mutex
	begun map[complaintKey]time.Time // guarded by mu
}

// verifyPause is how long a replica is not verified again, whatever is said of it.
const verifyPause = 10 * time.Second

// begin reports whether a replica is to be verified now.
func (v *verifications) begin(chunk dfs.ChunkID, server dfs.ServerID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	now, k := time.Now(), complaintKey{chunk, server}
	if at, ok := v.begun[k]; ok && now.Sub(at) < verifyPause {
		return false
	}
	if len(v.begun) >= maxComplaints {
		maps.DeleteFunc(v.begun, func(_ complaintKey, at time.Time) bool { return now.Sub(at) >= verifyPause })
	}
	if len(v.begun) >= maxComplaints {
		return false
	}
	if v.begun == nil {
		v.begun = map[complaintKey]time.Time{}
	}
	v.begun[k] = now
	return true
}

// verifyReplica has a server read its replica whole, because somebody says that it is corrupt. Nothing else follows from such a word: the memory
// of whoever says so may be bad, or its intentions. What the server finds is as if its scrubber had found it.
func (m *leader) verifyReplica(chunk dfs.ChunkID, server dfs.ServerID, reason string) {
	r, err := m.chunkRecord(chunk)
	if err != nil || !slices.Contains(r.Replicas, server) || m.repairs.isCorrupt(chunk, server) || !m.verifying.begin(chunk, server) {
		return
	}
	m.background(func(ctx context.Context) {
		state, err := m.verifiedState(ctx, server, chunk)
		if err != nil {
			m.log.Warn("a replica said to be corrupt could not be verified", "chunk", chunk.String(), "server", server.String(), "reason", reason, "error", err)
			return
		}
		m.log.Warn("a replica said to be corrupt was verified", "chunk", chunk.String(), "server", server.String(), "reason", reason, "outcome", state.GetState())
		if state.GetState() == "corrupt" {
			m.repairs.corrupt(chunk, server)
		}
	})
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
