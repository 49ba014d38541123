package fsm

import (
	"google.golang.org/protobuf/proto"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/chunks"
	"dfs/master/locks"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

// counters is the value under z/counters.
type counters struct {
	namespace.Totals
	chunk chunks.Totals
}

// fileChunk is the value under c/<inode><n>.
type fileChunk dfs.ChunkID

// xattrValue is the value under x/<inode><name>.
type xattrValue []byte

// encode returns the stored form of a decoded value.
func encode(v any) ([]byte, error) {
	var m proto.Message
	switch v := v.(type) {
	case *namespace.Inode:
		m = inodeProto(v)
	case namespace.Dentry:
		m = &dfsv1.Dentry{Inode: uint64(v.Inode), Type: v.Type}
	case *chunks.Record:
		m = recordProto(v)
	case fileChunk:
		m = &dfsv1.ChunkRef{Chunk: uint64(v)}
	case xattrValue:
		m = &dfsv1.Xattr{Value: v}
	case namespace.Orphan:
		m = &dfsv1.Orphan{UnlinkedAtNs: v.UnlinkedAt, Subtree: v.Subtree}
	case chunks.Garbage:
		m = &dfsv1.Garbage{Replicas: serverNumbers(v.Replicas), Version: uint64(v.Version), DeletedAtNs: v.DeletedAt}
	case *locks.Record:
		m = &dfsv1.FileLocks{Flock: heldProto(v.Flock), Posix: heldProto(v.Posix)}
	case counters:
		m = countersProto(v)
	case proto.Message: // sessions, nonces, replies, servers, the cluster
		m = v
	default:
		return nil, dfserr.Errorf(dfserr.ErrFormat, "a value of type %T", v)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, dfserr.Errorf(dfserr.ErrFormat, "encode %T: %v", v, err)
	}
	return b, nil
}

// decode reads the stored value of a key. The result shares nothing with value. Errors wrap ErrCorrupt.
func decode(key, value []byte) (any, error) {
	bad := func(err error) (any, error) {
		return nil, dfserr.Errorf(dfserr.ErrCorrupt, "value of key %q: %v", key, err)
	}
	if len(key) < prefixLen {
		return bad(dfserr.ErrFormat)
	}
	switch key[0] {
	case kindInode:
		var m dfsv1.Inode
		if err := proto.Unmarshal(value, &m); err != nil {
			return bad(err)
		}
		return inodeOf(&m), nil
	case kindDentry:
		var m dfsv1.Dentry
		if err := proto.Unmarshal(value, &m); err != nil {
			return bad(err)
		}
		return namespace.Dentry{Inode: dfs.InodeID(m.GetInode()), Type: m.GetType()}, nil
	case kindChunk:
		var m dfsv1.ChunkRecord
		if err := proto.Unmarshal(value, &m); err != nil {
			return bad(err)
		}
		return recordOf(&m), nil
	case kindFile:
		var m dfsv1.ChunkRef
		if err := proto.Unmarshal(value, &m); err != nil {
			return bad(err)
		}
		return fileChunk(m.GetChunk()), nil
	case kindXattr:
		var m dfsv1.Xattr
		if err := proto.Unmarshal(value, &m); err != nil {
			return bad(err)
		}
		return xattrValue(m.GetValue()), nil
	case kindOrphan:
		var m dfsv1.Orphan
		if err := proto.Unmarshal(value, &m); err != nil {
			return bad(err)
		}
		return namespace.Orphan{UnlinkedAt: m.GetUnlinkedAtNs(), Subtree: m.GetSubtree()}, nil
	case kindGarbage:
		var m dfsv1.Garbage
		if err := proto.Unmarshal(value, &m); err != nil {
			return bad(err)
		}
		return chunks.Garbage{Replicas: serverIDs(m.GetReplicas()), Version: dfs.Version(m.GetVersion()), DeletedAt: m.GetDeletedAtNs()}, nil
	case kindLocks:
		var m dfsv1.FileLocks
		if err := proto.Unmarshal(value, &m); err != nil {
			return bad(err)
		}
		r := &locks.Record{Flock: heldOf(m.GetFlock()), Posix: heldOf(m.GetPosix())}
		if err := r.Check(); err != nil {
			return bad(err)
		}
		return r, nil
	}
	var m proto.Message
	switch {
	case key[0] == kindMark:
		m = &dfsv1.LockMark{}
	case key[0] == kindSession:
		m = &dfsv1.SessionRecord{}
	case key[0] == kindNonce:
		m = &dfsv1.NonceRecord{}
	case key[0] == kindReply:
		m = &dfsv1.CachedReply{}
	case string(key) == string(keyCounters):
		m = &dfsv1.Counters{}
	case string(key) == string(keyCluster):
		m = &dfsv1.ClusterRecord{}
	case len(key) > len(keyServers) && string(key[:len(keyServers)]) == string(keyServers):
		m = &dfsv1.ServerRecord{}
	default:
		return bad(dfserr.ErrFormat)
	}
	if err := proto.Unmarshal(value, m); err != nil {
		return bad(err)
	}
	if c, ok := m.(*dfsv1.Counters); ok {
		return countersOf(c), nil
	}
	return m, nil
}

func inodeProto(n *namespace.Inode) *dfsv1.Inode {
	return &dfsv1.Inode{
		Mode: n.Mode, Uid: n.UID, Gid: n.GID, Nlink: n.Nlink, Rdev: n.Rdev,
		Length: n.Length, AtimeNs: n.Atime, MtimeNs: n.Mtime, CtimeNs: n.Ctime, BtimeNs: n.Btime,
		SymlinkTarget: n.Target, ChunkSizeLog2: n.ChunkSizeLog2, Replication: n.Replication, InlineData: n.Inline,
		TailOpen: n.TailOpen, Chunks: n.Chunks, Parent: uint64(n.Parent), Version: uint64(n.Version),
		Entries: n.Entries, Subdirs: n.Subdirs, Xattrs: n.Xattrs, XattrBytes: n.XattrBytes,
	}
}

func inodeOf(m *dfsv1.Inode) *namespace.Inode {
	return &namespace.Inode{
		Mode: m.GetMode(), UID: m.GetUid(), GID: m.GetGid(), Nlink: m.GetNlink(), Rdev: m.GetRdev(),
		Length: m.GetLength(), Atime: m.GetAtimeNs(), Mtime: m.GetMtimeNs(), Ctime: m.GetCtimeNs(), Btime: m.GetBtimeNs(),
		Target: m.GetSymlinkTarget(), ChunkSizeLog2: m.GetChunkSizeLog2(), Replication: m.GetReplication(), Inline: m.GetInlineData(),
		TailOpen: m.GetTailOpen(), Chunks: m.GetChunks(), Parent: dfs.InodeID(m.GetParent()), Version: dfs.Index(m.GetVersion()),
		Entries: m.GetEntries(), Subdirs: m.GetSubdirs(), Xattrs: m.GetXattrs(), XattrBytes: m.GetXattrBytes(),
	}
}

func recordProto(r *chunks.Record) *dfsv1.ChunkRecord {
	return &dfsv1.ChunkRecord{
		Inode: uint64(r.Inode), Index: r.Index, Version: uint64(r.Version), Replicas: serverNumbers(r.Replicas), Replication: r.Replication,
		ChunkSizeLog2: r.ChunkSizeLog2, BirthIndex: uint64(r.Birth), Born: r.Born, Seed: r.Seed, CutLength: r.CutLength, CutVersion: uint64(r.CutVersion),
		Joining: serverNumbers(r.Joining),
	}
}

func recordOf(m *dfsv1.ChunkRecord) *chunks.Record {
	return &chunks.Record{
		Inode: dfs.InodeID(m.GetInode()), Index: m.GetIndex(), Version: dfs.Version(m.GetVersion()), Replicas: serverIDs(m.GetReplicas()), Replication: m.GetReplication(),
		ChunkSizeLog2: m.GetChunkSizeLog2(), Birth: dfs.Index(m.GetBirthIndex()), Born: m.GetBorn(), Seed: m.GetSeed(), CutLength: m.GetCutLength(), CutVersion: dfs.Version(m.GetCutVersion()),
		Joining: serverIDs(m.GetJoining()),
	}
}

func heldProto(list []locks.Lock) []*dfsv1.HeldLock {
	out := make([]*dfsv1.HeldLock, len(list))
	for i, l := range list {
		out[i] = &dfsv1.HeldLock{
			Session: uint64(l.Owner.Session), Owner: l.Owner.ID, First: l.First, Last: l.Last, Exclusive: l.Mode == locks.Exclusive,
			Pid: l.PID, Since: uint64(l.Since),
		}
	}
	return out
}

func heldOf(list []*dfsv1.HeldLock) []locks.Lock {
	if len(list) == 0 {
		return nil
	}
	out := make([]locks.Lock, len(list))
	for i, l := range list {
		out[i] = locks.Lock{
			Owner: locks.Owner{Session: dfs.SessionID(l.GetSession()), ID: l.GetOwner()}, First: l.GetFirst(), Last: l.GetLast(),
			Mode: modeOf(l.GetExclusive()), PID: l.GetPid(), Since: dfs.Index(l.GetSince()),
		}
	}
	return out
}

func modeOf(exclusive bool) locks.Mode {
	if exclusive {
		return locks.Exclusive
	}
	return locks.Shared
}

// LockOf reads the lock of a session's request.
func LockOf(session dfs.SessionID, s *dfsv1.LockSpec) (locks.Kind, locks.Lock) {
	l := locks.Lock{
		Owner: locks.Owner{Session: session, ID: s.GetOwner()}, First: s.GetFirst(), Last: s.GetLast(), Mode: modeOf(s.GetExclusive()), PID: s.GetPid(),
	}
	if s.GetPosix() {
		return locks.Posix, l
	}
	l.First, l.Last = 0, locks.End
	return locks.Flock, l
}

func countersProto(c counters) *dfsv1.Counters {
	return &dfsv1.Counters{
		NextInode: uint64(c.NextInode), Inodes: c.Inodes, Directories: c.Directories, Bytes: c.Bytes, Orphans: c.Orphans, Subtrees: c.Subtrees,
		NextChunk: uint64(c.chunk.NextChunk), Chunks: c.chunk.Chunks, Garbage: c.chunk.Garbage,
	}
}

func countersOf(m *dfsv1.Counters) counters {
	return counters{
		Totals: namespace.Totals{
			NextInode: dfs.InodeID(m.GetNextInode()), Inodes: m.GetInodes(), Directories: m.GetDirectories(), Bytes: m.GetBytes(),
			Orphans: m.GetOrphans(), Subtrees: m.GetSubtrees(),
		},
		chunk: chunks.Totals{NextChunk: dfs.ChunkID(m.GetNextChunk()), Chunks: m.GetChunks(), Garbage: m.GetGarbage()},
	}
}

func serverNumbers(ids []dfs.ServerID) []uint64 {
	out := make([]uint64, len(ids))
	for i, id := range ids {
		out[i] = uint64(id)
	}
	return out
}

func serverIDs(numbers []uint64) []dfs.ServerID {
	if len(numbers) == 0 {
		return nil
	}
	out := make([]dfs.ServerID, len(numbers))
	for i, n := range numbers {
		out[i] = dfs.ServerID(n)
	}
	return out
}

// nobody is who a request without a caller runs as: a request that does not say for whom it asks must not be root's.
const nobody = 65534

// CallerOf reads the caller of a request. A request without one runs as nobody (uid and gid 65534), not as root.
func CallerOf(c *dfsv1.Caller) namespace.Caller {
	if c == nil {
		return namespace.Caller{UID: nobody, GID: nobody}
	}
	return namespace.Caller{UID: c.GetUid(), GID: c.GetGid(), Groups: c.GetGroups()}
}

// RefOf reads a reference; nil is the root. The path is shared.
func RefOf(r *dfsv1.Ref) namespace.Ref {
	return namespace.Ref{Inode: dfs.InodeID(r.GetInode()), Path: r.GetPath(), NoFollow: r.GetNoFollow()}
}

// AttrOf returns what stat(2) reports of an inode as the state has it: the length of a file with TailOpen is a lower bound.
func AttrOf(id dfs.InodeID, n *namespace.Inode) *dfsv1.Attr {
	a := &dfsv1.Attr{}
	setAttr(a, id, n)
	return a
}

// setAttr fills an empty message, which may be part of a slice of them.
func setAttr(a *dfsv1.Attr, id dfs.InodeID, n *namespace.Inode) {
	a.Inode, a.Mode, a.Uid, a.Gid, a.Nlink, a.Rdev = uint64(id), n.Mode, n.UID, n.GID, n.Nlink, n.Rdev
	a.Length, a.AtimeNs, a.MtimeNs, a.CtimeNs, a.BtimeNs = n.Length, n.Atime, n.Mtime, n.Ctime, n.Btime
	a.SymlinkTarget, a.ChunkSize, a.Replication, a.Inline = n.Target, n.ChunkSize(), n.Replication, n.IsRegular() && n.Chunks == 0
	a.TailOpen, a.Chunks, a.Version, a.Xattrs = n.TailOpen, n.Chunks, uint64(n.Version), n.Xattrs
}

// ConfigOf returns a chunk's configuration; of its servers only the ids are set.
func ConfigOf(id dfs.ChunkID, r *chunks.Record) *dfsv1.ChunkConfig {
	replicas := make([]*dfsv1.ServerAddr, len(r.Replicas))
	for i, s := range r.Replicas {
		replicas[i] = &dfsv1.ServerAddr{Server: uint64(s)}
	}
	return &dfsv1.ChunkConfig{
		Chunk: uint64(id), Version: uint64(r.Version), Replicas: replicas, ChunkSize: 1 << r.ChunkSizeLog2, Replication: r.Replication,
		Index: r.Index, Inode: uint64(r.Inode), Born: r.Born, Seed: r.Seed, CutLength: r.CutLength, CutVersion: uint64(r.CutVersion),
	}
}
