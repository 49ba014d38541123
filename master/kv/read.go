package kv

import (
	"bytes"
	"context"
	"errors"
	"math"

	"github.com/dgraph-io/badger/v4"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// newest is a read timestamp above every index.
const newest = math.MaxUint64

// ReadTxn is the state as of one index. It must be closed; a DB's Close and InstallSnapshot wait for it. It is safe for concurrent use.
type ReadTxn struct {
	db    *DB
	gen   *generation
	txn   *badger.Txn
	index dfs.Index
}

// Read returns a view of the state at Applied.
func (db *DB) Read() (*ReadTxn, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.viewLocked(db.visible.Load().index)
}

// ReadAt returns a view of the state as of index: after the entries at or below it, before those above. Errors wrap ErrNotExist when that
// history has been discarded, ErrUnavailable when index is not applied yet.
func (db *DB) ReadAt(index dfs.Index) (*ReadTxn, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if applied := db.visible.Load().index; index > applied {
		return nil, dfserr.Errorf(dfserr.ErrUnavailable, "metadata as of index %d, applied is %d", index, applied)
	}
	return db.viewLocked(index)
}

// viewLocked opens a view. It holds the floor down like a pin: compaction beside it must not take what it will read.
func (db *DB) viewLocked(index dfs.Index) (*ReadTxn, error) {
	gen, err := db.acquireLocked()
	if err != nil {
		return nil, err
	}
	if err := db.pinLocked(index); err != nil {
		db.releaseLocked(gen)
		return nil, err
	}
	return &ReadTxn{db: db, gen: gen, txn: gen.bdb.NewTransactionAt(uint64(index), false), index: index}, nil
}

// Index returns the index that the view is as of.
func (r *ReadTxn) Index() dfs.Index { return r.index }

// Close ends the view. It must be called once, after all other calls have returned.
func (r *ReadTxn) Close() {
	r.txn.Discard()
	r.db.mu.Lock()
	defer r.db.mu.Unlock()
	r.db.unpinLocked(r.index)
	r.db.releaseLocked(r.gen)
}

// Get returns a copy of the value of key and whether it exists. ErrCorrupt poisons the DB.
func (r *ReadTxn) Get(key []byte) ([]byte, bool, error) {
	if err := checkKey(key); err != nil {
		return nil, false, err
	}
	value, found, err := getCopy(r.txn, key)
	if err != nil {
		return nil, false, r.db.fail(err)
	}
	return value, found, nil
}

// View calls fn with the value of key, if it exists, and reports whether it did. The slice is valid during the call only and must not be
// modified. The error is fn's, or as of Get.
func (r *ReadTxn) View(key []byte, fn func(value []byte) error) (bool, error) {
	if err := checkKey(key); err != nil {
		return false, err
	}
	item, err := r.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return false, nil
	}
	if err != nil {
		return false, r.db.fail(readError(key, err))
	}
	var fnErr error
	err = item.Value(func(stored []byte) error {
		value, err := unseal(key, stored)
		if err == nil {
			fnErr = fn(value)
		}
		return err
	})
	if err != nil {
		return false, r.db.fail(readError(key, err))
	}
	return true, fnErr
}

// Iterate calls fn with each key that has the prefix and, when after is not nil, is above after, in ascending order, until fn returns false. The slices are valid during the
// call only and must not be modified. ErrCorrupt poisons the DB.
func (r *ReadTxn) Iterate(prefix, after []byte, fn func(key, value []byte) bool) error {
	if err := iterate(r.txn, lowerBound(prefix, after), prefix, nil, fn); err != nil {
		return r.db.fail(err)
	}
	return nil
}

// scan is Iterate with a context, checked now and then, and an error from fn. Those two do not poison.
func (r *ReadTxn) scan(ctx context.Context, prefix, after []byte, fn func(key, value []byte) (bool, error)) error {
	var (
		n     int
		fnErr error
	)
	err := r.Iterate(prefix, after, func(k, v []byte) bool {
		if n++; n%1024 == 0 {
			if fnErr = ctx.Err(); fnErr != nil {
				return false
			}
		}
		var more bool
		more, fnErr = fn(k, v)
		return more && fnErr == nil
	})
	return errors.Join(err, fnErr)
}

// record returns the newest applied record that the view sees.
func (r *ReadTxn) record() (appliedRecord, error) {
	rec, err := readRecord(r.txn)
	if err != nil {
		return appliedRecord{}, r.db.fail(err)
	}
	return rec, nil
}

// readRecord returns the newest applied record that txn sees, zero for none.
func readRecord(txn *badger.Txn) (appliedRecord, error) {
	item, err := txn.Get(appliedKey)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return appliedRecord{}, nil
	}
	if err != nil {
		return appliedRecord{}, readError(appliedKey, err)
	}
	return itemRecord(item)
}

// itemRecord decodes one version of the applied record.
func itemRecord(item *badger.Item) (rec appliedRecord, err error) {
	err = item.Value(func(stored []byte) error {
		value, err := unseal(appliedKey, stored)
		if err != nil {
			return err
		}
		rec, err = decodeApplied(dfs.Index(item.Version()), value)
		return err
	})
	if err != nil {
		return appliedRecord{}, readError(appliedKey, err)
	}
	return rec, nil
}

// readError gives an error of Badger's our sentinel; its own ones say so little that all are taken for a damaged state.
func readError(key []byte, err error) error {
	if dfserr.Sentinel(err) != nil {
		return err
	}
	return dfserr.Errorf(dfserr.ErrCorrupt, "read key %q: %v", key, err)
}

// getCopy reads and verifies one value.
func getCopy(txn *badger.Txn, key []byte) ([]byte, bool, error) {
	item, err := txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, readError(key, err)
	}
	var out []byte
	err = item.Value(func(stored []byte) error {
		value, err := unseal(key, stored)
		out = append(make([]byte, 0, len(value)), value...)
		return err
	})
	if err != nil {
		return nil, false, readError(key, err)
	}
	return out, true, nil
}

// iterate merges the keys of txn that have the prefix and are not below start with over, whose changes win, and calls fn in key order. over is
// ascending and within the same bounds.
func iterate(txn *badger.Txn, start, prefix []byte, over []overlaidKey, fn func(key, value []byte) bool) error {
	if len(start) == 0 {
		start = []byte{internalPrefix + 1}
	}
	opts := badger.DefaultIteratorOptions
	opts.Prefix = prefix
	opts.PrefetchValues = false // values lie beside the keys in the LSM tree: nothing to fetch ahead
	it := txn.NewIterator(opts)
	defer it.Close()
	emit := func(o overlaidKey) bool { return o.gone || fn([]byte(o.key), o.value) }
	for it.Seek(start); it.Valid(); it.Next() {
		item := it.Item()
		key := item.Key()
		if key[0] == internalPrefix {
			continue
		}
		for len(over) > 0 && over[0].key < string(key) {
			if !emit(over[0]) {
				return nil
			}
			over = over[1:]
		}
		if len(over) > 0 && over[0].key == string(key) {
			if !emit(over[0]) {
				return nil
			}
			over = over[1:]
			continue
		}
		more := true
		err := item.Value(func(stored []byte) error {
			value, err := unseal(key, stored)
			if err == nil {
				more = fn(key, value)
			}
			return err
		})
		if err != nil {
			return readError(bytes.Clone(key), err)
		}
		if !more {
			return nil
		}
	}
	for _, o := range over {
		if !emit(o) {
			return nil
		}
	}
	return nil
}
