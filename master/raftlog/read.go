package raftlog

import (
	"context"
	"errors"
	"sync"

	"github.com/hashicorp/raft"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// barrier lets concurrent ReadBarrier calls share one question to the other voters.
type barrier struct {
	mu   sync.Mutex
	next *round        // the round that callers join. Guarded by mu.
	kick chan struct{} // buffered: next has its first caller
}

// round is one question and its answer.
type round struct {
	done  chan struct{} // closed when err and target are set
	index dfs.Index
	err   error
}

func (b *barrier) init() {
	b.next = &round{done: make(chan struct{})}
	b.kick = make(chan struct{}, 1)
}

// join returns the round that has not begun to ask yet.
func (b *barrier) join() *round {
	b.mu.Lock()
	r := b.next
	b.mu.Unlock()
	select {
	case b.kick <- struct{}{}:
	default:
	}
	return r
}

// take closes the round to newcomers and returns it.
func (b *barrier) take() *round {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.next
	b.next = &round{done: make(chan struct{})}
	return r
}

// ReadBarrier returns an index that has been applied here and covers everything committed before the call: a read of the state as of that index, or later, is linearizable. Errors
// wrap ErrNotLeader, ErrUnavailable, the node's failure, or ctx's.
func (n *Node) ReadBarrier(ctx context.Context) (dfs.Index, error) {
	if err := n.latch.err(); err != nil {
		return 0, err
	}
	index, ok, err := n.soleVoter()
	if err != nil {
		return 0, err
	}
	if !ok {
		r := n.barrier.join()
		select {
		case <-r.done:
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-n.ctx.Done():
			return 0, errClosed()
		}
		if r.err != nil {
			return 0, r.err
		}
		index = r.index
	}
	if err := n.fsm.applied.wait(ctx, index, n.latch.ch); err != nil {
		return 0, err
	}
	return index, nil
}

// soleVoter is the way of a node that is the only voter: it returns the commit index without asking anyone.
//
// That is linearizable: the configuration is the newest in this node's log, committed or not. Another node could lead only with votes of a majority of the
// configuration that it knows. While ours holds no other voter, any configuration that another node may act upon either precedes ours, and then includes this node in every majority it can form with a
// log as new as ours, or would have been appended here first. To vote for another, this node steps down before it answers, and then it is not Leader in the same term, which is checked
// after the commit index was read. No clock is involved.
func (n *Node) soleVoter() (dfs.Index, bool, error) {
	lead := n.leading.Load()
	if lead == nil {
		return 0, false, n.notLeading()
	}
	servers := n.raft.GetConfiguration().Configuration().Servers
	if len(servers) != 1 || servers[0].ID != raft.ServerID(n.cfg.ID) {
		return 0, false, nil
	}
	index := dfs.Index(n.raft.CommitIndex())
	if n.raft.State() != raft.Leader || n.raft.CurrentTerm() != lead.term {
		return 0, false, n.notLeading()
	}
	return lead.covers(index), true, nil
}

// covers returns what must have been applied for everything up to the commit index to be: entries that never reach the state machine (a term's first, and barriers) all lie
// at or below the leadership's barrier, which has been applied.
func (l *leadership) covers(commit dfs.Index) dfs.Index {
	if commit <= l.barrier {
		return 0
	}
	return commit
}

func (n *Node) notLeading() error {
	_, id := n.raft.LeaderWithID()
	return dfserr.Errorf(dfserr.ErrNotLeader, "master %s; leading is %q", n.cfg.ID, id)
}

// barrierLoop answers rounds one after the other; callers that come while one is out share the next.
func (n *Node) barrierLoop() {
	for {
		select {
		case <-n.barrier.kick:
		case <-n.ctx.Done():
			return
		}
		r := n.barrier.take()
		r.index, r.err = n.verify()
		close(r.done)
	}
}

// verify asks a majority whether this node leads. The commit index is read before: what was committed by the time the round began is at or below it.
func (n *Node) verify() (dfs.Index, error) {
	lead := n.leading.Load()
	if lead == nil {
		return 0, n.notLeading()
	}
	index := dfs.Index(n.raft.CommitIndex())
	err := n.raft.VerifyLeader().Error()
	if err == nil && n.raft.CurrentTerm() != lead.term {
		err = raft.ErrNotLeader
	}
	if errors.Is(err, raft.ErrLeadershipLost) || errors.Is(err, raft.ErrNotLeader) {
		return 0, n.notLeading()
	}
	if err != nil {
		return 0, n.translate(err)
	}
	return lead.covers(index), nil
}
