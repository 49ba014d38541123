// Package vfs is the disk seam: everything that must be tested against failing and crashing disks does its
// file I/O through FS and File. Four implementations: OS (the real disk), Mem (in memory), Crashable (in
// memory, can lose power), and Inject (a decorator that makes chosen operations fail or lie). One conformance
// suite runs on all of them.
//
// Names are slash-separated and relative to the FS's root; "." is the root. An FS is safe for concurrent use; a
// File allows concurrent ReadAt, and WriteAt to disjoint ranges, like the operating system's. A file that was
// removed or replaced stays readable and writable through the Files that have it open.
//
// What survives: a process kill loses nothing that was written. A power loss keeps an arbitrary part of what was
// not made durable: for data and lengths by File.Sync, for directory entries by FS.SyncDir. Crashable
// implements the worst case that real file systems show, so code that survives it survives them.
//
// Failures match the sentinels of this package (IsNoSpace, ErrLocked) and of io/fs with errors.Is; everything
// else is an I/O error of the disk. The package starts no goroutines.
package vfs

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
)

// ErrLocked is returned by FS.Lock when another holder has the lock.
var ErrLocked = errors.New("locked by another process")

// FS is one directory tree on one disk.
type FS interface {
	// OpenFile opens name with the flags of os.OpenFile (O_RDONLY, O_RDWR, O_CREATE, O_EXCL, O_TRUNC). A new
	// directory entry is durable only after SyncDir of its directory. A directory cannot be opened.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Mkdir creates one directory; its entry is durable after SyncDir of the parent. fs.ErrExist when there is one.
	Mkdir(name string, perm fs.FileMode) error
	// Rename atomically replaces newname; durable after SyncDir of both directories.
	Rename(oldname, newname string) error
	// Remove deletes a file or an empty directory; durable after SyncDir of its directory.
	Remove(name string) error
	// ReadDir returns the entries of directory name, sorted by name.
	ReadDir(name string) ([]fs.DirEntry, error)
	// Stat describes name.
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes the entries of directory name durable.
	SyncDir(name string) error
	// Usage returns the capacity and the free space of the disk, in bytes; free is what an unprivileged
	// process may use.
	Usage() (capacity, free int64, err error)
	// Lock takes an exclusive advisory lock on file name (created when missing) until the returned closer
	// is closed or the process ends; it fails with ErrLocked when another holder has it.
	Lock(name string) (Unlocker, error)
}

// Unlocker releases a Lock.
type Unlocker interface{ Close() error }

// File is an open file. Offsets and lengths are bytes.
type File interface {
	// ReadAt reads len(p) bytes at off, or fewer with io.EOF at the end of the file.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt writes p at off, extending the file as needed; a short write returns an error.
	WriteAt(p []byte, off int64) (int, error)
	// WriteVAt writes the buffers one after the other at off with one gathering write where the system has
	// one, and otherwise behaves as WriteAt of their concatenation. It does not change the slice.
	WriteVAt(bufs [][]byte, off int64) (int, error)
	// Truncate sets the length; durable after Sync. Bytes added read as zero.
	Truncate(size int64) error
	// Sync makes data and length durable (fdatasync). After an error nothing about the file's durability may
	// be assumed and Sync must not be retried (docs/durability.md).
	Sync() error
	// Size returns the current length.
	Size() (int64, error)
	// Close releases the file; it makes nothing durable. Later calls return fs.ErrClosed.
	Close() error
}

// MkdirAll creates directory name and its missing parents, and makes each new entry durable.
func MkdirAll(fsys FS, name string, perm fs.FileMode) error {
	if name = path.Clean(name); name == "." {
		return nil
	}
	if st, err := fsys.Stat(name); err == nil && st.IsDir() {
		return nil
	}
	parent := path.Dir(name)
	if err := MkdirAll(fsys, parent, perm); err != nil {
		return err
	}
	if err := fsys.Mkdir(name, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return fsys.SyncDir(parent)
}

// WriteFile durably replaces file name by data: it writes name+".tmp", syncs it, renames it and syncs the
// directory, so that after a crash at any point the file holds the old contents or the new. Leftovers of
// earlier attempts are overwritten. It is the one place where a small file is replaced.
func WriteFile(fsys FS, name string, data []byte, perm fs.FileMode) error {
	tmp := name + ".tmp"
	f, err := fsys.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(data, 0); err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = fsys.Rename(tmp, name)
	}
	if err != nil {
		return errors.Join(err, fsys.Remove(tmp))
	}
	return fsys.SyncDir(path.Dir(name))
}

// ReadFile returns the contents of file name, which may be at most limit bytes long (else ErrTooLong).
func ReadFile(fsys FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, &fs.PathError{Op: "read", Path: name, Err: ErrTooLong}
	}
	data := make([]byte, size)
	n, err := f.ReadAt(data, 0)
	if errors.Is(err, io.EOF) && n < len(data) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return data[:n], nil
}

// ErrTooLong is returned by ReadFile for a file longer than its limit.
var ErrTooLong = errors.New("file is longer than allowed")
