// Package locks keeps the advisory locks of files: flock(2) locks on a whole file, and POSIX (fcntl) locks on ranges of bytes. The two
// kinds do not see one another, as on Linux.
//
// Like packages namespace and chunks it is deterministic: each operation is a function of a Txn, an Env and its arguments, and one that
// fails may have used its Txn, which the caller then discards. It only grants what is free: who waits, in what order, and whether waiting
// would be a deadlock is soft state of the leading master (package master). Whether the file exists has been checked.
//
// # Owners
//
// A lock belongs to an owner, which is a number that a session (a client) has chosen: a process or an open file of that
// client. Locks of one owner never conflict. They go when they are unlocked, when the owner is released, when its session ends, and with the file.
//
// # Invariants
//
// Two locks of different owners that overlap are both shared. The locks of one owner do not overlap, and two that touch differ in mode. A record is sorted
// by first byte, then session, then owner; it is never empty. A session has a mark on a file if and only if it has a lock on it, and its count is that of its marks.
package locks

import (
	"cmp"
	"math"
	"slices"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// Limits. A record must stay well below what one value may hold (1 MiB); a lock takes at most 64 bytes of it.
const (
	MaxPerFile         = 4096  // locks on one file, of both kinds
	MaxFilesPerSession = 65536 // files on which one session has locks
)

// End is the last byte of a range that goes on for ever.
const End = math.MaxInt64

// Kind is which of the two systems of locks a lock belongs to.
type Kind uint8

// The kinds.
const (
	Flock Kind = iota // on the whole file: the range is [0, End]
	Posix             // on a range of bytes
)

// Mode is what a lock allows others.
type Mode uint8

// The modes.
const (
	Shared    Mode = iota // others may have shared locks
	Exclusive             // others may have none
)

// Owner is whom a lock belongs to.
type Owner struct {
	Session dfs.SessionID
	ID      uint64 // drawn by the client, unique within the session
}

// Lock is a lock, held or wanted.
type Lock struct {
	Owner       Owner
	First, Last int64 // bytes of the file, both inclusive
	Mode        Mode
	PID         uint32    // of the process, as its machine knows it: for F_GETLK only
	Since       dfs.Index // of the command that granted it: the fencing token
}

// overlaps reports whether two locks have a byte in common.
func (l *Lock) overlaps(o *Lock) bool { return l.First <= o.Last && o.First <= l.Last }

// Conflicts reports whether two locks of one kind exclude one another.
func (l *Lock) Conflicts(o *Lock) bool {
	return l.Owner != o.Owner && (l.Mode == Exclusive || o.Mode == Exclusive) && l.overlaps(o)
}

// Record is all locks held on one file. Its slices are shared and never modified in place.
type Record struct {
	Flock []Lock
	Posix []Lock
}

// Of returns the locks of one kind.
func (r *Record) Of(k Kind) []Lock {
	if k == Flock {
		return r.Flock
	}
	return r.Posix
}

// Conflict returns the first lock that stands in the way of want, nil when there is none.
func (r *Record) Conflict(k Kind, want *Lock) *Lock {
	for i := range r.Of(k) {
		if l := &r.Of(k)[i]; l.Conflicts(want) {
			return l
		}
	}
	return nil
}

// Held returns how many locks of one kind an owner has.
func (r *Record) Held(k Kind, o Owner) int {
	n := 0
	for i := range r.Of(k) {
		if r.Of(k)[i].Owner == o {
			n++
		}
	}
	return n
}

// Has reports whether a session has a lock on the file.
func (r *Record) Has(id dfs.SessionID) bool {
	of := func(l Lock) bool { return l.Owner.Session == id }
	return slices.ContainsFunc(r.Flock, of) || slices.ContainsFunc(r.Posix, of)
}

func order(a, b Lock) int {
	return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Owner.Session, b.Owner.Session), cmp.Compare(a.Owner.ID, b.Owner.ID))
}

// Check says what is wrong with a record that was read: ErrCorrupt.
func (r *Record) Check() error {
	bad := func(what string) error { return dfserr.Errorf(dfserr.ErrCorrupt, "locks of a file: %s", what) }
	if n := len(r.Flock) + len(r.Posix); n == 0 || n > MaxPerFile {
		return bad("their number")
	}
	for _, list := range [][]Lock{r.Flock, r.Posix} {
		last := map[Owner]*Lock{}
		shared, exclusive := int64(-1), int64(-1) // the last bytes that any lock so far reaches
		for i := range list {
			l := &list[i]
			if l.Owner.Session == 0 || l.First < 0 || l.Last < l.First || l.Mode > Exclusive {
				return bad("an impossible lock")
			}
			if i > 0 && order(list[i-1], *l) >= 0 {
				return bad("their order")
			}
			if before := last[l.Owner]; before != nil && (before.Last >= l.First || before.Last+1 == l.First && before.Mode == l.Mode) {
				return bad("two of one owner that overlap, or should be one")
			}
			last[l.Owner] = l
			// Whatever reaches into a lock that starts later belongs to another owner: that was checked above.
			if exclusive >= l.First || l.Mode == Exclusive && shared >= l.First {
				return bad("two that exclude one another")
			}
			if l.Mode == Exclusive {
				exclusive = max(exclusive, l.Last)
			} else {
				shared = max(shared, l.Last)
			}
		}
	}
	for i := range r.Flock {
		if r.Flock[i].First != 0 || r.Flock[i].Last != End {
			return bad("a flock lock on a range")
		}
	}
	return nil
}

// Env is what an operation knows besides the state and its arguments.
type Env struct {
	Index dfs.Index // of the command
}

// Txn is the state as this package needs it. The bool of a getter says whether there is such a value; an error means that the state could not
// be read. Setters cannot fail; what they take is theirs to keep.
type Txn interface {
	Locks(inode dfs.InodeID) (Record, bool, error)
	SetLocks(inode dfs.InodeID, r Record)
	DeleteLocks(inode dfs.InodeID)
	// Mark notes that a session has locks on a file; Unmark takes that back.
	Mark(id dfs.SessionID, inode dfs.InodeID)
	Unmark(id dfs.SessionID, inode dfs.InodeID)
	// Marks calls fn with the files that a session has locks on, ascending, until it returns false. Changes of the running command need not be seen.
	Marks(id dfs.SessionID, fn func(inode dfs.InodeID) bool) error
	// LockedFiles is the session's count of marks; a session that is not there has none, and its count is not kept.
	LockedFiles(id dfs.SessionID) (int64, error)
	SetLockedFiles(id dfs.SessionID, n int64)
}

// Set grants a lock, in place of what its owner has within the range, or changes nothing. It returns how many locks of the kind
// the owner has then. want.Since is ignored: what is granted, and what it is merged with, is since this command.
//
// Errors: ErrWouldBlock when another owner has a lock that conflicts; ErrNoLocks beyond a limit; ErrInvalid for an impossible range.
func Set(tx Txn, env Env, inode dfs.InodeID, k Kind, want Lock) (int, error) {
	if err := checkRange(k, want.First, want.Last); err != nil {
		return 0, err
	}
	if want.Mode > Exclusive || want.Owner.Session == 0 {
		return 0, dfserr.Errorf(dfserr.ErrInvalid, "lock of inode %d: mode %d, session %d", inode, want.Mode, want.Owner.Session)
	}
	r, _, err := tx.Locks(inode)
	if err != nil {
		return 0, err
	}
	if c := r.Conflict(k, &want); c != nil {
		return 0, dfserr.Errorf(dfserr.ErrWouldBlock, "bytes %d to %d of inode %d", want.First, want.Last, inode)
	}
	want.Since = env.Index
	return change(tx, inode, k, r, want.Owner, func(list []Lock) []Lock { return place(list, want) })
}

// Unlock takes away what an owner has within a range; nothing is success. It returns how many locks of the kind the owner has then.
//
// Errors: ErrNoLocks when a lock would be cut in two beyond the limit; ErrInvalid.
func Unlock(tx Txn, inode dfs.InodeID, k Kind, o Owner, first, last int64) (int, error) {
	if err := checkRange(k, first, last); err != nil {
		return 0, err
	}
	r, ok, err := tx.Locks(inode)
	if err != nil || !ok {
		return 0, err
	}
	return change(tx, inode, k, r, o, func(list []Lock) []Lock { return carve(list, o, first, last) })
}

func checkRange(k Kind, first, last int64) error {
	if k > Posix || first < 0 || last < first || k == Flock && (first != 0 || last != End) {
		return dfserr.Errorf(dfserr.ErrInvalid, "lock of kind %d on bytes %d to %d", k, first, last)
	}
	return nil
}

// change replaces the locks of one kind by what fn makes of a copy, and keeps the marks and counts of the one owner concerned.
func change(tx Txn, inode dfs.InodeID, k Kind, r Record, o Owner, fn func([]Lock) []Lock) (int, error) {
	had := r.Has(o.Session)
	list := fn(slices.Clone(r.Of(k)))
	if k == Flock {
		r.Flock = list
	} else {
		r.Posix = list
	}
	n := len(r.Flock) + len(r.Posix)
	if n > MaxPerFile {
		return 0, dfserr.Errorf(dfserr.ErrNoLocks, "inode %d has %d locks, the limit is %d", inode, n, MaxPerFile)
	}
	if has := r.Has(o.Session); has != had {
		if err := remark(tx, o.Session, inode, has); err != nil {
			return 0, err
		}
	}
	store(tx, inode, r)
	return r.Held(k, o), nil
}

// store keeps a record, or deletes it when it is empty.
func store(tx Txn, inode dfs.InodeID, r Record) {
	if len(r.Flock)+len(r.Posix) == 0 {
		tx.DeleteLocks(inode)
		return
	}
	tx.SetLocks(inode, r)
}

// remark sets or takes away a session's mark on a file, and counts.
func remark(tx Txn, id dfs.SessionID, inode dfs.InodeID, has bool) error {
	n, err := tx.LockedFiles(id)
	if err != nil {
		return err
	}
	if !has {
		tx.Unmark(id, inode)
		tx.SetLockedFiles(id, n-1)
		return nil
	}
	if n >= MaxFilesPerSession {
		return dfserr.Errorf(dfserr.ErrNoLocks, "session %d has locks on %d files, the limit is %d", id, n, MaxFilesPerSession)
	}
	tx.Mark(id, inode)
	tx.SetLockedFiles(id, n+1)
	return nil
}

// carve takes a range away from an owner's locks.
func carve(list []Lock, o Owner, first, last int64) []Lock {
	out := make([]Lock, 0, len(list)+1)
	for _, l := range list {
		if l.Owner != o || l.Last < first || l.First > last {
			out = append(out, l)
			continue
		}
		if l.First < first {
			head := l
			head.Last = first - 1
			out = append(out, head)
		}
		if l.Last > last {
			tail := l
			tail.First = last + 1
			out = append(out, tail)
		}
	}
	slices.SortFunc(out, order)
	return out
}

// place puts a lock in the stead of what its owner has within the range, and makes one of it and those of the same mode that touch it.
func place(list []Lock, want Lock) []Lock {
	list = carve(list, want.Owner, want.First, want.Last)
	list = slices.DeleteFunc(list, func(l Lock) bool {
		if l.Owner != want.Owner || l.Mode != want.Mode {
			return false
		}
		switch {
		case l.Last < want.First && l.Last+1 == want.First:
			want.First = l.First
		case l.First > want.Last && l.First-1 == want.Last:
			want.Last = l.Last
		default:
			return false
		}
		return true
	})
	i, _ := slices.BinarySearchFunc(list, want, order)
	return slices.Insert(list, i, want)
}

// Release takes away all locks of one kind that an owner has on a file; none is success.
func Release(tx Txn, inode dfs.InodeID, k Kind, o Owner) error {
	_, err := Unlock(tx, inode, k, o, 0, End)
	return err
}

// EndSession takes away locks of a session, until nothing is left or enough says, after at least one file, that the command has done enough. It reports whether some are
// left; calling it again goes on. The session's own record is the caller's.
func EndSession(tx Txn, id dfs.SessionID, enough func() bool) (more bool, err error) {
	n, err := tx.LockedFiles(id)
	if err != nil || n == 0 {
		return false, err
	}
	var inner error
	begun := false
	err = tx.Marks(id, func(inode dfs.InodeID) bool {
		if more = begun && enough(); more {
			return false
		}
		begun = true
		r, _, err := tx.Locks(inode)
		if err != nil {
			inner = err
			return false
		}
		others := func(list []Lock) []Lock {
			return slices.DeleteFunc(slices.Clone(list), func(l Lock) bool { return l.Owner.Session == id })
		}
		store(tx, inode, Record{Flock: others(r.Flock), Posix: others(r.Posix)})
		tx.Unmark(id, inode)
		n--
		return true
	})
	if err == nil {
		err = inner
	}
	if err != nil {
		return false, err
	}
	tx.SetLockedFiles(id, n)
	return more, nil
}

// Drop takes away all locks of a file that is being deleted for good.
func Drop(tx Txn, inode dfs.InodeID) error {
	r, ok, err := tx.Locks(inode)
	if err != nil || !ok {
		return err
	}
	dropped := map[dfs.SessionID]bool{}
	for _, list := range [][]Lock{r.Flock, r.Posix} {
		for i := range list {
			id := list[i].Owner.Session
			if dropped[id] {
				continue
			}
			dropped[id] = true
			if err := remark(tx, id, inode, false); err != nil {
				return err
			}
		}
	}
	tx.DeleteLocks(inode)
	return nil
}
