// Package scrub reads every replica of a store from time to time and verifies all checksums, so that damage is found
// while other replicas are still good (DESIGN §8).
//
// It reads at a bounded rate, one replica at a time, on the goroutine that calls Run, and keeps no state on disk: a process
// that restarts begins a round anew, at a random place, so that frequent restarts do not leave the same replicas
// unread for ever. Damage is only reported; quarantine and repair are the callers'.
package scrub

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/go-hclog"

	"dfs/chunkserver/store"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// Options configure Run.
type Options struct {
	// Interval is the time from the beginning of one round to that of the next. A round that takes longer is
	// followed by the next at once.
	Interval time.Duration
	// Rate bounds reading, in bytes per second.
	Rate int64
	// Delay is how long to wait before the first round; 0: a hundredth of Interval.
	Delay time.Duration
	// Logger gets the outcome of each round; nil: nothing is logged.
	Logger hclog.Logger
	// Corrupt is called, on Run's goroutine, for every damaged replica found.
	Corrupt func(id dfs.ChunkID, err error)
}

// Run scrubs until ctx ends.
func Run(ctx context.Context, st *store.Store, o Options) {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.Delay == 0 {
		o.Delay = o.Interval / 100
	}
	if !sleep(ctx, o.Delay) {
		return
	}
	for {
		begin := time.Now()
		replicas, damaged := round(ctx, st, o)
		if ctx.Err() != nil {
			return
		}
		o.Logger.Info("scrub finished", "replicas", replicas, "corrupt", damaged, "took", time.Since(begin).Round(time.Second))
		if !sleep(ctx, o.Interval-time.Since(begin)) {
			return
		}
	}
}

// round verifies every replica once.
func round(ctx context.Context, st *store.Store, o Options) (replicas, damaged int) {
	chunks := st.Chunks()
	if len(chunks) == 0 {
		return 0, 0
	}
	first := rand.IntN(len(chunks))
	p := &pacer{rate: o.Rate, next: time.Now()}
	for i := range chunks {
		id := chunks[(first+i)%len(chunks)]
		rep, err := st.Replica(id)
		if err == nil {
			err = rep.Verify(ctx, p.pace)
		}
		switch {
		case ctx.Err() != nil:
			return replicas, damaged
		case errors.Is(err, dfserr.ErrCorrupt):
			damaged++
			o.Corrupt(id, err)
		case err != nil && !errors.Is(err, dfserr.ErrNotExist):
			o.Logger.Warn("scrub could not read a replica", "chunk", id, "error", err)
		}
		replicas++
	}
	return replicas, damaged
}

// pacer spreads reads over time.
type pacer struct {
	rate int64
	next time.Time // when the next read may begin
}

// slack is how far reading may run ahead, so that small reads do not each wait.
const slack = 20 * time.Millisecond

// pace is called around each read of so many bytes and waits as long as the rate demands.
func (p *pacer) pace(ctx context.Context, bytes int) error {
	if p.rate <= 0 {
		return ctx.Err()
	}
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(float64(bytes) / float64(p.rate) * float64(time.Second)))
	if ahead := p.next.Sub(now); ahead > slack && !sleep(ctx, ahead) {
		return ctx.Err()
	}
	return ctx.Err()
}

// sleep waits; false: ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
