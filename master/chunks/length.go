package chunks

import (
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// holeProbe is how many indexes below a cut are probed for the last chunk before all chunks are walked.
const holeProbe = 16

// Truncate sets a file's length. tailLength is what the proposer has learnt of the length of an open tail (0: nothing).
//
// Growing changes only the length. Shrinking deletes the chunks beyond; the chunk that the new end falls into gets a new version
// and a pending cut, so that the bytes cut off never come back. Where more than MaxPerCommand chunks must go, the last ones do, the
// length becomes what is left (at least the wanted one), and more is true: the same call again goes on.
//
// Errors: ErrBusy when the chunk to be cut has a cut pending already, which must be made (CutDone) before.
func Truncate(tx Txn, env Env, f *File, length, tailLength int64) (more bool, err error) {
	if f.Chunks == 0 {
		if int64(len(f.Inline)) > length {
			f.Inline = f.Inline[:length:length]
		}
		f.Length = length
		return false, nil
	}
	current := f.Length
	if f.TailOpen {
		current = max(current, min(tailLength, f.Chunks<<f.ChunkSizeLog2))
	}
	if length < current {
		if err := checkCut(tx, f, length); err != nil {
			return false, err
		}
	}
	keep := (length + f.ChunkSize() - 1) >> f.ChunkSizeLog2 // chunks from here on go
	if keep < f.Chunks {
		var done bool
		if done, err = dropFrom(tx, env, f, keep); err != nil {
			return false, err
		}
		if !done {
			f.Length = min(max(length, f.Chunks<<f.ChunkSizeLog2), current)
			return true, nil
		}
	}
	if length < current {
		if err := cut(tx, env, f, length); err != nil {
			return false, err
		}
	}
	f.Length = length
	f.TailOpen = f.TailOpen && f.Chunks > 0
	return false, nil
}

// dropFrom deletes a file's chunks from index keep on, the last ones first when there are too many for one command, and sets f.Chunks to
// what is left. It reports whether all have gone.
func dropFrom(tx Txn, env Env, f *File, keep int64) (bool, error) {
	from := max(keep, f.Chunks-MaxPerCommand)
	refs, _, err := list(tx, f.Inode, from, MaxPerCommand)
	if err != nil {
		return false, err
	}
	for _, ref := range refs {
		if err := discard(tx, env, f.Inode, ref.index, ref.id); err != nil {
			return false, err
		}
	}
	last, err := lastBelow(tx, f.Inode, from)
	if err != nil {
		return false, err
	}
	f.Chunks = last + 1
	return f.Chunks <= keep, nil
}

// lastBelow returns the greatest index below bound at which a file has a chunk, or -1.
func lastBelow(tx Txn, inode dfs.InodeID, bound int64) (int64, error) {
	for i := bound - 1; i >= 0 && i >= bound-holeProbe; i-- {
		if _, ok, err := tx.FileChunk(inode, i); err != nil || ok {
			return i, err
		}
	}
	last := int64(-1)
	if bound <= holeProbe {
		return last, nil
	}
	err := tx.FileChunks(inode, 0, func(index int64, _ dfs.ChunkID) bool {
		if index >= bound {
			return false
		}
		last = index
		return true
	})
	return last, err
}

// toCut returns the chunk that a new, shorter length falls into; ok is false when it falls on a boundary or into a hole.
func toCut(tx Txn, f *File, length int64) (id dfs.ChunkID, r Record, ok bool, err error) {
	if length&(f.ChunkSize()-1) == 0 {
		return 0, Record{}, false, nil
	}
	return at(tx, f.Inode, length>>f.ChunkSizeLog2)
}

// checkCut returns ErrBusy when the chunk that is to be cut has a cut pending.
func checkCut(tx Txn, f *File, length int64) error {
	id, r, ok, err := toCut(tx, f, length)
	if err != nil || !ok || r.CutVersion == 0 {
		return err
	}
	return dfserr.Errorf(dfserr.ErrBusy, "chunk %s is to be cut to %d first", id, r.CutLength)
}

// cut orders the truncation of the chunk that a new, shorter length falls into.
func cut(tx Txn, env Env, f *File, length int64) error {
	id, r, ok, err := toCut(tx, f, length)
	if err != nil || !ok {
		return err
	}
	r.Version = dfs.Version(env.Index)
	r.CutLength, r.CutVersion = length&(f.ChunkSize()-1), r.Version
	tx.SetChunk(id, r)
	return nil
}

// WriteInline puts data at an offset of a file without chunks, filling a gap with zeros, and returns the offset. With atEnd the
// offset is the file's length. Errors: ErrInlineMoved when the file has chunks; ErrFileTooLarge beyond dfs.InlineMax; ErrInvalid for an
// offset below 0.
func WriteInline(f *File, off int64, atEnd bool, data []byte) (int64, error) {
	if f.Chunks > 0 {
		return 0, dfserr.Errorf(dfserr.ErrInlineMoved, "inode %d", f.Inode)
	}
	if atEnd {
		off = f.Length
	}
	if off < 0 {
		return 0, dfserr.Errorf(dfserr.ErrInvalid, "write inode %d at %d", f.Inode, off)
	}
	if !dfs.CheckRange(off, int64(len(data)), dfs.InlineMax) {
		return 0, dfserr.Errorf(dfserr.ErrFileTooLarge, "write %d bytes at %d of inode %d: inline data ends at %d", len(data), off, f.Inode, dfs.InlineMax)
	}
	if len(data) == 0 {
		return off, nil
	}
	end := off + int64(len(data))
	merged := make([]byte, max(end, int64(len(f.Inline))))
	copy(merged, f.Inline)
	copy(merged[off:], data)
	f.Inline = merged
	f.Length = max(f.Length, end)
	return off, nil
}

// Commit is what a client says of a file's length after its writes were acknowledged.
type Commit struct {
	Length   int64       // the file is at least this long
	Chunk    dfs.ChunkID // that holds the byte before Length; 0 when nothing was written to chunks
	Version  dfs.Version // under which the writes were acknowledged
	Modified bool        // bytes were written
	Closing  bool        // nobody else has the file open for writing: the tail may be settled
}

// CommitLength raises a file's length. A length that is covered already is accepted whatever the version; otherwise the version must be the
// chunk's, or the bytes may have been cut off since: ErrStaleVersion. ErrInvalid for a length outside the chunk.
func CommitLength(tx Txn, f *File, c Commit) error {
	if c.Length < 0 || c.Length > dfs.MaxFileLength {
		return dfserr.Errorf(dfserr.ErrInvalid, "length %d of inode %d", c.Length, f.Inode)
	}
	covered := c.Length <= f.Length
	current, err := current(tx, f, c.Chunk, c.Version)
	if err != nil {
		return err
	}
	if current == nil {
		if !covered {
			return dfserr.Errorf(dfserr.ErrStaleVersion, "length %d of inode %d by version %d of chunk %s", c.Length, f.Inode, c.Version, c.Chunk)
		}
		if f.Chunks == 0 {
			f.TailOpen = false
		}
		return nil
	}
	r := *current
	if !covered && (c.Length <= r.Index<<r.ChunkSizeLog2 || c.Length > (r.Index+1)<<r.ChunkSizeLog2) {
		return dfserr.Errorf(dfserr.ErrInvalid, "length %d of inode %d does not end in its chunk %d", c.Length, f.Inode, r.Index)
	}
	// What was acknowledged under the chunk's own version is on its replicas.
	if (!covered || c.Modified && len(r.Seed) == 0) && c.Length > r.Index<<r.ChunkSizeLog2 && bear(&r) {
		tx.SetChunk(c.Chunk, r)
	}
	f.Length = max(f.Length, c.Length)
	if c.Closing && r.Index == f.Chunks-1 {
		f.TailOpen = false
	}
	return nil
}

// current returns a chunk's record if the chunk is the file's and has this version, else nil.
func current(tx Txn, f *File, id dfs.ChunkID, version dfs.Version) (*Record, error) {
	if id == 0 {
		return nil, nil
	}
	r, ok, err := tx.Chunk(id)
	if err != nil || !ok || r.Inode != f.Inode || r.Version != version {
		return nil, err
	}
	return &r, nil
}

// OpenTail marks a file's length as living with its last chunk's primary; a file without chunks has no tail.
func OpenTail(f *File) { f.TailOpen = f.Chunks > 0 }

// SettleTail records the length that the last chunk's primary gave and closes the tail, if the chunk is still the last one and has that
// version; else nothing happens. It reports whether it did. length is the file's, not the chunk's.
func SettleTail(tx Txn, f *File, length int64, id dfs.ChunkID, version dfs.Version) (bool, error) {
	if !f.TailOpen {
		return false, nil
	}
	r, err := current(tx, f, id, version)
	if err != nil || r == nil || r.Index != f.Chunks-1 {
		return false, err
	}
	if length > f.Chunks<<f.ChunkSizeLog2 {
		length = f.Chunks << f.ChunkSizeLog2
	}
	if learn(f, r, length) {
		tx.SetChunk(id, *r)
	}
	f.Length = max(f.Length, length)
	f.TailOpen = false
	return true, nil
}
