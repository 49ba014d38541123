package master

import (
	"cmp"
	"context"
	"slices"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/cluster"
	"dfs/master/fsm"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

// Calls about a file's bytes: where they are, and how many. They name the inode; permission was checked when it was opened.

func (l *leader) closeHandle(_ context.Context, r *dfsv1.CloseRequest) (*dfsv1.CloseReply, error) {
	l.sessions.closeNamed(dfs.SessionID(r.GetSession()), dfs.InodeID(r.GetInode()), r.GetWrite(), r.GetHandle())
	return &dfsv1.CloseReply{Index: uint64(l.db.Applied())}, nil
}

func (l *leader) writeInline(ctx context.Context, r *dfsv1.WriteInlineRequest) (*dfsv1.WriteInlineReply, error) {
	if err := checkHeader(r.GetHeader()); err != nil {
		return nil, err
	}
	if r.GetOffset() < 0 {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "write inode %d at %d", r.GetInode(), r.GetOffset())
	}
	if len(r.GetData()) > dfs.InlineMax {
		return nil, dfserr.Errorf(dfserr.ErrFileTooLarge, "write %d bytes into inode %d, the limit is %d", len(r.GetData()), r.GetInode(), dfs.InlineMax)
	}
	res, err := l.propose(ctx, &dfsv1.Command{Header: r.GetHeader(), Op: &dfsv1.Command_WriteInline{WriteInline: r}})
	if err != nil {
		return nil, err
	}
	return &dfsv1.WriteInlineReply{Attr: res.GetAttr(), Offset: res.GetOffset(), Index: res.GetIndex()}, nil
}

// maxGetChunks bounds one reply.
const maxGetChunks = 1024

func (l *leader) getChunks(ctx context.Context, r *dfsv1.GetChunksRequest) (*dfsv1.GetChunksReply, error) {
	id := dfs.InodeID(r.GetInode())
	if r.GetFirst() < 0 || r.GetFirst() > dfs.MaxFileLength/dfs.MinChunkSize {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "chunks of inode %d from %d", id, r.GetFirst())
	}
	if r.GetForWrite() {
		if err := l.sessions.awaitClosing(ctx, id); err != nil {
			return nil, err
		}
	}
	reply, opened, err := l.readChunks(ctx, r)
	if err == nil && !opened {
		// The answer must not be used before the tail is open, and may have changed by then.
		if err = l.openTail(ctx, id); err == nil {
			reply, _, err = l.readChunks(ctx, r)
		}
	}
	if err != nil {
		return nil, err
	}
	l.fill(reply.GetChunks()...)
	if !r.GetForWrite() && !r.GetUnsynced() {
		// A writer needs no exact length, and asking the primary for it would delay every write.
		reply.Attr, err = l.completeAttr(ctx, reply.GetAttr())
	}
	return reply, err
}

// readChunks reads what getChunks answers, but for addresses and an exact length. opened is false when the tail must be
// opened first.
func (l *leader) readChunks(ctx context.Context, r *dfsv1.GetChunksRequest) (reply *dfsv1.GetChunksReply, opened bool, err error) {
	v, err := l.read(ctx, r.GetMinIndex())
	if err != nil {
		return nil, false, err
	}
	defer v.Close()
	id := dfs.InodeID(r.GetInode())
	n, err := namespace.GetFile(v, id)
	if err != nil {
		return nil, false, err
	}
	first, count := r.GetFirst(), int64(min(r.GetCount(), maxGetChunks))
	if r.GetLast() {
		first, count = max(0, n.Chunks-1), 1
	}
	last := n.Chunks - 1
	opened = !r.GetForWrite() || n.TailOpen || last < 0 || last < first || last >= first+count
	reply = &dfsv1.GetChunksReply{Attr: fsm.AttrOf(id, &n), InlineData: n.Inline, Index: uint64(v.Index())}
	if r.GetUnsynced() {
		reply.Chunks, err = l.unsyncedConfigs(v, id, &n, first, int(count))
		return reply, true, err
	}
	reply.Chunks, err = v.FileConfigs(id, first, int(count))
	return reply, opened, err
}

// unsyncedConfigs returns, in order of index, at most count of a file's chunks from index first on that may hold data which is not on stable storage: those with a
// lease that was not given back after a sync, and the last one while its length lives with it.
func (l *leader) unsyncedConfigs(v *fsm.View, id dfs.InodeID, n *namespace.Inode, first int64, count int) ([]*dfsv1.ChunkConfig, error) {
	ids := l.fleet.unsyncedOf(id)
	if n.TailOpen {
		last, ok, err := v.FileChunk(id, n.Chunks-1)
		if err != nil {
			return nil, err
		}
		if ok && !slices.Contains(ids, last) {
			ids = append(ids, last)
		}
	}
	var configs []*dfsv1.ChunkConfig
	for _, c := range ids {
		config, err := v.Config(c)
		if err != nil {
			return nil, err
		}
		if config == nil {
			l.fleet.forgetLeases(c)
			continue
		}
		if config.GetIndex() >= first {
			configs = append(configs, config)
		}
	}
	slices.SortFunc(configs, func(a, b *dfsv1.ChunkConfig) int { return cmp.Compare(a.GetIndex(), b.GetIndex()) })
	return configs[:min(count, len(configs))], nil
}

// openTail commits that the file's length lives with its last chunk's primary.
func (l *leader) openTail(ctx context.Context, id dfs.InodeID) error {
	_, err := l.propose(ctx, &dfsv1.Command{Op: &dfsv1.Command_OpenTail{OpenTail: &dfsv1.OpenTailCommand{Inode: uint64(id)}}})
	return err
}

// place chooses servers for a new chunk, primary first.
func (l *leader) place(replication uint32, near uint64, chunkSize int64) ([]dfs.ServerID, error) {
	if safe := l.fleet.safeMode(); safe.On {
		return nil, dfserr.Errorf(dfserr.ErrSafeMode, "place a chunk: %s", safe)
	}
	want := int(max(1, replication))
	c := l.fleet.place(l.nextChunk.guess(l), want, dfs.ServerID(near), chunkSize)
	need := dfs.MinReplicas(want, l.cfg.MinReplicas)
	switch {
	case len(c.servers) >= need:
		return c.servers, nil
	case c.live == 0:
		return nil, dfserr.Errorf(dfserr.ErrNoReplica, "place a chunk: none of %d known chunkservers is alive, %d replicas are needed", c.known, need)
	case c.full > 0:
		return nil, dfserr.Errorf(dfserr.ErrNoSpace, "place a chunk: %d of %d live chunkservers are full, %d replicas are needed", c.full, c.live, need)
	}
	return nil, dfserr.Errorf(dfserr.ErrTooFewReplicas, "place a chunk: %d chunkservers are alive (of %d known), %d replicas are needed", c.live, c.known, need)
}

func (l *leader) addChunk(ctx context.Context, r *dfsv1.AddChunkRequest) (*dfsv1.AddChunkReply, error) {
	if err := checkHeader(r.GetHeader()); err != nil {
		return nil, err
	}
	id := dfs.InodeID(r.GetInode())
	if err := l.sessions.awaitClosing(ctx, id); err != nil {
		return nil, err
	}
	v, err := l.read(ctx, 0)
	if err != nil {
		return nil, err
	}
	n, err := namespace.GetFile(v, id)
	exists := false
	if err == nil && r.GetIndex() >= 0 && r.GetIndex() < n.Chunks {
		_, exists, err = v.FileChunk(id, r.GetIndex())
	}
	v.Close()
	if err != nil {
		return nil, err
	}
	if r.GetIndex() < 0 || r.GetIndex() >= dfs.MaxFileLength/n.ChunkSize() {
		return nil, dfserr.Errorf(dfserr.ErrFileTooLarge, "chunk %d of inode %d with chunks of %d bytes", r.GetIndex(), id, n.ChunkSize())
	}
	cmd := &dfsv1.Command{Header: r.GetHeader(), Op: &dfsv1.Command_AddChunk{AddChunk: r}}
	if !exists {
		placed, err := l.place(n.Replication, r.GetNearServer(), n.ChunkSize())
		if err != nil {
			return nil, err
		}
		cmd.Placement = serverNumbers(placed)
	}
	if !exists && r.GetIndex() >= n.Chunks {
		// The file will end elsewhere.
		done, err := l.ends.move(ctx, id)
		if err != nil {
			return nil, err
		}
		defer done()
		if n, err = l.inode(id); err != nil {
			return nil, err
		}
		if r.GetIndex() >= n.Chunks {
			if cmd.TailLength, err = l.holdTail(ctx, id, &n); err != nil {
				return nil, err
			}
		}
	}
	res, err := l.propose(ctx, cmd)
	if err != nil {
		return nil, err
	}
	if len(res.GetChunks()) != 1 {
		return nil, dfserr.Errorf(dfserr.ErrStaleInode, "chunk %d of inode %d", r.GetIndex(), id)
	}
	if a := res.GetAttr(); !a.GetTailOpen() && r.GetIndex() == a.GetChunks()-1 {
		// It was there already, and its length had been settled.
		if err := l.openTail(ctx, id); err != nil {
			return nil, err
		}
		res.Attr.TailOpen = true
	}
	config := res.GetChunks()[0]
	l.fill(config)
	if res.GetCreated() && len(config.GetReplicas()) < int(config.GetReplication()) {
		l.repairs.wake()
	}
	return &dfsv1.AddChunkReply{Chunk: config, Attr: res.GetAttr(), Index: res.GetIndex()}, nil
}

func (l *leader) commitLength(ctx context.Context, r *dfsv1.CommitLengthRequest) (*dfsv1.AttrReply, error) {
	if err := checkHeader(r.GetHeader()); err != nil {
		return nil, err
	}
	if r.GetLength() < 0 || r.GetLength() > dfs.MaxFileLength {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "length %d of inode %d", r.GetLength(), r.GetInode())
	}
	id, session := dfs.InodeID(r.GetInode()), dfs.SessionID(r.GetHeader().GetSession())
	if n := r.GetRename(); n != nil {
		if err := checkRequest(r.GetHeader(), []*dfsv1.Ref{n.GetOldParent(), n.GetNewParent()}, n.GetOldName(), n.GetNewName()); err != nil {
			return nil, err
		}
		n.Header = nil
	}
	if r.GetClosing() {
		done, ok := l.sessions.beginClosingBy(session, id)
		if ok {
			defer done()
		} else {
			r.Closing = false // others write on, and the last of them settles the tail
		}
	}
	res, err := l.propose(ctx, &dfsv1.Command{Header: r.GetHeader(), Op: &dfsv1.Command_CommitLength{CommitLength: r}})
	if err != nil {
		return nil, err
	}
	if r.GetRename() != nil {
		poke(l.reclaim)
	}
	if r.GetRelease() {
		l.sessions.closeNamed(session, id, true, r.GetHandle())
	}
	// The caller knows how much it has written; an exact length would cost a question to the primary per fsync.
	return &dfsv1.AttrReply{Attr: res.GetAttr(), Index: res.GetIndex()}, nil
}

func (l *leader) reportFailure(ctx context.Context, r *dfsv1.ReportFailureRequest) (*dfsv1.ReportFailureReply, error) {
	// A caller that is told that nothing has changed must be able to rely on it.
	if _, err := l.node.ReadBarrier(ctx); err != nil {
		return nil, err
	}
	id := dfs.ChunkID(r.GetChunk())
	if r.GetServer() == 0 {
		return l.failureReply(id)
	}
	reason := r.GetReason()
	if len(reason) > maxTextBytes {
		reason = reason[:maxTextBytes]
	}
	if r.GetCorrupt() {
		l.verifyReplica(id, dfs.ServerID(r.GetServer()), reason)
		if r.GetReporter() == 0 { // a reader, who asks another replica
			return l.failureReply(id)
		}
	}
	_, err := l.takeComplaint(ctx, complaint{
		chunk: id, version: dfs.Version(r.GetVersion()), server: dfs.ServerID(r.GetServer()), reporter: dfs.ServerID(r.GetReporter()), reason: reason,
	})
	if err != nil {
		return nil, err
	}
	return l.failureReply(id)
}

func (l *leader) failureReply(id dfs.ChunkID) (*dfsv1.ReportFailureReply, error) {
	v, err := l.view()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	config, err := v.Config(id)
	if err != nil {
		return nil, err
	}
	if config == nil {
		return nil, dfserr.Errorf(dfserr.ErrNotExist, "chunk %s", id)
	}
	l.fill(config)
	return &dfsv1.ReportFailureReply{Config: config, Index: uint64(v.Index())}, nil
}

// AcquireLease grants a chunk's write lease to the first replica of its configuration. Before it does, no replica outside the
// configuration can serve a read any more, so the first write acknowledged under it cannot be missed by a reader.
func (s clusterService) AcquireLease(ctx context.Context, r *dfsv1.AcquireLeaseRequest) (*dfsv1.AcquireLeaseReply, error) {
	l, err := s.lead()
	if err != nil {
		return nil, err
	}
	id, server := dfs.ChunkID(r.GetChunk()), dfs.ServerID(r.GetServer())
	for {
		if _, err := l.node.ReadBarrier(ctx); err != nil {
			return nil, err
		}
		rec, err := l.chunkRecord(id)
		if err != nil {
			return nil, err
		}
		if rec.Replicas[0] != server {
			return nil, dfserr.Errorf(dfserr.ErrNotPrimary, "server %s asks for the lease on chunk %s, whose primary in version %d is %s",
				server, id, rec.Version, rec.Replicas[0])
		}
		if known, ok := l.fleet.lookup(server); !ok || known.State != cluster.Live {
			return nil, dfserr.Errorf(dfserr.ErrUnavailable, "server %s asks for the lease on chunk %s without a heartbeat stream", server, id)
		}
		if err := l.awaitFence(ctx, id, &rec); err != nil {
			return nil, err
		}
		lease, err := l.fleet.grantLease(id, rec.Inode, rec.Version, server)
		if err != nil {
			return nil, err
		}
		// With the lease in the table, whoever changes the chunk from here on sees it; what happened before shows now.
		again, err := l.chunkRecord(id)
		if err != nil || again.Version != rec.Version {
			l.fleet.revokeLease(id)
			if err != nil {
				return nil, err
			}
			continue
		}
		reply := &dfsv1.AcquireLeaseReply{
			Config: l.config(id, &again), LeaseMs: time.Until(lease.Until).Milliseconds(), MinReplicas: uint32(l.cfg.MinReplicas),
		}
		reply.AppendFrom, reply.NoAppend, err = l.appendsAt(&again)
		return reply, err
	}
}
