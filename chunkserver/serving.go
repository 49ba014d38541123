package chunkserver

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"dfs/internal/dfserr"
)

// servingState is one instant's right to serve.
type servingState struct {
	period uint64    // grows with every gap; 0: never had a lease
	until  time.Time // the lease is over at this instant
}

// serving is the server's serving lease (DESIGN §6). Readers take an immutable snapshot.
type serving struct {
	state atomic.Pointer[servingState]

	mu      sync.Mutex
	granted chan struct{} // guarded by mu; closed at the next grant
}

func newServing() *serving {
	s := &serving{granted: make(chan struct{})}
	s.state.Store(&servingState{})
	return s
}

// current returns the serving period, and whether the lease holds at now.
func (s *serving) current(now time.Time) (uint64, bool) {
	st := s.state.Load()
	return st.period, now.Before(st.until)
}

// holds reports whether the given period is going on at now.
func (s *serving) holds(period uint64, now time.Time) bool {
	p, ok := s.current(now)
	return ok && p == period
}

// grant notes a reply to a heartbeat sent at sentAt. A lease that had run out, or that this one comes too late to continue,
// begins a new period. A margin is taken off for clocks that run at different rates.
func (s *serving) grant(sentAt time.Time, lease time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, old := time.Now(), s.state.Load()
	next := servingState{period: old.period, until: sentAt.Add(lease - lease/16)}
	if !now.Before(next.until) {
		return
	}
	if !now.Before(old.until) {
		next.period++
	} else if next.until.Before(old.until) {
		next.until = old.until
	}
	s.state.Store(&next)
	close(s.granted)
	s.granted = make(chan struct{})
}

// end gives the lease up at once.
func (s *serving) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Store(&servingState{period: s.state.Load().period})
}

// wait returns the current period, waiting for a lease until ctx ends or for at most limit.
func (s *serving) wait(ctx context.Context, limit time.Duration) (uint64, error) {
	if p, ok := s.current(time.Now()); ok {
		return p, nil
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	for {
		s.mu.Lock()
		granted := s.granted
		s.mu.Unlock()
		if p, ok := s.current(time.Now()); ok {
			return p, nil
		}
		select {
		case <-granted:
		case <-t.C:
			return 0, dfserr.Errorf(dfserr.ErrUnavailable, "chunkserver has no serving lease from a master")
		case <-ctx.Done():
			return 0, dfserr.Errorf(ctx.Err(), "wait for a serving lease")
		}
	}
}
