package master

import (
	"time"

	"dfs/internal/dfs"
	"dfs/master/lease"
)

// The fleet's write leases.

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
	return l, nil
}

// renewLeases renews and releases what a heartbeat says.
func (f *fleet) renewLeases(id dfs.ServerID, renew, release []uint64) {
	if len(renew) == 0 && len(release) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for _, c := range renew {
		// A lease that is no longer the server's is not renewed; it finds out when it uses the old version.
		_, _ = f.leases.Renew(dfs.ChunkID(c), id, now)
	}
	for _, c := range release {
		if f.leases.Release(dfs.ChunkID(c), id) {
			f.forgetLeaseLocked(dfs.ChunkID(c))
		}
	}
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
