package fake

import (
	"context"
	"errors"
	"io"
	"path"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// masterService implements the master's service on the Cluster's maps.
type masterService struct {
	dfsv1.UnimplementedMasterServer
	c *Cluster
}

// handle runs one call: hooks, deduplication of numbered requests, and the handler under the lock.
func handle[R any](c *Cluster, method string, req any, h *dfsv1.MutationHeader, f func() (R, error)) (R, error) {
	var none R
	c.mu.Lock()
	c.calls[method]++
	c.mu.Unlock()
	if c.Before != nil {
		if err := c.Before(method, req); err != nil {
			return none, err
		}
	}
	out, err := func() (R, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if h == nil {
			return f()
		}
		if !c.sessions[h.GetSession()] {
			return none, dfserr.Errorf(dfserr.ErrUnknownSession, "session %d", h.GetSession())
		}
		key := [2]uint64{h.GetSession(), h.GetSeq()}
		if r, ok := c.replies[key]; ok {
			out, _ := r.msg.(R)
			return out, r.err
		}
		c.index++
		out, err := f()
		c.replies[key] = reply{out, err}
		return out, err
	}()
	if c.After != nil {
		if err := c.After(method, req); err != nil {
			return none, err
		}
	}
	return out, err
}

func (m *masterService) OpenSession(_ context.Context, r *dfsv1.OpenSessionRequest) (*dfsv1.OpenSessionReply, error) {
	c := m.c
	return handle(c, "OpenSession", r, nil, func() (*dfsv1.OpenSessionReply, error) {
		c.next++
		c.sessions[c.next] = true
		return &dfsv1.OpenSessionReply{Session: c.next, TtlMs: 30_000, ClusterId: 7}, nil
	})
}

func (m *masterService) CloseSession(_ context.Context, r *dfsv1.CloseSessionRequest) (*dfsv1.CloseSessionReply, error) {
	c := m.c
	return handle(c, "CloseSession", r, nil, func() (*dfsv1.CloseSessionReply, error) {
		delete(c.sessions, r.GetSession())
		return &dfsv1.CloseSessionReply{}, nil
	})
}

func (m *masterService) KeepAlive(stream grpc.BidiStreamingServer[dfsv1.KeepAliveRequest, dfsv1.KeepAliveReply]) error {
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		m.c.mu.Lock()
		known := m.c.sessions[r.GetSession()]
		for _, i := range r.GetOpenInodes() {
			m.c.opens[i]++
		}
		m.c.mu.Unlock()
		if !known {
			return dfserr.Errorf(dfserr.ErrUnknownSession, "session %d", r.GetSession())
		}
		if err := stream.Send(&dfsv1.KeepAliveReply{TtlMs: 30_000}); err != nil {
			return err
		}
	}
}

// find walks a reference, following symbolic links to absolute targets.
func (c *Cluster) find(r *dfsv1.Ref) (*inode, error) {
	at := r.GetInode()
	if at == 0 {
		at = 1
	}
	n := c.inodes[at]
	if n == nil {
		return nil, dfserr.Errorf(dfserr.ErrStaleInode, "inode %d", at)
	}
	names, err := dfs.SplitPath(r.GetPath())
	if err != nil {
		return nil, err
	}
	for i, name := range names {
		if n.entries == nil {
			return nil, dfserr.Errorf(dfserr.ErrNotDir, "%q", name)
		}
		next := c.inodes[n.entries[string(name)]]
		if next == nil {
			return nil, errNotFound(string(r.GetPath()))
		}
		if t := next.attr.GetSymlinkTarget(); t != nil && (i < len(names)-1 || !r.GetNoFollow()) {
			if next, err = c.find(&dfsv1.Ref{Path: t}); err != nil {
				return nil, err
			}
		}
		n = next
	}
	return n, nil
}

// attr returns what to tell about an inode.
func (c *Cluster) attr(n *inode) *dfsv1.Attr {
	a := proto.Clone(n.attr).(*dfsv1.Attr)
	a.Length = c.lengthLocked(n)
	if n.chunks != nil {
		for i := range n.chunks {
			a.Chunks = max(a.Chunks, i+1)
		}
		a.Inline = len(n.chunks) == 0 && n.attr.GetInline()
	}
	return a
}

func (m *masterService) GetAttr(_ context.Context, r *dfsv1.GetAttrRequest) (*dfsv1.AttrReply, error) {
	c := m.c
	return handle(c, "GetAttr", r, nil, func() (*dfsv1.AttrReply, error) {
		n, err := c.find(r.GetRef())
		if err != nil {
			return nil, err
		}
		return &dfsv1.AttrReply{Attr: c.attr(n), Index: c.index}, nil
	})
}

func (m *masterService) StatFs(_ context.Context, r *dfsv1.StatFsRequest) (*dfsv1.StatFsReply, error) {
	return handle(m.c, "StatFs", r, nil, func() (*dfsv1.StatFsReply, error) {
		return &dfsv1.StatFsReply{Inodes: int64(len(m.c.inodes))}, nil
	})
}

func (m *masterService) ReadDir(_ context.Context, r *dfsv1.ReadDirRequest) (*dfsv1.ReadDirReply, error) {
	c := m.c
	return handle(c, "ReadDir", r, nil, func() (*dfsv1.ReadDirReply, error) {
		n, err := c.find(r.GetRef())
		if err != nil {
			return nil, err
		}
		if n.entries == nil {
			return nil, dfserr.ErrNotDir
		}
		var names []string
		for name := range n.entries {
			if name > string(r.GetAfter()) {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		out := &dfsv1.ReadDirReply{End: true, Index: c.index, Dir: c.attr(n)}
		const page = 3 // small, so that paging is exercised
		if len(names) > page {
			names, out.End = names[:page], false
		}
		for _, name := range names {
			out.Entries = append(out.Entries, &dfsv1.DirEntry{Name: []byte(name), Attr: c.attr(c.inodes[n.entries[name]])})
		}
		return out, nil
	})
}

func (m *masterService) Create(_ context.Context, r *dfsv1.CreateRequest) (*dfsv1.OpenReply, error) {
	c := m.c
	return handle(c, "Create", r, r.GetHeader(), func() (*dfsv1.OpenReply, error) {
		if r.GetMakeParents() {
			at := "/"
			for _, name := range strings.Split(string(r.GetParent().GetPath()), "/") {
				if name == "" {
					continue
				}
				dir, err := c.find(&dfsv1.Ref{Path: []byte(at)})
				if err != nil {
					return nil, err
				}
				if _, ok := dir.entries[name]; !ok {
					c.make(dir, name, &dfsv1.CreateRequest{Mode: 0o040755})
				}
				at = path.Join(at, name)
			}
		}
		dir, err := c.find(r.GetParent())
		if err != nil {
			return nil, err
		}
		if dir.entries == nil {
			return nil, dfserr.ErrNotDir
		}
		if id, ok := dir.entries[string(r.GetName())]; ok {
			return c.createExisting(r, c.inodes[id])
		}
		n := c.make(dir, string(r.GetName()), r)
		if r.GetOpen() {
			c.opens[n.attr.GetInode()]++
		}
		return &dfsv1.OpenReply{Attr: c.attr(n), Index: c.index, Created: true}, nil
	})
}

func (c *Cluster) createExisting(r *dfsv1.CreateRequest, n *inode) (*dfsv1.OpenReply, error) {
	isDir := n.entries != nil
	if r.GetExclusive() || n.attr.GetSymlinkTarget() != nil || (isDir && !r.GetMakeParents()) {
		return nil, dfserr.Errorf(dfserr.ErrExist, "%q", r.GetName())
	}
	if r.GetTruncate() {
		n.chunks, n.data = map[int64]uint64{}, r.GetData()
		n.attr.Length, n.attr.Inline = int64(len(n.data)), true
	}
	if r.GetOpen() {
		c.opens[n.attr.GetInode()]++
	}
	return &dfsv1.OpenReply{Attr: c.attr(n), InlineData: n.data, Index: c.index}, nil
}

func (c *Cluster) make(dir *inode, name string, r *dfsv1.CreateRequest) *inode {
	c.next++
	a := &dfsv1.Attr{
		Inode: c.next, Mode: r.GetMode(), Nlink: 1, Rdev: r.GetRdev(), MtimeNs: int64(c.index), ChunkSize: r.GetChunkSize(), Replication: 3,
		SymlinkTarget: r.GetSymlinkTarget(), Uid: r.GetHeader().GetCaller().GetUid(),
	}
	n := &inode{attr: a}
	switch r.GetMode() & 0o170000 {
	case 0o040000:
		n.entries = map[string]uint64{}
	case 0o100000:
		if a.ChunkSize == 0 {
			a.ChunkSize = dfs.MinChunkSize
		}
		n.chunks, n.data = map[int64]uint64{}, r.GetData()
		a.Inline, a.Length = true, int64(len(n.data))
	}
	c.inodes[c.next] = n
	dir.entries[name] = c.next
	return n
}

func (m *masterService) Remove(_ context.Context, r *dfsv1.RemoveRequest) (*dfsv1.RemoveReply, error) {
	c := m.c
	return handle(c, "Remove", r, r.GetHeader(), func() (*dfsv1.RemoveReply, error) {
		dir, err := c.find(r.GetParent())
		if err != nil {
			return nil, err
		}
		id, ok := dir.entries[string(r.GetName())]
		if !ok {
			return nil, errNotFound(string(r.GetName()))
		}
		if n := c.inodes[id]; len(n.entries) > 0 && r.GetWhat() != dfsv1.RemoveRequest_TREE {
			return nil, dfserr.ErrNotEmpty
		}
		delete(dir.entries, string(r.GetName()))
		return &dfsv1.RemoveReply{Index: c.index}, nil
	})
}

func (m *masterService) Rename(_ context.Context, r *dfsv1.RenameRequest) (*dfsv1.AttrReply, error) {
	c := m.c
	return handle(c, "Rename", r, r.GetHeader(), func() (*dfsv1.AttrReply, error) { return c.renameLocked(r) })
}

func (c *Cluster) renameLocked(r *dfsv1.RenameRequest) (*dfsv1.AttrReply, error) {
	from, err := c.find(r.GetOldParent())
	if err != nil {
		return nil, err
	}
	to, err := c.find(r.GetNewParent())
	if err != nil {
		return nil, err
	}
	id, ok := from.entries[string(r.GetOldName())]
	if !ok {
		return nil, errNotFound(string(r.GetOldName()))
	}
	if _, ok := to.entries[string(r.GetNewName())]; ok && r.GetNoReplace() {
		return nil, dfserr.ErrExist
	}
	delete(from.entries, string(r.GetOldName()))
	to.entries[string(r.GetNewName())] = id
	return &dfsv1.AttrReply{Attr: c.attr(c.inodes[id]), Index: c.index}, nil
}

func (m *masterService) SetAttr(_ context.Context, r *dfsv1.SetAttrRequest) (*dfsv1.AttrReply, error) {
	c := m.c
	return handle(c, "SetAttr", r, r.GetHeader(), func() (*dfsv1.AttrReply, error) {
		n, err := c.find(r.GetRef())
		if err != nil {
			return nil, err
		}
		a := n.attr
		if r.Mode != nil {
			a.Mode = a.GetMode()&0o170000 | r.GetMode()
		}
		if r.Uid != nil {
			a.Uid = r.GetUid()
		}
		if r.Gid != nil {
			a.Gid = r.GetGid()
		}
		if r.MtimeNs != nil {
			a.MtimeNs = r.GetMtimeNs()
		}
		if r.Replication != nil {
			a.Replication = r.GetReplication()
		}
		return &dfsv1.AttrReply{Attr: c.attr(n), Index: c.index}, nil
	})
}

func (m *masterService) Truncate(_ context.Context, r *dfsv1.TruncateRequest) (*dfsv1.AttrReply, error) {
	c := m.c
	return handle(c, "Truncate", r, r.GetHeader(), func() (*dfsv1.AttrReply, error) {
		n, err := c.find(r.GetRef())
		if err != nil {
			return nil, err
		}
		size, cs := r.GetLength(), n.attr.GetChunkSize()
		n.attr.Length = size
		n.data = n.data[:min(size, int64(len(n.data)))]
		for i, id := range n.chunks {
			k := c.chunks[id]
			switch {
			case i*cs >= size:
				delete(n.chunks, i)
				delete(c.chunks, id)
			case (i+1)*cs > size:
				for _, s := range k.replicas {
					s.data[id] = s.data[id][:min(size-i*cs, int64(len(s.data[id])))]
				}
				c.reconfigureLocked(k, k.replicas)
			}
		}
		return &dfsv1.AttrReply{Attr: c.attr(n), Index: c.index}, nil
	})
}

func (m *masterService) Open(_ context.Context, r *dfsv1.OpenRequest) (*dfsv1.OpenReply, error) {
	c := m.c
	return handle(c, "Open", r, nil, func() (*dfsv1.OpenReply, error) {
		if r.GetSession() != 0 && !c.sessions[r.GetSession()] {
			return nil, dfserr.Errorf(dfserr.ErrUnknownSession, "session %d", r.GetSession())
		}
		n, err := c.find(r.GetRef())
		if err != nil {
			return nil, err
		}
		if n.entries != nil && r.GetWrite() {
			return nil, dfserr.ErrIsDir
		}
		out := &dfsv1.OpenReply{Attr: c.attr(n), Index: c.index}
		if n.entries == nil && r.GetSession() != 0 {
			c.opens[n.attr.GetInode()]++
		}
		if out.GetAttr().GetInline() {
			out.InlineData = n.data
		}
		if id, ok := n.chunks[0]; ok {
			out.Chunks = []*dfsv1.ChunkConfig{c.configLocked(c.chunks[id])}
		}
		return out, nil
	})
}

func (m *masterService) Close(_ context.Context, r *dfsv1.CloseRequest) (*dfsv1.CloseReply, error) {
	c := m.c
	return handle(c, "Close", r, nil, func() (*dfsv1.CloseReply, error) {
		c.opens[r.GetInode()]--
		return &dfsv1.CloseReply{Index: c.index}, nil
	})
}

func (m *masterService) WriteInline(_ context.Context, r *dfsv1.WriteInlineRequest) (*dfsv1.WriteInlineReply, error) {
	c := m.c
	return handle(c, "WriteInline", r, r.GetHeader(), func() (*dfsv1.WriteInlineReply, error) {
		n := c.inodes[r.GetInode()]
		if !c.attr(n).GetInline() {
			return nil, dfserr.ErrInlineMoved
		}
		off := r.GetOffset()
		if r.GetAppend() {
			off = n.attr.GetLength()
		}
		end := off + int64(len(r.GetData()))
		if end > dfs.InlineMax {
			return nil, dfserr.ErrFileTooLarge
		}
		data := append([]byte(nil), n.data...)
		if int64(len(data)) < end {
			data = append(data, make([]byte, end-int64(len(data)))...)
		}
		copy(data[off:], r.GetData())
		n.data, n.attr.Length = data, max(n.attr.GetLength(), end)
		return &dfsv1.WriteInlineReply{Attr: c.attr(n), Offset: off, Index: c.index}, nil
	})
}

func (m *masterService) GetChunks(_ context.Context, r *dfsv1.GetChunksRequest) (*dfsv1.GetChunksReply, error) {
	c := m.c
	return handle(c, "GetChunks", r, nil, func() (*dfsv1.GetChunksReply, error) {
		n := c.inodes[r.GetInode()]
		if n == nil {
			return nil, dfserr.ErrStaleInode
		}
		out := &dfsv1.GetChunksReply{Attr: c.attr(n), Index: c.index}
		if out.GetAttr().GetInline() {
			out.InlineData = n.data
		}
		first, last := r.GetFirst(), r.GetFirst()+int64(r.GetCount())-1
		if r.GetLast() {
			first = out.GetAttr().GetChunks() - 1
			last = first
		}
		if r.GetUnsynced() { // what others wrote is not kept track of here, but for the tail
			first = max(first, out.GetAttr().GetChunks()-1)
		}
		for i := first; i <= last; i++ {
			if id, ok := n.chunks[i]; ok {
				out.Chunks = append(out.Chunks, c.configLocked(c.chunks[id]))
			}
		}
		return out, nil
	})
}

func (m *masterService) AddChunk(_ context.Context, r *dfsv1.AddChunkRequest) (*dfsv1.AddChunkReply, error) {
	c := m.c
	return handle(c, "AddChunk", r, r.GetHeader(), func() (*dfsv1.AddChunkReply, error) {
		n := c.inodes[r.GetInode()]
		id, ok := n.chunks[r.GetIndex()]
		if !ok {
			k := c.newChunkLocked(r.GetInode(), r.GetIndex(), n.attr.GetChunkSize())
			id = k.id
			if c.attr(n).GetInline() {
				for _, s := range k.replicas {
					s.data[id] = append([]byte(nil), n.data...)
				}
				n.data, n.attr.Inline = nil, false
			}
			n.chunks[r.GetIndex()] = id
		}
		return &dfsv1.AddChunkReply{Chunk: c.configLocked(c.chunks[id]), Attr: c.attr(n), Index: c.index}, nil
	})
}

func (m *masterService) CommitLength(_ context.Context, r *dfsv1.CommitLengthRequest) (*dfsv1.AttrReply, error) {
	c := m.c
	return handle(c, "CommitLength", r, r.GetHeader(), func() (*dfsv1.AttrReply, error) {
		n := c.inodes[r.GetInode()]
		if k := c.chunks[r.GetChunk()]; r.GetChunk() != 0 && (k == nil || k.version != r.GetVersion()) && r.GetLength() > n.attr.GetLength() {
			return nil, dfserr.ErrStaleVersion
		}
		if r.GetRename() != nil {
			if _, err := c.renameLocked(r.GetRename()); err != nil {
				return nil, err
			}
		}
		n.attr.Length = max(n.attr.GetLength(), r.GetLength())
		n.attr.MtimeNs = int64(c.index)
		if r.GetRelease() {
			c.opens[r.GetInode()]--
		}
		return &dfsv1.AttrReply{Attr: c.attr(n), Index: c.index}, nil
	})
}

func (m *masterService) ReportFailure(_ context.Context, r *dfsv1.ReportFailureRequest) (*dfsv1.ReportFailureReply, error) {
	c := m.c
	return handle(c, "ReportFailure", r, nil, func() (*dfsv1.ReportFailureReply, error) {
		c.reports = append(c.reports, r)
		k := c.chunks[r.GetChunk()]
		if k == nil {
			return nil, errNotFound(r.GetChunk())
		}
		if k.version == r.GetVersion() && len(k.replicas) > 1 {
			left := slices.DeleteFunc(slices.Clone(k.replicas), func(s *Server) bool { return s.ID == r.GetServer() })
			c.reconfigureLocked(k, left)
		}
		return &dfsv1.ReportFailureReply{Config: c.configLocked(k), Index: c.index}, nil
	})
}
