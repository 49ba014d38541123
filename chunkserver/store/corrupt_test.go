package store

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

// damagedLog builds a log of every kind of record, with its synced part before the last mutations, and
// returns the file's bytes, the chunk's contents after each mutation, and the last synced mutation.
func damagedLog(t testing.TB, clean bool) (file []byte, m *model, synced dfs.Seq) {
	t.Helper()
	fsys := formatted(t, vfs.NewMem())
	s := openStore(t, fsys, testOptions())
	r, err := s.Create(testChunk, 1)
	must(t, err)
	m = newModel()
	add := func(mut *Mutation) {
		next(t, r, mut)
		m.apply(mut)
	}
	add(write(0, fill(1, 5_000)))
	add(write(9_000, fill(2, 300)))
	must(t, r.SetCommitted(2))
	must(t, r.Compact(context.Background()))
	add(write(100, fill(3, 700)))
	must(t, r.SetVersion(2))
	add(&Mutation{Kind: KindZero, Off: 4_000, Len: 200})
	add(write(1, fill(3, 30)))
	must(t, r.DropAfter(4))
	m.drop(4)
	add(&Mutation{Kind: KindTruncate, Off: 8_000})
	must(t, r.Sync())
	synced = 5
	add(write(4_500, fill(4, 600)))
	add(write(0, fill(5, 64)))
	if clean {
		must(t, s.Close())
		synced = 7
	} else {
		s.Kill()
	}
	file, err = vfs.ReadFile(fsys, chunkFile(testChunk), 1<<20)
	must(t, err)
	return file, m, synced
}

// openDamaged opens a store whose only replica has the given log.
func openDamaged(t testing.TB, fsys *vfs.Mem, file []byte) *Store {
	t.Helper()
	must(t, vfs.WriteFile(fsys, chunkFile(testChunk), file, 0o644))
	return openStore(t, fsys, testOptions())
}

// replaceLog gives the replica in an open store another log, as if the store had been opened with it.
func replaceLog(t testing.TB, s *Store, file []byte) {
	t.Helper()
	if old, err := s.Replica(testChunk); err == nil {
		s.forget(old)
		if old.st != nil {
			must(t, old.st.shutdown(false, dfserr.ErrClosed))
		}
	}
	f, err := s.disks[0].FS.OpenFile(chunkFile(testChunk), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	must(t, err)
	_, err = f.WriteAt(file, 0)
	must(t, err)
	must(t, f.Close())
	s.mu.Lock()
	s.replicas[testChunk] = &Replica{s: s, id: testChunk, disk: s.disks[0]}
	s.mu.Unlock()
}

// checkDamaged checks the one rule: right bytes or ErrCorrupt. It returns whether damage was noticed.
func checkDamaged(t *testing.T, s *Store, m *model, synced dfs.Seq, what string, at int) bool {
	t.Helper()
	r, err := s.Replica(testChunk)
	must(t, err)
	st, err := r.State()
	if errors.Is(err, dfserr.ErrFormat) {
		return true
	}
	if err != nil {
		t.Fatalf("%s at %d: %v", what, at, err)
	}
	if st.Structural {
		if _, err := r.ReadAt(0, 10); !errors.Is(err, dfserr.ErrCorrupt) {
			t.Fatalf("%s at %d: a corrupt log was read: %v", what, at, err)
		}
		return true
	}
	if st.LastSeq < synced || int(st.LastSeq) >= len(m.history) {
		t.Fatalf("%s at %d: log was silently cut to seq %d, %d was synced", what, at, st.LastSeq, synced)
	}
	want := m.history[st.LastSeq]
	if int(st.Length) != len(want) {
		t.Fatalf("%s at %d: length %d, want %d", what, at, st.Length, len(want))
	}
	noticed := false
	for off := int64(0); off < st.Length; off += 512 {
		res, err := r.ReadAt(off, 512)
		if errors.Is(err, dfserr.ErrCorrupt) {
			noticed = true
			continue
		}
		must(t, err)
		if !bytes.Equal(res.Data, want[off:min(off+512, st.Length)]) {
			t.Fatalf("%s at %d: wrong bytes at %d", what, at, off)
		}
		checkResult(t, off, res)
		res.Release()
	}
	// A copy is right or refused, too.
	lr, err := r.LogReader(0, true)
	if err == nil {
		buf := make([]byte, 1<<20)
		_, err = lr.Read(buf)
		must(t, lr.Close())
	}
	if err != nil && !errors.Is(err, dfserr.ErrCorrupt) {
		t.Fatalf("%s at %d: copy: %v", what, at, err)
	}
	if verr := r.Verify(context.Background(), nil); errors.Is(verr, dfserr.ErrCorrupt) {
		noticed = true
		if !state(t, r).Corrupt {
			t.Fatalf("%s at %d: verification found damage and did not mark it", what, at)
		}
	} else {
		must(t, verr)
		if noticed {
			t.Fatalf("%s at %d: reads found damage that verification did not", what, at)
		}
	}
	return noticed || st.LastSeq < dfs.Seq(len(m.history)-1)
}

// TestFlipBits flips a bit in every third byte of a log, with and without an index footer.
func TestFlipBits(t *testing.T) {
	for name, clean := range map[string]bool{"footer": true, "no footer": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file, m, synced := damagedLog(t, clean)
			rng := rand.New(rand.NewPCG(1, 1))
			noticed, tried := 0, 0
			s := openStore(t, formatted(t, vfs.NewMem()), testOptions())
			step := 3
			if testing.Short() {
				step = 17
			}
			for i := 0; i < len(file); i += step {
				bad := bytes.Clone(file)
				bad[i] ^= byte(1) << rng.IntN(8)
				replaceLog(t, s, bad)
				tried++
				if checkDamaged(t, s, m, synced, "flip", i) {
					noticed++
				}
			}
			t.Logf("%d bytes, %d flipped, %d noticed", len(file), tried, noticed)
			// What goes unnoticed is damage to the footer, which the records make up for.
			if noticed < tried*3/4 {
				t.Errorf("only %d of %d flips were noticed", noticed, tried)
			}
		})
	}
}

// TestDamageRegions zeroes, overwrites, moves and cuts off parts of a log.
func TestDamageRegions(t *testing.T) {
	for _, clean := range []bool{true, false} {
		file, m, synced := damagedLog(t, clean)
		rng := rand.New(rand.NewPCG(2, 2))
		s := openStore(t, formatted(t, vfs.NewMem()), testOptions())
		for i := range 600 {
			bad := bytes.Clone(file)
			at := rng.IntN(len(bad))
			n := min(1+rng.IntN(300), len(bad)-at) // more could take every later synced mark with it
			what := "zeros"
			switch i % 4 {
			case 0:
				clear(bad[at : at+n])
			case 1:
				what = "noise"
				for j := range n {
					bad[at+j] = byte(rng.Uint32())
				}
			case 2:
				what = "misdirected write"
				copy(bad[at:at+n], file[rng.IntN(len(file)):])
			case 3:
				what = "swapped halves"
				from := rng.IntN(len(bad) - n + 1)
				copy(bad[at:at+n], file[from:from+n])
				copy(bad[from:from+n], file[at:at+n])
			}
			replaceLog(t, s, bad)
			known := synced
			if clean && at+n > len(file)-trailerSize {
				known = 5 // with the footer goes what it says of the records before it; the last mark remains
			}
			checkDamaged(t, s, m, known, what, at)
		}
	}
}

// TestOtherChunksLogIsRefused puts the log of one chunk in the place of another's.
func TestOtherChunksLogIsRefused(t *testing.T) {
	file, _, _ := damagedLog(t, false)
	fsys := formatted(t, vfs.NewMem())
	must(t, vfs.WriteFile(fsys, chunkFile(testChunk+1), file, 0o644))
	s := openStore(t, fsys, testOptions())
	r := replica(t, s, testChunk+1)
	if st := state(t, r); !st.Structural {
		t.Errorf("state %+v", st)
	}
	_, err := r.ReadAt(0, 10)
	wantErr(t, err, dfserr.ErrCorrupt)
	_, err = r.LogReader(0, true)
	wantErr(t, err, dfserr.ErrCorrupt)
	wantErr(t, r.Compact(context.Background()), dfserr.ErrCorrupt)
	// A copy from a good replica repairs it, in place.
	good := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	g, err := good.Create(testChunk+1, 3)
	must(t, err)
	next(t, g, write(0, fill(8, 5_000)))
	r, err = copyLog(t, g, s, 0, true)
	must(t, err)
	if got := readAll(t, r); !bytes.Equal(got, fill(8, 5_000)) {
		t.Error("repaired replica differs")
	}
	if st := state(t, r); st.Corrupt {
		t.Errorf("state %+v", st)
	}
}

// TestDeleteCorrupt checks that a damaged replica can be removed.
func TestDeleteCorrupt(t *testing.T) {
	fsys := formatted(t, vfs.NewMem())
	s := openDamaged(t, fsys, bytes.Repeat([]byte{0xff}, 5_000))
	if st := state(t, replica(t, s, testChunk)); !st.Structural {
		t.Errorf("state %+v", st)
	}
	must(t, s.Delete(testChunk, 1))
}

// TestNewerFormatIsRefused checks that a log of a later format is neither read nor changed.
func TestNewerFormatIsRefused(t *testing.T) {
	file, _, _ := damagedLog(t, false)
	file[8] = formatVersion + 1
	crc := dfs.CRC(file[:60])
	file[60], file[61], file[62], file[63] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
	fsys := formatted(t, vfs.NewMem())
	s := openDamaged(t, fsys, file)
	_, err := replica(t, s, testChunk).State()
	wantErr(t, err, dfserr.ErrFormat)
	wantErr(t, s.Delete(testChunk, 100), dfserr.ErrFormat)
	must(t, s.Close())
	got, err := vfs.ReadFile(fsys, chunkFile(testChunk), 1<<20)
	must(t, err)
	if !bytes.Equal(got, file) {
		t.Error("the file was changed")
	}
}
