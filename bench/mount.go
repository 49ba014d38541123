package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"dfs/internal/dfs"
)

// The rows of the mount: the same work in a directory of the mount and in one of the local disk, in the same run.

// mountThreads is how many threads the rows with threads use.
const mountThreads = 8

// mountFiles is how many files the rows that count files make.
const mountFiles = 4096

// work does something in an empty directory and returns a figure.
type work func(ctx context.Context, e *env, dir string) (float64, error)

// mountRows are the table of the mount. Where the target is a figure and not a ratio, the base is there to compare.
func mountRows() []row {
	figure := func(name string, target float64, w work) row {
		return row{name: "mount: " + name, unit: "/s", target: target, absolute: true, run: onMount(w), base: onDisk(w)}
	}
	seconds := func(name string, target float64, absolute bool, w work) row {
		return row{name: "mount: " + name, unit: "s", target: target, absolute: absolute, lower: true, run: onMount(w), base: onDisk(w), rounds: 3}
	}
	return []row{
		{name: "mount: sequential write 1 GiB + fsync", unit: "MiB/s", target: 0.5, run: onMount(writeStream), base: baseThreeFiles},
		{name: "mount: sequential read 1 GiB, caches dropped", unit: "MiB/s", target: 0.6, run: onMount(readStreamCold), base: onDisk(readStreamCold)},
		{name: "mount: sequential read 1 GiB, warm", unit: "MiB/s", target: 0.9, run: onMount(readStreamWarm), base: onDisk(readStreamWarm)},
		figure("random read 4 KiB, 8 threads, cold", 5000, randomReads),
		figure("random write 4 KiB, 8 threads, one fsync", 5000, randomWrites),
		{name: "mount: append 4 KiB + fsync", unit: "/s", target: 0.25, run: onMount(appendFsync), base: onDisk(appendFsync)},
		figure("create + close, 8 threads", 6500, creating(0)),
		figure("create + write 4 KiB + close, 8 threads", 2000, creating(4*dfs.KiB)),
		figure("open + read 4 KiB + close, cold, 8 threads", 4000, readingCold),
		figure("stat, cold, 8 threads", 12_000, statCold),
		figure("readdir, cold (entries)", 200_000, listingCold),
		figure("rename, 8 threads", 4000, renaming),
		figure("unlink, 8 threads", 6900, unlinking),
		seconds("cp of the Go tree", 30, true, copyTree),
		seconds("git add + commit + gc + clone of Go's src/cmd", 20, true, gitWork),
		seconds("go build of dfs, empty cache", 1.2, false, goBuild),
	}
}

// onMount returns the measurement of w on the mount, which the first row to need it makes.
func onMount(w work) func(context.Context, *env) (float64, error) {
	return func(ctx context.Context, e *env) (float64, error) {
		if e.mount == "" {
			dir := filepath.Join(e.dir, "mnt")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return 0, err
			}
			cmd := exec.CommandContext(ctx, e.bin, "mount", "-d", strings.Join(e.cluster.Masters(), ","), dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				return 0, fmt.Errorf("dfs mount: %w: %s", err, bytes.TrimSpace(out))
			}
			e.mount = dir
		}
		return in(ctx, e, e.mount, w)
	}
}

// onDisk returns the measurement of w on the local disk.
func onDisk(w work) func(context.Context, *env) (float64, error) {
	return func(ctx context.Context, e *env) (float64, error) {
		cpu := e.cpuPerGiB
		defer func() { e.cpuPerGiB = cpu }() // the row's alone
		return in(ctx, e, e.dir, w)
	}
}

// in does w in a directory of its own below parent.
func in(ctx context.Context, e *env, parent string, w work) (_ float64, err error) {
	dir := filepath.Join(parent, e.fresh("work"))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return w(ctx, e, dir)
}

// unmount takes the mount away, if there is one.
func (e *env) unmount() error {
	if e.mount == "" {
		return nil
	}
	if out, err := exec.Command(e.bin, "umount", e.mount).CombinedOutput(); err != nil {
		return fmt.Errorf("dfs umount: %w: %s", err, bytes.TrimSpace(out))
	}
	e.mount = ""
	return nil
}

// mountPID returns the process that serves the mount, as it says itself; 0 if there is none.
func (e *env) mountPID() int {
	config, err := os.ReadFile(filepath.Join(e.mount, ".dfs", "config"))
	if e.mount == "" || err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(config), "\npid = ")
	line, _, _ := strings.Cut(rest, "\n")
	pid, _ := strconv.Atoi(line)
	return pid
}

func writeStream(_ context.Context, e *env, dir string) (float64, error) {
	return e.streamed(func() error { return writeLocal(filepath.Join(dir, "stream"), e.streamBytes) })
}

// readFileWhole reads a file from begin to end, 1 MiB at a time.
func readFileWhole(name string, want int64) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, dfs.MiB))
	if err == nil && n != want {
		err = fmt.Errorf("read %d bytes of %d", n, want)
	}
	return err
}

func readStream(e *env, dir string, between func() error) (float64, error) {
	name := filepath.Join(dir, "stream")
	if err := writeLocal(name, e.streamBytes); err != nil {
		return 0, err
	}
	if err := between(); err != nil {
		return 0, err
	}
	return e.streamed(func() error { return readFileWhole(name, e.streamBytes) })
}

func readStreamCold(_ context.Context, e *env, dir string) (float64, error) {
	return readStream(e, dir, dropCaches)
}

func readStreamWarm(_ context.Context, e *env, dir string) (float64, error) {
	return readStream(e, dir, func() error { return readFileWhole(filepath.Join(dir, "stream"), e.streamBytes) })
}

// randomOnFile lets threads do 4 KiB operations at random aligned places of one file of the stream's size, for the window. Per second.
func randomOnFile(ctx context.Context, e *env, dir string, do func(f *os.File, p []byte, off int64) error) (float64, error) {
	name := filepath.Join(dir, "stream")
	if err := writeLocal(name, e.streamBytes); err != nil {
		return 0, err
	}
	if err := dropCaches(); err != nil {
		return 0, err
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	const block = 4 * dfs.KiB
	began := time.Now()
	var done atomic.Int64
	if _, err := e.callRate(ctx, mountThreads, func(_ context.Context, _, _ int) error {
		done.Add(1)
		return do(f, make([]byte, block), rand.Int64N(e.streamBytes/block)*block)
	}); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	return float64(done.Load()) / time.Since(began).Seconds(), nil
}

func randomReads(ctx context.Context, e *env, dir string) (float64, error) {
	return randomOnFile(ctx, e, dir, func(f *os.File, p []byte, off int64) error {
		_, err := f.ReadAt(p, off)
		return err
	})
}

func randomWrites(ctx context.Context, e *env, dir string) (float64, error) {
	return randomOnFile(ctx, e, dir, func(f *os.File, p []byte, off int64) error {
		_, err := f.WriteAt(p, off)
		return err
	})
}

func appendFsync(ctx context.Context, e *env, dir string) (float64, error) {
	f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	record := randomBytes(4*dfs.KiB, 6)
	return e.callRate(ctx, 1, func(context.Context, int, int) error {
		if _, err := f.Write(record); err != nil {
			return err
		}
		return f.Sync()
	})
}

// creating makes files of n bytes, each thread in a directory of its own, for the window. Per second.
func creating(n int) work {
	return func(ctx context.Context, e *env, dir string) (float64, error) {
		if err := threadDirs(dir); err != nil {
			return 0, err
		}
		data := randomBytes(n, 7)
		return e.callRate(ctx, mountThreads, func(_ context.Context, thread, i int) error {
			f, err := os.OpenFile(threadFile(dir, thread, i), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			if n > 0 {
				_, err = f.Write(data)
			}
			return errors.Join(err, f.Close())
		})
	}
}

func threadDirs(dir string) error {
	for thread := range mountThreads {
		if err := os.Mkdir(filepath.Join(dir, strconv.Itoa(thread)), 0o755); err != nil {
			return err
		}
	}
	return nil
}

func threadFile(dir string, thread, i int) string {
	return filepath.Join(dir, strconv.Itoa(thread), fmt.Sprintf("file-%06d", i))
}

// eachFile makes mountFiles files of n bytes, drops the caches if cold, and lets the threads do something to each. Files per second.
func eachFile(n int, cold bool, do func(name string) error) work {
	return func(ctx context.Context, _ *env, dir string) (float64, error) {
		if err := threadDirs(dir); err != nil {
			return 0, err
		}
		data := randomBytes(n, 8)
		all := func(do func(name string) error) error {
			return forAll(mountThreads, func(thread int) error {
				for i := range mountFiles / mountThreads {
					if err := errors.Join(ctx.Err(), do(threadFile(dir, thread, i))); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := all(func(name string) error { return os.WriteFile(name, data, 0o644) }); err != nil {
			return 0, err
		}
		if cold {
			if err := dropCaches(); err != nil {
				return 0, err
			}
		}
		began := time.Now()
		err := all(do)
		return mountFiles / time.Since(began).Seconds(), err
	}
}

func readingCold(ctx context.Context, e *env, dir string) (float64, error) {
	return eachFile(4*dfs.KiB, true, func(name string) error { return readFileWhole(name, 4*dfs.KiB) })(ctx, e, dir)
}

func statCold(ctx context.Context, e *env, dir string) (float64, error) {
	return eachFile(0, true, func(name string) error {
		_, err := os.Lstat(name)
		return err
	})(ctx, e, dir)
}

func renaming(ctx context.Context, e *env, dir string) (float64, error) {
	return eachFile(0, false, func(name string) error { return os.Rename(name, name+"-renamed") })(ctx, e, dir)
}

func unlinking(ctx context.Context, e *env, dir string) (float64, error) {
	return eachFile(0, false, os.Remove)(ctx, e, dir)
}

// listingCold lists a directory of 20,000 names. Entries per second.
func listingCold(ctx context.Context, _ *env, dir string) (float64, error) {
	const entries = 20_000
	if err := forAll(mountThreads, func(thread int) error {
		for i := thread; i < entries; i += mountThreads {
			f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("entry-%06d", i)), os.O_CREATE|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			if err := errors.Join(ctx.Err(), f.Close()); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return 0, err
	}
	if err := dropCaches(); err != nil {
		return 0, err
	}
	began := time.Now()
	d, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	names, err := d.Readdirnames(-1)
	took := time.Since(began)
	if err == nil && len(names) != entries {
		err = fmt.Errorf("%d names, want %d", len(names), entries)
	}
	return entries / took.Seconds(), errors.Join(err, d.Close())
}

// script runs a shell script in a directory. Seconds.
func script(ctx context.Context, dir, text string, env ...string) (float64, error) {
	cmd := exec.CommandContext(ctx, "sh", "-euc", text)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return time.Since(began).Seconds(), nil
}

func copyTree(ctx context.Context, e *env, dir string) (float64, error) {
	return script(ctx, dir, "cp -r $TREE tree; sync tree", "TREE="+e.tree)
}

func gitWork(ctx context.Context, e *env, dir string) (float64, error) {
	if _, err := script(ctx, dir, "cp -r $TREE/src/cmd repo", "TREE="+e.tree); err != nil {
		return 0, err
	}
	return script(ctx, dir, "cd repo; git init -q .; git add -A; git commit -qm all; git gc -q; cd ..; git clone -q repo clone",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b", "HOME="+e.dir)
}

// goBuild builds the sources of the working directory, with source and cache in dir.
func goBuild(ctx context.Context, _ *env, dir string) (float64, error) {
	if out, err := exec.CommandContext(ctx, "sh", "-euc", "git ls-files -z | xargs -0 cp --parents -t "+dir).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("copying the sources: %w: %s", err, bytes.TrimSpace(out))
	}
	return script(ctx, dir, "go build -o built ./cmd/dfs", "GOCACHE="+filepath.Join(dir, "cache"))
}
