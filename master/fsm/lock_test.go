package fsm

import (
	"errors"
	"fmt"
	"testing"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/locks"
	dfsv1 "dfs/proto/dfs/v1"
)

// lockCommand asks for an exclusive lock on bytes of a file.
func lockCommand(session, seq, inode uint64, first, last int64) *dfsv1.Command {
	return &dfsv1.Command{
		Header: &dfsv1.MutationHeader{Session: session, Seq: seq},
		Op: &dfsv1.Command_Lock{Lock: &dfsv1.LockCommand{Request: &dfsv1.LockRequest{
			Inode: inode, Lock: &dfsv1.LockSpec{Posix: true, Owner: 7, First: first, Last: last, Exclusive: true},
		}}},
	}
}

func (m *machine) session(nonce uint64) uint64 {
	return m.must(&dfsv1.Command{Op: &dfsv1.Command_OpenSession{OpenSession: &dfsv1.OpenSessionCommand{Nonce: nonce}}}).GetSession()
}

func (m *machine) file(name string) uint64 {
	return m.must(&dfsv1.Command{Header: root(), Op: &dfsv1.Command_Create{Create: &dfsv1.CreateRequest{
		Header: root(), Name: []byte(name), Mode: 0o100644,
	}}}).GetAttr().GetInode()
}

// TestLockIsExactlyOnce repeats requests: a grant and a refusal are each decided once, whatever has happened in between.
func TestLockIsExactlyOnce(t *testing.T) {
	m := newMachine(t)
	a, b, inode := m.session(1), m.session(2), m.file("f")
	granted := m.must(lockCommand(a, 1, inode, 0, 9))
	if granted.GetLocksHeld() != 1 || granted.GetIndex() != m.index {
		t.Fatalf("%+v at index %d", granted, m.index)
	}
	refuse := lockCommand(b, 1, inode, 5, 5)
	if r := m.apply(refuse); r.GetErrorReason() != dfserr.Reason(dfserr.ErrWouldBlock) {
		t.Fatalf("%+v", r)
	}
	unlock := lockCommand(a, 2, inode, 0, 9)
	unlock.GetLock().Request.Unlock = true
	if r := m.must(unlock); r.GetLocksHeld() != 0 {
		t.Fatalf("%+v", r)
	}
	if r := m.apply(lockCommand(b, 1, inode, 5, 5)); r.GetErrorReason() != dfserr.Reason(dfserr.ErrWouldBlock) {
		t.Errorf("a refusal that arrives again: %+v", r)
	}
	if r := m.must(lockCommand(a, 1, inode, 0, 9)); r.GetIndex() != granted.GetIndex() {
		t.Errorf("a grant that arrives again: %+v", r)
	}
	m.inView(func(v *View) {
		if r, ok, err := v.Locks(dfs.InodeID(inode)); ok || err != nil {
			t.Errorf("held: %+v, %v", r, err)
		}
	})
	promised := lockCommand(b, 2, inode, 5, 5)
	promised.GetLock().Promised = true
	if r := m.apply(promised); r.GetErrorReason() != dfserr.Reason(dfserr.ErrWouldBlock) {
		t.Errorf("what is promised to another: %+v", r)
	}
	if r := m.apply(lockCommand(b, 3, inode+100, 5, 5)); r.GetErrorReason() != dfserr.Reason(dfserr.ErrStaleInode) {
		t.Errorf("a file that is not there: %+v", r)
	}
}

// TestEndOfASessionWithManyLocks ends a session that has more locks than one command may take away. From the first piece on its own
// commands are refused.
func TestEndOfASessionWithManyLocks(t *testing.T) {
	m := newMachine(t)
	a, b := m.session(1), m.session(2)
	const files = 3000
	seq := uint64(0)
	var last uint64
	for i := range files {
		last = m.file(fmt.Sprint(i))
		seq++
		m.must(lockCommand(a, seq, last, 0, 9))
		m.must(lockCommand(b, seq, last, 20, 29))
	}
	end := &dfsv1.Command{Op: &dfsv1.Command_EndSession{EndSession: &dfsv1.EndSessionCommand{Session: a}}}
	pieces := 1
	for m.must(end).GetMore() {
		pieces++
		if r := m.apply(lockCommand(a, seq+1, last, 0, 9)); r.GetErrorReason() != dfserr.Reason(dfserr.ErrUnknownSession) {
			t.Fatalf("a session that is ending: %+v", r)
		}
		m.inView(func(v *View) { checkState(t, v) })
		if pieces == 2 {
			m.restart()
		}
	}
	if pieces < 2 {
		t.Errorf("it was done in %d command", pieces)
	}
	m.inView(func(v *View) {
		checkState(t, v)
		held := 0
		err := v.Marks(dfs.SessionID(b), func(inode dfs.InodeID) bool {
			r, _, err := v.Locks(inode)
			if err != nil || len(r.Posix) != 1 || r.Posix[0].Owner.Session != dfs.SessionID(b) {
				t.Fatalf("inode %d: %+v, %v", inode, r, err)
			}
			held++
			return true
		})
		if s, serr := v.Session(dfs.SessionID(a)); err != nil || serr != nil || s != nil || held != files {
			t.Errorf("session a is %v, session b has locks on %d files (%v, %v)", s, held, err, serr)
		}
	})
}

// TestLocksGoWithTheFile reclaims a removed file that sessions still have locks on.
func TestLocksGoWithTheFile(t *testing.T) {
	m := newMachine(t)
	a, inode := m.session(1), m.file("f")
	m.must(lockCommand(a, 1, inode, 0, 9))
	m.must(&dfsv1.Command{Header: root(), Op: &dfsv1.Command_Remove{Remove: &dfsv1.RemoveRequest{Header: root(), Name: []byte("f")}}})
	m.must(lockCommand(a, 2, inode, 20, 29)) // it is still open somewhere
	m.must(&dfsv1.Command{Op: &dfsv1.Command_Reclaim{Reclaim: &dfsv1.ReclaimCommand{Inodes: []uint64{inode}}}})
	m.inView(func(v *View) {
		checkState(t, v)
		if _, ok, err := v.Locks(dfs.InodeID(inode)); ok || err != nil {
			t.Errorf("locks of a file that is gone: %v, %v", ok, err)
		}
		if n, err := v.LockedFiles(dfs.SessionID(a)); n != 0 || err != nil {
			t.Errorf("the session counts %d files, %v", n, err)
		}
	})
}

// FuzzLocks decodes arbitrary values under a file's locks: it is refused as corrupt, or is a record that holds what package locks promises and survives being
// encoded again.
func FuzzLocks(f *testing.F) {
	good, err := encode(&locks.Record{
		Flock: []locks.Lock{{Owner: locks.Owner{Session: 88, ID: 1 << 63}, Last: locks.End, PID: 6, Since: 90}},
		Posix: []locks.Lock{{Owner: locks.Owner{Session: 88, ID: 7}, First: 1, Last: 2, Mode: locks.Exclusive}, {Owner: locks.Owner{Session: 89}, First: 3, Last: 3}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{})
	key := appendLocksKey(nil, 5)
	f.Fuzz(func(t *testing.T, value []byte) {
		v, err := decode(key, value)
		if err != nil {
			if !errors.Is(err, dfserr.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		r := v.(*locks.Record)
		if err := r.Check(); err != nil {
			t.Fatal(err)
		}
		b, err := encode(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decode(key, b)
		if err != nil || fmt.Sprint(again) != fmt.Sprint(v) {
			t.Fatalf("%+v came back as %+v, %v", v, again, err)
		}
	})
}
