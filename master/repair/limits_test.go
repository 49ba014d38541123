package repair

import (
	"testing"
	"time"

	"dfs/internal/dfs"
	"dfs/master/placement"
)

// TestSmallCopies: copies below CopyUnit count in part, so that many of them are under way, and all of what they count is given back.
func TestSmallCopies(t *testing.T) {
	const unit = 16 * dfs.MiB
	for _, c := range []struct {
		size int64
		want int // copies under way from one server to another
	}{{0, 32}, {unit / 16, 32}, {unit / 8, 16}, {unit / 2, 4}, {unit - 1, 2}, {unit, 2}, {64 * unit, 2}} {
		placer := placement.NewPlacer(nil, placement.Options{})
		placer.Update([]placement.Node{{ID: 1, Weight: 1, Rack: "a"}, {ID: 2, Weight: 1, Rack: "a"}})
		p := New(placer, Limits{CopiesPerServer: 2, CopyUnit: unit})
		for id := range dfs.ChunkID(100) {
			p.Observe(Chunk{ID: id + 1, Version: 1, Want: 2, Size: c.size, Members: []Replica{{Server: 1, Health: Good}}})
		}
		now := time.Unix(0, 0)
		out := p.Next(now)
		if len(out.Commands) != c.want || p.Running() != c.want {
			t.Errorf("%d bytes: %d copies begun, %d running, want %d", c.size, len(out.Commands), p.Running(), c.want)
		}
		for _, cmd := range out.Commands {
			p.Done(cmd.Chunk, cmd.Target, false, now)
		}
		if p.used != 0 || len(p.perNode) != 0 {
			t.Errorf("%d bytes: %d parts and %v are left", c.size, p.used, p.perNode)
		}
	}
}
