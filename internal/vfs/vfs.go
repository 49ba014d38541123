// Package vfs is the disk seam: everything that must be tested against failing and crashing disks does its
// file I/O through FS and File. Four implementations: OS (the real disk), Mem (in memory), Crashable (in
// memory, can lose power), and Inject (a decorator that makes chosen operations fail or lie).
//
// Names are slash-separated and relative to the FS's root. An FS is safe for concurrent use; a File allows
// concurrent ReadAt, and WriteAt to disjoint ranges, like the operating system's.
package vfs

import "io/fs"

// FS is one directory tree on one disk.
type FS interface {
	// OpenFile opens name with the flags of os.OpenFile (O_RDONLY, O_RDWR, O_CREATE, O_EXCL, O_TRUNC). A new
	// directory entry is durable only after SyncDir of its directory.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Mkdir creates one directory; its entry is durable after SyncDir of the parent.
	Mkdir(name string, perm fs.FileMode) error
	// Rename atomically replaces newname; durable after SyncDir of both directories.
	Rename(oldname, newname string) error
	// Remove deletes a file or an empty directory; durable after SyncDir of its directory.
	Remove(name string) error
	// ReadDir returns up to n entries' names in no set order when n > 0, all when n <= 0.
	ReadDir(name string) ([]fs.DirEntry, error)
	// Stat describes name.
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes the entries of directory name durable.
	SyncDir(name string) error
	// Usage returns the capacity and the free space of the disk, in bytes.
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
	// Truncate sets the length; durable after Sync.
	Truncate(size int64) error
	// Sync makes data and length durable (fdatasync). After an error nothing about the file's durability may
	// be assumed and Sync must not be retried (docs/durability.md).
	Sync() error
	// Size returns the current length.
	Size() (int64, error)
	Close() error
}
