package kv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"

	"dfs/internal/dfserr"
)

// openGeneration opens the Badger directory path and checks that it lost nothing it must not lose. It returns the newest applied record, the one that survives
// a power loss, and whether the end of the last use was clean. Errors wrap ErrCorrupt, except those of an ailing disk.
func openGeneration(path string, opts Options, fresh bool) (_ *generation, rec, synced appliedRecord, clean bool, err error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, rec, synced, false, dfserr.Errorf(dfserr.ErrCorrupt, "metadata generation %s is missing", path)
	}
	left, clean, err := readMark(path, cleanFile)
	if err != nil {
		return nil, rec, synced, false, err
	}
	synced, _, err = readMark(path, syncedFile)
	if err != nil {
		return nil, rec, synced, false, err
	}
	if clean {
		if err := errors.Join(os.Remove(filepath.Join(path, cleanFile)), syncPath(path)); err != nil {
			return nil, rec, synced, false, fmt.Errorf("metadata generation: %w", err)
		}
	}
	bdb, err := openBadger(path, opts)
	if err != nil {
		return nil, rec, synced, false, dfserr.Errorf(dfserr.ErrCorrupt, "open metadata generation %s: %v", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, bdb.Close())
		}
	}()
	rec, err = checkRecords(bdb, synced)
	if err != nil {
		return nil, rec, synced, false, err
	}
	if clean && rec != left {
		return nil, rec, synced, false, dfserr.Errorf(dfserr.ErrCorrupt, "metadata generation %s was closed at index %d and comes back at index %d", path, left.index, rec.index)
	}
	if !fresh && !clean && rec.index == 0 && synced.index > 0 {
		return nil, rec, synced, false, dfserr.Errorf(dfserr.ErrCorrupt, "metadata generation %s is empty", path)
	}
	return &generation{name: filepath.Base(path), path: path, bdb: bdb, done: make(chan struct{})}, rec, synced, clean, nil
}

// openBadger verifies the tables in path and opens Badger there.
func openBadger(path string, opts Options) (bdb *badger.DB, err error) {
	o := opts.badger(path)
	if err := verifyTables(path, o); err != nil {
		return nil, err
	}
	err = guard(func() (err error) {
		bdb, err = badger.OpenManaged(o)
		return err
	})
	return bdb, err
}

// checkRecords walks the applied records from the newest back to the synced one, or to where history was discarded, and requires that none is missing. A
// transaction is kept or lost as a whole, so a record that is there vouches for the changes of its index.
func checkRecords(bdb *badger.DB, synced appliedRecord) (newestRec appliedRecord, err error) {
	txn := bdb.NewTransactionAt(newest, false)
	defer txn.Discard()
	it := txn.NewKeyIterator(appliedKey, badger.IteratorOptions{})
	defer it.Close()
	stop := synced.index
	var above appliedRecord // the record after the one looked at
	for it.Rewind(); it.Valid(); it.Next() {
		rec, err := itemRecord(it.Item())
		if err != nil {
			return newestRec, err
		}
		if newestRec.index == 0 {
			newestRec = rec
			stop = max(stop, rec.floor)
			if rec.index < synced.index {
				return newestRec, dfserr.Errorf(dfserr.ErrCorrupt, "metadata comes back at index %d, index %d was synced", rec.index, synced.index)
			}
		} else if above.prev != rec.index {
			return newestRec, dfserr.Errorf(dfserr.ErrCorrupt, "metadata lost index %d: the one before %d is %d", above.prev, above.index, rec.index)
		}
		if rec.index == synced.index && rec != synced {
			return newestRec, dfserr.Errorf(dfserr.ErrCorrupt, "metadata at index %d has hash %s, synced was %s", rec.index, rec.hash, synced.hash)
		}
		above = rec
		if rec.index <= stop {
			return newestRec, nil
		}
	}
	switch {
	case newestRec.index == 0 && synced.index > 0:
		return newestRec, dfserr.Errorf(dfserr.ErrCorrupt, "metadata comes back empty, index %d was synced", synced.index)
	case above.prev > 0 && above.prev > stop:
		return newestRec, dfserr.Errorf(dfserr.ErrCorrupt, "metadata lost index %d, the one before %d", above.prev, above.index)
	case above.prev > 0 && above.prev == synced.index:
		return newestRec, dfserr.Errorf(dfserr.ErrCorrupt, "metadata lost index %d, which was synced", above.prev)
	}
	return newestRec, nil
}

// syncGeneration makes everything written to Badger so far durable. Badger's own Sync covers the active memtable only, so the write-ahead files of those
// waiting to be flushed are synced here; a file that vanishes meanwhile has become a table, which Badger syncs before it removes the file.
func syncGeneration(g *generation) error {
	if err := g.bdb.Sync(); err != nil {
		return dfserr.Errorf(dfserr.ErrDiskFailed, "sync metadata: %v", err)
	}
	files, err := filepath.Glob(filepath.Join(g.path, "*.mem"))
	if err != nil {
		return fmt.Errorf("sync metadata: %w", err)
	}
	for _, f := range append(files, g.path) {
		if err := syncPath(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return dfserr.Errorf(dfserr.ErrDiskFailed, "sync metadata: %v", err)
		}
	}
	return nil
}

// closeGeneration closes Badger, which moves everything to tables, and leaves the marks of a clean end.
func closeGeneration(g *generation, rec appliedRecord) error {
	if err := g.bdb.Close(); err != nil {
		return dfserr.Errorf(dfserr.ErrDiskFailed, "close metadata: %v", err)
	}
	entries, err := os.ReadDir(g.path)
	if err != nil {
		return fmt.Errorf("close metadata: %w", err)
	}
	for _, e := range entries {
		if err := syncPath(filepath.Join(g.path, e.Name())); err != nil {
			return fmt.Errorf("close metadata: %w", err)
		}
	}
	if rec.index > 0 {
		if err := writeMark(g.path, syncedFile, rec); err != nil {
			return fmt.Errorf("close metadata: %w", err)
		}
	}
	if err := writeMark(g.path, cleanFile, rec); err != nil {
		return fmt.Errorf("close metadata: %w", err)
	}
	return nil
}
