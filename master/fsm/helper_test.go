package fsm

import (
	"testing"

	"github.com/hashicorp/raft"

	"dfs/master/kv"
	dfsv1 "dfs/proto/dfs/v1"
)

// machine is a state machine over a real kv.DB with a command clock.
type machine struct {
	t     testing.TB
	dir   string
	db    *kv.DB
	fsm   *FSM
	index uint64
	now   int64
	fails []error
}

const testCluster = 0xc0ffee

// newMachine returns a formatted machine.
func newMachine(t testing.TB) *machine {
	m := newEmptyMachine(t)
	m.must(&dfsv1.Command{Op: &dfsv1.Command_Format{Format: &dfsv1.FormatCommand{ClusterId: testCluster}}})
	return m
}

func newEmptyMachine(t testing.TB) *machine {
	m := &machine{t: t, dir: t.TempDir()}
	m.open()
	t.Cleanup(func() {
		if err := m.db.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return m
}

func (m *machine) open() {
	m.t.Helper()
	db, err := kv.Open(m.dir, kv.Options{})
	if err != nil {
		m.t.Fatal(err)
	}
	m.db = db
	m.fsm = New(db, Config{OnFail: func(err error) { m.fails = append(m.fails, err) }})
}

// restart closes the DB and opens it again.
func (m *machine) restart() {
	m.t.Helper()
	if err := m.db.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.open()
}

// entry encodes a command as the next log entry.
func (m *machine) entry(cmd *dfsv1.Command) *raft.Log {
	m.t.Helper()
	m.index++
	m.now += 1000
	if cmd.TimeNs == 0 {
		cmd.TimeNs = m.now
	}
	b, err := Encode(cmd)
	if err != nil {
		m.t.Fatal(err)
	}
	return &raft.Log{Index: m.index, Type: raft.LogCommand, Data: b}
}

// apply applies one command.
func (m *machine) apply(cmd *dfsv1.Command) *dfsv1.Result {
	m.t.Helper()
	switch r := m.fsm.Apply(m.entry(cmd)).(type) {
	case *dfsv1.Result:
		return r
	case error:
		m.t.Fatalf("replica stopped: %v", r)
	default:
		m.t.Fatalf("apply returned %T", r)
	}
	return nil
}

// must applies a command that succeeds.
func (m *machine) must(cmd *dfsv1.Command) *dfsv1.Result {
	m.t.Helper()
	r := m.apply(cmd)
	if err := ResultError(r); err != nil {
		m.t.Fatalf("%v: %v", cmd, err)
	}
	return r
}

// view returns a view that is closed at the end of the test.
func (m *machine) view() *View {
	m.t.Helper()
	v, err := m.fsm.View()
	if err != nil {
		m.t.Fatal(err)
	}
	return v
}

// inView runs fn on a view.
func (m *machine) inView(fn func(v *View)) {
	m.t.Helper()
	v := m.view()
	defer v.Close()
	fn(v)
}

func (m *machine) attr(path string) *dfsv1.Attr {
	m.t.Helper()
	v := m.view()
	defer v.Close()
	a, err := v.LookupPath(&dfsv1.Caller{}, &dfsv1.Ref{Path: []byte(path), NoFollow: true})
	if err != nil {
		m.t.Fatalf("%s: %v", path, err)
	}
	return a
}

func asRoot() *dfsv1.MutationHeader { return &dfsv1.MutationHeader{Caller: &dfsv1.Caller{}} }

func as(uid uint32) *dfsv1.MutationHeader {
	return &dfsv1.MutationHeader{Caller: &dfsv1.Caller{Uid: uid, Gid: uid}}
}

func createCmd(dir, name string, mode uint32) *dfsv1.Command {
	return &dfsv1.Command{Header: asRoot(), Op: &dfsv1.Command_Create{Create: &dfsv1.CreateRequest{
		Parent: &dfsv1.Ref{Path: []byte(dir)}, Name: []byte(name), Mode: mode, Exclusive: true,
	}}}
}

func (m *machine) mkdir(dir, name string) uint64 {
	m.t.Helper()
	return m.must(createCmd(dir, name, 0o040755)).GetAttr().GetInode()
}

func (m *machine) mkfile(dir, name string) uint64 {
	m.t.Helper()
	return m.must(createCmd(dir, name, 0o100644)).GetAttr().GetInode()
}

func removeCmd(dir, name string, what dfsv1.RemoveRequest_What) *dfsv1.Command {
	return &dfsv1.Command{Header: asRoot(), Op: &dfsv1.Command_Remove{Remove: &dfsv1.RemoveRequest{
		Parent: &dfsv1.Ref{Path: []byte(dir)}, Name: []byte(name), What: what,
	}}}
}

func addChunkCmd(inode uint64, index, tail int64, servers ...uint64) *dfsv1.Command {
	return &dfsv1.Command{Header: asRoot(), Placement: servers, TailLength: tail, Op: &dfsv1.Command_AddChunk{AddChunk: &dfsv1.AddChunkRequest{
		Inode: inode, Index: index,
	}}}
}

func (m *machine) addChunk(inode uint64, index, tail int64) *dfsv1.ChunkConfig {
	m.t.Helper()
	return m.must(addChunkCmd(inode, index, tail, 11, 12, 13)).GetChunks()[0]
}

func truncateCmd(inode uint64, length, tail int64) *dfsv1.Command {
	return &dfsv1.Command{Header: asRoot(), TailLength: tail, Op: &dfsv1.Command_Truncate{Truncate: &dfsv1.TruncateRequest{
		HandleInode: inode, Length: length,
	}}}
}
