package raftlog_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
	"dfs/master/kv"
	"dfs/master/raftlog"
)

var _ raftlog.State = (*kv.DB)(nil)

// setter is a state machine over kv: each entry "key=value" sets a key.
type setter struct {
	db      *kv.DB
	applied []uint64
}

func (s *setter) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	for i, l := range logs {
		txn := s.db.Begin(dfs.Index(l.Index))
		key, value, _ := strings.Cut(string(l.Data), "=")
		err := txn.Set([]byte(key), []byte(value))
		out[i] = errors.Join(err, txn.Commit())
		s.applied = append(s.applied, l.Index)
	}
	if err := s.db.Flush(); err != nil {
		out[0] = err
	}
	return out
}

func (s *setter) Restore(r io.ReadCloser) error {
	return errors.Join(s.db.InstallSnapshot(context.Background(), r), r.Close())
}
func (s *setter) Apply(*raft.Log) any                 { panic("not called") }
func (s *setter) Snapshot() (raft.FSMSnapshot, error) { panic("not called") }

type loopback struct{}

func (loopback) Listen(ctx context.Context, addr string) (net.Listener, error) {
	return new(net.ListenConfig).Listen(ctx, "tcp", addr)
}

func (loopback) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T, fsys vfs.FS, fsm *setter) *raftlog.Node {
	t.Helper()
	n, err := raftlog.Open(context.Background(), raftlog.Config{
		FS: fsys, Dir: "raft", ID: "a", Bind: "127.0.0.1:0", Network: loopback{}, Bootstrap: true, FSM: fsm, State: fsm.db,
		Heartbeat: 30 * time.Millisecond, SnapshotEntries: 1, TrailingEntries: 10, CheckpointEntries: 300, SegmentBytes: 8 << 10, SnapshotInterval: time.Hour,
	})
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	must(t, n.WaitLeader(ctx))
	return n
}

// TestStateAndLogTogether kills a master with a real state: what comes back has the same hash, whether the state was only behind, damaged, or gone.
func TestStateAndLogTogether(t *testing.T) {
	log, dir := vfs.NewCrashable(), t.TempDir()
	db, err := kv.Open(dir, kv.Options{CacheBytes: 8 << 20})
	must(t, err)
	fsm := &setter{db: db}
	n := start(t, log, fsm)
	ctx := context.Background()
	set := func(n *raftlog.Node, from, count int) (last dfs.Index) {
		for i := from; i < from+count; i++ {
			v, at, err := n.Propose(ctx, fmt.Appendf(nil, "k%03d=%d-%s", i%50, i, strings.Repeat("v", 100)))
			if v != nil || err != nil {
				t.Fatal(v, err)
			}
			last = at
		}
		return last
	}
	set(n, 0, 700)
	must(t, n.Snapshot(ctx))
	snapshot := db.Synced()
	if snapshot < 700 {
		t.Fatalf("a snapshot synced up to %d only", snapshot)
	}
	last := set(n, 700, 150)
	wantHash, wantKeys := db.Hash(), db.Keys()

	// The process is killed: both disks as they are.
	log = log.Kill()
	killed := t.TempDir()
	must(t, os.CopyFS(killed, os.DirFS(dir)))
	_ = n.Close() // its log is gone
	must(t, db.Close())
	for _, c := range []struct {
		name   string
		damage func(dir string) error
		from   dfs.Index // first index applied again, at the latest
	}{
		{"killed", func(string) error { return nil }, last + 1},
		{"state behind", func(dir string) error { // the write-ahead file lost its end
			mem, err := filepath.Glob(filepath.Join(dir, "gen-*", "*.mem"))
			if err != nil || len(mem) != 1 {
				return fmt.Errorf("%d write-ahead files, %w", len(mem), err)
			}
			b, err := os.ReadFile(mem[0])
			if err != nil {
				return err
			}
			at := strings.Index(string(b), "800-vvv")
			if at < 0 {
				return errors.New("index 800 not found")
			}
			b[at] ^= 1
			return os.WriteFile(mem[0], b, 0o600)
		}, snapshot + 1},
		{"state damaged", func(dir string) error {
			name, err := filepath.Glob(filepath.Join(dir, "gen-*", "MANIFEST"))
			if err != nil || len(name) != 1 {
				return fmt.Errorf("%d manifests, %w", len(name), err)
			}
			return os.WriteFile(name[0], []byte("rubbish"), 0o600)
		}, 0},
		{"state gone", os.RemoveAll, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.CopyFS(dir, os.DirFS(killed)))
			must(t, c.damage(dir))
			db, err := kv.Open(dir, kv.Options{CacheBytes: 8 << 20})
			if c.name == "state damaged" {
				if !errors.Is(err, dfserr.ErrCorrupt) {
					t.Fatalf("open: %v", err)
				}
				must(t, kv.Discard(dir))
				db, err = kv.Open(dir, kv.Options{CacheBytes: 8 << 20})
			}
			must(t, err)
			defer func() { must(t, db.Close()) }()
			fsm := &setter{db: db}
			n := start(t, log, fsm)
			defer func() {
				must(t, n.Close())
				log = log.Kill() // the next case finds it closed cleanly, which is no harm
			}()
			if _, err := n.ReadBarrier(ctx); err != nil {
				t.Fatal(err)
			}
			if db.Applied() != last || db.Hash() != wantHash || db.Keys() != wantKeys {
				t.Fatalf("applied %d with hash %s and %d keys, want %d with %s and %d", db.Applied(), db.Hash(), db.Keys(), last, wantHash, wantKeys)
			}
			must(t, db.VerifyHash(ctx))
			t.Logf("%d entries applied again", len(fsm.applied))
			if c.from > 0 && len(fsm.applied) > int(last-c.from+1) {
				t.Fatalf("%d entries applied again, at most %d were needed", len(fsm.applied), last-c.from+1)
			}
			if c.name != "killed" && len(fsm.applied) == 0 {
				t.Fatal("the state was not damaged")
			}
		})
	}
}
