package testcluster

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"sync"

	"dfs/client"
	"dfs/internal/dfs"
)

// extension is what is known of a file that is only ever made longer: by appends, by writes beyond its end, and by truncations to more than its length.
type extension struct {
	turn   chan struct{} // held while the file is made longer other than by an append
	mu     sync.Mutex
	end    int64  // guarded by mu: the file is at least this long
	pieces []span // guarded by mu: acknowledged
}

// span is one acknowledged append or write, in ticks and bytes.
type span struct {
	op
	off  int64
	data []byte
}

func (p span) overlaps(q span) bool {
	return p.off < q.off+int64(len(q.data)) && q.off < p.off+int64(len(p.data))
}

// known returns a length that the file has reached.
func (e *extension) known() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.end
}

func (e *extension) note(end int64, p *span) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.end = max(e.end, end)
	if p != nil {
		e.pieces = append(e.pieces, *p)
	}
}

// append appends a record, which must go behind everything that was there before.
func (e *extension) append(ctx context.Context, s *sim, r record, n int, f *client.File) {
	p := span{data: r.bytes(n)}
	end := e.known()
	p.invoked = s.tick()
	var err error
	p.off, err = f.Append(ctx, p.data)
	p.returned = s.tick()
	s.trace.note("appended %v to /extended at %d", r, p.off)
	s.must(err)
	if p.off < end {
		s.t.Errorf("seed %d: /extended: append %v went to %d, the file had reached %d before", s.seed, r, p.off, end)
	}
	e.note(p.off+int64(len(p.data)), &p)
}

// extend makes the file longer, well beyond what appends under way can reach, so that nothing is ever cut off or overwritten. Its ends leave room in their chunks, so that no append is
// cut in two.
func (e *extension) extend(ctx context.Context, s *sim, rng *rand.Rand, f *client.File) {
	e.turn <- struct{}{}
	defer func() { <-e.turn }()
	end := e.known()
	s.trace.note("extend from %d", end)
	chunk, in := end/dfs.MiB, end%dfs.MiB
	near := end + 100_000 + rng.Int64N(100_000)
	if in > 500_000 {
		near = (chunk+1)*dfs.MiB + rng.Int64N(300_000)
	}
	switch rng.IntN(5) {
	case 0: // within the chunk, mostly
		s.must(f.Truncate(ctx, near))
		e.note(near, nil)
	case 1: // to the end of a chunk
		end = (chunk + 1 + rng.Int64N(3)) * dfs.MiB
		if in > 900_000 {
			end += dfs.MiB
		}
		s.must(f.Truncate(ctx, end))
		e.note(end, nil)
	default:
		p := span{data: bytes.Repeat([]byte{0xEE}, 1+rng.IntN(100)), off: near}
		if rng.IntN(2) == 0 {
			p.off = (chunk+1+rng.Int64N(3))*dfs.MiB + rng.Int64N(500_000)
		}
		p.invoked = s.tick()
		_, err := f.WriteAt(p.data, p.off)
		p.returned = s.tick()
		s.must(err)
		e.note(p.off+int64(len(p.data)), &p)
	}
}

// check wants every acknowledged piece where it was said to be, and zeros everywhere else.
func (e *extension) check(ctx context.Context, s *sim, c *client.Client) {
	got, err := c.ReadFile(ctx, "/extended")
	s.must(err)
	if int64(len(got)) != e.end {
		s.t.Errorf("seed %d: /extended has %d bytes, want %d", s.seed, len(got), e.end)
	}
	got = grown(got, int(e.end))
	slices.SortFunc(e.pieces, func(a, b span) int { return int(a.off - b.off) })
	for i, p := range e.pieces {
		if i > 0 && p.overlaps(e.pieces[i-1]) {
			s.t.Errorf("seed %d: /extended: what went to %d and what went to %d overlap", s.seed, e.pieces[i-1].off, p.off)
			return
		}
		at := got[p.off:][:len(p.data)]
		if !bytes.Equal(at, p.data) {
			s.t.Errorf("seed %d: /extended at %d: %s", s.seed, p.off, difference(at, p.data))
		}
		clear(at)
	}
	if i := slices.IndexFunc(got, func(b byte) bool { return b != 0 }); i >= 0 {
		s.t.Errorf("seed %d: /extended: at %d lies something that nobody was told of", s.seed, i)
	}
}
