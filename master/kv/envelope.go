package kv

import (
	"encoding/binary"
	"hash/crc32"

	"dfs/internal/dfserr"
)

// Envelope of a stored value: one format byte, the CRC32C (Castagnoli, big-endian) of key, format byte and value, and the
// value. The key salts the sum, so that a value that turns up under another key is found out.
const (
	envelopeFormat = 1
	envelopeSize   = 5
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// MaxKey and MaxValue bound what one key holds, in bytes.
const (
	MaxKey   = 4 << 10
	MaxValue = 1<<20 - envelopeSize - 1
)

// seal returns value in its envelope.
func seal(key, value []byte) []byte {
	out := make([]byte, envelopeSize+len(value))
	copy(out[envelopeSize:], value)
	out[0] = envelopeFormat
	binary.BigEndian.PutUint32(out[1:], envelopeSum(key, out[0], value))
	return out
}

func envelopeSum(key []byte, format byte, value []byte) uint32 {
	sum := crc32.Update(0, castagnoli, key)
	sum = crc32.Update(sum, castagnoli, []byte{format})
	return crc32.Update(sum, castagnoli, value)
}

// unseal verifies an envelope and returns the value in it, a part of stored. Errors wrap ErrCorrupt or ErrFormat.
func unseal(key, stored []byte) ([]byte, error) {
	if len(stored) < envelopeSize {
		return nil, dfserr.Errorf(dfserr.ErrCorrupt, "value of key %q is %d bytes long, an envelope has at least %d", key, len(stored), envelopeSize)
	}
	value := stored[envelopeSize:]
	if got, want := envelopeSum(key, stored[0], value), binary.BigEndian.Uint32(stored[1:]); got != want {
		return nil, dfserr.Errorf(dfserr.ErrCorrupt, "value of key %q has CRC %08x, stored is %08x", key, got, want)
	}
	if stored[0] != envelopeFormat {
		return nil, dfserr.Errorf(dfserr.ErrFormat, "value of key %q has envelope format %d, known is %d", key, stored[0], envelopeFormat)
	}
	return value, nil
}
