package chunkio

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/mem"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// Mutation is one change of a chunk. Start takes over Data's references.
type Mutation struct {
	Kind dfsv1.MutationKind
	Off  int64           // in the chunk; of a TRUNCATE the new length; unused by APPEND
	Len  int64           // bytes of Data, or of the range that ZERO clears
	Data mem.BufferSlice // WRITE and APPEND: at most dfs.FrameSize bytes
	// CRCs are of the pieces of Data cut at block boundaries of the chunk (WRITE); CRC is of all of it (APPEND).
	CRCs []uint32
	CRC  uint32
	// MinOff is the least offset an APPEND may choose.
	MinOff int64
}

// Result is an acknowledgement: every replica of the configuration has the mutation.
type Result struct {
	Off         int64 // where the data went, in the chunk
	ChunkLength int64 // committed, after the mutation
	Version     dfs.Version
}

// Writer sends mutations of one chunk. Safe for concurrent use. A Writer holds no resources while nothing is
// outstanding.
type Writer struct {
	x  *IO
	id uint64 // names this Writer to the replicas, for ever

	mu         sync.Mutex
	loc        Location      // guarded by mu
	next       uint64        // guarded by mu: request number to give out
	queue      []*Pending    // guarded by mu: outstanding, by request number
	bytes      int64         // guarded by mu: payload of queue
	changed    chan struct{} // guarded by mu: closed and replaced when queue shrinks
	retry      []*Pending    // guarded by mu: those of queue that must be sent again
	recovering bool          // guarded by mu: recover runs
}

// Pending is a mutation that has been started.
type Pending struct {
	w        *Writer
	m        Mutation
	request  uint64
	deadline time.Time
	done     chan struct{}
	res      Result // valid once done is closed
	err      error  // likewise

	// The rest is guarded by w.mu.
	finished  bool
	abandoned bool // nobody waits any more: not to be retried
	version   dfs.Version
	failure   error // of the last attempt
	culprit   dfs.ServerID
	attempts  int
}

// NewWriter returns a Writer for the chunk at l, which must have been located for writing.
func (x *IO) NewWriter(l Location) *Writer {
	id := rand.Uint64()
	for id == 0 {
		id = rand.Uint64()
	}
	return &Writer{x: x, id: id, loc: l, next: 1, changed: make(chan struct{})}
}

// Location returns the configuration that the Writer uses now.
func (w *Writer) Location() Location {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.loc
}

// Idle reports whether nothing is outstanding.
func (w *Writer) Idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queue) == 0
}

// Do is Start and Wait.
func (w *Writer) Do(ctx context.Context, m Mutation) (Result, error) {
	p, err := w.Start(ctx, m)
	if err != nil {
		return Result{}, err
	}
	return p.Wait(ctx)
}

// Start sends a mutation once there is room in the window and nothing outstanding overlaps it; ctx bounds that wait. From
// then on it is retried until it is acknowledged, refused, or the operation's time is up, whether anyone waits or
// not. Data is freed when that is known, or when Start fails.
func (w *Writer) Start(ctx context.Context, m Mutation) (*Pending, error) {
	w.mu.Lock()
	for !w.roomLocked(&m) {
		changed, chunk := w.changed, w.loc.Chunk
		w.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			m.Data.Free()
			return nil, dfserr.Errorf(ctx.Err(), "write to chunk %s", chunk)
		case <-w.x.ctx.Done():
			m.Data.Free()
			return nil, dfserr.Errorf(dfserr.ErrClosed, "write to chunk %s: client", chunk)
		}
		w.mu.Lock()
	}
	p := &Pending{w: w, m: m, request: w.next, deadline: time.Now().Add(w.x.cfg.OpTimeout), done: make(chan struct{})}
	w.next++
	w.queue = append(w.queue, p)
	w.bytes += int64(m.Data.Len())
	if w.recovering {
		w.retry = append(w.retry, p)
		w.mu.Unlock()
		return p, nil
	}
	st := w.sendLocked(p)
	w.mu.Unlock()
	if st != nil {
		st.pump()
	}
	return p, nil
}

// roomLocked reports whether m may be sent now.
func (w *Writer) roomLocked(m *Mutation) bool {
	if len(w.queue) == 0 {
		return true
	}
	if w.next-w.queue[0].request >= windowRequests || w.bytes+int64(m.Data.Len()) > WindowBytes {
		return false
	}
	for _, p := range w.queue {
		if overlaps(m, &p.m) {
			return false
		}
	}
	return true
}

// overlaps reports whether the order of two mutations matters. Appends that are outstanding together may go in any
// order; against anything else an append counts as being everywhere, and so does a truncation.
func overlaps(a, b *Mutation) bool {
	const everywhere = 1 << 62
	span := func(m *Mutation) (from, to int64) {
		switch m.Kind {
		case dfsv1.MutationKind_APPEND, dfsv1.MutationKind_TRUNCATE:
			return 0, everywhere
		}
		return m.Off, m.Off + m.Len
	}
	if a.Kind == dfsv1.MutationKind_APPEND && b.Kind == dfsv1.MutationKind_APPEND {
		return false
	}
	aFrom, aTo := span(a)
	bFrom, bTo := span(b)
	return aFrom < bTo && bFrom < aTo
}

// Wait returns the outcome. When ctx ends first the mutation's outcome is unknown, and it is not retried any
// further, but it may still be carried out; the Writer keeps later overlapping ones behind it.
func (p *Pending) Wait(ctx context.Context) (Result, error) {
	select {
	case <-p.done:
		return p.res, p.err
	default:
	}
	select {
	case <-p.done:
		return p.res, p.err
	case <-ctx.Done():
		p.w.mu.Lock()
		defer p.w.mu.Unlock()
		p.abandoned = true
		if p.failure != nil {
			return Result{}, dfserr.Errorf(ctx.Err(), "write to chunk %s, tried %d times: %v", p.w.loc.Chunk, p.attempts, p.failure)
		}
		return Result{}, dfserr.Errorf(ctx.Err(), "write to chunk %s", p.w.loc.Chunk)
	}
}

// Done is closed when the outcome is known.
func (p *Pending) Done() <-chan struct{} { return p.done }

// finishLocked settles the outcome.
func (w *Writer) finishLocked(p *Pending, res Result, err error) {
	if p.finished {
		return
	}
	p.finished = true
	p.res, p.err = res, err
	w.bytes -= int64(p.m.Data.Len())
	p.m.Data.Free()
	p.m.Data, p.m.CRCs = nil, nil
	if i := slices.Index(w.queue, p); i >= 0 {
		w.queue = slices.Delete(w.queue, i, i+1)
	}
	close(w.changed)
	w.changed = make(chan struct{})
	close(p.done)
}

// sendLocked hands p to the stream of the primary and returns that, to be pumped without w.mu; nil when p has failed.
func (w *Writer) sendLocked(p *Pending) *stream {
	p.version = w.loc.Version
	p.attempts++
	r, ok := w.loc.primary()
	if !ok {
		w.failLocked(p, p.version, dfserr.Errorf(dfserr.ErrNoReplica, "chunk %s has no primary", w.loc.Chunk), 0)
		return nil
	}
	h := &dfsv1.WriteHeader{
		Chunk: uint64(w.loc.Chunk), Version: uint64(p.version), Kind: p.m.Kind, Offset: p.m.Off, Length: p.m.Len,
		Writer: w.id, Request: p.request, Crcs: p.m.CRCs, AppendCrc: p.m.CRC, MinOffset: p.m.MinOff,
	}
	p.m.Data.Ref() // the stream's own, until it has sent them
	st := w.x.send(peer{r.Server, r.Addr}, &sending{p: p, header: h, data: p.m.Data, version: p.version})
	if st == nil {
		p.m.Data.Free()
		w.finishLocked(p, Result{}, dfserr.Errorf(dfserr.ErrClosed, "write to chunk %s: client", w.loc.Chunk))
	}
	return st
}

// acked takes an acknowledgement of an attempt.
func (w *Writer) acked(s *sending, ack *dfsv1.WriteAck) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := dfserr.FromReason(ack.GetErrorReason(), ack.GetErrorText()); err != nil {
		w.failLocked(s.p, s.version, err, dfs.ServerID(ack.GetFailedServer()))
		return
	}
	w.finishLocked(s.p, Result{Off: ack.GetOffset(), ChunkLength: ack.GetChunkLength(), Version: s.version}, nil)
}

// broke takes the news that an attempt will not be acknowledged.
func (w *Writer) broke(s *sending, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failLocked(s.p, s.version, err, 0)
}

// damagedAttempts is how often data that arrives damaged is sent again.
const damagedAttempts = 4

// failLocked decides what a failed attempt means: the end, or another one.
func (w *Writer) failLocked(p *Pending, version dfs.Version, err error, culprit dfs.ServerID) {
	if p.finished {
		return
	}
	final := dfserr.ClassOf(err) == dfserr.GiveUp && !errors.Is(err, dfserr.ErrNotExist) && !errors.Is(err, context.Canceled) &&
		!errors.Is(err, context.DeadlineExceeded)
	switch {
	case final, errors.Is(err, dfserr.ErrChunkFull), errors.Is(err, dfserr.ErrNotTail), p.abandoned,
		errors.Is(err, dfserr.ErrCorrupt) && culprit == 0 && p.attempts >= damagedAttempts:
		w.finishLocked(p, Result{Version: version}, err)
		return
	case w.x.ctx.Err() != nil:
		w.finishLocked(p, Result{}, dfserr.Errorf(dfserr.ErrClosed, "write to chunk %s: client", w.loc.Chunk))
		return
	case time.Now().After(p.deadline):
		w.finishLocked(p, Result{}, &gaveUpError{p.w.loc.Chunk, p.attempts, err})
		return
	}
	p.failure, p.culprit = err, culprit
	w.retry = append(w.retry, p)
	if w.recovering {
		return
	}
	w.recovering = true
	if !w.x.start(w.recover) {
		w.recovering = false
		w.finishLocked(p, Result{}, dfserr.Errorf(dfserr.ErrClosed, "write to chunk %s: client", w.loc.Chunk))
	}
}

// recover brings the Writer to a configuration that works and sends again what failed. What fails again later starts
// another recovery.
func (w *Writer) recover() {
	for {
		w.mu.Lock()
		batch := w.retry
		w.retry = nil
		if len(batch) == 0 {
			w.recovering = false
			w.mu.Unlock()
			return
		}
		slices.SortFunc(batch, func(a, b *Pending) int { return cmp.Compare(a.request, b.request) })
		old := w.loc
		failed, attempts := worst(batch, old.Version)
		w.mu.Unlock()

		next, err := old, error(nil)
		if failed != nil {
			next, err = w.relocate(old, failed)
		}
		if err == nil && next.Version == old.Version && attempts > 0 {
			p := newBackoff()
			p.Skip(attempts - 1)
			_ = p.Wait(w.x.ctx) // cut short: failLocked sees the end
		}
		w.mu.Lock()
		if err == nil && next.Version > w.loc.Version {
			w.loc = next
		}
		var st *stream // all go to the same primary
		for _, q := range batch {
			switch {
			case q.finished:
			case err != nil:
				w.finishLocked(q, Result{}, err)
			case q.failure != nil && (w.x.ctx.Err() != nil || q.abandoned || time.Now().After(q.deadline)):
				w.failLocked(q, q.version, q.failure, 0)
			default:
				if sent := w.sendLocked(q); sent != nil {
					st = sent // another than before only when that one died
				}
			}
		}
		w.mu.Unlock()
		if st != nil {
			st.pump()
		}
	}
}

// worst picks the failure to act on: one under the current version, best one that names a server. It also returns how often the
// most unlucky mutation has been tried.
func worst(batch []*Pending, version dfs.Version) (*Pending, int) {
	var pick *Pending
	attempts := 0
	for _, q := range batch {
		if q.failure == nil {
			continue
		}
		attempts = max(attempts, q.attempts)
		if q.version == version && (pick == nil || (pick.culprit == 0 && q.culprit != 0)) {
			pick = q
		}
	}
	return pick, attempts
}

// relocate finds the configuration to go on with.
func (w *Writer) relocate(old Location, q *Pending) (Location, error) {
	w.mu.Lock()
	culprit, failure := q.culprit, q.failure
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(w.x.ctx, w.x.cfg.OpTimeout)
	defer cancel()
	return w.x.renew(ctx, old, culprit, failure)
}

// gaveUpError says that a mutation's time was up.
type gaveUpError struct {
	chunk    dfs.ChunkID
	attempts int
	last     error
}

func (e *gaveUpError) Error() string {
	return fmt.Sprintf("write to chunk %s: gave up after %d attempts: %v", e.chunk, e.attempts, e.last)
}

// Unwrap: that an attempt of ours timed out or was cut off is not the caller's deadline or cancellation.
func (e *gaveUpError) Unwrap() error {
	if isLost(e.last) {
		return dfserr.ErrUnavailable
	}
	return e.last
}
