package fsm

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/hashicorp/raft"

	"dfs/internal/dfs"
	"dfs/master/chunks"
	"dfs/master/locks"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

// sink keeps a snapshot in memory; it is also its own reader.
type sink struct{ bytes.Buffer }

func newSink() *sink        { return &sink{} }
func (*sink) ID() string    { return "test" }
func (*sink) Cancel() error { return nil }
func (*sink) Close() error  { return nil }

var (
	_ raft.SnapshotSink = (*sink)(nil)
	_ io.ReadCloser     = (*sink)(nil)
)

// randomSessions is how many sessions a random log opens, with ids from 2 on; the first is never ended.
const randomSessions = 20

// randomLog draws commands of every kind over few names, inodes and chunks. The first formats, those after it open sessions.
func randomLog(m *machine, seed uint64, n int) []*raft.Log {
	r := rand.New(rand.NewPCG(seed, 9))
	log := []*raft.Log{
		m.entry(&dfsv1.Command{Op: &dfsv1.Command_Format{Format: &dfsv1.FormatCommand{ClusterId: 1}}}),
	}
	for nonce := range uint64(randomSessions) {
		log = append(log, m.entry(&dfsv1.Command{Op: &dfsv1.Command_OpenSession{OpenSession: &dfsv1.OpenSessionCommand{Nonce: 1 + nonce}}}))
	}
	for range n {
		log = append(log, m.entry(randomCommand(r)))
	}
	return log
}

func randomCommand(r *rand.Rand) *dfsv1.Command {
	name := func() []byte { return []byte{byte('a' + r.IntN(4))} }
	dir := func() *dfsv1.Ref {
		ref := &dfsv1.Ref{}
		for range r.IntN(3) {
			ref.Path = append(append(ref.Path, '/'), name()...)
		}
		return ref
	}
	inode := func() uint64 { return 1 + r.Uint64N(60) }
	some := func() *dfsv1.Ref {
		if r.IntN(2) == 0 {
			return &dfsv1.Ref{Inode: inode()}
		}
		return dir()
	}
	chunk := func() uint64 { return 1 + r.Uint64N(80) }
	const size = dfs.MinChunkSize
	cmd := &dfsv1.Command{Header: &dfsv1.MutationHeader{Caller: &dfsv1.Caller{Uid: r.Uint32N(2), Gid: 5}}}
	if r.IntN(2) == 0 {
		cmd.Header.Session, cmd.Header.Seq = 2, 1+r.Uint64N(3000)
	}
	if r.IntN(4) > 0 {
		cmd.Placement = []uint64{1 + r.Uint64N(3), 4 + r.Uint64N(3)}
	}
	if r.IntN(3) == 0 {
		cmd.TailLength = r.Int64N(4 * size)
	}
	replication := r.Uint32N(4)
	mode := r.Uint32N(0o10000)
	switch r.IntN(28) {
	case 0, 1, 2, 3, 4:
		types := []uint32{0o100000, 0o100000, 0o40000, 0o40000, 0o120000, 0o10000}
		c := &dfsv1.CreateRequest{
			Parent: dir(), Name: name(), Mode: types[r.IntN(len(types))] | 0o777&mode | 0o300, Exclusive: r.IntN(2) == 0, MakeParents: r.IntN(4) == 0,
			Truncate: r.IntN(4) == 0, ChunkSize: size, WantChunk: r.IntN(3) == 0, Open: r.IntN(2) == 0,
		}
		if c.Mode&0o170000 == 0o120000 {
			c.SymlinkTarget = append([]byte("/"), name()...)
		}
		if c.Mode&0o170000 == 0o100000 && r.IntN(2) == 0 {
			c.Data = make([]byte, r.IntN(100))
		} else if c.Mode&0o170000 != 0o100000 {
			c.Truncate = false
		}
		cmd.Op = &dfsv1.Command_Create{Create: c}
	case 5, 6:
		cmd.Op = &dfsv1.Command_Remove{Remove: &dfsv1.RemoveRequest{Parent: dir(), Name: name(), What: dfsv1.RemoveRequest_What(r.Int32N(4))}}
	case 7, 8:
		cmd.Op = &dfsv1.Command_Rename{Rename: &dfsv1.RenameRequest{OldParent: dir(), OldName: name(), NewParent: dir(), NewName: name(), Exchange: r.IntN(4) == 0}}
	case 9:
		cmd.Op = &dfsv1.Command_Link{Link: &dfsv1.LinkRequest{Target: some(), Parent: dir(), Name: name()}}
	case 10:
		cmd.Op = &dfsv1.Command_SetAttr{SetAttr: &dfsv1.SetAttrRequest{Ref: some(), Mode: &mode, Replication: &replication}}
	case 11:
		cmd.Op = &dfsv1.Command_SetAttr{SetAttr: &dfsv1.SetAttrRequest{Ref: some(), MtimeNow: true}}
	case 12:
		cmd.Op = &dfsv1.Command_Truncate{Truncate: &dfsv1.TruncateRequest{HandleInode: inode(), Length: r.Int64N(4 * size)}}
	case 13:
		cmd.Op = &dfsv1.Command_SetXattr{SetXattr: &dfsv1.SetXattrRequest{Ref: some(), Name: append([]byte("user."), name()...), Value: make([]byte, r.IntN(50))}}
	case 14:
		cmd.Op = &dfsv1.Command_RemoveXattr{RemoveXattr: &dfsv1.RemoveXattrRequest{Ref: some(), Name: append([]byte("user."), name()...)}}
	case 15:
		cmd.Op = &dfsv1.Command_WriteInline{WriteInline: &dfsv1.WriteInlineRequest{Inode: inode(), Offset: r.Int64N(5000), Data: make([]byte, r.IntN(500))}}
	case 16, 17:
		cmd.Op = &dfsv1.Command_AddChunk{AddChunk: &dfsv1.AddChunkRequest{Inode: inode(), Index: r.Int64N(4)}}
	case 18:
		cmd.Op = &dfsv1.Command_CommitLength{CommitLength: &dfsv1.CommitLengthRequest{
			Inode: inode(), Length: r.Int64N(4 * size), Chunk: chunk(), Version: r.Uint64N(3000), Modified: true, Closing: r.IntN(2) == 0,
		}}
	case 19:
		cmd.Op = &dfsv1.Command_OpenTail{OpenTail: &dfsv1.OpenTailCommand{Inode: inode()}}
	case 20:
		cmd.Op = &dfsv1.Command_CutDone{CutDone: &dfsv1.CutDoneCommand{Chunk: chunk(), SeedStored: r.IntN(2) == 0}}
	case 21, 22:
		cmd.Op = &dfsv1.Command_Reclaim{Reclaim: &dfsv1.ReclaimCommand{Inodes: []uint64{inode(), inode(), inode(), inode(), inode()}, Limit: 1 + r.Uint32N(10)}}
	case 23:
		cmd.Op = &dfsv1.Command_GarbageDone{GarbageDone: &dfsv1.GarbageDoneCommand{Items: []*dfsv1.GarbageDoneCommand_Item{{Index: r.Uint64N(3000), Chunk: chunk()}}}}
	case 24, 25, 26:
		// Lock commands always come from a session.
		cmd.Header.Session, cmd.Header.Seq = 2+r.Uint64N(randomSessions), 1+r.Uint64N(3000)
		first := r.Int64N(20)
		cmd.Op = &dfsv1.Command_Lock{Lock: &dfsv1.LockCommand{Promised: r.IntN(10) == 0, Request: &dfsv1.LockRequest{
			Inode: inode(), Unlock: r.IntN(4) == 0,
			Lock: &dfsv1.LockSpec{Posix: r.IntN(3) > 0, Owner: r.Uint64N(3), First: first, Last: first + r.Int64N(10), Exclusive: r.IntN(3) == 0},
		}}}
	case 27:
		cmd.Header = nil
		id := uint64(2 + randomSessions) // mostly one that is not there
		if r.IntN(20) == 0 {
			id = 3 + r.Uint64N(randomSessions-1)
		}
		cmd.Op = &dfsv1.Command_EndSession{EndSession: &dfsv1.EndSessionCommand{Session: id}}
	}
	return cmd
}

// checkState verifies what the packages promise of a whole state: names and inodes, counts, chunks of files.
func checkState(t testing.TB, v *View) {
	t.Helper()
	type seen struct {
		names   uint32
		entries int64
		chunks  int64
		n       *namespace.Inode
	}
	inodes := map[dfs.InodeID]*seen{}
	var want Stats
	if err := v.Inodes(0, func(id dfs.InodeID, n *namespace.Inode) bool {
		inodes[id] = &seen{n: n}
		want.Inodes++
		if n.IsDir() {
			want.Directories++
		}
		if n.IsRegular() {
			want.Bytes += n.Length
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if len(inodes) == 0 {
		return // not formatted
	}
	if err := v.scan([]byte{kindDentry, '/'}, nil, func(suffix []byte, value any) bool {
		d := value.(namespace.Dentry)
		dir, err := idAt(suffix, 0)
		if err != nil || inodes[dfs.InodeID(dir)] == nil || inodes[d.Inode] == nil || inodes[d.Inode].n.Type() != d.Type {
			t.Fatalf("name %q stands for %+v (%v)", suffix, d, err)
		}
		inodes[dfs.InodeID(dir)].entries++
		inodes[d.Inode].names++
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if err := v.scan([]byte{kindFile, '/'}, nil, func(suffix []byte, value any) bool {
		inode, _ := idAt(suffix, 0)
		index, err := idAt(suffix, 8)
		s := inodes[dfs.InodeID(inode)]
		rec, ok, _ := v.Chunk(dfs.ChunkID(value.(fileChunk)))
		if err != nil || s == nil || !ok || rec.Inode != dfs.InodeID(inode) || rec.Index != int64(index) {
			t.Fatalf("chunk %v at %d of inode %d: %+v", value, index, inode, rec)
		}
		s.chunks = max(s.chunks, int64(index)+1)
		want.Chunks++
		return true
	}); err != nil {
		t.Fatal(err)
	}
	records := int64(0)
	if err := v.Chunks(0, func(dfs.ChunkID, *chunks.Record) bool { records++; return true }); err != nil || records != want.Chunks {
		t.Fatalf("%d chunk records, %d in files (%v)", records, want.Chunks, err)
	}
	for id, s := range inodes {
		_, orphan, err := v.Orphan(id)
		if err != nil {
			t.Fatal(err)
		}
		if orphan {
			want.Orphans++
		}
		names := s.n.Nlink
		if s.n.IsDir() {
			names = 1
			if orphan || id == dfs.RootInode {
				names = 0
			}
		}
		// What a reclaim of a tree has not reached yet still hangs below an orphan, and counts its names.
		if orphan != (s.n.Nlink == 0) || s.names != names || s.entries != s.n.Entries || s.chunks != s.n.Chunks || (s.n.Chunks > 0 && len(s.n.Inline) > 0) {
			t.Fatalf("inode %d: %+v has %d names, %d entries, %d chunks, orphan %v", id, s.n, s.names, s.entries, s.chunks, orphan)
		}
	}
	marks := map[dfs.SessionID]int64{}
	if err := v.scan([]byte{kindLocks, '/'}, nil, func(suffix []byte, value any) bool {
		inode, err := idAt(suffix, 0)
		r := value.(*locks.Record)
		if err != nil || inodes[dfs.InodeID(inode)] == nil {
			t.Fatalf("locks %+v on inode %d, which does not exist (%v)", r, inode, err)
		}
		of := map[dfs.SessionID]bool{}
		for _, l := range slices.Concat(r.Flock, r.Posix) {
			of[l.Owner.Session] = true
		}
		for id := range of {
			mark, err := v.load(appendMarkKey(nil, id, dfs.InodeID(inode)))
			if err != nil || mark == nil {
				t.Fatalf("session %d has locks on inode %d and no mark (%v)", id, inode, err)
			}
			marks[id]++
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if err := v.scan([]byte{kindMark, '/'}, nil, func(suffix []byte, _ any) bool {
		id, err := idAt(suffix, 0)
		if s, serr := v.Session(dfs.SessionID(id)); err != nil || serr != nil || s == nil || s.GetLockedFiles() != marks[dfs.SessionID(id)] {
			t.Fatalf("session %d is %+v, and has locks on %d files (%v, %v)", id, s, marks[dfs.SessionID(id)], err, serr)
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if err := v.GarbageList(GarbageID{}, func(GarbageID, chunks.Garbage) bool { want.Garbage++; return true }); err != nil {
		t.Fatal(err)
	}
	if got, err := v.Stats(); err != nil || got != want {
		t.Fatalf("stats are %+v, counted %+v (%v)", got, want, err)
	}
}

// TestRandomState runs random commands and verifies the whole state now and then.
func TestRandomState(t *testing.T) {
	m := newEmptyMachine(t)
	outcomes := map[string]int{}
	for i, l := range randomLog(m, 1, 12_000) {
		r, ok := m.fsm.Apply(l).(*dfsv1.Result)
		if !ok {
			t.Fatal(m.fsm.Err())
		}
		outcomes[r.GetErrorReason()]++
		if i%200 == 0 {
			m.inView(func(v *View) { checkState(t, v) })
		}
	}
	m.inView(func(v *View) { checkState(t, v) })
	if outcomes[""] < 1500 || len(outcomes) < 12 {
		t.Errorf("too little variety: %v", outcomes)
	}
	t.Log(outcomes)
}

// TestViewsSeeOneIndex runs views beside the writer, with a cache so small that it evicts all the time, and compares each with what kv alone says at
// the same index.
func TestViewsSeeOneIndex(t *testing.T) {
	m := newEmptyMachine(t)
	m.fsm.cache.Store(newCache(cacheShards * 1500))
	log := randomLog(m, 3, 2000)
	m.fsm.ApplyBatch(log[:2])
	stop := make(chan struct{})
	failures := make(chan error, 2)
	for g := range uint64(2) {
		go func() {
			r := rand.New(rand.NewPCG(g, 4))
			views := 0
			for {
				select {
				case <-stop:
					if views < 50 {
						failures <- fmt.Errorf("only %d views", views)
					}
					failures <- nil
					return
				default:
				}
				views++
				if err := compareView(m.fsm, r); err != nil {
					failures <- err
					return
				}
			}
		}()
	}
	for i := 2; i < len(log); i += 8 {
		m.fsm.ApplyBatch(log[i:min(i+8, len(log))])
	}
	close(stop)
	for range 2 {
		if err := <-failures; err != nil {
			t.Fatal(err)
		}
	}
	evicted := false
	for i := range m.fsm.cache.Load().shards {
		evicted = evicted || m.fsm.cache.Load().shards[i].floor > 0
	}
	if !evicted {
		t.Error("nothing was evicted")
	}
}

// compareView reads keys through a view with the cache and without it.
func compareView(f *FSM, r *rand.Rand) error {
	v, err := f.View()
	if err != nil {
		return err
	}
	defer v.Close()
	plain := reader{kv: v.txn, at: v.at}
	for range 60 {
		var key []byte
		switch r.IntN(5) {
		case 0, 1:
			key = appendInodeKey(nil, dfs.InodeID(1+r.Uint64N(60)))
		case 2:
			key = appendDentryKey(nil, dfs.InodeID(1+r.Uint64N(4)), []byte{byte('a' + r.IntN(4))})
		case 3:
			key = keyCounters
		case 4:
			key = appendLocksKey(nil, dfs.InodeID(1+r.Uint64N(60)))
		}
		got, err := v.load(key)
		if err != nil {
			return err
		}
		want, err := plain.load(key)
		if err != nil {
			return err
		}
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			return fmt.Errorf("index %d, key %q: cache says %+v, kv says %+v", v.Index(), key, got, want)
		}
	}
	return nil
}
