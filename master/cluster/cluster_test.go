package cluster

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// epoch is when the leader of these tests starts.
func epoch() time.Time { return time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC) }

func after(d time.Duration) time.Time { return epoch().Add(d) }

// settled is past what a leader before this one could have promised.
const settled = 10 * time.Second

func hello(id dfs.ServerID, incarnation uint64) Hello {
	return Hello{Server: id, Incarnation: incarnation, Addr: fmt.Sprintf("host%d:1", id), Rack: fmt.Sprintf("r%d", id%2)}
}

func register(t *testing.T, s *State, h Hello, now time.Time) StreamID {
	t.Helper()
	stream, err := s.Register(h, Beat{}, now)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func TestLiveness(t *testing.T) {
	s := New(Config{}, epoch())
	s.Known(2, "host2:1", "r0")
	check := func(id dfs.ServerID, at time.Duration, want Liveness) {
		t.Helper()
		if got := s.Liveness(id, after(at)); got != want {
			t.Errorf("server %d after %v: %v, want %v", id, at, got, want)
		}
	}
	check(1, 0, Unknown)
	check(2, 0, Unknown)
	check(2, time.Minute, Dead)

	stream := register(t, s, hello(1, 100), after(0))
	check(1, 5*time.Second, Live)
	check(1, 6*time.Second, Unknown) // silent
	if err := s.Heartbeat(stream, Beat{Chunks: 7}, after(10*time.Second)); err != nil {
		t.Fatal(err)
	}
	check(1, 15*time.Second, Live)
	s.ProcessGone(1, 100, after(11*time.Second))
	check(1, 11*time.Second, Live) // it has a stream
	s.StreamBroken(stream)
	check(1, 11*time.Second, Unknown)
	s.ProcessGone(1, 99, after(12*time.Second))
	check(1, 12*time.Second, Unknown) // another incarnation
	s.ProcessGone(1, 100, after(12*time.Second))
	check(1, 12*time.Second, Gone)
	if err := s.Heartbeat(stream, Beat{}, after(13*time.Second)); !errors.Is(err, dfserr.ErrUnavailable) {
		t.Errorf("heartbeat on a broken stream: %v", err)
	}
	if dead := s.Tick(after(69 * time.Second)); !slices.Equal(dead, []dfs.ServerID{2}) {
		t.Errorf("dead after 69 s: %v", dead)
	}
	if dead := s.Tick(after(70 * time.Second)); !slices.Equal(dead, []dfs.ServerID{1}) {
		t.Errorf("dead after 70 s: %v", dead)
	}
	if dead := s.Tick(after(71 * time.Second)); len(dead) != 0 {
		t.Errorf("dead once more: %v", dead)
	}
	register(t, s, hello(1, 101), after(72*time.Second))
	check(1, 72*time.Second, Live)
	if v, ok := s.Lookup(1, after(72*time.Second)); !ok || v.Incarnation != 101 || !v.HasStream {
		t.Errorf("lookup: %+v, %v", v, ok)
	}
	if _, ok := s.Lookup(3, epoch()); ok {
		t.Error("a server nobody knows was found")
	}
}

// TestTickEndsSilentStream: a server that is dead has no stream any more, even if nobody saw it break.
func TestTickEndsSilentStream(t *testing.T) {
	s := New(Config{}, epoch())
	stream := register(t, s, hello(1, 1), epoch())
	if dead := s.Tick(after(time.Minute)); len(dead) != 1 {
		t.Fatalf("dead: %v", dead)
	}
	if s.Grant(stream, after(time.Minute)) != 0 || s.Heartbeat(stream, Beat{}, after(time.Minute)) == nil {
		t.Error("the stream of a dead server goes on")
	}
}

func TestConflict(t *testing.T) {
	s := New(Config{}, epoch())
	first := register(t, s, hello(1, 100), epoch())
	if _, err := s.Register(hello(1, 200), Beat{}, after(2*time.Second)); !errors.Is(err, dfserr.ErrServerConflict) {
		t.Errorf("a second process with the same id: %v", err)
	}
	if s.Heartbeat(first, Beat{}, after(2*time.Second)) != nil {
		t.Error("the refused one took the stream away")
	}
	// The same process may open a new stream; the old one is then worth nothing.
	second := register(t, s, hello(1, 100), after(2*time.Second))
	if s.Grant(first, after(2*time.Second)) != 0 {
		t.Error("the replaced stream gets a lease")
	}
	s.StreamBroken(first)
	if s.Liveness(1, after(2*time.Second)) != Live {
		t.Error("the end of the replaced stream ended the new one")
	}
	// A process that has been silent for a serving lease gives way, and so does one whose stream broke.
	third := register(t, s, hello(1, 200), after(5*time.Second))
	if s.Grant(second, after(5*time.Second)) != 0 {
		t.Error("the silent one gets a lease")
	}
	s.StreamBroken(third)
	register(t, s, hello(1, 300), after(5*time.Second))

	if _, err := s.Register(Hello{Addr: "x:1"}, Beat{}, epoch()); !errors.Is(err, dfserr.ErrInvalid) {
		t.Errorf("no id: %v", err)
	}
	if _, err := s.Register(Hello{Server: 9}, Beat{}, epoch()); !errors.Is(err, dfserr.ErrInvalid) {
		t.Errorf("no address: %v", err)
	}
}

func TestReadFence(t *testing.T) {
	cfg := Config{}.withDefaults()
	lease := cfg.ServingLease + cfg.ClockMargin
	inherited := after(cfg.LeaderOverlap + lease)
	for _, fence := range []Fence{FenceProcess, FenceLease} {
		s := New(Config{Fence: fence}, epoch())
		s.Known(2, "host2:1", "r0")
		check := func(what string, id dfs.ServerID, now, want time.Time) {
			t.Helper()
			if got := s.ReadFenceAt(id, now); !got.Equal(want) {
				t.Errorf("fence %d, %s: %v, want %v", fence, what, got.Sub(epoch()), want.Sub(epoch()))
			}
		}
		check("never heard of", 7, epoch(), inherited)
		check("not back yet", 2, epoch(), inherited)
		s.ProcessGone(2, 0, after(cfg.LeaderOverlap/2))
		check("gone while the leader before may still answer", 2, after(cfg.LeaderOverlap/2), inherited)

		stream := register(t, s, hello(1, 100), epoch())
		check("registered, no lease", 1, epoch(), inherited)
		now := after(settled)
		if got := s.Grant(stream, now); got != cfg.ServingLease {
			t.Errorf("grant %v", got)
		}
		check("with a lease", 1, now, now.Add(lease))
		s.StreamBroken(stream)
		check("stream broken", 1, now, now.Add(lease))
		s.ProcessGone(1, 100, now.Add(time.Second))
		want := now.Add(time.Second)
		if fence == FenceLease {
			want = now.Add(lease)
		}
		check("gone", 1, now.Add(time.Second), want)

		// A new process inherits the wait for the old one's lease: only the data directory says they are two.
		again := register(t, s, hello(1, 101), now.Add(2*time.Second))
		check("registered again", 1, now.Add(2*time.Second), now.Add(lease))
		s.Grant(again, now.Add(2*time.Second))
		check("granted again", 1, now.Add(2*time.Second), now.Add(2*time.Second+lease))
	}
}

// TestReadFenceIsSafe plays random histories of two leaders, one server and the network, and checks that no process
// ever believes in a serving lease at or after the instant that the second leader names as the fence.
func TestReadFenceIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{}.withDefaults()
		s := New(Config{}, epoch())
		s.Known(1, "host1:1", "r1")
		var stream StreamID
		incarnation := uint64(1)
		alive := true
		holder := time.Time{} // until when the current process believes it may serve
		now := epoch().Add(-time.Second)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 400).Draw(t, "ms")) * time.Millisecond)
			started := !now.Before(epoch())
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0: // the leader before this one answers a heartbeat, if it can still believe it leads
				if alive && now.Before(after(cfg.LeaderOverlap)) {
					holder = now.Add(cfg.ServingLease)
				}
			case 1, 2: // this leader does; the holder counts from when it sent
				if !alive || !started {
					continue
				}
				if stream == 0 {
					var err error
					if stream, err = s.Register(hello(1, incarnation), Beat{}, now); err != nil {
						continue
					}
				}
				sent := now
				now = now.Add(time.Duration(rapid.IntRange(0, 500).Draw(t, "delay")) * time.Millisecond)
				if s.Heartbeat(stream, Beat{}, now) == nil {
					if d := s.Grant(stream, now); d > 0 {
						holder = sent.Add(d)
					}
				}
			case 3: // the stream breaks for the master; the server may not have noticed
				s.StreamBroken(stream)
				stream = 0
			case 4: // the process dies and may start again
				alive = !alive
				if alive {
					incarnation++
				} else {
					holder = time.Time{}
				}
				s.StreamBroken(stream)
				stream = 0
			case 5: // the master dials
				if v, ok := s.Lookup(1, now); started && ok && !v.HasStream && !alive {
					s.ProcessGone(1, v.Incarnation, now)
				}
			}
			if now.Before(epoch()) {
				continue
			}
			fence := s.ReadFenceAt(1, now)
			if holder.After(fence) {
				t.Fatalf("at %v the fence is %v, the process serves until %v", now.Sub(epoch()), fence.Sub(epoch()), holder.Sub(epoch()))
			}
		}
	})
}

func TestSafeMode(t *testing.T) {
	empty := New(Config{}, epoch())
	if m := empty.SafeMode(epoch()); m.On {
		t.Errorf("a new cluster is in safe mode: %+v", m)
	}
	build := func() *State {
		s := New(Config{}, epoch())
		for id := range dfs.ServerID(4) {
			s.Known(id+1, "a:1", "r")
			s.Known(id+1, "b:1", "r")
		}
		return s
	}
	s := build()
	for id := range dfs.ServerID(4) {
		m := s.SafeMode(epoch())
		if want := id < 3; m.On != want || m.Needed != 3 || m.Known != 4 {
			t.Errorf("with %d servers back: %+v", id, m)
		}
		stream := register(t, s, hello(id+1, 1), epoch())
		register(t, s, hello(id+1, 1), epoch()) // a second stream is not a second server
		s.StreamBroken(stream)
	}
	for id := range dfs.ServerID(4) {
		s.Tick(after(time.Hour + time.Duration(id)))
	}
	if m := s.SafeMode(after(time.Hour)); m.On || m.Known != 4 {
		t.Errorf("safe mode came back: %+v", m)
	}
	s = build()
	register(t, s, hello(9, 1), epoch()) // a server that is new does not count
	if m := s.SafeMode(after(29 * time.Second)); !m.On || m.Registered != 0 ||
		m.String() != "on: 0 of 4 known chunkservers have registered, 3 are needed" {
		t.Errorf("before the timeout: %v", m)
	}
	if m := s.SafeMode(after(30 * time.Second)); m.On || m.String() != "off" {
		t.Errorf("after the timeout: %v", m)
	}
}

func TestMembers(t *testing.T) {
	s := New(Config{}, epoch())
	last := s.Changes()
	changed := func(what string, want bool) {
		t.Helper()
		_, now := s.Members()
		if (now != last) != want {
			t.Errorf("%s: change counter moved: %v, want %v", what, now != last, want)
		}
		last = now
	}
	s.Known(3, "host3:1", "r1")
	changed("known", true)
	register(t, s, hello(1, 1), epoch())
	changed("register", true)
	register(t, s, hello(1, 1), epoch())
	changed("register again", false)
	h := hello(1, 1)
	h.Addr = "elsewhere:1"
	stream := register(t, s, h, epoch())
	changed("moved", true)
	if err := s.Heartbeat(stream, Beat{Chunks: 5}, after(time.Second)); err != nil {
		t.Fatal(err)
	}
	changed("heartbeat", false)
	s.StreamBroken(stream)
	changed("broken", true)
	got, _ := s.Members()
	want := []Member{{1, "elsewhere:1", "r1", false}, {3, "host3:1", "r1", false}}
	if !slices.Equal(got, want) {
		t.Errorf("members %+v, want %+v", got, want)
	}
	s.Tick(after(time.Hour))
	changed("dead", true)
}

func TestTotals(t *testing.T) {
	s := New(Config{}, epoch())
	beat := Beat{Chunks: 10, Disks: []Disk{
		{Dir: "/a", Capacity: 100, Free: 60, Used: 30},
		{Dir: "/b", Capacity: 100, Free: 2, Used: 90},
		{Dir: "/c", Capacity: 100, Free: 90, Failed: true},
	}}
	for id := dfs.ServerID(1); id <= 3; id++ {
		stream, err := s.Register(hello(id, 1), beat, epoch())
		if err != nil {
			t.Fatal(err)
		}
		if id == 3 {
			s.StreamBroken(stream)
		}
	}
	got := s.Totals(after(time.Second))
	if want := (Totals{Capacity: 400, Free: 124, Used: 240, Chunks: 20, Live: 2, Servers: 3, Racks: 2}); got != want {
		t.Errorf("totals %+v, want %+v", got, want)
	}
	all := s.Snapshot(after(time.Second))
	if len(all) != 3 || all[0].FailedDisks != 1 || all[2].State != Unknown {
		t.Errorf("snapshot %+v", all)
	}
	for size, full := range map[int64]bool{60: false, 61: true} {
		if all[0].Full(size) != full {
			t.Errorf("full for %d bytes: %v", size, !full)
		}
	}
}

func TestReports(t *testing.T) {
	s := New(Config{MaxReports: 2, ReportTimeout: time.Minute}, epoch())
	var streams []StreamID
	for id := dfs.ServerID(1); id <= 4; id++ {
		streams = append(streams, register(t, s, hello(id, 1), epoch()))
	}
	ask := func(at time.Duration) (asked []int) {
		for i, st := range streams {
			if s.AskReport(st, after(at)) {
				asked = append(asked, i+1)
			}
		}
		return asked
	}
	if got := ask(0); !slices.Equal(got, []int{1, 2}) {
		t.Errorf("asked first: %v", got)
	}
	if got := ask(time.Second); got != nil {
		t.Errorf("asked while two are under way: %v", got)
	}
	s.Reported(1, 99) // of another incarnation
	s.Reported(2, 1)
	if got := ask(time.Second); !slices.Equal(got, []int{3}) {
		t.Errorf("asked after one came in: %v", got)
	}
	s.StreamBroken(streams[0]) // takes its report with it
	if got := ask(time.Second); !slices.Equal(got, []int{4}) {
		t.Errorf("asked after one broke: %v", got)
	}
	s.Reported(4, 1)
	if got := ask(61 * time.Second); !slices.Equal(got, []int{3}) {
		t.Errorf("asked after a timeout: %v", got)
	}
	s.ReportFailed(3)
	s.ReportFailed(99)
	if got := ask(61 * time.Second); !slices.Equal(got, []int{3}) {
		t.Errorf("asked after a failure: %v", got)
	}
	s.Reported(3, 1)
	s.WantReport(2)
	if got := ask(62 * time.Second); !slices.Equal(got, []int{2}) {
		t.Errorf("asked for another: %v", got)
	}
}
