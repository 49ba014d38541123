package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// filesInFlight is how many files a copy works on at a time unless -t says otherwise. An upload has smallFactor times as many
// under way while most of them are small: such a file is one request, and the master answers many of them together.
const (
	filesInFlight = 16
	smallFactor   = 4
)

// cleanUpTime bounds what a copy does after it was interrupted: removing its temporary names.
const cleanUpTime = 5 * time.Second

// copying is one put, get or cp. Files are copied by its group; directories are made by the goroutine that walks.
type copying struct {
	sh       *shell
	group    *errgroup.Group
	bar      *progress
	force    bool
	keep     preserved
	buffers  chan []byte   // free ones
	large    chan struct{} // full while as many files that are not small are being uploaded as may be at a time
	mu       sync.Mutex    // guards finished
	finished []func(context.Context) error
}

// preserved says what of the source's attributes is kept.
type preserved struct{ times, owner, mode bool }

// startCopying prepares a copy with the options of the verb. The returned context is for the copying itself: it ends
// when the cluster fails, and with wait. upload says that files are copied into the cluster.
func (sh *shell) startCopying(ctx context.Context, keep preserved, upload bool) (*copying, context.Context, error) {
	workers := filesInFlight
	if text, ok := sh.opts["t"]; ok {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 256 {
			return nil, nil, usagef("Option -t needs a number from 1 to 256, not %q", text)
		}
		workers = n
	}
	g, work := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	if upload {
		g.SetLimit(smallFactor * workers)
	}
	c := &copying{
		sh: sh, group: g, force: sh.opts.on("f"), keep: keep, buffers: make(chan []byte, workers), large: make(chan struct{}, workers),
	}
	return c, work, nil
}

// spawn copies one file in the group. A failure of the file is reported and the rest goes on; a failure of the whole
// cluster ends the copy.
func (c *copying) spawn(one func() error) {
	c.group.Go(func() error {
		err := one()
		if err != nil && fatal(err) {
			return err
		}
		c.sh.fail(err)
		return nil
	})
}

// fatal reports whether going on with other files is pointless.
func fatal(err error) bool {
	for _, s := range []error{dfserr.ErrUnavailable, dfserr.ErrTooFewReplicas, dfserr.ErrUnknownSession, dfserr.ErrNoSpace, dfserr.ErrReadOnly} {
		if errors.Is(err, s) {
			return true
		}
	}
	return errors.Is(err, context.Canceled)
}

// wait joins the copies, then gives directories the attributes they are to have, the deepest first.
func (c *copying) wait(ctx context.Context) error {
	if err := c.group.Wait(); err != nil {
		return err
	}
	for _, finish := range slices.Backward(c.finished) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c.sh.fail(finish(ctx))
	}
	return nil
}

// later notes what is to be done when everything is there.
func (c *copying) later(f func(context.Context) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finished = append(c.finished, f)
}

// buffer lends a frame-sized buffer.
func (c *copying) buffer() []byte {
	select {
	case b := <-c.buffers:
		return b
	default:
		return make([]byte, copyBuffer)
	}
}

func (c *copying) release(b []byte) {
	select {
	case c.buffers <- b:
	default:
	}
}

// temporaryMark is in the name of a file that is being written, as HDFS has it.
const temporaryMark = "._COPYING_"

// temporaryName is a name beside base that nobody else uses, at most dfs.NameMax bytes long.
func temporaryName(base string) string {
	var random [6]byte
	rand.Read(random[:]) //nolint:errcheck // crypto/rand never fails
	suffix := temporaryMark + hex.EncodeToString(random[:])
	if len(base)+len(suffix) > dfs.NameMax {
		base = base[:dfs.NameMax-len(suffix)]
	}
	return base + suffix
}

// upload copies src to target, a path of the cluster, with everything below it. fresh says that nothing can be
// there yet.
func (c *copying) upload(ctx context.Context, src source, target operand, fresh bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	info := src.Info()
	switch {
	case info.mode.IsDir():
		return c.uploadDir(ctx, src, target, fresh)
	case info.mode&fs.ModeSymlink != 0:
		c.spawn(func() error { return c.uploadLink(ctx, src, target) })
	case info.mode.IsRegular():
		c.bar.expect(info.size)
		c.spawn(func() error { return c.uploadFile(ctx, src, target, fresh) })
	default:
		return kindError(src)
	}
	return nil
}

// uploadDir copies a directory.
func (c *copying) uploadDir(ctx context.Context, src source, target operand, fresh bool) error {
	made, err := c.makeDir(ctx, target, fresh)
	if err != nil {
		return err
	}
	return c.fillDir(ctx, src, target, made)
}

// makeDir makes a directory; made says that it was not there before.
func (c *copying) makeDir(ctx context.Context, target operand, fresh bool) (made bool, err error) {
	// Until the copy is complete its owner must be able to write into it, whatever mode it ends up with.
	perm := fs.FileMode(0o777) &^ c.sh.env.umask
	err = c.sh.fs.Mkdir(ctx, target.path, perm|0o700)
	made = err == nil
	if errors.Is(err, fs.ErrExist) && !fresh {
		info, statErr := c.sh.fs.Stat(ctx, target.path)
		if statErr != nil {
			return false, about(target.shown, statErr)
		}
		if !info.Mode.IsDir() {
			return false, failure(target.shown, dfserr.ErrNotDir)
		}
		err = nil
	}
	return made, about(target.shown, err)
}

// madeDir is the outcome of a makeDir.
type madeDir struct {
	made bool
	err  error
}

// makeDirs makes the directories among items, which are below target, at the same time.
func (c *copying) makeDirs(ctx context.Context, items []source, target operand, fresh bool) []madeDir {
	out := make([]madeDir, len(items))
	var g errgroup.Group
	g.SetLimit(cap(c.large))
	for i, item := range items {
		if item.Info().mode.IsDir() {
			g.Go(func() error {
				out[i].made, out[i].err = c.makeDir(ctx, target.child(item.Base()), fresh)
				return nil
			})
		}
	}
	_ = g.Wait() // its functions return no errors
	return out
}

// fillDir copies what a directory holds into target, which made says was not there before.
func (c *copying) fillDir(ctx context.Context, src source, target operand, made bool) error {
	items, err := src.List(ctx)
	if err != nil {
		return about(src.Shown(), err)
	}
	dirs := c.makeDirs(ctx, items, target, made)
	for i, item := range items {
		into := target.child(item.Base())
		var err error
		switch {
		case !item.Info().mode.IsDir():
			err = c.upload(ctx, item, into, made)
		case ctx.Err() != nil:
			err = ctx.Err()
		case dirs[i].err != nil:
			err = dirs[i].err
		default:
			err = c.fillDir(ctx, item, into, dirs[i].made)
		}
		if err != nil && (fatal(err) || ctx.Err() != nil) {
			return err
		}
		c.sh.fail(err)
	}
	if c.keep != (preserved{}) {
		c.later(func(ctx context.Context) error { return c.keepAttributes(ctx, src, target, target.path) })
	}
	return nil
}

func (c *copying) uploadLink(ctx context.Context, src source, target operand) error {
	to, err := src.Target()
	if err != nil {
		return about(src.Shown(), err)
	}
	err = c.sh.fs.Symlink(ctx, to, target.path)
	if errors.Is(err, fs.ErrExist) && c.force {
		// Made beside the old one and moved over it, so that the name is never missing.
		temp := parentOf(target.path) + "/" + temporaryName(target.base())
		if err = c.sh.fs.Symlink(ctx, to, temp); err == nil {
			if err = c.sh.fs.Rename(ctx, temp, target.path, true); err != nil {
				c.discard(ctx, temp)
			}
		}
	}
	if err == nil {
		c.bar.finished()
	}
	return about(target.shown, err)
}

// uploadFile copies one regular file. A small one appears in one atomic operation; any other is written under a
// temporary name and renamed when it is complete and the source is known not to have changed.
func (c *copying) uploadFile(ctx context.Context, src source, target operand, fresh bool) error {
	f, err := src.Open(ctx)
	if err != nil {
		return about(src.Shown(), err)
	}
	defer f.Close()
	// Whether a file is small is not known before its end was seen.
	small := make([]byte, dfs.InlineMax+1)
	n, err := io.ReadFull(f, small)
	ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	if err != nil && !ended {
		return about(src.Shown(), err)
	}
	if ended {
		err = c.uploadSmall(ctx, src, f, small[:n], target)
	} else {
		err = c.uploadLarge(ctx, src, f, small, target, fresh)
	}
	if err == nil {
		c.bar.finished()
	}
	return err
}

// filePerm is the mode that a new file gets.
func (c *copying) filePerm(src source) fs.FileMode {
	if c.keep.mode {
		return src.Info().mode.Perm()
	}
	return 0o666 &^ c.sh.env.umask
}

func (c *copying) uploadSmall(ctx context.Context, src source, f sourceFile, data []byte, target operand) error {
	if err := f.Unchanged(int64(len(data))); err != nil {
		return err
	}
	if err := c.sh.fs.WriteSmall(ctx, target.path, data, c.filePerm(src), c.force); err != nil {
		return about(target.shown, err)
	}
	c.bar.moved(len(data))
	return c.keepAttributes(ctx, src, target, target.path)
}

// uploadLarge is uploadFile for a file that has begin and more.
func (c *copying) uploadLarge(ctx context.Context, src source, f sourceFile, begin []byte, target operand, fresh bool) (err error) {
	select {
	case c.large <- struct{}{}:
		defer func() { <-c.large }()
	case <-ctx.Done():
		return ctx.Err()
	}
	buf := c.buffer()
	defer c.release(buf)
	n := copy(buf, begin)
	more, err := io.ReadFull(f, buf[n:])
	if n += more; err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return about(src.Shown(), err)
	}
	if !fresh { // find out before the bytes travel; the rename at the end decides
		now := operand{shown: target.shown, path: target.path}
		if err := c.sh.fill(ctx, &now, false); err != nil {
			return err
		}
		if now.isDir() && c.force {
			return failure(target.shown, dfserr.ErrIsDir)
		}
		if now.exists() && !c.force {
			return failure(target.shown, fs.ErrExist)
		}
	}
	temp := strings.TrimRight(parentOf(target.path), "/") + "/" + temporaryName(target.base())
	w, err := c.sh.fs.Create(ctx, temp, c.filePerm(src), true)
	if err != nil {
		c.discard(ctx, temp)
		return about(target.shown, err)
	}
	defer func() {
		if err != nil {
			w.Abandon()
			c.discard(ctx, temp)
		}
	}()
	out := progressWriter{w: w, p: c.bar}
	total := int64(n)
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := out.Write(buf[:n]); err != nil {
			return about(target.shown, err)
		}
		n, err = io.ReadFull(f, buf)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return about(src.Shown(), err)
		}
		total += int64(n)
	}
	if err := f.Unchanged(total); err != nil {
		return err
	}
	if c.keep == (preserved{}) {
		return about(target.shown, w.CloseAs(target.path, c.force))
	}
	if err := w.Close(); err != nil {
		return about(target.shown, err)
	}
	if err := c.keepAttributes(ctx, src, target, temp); err != nil {
		return err
	}
	return about(target.shown, c.sh.fs.Rename(ctx, temp, target.path, c.force))
}

// discard removes a temporary name, also after an interrupt.
func (c *copying) discard(ctx context.Context, temp string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	if err := c.sh.fs.Remove(ctx, temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.sh.note("%s: `%s': could not be removed (%s); it is an unfinished copy", c.sh.as, temp, describe(err))
	}
}

// keepAttributes gives at, which is or becomes target, the attributes of src that the options ask for.
func (c *copying) keepAttributes(ctx context.Context, src source, target operand, at string) error {
	info := src.Info()
	if c.keep.owner {
		now, err := c.sh.fs.Lstat(ctx, at)
		if err != nil {
			return about(target.shown, err)
		}
		if info.uid >= 0 && (int(now.UID) != info.uid || int(now.GID) != info.gid) {
			if err := c.sh.fs.Chown(ctx, at, info.uid, info.gid); err != nil {
				return &operandError{path: target.shown, text: fmt.Sprintf("cannot keep the owner %d:%d: %s", info.uid, info.gid, describe(err)), err: err}
			}
		}
	}
	if c.keep.mode && (info.mode.IsDir() || info.mode&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0) {
		if err := c.sh.fs.Chmod(ctx, at, bitsMode(modeBits(info.mode))); err != nil {
			return about(target.shown, err)
		}
	}
	if c.keep.times {
		return about(target.shown, c.sh.fs.Chtimes(ctx, at, info.atime, info.mtime))
	}
	return nil
}
