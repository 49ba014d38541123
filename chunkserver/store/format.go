package store

import (
	"encoding/binary"
	"errors"
	"fmt"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// The layout of a replica's log file, byte by byte, is docs/format/replica-log.md. All integers are
// little-endian. This file encodes and decodes its fixed parts; it does no I/O.

// formatVersion is the version of the log format that this code writes and the only one it reads.
const formatVersion = 1

const (
	fileHeaderSize   = 64
	recordHeaderSize = 104 // without the checksums of the payload's pieces
	trailerSize      = 48

	// maxPieces is the most pieces a payload of FrameSize bytes is cut into.
	maxPieces = dfs.FrameSize/dfs.BlockSize + 1
	// maxHeaderSize is the longest header with its checksums.
	maxHeaderSize = recordHeaderSize + 4*maxPieces
	// maxBasePayload bounds the state in front of a compacted log; maxWriters full windows fit.
	maxBasePayload = 32 * dfs.MiB
	// maxFooter bounds the index footer.
	maxFooter = 64 * dfs.MiB
)

var (
	fileMagic    = [8]byte{'D', 'F', 'S', 'R', 'L', 'O', 'G', 0}
	streamMagic  = [8]byte{'D', 'F', 'S', 'R', 'S', 'T', 'R', 0}
	trailerMagic = [8]byte{'D', 'F', 'S', 'R', 'I', 'D', 'X', 0}
	recordMagic  = [4]byte{'d', 'R', 'e', 'c'}
)

// recordType says what a record of the log is.
type recordType uint8

const (
	recWrite    = recordType(KindWrite)
	recZero     = recordType(KindZero)
	recTruncate = recordType(KindTruncate)
	recConfig   = recordType(4) // the replica was told Version
	recDrop     = recordType(5) // mutations after Seq are undone
	recMark     = recordType(6) // carries only the synced mark
	recBase     = recordType(7) // the state that compaction merged, first in a compacted log
	recExtent   = recordType(8) // bytes of the chunk as of the base
	recEnd      = recordType(9) // last in a stream, never in a file
)

// mutation reports whether the record is a mutation of the chunk, numbered by its seq.
func (t recordType) mutation() bool { return t == recWrite || t == recZero || t == recTruncate }

// hasData reports whether the payload is bytes of the chunk.
func (t recordType) hasData() bool { return t == recWrite || t == recExtent }

// fileHeader is the fixed start of a log file or, with the stream magic, of a copy in transit.
type fileHeader struct {
	stream  bool
	cluster dfs.ClusterID
	chunk   dfs.ChunkID
	created dfs.Version
	nonce   uint64 // random per file; 0 in a stream
	crc     uint32 // of the encoded header
}

// encode appends the header's 64 bytes to dst and remembers the checksum.
func (h *fileHeader) encode(dst []byte) []byte {
	start := len(dst)
	if h.stream {
		dst = append(dst, streamMagic[:]...)
	} else {
		dst = append(dst, fileMagic[:]...)
	}
	dst = binary.LittleEndian.AppendUint32(dst, formatVersion)
	dst = binary.LittleEndian.AppendUint32(dst, 0)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.cluster))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.chunk))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.created))
	dst = binary.LittleEndian.AppendUint64(dst, h.nonce)
	dst = append(dst, make([]byte, 12)...)
	h.crc = dfs.CRC(dst[start:])
	return binary.LittleEndian.AppendUint32(dst, h.crc)
}

// decodeFileHeader reads a header of a file, or of a stream. The error wraps ErrCorrupt, or ErrFormat when
// the header is sound but of a version this code does not know.
func decodeFileHeader(b []byte, stream bool) (fileHeader, error) {
	h := fileHeader{stream: stream}
	if len(b) < fileHeaderSize {
		return h, dfserr.Errorf(dfserr.ErrCorrupt, "log header is %d bytes long, want %d", len(b), fileHeaderSize)
	}
	b = b[:fileHeaderSize]
	magic := fileMagic
	if stream {
		magic = streamMagic
	}
	if [8]byte(b) != magic {
		return h, dfserr.Errorf(dfserr.ErrCorrupt, "log header has magic %q, want %q", b[:8], magic[:])
	}
	h.crc = binary.LittleEndian.Uint32(b[60:])
	if got := dfs.CRC(b[:60]); got != h.crc {
		return h, dfserr.Errorf(dfserr.ErrCorrupt, "log header has checksum %08x, contents give %08x", h.crc, got)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != formatVersion {
		return h, dfserr.Errorf(dfserr.ErrFormat, "log has format version %d, this program knows %d", v, formatVersion)
	}
	if binary.LittleEndian.Uint32(b[12:]) != 0 || [12]byte(b[48:]) != [12]byte{} {
		return h, dfserr.Errorf(dfserr.ErrFormat, "log header has flags this program does not know")
	}
	h.cluster = dfs.ClusterID(binary.LittleEndian.Uint64(b[16:]))
	h.chunk = dfs.ChunkID(binary.LittleEndian.Uint64(b[24:]))
	h.created = dfs.Version(binary.LittleEndian.Uint64(b[32:]))
	h.nonce = binary.LittleEndian.Uint64(b[40:])
	return h, nil
}

// seed is the checksum that the checksums of the file's records and trailer continue, so that a record
// of another chunk, cluster or file is never taken for one of this.
func (h *fileHeader) seed() uint32 {
	var salt [24]byte
	binary.LittleEndian.PutUint64(salt[0:], uint64(h.cluster))
	binary.LittleEndian.PutUint64(salt[8:], uint64(h.chunk))
	binary.LittleEndian.PutUint64(salt[16:], h.nonce)
	return dfs.CRC(salt[:])
}

// record is the decoded header of one record. payloadLen bytes of payload follow it in the log.
type record struct {
	typ        recordType
	logOff     int64 // where the record begins in its file
	synced     int64 // the log up to here was durable when the record was written
	version    dfs.Version
	seq        dfs.Seq
	committed  dfs.Seq // known to be committed when the record was written
	off, len   int64   // in the chunk
	writer     uint64
	request    uint64
	cutVersion dfs.Version
	prev       uint32 // crc of the record before, or of the file header
	crc        uint32
	payloadLen int
	crcs       []uint32 // of the payload's pieces
}

func (r *record) headerLen() int64 { return recordHeaderSize + 4*int64(len(r.crcs)) }
func (r *record) payloadAt() int64 { return r.logOff + r.headerLen() }
func (r *record) end() int64       { return r.payloadAt() + int64(r.payloadLen) }
func (r *record) rangeEnd() int64  { return r.off + r.len }

// wantPieces returns how many checksums the payload of a record has.
func wantPieces(typ recordType, off, length int64) int {
	switch {
	case typ.hasData():
		return dfs.BlockPieces(off, length)
	case typ == recBase:
		return 1
	}
	return 0
}

// encode appends the header with its checksums to dst and sets r.crc.
func (r *record) encode(dst []byte, seed uint32) []byte {
	start := len(dst)
	dst = append(dst, recordMagic[:]...)
	dst = append(dst, byte(r.typ), 0, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(r.crcs)))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(r.payloadLen))
	for _, v := range [...]uint64{
		uint64(r.logOff), uint64(r.synced), uint64(r.version), uint64(r.seq), uint64(r.committed),
		uint64(r.off), uint64(r.len), r.writer, r.request, uint64(r.cutVersion),
	} {
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	dst = binary.LittleEndian.AppendUint32(dst, r.prev)
	dst = append(dst, 0, 0, 0, 0) // the checksum
	crcs := len(dst)
	for _, c := range r.crcs {
		dst = binary.LittleEndian.AppendUint32(dst, c)
	}
	r.crc = dfs.UpdateCRC(dfs.UpdateCRC(seed, dst[start:crcs-4]), dst[crcs:])
	binary.LittleEndian.PutUint32(dst[crcs-4:], r.crc)
	return dst
}

// errShort is returned by decodeRecord when it needs more bytes than it was given.
var errShort = errors.New("record header is cut short")

// decodeRecord reads the header at the start of b, which lies at logOff in its file. When b is too short it
// returns how many bytes are needed and errShort; any other error says what is wrong with the bytes. It does
// not see the payload.
func decodeRecord(b []byte, seed uint32, logOff int64) (r record, need int, err error) {
	if len(b) < recordHeaderSize {
		return r, recordHeaderSize, errShort
	}
	if [4]byte(b) != recordMagic {
		return r, 0, fmt.Errorf("no record begins here (magic %q)", b[:4])
	}
	r.typ = recordType(b[4])
	pieces := binary.LittleEndian.Uint32(b[8:])
	if pieces > maxPieces {
		return r, 0, fmt.Errorf("record has %d checksums", pieces)
	}
	need = recordHeaderSize + 4*int(pieces)
	if len(b) < need {
		return r, need, errShort
	}
	r.crc = binary.LittleEndian.Uint32(b[100:])
	if got := dfs.UpdateCRC(dfs.UpdateCRC(seed, b[:100]), b[recordHeaderSize:need]); got != r.crc {
		return r, 0, fmt.Errorf("record header has checksum %08x, contents give %08x", r.crc, got)
	}
	payloadLen := binary.LittleEndian.Uint32(b[12:])
	u64 := func(i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }
	r.logOff, r.synced = int64(u64(16)), int64(u64(24))
	r.version, r.seq, r.committed = dfs.Version(u64(32)), dfs.Seq(u64(40)), dfs.Seq(u64(48))
	r.off, r.len = int64(u64(56)), int64(u64(64))
	r.writer, r.request, r.cutVersion = u64(72), u64(80), dfs.Version(u64(88))
	r.prev = binary.LittleEndian.Uint32(b[96:])
	if err := r.check(logOff, payloadLen, b[5:8], int(pieces)); err != nil {
		return r, 0, err
	}
	r.payloadLen = int(payloadLen)
	if pieces > 0 {
		r.crcs = make([]uint32, pieces)
		for i := range r.crcs {
			r.crcs[i] = binary.LittleEndian.Uint32(b[recordHeaderSize+4*i:])
		}
	}
	return r, need, nil
}

// check refuses headers whose fields cannot be: they are the work of another program, or of a collision.
func (r *record) check(logOff int64, payloadLen uint32, reserved []byte, pieces int) error {
	switch {
	case r.logOff != logOff:
		return fmt.Errorf("record says it is at %d", r.logOff)
	case r.typ < recWrite || r.typ > recEnd || reserved[0]|reserved[1]|reserved[2] != 0:
		return fmt.Errorf("record has unknown type %d", r.typ)
	case !dfs.CheckRange(r.off, r.len, dfs.MaxChunkSize):
		return fmt.Errorf("record has range %d+%d", r.off, r.len)
	case r.synced < 0 || r.synced > logOff:
		return fmt.Errorf("record says that the log is synced up to %d", r.synced)
	case r.typ.hasData() && (int64(payloadLen) != r.len || r.len < 1 || r.len > dfs.FrameSize),
		r.typ == recBase && payloadLen > maxBasePayload,
		!r.typ.hasData() && r.typ != recBase && payloadLen != 0,
		pieces != wantPieces(r.typ, r.off, r.len):
		return fmt.Errorf("record of type %d has range %d+%d, %d bytes of payload and %d checksums", r.typ, r.off, r.len, payloadLen, pieces)
	}
	return nil
}

// verify checks the payload's pieces against the record's checksums; at names where in the chunk the first
// bad piece begins.
func (r *record) verify(payload []byte) (at int64, ok bool) {
	if r.typ == recBase {
		return 0, dfs.CRC(payload) == r.crcs[0]
	}
	off := r.off
	for _, want := range r.crcs {
		n := min(dfs.BlockSize-off%dfs.BlockSize, r.rangeEnd()-off)
		if dfs.CRC(payload[:n]) != want {
			return off, false
		}
		payload, off = payload[n:], off+n
	}
	return 0, true
}

// trailer is the end of a file with an index footer; it tells where the footer is.
type trailer struct {
	end        int64 // of the log, where the footer begins
	footerLen  int64
	chain      uint32 // crc of the last record
	footerCRC  uint32
	trailerCRC uint32
}

func (t *trailer) encode(dst []byte, seed uint32) []byte {
	start := len(dst)
	dst = append(dst, trailerMagic[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(t.end))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(t.footerLen))
	dst = binary.LittleEndian.AppendUint32(dst, t.chain)
	dst = binary.LittleEndian.AppendUint32(dst, t.footerCRC)
	dst = append(dst, make([]byte, 12)...)
	t.trailerCRC = dfs.UpdateCRC(seed, dst[start:])
	return binary.LittleEndian.AppendUint32(dst, t.trailerCRC)
}

// decodeTrailer reads the last trailerSize bytes of a file of the given size; ok is false when they are not
// a trailer that belongs to it.
func decodeTrailer(b []byte, seed uint32, fileSize int64) (t trailer, ok bool) {
	if len(b) != trailerSize || [8]byte(b) != trailerMagic ||
		dfs.UpdateCRC(seed, b[:44]) != binary.LittleEndian.Uint32(b[44:]) {
		return t, false
	}
	t.end = int64(binary.LittleEndian.Uint64(b[8:]))
	t.footerLen = int64(binary.LittleEndian.Uint64(b[16:]))
	t.chain = binary.LittleEndian.Uint32(b[24:])
	t.footerCRC = binary.LittleEndian.Uint32(b[28:])
	if t.end < fileHeaderSize || t.footerLen < 0 || t.footerLen > maxFooter || fileSize < trailerSize ||
		t.end > fileSize || t.end+t.footerLen != fileSize-trailerSize {
		return t, false
	}
	return t, true
}
