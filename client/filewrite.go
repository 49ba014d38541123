package client

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"google.golang.org/grpc/mem"

	"dfs/client/chunkio"
	"dfs/client/metacache"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// writersKept is how many chunks one file remembers how to write.
const writersKept = 64

// WriteAt writes p at off; the file grows, with zeros in between, as needed. It returns when every replica has all of
// it. After an error n bytes from the beginning are known to be written; any of the rest may be.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if f.flag&os.O_APPEND != 0 {
		return 0, pathErr("write", f.name, dfserr.Errorf(dfserr.ErrInvalid, "WriteAt on a file opened with O_APPEND"))
	}
	if err := f.useFor("write", true); err != nil {
		return 0, err
	}
	if err := checkSpan(off, int64(len(p))); err != nil {
		return 0, pathErr("write", f.name, err)
	}
	n, err := f.writeAt(f.ctx, p, off)
	return n, pathErr("write", f.name, err)
}

// Write writes p at the position, or, with O_APPEND, as Append does. See WriteAt.
func (f *File) Write(p []byte) (int, error) {
	if err := f.useFor("write", true); err != nil {
		return 0, err
	}
	f.posMu.Lock()
	defer f.posMu.Unlock()
	if f.flag&os.O_APPEND != 0 {
		off, n, err := f.appendAll(f.ctx, p)
		if n > 0 {
			f.pos = off + int64(n)
		}
		return n, pathErr("write", f.name, err)
	}
	if err := checkSpan(f.pos, int64(len(p))); err != nil {
		return 0, pathErr("write", f.name, err)
	}
	n, err := f.writeAt(f.ctx, p, f.pos)
	f.pos += int64(n)
	return n, pathErr("write", f.name, err)
}

// WriteString is Write.
func (f *File) WriteString(s string) (int, error) { return f.Write([]byte(s)) }

// checkSpan says what is wrong with a range to be written.
func checkSpan(off, n int64) error {
	switch {
	case off < 0:
		return dfserr.Errorf(dfserr.ErrInvalid, "offset %d is negative", off)
	case n < 0:
		return dfserr.Errorf(dfserr.ErrInvalid, "length %d is negative", n)
	case !dfs.CheckRange(off, n, dfs.MaxFileLength):
		return dfserr.Errorf(dfserr.ErrFileTooLarge, "%d bytes at %d reach beyond %d, the largest file", n, off, dfs.MaxFileLength)
	}
	return nil
}

// writeAt writes a legal span and keeps the error.
func (f *file) writeAt(ctx context.Context, p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	u, err := f.underLocks(ctx)
	if err != nil {
		return 0, f.failed(ctx, err)
	}
	f.changed()
	defer f.changed()
	done, err := f.writeInlineAt(u.ctx, p, off)
	if done || err != nil {
		if err = u.end(err); err != nil {
			return 0, f.failed(ctx, err)
		}
		return len(p), nil
	}
	n, err := f.writeChunks(u.ctx, p, off)
	return n, f.failed(ctx, u.end(err))
}

// writeInlineAt writes into the inode if the file lives there and stays small enough; otherwise it sees to it that the
// file lives in chunks.
func (f *file) writeInlineAt(ctx context.Context, p []byte, off int64) (done bool, err error) {
	f.mu.Lock()
	inline := f.inline
	f.mu.Unlock()
	if !inline {
		return false, nil
	}
	if off+int64(len(p)) <= dfs.InlineMax {
		_, err := f.writeInline(ctx, &dfsv1.WriteInlineRequest{Inode: uint64(f.inode), Offset: off, Data: p})
		if !leavesInode(err) {
			return err == nil, err
		}
	}
	return false, f.leaveInode(ctx)
}

// leavesInode reports whether an inline write was refused because the file has, or needs, chunks.
func leavesInode(err error) bool {
	return errors.Is(err, dfserr.ErrInlineMoved) || errors.Is(err, dfserr.ErrFileTooLarge)
}

func (f *file) writeInline(ctx context.Context, req *dfsv1.WriteInlineRequest) (int64, error) {
	var reply *dfsv1.WriteInlineReply
	own := ownChange{attrs: []dfs.InodeID{f.inode}, outcome: func(metacache.Mark) ([]dfs.InodeID, *Attr) { return nil, known(reply.GetAttr()) }}
	err := f.c.mutateOwn(ctx, own, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (err error) {
		r := &dfsv1.WriteInlineRequest{Header: h, Inode: req.GetInode(), Offset: req.GetOffset(), Data: req.GetData(), Append: req.GetAppend()}
		reply, err = m.WriteInline(ctx, r)
		return err
	})
	if err != nil {
		return 0, err
	}
	f.c.masters.observe(reply.GetIndex())
	return reply.GetOffset(), nil
}

// leaveInode moves the file's content to chunks.
func (f *file) leaveInode(ctx context.Context) error {
	release, err := f.lockGrow(ctx)
	if err != nil {
		return err
	}
	defer release()
	f.mu.Lock()
	inline := f.inline
	f.mu.Unlock()
	if !inline {
		return nil
	}
	_, err = f.addChunk(ctx, 0)
	return err
}

func (f *file) lockGrow(ctx context.Context) (release func(), err error) {
	select {
	case f.grow <- struct{}{}:
		return func() { <-f.grow }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// addChunk makes a chunk of the file, or returns the one there is. The caller holds grow.
func (f *file) addChunk(ctx context.Context, index int64) (*dfsv1.AddChunkReply, error) {
	var reply *dfsv1.AddChunkReply
	err := f.c.mutateOwn(ctx, ownChange{attrs: []dfs.InodeID{f.inode}}, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (err error) {
		reply, err = m.AddChunk(ctx, &dfsv1.AddChunkRequest{Header: h, Inode: uint64(f.inode), Index: index, NearServer: uint64(f.c.cfg.NearServer)})
		return err
	})
	if err != nil {
		return nil, err
	}
	f.c.masters.observe(reply.GetIndex())
	l := locationOf(reply.GetChunk())
	f.c.cache.Put(f.inode, index, l)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inline = false
	f.chunks = max(f.chunks, reply.GetAttr().GetChunks(), index+1)
	f.keepLocked(index, f.c.chunks.NewWriter(l))
	return reply, nil
}

// keepLocked remembers a Writer, unless there is one, and forgets idle ones beyond writersKept.
func (f *file) keepLocked(index int64, w *chunkio.Writer) {
	if old := f.writers[index]; old != nil && old.Location().Chunk == w.Location().Chunk {
		return
	}
	if len(f.writers) >= writersKept {
		for i, old := range f.writers {
			// A chunk with unsynced data stays: Sync needs its Writer's view of the configuration.
			if _, dirty := f.dirty[i]; !dirty && old.Idle() {
				delete(f.writers, i)
			}
		}
	}
	f.writers[index] = w
}

// writer returns the Writer of a chunk, locating or adding the chunk at first.
func (f *file) writer(ctx context.Context, index int64) (*chunkio.Writer, error) {
	f.mu.Lock()
	w := f.writers[index]
	f.mu.Unlock()
	if w != nil {
		return w, nil
	}
	release, err := f.lockGrow(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	f.mu.Lock()
	w, known := f.writers[index], f.chunks
	f.mu.Unlock()
	if w != nil {
		return w, nil
	}
	if index < known {
		reply, err := f.c.getChunks(ctx, f.inode, index, 1, true)
		if err != nil {
			return nil, err
		}
		if k := reply.GetChunks(); len(k) > 0 && k[0].GetIndex() == index {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.keepLocked(index, f.c.chunks.NewWriter(locationOf(k[0])))
			return f.writers[index], nil
		}
		if reply.GetAttr().GetInline() && index > 0 { // it was cut short meanwhile
			if _, err := f.addChunk(ctx, 0); err != nil {
				return nil, err
			}
		}
	}
	if _, err := f.addChunk(ctx, index); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writers[index], nil
}

// forget drops a Writer whose chunk is no longer the file's.
func (f *file) forget(index int64, w *chunkio.Writer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.writers[index] == w {
		delete(f.writers, index)
		delete(f.dirty, index)
	}
	f.c.cache.InvalidateFrom(f.inode, index)
}

// acked notes an acknowledged mutation that ends at off in the chunk.
func (f *file) acked(index int64, w *chunkio.Writer, off int64, version dfs.Version) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.modified = true
	f.dirty[index] = struct{}{}
	if f.writers[index] == nil {
		f.writers[index] = w
	}
	if index > f.tail {
		f.tail = -1 // the file ends further than was known
	}
	if end := index*f.chunkSize + off; end >= f.end.off {
		f.end = written{off: end, index: index, chunk: w.Location().Chunk, version: version}
	}
}

// flight is one frame on its way.
type flight struct {
	w     *chunkio.Writer
	p     *chunkio.Pending
	index int64
	off   int64 // in the chunk
	at    int64 // in the buffer being written
	n     int64
}

// launch sends one frame, taking over buf, whose first n bytes go to off in the chunk.
func (f *file) launch(ctx context.Context, w *chunkio.Writer, off int64, buf *[]byte, n int) (*chunkio.Pending, error) {
	*buf = (*buf)[:n]
	crcs := dfs.BlockCRCs(off, *buf)
	return w.Start(ctx, chunkio.Mutation{
		Kind: dfsv1.MutationKind_WRITE, Off: off, Len: int64(n), Data: mem.BufferSlice{f.c.dataPool.Buffers().Own(buf)}, CRCs: crcs,
	})
}

// vanishedTries is how often a write follows a file whose chunks are cut off under it.
const vanishedTries = 16

// writeChunks writes a span to chunks, frames in flight together, and waits for all.
func (f *file) writeChunks(ctx context.Context, p []byte, off int64) (int, error) {
	var flights []flight
	var failed error
	for _, q := range f.split(p, off) {
		fl, err := f.send(ctx, q.dst, q.index, q.off)
		if err != nil {
			failed = err
			break
		}
		fl.at = q.at
		flights = append(flights, fl)
	}
	good := int64(0)
	for _, fl := range flights {
		err := f.land(ctx, fl, p[fl.at:fl.at+fl.n])
		if err != nil && failed == nil {
			failed = err
		}
		if err == nil && good == fl.at {
			good += fl.n
		}
	}
	if failed == nil {
		return len(p), nil
	}
	return int(good), failed
}

// send copies data into a frame and sends it.
func (f *file) send(ctx context.Context, data []byte, index, off int64) (flight, error) {
	w, err := f.writer(ctx, index)
	if err != nil {
		return flight{}, err
	}
	buf := f.c.dataPool.Buffers().Get(len(data))
	copy(*buf, data)
	p, err := f.launch(ctx, w, off, buf, len(data))
	return flight{w: w, p: p, index: index, off: off, n: int64(len(data))}, err
}

// land waits for a frame. When its chunk has been cut off meanwhile, the data is written again to the chunk that takes
// its place.
func (f *file) land(ctx context.Context, fl flight, data []byte) error {
	for range vanishedTries {
		res, err := fl.p.Wait(ctx)
		if err == nil {
			f.acked(fl.index, fl.w, fl.off+fl.n, res.Version)
			return nil
		}
		if !errors.Is(err, dfserr.ErrNotExist) || data == nil {
			return err
		}
		f.forget(fl.index, fl.w)
		if fl, err = f.send(ctx, data, fl.index, fl.off); err != nil {
			return err
		}
	}
	return dfserr.Errorf(dfserr.ErrBusy, "chunk %d of the file is cut off again and again", fl.index)
}

// Append writes p at the end of the file, wherever others have moved that, and returns where it went. Up to FrameSize
// bytes that fit into the last chunk are one atomic step: contiguous, and never mixed with another's append. What is longer, or
// crosses into the next chunk, is several such steps, between which others' appends may come. The position is left alone.
func (f *File) Append(ctx context.Context, p []byte) (off int64, err error) {
	if err := f.useFor("append", true); err != nil {
		return 0, err
	}
	off, _, err = f.appendAll(ctx, p)
	return off, pathErr("append", f.name, err)
}

// appendAll appends frame by frame. off is where the first byte went.
func (f *file) appendAll(ctx context.Context, p []byte) (off int64, n int, err error) {
	f.changed()
	defer f.changed()
	if len(p) == 0 {
		return 0, 0, nil
	}
	for n < len(p) {
		at, m, err := f.appendSome(ctx, p[n:min(len(p), n+dfs.FrameSize)], false)
		if n == 0 {
			off = at
		}
		n += m
		if err != nil {
			return off, n, f.failed(ctx, err)
		}
	}
	return off, n, nil
}

// errInInode says that there is no chunk to append to because the content is in the inode.
var errInInode = errors.New("file is in its inode")

// appendSome appends p, or, unless whole, as much of its beginning as fits into the last chunk. It returns where that went
// and how much it was.
func (f *file) appendSome(ctx context.Context, p []byte, whole bool) (off int64, n int, err error) {
	u, err := f.underLocks(ctx)
	if err != nil {
		return 0, 0, err
	}
	off, n, err = f.appendStep(u.ctx, p, whole)
	return off, n, u.end(err)
}

func (f *file) appendStep(ctx context.Context, p []byte, whole bool) (int64, int, error) {
	octx, cancel := f.c.opContext(ctx)
	defer cancel()
	moved := newBackoff()
	for {
		if err := octx.Err(); err != nil {
			if ctx.Err() != nil {
				return 0, 0, ctx.Err()
			}
			return 0, 0, dfserr.Errorf(dfserr.ErrBusy, "append: the file's end moves all the time")
		}
		off, done, err := f.appendInline(octx, p)
		if done || err != nil {
			return off, len(p), err
		}
		index, minOff, w, err := f.tailWriter(octx)
		if errors.Is(err, errInInode) {
			f.setInline(true)
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		n := len(p)
		res, err := f.appendFrame(octx, w, p, minOff)
		if errors.Is(err, dfserr.ErrChunkFull) {
			n, res, err = f.appendFull(octx, index, w, p, minOff, whole)
		}
		switch {
		case errors.Is(err, dfserr.ErrNotExist):
			f.forget(index, w)
			f.dropTail(index)
		case errors.Is(err, dfserr.ErrNotTail): // others have moved the end, or are about to
			f.dropTail(index)
			if err := moved.Wait(octx); err != nil && ctx.Err() != nil {
				return 0, 0, ctx.Err()
			}
		case err != nil:
			return 0, 0, err
		case n > 0:
			f.acked(index, w, res.Off+int64(n), res.Version)
			f.mu.Lock()
			if f.tail == index {
				f.tailMin = 0 // the chunk's own length says it from now on
			}
			f.mu.Unlock()
			return index*f.chunkSize + res.Off, n, nil
		}
	}
}

// appendInline appends inside the inode if the file lives there and stays small enough.
func (f *file) appendInline(ctx context.Context, p []byte) (off int64, done bool, err error) {
	f.mu.Lock()
	inline := f.inline
	f.mu.Unlock()
	if !inline {
		return 0, false, nil
	}
	if len(p) <= dfs.InlineMax {
		off, err := f.writeInline(ctx, &dfsv1.WriteInlineRequest{Inode: uint64(f.inode), Data: p, Append: true})
		if !leavesInode(err) {
			return off, err == nil, err
		}
	}
	return 0, false, f.leaveInode(ctx)
}

// appendFrame sends one APPEND and waits for it.
func (f *file) appendFrame(ctx context.Context, w *chunkio.Writer, p []byte, minOff int64) (chunkio.Result, error) {
	buf := f.c.dataPool.Buffers().Get(len(p))
	copy(*buf, p)
	return w.Do(ctx, chunkio.Mutation{
		Kind: dfsv1.MutationKind_APPEND, Len: int64(len(p)), Data: mem.BufferSlice{f.c.dataPool.Buffers().Own(buf)}, CRC: dfs.CRC(p), MinOff: minOff,
	})
}

// appendFull deals with a chunk that has no room for p: a record leaves the rest of the chunk as padding, other data
// fills it. It returns how much it appended, 0 when the next chunk is to be tried.
func (f *file) appendFull(ctx context.Context, index int64, w *chunkio.Writer, p []byte, minOff int64, whole bool) (int, chunkio.Result, error) {
	if whole {
		// Pad to the end, so that nobody appends here any more and readers know to go on.
		res, err := w.Do(ctx, chunkio.Mutation{Kind: dfsv1.MutationKind_TRUNCATE, Off: f.chunkSize})
		if err != nil {
			return 0, res, err
		}
		f.acked(index, w, f.chunkSize, res.Version)
		return 0, res, f.roll(ctx, index)
	}
	length, err := f.c.chunks.Length(ctx, w.Location())
	if err != nil {
		return 0, chunkio.Result{}, err
	}
	room := f.chunkSize - max(length, minOff)
	if room <= 0 {
		return 0, chunkio.Result{}, f.roll(ctx, index)
	}
	n := int(min(room, int64(len(p))))
	res, err := f.appendFrame(ctx, w, p[:n], minOff)
	if errors.Is(err, dfserr.ErrChunkFull) {
		return 0, res, nil // somebody was faster: look again
	}
	if err != nil {
		return 0, res, err
	}
	return n, res, nil
}

// tailWriter returns the chunk to append to.
func (f *file) tailWriter(ctx context.Context) (index, minOff int64, w *chunkio.Writer, err error) {
	if index, minOff, w = f.knownTail(); w != nil {
		return index, minOff, w, nil
	}
	release, err := f.lockGrow(ctx)
	if err != nil {
		return 0, 0, nil, err
	}
	defer release()
	if index, minOff, w = f.knownTail(); w != nil {
		return index, minOff, w, nil
	}
	reply, err := f.c.askChunks(ctx, &dfsv1.GetChunksRequest{
		Inode: uint64(f.inode), Last: true, Count: 1, ForWrite: true, Caller: f.c.caller(), MinIndex: f.c.minIndex(),
	})
	if err != nil {
		return 0, 0, nil, err
	}
	length := reply.GetAttr().GetLength()
	if reply.GetAttr().GetInline() {
		return 0, 0, nil, errInInode
	}
	k := reply.GetChunks()
	if len(k) == 0 || length > (k[0].GetIndex()+1)*f.chunkSize {
		index = length / f.chunkSize
		if _, err := f.addChunk(ctx, index); err != nil {
			return 0, 0, nil, err
		}
	} else {
		index = k[0].GetIndex()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(k) > 0 && k[0].GetIndex() == index {
		f.keepLocked(index, f.c.chunks.NewWriter(locationOf(k[0])))
	}
	f.tail, f.tailAt, f.tailMin = index, time.Now(), max(0, length-index*f.chunkSize)
	return index, f.tailMin, f.writers[index], nil
}

// knownTail returns what is known about the end of the file, if that is recent enough to be relied on.
func (f *file) knownTail() (index, minOff int64, w *chunkio.Writer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tail < 0 || time.Since(f.tailAt) >= f.c.cfg.LocationTTL {
		return 0, 0, nil
	}
	return f.tail, f.tailMin, f.writers[f.tail]
}

func (f *file) dropTail(index int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tail == index {
		f.tail = -1
	}
}

// roll makes the chunk after a full one the one to append to.
func (f *file) roll(ctx context.Context, full int64) error {
	release, err := f.lockGrow(ctx)
	if err != nil {
		return err
	}
	defer release()
	f.mu.Lock()
	moved := f.tail != full
	f.mu.Unlock()
	if moved {
		return nil
	}
	if (full+1)*f.chunkSize >= dfs.MaxFileLength {
		return dfserr.Errorf(dfserr.ErrFileTooLarge, "append beyond %d, the largest file", dfs.MaxFileLength)
	}
	reply, err := f.addChunk(ctx, full+1)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tail, f.tailAt, f.tailMin = full+1, time.Now(), 0
	if reply.GetAttr().GetChunks() > full+2 {
		f.tail = -1 // others are further still
	}
	return nil
}

// WriteFile writes data to path, making it with the permission bits of perm or replacing its content. Up to InlineMax bytes
// take a single, atomic operation.
func (c *Client) WriteFile(ctx context.Context, path string, data []byte, perm fs.FileMode) error {
	if len(data) <= dfs.InlineMax {
		reply, err := c.create(ctx, path, modeRegular|permBits(perm), func(r *dfsv1.CreateRequest) {
			r.Exclusive, r.Truncate, r.Data = false, true, data
		})
		if err == nil {
			c.cache.InvalidateFrom(dfs.InodeID(reply.GetAttr().GetInode()), 0)
		}
		if !errors.Is(err, dfserr.ErrExist) { // else a symbolic link: what it names is written
			return pathErr("open", path, err)
		}
	}
	f, err := c.OpenFile(ctx, path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	f = f.WithContext(ctx)
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// ReadFrom writes what r has, from the position on, with as much in flight as the window allows, and returns when every
// replica has all of it.
func (f *File) ReadFrom(r io.Reader) (int64, error) {
	if err := f.useFor("write", true); err != nil {
		return 0, err
	}
	f.posMu.Lock()
	defer f.posMu.Unlock()
	w := f.behindAt(f.pos)
	n, err := w.ReadFrom(r)
	if ferr := w.Flush(f.ctx); err == nil {
		err = ferr
	}
	w.detach()
	f.pos += n
	return n, err
}
