package kv

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// A snapshot stream is the magic, then frames {type byte, body length, CRC32C, body}, numbers big-endian. The sum covers the frame's number, type and body,
// so that frames cannot be exchanged, repeated or left out. First a header, then any number of data frames with pairs in ascending key order, then a trailer.
const (
	snapshotMagic  = "dfskvsnap1\n"
	frameHeader    = 'h'
	frameData      = 'd'
	frameTrailer   = 't'
	frameTarget    = 256 << 10           // a data frame is closed when it has grown to this
	maxFrame       = frameTarget + 2<<20 // and one pair more fits
	frameHeadBytes = 1 + 4 + 4
)

// SnapshotInfo describes a snapshot stream.
type SnapshotInfo struct {
	Cluster dfs.ClusterID // 0 when the writer did not know it
	Index   dfs.Index     // newest index in the state
	Hash    Hash
	Keys    uint64
}

// WriteSnapshot writes the state as of index to w. The same index always gives the same bytes. Errors are those of ReadAt, of w, and of ctx.
func (db *DB) WriteSnapshot(ctx context.Context, index dfs.Index, w io.Writer) error {
	_, err := db.writeSnapshot(ctx, index, w)
	return err
}

func (db *DB) writeSnapshot(ctx context.Context, index dfs.Index, w io.Writer) (SnapshotInfo, error) {
	txn, err := db.ReadAt(index)
	if err != nil {
		return SnapshotInfo{}, err
	}
	defer txn.Close()
	rec, err := txn.record()
	if err != nil {
		return SnapshotInfo{}, err
	}
	info := SnapshotInfo{Cluster: db.opts.Cluster, Index: rec.index, Hash: rec.hash, Keys: rec.keys}
	buf := bufio.NewWriterSize(w, 64<<10)
	if _, err := buf.WriteString(snapshotMagic); err != nil {
		return info, fmt.Errorf("write snapshot: %w", err)
	}
	fw := frameWriter{w: buf}
	if err := fw.write(frameHeader, info.encode()); err != nil {
		return info, err
	}
	var (
		body []byte
		h    pairHasher
		sum  Hash
		keys uint64
	)
	err = txn.scan(ctx, nil, nil, func(k, v []byte) (bool, error) {
		sum = sum.plus(h.sum(k, v))
		keys++
		body = appendPair(body, k, v)
		if len(body) < frameTarget {
			return true, nil
		}
		err := fw.write(frameData, body)
		body = body[:0]
		return true, err
	})
	if err != nil {
		return info, fmt.Errorf("write snapshot as of index %d: %w", index, err)
	}
	if sum != rec.hash || keys != rec.keys {
		return info, db.fail(dfserr.Errorf(dfserr.ErrCorrupt, "metadata at index %d has %d keys with hash %s, expected are %d with %s", rec.index, keys, sum, rec.keys, rec.hash))
	}
	if len(body) > 0 {
		if err := fw.write(frameData, body); err != nil {
			return info, err
		}
	}
	if err := fw.write(frameTrailer, info.encode()); err != nil {
		return info, err
	}
	if err := buf.Flush(); err != nil {
		return info, fmt.Errorf("write snapshot: %w", err)
	}
	return info, nil
}

func (i SnapshotInfo) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(i.Cluster))
	b = binary.BigEndian.AppendUint64(b, uint64(i.Index))
	b = binary.BigEndian.AppendUint64(b, i.Keys)
	return append(b, i.Hash.Bytes()...)
}

const snapshotInfoBytes = 5 * 8

func decodeInfo(b []byte) (SnapshotInfo, error) {
	if len(b) != snapshotInfoBytes {
		return SnapshotInfo{}, dfserr.Errorf(dfserr.ErrCorrupt, "snapshot header of %d bytes, want %d", len(b), snapshotInfoBytes)
	}
	u := func(i int) uint64 { return binary.BigEndian.Uint64(b[8*i:]) }
	return SnapshotInfo{Cluster: dfs.ClusterID(u(0)), Index: dfs.Index(u(1)), Keys: u(2), Hash: Hash{u(3), u(4)}}, nil
}

func appendPair(b, key, value []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(key)))
	b = append(b, key...)
	b = binary.AppendUvarint(b, uint64(len(value)))
	return append(b, value...)
}

// cutPair undoes appendPair; the parts alias b.
func cutPair(b []byte) (key, value, rest []byte, err error) {
	key, rest, err = cutBytes(b, MaxKey)
	if err == nil {
		value, rest, err = cutBytes(rest, MaxValue)
	}
	if err == nil {
		err = checkKey(key)
	}
	if err != nil {
		return nil, nil, nil, dfserr.Errorf(dfserr.ErrCorrupt, "snapshot pair: %v", err)
	}
	return key, value, rest, nil
}

func cutBytes(b []byte, limit uint64) (part, rest []byte, err error) {
	n, used := binary.Uvarint(b)
	if used <= 0 || n > limit || n > uint64(len(b)-used) {
		return nil, nil, dfserr.Errorf(dfserr.ErrCorrupt, "length %d in %d bytes", n, len(b))
	}
	return b[used : used+int(n)], b[used+int(n):], nil
}

type frameWriter struct {
	w io.Writer
	n uint64 // frames so far
}

func (f *frameWriter) write(typ byte, body []byte) error {
	head := make([]byte, 0, frameHeadBytes)
	head = append(head, typ)
	head = binary.BigEndian.AppendUint32(head, uint32(len(body)))
	head = binary.BigEndian.AppendUint32(head, frameSum(f.n, typ, body))
	f.n++
	if _, err := f.w.Write(head); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if _, err := f.w.Write(body); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

func frameSum(n uint64, typ byte, body []byte) uint32 {
	salt := append(binary.BigEndian.AppendUint64(make([]byte, 0, 9), n), typ)
	return crc32.Update(crc32.Checksum(salt, castagnoli), castagnoli, body)
}

type frameReader struct {
	r   io.Reader
	n   uint64
	buf []byte
}

// read returns the next frame; the body is valid until the next call. A stream that ends is ErrCorrupt: a whole one ends with a trailer.
func (f *frameReader) read() (typ byte, body []byte, err error) {
	var head [frameHeadBytes]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return 0, nil, dfserr.Errorf(dfserr.ErrCorrupt, "snapshot ends in frame %d (%v)", f.n, err)
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size > maxFrame {
		return 0, nil, dfserr.Errorf(dfserr.ErrCorrupt, "snapshot frame %d of %d bytes", f.n, size)
	}
	if uint32(cap(f.buf)) < size {
		f.buf = make([]byte, size)
	}
	body = f.buf[:size]
	if _, err := io.ReadFull(f.r, body); err != nil {
		return 0, nil, dfserr.Errorf(dfserr.ErrCorrupt, "snapshot ends in frame %d (%v)", f.n, err)
	}
	if got, want := frameSum(f.n, head[0], body), binary.BigEndian.Uint32(head[5:]); got != want {
		return 0, nil, dfserr.Errorf(dfserr.ErrCorrupt, "snapshot frame %d has CRC %08x, stored is %08x", f.n, got, want)
	}
	f.n++
	return head[0], body, nil
}

// ReadSnapshot reads a stream that WriteSnapshot wrote, verifies it whole, and calls fn with each pair, in ascending key order. The slices are valid
// during the call only. What fn saw counts only when the error is nil, because the hash is compared last. Errors wrap ErrCorrupt or ErrFormat, or are fn's or ctx's.
func ReadSnapshot(ctx context.Context, r io.Reader, fn func(info SnapshotInfo, key, value []byte) error) (SnapshotInfo, error) {
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return SnapshotInfo{}, dfserr.Errorf(dfserr.ErrCorrupt, "snapshot ends in its magic (%v)", err)
	}
	if string(magic) != snapshotMagic {
		return SnapshotInfo{}, dfserr.Errorf(dfserr.ErrFormat, "snapshot begins with %q", magic)
	}
	fr := frameReader{r: r}
	typ, body, err := fr.read()
	if err != nil {
		return SnapshotInfo{}, err
	}
	if typ != frameHeader {
		return SnapshotInfo{}, dfserr.Errorf(dfserr.ErrCorrupt, "snapshot begins with a frame of type %q", typ)
	}
	info, err := decodeInfo(body)
	if err != nil {
		return SnapshotInfo{}, err
	}
	check := snapshotCheck{info: info}
	for {
		if err := ctx.Err(); err != nil {
			return info, err
		}
		typ, body, err := fr.read()
		if err != nil {
			return info, err
		}
		switch typ {
		case frameData:
			for len(body) > 0 {
				var key, value []byte
				if key, value, body, err = cutPair(body); err != nil {
					return info, err
				}
				if err := check.pair(key, value); err != nil {
					return info, err
				}
				if err := fn(info, key, value); err != nil {
					return info, err
				}
			}
		case frameTrailer:
			return info, check.trailer(body)
		default:
			return info, dfserr.Errorf(dfserr.ErrFormat, "snapshot frame %d of type %q", fr.n-1, typ)
		}
	}
}

// snapshotCheck follows a stream and compares it with its header.
type snapshotCheck struct {
	info SnapshotInfo
	h    pairHasher
	sum  Hash
	keys uint64
	last []byte
}

func (c *snapshotCheck) pair(key, value []byte) error {
	if c.keys > 0 && string(key) <= string(c.last) {
		return dfserr.Errorf(dfserr.ErrCorrupt, "snapshot key %q follows %q", key, c.last)
	}
	c.last = append(c.last[:0], key...)
	c.keys++
	c.sum = c.sum.plus(c.h.sum(key, value))
	return nil
}

func (c *snapshotCheck) trailer(body []byte) error {
	t, err := decodeInfo(body)
	if err != nil {
		return err
	}
	if t != c.info || c.keys != c.info.Keys || c.sum != c.info.Hash {
		return dfserr.Errorf(dfserr.ErrCorrupt, "snapshot has %d keys with hash %s, its header says %d with %s", c.keys, c.sum, c.info.Keys, c.info.Hash)
	}
	return nil
}
