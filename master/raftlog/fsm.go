package raftlog

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// stateMachine stands between Raft and the caller's state machine: it opens envelopes, skips what has been applied, tells waiters how far apply is, and applies nothing behind a closed latch. Its
// methods run on Raft's state machine goroutine.
type stateMachine struct {
	cfg     Config
	latch   *latch
	snaps   *snapshotStore
	applied progress
}

var (
	_ raft.BatchingFSM        = (*stateMachine)(nil)
	_ raft.ConfigurationStore = (*stateMachine)(nil)
)

// ApplyBatch applies committed entries and returns one result for each. An error among the caller's results closes the latch: the state lacks that entry. Behind the latch, and for one that was applied in an earlier life, the result is an error or nil: nobody waits for it.
func (m *stateMachine) ApplyBatch(logs []*raft.Log) []any {
	results := make([]any, len(logs))
	if err := m.latch.err(); err != nil {
		for i := range results {
			results[i] = err
		}
		return results
	}
	done := m.cfg.State.Applied()
	batch := make([]*raft.Log, 0, len(logs))
	at := make([]int, 0, len(logs))
	for i, l := range logs {
		if l.Type != raft.LogCommand || dfs.Index(l.Index) <= done {
			continue
		}
		opened, err := unsealLog(l)
		if err != nil {
			err = m.latch.fail(err)
			for j := i; j < len(logs); j++ {
				results[j] = err
			}
			logs = logs[:i]
			break
		}
		batch = append(batch, opened)
		at = append(at, i)
	}
	if len(batch) > 0 {
		answers := m.cfg.FSM.ApplyBatch(batch)
		if len(answers) != len(batch) {
			err := m.latch.fail(dfserr.Errorf(dfserr.ErrInvalid, "state machine gave %d results for %d entries", len(answers), len(batch)))
			for i := range results {
				results[i] = err
			}
			return results
		}
		for i, a := range answers {
			results[at[i]] = a
			if err, failed := a.(error); failed && m.latch.err() == nil {
				// The state lacks this entry: it must not count as applied, nor anything after it.
				_ = m.latch.fail(dfserr.Errorf(err, "state machine failed at index %d", batch[i].Index))
				logs = logs[:at[i]]
			}
		}
	}
	if len(logs) > 0 {
		m.applied.advance(dfs.Index(logs[len(logs)-1].Index))
	}
	return results
}

// Apply applies one entry.
func (m *stateMachine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// StoreConfiguration lets Raft send configurations here, so that they count as progress. They are kept by Raft.
func (m *stateMachine) StoreConfiguration(uint64, raft.Configuration) {}

// Snapshot notes the state as of now. It runs between batches, so the state's index is exact; the pin holds it until Persist is done.
func (m *stateMachine) Snapshot() (raft.FSMSnapshot, error) {
	if err := m.latch.err(); err != nil {
		return nil, err
	}
	index := m.cfg.State.Applied()
	if err := m.cfg.State.Pin(index); err != nil {
		return nil, err
	}
	return &localSnapshot{fsm: m, index: index}, nil
}

// Restore replaces the state by a snapshot from the leader.
func (m *stateMachine) Restore(r io.ReadCloser) error {
	if err := m.latch.err(); err != nil {
		return errors.Join(err, r.Close())
	}
	rec, ok := m.snaps.newest()
	if !ok {
		return errors.Join(dfserr.Errorf(dfserr.ErrInvalid, "restore without a snapshot"), r.Close())
	}
	if err := m.cfg.FSM.Restore(r); err != nil {
		if m.cfg.State.Applied() < rec.state {
			return errors.Join(err, m.snaps.dropReceived()) // the old state is untouched, the leader sends again
		}
		return m.latch.fail(err)
	}
	if got := m.cfg.State.Applied(); got > rec.state {
		return m.latch.fail(dfserr.Errorf(dfserr.ErrCorrupt, "snapshot of index %d brought state %d", rec.index, got))
	}
	if err := m.snaps.settle(); err != nil {
		return m.latch.fail(err)
	}
	m.applied.advance(dfs.Index(rec.index))
	return nil
}

// progress is an index that grows and can be waited for. Safe for concurrent use.
type progress struct {
	mu    sync.Mutex
	index dfs.Index     // Guarded by mu.
	grown chan struct{} // closed at the next advance; nil when nobody waits. Guarded by mu.
}

func (p *progress) init(index dfs.Index) { p.advance(index) }

func (p *progress) get() dfs.Index {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.index
}

func (p *progress) advance(to dfs.Index) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.index = max(p.index, to)
	if p.grown != nil {
		close(p.grown)
		p.grown = nil
	}
}

// wait returns when the index has reached target, ctx has ended, or stop is closed.
func (p *progress) wait(ctx context.Context, target dfs.Index, stop <-chan struct{}) error {
	for {
		p.mu.Lock()
		if p.index >= target {
			p.mu.Unlock()
			return nil
		}
		if p.grown == nil {
			p.grown = make(chan struct{})
		}
		grown := p.grown
		p.mu.Unlock()
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		case <-stop:
			return dfserr.Errorf(dfserr.ErrUnavailable, "master has failed or is closing")
		}
	}
}
