package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

func TestCopyTail(t *testing.T) {
	src := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	dst := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	r, err := src.Create(testChunk, 1)
	must(t, err)
	p, err := dst.Create(testChunk, 1)
	must(t, err)
	rng := rand.New(rand.NewPCG(4, 4))
	m := newModel()
	for i := range 200 {
		mut := randomMutation(rng, 50_000)
		mut.Writer, mut.Request = 5, uint64(i+1)
		next(t, r, mut)
		m.apply(mut)
		if i < 60 {
			mut.Seq = dfs.Seq(i + 1)
			must(t, p.Append(mut))
		}
	}
	must(t, r.SetCommitted(150))
	// From before where the receiver is: what it has is skipped.
	p, err = copyLog(t, r, dst, 40, false)
	must(t, err)
	if got := readAll(t, p); !bytes.Equal(got, m.data) {
		t.Error("copied tail differs")
	}
	st := state(t, p)
	if st.LastSeq != 200 || st.Committed != 150 || st.Synced != 200 {
		t.Errorf("state %+v", st)
	}
	if off, seq, found, err := p.LookupRequest(5, 120); !found || err != nil || seq != 120 || off < 0 {
		t.Errorf("request 120: %v %v %v %v", off, seq, found, err)
	}
	// Nothing is missing.
	_, err = copyLog(t, r, dst, 200, false)
	must(t, err)
	_, err = r.LogReader(201, false)
	wantErr(t, err, dfserr.ErrRange)
	must(t, r.Compact(context.Background()))
	_, err = r.LogReader(149, false)
	wantErr(t, err, dfserr.ErrRange)
	_, err = copyLog(t, r, dst, 150, false)
	must(t, err)
}

func TestCopyTailLeavesGapRefused(t *testing.T) {
	src := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	dst := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	r, err := src.Create(testChunk, 1)
	must(t, err)
	_, err = dst.Create(testChunk, 1)
	must(t, err)
	for range 3 {
		next(t, r, write(0, fill(1, 10)))
	}
	_, err = copyLog(t, r, dst, 1, false)
	wantErr(t, err, dfserr.ErrInvalid)
	// A tail of a version that the receiver was not told.
	must(t, r.SetVersion(2))
	next(t, r, write(0, fill(1, 10)))
	_, err = copyLog(t, r, dst, 0, false)
	wantErr(t, err, dfserr.ErrStaleVersion)
	_, err = dst.Receive(99, ReceiveOptions{})
	wantErr(t, err, dfserr.ErrNotExist)
}

func TestCopyWhole(t *testing.T) {
	src := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	disk := formatted(t, vfs.NewCrashable())
	dst := openStore(t, disk, testOptions())
	r, err := src.Create(testChunk, 3)
	must(t, err)
	rng := rand.New(rand.NewPCG(5, 5))
	m := newModel()
	for range 100 {
		mut := randomMutation(rng, 200_000)
		next(t, r, mut)
		m.apply(mut)
	}
	must(t, r.SetCommitted(80))
	must(t, r.SetVersion(6))
	lr, err := r.LogReader(0, true)
	must(t, err)
	stream, err := io.ReadAll(lr)
	must(t, err)
	if lr.LastSeq() != 100 || lr.Committed() != 80 || lr.Size() > 2*int64(len(stream))+200_000 {
		t.Errorf("last %d, committed %d, size %d of %d", lr.LastSeq(), lr.Committed(), lr.Size(), len(stream))
	}
	must(t, lr.Close())

	rc, err := dst.Receive(testChunk, ReceiveOptions{Whole: true})
	must(t, err)
	_, err = dst.Receive(testChunk, ReceiveOptions{Whole: true})
	wantErr(t, err, dfserr.ErrBusy)
	_, err = dst.Create(testChunk, 1)
	wantErr(t, err, dfserr.ErrExist)
	_, err = rc.Write(stream)
	must(t, err)
	if got := dst.Chunks(); len(got) != 0 {
		t.Errorf("an arriving copy is listed: %v", got)
	}
	p, err := rc.Commit()
	must(t, err)
	if got := dst.Chunks(); !slices.Equal(got, []dfs.ChunkID{testChunk}) {
		t.Errorf("chunks %v", got)
	}
	if got := readAll(t, p); !bytes.Equal(got, m.data) {
		t.Error("copy differs")
	}
	st := state(t, p)
	if st.LastSeq != 100 || st.Committed != 80 || st.BaseSeq != 80 || st.Version != 6 || int(st.CommittedLength) != len(m.history[80]) {
		t.Errorf("state %+v", st)
	}
	// It is durable, and the tail after the base can be dropped.
	dst.Kill()
	dst = openStore(t, disk.CrashKeepNothing(), testOptions())
	p = replica(t, dst, testChunk)
	if got := readAll(t, p); !bytes.Equal(got, m.data) {
		t.Error("copy differs after a power loss")
	}
	must(t, p.DropAfter(85))
	if got := readAll(t, p); !bytes.Equal(got, m.history[85]) {
		t.Error("copy differs after dropping its tail")
	}
	next(t, p, write(9, fill(9, 9))) // of version 6, below the epochs that the base knew
	if st := state(t, p); !slices.Equal(st.Epochs, []Epoch{{3, 1}, {6, 86}}) {
		t.Errorf("epochs %v", st.Epochs)
	}
}

// TestDamagedStream flips bytes of a copy in transit, cuts it short, and repeats parts.
func TestDamagedStream(t *testing.T) {
	src := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	disk := formatted(t, vfs.NewMem())
	dst := openStore(t, disk, testOptions())
	r, err := src.Create(testChunk, 3)
	must(t, err)
	next(t, r, write(0, fill(1, 9_000)))
	next(t, r, write(5_000, fill(2, 200)))
	must(t, r.SetCommitted(1))
	lr, err := r.LogReader(0, true)
	must(t, err)
	stream, err := io.ReadAll(lr)
	must(t, err)
	must(t, lr.Close())
	try := func(what string, b []byte) {
		t.Helper()
		rc, err := dst.Receive(testChunk, ReceiveOptions{Whole: true})
		must(t, err)
		_, err = rc.Write(b)
		if err == nil {
			_, err = rc.Commit()
		}
		rc.Abort()
		if !errors.Is(err, dfserr.ErrCorrupt) && !errors.Is(err, dfserr.ErrFormat) {
			t.Fatalf("%s: %v", what, err)
		}
		if got := dst.Chunks(); len(got) != 0 {
			t.Fatalf("%s: %v", what, got)
		}
	}
	for i := 0; i < len(stream); i += 3 {
		bad := bytes.Clone(stream)
		bad[i] ^= 1 << (i % 8)
		try("flip", bad)
	}
	for i := 0; i < len(stream); i += 101 {
		try("cut", stream[:i])
	}
	try("goes on", append(bytes.Clone(stream), stream[:200]...))
	entries, err := disk.ReadDir(chunkDir(testChunk))
	must(t, err)
	if len(entries) != 0 {
		t.Errorf("leftovers: %v", entries)
	}
}

func TestWholeCopyDoesNotGoBack(t *testing.T) {
	src := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	dst := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	r, err := src.Create(testChunk, 3)
	must(t, err)
	next(t, r, write(0, fill(1, 100)))
	p, err := dst.Create(testChunk, 3)
	must(t, err)
	must(t, p.SetVersion(9))
	// Told version 9, but without mutations of it: the copy is taken and the promise kept.
	p, err = copyLog(t, r, dst, 0, true)
	must(t, err)
	if st := state(t, p); st.Version != 9 || st.LastSeq != 1 {
		t.Errorf("state %+v", st)
	}
	next(t, p, write(0, fill(2, 100)))
	_, err = copyLog(t, r, dst, 0, true)
	wantErr(t, err, dfserr.ErrStaleVersion)
	if got := readAll(t, p); !bytes.Equal(got, fill(2, 100)) {
		t.Error("the refused copy changed the replica")
	}
}

func TestLeftoversAreRemoved(t *testing.T) {
	fsys := formatted(t, vfs.NewMem())
	for _, suffix := range []string{copySuffix, compactSuffix} {
		must(t, vfs.WriteFile(fsys, chunkFile(testChunk)+suffix, fill(1, 100), 0o644))
	}
	must(t, vfs.WriteFile(fsys, chunksDir+"/00/notes.txt", fill(1, 100), 0o644))
	s := openStore(t, fsys, testOptions())
	if got := s.Chunks(); len(got) != 0 {
		t.Errorf("chunks %v", got)
	}
	entries, err := fsys.ReadDir(chunkDir(testChunk))
	must(t, err)
	if len(entries) != 0 {
		t.Errorf("leftovers %v", entries)
	}
	if _, err := fsys.Stat(chunksDir + "/00/notes.txt"); err != nil {
		t.Errorf("a stranger's file was touched: %v", err)
	}
}

// TestCompactionUnderLoad compacts while writers and readers go on.
func TestCompactionUnderLoad(t *testing.T) {
	opts := testOptions()
	opts.NoCompaction = false
	opts.CompactMin = 50_000
	fsys := formatted(t, vfs.NewCrashable())
	s := openStore(t, fsys, opts)
	r, err := s.Create(testChunk, 1)
	must(t, err)
	const blocks = 16
	done := make(chan struct{})
	errs := make(chan error, 4)
	for g := range 3 {
		go func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			for {
				select {
				case <-done:
					errs <- nil
					return
				default:
				}
				off := rng.Int64N(blocks) * dfs.BlockSize
				res, err := r.ReadAt(off, dfs.BlockSize)
				if err != nil {
					errs <- err
					return
				}
				// Every block holds one value throughout.
				for _, b := range res.Data {
					if b != res.Data[0] {
						errs <- errors.New("a torn block was read")
						return
					}
				}
				res.Release()
			}
		}()
	}
	want := make([]byte, blocks*dfs.BlockSize)
	for i := range 2_000 {
		off := int64(i*7%blocks) * dfs.BlockSize
		data := bytes.Repeat([]byte{byte(i)}, dfs.BlockSize)
		seq := next(t, r, write(off, data))
		copy(want[off:], data)
		must(t, r.SetCommitted(seq-dfs.Seq(i%3)))
		if i%100 == 0 {
			must(t, r.Sync())
		}
	}
	close(done)
	for range 3 {
		must(t, <-errs)
	}
	st := state(t, r)
	if st.BaseSeq == 0 || st.DiskBytes > 4_000_000 {
		t.Errorf("never compacted: %+v", st)
	}
	if got := readAll(t, r); !bytes.Equal(got, want) {
		t.Error("contents differ")
	}
	must(t, s.Close())
	s = openStore(t, fsys.CrashKeepNothing(), opts)
	if got := readAll(t, replica(t, s, testChunk)); !bytes.Equal(got, want) {
		t.Error("contents differ after a power loss")
	}
}
