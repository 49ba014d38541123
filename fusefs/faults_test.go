package fusefs_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Bad luck, on clusters of a test's own.

// TestChunkserverDies kills a chunkserver of a file's three under a running write, read and mapping.
func TestChunkserverDies(t *testing.T) {
	m, cluster := ownCluster(t, "30s", nil)
	dir, _ := mountOf(t, m)
	other, _ := mountOf(t, m)
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const size, step = 8 << 20, 128 << 10
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(i>>8 + i)
	}
	// killing does what it should in the middle of size bytes in steps, and brings the server back.
	killing := func(t *testing.T, server int, do func(off int)) {
		t.Helper()
		for off := 0; off < size; off += step {
			if off == size/2 {
				must(t, cluster.command("kill", server))
			}
			do(off)
		}
		must(t, cluster.command("start", server))
	}
	for server := range 4 { // one of them is not concerned, and another is the primary
		name := fmt.Sprintf("f%d", server)
		f, err := os.Create(filepath.Join(dir, name))
		must(t, err)
		killing(t, server, func(off int) {
			_, err := f.WriteAt(want[off:off+step], int64(off))
			must(t, err)
		})
		must(t, f.Sync())
		must(t, f.Close())
		r, err := os.Open(filepath.Join(other, name))
		must(t, err)
		got := make([]byte, size)
		killing(t, server, func(off int) {
			_, err := r.ReadAt(got[off:off+step], int64(off))
			must(t, err)
		})
		must(t, r.Close())
		if !bytes.Equal(got, want) {
			t.Fatalf("%s: other bytes were read than written", name)
		}
		mapped, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
		must(t, err)
		mem, err := unix.Mmap(int(mapped.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(t, err)
		killing(t, server, func(off int) {
			for i := off; i < off+step; i++ {
				mem[i] ^= 0xff
			}
		})
		must(t, unix.Msync(mem, unix.MS_SYNC))
		must(t, unix.Munmap(mem))
		must(t, mapped.Close())
		got, err = os.ReadFile(filepath.Join(other, name))
		must(t, err)
		for i := range got {
			got[i] ^= 0xff
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%s: what was stored through the mapping is not there", name)
		}
	}
}

// TestMountStopped stops the process of a mount for longer than its session lives, with a file open on it and a write under way. When
// it goes on, it shows what others have done meanwhile, and works.
func TestMountStopped(t *testing.T) {
	m, _ := ownCluster(t, "2s", nil)
	a, stopped := mountOf(t, m)
	b, _ := mountOf(t, m)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	old := bytes.Repeat([]byte("old"), 10_000)
	must(os.WriteFile(filepath.Join(a, "f"), old, 0o644))
	must(os.WriteFile(filepath.Join(a, "gone"), old, 0o644))
	f, err := os.OpenFile(filepath.Join(a, "f"), os.O_RDWR, 0)
	must(err)
	defer f.Close()
	got := make([]byte, len(old))
	_, err = f.ReadAt(got, 0) // its pages are cached
	must(err)
	_, err = f.WriteAt(old[:3], 0)
	must(err)

	must(stopped.cmd.Process.Signal(unix.SIGSTOP))
	eventually(t, "every thread has stopped", func() error { return threadsStopped(stopped.cmd.Process.Pid) })
	written := make(chan error)
	go func() {
		_, err := f.WriteAt([]byte("end"), int64(len(old)-3)) // reaches nobody before the process goes on
		written <- err
	}()
	fresh := bytes.Repeat([]byte("new"), 10_000)
	// Longer than the session's TTL: until the master has forgotten it, and with it that the file is open on a.
	for range 6 {
		must(os.WriteFile(filepath.Join(b, "f"), fresh, 0o644))
		must(unix.Utimes(filepath.Join(b, "f"), []unix.Timeval{{Sec: 1}, {Sec: 1}}))
		unix.Nanosleep(&unix.Timespec{Nsec: 500_000_000}, nil)
	}
	must(os.Remove(filepath.Join(b, "gone")))
	must(stopped.cmd.Process.Signal(unix.SIGCONT))

	if err := <-written; err == nil {
		copy(fresh[len(fresh)-3:], "end")
	} else if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ESTALE) {
		t.Errorf("the write that was under way: %v", err)
	}
	for _, mount := range []string{a, b} {
		got, err := os.ReadFile(filepath.Join(mount, "f"))
		must(err)
		if !bytes.Equal(got, fresh) {
			t.Errorf("%s shows %d bytes, %.6q … %q, after the process has gone on; want … %q", mount, len(got), got, got[max(0, len(got)-6):], fresh[len(fresh)-6:])
		}
		if err := unix.Access(filepath.Join(mount, "gone"), unix.F_OK); !errors.Is(err, unix.ENOENT) {
			t.Errorf("the removed file: %v", err)
		}
	}
	if _, err := f.ReadAt(got, 0); err != nil {
		t.Errorf("reading through the handle opened before: %v", err)
	} else if !bytes.Equal(got, fresh) {
		t.Error("the handle opened before reads old bytes")
	}
	must(os.WriteFile(filepath.Join(a, "after"), old, 0o644))
	back, err := os.ReadFile(filepath.Join(b, "after"))
	must(err)
	if !bytes.Equal(back, old) {
		t.Error("the mount does not work after it has gone on")
	}
}

// threadsStopped returns an error while a thread of the process runs.
func threadsStopped(pid int) error {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return err
	}
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if state := b[bytes.LastIndexByte(b, ')')+2]; state != 'T' {
			return fmt.Errorf("%s: state %c", name, state)
		}
	}
	return nil
}

// TestClusterFull fills chunkservers whose disks are small. Writing says so, what is there stays right, and deleting helps.
func TestClusterFull(t *testing.T) {
	const disk = 48 << 20
	m, _ := ownCluster(t, "30s", func(dir string) {
		for i := range 4 {
			d := filepath.Join(dir, fmt.Sprintf("chunkserver-%d", i))
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("dfs-test", d, "tmpfs", 0, fmt.Sprintf("size=%d", disk)); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Unmount(d, unix.MNT_DETACH) })
		}
	})
	dir, _ := mountOf(t, m)
	block := bytes.Repeat([]byte("0123456789abcdef"), 64<<10/16)
	var whole []string
	full := false
	for i := 0; i < 100 && !full; i++ {
		name := filepath.Join(dir, fmt.Sprintf("f%d", i))
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 << 20 / len(block) {
			if _, err = f.Write(block); err != nil {
				break
			}
		}
		err = errors.Join(err, f.Sync())
		err = errors.Join(err, f.Close())
		switch {
		case err == nil:
			whole = append(whole, name)
		case errors.Is(err, unix.ENOSPC):
			full = true
		default:
			t.Fatalf("file %d: %v", i, err)
		}
	}
	if !full || len(whole) == 0 {
		t.Fatalf("%d files of 2 MiB were written on four disks of 48 MiB, three copies each", len(whole))
	}
	t.Logf("full after %d files", len(whole))
	for _, name := range whole {
		b, err := os.ReadFile(name)
		if err != nil || !bytes.Equal(b, bytes.Repeat(block, 2<<20/len(block))) {
			t.Fatalf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	for _, name := range whole {
		if err := os.Remove(name); err != nil {
			t.Fatalf("deleting on a full cluster: %v", err)
		}
	}
	// Chunks of deleted files are collected in the background.
	eventually(t, "there is room again", func() error { return os.WriteFile(filepath.Join(dir, "again"), bytes.Repeat(block, 16), 0o644) })
}

// eventually repeats f until it returns nil, for at most a minute.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for range 300 {
		if err = f(); err == nil {
			return
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 200_000_000}, nil)
	}
	t.Fatalf("%s: not within a minute: %v", what, err)
}

// TestManyOpenFiles has as many files open as a process may, and then meets EMFILE; the mount itself needs no descriptor for an open
// file, and serves on.
func TestManyOpenFiles(t *testing.T) {
	dir, p := mountCluster(t)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	limit := old
	limit.Cur = 1200
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	before, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for {
		fd, err := unix.Open(filepath.Join(dir, fmt.Sprintf("open%d", len(fds))), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
		if errors.Is(err, unix.EMFILE) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	for i, fd := range fds {
		if _, err := unix.Pwrite(fd, fmt.Appendf(nil, "file %d", i), 0); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 100)
	for i, fd := range fds {
		if n, err := unix.Pread(fd, b, 0); err != nil || string(b[:n]) != fmt.Sprintf("file %d", i) {
			t.Fatalf("file %d holds %q, %v", i, b[:n], err)
		}
	}
	unix.Close(fds[0])
	after, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if len(fds) < 1000 || len(after) > len(before)+50 {
		t.Errorf("with %d files open the mount went from %d to %d descriptors", len(fds), len(before), len(after))
	}
	fds = fds[1:]
}
