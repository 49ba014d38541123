package chunkserver

import (
	"errors"
	"slices"
	"time"

	"dfs/chunkserver/store"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// maxTries is how many activations one frame may cause before it is given back to its client.
const maxTries = 3

// orderLocked takes the first frame of the queue, a client's, as the chunk's primary: checks it, recognises a
// repetition, gives it the next seq, sends it down the chain and appends it to the log. It may instead leave the frame
// where it is and begin activation. The caller holds the token and mu, which is unlocked.
func (c *chunk) orderLocked(w *work) {
	h := &w.client
	now := time.Now()
	if !c.usableLocked(now) || dfs.Version(h.GetVersion()) > c.promised {
		if w.tries < maxTries {
			w.tries++
			c.activateLocked()
			c.mu.Unlock()
			return
		}
		c.popLocked()
		c.mu.Unlock()
		w.refuse(0, dfserr.Errorf(dfserr.ErrLeaseExpired, "write to chunk %s version %d", c.id, h.GetVersion()))
		return
	}
	if h.GetKind() == dfsv1.MutationKind_APPEND && !w.asked && c.end.unsure(now) {
		w.asked = true
		c.activateLocked()
		c.mu.Unlock()
		return
	}
	c.popLocked()
	c.touchedAt = now
	cfg, rep, length, tooFew := c.cfg, c.rep, c.length, c.tooFewLocked()
	end := length // of the file, in the chunk
	if h.GetKind() == dfsv1.MutationKind_APPEND {
		end = max(length, c.end.from)
	}
	c.mu.Unlock()

	if dfs.Version(h.GetVersion()) < cfg.version {
		w.refuse(0, dfserr.Errorf(dfserr.ErrStaleVersion, "write to chunk %s version %d, which has version %d", c.id, h.GetVersion(), cfg.version))
		return
	}
	if tooFew {
		w.refuse(0, dfserr.Errorf(dfserr.ErrTooFewReplicas, "write to chunk %s version %d, which has %d replicas", c.id, cfg.version, len(cfg.replicas)))
		return
	}
	if c.answerRepeat(w, rep) {
		return
	}
	m := &w.mutation
	if err := c.tailLackedBy(h); err != nil {
		w.refuse(0, err)
		return
	}
	if err := shape(m, w, cfg.chunkSize, end); err != nil {
		c.noteRefused(h, err)
		w.refuse(0, dfserr.Errorf(dfserr.Sentinel(err), "write to chunk %s: %v", c.id, err))
		return
	}
	m.Version = cfg.version
	c.commitMutation(w, length)
}

// tooFewLocked reports whether the configuration has too few replicas to acknowledge anything.
func (c *chunk) tooFewLocked() bool {
	return len(c.cfg.replicas) < dfs.MinReplicas(c.cfg.replication, c.minReplicas)
}

// answerRepeat answers a frame whose request is in the log already, and reports whether it did.
func (c *chunk) answerRepeat(w *work, rep *store.Replica) bool {
	h := &w.client
	if h.GetWriter() == 0 {
		return false
	}
	off, seq, found, err := rep.LookupRequest(h.GetWriter(), h.GetRequest())
	if err != nil {
		w.refuse(0, err)
		return true
	}
	if !found {
		return false
	}
	length := off // of a truncation
	if k := h.GetKind(); k == dfsv1.MutationKind_WRITE || k == dfsv1.MutationKind_APPEND {
		length += h.GetLength()
	}
	p := pending{seq: seq, ws: w.ws, tag: h.GetTag(), off: off, length: length}
	c.mu.Lock()
	if seq <= c.committed {
		w.ws.done(p.tag, p.off, p.seq, p.length)
	} else if c.ready {
		c.repeats = append(c.repeats, p)
	} else {
		w.ws.fail(p.tag, dfserr.Errorf(dfserr.ErrLeaseExpired, "write to chunk %s", c.id), 0)
	}
	c.mu.Unlock()
	w.release()
	return true
}

// commitMutation gives w.mutation the next seq, sends it to the successor, appends it, and notes that it is in the
// log here. The caller holds the token.
func (c *chunk) commitMutation(w *work, length int64) {
	m := &w.mutation
	switch m.Kind {
	case store.KindWrite:
		length = max(length, m.Off+m.Len)
	case store.KindTruncate:
		length = m.Off
	}
	// With little room left, the log here goes first, so that a full disk refuses the client instead of breaking the chain.
	if c.srv.lowSpace.Load() {
		c.appendFirst(w, length)
		return
	}
	c.mu.Lock()
	if !c.ready {
		c.mu.Unlock()
		w.refuse(0, dfserr.Errorf(dfserr.ErrLeaseExpired, "write to chunk %s", c.id))
		return
	}
	if err := c.takeAppendLocked(&w.client, c.localSeq+1); err != nil {
		c.mu.Unlock()
		w.refuse(0, err)
		return
	}
	m.Seq = c.localSeq + 1
	c.pending = append(c.pending, pending{m.Seq, w.ws, w.client.GetTag(), m.Off, length})
	down := c.sendLocked(w)
	rep, committed := c.rep, c.committed
	c.mu.Unlock()
	if down != nil {
		down.flush(w)
	}
	err := rep.SetCommitted(committed)
	if err == nil {
		err = rep.Append(m)
	}
	c.mu.Lock()
	if err != nil {
		c.appendFailedLocked(m.Seq, err)
	} else {
		c.appendedLocked(m.Seq, length)
	}
	c.mu.Unlock()
	w.release()
}

// appendFirst is commitMutation with the append before anything else.
func (c *chunk) appendFirst(w *work, length int64) {
	m := &w.mutation
	c.mu.Lock()
	rep := c.rep
	m.Seq = c.localSeq + 1
	var refused error
	if !c.ready {
		refused = dfserr.Errorf(dfserr.ErrLeaseExpired, "write to chunk %s", c.id)
	} else {
		refused = c.takeAppendLocked(&w.client, m.Seq)
	}
	c.mu.Unlock()
	if refused != nil {
		w.refuse(0, refused)
		return
	}
	err := rep.Append(m)
	c.mu.Lock()
	if errors.Is(err, dfserr.ErrNoSpace) {
		c.mu.Unlock()
		w.refuse(c.srv.ID(), err)
		return
	}
	if err != nil {
		c.pending = append(c.pending, pending{m.Seq, w.ws, w.client.GetTag(), m.Off, length})
		c.appendFailedLocked(m.Seq, err)
		c.mu.Unlock()
		w.release()
		return
	}
	if c.role != rolePrimary { // fenced meanwhile: nobody would answer
		c.mu.Unlock()
		w.refuse(0, dfserr.Errorf(dfserr.ErrLeaseExpired, "write to chunk %s", c.id))
		return
	}
	c.pending = append(c.pending, pending{m.Seq, w.ws, w.client.GetTag(), m.Off, length})
	var down *downstream
	if c.ready {
		down = c.sendLocked(w)
	}
	c.appendedLocked(m.Seq, length)
	c.mu.Unlock()
	if down != nil {
		down.flush(w)
	}
	w.release()
}

// sendLocked gives the mutation to the successor's stream, in order of seq. The caller calls flush on what it returns,
// without mu.
func (c *chunk) sendLocked(w *work) *downstream {
	if c.next == 0 {
		return nil
	}
	m, l := &w.mutation, &w.link
	l.Chunk, l.Version, l.Seq, l.Kind = uint64(c.id), uint64(m.Version), uint64(m.Seq), kindOf(m.Kind)
	l.Offset, l.Length, l.Writer, l.Request, l.Crcs = m.Off, m.Len, m.Writer, m.Request, m.CRCs
	l.CommittedSeq, l.Chain, l.CutVersion, l.Activation = uint64(c.committed), c.rest, uint64(m.CutVersion), c.activation
	c.notified = c.committed
	return c.passLocked(w, m.Seq)
}

// passLocked puts a frame, whose link header says all, into the successor's stream. Failing to is found out like a
// stream that breaks.
func (c *chunk) passLocked(w *work, seq dfs.Seq) *downstream {
	if c.down == nil {
		d, err := c.srv.downs.get(c.next)
		if err == nil {
			err = d.join(c)
		}
		if err != nil {
			c.sentSeq = seq
			c.downLostLocked(err)
			return nil
		}
		c.down = d
	}
	if c.sentSeq == c.downSeq {
		c.movedAt = time.Now()
	}
	c.sentSeq = seq
	w.holders.Add(1)
	c.down.push(w)
	return c.down
}

// appendedLocked notes that a mutation is in the log here.
func (c *chunk) appendedLocked(seq dfs.Seq, length int64) {
	c.localSeq, c.length = seq, length
	if c.ready {
		c.advanceLocked()
	}
}

// appendFailedLocked notes that a mutation, which others may have, could not be put into the log here: this replica
// is lost to its configuration.
func (c *chunk) appendFailedLocked(seq dfs.Seq, err error) {
	kept := c.pending[:0]
	for _, p := range c.pending {
		if p.seq != seq {
			kept = append(kept, p)
			continue
		}
		p.ws.fail(p.tag, asRefresh(err), c.srv.ID())
	}
	c.pending = kept
	c.srv.log.Error("append to replica failed", "chunk", c.id, "seq", seq, "error", err)
	c.breakLocked(&failure{server: c.srv.ID(), version: c.promised, reason: err.Error(), corrupt: errors.Is(err, dfserr.ErrCorrupt)})
}

// asRefresh makes a failure of this replica into an error that sends the client to the next configuration.
func asRefresh(err error) error {
	switch dfserr.ClassOf(err) {
	case dfserr.Refresh, dfserr.Backoff:
		return err
	default:
		return dfserr.Errorf(dfserr.ErrNotPrimary, "%v", err)
	}
}

// downAcked notes how far the successors' logs reach.
func (c *chunk) downAcked(d *downstream, ack *dfsv1.ForwardAck) {
	var flush *forwardStream
	defer func() { flush.flush() }()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != d || !c.ready || ack.GetActivation() != c.activation {
		return
	}
	if ack.GetErrorReason() != "" {
		c.downRefusedLocked(dfserr.FromReason(ack.GetErrorReason(), ack.GetErrorText()), dfs.ServerID(ack.GetFailedServer()))
		return
	}
	seq := dfs.Seq(ack.GetSeq())
	if seq <= c.downSeq || seq > c.sentSeq {
		return
	}
	d.outstanding.Add(-int64(seq - c.downSeq))
	c.downSeq = seq
	if seq < c.sentSeq {
		c.movedAt = time.Now()
	}
	if c.role == rolePrimary {
		c.advanceLocked()
	} else {
		flush = c.ackUpstreamLocked()
	}
}

// downRefusedLocked handles an error that came up the chain.
func (c *chunk) downRefusedLocked(err error, server dfs.ServerID) {
	if server == 0 {
		server = c.next
	}
	if c.role != rolePrimary {
		c.failUpstreamLocked(err, server)
		return
	}
	c.srv.log.Warn("replica refused a mutation", "chunk", c.id, "version", c.promised, "server", server, "error", err)
	// A replica that lost its preparation, after a restart, is prepared again; anything else is for the master.
	if errors.Is(err, dfserr.ErrLeaseExpired) || errors.Is(err, dfserr.ErrStaleVersion) || errors.Is(err, dfserr.ErrBusy) {
		c.breakLocked(nil)
		return
	}
	c.breakLocked(&failure{server: server, version: c.promised, reason: err.Error(), corrupt: errors.Is(err, dfserr.ErrCorrupt)})
}

// downFailed handles the end of the successor's stream; d is nil when it could not be had.
func (c *chunk) downFailed(d *downstream, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != d {
		return
	}
	if c.sentSeq == c.downSeq || !c.ready { // nothing is lost: the next mutation opens a new stream
		c.down = nil
		return
	}
	c.downLostLocked(err)
}

// downLostLocked handles mutations that will not be acknowledged because the successor cannot be reached.
func (c *chunk) downLostLocked(err error) {
	next := c.next
	c.srv.log.Warn("successor failed", "chunk", c.id, "version", c.promised, "server", next, "error", err)
	if c.role == rolePrimary {
		c.breakLocked(&failure{server: next, version: c.promised, reason: err.Error()})
		return
	}
	c.failUpstreamLocked(dfserr.Errorf(dfserr.ErrUnavailable, "forward to chunkserver %s: %v", next, err), next)
}

// failUpstreamLocked tells the predecessor that mutations are lost here or further down, and takes no more of them.
func (c *chunk) failUpstreamLocked(err error, server dfs.ServerID) {
	up, link := c.upstream, c.linkLocked()
	c.breakLocked(nil)
	if up != nil {
		up.fail(link, err, server)
	}
}

// linkLocked returns a header that names the chunk and its activation, for acknowledgements.
func (c *chunk) linkLocked() *dfsv1.ForwardHeader {
	return &dfsv1.ForwardHeader{Chunk: uint64(c.id), Version: uint64(c.promised), Activation: c.activation}
}

// shape checks a client's frame and makes a mutation, without version and seq, of it. end is where an append goes at the earliest.
func shape(m *store.Mutation, w *work, chunkSize, end int64) error {
	h, n := &w.client, int64(w.frame.Len())
	bad := func(format string, args ...any) error { return dfserr.Errorf(dfserr.ErrInvalid, format, args...) }
	m.Off, m.Len, m.Writer, m.Request = h.GetOffset(), h.GetLength(), h.GetWriter(), h.GetRequest()
	if h.GetWriter() != 0 && h.GetRequest() == 0 {
		return bad("request 0 of a writer")
	}
	kind := h.GetKind()
	switch kind {
	case dfsv1.MutationKind_WRITE, dfsv1.MutationKind_APPEND:
		if n == 0 || n > dfs.FrameSize || h.GetLength() != n {
			return bad("%d bytes of data, %d announced, at most %d allowed", n, h.GetLength(), dfs.FrameSize)
		}
	default:
		if n != 0 {
			return bad("%d bytes of data with a mutation that has none", n)
		}
	}
	switch kind {
	case dfsv1.MutationKind_WRITE:
		m.Kind, m.CRCs, m.Data = store.KindWrite, h.GetCrcs(), w.frame.Pieces()
		if !dfs.CheckRange(m.Off, m.Len, chunkSize) {
			return bad("range of %d bytes at %d in a chunk of %d", m.Len, m.Off, chunkSize)
		}
		if len(m.CRCs) != dfs.BlockPieces(m.Off, m.Len) {
			return bad("%d checksums for %d pieces", len(m.CRCs), dfs.BlockPieces(m.Off, m.Len))
		}
		if !slices.Equal(m.CRCs, dfs.BlockCRCsV(m.Off, m.Data)) {
			return dfserr.Errorf(dfserr.ErrCorrupt, "%d bytes at %d do not have the checksums sent with them", m.Len, m.Off)
		}
	case dfsv1.MutationKind_APPEND:
		m.Kind, m.Data = store.KindWrite, w.frame.Pieces()
		if !dfs.CheckRange(h.GetMinOffset(), 0, chunkSize) {
			return bad("append at %d or later in a chunk of %d", h.GetMinOffset(), chunkSize)
		}
		m.Off = max(end, h.GetMinOffset())
		if !dfs.CheckRange(m.Off, m.Len, chunkSize) {
			return dfserr.Errorf(dfserr.ErrChunkFull, "append of %d bytes at %d in a chunk of %d", m.Len, m.Off, chunkSize)
		}
		m.CRCs = dfs.BlockCRCsV(m.Off, m.Data)
		if combinePieces(m.CRCs, m.Off, m.Len) != h.GetAppendCrc() {
			return dfserr.Errorf(dfserr.ErrCorrupt, "%d bytes to append do not have the checksum sent with them", m.Len)
		}
	case dfsv1.MutationKind_ZERO:
		m.Kind = store.KindZero
		if m.Len <= 0 || !dfs.CheckRange(m.Off, m.Len, chunkSize) {
			return bad("zeroes of %d bytes at %d in a chunk of %d", m.Len, m.Off, chunkSize)
		}
	case dfsv1.MutationKind_TRUNCATE:
		m.Kind = store.KindTruncate
		if m.Len != 0 || !dfs.CheckRange(m.Off, 0, chunkSize) {
			return bad("truncation to %d in a chunk of %d", m.Off, chunkSize)
		}
	default:
		return dfserr.Errorf(dfserr.ErrUnsupported, "mutation of kind %d", kind)
	}
	return nil
}

// combinePieces returns the CRC of n bytes at off from those of their pieces.
func combinePieces(crcs []uint32, off, n int64) uint32 {
	whole, room := uint32(0), dfs.BlockSize-off%dfs.BlockSize
	for _, crc := range crcs {
		size := min(room, n)
		whole = dfs.CombineCRC(whole, crc, size)
		n, room = n-size, dfs.BlockSize
	}
	return whole
}

// kindOf names a stored mutation's kind on the wire.
func kindOf(k store.Kind) dfsv1.MutationKind {
	switch k {
	case store.KindZero:
		return dfsv1.MutationKind_ZERO
	case store.KindTruncate:
		return dfsv1.MutationKind_TRUNCATE
	default:
		return dfsv1.MutationKind_WRITE
	}
}
