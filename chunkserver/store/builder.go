package store

import (
	"errors"
	"os"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// builder writes a whole log under a temporary name, for a compaction or a copy, and puts it in the place of
// the replica's log when it is complete and durable. Not safe for concurrent use.
type builder struct {
	d     *disk
	name  string
	log   *logFile
	x     *index
	spend bool // ask for the space of each record
	buf   []byte
	vec   [][]byte
}

func newBuilder(d *disk, name string, head fileHeader, spend bool) (*builder, error) {
	log, err := d.createLog(name, &head, os.O_TRUNC)
	if err != nil {
		return nil, err
	}
	return &builder{d: d, name: name, log: log, x: newIndex(&log.head), spend: spend}, nil
}

// add writes a record whose payload was verified. ErrCorrupt when it cannot come here.
func (b *builder) add(r *record, payload []byte) error {
	x := b.x
	first := x.end == fileHeaderSize
	switch {
	case first != (r.typ == recBase),
		r.typ == recExtent && (x.lastSeq != x.baseSeq || r.rangeEnd() > x.length),
		r.typ.mutation() && (r.seq != x.lastSeq+1 || r.version < x.lastMutationVersion() || r.version > x.version),
		r.typ == recMark || r.typ == recDrop || r.typ == recEnd:
		return dfserr.Errorf(dfserr.ErrCorrupt, "chunk %v: record of type %d, version %d, seq %d does not follow seq %d", b.log.head.chunk, r.typ, r.version, r.seq, x.lastSeq)
	}
	if err := b.d.failed(); err != nil {
		return err
	}
	if b.spend {
		if err := b.d.spend(r.headerLen() + int64(r.payloadLen)); err != nil {
			return dfserr.Errorf(errSpace(err), "chunk %v: %v", b.log.head.chunk, err)
		}
	}
	r.committed = x.committed
	var data [][]byte
	if len(payload) > 0 {
		data = [][]byte{payload}
	}
	if err := b.log.writeRecord(x, r, data, &b.buf, &b.vec); err != nil {
		return b.d.writeFailed("write "+b.name, err, nil) // the file goes
	}
	if r.typ == recBase {
		return x.applyBase(r, payload)
	}
	x.apply(r)
	return nil
}

// addAll writes what a source returns.
func (b *builder) addAll(s *source) error {
	for {
		r, payload, err := s.next()
		if err != nil {
			return err
		}
		if err := b.add(&r, payload); err != nil {
			return err
		}
	}
}

// sync makes what was written durable.
func (b *builder) sync() error {
	if err := b.log.f.Sync(); err != nil {
		return b.d.condemn("sync "+b.name, err)
	}
	return nil
}

// publish gives the log its final name, durably. Everything in it must be durable.
func (b *builder) publish(id dfs.ChunkID) error {
	if err := b.d.failed(); err != nil {
		return err
	}
	if err := b.d.FS.Rename(b.name, chunkFile(id)); err != nil {
		return b.d.condemn("rename "+b.name, err)
	}
	b.name = ""
	if err := b.d.FS.SyncDir(chunkDir(id)); err != nil {
		return b.d.condemn("sync directory "+chunkDir(id), err)
	}
	return nil
}

// abandon closes and removes the file, unless it was published.
func (b *builder) abandon() error {
	var err error
	if b.log != nil {
		err = b.log.release()
	}
	if b.name != "" && b.d.failed() == nil {
		err = errors.Join(err, b.d.FS.Remove(b.name))
	}
	return err
}

// replaceLocked makes the builder's published log the one of the replica; appendMu is held.
func (st *openLog) replaceLocked(b *builder) error {
	end, seq := b.x.end, b.x.lastSeq
	st.mu.Lock()
	old := st.log
	b.x.setCommitted(st.x.committed)
	st.log, st.x = b.log, b.x
	b.log = nil // now the replica's
	st.corrupt, st.structural = nil, false
	st.drops++
	st.mu.Unlock()
	st.footer, st.dirDirty, st.preMark = false, false, -1
	if err := old.release(); err != nil {
		st.r.s.logger.Warn("closing a replaced log", "chunk", st.r.id, "error", err)
	}
	st.r.setBytes(end)
	// Only now, when the name is durable too, may the log say that it is.
	return st.markSyncedLocked(end, seq)
}
