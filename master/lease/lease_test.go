package lease

import (
	"errors"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

func epoch() time.Time { return time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC) }

func TestGrant(t *testing.T) {
	const d = 30 * time.Second
	for _, c := range []struct {
		name    string
		version dfs.Version
		primary dfs.ServerID
		after   time.Duration
		want    error
	}{
		{"again", 5, 1, time.Second, nil},
		{"another server", 5, 2, time.Second, dfserr.ErrLeaseHeld},
		{"another server, lease over", 5, 2, d, nil},
		{"older version", 4, 1, time.Second, dfserr.ErrStaleVersion},
		{"newer version, another server", 6, 2, time.Second, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := New(Config{})
			if _, err := table.Grant(10, 5, 1, epoch()); err != nil {
				t.Fatal(err)
			}
			now := epoch().Add(c.after)
			got, err := table.Grant(10, c.version, c.primary, now)
			if !errors.Is(err, c.want) || (c.want == nil) != (err == nil) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			want := Lease{10, 5, 1, epoch().Add(d)}
			if err == nil {
				want = Lease{10, c.version, c.primary, now.Add(d)}
				if got != want {
					t.Errorf("granted %+v, want %+v", got, want)
				}
			}
			if held, ok := table.Holder(10, now); !ok || held != want {
				t.Errorf("holder %+v %v, want %+v", held, ok, want)
			}
		})
	}
}

func TestRenewRelease(t *testing.T) {
	table := New(Config{Duration: 10 * time.Second})
	if _, err := table.Renew(1, 7, epoch()); !errors.Is(err, dfserr.ErrLeaseExpired) {
		t.Errorf("renew nothing: %v", err)
	}
	if _, err := table.Grant(1, 1, 7, epoch()); err != nil {
		t.Fatal(err)
	}
	if l, err := table.Renew(1, 7, epoch().Add(9*time.Second)); err != nil || !l.Until.Equal(epoch().Add(19*time.Second)) {
		t.Errorf("renew: %+v, %v", l, err)
	}
	if _, err := table.Renew(1, 8, epoch().Add(9*time.Second)); !errors.Is(err, dfserr.ErrLeaseExpired) {
		t.Errorf("renew by another: %v", err)
	}
	if _, err := table.Renew(1, 7, epoch().Add(19*time.Second)); !errors.Is(err, dfserr.ErrLeaseExpired) {
		t.Errorf("renew too late: %v", err)
	}
	if table.Release(1, 8) {
		t.Error("released by another")
	}
	if !table.Release(1, 7) || table.Len() != 0 {
		t.Error("not released")
	}
	if _, err := table.Grant(2, 1, 7, epoch()); err != nil {
		t.Fatal(err)
	}
	table.Revoke(2)
	table.Revoke(3)
	if _, ok := table.Holder(2, epoch()); ok || table.Len() != 0 {
		t.Error("not revoked")
	}
}

// TestBounded: a full table collects what is over before it refuses.
func TestBounded(t *testing.T) {
	table := New(Config{Duration: 10 * time.Second, Max: 3})
	for c := range dfs.ChunkID(3) {
		if _, err := table.Grant(c, 1, 1, epoch().Add(time.Duration(c)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := table.Grant(9, 1, 1, epoch().Add(9*time.Second)); !errors.Is(err, dfserr.ErrBusy) {
		t.Errorf("full table: %v", err)
	}
	if _, err := table.Grant(2, 1, 1, epoch().Add(9*time.Second)); err != nil {
		t.Errorf("renewal in a full table: %v", err)
	}
	if _, err := table.Grant(9, 1, 1, epoch().Add(10*time.Second)); err != nil {
		t.Errorf("full table with one that is over: %v", err)
	}
}

// TestAgainstModel drives a table and a plain map with the same operations, at instants that are out of order
// by a little, as those of concurrent handlers are.
func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const d = 10 * time.Second
		table := New(Config{Duration: d})
		model := map[dfs.ChunkID]Lease{}
		clock := epoch()
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			clock = clock.Add(time.Duration(rapid.IntRange(0, 4000).Draw(t, "ms")) * time.Millisecond)
			now := clock.Add(-time.Duration(rapid.IntRange(0, 50).Draw(t, "late")) * time.Millisecond)
			chunk := dfs.ChunkID(rapid.IntRange(1, 5).Draw(t, "chunk"))
			server := dfs.ServerID(rapid.IntRange(1, 3).Draw(t, "server"))
			version := dfs.Version(rapid.IntRange(1, 3).Draw(t, "version"))
			held, ok := model[chunk]
			held, valid := held, ok && now.Before(held.Until)
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0:
				var want error
				if valid && version < held.Version {
					want = dfserr.ErrStaleVersion
				} else if valid && version == held.Version && server != held.Primary {
					want = dfserr.ErrLeaseHeld
				}
				if _, err := table.Grant(chunk, version, server, now); !errors.Is(err, want) {
					t.Fatalf("grant: %v, want %v", err, want)
				}
				if want == nil {
					model[chunk] = Lease{chunk, version, server, now.Add(d)}
				}
			case 1:
				_, err := table.Renew(chunk, server, now)
				if want := valid && held.Primary == server; (err == nil) != want {
					t.Fatalf("renew: %v, want %v", err, want)
				}
				if err == nil {
					held.Until = now.Add(d)
					model[chunk] = held
				}
			case 2:
				if table.Release(chunk, server) {
					delete(model, chunk)
				}
			case 3:
				limit := rapid.IntRange(0, 3).Draw(t, "limit")
				over := table.Expire(now, limit)
				var want []Lease
				for _, l := range model {
					if !now.Before(l.Until) {
						want = append(want, l)
					}
				}
				slices.SortFunc(want, func(a, b Lease) int { return a.Until.Compare(b.Until) })
				if len(over) != min(limit, len(want)) {
					t.Fatalf("expired %d, want %d of at most %d", len(over), len(want), limit)
				}
				for i, l := range over {
					if !l.Until.Equal(want[i].Until) || l != model[l.Chunk] {
						t.Fatalf("expired %+v as number %d, want %+v", l, i, want[i])
					}
					delete(model, l.Chunk)
				}
			}
			if table.Len() != len(model) {
				t.Fatalf("%d leases, want %d", table.Len(), len(model))
			}
		}
	})
}

func BenchmarkRenew(b *testing.B) {
	table := New(Config{})
	const chunks = 100_000
	for c := range dfs.ChunkID(chunks) {
		if _, err := table.Grant(c, 1, 1, epoch()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	now := epoch()
	i := 0
	for b.Loop() {
		if _, err := table.Renew(dfs.ChunkID(i%chunks), 1, now); err != nil {
			b.Fatal(err)
		}
		now = now.Add(time.Microsecond)
		i++
	}
}
