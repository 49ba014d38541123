package fusefs_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dfs/testcluster"
)

var (
	soakFor = flag.Duration("soak", 0, "how long to soak; 0: a few kills, to see that it works")
	soakDFS = flag.String("soak-dfs", "", "the dfs binary whose processes are soaked; empty: the parts that this test plays")
)

// soaked is a cluster whose chunkservers can be killed, with two mounts.
type soaked struct {
	mounts []string
	kill   func(i int) error
	start  func(i int) error
}

// soakTarget starts real processes of the binary given, or else the parts of the other tests.
func soakTarget(t *testing.T) *soaked {
	if *soakDFS == "" {
		m, cluster := ownCluster(t, "30s", nil)
		one, _ := mountOf(t, m)
		two, _ := mountOf(t, m)
		command := func(what string) func(int) error { return func(i int) error { return cluster.command(what, i) } }
		return &soaked{[]string{one, two}, command("kill"), command("start")}
	}
	needFuse(t)
	ctx := context.Background()
	p, err := testcluster.StartProcesses(ctx, *soakDFS, t.TempDir(), 4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &soaked{
		kill:  func(i int) error { return p.KillChunkserver(ctx, i) },
		start: func(i int) error { return p.StartChunkserver(ctx, i) },
	}
	for range 2 {
		dir := mountPoint(t)
		if out, err := exec.Command(*soakDFS, "mount", "-d", p.Masters()[0], dir).CombinedOutput(); err != nil {
			t.Fatalf("mount: %v %s", err, out)
		}
		t.Cleanup(func() {
			if out, err := exec.Command(*soakDFS, "umount", dir).CombinedOutput(); err != nil {
				t.Errorf("umount: %v %s", err, out)
			}
		})
		s.mounts = append(s.mounts, dir)
	}
	return s
}

// usage is what a mount's process holds.
type usage struct{ goroutines, heapMiB, fds float64 }

// usageOf asks the mount itself.
func usageOf(t *testing.T, mount string) usage {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(mount, ".dfs", "stats"))
	if err != nil {
		t.Fatal(err)
	}
	value := func(name string) float64 {
		_, rest, ok := strings.Cut(string(b), "\n"+name+" ")
		var v float64
		if _, err := fmt.Sscan(rest, &v); !ok || err != nil {
			t.Fatalf("stats have no %s", name)
		}
		return v
	}
	return usage{value("go_goroutines"), value("go_memstats_heap_inuse_bytes") / (1 << 20), value("process_open_fds")}
}

// hang is the longest that one system call may take while chunkservers die one at a time.
const hang = 5 * time.Second

// TestSoak runs the random exerciser on files that two mounts share while chunkservers are killed and restarted all the time. No byte may
// be wrong, no call may hang, and the mounts' processes may not grow.
func TestSoak(t *testing.T) {
	const files = 4
	s := soakTarget(t)
	begin := time.Now()
	least, duration := 2, *soakFor // kills
	var kills atomic.Int32
	var broken atomic.Bool // chunkservers cannot be killed or started any more: there is nothing to soak
	over := func() bool { return broken.Load() || int(kills.Load()) >= least && time.Since(begin) >= duration }

	killer := make(chan error, 1)
	go func() {
		killer <- func() error {
			defer broken.Store(true)
			for i := 0; !over(); i++ {
				if err := s.kill(i % 4); err != nil {
					return err
				}
				time.Sleep(time.Second)
				if err := s.start(i % 4); err != nil {
					return err
				}
				time.Sleep(time.Second)
				kills.Add(1)
			}
			return nil
		}()
	}()
	var ops, longest atomic.Int64
	var warm []usage // a third into it, when every cache has filled
	var wg sync.WaitGroup
	for i := range files {
		name := fmt.Sprintf("soak%d", i)
		e := newExerciser(t, 300_000, filepath.Join(s.mounts[0], name), filepath.Join(s.mounts[1], name))
		wg.Go(func() { // a failure ends this goroutine; the others go on
			for !over() {
				at := time.Now()
				e.step(e.rng.IntN(2))
				took := time.Since(at)
				ops.Add(1)
				if took > hang && *soakFor > 0 {
					e.fail("an operation took %v", took)
				}
				for old := longest.Load(); int64(took) > old && !longest.CompareAndSwap(old, int64(took)); old = longest.Load() {
				}
			}
			e.finish()
		})
	}
	for said := begin; !over(); {
		time.Sleep(100 * time.Millisecond)
		if warm == nil && time.Since(begin) >= duration/3 {
			for _, m := range s.mounts {
				warm = append(warm, usageOf(t, m))
			}
		}
		if time.Since(said) > time.Minute {
			said = time.Now()
			t.Logf("%v: %d operations, %d kills, longest %v, %v %v", time.Since(begin).Round(time.Second), ops.Load(), kills.Load(),
				time.Duration(longest.Load()), usageOf(t, s.mounts[0]), usageOf(t, s.mounts[1]))
		}
	}
	wg.Wait()
	if err := <-killer; err != nil {
		t.Error(err)
	}
	for i, m := range s.mounts {
		if warm == nil {
			t.Fatal("it ended before it was warm")
		}
		now := usageOf(t, m)
		t.Logf("mount %d: %+v a third into it, %+v at the end", i, warm[i], now)
		if now.goroutines > warm[i].goroutines+64 || now.fds > warm[i].fds+32 || now.heapMiB > warm[i].heapMiB+128 {
			t.Errorf("mount %d has grown from %+v to %+v", i, warm[i], now)
		}
	}
	t.Logf("%d operations and %d kills in %v; the longest operation took %v", ops.Load(), kills.Load(), time.Since(begin).Round(time.Second), time.Duration(longest.Load()))
	if ops.Load() == 0 {
		t.Error("nothing was done")
	}
}
