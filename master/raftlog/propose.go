package raftlog

import (
	"context"
	"errors"

	"github.com/hashicorp/raft"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// proposal is one call of Propose.
type proposal struct {
	data []byte
	done chan outcome // buffered
}

// outcome is what became of a proposal.
type outcome struct {
	value any
	index dfs.Index
	err   error
}

// proposed is a proposal that Raft has taken.
type proposed struct {
	p *proposal
	f raft.ApplyFuture
}

// Propose appends data, at most MaxEntry bytes, to the log and returns what the state machine answered and the entry's index. On return without an error the entry is committed: durable on a
// majority and applied here. Many callers at once share the fsyncs. Data is not kept.
//
// ErrNotLeader, ErrTooBig, and what Config.Admit returned mean that nothing was done. ErrUnavailable, ErrDiskFailed, and the error of ctx mean that the entry may or may not
// be committed later; a caller that tries again makes the command recognisable to the state machine.
func (n *Node) Propose(ctx context.Context, data []byte) (any, dfs.Index, error) {
	if len(data) > MaxEntry {
		return nil, 0, dfserr.Errorf(dfserr.ErrTooBig, "command of %d bytes, the limit is %d", len(data), MaxEntry)
	}
	if err := n.latch.err(); err != nil {
		return nil, 0, err
	}
	if err := n.cfg.Admit(); err != nil {
		return nil, 0, err
	}
	p := &proposal{data: seal(data), done: make(chan outcome, 1)}
	select {
	case n.proposals <- p:
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	case <-n.intake.Done():
		return nil, 0, errClosed()
	}
	select {
	case o := <-p.done:
		return o.value, o.index, o.err
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	case <-n.latch.ch:
		return nil, 0, n.latch.err()
	case <-n.ctx.Done():
		return nil, 0, errClosed()
	}
}

func errClosed() error { return dfserr.Errorf(dfserr.ErrUnavailable, "master is closing") }

// propose hands proposals to Raft, in order, until the intake ends.
func (n *Node) propose() {
	defer close(n.inFlight)
	for {
		select {
		case p := <-n.proposals:
			n.inFlight <- proposed{p, n.raft.Apply(p.data, 0)}
		case <-n.intake.Done():
			return // what is still queued sees n.ctx end
		}
	}
}

// complete waits for what Raft has taken, in order: entries are applied in order, so nothing waits behind something slower. Raft answers every
// proposal while it runs, and forgets some when it is shut down, so shut waits for this loop first.
func (n *Node) complete() {
	for in := range n.inFlight {
		in.p.done <- n.outcome(in.f)
	}
}

// outcome waits for one entry. Nothing is acknowledged behind a closed latch.
func (n *Node) outcome(f raft.ApplyFuture) outcome {
	err := f.Error()
	if failed := n.latch.err(); failed != nil {
		return outcome{err: failed}
	}
	if err != nil {
		return outcome{err: n.translate(err)}
	}
	return outcome{value: f.Response(), index: dfs.Index(f.Index())}
}

// translate gives an error of Raft's our sentinel.
func (n *Node) translate(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return dfserr.Errorf(dfserr.ErrNotLeader, "master %s", n.cfg.ID)
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrAbortedByRestore):
		return dfserr.Errorf(dfserr.ErrUnavailable, "master %s lost the lead before the outcome was known", n.cfg.ID)
	case errors.Is(err, raft.ErrRaftShutdown):
		return errClosed()
	}
	return dfserr.Errorf(dfserr.ErrUnavailable, "raft: %v", err)
}
