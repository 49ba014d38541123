package master

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/chunks"
	"dfs/master/cluster"
	"dfs/master/repair"
	dfsv1 "dfs/proto/dfs/v1"
)

// Bounds on what a chunk report may keep in memory.
const (
	reportPage  = 4096   // ids compared under one read view
	strayBatch  = 1024   // replicas deleted or fenced by one call
	maxLost     = 65_536 // missing replicas looked into per report; the rest waits for the next report
	reportRetry = 5 * time.Second
)

// ReportChunks compares a server's full list of replicas with the chunk records, page by page, so memory does not grow with
// either. A replica that its chunk's record does not list is garbage: the record was read after the list was made, and ids
// and memberships are committed before a replica is made. A replica that a record lists and the server does not have is asked after once more, and then taken out of
// the configuration.
func (s clusterService) ReportChunks(stream grpc.ClientStreamingServer[dfsv1.ChunkReport, dfsv1.ChunkReportReply]) error {
	ctx := stream.Context()
	m, err := s.lead()
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return dfserr.Errorf(dfserr.ErrInvalid, "chunk report names no server")
	}
	if err != nil {
		return err
	}
	id := dfs.ServerID(first.GetServer())
	seat, err := m.fleet.reportBegins(id, first.GetIncarnation())
	if err != nil {
		return err
	}
	// From here on every record read reflects what was committed before the list was made.
	if _, err := m.node.ReadBarrier(ctx); err != nil {
		return err
	}
	j := &reportJoin{m: m, server: id}
	err = j.run(ctx, stream, first)
	if err != nil {
		m.fleet.reportFailed(id, seat)
		m.log.Warn("chunk report failed", "server", id.String(), "chunks", j.seen, "error", err)
		return err
	}
	m.fleet.reported(id, first.GetIncarnation())
	m.log.Info("chunk report taken", "server", id.String(), "chunks", j.seen, "strays", j.strays, "lost", len(j.lost), "newer", j.newer)
	m.repairs.wake()
	if len(j.lost) > 0 {
		m.background(func(ctx context.Context) { m.takeLost(ctx, id, j.lost) })
	}
	return stream.SendAndClose(&dfsv1.ChunkReportReply{})
}

// reportJoin is the merge of one report with the records.
type reportJoin struct {
	m      *leader
	server dfs.ServerID

	last    dfs.ChunkID   // ids up to this one have been compared
	started bool          // last is an id of the report
	seen    int64         // ids in the report
	strays  int64         // replicas that no record lists
	newer   int64         // of those, ones newer than their records
	pending []replicaItem // strays not yet seen to
	lost    []dfs.ChunkID // listed here by a record, not in the report
}

func (j *reportJoin) run(ctx context.Context, stream grpc.ClientStreamingServer[dfsv1.ChunkReport, dfsv1.ChunkReportReply], msg *dfsv1.ChunkReport) error {
	for {
		ids := msg.GetChunks()
		for len(ids) > 0 {
			n := min(len(ids), reportPage)
			if err := j.page(ctx, ids[:n]); err != nil {
				return err
			}
			ids = ids[n:]
		}
		var err error
		msg, err = stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := j.rest(ctx); err != nil {
		return err
	}
	return j.flush(ctx)
}

// page compares one ascending run of ids with the records up to the last of them.
func (j *reportJoin) page(ctx context.Context, ids []uint64) error {
	previous := j.last
	for i, id := range ids {
		if c := dfs.ChunkID(id); c <= previous && (j.started || i > 0) || c == 0 {
			return dfserr.Errorf(dfserr.ErrInvalid, "chunk report of server %s: chunk %s after %s", j.server, c, previous)
		}
		previous = dfs.ChunkID(id)
	}
	v, err := j.m.view()
	if err != nil {
		return err
	}
	next := 0
	end := dfs.ChunkID(ids[len(ids)-1])
	err = v.Chunks(j.last, func(id dfs.ChunkID, r *chunks.Record) bool {
		if id > end {
			return false
		}
		for next < len(ids) && dfs.ChunkID(ids[next]) < id {
			j.unknown(dfs.ChunkID(ids[next]), v.Index())
			next++
		}
		held := next < len(ids) && dfs.ChunkID(ids[next]) == id
		if held {
			next++
		}
		j.compare(id, r, held)
		return true
	})
	for ; next < len(ids); next++ {
		j.unknown(dfs.ChunkID(ids[next]), v.Index())
	}
	v.Close()
	if err != nil {
		return err
	}
	j.last, j.started = end, true
	j.seen += int64(len(ids))
	if len(j.pending) >= strayBatch {
		return j.flush(ctx)
	}
	return ctx.Err()
}

// rest looks at the records after the report's last id.
func (j *reportJoin) rest(ctx context.Context) error {
	for {
		v, err := j.m.view()
		if err != nil {
			return err
		}
		n := 0
		err = v.Chunks(j.last, func(id dfs.ChunkID, r *chunks.Record) bool {
			j.compare(id, r, false)
			j.last = id
			n++
			return n < reportPage
		})
		v.Close()
		if err != nil || n < reportPage {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func (j *reportJoin) compare(id dfs.ChunkID, r *chunks.Record, held bool) {
	listed := slices.Contains(r.Replicas, j.server)
	switch {
	case held && !listed:
		j.strays++
		j.pending = append(j.pending, replicaItem{id, r.Version})
	case !held && listed && r.Born && len(j.lost) < maxLost:
		j.lost = append(j.lost, id)
	}
}

func (j *reportJoin) unknown(id dfs.ChunkID, index dfs.Index) {
	j.strays++
	j.pending = append(j.pending, replicaItem{id, dfs.Version(index)})
}

// flush has the server delete or fence the pending strays.
func (j *reportJoin) flush(ctx context.Context) error {
	for len(j.pending) > 0 {
		n := min(len(j.pending), strayBatch)
		batch := j.pending[:n]
		if err := j.m.dropStrays(ctx, j.server, batch, &j.newer); err != nil {
			return err
		}
		j.pending = j.pending[n:]
	}
	j.pending = nil
	return nil
}

// dropStrays sees to it that a server no longer serves the given replicas: it deletes those that nobody needs and fences those of
// chunks that lack replicas, which are then the cheapest to complete. Each record is read again under its chunk's lock.
func (m *leader) dropStrays(ctx context.Context, server dfs.ServerID, items []replicaItem, newer *int64) error {
	var gone, keep []replicaItem
	var unlocks []func()
	defer func() {
		for _, u := range unlocks {
			u()
		}
	}()
	for _, it := range items {
		// Ascending order of chunk ids is the only order in which more than one of these locks is taken.
		unlock, err := m.chunkLocks.lock(ctx, it.chunk)
		if err != nil {
			return err
		}
		unlocks = append(unlocks, unlock)
		r, err := m.chunkRecord(it.chunk)
		switch {
		case errors.Is(err, dfserr.ErrNotExist):
			gone = append(gone, it)
		case err != nil:
			return err
		case slices.Contains(r.Replicas, server) || m.repairs.copying(it.chunk, server):
		case m.liveReplicas(r.Replicas) < int(r.Replication):
			keep = append(keep, replicaItem{it.chunk, r.Version})
		default:
			gone = append(gone, replicaItem{it.chunk, r.Version})
		}
	}
	for _, part := range []struct {
		items []replicaItem
		fence bool
	}{{gone, false}, {keep, true}} {
		if len(part.items) == 0 {
			continue
		}
		done, err := m.deleteReplicas(ctx, server, part.items, part.fence)
		if err != nil {
			return err
		}
		for _, it := range part.items {
			if done[it.chunk] {
				m.fleet.fenced(it.chunk, server)
				if !part.fence {
					m.repairs.replaced(it.chunk, server)
				}
				continue
			}
			if err := m.explainKept(ctx, server, it, newer); err != nil {
				return err
			}
		}
	}
	for _, it := range keep {
		m.repairs.noteStray(it.chunk, repair.Stray{Server: server, Version: it.version})
	}
	return nil
}

// explainKept looks at a replica that the server would not delete. One that is newer than its record means that this master
// has lost committed state, or that the server belongs elsewhere: it is left alone and reported loudly.
func (m *leader) explainKept(ctx context.Context, server dfs.ServerID, it replicaItem, newer *int64) error {
	state, err := m.replicaState(ctx, server, it.chunk)
	if errors.Is(err, dfserr.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if dfs.Version(state.GetVersion()) > it.version {
		*newer++
		m.log.Error("replica is newer than the master's record: the master may have lost committed state; the replica is kept",
			"chunk", it.chunk.String(), "server", server.String(), "replica_version", state.GetVersion(), "record_version", uint64(it.version))
		return nil
	}
	return dfserr.Errorf(dfserr.ErrBusy, "chunkserver %s keeps replica %s", server, it.chunk)
}

// takeLost asks a server once more for replicas that its report lacked, and has those that are really not there taken out
// of their configurations.
func (m *leader) takeLost(ctx context.Context, server dfs.ServerID, lost []dfs.ChunkID) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, id := range lost {
		g.Go(func() error {
			if _, err := m.replicaState(ctx, server, id); !errors.Is(err, dfserr.ErrNotExist) {
				return ctx.Err()
			}
			r, err := m.chunkRecord(id)
			if err != nil {
				return ctx.Err()
			}
			_, err = m.takeComplaint(ctx, complaint{
				chunk: id, version: r.Version, server: server, reporter: server, corrupt: true, reason: "replica missing from the server's report",
			})
			if err != nil {
				m.log.Debug("lost replica stays in its configuration for now", "chunk", id.String(), "server", server.String(), "error", err)
			}
			return ctx.Err()
		})
	}
	_ = g.Wait() // only ever the context's end
}

// reportFailed lets a report be asked for again, after a pause.
func (f *fleet) reportFailed(id dfs.ServerID, stream cluster.StreamID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.seats[id]; s != nil && s.stream == stream {
		s.reportAfter = time.Now().Add(reportRetry)
		f.state.ReportFailed(id)
	}
}
