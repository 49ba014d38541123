// Package fusefs mounts a dfs cluster: it turns the kernel's FUSE requests into calls of a Backend.
//
// It runs its own loop over bazil.org/fuse's Conn instead of bazil's fs package (docs/adr/0006-fuse-loop.md): a node's id
// is its inode number, directories stream, and replies that carry attributes are written straight to /dev/fuse, because bazil's Attr drops
// the sticky bit. The package keeps no copy of the tree; every answer comes from the Backend, which
// may have it in memory.
//
// Goroutines: Serve runs a few readers; a request that may wait for the network gets a goroutine, of which at most
// maxInFlight work at a time. Serve returns when the mount is gone and all have ended. Lock order: Server.mu is a leaf;
// dirHandle.mu is held over Backend calls and nothing else.
//
// Failure model: a Backend error becomes an errno and leaves no state behind. A signal interrupts a request only when it
// ends the process (dying): programs do not expect EINTR from a file, and Go's send themselves signals all the time. Waiting for a lock is the exception: any
// signal ends it.
//
// Page cache: the kernel drops a file's pages when it sees a new mtime or length. It asks before every read through a handle, and
// is then told an mtime that differs from the last one told exactly when the bytes may have changed by others (pages.go).
package fusefs

import (
	"context"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"bazil.org/fuse"
	"github.com/hashicorp/go-hclog"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// maxInFlight bounds the requests handled at once.
const maxInFlight = 512

// blksize is st_blksize: what programs should read and write at a time, in bytes.
const blksize = 128 * dfs.KiB

// Server answers the kernel for one mount.
type Server struct {
	backend   Backend
	conn      *fuse.Conn
	fd        int // our own duplicate of /dev/fuse
	log       hclog.Logger
	attrValid time.Duration
	root      dfs.InodeID
	show      Show
	slots     chan struct{}
	pages     *pages
	walked    *walked
	stats     *stats
	access    *accessLog
	config    string // what /.dfs/config holds
	owners    *lockOwners
	wg        sync.WaitGroup

	mu         sync.Mutex
	nextHandle uint64                        // guarded by mu
	files      map[fuse.HandleID]*fileHandle // guarded by mu
	dirs       map[fuse.HandleID]*dirHandle  // guarded by mu
	running    map[fuse.RequestID]running    // guarded by mu
}

// running is a request being handled.
type running struct {
	cancel context.CancelFunc
	pid    uint32
	waits  bool // for a lock: any signal ends it
}

// fileHandle is an open file. Errors of writes are sticky in the backend's File.
type fileHandle struct {
	file   File
	inode  dfs.InodeID
	append bool
	direct bool // O_DIRECT: the kernel does not ask for attributes before it reads

	flocked atomic.Bool // flock(2) was used
}

// newServer serves an established connection.
func newServer(conn *fuse.Conn, fd int, backend Backend, dir string, opts Options) *Server {
	return &Server{
		backend: backend, conn: conn, fd: fd, log: opts.Logger, attrValid: opts.AttrTimeout, root: opts.Root, show: opts.Show,
		slots: make(chan struct{}, maxInFlight), pages: newPages(), walked: newWalked(), owners: newLockOwners(),
		files: map[fuse.HandleID]*fileHandle{}, dirs: map[fuse.HandleID]*dirHandle{},
		running: map[fuse.RequestID]running{},
		stats:   &stats{begun: time.Now()}, access: newAccessLog(), config: configText(dir, &opts),
	}
}

// Serve answers requests until the file system is unmounted, and then closes every handle that is left. Its
// error says why serving ended otherwise.
func (s *Server) Serve(ctx context.Context) error {
	readers := min(4, runtime.GOMAXPROCS(0))
	errs := make(chan error, readers)
	for range readers {
		go func() { errs <- s.read(ctx) }()
	}
	var first error
	for range readers {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	s.access.close()
	s.wg.Wait()
	s.closeAll(context.WithoutCancel(ctx))
	return first
}

// read takes requests off the connection until it ends.
func (s *Server) read(ctx context.Context) error {
	for {
		r, err := s.conn.ReadRequest()
		switch {
		case err == nil:
			s.dispatch(ctx, r)
		case err == io.EOF:
			return nil
		case readAgain(err):
		default:
			return dfserr.Errorf(dfserr.ErrUnavailable, "reading from /dev/fuse: %v", err)
		}
	}
}

// dispatch answers at once what needs no waiting and gives the rest a goroutine.
func (s *Server) dispatch(ctx context.Context, r fuse.Request) {
	switch r := r.(type) {
	case *fuse.ForgetRequest:
		r.Respond()
		return
	case *fuse.BatchForgetRequest:
		r.Respond()
		return
	case *fuse.InterruptRequest:
		s.mu.Lock()
		op, ok := s.running[r.IntrID]
		s.mu.Unlock()
		switch {
		case !ok:
			r.RespondError(askAgain) // another reader may be about to start it
			return
		case op.waits || dying(op.pid):
			op.cancel()
		}
		r.Respond()
		return
	case *fuse.DestroyRequest:
		r.Respond()
		return
	}
	s.walked.seen(r)
	opCtx, done := s.requestContext(ctx, r)
	if r, ok := r.(*fuse.ReleaseRequest); ok && !r.Dir {
		if h, err := s.file(r.Handle); err == nil {
			done = s.owners.begin(h.inode) // now, while requests are in their order
		}
	}
	givenUp := opCtx.Done()
	switch r.(type) {
	case *fuse.LockRequest, *fuse.LockWaitRequest, *fuse.QueryLockRequest:
		// They take no slot: if all were taken by those who wait, nobody could unlock.
		s.wg.Go(func() {
			defer done()
			s.answer(opCtx, r)
		})
		return
	case *fuse.FlushRequest:
		givenUp = nil // also a process that is dying gives up its locks
	}
	s.wg.Go(func() {
		defer done()
		// Waiting here, not in the reader: interrupts must still come through when every slot is taken.
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
		case <-givenUp:
			r.RespondError(interrupted)
			return
		}
		s.answer(opCtx, r)
	})
}

// answer handles a request and notes how that went.
func (s *Server) answer(ctx context.Context, r fuse.Request) {
	begun, kind := time.Now(), kindOf(r)
	header, what, logged := *r.Hdr(), "", s.access.wanted()
	if logged {
		what = describe(kind, r) // before the reply, which gives the request's buffer away
	}
	ok, err := s.virtual(ctx, r)
	if !ok {
		err = s.handle(ctx, r)
	}
	if err != nil {
		r.RespondError(errno(err))
	}
	took := time.Since(begun)
	s.stats.count(kind, took, err)
	if logged && !ok { // readers of the log do not read of themselves
		s.access.add(accessLine(begun, &header, what, err, took))
	}
}

// requestContext ends when the process that asked is killed, except for a release: nobody waits for it, and it must
// happen.
func (s *Server) requestContext(ctx context.Context, r fuse.Request) (context.Context, func()) {
	if _, ok := r.(*fuse.ReleaseRequest); ok {
		return context.WithoutCancel(ctx), func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	h := r.Hdr()
	id := h.ID
	_, waits := r.(*fuse.LockWaitRequest)
	s.mu.Lock()
	s.running[id] = running{cancel, h.Pid, waits}
	s.mu.Unlock()
	return ctx, func() {
		s.mu.Lock()
		delete(s.running, id)
		s.mu.Unlock()
		cancel()
	}
}

// errno is the error bazil sends: the table's number, whatever wraps it.
func errno(err error) error { return dfserr.Errno(err) }

// handle answers one request, or returns why it cannot.
func (s *Server) handle(ctx context.Context, r fuse.Request) error {
	switch r := r.(type) {
	case *fuse.LookupRequest:
		return s.lookup(ctx, r)
	case *fuse.GetattrRequest:
		return s.getattr(ctx, r)
	case *fuse.SetattrRequest:
		return s.setattr(ctx, r)
	case *fuse.ReadlinkRequest:
		return s.readlink(ctx, r)
	case *fuse.MkdirRequest:
		return s.makeNode(ctx, &r.Header, r.Name, NewNode{Mode: syscall.S_IFDIR | permBits(r.Mode)&^uint32(r.Umask.Perm())})
	case *fuse.MknodRequest:
		return s.makeNode(ctx, &r.Header, r.Name, NewNode{Mode: typeBits(r.Mode) | permBits(r.Mode)&^uint32(r.Umask.Perm()), Rdev: r.Rdev})
	case *fuse.SymlinkRequest:
		return s.makeNode(ctx, &r.Header, r.NewName, NewNode{Mode: syscall.S_IFLNK | 0o777, Target: []byte(r.Target)})
	case *fuse.LinkRequest:
		return s.link(ctx, r)
	case *fuse.RemoveRequest:
		if err := s.backend.Remove(ctx, s.caller(&r.Header), s.inodeOf(r.Node), []byte(r.Name), r.Dir); err != nil {
			return err
		}
		r.Respond()
		return nil
	case *fuse.RenameRequest:
		if err := s.backend.Rename(ctx, s.caller(&r.Header), s.inodeOf(r.Node), []byte(r.OldName), s.inodeOf(r.NewDir), []byte(r.NewName)); err != nil {
			return err
		}
		r.Respond()
		return nil
	case *fuse.OpenRequest:
		return s.open(ctx, r)
	case *fuse.CreateRequest:
		return s.create(ctx, r)
	case *fuse.ReadRequest:
		if r.Dir {
			return s.readDir(ctx, r)
		}
		return s.readFile(ctx, r)
	case *fuse.WriteRequest:
		return s.writeFile(ctx, r)
	case *fuse.FlushRequest:
		return s.flush(ctx, r)
	case *fuse.FsyncRequest:
		return s.fsync(ctx, r)
	case *fuse.ReleaseRequest:
		return s.release(ctx, r)
	case *fuse.FAllocateRequest:
		return s.fallocate(ctx, r)
	case *fuse.LockRequest:
		return s.setLock(ctx, r, false)
	case *fuse.LockWaitRequest:
		return s.setLock(ctx, (*fuse.LockRequest)(r), true)
	case *fuse.UnlockRequest:
		return s.unlock(ctx, (*fuse.LockRequest)(r))
	case *fuse.QueryLockRequest:
		return s.queryLock(ctx, r)
	case *fuse.StatfsRequest:
		return s.statfs(ctx, r)
	case *fuse.GetxattrRequest:
		return s.getxattr(ctx, r)
	case *fuse.ListxattrRequest:
		return s.listxattr(ctx, r)
	case *fuse.SetxattrRequest:
		return s.setxattr(ctx, r)
	case *fuse.RemovexattrRequest:
		if err := s.backend.RemoveXattr(ctx, s.caller(&r.Header), s.inodeOf(r.Node), r.Name); err != nil {
			return err
		}
		r.Respond()
		return nil
	}
	r.RespondError(leftToKernel)
	return nil
}

// inodeOf maps the mount's root, which the kernel knows as 1, to the directory that is mounted.
func (s *Server) inodeOf(n fuse.NodeID) dfs.InodeID {
	if n == fuse.RootID {
		return s.root
	}
	return dfs.InodeID(n)
}

// caller identifies the process behind a request, with its supplementary groups.
func (s *Server) caller(h *fuse.Header) Caller {
	return Caller{UID: h.Uid, GID: h.Gid, Groups: groupsOf(h.Pid, h.Uid)}
}

// permBits is the 07777 part of a mode.
func permBits(m os.FileMode) uint32 {
	p := uint32(m.Perm())
	if m&os.ModeSetuid != 0 {
		p |= syscall.S_ISUID
	}
	if m&os.ModeSetgid != 0 {
		p |= syscall.S_ISGID
	}
	if m&os.ModeSticky != 0 {
		p |= syscall.S_ISVTX
	}
	return p
}

// typeBits is the S_IFMT part of a mode.
func typeBits(m os.FileMode) uint32 {
	switch {
	case m&os.ModeNamedPipe != 0:
		return syscall.S_IFIFO
	case m&os.ModeSocket != 0:
		return syscall.S_IFSOCK
	case m&os.ModeCharDevice != 0:
		return syscall.S_IFCHR
	case m&os.ModeDevice != 0:
		return syscall.S_IFBLK
	}
	return syscall.S_IFREG
}
