package kv

import "dfs/internal/dfserr"

// Abandon makes the DB behave as if its process had died at this moment: every later call fails, and Close, which must follow, leaves no mark
// of a clean end.
func (db *DB) Abandon() {
	_ = db.fail(dfserr.Errorf(dfserr.ErrClosed, "metadata store %s was abandoned", db.dir))
}
