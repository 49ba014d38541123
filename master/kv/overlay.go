package kv

import (
	"slices"
	"strings"
)

// change is the newest state of one key in an overlay: a value, or gone.
type change struct {
	value []byte
	gone  bool
}

// changeOverhead is what a change counts for besides its key and value. Badger bounds a transaction in entries too, at one for each 96 bytes of
// its bound in bytes; with this the bound in bytes covers both.
const changeOverhead = 128

// overlay holds changes by key and gives them back in key order. It is owned by the writer's goroutine.
type overlay struct {
	changes map[string]change
	keys    sortedKeys
	fresh   []string // keys of changes that are not in keys yet: most batches are never asked for their order
	bytes   int
}

func newOverlay() *overlay { return &overlay{changes: make(map[string]change)} }

func (o *overlay) get(key []byte) (change, bool) {
	c, ok := o.changes[string(key)]
	return c, ok
}

func (o *overlay) put(key string, c change) {
	if old, ok := o.changes[key]; ok {
		o.bytes -= len(old.value)
	} else {
		o.fresh = append(o.fresh, key)
		o.bytes += len(key) + changeOverhead
	}
	o.bytes += len(c.value)
	o.changes[key] = c
}

func (o *overlay) reset() {
	clear(o.changes)
	o.keys.blocks = o.keys.blocks[:0]
	clear(o.fresh)
	o.fresh = o.fresh[:0]
	o.bytes = 0
}

// from returns the changed keys that have the prefix and are not below start, ascending.
func (o *overlay) from(start, prefix string) []string {
	for _, k := range o.fresh {
		o.keys.insert(k)
	}
	o.fresh = o.fresh[:0]
	return o.keys.from(start, prefix)
}

// keyBlock bounds how many keys one insertion moves.
const keyBlock = 128

// sortedKeys is an ordered set of strings in blocks of at most keyBlock: every block is ascending and below the next one.
// A batch holds a few thousand keys, for which this beats a tree.
type sortedKeys struct{ blocks [][]string }

// insert adds a key that is not in the set.
func (s *sortedKeys) insert(key string) {
	if len(s.blocks) == 0 {
		s.blocks = append(s.blocks, append(make([]string, 0, keyBlock), key))
		return
	}
	b := max(0, s.block(key))
	block := s.blocks[b]
	at, _ := slices.BinarySearch(block, key)
	block = slices.Insert(block, at, key)
	if len(block) < keyBlock {
		s.blocks[b] = block
		return
	}
	half := len(block) / 2
	s.blocks = slices.Insert(s.blocks, b+1, append(make([]string, 0, keyBlock), block[half:]...))
	s.blocks[b] = block[:half]
}

// block returns the last block whose first key is not above key, or -1.
func (s *sortedKeys) block(key string) int {
	at, found := slices.BinarySearchFunc(s.blocks, key, func(b []string, k string) int { return strings.Compare(b[0], k) })
	if found {
		return at
	}
	return at - 1
}

// from returns the keys that have the prefix and are not below start, ascending, as a copy.
func (s *sortedKeys) from(start, prefix string) []string {
	var out []string
	for b := max(0, s.block(start)); b < len(s.blocks); b++ {
		block := s.blocks[b]
		at, _ := slices.BinarySearch(block, start)
		for _, k := range block[at:] {
			if !strings.HasPrefix(k, prefix) {
				if k > prefix {
					return out
				}
				continue
			}
			out = append(out, k)
		}
	}
	return out
}
