package kv

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"

	"dfs/internal/dfs"
)

// BenchmarkApply is the path of a create: three new keys and one changed, of a few hundred bytes, in batches of 256 indexes.
func BenchmarkApply(b *testing.B) {
	db := mustOpen(b, b.TempDir(), Options{})
	defer db.Close()
	value := make([]byte, 150)
	b.ReportAllocs()
	n := dfs.Index(0)
	for b.Loop() {
		n++
		txn := db.Begin(n)
		dir := key("i/", uint64(n%100))
		if _, _, err := txn.Get(dir); err != nil {
			b.Fatal(err)
		}
		binary.BigEndian.PutUint64(value, uint64(n))
		for _, k := range [][]byte{key("i/", uint64(n)<<8), append(key("d/", uint64(n%100)), key("/name", uint64(n))...), key("r/", uint64(n%4096)), dir} {
			if err := txn.Set(k, append([]byte(nil), value...)); err != nil {
				b.Fatal(err)
			}
		}
		if err := txn.Commit(); err != nil {
			b.Fatal(err)
		}
		if n%256 == 0 {
			must(b, db.Flush())
		}
	}
	must(b, db.Flush())
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "entries/s")
}

func key(prefix string, n uint64) []byte { return binary.BigEndian.AppendUint64([]byte(prefix), n) }

// BenchmarkGet reads keys of a state of 200,000.
func BenchmarkGet(b *testing.B) {
	db := mustOpen(b, b.TempDir(), Options{})
	defer db.Close()
	const keys = 200_000
	load(b, db, keys)
	view, err := db.Read()
	must(b, err)
	defer view.Close()
	b.Run("copy", func(b *testing.B) {
		b.ReportAllocs()
		for i := uint64(0); b.Loop(); i++ {
			if _, ok, err := view.Get(key("i/", i*7919%keys)); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
	b.Run("view", func(b *testing.B) {
		b.ReportAllocs()
		for i := uint64(0); b.Loop(); i++ {
			if ok, err := view.View(key("i/", i*7919%keys), func([]byte) error { return nil }); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
	b.Run("page of 1000", func(b *testing.B) {
		b.ReportAllocs()
		for i := uint64(0); b.Loop(); i++ {
			n := 0
			err := view.Iterate([]byte("i/"), key("i/", i*7919%(keys-2000)), func([]byte, []byte) bool {
				n++
				return n < 1000
			})
			if err != nil || n != 1000 {
				b.Fatal(n, err)
			}
		}
	})
	b.Run("verify hash", func(b *testing.B) {
		for b.Loop() {
			must(b, db.VerifyHash(context.Background()))
		}
		b.ReportMetric(float64(keys*b.N)/b.Elapsed().Seconds(), "keys/s")
	})
}

func load(b testing.TB, db *DB, keys uint64) {
	value := make([]byte, 150)
	for i := uint64(0); i < keys; i++ {
		txn := db.Begin(dfs.Index(i + 1))
		binary.BigEndian.PutUint64(value, i)
		must(b, txn.Set(key("i/", i), append([]byte(nil), value...)))
		must(b, txn.Commit())
		if i%1000 == 999 {
			must(b, db.Flush())
		}
	}
	must(b, db.Flush())
}

// TestMemory makes a state like that of a million files and reports what the process holds. It runs on request: go test -run TestMemory -memory.
func TestMemory(t *testing.T) {
	if testing.Short() || !*memoryTest {
		t.Skip("needs -memory")
	}
	db := mustOpen(t, t.TempDir(), Options{})
	defer db.Close()
	load(t, db, 3_000_000)
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	t.Logf("3,000,000 keys: heap %d MiB, from the system %d MiB", m.HeapAlloc>>20, m.Sys>>20)
	t.Log(fmt.Sprint(rss(t)))
}
