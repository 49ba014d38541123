package master

import (
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// healed reports that every chunk has its replicas, by a walk that saw the last change.
func (w *world) healed() bool {
	r := w.report()
	return r.GetRepairsScanned() && r.GetUnderReplicated() == 0 && r.GetMissing() == 0 && r.GetCorrupt() == 0 && r.GetRepairsRunning() == 0
}

// checkReplicas compares the committed configuration with what the servers hold.
func (w *world) checkReplicas(c *dfsv1.ChunkConfig, want int, length int64) {
	w.t.Helper()
	if len(ids(c)) != want {
		w.t.Fatalf("chunk %d has replicas %v, want %d", c.GetChunk(), ids(c), want)
	}
	for _, id := range ids(c) {
		if r, ok := w.server(id).get(c.GetChunk()); !ok || r.length != length {
			w.t.Fatalf("server %d: replica %+v %v, want length %d", id, r, ok, length)
		}
	}
	for _, s := range w.servers {
		in := false
		for _, id := range ids(c) {
			in = in || id == s.id
		}
		if r, ok := s.get(c.GetChunk()); ok && !in && s.cancel != nil {
			w.t.Fatalf("server %d holds a replica %+v outside the configuration %v", s.id, r, ids(c))
		}
	}
}

// TestRepairAfterDeath kills a server, waits until its chunks have been copied, and brings it back.
func TestRepairAfterDeath(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(4)
		stop := w.keepAlive(w.session)
		defer stop()
		var inodes []uint64
		for _, n := range []string{"a", "b", "c", "d", "e"} {
			ino, c := w.newChunk(n, 1000)
			if err := w.commit(ino, c, 1000, true); err != nil {
				t.Fatal(err)
			}
			inodes = append(inodes, ino)
		}
		w.eventually("first walk", 5*time.Second, w.healed)
		victim := w.servers[0]
		victim.kill()
		lost := len(victim.replicas)
		if lost == 0 {
			t.Fatal("the victim held nothing")
		}
		w.eventually("notice of the loss", 5*time.Second, func() bool {
			r := w.report()
			return r.GetRepairsScanned() && r.GetUnderReplicated() == int64(lost)
		})
		w.eventually("healing", 2*time.Minute, w.healed)
		for _, ino := range inodes {
			c := w.config(ino, 0)
			w.checkReplicas(c, 3, 1000)
			for _, id := range ids(c) {
				if id == victim.id {
					t.Fatalf("the dead server is still in %v", ids(c))
				}
			}
		}
		victim.back()
		w.eventually("removal of the stale replicas", 30*time.Second, func() bool {
			victim.mu.Lock()
			defer victim.mu.Unlock()
			return len(victim.replicas) == 0
		})
		w.eventually("last walk", 5*time.Second, w.healed)
	}, func(c *Config) { c.DeadAfter = 10 * time.Second })
}

// TestReturnBeforeDeath: a server that is away for less than DeadAfter, and whose chunks nobody wrote meanwhile, is
// simply good again.
func TestReturnBeforeDeath(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(4)
		_, c := w.newChunk("a", 1000)
		victim := w.server(ids(c)[1])
		victim.kill()
		time.Sleep(5 * time.Second)
		victim.back()
		w.eventually("registration", 5*time.Second, victim.serving)
		w.eventually("walk", 10*time.Second, w.healed)
		for _, s := range w.servers {
			if s.copies != 0 {
				t.Fatalf("server %d was made to copy", s.id)
			}
		}
	}, func(c *Config) { c.DeadAfter = 20 * time.Second })
}

// TestStaleReplicaReturns: a server comes back to a chunk that lacks replicas; it is preferred as the target.
func TestStaleReplicaReturns(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(3)
		stop := w.keepAlive(w.session)
		defer stop()
		ino, c := w.newChunk("a", 1000)
		victim := w.server(ids(c)[1])
		victim.kill()
		time.Sleep(time.Second)
		now := w.complain(c, victim.id, ids(c)[0], false)
		w.write(now, 2000)
		victim.back()
		w.eventually("healing", 30*time.Second, w.healed)
		w.checkReplicas(w.config(ino, 0), 3, 2000)
	})
}

func TestCorruptReplicaIsReplaced(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(4)
		stop := w.keepAlive(w.session)
		defer stop()
		ino, c := w.newChunk("a", 1000)
		bad := w.server(ids(c)[2])
		bad.mu.Lock()
		bad.corrupt = []uint64{c.GetChunk()}
		bad.mu.Unlock()
		w.eventually("removal of the corrupt replica", 10*time.Second, func() bool {
			bad.mu.Lock()
			defer bad.mu.Unlock()
			return len(bad.corrupt) == 0 // deleted, or replaced by a copy
		})
		w.eventually("healing", 30*time.Second, w.healed)
		w.checkReplicas(w.config(ino, 0), 3, 1000)
	})
}

// TestLostReplicaIsReplaced: a server restarts without a replica that its chunk's record lists.
func TestLostReplicaIsReplaced(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(4)
		stop := w.keepAlive(w.session)
		defer stop()
		ino, c := w.newChunk("a", 1000)
		unborn := w.create("b", func(r *dfsv1.CreateRequest) { r.WantChunk = true }).GetChunks()[0]
		if err := w.commit(ino, c, 1000, false); err != nil {
			t.Fatal(err)
		}
		victim := w.server(ids(c)[2])
		victim.kill()
		victim.mu.Lock()
		delete(victim.replicas, c.GetChunk())
		victim.mu.Unlock()
		victim.back()
		w.eventually("new configuration", 30*time.Second, func() bool { return w.config(ino, 0).GetVersion() > c.GetVersion() })
		w.eventually("healing", 30*time.Second, w.healed)
		w.checkReplicas(w.config(ino, 0), 3, 1000)
		if got := w.mustConfig("/b"); got.GetVersion() != unborn.GetVersion() {
			t.Fatal("a chunk that has never been written was taken for lost")
		}
	})
}

func (w *world) mustConfig(p string) *dfsv1.ChunkConfig {
	w.t.Helper()
	r, err := w.client.Open(w.ctx(), &dfsv1.OpenRequest{Caller: &dfsv1.Caller{}, Ref: path(p), Read: true})
	if err != nil || len(r.GetChunks()) == 0 {
		w.t.Fatalf("open %s: %v %v", p, r, err)
	}
	return r.GetChunks()[0]
}

// TestUnknownReplicas: a server reports chunks that no record knows.
func TestUnknownReplicas(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(3)
		_, c := w.newChunk("a", 1000)
		s := w.server(ids(c)[0])
		for id := uint64(1000); id < 1007; id++ {
			s.put(id, 5, 10)
		}
		s.put(2000, 1<<40, 10) // newer than anything the master knows
		s.kill()
		s.back()
		w.eventually("report", 10*time.Second, func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.deleted) == 7
		})
		if _, ok := s.get(c.GetChunk()); !ok {
			t.Fatal("a replica of the configuration was deleted")
		}
		if _, ok := s.get(2000); !ok {
			t.Fatal("a replica newer than the master was deleted")
		}
		time.Sleep(10 * time.Second)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.reports != 2 {
			t.Fatalf("%d reports were taken, want one per registration", s.reports)
		}
	})
}

// TestSetReplication raises and lowers the number of replicas.
func TestSetReplication(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(4)
		stop := w.keepAlive(w.session)
		defer stop()
		ino, c := w.newChunk("a", 1000)
		if err := w.commit(ino, c, 1000, true); err != nil {
			t.Fatal(err)
		}
		for _, n := range []uint32{4, 2, 3} {
			if _, err := w.client.SetAttr(w.ctx(), &dfsv1.SetAttrRequest{Header: w.header(), Ref: inode(ino), Replication: &n}); err != nil {
				t.Fatal(err)
			}
			w.eventually("replicas", 30*time.Second, func() bool { return len(ids(w.config(ino, 0))) == int(n) && w.healed() })
			time.Sleep(5 * time.Second)
			w.checkReplicas(w.config(ino, 0), int(n), 1000)
		}
		five := uint32(5)
		if _, err := w.client.SetAttr(w.ctx(), &dfsv1.SetAttrRequest{Header: w.header(), Ref: inode(ino), Replication: &five}); err != nil {
			t.Fatal(err)
		}
		w.eventually("honest count", 30*time.Second, func() bool {
			r := w.report()
			return r.GetRepairsScanned() && r.GetUnderReplicated() == 1
		})
	})
}

// TestCopyFails: the target says no; another try comes later, and a target that dies is given up at once.
func TestCopyFails(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(5)
		stop := w.keepAlive(w.session)
		defer stop()
		ino, c := w.newChunk("a", 1000)
		if err := w.commit(ino, c, 1000, true); err != nil {
			t.Fatal(err)
		}
		w.noCopies()
		w.server(ids(c)[2]).kill()
		copies := func() (n int) {
			for _, s := range w.servers {
				s.mu.Lock()
				n += s.copies
				s.mu.Unlock()
			}
			return n
		}
		w.eventually("first try", 60*time.Second, func() bool { return copies() == 1 })
		time.Sleep(20 * time.Second)
		if n := copies(); n != 1 {
			t.Fatalf("%d tries within RetryAfter", n)
		}
		for _, s := range w.servers {
			s.mu.Lock()
			s.copyErr, s.copyHold = "", make(chan struct{})
			s.mu.Unlock()
		}
		w.eventually("second try", 60*time.Second, func() bool { return copies() == 2 })
		for _, s := range w.servers {
			s.mu.Lock()
			target := s.copies == 2 || s.copies == 1 && s.cancel != nil && s.copyErr == ""
			s.mu.Unlock()
			if target && w.m.leader.Load().repairs.copying(dfs.ChunkID(c.GetChunk()), dfs.ServerID(s.id)) {
				s.kill()
				break
			}
		}
		for _, s := range w.servers {
			s.mu.Lock()
			if s.copyHold != nil {
				close(s.copyHold)
				s.copyHold = nil
			}
			s.mu.Unlock()
		}
		w.eventually("healing", 2*time.Minute, w.healed)
		w.checkReplicas(w.config(ino, 0), 3, 1000)
	}, func(c *Config) { c.DeadAfter = 10 * time.Second })
}

// TestCopyThatDoesNotJoin: the primary cannot reach one server, which can copy all the same. The copy is not made again and again: there is a pause, and then
// another server is tried, until there is none.
func TestCopyThatDoesNotJoin(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(5)
		stop := w.keepAlive(w.session)
		defer stop()
		ino, c := w.newChunk("a", 1000)
		if err := w.commit(ino, c, 1000, true); err != nil {
			t.Fatal(err)
		}
		primary, lost := w.server(ids(c)[0]), w.server(ids(c)[2])
		copiesTo := func(servers ...*fakeServer) (n int) {
			for _, s := range servers {
				s.mu.Lock()
				n += s.copies
				s.mu.Unlock()
			}
			return n
		}
		copies := func() int { return copiesTo(w.servers...) }
		primary.mu.Lock()
		primary.cannot = lost.id
		primary.mu.Unlock()
		// The others have no room at first, so the first choice is fixed.
		room := func(free int64) {
			for _, s := range w.servers {
				if !slices.Contains(ids(c), s.id) {
					s.mu.Lock()
					s.diskFree = free
					s.mu.Unlock()
				}
			}
			time.Sleep(5 * time.Second) // heartbeats
		}
		room(0)
		w.complain(c, lost.id, primary.id, false)
		w.eventually("first copy", 10*time.Second, func() bool { return copies() == 1 && len(ids(w.config(ino, 0))) == 2 })
		room(1 << 40)
		time.Sleep(15 * time.Second)
		if n := copies(); n != 1 || copiesTo(lost) != 1 {
			t.Fatalf("%d copies, %d of them to the server that cannot be reached", n, copiesTo(lost))
		}
		w.eventually("healing by another server", time.Minute, w.healed)
		w.checkReplicas(w.config(ino, 0), 3, 1000)
		if n := copies(); n != 2 || slices.Contains(ids(w.config(ino, 0)), lost.id) {
			t.Fatalf("%d copies, replicas %v", n, ids(w.config(ino, 0)))
		}
		// With no other left, the same is tried, with pauses.
		for _, s := range w.servers {
			if s != lost && !slices.Contains(ids(c)[:2], s.id) {
				s.kill()
			}
		}
		begun := copiesTo(lost)
		time.Sleep(3 * time.Minute)
		if n := copiesTo(lost) - begun; n < 2 || n > 6 {
			t.Fatalf("%d copies in three minutes to the only server left", n)
		}
		primary.mu.Lock()
		primary.cannot = 0
		primary.mu.Unlock()
		w.eventually("healing", time.Minute, w.healed)
		w.checkReplicas(w.config(ino, 0), 3, 1000)
	}, func(c *Config) { c.DeadAfter = 10 * time.Second })
}

// TestUnaskedCopy: a copy that this master did not order is not taken into the configuration.
func TestUnaskedCopy(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(4)
		ino, c := w.newChunk("a", 1000)
		var other *fakeServer
		for _, s := range w.servers {
			if _, ok := s.get(c.GetChunk()); !ok {
				other = s
			}
		}
		_, err := other.cluster().ReplicaCopied(w.ctx(), &dfsv1.ReplicaCopiedRequest{Server: other.id, Chunk: c.GetChunk(), Version: c.GetVersion()})
		wantErr(t, "copy nobody ordered", err, dfserr.ErrStaleVersion)
		if now := w.config(ino, 0); now.GetVersion() != c.GetVersion() {
			t.Fatal("the configuration changed")
		}
	})
}

// TestSafeModeAfterRestart: until enough servers are back nothing is placed or leased anew, and nothing is copied.
func TestSafeModeAfterRestart(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(4)
		ino, c := w.newChunk("a", 1000)
		if err := w.commit(ino, c, 1000, true); err != nil {
			t.Fatal(err)
		}
		for _, s := range w.servers {
			s.kill()
		}
		w.restart(false)
		w.servers[0].back()
		time.Sleep(3 * time.Second)
		if !w.report().GetSafeMode() {
			t.Fatal("not in safe mode with one of four servers")
		}
		f := w.create("b")
		_, err := w.client.AddChunk(w.ctx(), &dfsv1.AddChunkRequest{Header: w.header(), Inode: f.GetAttr().GetInode()})
		wantErr(t, "placement in safe mode", err, dfserr.ErrSafeMode)
		w.mustStat("/a")
		for _, s := range w.servers[1:] {
			s.back()
		}
		w.eventually("end of safe mode", 5*time.Second, func() bool { return !w.report().GetSafeMode() })
		w.eventually("health", 10*time.Second, w.healed)
		w.addChunk(f.GetAttr().GetInode(), 0)
		for _, s := range w.servers {
			if s.copies > 0 {
				t.Fatal("something was copied although every server came back")
			}
		}
		// A reconfigured chunk's lease waits for serving leases that the leader before may have granted.
		now := w.complain(c, ids(c)[1], ids(c)[0], false)
		if _, err := w.server(ids(now)[0]).acquire(c.GetChunk()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestFsck(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(4)
		w.noCopies()
		w.mkdir("d")
		ino, c := w.newChunk("a", 1000)
		if err := w.commit(ino, c, 1000, true); err != nil {
			t.Fatal(err)
		}
		if _, err := w.client.Create(w.ctx(), &dfsv1.CreateRequest{Header: w.header(), Parent: path("/d"), Name: []byte("l"), Mode: 0o120777, SymlinkTarget: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		run := func() (findings []*dfsv1.FsckReply_Finding, totals *dfsv1.FsckReply_Totals) {
			t.Helper()
			stream, err := w.client.Fsck(w.ctx(), &dfsv1.FsckRequest{Caller: &dfsv1.Caller{}, Ref: path("/")})
			if err != nil {
				t.Fatal(err)
			}
			for {
				r, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					return findings, totals
				}
				if err != nil {
					t.Fatal(err)
				}
				if r.GetTotals() != nil {
					totals = r.GetTotals()
				} else {
					findings = append(findings, r.GetFinding())
				}
			}
		}
		f, tot := run()
		if len(f) != 0 || tot.GetFiles() != 1 || tot.GetDirectories() != 2 || tot.GetSymlinks() != 1 || tot.GetChunks() != 1 || tot.GetReplicas() != 3 || tot.GetBytes() != 1000 {
			t.Fatalf("healthy: %v %v", f, tot)
		}
		w.server(ids(c)[0]).kill()
		time.Sleep(time.Second)
		f, tot = run()
		if len(f) != 1 || f[0].GetProblem() != "under-replicated" || string(f[0].GetPath()) != "/a" || f[0].GetLive() != 2 || tot.GetUnderReplicated() != 1 {
			t.Fatalf("one dead: %v %v", f, tot)
		}
		for _, id := range ids(c)[1:] {
			w.server(id).kill()
		}
		time.Sleep(time.Second)
		f, tot = run()
		if len(f) != 1 || f[0].GetProblem() != "missing" || tot.GetMissingBytes() != 1000 || tot.GetMissingFiles() != 1 {
			t.Fatalf("all dead: %v %v", f, tot)
		}
		w.eventually("report of the missing chunk", 2*time.Minute, func() bool { return w.report().GetMissing() == 1 })
	})
}

// TestCopyReportLost: the target's word that the copy is complete never arrives; the master asks.
func TestCopyReportLost(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(4)
		stop := w.keepAlive(w.session)
		defer stop()
		ino, c := w.newChunk("a", 1000)
		if err := w.commit(ino, c, 1000, true); err != nil {
			t.Fatal(err)
		}
		for _, s := range w.servers {
			s.mu.Lock()
			s.copyMute = true
			s.mu.Unlock()
		}
		w.server(ids(c)[1]).kill()
		w.eventually("healing", time.Minute, w.healed)
		w.checkReplicas(w.config(ino, 0), 3, 1000)
	}, func(c *Config) { c.DeadAfter = 10 * time.Second })
}

// TestMalformedReports sends chunk reports that no chunkserver would.
func TestMalformedReports(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		s := w.addServers(1)[0]
		send := func(msgs ...*dfsv1.ChunkReport) error {
			stream, err := s.cluster().ReportChunks(w.ctx())
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range msgs {
				if stream.Send(m) != nil {
					break
				}
			}
			_, err = stream.CloseAndRecv()
			return err
		}
		msg := func(ids ...uint64) *dfsv1.ChunkReport {
			return &dfsv1.ChunkReport{Server: s.id, Incarnation: s.incarnation, Chunks: ids}
		}
		wantErr(t, "empty stream", send(), dfserr.ErrInvalid)
		wantErr(t, "descending", send(msg(5, 4)), dfserr.ErrInvalid)
		wantErr(t, "repeated", send(msg(5), msg(5)), dfserr.ErrInvalid)
		wantErr(t, "chunk 0", send(msg(0)), dfserr.ErrInvalid)
		wantErr(t, "other incarnation", send(&dfsv1.ChunkReport{Server: s.id, Incarnation: 1}), dfserr.ErrUnavailable)
		wantErr(t, "unknown server", send(&dfsv1.ChunkReport{Server: 4711, Incarnation: 1}), dfserr.ErrUnavailable)
		if err := send(msg(5, 6), msg(), msg(7)); err != nil {
			t.Fatal(err)
		}
	})
}

// TestComplaintRightAfterRestart: servers that have not come back yet are not dropped along with the one complained of.
func TestComplaintRightAfterRestart(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(3)
		w.noCopies()
		_, c := w.newChunk("a", 1000)
		away := w.server(ids(c)[2])
		w.net.Pause(away.host)
		w.restart(true)
		w.eventually("registration", 5*time.Second, func() bool { return w.servers[0].serving() || w.servers[1].serving() })
		if now := w.complain(c, ids(c)[1], ids(c)[0], false); now.GetVersion() != c.GetVersion() {
			t.Fatalf("configuration changed before every server had its time to register: %v", now)
		}
		w.net.Resume(away.host)
		w.eventually("new configuration", 20*time.Second, func() bool {
			now := w.complain(c, ids(c)[1], ids(c)[0], false)
			return now.GetVersion() > c.GetVersion() && len(ids(now)) == 2
		})
	})
}
