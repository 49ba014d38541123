package chunkserver

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"dfs/chunkserver/store"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// maxRereads bounds how often one frame of a read is begun again because the chunk changed hands meanwhile.
const maxRereads = 8

// view is a replica's right to answer, as of one instant.
type view struct {
	rep        *store.Replica
	version    dfs.Version
	activation uint64
	period     uint64 // serving period
	primary    bool
	leader     dfs.ServerID // the primary
	committed  dfs.Seq
}

// holds reports whether the view is still true: the same activation, in the same serving period.
func (c *chunk) holds(v view) bool {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ready && c.activation == v.activation && c.currentIn == v.period && c.srv.serving.holds(v.period, now) &&
		(!v.primary || now.Before(c.leaseUntil))
}

// viewLocked returns a view if the replica may answer at now.
func (c *chunk) viewLocked(now time.Time) (view, bool) {
	ok := c.ready
	switch c.role {
	case rolePrimary:
		ok = ok && c.usableLocked(now)
	case roleSecondary:
		ok = ok && c.currentIn != 0 && c.srv.serving.holds(c.currentIn, now)
	default:
		ok = false
	}
	if !ok {
		return view{}, false
	}
	return view{c.rep, c.promised, c.activation, c.currentIn, c.role == rolePrimary, c.cfg.primary(), c.committed}, true
}

// Read returns bytes of a chunk.
func (h *handlers) Read(req *dfsv1.ReadRequest, stream grpc.ServerStreamingServer[dfsv1.ReadFrame]) error {
	s := h.srv
	if !dfs.CheckRange(req.GetOffset(), req.GetLength(), dfs.MaxChunkSize) {
		return dfserr.Errorf(dfserr.ErrInvalid, "read of %d bytes at %d of chunk %016x", req.GetLength(), req.GetOffset(), req.GetChunk())
	}
	c, err := s.chunks.acquire(dfs.ChunkID(req.GetChunk()))
	if err != nil {
		return err
	}
	defer s.chunks.release(c)
	header := new(dfsv1.ReadHeader)
	off, end := req.GetOffset(), req.GetOffset()+req.GetLength()
	for {
		// After the first frame, frames begin at block boundaries, so that stored checksums serve as they are.
		n := min(end-off, dfs.FrameSize-off%dfs.BlockSize)
		res, length, err := c.readFrame(stream.Context(), dfs.Version(req.GetVersion()), off, n)
		if err != nil {
			return err
		}
		got := int64(len(res.Data))
		header.Reset()
		header.Offset, header.Length, header.Crcs, header.ChunkLength, header.Version = off, got, res.CRCs, length, uint64(res.Version)
		frame := rpc.Frame{Header: header}
		if got > 0 {
			frame.Data = mem.BufferSlice{rpc.Lend(res.Data, res.Release)}
		} else {
			res.Release()
		}
		err = stream.SendMsg(&frame)
		frame.Free()
		if err != nil {
			return err
		}
		off += got
		if off >= end || got < n {
			return nil
		}
	}
}

// readFrame reads n bytes, or those up to the chunk's end, as a committed state shows them, and returns the chunk's committed
// length with them.
func (c *chunk) readFrame(ctx context.Context, version dfs.Version, off, n int64) (*store.ReadResult, int64, error) {
	for range maxRereads {
		v, err := c.readable(ctx, version)
		if err != nil {
			return nil, 0, err
		}
		if v.primary { // what was acknowledged before the read began is committed in the eyes of the store too
			if err := v.rep.SetCommitted(v.committed); err != nil {
				return nil, 0, err
			}
		}
		res, err := v.rep.ReadAt(off, n)
		if err != nil {
			return nil, 0, c.noticeDamage(err)
		}
		length := res.CommittedLength
		// Mutations that are not known to be committed matter when they change the bytes, or the length and the read
		// reaches that far. With all that the log held committed, the bytes and the length are a committed state.
		if res.DirtyUpTo != 0 || (off+n > res.CommittedLength && res.Length > res.CommittedLength) {
			length = res.Length
			upTo, err := v.rep.DirtyUpTo(0, dfs.MaxChunkSize)
			if err == nil && upTo != 0 {
				err = c.settle(ctx, v, upTo)
			}
			if errors.Is(err, errLeaderGone) { // reported by now: there is another configuration to learn
				res.Release()
				if err := c.resolveAgain(ctx); err != nil {
					return nil, 0, err
				}
				continue
			}
			if err != nil {
				res.Release()
				if c.holds(v) || ctx.Err() != nil {
					return nil, 0, err
				}
				continue
			}
		}
		cutResult(res, off, length)
		// The period must have lasted until after the bytes were taken: a process that was stopped in between
		// cannot tell how old they are.
		if c.holds(v) {
			return res, length, nil
		}
		res.Release()
	}
	return nil, 0, dfserr.Errorf(dfserr.ErrStaleVersion, "read of chunk %s: its configuration keeps changing", c.id)
}

// cutResult drops the bytes from length on, which an uncommitted mutation beyond them has made part of the chunk.
func cutResult(res *store.ReadResult, off, length int64) {
	keep := max(0, length-off)
	if keep >= int64(len(res.Data)) {
		return
	}
	res.Data = res.Data[:keep]
	res.CRCs = res.CRCs[:dfs.BlockPieces(off, keep)]
	if n := len(res.CRCs); n > 0 {
		begin := max(off, (off+keep-1)/dfs.BlockSize*dfs.BlockSize)
		res.CRCs[n-1] = dfs.CRC(res.Data[begin-off:])
	}
}

// committedLength returns the chunk's length after the mutations that are committed, at an active primary.
func (c *chunk) committedLength() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.commitLen
}

// settle waits until a mutation seen in a view is committed: at the primary for its acknowledgement, elsewhere by
// asking the primary.
func (c *chunk) settle(ctx context.Context, v view, seq dfs.Seq) error {
	if v.primary {
		return c.awaitCommit(ctx, v, seq)
	}
	peer, err := c.srv.peer(v.leader)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, c.srv.cfg.StallTimeout) // a mutation takes no longer, or costs somebody his place
	defer cancel()
	reply, err := peer.Committed(limited, &dfsv1.CommittedRequest{Chunk: uint64(c.id), Version: uint64(v.version), Seq: uint64(seq)})
	if err != nil {
		return c.leaderFailed(ctx, v.leader, v.version, err)
	}
	c.mu.Lock()
	same := c.ready && c.activation == v.activation
	if same {
		c.committed = max(c.committed, min(dfs.Seq(reply.GetCommittedSeq()), c.localSeq))
	}
	committed := c.committed
	c.mu.Unlock()
	if same {
		c.noteCommitted(v.rep, committed)
	}
	return nil
}

// awaitCommit waits, at the active primary of the view, until seq is committed.
func (c *chunk) awaitCommit(ctx context.Context, v view, seq dfs.Seq) error {
	c.mu.Lock()
	switch {
	case !c.ready || c.activation != v.activation:
		c.mu.Unlock()
		return dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %s version %d: prepared anew", c.id, v.version)
	case seq <= c.committed:
		c.mu.Unlock()
		return nil
	case seq > c.localSeq && seq > c.sentSeq:
		c.mu.Unlock()
		return dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %s version %d has no mutation %d", c.id, v.version, seq)
	}
	w := commitWaiter{seq, make(chan error, 1)}
	c.waiters = append(c.waiters, w)
	c.mu.Unlock()
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return dfserr.Errorf(ctx.Err(), "wait for the commit of mutation %d of chunk %s", seq, c.id)
	}
}

// readable returns a view of at least the given version, finding out this replica's standing when it is not known.
func (c *chunk) readable(ctx context.Context, version dfs.Version) (view, error) {
	for range maxRereads {
		now := time.Now()
		c.mu.Lock()
		if c.corrupt != nil {
			err := c.corrupt
			c.mu.Unlock()
			c.srv.noteCorrupt(c.id)
			return view{}, err
		}
		if v, ok := c.viewLocked(now); ok && v.version >= version {
			if v.primary {
				c.touchedAt = now
			}
			c.mu.Unlock()
			return v, nil
		}
		f := c.resolveLocked()
		c.mu.Unlock()
		if err := f.wait(ctx); err != nil {
			return view{}, err
		}
	}
	return view{}, dfserr.Errorf(dfserr.ErrStaleVersion, "read of chunk %s version %d: this replica is not of that version", c.id, version)
}

// primaryView returns a view of this server as the active primary, of at least the given version, becoming it when necessary.
func (c *chunk) primaryView(ctx context.Context, version dfs.Version) (view, error) {
	for range maxTries {
		now := time.Now()
		c.mu.Lock()
		if c.usableLocked(now) && c.promised >= version {
			v, _ := c.viewLocked(now)
			c.touchedAt = now
			c.mu.Unlock()
			return v, nil
		}
		f := c.activateLocked()
		c.mu.Unlock()
		if err := f.wait(ctx); err != nil {
			return view{}, err
		}
	}
	return view{}, dfserr.Errorf(dfserr.ErrLeaseExpired, "chunk %s version %d", c.id, version)
}

// resolveAgain learns the configuration anew although the replica has a view.
func (c *chunk) resolveAgain(ctx context.Context) error {
	c.mu.Lock()
	f := c.resolveLocked()
	c.mu.Unlock()
	return f.wait(ctx)
}

// resolveLocked begins finding out, from the master and the primary, what this replica is, or joins that.
func (c *chunk) resolveLocked() *flight {
	if c.resolving != nil {
		return c.resolving
	}
	f := newFlight()
	c.resolving = f
	c.srv.start(func() {
		ctx, cancel := context.WithTimeout(c.srv.ctx, c.srv.cfg.CopyTimeout+2*c.srv.cfg.MasterTimeout)
		defer cancel()
		f.err = c.resolve(ctx)
		c.mu.Lock()
		c.resolving = nil
		c.mu.Unlock()
		close(f.done)
	})
	return f
}

// resolve learns the committed configuration by a question asked in the present serving period. The primary of it
// becomes active; another replica has the primary bring it into step unless it is.
func (c *chunk) resolve(ctx context.Context) error {
	c.mu.Lock()
	primary := c.role == rolePrimary
	c.mu.Unlock()
	if primary {
		if _, err := c.primaryView(ctx, 0); !errors.Is(err, dfserr.ErrNotPrimary) {
			return err
		}
	}
	var err error
	for range maxTries {
		if err = c.follows(ctx); !errors.Is(err, errLeaderGone) {
			return err
		}
	}
	return err
}

// errLeaderGone says that the primary could not be reached and was reported.
var errLeaderGone = dfserr.Errorf(dfserr.ErrUnavailable, "the primary cannot be reached")

// follows is resolve for a replica that is not known to be the primary.
func (c *chunk) follows(ctx context.Context) error {
	period, err := c.srv.serving.wait(ctx, c.srv.cfg.PeerTimeout)
	if err != nil {
		return err
	}
	cfg, err := c.srv.lookupConfig(ctx, c.id)
	if err != nil {
		return err
	}
	if cfg.primary() == c.srv.ID() {
		_, err := c.primaryView(ctx, cfg.version)
		return err
	}
	if !cfg.has(c.srv.ID()) {
		return dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %s version %d has no replica on this server", c.id, cfg.version)
	}
	if c.confirm(cfg, period) {
		return nil
	}
	peer, err := c.srv.peer(cfg.primary())
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, c.srv.cfg.CopyTimeout)
	defer cancel()
	_, err = peer.Committed(limited, &dfsv1.CommittedRequest{Chunk: uint64(c.id), Version: uint64(cfg.version), Unprepared: uint64(c.srv.ID())})
	if err != nil {
		return c.leaderFailed(ctx, cfg.primary(), cfg.version, err)
	}
	if !c.confirm(cfg, period) {
		return dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %s version %d: this replica is not in step", c.id, cfg.version)
	}
	return nil
}

// leaderFailed reports a primary whose process cannot be reached or does not answer; the result then wraps errLeaderGone. Otherwise it returns err.
func (c *chunk) leaderFailed(ctx context.Context, primary dfs.ServerID, version dfs.Version, err error) error {
	if !errors.Is(err, dfserr.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return err
	}
	addr, lookupErr := c.srv.members.lookup(primary)
	if lookupErr != nil || c.srv.answers(ctx, primary, addr) {
		return err
	}
	c.srv.log.Warn("primary cannot be reached", "chunk", c.id, "version", version, "server", primary, "error", err)
	if _, reportErr := c.srv.reportFailure(ctx, c.id, failure{server: primary, version: version, reason: err.Error()}); reportErr != nil {
		return reportErr
	}
	return errLeaderGone
}

// confirm notes that the replica's configuration is the committed one, if it is in step with it.
func (c *chunk) confirm(cfg *chunkConfig, period uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.role != roleSecondary || !c.ready || c.promised != cfg.version || !c.srv.serving.holds(period, time.Now()) {
		return false
	}
	c.currentIn = period
	return true
}
