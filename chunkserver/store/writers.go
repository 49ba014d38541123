package store

import (
	"container/list"
	"maps"
	"slices"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// maxWriters is how many writers a replica remembers per chunk; the one that wrote longest ago is forgotten
// first. The order is that of the mutations, so all replicas forget the same.
const maxWriters = 4096

// done says where a request's mutation went.
type done struct {
	off int64
	seq dfs.Seq
}

// writer is what a replica remembers of one writer.
type writer struct {
	id      uint64
	highest uint64 // request seen
	// recent holds the requests above highest - WriterWindow that were seen.
	recent map[uint64]done
}

// writerTable recognises requests that were already carried out. Not safe for concurrent use.
type writerTable struct {
	byID  map[uint64]*list.Element // of *writer
	order *list.List               // last to write in front
}

func newWriterTable() *writerTable {
	return &writerTable{byID: map[uint64]*list.Element{}, order: list.New()}
}

// put remembers a mutation. Writer 0 asks for no memory.
func (t *writerTable) put(id, request uint64, d done) {
	if id == 0 {
		return
	}
	e := t.byID[id]
	if e == nil {
		if t.order.Len() >= maxWriters {
			oldest := t.order.Back()
			delete(t.byID, oldest.Value.(*writer).id)
			t.order.Remove(oldest)
		}
		e = t.order.PushFront(&writer{id: id, recent: map[uint64]done{}})
		t.byID[id] = e
	} else {
		t.order.MoveToFront(e)
	}
	w := e.Value.(*writer)
	if request > w.highest {
		// Forget what leaves the window, without walking over requests that never were.
		if request-w.highest >= dfs.WriterWindow {
			clear(w.recent)
		} else {
			for old := w.highest + 1; old <= request; old++ {
				if old > dfs.WriterWindow {
					delete(w.recent, old-dfs.WriterWindow)
				}
			}
		}
		w.highest = request
	} else if w.highest-request >= dfs.WriterWindow {
		return
	}
	w.recent[request] = d
}

// get finds a request. It fails with ErrDuplicate when the request is too old to know.
func (t *writerTable) get(id, request uint64) (d done, found bool, err error) {
	e := t.byID[id]
	if id == 0 || e == nil {
		return d, false, nil
	}
	w := e.Value.(*writer)
	if d, found = w.recent[request]; found {
		return d, true, nil
	}
	if request <= w.highest && w.highest-request >= dfs.WriterWindow {
		return d, false, dfserr.Errorf(dfserr.ErrDuplicate, "request %d of writer %016x, which is at %d", request, id, w.highest)
	}
	return d, false, nil
}

// encode appends the table to e, the writer that wrote longest ago first.
func (t *writerTable) encode(e *encoder) {
	e.u32(uint32(t.order.Len()))
	for el := t.order.Back(); el != nil; el = el.Prev() {
		w := el.Value.(*writer)
		e.u64(w.id)
		e.u64(w.highest)
		e.u32(uint32(len(w.recent)))
		for _, request := range slices.Sorted(maps.Keys(w.recent)) {
			d := w.recent[request]
			e.u64(request)
			e.u64(uint64(d.off))
			e.u64(uint64(d.seq))
		}
	}
}

// decodeWriters reads what encode wrote.
func decodeWriters(d *decoder) *writerTable {
	t := newWriterTable()
	writers := d.count(20, maxWriters)
	for range writers {
		id, highest := d.u64(), d.u64()
		if id == 0 || t.byID[id] != nil {
			d.fail("writer %d twice or invalid", id)
			return t
		}
		w := &writer{id: id, highest: highest, recent: map[uint64]done{}}
		requests := d.count(24, dfs.WriterWindow)
		for range requests {
			request := d.u64()
			w.recent[request] = done{off: int64(d.u64()), seq: dfs.Seq(d.u64())}
			if request > highest || highest-request >= dfs.WriterWindow {
				d.fail("request %d outside the window of %d", request, highest)
				return t
			}
		}
		t.byID[id] = t.order.PushFront(w)
	}
	return t
}
