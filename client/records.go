package client

import (
	"context"
	"encoding/binary"
	"io"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// Records are framed in the file's bytes: a 16-byte header {magic, length, CRC-32C of the data, CRC-32C of the first 12
// bytes}, all little-endian, then the data. A record lies within one chunk. Where the next one did not fit, zeros fill the
// chunk, so a header of zeros means: go on at the next chunk. docs/format/records.md has the details.
const (
	recordHeader = 16
	recordMagic  = 0x72666473 // "sdfr"
	// MaxRecord is the longest record, in bytes.
	MaxRecord = dfs.FrameSize - recordHeader
)

// AppendRecord appends a record of 1 to MaxRecord bytes exactly once, in one piece, whatever fails and is retried meanwhile (GFS §3.3, without its
// duplicates), and returns where it begins. Any number of writers on any number of clients may append records to one file. After an
// error the record is in the file once or not at all. A file written this way is read with ReadRecords.
func (f *File) AppendRecord(ctx context.Context, data []byte) (off int64, err error) {
	if err := f.useFor("append", true); err != nil {
		return 0, err
	}
	if len(data) == 0 || len(data) > MaxRecord {
		return 0, pathErr("append", f.name, dfserr.Errorf(dfserr.ErrInvalid, "record of %d bytes: want 1 to %d", len(data), MaxRecord))
	}
	f.changed()
	defer f.changed()
	buf := f.c.dataPool.Buffers().Get(recordHeader + len(data))
	defer f.c.dataPool.Buffers().Put(buf)
	h := (*buf)[:recordHeader]
	binary.LittleEndian.PutUint32(h[0:], recordMagic)
	binary.LittleEndian.PutUint32(h[4:], uint32(len(data)))
	binary.LittleEndian.PutUint32(h[8:], dfs.CRC(data))
	binary.LittleEndian.PutUint32(h[12:], dfs.CRC(h[:12]))
	copy((*buf)[recordHeader:], data)
	off, _, err = f.appendSome(ctx, *buf, true)
	return off, pathErr("append", f.name, f.failed(ctx, err))
}

// ReadRecords calls each for the records from off on, which is 0 or what an earlier call returned or a record's own
// offset, until the last complete one. It returns where the next record will begin, to go on from there later. data is valid only
// during the call. An error of each ends it and is returned with the offset of that record. ErrCorrupt names the
// offset of bytes that are no record.
func (f *File) ReadRecords(ctx context.Context, off int64, each func(off int64, data []byte) error) (next int64, err error) {
	if err := f.useFor("read", false); err != nil {
		return off, err
	}
	if off < 0 {
		return off, pathErr("read", f.name, dfserr.Errorf(dfserr.ErrInvalid, "offset %d is negative", off))
	}
	r := recordReader{f: f.file, buf: f.c.dataPool.Buffers().Frame()}
	defer f.c.dataPool.Buffers().Put(r.buf)
	for {
		data, at, after, err := r.next(ctx, off)
		if err == io.EOF {
			return at, nil
		}
		if err != nil {
			return at, pathErr("read", f.name, err)
		}
		if err := each(at, data); err != nil {
			return at, err
		}
		off = after
	}
}

// recordReader reads records through a frame's worth of buffer.
type recordReader struct {
	f    *file
	buf  *[]byte
	from int64 // in the file, of buf[0]
	n    int   // bytes in buf
	eof  bool  // the file ended after buf
}

// window returns n bytes at off, fewer only where the file ends.
func (r *recordReader) window(ctx context.Context, off int64, n int) ([]byte, error) {
	if off < r.from || (off+int64(n) > r.from+int64(r.n) && !r.eof) || r.n == 0 {
		m, err := r.f.readAt(ctx, *r.buf, off)
		if err != nil && err != io.EOF {
			return nil, err
		}
		r.from, r.n, r.eof = off, m, err == io.EOF
	}
	from := min(off-r.from, int64(r.n))
	return (*r.buf)[from:min(from+int64(n), int64(r.n))], nil
}

// next returns the first record at or after off, where it begins, and where it ends; io.EOF with the place to look
// again when there is none yet.
func (r *recordReader) next(ctx context.Context, off int64) (data []byte, at, after int64, err error) {
	for {
		chunkEnd := (off/r.f.chunkSize + 1) * r.f.chunkSize
		if chunkEnd-off < recordHeader {
			off = chunkEnd
			continue
		}
		h, err := r.window(ctx, off, recordHeader)
		if err != nil {
			return nil, off, 0, err
		}
		if len(h) < recordHeader {
			return nil, off, 0, io.EOF
		}
		if binary.LittleEndian.Uint64(h) == 0 && binary.LittleEndian.Uint64(h[8:]) == 0 {
			if more, err := r.window(ctx, chunkEnd, 1); err != nil || len(more) == 0 {
				if err == nil {
					err = io.EOF
				}
				return nil, off, 0, err
			}
			off = chunkEnd
			continue
		}
		n := int64(binary.LittleEndian.Uint32(h[4:]))
		if binary.LittleEndian.Uint32(h) != recordMagic || binary.LittleEndian.Uint32(h[12:]) != dfs.CRC(h[:12]) ||
			n == 0 || n > MaxRecord || off+recordHeader+n > chunkEnd {
			return nil, off, 0, dfserr.Errorf(dfserr.ErrCorrupt, "no record at %d", off)
		}
		crc := binary.LittleEndian.Uint32(h[8:])
		b, err := r.window(ctx, off, int(recordHeader+n))
		if err != nil {
			return nil, off, 0, err
		}
		if int64(len(b)) < recordHeader+n {
			return nil, off, 0, io.EOF
		}
		if dfs.CRC(b[recordHeader:]) != crc {
			return nil, off, 0, dfserr.Errorf(dfserr.ErrCorrupt, "the record at %d has a wrong checksum", off)
		}
		return b[recordHeader:], off, off + recordHeader + n, nil
	}
}
