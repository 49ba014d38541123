package kv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

func TestMain(m *testing.M) {
	// Badger leaves these behind when its Open fails.
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("github.com/dgraph-io/badger/v4.(*DB).monitorCache"),
		goleak.IgnoreTopFunction("github.com/dgraph-io/ristretto/v2/z.(*AllocatorPool).freeupAllocators"),
		goleak.IgnoreAnyFunction("github.com/dgraph-io/ristretto/v2.(*Cache[...]).processItems"),
		goleak.IgnoreAnyFunction("github.com/dgraph-io/ristretto/v2.(*defaultPolicy[...]).processItems"))
}

// small keeps tests quick: memtables that fill up, so that tables and compaction take part.
var small = Options{CacheBytes: 8 << 20, MemtableBytes: minMemtable}

func mustOpen(t testing.TB, dir string, opts Options) *DB {
	t.Helper()
	db, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// put commits one index that sets the given pairs; an empty value deletes.
func put(t testing.TB, db *DB, index dfs.Index, pairs ...string) {
	t.Helper()
	txn := db.Begin(index)
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			must(t, txn.Delete([]byte(pairs[i])))
		} else {
			must(t, txn.Set([]byte(pairs[i]), []byte(pairs[i+1])))
		}
	}
	must(t, txn.Commit())
}

// dump returns all pairs as of index.
func dump(t testing.TB, db *DB, index dfs.Index) map[string]string {
	t.Helper()
	txn, err := db.ReadAt(index)
	must(t, err)
	defer txn.Close()
	out := make(map[string]string)
	must(t, txn.Iterate(nil, nil, func(k, v []byte) bool {
		out[string(k)] = string(v)
		return true
	}))
	return out
}

func TestBatchIsSeenByItsWriterAtOnceAndByReadersAfterFlush(t *testing.T) {
	db := mustOpen(t, t.TempDir(), small)
	defer db.Close()
	put(t, db, 3, "a", "1", "b", "2")
	txn := db.Begin(5)
	v, ok, err := txn.Get([]byte("a"))
	must(t, err)
	if !ok || string(v) != "1" {
		t.Fatalf("writer sees a = %q, %v", v, ok)
	}
	must(t, txn.Set([]byte("a"), []byte("x")))
	must(t, txn.Delete([]byte("b")))
	if _, ok, _ := txn.Get([]byte("b")); ok {
		t.Fatal("writer sees a key that it deleted")
	}
	if db.Applied() != 0 {
		t.Fatalf("applied is %d before the flush", db.Applied())
	}
	if r, err := db.Read(); err != nil {
		t.Fatal(err)
	} else {
		if _, ok, _ := r.Get([]byte("a")); ok {
			t.Fatal("reader sees the batch before the flush")
		}
		r.Close()
	}
	must(t, txn.Commit())
	must(t, db.Flush())
	if got := dump(t, db, 3); !maps.Equal(got, map[string]string{"a": "1", "b": "2"}) {
		t.Fatalf("as of 3: %v", got)
	}
	if got := dump(t, db, 4); len(got) != 2 {
		t.Fatalf("as of 4: %v", got)
	}
	if got := dump(t, db, 5); !maps.Equal(got, map[string]string{"a": "x"}) {
		t.Fatalf("as of 5: %v", got)
	}
	if _, err := db.ReadAt(6); !errors.Is(err, dfserr.ErrUnavailable) {
		t.Fatalf("as of 6: %v", err)
	}
	if db.Keys() != 1 {
		t.Fatalf("%d keys", db.Keys())
	}
	must(t, db.VerifyHash(context.Background()))
}

func TestMisuseIsRefused(t *testing.T) {
	db := mustOpen(t, t.TempDir(), small)
	defer db.Close()
	put(t, db, 7, "a", "1")
	for _, index := range []dfs.Index{0, 6, 7} {
		if err := db.Begin(index).Commit(); !errors.Is(err, dfserr.ErrInvalid) {
			t.Errorf("commit of index %d after 7: %v", index, err)
		}
	}
	txn := db.Begin(8)
	for _, key := range []string{"", "\x00applied", strings.Repeat("k", MaxKey+1)} {
		if err := txn.Set([]byte(key), nil); !errors.Is(err, dfserr.ErrInvalid) {
			t.Errorf("set %.8q: %v", key, err)
		}
		if _, _, err := txn.Get([]byte(key)); !errors.Is(err, dfserr.ErrInvalid) {
			t.Errorf("get %.8q: %v", key, err)
		}
	}
	if err := txn.Set([]byte("a"), make([]byte, MaxValue+1)); !errors.Is(err, dfserr.ErrTooBig) {
		t.Errorf("big value: %v", err)
	}
	must(t, txn.Commit())
	if err := txn.Set([]byte("b"), nil); !errors.Is(err, dfserr.ErrInvalid) {
		t.Errorf("set after commit: %v", err)
	}
	if err := db.Err(); err != nil {
		t.Errorf("misuse poisoned the store: %v", err)
	}
}

func TestResetForgetsChangesButCommitsTheIndex(t *testing.T) {
	db := mustOpen(t, t.TempDir(), small)
	defer db.Close()
	put(t, db, 1, "a", "1")
	txn := db.Begin(2)
	must(t, txn.Set([]byte("a"), []byte("2")))
	txn.Reset()
	if v, _, _ := txn.Get([]byte("a")); string(v) != "1" {
		t.Fatalf("a = %q after Reset", v)
	}
	must(t, txn.Commit())
	must(t, db.Flush())
	if got := dump(t, db, 2); got["a"] != "1" || db.Applied() != 2 {
		t.Fatalf("%v at %d", got, db.Applied())
	}
}

// TestModel runs random batches beside a plain map and compares reads, iteration, history, the hash and what is there after a restart.
func TestModel(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { testModel(t, seed) })
	}
}

func testModel(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	dir := t.TempDir()
	db := mustOpen(t, dir, small)
	defer func() { must(t, db.Close()) }()
	model := make(map[string]string)
	history := make(map[dfs.Index]map[string]string)
	key := func() string { return fmt.Sprintf("%c/%02d", 'a'+rng.IntN(3), rng.IntN(30)) }
	index := dfs.Index(0)
	for range 60 {
		for range 1 + rng.IntN(8) {
			index += dfs.Index(1 + rng.IntN(3))
			txn := db.Begin(index)
			for range rng.IntN(6) {
				k := key()
				if rng.IntN(3) == 0 {
					must(t, txn.Delete([]byte(k)))
					delete(model, k)
				} else {
					v := strings.Repeat("v", rng.IntN(3000)) + fmt.Sprint(rng.Uint32())
					must(t, txn.Set([]byte(k), []byte(v)))
					model[k] = v
				}
				k = key()
				v, ok, err := txn.Get([]byte(k))
				must(t, err)
				if want, has := model[k]; ok != has || string(v) != want {
					t.Fatalf("index %d: %s = %.20q %v, want %.20q %v", index, k, v, ok, want, has)
				}
			}
			prefix, after := key()[:rng.IntN(3)], []byte(nil)
			if rng.IntN(2) == 0 {
				after = []byte(key())
			}
			var got []string
			must(t, txn.Iterate([]byte(prefix), after, func(k, v []byte) bool {
				if model[string(k)] != string(v) {
					t.Fatalf("iterate: %s = %.20q", k, v)
				}
				got = append(got, string(k))
				return true
			}))
			var want []string
			for k := range model {
				if strings.HasPrefix(k, prefix) && (after == nil || k > string(after)) {
					want = append(want, k)
				}
			}
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("index %d: prefix %q after %q: %v, want %v", index, prefix, after, got, want)
			}
			must(t, txn.Commit())
			history[index] = maps.Clone(model)
		}
		must(t, db.Flush())
		switch rng.IntN(8) {
		case 0:
			_, err := db.SyncTo()
			must(t, err)
		case 1:
			hash := db.Hash()
			must(t, db.Close())
			db = mustOpen(t, dir, small)
			if !db.Clean() || db.Hash() != hash || db.Applied() != index || db.Synced() != index {
				t.Fatalf("reopened: clean %v, hash %s, applied %d, synced %d", db.Clean(), db.Hash(), db.Applied(), db.Synced())
			}
		}
	}
	for at, want := range history {
		if got := dump(t, db, at); !maps.Equal(got, want) {
			t.Fatalf("as of %d: %d keys, want %d", at, len(got), len(want))
		}
	}
	if int(db.Keys()) != len(model) {
		t.Fatalf("%d keys, want %d", db.Keys(), len(model))
	}
	must(t, db.VerifyHash(context.Background()))
}

func TestHashDoesNotDependOnTheWay(t *testing.T) {
	a, b := mustOpen(t, t.TempDir(), small), mustOpen(t, t.TempDir(), small)
	defer a.Close()
	defer b.Close()
	put(t, a, 1, "x", "1", "y", "2")
	put(t, a, 2, "z", "3")
	put(t, b, 1, "z", "3", "y", "0")
	put(t, b, 2, "q", "1", "y", "2")
	put(t, b, 3, "q", "", "x", "1")
	must(t, a.Flush())
	must(t, b.Flush())
	if a.Hash() != b.Hash() || a.Hash() == (Hash{}) {
		t.Fatalf("%s and %s", a.Hash(), b.Hash())
	}
	put(t, b, 4, "x", "2")
	must(t, b.Flush())
	if a.Hash() == b.Hash() {
		t.Fatal("different states, same hash")
	}
	put(t, a, 3, "x", "", "y", "", "z", "")
	must(t, a.Flush())
	if a.Hash() != (Hash{}) || a.Keys() != 0 {
		t.Fatalf("empty state has hash %s and %d keys", a.Hash(), a.Keys())
	}
}

// TestCompactionDropsHistoryBelowTheFloorOnly fills tables with versions of the same keys, lets the floor rise, and counts what Badger still has.
func TestCompactionDropsHistoryBelowTheFloorOnly(t *testing.T) {
	db := mustOpen(t, t.TempDir(), small)
	defer db.Close()
	value := func(i, k int) string { return fmt.Sprintf("%d-%d-%s", i, k, strings.Repeat("x", 2500)) }
	write := func(from, to int) {
		for i := from; i <= to; i++ {
			var pairs []string
			for k := range 10 {
				pairs = append(pairs, fmt.Sprintf("k%d", k), value(i, k))
			}
			put(t, db, dfs.Index(i), pairs...)
			if i%100 == 0 {
				must(t, db.Flush())
			}
		}
		must(t, db.Flush())
	}
	flatten := func() {
		t.Helper()
		must(t, db.gen.bdb.Flatten(2))
	}
	write(1, 1000)
	flatten()
	before := versions(t, db, "k3")
	must(t, db.Pin(700))
	db.SetDiscard(900)
	write(1001, 1100)
	_, err := db.SyncTo()
	must(t, err)
	if got := db.Floor(); got != 700 {
		t.Fatalf("floor %d in spite of the pin at 700", got)
	}
	write(1101, 2500)
	flatten()
	mid := versions(t, db, "k3")
	if got := dump(t, db, 700)["k3"]; got != value(700, 3) {
		t.Fatalf("as of 700: %.20q", got)
	}
	if _, err := db.ReadAt(699); !errors.Is(err, dfserr.ErrNotExist) {
		t.Fatalf("as of 699: %v", err)
	}
	if err := db.Pin(699); !errors.Is(err, dfserr.ErrNotExist) {
		t.Fatalf("pin 699: %v", err)
	}
	db.Unpin(700)
	db.SetDiscard(2500)
	write(2501, 2510)
	_, err = db.SyncTo()
	must(t, err)
	write(2511, 4000)
	flatten()
	after := versions(t, db, "k3")
	t.Logf("versions of one key: %d at index 1000, %d at 2500 with floor 700, %d at 4000 with floor 2500", before, mid, after)
	if before != 1000 || mid < 1801 || mid > 2000 || after < 1501 || after > 1600 {
		t.Error("compaction does not drop what lies below the floor, and only that")
	}
	if got := dump(t, db, 2500)["k7"]; got != value(2500, 7) {
		t.Fatalf("as of 1500: %.20q", got)
	}
	must(t, db.VerifyHash(context.Background()))
}

// versions counts what Badger holds of a key.
func versions(t *testing.T, db *DB, key string) (n int) {
	txn := db.gen.bdb.NewTransactionAt(newest, false)
	defer txn.Discard()
	it := txn.NewKeyIterator([]byte(key), badgerIteratorOptions())
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		n++
	}
	return n
}

// TestOpenViewHoldsTheFloor: a view must not lose what it reads to a compaction that runs beside it.
func TestOpenViewHoldsTheFloor(t *testing.T) {
	db := mustOpen(t, t.TempDir(), small)
	defer db.Close()
	put(t, db, 1, "a", "1")
	must(t, db.Flush())
	view, err := db.Read()
	must(t, err)
	put(t, db, 2, "a", "2")
	must(t, db.Flush())
	db.SetDiscard(2)
	put(t, db, 3, "a", "3")
	must(t, db.Flush())
	_, err = db.SyncTo()
	must(t, err)
	if db.Floor() != 1 {
		t.Fatalf("floor %d below an open view", db.Floor())
	}
	must(t, db.gen.bdb.Flatten(1))
	if v, _, err := view.Get([]byte("a")); err != nil || string(v) != "1" {
		t.Fatalf("a = %q, %v", v, err)
	}
	view.Close()
	put(t, db, 4, "a", "4")
	must(t, db.Flush())
	if db.Floor() != 2 {
		t.Fatalf("floor %d after the view was closed", db.Floor())
	}
}

func TestSecondOwnerIsRefused(t *testing.T) {
	dir := t.TempDir()
	db := mustOpen(t, dir, small)
	if _, err := Open(dir, small); !errors.Is(err, dfserr.ErrInUse) {
		t.Fatalf("second open: %v", err)
	}
	must(t, db.Close())
	if _, err := db.Read(); !errors.Is(err, dfserr.ErrClosed) {
		t.Fatalf("read after close: %v", err)
	}
	must(t, mustOpen(t, dir, small).Close())
}

func TestViewGivesTheValueInPlace(t *testing.T) {
	db := mustOpen(t, t.TempDir(), small)
	defer db.Close()
	put(t, db, 1, "a", "1")
	must(t, db.Flush())
	r, err := db.Read()
	must(t, err)
	defer r.Close()
	boom := errors.New("boom")
	found, err := r.View([]byte("a"), func(v []byte) error {
		if !bytes.Equal(v, []byte("1")) {
			t.Errorf("value %q", v)
		}
		return boom
	})
	if !found || !errors.Is(err, boom) {
		t.Fatalf("%v, %v", found, err)
	}
	if found, err := r.View([]byte("b"), nil); found || err != nil {
		t.Fatalf("%v, %v", found, err)
	}
}

func TestSpace(t *testing.T) {
	free, fail := int64(10<<30), error(nil)
	s, err := NewSpace(t.TempDir(), SpaceOptions{
		MinFree: 1 << 30, Ballast: 1 << 20, Refresh: time.Nanosecond,
		Usage: func() (int64, int64, error) { return 1 << 40, free, fail },
	})
	must(t, err)
	must(t, s.Check())
	for _, c := range []struct {
		free int64
		fail error
		want error
	}{
		{1<<30 - 1, nil, dfserr.ErrNoSpace},
		{1<<30 + 1, nil, dfserr.ErrNoSpace}, // not enough to turn back
		{5 << 28, nil, nil},
		{1<<30 + 1, nil, nil},
		{10 << 30, errors.New("gone"), dfserr.ErrDiskFailed},
		{10 << 30, nil, nil},
	} {
		free, fail = c.free, c.fail
		if err := s.Check(); !errors.Is(err, c.want) {
			t.Errorf("%d free, %v: %v, want %v", c.free, c.fail, err, c.want)
		}
		if err := s.CheckAny(); !errors.Is(err, c.fail) && !errors.Is(err, dfserr.ErrDiskFailed) {
			t.Errorf("%d free, %v: deletions get %v", c.free, c.fail, err)
		}
	}
	for at, want := range map[int64]error{1 << 27: nil, 1<<27 - 1: dfserr.ErrNoSpace, 0: dfserr.ErrNoSpace} {
		free = at
		if err := s.CheckAny(); !errors.Is(err, want) {
			t.Errorf("%d free: deletions get %v, want %v", at, err, want)
		}
	}
}

func TestSortedKeys(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var s sortedKeys
	have := make(map[string]bool)
	for range 2000 {
		k := fmt.Sprintf("%05d", rng.IntN(100000))
		if !have[k] {
			have[k] = true
			s.insert(k)
		}
	}
	all := slices.Sorted(maps.Keys(have))
	if got := s.from("", ""); !slices.Equal(got, all) {
		t.Fatal("not sorted")
	}
	for range 200 {
		start := fmt.Sprintf("%05d", rng.IntN(100000))
		prefix := start[:rng.IntN(4)]
		var want []string
		for _, k := range all {
			if k >= start && strings.HasPrefix(k, prefix) {
				want = append(want, k)
			}
		}
		if got := s.from(start, prefix); !slices.Equal(got, want) {
			t.Fatalf("from %s prefix %s: %d keys, want %d", start, prefix, len(got), len(want))
		}
	}
}

// TestTooMuchForOneIndexIsRefusedInTime: what would not fit into Badger's transaction is refused before the commit, and Reset mends it.
func TestTooMuchForOneIndexIsRefusedInTime(t *testing.T) {
	for _, c := range []struct {
		name  string
		value int
		del   bool
	}{{"bytes", 64 << 10, false}, {"keys", 0, false}, {"deletions", 0, true}} {
		t.Run(c.name, func(t *testing.T) {
			db := mustOpen(t, t.TempDir(), small)
			defer db.Close()
			fill := func(index dfs.Index) int {
				txn, n := db.Begin(index), 0
				for ; ; n++ {
					key := fmt.Appendf(nil, "%08d", n)
					var err error
					if c.del {
						err = txn.Delete(key)
					} else {
						err = txn.Set(key, make([]byte, c.value))
					}
					if errors.Is(err, dfserr.ErrTooBig) {
						return n
					}
					must(t, err)
				}
			}
			n := fill(1)
			db.w.txn.Reset()
			must(t, db.w.txn.Commit())
			// One change less fits.
			put := func(index dfs.Index, del bool) {
				txn := db.Begin(index)
				for i := range n {
					key := fmt.Appendf(nil, "%08d", i)
					if del {
						must(t, txn.Delete(key))
					} else {
						must(t, txn.Set(key, make([]byte, c.value)))
					}
				}
				must(t, txn.Commit())
				must(t, db.Flush())
			}
			put(2, false)
			if c.del {
				put(3, true)
			}
			t.Logf("%d keys", n)
		})
	}
}

// TestSpaceStaleAnswer: while one caller asks the disk, another whose answer is too old waits for the new one.
func TestSpaceStaleAnswer(t *testing.T) {
	asking, answer := make(chan struct{}, 10), make(chan int64, 10)
	answer <- 1 << 40
	s, err := NewSpace(t.TempDir(), SpaceOptions{MinFree: 1000, Ballast: -1, Refresh: time.Nanosecond, Usage: func() (int64, int64, error) {
		asking <- struct{}{}
		return 1 << 40, <-answer, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	<-asking
	outcomes := make(chan error, 2)
	go func() { outcomes <- s.CheckAny() }()
	<-asking
	go func() { outcomes <- s.Check() }()
	select {
	case err := <-outcomes:
		t.Fatalf("an old answer was given: %v", err)
	case <-time.After(20 * time.Millisecond): // as good as any time: longer would only find the fault more surely
	}
	for range 3 {
		answer <- 1
	}
	for range 2 {
		if err := <-outcomes; !errors.Is(err, dfserr.ErrNoSpace) {
			t.Errorf("on a full disk: %v", err)
		}
	}
}

// TestRecentForgetsAndNeverGoesBack: its size is bounded, and what it returns is what was put last, also when an older state lies in the other half.
func TestRecentForgetsAndNeverGoesBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	r := newRecent()
	want := make(map[string]int)
	forgotten, found := 0, 0
	for n := range 40_000 {
		key := fmt.Sprintf("%04d", min(rng.IntN(6000), rng.IntN(6000)))
		if rng.IntN(2) == 0 {
			k, ok := r.get([]byte(key))
			if !ok {
				forgotten++
			} else if found++; k.gone != (want[key]%7 == 0) || !k.gone && string(k.value[:8]) != fmt.Sprintf("%08d", want[key]) {
				t.Fatalf("key %s: %v %.8s, want that of %d", key, k.gone, k.value, want[key])
			}
			continue
		}
		want[key] = n
		value := append(fmt.Appendf(nil, "%08d", n), make([]byte, rng.IntN(4096))...)
		if n%7 == 0 {
			r.put(key, known{change: change{gone: true}})
		} else {
			r.put(key, known{change: change{value: value}})
		}
		if n%100 != 0 {
			continue
		}
		held := 0
		for key, k := range r.young {
			held += len(key) + len(k.value) + knownOverhead
		}
		if held != r.bytes || held > recentBytes {
			t.Fatalf("holds %d bytes and counts %d, the bound is %d", held, r.bytes, recentBytes)
		}
	}
	if forgotten == 0 || found == 0 || r.old == nil {
		t.Fatalf("nothing was tested: %d found, %d forgotten", found, forgotten)
	}
}
