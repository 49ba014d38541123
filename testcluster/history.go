package testcluster

import (
	"fmt"
	"math"
	"slices"
	"sync"
)

// History records what clients did to one register (one cell of a file), and checks that it is linearizable.
// Written values are unique and never zero. It is safe for concurrent use.
//
// Instants are ticks of one counter that only grows (Clock), taken before an operation is invoked and
// after it returned, so that "before" means really before.
type History struct {
	mu     sync.Mutex
	writes map[uint64]op   // by value
	reads  map[uint64][]op // by value seen
	zeroes []op            // operations that set the register to zero
	zeroAt []op            // reads that saw zero
}

// op is one operation: from invocation to return, in ticks. A return of math.MaxInt64 means that the outcome is
// not known: it may take effect at any later time, or never.
type op struct {
	invoked, returned int64
}

// Wrote records a write of value. A write whose outcome is unknown has returned == 0.
func (h *History) Wrote(value uint64, invoked, returned int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.writes == nil {
		h.writes = make(map[uint64]op)
	}
	h.writes[value] = op{invoked, orNever(returned)}
}

// Zeroed records an operation that set the register to zero.
func (h *History) Zeroed(invoked, returned int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.zeroes = append(h.zeroes, op{invoked, orNever(returned)})
}

// Read records a read that returned value.
func (h *History) Read(value uint64, invoked, returned int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if value == 0 {
		h.zeroAt = append(h.zeroAt, op{invoked, returned})
		return
	}
	if h.reads == nil {
		h.reads = make(map[uint64][]op)
	}
	h.reads[value] = append(h.reads[value], op{invoked, returned})
}

func orNever(returned int64) int64 {
	if returned == 0 {
		return math.MaxInt64
	}
	return returned
}

// zone is the span of a value's life that operations prove: from the first return to the last invocation
// among its write and reads (forward, if the first is earlier), or the other way round (backward).
type zone struct {
	lo, hi  int64
	forward bool
	value   uint64
}

// Check returns an error if no order of the recorded operations explains what the reads returned.
//
// For non-zero values it is the zone test of Gibbons and Korach, "Testing Shared Memories" (SIAM J. Comput.
// 26(4), 1997), §4.1, which is exact for one register with unique values: no value is read before it was
// written, no two forward zones overlap, no backward zone lies within a forward zone. Zero is not unique, so
// a read of zero is only checked against values that were certainly there, from before it until after it; and so is an operation that set the register to zero.
func (h *History) Check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var zones []zone
	for value, w := range h.writes {
		reads := h.reads[value]
		if w.returned == math.MaxInt64 && len(reads) == 0 {
			continue // may never have happened
		}
		first, last := w.returned, w.invoked
		for _, r := range reads {
			if r.returned < w.invoked {
				return fmt.Errorf("value %#x was read at [%d,%d], before it was written at %d", value, r.invoked, r.returned, w.invoked)
			}
			first, last = min(first, r.returned), max(last, r.invoked)
		}
		zones = append(zones, zone{min(first, last), max(first, last), first < last, value})
	}
	for value, reads := range h.reads {
		if _, ok := h.writes[value]; !ok {
			return fmt.Errorf("value %#x was read at [%d,%d] but never written", value, reads[0].invoked, reads[0].returned)
		}
	}
	slices.SortFunc(zones, func(a, b zone) int {
		if a.lo != b.lo {
			return int(a.lo - b.lo)
		}
		return int(a.hi - b.hi)
	})
	for i, a := range zones {
		if !a.forward {
			continue
		}
		for _, b := range zones[i+1:] {
			if b.lo > a.hi {
				break
			}
			if b.forward {
				return fmt.Errorf("values %#x (seen over [%d,%d]) and %#x (seen over [%d,%d]) were both in the register at once", a.value, a.lo, a.hi, b.value, b.lo, b.hi)
			}
			if b.hi < a.hi {
				return fmt.Errorf("value %#x lived within [%d,%d], while value %#x was in the register over [%d,%d]", b.value, b.lo, b.hi, a.value, a.lo, a.hi)
			}
		}
	}
	return h.checkZeroesLocked(zones)
}

// checkZeroesLocked finds reads of zero that nothing explains.
func (h *History) checkZeroesLocked(zones []zone) error {
	for _, o := range h.zeroes {
		for _, z := range zones {
			if z.forward && z.lo < o.invoked && o.returned < z.hi {
				return fmt.Errorf("value %#x was in the register over [%d,%d], and was not removed at [%d,%d]", z.value, z.lo, z.hi, o.invoked, o.returned)
			}
		}
	}
	for _, r := range h.zeroAt {
		for _, z := range zones {
			if z.forward && z.lo < r.invoked && r.returned < z.hi {
				return fmt.Errorf("zero was read at [%d,%d], while value %#x was in the register over [%d,%d]", r.invoked, r.returned, z.value, z.lo, z.hi)
			}
		}
		for value, w := range h.writes {
			if w.returned >= r.invoked {
				continue // concurrent or later: zero may have been read first
			}
			if !slices.ContainsFunc(h.zeroes, func(z op) bool { return z.returned > w.invoked && z.invoked < r.returned }) {
				return fmt.Errorf("zero was read at [%d,%d], after value %#x had been written by %d and nothing had removed it", r.invoked, r.returned, value, w.returned)
			}
		}
	}
	return nil
}
