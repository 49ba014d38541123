package raftlog

import (
	"context"

	"github.com/hashicorp/raft"

	"dfs/internal/dfs"
)

// leadershipLoop follows Raft's changes of leadership. A new leader first commits and applies an entry of its own term; only then does it know what is committed, and only then does it count as leading.
func (n *Node) leadershipLoop() {
	end := func() {} // stops the OnLead that runs and waits for it
	defer func() { end() }()
	for {
		select {
		case leads := <-n.notify:
			n.setLeading(nil)
			end()
			end = func() {}
			if !leads {
				continue
			}
			lead := n.catchUp()
			if lead == nil {
				continue // a notice that the lead was lost follows
			}
			n.setLeading(lead)
			if n.cfg.OnLead != nil {
				end = n.startOnLead()
			}
		case <-n.ctx.Done():
			n.setLeading(nil)
			return
		}
	}
}

// startOnLead runs Config.OnLead and returns how to end it.
func (n *Node) startOnLead() (end func()) {
	ctx, cancel := context.WithCancel(n.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.cfg.OnLead(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// catchUp commits a barrier and waits until it has been applied. nil means that the lead was lost.
func (n *Node) catchUp() *leadership {
	term := n.raft.CurrentTerm()
	f := n.raft.Barrier(0)
	if err := f.Error(); err != nil {
		n.cfg.Logger.Warn("lost the lead before catching up", "error", err)
		return nil
	}
	at, ok := f.(raft.IndexFuture)
	if !ok || n.raft.CurrentTerm() != term {
		return nil
	}
	return &leadership{term: term, barrier: dfs.Index(at.Index())}
}

func (n *Node) setLeading(l *leadership) {
	n.leading.Store(l)
	n.leaderMu.Lock()
	defer n.leaderMu.Unlock()
	close(n.leaderCh)
	n.leaderCh = make(chan struct{})
}

// IsLeader reports whether this node leads and has caught up. It may be outdated on return; ReadBarrier and Propose make sure.
func (n *Node) IsLeader() bool {
	lead := n.leading.Load()
	return lead != nil && n.raft.State() == raft.Leader && n.raft.CurrentTerm() == lead.term && n.latch.err() == nil
}

// Leader returns the address and the id of the leading master as far as this node knows, "" for unknown.
func (n *Node) Leader() (addr, id string) {
	a, i := n.raft.LeaderWithID()
	return string(a), string(i)
}

// LeaderAddr returns the address of Leader.
func (n *Node) LeaderAddr() string {
	addr, _ := n.Leader()
	return addr
}

// WaitLeader returns when this node leads and has caught up. The error is ctx's or the node's failure.
func (n *Node) WaitLeader(ctx context.Context) error {
	for {
		n.leaderMu.Lock()
		changed := n.leaderCh
		n.leaderMu.Unlock()
		if n.IsLeader() {
			return nil
		}
		select {
		case <-changed:
		case <-n.latch.ch:
			return n.latch.err()
		case <-ctx.Done():
			return ctx.Err()
		case <-n.ctx.Done():
			return errClosed()
		}
	}
}
