package fsm

import (
	"encoding/binary"

	"google.golang.org/protobuf/proto"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/chunks"
	"dfs/master/kv"
	"dfs/master/locks"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

// changes are what the running command has written, in the order of first writes, so that every replica hands the same sequence to kv.
type changes struct {
	list  []change
	pos   map[string]int
	bytes int64 // estimate of what they take
}

type change struct {
	key   string
	value any // nil: deleted
}

func (c *changes) get(key []byte) (any, bool) {
	i, ok := c.pos[string(key)]
	if !ok {
		return nil, false
	}
	return c.list[i].value, true
}

func (c *changes) set(key []byte, value any) {
	c.bytes += sizeOf(key, value)
	if i, ok := c.pos[string(key)]; ok {
		c.bytes -= sizeOf(key, c.list[i].value)
		c.list[i].value = value
		return
	}
	k := string(key)
	c.pos[k] = len(c.list)
	c.list = append(c.list, change{k, value})
}

func (c *changes) reset() {
	clear(c.list)
	c.list = c.list[:0]
	clear(c.pos)
	c.bytes = 0
}

// txn is the state as the running command sees and changes it. Changes stay here, decoded, until commit; a command that fails leaves none.
// It implements namespace.Txn, chunks.Txn and locks.Txn.
type txn struct {
	reader
	index   dfs.Index
	store   *kv.Txn
	touched []dfs.InodeID // reused by FSM.tell
}

// begin starts the command of an index.
func (f *FSM) begin(index dfs.Index) *txn {
	t := &f.txn
	t.index = index
	t.store = f.db.Begin(index)
	t.reader.kv, t.reader.cache, t.reader.at, t.reader.err = t.store, f.cache.Load(), index-1, nil
	if t.dirty == nil {
		t.dirty = &changes{pos: make(map[string]int)}
	}
	t.dirty.reset()
	t.track, t.seen = true, t.seen[:0]
	return t
}

// inodes appends to list the inodes that the changes are of. Repetitions in a row are left out.
func (c *changes) inodes(list []dfs.InodeID) []dfs.InodeID {
	for i := range c.list {
		switch key := c.list[i].key; key[0] {
		case kindInode, kindDentry, kindXattr:
			id := dfs.InodeID(binary.BigEndian.Uint64([]byte(key[prefixLen : prefixLen+8])))
			if n := len(list); n == 0 || list[n-1] != id {
				list = append(list, id)
			}
		}
	}
	return list
}

// discard forgets the changes.
func (t *txn) discard() { t.dirty.reset() }

// stage hands the changes to kv. ErrTooBig: they are more than one index may have.
func (t *txn) stage() error {
	for i := range t.dirty.list {
		c := &t.dirty.list[i]
		key := []byte(c.key)
		if c.value == nil {
			if err := t.store.Delete(key); err != nil {
				return err
			}
			continue
		}
		value, err := encode(c.value)
		if err != nil {
			return err
		}
		if err := t.store.Set(key, value); err != nil {
			return err
		}
	}
	return nil
}

// commit gives the staged changes to the cache and commits them.
func (t *txn) commit() error {
	for i := range t.dirty.list {
		if c := &t.dirty.list[i]; cached([]byte(c.key)) {
			t.cache.put(c.key, c.value, t.index)
		}
	}
	return t.store.Commit()
}

func (t *txn) SetInode(id dfs.InodeID, n namespace.Inode) {
	t.buf = appendInodeKey(t.buf[:0], id)
	t.dirty.set(t.buf, &n)
}

func (t *txn) DeleteInode(id dfs.InodeID) {
	t.buf = appendInodeKey(t.buf[:0], id)
	t.dirty.set(t.buf, nil)
}

func (t *txn) SetDentry(dir dfs.InodeID, name []byte, d namespace.Dentry) {
	t.buf = appendDentryKey(t.buf[:0], dir, name)
	t.dirty.set(t.buf, d)
}

func (t *txn) DeleteDentry(dir dfs.InodeID, name []byte) {
	t.buf = appendDentryKey(t.buf[:0], dir, name)
	t.dirty.set(t.buf, nil)
}

func (t *txn) SetXattr(id dfs.InodeID, name, value []byte) {
	t.buf = appendXattrKey(t.buf[:0], id, name)
	t.dirty.set(t.buf, xattrValue(value))
}

func (t *txn) DeleteXattr(id dfs.InodeID, name []byte) {
	t.buf = appendXattrKey(t.buf[:0], id, name)
	t.dirty.set(t.buf, nil)
}

func (t *txn) SetOrphan(id dfs.InodeID, o namespace.Orphan) {
	t.buf = appendOrphanKey(t.buf[:0], id)
	t.dirty.set(t.buf, o)
}

func (t *txn) DeleteOrphan(id dfs.InodeID) {
	t.buf = appendOrphanKey(t.buf[:0], id)
	t.dirty.set(t.buf, nil)
}

// SetTotals stores the namespace's part of the counters. They were read before, or there are none yet.
func (t *txn) SetTotals(n namespace.Totals) {
	c, err := t.counters()
	if err != nil {
		return // kept by fail: the command stops the replica
	}
	c.Totals = n
	t.dirty.set(keyCounters, c)
}

func (t *txn) SetChunk(id dfs.ChunkID, r chunks.Record) {
	t.buf = appendChunkKey(t.buf[:0], id)
	t.dirty.set(t.buf, &r)
}

func (t *txn) DeleteChunk(id dfs.ChunkID) {
	t.buf = appendChunkKey(t.buf[:0], id)
	t.dirty.set(t.buf, nil)
}

func (t *txn) SetFileChunk(inode dfs.InodeID, index int64, id dfs.ChunkID) {
	t.buf = appendFileKey(t.buf[:0], inode, index)
	t.dirty.set(t.buf, fileChunk(id))
}

func (t *txn) DeleteFileChunk(inode dfs.InodeID, index int64) {
	t.buf = appendFileKey(t.buf[:0], inode, index)
	t.dirty.set(t.buf, nil)
}

func (t *txn) SetGarbage(index dfs.Index, id dfs.ChunkID, g chunks.Garbage) {
	t.buf = appendGarbageKey(t.buf[:0], index, id)
	t.dirty.set(t.buf, g)
}

func (t *txn) DeleteGarbage(index dfs.Index, id dfs.ChunkID) {
	t.buf = appendGarbageKey(t.buf[:0], index, id)
	t.dirty.set(t.buf, nil)
}

// SetChunkTotals stores the chunks' part of the counters.
func (t *txn) SetChunkTotals(n chunks.Totals) {
	c, err := t.counters()
	if err != nil {
		return // kept by fail: the command stops the replica
	}
	c.chunk = n
	t.dirty.set(keyCounters, c)
}

func (t *txn) SetLocks(inode dfs.InodeID, r locks.Record) {
	t.buf = appendLocksKey(t.buf[:0], inode)
	t.dirty.set(t.buf, &r)
}

func (t *txn) DeleteLocks(inode dfs.InodeID) {
	t.buf = appendLocksKey(t.buf[:0], inode)
	t.dirty.set(t.buf, nil)
}

func (t *txn) Mark(id dfs.SessionID, inode dfs.InodeID) {
	t.buf = appendMarkKey(t.buf[:0], id, inode)
	t.dirty.set(t.buf, &dfsv1.LockMark{})
}

func (t *txn) Unmark(id dfs.SessionID, inode dfs.InodeID) {
	t.buf = appendMarkKey(t.buf[:0], id, inode)
	t.dirty.set(t.buf, nil)
}

// SetLockedFiles stores a session's count.
func (t *txn) SetLockedFiles(id dfs.SessionID, n int64) {
	t.setSession(id, func(s *dfsv1.SessionRecord) { s.LockedFiles = n })
}

// setSession changes a copy of a session's record, if there is one.
func (t *txn) setSession(id dfs.SessionID, fn func(s *dfsv1.SessionRecord)) {
	old, err := t.Session(id)
	if err != nil || old == nil {
		return // an error is kept by fail: the command stops the replica
	}
	s := &dfsv1.SessionRecord{}
	proto.Merge(s, old)
	fn(s)
	t.buf = appendSessionKey(t.buf[:0], id)
	t.dirty.set(t.buf, s)
}

// reply returns what the ring remembers in the slot of a request, nil when the slot is empty.
func (t *txn) reply(session dfs.SessionID, seq uint64) (*dfsv1.CachedReply, error) {
	t.buf = appendReplyKey(t.buf[:0], session, seq)
	v, err := t.load(t.buf)
	if v == nil {
		return nil, err
	}
	r, ok := v.(*dfsv1.CachedReply)
	if !ok {
		return nil, t.fail(dfserr.Errorf(dfserr.ErrCorrupt, "value of key %q", t.buf))
	}
	return r, nil
}

func (t *txn) setReply(session dfs.SessionID, r *dfsv1.CachedReply) {
	t.buf = appendReplyKey(t.buf[:0], session, r.GetSeq())
	t.dirty.set(t.buf, r)
}
