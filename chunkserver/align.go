package chunkserver

import (
	"cmp"

	"dfs/internal/dfs"
)

// epoch says that the mutations of version begin at first.
type epoch struct {
	version dfs.Version
	first   dfs.Seq
}

// logEnd is what must be known of a replica's log to compare it with another's.
type logEnd struct {
	exists bool
	last   dfs.Seq // of the last mutation; 0: none
	base   dfs.Seq // single mutations are kept only after this one
	epochs []epoch // ascending by version and by first; some may hold no mutation
}

// versionAt returns the version of mutation s, and the first mutation of its epoch. s must be in the log.
func (l logEnd) versionAt(s dfs.Seq) (dfs.Version, dfs.Seq) {
	for i := len(l.epochs) - 1; i >= 0; i-- {
		if l.epochs[i].first <= s {
			return l.epochs[i].version, l.epochs[i].first
		}
	}
	return 0, 1
}

// lastVersion returns the version of the last mutation, 0 when there is none.
func (l logEnd) lastVersion() dfs.Version {
	if l.last == 0 {
		return 0
	}
	v, _ := l.versionAt(l.last)
	return v
}

// compareLogs orders logs by how much they hold: by the version of the last mutation, then by its seq. Logs that compare equal
// are equal, because one primary orders all mutations of a version (PacificA §3; Raft §5.4.1 compares likewise).
func compareLogs(a, b logEnd) int {
	return cmp.Or(cmp.Compare(a.lastVersion(), b.lastVersion()), cmp.Compare(a.last, b.last))
}

// commonPrefix returns the highest seq up to which both logs hold the same mutations: those with equal
// version and seq are the same, and so is everything before them.
func commonPrefix(a, b logEnd) dfs.Seq {
	s := min(a.last, b.last)
	for s > 0 {
		va, fa := a.versionAt(s)
		vb, fb := b.versionAt(s)
		switch {
		case va == vb:
			return s
		case va > vb:
			s = fa - 1
		default:
			s = fb - 1
		}
	}
	return 0
}

// copyPlan says how target becomes a copy of source: what it keeps, and whether it must take everything anew
// because one of the two no longer has single mutations from there on.
func copyPlan(source, target logEnd) (keep dfs.Seq, whole bool) {
	if !target.exists {
		return 0, true
	}
	keep = commonPrefix(source, target)
	return keep, keep < target.base || keep < source.base
}
