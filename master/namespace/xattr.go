package namespace

import (
	"bytes"
	"strings"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// XattrFlags are those of setxattr(2).
type XattrFlags struct {
	Create  bool // the attribute must not exist: ErrExist
	Replace bool // it must exist: ErrNoAttr
}

// xattrOverhead is what an attribute counts for besides its name and value, so that their number is bounded too.
const xattrOverhead = 32

// checkXattrName tells the namespace of an attribute's name, "user", "trusted" or "security". System attributes are ACLs, which are not
// kept: to accept one and not enforce it would be worse than ErrUnsupported.
func checkXattrName(name []byte) (string, error) {
	if len(name) == 0 || len(name) > dfs.XattrNameMax {
		return "", dfserr.Errorf(dfserr.ErrRange, "attribute name of %d bytes", len(name))
	}
	if bytes.IndexByte(name, 0) >= 0 {
		return "", dfserr.Errorf(dfserr.ErrInvalid, "attribute name %q contains a NUL byte", name)
	}
	space, rest, found := strings.Cut(string(name), ".")
	switch {
	case !found || space != "user" && space != "trusted" && space != "security":
		return "", dfserr.Errorf(dfserr.ErrUnsupported, "attribute %q", name)
	case rest == "":
		return "", dfserr.Errorf(dfserr.ErrInvalid, "attribute %q", name)
	}
	return space, nil
}

// mayXattr checks the rules of xattr(7): user attributes need the file's own permission, and are for regular files and directories
// (of a sticky one only the owner's); trusted ones are root's; security ones are read by all and written by root.
func mayXattr(c Caller, id dfs.InodeID, n *Inode, space string, want Access) error {
	denied := dfserr.ErrNotPermitted
	if want == Read {
		denied = dfserr.ErrNoAttr
	}
	switch space {
	case "trusted":
		if !c.IsRoot() {
			return dfserr.Errorf(denied, "trusted attribute of inode %d", id)
		}
		return nil
	case "security":
		if want == Write && !c.IsRoot() {
			return dfserr.Errorf(denied, "security attribute of inode %d", id)
		}
		return nil
	}
	if !n.IsRegular() && !n.IsDir() {
		return dfserr.Errorf(denied, "inode %d is neither a regular file nor a directory", id)
	}
	if n.IsDir() && n.Mode&Sticky != 0 && want == Write && !c.IsRoot() && c.UID != n.UID {
		return dfserr.Errorf(dfserr.ErrNotPermitted, "attribute of sticky directory %d", id)
	}
	return Check(c, id, n, want)
}

// SetXattr sets one extended attribute; ctime changes. Errors: of Resolve; ErrRange for the name's length; ErrUnsupported outside user, trusted and
// security; ErrNotPermitted; ErrPermission; ErrTooBig for the value; ErrNoSpace for all attributes together; ErrExist and ErrNoAttr by the
// flags; ErrInvalid for both flags.
func SetXattr(tx Txn, env Env, ref Ref, name, value []byte, flags XattrFlags) (dfs.InodeID, Inode, error) {
	id, n, err := forXattr(tx, env.Caller, ref, name, Write)
	if err != nil {
		return 0, Inode{}, err
	}
	if flags.Create && flags.Replace {
		return 0, Inode{}, dfserr.Errorf(dfserr.ErrInvalid, "attribute %q: both create and replace", name)
	}
	if len(value) > dfs.XattrValueMax {
		return 0, Inode{}, dfserr.Errorf(dfserr.ErrTooBig, "attribute %q: %d bytes, the limit is %d", name, len(value), dfs.XattrValueMax)
	}
	old, exists, err := tx.Xattr(id, name)
	switch {
	case err != nil:
		return 0, Inode{}, err
	case exists && flags.Create:
		return 0, Inode{}, dfserr.Errorf(dfserr.ErrExist, "attribute %q", name)
	case !exists && flags.Replace:
		return 0, Inode{}, dfserr.Errorf(dfserr.ErrNoAttr, "attribute %q", name)
	}
	n.XattrBytes += int64(len(value))
	if exists {
		n.XattrBytes -= int64(len(old))
	} else {
		n.XattrBytes += int64(len(name)) + xattrOverhead
		n.Xattrs++
	}
	if n.XattrBytes > dfs.XattrTotalMax {
		return 0, Inode{}, dfserr.Errorf(dfserr.ErrNoSpace, "attribute %q: all attributes of inode %d would have %d bytes, the limit is %d", name, id, n.XattrBytes, dfs.XattrTotalMax)
	}
	n.Ctime, n.Version = env.Now, env.Index
	tx.SetXattr(id, name, value)
	tx.SetInode(id, n)
	return id, n, nil
}

// RemoveXattr removes one extended attribute; ctime changes. Errors as of SetXattr, and ErrNoAttr.
func RemoveXattr(tx Txn, env Env, ref Ref, name []byte) (dfs.InodeID, Inode, error) {
	id, n, err := forXattr(tx, env.Caller, ref, name, Write)
	if err != nil {
		return 0, Inode{}, err
	}
	old, exists, err := tx.Xattr(id, name)
	if err != nil {
		return 0, Inode{}, err
	}
	if !exists {
		return 0, Inode{}, dfserr.Errorf(dfserr.ErrNoAttr, "attribute %q", name)
	}
	n.Xattrs--
	n.XattrBytes -= int64(len(name)+len(old)) + xattrOverhead
	n.Ctime, n.Version = env.Now, env.Index
	tx.DeleteXattr(id, name)
	tx.SetInode(id, n)
	return id, n, nil
}

// GetXattr reads one extended attribute. Errors as of SetXattr, and ErrNoAttr.
func GetXattr(r Reader, c Caller, ref Ref, name []byte) ([]byte, error) {
	id, _, err := forXattr(r, c, ref, name, Read)
	if err != nil {
		return nil, err
	}
	value, ok, err := r.Xattr(id, name)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, dfserr.Errorf(dfserr.ErrNoAttr, "attribute %q", name)
	}
	return value, nil
}

// ListXattr returns the names of an inode's extended attributes, in byte order; trusted ones are root's to see.
func ListXattr(r Reader, c Caller, ref Ref) ([][]byte, error) {
	id, n, err := Resolve(r, c, ref)
	if err != nil {
		return nil, err
	}
	var names [][]byte
	if n.Xattrs == 0 {
		return nil, nil
	}
	err = r.XattrNames(id, func(name []byte) bool {
		if c.IsRoot() || !bytes.HasPrefix(name, []byte("trusted.")) {
			names = append(names, append([]byte(nil), name...))
		}
		return true
	})
	return names, err
}

func forXattr(r Reader, c Caller, ref Ref, name []byte, want Access) (dfs.InodeID, Inode, error) {
	id, n, err := Resolve(r, c, ref)
	if err != nil {
		return 0, Inode{}, err
	}
	space, err := checkXattrName(name)
	if err != nil {
		return 0, Inode{}, err
	}
	return id, n, mayXattr(c, id, &n, space, want)
}
