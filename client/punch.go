package client

import (
	"context"
	"errors"

	"dfs/client/chunkio"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// Zero makes n bytes at off read as zero. The length does not change: what lies beyond it is left alone. It returns when
// every replica has it.
func (f *File) Zero(ctx context.Context, off, n int64) error {
	if err := f.useFor("zero", true); err != nil {
		return err
	}
	if err := checkSpan(off, n); err != nil {
		return pathErr("zero", f.name, err)
	}
	f.changed()
	defer f.changed()
	u, err := f.underLocks(ctx)
	if err == nil {
		err = u.end(f.zero(u.ctx, off, n))
	}
	return pathErr("zero", f.name, f.failed(ctx, err))
}

func (f *file) zero(ctx context.Context, off, n int64) error {
	for range vanishedTries {
		a, err := f.c.getAttr(ctx, f.ref())
		if err != nil {
			return err
		}
		end := min(off+n, a.GetLength())
		if off >= end {
			return nil
		}
		if !a.GetInline() {
			return f.zeroChunks(ctx, off, end)
		}
		// Beyond InlineMax an inline file has nothing but zeros.
		if end = min(end, dfs.InlineMax); off >= end {
			return nil
		}
		_, err = f.writeInline(ctx, &dfsv1.WriteInlineRequest{Inode: uint64(f.inode), Offset: off, Data: make([]byte, end-off)})
		if err == nil || !leavesInode(err) {
			return err
		}
	}
	return dfserr.Errorf(dfserr.ErrBusy, "the file changes its form all the time")
}

// zeroChunks clears from off to end in the chunks that exist there.
func (f *file) zeroChunks(ctx context.Context, off, end int64) error {
	for off < end {
		first := off / f.chunkSize
		reply, err := f.c.getChunks(ctx, f.inode, first, chunksPage, true)
		if err != nil {
			return err
		}
		for _, k := range reply.GetChunks() {
			index := k.GetIndex()
			from, to := max(off, index*f.chunkSize), min(end, (index+1)*f.chunkSize)
			if from >= to {
				continue
			}
			f.mu.Lock()
			f.keepLocked(index, f.c.chunks.NewWriter(locationOf(k)))
			w := f.writers[index]
			f.mu.Unlock()
			_, err := w.Do(ctx, chunkio.Mutation{Kind: dfsv1.MutationKind_ZERO, Off: from - index*f.chunkSize, Len: to - from})
			switch {
			case errors.Is(err, dfserr.ErrNotExist):
				f.forget(index, w) // cut off meanwhile: zeros all the same
			case err != nil:
				return err
			default:
				f.zeroed(index, w)
			}
		}
		off = (first + chunksPage) * f.chunkSize
	}
	return nil
}

// zeroed notes an acknowledged ZERO; unlike other mutations it says nothing about the length.
func (f *file) zeroed(index int64, w *chunkio.Writer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.modified = true
	f.dirty[index] = struct{}{}
	if f.writers[index] == nil {
		f.writers[index] = w
	}
}
