package raftlog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

func TestOneVoter(t *testing.T) {
	fsys, state, network := vfs.NewMem(), newListState(), newPipes()
	start := time.Now()
	n := open(t, config(fsys, state, network.host("a")))
	t.Logf("leading after %v", time.Since(start))
	var want []string
	for i := range 50 {
		want = append(want, fmt.Sprint(i))
		at := propose(t, n, fmt.Sprint(i))
		read, err := n.ReadBarrier(context.Background())
		must(t, err)
		if read < at || state.Applied() < at {
			t.Fatalf("barrier gives %d after a proposal at %d", read, at)
		}
	}
	if addr, id := n.Leader(); addr != "a" || id != "a" || n.LeaderAddr() != "a" || !n.IsLeader() {
		t.Fatalf("leader %q at %q", id, addr)
	}
	must(t, n.Close())
	if _, _, err := n.Propose(context.Background(), nil); !errors.Is(err, dfserr.ErrUnavailable) {
		t.Fatalf("propose after close: %v", err)
	}
	state.replays = 0
	n = open(t, config(fsys, state, network.host("a")))
	defer n.Close()
	if _, err := n.ReadBarrier(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := state.data(); !slices.Equal(got, want) || state.replays != 0 {
		t.Fatalf("after a restart %d entries, %d applied again", len(got), state.replays)
	}
	propose(t, n, "more")
}

func TestRestartReplaysWhatTheStateLost(t *testing.T) {
	fsys, state, network := vfs.NewMem(), newListState(), newPipes()
	n := open(t, config(fsys, state, network.host("a")))
	for i := range 20 {
		propose(t, n, fmt.Sprint(i))
		if i == 11 {
			_, err := state.SyncTo()
			must(t, err)
		}
	}
	must(t, n.Close())
	want := state.data()
	state = state.crash(func(int) int { return 3 })
	n = open(t, config(fsys, state, network.host("a")))
	defer n.Close()
	if got := state.data(); !slices.Equal(got, want) || state.replays != 5 {
		t.Fatalf("%d entries, %d applied again", len(got), state.replays)
	}
}

func TestLimits(t *testing.T) {
	state := newListState()
	cfg := config(vfs.NewMem(), state, newPipes().host("a"))
	full := dfserr.Errorf(dfserr.ErrNoSpace, "disk")
	var refuse error
	cfg.Admit = func() error { return refuse }
	n := open(t, cfg)
	defer n.Close()
	if _, _, err := n.Propose(context.Background(), make([]byte, MaxEntry+1)); !errors.Is(err, dfserr.ErrTooBig) {
		t.Fatal(err)
	}
	_, _, err := n.Propose(context.Background(), make([]byte, MaxEntry))
	must(t, err)
	refuse = full
	if _, _, err := n.Propose(context.Background(), []byte("x")); !errors.Is(err, dfserr.ErrNoSpace) {
		t.Fatal(err)
	}
	refuse = nil
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := n.Propose(ctx, []byte("y")); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for _, bad := range []func(*Config){
		func(c *Config) { c.FS = nil }, func(c *Config) { c.ID = "" }, func(c *Config) { c.Network = nil },
		func(c *Config) { c.State = nil }, func(c *Config) { c.FSM = nil }, func(c *Config) { c.SegmentBytes = 1 << 40 },
	} {
		c := cfg
		bad(&c)
		if _, err := Open(context.Background(), c); !errors.Is(err, dfserr.ErrInvalid) {
			t.Error(err)
		}
	}
	second := cfg
	second.Bind = "b"
	if _, err := Open(context.Background(), second); !errors.Is(err, dfserr.ErrInUse) {
		t.Fatal(err)
	}
}

func TestOnLead(t *testing.T) {
	cfg := config(vfs.NewMem(), newListState(), newPipes().host("a"))
	began, ended := make(chan struct{}), make(chan struct{})
	cfg.OnLead = func(ctx context.Context) {
		close(began)
		<-ctx.Done()
		close(ended)
	}
	n := open(t, cfg)
	<-began
	must(t, n.Close())
	select {
	case <-ended:
	default:
		t.Fatal("Close did not wait for OnLead")
	}
}

// group is three nodes.
type group struct {
	t       *testing.T
	network *pipes
	nodes   map[string]*Node
	states  map[string]*listState
	disks   map[string]*vfs.Mem
	tune    func(*Config)
}

func newGroup(t *testing.T, tune func(*Config)) *group {
	g := &group{t: t, network: newPipes(), nodes: make(map[string]*Node), states: make(map[string]*listState), disks: make(map[string]*vfs.Mem), tune: tune}
	for _, id := range []string{"a", "b", "c"} {
		g.states[id], g.disks[id] = newListState(), vfs.NewMem()
		g.start(id)
	}
	leader := g.nodes["a"]
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	must(t, leader.WaitLeader(ctx))
	for _, id := range []string{"b", "c"} {
		must(t, leader.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(id), 0, 0).Error())
	}
	return g
}

func (g *group) start(id string) {
	g.t.Helper()
	cfg := config(g.disks[id], g.states[id], g.network.host(id))
	cfg.ID, cfg.Bind, cfg.Bootstrap, cfg.Heartbeat = id, id, id == "a", 150*time.Millisecond
	if g.tune != nil {
		g.tune(&cfg)
	}
	n, err := Open(context.Background(), cfg)
	must(g.t, err)
	g.nodes[id] = n
}

func (g *group) stop(id string) {
	g.t.Helper()
	must(g.t, g.nodes[id].Close())
	delete(g.nodes, id)
}

func (g *group) close() {
	for id := range g.nodes {
		g.stop(id)
	}
}

// leader waits for a leader among the nodes.
func (g *group) leader(except string) (string, *Node) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	found := make(chan string, len(g.nodes))
	var wg sync.WaitGroup
	for id, n := range g.nodes {
		if id == except {
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			if n.WaitLeader(ctx) == nil {
				found <- id
			}
		}()
	}
	defer wg.Wait()
	defer cancel()
	select {
	case id := <-found:
		return id, g.nodes[id]
	case <-ctx.Done():
		g.t.Fatal("no leader")
	}
	return "", nil
}

// reaches waits until a node has applied index.
func (g *group) reaches(id string, index dfs.Index) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	must(g.t, g.nodes[id].fsm.applied.wait(ctx, index, g.nodes[id].latch.ch))
}

func TestThreeVoters(t *testing.T) {
	g := newGroup(t, nil)
	defer g.close()
	id, n := g.leader("")
	var last dfs.Index
	for i := range 30 {
		last = propose(t, n, fmt.Sprint(i))
	}
	for other := range g.nodes {
		g.reaches(other, last)
	}
	if read, err := n.ReadBarrier(context.Background()); err != nil || read < last {
		t.Fatalf("barrier %d, %v", read, err)
	}
	for other, node := range g.nodes {
		if other == id {
			continue
		}
		if _, err := node.ReadBarrier(context.Background()); !errors.Is(err, dfserr.ErrNotLeader) {
			t.Fatalf("barrier on a follower: %v", err)
		}
		if _, _, err := node.Propose(context.Background(), []byte("x")); !errors.Is(err, dfserr.ErrNotLeader) {
			t.Fatalf("propose on a follower: %v", err)
		}
	}
	// The leader is cut off: another one leads with everything, and the old one no longer answers reads.
	g.network.isolate(id, true)
	next, successor := g.leader(id)
	after := propose(t, successor, "after")
	if _, err := n.ReadBarrier(context.Background()); err == nil {
		t.Fatal("a leader that was cut off answered a barrier")
	}
	g.network.isolate(id, false)
	g.reaches(id, after)
	if a, b := g.states[id].data(), g.states[next].data(); !slices.Equal(a, b) {
		t.Fatalf("states differ: %d and %d entries", len(a), len(b))
	}
}

// TestFollowerCatchesUpBySnapshot: the leader's log no longer reaches back to where a follower stopped.
func TestFollowerCatchesUpBySnapshot(t *testing.T) {
	g := newGroup(t, func(c *Config) {
		c.SnapshotEntries, c.TrailingEntries, c.SegmentBytes, c.CheckpointEntries = 10, 5, 1<<10, -1
	})
	defer g.close()
	id, n := g.leader("")
	late := "c"
	if id == "c" {
		late = "b"
	}
	g.reaches(late, propose(t, n, "first"))
	g.stop(late)
	var last dfs.Index
	for i := range 200 {
		last = propose(t, n, fmt.Sprint(i))
	}
	must(t, n.Snapshot(context.Background()))
	first, _ := n.log.FirstIndex()
	if first < 20 {
		t.Fatalf("the log still begins at %d", first)
	}
	g.start(late)
	g.reaches(late, last)
	if a, b := g.states[id].data(), g.states[late].data(); !slices.Equal(a, b) {
		t.Fatalf("states differ: %d and %d entries", len(a), len(b))
	}
	last = propose(t, n, "more")
	g.reaches(late, last)
	// And the follower comes back from what it now has on disk.
	g.stop(late)
	g.start(late)
	g.reaches(late, propose(t, n, "and more"))
}

func TestNodeFailsForGoodAtTheFirstDiskError(t *testing.T) {
	disk := vfs.NewInject(vfs.NewMem())
	disk.Record()
	state := newListState()
	n := open(t, config(disk, state, newPipes().host("a")))
	defer n.Close()
	propose(t, n, "before")
	disk.FailNthOf(0, func(op vfs.Op) bool { return op.Kind == vfs.OpSync }, vfs.Fault{})
	if _, _, err := n.Propose(context.Background(), []byte("during")); err == nil {
		t.Fatal("acknowledged an entry whose fsync failed")
	}
	<-n.Failed()
	if disk.Fired() != 1 {
		t.Fatalf("%d faults fired", disk.Fired())
	}
	writes := func() (w int) {
		for _, op := range disk.Log() {
			if op.Kind.Mutates() {
				w++
			}
		}
		return w
	}
	before := writes()
	for range 5 {
		if _, _, err := n.Propose(context.Background(), []byte("after")); !errors.Is(err, dfserr.ErrDiskFailed) {
			t.Fatalf("propose: %v", err)
		}
		if _, err := n.ReadBarrier(context.Background()); !errors.Is(err, dfserr.ErrDiskFailed) {
			t.Fatalf("barrier: %v", err)
		}
	}
	if n.IsLeader() || n.Err() == nil || writes() != before {
		t.Fatalf("leader %v, error %v, %d writes after the failure", n.IsLeader(), n.Err(), writes()-before)
	}
	if got := state.data(); !slices.Equal(got, []string{"before"}) {
		t.Fatalf("applied %q", got)
	}
}

// TestNodeFailsForGoodWhenItsStateDoes has an entry that the state machine cannot apply: it does not count as applied, nothing is acknowledged after it, and no snapshot claims it.
func TestNodeFailsForGoodWhenItsStateDoes(t *testing.T) {
	state := newListState()
	state.failAt = "bad"
	n := open(t, config(vfs.NewMem(), state, newPipes().host("a")))
	defer n.Close()
	last := propose(t, n, "before")
	if v, _, err := n.Propose(context.Background(), []byte("bad")); !errors.Is(err, dfserr.ErrCorrupt) {
		t.Fatalf("an entry that was not applied was answered with %v, %v", v, err)
	}
	<-n.Failed()
	if got := n.fsm.applied.get(); got != last {
		t.Fatalf("applied is %d, the state is at %d", got, last)
	}
	if _, _, err := n.Propose(context.Background(), []byte("after")); !errors.Is(err, dfserr.ErrCorrupt) {
		t.Fatalf("propose: %v", err)
	}
	if err := n.Snapshot(context.Background()); err == nil {
		t.Fatal("a snapshot of a failed state")
	}
	if _, err := n.fsm.Snapshot(); !errors.Is(err, dfserr.ErrCorrupt) {
		t.Fatalf("snapshot: %v", err)
	}
	if got := state.data(); !slices.Equal(got, []string{"before"}) {
		t.Fatalf("applied %q", got)
	}
}
