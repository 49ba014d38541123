package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// bytesOf is n bytes that depend on n.
func bytesOf(n int) string {
	b := make([]byte, n)
	random := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
	random.Read(b) //nolint:errcheck // never fails
	return string(b)
}

// noLeftovers fails if a temporary name is left in the cluster or below a local directory.
func (r *rig) noLeftovers() {
	r.t.Helper()
	for _, name := range r.fs.names() {
		if strings.Contains(name, temporaryMark) {
			r.t.Errorf("left in the cluster: %s", name)
		}
	}
	err := filepath.WalkDir(r.dir, func(path string, _ fs.DirEntry, err error) error {
		if strings.Contains(path, temporaryMark) {
			r.t.Errorf("left here: %s", path)
		}
		return err
	})
	if err != nil {
		r.t.Error(err)
	}
}

// interruptedContext is cancelled as a signal cancels it, when fire is called.
func interruptedContext() (ctx context.Context, fire func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	return ctx, func() { cancel(errInterrupted) }
}

func TestTreeThereAndBack(t *testing.T) {
	r := newRig(t)
	sizes := []int{0, 1, dfs.InlineMax, dfs.InlineMax + 1, copyBuffer - 1, copyBuffer, copyBuffer + 1, 3*copyBuffer + 7}
	var want []string
	for i, n := range sizes {
		r.local(fmt.Sprintf("tree/d%d/f%d", i%3, n), bytesOf(n))
	}
	for i := range 50 {
		r.local(fmt.Sprintf("tree/many/%d", i), bytesOf(i))
	}
	r.local("tree/odd/a\xff*[]\n", "odd")
	r.local("tree/odd/"+strings.Repeat("n", dfs.NameMax), bytesOf(5000))
	tree := filepath.Join(r.dir, "tree")
	for _, err := range []error{
		os.Mkdir(filepath.Join(tree, "empty"), 0o755), os.Symlink("d0/f0", filepath.Join(tree, "link")), os.Symlink("nowhere", filepath.Join(tree, "dangling")),
		os.Chmod(filepath.Join(tree, "many/7"), 0o640), os.Chmod(filepath.Join(tree, "many"), 0o751), os.Chtimes(filepath.Join(tree, "many"), recordedAt, recordedAt),
		os.Chtimes(filepath.Join(tree, "many/7"), recordedAt, recordedAt),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r.ok("put", "-p", "-r", tree, "/copy")
	r.ok("cp", "-p", "/copy", "/again")
	back := filepath.Join(r.dir, "back")
	r.ok("get", "-p", "/again", back)
	r.noLeftovers()
	err := filepath.WalkDir(tree, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(tree, path)
		if err != nil {
			return err
		}
		want = append(want, rel)
		other := filepath.Join(back, rel)
		a, err1 := os.Lstat(path)
		b, err2 := os.Lstat(other)
		if err1 != nil || err2 != nil {
			return errors.Join(err1, err2)
		}
		if a.Mode() != b.Mode() || a.Mode()&fs.ModeSymlink == 0 && !a.ModTime().Equal(b.ModTime()) {
			t.Errorf("%q: %v %v, came back as %v %v", rel, a.Mode(), a.ModTime(), b.Mode(), b.ModTime())
		}
		switch {
		case e.Type().IsRegular():
			x, err1 := os.ReadFile(path)
			y, err2 := os.ReadFile(other)
			if err1 != nil || err2 != nil || !bytes.Equal(x, y) {
				t.Errorf("%q differs: %v %v", rel, err1, err2)
			}
		case e.Type()&fs.ModeSymlink != 0:
			x, err1 := os.Readlink(path)
			y, err2 := os.Readlink(other)
			if err1 != nil || err2 != nil || x != y {
				t.Errorf("%q points to %q, came back as %q", rel, x, y)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(want) < 65 {
		t.Fatalf("only %d names were compared", len(want))
	}
}

func TestPutKeepsOutOfTheWay(t *testing.T) {
	r := newRig(t)
	small, large := r.local("small", "new"), r.local("large", bytesOf(10_000))
	r.place("/d/", "", recordedAt)
	r.place("/small", "old", recordedAt)
	r.place("/large", "old", recordedAt)
	for line, want := range map[string]string{
		"put " + small + " /small":                "put: `/small': File exists",
		"put " + large + " /large":                "put: `/large': File exists",
		"put " + large + " /none/x":               "put: `/none/x': No such file or directory: `dfs://127.0.0.1:7400/none/x'",
		"put " + large + " /none/":                "put: `/none': No such file or directory: `dfs://127.0.0.1:7400/none'",
		"put " + small + " " + large + " /small":  "put: `/small': Is not a directory",
		"put " + small + " " + large + " /none":   "put: `/none': No such file or directory",
		"put " + small + " /small/x":              "put: `/small/x': Is not a directory",
		"put -t 0 " + small + " /d":               "-put: Option -t needs a number from 1 to 256, not \"0\"",
		"put - " + small + " /d":                  "put: `-': standard input cannot be mixed with files",
		"get /small " + large:                     "get: `" + large + "': File exists",
		"get /small " + r.dir + "/none/x":         "get: `" + r.dir + "/none/x': No such file or directory: `file://" + r.dir + "/none/x'",
		"get /small /large " + small:              "get: `" + small + "': Is not a directory",
		"cp /small /small":                        "cp: `/small': File exists",
		"cp -f /small /small":                     "cp: `/small' to `/small': are identical",
		"cp /d /d/e":                              "cp: `/d' to `/d/e': is a subdirectory of itself",
		"mv /d /d/e":                              "mv: `/d' to `/d/e': is a subdirectory of itself",
		"put " + r.dir + "/none " + large + " /d": "put: `" + r.dir + "/none': No such file or directory",
		"put -f " + small + " /d -f":              "put: `/d': No such file",
		"ls dfs://a/x dfs://b/x":                  "ls: `dfs://b/x': names another cluster than dfs://a; one command works on one cluster",
	} {
		code, _, errOut := r.run(strings.Fields(line)...)
		if got, _, _ := strings.Cut(errOut, "\n"); code == 0 || got != want && want != "put: `/d': No such file" {
			t.Errorf("dfs %s: exit %d\n%s\nwant\n%s", line, code, got, want)
		}
	}
	if got, _ := r.fs.content("/d/large"); got != bytesOf(10_000) {
		t.Error("the file beside the missing one was not stored")
	}
	r.ok("put", "-f", small, "/small")
	r.ok("put", "-f", large, "/large")
	if got, _ := r.fs.content("/small"); got != "new" {
		t.Errorf("/small is %q", got)
	}
	if got, _ := r.fs.content("/large"); got != bytesOf(10_000) {
		t.Error("/large was not replaced")
	}
	r.noLeftovers()
}

func TestStandardStreams(t *testing.T) {
	r := newRig(t)
	for _, n := range []int{0, 5, dfs.InlineMax + 1, 2*copyBuffer + 1} {
		path := fmt.Sprintf("/s%d", n)
		r.env.in = strings.NewReader(bytesOf(n))
		r.ok("put", "-", path)
		if got := r.ok("get", path, "-"); got != bytesOf(n) {
			t.Errorf("%d bytes came back as %d", n, len(got))
		}
	}
	r.env.in = strings.NewReader("more")
	r.ok("append", "-", "/s5")
	if got, _ := r.fs.content("/s5"); got != bytesOf(5)+"more" {
		t.Errorf("/s5 is %q", got)
	}
	r.ok("-appendToFile", r.local("x", "made"), "/made")
	if got, _ := r.fs.content("/made"); got != "made" {
		t.Errorf("/made is %q", got)
	}
	r.noLeftovers()
}

// TestSourceChanges lets the source change in the middle of a put: nothing may appear under the final name.
func TestSourceChanges(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"changed while it was read (it had": func(path string) error { return os.WriteFile(path, []byte("short"), 0o644) },
		"changed while it was read (it was": func(path string) error { return os.Chtimes(path, time.Now(), recordedAt) },
		"vanished while it was read":        os.Remove,
		"was replaced while it was read": func(path string) error {
			return os.Rename(filepath.Join(filepath.Dir(path), "other"), path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			path := r.local("big", bytesOf(3*copyBuffer))
			r.local("other", bytesOf(3*copyBuffer))
			var fired atomic.Bool
			r.fs.hook = func(op, _ string) error {
				if op == "write" && !fired.Swap(true) {
					return change(path)
				}
				return nil
			}
			code, _, errOut := r.run("put", path, "/big")
			if !fired.Load() {
				t.Fatal("the change did not happen")
			}
			if code != 1 || !strings.Contains(errOut, "put: `"+path+"': "+name) {
				t.Errorf("exit %d: %s", code, errOut)
			}
			if _, there := r.fs.content("/big"); there {
				t.Error("a half file is there")
			}
			r.noLeftovers()
		})
	}
}

// TestInterrupt interrupts copies at every operation in turn: no half file may be under a final name, no temporary
// name may stay.
func TestInterrupt(t *testing.T) {
	prepare := func(r *rig) {
		r.local("tree/big", bytesOf(2*copyBuffer+9))
		r.local("tree/small", "small")
		r.local("tree/sub/big", bytesOf(copyBuffer+1))
		r.place("/src/", "", recordedAt)
		r.place("/src/big", bytesOf(2*copyBuffer+9), recordedAt)
		r.place("/src/small", "small", recordedAt)
	}
	for _, line := range []string{"put -t 1 DIR/tree /dst", "cp -t 1 /src /dst", "get -t 1 /src DIR/dst"} {
		t.Run(line[:3], func(t *testing.T) {
			for step := 1; ; step++ {
				r := newRig(t)
				prepare(r)
				ctx, fire := interruptedContext()
				var ops atomic.Int64
				r.fs.hook = func(string, string) error {
					if ops.Add(1) == int64(step) {
						fire()
					}
					return nil
				}
				code, _, errOut := r.runContext(ctx, strings.Fields(strings.ReplaceAll(line, "DIR", r.dir))...)
				r.fs.hook = nil
				if ops.Load() < int64(step) {
					if code != 0 || step < 5 {
						t.Fatalf("without an interrupt: exit %d after %d operations\n%s", code, ops.Load(), errOut)
					}
					return
				}
				if code != exitInterrupted {
					t.Errorf("step %d: exit %d\n%s", step, code, errOut)
				}
				r.noLeftovers()
				for path, want := range map[string]string{
					"/dst/big": bytesOf(2*copyBuffer + 9), "/dst/small": "small", "/dst/sub/big": bytesOf(copyBuffer + 1),
				} {
					got, there := r.fs.content(path)
					if b, err := os.ReadFile(filepath.Join(r.dir, path)); err == nil {
						got, there = string(b), true
					}
					if there && got != want {
						t.Errorf("step %d: %s holds %d of %d bytes", step, path, len(got), len(want))
					}
				}
			}
		})
	}
}

// TestClusterFails fails every operation in turn for good: the copy ends, says so, and leaves nothing half.
func TestClusterFails(t *testing.T) {
	for step := 1; ; step++ {
		r := newRig(t)
		r.local("tree/big", bytesOf(2*copyBuffer+9))
		r.local("tree/small", "small")
		var ops atomic.Int64
		r.fs.hook = func(op, path string) error {
			if n := ops.Add(1); n >= int64(step) && n < int64(step)+3 && op != "remove" {
				return &fs.PathError{Op: op, Path: path, Err: dfserr.Errorf(dfserr.ErrNoSpace, "every chunkserver is full")}
			}
			return nil
		}
		code, _, errOut := r.run("put", "-t", "1", filepath.Join(r.dir, "tree"), "/dst")
		r.fs.hook = nil
		if ops.Load() < int64(step) {
			if code != 0 || step < 5 {
				t.Fatalf("without a failure: exit %d after %d operations\n%s", code, ops.Load(), errOut)
			}
			return
		}
		if code != 1 || !strings.Contains(strings.ToLower(errOut), "every chunkserver is full: no space left") {
			t.Errorf("step %d: exit %d\n%s", step, code, errOut)
		}
		r.noLeftovers()
		if got, there := r.fs.content("/dst/big"); there && got != bytesOf(2*copyBuffer+9) {
			t.Errorf("step %d: half a file", step)
		}
	}
}

func TestGetIntoFullDisk(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("no /dev/full")
	}
	r := newRig(t)
	r.place("/big", bytesOf(2*copyBuffer), recordedAt)
	code, _, errOut := r.run("get", "/big", "/dev/full")
	if code != 1 || errOut != "get: `/dev/full': No space left on device\n" {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

// TestGetMeetsFullDisk lets the file system run full in the middle of a get, by a limit on file size.
func TestGetMeetsFullDisk(t *testing.T) {
	r := newRig(t)
	r.place("/big", bytesOf(4*copyBuffer), recordedAt)
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: copyBuffer + 1, Max: was.Max}); err != nil {
		t.Skip(err)
	}
	path := filepath.Join(r.dir, "big")
	code, _, errOut := r.run("get", "/big", path)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	if code != 1 || errOut != "get: `"+path+"': File too large\n" {
		t.Errorf("exit %d: %s", code, errOut)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a half file is there")
	}
	r.noLeftovers()
}

func TestMoveFromLocal(t *testing.T) {
	r := newRig(t)
	a, b := r.local("a", "a"), r.local("b", "b")
	r.place("/d/", "", recordedAt)
	r.place("/d/b", "taken", recordedAt)
	if code, _, _ := r.run("moveFromLocal", a, b, "/d"); code != 1 {
		t.Errorf("exit %d", code)
	}
	if _, err := os.Stat(a); err != nil {
		t.Error("a local file was removed although not everything was stored")
	}
	r.ok("moveFromLocal", "-f", a, b, "/d")
	if _, err := os.Stat(a); err == nil {
		t.Error("the local file is still there")
	}
	if got := r.fs.names(); !slices.Equal(got, []string{"/d", "/d/a", "/d/b"}) {
		t.Errorf("the cluster holds %q", got)
	}
}

func TestTemporaryName(t *testing.T) {
	long := strings.Repeat("x", dfs.NameMax)
	a, b := temporaryName(long), temporaryName(long)
	if len(a) > dfs.NameMax || a == b || !strings.Contains(a, temporaryMark) {
		t.Errorf("temporary names %q and %q", a, b)
	}
}

func TestLinks(t *testing.T) {
	r := newRig(t)
	r.place("/f", "content", recordedAt)
	r.ok("ln", "-s", "/f", "/sym")
	r.ok("ln", "/f", "/hard")
	if got := r.ok("readlink", "/sym"); got != "/f\n" {
		t.Errorf("readlink printed %q", got)
	}
	if got := r.ok("cat", "/sym", "/hard"); got != "contentcontent" {
		t.Errorf("cat printed %q", got)
	}
	if got := r.ok("ls", "-d", "/sym"); !strings.HasPrefix(got, "lrwxrwxrwx   - root supergroup          0 ") || !strings.HasSuffix(got, " /sym -> /f\n") {
		t.Errorf("ls printed %q", got)
	}
	if got := r.ok("count", "/"); got != "           1            2                  7 /\n" {
		t.Errorf("count printed %q", got)
	}
	if code, _, errOut := r.run("readlink", "/f"); code != 1 || errOut != "readlink: `/f': Invalid argument: not a symbolic link\n" {
		t.Errorf("readlink of a file: exit %d %s", code, errOut)
	}
	r.ok("rm", "/sym")
	if got := strings.Join(r.fs.names(), " "); got != "/f /hard" {
		t.Errorf("after rm: %s", got)
	}
	if code, _, errOut := r.run("rm", "-r", "/"); code != 1 || !strings.HasPrefix(errOut, "rm: `/': Operation not permitted") {
		t.Errorf("rm -r /: exit %d %s", code, errOut)
	}
}
