package master

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	"dfs/master/cluster"
	dfsv1 "dfs/proto/dfs/v1"
)

// Limits on what a heartbeat may carry.
const (
	maxDisks          = 256
	maxHeartbeatItems = 1 << 16 // of each list of chunks
	maxAddrBytes      = 256
	maxTextBytes      = 256
)

// clusterService serves dfs.v1.Cluster, for chunkservers.
type clusterService struct {
	dfsv1.UnimplementedClusterServer
	*Master
}

// Heartbeat seats the server for as long as the stream lives.
func (s clusterService) Heartbeat(stream grpc.BidiStreamingServer[dfsv1.HeartbeatRequest, dfsv1.HeartbeatReply]) error {
	ctx := stream.Context()
	m, err := s.lead()
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello, err := m.checkHello(first)
	if err != nil {
		return err
	}
	if err := checkBeat(first); err != nil {
		return err
	}
	if err := m.recordServer(ctx, hello); err != nil {
		return err
	}
	before, _ := m.fleet.lookup(hello.Server)
	st, err := m.fleet.register(hello, beatOf(first))
	if err != nil {
		return err
	}
	if before.Incarnation != hello.Incarnation {
		m.repairs.serverLost(hello.Server) // with the copies that its last process had under way
		m.pool.Forget(hello.Addr)          // a connection that waits to be tried again, after the last process was gone
	}
	m.log.Info("chunkserver registered", "server", hello.Server.String(), "addr", hello.Addr, "rack", hello.Rack)
	m.repairs.wake()
	err = m.heartbeats(stream, hello.Server, st, first)
	if m.fleet.leave(hello.Server, st) {
		m.log.Warn("chunkserver's heartbeat stream ended", "server", hello.Server.String(), "addr", hello.Addr, "error", err)
		m.background(func(ctx context.Context) { m.watchProcess(ctx, hello) })
	}
	return err
}

// checkHello checks what a server says when it registers.
func (m *leader) checkHello(req *dfsv1.HeartbeatRequest) (cluster.Hello, error) {
	h := cluster.Hello{
		Server: dfs.ServerID(req.GetServer()), Incarnation: req.GetIncarnation(),
		Addr: req.GetAddr(), Rack: req.GetRack(), Software: req.GetSoftware(),
	}
	if id := dfs.ClusterID(req.GetClusterId()); id != 0 && id != m.ClusterID() {
		return h, dfserr.Errorf(dfserr.ErrWrongCluster, "chunkserver %s at %s belongs to cluster %s, this is %s (correct the address of the master, or use an empty data directory)", h.Server, h.Addr, id, m.ClusterID())
	}
	if h.Incarnation == 0 {
		return h, dfserr.Errorf(dfserr.ErrInvalid, "chunkserver %s names no incarnation", h.Server)
	}
	if len(h.Addr) > maxAddrBytes || len(h.Rack) > maxTextBytes || len(h.Software) > maxTextBytes {
		return h, dfserr.Errorf(dfserr.ErrInvalid, "chunkserver %s: address, rack or version is too long", h.Server)
	}
	return h, nil
}

// checkBeat bounds what a heartbeat carries.
func checkBeat(req *dfsv1.HeartbeatRequest) error {
	if len(req.GetDisks()) > maxDisks || len(req.GetRenewLeases()) > maxHeartbeatItems ||
		len(req.GetReleaseLeases()) > maxHeartbeatItems || len(req.GetCorruptChunks()) > maxHeartbeatItems {
		return dfserr.Errorf(dfserr.ErrInvalid, "heartbeat lists more than it may")
	}
	for _, d := range req.GetDisks() {
		if d.GetCapacityBytes() < 0 || d.GetFreeBytes() < 0 || d.GetUsedBytes() < 0 {
			return dfserr.Errorf(dfserr.ErrInvalid, "heartbeat: disk %q has a negative size", d.GetDir())
		}
	}
	return nil
}

// beatOf turns the part of a heartbeat that package cluster keeps into its type.
func beatOf(req *dfsv1.HeartbeatRequest) cluster.Beat {
	b := cluster.Beat{Chunks: req.GetChunks()}
	for _, d := range req.GetDisks() {
		b.Disks = append(b.Disks, cluster.Disk{
			Dir: d.GetDir(), Capacity: d.GetCapacityBytes(), Free: d.GetFreeBytes(), Used: d.GetUsedBytes(), Failed: d.GetFailed(),
		})
	}
	return b
}

// heartbeats answers a seated stream until it breaks or the seat is taken away.
func (m *leader) heartbeats(stream grpc.BidiStreamingServer[dfsv1.HeartbeatRequest, dfsv1.HeartbeatReply], id dfs.ServerID, st *seat, first *dfsv1.HeartbeatRequest) error {
	ctx := stream.Context()
	type received struct {
		req *dfsv1.HeartbeatRequest
		err error
	}
	requests := make(chan received)
	m.background(func(context.Context) {
		for {
			req, err := stream.Recv()
			select {
			case requests <- received{req, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	var membersAt uint64
	number := first.GetNumber()
	if err := m.takeBeat(id, first); err != nil {
		return err
	}
	for {
		if err := stream.Send(m.heartbeatReply(id, st, number, &membersAt)); err != nil {
			return err
		}
		select {
		case r := <-requests:
			if errors.Is(r.err, io.EOF) {
				return nil
			}
			if r.err != nil {
				return r.err
			}
			if err := checkBeat(r.req); err != nil {
				return err
			}
			if err := m.fleet.beat(id, st, beatOf(r.req)); err != nil {
				return err
			}
			if err := m.takeBeat(id, r.req); err != nil {
				return err
			}
			number = r.req.GetNumber()
		case <-st.kick:
			// Something changed that the server should hear of before its next heartbeat is due.
		case <-st.end:
			return dfserr.Errorf(dfserr.ErrUnavailable, "heartbeat stream of chunkserver %s was replaced or timed out", id)
		case <-m.ctx.Done():
			return dfserr.Errorf(dfserr.ErrNotLeader, "master at %s", m.addr)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// takeBeat acts on the lists of a heartbeat.
func (m *leader) takeBeat(id dfs.ServerID, req *dfsv1.HeartbeatRequest) error {
	for _, c := range m.fleet.renewLeases(id, req.GetRenewLeases(), req.GetReleaseLeases()) {
		// A lease that is no longer the server's is not renewed; it finds out when it uses the old version.
		r, err := m.chunkRecord(c)
		if err != nil || r.Replicas[0] != id {
			continue
		}
		if _, err := m.fleet.grantLease(c, r.Inode, r.Version, id); err != nil {
			m.log.Debug("a lease that a heartbeat tells of is not granted", "chunk", c.String(), "server", id.String(), "error", err)
		}
	}
	for _, c := range req.GetCorruptChunks() {
		m.repairs.corrupt(dfs.ChunkID(c), id)
	}
	return nil
}

// heartbeatReply makes the answer to request `number`. The serving lease counts, at the server, from when it sent
// that request, which is before the instant that grant takes down here.
func (m *leader) heartbeatReply(id dfs.ServerID, st *seat, number uint64, membersAt *uint64) *dfsv1.HeartbeatReply {
	serving, report := m.fleet.grant(id, st)
	reply := &dfsv1.HeartbeatReply{
		ClusterId:      uint64(m.ClusterID()),
		Number:         number,
		ServingLeaseMs: serving.Milliseconds(),
		WriteLeaseMs:   m.cfg.WriteLease.Milliseconds(),
		ReportChunks:   report,
		IntervalMs:     m.cfg.HeartbeatInterval.Milliseconds(),
	}
	members, at := m.fleet.members(*membersAt)
	*membersAt = at
	for _, s := range members {
		reply.Members = append(reply.Members, &dfsv1.ServerAddr{Server: uint64(s.ID), Addr: s.Addr, Rack: s.Rack, Alive: s.Alive})
	}
	return reply
}

// Looking whether a process whose stream broke has gone.
const (
	watchInterval = 200 * time.Millisecond
	watchFor      = 10 * time.Second
)

// watchProcess dials the address of a server whose stream broke until the dial is refused, the server is back, or
// watchFor has passed: a dying process may close its listener after its connections.
func (m *leader) watchProcess(ctx context.Context, h cluster.Hello) {
	ctx, cancel := context.WithTimeout(ctx, watchFor)
	defer cancel()
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		if s, ok := m.fleet.lookup(h.Server); !ok || s.State != cluster.Unknown || s.Incarnation != h.Incarnation {
			return
		}
		dialedAt := time.Now()
		if err := m.probe(ctx, h.Server, h.Addr); rpc.IsRefused(err) {
			m.log.Warn("chunkserver's process has gone", "server", h.Server.String(), "addr", h.Addr)
			m.fleet.gone(h.Server, h.Incarnation, dialedAt)
			m.repairs.wake()
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
