package chunkserver

import (
	"math/rand/v2"
	"testing"

	"dfs/internal/dfs"
)

func TestCopyPlan(t *testing.T) {
	e := func(pairs ...uint64) (l []epoch) {
		for i := 0; i < len(pairs); i += 2 {
			l = append(l, epoch{dfs.Version(pairs[i]), dfs.Seq(pairs[i+1])})
		}
		return l
	}
	tests := []struct {
		name           string
		source, target logEnd
		keep           dfs.Seq
		whole          bool
		order          int // of source against target
	}{
		{"equal", logEnd{true, 5, 0, e(10, 1)}, logEnd{true, 5, 0, e(10, 1)}, 5, false, 0},
		{"both empty", logEnd{true, 0, 0, e(10, 1)}, logEnd{true, 0, 0, nil}, 0, false, 0},
		{"missing", logEnd{true, 3, 0, e(10, 1)}, logEnd{}, 0, true, 1},
		{"tail missing", logEnd{true, 5, 0, e(10, 1)}, logEnd{true, 3, 0, e(10, 1)}, 3, false, 1},
		{"tail of a later version", logEnd{true, 7, 0, e(10, 1, 20, 6)}, logEnd{true, 5, 0, e(10, 1)}, 5, false, 1},
		{"surplus of an older version", logEnd{true, 7, 0, e(10, 1, 20, 6)}, logEnd{true, 9, 0, e(10, 1)}, 5, false, 1},
		{"surplus of the same version wins", logEnd{true, 5, 0, e(10, 1)}, logEnd{true, 6, 0, e(10, 1)}, 5, false, -1},
		{"empty epochs do not count", logEnd{true, 5, 0, e(10, 1, 20, 6)}, logEnd{true, 6, 0, e(10, 1)}, 5, false, -1},
		{"three epochs apart", logEnd{true, 9, 0, e(10, 1, 30, 4)}, logEnd{true, 9, 0, e(10, 1, 20, 4)}, 3, false, 1},
		{"nothing in common", logEnd{true, 4, 0, e(20, 1)}, logEnd{true, 4, 0, e(10, 1)}, 0, false, 1},
		{"below the target's base", logEnd{true, 9, 0, e(10, 1, 20, 4)}, logEnd{true, 6, 5, e(10, 1)}, 3, true, 1},
		{"below the source's base", logEnd{true, 9, 6, e(10, 1)}, logEnd{true, 4, 0, e(10, 1)}, 4, true, 1},
		{"at the source's base", logEnd{true, 9, 4, e(10, 1)}, logEnd{true, 4, 0, e(10, 1)}, 4, false, 1},
	}
	for _, tt := range tests {
		keep, whole := copyPlan(tt.source, tt.target)
		if keep != tt.keep || whole != tt.whole {
			t.Errorf("%s: copyPlan = %d, %v, want %d, %v", tt.name, keep, whole, tt.keep, tt.whole)
		}
		if got := compareLogs(tt.source, tt.target); got != tt.order {
			t.Errorf("%s: compareLogs = %d, want %d", tt.name, got, tt.order)
		}
		if got := compareLogs(tt.target, tt.source); got != -tt.order {
			t.Errorf("%s: compareLogs swapped = %d, want %d", tt.name, got, -tt.order)
		}
	}
}

// TestCommonPrefixAgainstLogs compares with a walk over logs written out in full, made the way chains make them: every
// version continues a prefix of some log of an earlier one.
func TestCommonPrefixAgainstLogs(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var logs [][]dfs.Version
		logs = append(logs, nil)
		for v := dfs.Version(1); v <= 8; v++ {
			from := logs[rng.IntN(len(logs))]
			full := append([]dfs.Version(nil), from[:rng.IntN(len(from)+1)]...)
			for range rng.IntN(4) {
				full = append(full, v)
			}
			for range 2 {
				logs = append(logs, full[:len(full)-rng.IntN(min(3, len(full)+1))])
			}
		}
		a, b := logs[rng.IntN(len(logs))], logs[rng.IntN(len(logs))]
		want := 0
		for want < min(len(a), len(b)) && a[want] == b[want] {
			want++
		}
		if got := commonPrefix(written(a), written(b)); got != dfs.Seq(want) {
			t.Fatalf("commonPrefix(%v, %v) = %d, want %d", a, b, got, want)
		}
	}
}

func written(l []dfs.Version) logEnd {
	out := logEnd{exists: true, last: dfs.Seq(len(l))}
	for i, v := range l {
		if i == 0 || l[i-1] != v {
			out.epochs = append(out.epochs, epoch{v, dfs.Seq(i + 1)})
		}
	}
	return out
}
