package chunkserver

import (
	"context"
	"errors"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// grantReply is the master's answer to a request for a write lease.
type grantReply struct {
	cfg         *chunkConfig
	until       time.Time // of the lease
	minReplicas int
	noAppend    bool   // the file does not end in this chunk
	appendFrom  int64  // least offset of an append
	holds       uint64 // chunk.holds when the question was asked
}

// acquireLease asks for the write lease on a chunk, of which this server must be the primary.
func (s *Server) acquireLease(ctx context.Context, id dfs.ChunkID) (grantReply, error) {
	conn, err := s.control.Get(s.leaderAddr())
	if err != nil {
		return grantReply{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.MasterTimeout)
	defer cancel()
	sentAt := time.Now()
	reply, err := dfsv1.NewClusterClient(conn).AcquireLease(ctx, &dfsv1.AcquireLeaseRequest{Server: uint64(s.ID()), Chunk: uint64(id)})
	if err != nil {
		return grantReply{}, err
	}
	cfg, err := parseConfig(reply.GetConfig())
	if err != nil {
		return grantReply{}, err
	}
	s.members.learn(reply.GetConfig().GetReplicas())
	lease := time.Duration(reply.GetLeaseMs()) * time.Millisecond
	return grantReply{
		cfg: cfg, until: sentAt.Add(lease - lease/16), minReplicas: int(reply.GetMinReplicas()),
		noAppend: reply.GetNoAppend(), appendFrom: reply.GetAppendFrom(),
	}, nil
}

// failure is something to tell the master about a replica.
type failure struct {
	server  dfs.ServerID // whose replica cannot be used; 0: nothing failed, the configuration is wanted
	version dfs.Version  // of the configuration in which it was found out
	reason  string
	corrupt bool
}

// reportFailure tells the master of a replica that cannot be used and returns the configuration to go on with.
func (s *Server) reportFailure(ctx context.Context, id dfs.ChunkID, f failure) (*chunkConfig, error) {
	conn, err := s.control.Get(s.leaderAddr())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.MasterTimeout)
	defer cancel()
	reply, err := dfsv1.NewMasterClient(conn).ReportFailure(ctx, &dfsv1.ReportFailureRequest{
		Chunk: uint64(id), Version: uint64(f.version), Server: uint64(f.server), Reason: f.reason, Reporter: uint64(s.ID()), Corrupt: f.corrupt,
	})
	if err != nil {
		return nil, err
	}
	cfg, err := parseConfig(reply.GetConfig())
	if err != nil {
		return nil, err
	}
	s.members.learn(reply.GetConfig().GetReplicas())
	return cfg, nil
}

// lookupConfig asks the master for the committed configuration of a chunk: a report about no server.
func (s *Server) lookupConfig(ctx context.Context, id dfs.ChunkID) (*chunkConfig, error) {
	return s.reportFailure(ctx, id, failure{reason: "lookup"})
}

// peer returns a client for control calls to another chunkserver.
func (s *Server) peer(id dfs.ServerID) (dfsv1.ChunkClient, error) {
	addr, err := s.members.lookup(id)
	if err != nil {
		return nil, err
	}
	conn, err := s.control.GetServer(addr, id)
	if err != nil {
		return nil, err
	}
	return dfsv1.NewChunkClient(conn), nil
}

// peerUp is peer for a server that a new configuration has: it may just have come back.
func (s *Server) peerUp(ctx context.Context, id dfs.ServerID) (dfsv1.ChunkClient, error) {
	addr, err := s.members.lookup(id)
	if err != nil {
		return nil, err
	}
	conn, err := s.control.GetUp(ctx, addr, id)
	if err != nil {
		return nil, err
	}
	return dfsv1.NewChunkClient(conn), nil
}

// answers reports whether a fresh connection to another chunkserver can be made and it is that server which answers.
func (s *Server) answers(ctx context.Context, id dfs.ServerID, addr string) bool {
	if s.control.Probe(ctx, addr) != nil {
		return false
	}
	conn, err := s.control.GetUp(ctx, addr, id)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.PeerTimeout)
	defer cancel()
	_, err = dfsv1.NewChunkClient(conn).Stat(ctx, &dfsv1.ChunkStatRequest{}) // of no chunk: its error says who answers
	return !errors.Is(err, dfserr.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded)
}

// dataPeer returns a client for streams of file bytes to another chunkserver.
func (s *Server) dataPeer(id dfs.ServerID) (dfsv1.ChunkClient, error) {
	addr, err := s.members.lookup(id)
	if err != nil {
		return nil, err
	}
	conn, err := s.data.GetServer(addr, id)
	if err != nil {
		return nil, err
	}
	return dfsv1.NewChunkClient(conn), nil
}
