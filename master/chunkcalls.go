package master

import (
	"context"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// Calls to chunkservers. Each has a deadline of its own below the caller's, so that one slow server costs a
// bounded time.
const (
	statTimeout     = 2 * time.Second
	activateTimeout = 15 * time.Second
	copyTimeout     = 5 * time.Second // to accept the order; the copying itself is watched by the repairer
	deleteTimeout   = 10 * time.Second
	fenceTimeout    = 2 * time.Second
	probeTimeout    = time.Second
	verifyTimeout   = 2 * time.Minute // for the largest chunk on a slow disk
)

// chunkClient returns the control connection to a chunkserver. ErrUnavailable when its address is not known.
func (m *leader) chunkClient(id dfs.ServerID) (dfsv1.ChunkClient, error) {
	s, ok := m.fleet.lookup(id)
	if !ok || s.Addr == "" {
		return nil, dfserr.Errorf(dfserr.ErrUnavailable, "chunkserver %s has not registered", id)
	}
	conn, err := m.pool.GetServer(s.Addr, id)
	if err != nil {
		return nil, err
	}
	return dfsv1.NewChunkClient(conn), nil
}

// probe opens a fresh connection to a chunkserver. rpc.IsRefused of the error means that its process is gone: nothing
// listens at its address, or another server does.
func (m *leader) probe(ctx context.Context, id dfs.ServerID, addr string) error {
	if err := m.pool.Probe(ctx, addr); err != nil {
		return err
	}
	conn, err := m.pool.GetServer(addr, id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if _, err := dfsv1.NewChunkClient(conn).Stat(ctx, &dfsv1.ChunkStatRequest{}); rpc.IsRefused(err) {
		return err
	}
	return nil // whatever else it says, somebody is there
}

// tailStat asks a chunk's primary for the committed length. It fails when the server is not the primary of that
// version or a newer one. With hold the primary takes no more appends before it has asked where the file ends.
func (m *leader) tailStat(ctx context.Context, server dfs.ServerID, chunk dfs.ChunkID, version dfs.Version, hold bool) (int64, error) {
	c, err := m.chunkClient(server)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, m.statTimeout())
	defer cancel()
	reply, err := c.Stat(ctx, &dfsv1.ChunkStatRequest{Chunk: uint64(chunk), Version: uint64(version), Exact: true, HoldAppends: hold})
	if err != nil {
		return 0, err
	}
	length := reply.GetReplica().GetLength()
	if length < 0 || length > dfs.MaxChunkSize {
		return 0, dfserr.Errorf(dfserr.ErrCorrupt, "chunk %s: server %s says it is %d bytes long", chunk, server, length)
	}
	return length, nil
}

// statTimeout leaves room for the primary to take its lease, which may wait for a serving lease to lapse.
func (m *leader) statTimeout() time.Duration {
	return statTimeout + m.cfg.ServingLease + m.cfg.ServingLease/4
}

// replicaState asks a server about its own replica.
func (m *leader) replicaState(ctx context.Context, server dfs.ServerID, chunk dfs.ChunkID) (*dfsv1.ReplicaState, error) {
	c, err := m.chunkClient(server)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	reply, err := c.Stat(ctx, &dfsv1.ChunkStatRequest{Chunk: uint64(chunk)})
	if err != nil {
		return nil, err
	}
	return reply.GetReplica(), nil
}

// verifiedState has a server read its replica and verify it, and returns what it then says about it.
func (m *leader) verifiedState(ctx context.Context, server dfs.ServerID, chunk dfs.ChunkID) (*dfsv1.ReplicaState, error) {
	c, err := m.chunkClient(server)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	reply, err := c.Stat(ctx, &dfsv1.ChunkStatRequest{Chunk: uint64(chunk), Verify: true})
	if err != nil {
		return nil, err
	}
	return reply.GetReplica(), nil
}

// activate has the primary of a configuration bring all its replicas into step.
func (m *leader) activate(ctx context.Context, config *dfsv1.ChunkConfig) (*dfsv1.ReplicaState, error) {
	if len(config.GetReplicas()) == 0 {
		return nil, dfserr.Errorf(dfserr.ErrNoReplica, "activate chunk %s", dfs.ChunkID(config.GetChunk()))
	}
	c, err := m.chunkClient(dfs.ServerID(config.GetReplicas()[0].GetServer()))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, activateTimeout)
	defer cancel()
	reply, err := c.Activate(ctx, &dfsv1.ActivateRequest{Config: config})
	if err != nil {
		return nil, err
	}
	return reply.GetReplica(), nil
}

// copyReplica orders target to copy a chunk from source.
func (m *leader) copyReplica(ctx context.Context, target dfs.ServerID, config *dfsv1.ChunkConfig, source dfs.ServerID) error {
	c, err := m.chunkClient(target)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, copyTimeout)
	defer cancel()
	_, err = c.CopyReplica(ctx, &dfsv1.CopyReplicaRequest{Config: config, Source: uint64(source)})
	return err
}

// replicaItem names a replica that is to go: one with a higher version is kept.
type replicaItem struct {
	chunk   dfs.ChunkID
	version dfs.Version
}

// deleteReplicas has a server delete (or, with fenceOnly, stop serving) replicas, and returns those that it
// says are done.
func (m *leader) deleteReplicas(ctx context.Context, server dfs.ServerID, items []replicaItem, fenceOnly bool) (map[dfs.ChunkID]bool, error) {
	c, err := m.chunkClient(server)
	if err != nil {
		return nil, err
	}
	timeout := deleteTimeout
	if fenceOnly {
		timeout = fenceTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req := &dfsv1.DeleteReplicasRequest{FenceOnly: fenceOnly, Items: make([]*dfsv1.DeleteReplicasRequest_Item, len(items))}
	for i, it := range items {
		req.Items[i] = &dfsv1.DeleteReplicasRequest_Item{Chunk: uint64(it.chunk), Version: uint64(it.version)}
	}
	reply, err := c.DeleteReplicas(ctx, req)
	if err != nil {
		return nil, err
	}
	done := make(map[dfs.ChunkID]bool, len(reply.GetDeleted()))
	for _, id := range reply.GetDeleted() {
		done[dfs.ChunkID(id)] = true
	}
	return done, nil
}
