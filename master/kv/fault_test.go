package kv

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

func badgerIteratorOptions() badger.IteratorOptions { return badger.IteratorOptions{} }

// fill writes n indexes of a few hundred bytes each.
func fill(t testing.TB, db *DB, from, n int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		put(t, db, dfs.Index(i), fmt.Sprintf("k%04d", i%97), fmt.Sprintf("%d-%s", i, strings.Repeat("v", 300)))
	}
	must(t, db.Flush())
}

// killed copies the directory of an open DB, as a process that was killed leaves it.
func killed(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	must(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

// files returns the files of the live generation that match a pattern.
func files(t testing.TB, dir, pattern string) []string {
	t.Helper()
	name, err := readCurrent(dir)
	must(t, err)
	out, err := filepath.Glob(filepath.Join(dir, name, pattern))
	must(t, err)
	return out
}

func TestKilledProcessComesBackWithEverything(t *testing.T) {
	dir := t.TempDir()
	db := mustOpen(t, dir, small)
	defer db.Close()
	fill(t, db, 1, 30000)
	if _, err := db.SyncTo(); err != nil {
		t.Fatal(err)
	}
	fill(t, db, 30001, 500)
	again := mustOpen(t, killed(t, dir), small)
	defer again.Close()
	if again.Clean() || again.Applied() != 30500 || again.Synced() != 30000 || again.Hash() != db.Hash() {
		t.Fatalf("clean %v, applied %d, synced %d", again.Clean(), again.Applied(), again.Synced())
	}
	must(t, again.VerifyHash(context.Background()))
}

// TestShortWAL cuts the write-ahead file: what is lost was not synced, so the DB opens at an older index, with the state of that index.
func TestShortWAL(t *testing.T) {
	dir := t.TempDir()
	db := mustOpen(t, dir, Options{CacheBytes: 8 << 20, MemtableBytes: minMemtable})
	defer db.Close()
	fill(t, db, 1, 200)
	_, err := db.SyncTo()
	must(t, err)
	fill(t, db, 201, 600)
	damaged := killed(t, dir)
	mem := files(t, damaged, "*.mem")
	if len(mem) != 1 {
		t.Fatalf("%d write-ahead files", len(mem))
	}
	flipped := false
	b, err := os.ReadFile(mem[0])
	must(t, err)
	if at := bytes.LastIndex(b, []byte("500-vvv")); at > 0 { // the value of index 500
		b[at] ^= 0x10
		flipped = true
	}
	must(t, os.WriteFile(mem[0], b, 0o600))
	if !flipped {
		t.Fatal("the fault was not injected")
	}
	again := mustOpen(t, damaged, Options{CacheBytes: 8 << 20, MemtableBytes: minMemtable})
	defer again.Close()
	if again.Applied() != 499 {
		t.Fatalf("applied is %d", again.Applied())
	}
	must(t, again.VerifyHash(context.Background()))
	if got, want := dump(t, again, 499), dump(t, db, 499); !maps.Equal(got, want) {
		t.Fatal("not the state of that index")
	}
	// The log is replayed from there and gives the same state.
	fill(t, again, 500, 301)
	if again.Hash() != db.Hash() {
		t.Fatal("hash differs after the replay")
	}
}

// TestSyncedLossIsCorrupt cuts below what was synced.
func TestSyncedLossIsCorrupt(t *testing.T) {
	dir := t.TempDir()
	db := mustOpen(t, dir, Options{CacheBytes: 8 << 20, MemtableBytes: minMemtable})
	defer db.Close()
	fill(t, db, 1, 600)
	_, err := db.SyncTo()
	must(t, err)
	damaged := killed(t, dir)
	mem := files(t, damaged, "*.mem")
	b, err := os.ReadFile(mem[0])
	must(t, err)
	at := bytes.LastIndex(b, []byte("500-vvv"))
	if at < 0 {
		t.Fatal("the fault was not injected")
	}
	b[at] ^= 0x10
	must(t, os.WriteFile(mem[0], b, 0o600))
	if _, err := Open(damaged, small); !errors.Is(err, dfserr.ErrCorrupt) {
		t.Fatalf("open: %v", err)
	}
	// The way out: discard and begin empty.
	must(t, Discard(damaged))
	again := mustOpen(t, damaged, small)
	defer again.Close()
	if !again.Fresh() || again.Applied() != 0 {
		t.Fatalf("fresh %v, applied %d", again.Fresh(), again.Applied())
	}
	if _, err := os.Stat(filepath.Join(damaged, corruptName)); err != nil {
		t.Fatal("the discarded state was not set aside")
	}
}

// TestHoleBetweenMemtablesIsFound loses the older of two write-ahead files, as a power loss may, which Badger itself does not notice.
func TestHoleBetweenMemtablesIsFound(t *testing.T) {
	dir := t.TempDir()
	opts := Options{CacheBytes: 8 << 20, MemtableBytes: minMemtable}
	db := mustOpen(t, dir, opts)
	fill(t, db, 1, 400)
	// Close flushes the memtable into a table; the records after it go into a second memtable.
	must(t, db.Close())
	db = mustOpen(t, dir, opts)
	defer db.Close()
	fill(t, db, 401, 100)
	damaged := killed(t, dir)
	txn := db.gen.bdb.NewTransactionAt(newest, true)
	txn.Discard()
	// Build the hole directly: a generation whose records 401…450 are missing.
	name, err := readCurrent(damaged)
	must(t, err)
	bdb, err := badger.OpenManaged(small.withDefaults().badger(filepath.Join(damaged, name)))
	must(t, err)
	rec := appliedRecord{index: 700, prev: 650, hash: Hash{1, 2}}
	hole := bdb.NewTransactionAt(newest, true)
	must(t, hole.Set(appliedKey, seal(appliedKey, rec.encode())))
	must(t, hole.CommitAt(700, nil))
	must(t, bdb.Close())
	if _, err := Open(damaged, opts); !errors.Is(err, dfserr.ErrCorrupt) || !strings.Contains(err.Error(), "lost index 650") {
		t.Fatalf("open: %v", err)
	}
}

// TestFlippedBits flips one bit at many places of every file of a killed and of a closed DB. The DB must refuse to open, or come back with a state that once was, verified by its hash.
func TestFlippedBits(t *testing.T) {
	for _, clean := range []bool{true, false} {
		t.Run(fmt.Sprintf("clean=%v", clean), func(t *testing.T) {
			dir := t.TempDir()
			opts := Options{CacheBytes: 4 << 20, MemtableBytes: minMemtable}
			db := mustOpen(t, dir, opts)
			hashes := map[dfs.Index]Hash{0: {}}
			for i := 1; i <= 4000; i++ {
				put(t, db, dfs.Index(i), fmt.Sprintf("k%04d", i%97), fmt.Sprintf("%d-%s", i, strings.Repeat("v", 3000)))
				hashes[dfs.Index(i)] = db.w.last.hash
				if i == 3000 { // so that there are tables as well as a write-ahead file
					must(t, db.Close())
					db = mustOpen(t, dir, opts)
				}
			}
			must(t, db.Flush())
			_, err := db.SyncTo()
			must(t, err)
			if clean {
				must(t, db.Close())
			} else {
				defer db.Close()
			}
			base := killed(t, dir)
			var names []string
			must(t, filepath.WalkDir(base, func(p string, d os.DirEntry, err error) error {
				if err == nil && !d.IsDir() && d.Name() != ownerFile && d.Name() != "LOCK" {
					rel, _ := filepath.Rel(base, p)
					names = append(names, rel)
				}
				return err
			}))
			outcome := make(map[string]int)
			kinds := make(map[string]bool)
			for _, name := range names {
				b, err := os.ReadFile(filepath.Join(base, name))
				must(t, err)
				used := len(bytes.TrimRight(b, "\x00"))
				kind := strings.TrimLeft(filepath.Ext(name), ".")
				if kind == "" {
					kind = filepath.Base(name)
				}
				for i := range 4 {
					if used == 0 {
						continue
					}
					kinds[kind] = true
					at := used * (2*i + 1) / 8
					damaged := killed(t, base)
					c := bytes.Clone(b)
					c[at] ^= 1 << (i * 2)
					must(t, os.WriteFile(filepath.Join(damaged, name), c, 0o600))
					outcome[kind+" "+openDamaged(t, damaged, opts, hashes, name, at)]++
				}
			}
			for _, kind := range []string{"sst", "MANIFEST", "SYNCED", "CURRENT"} {
				if !kinds[kind] {
					t.Errorf("no %s file was damaged", kind)
				}
			}
			if !clean && !kinds["mem"] {
				t.Error("no write-ahead file was damaged")
			}
			t.Log(outcome)
		})
	}
}

// openDamaged opens a damaged directory and judges what comes back.
func openDamaged(t *testing.T, dir string, opts Options, hashes map[dfs.Index]Hash, name string, at int) string {
	t.Helper()
	db, err := Open(dir, opts)
	if err != nil {
		if dfserr.Sentinel(err) == nil {
			t.Errorf("%s at %d: %v", name, at, err)
		}
		return "refused"
	}
	defer db.Close()
	want, known := hashes[db.Applied()]
	if !known || want != db.Hash() {
		t.Errorf("%s at %d: came back at index %d with hash %s", name, at, db.Applied(), db.Hash())
	}
	if err := db.VerifyHash(context.Background()); err != nil {
		if !errors.Is(err, dfserr.ErrCorrupt) {
			t.Errorf("%s at %d: verify: %v", name, at, err)
		}
		return "found by VerifyHash"
	}
	if db.Applied() < 4000 {
		return "older state"
	}
	return "no effect"
}

// TestBadValuePoisons plants a value with a bad envelope below the API.
func TestBadValuePoisons(t *testing.T) {
	var failures []error
	opts := small
	opts.OnFail = func(err error) { failures = append(failures, err) }
	db := mustOpen(t, t.TempDir(), opts)
	defer db.Close()
	put(t, db, 1, "a", "1", "b", "2")
	must(t, db.Flush())
	bad := seal([]byte("a"), []byte("2")) // right, but for another key
	txn := db.gen.bdb.NewTransactionAt(newest, true)
	must(t, txn.Set([]byte("b"), bad))
	must(t, txn.CommitAt(1, nil))
	r, err := db.Read()
	must(t, err)
	defer r.Close()
	if _, _, err := r.Get([]byte("b")); !errors.Is(err, dfserr.ErrCorrupt) {
		t.Fatalf("get: %v", err)
	}
	if len(failures) != 1 || db.Err() == nil {
		t.Fatalf("told of %d failures", len(failures))
	}
	if _, err := db.Read(); !errors.Is(err, dfserr.ErrCorrupt) {
		t.Fatalf("read after: %v", err)
	}
	if err := db.Begin(2).Commit(); !errors.Is(err, dfserr.ErrCorrupt) {
		t.Fatalf("commit after: %v", err)
	}
}

// TestWrongStateIsFoundByItsHash changes a value below the API, with a right envelope.
func TestWrongStateIsFoundByItsHash(t *testing.T) {
	db := mustOpen(t, t.TempDir(), small)
	defer db.Close()
	put(t, db, 1, "a", "1", "b", "2")
	must(t, db.Flush())
	txn := db.gen.bdb.NewTransactionAt(newest, true)
	must(t, txn.Set([]byte("b"), seal([]byte("b"), []byte("3"))))
	must(t, txn.CommitAt(1, nil))
	if err := db.VerifyHash(context.Background()); !errors.Is(err, dfserr.ErrCorrupt) {
		t.Fatalf("verify: %v", err)
	}
}

func TestGoldenBytes(t *testing.T) {
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"envelope", seal([]byte("k"), []byte("value")), "01415878ee76616c7565"},
		{"applied record", seal(appliedKey, appliedRecord{index: 9, prev: 7, floor: 3, keys: 2, hash: Hash{0x11, 0x22}}.encode()), "01b4c8164f00000000000000070000000000000003000000000000000200000000000000110000000000000022"},
		{"CURRENT", withSum([]byte(currentMagic + " gen-0000000000000001")), "6466736b76637572312067656e2d30303030303030303030303030303031e9557612"},
		{"snapshot info", SnapshotInfo{Cluster: 1, Index: 2, Keys: 3, Hash: Hash{4, 5}}.encode(), "00000000000000010000000000000002000000000000000300000000000000040000000000000005"},
		{"pair hash", new(pairHasher).sum([]byte("k"), []byte("v")).Bytes(), "dcebe451747903d86e81a0c6769287a2"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
