package master

import (
	"context"
	"errors"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/fsm"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

// Calls that change the namespace.

// proposeAll proposes a command until no part of it is left: one that deletes or changes very many records does so in
// bounded pieces, under one request number. Chunks that were cut off are fenced when it returns.
func (l *leader) proposeAll(ctx context.Context, cmd *dfsv1.Command) (*dfsv1.Result, error) {
	for {
		res, err := l.propose(ctx, cmd)
		if err == nil && res.GetDropped() > 0 {
			// With an older session it may be a repeat, of which the leader before this one has done a part.
			err = l.fenceDropped(ctx, dfs.Index(res.GetIndex()), dfs.Index(cmd.GetHeader().GetSession()) <= l.beganAt)
		}
		if err != nil || !res.GetMore() {
			return res, err
		}
	}
}

// attrReply is the end of most mutations.
func (l *leader) attrReply(ctx context.Context, res *dfsv1.Result, err error) (*dfsv1.AttrReply, error) {
	if err != nil {
		return nil, err
	}
	a, err := l.completeAttr(ctx, res.GetAttr())
	if err != nil {
		return nil, err
	}
	return &dfsv1.AttrReply{Attr: a, Index: res.GetIndex()}, nil
}

// checkCreate checks what can be checked before a create goes into the log.
func checkCreate(r *dfsv1.CreateRequest) error {
	if err := checkRequest(r.GetHeader(), []*dfsv1.Ref{r.GetParent()}, r.GetName()); err != nil {
		return err
	}
	switch {
	case len(r.GetData()) > dfs.InlineMax:
		return dfserr.Errorf(dfserr.ErrFileTooLarge, "create %q with %d bytes of data, the limit is %d", r.GetName(), len(r.GetData()), dfs.InlineMax)
	case len(r.GetSymlinkTarget()) > dfs.SymlinkMax:
		return dfserr.Errorf(dfserr.ErrNameTooLong, "link target of %q is %d bytes long, the limit is %d", r.GetName(), len(r.GetSymlinkTarget()), dfs.SymlinkMax)
	case r.GetChunkSize() != 0 && !dfs.ValidChunkSize(r.GetChunkSize()):
		return dfserr.Errorf(dfserr.ErrInvalid, "chunk size %d: want a power of two from %d to %d", r.GetChunkSize(), dfs.MinChunkSize, dfs.MaxChunkSize)
	case r.GetReplication() > dfs.MaxReplication:
		return dfserr.Errorf(dfserr.ErrInvalid, "replication %d, the limit is %d", r.GetReplication(), dfs.MaxReplication)
	}
	return nil
}

func (l *leader) create(ctx context.Context, r *dfsv1.CreateRequest) (*dfsv1.OpenReply, error) {
	if err := checkCreate(r); err != nil {
		return nil, err
	}
	cmd := &dfsv1.Command{Header: r.GetHeader(), Op: &dfsv1.Command_Create{Create: r}}
	if r.GetWantChunk() {
		replication := r.GetReplication()
		if replication == 0 && !r.GetReplicationSet() {
			replication = dfs.DefaultReplication
		}
		size := r.GetChunkSize()
		if size == 0 {
			size = dfs.DefaultChunkSize
		}
		// Without servers the file is made all the same; the client finds out when it asks for the chunk.
		if placed, err := l.place(replication, r.GetNearServer(), size); err == nil {
			cmd.Placement = serverNumbers(placed)
		} else {
			r.WantChunk = false
		}
	}
	if r.GetOpen() {
		ticket := l.sessions.beginCreate()
		defer l.sessions.endCreate(ticket)
	}
	res, err := l.proposeAll(ctx, cmd)
	if err != nil {
		return nil, err
	}
	id := dfs.InodeID(res.GetAttr().GetInode())
	session := dfs.SessionID(r.GetHeader().GetSession())
	if r.GetOpen() {
		if err := l.sessions.openNamed(session, id, true, r.GetHandle()); err != nil {
			return nil, err
		}
		if !res.GetCreated() {
			l.caches.recall(id, session)
			depsOf(ctx).inode(id)
		}
	}
	if k := res.GetChunks(); len(k) == 1 && len(k[0].GetReplicas()) < int(k[0].GetReplication()) {
		l.repairs.wake()
	}
	reply, err := l.createReply(ctx, session, res)
	if r.GetOpen() {
		l.sessions.endOpen(session, id, true, r.GetHandle(), err == nil)
	}
	return reply, err
}

func (l *leader) createReply(ctx context.Context, session dfs.SessionID, res *dfsv1.Result) (*dfsv1.OpenReply, error) {
	if a := res.GetAttr(); !res.GetCreated() && a.GetChunks() > 0 && len(res.GetChunks()) == 0 {
		// An existing file: the caller gets what an open would give.
		n, err := l.inode(dfs.InodeID(a.GetInode()))
		if err == nil {
			return l.openReply(ctx, dfs.InodeID(a.GetInode()), &n, dfs.Index(res.GetIndex()))
		}
		if !errors.Is(err, dfserr.ErrStaleInode) {
			return nil, err
		}
	}
	l.fill(res.GetChunks()...)
	attr := res.GetAttr()
	if !res.GetCreated() {
		var err error
		if attr, err = l.completeAttr(ctx, attr); err != nil {
			return nil, err
		}
	}
	return &dfsv1.OpenReply{
		Leased: res.GetCreated() && l.grantAttr(session, attr, dfs.Index(res.GetIndex())),
		Attr:   attr, InlineData: res.GetInlineData(), Chunks: res.GetChunks(), Index: res.GetIndex(), Created: res.GetCreated(),
	}, nil
}

// openReply describes a file to someone who opens it.
func (l *leader) openReply(ctx context.Context, id dfs.InodeID, n *namespace.Inode, index dfs.Index) (*dfsv1.OpenReply, error) {
	attr, err := l.attr(ctx, id, n)
	if err != nil {
		return nil, err
	}
	reply := &dfsv1.OpenReply{Attr: attr, InlineData: n.Inline, Index: uint64(index)}
	if attr.GetChunks() > 0 {
		v, err := l.view()
		if err != nil {
			return nil, err
		}
		reply.Chunks, err = v.FileConfigs(id, 0, openChunks)
		v.Close()
		if err != nil {
			return nil, err
		}
		l.fill(reply.GetChunks()...)
	}
	return reply, nil
}

func (l *leader) remove(ctx context.Context, r *dfsv1.RemoveRequest) (*dfsv1.RemoveReply, error) {
	if err := checkRequest(r.GetHeader(), []*dfsv1.Ref{r.GetParent()}, r.GetName()); err != nil {
		return nil, err
	}
	res, err := l.propose(ctx, &dfsv1.Command{Header: r.GetHeader(), Op: &dfsv1.Command_Remove{Remove: r}})
	if err != nil {
		return nil, err
	}
	poke(l.reclaim)
	return &dfsv1.RemoveReply{Index: res.GetIndex()}, nil
}

func (l *leader) rename(ctx context.Context, r *dfsv1.RenameRequest) (*dfsv1.AttrReply, error) {
	if err := checkRequest(r.GetHeader(), []*dfsv1.Ref{r.GetOldParent(), r.GetNewParent()}, r.GetOldName(), r.GetNewName()); err != nil {
		return nil, err
	}
	res, err := l.propose(ctx, &dfsv1.Command{Header: r.GetHeader(), Op: &dfsv1.Command_Rename{Rename: r}})
	if err == nil {
		poke(l.reclaim)
	}
	return l.attrReply(ctx, res, err)
}

func (l *leader) link(ctx context.Context, r *dfsv1.LinkRequest) (*dfsv1.AttrReply, error) {
	if err := checkRequest(r.GetHeader(), []*dfsv1.Ref{r.GetTarget(), r.GetParent()}, r.GetName()); err != nil {
		return nil, err
	}
	res, err := l.propose(ctx, &dfsv1.Command{Header: r.GetHeader(), Op: &dfsv1.Command_Link{Link: r}})
	return l.attrReply(ctx, res, err)
}

func (l *leader) setAttr(ctx context.Context, r *dfsv1.SetAttrRequest) (*dfsv1.AttrReply, error) {
	if err := checkRequest(r.GetHeader(), []*dfsv1.Ref{r.GetRef()}); err != nil {
		return nil, err
	}
	if r.GetReplication() > dfs.MaxReplication {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "replication %d, the limit is %d", r.GetReplication(), dfs.MaxReplication)
	}
	res, err := l.proposeAll(ctx, &dfsv1.Command{Header: r.GetHeader(), Op: &dfsv1.Command_SetAttr{SetAttr: r}})
	if err == nil && r.Replication != nil && res.GetAttr().GetChunks() > 0 {
		l.repairs.wake()
	}
	return l.attrReply(ctx, res, err)
}

func checkXattr(h *dfsv1.MutationHeader, ref *dfsv1.Ref, name []byte) error {
	if err := checkRequest(h, []*dfsv1.Ref{ref}); err != nil {
		return err
	}
	if len(name) == 0 || len(name) > dfs.XattrNameMax {
		return dfserr.Errorf(dfserr.ErrRange, "attribute name %.32q is %d bytes long, the limit is %d", name, len(name), dfs.XattrNameMax)
	}
	return nil
}

func (l *leader) setXattr(ctx context.Context, r *dfsv1.SetXattrRequest) (*dfsv1.AttrReply, error) {
	if err := checkXattr(r.GetHeader(), r.GetRef(), r.GetName()); err != nil {
		return nil, err
	}
	if len(r.GetValue()) > dfs.XattrValueMax {
		return nil, dfserr.Errorf(dfserr.ErrTooBig, "value of attribute %q is %d bytes long, the limit is %d", r.GetName(), len(r.GetValue()), dfs.XattrValueMax)
	}
	res, err := l.propose(ctx, &dfsv1.Command{Header: r.GetHeader(), Op: &dfsv1.Command_SetXattr{SetXattr: r}})
	return l.attrReply(ctx, res, err)
}

func (l *leader) removeXattr(ctx context.Context, r *dfsv1.RemoveXattrRequest) (*dfsv1.AttrReply, error) {
	if err := checkXattr(r.GetHeader(), r.GetRef(), r.GetName()); err != nil {
		return nil, err
	}
	res, err := l.propose(ctx, &dfsv1.Command{Header: r.GetHeader(), Op: &dfsv1.Command_RemoveXattr{RemoveXattr: r}})
	return l.attrReply(ctx, res, err)
}

// truncate sets a file's length. When it returns, bytes that were cut off are gone for good: no replica of what was dropped
// takes writes or answers reads any more, and the cut inside the last chunk has been made. And no append goes anywhere but to the new end.
func (l *leader) truncate(ctx context.Context, r *dfsv1.TruncateRequest) (*dfsv1.AttrReply, error) {
	if err := checkRequest(r.GetHeader(), []*dfsv1.Ref{r.GetRef()}); err != nil {
		return nil, err
	}
	if r.GetLength() < 0 {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "truncate to %d", r.GetLength())
	}
	if r.GetLength() > dfs.MaxFileLength {
		return nil, dfserr.Errorf(dfserr.ErrFileTooLarge, "truncate to %d, the limit is %d", r.GetLength(), dfs.MaxFileLength)
	}
	id, n, resolveErr := l.truncated(ctx, r)
	if resolveErr == nil {
		done, err := l.ends.move(ctx, id)
		if err != nil {
			return nil, err
		}
		defer done()
		n, resolveErr = l.inode(id)
	}
	// From here on the file is named by its inode: what is learnt of its length must not be applied to another that gets its name. The
	// command goes into the log even when the name is gone: it may be a repeat whose reply is known.
	byInode := &dfsv1.TruncateRequest{Header: r.GetHeader(), Ref: &dfsv1.Ref{Inode: uint64(id)}, Length: r.GetLength(), HandleInode: r.GetHandleInode()}
	if resolveErr != nil {
		byInode.Ref.Inode = noInode
	}
	cmd := &dfsv1.Command{Header: r.GetHeader(), Op: &dfsv1.Command_Truncate{Truncate: byInode}}
	var res *dfsv1.Result
	var err error
	for {
		if cmd.TailLength, err = l.holdTail(ctx, id, &n); err != nil {
			return nil, err
		}
		res, err = l.proposeAll(ctx, cmd)
		if resolveErr != nil && err != nil {
			return nil, resolveErr
		}
		if !errors.Is(err, dfserr.ErrBusy) {
			break
		}
		if err := l.makeCut(ctx, id, r.GetLength()); err != nil {
			return nil, err
		}
		if n, err = l.inode(id); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	id = dfs.InodeID(res.GetAttr().GetInode())
	if res.GetAttr().GetChunks() > 0 {
		if err := l.makeCut(ctx, id, r.GetLength()); err != nil {
			return nil, err
		}
	}
	return l.attrReply(ctx, res, nil)
}

// noInode is an inode that never exists.
const noInode = 1<<64 - 1

// truncated finds the file that a request is about. That the caller may change it is checked when the command is applied.
func (l *leader) truncated(ctx context.Context, r *dfsv1.TruncateRequest) (dfs.InodeID, namespace.Inode, error) {
	v, err := l.read(ctx, 0)
	if err != nil {
		return 0, namespace.Inode{}, err
	}
	defer v.Close()
	if id := dfs.InodeID(r.GetHandleInode()); id != 0 {
		n, err := v.GetInode(id)
		return id, n, err
	}
	return v.Resolve(fsm.CallerOf(r.GetHeader().GetCaller()), fsm.RefOf(r.GetRef()))
}

// makeCut has the cut made that is pending on the chunk in which length falls, if any.
func (l *leader) makeCut(ctx context.Context, id dfs.InodeID, length int64) error {
	n, err := l.inode(id)
	if errors.Is(err, dfserr.ErrStaleInode) {
		return nil
	}
	if err != nil || n.ChunkSize() == 0 {
		return err
	}
	chunk, ok, err := l.fileChunk(id, length/n.ChunkSize())
	if err != nil || !ok {
		return err
	}
	r, err := l.chunkRecord(chunk)
	if isGone(err) || err == nil && r.CutVersion == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	l.fleet.revokeLease(chunk)
	if _, _, err := l.activateChunk(ctx, chunk); err != nil && !isGone(err) {
		return dfserr.Errorf(dfserr.ErrBusy, "inode %d: chunk %s cannot be cut now (%v)", id, chunk, err)
	}
	return nil
}
