package client

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"dfs/client/chunkio"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// File is an open file or directory. Files from WithContext share everything but the context with their origin.
type File struct {
	*file
	ctx context.Context
}

var (
	_ fs.File         = (*File)(nil)
	_ fs.ReadDirFile  = (*File)(nil)
	_ io.ReaderAt     = (*File)(nil)
	_ io.WriterAt     = (*File)(nil)
	_ io.Seeker       = (*File)(nil)
	_ io.ReaderFrom   = (*File)(nil)
	_ io.WriterTo     = (*File)(nil)
	_ io.StringWriter = (*File)(nil)
)

// file is the state that all views of an open file share.
type file struct {
	c         *Client
	name      string
	shown     string // last name, as Stat shows it
	inode     dfs.InodeID
	chunkSize int64
	isDir     bool
	flag      int
	handle    uint64 // under which the master counts this handle; 0: it does not
	asWriter  bool   // as one for writing
	owner     uint64 // of the locks taken through this handle without an explicit owner
	begun     uint64 // lockTable.losses when it was opened

	posMu sync.Mutex // serialises what uses the position
	pos   int64      // guarded by posMu
	seq   readAhead  // guarded by posMu
	list  dirCursor  // guarded by posMu

	grow chan struct{} // held while chunks are being located or added for writing

	mu       sync.Mutex
	closed   bool                         // guarded by mu
	err      error                        // guarded by mu: of a failed write; stays
	inline   bool                         // guarded by mu: as far as known, the content is in the inode
	chunks   int64                        // guarded by mu: chunks the file is known to have had
	writers  map[int64]*chunkio.Writer    // guarded by mu: by index of the chunk
	tail     int64                        // guarded by mu: index of the chunk to append to, -1 when not known
	tailAt   time.Time                    // guarded by mu: when that was learnt
	tailMin  int64                        // guarded by mu: least offset in it
	dirty    map[int64]struct{}           // guarded by mu: chunks with acknowledged, unsynced data
	modified bool                         // guarded by mu: chunk data was written since the length was recorded
	end      written                      // guarded by mu: the highest byte written
	changes  uint64                       // guarded by mu: grows with every write through this file
	behind   map[*BufferedWriter]struct{} // guarded by mu: with data not yet flushed, perhaps

	fetches sync.WaitGroup // reads ahead
	stop    context.CancelFunc
	ahead   context.Context // of reads ahead; ends with Close
}

// written is how far a file has been written by this handle.
type written struct {
	off     int64 // end of the highest write, in the file
	index   int64 // of the chunk that holds the byte before it
	chunk   dfs.ChunkID
	version dfs.Version
}

// Open opens path for reading.
func (c *Client) Open(ctx context.Context, path string) (*File, error) {
	return c.OpenFile(ctx, path, os.O_RDONLY, 0)
}

// Create opens path for reading and writing, making it with the permission bits of perm or cutting it to length 0.
func (c *Client) Create(ctx context.Context, path string, perm fs.FileMode) (*File, error) {
	return c.OpenFile(ctx, path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, perm)
}

// OpenFile opens path with the flags of os.OpenFile: O_RDONLY, O_WRONLY, O_RDWR, O_APPEND, O_CREATE, O_EXCL, O_TRUNC; O_SYNC is
// not supported (use Sync). perm is for a file that is made. A directory can only be opened for reading.
func (c *Client) OpenFile(ctx context.Context, path string, flag int, perm fs.FileMode) (*File, error) {
	f, err := c.openFile(ctx, path, flag, perm, CreateOptions{})
	return f, pathErr("open", path, err)
}

// CreateOptions is the layout of a new file. Zero fields mean the defaults.
type CreateOptions struct {
	ChunkSize      int64 // bytes, a power of two from MinChunkSize to MaxChunkSize
	Replication    int   // replicas of each chunk, 0 to MaxReplication
	ReplicationSet bool  // Replication is meant even when 0
	// Large says that more than dfs.InlineMax bytes are about to be written: the first chunk is allocated in the same step.
	Large bool
}

// CreateFile is OpenFile with O_CREATE and a layout for the file if it is made.
func (c *Client) CreateFile(ctx context.Context, path string, flag int, perm fs.FileMode, o CreateOptions) (*File, error) {
	f, err := c.openFile(ctx, path, flag|os.O_CREATE, perm, o)
	return f, pathErr("create", path, err)
}

const accessMask = os.O_RDONLY | os.O_WRONLY | os.O_RDWR

func (c *Client) openFile(ctx context.Context, path string, flag int, perm fs.FileMode, o CreateOptions) (*File, error) {
	write := flag&accessMask != os.O_RDONLY
	switch {
	case flag&os.O_SYNC != 0:
		return nil, dfserr.Errorf(dfserr.ErrUnsupported, "O_SYNC")
	case flag&os.O_TRUNC != 0 && !write:
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "O_TRUNC without writing")
	case o.ChunkSize != 0 && !dfs.ValidChunkSize(o.ChunkSize):
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "chunk size %d: want a power of two from %d to %d", o.ChunkSize, dfs.MinChunkSize, dfs.MaxChunkSize)
	case o.Replication < 0 || o.Replication > dfs.MaxReplication:
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "replication %d: want 0 to %d", o.Replication, dfs.MaxReplication)
	}
	r, err := ref(path, false)
	if err != nil {
		return nil, err
	}
	if flag&os.O_CREATE != 0 {
		f, err := c.createFile(ctx, path, flag, perm, o)
		// The last name may be a symbolic link, or a directory opened for reading: those are opened as they are.
		if !errors.Is(err, dfserr.ErrExist) || flag&os.O_EXCL != 0 {
			return f, err
		}
	}
	handle := randomID()
	reply, err := c.open(ctx, r, flag, handle)
	if err != nil {
		return nil, err
	}
	f := c.newFile(path, flag, reply, handle, write)
	if flag&os.O_TRUNC != 0 && reply.GetAttr().GetLength() > 0 {
		if err := f.truncate(ctx, 0); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

func (c *Client) open(ctx context.Context, r *dfsv1.Ref, flag int, handle uint64) (*dfsv1.OpenReply, error) {
	var reply *dfsv1.OpenReply
	err := c.inSession(ctx, func(ctx context.Context, m dfsv1.MasterClient, session uint64) (err error) {
		reply, err = m.Open(ctx, &dfsv1.OpenRequest{
			Caller: c.caller(), Ref: r, Session: session, MinIndex: c.minIndex(),
			Read: flag&accessMask != os.O_WRONLY, Write: flag&accessMask != os.O_RDONLY, Handle: handle,
		})
		return err
	})
	if err != nil {
		c.abandon(handle, err)
		return nil, err
	}
	c.masters.observe(reply.GetIndex())
	return reply, nil
}

// abandon tells the master that a handle whose open has failed is not in use, unless the master itself has refused it.
func (c *Client) abandon(handle uint64, err error) {
	if e := c.session.current(); e != nil && !refused(err) {
		c.closer.add(&dfsv1.CloseRequest{Session: e.id, Handle: handle})
	}
}

func (c *Client) createFile(ctx context.Context, path string, flag int, perm fs.FileMode, o CreateOptions) (*File, error) {
	handle := randomID()
	reply, err := c.create(ctx, path, modeRegular|permBits(perm), func(r *dfsv1.CreateRequest) {
		r.Handle = handle
		r.Exclusive = flag&os.O_EXCL != 0
		r.Truncate = flag&os.O_TRUNC != 0
		r.ChunkSize, r.Replication, r.ReplicationSet = o.ChunkSize, uint32(o.Replication), o.ReplicationSet || o.Replication > 0
		r.NearServer = uint64(c.cfg.NearServer)
		r.Open, r.WantChunk = true, o.Large
	})
	if err != nil {
		c.abandon(handle, err)
		return nil, err
	}
	if !reply.GetCreated() && flag&os.O_TRUNC != 0 {
		c.cache.InvalidateFrom(dfs.InodeID(reply.GetAttr().GetInode()), 0)
	}
	f := c.newFile(path, flag, reply, handle, true)
	if k := reply.GetChunks(); o.Large && reply.GetCreated() && len(k) == 1 {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.keepLocked(0, c.chunks.NewWriter(locationOf(k[0])))
	}
	return f, nil
}

// newFile makes a handle from the master's reply to an open. handle is the number that the open carried, 0 when it was not to be counted.
func (c *Client) newFile(name string, flag int, reply *dfsv1.OpenReply, handle uint64, asWriter bool) *File {
	a := reply.GetAttr()
	f := &file{
		c: c, name: name, shown: path.Base(name), inode: dfs.InodeID(a.GetInode()), chunkSize: a.GetChunkSize(),
		isDir: a.GetMode()&modeTypeMask == modeDir, flag: flag, handle: handle, asWriter: asWriter,
		owner: randomID(), begun: c.locks.begun(),
		inline: a.GetInline(), chunks: a.GetChunks(), grow: make(chan struct{}, 1), tail: -1,
		writers: map[int64]*chunkio.Writer{}, dirty: map[int64]struct{}{}, behind: map[*BufferedWriter]struct{}{},
	}
	if !dfs.ValidChunkSize(f.chunkSize) {
		f.chunkSize = dfs.DefaultChunkSize // of a directory or special file, which has no chunks
	}
	f.ahead, f.stop = context.WithCancel(c.ctx)
	if f.handle != 0 {
		c.session.opened(f.inode)
	}
	for _, k := range reply.GetChunks() {
		c.cache.Put(f.inode, k.GetIndex(), locationOf(k))
	}
	if a.GetInline() && flag&accessMask == os.O_RDONLY {
		f.seq.prime(f, reply.GetInlineData(), a.GetLength())
	}
	f.seq.hint = a.GetLength()
	return &File{file: f, ctx: context.Background()}
}

// WithContext returns a view of the same open file whose calls run under ctx. Closing either closes both.
func (f *File) WithContext(ctx context.Context) *File { return &File{file: f.file, ctx: ctx} }

// Name returns the path that was opened.
func (f *File) Name() string { return f.name }

// Inode returns the inode's number.
func (f *File) Inode() dfs.InodeID { return f.inode }

// Stat describes the file, asking the master.
func (f *File) Stat() (fs.FileInfo, error) {
	i, err := f.Info(f.ctx)
	if err != nil {
		return nil, err
	}
	return i, nil
}

// Info is Stat with a context and the concrete type.
func (f *File) Info(ctx context.Context) (*FileInfo, error) {
	if err := f.use("stat"); err != nil {
		return nil, err
	}
	a, err := f.c.getAttr(ctx, f.ref())
	if err != nil {
		return nil, pathErr("stat", f.name, err)
	}
	return &FileInfo{name: f.shown, Attr: attrOf(a)}, nil
}

func (f *file) ref() *dfsv1.Ref { return &dfsv1.Ref{Inode: uint64(f.inode)} }

// use checks that the file is open.
func (f *file) use(op string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return pathErr(op, f.name, dfserr.ErrClosed)
	}
	return nil
}

// useFor checks that the file is open, no directory, and opened for what is asked.
func (f *file) useFor(op string, write bool) error {
	if err := f.use(op); err != nil {
		return err
	}
	access := f.flag & accessMask
	switch {
	case f.isDir:
		return pathErr(op, f.name, dfserr.ErrIsDir)
	case write && access == os.O_RDONLY, !write && access == os.O_WRONLY:
		return pathErr(op, f.name, dfserr.ErrBadHandle)
	}
	if !write {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return pathErr(op, f.name, f.err)
}

// failed keeps a write's error for later calls. What changed nothing, and the end of the caller's own context, is not
// kept.
func (f *file) failed(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
	return err
}

// changed says that what was read ahead is out of date.
func (f *file) changed() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changes++
}

// Seek sets the position for the next Read or Write. io.SeekEnd asks the master for the length.
func (f *File) Seek(offset int64, whence int) (int64, error) {
	if err := f.use("seek"); err != nil {
		return 0, err
	}
	f.posMu.Lock()
	defer f.posMu.Unlock()
	base := int64(0)
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		base = f.pos
	case io.SeekEnd:
		a, err := f.c.getAttr(f.ctx, f.ref())
		if err != nil {
			return 0, pathErr("seek", f.name, err)
		}
		base = a.GetLength()
	default:
		return 0, pathErr("seek", f.name, dfserr.Errorf(dfserr.ErrInvalid, "whence %d", whence))
	}
	if f.isDir {
		if offset != 0 || whence != io.SeekStart {
			return 0, pathErr("seek", f.name, dfserr.ErrIsDir)
		}
		f.list = dirCursor{}
		return 0, nil
	}
	if offset > dfs.MaxFileLength-base || offset < -base {
		return 0, pathErr("seek", f.name, dfserr.Errorf(dfserr.ErrInvalid, "offset %d from %d", offset, base))
	}
	f.pos = base + offset
	return f.pos, nil
}

// Truncate sets the length; a longer file reads as zeros. It waits for the writes of this file that are under way.
func (f *File) Truncate(ctx context.Context, size int64) error {
	if err := f.useFor("truncate", true); err != nil {
		return err
	}
	if err := checkLength(size); err != nil {
		return pathErr("truncate", f.name, err)
	}
	if err := f.flushBehind(ctx); err != nil {
		return pathErr("truncate", f.name, err)
	}
	return pathErr("truncate", f.name, f.truncate(ctx, size))
}

func (f *file) truncate(ctx context.Context, size int64) error {
	select {
	case f.grow <- struct{}{}:
		defer func() { <-f.grow }()
	case <-ctx.Done():
		return ctx.Err()
	}
	u, err := f.underLocks(ctx)
	if err != nil {
		return f.failed(ctx, err)
	}
	f.changed()
	defer f.changed()
	err = u.end(f.c.truncate(u.ctx, f.ref(), size, f.inode))
	f.mu.Lock()
	defer f.mu.Unlock()
	first := size / f.chunkSize
	for i := range f.writers {
		if i >= first {
			delete(f.writers, i)
			delete(f.dirty, i)
		}
	}
	f.tail = -1
	f.chunks = min(f.chunks, (size+f.chunkSize-1)/f.chunkSize)
	if f.end.off > size {
		f.end = written{}
	}
	return err
}

// Sync writes everything to stable storage on every replica: all chunks of the file, whoever wrote them, as far as they were acknowledged before the call, together with
// the length. It also flushes BufferedWriters.
func (f *File) Sync(ctx context.Context) error {
	if err := f.use("sync"); err != nil {
		return err
	}
	if f.isDir || f.flag&accessMask == os.O_RDONLY {
		return nil
	}
	if err := f.useFor("sync", true); err != nil {
		return err
	}
	err := f.flushBehind(ctx)
	if err == nil {
		err = f.failed(ctx, f.sync(ctx))
	}
	return pathErr("sync", f.name, err)
}

// syncsAtOnce is how many chunks of one file are synced at a time.
const syncsAtOnce = 32

// sync makes every chunk concerned durable, several at a time: those that were written through this handle, and those that the master knows to have data of others.
func (f *file) sync(ctx context.Context) error {
	f.mu.Lock()
	dirty := f.dirty
	f.dirty = map[int64]struct{}{}
	locations := make([]chunkio.Location, 0, len(dirty))
	for i := range dirty {
		if w := f.writers[i]; w != nil {
			locations = append(locations, w.Location())
		}
	}
	f.mu.Unlock()
	var g errgroup.Group
	g.SetLimit(syncsAtOnce)
	one := func(l chunkio.Location) {
		g.Go(func() error {
			err := f.c.chunks.Sync(ctx, l)
			if errors.Is(err, dfserr.ErrNotExist) {
				return nil // cut off meanwhile
			}
			return err
		})
	}
	for _, l := range locations {
		one(l)
	}
	err := f.eachUnsynced(ctx, func(k *dfsv1.ChunkConfig) {
		if _, own := dirty[k.GetIndex()]; !own {
			one(locationOf(k))
		}
	})
	if werr := g.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		f.mu.Lock()
		for i := range dirty {
			f.dirty[i] = struct{}{}
		}
		f.mu.Unlock()
	}
	return err
}

// eachUnsynced calls fn for the file's chunks that may hold data which is not on stable storage, as the master knows.
func (f *file) eachUnsynced(ctx context.Context, fn func(*dfsv1.ChunkConfig)) error {
	for first := int64(0); ; {
		reply, err := f.c.askChunks(ctx, &dfsv1.GetChunksRequest{
			Inode: uint64(f.inode), First: first, Count: chunksPage, Unsynced: true, Caller: f.c.caller(), MinIndex: f.c.minIndex(),
		})
		if err != nil {
			return err
		}
		list := reply.GetChunks()
		for _, k := range list {
			fn(k)
			first = k.GetIndex() + 1
		}
		if len(list) < chunksPage {
			return nil
		}
	}
}

// Close ends the handle: it flushes BufferedWriters, records length and modification time when chunks were written, gives up
// the locks that were taken through it, and returns the first write error this file has had. A second Close gives ErrClosed.
func (f *File) Close() error { return f.unlocked(f.close(nil)) }

// CloseRename is Close and then Rename of the path that was opened to newPath, or with noReplace RenameNoReplace. When nothing fails
// both happen in one step at the master. After an error of Close nothing is renamed; after one of Rename the file is closed all the same.
func (f *File) CloseRename(newPath string, noReplace bool) error {
	r, err := renameRequest(f.name, newPath)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r.NoReplace = noReplace
	return f.unlocked(f.close(r))
}

// close is Close, and with r a rename after it.
func (f *File) close(r *dfsv1.RenameRequest) error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return pathErr("close", f.name, dfserr.ErrClosed)
	}
	f.mu.Unlock()
	err := f.flushBehind(f.ctx)
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return pathErr("close", f.name, dfserr.ErrClosed)
	}
	f.closed = true
	if err == nil {
		err = f.err
	}
	modified := f.modified
	f.mu.Unlock()
	f.stop()
	f.posMu.Lock()
	f.seq.reset()
	f.posMu.Unlock()
	f.fetches.Wait()
	released := false
	if modified {
		last := lastCommit{release: f.handle != 0 && f.asWriter}
		if err == nil {
			last.rename = r
		}
		cerr := f.commitLength(f.ctx, last)
		switch {
		case cerr == nil && last.rename != nil:
			r = nil
		case cerr != nil && last.rename != nil && refused(cerr):
			// Nothing has happened. Without the name it succeeds, or says that it was not the name.
			last.rename = nil
			if again := f.commitLength(f.ctx, last); again == nil {
				released = last.release
				f.released(f.ctx, released)
				return pathErr("rename", f.name, cerr)
			}
		}
		released = cerr == nil && last.release
		if err == nil {
			err = cerr
		}
	}
	f.released(f.ctx, released)
	if err == nil && r != nil {
		return pathErr("rename", f.name, f.c.renameAs(f.ctx, r))
	}
	return pathErr("close", f.name, err)
}

// refused reports whether an error is the master's answer that a mutation was not carried out, rather than the lack of one.
func refused(err error) bool {
	return dfserr.ClassOf(err) == dfserr.GiveUp && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) &&
		!errors.Is(err, dfserr.ErrUnknownSession)
}

// released ends the count of the handle; byMaster says that the master has done so already.
func (f *file) released(ctx context.Context, byMaster bool) {
	if byMaster {
		f.c.session.closed(f.inode)
		return
	}
	f.release(ctx)
}

// release ends the master's count of the handle: with the next keepalive message of a client that caches, else at once when it was for writing, or in the background.
func (f *file) release(ctx context.Context) {
	if f.handle == 0 {
		return
	}
	e := f.c.session.current()
	if e == nil {
		f.c.session.closed(f.inode)
		return
	}
	r := &dfsv1.CloseRequest{Session: e.id, Inode: uint64(f.inode), Write: f.asWriter, Handle: f.handle}
	if f.c.tree != nil && f.c.session.closeLater(r) {
		return
	}
	f.c.session.closed(f.inode)
	if !f.asWriter {
		f.c.closer.add(r)
		return
	}
	if err := f.c.tellClosed(ctx, r); err != nil {
		f.c.closer.add(r) // the data is safe: only the count is late
	}
}

// lastCommit is what the recording of a file's length at its close may do besides.
type lastCommit struct {
	release bool                 // end the count of the handle
	rename  *dfsv1.RenameRequest // nil: none
}

// commitLength records, at a close, how far the file was written, and that it was.
func (f *file) commitLength(ctx context.Context, last lastCommit) error {
	f.mu.Lock()
	end := f.end
	f.mu.Unlock()
	for attempt := 0; ; attempt++ {
		err := f.changeOwn(ctx, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error) {
			return m.CommitLength(ctx, &dfsv1.CommitLengthRequest{
				Header: h, Inode: uint64(f.inode), Length: end.off, Chunk: uint64(end.chunk), Version: uint64(end.version), Modified: true, Closing: true,
				Release: last.release, Rename: last.rename, Handle: f.handle,
			})
		})
		if err == nil || !errors.Is(err, dfserr.ErrStaleVersion) || attempt == commitAttempts {
			return err
		}
		if end, err = f.remaining(ctx, end); err != nil {
			return err
		}
	}
}

// remaining returns what is left of a write after its chunk got a newer configuration: all of it, unless somebody has made
// the file shorter since; then recording its end would make the file longer again.
func (f *file) remaining(ctx context.Context, end written) (written, error) {
	reply, err := f.c.getChunks(ctx, f.inode, end.index, 1, false)
	if err != nil {
		return end, err
	}
	k := reply.GetChunks()
	if len(k) == 0 || dfs.ChunkID(k[0].GetChunk()) != end.chunk {
		return written{}, nil // the time is all there is to record
	}
	n, err := f.c.chunks.Length(ctx, locationOf(k[0]))
	switch {
	case errors.Is(err, dfserr.ErrNotExist), err == nil && n == 0:
		return written{}, nil
	case err != nil:
		return end, err
	}
	end.off = min(end.off, end.index*f.chunkSize+n)
	end.version = dfs.Version(k[0].GetVersion())
	return end, nil
}

// commitAttempts is how many changes of configuration recording a length may run into.
const commitAttempts = 20

// dirCursor is how far ReadDir has come in a directory.
type dirCursor struct {
	after   string
	pending []*FileInfo
	end     bool
}

// ReadDir returns the next n entries of a directory in byte order of name, and io.EOF after the last; with n <= 0 all that are left.
func (f *File) ReadDir(n int) ([]fs.DirEntry, error) {
	if err := f.use("readdir"); err != nil {
		return nil, err
	}
	if !f.isDir {
		return nil, pathErr("readdir", f.name, dfserr.ErrNotDir)
	}
	f.posMu.Lock()
	defer f.posMu.Unlock()
	var out []fs.DirEntry
	for n <= 0 || len(out) < n {
		if len(f.list.pending) == 0 {
			if f.list.end {
				break
			}
			reply, err := f.c.readDirPage(f.ctx, f.ref(), []byte(f.list.after), listPage)
			if err != nil {
				return out, pathErr("readdir", f.name, err)
			}
			for _, e := range reply.GetEntries() {
				f.list.after = string(e.GetName())
				f.list.pending = append(f.list.pending, &FileInfo{name: f.list.after, Attr: attrOf(e.GetAttr())})
			}
			f.list.end = reply.GetEnd() || len(reply.GetEntries()) == 0
			continue
		}
		out = append(out, f.list.pending[0])
		f.list.pending = f.list.pending[1:]
	}
	if n > 0 && len(out) == 0 {
		return nil, io.EOF
	}
	return out, nil
}
