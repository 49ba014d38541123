package master

import (
	"slices"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// A client draws a number for each handle it opens (OpenRequest.handle), so that an open whose reply was lost counts once however often it is sent, and so
// does its close. Handles without a number are only counted. After a restart of the master numbers are not known any more; the handles that are announced again are
// only counted too.

// namedHandles are a session's handles by number.
type namedHandles struct {
	byName map[uint64]*namedHandle
	ended  []uint64 // closed ones that are still remembered, oldest first
}

// endedKept is how many closed handles a session remembers, for late copies of their opens and closes.
const endedKept = 16 * 1024

// namedHandle is one handle.
type namedHandle struct {
	opens   []openAs // what is counted for it: more than one when the name that was opened stood for another inode the second time
	pending int      // opens under way
	done    bool     // an open has succeeded
	ended   bool
}

type openAs struct {
	inode dfs.InodeID
	write bool
}

// openNamed is open for a handle with a number; endOpen follows it.
func (t *sessionTable) openNamed(id dfs.SessionID, ino dfs.InodeID, write bool, name uint64) error {
	if name == 0 {
		return t.open(id, ino, write)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[id]
	if s == nil || s.ending {
		return dfserr.Errorf(dfserr.ErrUnknownSession, "session %d", id)
	}
	if _, dying := t.reaping[ino]; dying {
		return dfserr.Errorf(dfserr.ErrStaleInode, "inode %d", ino)
	}
	h := s.named.byName[name]
	if h == nil {
		h = &namedHandle{}
		if s.named.byName == nil {
			s.named.byName = map[uint64]*namedHandle{}
		}
		s.named.byName[name] = h
	}
	if h.ended {
		return nil // its client has closed it: this is a late copy, whose reply nobody waits for
	}
	h.pending++
	if as := (openAs{ino, write}); !slices.Contains(h.opens, as) {
		h.opens = append(h.opens, as)
		t.countLocked(s, ino, write, time.Now())
	}
	return nil
}

// endOpen ends an open that was counted. One that failed is not counted any more, unless another copy of it has succeeded or is under way.
func (t *sessionTable) endOpen(id dfs.SessionID, ino dfs.InodeID, write bool, name uint64, ok bool) {
	if name == 0 {
		if !ok {
			t.close(id, ino, write)
		}
		return
	}
	t.mu.Lock()
	s := t.sessions[id]
	if s == nil || s.named.byName[name] == nil {
		t.mu.Unlock()
		return
	}
	h := s.named.byName[name]
	h.pending--
	h.done = h.done || ok
	var writersGone, gone []dfs.InodeID
	if h.pending == 0 && !h.done && !h.ended {
		writersGone, gone = t.dropNamedLocked(s, h)
		delete(s.named.byName, name)
	}
	t.mu.Unlock()
	t.tellLeft(writersGone, gone)
}

// closeNamed is close for a handle with a number. A number that is not known is that of a handle announced after a restart, or of one that was never opened (then ino is
// 0); in any case a repetition does nothing.
func (t *sessionTable) closeNamed(id dfs.SessionID, ino dfs.InodeID, write bool, name uint64) {
	if name == 0 {
		t.close(id, ino, write)
		return
	}
	t.mu.Lock()
	s := t.sessions[id]
	if s == nil {
		t.mu.Unlock()
		return
	}
	var writersGone, gone []dfs.InodeID
	h := s.named.byName[name]
	switch {
	case h == nil:
		h = &namedHandle{}
		if s.named.byName == nil {
			s.named.byName = map[uint64]*namedHandle{}
		}
		s.named.byName[name] = h
		if s.opens[ino] != nil {
			writersGone, gone = t.uncountLocked(s, ino, write)
		}
	case h.ended:
		t.mu.Unlock()
		return
	default:
		writersGone, gone = t.dropNamedLocked(s, h)
	}
	h.ended = true
	s.named.ended = append(s.named.ended, name)
	if len(s.named.ended) > endedKept {
		delete(s.named.byName, s.named.ended[0])
		s.named.ended = s.named.ended[1:]
	}
	t.mu.Unlock()
	t.tellLeft(writersGone, gone)
}

// dropNamedLocked takes back all that is counted for a handle.
func (t *sessionTable) dropNamedLocked(s *session, h *namedHandle) (writersGone, gone []dfs.InodeID) {
	for _, as := range h.opens {
		if s.opens[as.inode] == nil {
			continue // dropped when the session announced its handles without it
		}
		w, g := t.uncountLocked(s, as.inode, as.write)
		writersGone, gone = append(writersGone, w...), append(gone, g...)
	}
	h.opens = nil
	return writersGone, gone
}
