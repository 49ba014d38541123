package raftlog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

// segmentLog is raft.LogStore on segment files. One append is one write and one fsync. After an error that may concern durability, or a bad checksum, the latch is closed and
// the log goes on only in appearance: it stores nothing, and reads give an empty entry where they cannot give the right one (the package comment says why). Safe for concurrent use.
type segmentLog struct {
	fs           vfs.FS
	dir          string // of the segments
	segmentBytes int64
	latch        *latch
	logger       hclog.Logger
	// keepFrom returns the index up to which entries may be dropped although Raft would let go of more: the newest checkpoint. nil means no limit.
	keepFrom func() uint64

	mu       sync.RWMutex
	segments []*segment // ascending; the last is written to. Guarded by mu.
	chain    uint32     // body CRC of the last record. Guarded by mu.
	buf      []byte     // reused by appends. Guarded by mu.
}

// segment is one file. Entries are those from first on, without gaps.
type segment struct {
	first uint64
	file  vfs.File
	start uint32  // chain before the first record
	locs  []place // one per entry
	end   int64   // length of the valid part; all of it is durable
}

// place is where a record lies.
type place struct {
	off  uint32
	size uint32 // of header and body
	sum  uint32 // its body CRC, the chain value for the next
}

func (s *segment) last() uint64 { return s.first + uint64(len(s.locs)) - 1 }

// chainBefore returns the chain value before entry i.
func (s *segment) chainBefore(i int) uint32 {
	if i == 0 {
		return s.start
	}
	return s.locs[i-1].sum
}

const (
	segmentPrefix = "seg-"
	segmentSuffix = ".log"
)

func segmentName(first uint64) string {
	return fmt.Sprintf("%s%020d%s", segmentPrefix, first, segmentSuffix)
}

// parseSegmentName undoes segmentName.
func parseSegmentName(name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, segmentPrefix)
	digits, ok2 := strings.CutSuffix(digits, segmentSuffix)
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, ok && ok2 && err == nil && n > 0 && segmentName(n) == name
}

// openLog opens and verifies the segments in dir/log.
func openLog(fsys vfs.FS, dir string, segmentBytes int64, l *latch, logger hclog.Logger) (_ *segmentLog, err error) {
	s := &segmentLog{fs: fsys, dir: path.Join(dir, "log"), segmentBytes: segmentBytes, latch: l, logger: logger}
	if err := mkdirDurable(fsys, s.dir); err != nil {
		return nil, err
	}
	entries, err := fsys.ReadDir(s.dir)
	if err != nil {
		return nil, dfserr.Errorf(dfserr.ErrDiskFailed, "raft log: %v", err)
	}
	var firsts []uint64
	for _, e := range entries {
		first, ok := parseSegmentName(e.Name())
		if !ok {
			return nil, dfserr.Errorf(dfserr.ErrFormat, "raft log: unknown file %q", path.Join(s.dir, e.Name()))
		}
		firsts = append(firsts, first)
	}
	slices.Sort(firsts)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	for i, first := range firsts {
		if err := s.load(first, i == len(firsts)-1); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// load opens one segment. Only the newest may be torn.
func (s *segmentLog) load(first uint64, newest bool) error {
	name := path.Join(s.dir, segmentName(first))
	f, err := s.fs.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return dfserr.Errorf(dfserr.ErrDiskFailed, "raft log: %v", err)
	}
	seg, torn, err := scanSegment(f, name, first, newest)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if seg == nil { // created, but nothing in it was ever acknowledged
		s.logger.Warn("removing a raft log segment that was never finished", "file", name)
		return errors.Join(f.Close(), s.remove(first))
	}
	if n := len(s.segments); n > 0 {
		if prev := s.segments[n-1]; prev.last()+1 != first || s.chain != seg.start {
			return errors.Join(dfserr.Errorf(dfserr.ErrCorrupt, "raft log: segment %s does not follow entry %d", name, prev.last()), f.Close())
		}
	}
	if torn {
		s.logger.Warn("cutting the torn tail of the raft log", "file", name, "offset", seg.end)
		if err := errors.Join(f.Truncate(seg.end), f.Sync()); err != nil {
			return errors.Join(dfserr.Errorf(dfserr.ErrDiskFailed, "raft log: %v", err), f.Close())
		}
	}
	s.segments = append(s.segments, seg)
	s.chain = seg.chainBefore(len(seg.locs))
	return nil
}

// remove deletes a segment file, durably.
func (s *segmentLog) remove(first uint64) error {
	err := s.fs.Remove(path.Join(s.dir, segmentName(first)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return dfserr.Errorf(dfserr.ErrDiskFailed, "raft log: %v", err)
	}
	if err := s.fs.SyncDir(s.dir); err != nil {
		return dfserr.Errorf(dfserr.ErrDiskFailed, "raft log: %v", err)
	}
	return nil
}

// IsMonotonic tells Raft that indexes have no gaps.
func (s *segmentLog) IsMonotonic() bool { return true }

// FirstIndex returns the index of the oldest entry, 0 for none.
func (s *segmentLog) FirstIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	first, _ := s.boundsLocked()
	return first, nil
}

// LastIndex returns the index of the newest entry, 0 for none.
func (s *segmentLog) LastIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, last := s.boundsLocked()
	return last, nil
}

// boundsLocked returns the first and last index, zeros for an empty log.
func (s *segmentLog) boundsLocked() (first, last uint64) {
	for _, seg := range s.segments {
		if len(seg.locs) > 0 {
			if first == 0 {
				first = seg.first
			}
			last = seg.last()
		}
	}
	return first, last
}

// GetLog reads and verifies one entry. Its slices are the caller's.
func (s *segmentLog) GetLog(index uint64, l *raft.Log) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	seg, ok := s.findLocked(index)
	if !ok {
		if s.latch.err() != nil {
			*l = raft.Log{Index: index, Type: raft.LogNoop}
			return nil
		}
		return raft.ErrLogNotFound
	}
	if err := seg.read(index, l); err != nil {
		_ = s.latch.fail(dfserr.Errorf(dfserr.ErrCorrupt, "raft log: segment %s: %v", path.Join(s.dir, segmentName(seg.first)), err))
		*l = raft.Log{Index: index, Type: raft.LogNoop}
	}
	return nil
}

// findLocked returns the segment that holds index.
func (s *segmentLog) findLocked(index uint64) (*segment, bool) {
	at, found := slices.BinarySearchFunc(s.segments, index, func(seg *segment, i uint64) int {
		switch {
		case seg.first > i:
			return 1
		case len(seg.locs) == 0 || seg.last() < i:
			return -1
		}
		return 0
	})
	if !found {
		return nil, false
	}
	return s.segments[at], true
}

// read reads and verifies entry index, which is in the segment.
func (s *segment) read(index uint64, l *raft.Log) error {
	i := int(index - s.first)
	p := s.locs[i]
	b := make([]byte, p.size)
	if _, err := s.file.ReadAt(b, int64(p.off)); err != nil {
		return fmt.Errorf("read entry %d: %w", index, err)
	}
	h, err := decodeHead(b, s.first, int64(p.off))
	if err != nil {
		return err
	}
	body := b[recordHeadSize:]
	if h.index != index || int(h.bodyLen) != len(body) || chainSum(s.chainBefore(i), index, body) != p.sum {
		return dfserr.Errorf(dfserr.ErrCorrupt, "entry %d at offset %d", index, p.off)
	}
	return decodeBody(h, body, l)
}

// StoreLog appends one entry.
func (s *segmentLog) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries, which must follow the last one; an empty log begins anywhere. They are durable on return.
func (s *segmentLog) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.latch.err(); err != nil {
		return err
	}
	_, last := s.boundsLocked()
	for i, l := range logs {
		if l.Index == 0 || (last > 0 || i > 0) && l.Index != last+1 {
			return dfserr.Errorf(dfserr.ErrInvalid, "raft log: entry %d after entry %d", l.Index, last)
		}
		if size := bodyHeadSize + len(l.Data) + len(l.Extensions); size > maxBody {
			return dfserr.Errorf(dfserr.ErrTooBig, "raft log: entry %d of %d bytes", l.Index, size)
		}
		last = l.Index
	}
	for len(logs) > 0 {
		n, err := s.appendLocked(logs)
		if err != nil {
			return s.latch.fail(dfserr.Errorf(dfserr.ErrDiskFailed, "raft log: append entry %d: %v", logs[0].Index, err))
		}
		logs = logs[n:]
	}
	return nil
}

// appendLocked appends as many entries as one segment takes, at least one, and returns how many.
func (s *segmentLog) appendLocked(logs []*raft.Log) (int, error) {
	seg, err := s.tailLocked(logs[0].Index)
	if err != nil {
		return 0, err
	}
	b, off, chain, n := s.buf[:0], seg.end, s.chain, 0
	locs := seg.locs
	for _, l := range logs {
		if n > 0 && off+int64(recordHeadSize+bodyHeadSize+len(l.Data)+len(l.Extensions)) > max(s.segmentBytes, maxAppendBytes) {
			break
		}
		start := len(b)
		b, chain = appendRecord(b, l, seg.first, off, seg.end, chain)
		locs = append(locs, place{off: uint32(off), size: uint32(len(b) - start), sum: chain})
		off += int64(len(b) - start)
		n++
	}
	if s.buf = b; cap(b) > maxAppendBytes {
		s.buf = nil
	}
	if _, err := seg.file.WriteAt(b, seg.end); err != nil {
		return 0, err
	}
	if err := seg.file.Sync(); err != nil {
		return 0, err
	}
	seg.locs, seg.end, s.chain = locs, off, chain
	return n, nil
}

// maxAppendBytes bounds the buffer that stays allocated, and the size of one write.
const maxAppendBytes = 4 << 20

// tailLocked returns the segment to append entry next to, a new one when there is none or the last is full.
func (s *segmentLog) tailLocked(next uint64) (*segment, error) {
	if n := len(s.segments); n > 0 {
		tail := s.segments[n-1]
		if len(tail.locs) == 0 && tail.first != next { // an empty log begins somewhere else
			if err := errors.Join(tail.file.Close(), s.remove(tail.first)); err != nil {
				return nil, err
			}
			s.segments = s.segments[:n-1]
			s.chain = 0
		} else if tail.end < s.segmentBytes {
			return tail, nil
		}
	}
	f, err := s.fs.OpenFile(path.Join(s.dir, segmentName(next)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteAt(encodeSegmentHead(next, s.chain), 0)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = s.fs.SyncDir(s.dir)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	seg := &segment{first: next, file: f, start: s.chain, end: segmentHeadSize}
	s.segments = append(s.segments, seg)
	return seg, nil
}

// DeleteRange drops entries lo to hi, which must be a prefix or a suffix of the log. A prefix goes by whole files and not beyond the newest checkpoint, so some of it may stay; Raft
// does not mind. A suffix, and the whole log, are gone durably on return.
func (s *segmentLog) DeleteRange(lo, hi uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.latch.err() != nil {
		return nil
	}
	first, last := s.boundsLocked()
	var err error
	switch {
	case first == 0 || hi < first || lo > last || hi < lo:
	case lo <= first && hi >= last:
		for len(s.segments) > 0 && err == nil {
			err = s.dropOldestLocked()
		}
		s.chain = 0
	case lo <= first:
		if s.keepFrom != nil {
			hi = min(hi, s.keepFrom())
		}
		for len(s.segments) > 1 && s.segments[0].last() <= hi && err == nil {
			err = s.dropOldestLocked()
		}
	case hi >= last:
		err = s.cutLocked(lo)
	default:
		return dfserr.Errorf(dfserr.ErrInvalid, "raft log: delete entries %d to %d of %d to %d", lo, hi, first, last)
	}
	if err != nil {
		return s.latch.fail(dfserr.Errorf(dfserr.ErrDiskFailed, "raft log: delete entries %d to %d: %v", lo, hi, err))
	}
	return nil
}

// dropOldestLocked removes the oldest segment.
func (s *segmentLog) dropOldestLocked() error {
	seg := s.segments[0]
	s.segments = s.segments[1:]
	return errors.Join(seg.file.Close(), s.remove(seg.first))
}

// cutLocked removes entry from and all after it, newest files first, so that a crash never leaves a gap.
func (s *segmentLog) cutLocked(from uint64) error {
	for n := len(s.segments); n > 0 && s.segments[n-1].first >= from; n = len(s.segments) {
		seg := s.segments[n-1]
		s.segments = s.segments[:n-1]
		s.chain = seg.start
		if err := errors.Join(seg.file.Close(), s.remove(seg.first)); err != nil {
			return err
		}
	}
	n := len(s.segments)
	if n == 0 {
		s.chain = 0
		return nil
	}
	seg := s.segments[n-1]
	keep := int(from - seg.first)
	if keep >= len(seg.locs) {
		return nil
	}
	seg.end = int64(seg.locs[keep].off)
	s.chain = seg.chainBefore(keep)
	seg.locs = seg.locs[:keep]
	if err := seg.file.Truncate(seg.end); err != nil {
		return err
	}
	return seg.file.Sync()
}

// tail returns the last index and its chain value, for the mark of a clean end.
func (s *segmentLog) tail() (last uint64, chain uint32) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, last = s.boundsLocked()
	return last, s.chain
}

// close closes the files.
func (s *segmentLog) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, seg := range s.segments {
		errs = append(errs, seg.file.Close())
	}
	s.segments = nil
	return errors.Join(errs...)
}
