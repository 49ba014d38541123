package client

import (
	"context"
	"errors"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// What a mount needs of files beyond what programs do: times recorded without closing, chunks synced that an
// earlier handle wrote, and whether others write.

// GetAttrShared describes an inode, and tells whether other sessions have it open for writing, or may have: then its bytes can
// change without its modification time doing so at once.
func (t Inodes) GetAttrShared(ctx context.Context, inode dfs.InodeID) (a Attr, others bool, err error) {
	if t.c.tree != nil {
		// What is cached is not written by others: that would have recalled it.
		if a, ok := t.c.tree.Attr(inode); ok {
			return a, false, nil
		}
	}
	session, mark := t.c.lease()
	req := &dfsv1.GetAttrRequest{Caller: t.c.caller(), Ref: inodeRef(inode), MinIndex: t.c.minIndex(), Lease: session != 0}
	if e := t.c.session.current(); e != nil {
		req.Session = e.id
	}
	var reply *dfsv1.AttrReply
	err = t.c.ask(ctx, func(ctx context.Context, m dfsv1.MasterClient) (err error) {
		reply, err = m.GetAttr(ctx, req)
		return err
	})
	if err != nil {
		return Attr{}, false, err
	}
	t.c.masters.observe(reply.GetIndex())
	a = attrOf(reply.GetAttr())
	if reply.GetLeased() {
		t.c.keepAttr(mark, a)
	}
	return a, reply.GetOtherWriters(), nil
}

// Lease returns a number that stays the same as long as nobody but this client can have changed an inode, or its bytes; 0 when that is not known.
func (t Inodes) Lease(inode dfs.InodeID) uint64 {
	if t.c.tree == nil {
		return 0
	}
	return t.c.tree.Serial(inode)
}

// Forget drops what is remembered about where a file's chunks are, so that the next read asks.
func (t Inodes) Forget(inode dfs.InodeID) { t.c.cache.InvalidateFrom(inode, 0) }

// Unrecorded reports whether chunks were written through the file since its modification time was last recorded.
func (f *File) Unrecorded() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.modified
}

// Record tells the master that the file was last modified at the given time, if there is something to tell, and returns the
// error of an earlier write, as Close does. The length needs no telling: it lives with the last chunk while the file
// is open for writing.
func (f *File) Record(ctx context.Context, at time.Time) error {
	if err := f.use("close"); err != nil {
		return err
	}
	f.mu.Lock()
	modified, failed := f.modified, f.err
	f.modified = false
	f.mu.Unlock()
	if !modified {
		return pathErr("close", f.name, failed)
	}
	err := f.changeOwn(ctx, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error) {
		return m.CommitLength(ctx, &dfsv1.CommitLengthRequest{Header: h, Inode: uint64(f.inode), Modified: true, ModifiedNs: at.UnixNano()})
	})
	if errors.Is(err, dfserr.ErrStaleInode) {
		err = nil // it has gone, and its times with it
	}
	if err != nil {
		f.mu.Lock()
		f.modified = true
		f.mu.Unlock()
	}
	if failed != nil {
		err = failed
	}
	return pathErr("close", f.name, err)
}

// Unsynced returns the chunks, by index in the file, that were written through this File and not synced since.
func (f *File) Unsynced() []int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	indexes := make([]int64, 0, len(f.dirty))
	for i := range f.dirty {
		indexes = append(indexes, i)
	}
	return indexes
}

// SyncChunks makes chunks durable that were written through other Files, as Sync does for those of this one. Indexes
// without a chunk are passed over.
func (f *File) SyncChunks(ctx context.Context, indexes []int64) error {
	for _, index := range indexes {
		reply, err := f.c.getChunks(ctx, f.inode, index, 1, false)
		if err != nil {
			return pathErr("sync", f.name, err)
		}
		for _, k := range reply.GetChunks() {
			if err := f.c.chunks.Sync(ctx, locationOf(k)); err != nil && !errors.Is(err, dfserr.ErrNotExist) {
				return pathErr("sync", f.name, err)
			}
		}
	}
	return nil
}
