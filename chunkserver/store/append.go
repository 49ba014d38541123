package store

import (
	"errors"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// Append adds a mutation to the log, in the page cache: only Sync makes it durable. It verifies the
// payload against the writer's checksums first. Calls for one replica are carried out one after another.
//
// ErrStaleVersion when the mutation's version is not the replica's; ErrInvalid when its seq is not the one
// after the last, or its fields contradict one another; ErrCorrupt when a checksum does not match or the log is
// damaged as a whole; ErrNoSpace when the disk is full up to its reserve (nothing is left in the log);
// ErrDiskFailed when the disk is condemned or this write condemned it.
func (r *Replica) Append(m *Mutation) error {
	if err := m.check(); err != nil {
		return dfserr.Errorf(errSentinel(err), "chunk %v seq %d: %v", r.id, m.Seq, err)
	}
	st, err := r.pin()
	if err != nil {
		return err
	}
	defer r.unpin()
	rec := record{
		typ: recordType(m.Kind), version: m.Version, seq: m.Seq, off: m.Off, len: m.Len,
		writer: m.Writer, request: m.Request, cutVersion: m.CutVersion,
	}
	if m.Kind == KindWrite {
		rec.payloadLen = int(m.Len)
		rec.crcs = append([]uint32(nil), m.CRCs...)
	}
	st.appendMu.Lock()
	defer st.appendMu.Unlock()
	if err := st.sound(); err != nil {
		return err
	}
	if m.Version != st.x.version {
		return dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %v: mutation of version %d, replica has %d", r.id, m.Version, st.x.version)
	}
	return st.appendMutation(&rec, m.Data)
}

// check refuses a mutation that no replica may store.
func (m *Mutation) check() error {
	switch {
	case m.Kind < KindWrite || m.Kind > KindTruncate:
		return dfserr.Errorf(dfserr.ErrInvalid, "unknown kind of mutation %d", m.Kind)
	case !dfs.CheckRange(m.Off, m.Len, dfs.MaxChunkSize):
		return dfserr.Errorf(dfserr.ErrInvalid, "range %d+%d", m.Off, m.Len)
	case m.Kind == KindTruncate && m.Len != 0, m.Kind != KindTruncate && (m.Len == 0 || m.CutVersion != 0):
		return dfserr.Errorf(dfserr.ErrInvalid, "kind %d with length %d and cut version %d", m.Kind, m.Len, m.CutVersion)
	case m.Kind != KindWrite && (len(m.Data) != 0 || len(m.CRCs) != 0):
		return dfserr.Errorf(dfserr.ErrInvalid, "kind %d with data", m.Kind)
	case m.Kind != KindWrite:
		return nil
	case m.Len > dfs.FrameSize:
		return dfserr.Errorf(dfserr.ErrInvalid, "%d bytes of data, the limit is %d", m.Len, dfs.FrameSize)
	case len(m.CRCs) != dfs.BlockPieces(m.Off, m.Len):
		return dfserr.Errorf(dfserr.ErrInvalid, "%d checksums for range %d+%d", len(m.CRCs), m.Off, m.Len)
	}
	var total int64
	for _, b := range m.Data {
		total += int64(len(b))
	}
	if total != m.Len {
		return dfserr.Errorf(dfserr.ErrInvalid, "%d bytes of data for length %d", total, m.Len)
	}
	if at, ok := verifyPieces(m.Off, m.Data, m.CRCs); !ok {
		return dfserr.Errorf(dfserr.ErrCorrupt, "data of the block at %d fails the writer's checksum", at)
	}
	return nil
}

// verifyPieces checks scattered data against the checksums of its pieces, as many as there are pieces; at is
// the chunk offset of the first bad one.
func verifyPieces(off int64, data [][]byte, crcs []uint32) (at int64, ok bool) {
	at = off
	room := int(dfs.BlockSize - off%dfs.BlockSize)
	crc, inPiece := uint32(0), 0
	for _, b := range data {
		for len(b) > 0 {
			n := min(room-inPiece, len(b))
			crc = dfs.UpdateCRC(crc, b[:n])
			b, inPiece = b[n:], inPiece+n
			if inPiece < room {
				continue
			}
			if crc != crcs[0] {
				return at, false
			}
			at += int64(room)
			crcs, crc, inPiece, room = crcs[1:], 0, 0, dfs.BlockSize
		}
	}
	return at, inPiece == 0 || crc == crcs[0]
}

// errSentinel returns which of the two sentinels of check err wraps.
func errSentinel(err error) error {
	if errors.Is(err, dfserr.ErrCorrupt) {
		return dfserr.ErrCorrupt
	}
	return dfserr.ErrInvalid
}

// appendMutation appends a mutation whose payload was verified; appendMu is held and the log sound.
func (st *openLog) appendMutation(rec *record, payload [][]byte) error {
	if rec.seq != st.x.lastSeq+1 {
		return dfserr.Errorf(dfserr.ErrInvalid, "chunk %v: mutation %d after %d", st.r.id, rec.seq, st.x.lastSeq)
	}
	if rec.version < st.x.lastMutationVersion() {
		return dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %v: mutation %d of version %d follows one of version %d", st.r.id, rec.seq, rec.version, st.x.lastMutationVersion())
	}
	if rec.payloadLen > 0 {
		if err := st.r.disk.failed(); err != nil {
			return err
		}
		if err := st.r.disk.spend(rec.headerLen() + int64(rec.payloadLen)); err != nil {
			return dfserr.Errorf(errSpace(err), "chunk %v: %v", st.r.id, err)
		}
	}
	if err := st.appendLocked(rec, payload); err != nil {
		return err
	}
	st.compactIfWorthwhile()
	return nil
}

func errSpace(err error) error {
	if errors.Is(err, dfserr.ErrNoSpace) {
		return dfserr.ErrNoSpace
	}
	return dfserr.ErrDiskFailed
}

// appendLocked writes one record at the end of the log and applies it; appendMu is held.
func (st *openLog) appendLocked(rec *record, payload [][]byte) error {
	d := st.r.disk
	if err := d.failed(); err != nil {
		return err
	}
	if err := st.cutFooterLocked(); err != nil {
		return err
	}
	st.mu.RLock()
	rec.committed = st.x.committed
	st.mu.RUnlock()
	err := st.log.writeRecord(st.x, rec, payload, &st.buf, &st.vec)
	if err != nil {
		return d.writeFailed("write "+chunkFile(st.r.id), err, st.log.f.Truncate(st.x.end))
	}
	st.preMark = -1
	if rec.typ == recMark {
		st.preMark, st.preChain = rec.logOff, rec.prev
	}
	st.mu.Lock()
	st.x.apply(rec)
	st.mu.Unlock()
	st.r.setBytes(st.x.end)
	return nil
}

// cutFooterLocked removes the index footer before the log grows over it; appendMu is held. If a crash
// undoes the cut but keeps a part of what is written next, the footer's checksum fails.
func (st *openLog) cutFooterLocked() error {
	if !st.footer {
		return nil
	}
	if err := st.log.f.Truncate(st.x.end); err != nil {
		return st.r.disk.condemn("cut the index footer of "+chunkFile(st.r.id), err)
	}
	st.footer = false
	return nil
}

// SetVersion records that the replica belongs to configuration v from now on: mutations of other versions are
// refused. Only upward (ErrStaleVersion); the version it has already is no change. In the page cache: a
// process kill does not undo it. Allowed while the disk is full up to its reserve.
func (r *Replica) SetVersion(v dfs.Version) error {
	st, err := r.pin()
	if err != nil {
		return err
	}
	defer r.unpin()
	st.appendMu.Lock()
	defer st.appendMu.Unlock()
	if err := st.sound(); err != nil {
		return err
	}
	if v < st.x.version {
		return dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %v: version %d asked for, replica has %d", r.id, v, st.x.version)
	}
	if v == st.x.version {
		return r.disk.failed()
	}
	return st.appendLocked(&record{typ: recConfig, version: v, seq: st.x.lastSeq}, nil)
}

// DropAfter undoes the mutations after seq, which no client was told of: it is how a replica gives up what a
// failed primary sent to it alone. ErrInvalid when seq is below the committed or the base seq. The log only
// grows: a record says that they are undone. In the page cache, like Append.
func (r *Replica) DropAfter(seq dfs.Seq) error {
	st, err := r.pin()
	if err != nil {
		return err
	}
	defer r.unpin()
	st.appendMu.Lock()
	defer st.appendMu.Unlock()
	if err := st.sound(); err != nil {
		return err
	}
	x := st.x
	if seq >= x.lastSeq {
		return nil
	}
	st.mu.RLock()
	committed := x.committed
	st.mu.RUnlock()
	if seq < x.baseSeq || seq < committed {
		return dfserr.Errorf(dfserr.ErrInvalid, "chunk %v: drop mutations after %d, but those up to %d are committed and the log's base is %d", r.id, seq, committed, x.baseSeq)
	}
	if err := st.appendLocked(&record{typ: recDrop, version: x.version, seq: seq}, nil); err != nil {
		return err
	}
	// What the dropped mutations overwrote is still in the log: build the index again without them.
	y, err := st.rebuild()
	if err != nil {
		st.markCorrupt(st.log, err, true)
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	y.end, y.chain, y.dirtyEnd, y.synced = x.end, x.chain, x.dirtyEnd, x.synced
	y.syncedSeq = min(x.syncedSeq, seq)
	y.setCommitted(x.committed)
	st.x = y
	st.drops++
	return nil
}

// rebuild makes the index anew from the log.
func (st *openLog) rebuild() (*index, error) {
	list, err := st.log.history(fileHeaderSize, st.x.end, &st.log.head.crc)
	if err != nil {
		return nil, err
	}
	return st.log.replay(list, noLimit)
}

// Sync makes everything durable that was appended before the call: mutations, versions, and the replica's
// existence. It then notes in the log how far that is. ErrDiskFailed when the disk is condemned, whether or not
// this replica has anything to sync, or when this call condemned it.
func (r *Replica) Sync() error {
	st, err := r.pin()
	if err != nil {
		return err
	}
	defer r.unpin()
	return st.sync()
}

func (st *openLog) sync() error {
	st.syncMu.Lock()
	defer st.syncMu.Unlock()
	d := st.r.disk
	st.appendMu.Lock()
	x := st.x
	target, seq, dirty := x.end, x.lastSeq, x.dirtyEnd > x.synced || st.dirDirty
	err := st.sound()
	if err == nil {
		err = d.failed()
	}
	if err != nil || !dirty {
		st.appendMu.Unlock()
		return err
	}
	log := st.log.acquire()
	st.appendMu.Unlock()
	err = log.f.Sync()
	if closeErr := log.release(); closeErr != nil { // of a log that was replaced meanwhile
		st.r.s.logger.Warn("closing a log", "chunk", st.r.id, "error", closeErr)
	}
	if err != nil {
		return d.condemn("sync "+chunkFile(st.r.id), err)
	}
	st.appendMu.Lock()
	defer st.appendMu.Unlock()
	if err := st.sound(); err != nil {
		return err
	}
	if st.log != log { // replaced by a compacted or copied log, which is durable
		return d.failed()
	}
	if err := st.syncDirLocked(); err != nil {
		return err
	}
	return st.markSyncedLocked(target, seq)
}

// markSyncedLocked notes that the log is durable up to target, where mutation seq was the last, in memory and
// with a mark in the log; appendMu is held.
func (st *openLog) markSyncedLocked(target int64, seq dfs.Seq) error {
	st.mu.Lock()
	st.x.synced, st.x.syncedSeq = target, min(seq, st.x.lastSeq)
	st.mu.Unlock()
	// The mark itself need not be durable: without it the next recovery verifies more than it must.
	err := st.appendLocked(&record{typ: recMark, version: st.x.version, seq: st.x.lastSeq}, nil)
	if errors.Is(err, dfserr.ErrNoSpace) {
		return nil
	}
	return err
}
