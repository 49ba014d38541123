package store

import (
	"slices"
	"sort"

	"dfs/internal/dfs"
)

// extent says that bytes [off, end) of the chunk are found in the log, inside the payload of one record.
type extent struct {
	off, end       int64 // in the chunk
	recOff, recEnd int64 // the range of the whole record, in the chunk; contains [off, end)
	pos            int64 // in the log, of the byte at recOff
	crcs           []uint32
}

// logPos returns where the byte at offset off of the chunk is in the log.
func (e *extent) logPos(off int64) int64 { return e.pos + off - e.recOff }

// pieceStart returns where the piece that holds offset off begins; pieceEnd where the one that holds off-1 ends.
func (e *extent) pieceStart(off int64) int64 { return max(e.recOff, off&^(dfs.BlockSize-1)) }

func (e *extent) pieceEnd(off int64) int64 {
	return min(e.recEnd, (off+dfs.BlockSize-1)&^(dfs.BlockSize-1))
}

// crc returns the checksum of the piece that begins at off.
func (e *extent) crc(off int64) uint32 { return e.crcs[off/dfs.BlockSize-e.recOff/dfs.BlockSize] }

// trimmed returns the extent without the pieces of its record that it does not touch.
func (e extent) trimmed() extent {
	start, end := e.pieceStart(e.off), e.pieceEnd(e.end)
	first := start/dfs.BlockSize - e.recOff/dfs.BlockSize
	e.crcs = e.crcs[first : first+int64(dfs.BlockPieces(start, end-start))]
	e.pos, e.recOff, e.recEnd = e.logPos(start), start, end
	return e
}

// extentOf describes the whole payload of a record of data.
func extentOf(r *record) extent {
	return extent{off: r.off, end: r.rangeEnd(), recOff: r.off, recEnd: r.rangeEnd(), pos: r.payloadAt(), crcs: r.crcs}
}

// extentMap holds the live bytes of a chunk: extents in ascending order that do not overlap. What no
// extent covers reads as zero. Not safe for concurrent use.
type extentMap struct {
	list []extent
	live int64 // total length
}

// overlapping returns the extents that share a byte with [off, end), as a part of the list.
func (m *extentMap) overlapping(off, end int64) []extent {
	i := m.first(off)
	j := i
	for j < len(m.list) && m.list[j].off < end {
		j++
	}
	return m.list[i:j]
}

// first returns the index of the first extent that ends after off.
func (m *extentMap) first(off int64) int {
	return sort.Search(len(m.list), func(i int) bool { return m.list[i].end > off })
}

// remove uncovers [off, end).
func (m *extentMap) remove(off, end int64) { m.replace(off, end, nil) }

// insert covers the extent's range by it.
func (m *extentMap) insert(e extent) { m.replace(e.off, e.end, &e) }

// replace puts with, or nothing, in the place of what covers [off, end).
func (m *extentMap) replace(off, end int64, with *extent) {
	if off >= end {
		return
	}
	i := m.first(off)
	j := i
	for ; j < len(m.list) && m.list[j].off < end; j++ {
		m.live -= m.list[j].end - m.list[j].off
	}
	var put [3]extent
	n := 0
	if i < j && m.list[i].off < off {
		put[n] = m.list[i]
		put[n].end = off
		n++
	}
	if with != nil {
		put[n] = *with
		n++
	}
	if i < j && m.list[j-1].end > end {
		put[n] = m.list[j-1]
		put[n].off = end
		n++
	}
	for _, e := range put[:n] {
		m.live += e.end - e.off
	}
	m.list = slices.Replace(m.list, i, j, put[:n]...)
}
