package raftlog

import "dfs/internal/dfserr"

// Abandon makes the node behave as if its process had died at this moment: nothing more is written, acknowledged or sent, and
// Close, which must follow, leaves no mark of a clean end.
func (n *Node) Abandon() {
	_ = n.latch.fail(dfserr.Errorf(dfserr.ErrClosed, "master %s was killed", n.cfg.ID))
}
