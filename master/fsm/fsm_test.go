package fsm

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/chunks"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

// wantResult checks that a result carries an error.
func wantResult(t *testing.T, r *dfsv1.Result, want error) {
	t.Helper()
	if r.GetErrorReason() != dfserr.Reason(want) {
		t.Errorf("got %q (%s), want %q", r.GetErrorReason(), r.GetErrorText(), dfserr.Reason(want))
	}
}

func (m *machine) openSession(nonce uint64) uint64 {
	m.t.Helper()
	return m.must(&dfsv1.Command{Op: &dfsv1.Command_OpenSession{OpenSession: &dfsv1.OpenSessionCommand{Client: "test", Nonce: nonce, TtlNs: 30e9}}}).GetSession()
}

// inSession makes a command the request seq of a session.
func inSession(cmd *dfsv1.Command, session, seq uint64) *dfsv1.Command {
	if cmd.Header == nil {
		cmd.Header = asRoot()
	}
	cmd.Header.Session, cmd.Header.Seq = session, seq
	return cmd
}

func TestFormat(t *testing.T) {
	m := newEmptyMachine(t)
	wantResult(t, m.apply(createCmd("/", "f", 0o644)), dfserr.ErrStaleInode)
	format := func(id uint64) *dfsv1.Command {
		return &dfsv1.Command{Op: &dfsv1.Command_Format{Format: &dfsv1.FormatCommand{ClusterId: id, Uid: 5, Gid: 6}}}
	}
	wantResult(t, m.apply(format(0)), dfserr.ErrInvalid)
	m.must(format(77))
	wantResult(t, m.apply(format(78)), dfserr.ErrExist)
	m.inView(func(v *View) {
		if id, err := v.Cluster(); err != nil || id != 77 {
			t.Error(id, err)
		}
	})
	if a := m.attr("/"); a.GetUid() != 5 || a.GetGid() != 6 || a.GetMode() != 0o40755 || a.GetInode() != 1 {
		t.Error(a)
	}
}

func TestSessions(t *testing.T) {
	m := newMachine(t)
	a := m.openSession(42)
	if again := m.openSession(42); again != a {
		t.Errorf("one nonce gave sessions %d and %d", a, again)
	}
	if b, c := m.openSession(0), m.openSession(0); b == c {
		t.Error("no nonce gave one session twice")
	}
	m.must(inSession(createCmd("/", "f", 0o644), a, 1))
	end := func() {
		m.must(&dfsv1.Command{Op: &dfsv1.Command_EndSession{EndSession: &dfsv1.EndSessionCommand{Session: a}}})
	}
	end()
	end()
	wantResult(t, m.apply(inSession(createCmd("/", "f", 0o644), a, 1)), dfserr.ErrUnknownSession)
	m.inView(func(v *View) {
		n := 0
		if err := v.Sessions(func(id dfs.SessionID, s *dfsv1.SessionRecord) bool {
			n++
			if id == dfs.SessionID(a) || s.GetTtlNs() != 30e9 {
				t.Error(id, s)
			}
			return true
		}); err != nil || n != 2 {
			t.Error(n, err)
		}
		for _, prefix := range [][]byte{{kindReply, '/'}, {kindNonce, '/'}} {
			if err := v.kv.Iterate(prefix, nil, func(k, _ []byte) bool {
				t.Errorf("left behind: %q", k)
				return true
			}); err != nil {
				t.Error(err)
			}
		}
	})
	if d := m.openSession(42); d == a {
		t.Error("the nonce of an ended session gave that session")
	}
}

func TestRepeatedRequests(t *testing.T) {
	m := newMachine(t)
	s := m.openSession(1)
	first := m.must(inSession(createCmd("/", "f", 0o644), s, 1))
	failed := m.apply(inSession(createCmd("/", "f", 0o644), s, 2))
	wantResult(t, failed, dfserr.ErrExist)
	m.must(removeCmd("/", "f", dfsv1.RemoveRequest_FILE))

	same := func() {
		t.Helper()
		hash := m.db.Hash()
		if diff := cmp.Diff(first, m.apply(inSession(createCmd("/", "f", 0o644), s, 1)), protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(failed, m.apply(inSession(createCmd("/", "f", 0o644), s, 2)), protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
		if m.db.Hash() != hash {
			t.Error("a repeated request changed the state")
		}
	}
	same()
	m.restart()
	same()

	// The slot is shared by requests ReplyWindow apart: the later one wins, the earlier one is gone for good.
	m.must(inSession(createCmd("/", "g", 0o644), s, 1+dfs.ReplyWindow))
	wantResult(t, m.apply(inSession(createCmd("/", "f", 0o644), s, 1)), dfserr.ErrDuplicate)
	wantResult(t, m.apply(inSession(createCmd("/", "g", 0o644), s, 0)), dfserr.ErrInvalid)
	wantResult(t, m.apply(inSession(createCmd("/", "g", 0o644), s+1, 1)), dfserr.ErrUnknownSession)
	// Another session has its own ring.
	wantResult(t, m.apply(inSession(createCmd("/", "g", 0o644), m.openSession(2), 1)), dfserr.ErrExist)
}

// TestRetryableErrorsAreNotRemembered: a request that was refused for now must succeed under the same seq later.
func TestRetryableErrorsAreNotRemembered(t *testing.T) {
	m := newMachine(t)
	s := m.openSession(1)
	f := m.mkfile("/", "f")
	wantResult(t, m.apply(inSession(addChunkCmd(f, 0, 0), s, 1)), dfserr.ErrTooFewReplicas)
	m.must(inSession(addChunkCmd(f, 0, 0, 11, 12), s, 1))

	m.must(truncateCmd(f, dfs.MiB, dfs.MiB))
	m.must(truncateCmd(f, 1000, 0))
	busy := func() *dfsv1.Command { return inSession(truncateCmd(f, 500, 0), s, 2) }
	wantResult(t, m.apply(busy()), dfserr.ErrBusy)
	var config *dfsv1.ChunkConfig
	m.inView(func(v *View) { config, _ = v.LastConfig(dfs.InodeID(f)) })
	m.must(&dfsv1.Command{Op: &dfsv1.Command_CutDone{CutDone: &dfsv1.CutDoneCommand{Chunk: config.GetChunk(), CutVersion: config.GetCutVersion()}}})
	if r := m.must(busy()); r.GetAttr().GetLength() != 500 {
		t.Error(r)
	}
}

// TestFailureLeavesTheStateAlone runs commands that fail, each outside a session, so that not even a reply is kept.
func TestFailureLeavesTheStateAlone(t *testing.T) {
	m := newMachine(t)
	m.mkdir("/", "d")
	f, g := m.mkfile("/d", "f"), m.mkfile("/d", "g")
	c := m.addChunk(f, 0, 0)
	m.must(truncateCmd(f, 5000, 9000))
	s := m.openSession(9)
	mode, huge := uint32(0o777), uint32(99)
	cmds := map[string]*dfsv1.Command{
		"create":           createCmd("/d", "f", 0o644),
		"make parents":     {Header: as(9), Op: &dfsv1.Command_Create{Create: &dfsv1.CreateRequest{Parent: &dfsv1.Ref{Path: []byte("/d/new/dirs")}, Name: []byte("x"), Mode: 0o60644, MakeParents: true}}},
		"make parents 2":   {Header: asRoot(), Op: &dfsv1.Command_Create{Create: &dfsv1.CreateRequest{Parent: &dfsv1.Ref{Path: []byte("/d/new/dirs")}, Name: []byte("x"), MakeParents: true, WantChunk: true}}},
		"remove":           removeCmd("/", "d", dfsv1.RemoveRequest_ANY),
		"remove what":      removeCmd("/", "d", 9),
		"rename":           {Header: asRoot(), Op: &dfsv1.Command_Rename{Rename: &dfsv1.RenameRequest{OldName: []byte("d"), NewParent: &dfsv1.Ref{Path: []byte("/d")}, NewName: []byte("x")}}},
		"link":             {Header: asRoot(), Op: &dfsv1.Command_Link{Link: &dfsv1.LinkRequest{Target: &dfsv1.Ref{Inode: f}, Parent: &dfsv1.Ref{Path: []byte("/d")}, Name: []byte("g")}}},
		"set attr":         {Header: as(9), Op: &dfsv1.Command_SetAttr{SetAttr: &dfsv1.SetAttrRequest{Ref: &dfsv1.Ref{Inode: f}, Mode: &mode}}},
		"set replication":  {Header: asRoot(), Op: &dfsv1.Command_SetAttr{SetAttr: &dfsv1.SetAttrRequest{Ref: &dfsv1.Ref{Inode: f}, Mode: &mode, Replication: &huge}}},
		"truncate":         truncateCmd(f, 10, 0),
		"truncate length":  truncateCmd(g, -1, 0),
		"set xattr":        {Header: asRoot(), Op: &dfsv1.Command_SetXattr{SetXattr: &dfsv1.SetXattrRequest{Ref: &dfsv1.Ref{Inode: f}, Name: []byte("user.x"), Replace: true}}},
		"remove xattr":     {Header: asRoot(), Op: &dfsv1.Command_RemoveXattr{RemoveXattr: &dfsv1.RemoveXattrRequest{Ref: &dfsv1.Ref{Inode: f}, Name: []byte("user.x")}}},
		"write inline":     {Header: asRoot(), Op: &dfsv1.Command_WriteInline{WriteInline: &dfsv1.WriteInlineRequest{Inode: f, Data: []byte("x")}}},
		"write inline big": {Header: asRoot(), Op: &dfsv1.Command_WriteInline{WriteInline: &dfsv1.WriteInlineRequest{Inode: g, Offset: dfs.InlineMax, Data: []byte("x")}}},
		"add chunk":        addChunkCmd(g, 5, 0),
		"add chunk to dir": addChunkCmd(2, 0, 0, 1, 2),
		"commit length":    {Header: asRoot(), Op: &dfsv1.Command_CommitLength{CommitLength: &dfsv1.CommitLengthRequest{Inode: f, Length: 6000, Chunk: c.GetChunk(), Version: c.GetVersion(), Modified: true}}},
		"commit, rename":   {Header: asRoot(), Op: &dfsv1.Command_CommitLength{CommitLength: &dfsv1.CommitLengthRequest{Inode: f, Modified: true, Rename: &dfsv1.RenameRequest{OldParent: &dfsv1.Ref{Path: []byte("/d")}, OldName: []byte("f"), NewParent: &dfsv1.Ref{Path: []byte("/d")}, NewName: []byte("g"), NoReplace: true}}}},
		"open tail":        {Op: &dfsv1.Command_OpenTail{OpenTail: &dfsv1.OpenTailCommand{Inode: 99}}},
		"settle tail":      {Op: &dfsv1.Command_SettleTail{SettleTail: &dfsv1.SettleTailCommand{Inode: 2}}},
		"reconfigure":      {Op: &dfsv1.Command_Reconfigure{Reconfigure: &dfsv1.ReconfigureCommand{Chunk: c.GetChunk(), ExpectVersion: c.GetVersion(), Replicas: []uint64{4}}}},
		"cut done":         {Op: &dfsv1.Command_CutDone{CutDone: &dfsv1.CutDoneCommand{Chunk: 99}}},
		"reclaim":          {Op: &dfsv1.Command_Reclaim{Reclaim: &dfsv1.ReclaimCommand{Inodes: make([]uint64, maxItems+1)}}},
		"garbage done":     {Op: &dfsv1.Command_GarbageDone{GarbageDone: &dfsv1.GarbageDoneCommand{Items: make([]*dfsv1.GarbageDoneCommand_Item, maxItems+1)}}},
		"server":           {Op: &dfsv1.Command_Server{Server: &dfsv1.ServerCommand{}}},
		"format":           {Op: &dfsv1.Command_Format{Format: &dfsv1.FormatCommand{ClusterId: 5}}},
		"open session":     {Op: &dfsv1.Command_OpenSession{OpenSession: &dfsv1.OpenSessionCommand{Client: string(make([]byte, 2000))}}},
	}
	for i := range cmds["garbage done"].GetGarbageDone().Items {
		cmds["garbage done"].GetGarbageDone().Items[i] = &dfsv1.GarbageDoneCommand_Item{}
	}
	seen := map[string]bool{}
	for name, cmd := range cmds {
		hash := m.db.Hash()
		r := m.apply(cmd)
		if r.GetErrorReason() == "" {
			t.Errorf("%s: succeeded", name)
		}
		if m.db.Hash() != hash {
			t.Errorf("%s: failed with %s and changed the state", name, r.GetErrorReason())
		}
		seen[fmt.Sprintf("%T", cmd.GetOp())] = true
		if cmd.Header == nil {
			continue
		}
		// In a session the reply slot changes, if the error is final, and nothing else.
		keys := m.db.Keys()
		m.apply(inSession(cmd, s, uint64(len(seen))))
		if k := m.db.Keys(); k > keys+1 {
			t.Errorf("%s: %d keys more", name, k-keys)
		}
	}
	// Every command that can fail is here; ending a session and a reclaim within bounds cannot.
	if len(seen) != 20 {
		t.Errorf("%d kinds of command, want 20: %v", len(seen), seen)
	}
	m.restart()
	if err := m.db.VerifyHash(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestCommitLengthAndRename: both are one command, and its repetition gets its first answer.
func TestCommitLengthAndRename(t *testing.T) {
	m := newMachine(t)
	m.mkdir("/", "d")
	f := m.mkfile("/d", "f")
	c := m.addChunk(f, 0, 0)
	s := m.openSession(1)
	cmd := func() *dfsv1.Command {
		return inSession(&dfsv1.Command{Op: &dfsv1.Command_CommitLength{CommitLength: &dfsv1.CommitLengthRequest{
			Inode: f, Length: 7000, Chunk: c.GetChunk(), Version: c.GetVersion(), Modified: true, Closing: true,
			Rename: &dfsv1.RenameRequest{OldParent: &dfsv1.Ref{Path: []byte("/d")}, OldName: []byte("f"), NewName: []byte("final")},
		}}}, s, 1)
	}
	first := m.must(cmd())
	if a := first.GetAttr(); a.GetInode() != f || a.GetLength() != 7000 || a.GetTailOpen() {
		t.Errorf("attributes %v", a)
	}
	if again := m.must(cmd()); !proto.Equal(first, again) {
		t.Errorf("the repetition was answered with %v, the first was %v", again, first)
	}
	v, err := m.fsm.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for path, want := range map[string]error{"/final": nil, "/d/f": dfserr.ErrNotExist} {
		if _, err := v.LookupPath(&dfsv1.Caller{}, &dfsv1.Ref{Path: []byte(path)}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}

func TestUnknownEntriesStopTheReplica(t *testing.T) {
	future := protowire.AppendTag(nil, 39, protowire.BytesType)
	future = protowire.AppendBytes(future, nil)
	for name, data := range map[string][]byte{"empty": nil, "garbage": {0xff, 0xff}, "a later command": future} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			good := m.entry(createCmd("/", "before", 0o644))
			m.index++
			bad := &raft.Log{Index: m.index, Data: data}
			out := m.fsm.ApplyBatch([]*raft.Log{good, bad, m.entry(createCmd("/", "after", 0o644))})
			if _, ok := out[0].(*dfsv1.Result); !ok {
				t.Errorf("%T", out[0])
			}
			for _, o := range out[1:] {
				if err, ok := o.(error); !ok || !errors.Is(err, dfserr.ErrFormat) {
					t.Errorf("%T %v", o, o)
				}
			}
			if len(m.fails) != 1 || m.fsm.Err() == nil {
				t.Error(m.fails, m.fsm.Err())
			}
			if err, ok := m.fsm.Apply(m.entry(createCmd("/", "later", 0o644))).(error); !ok || err == nil {
				t.Error("still applying")
			}
			if m.attr("/before"); m.db.Applied() != dfs.Index(good.Index) {
				t.Errorf("applied is %d, want %d, that of the last good entry", m.db.Applied(), good.Index)
			}
		})
	}
}

func TestEntriesThatAreNotCommandsAndReplays(t *testing.T) {
	m := newMachine(t)
	entry := m.entry(createCmd("/", "f", 0o644))
	if _, ok := m.fsm.Apply(entry).(*dfsv1.Result); !ok {
		t.Fatal("not applied")
	}
	hash := m.db.Hash()
	out := m.fsm.ApplyBatch([]*raft.Log{entry, {Index: 99, Type: raft.LogConfiguration, Data: []byte("x")}})
	if out[0] != nil || out[1] != nil || m.db.Hash() != hash || m.fsm.Err() != nil {
		t.Error(out, m.fsm.Err())
	}
}

// TestSnapshotRestore moves a state to another replica, which then applies the same entries to the same hash.
func TestSnapshotRestore(t *testing.T) {
	a, b := newMachine(t), newEmptyMachine(t)
	a.mkdir("/", "d")
	f := a.mkfile("/d", "f")
	a.addChunk(f, 0, 0)
	b.index, b.now = a.index, a.now
	snap, err := a.fsm.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	a.mkfile("/d", "later")
	sink := newSink()
	if err := snap.Persist(sink); err != nil {
		t.Fatal(err)
	}
	snap.Release()
	// A view from before keeps seeing what it saw.
	old := b.view()
	done := make(chan error)
	go func() { done <- b.fsm.Restore(sink) }()
	if _, err := old.LookupPath(&dfsv1.Caller{}, &dfsv1.Ref{Path: []byte("d")}); !errors.Is(err, dfserr.ErrStaleInode) {
		t.Error(err)
	}
	old.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := b.attr("/d/f").GetInode(); got != f {
		t.Error(got)
	}
	b.mkfile("/d", "later")
	if a.db.Hash() != b.db.Hash() {
		t.Error("hashes differ")
	}
}

// TestDeterminism replays one log, in other batches, into an empty state machine.
func TestDeterminism(t *testing.T) {
	a := newEmptyMachine(t)
	log := randomLog(a, 5, 3000)
	results := map[uint64]string{}
	for _, l := range log {
		results[l.Index] = fmt.Sprint(a.fsm.Apply(l))
	}
	b := newEmptyMachine(t)
	for len(log) > 0 {
		n := min(len(log), 1+len(log)%97)
		for i, r := range b.fsm.ApplyBatch(log[:n]) {
			if got := fmt.Sprint(r); got != results[log[i].Index] {
				t.Fatalf("entry %d: %s, was %s", log[i].Index, got, results[log[i].Index])
			}
		}
		log = log[n:]
	}
	if a.fsm.Err() != nil || b.fsm.Err() != nil {
		t.Fatal(a.fsm.Err(), b.fsm.Err())
	}
	if a.db.Hash() != b.db.Hash() || a.db.Keys() != b.db.Keys() {
		t.Errorf("%s and %s", a.db.Hash(), b.db.Hash())
	}
	if err := b.db.VerifyHash(t.Context()); err != nil {
		t.Error(err)
	}
	b.inView(func(v *View) { checkState(t, v) })
}

func TestReclaim(t *testing.T) {
	m := newMachine(t)
	m.mkdir("/", "d")
	m.mkdir("/d", "e")
	for i := range 30 {
		f := m.mkfile("/d/e", fmt.Sprint("f", i))
		if i%10 == 0 {
			for c := range int64(5) {
				m.addChunk(f, c, 0)
			}
		}
	}
	m.must(&dfsv1.Command{Header: asRoot(), Op: &dfsv1.Command_Link{Link: &dfsv1.LinkRequest{Target: &dfsv1.Ref{Path: []byte("/d/e/f0")}, Name: []byte("kept")}}})
	m.must(removeCmd("/", "d", dfsv1.RemoveRequest_TREE))
	rounds := 0
	for {
		var orphans []uint64
		m.inView(func(v *View) {
			checkState(t, v)
			if err := v.Orphans(0, func(id dfs.InodeID, _ namespace.Orphan) bool {
				orphans = append(orphans, uint64(id))
				return len(orphans) < 4
			}); err != nil {
				t.Fatal(err)
			}
		})
		if len(orphans) == 0 {
			break
		}
		rounds++
		m.must(&dfsv1.Command{Op: &dfsv1.Command_Reclaim{Reclaim: &dfsv1.ReclaimCommand{Inodes: append(orphans, 1, 999), Limit: 7}}})
	}
	if rounds < 10 {
		t.Errorf("%d rounds for a limit of 7", rounds)
	}
	var garbage []*dfsv1.GarbageDoneCommand_Item
	m.inView(func(v *View) {
		if err := v.GarbageList(GarbageID{}, func(id GarbageID, g chunks.Garbage) bool {
			garbage = append(garbage, &dfsv1.GarbageDoneCommand_Item{Index: uint64(id.Index), Chunk: uint64(id.Chunk)})
			if len(g.Replicas) != 3 || g.Version == 0 {
				t.Error(g)
			}
			return true
		}); err != nil {
			t.Error(err)
		}
		// The cursor skips what has been seen.
		n := 0
		first := garbage[0]
		if err := v.GarbageList(GarbageID{dfs.Index(first.Index), dfs.ChunkID(first.Chunk)}, func(GarbageID, chunks.Garbage) bool { n++; return true }); err != nil || n != len(garbage)-1 {
			t.Error(n, err)
		}
	})
	if len(garbage) != 10 {
		t.Errorf("%d garbage chunks, want those of two files", len(garbage))
	}
	m.must(&dfsv1.Command{Op: &dfsv1.Command_GarbageDone{GarbageDone: &dfsv1.GarbageDoneCommand{Items: garbage}}})
	m.inView(func(v *View) {
		s, err := v.Stats()
		if want := (Stats{Inodes: 2, Directories: 1, Chunks: 5}); err != nil || s != want {
			t.Errorf("%+v, want %+v (%v)", s, want, err)
		}
	})
	if a := m.attr("/kept"); a.GetNlink() != 1 || a.GetChunks() != 5 {
		t.Error(a)
	}
}

// TestBigTruncateGoesOn drives a truncation that takes several commands, as the handler does: the same request until more is false.
func TestBigTruncateGoesOn(t *testing.T) {
	m := newMachine(t)
	s := m.openSession(1)
	f := m.mkfile("/", "f")
	var batch []*raft.Log
	for i := range int64(chunks.MaxPerCommand + 10) {
		batch = append(batch, m.entry(addChunkCmd(f, i, 0, 1, 2, 3)))
	}
	m.fsm.ApplyBatch(batch)
	create := func() *dfsv1.Command {
		c := createCmd("/", "f", 0o644)
		c.GetCreate().Exclusive, c.GetCreate().Truncate, c.GetCreate().Data, c.GetCreate().Open = false, true, []byte("new"), true
		return inSession(c, s, 1)
	}
	if r := m.must(create()); !r.GetMore() || len(r.GetInlineData()) != 0 || r.GetAttr().GetChunks() != 10 {
		t.Error(r)
	}
	if r := m.must(create()); r.GetMore() || string(r.GetInlineData()) != "new" || r.GetAttr().GetLength() != 3 || r.GetAttr().GetChunks() != 0 {
		t.Error(r)
	}
	// Who does not open the file does not get its bytes back.
	unopened := create()
	unopened.GetCreate().Open, unopened.GetHeader().Seq = false, 2
	if r := m.must(unopened); len(r.GetInlineData()) != 0 || r.GetAttr().GetLength() != 3 {
		t.Error(r)
	}
	n := uint32(5)
	m.must(&dfsv1.Command{Header: asRoot(), Op: &dfsv1.Command_SetAttr{SetAttr: &dfsv1.SetAttrRequest{Ref: &dfsv1.Ref{Inode: f}, Replication: &n}}})
	m.inView(func(v *View) { checkState(t, v) })
}

func TestServers(t *testing.T) {
	m := newMachine(t)
	register := func(addr, rack string) *dfsv1.Result {
		return m.must(&dfsv1.Command{Op: &dfsv1.Command_Server{Server: &dfsv1.ServerCommand{Server: 7, Addr: addr, Rack: rack}}})
	}
	if r := register("a:1", "r1"); !r.GetCreated() {
		t.Error(r)
	}
	var first int64
	m.inView(func(v *View) {
		s, err := v.Server(7)
		first = s.GetFirstSeenNs()
		if err != nil || s.GetAddr() != "a:1" {
			t.Error(s, err)
		}
	})
	register("b:2", "r2")
	m.inView(func(v *View) {
		n := 0
		if err := v.Servers(func(id dfs.ServerID, s *dfsv1.ServerRecord) bool {
			n++
			if id != 7 || s.GetAddr() != "b:2" || s.GetRack() != "r2" || s.GetFirstSeenNs() != first {
				t.Error(id, s)
			}
			return true
		}); err != nil || n != 1 {
			t.Error(n, err)
		}
	})
}

// FuzzApply: no entry makes the state machine panic, and none is half applied.
func FuzzApply(f *testing.F) {
	m := newMachine(f)
	dir := m.mkdir("/", "d")
	file := m.mkfile("/d", "f")
	m.addChunk(file, 0, 0)
	for _, cmd := range []*dfsv1.Command{
		createCmd("/d", "x", 0o644), removeCmd("/d", "f", 0), addChunkCmd(file, 1, 5, 1, 2), truncateCmd(file, 10, 50),
		{Op: &dfsv1.Command_Reclaim{Reclaim: &dfsv1.ReclaimCommand{Inodes: []uint64{file, dir}}}},
		{Op: &dfsv1.Command_SettleTail{SettleTail: &dfsv1.SettleTailCommand{Inode: file, Length: 1 << 62, Chunk: 1, Version: 4}}},
		{Header: asRoot(), Op: &dfsv1.Command_Rename{Rename: &dfsv1.RenameRequest{OldName: []byte("d"), NewName: []byte("e")}}},
	} {
		b, err := proto.Marshal(cmd)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > dfs.MaxEntrySize {
			return
		}
		m.t = t
		m.index++
		switch r := m.fsm.Apply(&raft.Log{Index: m.index, Data: data}).(type) {
		case *dfsv1.Result:
			v := m.view()
			defer v.Close()
			if v.Index() != dfs.Index(m.index) {
				t.Fatalf("index %d, want %d", v.Index(), m.index)
			}
			checkState(t, v)
		case error:
			if !errors.Is(r, dfserr.ErrFormat) {
				t.Fatal(r)
			}
			// Stopped, as it must be; go on with the same state.
			m.fsm = New(m.db, Config{})
			m.index = uint64(m.db.Applied())
		}
	})
}
