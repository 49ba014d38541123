package fusefs

import (
	"sync"
	"time"

	"bazil.org/fuse"

	"dfs/internal/dfs"
)

// walked remembers, per thread, the attributes that its latest LOOKUP returned. To walk a path the kernel sends LOOKUP and then, as
// nothing may be cached, GETATTR for the same inode, in one system call; the second is answered from the first. That is as true
// as asking again: the answer is from within the system call. So it counts once, for the next request of the same
// thread only, and for walkedFor.
type walked struct {
	mu      sync.Mutex
	threads map[uint32]walk // guarded by mu; at most walkedMax
}

type walk struct {
	attr Attr
	at   time.Time
}

const (
	walkedFor = 2 * time.Millisecond
	walkedMax = 1024
)

func newWalked() *walked { return &walked{threads: map[uint32]walk{}} }

func (w *walked) put(thread uint32, a *Attr) {
	if thread == 0 {
		return // of another pid namespace: not to be told apart
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.threads) >= walkedMax {
		clear(w.threads)
	}
	w.threads[thread] = walk{*a, time.Now()}
}

// take returns and forgets what the thread has looked up, if that is the inode.
func (w *walked) take(thread uint32, inode dfs.InodeID) (Attr, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k, ok := w.threads[thread]
	delete(w.threads, thread)
	return k.attr, ok && k.attr.Inode == inode && time.Since(k.at) < walkedFor
}

// seen is told of every request before it is handled.
func (w *walked) seen(r fuse.Request) {
	if g, ok := r.(*fuse.GetattrRequest); ok && g.Flags&fuse.GetattrFh == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.threads, r.Hdr().Pid)
}
