package master

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	"dfs/master/chunks"
	"dfs/master/cluster"
	"dfs/master/fsm"
	"dfs/master/kv"
	"dfs/master/raftlog"
	dfsv1 "dfs/proto/dfs/v1"
)

// leader is the soft state of one reign and what works on it. See the package comment.
type leader struct {
	cfg     Config
	log     hclog.Logger
	addr    string
	cluster dfs.ClusterID
	db      *kv.DB
	fsm     *fsm.FSM
	node    *raftlog.Node
	pool    *rpc.Pool
	space   *kv.Space

	fleet      *fleet
	sessions   *sessionTable
	caches     *cacheTable
	locks      *lockQueues
	repairs    *repairs
	complaints complaints
	verdicts   verdicts
	verifying  verifications
	unsettled  unsettled
	chunkLocks keyedLocks[dfs.ChunkID]
	nextChunk  placementHint
	ends       fileEnds
	reclaim    chan struct{} // one token: look for orphans
	beganAt    dfs.Index     // the state's index when the reign began

	ctx context.Context // of the reign
	wg  sync.WaitGroup
	mu  sync.Mutex
	end bool // guarded by mu; no new goroutines
}

// newLeader reads what the reign begins with.
func newLeader(ctx context.Context, m *Master) (*leader, error) {
	l := &leader{
		cfg: m.cfg, log: m.log, addr: m.Addr(), cluster: m.ClusterID(), db: m.db, fsm: m.fsm, node: m.node, pool: m.pool, space: m.space,
		reclaim: make(chan struct{}, 1), ctx: ctx,
	}
	l.fleet = newFleet(m.cfg.clusterConfig(), m.cfg.WriteLease, time.Now())
	l.sessions = newSessionTable(m.cfg.SessionTTL, l.handlesGone)
	l.locks = newLockQueues(l.lookLocks)
	l.repairs = newRepairs(l)
	v, err := l.view()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	err = v.Servers(func(id dfs.ServerID, s *dfsv1.ServerRecord) bool {
		l.fleet.known(id, s.GetAddr(), s.GetRack())
		return true
	})
	if err != nil {
		return nil, err
	}
	var ids, caching []dfs.SessionID
	err = v.Sessions(func(id dfs.SessionID, s *dfsv1.SessionRecord) bool {
		ids = append(ids, id)
		if s.GetCaches() {
			caching = append(caching, id)
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	l.sessions.load(ids)
	l.caches = newCacheTable(caching)
	l.fsm.Watch(l.caches.observe)
	l.beganAt = v.Index()
	l.log.Info("leading", "cluster", l.cluster.String(), "index", uint64(v.Index()), "sessions", len(ids), "safe_mode", l.fleet.safeMode().String())
	poke(l.repairs.trigger)
	poke(l.reclaim)
	return l, nil
}

// run works until the reign ends.
func (l *leader) run() {
	for _, loop := range []func(context.Context){
		l.caches.outlast, l.tickLoop, l.sessionLoop, l.lockLoop, l.settleLoop, l.reclaimLoop, l.garbageLoop, l.repairs.scanLoop, l.repairs.actLoop,
	} {
		l.background(loop)
	}
	<-l.ctx.Done()
}

// close ends streams and waits for everything that was started.
func (l *leader) close() {
	l.mu.Lock()
	l.end = true
	l.mu.Unlock()
	l.fleet.endAll()
	l.wg.Wait()
	l.fsm.Watch(nil)
}

// background runs f in a goroutine of the reign's; it does nothing once the reign has ended.
func (l *leader) background(f func(ctx context.Context)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end {
		return
	}
	l.wg.Go(func() { f(l.ctx) })
}

// ClusterID returns the cluster's id.
func (l *leader) ClusterID() dfs.ClusterID { return l.cluster }

// view returns the applied state as of now. On a leader that is everything it has acknowledged; whether it still leads is not
// checked, so what a client is told goes through read.
func (l *leader) view() (*fsm.View, error) { return l.fsm.View() }

// read returns the state after a read barrier: it reflects everything acknowledged before the call by whatever master, and
// at least minIndex, an index the caller has been told. The view must be closed.
func (l *leader) read(ctx context.Context, minIndex uint64) (*fsm.View, error) {
	if _, err := l.node.ReadBarrier(ctx); err != nil {
		return nil, err
	}
	v, err := l.fsm.View()
	if err != nil {
		return nil, err
	}
	if dfs.Index(minIndex) > v.Index() {
		at := v.Index()
		v.Close()
		return nil, dfserr.Errorf(dfserr.ErrUnavailable, "master at %s is at index %d, the client has seen %d (was it rolled back?)", l.addr, at, minIndex)
	}
	depsOf(ctx).view(l.caches, v)
	return v, nil
}

// awaitFence waits until no replica outside a chunk's configuration can be served (fleet.awaitFence). Only a chunk that is
// older than this reign, and has another configuration than its first, can have exclusions that this leader knows nothing of.
func (l *leader) awaitFence(ctx context.Context, id dfs.ChunkID, r *chunks.Record) error {
	return l.fleet.awaitFence(ctx, id, r.Birth <= l.beganAt && r.Version != dfs.Version(r.Birth))
}

// propose commits a command and returns its result. The error is the command's own when it was refused; then the result is there
// too. Other errors leave open whether the command will be applied.
func (l *leader) propose(ctx context.Context, cmd *dfsv1.Command) (*dfsv1.Result, error) {
	if err := l.space.CheckAny(); err != nil {
		return nil, dfserr.Errorf(err, "master in %s takes no changes until there is room, not even deletions or new sessions", l.cfg.Dir)
	}
	cmd.TimeNs = time.Now().UnixNano()
	b, err := fsm.Encode(cmd)
	if err != nil {
		return nil, err
	}
	answer, _, err := l.node.Propose(ctx, b)
	if err != nil {
		return nil, err
	}
	switch r := answer.(type) {
	case *dfsv1.Result:
		depsOf(ctx).command(dfs.Index(r.GetIndex()))
		return r, fsm.ResultError(r)
	case error:
		return nil, r
	}
	return nil, fmt.Errorf("master: a command was answered with %T", answer)
}

// tickLoop notices what time brings: dead servers, leases that are over, exclusions to be tried again.
func (l *leader) tickLoop(ctx context.Context) {
	tick := time.NewTicker(max(time.Millisecond, l.cfg.ServingLease/8))
	defer tick.Stop()
	safe := l.fleet.safeMode().On
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for _, id := range l.fleet.tick() {
			l.log.Warn("chunkserver is dead", "server", id.String(), "silent_for", l.cfg.DeadAfter)
			l.repairs.serverLost(id)
		}
		if now := l.fleet.safeMode(); safe && !now.On {
			safe = false
			l.log.Info("safe mode is over", "registered", now.Registered, "known", now.Known)
			l.repairs.wake()
		}
		for _, e := range l.fleet.exclusions(maxResolve) {
			if unlock, ok := l.chunkLocks.tryLock(e.chunk); ok {
				unlock()
				l.background(func(ctx context.Context) { l.resolveExclusion(ctx, e) })
			}
		}
	}
}

// maxResolve bounds how many exclusions are tried again per tick.
const maxResolve = 64

// recordServer commits a server's address when the metadata have another or none.
func (l *leader) recordServer(ctx context.Context, h cluster.Hello) error {
	if h.Server == 0 || h.Addr == "" {
		return dfserr.Errorf(dfserr.ErrInvalid, "register chunkserver %s at %q: id and address are needed", h.Server, h.Addr)
	}
	v, err := l.read(ctx, 0)
	if err != nil {
		return err
	}
	known, err := v.Server(h.Server)
	v.Close()
	if err != nil {
		return err
	}
	if known != nil && known.GetAddr() == h.Addr && known.GetRack() == h.Rack {
		return nil
	}
	if err := l.fleet.conflict(h); err != nil {
		return err
	}
	_, err = l.propose(ctx, &dfsv1.Command{Op: &dfsv1.Command_Server{Server: &dfsv1.ServerCommand{
		Server: uint64(h.Server), Addr: h.Addr, Rack: h.Rack,
	}}})
	return err
}

// sessionLoop ends sessions whose time is up.
func (l *leader) sessionLoop(ctx context.Context) {
	tick := time.NewTicker(l.sessions.lookEvery())
	defer tick.Stop()
	stray := time.NewTicker(l.cfg.SessionTTL)
	defer stray.Stop()
	for {
		select {
		case <-tick.C:
		case <-stray.C:
			l.adoptSessions()
		case <-ctx.Done():
			return
		}
		for _, id := range l.sessions.expired(time.Now()) {
			if err := l.endSession(ctx, id); err != nil {
				l.sessions.revive(id)
				if ctx.Err() == nil {
					l.log.Warn("ending a session failed", "session", uint64(id), "error", err)
				}
				continue
			}
			l.log.Info("session expired", "session", uint64(id))
		}
	}
}

// adoptSessions finds sessions whose opening was committed although the call that opened them had given up: if nobody
// comes for them they expire like others.
func (l *leader) adoptSessions() {
	v, err := l.view()
	if err != nil {
		return // the store's failure is noticed where it matters
	}
	defer v.Close()
	_ = v.Sessions(func(id dfs.SessionID, _ *dfsv1.SessionRecord) bool {
		l.sessions.adopt(id)
		return true
	})
}

// endSession commits the end of a session and forgets what it had open.
func (l *leader) endSession(ctx context.Context, id dfs.SessionID) error {
	_, err := l.proposeAll(ctx, &dfsv1.Command{Op: &dfsv1.Command_EndSession{EndSession: &dfsv1.EndSessionCommand{Session: uint64(id)}}})
	if err == nil {
		l.forgetSession(id)
	}
	return err
}

// forgetSession drops what the leader remembers of a session whose end is committed.
func (l *leader) forgetSession(id dfs.SessionID) {
	l.sessions.end(id)
	l.caches.end(id)
	l.locks.endSession(id)
}

// handlesGone is told which inodes have lost their last writer or their last handle.
func (l *leader) handlesGone(writersGone, gone []dfs.InodeID) {
	l.unsettled.note(writersGone...)
	if len(gone) > 0 {
		poke(l.reclaim)
	}
}

// placementHint guesses the id of the next chunk, which the ring hashes.
type placementHint struct {
	mu   sync.Mutex
	next dfs.ChunkID // guarded by mu
}

// guess returns the state's next id or the one after the last guess.
func (h *placementHint) guess(l *leader) dfs.ChunkID {
	var state dfs.ChunkID
	if v, err := l.view(); err == nil {
		if t, err := v.ChunkTotals(); err == nil { // without it the guess is only less good
			state = t.NextChunk
		}
		v.Close()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next = max(h.next+1, state)
	return h.next
}
