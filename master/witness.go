package master

import (
	"context"
	"slices"
	"sync"
	"time"

	"dfs/internal/dfs"
	dfsv1 "dfs/proto/dfs/v1"
)

// A member of a chain that cannot reach another one accuses it. If the accused is alive, either of the two may be the one that is cut
// off, and to put out the wrong one leaves the chunk to a primary that nobody can copy from. So other chunkservers are asked which of the two
// they reach.

const (
	maxWitnesses   = 3
	witnessTimeout = 2 * time.Second // more than a chunkserver takes to find out
	verdictMemory  = 2 * time.Second // many chunks have the same two servers
	maxVerdicts    = 4096
)

// verdicts remembers for a moment what witnesses have said.
type verdicts struct {
	mu sync.Mutex
	m  map[serverPair]*verdict // guarded by mu
}

type serverPair struct{ accuser, accused dfs.ServerID }

// verdict may be read once done is closed.
type verdict struct {
	done          chan struct{}
	at            time.Time
	accuserCutOff bool
}

// expired reports whether the verdict is there and too old.
func (v *verdict) expired(now time.Time) bool {
	select {
	case <-v.done:
		return now.Sub(v.at) >= verdictMemory
	default:
		return false
	}
}

// accuserCutOff reports whether fewer witnesses reach the accuser than the accused. Without witnesses it is false.
func (m *leader) accuserCutOff(ctx context.Context, accuser, accused dfs.ServerID, members []dfs.ServerID) bool {
	pair, now := serverPair{accuser, accused}, time.Now()
	m.verdicts.mu.Lock()
	v := m.verdicts.m[pair]
	if v == nil || v.expired(now) {
		if len(m.verdicts.m) >= maxVerdicts {
			for p, old := range m.verdicts.m {
				if old.expired(now) {
					delete(m.verdicts.m, p)
				}
			}
		}
		if len(m.verdicts.m) >= maxVerdicts {
			m.verdicts.mu.Unlock()
			return false
		}
		if m.verdicts.m == nil {
			m.verdicts.m = map[serverPair]*verdict{}
		}
		v = &verdict{done: make(chan struct{})}
		m.verdicts.m[pair] = v
		m.background(func(ctx context.Context) {
			v.accuserCutOff, v.at = m.askWitnesses(ctx, pair, members), time.Now()
			close(v.done)
		})
	}
	m.verdicts.mu.Unlock()
	select {
	case <-v.done:
		return v.accuserCutOff
	case <-ctx.Done():
		return false
	}
}

// askWitnesses asks some live servers, members of the configuration first, which of the two they reach.
func (m *leader) askWitnesses(ctx context.Context, pair serverPair, members []dfs.ServerID) bool {
	var witnesses []dfs.ServerID
	for _, id := range slices.Concat(members, m.fleet.liveServers()) {
		if id != pair.accuser && id != pair.accused && len(witnesses) < maxWitnesses && !slices.Contains(witnesses, id) && m.fleet.alive(id) {
			witnesses = append(witnesses, id)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, witnessTimeout)
	defer cancel()
	reached := func(witness, of dfs.ServerID) (bool, error) {
		c, err := m.chunkClient(witness)
		if err != nil {
			return false, err
		}
		reply, err := c.Probe(ctx, &dfsv1.ProbeRequest{Server: uint64(of)})
		return reply.GetReached(), err
	}
	type answer struct{ accuser, accused bool }
	answers := make(chan answer, len(witnesses))
	for _, w := range witnesses {
		go func() {
			var wg sync.WaitGroup
			var accuser bool
			var accuserErr error
			wg.Go(func() { accuser, accuserErr = reached(w, pair.accuser) })
			accused, err := reached(w, pair.accused)
			wg.Wait()
			if err != nil || accuserErr != nil {
				answers <- answer{}
				return
			}
			answers <- answer{accuser, accused}
		}()
	}
	accuser, accused := 0, 0
	for range witnesses {
		a := <-answers
		accuser, accused = accuser+btoi(a.accuser), accused+btoi(a.accused)
	}
	m.log.Info("one chunkserver does not reach another", "accuser", pair.accuser.String(), "accused", pair.accused.String(),
		"witnesses", len(witnesses), "reach accuser", accuser, "reach accused", accused)
	return accuser < accused
}
