package fsm

import (
	"hash/maphash"
	"sync"

	"dfs/internal/dfs"
	"dfs/master/chunks"
	"dfs/master/namespace"
)

// cache holds decoded values by key, so that hot reads cost no Badger look-up and no decoding. Its size is bounded in bytes, as
// estimated by sizeOf; the least recently used go first. Values are shared and never modified.
//
// # Consistency
//
// A view as of index V must see exactly the state as of V. Each entry carries since: it is the value from index since on, up to now. Rules:
//
//  1. The writer puts every change of a cached kind, deletions too, with since = its index, before the index becomes visible in kv.
//  2. get at V returns an entry only when since <= V. Since the newest change is in the cache or evicted, an entry that is present is the newest
//     value; so it is the value as of any V >= since.
//  3. fill adds what a reader found in kv as of V, but only when the key is absent and V >= the shard's floor, which is the
//     highest since of any change evicted from the shard. Had the key changed after V, and that change been put, then it would be present,
//     or evicted with floor > V. If it is put later, it replaces the filled value; views that could miss it are below its index, and those do not see it.
//
// The cache belongs to one generation of the state: installing a snapshot replaces it.
type cache struct {
	seed   maphash.Seed
	shards [cacheShards]shard
}

const cacheShards = 32

type shard struct {
	mu      sync.Mutex
	entries map[string]*entry // guarded by mu
	lru     entry             // guarded by mu; ring: lru.next is the most recently used
	bytes   int64             // guarded by mu
	max     int64
	floor   dfs.Index // guarded by mu
}

type entry struct {
	prev, next *entry
	key        string
	value      any // nil: the key does not exist
	size       int64
	since      dfs.Index
	written    bool // put, not filled: raises floor when evicted
}

func newCache(maxBytes int64) *cache {
	c := &cache{seed: maphash.MakeSeed()}
	for i := range c.shards {
		s := &c.shards[i]
		s.entries = make(map[string]*entry)
		s.lru.prev, s.lru.next = &s.lru, &s.lru
		s.max = max(maxBytes/cacheShards, 1)
	}
	return c
}

func (c *cache) shard(key []byte) *shard {
	return &c.shards[maphash.Bytes(c.seed, key)%cacheShards]
}

// cached reports whether values of a key's kind are kept.
func cached(key []byte) bool {
	switch key[0] {
	case kindInode, kindDentry, kindFile, kindChunk, kindSession:
		return true
	case kindSetting:
		return string(key) == string(keyCounters)
	}
	return false
}

// get returns the value as of index at; nil and true says that the key does not exist.
func (c *cache) get(key []byte, at dfs.Index) (any, bool) {
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.entries[string(key)]
	if !ok || e.since > at {
		return nil, false
	}
	if s.lru.next != e {
		e.unlink()
		e.linkAfter(&s.lru)
	}
	return e.value, true
}

// put records a change made by index.
func (c *cache) put(key string, value any, index dfs.Index) {
	c.store([]byte(key), key, value, index, true)
}

// fill offers what kv holds as of index.
func (c *cache) fill(key []byte, value any, index dfs.Index) {
	c.store(key, "", value, index, false)
}

func (c *cache) store(key []byte, name string, value any, index dfs.Index, written bool) {
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.entries[string(key)]
	if !written && (ok || index < s.floor) {
		return
	}
	if !ok {
		if name == "" {
			name = string(key)
		}
		e = &entry{key: name}
		s.entries[name] = e
	} else {
		s.bytes -= e.size
		e.unlink()
	}
	e.value, e.since, e.written, e.size = value, index, written, sizeOf(key, value)
	e.linkAfter(&s.lru)
	s.bytes += e.size
	for s.bytes > s.max {
		old := s.lru.prev
		old.unlink()
		delete(s.entries, old.key)
		s.bytes -= old.size
		if old.written {
			s.floor = max(s.floor, old.since)
		}
	}
}

func (e *entry) unlink() {
	e.prev.next, e.next.prev = e.next, e.prev
}

func (e *entry) linkAfter(at *entry) {
	e.prev, e.next = at, at.next
	at.next.prev, at.next = e, e
}

// entryOverhead is what an entry costs besides its key and value: itself, its share of the map, and allocation headers.
const entryOverhead = 176

// sizeOf estimates what an entry takes in memory.
func sizeOf(key []byte, value any) int64 {
	n := int64(entryOverhead + len(key))
	switch v := value.(type) {
	case *namespace.Inode:
		n += 256 + int64(len(v.Target)+len(v.Inline))
	case *chunks.Record:
		n += 144 + int64(8*len(v.Replicas)+len(v.Seed))
	case nil:
	default:
		n += 96
	}
	return n
}
