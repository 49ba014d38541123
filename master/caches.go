package master

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/fsm"
	dfsv1 "dfs/proto/dfs/v1"
)

// cacheTable is the leader's memory of cache leases: which sessions may answer from their own memory what an inode's attributes are and, of a
// directory, what names in it stand for or that they are absent (docs/adr/0010-cache-leases.md).
//
// A command that changes an inode recalls the leases on it. That begins in Raft's goroutine before any view can show the change (observe), and until
// every holder has confirmed, or can no longer trust its cache, no answer that depends on the inode leaves the master (await): neither the command's
// own, nor that of a call that looked at the inode. So nobody can know of a change while somebody may still answer from before it. Commands go on being applied meanwhile.
//
// A session trusts its cache for dfs.CacheTrust after it sent the last message that was answered; the table counts dfs.CacheWait from the receipt of that
// message. A reign that follows another knows nothing of the leases of the one before it: it holds back every answer that could disagree with them until they have
// lapsed, or all their holders have come and said that they hold nothing (awaitReady).
//
// Memory: maxLeases leases of about 200 bytes, and changedKept recent changes.
type cacheTable struct {
	ready   chan struct{} // closed when no lease of an earlier reign can be trusted
	recalls atomic.Int64  // inodes under recall

	mu       sync.Mutex
	sessions map[dfs.SessionID]*cacheSession // guarded by mu: those that have had a stream
	inodes   map[dfs.InodeID]*cachedInode    // guarded by mu: with a holder or under recall
	waits    map[dfs.Index]*cacheWait        // guarded by mu: of commands whose answers must wait
	total    int                             // guarded by mu: leases
	unknown  map[dfs.SessionID]struct{}      // guarded by mu: may hold leases of an earlier reign; nil once ready
	changed  map[dfs.InodeID]dfs.Index       // guarded by mu: when an inode was last changed, of those in ring
	ring     []changedAt                     // guarded by mu: the latest changes
	at       int                             // guarded by mu: oldest in ring, once that is full
	floor    dfs.Index                       // guarded by mu: changes up to here are not remembered
}

// Bounds of the table.
const (
	maxLeases        = 1 << 19
	maxSessionLeases = 1 << 17
	// recallShare is the part of a session's leases that is called back, oldest first, when it has as many as it may.
	recallShare = 16
	changedKept = 8192
	// confirmWithin is how long a session may take to confirm a recall and still have its trust lengthened. A change waits at most that
	// long and dfs.CacheWait: 3 s.
	confirmWithin = 200 * time.Millisecond
	maxCovers     = 8
)

type changedAt struct {
	inode dfs.InodeID
	index dfs.Index
}

// cacheSession is what one session may have cached.
type cacheSession struct {
	stream  uint64    // number of its keep-alive stream
	heardAt time.Time // when the last message came that was answered, or will be
	leases  map[dfs.InodeID]struct{}
	order   []dfs.InodeID            // in the order they were granted; also some that are gone
	recalls map[dfs.InodeID]struct{} // not yet confirmed
	queue   []dfs.InodeID            // recalls not yet sent
	queueAt time.Time                // since when there have been any
	sent    []recallBatch            // not yet confirmed, in order
	number  uint64                   // of the last batch
	wake    chan struct{}            // one token: queue is not empty
}

type recallBatch struct {
	number uint64
	inodes []dfs.InodeID
	at     time.Time // when the first of them began
}

// owesSince returns when the oldest recall began that a session has not confirmed.
func (s *cacheSession) owesSince() (at time.Time, owes bool) {
	switch {
	case len(s.sent) > 0:
		return s.sent[0].at, true
	case len(s.queue) > 0:
		return s.queueAt, true
	}
	return time.Time{}, false
}

// cachedInode is an inode that somebody has, or had, a lease on.
type cachedInode struct {
	holders []dfs.SessionID
	left    []dfs.SessionID // have not confirmed the recall; while there are any, no lease is granted
	waits   []*cacheWait
}

// cacheWait ends when some recalls are over.
type cacheWait struct {
	left  int       // guarded by cacheTable.mu: inodes under recall
	index dfs.Index // under which it is in cacheTable.waits; 0: it is not
	done  chan struct{}
}

// newCacheTable returns the table of a reign that begins now. unknown are the sessions that may hold leases of an earlier one.
func newCacheTable(unknown []dfs.SessionID) *cacheTable {
	t := &cacheTable{
		ready: make(chan struct{}), sessions: map[dfs.SessionID]*cacheSession{}, inodes: map[dfs.InodeID]*cachedInode{}, waits: map[dfs.Index]*cacheWait{},
		unknown: map[dfs.SessionID]struct{}{}, changed: map[dfs.InodeID]dfs.Index{},
	}
	for _, id := range unknown {
		t.unknown[id] = struct{}{}
	}
	t.knownLocked(0)
	return t
}

// knownLocked notes that a session holds no lease of an earlier reign.
func (t *cacheTable) knownLocked(id dfs.SessionID) {
	if t.unknown == nil {
		return
	}
	delete(t.unknown, id)
	if len(t.unknown) == 0 {
		t.unknown = nil
		close(t.ready)
	}
}

// outlast waits until the leases of earlier reigns have lapsed.
func (t *cacheTable) outlast(ctx context.Context) {
	timer := time.NewTimer(dfs.CacheWait)
	defer timer.Stop()
	select {
	case <-t.ready:
	case <-ctx.Done():
	case <-timer.C:
		t.mu.Lock()
		defer t.mu.Unlock()
		clear(t.unknown)
		t.knownLocked(0)
	}
}

// awaitReady returns when nobody trusts a lease of an earlier reign any more.
func (t *cacheTable) awaitReady(ctx context.Context) error {
	select {
	case <-t.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// attach begins a stream of a session that holds nothing. Of the streams of a session the one with the highest number counts: ErrBusy when this one comes late.
// The channel has a token when there are recalls to be sent.
func (t *cacheTable) attach(id dfs.SessionID, stream uint64) (wake <-chan struct{}, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[id]
	if s == nil {
		s = &cacheSession{leases: map[dfs.InodeID]struct{}{}, recalls: map[dfs.InodeID]struct{}{}}
		t.sessions[id] = s
	}
	if stream <= s.stream {
		return nil, dfserr.Errorf(dfserr.ErrBusy, "keep-alive stream %d of session %d comes after stream %d", stream, id, s.stream)
	}
	t.voidLocked(id, s)
	s.stream, s.heardAt, s.wake = stream, time.Now(), make(chan struct{}, 1)
	t.knownLocked(id)
	return s.wake, nil
}

// heard notes a message of a session's stream. Recalls up to recalled are confirmed. If the session asks for an answer, it tells whether it may have one, which lengthens
// the trust in the cache: not while a recall is overdue, for it may hear nothing of what we send. ErrBusy when the stream is not the session's any more, or never
// confirms: it must end then.
func (t *cacheTable) heard(id dfs.SessionID, stream, recalled uint64, asks bool) (answer bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[id]
	if s == nil || s.stream != stream {
		return false, dfserr.Errorf(dfserr.ErrBusy, "keep-alive stream %d of session %d has been replaced", stream, id)
	}
	now := time.Now()
	if t.lapsed(s, now) {
		t.voidLocked(id, s) // the client finds that out by itself, when it has the answer
	}
	for len(s.sent) > 0 && s.sent[0].number <= recalled {
		for _, inode := range s.sent[0].inodes {
			t.confirmLocked(id, s, inode)
		}
		s.sent = s.sent[1:]
	}
	switch since, owes := s.owesSince(); {
	case owes && now.Sub(since) > dfs.CacheWait:
		return false, dfserr.Errorf(dfserr.ErrBusy, "session %d does not confirm recalls", id)
	case !asks || owes && now.Sub(since) > confirmWithin:
		return false, nil
	}
	s.heardAt = now
	return true, nil
}

// take returns the recalls to be sent on a stream, under one number; none when there are none.
func (t *cacheTable) take(id dfs.SessionID, stream uint64) (number uint64, inodes []dfs.InodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[id]
	if s == nil || s.stream != stream || len(s.queue) == 0 {
		return 0, nil
	}
	inodes, s.queue = s.queue, nil
	s.number++
	s.sent = append(s.sent, recallBatch{s.number, inodes, s.queueAt})
	return s.number, inodes
}

// end forgets a session.
func (t *cacheTable) end(id dfs.SessionID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.sessions[id]; s != nil {
		t.voidLocked(id, s)
		delete(t.sessions, id)
	}
	t.knownLocked(id)
}

func (t *cacheTable) lapsed(s *cacheSession, now time.Time) bool {
	return now.Sub(s.heardAt) > dfs.CacheWait
}

// voidLocked takes all leases of a session that cannot trust them any more.
func (t *cacheTable) voidLocked(id dfs.SessionID, s *cacheSession) {
	for inode := range s.leases {
		n := t.inodes[inode]
		n.holders = without(n.holders, id)
		t.dropIdleLocked(inode, n)
	}
	t.total -= len(s.leases)
	clear(s.leases)
	for inode := range s.recalls {
		t.confirmLocked(id, s, inode)
	}
	s.order, s.queue, s.sent = nil, nil, nil
}

func without(list []dfs.SessionID, id dfs.SessionID) []dfs.SessionID {
	if i := slices.Index(list, id); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}

func (t *cacheTable) dropIdleLocked(inode dfs.InodeID, n *cachedInode) {
	if len(n.holders) == 0 && len(n.left) == 0 {
		delete(t.inodes, inode)
	}
}

// recallLocked calls back the leases on an inode, but for that of the session keep. It reports whether the inode is under recall.
func (t *cacheTable) recallLocked(inode dfs.InodeID, n *cachedInode, keep dfs.SessionID, now time.Time) bool {
	for _, id := range slices.Clone(n.holders) {
		s := t.sessions[id]
		switch {
		case id == keep:
			continue
		case t.lapsed(s, now):
			t.voidLocked(id, s)
			continue
		}
		t.recallOneLocked(inode, n, id, s)
	}
	return len(n.left) > 0
}

// recallOneLocked calls back a session's lease on an inode.
func (t *cacheTable) recallOneLocked(inode dfs.InodeID, n *cachedInode, id dfs.SessionID, s *cacheSession) {
	n.holders = without(n.holders, id)
	delete(s.leases, inode)
	t.total--
	if len(n.left) == 0 {
		t.recalls.Add(1)
	}
	n.left = append(n.left, id)
	t.inodes[inode] = n // the last holder may have been voided a moment ago
	s.recalls[inode] = struct{}{}
	if len(s.queue) == 0 {
		s.queueAt = time.Now()
	}
	s.queue = append(s.queue, inode)
	poke(s.wake)
}

// confirmLocked ends a session's part in the recall of an inode.
func (t *cacheTable) confirmLocked(id dfs.SessionID, s *cacheSession, inode dfs.InodeID) {
	if _, ok := s.recalls[inode]; !ok {
		return
	}
	delete(s.recalls, inode)
	n := t.inodes[inode]
	if n.left = without(n.left, id); len(n.left) > 0 {
		return
	}
	for _, w := range n.waits {
		if w.left--; w.left == 0 {
			delete(t.waits, w.index)
			close(w.done)
		}
	}
	n.waits = nil
	t.recalls.Add(-1)
	t.dropIdleLocked(inode, n)
}

// observe is told of each command before its effect can be seen (fsm.Watch).
func (t *cacheTable) observe(c fsm.Change) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.sessions) == 0 {
		t.floor = c.Index // nobody to grant to: a session that comes later reads what is newer
		return
	}
	now := time.Now()
	var w *cacheWait
	for _, inode := range c.Touched {
		t.noteLocked(inode, c.Index)
		if n := t.inodes[inode]; n != nil && t.recallLocked(inode, n, t.coveredLocked(c.Header, inode), now) {
			w = joinLocked(w, n)
		}
	}
	if t.recalls.Load() > 0 {
		for _, inode := range c.Read {
			if n := t.inodes[inode]; n != nil && len(n.left) > 0 {
				w = joinLocked(w, n)
			}
		}
	}
	if w != nil {
		w.index = c.Index
		t.waits[c.Index] = w
	}
}

// coveredLocked returns the session that takes care of its own lease on an inode that its command changes, 0 when it does not.
func (t *cacheTable) coveredLocked(h *dfsv1.MutationHeader, inode dfs.InodeID) dfs.SessionID {
	if covers := h.GetCovers(); len(covers) <= maxCovers && slices.Contains(covers, uint64(inode)) {
		id := dfs.SessionID(h.GetSession())
		if s := t.sessions[id]; s != nil && s.stream == h.GetCache() {
			return id
		}
	}
	return 0
}

// noteLocked remembers that an inode was changed.
func (t *cacheTable) noteLocked(inode dfs.InodeID, index dfs.Index) {
	if t.changed[inode] == index {
		return
	}
	t.changed[inode] = index
	if len(t.ring) < changedKept {
		t.ring = append(t.ring, changedAt{inode, index})
		return
	}
	old := t.ring[t.at]
	if t.changed[old.inode] == old.index {
		delete(t.changed, old.inode)
	}
	t.floor = max(t.floor, old.index)
	t.ring[t.at] = changedAt{inode, index}
	t.at = (t.at + 1) % changedKept
}

// joinLocked makes w, or a new wait, wait for the recall of an inode too.
func joinLocked(w *cacheWait, n *cachedInode) *cacheWait {
	if w == nil {
		w = &cacheWait{done: make(chan struct{})}
	}
	if !slices.Contains(n.waits, w) {
		n.waits = append(n.waits, w)
		w.left++
	}
	return w
}

// recall calls back the leases of others on an inode that a session is about to change by other ways than commands. awaiting it is the caller's.
func (t *cacheTable) recall(inode dfs.InodeID, keep dfs.SessionID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.inodes[inode]; n != nil {
		t.recallLocked(inode, n, keep, time.Now())
	}
}

// grant gives a session a lease on an inode as it was at an index, or does not. The caller must not have answered yet.
func (t *cacheTable) grant(id dfs.SessionID, inode dfs.InodeID, at dfs.Index) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[id]
	if s == nil || at < t.floor || t.changed[inode] > at || t.lapsed(s, time.Now()) {
		return false
	}
	if _, ok := s.leases[inode]; ok {
		return true
	}
	n := t.inodes[inode]
	if n != nil && len(n.left) > 0 {
		return false
	}
	if t.total >= maxLeases || len(s.leases) >= maxSessionLeases {
		t.shrinkLocked(id, s)
		return false
	}
	if n == nil {
		n = &cachedInode{}
		t.inodes[inode] = n
	}
	n.holders = append(n.holders, id)
	s.leases[inode] = struct{}{}
	s.order = append(s.order, inode)
	t.total++
	return true
}

func isMember(set map[dfs.InodeID]struct{}, id dfs.InodeID) bool {
	_, ok := set[id]
	return ok
}

// shrinkLocked calls back a share of a session's leases, the oldest.
func (t *cacheTable) shrinkLocked(id dfs.SessionID, s *cacheSession) {
	for want := len(s.leases)/recallShare + 1; want > 0 && len(s.order) > 0; s.order = s.order[1:] {
		if inode := s.order[0]; isMember(s.leases, inode) {
			t.recallOneLocked(inode, t.inodes[inode], id, s)
			want--
		}
	}
}

// deps is what the answer to a call depends on. Safe for concurrent use.
type deps struct {
	mu      sync.Mutex
	indexes []dfs.Index   // guarded by mu: of commands
	inodes  []dfs.InodeID // guarded by mu
	views   []*fsm.View   // guarded by mu: that track, and are closed when the call is over
}

type depsKey struct{}

// depsOf returns where a call notes what its answer depends on, nil when nobody waits for an answer.
func depsOf(ctx context.Context) *deps {
	d, _ := ctx.Value(depsKey{}).(*deps)
	return d
}

func (d *deps) command(index dfs.Index) {
	if d != nil {
		d.mu.Lock()
		d.indexes = append(d.indexes, index)
		d.mu.Unlock()
	}
}

func (d *deps) inode(id dfs.InodeID) {
	if d != nil {
		d.mu.Lock()
		d.inodes = append(d.inodes, id)
		d.mu.Unlock()
	}
}

// view notes what a view is asked, if there are recalls at all.
func (d *deps) view(t *cacheTable, v *fsm.View) {
	if d != nil && t.recalls.Load() > 0 {
		v.Track()
		d.mu.Lock()
		d.views = append(d.views, v)
		d.mu.Unlock()
	}
}

// await returns when every recall is over that an answer depends on.
func (t *cacheTable) await(ctx context.Context, d *deps) error {
	if t.recalls.Load() == 0 {
		return nil
	}
	for _, w := range t.waitsFor(d) {
		if err := t.awaitOne(ctx, w); err != nil {
			return err
		}
	}
	return nil
}

func (t *cacheTable) waitsFor(d *deps) []*cacheWait {
	d.mu.Lock()
	defer d.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []*cacheWait
	for _, index := range d.indexes {
		if w := t.waits[index]; w != nil {
			list = append(list, w)
		}
	}
	var w *cacheWait
	join := func(inode dfs.InodeID) {
		if n := t.inodes[inode]; n != nil && len(n.left) > 0 {
			w = joinLocked(w, n)
		}
	}
	for _, inode := range d.inodes {
		join(inode)
	}
	for _, v := range d.views {
		for _, inode := range v.Seen() {
			join(inode)
		}
	}
	if w != nil {
		list = append(list, w)
	}
	return list
}

// awaitOne waits, and on the way voids the leases of sessions whose time is up.
func (t *cacheTable) awaitOne(ctx context.Context, w *cacheWait) error {
	for {
		timer := time.NewTimer(t.expire(time.Now()))
		select {
		case <-w.done:
			timer.Stop()
			return nil
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// expire voids what sessions can no longer trust, of those that owe a confirmation, and returns when to look again.
func (t *cacheTable) expire(now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := dfs.CacheWait
	for id, s := range t.sessions {
		if len(s.recalls) == 0 {
			continue
		}
		if t.lapsed(s, now) {
			t.voidLocked(id, s)
			continue
		}
		next = min(next, s.heardAt.Add(dfs.CacheWait).Sub(now))
	}
	return next + time.Millisecond
}

// counts returns how many leases there are, and how many inodes are under recall.
func (t *cacheTable) counts() (leases, recalls int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.total, int(t.recalls.Load())
}
