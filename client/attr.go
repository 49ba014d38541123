package client

import (
	"io/fs"
	"path"
	"strings"
	"time"

	"dfs/internal/dfs"
	dfsv1 "dfs/proto/dfs/v1"
)

// The type and permission bits of st_mode, as every Unix has them.
const (
	modeTypeMask = 0o170000
	modeFIFO     = 0o010000
	modeChar     = 0o020000
	modeDir      = 0o040000
	modeBlock    = 0o060000
	modeRegular  = 0o100000
	modeSymlink  = 0o120000
	modeSocket   = 0o140000
	modeSetUID   = 0o4000
	modeSetGID   = 0o2000
	modeSticky   = 0o1000
)

// Attr is everything that is known about one inode at one moment.
type Attr struct {
	Inode       dfs.InodeID
	Mode        fs.FileMode // type and permission bits
	UID, GID    uint32
	Nlink       uint32
	Rdev        uint32 // of a device
	Size        int64  // bytes; of a file its exact length, unless SizeIsBound
	Atime       time.Time
	Mtime       time.Time
	Ctime       time.Time
	Btime       time.Time // when it was created
	Target      string    // of a symbolic link
	ChunkSize   int64     // of a file, bytes
	Replication int       // of a file: wanted replicas of each chunk
	Inline      bool      // the file's bytes are in the inode
	Chunks      int64     // index of the last chunk + 1; 0 when inline
	Version     dfs.Index // of the last change of these attributes
	Xattrs      int       // number of extended attributes
	// SizeIsBound, in directory listings and after Peek: the chunkservers that know the length did not answer, and
	// the file has at least Size bytes.
	SizeIsBound bool
}

// FileInfo describes one name and the inode behind it. It implements fs.FileInfo and fs.DirEntry; Sys
// returns the *Attr.
type FileInfo struct {
	name string
	Attr Attr
}

var (
	_ fs.FileInfo = (*FileInfo)(nil)
	_ fs.DirEntry = (*FileInfo)(nil)
)

// Name returns the last name of the path asked for, or the entry's name.
func (i *FileInfo) Name() string { return i.name }

// Size returns the length in bytes.
func (i *FileInfo) Size() int64 { return i.Attr.Size }

// Mode returns type and permission bits.
func (i *FileInfo) Mode() fs.FileMode { return i.Attr.Mode }

// ModTime returns when the content last changed.
func (i *FileInfo) ModTime() time.Time { return i.Attr.Mtime }

// IsDir reports whether it is a directory.
func (i *FileInfo) IsDir() bool { return i.Attr.Mode.IsDir() }

// Sys returns the *Attr.
func (i *FileInfo) Sys() any { return &i.Attr }

// Type returns the type bits.
func (i *FileInfo) Type() fs.FileMode { return i.Attr.Mode.Type() }

// Info returns i: directory listings carry attributes.
func (i *FileInfo) Info() (fs.FileInfo, error) { return i, nil }

// String formats i as fs.FormatFileInfo does.
func (i *FileInfo) String() string { return fs.FormatFileInfo(i) }

// infoOf makes a FileInfo for the last name of p.
func infoOf(p string, a *dfsv1.Attr) *FileInfo {
	name := "/"
	if t := strings.TrimRight(p, "/"); t != "" {
		name = path.Base(t)
	}
	return &FileInfo{name: name, Attr: attrOf(a)}
}

func attrOf(a *dfsv1.Attr) Attr {
	return Attr{
		Inode: dfs.InodeID(a.GetInode()), Mode: fileMode(a.GetMode()), UID: a.GetUid(), GID: a.GetGid(), Nlink: a.GetNlink(), Rdev: a.GetRdev(),
		Size: a.GetLength(), Atime: instant(a.GetAtimeNs()), Mtime: instant(a.GetMtimeNs()), Ctime: instant(a.GetCtimeNs()), Btime: instant(a.GetBtimeNs()),
		Target: string(a.GetSymlinkTarget()), ChunkSize: a.GetChunkSize(), Replication: int(a.GetReplication()), Inline: a.GetInline(),
		Chunks: a.GetChunks(), Version: dfs.Index(a.GetVersion()), Xattrs: int(a.GetXattrs()), SizeIsBound: a.GetLengthIsBound(),
	}
}

// instant is a time of the wire format. All of int64's nanoseconds are representable.
func instant(ns int64) time.Time { return time.Unix(0, ns) }

// fileMode turns st_mode into Go's form.
func fileMode(m uint32) fs.FileMode {
	out := fs.FileMode(m & 0o777)
	switch m & modeTypeMask {
	case modeDir:
		out |= fs.ModeDir
	case modeSymlink:
		out |= fs.ModeSymlink
	case modeFIFO:
		out |= fs.ModeNamedPipe
	case modeSocket:
		out |= fs.ModeSocket
	case modeChar:
		out |= fs.ModeDevice | fs.ModeCharDevice
	case modeBlock:
		out |= fs.ModeDevice
	}
	if m&modeSetUID != 0 {
		out |= fs.ModeSetuid
	}
	if m&modeSetGID != 0 {
		out |= fs.ModeSetgid
	}
	if m&modeSticky != 0 {
		out |= fs.ModeSticky
	}
	return out
}

// statMode turns Go's form into st_mode.
func statMode(m fs.FileMode) uint32 {
	out := permBits(m)
	switch {
	case m&fs.ModeDir != 0:
		out |= modeDir
	case m&fs.ModeSymlink != 0:
		out |= modeSymlink
	case m&fs.ModeNamedPipe != 0:
		out |= modeFIFO
	case m&fs.ModeSocket != 0:
		out |= modeSocket
	case m&fs.ModeCharDevice != 0:
		out |= modeChar
	case m&fs.ModeDevice != 0:
		out |= modeBlock
	default:
		out |= modeRegular
	}
	return out
}

// permBits returns permission, setuid, setgid and sticky bits of st_mode.
func permBits(m fs.FileMode) uint32 {
	out := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		out |= modeSetUID
	}
	if m&fs.ModeSetgid != 0 {
		out |= modeSetGID
	}
	if m&fs.ModeSticky != 0 {
		out |= modeSticky
	}
	return out
}
