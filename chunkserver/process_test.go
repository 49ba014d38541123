package chunkserver

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"dfs/chunkserver/store"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
	dfsv1 "dfs/proto/dfs/v1"
)

func TestValidate(t *testing.T) {
	good := Config{Disks: []store.Disk{{Name: "a", FS: vfs.NewMem()}}, Listen: "127.0.0.1:0", Masters: []string{"m:1"}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no disks":     func(c *Config) { c.Disks = nil },
		"disk twice":   func(c *Config) { c.Disks = append(c.Disks, c.Disks[0]) },
		"disk no FS":   func(c *Config) { c.Disks = []store.Disk{{Name: "a"}} },
		"no listen":    func(c *Config) { c.Listen = "" },
		"no masters":   func(c *Config) { c.Masters = nil },
		"empty master": func(c *Config) { c.Masters = []string{""} },
		"window":       func(c *Config) { c.StreamWindow = 10 },
		"queue":        func(c *Config) { c.ChunkQueue = 10 },
		"limit":        func(c *Config) { c.MaxChunks = -1 },
		"time":         func(c *Config) { c.PeerTimeout = -1 },
	} {
		c := good
		c.Disks = slices.Clone(good.Disks)
		change(&c)
		if _, err := New(c); !errors.Is(err, dfserr.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFirstStartAndRestart(t *testing.T) {
	inBubble(t, 1, nil, func(w *world) {
		nd := w.nodes[0]
		id := nd.srv().ID()
		identity, err := store.ReadIdentity(store.Disk{Name: "d", FS: nd.disk})
		if err != nil || identity.Server != id || identity.Cluster != testCluster {
			t.Fatalf("identity %+v, %v", identity, err)
		}
		if err := nd.srv().Close(); err != nil {
			t.Fatal(err)
		}
		w.boot(nd)
		if nd.srv().ID() != id {
			t.Fatal("the id changed over a restart")
		}
		w.kill(nd)
		// The master of another cluster.
		w.master.mu.Lock()
		w.master.cluster = 0xdead
		w.master.mu.Unlock()
		srv, err := New(Config{Disks: []store.Disk{{Name: "d", FS: nd.disk}}, Listen: "cs1:7", Masters: []string{"master:1"}, Network: w.net.Host("cs1")})
		if err != nil {
			t.Fatal(err)
		}
		if err := srv.Start(w.ctx); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-srv.Failed():
			if !errors.Is(err, dfserr.ErrWrongCluster) {
				t.Fatalf("failed with %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("the server goes on with the master of another cluster")
		}
		if err := srv.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestMastersAreTriedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0, func(c *Config) { c.Masters = []string{"nobody:1", "master:1", "nobody:2"} })
		defer w.close()
		nd := &node{host: "cs1", fs: vfs.NewMem()}
		nd.disk = vfs.NewInject(nd.fs)
		w.nodes = append(w.nodes, nd)
		w.boot(nd)
		time.Sleep(time.Second)
		if _, ok := nd.srv().serving.current(time.Now()); !ok {
			t.Fatal("no serving lease")
		}
		w.net.Cut("cs1", "master")
		time.Sleep(time.Minute)
		if _, ok := nd.srv().serving.current(time.Now()); ok {
			t.Fatal("a serving lease without a master")
		}
		w.net.Heal("cs1", "master")
		time.Sleep(10 * time.Second)
		if _, ok := nd.srv().serving.current(time.Now()); !ok {
			t.Fatal("no serving lease after the master is back")
		}
	})
}

func TestCleanStop(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		w.master.configure(testChunk, nil, w.nodes...)
		w.retry(0, text(1, 5000), 9, 1)
		start := time.Now()
		if err := w.nodes[0].srv().Close(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Fatalf("a clean stop took %v", took)
		}
		w.master.mu.Lock()
		released := slices.Contains(w.master.released, testChunk)
		w.master.mu.Unlock()
		if !released {
			t.Error("the lease was not given back")
		}
		for _, nd := range w.nodes[1:] {
			if _, state := nd.onDisk(t); state.Synced != 1 {
				t.Errorf("%s is synced up to %d", nd.host, state.Synced)
			}
		}
	})
}

func TestIdleLeaseIsGivenBack(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		v := w.master.configure(testChunk, nil, w.nodes...).GetVersion()
		w.retry(0, text(1, 5000), 9, 1)
		time.Sleep(20 * time.Second)
		w.retry(0, text(2, 5000), 9, 2)
		time.Sleep(20 * time.Second)
		w.master.mu.Lock()
		grants, released := w.master.grants, len(w.master.released)
		w.master.mu.Unlock()
		if grants != 1 || released != 0 {
			t.Fatalf("%d grants, %d given back, while in use", grants, released)
		}
		time.Sleep(20 * time.Second)
		w.master.mu.Lock()
		released = len(w.master.released)
		w.master.mu.Unlock()
		if released != 1 {
			t.Fatalf("%d leases given back after being idle", released)
		}
		for _, nd := range w.nodes {
			if _, state := nd.onDisk(t); state.Synced != 2 {
				t.Errorf("%s is synced up to %d", nd.host, state.Synced)
			}
			w.mustRead(nd, v, 0, text(2, 5000))
		}
	})
}

func TestCopyReplica(t *testing.T) {
	inBubble(t, 4, nil, func(w *world) {
		cfg := w.master.configure(testChunk, nil, w.nodes[:3]...)
		w.retry(0, text(1, 50_000), 9, 1)
		target := w.nodes[3]
		order := &dfsv1.CopyReplicaRequest{Config: cfg, Source: uint64(w.nodes[1].srv().ID())}
		if _, err := w.client(target).CopyReplica(w.ctx, order); err != nil {
			t.Fatal(err)
		}
		w.retry(50_000, text(2, 1000), 9, 2) // writing goes on
		time.Sleep(time.Second)
		w.master.mu.Lock()
		copied := w.master.copied
		w.master.mu.Unlock()
		if len(copied) != 1 || copied[0].GetError() != "" || copied[0].GetServer() != uint64(target.srv().ID()) || copied[0].GetSeq() < 1 {
			t.Fatalf("copies reported: %v", copied)
		}
		if _, _, err := w.read(target, cfg.GetVersion(), 0, 100); !errors.Is(err, dfserr.ErrStaleVersion) {
			t.Fatalf("read from a replica outside the configuration: %v", err)
		}
		cfg = w.master.configure(testChunk, nil, w.nodes...)
		reply, err := w.client(w.nodes[0]).Activate(w.ctx, &dfsv1.ActivateRequest{Config: cfg})
		if err != nil || reply.GetReplica().GetLength() != 51_000 {
			t.Fatalf("activate: %v, %v", reply, err)
		}
		w.mustRead(target, cfg.GetVersion(), 0, append(text(1, 50_000), text(2, 1000)...))
		// A member is not copied over.
		if _, err := w.client(target).CopyReplica(w.ctx, &dfsv1.CopyReplicaRequest{Config: cfg, Source: order.GetSource()}); !errors.Is(err, dfserr.ErrExist) {
			t.Fatalf("copy over a member: %v", err)
		}
		// Nor is anything copied from damaged bytes.
		damage(t, w.nodes[1])
		smaller := w.master.configure(testChunk, nil, w.nodes[:3]...)
		_, err = w.client(target).DeleteReplicas(w.ctx, &dfsv1.DeleteReplicasRequest{Items: []*dfsv1.DeleteReplicasRequest_Item{{Chunk: testChunk, Version: cfg.GetVersion()}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.client(target).CopyReplica(w.ctx, &dfsv1.CopyReplicaRequest{Config: smaller, Source: order.GetSource()}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		w.master.mu.Lock()
		copied = w.master.copied
		w.master.mu.Unlock()
		if len(copied) != 2 || copied[1].GetError() == "" {
			t.Fatalf("copies reported: %v", copied)
		}
		if _, err := target.srv().store().Replica(testChunk); !errors.Is(err, dfserr.ErrNotExist) {
			t.Fatalf("a replica was made of damaged bytes: %v", err)
		}
	})
}

// damage flips a bit in the first data of a node's replica.
func damage(t *testing.T, nd *node) {
	t.Helper()
	name := "chunks/" + dfs.ChunkID(testChunk).String()[14:] + "/" + dfs.ChunkID(testChunk).String()
	data := text(1, 64)
	err := nd.fs.Corrupt(name, func(contents []byte) {
		at := bytes.Index(contents, data)
		if at < 0 {
			t.Errorf("%s: the data is not in %s", nd.host, name)
			return
		}
		contents[at+10] ^= 1
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCorruptReplicaIsReportedAndReplaced(t *testing.T) {
	for position := range 3 {
		inBubble(t, 3, nil, func(w *world) {
			v := w.master.configure(testChunk, nil, w.nodes...).GetVersion()
			w.retry(0, text(1, 50_000), 9, 1)
			nd := w.nodes[position]
			damage(t, nd)
			if _, _, err := w.read(nd, v, 0, 50_000); !errors.Is(err, dfserr.ErrCorrupt) {
				t.Fatalf("read of damaged bytes: %v", err)
			}
			time.Sleep(100 * time.Millisecond)
			w.master.mu.Lock()
			corrupt := slices.Contains(w.master.corrupt, testChunk)
			w.master.mu.Unlock()
			if !corrupt {
				t.Fatal("the master was not told")
			}
			var others []*node
			for _, o := range w.nodes {
				if o != nd {
					others = append(others, o)
					w.mustRead(o, v, 0, text(1, 50_000))
				}
			}
			// The master replaces it.
			cfg := w.master.configure(testChunk, nil, others...)
			_, err := w.client(nd).DeleteReplicas(w.ctx, &dfsv1.DeleteReplicasRequest{Items: []*dfsv1.DeleteReplicasRequest_Item{{Chunk: testChunk, Version: v}}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.client(nd).CopyReplica(w.ctx, &dfsv1.CopyReplicaRequest{Config: cfg, Source: uint64(others[0].srv().ID())}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			cfg = w.master.configure(testChunk, nil, append(others, nd)...)
			w.mustRead(nd, cfg.GetVersion(), 0, text(1, 50_000))
		})
	}
}

func TestDeleteKeepsNewerReplicas(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		v := w.master.configure(testChunk, nil, w.nodes...).GetVersion()
		w.retry(0, text(1, 100), 9, 1)
		items := func(v uint64) *dfsv1.DeleteReplicasRequest {
			return &dfsv1.DeleteReplicasRequest{Items: []*dfsv1.DeleteReplicasRequest_Item{{Chunk: testChunk, Version: v}, {Chunk: 0x99, Version: v}}}
		}
		reply, err := w.client(w.nodes[2]).DeleteReplicas(w.ctx, items(v-1))
		if err != nil || !slices.Equal(reply.GetDeleted(), []uint64{0x99}) {
			t.Fatalf("delete below the version: %v, %v", reply, err)
		}
		// Also when the process has forgotten what it was prepared for.
		w.kill(w.nodes[2])
		w.boot(w.nodes[2])
		reply, err = w.client(w.nodes[2]).DeleteReplicas(w.ctx, items(v-1))
		if err != nil || !slices.Equal(reply.GetDeleted(), []uint64{0x99}) {
			t.Fatalf("delete below the version after a restart: %v, %v", reply, err)
		}
		// Fencing ends the use and keeps the bytes.
		fence := items(v)
		fence.FenceOnly = true
		w.master.configure(testChunk, nil, w.nodes[0], w.nodes[1])
		reply, err = w.client(w.nodes[2]).DeleteReplicas(w.ctx, fence)
		if err != nil || len(reply.GetDeleted()) != 2 {
			t.Fatalf("fence: %v, %v", reply, err)
		}
		if _, _, err := w.read(w.nodes[2], v, 0, 100); err == nil {
			t.Fatal("a fenced replica served a read")
		}
		if _, err := w.nodes[2].srv().store().Replica(testChunk); err != nil {
			t.Fatal(err)
		}
		cfg := w.master.configure(testChunk, nil, w.nodes...)
		w.mustRead(w.nodes[2], cfg.GetVersion(), 0, text(1, 100))
	})
}

func TestReportAndStat(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		v := w.master.configure(testChunk, nil, w.nodes...).GetVersion()
		w.retry(0, text(1, 100), 9, 1)
		for i, nd := range w.nodes {
			reply, err := w.client(nd).Stat(w.ctx, &dfsv1.ChunkStatRequest{Chunk: testChunk})
			if err != nil || reply.GetReplica().GetVersion() != v || reply.GetReplica().GetSeq() != 1 || reply.GetReplica().GetState() != "valid" {
				t.Fatalf("stat: %v, %v", reply, err)
			}
			reply, err = w.client(nd).Stat(w.ctx, &dfsv1.ChunkStatRequest{Chunk: testChunk, Version: v, Exact: true})
			if i == 0 && (err != nil || reply.GetReplica().GetLength() != 100) {
				t.Fatalf("exact stat: %v, %v", reply, err)
			}
			if i > 0 && !errors.Is(err, dfserr.ErrNotPrimary) {
				t.Fatalf("exact stat of a secondary: %v, %v", reply, err)
			}
		}
		if _, err := w.client(w.nodes[1]).Stat(w.ctx, &dfsv1.ChunkStatRequest{Chunk: 0x99}); !errors.Is(err, dfserr.ErrNotExist) {
			t.Fatalf("stat of nothing: %v", err)
		}
		nd := w.nodes[1]
		w.kill(nd)
		w.boot(nd)
		time.Sleep(time.Second)
		w.master.mu.Lock()
		reported := w.master.reported[uint64(nd.srv().ID())]
		w.master.mu.Unlock()
		if !slices.Equal(reported, []uint64{testChunk}) {
			t.Fatalf("reported %x", reported)
		}
	})
}

// TestVerifyOnDemand: the master has one replica read and verified.
func TestVerifyOnDemand(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		w.master.configure(testChunk, nil, w.nodes...)
		w.retry(0, text(1, 50_000), 9, 1)
		verify := func(nd *node, chunk uint64) (string, error) {
			reply, err := w.client(nd).Stat(w.ctx, &dfsv1.ChunkStatRequest{Chunk: chunk, Verify: true})
			return reply.GetReplica().GetState(), err
		}
		for _, nd := range w.nodes {
			if state, err := verify(nd, testChunk); state != "valid" || err != nil {
				t.Fatalf("a sound replica: %s, %v", state, err)
			}
		}
		if _, err := verify(w.nodes[0], 0x99); !errors.Is(err, dfserr.ErrNotExist) {
			t.Fatalf("no replica: %v", err)
		}
		damage(t, w.nodes[2])
		if state, err := verify(w.nodes[2], testChunk); state != "corrupt" || err != nil {
			t.Fatalf("a damaged replica: %s, %v", state, err)
		}
		time.Sleep(time.Second)
		w.master.mu.Lock()
		if !slices.Contains(w.master.corrupt, testChunk) {
			t.Error("the damage was not told")
		}
		w.master.mu.Unlock()
		for range maxVerifies {
			w.nodes[0].srv().verifying <- struct{}{}
		}
		if _, err := verify(w.nodes[0], testChunk); !errors.Is(err, dfserr.ErrBusy) {
			t.Fatalf("one too many: %v", err)
		}
	})
}

// TestProbe: a server says which others it reaches.
func TestProbe(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		probe := func(from *node, of uint64) (bool, error) {
			reply, err := w.client(from).Probe(w.ctx, &dfsv1.ProbeRequest{Server: of})
			return reply.GetReached(), err
		}
		want := func(what string, from, of int, want bool) {
			t.Helper()
			began := time.Now()
			reached, err := probe(w.nodes[from], uint64(w.nodes[of].srv().ID()))
			if err != nil || reached != want || time.Since(began) > probePatience {
				t.Errorf("%s: %v, %v after %v", what, reached, err, time.Since(began))
			}
		}
		want("up", 0, 1, true)
		w.net.Cut(w.nodes[0].host, w.nodes[1].host)
		want("cut off", 0, 1, false)
		want("cut off from somebody else", 2, 1, true)
		w.net.Heal(w.nodes[0].host, w.nodes[1].host)
		time.Sleep(30 * time.Second)
		want("healed", 0, 1, true)
		w.net.CutOneWay(w.nodes[1].host, w.nodes[0].host)
		want("answers are lost", 0, 1, false)
		w.net.Heal(w.nodes[0].host, w.nodes[1].host)
		w.net.Pause(w.nodes[2].host)
		want("stopped", 0, 2, false)
		w.net.Resume(w.nodes[2].host)
		time.Sleep(30 * time.Second)
		w.kill(w.nodes[2])
		want("gone", 0, 2, false)
		w.boot(w.nodes[2])
		want("back", 0, 2, true)
		if _, err := probe(w.nodes[0], 4711); !errors.Is(err, dfserr.ErrUnavailable) {
			t.Errorf("an unknown server: %v", err)
		}
	})
}

func TestScrubFindsDamage(t *testing.T) {
	inBubble(t, 3, func(c *Config) { c.ScrubInterval = time.Hour }, func(w *world) {
		w.master.configure(testChunk, nil, w.nodes...)
		w.retry(0, text(1, 50_000), 9, 1)
		damage(t, w.nodes[2])
		time.Sleep(2 * time.Hour)
		w.master.mu.Lock()
		defer w.master.mu.Unlock()
		if !slices.Contains(w.master.corrupt, testChunk) {
			t.Fatal("scrubbing did not find the damage, or did not tell")
		}
	})
}

// TestManyChunksOneStream has one chunk wait for a lease while others on the same stream go on.
func TestManyChunksOneStream(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		for i := range uint64(20) {
			w.master.configure(1000+i, nil, w.nodes...)
		}
		w.master.configure(testChunk, nil, w.nodes...)
		w.master.mu.Lock()
		w.master.fences[testChunk] = time.Now().Add(5 * time.Second)
		w.master.mu.Unlock()
		wr := w.writer(w.nodes[0])
		data := text(1, 100_000)
		var slow, fast []chan *dfsv1.WriteAck
		for i := range 10 {
			slow = append(slow, wr.send(writeHeader(testChunk, 100, int64(i)*100_000, data, 9, uint64(i+1)), data))
		}
		for i := range uint64(20) {
			fast = append(fast, wr.send(writeHeader(1000+i, 100, 0, data, 9, 1), data))
		}
		start := time.Now()
		for _, ch := range fast {
			if _, err := answer(ch); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Fatalf("other chunks waited for %v", took)
		}
		for _, ch := range slow {
			if _, err := answer(ch); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took < 4*time.Second {
			t.Fatalf("the fence was not waited for: %v", took)
		}
		// More than may wait is refused, not kept.
		w.master.configure(testChunk, nil, w.nodes[0], w.nodes[1])
		v := w.master.config(testChunk).GetVersion()
		w.master.mu.Lock()
		w.master.fences[testChunk] = time.Now().Add(5 * time.Second)
		w.master.mu.Unlock()
		big := text(1, dfs.FrameSize)
		busy := 0
		var all []chan *dfsv1.WriteAck
		for i := range 24 {
			all = append(all, wr.send(writeHeader(testChunk, v, 0, big, 9, uint64(i+100)), big))
		}
		for _, ch := range all {
			if _, err := answer(ch); errors.Is(err, dfserr.ErrBusy) {
				busy++
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if busy < 6 || busy > 9 {
			t.Fatalf("%d of 24 MiB refused, want all but 16", busy)
		}
	})
}
