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
//
// A file is remembered after its last handle was closed: if the lease on it is the same when it is opened again, nobody else has had it open for writing, and its
// pages are kept.
type pages struct {
	mu    sync.Mutex
	files map[dfs.InodeID]*pageFile // guarded by mu: those with handles, and at most idleFiles others
	idle  int                       // guarded by mu: those without
	last  int64                     // guarded by mu: the newest stamp
}

// idleFiles bounds the files without handles whose pages may still be good.
const idleFiles = 1 << 16

// pageFile is what the kernel believes of one file.
type pageFile struct {
	handles int
	told    int64  // mtime
	version uint64 // of the attributes at the last read
	read    bool   // there was one: version is set
	shared  bool   // others could write at the last read
	lease   uint64 // as of the last read
	around  bool   // bytes were written around the pages since the file was first opened
}

func newPages() *pages { return &pages{files: map[dfs.InodeID]*pageFile{}} }

// opened counts a handle. keep says that the pages of earlier opens are good: the kernel drops them otherwise.
func (p *pages) opened(inode dfs.InodeID, lease uint64) (keep bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.files[inode]
	if f != nil && f.handles == 0 {
		p.idle--
	}
	keep = f != nil && f.read && !f.shared && !f.around && f.lease != 0 && f.lease == lease
	if f == nil || f.handles == 0 && !keep {
		f = &pageFile{}
		p.files[inode] = f
	}
	f.handles++
	return keep
}

// bypassed says that bytes are written through a handle that goes around the page cache.
func (p *pages) bypassed(inode dfs.InodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.files[inode]; f != nil {
		f.around = true
	}
}

func (p *pages) closed(inode dfs.InodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.files[inode]; f != nil {
		if f.handles--; f.handles == 0 {
			p.idle++
			p.forgetIdleLocked(inode, f)
		}
	}
}

// forgetIdleLocked forgets a file without handles if its pages cannot be kept, and others when there are too many.
func (p *pages) forgetIdleLocked(inode dfs.InodeID, f *pageFile) {
	if !f.read || f.shared || f.around || f.lease == 0 {
		delete(p.files, inode)
		p.idle--
	}
	if p.idle <= idleFiles {
		return
	}
	for i, old := range p.files { // any: the order of a map
		if old.handles == 0 {
			delete(p.files, i)
			p.idle--
			return
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

// good reports whether the kernel's pages of a file are certainly up to date, going by what has just been learnt of it.
func (p *pages) good(a *Attr, shared bool, lease uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.files[a.Inode]
	return f != nil && f.goodLocked(a, shared, lease)
}

// goodLocked: only this mount has written the file since the last read, and it puts the bytes there.
func (f *pageFile) goodLocked(a *Attr, shared bool, lease uint64) bool {
	return !shared && !f.shared && f.read && f.version == a.Version && (f.lease == 0 || f.lease == lease)
}

// beforeRead changes a's mtime to what the kernel must be told before it reads.
func (p *pages) beforeRead(a *Attr, shared bool, lease uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.files[a.Inode]
	if f == nil {
		return
	}
	switch first := !f.read; {
	case f.goodLocked(a, shared, lease):
		a.MtimeNS = f.told
	case first && !shared:
		// Opening has dropped the pages of earlier opens.
	default:
		p.last = max(p.last+1, time.Now().UnixNano())
		a.MtimeNS = p.last
	}
	f.told, f.version, f.read, f.shared, f.lease = a.MtimeNS, a.Version, true, shared, lease
}

// handleOf returns the handle of a GETATTR that comes before a read; ok is false for stat(2).
func handleOf(r *fuse.GetattrRequest) (id fuse.HandleID, ok bool) {
	return r.Handle, r.Flags&fuse.GetattrFh != 0
}
