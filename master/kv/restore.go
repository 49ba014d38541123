package kv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"

	"dfs/internal/dfserr"
)

// Restore makes the state in dir that of a snapshot stream; an existing state is replaced, atomically, once the new one has been verified and is durable. The directory must not be
// open. Errors wrap ErrCorrupt or ErrFormat for a bad stream, ErrWrongCluster for another cluster's; the old state is then untouched.
func Restore(ctx context.Context, dir string, opts Options, r io.Reader) (SnapshotInfo, error) {
	opts = opts.withDefaults()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return SnapshotInfo{}, fmt.Errorf("metadata directory %s: %w", dir, err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return SnapshotInfo{}, err
	}
	info, name, err := buildGeneration(ctx, dir, opts, r)
	if err == nil {
		err = writeCurrent(dir, name)
	}
	if err == nil {
		err = removeOtherGenerations(dir, name)
	}
	return info, errors.Join(err, lock.release())
}

// InstallSnapshot replaces the state of an open DB by that of a snapshot stream, atomically. It belongs to the writer's goroutine, between batches. Views opened before
// keep the old state, and InstallSnapshot waits until they are closed before it removes that state. Errors are as of Restore.
func (db *DB) InstallSnapshot(ctx context.Context, r io.Reader) error {
	if err := db.Flush(); err != nil {
		return err
	}
	db.installMu.Lock()
	defer db.installMu.Unlock()
	_, name, err := buildGeneration(ctx, db.dir, db.opts, r)
	if err != nil {
		return err
	}
	gen, rec, synced, _, err := openGeneration(filepath.Join(db.dir, name), db.opts, false)
	if err != nil {
		return db.fail(err)
	}
	gen.refs = 1
	if err := writeCurrent(db.dir, name); err != nil {
		return db.fail(errors.Join(err, gen.bdb.Close()))
	}
	db.w.stop()
	db.mu.Lock()
	old := db.gen
	db.mu.Unlock()
	db.adopt(gen, rec, synced)
	db.release(old)
	<-old.done
	if err := errors.Join(old.bdb.Close(), os.RemoveAll(old.path)); err != nil {
		return db.fail(fmt.Errorf("remove the replaced metadata: %w", err))
	}
	return nil
}

// buildGeneration makes a new generation out of a snapshot stream: verified, durable, closed, and not yet current.
func buildGeneration(ctx context.Context, dir string, opts Options, r io.Reader) (info SnapshotInfo, name string, err error) {
	if name, err = nextGeneration(dir); err != nil {
		return info, "", err
	}
	path := filepath.Join(dir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		return info, "", fmt.Errorf("restore metadata: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(path))
		}
	}()
	bdb, err := openBadger(path, opts)
	if err != nil {
		return info, "", dfserr.Errorf(dfserr.ErrDiskFailed, "restore metadata: %v", err)
	}
	info, rec, err := fillGeneration(ctx, bdb, opts, r)
	if err != nil {
		return info, "", errors.Join(err, bdb.Close())
	}
	if err := closeGeneration(&generation{path: path, bdb: bdb}, rec); err != nil {
		return info, "", err
	}
	if err := syncPath(dir); err != nil {
		return info, "", err
	}
	// What will be served is what comes back from the disk, so that is what is compared with the stream.
	gen, rec, _, _, err := openGeneration(path, opts, false)
	if err != nil {
		return info, "", err
	}
	err = verifyGeneration(ctx, gen, rec)
	if err = errors.Join(err, closeGeneration(gen, rec)); err != nil {
		return info, "", err
	}
	return info, name, nil
}

// fillGeneration writes the pairs of a stream, all as of the stream's index.
func fillGeneration(ctx context.Context, bdb *badger.DB, opts Options, r io.Reader) (SnapshotInfo, appliedRecord, error) {
	var batch *badger.WriteBatch
	defer func() {
		if batch != nil {
			batch.Cancel()
		}
	}()
	begin := func(info SnapshotInfo) error {
		if opts.Cluster != 0 && info.Cluster != 0 && info.Cluster != opts.Cluster {
			return dfserr.Errorf(dfserr.ErrWrongCluster, "snapshot of cluster %s, this is %s", info.Cluster, opts.Cluster)
		}
		if info.Index == 0 {
			return dfserr.Errorf(dfserr.ErrCorrupt, "snapshot with keys as of index 0")
		}
		batch = bdb.NewWriteBatchAt(uint64(info.Index))
		return nil
	}
	info, err := ReadSnapshot(ctx, r, func(info SnapshotInfo, key, value []byte) error {
		if batch == nil {
			if err := begin(info); err != nil {
				return err
			}
		}
		k := bytes.Clone(key)
		if err := batch.SetEntry(badger.NewEntry(k, seal(k, value))); err != nil {
			return dfserr.Errorf(dfserr.ErrDiskFailed, "restore metadata: %v", err)
		}
		return nil
	})
	if err != nil {
		return info, appliedRecord{}, err
	}
	rec := appliedRecord{index: info.Index, floor: info.Index, keys: info.Keys, hash: info.Hash}
	if info.Index == 0 {
		return info, appliedRecord{}, nil
	}
	if batch == nil {
		if err := begin(info); err != nil {
			return info, rec, err
		}
	}
	err = batch.SetEntry(badger.NewEntry(appliedKey, seal(appliedKey, rec.encode())))
	if err == nil {
		err = batch.Flush()
	}
	if err != nil {
		return info, rec, dfserr.Errorf(dfserr.ErrDiskFailed, "restore metadata: %v", err)
	}
	return info, rec, nil
}

// verifyGeneration compares a generation with its applied record by a full scan.
func verifyGeneration(ctx context.Context, gen *generation, rec appliedRecord) error {
	txn := gen.bdb.NewTransactionAt(newest, false)
	defer txn.Discard()
	var (
		h    pairHasher
		sum  Hash
		keys uint64
	)
	err := iterate(txn, nil, nil, nil, func(k, v []byte) bool {
		sum = sum.plus(h.sum(k, v))
		keys++
		return keys%1024 != 0 || ctx.Err() == nil
	})
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if sum != rec.hash || keys != rec.keys {
		return dfserr.Errorf(dfserr.ErrCorrupt, "restored metadata has %d keys with hash %s, expected are %d with %s", keys, sum, rec.keys, rec.hash)
	}
	return nil
}
