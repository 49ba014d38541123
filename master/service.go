package master

import (
	"context"

	"google.golang.org/grpc"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// masterService serves dfs.v1.Master, for clients. Each call goes to the reign's leader; without one it is refused.
type masterService struct {
	dfsv1.UnimplementedMasterServer
	*Master
}

// forward hands a call to the leader. Its answer leaves when it disagrees with nothing that a client may still have cached.
func forward[Q, R any](ctx context.Context, m *Master, req *Q, handle func(*leader, context.Context, *Q) (*R, error)) (*R, error) {
	l, err := m.lead()
	if err != nil {
		return nil, err
	}
	if err := l.caches.awaitReady(ctx); err != nil {
		return nil, err
	}
	d := &deps{}
	reply, err := handle(l, context.WithValue(ctx, depsKey{}, d), req)
	if werr := l.caches.await(ctx, d); werr != nil {
		return nil, werr
	}
	return reply, err
}

// forwardAtOnce is forward for calls whose answers say nothing about the tree.
func forwardAtOnce[Q, R any](ctx context.Context, m *Master, req *Q, handle func(*leader, context.Context, *Q) (*R, error)) (*R, error) {
	l, err := m.lead()
	if err != nil {
		return nil, err
	}
	return handle(l, ctx, req)
}

// forwardGrowth is forward for calls that make the metadata grow: they are refused while the disk is nearly full.
func forwardGrowth[Q, R any](ctx context.Context, m *Master, req *Q, handle func(*leader, context.Context, *Q) (*R, error)) (*R, error) {
	if err := m.space.Check(); err != nil {
		return nil, dfserr.Errorf(err, "master in %s accepts only reads and deletions (free space on that disk, or delete files)", m.cfg.Dir)
	}
	return forward(ctx, m, req, handle)
}

func (s masterService) OpenSession(ctx context.Context, r *dfsv1.OpenSessionRequest) (*dfsv1.OpenSessionReply, error) {
	return forwardAtOnce(ctx, s.Master, r, (*leader).openSession)
}

func (s masterService) CloseSession(ctx context.Context, r *dfsv1.CloseSessionRequest) (*dfsv1.CloseSessionReply, error) {
	return forwardAtOnce(ctx, s.Master, r, (*leader).closeSession)
}

func (s masterService) KeepAlive(stream grpc.BidiStreamingServer[dfsv1.KeepAliveRequest, dfsv1.KeepAliveReply]) error {
	l, err := s.lead()
	if err != nil {
		return err
	}
	return l.keepAlive(stream)
}

func (s masterService) GetAttr(ctx context.Context, r *dfsv1.GetAttrRequest) (*dfsv1.AttrReply, error) {
	return forward(ctx, s.Master, r, (*leader).getAttr)
}

func (s masterService) ReadDir(ctx context.Context, r *dfsv1.ReadDirRequest) (*dfsv1.ReadDirReply, error) {
	return forward(ctx, s.Master, r, (*leader).readDir)
}

func (s masterService) GetXattr(ctx context.Context, r *dfsv1.GetXattrRequest) (*dfsv1.GetXattrReply, error) {
	return forward(ctx, s.Master, r, (*leader).getXattr)
}

func (s masterService) ListXattr(ctx context.Context, r *dfsv1.ListXattrRequest) (*dfsv1.ListXattrReply, error) {
	return forward(ctx, s.Master, r, (*leader).listXattr)
}

func (s masterService) StatFs(ctx context.Context, r *dfsv1.StatFsRequest) (*dfsv1.StatFsReply, error) {
	return forwardAtOnce(ctx, s.Master, r, (*leader).statFs)
}

func (s masterService) Create(ctx context.Context, r *dfsv1.CreateRequest) (*dfsv1.OpenReply, error) {
	return forwardGrowth(ctx, s.Master, r, (*leader).create)
}

func (s masterService) Remove(ctx context.Context, r *dfsv1.RemoveRequest) (*dfsv1.RemoveReply, error) {
	return forward(ctx, s.Master, r, (*leader).remove)
}

func (s masterService) Rename(ctx context.Context, r *dfsv1.RenameRequest) (*dfsv1.AttrReply, error) {
	return forwardGrowth(ctx, s.Master, r, (*leader).rename)
}

func (s masterService) Link(ctx context.Context, r *dfsv1.LinkRequest) (*dfsv1.AttrReply, error) {
	return forwardGrowth(ctx, s.Master, r, (*leader).link)
}

func (s masterService) SetAttr(ctx context.Context, r *dfsv1.SetAttrRequest) (*dfsv1.AttrReply, error) {
	return forwardGrowth(ctx, s.Master, r, (*leader).setAttr)
}

func (s masterService) Truncate(ctx context.Context, r *dfsv1.TruncateRequest) (*dfsv1.AttrReply, error) {
	return forward(ctx, s.Master, r, (*leader).truncate)
}

func (s masterService) SetXattr(ctx context.Context, r *dfsv1.SetXattrRequest) (*dfsv1.AttrReply, error) {
	return forwardGrowth(ctx, s.Master, r, (*leader).setXattr)
}

func (s masterService) RemoveXattr(ctx context.Context, r *dfsv1.RemoveXattrRequest) (*dfsv1.AttrReply, error) {
	return forward(ctx, s.Master, r, (*leader).removeXattr)
}

func (s masterService) Open(ctx context.Context, r *dfsv1.OpenRequest) (*dfsv1.OpenReply, error) {
	return forward(ctx, s.Master, r, (*leader).open)
}

func (s masterService) Close(ctx context.Context, r *dfsv1.CloseRequest) (*dfsv1.CloseReply, error) {
	return forward(ctx, s.Master, r, (*leader).closeHandle)
}

func (s masterService) WriteInline(ctx context.Context, r *dfsv1.WriteInlineRequest) (*dfsv1.WriteInlineReply, error) {
	return forwardGrowth(ctx, s.Master, r, (*leader).writeInline)
}

func (s masterService) GetChunks(ctx context.Context, r *dfsv1.GetChunksRequest) (*dfsv1.GetChunksReply, error) {
	return forward(ctx, s.Master, r, (*leader).getChunks)
}

func (s masterService) AddChunk(ctx context.Context, r *dfsv1.AddChunkRequest) (*dfsv1.AddChunkReply, error) {
	return forwardGrowth(ctx, s.Master, r, (*leader).addChunk)
}

func (s masterService) CommitLength(ctx context.Context, r *dfsv1.CommitLengthRequest) (*dfsv1.AttrReply, error) {
	return forward(ctx, s.Master, r, (*leader).commitLength)
}

func (s masterService) ReportFailure(ctx context.Context, r *dfsv1.ReportFailureRequest) (*dfsv1.ReportFailureReply, error) {
	return forward(ctx, s.Master, r, (*leader).reportFailure)
}

func (s masterService) Lock(ctx context.Context, r *dfsv1.LockRequest) (*dfsv1.LockReply, error) {
	return forward(ctx, s.Master, r, (*leader).lock)
}

func (s masterService) AwaitLock(ctx context.Context, r *dfsv1.AwaitLockRequest) (*dfsv1.AwaitLockReply, error) {
	return forward(ctx, s.Master, r, (*leader).awaitLock)
}

func (s masterService) GetLock(ctx context.Context, r *dfsv1.GetLockRequest) (*dfsv1.GetLockReply, error) {
	return forward(ctx, s.Master, r, (*leader).getLock)
}

func (s masterService) ClusterReport(ctx context.Context, r *dfsv1.ClusterReportRequest) (*dfsv1.ClusterReportReply, error) {
	return forwardAtOnce(ctx, s.Master, r, (*leader).clusterReport)
}

func (s masterService) Fsck(r *dfsv1.FsckRequest, stream grpc.ServerStreamingServer[dfsv1.FsckReply]) error {
	l, err := s.lead()
	if err != nil {
		return err
	}
	return l.fsck(r, stream)
}

// checkHeader refuses a mutation that cannot be recognised when it is repeated.
func checkHeader(h *dfsv1.MutationHeader) error {
	if h.GetSession() == 0 || h.GetSeq() == 0 {
		return dfserr.Errorf(dfserr.ErrInvalid, "a mutation needs a session and a request number")
	}
	return checkCaller(h.GetCaller())
}

// maxGroups bounds supplementary groups, as Linux does.
const maxGroups = 65_536 / 16

func checkCaller(c *dfsv1.Caller) error {
	if len(c.GetGroups()) > maxGroups {
		return dfserr.Errorf(dfserr.ErrTooBig, "caller has %d groups, the limit is %d", len(c.GetGroups()), maxGroups)
	}
	return nil
}

// checkRefs bounds the paths of a request before they go into the log.
func checkRefs(refs ...*dfsv1.Ref) error {
	for _, r := range refs {
		if len(r.GetPath()) > dfs.PathMax {
			return dfserr.Errorf(dfserr.ErrNameTooLong, "path %.32q… is %d bytes long, the limit is %d", r.GetPath(), len(r.GetPath()), dfs.PathMax)
		}
	}
	return nil
}

// checkRequest checks the parts that most mutations have: names may not be empty.
func checkRequest(h *dfsv1.MutationHeader, refs []*dfsv1.Ref, names ...[]byte) error {
	if err := checkHeader(h); err != nil {
		return err
	}
	if err := checkRefs(refs...); err != nil {
		return err
	}
	for _, n := range names {
		if err := dfs.CheckName(n); err != nil {
			return err
		}
	}
	return nil
}
