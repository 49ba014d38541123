package repair

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"dfs/internal/dfs"
	"dfs/master/placement"
)

// Limits bounds what is under way and what is remembered. Zero fields take the default in brackets.
type Limits struct {
	Copies          int           // [32] at once in the cluster
	CopiesPerServer int           // [2] at once with one server as source or target
	CopyUnit        int64         // [none] bytes of a copy that counts as one in the two limits above; a smaller one counts as a part of one, at least a sixteenth
	BytesPerSecond  int64         // [no limit] of copies begun, averaged over a few seconds
	CopyTimeout     time.Duration // [15 min] after which a copy that has not been heard of counts as failed
	RetryAfter      time.Duration // [30 s] before a chunk whose copy failed or found no target is tried again
	RetryLast       time.Duration // [1 s] the same for a chunk with one good replica left: writers may be waiting for a second
	Queue           int           // [4096] tasks remembered of each class of urgency, and failed copies
	Commands        int           // [256] per call of Next
}

// withDefaults fills in the zero fields.
func (l Limits) withDefaults() Limits {
	l.Copies = cmp.Or(l.Copies, 32)
	l.CopiesPerServer = cmp.Or(l.CopiesPerServer, 2)
	l.CopyTimeout = cmp.Or(l.CopyTimeout, 15*time.Minute)
	l.RetryAfter = cmp.Or(l.RetryAfter, 30*time.Second)
	l.RetryLast = cmp.Or(l.RetryLast, time.Second)
	l.Queue = cmp.Or(l.Queue, 4096)
	l.Commands = cmp.Or(l.Commands, 256)
	return l
}

// burst is how many seconds' worth of BytesPerSecond may begin at once.
const burst = 4

// Planner remembers the most urgent tasks and the copies under way.
type Planner struct {
	limits Limits
	placer *placement.Placer

	// queues holds the tasks of each class ascending by urgency, at most limits.Queue of each: tasks that
	// nothing can be done about must not keep those of another class out.
	queues  [classes][]*task
	byChunk map[dfs.ChunkID]*task // the tasks in queues
	dropped int64                 // tasks that found no place since TakeDropped

	running map[dfs.ChunkID]running // at most partsPerCopy*limits.Copies
	used    int                     // parts of copies under way
	perNode map[dfs.ServerID]int    // those by server, as source or target
	failed  map[dfs.ChunkID]failure // what could not be done of late; at most limits.Queue
	fails   []dfs.ChunkID           // keys of failed, the oldest first

	tokens   float64 // bytes that may begin now; may be negative
	tokensAt time.Time
}

// running is a copy under way.
type running struct {
	source, target dfs.ServerID
	class          class
	since          time.Time
	parts          int
}

// partsPerCopy is what a copy of CopyUnit or more counts in the limits. Small copies cost mostly waiting, so more of them may be
// under way.
const partsPerCopy = 16

// parts is what a copy of so many bytes counts.
func (l *Limits) parts(size int64) int {
	if l.CopyUnit <= 0 || size >= l.CopyUnit {
		return partsPerCopy
	}
	return max(1, int(size*partsPerCopy/l.CopyUnit))
}

// fits reports whether a server may take part in a copy that counts so much.
func (p *Planner) fits(id dfs.ServerID, parts int) bool {
	return p.perNode[id]+parts <= partsPerCopy*p.limits.CopiesPerServer
}

// failure is a copy that failed, or found no target. Tasks of that class for the chunk wait, and stand behind
// the others of their class. What found no target waits no longer than the servers stay the same. After the wait another target
// is preferred for a while.
type failure struct {
	class   class
	waits   bool // RetryAfter is not over
	rested  bool // RetryLast is over
	at      time.Time
	target  dfs.ServerID // 0: none was found
	servers uint64       // the placer's change counter
}

// avoidFactor is how many times as long as it waits a failed copy's target is avoided.
const avoidFactor = 10

// New returns a planner that chooses targets with placer. The placer must know exactly the servers that can
// take replicas now, and is only read, by Observe and Next.
func New(placer *placement.Placer, limits Limits) *Planner {
	return &Planner{
		limits:  limits.withDefaults(),
		placer:  placer,
		byChunk: make(map[dfs.ChunkID]*task),
		running: make(map[dfs.ChunkID]running),
		perNode: make(map[dfs.ServerID]int),
		failed:  make(map[dfs.ChunkID]failure),
	}
}

// Running returns the number of copies under way.
func (p *Planner) Running() int { return len(p.running) }

// Queued returns the number of tasks remembered.
func (p *Planner) Queued() int { return len(p.byChunk) }

// TakeDropped returns how many observed tasks were not remembered, being the least urgent, since the last
// call. They are found again by the next walk over the chunks.
func (p *Planner) TakeDropped() int64 {
	n := p.dropped
	p.dropped = 0
	return n
}

// Observe takes in what is known about a chunk now, replacing what was known before.
func (p *Planner) Observe(c Chunk) Assessment {
	p.Forget(c.ID)
	t, a := p.assess(c)
	if t == nil {
		return a
	}
	t.failed = p.hasFailed(t)
	q := p.queues[t.class]
	at, _ := slices.BinarySearchFunc(q, t, compareTasks)
	if at >= p.limits.Queue {
		p.dropped++
		return a
	}
	if len(q) >= p.limits.Queue {
		last := q[len(q)-1]
		delete(p.byChunk, last.chunk.ID)
		q[len(q)-1] = nil
		q = q[:len(q)-1]
		p.dropped++
	}
	p.queues[t.class] = slices.Insert(q, at, t)
	p.byChunk[c.ID] = t
	return a
}

// Forget drops what was observed of a chunk: it was deleted, or is in order. A copy under way goes on.
func (p *Planner) Forget(id dfs.ChunkID) {
	t := p.byChunk[id]
	if t == nil {
		return
	}
	delete(p.byChunk, id)
	if at, ok := slices.BinarySearchFunc(p.queues[t.class], t, compareTasks); ok {
		p.queues[t.class] = slices.Delete(p.queues[t.class], at, at+1)
	}
}

// Result is what Next decided.
type Result struct {
	Commands []Command
	Findings []Finding
}

// Next returns the commands that may begin now, most urgent first. Copies among them count as under way until
// Done or CopyTimeout. A task is handed out once; the chunk is to be observed again after the command was
// carried out or failed. Tasks held back by the limits stay; those without a target become findings.
func (p *Planner) Next(now time.Time) Result {
	p.expire(now)
	p.refill(now)
	var out Result
	for class, q := range p.queues {
		p.queues[class] = slices.DeleteFunc(q, func(t *task) bool {
			if len(out.Commands) >= p.limits.Commands {
				return false
			}
			commands, finding, keep := p.step(t, now)
			out.Commands = append(out.Commands, commands...)
			if finding != nil {
				out.Findings = append(out.Findings, *finding)
			}
			if !keep {
				delete(p.byChunk, t.chunk.ID)
			}
			return !keep
		})
	}
	return out
}

// Done ends the copy of a chunk to a target. A failed one is not planned again for RetryAfter, or RetryLast.
func (p *Planner) Done(chunk dfs.ChunkID, target dfs.ServerID, failedCopy bool, now time.Time) {
	r, ok := p.running[chunk]
	if !ok || r.target != target {
		return
	}
	p.end(chunk, r)
	if failedCopy {
		p.fail(chunk, r.class, target, now)
	}
}

// end takes a copy off the books.
func (p *Planner) end(chunk dfs.ChunkID, r running) {
	delete(p.running, chunk)
	p.used -= r.parts
	for _, id := range []dfs.ServerID{r.source, r.target} {
		if p.perNode[id] -= r.parts; p.perNode[id] <= 0 {
			delete(p.perNode, id)
		}
	}
}

// hasFailed reports whether the task is one that failed of late.
func (p *Planner) hasFailed(t *task) bool {
	f := p.failed[t.chunk.ID]
	return f.waits && f.class == t.class && !(f.rested && t.last())
}

// fail remembers a failure, target 0 for want of one; when there are too many, the oldest is forgotten.
func (p *Planner) fail(chunk dfs.ChunkID, of class, target dfs.ServerID, now time.Time) {
	if _, ok := p.failed[chunk]; ok {
		p.fails = slices.DeleteFunc(p.fails, func(c dfs.ChunkID) bool { return c == chunk })
	} else if len(p.failed) >= p.limits.Queue {
		delete(p.failed, p.fails[0])
		p.fails = slices.Delete(p.fails, 0, 1)
	}
	p.failed[chunk] = failure{of, true, false, now, target, p.placer.Changes()}
	p.fails = append(p.fails, chunk)
}

// expire ends copies and failures whose time is over.
func (p *Planner) expire(now time.Time) {
	for _, chunk := range slices.Sorted(maps.Keys(p.running)) {
		if r := p.running[chunk]; !now.Before(r.since.Add(p.limits.CopyTimeout)) {
			p.end(chunk, r)
			p.fail(chunk, r.class, r.target, now)
		}
	}
	p.fails = slices.DeleteFunc(p.fails, func(c dfs.ChunkID) bool {
		f := p.failed[c]
		since := now.Sub(f.at)
		f.waits, f.rested = since < p.limits.RetryAfter, since >= p.limits.RetryLast
		over := since >= avoidFactor*p.limits.RetryAfter
		if f.target == 0 {
			over = !f.waits || f.servers != p.placer.Changes()
		}
		if over {
			delete(p.failed, c)
		} else {
			p.failed[c] = f
		}
		return over
	})
}

// refill adds the bytes that have become allowed since the last call.
func (p *Planner) refill(now time.Time) {
	rate := float64(p.limits.BytesPerSecond)
	if rate <= 0 {
		return
	}
	if p.tokensAt.IsZero() {
		p.tokens = burst * rate
	} else {
		p.tokens = min(burst*rate, p.tokens+rate*now.Sub(p.tokensAt).Seconds())
	}
	p.tokensAt = now
}

// step decides about one task: commands, perhaps a finding, and whether the task stays queued.
func (p *Planner) step(t *task, now time.Time) (commands []Command, finding *Finding, keep bool) {
	if _, ok := p.running[t.chunk.ID]; ok {
		return nil, nil, true
	}
	switch t.class {
	case classDropBad, classTrim:
		return []Command{{
			Kind: Reconfigure, Chunk: t.chunk.ID, Version: t.chunk.Version, Replicas: t.replicas, Reason: t.reason,
		}}, nil, false
	case classDelete:
		return t.deletions(), nil, false
	}
	return p.stepCopy(t, now)
}

// stepCopy is step for a task that wants a copy.
func (p *Planner) stepCopy(t *task, now time.Time) (commands []Command, finding *Finding, keep bool) {
	parts := p.limits.parts(t.chunk.Size)
	if p.hasFailed(t) || p.used+parts > partsPerCopy*p.limits.Copies || (p.limits.BytesPerSecond > 0 && p.tokens <= 0) {
		return nil, nil, true
	}
	source, ok := p.source(&t.chunk, parts)
	if !ok {
		return nil, nil, true
	}
	var busy []dfs.ServerID
	for id := range p.perNode {
		if !p.fits(id, parts) {
			busy = append(busy, id)
		}
	}
	target := p.freeTarget(t, busy)
	if target == 0 {
		free, why := p.target(t, nil)
		if free != 0 {
			return nil, nil, true
		}
		p.fail(t.chunk.ID, t.class, 0, now)
		if t.class == classOneRack {
			return t.deletions(), nil, false // it stays in one rack, and is otherwise in order
		}
		return nil, &Finding{t.chunk.ID, NoTarget, why}, false
	}
	p.running[t.chunk.ID] = running{source, target, t.class, now, parts}
	p.used += parts
	p.perNode[source] += parts
	p.perNode[target] += parts
	p.tokens -= float64(t.chunk.Size)
	return []Command{{
		Kind: Copy, Chunk: t.chunk.ID, Version: t.chunk.Version, Source: source, Target: target, Size: t.chunk.Size, Reason: t.reason,
	}}, nil, false
}

// source returns the good replica whose server has the fewest copies under way, secondaries before the
// primary; false: all are at their limit.
func (p *Planner) source(c *Chunk, parts int) (dfs.ServerID, bool) {
	type candidate struct {
		busy, primary int
		id            dfs.ServerID
	}
	var best *candidate
	for i, m := range c.Members {
		if (m.Health != Good && m.Health != Draining) || !p.fits(m.Server, parts) {
			continue
		}
		this := &candidate{busy: p.perNode[m.Server], id: m.Server}
		if i == 0 {
			this.primary = 1
		}
		if best == nil || cmp.Or(cmp.Compare(this.busy, best.busy), cmp.Compare(this.primary, best.primary), cmp.Compare(this.id, best.id)) < 0 {
			best = this
		}
	}
	if best == nil {
		return 0, false
	}
	return best.id, true
}

// freeTarget returns where the task's copy should go now, or 0. The target of a copy that failed of late comes into question only when
// there is no other, busy or not.
func (p *Planner) freeTarget(t *task, busy []dfs.ServerID) dfs.ServerID {
	if f := p.failed[t.chunk.ID]; f.target != 0 {
		if target, _ := p.target(t, append(slices.Clip(busy), f.target)); target != 0 {
			return target
		}
		if other, _ := p.target(t, []dfs.ServerID{f.target}); other != 0 {
			return 0
		}
	}
	target, _ := p.target(t, busy)
	return target
}

// target returns where the task's copy should go, or 0 and why nowhere. A server that holds a stray replica
// is preferred: only its tail is missing.
func (p *Planner) target(t *task, busy []dfs.ServerID) (dfs.ServerID, string) {
	c := &t.chunk
	stay := c.servers(Good, Away)
	exclude := slices.Concat(c.servers(Draining, Dead, Corrupt), busy)
	lacking := max(1, t.want()-len(stay))
	choice := p.placer.Choose(placement.Request{Chunk: c.ID, Replicas: lacking, Existing: stay, Exclude: exclude})
	if t.class == classOneRack && choice.OneRack {
		return 0, choice.Why()
	}
	for _, s := range t.strays {
		n, ok := p.placer.Node(s.Server)
		if !ok || n.Weight <= 0 || n.Full || n.Draining || slices.Contains(exclude, s.Server) {
			continue
		}
		if lacking > 1 || choice.OneRack || p.racks(append(slices.Clip(stay), s.Server)) > 1 || p.racks(append(slices.Clip(stay), choice.Replicas...)) < 2 {
			return s.Server, ""
		}
	}
	if len(choice.Replicas) == 0 {
		return 0, choice.Why()
	}
	return choice.Replicas[0], ""
}

// racks returns in how many racks the servers are, as far as the placer knows them.
func (p *Planner) racks(ids []dfs.ServerID) int {
	var seen []string
	for _, id := range ids {
		if rack, ok := p.placer.Ring().Rack(id); ok && !slices.Contains(seen, rack) {
			seen = append(seen, rack)
		}
	}
	return len(seen)
}

// describe says how a chunk stands, for reasons and findings.
func describe(c *Chunk) string {
	text := ""
	for h := Good; h <= Corrupt; h++ {
		if n := len(c.servers(h)); n > 0 {
			text += fmt.Sprintf("%d %s, ", n, h)
		}
	}
	return fmt.Sprintf("%s%d wanted", text, max(1, c.Want))
}
