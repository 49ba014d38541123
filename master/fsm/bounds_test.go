package fsm

import (
	"errors"
	"fmt"
	"testing"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/chunks"
	"dfs/master/kv"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

func root() *dfsv1.MutationHeader { return &dfsv1.MutationHeader{Caller: &dfsv1.Caller{}} }

// TestReclaimOfManyInlineFiles removes trees whose files fill their inodes, as 64 clients that wrote small files leave them: every command must fit into a
// transaction, and all of it must be gone in the end.
func TestReclaimOfManyInlineFiles(t *testing.T) {
	m := newMachine(t)
	const dirs, files = 16, 150
	data := make([]byte, dfs.InlineMax)
	for d := range dirs {
		for f := range files {
			m.must(&dfsv1.Command{Header: root(), Op: &dfsv1.Command_Create{Create: &dfsv1.CreateRequest{
				Header: root(), Parent: &dfsv1.Ref{Path: fmt.Appendf(nil, "/d%d", d)}, Name: fmt.Appendf(nil, "f%d", f), Mode: 0o100644, MakeParents: true, Data: data,
			}}})
		}
	}
	for d := range dirs {
		m.must(&dfsv1.Command{Header: root(), Op: &dfsv1.Command_Remove{Remove: &dfsv1.RemoveRequest{
			Header: root(), Name: fmt.Appendf(nil, "d%d", d), What: dfsv1.RemoveRequest_TREE,
		}}})
	}
	commands := 0
	for {
		var page []uint64
		v, err := m.fsm.View()
		if err != nil {
			t.Fatal(err)
		}
		err = v.Orphans(0, func(id dfs.InodeID, _ namespace.Orphan) bool {
			page = append(page, uint64(id))
			return len(page) < 1024
		})
		v.Close()
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		m.must(&dfsv1.Command{Op: &dfsv1.Command_Reclaim{Reclaim: &dfsv1.ReclaimCommand{Inodes: page, Limit: 2048}}})
		if commands++; commands > 200 {
			t.Fatalf("%d orphans are left after %d commands", len(page), commands)
		}
	}
	v, err := m.fsm.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if s, err := v.Stats(); err != nil || s.Inodes != 1 || s.Orphans != 0 {
		t.Fatalf("left: %+v, %v", s, err)
	}
	t.Logf("%d commands for %d files", commands, dirs*files)
}

// TestTooBigACommandIsRefused has a command whose changes this DB's transactions cannot hold, which a DB of the usual size could: it is refused, its refusal is
// remembered, and the replica goes on.
func TestTooBigACommandIsRefused(t *testing.T) {
	m := newMachine(t)
	if err := m.db.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := kv.Open(m.dir, kv.Options{MemtableBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	m.db, m.fsm = db, New(db, Config{OnFail: func(err error) { m.fails = append(m.fails, err) }})
	session := m.must(&dfsv1.Command{Op: &dfsv1.Command_OpenSession{OpenSession: &dfsv1.OpenSessionCommand{Nonce: 1, TtlNs: 1}}}).GetSession()
	header := func(seq uint64) *dfsv1.MutationHeader {
		return &dfsv1.MutationHeader{Session: session, Seq: seq, Caller: &dfsv1.Caller{}}
	}
	file := m.must(&dfsv1.Command{Header: header(1), Op: &dfsv1.Command_Create{Create: &dfsv1.CreateRequest{
		Name: []byte("f"), Mode: 0o100644, ChunkSize: dfs.MinChunkSize,
	}}}).GetAttr().GetInode()
	m.index = 1 << 60 // long numbers make large records
	var servers []uint64
	for i := range uint64(dfs.MaxReplication) {
		servers = append(servers, 1<<63+i)
	}
	for i := range int64(chunks.MaxPerCommand) {
		m.must(&dfsv1.Command{Placement: servers, Op: &dfsv1.Command_AddChunk{AddChunk: &dfsv1.AddChunkRequest{Inode: file, Index: i}}})
	}
	cut := func() *dfsv1.Result {
		return m.apply(&dfsv1.Command{Header: header(2), TimeNs: 1 << 62, Op: &dfsv1.Command_Truncate{Truncate: &dfsv1.TruncateRequest{HandleInode: file}}})
	}
	res := cut()
	if err := ResultError(res); !errors.Is(err, dfserr.ErrTooBig) {
		t.Fatalf("got %v, %v", res, err)
	}
	if len(m.fails) > 0 || db.Err() != nil {
		t.Fatalf("the replica stopped: %v %v", m.fails, db.Err())
	}
	if again := cut(); again.GetIndex() != res.GetIndex() || again.GetErrorReason() != res.GetErrorReason() {
		t.Fatalf("the repeat got %v", again)
	}
	m.must(&dfsv1.Command{Header: header(3), Op: &dfsv1.Command_Create{Create: &dfsv1.CreateRequest{Name: []byte("g"), Mode: 0o100644}}})
	if a := m.must(&dfsv1.Command{Op: &dfsv1.Command_OpenTail{OpenTail: &dfsv1.OpenTailCommand{Inode: file}}}).GetAttr(); a.GetChunks() != chunks.MaxPerCommand {
		t.Fatalf("the file has %d chunks after the refusal", a.GetChunks())
	}
	if err := db.VerifyHash(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.restart() // with the usual size the same command goes through
	m.must(&dfsv1.Command{Header: header(4), TimeNs: 1 << 62, Op: &dfsv1.Command_Truncate{Truncate: &dfsv1.TruncateRequest{HandleInode: file}}})
}
