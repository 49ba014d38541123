package vfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"testing"
)

// forEach runs a test on every implementation.
func forEach(t *testing.T, test func(t *testing.T, fsys FS)) {
	t.Run("OS", func(t *testing.T) {
		d, err := OS(t.TempDir())
		must(t, err)
		t.Cleanup(func() { must(t, d.Close()) })
		test(t, d)
	})
	t.Run("Mem", func(t *testing.T) { test(t, NewMem()) })
	t.Run("Crashable", func(t *testing.T) { test(t, NewCrashable()) })
	t.Run("Inject", func(t *testing.T) { test(t, NewInject(NewCrashable())) })
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
}

func create(t testing.TB, fsys FS, name string) File {
	t.Helper()
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func write(t testing.TB, f File, off int64, data string) {
	t.Helper()
	n, err := f.WriteAt([]byte(data), off)
	must(t, err)
	if n != len(data) {
		t.Fatalf("wrote %d of %d bytes", n, len(data))
	}
}

func contents(t testing.TB, fsys FS, name string) string {
	t.Helper()
	b, err := ReadFile(fsys, name, 1<<20)
	must(t, err)
	return string(b)
}

func names(t testing.TB, fsys FS, dir string) []string {
	t.Helper()
	entries, err := fsys.ReadDir(dir)
	must(t, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestReadWrite(t *testing.T) {
	forEach(t, func(t *testing.T, fsys FS) {
		f := create(t, fsys, "a")
		write(t, f, 0, "hello")
		write(t, f, 10_000, "far")
		write(t, f, 3, "LO, w")
		size, err := f.Size()
		must(t, err)
		if size != 10_003 {
			t.Errorf("size %d", size)
		}
		b := make([]byte, 9)
		n, err := f.ReadAt(b, 0)
		must(t, err)
		if got := string(b[:n]); got != "helLO, w\x00" {
			t.Errorf("read %q", got)
		}
		n, err = f.ReadAt(b, 9_999)
		wantErr(t, err, io.EOF)
		if got := string(b[:n]); got != "\x00far" {
			t.Errorf("read %q at the end", got)
		}
		if n, err := f.ReadAt(b, 20_000); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("read beyond the end: %d, %v", n, err)
		}
		must(t, f.Sync())
	})
}

func TestWriteVAt(t *testing.T) {
	forEach(t, func(t *testing.T, fsys FS) {
		f := create(t, fsys, "a")
		var bufs [][]byte
		var want []byte
		for i := range 3000 { // more than IOV_MAX
			b := bytes.Repeat([]byte{byte(i)}, i%7)
			bufs, want = append(bufs, b), append(want, b...)
		}
		before := slices.Clone(bufs)
		n, err := f.WriteVAt(bufs, 5)
		must(t, err)
		if n != len(want) {
			t.Fatalf("wrote %d of %d bytes", n, len(want))
		}
		got := contents(t, fsys, "a")
		if got[5:] != string(want) || got[:5] != "\x00\x00\x00\x00\x00" {
			t.Error("contents differ from the buffers")
		}
		for i := range bufs {
			if !bytes.Equal(bufs[i], before[i]) {
				t.Fatal("WriteVAt changed the slice")
			}
		}
		if n, err := f.WriteVAt(nil, 0); n != 0 || err != nil {
			t.Errorf("empty write: %d, %v", n, err)
		}
	})
}

func TestTruncate(t *testing.T) {
	forEach(t, func(t *testing.T, fsys FS) {
		f := create(t, fsys, "a")
		write(t, f, 0, "0123456789")
		must(t, f.Truncate(4))
		must(t, f.Truncate(8))
		if got := contents(t, fsys, "a"); got != "0123\x00\x00\x00\x00" {
			t.Errorf("got %q", got)
		}
		must(t, f.Truncate(1<<20))
		size, err := f.Size()
		must(t, err)
		if size != 1<<20 {
			t.Errorf("size %d", size)
		}
	})
}

func TestOpenFlags(t *testing.T) {
	forEach(t, func(t *testing.T, fsys FS) {
		_, err := fsys.OpenFile("a", os.O_RDWR, 0)
		wantErr(t, err, fs.ErrNotExist)
		write(t, create(t, fsys, "a"), 0, "data")
		_, err = fsys.OpenFile("a", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
		wantErr(t, err, fs.ErrExist)
		f, err := fsys.OpenFile("a", os.O_RDONLY, 0)
		must(t, err)
		if _, err := f.WriteAt([]byte("x"), 0); err == nil {
			t.Error("wrote through a read-only file")
		}
		must(t, f.Close())
		if _, err := f.ReadAt(make([]byte, 1), 0); err == nil {
			t.Error("read from a closed file")
		}
		f, err = fsys.OpenFile("a", os.O_RDWR|os.O_TRUNC, 0)
		must(t, err)
		must(t, f.Close())
		if got := contents(t, fsys, "a"); got != "" {
			t.Errorf("O_TRUNC left %q", got)
		}
		must(t, fsys.Mkdir("d", 0o755))
		if _, err := fsys.OpenFile("d", os.O_RDONLY, 0); err == nil {
			t.Error("opened a directory")
		}
		if _, err := fsys.OpenFile("../x", os.O_RDWR|os.O_CREATE, 0o644); err == nil {
			t.Error("left the root")
		}
	})
}

func TestDirectories(t *testing.T) {
	forEach(t, func(t *testing.T, fsys FS) {
		must(t, MkdirAll(fsys, "a/b/c", 0o755))
		must(t, MkdirAll(fsys, "a/b/c", 0o755))
		wantErr(t, fsys.Mkdir("a/b", 0o755), fs.ErrExist)
		wantErr(t, fsys.Mkdir("x/y", 0o755), fs.ErrNotExist)
		for _, name := range []string{"a/3", "a/1", "a/2"} {
			create(t, fsys, name)
		}
		if got := names(t, fsys, "a"); !slices.Equal(got, []string{"1", "2", "3", "b"}) {
			t.Errorf("a holds %q", got)
		}
		st, err := fsys.Stat("a/b")
		must(t, err)
		if !st.IsDir() || st.Name() != "b" {
			t.Errorf("stat of a/b: %v %v", st.IsDir(), st.Name())
		}
		if err := fsys.Remove("a"); err == nil {
			t.Error("removed a directory that is not empty")
		}
		must(t, fsys.Remove("a/b/c"))
		must(t, fsys.Remove("a/1"))
		wantErr(t, fsys.Remove("a/1"), fs.ErrNotExist)
		must(t, fsys.SyncDir("a"))
		must(t, fsys.SyncDir("."))
		wantErr(t, fsys.SyncDir("nowhere"), fs.ErrNotExist)
		if _, err := fsys.ReadDir("a/2"); err == nil {
			t.Error("listed a file")
		}
	})
}

func TestRename(t *testing.T) {
	forEach(t, func(t *testing.T, fsys FS) {
		must(t, fsys.Mkdir("d", 0o755))
		old := create(t, fsys, "d/a")
		write(t, old, 0, "old")
		write(t, create(t, fsys, "b"), 0, "new")
		must(t, fsys.Rename("b", "d/a"))
		if got := contents(t, fsys, "d/a"); got != "new" {
			t.Errorf("d/a holds %q", got)
		}
		b := make([]byte, 3)
		if _, err := old.ReadAt(b, 0); err != nil || string(b) != "old" {
			t.Errorf("the replaced file reads %q, %v", b, err)
		}
		wantErr(t, fsys.Rename("b", "c"), fs.ErrNotExist)
		must(t, fsys.Rename("d", "e"))
		if got := contents(t, fsys, "e/a"); got != "new" {
			t.Errorf("e/a holds %q", got)
		}
	})
}

func TestRemoveOpenFile(t *testing.T) {
	forEach(t, func(t *testing.T, fsys FS) {
		f := create(t, fsys, "a")
		write(t, f, 0, "still here")
		must(t, fsys.Remove("a"))
		write(t, f, 0, "STILL")
		b := make([]byte, 10)
		if _, err := f.ReadAt(b, 0); err != nil || string(b) != "STILL here" {
			t.Errorf("read %q, %v", b, err)
		}
		must(t, f.Sync())
	})
}

func TestLock(t *testing.T) {
	forEach(t, func(t *testing.T, fsys FS) {
		l, err := fsys.Lock("lock")
		must(t, err)
		_, err = fsys.Lock("lock")
		wantErr(t, err, ErrLocked)
		must(t, l.Close())
		l, err = fsys.Lock("lock")
		must(t, err)
		must(t, l.Close())
	})
}

func TestWriteFile(t *testing.T) {
	forEach(t, func(t *testing.T, fsys FS) {
		must(t, fsys.Mkdir("d", 0o755))
		must(t, WriteFile(fsys, "d/f", []byte("one"), 0o644))
		must(t, WriteFile(fsys, "d/f", []byte("two"), 0o644))
		if got := contents(t, fsys, "d/f"); got != "two" {
			t.Errorf("got %q", got)
		}
		if got := names(t, fsys, "d"); !slices.Equal(got, []string{"f"}) {
			t.Errorf("d holds %q", got)
		}
		_, err := ReadFile(fsys, "d/f", 2)
		wantErr(t, err, ErrTooLong)
		_, err = ReadFile(fsys, "d/g", 2)
		wantErr(t, err, fs.ErrNotExist)
	})
}

func TestUsage(t *testing.T) {
	forEach(t, func(t *testing.T, fsys FS) {
		capacity, free, err := fsys.Usage()
		must(t, err)
		if capacity <= 0 || free < 0 || free > capacity {
			t.Errorf("capacity %d, free %d", capacity, free)
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	forEach(t, func(t *testing.T, fsys FS) {
		f := create(t, fsys, "a")
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				mine := bytes.Repeat([]byte{byte('a' + i)}, 3000)
				for range 20 {
					if _, err := f.WriteAt(mine, int64(i)*3000); err != nil {
						t.Error(err)
					}
					got := make([]byte, 3000)
					if _, err := f.ReadAt(got, int64(i)*3000); err != nil || !bytes.Equal(got, mine) {
						t.Errorf("range %d is not what was written (%v)", i, err)
					}
				}
				if err := f.Sync(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}
