package kv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

func snapshotOf(t testing.TB, db *DB, index dfs.Index) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, db.WriteSnapshot(context.Background(), index, &b))
	return b.Bytes()
}

func TestSnapshotRoundTrip(t *testing.T) {
	opts := small
	opts.Cluster = 7
	db := mustOpen(t, t.TempDir(), opts)
	defer db.Close()
	fill(t, db, 1, 3000)
	put(t, db, 3001, "k0001", "", "big", strings.Repeat("b", 900<<10))
	fill(t, db, 3002, 10)
	stream := snapshotOf(t, db, 3001)
	if again := snapshotOf(t, db, 3001); !bytes.Equal(stream, again) {
		t.Fatal("two streams of one index differ")
	}
	want := dump(t, db, 3001)

	dir := t.TempDir()
	info, err := Restore(context.Background(), dir, opts, bytes.NewReader(stream))
	must(t, err)
	if info.Index != 3001 || info.Cluster != 7 || int(info.Keys) != len(want) {
		t.Fatalf("%+v", info)
	}
	restored := mustOpen(t, dir, opts)
	defer restored.Close()
	if !restored.Clean() || restored.Applied() != 3001 || restored.Synced() != 3001 || restored.Floor() != 3001 {
		t.Fatalf("applied %d, synced %d, floor %d", restored.Applied(), restored.Synced(), restored.Floor())
	}
	if got := dump(t, restored, 3001); !maps.Equal(got, want) {
		t.Fatalf("%d keys, want %d", len(got), len(want))
	}
	// Both go on the same way.
	fill(t, restored, 3002, 10)
	if restored.Hash() != db.Hash() || restored.Keys() != db.Keys() {
		t.Fatal("the restored state goes another way")
	}
	must(t, restored.VerifyHash(context.Background()))
	if _, err := Restore(context.Background(), t.TempDir(), Options{Cluster: 8}, bytes.NewReader(stream)); !errors.Is(err, dfserr.ErrWrongCluster) {
		t.Fatalf("restore into another cluster: %v", err)
	}
}

func TestSnapshotOfNothing(t *testing.T) {
	db := mustOpen(t, t.TempDir(), small)
	defer db.Close()
	dir := t.TempDir()
	_, err := Restore(context.Background(), dir, small, bytes.NewReader(snapshotOf(t, db, 0)))
	must(t, err)
	must(t, mustOpen(t, dir, small).Close())
	put(t, db, 4, "a", "1")
	put(t, db, 5, "a", "")
	must(t, db.Flush())
	_, err = Restore(context.Background(), dir, small, bytes.NewReader(snapshotOf(t, db, 5)))
	must(t, err)
	again := mustOpen(t, dir, small)
	defer again.Close()
	if again.Applied() != 5 || again.Keys() != 0 {
		t.Fatalf("applied %d, %d keys", again.Applied(), again.Keys())
	}
}

func TestInstallSnapshotReplacesAnOpenState(t *testing.T) {
	from, to := mustOpen(t, t.TempDir(), small), mustOpen(t, t.TempDir(), small)
	defer from.Close()
	dir := to.dir
	fill(t, from, 1, 500)
	put(t, to, 3, "old", "state")
	must(t, to.Flush())
	view, err := to.Read()
	must(t, err)
	stream := snapshotOf(t, from, 500)
	if err := to.InstallSnapshot(context.Background(), bytes.NewReader(stream[:len(stream)-9])); !errors.Is(err, dfserr.ErrCorrupt) {
		t.Fatalf("cut stream: %v", err)
	}
	if err := to.Err(); err != nil || to.Applied() != 3 {
		t.Fatalf("a bad stream left %v at %d", err, to.Applied())
	}
	done := make(chan error, 1)
	go func() { done <- to.InstallSnapshot(context.Background(), bytes.NewReader(stream)) }()
	for to.Applied() != 500 { // the new state is there while the view is still open
		select {
		case err := <-done:
			t.Fatalf("did not wait for the view: %v", err)
		default:
		}
	}
	if v, _, err := view.Get([]byte("old")); err != nil || string(v) != "state" {
		t.Fatalf("old view: %q, %v", v, err)
	}
	view.Close()
	must(t, <-done)
	if to.Hash() != from.Hash() {
		t.Fatal("hash differs")
	}
	fill(t, to, 501, 10)
	must(t, to.Close())
	to = mustOpen(t, dir, small)
	defer to.Close()
	if to.Applied() != 510 || !to.Clean() {
		t.Fatalf("applied %d", to.Applied())
	}
	must(t, to.VerifyHash(context.Background()))
}

// TestDamagedStreamIsRefused flips a bit of, cuts, and repeats every part of a stream.
func TestDamagedStreamIsRefused(t *testing.T) {
	db := mustOpen(t, t.TempDir(), small)
	defer db.Close()
	for i := 1; i <= 40; i++ {
		put(t, db, dfs.Index(i), fmt.Sprintf("k%02d", i), strings.Repeat("v", 20000))
	}
	must(t, db.Flush())
	stream := snapshotOf(t, db, 40)
	read := func(b []byte) error {
		_, err := ReadSnapshot(context.Background(), bytes.NewReader(b), func(SnapshotInfo, []byte, []byte) error { return nil })
		return err
	}
	must(t, read(stream))
	refused := 0
	check := func(what string, b []byte) {
		t.Helper()
		if err := read(b); !errors.Is(err, dfserr.ErrCorrupt) && !errors.Is(err, dfserr.ErrFormat) {
			t.Errorf("%s: %v", what, err)
		} else {
			refused++
		}
	}
	step := max(1, len(stream)/400)
	for at := 0; at < len(stream); at += step {
		b := bytes.Clone(stream)
		b[at] ^= 1 << (at % 8)
		check(fmt.Sprintf("bit of byte %d", at), b)
		check(fmt.Sprintf("cut at %d", at), stream[:at])
	}
	frames := splitFrames(t, stream)
	if len(frames) < 5 {
		t.Fatalf("%d frames", len(frames))
	}
	join := func(order ...int) []byte {
		out := []byte(snapshotMagic)
		for _, i := range order {
			out = append(out, frames[i]...)
		}
		return out
	}
	check("frames exchanged", join(0, 2, 1, 3, 4))
	check("frame left out", join(0, 1, 3, 4))
	check("frame repeated", join(0, 1, 1, 2, 3, 4))
	check("no header", join(1, 2, 3, 4))
	check("no trailer", join(0, 1, 2, 3))
	if refused < 400 {
		t.Fatalf("only %d faults", refused)
	}
}

func splitFrames(t *testing.T, stream []byte) (frames [][]byte) {
	b := stream[len(snapshotMagic):]
	for len(b) > 0 {
		r := bytes.NewReader(b)
		fr := frameReader{r: r, n: uint64(len(frames))}
		if _, _, err := fr.read(); err != nil {
			t.Fatal(err)
		}
		n := len(b) - r.Len()
		frames = append(frames, b[:n])
		b = b[n:]
	}
	return frames
}

func FuzzReadSnapshot(f *testing.F) {
	db := mustOpen(f, f.TempDir(), small)
	defer db.Close()
	put(f, db, 1, "a", "1", "b", "2")
	must(f, db.Flush())
	f.Add(snapshotOf(f, db, 1))
	f.Add([]byte(snapshotMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		pairs := uint64(0)
		info, err := ReadSnapshot(context.Background(), bytes.NewReader(b), func(SnapshotInfo, []byte, []byte) error {
			pairs++
			return nil
		})
		if err == nil && info.Keys != pairs {
			t.Fatalf("accepted a stream of %d pairs that says %d", pairs, info.Keys)
		}
		if err != nil && dfserr.Sentinel(err) == nil {
			t.Fatalf("error without a sentinel: %v", err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add(appliedRecord{index: 9, prev: 7}.encode())
	f.Add(seal([]byte("k"), []byte("v")))
	f.Add(append([]byte(markMagic), make([]byte, 48)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := decodeApplied(10, b); err != nil && !errors.Is(err, dfserr.ErrCorrupt) {
			t.Fatal(err)
		}
		if v, err := unseal([]byte("k"), b); err == nil && !bytes.Equal(seal([]byte("k"), v), b) {
			t.Fatal("unseal accepted what seal does not make")
		}
		_, _, _ = decodeMark("x", b)
		_, _, _, _ = cutPair(b)
	})
}
