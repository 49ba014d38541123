package client

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// getAttr asks for attributes, fresh.
func (c *Client) getAttr(ctx context.Context, r *dfsv1.Ref) (*dfsv1.Attr, error) {
	return c.askAttr(ctx, &dfsv1.GetAttrRequest{Ref: r})
}

// askAttr sends a request that names what to describe.
func (c *Client) askAttr(ctx context.Context, req *dfsv1.GetAttrRequest) (*dfsv1.Attr, error) {
	req.Caller, req.MinIndex = c.caller(), c.minIndex()
	var reply *dfsv1.AttrReply
	err := c.ask(ctx, func(ctx context.Context, m dfsv1.MasterClient) (err error) {
		reply, err = m.GetAttr(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	c.masters.observe(reply.GetIndex())
	return reply.GetAttr(), nil
}

// Peek is Stat, or Lstat with noFollow, for callers that can do without the exact length of a file: when the chunkservers that
// know it do not answer within about two seconds, Attr.SizeIsBound is set. Stat waits for them.
func (c *Client) Peek(ctx context.Context, path string, noFollow bool) (*FileInfo, error) {
	r, err := ref(path, noFollow)
	if err != nil {
		return nil, pathErr("stat", path, err)
	}
	a, err := c.askAttr(ctx, &dfsv1.GetAttrRequest{Ref: r, BoundOk: true})
	if err != nil {
		return nil, pathErr("stat", path, err)
	}
	return infoOf(path, a), nil
}

// Stat describes path, following a last symbolic link.
func (c *Client) Stat(ctx context.Context, path string) (*FileInfo, error) {
	return c.stat(ctx, "stat", path, false)
}

// Lstat describes path without following a last symbolic link.
func (c *Client) Lstat(ctx context.Context, path string) (*FileInfo, error) {
	return c.stat(ctx, "lstat", path, true)
}

func (c *Client) stat(ctx context.Context, op, path string, noFollow bool) (*FileInfo, error) {
	r, err := ref(path, noFollow)
	if err != nil {
		return nil, pathErr(op, path, err)
	}
	a, err := c.getAttr(ctx, r)
	if err != nil {
		return nil, pathErr(op, path, err)
	}
	return infoOf(path, a), nil
}

// listPage is how many entries one call lists; a long listing goes on with pages of longListPage.
const (
	listPage     = 1024
	longListPage = 4096
)

// ReadDir returns all entries of a directory in byte order of name, with attributes.
func (c *Client) ReadDir(ctx context.Context, path string) ([]*FileInfo, error) {
	var all []*FileInfo
	err := c.ReadDirFunc(ctx, path, "", func(i *FileInfo) error {
		all = append(all, i)
		return nil
	})
	return all, err
}

// ReadDirFunc calls each for the entries of a directory whose names come after the given one ("": all), in byte order of
// name, with attributes, fetching a page at a time. Entries made or removed meanwhile may or may not be
// seen; all others are seen exactly once. Where Attr.SizeIsBound is set the exact length was not to be had. fs.SkipAll from each ends it without an error, any other error is returned.
func (c *Client) ReadDirFunc(ctx context.Context, path, after string, each func(*FileInfo) error) error {
	r, err := ref(path, false)
	if err != nil {
		return pathErr("readdir", path, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	pages := c.readPages(ctx, r, []byte(after))
	defer func() { // the goroutine behind pages is joined
		cancel()
		for range pages {
		}
	}()
	for p := range pages {
		if p.err != nil {
			return pathErr("readdir", path, p.err)
		}
		for some := range slices.Chunk(p.entries, infoBlock) {
			infos := infosOf(some)
			for i := range infos {
				if err := each(&infos[i]); err != nil {
					if errors.Is(err, fs.SkipAll) {
						return nil
					}
					return err
				}
			}
		}
		if p.last {
			return nil
		}
	}
	return pathErr("readdir", path, ctx.Err()) // it ended before the last page
}

// page is part of a directory.
type page struct {
	entries []*dfsv1.DirEntry
	last    bool
	err     error
}

// readPages lists a directory from after on, one page ahead of who takes the pages. The channel is closed after the last page, the
// first error, or the end of ctx.
func (c *Client) readPages(ctx context.Context, r *dfsv1.Ref, after []byte) <-chan page {
	pages := make(chan page)
	go func() {
		defer close(pages)
		for limit := uint32(listPage); ; limit = longListPage {
			reply, err := c.readDirPage(ctx, r, after, limit)
			entries := reply.GetEntries()
			p := page{entries, reply.GetEnd() || len(entries) == 0, err}
			select {
			case pages <- p:
			case <-ctx.Done():
				return
			}
			if p.last || err != nil {
				return
			}
			after = entries[len(entries)-1].GetName()
		}
	}()
	return pages
}

// infoBlock is how many infos are allocated together: whoever keeps one keeps them all.
const infoBlock = 64

// infosOf describes entries. They are allocated together, names and infos.
func infosOf(entries []*dfsv1.DirEntry) []FileInfo {
	infos := make([]FileInfo, len(entries))
	size := 0
	for _, e := range entries {
		size += len(e.GetName())
	}
	var text strings.Builder
	text.Grow(size)
	for _, e := range entries {
		text.Write(e.GetName())
	}
	names := text.String()
	for i, e := range entries {
		n := len(e.GetName())
		infos[i].name, names = names[:n], names[n:]
		infos[i].Attr = attrOf(e.GetAttr())
	}
	return infos
}

func (c *Client) readDirPage(ctx context.Context, r *dfsv1.Ref, after []byte, limit uint32) (*dfsv1.ReadDirReply, error) {
	req := &dfsv1.ReadDirRequest{Caller: c.caller(), Ref: r, After: after, Limit: limit, MinIndex: c.minIndex()}
	var reply *dfsv1.ReadDirReply
	err := c.ask(ctx, func(ctx context.Context, m dfsv1.MasterClient) (err error) {
		reply, err = m.ReadDir(ctx, req)
		return err
	})
	if err == nil {
		c.masters.observe(reply.GetIndex())
	}
	return reply, err
}

// create makes one name; fill completes the request.
func (c *Client) create(ctx context.Context, path string, mode uint32, fill func(*dfsv1.CreateRequest)) (*dfsv1.OpenReply, error) {
	parent, name, err := parentRef(path)
	if err != nil {
		return nil, err
	}
	var reply *dfsv1.OpenReply
	err = c.mutate(ctx, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (err error) {
		req := &dfsv1.CreateRequest{Header: h, Parent: parent, Name: name, Mode: mode &^ (c.cfg.Umask & 0o777), Exclusive: true}
		if mode&modeTypeMask == modeSymlink {
			req.Mode = mode
		}
		if fill != nil {
			fill(req)
		}
		reply, err = m.Create(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	c.masters.observe(reply.GetIndex())
	return reply, nil
}

// Mkdir makes one directory with the permission bits of perm.
func (c *Client) Mkdir(ctx context.Context, path string, perm fs.FileMode) error {
	_, err := c.create(ctx, path, modeDir|permBits(perm), nil)
	return pathErr("mkdir", path, err)
}

// MkdirAll makes a directory and every missing one above it; an existing directory is success.
func (c *Client) MkdirAll(ctx context.Context, path string, perm fs.FileMode) error {
	if names, err := dfs.SplitPath([]byte(path)); err == nil && len(names) == 0 && checkPath(path) == nil {
		return nil // "/"
	}
	_, err := c.create(ctx, path, modeDir|permBits(perm), func(r *dfsv1.CreateRequest) { r.Exclusive, r.MakeParents = false, true })
	return pathErr("mkdir", path, err)
}

// Mknod makes a special file: a named pipe, a socket or a device with number rdev; mode gives type and permission.
func (c *Client) Mknod(ctx context.Context, path string, mode fs.FileMode, rdev uint32) error {
	_, err := c.create(ctx, path, statMode(mode), func(r *dfsv1.CreateRequest) { r.Rdev = rdev })
	return pathErr("mknod", path, err)
}

// Symlink makes path a symbolic link to target, which may be any text of 1 to SymlinkMax bytes without NUL.
func (c *Client) Symlink(ctx context.Context, target, path string) error {
	err := checkTarget(target)
	if err == nil {
		_, err = c.create(ctx, path, modeSymlink|0o777, func(r *dfsv1.CreateRequest) { r.SymlinkTarget = []byte(target) })
	}
	return pathErr("symlink", path, err)
}

func checkTarget(target string) error {
	switch {
	case target == "":
		return dfserr.Errorf(dfserr.ErrInvalid, "the link's target is empty")
	case len(target) > dfs.SymlinkMax:
		return dfserr.Errorf(dfserr.ErrNameTooLong, "the link's target is %d bytes long, the limit is %d", len(target), dfs.SymlinkMax)
	}
	for i := range len(target) {
		if target[i] == 0 {
			return dfserr.Errorf(dfserr.ErrInvalid, "the link's target %q contains a NUL byte", target)
		}
	}
	return nil
}

// Readlink returns a symbolic link's target.
func (c *Client) Readlink(ctx context.Context, path string) (string, error) {
	i, err := c.stat(ctx, "readlink", path, true)
	if err != nil {
		return "", err
	}
	if i.Attr.Mode&fs.ModeSymlink == 0 {
		return "", pathErr("readlink", path, dfserr.Errorf(dfserr.ErrInvalid, "not a symbolic link"))
	}
	return i.Attr.Target, nil
}

// Link makes newPath another name of the inode at oldPath (a last symbolic link is not followed).
func (c *Client) Link(ctx context.Context, oldPath, newPath string) error {
	target, err := ref(oldPath, true)
	if err != nil {
		return pathErr("link", oldPath, err)
	}
	parent, name, err := parentRef(newPath)
	if err != nil {
		return pathErr("link", newPath, err)
	}
	return pathErr("link", newPath, c.changeAttr(ctx, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error) {
		return m.Link(ctx, &dfsv1.LinkRequest{Header: h, Target: target, Parent: parent, Name: name})
	}))
}

// changeAttr makes a mutation that is answered with attributes.
func (c *Client) changeAttr(ctx context.Context, do func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error)) error {
	_, err := c.changedAttr(ctx, do)
	return err
}

func (c *Client) changedAttr(ctx context.Context, do func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error)) (*dfsv1.Attr, error) {
	var reply *dfsv1.AttrReply
	err := c.mutate(ctx, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (err error) {
		reply, err = do(ctx, m, h)
		return err
	})
	if err != nil {
		return nil, err
	}
	c.masters.observe(reply.GetIndex())
	return reply.GetAttr(), nil
}

// Remove takes away one name: a file of any type or an empty directory.
func (c *Client) Remove(ctx context.Context, path string) error {
	return pathErr("remove", path, c.remove(ctx, path, dfsv1.RemoveRequest_ANY))
}

// Unlink takes away a name that is not a directory's.
func (c *Client) Unlink(ctx context.Context, path string) error {
	return pathErr("unlink", path, c.remove(ctx, path, dfsv1.RemoveRequest_FILE))
}

// Rmdir takes away an empty directory.
func (c *Client) Rmdir(ctx context.Context, path string) error {
	return pathErr("rmdir", path, c.remove(ctx, path, dfsv1.RemoveRequest_DIRECTORY))
}

// RemoveAll takes away path and all below it, in one step; space is reclaimed in the background. A path that does
// not exist is success.
func (c *Client) RemoveAll(ctx context.Context, path string) error {
	err := c.remove(ctx, path, dfsv1.RemoveRequest_TREE)
	if errors.Is(err, dfserr.ErrNotExist) {
		return nil
	}
	return pathErr("removeall", path, err)
}

func (c *Client) remove(ctx context.Context, path string, what dfsv1.RemoveRequest_What) error {
	parent, name, err := parentRef(path)
	if err != nil {
		return err
	}
	return c.mutate(ctx, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) error {
		reply, err := m.Remove(ctx, &dfsv1.RemoveRequest{Header: h, Parent: parent, Name: name, What: what})
		c.masters.observe(reply.GetIndex())
		return err
	})
}

// Rename moves oldPath to newPath in one step, replacing what rename(2) would replace.
func (c *Client) Rename(ctx context.Context, oldPath, newPath string) error {
	return c.rename(ctx, oldPath, newPath, false, false)
}

// RenameNoReplace is Rename that fails with ErrExist when newPath exists.
func (c *Client) RenameNoReplace(ctx context.Context, oldPath, newPath string) error {
	return c.rename(ctx, oldPath, newPath, true, false)
}

// Exchange swaps two existing names in one step.
func (c *Client) Exchange(ctx context.Context, oldPath, newPath string) error {
	return c.rename(ctx, oldPath, newPath, false, true)
}

func (c *Client) rename(ctx context.Context, oldPath, newPath string, noReplace, exchange bool) error {
	r, err := renameRequest(oldPath, newPath)
	if err != nil {
		return err
	}
	r.NoReplace, r.Exchange = noReplace, exchange
	return pathErr("rename", oldPath, c.renameAs(ctx, r))
}

// renameRequest names the two paths. Its error is a *fs.PathError.
func renameRequest(oldPath, newPath string) (*dfsv1.RenameRequest, error) {
	oldParent, oldName, err := parentRef(oldPath)
	if err != nil {
		return nil, pathErr("rename", oldPath, err)
	}
	newParent, newName, err := parentRef(newPath)
	if err != nil {
		return nil, pathErr("rename", newPath, err)
	}
	return &dfsv1.RenameRequest{OldParent: oldParent, OldName: oldName, NewParent: newParent, NewName: newName}, nil
}

// renameAs makes a request that is complete but for its header.
func (c *Client) renameAs(ctx context.Context, r *dfsv1.RenameRequest) error {
	return c.changeAttr(ctx, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error) {
		return m.Rename(ctx, &dfsv1.RenameRequest{
			Header: h, OldParent: r.GetOldParent(), OldName: r.GetOldName(), NewParent: r.GetNewParent(), NewName: r.GetNewName(),
			NoReplace: r.GetNoReplace(), Exchange: r.GetExchange(),
		})
	})
}

// setAttr changes attributes of path.
func (c *Client) setAttr(ctx context.Context, op, path string, noFollow bool, fill func(*dfsv1.SetAttrRequest)) error {
	r, err := ref(path, noFollow)
	if err != nil {
		return pathErr(op, path, err)
	}
	return pathErr(op, path, c.changeAttr(ctx, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error) {
		req := &dfsv1.SetAttrRequest{Header: h, Ref: r}
		fill(req)
		return m.SetAttr(ctx, req)
	}))
}

// Chmod sets permission, setuid, setgid and sticky bits.
func (c *Client) Chmod(ctx context.Context, path string, mode fs.FileMode) error {
	bits := permBits(mode)
	return c.setAttr(ctx, "chmod", path, false, func(r *dfsv1.SetAttrRequest) { r.Mode = &bits })
}

// Chown sets owner and group, following a last symbolic link; -1 leaves one as it is.
func (c *Client) Chown(ctx context.Context, path string, uid, gid int) error {
	return c.chown(ctx, "chown", path, uid, gid, false)
}

// Lchown is Chown without following a last symbolic link.
func (c *Client) Lchown(ctx context.Context, path string, uid, gid int) error {
	return c.chown(ctx, "lchown", path, uid, gid, true)
}

func (c *Client) chown(ctx context.Context, op, path string, uid, gid int, noFollow bool) error {
	for _, id := range []int{uid, gid} {
		if id < -1 || int64(id) > 1<<32-2 {
			return pathErr(op, path, dfserr.Errorf(dfserr.ErrInvalid, "id %d", id))
		}
	}
	return c.setAttr(ctx, op, path, noFollow, func(r *dfsv1.SetAttrRequest) {
		if u := uint32(uid); uid >= 0 {
			r.Uid = &u
		}
		if g := uint32(gid); gid >= 0 {
			r.Gid = &g
		}
	})
}

// Chtimes sets access and modification time; a zero time leaves one as it is.
func (c *Client) Chtimes(ctx context.Context, path string, atime, mtime time.Time) error {
	return c.setAttr(ctx, "chtimes", path, false, func(r *dfsv1.SetAttrRequest) {
		if ns := atime.UnixNano(); !atime.IsZero() {
			r.AtimeNs = &ns
		}
		if ns := mtime.UnixNano(); !mtime.IsZero() {
			r.MtimeNs = &ns
		}
	})
}

// Touch sets access and modification time to the master's present.
func (c *Client) Touch(ctx context.Context, path string) error {
	return c.setAttr(ctx, "touch", path, false, func(r *dfsv1.SetAttrRequest) { r.AtimeNow, r.MtimeNow = true, true })
}

// SetReplication sets how many replicas each chunk of a file is to have, 0 to MaxReplication; the cluster gets there
// in the background.
func (c *Client) SetReplication(ctx context.Context, path string, n int) error {
	if n < 0 || n > dfs.MaxReplication {
		return pathErr("setrep", path, dfserr.Errorf(dfserr.ErrInvalid, "replication %d: want 0 to %d", n, dfs.MaxReplication))
	}
	want := uint32(n)
	return c.setAttr(ctx, "setrep", path, false, func(r *dfsv1.SetAttrRequest) { r.Replication = &want })
}

// Truncate sets a file's length; a longer one reads as zeros.
func (c *Client) Truncate(ctx context.Context, path string, size int64) error {
	r, err := ref(path, false)
	if err == nil {
		err = checkLength(size)
	}
	if err == nil {
		err = c.truncate(ctx, r, size, 0)
	}
	return pathErr("truncate", path, err)
}

func (c *Client) truncate(ctx context.Context, r *dfsv1.Ref, size int64, handle dfs.InodeID) error {
	a, err := c.changedAttr(ctx, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error) {
		return m.Truncate(ctx, &dfsv1.TruncateRequest{Header: h, Ref: r, Length: size, HandleInode: uint64(handle)})
	})
	if err != nil {
		return err
	}
	first := int64(0)
	if a.GetChunkSize() > 0 {
		first = size / a.GetChunkSize()
	}
	c.cache.InvalidateFrom(dfs.InodeID(a.GetInode()), first)
	return nil
}

// checkLength says what is wrong with a file length.
func checkLength(n int64) error {
	switch {
	case n < 0:
		return dfserr.Errorf(dfserr.ErrInvalid, "length %d is negative", n)
	case n > dfs.MaxFileLength:
		return dfserr.Errorf(dfserr.ErrFileTooLarge, "length %d, the limit is %d", n, dfs.MaxFileLength)
	}
	return nil
}

// Getxattr returns the value of an extended attribute; ErrNoAttr when there is none of that name.
func (c *Client) Getxattr(ctx context.Context, path, name string) ([]byte, error) {
	r, err := ref(path, false)
	if err == nil {
		err = checkXattr(name, nil)
	}
	if err != nil {
		return nil, pathErr("getxattr", path, err)
	}
	req := &dfsv1.GetXattrRequest{Caller: c.caller(), Ref: r, Name: []byte(name), MinIndex: c.minIndex()}
	var reply *dfsv1.GetXattrReply
	err = c.ask(ctx, func(ctx context.Context, m dfsv1.MasterClient) (err error) {
		reply, err = m.GetXattr(ctx, req)
		return err
	})
	if err != nil {
		return nil, pathErr("getxattr", path, err)
	}
	c.masters.observe(reply.GetIndex())
	return reply.GetValue(), nil
}

// Listxattr returns the names of all extended attributes in byte order.
func (c *Client) Listxattr(ctx context.Context, path string) ([]string, error) {
	r, err := ref(path, false)
	if err != nil {
		return nil, pathErr("listxattr", path, err)
	}
	req := &dfsv1.ListXattrRequest{Caller: c.caller(), Ref: r, MinIndex: c.minIndex()}
	var reply *dfsv1.ListXattrReply
	err = c.ask(ctx, func(ctx context.Context, m dfsv1.MasterClient) (err error) {
		reply, err = m.ListXattr(ctx, req)
		return err
	})
	if err != nil {
		return nil, pathErr("listxattr", path, err)
	}
	c.masters.observe(reply.GetIndex())
	names := make([]string, 0, len(reply.GetNames()))
	for _, n := range reply.GetNames() {
		names = append(names, string(n))
	}
	return names, nil
}

// XattrMode says what Setxattr does about an attribute that exists, or does not.
type XattrMode int

const (
	// XattrSet creates or replaces.
	XattrSet XattrMode = iota
	// XattrCreate fails with ErrExist when the attribute exists.
	XattrCreate
	// XattrReplace fails with ErrNoAttr when it does not.
	XattrReplace
)

// Setxattr sets an extended attribute.
func (c *Client) Setxattr(ctx context.Context, path, name string, value []byte, mode XattrMode) error {
	r, err := ref(path, false)
	if err == nil {
		err = checkXattr(name, value)
	}
	if err != nil {
		return pathErr("setxattr", path, err)
	}
	return pathErr("setxattr", path, c.changeAttr(ctx, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error) {
		return m.SetXattr(ctx, &dfsv1.SetXattrRequest{
			Header: h, Ref: r, Name: []byte(name), Value: value, Create: mode == XattrCreate, Replace: mode == XattrReplace,
		})
	}))
}

// Removexattr takes away an extended attribute.
func (c *Client) Removexattr(ctx context.Context, path, name string) error {
	r, err := ref(path, false)
	if err == nil {
		err = checkXattr(name, nil)
	}
	if err != nil {
		return pathErr("removexattr", path, err)
	}
	return pathErr("removexattr", path, c.changeAttr(ctx, func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) (*dfsv1.AttrReply, error) {
		return m.RemoveXattr(ctx, &dfsv1.RemoveXattrRequest{Header: h, Ref: r, Name: []byte(name)})
	}))
}

func checkXattr(name string, value []byte) error {
	switch {
	case name == "":
		return dfserr.Errorf(dfserr.ErrInvalid, "the attribute's name is empty")
	case len(name) > dfs.XattrNameMax:
		return dfserr.Errorf(dfserr.ErrRange, "the attribute's name is %d bytes long, the limit is %d", len(name), dfs.XattrNameMax)
	case len(value) > dfs.XattrValueMax:
		return dfserr.Errorf(dfserr.ErrTooBig, "the attribute's value is %d bytes long, the limit is %d", len(value), dfs.XattrValueMax)
	}
	for i := range len(name) {
		if name[i] == 0 {
			return dfserr.Errorf(dfserr.ErrInvalid, "the attribute's name %q contains a NUL byte", name)
		}
	}
	return nil
}
