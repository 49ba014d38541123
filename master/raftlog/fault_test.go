package raftlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

// workload proposes, takes snapshots that truncate the log, and restarts, until it is done or the node fails. It returns what was acknowledged, in order, and what was proposed last without an answer.
type workload struct {
	acked   []string
	unknown string
	err     error
}

// tune makes files roll, snapshots cut the log, and checkpoints come often.
func tune(c *Config) {
	c.SegmentBytes, c.SnapshotEntries, c.TrailingEntries, c.CheckpointEntries = 600, 1, 4, 8
	c.Heartbeat = 10 * time.Millisecond
}

// run uses a disk and a state until something fails. Restarts are part of it.
func (w *workload) run(fsys vfs.FS, state *listState) {
	next := len(w.acked)
	for life := 0; life < 3 && w.err == nil; life++ {
		w.err = w.live(fsys, state, &next, life)
	}
}

func (w *workload) live(fsys vfs.FS, state *listState, next *int, life int) (err error) {
	cfg := config(fsys, state, newPipes().host("a"))
	tune(&cfg)
	n, err := Open(context.Background(), cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := n.WaitLeader(ctx); err != nil {
		return err
	}
	for i := range 12 {
		data := fmt.Sprintf("%d-%s", *next, strings.Repeat("x", *next%40))
		w.unknown = data
		if _, _, err := n.Propose(ctx, []byte(data)); err != nil {
			return err
		}
		w.acked, w.unknown = append(w.acked, data), ""
		*next++
		if i%4 == 3 {
			if err := n.Snapshot(ctx); err != nil {
				return err
			}
		}
	}
	return n.Err()
}

// check opens the disk without faults and requires that everything acknowledged is there, in order, and nothing else but perhaps the one that got no answer.
func (w *workload) check(t *testing.T, what string, fsys vfs.FS, state *listState) {
	t.Helper()
	cfg := config(fsys, state, newPipes().host("a"))
	tune(&cfg)
	n, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatalf("%s: open afterwards: %v", what, err)
	}
	defer n.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := n.WaitLeader(ctx); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if _, err := n.ReadBarrier(ctx); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	got, want := state.data(), w.acked
	if w.unknown != "" && len(got) == len(want)+1 {
		want = append(slices.Clone(want), w.unknown)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%s: %d entries came back, %d were acknowledged (the last unanswered: %q)", what, len(got), len(w.acked), w.unknown)
	}
	propose(t, n, "afterwards")
}

// TestFailEveryOperation fails the i-th disk operation, for every i, and goes on with a sound disk afterwards.
func TestFailEveryOperation(t *testing.T) {
	fired := 0
	for i := 0; ; i++ {
		inner := vfs.NewMem()
		disk := vfs.NewInject(inner)
		state := newListState()
		// A quarter of a write gets through now and then, and now and then the operation happens all the same.
		disk.FailNthOf(i, func(op vfs.Op) bool { return op.Kind != vfs.OpClose && op.Kind != vfs.OpLock }, vfs.Fault{Short: i%3 == 1, Apply: i%3 == 2})
		var w workload
		w.run(disk, state)
		if disk.Fired() == 0 {
			if w.err != nil {
				t.Fatalf("without a fault: %v", w.err)
			}
			break
		}
		fired++
		disk.SetFaults(nil)
		w.check(t, fmt.Sprintf("operation %d fails (%v)", i, w.err), disk, state)
	}
	t.Logf("%d operations failed, one at a time", fired)
	if fired < 100 {
		t.Fatal("too few operations")
	}
}

// TestCrashAfterEveryOperation cuts the power after the i-th operation, for every i, keeping all, none and random parts of what was not synced.
func TestCrashAfterEveryOperation(t *testing.T) {
	crashes := 0
	step := 1
	if testing.Short() {
		step = 7
	}
	for i := 0; ; i += step {
		disk := vfs.NewCrashable()
		inject := vfs.NewInject(disk)
		state := newListState()
		inject.FailNthOf(i, func(op vfs.Op) bool { return op.Kind.Mutates() }, vfs.Fault{Dead: true, Short: i%2 == 0, Apply: i%4 == 1})
		var w workload
		w.run(inject, state)
		if inject.Fired() == 0 {
			if w.err != nil {
				t.Fatalf("without a fault: %v", w.err)
			}
			break
		}
		crashes++
		rng := rand.New(rand.NewPCG(uint64(i), 7))
		var after *vfs.Crashable
		if i%3 == 0 {
			after = disk.CrashKeepNothing()
		} else {
			after = disk.Crash(rng)
		}
		w.check(t, fmt.Sprintf("crash at operation %d", i), after, state.crash(func(n int) int {
			if n == 0 || i%3 == 0 {
				return 0
			}
			return rng.IntN(n + 1)
		}))
	}
	t.Logf("%d crashes", crashes)
	if crashes < 80/step {
		t.Fatal("too few crashes")
	}
}

// listFiles returns the files of an FS with a prefix.
func listFiles(t *testing.T, fsys vfs.FS, dir string) (out []string) {
	t.Helper()
	entries, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	must(t, err)
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if e.IsDir() {
			out = append(out, listFiles(t, fsys, name)...)
		} else if e.Name() != "LOCK" {
			out = append(out, name)
		}
	}
	return out
}

// TestFlippedBits flips one bit anywhere in any file of a closed and of a killed node. The node must refuse to start, or come back with all that was acknowledged. Of a killed node, a damaged
// last append is taken for one that was torn if the state, too, has lost it: two faults at once.
func TestFlippedBits(t *testing.T) {
	for _, clean := range []bool{true, false} {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprintf("clean=%v state lost=%v", clean, lost), func(t *testing.T) { flipBits(t, clean, lost) })
		}
	}
}

func flipBits(t *testing.T, clean, lost bool) {
	disk := vfs.NewCrashable()
	state := newListState()
	var w workload
	cfg := config(disk, state, newPipes().host("a"))
	tune(&cfg)
	n := open(t, cfg)
	for i := range 40 {
		data := fmt.Sprintf("%d-%s", i, strings.Repeat("y", i%50))
		propose(t, n, data)
		w.acked = append(w.acked, data)
		if i%9 == 8 {
			must(t, n.Snapshot(context.Background()))
		}
	}
	tail := n.log.segments[len(n.log.segments)-1]
	lastRecord := int(tail.locs[len(tail.locs)-1].off)
	if clean {
		must(t, n.Close())
		disk = disk.Kill()
	} else {
		disk = disk.Kill()
		_ = n.Close() // its disk is gone
	}
	base := readAll(t, disk)
	outcome := make(map[string]int)
	flips := 0
	segments := listFiles(t, disk, "log")
	for _, name := range listFiles(t, disk, ".") {
		kind, _, _ := strings.Cut(path.Base(name), "-")
		size := len(base[name])
		for at := 0; at < size; at += max(1, size/60) {
			damaged := writeAll(t, base)
			must(t, damaged.Corrupt(name, func(b []byte) { b[at] ^= 1 << (at % 8) }))
			flips++
			s := state.crash(func(n int) int { return n })
			expect := w
			if lost {
				s = newListState()
				if !clean && name == segments[len(segments)-1] && at >= lastRecord {
					expect.acked = w.acked[:len(w.acked)-1]
				}
			}
			outcome[kind+" "+expect.judge(t, fmt.Sprintf("%s byte %d", name, at), damaged, s)]++
		}
	}
	t.Logf("%d flips: %v", flips, outcome)
	for _, kind := range []string{"seg", "stable", "rec", "ckpt"} {
		if outcome[kind+" refused"]+outcome[kind+" all there"] == 0 {
			t.Errorf("no %s file was damaged", kind)
		}
	}
}

// judge opens a damaged disk.
func (w *workload) judge(t *testing.T, what string, fsys vfs.FS, state *listState) string {
	t.Helper()
	cfg := config(fsys, state, newPipes().host("a"))
	tune(&cfg)
	cfg.Bootstrap = false
	n, err := Open(context.Background(), cfg)
	if err != nil {
		if !errors.Is(err, dfserr.ErrCorrupt) && !errors.Is(err, dfserr.ErrFormat) {
			t.Errorf("%s: %v", what, err)
		}
		return "refused"
	}
	defer n.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := n.WaitLeader(ctx); err != nil {
		if n.Err() == nil {
			t.Errorf("%s: %v", what, err)
		}
		return "refused"
	}
	if _, err := n.ReadBarrier(ctx); err != nil {
		return "refused"
	}
	if got := state.data(); !slices.Equal(got, w.acked) {
		t.Errorf("%s: %d of %d entries came back without an error", what, len(got), len(w.acked))
	}
	return "all there"
}

func readAll(t *testing.T, fsys vfs.FS) map[string][]byte {
	t.Helper()
	out := make(map[string][]byte)
	for _, name := range listFiles(t, fsys, ".") {
		b, err := readSmall(fsys, name, 1<<30)
		must(t, err)
		out[name] = b
	}
	return out
}

func writeAll(t *testing.T, files map[string][]byte) *vfs.Mem {
	t.Helper()
	fsys := vfs.NewMem()
	for _, dir := range []string{"log", "snap"} {
		must(t, fsys.Mkdir(dir, 0o700))
	}
	for name, b := range files {
		must(t, writeDurable(fsys, path.Dir(name), path.Base(name), bytes.Clone(b)))
	}
	return fsys
}

// TestLostStateIsRebuilt takes the state away: from a log that reaches back, from a checkpoint, and from a log that does neither.
func TestLostStateIsRebuilt(t *testing.T) {
	for _, c := range []struct {
		name    string
		every   int64
		prepare func(t *testing.T, fsys *vfs.Mem)
		refused string
	}{
		{"checkpoint and log", 8, func(*testing.T, *vfs.Mem) {}, ""},
		{"log alone", 1 << 40, func(*testing.T, *vfs.Mem) {}, ""},
		{"neither", -1, func(*testing.T, *vfs.Mem) {}, "the raft log begins at"},
		{"damaged checkpoint", 8, func(t *testing.T, fsys *vfs.Mem) {
			for _, name := range listFiles(t, fsys, "snap") {
				if strings.HasPrefix(path.Base(name), ckptPrefix) {
					must(t, fsys.Corrupt(name, func(b []byte) { b[len(b)/2] ^= 4 }))
					return
				}
			}
			t.Fatal("no checkpoint")
		}, "checkpoint"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fsys, state := vfs.NewMem(), newListState()
			cfg := config(fsys, state, newPipes().host("a"))
			tune(&cfg)
			cfg.CheckpointEntries = c.every
			n := open(t, cfg)
			for i := range 50 {
				propose(t, n, fmt.Sprintf("%d-%s", i, strings.Repeat("z", 50)))
				if i%10 == 9 {
					must(t, n.Snapshot(context.Background()))
				}
			}
			must(t, n.Close())
			want := state.data()
			c.prepare(t, fsys)
			state = newListState()
			cfg.FSM, cfg.State = state, state
			n, err := Open(context.Background(), cfg)
			if c.refused != "" {
				wantErr(t, err, dfserr.ErrCorrupt, c.refused, "backup")
				return
			}
			must(t, err)
			defer n.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			must(t, n.WaitLeader(ctx))
			if got := state.data(); !slices.Equal(got, want) {
				t.Fatalf("%d entries, want %d", len(got), len(want))
			}
			propose(t, n, "more")
		})
	}
}

// TestStateAheadOfTheLogIsRefused: acknowledged entries are missing in the log.
func TestStateAheadOfTheLogIsRefused(t *testing.T) {
	fsys, state := vfs.NewMem(), newListState()
	cfg := config(fsys, state, newPipes().host("a"))
	n := open(t, cfg)
	for i := range 10 {
		propose(t, n, fmt.Sprint(i))
	}
	must(t, n.Close())
	state.list = append(state.list, applied{state.Applied() + 5, "from the future"})
	_, err := Open(context.Background(), cfg)
	wantErr(t, err, dfserr.ErrCorrupt, "acknowledged entries are missing")
}

// TestLogLostIsRefused: somebody removed the segments, or the stable file.
func TestLogLostIsRefused(t *testing.T) {
	for _, what := range []string{"log", "stable", "snap"} {
		t.Run(what, func(t *testing.T) {
			fsys, state := vfs.NewMem(), newListState()
			cfg := config(fsys, state, newPipes().host("a"))
			tune(&cfg)
			n := open(t, cfg)
			for i := range 30 {
				propose(t, n, strings.Repeat("w", 60))
				if i%10 == 9 {
					must(t, n.Snapshot(context.Background()))
				}
			}
			must(t, n.Close())
			for _, name := range listFiles(t, fsys, ".") {
				if strings.HasPrefix(name, what) {
					must(t, fsys.Remove(name))
				}
			}
			_, err := Open(context.Background(), cfg)
			wantErr(t, err, dfserr.ErrCorrupt, "backup")
		})
	}
}
