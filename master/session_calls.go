package master

import (
	"context"
	"errors"
	"io"
	"sync"

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
		Client: r.GetClient(), Nonce: r.GetNonce(), TtlNs: l.cfg.SessionTTL.Nanoseconds(), Caches: r.GetCaches(),
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
	l.forgetSession(id)
	return &dfsv1.CloseSessionReply{Index: res.GetIndex()}, nil
}

// maxAnnounced bounds the handles that one session may have open.
const maxAnnounced = 1 << 19

// keepAlive renews a session with every message of the stream. The first one lists the session's handles. On the stream of a client that caches, recalls go out as they
// come up.
func (l *leader) keepAlive(stream grpc.BidiStreamingServer[dfsv1.KeepAliveRequest, dfsv1.KeepAliveReply]) error {
	var out keepAliveSender
	defer out.join()
	for first := true; ; first = false {
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
			if err := l.announced(id, req.GetOpenInodes()); err != nil {
				return err
			}
			out.start(stream, l.caches, id, req.GetCache())
			if req.GetCache() != 0 {
				if out.wake, err = l.caches.attach(id, req.GetCache()); err != nil {
					return err
				}
			}
		}
		for _, r := range req.GetCloses() {
			inode := dfs.InodeID(r.GetInode())
			if r.GetUnannounced() {
				inode = 0 // if its number is not known, it is not counted either
			}
			l.sessions.closeNamed(id, inode, r.GetWrite(), r.GetHandle())
		}
		if out.cache != 0 {
			answer, err := l.caches.heard(id, out.cache, req.GetRecalled(), req.GetNumber() != 0)
			if err != nil {
				return err
			}
			if !answer {
				continue
			}
			// The answer lengthens the trust in what is cached, so it must come from a leader: another one's reign begins after this.
			if _, err := l.node.ReadBarrier(stream.Context()); err != nil {
				return err
			}
		}
		if first {
			out.run()
		}
		if err := out.answer(&dfsv1.KeepAliveReply{TtlMs: l.cfg.SessionTTL.Milliseconds(), Number: req.GetNumber()}); err != nil {
			return err
		}
	}
}

// announced takes the list of a session's handles.
func (l *leader) announced(id dfs.SessionID, list []uint64) error {
	if len(list) > maxAnnounced {
		return dfserr.Errorf(dfserr.ErrTooBig, "session %d announces %d handles, the limit is %d", id, len(list), maxAnnounced)
	}
	inodes := make([]dfs.InodeID, len(list))
	for i, n := range list {
		inodes[i] = dfs.InodeID(n)
	}
	if err := l.sessions.announce(id, inodes); err != nil {
		return err
	}
	if l.sessions.settled() {
		poke(l.reclaim)
	}
	return nil
}

// keepAliveSender sends on one stream: answers, and for a client that caches also recalls.
type keepAliveSender struct {
	stream grpc.BidiStreamingServer[dfsv1.KeepAliveRequest, dfsv1.KeepAliveReply]
	caches *cacheTable
	id     dfs.SessionID
	cache  uint64 // number of the stream; 0: the client does not cache
	wake   <-chan struct{}
	stop   chan struct{}
	wg     sync.WaitGroup

	mu sync.Mutex // held while sending
}

func (k *keepAliveSender) start(stream grpc.BidiStreamingServer[dfsv1.KeepAliveRequest, dfsv1.KeepAliveReply], caches *cacheTable, id dfs.SessionID, cache uint64) {
	k.stream, k.caches, k.id, k.cache, k.stop = stream, caches, id, cache, make(chan struct{})
}

// run begins to send recalls.
func (k *keepAliveSender) run() {
	if k.cache != 0 {
		k.wg.Go(k.sendRecalls)
	}
}

// join ends sending.
func (k *keepAliveSender) join() {
	if k.stop != nil {
		close(k.stop)
		k.wg.Wait()
	}
}

func (k *keepAliveSender) answer(r *dfsv1.KeepAliveReply) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stream.Send(r)
}

func (k *keepAliveSender) sendRecalls() {
	for {
		select {
		case <-k.wake:
		case <-k.stop:
			return
		}
		number, inodes := k.caches.take(k.id, k.cache)
		if number == 0 {
			continue
		}
		if k.answer(&dfsv1.KeepAliveReply{Recall: inodeNumbers(inodes), RecallNumber: number}) != nil {
			return // the stream is at its end, and with it what it had cached
		}
	}
}
