package raftlog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/hashicorp/raft"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// wayOut is what an operator can do when what is on disk does not lead to the current state.
const wayOut = "to go on, empty this master's directories and let it rejoin from the other masters, or restore a backup"

// checkEnd compares the log with the mark of the last clean close, if there was one, and removes the mark.
func (n *Node) checkEnd() error {
	last, chain := n.log.tail()
	if n.stable.empty() && last > 0 {
		return dfserr.Errorf(dfserr.ErrCorrupt, "raft log has entries up to %d but file %s is missing; %s", last, path.Join(n.cfg.Dir, stableFile), wayOut)
	}
	wantLast, wantChain, found, err := n.stable.takeEnd()
	if err != nil || !found {
		return err
	}
	if last != wantLast || chain != wantChain {
		return dfserr.Errorf(dfserr.ErrCorrupt, "raft log was closed at entry %d and comes back with entry %d; %s", wantLast, last, wayOut)
	}
	return nil
}

// recover brings the state up to the newest snapshot record, which is where Raft goes on, and removes what of the log contradicts it.
func (n *Node) recover(ctx context.Context) error {
	if err := n.takeReceived(ctx); err != nil {
		return err
	}
	rec, hasRec := n.snaps.newest()
	first, _ := n.log.FirstIndex()
	last, _ := n.log.LastIndex()
	applied := n.cfg.State.Applied()
	switch {
	case uint64(applied) > max(last, rec.index):
		return dfserr.Errorf(dfserr.ErrCorrupt, "state is at index %d but the raft log ends at %d: acknowledged entries are missing; %s", applied, max(last, rec.index), wayOut)
	case !hasRec && first > 1:
		return dfserr.Errorf(dfserr.ErrCorrupt, "raft log begins at entry %d but there is no snapshot record in %s; %s", first, n.snaps.dir, wayOut)
	case hasRec && last > 0 && first > rec.index+1:
		return dfserr.Errorf(dfserr.ErrCorrupt, "raft log begins at entry %d, the newest snapshot is of index %d; %s", first, rec.index, wayOut)
	}
	if !hasRec {
		return n.finishRecovery()
	}
	if last > 0 && last < rec.index {
		// A snapshot from the leader replaced a log that ended before it; Raft was about to empty that log.
		if err := n.log.DeleteRange(first, last); err != nil {
			return err
		}
		first, last = 0, 0
	}
	if applied < rec.state {
		if err := n.rebuild(ctx, rec, first, last); err != nil {
			return err
		}
	}
	if err := n.snaps.settle(); err != nil {
		return err
	}
	return n.finishRecovery()
}

func (n *Node) finishRecovery() error {
	rec, _ := n.snaps.newest()
	n.fsm.applied.advance(max(n.cfg.State.Applied(), dfs.Index(rec.index)))
	return n.latch.err()
}

// takeReceived loads a snapshot from the leader that the state did not get before the last end. One that is damaged is dropped, like one that never arrived.
func (n *Node) takeReceived(ctx context.Context) error {
	rec, ok := n.snaps.newest()
	if !ok || !rec.received || n.cfg.State.Applied() >= rec.state {
		return nil
	}
	r, err := n.snaps.openReceived(rec)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // settled before: the state has lost it since, see rebuild
	}
	if err != nil {
		return err
	}
	if err := n.cfg.FSM.Restore(readCloser{&ctxReader{ctx, r}, r}); err != nil {
		if ctx.Err() != nil || !errors.Is(err, dfserr.ErrCorrupt) && !errors.Is(err, dfserr.ErrFormat) || n.cfg.State.Applied() >= rec.state {
			return err
		}
		n.cfg.Logger.Warn("dropping a damaged snapshot from the leader", "index", rec.index, "error", err)
		return n.snaps.dropReceived()
	}
	return nil
}

// rebuild is the way back when the state has lost what a snapshot record says it has: from the log alone, or from a checkpoint and the log.
func (n *Node) rebuild(ctx context.Context, rec record, first, last uint64) error {
	applied := n.cfg.State.Applied()
	reaches := func(from dfs.Index) bool { return first > 0 && first <= uint64(from)+1 && last >= rec.index }
	n.cfg.Logger.Warn("the state lacks entries that a snapshot covers, rebuilding it", "applied", applied, "snapshot", rec.state)
	if !reaches(applied) {
		ckpt := n.snaps.checkpointOnDisk()
		if ckpt == 0 || ckpt <= applied || !(reaches(ckpt) || ckpt >= rec.state) {
			return dfserr.Errorf(dfserr.ErrCorrupt, "state is at index %d, the snapshot needs %d, the raft log begins at %d, and the checkpoint is of index %d (0: none); %s",
				applied, rec.state, first, ckpt, wayOut)
		}
		_, r, err := n.snaps.openCheckpoint(ctx)
		if err != nil {
			return fmt.Errorf("rebuild the state: %w; %s", err, wayOut)
		}
		if err := n.cfg.FSM.Restore(readCloser{&ctxReader{ctx, r}, r}); err != nil {
			return fmt.Errorf("rebuild the state from the checkpoint of index %d: %w", ckpt, err)
		}
		if got := n.cfg.State.Applied(); got != ckpt {
			return dfserr.Errorf(dfserr.ErrCorrupt, "checkpoint of index %d brought state %d", ckpt, got)
		}
	}
	// All entries up to the record are committed: a snapshot is only taken of what is.
	for from := uint64(n.cfg.State.Applied()) + 1; from <= rec.index; {
		if err := ctx.Err(); err != nil {
			return err
		}
		to := min(rec.index, from+maxAppendEntries-1)
		logs := make([]*raft.Log, 0, to-from+1)
		for i := from; i <= to; i++ {
			l := new(raft.Log)
			if err := n.log.GetLog(i, l); err != nil {
				return fmt.Errorf("rebuild the state: log entry %d: %w", i, err)
			}
			if l.Type == raft.LogCommand {
				logs = append(logs, l)
			}
		}
		n.fsm.ApplyBatch(logs)
		if err := n.latch.err(); err != nil {
			return err
		}
		from = to + 1
	}
	if got := n.cfg.State.Applied(); got != rec.state {
		return dfserr.Errorf(dfserr.ErrCorrupt, "the rebuilt state is at index %d, want %d", got, rec.state)
	}
	return nil
}

// bootstrap makes a group of this node alone, if nothing is stored yet. A crash half way through leaves a term without a log, which is as good as nothing.
func (n *Node) bootstrap(conf *raft.Config) error {
	last, _ := n.log.LastIndex()
	if _, has := n.snaps.newest(); last > 0 || has {
		return nil
	}
	if applied := n.cfg.State.Applied(); applied > 0 {
		return dfserr.Errorf(dfserr.ErrCorrupt, "bootstrap: the state is at index %d but there is no raft log; %s", applied, wayOut)
	}
	if err := n.stable.reset(); err != nil {
		return err
	}
	err := raft.BootstrapCluster(conf, n.log, n.stable, n.snaps, n.trans, raft.Configuration{Servers: []raft.Server{
		{Suffrage: raft.Voter, ID: raft.ServerID(n.cfg.ID), Address: n.trans.LocalAddr()},
	}})
	if failed := n.latch.err(); failed != nil {
		return failed
	}
	if err != nil {
		return fmt.Errorf("raftlog: bootstrap: %w", err)
	}
	return nil
}
