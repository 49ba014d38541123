// Package chunks keeps the records of chunks: which chunk holds which piece of a file, its configuration (version and
// replicas), and what must happen to it before it is written again (a seed to store, a cut to make). Deleted chunks become
// garbage records until their replicas are gone.
//
// Like package namespace it is deterministic: each operation is a function of a Txn, an Env and its arguments, and
// one that fails may have used its Txn, which the caller then discards. It knows of a file only what is in File; that the file
// exists, and that the caller may change it, has been checked.
//
// # Invariants
//
// c/<inode>/<n> names a chunk whose record has that inode and index n; no two name the same. File.Chunks is the greatest n + 1, or 0. A record's
// version is the Raft index of the command that made its configuration, and only grows. CutVersion is 0 or at most Version.
// Inline data and chunks exclude one another.
//
// # Born
//
// A chunk is born when replicas are known to exist: from then on a primary that has none reports a loss instead of making an empty
// replica. A length beyond what the master knew can only come from replicas, so learning one makes its chunk born;
// so does an explicit report (CutDone). A record that has not been born is harmless to mark too late, and fatal to mark too early: a hole
// would read as a lost chunk. A seed is dropped only together with becoming born.
package chunks

import (
	"slices"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// MaxPerCommand bounds the chunks that one command deletes or changes; a command that would need more does a
// part, and says so.
const MaxPerCommand = 2048

// Env is what an operation knows besides the state and its arguments.
type Env struct {
	Now   int64     // the command's time, nanoseconds since the Unix epoch
	Index dfs.Index // of the command; the version of the configurations it makes
}

// File is the part of a regular file's inode that says where its bytes are. Inline is shared and never modified in place.
type File struct {
	Inode         dfs.InodeID
	Length        int64 // committed bytes; a lower bound while TailOpen
	ChunkSizeLog2 uint32
	Replication   uint32
	Inline        []byte // of a file without chunks; bytes from here up to Length are zero
	TailOpen      bool
	Chunks        int64 // index of the last chunk + 1
}

// ChunkSize returns the file's chunk size in bytes.
func (f *File) ChunkSize() int64 { return 1 << f.ChunkSizeLog2 }

// Record is the master's record of a chunk.
type Record struct {
	Inode    dfs.InodeID
	Index    int64 // of the chunk in its file
	Version  dfs.Version
	Replicas []dfs.ServerID // primary first; never empty; not modified in place
	// Joining are those of Replicas that may lack what was acknowledged before they were added: no configuration that
	// has them is known to have been in step. At least one replica is not among them. Not modified in place.
	Joining       []dfs.ServerID
	Replication   uint32 // wanted
	ChunkSizeLog2 uint32
	Birth         dfs.Index // of the command that made the chunk
	Born          bool      // replicas exist
	Seed          []byte    // bytes the primary stores at offset 0 before any other mutation
	CutLength     int64     // with CutVersion: the length the chunk is to be truncated to
	CutVersion    dfs.Version
}

// Garbage says that a chunk has been deleted while it had replicas.
type Garbage struct {
	Replicas  []dfs.ServerID
	Version   dfs.Version
	DeletedAt int64
}

// Totals are the counts this package keeps, besides the next chunk id.
type Totals struct {
	NextChunk dfs.ChunkID
	Chunks    int64
	Garbage   int64
}

// Txn is the state as this package needs it. The bool of a getter says whether there is such a value; an error means
// that the state could not be read. Setters cannot fail; what they take is theirs to keep.
type Txn interface {
	Chunk(id dfs.ChunkID) (Record, bool, error)
	SetChunk(id dfs.ChunkID, r Record)
	DeleteChunk(id dfs.ChunkID)
	// FileChunk returns the chunk at an index of a file.
	FileChunk(inode dfs.InodeID, index int64) (dfs.ChunkID, bool, error)
	SetFileChunk(inode dfs.InodeID, index int64, id dfs.ChunkID)
	DeleteFileChunk(inode dfs.InodeID, index int64)
	// FileChunks calls fn for a file's chunks from an index on, ascending, until it returns false. Changes of
	// the running command need not be seen.
	FileChunks(inode dfs.InodeID, from int64, fn func(index int64, id dfs.ChunkID) bool) error
	SetGarbage(index dfs.Index, id dfs.ChunkID, g Garbage)
	Garbage(index dfs.Index, id dfs.ChunkID) (Garbage, bool, error)
	DeleteGarbage(index dfs.Index, id dfs.ChunkID)
	ChunkTotals() (Totals, error)
	SetChunkTotals(Totals)
}

// get reads a record that a caller names; ErrNotExist when it is gone.
func get(tx Txn, id dfs.ChunkID) (Record, error) {
	r, ok, err := tx.Chunk(id)
	if err == nil && !ok {
		err = dfserr.Errorf(dfserr.ErrNotExist, "chunk %s", id)
	}
	return r, err
}

// at reads the chunk at an index of a file; ok is false for a hole.
func at(tx Txn, inode dfs.InodeID, index int64) (dfs.ChunkID, Record, bool, error) {
	id, ok, err := tx.FileChunk(inode, index)
	if err != nil || !ok {
		return 0, Record{}, false, err
	}
	r, ok, err := tx.Chunk(id)
	if err == nil && !ok {
		err = dfserr.Errorf(dfserr.ErrCorrupt, "chunk %s of inode %d has no record", id, inode)
	}
	return id, r, err == nil, err
}

// checkReplicas refuses a set of replicas that no configuration may have.
func checkReplicas(replicas []dfs.ServerID) error {
	if len(replicas) == 0 {
		return dfserr.Errorf(dfserr.ErrTooFewReplicas, "a chunk with no server")
	}
	if len(replicas) > dfs.MaxReplication {
		return dfserr.Errorf(dfserr.ErrInvalid, "a chunk on %d servers, the limit is %d", len(replicas), dfs.MaxReplication)
	}
	for i, s := range replicas {
		for _, o := range replicas[:i] {
			if s == o {
				return dfserr.Errorf(dfserr.ErrInvalid, "a chunk twice on server %s", s)
			}
		}
		if s == 0 {
			return dfserr.Errorf(dfserr.ErrInvalid, "a chunk on server 0")
		}
	}
	return nil
}

// allocate makes a chunk at an index of a file.
func allocate(tx Txn, env Env, f *File, index int64, replicas []dfs.ServerID, seed []byte) (dfs.ChunkID, Record, error) {
	t, err := tx.ChunkTotals()
	if err != nil {
		return 0, Record{}, err
	}
	id := t.NextChunk
	t.NextChunk++
	t.Chunks++
	tx.SetChunkTotals(t)
	r := Record{
		Inode: f.Inode, Index: index, Version: dfs.Version(env.Index), Replicas: replicas, Replication: f.Replication,
		ChunkSizeLog2: f.ChunkSizeLog2, Birth: env.Index, Seed: seed,
	}
	tx.SetChunk(id, r)
	tx.SetFileChunk(f.Inode, index, id)
	return id, r, nil
}

// discard deletes a chunk and leaves a garbage record.
func discard(tx Txn, env Env, inode dfs.InodeID, index int64, id dfs.ChunkID) error {
	r, ok, err := tx.Chunk(id)
	if err != nil {
		return err
	}
	if !ok {
		return dfserr.Errorf(dfserr.ErrCorrupt, "chunk %s of inode %d has no record", id, inode)
	}
	tx.DeleteFileChunk(inode, index)
	tx.DeleteChunk(id)
	tx.SetGarbage(env.Index, id, Garbage{Replicas: r.Replicas, Version: r.Version, DeletedAt: env.Now})
	t, err := tx.ChunkTotals()
	if err != nil {
		return err
	}
	t.Chunks--
	t.Garbage++
	tx.SetChunkTotals(t)
	return nil
}

// learn marks a chunk born when a length shows that it has replicas: one beyond what was known, that reaches into the
// chunk. A length that was known shows nothing: a file may have been made longer than its chunks. It reports whether it changed r.
func learn(f *File, r *Record, length int64) bool {
	return length > f.Length && length > r.Index<<r.ChunkSizeLog2 && bear(r)
}

// bear marks a chunk born, and reports whether it was not.
func bear(r *Record) bool {
	if r.Born {
		return false
	}
	r.Born, r.Seed = true, nil
	return true
}

// Added is what Add did.
type Added struct {
	Chunk  dfs.ChunkID
	Record Record
	New    bool
}

// Add makes the chunk at an index of a file, unless there is one. Inline data becomes the seed of chunk 0, which is made along
// with any other. A new last chunk opens the tail; tailLength is what the proposer has learnt of the file's length from the primary of the
// last chunk so far (0: nothing), and becomes committed here. replicas, primary first, are used when something is made.
//
// Errors: ErrInvalid for an index below 0 or impossible replicas; ErrFileTooLarge beyond dfs.MaxFileLength; ErrTooFewReplicas for no
// replicas.
func Add(tx Txn, env Env, f *File, index int64, replicas []dfs.ServerID, tailLength int64) (Added, error) {
	if index < 0 {
		return Added{}, dfserr.Errorf(dfserr.ErrInvalid, "chunk %d of inode %d", index, f.Inode)
	}
	if index >= dfs.MaxFileLength>>f.ChunkSizeLog2 {
		return Added{}, dfserr.Errorf(dfserr.ErrFileTooLarge, "chunk %d of inode %d", index, f.Inode)
	}
	if id, r, ok, err := at(tx, f.Inode, index); err != nil || ok {
		return Added{Chunk: id, Record: r}, err
	}
	if err := checkReplicas(replicas); err != nil {
		return Added{}, err
	}
	var seed []byte
	if f.Chunks == 0 {
		seed, f.Inline = f.Inline, nil
		if len(seed) > 0 && index > 0 {
			if _, _, err := allocate(tx, env, f, 0, replicas, seed); err != nil {
				return Added{}, err
			}
			seed = nil
		}
	}
	if index >= f.Chunks {
		if err := closeTail(tx, f, tailLength); err != nil {
			return Added{}, err
		}
		f.Chunks, f.TailOpen = index+1, true
	}
	id, r, err := allocate(tx, env, f, index, replicas, seed)
	return Added{Chunk: id, Record: r, New: true}, err
}

// closeTail takes over what the primary of an open tail said of the file's length.
func closeTail(tx Txn, f *File, length int64) error {
	if !f.TailOpen || f.Chunks == 0 || length <= 0 {
		return nil
	}
	id, r, ok, err := at(tx, f.Inode, f.Chunks-1)
	if err != nil {
		return err
	}
	if ok && learn(f, &r, length) {
		tx.SetChunk(id, r)
	}
	f.Length = max(f.Length, min(length, f.Chunks<<f.ChunkSizeLog2))
	return nil
}

// Reconfigure commits a new configuration of a chunk. Errors: ErrNotExist; ErrStaleVersion when the chunk's version is not expect;
// ErrTooFewReplicas, ErrInvalid for impossible replicas.
func Reconfigure(tx Txn, env Env, id dfs.ChunkID, expect dfs.Version, replicas []dfs.ServerID) (Record, error) {
	r, err := get(tx, id)
	if err != nil {
		return Record{}, err
	}
	if r.Version != expect {
		return Record{}, dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %s has version %d, not %d", id, r.Version, expect)
	}
	if err := checkReplicas(replicas); err != nil {
		return Record{}, err
	}
	var joining []dfs.ServerID
	for _, s := range replicas {
		if !slices.Contains(r.Replicas, s) || slices.Contains(r.Joining, s) {
			joining = append(joining, s)
		}
	}
	if len(joining) == len(replicas) {
		return Record{}, dfserr.Errorf(dfserr.ErrNoReplica, "chunk %s: none of the servers wanted is known to have all of its data", id)
	}
	r.Version, r.Replicas, r.Joining = dfs.Version(env.Index), replicas, joining
	tx.SetChunk(id, r)
	return r, nil
}

// Done is what a primary is known to have done; zero fields say nothing.
type Done struct {
	CutVersion dfs.Version // made the cut of this version
	SeedStored bool
	Born       bool        // brought all its replicas into being
	InStep     dfs.Version // had all replicas of the configuration with this version in step
}

// CutDone records what a primary has done. A cut that is not pending, and an InStep that is not the present version, are
// ignored. Errors: ErrNotExist.
func CutDone(tx Txn, id dfs.ChunkID, d Done) (Record, error) {
	r, err := get(tx, id)
	if err != nil {
		return Record{}, err
	}
	changed := false
	if d.CutVersion != 0 && r.CutVersion == d.CutVersion {
		r.CutVersion, r.CutLength, changed = 0, 0, true
	}
	if d.SeedStored && len(r.Seed) > 0 {
		r.Seed, r.Born, changed = nil, true, true
	}
	if d.Born && !r.Born && len(r.Seed) == 0 {
		r.Born, changed = true, true
	}
	if d.InStep == r.Version && len(r.Joining) > 0 {
		r.Joining, changed = nil, true
	}
	if changed {
		tx.SetChunk(id, r)
	}
	return r, nil
}

// Reclaim deletes up to limit chunks of a file that has no name any more, last ones included. It returns how many, and whether none is left.
func Reclaim(tx Txn, env Env, inode dfs.InodeID, limit int) (int, bool, error) {
	refs, more, err := list(tx, inode, 0, limit)
	if err != nil {
		return 0, false, err
	}
	for _, ref := range refs {
		if err := discard(tx, env, inode, ref.index, ref.id); err != nil {
			return 0, false, err
		}
	}
	return len(refs), !more, nil
}

type fileChunk struct {
	index int64
	id    dfs.ChunkID
}

// list returns up to limit chunks of a file from an index on, and whether there are more.
func list(tx Txn, inode dfs.InodeID, from int64, limit int) (refs []fileChunk, more bool, err error) {
	err = tx.FileChunks(inode, from, func(index int64, id dfs.ChunkID) bool {
		if len(refs) >= limit {
			more = true
			return false
		}
		refs = append(refs, fileChunk{index, id})
		return true
	})
	return refs, more, err
}

// GarbageDone forgets garbage whose replicas are gone; what is not there is ignored.
func GarbageDone(tx Txn, index dfs.Index, id dfs.ChunkID) error {
	_, ok, err := tx.Garbage(index, id)
	if err != nil || !ok {
		return err
	}
	tx.DeleteGarbage(index, id)
	t, err := tx.ChunkTotals()
	if err != nil {
		return err
	}
	t.Garbage--
	tx.SetChunkTotals(t)
	return nil
}

// SetReplication brings the wanted replication of a file's chunk records to the file's. It changes at most MaxPerCommand records and
// reports whether some are left; calling it again goes on.
func SetReplication(tx Txn, f *File) (more bool, err error) {
	var change []fileChunk
	var inner error
	err = tx.FileChunks(f.Inode, 0, func(index int64, id dfs.ChunkID) bool {
		r, ok, err := tx.Chunk(id)
		if err != nil || !ok {
			inner = err
			return err == nil
		}
		if r.Replication == f.Replication {
			return true
		}
		if len(change) >= MaxPerCommand {
			more = true
			return false
		}
		change = append(change, fileChunk{index, id})
		return true
	})
	if err == nil {
		err = inner
	}
	if err != nil {
		return false, err
	}
	for _, c := range change {
		r, err := get(tx, c.id)
		if err != nil {
			return false, err
		}
		r.Replication = f.Replication
		tx.SetChunk(c.id, r)
	}
	return more, nil
}
