package client

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// BufferedWriter writes a stream to a File without waiting for acknowledgements: it fills frames of 1 MiB and keeps
// up to chunkio.WindowBytes of them in flight. Nothing is promised about what Write or ReadFrom took until Flush, or the
// File's Sync or Close, succeeds. Safe for concurrent use, though of concurrent Writes the order is open.
//
// On a File opened with O_APPEND each frame is appended, and acknowledged, before the next one is sent.
type BufferedWriter struct {
	f *File

	mu      sync.Mutex
	off     int64    // guarded by mu: in the file, of the first byte in buf
	buf     *[]byte  // guarded by mu: being filled; nil: none
	n       int      // guarded by mu: bytes in buf
	flights []flight // guarded by mu: in order
	err     error    // guarded by mu: stays
}

// Buffered returns a writer that continues at the File's position. It does not move the position. Writing the same
// range by other means before Flush has no defined outcome.
func (f *File) Buffered() *BufferedWriter {
	f.posMu.Lock()
	defer f.posMu.Unlock()
	return f.behindAt(f.pos)
}

func (f *File) behindAt(off int64) *BufferedWriter {
	w := &BufferedWriter{f: f, off: off}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.behind[w] = struct{}{}
	return w
}

// detach ends the File's interest in the writer.
func (w *BufferedWriter) detach() {
	w.f.mu.Lock()
	defer w.f.mu.Unlock()
	delete(w.f.behind, w)
}

// flushBehind flushes all BufferedWriters of the file.
func (f *File) flushBehind(ctx context.Context) error {
	f.mu.Lock()
	writers := make([]*BufferedWriter, 0, len(f.behind))
	for w := range f.behind {
		writers = append(writers, w)
	}
	f.mu.Unlock()
	var first error
	for _, w := range writers {
		if err := w.flush(ctx); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Write takes p. An error may be that of an earlier frame.
func (w *BufferedWriter) Write(p []byte) (int, error) {
	if err := w.f.useFor("write", true); err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for n < len(p) {
		room, err := w.roomLocked()
		if err != nil {
			return n, pathErr("write", w.f.name, err)
		}
		c := copy(room, p[n:])
		n += c
		w.n += c
	}
	return n, nil
}

// ReadFrom takes everything that r has. An error may be r's own, or that of an earlier frame.
func (w *BufferedWriter) ReadFrom(r io.Reader) (int64, error) {
	if err := w.f.useFor("write", true); err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	total := int64(0)
	for {
		room, err := w.roomLocked()
		if err != nil {
			return total, pathErr("write", w.f.name, err)
		}
		n, err := r.Read(room)
		w.n += n
		total += int64(n)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// limit is how many bytes the frame that begins at off holds: to the next multiple of FrameSize.
func (w *BufferedWriter) limit() int {
	if w.appends() {
		return dfs.FrameSize
	}
	return int(min(dfs.FrameSize-w.off%dfs.FrameSize, dfs.MaxFileLength-w.off))
}

func (w *BufferedWriter) appends() bool { return w.f.flag&os.O_APPEND != 0 }

// roomLocked returns the free part of the frame being filled, sending it first when there is none.
func (w *BufferedWriter) roomLocked() ([]byte, error) {
	if w.err != nil {
		return nil, w.err
	}
	if w.buf != nil && w.n == w.limit() {
		if err := w.pushLocked(w.f.ctx); err != nil {
			return nil, err
		}
	}
	if w.buf == nil {
		if w.limit() == 0 {
			return nil, dfserr.Errorf(dfserr.ErrFileTooLarge, "write beyond %d, the largest file", dfs.MaxFileLength)
		}
		w.buf, w.n = w.f.c.dataPool.Buffers().Frame(), 0
	}
	return (*w.buf)[w.n:w.limit()], nil
}

// pushLocked sends the frame being filled.
func (w *BufferedWriter) pushLocked(ctx context.Context) error {
	f := w.f
	buf, n := w.buf, w.n
	w.buf, w.n = nil, 0
	if buf == nil || n == 0 {
		return w.reapLocked(ctx, false)
	}
	if w.appends() {
		_, _, err := f.appendAll(ctx, (*buf)[:n])
		f.c.dataPool.Buffers().Put(buf)
		return w.failLocked(ctx, err)
	}
	u, err := f.underLocks(ctx)
	if err == nil {
		err = u.end(nil) // only the beginning is under the locks: the frame is sent at once, and its end is seen by reapLocked
	}
	if err != nil {
		f.c.dataPool.Buffers().Put(buf)
		return w.failLocked(ctx, err)
	}
	f.changed()
	off := w.off
	w.off += int64(n)
	done, err := f.writeInlineAt(ctx, (*buf)[:n], off)
	if done || err != nil {
		f.changed()
		f.c.dataPool.Buffers().Put(buf)
		return w.failLocked(ctx, err)
	}
	index, inChunk := off/f.chunkSize, off%f.chunkSize
	cw, err := f.writer(ctx, index)
	if err != nil {
		f.c.dataPool.Buffers().Put(buf)
		return w.failLocked(ctx, err)
	}
	p, err := f.launch(ctx, cw, inChunk, buf, n)
	if err != nil {
		return w.failLocked(ctx, err)
	}
	w.flights = append(w.flights, flight{w: cw, p: p, index: index, off: inChunk, n: int64(n)})
	return w.reapLocked(ctx, false)
}

// reapLocked takes note of acknowledged frames; with all it waits for every one.
func (w *BufferedWriter) reapLocked(ctx context.Context, all bool) error {
	for len(w.flights) > 0 {
		fl := w.flights[0]
		select {
		case <-fl.p.Done():
		default:
			if !all {
				return nil
			}
			select {
			case <-fl.p.Done():
			case <-ctx.Done():
				return ctx.Err() // still in flight: Flush may be called again
			}
		}
		w.flights = w.flights[1:]
		u, err := w.f.underLocks(ctx)
		if err == nil {
			err = u.end(w.f.land(u.ctx, fl, nil))
		}
		if err != nil {
			if errors.Is(err, dfserr.ErrNotExist) {
				err = dfserr.Errorf(dfserr.ErrStaleInode, "the file was cut off while it was being written")
			}
			return w.failLocked(ctx, err)
		}
	}
	w.f.changed()
	return nil
}

// failLocked keeps an error: what was taken after it cannot be written where it belongs.
func (w *BufferedWriter) failLocked(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	w.err = err
	w.f.mu.Lock()
	defer w.f.mu.Unlock()
	if w.f.err == nil {
		w.f.err = err // even when ctx ended: bytes that Write took are lost
	}
	return err
}

// Flush returns when every replica has everything taken so far.
func (w *BufferedWriter) Flush(ctx context.Context) error {
	return pathErr("write", w.f.name, w.flush(ctx))
}

func (w *BufferedWriter) flush(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	if err := w.pushLocked(ctx); err != nil {
		return err
	}
	return w.reapLocked(ctx, true)
}

// Close flushes and closes the File.
func (w *BufferedWriter) Close() error { return w.f.Close() }

// Sync is Flush and the File's Sync.
func (w *BufferedWriter) Sync(ctx context.Context) error { return w.f.Sync(ctx) }
