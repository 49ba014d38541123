package master

import (
	"bytes"
	"context"
	"time"

	"google.golang.org/grpc"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/chunks"
	"dfs/master/cluster"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

// Calls for administrators.

func (l *leader) clusterReport(ctx context.Context, _ *dfsv1.ClusterReportRequest) (*dfsv1.ClusterReportReply, error) {
	v, err := l.read(ctx, 0)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	totals, err := l.totals(v)
	if err != nil {
		return nil, err
	}
	stats, err := v.Stats()
	if err != nil {
		return nil, err
	}
	st := l.repairs.standing()
	reply := &dfsv1.ClusterReportReply{
		Totals: totals, UnderReplicated: st.totals.Under, Missing: st.totals.Missing, Corrupt: st.totals.Corrupt,
		PendingDeletion: stats.Garbage, SafeMode: l.fleet.safeMode().On, Index: uint64(v.Index()), ClusterId: uint64(l.cluster),
		Leader: l.addr, RepairsRunning: int64(st.running), RepairsScanned: st.exact,
	}
	now := time.Now()
	for _, s := range l.fleet.snapshot() {
		state := "dead"
		if s.State == cluster.Live {
			state = "live"
		}
		reply.Servers = append(reply.Servers, &dfsv1.ServerReport{
			Server: uint64(s.ID), Addr: s.Addr, Rack: s.Rack, State: state, CapacityBytes: s.Capacity, UsedBytes: s.Used, FreeBytes: s.Free,
			Chunks: s.Chunks, LastHeartbeatMsAgo: now.Sub(s.HeardAt).Milliseconds(), Version: s.Software,
			ReadOnly: s.State == cluster.Live && s.Full(dfs.MinChunkSize),
		})
	}
	return reply, nil
}

// fsck walks a tree and sends what is wrong with the chunks of its files, and then the totals. It changes nothing.
func (l *leader) fsck(r *dfsv1.FsckRequest, stream grpc.ServerStreamingServer[dfsv1.FsckReply]) error {
	ctx := stream.Context()
	v, err := l.read(ctx, 0)
	if err != nil {
		return err
	}
	defer v.Close()
	c := &checker{l: l, view: v, states: l.servers(), stream: stream, totals: &dfsv1.FsckReply_Totals{DefaultReplication: dfs.DefaultReplication}}
	for _, s := range c.states {
		if s.State == cluster.Live {
			c.totals.LiveServers++
		}
	}
	c.totals.Racks = int64(l.fleet.totals().Racks)
	var inner error
	err = v.Walk(r.GetCaller(), r.GetRef(), func(path []byte, id dfs.InodeID, n *namespace.Inode) bool {
		switch {
		case n.IsDir():
			c.totals.Directories++
		case n.IsSymlink():
			c.totals.Symlinks++
		case n.IsRegular():
			inner = c.file(path, id, n)
		}
		if inner == nil {
			inner = ctx.Err()
		}
		return inner == nil
	})
	if err == nil {
		err = inner
	}
	if err != nil {
		return err
	}
	return stream.Send(&dfsv1.FsckReply{Totals: c.totals})
}

// checker is one run of fsck.
type checker struct {
	l      *leader
	view   chunkReader
	states map[dfs.ServerID]cluster.Server
	stream grpc.ServerStreamingServer[dfsv1.FsckReply]
	totals *dfsv1.FsckReply_Totals
}

// chunkReader is what a checker reads.
type chunkReader interface {
	Chunk(id dfs.ChunkID) (chunks.Record, bool, error)
	FileChunks(inode dfs.InodeID, from int64, fn func(index int64, id dfs.ChunkID) bool) error
}

func (c *checker) file(path []byte, id dfs.InodeID, n *namespace.Inode) error {
	c.totals.Files++
	c.totals.Bytes += n.Length
	if n.Chunks == 0 {
		return nil
	}
	missing := false
	var inner error
	err := c.view.FileChunks(id, 0, func(index int64, chunk dfs.ChunkID) bool {
		var gone bool
		gone, inner = c.chunk(path, id, n, index, chunk)
		missing = missing || gone
		return inner == nil
	})
	if missing {
		c.totals.MissingFiles++
	}
	if err == nil {
		err = inner
	}
	return err
}

// chunk judges one chunk by what is known of its replicas' servers, and reports whether it is missing.
func (c *checker) chunk(path []byte, id dfs.InodeID, n *namespace.Inode, index int64, chunk dfs.ChunkID) (missing bool, err error) {
	r, ok, err := c.view.Chunk(chunk)
	if err != nil {
		return false, err
	}
	if !ok {
		return false, dfserr.Errorf(dfserr.ErrCorrupt, "chunk %s of inode %d has no record", chunk, id)
	}
	var live, corrupt int
	for _, s := range r.Replicas {
		switch {
		case c.l.repairs.isCorrupt(chunk, s):
			corrupt++
		case c.states[s].State == cluster.Live:
			live++
		}
	}
	want := int(max(1, r.Replication))
	length := max(0, min(n.ChunkSize(), n.Length-index*n.ChunkSize()))
	t := c.totals
	t.Chunks++
	t.Replicas += int64(live)
	t.MissingReplicas += int64(max(0, want-live))
	problem := ""
	if live > want {
		t.OverReplicated++
	}
	if live >= dfs.MinReplicas(want, c.l.cfg.MinReplicas) {
		t.MinimallyReplicated++
	}
	if live < want && live > 0 {
		t.UnderReplicated++
		problem = "under-replicated"
	}
	if corrupt > 0 {
		t.CorruptChunks++
		problem = "corrupt"
	}
	if live == 0 {
		t.MissingChunks++
		t.MissingBytes += length
		problem = "missing"
	}
	if problem == "" {
		return false, nil
	}
	return live == 0, c.stream.Send(&dfsv1.FsckReply{Finding: &dfsv1.FsckReply_Finding{
		Path: bytes.Clone(path), Inode: uint64(id), Chunk: uint64(chunk), Index: index, Problem: problem,
		Live: uint32(live), Want: uint32(want), Length: length,
	}})
}
