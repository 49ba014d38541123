package client

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"dfs/client/chunkio"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// readsAtOnce is how many frames one large read asks for at a time.
const readsAtOnce = 8

// ReadAt reads len(p) bytes at off, or fewer with io.EOF where the file ends. Large reads go to several chunkservers at once.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if err := f.useFor("read", false); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, pathErr("read", f.name, dfserr.Errorf(dfserr.ErrInvalid, "offset %d is negative", off))
	}
	n, err := f.readAt(f.ctx, p, off)
	if err != nil && err != io.EOF {
		err = pathErr("read", f.name, err)
	}
	return n, err
}

// part is one frame's worth of a read: where it lies, and how much of it there is.
type part struct {
	index  int64  // of the chunk
	off    int64  // in the chunk
	at     int64  // in the read
	dst    []byte // zeroed behind have
	have   int    // bytes that chunk data covers
	failed error
}

// split cuts a read at frame boundaries of the chunks.
func (f *file) split(p []byte, off int64) []part {
	parts := make([]part, 0, len(p)/dfs.FrameSize+2)
	for at := int64(0); at < int64(len(p)); {
		o := (off + at) % f.chunkSize
		n := min(dfs.FrameSize-o%dfs.FrameSize, f.chunkSize-o, int64(len(p))-at)
		parts = append(parts, part{index: (off + at) / f.chunkSize, off: o, at: at, dst: p[at : at+n]})
		at += n
	}
	return parts
}

// maxReattempts bounds how often a read starts over because the file changed its form under it.
const maxReattempts = 16

// readAt reads at off. io.EOF goes with every short count.
func (f *file) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if off >= dfs.MaxFileLength {
		return 0, io.EOF
	}
	whole := len(p)
	p = p[:min(int64(whole), dfs.MaxFileLength-off)]
	for range maxReattempts {
		n, again, err := f.readOnce(ctx, p, off)
		if again {
			continue
		}
		if err == nil && n < whole {
			err = io.EOF
		}
		return n, err
	}
	return 0, dfserr.Errorf(dfserr.ErrBusy, "the file changes its form all the time")
}

// readOnce reads p, or the part of it before the end of the file. again: the file has moved between inode and
// chunks.
func (f *file) readOnce(ctx context.Context, p []byte, off int64) (n int, again bool, err error) {
	f.mu.Lock()
	inline := f.inline
	f.mu.Unlock()
	if inline {
		reply, err := f.c.getChunks(ctx, f.inode, off/f.chunkSize, 1, false)
		if err != nil {
			return 0, false, err
		}
		if reply.GetAttr().GetInline() {
			return copyInline(p, off, reply.GetInlineData(), reply.GetAttr().GetLength()), false, nil
		}
		f.setInline(false)
	}
	parts := f.split(p, off)
	if err := f.readParts(ctx, parts, false); err != nil {
		return 0, false, err
	}
	short := false
	for i := range parts {
		short = short || parts[i].have < len(parts[i].dst)
	}
	if !short {
		return len(p), false, nil
	}
	// Something is missing: the file ends, or has a hole, or has just grown. First the length, then the bytes: what is
	// below a published length and not in a chunk by then is zero.
	a, err := f.c.getAttr(ctx, f.ref())
	if err != nil {
		return 0, false, err
	}
	if a.GetInline() {
		f.setInline(true)
		return 0, true, nil
	}
	end := int(max(0, min(int64(len(p)), a.GetLength()-off)))
	var missing []part
	for _, q := range parts {
		if q.at+int64(q.have) < int64(end) && q.have < len(q.dst) {
			q.have = 0
			q.dst = q.dst[:min(int64(len(q.dst)), int64(end)-q.at)]
			missing = append(missing, q)
		}
	}
	if len(missing) > 0 {
		if err := f.readParts(ctx, missing, true); err != nil {
			return 0, false, err
		}
	}
	return end, false, nil
}

func (f *file) setInline(v bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inline = v
}

// copyInline copies from an inode's bytes, which read as zero from their end to the file's length.
func copyInline(p []byte, off int64, data []byte, length int64) int {
	n := int(max(0, min(int64(len(p)), length-off)))
	p = p[:n]
	copied := 0
	if off < int64(len(data)) {
		copied = copy(p, data[off:])
	}
	clear(p[copied:])
	return n
}

// readParts fills the parts from their chunks, several at a time; what no chunk has is zeroed. With fresh the master is asked
// where the chunks are, whatever is known.
func (f *file) readParts(ctx context.Context, parts []part, fresh bool) error {
	if len(parts) == 1 && !fresh {
		if l, ok := f.c.cache.Get(f.inode, parts[0].index); ok {
			f.readPart(ctx, &parts[0], l, true)
			return parts[0].failed
		}
	}
	locations, err := f.locate(ctx, parts, fresh)
	if err != nil {
		return err
	}
	read := func(q *part) {
		l, ok := locations[q.index]
		f.readPart(ctx, q, l, ok)
	}
	if len(parts) == 1 {
		read(&parts[0])
		return parts[0].failed
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	next := make(chan *part)
	for range min(readsAtOnce, len(parts)) {
		wg.Go(func() {
			for q := range next {
				if read(q); q.failed != nil {
					cancel()
				}
			}
		})
	}
	for i := range parts {
		next <- &parts[i]
	}
	close(next)
	wg.Wait()
	for i := range parts { // the first that failed by itself, not by the cancellation of the others
		if err := parts[i].failed; err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	for i := range parts {
		if parts[i].failed != nil {
			return parts[i].failed
		}
	}
	return nil
}

// locate finds the chunks of parts, which are in ascending order. Holes are absent.
func (f *file) locate(ctx context.Context, parts []part, fresh bool) (map[int64]chunkio.Location, error) {
	found := make(map[int64]chunkio.Location, 1)
	first, last := int64(-1), int64(-1)
	for i := range parts {
		index := parts[i].index
		if _, ok := found[index]; ok {
			continue
		}
		if l, ok := f.c.cache.Get(f.inode, index); ok && !fresh {
			found[index] = l
			continue
		}
		if first < 0 {
			first = index
		}
		last = index
	}
	for ; first >= 0 && first <= last; first += chunksPage {
		reply, err := f.c.getChunks(ctx, f.inode, first, uint32(min(chunksPage, last-first+1)), false)
		if err != nil {
			return nil, err
		}
		for _, k := range reply.GetChunks() {
			found[k.GetIndex()] = locationOf(k)
		}
	}
	return found, nil
}

// readPart reads one part from its chunk, if that exists. The range is widened to whole blocks, so that the checksums verified are those that
// the writer made.
func (f *file) readPart(ctx context.Context, q *part, l chunkio.Location, exists bool) {
	if !exists {
		clear(q.dst)
		return
	}
	from := q.off - q.off%dfs.BlockSize
	to := min((q.off+int64(len(q.dst))+dfs.BlockSize-1)/dfs.BlockSize*dfs.BlockSize, f.chunkSize)
	piece, err := f.c.chunks.Read(ctx, l, from, to-from)
	switch {
	case errors.Is(err, dfserr.ErrNotExist): // the chunk is gone: cut off, or replaced
		f.c.cache.Drop(f.inode, q.index)
	case err != nil:
		q.failed = err
		return
	default:
		q.have = piece.CopyTo(q.dst, q.off-from)
		if piece.Version > l.Version {
			f.c.cache.Drop(f.inode, q.index) // there is a newer configuration to learn
		}
		piece.Free()
	}
	clear(q.dst[q.have:])
}

// ReadFile returns the whole content of a file. A small one takes a single call to the master.
func (c *Client) ReadFile(ctx context.Context, path string) ([]byte, error) {
	r, err := ref(path, false)
	if err != nil {
		return nil, pathErr("open", path, err)
	}
	req := &dfsv1.OpenRequest{Caller: c.caller(), Ref: r, Read: true, MinIndex: c.minIndex()}
	var reply *dfsv1.OpenReply
	err = c.ask(ctx, func(ctx context.Context, m dfsv1.MasterClient) (err error) {
		reply, err = m.Open(ctx, req)
		return err
	})
	if err != nil {
		return nil, pathErr("open", path, err)
	}
	c.masters.observe(reply.GetIndex())
	a := reply.GetAttr()
	if a.GetMode()&modeTypeMask == modeDir {
		return nil, pathErr("read", path, dfserr.ErrIsDir)
	}
	if a.GetInline() {
		p := make([]byte, a.GetLength())
		copyInline(p, 0, reply.GetInlineData(), a.GetLength())
		return p, nil
	}
	// The handle is not counted at the master: should the file be removed meanwhile, its chunks outlive it by the
	// garbage grace.
	f := c.newFile(path, 0, reply, 0, false)
	defer func() { _ = f.Close() }() // reads only
	p := make([]byte, a.GetLength())
	n, err := f.readAt(ctx, p, 0)
	if err == io.EOF {
		err = nil // it was cut meanwhile
	}
	return p[:n], pathErr("read", path, err)
}

// Sequential reading.

const (
	aheadFirst = 256 * dfs.KiB // fetched with the first sequential read; doubles with each fetch
	aheadPiece = dfs.FrameSize
)

// readAhead is what has been fetched, or is being, in front of the position. file.posMu guards it.
type readAhead struct {
	queue  []*fetch // in order, without gaps
	next   int64    // offset after the last one in queue
	window int64    // bytes to keep ahead
	last   int64    // where the last sequential read ended
	hint   int64    // length when it was last known: nothing is fetched ahead beyond it
}

// fetch is one read ahead. What it got may be used once done is closed.
type fetch struct {
	off     int64
	buf     *[]byte // from the pool
	done    chan struct{}
	n       int
	err     error // io.EOF with a short count
	at      time.Time
	changes uint64 // of the file when it began
}

// prime puts the bytes that came with an open in front of the first read.
func (s *readAhead) prime(f *file, data []byte, length int64) {
	if f.c.cfg.Readahead < 0 || f.c.cfg.LocationTTL < 0 || length > dfs.InlineMax {
		return
	}
	buf := make([]byte, length)
	copyInline(buf, 0, data, length)
	t := &fetch{buf: &buf, done: make(chan struct{}), n: int(length), err: io.EOF, at: time.Now()}
	close(t.done)
	s.queue, s.next = []*fetch{t}, length
}

// reset forgets everything fetched. Fetches under way free their buffers themselves.
func (s *readAhead) reset() {
	s.queue, s.next, s.window = nil, 0, 0
}

// fresh reports whether a finished fetch may still be used.
func (t *fetch) fresh(f *file) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return t.changes == f.changes && time.Since(t.at) < f.c.cfg.LocationTTL
}

// start begins a fetch of n bytes at off.
func (s *readAhead) start(f *file, off, n int64) {
	t := &fetch{off: off, done: make(chan struct{})}
	f.mu.Lock()
	t.changes = f.changes
	f.mu.Unlock()
	s.queue = append(s.queue, t)
	s.next = off + n
	f.fetches.Go(func() {
		defer close(t.done)
		t.buf = f.c.dataPool.Buffers().Get(int(n))
		t.at = time.Now()
		t.n, t.err = f.readAt(f.ahead, *t.buf, off)
	})
}

// extend keeps window bytes under way.
func (s *readAhead) extend(f *file, from int64) {
	for s.next < s.hint && s.next-from < s.window {
		n := min(aheadPiece-s.next%aheadPiece, s.window-(s.next-from), s.hint-s.next)
		s.start(f, s.next, n)
	}
}

// front returns the fetch that covers pos, once it is there; nil when there is none that may be used.
func (s *readAhead) front(ctx context.Context, f *file, pos int64) (*fetch, error) {
	for len(s.queue) > 0 {
		t := s.queue[0]
		select {
		case <-t.done:
		default:
			select {
			case <-t.done:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		switch {
		case pos < t.off || !t.fresh(f) || (t.err != nil && t.err != io.EOF):
			s.reset()
			return nil, nil
		case pos < t.off+int64(t.n), t.err == io.EOF:
			return t, nil
		}
		s.pop(f)
	}
	return nil, nil
}

// pop drops the first fetch, which is done.
func (s *readAhead) pop(f *file) {
	t := s.queue[0]
	s.queue = s.queue[1:]
	if t.buf != nil {
		f.c.dataPool.Buffers().Put(t.buf)
	}
}

// Read reads from the position. Sequential reading fetches ahead, more the longer it lasts.
func (f *File) Read(p []byte) (int, error) {
	if err := f.useFor("read", false); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	f.posMu.Lock()
	defer f.posMu.Unlock()
	n, err := f.readSeq(f.ctx, p)
	f.pos += int64(n)
	if err != nil && err != io.EOF {
		err = pathErr("read", f.name, err)
	}
	return n, err
}

// readSeq reads at the position, from what was fetched ahead when possible. It holds posMu.
func (f *file) readSeq(ctx context.Context, p []byte) (int, error) {
	s := &f.seq
	if f.pos != s.last || f.c.cfg.Readahead < 0 || f.c.cfg.LocationTTL < 0 {
		s.reset()
	}
	t, err := s.front(ctx, f, f.pos)
	if err != nil {
		return 0, err
	}
	if t == nil {
		return f.readDirect(ctx, p)
	}
	n := 0
	if from := f.pos - t.off; from < int64(t.n) {
		n = copy(p, (*t.buf)[from:t.n])
	}
	s.last = f.pos + int64(n)
	if n == 0 {
		s.reset() // the end, told once; the next read looks again
		return 0, io.EOF
	}
	s.window = min(2*s.window, f.c.cfg.Readahead)
	s.extend(f, s.last)
	return n, nil
}

// readDirect reads at the position without help, and begins to fetch what comes after. It holds posMu.
func (f *file) readDirect(ctx context.Context, p []byte) (int, error) {
	s := &f.seq
	sequential := f.pos == s.last
	n, err := f.readAt(ctx, p, f.pos)
	s.last = f.pos + int64(n)
	s.next = s.last
	s.hint = max(s.hint, s.last)
	if err != nil || !sequential || f.c.cfg.Readahead < 0 || f.c.cfg.LocationTTL < 0 {
		if n > 0 && err == io.EOF {
			err = nil
		}
		return n, err
	}
	s.window = min(max(aheadFirst, 2*s.window, int64(len(p))), f.c.cfg.Readahead)
	s.extend(f, s.last)
	return n, nil
}

// WriteTo writes the file from the position to its end to w, with as much in flight as the configuration allows.
func (f *File) WriteTo(w io.Writer) (int64, error) {
	if err := f.useFor("read", false); err != nil {
		return 0, err
	}
	f.posMu.Lock()
	defer f.posMu.Unlock()
	s := &f.seq
	if f.pos != s.last {
		s.reset()
	}
	total := int64(0)
	for {
		t, err := s.front(f.ctx, f.file, f.pos)
		if err != nil {
			return total, pathErr("read", f.name, err)
		}
		if t == nil {
			n := min(aheadPiece-f.pos%aheadPiece, dfs.MaxFileLength-f.pos)
			s.start(f.file, f.pos, n)
			s.window = max(aheadPiece, f.c.cfg.Readahead)
			s.extend(f.file, f.pos)
			t = s.queue[0]
			select {
			case <-t.done:
			case <-f.ctx.Done():
				return total, pathErr("read", f.name, f.ctx.Err())
			}
			if t.err != nil && t.err != io.EOF {
				err := t.err
				s.reset()
				return total, pathErr("read", f.name, err)
			}
		}
		n := 0
		if from := f.pos - t.off; from < int64(t.n) {
			n, err = w.Write((*t.buf)[from:t.n])
			f.pos += int64(n)
			s.last = f.pos
			total += int64(n)
			if err != nil {
				return total, err
			}
		}
		if t.err == io.EOF {
			if n > 0 && len(s.queue) > 1 || s.hint > f.pos {
				s.hint = f.pos
			}
			s.reset()
			return total, nil
		}
		s.pop(f.file)
		s.extend(f.file, f.pos)
	}
}
