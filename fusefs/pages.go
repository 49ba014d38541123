package fusefs

import (
	"sync"
	"time"

	"bazil.org/fuse"

	"dfs/internal/dfs"
)

// pages decides which mtime the kernel is told when it asks before a read, for that is how it learns whether the pages
// it caches are still good: a new mtime makes it drop them. It is not the mtime that stat(2) shows; stat asks by itself,
// and is told the truth.
//
// While only this mount writes a file, its pages are good: the kernel put the written bytes there. It is told the same as
// the last time. When others have the file open for writing, every read must see what they have written: it
// is told a new time each time. In between, attributes that the cluster has changed mean new pages once.
type pages struct {
	mu    sync.Mutex
	files map[dfs.InodeID]*pageFile // guarded by mu: those with handles
	last  int64                     // guarded by mu: the newest stamp
}

// pageFile is what the kernel believes of one open file.
type pageFile struct {
	handles int
	told    int64  // mtime
	version uint64 // of the attributes at the last read
	read    bool   // there was one: version is set
	shared  bool   // others could write at the last read
}

func newPages() *pages { return &pages{files: map[dfs.InodeID]*pageFile{}} }

// opened counts a handle, with what its opening told.
func (p *pages) opened(inode dfs.InodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.files[inode]
	if f == nil {
		f = &pageFile{}
		p.files[inode] = f
	}
	f.handles++
}

func (p *pages) closed(inode dfs.InodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.files[inode]; f != nil {
		if f.handles--; f.handles == 0 {
			delete(p.files, inode)
		}
	}
}

// truth notes that the kernel is told true attributes.
func (p *pages) truth(a *Attr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// The version stays: only a read's answer takes a new one into account.
	if f := p.files[a.Inode]; f != nil {
		f.told = a.MtimeNS
	}
}

// beforeRead changes a's mtime to what the kernel must be told before it reads.
func (p *pages) beforeRead(a *Attr, shared bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.files[a.Inode]
	if f == nil {
		return
	}
	switch first := !f.read; {
	case !shared && !f.shared && f.read && f.version == a.Version:
		a.MtimeNS = f.told
	case first && !shared:
		// Opening has dropped the pages of earlier opens.
	default:
		p.last = max(p.last+1, time.Now().UnixNano())
		a.MtimeNS = p.last
	}
	f.told, f.version, f.read, f.shared = a.MtimeNS, a.Version, true, shared
}

// handleOf returns the handle of a GETATTR that comes before a read; ok is false for stat(2).
func handleOf(r *fuse.GetattrRequest) (id fuse.HandleID, ok bool) {
	return r.Handle, r.Flags&fuse.GetattrFh != 0
}
