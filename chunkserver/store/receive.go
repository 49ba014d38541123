package store

import (
	"errors"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// Receiver is the receiving side of a copy. A whole copy is written under a temporary name and becomes the
// replica in Commit; a tail is appended to the replica as it arrives. Not safe for concurrent use.
type Receiver struct {
	s     *Store
	id    dfs.ChunkID
	whole bool
	d     *disk

	b     *builder // of a whole copy, once the stream's header has come
	r     *Replica // the replica a tail goes to, or a whole copy will replace; nil when there is none
	buf   []byte   // received and not yet taken apart
	head  fileHeader
	begun bool
	seed  uint32
	at    int64 // in the stream, of buf[0]
	chain uint32
	end   *record // the stream's last record
	err   error   // the first failure; everything after it fails too
	done  bool
}

// maxReceiveBuffer bounds what is held of a stream: one record.
const maxReceiveBuffer = maxHeaderSize + maxBasePayload

// Receive begins a copy of a chunk's log. With Whole the copy replaces what there is, if it is not newer;
// otherwise the replica must exist (ErrNotExist) and gets the mutations that it lacks. ErrBusy when another
// whole copy of the chunk is arriving; ErrNoSpace; ErrDiskFailed. The Receiver must end with Commit or Abort.
func (s *Store) Receive(id dfs.ChunkID, opts ReceiveOptions) (*Receiver, error) {
	rc := &Receiver{s: s, id: id, whole: opts.Whole}
	r, err := s.Replica(id)
	if err != nil && (!opts.Whole || !errors.Is(err, dfserr.ErrNotExist)) {
		return nil, err
	}
	rc.r = r
	if r != nil {
		rc.d = r.disk
		if err := rc.d.failed(); err != nil {
			return nil, err
		}
		if free, err := rc.d.freeBeyond(rc.d.reserve); err != nil {
			return nil, err
		} else if free < opts.Size {
			return nil, dfserr.Errorf(dfserr.ErrNoSpace, "chunk %v: copy of %d bytes, disk %s has %d free beyond its reserve", id, opts.Size, rc.d.Name, max(0, free))
		}
	} else if rc.d, err = s.pickDisk(max(opts.Size, fileHeaderSize)); err != nil {
		return nil, err
	}
	if !opts.Whole {
		return rc, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, dfserr.Errorf(dfserr.ErrClosed, "store")
	case s.copying[id]:
		return nil, dfserr.Errorf(dfserr.ErrBusy, "chunk %v is already being copied here", id)
	case s.replicas[id] != r:
		return nil, dfserr.Errorf(dfserr.ErrBusy, "replica of chunk %v was made or deleted meanwhile", id)
	}
	s.copying[id] = true
	return rc, nil
}

// Write takes the next bytes of the stream, cut anywhere. It keeps none of p. ErrCorrupt when they fail a
// checksum or do not follow what came before; after any error the copy can only be aborted.
func (rc *Receiver) Write(p []byte) (int, error) {
	if rc.err == nil && rc.done {
		rc.err = dfserr.Errorf(dfserr.ErrClosed, "copy of chunk %v", rc.id)
	}
	if rc.err != nil {
		return 0, rc.err
	}
	rc.buf = append(rc.buf, p...)
	if rc.err = rc.consume(); rc.err != nil {
		rc.buf = nil
		return 0, rc.err
	}
	return len(p), nil
}

// consume takes complete records off the buffer.
func (rc *Receiver) consume() error {
	if !rc.begun {
		if len(rc.buf) < fileHeaderSize {
			return nil
		}
		if err := rc.begin(); err != nil {
			return err
		}
	}
	used := 0
	for used < len(rc.buf) {
		if rc.end != nil {
			return dfserr.Errorf(dfserr.ErrCorrupt, "chunk %v: the copy goes on after its end", rc.id)
		}
		rec, need, err := decodeRecord(rc.buf[used:], rc.seed, rc.at)
		if errors.Is(err, errShort) {
			break
		}
		if err == nil && rec.prev != rc.chain {
			err = errors.New("record does not follow the one before it")
		}
		if err != nil {
			return dfserr.Errorf(dfserr.ErrCorrupt, "chunk %v: copy is damaged at %d: %v", rc.id, rc.at, err)
		}
		size := need + rec.payloadLen
		if size > maxReceiveBuffer {
			return dfserr.Errorf(dfserr.ErrCorrupt, "chunk %v: record of %d bytes in the copy", rc.id, size)
		}
		if len(rc.buf)-used < size {
			break
		}
		crc := rec.crc // storing the record gives it another
		if err := rc.record(&rec, rc.buf[used+need:used+size]); err != nil {
			return err
		}
		used += size
		rc.at += int64(size)
		rc.chain = crc
	}
	rc.buf = append(rc.buf[:0], rc.buf[used:]...)
	return nil
}

// begin takes the stream's header off the buffer.
func (rc *Receiver) begin() error {
	head, err := decodeFileHeader(rc.buf[:fileHeaderSize], true)
	if err != nil {
		return dfserr.Errorf(dfserr.Sentinel(err), "chunk %v: copy: %v", rc.id, err)
	}
	if head.cluster != rc.s.cluster || head.chunk != rc.id {
		return dfserr.Errorf(dfserr.ErrCorrupt, "copy is of chunk %v of cluster %v, not of chunk %v of cluster %v", head.chunk, head.cluster, rc.id, rc.s.cluster)
	}
	rc.begun, rc.head, rc.seed, rc.chain, rc.at = true, head, head.seed(), head.crc, fileHeaderSize
	rc.buf = append(rc.buf[:0], rc.buf[fileHeaderSize:]...)
	if !rc.whole {
		return nil
	}
	log := fileHeader{cluster: head.cluster, chunk: head.chunk, created: head.created, nonce: rc.s.opts.Nonce()}
	rc.b, err = newBuilder(rc.d, chunkFile(rc.id)+copySuffix, log, true)
	return err
}

// record verifies one record of the stream and stores it.
func (rc *Receiver) record(rec *record, payload []byte) error {
	if at, ok := rec.verify(payload); !ok {
		return dfserr.Errorf(dfserr.ErrCorrupt, "chunk %v: data of the block at %d fails its checksum in the copy", rc.id, at)
	}
	switch {
	case rec.typ == recEnd:
		rc.end = rec
		return nil
	case rc.whole:
		return rc.b.add(rec, payload)
	case !rec.typ.mutation():
		return dfserr.Errorf(dfserr.ErrCorrupt, "chunk %v: record of type %d in a copy of mutations", rc.id, rec.typ)
	}
	return rc.appendTail(rec, payload)
}

// appendTail appends a mutation, which may be of an earlier version than the replica was told, unless the
// replica has it already.
func (rc *Receiver) appendTail(rec *record, payload []byte) error {
	st, err := rc.r.pin()
	if err != nil {
		return err
	}
	defer rc.r.unpin()
	st.appendMu.Lock()
	defer st.appendMu.Unlock()
	if err := st.sound(); err != nil {
		return err
	}
	if rec.seq <= st.x.lastSeq {
		return nil
	}
	if rec.version > st.x.version {
		return dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %v: copied mutation of version %d, replica has %d", rc.id, rec.version, st.x.version)
	}
	var data [][]byte
	if len(payload) > 0 {
		data = [][]byte{payload}
	}
	return st.appendMutation(rec, data)
}

// Commit ends the copy: the stream must have come to its end (else ErrCorrupt), and the replica is durable and
// visible afterwards. It keeps the higher of its own version and the stream's. ErrStaleVersion when a whole
// copy would replace mutations of a version that the copied log has not reached. On an error a whole copy is
// gone, of a tail there is what arrived.
func (rc *Receiver) Commit() (*Replica, error) {
	if rc.err == nil && rc.done {
		rc.err = dfserr.Errorf(dfserr.ErrClosed, "copy of chunk %v", rc.id)
	}
	if rc.err == nil && rc.end == nil {
		rc.err = dfserr.Errorf(dfserr.ErrCorrupt, "chunk %v: the copy ends before its end", rc.id)
	}
	if rc.err == nil {
		if rc.whole {
			rc.err = rc.commitWhole()
		} else {
			rc.err = rc.commitTail()
		}
	}
	err := rc.err
	rc.finish()
	if err != nil {
		return nil, err
	}
	return rc.r, nil
}

func (rc *Receiver) commitTail() error {
	st, err := rc.r.pin()
	if err != nil {
		return err
	}
	defer rc.r.unpin()
	if err := rc.r.SetCommitted(rc.end.committed); err != nil {
		return err
	}
	return st.sync()
}

func (rc *Receiver) commitWhole() error {
	x := rc.b.x
	if x.lastSeq != rc.end.seq || x.end == fileHeaderSize {
		return dfserr.Errorf(dfserr.ErrCorrupt, "chunk %v: the copy ends at seq %d, not %d", rc.id, x.lastSeq, rc.end.seq)
	}
	x.setCommitted(rc.end.committed)
	if rc.r == nil {
		return rc.commitNew()
	}
	st, err := rc.r.pin()
	if errors.Is(err, dfserr.ErrNotExist) {
		return dfserr.Errorf(dfserr.ErrBusy, "replica of chunk %v was deleted meanwhile", rc.id)
	}
	if err != nil {
		return err
	}
	defer rc.r.unpin()
	st.appendMu.Lock()
	defer st.appendMu.Unlock()
	if err := st.usable(); err != nil {
		return err
	}
	if v := st.x.lastMutationVersion(); v > x.version {
		return dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %v: copy of version %d over mutations of version %d", rc.id, x.version, v)
	}
	if v := st.x.version; v > x.version {
		if err := rc.b.add(&record{typ: recConfig, version: v, seq: x.lastSeq}, nil); err != nil {
			return err
		}
	}
	if err := rc.b.sync(); err != nil {
		return err
	}
	if err := rc.b.publish(rc.id); err != nil {
		return err
	}
	b := rc.b
	rc.b = nil
	return st.replaceLocked(b)
}

// commitNew makes the copy a replica where there was none.
func (rc *Receiver) commitNew() error {
	if err := rc.b.sync(); err != nil {
		return err
	}
	r := &Replica{s: rc.s, id: rc.id, disk: rc.d, pins: 1}
	r.openMu.Lock()
	defer r.openMu.Unlock()
	rc.s.mu.Lock()
	closed := rc.s.closed
	rc.s.mu.Unlock()
	if closed {
		return dfserr.Errorf(dfserr.ErrClosed, "store")
	}
	if err := rc.b.publish(rc.id); err != nil {
		return err
	}
	st := newOpenLog(r, rc.b.log, rc.b.x)
	r.setBytes(st.x.end)
	rc.b = nil
	st.appendMu.Lock()
	defer st.appendMu.Unlock()
	if err := st.markSyncedLocked(st.x.end, st.x.lastSeq); err != nil {
		st.shutdownLocked(err)
		return err
	}
	r.st = st
	rc.s.mu.Lock()
	defer rc.s.mu.Unlock()
	r.pins--
	if rc.s.closed {
		st.shutdownLocked(dfserr.ErrClosed)
		return dfserr.Errorf(dfserr.ErrClosed, "store")
	}
	rc.s.replicas[rc.id] = r // nobody else could make one: copying[id] is set
	rc.s.open = append(rc.s.open, r)
	rc.r = r
	return nil
}

// Abort ends the copy without effect; of a tail, what arrived stays. After Commit it does nothing.
func (rc *Receiver) Abort() { rc.finish() }

// finish releases everything.
func (rc *Receiver) finish() {
	if rc.done {
		return
	}
	rc.done = true
	rc.buf = nil
	if rc.b != nil {
		if err := rc.b.abandon(); err != nil {
			rc.s.logger.Warn("removing an unfinished copy", "chunk", rc.id, "error", err)
		}
		rc.b = nil
	}
	if rc.whole {
		rc.s.mu.Lock()
		delete(rc.s.copying, rc.id)
		rc.s.mu.Unlock()
	}
}
