package store

import (
	"context"
	"errors"
	"io"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// manyExtents is how fragmented a chunk may become before it is compacted for that reason alone: this many
// extents, of less than smallExtent bytes on average.
const (
	manyExtents = 8192
	smallExtent = 32 * dfs.KiB
)

// compactIfWorthwhile asks for a compaction when more than half of the log is garbage or the chunk is
// very fragmented; appendMu is held.
func (st *openLog) compactIfWorthwhile() {
	s, x := st.r.s, st.x
	if s.opts.NoCompaction || x.end < s.opts.CompactMin {
		return
	}
	extents := len(x.extents.list)
	fragmented := extents > manyExtents && extents > 2*x.baseExt && x.extents.live/int64(extents) < smallExtent
	if x.garbage() <= x.end/2 && !fragmented {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || st.r.queued {
		return
	}
	st.r.queued = true
	s.toCompact = append(s.toCompact, st.r)
	if !s.compacting {
		s.compacting = true
		s.wg.Add(1)
		go s.compactQueued()
	}
}

// compactQueued works off the queue and ends. close waits for it.
func (s *Store) compactQueued() {
	defer s.wg.Done()
	for {
		s.mu.Lock()
		if len(s.toCompact) == 0 || s.closed {
			s.compacting = false
			s.mu.Unlock()
			return
		}
		r := s.toCompact[0]
		s.toCompact = s.toCompact[1:]
		s.mu.Unlock()
		err := r.Compact(s.background)
		s.mu.Lock()
		r.queued = false
		s.mu.Unlock()
		switch {
		case err == nil:
			s.logger.Debug("compacted", "chunk", r.id)
		case errors.Is(err, dfserr.ErrBusy), errors.Is(err, dfserr.ErrClosed), errors.Is(err, dfserr.ErrNotExist), errors.Is(err, context.Canceled):
			s.logger.Debug("compaction given up", "chunk", r.id, "error", err)
		default:
			s.logger.Warn("compaction failed; the log stays as it is", "chunk", r.id, "error", err)
		}
	}
}

// catchUpRounds is how often a compaction copies what was appended meanwhile before it makes writers wait.
const (
	catchUpRounds = 4
	catchUpEnough = 1 * dfs.MiB
)

// Compact rewrites the log without what later mutations overwrote, merging the committed ones into a base.
// Reads and writes go on; writes wait while the last bytes are copied and made durable. The replica is
// durable afterwards. ErrBusy when another compaction of it runs or its log was replaced meanwhile;
// ErrNoSpace when the disk has not enough room for both logs; ErrCorrupt when the log is damaged.
func (r *Replica) Compact(ctx context.Context) error {
	st, err := r.pin()
	if err != nil {
		return err
	}
	defer r.unpin()
	if !st.compactMu.TryLock() {
		return dfserr.Errorf(dfserr.ErrBusy, "chunk %v is being compacted", r.id)
	}
	defer st.compactMu.Unlock()
	d := r.disk
	if err := d.failed(); err != nil {
		return err
	}
	src, err := st.newSource(0, true)
	if err != nil {
		return err
	}
	defer src.close()
	// A compaction gives space back, so it may use half of the reserve.
	free, err := d.freeBeyond(d.reserve / 2)
	if err != nil {
		return err
	}
	if need := src.bytes(); free < need {
		return dfserr.Errorf(dfserr.ErrNoSpace, "chunk %v: compaction needs %d bytes, disk %s has %d", r.id, need, d.Name, max(0, free))
	}
	head := fileHeader{cluster: r.s.cluster, chunk: r.id, created: src.log.head.created, nonce: r.s.opts.Nonce()}
	b, err := newBuilder(d, chunkFile(r.id)+compactSuffix, head, false)
	if err != nil {
		return err
	}
	if err := st.compactInto(ctx, b, src); err != nil {
		if abandonErr := b.abandon(); abandonErr != nil {
			r.s.logger.Warn("removing an unfinished compaction", "chunk", r.id, "error", abandonErr)
		}
		st.markCorruptIf(src.log, err)
		return err
	}
	return nil
}

// compactInto fills the builder's log and puts it in place.
func (st *openLog) compactInto(ctx context.Context, b *builder, src *source) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		rec, payload, err := src.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := b.add(&rec, payload); err != nil {
			return err
		}
	}
	for range catchUpRounds {
		st.mu.RLock()
		behind := st.x.lastSeq > b.x.lastSeq
		st.mu.RUnlock()
		if !behind {
			break
		}
		copied := b.x.end
		if err := st.catchUp(b, src); err != nil {
			return err
		}
		if b.x.end-copied < catchUpEnough {
			break
		}
	}
	if err := b.sync(); err != nil {
		return err
	}
	st.appendMu.Lock()
	defer st.appendMu.Unlock()
	if err := errors.Join(ctx.Err(), st.sound()); err != nil {
		return err
	}
	durable := b.x.end
	if err := st.catchUp(b, src); err != nil {
		return err
	}
	if st.x.version > b.x.version {
		if err := b.add(&record{typ: recConfig, version: st.x.version, seq: b.x.lastSeq}, nil); err != nil {
			return err
		}
	}
	if b.x.end > durable {
		if err := b.sync(); err != nil {
			return err
		}
	}
	if err := b.publish(st.r.id); err != nil {
		return err
	}
	return st.replaceLocked(b)
}

// catchUp copies the mutations that came after those in b, unless the log is no longer the one that src
// reads.
func (st *openLog) catchUp(b *builder, src *source) error {
	tail, err := st.newSource(b.x.lastSeq, false)
	if err != nil {
		return err
	}
	defer tail.close()
	if tail.log != src.log || tail.drops != src.drops {
		return dfserr.Errorf(dfserr.ErrBusy, "chunk %v: log was changed during compaction", st.r.id)
	}
	// Mutations of a version that the replica was told since the base was taken.
	st.mu.RLock()
	version := st.x.version
	st.mu.RUnlock()
	if len(tail.tail) > 0 && tail.tail[len(tail.tail)-1].version > b.x.version {
		if err := b.add(&record{typ: recConfig, version: version, seq: b.x.lastSeq}, nil); err != nil {
			return err
		}
	}
	if err := b.addAll(tail); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
