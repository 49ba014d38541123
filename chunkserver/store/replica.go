package store

import (
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

// Replica is one replica of a chunk. Safe for concurrent use. Every method may find that the log must be
// opened first, and then returns what that found: ErrDiskFailed when it cannot be read, ErrFormat when a newer
// program wrote it, ErrNotExist when the replica was deleted or its creation never became durable, ErrClosed
// when the store is closed.
type Replica struct {
	s    *Store
	id   dfs.ChunkID
	disk *disk

	bytes atomic.Int64 // of the log file, as counted in disk.used

	openMu sync.Mutex // serialises opening and closing the log
	st     *openLog   // nil while closed; guarded by openMu

	// Guarded by s.mu.
	pins   int  // calls under way
	used   bool // since the clock's hand passed last
	gone   bool // deleted
	queued bool // for compaction
}

// ID returns the chunk's id.
func (r *Replica) ID() dfs.ChunkID { return r.id }

// setBytes notes how long the replica's log file is, 0 when it is gone.
func (r *Replica) setBytes(n int64) { r.disk.used.Add(n - r.bytes.Swap(n)) }

// openLog is a replica whose log is open.
//
// Locks, in order: Replica.openMu, syncMu, appendMu, mu, Store.mu. x is changed only with appendMu and mu
// both held, except for x.committed and x.pending, for which mu is enough; so holding either makes the rest
// readable.
type openLog struct {
	r *Replica

	compactMu sync.Mutex // one compaction at a time; before all others
	syncMu    sync.Mutex // one fsync at a time

	appendMu sync.Mutex // one writer at a time
	// Guarded by appendMu.
	footer   bool   // the file has an index footer after x.end
	dirDirty bool   // the directory entry may not be durable
	preMark  int64  // if the last record is a mark: where it begins,
	preChain uint32 // and the chain there
	buf      []byte // scratch of writeRecord
	vec      [][]byte

	mu         sync.RWMutex
	log        *logFile
	x          *index
	drops      int   // DropAfter calls, and replacements of the log
	corrupt    error // damage found, nil for none
	structural bool  // the damage is to the log as a whole
	ended      error // why the log is closed, nil while it is open
}

func newOpenLog(r *Replica, log *logFile, x *index) *openLog {
	return &openLog{r: r, log: log, x: x, preMark: -1}
}

// pin keeps the replica's log open until unpin, and opens it first when it is closed.
func (r *Replica) pin() (*openLog, error) {
	r.s.mu.Lock()
	var err error
	switch {
	case r.s.closed:
		err = dfserr.Errorf(dfserr.ErrClosed, "store")
	case r.gone:
		err = dfserr.Errorf(dfserr.ErrNotExist, "replica of chunk %v was deleted", r.id)
	default:
		r.pins++
		r.used = true
	}
	r.s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	r.openMu.Lock()
	st := r.st
	if st == nil {
		if st, err = r.openLocked(); err == nil {
			r.st = st
			if !r.s.opened(r) {
				r.st = nil
				err = errors.Join(dfserr.Errorf(dfserr.ErrClosed, "store"), st.shutdown(false, dfserr.ErrClosed))
			}
		}
	}
	r.openMu.Unlock()
	if err != nil {
		r.unpin()
		return nil, err
	}
	r.s.evict()
	return st, nil
}

func (r *Replica) unpin() {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.pins--
}

// opened lists a replica as open. It returns false when the store has been closed meanwhile.
func (s *Store) opened(r *Replica) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.open = append(s.open, r)
	return true
}

// evict closes replicas that nobody uses while more than MaxOpen are open.
func (s *Store) evict() {
	for {
		s.mu.Lock()
		victim := s.victimLocked()
		s.mu.Unlock()
		if victim == nil {
			return
		}
		victim.closeIdle()
	}
}

// victimLocked takes a replica that was not used lately off the list of open ones and pins it; nil when few
// enough are open or all are in use.
func (s *Store) victimLocked() *Replica {
	if s.closed || len(s.open) <= s.opts.MaxOpen {
		return nil
	}
	for range 2 * len(s.open) {
		s.hand = (s.hand + 1) % len(s.open)
		r := s.open[s.hand]
		switch {
		case r.pins > 0:
		case r.used:
			r.used = false
		default:
			s.open[s.hand] = s.open[len(s.open)-1]
			s.open = s.open[:len(s.open)-1]
			s.hand = max(0, s.hand-1)
			r.pins++
			s.wg.Add(1)
			return r
		}
	}
	return nil
}

// closeIdle closes a replica that victimLocked chose, unless it has come into use since.
func (r *Replica) closeIdle() {
	defer r.s.wg.Done()
	defer r.unpin()
	r.openMu.Lock()
	defer r.openMu.Unlock()
	if r.st == nil {
		return
	}
	r.s.mu.Lock()
	busy := r.pins > 1 && !r.s.closed
	if busy {
		r.s.open = append(r.s.open, r)
	}
	r.s.mu.Unlock()
	if busy {
		return
	}
	if err := r.st.shutdown(true, dfserr.Errorf(dfserr.ErrClosed, "log of chunk %v", r.id)); err != nil {
		r.s.logger.Warn("closing a replica", "chunk", r.id, "error", err)
	}
	r.st = nil
}

// openLocked opens and recovers the log; openMu is held.
func (r *Replica) openLocked() (*openLog, error) {
	d := r.disk
	name := chunkFile(r.id)
	flag := os.O_RDWR
	if d.failed() != nil {
		flag = os.O_RDONLY
	}
	f, err := d.FS.OpenFile(name, flag, 0)
	if vfs.IsTransient(err) {
		return nil, dfserr.Errorf(dfserr.ErrBusy, "disk %s: open %s: %v", d.Name, name, err)
	}
	if err != nil {
		return nil, dfserr.Errorf(dfserr.ErrDiskFailed, "disk %s: open %s: %v", d.Name, name, err)
	}
	rec, err := recoverLog(f, r.s.cluster, r.id)
	if err != nil {
		err = errors.Join(err, f.Close())
		if errors.Is(err, errNeverDurable) {
			return nil, r.removeUnborn(err)
		}
		return nil, err
	}
	st := newOpenLog(r, rec.log, rec.x)
	st.footer = rec.footer
	st.dirDirty = rec.x.synced <= fileHeaderSize
	if rec.corrupt != nil {
		st.corrupt, st.structural = rec.corrupt, true
		r.s.logger.Error("replica is corrupt and quarantined", "chunk", r.id, "disk", d.Name, "error", rec.corrupt)
	}
	if rec.tornAt >= 0 && d.failed() == nil {
		r.s.logger.Warn("cutting off a torn tail", "chunk", r.id, "disk", d.Name, "at", rec.tornAt, "last_seq", rec.x.lastSeq)
		// The cut is made durable before anything is written in the place of what it cuts off.
		err := f.Truncate(rec.tornAt)
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			return nil, errors.Join(d.condemn("cut the torn tail of "+name, err), rec.log.release())
		}
		r.setBytes(rec.tornAt)
	}
	return st, nil
}

// removeUnborn removes a log whose creation a crash has undone.
func (r *Replica) removeUnborn(cause error) error {
	if r.disk.failed() == nil {
		if err := r.disk.FS.Remove(chunkFile(r.id)); err != nil {
			return r.disk.condemn("remove "+chunkFile(r.id), err)
		}
	}
	r.s.forget(r)
	r.setBytes(0)
	return dfserr.Errorf(dfserr.ErrNotExist, "replica of chunk %v: %v", r.id, cause)
}

// shutdown closes the log. With clean set it first makes the log durable and writes an index footer, so that
// the next opening need not walk over the log. Calls under way fail with why.
func (st *openLog) shutdown(clean bool, why error) error {
	st.syncMu.Lock()
	defer st.syncMu.Unlock()
	st.appendMu.Lock()
	defer st.appendMu.Unlock()
	if st.ended != nil {
		return nil
	}
	var err error
	if clean && st.corrupt == nil && st.r.disk.failed() == nil {
		err = st.writeFooterLocked()
	}
	st.shutdownLocked(why)
	return err
}

// shutdownLocked closes the log without writing; appendMu is held.
func (st *openLog) shutdownLocked(why error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.ended != nil {
		return
	}
	st.ended = why
	if err := st.log.release(); err != nil {
		st.r.s.logger.Warn("closing a log", "chunk", st.r.id, "error", err)
	}
}

// writeFooterLocked makes the log durable and puts an index footer after it; syncMu and appendMu are held.
func (st *openLog) writeFooterLocked() error {
	d, x := st.r.disk, st.x
	if st.footer {
		return nil
	}
	if x.dirtyEnd <= x.synced && st.preMark == x.synced {
		// Only a mark follows what is durable. The footer takes its place.
		st.mu.Lock()
		x.end, x.chain = st.preMark, st.preChain
		st.mu.Unlock()
	}
	if x.end > x.synced || st.dirDirty {
		if err := st.log.f.Sync(); err != nil {
			return d.condemn("sync "+chunkFile(st.r.id), err)
		}
		if err := st.syncDirLocked(); err != nil {
			return err
		}
	}
	st.mu.RLock()
	payload, ok := x.encodeFooter()
	st.mu.RUnlock()
	if !ok {
		return nil
	}
	t := trailer{
		end: x.end, footerLen: int64(len(payload)), chain: x.chain,
		footerCRC: dfs.UpdateCRC(st.log.seed, payload),
	}
	if free, err := d.freeBeyond(d.reserve); err != nil || free < t.footerLen {
		return err // the next opening will walk over the log
	}
	last := t.encode(nil, st.log.seed)
	if _, err := st.log.f.WriteVAt([][]byte{payload, last}, x.end); err != nil {
		err = d.writeFailed("write index footer of "+chunkFile(st.r.id), err, st.log.f.Truncate(x.end))
		if errors.Is(err, dfserr.ErrNoSpace) {
			return nil
		}
		return err
	}
	st.r.setBytes(x.end + int64(len(payload)+len(last)))
	return nil
}

// syncDirLocked makes the directory entry durable if it may not be; appendMu is held.
func (st *openLog) syncDirLocked() error {
	if !st.dirDirty {
		return nil
	}
	if err := st.r.disk.FS.SyncDir(chunkDir(st.r.id)); err != nil {
		return st.r.disk.condemn("sync directory "+chunkDir(st.r.id), err)
	}
	st.dirDirty = false
	return nil
}

func isNoSpace(err error) bool { return vfs.IsNoSpace(err) }

// writeFailed judges a failed write after an attempt to undo it: a full disk is ErrNoSpace as long as
// the undoing worked, anything else condemns the disk.
func (d *disk) writeFailed(what string, err, undo error) error {
	d.mu.Lock()
	d.credit = 0
	d.mu.Unlock()
	if isNoSpace(err) && undo == nil {
		return dfserr.Errorf(dfserr.ErrNoSpace, "disk %s: %s", d.Name, what)
	}
	return d.condemn(what, errors.Join(err, undo))
}

// usable returns why the log can neither be read nor written, nil when it can; mu or appendMu is held.
func (st *openLog) usable() error { return st.ended }

// sound is usable, and refuses a log that cannot be trusted as a whole.
func (st *openLog) sound() error {
	st.mu.RLock()
	defer st.mu.RUnlock()
	return st.soundLocked()
}

func (st *openLog) soundLocked() error {
	if st.ended != nil {
		return st.ended
	}
	if st.structural {
		return st.corrupt
	}
	return nil
}

// markCorrupt notes damage that a read found.
func (st *openLog) markCorrupt(log *logFile, err error, structural bool) {
	st.mu.Lock()
	first := false
	if st.log == log && (st.corrupt == nil || structural && !st.structural) {
		st.corrupt, st.structural, first = err, structural, true
	}
	st.mu.Unlock()
	if first {
		st.r.s.logger.Error("replica is corrupt", "chunk", st.r.id, "disk", st.r.disk.Name, "error", err)
	}
}

// State describes the replica. A corrupt one is described as far as its log is sound.
func (r *Replica) State() (State, error) {
	st, err := r.pin()
	if err != nil {
		return State{}, err
	}
	defer r.unpin()
	st.mu.RLock()
	defer st.mu.RUnlock()
	if err := st.usable(); err != nil {
		return State{}, err
	}
	x := st.x
	state := State{
		Version: x.version, LastSeq: x.lastSeq, BaseSeq: x.baseSeq, Epochs: slices.Clone(x.epochs),
		Committed: x.committed, Length: x.length, CommittedLength: x.committedLength, CutVersion: x.cutVersion,
		Synced: x.syncedSeq, DiskBytes: x.end, Disk: r.disk.Name,
	}
	if st.corrupt != nil {
		state.Corrupt, state.Structural, state.CorruptReason = true, st.structural, st.corrupt.Error()
	}
	return state, nil
}

// LookupRequest tells whether a writer's request is in the log, and where it went: the offset in the chunk and
// the seq. ErrDuplicate when the request is so old (WriterWindow) that it is no longer known.
func (r *Replica) LookupRequest(writer, request uint64) (off int64, seq dfs.Seq, found bool, err error) {
	st, err := r.pin()
	if err != nil {
		return 0, 0, false, err
	}
	defer r.unpin()
	st.mu.RLock()
	defer st.mu.RUnlock()
	if err := st.soundLocked(); err != nil {
		return 0, 0, false, err
	}
	d, found, err := st.x.writers.get(writer, request)
	if err != nil {
		return 0, 0, false, dfserr.Errorf(dfserr.ErrDuplicate, "chunk %v: %v", r.id, err)
	}
	return d.off, d.seq, found, nil
}

// SetCommitted notes that every replica of the configuration has the mutations up to seq. Lower than what is
// known, or beyond the log's end, it has no or only partial effect.
func (r *Replica) SetCommitted(seq dfs.Seq) error {
	st, err := r.pin()
	if err != nil {
		return err
	}
	defer r.unpin()
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := st.usable(); err != nil {
		return err
	}
	st.x.setCommitted(seq)
	return nil
}

// DirtyUpTo returns the highest mutation that changes a byte of [off, off+n) of the chunk and is not known to
// be committed, 0 when there is none. A read that must not see uncommitted bytes uses ReadResult.DirtyUpTo,
// which belongs to the same instant as the bytes.
func (r *Replica) DirtyUpTo(off, n int64) (dfs.Seq, error) {
	st, err := r.pin()
	if err != nil {
		return 0, err
	}
	defer r.unpin()
	st.mu.RLock()
	defer st.mu.RUnlock()
	if err := st.soundLocked(); err != nil {
		return 0, err
	}
	return st.x.dirtyUpTo(off, off+n), nil
}
