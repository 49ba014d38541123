package rpc

import (
	"math/bits"
	"sync"

	"google.golang.org/grpc/mem"

	"dfs/internal/dfs"
)

// Sizes of pooled buffers, as powers of two: 1 KiB … 4 MiB.
const (
	minTier = 10
	maxTier = 22
)

// Buffers is a pool of byte buffers in power-of-two sizes from 1 KiB to 4 MiB; larger ones are allocated and
// left to the collector. Unlike grpc's own pool it does not clear what it hands out, so only its first
// length bytes, once written, mean anything. It implements mem.BufferPool, is safe for concurrent use, and
// must not be copied.
type Buffers struct {
	tiers [maxTier - minTier + 1]sync.Pool
}

var _ mem.BufferPool = (*Buffers)(nil)

// NewBuffers returns an empty pool. One per process is meant, shared by its server and its Pool.
func NewBuffers() *Buffers { return &Buffers{} }

// Get returns a buffer of the given length with arbitrary content.
func (b *Buffers) Get(length int) *[]byte {
	t := tierFor(length)
	if t > maxTier {
		p := make([]byte, length)
		return &p
	}
	if v := b.tiers[t-minTier].Get(); v != nil {
		p := v.(*[]byte)
		*p = (*p)[:length]
		return p
	}
	p := make([]byte, length, 1<<t)
	return &p
}

// Put takes a buffer back; the caller must not touch it again. Buffers that Get did not make are dropped.
func (b *Buffers) Put(p *[]byte) {
	c := cap(*p)
	if c < 1<<minTier || c > 1<<maxTier || c&(c-1) != 0 {
		return
	}
	*p = (*p)[:0]
	b.tiers[tierFor(c)-minTier].Put(p)
}

// Frame returns an empty payload buffer with room for dfs.FrameSize bytes, to be filled and then wrapped with Own.
func (b *Buffers) Frame() *[]byte { return b.Get(dfs.FrameSize) }

// Own makes a reference-counted buffer, with one reference, out of a slice that came from Get. The slice goes
// back to the pool by itself when the last reference is freed.
func (b *Buffers) Own(p *[]byte) mem.Buffer { return mem.NewBuffer(p, b) }

// tierFor returns the exponent of the smallest tier that holds n bytes.
func tierFor(n int) int {
	if n <= 1<<minTier {
		return minTier
	}
	return bits.Len(uint(n - 1))
}

// lent is a mem.BufferPool for exactly one buffer: "putting it back" tells its lender.
type lent struct{ released func() }

func (l lent) Get(length int) *[]byte { p := make([]byte, length); return &p }
func (l lent) Put(*[]byte)            { l.released() }

// Lend makes a reference-counted buffer, with one reference, out of memory that stays the caller's. The bytes
// must not change until released is called, once, when the last reference is freed: by the sender's
// Frame.Free and by gRPC when the bytes are on the wire or the call has ended, whichever is later; it may run on any
// goroutine and must not block. A small p is copied and released at once.
func Lend(p []byte, released func()) mem.Buffer {
	if mem.IsBelowBufferPoolingThreshold(cap(p)) {
		c := append(make(mem.SliceBuffer, 0, len(p)), p...)
		released()
		return c
	}
	return mem.NewBuffer(&p, lent{released})
}
