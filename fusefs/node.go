package fusefs

import (
	"context"

	"bazil.org/fuse"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// lookup answers LOOKUP. "." and ".." never reach us: the kernel resolves them.
func (s *Server) lookup(ctx context.Context, r *fuse.LookupRequest) error {
	a, err := s.backend.Lookup(ctx, s.caller(&r.Header), s.inodeOf(r.Node), []byte(r.Name))
	if err != nil {
		return err
	}
	s.walked.put(r.Pid, &a)
	s.sendEntry(&r.Header, &a)
	return nil
}

// sendEntry replies with an inode that the kernel may now refer to.
func (s *Server) sendEntry(h *fuse.Header, a *Attr) {
	s.pages.truth(a)
	s.show.apply(a)
	out := newReply(entrySize)
	out.entry(a, s.attrValid, blksize)
	s.send(h, out)
}

// sendAttr replies with attributes.
func (s *Server) sendAttr(h *fuse.Header, a *Attr) {
	s.pages.truth(a)
	s.show.apply(a)
	out := newReply(16 + attrSize)
	out.attrOut(a, s.attrValid, blksize)
	s.send(h, out)
}

// getattr answers GETATTR: truly for stat(2), and with the mtime that pages chose before a read.
func (s *Server) getattr(ctx context.Context, r *fuse.GetattrRequest) error {
	if _, ok := handleOf(r); ok {
		a, shared, err := s.backend.GetAttrShared(ctx, s.inodeOf(r.Node))
		if err != nil {
			return err
		}
		s.pages.beforeRead(&a, shared, s.backend.Lease(a.Inode))
		s.show.apply(&a)
		out := newReply(16 + attrSize)
		out.attrOut(&a, 0, blksize)
		s.send(&r.Header, out)
		return nil
	}
	a, ok := s.walked.take(r.Pid, s.inodeOf(r.Node))
	if !ok {
		var err error
		if a, err = s.backend.GetAttr(ctx, s.inodeOf(r.Node)); err != nil {
			return err
		}
	}
	s.sendAttr(&r.Header, &a)
	return nil
}

// setattr answers SETATTR: a length through Truncate, the rest through SetAttr.
func (s *Server) setattr(ctx context.Context, r *fuse.SetattrRequest) error {
	who, inode := s.caller(&r.Header), s.inodeOf(r.Node)
	var a Attr
	var err error
	done := false
	if r.Valid.Size() {
		if r.Size > uint64(dfs.MaxFileLength) {
			return dfserr.Errorf(dfserr.ErrFileTooLarge, "length %d", r.Size)
		}
		if r.Valid.Handle() {
			if h, herr := s.file(r.Handle); herr == nil {
				if err := h.file.MayChange(ctx); err != nil {
					return err
				}
			}
		}
		if a, err = s.backend.Truncate(ctx, who, inode, int64(r.Size), r.Valid.Handle()); err != nil {
			return err
		}
		done = true
	}
	change := Change{AtimeNow: r.Valid.AtimeNow(), MtimeNow: r.Valid.MtimeNow()}
	if r.Valid.Mode() {
		mode := permBits(r.Mode)
		change.Mode = &mode
	}
	if r.Valid.Uid() {
		change.UID = &r.Uid
	}
	if r.Valid.Gid() {
		change.GID = &r.Gid
	}
	if r.Valid.Atime() && !change.AtimeNow {
		ns := r.Atime.UnixNano()
		change.AtimeNS = &ns
	}
	if r.Valid.Mtime() && !change.MtimeNow {
		ns := r.Mtime.UnixNano()
		change.MtimeNS = &ns
	}
	if change != (Change{}) {
		if a, err = s.backend.SetAttr(ctx, who, inode, change); err != nil {
			return err
		}
		done = true
	}
	if !done {
		if a, err = s.backend.GetAttr(ctx, inode); err != nil {
			return err
		}
	}
	s.sendAttr(&r.Header, &a)
	return nil
}

func (s *Server) readlink(ctx context.Context, r *fuse.ReadlinkRequest) error {
	a, err := s.backend.GetAttr(ctx, s.inodeOf(r.Node))
	if err != nil {
		return err
	}
	r.Respond(string(a.Target))
	return nil
}

// makeNode answers MKDIR, MKNOD and SYMLINK.
func (s *Server) makeNode(ctx context.Context, h *fuse.Header, name string, node NewNode) error {
	a, err := s.backend.Make(ctx, s.caller(h), s.inodeOf(h.Node), []byte(name), node)
	if err != nil {
		return err
	}
	s.sendEntry(h, &a)
	return nil
}

func (s *Server) link(ctx context.Context, r *fuse.LinkRequest) error {
	a, err := s.backend.Link(ctx, s.caller(&r.Header), s.inodeOf(r.OldNode), s.inodeOf(r.Node), []byte(r.NewName))
	if err != nil {
		return err
	}
	s.sendEntry(&r.Header, &a)
	return nil
}

func (s *Server) statfs(ctx context.Context, r *fuse.StatfsRequest) error {
	t, err := s.backend.StatFS(ctx)
	if err != nil {
		return err
	}
	const block = 4096
	const maxInodes = 1 << 40
	r.Respond(&fuse.StatfsResponse{
		Blocks: uint64(t.Capacity / block), Bfree: uint64(t.Free / block), Bavail: uint64(t.Free / block),
		Files: maxInodes, Ffree: maxInodes - uint64(t.Inodes),
		Bsize: block, Frsize: block, Namelen: dfs.NameMax,
	})
	return nil
}

// The xattr replies follow the kernel's rule: a size of 0 asks how long the answer is.

func (s *Server) getxattr(ctx context.Context, r *fuse.GetxattrRequest) error {
	v, err := s.backend.GetXattr(ctx, s.caller(&r.Header), s.inodeOf(r.Node), r.Name)
	if err != nil {
		return err
	}
	return s.sendXattr(&r.Header, r.Size, v)
}

func (s *Server) listxattr(ctx context.Context, r *fuse.ListxattrRequest) error {
	names, err := s.backend.ListXattr(ctx, s.caller(&r.Header), s.inodeOf(r.Node))
	if err != nil {
		return err
	}
	var list []byte
	for _, n := range names {
		list = append(append(list, n...), 0)
	}
	return s.sendXattr(&r.Header, r.Size, list)
}

// sendXattr replies with v, or with its size when the kernel gave no room.
func (s *Server) sendXattr(h *fuse.Header, room uint32, v []byte) error {
	if room != 0 && len(v) > int(room) {
		return dfserr.Errorf(dfserr.ErrRange, "extended attributes need %d bytes, the caller has %d", len(v), room)
	}
	out := newReply(8 + len(v))
	if room == 0 {
		out.u32(uint32(len(v)))
		out.u32(0)
	} else {
		out.b = append(out.b, v...)
	}
	s.send(h, out)
	return nil
}

// Flags of setxattr(2).
const (
	xattrCreate  = 1
	xattrReplace = 2
)

func (s *Server) setxattr(ctx context.Context, r *fuse.SetxattrRequest) error {
	value := append([]byte(nil), r.Xattr...) // ours only until Respond
	err := s.backend.SetXattr(ctx, s.caller(&r.Header), s.inodeOf(r.Node), r.Name, value, r.Flags&xattrCreate != 0, r.Flags&xattrReplace != 0)
	if err != nil {
		return err
	}
	r.Respond()
	return nil
}
