package fsm

import (
	"bytes"
	"encoding/binary"

	"google.golang.org/protobuf/proto"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/chunks"
	"dfs/master/locks"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

// backend is what a reader needs of kv.Txn and kv.ReadTxn.
type backend interface {
	Get(key []byte) ([]byte, bool, error)
	Iterate(prefix, after []byte, fn func(key, value []byte) bool) error
}

// reader gives typed access to the state as of one index: through the running command's changes, if there are any, the cache, and kv. It
// implements the reading parts of namespace.Txn, chunks.Txn and locks.Txn. Not safe for concurrent use: it reuses its key buffer.
type reader struct {
	kv    backend
	cache *cache // nil: none
	at    dfs.Index
	dirty *changes // nil in a view
	err   error    // first failure of kv or of decoding
	buf   []byte

	track bool          // note in seen which inodes are looked at
	seen  []dfs.InodeID // also those whose entries are
}

func (r *reader) note(id dfs.InodeID) {
	if n := len(r.seen); r.track && (n == 0 || r.seen[n-1] != id) {
		r.seen = append(r.seen, id)
	}
}

// fail keeps the first error that is the storage's, not the operation's.
func (r *reader) fail(err error) error {
	if r.err == nil {
		r.err = err
	}
	return err
}

// load returns the decoded value of a key, nil when there is none. The value is shared and must not be modified.
func (r *reader) load(key []byte) (any, error) {
	if r.dirty != nil {
		if v, ok := r.dirty.get(key); ok {
			return v, nil
		}
	}
	keep := r.cache != nil && cached(key)
	if keep {
		if v, ok := r.cache.get(key, r.at); ok {
			return v, nil
		}
	}
	value, ok, err := r.kv.Get(key)
	if err != nil {
		return nil, r.fail(err)
	}
	var v any
	if ok {
		if v, err = decode(key, value); err != nil {
			return nil, r.fail(err)
		}
	}
	if keep {
		r.cache.fill(key, v, r.at)
	}
	return v, nil
}

// scan calls fn with the keys under a prefix (without it) that are above after (without it, nil: all) and their decoded values, until it returns
// false. Changes of the running command are not seen. fn must not keep suffix.
func (r *reader) scan(prefix, after []byte, fn func(suffix []byte, v any) bool) error {
	if after != nil {
		after = append(bytes.Clone(prefix), after...)
	}
	var inner error
	err := r.kv.Iterate(prefix, after, func(key, value []byte) bool {
		v, err := decode(key, value)
		if err != nil {
			inner = err
			return false
		}
		return fn(key[len(prefix):], v)
	})
	if err == nil {
		err = inner
	}
	if err != nil {
		return r.fail(err)
	}
	return nil
}

// Inode returns an inode; namespace.Reader.
func (r *reader) Inode(id dfs.InodeID) (namespace.Inode, bool, error) {
	n, err := r.inode(id)
	if n == nil {
		return namespace.Inode{}, false, err
	}
	return *n, true, nil
}

// inode is Inode without the copy.
func (r *reader) inode(id dfs.InodeID) (*namespace.Inode, error) {
	r.note(id)
	r.buf = appendInodeKey(r.buf[:0], id)
	v, err := r.load(r.buf)
	if v == nil {
		return nil, err
	}
	return v.(*namespace.Inode), nil
}

// Dentry returns what a name in a directory stands for; namespace.Reader.
func (r *reader) Dentry(dir dfs.InodeID, name []byte) (namespace.Dentry, bool, error) {
	r.note(dir)
	r.buf = appendDentryKey(r.buf[:0], dir, name)
	v, err := r.load(r.buf)
	if v == nil {
		return namespace.Dentry{}, false, err
	}
	return v.(namespace.Dentry), true, nil
}

// Dentries walks a directory in byte order of names; namespace.Reader.
func (r *reader) Dentries(dir dfs.InodeID, after []byte, fn func(name []byte, d namespace.Dentry) bool) error {
	r.note(dir)
	prefix := appendDentryKey(nil, dir, nil)
	var from []byte
	if len(after) > 0 {
		from = append(bytes.Clone(prefix), after...)
	}
	// As scan, but with one message for all entries: directories are long.
	var m dfsv1.Dentry
	var inner error
	err := r.kv.Iterate(prefix, from, func(key, value []byte) bool {
		if err := proto.Unmarshal(value, &m); err != nil {
			inner = dfserr.Errorf(dfserr.ErrCorrupt, "value of key %q: %v", key, err)
			return false
		}
		return fn(key[len(prefix):], namespace.Dentry{Inode: dfs.InodeID(m.GetInode()), Type: m.GetType()})
	})
	if err == nil {
		err = inner
	}
	if err != nil {
		return r.fail(err)
	}
	return nil
}

// Xattr returns an extended attribute; namespace.Reader. The value is shared.
func (r *reader) Xattr(id dfs.InodeID, name []byte) ([]byte, bool, error) {
	r.buf = appendXattrKey(r.buf[:0], id, name)
	v, err := r.load(r.buf)
	if v == nil {
		return nil, false, err
	}
	return v.(xattrValue), true, nil
}

// XattrNames walks an inode's extended attributes; namespace.Reader.
func (r *reader) XattrNames(id dfs.InodeID, fn func(name []byte) bool) error {
	return r.scan(appendXattrKey(nil, id, nil), nil, func(name []byte, _ any) bool { return fn(name) })
}

// Orphan returns the orphan record of an inode.
func (r *reader) Orphan(id dfs.InodeID) (namespace.Orphan, bool, error) {
	r.buf = appendOrphanKey(r.buf[:0], id)
	v, err := r.load(r.buf)
	if v == nil {
		return namespace.Orphan{}, false, err
	}
	return v.(namespace.Orphan), true, nil
}

// Chunk returns a chunk's record.
func (r *reader) Chunk(id dfs.ChunkID) (chunks.Record, bool, error) {
	r.buf = appendChunkKey(r.buf[:0], id)
	v, err := r.load(r.buf)
	if v == nil {
		return chunks.Record{}, false, err
	}
	return *v.(*chunks.Record), true, nil
}

// FileChunk returns the chunk at an index of a file; false is a hole.
func (r *reader) FileChunk(inode dfs.InodeID, index int64) (dfs.ChunkID, bool, error) {
	r.buf = appendFileKey(r.buf[:0], inode, index)
	v, err := r.load(r.buf)
	if v == nil {
		return 0, false, err
	}
	return dfs.ChunkID(v.(fileChunk)), true, nil
}

// FileChunks calls fn for a file's chunks from an index on, ascending, until it returns false.
func (r *reader) FileChunks(inode dfs.InodeID, from int64, fn func(index int64, id dfs.ChunkID) bool) error {
	var after []byte
	if from > 0 {
		after = binary.BigEndian.AppendUint64(nil, uint64(from-1))
	}
	var inner error
	err := r.scan(appendID(nil, kindFile, uint64(inode)), after, func(suffix []byte, v any) bool {
		index, err := idAt(suffix, 0)
		if err != nil {
			inner = r.fail(err)
			return false
		}
		return fn(int64(index), dfs.ChunkID(v.(fileChunk)))
	})
	if err == nil {
		err = inner
	}
	return err
}

// Garbage returns a garbage record.
func (r *reader) Garbage(index dfs.Index, id dfs.ChunkID) (chunks.Garbage, bool, error) {
	r.buf = appendGarbageKey(r.buf[:0], index, id)
	v, err := r.load(r.buf)
	if v == nil {
		return chunks.Garbage{}, false, err
	}
	return v.(chunks.Garbage), true, nil
}

// Locks returns the locks on a file. They are shared.
func (r *reader) Locks(inode dfs.InodeID) (locks.Record, bool, error) {
	r.buf = appendLocksKey(r.buf[:0], inode)
	v, err := r.load(r.buf)
	if v == nil {
		return locks.Record{}, false, err
	}
	return *v.(*locks.Record), true, nil
}

// Marks calls fn with the files that a session has locks on, ascending, until it returns false.
func (r *reader) Marks(id dfs.SessionID, fn func(inode dfs.InodeID) bool) error {
	var inner error
	err := r.scan(appendID(nil, kindMark, uint64(id)), nil, func(suffix []byte, _ any) bool {
		inode, err := idAt(suffix, 0)
		if err != nil {
			inner = r.fail(err)
			return false
		}
		return fn(dfs.InodeID(inode))
	})
	if err == nil {
		err = inner
	}
	return err
}

// LockedFiles returns how many files a session has locks on; none when there is no such session.
func (r *reader) LockedFiles(id dfs.SessionID) (int64, error) {
	s, err := r.Session(id)
	return s.GetLockedFiles(), err
}

func (r *reader) counters() (counters, error) {
	v, err := r.load(keyCounters)
	if v == nil {
		return counters{}, err
	}
	return v.(counters), nil
}

// Totals returns the namespace's counts and its next inode id.
func (r *reader) Totals() (namespace.Totals, error) {
	c, err := r.counters()
	return c.Totals, err
}

// ChunkTotals returns the chunks' counts and the next chunk id.
func (r *reader) ChunkTotals() (chunks.Totals, error) {
	c, err := r.counters()
	return c.chunk, err
}

// Session returns a session's record, nil when there is none. It is shared.
func (r *reader) Session(id dfs.SessionID) (*dfsv1.SessionRecord, error) {
	r.buf = appendSessionKey(r.buf[:0], id)
	v, err := r.load(r.buf)
	if v == nil {
		return nil, err
	}
	return v.(*dfsv1.SessionRecord), nil
}

// Server returns the record of a chunkserver, nil when there is none.
func (r *reader) Server(id dfs.ServerID) (*dfsv1.ServerRecord, error) {
	r.buf = appendServerKey(r.buf[:0], id)
	v, err := r.load(r.buf)
	if v == nil {
		return nil, err
	}
	return v.(*dfsv1.ServerRecord), nil
}

// Cluster returns the cluster's id, 0 before FormatCommand.
func (r *reader) Cluster() (dfs.ClusterID, error) {
	v, err := r.load(keyCluster)
	if v == nil {
		return 0, err
	}
	c, ok := v.(*dfsv1.ClusterRecord)
	if !ok {
		return 0, r.fail(dfserr.Errorf(dfserr.ErrCorrupt, "value of key %q", keyCluster))
	}
	return dfs.ClusterID(c.GetClusterId()), nil
}
