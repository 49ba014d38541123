package fusefs

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"bazil.org/fuse"
)

// accessLogLines is how many lines a reader of the access log may be behind before it loses the oldest.
const accessLogLines = 10_000

// accessLog hands a line per request to everyone who has it open. While nobody has, it costs a load of an integer.
type accessLog struct {
	count atomic.Int32 // of readers

	mu      sync.Mutex
	readers map[*accessReader]struct{} // guarded by mu
	closed  bool                       // guarded by mu
}

// accessReader is one open handle of /.dfs/accesslog.
type accessReader struct {
	noWrites
	log *accessLog

	mu    sync.Mutex
	lines []string      // guarded by mu; at most accessLogLines
	lost  int64         // guarded by mu: lines dropped since the last read
	rest  string        // guarded by mu: of a line that did not fit into a read
	ended bool          // guarded by mu
	more  chan struct{} // has room for one: there may be lines, or the end
}

func newAccessLog() *accessLog { return &accessLog{readers: map[*accessReader]struct{}{}} }

func (l *accessLog) wanted() bool { return l.count.Load() > 0 }

func (l *accessLog) open() *accessReader {
	r := &accessReader{log: l, more: make(chan struct{}, 1)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.ended = l.closed; r.ended {
		return r
	}
	l.readers[r] = struct{}{}
	l.count.Add(1)
	return r
}

// add gives a line to every reader.
func (l *accessLog) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r := range l.readers {
		r.add(line)
	}
}

// close makes every reader meet the end of the file, so that they do not keep the mount busy.
func (l *accessLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for r := range l.readers {
		r.mu.Lock()
		r.ended = true
		r.mu.Unlock()
		r.wake()
	}
}

func (r *accessReader) add(line string) {
	r.mu.Lock()
	if len(r.lines) >= accessLogLines {
		r.lines = r.lines[1:]
		r.lost++
	}
	r.lines = append(r.lines, line)
	r.mu.Unlock()
	r.wake()
}

func (r *accessReader) wake() {
	select {
	case r.more <- struct{}{}:
	default:
	}
}

// ReadAt returns the next bytes of the log wherever off is, and waits when there are none. A reader that was too slow is told how
// many lines it has lost.
func (r *accessReader) ReadAt(ctx context.Context, p []byte, _ int64) (int, error) {
	for {
		if n, ended := r.take(p); n > 0 || ended {
			return n, nil
		}
		select {
		case <-r.more:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// take fills p with what there is.
func (r *accessReader) take(p []byte) (n int, ended bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n < len(p) {
		if r.rest == "" && r.lost > 0 {
			r.rest = fmt.Sprintf("# %d lines lost: the reader is too slow\n", r.lost)
			r.lost = 0
		}
		if r.rest == "" && len(r.lines) > 0 {
			r.rest, r.lines = r.lines[0], r.lines[1:]
		}
		if r.rest == "" {
			break
		}
		m := copy(p[n:], r.rest)
		r.rest = r.rest[m:]
		n += m
	}
	return n, r.ended
}

func (r *accessReader) Close(context.Context) error {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	if _, ok := r.log.readers[r]; ok {
		delete(r.log.readers, r)
		r.log.count.Add(-1)
	}
	return nil
}

// accessLine is what the log says of a request: when it came, who asked, what, how it ended and how long it took.
func accessLine(begun time.Time, h *fuse.Header, what string, err error, took time.Duration) string {
	result := "ok"
	if err != nil {
		result = errno(err).Error()
	}
	return fmt.Sprintf("%s uid=%d gid=%d pid=%d %s: %s <%.6f>\n", begun.UTC().Format("2006-01-02T15:04:05.000000Z"), h.Uid, h.Gid, h.Pid, what, result, took.Seconds())
}

// describe says what a request asks, in the names of the system's calls; files are inode numbers.
func describe(kind opKind, r fuse.Request) string {
	name, node := opNames[kind], uint64(r.Hdr().Node)
	switch r := r.(type) {
	case *fuse.LookupRequest:
		return fmt.Sprintf("%s (%d, %q)", name, node, r.Name)
	case *fuse.SetattrRequest:
		return fmt.Sprintf("%s (%d, %v)", name, node, r.Valid)
	case *fuse.MkdirRequest:
		return fmt.Sprintf("%s (%d, %q, %#o)", name, node, r.Name, permBits(r.Mode))
	case *fuse.MknodRequest:
		return fmt.Sprintf("%s (%d, %q, %#o, %d)", name, node, r.Name, typeBits(r.Mode)|permBits(r.Mode), r.Rdev)
	case *fuse.SymlinkRequest:
		return fmt.Sprintf("%s (%d, %q, %q)", name, node, r.NewName, r.Target)
	case *fuse.LinkRequest:
		return fmt.Sprintf("%s (%d, %d, %q)", name, uint64(r.OldNode), node, r.NewName)
	case *fuse.RemoveRequest:
		return fmt.Sprintf("%s (%d, %q)", name, node, r.Name)
	case *fuse.RenameRequest:
		return fmt.Sprintf("%s (%d, %q, %d, %q)", name, node, r.OldName, uint64(r.NewDir), r.NewName)
	case *fuse.OpenRequest:
		return fmt.Sprintf("%s (%d, %#x)", name, node, uint32(r.Flags))
	case *fuse.CreateRequest:
		return fmt.Sprintf("%s (%d, %q, %#x, %#o)", name, node, r.Name, uint32(r.Flags), permBits(r.Mode))
	case *fuse.ReadRequest:
		return fmt.Sprintf("%s (%d, %d, %d)", name, node, r.Size, r.Offset)
	case *fuse.WriteRequest:
		return fmt.Sprintf("%s (%d, %d, %d)", name, node, len(r.Data), r.Offset)
	case *fuse.FAllocateRequest:
		return fmt.Sprintf("%s (%d, %#x, %d, %d)", name, node, uint32(r.Mode), r.Offset, r.Length)
	case *fuse.GetxattrRequest:
		return fmt.Sprintf("%s (%d, %q)", name, node, r.Name)
	case *fuse.SetxattrRequest:
		return fmt.Sprintf("%s (%d, %q, %d bytes)", name, node, r.Name, len(r.Xattr))
	case *fuse.RemovexattrRequest:
		return fmt.Sprintf("%s (%d, %q)", name, node, r.Name)
	}
	if l := lockIn(r); l != nil {
		return fmt.Sprintf("%s (%d, %+v)", name, node, *l)
	}
	return fmt.Sprintf("%s (%d)", name, node)
}
