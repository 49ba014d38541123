package fsm

import (
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/chunks"
	"dfs/master/kv"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

// View is the state as of one index. It implements namespace.Reader, so that the functions of package namespace work on it. It belongs to one
// goroutine and must be closed; keep it short, because installing a snapshot waits for it. Values it returns are shared: they must
// not be modified, and may be kept.
type View struct {
	reader
	txn *kv.ReadTxn
}

// View returns the state as of the newest index that is visible.
func (f *FSM) View() (*View, error) { return f.view(f.db.Read) }

// ViewAt returns the state as of an index: ErrUnavailable when it is not applied yet, ErrNotExist when its history is gone.
func (f *FSM) ViewAt(index dfs.Index) (*View, error) {
	return f.view(func() (*kv.ReadTxn, error) { return f.db.ReadAt(index) })
}

// view pairs a read transaction with the cache of its generation: the one that was there both before and after the transaction began.
func (f *FSM) view(open func() (*kv.ReadTxn, error)) (*View, error) {
	before := f.cache.Load()
	txn, err := open()
	if err != nil {
		return nil, err
	}
	v := &View{txn: txn, reader: reader{kv: txn, at: txn.Index(), buf: make([]byte, 0, 64)}}
	if f.cache.Load() == before {
		v.cache = before
	}
	return v, nil
}

// Index returns the index that the view is as of.
func (v *View) Index() dfs.Index { return v.at }

// Track makes the view note which inodes it is asked about from now on; Seen returns them.
func (v *View) Track() { v.track = true }

// Seen returns the inodes whose attributes or entries were looked at since Track, perhaps repeatedly. The slice may be kept once the view is closed.
func (v *View) Seen() []dfs.InodeID { return v.seen }

// Close ends the view. Once.
func (v *View) Close() { v.txn.Close() }

// Resolve walks a reference; errors as of namespace.Resolve.
func (v *View) Resolve(c namespace.Caller, ref namespace.Ref) (dfs.InodeID, namespace.Inode, error) {
	return namespace.Resolve(v, c, ref)
}

// LookupPath walks a request's reference and returns the attributes of what it names; errors as of namespace.Resolve.
func (v *View) LookupPath(c *dfsv1.Caller, ref *dfsv1.Ref) (*dfsv1.Attr, error) {
	id, n, err := namespace.Resolve(v, CallerOf(c), RefOf(ref))
	if err != nil {
		return nil, err
	}
	return AttrOf(id, &n), nil
}

// Open walks a request's reference and checks that the caller may read and write what it names, as asked. Errors: of Resolve; ErrPermission;
// ErrIsDir for writing a directory.
func (v *View) Open(c *dfsv1.Caller, ref *dfsv1.Ref, read, write bool) (dfs.InodeID, namespace.Inode, error) {
	caller := CallerOf(c)
	id, n, err := namespace.Resolve(v, caller, RefOf(ref))
	if err != nil {
		return 0, namespace.Inode{}, err
	}
	if write && n.IsDir() {
		return 0, namespace.Inode{}, dfserr.Errorf(dfserr.ErrIsDir, "inode %d", id)
	}
	var want namespace.Access
	if read {
		want |= namespace.Read
	}
	if write {
		want |= namespace.Write
	}
	return id, n, namespace.Check(caller, id, &n, want)
}

// GetInode returns an inode by its id; ErrStaleInode when it is gone.
func (v *View) GetInode(id dfs.InodeID) (namespace.Inode, error) { return namespace.Get(v, id) }

// Attr returns an inode's attributes by its id; ErrStaleInode when it is gone.
func (v *View) Attr(id dfs.InodeID) (*dfsv1.Attr, error) {
	n, err := v.inode(id)
	if err != nil {
		return nil, err
	}
	if n == nil {
		return nil, dfserr.Errorf(dfserr.ErrStaleInode, "inode %d", id)
	}
	return AttrOf(id, n), nil
}

// Bounds of a page of a directory, in entries.
const (
	defaultPage = 1000
	maxPage     = 4096
)

// Page is a part of a directory.
type Page struct {
	Dir     *dfsv1.Attr
	Entries []*dfsv1.DirEntry // in byte order of names
	End     bool              // no name follows
}

// ReadDir returns the entries of a directory with names above after (empty: from the first), at most limit of them (0: 1000; at most 4096). The attributes
// are complete, unless namesOnly or the caller may not search the directory: then they are the inode and the type. Errors: of Resolve;
// ErrNotDir; ErrPermission.
func (v *View) ReadDir(c *dfsv1.Caller, ref *dfsv1.Ref, after []byte, limit int, namesOnly bool) (Page, error) {
	caller := CallerOf(c)
	id, dir, err := namespace.Resolve(v, caller, RefOf(ref))
	if err != nil {
		return Page{}, err
	}
	if !dir.IsDir() {
		return Page{}, dfserr.Errorf(dfserr.ErrNotDir, "inode %d", id)
	}
	if err := namespace.Check(caller, id, &dir, namespace.Read); err != nil {
		return Page{}, err
	}
	namesOnly = namesOnly || namespace.Check(caller, id, &dir, namespace.Exec) != nil
	return v.readDir(id, &dir, after, limit, namesOnly)
}

func (v *View) readDir(id dfs.InodeID, dir *namespace.Inode, after []byte, limit int, namesOnly bool) (Page, error) {
	if limit <= 0 {
		limit = defaultPage
	}
	limit = min(limit, maxPage)
	page := Page{Dir: AttrOf(id, dir), End: true}
	size := int(min(int64(limit), dir.Entries))
	page.Entries = make([]*dfsv1.DirEntry, 0, size)
	// The messages and names of a page are allocated together.
	entries, attrs, names := make([]dfsv1.DirEntry, size), make([]dfsv1.Attr, size), make([]byte, 0, 16*size)
	var inner error
	err := v.Dentries(id, after, func(name []byte, d namespace.Dentry) bool {
		i := len(page.Entries)
		if i == limit {
			page.End = false
			return false
		}
		if i == size {
			inner = v.fail(dfserr.Errorf(dfserr.ErrCorrupt, "directory %d counts %d entries, and has more", id, dir.Entries))
			return false
		}
		if namesOnly {
			attrs[i].Inode, attrs[i].Mode = uint64(d.Inode), d.Type
		} else {
			n, err := v.inode(d.Inode)
			if err == nil && n == nil {
				err = v.fail(dfserr.Errorf(dfserr.ErrCorrupt, "%q in directory %d stands for inode %d, which does not exist", name, id, d.Inode))
			}
			if err != nil {
				inner = err
				return false
			}
			setAttr(&attrs[i], d.Inode, n)
		}
		start := len(names)
		names = append(names, name...)
		entries[i].Name, entries[i].Attr = names[start:len(names):len(names)], &attrs[i]
		page.Entries = append(page.Entries, &entries[i])
		return true
	})
	if err == nil {
		err = inner
	}
	return page, err
}

// GetXattr returns an extended attribute; errors as of namespace.GetXattr.
func (v *View) GetXattr(c *dfsv1.Caller, ref *dfsv1.Ref, name []byte) ([]byte, error) {
	return namespace.GetXattr(v, CallerOf(c), RefOf(ref), name)
}

// ListXattr returns the names of the extended attributes that the caller may see.
func (v *View) ListXattr(c *dfsv1.Caller, ref *dfsv1.Ref) ([][]byte, error) {
	return namespace.ListXattr(v, CallerOf(c), RefOf(ref))
}

// Stats are the state's counts.
type Stats struct {
	Inodes, Directories int64
	Bytes               int64 // sum of the committed lengths of files
	Chunks              int64
	Orphans             int64 // inodes without a name
	Garbage             int64 // deleted chunks whose replicas may still exist
}

// Stats returns the state's counts.
func (v *View) Stats() (Stats, error) {
	c, err := v.counters()
	return Stats{
		Inodes: c.Inodes, Directories: c.Directories, Bytes: c.Bytes, Orphans: c.Orphans, Chunks: c.chunk.Chunks, Garbage: c.chunk.Garbage,
	}, err
}

// Config returns a chunk's configuration with server ids only, nil when there is no such chunk.
func (v *View) Config(id dfs.ChunkID) (*dfsv1.ChunkConfig, error) {
	r, ok, err := v.Chunk(id)
	if err != nil || !ok {
		return nil, err
	}
	return ConfigOf(id, &r), nil
}

// maxChunks bounds what FileConfigs returns.
const maxChunks = 1024

// FileConfigs returns the configurations of the chunks of a file at indexes [first, first+count), leaving out holes. count is at most 1024.
func (v *View) FileConfigs(inode dfs.InodeID, first int64, count int) ([]*dfsv1.ChunkConfig, error) {
	if first < 0 || count < 0 {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "chunks from %d, %d of them", first, count)
	}
	count = min(count, maxChunks)
	var out []*dfsv1.ChunkConfig
	if count <= 2 { // not worth an iterator
		for index := first; index < first+int64(count); index++ {
			id, ok, err := v.FileChunk(inode, index)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			if out, err = v.appendConfig(out, inode, id); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	var inner error
	err := v.FileChunks(inode, first, func(index int64, id dfs.ChunkID) bool {
		if index >= first+int64(count) {
			return false
		}
		out, inner = v.appendConfig(out, inode, id)
		return inner == nil
	})
	if err == nil {
		err = inner
	}
	return out, err
}

func (v *View) appendConfig(out []*dfsv1.ChunkConfig, inode dfs.InodeID, id dfs.ChunkID) ([]*dfsv1.ChunkConfig, error) {
	r, ok, err := v.Chunk(id)
	if err != nil {
		return out, err
	}
	if !ok {
		return out, v.fail(dfserr.Errorf(dfserr.ErrCorrupt, "chunk %s of inode %d has no record", id, inode))
	}
	return append(out, ConfigOf(id, &r)), nil
}

// LastConfig returns the configuration of a file's last chunk, nil when the file has none.
func (v *View) LastConfig(inode dfs.InodeID) (*dfsv1.ChunkConfig, error) {
	n, err := v.inode(inode)
	if err != nil || n == nil || n.Chunks == 0 {
		return nil, err
	}
	configs, err := v.FileConfigs(inode, n.Chunks-1, 1)
	if err != nil || len(configs) == 0 {
		return nil, err
	}
	return configs[0], nil
}

// scanIDs is scan over keys that are one id.
func (v *View) scanIDs(prefix []byte, after uint64, fn func(id uint64, value any) bool) error {
	var from []byte
	if after > 0 {
		from = appendID(nil, 0, after)[prefixLen:]
	}
	var inner error
	err := v.scan(prefix, from, func(suffix []byte, value any) bool {
		id, err := idAt(suffix, 0)
		if err != nil {
			inner = v.fail(err)
			return false
		}
		return fn(id, value)
	})
	if err == nil {
		err = inner
	}
	return err
}

// Chunks calls fn with the records of chunks with ids above after, ascending, until it returns false. The records are shared.
func (v *View) Chunks(after dfs.ChunkID, fn func(id dfs.ChunkID, r *chunks.Record) bool) error {
	return v.scanIDs([]byte{kindChunk, '/'}, uint64(after), func(id uint64, value any) bool { return fn(dfs.ChunkID(id), value.(*chunks.Record)) })
}

// Inodes calls fn with inodes with ids above after, ascending, until it returns false. The inodes are shared.
func (v *View) Inodes(after dfs.InodeID, fn func(id dfs.InodeID, n *namespace.Inode) bool) error {
	return v.scanIDs([]byte{kindInode, '/'}, uint64(after), func(id uint64, value any) bool { return fn(dfs.InodeID(id), value.(*namespace.Inode)) })
}

// Orphans calls fn with the inodes above after that have no name, ascending, until it returns false.
func (v *View) Orphans(after dfs.InodeID, fn func(id dfs.InodeID, o namespace.Orphan) bool) error {
	return v.scanIDs([]byte{kindOrphan, '/'}, uint64(after), func(id uint64, value any) bool { return fn(dfs.InodeID(id), value.(namespace.Orphan)) })
}

// GarbageID names a garbage record: the index of the command that deleted the chunk, and the chunk.
type GarbageID struct {
	Index dfs.Index
	Chunk dfs.ChunkID
}

// GarbageList calls fn with the deleted chunks above after (zero: from the first), oldest first, until it returns false.
func (v *View) GarbageList(after GarbageID, fn func(id GarbageID, g chunks.Garbage) bool) error {
	var from []byte
	if after != (GarbageID{}) {
		from = appendGarbageKey(nil, after.Index, after.Chunk)[prefixLen:]
	}
	var inner error
	err := v.scan([]byte{kindGarbage, '/'}, from, func(suffix []byte, value any) bool {
		index, err := idAt(suffix, 0)
		if err == nil {
			var chunk uint64
			if chunk, err = idAt(suffix, 8); err == nil {
				return fn(GarbageID{dfs.Index(index), dfs.ChunkID(chunk)}, value.(chunks.Garbage))
			}
		}
		inner = v.fail(err)
		return false
	})
	if err == nil {
		err = inner
	}
	return err
}

// Sessions calls fn with all sessions, ascending, until it returns false.
func (v *View) Sessions(fn func(id dfs.SessionID, s *dfsv1.SessionRecord) bool) error {
	return v.scanIDs([]byte{kindSession, '/'}, 0, func(id uint64, value any) bool { return fn(dfs.SessionID(id), value.(*dfsv1.SessionRecord)) })
}

// Servers calls fn with all chunkservers that have ever registered, ascending, until it returns false.
func (v *View) Servers(fn func(id dfs.ServerID, s *dfsv1.ServerRecord) bool) error {
	return v.scanIDs(keyServers, 0, func(id uint64, value any) bool { return fn(dfs.ServerID(id), value.(*dfsv1.ServerRecord)) })
}
