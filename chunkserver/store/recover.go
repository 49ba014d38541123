package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

// recovered is what opening a log file found.
type recovered struct {
	log *logFile
	x   *index
	// footer says that the file ends with a valid index footer after x.end.
	footer bool
	// tornAt is where the torn tail begins that must be cut off before writing, -1 for none.
	tornAt int64
	// corrupt is why the log as a whole cannot be trusted, nil when it can. x then describes what comes before
	// the damage.
	corrupt error
}

// errNeverDurable is returned by recoverLog for a file whose creation never became durable.
var errNeverDurable = errors.New("the log's creation was not completed")

// recoverLog opens a log: from its index footer, or by walking over its records. It changes nothing. Errors
// say that the disk cannot be read (ErrDiskFailed), that the format is a newer one (ErrFormat), or
// errNeverDurable; damage is reported in the result.
func recoverLog(f vfs.File, cluster dfs.ClusterID, id dfs.ChunkID) (rec recovered, err error) {
	size, err := f.Size()
	if err != nil {
		return rec, dfserr.Errorf(dfserr.ErrDiskFailed, "chunk %v: size of log: %v", id, err)
	}
	rec.tornAt = -1
	var b [fileHeaderSize]byte
	if n, err := f.ReadAt(b[:min(size, fileHeaderSize)], 0); err != nil && !errors.Is(err, io.EOF) {
		return rec, dfserr.Errorf(dfserr.ErrDiskFailed, "chunk %v: read log header: %v", id, err)
	} else if int64(n) < min(size, fileHeaderSize) {
		return rec, dfserr.Errorf(dfserr.ErrDiskFailed, "chunk %v: read log header: %v", id, io.ErrUnexpectedEOF)
	}
	if size < fileHeaderSize {
		return rec, errNeverDurable // nothing is written before the header is
	}
	head, headErr := decodeFileHeader(b[:], false)
	if headErr == nil && (head.cluster != cluster || head.chunk != id) {
		headErr = dfserr.Errorf(dfserr.ErrCorrupt, "log belongs to chunk %v of cluster %v", head.chunk, head.cluster)
	}
	rec.log = newLogFile(f, head)
	rec.x = newIndex(&head)
	switch {
	case errors.Is(headErr, dfserr.ErrFormat):
		return rec, dfserr.Errorf(dfserr.ErrFormat, "chunk %v: %v", id, headErr)
	case headErr != nil:
		if allZero(b[:]) {
			durable, err := claimsDurable(f, size)
			if err != nil {
				return rec, dfserr.Errorf(dfserr.ErrDiskFailed, "chunk %v: read log: %v", id, err)
			}
			if !durable {
				return rec, errNeverDurable
			}
		}
		rec.corrupt = dfserr.Errorf(dfserr.ErrCorrupt, "chunk %v: %v", id, headErr)
		return rec, nil
	}
	t, haveTrailer, err := rec.log.readTrailer(size)
	if err != nil {
		return rec, err
	}
	if haveTrailer {
		x, err := rec.log.readFooter(&t)
		if err == nil {
			rec.x, rec.footer = x, true
			return rec, nil
		}
		if !errors.Is(err, dfserr.ErrCorrupt) {
			return rec, err
		}
	}
	return rec, rec.scan(size, &t, haveTrailer)
}

// scan recovers from the records.
func (rec *recovered) scan(size int64, t *trailer, haveTrailer bool) error {
	l := rec.log
	s := scanner{f: l.f, seed: l.seed, pos: fileHeaderSize, size: size, chain: l.head.crc}
	var list []record
	var stuck error
	synced := int64(fileHeaderSize)
	if haveTrailer { // its footer is damaged, but it was written when the log was durable
		synced = t.end
	}
	var all []record // what the tail check walks over, drops included
	for {
		r, err := s.next()
		if errors.Is(err, io.EOF) && s.pos == size {
			break
		}
		if errors.Is(err, errBadRecord) {
			stuck = err
			break
		}
		if err != nil {
			return l.readError(err, s.pos)
		}
		synced = max(synced, r.synced)
		all = append(all, r)
	}
	end := s.pos
	if stuck != nil {
		later, err := l.laterMark(end+1, size)
		if err != nil {
			return l.readError(err, end)
		}
		synced = max(synced, later)
		if end < synced {
			rec.corrupt = dfserr.Errorf(dfserr.ErrCorrupt, "chunk %v: log is damaged at %d (%v), before %d up to where it was durable", l.head.chunk, end, stuck, synced)
		}
	}
	// The tail that may not have been durable must hold what it says; from the first record that does not on,
	// it is torn.
	var buf []byte
	for i := range all {
		r := &all[i]
		if rec.corrupt == nil && r.end() > synced && r.payloadLen > 0 {
			var err error
			if buf, err = l.readPayload(r, buf); err != nil && !errors.Is(err, dfserr.ErrCorrupt) {
				return l.readError(err, r.payloadAt())
			} else if err != nil {
				end = r.logOff
				all = all[:i]
				break
			}
		}
		list = appendHistory(list, *r)
	}
	if end < size && rec.corrupt == nil {
		rec.tornAt = end
	}
	x, err := l.replay(list, noLimit)
	if errors.Is(err, dfserr.ErrCorrupt) {
		rec.corrupt = err
		return nil
	}
	if err != nil {
		return err
	}
	x.end, x.chain, x.synced = end, l.head.crc, min(synced, end)
	if len(all) > 0 {
		x.chain = all[len(all)-1].crc
		x.dirtyEnd = end
	}
	for i := range list {
		if r := &list[i]; r.end() <= x.synced && (r.typ.mutation() || r.typ == recBase) {
			x.syncedSeq = r.seq
		}
	}
	rec.x = x
	return nil
}

func allZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// claimsDurable looks, in a log without a header, for anything that can only have been written after a
// successful sync: a record with a synced mark, or the trailer of a footer.
func claimsDurable(f vfs.File, size int64) (bool, error) {
	const step = 1 * dfs.MiB
	buf := make([]byte, min(step+recordHeaderSize, size))
	for at := int64(0); at < size; at += step {
		b := buf[:min(int64(len(buf)), size-at)]
		if err := readFull(f, b, at); err != nil {
			return false, err
		}
		if bytes.Contains(b, trailerMagic[:]) {
			return true, nil
		}
		for i := 0; ; i++ {
			j := bytes.Index(b[i:], recordMagic[:])
			if j < 0 {
				break
			}
			i += j
			if len(b)-i >= recordHeaderSize &&
				binary.LittleEndian.Uint64(b[i+16:]) == uint64(at)+uint64(i) &&
				binary.LittleEndian.Uint64(b[i+24:]) > fileHeaderSize {
				return true, nil
			}
		}
	}
	return false, nil
}

// readTrailer reads the trailer at the end of the file, if there is one.
func (l *logFile) readTrailer(size int64) (t trailer, ok bool, err error) {
	if size < fileHeaderSize+trailerSize {
		return t, false, nil
	}
	var b [trailerSize]byte
	if err := readFull(l.f, b[:], size-trailerSize); err != nil {
		return t, false, dfserr.Errorf(dfserr.ErrDiskFailed, "chunk %v: read log trailer: %v", l.head.chunk, err)
	}
	t, ok = decodeTrailer(b[:], l.seed, size)
	return t, ok, nil
}

// readFooter reads the index footer. ErrCorrupt says that it is no good.
func (l *logFile) readFooter(t *trailer) (*index, error) {
	payload := make([]byte, t.footerLen)
	if err := readFull(l.f, payload, t.end); err != nil {
		return nil, dfserr.Errorf(dfserr.ErrDiskFailed, "chunk %v: read index footer: %v", l.head.chunk, err)
	}
	if dfs.UpdateCRC(l.seed, payload) != t.footerCRC {
		return nil, dfserr.Errorf(dfserr.ErrCorrupt, "chunk %v: index footer fails its checksum", l.head.chunk)
	}
	return decodeFooter(payload, t)
}
