package master

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// Calls about sessions.

func (l *leader) openSession(ctx context.Context, r *dfsv1.OpenSessionRequest) (*dfsv1.OpenSessionReply, error) {
	if id := dfs.ClusterID(r.GetClusterId()); id != 0 && id != l.cluster {
		return nil, dfserr.Errorf(dfserr.ErrWrongCluster, "the client wants cluster %s, this is %s", id, l.cluster)
	}
	// Also on a nearly full disk: without a session nothing can be deleted.
	res, err := l.propose(ctx, &dfsv1.Command{Op: &dfsv1.Command_OpenSession{OpenSession: &dfsv1.OpenSessionCommand{
		Client: r.GetClient(), Nonce: r.GetNonce(), TtlNs: l.cfg.SessionTTL.Nanoseconds(),
	}}})
	if err != nil {
		return nil, err
	}
	l.sessions.add(dfs.SessionID(res.GetSession()))
	return &dfsv1.OpenSessionReply{
		Session: res.GetSession(), TtlMs: l.cfg.SessionTTL.Milliseconds(), ClusterId: uint64(l.cluster), Index: res.GetIndex(),
	}, nil
}

func (l *leader) closeSession(ctx context.Context, r *dfsv1.CloseSessionRequest) (*dfsv1.CloseSessionReply, error) {
	id := dfs.SessionID(r.GetSession())
	res, err := l.proposeAll(ctx, &dfsv1.Command{Op: &dfsv1.Command_EndSession{EndSession: &dfsv1.EndSessionCommand{Session: uint64(id)}}})
	if err != nil {
		return nil, err
	}
	l.sessions.end(id)
	return &dfsv1.CloseSessionReply{Index: res.GetIndex()}, nil
}

// maxAnnounced bounds the handles that one session may have open.
const maxAnnounced = 1 << 19

// keepAlive renews a session with every message of the stream. The first one lists the session's handles.
func (l *leader) keepAlive(stream grpc.BidiStreamingServer[dfsv1.KeepAliveRequest, dfsv1.KeepAliveReply]) error {
	first := true
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if l.ctx.Err() != nil {
			return dfserr.Errorf(dfserr.ErrNotLeader, "master at %s", l.addr)
		}
		id := dfs.SessionID(req.GetSession())
		if err := l.sessions.renew(id); err != nil {
			return err
		}
		if first {
			if len(req.GetOpenInodes()) > maxAnnounced {
				return dfserr.Errorf(dfserr.ErrTooBig, "session %d announces %d handles, the limit is %d", id, len(req.GetOpenInodes()), maxAnnounced)
			}
			inodes := make([]dfs.InodeID, len(req.GetOpenInodes()))
			for i, n := range req.GetOpenInodes() {
				inodes[i] = dfs.InodeID(n)
			}
			if err := l.sessions.announce(id, inodes); err != nil {
				return err
			}
			if l.sessions.settled() {
				poke(l.reclaim)
			}
			first = false
		}
		if err := stream.Send(&dfsv1.KeepAliveReply{TtlMs: l.cfg.SessionTTL.Milliseconds()}); err != nil {
			return err
		}
	}
}
