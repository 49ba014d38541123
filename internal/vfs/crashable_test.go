package vfs

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

// outcomes collects what read returns over many crashes of what build makes.
func outcomes(t *testing.T, build func(fsys *Crashable), read func(fsys *Crashable) string) map[string]int {
	t.Helper()
	got := map[string]int{}
	for seed := range uint64(300) {
		fsys := NewCrashable()
		build(fsys)
		got[read(fsys.Crash(rand.New(rand.NewPCG(seed, 1))))]++
	}
	return got
}

func readOr(fsys FS, name string) string {
	b, err := ReadFile(fsys, name, 1<<20)
	if err != nil {
		return "gone"
	}
	return string(b)
}

func checkOutcomes(t *testing.T, got map[string]int, want ...string) {
	t.Helper()
	for _, w := range want {
		if got[w] == 0 {
			t.Errorf("outcome %.40q never happened", w)
		}
		delete(got, w)
	}
	for o, n := range got {
		t.Errorf("outcome %.40q happened %d times", o, n)
	}
}

func TestCrashKeepsSynced(t *testing.T) {
	got := outcomes(t, func(fsys *Crashable) {
		f := create(t, fsys, "a")
		write(t, f, 0, "synced")
		must(t, f.Sync())
		must(t, fsys.SyncDir("."))
	}, func(fsys *Crashable) string { return readOr(fsys, "a") })
	checkOutcomes(t, got, "synced")
}

func TestCrashEntryWithoutContents(t *testing.T) {
	got := outcomes(t, func(fsys *Crashable) {
		write(t, create(t, fsys, "a"), 0, "data")
	}, func(fsys *Crashable) string { return readOr(fsys, "a") })
	checkOutcomes(t, got, "gone", "", "data", "\x00\x00\x00\x00")
}

func TestCrashSyncedFileWithoutEntry(t *testing.T) {
	got := outcomes(t, func(fsys *Crashable) {
		f := create(t, fsys, "a")
		write(t, f, 0, "data")
		must(t, f.Sync())
	}, func(fsys *Crashable) string { return readOr(fsys, "a") })
	checkOutcomes(t, got, "gone", "data")
}

func TestCrashSectorsAreIndependent(t *testing.T) {
	got := outcomes(t, func(fsys *Crashable) {
		f := create(t, fsys, "a")
		write(t, f, 0, strings.Repeat("o", 2*sectorSize))
		must(t, f.Sync())
		must(t, fsys.SyncDir("."))
		write(t, f, 0, strings.Repeat("n", 2*sectorSize))
	}, func(fsys *Crashable) string {
		s := readOr(fsys, "a")
		return s[:1] + s[sectorSize-1:sectorSize] + s[sectorSize:sectorSize+1] + s[2*sectorSize-1:]
	})
	checkOutcomes(t, got, "oooo", "nnoo", "oonn", "nnnn")
}

func TestCrashTruncate(t *testing.T) {
	got := outcomes(t, func(fsys *Crashable) {
		f := create(t, fsys, "a")
		write(t, f, 0, "0123456789")
		must(t, f.Sync())
		must(t, fsys.SyncDir("."))
		must(t, f.Truncate(2))
		write(t, f, 2, "ab")
	}, func(fsys *Crashable) string { return readOr(fsys, "a") })
	// With and without the truncation, the data, and the length after it.
	checkOutcomes(t, got, "0123456789", "01ab456789", "01", "01ab", "01\x00\x00")
}

func TestCrashRename(t *testing.T) {
	build := func(fsys *Crashable) {
		must(t, WriteFile(fsys, "a", []byte("old"), 0o644))
		f := create(t, fsys, "tmp")
		write(t, f, 0, "new")
		must(t, f.Sync())
		must(t, fsys.SyncDir("."))
		must(t, fsys.Rename("tmp", "a"))
	}
	read := func(fsys *Crashable) string { return readOr(fsys, "a") + "," + readOr(fsys, "tmp") }
	checkOutcomes(t, outcomes(t, build, read), "old,new", "new,gone")
}

func TestCrashRenameBetweenDirectories(t *testing.T) {
	build := func(sync ...string) func(fsys *Crashable) {
		return func(fsys *Crashable) {
			must(t, MkdirAll(fsys, "a", 0o755))
			must(t, MkdirAll(fsys, "b", 0o755))
			must(t, WriteFile(fsys, "a/f", []byte("x"), 0o644))
			must(t, fsys.Rename("a/f", "b/f"))
			for _, d := range sync {
				must(t, fsys.SyncDir(d))
			}
		}
	}
	read := func(fsys *Crashable) string { return readOr(fsys, "a/f") + "," + readOr(fsys, "b/f") }
	checkOutcomes(t, outcomes(t, build(), read), "x,gone", "gone,x")
	checkOutcomes(t, outcomes(t, build("b"), read), "x,x", "gone,x")
	checkOutcomes(t, outcomes(t, build("a"), read), "gone,gone", "gone,x")
	checkOutcomes(t, outcomes(t, build("b", "a"), read), "gone,x")
}

func TestCrashRemove(t *testing.T) {
	got := outcomes(t, func(fsys *Crashable) {
		must(t, WriteFile(fsys, "a", []byte("x"), 0o644))
		must(t, fsys.Remove("a"))
	}, func(fsys *Crashable) string { return readOr(fsys, "a") })
	checkOutcomes(t, got, "gone", "x")
}

func TestWriteFileIsAtomic(t *testing.T) {
	// A crash, or a kill and then a crash, after each operation of WriteFile.
	for i := 0; ; i++ {
		fsys := NewCrashable()
		must(t, WriteFile(fsys, "a", []byte("old"), 0o644))
		in := NewInject(fsys)
		in.FailNth(i, Fault{Dead: true})
		err := WriteFile(in, "a", []byte("new"), 0o644)
		for seed := range uint64(20) {
			again := fsys.Kill()
			fsys = again
			after := cloneCrash(again, seed)
			switch got := readOr(after, "a"); {
			case err == nil && got != "new", got != "old" && got != "new":
				t.Fatalf("operation %d failed (%v), crash %d: a holds %q", i, err, seed, got)
			}
		}
		if err == nil {
			if in.Fired() != 0 {
				t.Fatal("a fault fired and WriteFile succeeded")
			}
			return
		}
	}
}

// cloneCrash crashes without ending c, which crash tests try many times.
func cloneCrash(c *Crashable, seed uint64) *Crashable {
	c.mu.Lock()
	defer c.mu.Unlock()
	rng := rand.New(rand.NewPCG(seed, 7))
	l := c.life
	defer func() { l.ended = false }()
	return c.crashLocked(func() bool { return rng.IntN(2) == 0 }, rng)
}

func TestKillKeepsEverything(t *testing.T) {
	fsys := NewCrashable()
	f := create(t, fsys, "a")
	write(t, f, 0, "written")
	_, err := fsys.Lock("l")
	must(t, err)
	again := fsys.Kill()
	if got := contents(t, again, "a"); got != "written" {
		t.Errorf("a holds %q", got)
	}
	if _, err := again.Lock("l"); err != nil {
		t.Errorf("the lock outlived its process: %v", err)
	}
	_, err = f.WriteAt([]byte("x"), 0)
	wantErr(t, err, fs.ErrClosed)
	_, err = fsys.OpenFile("a", os.O_RDONLY, 0)
	wantErr(t, err, fs.ErrClosed)
	// It was not durable, and still is not.
	if got := readOr(again.CrashKeepNothing(), "a"); got != "gone" {
		t.Errorf("after a power loss a holds %q", got)
	}
}

func TestCrashEndsHandles(t *testing.T) {
	fsys := NewCrashable()
	f := create(t, fsys, "a")
	fsys.Crash(rand.New(rand.NewPCG(1, 1)))
	_, err := f.WriteAt([]byte("x"), 0)
	wantErr(t, err, fs.ErrClosed)
	wantErr(t, f.Sync(), fs.ErrClosed)
	wantErr(t, fsys.SyncDir("."), fs.ErrClosed)
}

func TestCapacity(t *testing.T) {
	for name, fsys := range map[string]interface {
		FS
		SetCapacity(int64)
	}{"Mem": NewMem(), "Crashable": NewCrashable()} {
		t.Run(name, func(t *testing.T) {
			fsys.SetCapacity(10 * pageSize)
			f := create(t, fsys, "a")
			n, err := f.WriteAt(make([]byte, 11*pageSize), 0)
			if n != 10*pageSize || !IsNoSpace(err) {
				t.Errorf("wrote %d bytes, %v", n, err)
			}
			if _, err := f.WriteAt([]byte("over"), 0); err != nil {
				t.Errorf("overwriting needs no space: %v", err)
			}
			must(t, f.Truncate(2*pageSize))
			if _, free, _ := fsys.Usage(); free != 8*pageSize {
				t.Errorf("%d bytes free after truncation", free)
			}
			must(t, fsys.Remove("a"))
			if _, free, _ := fsys.Usage(); free != 8*pageSize {
				t.Errorf("%d bytes free while the removed file is open", free)
			}
			must(t, f.Close())
			if _, free, _ := fsys.Usage(); free != 10*pageSize {
				t.Errorf("%d bytes free in the end", free)
			}
		})
	}
}

// TestCrashModel checks Crash against the rule that every sector holds one of the values it had since the last
// sync, on random operations.
func TestCrashModel(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 3))
		fsys := NewCrashable()
		f := create(t, fsys, "a")
		must(t, fsys.SyncDir("."))
		const sectors = 40
		may := make([]map[byte]bool, sectors)
		for i := range may {
			may[i] = map[byte]bool{0: true}
		}
		last := make([]byte, sectors)
		value := byte(0)
		for range 30 {
			if rng.IntN(5) == 0 {
				must(t, f.Sync())
				for i := range may {
					may[i] = map[byte]bool{last[i]: true}
				}
				continue
			}
			value++
			from := rng.IntN(sectors)
			n := 1 + rng.IntN(sectors-from)
			write(t, f, int64(from)*sectorSize, strings.Repeat(string(rune(value)), n*sectorSize)[:n*sectorSize])
			for i := from; i < from+n; i++ {
				may[i][value], last[i] = true, value
			}
		}
		after := readOr(fsys.Crash(rng), "a")
		for i := range may {
			b := byte(0)
			if i*sectorSize < len(after) {
				b = after[i*sectorSize]
			}
			// A lost length hides a sector; only a synced one must be there.
			if !may[i][b] && !(b == 0 && i*sectorSize >= len(after) && len(may[i]) > 1) {
				t.Fatalf("seed %d: sector %d holds %d, may hold %v", seed, i, b, fmt.Sprint(may[i]))
			}
		}
	}
}
