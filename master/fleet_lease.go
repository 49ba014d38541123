package master

import (
	"maps"
	"slices"
	"time"

	"dfs/internal/dfs"
	"dfs/master/lease"
)

// The fleet's write leases.

// unsynced remembers which chunks may hold acknowledged data that is not on stable storage: from the grant of a lease until its holder gives it
// back, which it does after a sync of all replicas. A lease that runs out or is revoked leaves its chunk here: whoever is primary next syncs it.
//
// Memory: per chunk written within the lease's length, or whose primary has vanished and that was not used since.
type unsynced struct {
	files  map[dfs.InodeID]map[dfs.ChunkID]struct{} // no empty inner maps
	chunks map[dfs.ChunkID]unsyncedChunk
}

type unsyncedChunk struct {
	inode   dfs.InodeID
	primary dfs.ServerID // that got the last lease
}

func (u *unsynced) add(chunk dfs.ChunkID, inode dfs.InodeID, primary dfs.ServerID) {
	u.chunks[chunk] = unsyncedChunk{inode, primary}
	if u.files[inode] == nil {
		u.files[inode] = map[dfs.ChunkID]struct{}{}
	}
	u.files[inode][chunk] = struct{}{}
}

func (u *unsynced) remove(chunk dfs.ChunkID) {
	c, ok := u.chunks[chunk]
	if !ok {
		return
	}
	delete(u.chunks, chunk)
	delete(u.files[c.inode], chunk)
	if len(u.files[c.inode]) == 0 {
		delete(u.files, c.inode)
	}
}

// unsyncedOf returns the chunks of a file that may hold data which is not on stable storage, in no order.
func (f *fleet) unsyncedOf(inode dfs.InodeID) []dfs.ChunkID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.unsynced.files[inode]))
}

// forgetLeases drops what is known of the leases of a chunk that is gone.
func (f *fleet) forgetLeases(chunk dfs.ChunkID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leases.Revoke(chunk)
	f.forgetLeaseLocked(chunk)
	f.unsynced.remove(chunk)
}

// grantLease gives the write lease on a chunk of a file.
func (f *fleet) grantLease(chunk dfs.ChunkID, inode dfs.InodeID, version dfs.Version, primary dfs.ServerID) (lease.Lease, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, err := f.leases.Grant(chunk, version, primary, time.Now())
	if err != nil {
		return l, err
	}
	f.fileOf[chunk] = inode
	if f.byFile[inode] == nil {
		f.byFile[inode] = map[dfs.ChunkID]struct{}{}
	}
	f.byFile[inode][chunk] = struct{}{}
	f.unsynced.add(chunk, inode, primary)
	return l, nil
}

// renewLeases renews and releases what a heartbeat says. It returns the chunks whose leases are not known: a leader before this one granted them, or they have run out.
func (f *fleet) renewLeases(id dfs.ServerID, renew, release []uint64) (unknown []dfs.ChunkID) {
	if len(renew) == 0 && len(release) == 0 {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for _, c := range renew {
		if _, err := f.leases.Renew(dfs.ChunkID(c), id, now); err != nil {
			unknown = append(unknown, dfs.ChunkID(c))
		}
	}
	for _, c := range release {
		if f.leases.Release(dfs.ChunkID(c), id) {
			f.forgetLeaseLocked(dfs.ChunkID(c))
		}
		if f.unsynced.chunks[dfs.ChunkID(c)].primary == id {
			f.unsynced.remove(dfs.ChunkID(c))
		}
	}
	return unknown
}

// revokeLease forgets any lease on the chunk.
func (f *fleet) revokeLease(chunk dfs.ChunkID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leases.Revoke(chunk)
	f.forgetLeaseLocked(chunk)
}

func (f *fleet) forgetLeaseLocked(chunk dfs.ChunkID) {
	inode, ok := f.fileOf[chunk]
	if !ok {
		return
	}
	delete(f.fileOf, chunk)
	delete(f.byFile[inode], chunk)
	if len(f.byFile[inode]) == 0 {
		delete(f.byFile, inode)
	}
}

// mayOrder reports whether a chunk has a primary that can take mutations without asking for a lease first: one with a lease, or, early in a reign, one that the leader
// before this one gave a serving lease to.
func (f *fleet) mayOrder(chunk dfs.ChunkID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	_, ok := f.leases.Holder(chunk, now)
	return ok || now.Before(f.state.ReadFenceAt(0, now))
}

// leasesOf returns the live leases on chunks of a file.
func (f *fleet) leasesOf(inode dfs.InodeID) []lease.Lease {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	var list []lease.Lease
	for c := range f.byFile[inode] {
		if l, ok := f.leases.Holder(c, now); ok {
			list = append(list, l)
		}
	}
	return list
}
