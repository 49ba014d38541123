package fusefs

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"

	"bazil.org/fuse"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// The virtual directory /.dfs of every mount tells about the mount itself. It is answered here and is not part of the cluster: no
// listing of the root shows it, so that find, cp -a and rsync pass it by, and nobody can make, remove or change anything in it. A name
// ".dfs" that the directory mounted has in the cluster is hidden by it.
const virtualName = ".dfs"

// Inode numbers of the virtual directory and its files; the cluster's never get so far.
const (
	virtualDir dfs.InodeID = ^dfs.InodeID(0) - 15 + iota
	virtualStats
	virtualConfig
	virtualAccessLog
)

// virtualFiles are the entries of the directory. Those who may read the access log see what everybody does, so it is root's.
var virtualFiles = []struct {
	name  string
	inode dfs.InodeID
	perm  uint32
}{
	{"accesslog", virtualAccessLog, 0o400},
	{"config", virtualConfig, 0o444},
	{"stats", virtualStats, 0o444},
}

// virtual answers requests that concern the virtual directory; ok is false for all others.
func (s *Server) virtual(ctx context.Context, r fuse.Request) (ok bool, err error) {
	if inode := dfs.InodeID(r.Hdr().Node); inode >= virtualDir {
		return true, s.onVirtual(ctx, inode, r)
	}
	hidden := func(dir fuse.NodeID, name string) bool { return dir == fuse.RootID && name == virtualName }
	here := r.Hdr().Node
	switch r := r.(type) {
	case *fuse.LookupRequest:
		if hidden(here, r.Name) {
			a := s.virtualAttr(virtualDir)
			s.sendEntry(&r.Header, &a)
			return true, nil
		}
	case *fuse.MkdirRequest:
		ok = hidden(here, r.Name)
	case *fuse.MknodRequest:
		ok = hidden(here, r.Name)
	case *fuse.SymlinkRequest:
		ok = hidden(here, r.NewName)
	case *fuse.CreateRequest:
		ok = hidden(here, r.Name)
	case *fuse.LinkRequest:
		if dfs.InodeID(r.OldNode) >= virtualDir {
			return true, dfserr.Errorf(dfserr.ErrNotPermitted, "link to a file of /%s", virtualName)
		}
		ok = hidden(here, r.NewName)
	case *fuse.RemoveRequest:
		if hidden(here, r.Name) {
			return true, dfserr.Errorf(dfserr.ErrNotPermitted, "removing /%s", virtualName)
		}
	case *fuse.RenameRequest:
		if hidden(here, r.OldName) || hidden(r.NewDir, r.NewName) || dfs.InodeID(r.NewDir) >= virtualDir {
			return true, dfserr.Errorf(dfserr.ErrNotPermitted, "renaming in or to /%s", virtualName)
		}
	}
	if ok {
		return true, dfserr.Errorf(dfserr.ErrExist, "/%s", virtualName)
	}
	return false, nil
}

// onVirtual answers what is asked of the virtual directory and its files.
func (s *Server) onVirtual(ctx context.Context, inode dfs.InodeID, r fuse.Request) error {
	switch r := r.(type) {
	case *fuse.LookupRequest:
		for _, f := range virtualFiles {
			if f.name == r.Name {
				a := s.virtualAttr(f.inode)
				s.sendEntry(&r.Header, &a)
				return nil
			}
		}
		return dfserr.Errorf(dfserr.ErrNotExist, "/%s/%s", virtualName, r.Name)
	case *fuse.GetattrRequest:
		a := s.virtualAttr(inode)
		s.sendAttr(&r.Header, &a)
		return nil
	case *fuse.OpenRequest:
		return s.openVirtual(inode, r)
	case *fuse.ReadRequest:
		if r.Dir {
			return s.listVirtual(r)
		}
		return s.readFile(ctx, r)
	case *fuse.ReleaseRequest:
		return s.release(ctx, r)
	case *fuse.ListxattrRequest:
		return s.sendXattr(&r.Header, r.Size, nil)
	case *fuse.GetxattrRequest:
		return dfserr.Errorf(dfserr.ErrNoAttr, "%s of a file of /%s", r.Name, virtualName)
	case *fuse.FlushRequest:
		r.Respond()
		return nil
	case *fuse.FsyncRequest:
		r.Respond()
		return nil
	case *fuse.PollRequest, *fuse.UnrecognizedRequest:
		r.RespondError(leftToKernel) // as of any file; another error would make the file unreadable for who polls first
		return nil
	}
	return dfserr.Errorf(dfserr.ErrNotPermitted, "/%s cannot be changed", virtualName)
}

func (s *Server) virtualAttr(inode dfs.InodeID) Attr {
	at := s.stats.begun.UnixNano()
	a := Attr{Inode: inode, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Nlink: 1, AtimeNS: at, MtimeNS: at, CtimeNS: at}
	if inode == virtualDir {
		a.Mode, a.Nlink = syscall.S_IFDIR|0o555, 2
	}
	for _, f := range virtualFiles {
		if f.inode == inode {
			a.Mode = syscall.S_IFREG | f.perm
		}
	}
	return a
}

// openVirtual opens a file of the virtual directory: stats and config are as they are at that moment.
func (s *Server) openVirtual(inode dfs.InodeID, r *fuse.OpenRequest) error {
	if uint32(r.Flags)&(syscall.O_ACCMODE|syscall.O_TRUNC) != syscall.O_RDONLY {
		return dfserr.Errorf(dfserr.ErrNotPermitted, "/%s cannot be changed", virtualName)
	}
	if r.Dir {
		s.mu.Lock()
		s.nextHandle++
		handle := fuse.HandleID(s.nextHandle)
		s.mu.Unlock()
		r.Respond(&fuse.OpenResponse{Handle: handle})
		return nil
	}
	var f File
	flags := fuse.OpenDirectIO // the length that stat(2) shows is 0
	switch inode {
	case virtualStats:
		s.mu.Lock()
		files, dirs, inFlight := len(s.files), len(s.dirs), len(s.running)
		s.mu.Unlock()
		f = textFile{text: s.stats.text(files, dirs, inFlight)}
	case virtualConfig:
		f = textFile{text: s.config}
	default:
		f = s.access.open()
		flags |= fuse.OpenNonSeekable
	}
	handle, _ := s.addFile(&fileHandle{file: f, inode: inode}, 0)
	r.Respond(&fuse.OpenResponse{Handle: handle, Flags: flags})
	return nil
}

// listVirtual answers READDIR; an entry's cookie is its number plus one.
func (s *Server) listVirtual(r *fuse.ReadRequest) error {
	type entry struct {
		inode dfs.InodeID
		mode  uint32
		name  string
	}
	entries := []entry{{virtualDir, syscall.S_IFDIR, "."}, {s.root, syscall.S_IFDIR, ".."}}
	for _, f := range virtualFiles {
		entries = append(entries, entry{f.inode, syscall.S_IFREG, f.name})
	}
	var out []byte
	for i := r.Offset; i < int64(len(entries)); i++ {
		e := entries[i]
		if len(out)+direntSize([]byte(e.name)) > r.Size {
			break
		}
		out = appendDirent(out, uint64(e.inode), uint64(i+1), e.mode, []byte(e.name))
	}
	r.Respond(&fuse.ReadResponse{Data: out})
	return nil
}

// configText is the content of /.dfs/config.
func configText(dir string, o *Options) string {
	var b strings.Builder
	set := func(name string, value any) { fmt.Fprintf(&b, "%s = %v\n", name, value) }
	set("source", fmt.Sprintf("%q", o.Source))
	set("mount_point", fmt.Sprintf("%q", dir))
	set("pid", os.Getpid())
	set("root_inode", uint64(o.Root))
	set("read_only", o.ReadOnly)
	set("allow_other", o.AllowOther)
	set("attr_timeout", fmt.Sprintf("%q", o.AttrTimeout))
	set("max_readahead", o.MaxReadahead)
	set("noexec", o.NoExec)
	set("nosuid", o.NoSetuid)
	set("nodev", o.NoDevices)
	set("local_locks", o.LocalLocks)
	if o.Show.UID != nil {
		set("uid", *o.Show.UID)
	}
	if o.Show.GID != nil {
		set("gid", *o.Show.GID)
	}
	set("umask", fmt.Sprintf("%q", fmt.Sprintf("%03o", o.Show.Umask)))
	return b.String()
}

// noWrites is the part of File that the virtual files lack.
type noWrites struct{}

func (noWrites) WriteAt(context.Context, []byte, int64) error { return dfserr.ErrNotPermitted }
func (noWrites) Append(context.Context, []byte) (int64, error) {
	return 0, dfserr.ErrNotPermitted
}
func (noWrites) Zero(context.Context, int64, int64) error         { return dfserr.ErrNotPermitted }
func (noWrites) Flush(context.Context) error                      { return nil }
func (noWrites) Sync(context.Context) error                       { return nil }
func (noWrites) Close(context.Context) error                      { return nil }
func (noWrites) SetLock(context.Context, Lock, bool) error        { return dfserr.ErrNotPermitted }
func (noWrites) Unlock(context.Context, Lock) error               { return nil }
func (noWrites) ReleaseLocks(context.Context, bool, uint64) error { return nil }
func (noWrites) TestLock(context.Context, Lock) (*Lock, error)    { return nil, nil }
func (noWrites) MayChange(context.Context) error                  { return dfserr.ErrNotPermitted }

// textFile is a file with a fixed content.
type textFile struct {
	noWrites
	text string
}

func (f textFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if off >= int64(len(f.text)) {
		return 0, nil
	}
	return copy(p, f.text[off:]), nil
}
