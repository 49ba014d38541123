package main

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"dfs/internal/dfserr"
)

// operand is a path of the cluster as the user wrote it and as the cluster knows it.
type operand struct {
	shown string    // how messages and listings print it
	path  string    // absolute
	info  *fileInfo // nil: it does not exist
	asDir bool      // it was written with a trailing slash
}

func (o operand) exists() bool { return o.info != nil }

func (o operand) isDir() bool { return o.info != nil && o.info.Mode.IsDir() }

// sizeKnown returns an error when the size of the operand, which exists, is only a lower bound.
func (o operand) sizeKnown() error {
	if !o.info.SizeIsBound {
		return nil
	}
	return failuref(o.shown, "Its exact length is not known now (at least %d): no chunkserver that holds its end answers; see dfs fsck %s", o.info.Size, o.shown)
}

// child is the operand of an entry of the directory o.
func (o operand) child(name string) operand {
	c := operand{shown: name, path: strings.TrimRight(o.path, "/") + "/" + name}
	switch {
	case o.shown == "" || o.shown == ".":
	case strings.HasSuffix(o.shown, "/"):
		c.shown = o.shown + name
	default:
		c.shown = o.shown + "/" + name
	}
	return c
}

// base is the last name of the path, empty for the root.
func (o operand) base() string {
	if b := path.Base(o.path); b != "/" {
		return b
	}
	return ""
}

// scheme begins a fully qualified path.
const scheme = "dfs://"

// splitURI cuts a fully qualified path into its authority (which may be empty) and its path.
func splitURI(arg string) (authority, rest string, ok bool) {
	rest, ok = strings.CutPrefix(arg, scheme)
	if !ok {
		return "", arg, false
	}
	i := strings.IndexByte(rest, '/')
	if i < 0 {
		return rest, "/", true
	}
	return rest[:i], rest[i:], true
}

// locate makes an operand of an argument without looking at the cluster: it strips the scheme, anchors a relative
// path at /user/NAME, and drops doubled slashes and "." (".." is left to the server, which knows the parents).
func (env *environ) locate(arg string) operand {
	_, p, isURI := splitURI(arg)
	o := operand{shown: arg, asDir: strings.HasSuffix(arg, "/")}
	if len(o.shown) > 1 && !(isURI && p == "/") {
		o.shown = trimSlashes(o.shown)
	}
	if !strings.HasPrefix(p, "/") {
		p = "/user/" + env.user + "/" + p
	}
	o.path = tidy(p)
	return o
}

func trimSlashes(s string) string {
	t := strings.TrimRight(s, "/")
	if t == "" {
		return "/"
	}
	return t
}

// tidy drops doubled slashes and "." names from an absolute path.
func tidy(p string) string {
	var b strings.Builder
	for name := range strings.SplitSeq(p, "/") {
		if name == "" || name == "." {
			continue
		}
		b.WriteByte('/')
		b.WriteString(name)
	}
	if b.Len() == 0 {
		return "/"
	}
	return b.String()
}

// expand turns one argument into the paths it stands for. A pattern that matches nothing is an error; a plain path
// that does not exist is an operand without info. follow says whether a last symbolic link is followed.
func (sh *shell) expand(ctx context.Context, arg string, follow bool) ([]operand, error) {
	if arg == "" {
		return nil, &operandError{path: arg, text: "Can not create a Path from an empty string", err: dfserr.ErrInvalid}
	}
	if !hasMeta(arg) {
		o := sh.env.locate(unescape(arg))
		err := sh.fill(ctx, &o, follow)
		return []operand{o}, err
	}
	patterns, err := expandBraces(arg)
	if err != nil {
		return nil, err
	}
	var found []operand
	for _, p := range patterns {
		matches, err := sh.glob(ctx, p, follow)
		if err != nil {
			return nil, about(arg, err)
		}
		found = append(found, matches...)
	}
	if len(found) == 0 {
		return nil, failure(arg, fs.ErrNotExist)
	}
	slices.SortFunc(found, func(a, b operand) int { return strings.Compare(a.path, b.path) })
	return slices.CompactFunc(found, func(a, b operand) bool { return a.path == b.path }), nil
}

// fill looks o up; that it does not exist is no error.
func (sh *shell) fill(ctx context.Context, o *operand, follow bool) error {
	stat := sh.fs.Lstat
	if follow {
		stat = sh.fs.Stat
	}
	info, err := stat(ctx, o.path)
	switch {
	case err == nil:
		o.info = &info
		return nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, dfserr.ErrNotDir):
		return nil // HDFS has one message for both
	}
	return about(o.shown, err)
}

// glob finds what a pattern without braces matches, in byte order within each directory.
func (sh *shell) glob(ctx context.Context, pattern string, follow bool) ([]operand, error) {
	authority, p, isURI := splitURI(pattern)
	start := operand{shown: "", path: "/user/" + sh.env.user}
	if strings.HasPrefix(p, "/") {
		start = operand{shown: "/", path: "/"}
		if isURI {
			start.shown = scheme + authority + "/"
		}
	}
	level := []operand{start}
	names := strings.FieldsFunc(p, func(r rune) bool { return r == '/' })
	for i, name := range names {
		last := i == len(names)-1
		var next []operand
		for _, dir := range level {
			if !hasMeta(name) {
				next = append(next, dir.child(unescape(name)))
				continue
			}
			matches, err := sh.matches(ctx, dir, name)
			if err != nil {
				return nil, err
			}
			next = append(next, matches...)
		}
		if last {
			return sh.existing(ctx, next, follow)
		}
		level = next
	}
	return sh.existing(ctx, level, follow)
}

// matches lists the entries of dir whose names match; a dir that is none has no entries.
func (sh *shell) matches(ctx context.Context, dir operand, pattern string) ([]operand, error) {
	if _, err := matchName(pattern, ""); err != nil {
		return nil, err
	}
	var found []operand
	err := sh.fs.ReadDir(ctx, dir.path, func(e fileInfo) error {
		if ok, _ := matchName(pattern, e.Name); ok {
			c := dir.child(e.Name)
			c.info = &e
			found = append(found, c)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, dfserr.ErrNotDir) {
		return nil, nil
	}
	return found, about(dir.shown, err)
}

// existing keeps those candidates that are there, and follows last links where asked.
func (sh *shell) existing(ctx context.Context, candidates []operand, follow bool) ([]operand, error) {
	var found []operand
	for _, c := range candidates {
		if c.info == nil || follow && c.info.Mode&fs.ModeSymlink != 0 {
			dangling := c.info
			if err := sh.fill(ctx, &c, follow); err != nil {
				return nil, err
			}
			if c.info == nil {
				c.info = dangling // a link to nowhere still matches its name
			}
		}
		if c.info != nil {
			found = append(found, c)
		}
	}
	return found, nil
}

// list returns the entries of a directory in byte order.
func (sh *shell) list(ctx context.Context, dir operand) ([]operand, error) {
	var items []operand
	err := sh.fs.ReadDir(ctx, dir.path, func(e fileInfo) error {
		c := dir.child(e.Name)
		c.info = &e
		items = append(items, c)
		return nil
	})
	return items, about(dir.shown, err)
}

// walk calls do for o and, in byte order, for everything below it; links are not followed below o. A directory that
// cannot be listed is reported and left out; an error of do about one path is reported and the walk goes on.
func (sh *shell) walk(ctx context.Context, o operand, do func(operand) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := do(o); err != nil {
		var usage *usageError
		if errors.As(err, &usage) || ctx.Err() != nil {
			return err
		}
		sh.fail(about(o.shown, err))
	}
	if !o.isDir() {
		return nil
	}
	items, err := sh.list(ctx, o)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		sh.fail(err)
		return nil
	}
	for _, item := range items {
		if err := sh.walk(ctx, item, do); err != nil {
			return err
		}
	}
	return nil
}

// qualified is the full address of a path of this cluster.
func (sh *shell) qualified(p string) string { return sh.fs.URI() + p }

// parentOf is the directory that holds p, lexically.
func parentOf(p string) string {
	i := strings.LastIndexByte(strings.TrimRight(p, "/"), '/')
	if i <= 0 {
		return "/"
	}
	return p[:i]
}

// exists reports whether something is at p; a failed look-up other than absence is an error.
func (sh *shell) exists(ctx context.Context, p string) (bool, error) {
	o := operand{shown: p, path: p}
	err := sh.fill(ctx, &o, true)
	return o.exists(), err
}
