package store

import (
	"bytes"
	"errors"
	"io"
	"sync/atomic"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

// logFile is an open log. It is closed when the last reference goes: compaction and deletion drop the
// replica's own reference while readers may still hold theirs.
type logFile struct {
	f    vfs.File
	head fileHeader
	seed uint32
	refs atomic.Int32
}

func newLogFile(f vfs.File, head fileHeader) *logFile {
	l := &logFile{f: f, head: head, seed: head.seed()}
	l.refs.Store(1)
	return l
}

// acquire takes a reference; the caller must know that there is one already.
func (l *logFile) acquire() *logFile {
	l.refs.Add(1)
	return l
}

// release gives a reference back.
func (l *logFile) release() error {
	if l.refs.Add(-1) == 0 {
		return l.f.Close()
	}
	return nil
}

// readFull reads exactly len(p) bytes.
func readFull(f vfs.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// writeRecord writes a record at the end of the log that x describes, in one gathering write, and returns it
// ready for x.apply. The payload's pieces must be r.crcs. buf and vec are scratch space that is grown as needed.
func (l *logFile) writeRecord(x *index, r *record, payload [][]byte, buf *[]byte, vec *[][]byte) error {
	r.logOff, r.synced, r.committed, r.prev = x.end, x.synced, x.committed, x.chain
	*buf = r.encode((*buf)[:0], l.seed)
	*vec = append(append((*vec)[:0], *buf), payload...)
	_, err := l.f.WriteVAt(*vec, x.end)
	clear(*vec)
	return err
}

// scanner walks over the records of a log, or of a part of it.
type scanner struct {
	f     vfs.File
	seed  uint32
	pos   int64  // of the next record
	size  int64  // nothing is read at or after it
	chain uint32 // what the next record's prev must be
	loose bool   // the chain is not known yet

	win   []byte // bytes read ahead
	winAt int64
	small bool // the last record was small, so that reading ahead pays
}

// Windows of the scanner: enough for one header, and enough for many small records.
const (
	smallWindow = 2 * dfs.KiB
	bigWindow   = 64 * dfs.KiB
)

// errBadRecord is wrapped by the error of scanner.next when the bytes are not a record, as opposed to
// when they cannot be read.
var errBadRecord = errors.New("bad record")

type badRecord struct{ cause error }

func (b *badRecord) Error() string   { return b.cause.Error() }
func (b *badRecord) Unwrap() []error { return []error{errBadRecord, b.cause} }

// next returns the record at pos and steps over it. At size it returns io.EOF; for bytes that are not the
// next record an error that wraps errBadRecord, with pos unchanged; else what the disk said.
func (s *scanner) next() (record, error) {
	if s.pos == s.size {
		return record{}, io.EOF
	}
	need := recordHeaderSize
	for {
		b, err := s.bytes(need)
		if err != nil {
			return record{}, err
		}
		r, n, err := decodeRecord(b, s.seed, s.pos)
		if errors.Is(err, errShort) && n > len(b) && int64(n) <= s.size-s.pos {
			need = n
			continue
		}
		if err == nil && !s.loose && r.prev != s.chain {
			err = errors.New("record does not follow the one before it")
		}
		if err == nil && r.end() > s.size {
			err = errors.New("payload is cut short")
		}
		if err != nil {
			return record{}, &badRecord{err}
		}
		s.pos, s.chain, s.loose = r.end(), r.crc, false
		s.small = r.payloadLen < bigWindow/8
		return r, nil
	}
}

// bytes returns at least n bytes at pos, fewer at the end of the log.
func (s *scanner) bytes(n int) ([]byte, error) {
	avail := s.size - s.pos
	if have := s.winAt + int64(len(s.win)) - s.pos; s.pos >= s.winAt && have >= min(int64(n), avail) {
		return s.win[s.pos-s.winAt:], nil
	}
	want := int64(max(n, smallWindow))
	if s.small {
		want = bigWindow
	}
	want = min(want, avail)
	if int64(cap(s.win)) < want {
		s.win = make([]byte, max(want, smallWindow))
	}
	s.win = s.win[:want]
	s.winAt = s.pos
	if err := readFull(s.f, s.win, s.pos); err != nil {
		s.win = s.win[:0]
		return nil, err
	}
	return s.win, nil
}

// laterMark looks for records after the scan got stuck and returns the highest synced mark among them, 0
// for none: if it lies after the bad record, that record was durable once.
func (l *logFile) laterMark(from, size int64) (int64, error) {
	const step = 1 * dfs.MiB
	var synced int64
	buf := make([]byte, min(step+maxHeaderSize, size-from))
	for at := from; at < size; at += step {
		b := buf[:min(int64(len(buf)), size-at)]
		if err := readFull(l.f, b, at); err != nil {
			return 0, err
		}
		for i := 0; ; i++ {
			j := bytes.Index(b[i:], recordMagic[:])
			if j < 0 {
				break
			}
			i += j
			if r, _, err := decodeRecord(b[i:], l.seed, at+int64(i)); err == nil {
				synced = max(synced, r.synced)
			}
		}
	}
	return synced, nil
}

// readPayload reads and verifies the payload of a record into buf, which is grown as needed.
func (l *logFile) readPayload(r *record, buf []byte) ([]byte, error) {
	if cap(buf) < r.payloadLen {
		buf = make([]byte, r.payloadLen)
	}
	buf = buf[:r.payloadLen]
	if err := readFull(l.f, buf, r.payloadAt()); err != nil {
		return buf, err
	}
	if at, ok := r.verify(buf); !ok {
		return buf, dfserr.Errorf(dfserr.ErrCorrupt, "chunk %v: payload of the record at %d of its log fails its checksum at chunk offset %d", l.head.chunk, r.logOff, at)
	}
	return buf, nil
}

// history reads the headers of the records from position from on and returns those that count, without the
// mutations that later drop records undo. With chain nil the first record is taken as it is.
func (l *logFile) history(from, end int64, chain *uint32) ([]record, error) {
	s := scanner{f: l.f, seed: l.seed, pos: from, size: end, loose: chain == nil}
	if chain != nil {
		s.chain = *chain
	}
	var list []record
	for {
		r, err := s.next()
		if errors.Is(err, io.EOF) && s.pos == end {
			return list, nil
		}
		if err != nil {
			return list, l.readError(err, s.pos)
		}
		list = appendHistory(list, r)
	}
}

// readError turns what a scan met into an error for callers: damage is ErrCorrupt, else the disk failed.
func (l *logFile) readError(err error, pos int64) error {
	if errors.Is(err, errBadRecord) || errors.Is(err, io.ErrUnexpectedEOF) {
		return dfserr.Errorf(dfserr.ErrCorrupt, "chunk %v: log is damaged at %d (%v)", l.head.chunk, pos, err)
	}
	if errors.Is(err, dfserr.ErrCorrupt) {
		return err
	}
	return dfserr.Errorf(dfserr.ErrDiskFailed, "chunk %v: read log at %d: %v", l.head.chunk, pos, err)
}

// appendHistory adds a record to a history; a drop record undoes instead.
func appendHistory(list []record, r record) []record {
	if r.typ != recDrop {
		return append(list, r)
	}
	kept := list[:0]
	for _, old := range list {
		if !old.typ.mutation() || old.seq <= r.seq {
			kept = append(kept, old)
		}
	}
	return kept
}

// replay builds the index that a history from the start of the log adds up to, with mutations only up to
// limit. Its end, chain and synced mark are left to the caller.
func (l *logFile) replay(list []record, limit dfs.Seq) (*index, error) {
	x := newIndex(&l.head)
	for i := range list {
		r := &list[i]
		switch {
		case r.typ == recBase:
			if i != 0 {
				return nil, dfserr.Errorf(dfserr.ErrCorrupt, "chunk %v: base record in the middle of the log at %d", l.head.chunk, r.logOff)
			}
			payload, err := l.readPayload(r, nil)
			if err != nil {
				return nil, l.readError(err, r.payloadAt())
			}
			if err := x.applyBase(r, payload); err != nil {
				return nil, dfserr.Errorf(dfserr.ErrCorrupt, "chunk %v: base of the log: %v", l.head.chunk, err)
			}
		case r.typ.mutation() && r.seq > limit:
		case r.typ == recEnd,
			r.typ == recExtent && (list[0].typ != recBase || x.lastSeq != x.baseSeq || r.rangeEnd() > x.length),
			r.typ.mutation() && (r.seq != x.lastSeq+1 || r.version < x.lastMutationVersion() || r.version > x.version):
			return nil, dfserr.Errorf(dfserr.ErrCorrupt, "chunk %v: record of type %d, version %d, seq %d at %d of the log follows seq %d", l.head.chunk, r.typ, r.version, r.seq, r.logOff, x.lastSeq)
		default:
			x.apply(r)
		}
	}
	x.settleEpochs()
	committed := x.committed
	for i := range list {
		committed = max(committed, list[i].committed)
	}
	x.setCommitted(committed)
	return x, nil
}

const noLimit = ^dfs.Seq(0)
