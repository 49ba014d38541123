package fsm

import (
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/chunks"
	"dfs/master/locks"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

// maxClientText bounds what a client says of itself, in bytes.
const maxClientText = 1024

// openSession makes a session whose id is the entry's index. A nonce that has made one gives that one again.
func (o op) openSession(r *dfsv1.OpenSessionCommand) (*dfsv1.Result, error) {
	if len(r.GetClient()) > maxClientText {
		return nil, dfserr.Errorf(dfserr.ErrTooBig, "client text of %d bytes, the limit is %d", len(r.GetClient()), maxClientText)
	}
	nonceKey := appendID(nil, kindNonce, r.GetNonce())
	if r.GetNonce() != 0 {
		v, err := o.t.load(nonceKey)
		if err != nil {
			return nil, err
		}
		if known, ok := v.(*dfsv1.NonceRecord); ok {
			return &dfsv1.Result{Session: known.GetSession()}, nil
		}
	}
	id := dfs.SessionID(o.env.Index)
	o.t.dirty.set(appendSessionKey(nil, id), &dfsv1.SessionRecord{
		Client: r.GetClient(), CreatedAtNs: o.env.Now, TtlNs: r.GetTtlNs(), Nonce: r.GetNonce(), Caches: r.GetCaches(),
	})
	if r.GetNonce() != 0 {
		o.t.dirty.set(nonceKey, &dfsv1.NonceRecord{Session: uint64(id)})
	}
	return &dfsv1.Result{Session: uint64(id), Created: true}, nil
}

// endSession deletes a session with its locks and its replies; one that is not there is success. When there are too many locks for one command
// it takes a part away, and from then on the session's own commands are refused.
func (o op) endSession(r *dfsv1.EndSessionCommand) (*dfsv1.Result, error) {
	id := dfs.SessionID(r.GetSession())
	s, err := o.t.Session(id)
	if err != nil || s == nil {
		return &dfsv1.Result{}, err
	}
	more, err := locks.EndSession(o.t, id, func() bool { return o.t.dirty.bytes >= maxUnlockBytes })
	if err != nil {
		return nil, err
	}
	if more {
		o.t.setSession(id, func(s *dfsv1.SessionRecord) { s.Ending = true })
		return &dfsv1.Result{More: true}, nil
	}
	prefix := appendID(nil, kindReply, uint64(id))
	var keys [][]byte
	err = o.t.scan(prefix, nil, func(suffix []byte, _ any) bool {
		keys = append(keys, append(append([]byte(nil), prefix...), suffix...))
		return true
	})
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		o.t.dirty.set(key, nil)
	}
	if s.GetNonce() != 0 {
		o.t.dirty.set(appendID(nil, kindNonce, s.GetNonce()), nil)
	}
	o.t.dirty.set(appendSessionKey(nil, id), nil)
	return &dfsv1.Result{}, nil
}

// server notes a chunkserver, or its new address or rack.
func (o op) server(r *dfsv1.ServerCommand) (*dfsv1.Result, error) {
	id := dfs.ServerID(r.GetServer())
	if id == 0 {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "chunkserver 0")
	}
	if len(r.GetAddr())+len(r.GetRack()) > maxClientText {
		return nil, dfserr.Errorf(dfserr.ErrTooBig, "address and rack of %d bytes, the limit is %d", len(r.GetAddr())+len(r.GetRack()), maxClientText)
	}
	known, err := o.t.Server(id)
	if err != nil {
		return nil, err
	}
	record := &dfsv1.ServerRecord{Addr: r.GetAddr(), Rack: r.GetRack(), FirstSeenNs: o.env.Now}
	if known != nil {
		record.FirstSeenNs = known.GetFirstSeenNs()
	}
	o.t.dirty.set(appendServerKey(nil, id), record)
	return &dfsv1.Result{Created: known == nil}, nil
}

// format makes the cluster: its id, the root directory, the counters.
func (o op) format(r *dfsv1.FormatCommand) (*dfsv1.Result, error) {
	known, err := o.t.Cluster()
	if err != nil {
		return nil, err
	}
	if known != 0 {
		return nil, dfserr.Errorf(dfserr.ErrExist, "format: cluster %s", known)
	}
	if r.GetClusterId() == 0 {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "format: cluster id 0")
	}
	o.t.dirty.set(keyCluster, &dfsv1.ClusterRecord{ClusterId: r.GetClusterId(), FormattedAtNs: o.env.Now})
	if err := namespace.Format(o.t, o.env, r.GetUid(), r.GetGid()); err != nil {
		return nil, err
	}
	o.t.SetChunkTotals(chunks.Totals{NextChunk: 1})
	root, err := namespace.Get(o.t, dfs.RootInode)
	return named(dfs.RootInode, root, err)
}
