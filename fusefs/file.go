package fusefs

import (
	"context"
	"maps"
	"slices"
	"syscall"

	"bazil.org/fuse"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// Flags of fallocate(2) that FUSE passes on.
const (
	fallocKeepSize  = 0x01
	fallocPunchHole = 0x02
	fallocZeroRange = 0x10
)

// openExec is the kernel's __FMODE_EXEC: the file is opened by execve(2).
const openExec = 0x20

// open answers OPEN and OPENDIR.
func (s *Server) open(ctx context.Context, r *fuse.OpenRequest) error {
	if r.Dir {
		return s.openDir(ctx, r)
	}
	access := uint32(r.Flags) & syscall.O_ACCMODE
	// A program to be run need not be readable; that it may be run the kernel has checked.
	read := access != syscall.O_WRONLY && uint32(r.Flags)&openExec == 0
	f, _, err := s.backend.Open(ctx, s.caller(&r.Header), s.inodeOf(r.Node), read, access != syscall.O_RDONLY)
	if err != nil {
		return err
	}
	if uint32(r.Flags)&syscall.O_TRUNC != 0 {
		if _, err := s.backend.Truncate(ctx, s.caller(&r.Header), s.inodeOf(r.Node), 0, true); err != nil {
			f.Close(context.WithoutCancel(ctx)) // the truncation's error is the one to report
			return err
		}
	}
	// Asked for after the file was opened: from then on others show in what the kernel is told before it reads.
	lease := s.backend.Lease(s.inodeOf(r.Node))
	handle, keep := s.addFile(&fileHandle{
		file: f, inode: s.inodeOf(r.Node), append: uint32(r.Flags)&syscall.O_APPEND != 0, direct: uint32(r.Flags)&syscall.O_DIRECT != 0,
	}, lease)
	answer := openFlags(uint32(r.Flags))
	if keep {
		answer |= fuse.OpenKeepCache
	}
	r.Respond(&fuse.OpenResponse{Handle: handle, Flags: answer})
	return nil
}

// openFlags says how the kernel may cache: an O_DIRECT handle goes around the page cache; any other starts with
// the pages of earlier opens dropped, unless pages knows that they are good. A handle that only appends goes around it,
// too: the kernel cuts a write through its cache at a page boundary, and between the parts another mount's append
// could come. (One that may also read keeps the cache, for it may be mapped.)
func openFlags(flags uint32) fuse.OpenResponseFlags {
	if flags&syscall.O_DIRECT != 0 || flags&(syscall.O_APPEND|syscall.O_ACCMODE) == syscall.O_APPEND|syscall.O_WRONLY {
		return fuse.OpenDirectIO
	}
	return 0
}

func (s *Server) openDir(ctx context.Context, r *fuse.OpenRequest) error {
	parent := s.inodeOf(r.Node)
	if a, err := s.backend.Lookup(ctx, s.caller(&r.Header), s.inodeOf(r.Node), []byte("..")); err == nil {
		parent = a.Inode
	}
	s.mu.Lock()
	s.nextHandle++
	handle := fuse.HandleID(s.nextHandle)
	s.dirs[handle] = &dirHandle{inode: s.inodeOf(r.Node), parent: parent, starts: [][]byte{nil}, number: -1}
	s.mu.Unlock()
	r.Respond(&fuse.OpenResponse{Handle: handle})
	return nil
}

// create answers CREATE: make and open in one step.
func (s *Server) create(ctx context.Context, r *fuse.CreateRequest) error {
	flags := uint32(r.Flags)
	mode := permBits(r.Mode) &^ uint32(r.Umask.Perm())
	f, a, err := s.backend.Create(ctx, s.caller(&r.Header), s.inodeOf(r.Node), []byte(r.Name), mode, flags&syscall.O_EXCL != 0, flags&syscall.O_TRUNC != 0)
	if err != nil {
		return err
	}
	handle, _ := s.addFile(&fileHandle{file: f, inode: a.Inode, append: flags&syscall.O_APPEND != 0, direct: flags&syscall.O_DIRECT != 0}, 0)
	s.pages.truth(&a)
	s.show.apply(&a)
	out := newReply(entrySize + 16)
	out.entry(&a, s.attrValid, blksize)
	out.openOut(uint64(handle), uint32(openFlags(flags)))
	s.send(&r.Header, out)
	return nil
}

// addFile gives an open file a handle. keep says that the kernel's pages of it are good.
func (s *Server) addFile(h *fileHandle, lease uint64) (id fuse.HandleID, keep bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextHandle++
	id = fuse.HandleID(s.nextHandle)
	s.files[id] = h
	return id, s.pages.opened(h.inode, lease)
}

func (s *Server) file(id fuse.HandleID) (*fileHandle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.files[id]; h != nil {
		return h, nil
	}
	return nil, dfserr.Errorf(dfserr.ErrBadHandle, "file handle %d", id)
}

func (s *Server) dir(id fuse.HandleID) (*dirHandle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.dirs[id]; d != nil {
		return d, nil
	}
	return nil, dfserr.Errorf(dfserr.ErrBadHandle, "directory handle %d", id)
}

func (s *Server) readFile(ctx context.Context, r *fuse.ReadRequest) error {
	h, err := s.file(r.Handle)
	if err != nil {
		return err
	}
	if h.direct {
		if _, _, err := s.backend.GetAttrShared(ctx, h.inode); err != nil {
			return err
		}
	}
	out := newReply(r.Size)
	out.b = out.b[:outHeaderSize+r.Size]
	n, err := h.file.ReadAt(ctx, out.b[outHeaderSize:], r.Offset)
	if err != nil {
		return err
	}
	s.stats.readBytes.Add(int64(n))
	out.b = out.b[:outHeaderSize+n]
	s.send(&r.Header, out)
	return nil
}

// writeFile answers WRITE. The data is bazil's until the reply, so the backend must be done with it by then: it is,
// because WriteAt and Append return after the replicas' acks. An append goes to the end of the file wherever that is
// now; the offset that the kernel computed may be old.
func (s *Server) writeFile(ctx context.Context, r *fuse.WriteRequest) error {
	h, err := s.file(r.Handle)
	if err != nil {
		return err
	}
	if !dfs.CheckRange(r.Offset, int64(len(r.Data)), dfs.MaxFileLength) {
		return dfserr.Errorf(dfserr.ErrFileTooLarge, "write of %d bytes at %d", len(r.Data), r.Offset)
	}
	if r.Flags&writeKillPriv != 0 {
		if err := s.killPriv(ctx, h.inode); err != nil {
			return err
		}
	}
	// A page written back from a mapping belongs where it was mapped, whatever the handle says.
	at := r.Offset
	if h.append || h.direct {
		s.pages.bypassed(h.inode)
	}
	if h.append && r.Flags&fuse.WriteCache == 0 {
		at, err = h.file.Append(ctx, r.Data)
	} else {
		err = h.file.WriteAt(ctx, r.Data, r.Offset)
	}
	if err != nil {
		return err
	}
	s.stats.writtenBytes.Add(int64(len(r.Data)))
	moved := at != r.Offset
	r.Respond(&fuse.WriteResponse{Size: len(r.Data)})
	if moved {
		// The kernel has put the bytes into its pages where it took the end to be. It holds those pages until it has the
		// reply, so they can be dropped only now.
		s.dropPages(r.Node, h.inode)
	}
	return nil
}

// writeKillPriv is FUSE_WRITE_KILL_SUIDGID: the writer may not keep setuid and setgid on the file.
const writeKillPriv fuse.WriteFlags = 1 << 2

// killPriv takes setuid, and setgid of what the group may execute, off a file that somebody writes.
func (s *Server) killPriv(ctx context.Context, inode dfs.InodeID) error {
	a, err := s.backend.GetAttr(ctx, inode)
	if err != nil {
		return err
	}
	mode := a.Mode & 0o7777 &^ syscall.S_ISUID
	if mode&0o010 != 0 {
		mode &^= syscall.S_ISGID
	}
	if mode == a.Mode&0o7777 {
		return nil
	}
	_, err = s.backend.SetAttr(ctx, Caller{}, inode, Change{Mode: &mode})
	return err
}

func (s *Server) flush(ctx context.Context, r *fuse.FlushRequest) error {
	h, err := s.file(r.Handle)
	if err != nil {
		return err
	}
	err = h.file.Flush(ctx)
	if lerr := s.releaseOwner(ctx, h, r.LockOwner); err == nil {
		err = lerr
	}
	if err != nil {
		return err
	}
	r.Respond()
	return nil
}

// fsync answers FSYNC and FSYNCDIR; a directory is durable as soon as its change was acknowledged.
func (s *Server) fsync(ctx context.Context, r *fuse.FsyncRequest) error {
	if !r.Dir {
		h, err := s.file(r.Handle)
		if err != nil {
			return err
		}
		if err := h.file.Sync(ctx); err != nil {
			return err
		}
	}
	r.Respond()
	return nil
}

// release answers RELEASE and RELEASEDIR. Nobody waits for its error; Flush has reported what close(2) must.
func (s *Server) release(ctx context.Context, r *fuse.ReleaseRequest) error {
	s.mu.Lock()
	h := s.files[r.Handle]
	delete(s.files, r.Handle)
	delete(s.dirs, r.Handle)
	s.mu.Unlock()
	if h != nil && !r.Dir {
		s.pages.closed(h.inode)
		if err := h.file.Close(ctx); err != nil {
			s.log.Warn("closing a file", "inode", h.inode, "error", err)
		}
		s.releaseHandle(ctx, r.Handle, h)
	}
	r.Respond()
	return nil
}

// flushAll does for every open file what close(2) would.
func (s *Server) flushAll(ctx context.Context) {
	s.mu.Lock()
	files := slices.Collect(maps.Values(s.files))
	s.mu.Unlock()
	for _, h := range files {
		if err := h.file.Flush(ctx); err != nil {
			s.log.Warn("flushing a file", "inode", h.inode, "error", err)
		}
	}
}

// closeAll ends the handles that a forced unmount left open.
func (s *Server) closeAll(ctx context.Context) {
	s.mu.Lock()
	files := s.files
	s.files, s.dirs = map[fuse.HandleID]*fileHandle{}, map[fuse.HandleID]*dirHandle{}
	s.mu.Unlock()
	for _, h := range files {
		if err := h.file.Close(ctx); err != nil {
			s.log.Warn("closing a file", "inode", h.inode, "error", err)
		}
	}
}

// fallocate answers FALLOCATE. Space is not set aside in advance, so allocating only makes the file longer when
// it has to be.
func (s *Server) fallocate(ctx context.Context, r *fuse.FAllocateRequest) error {
	h, err := s.file(r.Handle)
	if err != nil {
		return err
	}
	if r.Offset > uint64(dfs.MaxFileLength) || r.Length > uint64(dfs.MaxFileLength) || !dfs.CheckRange(int64(r.Offset), int64(r.Length), dfs.MaxFileLength) {
		return dfserr.Errorf(dfserr.ErrFileTooLarge, "fallocate of %d bytes at %d", r.Length, r.Offset)
	}
	off, n := int64(r.Offset), int64(r.Length)
	mode := uint32(r.Mode)
	switch mode {
	case 0, fallocKeepSize, fallocPunchHole | fallocKeepSize, fallocZeroRange, fallocZeroRange | fallocKeepSize:
	default:
		return dfserr.Errorf(dfserr.ErrUnsupported, "fallocate mode %#x", mode)
	}
	if mode&(fallocPunchHole|fallocZeroRange) != 0 {
		if err := h.file.Zero(ctx, off, n); err != nil {
			return err
		}
	}
	if mode&fallocKeepSize == 0 {
		a, err := s.backend.GetAttr(ctx, h.inode)
		if err != nil {
			return err
		}
		if a.Length < off+n {
			if _, err := s.backend.Truncate(ctx, s.caller(&r.Header), h.inode, off+n, true); err != nil {
				return err
			}
		}
	}
	r.Respond()
	return nil
}
