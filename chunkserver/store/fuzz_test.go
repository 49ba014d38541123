package store

import (
	"bytes"
	"testing"

	"dfs/internal/dfs"
	"dfs/internal/vfs"
)

func FuzzFileHeader(f *testing.F) {
	h := fileHeader{cluster: 1, chunk: 2, created: 3, nonce: 4}
	f.Add(h.encode(nil))
	h.stream = true
	f.Add(h.encode(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, stream := range []bool{false, true} {
			h, err := decodeFileHeader(b, stream)
			if err == nil && !bytes.Equal(h.encode(nil), b[:fileHeaderSize]) {
				t.Error("a header decodes and encodes to something else")
			}
		}
	})
}

func FuzzRecord(f *testing.F) {
	for _, r := range []record{
		{typ: recWrite, version: 1, seq: 2, off: 4_000, len: 200, payloadLen: 200, crcs: []uint32{1, 2}},
		{typ: recConfig, version: 9, logOff: 77, synced: 70},
		{typ: recBase, payloadLen: 99, crcs: []uint32{1}},
	} {
		f.Add(r.encode(nil, 5), uint32(5), r.logOff)
	}
	f.Fuzz(func(t *testing.T, b []byte, seed uint32, logOff int64) {
		r, need, err := decodeRecord(b, seed, logOff)
		if need > maxHeaderSize {
			t.Fatalf("asks for %d bytes", need)
		}
		if err != nil {
			return
		}
		if r.end() < r.logOff || r.payloadLen > maxBasePayload {
			t.Errorf("record of %d bytes", r.payloadLen)
		}
		if !bytes.Equal(r.encode(nil, seed), b[:need]) {
			t.Error("a record decodes and encodes to something else")
		}
	})
}

func FuzzTrailer(f *testing.F) {
	t0 := trailer{end: 100, footerLen: 50, chain: 1, footerCRC: 2}
	f.Add(t0.encode(nil, 5), uint32(5), int64(198))
	f.Fuzz(func(t *testing.T, b []byte, seed uint32, size int64) {
		tr, ok := decodeTrailer(b, seed, size)
		if ok && (tr.end+tr.footerLen+trailerSize != size || tr.footerLen > maxFooter || tr.end < fileHeaderSize) {
			t.Errorf("trailer %+v of a file of %d bytes", tr, size)
		}
	})
}

func FuzzFooter(f *testing.F) {
	h := fileHeader{cluster: 1, chunk: 2, created: 3}
	x := newIndex(&h)
	x.apply(&record{typ: recWrite, logOff: 64, version: 3, seq: 1, off: 10, len: 5_000, payloadLen: 5_000, writer: 3, request: 7, crcs: []uint32{1, 2}})
	x.apply(&record{typ: recTruncate, logOff: x.end, version: 3, seq: 2, off: 4_000})
	payload, _ := x.encodeFooter()
	f.Add(payload, x.end)
	f.Add([]byte{}, int64(64))
	f.Fuzz(func(t *testing.T, b []byte, end int64) {
		if len(b) > 1<<20 {
			return
		}
		x, err := decodeFooter(b, &trailer{end: end})
		if err != nil {
			return
		}
		again, ok := x.encodeFooter()
		if !ok {
			t.Error("a decoded index is too big")
		}
		if y, err := decodeFooter(again, &trailer{end: end}); err != nil || len(y.extents.list) != len(x.extents.list) || y.lastSeq != x.lastSeq {
			t.Errorf("an index does not survive encoding: %v", err)
		}
	})
}

func FuzzBase(f *testing.F) {
	h := fileHeader{cluster: 1, chunk: 2, created: 3}
	x := newIndex(&h)
	x.apply(&record{typ: recZero, logOff: 64, version: 3, seq: 1, off: 10, len: 5_000, writer: 3, request: 7})
	f.Add(x.encodeBase())
	f.Fuzz(func(t *testing.T, b []byte) {
		x := newIndex(&h)
		if err := x.applyBase(&record{typ: recBase, logOff: 64}, b); err != nil {
			return
		}
		y := newIndex(&h)
		if err := y.applyBase(&record{typ: recBase, logOff: 64}, x.encodeBase()); err != nil || y.lastSeq != x.lastSeq || y.length != x.length {
			t.Errorf("a base does not survive encoding: %v", err)
		}
	})
}

func FuzzIdentity(f *testing.F) {
	f.Add(Identity{1, 2, 3}.encode())
	f.Add([]byte("dfs-chunkserver-disk 2\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := decodeIdentity(b)
		if err == nil && !bytes.Equal(id.encode(), b) {
			t.Error("an identity decodes and encodes to something else")
		}
	})
}

// FuzzRecover opens arbitrary bytes as a log and reads what comes of it.
func FuzzRecover(f *testing.F) {
	for _, clean := range []bool{true, false} {
		file, _, _ := damagedLog(f, clean)
		f.Add(file)
		f.Add(file[:len(file)-300])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		fsys := vfs.NewMem()
		file, err := fsys.OpenFile("log", 0x42, 0o644) // O_RDWR|O_CREATE
		must(t, err)
		_, err = file.WriteAt(b, 0)
		must(t, err)
		rec, err := recoverLog(file, testCluster, testChunk)
		if err != nil || rec.corrupt != nil {
			return
		}
		for off := int64(0); off < min(rec.x.length, 4*dfs.MiB); off += dfs.FrameSize {
			n := min(dfs.FrameSize, rec.x.length-off)
			var res ReadResult
			if err := rec.log.readRange(rec.x.extents.overlapping(off, off+n), off, n, &res); err == nil {
				checkResult(t, off, &res)
			}
			res.Release()
		}
	})
}

// FuzzReceive feeds arbitrary bytes to the receiving side of a copy.
func FuzzReceive(f *testing.F) {
	file, _, _ := damagedLog(f, false)
	fsys := formatted(f, vfs.NewMem())
	s := openDamaged(f, fsys, file)
	for _, whole := range []bool{true, false} {
		lr, err := replica(f, s, testChunk).LogReader(2, whole)
		must(f, err)
		b := make([]byte, 1<<20)
		n, err := lr.Read(b)
		must(f, err)
		must(f, lr.Close())
		f.Add(b[:n], whole)
	}
	dst := openStore(f, formatted(f, vfs.NewMem()), testOptions())
	f.Fuzz(func(t *testing.T, b []byte, whole bool) {
		if _, err := dst.Replica(testChunk); err != nil {
			if _, err := dst.Create(testChunk, 1); err != nil {
				t.Fatal(err)
			}
		}
		rc, err := dst.Receive(testChunk, ReceiveOptions{Whole: whole})
		must(t, err)
		defer rc.Abort()
		if _, err := rc.Write(b); err != nil {
			return
		}
		if r, err := rc.Commit(); err == nil {
			if _, err := observe(t, r); err != nil {
				t.Errorf("a copy that was accepted cannot be read: %v", err)
			}
			must(t, dst.Delete(testChunk, ^dfs.Version(0)))
		}
	})
}
