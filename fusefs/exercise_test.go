package fusefs_test

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	exerciseOps  = flag.Int("exercise-ops", 0, "operations of the random exercises, together; 0: 10,000, with the race detector 2,500")
	exerciseSeed = flag.Uint64("exercise-seed", 0, "seed of the random exercises; 0: draw one")
	exerciseDir  = flag.String("exercise-dir", "", "with -exercise-dir2: exercise these mounts instead of the test's own")
	exerciseDir2 = flag.String("exercise-dir2", "", "see -exercise-dir")
)

// exerciser does random things to one file, through one or two mounts, and compares what it reads with a model in memory.
type exerciser struct {
	t     *testing.T
	rng   *rand.Rand
	paths []string // of the file, one per mount
	fds   []int    // open through the mount of the same index
	dirs  []int    // direct handles, -1: none
	model []byte
	max   int
	ops   int
	last  []string // the latest operations
	buf   []byte   // page-aligned, for direct I/O

	before func(i, n int) // if set, called before operation i of n
}

func newExerciser(t *testing.T, max int, paths ...string) *exerciser {
	seed := *exerciseSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-exercise-seed=%d", seed)
	e := &exerciser{t: t, rng: rand.New(rand.NewPCG(seed, 1)), paths: paths, max: max, fds: make([]int, len(paths)), dirs: make([]int, len(paths))}
	if err := os.WriteFile(paths[0], nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var err error
	if e.buf, err = unix.Mmap(-1, 0, (max+2*4096)&^4095, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
		t.Fatal(err)
	}
	for i := range paths {
		e.dirs[i] = -1
		e.fds[i] = e.open(i, 0)
	}
	t.Cleanup(func() {
		for i := range e.fds {
			unix.Close(e.fds[i])
			if e.dirs[i] >= 0 {
				unix.Close(e.dirs[i])
			}
		}
		unix.Munmap(e.buf)
	})
	return e
}

func (e *exerciser) open(i, flags int) int {
	fd, err := unix.Open(e.paths[i], unix.O_RDWR|unix.O_CLOEXEC|flags, 0)
	e.check(err)
	return fd
}

func (e *exerciser) note(format string, args ...any) {
	if len(e.last) >= 30 {
		e.last = e.last[1:]
	}
	e.last = append(e.last, fmt.Sprintf("%d: ", e.ops)+fmt.Sprintf(format, args...))
}

func (e *exerciser) fail(format string, args ...any) {
	e.t.Helper()
	for _, l := range e.last {
		e.t.Log(l)
	}
	e.t.Fatalf(format, args...)
}

func (e *exerciser) check(err error) {
	e.t.Helper()
	if err != nil {
		e.fail("%v", err)
	}
}

// span draws a range; page-aligned ones and short ones are as likely as others.
func (e *exerciser) span(limit int) (off, n int) {
	off = e.rng.IntN(limit + 1)
	n = e.rng.IntN(max(1, limit-off+1))
	switch e.rng.IntN(3) {
	case 0:
		n = min(n, e.rng.IntN(64))
	case 1:
		off &^= 4095
	}
	return off, min(n, limit-off)
}

func (e *exerciser) grow(n int) {
	if n > len(e.model) {
		e.model = append(e.model, make([]byte, n-len(e.model))...)
	}
}

func (e *exerciser) compare(what string, got []byte, off int) {
	e.t.Helper()
	want := e.model[min(off, len(e.model)):min(len(e.model), off+len(got))]
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		e.fail("operation %d, %s at %d: %d bytes, want %d (file of %d)", e.ops, what, off, len(got), len(want), len(e.model))
	}
	for i := range got {
		if got[i] != want[i] {
			e.fail("operation %d, %s: byte %d is %#x, want %#x (file of %d)", e.ops, what, off+i, got[i], want[i], len(e.model))
		}
	}
}

func (e *exerciser) fill(p []byte) {
	for i := range p {
		p[i] = byte(e.rng.Uint32())
	}
}

// step does one operation through mount i.
func (e *exerciser) step(i int) {
	e.ops++
	fd := e.fds[i]
	switch k := e.rng.IntN(100); {
	case k < 25:
		off, n := e.span(e.max)
		e.note("mount %d: read %d at %d", i, n, off)
		p := make([]byte, n)
		got, err := unix.Pread(fd, p, int64(off))
		e.check(err)
		if want := max(0, min(n, len(e.model)-off)); got != want {
			e.fail("operation %d: read %d bytes of %d at %d, want %d (file of %d)", e.ops, got, n, off, want, len(e.model))
		}
		e.compare("read", p[:got], off)
	case k < 50:
		off, n := e.span(e.max)
		e.note("mount %d: write %d at %d", i, n, off)
		p := make([]byte, n)
		e.fill(p)
		for done := 0; done < n; {
			m, err := unix.Pwrite(fd, p[done:], int64(off+done))
			e.check(err)
			done += m
		}
		if n > 0 {
			e.grow(off + n)
			copy(e.model[off:], p)
		}
	case k < 55:
		off, n := e.span(e.max)
		off, n = off&^4095, (n+4095)&^4095
		if off+n > e.max {
			return
		}
		if e.dirs[i] < 0 {
			e.dirs[i] = e.open(i, unix.O_DIRECT)
		}
		e.note("mount %d: direct write %d at %d", i, n, off)
		e.fill(e.buf[:n])
		m, err := unix.Pwrite(e.dirs[i], e.buf[:n], int64(off))
		e.check(err)
		if m != n {
			e.fail("direct write of %d wrote %d", n, m)
		}
		if n > 0 {
			e.grow(off + n)
			copy(e.model[off:], e.buf[:n])
		}
	case k < 60:
		off, n := e.span(e.max)
		off, n = off&^4095, (n+4095)&^4095
		if e.dirs[i] < 0 {
			e.dirs[i] = e.open(i, unix.O_DIRECT)
		}
		n = min(n, len(e.buf))
		e.note("mount %d: direct read %d at %d", i, n, off)
		m, err := unix.Pread(e.dirs[i], e.buf[:n], int64(off))
		e.check(err)
		if want := max(0, min(n, len(e.model)-off)); m != want {
			e.fail("operation %d: direct read %d bytes of %d at %d, want %d", e.ops, m, n, off, want)
		}
		e.compare("direct read", e.buf[:m], off)
	case k < 70:
		size := e.rng.IntN(e.max + 1)
		if e.rng.IntN(8) == 0 {
			size = 0
		}
		e.note("mount %d: truncate to %d from %d", i, size, len(e.model))
		if e.rng.IntN(2) == 0 {
			e.check(unix.Ftruncate(fd, int64(size)))
		} else {
			e.check(unix.Truncate(e.paths[i], int64(size)))
		}
		if size < len(e.model) {
			e.model = e.model[:size]
		}
		e.grow(size)
	case k < 76:
		off, n := e.span(e.max)
		if n == 0 {
			return
		}
		e.note("mount %d: punch %d at %d", i, n, off)
		e.check(unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n)))
		if off < len(e.model) {
			clear(e.model[off:min(len(e.model), off+n)])
		}
	case k < 79:
		off, n := e.span(e.max)
		if n == 0 {
			return
		}
		e.note("mount %d: allocate %d at %d", i, n, off)
		e.check(unix.Fallocate(fd, 0, int64(off), int64(n)))
		e.grow(off + n)
	case k < 90:
		e.mapped(i, k < 84)
	case k < 95:
		e.note("mount %d: reopen", i)
		e.check(unix.Close(fd))
		e.fds[i] = e.open(i, 0)
		if e.dirs[i] >= 0 && e.rng.IntN(2) == 0 {
			e.check(unix.Close(e.dirs[i]))
			e.dirs[i] = -1
		}
	case k < 97:
		e.note("mount %d: fsync", i)
		e.check(unix.Fsync(fd))
	case k < 99:
		e.note("mount %d: stat", i)
		var st unix.Stat_t
		e.check(unix.Stat(e.paths[i], &st))
		if st.Size != int64(len(e.model)) {
			e.fail("operation %d: length %d, want %d", e.ops, st.Size, len(e.model))
		}
	default:
		e.note("mount %d: drop caches", i)
		e.check(unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
	}
}

// mapped reads or writes through a mapping. With two mounts the file is opened for it: a mapping of a file that another
// mount has changed shows the change from the next open on (docs/semantics.md).
func (e *exerciser) mapped(i int, write bool) {
	if len(e.model) == 0 {
		return
	}
	off, n := e.span(len(e.model))
	if n == 0 {
		return
	}
	fd := e.fds[i]
	if len(e.paths) > 1 {
		fd = e.open(i, 0)
		defer unix.Close(fd)
	}
	base := off &^ 4095
	m, err := unix.Mmap(fd, int64(base), off+n-base, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	e.check(err)
	if write {
		e.note("mount %d: mapped write %d at %d", i, n, off)
		e.fill(m[off-base : off-base+n])
		copy(e.model[off:], m[off-base:off-base+n])
		if len(e.paths) > 1 || e.rng.IntN(2) == 0 {
			e.check(unix.Msync(m, unix.MS_SYNC))
		}
	} else {
		e.note("mount %d: mapped read %d at %d", i, n, off)
		e.compare("mapped read", m[off-base:off-base+n], off)
	}
	e.check(unix.Munmap(m))
}

func (e *exerciser) run(n int) {
	for i := range n {
		if e.before != nil {
			e.before(i, n)
		}
		e.step(e.rng.IntN(len(e.paths)))
	}
	e.finish()
}

// finish compares the whole file, through every mount.
func (e *exerciser) finish() {
	for _, path := range e.paths {
		b, err := os.ReadFile(path)
		e.check(err)
		if len(b) != len(e.model) {
			e.fail("at the end the file has %d bytes, want %d", len(b), len(e.model))
		}
		e.compare("read of the whole file", b, 0)
	}
}

func TestExercise(t *testing.T) {
	needFuse(t)
	if *exerciseOps == 0 {
		*exerciseOps = 10_000
		if raceEnabled {
			*exerciseOps = 2_500
		}
	}
	t.Run("local", func(t *testing.T) {
		newExerciser(t, 300_000, filepath.Join(t.TempDir(), "f")).run(*exerciseOps)
	})
	if *exerciseDir != "" {
		t.Run("given", func(t *testing.T) {
			newExerciser(t, 300_000, filepath.Join(*exerciseDir, "f"), filepath.Join(*exerciseDir2, "f")).run(*exerciseOps)
		})
		return
	}
	one, _ := mountCluster(t)
	two, _ := mountCluster(t)
	t.Run("mount", func(t *testing.T) {
		newExerciser(t, 300_000, filepath.Join(one, "exercise1")).run(*exerciseOps * 6 / 10)
	})
	t.Run("small", func(t *testing.T) {
		newExerciser(t, 10_000, filepath.Join(one, "exercise2")).run(*exerciseOps * 2 / 10)
	})
	t.Run("two mounts", func(t *testing.T) {
		newExerciser(t, 200_000, filepath.Join(one, "exercise3"), filepath.Join(two, "exercise3")).run(*exerciseOps * 2 / 10)
	})
	t.Run("chunkservers die", func(t *testing.T) {
		m, cluster := ownCluster(t, "30s", nil)
		one, _ := mountOf(t, m)
		two, _ := mountOf(t, m)
		e := newExerciser(t, 200_000, filepath.Join(one, "f"), filepath.Join(two, "f"))
		killed := 0
		e.before = func(i, n int) {
			const turns, servers = 6, 4
			switch each := n / turns; {
			case i%each == each/3:
				e.note("kill %d", killed%servers)
				e.check(cluster.command("kill", killed%servers))
				killed++
			case i%each == 2*each/3:
				e.note("start %d", (killed-1)%servers)
				e.check(cluster.command("start", (killed-1)%servers))
			}
		}
		e.run(*exerciseOps / 10)
		if killed == 0 {
			t.Fatal("no chunkserver was killed")
		}
	})
}
