package testcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"dfs/internal/dfs"
)

// testLogger logs to stderr when DFS_TEST_LOG names a level.
func testLogger() hclog.Logger {
	level := os.Getenv("DFS_TEST_LOG")
	if level == "" {
		return nil
	}
	return hclog.New(&hclog.LoggerOptions{Level: hclog.LevelFromString(level), Output: os.Stderr})
}

// hangs is how long, in real time, one run on virtual time may take: many times what any takes on a slow machine with the race detector.
const hangs = 5 * time.Minute

// watch ends the whole process, with the stacks of all goroutines, unless it is stopped: a bubble in which something waits for what is outside never ends, and its own
// clock stands still. It must be called outside the bubble.
func watch(name string) *time.Timer {
	return time.AfterFunc(hangs, func() {
		debug.SetTraceback("all")
		panic(fmt.Sprintf("%s has not ended after %v of real time", name, hangs))
	})
}

// inMemory runs scenario on an in-memory cluster on virtual time.
func inMemory(t *testing.T, cfg Config, scenario func(ctx context.Context, t *testing.T, c *Cluster)) {
	t.Helper()
	cryptotest.SetGlobalRandom(t, 1) // so that a run can be replayed (tools/replay)
	dir := t.TempDir()               // outside: its clean-up runs after the bubble
	defer watch(t.Name()).Stop()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		cfg.Dir, cfg.Logger = dir, testLogger()
		c, err := Start(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}()
		scenario(ctx, t, c)
	})
}

// onLoopback runs scenario on a cluster over TCP and real directories.
func onLoopback(t *testing.T, cfg Config, scenario func(ctx context.Context, t *testing.T, c *Cluster)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cfg.Dir, cfg.Real, cfg.Logger = t.TempDir(), true, testLogger()
	c, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	scenario(ctx, t, c)
}

// everywhere runs scenario in memory and on loopback.
func everywhere(t *testing.T, cfg Config, scenario func(ctx context.Context, t *testing.T, c *Cluster)) {
	t.Run("in memory", func(t *testing.T) { inMemory(t, cfg, scenario) })
	t.Run("loopback", func(t *testing.T) { onLoopback(t, cfg, scenario) })
}

func pattern(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b)
	return b
}

func TestWriteAndReadBack(t *testing.T) {
	everywhere(t, Config{}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c, err := cl.Client(ctx, "test")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, size := range []int{0, 1, dfs.InlineMax, dfs.InlineMax + 1, dfs.MiB, 3*dfs.MiB + 17} {
			path := fmt.Sprintf("/f%d", size)
			want := pattern(size, uint64(size))
			if err := c.WriteFile(ctx, path, want, 0o644); err != nil {
				t.Fatalf("write %s: %v", path, err)
			}
			got, err := c.ReadFile(ctx, path)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("read %s: %d bytes, %v; want %d bytes", path, len(got), err, len(want))
			}
			info, err := c.Stat(ctx, path)
			if err != nil || info.Size() != int64(size) {
				t.Fatalf("stat %s: %v, %v", path, info, err)
			}
		}
		if _, err := c.Stat(ctx, "/none"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("stat of a missing file: %v", err)
		}
	})
}

func TestChunkserverKilledDuringWrite(t *testing.T) {
	everywhere(t, Config{}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c, err := cl.Client(ctx, "test")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for victim := range 3 { // each position of the chain
			path := fmt.Sprintf("/killed-%d", victim)
			f, err := c.Create(ctx, path, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			want := pattern(6*dfs.MiB, uint64(victim))
			const half = 3 * dfs.MiB
			if _, err := f.Write(want[:half]); err != nil {
				t.Fatal(err)
			}
			// A server that has just come back may have missed the chain; repair then makes the third replica.
			chunks, err := c.Chunks(ctx, path)
			for err == nil && len(chunks[0].Replicas) < 3 {
				if err = ctx.Err(); err == nil {
					time.Sleep(10 * time.Millisecond)
					chunks, err = c.Chunks(ctx, path)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			dead := cl.index(t, chunks[0].Replicas[victim].Server)
			if err := cl.KillChunkserver(ctx, dead); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Write(want[half:]); err != nil {
				t.Fatalf("write after the kill of replica %d: %v", victim, err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			got, err := c.ReadFile(ctx, path)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("read back after the kill of replica %d: %d bytes, %v", victim, len(got), err)
			}
			if err := cl.StartChunkserver(ctx, dead); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// index returns which chunkserver has the id.
func (c *Cluster) index(t *testing.T, id dfs.ServerID) int {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, s := range c.servers {
		if s != nil && s.ID() == id {
			return i
		}
	}
	t.Fatalf("no running chunkserver has the id %s", id)
	return -1
}

func TestRestartKeepsEverything(t *testing.T) {
	everywhere(t, Config{}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c, err := cl.Client(ctx, "test")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		want := pattern(2*dfs.MiB+5, 1)
		if err := c.WriteFile(ctx, "/kept", want, 0o600); err != nil {
			t.Fatal(err)
		}
		for i := range cl.Chunkservers() {
			if err := cl.KillChunkserver(ctx, i); err != nil {
				t.Fatal(err)
			}
		}
		if err := cl.KillMaster(ctx); err != nil {
			t.Fatal(err)
		}
		if err := cl.start(ctx); err != nil {
			t.Fatal(err)
		}
		got, err := c.ReadFile(ctx, "/kept")
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("read back after the restart: %d bytes, %v", len(got), err)
		}
	})
}

func TestCloseDoesNotUndoTruncation(t *testing.T) {
	everywhere(t, Config{}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		writer, err := cl.Client(ctx, "writer")
		if err != nil {
			t.Fatal(err)
		}
		defer writer.Close()
		other, err := cl.Client(ctx, "other")
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		f, err := writer.Create(ctx, "/f", 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(pattern(100_000, 1)); err != nil {
			t.Fatal(err)
		}
		const cut = 50_000
		if err := other.Truncate(ctx, "/f", cut); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := other.ReadFile(ctx, "/f")
		if err != nil || !bytes.Equal(got, pattern(100_000, 1)[:cut]) {
			t.Errorf("after the truncation and the writer's close: %s, %v", difference(got, pattern(100_000, 1)[:cut]), err)
		}
	})
}
