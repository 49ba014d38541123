package store

import (
	"errors"
	"io"
	"slices"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// source reads a log in the form in which it is copied: as a whole, which is a base, extents, and the
// mutations after the base; or as the mutations after some seq. Everything it returns is verified. It describes
// the log at the instant it was made; the log may grow meanwhile.
type source struct {
	log       *logFile
	drops     int // of the openLog, at that instant
	lastSeq   dfs.Seq
	committed dfs.Seq

	whole   bool
	base    []byte // payload of the base record still to be returned
	version dfs.Version
	extents extentMap   // of the base
	ranges  []dfs.Range // of the base still to be returned, each in one record
	tail    []record    // still to be returned
	res     ReadResult  // of the last extent
	buf     []byte      // payload of the last mutation
}

// newSource takes the instant. ErrRange when afterSeq lies outside what the log has as single mutations;
// ErrCorrupt when the log is damaged.
func (st *openLog) newSource(afterSeq dfs.Seq, whole bool) (*source, error) {
	st.mu.RLock()
	if err := st.soundLocked(); err != nil {
		st.mu.RUnlock()
		return nil, err
	}
	x := st.x
	if !whole && (afterSeq < x.baseSeq || afterSeq > x.lastSeq) {
		st.mu.RUnlock()
		return nil, dfserr.Errorf(dfserr.ErrRange, "chunk %v: mutations after %d asked for, the log has those from %d to %d", st.r.id, afterSeq, x.baseSeq+1, x.lastSeq)
	}
	s := &source{
		log: st.log.acquire(), drops: st.drops, lastSeq: x.lastSeq, committed: x.committed,
		whole: whole, version: x.version,
	}
	if whole && s.committed == s.lastSeq {
		// All that the index holds is committed, so that what it was made from need not be read again.
		s.setBase(x, slices.Clone(x.extents.list))
		st.mu.RUnlock()
		return s, nil
	}
	end, epochs := x.end, slices.Clone(x.epochs)
	from, chain := int64(fileHeaderSize), &st.log.head.crc
	if !whole {
		for _, m := range x.marks {
			if m.seq <= afterSeq {
				from, chain = m.off, nil
			}
		}
	}
	st.mu.RUnlock()
	list, err := s.log.history(from, end, chain)
	if err == nil && whole {
		var base *index
		if base, err = s.log.replay(list, s.committed); err == nil {
			base.version, base.epochs = s.version, epochs
			s.setBase(base, base.extents.list)
			afterSeq = s.committed
		}
	}
	if err != nil {
		st.markCorruptIf(s.log, err)
		return nil, errors.Join(err, s.close())
	}
	for _, r := range list {
		if r.typ.mutation() && r.seq > afterSeq {
			s.tail = append(s.tail, r)
		}
	}
	return s, nil
}

// setBase makes what the index holds the base of a whole copy.
func (s *source) setBase(x *index, extents []extent) {
	s.base = x.encodeBase()
	s.extents = extentMap{list: extents, live: x.extents.live}
	s.ranges = s.extents.ranges()
}

// markCorruptIf notes damage to the replica if that is what err says.
func (st *openLog) markCorruptIf(log *logFile, err error) {
	if dfserr.Sentinel(err) == dfserr.ErrCorrupt {
		st.markCorrupt(log, err, false)
	}
}

// ranges returns what the extents cover, cut so that each range fits a record.
func (m *extentMap) ranges() []dfs.Range {
	var out []dfs.Range
	for _, e := range m.list {
		for off := e.off; off < e.end; {
			if n := len(out); n > 0 && out[n-1].End() == off && off%dfs.FrameSize != 0 {
				grow := min(e.end, (off/dfs.FrameSize+1)*dfs.FrameSize) - off
				out[n-1].Len += grow
				off += grow
				continue
			}
			end := min(e.end, (off/dfs.FrameSize+1)*dfs.FrameSize)
			out = append(out, dfs.Range{Off: off, Len: end - off})
			off = end
		}
	}
	return out
}

// bytes estimates how many bytes the source will return.
func (s *source) bytes() (n int64) {
	if s.whole {
		n += s.extents.live + s.extents.live/64 + int64(len(s.ranges))*recordHeaderSize + int64(len(s.base)) + 4*dfs.KiB
	}
	for i := range s.tail {
		n += s.tail[i].end() - s.tail[i].logOff
	}
	return n
}

// next returns the next record, whose place in a log is still to be filled in, and its payload, valid until
// the following call. io.EOF after the last.
func (s *source) next() (record, []byte, error) {
	switch {
	case s.base != nil:
		payload := s.base
		s.base = nil
		return record{
			typ: recBase, version: s.version, seq: s.committed,
			payloadLen: len(payload), crcs: []uint32{dfs.CRC(payload)},
		}, payload, nil
	case len(s.ranges) > 0:
		span := s.ranges[0]
		s.ranges = s.ranges[1:]
		s.res.Release()
		s.res = ReadResult{}
		if err := s.log.readRange(s.extents.overlapping(span.Off, span.End()), span.Off, span.Len, &s.res); err != nil {
			return record{}, nil, err
		}
		return record{
			typ: recExtent, version: s.version, seq: s.committed, off: span.Off, len: span.Len,
			payloadLen: int(span.Len), crcs: s.res.CRCs,
		}, s.res.Data, nil
	case len(s.tail) > 0:
		r := s.tail[0]
		s.tail = s.tail[1:]
		if r.payloadLen == 0 {
			return r, nil, nil
		}
		var err error
		if s.buf, err = s.log.readPayload(&r, s.buf); err != nil {
			return record{}, nil, s.log.readError(err, r.payloadAt())
		}
		return r, s.buf, nil
	}
	return record{}, nil, io.EOF
}

func (s *source) close() error {
	s.res.Release()
	if s.log == nil {
		return nil
	}
	log := s.log
	s.log = nil
	return log.release()
}

// LogReader is the sending side of a copy: a stream of bytes for Receiver.Write. Not safe for concurrent use.
type LogReader struct {
	st     *openLog
	src    *source
	seed   uint32
	at     int64 // in the stream, of the next record
	chain  uint32
	out    []byte // encoded and not yet returned
	data   []byte // payload that follows out
	ended  bool
	closed bool
}

// LogReader returns the replica's log as it is now: the mutations after afterSeq, or with whole the whole log
// with its committed mutations merged. Bytes are verified as they are read, so that damage is not copied:
// Read returns ErrCorrupt instead. ErrRange when single mutations after afterSeq are no longer, or not yet, in
// the log; a whole copy is needed then. The LogReader must be closed.
func (r *Replica) LogReader(afterSeq dfs.Seq, whole bool) (*LogReader, error) {
	st, err := r.pin()
	if err != nil {
		return nil, err
	}
	defer r.unpin()
	src, err := st.newSource(afterSeq, whole)
	if err != nil {
		return nil, err
	}
	head := fileHeader{stream: true, cluster: r.s.cluster, chunk: r.id, created: src.log.head.created}
	lr := &LogReader{st: st, src: src, seed: head.seed(), at: fileHeaderSize}
	lr.out = head.encode(nil)
	lr.chain = head.crc
	return lr, nil
}

// LastSeq returns the last mutation that the stream brings the receiver to.
func (lr *LogReader) LastSeq() dfs.Seq { return lr.src.lastSeq }

// Committed returns the committed seq that the stream tells the receiver.
func (lr *LogReader) Committed() dfs.Seq { return lr.src.committed }

// Size estimates the stream's length in bytes, for ReceiveOptions.Size.
func (lr *LogReader) Size() int64 { return lr.src.bytes() }

// Read implements io.Reader: it fills p unless the stream ends, with io.EOF.
func (lr *LogReader) Read(p []byte) (int, error) {
	if lr.closed {
		return 0, dfserr.Errorf(dfserr.ErrClosed, "log reader of chunk %v", lr.st.r.id)
	}
	done := 0
	for done < len(p) {
		if len(lr.out) > 0 {
			n := copy(p[done:], lr.out)
			lr.out, done = lr.out[n:], done+n
			continue
		}
		if len(lr.data) > 0 {
			n := copy(p[done:], lr.data)
			lr.data, done = lr.data[n:], done+n
			continue
		}
		if lr.ended {
			break
		}
		if err := lr.advance(); err != nil {
			return done, err
		}
	}
	if done == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return done, nil
}

// advance encodes the next record.
func (lr *LogReader) advance() error {
	r, payload, err := lr.src.next()
	if err == io.EOF {
		r = record{typ: recEnd, seq: lr.src.lastSeq, committed: lr.src.committed}
		lr.ended = true
	} else if err != nil {
		lr.st.markCorruptIf(lr.src.log, err)
		return err
	}
	r.logOff, r.synced, r.prev = lr.at, 0, lr.chain
	lr.out = r.encode(lr.out[:0], lr.seed)
	lr.data = payload
	lr.at, lr.chain = r.end(), r.crc
	return nil
}

// Close releases the log.
func (lr *LogReader) Close() error {
	if lr.closed {
		return nil
	}
	lr.closed = true
	return lr.src.close()
}
