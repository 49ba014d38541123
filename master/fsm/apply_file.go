package fsm

import (
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/chunks"
	"dfs/master/locks"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

// The commands about a file's bytes name it by its inode: whoever sends them has it open, and permission was checked at open.

func (o op) writeInline(r *dfsv1.WriteInlineRequest) (*dfsv1.Result, error) {
	id := dfs.InodeID(r.GetInode())
	n, err := namespace.GetFile(o.t, id)
	if err != nil {
		return nil, err
	}
	f := fileOf(id, &n)
	off, err := chunks.WriteInline(&f, r.GetOffset(), r.GetAppend(), r.GetData())
	if err != nil {
		return nil, err
	}
	if len(r.GetData()) > 0 {
		namespace.Modified(o.env, &n)
		if n, err = o.putFile(id, n, f); err != nil {
			return nil, err
		}
	}
	res := attrs(id, &n)
	res.Offset = off
	return res, nil
}

func (o op) addChunk(r *dfsv1.AddChunkRequest) (*dfsv1.Result, error) {
	id := dfs.InodeID(r.GetInode())
	n, err := namespace.GetFile(o.t, id)
	if err != nil {
		return nil, err
	}
	f := fileOf(id, &n)
	added, err := chunks.Add(o.t, o.chunkEnv(), &f, r.GetIndex(), serverIDs(o.cmd.GetPlacement()), o.cmd.GetTailLength())
	if err != nil {
		return nil, err
	}
	if added.New {
		if n, err = o.putFile(id, n, f); err != nil {
			return nil, err
		}
	}
	res := attrs(id, &n)
	res.Created = added.New
	res.Chunks = []*dfsv1.ChunkConfig{ConfigOf(added.Chunk, &added.Record)}
	return res, nil
}

func (o op) commitLength(r *dfsv1.CommitLengthRequest) (*dfsv1.Result, error) {
	id := dfs.InodeID(r.GetInode())
	n, err := namespace.GetFile(o.t, id)
	if err != nil {
		return nil, err
	}
	f := fileOf(id, &n)
	err = chunks.CommitLength(o.t, &f, chunks.Commit{
		Length: r.GetLength(), Chunk: dfs.ChunkID(r.GetChunk()), Version: dfs.Version(r.GetVersion()), Modified: r.GetModified(), Closing: r.GetClosing(),
	})
	if err != nil {
		return nil, err
	}
	if r.GetModified() {
		env, ctime := o.env, n.Ctime
		if at := r.GetModifiedNs(); at != 0 {
			env.Now = at
		}
		namespace.Modified(env, &n)
		n.Ctime = max(n.Ctime, ctime)
	}
	if r.GetModified() || f.Length != n.Length || f.TailOpen != n.TailOpen {
		if n, err = o.putFile(id, n, f); err != nil {
			return nil, err
		}
	}
	if r.GetRename() != nil {
		return o.rename(r.GetRename())
	}
	return attrs(id, &n), nil
}

func (o op) openTail(r *dfsv1.OpenTailCommand) (*dfsv1.Result, error) {
	id := dfs.InodeID(r.GetInode())
	n, err := namespace.GetFile(o.t, id)
	if err != nil {
		return nil, err
	}
	f := fileOf(id, &n)
	chunks.OpenTail(&f)
	if f.TailOpen != n.TailOpen {
		if n, err = o.putFile(id, n, f); err != nil {
			return nil, err
		}
	}
	return attrs(id, &n), nil
}

func (o op) settleTail(r *dfsv1.SettleTailCommand) (*dfsv1.Result, error) {
	id := dfs.InodeID(r.GetInode())
	n, err := namespace.GetFile(o.t, id)
	if err != nil {
		return nil, err
	}
	f := fileOf(id, &n)
	done, err := chunks.SettleTail(o.t, &f, r.GetLength(), dfs.ChunkID(r.GetChunk()), dfs.Version(r.GetVersion()))
	if err != nil {
		return nil, err
	}
	if done {
		if n, err = o.putFile(id, n, f); err != nil {
			return nil, err
		}
	}
	return attrs(id, &n), nil
}

func (o op) reconfigure(r *dfsv1.ReconfigureCommand) (*dfsv1.Result, error) {
	id := dfs.ChunkID(r.GetChunk())
	rec, err := chunks.Reconfigure(o.t, o.chunkEnv(), id, dfs.Version(r.GetExpectVersion()), serverIDs(r.GetReplicas()))
	if err != nil {
		return nil, err
	}
	return &dfsv1.Result{Chunks: []*dfsv1.ChunkConfig{ConfigOf(id, &rec)}}, nil
}

func (o op) cutDone(r *dfsv1.CutDoneCommand) (*dfsv1.Result, error) {
	id := dfs.ChunkID(r.GetChunk())
	rec, err := chunks.CutDone(o.t, id, chunks.Done{
		CutVersion: dfs.Version(r.GetCutVersion()), SeedStored: r.GetSeedStored(), Born: r.GetBorn(), InStep: dfs.Version(r.GetInStepVersion()),
	})
	if err != nil {
		return nil, err
	}
	return &dfsv1.Result{Chunks: []*dfsv1.ChunkConfig{ConfigOf(id, &rec)}}, nil
}

// reclaim works through orphans in the order given until the limit is reached; those that are not orphans (any more) are skipped.
func (o op) reclaim(r *dfsv1.ReclaimCommand) (*dfsv1.Result, error) {
	if len(r.GetInodes()) > maxItems {
		return nil, dfserr.Errorf(dfserr.ErrTooBig, "reclaim %d inodes, the limit is %d", len(r.GetInodes()), maxItems)
	}
	left := int(min(r.GetLimit(), chunks.MaxPerCommand))
	if left == 0 {
		left = defaultReclaim
	}
	res := &dfsv1.Result{}
	for _, number := range r.GetInodes() {
		if left <= 0 || o.t.dirty.bytes >= maxReclaimBytes {
			res.More = true
			break
		}
		id := dfs.InodeID(number)
		if _, ok, err := o.t.Orphan(id); err != nil {
			return nil, err
		} else if !ok {
			continue
		}
		used, done, err := o.reclaimOne(id, left)
		if err != nil {
			return nil, err
		}
		left -= used
		res.More = res.More || !done
	}
	return res, nil
}

// reclaimOne deletes an orphan, or a part of what it holds: up to limit values, and about as many bytes as the command has left. It returns how many values it has
// handled, and whether the orphan is gone.
func (o op) reclaimOne(id dfs.InodeID, limit int) (int, bool, error) {
	n, err := namespace.Get(o.t, id)
	if err != nil {
		return 0, false, err
	}
	used, empty := 0, true
	room := maxReclaimBytes - o.t.dirty.bytes
	switch {
	case n.IsDir() && n.Entries > 0:
		used, empty, err = namespace.ReclaimEntries(o.t, o.env, id, min(limit, maxReclaimNames), room)
	case n.IsRegular() && n.Chunks > 0:
		used, empty, err = chunks.Reclaim(o.t, o.chunkEnv(), id, min(limit, 1+int(room/reclaimedChunk)))
	}
	if err != nil || !empty {
		return used, false, err
	}
	if n.Xattrs > 0 && o.t.dirty.bytes > 0 && o.t.dirty.bytes+reclaimedXattr*int64(n.Xattrs) > maxReclaimBytes {
		return limit, false, nil // the rest next time, on its own
	}
	if err := locks.Drop(o.t, id); err != nil {
		return used, false, err
	}
	dropped, err := namespace.Drop(o.t, id)
	return used + dropped, err == nil, err
}

func (o op) garbageDone(r *dfsv1.GarbageDoneCommand) (*dfsv1.Result, error) {
	if len(r.GetItems()) > maxItems {
		return nil, dfserr.Errorf(dfserr.ErrTooBig, "forget %d chunks, the limit is %d", len(r.GetItems()), maxItems)
	}
	for _, item := range r.GetItems() {
		if err := chunks.GarbageDone(o.t, dfs.Index(item.GetIndex()), dfs.ChunkID(item.GetChunk())); err != nil {
			return nil, err
		}
	}
	return &dfsv1.Result{}, nil
}
