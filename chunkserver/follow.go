package chunkserver

import (
	"errors"

	"dfs/chunkserver/store"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// followLocked takes the first frame of the queue, a predecessor's, as a secondary: passes it on and appends it. The
// caller holds the token and mu, which is unlocked.
func (c *chunk) followLocked(w *work) {
	c.popLocked()
	l := &w.link
	if err := c.checkLinkLocked(l); err != nil {
		c.mu.Unlock()
		w.refuse(c.srv.ID(), err)
		return
	}
	c.upstream = w.fs
	c.committed = max(c.committed, min(dfs.Seq(l.GetCommittedSeq()), c.localSeq))
	c.setChainLocked(l.GetChain())
	seq := dfs.Seq(l.GetSeq())
	if l.GetKind() == dfsv1.MutationKind_MUTATION_UNSPECIFIED {
		c.followNoticeLocked(w) // unlocks
		return
	}
	if seq <= c.localSeq { // a repetition: say again how far the logs reach
		flush := c.ackUpstreamLocked()
		c.mu.Unlock()
		w.release()
		flush.flush()
		return
	}
	m, err := follower(w, c.cfg.chunkSize)
	if err == nil && seq != c.localSeq+1 {
		err = dfserr.Errorf(dfserr.ErrUnavailable, "mutation %d after %d", seq, c.localSeq)
	}
	if err != nil {
		c.breakLocked(nil)
		c.mu.Unlock()
		w.refuse(c.srv.ID(), dfserr.Errorf(dfserr.Sentinel(err), "forward to chunk %s: %v", c.id, err))
		return
	}
	c.follow(w, m) // unlocks
}

// follow passes a checked mutation on and appends it. The caller holds the token and mu, which is unlocked.
func (c *chunk) follow(w *work, m *store.Mutation) {
	var down *downstream
	if c.next != 0 {
		w.link.Chain = c.rest
		down = c.passLocked(w, m.Seq)
	}
	rep, committed := c.rep, c.committed
	c.mu.Unlock()
	if down != nil {
		down.flush(w)
	}
	err := rep.SetCommitted(committed)
	if err == nil {
		err = rep.Append(m)
	}
	var flush *forwardStream
	c.mu.Lock()
	switch {
	case err != nil:
		c.srv.log.Error("append to replica failed", "chunk", c.id, "seq", m.Seq, "error", err)
		c.failUpstreamLocked(err, c.srv.ID())
	default:
		c.localSeq = m.Seq
		if c.ready {
			flush = c.ackUpstreamLocked()
		}
	}
	c.mu.Unlock()
	flush.flush()
	w.release()
	if errors.Is(err, dfserr.ErrDiskFailed) {
		c.srv.beatNow()
	}
}

// followNoticeLocked passes on how far the chunk is committed. The caller holds mu, which is unlocked.
func (c *chunk) followNoticeLocked(w *work) {
	var down *downstream
	if c.next != 0 && c.down != nil {
		w.link.Chain = c.rest
		w.holders.Add(1)
		c.down.push(w)
		down = c.down
	}
	rep, committed := c.rep, c.committed
	c.mu.Unlock()
	if down != nil {
		down.flush(w)
	}
	w.release()
	c.noteCommitted(rep, committed)
}

// noteCommitted tells the store how far the chunk is committed. It is knowledge that makes reads cheaper, no more.
func (c *chunk) noteCommitted(rep *store.Replica, seq dfs.Seq) {
	if err := rep.SetCommitted(seq); err != nil {
		c.srv.log.Warn("note of committed mutations failed", "chunk", c.id, "seq", seq, "error", err)
	}
}

// checkLinkLocked refuses frames of another version or activation, and all while the log is not in step.
func (c *chunk) checkLinkLocked(l *dfsv1.ForwardHeader) error {
	switch {
	case c.role == roleSecondary && c.ready && c.promised == dfs.Version(l.GetVersion()) && c.activation == l.GetActivation():
		return nil
	case c.promised > dfs.Version(l.GetVersion()):
		return dfserr.Errorf(dfserr.ErrStaleVersion, "forward to chunk %s version %d, which has version %d", c.id, l.GetVersion(), c.promised)
	default:
		return dfserr.Errorf(dfserr.ErrLeaseExpired, "forward to chunk %s version %d: not prepared", c.id, l.GetVersion())
	}
}

// setChainLocked notes who comes after this server.
func (c *chunk) setChainLocked(chain []uint64) {
	next, rest := dfs.ServerID(0), []uint64(nil)
	if len(chain) > 0 {
		next, rest = dfs.ServerID(chain[0]), chain[1:]
	}
	if next != c.next {
		c.detachLocked()
		c.next = next
	}
	c.rest = rest
}

// ackUpstreamLocked tells the predecessor how far the logs from here on reach. The caller flushes what it returns, without mu.
func (c *chunk) ackUpstreamLocked() *forwardStream {
	to := c.localSeq
	if c.next != 0 {
		to = min(to, c.downSeq)
	}
	if c.upstream == nil || to == 0 {
		return nil
	}
	c.upstream.ack(outAck{chunk: c.id, version: c.promised, activation: c.activation, seq: to})
	return c.upstream
}

// follower makes a mutation of a predecessor's frame. The checksums are the store's to verify.
func follower(w *work, chunkSize int64) (*store.Mutation, error) {
	l, m, n := &w.link, &w.mutation, int64(w.frame.Len())
	*m = store.Mutation{
		Version: dfs.Version(l.GetVersion()), Seq: dfs.Seq(l.GetSeq()), Off: l.GetOffset(), Len: l.GetLength(),
		Writer: l.GetWriter(), Request: l.GetRequest(), CutVersion: dfs.Version(l.GetCutVersion()),
	}
	bad := func() (*store.Mutation, error) {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "mutation of kind %d with %d bytes at %d, %d checksums", l.GetKind(), n, m.Off, len(l.GetCrcs()))
	}
	if !dfs.CheckRange(m.Off, m.Len, chunkSize) {
		return bad()
	}
	switch l.GetKind() {
	case dfsv1.MutationKind_WRITE:
		m.Kind, m.Data, m.CRCs = store.KindWrite, w.frame.Pieces(), l.GetCrcs()
		if n == 0 || n > dfs.FrameSize || n != m.Len || len(m.CRCs) != dfs.BlockPieces(m.Off, m.Len) {
			return bad()
		}
	case dfsv1.MutationKind_ZERO:
		m.Kind = store.KindZero
		if n != 0 || m.Len == 0 {
			return bad()
		}
	case dfsv1.MutationKind_TRUNCATE:
		m.Kind = store.KindTruncate
		if n != 0 || m.Len != 0 {
			return bad()
		}
	default:
		return bad()
	}
	return m, nil
}
