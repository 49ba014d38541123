package store

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

// Store is all replicas of one chunkserver. Safe for concurrent use.
type Store struct {
	opts    Options
	logger  hclog.Logger
	cluster dfs.ClusterID
	server  dfs.ServerID
	disks   []*disk

	// background runs compactions until stop; wg counts them.
	background context.Context
	stop       context.CancelFunc
	wg         sync.WaitGroup

	mu sync.Mutex // leaf: nothing else is locked and no I/O is done while it is held
	// The fields below are guarded by mu.
	replicas   map[dfs.ChunkID]*Replica
	copying    map[dfs.ChunkID]bool // Receivers of whole logs
	open       []*Replica           // those with an open log
	hand       int                  // of the clock that chooses whom to close
	toCompact  []*Replica
	compacting bool
	closed     bool
}

// Open opens the disks: it takes their locks, checks their identities against one another and the options, and
// lists the replicas without reading them. A disk that cannot be read is condemned and left out as long as
// another can. The caller owns the FSs and keeps them open until Close returns.
//
// It refuses, naming the directory and the way out: a disk in use (ErrInUse), not formatted (ErrNotExist), of
// another cluster (ErrWrongCluster) or server (ErrServerConflict), of a newer format (ErrFormat), with a
// damaged identity (ErrCorrupt), or not writable (ErrPermission).
func Open(ctx context.Context, disks []Disk, opts Options) (*Store, error) {
	if len(disks) == 0 {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "no disks are configured: name at least one directory")
	}
	if opts.MaxOpen <= 0 {
		opts.MaxOpen = DefaultMaxOpen
	}
	if opts.CompactMin <= 0 {
		opts.CompactMin = DefaultCompactMin
	}
	if opts.Nonce == nil {
		opts.Nonce = randomNonce
	}
	if opts.Logger == nil {
		opts.Logger = hclog.NewNullLogger()
	}
	s := &Store{
		opts: opts, logger: opts.Logger, cluster: opts.Cluster, server: opts.Server,
		replicas: map[dfs.ChunkID]*Replica{}, copying: map[dfs.ChunkID]bool{},
	}
	s.background, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	var broken error
	for _, d := range disks {
		if err := s.openDisk(ctx, d); errors.Is(err, dfserr.ErrDiskFailed) {
			s.logger.Error("disk cannot be used", "disk", d.Name, "error", err)
			broken = err
		} else if err != nil {
			s.Kill()
			return nil, err
		}
	}
	if len(s.disks) == 0 {
		s.Kill()
		return nil, broken
	}
	return s, nil
}

// randomNonce draws the mark of a new log file.
func randomNonce() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return binary.LittleEndian.Uint64(b[:])
}

// openDisk adds one disk. Errors that wrap ErrDiskFailed are about the hardware.
func (s *Store) openDisk(ctx context.Context, cfg Disk) error {
	id, err := ReadIdentity(cfg)
	if err != nil {
		return err
	}
	unlock, err := lockDisk(cfg)
	if err != nil {
		return err
	}
	d := &disk{Disk: cfg, id: id.Disk, reserve: s.opts.Reserve, logger: s.logger, unlock: unlock}
	if d.reserve == 0 {
		capacity, _, err := cfg.FS.Usage()
		if err != nil {
			return errors.Join(dfserr.Errorf(dfserr.ErrDiskFailed, "disk %s: capacity: %v", cfg.Name, err), unlock.Close())
		}
		d.reserve = DefaultReserve(capacity)
	}
	d.reserve = max(0, d.reserve)
	if err := s.admit(ctx, d, id); err != nil {
		return errors.Join(err, unlock.Close())
	}
	s.disks = append(s.disks, d)
	return nil
}

// admit checks a locked disk and lists its replicas.
func (s *Store) admit(ctx context.Context, d *disk, id Identity) error {
	if s.cluster == 0 {
		s.cluster = id.Cluster
	}
	if s.server == 0 {
		s.server = id.Server
	}
	if id.Cluster != s.cluster {
		return dfserr.Errorf(dfserr.ErrWrongCluster, "disk %s belongs to cluster %v, not %v: correct the list of disks, or use an empty directory", d.Name, id.Cluster, s.cluster)
	}
	if id.Server != s.server {
		return dfserr.Errorf(dfserr.ErrServerConflict, "disk %s belongs to chunkserver %v, not %v: correct the list of disks, or use an empty directory", d.Name, id.Server, s.server)
	}
	if err := d.readNote(); err != nil {
		return diskError(d.Disk, "read", err)
	}
	if d.failed() == nil {
		if err := layOut(d.Disk); err != nil {
			return diskError(d.Disk, "lay out", err)
		}
	}
	for i := range 256 {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := fmt.Sprintf("%s/%02x", chunksDir, i)
		entries, err := d.FS.ReadDir(dir)
		if err != nil {
			return diskError(d.Disk, "list", err)
		}
		for _, e := range entries {
			s.addFile(d, dir, e)
		}
	}
	return nil
}

// addFile adds what one file of a chunk directory is to the list, or removes a leftover.
func (s *Store) addFile(d *disk, dir string, e fs.DirEntry) {
	name := e.Name()
	if strings.HasSuffix(name, copySuffix) || strings.HasSuffix(name, compactSuffix) {
		// Of a copy or a compaction that was not finished. If it cannot be removed it does no harm.
		if err := d.FS.Remove(dir + "/" + name); err != nil {
			s.logger.Warn("could not remove an unfinished copy", "disk", d.Name, "file", dir+"/"+name, "error", err)
		}
		return
	}
	id, err := dfs.ParseChunkID(name)
	if err != nil || id == 0 || !e.Type().IsRegular() || chunkDir(id) != dir {
		s.logger.Warn("file is not a replica; left alone", "disk", d.Name, "file", dir+"/"+name)
		return
	}
	if other := s.replicas[id]; other != nil && other.disk.failed() == nil {
		s.logger.Error("chunk has two replicas on this server; the second is left alone", "chunk", id, "disk", other.disk.Name, "second", d.Name)
		return
	}
	r := &Replica{s: s, id: id, disk: d}
	if info, err := e.Info(); err == nil { // else the first use says what is wrong
		r.setBytes(info.Size())
	}
	s.replicas[id] = r
}

// Cluster returns the cluster that the disks belong to.
func (s *Store) Cluster() dfs.ClusterID { return s.cluster }

// Server returns the chunkserver that the disks belong to.
func (s *Store) Server() dfs.ServerID { return s.server }

// Chunks returns the chunks that the store has a replica of, in ascending order: corrupt ones and those on
// condemned disks too, copies that are still arriving not.
func (s *Store) Chunks() []dfs.ChunkID {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]dfs.ChunkID, 0, len(s.replicas))
	for id := range s.replicas {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Usage describes the disks, in the order they were given.
func (s *Store) Usage() []DiskUsage {
	s.mu.Lock()
	count := map[*disk]int{}
	for _, r := range s.replicas {
		count[r.disk]++
	}
	s.mu.Unlock()
	var usage []DiskUsage
	for _, d := range s.disks {
		u := DiskUsage{Name: d.Name, ID: d.id, Replicas: count[d], Used: d.used.Load(), Failed: d.failed()}
		capacity, free, err := d.FS.Usage()
		u.Capacity = capacity
		switch {
		case err != nil && u.Failed == nil:
			u.Failed = dfserr.Errorf(dfserr.ErrDiskFailed, "disk %s: free space: %v", d.Name, err)
		case u.Failed == nil:
			u.Free = max(0, free-d.reserve)
		}
		usage = append(usage, u)
	}
	return usage
}

// Replica returns the replica of a chunk, ErrNotExist when there is none. It does no I/O: the log is opened,
// and recovered, by the first use. The handle stays good until the replica is deleted (then its methods return
// ErrNotExist) and needs no closing.
func (s *Store) Replica(id dfs.ChunkID) (*Replica, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, dfserr.Errorf(dfserr.ErrClosed, "store")
	}
	r := s.replicas[id]
	if r == nil {
		return nil, dfserr.Errorf(dfserr.ErrNotExist, "no replica of chunk %v", id)
	}
	return r, nil
}

// pickDisk returns the healthy disk with the most free space beyond the reserve. ErrNoSpace when none has
// need bytes, ErrDiskFailed when none is healthy.
func (s *Store) pickDisk(need int64) (*disk, error) {
	var best *disk
	var bestFree int64
	var lastErr error
	for _, d := range s.disks {
		if err := d.failed(); err != nil {
			lastErr = err
			continue
		}
		free, err := d.freeBeyond(d.reserve)
		if err != nil {
			lastErr = err
			continue
		}
		if best == nil || free > bestFree {
			best, bestFree = d, free
		}
	}
	if best == nil {
		return nil, lastErr
	}
	if bestFree < need {
		return nil, dfserr.Errorf(dfserr.ErrNoSpace, "no disk has %d bytes free beyond its reserve", need)
	}
	return best, nil
}

// Create makes an empty replica of a chunk, at version created, on the disk with the most free space. It
// exists durably only after its first Sync. ErrExist when there is one, ErrNoSpace, ErrDiskFailed.
func (s *Store) Create(id dfs.ChunkID, created dfs.Version) (*Replica, error) {
	if id == 0 || created == 0 {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "create replica of chunk %v at version %d", id, created)
	}
	d, err := s.pickDisk(recordHeaderSize)
	if err != nil {
		return nil, err
	}
	r := &Replica{s: s, id: id, disk: d, pins: 1}
	r.openMu.Lock()
	defer r.openMu.Unlock()
	s.mu.Lock()
	switch {
	case s.closed:
		err = dfserr.Errorf(dfserr.ErrClosed, "store")
	case s.replicas[id] != nil || s.copying[id]:
		err = dfserr.Errorf(dfserr.ErrExist, "replica of chunk %v", id)
	default:
		s.replicas[id] = r
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	head := fileHeader{cluster: s.cluster, chunk: id, created: created, nonce: s.opts.Nonce()}
	log, err := d.createLog(chunkFile(id), &head, os.O_EXCL)
	if err != nil {
		s.forget(r)
		r.unpin()
		return nil, err
	}
	r.st = newOpenLog(r, log, newIndex(&log.head))
	r.setBytes(fileHeaderSize)
	r.st.dirDirty = true
	listed := s.opened(r)
	r.unpin()
	if !listed {
		err := dfserr.Errorf(dfserr.ErrClosed, "store")
		return nil, errors.Join(err, r.st.shutdown(false, err))
	}
	return r, nil
}

// createLog creates a log file with its header.
func (d *disk) createLog(name string, head *fileHeader, flag int) (*logFile, error) {
	if err := d.failed(); err != nil {
		return nil, err
	}
	f, err := d.FS.OpenFile(name, os.O_RDWR|os.O_CREATE|flag, 0o644)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil, dfserr.Errorf(dfserr.ErrExist, "disk %s: file %s, which the store did not list", d.Name, name)
	case vfs.IsTransient(err):
		return nil, dfserr.Errorf(dfserr.ErrBusy, "disk %s: create %s: %v", d.Name, name, err)
	case err != nil && !isNoSpace(err):
		return nil, d.condemn("create "+name, err)
	case err != nil:
		return nil, dfserr.Errorf(dfserr.ErrNoSpace, "disk %s: create %s", d.Name, name)
	}
	if _, err = f.WriteAt(head.encode(nil), 0); err == nil {
		return newLogFile(f, *head), nil
	}
	err = d.writeFailed("write "+name, err, errors.Join(f.Close(), d.FS.Remove(name)))
	return nil, err
}

// forget takes a replica off the list, so that it does not exist any more.
func (s *Store) forget(r *Replica) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.gone = true
	if s.replicas[r.id] == r {
		delete(s.replicas, r.id)
	}
	s.open = slices.DeleteFunc(s.open, func(o *Replica) bool { return o == r })
	s.toCompact = slices.DeleteFunc(s.toCompact, func(o *Replica) bool { return o == r })
}

// Delete removes the replica of a chunk, durably, unless its version is above maxVersion (ErrStaleVersion).
// ErrNotExist when there is none. Reads under way end as they would have.
func (s *Store) Delete(id dfs.ChunkID, maxVersion dfs.Version) error {
	r, err := s.Replica(id)
	if err != nil {
		return err
	}
	st, err := r.pin()
	if err != nil {
		return err
	}
	defer r.unpin()
	st.appendMu.Lock()
	defer st.appendMu.Unlock()
	d := r.disk
	if err := st.usable(); err != nil {
		return err
	}
	if v := st.x.version; v > maxVersion {
		return dfserr.Errorf(dfserr.ErrStaleVersion, "delete chunk %v: it has version %d, above %d", id, v, maxVersion)
	}
	if err := d.failed(); err != nil {
		return err
	}
	if err := d.FS.Remove(chunkFile(id)); err != nil {
		return d.condemn("remove "+chunkFile(id), err)
	}
	s.forget(r)
	st.shutdownLocked(dfserr.Errorf(dfserr.ErrNotExist, "replica of chunk %v was deleted", id))
	r.setBytes(0)
	if err := d.FS.SyncDir(chunkDir(id)); err != nil {
		return d.condemn("sync directory "+chunkDir(id), err)
	}
	return nil
}

// Close stops compaction, makes every open replica durable, writes index footers, and releases the disks. It
// returns the first failure; everything is closed regardless. Replicas return ErrClosed from then on.
func (s *Store) Close() error { return s.close(true) }

// Kill closes the store without writing anything, as if the process had died. It is for tests and for
// processes that must stop at once.
func (s *Store) Kill() {
	if err := s.close(false); err != nil {
		s.logger.Warn("closing after a kill", "error", err)
	}
}

func (s *Store) close(clean bool) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.toCompact = nil
	open := s.open
	s.open = nil
	s.mu.Unlock()
	s.stop()
	s.wg.Wait()
	var errs []error
	for _, r := range open {
		r.openMu.Lock()
		if r.st != nil {
			errs = append(errs, r.st.shutdown(clean, dfserr.Errorf(dfserr.ErrClosed, "store")))
			r.st = nil
		}
		r.openMu.Unlock()
	}
	for _, d := range s.disks {
		errs = append(errs, d.unlock.Close())
	}
	return errors.Join(errs...)
}
