package kv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"dfs/internal/dfserr"
)

// SpaceOptions configures a Space. The zero value is usable.
type SpaceOptions struct {
	// MinFree is the free space, in bytes, below which proposals are refused. They are accepted again at 1.25 times as much. 0 means 512 MiB.
	MinFree int64
	// Ballast is the size in bytes of a file that only takes up room, so that an operator who deletes it has some to work with on a full disk. 0 means 64 MiB, negative means none.
	Ballast int64
	// Refresh is how long one look at the disk counts. 0 means 200 ms.
	Refresh time.Duration
	// Usage returns the capacity and the free space in bytes. nil asks the disk of the directory.
	Usage func() (capacity, free int64, err error)
}

// ballastFile is the name of the ballast in the watched directory.
const ballastFile = "BALLAST-delete-when-the-disk-is-full"

// Space watches the free space of a directory's disk. Badger writes through memory maps, and a store to a map on a full disk ends the process with SIGBUS, where apply
// cannot refuse; so the path that proposes asks Check first. Safe for concurrent use; no goroutine, no lock on the way of a fresh answer.
type Space struct {
	dir    string
	opts   SpaceOptions
	start  time.Time
	nextAt atomic.Int64          // nanoseconds since start at which the answer is stale
	full   atomic.Pointer[error] // why nothing may grow
	out    atomic.Pointer[error] // why nothing may change

	mu sync.Mutex // held while the disk is asked: who needs a fresh answer waits for it
}

// NewSpace starts watching the disk of dir and puts the ballast there.
func NewSpace(dir string, opts SpaceOptions) (*Space, error) {
	if opts.MinFree <= 0 {
		opts.MinFree = 512 << 20
	}
	if opts.Ballast == 0 {
		opts.Ballast = 64 << 20
	}
	if opts.Refresh <= 0 {
		opts.Refresh = 200 * time.Millisecond
	}
	if opts.Usage == nil {
		opts.Usage = func() (int64, int64, error) { return diskUsage(dir) }
	}
	s := &Space{dir: dir, opts: opts, start: time.Now()}
	if err := s.placeBallast(); err != nil {
		return nil, err
	}
	s.look(true)
	return s, nil
}

// placeBallast makes the ballast file when it is missing and there is plenty of room for it; otherwise it may have been deleted on purpose.
func (s *Space) placeBallast() error {
	path := filepath.Join(s.dir, ballastFile)
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) || s.opts.Ballast < 0 {
		return nil
	}
	_, free, err := s.opts.Usage()
	if err != nil {
		return fmt.Errorf("disk usage of %s: %w", s.dir, err)
	}
	if free < s.opts.Ballast+2*s.opts.MinFree {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("ballast: %w", err)
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, s.opts.Ballast)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("ballast %s: %w", path, errors.Join(err, os.Remove(path)))
	}
	return nil
}

// DropBallast removes the ballast if there is no room for any change, so that what is in memory finds room when the store is closed. A later
// NewSpace puts it back. It reports whether there was one to remove.
func (s *Space) DropBallast() (dropped bool, err error) {
	if s.CheckAny() == nil {
		return false, nil
	}
	err = os.Remove(filepath.Join(s.dir, ballastFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// floorShare is the part of MinFree below which not even deletions are taken: they are written down, too, and what is in memory
// must still find room on the disk.
const floorShare = 8

// Check returns nil when there is room for more metadata, else an error that wraps ErrNoSpace, or ErrDiskFailed when the disk cannot be asked. It costs a
// few nanoseconds, and a statfs once per Refresh.
func (s *Space) Check() error {
	if s.stale() {
		s.look(false)
	}
	return loadError(&s.full)
}

// CheckAny is Check for any change at all, also those that do not make the metadata grow: they are taken down to an eighth of MinFree.
// It asks the disk every time.
func (s *Space) CheckAny() error {
	s.look(true)
	return loadError(&s.out)
}

func loadError(why *atomic.Pointer[error]) error {
	if p := why.Load(); p != nil {
		return *p
	}
	return nil
}

func (s *Space) stale() bool { return int64(time.Since(s.start)) >= s.nextAt.Load() }

// look asks the disk; without always only if nobody has while it waited for its turn.
func (s *Space) look(always bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !always && !s.stale() {
		return
	}
	defer func() { s.nextAt.Store(int64(time.Since(s.start) + s.opts.Refresh)) }()
	_, free, err := s.opts.Usage()
	if err != nil {
		err = dfserr.Errorf(dfserr.ErrDiskFailed, "disk usage of %s: %v", s.dir, err)
		s.full.Store(&err)
		s.out.Store(&err)
		return
	}
	s.out.Store(nil)
	if floor := s.opts.MinFree / floorShare; free < floor {
		err := dfserr.Errorf(dfserr.ErrNoSpace, "disk of %s has %d MiB free, any change needs %d (delete %s)", s.dir, free>>20, floor>>20, filepath.Join(s.dir, ballastFile))
		s.out.Store(&err)
	}
	need := s.opts.MinFree
	if s.full.Load() != nil {
		need += need / 4
	}
	if free >= need {
		s.full.Store(nil)
		return
	}
	err = dfserr.Errorf(dfserr.ErrNoSpace, "disk of %s has %d MiB free, metadata needs %d", s.dir, free>>20, need>>20)
	s.full.Store(&err)
}

// diskUsage returns the capacity and the free space of dir's disk.
func diskUsage(dir string) (capacity, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}
