package chunkserver

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
	dfsv1 "dfs/proto/dfs/v1"
)

// retry writes until acknowledged, the way a client does: with the same request, at whoever is primary.
func (w *world) retry(off int64, data []byte, writer, request uint64) *dfsv1.WriteAck {
	w.t.Helper()
	var last error
	for range 200 {
		cfg := w.master.config(testChunk)
		var at *node
		for _, nd := range w.nodes {
			if uint64(nd.srv().ID()) == cfg.GetReplicas()[0].GetServer() {
				at = nd
			}
		}
		ack, err := func() (*dfsv1.WriteAck, error) {
			stream, err := w.tryWriter(at)
			if err != nil {
				return nil, err
			}
			defer stream.cancel()
			ch := stream.send(writeHeader(testChunk, cfg.GetVersion(), off, data, writer, request), data)
			select {
			case ack, ok := <-ch:
				if !ok {
					return nil, errors.New("stream broke")
				}
				return ack, dfserr.FromReason(ack.GetErrorReason(), ack.GetErrorText())
			case <-time.After(20 * time.Second):
				return nil, errors.New("no answer")
			}
		}()
		if err == nil {
			return ack
		}
		last = err
		// What a client that cannot reach the primary tells the master.
		if dfserr.ClassOf(err) == dfserr.GiveUp || errors.Is(err, dfserr.ErrUnavailable) {
			if _, err := w.master.ReportFailure(w.ctx, &dfsv1.ReportFailureRequest{
				Chunk: testChunk, Version: cfg.GetVersion(), Server: cfg.GetReplicas()[0].GetServer(), Reason: "client",
			}); err != nil {
				w.t.Fatal(err)
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.t.Fatalf("write %d is never acknowledged: %v", request, last)
	return nil
}

// TestKillEachPosition kills a server of each position in the chain after each of the first disk operations of a run of writes,
// and checks that the survivors are the same, that they have everything acknowledged, and that writing goes on.
func TestKillEachPosition(t *testing.T) {
	for position := range 3 {
		t.Run(fmt.Sprintf("position %d", position), func(t *testing.T) {
			for step := range 14 {
				inBubble(t, 3, nil, func(w *world) {
					w.master.configure(testChunk, nil, w.nodes...)
					victim := w.nodes[position]
					died := make(chan struct{})
					ops := 0
					victim.disk.SetFaults(func(op vfs.Op) *vfs.Fault {
						if op.Kind != vfs.OpWrite && op.Kind != vfs.OpCreate {
							return nil
						}
						if ops++; ops == step+1 {
							go func() {
								w.kill(victim)
								close(died)
							}()
						}
						return nil
					})
					acked := make([]byte, 40*1000)
					wr := w.writer(w.nodes[0])
					var chans []chan *dfsv1.WriteAck
					v := w.master.config(testChunk).GetVersion()
					for i := range 40 {
						data := text(i, 1000)
						chans = append(chans, wr.send(writeHeader(testChunk, v, int64(i*1000), data, 9, uint64(i+1)), data))
						if i%8 == 7 {
							synctest.Wait()
						}
					}
					for i, ch := range chans {
						data := text(i, 1000)
						copy(acked[i*1000:], data)
						if _, err := answer(ch); err != nil {
							if cls := dfserr.ClassOf(err); cls != dfserr.Refresh && cls != dfserr.Backoff {
								t.Fatalf("step %d: write %d failed with %v, which clients do not retry", step, i, err)
							}
							w.retry(int64(i*1000), data, 9, uint64(i+1))
						}
					}
					select {
					case <-died:
					default:
						t.Fatalf("step %d: the fault did not fire", step)
					}
					// And on with it.
					w.retry(40_000, text(77, 500), 9, 41)
					want := append(acked, text(77, 500)...)
					var alive []*node
					for _, nd := range w.nodes {
						if nd != victim {
							alive = append(alive, nd)
						}
					}
					if got := w.sameEverywhere(alive...); !bytes.Equal(got, want) {
						t.Fatalf("step %d: survivors have %d bytes, or other ones than the %d acknowledged", step, len(got), len(want))
					}
					cfg := w.master.config(testChunk)
					if len(cfg.GetReplicas()) != 2 {
						t.Fatalf("step %d: %d replicas in the configuration", step, len(cfg.GetReplicas()))
					}
					for _, nd := range alive {
						w.mustRead(nd, cfg.GetVersion(), 0, want)
					}
					_, state := alive[0].onDisk(t)
					if state.LastSeq != 41 {
						t.Fatalf("step %d: %d mutations for 41 requests", step, state.LastSeq)
					}
				})
			}
		})
	}
}

func TestReplicaComesBackByTail(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		w.master.configure(testChunk, nil, w.nodes...)
		wr := w.writer(w.nodes[0])
		var want []byte
		put := func(i int) {
			data := text(i, 5000)
			if _, err := wr.put(int64(len(want)), data, 9, uint64(i)); err != nil {
				t.Fatal(err)
			}
			want = append(want, data...)
		}
		put(1)
		w.master.configure(testChunk, nil, w.nodes[0], w.nodes[1])
		put(2)
		put(3)
		cfg := w.master.configure(testChunk, nil, w.nodes...)
		if _, err := w.client(w.nodes[0]).Activate(w.ctx, &dfsv1.ActivateRequest{Config: cfg}); err != nil {
			t.Fatal(err)
		}
		if got := w.sameEverywhere(w.nodes...); !bytes.Equal(got, want) {
			t.Fatal("not what was written")
		}
		for _, nd := range w.nodes {
			w.mustRead(nd, cfg.GetVersion(), 0, want)
		}
		// And whole, after the log was lost.
		w.master.configure(testChunk, nil, w.nodes[0], w.nodes[1])
		put(4)
		reply, err := w.client(w.nodes[2]).DeleteReplicas(w.ctx, &dfsv1.DeleteReplicasRequest{Items: []*dfsv1.DeleteReplicasRequest_Item{{Chunk: testChunk, Version: cfg.GetVersion()}}})
		if err != nil || len(reply.GetDeleted()) != 1 {
			t.Fatalf("delete: %v, %v", reply, err)
		}
		cfg = w.master.configure(testChunk, nil, w.nodes...)
		put(5)
		w.sameEverywhere(w.nodes...)
		w.mustRead(w.nodes[2], cfg.GetVersion(), 0, want)
	})
}

// TestFencedWhileBroughtIntoStep: the master puts a replica out of a version in which it is just being brought into step, as primary or by a
// copy of the log. It stays out: it acknowledges nothing and serves nothing of that version, and takes part in the next.
func TestFencedWhileBroughtIntoStep(t *testing.T) {
	for _, victim := range []int{0, 2} {
		inBubble(t, 3, nil, func(w *world) {
			n := w.nodes
			w.master.configure(testChunk, nil, n[0], n[1])
			w.retry(0, text(1, 100_000), 9, 1)
			cfg := w.master.configure(testChunk, nil, n...)
			version := dfs.Version(cfg.GetVersion())
			for _, peer := range n[1:] {
				w.net.SetDelay(n[0].host, peer.host, 300*time.Millisecond)
			}
			wr := w.writer(n[0])
			ch := wr.send(writeHeader(testChunk, uint64(version), 0, text(2, 100), 9, 2), text(2, 100))
			// Prepare is under way to the primary's peers after 150 ms; the copy of the log to the last one after 750 ms.
			time.Sleep(150*time.Millisecond + time.Duration(victim)*300*time.Millisecond)
			c, err := n[victim].srv().chunks.acquire(testChunk)
			if err != nil {
				t.Fatal(err)
			}
			c.mu.Lock()
			role, ready := c.role, c.ready
			c.mu.Unlock()
			n[victim].srv().chunks.release(c)
			if ready || (victim == 0) != (role == rolePrimary) || role == roleNone {
				t.Fatalf("replica %d is not being brought into step: role %d, ready %v", victim, role, ready)
			}
			if err := n[victim].srv().fenceReplica(w.ctx, testChunk, version); err != nil {
				t.Fatal(err)
			}
			if _, err := answer(ch); err == nil {
				t.Fatalf("replica %d was fenced, and a write was acknowledged", victim)
			}
			c.mu.Lock()
			role, ready = c.role, c.ready
			c.mu.Unlock()
			if ready || role != roleNone {
				t.Fatalf("replica %d was fenced and has role %d, ready %v", victim, role, ready)
			}
			for _, peer := range n[1:] {
				w.net.SetDelay(n[0].host, peer.host, 0)
			}
			next := w.master.configure(testChunk, nil, n...)
			w.retry(100_000, text(3, 100), 9, 3)
			w.sameEverywhere(n...)
			w.mustRead(n[victim], next.GetVersion(), 100_000, text(3, 100))
		})
	}
}

// TestRestartWithinVersion restarts servers without any change of configuration: what is idle comes back by itself.
func TestRestartWithinVersion(t *testing.T) {
	for position := range 3 {
		inBubble(t, 3, nil, func(w *world) {
			v := w.master.configure(testChunk, nil, w.nodes...).GetVersion()
			w.retry(0, text(1, 5000), 9, 1)
			for round := range 3 {
				nd := w.nodes[position]
				w.kill(nd)
				w.boot(nd)
				time.Sleep(2 * time.Second)
				if round == 1 {
					w.mustRead(nd, v, 0, text(1, 5000)) // before any write
				}
				w.retry(5000, text(round, 100), 9, uint64(round+2))
				for _, r := range w.nodes {
					w.mustRead(r, v, 0, append(text(1, 5000), text(round, 100)...))
				}
			}
			w.sameEverywhere(w.nodes...)
			if got := w.master.config(testChunk).GetVersion(); got != v {
				t.Fatalf("position %d: version %d became %d: %v", position, v, got, w.master.failures)
			}
		})
	}
}

// TestLongestLogWins gives a secondary mutations that the primary has lost with its power, and checks that they are kept; and
// one that a newer version has made void, and checks that it is dropped.
func TestLongestLogWins(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		v := w.master.configure(testChunk, nil, w.nodes...).GetVersion()
		w.retry(0, text(1, 3000), 9, 1)
		w.retry(3000, text(2, 3000), 9, 2)
		p := w.nodes[0]
		w.kill(p)
		w.boot(p)
		// The power loss: the last mutation is gone from the primary's log.
		rep, err := p.srv().store().Replica(testChunk)
		if err != nil {
			t.Fatal(err)
		}
		if err := rep.DropAfter(1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		w.mustRead(w.nodes[0], v, 0, append(text(1, 3000), text(2, 3000)...))
		w.retry(6000, text(3, 10), 9, 3)
		w.sameEverywhere(w.nodes...)

		// The last server alone gets a mutation that was never acknowledged; the others go on without it.
		w.master.configure(testChunk, nil, w.nodes[0], w.nodes[1])
		last, err := w.nodes[2].srv().store().Replica(testChunk)
		if err != nil {
			t.Fatal(err)
		}
		if err := last.Append(mutation(dfs.Version(v), 4, 0, []byte("ghost"), 9, 4)); err != nil {
			t.Fatal(err)
		}
		w.retry(6010, text(4, 10), 9, 4)
		cfg := w.master.configure(testChunk, nil, w.nodes[2], w.nodes[0], w.nodes[1])
		w.retry(6020, text(5, 10), 9, 5)
		got := w.sameEverywhere(w.nodes...)
		if bytes.Contains(got, []byte("ghost")) || !bytes.Equal(got[6000:], append(append(text(3, 10), text(4, 10)...), text(5, 10)...)) {
			t.Fatalf("the surplus was not dropped: %q", got[6000:])
		}
		w.mustRead(w.nodes[2], cfg.GetVersion(), 0, got)
	})
}

func TestBornAndUnborn(t *testing.T) {
	t.Run("a born chunk is never made anew", func(t *testing.T) {
		inBubble(t, 3, nil, func(w *world) {
			v := w.master.configure(testChunk, func(c *dfsv1.ChunkConfig) { c.Born = true }, w.nodes...).GetVersion()
			data := text(1, 10)
			w.master.frozen = true
			if _, err := w.writer(w.nodes[0]).put(0, data, 9, 1); !errors.Is(err, dfserr.ErrNoReplica) {
				t.Fatalf("write to a lost chunk: %v", err)
			}
			for _, nd := range w.nodes {
				if _, err := nd.srv().store().Replica(testChunk); !errors.Is(err, dfserr.ErrNotExist) {
					t.Errorf("%s made a replica: %v", nd.host, err)
				}
			}
			if f := w.master.failures; len(f) != 1 || f[0].GetServer() != uint64(w.nodes[0].srv().ID()) || f[0].GetVersion() != v {
				t.Fatalf("reports: %v", f)
			}
		})
	})
	t.Run("an unborn chunk that others have", func(t *testing.T) {
		inBubble(t, 3, nil, func(w *world) {
			v := w.master.configure(testChunk, nil, w.nodes[0], w.nodes[1]).GetVersion()
			w.retry(0, text(1, 100), 9, 1)
			w.master.configure(testChunk, nil, w.nodes[2], w.nodes[0], w.nodes[1])
			w.retry(100, text(2, 100), 9, 2) // the new primary reports itself lost, the next one has it all
			cfg := w.master.config(testChunk)
			if cfg.GetReplicas()[0].GetServer() != uint64(w.nodes[0].srv().ID()) || len(cfg.GetReplicas()) != 2 || cfg.GetVersion() <= v {
				t.Fatalf("configuration: %v", cfg)
			}
			w.mustRead(w.nodes[1], cfg.GetVersion(), 0, append(text(1, 100), text(2, 100)...))
		})
	})
	t.Run("reading an unborn chunk", func(t *testing.T) {
		inBubble(t, 3, nil, func(w *world) {
			v := w.master.configure(testChunk, nil, w.nodes...).GetVersion()
			for _, nd := range w.nodes {
				got, h, err := w.read(nd, v, 0, 100)
				if err != nil || len(got) != 0 || h.GetChunkLength() != 0 {
					t.Fatalf("%s: %d bytes, %v, %v", nd.host, len(got), h, err)
				}
			}
		})
	})
}

func TestSeedAndCutOnce(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		seed := text(3, 3000)
		cfg := w.master.configure(testChunk, func(c *dfsv1.ChunkConfig) { c.Seed = seed }, w.nodes...)
		w.mustRead(w.nodes[1], cfg.GetVersion(), 0, seed)
		w.retry(2990, text(4, 100), 9, 1)
		want := append(bytes.Clone(seed[:2990]), text(4, 100)...)
		// The master has not heard that the seed is stored, and cuts on top of it.
		cfg = w.master.configure(testChunk, func(c *dfsv1.ChunkConfig) { c.CutLength, c.CutVersion = 3000, c.GetVersion() }, w.nodes...)
		reply, err := w.client(w.nodes[0]).Activate(w.ctx, &dfsv1.ActivateRequest{Config: cfg})
		if err != nil || reply.GetReplica().GetLength() != 3000 {
			t.Fatalf("activate with a cut: %v, %v", reply, err)
		}
		for _, nd := range w.nodes {
			w.mustRead(nd, cfg.GetVersion(), 0, want[:3000])
		}
		w.retry(3000, text(5, 50), 9, 2)
		want = append(want[:3000:3000], text(5, 50)...)
		// The same cut again, at another primary and in another version, changes nothing.
		cut := cfg.GetCutVersion()
		w.kill(w.nodes[0])
		cfg = w.master.configure(testChunk, func(c *dfsv1.ChunkConfig) { c.CutLength, c.CutVersion = 3000, cut }, w.nodes[1], w.nodes[2])
		w.mustRead(w.nodes[2], cfg.GetVersion(), 0, want)
		_, state := w.nodes[1].onDisk(t)
		if state.LastSeq != 4 { // seed, write, cut, write
			t.Fatalf("%d mutations, want 4", state.LastSeq)
		}
		if got := w.sameEverywhere(w.nodes[1], w.nodes[2]); !bytes.Equal(got, want) {
			t.Fatal("bytes differ")
		}
	})
}

func TestFsyncErrorLosesTheReplica(t *testing.T) {
	for position := range 3 {
		t.Run(fmt.Sprintf("position %d", position), func(t *testing.T) {
			inBubble(t, 3, nil, func(w *world) {
				w.master.configure(testChunk, nil, w.nodes...)
				w.retry(0, text(1, 5000), 9, 1)
				w.nodes[position].disk.SetFaults(func(op vfs.Op) *vfs.Fault {
					if op.Kind == vfs.OpSync {
						return &vfs.Fault{}
					}
					return nil
				})
				cfg := w.master.config(testChunk)
				_, err := w.client(w.nodes[0]).Sync(w.ctx, &dfsv1.SyncRequest{Chunk: testChunk, Version: cfg.GetVersion()})
				if position == 0 {
					if dfserr.ClassOf(err) != dfserr.Refresh {
						t.Fatalf("sync at a primary whose disk fails: %v", err)
					}
					cfg = w.master.config(testChunk)
					_, err = w.client(w.nodes[1]).Sync(w.ctx, &dfsv1.SyncRequest{Chunk: testChunk, Version: cfg.GetVersion()})
				}
				if err != nil {
					t.Fatalf("sync: %v", err)
				}
				if w.nodes[position].disk.Fired() == 0 {
					t.Fatal("the fault did not fire")
				}
				cfg = w.master.config(testChunk)
				if len(cfg.GetReplicas()) != 2 {
					t.Fatalf("the replica was not put out: %v", cfg)
				}
				for _, nd := range w.nodes {
					rep, err := nd.srv().store().Replica(testChunk)
					if err != nil {
						t.Fatal(err)
					}
					state, err := rep.State()
					if err != nil {
						t.Fatal(err)
					}
					if nd != w.nodes[position] && state.Synced != 1 {
						t.Errorf("%s is synced up to %d", nd.host, state.Synced)
					}
				}
				// The disk stays out of use.
				if nd := w.nodes[position]; nd.srv().store().Usage()[0].Failed == nil {
					t.Error("the disk is not condemned")
				}
			})
		})
	}
}

func TestNoSpace(t *testing.T) {
	t.Run("at the primary the client is told", func(t *testing.T) {
		inBubble(t, 3, nil, func(w *world) {
			w.master.configure(testChunk, nil, w.nodes...)
			w.retry(0, text(1, 5000), 9, 1)
			w.nodes[0].fs.SetCapacity(300 * dfs.KiB)
			time.Sleep(2 * testInterval)
			wr := w.writer(w.nodes[0])
			_, err := wr.put(5000, text(2, dfs.FrameSize), 9, 2)
			if !errors.Is(err, dfserr.ErrNoSpace) {
				t.Fatalf("write to a full disk: %v", err)
			}
			w.nodes[0].fs.SetCapacity(0)
			if _, err := wr.put(5000, text(2, dfs.FrameSize), 9, 2); err != nil {
				t.Fatalf("write after room was made: %v", err)
			}
			w.sameEverywhere(w.nodes...)
			if len(w.master.failures) != 0 {
				t.Fatalf("failures reported: %v", w.master.failures)
			}
		})
	})
	t.Run("a secondary is replaced", func(t *testing.T) {
		inBubble(t, 3, nil, func(w *world) {
			w.master.configure(testChunk, nil, w.nodes...)
			w.retry(0, text(1, 5000), 9, 1)
			w.nodes[2].fs.SetCapacity(300 * dfs.KiB)
			w.retry(5000, text(2, dfs.FrameSize), 9, 2)
			cfg := w.master.config(testChunk)
			if len(cfg.GetReplicas()) != 2 || cfg.GetReplicas()[1].GetServer() != uint64(w.nodes[1].srv().ID()) {
				t.Fatalf("configuration: %v, reports %v", cfg, w.master.failures)
			}
			w.sameEverywhere(w.nodes[0], w.nodes[1])
		})
	})
}

func TestTooFewReplicas(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		w.master.configure(testChunk, func(c *dfsv1.ChunkConfig) { c.Replication = 3 }, w.nodes...)
		w.retry(0, text(1, 5000), 9, 1)
		w.kill(w.nodes[1])
		w.kill(w.nodes[2])
		wr := w.writer(w.nodes[0])
		if _, err := wr.put(0, text(2, 100), 9, 2); !errors.Is(err, dfserr.ErrTooFewReplicas) {
			t.Fatalf("write with one replica: %v", err)
		}
		cfg := w.master.config(testChunk)
		if len(cfg.GetReplicas()) != 1 {
			t.Fatalf("configuration: %v", cfg)
		}
		if _, err := wr.put(0, text(2, 100), 9, 2); !errors.Is(err, dfserr.ErrTooFewReplicas) {
			t.Fatalf("write with one replica: %v", err)
		}
		if _, _, err := w.read(w.nodes[0], cfg.GetVersion(), 0, 5000); err != nil {
			t.Fatalf("read with one replica: %v", err)
		}
		w.boot(w.nodes[1])
		time.Sleep(2 * time.Second)
		w.master.configure(testChunk, func(c *dfsv1.ChunkConfig) { c.Replication = 3 }, w.nodes[0], w.nodes[1])
		if _, err := wr.put(0, text(2, 100), 9, 2); err != nil {
			t.Fatalf("the same write with two replicas: %v", err)
		}
		if got := w.sameEverywhere(w.nodes[0], w.nodes[1]); !bytes.Equal(got[:100], text(2, 100)) {
			t.Fatal("bytes differ")
		}
	})
}

// TestStalledSuccessor stops a secondary in the middle of writes: it is given up after a while, and chunks that do not go through it
// are not held up.
func TestStalledSuccessor(t *testing.T) {
	for _, size := range []int{1000, 300_000} {
		inBubble(t, 4, nil, func(w *world) {
			n := w.nodes
			v := w.master.configure(testChunk, nil, n[0], n[1], n[2]).GetVersion()
			w.master.configure(0x88, nil, n[0], n[3], n[2])
			wr := w.writer(n[0])
			data := text(1, size)
			other := func(request uint64) {
				t.Helper()
				start := time.Now()
				if _, err := answer(wr.send(writeHeader(0x88, 100, 0, data, 9, request), data)); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(start); took > time.Second {
					t.Fatalf("a chunk elsewhere waited for %v", took)
				}
			}
			other(1)
			if _, err := wr.put(0, data, 9, 1); err != nil {
				t.Fatal(err)
			}
			w.net.Pause(n[1].host)
			start := time.Now()
			var waiting []chan *dfsv1.WriteAck
			for i := range 12 {
				waiting = append(waiting, wr.send(writeHeader(testChunk, v, int64(i*size), data, 9, uint64(i+2)), data))
			}
			other(2)
			time.Sleep(time.Second)
			other(3)
			for i, ch := range waiting {
				if _, err := answer(ch); err != nil {
					w.retry(int64(i*size), data, 9, uint64(i+2))
				}
			}
			if took := time.Since(start); took < 6*time.Second || took > 20*time.Second {
				t.Fatalf("the successor was given up after %v", took)
			}
			if f := w.master.failures; len(f) == 0 || f[0].GetServer() != uint64(n[1].srv().ID()) {
				t.Fatalf("reports: %v", f)
			}
			w.net.Resume(n[1].host)
			time.Sleep(10 * time.Second)
			w.sameEverywhere(n[0], n[2])
			if _, _, err := w.read(n[1], v, 0, 10); err == nil {
				t.Fatal("the replica given up serves reads")
			}
		})
	}
}

// TestSyncsAreShared has many callers sync one chunk: they share fsyncs, and each covers what was acknowledged before it.
func TestSyncsAreShared(t *testing.T) {
	inBubble(t, 3, nil, func(w *world) {
		v := w.master.configure(testChunk, nil, w.nodes...).GetVersion()
		w.retry(0, text(1, 100), 9, 1)
		w.net.SetDelay("cs1", "cs2", 50*time.Millisecond)
		w.net.SetDelay("cs1", "cs3", 50*time.Millisecond)
		w.nodes[2].disk.Record()
		errs := make(chan error, 50)
		for i := range 50 {
			go func() {
				w.retry(int64(i)*100, text(i, 100), uint64(i+20), 1)
				_, err := w.client(w.nodes[0]).Sync(w.ctx, &dfsv1.SyncRequest{Chunk: testChunk, Version: v})
				if err == nil {
					if _, state := w.nodes[2].onDisk(t); state.Synced < 2 {
						err = fmt.Errorf("synced up to %d", state.Synced)
					}
				}
				errs <- err
			}()
		}
		for range 50 {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
		_, state := w.nodes[2].onDisk(t)
		if state.Synced != 51 {
			t.Errorf("synced up to %d, want 51", state.Synced)
		}
		syncs := 0
		for _, op := range w.nodes[2].disk.Log() {
			if op.Kind == vfs.OpSync {
				syncs++
			}
		}
		if syncs == 0 || syncs > 10 {
			t.Errorf("%d fsyncs for 50 calls", syncs)
		}
	})
}
