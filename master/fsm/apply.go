package fsm

import (
	"errors"

	"google.golang.org/protobuf/proto"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/chunks"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

// Bounds of one command. kv bounds a transaction (about 2.4 MiB); these, with chunks.MaxPerCommand and what a request may hold, keep every command well below.
const (
	defaultReclaim  = 256     // values
	maxReclaimNames = 256     // per directory
	maxReclaimBytes = 1 << 20 // written by one ReclaimCommand, by the estimate of changes: unlinking rewrites an inode with its inline data
	reclaimedChunk  = 640     // bytes that the deletion of one chunk writes
	reclaimedXattr  = 512     // bytes that the deletion of one extended attribute writes
	maxUnlockBytes  = 1 << 19 // written by one EndSessionCommand for the locks of others that stay, by the estimate of changes; one file may come on top
	maxItems        = 4096    // inodes of a ReclaimCommand, items of a GarbageDoneCommand
)

// Encode returns the bytes to propose for a command.
func Encode(cmd *dfsv1.Command) ([]byte, error) {
	b, err := proto.Marshal(cmd)
	if err != nil {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "encode command: %v", err)
	}
	if len(b) > dfs.MaxEntrySize {
		return nil, dfserr.Errorf(dfserr.ErrTooBig, "command of %d bytes, the limit is %d", len(b), dfs.MaxEntrySize)
	}
	return b, nil
}

// applyEntry applies one entry. An error stops the replica.
func (f *FSM) applyEntry(index dfs.Index, data []byte) (*dfsv1.Result, error) {
	cmd := &dfsv1.Command{}
	if err := proto.Unmarshal(data, cmd); err != nil {
		return nil, dfserr.Errorf(dfserr.ErrFormat, "entry %d does not decode: %v", index, err)
	}
	if cmd.GetOp() == nil || len(cmd.ProtoReflect().GetUnknown()) > 0 {
		return nil, dfserr.Errorf(dfserr.ErrFormat, "entry %d holds a command that this software does not know", index)
	}
	t := f.begin(index)
	res, err := t.execute(cmd)
	if t.err != nil {
		return nil, t.err
	}
	if err == nil {
		err = t.stage()
	}
	if errors.Is(err, dfserr.ErrTooBig) {
		// Commands are bounded so that this does not happen; should one get through, it is refused and nothing else.
		t.discard()
		t.store.Reset()
		res = t.refusal(err)
		if err = t.remember(cmd, res); err == nil {
			err = t.stage()
		}
	}
	if err != nil {
		return nil, err
	}
	f.tell(t, cmd)
	return res, t.commit()
}

// execute runs a command at most once and leaves its changes, and its cached reply, in t. An error stops the replica.
func (t *txn) execute(cmd *dfsv1.Command) (*dfsv1.Result, error) {
	session, seq := dfs.SessionID(cmd.GetHeader().GetSession()), cmd.GetHeader().GetSeq()
	if session != 0 {
		known, err := t.Session(session)
		if err != nil {
			return nil, err
		}
		if known == nil || known.GetEnding() {
			return t.refusal(dfserr.Errorf(dfserr.ErrUnknownSession, "session %d", session)), nil
		}
		if seq == 0 {
			return t.refusal(dfserr.Errorf(dfserr.ErrInvalid, "request 0 of session %d", session)), nil
		}
		before, err := t.reply(session, seq)
		if err != nil {
			return nil, err
		}
		switch {
		case before.GetSeq() > seq:
			return t.refusal(dfserr.Errorf(dfserr.ErrDuplicate, "request %d of session %d after %d", seq, session, before.GetSeq())), nil
		case before.GetSeq() == seq:
			res := &dfsv1.Result{}
			if err := proto.Unmarshal(before.GetResult(), res); err != nil {
				return nil, dfserr.Errorf(dfserr.ErrCorrupt, "cached reply %d of session %d: %v", seq, session, err)
			}
			return res, nil
		}
	}
	res, err := t.dispatch(cmd)
	if t.err != nil {
		return nil, t.err
	}
	keep := true
	if err != nil {
		// The state is what it was before: an error that has no place in a reply says that the state itself is wrong.
		if dfserr.Sentinel(err) == nil || errors.Is(err, dfserr.ErrCorrupt) || errors.Is(err, dfserr.ErrFormat) {
			return nil, err
		}
		t.discard()
		res = t.refusal(err)
		keep = dfserr.ClassOf(err) == dfserr.GiveUp
	}
	res.Index = uint64(t.index)
	if keep && !res.GetMore() {
		if err := t.remember(cmd, res); err != nil {
			return nil, err
		}
	}
	return res, nil
}

// remember keeps the result of a command that came with a session's header.
func (t *txn) remember(cmd *dfsv1.Command, res *dfsv1.Result) error {
	session := dfs.SessionID(cmd.GetHeader().GetSession())
	if session == 0 {
		return nil
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(res)
	if err != nil {
		return dfserr.Errorf(dfserr.ErrFormat, "encode result: %v", err)
	}
	t.setReply(session, &dfsv1.CachedReply{Seq: cmd.GetHeader().GetSeq(), Result: b})
	return nil
}

// refusal is the result of a command that failed.
func (t *txn) refusal(err error) *dfsv1.Result {
	return &dfsv1.Result{ErrorReason: dfserr.Reason(err), ErrorText: err.Error(), Index: uint64(t.index)}
}

// ResultError returns the error that a result carries, wrapping its sentinel, or nil.
func ResultError(res *dfsv1.Result) error {
	return dfserr.FromReason(res.GetErrorReason(), res.GetErrorText())
}

// dispatch runs a command. What it does not know stops the replica.
func (t *txn) dispatch(cmd *dfsv1.Command) (*dfsv1.Result, error) {
	env := namespace.Env{Caller: namespace.Root(), Now: cmd.GetTimeNs(), Index: t.index}
	if h := cmd.GetHeader(); h != nil {
		env.Caller = CallerOf(h.GetCaller())
	}
	o := op{t: t, env: env, cmd: cmd}
	switch c := cmd.GetOp().(type) {
	case *dfsv1.Command_Create:
		return o.create(c.Create)
	case *dfsv1.Command_Remove:
		return o.remove(c.Remove)
	case *dfsv1.Command_Rename:
		return o.rename(c.Rename)
	case *dfsv1.Command_Link:
		return o.link(c.Link)
	case *dfsv1.Command_SetAttr:
		return o.setAttr(c.SetAttr)
	case *dfsv1.Command_Truncate:
		return o.truncate(c.Truncate)
	case *dfsv1.Command_SetXattr:
		return o.setXattr(c.SetXattr)
	case *dfsv1.Command_RemoveXattr:
		return o.removeXattr(c.RemoveXattr)
	case *dfsv1.Command_WriteInline:
		return o.writeInline(c.WriteInline)
	case *dfsv1.Command_AddChunk:
		return o.addChunk(c.AddChunk)
	case *dfsv1.Command_CommitLength:
		return o.commitLength(c.CommitLength)
	case *dfsv1.Command_OpenSession:
		return o.openSession(c.OpenSession)
	case *dfsv1.Command_EndSession:
		return o.endSession(c.EndSession)
	case *dfsv1.Command_OpenTail:
		return o.openTail(c.OpenTail)
	case *dfsv1.Command_SettleTail:
		return o.settleTail(c.SettleTail)
	case *dfsv1.Command_Reconfigure:
		return o.reconfigure(c.Reconfigure)
	case *dfsv1.Command_CutDone:
		return o.cutDone(c.CutDone)
	case *dfsv1.Command_Reclaim:
		return o.reclaim(c.Reclaim)
	case *dfsv1.Command_GarbageDone:
		return o.garbageDone(c.GarbageDone)
	case *dfsv1.Command_Lock:
		return o.lock(c.Lock)
	case *dfsv1.Command_Server:
		return o.server(c.Server)
	case *dfsv1.Command_Format:
		return o.format(c.Format)
	}
	return nil, dfserr.Errorf(dfserr.ErrFormat, "command %T is not known", cmd.GetOp())
}

// op is one running command.
type op struct {
	t   *txn
	env namespace.Env
	cmd *dfsv1.Command
}

func (o op) chunkEnv() chunks.Env { return chunks.Env{Now: o.env.Now, Index: o.env.Index} }

// attrs is the result that reports an inode.
func attrs(id dfs.InodeID, n *namespace.Inode) *dfsv1.Result {
	return &dfsv1.Result{Attr: AttrOf(id, n)}
}

// named is attrs for the usual end of an operation.
func named(id dfs.InodeID, n namespace.Inode, err error) (*dfsv1.Result, error) {
	if err != nil {
		return nil, err
	}
	return attrs(id, &n), nil
}

func (o op) create(r *dfsv1.CreateRequest) (*dfsv1.Result, error) {
	c, err := namespace.Create(o.t, o.env, namespace.CreateArgs{
		Parent: RefOf(r.GetParent()), Name: r.GetName(), Mode: r.GetMode(), Rdev: r.GetRdev(), Target: r.GetSymlinkTarget(),
		Exclusive: r.GetExclusive(), MakeParents: r.GetMakeParents(), Truncate: r.GetTruncate(), Writing: r.GetOpen(), Data: r.GetData(),
		ChunkSize: r.GetChunkSize(), Replication: r.GetReplication(), ReplicationSet: r.GetReplicationSet(),
	})
	if err != nil {
		return nil, err
	}
	res := &dfsv1.Result{Created: c.Created}
	n := c.Inode
	if n.IsRegular() && (c.Cut || c.Created && r.GetWantChunk()) {
		f := fileOf(c.ID, &n)
		if c.Cut {
			if res.More, res.Dropped, err = o.cut(&f, 0); err != nil {
				return nil, err
			}
			if !res.More {
				if _, err := chunks.WriteInline(&f, 0, false, r.GetData()); err != nil {
					return nil, err
				}
			}
		}
		if r.GetWantChunk() && !res.More && f.Length == 0 && f.Chunks == 0 {
			added, err := chunks.Add(o.t, o.chunkEnv(), &f, 0, serverIDs(o.cmd.GetPlacement()), 0)
			if err != nil {
				return nil, err
			}
			res.Chunks = []*dfsv1.ChunkConfig{ConfigOf(added.Chunk, &added.Record)}
		}
		if n, err = o.putFile(c.ID, n, f); err != nil {
			return nil, err
		}
	}
	res.Attr = AttrOf(c.ID, &n)
	if r.GetOpen() { // else nobody reads it, and it would lie in the reply ring too
		res.InlineData = n.Inline
	}
	return res, nil
}

// fileOf returns the part of an inode that package chunks works on.
func fileOf(id dfs.InodeID, n *namespace.Inode) chunks.File {
	return chunks.File{
		Inode: id, Length: n.Length, ChunkSizeLog2: n.ChunkSizeLog2, Replication: n.Replication, Inline: n.Inline,
		TailOpen: n.TailOpen, Chunks: n.Chunks,
	}
}

// putFile stores n with what package chunks made of its part, and returns it. The totals follow what the state held before.
func (o op) putFile(id dfs.InodeID, n namespace.Inode, f chunks.File) (namespace.Inode, error) {
	old, err := namespace.Get(o.t, id)
	if err != nil {
		return n, err
	}
	n.Length, n.Inline, n.TailOpen, n.Chunks = f.Length, f.Inline, f.TailOpen, f.Chunks
	n.Version = o.env.Index
	return n, namespace.SetFile(o.t, o.env, id, old, n)
}

func (o op) remove(r *dfsv1.RemoveRequest) (*dfsv1.Result, error) {
	var what namespace.What
	switch r.GetWhat() {
	case dfsv1.RemoveRequest_ANY:
		what = namespace.Any
	case dfsv1.RemoveRequest_FILE:
		what = namespace.File
	case dfsv1.RemoveRequest_DIRECTORY:
		what = namespace.Directory
	case dfsv1.RemoveRequest_TREE:
		what = namespace.Tree
	default:
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "remove %q: kind %d", r.GetName(), r.GetWhat())
	}
	if err := namespace.Remove(o.t, o.env, RefOf(r.GetParent()), r.GetName(), what); err != nil {
		return nil, err
	}
	return &dfsv1.Result{}, nil
}

func (o op) rename(r *dfsv1.RenameRequest) (*dfsv1.Result, error) {
	return named(namespace.Rename(o.t, o.env, namespace.RenameArgs{
		OldParent: RefOf(r.GetOldParent()), OldName: r.GetOldName(), NewParent: RefOf(r.GetNewParent()), NewName: r.GetNewName(),
		NoReplace: r.GetNoReplace(), Exchange: r.GetExchange(),
	}))
}

func (o op) link(r *dfsv1.LinkRequest) (*dfsv1.Result, error) {
	return named(namespace.Link(o.t, o.env, RefOf(r.GetTarget()), RefOf(r.GetParent()), r.GetName()))
}

func (o op) setAttr(r *dfsv1.SetAttrRequest) (*dfsv1.Result, error) {
	id, n, err := namespace.SetAttr(o.t, o.env, RefOf(r.GetRef()), namespace.AttrChange{
		Mode: r.Mode, UID: r.Uid, GID: r.Gid, Atime: r.AtimeNs, Mtime: r.MtimeNs, AtimeNow: r.GetAtimeNow(), MtimeNow: r.GetMtimeNow(),
		Replication: r.Replication,
	})
	if err != nil {
		return nil, err
	}
	res := attrs(id, &n)
	if r.Replication != nil && n.Chunks > 0 {
		f := fileOf(id, &n)
		if res.More, err = chunks.SetReplication(o.t, &f); err != nil {
			return nil, err
		}
	}
	return res, nil
}

func (o op) truncate(r *dfsv1.TruncateRequest) (*dfsv1.Result, error) {
	id, _, n, err := namespace.ForTruncate(o.t, o.env, RefOf(r.GetRef()), dfs.InodeID(r.GetHandleInode()), r.GetLength())
	if err != nil {
		return nil, err
	}
	f := fileOf(id, &n)
	more, dropped, err := o.cut(&f, r.GetLength())
	if err != nil {
		return nil, err
	}
	if n, err = o.putFile(id, n, f); err != nil {
		return nil, err
	}
	res := attrs(id, &n)
	res.More, res.Dropped = more, dropped
	return res, nil
}

// cut sets a file's length, and says how many chunks went.
func (o op) cut(f *chunks.File, length int64) (more bool, dropped int64, err error) {
	before, err := o.t.ChunkTotals()
	if err != nil {
		return false, 0, err
	}
	if more, err = chunks.Truncate(o.t, o.chunkEnv(), f, length, o.cmd.GetTailLength()); err != nil {
		return false, 0, err
	}
	after, err := o.t.ChunkTotals()
	return more, after.Garbage - before.Garbage, err
}

func (o op) setXattr(r *dfsv1.SetXattrRequest) (*dfsv1.Result, error) {
	flags := namespace.XattrFlags{Create: r.GetCreate(), Replace: r.GetReplace()}
	return named(namespace.SetXattr(o.t, o.env, RefOf(r.GetRef()), r.GetName(), r.GetValue(), flags))
}

func (o op) removeXattr(r *dfsv1.RemoveXattrRequest) (*dfsv1.Result, error) {
	return named(namespace.RemoveXattr(o.t, o.env, RefOf(r.GetRef()), r.GetName()))
}
