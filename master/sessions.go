package master

import (
	"context"
	"sync"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// sessionTable is the leader's memory of sessions: when each one lapses, and which inodes it has open
// (DESIGN §5). None of it is in the Raft state. After a restart every session gets a full TTL and announces its
// opens again; until all have done so, or their time is up, settled is false and nobody may conclude that
// an inode is not open.
//
// Memory: one entry per session and one per inode open in it.
type sessionTable struct {
	ttl time.Duration

	mu       sync.Mutex
	sessions map[dfs.SessionID]*session            // guarded by mu
	inodes   map[dfs.InodeID]*handles              // guarded by mu; totals over sessions, never zero
	reaping  map[dfs.InodeID]struct{}              // guarded by mu; being reclaimed, may not be opened
	closing  map[dfs.InodeID]chan struct{}         // guarded by mu; a tail is being settled, closed when over
	silent   map[dfs.SessionID]struct{}            // guarded by mu; loaded from the state and not heard from yet
	creates  map[uint64]struct{}                   // guarded by mu; tickets of creates that will open what they make
	ticket   uint64                                // guarded by mu; last ticket given out
	orphans  map[dfs.InodeID]uint64                // guarded by mu; first seen when this ticket was the last given out
	lookedAt time.Time                             // guarded by mu; of the last call of expired
	left     func(writersGone, gone []dfs.InodeID) // called without mu: inodes whose last writer or last handle has gone
}

// session is one client's presence.
type session struct {
	deadline time.Time
	ending   bool // its end has been proposed
	opens    map[dfs.InodeID]*handles
	named    namedHandles
}

// handles counts open handles on an inode.
type handles struct {
	readers, writers int
	at               time.Time // of the last open or close
}

func (h *handles) zero() bool { return h.readers == 0 && h.writers == 0 }

// staleOpenAfter is how long an open that its session no longer announces is kept: longer than any request
// that opened it can still be on its way back.
const staleOpenAfter = time.Minute

func newSessionTable(ttl time.Duration, left func(writersGone, gone []dfs.InodeID)) *sessionTable {
	return &sessionTable{
		ttl:      ttl,
		sessions: map[dfs.SessionID]*session{},
		inodes:   map[dfs.InodeID]*handles{},
		reaping:  map[dfs.InodeID]struct{}{},
		closing:  map[dfs.InodeID]chan struct{}{},
		silent:   map[dfs.SessionID]struct{}{},
		creates:  map[uint64]struct{}{},
		orphans:  map[dfs.InodeID]uint64{},
		left:     left,
	}
}

// load takes the sessions found in the state at start: each gets a full TTL from now.
func (t *sessionTable) load(ids []dfs.SessionID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	for _, id := range ids {
		t.sessions[id] = &session{deadline: now.Add(t.ttl), opens: map[dfs.InodeID]*handles{}}
		t.silent[id] = struct{}{}
	}
}

// add begins a session that was opened just now; one that exists is renewed.
func (t *sessionTable) add(id dfs.SessionID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[id]
	if s == nil {
		s = &session{opens: map[dfs.InodeID]*handles{}}
		t.sessions[id] = s
	}
	s.deadline = time.Now().Add(t.ttl)
}

// adopt is add for a session that may be known already, which is then left alone.
func (t *sessionTable) adopt(id dfs.SessionID) {
	t.mu.Lock()
	known := t.sessions[id] != nil
	t.mu.Unlock()
	if !known {
		t.add(id)
	}
}

// renew gives the session another TTL; ErrUnknownSession when it has ended.
func (t *sessionTable) renew(id dfs.SessionID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[id]
	if s == nil || s.ending {
		return dfserr.Errorf(dfserr.ErrUnknownSession, "session %d", id)
	}
	s.deadline = time.Now().Add(t.ttl)
	return nil
}

// alive reports whether a session is known and not ending.
func (t *sessionTable) alive(id dfs.SessionID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[id]
	return s != nil && !s.ending
}

// announce takes the full list of handles a session has open; an inode that is listed n times has n handles.
// Announced handles that were not known count as writers, because the list does not tell. Known ones that
// are not announced are dropped unless they are too young to be in the list.
func (t *sessionTable) announce(id dfs.SessionID, inodes []dfs.InodeID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[id]
	if s == nil || s.ending {
		return dfserr.Errorf(dfserr.ErrUnknownSession, "session %d", id)
	}
	now := time.Now()
	counts := map[dfs.InodeID]int{}
	for _, ino := range inodes {
		counts[ino]++
	}
	for ino, n := range counts {
		h := s.opens[ino]
		known := 0
		if h != nil {
			known = h.readers + h.writers
		}
		if _, dying := t.reaping[ino]; dying {
			continue
		}
		for ; known < n; known++ {
			t.countLocked(s, ino, true, now)
		}
	}
	for ino, h := range s.opens {
		if counts[ino] == 0 && now.Sub(h.at) > staleOpenAfter {
			t.dropLocked(s, ino)
		}
	}
	delete(t.silent, id)
	return nil
}

// open counts a handle. ErrUnknownSession when the session has ended, ErrStaleInode when the inode is being
// reclaimed. The caller then reads the state again: an inode that still exists stays until the handle closes.
func (t *sessionTable) open(id dfs.SessionID, ino dfs.InodeID, write bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[id]
	if s == nil || s.ending {
		return dfserr.Errorf(dfserr.ErrUnknownSession, "session %d", id)
	}
	if _, dying := t.reaping[ino]; dying {
		return dfserr.Errorf(dfserr.ErrStaleInode, "inode %d", ino)
	}
	t.countLocked(s, ino, write, time.Now())
	return nil
}

func (t *sessionTable) countLocked(s *session, ino dfs.InodeID, write bool, now time.Time) {
	h, total := s.opens[ino], t.inodes[ino]
	if h == nil {
		h = &handles{}
		s.opens[ino] = h
	}
	if total == nil {
		total = &handles{}
		t.inodes[ino] = total
	}
	h.at = now
	if write {
		h.writers++
		total.writers++
	} else {
		h.readers++
		total.readers++
	}
}

// close takes back one handle; one that is not counted is ignored, so a repeated close does no harm.
func (t *sessionTable) close(id dfs.SessionID, ino dfs.InodeID, write bool) {
	t.mu.Lock()
	s := t.sessions[id]
	if s == nil || s.opens[ino] == nil {
		t.mu.Unlock()
		return
	}
	writersGone, gone := t.uncountLocked(s, ino, write)
	t.mu.Unlock()
	t.tellLeft(writersGone, gone)
}

// uncountLocked takes back one of a session's handles on an inode, which has one. It returns the inode as one whose last writer, and whose last handle, has gone.
func (t *sessionTable) uncountLocked(s *session, ino dfs.InodeID, write bool) (writersGone, gone []dfs.InodeID) {
	h, total := s.opens[ino], t.inodes[ino]
	h.at = time.Now()
	// Handles announced after a restart count as writers, so a reader's close may find only those.
	asWriter := write && h.writers > 0 || h.readers == 0
	if asWriter {
		h.writers--
		total.writers--
	} else {
		h.readers--
		total.readers--
	}
	if h.zero() {
		delete(s.opens, ino)
	}
	if asWriter && total.writers == 0 {
		writersGone = []dfs.InodeID{ino}
	}
	if total.zero() {
		delete(t.inodes, ino)
		gone = []dfs.InodeID{ino}
	}
	return writersGone, gone
}

// tellLeft passes on which inodes have lost their last writer or handle. It is called without mu.
func (t *sessionTable) tellLeft(writersGone, gone []dfs.InodeID) {
	if writersGone != nil || gone != nil {
		t.left(writersGone, gone)
	}
}

// dropLocked forgets all handles of one session on one inode.
func (t *sessionTable) dropLocked(s *session, ino dfs.InodeID) (writersGone, gone bool) {
	h, total := s.opens[ino], t.inodes[ino]
	delete(s.opens, ino)
	total.readers -= h.readers
	total.writers -= h.writers
	if total.zero() {
		delete(t.inodes, ino)
	}
	return h.writers > 0 && total.writers == 0, total.zero()
}

// end forgets a session and everything it had open.
func (t *sessionTable) end(id dfs.SessionID) {
	t.mu.Lock()
	s := t.sessions[id]
	if s == nil {
		t.mu.Unlock()
		return
	}
	var writersGone, gone []dfs.InodeID
	for ino := range s.opens {
		w, g := t.dropLocked(s, ino)
		if w {
			writersGone = append(writersGone, ino)
		}
		if g {
			gone = append(gone, ino)
		}
	}
	delete(t.sessions, id)
	delete(t.silent, id)
	t.mu.Unlock()
	if writersGone != nil || gone != nil {
		t.left(writersGone, gone)
	}
}

// lookEvery is how often expired is to be called.
func (t *sessionTable) lookEvery() time.Duration { return max(time.Millisecond, t.ttl/16) }

// expired marks the sessions whose time is up as ending and returns them; the caller, who calls it every lookEvery, proposes their ends
// and then calls end, or revive when that failed.
//
// Time in which this process did not run does not count: while it was held up, by a busy disk or a suspended machine, nobody could renew.
// So a call that comes late moves every deadline by as much as it is late.
func (t *sessionTable) expired(now time.Time) []dfs.SessionID {
	t.mu.Lock()
	defer t.mu.Unlock()
	if late := now.Sub(t.lookedAt) - t.lookEvery(); !t.lookedAt.IsZero() && late > t.lookEvery() {
		for _, s := range t.sessions {
			s.deadline = s.deadline.Add(late)
		}
	}
	t.lookedAt = now
	var ids []dfs.SessionID
	for id, s := range t.sessions {
		if !s.ending && now.After(s.deadline) {
			s.ending = true
			ids = append(ids, id)
		}
	}
	return ids
}

// revive undoes expired's mark.
func (t *sessionTable) revive(id dfs.SessionID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.sessions[id]; s != nil {
		s.ending = false
	}
}

// settled reports whether every session that outlived a restart has announced its opens or ended.
func (t *sessionTable) settled() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.silent) == 0
}

// beginCreate announces a create that will open the inode it makes; nothing orphaned meanwhile is reaped
// before endCreate.
func (t *sessionTable) beginCreate() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ticket++
	t.creates[t.ticket] = struct{}{}
	return t.ticket
}

func (t *sessionTable) endCreate(ticket uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.creates, ticket)
}

// claim returns those of the orphans that nobody has open and nobody can be about to open, and marks them so
// that open refuses them. An orphan is claimed once every create that was under way when it was first seen is over. again reports that some must wait for that.
func (t *sessionTable) claim(orphans []dfs.InodeID) (claimed []dfs.InodeID, again bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	oldest := t.ticket + 1
	for ticket := range t.creates {
		oldest = min(oldest, ticket)
	}
	for _, ino := range orphans {
		if t.inodes[ino] != nil {
			delete(t.orphans, ino)
			continue
		}
		seen, ok := t.orphans[ino]
		if !ok {
			seen = t.ticket
			t.orphans[ino] = seen
		}
		if oldest <= seen {
			again = true
			continue
		}
		delete(t.orphans, ino)
		t.reaping[ino] = struct{}{}
		claimed = append(claimed, ino)
	}
	return claimed, again
}

// release takes back claim's marks, after the inodes have gone or when they could not be reclaimed.
func (t *sessionTable) release(inodes []dfs.InodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, ino := range inodes {
		delete(t.reaping, ino)
	}
}

// writers returns how many handles open for writing an inode has.
func (t *sessionTable) writers(ino dfs.InodeID) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.inodes[ino]; h != nil {
		return h.writers
	}
	return 0
}

// othersWrite reports whether a session other than the one named has the inode open for writing, or may have: right after
// a restart that is not known yet.
func (t *sessionTable) othersWrite(id dfs.SessionID, ino dfs.InodeID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.silent) > 0 {
		return true
	}
	total := t.inodes[ino]
	if total == nil {
		return false
	}
	own := 0
	if s := t.sessions[id]; s != nil && s.opens[ino] != nil {
		own = s.opens[ino].writers
	}
	return total.writers > own
}

// beginClosing claims the right to settle the tail of an inode that nobody has open for writing. While it is held,
// awaitClosing blocks those who would start to use the tail. done must be called once.
func (t *sessionTable) beginClosing(ino dfs.InodeID) (done func(), ok bool) {
	return t.claimClosing(ino, func(total *handles) bool { return total == nil || total.writers == 0 })
}

// beginClosingBy is beginClosing for a session that is about to close its handle, which must be the only one for writing.
func (t *sessionTable) beginClosingBy(id dfs.SessionID, ino dfs.InodeID) (done func(), ok bool) {
	return t.claimClosing(ino, func(total *handles) bool {
		s := t.sessions[id]
		return s != nil && s.opens[ino] != nil && s.opens[ino].writers == 1 && total.writers == 1
	})
}

// claimClosing calls alone with mu held.
func (t *sessionTable) claimClosing(ino dfs.InodeID, alone func(total *handles) bool) (done func(), ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.silent) > 0 || t.closing[ino] != nil || !alone(t.inodes[ino]) {
		return nil, false
	}
	ch := make(chan struct{})
	t.closing[ino] = ch
	return func() {
		t.mu.Lock()
		delete(t.closing, ino)
		t.mu.Unlock()
		close(ch)
	}, true
}

// awaitClosing waits until nobody is settling the inode's tail.
func (t *sessionTable) awaitClosing(ctx context.Context, ino dfs.InodeID) error {
	for {
		t.mu.Lock()
		ch := t.closing[ino]
		t.mu.Unlock()
		if ch == nil {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// counts returns how many sessions and open inodes there are.
func (t *sessionTable) counts() (sessions, inodes int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.sessions), len(t.inodes)
}
