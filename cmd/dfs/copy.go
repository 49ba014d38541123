package main

import (
	"cmp"
	"context"
	"io/fs"
	"os"
	"strings"

	"dfs/internal/dfserr"
)

func copyVerbs() []*verb {
	force := flagDef{name: "f", long: "force", help: "replace existing files"}
	keep := flagDef{name: "p", long: "preserve", help: "keep times, owner, group and permissions"}
	recursive := flagDef{name: "r", long: "recursive", help: "accepted: directories are always copied with what is below them"}
	recursiveToo := flagDef{name: "R", help: "accepted, like -r"}
	threads := flagDef{name: "t", long: "threads", value: "n", help: "files to work on at a time (default 16)"}
	uploads := threads
	uploads.help = "files to work on at a time (default 16); four times as many of up to 4 KiB, which are one request each"
	return []*verb{
		{
			name: "put", aliases: []string{"copyFromLocal"}, usage: "[-f] [-p] [-r] [-t <thread count>] <localsrc> ... <dst>",
			short: "Copy local files and directories into the cluster; - is standard input",
			long:  "A file appears under its name when it is complete, or not at all; an interrupted put leaves nothing behind.",
			flags: []flagDef{force, keep, recursive, recursiveToo, uploads}, min: 1, run: runPut,
		},
		{
			name: "moveFromLocal", usage: "[-f] [-p] [-t <thread count>] <localsrc> ... <dst>", short: "Like put; the local files are removed when all are stored",
			flags: []flagDef{force, keep, uploads}, min: 1, run: runMoveFromLocal,
		},
		{
			name: "get", aliases: []string{"copyToLocal"}, usage: "[-f] [-p] [-r] [-ignoreCrc] [-t <thread count>] <src> ... <localdst>",
			short: "Copy files and directories to this machine; - is standard output",
			long:  "A file appears under its name when it is complete and on stable storage, or not at all.",
			flags: []flagDef{force, keep, recursive, recursiveToo, {name: "ignoreCrc", help: "accepted: checksums are always verified"}, threads}, min: 1, run: runGet,
		},
		{
			name: "cp", usage: "[-f] [-p | -p[topax]] [-r] [-t <thread count>] <src> ... <dst>", short: "Copy files and directories within the cluster",
			flags: []flagDef{
				force, {name: "p", attached: "topax", help: "keep (t)imes, (o)wnership, (p)ermissions; alone: all three"}, recursive, recursiveToo, threads,
			}, min: 2, run: runCp,
		},
	}
}

func runPut(ctx context.Context, sh *shell, args []string) error {
	_, err := sh.put(ctx, args)
	return err
}

// put copies local arguments into the cluster and returns the local paths it was given.
func (sh *shell) put(ctx context.Context, args []string) ([]string, error) {
	last := len(args) - 1
	dstArg := "."
	locals := args
	if last > 0 {
		dstArg, locals = args[last], args[:last]
	}
	var paths []string
	for _, arg := range locals {
		if arg == "-" {
			if len(locals) > 1 {
				return nil, failuref(arg, "standard input cannot be mixed with files")
			}
			return nil, sh.putStream(ctx, dstArg)
		}
		paths = append(paths, localArgs(arg)...)
	}
	dst, err := sh.destination(ctx, dstArg, len(paths), sh.opts.on("f"))
	if err != nil {
		return nil, err
	}
	keep := sh.opts.on("p")
	c, work, err := sh.startCopying(ctx, preserved{times: keep, owner: keep, mode: keep}, true)
	if err != nil {
		return nil, err
	}
	var stop func()
	c.bar, stop = sh.startProgress()
	defer stop()
	var walkErr error
	for _, path := range paths {
		err := c.putOne(work, path, dst)
		if err != nil && (fatal(err) || work.Err() != nil) {
			walkErr = err
			break
		}
		sh.fail(err)
	}
	return paths, cmp.Or(c.wait(ctx), walkErr)
}

func (c *copying) putOne(ctx context.Context, path string, dst operand) error {
	src, err := openLocal(path, true)
	if err != nil {
		return err
	}
	target, err := c.sh.targetIn(ctx, dst, src.Base())
	if err != nil {
		return err
	}
	if src.info.Mode()&(fs.ModeNamedPipe|fs.ModeCharDevice) != 0 {
		c.spawn(func() error { return c.uploadFile(ctx, src, target, false) })
		return nil
	}
	if target.exists() && !src.info.IsDir() && !c.force {
		return failure(target.shown, fs.ErrExist)
	}
	return c.upload(ctx, src, target, false)
}

// putStream stores standard input.
func (sh *shell) putStream(ctx context.Context, dstArg string) error {
	dst, err := sh.destination(ctx, dstArg, 1, sh.opts.on("f"))
	if err != nil {
		return err
	}
	if dst.isDir() {
		return failure(dst.shown, dfserr.ErrIsDir)
	}
	c, work, err := sh.startCopying(ctx, preserved{}, true)
	if err != nil {
		return err
	}
	c.spawn(func() error { return c.uploadFile(work, streamSource{sh.env.in}, dst, false) })
	return c.wait(ctx)
}

func runMoveFromLocal(ctx context.Context, sh *shell, args []string) error {
	paths, err := sh.put(ctx, args)
	if err != nil {
		return err
	}
	if sh.failed {
		sh.note("%s: not everything was stored, so nothing was removed here", sh.as)
		return nil
	}
	for _, path := range paths {
		sh.fail(about(path, os.RemoveAll(path)))
	}
	return nil
}

func runCp(ctx context.Context, sh *shell, args []string) error {
	keep := preserved{}
	if letters, ok := sh.opts["p"]; ok {
		keep = preserved{
			times: letters == "" || strings.Contains(letters, "t"),
			owner: letters == "" || strings.Contains(letters, "o"),
			mode:  letters == "" || strings.Contains(letters, "p"),
		}
	}
	last := len(args) - 1
	sources := sh.expandAll(ctx, args[:last], true)
	dst, err := sh.destination(ctx, args[last], len(sources), sh.opts.on("f"))
	if err != nil {
		return err
	}
	c, work, err := sh.startCopying(ctx, keep, true)
	if err != nil {
		return err
	}
	var stop func()
	c.bar, stop = sh.startProgress()
	defer stop()
	err = sh.eachItem(work, sources, nil, func(src operand) error {
		target, err := sh.targetIn(work, dst, src.base())
		if err != nil {
			return err
		}
		switch {
		case target.path == src.path:
			return &operandError{path: src.shown, to: target.shown, text: "are identical", err: dfserr.ErrInvalid}
		case strings.HasPrefix(target.path, strings.TrimRight(src.path, "/")+"/"):
			return &operandError{path: src.shown, to: target.shown, text: "is a subdirectory of itself", err: dfserr.ErrInvalid}
		case target.exists() && !src.isDir() && !c.force:
			return failure(target.shown, fs.ErrExist)
		}
		return c.upload(work, remoteSource{sh: sh, o: src}, target, false)
	})
	return cmp.Or(c.wait(ctx), err)
}
