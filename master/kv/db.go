package kv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// DB is the metadata as of every index from its floor to Applied. See the package comment for who may call what.
type DB struct {
	dir   string
	opts  Options
	lock  *dirLock
	fresh bool // Open created it empty
	clean bool // Open found the mark of a clean Close

	failOnce sync.Once
	failed   atomic.Pointer[error] // set once, by fail

	visible atomic.Pointer[appliedRecord] // what readers see; replaced by Flush
	synced  atomic.Uint64                 // see Synced

	w writer // owned by the state machine's goroutine

	installMu sync.Mutex // serialises InstallSnapshot, SyncTo and Close

	mu        sync.Mutex
	gen       *generation       // current generation; nil after Close. Guarded by mu.
	pins      map[dfs.Index]int // by Pin and by open ReadTxns. Guarded by mu.
	wantFloor dfs.Index         // as asked by SetDiscard. Guarded by mu.
	promised  dfs.Index         // highest floor in any applied record; pins below it are refused. Guarded by mu.
	discard   dfs.Index         // as given to Badger; at most promised, and on disk in the SYNCED mark. Guarded by mu.
}

// generation is one Badger directory, shared by the DB and the read transactions open on it; it is closed by the last.
type generation struct {
	name string
	path string
	bdb  *badger.DB
	refs int           // Guarded by DB.mu.
	done chan struct{} // closed when refs has dropped to zero
}

// Open opens the metadata in dir, creating both when missing. Errors wrap ErrInUse when another process has it, ErrFormat for an
// unknown layout, and ErrCorrupt when the state must not be used: then Discard, Open again, and rebuild.
func Open(dir string, opts Options) (_ *DB, err error) {
	opts = opts.withDefaults()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("metadata directory %s: %w", dir, err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	db := &DB{dir: dir, opts: opts, lock: lock, pins: make(map[dfs.Index]int)}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.release())
		}
	}()
	name, err := readCurrent(dir)
	if err != nil {
		return nil, err
	}
	if name == "" {
		db.fresh = true
		if name, err = nextGeneration(dir); err != nil {
			return nil, err
		}
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("metadata directory %s: %w", dir, err)
		}
	}
	if err := removeOtherGenerations(dir, name); err != nil {
		return nil, err
	}
	gen, rec, synced, clean, err := openGeneration(filepath.Join(dir, name), opts, db.fresh)
	if err != nil {
		return nil, err
	}
	gen.refs = 1
	if db.fresh {
		if err := writeCurrent(dir, name); err != nil {
			return nil, errors.Join(err, gen.bdb.Close())
		}
	}
	db.clean = clean
	db.adopt(gen, rec, synced)
	return db, nil
}

// adopt makes gen, whose newest applied record is rec and of which synced is durable, the current generation.
func (db *DB) adopt(gen *generation, rec, synced appliedRecord) {
	db.mu.Lock()
	db.gen = gen
	db.promised = rec.floor
	db.discard = synced.floor
	db.wantFloor = max(db.wantFloor, rec.floor)
	db.mu.Unlock()
	gen.bdb.SetDiscardTs(uint64(synced.floor))
	db.synced.Store(uint64(synced.index))
	db.visible.Store(&rec)
	db.w.start(rec)
}

// Applied returns the index of the newest entry that readers see, 0 for none. Entries at or below it must not be applied again.
func (db *DB) Applied() dfs.Index { return db.visible.Load().index }

// Synced returns the index up to which the state survives a power loss, as found by Open or by the last SyncTo.
func (db *DB) Synced() dfs.Index { return dfs.Index(db.synced.Load()) }

// Hash returns the state hash at Applied.
func (db *DB) Hash() Hash { return db.visible.Load().hash }

// Keys returns the number of keys in the state at Applied.
func (db *DB) Keys() uint64 { return db.visible.Load().keys }

// State returns the applied index with the hash and the number of keys at that index.
func (db *DB) State() (index dfs.Index, hash Hash, keys uint64) {
	r := db.visible.Load()
	return r.index, r.hash, r.keys
}

// Fresh reports whether Open found nothing and made an empty state.
func (db *DB) Fresh() bool { return db.fresh }

// Clean reports whether the last user of the directory closed it. After an unclean end it is prudent to run VerifyHash in the background.
func (db *DB) Clean() bool { return db.clean || db.fresh }

// Err returns the error that poisoned the DB, or nil.
func (db *DB) Err() error {
	if p := db.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// fail poisons the DB and returns the error that did so first.
func (db *DB) fail(err error) error {
	db.failOnce.Do(func() {
		db.failed.Store(&err)
		db.opts.Logger.Error("metadata store failed", "dir", db.dir, "error", err)
		db.opts.OnFail(err)
	})
	return *db.failed.Load()
}

// acquire takes a reference to the current generation.
func (db *DB) acquire() (*generation, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.acquireLocked()
}

func (db *DB) acquireLocked() (*generation, error) {
	if err := db.Err(); err != nil {
		return nil, err
	}
	if db.gen == nil {
		return nil, dfserr.Errorf(dfserr.ErrClosed, "metadata store %s", db.dir)
	}
	db.gen.refs++
	return db.gen, nil
}

// release gives a reference back.
func (db *DB) release(g *generation) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.releaseLocked(g)
}

func (db *DB) releaseLocked(g *generation) {
	g.refs--
	if g.refs == 0 {
		close(g.done)
	}
}

// Close waits for asynchronous commits and for open ReadTxns, syncs, notes that the end was clean, and closes Badger. It must not run
// beside the writer. A poisoned DB is closed without the note.
func (db *DB) Close() error {
	db.installMu.Lock()
	defer db.installMu.Unlock()
	flushErr := db.Flush()
	db.mu.Lock()
	gen := db.gen
	db.gen = nil
	db.mu.Unlock()
	if gen == nil {
		return nil
	}
	db.w.stop()
	db.release(gen)
	<-gen.done
	if db.Err() != nil {
		return errors.Join(db.Err(), gen.bdb.Close(), db.lock.release())
	}
	err := closeGeneration(gen, *db.visible.Load())
	return errors.Join(flushErr, err, db.lock.release())
}

// SyncTo makes the state durable and returns the index up to which it now is: at least Applied at the time of the call. Readers and the writer go on
// meanwhile. An error poisons the DB, because nothing is known about durability after a failed fsync.
func (db *DB) SyncTo() (dfs.Index, error) {
	db.installMu.Lock()
	defer db.installMu.Unlock()
	gen, err := db.acquire()
	if err != nil {
		return 0, err
	}
	defer db.release(gen)
	rec := *db.visible.Load()
	if rec.index == dfs.Index(db.synced.Load()) && rec.index > 0 {
		return rec.index, nil
	}
	if err := syncGeneration(gen); err != nil {
		return 0, db.fail(err)
	}
	if err := writeMark(gen.path, syncedFile, rec); err != nil {
		return 0, db.fail(err)
	}
	db.synced.Store(uint64(rec.index))
	db.moveFloor(gen, rec)
	return rec.index, nil
}

// SetDiscard lets compaction drop the history below index; what a reader as of index or later sees stays. The floor never sinks, does not pass a Pin or what is synced, and moves
// at the SyncTo after the next commit.
func (db *DB) SetDiscard(index dfs.Index) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.wantFloor = max(db.wantFloor, index)
}

// Pin keeps the state as of index readable until Unpin; pins nest. It fails with ErrNotExist when that history is gone already. Pins live in
// memory: who needs one across a restart pins again after Open, before the first SetDiscard.
func (db *DB) Pin(index dfs.Index) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.pinLocked(index)
}

func (db *DB) pinLocked(index dfs.Index) error {
	if index < db.promised {
		return dfserr.Errorf(dfserr.ErrNotExist, "metadata as of index %d, history is kept from %d", index, db.promised)
	}
	db.pins[index]++
	return nil
}

// Unpin undoes one Pin of index.
func (db *DB) Unpin(index dfs.Index) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.unpinLocked(index)
}

func (db *DB) unpinLocked(index dfs.Index) {
	if db.pins[index]--; db.pins[index] <= 0 {
		delete(db.pins, index)
	}
}

// Floor returns the lowest index that ReadAt accepts.
func (db *DB) Floor() dfs.Index {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.promised
}

// nextFloor returns the floor that the commit of index writes down. From now on no reader gets below it.
func (db *DB) nextFloor(index dfs.Index) dfs.Index {
	db.mu.Lock()
	defer db.mu.Unlock()
	floor := min(db.wantFloor, db.visible.Load().index, index)
	for pin := range db.pins {
		floor = min(floor, pin)
	}
	db.promised = max(db.promised, floor)
	return db.promised
}

// moveFloor tells Badger of the floor in rec, which is durable now: a floor is always known on disk before history under it goes. No pin lies below it.
func (db *DB) moveFloor(gen *generation, rec appliedRecord) {
	db.mu.Lock()
	move := rec.floor > db.discard
	if move {
		db.discard = rec.floor
	}
	db.mu.Unlock()
	if move {
		gen.bdb.SetDiscardTs(uint64(rec.floor))
	}
}

// VerifyHash recomputes the hash and the number of keys at Applied by a full scan and compares them with the running ones. A difference is
// ErrCorrupt and poisons the DB.
func (db *DB) VerifyHash(ctx context.Context) error {
	txn, err := db.Read()
	if err != nil {
		return err
	}
	defer txn.Close()
	var (
		h    pairHasher
		sum  Hash
		keys uint64
	)
	err = txn.scan(ctx, nil, nil, func(k, v []byte) (bool, error) {
		sum = sum.plus(h.sum(k, v))
		keys++
		return true, nil
	})
	if err != nil {
		return err
	}
	want, err := txn.record()
	if err != nil {
		return err
	}
	if sum != want.hash || keys != want.keys {
		return db.fail(dfserr.Errorf(dfserr.ErrCorrupt, "metadata at index %d has %d keys with hash %s, expected are %d with %s", want.index, keys, sum, want.keys, want.hash))
	}
	return nil
}
