package dfs

import "hash/crc32"

// castagnoli is the table of CRC-32C, which processors compute in hardware. It is never modified.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// zeroBlock is a block of zeros to take checksums of. It is never modified.
var zeroBlock [BlockSize]byte

// CRC returns the CRC-32C (Castagnoli) of data: the checksum used everywhere in the project.
func CRC(data []byte) uint32 { return crc32.Update(0, castagnoli, data) }

// UpdateCRC returns the CRC-32C of the bytes that gave crc followed by data, so that a checksum can be
// taken over scattered buffers. UpdateCRC(0, data) equals CRC(data).
func UpdateCRC(crc uint32, data []byte) uint32 { return crc32.Update(crc, castagnoli, data) }

// BlockPieces returns how many pieces a range of length bytes at chunk offset off is cut into at block
// boundaries: 0 for an empty range.
func BlockPieces(off, length int64) int {
	if length <= 0 {
		return 0
	}
	return int((off+length-1)/BlockSize - off/BlockSize + 1)
}

// BlockCRCs returns the CRC-32C of each piece of data, cut at the block boundaries of the chunk when data
// begins at offset off in the chunk. The first and the last piece may be shorter than BlockSize. The
// result has BlockPieces(off, len(data)) elements.
func BlockCRCs(off int64, data []byte) []uint32 {
	return AppendBlockCRCs(make([]uint32, 0, BlockPieces(off, int64(len(data)))), off, data)
}

// AppendBlockCRCs is BlockCRCs appending to dst, for callers that reuse a buffer.
func AppendBlockCRCs(dst []uint32, off int64, data []byte) []uint32 {
	for len(data) > 0 {
		n := min(int(BlockSize-off%BlockSize), len(data))
		dst = append(dst, CRC(data[:n]))
		data = data[n:]
		off += int64(n)
	}
	return dst
}

// BlockCRCsV is BlockCRCs of the concatenation of the buffers, without concatenating them.
func BlockCRCsV(off int64, data [][]byte) []uint32 {
	var total int64
	for _, b := range data {
		total += int64(len(b))
	}
	crcs := make([]uint32, 0, BlockPieces(off, total))
	crc, room := uint32(0), int(BlockSize-off%BlockSize)
	started := false
	for _, b := range data {
		for len(b) > 0 {
			n := min(room, len(b))
			crc, started = UpdateCRC(crc, b[:n]), true
			b, room = b[n:], room-n
			if room == 0 {
				crcs, crc, room, started = append(crcs, crc), 0, BlockSize, false
			}
		}
	}
	if started {
		crcs = append(crcs, crc)
	}
	return crcs
}

// ZeroCRC returns the CRC-32C of n zero bytes, n >= 0.
func ZeroCRC(n int64) uint32 {
	if n <= BlockSize {
		return CRC(zeroBlock[:n])
	}
	rest := n % BlockSize
	crc := CRC(zeroBlock[:rest])
	unit, unitLen := CRC(zeroBlock[:]), int64(BlockSize)
	for blocks := n / BlockSize; blocks > 0; blocks >>= 1 {
		if blocks&1 == 1 {
			crc = CombineCRC(crc, unit, unitLen)
		}
		unit, unitLen = CombineCRC(unit, unit, unitLen), 2*unitLen
	}
	return crc
}

// CombineCRC returns the CRC-32C of the concatenation of two byte strings, given the CRC a of the first, the
// CRC b of the second and the length of the second in bytes (>= 0). It multiplies a by x^(8·lenB) in
// GF(2)[x] modulo the Castagnoli polynomial, as zlib's crc32_combine does for its own.
func CombineCRC(a, b uint32, lenB int64) uint32 {
	p := uint32(1) << 31 // the polynomial 1, bits reflected
	for k := 3; lenB > 0; lenB, k = lenB>>1, k+1 {
		if lenB&1 == 1 {
			p = multModP(powers[k], p)
		}
	}
	return multModP(p, a) ^ b
}

// powers[k] is x^(2^k) modulo the Castagnoli polynomial, enough for any int64 length. It is never modified.
var powers = func() (t [67]uint32) {
	t[0] = 1 << 30 // the polynomial x, bits reflected
	for k := 1; k < len(t); k++ {
		t[k] = multModP(t[k-1], t[k-1])
	}
	return t
}()

// multModP multiplies two polynomials over GF(2) modulo the Castagnoli polynomial, bits reflected.
func multModP(a, b uint32) uint32 {
	var p uint32
	for m := uint32(1) << 31; m != 0; m >>= 1 {
		if a&m != 0 {
			p ^= b
			if a&(m-1) == 0 {
				break
			}
		}
		if b&1 == 1 {
			b = b>>1 ^ crc32.Castagnoli
		} else {
			b >>= 1
		}
	}
	return p
}
