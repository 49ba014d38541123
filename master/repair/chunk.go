package repair

import (
	"fmt"
	"slices"
	"strings"

	"dfs/internal/dfs"
)

// Health is what is known about one replica of a configuration.
type Health uint8

const (
	// Good replicas are valid and on a live server.
	Good Health = iota
	// Draining replicas are good, on a server that is being emptied: they serve as source, and do not count
	// towards the wanted number.
	Draining
	// Away replicas are on a server that does not answer and is not yet dead: they count until it is.
	Away
	// Dead replicas are on a server that is dead.
	Dead
	// Corrupt replicas are known to be bad or missing, on a live server.
	Corrupt
)

// String returns the word used in findings and scripts.
func (h Health) String() string {
	if int(h) < len(healthNames) {
		return healthNames[h]
	}
	return "unknown"
}

// healthNames are the words of String.
var healthNames = [...]string{Good: "good", Draining: "draining", Away: "away", Dead: "dead", Corrupt: "corrupt"}

// Replica is one member of a chunk's configuration.
type Replica struct {
	Server dfs.ServerID
	Health Health
}

// Stray is a replica reported by a live server that is not in the chunk's configuration, most often because the
// server was away when the configuration changed.
type Stray struct {
	Server  dfs.ServerID
	Version dfs.Version
}

// Chunk is what the owner knows about one chunk.
type Chunk struct {
	ID      dfs.ChunkID
	Version dfs.Version
	Want    int       // wanted replicas; less than 1 counts as 1
	Size    int64     // bytes to copy per replica, an estimate
	Members []Replica // the configuration, primary first
	// Strays must have been reported before the record was read: only then does "not in the
	// configuration" mean anything.
	Strays []Stray
}

// Problem is why a chunk is not as wanted, and stays so for now.
type Problem uint8

const (
	// Missing: no replica is good, and none can come back by waiting.
	Missing Problem = iota + 1
	// Waiting: no replica is good, but some server is only away.
	Waiting
	// NewerReplica: a replica outside the configuration has a version above the record's. It is kept; someone
	// must look.
	NewerReplica
	// NoTarget: no server can take another replica.
	NoTarget
)

// String returns the word used in reports.
func (p Problem) String() string {
	switch p {
	case Missing:
		return "missing"
	case Waiting:
		return "waiting"
	case NewerReplica:
		return "newer replica"
	case NoTarget:
		return "no target"
	}
	return "unknown"
}

// Finding is a problem of a chunk that no command solves.
type Finding struct {
	Chunk   dfs.ChunkID
	Problem Problem
	Detail  string // for people
}

// String returns the finding in one line.
func (f Finding) String() string {
	return fmt.Sprintf("chunk %s: %s: %s", f.Chunk, f.Problem, f.Detail)
}

// Assessment is what Observe concluded about one chunk.
type Assessment struct {
	Good  int // valid replicas on live servers, draining ones included
	Under bool
	Over  bool
	// Missing and Corrupt: no good replica; at least one bad replica.
	Missing, Corrupt bool
	// OneRack: enough replicas, in one rack, though servers of several racks are known.
	OneRack  bool
	Findings []Finding
}

// Totals sums up assessments. The zero value is ready for use.
type Totals struct {
	Chunks, Under, Over, Missing, Corrupt, OneRack int64
}

// Add counts one assessment.
func (t *Totals) Add(a Assessment) {
	t.Chunks++
	for _, c := range []struct {
		is bool
		n  *int64
	}{{a.Under, &t.Under}, {a.Over, &t.Over}, {a.Missing, &t.Missing}, {a.Corrupt, &t.Corrupt}, {a.OneRack, &t.OneRack}} {
		if c.is {
			*c.n++
		}
	}
}

// Kind is what a command does.
type Kind uint8

const (
	// Copy makes a replica on Target from the one on Source; once it is complete, the configuration that Joined
	// returns is to be committed.
	Copy Kind = iota + 1
	// Reconfigure commits a configuration of Replicas, a subset of the present one.
	Reconfigure
	// Delete removes the replica on Target, which is outside the configuration, unless it has a version above
	// Version.
	Delete
)

// Command is one step. The fields that Kind does not speak of are zero.
type Command struct {
	Kind    Kind
	Chunk   dfs.ChunkID
	Version dfs.Version // of the record; of the replica for Delete
	Source  dfs.ServerID
	Target  dfs.ServerID
	Size    int64 // bytes to copy
	// Replicas is the new configuration, primary first.
	Replicas []dfs.ServerID
	Reason   string // for people
}

// String returns the command in one line.
func (c Command) String() string {
	switch c.Kind {
	case Copy:
		return fmt.Sprintf("copy %s v%d from %s to %s: %s", c.Chunk, c.Version, c.Source, c.Target, c.Reason)
	case Reconfigure:
		var ids []string
		for _, r := range c.Replicas {
			ids = append(ids, r.String())
		}
		return fmt.Sprintf("reconfigure %s v%d to [%s]: %s", c.Chunk, c.Version, strings.Join(ids, " "), c.Reason)
	case Delete:
		return fmt.Sprintf("delete %s up to v%d on %s: %s", c.Chunk, c.Version, c.Target, c.Reason)
	}
	return "unknown command"
}

// servers returns the members whose health is one of those given, in order.
func (c *Chunk) servers(of ...Health) []dfs.ServerID {
	var ids []dfs.ServerID
	for _, m := range c.Members {
		if slices.Contains(of, m.Health) {
			ids = append(ids, m.Server)
		}
	}
	return ids
}

// member reports whether the server is in the configuration.
func (c *Chunk) member(id dfs.ServerID) bool {
	return slices.ContainsFunc(c.Members, func(m Replica) bool { return m.Server == id })
}

// Joined returns the configuration to commit once a copy on target is complete: the members as the chunk
// now has them, a good one first, then target. Dead and corrupt members are left out, because a target joins only
// when every member takes part. It returns nil when no member is good or target is one already.
func Joined(c Chunk, target dfs.ServerID) []dfs.ServerID {
	if len(c.servers(Good, Draining)) == 0 || c.member(target) {
		return nil
	}
	return append(c.without(c.servers(Dead, Corrupt)), target)
}
