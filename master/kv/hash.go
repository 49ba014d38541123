package kv

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Hash identifies a state: the sum, lane by lane modulo 2^64, of the first 128 bits of SHA-256(len(key) ‖ key ‖ value) over all
// pairs (an AdHash). Equal states have equal hashes whatever the order of the changes that led to them.
type Hash [2]uint64

// String returns 32 hexadecimal digits.
func (h Hash) String() string { return fmt.Sprintf("%016x%016x", h[0], h[1]) }

// Bytes returns the 16 bytes that String prints.
func (h Hash) Bytes() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, h[0]), h[1])
}

func (h Hash) plus(o Hash) Hash  { return Hash{h[0] + o[0], h[1] + o[1]} }
func (h Hash) minus(o Hash) Hash { return Hash{h[0] - o[0], h[1] - o[1]} }

// pairHasher computes the hash of one pair, reusing its buffer. It is not safe for concurrent use.
type pairHasher struct{ buf []byte }

func (p *pairHasher) sum(key, value []byte) Hash {
	p.buf = binary.BigEndian.AppendUint32(p.buf[:0], uint32(len(key)))
	p.buf = append(p.buf, key...)
	p.buf = append(p.buf, value...)
	s := sha256.Sum256(p.buf)
	return Hash{binary.BigEndian.Uint64(s[0:]), binary.BigEndian.Uint64(s[8:])}
}
