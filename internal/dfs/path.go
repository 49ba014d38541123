package dfs

import (
	"bytes"
	"strings"

	"dfs/internal/dfserr"
)

// CheckName reports whether name may be an entry of a directory: 1 to NameMax bytes, any bytes but NUL and
// '/', and neither "." nor "..". The error wraps ErrInvalid or ErrNameTooLong and names the input.
func CheckName(name []byte) error {
	switch {
	case len(name) == 0:
		return dfserr.Errorf(dfserr.ErrInvalid, "name is empty")
	case len(name) > NameMax:
		return dfserr.Errorf(dfserr.ErrNameTooLong, "name %.32q… is %d bytes long, the limit is %d", name, len(name), NameMax)
	case bytes.IndexByte(name, 0) >= 0:
		return dfserr.Errorf(dfserr.ErrInvalid, "name %q contains a NUL byte", name)
	case bytes.IndexByte(name, '/') >= 0:
		return dfserr.Errorf(dfserr.ErrInvalid, "name %q contains a slash", name)
	case string(name) == "." || string(name) == "..":
		return dfserr.Errorf(dfserr.ErrInvalid, "name %q is reserved", name)
	}
	return nil
}

// SplitPath cuts a path at its slashes. Empty components and "." are dropped, as POSIX does; ".." is
// kept for the walker, which knows the parents. A path over PathMax bytes, with a NUL, or with a name over
// NameMax gives ErrNameTooLong or ErrInvalid.
func SplitPath(path []byte) ([][]byte, error) {
	if len(path) > PathMax {
		return nil, dfserr.Errorf(dfserr.ErrNameTooLong, "path %.32q… is %d bytes long, the limit is %d", path, len(path), PathMax)
	}
	var names [][]byte
	for _, c := range bytes.Split(path, []byte{'/'}) {
		if len(c) == 0 || string(c) == "." {
			continue
		}
		if string(c) != ".." {
			if err := CheckName(c); err != nil {
				return nil, err
			}
		}
		names = append(names, c)
	}
	return names, nil
}

// SplitDirBase cuts an absolute path into its directory and its last name, the way mkdir and rename need
// it. The last name must satisfy CheckName, so "/", "a/." and "a/.." are ErrInvalid.
func SplitDirBase(path string) (dir, base string, err error) {
	trimmed := strings.TrimRight(path, "/")
	if trimmed == "" {
		return "", "", dfserr.Errorf(dfserr.ErrInvalid, "path %q has no last name", path)
	}
	i := strings.LastIndexByte(trimmed, '/')
	dir, base = trimmed[:i+1], trimmed[i+1:]
	if len(path) > PathMax {
		return "", "", dfserr.Errorf(dfserr.ErrNameTooLong, "path %.32q… is %d bytes long, the limit is %d", path, len(path), PathMax)
	}
	if err := CheckName([]byte(base)); err != nil {
		return "", "", err
	}
	if dir == "" {
		dir = "/"
	}
	return dir, base, nil
}
