package fusefs

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"bazil.org/fuse"
)

// opKind numbers the kinds of requests, for counting them.
type opKind int

const (
	opLookup opKind = iota
	opGetattr
	opSetattr
	opReadlink
	opMkdir
	opMknod
	opSymlink
	opLink
	opUnlink
	opRmdir
	opRename
	opOpen
	opOpendir
	opCreate
	opRead
	opReaddir
	opWrite
	opFlush
	opFsync
	opRelease
	opFallocate
	opStatfs
	opGetxattr
	opListxattr
	opSetxattr
	opRemovexattr
	opLock
	opLockWait
	opUnlock
	opGetlock
	opOther
	opKinds
)

var opNames = [opKinds]string{
	"lookup", "getattr", "setattr", "readlink", "mkdir", "mknod", "symlink", "link", "unlink", "rmdir", "rename", "open", "opendir",
	"create", "read", "readdir", "write", "flush", "fsync", "release", "fallocate", "statfs", "getxattr", "listxattr", "setxattr", "removexattr",
	"lock", "lockwait", "unlock", "getlock", "other",
}

// kindOf classifies a request.
func kindOf(r fuse.Request) opKind {
	either := func(second bool, a, b opKind) opKind {
		if second {
			return b
		}
		return a
	}
	switch r := r.(type) {
	case *fuse.LookupRequest:
		return opLookup
	case *fuse.GetattrRequest:
		return opGetattr
	case *fuse.SetattrRequest:
		return opSetattr
	case *fuse.ReadlinkRequest:
		return opReadlink
	case *fuse.MkdirRequest:
		return opMkdir
	case *fuse.MknodRequest:
		return opMknod
	case *fuse.SymlinkRequest:
		return opSymlink
	case *fuse.LinkRequest:
		return opLink
	case *fuse.RemoveRequest:
		return either(r.Dir, opUnlink, opRmdir)
	case *fuse.RenameRequest:
		return opRename
	case *fuse.OpenRequest:
		return either(r.Dir, opOpen, opOpendir)
	case *fuse.CreateRequest:
		return opCreate
	case *fuse.ReadRequest:
		return either(r.Dir, opRead, opReaddir)
	case *fuse.WriteRequest:
		return opWrite
	case *fuse.FlushRequest:
		return opFlush
	case *fuse.FsyncRequest:
		return opFsync
	case *fuse.ReleaseRequest:
		return opRelease
	case *fuse.FAllocateRequest:
		return opFallocate
	case *fuse.StatfsRequest:
		return opStatfs
	case *fuse.GetxattrRequest:
		return opGetxattr
	case *fuse.ListxattrRequest:
		return opListxattr
	case *fuse.SetxattrRequest:
		return opSetxattr
	case *fuse.RemovexattrRequest:
		return opRemovexattr
	case *fuse.LockRequest:
		return opLock
	case *fuse.LockWaitRequest:
		return opLockWait
	case *fuse.UnlockRequest:
		return opUnlock
	case *fuse.QueryLockRequest:
		return opGetlock
	}
	return opOther
}

// stats counts what the mount has done since it began.
type stats struct {
	begun time.Time
	ops   [opKinds]struct {
		done, failed, ns atomic.Int64
	}
	readBytes, writtenBytes atomic.Int64
}

// count notes one request that took d.
func (s *stats) count(kind opKind, d time.Duration, err error) {
	op := &s.ops[kind]
	op.done.Add(1)
	op.ns.Add(int64(d))
	if err != nil {
		op.failed.Add(1)
	}
}

// text is the content of /.dfs/stats: Prometheus' text format. openFiles and openDirs are handles.
func (s *stats) text(openFiles, openDirs, inFlight int) string {
	var b strings.Builder
	metric := func(name, kind, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	one := func(name, kind, help string, value any) {
		metric(name, kind, help)
		fmt.Fprintf(&b, "%s %v\n", name, value)
	}
	perOp := func(name, help string, value func(opKind) any) {
		metric(name, "counter", help)
		for kind := range opKinds {
			if s.ops[kind].done.Load() > 0 {
				fmt.Fprintf(&b, "%s{op=%q} %v\n", name, opNames[kind], value(kind))
			}
		}
	}
	perOp("dfs_fuse_ops_total", "Requests of the kernel that were answered.", func(k opKind) any { return s.ops[k].done.Load() })
	perOp("dfs_fuse_op_errors_total", "Requests that were answered with an error.", func(k opKind) any { return s.ops[k].failed.Load() })
	perOp("dfs_fuse_op_seconds_total", "Time until the answers, together.", func(k opKind) any { return time.Duration(s.ops[k].ns.Load()).Seconds() })
	one("dfs_fuse_read_bytes_total", "counter", "Bytes read from files.", s.readBytes.Load())
	one("dfs_fuse_written_bytes_total", "counter", "Bytes written to files.", s.writtenBytes.Load())
	one("dfs_fuse_requests_in_flight", "gauge", "Requests being answered.", inFlight)
	one("dfs_fuse_open_files", "gauge", "Open files.", openFiles)
	one("dfs_fuse_open_directories", "gauge", "Open directories.", openDirs)
	one("dfs_fuse_uptime_seconds", "gauge", "Time since mounting.", time.Since(s.begun).Seconds())
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	one("go_goroutines", "gauge", "Goroutines of the mount's process.", runtime.NumGoroutine())
	one("go_memstats_heap_inuse_bytes", "gauge", "Heap in use.", m.HeapInuse)
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		one("process_open_fds", "gauge", "Open file descriptors of the mount's process.", len(fds))
	}
	return b.String()
}
