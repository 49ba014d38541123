package repair

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"dfs/internal/dfs"
	"dfs/master/placement"
)

// model is a cluster that carries out what the planner says, and checks every command.
type model struct {
	t       *rapid.T
	now     time.Time
	placer  *placement.Placer
	planner *Planner
	servers []*modelServer // ids 1, 2, 3 …
	chunks  []*modelChunk  // ids 1, 2, 3 …
	copies  []Command      // under way
	version dfs.Version

	copied, reconfigured, deleted int
}

type modelServer struct {
	id       dfs.ServerID
	rack     string
	state    Health // Good, Draining, Away, Dead
	replicas map[dfs.ChunkID]*modelReplica
}

type modelReplica struct {
	version dfs.Version
	bad     bool
}

type modelChunk struct {
	id      dfs.ChunkID
	version dfs.Version
	want    int
	members []dfs.ServerID
}

func (m *model) server(id dfs.ServerID) *modelServer { return m.servers[id-1] }

func (s *modelServer) live() bool { return s.state == Good || s.state == Draining }

// view is what an owner of a planner would say of the chunk.
func (m *model) view(c *modelChunk) Chunk {
	v := Chunk{ID: c.id, Version: c.version, Want: c.want, Size: 64}
	for _, id := range c.members {
		s := m.server(id)
		h := s.state
		if r := s.replicas[c.id]; s.live() && (r == nil || r.bad) {
			h = Corrupt
		}
		v.Members = append(v.Members, Replica{id, h})
	}
	for _, s := range m.servers {
		if r := s.replicas[c.id]; r != nil && s.live() && !slices.Contains(c.members, s.id) {
			v.Strays = append(v.Strays, Stray{s.id, r.version})
		}
	}
	return v
}

func count(v Chunk, of ...Health) int { return len(v.servers(of...)) }

// commit makes a new configuration of the chunk; live members follow.
func (m *model) commit(c *modelChunk, members []dfs.ServerID) {
	m.version++
	c.version, c.members = m.version, members
	for _, id := range members {
		if s := m.server(id); s.live() && s.replicas[c.id] != nil {
			s.replicas[c.id].version = c.version
		}
	}
}

// plan observes every chunk and carries the commands out; copies begin.
func (m *model) plan() (commands int) {
	var nodes []placement.Node
	for _, s := range m.servers {
		if s.live() {
			nodes = append(nodes, placement.Node{
				ID: s.id, Weight: 1, Rack: s.rack, Load: int64(len(s.replicas)), Draining: s.state == Draining,
			})
		}
	}
	m.placer.Update(nodes)
	for _, c := range m.chunks {
		m.planner.Observe(m.view(c))
	}
	m.now = m.now.Add(time.Minute)
	r := m.planner.Next(m.now)
	for _, cmd := range r.Commands {
		m.carryOut(cmd)
	}
	return len(r.Commands)
}

// carryOut checks a command against the package's invariants and does it.
func (m *model) carryOut(cmd Command) {
	c := m.chunks[cmd.Chunk-1]
	v := m.view(c)
	switch cmd.Kind {
	case Copy:
		source, target := m.server(cmd.Source), m.server(cmd.Target)
		if r := source.replicas[c.id]; !source.live() || r == nil || r.bad || !slices.Contains(c.members, source.id) {
			m.t.Fatalf("%s: the source is not good: %+v", cmd, v)
		}
		if target.state != Good || slices.Contains(c.members, target.id) {
			m.t.Fatalf("%s: the target cannot take it: %+v", cmd, v)
		}
		m.copies = append(m.copies, cmd)
	case Reconfigure:
		if cmd.Version != c.version {
			m.t.Fatalf("%s: the record has version %d", cmd, c.version)
		}
		m.reconfigured++
		good := 0
		for _, id := range cmd.Replicas {
			i := slices.IndexFunc(v.Members, func(r Replica) bool { return r.Server == id })
			if i < 0 {
				m.t.Fatalf("%s: server %s is no member: %+v", cmd, id, v)
			}
			if v.Members[i].Health == Good {
				good++
			}
		}
		if first := v.Members[slices.IndexFunc(v.Members, func(r Replica) bool { return r.Server == cmd.Replicas[0] })]; first.Health > Draining {
			m.t.Fatalf("%s: the primary is %s", cmd, first.Health)
		}
		for _, r := range v.Members {
			if !slices.Contains(cmd.Replicas, r.Server) && r.Health != Corrupt && good < c.want {
				m.t.Fatalf("%s: drops a %s replica although only %d of %d are good: %+v", cmd, r.Health, good, c.want, v)
			}
		}
		m.commit(c, cmd.Replicas)
	case Delete:
		m.deleted++
		r := m.server(cmd.Target).replicas[c.id]
		if slices.Contains(c.members, cmd.Target) || r == nil || r.version > c.version || count(v, Good) < c.want {
			m.t.Fatalf("%s: must not be deleted: %+v", cmd, v)
		}
		delete(m.server(cmd.Target).replicas, c.id)
	}
}

// finish ends a copy. The master's part of it: the source must still be good, and the configuration the one that
// the copy was made under.
func (m *model) finish(cmd Command, fail bool) {
	c := m.chunks[cmd.Chunk-1]
	target := m.server(cmd.Target)
	v := m.view(c)
	source := m.server(cmd.Source).replicas[c.id]
	joined := Joined(v, cmd.Target)
	ok := !fail && target.live() && joined != nil && cmd.Version == c.version && m.server(cmd.Source).live() && source != nil && !source.bad
	m.planner.Done(c.id, cmd.Target, !ok, m.now)
	if !ok {
		return
	}
	m.copied++
	target.replicas[c.id] = &modelReplica{version: c.version}
	m.commit(c, joined)
}

// hasGood reports whether some live member holds a good replica.
func (m *model) hasGood(c *modelChunk) bool { return count(m.view(c), Good, Draining) > 0 }

// disturb makes one thing go wrong or right, never the last good replica of a chunk.
func (m *model) disturb() {
	s := m.servers[rapid.IntRange(0, len(m.servers)-1).Draw(m.t, "server")]
	before, was := s.state, map[dfs.ChunkID]bool{}
	for _, c := range m.chunks {
		was[c.id] = m.hasGood(c)
	}
	safe := func() bool {
		return !slices.ContainsFunc(m.chunks, func(c *modelChunk) bool { return was[c.id] && !m.hasGood(c) })
	}
	switch rapid.IntRange(0, 4).Draw(m.t, "event") {
	case 0:
		s.state = Dead
	case 1:
		s.state = Away
	case 2:
		s.state = Draining
	case 3:
		s.state = Good
	case 4:
		for _, c := range m.chunks {
			if r := s.replicas[c.id]; r != nil && rapid.Bool().Draw(m.t, "bad") {
				bad := r.bad
				if r.bad = true; !safe() {
					r.bad = bad
				}
			}
		}
	}
	if !safe() {
		s.state = before
	}
}

func newModel(t *rapid.T) *model {
	m := &model{t: t, now: time.Unix(0, 0), placer: placement.NewPlacer(nil, placement.Options{}), version: 1}
	m.planner = New(m.placer, Limits{Copies: 3, CopiesPerServer: 2, RetryAfter: time.Second, Queue: 3})
	racks := rapid.IntRange(1, 3).Draw(t, "racks")
	for i := range rapid.IntRange(3, 8).Draw(t, "servers") {
		m.servers = append(m.servers, &modelServer{
			id: dfs.ServerID(i + 1), rack: fmt.Sprintf("r%d", i%racks), replicas: map[dfs.ChunkID]*modelReplica{},
		})
	}
	for i := range rapid.IntRange(1, 8).Draw(t, "chunks") {
		c := &modelChunk{id: dfs.ChunkID(i + 1), want: rapid.IntRange(1, 4).Draw(t, "want")}
		for j := range rapid.IntRange(1, 3).Draw(t, "have") {
			c.members = append(c.members, dfs.ServerID((i+j)%len(m.servers)+1))
		}
		for _, id := range c.members {
			m.server(id).replicas[c.id] = &modelReplica{}
		}
		m.commit(c, c.members)
		m.chunks = append(m.chunks, c)
	}
	return m
}

// TestModel checks the invariants of the package comment under random failures, and that once failures stop,
// every chunk comes to rest with its replicas in good number, on servers that stay, in two racks if there are
// two, and with nothing left over.
func TestModel(t *testing.T) {
	copied, reconfigured, deleted := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		for range rapid.IntRange(0, 30).Draw(t, "rounds") {
			m.disturb()
			m.plan()
			for len(m.copies) > 0 && rapid.Bool().Draw(t, "finish") {
				m.finish(m.copies[0], rapid.IntRange(0, 3).Draw(t, "fails") == 0)
				m.copies = m.copies[1:]
			}
		}
		// Nothing goes wrong any more; some servers stay away for good.
		for _, s := range m.servers {
			if s.state == Away {
				s.state = Dead
			}
		}
		quiet := 0
		for round := 0; quiet < 3; round++ {
			if round > 400 {
				t.Fatalf("still busy after %d rounds", round)
			}
			busy := m.plan()
			for _, cmd := range m.copies {
				m.finish(cmd, false)
			}
			busy += len(m.copies)
			m.copies = nil
			if quiet++; busy > 0 {
				quiet = 0
			}
		}
		m.checkRest()
		copied, reconfigured, deleted = copied+m.copied, reconfigured+m.reconfigured, deleted+m.deleted
	})
	if copied == 0 || reconfigured == 0 || deleted == 0 {
		t.Errorf("the model saw %d copies, %d reconfigurations, %d deletions", copied, reconfigured, deleted)
	}
	t.Logf("%d copies, %d reconfigurations, %d deletions", copied, reconfigured, deleted)
}

// checkRest checks the state in which the planner has nothing more to do.
func (m *model) checkRest() {
	usable, racks := 0, map[string]bool{}
	for _, s := range m.servers {
		if s.state == Good {
			usable++
			racks[s.rack] = true
		}
	}
	for _, c := range m.chunks {
		v := m.view(c)
		good := v.servers(Good)
		if count(v, Good, Draining) == 0 {
			continue // it began like that
		}
		if len(good) < min(c.want, usable) {
			m.t.Fatalf("%d good replicas, %d wanted, %d usable servers: %+v", len(good), c.want, usable, v)
		}
		if len(good) < c.want {
			continue
		}
		if len(v.Members) != c.want || len(v.Strays) > 0 {
			m.t.Fatalf("not tidy: %+v", v)
		}
		if c.want > 1 && len(racks) > 1 && m.planner.racks(good) < 2 {
			m.t.Fatalf("one rack of %d: %+v", len(racks), v)
		}
	}
}

// TestDeterministic: the same observations give the same commands.
func TestDeterministic(t *testing.T) {
	run := func() []string {
		var nodes []placement.Node
		for id := range dfs.ServerID(20) {
			nodes = append(nodes, placement.Node{ID: id + 1, Weight: 1, Rack: fmt.Sprint(id % 3)})
		}
		p := New(placement.NewPlacer(nodes, placement.Options{}), Limits{Copies: 8})
		for id := range dfs.ChunkID(50) {
			a := dfs.ServerID(id)%20 + 1
			p.Observe(Chunk{ID: id, Version: 1, Want: 3, Members: []Replica{{a, Good}, {a%20 + 1, Health(id % 5)}}})
		}
		var lines []string
		for _, c := range p.Next(time.Unix(0, 0)).Commands {
			lines = append(lines, c.String())
		}
		return lines
	}
	first := run()
	if len(first) < 10 || p(first) != p(run()) || p(first) != p(run()) {
		t.Errorf("%d commands, or not the same each time", len(first))
	}
}

func p(lines []string) string { return fmt.Sprint(lines) }

// TestBounded: however many chunks are in need, memory is bounded and the most urgent are kept.
func TestBounded(t *testing.T) {
	planner := New(placement.NewPlacer(nil, placement.Options{}), Limits{Queue: 100})
	for id := range dfs.ChunkID(10_000) {
		members := []Replica{{1, Good}, {2, Good}}
		if id%1000 == 999 {
			members = members[:1]
		}
		planner.Observe(Chunk{ID: id, Version: 1, Want: 3, Members: members})
	}
	urgent := 0
	for _, t := range planner.queues[classCopy] {
		if t.good == 1 {
			urgent++
		}
	}
	if planner.Queued() != 100 || len(planner.byChunk) != 100 || planner.TakeDropped() != 9900 || urgent != 10 {
		t.Errorf("queued %d, %d by chunk, %d urgent", planner.Queued(), len(planner.byChunk), urgent)
	}
	var totals Totals
	totals.Add(planner.Observe(Chunk{ID: 1, Version: 1, Want: 1, Members: []Replica{{1, Dead}}}))
	totals.Add(planner.Observe(Chunk{ID: 2, Version: 1, Want: 1, Members: []Replica{{1, Good}, {2, Good}}}))
	if totals != (Totals{Chunks: 2, Missing: 1, Over: 1, Under: 1}) {
		t.Errorf("totals %+v", totals)
	}
}

func BenchmarkObserve(b *testing.B) {
	planner := New(placement.NewPlacer(nil, placement.Options{}), Limits{})
	members := []Replica{{1, Good}, {2, Good}, {3, Good}}
	b.ReportAllocs()
	id := dfs.ChunkID(0)
	for b.Loop() {
		id++
		planner.Observe(Chunk{ID: id, Version: 1, Want: 3, Members: members})
	}
}
