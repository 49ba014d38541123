package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// source is something to copy from: a local file or one of the cluster.
type source interface {
	// Shown is how messages name it.
	Shown() string
	// Base is its last name.
	Base() string
	Info() sourceInfo
	// Open opens a regular file.
	Open(ctx context.Context) (sourceFile, error)
	// List gives the entries of a directory.
	List(ctx context.Context) ([]source, error)
	// Target is what a symbolic link says.
	Target() (string, error)
}

// sourceInfo is what a copy keeps of a source.
type sourceInfo struct {
	mode         fs.FileMode
	size         int64
	atime, mtime time.Time
	uid, gid     int
}

// sourceFile is an open source. Unchanged fails if the file is not what it was when it was opened; n is how many
// bytes were read.
type sourceFile interface {
	io.Reader
	Unchanged(n int64) error
	Close() error
}

// localSource is a file of this machine.
type localSource struct {
	path string
	info fs.FileInfo
}

// openLocal looks a local path up; follow says whether a last link is followed.
func openLocal(path string, follow bool) (localSource, error) {
	stat := os.Lstat
	if follow {
		stat = os.Stat
	}
	info, err := stat(path)
	return localSource{path: path, info: info}, about(path, err)
}

func (s localSource) Shown() string { return s.path }

func (s localSource) Base() string {
	base := filepath.Base(s.path)
	if base == "." || base == ".." {
		if abs, err := filepath.Abs(s.path); err == nil {
			base = filepath.Base(abs)
		}
	}
	if base == "/" {
		return ""
	}
	return base
}

func (s localSource) Info() sourceInfo {
	i := sourceInfo{mode: s.info.Mode(), size: s.info.Size(), mtime: s.info.ModTime(), atime: s.info.ModTime(), uid: -1, gid: -1}
	if st, ok := s.info.Sys().(*syscall.Stat_t); ok {
		i.atime = time.Unix(st.Atim.Unix())
		i.uid, i.gid = int(st.Uid), int(st.Gid)
	}
	return i
}

func (s localSource) Open(ctx context.Context) (sourceFile, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return nil, about(s.path, err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, about(s.path, err)
	}
	file := &localFile{File: f, path: s.path, was: info}
	if !info.Mode().IsRegular() {
		return streamThrough{interruptibleReader{ctx, f}, file}, nil
	}
	return file, nil
}

// streamThrough reads a pipe or a device in a way that an interrupt ends.
type streamThrough struct {
	io.Reader
	*localFile
}

// Read reads from the stream.
func (s streamThrough) Read(p []byte) (int, error) { return s.Reader.Read(p) }

// interruptibleReader reads from a stream that may stay silent for ever, and gives up when ctx ends. The read that was
// going on then is left behind: it holds one buffer until the stream or the process ends.
type interruptibleReader struct {
	ctx context.Context
	r   io.Reader
}

func (r interruptibleReader) Read(p []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	buf := make([]byte, min(len(p), 64<<10))
	done := make(chan result, 1)
	go func() {
		n, err := r.r.Read(buf)
		done <- result{n, err}
	}()
	select {
	case got := <-done:
		return copy(p, buf[:got.n]), got.err
	case <-r.ctx.Done():
		return 0, r.ctx.Err()
	}
}

func (s localSource) List(ctx context.Context) ([]source, error) {
	entries, err := os.ReadDir(s.path)
	if err != nil {
		return nil, about(s.path, err)
	}
	var items []source
	for _, e := range entries {
		item, err := openLocal(filepath.Join(s.path, e.Name()), false)
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, ctx.Err()
}

func (s localSource) Target() (string, error) { return os.Readlink(s.path) }

// localFile is an open local file that knows what it was like when it was opened.
type localFile struct {
	*os.File
	path string
	was  fs.FileInfo
}

// Unchanged compares the open file with what it was, and its name with the open file.
func (f *localFile) Unchanged(n int64) error {
	if !f.was.Mode().IsRegular() {
		return nil // a pipe or a device has no state to compare
	}
	now, err := f.Stat()
	if err != nil {
		return about(f.path, err)
	}
	switch {
	case n != f.was.Size() || now.Size() != f.was.Size():
		return failuref(f.path, "changed while it was read (it had %d bytes, %d were read, now it has %d); nothing was stored, try again when nobody writes to it",
			f.was.Size(), n, now.Size())
	case !now.ModTime().Equal(f.was.ModTime()):
		return failuref(f.path, "changed while it was read (it was modified at %s); nothing was stored, try again when nobody writes to it",
			now.ModTime().Format(time.RFC3339Nano))
	}
	named, err := os.Stat(f.path)
	if err != nil {
		return failuref(f.path, "vanished while it was read; nothing was stored")
	}
	if !os.SameFile(named, now) {
		return failuref(f.path, "was replaced while it was read; nothing was stored, try again")
	}
	return nil
}

// localArgs turns a local argument into paths: a pattern that is not itself a file's name is expanded.
func localArgs(arg string) []string {
	path := localPath(arg)
	if _, err := os.Lstat(path); err == nil || !hasMeta(path) {
		return []string{path}
	}
	matches, err := filepath.Glob(path)
	if err != nil || len(matches) == 0 {
		return []string{path}
	}
	return matches
}

// localPath strips file:// from a local argument and a trailing slash from anything but the root.
func localPath(arg string) string {
	arg = strings.TrimPrefix(arg, "file://")
	return trimSlashes(arg)
}

// streamSource is standard input.
type streamSource struct{ r io.Reader }

func (s streamSource) Shown() string { return "-" }
func (s streamSource) Base() string  { return "" }
func (s streamSource) Info() sourceInfo {
	return sourceInfo{uid: -1, gid: -1}
}

func (s streamSource) Open(ctx context.Context) (sourceFile, error) {
	return streamFile{interruptibleReader{ctx, s.r}}, nil
}
func (s streamSource) List(context.Context) ([]source, error) { return nil, dfserr.ErrNotDir }
func (s streamSource) Target() (string, error)                { return "", dfserr.ErrInvalid }

type streamFile struct{ io.Reader }

func (streamFile) Unchanged(int64) error { return nil }
func (streamFile) Close() error          { return nil }

// remoteSource is a file of the cluster.
type remoteSource struct {
	sh *shell
	o  operand
}

func (s remoteSource) Shown() string { return s.o.shown }
func (s remoteSource) Base() string  { return s.o.base() }

func (s remoteSource) Info() sourceInfo {
	i := s.o.info
	return sourceInfo{mode: i.Mode, size: i.Size, atime: i.ATime, mtime: i.MTime, uid: int(i.UID), gid: int(i.GID)}
}

func (s remoteSource) Open(ctx context.Context) (sourceFile, error) {
	r, err := s.sh.fs.Open(ctx, s.o.path)
	if err != nil {
		return nil, about(s.o.shown, err)
	}
	return remoteFile{r}, nil
}

func (s remoteSource) List(ctx context.Context) ([]source, error) {
	items, err := s.sh.list(ctx, s.o)
	if err != nil {
		return nil, err
	}
	sources := make([]source, len(items))
	for i, item := range items {
		if err := dfs.CheckName([]byte(item.info.Name)); err != nil {
			return nil, about(item.shown, err)
		}
		sources[i] = remoteSource{sh: s.sh, o: item}
	}
	return sources, nil
}

func (s remoteSource) Target() (string, error) { return s.o.info.Target, nil }

type remoteFile struct{ reader }

// Unchanged has nothing to compare: what the SDK returned was the file.
func (remoteFile) Unchanged(int64) error { return nil }

// kindError says that a source cannot be copied for what it is.
func kindError(s source) error {
	return &operandError{
		path: s.Shown(), err: dfserr.ErrUnsupported,
		text: fmt.Sprintf("is a %s: only files, directories and symbolic links are copied", typeText(s.Info().mode)),
	}
}
