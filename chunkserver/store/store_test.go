package store

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

func TestAppendAndRead(t *testing.T) {
	s := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	r, err := s.Create(testChunk, 7)
	must(t, err)
	a, b := fill(1, 10_000), fill(2, 5_000)
	next(t, r, write(0, a))
	next(t, r, write(3_000, b))
	want := bytes.Clone(a)
	copy(want[3_000:], b)
	if got := readAll(t, r); !bytes.Equal(got, want) {
		t.Error("read differs from what was written")
	}
	next(t, r, &Mutation{Kind: KindZero, Off: 100, Len: 5_000})
	clear(want[100:5_100])
	next(t, r, &Mutation{Kind: KindTruncate, Off: 9_000, CutVersion: 3})
	next(t, r, &Mutation{Kind: KindTruncate, Off: 20_000})
	want = append(want[:9_000], make([]byte, 11_000)...)
	if got := readAll(t, r); !bytes.Equal(got, want) {
		t.Error("read after zero and truncate differs")
	}
	st := state(t, r)
	if st.LastSeq != 5 || st.Length != 20_000 || st.CutVersion != 3 || st.Version != 7 || st.CommittedLength != 0 {
		t.Errorf("state %+v", st)
	}
	must(t, r.SetCommitted(4))
	if st := state(t, r); st.Committed != 4 || st.CommittedLength != 9_000 {
		t.Errorf("state %+v", st)
	}
	if res, err := r.ReadAt(30_000, 10); err != nil || len(res.Data) != 0 || res.Length != 20_000 {
		t.Errorf("read beyond the end: %+v, %v", res, err)
	}
}

func TestReadKeepsWritersChecksums(t *testing.T) {
	s := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	r, err := s.Create(testChunk, 1)
	must(t, err)
	// Three writes that meet inside blocks.
	next(t, r, write(100, fill(1, 6_000)))
	next(t, r, write(6_100, fill(2, 3_000)))
	next(t, r, write(9_100, fill(3, 9_000)))
	for off := int64(0); off < 19_000; off += 611 {
		for _, n := range []int64{1, 100, 4096, 5_000, 30_000} {
			res, err := r.ReadAt(off, n)
			must(t, err)
			checkResult(t, off, res)
			res.Release()
		}
	}
}

func TestAppendRefuses(t *testing.T) {
	s := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	r, err := s.Create(testChunk, 5)
	must(t, err)
	good := func() *Mutation { m := write(0, fill(1, 100)); m.Version, m.Seq = 5, 1; return m }
	for name, tc := range map[string]struct {
		change func(m *Mutation)
		want   error
	}{
		"version below":   {func(m *Mutation) { m.Version = 4 }, dfserr.ErrStaleVersion},
		"version above":   {func(m *Mutation) { m.Version = 6 }, dfserr.ErrStaleVersion},
		"gap":             {func(m *Mutation) { m.Seq = 2 }, dfserr.ErrInvalid},
		"repeated":        {func(m *Mutation) { m.Seq = 0 }, dfserr.ErrInvalid},
		"checksum":        {func(m *Mutation) { m.CRCs[0]++ }, dfserr.ErrCorrupt},
		"too few crcs":    {func(m *Mutation) { m.CRCs = nil }, dfserr.ErrInvalid},
		"length":          {func(m *Mutation) { m.Len++ }, dfserr.ErrInvalid},
		"no kind":         {func(m *Mutation) { m.Kind = 0 }, dfserr.ErrInvalid},
		"config":          {func(m *Mutation) { m.Kind = Kind(recConfig) }, dfserr.ErrInvalid},
		"negative":        {func(m *Mutation) { m.Off = -1 }, dfserr.ErrInvalid},
		"beyond":          {func(m *Mutation) { m.Off = dfs.MaxChunkSize }, dfserr.ErrInvalid},
		"empty":           {func(m *Mutation) { m.Len, m.Data, m.CRCs = 0, nil, nil }, dfserr.ErrInvalid},
		"zero with data":  {func(m *Mutation) { m.Kind = KindZero }, dfserr.ErrInvalid},
		"cut of a write":  {func(m *Mutation) { m.CutVersion = 1 }, dfserr.ErrInvalid},
		"truncate length": {func(m *Mutation) { *m = Mutation{Kind: KindTruncate, Len: 1} }, dfserr.ErrInvalid},
	} {
		m := good()
		tc.change(m)
		if err := r.Append(m); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
	must(t, r.Append(good()))
	if st := state(t, r); st.LastSeq != 1 {
		t.Errorf("state %+v", st)
	}
}

func TestVersionsAndEpochs(t *testing.T) {
	fsys := formatted(t, vfs.NewMem())
	s := openStore(t, fsys, testOptions())
	r, err := s.Create(testChunk, 5)
	must(t, err)
	next(t, r, write(0, fill(1, 10)))
	must(t, r.SetVersion(5))
	must(t, r.SetVersion(8))
	wantErr(t, r.SetVersion(7), dfserr.ErrStaleVersion)
	next(t, r, write(0, fill(2, 10)))
	must(t, r.SetVersion(9))
	must(t, r.SetVersion(11))
	want := []Epoch{{5, 1}, {8, 2}, {9, 3}, {11, 3}}
	if st := state(t, r); !slices.Equal(st.Epochs, want) || st.Version != 11 {
		t.Errorf("epochs %v, version %d", st.Epochs, st.Version)
	}
	// Another replica that was told version 11 before it had the mutations.
	other := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	p, err := other.Create(testChunk, 5)
	must(t, err)
	must(t, p.SetVersion(11))
	_, err = copyLog(t, r, other, 0, false)
	must(t, err)
	want = []Epoch{{5, 1}, {8, 2}, {11, 3}}
	if st := state(t, p); !slices.Equal(st.Epochs, want) || st.LastSeq != 2 {
		t.Errorf("epochs of the copy %v, last seq %d", st.Epochs, st.LastSeq)
	}
	s.Kill()
	s = openStore(t, fsys, testOptions())
	if st := state(t, replica(t, s, testChunk)); !slices.Equal(st.Epochs, []Epoch{{5, 1}, {8, 2}, {9, 3}, {11, 3}}) || st.Version != 11 {
		t.Errorf("after a kill: epochs %v, version %d", st.Epochs, st.Version)
	}
}

func TestDropAfter(t *testing.T) {
	fsys := formatted(t, vfs.NewMem())
	s := openStore(t, fsys, testOptions())
	r, err := s.Create(testChunk, 5)
	must(t, err)
	m := newModel()
	add := func(mut *Mutation) { next(t, r, mut); m.apply(mut) }
	add(write(0, fill(1, 9_000)))
	add(write(500, fill(2, 100)))
	must(t, r.SetCommitted(1))
	add(&Mutation{Kind: KindTruncate, Off: 10})
	must(t, r.SetVersion(6))
	wantErr(t, r.DropAfter(0), dfserr.ErrInvalid)
	must(t, r.DropAfter(9))
	must(t, r.DropAfter(1))
	m.drop(1)
	check := func(r *Replica) {
		t.Helper()
		if got := readAll(t, r); !bytes.Equal(got, m.data) {
			t.Error("contents differ")
		}
	}
	check(r)
	st := state(t, r)
	if st.LastSeq != 1 || st.Version != 6 || !slices.Equal(st.Epochs, []Epoch{{5, 1}, {6, 2}}) || st.Committed != 1 {
		t.Errorf("state %+v", st)
	}
	add(write(20, fill(9, 50)))
	check(r)
	s.Kill()
	s = openStore(t, fsys, testOptions())
	r = replica(t, s, testChunk)
	check(r)
	must(t, s.Close())
	s = openStore(t, fsys, testOptions())
	r = replica(t, s, testChunk)
	check(r)
	other := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	p, err := copyLog(t, r, other, 0, true)
	must(t, err)
	check(p)
}

func TestLookupRequest(t *testing.T) {
	fsys := formatted(t, vfs.NewMem())
	s := openStore(t, fsys, testOptions())
	r, err := s.Create(testChunk, 5)
	must(t, err)
	const requests = dfs.WriterWindow + 44
	for i := uint64(1); i <= requests; i++ {
		m := write(int64(i)*10, fill(byte(i), 10))
		m.Writer, m.Request = 77, i
		next(t, r, m)
	}
	check := func(r *Replica) {
		t.Helper()
		for _, req := range []uint64{45, 100, requests} {
			off, seq, found, err := r.LookupRequest(77, req)
			if err != nil || !found || off != int64(req)*10 || seq != dfs.Seq(req) {
				t.Errorf("request %d: offset %d, seq %d, found %v, %v", req, off, seq, found, err)
			}
		}
		_, _, _, err := r.LookupRequest(77, 44)
		wantErr(t, err, dfserr.ErrDuplicate)
		for _, wr := range [][2]uint64{{77, requests + 1}, {78, 1}} {
			if _, _, found, err := r.LookupRequest(wr[0], wr[1]); found || err != nil {
				t.Errorf("writer %d request %d: found %v, %v", wr[0], wr[1], found, err)
			}
		}
	}
	check(r)
	s.Kill() // rebuilt from records
	s = openStore(t, fsys, testOptions())
	check(replica(t, s, testChunk))
	must(t, s.Close()) // from the footer
	s = openStore(t, fsys, testOptions())
	r = replica(t, s, testChunk)
	check(r)
	must(t, r.SetCommitted(requests))
	must(t, r.Compact(context.Background())) // across compaction
	check(r)
	s.Kill()
	s = openStore(t, fsys, testOptions())
	check(replica(t, s, testChunk))
	other := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	p, err := copyLog(t, replica(t, s, testChunk), other, 0, true)
	must(t, err)
	check(p)
}

func TestDirtyUpTo(t *testing.T) {
	fsys := formatted(t, vfs.NewMem())
	s := openStore(t, fsys, testOptions())
	r, err := s.Create(testChunk, 5)
	must(t, err)
	next(t, r, write(0, fill(1, 1000)))
	next(t, r, write(5000, fill(1, 1000)))
	next(t, r, &Mutation{Kind: KindZero, Off: 100, Len: 10})
	check := func(off, n int64, want dfs.Seq) {
		t.Helper()
		got, err := r.DirtyUpTo(off, n)
		must(t, err)
		res, err := r.ReadAt(off, n)
		must(t, err)
		defer res.Release()
		if got != want || res.DirtyUpTo != want {
			t.Errorf("[%d,+%d): DirtyUpTo %d, read says %d, want %d", off, n, got, res.DirtyUpTo, want)
		}
	}
	check(0, 100, 1)
	check(0, 101, 3)
	check(5999, 1, 2)
	check(6000, 1, 0)
	check(2000, 3000, 0)
	next(t, r, &Mutation{Kind: KindTruncate, Off: 50})
	check(0, 50, 1)
	check(0, 51, 4)
	check(6000, 1, 4)
	must(t, r.SetCommitted(3))
	check(0, 50, 0)
	check(0, 51, 4)
	// The footer keeps it.
	must(t, s.Close())
	s = openStore(t, fsys, testOptions())
	r = replica(t, s, testChunk)
	check(0, 50, 0)
	check(0, 51, 4)
	if st := state(t, r); st.Committed != 3 || st.CommittedLength != 6000 || st.Length != 50 {
		t.Errorf("state %+v", st)
	}
	must(t, r.SetCommitted(4))
	check(0, 51, 0)
}

func TestDelete(t *testing.T) {
	fsys := formatted(t, vfs.NewCrashable())
	s := openStore(t, fsys, testOptions())
	r, err := s.Create(testChunk, 5)
	must(t, err)
	next(t, r, write(0, fill(1, 1000)))
	must(t, r.Sync())
	wantErr(t, s.Delete(testChunk, 4), dfserr.ErrStaleVersion)
	wantErr(t, s.Delete(testChunk+1, 4), dfserr.ErrNotExist)
	must(t, s.Delete(testChunk, 5))
	if _, err := r.State(); !errors.Is(err, dfserr.ErrNotExist) {
		t.Errorf("a deleted replica answered: %v", err)
	}
	wantErr(t, r.Append(write(0, fill(1, 1))), dfserr.ErrNotExist)
	if got := s.Chunks(); len(got) != 0 {
		t.Errorf("chunks %v", got)
	}
	if _, err := s.Create(testChunk, 6); err != nil {
		t.Errorf("create after delete: %v", err)
	}
	s.Kill()
	s = openStore(t, fsys.CrashKeepNothing(), testOptions())
	if got := s.Chunks(); len(got) != 0 {
		t.Errorf("after a power loss: chunks %v", got)
	}
}

func TestChunksAreListedInOrder(t *testing.T) {
	fsys := formatted(t, vfs.NewMem())
	s := openStore(t, fsys, testOptions())
	want := []dfs.ChunkID{1, 2, 0x1ff, 0x10000}
	for _, i := range []int{2, 0, 3, 1} {
		_, err := s.Create(want[i], 1)
		must(t, err)
	}
	_, err := s.Create(2, 1)
	wantErr(t, err, dfserr.ErrExist)
	if got := s.Chunks(); !slices.Equal(got, want) {
		t.Errorf("chunks %v", got)
	}
	must(t, s.Close())
	_, err = s.Create(9, 1)
	wantErr(t, err, dfserr.ErrClosed)
	s = openStore(t, fsys, testOptions())
	if got := s.Chunks(); !slices.Equal(got, want) {
		t.Errorf("chunks after reopening %v", got)
	}
}

func TestOpenReplicasAreBounded(t *testing.T) {
	fsys := formatted(t, vfs.NewMem())
	opts := testOptions()
	opts.MaxOpen = 3
	s := openStore(t, fsys, opts)
	const chunks = 20
	rng := rand.New(rand.NewPCG(1, 1))
	models := make([]*model, chunks)
	for i := range models {
		models[i] = newModel()
		_, err := s.Create(dfs.ChunkID(i+1), 1)
		must(t, err)
	}
	for range 400 {
		i := rng.IntN(chunks)
		r := replica(t, s, dfs.ChunkID(i+1))
		m := randomMutation(rng, 30_000)
		next(t, r, m)
		models[i].apply(m)
		s.mu.Lock()
		open := len(s.open)
		s.mu.Unlock()
		if open > 3 {
			t.Fatalf("%d replicas are open", open)
		}
	}
	for i, m := range models {
		if got := readAll(t, replica(t, s, dfs.ChunkID(i+1))); !bytes.Equal(got, m.data) {
			t.Errorf("chunk %d differs", i+1)
		}
	}
}

// TestConcurrentReplicas uses more replicas than may be open from many goroutines at once, while they are closed,
// compacted, copied and deleted.
func TestConcurrentReplicas(t *testing.T) {
	opts := testOptions()
	opts.MaxOpen = 2
	opts.NoCompaction = false
	opts.CompactMin = 30_000
	fsys := formatted(t, vfs.NewMem())
	s := openStore(t, fsys, opts)
	other := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	const chunks = 6
	var wg sync.WaitGroup
	for i := range chunks {
		id := dfs.ChunkID(i + 1)
		r, err := s.Create(id, 1)
		must(t, err)
		wg.Go(func() { // the writer
			rng := rand.New(rand.NewPCG(uint64(i), 2))
			m := newModel()
			for step := range 150 {
				mut := randomMutation(rng, 40_000)
				mut.Version, mut.Seq = 1, dfs.Seq(len(m.history))
				if err := r.Append(mut); err != nil {
					t.Error(err)
					return
				}
				m.apply(mut)
				if err := r.SetCommitted(mut.Seq); err != nil {
					t.Error(err)
				}
				if step%40 == 0 {
					if err := r.Sync(); err != nil {
						t.Error(err)
					}
				}
			}
			if got := readAll(t, r); !bytes.Equal(got, m.data) {
				t.Errorf("chunk %v differs", id)
			}
			if i%2 == 0 {
				if err := s.Delete(id, 1); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() { // readers and copiers meanwhile
			for range 60 {
				res, err := r.ReadAt(1_000, 20_000)
				if errors.Is(err, dfserr.ErrNotExist) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				res.Release()
				if _, err := copyLog(t, r, other, 0, true); err != nil && !errors.Is(err, dfserr.ErrNotExist) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	must(t, s.Close())
	s = openStore(t, fsys, opts)
	if got := s.Chunks(); !slices.Equal(got, []dfs.ChunkID{2, 4, 6}) {
		t.Errorf("chunks %v", got)
	}
}

// TestModel drives one replica with random operations and compares it with a plain array.
func TestModel(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 9))
		fsys := formatted(t, vfs.NewMem())
		opts := testOptions()
		opts.NoCompaction = seed%2 == 0
		opts.CompactMin = 40_000
		s := openStore(t, fsys, opts)
		r, err := s.Create(testChunk, 1)
		must(t, err)
		m := newModel()
		committed, version := dfs.Seq(0), dfs.Version(1)
		for step := range 150 {
			last := dfs.Seq(len(m.history) - 1)
			switch rng.IntN(14) {
			case 0:
				committed += dfs.Seq(rng.Uint64N(uint64(last-committed) + 1))
				must(t, r.SetCommitted(committed))
			case 1:
				version += dfs.Version(1 + rng.Uint64N(3))
				must(t, r.SetVersion(version))
			case 2:
				keep := committed + dfs.Seq(rng.Uint64N(uint64(last-committed)+1))
				must(t, r.DropAfter(keep))
				m.drop(keep)
			case 3:
				must(t, r.Sync())
			case 4:
				if err := r.Compact(context.Background()); err != nil && !errors.Is(err, dfserr.ErrBusy) {
					t.Fatal(err)
				}
			case 5:
				must(t, s.Close())
				s = openStore(t, fsys, opts)
				r = replica(t, s, testChunk)
			case 6:
				s.Kill()
				s = openStore(t, fsys, opts)
				r = replica(t, s, testChunk)
			default:
				mut := randomMutation(rng, 60_000)
				next(t, r, mut)
				m.apply(mut)
			}
			st := state(t, r)
			if int(st.Length) != len(m.data) || int(st.LastSeq) != len(m.history)-1 || st.Version != version {
				t.Fatalf("seed %d step %d: state %+v, model has length %d, seq %d, version %d", seed, step, st, len(m.data), len(m.history)-1, version)
			}
			if st.Committed > committed || st.Committed < st.BaseSeq {
				t.Fatalf("seed %d step %d: committed %d, told %d, base %d", seed, step, st.Committed, committed, st.BaseSeq)
			}
			if want := len(m.history[st.Committed]); int(st.CommittedLength) != want {
				t.Fatalf("seed %d step %d: committed length %d, want %d", seed, step, st.CommittedLength, want)
			}
			if !bytes.Equal(readAll(t, r), m.data) {
				t.Fatalf("seed %d step %d: contents differ", seed, step)
			}
			for range 3 {
				off := rng.Int64N(60_000)
				n := rng.Int64N(30_000)
				got := readRange(t, r, off, n)
				if want := m.data[min(int(off), len(m.data)):min(int(off+n), len(m.data))]; !bytes.Equal(got, want) {
					t.Fatalf("seed %d step %d: range %d+%d differs", seed, step, off, n)
				}
			}
		}
		must(t, r.Verify(context.Background(), nil))
		must(t, s.Close())
	}
}
