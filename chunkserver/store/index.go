package store

import (
	"encoding/binary"
	"fmt"
	"slices"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// markSpacing is how far apart in the log, in bytes, the entries of index.marks are.
const markSpacing = 256 * dfs.KiB

// maxPending is the most uncommitted mutations that a footer records.
const maxPending = 1 << 16

// pendingMut is a mutation that is not known to be committed: the bytes it changes, and the length of the
// chunk after it.
type pendingMut struct {
	seq      dfs.Seq
	off, end int64
	length   int64
}

// mark says that every mutation after seq lies in the log at or after off.
type mark struct {
	seq dfs.Seq
	off int64
}

// index is what a replica's log adds up to. It is a plain value without lock or I/O, changed by apply.
type index struct {
	version         dfs.Version
	lastSeq         dfs.Seq
	baseSeq         dfs.Seq
	committed       dfs.Seq
	length          int64
	committedLength int64
	cutVersion      dfs.Version
	epochs          []Epoch
	writers         *writerTable

	extents extentMap
	pending []pendingMut // ascending by seq, all above committed
	marks   []mark       // ascending in both fields

	end          int64  // of the log: where the next record goes
	chain        uint32 // crc of the last record, or of the file header
	baseEnd      int64  // end of the base and its extents; of the file header when there is no base
	baseExt      int    // number of extents in the base
	baseOverhead int64  // bytes of the base that are not bytes of the chunk

	synced    int64 // the log before here is on stable storage
	syncedSeq dfs.Seq
	dirtyEnd  int64 // end of the last record that somebody may want to be durable
}

// newIndex is the index of a log that consists of its file header.
func newIndex(h *fileHeader) *index {
	x := &index{
		version: h.created, writers: newWriterTable(),
		end: fileHeaderSize, chain: h.crc, baseEnd: fileHeaderSize, dirtyEnd: fileHeaderSize,
	}
	x.epochs = []Epoch{{Version: h.created, First: 1}}
	return x
}

// apply adds a record, other than a base, to the index. Records must have passed admit, or come from the log.
func (x *index) apply(r *record) {
	switch {
	case r.typ == recExtent:
		x.extents.insert(extentOf(r))
		x.baseEnd, x.baseExt, x.baseOverhead = r.end(), x.baseExt+1, x.baseOverhead+r.headerLen()
	case r.typ == recConfig:
		x.setVersion(r.version)
	case r.typ.mutation():
		x.applyMutation(r)
	}
	if r.typ != recMark {
		x.dirtyEnd = r.end()
	}
	x.end, x.chain = r.end(), r.crc
}

func (x *index) applyMutation(r *record) {
	last := mark{off: x.baseEnd, seq: x.baseSeq}
	if n := len(x.marks); n > 0 {
		last = x.marks[n-1]
	}
	if r.logOff >= last.off+markSpacing {
		x.marks = append(x.marks, mark{seq: x.lastSeq, off: r.logOff})
	}
	x.noteEpoch(r.version, r.seq)
	x.lastSeq = r.seq
	p := pendingMut{seq: r.seq, off: r.off, end: r.rangeEnd()}
	switch r.typ {
	case recWrite:
		x.extents.insert(extentOf(r))
		x.length = max(x.length, r.rangeEnd())
	case recZero:
		x.extents.remove(r.off, r.rangeEnd())
	case recTruncate:
		x.extents.remove(r.off, dfs.MaxChunkSize)
		p.off, p.end = min(r.off, x.length), dfs.MaxChunkSize
		x.length = r.off
		x.cutVersion = max(x.cutVersion, r.cutVersion)
	}
	p.length = x.length
	x.pending = append(x.pending, p)
	x.writers.put(r.writer, r.request, done{off: r.off, seq: r.seq})
}

// setVersion notes that the replica was told version v.
func (x *index) setVersion(v dfs.Version) {
	if v <= x.version {
		return
	}
	x.version = v
	x.epochs = append(x.epochs, Epoch{Version: v, First: x.lastSeq + 1})
}

// noteEpoch notes that mutation seq was ordered under version v, which may be below the version that the
// replica was told since: then later epochs have no mutation yet and begin after it.
func (x *index) noteEpoch(v dfs.Version, seq dfs.Seq) {
	i, found := slices.BinarySearchFunc(x.epochs, v, func(e Epoch, v dfs.Version) int {
		switch {
		case e.Version < v:
			return -1
		case e.Version > v:
			return 1
		}
		return 0
	})
	if !found {
		x.epochs = slices.Insert(x.epochs, i, Epoch{Version: v, First: seq})
	}
	for j := range x.epochs {
		if j <= i {
			x.epochs[j].First = min(x.epochs[j].First, seq) // a dropped tail may have moved it up
		} else {
			x.epochs[j].First = max(x.epochs[j].First, seq+1)
		}
	}
}

// settleEpochs lets epochs without mutations begin after the last one, also when mutations that moved them up
// were dropped later in the log.
func (x *index) settleEpochs() {
	for j := range x.epochs {
		x.epochs[j].First = min(x.epochs[j].First, x.lastSeq+1)
	}
}

// lastMutationVersion returns the version under which the last mutation was ordered, 0 when there is none.
func (x *index) lastMutationVersion() dfs.Version {
	for i := len(x.epochs) - 1; i >= 0; i-- {
		if x.epochs[i].First <= x.lastSeq {
			return x.epochs[i].Version
		}
	}
	return 0
}

// setCommitted raises the committed seq, at most to the last one.
func (x *index) setCommitted(seq dfs.Seq) {
	if seq = min(seq, x.lastSeq); seq <= x.committed {
		return
	}
	x.committed = seq
	n := 0
	for ; n < len(x.pending) && x.pending[n].seq <= seq; n++ {
		x.committedLength = x.pending[n].length
	}
	x.pending = x.pending[n:]
	if len(x.pending) == 0 {
		x.pending = nil
	}
}

// dirtyUpTo returns the highest uncommitted mutation that changes a byte of [off, end), 0 for none.
func (x *index) dirtyUpTo(off, end int64) dfs.Seq {
	for i := len(x.pending) - 1; i >= 0; i-- {
		if p := &x.pending[i]; p.off < end && off < p.end {
			return p.seq
		}
	}
	return 0
}

// garbage returns how many bytes of the log compaction would save, roughly.
func (x *index) garbage() int64 {
	return x.end - fileHeaderSize - x.extents.live - x.baseOverhead
}

// encodeState appends what a base or a footer says of the chunk, as of the index.
func (x *index) encodeState(e *encoder) {
	e.u64(uint64(x.version))
	e.u64(uint64(x.lastSeq))
	e.u64(uint64(x.baseSeq))
	e.u64(uint64(x.committed))
	e.u64(uint64(x.length))
	e.u64(uint64(x.committedLength))
	e.u64(uint64(x.cutVersion))
	e.u32(uint32(len(x.epochs)))
	for _, p := range x.epochs {
		e.u64(uint64(p.Version))
		e.u64(uint64(p.First))
	}
	x.writers.encode(e)
}

func (x *index) decodeState(d *decoder) {
	x.version = dfs.Version(d.u64())
	x.lastSeq = dfs.Seq(d.u64())
	x.baseSeq = dfs.Seq(d.u64())
	x.committed = dfs.Seq(d.u64())
	x.length = d.off()
	x.committedLength = d.off()
	x.cutVersion = dfs.Version(d.u64())
	x.epochs = nil
	for range d.count(16, maxBasePayload) {
		p := Epoch{Version: dfs.Version(d.u64()), First: dfs.Seq(d.u64())}
		if n := len(x.epochs); n > 0 && (x.epochs[n-1].Version >= p.Version || x.epochs[n-1].First > p.First) {
			d.fail("epochs out of order")
			return
		}
		x.epochs = append(x.epochs, p)
	}
	x.writers = decodeWriters(d)
	if x.baseSeq > x.committed || x.committed > x.lastSeq || len(x.epochs) == 0 ||
		x.epochs[len(x.epochs)-1].Version > x.version {
		d.fail("sequence numbers or epochs contradict one another")
	}
}

// encodeBase returns the payload of a base record: the index must have nothing uncommitted.
func (x *index) encodeBase() []byte {
	var e encoder
	base := *x
	base.baseSeq, base.committed, base.committedLength = x.lastSeq, x.lastSeq, x.length
	// Epochs that ended before the base cannot end a common prefix that a tail could be copied after.
	for len(base.epochs) > 1 && base.epochs[1].First <= base.baseSeq {
		base.epochs = base.epochs[1:]
	}
	base.encodeState(&e)
	return e.b
}

// applyBase starts the index from a base record, which must be the first after the file header.
func (x *index) applyBase(r *record, payload []byte) error {
	d := decoder{b: payload}
	x.decodeState(&d)
	if x.lastSeq != x.baseSeq || x.committed != x.baseSeq || x.committedLength != x.length {
		d.fail("base has uncommitted mutations")
	}
	if err := d.finish(); err != nil {
		return err
	}
	x.baseEnd, x.dirtyEnd, x.end, x.chain = r.end(), r.end(), r.end(), r.crc
	x.baseOverhead = r.end() - r.logOff
	return nil
}

// encodeFooter returns the index footer. ok is false when the index is too big for one.
func (x *index) encodeFooter() (payload []byte, ok bool) {
	if len(x.pending) > maxPending {
		return nil, false
	}
	e := encoder{b: make([]byte, 0, 256+48*len(x.extents.list))}
	x.encodeState(&e)
	e.u64(uint64(x.baseEnd))
	e.u64(uint64(x.baseExt))
	e.u64(uint64(x.baseOverhead))
	e.u32(uint32(len(x.pending)))
	for _, p := range x.pending {
		e.u64(uint64(p.seq))
		e.u64(uint64(p.off))
		e.u64(uint64(p.end))
		e.u64(uint64(p.length))
	}
	e.u32(uint32(len(x.marks)))
	for _, m := range x.marks {
		e.u64(uint64(m.seq))
		e.u64(uint64(m.off))
	}
	e.u32(uint32(len(x.extents.list)))
	for i := range x.extents.list {
		t := x.extents.list[i].trimmed()
		e.u64(uint64(t.off))
		e.u64(uint64(t.end))
		e.u64(uint64(t.recOff))
		e.u64(uint64(t.recEnd))
		e.u64(uint64(t.pos))
		for _, c := range t.crcs {
			e.u32(c)
		}
	}
	return e.b, len(e.b) <= maxFooter
}

// decodeFooter restores the index of a log that ends at t.end. The error wraps ErrCorrupt; then the log must
// be scanned.
func decodeFooter(payload []byte, t *trailer) (*index, error) {
	d := decoder{b: payload}
	x := &index{end: t.end, chain: t.chain, synced: t.end, dirtyEnd: t.end}
	x.decodeState(&d)
	x.syncedSeq = x.lastSeq
	x.baseEnd, x.baseExt, x.baseOverhead = int64(d.u64()), int(d.u64()&0xffffffff), int64(d.u64())
	for range d.count(32, maxPending) {
		p := pendingMut{seq: dfs.Seq(d.u64()), off: d.off(), end: d.off(), length: d.off()}
		if p.seq <= x.committed || p.seq > x.lastSeq {
			d.fail("pending mutation %d", p.seq)
		}
		x.pending = append(x.pending, p)
	}
	for range d.count(16, maxFooter) {
		x.marks = append(x.marks, mark{seq: dfs.Seq(d.u64()), off: int64(d.u64())})
	}
	for range d.count(44, maxFooter) {
		t := extent{off: d.off(), end: d.off(), recOff: d.off(), recEnd: d.off(), pos: int64(d.u64())}
		if d.err == nil && !t.valid(x) {
			d.fail("extent %d to %d", t.off, t.end)
		}
		if d.err != nil {
			break
		}
		t.crcs = make([]uint32, dfs.BlockPieces(t.recOff, t.recEnd-t.recOff))
		for i := range t.crcs {
			t.crcs[i] = d.u32()
		}
		x.extents.list = append(x.extents.list, t)
		x.extents.live += t.end - t.off
	}
	return x, d.finish()
}

// valid reports whether the extent can follow those that are in the index.
func (e *extent) valid(x *index) bool {
	if n := len(x.extents.list); n > 0 && x.extents.list[n-1].end > e.off {
		return false
	}
	return e.off < e.end && e.recOff <= e.off && e.end <= e.recEnd && e.recEnd-e.recOff <= dfs.FrameSize &&
		e.end <= x.length && e.pos >= fileHeaderSize && e.pos <= x.end-(e.recEnd-e.recOff)
}

// encoder appends little-endian integers.
type encoder struct{ b []byte }

func (e *encoder) u32(v uint32) { e.b = binary.LittleEndian.AppendUint32(e.b, v) }
func (e *encoder) u64(v uint64) { e.b = binary.LittleEndian.AppendUint64(e.b, v) }

// decoder reads little-endian integers; after the first failure it returns zeros.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = dfserr.Errorf(dfserr.ErrCorrupt, "index: %s", fmt.Sprintf(format, args...))
		d.b = nil
	}
}

func (d *decoder) u32() uint32 {
	if len(d.b) < 4 {
		d.fail("cut short")
		return 0
	}
	v := binary.LittleEndian.Uint32(d.b)
	d.b = d.b[4:]
	return v
}

func (d *decoder) u64() uint64 {
	if len(d.b) < 8 {
		d.fail("cut short")
		return 0
	}
	v := binary.LittleEndian.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

// off reads an offset in a chunk.
func (d *decoder) off() int64 {
	v := d.u64()
	if v > dfs.MaxChunkSize {
		d.fail("offset %d", v)
		return 0
	}
	return int64(v)
}

// count reads how many items follow, each at least size bytes long and at most limit of them, so that a
// loop over them allocates no more than the input justifies.
func (d *decoder) count(size, limit int) int {
	n := d.u32()
	if int64(n) > int64(limit) || int64(n)*int64(size) > int64(len(d.b)) {
		d.fail("%d items", n)
		return 0
	}
	return int(n)
}

// finish returns the first failure, or one when input is left over.
func (d *decoder) finish() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail("%d bytes too many", len(d.b))
	}
	return d.err
}
