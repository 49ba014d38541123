package cluster

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"dfs/internal/dfs"
)

// Liveness is what is known about a server's process; the package comment says how it changes.
type Liveness uint8

const (
	// Unknown servers have no heartbeat stream, or a silent one, and are not yet dead. It is also the answer about a server
	// never heard of.
	Unknown Liveness = iota
	// Live servers have a heartbeat stream and were heard of late.
	Live
	// Gone servers have no process that listens.
	Gone
	// Dead servers have not been heard for DeadAfter.
	Dead
)

// String returns the word used in reports.
func (l Liveness) String() string {
	switch l {
	case Live:
		return "live"
	case Gone:
		return "gone"
	case Dead:
		return "dead"
	}
	return "unknown"
}

// Server is a copy of what is known about one server.
type Server struct {
	ID          dfs.ServerID
	Addr        string
	Rack        string
	Software    string
	Incarnation uint64 // 0: has not registered with this leader
	State       Liveness
	HasStream   bool      // a heartbeat stream is open
	HeardAt     time.Time // of the last heartbeat; the leader's start when there was none
	Disks       []Disk    // not to be changed
	Chunks      int64

	// Sums over the disks that have not failed, in bytes.
	Capacity, Free, Used int64
	// FailedDisks counts the others.
	FailedDisks int
}

// Full reports whether no disk of the server has room for another chunk of the given size.
func (s Server) Full(chunkSize int64) bool {
	for _, d := range s.Disks {
		if !d.Failed && d.Free >= chunkSize {
			return false
		}
	}
	return true
}

// view copies a server out.
func (s *State) view(sv *server, now time.Time) Server {
	v := Server{
		ID: sv.id, Addr: sv.addr, Rack: sv.rack, Software: sv.software, Incarnation: sv.incarnation,
		State: s.liveness(sv, now), HasStream: sv.stream != 0, HeardAt: sv.heardAt, Disks: sv.beat.Disks, Chunks: sv.beat.Chunks,
	}
	for _, d := range sv.beat.Disks {
		if d.Failed {
			v.FailedDisks++
			continue
		}
		v.Capacity += d.Capacity
		v.Free += d.Free
		v.Used += d.Used
	}
	return v
}

// liveness is the state of a server at now; it does not wait for a Tick.
func (s *State) liveness(sv *server, now time.Time) Liveness {
	switch {
	case sv.dead || !now.Before(sv.heardAt.Add(s.cfg.DeadAfter)):
		return Dead
	case sv.stream != 0 && now.Before(sv.heardAt.Add(s.cfg.SilentAfter)):
		return Live
	case !sv.goneAt.IsZero():
		return Gone
	}
	return Unknown
}

// Liveness returns the state of a server.
func (s *State) Liveness(id dfs.ServerID, now time.Time) Liveness {
	if sv := s.servers[id]; sv != nil {
		return s.liveness(sv, now)
	}
	return Unknown
}

// Lookup returns what is known about a server.
func (s *State) Lookup(id dfs.ServerID, now time.Time) (Server, bool) {
	sv := s.servers[id]
	if sv == nil {
		return Server{}, false
	}
	return s.view(sv, now), true
}

// Snapshot returns all servers in order of id.
func (s *State) Snapshot(now time.Time) []Server {
	all := make([]Server, 0, len(s.servers))
	for _, sv := range s.servers {
		all = append(all, s.view(sv, now))
	}
	slices.SortFunc(all, func(a, b Server) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// Member is an entry of the list that heartbeat replies carry.
type Member struct {
	ID    dfs.ServerID
	Addr  string
	Rack  string
	Alive bool // has a heartbeat stream
}

// Members returns all servers in order of id, and the change counter: the list is the same for as long as the
// counter is.
func (s *State) Members() ([]Member, uint64) {
	list := make([]Member, 0, len(s.servers))
	for _, sv := range s.servers {
		list = append(list, Member{sv.id, sv.addr, sv.rack, sv.stream != 0})
	}
	slices.SortFunc(list, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	return list, s.changes
}

// Changes returns the change counter of Members.
func (s *State) Changes() uint64 { return s.changes }

// SafeMode is the state of safe mode.
type SafeMode struct {
	On         bool
	Registered int       // of the servers that ever registered, with this leader
	Needed     int       // for safe mode to end before Until
	Known      int       // servers that ever registered
	Until      time.Time // it ends then at the latest
}

// String says the rule and how far it is from being met.
func (m SafeMode) String() string {
	if !m.On {
		return "off"
	}
	return fmt.Sprintf("on: %d of %d known chunkservers have registered, %d are needed", m.Registered, m.Known, m.Needed)
}

// SafeMode returns whether the master must refuse mutations because too few chunkservers have come back since it
// started (see Config). Once over it stays over.
func (s *State) SafeMode(now time.Time) SafeMode {
	m := SafeMode{
		Registered: s.returned,
		Known:      s.known,
		Needed:     int(math.Ceil(s.cfg.SafeModeShare*float64(s.known) - 1e-9)),
		Until:      s.startedAt.Add(s.cfg.SafeModeTimeout),
	}
	s.safeOver = s.safeOver || m.Registered >= m.Needed || !now.Before(m.Until)
	m.On = !s.safeOver
	return m
}

// Totals sums up the live servers. Sizes are bytes.
type Totals struct {
	Capacity, Free, Used int64
	Chunks               int64 // replicas
	Live, Servers        int
	Racks                int // with live servers
}

// Totals returns the sums for statfs and reports.
func (s *State) Totals(now time.Time) Totals {
	t := Totals{Servers: len(s.servers)}
	racks := make(map[string]bool)
	for _, sv := range s.servers {
		v := s.view(sv, now)
		if v.State != Live {
			continue
		}
		racks[v.Rack] = true
		t.Live++
		t.Capacity += v.Capacity
		t.Free += v.Free
		t.Used += v.Used
		t.Chunks += v.Chunks
	}
	t.Racks = len(racks)
	return t
}
