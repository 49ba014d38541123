package client

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// FSStats is the cluster's space and content. Byte counts are sums over live chunkservers' disks.
type FSStats struct {
	Capacity, Free, Used int64 // bytes
	Inodes, Chunks       int64
	DataBytes            int64 // sum of file lengths
}

func statsOf(r *dfsv1.StatFsReply) FSStats {
	return FSStats{
		Capacity: r.GetCapacityBytes(), Free: r.GetFreeBytes(), Used: r.GetUsedBytes(),
		Inodes: r.GetInodes(), Chunks: r.GetChunks(), DataBytes: r.GetDataBytes(),
	}
}

// StatFS returns the cluster's totals.
func (c *Client) StatFS(ctx context.Context) (FSStats, error) {
	var reply *dfsv1.StatFsReply
	err := c.ask(ctx, func(ctx context.Context, m dfsv1.MasterClient) (err error) {
		reply, err = m.StatFs(ctx, &dfsv1.StatFsRequest{})
		return err
	})
	return statsOf(reply), err
}

// ChunkInfo is one chunk of a file.
type ChunkInfo struct {
	Index       int64 // in the file
	Chunk       dfs.ChunkID
	Version     dfs.Version
	Length      int64 // bytes stored, as the most advanced valid replica has it
	Replication int   // wanted
	Replicas    []ReplicaInfo
}

// States of a replica.
const (
	ReplicaValid       = "valid"       // at the configuration's version
	ReplicaStale       = "stale"       // at an older version
	ReplicaCorrupt     = "corrupt"     // quarantined by its server
	ReplicaMissing     = "missing"     // the server does not have it
	ReplicaUnreachable = "unreachable" // the server does not answer
	ReplicaCopying     = "copying"     // being made
)

// ReplicaInfo is one replica, as its chunkserver describes it.
type ReplicaInfo struct {
	Server    dfs.ServerID
	Addr      string
	Rack      string
	Version   dfs.Version
	Length    int64 // bytes
	DiskBytes int64
	State     string // one of the Replica… constants
}

// statTimeout bounds the question to one chunkserver about one replica.
const statTimeout = 3 * time.Second

// chunksPage is how many chunks one call locates; statsAtOnce is how many replicas are asked about at a time.
const (
	chunksPage  = 256
	statsAtOnce = 32
)

// Chunks returns the chunks of a file in order, holes left out, each with its replicas as their chunkservers see
// them; primary first. A file whose bytes are in its inode has none.
func (c *Client) Chunks(ctx context.Context, path string) ([]ChunkInfo, error) {
	r, err := ref(path, false)
	if err != nil {
		return nil, pathErr("chunks", path, err)
	}
	a, err := c.getAttr(ctx, r)
	if err != nil {
		return nil, pathErr("chunks", path, err)
	}
	if a.GetMode()&modeTypeMask == modeDir {
		return nil, pathErr("chunks", path, dfserr.ErrIsDir)
	}
	var all []ChunkInfo
	for first := int64(0); first < a.GetChunks(); first += chunksPage {
		reply, err := c.getChunks(ctx, dfs.InodeID(a.GetInode()), first, uint32(min(chunksPage, a.GetChunks()-first)), false)
		if err != nil {
			return nil, pathErr("chunks", path, err)
		}
		for _, k := range reply.GetChunks() {
			info := ChunkInfo{Index: k.GetIndex(), Chunk: dfs.ChunkID(k.GetChunk()), Version: dfs.Version(k.GetVersion()), Replication: int(k.GetReplication())}
			for _, s := range k.GetReplicas() {
				info.Replicas = append(info.Replicas, ReplicaInfo{Server: dfs.ServerID(s.GetServer()), Addr: s.GetAddr(), Rack: s.GetRack()})
			}
			all = append(all, info)
		}
	}
	c.inspect(ctx, all)
	return all, ctx.Err()
}

// inspect asks the chunkservers about every replica.
func (c *Client) inspect(ctx context.Context, all []ChunkInfo) {
	room := make(chan struct{}, statsAtOnce)
	var wg sync.WaitGroup
	for i := range all {
		for j := range all[i].Replicas {
			room <- struct{}{}
			wg.Go(func() {
				defer func() { <-room }()
				c.inspectReplica(ctx, &all[i], &all[i].Replicas[j])
			})
		}
	}
	wg.Wait()
	for i := range all {
		for _, r := range all[i].Replicas {
			if r.State == ReplicaValid {
				all[i].Length = max(all[i].Length, r.Length)
			}
		}
	}
}

func (c *Client) inspectReplica(ctx context.Context, k *ChunkInfo, r *ReplicaInfo) {
	r.State = ReplicaUnreachable
	if r.Addr == "" {
		return
	}
	cc, err := c.dataPool.GetServer(r.Addr, r.Server)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, statTimeout)
	defer cancel()
	reply, err := dfsv1.NewChunkClient(cc).Stat(ctx, &dfsv1.ChunkStatRequest{Chunk: uint64(k.Chunk)})
	switch {
	case errors.Is(err, dfserr.ErrNotExist):
		r.State = ReplicaMissing
	case errors.Is(err, dfserr.ErrCorrupt):
		r.State = ReplicaCorrupt
	case err == nil:
		s := reply.GetReplica()
		r.Version, r.Length, r.DiskBytes, r.State = dfs.Version(s.GetVersion()), s.GetLength(), s.GetDiskBytes(), s.GetState()
		if r.State == "" {
			r.State = ReplicaValid
		}
		if r.State == ReplicaValid && r.Version < k.Version {
			r.State = ReplicaStale
		}
	}
}

// ServerReport is one chunkserver in a ClusterReport.
type ServerReport struct {
	Server               dfs.ServerID
	Addr, Rack           string
	State                string // "live" or "dead"
	Capacity, Used, Free int64  // bytes
	Chunks               int64
	LastHeartbeat        time.Duration // ago
	Software             string
	ReadOnly             bool
}

// ClusterReport is the state of the cluster as the leading master sees it.
type ClusterReport struct {
	ClusterID                         dfs.ClusterID
	Leader                            string // address
	SafeMode                          bool
	Totals                            FSStats
	Servers                           []ServerReport
	UnderReplicated, Missing, Corrupt int64 // chunks
	PendingDeletion                   int64 // chunks
	RepairsRunning                    int64
	RepairsScanned                    bool // the counts are from a scan that finished after the last change
	Index                             dfs.Index
}

// ClusterReport asks for the state of the cluster.
func (c *Client) ClusterReport(ctx context.Context) (*ClusterReport, error) {
	var r *dfsv1.ClusterReportReply
	err := c.ask(ctx, func(ctx context.Context, m dfsv1.MasterClient) (err error) {
		r, err = m.ClusterReport(ctx, &dfsv1.ClusterReportRequest{})
		return err
	})
	if err != nil {
		return nil, err
	}
	out := &ClusterReport{
		ClusterID: dfs.ClusterID(r.GetClusterId()), Leader: r.GetLeader(), SafeMode: r.GetSafeMode(), Totals: statsOf(r.GetTotals()),
		UnderReplicated: r.GetUnderReplicated(), Missing: r.GetMissing(), Corrupt: r.GetCorrupt(), PendingDeletion: r.GetPendingDeletion(),
		RepairsRunning: r.GetRepairsRunning(), RepairsScanned: r.GetRepairsScanned(), Index: dfs.Index(r.GetIndex()),
	}
	for _, s := range r.GetServers() {
		out.Servers = append(out.Servers, ServerReport{
			Server: dfs.ServerID(s.GetServer()), Addr: s.GetAddr(), Rack: s.GetRack(), State: s.GetState(),
			Capacity: s.GetCapacityBytes(), Used: s.GetUsedBytes(), Free: s.GetFreeBytes(), Chunks: s.GetChunks(),
			LastHeartbeat: time.Duration(s.GetLastHeartbeatMsAgo()) * time.Millisecond, Software: s.GetVersion(), ReadOnly: s.GetReadOnly(),
		})
	}
	return out, nil
}

// Finding is one problem that Fsck found.
type Finding struct {
	Path       string
	Inode      dfs.InodeID
	Chunk      dfs.ChunkID
	Index      int64  // of the chunk in the file
	Problem    string // "missing", "under-replicated" or "corrupt"
	Live, Want int    // replicas
	Length     int64  // of the file, bytes
}

// FsckTotals is what Fsck counted.
type FsckTotals struct {
	Bytes, Directories, Files, Symlinks, Chunks    int64
	MissingChunks, MissingFiles, MissingBytes      int64
	UnderReplicated, OverReplicated, CorruptChunks int64
	Replicas, MissingReplicas, MinimallyReplicated int64
	DefaultReplication                             int
	LiveServers, Racks                             int64
}

// Fsck walks the tree at path and calls each for every problem, then returns the totals. An error of each ends it. It
// is not retried once it has begun to answer.
func (c *Client) Fsck(ctx context.Context, path string, each func(Finding) error) (*FsckTotals, error) {
	r, err := ref(path, true)
	if err != nil {
		return nil, pathErr("fsck", path, err)
	}
	if c.closed.Load() {
		return nil, dfserr.Errorf(dfserr.ErrClosed, "client")
	}
	var totals *FsckTotals
	var own error // of each, or of a stream that broke after it began: not to be retried
	octx, cancelOp := c.opContext(ctx)
	defer cancelOp()
	err = c.masters.call(octx, nil, func(_ context.Context, m dfsv1.MasterClient) error {
		sctx, cancel := context.WithCancel(ctx) // a walk may take longer than a call
		defer cancel()
		stream, err := m.Fsck(sctx, &dfsv1.FsckRequest{Caller: c.caller(), Ref: r})
		if err != nil {
			return err
		}
		for n := 0; ; n++ {
			msg, err := stream.Recv()
			if err != nil {
				if isEOF(err) {
					err = io.ErrUnexpectedEOF
				}
				if n == 0 {
					return err
				}
				own = err
				return nil
			}
			if t := msg.GetTotals(); t != nil {
				totals = totalsOf(t)
				return nil
			}
			if own = each(findingOf(msg.GetFinding())); own != nil {
				return nil
			}
		}
	})
	if err == nil {
		err = own
	}
	return totals, pathErr("fsck", path, err)
}

func findingOf(f *dfsv1.FsckReply_Finding) Finding {
	return Finding{
		Path: string(f.GetPath()), Inode: dfs.InodeID(f.GetInode()), Chunk: dfs.ChunkID(f.GetChunk()), Index: f.GetIndex(),
		Problem: f.GetProblem(), Live: int(f.GetLive()), Want: int(f.GetWant()), Length: f.GetLength(),
	}
}

func totalsOf(t *dfsv1.FsckReply_Totals) *FsckTotals {
	return &FsckTotals{
		Bytes: t.GetBytes(), Directories: t.GetDirectories(), Files: t.GetFiles(), Symlinks: t.GetSymlinks(), Chunks: t.GetChunks(),
		MissingChunks: t.GetMissingChunks(), MissingFiles: t.GetMissingFiles(), MissingBytes: t.GetMissingBytes(),
		UnderReplicated: t.GetUnderReplicated(), OverReplicated: t.GetOverReplicated(), CorruptChunks: t.GetCorruptChunks(),
		Replicas: t.GetReplicas(), MissingReplicas: t.GetMissingReplicas(), MinimallyReplicated: t.GetMinimallyReplicated(),
		DefaultReplication: int(t.GetDefaultReplication()), LiveServers: t.GetLiveServers(), Racks: t.GetRacks(),
	}
}
