package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

// scanSegment reads and verifies a whole segment. torn says that it ends in an append that never became durable, behind the returned segment's end. A nil segment without an error
// means that the file was being created and holds nothing. Only the newest segment may be either; anything else is ErrCorrupt.
func scanSegment(f vfs.File, name string, first uint64, newest bool) (seg *segment, torn bool, err error) {
	size, err := f.Size()
	if err != nil {
		return nil, false, dfserr.Errorf(dfserr.ErrDiskFailed, "raft log: segment %s: %v", name, err)
	}
	if size > 2*maxSegment {
		return nil, false, dfserr.Errorf(dfserr.ErrCorrupt, "raft log: segment %s is %d bytes long", name, size)
	}
	w := window{f: f, size: size}
	fail := func(what error, off int64) error {
		return dfserr.Errorf(dfserr.ErrCorrupt, "raft log: segment %s of %d bytes: %v; to go on, empty this master's directories and let it rejoin, or restore a backup (offset %d)", name, size, what, off)
	}
	head, err := w.at(0, min(size, segmentHeadSize))
	if err != nil {
		return nil, false, err
	}
	chain, headErr := decodeSegmentHead(head, first)
	if headErr != nil {
		live, err := w.liveAfter(segmentHeadSize, 0, first)
		if err != nil {
			return nil, false, err
		}
		if live || !newest {
			return nil, false, fail(headErr, 0)
		}
		return nil, false, nil
	}
	seg = &segment{first: first, file: f, start: chain, end: segmentHeadSize}
	for seg.end < size {
		p, recErr, err := w.record(seg.end, first, first+uint64(len(seg.locs)), chain)
		if err != nil {
			return nil, false, err
		}
		if recErr == nil {
			seg.locs = append(seg.locs, p)
			seg.end += int64(p.size)
			chain = p.sum
			continue
		}
		live, err := w.liveAfter(seg.end+1, seg.end, first)
		if err != nil {
			return nil, false, err
		}
		if live || !newest {
			return nil, false, fail(recErr, seg.end)
		}
		return seg, true, nil
	}
	if len(seg.locs) == 0 && !newest {
		return nil, false, fail(errors.New("no entry"), seg.end)
	}
	return seg, false, nil
}

// window reads a file front to back through a buffer.
type window struct {
	f    vfs.File
	size int64
	off  int64 // of buf
	buf  []byte
}

const windowBytes = 1 << 20

// at returns n bytes at off, which must lie in the file; they are valid until the next call.
func (w *window) at(off, n int64) ([]byte, error) {
	if off < w.off || off+n > w.off+int64(len(w.buf)) {
		want := min(max(n, windowBytes), w.size-off)
		if int64(cap(w.buf)) < want {
			w.buf = make([]byte, want)
		}
		w.off, w.buf = off, w.buf[:want]
		if got, err := w.f.ReadAt(w.buf, off); err != nil && !(errors.Is(err, io.EOF) && int64(got) == want) {
			w.buf = w.buf[:0]
			return nil, dfserr.Errorf(dfserr.ErrDiskFailed, "raft log: read %d bytes at offset %d: %v", want, off, err)
		}
	}
	return w.buf[off-w.off:][:n], nil
}

// record verifies the record at off, which must be that of entry index. recErr says what is wrong with it, err that the disk did not answer.
func (w *window) record(off int64, first, index uint64, chain uint32) (p place, recErr, err error) {
	if off+recordHeadSize > w.size {
		return p, fmt.Errorf("%d bytes after entry %d", w.size-off, index-1), nil
	}
	b, err := w.at(off, recordHeadSize)
	if err != nil {
		return p, nil, err
	}
	h, recErr := decodeHead(b, first, off)
	if recErr != nil {
		return p, recErr, nil
	}
	if h.index != index {
		return p, fmt.Errorf("entry %d follows entry %d", h.index, index-1), nil
	}
	size := recordHeadSize + int64(h.bodyLen)
	if off+size > w.size {
		return p, fmt.Errorf("entry %d ends after the file", index), nil
	}
	if b, err = w.at(off, size); err != nil {
		return p, nil, err
	}
	if got := chainSum(chain, index, b[recordHeadSize:]); got != h.bodySum {
		return p, fmt.Errorf("entry %d has CRC %08x, stored is %08x", index, got, h.bodySum), nil
	}
	if size > int64(^uint32(0)) || off > maxSegment {
		return p, fmt.Errorf("entry %d at offset %d", index, off), nil
	}
	return place{off: uint32(off), size: uint32(size), sum: h.bodySum}, nil, nil
}

// liveAfter reports whether any record header at offset from or later says that more than bad bytes were durable before it was written: then what lies at bad
// was acknowledged. Header CRCs are salted with the offset, so neither data nor old bytes look like one.
func (w *window) liveAfter(from, bad int64, first uint64) (bool, error) {
	for off := from; off+recordHeadSize <= w.size; off++ {
		b, err := w.at(off, recordHeadSize)
		if err != nil {
			return false, err
		}
		if binary.BigEndian.Uint32(b) != recordMagic {
			continue
		}
		if h, err := decodeHead(b, first, off); err == nil && int64(h.synced) > bad {
			return true, nil
		}
	}
	return false, nil
}
