package chunkserver

import (
	"sync"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// chunkTable finds the chunks' states. Idle ones are dropped beyond limit.
type chunkTable struct {
	srv   *Server
	limit int

	mu sync.Mutex
	m  map[dfs.ChunkID]*chunk // guarded by mu
}

// hardLimit is how many times the limit the table may grow to while nothing is idle.
const hardLimit = 16

// acquire returns the state of a chunk, made when there is none; release ends its use. ErrBusy: too many are in use.
func (t *chunkTable) acquire(id dfs.ChunkID) (*chunk, error) {
	if id == 0 {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "chunk id 0")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.m[id]
	if c == nil {
		if len(t.m) >= t.limit*hardLimit {
			return nil, dfserr.Errorf(dfserr.ErrBusy, "chunk %s: %d chunks are in use", id, len(t.m))
		}
		c = &chunk{id: id, srv: t.srv, token: make(chan struct{}, 1)}
		t.m[id] = c
	}
	c.refs++
	return c, nil
}

// find returns the state of a chunk if there is one, for a use that ends before the caller next blocks.
func (t *chunkTable) find(id dfs.ChunkID) *chunk {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.m[id]
}

func (t *chunkTable) release(c *chunk) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.refs--
	if c.refs == 0 {
		c.usedAt = time.Now()
	}
}

// all returns the chunks that are in the table.
func (t *chunkTable) all() []*chunk {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]*chunk, 0, len(t.m))
	for _, c := range t.m {
		list = append(list, c)
	}
	return list
}

// evict drops idle chunks that were unused for a minute, or, above the limit, for a second. It is safe at any time: a
// secondary without state refuses mutations until it is prepared again, and a primary is dropped only after it gave its
// lease back.
func (t *chunkTable) evict(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	keep := time.Minute
	if len(t.m) > t.limit {
		keep = time.Second
	} else if len(t.m) < t.limit/2 {
		keep = time.Hour
	}
	for id, c := range t.m {
		if c.refs > 0 || now.Sub(c.usedAt) < keep {
			continue
		}
		select {
		case c.token <- struct{}{}:
		default:
			continue
		}
		c.mu.Lock()
		idle := len(c.queue) == 0 && !c.working && c.flight == nil && c.resolving == nil && c.syncRun == nil &&
			!(c.role == rolePrimary && c.ready) && len(c.pending) == 0
		if idle {
			c.detachLocked()
			delete(t.m, id)
		}
		c.mu.Unlock()
		<-c.token
	}
}
