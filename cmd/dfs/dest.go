package main

import (
	"context"
	"io/fs"

	"dfs/internal/dfserr"
)

// destination resolves the last argument of mv, cp, put and ln, with the rules of HDFS: several sources need an
// existing directory; one source needs a free name in an existing directory, or a directory to go into, or overwrite.
func (sh *shell) destination(ctx context.Context, arg string, sources int, overwrite bool) (operand, error) {
	items, err := sh.expand(ctx, arg, true)
	if err != nil {
		return operand{}, err
	}
	if len(items) > 1 {
		return operand{}, failuref(arg, "Too many matches")
	}
	dst := items[0]
	switch {
	case sources > 1 && !dst.exists():
		return dst, failure(dst.shown, fs.ErrNotExist)
	case sources > 1 && !dst.isDir():
		return dst, failure(dst.shown, dfserr.ErrNotDir)
	case dst.exists() && !dst.isDir() && dst.asDir:
		return dst, failure(dst.shown, dfserr.ErrNotDir)
	case dst.exists() && !dst.isDir() && !overwrite:
		return dst, failure(dst.shown, fs.ErrExist)
	case !dst.exists():
		there, err := sh.exists(ctx, parentOf(dst.path))
		if err != nil {
			return dst, err
		}
		if !there || dst.asDir {
			return dst, &operandError{
				path: dst.shown, text: describe(fs.ErrNotExist), full: sh.qualified(dst.path), err: fs.ErrNotExist,
			}
		}
	}
	return dst, nil
}

// targetIn is where a source called base goes: into dst if that is a directory, else to dst itself.
func (sh *shell) targetIn(ctx context.Context, dst operand, base string) (operand, error) {
	if !dst.isDir() {
		return dst, nil
	}
	if base == "" || base == "." || base == ".." {
		return operand{}, failuref(dst.shown, "the source has no name of its own; give the full destination")
	}
	target := dst.child(base)
	return target, sh.fill(ctx, &target, false)
}
