package chunkserver

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

const (
	// firstInterval is how often to send before the master has said.
	firstInterval = 500 * time.Millisecond
	// silence is how long a master may leave heartbeats unanswered before another one is tried.
	silence = 4 * time.Second
	// conflictPatience is for how long another process with this server's id may be seen before it is taken to be
	// real: after a quick restart it is this one's predecessor.
	conflictPatience = 20 * time.Second
	// lowSpace is the room on a disk, in bytes, below which it might become full before the next heartbeat.
	lowSpace = 1 * dfs.GiB
	// reportBatch is how many chunk ids one message of a full report holds.
	reportBatch = 16 * 1024
)

// beat is what was sent in one heartbeat.
type beat struct {
	disks    bool // the disks\' usage was in it
	sentAt   time.Time
	renewed  []*chunk
	released []dfs.ChunkID
	corrupt  []dfs.ChunkID
}

// heartbeats keeps a stream to the leading master up until ctx ends. A fatal error is returned.
func (s *Server) heartbeats(ctx context.Context) error {
	var conflictSince time.Time
	wait := 50 * time.Millisecond
	for try := 0; ctx.Err() == nil; try++ {
		addr := s.cfg.Masters[try%len(s.cfg.Masters)]
		answered, err := s.heartbeatStream(ctx, addr)
		s.serving.end()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, dfserr.ErrWrongCluster), errors.Is(err, errFatal):
			return err
		case errors.Is(err, dfserr.ErrServerConflict):
			if conflictSince.IsZero() {
				conflictSince = time.Now()
			} else if time.Since(conflictSince) > conflictPatience {
				return err
			}
		default:
			conflictSince = time.Time{}
		}
		if answered {
			s.log.Warn("lost the master", "master", addr, "error", err)
			wait = 50 * time.Millisecond
			try-- // the same one first
		} else {
			s.log.Debug("no heartbeat with master", "master", addr, "error", err)
		}
		if try%len(s.cfg.Masters) == len(s.cfg.Masters)-1 || answered {
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			wait = min(2*wait, time.Second)
		}
	}
	return nil
}

// errFatal marks errors that no other master can heal.
var errFatal = errors.New("this chunkserver cannot run")

// heartbeatStream registers with one master and sends heartbeats until the stream ends. answered: it replied at least once.
func (s *Server) heartbeatStream(ctx context.Context, addr string) (answered bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn, err := s.control.Get(addr)
	if err != nil {
		return false, err
	}
	watchdog := time.AfterFunc(silence, func() {
		cancel(dfserr.Errorf(dfserr.ErrUnavailable, "master %s does not answer heartbeats", addr))
	})
	defer watchdog.Stop()
	stream, err := dfsv1.NewClusterClient(conn).Heartbeat(ctx)
	if err != nil {
		return false, err
	}
	h := &heartbeat{srv: s, stream: stream, addr: addr, sent: make(map[uint64]beat), interval: make(chan time.Duration, 1)}
	done := make(chan struct{})
	s.start(func() {
		defer close(done)
		h.send(ctx, cancel)
	})
	for {
		var reply *dfsv1.HeartbeatReply
		if reply, err = stream.Recv(); err != nil {
			break
		}
		watchdog.Reset(silence)
		if err = h.take(ctx, reply); err != nil {
			break
		}
		answered = true
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	cancel(nil)
	<-done
	h.keepReleases()
	return answered, err
}

// keepReleases has the leases that were given back in unanswered heartbeats told of again.
func (h *heartbeat) keepReleases() {
	s := h.srv
	s.beatMu.Lock()
	defer s.beatMu.Unlock()
	for n, b := range h.sent {
		if n > h.answered {
			s.released = append(s.released, b.released...)
		}
	}
}

// heartbeat is one stream.
type heartbeat struct {
	srv      *Server
	stream   grpc.BidiStreamingClient[dfsv1.HeartbeatRequest, dfsv1.HeartbeatReply]
	addr     string
	interval chan time.Duration // tells send of a new interval

	sent     map[uint64]beat // guarded by srv.beatMu: the last answered and the unanswered, by number
	answered uint64          // guarded by srv.beatMu: number of the last answered
}

// send sends heartbeats at the interval, and at once when there is something to tell.
func (h *heartbeat) send(ctx context.Context, cancel context.CancelCauseFunc) {
	every := firstInterval
	tick := time.NewTicker(every)
	defer tick.Stop()
	for number := uint64(1); ; number++ {
		req, b := h.compose(number)
		s := h.srv
		s.beatMu.Lock()
		h.sent[number] = b
		s.beatMu.Unlock()
		if err := h.stream.Send(req); err != nil {
			return // Recv says why
		}
		select {
		case <-tick.C:
		case <-s.beatWake:
		case every = <-h.interval:
			tick.Reset(every)
			select {
			case <-tick.C:
			case <-s.beatWake:
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// compose makes a heartbeat out of the server's state.
func (h *heartbeat) compose(number uint64) (*dfsv1.HeartbeatRequest, beat) {
	s := h.srv
	req := &dfsv1.HeartbeatRequest{Number: number}
	if number == 1 {
		req.Server, req.ClusterId, req.Addr, req.Rack = uint64(s.ID()), uint64(s.clusterID()), s.Addr(), s.cfg.Rack
		req.Software, req.Incarnation = s.cfg.Software, s.incarnation
	}
	if st := s.storeIfOpen(); st != nil {
		low := false
		for _, d := range st.Usage() {
			low = low || (d.Failed == nil && d.Free < lowSpace)
			req.Disks = append(req.Disks, &dfsv1.DiskUsage{
				Dir: d.Name, CapacityBytes: d.Capacity, FreeBytes: d.Free, Failed: d.Failed != nil, UsedBytes: d.Used,
			})
			req.Chunks += int64(d.Replicas)
		}
		s.lowSpace.Store(low)
	}
	b := beat{sentAt: time.Now(), renewed: s.leases(time.Now()), disks: len(req.Disks) > 0}
	for _, c := range b.renewed {
		req.RenewLeases = append(req.RenewLeases, uint64(c.id))
	}
	s.beatMu.Lock()
	defer s.beatMu.Unlock()
	for _, id := range s.released {
		// What has been taken up again since is not given back.
		if !slices.ContainsFunc(b.renewed, func(c *chunk) bool { return c.id == id }) {
			b.released = append(b.released, id)
			req.ReleaseLeases = append(req.ReleaseLeases, uint64(id))
		}
	}
	s.released = nil
	for id := range s.corrupt {
		b.corrupt = append(b.corrupt, id)
		req.CorruptChunks = append(req.CorruptChunks, uint64(id))
	}
	return req, b
}

// take acts on a reply.
func (h *heartbeat) take(ctx context.Context, reply *dfsv1.HeartbeatReply) error {
	s := h.srv
	s.beatMu.Lock()
	b, ok := h.sent[reply.GetNumber()]
	for n := range h.sent { // the last one may be answered again when the master has news
		if n < reply.GetNumber() {
			delete(h.sent, n)
		}
	}
	if ok {
		h.answered = max(h.answered, reply.GetNumber())
		for _, id := range b.corrupt {
			delete(s.corrupt, id)
		}
	}
	s.leader = h.addr
	s.beatMu.Unlock()
	if !ok {
		return dfserr.Errorf(dfserr.ErrInvalid, "master %s answers heartbeat %d, which was not sent", h.addr, reply.GetNumber())
	}
	if err := s.join(dfs.ClusterID(reply.GetClusterId())); err != nil {
		return err
	}
	if len(reply.GetMembers()) > 0 {
		s.members.replace(reply.GetMembers())
	}
	lease := time.Duration(reply.GetServingLeaseMs()) * time.Millisecond
	if lease > 0 {
		s.serving.grant(b.sentAt, lease)
	} else {
		s.serving.end()
	}
	write := time.Duration(reply.GetWriteLeaseMs()) * time.Millisecond
	for _, c := range b.renewed {
		c.extend(b.sentAt.Add(write - write/16))
	}
	s.writeLease.Store(int64(write))
	if reply.GetReportChunks() {
		s.reportChunks(ctx, h.addr)
	}
	if every := time.Duration(reply.GetIntervalMs()) * time.Millisecond; every > 0 {
		select {
		case h.interval <- every:
		default:
		}
	}
	if b.disks {
		s.registered()
	} else {
		s.beatNow() // the disks were not open yet: until the master knows their space, it places nothing here
	}
	return nil
}

// extend notes a renewed write lease.
func (c *chunk) extend(until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.role == rolePrimary && c.ready && until.After(c.leaseUntil) {
		c.leaseUntil = until
	}
}

// leases returns the chunks whose write leases are to be renewed: also those whose lease ran out, while no master could be reached, and that have data to be synced.
func (s *Server) leases(now time.Time) []*chunk {
	var list []*chunk
	for _, c := range s.chunks.all() {
		c.mu.Lock()
		if c.role == rolePrimary && c.ready && (now.Before(c.leaseUntil) || c.committed > c.syncedSeq) {
			list = append(list, c)
		}
		c.mu.Unlock()
	}
	return list
}

// beatNow sends a heartbeat without waiting for the next one's time.
func (s *Server) beatNow() {
	select {
	case s.beatWake <- struct{}{}:
	default:
	}
}

// noteCorrupt has the master told of a damaged replica.
func (s *Server) noteCorrupt(id dfs.ChunkID) {
	s.beatMu.Lock()
	_, known := s.corrupt[id]
	s.corrupt[id] = struct{}{}
	s.beatMu.Unlock()
	if !known {
		s.beatNow()
	}
}

// forgetCorrupt takes a replica that was deleted off the list.
func (s *Server) forgetCorrupt(id dfs.ChunkID) {
	s.beatMu.Lock()
	defer s.beatMu.Unlock()
	delete(s.corrupt, id)
}

// leaderAddr returns the master that answered last.
func (s *Server) leaderAddr() string {
	s.beatMu.Lock()
	defer s.beatMu.Unlock()
	if s.leader == "" {
		return s.cfg.Masters[0]
	}
	return s.leader
}

// reportChunks sends the list of all replicas held, unless a report is on its way.
func (s *Server) reportChunks(ctx context.Context, addr string) {
	if !s.reporting.CompareAndSwap(false, true) {
		return
	}
	s.start(func() {
		defer s.reporting.Store(false)
		if err := s.sendReport(ctx, addr); err != nil && ctx.Err() == nil {
			s.log.Warn("chunk report failed", "master", addr, "error", err)
		}
	})
}

func (s *Server) sendReport(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CopyTimeout)
	defer cancel()
	conn, err := s.control.Get(addr)
	if err != nil {
		return err
	}
	stream, err := dfsv1.NewClusterClient(conn).ReportChunks(ctx)
	if err != nil {
		return err
	}
	chunks := s.store().Chunks()
	for part := range slices.Chunk(chunks, reportBatch) {
		if err := stream.Send(s.chunkReport(part)); err != nil {
			break // CloseAndRecv says why
		}
	}
	if len(chunks) == 0 {
		_ = stream.Send(s.chunkReport(nil)) // CloseAndRecv says why it failed
	}
	_, err = stream.CloseAndRecv()
	return err
}

func (s *Server) chunkReport(part []dfs.ChunkID) *dfsv1.ChunkReport {
	r := &dfsv1.ChunkReport{Server: uint64(s.ID()), Incarnation: s.incarnation}
	for _, id := range part {
		r.Chunks = append(r.Chunks, uint64(id))
	}
	return r
}

// replicaCopied tells the master how an ordered copy went.
func (s *Server) replicaCopied(ctx context.Context, cfg *chunkConfig, seq dfs.Seq, failed error) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CopyTimeout)
	defer cancel()
	req := &dfsv1.ReplicaCopiedRequest{Server: uint64(s.ID()), Chunk: uint64(cfg.chunk), Version: uint64(cfg.version), Seq: uint64(seq)}
	if failed != nil {
		req.Error = failed.Error()
	}
	for {
		conn, err := s.control.Get(s.leaderAddr())
		if err == nil {
			_, err = dfsv1.NewClusterClient(conn).ReplicaCopied(ctx, req)
		}
		if err == nil || dfserr.ClassOf(err) != dfserr.Backoff {
			return err
		}
		pause := time.NewTimer(copiedPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return err
		}
	}
}

// copiedPause is how long to wait before the master is told again that a copy has ended.
const copiedPause = 250 * time.Millisecond
