package repair

import (
	"cmp"
	"fmt"
	"slices"

	"dfs/internal/dfs"
)

// class orders tasks by urgency.
type class uint8

const (
	classDropBad class = iota // take corrupt replicas out of the configuration
	classCopy                 // replicas are lacking
	classDrain                // replicas are lacking once draining servers are gone
	classOneRack              // the replicas are all in one rack
	classTrim                 // take superfluous replicas out of the configuration
	classDelete               // delete replicas outside the configuration

	classes = int(iota) // their number
)

// task is the next step for one chunk. It is not changed once it is queued.
type task struct {
	class    class
	failed   bool           // a copy failed of late: others first
	good     int            // replicas that can be copied from
	chunk    Chunk          // Members and Strays are the task's own
	replicas []dfs.ServerID // classDropBad, classTrim: the new configuration
	strays   []Stray        // classDelete: to be deleted; copies: may become members again
	reason   string
}

// want returns the wanted number of replicas, at least 1.
func (t *task) want() int { return max(1, t.chunk.Want) }

// last reports whether the chunk should have more replicas and has one good one.
func (t *task) last() bool { return t.good == 1 && t.want() > 1 }

// compareTasks orders by class, then those that have not just failed, then fewest good replicas, then most lacking, then chunk id.
func compareTasks(a, b *task) int {
	return cmp.Or(
		cmp.Compare(a.class, b.class),
		cmp.Compare(btoi(a.failed), btoi(b.failed)),
		cmp.Compare(a.good, b.good),
		cmp.Compare(b.want(), a.want()),
		cmp.Compare(a.chunk.ID, b.chunk.ID),
	)
}

// btoi is 1 for true.
func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// assess finds the next step for a chunk, nil when there is none.
func (p *Planner) assess(c Chunk) (*task, Assessment) {
	c.Members, c.Strays = slices.Clone(c.Members), slices.Clone(c.Strays)
	want := max(1, c.Want)
	good, draining := c.servers(Good), c.servers(Draining)
	away, bad := c.servers(Away), c.servers(Corrupt)
	safe := len(good) + len(draining)
	a := Assessment{Good: safe, Under: safe < want, Corrupt: len(bad) > 0}
	usable, newer := c.usableStrays()
	for _, s := range newer {
		a.Findings = append(a.Findings, Finding{c.ID, NewerReplica, fmt.Sprintf(
			"server %s has version %d, the record has %d", s.Server, s.Version, c.Version)})
	}
	if safe == 0 {
		a.Missing = len(away) == 0
		problem := Waiting
		if a.Missing {
			problem = Missing
		}
		a.Findings = append(a.Findings, Finding{c.ID, problem, fmt.Sprintf("%s, %d older replicas elsewhere", describe(&c), len(usable))})
		return nil, a
	}
	t := &task{good: safe, chunk: c, strays: usable, reason: describe(&c)}
	switch {
	case len(bad) > 0:
		t.class = classDropBad
		t.replicas = c.without(bad)
	case len(good)+len(away) < want && safe < want:
		t.class = classCopy
	case len(good)+len(away) < want:
		t.class = classDrain
	case len(good) >= want && len(c.Members) > want:
		a.Over = len(good) > want
		t.class = classTrim
		t.replicas = p.trimmed(&c, want)
	case len(good) >= want && want > 1 && p.racks(good) == 1 && p.placer.Ring().Racks() > 1:
		a.OneRack = true
		t.class = classOneRack
	case len(good) >= want && len(usable) > 0:
		t.class = classDelete
	default:
		return nil, a
	}
	return t, a
}

// deletions are the commands that delete the chunk's strays, which it has enough good members to do without.
func (t *task) deletions() (commands []Command) {
	for _, s := range t.strays {
		commands = append(commands, Command{
			Kind: Delete, Chunk: t.chunk.ID, Version: s.Version, Target: s.Server, Reason: "not in the configuration, which has " + t.reason,
		})
	}
	return commands
}

// usableStrays returns the strays whose version is not above the record's and which are no members after all,
// in order of falling version; and those whose version is above.
func (c *Chunk) usableStrays() (usable, newer []Stray) {
	for _, s := range c.Strays {
		switch {
		case s.Version > c.Version:
			newer = append(newer, s)
		case !c.member(s.Server):
			usable = append(usable, s)
		}
	}
	slices.SortFunc(usable, func(a, b Stray) int {
		return cmp.Or(cmp.Compare(b.Version, a.Version), cmp.Compare(a.Server, b.Server))
	})
	return usable, newer
}

// without returns the configuration less the given servers, a good replica first.
func (c *Chunk) without(drop []dfs.ServerID) []dfs.ServerID {
	var kept []Replica
	for _, m := range c.Members {
		if !slices.Contains(drop, m.Server) {
			kept = append(kept, m)
		}
	}
	first := slices.IndexFunc(kept, func(m Replica) bool { return m.Health == Good })
	if first < 0 {
		first = slices.IndexFunc(kept, func(m Replica) bool { return m.Health == Draining })
	}
	ids := []dfs.ServerID{kept[first].Server}
	for i, m := range kept {
		if i != first {
			ids = append(ids, m.Server)
		}
	}
	return ids
}

// trimmed returns the configuration reduced to want good replicas, of which it has at least as many. Racks are
// kept apart, the primary stays if it can, and the fullest servers go first.
func (p *Planner) trimmed(c *Chunk, want int) []dfs.ServerID {
	good := c.servers(Good)
	for len(good) > want {
		worst := 0
		for i := 1; i < len(good); i++ {
			if p.removeRather(c, good, i, worst) {
				worst = i
			}
		}
		good = slices.Delete(good, worst, worst+1)
	}
	var drop []dfs.ServerID
	for _, m := range c.Members {
		if !slices.Contains(good, m.Server) {
			drop = append(drop, m.Server)
		}
	}
	return c.without(drop)
}

// removeRather reports whether removing good[i] is better than removing good[j].
func (p *Planner) removeRather(c *Chunk, good []dfs.ServerID, i, j int) bool {
	racksWithout := func(i int) int { return min(2, p.racks(slices.Delete(slices.Clone(good), i, i+1))) }
	isPrimary := func(i int) int { return btoi(good[i] == c.Members[0].Server) }
	return cmp.Or(
		cmp.Compare(racksWithout(j), racksWithout(i)),
		cmp.Compare(isPrimary(i), isPrimary(j)),
		cmp.Compare(p.relativeLoad(good[j]), p.relativeLoad(good[i])),
		cmp.Compare(good[j], good[i]),
	) < 0
}

// relativeLoad is a server's load for its capacity; servers that the placer does not know are the fullest.
func (p *Planner) relativeLoad(id dfs.ServerID) float64 {
	n, ok := p.placer.Node(id)
	if !ok || n.Weight <= 0 {
		return 1e300
	}
	return float64(n.Load) / float64(n.Weight)
}
