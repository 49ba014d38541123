package chunkio

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"dfs/internal/dfs"
)

// Reading preferences: what is remembered about a chunkserver between reads.
const (
	badFor      = 5 * time.Second        // a server that failed is asked last for so long
	smallRead   = 64 * dfs.KiB           // reads up to this are judged apart from larger ones
	hedgeShare  = 0.05                   // hedged reads per read, in the long run
	hedgeBurst  = 8                      // hedged reads that may come at once
	hedgeFirst  = 200 * time.Millisecond // until anything is known of a server
	hedgeLeast  = 5 * time.Millisecond
	hedgeMost   = 2 * time.Second
	latencyGain = 1.0 / 16
)

// server is what is known about one chunkserver. Safe for concurrent use.
type server struct {
	badUntil atomic.Int64 // Unix nanoseconds

	mu      sync.Mutex
	latency [2]latency // guarded by mu: of small and of large reads
}

// latency follows mean and mean deviation of a duration, as TCP does of round trips (Jacobson 1988).
type latency struct {
	samples   int
	mean, dev float64 // nanoseconds
}

func (l *latency) add(d time.Duration) {
	v := float64(d)
	if l.samples++; l.samples == 1 {
		l.mean, l.dev = v, v/2
		return
	}
	diff := v - l.mean
	l.mean += latencyGain * diff
	l.dev += latencyGain * (math.Abs(diff) - l.dev)
}

// usual returns a duration that about one read in twenty exceeds.
func (l *latency) usual() time.Duration {
	if l.samples < 8 {
		return hedgeFirst
	}
	return min(hedgeMost, max(hedgeLeast, time.Duration(l.mean+4*l.dev)))
}

func sizeClass(n int64) int {
	if n <= smallRead {
		return 0
	}
	return 1
}

func (x *IO) server(id dfs.ServerID) *server {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.servers[id]
	if s == nil {
		s = &server{}
		x.servers[id] = s
	}
	return s
}

func (s *server) bad() bool {
	until := s.badUntil.Load()
	return until != 0 && time.Now().UnixNano() < until
}

func (s *server) failed() { s.badUntil.Store(time.Now().Add(badFor).UnixNano()) }

// answered notes how long a successful read took.
func (s *server) answered(n int64, took time.Duration) {
	if s.badUntil.Load() != 0 {
		s.badUntil.Store(0)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latency[sizeClass(n)].add(took)
}

// hedgeAfter returns how long a read of n bytes may take before another replica is asked; negative: never.
func (x *IO) hedgeAfter(s *server, n int64) time.Duration {
	if x.cfg.HedgeAfter != 0 {
		return x.cfg.HedgeAfter
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.latency[sizeClass(n)].usual()
}

// earnHedge adds a read's share to the budget; takeHedge spends one hedged read if it is there.
func (x *IO) earnHedge() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.hedges = min(hedgeBurst, x.hedges+hedgeShare)
}

func (x *IO) takeHedge() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.hedges < 1 {
		return false
	}
	x.hedges--
	return true
}

// order returns the replicas to read from, best first.
func (x *IO) order(l *Location) []Replica {
	n := len(l.Replicas)
	out := make([]Replica, 0, n)
	start := 0
	if n > 1 {
		start = int(mix(x.seed^uint64(l.Chunk)) % uint64(n))
	}
	var later []Replica
	for i := range n {
		r := l.Replicas[(start+i)%n]
		switch {
		case r.Addr == "":
		case !r.Alive || x.server(r.Server).bad():
			later = append(later, r)
		case r.Server == x.cfg.Near && x.cfg.Near != 0:
			out = append(out, Replica{})
			copy(out[1:], out)
			out[0] = r
		default:
			out = append(out, r)
		}
	}
	return append(out, later...)
}

// mix spreads the bits of v (the finaliser of SplitMix64).
func mix(v uint64) uint64 {
	v ^= v >> 30
	v *= 0xbf58476d1ce4e5b9
	v ^= v >> 27
	v *= 0x94d049bb133111eb
	return v ^ v>>31
}
