package chunks

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// memTxn is a Txn over Go maps.
type memTxn struct {
	chunks  map[dfs.ChunkID]Record
	files   map[dfs.InodeID]map[int64]dfs.ChunkID
	garbage map[dfs.Index]map[dfs.ChunkID]Garbage
	totals  Totals
}

func newMem() *memTxn {
	return &memTxn{
		chunks: map[dfs.ChunkID]Record{}, files: map[dfs.InodeID]map[int64]dfs.ChunkID{}, garbage: map[dfs.Index]map[dfs.ChunkID]Garbage{},
		totals: Totals{NextChunk: 1},
	}
}

func (m *memTxn) Chunk(id dfs.ChunkID) (Record, bool, error) {
	r, ok := m.chunks[id]
	return r, ok, nil
}
func (m *memTxn) SetChunk(id dfs.ChunkID, r Record) { m.chunks[id] = r }
func (m *memTxn) DeleteChunk(id dfs.ChunkID)        { delete(m.chunks, id) }
func (m *memTxn) FileChunk(inode dfs.InodeID, index int64) (dfs.ChunkID, bool, error) {
	id, ok := m.files[inode][index]
	return id, ok, nil
}

func (m *memTxn) SetFileChunk(inode dfs.InodeID, index int64, id dfs.ChunkID) {
	if m.files[inode] == nil {
		m.files[inode] = map[int64]dfs.ChunkID{}
	}
	m.files[inode][index] = id
}
func (m *memTxn) DeleteFileChunk(inode dfs.InodeID, index int64) { delete(m.files[inode], index) }
func (m *memTxn) FileChunks(inode dfs.InodeID, from int64, fn func(index int64, id dfs.ChunkID) bool) error {
	for _, i := range slices.Sorted(maps.Keys(m.files[inode])) {
		if i >= from && !fn(i, m.files[inode][i]) {
			break
		}
	}
	return nil
}

func (m *memTxn) SetGarbage(index dfs.Index, id dfs.ChunkID, g Garbage) {
	if m.garbage[index] == nil {
		m.garbage[index] = map[dfs.ChunkID]Garbage{}
	}
	m.garbage[index][id] = g
}

func (m *memTxn) Garbage(index dfs.Index, id dfs.ChunkID) (Garbage, bool, error) {
	g, ok := m.garbage[index][id]
	return g, ok, nil
}
func (m *memTxn) DeleteGarbage(index dfs.Index, id dfs.ChunkID) { delete(m.garbage[index], id) }
func (m *memTxn) ChunkTotals() (Totals, error)                  { return m.totals, nil }
func (m *memTxn) SetChunkTotals(t Totals)                       { m.totals = t }

// check returns the first violation of the package's invariants for the files given.
func (m *memTxn) check(files ...*File) error {
	var n, garbage int64
	seen := map[dfs.ChunkID]bool{}
	for _, f := range files {
		last := int64(-1)
		for i, id := range m.files[f.Inode] {
			r, ok := m.chunks[id]
			if !ok || seen[id] || r.Inode != f.Inode || r.Index != i || len(r.Replicas) == 0 {
				return fmt.Errorf("chunk %s at %d of inode %d: %+v", id, i, f.Inode, r)
			}
			if r.CutVersion > r.Version || (len(r.Seed) > 0 && r.Born) || id >= m.totals.NextChunk {
				return fmt.Errorf("chunk %s: %+v", id, r)
			}
			seen[id] = true
			last = max(last, i)
			n++
		}
		if f.Chunks != last+1 || (f.Chunks > 0 && len(f.Inline) > 0) || (f.Chunks == 0 && f.TailOpen) || len(f.Inline) > dfs.InlineMax {
			return fmt.Errorf("file %+v, its last chunk is %d", f, last)
		}
	}
	for _, g := range m.garbage {
		garbage += int64(len(g))
	}
	if int(n) != len(m.chunks) || n != m.totals.Chunks || garbage != m.totals.Garbage {
		return fmt.Errorf("%d chunks in files, %d records, totals %+v, %d garbage", n, len(m.chunks), m.totals, garbage)
	}
	return nil
}

const chunkSize = dfs.MinChunkSize

// fixture is one file and a clock of indexes.
type fixture struct {
	t   *testing.T
	m   *memTxn
	f   File
	env Env
}

func newFixture(t *testing.T) *fixture {
	x := &fixture{t: t, m: newMem(), f: File{Inode: 7, ChunkSizeLog2: 20, Replication: 3}, env: Env{Index: 100}}
	t.Cleanup(x.check)
	return x
}

func (x *fixture) check() {
	x.t.Helper()
	if err := x.m.check(&x.f); err != nil {
		x.t.Error(err)
	}
}

// next moves on to the next command.
func (x *fixture) next() Env {
	x.env.Index++
	x.env.Now += 10
	return x.env
}

func (x *fixture) add(index, tail int64) Added {
	x.t.Helper()
	a, err := Add(x.m, x.next(), &x.f, index, []dfs.ServerID{1, 2, 3}, tail)
	if err != nil {
		x.t.Fatal(err)
	}
	x.check()
	return a
}

func (x *fixture) record(index int64) Record {
	x.t.Helper()
	id, ok := x.m.files[x.f.Inode][index]
	if !ok {
		x.t.Fatalf("no chunk at %d", index)
	}
	return x.m.chunks[id]
}

func (x *fixture) truncate(length, tail int64) error {
	more, err := Truncate(x.m, x.next(), &x.f, length, tail)
	if more {
		x.t.Fatal("more")
	}
	return err
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func TestAddMovesInlineDataToTheSeed(t *testing.T) {
	x := newFixture(t)
	if _, err := WriteInline(&x.f, 0, false, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	a := x.add(0, 0)
	want := Record{Inode: 7, Version: 101, Replicas: []dfs.ServerID{1, 2, 3}, Replication: 3, ChunkSizeLog2: 20, Birth: 101, Seed: []byte("hello")}
	if diff := cmp.Diff(want, a.Record); diff != "" {
		t.Error(diff)
	}
	if x.f.Inline != nil || x.f.Length != 5 || x.f.Chunks != 1 || !x.f.TailOpen {
		t.Errorf("%+v", x.f)
	}
	again := x.add(0, 0)
	if again.New || again.Chunk != a.Chunk || again.Record.Version != 101 {
		t.Errorf("%+v", again)
	}
	if _, err := WriteInline(&x.f, 0, true, []byte("x")); !errors.Is(err, dfserr.ErrInlineMoved) {
		t.Error(err)
	}
	// A length that is covered says nothing about the seed; one beyond it does.
	if err := CommitLength(x.m, &x.f, Commit{Length: 5, Chunk: a.Chunk, Version: 101, Modified: true}); err != nil {
		t.Fatal(err)
	}
	if r := x.record(0); r.Born || len(r.Seed) == 0 {
		t.Errorf("%+v", r)
	}
	if err := CommitLength(x.m, &x.f, Commit{Length: 6, Chunk: a.Chunk, Version: 101, Modified: true}); err != nil {
		t.Fatal(err)
	}
	if r := x.record(0); !r.Born || len(r.Seed) != 0 {
		t.Errorf("%+v", r)
	}
}

func TestAddBeyondInlineDataMakesChunkZeroToo(t *testing.T) {
	x := newFixture(t)
	if _, err := WriteInline(&x.f, 2, false, []byte("abc")); err != nil {
		t.Fatal(err)
	}
	x.add(3, 0)
	if r := x.record(0); !bytes.Equal(r.Seed, []byte("\x00\x00abc")) {
		t.Errorf("%+v", r)
	}
	if r := x.record(3); len(r.Seed) != 0 || x.f.Chunks != 4 || x.f.Length != 5 {
		t.Errorf("%+v %+v", r, x.f)
	}
	// A hole filled later leaves the tail alone.
	x.f.TailOpen = false
	x.add(1, 0)
	if x.f.TailOpen || x.f.Chunks != 4 {
		t.Errorf("%+v", x.f)
	}
}

func TestAddRefusals(t *testing.T) {
	x := newFixture(t)
	for _, c := range []struct {
		index    int64
		replicas []dfs.ServerID
		want     error
	}{
		{-1, []dfs.ServerID{1}, dfserr.ErrInvalid},
		{dfs.MaxFileLength / chunkSize, []dfs.ServerID{1}, dfserr.ErrFileTooLarge},
		{0, nil, dfserr.ErrTooFewReplicas},
		{0, []dfs.ServerID{1, 2, 1}, dfserr.ErrInvalid},
		{0, []dfs.ServerID{0}, dfserr.ErrInvalid},
		{0, make([]dfs.ServerID, dfs.MaxReplication+1), dfserr.ErrInvalid},
	} {
		_, err := Add(x.m, x.next(), &x.f, c.index, c.replicas, 0)
		wantErr(t, err, c.want)
	}
	if a, err := Add(x.m, x.next(), &x.f, dfs.MaxFileLength/chunkSize-1, []dfs.ServerID{1}, 0); err != nil || !a.New {
		t.Error(a, err)
	}
}

func TestRollTakesOverTheTailsLength(t *testing.T) {
	x := newFixture(t)
	x.add(0, 0)
	x.add(1, chunkSize)
	if r := x.record(0); !r.Born || x.f.Length != chunkSize {
		t.Errorf("%+v %+v", r, x.f)
	}
	// Nothing was in the second chunk: it is not born, and a primary may still make it.
	x.add(2, chunkSize)
	if r := x.record(1); r.Born || x.f.Length != chunkSize {
		t.Errorf("%+v %+v", r, x.f)
	}
	// A length that cannot be the tail's is cut to what it could be.
	x.add(3, 100*chunkSize)
	if r := x.record(2); !r.Born || x.f.Length != 3*chunkSize {
		t.Errorf("%+v %+v", r, x.f)
	}
}

func TestCommitLength(t *testing.T) {
	x := newFixture(t)
	a := x.add(0, 0)
	commit := func(c Commit) error { return CommitLength(x.m, &x.f, c) }
	wantErr(t, commit(Commit{Length: -1, Chunk: a.Chunk, Version: a.Record.Version}), dfserr.ErrInvalid)
	wantErr(t, commit(Commit{Length: 10, Chunk: a.Chunk, Version: 55}), dfserr.ErrStaleVersion)
	wantErr(t, commit(Commit{Length: 10, Chunk: 99, Version: 55}), dfserr.ErrStaleVersion)
	wantErr(t, commit(Commit{Length: 10}), dfserr.ErrStaleVersion)
	wantErr(t, commit(Commit{Length: chunkSize + 1, Chunk: a.Chunk, Version: a.Record.Version}), dfserr.ErrInvalid)
	if err := commit(Commit{Length: 10, Chunk: a.Chunk, Version: a.Record.Version}); err != nil || x.f.Length != 10 || !x.f.TailOpen || !x.record(0).Born {
		t.Errorf("%v %+v", err, x.f)
	}
	// Lengths only grow, and a covered one needs no version, but does not settle the tail then.
	if err := commit(Commit{Length: 5, Chunk: a.Chunk, Version: 55, Closing: true}); err != nil || x.f.Length != 10 || !x.f.TailOpen {
		t.Errorf("%v %+v", err, x.f)
	}
	if err := commit(Commit{Length: 12, Chunk: a.Chunk, Version: a.Record.Version, Closing: true}); err != nil || x.f.Length != 12 || x.f.TailOpen {
		t.Errorf("%v %+v", err, x.f)
	}
	other := File{Inode: 8, ChunkSizeLog2: 20}
	wantErr(t, CommitLength(x.m, &other, Commit{Length: 13, Chunk: a.Chunk, Version: a.Record.Version}), dfserr.ErrStaleVersion)
}

func TestSettleTail(t *testing.T) {
	x := newFixture(t)
	a := x.add(0, 0)
	settle := func(length int64, id dfs.ChunkID, v dfs.Version) bool {
		t.Helper()
		done, err := SettleTail(x.m, &x.f, length, id, v)
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	if settle(10, a.Chunk, 5) || settle(10, 99, a.Record.Version) || !x.f.TailOpen || x.f.Length != 0 {
		t.Errorf("%+v", x.f)
	}
	b := x.add(1, 0)
	if settle(10, a.Chunk, a.Record.Version) {
		t.Error("settled by a chunk that is not the last")
	}
	if !settle(chunkSize+10, b.Chunk, b.Record.Version) || x.f.TailOpen || x.f.Length != chunkSize+10 || !x.record(1).Born || x.record(0).Born {
		t.Errorf("%+v", x.f)
	}
	if settle(chunkSize+20, b.Chunk, b.Record.Version) {
		t.Error("settled twice")
	}
	OpenTail(&x.f)
	if !x.f.TailOpen {
		t.Error("not open")
	}
	empty := File{}
	OpenTail(&empty)
	if empty.TailOpen {
		t.Error("a file without chunks has an open tail")
	}
}

func TestTruncateCuts(t *testing.T) {
	x := newFixture(t)
	for i := range int64(4) {
		x.add(i, i*chunkSize)
	}
	// The open tail's length is known from its primary.
	if err := x.truncate(2*chunkSize+5, 3*chunkSize+100); err != nil {
		t.Fatal(err)
	}
	r := x.record(2)
	if r.CutLength != 5 || r.CutVersion != r.Version || r.Version != dfs.Version(x.env.Index) || x.f.Length != 2*chunkSize+5 || x.f.Chunks != 3 || !x.f.TailOpen || x.m.totals.Garbage != 1 {
		t.Errorf("%+v %+v", r, x.f)
	}
	x.check()
	// A second cut of the chunk waits for the first; one elsewhere does not.
	wantErr(t, x.truncate(2*chunkSize+3, 0), dfserr.ErrBusy)
	id := x.m.files[7][2]
	if _, err := CutDone(x.m, id, Done{CutVersion: r.CutVersion - 1}); err != nil || x.record(2).CutVersion == 0 {
		t.Error("a cut that is not pending was done", err)
	}
	if _, err := CutDone(x.m, id, Done{CutVersion: r.CutVersion, Born: true}); err != nil || x.record(2).CutVersion != 0 || !x.record(2).Born {
		t.Error(err)
	}
	if err := x.truncate(2*chunkSize+3, 0); err != nil || x.record(2).CutLength != 3 {
		t.Error(err)
	}
	// At a boundary nothing is cut, and growing changes only the length.
	if err := x.truncate(2*chunkSize, 0); err != nil || x.f.Chunks != 2 || x.record(1).CutVersion != 0 {
		t.Error(err)
	}
	if err := x.truncate(9*chunkSize, 0); err != nil || x.f.Chunks != 2 || x.f.Length != 9*chunkSize {
		t.Error(err)
	}
	// In the hole that growing left, there is nothing to cut; to nothing, the file is inline again.
	if err := x.truncate(5*chunkSize+1, 0); err != nil || x.f.Chunks != 2 {
		t.Error(err)
	}
	if err := x.truncate(0, 0); err != nil || x.f.Chunks != 0 || x.f.TailOpen || x.m.totals.Chunks != 0 {
		t.Errorf("%v %+v", err, x.f)
	}
	if _, err := CutDone(x.m, id, Done{CutVersion: 1}); !errors.Is(err, dfserr.ErrNotExist) {
		t.Error(err)
	}
}

func TestTruncateInParts(t *testing.T) {
	x := newFixture(t)
	const n = MaxPerCommand*2 + 100
	for i := range int64(n) {
		if i%3 == 1 || i == 0 || i == n-1 {
			x.add(i, 0)
		}
	}
	x.f.Length, x.f.TailOpen = n*chunkSize, false
	rounds, before := 0, x.f.Length
	for {
		rounds++
		deleted := x.m.totals.Garbage
		more, err := Truncate(x.m, x.next(), &x.f, 10, 0)
		if err != nil {
			t.Fatal(err)
		}
		x.check()
		if x.m.totals.Garbage-deleted > MaxPerCommand || x.f.Length > before || x.f.Length < 10 {
			t.Fatalf("%d deleted, length %d after %d", x.m.totals.Garbage-deleted, x.f.Length, before)
		}
		before = x.f.Length
		if !more {
			break
		}
	}
	if rounds != 3 || x.f.Length != 10 || x.f.Chunks != 1 || x.record(0).CutLength != 10 {
		t.Errorf("%d rounds, %+v", rounds, x.f)
	}
}

func TestWriteInline(t *testing.T) {
	f := File{Inode: 7}
	big := make([]byte, dfs.InlineMax+1)
	for _, c := range []struct {
		off   int64
		atEnd bool
		data  string
		want  int64
		file  string
		err   error
	}{
		{0, false, "ab", 0, "ab", nil},
		{5, false, "c", 5, "ab\x00\x00\x00c", nil},
		{99, true, "d", 6, "ab\x00\x00\x00cd", nil},
		{1, false, "X", 1, "aX\x00\x00\x00cd", nil},
		{3, false, "", 3, "aX\x00\x00\x00cd", nil},
		{-1, false, "d", 0, "", dfserr.ErrInvalid},
		{0, false, string(big), 0, "", dfserr.ErrFileTooLarge},
		{dfs.InlineMax, false, "x", 0, "", dfserr.ErrFileTooLarge},
	} {
		before := f
		off, err := WriteInline(&f, c.off, c.atEnd, []byte(c.data))
		if !errors.Is(err, c.err) {
			t.Errorf("%+v: %v", c, err)
		}
		if err != nil {
			if diff := cmp.Diff(before, f); diff != "" {
				t.Error(diff)
			}
			continue
		}
		if off != c.want || string(f.Inline) != c.file || f.Length != int64(len(c.file)) {
			t.Errorf("%+v: offset %d, %q, length %d", c, off, f.Inline, f.Length)
		}
	}
	// Absent bytes up to the length are zeros, and appending goes to the length.
	f = File{Inode: 7, Length: 4, Inline: []byte("a")}
	if off, err := WriteInline(&f, 0, true, []byte("b")); err != nil || off != 4 || string(f.Inline) != "a\x00\x00\x00b" {
		t.Error(off, err, f)
	}
}

func TestReconfigure(t *testing.T) {
	x := newFixture(t)
	a := x.add(0, 0)
	env := x.next()
	_, err := Reconfigure(x.m, env, a.Chunk, a.Record.Version+1, []dfs.ServerID{1})
	wantErr(t, err, dfserr.ErrStaleVersion)
	_, err = Reconfigure(x.m, env, 99, 1, []dfs.ServerID{1})
	wantErr(t, err, dfserr.ErrNotExist)
	_, err = Reconfigure(x.m, env, a.Chunk, a.Record.Version, nil)
	wantErr(t, err, dfserr.ErrTooFewReplicas)
	r, err := Reconfigure(x.m, env, a.Chunk, a.Record.Version, []dfs.ServerID{3, 4})
	if err != nil || r.Version != dfs.Version(env.Index) || !slices.Equal(r.Replicas, []dfs.ServerID{3, 4}) || r.Birth != a.Record.Birth {
		t.Errorf("%+v %v", r, err)
	}
	// What was acknowledged under the old configuration is refused now.
	wantErr(t, CommitLength(x.m, &x.f, Commit{Length: 5, Chunk: a.Chunk, Version: a.Record.Version}), dfserr.ErrStaleVersion)
}

func TestReclaimAndGarbage(t *testing.T) {
	x := newFixture(t)
	for i := range int64(5) {
		x.add(i, 0)
	}
	n, done, err := Reclaim(x.m, x.next(), 7, 3)
	if n != 3 || done || err != nil {
		t.Error(n, done, err)
	}
	at := x.env.Index
	n, done, err = Reclaim(x.m, x.next(), 7, 3)
	if n != 2 || !done || err != nil {
		t.Error(n, done, err)
	}
	x.f.Chunks, x.f.TailOpen = 0, false
	if g := x.m.garbage[at][1]; g.DeletedAt == 0 || g.Version != 101 || !slices.Equal(g.Replicas, []dfs.ServerID{1, 2, 3}) {
		t.Errorf("%+v", g)
	}
	for range 2 {
		if err := GarbageDone(x.m, at, 1); err != nil || x.m.totals.Garbage != 4 {
			t.Error(err, x.m.totals)
		}
	}
}

func TestSetReplication(t *testing.T) {
	x := newFixture(t)
	for i := range int64(MaxPerCommand + 1) {
		x.add(i, 0)
	}
	x.f.Replication = 5
	if more, err := SetReplication(x.m, &x.f); !more || err != nil {
		t.Fatal(more, err)
	}
	if more, err := SetReplication(x.m, &x.f); more || err != nil {
		t.Fatal(more, err)
	}
	for id, r := range x.m.chunks {
		if r.Replication != 5 || r.Version != dfs.Version(r.Birth) {
			t.Fatalf("%s: %+v", id, r)
		}
	}
}

// TestRandom runs random operations and checks the invariants after each, and that no version ever sinks.
func TestRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	x := newFixture(t)
	versions := map[dfs.ChunkID]dfs.Version{}
	for range 20_000 {
		env := x.next()
		var id dfs.ChunkID
		var version dfs.Version
		if x.f.Chunks > 0 {
			id = x.m.files[7][x.f.Chunks-1]
			version = x.m.chunks[id].Version
		}
		f := x.f
		var err error
		tail := f.Length + r.Int64N(chunkSize)
		switch r.IntN(9) {
		case 0, 1:
			_, err = Add(x.m, env, &f, r.Int64N(8), []dfs.ServerID{1, 2}, tail)
		case 2:
			_, err = Truncate(x.m, env, &f, r.Int64N(6*chunkSize)&^int64(r.IntN(2)*(chunkSize-1)), tail)
		case 3:
			err = CommitLength(x.m, &f, Commit{Length: r.Int64N(8 * chunkSize), Chunk: id, Version: version - dfs.Version(r.IntN(2)), Modified: true, Closing: r.IntN(2) == 0})
		case 4:
			_, err = SettleTail(x.m, &f, tail, id, version)
		case 5:
			_, err = WriteInline(&f, r.Int64N(5000), r.IntN(2) == 0, make([]byte, r.IntN(2000)))
		case 6:
			if id != 0 {
				_, err = Reconfigure(x.m, env, id, version, []dfs.ServerID{3, 1})
			}
		case 7:
			if id != 0 {
				_, err = CutDone(x.m, id, Done{CutVersion: x.m.chunks[id].CutVersion, SeedStored: r.IntN(2) == 0, Born: r.IntN(2) == 0, InStep: x.m.chunks[id].Version})
			}
		case 8:
			OpenTail(&f)
		}
		if err == nil {
			x.f = f
		}
		x.check()
		if t.Failed() {
			t.FailNow()
		}
		for id, rec := range x.m.chunks {
			if rec.Version < versions[id] {
				t.Fatalf("version of %s sinks", id)
			}
			versions[id] = rec.Version
		}
	}
}
