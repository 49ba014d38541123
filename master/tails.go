package master

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/chunks"
	"dfs/master/fsm"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

// Open tails: while a file is being written the master's length is a lower bound, and the primary of the last chunk knows the
// exact one (DESIGN §6 "Length").

const (
	// tailPatience bounds how long a call tries to learn a length before it tells the client to come back.
	tailPatience = 15 * time.Second
	tailRetryMin = 10 * time.Millisecond
	tailRetryMax = 500 * time.Millisecond
	// tailProbes is how many chunks back from the last one are asked while those after are empty: clients
	// allocate ahead of what they write.
	tailProbes = 8
	// tailParallel bounds the questions that one directory listing has under way.
	tailParallel = 32

	settleEvery    = time.Second
	settleRetry    = 10 * time.Second
	maxUnsettled   = 100_000
	settleParallel = 8
)

// unsettled remembers files whose tails were seen open, so that those nobody writes any more get their length recorded. One
// that is forgotten, because there are too many or the master restarted, is noticed when its length is next asked for.
type unsettled struct {
	mu    sync.Mutex
	files map[dfs.InodeID]time.Time // guarded by mu; not to be tried before
}

func (u *unsettled) note(ids ...dfs.InodeID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.files == nil {
		u.files = map[dfs.InodeID]time.Time{}
	}
	for _, id := range ids {
		if _, ok := u.files[id]; !ok && len(u.files) < maxUnsettled {
			u.files[id] = time.Now()
		}
	}
}

func (u *unsettled) due() []dfs.InodeID {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	var ids []dfs.InodeID
	for id, at := range u.files {
		if !now.Before(at) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (u *unsettled) forget(id dfs.InodeID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.files, id)
}

func (u *unsettled) later(id dfs.InodeID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.files[id] = time.Now().Add(settleRetry)
}

// exactLength returns the length of a file that was read as n, asking chunkservers when its tail is open. The answer is
// exact at some instant after n was read, or, when the file was cut meanwhile, ErrStaleVersion tells the caller to read
// the inode again. Otherwise errors are of the kind that the client retries. With hold the primary of the last chunk takes no appends after
// that instant before it has asked where the file ends (AcquireLease).
func (m *leader) exactLength(ctx context.Context, id dfs.InodeID, n *namespace.Inode, hold bool) (int64, error) {
	if !n.TailOpen || n.Chunks == 0 {
		return n.Length, nil
	}
	m.unsettled.note(id)
	size := n.ChunkSize()
	for index := n.Chunks - 1; index >= 0 && index >= n.Chunks-tailProbes; index-- {
		if held := hold && index == n.Chunks-1; !held && (index+1)*size <= n.Length {
			break
		}
		chunk, ok, err := m.fileChunk(id, index)
		if err != nil {
			return 0, err
		}
		if !ok {
			if index == n.Chunks-1 {
				return 0, dfserr.Errorf(dfserr.ErrStaleVersion, "inode %d: its last chunk has gone", id)
			}
			continue
		}
		length, err := m.chunkLength(ctx, chunk, hold && index == n.Chunks-1)
		if isGone(err) {
			return 0, dfserr.Errorf(dfserr.ErrStaleVersion, "inode %d: chunk %s has gone", id, chunk)
		}
		if err != nil {
			return 0, err
		}
		if length > 0 {
			return max(n.Length, index*size+length), nil
		}
	}
	return n.Length, nil
}

// fileChunk returns the chunk at an index of a file, as of now.
func (m *leader) fileChunk(id dfs.InodeID, index int64) (dfs.ChunkID, bool, error) {
	v, err := m.view()
	if err != nil {
		return 0, false, err
	}
	defer v.Close()
	return v.FileChunk(id, index)
}

// chunkLength asks the primary of a chunk for its committed length, and goes through the failure rules when the primary
// does not answer. ErrNotExist: the chunk has gone.
func (m *leader) chunkLength(ctx context.Context, id dfs.ChunkID, hold bool) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, tailPatience)
	defer cancel()
	wait := tailRetryMin
	for {
		r, err := m.chunkRecord(id)
		if err != nil {
			return 0, err
		}
		length, err := m.tailStat(ctx, r.Replicas[0], id, r.Version, hold)
		if err == nil {
			return length, nil
		}
		if ctx.Err() == nil {
			m.recoverFrom(ctx, id, r, err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return 0, dfserr.Errorf(dfserr.ErrBusy, "chunk %s: its length cannot be learnt from server %s now (%v)", id, r.Replicas[0], err)
		}
		wait = min(2*wait, tailRetryMax)
	}
}

// attr turns an inode into what clients see, with an exact length. When the file was cut while its primary was asked, it is
// read again, so the reply may reflect a later index than the one n was read at.
func (m *leader) attr(ctx context.Context, id dfs.InodeID, n *namespace.Inode) (*dfsv1.Attr, error) {
	depsOf(ctx).inode(id)
	for range 16 {
		length, err := m.exactLength(ctx, id, n, false)
		if err == nil {
			a := fsm.AttrOf(id, n)
			a.Length = length
			return a, nil
		}
		if !errors.Is(err, dfserr.ErrStaleVersion) {
			return nil, err
		}
		again, err := m.inode(id)
		if err != nil {
			return nil, err
		}
		n = &again
	}
	return nil, dfserr.Errorf(dfserr.ErrBusy, "inode %d keeps changing", id)
}

// inode reads an inode as of now; ErrStaleInode when it has gone.
func (m *leader) inode(id dfs.InodeID) (namespace.Inode, error) {
	v, err := m.view()
	if err != nil {
		return namespace.Inode{}, err
	}
	defer v.Close()
	n, ok, err := v.Inode(id)
	if err == nil && !ok {
		err = dfserr.Errorf(dfserr.ErrStaleInode, "inode %d", id)
	}
	return n, err
}

// completeAttr makes the length in a result's attributes exact; see attr.
func (m *leader) completeAttr(ctx context.Context, a *dfsv1.Attr) (*dfsv1.Attr, error) {
	if a == nil || !a.GetTailOpen() {
		return a, nil
	}
	id := dfs.InodeID(a.GetInode())
	n, err := m.inode(id)
	if errors.Is(err, dfserr.ErrStaleInode) {
		return a, nil // removed since; what the command returned is as good as it gets
	}
	if err != nil {
		return nil, err
	}
	return m.attr(ctx, id, &n)
}

// settleLoop closes the tails of files that nobody has open for writing.
func (m *leader) settleLoop(ctx context.Context) {
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if !m.sessions.settled() || m.fleet.safeMode().On {
			continue
		}
		var g errgroup.Group
		g.SetLimit(settleParallel)
		for _, id := range m.unsettled.due() {
			if m.sessions.writers(id) > 0 {
				m.unsettled.forget(id) // its last writer's leaving notes it again
				continue
			}
			g.Go(func() error {
				if err := m.settleTail(ctx, id); err != nil {
					m.log.Debug("tail not settled yet", "inode", uint64(id), "error", err)
					m.unsettled.later(id)
				} else {
					m.unsettled.forget(id)
				}
				return nil
			})
		}
		_ = g.Wait() // its functions return no errors
	}
}

// settleTail records the length of a file whose writers have gone. They may have gone without a word and still be writing, so
// first every chunk that could still take their writes gets a new version: what is acknowledged after that has asked
// the master for the new configuration, and with it opened the tail again.
func (m *leader) settleTail(ctx context.Context, id dfs.InodeID) error {
	done, ok := m.sessions.beginClosing(id)
	if !ok {
		return nil
	}
	defer done()
	n, err := m.inode(id)
	if errors.Is(err, dfserr.ErrStaleInode) {
		return nil
	}
	if err != nil {
		return err
	}
	if !n.TailOpen || n.Chunks == 0 {
		return nil
	}
	last, ok, err := m.fileChunk(id, n.Chunks-1)
	if err != nil || !ok {
		return err
	}
	fenced := map[dfs.ChunkID]bool{last: true}
	for _, l := range m.fleet.leasesOf(id) {
		fenced[l.Chunk] = true
	}
	length := n.Length
	var settled chunks.Record
	for c := range fenced {
		r, chunkLen, err := m.fenceChunk(ctx, c)
		if isGone(err) {
			continue
		}
		if err != nil {
			return err
		}
		if chunkLen > 0 {
			length = max(length, r.Index<<r.ChunkSizeLog2+chunkLen)
		}
		if c == last {
			settled = r
		}
	}
	if settled.Version == 0 {
		return nil
	}
	// Chunks without a lease before an empty last one hold what was written last.
	if exact, err := m.exactLength(ctx, id, &n, false); err == nil {
		length = max(length, exact)
	} else if !errors.Is(err, dfserr.ErrStaleVersion) {
		return err
	}
	_, err = m.propose(ctx, &dfsv1.Command{Op: &dfsv1.Command_SettleTail{SettleTail: &dfsv1.SettleTailCommand{
		Inode: uint64(id), Length: length, Chunk: uint64(last), Version: uint64(settled.Version),
	}}})
	return err
}

// fenceChunk gives a chunk a new version with the same replicas and makes it effective, so that no write under the old one can
// succeed any more. It returns the new record and the committed length.
func (m *leader) fenceChunk(ctx context.Context, id dfs.ChunkID) (chunks.Record, int64, error) {
	unlock, err := m.chunkLocks.lock(ctx, id)
	if err != nil {
		return chunks.Record{}, 0, err
	}
	r, err := m.chunkRecord(id)
	if err == nil {
		_, err = m.reconfigure(ctx, id, r, chain(r.Replicas, m.fleet.alive), "writers have gone")
	}
	unlock()
	if err != nil {
		return r, 0, err
	}
	return m.activateChunk(ctx, id)
}
