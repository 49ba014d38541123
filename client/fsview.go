package client

import (
	"context"
	"io/fs"
)

// FS returns the cluster's tree as an io/fs file system, rooted at "/" and working under ctx. It implements fs.StatFS,
// fs.ReadDirFS, fs.ReadFileFS and fs.ReadLinkFS.
func (c *Client) FS(ctx context.Context) fs.FS { return &fsView{c, ctx} }

type fsView struct {
	c   *Client
	ctx context.Context
}

var (
	_ fs.StatFS     = (*fsView)(nil)
	_ fs.ReadDirFS  = (*fsView)(nil)
	_ fs.ReadFileFS = (*fsView)(nil)
	_ fs.ReadLinkFS = (*fsView)(nil)
)

// abs turns a name of io/fs into a path.
func (v *fsView) abs(op, name string) (string, error) {
	if !fs.ValidPath(name) {
		return "", &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	if name == "." {
		return "/", nil
	}
	return "/" + name, nil
}

// renamed makes an error speak of the name that was asked for.
func renamed(err error, name string) error {
	if pe, ok := err.(*fs.PathError); ok {
		return &fs.PathError{Op: pe.Op, Path: name, Err: pe.Err}
	}
	return err
}

// Open implements fs.FS.
func (v *fsView) Open(name string) (fs.File, error) {
	p, err := v.abs("open", name)
	if err != nil {
		return nil, err
	}
	f, err := v.c.Open(v.ctx, p)
	if err != nil {
		return nil, renamed(err, name)
	}
	if name == "." {
		f.shown = "."
	}
	return f.WithContext(v.ctx), nil
}

// Stat implements fs.StatFS.
func (v *fsView) Stat(name string) (fs.FileInfo, error) { return v.stat("stat", name, v.c.Stat) }

// Lstat implements fs.ReadLinkFS.
func (v *fsView) Lstat(name string) (fs.FileInfo, error) { return v.stat("lstat", name, v.c.Lstat) }

func (v *fsView) stat(op, name string, stat func(context.Context, string) (*FileInfo, error)) (fs.FileInfo, error) {
	p, err := v.abs(op, name)
	if err != nil {
		return nil, err
	}
	i, err := stat(v.ctx, p)
	if err != nil {
		return nil, renamed(err, name)
	}
	if name == "." {
		i.name = "."
	}
	return i, nil
}

// ReadLink implements fs.ReadLinkFS.
func (v *fsView) ReadLink(name string) (string, error) {
	p, err := v.abs("readlink", name)
	if err != nil {
		return "", err
	}
	target, err := v.c.Readlink(v.ctx, p)
	return target, renamed(err, name)
}

// ReadDir implements fs.ReadDirFS.
func (v *fsView) ReadDir(name string) ([]fs.DirEntry, error) {
	p, err := v.abs("readdir", name)
	if err != nil {
		return nil, err
	}
	entries, err := v.c.ReadDir(v.ctx, p)
	out := make([]fs.DirEntry, 0, len(entries))
	for _, e := range entries {
		out = append(out, e)
	}
	return out, renamed(err, name)
}

// ReadFile implements fs.ReadFileFS.
func (v *fsView) ReadFile(name string) ([]byte, error) {
	p, err := v.abs("open", name)
	if err != nil {
		return nil, err
	}
	b, err := v.c.ReadFile(v.ctx, p)
	return b, renamed(err, name)
}
