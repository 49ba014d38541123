package raftlog

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"

	"github.com/hashicorp/raft"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

// localSnapshot is raft.FSMSnapshot: the state as of now is made durable and noted, and perhaps streamed into a checkpoint.
type localSnapshot struct {
	fsm   *stateMachine
	index dfs.Index
}

// Persist runs beside further applies.
func (l *localSnapshot) Persist(out raft.SnapshotSink) error {
	k, ok := out.(*sink)
	if !ok {
		return dfserr.Errorf(dfserr.ErrInvalid, "snapshot sink of type %T", out)
	}
	s := k.store
	if err := s.latch.err(); err != nil {
		return err
	}
	synced, err := s.state.SyncTo()
	if err == nil && synced < l.index {
		err = dfserr.Errorf(dfserr.ErrDiskFailed, "state is synced up to %d only", synced)
	}
	if err != nil {
		return s.latch.fail(fmt.Errorf("snapshot of index %d: %w", l.index, err))
	}
	k.local, k.rec.state = true, l.index
	return s.maybeCheckpoint(l.index)
}

// Release ends the pin that keeps the state as of the index.
func (l *localSnapshot) Release() { l.fsm.cfg.State.Unpin(l.index) }

// maybeCheckpoint writes a checkpoint as of index, which the caller has pinned, if the last one is long ago.
func (s *snapshotStore) maybeCheckpoint(index dfs.Index) error {
	s.mu.Lock()
	last := s.checkpoint
	s.mu.Unlock()
	if s.every < 0 || index == 0 || int64(index-last) < s.every {
		return nil
	}
	if err := s.writeCheckpoint(index); err != nil {
		if dfserr.Sentinel(err) == dfserr.ErrDiskFailed {
			return s.latch.fail(err)
		}
		return err
	}
	s.mu.Lock()
	s.checkpoint = index
	s.mu.Unlock()
	if last == 0 {
		return nil
	}
	return s.latch.fail(s.remove(fileName(ckptPrefix, uint64(last))))
}

// A checkpoint file is magic, index u64, length of the stream u64, CRC32C of the stream u32, CRC32C of the 28 bytes before, and the stream, which also verifies itself.
const (
	ckptMagic    = "dfsrckp1"
	ckptHeadSize = 8 + 8 + 8 + 4 + 4
)

func encodeCkptHead(index dfs.Index, size int64, sum uint32) []byte {
	b := binary.BigEndian.AppendUint64([]byte(ckptMagic), uint64(index))
	b = binary.BigEndian.AppendUint64(b, uint64(size))
	return withSum(binary.BigEndian.AppendUint32(b, sum))
}

func decodeCkptHead(b []byte, index dfs.Index) (size int64, sum uint32, err error) {
	body, err := checkSum(b)
	if err != nil {
		return 0, 0, err
	}
	if len(b) != ckptHeadSize || string(body[:8]) != ckptMagic {
		return 0, 0, dfserr.Errorf(dfserr.ErrFormat, "begins with %.8q", b)
	}
	size = int64(binary.BigEndian.Uint64(body[16:]))
	if got := binary.BigEndian.Uint64(body[8:]); got != uint64(index) || size < 0 {
		return 0, 0, dfserr.Errorf(dfserr.ErrCorrupt, "is of index %d with %d bytes", got, size)
	}
	return size, binary.BigEndian.Uint32(body[24:]), nil
}

// writeCheckpoint streams the state as of index into a file that replaces older ones once it is durable.
func (s *snapshotStore) writeCheckpoint(index dfs.Index) error {
	name := fileName(ckptPrefix, uint64(index))
	tmp := path.Join(s.dir, name+tmpSuffix)
	f, err := s.fs.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return dfserr.Errorf(dfserr.ErrDiskFailed, "checkpoint: %v", err)
	}
	w := &fileWriter{f: f, off: ckptHeadSize}
	buf := bufio.NewWriterSize(w, 256<<10)
	err = s.state.WriteSnapshot(s.ctx, index, buf)
	if err == nil {
		err = buf.Flush()
	}
	if err == nil {
		_, werr := f.WriteAt(encodeCkptHead(index, w.off-ckptHeadSize, w.sum), 0)
		w.note(werr)
		if w.err == nil {
			w.note(f.Sync())
		}
	}
	w.note(f.Close())
	if w.err == nil && err == nil {
		w.note(s.fs.Rename(tmp, path.Join(s.dir, name)))
		if w.err == nil {
			w.note(s.fs.SyncDir(s.dir))
		}
	}
	if w.err != nil {
		return dfserr.Errorf(dfserr.ErrDiskFailed, "checkpoint: %v", w.err)
	}
	if err != nil {
		return fmt.Errorf("checkpoint of index %d: %w", index, errors.Join(err, s.remove(name+tmpSuffix)))
	}
	s.logger.Info("wrote a checkpoint", "index", index, "bytes", w.off)
	return nil
}

// fileWriter writes a file front to back, keeps a sum, and remembers the disk's first error.
type fileWriter struct {
	f   vfs.File
	off int64
	sum uint32
	err error
}

func (w *fileWriter) note(err error) {
	if w.err == nil {
		w.err = err
	}
}

func (w *fileWriter) Write(p []byte) (int, error) {
	n, err := w.f.WriteAt(p, w.off)
	w.note(err)
	w.off += int64(n)
	w.sum = crc32.Update(w.sum, castagnoli, p[:n])
	return n, err
}

// openCheckpoint verifies the newest checkpoint and returns its stream.
func (s *snapshotStore) openCheckpoint(ctx context.Context) (dfs.Index, io.ReadCloser, error) {
	index := s.checkpointOnDisk()
	name := path.Join(s.dir, fileName(ckptPrefix, uint64(index)))
	f, err := s.fs.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return 0, nil, dfserr.Errorf(dfserr.ErrDiskFailed, "checkpoint: %v", err)
	}
	head := make([]byte, ckptHeadSize)
	if _, err = f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return 0, nil, errors.Join(dfserr.Errorf(dfserr.ErrDiskFailed, "checkpoint: %v", err), f.Close())
	}
	size, sum, err := decodeCkptHead(head, index)
	if err == nil {
		h := crc32.New(castagnoli)
		_, err = io.Copy(h, &ctxReader{ctx, &fileReader{f: f, off: ckptHeadSize, size: ckptHeadSize + size}})
		if err == nil && h.Sum32() != sum {
			err = dfserr.Errorf(dfserr.ErrCorrupt, "stream has CRC %08x, stored is %08x", h.Sum32(), sum)
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = dfserr.Errorf(dfserr.ErrCorrupt, "shorter than the %d bytes it announces", size)
		}
	}
	if err != nil {
		return 0, nil, errors.Join(fmt.Errorf("checkpoint %s: %w", name, err), f.Close())
	}
	return index, &fileReader{f: f, off: ckptHeadSize, size: ckptHeadSize + size}, nil
}

// ctxReader stops reading when ctx ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// readCloser is a Reader with the Closer of what it reads.
type readCloser struct {
	io.Reader
	io.Closer
}

// checkpointOnDisk returns the index of the newest checkpoint, 0 for none, whatever the settings are.
func (s *snapshotStore) checkpointOnDisk() dfs.Index {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.checkpoint
}
