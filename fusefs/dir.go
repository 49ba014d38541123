package fusefs

import (
	"context"
	"sync"

	"bazil.org/fuse"

	"dfs/internal/dfs"
)

// pageEntries is how many entries one request to the master asks for.
const pageEntries = 1024

// dirHandle is an open directory: a cursor over names in byte order. An entry's cookie is its number in this
// listing plus one. The handle holds one page, and for each page before it the name it starts after, so that
// rewinding and seeking work without holding the directory.
type dirHandle struct {
	inode  dfs.InodeID
	parent dfs.InodeID

	mu     sync.Mutex
	starts [][]byte   // guarded by mu: starts[i] is the name that page i follows; starts[0] is empty
	first  int64      // guarded by mu: number of page's first entry
	page   []DirEntry // guarded by mu
	number int        // guarded by mu: which page; -1: none loaded
	end    bool       // guarded by mu: page is the last
}

// dots is how many entries "." and ".." take before the directory's own.
const dots = 2

// read returns entries from cookie off on, encoded, at most size bytes.
func (d *dirHandle) read(ctx context.Context, b Backend, who Caller, off int64, size int) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]byte, 0, size)
	if off == 0 {
		d.starts, d.number, d.first = [][]byte{nil}, -1, 0 // a fresh listing
	}
	for ; off < dots; off++ {
		name, inode := []byte("."), d.inode
		if off == 1 {
			name, inode = []byte(".."), d.parent
		}
		if len(out)+direntSize(name) > size {
			return out, nil
		}
		out = appendDirent(out, uint64(inode), uint64(off+1), 0o040000, name)
	}
	for {
		n := off - dots // number of the entry wanted
		ok, err := d.loadLocked(ctx, b, who, n)
		if err != nil {
			if len(out) > 0 {
				return out, nil // what we have; the next call meets the error
			}
			return nil, err
		}
		if !ok {
			return out, nil
		}
		for i := n - d.first; i < int64(len(d.page)); i++ {
			e := &d.page[i]
			if len(out)+direntSize(e.Name) > size {
				return out, nil
			}
			off++
			out = appendDirent(out, uint64(e.Inode), uint64(off), e.Mode, e.Name)
		}
	}
}

// loadLocked makes the page with entry n the current one; false when the listing ends before it.
func (d *dirHandle) loadLocked(ctx context.Context, b Backend, who Caller, n int64) (bool, error) {
	for d.number < 0 || n < d.first || n >= d.first+int64(len(d.page)) {
		next := 0
		switch {
		case d.number < 0 || n < d.first:
			next = int(min(n/pageEntries, int64(len(d.starts)-1)))
		case d.end:
			return false, nil
		default:
			next = d.number + 1
		}
		entries, end, err := b.ReadDir(ctx, who, d.inode, d.starts[next], pageEntries)
		if err != nil {
			return false, err
		}
		d.page, d.end, d.number, d.first = entries, end, next, int64(next)*pageEntries
		if len(entries) < pageEntries {
			d.end = true
		} else if next+1 == len(d.starts) {
			d.starts = append(d.starts, entries[len(entries)-1].Name)
		}
	}
	return true, nil
}

// readDir answers READDIR.
func (s *Server) readDir(ctx context.Context, r *fuse.ReadRequest) error {
	d, err := s.dir(r.Handle)
	if err != nil {
		return err
	}
	data, err := d.read(ctx, s.backend, s.caller(&r.Header), r.Offset, r.Size)
	if err != nil {
		return err
	}
	r.Respond(&fuse.ReadResponse{Data: data})
	return nil
}
