package testcluster

import (
	"fmt"
	"hash"
	"hash/fnv"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// trace is everything that a run of the simulation did, in order, with virtual time: operations and what came of them, faults, and calls between nodes.
// Two runs of a seed that did the same have the same hash.
type trace struct {
	mu    sync.Mutex
	hash  hash.Hash64 // guarded by mu
	n     int         // guarded by mu: events
	file  *os.File    // guarded by mu; nil: the events are not kept
	begun time.Time
}

// newTrace begins a trace inside the run's bubble. DFS_SIM_TRACE names a directory in which the events are kept, to see where two runs first differ.
func newTrace(t *testing.T, seed uint64) *trace {
	tr := &trace{hash: fnv.New64a(), begun: time.Now()}
	if dir := os.Getenv("DFS_SIM_TRACE"); dir != "" {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("seed-%d.trace", seed)))
		if err != nil {
			t.Fatal(err)
		}
		tr.file = f
	}
	return tr
}

// note adds an event.
func (tr *trace) note(format string, args ...any) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	line := fmt.Appendf(nil, "%v ", time.Since(tr.begun))
	line = append(fmt.Appendf(line, format, args...), '\n')
	tr.n++
	_, _ = tr.hash.Write(line) // never fails (hash.Hash)
	if tr.file != nil {
		_, _ = tr.file.Write(line) // a trace cut short shows as a difference
	}
}

// end returns the hash and the number of events.
func (tr *trace) end() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.file != nil {
		_ = tr.file.Close()
	}
	return fmt.Sprintf("%016x of %d events", tr.hash.Sum64(), tr.n)
}
