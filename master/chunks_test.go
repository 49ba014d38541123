package master

import (
	"slices"
	"sync"
	"testing"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/cluster"
	dfsv1 "dfs/proto/dfs/v1"
)

// complain reports a failure and returns the configuration to use next.
func (w *world) complain(c *dfsv1.ChunkConfig, server, reporter uint64, corrupt bool) *dfsv1.ChunkConfig {
	w.t.Helper()
	r, err := w.client.ReportFailure(w.ctx(), &dfsv1.ReportFailureRequest{
		Chunk: c.GetChunk(), Version: c.GetVersion(), Server: server, Reporter: reporter, Reason: "test", Corrupt: corrupt,
	})
	if err != nil {
		w.t.Fatalf("report failure: %v", err)
	}
	return r.GetConfig()
}

// noCopies makes every copy fail, so that repair changes nothing.
func (w *world) noCopies() {
	for _, s := range w.servers {
		s.mu.Lock()
		s.copyErr = "refused by the test"
		s.mu.Unlock()
	}
}

func ids(c *dfsv1.ChunkConfig) []uint64 {
	var l []uint64
	for _, r := range c.GetReplicas() {
		l = append(l, r.GetServer())
	}
	return l
}

// newChunk makes a file with one chunk that has been written.
func (w *world) newChunk(name string, length int64) (ino uint64, c *dfsv1.ChunkConfig) {
	w.t.Helper()
	f := w.create(name, func(r *dfsv1.CreateRequest) { r.WantChunk = true })
	if len(f.GetChunks()) != 1 {
		w.t.Fatalf("create %s: no chunk: %v", name, f)
	}
	w.write(f.GetChunks()[0], length)
	return f.GetAttr().GetInode(), f.GetChunks()[0]
}

func (w *world) commit(ino uint64, c *dfsv1.ChunkConfig, length int64, closing bool) error {
	_, err := w.client.CommitLength(w.ctx(), &dfsv1.CommitLengthRequest{
		Header: w.header(), Inode: ino, Length: length, Chunk: c.GetChunk(), Version: c.GetVersion(), Modified: true, Closing: closing,
	})
	return err
}

func (w *world) config(ino uint64, index int64) *dfsv1.ChunkConfig {
	w.t.Helper()
	r, err := w.client.GetChunks(w.ctx(), &dfsv1.GetChunksRequest{Inode: ino, First: index, Count: 1, ForWrite: true})
	if err != nil || len(r.GetChunks()) != 1 {
		w.t.Fatalf("chunk %d of inode %d: %v %v", index, ino, r, err)
	}
	return r.GetChunks()[0]
}

func TestLeaseGoesToThePrimary(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(3)
		_, c := w.newChunk("f", 5)
		began := time.Now()
		lease, err := w.server(ids(c)[0]).acquire(c.GetChunk())
		if err != nil || lease.GetMinReplicas() != 2 || lease.GetLeaseMs() < 29_000 || lease.GetConfig().GetVersion() != c.GetVersion() {
			t.Fatalf("lease: %v %v", lease, err)
		}
		if d := time.Since(began); d > time.Second {
			t.Fatalf("the first lease of a chunk took %v", d)
		}
		_, err = w.server(ids(c)[1]).acquire(c.GetChunk())
		wantErr(t, "lease for a secondary", err, dfserr.ErrNotPrimary)
		_, err = w.server(ids(c)[0]).acquire(4711)
		wantErr(t, "lease on no chunk", err, dfserr.ErrNotExist)
	})
}

// TestFenceWaitsForTheServingLease excludes a paused server: the new primary gets its lease only when the paused one can no
// longer serve.
func TestFenceWaitsForTheServingLease(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(4)
		w.noCopies()
		_, c := w.newChunk("f", 5)
		victim := w.server(ids(c)[2])
		w.net.Pause(victim.host)
		now := w.complain(c, victim.id, ids(c)[0], false)
		if len(now.GetReplicas()) != 2 || now.GetVersion() <= c.GetVersion() {
			t.Fatalf("configuration after the report: %v", now)
		}
		if _, err := w.server(ids(now)[0]).acquire(c.GetChunk()); err != nil {
			t.Fatalf("lease: %v", err)
		}
		victim.mu.Lock()
		until := victim.serveUntil
		victim.mu.Unlock()
		if time.Now().Before(until) {
			t.Fatalf("lease granted %v before the excluded server's serving lease lapsed", time.Until(until))
		}
		w.net.Resume(victim.host)
	})
}

// TestFenceByOrder excludes a server that is well: it is told, and the lease is granted at once.
func TestFenceByOrder(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(4)
		w.noCopies()
		_, c := w.newChunk("f", 5)
		victim := w.server(ids(c)[2])
		began := time.Now()
		now := w.complain(c, victim.id, ids(c)[0], false)
		if _, err := w.server(ids(now)[0]).acquire(c.GetChunk()); err != nil {
			t.Fatalf("lease: %v", err)
		}
		if d := time.Since(began); d > 500*time.Millisecond {
			t.Fatalf("lease took %v", d)
		}
		if r, ok := victim.get(c.GetChunk()); ok && r.fenced < c.GetVersion() {
			t.Fatal("the excluded replica is neither deleted nor fenced")
		}
		time.Sleep(5 * time.Second)
		if !victim.serving() {
			t.Fatal("the server got no serving lease after its replica was dealt with")
		}
	})
}

// TestFenceWithheld excludes a server that sends heartbeats and cannot be told: it gets no serving lease until the one it had is over,
// and then serves again.
func TestFenceWithheld(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(4)
		time.Sleep(6 * time.Second) // leases of a leader before this one are over
		w.noCopies()
		_, c := w.newChunk("f", 5)
		victim := w.server(ids(c)[2])
		victim.mu.Lock()
		victim.failCalls = dfserr.Errorf(dfserr.ErrDiskFailed, "test")
		victim.mu.Unlock()
		now := w.complain(c, victim.id, ids(c)[0], false)
		began := time.Now()
		if _, err := w.server(ids(now)[0]).acquire(c.GetChunk()); err != nil {
			t.Fatalf("lease: %v", err)
		}
		if victim.serving() {
			t.Fatal("lease granted while the excluded server may serve")
		}
		if d := time.Since(began); d < time.Second || d > 4*time.Second {
			t.Fatalf("lease after %v, want about the serving lease", d)
		}
		w.eventually("new serving lease", 5*time.Second, victim.serving)
	})
}

// TestFenceRefusedConnection kills the primary: the connection that is refused shortens the wait, unless the fence is "lease".
func TestFenceRefusedConnection(t *testing.T) {
	for _, fence := range []cluster.Fence{cluster.FenceProcess, cluster.FenceLease} {
		name := map[cluster.Fence]string{cluster.FenceProcess: "process", cluster.FenceLease: "lease"}[fence]
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.addServers(4)
				time.Sleep(6 * time.Second) // leases of a leader before this one are over
				_, c := w.newChunk("f", 5)
				w.server(ids(c)[0]).kill()
				began := time.Now()
				var now *dfsv1.ChunkConfig
				w.eventually("new configuration", 10*time.Second, func() bool {
					now = w.complain(c, ids(c)[0], 0, false)
					return now.GetVersion() > c.GetVersion()
				})
				if _, err := w.server(ids(now)[0]).acquire(c.GetChunk()); err != nil {
					t.Fatalf("lease: %v", err)
				}
				d := time.Since(began)
				if fence == cluster.FenceProcess && d > time.Second {
					t.Fatalf("failover took %v although the process was seen gone", d)
				}
				if fence == cluster.FenceLease && d < 2*time.Second {
					t.Fatalf("failover took %v, the serving lease was not waited for", d)
				}
			}, func(c *Config) { c.Fence = fence })
		})
	}
}

func TestComplaints(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(4)
		w.noCopies()
		_, c := w.newChunk("f", 5)
		p := ids(c)
		if now := w.complain(c, 0, p[1], false); now.GetVersion() != c.GetVersion() || len(now.GetReplicas()) != 3 {
			t.Fatalf("a look-up changed something: %v", now)
		}
		if now := w.complain(c, p[1], 0, false); now.GetVersion() != c.GetVersion() {
			t.Fatal("a client's word cost a secondary its place")
		}
		if now := w.complain(c, p[0], 0, false); now.GetVersion() != c.GetVersion() {
			t.Fatal("a client's first word cost a healthy primary its place")
		}
		if now := w.complain(c, p[0], p[2], false); now.GetVersion() != c.GetVersion() {
			t.Fatal("a secondary's first word cost a healthy primary its place")
		}
		time.Sleep(2 * time.Second)
		w.complain(c, p[0], 0, false)
		time.Sleep(2 * time.Second)
		now := w.complain(c, p[0], 0, false)
		if now.GetVersion() == c.GetVersion() || ids(now)[0] == p[0] || len(ids(now)) != 2 {
			t.Fatalf("a complaint repeated for over 3 s was not believed: %v", now)
		}
		if again := w.complain(c, p[1], p[0], false); again.GetVersion() != now.GetVersion() {
			t.Fatal("a report about an old configuration changed the new one")
		}
		_, err := w.client.ReportFailure(w.ctx(), &dfsv1.ReportFailureRequest{Chunk: 4711, Server: 1})
		wantErr(t, "report about no chunk", err, dfserr.ErrNotExist)
	})
}

// TestSaidToBeCorrupt: a reader whose memory is bad, or that means harm, says of every replica that it is corrupt. Each is verified by its own
// server, once in a while, and nothing else happens. Of a replica that is corrupt indeed the same word is enough.
func TestSaidToBeCorrupt(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(4)
		stop := w.keepAlive(w.session)
		defer stop()
		ino, c := w.newChunk("f", 5)
		if err := w.commit(ino, c, 5, true); err != nil {
			t.Fatal(err)
		}
		w.eventually("first walk", 5*time.Second, w.healed)
		for range 30 {
			for _, id := range ids(c) {
				if now := w.complain(c, id, 0, true); now.GetVersion() != c.GetVersion() {
					t.Fatalf("a reader's word cost server %d its place", id)
				}
			}
			time.Sleep(500 * time.Millisecond)
		}
		if r := w.report(); r.GetCorrupt() != 0 {
			t.Fatalf("%d chunks are said to have corrupt replicas", r.GetCorrupt())
		}
		for _, id := range ids(c) {
			s := w.server(id)
			s.mu.Lock()
			n := len(s.verified)
			s.mu.Unlock()
			if n != 2 {
				t.Fatalf("server %d verified its replica %d times in 15 s, want one every 10 s", id, n)
			}
		}
		for _, s := range w.servers {
			if !slices.Contains(ids(c), s.id) {
				w.complain(c, s.id, 0, true)
				time.Sleep(time.Second)
				if len(s.verified) != 0 {
					t.Fatal("a server was made to verify a replica that the chunk does not have")
				}
			}
		}
		time.Sleep(10 * time.Second)
		bad := w.server(ids(c)[1])
		bad.mu.Lock()
		bad.rotten = map[uint64]bool{c.GetChunk(): true}
		bad.mu.Unlock()
		w.complain(c, bad.id, 0, true)
		w.eventually("removal of the corrupt replica", 10*time.Second, func() bool { return w.config(ino, 0).GetVersion() > c.GetVersion() })
		w.eventually("healing", 30*time.Second, w.healed)
		w.checkReplicas(w.config(ino, 0), 3, 5)
	})
}

// TestWhoIsCutOff: a primary accuses a live secondary. Others decide which of the two goes.
func TestWhoIsCutOff(t *testing.T) {
	for _, x := range []struct {
		name          string
		servers       int
		cutOff, gone  []int // by place in the chain, 3 for the server outside it
		accuser, goes int
	}{
		{"the primary", 4, []int{0}, nil, 0, 0},
		{"the primary, with one witness", 3, []int{0}, nil, 0, 0},
		{"the secondary", 4, []int{1}, nil, 0, 1},
		{"neither: the path between the two", 4, nil, nil, 0, 1},
		{"no witness answers", 3, []int{0}, []int{2}, 0, 1},
		{"both", 4, []int{0, 1}, nil, 0, 1},
		{"the secondary, which accuses the primary for long", 4, []int{2}, nil, 2, 2},
	} {
		t.Run(x.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.addServers(x.servers)
				w.noCopies()
				_, c := w.newChunk("f", 5)
				chain := ids(c)
				for _, s := range w.servers {
					if !slices.Contains(chain, s.id) {
						chain = append(chain, s.id)
					}
				}
				for _, i := range x.cutOff {
					w.server(chain[i]).cutOff = true
				}
				for _, i := range x.gone {
					s := w.server(chain[i])
					s.mu.Lock()
					s.failCalls = dfserr.Errorf(dfserr.ErrUnavailable, "refused by the test")
					s.mu.Unlock()
				}
				accused := chain[1]
				if x.accuser != 0 {
					accused = chain[0]
				}
				now := w.complain(c, accused, chain[x.accuser], false)
				for end := time.Now().Add(5 * time.Second); x.accuser != 0 && now.GetVersion() == c.GetVersion() && time.Now().Before(end); {
					time.Sleep(500 * time.Millisecond)
					now = w.complain(c, accused, chain[x.accuser], false)
				}
				want := slices.DeleteFunc(slices.Clone(ids(c)), func(id uint64) bool { return id == chain[x.goes] })
				if !slices.Equal(ids(now), want) {
					t.Fatalf("configuration %v after %v, want %v", ids(now), ids(c), want)
				}
				if _, err := w.server(ids(now)[0]).acquire(c.GetChunk()); err != nil {
					t.Fatalf("lease: %v", err)
				}
			})
		})
	}
}

// TestCutOffPrimaryStaysWhenItIsTheLast: the replica that it accuses has only just joined, and need not have everything.
func TestCutOffPrimaryStaysWhenItIsTheLast(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(4)
		w.noCopies()
		ino, c := w.newChunk("f", 5)
		primary := w.server(ids(c)[0])
		for _, id := range ids(c)[1:] {
			w.complain(w.config(ino, 0), id, primary.id, false)
		}
		if alone := w.config(ino, 0); len(ids(alone)) != 1 {
			t.Fatalf("replicas: %v", ids(alone))
		}
		primary.mu.Lock()
		primary.cutOff, primary.failCalls = true, dfserr.Errorf(dfserr.ErrUnavailable, "refused by the test") // nothing is brought into step
		primary.mu.Unlock()
		for _, s := range w.servers {
			s.mu.Lock()
			s.copyErr = ""
			s.mu.Unlock()
		}
		w.eventually("copies join", 2*time.Minute, func() bool { return len(ids(w.config(ino, 0))) == 3 })
		joined := w.config(ino, 0)
		now := w.complain(joined, ids(joined)[1], primary.id, false)
		if !slices.Equal(ids(now), []uint64{primary.id, ids(joined)[2]}) {
			t.Fatalf("configuration %v after %v", ids(now), ids(joined))
		}
	})
}

// TestUnreachablePrimary cuts the primary off from the master and the clients, without killing it.
func TestUnreachablePrimary(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(3)
		_, c := w.newChunk("f", 5)
		primary := w.server(ids(c)[0])
		w.net.Cut("master", primary.host)
		began := time.Now()
		var now *dfsv1.ChunkConfig
		w.eventually("new configuration", 20*time.Second, func() bool {
			now = w.complain(c, primary.id, 0, false)
			return now.GetVersion() > c.GetVersion()
		})
		if d := time.Since(began); d > 5*time.Second {
			t.Fatalf("an unreachable primary was kept for %v", d)
		}
		w.net.Heal("master", primary.host)
	})
}

func TestLastReplicaStays(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(3)
		w.noCopies()
		_, c := w.newChunk("f", 5)
		for _, id := range ids(c)[1:] {
			w.server(id).kill()
		}
		time.Sleep(2 * time.Second)
		now := w.complain(c, ids(c)[1], ids(c)[0], false)
		if len(ids(now)) != 1 || ids(now)[0] != ids(c)[0] {
			t.Fatalf("configuration: %v", now)
		}
		for _, corrupt := range []bool{false, true} {
			if last := w.complain(now, ids(c)[0], ids(c)[0], corrupt); last.GetVersion() != now.GetVersion() {
				t.Fatalf("the last replica was excluded: %v", last)
			}
		}
	})
}

// TestComplaintsCoalesce reports one failure many times at once.
func TestComplaintsCoalesce(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(3)
		w.noCopies()
		_, c := w.newChunk("f", 5)
		var wg sync.WaitGroup
		versions := make([]uint64, 20)
		for i := range versions {
			wg.Go(func() { versions[i] = w.complain(c, ids(c)[1], ids(c)[0], false).GetVersion() })
		}
		wg.Wait()
		for _, v := range versions {
			if v != versions[0] || v == c.GetVersion() {
				t.Fatalf("versions: %v", versions)
			}
		}
	})
}

func TestExactLength(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(3)
		stop := w.keepAlive(w.session)
		defer stop()
		ino, c := w.newChunk("f", 1000)
		if n := w.mustStat("/f").GetLength(); n != 1000 {
			t.Fatalf("length %d of a file that is being written, want 1000", n)
		}
		w.write(c, 2000)
		o, err := w.openFile(path("/f"), false)
		if err != nil || o.GetAttr().GetLength() != 2000 || len(o.GetChunks()) != 1 {
			t.Fatalf("open: %v %v", o, err)
		}
		list, err := w.client.ReadDir(w.ctx(), &dfsv1.ReadDirRequest{Caller: &dfsv1.Caller{}, Ref: path("/")})
		if err != nil || list.GetEntries()[0].GetAttr().GetLength() != 2000 {
			t.Fatalf("listing: %v %v", list, err)
		}
		// A new chunk ahead of the writer does not change the length, and what the old tail then gets still counts.
		next := w.addChunk(ino, 1)
		if n := w.mustStat("/f").GetLength(); n != 2000 {
			t.Fatalf("length %d after a chunk was added, want 2000", n)
		}
		w.write(c, dfs.MinChunkSize)
		if n := w.mustStat("/f").GetLength(); n != dfs.MinChunkSize {
			t.Fatalf("length %d after the first chunk was filled", n)
		}
		w.write(next.GetChunk(), 7)
		if n := w.mustStat("/f").GetLength(); n != dfs.MinChunkSize+7 {
			t.Fatalf("length %d with two chunks", n)
		}
		// Settled by the close of the only writer: from now on nobody is asked.
		if err := w.commit(ino, next.GetChunk(), dfs.MinChunkSize+7, true); err != nil {
			t.Fatal(err)
		}
		asked := w.server(ids(next.GetChunk())[0]).statCount()
		if a := w.mustStat("/f"); a.GetTailOpen() || a.GetLength() != dfs.MinChunkSize+7 {
			t.Fatalf("after the close: %v", a)
		}
		if got := w.server(ids(next.GetChunk())[0]).statCount(); got != asked {
			t.Fatal("a primary was asked for a settled length")
		}
		w.config(ino, 1)
		if a := w.mustStat("/f"); !a.GetTailOpen() {
			t.Fatal("GetChunks for writing did not open the tail")
		}
	})
}

func (s *fakeServer) statCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// TestClosingWithOtherWriters: only the last writer's close settles the tail.
func TestClosingWithOtherWriters(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(3)
		stop := w.keepAlive(w.session)
		defer stop()
		ino, c := w.newChunk("f", 10)
		if _, err := w.openFile(path("/f"), true); err != nil {
			t.Fatal(err)
		}
		if err := w.commit(ino, c, 10, true); err != nil {
			t.Fatal(err)
		}
		w.closeFile(ino, true)
		if !w.mustStat("/f").GetTailOpen() {
			t.Fatal("the tail was settled while another handle is open for writing")
		}
		w.write(c, 20)
		if n := w.mustStat("/f").GetLength(); n != 20 {
			t.Fatalf("length %d", n)
		}
		if err := w.commit(ino, c, 20, true); err != nil {
			t.Fatal(err)
		}
		if w.mustStat("/f").GetTailOpen() {
			t.Fatal("the last writer's close did not settle the tail")
		}
	})
}

// TestWriterDies: the session of a writer expires; the file's length is recorded under a new version, so that frames of the dead
// writer are refused.
func TestWriterDies(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(3)
		ino, c := w.newChunk("f", 4321)
		w.open() // the old session is renewed no more
		stop := w.keepAlive(w.session)
		defer stop()
		time.Sleep(50 * time.Second)
		a := w.mustStat("/f")
		if a.GetTailOpen() || a.GetLength() != 4321 {
			t.Fatalf("after the writer's session expired: %v", a)
		}
		now := w.config(ino, 0)
		if now.GetVersion() <= c.GetVersion() || len(ids(now)) != 3 {
			t.Fatalf("configuration: %v", now)
		}
		wantErr(t, "length under the old version", w.commit(ino, c, 5000, false), dfserr.ErrStaleVersion)
	})
}

// TestLengthWithDeadPrimary: the master goes through the failure rules before it answers.
func TestLengthWithDeadPrimary(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(3)
		stop := w.keepAlive(w.session)
		defer stop()
		_, c := w.newChunk("f", 99)
		w.server(ids(c)[0]).kill()
		if n := w.mustStat("/f").GetLength(); n != 99 {
			t.Fatalf("length %d after the primary died", n)
		}
		for _, id := range ids(c)[1:] {
			w.server(id).kill()
		}
		_, err := w.stat("/f")
		wantErr(t, "length that nobody knows", err, dfserr.ErrBusy)
		if dfserr.ClassOf(err) != dfserr.Backoff {
			t.Fatalf("%v is not of the kind that clients retry", err)
		}
		// A listing goes on, and says that this length is a lower bound; so does a stat that allows it.
		begun := time.Now()
		list, err := w.client.ReadDir(w.ctx(), &dfsv1.ReadDirRequest{Caller: &dfsv1.Caller{}, Ref: path("/")})
		if err != nil || len(list.GetEntries()) != 1 || !list.GetEntries()[0].GetAttr().GetLengthIsBound() {
			t.Fatalf("listing with a length that nobody knows: %v, %v", list, err)
		}
		reply, err := w.client.GetAttr(w.ctx(), &dfsv1.GetAttrRequest{Caller: &dfsv1.Caller{}, Ref: path("/f"), BoundOk: true})
		if err != nil || !reply.GetAttr().GetLengthIsBound() || reply.GetAttr().GetLength() > 99 {
			t.Fatalf("stat that is content with a lower bound: %v, %v", reply, err)
		}
		if took := time.Since(begun); took > 3*boundPatience {
			t.Fatalf("they took %v", took)
		}
	})
}

func TestTruncate(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(3)
		stop := w.keepAlive(w.session)
		defer stop()
		ino, c0 := w.newChunk("f", dfs.MinChunkSize)
		c1 := w.addChunk(ino, 1).GetChunk()
		w.write(c1, 500)
		truncate := func(length int64) *dfsv1.Attr {
			t.Helper()
			r, err := w.client.Truncate(w.ctx(), &dfsv1.TruncateRequest{Header: w.header(), Ref: inode(ino), Length: length, HandleInode: ino})
			if err != nil {
				t.Fatalf("truncate to %d: %v", length, err)
			}
			return r.GetAttr()
		}
		if a := truncate(dfs.MinChunkSize + 100); a.GetLength() != dfs.MinChunkSize+100 || a.GetChunks() != 2 {
			t.Fatalf("cut in the second chunk: %v", a)
		}
		cut := w.config(ino, 1)
		if cut.GetVersion() <= c1.GetVersion() || cut.GetCutVersion() != 0 {
			t.Fatalf("the cut is still pending: %v", cut)
		}
		for _, id := range ids(cut) {
			if r, _ := w.server(id).get(cut.GetChunk()); r.length != 100 || r.version != cut.GetVersion() {
				t.Fatalf("replica on server %d: %+v", id, r)
			}
		}
		wantErr(t, "length under the version before the cut", w.commit(ino, c1, dfs.MinChunkSize+500, false), dfserr.ErrStaleVersion)
		if a := truncate(dfs.MinChunkSize * 5); a.GetLength() != dfs.MinChunkSize*5 || a.GetChunks() != 2 {
			t.Fatalf("growth: %v", a)
		}
		// Dropping the second chunk fences the primary that has its lease.
		primary := w.server(ids(cut)[0])
		w.write(cut, 100)
		if a := truncate(10); a.GetLength() != 10 || a.GetChunks() != 1 {
			t.Fatalf("cut in the first chunk: %v", a)
		}
		if r, ok := primary.get(cut.GetChunk()); ok && r.fenced < cut.GetVersion() {
			t.Fatal("the primary of a dropped chunk still takes writes")
		}
		for _, id := range ids(c0) {
			if r, _ := w.server(id).get(c0.GetChunk()); r.length != 10 {
				t.Fatalf("replica on server %d: %+v", id, r)
			}
		}
		if a := truncate(0); a.GetLength() != 0 || a.GetChunks() != 0 {
			t.Fatalf("cut to nothing: %v", a)
		}
	})
}

// TestTruncatePendingCut sends the request again after the cut could not be made: the repeat completes it.
func TestTruncatePendingCut(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(3)
		stop := w.keepAlive(w.session)
		defer stop()
		ino, c := w.newChunk("f", 1000)
		if err := w.commit(ino, c, 1000, true); err != nil {
			t.Fatal(err)
		}
		for _, s := range w.servers {
			s.mu.Lock()
			s.failCalls = dfserr.Errorf(dfserr.ErrDiskFailed, "test")
			s.mu.Unlock()
		}
		req := &dfsv1.TruncateRequest{Header: w.header(), Ref: inode(ino), Length: 100}
		_, err := w.client.Truncate(w.ctx(), req)
		wantErr(t, "truncate with deaf servers", err, dfserr.ErrBusy)
		other := &dfsv1.TruncateRequest{Header: w.header(), Ref: inode(ino), Length: 50}
		_, err = w.client.Truncate(w.ctx(), other)
		wantErr(t, "second truncate behind a pending cut", err, dfserr.ErrBusy)
		for _, s := range w.servers {
			s.mu.Lock()
			s.failCalls = nil
			s.mu.Unlock()
		}
		for _, r := range []*dfsv1.TruncateRequest{req, other} {
			reply, err := w.client.Truncate(w.ctx(), r)
			if err != nil {
				t.Fatal(err)
			}
			if reply.GetAttr().GetLength() != r.GetLength() {
				t.Fatalf("length %d, want %d", reply.GetAttr().GetLength(), r.GetLength())
			}
		}
		for _, id := range ids(c) {
			if r, _ := w.server(id).get(c.GetChunk()); r.length != 50 {
				t.Fatalf("replica on server %d: %+v", id, r)
			}
		}
	})
}

// TestOpenTruncates is O_TRUNC on a file that another client is writing.
func TestOpenTruncates(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(3)
		stop := w.keepAlive(w.session)
		defer stop()
		_, c := w.newChunk("f", 1000)
		r := w.create("f", func(r *dfsv1.CreateRequest) { r.Truncate, r.Data = true, []byte("new") })
		if r.GetCreated() || r.GetAttr().GetLength() != 3 || !r.GetAttr().GetInline() {
			t.Fatalf("create with truncation: %v", r)
		}
		primary := w.server(ids(c)[0])
		if rep, ok := primary.get(c.GetChunk()); ok && rep.fenced < c.GetVersion() {
			t.Fatal("the primary of a dropped chunk still takes writes")
		}
	})
}

// TestTruncateByName: a name that is gone, and a repeat of a request whose file is gone.
func TestTruncateByName(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.create("f", func(r *dfsv1.CreateRequest) { r.Data = []byte("hello") })
		req := &dfsv1.TruncateRequest{Header: w.header(), Ref: path("/f"), Length: 2}
		first, err := w.client.Truncate(w.ctx(), req)
		if err != nil || first.GetAttr().GetLength() != 2 {
			t.Fatalf("truncate: %v %v", first, err)
		}
		if err := w.remove("f"); err != nil {
			t.Fatal(err)
		}
		again, err := w.client.Truncate(w.ctx(), req)
		if err != nil || again.GetIndex() != first.GetIndex() {
			t.Fatalf("repeat: %v %v", again, err)
		}
		_, err = w.client.Truncate(w.ctx(), &dfsv1.TruncateRequest{Header: w.header(), Ref: path("/f"), Length: 1})
		wantErr(t, "truncate of a name that is gone", err, dfserr.ErrNotExist)
	})
}
