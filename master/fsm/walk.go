package fsm

import (
	"bytes"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

// Walk calls fn with the inode that a reference names and, when that is a directory, with everything below it, until it returns false: parents before children,
// the children of a directory in byte order. Paths are absolute, of the walk's start as the tree has it. Hard links are visited once per
// name. Directories that the caller may not read and search are visited and not entered. path is valid during the call. The depth of the tree is not bounded,
// the memory used is proportional to it. Errors: of namespace.Resolve.
func (v *View) Walk(c *dfsv1.Caller, ref *dfsv1.Ref, fn func(path []byte, id dfs.InodeID, n *namespace.Inode) bool) error {
	caller := CallerOf(c)
	id, n, err := namespace.Resolve(v, caller, RefOf(ref))
	if err != nil {
		return err
	}
	var path []byte
	if n.IsDir() {
		if path, err = v.PathOf(id); err != nil {
			return err
		}
	} else {
		path = bytes.Clone(ref.GetPath())
	}
	if !fn(path, id, &n) || !n.IsDir() {
		return nil
	}
	// One frame per level: a page of the directory, so that no iterator stays open while its children are walked.
	type frame struct {
		dir     dfs.InodeID
		pathLen int
		after   []byte
		page    []walkEntry
		end     bool
	}
	may := func(n *namespace.Inode, id dfs.InodeID) bool {
		return namespace.Check(caller, id, n, namespace.Read|namespace.Exec) == nil
	}
	if !may(&n, id) {
		return nil
	}
	if len(path) > 1 {
		path = append(path, '/')
	}
	stack := []frame{{dir: id, pathLen: len(path)}}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if len(top.page) == 0 {
			if top.end {
				stack = stack[:len(stack)-1]
				continue
			}
			if top.page, top.end, err = v.walkPage(top.dir, top.after); err != nil {
				return err
			}
			if len(top.page) > 0 {
				top.after = top.page[len(top.page)-1].name
			}
			continue
		}
		e := top.page[0]
		top.page = top.page[1:]
		child, err := v.inode(e.inode)
		if err != nil {
			return err
		}
		if child == nil {
			return v.fail(dfserr.Errorf(dfserr.ErrCorrupt, "%q in directory %d stands for inode %d, which does not exist", e.name, top.dir, e.inode))
		}
		path = append(path[:top.pathLen], e.name...)
		if !fn(path, e.inode, child) {
			return nil
		}
		if child.IsDir() && may(child, e.inode) {
			path = append(path, '/')
			stack = append(stack, frame{dir: e.inode, pathLen: len(path)})
		}
	}
	return nil
}

// walkEntry is a name and its inode.
type walkEntry struct {
	name  []byte
	inode dfs.InodeID
}

const walkPageSize = 256

func (v *View) walkPage(dir dfs.InodeID, after []byte) (page []walkEntry, end bool, err error) {
	end = true
	err = v.Dentries(dir, after, func(name []byte, d namespace.Dentry) bool {
		if len(page) == walkPageSize {
			end = false
			return false
		}
		page = append(page, walkEntry{bytes.Clone(name), d.Inode})
		return true
	})
	return page, end, err
}

// PathOf returns the absolute path of a directory, by its parents; "/" of the root. Each level costs a walk through the parent's names. Of anything else it
// is ErrNotDir (an inode may have many names or none), of a directory that has been removed ErrNotExist.
func (v *View) PathOf(id dfs.InodeID) ([]byte, error) {
	var names [][]byte
	for at := id; at != dfs.RootInode; {
		n, err := v.GetInode(at)
		if err != nil {
			return nil, err
		}
		if !n.IsDir() {
			return nil, dfserr.Errorf(dfserr.ErrNotDir, "inode %d", at)
		}
		if n.Nlink == 0 {
			return nil, dfserr.Errorf(dfserr.ErrNotExist, "directory %d has been removed", at)
		}
		var name []byte
		err = v.Dentries(n.Parent, nil, func(candidate []byte, d namespace.Dentry) bool {
			if d.Inode == at {
				name = bytes.Clone(candidate)
			}
			return name == nil
		})
		if err != nil {
			return nil, err
		}
		if name == nil {
			return nil, v.fail(dfserr.Errorf(dfserr.ErrCorrupt, "directory %d has no name in its parent %d", at, n.Parent))
		}
		names = append(names, name)
		at = n.Parent
	}
	if len(names) == 0 {
		return []byte("/"), nil
	}
	var path []byte
	for i := len(names) - 1; i >= 0; i-- {
		path = append(append(path, '/'), names[i]...)
	}
	return path, nil
}
