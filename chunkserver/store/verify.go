package store

import (
	"context"
	"errors"
	"io"
)

// Verify reads the whole log as it is now and checks everything in it, also what reads no longer touch. Before
// each read pace is called with the number of bytes, to limit the rate; its error ends the verification. Damage
// marks the replica corrupt and is returned as ErrCorrupt; ErrDiskFailed when the disk does not return the bytes.
func (r *Replica) Verify(ctx context.Context, pace func(ctx context.Context, bytes int) error) error {
	st, err := r.pin()
	if err != nil {
		return err
	}
	defer r.unpin()
	st.mu.RLock()
	if err := st.soundLocked(); err != nil {
		st.mu.RUnlock()
		return err
	}
	log, end := st.log.acquire(), st.x.end
	st.mu.RUnlock()
	err = log.verifyAll(ctx, end, pace)
	st.markCorruptIf(log, err)
	return errors.Join(err, log.release())
}

// verifyAll checks the file header and the records before end.
func (l *logFile) verifyAll(ctx context.Context, end int64, pace func(ctx context.Context, bytes int) error) error {
	var b [fileHeaderSize]byte
	if err := readFull(l.f, b[:], 0); err != nil {
		return l.readError(err, 0)
	}
	if head, err := decodeFileHeader(b[:], false); err != nil || head.crc != l.head.crc {
		return l.readError(&badRecord{errors.Join(err, errors.New("file header changed"))}, 0)
	}
	s := scanner{f: l.f, seed: l.seed, pos: fileHeaderSize, size: end, chain: l.head.crc}
	var buf []byte
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, err := s.next()
		if errors.Is(err, io.EOF) && s.pos == end {
			return nil
		}
		if err != nil {
			return l.readError(err, s.pos)
		}
		if pace != nil {
			if err := pace(ctx, int(r.end()-r.logOff)); err != nil {
				return err
			}
		}
		if r.payloadLen > 0 {
			if buf, err = l.readPayload(&r, buf); err != nil {
				return l.readError(err, r.payloadAt())
			}
		}
	}
}
