package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

// snapshot is what a replica may look like.
type snapshot struct {
	exists  bool
	data    []byte
	version dfs.Version
	lastSeq dfs.Seq
}

func (s snapshot) String() string {
	if !s.exists {
		return "absent"
	}
	return fmt.Sprintf("version %d, seq %d, %d bytes, crc %08x", s.version, s.lastSeq, len(s.data), dfs.CRC(s.data))
}

func (s snapshot) equal(o snapshot) bool {
	return s.exists == o.exists && s.version == o.version && s.lastSeq == o.lastSeq && bytes.Equal(s.data, o.data)
}

// track follows one chunk through a workload.
type track struct {
	m       *model
	acked   snapshot   // after the last call that succeeded
	maybe   *snapshot  // what the call under way, or the one that failed, would lead to
	durable []snapshot // since the last call that made it durable: any of them may survive a power loss
}

func newTrack() *track { return &track{m: newModel(), durable: []snapshot{{}}} }

// workload runs a fixed series of calls on a store until the first that fails.
type workload struct {
	t      *testing.T
	fsys   vfs.FS
	opts   Options
	s      *Store
	source *Store // to copy from
	chunks map[dfs.ChunkID]*track
	err    error
	failed string // the call
}

// do makes one call that takes a chunk to the snapshot.
func (w *workload) do(what string, id dfs.ChunkID, to snapshot, durable bool, call func() error) {
	if w.err != nil {
		return
	}
	c := w.chunks[id]
	c.maybe = &to
	if w.err = call(); w.err != nil {
		w.failed = fmt.Sprintf("%s %v", what, id)
		return
	}
	c.acked, c.maybe = to, nil
	if durable {
		c.durable = nil
	}
	c.durable = append(c.durable, to)
}

func (w *workload) on(id dfs.ChunkID, call func(r *Replica) error) func() error {
	return func() error {
		r, err := w.s.Replica(id)
		if err != nil {
			return err
		}
		return call(r)
	}
}

func (w *workload) create(id dfs.ChunkID) {
	if w.err == nil {
		w.chunks[id] = newTrack()
	}
	w.do("create", id, snapshot{exists: true, version: 1}, false, func() error {
		_, err := w.s.Create(id, 1)
		return err
	})
}

func (w *workload) append(id dfs.ChunkID, mut *Mutation) {
	if w.err != nil {
		return
	}
	c := w.chunks[id]
	mut.Version, mut.Seq = c.acked.version, c.acked.lastSeq+1
	c.m.apply(mut)
	to := snapshot{true, bytes.Clone(c.m.data), mut.Version, mut.Seq}
	w.do("append", id, to, false, w.on(id, func(r *Replica) error { return r.Append(mut) }))
}

func (w *workload) version(id dfs.ChunkID, v dfs.Version) {
	if w.err != nil {
		return
	}
	to := w.chunks[id].acked
	to.version = v
	w.do("set version", id, to, false, w.on(id, func(r *Replica) error { return r.SetVersion(v) }))
}

func (w *workload) drop(id dfs.ChunkID, seq dfs.Seq) {
	if w.err != nil {
		return
	}
	c := w.chunks[id]
	c.m.drop(seq)
	to := snapshot{true, bytes.Clone(c.m.data), c.acked.version, seq}
	w.do("drop", id, to, false, w.on(id, func(r *Replica) error { return r.DropAfter(seq) }))
}

func (w *workload) commit(id dfs.ChunkID, seq dfs.Seq) {
	if w.err == nil {
		w.do("commit", id, w.chunks[id].acked, false, w.on(id, func(r *Replica) error { return r.SetCommitted(seq) }))
	}
}

func (w *workload) sync(id dfs.ChunkID) {
	if w.err == nil {
		w.do("sync", id, w.chunks[id].acked, true, w.on(id, (*Replica).Sync))
	}
}

func (w *workload) compact(id dfs.ChunkID) {
	if w.err == nil {
		w.do("compact", id, w.chunks[id].acked, true, w.on(id, func(r *Replica) error { return r.Compact(context.Background()) }))
	}
}

func (w *workload) read(id dfs.ChunkID) {
	if w.err == nil {
		w.do("read", id, w.chunks[id].acked, false, w.on(id, func(r *Replica) error {
			got, err := observe(w.t, r)
			if err == nil && !got.equal(w.chunks[id].acked) {
				w.t.Errorf("read %v, want %v", got, w.chunks[id].acked)
			}
			return err
		}))
	}
}

func (w *workload) delete(id dfs.ChunkID) {
	if w.err == nil {
		w.do("delete", id, snapshot{}, true, func() error { return w.s.Delete(id, 100) })
	}
}

// receive copies a chunk of the source store.
func (w *workload) receive(id dfs.ChunkID, after dfs.Seq, whole bool) {
	if w.err != nil {
		return
	}
	r := replica(w.t, w.source, id)
	to, err := observe(w.t, r)
	must(w.t, err)
	c := w.chunks[id]
	if c == nil {
		c = newTrack()
		w.chunks[id] = c
	} else if !whole { // a tail arrives mutation by mutation
		for seq := after + 1; seq < to.lastSeq; seq++ {
			part := to
			part.lastSeq = seq
			part.data = w.sourceAt(id, seq)
			c.durable = append(c.durable, part)
		}
	}
	c.m = &model{data: bytes.Clone(to.data)}
	w.do("receive", id, to, true, func() error {
		lr, err := r.LogReader(after, whole)
		must(w.t, err)
		defer lr.Close()
		rc, err := w.s.Receive(id, ReceiveOptions{Whole: whole})
		if err != nil {
			return err
		}
		defer rc.Abort()
		if _, err := io.CopyBuffer(struct{ io.Writer }{rc}, struct{ io.Reader }{lr}, make([]byte, 5000)); err != nil {
			return err
		}
		_, err = rc.Commit()
		return err
	})
}

// sourceAt returns the source's chunk after mutation seq.
func (w *workload) sourceAt(id dfs.ChunkID, seq dfs.Seq) []byte {
	m := newModel()
	for _, mut := range sourceMutations()[:seq] {
		m.apply(mut)
	}
	return m.data
}

// reopen closes the store cleanly, which makes the replicas durable that are open: all, once they were read.
func (w *workload) reopen() {
	for id := dfs.ChunkID(1); id <= 3; id++ {
		if c := w.chunks[id]; c != nil && c.acked.exists {
			w.read(id)
		}
	}
	if w.err != nil {
		return
	}
	if w.err = w.s.Close(); w.err != nil {
		w.failed = "close"
		return
	}
	for _, c := range w.chunks {
		c.durable = []snapshot{c.acked}
	}
	if w.s, w.err = w.open(); w.err != nil {
		w.failed = "open"
	}
}

// restart is a process kill.
func (w *workload) restart() {
	if w.err != nil {
		return
	}
	w.s.Kill()
	if w.s, w.err = w.open(); w.err != nil {
		w.failed = "open"
	}
}

func (w *workload) open() (*Store, error) {
	return Open(context.Background(), []Disk{{Name: "/disk", FS: w.fsys}}, w.opts)
}

// observe returns what a replica looks like. Reading it must give right checksums.
func observe(t testing.TB, r *Replica) (snapshot, error) {
	t.Helper()
	st, err := r.State()
	if errors.Is(err, dfserr.ErrNotExist) {
		return snapshot{}, nil
	}
	if err != nil {
		return snapshot{}, err
	}
	if st.Structural {
		return snapshot{}, dfserr.Errorf(dfserr.ErrCorrupt, "%s", st.CorruptReason)
	}
	got := snapshot{exists: true, version: st.Version, lastSeq: st.LastSeq}
	for off := int64(0); off < st.Length; {
		res, err := r.ReadAt(off, min(dfs.FrameSize, st.Length-off))
		if err != nil {
			return got, err
		}
		checkResult(t, off, res)
		got.data = append(got.data, res.Data...)
		off += int64(len(res.Data))
		res.Release()
	}
	return got, nil
}

// observeChunk is observe for a chunk that may be absent.
func observeChunk(t testing.TB, s *Store, id dfs.ChunkID) (snapshot, error) {
	t.Helper()
	r, err := s.Replica(id)
	if errors.Is(err, dfserr.ErrNotExist) {
		return snapshot{}, nil
	}
	must(t, err)
	return observe(t, r)
}

// sourceMutations is what the source store has of chunk 3.
func sourceMutations() []*Mutation {
	return []*Mutation{write(0, fill(50, 6_000)), write(2_000, fill(51, 500)), write(8_000, fill(52, 900)), write(10, fill(53, 20))}
}

// run makes every kind of call, each in several situations.
func (w *workload) run() {
	const a, b, c = dfs.ChunkID(1), dfs.ChunkID(2), dfs.ChunkID(3)
	if w.s, w.err = w.open(); w.err != nil {
		w.failed = "open"
		return
	}
	w.create(a)
	w.append(a, write(0, fill(1, 9_000)))
	w.append(a, write(4_000, fill(2, 700)))
	w.sync(a)
	w.append(a, write(0, fill(3, 5_000)))
	w.read(a)
	w.create(b)
	w.append(b, write(100, fill(4, 3_000)))
	w.append(a, &Mutation{Kind: KindZero, Off: 100, Len: 6_000})
	w.version(a, 4)
	w.append(a, write(8_500, fill(5, 2_000)))
	w.sync(a)
	w.commit(a, 4)
	w.append(a, &Mutation{Kind: KindTruncate, Off: 5_000, CutVersion: 2})
	w.restart()
	w.append(a, write(6_000, fill(6, 100)))
	w.drop(a, 6)
	w.append(a, write(7_000, fill(7, 4_500)))
	w.compact(a)
	w.append(a, write(1, fill(8, 600)))
	w.reopen()
	w.append(a, write(2, fill(9, 50)))
	w.read(a)
	w.sync(a)
	w.append(a, write(300, fill(10, 5_000)))
	w.commit(a, 10)
	w.compact(a)
	w.append(a, write(301, fill(11, 1_000)))
	w.sync(b)
	w.delete(b)
	w.receive(c, 0, true)
	if w.err == nil {
		r := replica(w.t, w.source, c)
		for _, m := range sourceMutations()[2:] {
			next(w.t, r, m)
		}
	}
	w.receive(c, 2, false)
	w.version(c, 3)
	w.receive(a, 0, true)
	w.read(a)
	w.read(c)
	w.reopen()
	w.read(a)
}

// newWorkload prepares a disk, behind an Inject, and a store to copy from.
func newWorkload(t *testing.T, fsys *vfs.Crashable) (*workload, *vfs.Inject) {
	in := vfs.NewInject(fsys)
	source := openStore(t, formatted(t, vfs.NewMem()), testOptions())
	r, err := source.Create(3, 1)
	must(t, err)
	for _, m := range sourceMutations()[:2] {
		next(t, r, m)
	}
	must(t, r.SetCommitted(1))
	r, err = source.Create(1, 9)
	must(t, err)
	next(t, r, write(10, fill(60, 4_000)))
	return &workload{t: t, fsys: in, opts: testOptions(), source: source, chunks: map[dfs.ChunkID]*track{}}, in
}

// formattedDisk is a formatted Crashable whose contents can be made again at once.
func formattedDisk(t *testing.T) *vfs.Crashable { return formatted(t, vfs.NewCrashable()) }

// operations runs the workload without faults and returns the numbers of its disk operations, without most of
// the listings that each opening of the disk makes of directories that are all alike.
func operations(t *testing.T) (numbers []int) {
	w, in := newWorkload(t, formattedDisk(t))
	in.Record()
	w.run()
	if w.err != nil {
		t.Fatalf("%s: %v", w.failed, w.err)
	}
	log := in.Log()
	w.s.Kill()
	for _, op := range log {
		if op.Kind != vfs.OpReadDir || op.Name <= "chunks/01" {
			numbers = append(numbers, op.N)
		}
	}
	return numbers
}

// oneOf reports whether got is among the snapshots.
func oneOf(got snapshot, of ...snapshot) bool {
	for _, s := range of {
		if got.equal(s) {
			return true
		}
	}
	return false
}

// checkKilled checks that a process kill lost nothing.
func (w *workload) checkKilled(s *Store, label string) {
	w.t.Helper()
	for id, c := range w.chunks {
		got, err := observeChunk(w.t, s, id)
		want := []snapshot{c.acked}
		if c.maybe != nil {
			want = append(want, *c.maybe)
		}
		if c.maybe != nil && w.failed == fmt.Sprintf("receive %v", id) {
			want = append(want, c.durable...) // a tail that arrived in part
		}
		if err != nil || !oneOf(got, want...) {
			w.t.Fatalf("%s: chunk %v is %v (%v), want one of %v", label, id, got, err, want)
		}
	}
}

// checkCrashed checks that a power loss lost nothing that was durable, and tore nothing apart.
func (w *workload) checkCrashed(s *Store, label string) {
	w.t.Helper()
	for id, c := range w.chunks {
		got, err := observeChunk(w.t, s, id)
		want := append([]snapshot(nil), c.durable...)
		if c.maybe != nil {
			want = append(want, *c.maybe)
		}
		if err != nil || !oneOf(got, want...) {
			w.t.Fatalf("%s: chunk %v is %v (%v), want one of %v", label, id, got, err, want)
		}
	}
}

// faultKinds are the ways in which the i-th operation fails.
var faultKinds = map[string]vfs.Fault{
	"error":        {},
	"short":        {Short: true},
	"done":         {Apply: true},
	"dead":         {Dead: true},
	"dead halfway": {Dead: true, Short: true},
	"dead after":   {Dead: true, Apply: true},
}

// TestFailEveryOperation fails each disk operation of the workload, in each way; then it kills the process and
// opens the disk again, and it cuts the power and opens it again.
func TestFailEveryOperation(t *testing.T) {
	numbers := operations(t)
	t.Logf("%d disk operations", len(numbers))
	for name, fault := range faultKinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			step := 1
			if testing.Short() || name == "short" || name == "done" || name == "dead" {
				step = 3 // the others do the same and more
			}
			for j := len(name) % step; j < len(numbers); j += step {
				i := numbers[j]
				failOne(t, i, name, fault)
			}
		})
	}
}

func failOne(t *testing.T, i int, name string, fault vfs.Fault) {
	t.Helper()
	fsys := formattedDisk(t)
	w, in := newWorkload(t, fsys)
	in.FailNth(i, fault)
	w.run()
	if in.Fired() == 0 {
		t.Fatalf("operation %d: the fault did not fire", i)
	}
	label := fmt.Sprintf("operation %d (%s), then %s failed (%v)", i, name, w.failed, w.err)
	if w.err == nil {
		label = fmt.Sprintf("operation %d (%s), nothing failed", i, name)
	}
	if w.s != nil && w.failed != "close" {
		// The store that met the fault goes on answering, never wrongly.
		in.SetFaults(nil)
		for id, c := range w.chunks {
			got, err := observeChunk(t, w.s, id)
			if err == nil && !oneOf(got, append(append([]snapshot{c.acked}, c.durable...), maybeOf(c)...)...) {
				t.Fatalf("%s: the same store reads chunk %v as %v", label, id, got)
			}
		}
	}
	if w.s != nil {
		w.s.Kill()
	}
	killed := fsys.Kill()
	reopen := func(disk vfs.FS, label string) *Store {
		t.Helper()
		must(t, Readmit(Disk{Name: "/disk", FS: disk}))
		s, err := Open(context.Background(), []Disk{{Name: "/disk", FS: disk}}, testOptions())
		if err != nil {
			t.Fatalf("%s: %v", label, err)
		}
		return s
	}
	// Reads do not depend on repairs, so a store that only reads leaves the disk for the power loss.
	s := reopen(killed, label)
	w.checkKilled(s, label+", killed")
	s.Kill()
	for seed := range uint64(2) {
		label := fmt.Sprintf("%s, power loss %d", label, seed)
		after := killed.Crash(rand.New(rand.NewPCG(seed, uint64(i))))
		s := reopen(after, label)
		w.checkCrashed(s, label)
		w.afterwards(s, after, label)
	}
}

func maybeOf(c *track) []snapshot {
	if c.maybe == nil {
		return nil
	}
	return []snapshot{*c.maybe}
}

// afterwards checks that the replicas that survived can be written, and survive again.
func (w *workload) afterwards(s *Store, fsys *vfs.Crashable, label string) {
	w.t.Helper()
	want := map[dfs.ChunkID]snapshot{}
	for _, id := range s.Chunks() {
		r, err := s.Replica(id)
		must(w.t, err)
		before, err := observe(w.t, r)
		must(w.t, err)
		if !before.exists {
			continue
		}
		m := write(11, fill(99, 300))
		m.Version, m.Seq = before.version, before.lastSeq+1
		if err := r.Append(m); err != nil {
			w.t.Fatalf("%s: append to chunk %v afterwards: %v", label, id, err)
		}
		if err := r.Sync(); err != nil {
			w.t.Fatalf("%s: sync of chunk %v afterwards: %v", label, id, err)
		}
		if want[id], err = observe(w.t, r); err != nil || want[id].lastSeq != m.Seq {
			w.t.Fatalf("%s: chunk %v is %v afterwards (%v)", label, id, want[id], err)
		}
	}
	s.Kill()
	again := fsys.CrashKeepNothing()
	s, err := Open(context.Background(), []Disk{{Name: "/disk", FS: again}}, testOptions())
	must(w.t, err)
	for id, want := range want {
		if got, err := observeChunk(w.t, s, id); err != nil || !got.equal(want) {
			w.t.Fatalf("%s: chunk %v is %v (%v) after a second power loss, want %v", label, id, got, err, want)
		}
	}
	s.Kill()
}

// TestNoSpaceEveryWrite fails each write of the workload once for lack of space: the call is refused, nothing is
// condemned, nothing is left half done, and the same call succeeds when there is space again.
func TestNoSpaceEveryWrite(t *testing.T) {
	for i := 0; ; i++ {
		fsys := formattedDisk(t)
		w, in := newWorkload(t, fsys)
		in.FailNthOf(i, func(op vfs.Op) bool { return op.Kind == vfs.OpWrite }, vfs.Fault{Err: vfs.NoSpace, Short: i%2 == 0})
		w.run()
		if in.Fired() == 0 {
			if i == 0 || w.err != nil {
				t.Fatalf("no fault fired at write %d: %v", i, w.err)
			}
			t.Logf("%d writes", i)
			return
		}
		if w.err != nil {
			wantErr(t, w.err, dfserr.ErrNoSpace)
		}
		for _, u := range w.s.Usage() {
			if u.Failed != nil {
				t.Fatalf("write %d (%s): disk condemned: %v", i, w.failed, u.Failed)
			}
		}
		for id, c := range w.chunks {
			got, err := observeChunk(t, w.s, id)
			if err != nil || !oneOf(got, append(c.durable, c.acked)...) {
				t.Fatalf("write %d (%s): chunk %v is %v (%v)", i, w.failed, id, got, err)
			}
			if got.exists {
				r := replica(t, w.s, id)
				next(t, r, write(5, fill(70, 2_000)))
				must(t, r.Sync())
			}
		}
		w.s.Kill()
	}
}

// TestFailedDiskStaysCondemned checks that after one failed sync nothing more is acknowledged, reads go on, a
// restart remembers, and Readmit forgets.
func TestFailedDiskStaysCondemned(t *testing.T) {
	fsys := formattedDisk(t)
	in := vfs.NewInject(fsys)
	s := openStore(t, in, testOptions())
	r, err := s.Create(testChunk, 1)
	must(t, err)
	other, err := s.Create(testChunk+1, 1)
	must(t, err)
	next(t, r, write(0, fill(1, 1000)))
	in.FailNthOf(0, func(op vfs.Op) bool { return op.Kind == vfs.OpSync }, vfs.Fault{})
	wantErr(t, r.Sync(), dfserr.ErrDiskFailed)
	if in.Fired() != 1 {
		t.Fatal("the fault did not fire")
	}
	in.SetFaults(nil)
	in.Record()
	wantErr(t, r.Sync(), dfserr.ErrDiskFailed)
	wantErr(t, other.Sync(), dfserr.ErrDiskFailed)
	m := write(0, fill(2, 10))
	m.Version, m.Seq = 1, 2
	wantErr(t, r.Append(m), dfserr.ErrDiskFailed)
	wantErr(t, r.SetVersion(2), dfserr.ErrDiskFailed)
	_, err = s.Create(77, 1)
	wantErr(t, err, dfserr.ErrDiskFailed)
	wantErr(t, s.Delete(testChunk, 9), dfserr.ErrDiskFailed)
	_, err = s.Receive(testChunk, ReceiveOptions{Whole: true})
	wantErr(t, err, dfserr.ErrDiskFailed)
	if got := readAll(t, r); !bytes.Equal(got, fill(1, 1000)) {
		t.Error("a condemned disk reads wrong bytes")
	}
	must(t, s.Close())
	if log := in.LogText(); log != "" {
		t.Errorf("a condemned disk was written:\n%s", log)
	}
	s = openStore(t, in, testOptions())
	if u := s.Usage(); u[0].Failed == nil || u[0].Free != 0 {
		t.Errorf("after a restart: %+v", u)
	}
	r = replica(t, s, testChunk)
	wantErr(t, r.Sync(), dfserr.ErrDiskFailed)
	if got := readAll(t, r); !bytes.Equal(got, fill(1, 1000)) {
		t.Error("a condemned disk reads wrong bytes after a restart")
	}
	wantErr(t, Readmit(Disk{Name: "/disk", FS: in}), dfserr.ErrInUse)
	s.Kill()
	must(t, Readmit(Disk{Name: "/disk", FS: in}))
	s = openStore(t, in, testOptions())
	must(t, replica(t, s, testChunk).Sync())
}

// TestLyingSync checks that data which a disk lost after reporting it durable is noticed as damage, and never
// passed off as a torn tail, as soon as anything written later survived.
func TestLyingSync(t *testing.T) {
	noticed := 0
	for seed := range uint64(60) {
		fsys := formattedDisk(t)
		in := vfs.NewInject(fsys)
		s := openStore(t, in, testOptions())
		r, err := s.Create(testChunk, 1)
		must(t, err)
		next(t, r, write(0, fill(1, 3_000)))
		must(t, r.Sync())
		next(t, r, write(0, fill(2, 6_000)))
		in.FailNthOf(0, func(op vfs.Op) bool { return op.Kind == vfs.OpSync }, vfs.Fault{Lie: true})
		must(t, r.Sync())
		if in.Fired() != 1 {
			t.Fatal("the lie was not told")
		}
		next(t, r, write(0, fill(3, 3_000)))
		s.Kill()
		s = openStore(t, fsys.Crash(rand.New(rand.NewPCG(seed, 1))), testOptions())
		got, err := observeChunk(t, s, testChunk)
		switch {
		case errors.Is(err, dfserr.ErrCorrupt):
			noticed++
			if st := state(t, replica(t, s, testChunk)); !st.Corrupt || st.LastSeq < 1 {
				t.Errorf("state %+v", st)
			} else if st.Structural {
				wantErr(t, replica(t, s, testChunk).SetVersion(5), dfserr.ErrCorrupt)
			}
		case err != nil:
			t.Fatal(err)
		case got.lastSeq < 1 || got.lastSeq > 3:
			t.Errorf("seed %d: %v", seed, got)
		}
		s.Kill()
	}
	if noticed == 0 {
		t.Error("no lost write was ever noticed")
	}
}
