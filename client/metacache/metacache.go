// Package metacache is a client's memory. Cache says, for a bounded number of chunks and a bounded time, where the chunks of files are: it
// holds values of any type under (inode, index of the chunk in the file), evicts the least recently used, and forgets
// by inode or from an index on when something says that they changed. Tree has attributes and names, under leases that the master recalls.
//
// It does no I/O and starts no goroutine.
package metacache

import (
	"container/list"
	"sync"
	"time"

	"dfs/internal/dfs"
)

// Cache maps (inode, chunk index) to V. The zero value is not usable; use New. Safe for concurrent use.
type Cache[V any] struct {
	limit int
	ttl   time.Duration

	mu     sync.Mutex
	recent list.List                               // guarded by mu: of *entry[V], most recently used first
	byFile map[dfs.InodeID]map[int64]*list.Element // guarded by mu: no empty inner maps
}

type entry[V any] struct {
	inode dfs.InodeID
	index int64
	value V
	putAt time.Time
}

// New returns a cache of at most limit chunks, at least one, whose entries are good for ttl after Put. A ttl that
// is not positive makes a cache that never returns anything.
func New[V any](limit int, ttl time.Duration) *Cache[V] {
	return &Cache[V]{limit: max(1, limit), ttl: ttl, byFile: map[dfs.InodeID]map[int64]*list.Element{}}
}

// Get returns what Put last stored, if it is still there and not older than the ttl.
func (c *Cache[V]) Get(inode dfs.InodeID, index int64) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var none V
	e := c.byFile[inode][index]
	if e == nil {
		return none, false
	}
	v := e.Value.(*entry[V])
	if time.Since(v.putAt) >= c.ttl {
		c.removeLocked(e)
		return none, false
	}
	c.recent.MoveToFront(e)
	return v.value, true
}

// Put stores a value, replacing what was there.
func (c *Cache[V]) Put(inode dfs.InodeID, index int64, value V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ttl <= 0 {
		return
	}
	if e := c.byFile[inode][index]; e != nil {
		v := e.Value.(*entry[V])
		v.value, v.putAt = value, time.Now()
		c.recent.MoveToFront(e)
		return
	}
	if c.recent.Len() >= c.limit {
		c.removeLocked(c.recent.Back())
	}
	file := c.byFile[inode]
	if file == nil {
		file = map[int64]*list.Element{}
		c.byFile[inode] = file
	}
	file[index] = c.recent.PushFront(&entry[V]{inode: inode, index: index, value: value, putAt: time.Now()})
}

// Drop forgets one chunk.
func (c *Cache[V]) Drop(inode dfs.InodeID, index int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byFile[inode][index]; e != nil {
		c.removeLocked(e)
	}
}

// InvalidateFrom forgets the chunks of a file from an index on, as after a truncation; from 0 it forgets the file.
func (c *Cache[V]) InvalidateFrom(inode dfs.InodeID, index int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, e := range c.byFile[inode] {
		if i >= index {
			c.removeLocked(e)
		}
	}
}

// Len returns how many chunks are held, including those past their ttl that nobody asked for since.
func (c *Cache[V]) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.recent.Len()
}

func (c *Cache[V]) removeLocked(e *list.Element) {
	v := c.recent.Remove(e).(*entry[V])
	file := c.byFile[v.inode]
	delete(file, v.index)
	if len(file) == 0 {
		delete(c.byFile, v.inode)
	}
}
