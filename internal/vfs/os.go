package vfs

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// IsNoSpace reports whether err says that the disk, or the quota of the user, is full. Nothing is wrong with
// the disk then, unlike after any other write error. This file and dfserr's table are the only ones that
// name errnos.
func IsNoSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// errNoSpace is what the in-memory implementations return when their capacity is used up.
var errNoSpace error = unix.ENOSPC

// ErrIO is the error that Inject returns unless told otherwise: an I/O error of the device.
var ErrIO error = unix.EIO

// errIsDir and errNotEmpty and errNotDir are what the system says, for the in-memory implementations.
var (
	errIsDir    error = unix.EISDIR
	errNotDir   error = unix.ENOTDIR
	errNotEmpty error = unix.ENOTEMPTY
)

// IsReadOnly reports whether err says that the file system or the permissions of the directory forbid
// writing, which an operator can change.
func IsReadOnly(err error) bool {
	return errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission)
}

// Disk is a directory of the operating system; OS makes one. It never leaves the directory: names that
// would, also through symbolic links, are refused (os.Root).
type Disk struct {
	root *os.Root
}

var _ FS = (*Disk)(nil)

// OS opens directory dir, which must exist, as an FS. Close releases it.
func OS(dir string) (*Disk, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Disk{root: root}, nil
}

// Dir returns the directory's path as given to OS, for messages.
func (d *Disk) Dir() string { return d.root.Name() }

// Close releases the directory. Files that are open stay usable.
func (d *Disk) Close() error { return d.root.Close() }

// OpenFile implements FS.
func (d *Disk) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := d.root.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && st.IsDir() {
		err = &fs.PathError{Op: "open", Path: name, Err: errIsDir}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &osFile{f: f}, nil
}

// Mkdir implements FS.
func (d *Disk) Mkdir(name string, perm fs.FileMode) error { return d.root.Mkdir(name, perm) }

// Rename implements FS.
func (d *Disk) Rename(oldname, newname string) error { return d.root.Rename(oldname, newname) }

// Remove implements FS.
func (d *Disk) Remove(name string) error { return d.root.Remove(name) }

// ReadDir implements FS.
func (d *Disk) ReadDir(name string) ([]fs.DirEntry, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, err
}

// Stat implements FS.
func (d *Disk) Stat(name string) (fs.FileInfo, error) { return d.root.Stat(name) }

// SyncDir implements FS.
func (d *Disk) SyncDir(name string) error {
	f, err := d.root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Usage implements FS with statfs.
func (d *Disk) Usage() (capacity, free int64, err error) {
	f, err := d.root.Open(".")
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := control(f, func(fd int) error { return unix.Fstatfs(fd, &st) }); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: d.Dir(), Err: err}
	}
	unit := st.Frsize
	if unit == 0 {
		unit = st.Bsize
	}
	return int64(st.Blocks) * unit, int64(st.Bavail) * unit, nil
}

// Lock implements FS with flock, which the kernel drops when the process ends.
func (d *Disk) Lock(name string) (Unlocker, error) {
	f, err := d.root.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	err = control(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(&fs.PathError{Op: "lock", Path: name, Err: err}, f.Close())
	}
	return f, nil
}

// control runs op on the descriptor of f, again while it is interrupted by a signal, with f kept open.
func control(f *os.File, op func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var opErr error
	err = conn.Control(func(fd uintptr) {
		for {
			if opErr = op(int(fd)); !errors.Is(opErr, unix.EINTR) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return opErr
}

// osFile is a file of the operating system.
type osFile struct {
	f *os.File
}

func (o *osFile) ReadAt(p []byte, off int64) (int, error)  { return o.f.ReadAt(p, off) }
func (o *osFile) WriteAt(p []byte, off int64) (int, error) { return o.f.WriteAt(p, off) }
func (o *osFile) Truncate(size int64) error                { return o.f.Truncate(size) }
func (o *osFile) Close() error                             { return o.f.Close() }

// maxVec is how many buffers one pwritev takes (IOV_MAX).
const maxVec = 1024

// vecs recycles the slices that WriteVAt shortens as it goes.
var vecs = sync.Pool{New: func() any { return new([][]byte) }}

func (o *osFile) WriteVAt(bufs [][]byte, off int64) (written int, err error) {
	if len(bufs) == 1 {
		return o.f.WriteAt(bufs[0], off)
	}
	vp := vecs.Get().(*[][]byte)
	rest := append((*vp)[:0], bufs...)
	defer func(all [][]byte) {
		clear(all)
		*vp = all[:0]
		vecs.Put(vp)
	}(rest)
	for {
		for len(rest) > 0 && len(rest[0]) == 0 {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			return written, nil
		}
		var n int
		err := control(o.f, func(fd int) error {
			var err error
			n, err = unix.Pwritev(fd, rest[:min(len(rest), maxVec)], off)
			return err
		})
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return written, &fs.PathError{Op: "pwritev", Path: o.f.Name(), Err: err}
		}
		written += n
		off += int64(n)
		for n > 0 && len(rest) > 0 {
			cut := min(n, len(rest[0]))
			rest[0], n = rest[0][cut:], n-cut
			if len(rest[0]) == 0 {
				rest = rest[1:]
			}
		}
	}
}

func (o *osFile) Sync() error {
	if err := control(o.f, unix.Fdatasync); err != nil {
		return &fs.PathError{Op: "fdatasync", Path: o.f.Name(), Err: err}
	}
	return nil
}

func (o *osFile) Size() (int64, error) {
	st, err := o.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// IsTransient reports whether err says that the process or the system is short of descriptors or memory:
// nothing is wrong with the disk.
func IsTransient(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
}
