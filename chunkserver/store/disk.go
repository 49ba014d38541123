package store

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

// disk is one disk of an open Store.
type disk struct {
	Disk
	id      uint64
	reserve int64
	logger  hclog.Logger
	unlock  vfs.Unlocker

	// failure condemns the disk: once set it stays. Writes are refused, reads still tried.
	failure atomic.Pointer[error]

	// used is the bytes of the replicas' logs, kept up as they change (Replica.setBytes).
	used atomic.Int64

	mu     sync.Mutex
	credit int64 // bytes that may be written before asking the file system again; guarded by mu
}

// spaceStep is how many bytes are written between two looks at the free space.
const spaceStep = 16 * dfs.MiB

// failed returns why the disk is condemned, nil when it is not.
func (d *disk) failed() error {
	if p := d.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// condemn records the first failed write or sync. A second try might succeed without the data being on the
// disk (fsync marks pages clean when it fails), so there is none.
func (d *disk) condemn(what string, cause error) error {
	err := dfserr.Errorf(dfserr.ErrDiskFailed, "disk %s: %s: %v", d.Name, what, cause)
	if !d.failure.CompareAndSwap(nil, &err) {
		return d.failed()
	}
	d.logger.Error("disk condemned: no more writes until it is re-admitted", "disk", d.Name, "operation", what, "error", cause)
	// The note keeps the disk condemned after a restart. If it cannot be written either, the next failure will
	// condemn the disk again.
	if noteErr := vfs.WriteFile(d.FS, failedFile, fmt.Appendf(nil, "%v\n", err), 0o644); noteErr != nil {
		d.logger.Warn("could not note on the disk that it is condemned", "disk", d.Name, "error", noteErr)
	}
	return err
}

// readNote condemns the disk when an earlier process noted that it is.
func (d *disk) readNote() error {
	note, err := vfs.ReadFile(d.FS, failedFile, 64*dfs.KiB)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil && !errors.Is(err, vfs.ErrTooLong) {
		return err
	}
	failure := dfserr.Errorf(dfserr.ErrDiskFailed, "disk %s was condemned earlier (%.200q); re-admit it once it is repaired", d.Name, note)
	d.failure.Store(&failure)
	d.logger.Warn("disk is still condemned; it is read-only", "disk", d.Name, "reason", string(note))
	return nil
}

// spend asks for n bytes of space for new data. ErrNoSpace when that would use the reserve.
func (d *disk) spend(n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.credit < n {
		free, err := d.freeBeyond(d.reserve)
		if err != nil {
			return err
		}
		if free < n {
			return dfserr.Errorf(dfserr.ErrNoSpace, "disk %s has %d bytes free beyond its reserve, %d are needed", d.Name, max(0, free), n)
		}
		d.credit = min(free, spaceStep+n)
	}
	d.credit -= n
	return nil
}

// freeBeyond returns the free bytes beyond a reserve, negative when the reserve is in use.
func (d *disk) freeBeyond(reserve int64) (int64, error) {
	_, free, err := d.FS.Usage()
	if err != nil {
		return 0, dfserr.Errorf(dfserr.ErrDiskFailed, "disk %s: free space: %v", d.Name, err)
	}
	return free - reserve, nil
}

// chunkDir and chunkFile name a replica's directory and its log.
func chunkDir(id dfs.ChunkID) string { return fmt.Sprintf("%s/%02x", chunksDir, uint8(id)) }

func chunkFile(id dfs.ChunkID) string { return chunkDir(id) + "/" + id.String() }

// Suffixes of logs that are being written, next to those they will replace.
const (
	copySuffix    = ".copy"
	compactSuffix = ".compact"
)
