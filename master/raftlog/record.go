package raftlog

import (
	"encoding/binary"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"

	"dfs/internal/dfserr"
)

// Formats of a segment file (docs/format/raft-log.md). Numbers are big-endian.
//
//	segment: magic "dfsrlog1", first index u64, chain u32 (of the record before, 0 for none), CRC32C u32 of the 20 bytes before it
//	record:  magic u32, body length u32, index u64, synced u64, header CRC u32, body CRC u32, body
//	body:    type u8, term u64, appended at i64 (Unix nanoseconds, 0 for none), extensions length u32, extensions, data
//
// synced is the length of the file that was durable before the append that the record belongs to began. The header CRC is salted with the segment's first index and the record's offset, so
// that old bytes are never taken for a record; the body CRC continues the body CRC of the record before (the chain) over the index and the body, so that no record can be
// lost, repeated or exchanged.
const (
	segmentMagic    = "dfsrlog1"
	segmentHeadSize = 24
	recordMagic     = 0xDF5A106E
	recordHeadSize  = 32
	bodyHeadSize    = 1 + 8 + 8 + 4

	// maxBody bounds what a reader allocates for one record.
	maxBody = bodyHeadSize + 2*(MaxEntry+envelopeBytes) + 64<<10
	// maxSegment keeps offsets within 32 bits.
	maxSegment = 1 << 30
)

func encodeSegmentHead(first uint64, chain uint32) []byte {
	b := append(make([]byte, 0, segmentHeadSize), segmentMagic...)
	b = binary.BigEndian.AppendUint64(b, first)
	b = binary.BigEndian.AppendUint32(b, chain)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeSegmentHead reads a segment's head and returns the chain value before its first record.
func decodeSegmentHead(b []byte, first uint64) (chain uint32, err error) {
	if len(b) < segmentHeadSize {
		return 0, dfserr.Errorf(dfserr.ErrCorrupt, "segment head of %d bytes", len(b))
	}
	b = b[:segmentHeadSize]
	if got, want := crc32.Checksum(b[:20], castagnoli), binary.BigEndian.Uint32(b[20:]); got != want {
		return 0, dfserr.Errorf(dfserr.ErrCorrupt, "segment head has CRC %08x, stored is %08x", got, want)
	}
	if string(b[:8]) != segmentMagic {
		return 0, dfserr.Errorf(dfserr.ErrFormat, "segment begins with %q", b[:8])
	}
	if got := binary.BigEndian.Uint64(b[8:]); got != first {
		return 0, dfserr.Errorf(dfserr.ErrCorrupt, "segment named %d begins at index %d", first, got)
	}
	return binary.BigEndian.Uint32(b[16:]), nil
}

// recordHead is a decoded record header.
type recordHead struct {
	bodyLen uint32
	index   uint64
	synced  uint64
	bodySum uint32
}

// headSum returns the header CRC of the first 24 bytes of b.
func headSum(b []byte, first uint64, off int64) uint32 {
	var salt [16]byte
	binary.BigEndian.PutUint64(salt[:], first)
	binary.BigEndian.PutUint64(salt[8:], uint64(off))
	// The body CRC stands behind the header CRC but is covered by it, too.
	sum := crc32.Update(crc32.Checksum(salt[:], castagnoli), castagnoli, b[:24])
	return crc32.Update(sum, castagnoli, b[28:32])
}

// appendRecord appends the record of l for offset off and returns the new chain value.
func appendRecord(b []byte, l *raft.Log, first uint64, off int64, synced int64, chain uint32) ([]byte, uint32) {
	start := len(b)
	b = binary.BigEndian.AppendUint32(b, recordMagic)
	b = binary.BigEndian.AppendUint32(b, uint32(bodyHeadSize+len(l.Extensions)+len(l.Data)))
	b = binary.BigEndian.AppendUint64(b, l.Index)
	b = binary.BigEndian.AppendUint64(b, uint64(synced))
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, byte(l.Type))
	b = binary.BigEndian.AppendUint64(b, l.Term)
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	b = binary.BigEndian.AppendUint32(b, uint32(len(l.Extensions)))
	b = append(b, l.Extensions...)
	b = append(b, l.Data...)
	rec := b[start:]
	chain = chainSum(chain, l.Index, rec[recordHeadSize:])
	binary.BigEndian.PutUint32(rec[28:], chain)
	binary.BigEndian.PutUint32(rec[24:], headSum(rec, first, off))
	return b, chain
}

// chainSum continues the chain over one record.
func chainSum(chain uint32, index uint64, body []byte) uint32 {
	var salt [12]byte
	binary.BigEndian.PutUint32(salt[:], chain)
	binary.BigEndian.PutUint64(salt[4:], index)
	return crc32.Update(crc32.Checksum(salt[:], castagnoli), castagnoli, body)
}

// decodeHead verifies a record header at offset off of the segment that begins at index first.
func decodeHead(b []byte, first uint64, off int64) (recordHead, error) {
	if len(b) < recordHeadSize {
		return recordHead{}, dfserr.Errorf(dfserr.ErrCorrupt, "record header of %d bytes at offset %d", len(b), off)
	}
	h := recordHead{
		bodyLen: binary.BigEndian.Uint32(b[4:]),
		index:   binary.BigEndian.Uint64(b[8:]),
		synced:  binary.BigEndian.Uint64(b[16:]),
		bodySum: binary.BigEndian.Uint32(b[28:]),
	}
	if binary.BigEndian.Uint32(b) != recordMagic || headSum(b, first, off) != binary.BigEndian.Uint32(b[24:]) {
		return recordHead{}, dfserr.Errorf(dfserr.ErrCorrupt, "record header at offset %d", off)
	}
	if h.bodyLen < bodyHeadSize || h.bodyLen > maxBody || h.synced > uint64(off) {
		return recordHead{}, dfserr.Errorf(dfserr.ErrCorrupt, "record header at offset %d: body of %d bytes, %d synced", off, h.bodyLen, h.synced)
	}
	return h, nil
}

// decodeBody reads a verified body into l; the slices in l are parts of body.
func decodeBody(h recordHead, body []byte, l *raft.Log) error {
	ext := binary.BigEndian.Uint32(body[17:])
	rest := body[bodyHeadSize:]
	if uint64(ext) > uint64(len(rest)) {
		return dfserr.Errorf(dfserr.ErrCorrupt, "log entry %d has extensions of %d bytes in %d", h.index, ext, len(rest))
	}
	*l = raft.Log{Index: h.index, Type: raft.LogType(body[0]), Term: binary.BigEndian.Uint64(body[1:])}
	if at := int64(binary.BigEndian.Uint64(body[9:])); at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	if ext > 0 {
		l.Extensions = rest[:ext:ext]
	}
	if len(rest) > int(ext) {
		l.Data = rest[ext:]
	}
	return nil
}
