package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"dfs/internal/dfserr"
)

func runGet(ctx context.Context, sh *shell, args []string) error {
	dst, from := ".", args
	if last := len(args) - 1; last > 0 {
		dst, from = args[last], args[:last]
	}
	if dst == "-" {
		return runCat(ctx, sh, from)
	}
	asDir := len(dst) > 1 && dst[len(dst)-1] == '/'
	dst = localPath(dst)
	sources := sh.expandAll(ctx, from, true)
	into, err := localDestination(dst, len(sources), sh.opts.on("f"), asDir)
	if err != nil {
		return err
	}
	keep := sh.opts.on("p")
	c, work, err := sh.startCopying(ctx, preserved{times: keep, owner: keep, mode: keep}, false)
	if err != nil {
		return err
	}
	var stop func()
	c.bar, stop = sh.startProgress()
	defer stop()
	err = sh.eachItem(work, sources, nil, func(src operand) error {
		target := dst
		if into {
			if src.base() == "" && !src.isDir() {
				return failuref(src.shown, "has no name of its own; give the full destination")
			}
			target = filepath.Join(dst, src.base())
		}
		return c.download(work, remoteSource{sh: sh, o: src}, target)
	})
	return cmp.Or(c.wait(ctx), err)
}

// localDestination applies the rules of destination to a local path; into says that it is a directory.
func localDestination(dst string, sources int, overwrite, asDir bool) (into bool, err error) {
	info, err := os.Stat(dst)
	switch {
	case err == nil && info.IsDir():
		return true, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, about(dst, err)
	case sources > 1 && err != nil:
		return false, failure(dst, fs.ErrNotExist)
	case sources > 1 || err == nil && asDir:
		return false, failure(dst, dfserr.ErrNotDir)
	case err == nil && !overwrite && info.Mode().IsRegular():
		return false, failure(dst, fs.ErrExist)
	case err != nil:
		if _, parentErr := os.Stat(filepath.Dir(dst)); parentErr != nil || asDir {
			full, absErr := filepath.Abs(dst)
			if absErr != nil {
				full = dst
			}
			return false, &operandError{path: dst, text: describe(fs.ErrNotExist), full: "file://" + full, err: fs.ErrNotExist}
		}
	}
	return false, nil
}

// download copies src to a local path with everything below it.
func (c *copying) download(ctx context.Context, src source, target string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	info := src.Info()
	switch {
	case info.mode.IsDir():
		return c.downloadDir(ctx, src, target)
	case info.mode&fs.ModeSymlink != 0:
		c.spawn(func() error { return c.downloadLink(src, target) })
	case info.mode.IsRegular():
		c.bar.expect(info.size)
		c.spawn(func() error { return c.downloadFile(ctx, src, target) })
	default:
		return kindError(src)
	}
	return nil
}

func (c *copying) downloadDir(ctx context.Context, src source, target string) error {
	err := os.Mkdir(target, 0o777&^c.sh.env.umask|0o700)
	if errors.Is(err, fs.ErrExist) {
		info, statErr := os.Stat(target)
		switch {
		case statErr != nil:
			return about(target, statErr)
		case !info.IsDir():
			return failure(target, dfserr.ErrNotDir)
		}
		err = nil
	}
	if err != nil {
		return about(target, err)
	}
	items, err := src.List(ctx)
	if err != nil {
		return about(src.Shown(), err)
	}
	for _, item := range items {
		err := c.download(ctx, item, filepath.Join(target, item.Base()))
		if err != nil && (fatal(err) || ctx.Err() != nil) {
			return err
		}
		c.sh.fail(err)
	}
	c.later(func(context.Context) error {
		if err := c.keepLocal(src, target); err != nil {
			return about(target, err)
		}
		return about(target, syncDir(target))
	})
	return nil
}

func (c *copying) downloadLink(src source, target string) error {
	to, err := src.Target()
	if err != nil {
		return about(src.Shown(), err)
	}
	err = os.Symlink(to, target)
	if errors.Is(err, fs.ErrExist) && c.force {
		temp := filepath.Join(filepath.Dir(target), temporaryName(filepath.Base(target)))
		if err = os.Symlink(to, temp); err == nil {
			if err = os.Rename(temp, target); err != nil {
				err = errors.Join(err, os.Remove(temp))
			}
		}
	}
	if err == nil {
		c.bar.finished()
	}
	return about(target, err)
}

func (c *copying) downloadFile(ctx context.Context, src source, target string) error {
	t := localTarget{perm: 0o666 &^ c.sh.env.umask, replace: c.force}
	if c.keep != (preserved{}) {
		t.finish = func(temp string) error { return c.keepLocal(src, temp) }
	}
	err := c.sh.storeLocal(ctx, target, t, func(w io.Writer) error {
		f, err := src.Open(ctx)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = pour(ctx, progressWriter{w: w, p: c.bar}, named{f, src.Shown()})
		return err
	})
	if err == nil {
		c.bar.finished()
	}
	return about(target, err)
}

// named is a reader whose failures name what was read.
type named struct {
	r     io.Reader
	shown string
}

func (n named) Read(p []byte) (int, error) {
	m, err := n.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = about(n.shown, err)
	}
	return m, err
}

// keepLocal gives a local path the attributes of src that the options ask for.
func (c *copying) keepLocal(src source, path string) error {
	info := src.Info()
	if c.keep.owner {
		now, err := openLocal(path, false)
		if err != nil {
			return err
		}
		if was := now.Info(); was.uid != info.uid || was.gid != info.gid {
			if err := os.Lchown(path, info.uid, info.gid); err != nil {
				return fmt.Errorf("cannot keep the owner %d:%d: %w", info.uid, info.gid, err)
			}
		}
	}
	if c.keep.mode {
		if err := os.Chmod(path, bitsMode(modeBits(info.mode))); err != nil {
			return err
		}
	}
	if c.keep.times {
		return os.Chtimes(path, info.atime, info.mtime)
	}
	return nil
}

// localTarget says how storeLocal makes a file.
type localTarget struct {
	perm    fs.FileMode
	replace bool
	finish  func(temp string) error // sets attributes before the file gets its name
}

// storeLocal writes a local file so that its name appears when it is complete and on stable storage, or not at all:
// fill writes to a temporary name in the same directory, which is synced and renamed. A device or pipe is written
// as it is.
func (sh *shell) storeLocal(ctx context.Context, path string, t localTarget, fill func(io.Writer) error) (err error) {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return failure(path, dfserr.ErrIsDir)
	case err == nil && !info.Mode().IsRegular():
		return fillDevice(path, fill)
	case err == nil && !t.replace:
		return failure(path, fs.ErrExist)
	}
	temp := filepath.Join(filepath.Dir(path), temporaryName(filepath.Base(path)))
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return about(path, err)
	}
	defer func() {
		if err == nil {
			return
		}
		f.Close() //nolint:errcheck // already failed, or closed
		if removeErr := os.Remove(temp); removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
			sh.note("%s: `%s': could not be removed (%s); it is an unfinished copy", sh.as, temp, describe(removeErr))
		}
	}()
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Chmod(t.perm); err != nil {
		return about(path, err)
	}
	if t.finish != nil {
		if err := t.finish(temp); err != nil {
			return about(path, err)
		}
	}
	if err := f.Sync(); err != nil {
		return about(path, err)
	}
	if err := f.Close(); err != nil {
		return about(path, err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return about(path, renameLocal(temp, path, t.replace))
}

func fillDevice(path string, fill func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return about(path, err)
	}
	err = fill(f)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return about(path, err)
}

// renameLocal moves temp to path; without replace it fails if path has come into being meanwhile. A file system that
// has no such rename gets a look before the move.
func renameLocal(temp, path string, replace bool) error {
	if !replace {
		err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
		if err == nil || errors.Is(err, fs.ErrExist) {
			return err
		}
		if _, statErr := os.Lstat(path); statErr == nil {
			return fs.ErrExist
		}
	}
	return os.Rename(temp, path)
}

// syncDir makes the names in a local directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if closeErr := d.Close(); err == nil {
		err = closeErr
	}
	return err
}
