package kv

import (
	"bytes"
	"errors"
	"slices"
	"sync"

	"github.com/dgraph-io/badger/v4"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// maxOverlayBytes bounds the changes of a batch held in memory; a Commit beyond it flushes.
const maxOverlayBytes = 8 << 20

// writer is the state of the writing goroutine.
type writer struct {
	last     appliedRecord // newest committed, flushed or not
	pending  *overlay      // changes committed since the last Flush
	recent   *recent       // what was read or committed last
	hasher   pairHasher
	txn      *Txn        // reused
	base     *badger.Txn // reads of what is not in the overlays; nil until needed, dropped by Flush
	gen      *generation
	inFlight sync.WaitGroup
	err      firstError
}

// firstError keeps the first error given to it. Safe for concurrent use.
type firstError struct {
	mu  sync.Mutex
	err error
}

func (f *firstError) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

func (f *firstError) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (w *writer) start(rec appliedRecord) {
	w.last = rec
	w.pending = newOverlay()
	w.recent = newRecent()
	w.txn = &Txn{own: newOverlay()}
}

func (w *writer) stop() {
	if w.base != nil {
		w.base.Discard()
		w.base = nil
	}
}

// Txn is the changes of one index. Its methods see the changes made through it and by the earlier indexes of the batch. It belongs to the
// writer's goroutine and is valid until Commit or the next Begin.
type Txn struct {
	db    *DB
	index dfs.Index
	own   *overlay // this index's changes
	err   error
}

// Begin starts the changes of an index, which must be above every earlier one. An error (misuse, or a poisoned DB) shows at the first use of the Txn.
func (db *DB) Begin(index dfs.Index) *Txn {
	t := db.w.txn
	t.db, t.index, t.err = db, index, db.Err()
	t.own.reset()
	if t.err == nil && index <= db.w.last.index {
		t.err = dfserr.Errorf(dfserr.ErrInvalid, "begin index %d after index %d", index, db.w.last.index)
	}
	return t
}

// Index returns the index given to Begin.
func (t *Txn) Index() dfs.Index { return t.index }

// checkKey keeps callers out of the internal keys and within the limits.
func checkKey(key []byte) error {
	if len(key) == 0 || len(key) > MaxKey || key[0] == internalPrefix {
		return dfserr.Errorf(dfserr.ErrInvalid, "key %.64q of %d bytes", key, len(key))
	}
	return nil
}

// Get returns the value of key and whether it exists. The slice must not be modified; it stays valid. Errors wrap ErrCorrupt or are those of a poisoned DB.
func (t *Txn) Get(key []byte) ([]byte, bool, error) {
	if t.err != nil {
		return nil, false, t.err
	}
	if err := checkKey(key); err != nil {
		return nil, false, err
	}
	c, err := t.lookup(key)
	return c.value, !c.gone && err == nil, err
}

// lookup returns the newest state of key: own changes, then as committed.
func (t *Txn) lookup(key []byte) (change, error) {
	if c, ok := t.own.get(key); ok {
		return c, nil
	}
	k, err := t.db.committed(key)
	if err != nil {
		return change{}, t.db.fail(err)
	}
	return k.change, nil
}

// committed returns the state of key after the newest commit. Badger may not have the batch's commits yet, and recent may have forgotten them: the overlay has
// them all.
func (db *DB) committed(key []byte) (known, error) {
	w := &db.w
	if k, ok := w.recent.get(key); ok {
		return k, nil
	}
	if c, ok := w.pending.get(key); ok {
		return known{change: c}, nil
	}
	base, err := db.base()
	if err != nil {
		return known{}, err
	}
	value, found, err := getCopy(base, key)
	if err != nil {
		return known{}, err
	}
	k := known{change: change{value: value, gone: !found}}
	w.recent.put(string(key), k)
	return k, nil
}

// Set gives key a value. Both slices belong to the Txn from here on and must not be modified. ErrTooBig: the value alone, or the changes of the
// index together, are more than one transaction may hold; the Txn then goes on only with Reset.
func (t *Txn) Set(key, value []byte) error {
	if len(value) > MaxValue {
		return dfserr.Errorf(dfserr.ErrTooBig, "value of key %.64q is %d bytes long, the limit is %d", key, len(value), MaxValue)
	}
	if value == nil {
		value = []byte{}
	}
	return t.change(key, change{value: value})
}

// Delete removes key, which need not exist. ErrTooBig as for Set.
func (t *Txn) Delete(key []byte) error { return t.change(key, change{gone: true}) }

func (t *Txn) change(key []byte, c change) error {
	if t.err != nil {
		return t.err
	}
	if err := checkKey(key); err != nil {
		return err
	}
	t.own.put(string(key), c)
	if t.own.bytes > t.db.opts.txnBytes() {
		return dfserr.Errorf(dfserr.ErrTooBig, "changes of index %d: %d keys with %d bytes, the limit is %d bytes", t.index, t.Changes(), t.own.bytes, t.db.opts.txnBytes())
	}
	return nil
}

// Reset forgets the changes made through t, as when a command fails half way or is too big. Commit must still follow.
func (t *Txn) Reset() { t.own.reset() }

// Changes returns how many keys t has changed.
func (t *Txn) Changes() int { return len(t.own.changes) }

// Iterate calls fn with each key that has the prefix and, when after is not nil, is above after, in ascending order, until fn returns false. The slices are valid during the
// call only and must not be modified. fn must not change t.
func (t *Txn) Iterate(prefix, after []byte, fn func(key, value []byte) bool) error {
	if t.err != nil {
		return t.err
	}
	base, err := t.db.base()
	if err != nil {
		return err
	}
	start := lowerBound(prefix, after)
	if err := iterate(base, start, prefix, t.overlaid(start, prefix), fn); err != nil {
		return t.db.fail(err)
	}
	return nil
}

// lowerBound returns the lowest key that may follow after and has the prefix.
func lowerBound(prefix, after []byte) []byte {
	if after == nil || bytes.Compare(after, prefix) < 0 {
		return prefix
	}
	return append(slices.Clip(slices.Clone(after)), 0)
}

// overlaid returns the overlay changes with the prefix that are not below start, in key order, own changes before the batch's.
func (t *Txn) overlaid(start, prefix []byte) []overlaidKey {
	own := t.own.from(string(start), string(prefix))
	batch := t.db.w.pending.from(string(start), string(prefix))
	out := make([]overlaidKey, 0, len(own)+len(batch))
	for len(own) > 0 || len(batch) > 0 {
		switch {
		case len(batch) == 0 || (len(own) > 0 && own[0] < batch[0]):
			out = append(out, overlaidKey{own[0], t.own.changes[own[0]]})
			own = own[1:]
		case len(own) > 0 && own[0] == batch[0]:
			out = append(out, overlaidKey{own[0], t.own.changes[own[0]]})
			own, batch = own[1:], batch[1:]
		default:
			out = append(out, overlaidKey{batch[0], t.db.w.pending.changes[batch[0]]})
			batch = batch[1:]
		}
	}
	return out
}

// overlaidKey is a key with its newest change.
type overlaidKey struct {
	key string
	change
}

// base returns a transaction that reads the newest state in Badger. It may see in-flight commits of the batch, which the overlay hides.
func (db *DB) base() (*badger.Txn, error) {
	if db.w.base == nil {
		db.mu.Lock()
		gen := db.gen
		db.mu.Unlock()
		if gen == nil {
			return nil, dfserr.Errorf(dfserr.ErrClosed, "metadata store %s", db.dir)
		}
		db.w.gen = gen
		db.w.base = gen.bdb.NewTransactionAt(newest, false)
	}
	return db.w.base, nil
}

// Commit hands the changes, the index and the new state hash to Badger as one transaction and returns without waiting for it. Every index begun must be committed, also
// without changes. An error poisons the DB.
func (t *Txn) Commit() error {
	if t.err != nil {
		return t.err
	}
	if err := t.commit(); err != nil {
		t.err = t.db.fail(err)
		return t.err
	}
	t.err = dfserr.Errorf(dfserr.ErrInvalid, "use of index %d after its commit", t.index)
	if t.db.w.pending.bytes > maxOverlayBytes {
		return t.db.Flush()
	}
	return nil
}

func (t *Txn) commit() error {
	db, w := t.db, &t.db.w
	if err := w.err.get(); err != nil {
		return err
	}
	if _, err := db.base(); err != nil {
		return err
	}
	rec := appliedRecord{index: t.index, prev: w.last.index, floor: db.nextFloor(t.index), keys: w.last.keys, hash: w.last.hash}
	btxn := w.gen.bdb.NewTransactionAt(newest, true)
	defer btxn.Discard()
	for key, c := range t.own.changes {
		k := []byte(key)
		before, err := db.committed(k)
		if err != nil {
			return err
		}
		if !before.gone && !c.gone && bytes.Equal(before.value, c.value) {
			continue
		}
		if !before.gone {
			if !before.summed {
				before.sum = w.hasher.sum(k, before.value)
			}
			rec.hash = rec.hash.minus(before.sum)
			rec.keys--
		}
		after := known{change: c}
		switch {
		case !c.gone:
			after.sum, after.summed = w.hasher.sum(k, c.value), true
			rec.hash = rec.hash.plus(after.sum)
			rec.keys++
			err = btxn.SetEntry(badger.NewEntry(k, seal(k, c.value)))
		case !before.gone:
			err = btxn.Delete(k)
		}
		if err != nil {
			return batchError(t.index, err)
		}
		w.recent.put(key, after)
	}
	if err := btxn.SetEntry(badger.NewEntry(appliedKey, seal(appliedKey, rec.encode()))); err != nil {
		return batchError(t.index, err)
	}
	w.inFlight.Add(1)
	err := btxn.CommitAt(uint64(t.index), func(err error) {
		if err != nil {
			w.err.set(batchError(t.index, err))
		}
		w.inFlight.Done()
	})
	if err != nil {
		w.inFlight.Done()
		return batchError(t.index, err)
	}
	for key, c := range t.own.changes {
		w.pending.put(key, c)
	}
	w.last = rec
	return nil
}

func batchError(index dfs.Index, err error) error {
	if errors.Is(err, badger.ErrTxnTooBig) {
		return dfserr.Errorf(dfserr.ErrTooBig, "changes of index %d", index)
	}
	return dfserr.Errorf(dfserr.ErrDiskFailed, "commit index %d: %v", index, err)
}

// Flush waits for the commits of the batch and then shows them to readers, all at once. An error poisons the DB.
func (db *DB) Flush() error {
	w := &db.w
	w.inFlight.Wait()
	if err := db.Err(); err != nil {
		return err
	}
	if err := w.err.get(); err != nil {
		return db.fail(err)
	}
	if w.last.index != db.visible.Load().index {
		rec := w.last
		db.visible.Store(&rec)
	}
	w.pending.reset()
	if w.base != nil {
		w.base.Discard()
		w.base = nil
	}
	return nil
}
