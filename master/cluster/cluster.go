// Package cluster is the leading master's knowledge of the chunkservers: who is there, since when, with how
// much room, and until when each of them may serve reads. It is soft state: a new leader starts from the
// list of servers that ever registered (in the metadata) and learns the rest from heartbeats. It holds
// nothing per chunk; memory is proportional to the number of servers.
//
// A State has no lock, clock or goroutine: calls must not overlap, and time comes in as an argument. The
// instants given to it must come from one monotonic clock (time.Now within one process).
//
// # Liveness
//
// A server is Live while it has a heartbeat stream and was heard within SilentAfter. When the stream breaks or falls
// silent it is Unknown: its process may have died, or only the network. When the stream is broken and a dial to
// its address has been refused, the process is Gone. After DeadAfter without a word, from whatever state, it is Dead, and
// re-replication replaces what it held. Registering again makes it Live.
//
// # Serving leases
//
// A replica answers reads only within its server's serving lease (DESIGN §6). The holder counts the lease from
// before it sent the heartbeat; this package counts it from when the reply is sent, which is later; so with
// clocks that run at the same rate to within ClockMargin/ServingLease the holder always stops first. The bookkeeping
// errs on the long side: an unheard-of server is taken to have a lease from the leader before this one.
//
// That a refused connection means a dead process is an assumption: a firewall that answers for a live server
// breaks it. FenceLease does without it and always waits for the lease.
package cluster

import (
	"cmp"
	"slices"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// Fence says when a chunkserver that left a configuration is known to serve no more reads.
type Fence uint8

const (
	// FenceProcess is the default: when its serving lease has lapsed or its process is seen gone.
	FenceProcess Fence = iota
	// FenceLease is: only when its serving lease has lapsed.
	FenceLease
)

// Config sets a State up. Zero fields take the default in brackets.
type Config struct {
	ServingLease time.Duration // [3 s] how long a heartbeat's reply lets a server answer reads
	ClockMargin  time.Duration // [ServingLease/20] added to leases here, for clocks that run at different rates
	// LeaderOverlap is how long a deposed leader may go on answering heartbeats after this one
	// started: Raft's leader lease timeout, rounded up. [1 s]
	LeaderOverlap time.Duration
	SilentAfter   time.Duration // [2 × ServingLease] without a word, after which a server is no longer Live
	DeadAfter     time.Duration // [60 s] without a word, after which a server is Dead
	Fence         Fence

	// Safe mode ends when SafeModeShare of the servers that ever registered have registered with this
	// leader, or SafeModeTimeout after its start, whichever is first. [2/3, 30 s]
	SafeModeShare   float64
	SafeModeTimeout time.Duration

	// MaxReports is how many full chunk reports may be under way at once. [16]
	MaxReports int
	// ReportTimeout is when a report that was asked for and has not ended no longer counts. [2 min]
	ReportTimeout time.Duration
}

// withDefaults fills in the zero fields.
func (c Config) withDefaults() Config {
	c.ServingLease = cmp.Or(c.ServingLease, 3*time.Second)
	c.ClockMargin = cmp.Or(c.ClockMargin, c.ServingLease/20)
	c.LeaderOverlap = cmp.Or(c.LeaderOverlap, time.Second)
	c.SilentAfter = cmp.Or(c.SilentAfter, 2*c.ServingLease)
	c.DeadAfter = cmp.Or(c.DeadAfter, time.Minute)
	c.SafeModeShare = cmp.Or(c.SafeModeShare, 2.0/3)
	c.SafeModeTimeout = cmp.Or(c.SafeModeTimeout, 30*time.Second)
	c.MaxReports = cmp.Or(c.MaxReports, 16)
	c.ReportTimeout = cmp.Or(c.ReportTimeout, 2*time.Minute)
	return c
}

// Disk is one disk of a chunkserver. Sizes are bytes.
type Disk struct {
	Dir      string
	Capacity int64
	Free     int64 // beyond the reserve
	Used     int64 // by replicas
	Failed   bool
}

// Hello is what a chunkserver says when it registers.
type Hello struct {
	Server      dfs.ServerID
	Incarnation uint64 // drawn at process start
	Addr        string
	Rack        string
	Software    string
}

// Beat is what every heartbeat says, the registering one included.
type Beat struct {
	Disks  []Disk
	Chunks int64 // replicas held
}

// StreamID names one heartbeat stream within a State. Zero is none.
type StreamID uint64

// State is what the leading master knows about the chunkservers.
type State struct {
	cfg        Config
	startedAt  time.Time
	servers    map[dfs.ServerID]*server
	streams    map[StreamID]*server
	lastStream StreamID
	changes    uint64 // grows when Members would differ
	known      int    // servers with counted
	returned   int    // servers with counted and registered
	safeOver   bool   // safe mode does not come back

	// asked are the full reports under way, and since when; at most MaxReports.
	asked map[dfs.ServerID]time.Time
}

// server is one chunkserver. stream is 0 while it has no heartbeat stream.
type server struct {
	id          dfs.ServerID
	addr        string
	rack        string
	software    string
	incarnation uint64
	registered  bool // with this leader
	counted     bool // Known was told of it: it counts for safe mode
	stream      StreamID
	goneAt      time.Time // of the last ProcessGone; zero: a process has registered since
	dead        bool      // as of the last Tick
	heardAt     time.Time
	beat        Beat

	// leaseUntil is when the last serving lease given out by this leader ends, margin included.
	leaseUntil time.Time
	reportDue  bool // a full chunk report is wanted
}

// New returns the state of a leader that started at now and knows no servers.
func New(cfg Config, now time.Time) *State {
	return &State{
		cfg:       cfg.withDefaults(),
		startedAt: now,
		servers:   make(map[dfs.ServerID]*server),
		streams:   make(map[StreamID]*server),
		asked:     make(map[dfs.ServerID]time.Time),
	}
}

// Known tells of a chunkserver that registered with some earlier leader, from the metadata. One that is
// already there is left alone.
func (s *State) Known(id dfs.ServerID, addr, rack string) {
	if s.servers[id] != nil {
		return
	}
	s.servers[id] = &server{id: id, addr: addr, rack: rack, counted: true, heardAt: s.startedAt}
	s.known++
	s.changes++
}

// Register begins a heartbeat stream, replacing the server's earlier one. ErrServerConflict: another
// process has this id, has a stream, and was heard within the serving lease; ErrInvalid: the id or the address
// is missing.
//
// A server that registers owes a full chunk report (AskReport).
func (s *State) Register(h Hello, b Beat, now time.Time) (StreamID, error) {
	if h.Server == 0 || h.Addr == "" {
		return 0, dfserr.Errorf(dfserr.ErrInvalid, "register chunkserver %s at %q: id and address are needed", h.Server, h.Addr)
	}
	sv := s.servers[h.Server]
	if sv == nil {
		sv = &server{id: h.Server}
		s.servers[h.Server] = sv
		s.changes++
	}
	if sv.stream != 0 && sv.incarnation != h.Incarnation && now.Before(sv.heardAt.Add(s.cfg.ServingLease)) {
		return 0, dfserr.Errorf(dfserr.ErrServerConflict, "register chunkserver %s at %s: it is running at %s (was its data directory copied?)",
			h.Server, h.Addr, sv.addr)
	}
	delete(s.streams, sv.stream)
	if sv.addr != h.Addr || sv.rack != h.Rack || sv.stream == 0 || sv.dead {
		s.changes++
	}
	if sv.counted && !sv.registered {
		s.returned++
	}
	s.lastStream++
	sv.addr, sv.rack, sv.software, sv.incarnation = h.Addr, h.Rack, h.Software, h.Incarnation
	sv.registered, sv.goneAt, sv.dead = true, time.Time{}, false
	sv.stream = s.lastStream
	sv.heardAt, sv.beat = now, b
	sv.reportDue = true
	delete(s.asked, h.Server)
	s.streams[sv.stream] = sv
	return sv.stream, nil
}

// Heartbeat notes a later message of a stream. ErrUnavailable: the stream is no longer the server's; it must be
// closed without an answer.
func (s *State) Heartbeat(stream StreamID, b Beat, now time.Time) error {
	sv := s.streams[stream]
	if sv == nil {
		return dfserr.Errorf(dfserr.ErrUnavailable, "heartbeat on a replaced stream")
	}
	sv.heardAt, sv.beat = now, b
	if sv.dead {
		sv.dead = false
		s.changes++
	}
	return nil
}

// Grant returns the serving lease to put into the reply that is about to be sent on the stream, and counts
// it from now: call it before sending, and only for a server that may serve reads. Zero, to be sent as zero: the
// stream is no longer the server's.
func (s *State) Grant(stream StreamID, now time.Time) time.Duration {
	sv := s.streams[stream]
	if sv == nil {
		return 0
	}
	sv.leaseUntil = latest(sv.leaseUntil, now.Add(s.cfg.ServingLease+s.cfg.ClockMargin))
	return s.cfg.ServingLease
}

// StreamBroken notes the end of a stream. The end of one that was replaced changes nothing.
func (s *State) StreamBroken(stream StreamID) {
	sv := s.streams[stream]
	if sv == nil {
		return
	}
	delete(s.streams, stream)
	sv.stream = 0
	delete(s.asked, sv.id)
	s.changes++
}

// ProcessGone notes that a dial to the server's address, begun at dialedAt, was refused. It is ignored when
// the server has a stream, or another incarnation than the caller saw; the caller takes incarnation and address
// from one Lookup that found no stream, before it dials.
func (s *State) ProcessGone(id dfs.ServerID, incarnation uint64, dialedAt time.Time) {
	if sv := s.servers[id]; sv != nil && sv.stream == 0 && sv.incarnation == incarnation {
		sv.goneAt = dialedAt
	}
}

// ReadFenceAt returns the instant from which reads by the server's replicas are surely over, as things are now; an
// instant not after now means: they are over already. For a server that goes on getting heartbeats answered
// with a lease (Grant) the instant moves on. A server that was never heard of may have a lease from the
// leader before this one.
func (s *State) ReadFenceAt(id dfs.ServerID, now time.Time) time.Time {
	inherited := s.startedAt.Add(s.cfg.LeaderOverlap + s.cfg.ServingLease + s.cfg.ClockMargin)
	sv := s.servers[id]
	switch {
	case sv == nil:
		return inherited
	case s.cfg.Fence == FenceProcess && !sv.goneAt.IsZero() && !sv.goneAt.Before(s.startedAt.Add(s.cfg.LeaderOverlap)):
		// Before that a new process could have got a lease from the leader before this one.
		return now
	default:
		return latest(sv.leaseUntil, inherited)
	}
}

// Tick finds the servers that have become dead since the last call, in order of id. Their streams, if any, are
// to be closed by the caller: StreamBroken has been done for them.
func (s *State) Tick(now time.Time) []dfs.ServerID {
	var dead []dfs.ServerID
	for id, sv := range s.servers {
		if sv.dead || now.Before(sv.heardAt.Add(s.cfg.DeadAfter)) {
			continue
		}
		sv.dead = true
		delete(s.streams, sv.stream)
		sv.stream = 0
		s.changes++
		dead = append(dead, id)
	}
	slices.Sort(dead)
	return dead
}

// AskReport reports whether the next reply on the stream should ask for a full chunk report, and if so
// counts it as under way. At most MaxReports are under way at once, so that a restarted master is not
// flooded.
func (s *State) AskReport(stream StreamID, now time.Time) bool {
	sv := s.streams[stream]
	if sv == nil || !sv.reportDue {
		return false
	}
	if at, ok := s.asked[sv.id]; ok && now.Before(at.Add(s.cfg.ReportTimeout)) {
		return false
	}
	if len(s.asked) >= s.cfg.MaxReports {
		for id, at := range s.asked {
			if !now.Before(at.Add(s.cfg.ReportTimeout)) {
				delete(s.asked, id)
			}
		}
		if len(s.asked) >= s.cfg.MaxReports {
			return false
		}
	}
	s.asked[sv.id] = now
	return true
}

// WantReport makes the server owe a full chunk report again.
func (s *State) WantReport(id dfs.ServerID) {
	if sv := s.servers[id]; sv != nil {
		sv.reportDue = true
	}
}

// ReportFailed notes that a report which was asked for did not come in whole: it is owed again at once.
func (s *State) ReportFailed(id dfs.ServerID) {
	if sv := s.servers[id]; sv != nil {
		sv.reportDue = true
		delete(s.asked, id)
	}
}

// Reported notes that a full report by the given incarnation has come in whole.
func (s *State) Reported(id dfs.ServerID, incarnation uint64) {
	if sv := s.servers[id]; sv != nil && sv.incarnation == incarnation {
		sv.reportDue = false
		delete(s.asked, id)
	}
}

// latest returns the later instant.
func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
