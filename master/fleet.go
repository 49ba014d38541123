package master

import (
	"context"
	"slices"
	"sync"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/cluster"
	"dfs/master/lease"
	"dfs/master/placement"
	dfsv1 "dfs/proto/dfs/v1"
)

// fleet is the leader's soft state about chunkservers, behind one lock: presence and serving leases (package
// cluster), write leases (package lease) and the placer (package placement), plus what ties them together:
//
//   - A replica that is put out of its chunk's configuration while its server may be serving is an *exclusion*, until the server has
//     deleted or fenced it, or the serving lease it had is over: after such a gap a chunkserver asks for each chunk's configuration before
//     it serves it again. A server that cannot be told gets no new serving lease, so that the old one does end.
//   - A server that was away comes back with a gap, so what it holds is not served unless it is still in the configuration.
//
// Memory: per server, per write lease, and per exclusion; the last is empty but for moments.
//
// No disk, network or callback runs under mu.
type fleet struct {
	mu       sync.Mutex
	state    *cluster.State                            // guarded by mu
	leases   *lease.Table                              // guarded by mu
	placer   *placement.Placer                         // guarded by mu
	recent   map[dfs.ServerID]int64                    // guarded by mu; chunks placed since the server's last heartbeat
	placed   uint64                                    // guarded by mu; cluster change counter the placer was made from
	byFile   map[dfs.InodeID]map[dfs.ChunkID]struct{}  // guarded by mu; chunks of a file with a lease
	fileOf   map[dfs.ChunkID]dfs.InodeID               // guarded by mu; inverse of byFile
	unsynced unsynced                                  // guarded by mu
	seats    map[dfs.ServerID]*seat                    // guarded by mu
	out      map[dfs.ServerID]map[dfs.ChunkID]excluded // guarded by mu; exclusions
	changed  chan struct{}                             // guarded by mu; closed and replaced when an exclusion or a presence changes
	startAt  time.Time
}

// seat is a server's heartbeat stream.
type seat struct {
	stream      cluster.StreamID
	incarnation uint64
	reportAfter time.Time     // no report is asked for before
	kick        chan struct{} // one token: a reply is wanted now
	end         chan struct{} // closed: the stream must end
}

func newFleet(cc cluster.Config, leaseFor time.Duration, now time.Time) *fleet {
	return &fleet{
		// What is seen from this very instant on is seen after the overlap with the leader before, of which there is none (clusterConfig).
		state:    cluster.New(cc, now.Add(-cc.LeaderOverlap)),
		leases:   lease.New(lease.Config{Duration: leaseFor}),
		placer:   placement.NewPlacer(nil, placement.Options{}),
		recent:   map[dfs.ServerID]int64{},
		byFile:   map[dfs.InodeID]map[dfs.ChunkID]struct{}{},
		fileOf:   map[dfs.ChunkID]dfs.InodeID{},
		unsynced: unsynced{files: map[dfs.InodeID]map[dfs.ChunkID]struct{}{}, chunks: map[dfs.ChunkID]unsyncedChunk{}},
		seats:    map[dfs.ServerID]*seat{},
		out:      map[dfs.ServerID]map[dfs.ChunkID]excluded{},
		changed:  make(chan struct{}),
		startAt:  now,
	}
}

// known tells of servers from the metadata, at start.
func (f *fleet) known(id dfs.ServerID, addr, rack string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.Known(id, addr, rack)
}

// announceLocked wakes everyone who waits for an exclusion or a presence.
func (f *fleet) announceLocked() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// register seats a server; the seat's end channel is closed when another stream takes it over.
func (f *fleet) register(h cluster.Hello, b cluster.Beat) (*seat, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id, err := f.state.Register(h, b, time.Now())
	if err != nil {
		return nil, err
	}
	if old := f.seats[h.Server]; old != nil {
		close(old.end)
	}
	s := &seat{stream: id, incarnation: h.Incarnation, kick: make(chan struct{}, 1), end: make(chan struct{})}
	f.seats[h.Server] = s
	f.announceLocked()
	if len(f.seats) <= kickAllBelow {
		for id := range f.seats {
			f.kickLocked(id)
		}
	}
	return s, nil
}

// kickAllBelow is up to how many servers all are told at once of a new one; in larger clusters they hear of it with their next
// heartbeats.
const kickAllBelow = 256

// conflict reports whether register would refuse the server now, so that nothing is recorded of it.
func (f *fleet) conflict(h cluster.Hello) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.state.Lookup(h.Server, time.Now())
	if ok && s.State == cluster.Live && s.Incarnation != h.Incarnation && aliveNow(s, time.Now()) {
		return dfserr.Errorf(dfserr.ErrServerConflict, "register chunkserver %s at %s: it is running at %s (was its data directory copied?)", h.Server, h.Addr, s.Addr)
	}
	return nil
}

// beat notes a heartbeat.
func (f *fleet) beat(id dfs.ServerID, s *seat, b cluster.Beat) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.recent, id)
	if before, ok := f.state.Lookup(id, time.Now()); ok {
		failed := 0
		for _, d := range b.Disks {
			if d.Failed {
				failed++
			}
		}
		if failed > before.FailedDisks {
			f.state.WantReport(id) // what was on that disk is missing from the report
		}
	}
	return f.state.Heartbeat(s.stream, b, time.Now())
}

// grant returns the serving lease to send now and whether to ask for a report.
func (f *fleet) grant(id dfs.ServerID, s *seat) (serving time.Duration, report bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	report = !now.Before(s.reportAfter) && f.state.AskReport(s.stream, now)
	f.pruneLocked(id, now)
	if !f.withheldLocked(id, now) {
		serving = f.state.Grant(s.stream, now)
	}
	return serving, report
}

// leave ends a seat and reports whether it was the server's current one.
func (f *fleet) leave(id dfs.ServerID, s *seat) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seats[id] != s {
		return false
	}
	delete(f.seats, id)
	f.state.StreamBroken(s.stream)
	f.announceLocked()
	return true
}

// gone notes that the process that had the seat is no more: a dial begun at dialedAt was refused.
func (f *fleet) gone(id dfs.ServerID, incarnation uint64, dialedAt time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.ProcessGone(id, incarnation, dialedAt)
	f.announceLocked()
}

// excluded is one exclusion.
type excluded struct {
	since     time.Time
	committed bool // false: about to be
}

// tellPatience is for how long a server goes on getting serving leases while it is being told of an exclusion.
const tellPatience = 500 * time.Millisecond

// withheldLocked reports whether the server must not get a serving lease.
func (f *fleet) withheldLocked(id dfs.ServerID, now time.Time) bool {
	for _, e := range f.out[id] {
		if now.Sub(e.since) >= tellPatience {
			return true
		}
	}
	return false
}

// pruneLocked forgets the exclusions on a server whose serving lease is over, but for those that are only about to be
// committed: between the two a server may be granted a lease and look the old configuration up.
func (f *fleet) pruneLocked(id dfs.ServerID, now time.Time) {
	if len(f.out[id]) == 0 || now.Before(f.state.ReadFenceAt(id, now)) {
		return
	}
	for c, e := range f.out[id] {
		if e.committed {
			delete(f.out[id], c)
		}
	}
	if len(f.out[id]) == 0 {
		delete(f.out, id)
	}
	f.announceLocked()
}

// tick finds servers that have become dead, ends their streams, and forgets leases and exclusions that are over.
func (f *fleet) tick() (dead []dfs.ServerID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	dead = f.state.Tick(now)
	for _, id := range dead {
		if s := f.seats[id]; s != nil {
			delete(f.seats, id)
			close(s.end)
		}
	}
	for id := range f.out {
		f.pruneLocked(id, now)
	}
	const batch = 1024
	for {
		over := f.leases.Expire(now, batch)
		for _, l := range over {
			f.forgetLeaseLocked(l.Chunk)
		}
		if len(over) < batch {
			break
		}
	}
	if len(dead) > 0 {
		f.announceLocked()
	}
	return dead
}

// reported records that a server's full report has been taken.
func (f *fleet) reported(id dfs.ServerID, incarnation uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.Reported(id, incarnation)
}

// reportBegins returns the stream under which a report is being taken; ErrUnavailable when the server has none or is another
// incarnation.
func (f *fleet) reportBegins(id dfs.ServerID, incarnation uint64) (cluster.StreamID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.seats[id]
	if s == nil || s.incarnation != incarnation {
		return 0, dfserr.Errorf(dfserr.ErrUnavailable, "chunk report of server %s without a heartbeat stream", id)
	}
	return s.stream, nil
}

// kickLocked makes the server's stream send a reply soon.
func (f *fleet) kickLocked(id dfs.ServerID) {
	if s := f.seats[id]; s != nil {
		select {
		case s.kick <- struct{}{}:
		default:
		}
	}
}

// endAll ends every heartbeat stream.
func (f *fleet) endAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, s := range f.seats {
		delete(f.seats, id)
		f.state.StreamBroken(s.stream)
		close(s.end)
	}
}

// exclude notes, before it is committed, that servers leave a chunk's configuration.
func (f *fleet) exclude(chunk dfs.ChunkID, servers []dfs.ServerID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for _, id := range servers {
		m := f.out[id]
		if m == nil {
			m = map[dfs.ChunkID]excluded{}
			f.out[id] = m
		}
		e := excluded{since: now}
		if earlier, ok := m[chunk]; ok {
			e.since = earlier.since
		}
		m[chunk] = e
	}
}

// committed notes that exclusions are in the state: from here on a server that had a gap in its leases finds out by itself.
func (f *fleet) committed(chunk dfs.ChunkID, servers []dfs.ServerID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for _, id := range servers {
		if e, ok := f.out[id][chunk]; ok {
			e.committed = true
			f.out[id][chunk] = e
			f.pruneLocked(id, now)
		}
	}
}

// fenced takes back exclude: the replica is deleted or fenced, or still in the configuration after all.
func (f *fleet) fenced(chunk dfs.ChunkID, id dfs.ServerID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.out[id]
	if _, ok := m[chunk]; !ok {
		return
	}
	delete(m, chunk)
	if len(m) == 0 {
		delete(f.out, id)
		f.kickLocked(id)
	}
	f.announceLocked()
}

// exclusion is a replica that may still be served although it is out of its chunk's configuration.
type exclusion struct {
	chunk  dfs.ChunkID
	server dfs.ServerID
	// unsure: whether it was committed is not known.
	unsure bool
}

// exclusions returns at most limit exclusions, to be resolved.
func (f *fleet) exclusions(limit int) []exclusion {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []exclusion
	for id, chunks := range f.out {
		for c, e := range chunks {
			if len(list) == limit {
				return list
			}
			list = append(list, exclusion{c, id, !e.committed})
		}
	}
	return list
}

// awaitFence waits until no replica outside the chunk's configuration can be served: every exclusion of the chunk was
// acknowledged, or its server's serving lease is over, or its process is gone. With inherited, the leader before this one may
// have excluded servers that this one does not know, and those are waited for as well.
func (f *fleet) awaitFence(ctx context.Context, chunk dfs.ChunkID, inherited bool) error {
	for {
		f.mu.Lock()
		now, until := time.Now(), time.Time{}
		for id, chunks := range f.out {
			if _, ok := chunks[chunk]; !ok {
				continue
			}
			if at := f.state.ReadFenceAt(id, now); at.After(until) {
				until = at
			}
		}
		if inherited {
			if at := f.state.ReadFenceAt(0, now); at.After(until) {
				until = at
			}
		}
		changed := f.changed
		f.mu.Unlock()
		wait := until.Sub(now)
		if wait <= 0 {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// recentFor is how long after its last heartbeat a server with a stream counts as alive for new work; a
// stalled process keeps its stream for longer than that.
const recentFor = 3 * time.Second

func aliveNow(s cluster.Server, now time.Time) bool {
	return s.State == cluster.Live && now.Sub(s.HeardAt) < recentFor
}

// alive reports whether a server has a stream and was heard just now.
func (f *fleet) alive(id dfs.ServerID) bool {
	s, ok := f.lookup(id)
	return ok && aliveNow(s, time.Now())
}

// returning reports whether the reign is younger than the given age and some of the servers have not registered in it.
func (f *fleet) returning(ids []dfs.ServerID, age time.Duration) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if now.Sub(f.startAt) >= age {
		return false
	}
	return slices.ContainsFunc(ids, func(id dfs.ServerID) bool {
		s, ok := f.state.Lookup(id, now)
		return ok && s.Incarnation == 0
	})
}

func (f *fleet) lookup(id dfs.ServerID) (cluster.Server, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.Lookup(id, time.Now())
}

// liveServers returns the servers that are alive, by id.
func (f *fleet) liveServers() []dfs.ServerID {
	now := time.Now()
	var ids []dfs.ServerID
	for _, s := range f.snapshot() {
		if aliveNow(s, now) {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

func (f *fleet) snapshot() []cluster.Server {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.Snapshot(time.Now())
}

func (f *fleet) safeMode() cluster.SafeMode {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.SafeMode(time.Now())
}

func (f *fleet) totals() cluster.Totals {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.Totals(time.Now())
}

// addressLocked fills in where a server is.
func (f *fleet) addressLocked(r *dfsv1.ServerAddr, now time.Time) {
	if s, ok := f.state.Lookup(dfs.ServerID(r.GetServer()), now); ok {
		r.Addr, r.Rack, r.Alive = s.Addr, s.Rack, aliveNow(s, now)
	}
}

// members returns the list for heartbeat replies when it differs from the one at counter have.
func (f *fleet) members(have uint64) ([]cluster.Member, uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state.Changes() == have {
		return nil, have
	}
	return f.state.Members()
}
