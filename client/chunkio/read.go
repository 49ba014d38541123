package chunkio

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc/mem"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// Piece is the answer to one read: verified bytes of a chunk. Free it.
type Piece struct {
	Off         int64 // in the chunk, of the first byte
	Len         int64 // bytes; fewer than asked for only where the chunk ends
	ChunkLength int64 // committed length of the chunk when it was read
	Version     dfs.Version
	data        mem.BufferSlice
}

// CopyTo copies the bytes from skip on to dst and returns how many.
func (p *Piece) CopyTo(dst []byte, skip int64) int {
	n := 0
	for _, b := range p.data {
		d := b.ReadOnlyData()
		if skip >= int64(len(d)) {
			skip -= int64(len(d))
			continue
		}
		n += copy(dst[n:], d[skip:])
		skip = 0
		if n == len(dst) {
			break
		}
	}
	return n
}

// Free gives the buffers back; the Piece is empty afterwards.
func (p *Piece) Free() {
	p.data.Free()
	p.data, p.Len = nil, 0
}

// Read returns [off, off+n) of a chunk, or the part of it that exists; n is at most dfs.FrameSize. It tries every replica
// and every newer configuration until ctx ends or the operation's time is up. Errors: ErrNotExist when the file
// no longer has that chunk; ErrCorrupt when no replica has the bytes intact; ErrInvalid.
func (x *IO) Read(ctx context.Context, l Location, off, n int64) (*Piece, error) {
	if n > dfs.FrameSize || !dfs.CheckRange(off, n, l.ChunkSize) {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "read %d bytes at %d of chunk %s", n, off, l.Chunk)
	}
	deadline := time.Now().Add(x.cfg.OpTimeout)
	p := newBackoff()
	var last error
	for round := 0; ; round++ {
		piece, err := x.readRound(ctx, &l, off, n)
		if err == nil {
			return piece, nil
		}
		last = err
		switch {
		case ctx.Err() != nil:
			return nil, dfserr.Errorf(ctx.Err(), "read chunk %s: %v", l.Chunk, err)
		case x.ctx.Err() != nil:
			return nil, dfserr.Errorf(dfserr.ErrClosed, "read chunk %s: client", l.Chunk)
		case errors.Is(err, dfserr.ErrInvalid):
			return nil, err
		case errors.Is(err, dfserr.ErrCorrupt) && round > 0:
			return nil, err
		case time.Now().After(deadline):
			return nil, dfserr.Errorf(dfserr.ErrNoReplica, "read chunk %s: gave up after %v: %v", l.Chunk, x.cfg.OpTimeout, last)
		}
		if round > 0 {
			if err := p.Wait(ctx); err != nil {
				return nil, dfserr.Errorf(err, "read chunk %s: %v", l.Chunk, last)
			}
		}
		if l, err = x.src.Locate(ctx, l, false); err != nil {
			return nil, err
		}
	}
}

// readRound asks each replica once, until one has the bytes.
func (x *IO) readRound(ctx context.Context, l *Location, off, n int64) (*Piece, error) {
	x.earnHedge()
	replicas := x.order(l)
	if len(replicas) == 0 {
		return nil, dfserr.Errorf(dfserr.ErrNoReplica, "chunk %s: no chunkserver that has it is known to run", l.Chunk)
	}
	var worst error
	for i := 0; i < len(replicas); {
		piece, tried, err := x.readHedged(ctx, l, replicas[i:], off, n)
		if err == nil {
			return piece, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		// A corrupt replica among unreachable ones is not the answer: the others may come back.
		if worst == nil || !errors.Is(err, dfserr.ErrCorrupt) {
			worst = err
		}
		i += tried
	}
	return nil, worst
}

// readHedged asks the first replica, and the second one too when the first is late. It returns how many were asked.
func (x *IO) readHedged(ctx context.Context, l *Location, replicas []Replica, off, n int64) (*Piece, int, error) {
	first := x.server(replicas[0].Server)
	after := x.hedgeAfter(first, n)
	actx, cancel := context.WithTimeout(ctx, x.cfg.AckTimeout)
	defer cancel()
	if len(replicas) < 2 || after < 0 {
		piece, err := x.readReplica(actx, l, replicas[0], off, n)
		return piece, 1, err
	}
	h := &hedge{done: make(chan struct{})}
	timer := time.AfterFunc(after, func() {
		if !x.takeHedge() || !x.start(func() { h.run(ctx, cancel, x, l, replicas[1], off, n) }) {
			h.err = errNotHedged
			close(h.done)
		}
	})
	piece, err := x.readReplica(actx, l, replicas[0], off, n)
	if timer.Stop() {
		return piece, 1, err
	}
	if err == nil {
		h.stop()
		return piece, 1, nil
	}
	<-h.done
	switch {
	case h.err == nil:
		return h.piece, 2, nil
	case errors.Is(h.err, errNotHedged):
		return nil, 1, err
	default:
		return nil, 2, err
	}
}

// hedge is a second try at the same read; piece and err may be read once done is closed.
type hedge struct {
	done  chan struct{}
	piece *Piece
	err   error

	mu      sync.Mutex
	cancel  context.CancelFunc // guarded by mu: nil before run
	stopped bool               // guarded by mu
}

// run asks the second replica; when it answers first, the first one is no longer waited for.
func (h *hedge) run(ctx context.Context, cancelFirst func(), x *IO, l *Location, r Replica, off, n int64) {
	defer close(h.done)
	ctx, cancel := context.WithTimeout(ctx, x.cfg.AckTimeout)
	defer cancel()
	h.mu.Lock()
	h.cancel = cancel
	stopped := h.stopped
	h.mu.Unlock()
	if stopped {
		h.err = errNotHedged
		return
	}
	if h.piece, h.err = x.readReplica(ctx, l, r, off, n); h.err == nil {
		cancelFirst()
	}
}

// stop ends the second try, whose answer is not needed, and waits for that.
func (h *hedge) stop() {
	h.mu.Lock()
	h.stopped = true
	if h.cancel != nil {
		h.cancel()
	}
	h.mu.Unlock()
	<-h.done
	if h.piece != nil {
		h.piece.Free()
	}
}

var errNotHedged = errors.New("not hedged")

// readReplica asks one replica and checks what it says.
func (x *IO) readReplica(ctx context.Context, l *Location, r Replica, off, n int64) (*Piece, error) {
	s := x.server(r.Server)
	cc, err := x.pool.GetServer(r.Addr, r.Server)
	if err != nil {
		return nil, err
	}
	header := &dfsv1.ReadHeader{}
	f := rpc.Frame{Header: header}
	begun := time.Now()
	// The method is declared as a stream; a range of at most a frame is answered with exactly one message, so a
	// unary call fits and spares a goroutine.
	err = cc.Invoke(ctx, dfsv1.Chunk_Read_FullMethodName,
		&dfsv1.ReadRequest{Chunk: uint64(l.Chunk), Version: uint64(l.Version), Offset: off, Length: n}, &f)
	if err == nil {
		err = verify(header, f.Data, l.Chunk, off, n)
	}
	if err != nil {
		f.Free()
		x.readFailed(ctx, l, r, s, err)
		return nil, err
	}
	s.answered(n, time.Since(begun))
	return &Piece{Off: off, Len: header.GetLength(), ChunkLength: header.GetChunkLength(), Version: dfs.Version(header.GetVersion()), data: f.Take()}, nil
}

// readFailed remembers and reports what a failed read says about a server.
func (x *IO) readFailed(ctx context.Context, l *Location, r Replica, s *server, err error) {
	switch {
	case errors.Is(err, dfserr.ErrCorrupt), errors.Is(err, dfserr.ErrDiskFailed):
		x.log.Warn("bad replica", "chunk", l.Chunk, "server", r.Server, "address", r.Addr, "error", err)
		x.report(*l, Failure{Server: r.Server, Reason: err.Error(), Corrupt: errors.Is(err, dfserr.ErrCorrupt)})
		s.failed()
	case errors.Is(err, dfserr.ErrUnavailable):
		s.failed()
	case dfserr.Sentinel(err) == context.DeadlineExceeded && !errors.Is(context.Cause(ctx), context.Canceled):
		s.failed()
	}
}

// verify checks an answer against the question and its bytes against their checksums.
func verify(h *dfsv1.ReadHeader, data mem.BufferSlice, chunk dfs.ChunkID, off, n int64) error {
	got := int64(data.Len())
	crcs := h.GetCrcs()
	if h.GetOffset() != off || h.GetLength() != got || got > n || len(crcs) != dfs.BlockPieces(off, got) || h.GetChunkLength() < 0 {
		return dfserr.Errorf(dfserr.ErrCorrupt, "chunk %s: asked for %d bytes at %d, the answer says %d at %d, has %d bytes and %d checksums",
			chunk, n, off, h.GetLength(), h.GetOffset(), got, len(crcs))
	}
	crc, piece, room := uint32(0), 0, int(dfs.BlockSize-off%dfs.BlockSize)
	room = min(room, int(got))
	for _, b := range data {
		d := b.ReadOnlyData()
		for len(d) > 0 {
			m := min(room, len(d))
			crc = dfs.UpdateCRC(crc, d[:m])
			d, room = d[m:], room-m
			got -= int64(m)
			if room > 0 {
				continue
			}
			if crc != crcs[piece] {
				return dfserr.Errorf(dfserr.ErrCorrupt, "chunk %s: wrong checksum in the block at %d", chunk, (off/dfs.BlockSize+int64(piece))*dfs.BlockSize)
			}
			crc, piece = 0, piece+1
			room = min(dfs.BlockSize, int(got))
		}
	}
	return nil
}

// Sync returns when everything acknowledged on the chunk before the call is on stable storage on every replica.
// Errors as those of Read.
func (x *IO) Sync(ctx context.Context, l Location) error {
	_, err := x.askPrimary(ctx, l, func(ctx context.Context, c dfsv1.ChunkClient, l *Location) (int64, dfs.ServerID, error) {
		reply, err := c.Sync(ctx, &dfsv1.SyncRequest{Chunk: uint64(l.Chunk), Version: uint64(l.Version)})
		return reply.GetChunkLength(), dfs.ServerID(reply.GetFailedServer()), err
	})
	return err
}

// Length returns the chunk's committed length, from its primary. Errors as those of Read.
func (x *IO) Length(ctx context.Context, l Location) (int64, error) {
	return x.askPrimary(ctx, l, func(ctx context.Context, c dfsv1.ChunkClient, l *Location) (int64, dfs.ServerID, error) {
		reply, err := c.Stat(ctx, &dfsv1.ChunkStatRequest{Chunk: uint64(l.Chunk), Version: uint64(l.Version), Exact: true})
		return reply.GetReplica().GetLength(), 0, err
	})
}

// askPrimary makes a unary call to the primary until it succeeds, through changes of configuration.
func (x *IO) askPrimary(ctx context.Context, l Location, call func(context.Context, dfsv1.ChunkClient, *Location) (int64, dfs.ServerID, error)) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, x.cfg.OpTimeout)
	defer cancel()
	p := newBackoff()
	for {
		n, failed, err := x.callPrimary(ctx, &l, call)
		if err == nil && failed == 0 {
			return n, nil
		}
		if ctx.Err() != nil {
			return 0, dfserr.Errorf(ctx.Err(), "chunk %s: %v", l.Chunk, err)
		}
		next, lerr := x.renew(ctx, l, failed, err)
		if lerr != nil {
			return 0, lerr
		}
		if next.Version == l.Version {
			if p.Wait(ctx) != nil {
				return 0, dfserr.Errorf(dfserr.ErrUnavailable, "chunk %s: %v", l.Chunk, err)
			}
		}
		l = next
	}
}

func (x *IO) callPrimary(ctx context.Context, l *Location, call func(context.Context, dfsv1.ChunkClient, *Location) (int64, dfs.ServerID, error)) (int64, dfs.ServerID, error) {
	r, ok := l.primary()
	if !ok {
		return 0, 0, dfserr.Errorf(dfserr.ErrNoReplica, "chunk %s has no primary", l.Chunk)
	}
	cc, err := x.pool.GetServer(r.Addr, r.Server)
	if err != nil {
		return 0, 0, err
	}
	actx, cancel := context.WithTimeout(ctx, x.cfg.AckTimeout)
	defer cancel()
	return call(actx, dfsv1.NewChunkClient(cc), l)
}

// renew finds the configuration to go on with after err, or after a failure of server failed (0: none named). It
// returns errors that end the operation.
func (x *IO) renew(ctx context.Context, l Location, failed dfs.ServerID, err error) (Location, error) {
	r, ok := l.primary()
	switch {
	case errors.Is(err, dfserr.ErrCorrupt) && failed == 0:
		return l, nil // damaged on its way: again
	case failed != 0:
	case isLost(err) && ok:
		failed = r.Server
	case errors.Is(err, dfserr.ErrDiskFailed) && ok:
		failed = r.Server
	case errors.Is(err, dfserr.ErrNotExist), dfserr.ClassOf(err) != dfserr.GiveUp:
	default:
		return l, err
	}
	if failed == 0 {
		return x.src.Locate(ctx, l, true)
	}
	reason := "not acknowledged"
	if err != nil {
		reason = err.Error()
	}
	return x.src.Report(ctx, l, Failure{Server: failed, Reason: reason})
}

// isLost reports whether err means that the peer went away or did not answer.
func isLost(err error) bool {
	return dfserr.Sentinel(err) == dfserr.ErrUnavailable || dfserr.Sentinel(err) == dfserr.ErrRefused ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}
