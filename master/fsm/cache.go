package fsm

import (
	"encoding/binary"
	"hash/maphash"
	"sync"

	"dfs/internal/dfs"
	"dfs/master/chunks"
	"dfs/master/locks"
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
	mu    sync.Mutex
	ids   map[idKey]*entry  // guarded by mu; by keys that are one id
	names map[string]*entry // guarded by mu; by all other keys
	lru   entry             // guarded by mu; ring: lru.next is the most recently used
	bytes int64             // guarded by mu
	max   int64
	floor dfs.Index // guarded by mu
}

// idKey is a key that is one id, as those of inodes are. A map of them is much faster than one of strings, whose bytes lie elsewhere.
type idKey struct {
	id   uint64
	kind byte
}

// asID reads a key that is one id.
func asID(key []byte) (k idKey, ok bool) {
	if len(key) != prefixLen+8 || key[0] != kindInode && key[0] != kindChunk && key[0] != kindSession && key[0] != kindLocks {
		return idKey{}, false
	}
	return idKey{binary.BigEndian.Uint64(key[prefixLen:]), key[0]}, true
}

// find returns the entry of a key, or nil.
func (s *shard) find(key []byte) *entry {
	if k, ok := asID(key); ok {
		return s.ids[k]
	}
	return s.names[string(key)]
}

type entry struct {
	prev, next *entry
	id         idKey
	name       string // of a key that is not an idKey
	byID       bool
	value      any // nil: the key does not exist
	size       int64
	since      dfs.Index
	written    bool // put, not filled: raises floor when evicted
}

func newCache(maxBytes int64) *cache {
	c := &cache{seed: maphash.MakeSeed()}
	for i := range c.shards {
		s := &c.shards[i]
		s.ids, s.names = make(map[idKey]*entry), make(map[string]*entry)
		s.lru.prev, s.lru.next = &s.lru, &s.lru
		s.max = max(maxBytes/cacheShards, 1)
	}
	return c
}

func (c *cache) shard(key []byte) *shard {
	if k, ok := asID(key); ok {
		return &c.shards[k.id%cacheShards]
	}
	return &c.shards[maphash.Bytes(c.seed, key)%cacheShards]
}

// cached reports whether values of a key's kind are kept.
func cached(key []byte) bool {
	switch key[0] {
	case kindInode, kindDentry, kindFile, kindChunk, kindSession, kindLocks:
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
	e := s.find(key)
	if e == nil || e.since > at {
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
	e := s.find(key)
	if !written && (e != nil || index < s.floor) {
		return
	}
	if e == nil {
		e = &entry{}
		if e.id, e.byID = asID(key); e.byID {
			s.ids[e.id] = e
		} else {
			if name == "" {
				name = string(key)
			}
			e.name = name
			s.names[name] = e
		}
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
		if old.byID {
			delete(s.ids, old.id)
		} else {
			delete(s.names, old.name)
		}
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
	case *locks.Record:
		n += 64 * int64(1+len(v.Flock)+len(v.Posix))
	case nil:
	default:
		n += 96
	}
	return n
}
