package placement

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"dfs/internal/dfs"
)

// cluster makes n nodes in the given number of racks; weight returns each one's capacity.
func cluster(n, racks int, weight func(i int) int64) []Node {
	nodes := make([]Node, n)
	for i := range nodes {
		nodes[i] = Node{ID: dfs.ServerID(mix(uint64(i) + 77)), Weight: weight(i), Rack: fmt.Sprintf("r%d", i%racks)}
	}
	return nodes
}

func equal(int) int64 { return 1 << 40 }

// genNodes draws nodes with all kinds of weights, racks, loads and flags.
func genNodes(t *rapid.T, least, most int) []Node {
	n := rapid.IntRange(least, most).Draw(t, "servers")
	racks := rapid.IntRange(1, 5).Draw(t, "racks")
	flags := rapid.IntRange(0, 3).Draw(t, "flags")
	nodes := make([]Node, n)
	for i := range nodes {
		nodes[i] = Node{
			ID:     dfs.ServerID(mix(uint64(i))),
			Weight: rapid.Int64Range(0, 16).Draw(t, "weight") << 40,
			Rack:   fmt.Sprintf("r%d", rapid.IntRange(0, racks-1).Draw(t, "rack")),
			Load:   rapid.Int64Range(0, 1000).Draw(t, "load"),
		}
		if flags > 0 {
			nodes[i].Full = rapid.IntRange(0, 9).Draw(t, "full") < flags
			nodes[i].Draining = rapid.IntRange(0, 9).Draw(t, "draining") < flags
		}
	}
	return nodes
}

// TestChooseRules checks rules 1 to 3 of the package comment, and that shortfalls are told, for any cluster
// and request.
func TestChooseRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := genNodes(t, 0, 40)
		p := NewPlacer(nodes, Options{})
		id := func(label string) dfs.ServerID {
			if len(nodes) == 0 || rapid.IntRange(0, 9).Draw(t, label+" unknown") == 0 {
				return 12345
			}
			return nodes[rapid.IntRange(0, len(nodes)-1).Draw(t, label)].ID
		}
		req := Request{
			Chunk:    dfs.ChunkID(rapid.Uint64().Draw(t, "chunk")),
			Replicas: rapid.IntRange(0, 6).Draw(t, "replicas"),
		}
		if rapid.Bool().Draw(t, "has near") {
			req.Near = id("near")
		}
		for range rapid.IntRange(0, 3).Draw(t, "existing") {
			if e := id("e"); !slices.Contains(req.Existing, e) {
				req.Existing = append(req.Existing, e)
			}
		}
		for range rapid.IntRange(0, 3).Draw(t, "excluded") {
			req.Exclude = append(req.Exclude, id("x"))
		}
		c := p.Choose(req)

		allowed := func(n Node) bool {
			return n.Weight > 0 && !n.Full && !n.Draining && !slices.Contains(req.Existing, n.ID) && !slices.Contains(req.Exclude, n.ID)
		}
		byID := map[dfs.ServerID]Node{}
		candidates, candidateRacks := 0, map[string]bool{}
		for _, n := range nodes {
			byID[n.ID] = n
			if allowed(n) {
				candidates++
				candidateRacks[n.Rack] = true
			}
		}
		racks := map[string]bool{}
		for _, e := range req.Existing {
			if n, ok := byID[e]; ok {
				racks[n.Rack] = true
			}
		}
		existingRacks := len(racks)
		seen := map[dfs.ServerID]bool{}
		for _, r := range c.Replicas {
			if seen[r] {
				t.Fatalf("server %s chosen twice: %v", r, c.Replicas)
			}
			seen[r] = true
			if n, ok := byID[r]; !ok || !allowed(n) {
				t.Fatalf("server %s must not be chosen: %+v", r, n)
			}
			racks[byID[r].Rack] = true
		}
		if want := min(req.Replicas, candidates); len(c.Replicas) != want || c.Short != req.Replicas-want {
			t.Fatalf("chose %d of %d, short %d, with %d candidates", len(c.Replicas), req.Replicas, c.Short, candidates)
		}
		possible := len(racks)
		for r := range candidateRacks {
			if !racks[r] {
				possible++
			}
		}
		total := len(c.Replicas) + existingRacks
		if len(c.Replicas) > 0 && total >= 2 && possible >= 2 && len(racks) < 2 {
			t.Fatalf("all in one rack although %d are possible: %v", possible, c.Replicas)
		}
		if (c.Why() == "") != (c.Short == 0 && !c.OneRack) {
			t.Fatalf("why %q, short %d, one rack %v", c.Why(), c.Short, c.OneRack)
		}
	})
}

// TestDeterministic pins the answers, so that two processes, and two releases, agree.
func TestDeterministic(t *testing.T) {
	nodes := cluster(7, 3, func(i int) int64 { return int64(i+1) << 40 })
	forward := NewRing(nodes, Options{})
	slices.Reverse(nodes)
	backward := NewRing(nodes, Options{})
	var got []string
	for chunk := range dfs.ChunkID(4) {
		a, b := slices.Collect(forward.Walk(chunk)), slices.Collect(backward.Walk(chunk))
		if !slices.Equal(a, b) {
			t.Errorf("chunk %d: the order of the nodes changes the walk: %v, %v", chunk, a, b)
		}
		if len(a) != len(nodes) {
			t.Errorf("chunk %d: walk yields %d of %d servers", chunk, len(a), len(nodes))
		}
		var short []string
		for _, id := range forward.Ideal(chunk, 3) {
			short = append(short, id.String()[:4])
		}
		got = append(got, strings.Join(short, " "))
	}
	want := []string{"0981 0de7 9192", "9192 8795 0981", "bd9e 8795 5709", "6258 bd9e 0de7"}
	if !slices.Equal(got, want) {
		t.Errorf("ideal servers changed:\n got %q\nwant %q", got, want)
	}
}

// placeMany places chunks and returns the highest load relative to the server's share of the mean.
func placeMany(t *testing.T, p *Placer, chunks, replicas int) (worst float64) {
	t.Helper()
	for i := range chunks {
		c := p.Choose(Request{Chunk: dfs.ChunkID(i), Replicas: replicas})
		if c.Short > 0 || c.OverBound > 0 {
			t.Fatalf("chunk %d: %+v", i, c)
		}
		for _, id := range c.Replicas {
			p.AddLoad(id, 1)
		}
	}
	var load, weight float64
	for _, n := range p.nodes {
		load += float64(n.Load)
		weight += float64(n.Weight)
	}
	for _, n := range p.nodes {
		share := load * float64(n.Weight) / weight
		if float64(n.Load) > math.Ceil(BoundFactor*share) {
			t.Errorf("server %s has %d replicas, its share is %.1f", n.ID, n.Load, share)
		}
		worst = max(worst, float64(n.Load)/share)
	}
	return worst
}

// TestBoundedLoad fills clusters of 3 to 1,000 servers and checks every server against its bound.
func TestBoundedLoad(t *testing.T) {
	for _, n := range []int{3, 4, 5, 10, 30, 100, 300, 1000} {
		for name, weight := range map[string]func(int) int64{
			"equal": equal,
			"mixed": func(i int) int64 { return int64(4+i%5) << 40 },
		} {
			if n < 10 && name == "mixed" {
				continue // three replicas on a few unequal servers cannot follow their weights
			}
			t.Run(fmt.Sprintf("%d/%s", n, name), func(t *testing.T) {
				p := NewPlacer(cluster(n, min(n, 5), weight), Options{})
				worst := placeMany(t, p, max(300, 10*n), 3)
				t.Logf("most loaded server: %.3f of its share", worst)
			})
		}
	}
}

// TestOverBoundGivesWay has one server in the second rack: the rack rule needs it for every chunk.
func TestOverBoundGivesWay(t *testing.T) {
	nodes := cluster(10, 1, equal)
	nodes[9].Rack = "other"
	p := NewPlacer(nodes, Options{})
	over := 0
	for i := range 200 {
		c := p.Choose(Request{Chunk: dfs.ChunkID(i), Replicas: 3})
		if !slices.Contains(c.Replicas, nodes[9].ID) {
			t.Fatalf("chunk %d: %v has one rack", i, c.Replicas)
		}
		over += c.OverBound
		for _, id := range c.Replicas {
			p.AddLoad(id, 1)
		}
	}
	if over == 0 {
		t.Error("the load bound was never exceeded; the test tests nothing")
	}
}

func TestNear(t *testing.T) {
	nodes := cluster(9, 3, equal)
	p := NewPlacer(nodes, Options{})
	for i, n := range nodes {
		c := p.Choose(Request{Chunk: dfs.ChunkID(i), Replicas: 3, Near: n.ID})
		if c.Replicas[0] != n.ID {
			t.Errorf("near %s: got %v", n.ID, c.Replicas)
		}
	}
	p.SetLoad(nodes[0].ID, 0, true, false)
	for i := range 20 {
		c := p.Choose(Request{Chunk: dfs.ChunkID(i), Replicas: 3, Near: nodes[0].ID})
		if rack, _ := p.Ring().Rack(c.Replicas[0]); rack != nodes[0].Rack || c.Replicas[0] == nodes[0].ID {
			t.Errorf("chunk %d near a full server: first is %s in rack %s", i, c.Replicas[0], rack)
		}
	}
}

func TestWhy(t *testing.T) {
	nodes := cluster(5, 1, equal)
	nodes[0].Full, nodes[1].Draining, nodes[2].Weight = true, true, 0
	p := NewPlacer(nodes, Options{})
	c := p.Choose(Request{Chunk: 1, Replicas: 3, Existing: []dfs.ServerID{nodes[3].ID}})
	want := "2 of 3 replicas have no server; of 5 servers 1 already hold the chunk, 0 are excluded, 1 full, 1 draining, 1 without capacity"
	if c.Why() != want {
		t.Errorf("got  %q\nwant %q", c.Why(), want)
	}
	if c := NewPlacer(nil, Options{}).Choose(Request{Chunk: 1, Replicas: 1}); c.Short != 1 || len(c.Replicas) != 0 {
		t.Errorf("empty cluster: %+v", c)
	}
}

// TestMoves checks that a join or leave moves at most 1.2 times the least that must move, over the whole hash
// space and not a sample, and that nothing else moves.
func TestMoves(t *testing.T) {
	for _, n := range []int{3, 5, 10, 30, 100} {
		for _, replicas := range []int{1, 3} {
			t.Run(fmt.Sprintf("%d servers/%d replicas", n, replicas), func(t *testing.T) {
				nodes := cluster(n+1, n+1, equal)
				small, large := NewRing(nodes[:n], Options{}), NewRing(nodes, Options{})
				least := 1 / float64(n+1) // of all replicas, when they follow the weights
				join, leave := Share(small, large, replicas), Share(large, small, replicas)
				t.Logf("join moves %.4f, leave %.4f, the least is %.4f", join, leave, least)
				if join > 1.2*least || leave > 1.2*least {
					t.Errorf("join moves %.4f, leave %.4f, the least is %.4f", join, leave, least)
				}
			})
		}
	}
}

// TestMovesProperty does the same for random clusters and joining weights.
func TestMovesProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(4, 20).Draw(t, "servers")
		nodes := make([]Node, n)
		total := 0.0
		for i := range nodes {
			nodes[i] = Node{
				ID:     dfs.ServerID(rapid.Uint64Min(1).Draw(t, "id")),
				Weight: rapid.Int64Range(4<<40, 8<<40-1).Draw(t, "weight"),
				Rack:   fmt.Sprintf("r%d", i%3),
			}
			total += float64(nodes[i].Weight)
		}
		if len(sortedNodes(nodes)) < n {
			t.Skip("one id twice")
		}
		small, large := NewRing(nodes[:n-1], Options{}), NewRing(nodes, Options{})
		share := float64(nodes[n-1].Weight) / total
		if moved := Share(small, large, 1); moved > 1.2*share {
			t.Fatalf("join moves %.4f of first replicas, the server's share is %.4f", moved, share)
		}
		chunks := make([]dfs.ChunkID, 200)
		for i := range chunks {
			chunks[i] = dfs.ChunkID(i)
		}
		for _, c := range chunks {
			before, after := small.Ideal(c, 3), large.Ideal(c, 3)
			if moved, _ := Moves(small, large, []dfs.ChunkID{c}, 3); moved > 0 && !slices.Contains(after, nodes[n-1].ID) {
				t.Fatalf("chunk %s moves although the new server does not get it: %v, %v", c, before, after)
			}
		}
	})
}

// TestUpdate: loads and flags alone never take a new ring, capacities that wobble do not either.
func TestUpdate(t *testing.T) {
	nodes := cluster(10, 2, func(int) int64 { return 5<<40 + 1<<30 })
	p := NewPlacer(nodes, Options{})
	ring := p.Ring()
	if p.Update(nodes) || p.Changes() != 0 {
		t.Error("a change although nothing did")
	}
	for i := range nodes {
		nodes[i].Load, nodes[i].Full, nodes[i].Weight = int64(i), i == 3, nodes[i].Weight+int64(i)<<10
	}
	slices.Reverse(nodes)
	if p.Update(nodes) || p.Ring() != ring {
		t.Error("a new ring for other loads")
	}
	if n, _ := p.Node(nodes[0].ID); n.Load != nodes[0].Load {
		t.Errorf("load %d was not taken over: %+v", nodes[0].Load, n)
	}
	if !p.Update(nodes[1:]) || p.Ring() == ring {
		t.Error("no new ring for a server less")
	}
	if _, ok := p.Node(nodes[0].ID); ok {
		t.Error("the server that left is still known")
	}
	p.SetLoad(nodes[0].ID, 1, false, false)
	p.AddLoad(nodes[0].ID, 1)
	before := p.Changes()
	p.SetLoad(nodes[1].ID, 5, false, false)
	if p.Changes() != before {
		t.Error("a load counts as a change")
	}
	p.SetLoad(nodes[1].ID, 5, false, true)
	if p.Changes() == before || before < 2 {
		t.Error("a server full or gone, or draining, is no change")
	}
}

// TestIncrementalRing: a ring that was changed step by step is the one built at once.
func TestIncrementalRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		opts := Options{Unit: 16 << 40} // few points per server
		ring := NewRing(nil, opts)
		for range rapid.IntRange(1, 4).Draw(t, "steps") {
			nodes := sortedNodes(genNodes(t, 0, 6))
			nodes = slices.DeleteFunc(nodes, func(Node) bool { return rapid.IntRange(0, 3).Draw(t, "leave") == 0 })
			ring = ring.with(nodes, opts)
			fresh := NewRing(nodes, opts)
			if !slices.Equal(ring.hashes, fresh.hashes) || !slices.Equal(ring.owner, fresh.owner) {
				t.Fatalf("the rings differ: %d and %d points", len(ring.hashes), len(fresh.hashes))
			}
		}
	})
}

// TestSums checks the incremental sums against a fresh placer.
func TestSums(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := genNodes(t, 1, 10)
		p := NewPlacer(nodes, Options{})
		for range rapid.IntRange(0, 50).Draw(t, "steps") {
			id := nodes[rapid.IntRange(0, len(nodes)-1).Draw(t, "node")].ID
			if rapid.Bool().Draw(t, "set") {
				p.SetLoad(id, rapid.Int64Range(0, 100).Draw(t, "load"), rapid.Bool().Draw(t, "full"), rapid.Bool().Draw(t, "draining"))
			} else {
				p.AddLoad(id, rapid.Int64Range(-100, 100).Draw(t, "delta"))
			}
		}
		fresh := NewPlacer(p.nodes, Options{})
		if p.openLoad != fresh.openLoad || p.openWeight != fresh.openWeight {
			t.Fatalf("sums %v, %v; want %v, %v", p.openLoad, p.openWeight, fresh.openLoad, fresh.openWeight)
		}
	})
}

// BenchmarkChoose places three replicas in clusters that are being filled, and reports how well.
func BenchmarkChoose(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("%d", n), func(b *testing.B) {
			nodes := cluster(n, 10, equal)
			p := NewPlacer(nodes, Options{})
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				for _, id := range p.Choose(Request{Chunk: dfs.ChunkID(i), Replicas: 3}).Replicas {
					p.AddLoad(id, 1)
				}
				i++
			}
			var most, sum int64
			for _, node := range p.nodes {
				most = max(most, node.Load)
				sum += node.Load
			}
			b.ReportMetric(float64(most)*float64(n)/float64(sum), "max/mean")
		})
	}
}

// BenchmarkJoin adds one server to a ring and reports what that moves, relative to the least.
func BenchmarkJoin(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("%d", n), func(b *testing.B) {
			nodes := cluster(n+1, 10, equal)
			small := NewRing(nodes[:n], Options{})
			var large *Ring
			for b.Loop() {
				large = small.with(sortedNodes(nodes), Options{})
			}
			b.ReportMetric(Share(small, large, 3)*float64(n+1), "moved/least")
			b.ReportMetric(float64(large.Points())/float64(n+1), "points/server")
		})
	}
}
