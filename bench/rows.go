package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"dfs/client"
	"dfs/internal/dfs"
)

// rows is the table, in the order of the README.
func rows() []row {
	const smallBytes = 4 * dfs.KiB
	return append([]row{
		{name: "SDK write 1 GiB + Sync", unit: "MiB/s", target: 0.9, run: streamWrite, base: baseThreeFiles},
		{name: "SDK read 1 GiB, caches dropped", unit: "MiB/s", target: 0.8, run: streamReadCold, base: baseLocalRead},
		{name: "SDK read 1 GiB, warm", unit: "MiB/s", target: 0.5, run: streamReadWarm, base: baseTCP},
		{name: "random read 4 KiB, 16 callers on one file", unit: "/s", target: 0.5, run: randomRead, base: baseUnary(16, smallBytes)},
		{name: "append 4 KiB, one at a time", unit: "/s", target: 0.3, run: appendOne, base: baseUnary(1, 0)},
		{name: "append 4 KiB + Sync, one at a time", unit: "/s", target: 0.35, run: appendSync, base: baseAppendSync},
		{name: "record append 4 KiB, 16 writers on one file", unit: "/s", target: 1, run: recordAppend(16), base: recordAppend(1)},
		{name: "create empty file, 64 callers", unit: "/s", target: 2, run: createEmpty, base: baseAppendSync},
		{name: "mkdir, 64 callers", unit: "/s", target: 3.5, run: mkdirMany, base: baseAppendSync},
		{name: "rename, 64 callers", unit: "/s", target: 3.5, run: renameMany, base: baseAppendSync},
		{name: "remove, 64 callers", unit: "/s", target: 3.5, run: removeMany, base: baseAppendSync},
		{name: "write a 4 KiB file, 64 callers", unit: "/s", target: 1, run: writeSmall, base: baseAppendSync},
		{name: "open + read a 4 KiB file, 64 callers", unit: "/s", target: 0.3, run: readSmall, base: baseUnary(64, 0)},
		{name: "stat, 64 callers", unit: "/s", target: 0.6, run: statMany, base: baseUnary(64, 0)},
		{name: "list a directory of 10,000", unit: "entries/s", target: 500_000, run: listMany},
		{name: "put of the Go tree", unit: "s", target: 5, lower: true, run: putTree, base: baseCopyTree, rounds: 3},
		{name: "cold start, 20,000 files, until the first read", unit: "s", target: 2, lower: true, run: coldStart, rounds: 3},
		{name: "chunkserver heap allocated per GiB streamed", unit: "MiB", target: 32, lower: true, run: heapPerGiB, rounds: 1},
		{name: "master memory, 1 M files of one chunk", unit: "MiB", target: 600, lower: true, run: masterMemory, rounds: 1},
	}, mountRows()...)
}

const streamPath = "/bench-stream"

// streamWrite writes the stream through the SDK's write-behind, then Sync. MiB/s.
func streamWrite(ctx context.Context, e *env) (float64, error) {
	return e.streamed(func() error {
		f, err := e.c.Create(ctx, streamPath, 0o644)
		if err != nil {
			return err
		}
		w := f.Buffered()
		buf := randomBytes(dfs.MiB, 4)
		for done := int64(0); done < e.streamBytes; done += int64(len(buf)) {
			if _, err := w.Write(buf); err != nil {
				return errors.Join(err, f.Close())
			}
		}
		if err := w.Flush(ctx); err != nil {
			return errors.Join(err, f.Close())
		}
		if err := f.Sync(ctx); err != nil {
			return errors.Join(err, f.Close())
		}
		return f.Close()
	})
}

// ensureStream makes the stream's file if no row has yet.
func ensureStream(ctx context.Context, e *env) error {
	if i, err := e.c.Stat(ctx, streamPath); err == nil && i.Size() == e.streamBytes {
		return nil
	}
	_, err := streamWrite(ctx, e)
	e.cpuPerGiB = nil
	return err
}

func streamReadCold(ctx context.Context, e *env) (float64, error) {
	if err := ensureStream(ctx, e); err != nil {
		return 0, err
	}
	if err := dropCaches(); err != nil {
		return 0, err
	}
	return streamRead(ctx, e)
}

func streamReadWarm(ctx context.Context, e *env) (float64, error) {
	if err := ensureStream(ctx, e); err != nil {
		return 0, err
	}
	if len(e.cpuPerGiB) == 0 {
		if _, err := streamRead(ctx, e); err != nil { // fills the page cache
			return 0, err
		}
		e.cpuPerGiB = nil
	}
	return streamRead(ctx, e)
}

func streamRead(ctx context.Context, e *env) (float64, error) {
	return e.streamed(func() error {
		f, err := e.c.Open(ctx, streamPath)
		if err != nil {
			return err
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, dfs.MiB))
		if err == nil && n != e.streamBytes {
			err = fmt.Errorf("read %d bytes of %d", n, e.streamBytes)
		}
		return errors.Join(err, f.Close())
	})
}

// randomRead reads aligned 4 KiB blocks at random. Per second.
func randomRead(ctx context.Context, e *env) (float64, error) {
	if err := ensureStream(ctx, e); err != nil {
		return 0, err
	}
	f, err := e.c.Open(ctx, streamPath)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	const callers = 16
	bufs := make([][4 * dfs.KiB]byte, callers)
	blocks := uint64(e.streamBytes / (4 * dfs.KiB))
	return e.callRate(ctx, callers, func(_ context.Context, caller, i int) error {
		x := uint64(caller)<<32 + uint64(i) // splitmix64 makes it random
		x += 0x9e3779b97f4a7c15
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		_, err := f.ReadAt(bufs[caller][:], int64((x^x>>31)%blocks)*4*dfs.KiB)
		return err
	})
}

func appendOne(ctx context.Context, e *env) (float64, error) { return appendRate(ctx, e, false) }

func appendSync(ctx context.Context, e *env) (float64, error) { return appendRate(ctx, e, true) }

// appendRate appends 4 KiB at a time. Per second.
func appendRate(ctx context.Context, e *env, sync bool) (float64, error) {
	path := e.fresh("append")
	f, err := e.c.Create(ctx, path, 0o644)
	if err != nil {
		return 0, err
	}
	buf := randomBytes(4*dfs.KiB, 5)
	rate, err := e.callRate(ctx, 1, func(ctx context.Context, _, _ int) error {
		if _, err := f.Append(ctx, buf); err != nil || !sync {
			return err
		}
		return f.Sync(ctx)
	})
	return rate, errors.Join(err, f.Close(), e.c.Remove(ctx, path))
}

// recordAppend appends 4 KiB records to one file from n writers, each with its own handle. Per second, all together.
func recordAppend(n int) func(context.Context, *env) (float64, error) {
	return func(ctx context.Context, e *env) (float64, error) {
		path := e.fresh("records")
		files := make([]*client.File, n)
		for i := range files {
			f, err := e.c.OpenFile(ctx, path, os.O_RDWR|os.O_CREATE, 0o644)
			if err != nil {
				return 0, err
			}
			defer f.Close()
			files[i] = f
		}
		buf := randomBytes(4*dfs.KiB, 6)
		return e.callRate(ctx, n, func(ctx context.Context, caller, _ int) error {
			_, err := files[caller].AppendRecord(ctx, buf)
			return err
		})
	}
}

const callers = 64

// perCaller gives each caller a directory of its own, so that the rate is the master's and not one directory's.
func perCaller(ctx context.Context, e *env, prefix string) (string, error) {
	base := e.fresh(prefix)
	before, err := e.c.StatFS(ctx)
	if err != nil {
		return "", err
	}
	e.inodes = before.Inodes
	for i := range callers {
		if err := e.c.MkdirAll(ctx, fmt.Sprintf("%s/%d", base, i), 0o755); err != nil {
			return "", err
		}
	}
	return base, nil
}

// clear removes what a round made since perCaller and waits until it has been reclaimed, so that the next round does not share the machine with that.
func (e *env) clear(ctx context.Context, base string) error {
	if err := e.c.RemoveAll(ctx, base); err != nil {
		return err
	}
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for {
		s, err := e.c.StatFS(ctx)
		if err != nil || s.Inodes <= e.inodes {
			return err
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// namesRate runs call, with names that are new each time, and removes what it made.
func namesRate(ctx context.Context, e *env, prefix string, call func(ctx context.Context, path string) error) (float64, error) {
	base, err := perCaller(ctx, e, prefix)
	if err != nil {
		return 0, err
	}
	rate, err := e.callRate(ctx, callers, func(ctx context.Context, caller, i int) error {
		return call(ctx, fmt.Sprintf("%s/%d/n%d", base, caller, i))
	})
	return rate, errors.Join(err, e.clear(ctx, base))
}

func createEmpty(ctx context.Context, e *env) (float64, error) {
	return namesRate(ctx, e, "create", func(ctx context.Context, path string) error {
		f, err := e.c.OpenFile(ctx, path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	})
}

func mkdirMany(ctx context.Context, e *env) (float64, error) {
	return namesRate(ctx, e, "mkdir", func(ctx context.Context, path string) error { return e.c.Mkdir(ctx, path, 0o755) })
}

func writeSmall(ctx context.Context, e *env) (float64, error) {
	data := randomBytes(4*dfs.KiB, 7)
	return namesRate(ctx, e, "small", func(ctx context.Context, path string) error { return e.c.WriteFile(ctx, path, data, 0o644) })
}

func renameMany(ctx context.Context, e *env) (float64, error) {
	base, err := perCaller(ctx, e, "rename")
	if err != nil {
		return 0, err
	}
	name := func(caller, i int) string { return fmt.Sprintf("%s/%d/n%d", base, caller, i) }
	for i := range callers {
		if err := e.c.WriteFile(ctx, name(i, 0), nil, 0o644); err != nil {
			return 0, err
		}
	}
	rate, err := e.callRate(ctx, callers, func(ctx context.Context, caller, i int) error {
		return e.c.Rename(ctx, name(caller, i), name(caller, i+1))
	})
	return rate, errors.Join(err, e.clear(ctx, base))
}

// removeMany removes files that it makes beforehand.
func removeMany(ctx context.Context, e *env) (float64, error) {
	const each = 100
	base, err := perCaller(ctx, e, "remove")
	if err != nil {
		return 0, err
	}
	name := func(caller, i int) string { return fmt.Sprintf("%s/%d/n%d", base, caller, i) }
	if err := forAll(callers, func(caller int) error {
		for i := range each {
			if err := e.c.WriteFile(ctx, name(caller, i), nil, 0o644); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return 0, err
	}
	cpu, began := e.cpuSeconds(), time.Now()
	err = forAll(callers, func(caller int) error {
		for i := range each {
			if err := e.c.Remove(ctx, name(caller, i)); err != nil {
				return err
			}
		}
		return nil
	})
	took := time.Since(began)
	e.noteCalls(cpu, callers*each)
	return callers * each / took.Seconds(), errors.Join(err, e.clear(ctx, base))
}

// forAll runs f for 0 … n-1 at once and returns one of the errors.
func forAll(n int, f func(i int) error) error {
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- f(i) }()
	}
	var first error
	for range n {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// smallFiles makes 64 directories of 100 files of 4 KiB, once.
func smallFiles(ctx context.Context, e *env) (func(caller, i int) string, error) {
	const base, each = "/bench-small", 100
	name := func(caller, i int) string { return fmt.Sprintf("%s/%d/f%d", base, caller, i%each) }
	if _, err := e.c.Stat(ctx, name(callers-1, each-1)); err == nil {
		return name, nil
	}
	data := randomBytes(4*dfs.KiB, 8)
	return name, forAll(callers, func(caller int) error {
		if err := e.c.MkdirAll(ctx, fmt.Sprintf("%s/%d", base, caller), 0o755); err != nil {
			return err
		}
		for i := range each {
			if err := e.c.WriteFile(ctx, name(caller, i), data, 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

func readSmall(ctx context.Context, e *env) (float64, error) {
	name, err := smallFiles(ctx, e)
	if err != nil {
		return 0, err
	}
	return e.callRate(ctx, callers, func(ctx context.Context, caller, i int) error {
		b, err := e.c.ReadFile(ctx, name(caller, i))
		if err == nil && len(b) != 4*dfs.KiB {
			err = fmt.Errorf("read %d bytes", len(b))
		}
		return err
	})
}

func statMany(ctx context.Context, e *env) (float64, error) {
	name, err := smallFiles(ctx, e)
	if err != nil {
		return 0, err
	}
	return e.callRate(ctx, callers, func(ctx context.Context, caller, i int) error {
		_, err := e.c.Stat(ctx, name(caller, i))
		return err
	})
}

// listMany lists a directory of 10,000 files with their attributes. Entries per second.
func listMany(ctx context.Context, e *env) (float64, error) {
	const dir, n = "/bench-list", 10_000
	if _, err := e.c.Stat(ctx, dir); err != nil {
		if err := e.c.MkdirAll(ctx, dir, 0o755); err != nil {
			return 0, err
		}
		if err := forAll(callers, func(caller int) error {
			for i := caller; i < n; i += callers {
				if err := e.c.WriteFile(ctx, fmt.Sprintf("%s/file-%05d", dir, i), nil, 0o644); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return 0, err
		}
	}
	times := 0
	began := time.Now()
	for ; time.Since(began) < e.window; times++ {
		entries, err := e.c.ReadDir(ctx, dir)
		if err != nil {
			return 0, err
		}
		if len(entries) != n {
			return 0, fmt.Errorf("listed %d entries of %d", len(entries), n)
		}
	}
	return float64(times*n) / time.Since(began).Seconds(), nil
}
