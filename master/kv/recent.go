package kv

// known is the newest committed state of one key, with the hash of the pair once that has been computed.
type known struct {
	change
	sum    Hash
	summed bool
}

// recentBytes bounds each half of a recent.
const recentBytes = 8 << 20

// knownOverhead is what one entry takes besides its key and value.
const knownOverhead = 128

// recent keeps the newest state of the keys that the writer has read or changed last, so that it seldom asks Badger: the same directories, counters and
// replies change again and again. It is in two halves: what is used goes to young; when young is full it becomes old, and what was old is forgotten. What is in young is
// never older than what is in old. It is owned by the writer's goroutine and belongs to one generation.
type recent struct {
	young, old map[string]known
	bytes      int // of young
}

func newRecent() *recent { return &recent{young: make(map[string]known)} }

func (r *recent) get(key []byte) (known, bool) {
	if k, ok := r.young[string(key)]; ok {
		return k, true
	}
	k, ok := r.old[string(key)]
	if ok {
		r.put(string(key), k)
	}
	return k, ok
}

func (r *recent) put(key string, k known) {
	if before, ok := r.young[key]; ok {
		r.bytes -= len(before.value)
	} else {
		r.bytes += len(key) + knownOverhead
	}
	r.bytes += len(k.value)
	r.young[key] = k
	if r.bytes > recentBytes {
		r.young, r.old, r.bytes = make(map[string]known), r.young, 0
	}
}
