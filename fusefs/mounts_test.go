package fusefs_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTwoMounts checks that what one mount has done another sees at once.
func TestTwoMounts(t *testing.T) {
	a, _ := mountCluster(t)
	b, _ := mountCluster(t)
	dir := freshDir(t, a)
	in := func(mount, name string) string { return filepath.Join(mount, filepath.Base(dir), name) }
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	content := func(t *testing.T, name, want string) {
		t.Helper()
		got, err := os.ReadFile(name)
		must(t, err)
		if string(got) != want {
			t.Fatalf("%s holds %.40q (%d bytes), want %.40q (%d)", name, got, len(got), want, len(want))
		}
	}
	t.Run("create, rename, unlink", func(t *testing.T) {
		for i := range 20 {
			name := fmt.Sprint("n", i)
			if _, err := os.Stat(in(b, name)); !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			must(t, os.WriteFile(in(a, name), []byte(name), 0o644))
			content(t, in(b, name), name)
			must(t, os.Rename(in(b, name), in(b, name+"-moved")))
			if _, err := os.Stat(in(a, name)); !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			content(t, in(a, name+"-moved"), name)
			must(t, os.Remove(in(a, name+"-moved")))
			if _, err := os.Stat(in(b, name+"-moved")); !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
	})
	t.Run("writes through open handles", func(t *testing.T) {
		fa, err := os.OpenFile(in(a, "open"), os.O_CREATE|os.O_RDWR, 0o644)
		must(t, err)
		defer fa.Close()
		fb, err := os.OpenFile(in(b, "open"), os.O_RDWR, 0)
		must(t, err)
		defer fb.Close()
		p := make([]byte, 100_000)
		for i := range 30 {
			want := bytes.Repeat([]byte{byte('a' + i%26)}, 100+i*3000)
			w, r := fa, fb
			if i%2 == 1 {
				w, r = fb, fa
			}
			_, err := w.WriteAt(want, 0)
			must(t, err)
			n, err := r.ReadAt(p[:len(want)], 0)
			must(t, err)
			if !bytes.Equal(p[:n], want) {
				t.Fatalf("round %d: stale bytes", i)
			}
			info, err := r.Stat()
			must(t, err)
			if info.Size() != int64(len(want)) {
				t.Fatalf("round %d: length %d, want %d", i, info.Size(), len(want))
			}
		}
		must(t, fa.Truncate(10))
		if n, _ := fb.ReadAt(p, 0); n != 10 {
			t.Fatalf("%d bytes after truncation to 10", n)
		}
		must(t, fb.Truncate(20000))
		n, _ := fa.ReadAt(p, 0)
		if n != 20000 || !bytes.Equal(p[10:n], make([]byte, n-10)) {
			t.Fatalf("%d bytes after growing to 20000, or not zeros", n)
		}
	})
	t.Run("a reader that has pages cached", func(t *testing.T) {
		must(t, os.WriteFile(in(a, "cached"), bytes.Repeat([]byte("1"), 50_000), 0o644))
		r, err := os.Open(in(b, "cached"))
		must(t, err)
		defer r.Close()
		p := make([]byte, 50_000)
		for i := range 10 {
			want := byte('2' + i)
			f, err := os.OpenFile(in(a, "cached"), os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt(bytes.Repeat([]byte{want}, 50_000), 0)
			must(t, err)
			if i%2 == 0 {
				must(t, f.Close())
			} else {
				defer f.Close()
			}
			_, err = r.ReadAt(p, 0)
			must(t, err)
			if p[0] != want || p[49_999] != want {
				t.Fatalf("round %d: stale bytes", i)
			}
		}
	})
	t.Run("append from both", func(t *testing.T) {
		var wg sync.WaitGroup
		for w := range 4 {
			name := in([]string{a, b}[w%2], "log")
			wg.Go(func() {
				f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
				if err != nil {
					t.Error(err)
					return
				}
				defer f.Close()
				for i := range 100 {
					if _, err := fmt.Fprintf(f, "writer %d line %03d %s\n", w, i, strings.Repeat("#", i)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		checkLog(t, in(a, "log"), 4, 100)
		checkLog(t, in(b, "log"), 4, 100)
	})
	t.Run("O_EXCL has one winner", func(t *testing.T) {
		for i := range 20 {
			var wg sync.WaitGroup
			var mu sync.Mutex
			won := 0
			for w := range 4 {
				name := in([]string{a, b}[w%2], fmt.Sprint("excl", i))
				wg.Go(func() {
					f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
					if err == nil {
						f.Close()
						mu.Lock()
						won++
						mu.Unlock()
					} else if !errors.Is(err, os.ErrExist) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if won != 1 {
				t.Fatalf("%d winners", won)
			}
		}
	})
	t.Run("unlinked on one, open on the other", func(t *testing.T) {
		must(t, os.WriteFile(in(a, "gone"), bytes.Repeat([]byte("g"), 30_000), 0o644))
		f, err := os.OpenFile(in(b, "gone"), os.O_RDWR, 0)
		must(t, err)
		defer f.Close()
		must(t, os.Remove(in(a, "gone")))
		p := make([]byte, 40_000)
		n, _ := f.ReadAt(p, 0)
		if n != 30_000 || p[29_999] != 'g' {
			t.Fatalf("%d bytes", n)
		}
		_, err = f.WriteAt([]byte("still"), 30_000)
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Fstat(int(f.Fd()), &st))
		if st.Nlink != 0 || st.Size != 30_005 {
			t.Fatalf("nlink %d, length %d", st.Nlink, st.Size)
		}
	})
	t.Run("renamed over on one, open on the other", func(t *testing.T) {
		must(t, os.WriteFile(in(a, "target"), bytes.Repeat([]byte("o"), 30_000), 0o644))
		f, err := os.Open(in(b, "target"))
		must(t, err)
		defer f.Close()
		must(t, os.WriteFile(in(a, "new"), []byte("new"), 0o644))
		must(t, os.Rename(in(a, "new"), in(a, "target")))
		content(t, in(b, "target"), "new")
		p := make([]byte, 40_000)
		if n, _ := f.ReadAt(p, 0); n != 30_000 || p[0] != 'o' {
			t.Fatalf("%d bytes of the old file", n)
		}
	})
	t.Run("attributes", func(t *testing.T) {
		must(t, os.WriteFile(in(a, "attr"), nil, 0o644))
		must(t, os.Chmod(in(a, "attr"), 0o1751|os.ModeSetuid))
		var st unix.Stat_t
		must(t, unix.Stat(in(b, "attr"), &st))
		must(t, unix.Setxattr(in(b, "attr"), "user.k", []byte("v"), 0))
		p := make([]byte, 10)
		n, err := unix.Getxattr(in(a, "attr"), "user.k", p)
		must(t, err)
		if string(p[:n]) != "v" {
			t.Fatalf("%q", p[:n])
		}
	})
	t.Run("directories renamed into each other", func(t *testing.T) {
		for i := range 20 {
			x, y := fmt.Sprint("x", i), fmt.Sprint("y", i)
			must(t, os.Mkdir(in(a, x), 0o755))
			must(t, os.Mkdir(in(a, y), 0o755))
			var errA, errB error
			var wg sync.WaitGroup
			wg.Go(func() { errA = os.Rename(in(a, x), in(a, y+"/"+x)) })
			wg.Go(func() { errB = os.Rename(in(b, y), in(b, x+"/"+y)) })
			wg.Wait()
			if (errA == nil) == (errB == nil) {
				t.Fatalf("renames: %v and %v", errA, errB)
			}
		}
	})
}

// TestHugeDirectory lists a million entries, in bounded memory, while others come and go.
func TestHugeDirectory(t *testing.T) {
	needFuse(t)
	const entries = 1_000_000
	dir := mountPoint(t)
	p, err := start(roleFake, dir, fmt.Sprint(entries))
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	d, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(d)
	seen := make([]bool, entries)
	removed := map[int]bool{}
	list := &posix{TB: t, dir: dir}
	rng := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 64<<10)
	n, round := 0, 0
	for {
		got, err := unix.Getdents(d, b)
		if err != nil {
			t.Fatal(err)
		}
		if got == 0 {
			break
		}
		for _, e := range list.parse(b[:got]) {
			if len(e.name) != 10 || e.name[:2] != "n-" {
				continue // added meanwhile, or a dot
			}
			var i int
			if _, err := fmt.Sscanf(e.name[2:], "%d", &i); err != nil {
				t.Fatal(err)
			}
			i -= 10_000_000
			if seen[i] {
				t.Fatalf("entry %d twice", i)
			}
			seen[i] = true
			n++
		}
		if round++; round%50 == 0 {
			// Remove some anywhere, add some anywhere.
			for range 3 {
				i := rng.IntN(entries)
				if err := unix.Unlink(filepath.Join(dir, fakeName(i))); err == nil {
					removed[i] = true
				}
				if err := unix.Mknod(filepath.Join(dir, fakeName(rng.IntN(entries))+"+"), unix.S_IFREG|0o644, 0); err != nil && !errors.Is(err, unix.EEXIST) {
					t.Fatal(err)
				}
			}
		}
	}
	for i, ok := range seen {
		if !ok && !removed[i] {
			t.Fatalf("entry %d was missed", i)
		}
	}
	if len(removed) == 0 {
		t.Fatal("nothing was removed meanwhile")
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var peak int
	for _, line := range strings.Split(string(status), "\n") {
		if strings.HasPrefix(line, "VmHWM:") {
			fmt.Sscanf(line, "VmHWM: %d", &peak)
		}
	}
	t.Logf("%d entries listed, %d removed meanwhile, peak memory of the mount %d MiB", n, len(removed), peak/1024)
	if limit := 400 << 10; peak == 0 || peak > limit {
		t.Fatalf("peak memory %d KiB, want at most %d", peak, limit)
	}
}

// TestDeadMount kills a mount's process and mounts again in its place.
func TestDeadMount(t *testing.T) {
	m, dir := masters(t), mountPoint(t)
	p, err := start(roleMount, dir, m)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "survivor")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("kept"), 50_000)
	if _, err := f.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	p.kill()
	f.Close()
	if _, err := os.Stat(name); !errors.Is(err, unix.ENOTCONN) {
		t.Fatalf("a dead mount answers %v, want ENOTCONN", err)
	}
	if p, err = start(roleMount, dir, m); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%d bytes after the kill, want the %d that fsync acknowledged", len(got), len(want))
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
}

// TestUnmountBusy ends a mount by SIGTERM while a file on it is open and has just been written.
func TestUnmountBusy(t *testing.T) {
	m, dir := masters(t), mountPoint(t)
	p, err := start(roleMount, dir, m)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "busy"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(make([]byte, 10_000)); err != nil {
		t.Fatal(err)
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	begin := time.Now()
	time.AfterFunc(time.Second, func() { f.Close() })
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > 20*time.Second {
		t.Fatalf("it took %v", d)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Fatalf("the mount point has %d entries (%v)", len(entries), err)
	}
	if p, err = start(roleMount, dir, m); err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	if i, err := os.Stat(filepath.Join(dir, "busy")); err != nil || i.Size() != 10_000 {
		t.Fatal(i, err)
	}
}

// TestMountErrors gives mount points that cannot be.
func TestMountErrors(t *testing.T) {
	m := masters(t)
	mounted, _ := mountCluster(t)
	full := t.TempDir()
	file := filepath.Join(full, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ dir, want string }{
		{filepath.Join(full, "none"), "mkdir -p"},
		{full, "nonempty"},
		{file, "not a directory"},
		{mounted, "already mounted"},
	} {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self, c.dir, m)
		cmd.Env = append(os.Environ(), roleVariable+"="+roleMount)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("mounting on %s: %v, %q; want an error with %q", c.dir, err, out, c.want)
		}
	}
}

// TestLocksBetweenProcesses takes POSIX locks by two processes and lets one die with its lock.
func TestLocksBetweenProcesses(t *testing.T) {
	dir, _ := mountCluster(t)
	name := filepath.Join(dir, "locked")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// flock(1) is everywhere; it holds the lock for as long as its command runs.
	holder := exec.Command("flock", "-x", name, "sh", "-c", "echo held; read x")
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Fatalf("a lock held elsewhere was granted: %v", err)
	}
	in.Close()
	holder.Wait()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
}

// A mount that is frozen delays what others change by 3 s at most, and when it goes on it shows nothing of before.
func TestFrozenMount(t *testing.T) {
	a, frozen := mountCluster(t)
	b, _ := mountCluster(t)
	dir := freshDir(t, b)
	in := func(mount, name string) string { return filepath.Join(mount, filepath.Base(dir), name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(in(b, "f"), []byte("old"), 0o644))
	must(os.WriteFile(in(b, "g"), []byte("old"), 0o644))
	open, err := os.Open(in(a, "f"))
	must(err)
	defer open.Close()
	for range 100 { // until it is cached
		_, err := os.Stat(in(a, "f"))
		must(err)
		_, err = os.Stat(in(a, "g"))
		must(err)
		_, err = open.ReadAt(make([]byte, 3), 0)
		must(err)
		if _, err := os.Stat(in(a, "none")); !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	must(frozen.cmd.Process.Signal(syscall.SIGSTOP))
	resume := sync.OnceFunc(func() { frozen.cmd.Process.Signal(syscall.SIGCONT) })
	defer resume()
	// Begun while the mount is frozen, answered when it is not.
	type answer struct {
		size int64
		err  error
	}
	waiting := make(chan answer)
	go func() {
		info, err := os.Stat(in(a, "f"))
		if err != nil {
			waiting <- answer{0, err}
			return
		}
		waiting <- answer{info.Size(), nil}
	}()
	begun := time.Now()
	must(os.WriteFile(in(b, "f"), []byte("longer"), 0o644))
	must(os.Rename(in(b, "g"), in(b, "none")))
	if d := time.Since(begun); d > 20*time.Second { // the exact bound is tested on virtual time
		t.Errorf("the changes took %v", d)
	}
	resume()
	first := <-waiting
	must(first.err)
	info, err := os.Stat(in(a, "f"))
	must(err)
	if info.Size() != 6 || first.size != 3 && first.size != 6 {
		t.Errorf("length %d, before that %d", info.Size(), first.size)
	}
	p := make([]byte, 6)
	if n, err := open.ReadAt(p, 0); n != 6 || string(p) != "longer" {
		t.Errorf("read %q, %v", p[:n], err)
	}
	if _, err := os.Stat(in(a, "g")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a name that was renamed away: %v", err)
	}
	if _, err := os.Stat(in(a, "none")); err != nil {
		t.Errorf("the new name: %v", err)
	}
}
