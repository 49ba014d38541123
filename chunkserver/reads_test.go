package chunkserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// TestCutOffReplicaServesNothingStale puts a secondary out of reach of master and chain, has the others go on, and checks that
// it refuses reads from the moment the new configuration can acknowledge, also after it has come back.
func TestCutOffReplicaServesNothingStale(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		v := w.master.configure(testChunk, nil, w.nodes...).GetVersion()
		w.retry(0, text(1, 1000), 9, 1)
		old := w.nodes[2]
		w.mustRead(old, v, 0, text(1, 1000))
		for _, other := range []string{"master", "cs1", "cs2"} {
			w.net.Cut(old.host, other)
		}
		w.mustRead(old, v, 0, text(1, 1000)) // its serving lease lasts
		start := time.Now()
		w.retry(0, text(2, 1000), 9, 2)
		if took := time.Since(start); took < testLease-testInterval-time.Second {
			t.Fatalf("acknowledged after %v, while the replica left out may still have served", took)
		}
		if _, _, err := w.read(old, v, 0, 1000); err == nil {
			t.Fatal("a replica that was left out served a read")
		}
		for _, other := range []string{"master", "cs1", "cs2"} {
			w.net.Heal(old.host, other)
		}
		time.Sleep(5 * time.Second)
		if _, ok := old.srv().serving.current(time.Now()); !ok {
			t.Fatal("the server has not come back")
		}
		if _, _, err := w.read(old, v, 0, 1000); !errors.Is(err, dfserr.ErrStaleVersion) {
			t.Fatalf("a replica that was left out and came back: %v", err)
		}
		cfg := w.master.config(testChunk)
		w.mustRead(w.nodes[0], cfg.GetVersion(), 0, text(2, 1000))
		w.mustRead(w.nodes[1], cfg.GetVersion(), 0, text(2, 1000))
	})
}

// TestLiveReplicaLeftOut leaves a replica out while its server is well: the master ends its serving period, and the server
// asks again.
func TestLiveReplicaLeftOut(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		v := w.master.configure(testChunk, nil, w.nodes...).GetVersion()
		w.retry(0, text(1, 1000), 9, 1)
		w.mustRead(w.nodes[2], v, 0, text(1, 1000))
		w.master.configure(testChunk, nil, w.nodes[0], w.nodes[1])
		w.retry(0, text(2, 1000), 9, 2)
		if _, _, err := w.read(w.nodes[2], v, 0, 1000); !errors.Is(err, dfserr.ErrStaleVersion) {
			t.Fatalf("a replica that was left out: %v", err)
		}
	})
}

// TestPausedPrimary stops a primary's network, has another one take over, and lets the old one run again.
func TestPausedPrimary(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		v := w.master.configure(testChunk, nil, w.nodes...).GetVersion()
		w.retry(0, text(1, 1000), 9, 1)
		p := w.nodes[0]
		w.mustRead(p, v, 0, text(1, 1000))
		wr := w.writer(p)
		w.net.Pause(p.host)
		late := wr.send(writeHeader(testChunk, v, 0, text(3, 1000), 8, 1), text(3, 1000))
		w.master.configure(testChunk, nil, w.nodes[1], w.nodes[2])
		w.retry(0, text(2, 1000), 9, 2)
		read := make(chan error, 1)
		go func() {
			_, _, err := w.read(p, v, 0, 1000)
			read <- err
		}()
		w.net.Resume(p.host)
		if ack, err := answer(late); err == nil {
			t.Fatalf("the old primary acknowledged %v", ack)
		}
		if err := <-read; err == nil {
			t.Fatal("the old primary served a read")
		}
		cfg := w.master.config(testChunk)
		for _, nd := range w.nodes[1:] {
			w.mustRead(nd, cfg.GetVersion(), 0, text(2, 1000))
		}
	})
}

// TestDirtyReads delays the chain's acknowledgements and reads meanwhile: a replica answers only with what is
// committed by then, and no later read, anywhere, shows older bytes.
func TestDirtyReads(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		v := w.master.configure(testChunk, nil, w.nodes...).GetVersion()
		w.retry(0, text(1, 1000), 9, 1)
		for _, nd := range w.nodes {
			w.mustRead(nd, v, 0, text(1, 1000))
		}
		wr := w.writer(w.nodes[0])
		w.net.SetDelay("cs2", "cs3", 200*time.Millisecond)
		start := time.Now()
		ch := wr.send(writeHeader(testChunk, v, 0, text(2, 1000), 9, 2), text(2, 1000))
		synctest.Wait()
		if _, state := w.nodes[1].onDisk(t); state.LastSeq != 2 {
			t.Fatalf("the middle replica has %d mutations, want 2", state.LastSeq)
		}
		if _, state := w.nodes[2].onDisk(t); state.LastSeq != 1 {
			t.Fatalf("the last replica has %d mutations, want 1", state.LastSeq)
		}
		w.mustRead(w.nodes[2], v, 0, text(1, 1000)) // not there yet: the old bytes, at once
		if took := time.Since(start); took >= 200*time.Millisecond {
			t.Fatalf("the read of clean bytes took %v", took)
		}
		var wg sync.WaitGroup
		for _, nd := range w.nodes[:2] {
			wg.Go(func() {
				w.mustRead(nd, v, 0, text(2, 1000))
				if took := time.Since(start); took < 200*time.Millisecond {
					t.Errorf("%s showed bytes after %v, before they were committed", nd.host, took)
				}
			})
		}
		wg.Wait()
		if _, err := answer(ch); err != nil {
			t.Fatal(err)
		}
		// A range that nobody writes to is never waited for.
		w.net.SetDelay("cs2", "cs3", time.Second)
		ch = wr.send(writeHeader(testChunk, v, 5000, text(3, 10), 9, 3), text(3, 10))
		synctest.Wait()
		start = time.Now()
		got, h, err := w.read(w.nodes[0], v, 0, 1000)
		if err != nil || !bytes.Equal(got, text(2, 1000)) || h.GetChunkLength() != 1000 || time.Since(start) > 100*time.Millisecond {
			t.Fatalf("read beside a write: %d bytes, %v, %v, after %v", len(got), h, err, time.Since(start))
		}
		// One that reaches past the end is: the write moves the end.
		if got, h, err := w.read(w.nodes[0], v, 0, 4096); err != nil || len(got) != 4096 || h.GetChunkLength() != 5010 || time.Since(start) < 900*time.Millisecond {
			t.Fatalf("read past the end beside a write: %d bytes, %v, %v, after %v", len(got), h, err, time.Since(start))
		}
		if _, err := answer(ch); err != nil {
			t.Fatal(err)
		}
		w.net.SetDelay("cs2", "cs3", 0)
		// Idle secondaries hear of the commit by themselves.
		time.Sleep(2 * time.Second)
		for _, nd := range w.nodes {
			if _, state := nd.onDisk(t); state.Committed != 3 {
				t.Errorf("%s knows of commits up to %d, want 3", nd.host, state.Committed)
			}
		}
	})
}

// TestSupersededPrimaryCannotAck keeps a primary that can reach the chain, but not the master, from acknowledging once another
// configuration is in use.
func TestSupersededPrimaryCannotAck(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		v := w.master.configure(testChunk, nil, w.nodes...).GetVersion()
		w.retry(0, text(1, 1000), 9, 1)
		p := w.nodes[0]
		w.net.Cut(p.host, "master")
		wr := w.writer(p)
		if _, err := answer(wr.send(writeHeader(testChunk, v, 0, text(2, 1000), 9, 2), text(2, 1000))); err != nil {
			t.Fatalf("write within the serving lease: %v", err)
		}
		w.master.configure(testChunk, nil, w.nodes[1], w.nodes[2])
		w.retry(0, text(3, 1000), 9, 3)
		if _, err := answer(wr.send(writeHeader(testChunk, v, 0, text(4, 1000), 9, 4), text(4, 1000))); err == nil {
			t.Fatal("the superseded primary acknowledged a write")
		}
		if _, _, err := w.read(p, v, 0, 1000); err == nil {
			t.Fatal("the superseded primary served a read")
		}
		cfg := w.master.config(testChunk)
		w.mustRead(w.nodes[2], cfg.GetVersion(), 0, text(3, 1000))
	})
}

// TestHistoryUnderFaults has writers and readers use one chunk while servers are killed, cut off and brought back, and checks that the
// registers read are linearizable: a read returns a value that was written no later than the read ended, and none older
// than what was acknowledged, or read, before it began.
func TestHistoryUnderFaults(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inBubble(t, 4, nil, func(w *world) { runHistory(w, seed) })
		})
	}
}

// register is what is known about one block, all writes to which come from one writer, numbered.
type register struct {
	mu      sync.Mutex
	started uint64 // highest number sent
	floor   uint64 // highest number acknowledged or read
}

func runHistory(w *world, seed uint64) {
	t := w.t
	w.master.configure(testChunk, nil, w.nodes[:3]...)
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	const blocks = 4
	var regs [blocks]register
	var wg sync.WaitGroup
	var writes, reads atomic.Int64
	for b := range blocks {
		wg.Go(func() {
			r := &regs[b]
			for n := uint64(1); ctx.Err() == nil; n++ {
				r.mu.Lock()
				r.started = n
				r.mu.Unlock()
				data := bytes.Repeat([]byte(fmt.Sprintf("%07d.", n)), dfs.BlockSize/8)
				w.retry(int64(b)*dfs.BlockSize, data, uint64(b)+1, n)
				r.mu.Lock()
				r.floor = max(r.floor, n)
				r.mu.Unlock()
				writes.Add(1)
				time.Sleep(time.Duration(100+b) * time.Millisecond)
			}
		})
	}
	for i := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			for ctx.Err() == nil {
				time.Sleep(time.Duration(40+rng.IntN(200)) * time.Millisecond)
				b := rng.IntN(blocks)
				r := &regs[b]
				r.mu.Lock()
				floor := r.floor
				r.mu.Unlock()
				nd := w.nodes[rng.IntN(len(w.nodes))]
				// A client may have an old idea of the configuration.
				version := uint64(100)
				if rng.IntN(2) == 0 {
					version = w.master.config(testChunk).GetVersion()
				}
				got, _, err := w.read(nd, version, int64(b)*dfs.BlockSize, dfs.BlockSize)
				if err != nil {
					continue
				}
				value := uint64(0)
				if len(got) == dfs.BlockSize && !bytes.Equal(got, make([]byte, dfs.BlockSize)) {
					if !bytes.Equal(got, bytes.Repeat(got[:8], dfs.BlockSize/8)) {
						t.Errorf("block %d at %s is torn", b, nd.host)
						return
					}
					if _, err := fmt.Sscanf(string(got[:8]), "%d.", &value); err != nil {
						t.Errorf("block %d at %s holds %q", b, nd.host, got[:8])
						return
					}
				}
				r.mu.Lock()
				if value < floor || value > r.started {
					t.Errorf("%s (%s, version %d) read %d from block %d, where %d was certain and %d was sent", time.Now().Format("05.000"), nd.host, version, value, b, floor, r.started)
				}
				r.floor = max(r.floor, value)
				r.mu.Unlock()
				reads.Add(1)
			}
		})
	}
	rng := rand.New(rand.NewPCG(seed, 99))
	for range 12 {
		time.Sleep(time.Duration(500+rng.IntN(2500)) * time.Millisecond)
		cfg := w.master.config(testChunk)
		var in, out []*node
		for _, nd := range w.nodes {
			found := false
			for _, r := range cfg.GetReplicas() {
				found = found || r.GetServer() == uint64(nd.srv().ID())
			}
			if found {
				in = append(in, nd)
			} else {
				out = append(out, nd)
			}
		}
		if len(in) < 3 { // heal: everybody back, and one more into the configuration
			var members []*node
			for _, r := range cfg.GetReplicas() {
				for _, nd := range in {
					if r.GetServer() == uint64(nd.srv().ID()) {
						members = append(members, nd)
					}
				}
			}
			w.master.configure(testChunk, nil, append(members, out[rng.IntN(len(out))])...)
			continue
		}
		nd := in[rng.IntN(len(in))]
		switch rng.IntN(5) {
		case 0: // kill and restart
			w.kill(nd)
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
			w.boot(nd)
		case 1: // cut off from everybody
			w.net.Pause(nd.host)
			time.Sleep(time.Duration(rng.IntN(9000)) * time.Millisecond)
			w.net.Resume(nd.host)
		case 2: // cut off from the master only
			w.net.Cut(nd.host, "master")
			time.Sleep(time.Duration(rng.IntN(9000)) * time.Millisecond)
			w.net.Heal(nd.host, "master")
		case 3: // cut off from one other server
			other := in[rng.IntN(len(in))]
			if other != nd {
				w.net.CutOneWay(nd.host, other.host)
				time.Sleep(time.Duration(rng.IntN(15000)) * time.Millisecond)
				w.net.Heal(nd.host, other.host)
			}
		case 4: // another primary, or another set
			perm := rng.Perm(len(w.nodes))
			next := []*node{nd}
			for _, i := range perm {
				if w.nodes[i] != nd && len(next) < 3 {
					next = append(next, w.nodes[i])
				}
			}
			w.master.configure(testChunk, func(*dfsv1.ChunkConfig) {}, next...)
		}
	}
	time.Sleep(30 * time.Second)
	cancel()
	wg.Wait()
	if writes.Load() < 50 || reads.Load() < 50 {
		t.Fatalf("only %d writes and %d reads", writes.Load(), reads.Load())
	}
	w.retry(blocks*dfs.BlockSize, []byte("end"), 77, 1)
	cfg := w.master.config(testChunk)
	var members []*node
	for _, r := range cfg.GetReplicas() {
		for _, nd := range w.nodes {
			if r.GetServer() == uint64(nd.srv().ID()) {
				members = append(members, nd)
			}
		}
	}
	w.sameEverywhere(members...)
	t.Logf("%d writes, %d reads, last version %d, %d failures reported", writes.Load(), reads.Load(), cfg.GetVersion(), len(w.master.failures))
}
