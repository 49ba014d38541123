package store

import (
	"context"
	"strings"
	"testing"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

func TestFormat(t *testing.T) {
	fsys := vfs.NewMem()
	disk := Disk{Name: "/data/1", FS: fsys}
	_, err := ReadIdentity(disk)
	wantErr(t, err, dfserr.ErrNotExist)
	id := Identity{Cluster: 1, Server: 2, Disk: 3}
	wantErr(t, Format(disk, Identity{Cluster: 1, Server: 2}), dfserr.ErrInvalid)
	must(t, Format(disk, id))
	got, err := ReadIdentity(disk)
	must(t, err)
	if got != id {
		t.Errorf("identity %+v", got)
	}
	wantErr(t, Format(disk, id), dfserr.ErrExist)
	other := Disk{Name: "/data/2", FS: vfs.NewMem()}
	must(t, vfs.WriteFile(other.FS, "precious", []byte("x"), 0o644))
	wantErr(t, Format(other, id), dfserr.ErrNotEmpty)
}

func TestFormatIsRepeatable(t *testing.T) {
	// Interrupted after each operation, then repeated.
	id := Identity{Cluster: 1, Server: 2, Disk: 3}
	for i := 0; ; i += 7 {
		fsys := vfs.NewCrashable()
		in := vfs.NewInject(fsys)
		in.FailNth(i, vfs.Fault{Dead: true})
		err := Format(Disk{Name: "/d", FS: in}, id)
		after := fsys.CrashKeepNothing()
		disk := Disk{Name: "/d", FS: after}
		if err == nil {
			if in.Fired() != 0 {
				t.Fatal("format succeeded in spite of a fault")
			}
			got, err := ReadIdentity(disk)
			must(t, err)
			if got != id {
				t.Errorf("identity %+v", got)
			}
			return
		}
		if err := Format(disk, id); err != nil && dfserr.Sentinel(err) != dfserr.ErrExist {
			t.Fatalf("operation %d: format again: %v", i, err)
		}
		s := openStore(t, after, testOptions())
		s.Kill()
	}
}

func TestOpenRefuses(t *testing.T) {
	good := func() Disk { return Disk{Name: "/data/good", FS: formatted(t, vfs.NewMem())} }
	identified := func(id Identity) Disk {
		d := Disk{Name: "/data/bad", FS: vfs.NewMem()}
		must(t, Format(d, id))
		return d
	}
	rewritten := func(content string) Disk {
		d := identified(Identity{testCluster, testServer, 2})
		must(t, vfs.WriteFile(d.FS, identityFile, []byte(content), 0o644))
		return d
	}
	locked := identified(Identity{testCluster, testServer, 2})
	_, err := locked.FS.Lock(lockFile)
	must(t, err)
	for name, tc := range map[string]struct {
		bad  Disk
		want error
		hint string
	}{
		"unformatted":   {Disk{Name: "/data/bad", FS: vfs.NewMem()}, dfserr.ErrNotExist, "format"},
		"in use":        {locked, dfserr.ErrInUse, "stop it"},
		"other cluster": {identified(Identity{9, testServer, 2}), dfserr.ErrWrongCluster, "list of disks"},
		"other server":  {identified(Identity{testCluster, 9, 2}), dfserr.ErrServerConflict, "list of disks"},
		"newer":         {rewritten("dfs-chunkserver-disk 2\nanything\n"), dfserr.ErrFormat, "upgrade"},
		"damaged":       {rewritten("dfs-chunkserver-disk 1\ncluster 00000000000000c1\n"), dfserr.ErrCorrupt, "restore"},
	} {
		t.Run(name, func(t *testing.T) {
			first := good()
			_, err := Open(context.Background(), []Disk{first, tc.bad}, testOptions())
			wantErr(t, err, tc.want)
			if err == nil || !strings.Contains(err.Error(), "/data/bad") || !strings.Contains(err.Error(), tc.hint) {
				t.Errorf("%v does not name the directory and the way out", err)
			}
			// The good disk was let go.
			s, err := Open(context.Background(), []Disk{first}, testOptions())
			must(t, err)
			s.Kill()
		})
	}
	d := good()
	opts := testOptions()
	opts.Cluster = 77
	_, err = Open(context.Background(), []Disk{d}, opts)
	wantErr(t, err, dfserr.ErrWrongCluster)
	opts.Cluster, opts.Server = testCluster, 77
	_, err = Open(context.Background(), []Disk{d}, opts)
	wantErr(t, err, dfserr.ErrServerConflict)
	_, err = Open(context.Background(), nil, opts)
	wantErr(t, err, dfserr.ErrInvalid)
}

func TestOneOfSeveralDisksIsBroken(t *testing.T) {
	a, b := vfs.NewInject(formatted(t, vfs.NewMem())), Disk{Name: "/b", FS: vfs.NewMem()}
	must(t, Format(b, Identity{testCluster, testServer, 2}))
	a.FailNth(0, vfs.Fault{Dead: true})
	s, err := Open(context.Background(), []Disk{{Name: "/a", FS: a}, b}, testOptions())
	must(t, err)
	defer s.Kill()
	if a.Fired() == 0 {
		t.Fatal("the fault did not fire")
	}
	r, err := s.Create(1, 1)
	must(t, err)
	if st := state(t, r); st.Disk != "/b" {
		t.Errorf("replica on disk %s", st.Disk)
	}
}

func TestSpaceAndReserve(t *testing.T) {
	small, big := vfs.NewMem(), vfs.NewMem()
	must(t, Format(Disk{Name: "/small", FS: small}, Identity{testCluster, testServer, 1}))
	must(t, Format(Disk{Name: "/big", FS: big}, Identity{testCluster, testServer, 2}))
	small.SetCapacity(1 * dfs.MiB)
	big.SetCapacity(2 * dfs.MiB)
	opts := testOptions()
	opts.Reserve = 256 * dfs.KiB
	s, err := Open(context.Background(), []Disk{{Name: "/small", FS: small}, {Name: "/big", FS: big}}, opts)
	must(t, err)
	defer s.Kill()
	r, err := s.Create(1, 1)
	must(t, err)
	if st := state(t, r); st.Disk != "/big" {
		t.Errorf("first replica on %s", st.Disk)
	}
	// Fill the disk up to the reserve.
	var seq dfs.Seq
	for {
		m := write(int64(seq)*50_000, fill(byte(seq), 50_000))
		m.Version, m.Seq = 1, seq+1
		if err = r.Append(m); err != nil {
			break
		}
		seq++
	}
	wantErr(t, err, dfserr.ErrNoSpace)
	if _, free, _ := big.Usage(); free < opts.Reserve || free > opts.Reserve+200_000 {
		t.Errorf("%d bytes are free, the reserve is %d", free, opts.Reserve)
	}
	u := s.Usage()[1]
	if u.Name != "/big" || u.ID != 2 || u.Replicas != 1 || u.Failed != nil || u.Free > 200_000 || u.Capacity != 2*dfs.MiB {
		t.Errorf("usage %+v", u)
	}
	// New replicas go to the other disk; this one goes on otherwise.
	p, err := s.Create(2, 1)
	must(t, err)
	if st := state(t, p); st.Disk != "/small" {
		t.Errorf("second replica on %s", st.Disk)
	}
	readAll(t, r)
	must(t, r.SetVersion(2))
	m := &Mutation{Kind: KindTruncate, Version: 2, Seq: seq + 1}
	must(t, r.Append(m))
	must(t, r.Sync())
	// Compaction may use half of the reserve, and gives the space back.
	must(t, r.SetCommitted(seq+1))
	must(t, r.Compact(context.Background()))
	m = write(0, fill(1, 50_000))
	m.Version, m.Seq = 2, seq+2
	must(t, r.Append(m))
	_, err = s.Receive(9, ReceiveOptions{Whole: true, Size: 10 * dfs.MiB})
	wantErr(t, err, dfserr.ErrNoSpace)
	must(t, s.Delete(1, 2))
}

// TestFullDisk uses a disk up without any reserve.
func TestFullDisk(t *testing.T) {
	fsys := formatted(t, vfs.NewCrashable())
	fsys.SetCapacity(400 * dfs.KiB)
	s := openStore(t, fsys, testOptions())
	r, err := s.Create(1, 1)
	must(t, err)
	refused := 0
	var seq dfs.Seq
	for i := range 40 {
		m := write(int64(i%4)*20_000, fill(byte(seq), 20_000))
		m.Version, m.Seq = 1, seq+1
		if err := r.Append(m); err == nil {
			seq++
		} else {
			wantErr(t, err, dfserr.ErrNoSpace)
			refused++
		}
	}
	if refused == 0 {
		t.Fatal("the disk never filled up")
	}
	must(t, r.Sync())
	want := readAll(t, r)
	if u := s.Usage(); u[0].Failed != nil {
		t.Errorf("a full disk was condemned: %v", u[0].Failed)
	}
	wantErr(t, r.Compact(context.Background()), dfserr.ErrNoSpace)
	must(t, s.Close())
	s = openStore(t, fsys.CrashKeepNothing(), testOptions())
	r = replica(t, s, 1)
	if got := readAll(t, r); string(got) != string(want) || state(t, r).LastSeq != seq {
		t.Error("contents differ after a power loss on a full disk")
	}
	must(t, s.Delete(1, 1))
	_, err = s.Create(2, 1)
	must(t, err)
}

// TestUsedBytes follows the running total of the replicas' bytes through everything that changes a log, and compares it
// with the lengths of the files.
func TestUsedBytes(t *testing.T) {
	disk := formatted(t, vfs.NewMem())
	s := openStore(t, disk, testOptions())
	check := func(what string) int64 {
		t.Helper()
		var want int64
		for _, id := range s.Chunks() {
			info, err := disk.Stat(chunkFile(id))
			must(t, err)
			want += info.Size()
		}
		used := s.Usage()[0].Used
		if used != want || want == 0 && len(s.Chunks()) > 0 {
			t.Errorf("after %s: Used is %d, the files have %d bytes", what, used, want)
		}
		return used
	}
	check("nothing")
	r, err := s.Create(testChunk, 1)
	must(t, err)
	check("create")
	for i := range 20 {
		next(t, r, write(int64(i%3)*1000, fill(byte(i), 100_000)))
	}
	full := check("writes")
	must(t, r.Sync())
	check("sync")
	must(t, r.SetCommitted(20))
	must(t, r.Compact(context.Background()))
	if used := check("compaction"); used > full/2 {
		t.Errorf("%d bytes before the compaction, %d after it", full, used)
	}
	must(t, s.Close())
	s = openStore(t, disk, testOptions())
	check("reopening")
	next(t, replica(t, s, testChunk), write(0, fill(1, 5000)))
	check("a write over the footer")
	other := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	if _, err = copyLog(t, replica(t, s, testChunk), other, 0, true); err != nil {
		t.Fatal(err)
	}
	if a, b := s.Usage()[0].Used, other.Usage()[0].Used; b == 0 || b > 2*a {
		t.Errorf("the copy of %d bytes uses %d", a, b)
	}
	s.Kill()
	s = openStore(t, disk, testOptions())
	check("a kill")
	must(t, s.Delete(testChunk, 9))
	if used := check("delete"); used != 0 {
		t.Errorf("Used is %d without replicas", used)
	}
}

func TestDefaultReserve(t *testing.T) {
	disk := vfs.NewMem()
	disk.SetCapacity(1 * dfs.MiB)
	opts := testOptions()
	opts.Reserve = 0
	if u := openStore(t, formatted(t, disk), opts).Usage()[0]; u.Free < 900*dfs.KiB || u.Free > u.Capacity-DefaultReserve(u.Capacity) {
		t.Errorf("%d of %d bytes are free beyond the default reserve", u.Free, u.Capacity)
	}
	if got := DefaultReserve(1 << 50); got != dfs.GiB {
		t.Errorf("reserve of a large disk is %d", got)
	}
}
