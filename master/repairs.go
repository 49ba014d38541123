package master

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/chunks"
	"dfs/master/cluster"
	"dfs/master/fsm"
	"dfs/master/placement"
	"dfs/master/repair"
)

// repairs brings chunks back to their wanted replicas: it walks the chunk records when something has changed, shows them
// to the planner (package repair), and carries out what the planner says. Memory: the planner's queue, the copies under way,
// and replicas known to be bad; all bounded.
type repairs struct {
	m        *leader
	trigger  chan struct{} // one token: walk the records
	act      chan struct{} // one token: ask the planner
	settling atomic.Bool   // settleChunks is at work

	mu       sync.Mutex
	planner  *repair.Planner                           // guarded by mu
	placer   *placement.Placer                         // guarded by mu; the planner's
	bad      map[dfs.ChunkID]map[dfs.ServerID]struct{} // guarded by mu; replicas known to be corrupt or missing, at most maxBad
	strays   map[dfs.ChunkID][]repair.Stray            // guarded by mu; fenced replicas outside configurations, at most maxStrays
	strayN   int                                       // guarded by mu; of them
	badCount int                                       // guarded by mu
	inFlight map[dfs.ChunkID]copyOrder                 // guarded by mu; copies under way
	changes  uint64                                    // guarded by mu; grows with everything that may change the totals
	scanned  uint64                                    // guarded by mu; changes as of the begin of the last finished walk
	totals   repair.Totals                             // guarded by mu; of the last finished walk
	findings map[repair.Problem]int64                  // guarded by mu; of the last finished walk
}

// copyOrder is a copy under way.
type copyOrder struct {
	source, target dfs.ServerID
	version        dfs.Version // of the configuration it is made under
	askAt          time.Time   // when the target is to be asked what became of it
}

const (
	maxBad       = 65_536
	maxStrays    = 65_536 // what is beyond is found by its server's next report
	repairTick   = time.Second
	scanPage     = 1024
	scanMinPause = 200 * time.Millisecond
	// scanPauseFactor keeps walks to a tenth of one core when changes never cease.
	scanPauseFactor = 10
	// scanEvery is how often the records are walked although nothing is known to have changed.
	scanEvery = 5 * time.Minute
)

func newRepairs(m *leader) *repairs {
	r := &repairs{
		m:        m,
		trigger:  make(chan struct{}, 1),
		act:      make(chan struct{}, 1),
		placer:   placement.NewPlacer(nil, placement.Options{}),
		bad:      map[dfs.ChunkID]map[dfs.ServerID]struct{}{},
		strays:   map[dfs.ChunkID][]repair.Stray{},
		inFlight: map[dfs.ChunkID]copyOrder{},
		changes:  1,
	}
	r.planner = repair.New(r.placer, m.cfg.Repair)
	return r
}

// poke puts the one token into a channel.
func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// wake asks for a walk over the records: something about servers or replicas has changed.
func (r *repairs) wake() {
	r.mu.Lock()
	r.changes++
	r.mu.Unlock()
	poke(r.trigger)
}

// changed notes that a chunk got a new configuration.
func (r *repairs) changed(id dfs.ChunkID) {
	r.mu.Lock()
	r.changes++
	r.mu.Unlock()
	r.observe(id)
	poke(r.trigger)
}

// corrupt takes a chunkserver's word that its replica is bad.
func (r *repairs) corrupt(id dfs.ChunkID, server dfs.ServerID) {
	if r.isCorrupt(id, server) {
		return
	}
	rec, err := r.m.chunkRecord(id)
	if err != nil || !slices.Contains(rec.Replicas, server) {
		return
	}
	r.noteCorrupt(id, server)
	r.observe(id)
	poke(r.trigger)
}

// noteCorrupt remembers that a replica is bad until it leaves the configuration. When there are too many, the next
// report of it is as good.
func (r *repairs) noteCorrupt(id dfs.ChunkID, server dfs.ServerID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.bad[id][server]; ok || r.badCount >= maxBad {
		return
	}
	if r.bad[id] == nil {
		r.bad[id] = map[dfs.ServerID]struct{}{}
	}
	r.bad[id][server] = struct{}{}
	r.badCount++
	r.changes++
}

func (r *repairs) forgetBadLocked(id dfs.ChunkID, server dfs.ServerID) {
	if _, ok := r.bad[id][server]; !ok {
		return
	}
	delete(r.bad[id], server)
	r.badCount--
	if len(r.bad[id]) == 0 {
		delete(r.bad, id)
	}
}

func (r *repairs) isCorrupt(id dfs.ChunkID, server dfs.ServerID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.bad[id][server]
	return ok
}

// copying reports whether a copy of the chunk to the server is under way.
func (r *repairs) copying(id dfs.ChunkID, server dfs.ServerID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.inFlight[id]
	return ok && c.target == server
}

// serverLost ends the copies that a server takes part in.
func (r *repairs) serverLost(server dfs.ServerID) {
	r.mu.Lock()
	for id, c := range r.inFlight {
		if c.source == server || c.target == server {
			r.endCopyLocked(id, c.target, true)
		}
	}
	// What its next process holds, its report tells.
	for id := range r.bad {
		r.forgetBadLocked(id, server)
	}
	for id := range r.strays {
		r.forgetStrayLocked(id, server)
	}
	r.mu.Unlock()
	r.wake()
}

func (r *repairs) endCopyLocked(id dfs.ChunkID, target dfs.ServerID, failed bool) {
	if c, ok := r.inFlight[id]; ok && c.target == target {
		delete(r.inFlight, id)
		r.planner.Done(id, target, failed, time.Now())
		r.changes++
		poke(r.act)
	}
}

// health says how a replica stands.
func (r *repairs) healthLocked(id dfs.ChunkID, server dfs.ServerID, states map[dfs.ServerID]cluster.Server) repair.Health {
	s, ok := states[server]
	if _, bad := r.bad[id][server]; bad && ok && s.State == cluster.Live {
		return repair.Corrupt
	}
	switch {
	case !ok || s.State == cluster.Dead:
		return repair.Dead
	case s.State != cluster.Live:
		return repair.Away
	}
	return repair.Good
}

// servers returns what is known about all servers, by id.
func (m *leader) servers() map[dfs.ServerID]cluster.Server {
	states := map[dfs.ServerID]cluster.Server{}
	for _, s := range m.fleet.snapshot() {
		states[s.ID] = s
	}
	return states
}

// bytesOf guesses how much a copy of a chunk moves: what the file has in it, as far as its length is known. Overwritten data is not
// counted.
func bytesOf(v *fsm.View, rec *chunks.Record) int64 {
	whole := int64(1) << rec.ChunkSizeLog2
	n, ok, err := v.Inode(rec.Inode)
	if err != nil || !ok || n.TailOpen {
		return whole
	}
	return min(whole, max(0, n.Length-rec.Index*whole))
}

// chunkLocked describes a chunk to the planner.
func (r *repairs) chunkLocked(id dfs.ChunkID, rec *chunks.Record, size int64, states map[dfs.ServerID]cluster.Server) repair.Chunk {
	c := repair.Chunk{
		ID: id, Version: rec.Version, Want: int(rec.Replication), Size: size,
		Members: make([]repair.Replica, len(rec.Replicas)),
	}
	for i, s := range rec.Replicas {
		c.Members[i] = repair.Replica{Server: s, Health: r.healthLocked(id, s, states)}
		r.forgetStrayLocked(id, s)
	}
	good := 0
	for _, m := range c.Members {
		if m.Health == repair.Good {
			good++
		}
	}
	for _, s := range r.strays[id] {
		// A bad one is to be deleted in the end, but it is no reason to have the next copy made on its disk.
		if _, bad := r.bad[id][s.Server]; states[s.Server].State == cluster.Live && (!bad || good >= c.Want) {
			c.Strays = append(c.Strays, s)
		}
	}
	return c
}

// noteStray remembers a fenced replica outside its chunk's configuration, for the planner to have it completed or deleted.
func (r *repairs) noteStray(id dfs.ChunkID, stray repair.Stray) {
	r.mu.Lock()
	if slices.Contains(r.strays[id], stray) {
		// It was to be deleted, and was kept for now. Looking at the chunk again at once would come to the same; the
		// next scan does.
		r.mu.Unlock()
		return
	}
	r.forgetStrayLocked(id, stray.Server)
	if r.strayN < maxStrays {
		r.strays[id] = append(r.strays[id], stray)
		r.strayN++
	}
	r.mu.Unlock()
	r.observe(id)
}

// replaced forgets what was known of a replica that is gone, or that a fresh copy has taken the place of.
func (r *repairs) replaced(id dfs.ChunkID, server dfs.ServerID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forgetStrayLocked(id, server)
	r.forgetBadLocked(id, server)
}

func (r *repairs) forgetStrayLocked(id dfs.ChunkID, server dfs.ServerID) {
	list := r.strays[id]
	at := slices.IndexFunc(list, func(s repair.Stray) bool { return s.Server == server })
	if at < 0 {
		return
	}
	r.strayN--
	if len(list) == 1 {
		delete(r.strays, id)
		return
	}
	r.strays[id] = slices.Delete(list, at, at+1)
}

// observe shows one chunk to the planner at once.
func (r *repairs) observe(id dfs.ChunkID) {
	rec, err := r.m.chunkRecord(id)
	if err != nil {
		r.mu.Lock()
		r.planner.Forget(id)
		for len(r.strays[id]) > 0 { // the chunk has gone, and with it the garbage record that knows its members
			r.forgetStrayLocked(id, r.strays[id][0].Server)
		}
		r.mu.Unlock()
		return
	}
	if r.m.fleet.safeMode().On {
		return
	}
	size := int64(1) << rec.ChunkSizeLog2
	if v, err := r.m.view(); err == nil {
		size = bytesOf(v, &rec)
		v.Close()
	}
	states := r.m.servers()
	r.mu.Lock()
	r.updatePlacerLocked()
	r.planner.Observe(r.chunkLocked(id, &rec, size, states))
	r.mu.Unlock()
	poke(r.act)
}

func (r *repairs) updatePlacerLocked() { r.placer.Update(r.m.fleet.placementNodes()) }

// scanLoop walks the records when triggered, and now and then.
func (r *repairs) scanLoop(ctx context.Context) {
	pause := time.NewTimer(scanMinPause)
	defer pause.Stop()
	for {
		// Not again before the pause is over, so that a burst of changes costs one walk.
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		wait := time.NewTimer(scanEvery)
		select {
		case <-r.trigger:
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return
		}
		wait.Stop()
		if safe := r.m.fleet.safeMode(); safe.On {
			poke(r.trigger)
			pause.Reset(repairTick)
			continue
		}
		began := time.Now()
		if err := r.scan(ctx); err != nil && ctx.Err() == nil {
			r.m.log.Warn("walk over the chunk records failed", "error", err)
		}
		pause.Reset(max(scanMinPause, scanPauseFactor*time.Since(began)))
	}
}

// scan walks all chunk records once.
func (r *repairs) scan(ctx context.Context) error {
	r.mu.Lock()
	began := r.changes
	r.updatePlacerLocked()
	racks := r.placer.Ring().Racks()
	r.mu.Unlock()
	var totals repair.Totals
	findings := map[repair.Problem]int64{}
	var unsettled []dfs.ChunkID
	after := dfs.ChunkID(0)
	for {
		states := r.m.servers()
		v, err := r.m.view()
		if err != nil {
			return err
		}
		n := 0
		r.mu.Lock()
		err = v.Chunks(after, func(id dfs.ChunkID, rec *chunks.Record) bool {
			after = id
			n++
			if len(unsettled) < maxUnsettledPerScan && unsettledIn(rec, states) {
				unsettled = append(unsettled, id)
			}
			plain := r.plainLocked(id, rec, states)
			if racks < 2 && plain {
				totals.Chunks++
				r.planner.Forget(id)
				return n < scanPage
			}
			size := int64(1) << rec.ChunkSizeLog2
			if !plain {
				size = bytesOf(v, rec)
			}
			a := r.planner.Observe(r.chunkLocked(id, rec, size, states))
			totals.Add(a)
			for _, f := range a.Findings {
				findings[f.Problem]++
			}
			return n < scanPage
		})
		r.mu.Unlock()
		v.Close()
		if err != nil {
			return err
		}
		poke(r.act)
		if n < scanPage {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	r.mu.Lock()
	r.totals, r.findings, r.scanned = totals, findings, began
	r.planner.TakeDropped()
	r.mu.Unlock()
	if len(unsettled) > 0 && r.settling.CompareAndSwap(false, true) {
		r.m.background(func(ctx context.Context) {
			defer r.settling.Store(false)
			r.m.settleChunks(ctx, unsettled)
		})
	}
	return nil
}

// plainLocked reports, cheaply, that a chunk is as it should be.
func (r *repairs) plainLocked(id dfs.ChunkID, rec *chunks.Record, states map[dfs.ServerID]cluster.Server) bool {
	if len(rec.Replicas) != int(max(1, rec.Replication)) || len(r.bad[id]) > 0 || len(r.strays[id]) > 0 {
		return false
	}
	for _, s := range rec.Replicas {
		if st, ok := states[s]; !ok || st.State != cluster.Live {
			return false
		}
	}
	return true
}

// maxUnsettledPerScan bounds how many chunks one walk has settled.
const maxUnsettledPerScan = 256

// unsettledIn reports whether having a chunk's replicas brought into step now would let its record forget something: a seed that
// the replicas of a chunk in use can hold, or that a replica has joined of late. The latter only with all replicas
// alive: with one away it would cost that one its place.
func unsettledIn(rec *chunks.Record, states map[dfs.ServerID]cluster.Server) bool {
	if rec.Born && len(rec.Seed) > 0 {
		return true
	}
	if len(rec.Joining) == 0 {
		return false
	}
	return !slices.ContainsFunc(rec.Replicas, func(s dfs.ServerID) bool { return states[s].State != cluster.Live })
}

// settleChunks has primaries bring the replicas of chunks into step.
func (m *leader) settleChunks(ctx context.Context, ids []dfs.ChunkID) {
	for _, id := range ids {
		if ctx.Err() != nil {
			return
		}
		if _, _, err := m.activateChunk(ctx, id); err != nil {
			m.log.Debug("chunk not settled yet", "chunk", id.String(), "error", err)
		}
	}
}

// standing is what reports say about repair.
type standing struct {
	totals  repair.Totals
	running int
	exact   bool // the totals are from a walk that began after the last change
}

func (r *repairs) standing() standing {
	r.mu.Lock()
	defer r.mu.Unlock()
	return standing{totals: r.totals, running: r.planner.Running(), exact: r.scanned == r.changes}
}

// isGone reports whether an error says that the chunk does not exist any more.
func isGone(err error) bool { return errors.Is(err, dfserr.ErrNotExist) }
