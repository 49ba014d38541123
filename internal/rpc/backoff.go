package rpc

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is the waiting of one retry loop: pauses that double from First to Last, each drawn at random from its
// upper half. It belongs to one goroutine.
type Backoff struct {
	First, Last time.Duration

	next time.Duration // zero: First
}

// Skip goes on as if n pauses had been waited for since the beginning.
func (b *Backoff) Skip(n int) { b.next = min(b.Last, b.First<<min(max(n, 0), 20)) }

// Reset begins anew with First.
func (b *Backoff) Reset() { b.next = 0 }

// Wait waits for the next pause, or returns ctx's error when that ends first.
func (b *Backoff) Wait(ctx context.Context) error {
	if b.next == 0 {
		b.next = b.First
	}
	t := time.NewTimer(b.next/2 + rand.N(b.next/2+1))
	defer t.Stop()
	b.next = min(2*b.next, b.Last)
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
