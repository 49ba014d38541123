// Package lease keeps the write leases (DESIGN §6): which chunkserver is primary of which chunk until when. It
// is soft state of the leading master, rebuilt from nothing after a failover.
//
// A lease orders writes; it does not fence them. Fencing is done by versions: the primary is the first replica of
// the committed configuration, another primary takes another version, and an old one gets no
// acknowledgement from a replica that has moved on. So a wrong clock can make a lease useless but never
// harmful, and a configuration with a higher version takes the lease over at once.
//
// A Table has no lock, clock or goroutine: calls must not overlap, and time comes in as an argument. Leases all
// last equally long, so they are kept in order of expiry and a tick costs only what it expires. Memory is
// bounded by Config.Max leases.
package lease

import (
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// Config sets a table up.
type Config struct {
	// Duration is how long a lease lasts from its grant or last renewal. Zero: 30 s.
	Duration time.Duration
	// Max is how many leases there may be at once. Zero: 1,000,000.
	Max int
}

// Lease is one grant.
type Lease struct {
	Chunk   dfs.ChunkID
	Version dfs.Version  // the configuration it was granted for
	Primary dfs.ServerID // its holder
	Until   time.Time    // it is over at this instant
}

// Table holds the leases.
type Table struct {
	cfg     Config
	byChunk map[dfs.ChunkID]*entry
	head    entry // ring of all leases, ascending by Until; head.next expires first
}

// entry is a lease in the ring of expiry.
type entry struct {
	Lease
	prev, next *entry
}

// New returns an empty table.
func New(cfg Config) *Table {
	if cfg.Duration == 0 {
		cfg.Duration = 30 * time.Second
	}
	if cfg.Max == 0 {
		cfg.Max = 1_000_000
	}
	t := &Table{cfg: cfg, byChunk: make(map[dfs.ChunkID]*entry)}
	t.head.prev, t.head.next = &t.head, &t.head
	return t
}

// Len returns the number of leases, including any that are over and have not been collected by Expire.
func (t *Table) Len() int { return len(t.byChunk) }

// Grant gives or renews the lease on a chunk to the primary of the committed configuration with the given
// version. A higher version than the lease's takes it over, whoever holds it. Errors wrap
// ErrStaleVersion when a lease for a higher version exists; ErrLeaseHeld when another server
// holds the lease for this very version; ErrBusy when the table is full.
func (t *Table) Grant(chunk dfs.ChunkID, version dfs.Version, primary dfs.ServerID, now time.Time) (Lease, error) {
	e := t.byChunk[chunk]
	if e != nil && now.Before(e.Until) {
		switch {
		case version < e.Version:
			return Lease{}, dfserr.Errorf(dfserr.ErrStaleVersion, "lease on chunk %s for server %s at version %d, granted at version %d",
				chunk, primary, version, e.Version)
		case version == e.Version && primary != e.Primary:
			return Lease{}, dfserr.Errorf(dfserr.ErrLeaseHeld, "lease on chunk %s version %d for server %s, held by %s for another %v",
				chunk, version, primary, e.Primary, e.Until.Sub(now))
		}
	}
	if e == nil {
		if len(t.byChunk) >= t.cfg.Max {
			t.Expire(now, expireWhenFull)
		}
		if len(t.byChunk) >= t.cfg.Max {
			return Lease{}, dfserr.Errorf(dfserr.ErrBusy, "lease on chunk %s for server %s: %d leases exist", chunk, primary, len(t.byChunk))
		}
		e = &entry{}
		t.byChunk[chunk] = e
	} else {
		e.unlink()
	}
	e.Lease = Lease{Chunk: chunk, Version: version, Primary: primary, Until: now.Add(t.cfg.Duration)}
	t.insert(e)
	return e.Lease, nil
}

// expireWhenFull is how many leases a grant collects when the table is full.
const expireWhenFull = 64

// Renew extends the lease that primary holds on chunk. ErrLeaseExpired: it has none, or no longer; it must ask
// for a grant, and may find that the configuration has changed.
func (t *Table) Renew(chunk dfs.ChunkID, primary dfs.ServerID, now time.Time) (Lease, error) {
	e := t.byChunk[chunk]
	if e == nil || e.Primary != primary || !now.Before(e.Until) {
		return Lease{}, dfserr.Errorf(dfserr.ErrLeaseExpired, "renew lease on chunk %s for server %s", chunk, primary)
	}
	e.unlink()
	e.Until = now.Add(t.cfg.Duration)
	t.insert(e)
	return e.Lease, nil
}

// Release ends the lease if primary holds it, and reports whether it did.
func (t *Table) Release(chunk dfs.ChunkID, primary dfs.ServerID) bool {
	e := t.byChunk[chunk]
	if e == nil || e.Primary != primary {
		return false
	}
	t.remove(e)
	return true
}

// Revoke forgets any lease on the chunk: it was deleted, or its configuration has changed.
func (t *Table) Revoke(chunk dfs.ChunkID) {
	if e := t.byChunk[chunk]; e != nil {
		t.remove(e)
	}
}

// Holder returns the lease on a chunk if there is one that is not over.
func (t *Table) Holder(chunk dfs.ChunkID, now time.Time) (Lease, bool) {
	e := t.byChunk[chunk]
	if e == nil || !now.Before(e.Until) {
		return Lease{}, false
	}
	return e.Lease, true
}

// Expire removes at most limit leases that are over, the earliest first, and returns them. The result is
// shorter than limit only when none is left.
func (t *Table) Expire(now time.Time, limit int) []Lease {
	var over []Lease
	for len(over) < limit {
		e := t.head.next
		if e == &t.head || now.Before(e.Until) {
			break
		}
		over = append(over, e.Lease)
		t.remove(e)
	}
	return over
}

// insert puts e in order of expiry. Callers' clocks agree but for the moments between reading the clock and
// calling, so the place is at the end or a few steps before it.
func (t *Table) insert(e *entry) {
	at := t.head.prev
	for at != &t.head && e.Until.Before(at.Until) {
		at = at.prev
	}
	e.prev, e.next = at, at.next
	at.next.prev = e
	at.next = e
}

// remove takes e out of the table.
func (t *Table) remove(e *entry) {
	e.unlink()
	delete(t.byChunk, e.Chunk)
}

// unlink takes e out of the ring.
func (e *entry) unlink() {
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = nil, nil
}
