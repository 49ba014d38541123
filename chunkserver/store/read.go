package store

import (
	"sync"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// slack is kept free on both sides of a read buffer, so that a piece that the range cuts can be read whole
// together with its neighbours.
const slack = dfs.BlockSize

// The read buffers come in three sizes.
var (
	smallBufs  = sync.Pool{New: func() any { b := make([]byte, 16*dfs.KiB); return &b }}
	mediumBufs = sync.Pool{New: func() any { b := make([]byte, 128*dfs.KiB+2*slack); return &b }}
	largeBufs  = sync.Pool{New: func() any { b := make([]byte, dfs.FrameSize+2*slack); return &b }}
)

func poolFor(n int) *sync.Pool {
	switch {
	case n <= 16*dfs.KiB-2*slack:
		return &smallBufs
	case n <= 128*dfs.KiB:
		return &mediumBufs
	}
	return &largeBufs
}

// Release gives the buffer of Data back; Data must not be used afterwards. Not calling it costs only memory.
// It may be called on a nil result, and more than once.
func (res *ReadResult) Release() {
	if res == nil || res.buf == nil {
		return
	}
	buf := res.buf
	res.buf, res.Data = nil, nil
	poolFor(len(*buf) - 2*slack).Put(buf)
}

// ReadAt returns up to n bytes, at most dfs.FrameSize, of the chunk at offset off, cut at the chunk's length,
// with all mutations in the log applied; what was never written is zero. Every byte read from the disk has
// been verified. ReadResult.DirtyUpTo says whether uncommitted mutations are in it.
//
// ErrCorrupt names the chunk and the offset of bytes that fail their checksum; ErrDiskFailed when the disk does
// not return them; ErrInvalid for a range that cannot be. The result must be released.
func (r *Replica) ReadAt(off, n int64) (*ReadResult, error) {
	if n > dfs.FrameSize || !dfs.CheckRange(off, n, dfs.MaxChunkSize) {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "chunk %v: read of %d+%d", r.id, off, n)
	}
	st, err := r.pin()
	if err != nil {
		return nil, err
	}
	defer r.unpin()
	st.mu.RLock()
	if err := st.soundLocked(); err != nil {
		st.mu.RUnlock()
		return nil, err
	}
	x := st.x
	res := &ReadResult{
		Length: x.length, CommittedLength: x.committedLength, Version: x.version,
		DirtyUpTo: x.dirtyUpTo(off, off+n),
	}
	n = max(0, min(n, x.length-off))
	var local [8]extent
	extents := append(local[:0], x.extents.overlapping(off, off+n)...)
	log := st.log.acquire()
	st.mu.RUnlock()
	err = log.readRange(extents, off, n, res)
	if releaseErr := log.release(); releaseErr != nil {
		st.r.s.logger.Warn("closing a log", "chunk", r.id, "error", releaseErr)
	}
	if err != nil {
		res.Release()
		if dfserr.Sentinel(err) == dfserr.ErrCorrupt {
			st.markCorrupt(log, err, false)
		}
		return nil, err
	}
	return res, nil
}

// rangeReader assembles one range of a chunk and the checksums of its pieces.
type rangeReader struct {
	log      *logFile
	buf      []byte // the range begins at buf[slack]
	off, end int64
	at       int64 // up to here it is done
	crcs     []uint32
}

// readRange reads [off, off+n), n <= dfs.FrameSize, of the chunk from the extents that overlap it.
func (l *logFile) readRange(extents []extent, off, n int64, res *ReadResult) error {
	if n == 0 {
		return nil
	}
	res.buf = poolFor(int(n)).Get().(*[]byte)
	rr := rangeReader{log: l, buf: *res.buf, off: off, end: off + n, at: off}
	rr.crcs = make([]uint32, 0, dfs.BlockPieces(off, n))
	for i := range extents {
		e := &extents[i]
		rr.zeros(max(e.off, off))
		if err := rr.extent(e); err != nil {
			return err
		}
	}
	rr.zeros(rr.end)
	res.Data, res.CRCs = rr.slice(off, rr.end), rr.crcs
	return nil
}

// slice returns the buffer's part for [from, to) of the chunk, which may reach into the slack.
func (rr *rangeReader) slice(from, to int64) []byte {
	return rr.buf[slack+from-rr.off : slack+to-rr.off]
}

// piece notes that the bytes from rr.at to end, which lie in one block, are done and have checksum crc.
func (rr *rangeReader) piece(end int64, crc uint32) {
	if rr.at == rr.off || rr.at%dfs.BlockSize == 0 {
		rr.crcs = append(rr.crcs, crc)
	} else {
		last := &rr.crcs[len(rr.crcs)-1]
		*last = dfs.CombineCRC(*last, crc, end-rr.at)
	}
	rr.at = end
}

// zeros fills up to offset to.
func (rr *rangeReader) zeros(to int64) {
	clear(rr.slice(rr.at, max(rr.at, to)))
	for rr.at < to {
		end := min(to, (rr.at/dfs.BlockSize+1)*dfs.BlockSize)
		rr.piece(end, dfs.ZeroCRC(end-rr.at))
	}
}

// extent reads what an extent has of the range. Pieces that lie wholly in it are read in place, all at once;
// one that the range or the extent cuts is verified whole and given a new checksum. At the range's ends
// the slack has room for the rest of such a piece; inside it takes a read of its own.
func (rr *rangeReader) extent(e *extent) error {
	from, to := max(e.off, rr.off), min(e.end, rr.end)
	readFrom, readTo := e.pieceStart(from), e.pieceEnd(to)
	headCut, tailCut := readFrom < from, readTo > to
	if readFrom == e.pieceStart(to-1) && (headCut || tailCut) {
		return rr.cutPiece(e, from, to)
	}
	if headCut && from > rr.off {
		end := e.pieceEnd(from + 1)
		if err := rr.cutPiece(e, from, end); err != nil {
			return err
		}
		from, readFrom = end, end
	}
	tail := to
	if tailCut && to < rr.end {
		tail = e.pieceStart(to)
		readTo = tail
	}
	if readFrom < readTo {
		if err := rr.log.read(rr.slice(readFrom, readTo), e, readFrom); err != nil {
			return err
		}
	}
	for at := readFrom; at < readTo; {
		end := e.pieceEnd(at + 1)
		if dfs.CRC(rr.slice(at, end)) != e.crc(at) {
			return rr.log.badPiece(e, at)
		}
		crc := e.crc(at)
		if at < from || end > to {
			crc = dfs.CRC(rr.slice(max(at, from), min(end, to)))
		}
		at = end
		rr.piece(min(end, to), crc)
	}
	if tail < to {
		return rr.cutPiece(e, tail, to)
	}
	return nil
}

// cutPiece reads [from, to), a part of one piece, by way of a buffer of its own.
func (rr *rangeReader) cutPiece(e *extent, from, to int64) error {
	start, end := e.pieceStart(from), e.pieceEnd(from+1)
	bp := smallBufs.Get().(*[]byte)
	defer smallBufs.Put(bp)
	b := (*bp)[:end-start]
	if err := rr.log.read(b, e, start); err != nil {
		return err
	}
	if dfs.CRC(b) != e.crc(start) {
		return rr.log.badPiece(e, start)
	}
	part := rr.slice(from, to)
	copy(part, b[from-start:])
	rr.piece(to, dfs.CRC(part))
	return nil
}

// read reads bytes of an extent's record, beginning at chunk offset off.
func (l *logFile) read(p []byte, e *extent, off int64) error {
	if err := readFull(l.f, p, e.logPos(off)); err != nil {
		return l.readError(err, e.logPos(off))
	}
	return nil
}

func (l *logFile) badPiece(e *extent, off int64) error {
	return dfserr.Errorf(dfserr.ErrCorrupt, "chunk %v: bytes %d to %d fail their checksum (at %d of the log)", l.head.chunk, off, e.pieceEnd(off+1), e.logPos(off))
}
