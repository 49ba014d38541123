package store

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"dfs/internal/dfs"
	"dfs/internal/vfs"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files in testdata")

// golden compares got with a file in testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(path, got, 0o644))
		return
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs from what is written; a change of format needs a new format version (run with -rewrite to see it)\ngot:\n%s", path, got)
	}
}

// goldenLog writes a small log with one record of every kind that a file may hold, and a footer.
func goldenLog(t *testing.T, fsys vfs.FS) {
	s := openStore(t, fsys, testOptions())
	r, err := s.Create(testChunk, 5)
	must(t, err)
	m := write(4_090, []byte("sixteen bytes...")) // cut by a block boundary
	m.Writer, m.Request = 0x77, 1
	next(t, r, m)
	must(t, r.Sync())
	must(t, r.SetCommitted(1))
	must(t, r.Compact(t.Context()))
	must(t, r.SetVersion(6))
	next(t, r, &Mutation{Kind: KindZero, Off: 4_092, Len: 2, Writer: 0x77, Request: 2})
	next(t, r, &Mutation{Kind: KindTruncate, Off: 4_100, CutVersion: 6})
	next(t, r, write(0, []byte("gone")))
	must(t, r.DropAfter(3))
	next(t, r, write(4_098, []byte("kept")))
	must(t, s.Close())
}

// TestGoldenFormat pins every byte of a log file, of the identity file and of a stream.
func TestGoldenFormat(t *testing.T) {
	fsys := formatted(t, vfs.NewMem())
	goldenLog(t, fsys)
	file, err := vfs.ReadFile(fsys, chunkFile(testChunk), dfs.MiB)
	must(t, err)
	golden(t, "replica.hex", []byte(hex.Dump(file)))
	identity, err := vfs.ReadFile(fsys, identityFile, dfs.MiB)
	must(t, err)
	golden(t, "identity.txt", identity)
	s := openStore(t, fsys, testOptions())
	lr, err := replica(t, s, testChunk).LogReader(0, true)
	must(t, err)
	defer lr.Close()
	stream := make([]byte, dfs.MiB)
	n, err := lr.Read(stream)
	must(t, err)
	golden(t, "stream.hex", []byte(hex.Dump(stream[:n])))
}

// TestGoldenOperations pins which disk operations make things durable, and in which order.
func TestGoldenOperations(t *testing.T) {
	in := vfs.NewInject(formatted(t, vfs.NewMem()))
	s := openStore(t, in, testOptions())
	var log bytes.Buffer
	step := func(name string, call func()) {
		in.Record()
		call()
		log.WriteString("# " + name + "\n" + in.LogText())
	}
	var r *Replica
	step("create", func() {
		var err error
		r, err = s.Create(testChunk, 1)
		must(t, err)
	})
	step("append", func() { next(t, r, write(0, fill(1, 5_000))) })
	step("sync", func() { must(t, r.Sync()) })
	step("sync again", func() { must(t, r.Sync()) })
	step("set version", func() { must(t, r.SetVersion(2)) })
	step("append and sync", func() {
		next(t, r, write(0, fill(2, 5_000)))
		must(t, r.Sync())
	})
	step("drop", func() {
		must(t, r.SetCommitted(1))
		must(t, r.DropAfter(1))
	})
	step("compact", func() { must(t, r.Compact(t.Context())) })
	step("close", func() { must(t, s.Close()) })
	step("open", func() { s = openStore(t, in, testOptions()) })
	step("read", func() { r = replica(t, s, testChunk); readAll(t, r) })
	step("append", func() { next(t, r, write(0, fill(3, 100))) })
	step("copy over it", func() {
		other := openStore(t, formatted(t, vfs.NewMem()), testOptions())
		p, err := other.Create(testChunk, 9)
		must(t, err)
		next(t, p, write(0, fill(4, 100)))
		_, err = copyLog(t, p, s, 0, true)
		must(t, err)
	})
	step("delete", func() { must(t, s.Delete(testChunk, 9)) })
	golden(t, "operations.txt", log.Bytes())
}
