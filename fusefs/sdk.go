package fusefs

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"dfs/client"
	"dfs/internal/dfs"
)

// SDK returns the Backend that is a dfs client. It adds what the kernel expects of one mount and the cluster does not keep: a
// file's modification time is that of the last write through this mount from the moment of the write on, not only once it
// is recorded; and fsync covers what was written through handles that are closed already.
func SDK(c *client.Client) Backend {
	return &sdk{c: c, tree: c.Inodes(), open: map[dfs.InodeID]*openInode{}, left: map[dfs.InodeID]leftover{}}
}

type sdk struct {
	c    *client.Client
	tree client.Inodes

	mu   sync.Mutex
	open map[dfs.InodeID]*openInode // guarded by mu
	left map[dfs.InodeID]leftover   // guarded by mu: at most leftMax
}

// openInode is a file with handles on this mount.
type openInode struct {
	files   map[*sdkFile]struct{} // guarded by sdk.mu
	version dfs.Index             // guarded by sdk.mu: of the attributes when locations were last trusted
}

// leftover is what closed handles wrote and did not sync. Chunkservers sync a chunk by themselves when nobody has
// written it for a while, so it need not be remembered for longer than leftFor.
type leftover struct {
	chunks map[int64]struct{}
	at     time.Time
}

const (
	leftFor = 2 * time.Minute
	leftMax = 16384
)

func caller(who Caller) client.Caller {
	return client.Caller{UID: who.UID, GID: who.GID, Groups: who.Groups}
}

// attr converts, and brings the times up to date with this mount's own writes.
func (s *sdk) attr(a client.Attr) Attr {
	out := Attr{
		Inode: a.Inode, Mode: client.StatMode(a.Mode), UID: a.UID, GID: a.GID, Nlink: a.Nlink, Rdev: a.Rdev, Length: a.Size,
		AtimeNS: a.Atime.UnixNano(), MtimeNS: a.Mtime.UnixNano(), CtimeNS: a.Ctime.UnixNano(), Target: []byte(a.Target), Version: uint64(a.Version),
	}
	for _, f := range s.unrecorded(a.Inode) {
		at := f.wroteAt.Load()
		out.MtimeNS, out.CtimeNS = max(out.MtimeNS, at), max(out.CtimeNS, at)
	}
	return out
}

// unrecorded returns the handles through which the file was written without the master knowing of it yet.
func (s *sdk) unrecorded(inode dfs.InodeID) []*sdkFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.open[inode]
	if o == nil {
		return nil
	}
	var files []*sdkFile
	for f := range o.files {
		if f.f.Unrecorded() {
			files = append(files, f)
		}
	}
	return files
}

// record tells the master of this mount's writes, so that what changes the times next comes after them.
func (s *sdk) record(ctx context.Context, inode dfs.InodeID) {
	for _, f := range s.unrecorded(inode) {
		// An error stays in the handle, and its close reports it.
		_ = f.Flush(ctx)
	}
}

func (s *sdk) Lookup(ctx context.Context, who Caller, parent dfs.InodeID, name []byte) (Attr, error) {
	a, err := s.tree.Lookup(ctx, caller(who), parent, name)
	return s.attr(a), err
}

func (s *sdk) GetAttr(ctx context.Context, inode dfs.InodeID) (Attr, error) {
	a, err := s.tree.GetAttr(ctx, inode)
	return s.attr(a), err
}

func (s *sdk) Lease(inode dfs.InodeID) uint64 { return s.tree.Lease(inode) }

// GetAttrShared comes before reads: when the attributes have changed, so may have the places of the chunks.
func (s *sdk) GetAttrShared(ctx context.Context, inode dfs.InodeID) (Attr, bool, error) {
	a, shared, err := s.tree.GetAttrShared(ctx, inode)
	if err != nil {
		return Attr{}, false, err
	}
	s.mu.Lock()
	if o := s.open[inode]; o != nil && o.version != a.Version {
		o.version = a.Version
		s.tree.Forget(inode)
	}
	s.mu.Unlock()
	return s.attr(a), shared, nil
}

func (s *sdk) SetAttr(ctx context.Context, who Caller, inode dfs.InodeID, c Change) (Attr, error) {
	s.record(ctx, inode)
	change := client.AttrChange{Mode: c.Mode, UID: c.UID, GID: c.GID, AtimeNow: c.AtimeNow, MtimeNow: c.MtimeNow}
	if c.AtimeNS != nil {
		t := time.Unix(0, *c.AtimeNS)
		change.Atime = &t
	}
	if c.MtimeNS != nil {
		t := time.Unix(0, *c.MtimeNS)
		change.Mtime = &t
	}
	a, err := s.tree.SetAttr(ctx, caller(who), inode, change)
	return s.attr(a), err
}

func (s *sdk) Truncate(ctx context.Context, who Caller, inode dfs.InodeID, length int64, byHandle bool) (Attr, error) {
	s.record(ctx, inode)
	a, err := s.tree.Truncate(ctx, caller(who), inode, length, byHandle)
	return s.attr(a), err
}

func (s *sdk) Make(ctx context.Context, who Caller, parent dfs.InodeID, name []byte, n NewNode) (Attr, error) {
	a, err := s.tree.Make(ctx, caller(who), parent, name, client.NewNode{Mode: n.Mode, Rdev: n.Rdev, Target: n.Target})
	return s.attr(a), err
}

func (s *sdk) Create(ctx context.Context, who Caller, parent dfs.InodeID, name []byte, mode uint32, exclusive, truncate bool) (File, Attr, error) {
	f, a, err := s.tree.CreateFile(ctx, caller(who), parent, name, mode, exclusive, truncate)
	if err != nil {
		return nil, Attr{}, err
	}
	return s.opened(f, a), s.attr(a), nil
}

func (s *sdk) Open(ctx context.Context, who Caller, inode dfs.InodeID, read, write bool) (File, Attr, error) {
	s.tree.Forget(inode) // an open learns the places anew
	f, a, err := s.tree.OpenFile(ctx, caller(who), inode, read, write)
	if err != nil {
		return nil, Attr{}, err
	}
	return s.opened(f, a), s.attr(a), nil
}

// opened notes a handle.
func (s *sdk) opened(f *client.File, a client.Attr) File {
	h := &sdkFile{s: s, f: f, inode: a.Inode}
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.open[a.Inode]
	if o == nil {
		o = &openInode{files: map[*sdkFile]struct{}{}, version: a.Version}
		s.open[a.Inode] = o
	}
	if o.version != a.Version {
		o.version = a.Version
		s.tree.Forget(a.Inode)
	}
	o.files[h] = struct{}{}
	return h
}

// closed forgets a handle; what it did not sync stays known.
func (s *sdk) closed(h *sdkFile, unsynced []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.open[h.inode]; o != nil {
		delete(o.files, h)
		if len(o.files) == 0 {
			delete(s.open, h.inode)
		}
	}
	if len(unsynced) == 0 {
		return
	}
	now := time.Now()
	l, ok := s.left[h.inode]
	if !ok {
		if len(s.left) >= leftMax {
			for i, old := range s.left {
				if now.Sub(old.at) > leftFor {
					delete(s.left, i)
				}
			}
		}
		l.chunks = map[int64]struct{}{}
	}
	for _, i := range unsynced {
		l.chunks[i] = struct{}{}
	}
	l.at = now
	if ok || len(s.left) < leftMax {
		s.left[h.inode] = l
	}
}

// takeLeft returns and forgets what closed handles left unsynced.
func (s *sdk) takeLeft(inode dfs.InodeID) []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.left[inode]
	if !ok {
		return nil
	}
	delete(s.left, inode)
	indexes := make([]int64, 0, len(l.chunks))
	for i := range l.chunks {
		indexes = append(indexes, i)
	}
	return indexes
}

func (s *sdk) giveBack(inode dfs.InodeID, indexes []int64) {
	s.closed(&sdkFile{inode: inode}, indexes)
}

func (s *sdk) Remove(ctx context.Context, who Caller, parent dfs.InodeID, name []byte, dir bool) error {
	return s.tree.Remove(ctx, caller(who), parent, name, dir)
}

func (s *sdk) Rename(ctx context.Context, who Caller, oldParent dfs.InodeID, oldName []byte, newParent dfs.InodeID, newName []byte) error {
	return s.tree.Rename(ctx, caller(who), oldParent, oldName, newParent, newName)
}

func (s *sdk) Link(ctx context.Context, who Caller, inode, parent dfs.InodeID, name []byte) (Attr, error) {
	a, err := s.tree.Link(ctx, caller(who), inode, parent, name)
	return s.attr(a), err
}

func (s *sdk) ReadDir(ctx context.Context, who Caller, dir dfs.InodeID, after []byte, limit int) ([]DirEntry, bool, error) {
	infos, end, err := s.tree.ReadDir(ctx, caller(who), dir, after, limit)
	if err != nil {
		return nil, false, err
	}
	entries := make([]DirEntry, 0, len(infos))
	for _, i := range infos {
		entries = append(entries, DirEntry{Name: []byte(i.Name()), Inode: i.Attr.Inode, Mode: client.StatMode(i.Attr.Mode)})
	}
	return entries, end, nil
}

func (s *sdk) GetXattr(ctx context.Context, who Caller, inode dfs.InodeID, name string) ([]byte, error) {
	return s.tree.GetXattr(ctx, caller(who), inode, name)
}

func (s *sdk) ListXattr(ctx context.Context, who Caller, inode dfs.InodeID) ([]string, error) {
	return s.tree.ListXattr(ctx, caller(who), inode)
}

func (s *sdk) SetXattr(ctx context.Context, who Caller, inode dfs.InodeID, name string, value []byte, create, replace bool) error {
	mode := client.XattrSet
	switch {
	case create:
		mode = client.XattrCreate
	case replace:
		mode = client.XattrReplace
	}
	return s.tree.SetXattr(ctx, caller(who), inode, name, value, mode)
}

func (s *sdk) RemoveXattr(ctx context.Context, who Caller, inode dfs.InodeID, name string) error {
	return s.tree.RemoveXattr(ctx, caller(who), inode, name)
}

func (s *sdk) StatFS(ctx context.Context) (Totals, error) {
	t, err := s.c.StatFS(ctx)
	return Totals{Capacity: t.Capacity, Free: t.Free, Inodes: t.Inodes}, err
}

// sdkFile is a client.File behind the mount's interface.
type sdkFile struct {
	s       *sdk
	f       *client.File
	inode   dfs.InodeID
	wroteAt atomic.Int64 // nanoseconds since the epoch: of the last write
}

func (h *sdkFile) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := h.f.WithContext(ctx).ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (h *sdkFile) wrote() { h.wroteAt.Store(time.Now().UnixNano()) }

func (h *sdkFile) WriteAt(ctx context.Context, p []byte, off int64) error {
	h.wrote()
	_, err := h.f.WithContext(ctx).WriteAt(p, off)
	return err
}

func (h *sdkFile) Append(ctx context.Context, p []byte) (int64, error) {
	h.wrote()
	return h.f.Append(ctx, p)
}

func (h *sdkFile) Zero(ctx context.Context, off, n int64) error {
	h.wrote()
	return h.f.Zero(ctx, off, n)
}

func (h *sdkFile) Sync(ctx context.Context) error {
	var others []int64
	h.s.mu.Lock()
	if o := h.s.open[h.inode]; o != nil {
		for f := range o.files {
			if f != h {
				others = append(others, f.f.Unsynced()...)
			}
		}
	}
	h.s.mu.Unlock()
	left := h.s.takeLeft(h.inode)
	err := h.f.Sync(ctx)
	if err == nil {
		err = h.f.SyncChunks(ctx, append(others, left...))
	}
	if err != nil {
		h.s.giveBack(h.inode, left)
	}
	return err
}

func (h *sdkFile) Flush(ctx context.Context) error {
	return h.f.Record(ctx, time.Unix(0, h.wroteAt.Load()))
}

func (h *sdkFile) Close(ctx context.Context) error {
	err := h.Flush(ctx)
	unsynced := h.f.Unsynced()
	if cerr := h.f.WithContext(ctx).Close(); err == nil {
		err = cerr
	}
	h.s.closed(h, unsynced)
	return err
}

// spec converts a lock.
func spec(l Lock) client.LockSpec {
	out := client.LockSpec{Kind: client.ByteRange, Owner: l.Owner, PID: l.PID, First: l.First, Last: l.Last}
	if l.Flock {
		out.Kind = client.WholeFile
	}
	if l.Exclusive {
		out.Mode = client.ExclusiveLock
	}
	return out
}

func (h *sdkFile) SetLock(ctx context.Context, l Lock, wait bool) error {
	_, err := h.f.SetLock(ctx, spec(l), wait)
	return err
}

func (h *sdkFile) Unlock(ctx context.Context, l Lock) error {
	return h.f.ClearLock(ctx, spec(l))
}

func (h *sdkFile) ReleaseLocks(ctx context.Context, flock bool, owner uint64) error {
	return h.f.ReleaseLocks(ctx, spec(Lock{Flock: flock}).Kind, owner)
}

func (h *sdkFile) TestLock(ctx context.Context, l Lock) (*Lock, error) {
	c, err := h.f.TestLock(ctx, spec(l))
	if c == nil {
		return nil, err
	}
	found := &Lock{Flock: l.Flock, Owner: c.Owner, Exclusive: c.Mode == client.ExclusiveLock, First: c.First, Last: c.Last}
	if c.Own {
		found.PID = c.PID
	}
	return found, nil
}

func (h *sdkFile) MayChange(ctx context.Context) error { return h.f.MayChange(ctx) }
