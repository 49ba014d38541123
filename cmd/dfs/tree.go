package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"dfs/internal/dfserr"
)

func treeVerbs() []*verb {
	rmFlags := []flagDef{
		{name: "f", long: "force", help: "no message and no error for what does not exist"},
		{name: "r", long: "recursive", help: "remove directories and what is below them"},
		{name: "R", help: "the same as -r"},
		{name: "skipTrash", help: "accepted: there is no trash, removal is always at once"},
		{name: "safely", help: "ask before removing more than 100 files"},
	}
	rm := &verb{
		name: "rm", usage: "[-f] [-r|-R] [-skipTrash] [-safely] <src> ...", short: "Remove files; with -r, directories",
		long:  "A directory is detached in one step on the master; its space comes back in the background.",
		flags: rmFlags, min: 1, printsJSON: true, run: runRm,
	}
	rmr := *rm
	rmr.name, rmr.replaced, rmr.short = "rmr", "rm -r", "Old spelling of rm -r"
	rmr.run = func(ctx context.Context, sh *shell, args []string) error {
		sh.opts["r"] = ""
		return runRm(ctx, sh, args)
	}
	return []*verb{
		{
			name: "mkdir", usage: "[-p] <path> ...", short: "Make directories",
			flags: []flagDef{{name: "p", long: "parents", help: "make missing parents, be content with existing directories"}},
			min:   1, run: runMkdir,
		},
		rm, &rmr,
		{
			name: "rmdir", usage: "[--ignore-fail-on-non-empty] <dir> ...", short: "Remove empty directories",
			flags: []flagDef{{name: "-ignore-fail-on-non-empty", long: "ignore-fail-on-non-empty", help: "leave directories that are not empty without a word"}},
			min:   1, run: runRmdir,
		},
		{
			name: "mv", usage: "[-f] <src> ... <dst>", short: "Rename, or move into a directory",
			flags: []flagDef{{name: "f", long: "force", help: "replace an existing file"}},
			min:   2, run: runMv,
		},
		{
			name: "ln", usage: "[-s] [-f] <target> ... <link>", short: "Make a link to a file; with -s, a symbolic link",
			flags: []flagDef{
				{name: "s", long: "symbolic", help: "make symbolic links; the target is stored as written"},
				{name: "f", long: "force", help: "replace an existing file"},
			},
			min: 2, run: runLn,
		},
		{
			name: "readlink", usage: "<link> ...", short: "Print the targets of symbolic links", min: 1, printsJSON: true, run: runReadlink,
		},
	}
}

func runMkdir(ctx context.Context, sh *shell, args []string) error {
	parents := sh.opts.on("p")
	existing := func(o operand) error {
		if !o.isDir() {
			return failure(o.shown, dfserr.ErrNotDir)
		}
		if !parents {
			return failure(o.shown, fs.ErrExist)
		}
		return nil
	}
	return sh.eachOperand(ctx, args, true, func(o operand) error {
		perm := fs.FileMode(0o777) &^ sh.env.umask
		if parents {
			return sh.fs.MkdirAll(ctx, o.path, perm)
		}
		err := sh.fs.Mkdir(ctx, o.path, perm)
		if errors.Is(err, fs.ErrNotExist) {
			return failure(sh.qualified(parentOf(o.path)), fs.ErrNotExist)
		}
		return err
	}, existing)
}

// safelyLimit is how many files `rm -safely` removes without asking.
const safelyLimit = 100

func runRm(ctx context.Context, sh *shell, args []string) error {
	recursive := sh.opts.on("r") || sh.opts.on("R")
	force := sh.opts.on("f")
	if force {
		args = sh.dropUnmatched(ctx, args)
	}
	missing := func(o operand) error {
		if force {
			return nil
		}
		return failure(o.shown, fs.ErrNotExist)
	}
	return sh.eachOperand(ctx, args, false, missing, func(o operand) error {
		if o.path == "/" {
			return failuref(o.shown, "Operation not permitted: the root directory is never removed")
		}
		if !o.isDir() {
			if err := sh.fs.Remove(ctx, o.path); err != nil {
				return err
			}
			sh.deleted(o)
			return nil
		}
		if !recursive {
			return failure(o.shown, dfserr.ErrIsDir)
		}
		if sh.opts.on("safely") {
			s, err := sh.summarize(ctx, o)
			if err != nil {
				return err
			}
			if s.files > safelyLimit && !sh.confirm(ctx, fmt.Sprintf("Proceed deleting %d files?", s.files)) {
				sh.note("Delete aborted at user request.\n")
				return nil
			}
		}
		if err := sh.fs.RemoveAll(ctx, o.path); err != nil {
			return err
		}
		sh.deleted(o)
		return nil
	})
}

// dropUnmatched leaves out patterns that match nothing.
func (sh *shell) dropUnmatched(ctx context.Context, args []string) []string {
	var kept []string
	for _, arg := range args {
		if hasMeta(arg) {
			if _, err := sh.expand(ctx, arg, false); errors.Is(err, fs.ErrNotExist) {
				continue
			}
		}
		kept = append(kept, arg)
	}
	return kept
}

func (sh *shell) deleted(o operand) {
	if sh.json {
		sh.printJSON(map[string]string{"deleted": o.shown})
		return
	}
	fmt.Fprintf(sh.out, "Deleted %s\n", o.shown)
}

// confirm asks a question on standard error and reads the answer from standard input.
func (sh *shell) confirm(ctx context.Context, question string) bool {
	fmt.Fprintf(sh.env.err, "%s (Y or N) ", question)
	line, _ := bufio.NewReader(interruptibleReader{ctx, sh.env.in}).ReadString('\n')
	answer := strings.ToLower(strings.TrimSpace(line))
	return answer == "y" || answer == "yes"
}

func runRmdir(ctx context.Context, sh *shell, args []string) error {
	return sh.eachOperand(ctx, args, false, nil, func(o operand) error {
		if !o.isDir() {
			return failure(o.shown, dfserr.ErrNotDir)
		}
		err := sh.fs.Remove(ctx, o.path)
		if errors.Is(err, dfserr.ErrNotEmpty) && sh.opts.on("ignore-fail-on-non-empty") {
			return nil
		}
		return err
	})
}

func runMv(ctx context.Context, sh *shell, args []string) error {
	force := sh.opts.on("f")
	last := len(args) - 1
	sources := sh.expandAll(ctx, args[:last], false)
	dst, err := sh.destination(ctx, args[last], len(sources), force)
	if err != nil {
		return err
	}
	return sh.eachItem(ctx, sources, nil, func(src operand) error {
		target, err := sh.targetIn(ctx, dst, src.base())
		if err != nil {
			return err
		}
		if target.exists() && (!force || target.isDir()) {
			return failure(target.shown, fs.ErrExist)
		}
		if strings.HasPrefix(target.path, src.path+"/") {
			return &operandError{path: src.shown, to: target.shown, text: "is a subdirectory of itself", err: dfserr.ErrInvalid}
		}
		err = sh.fs.Rename(ctx, src.path, target.path, force)
		if errors.Is(err, fs.ErrExist) {
			return failure(target.shown, fs.ErrExist)
		}
		return err
	})
}

func runLn(ctx context.Context, sh *shell, args []string) error {
	symbolic, force := sh.opts.on("s"), sh.opts.on("f")
	last := len(args) - 1
	dst, err := sh.destination(ctx, args[last], last, true)
	if err != nil {
		return err
	}
	for _, t := range args[:last] {
		from := sh.env.locate(t)
		link, err := sh.targetIn(ctx, dst, from.base())
		if err != nil {
			sh.fail(err)
			continue
		}
		if force {
			if err := sh.fs.Remove(ctx, link.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				sh.fail(about(link.shown, err))
				continue
			}
		}
		if symbolic {
			_, target, _ := splitURI(t)
			sh.fail(about(link.shown, sh.fs.Symlink(ctx, target, link.path)))
			continue
		}
		err = sh.fs.Link(ctx, from.path, link.path)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			err = about(from.shown, err)
		}
		sh.fail(about(link.shown, err))
	}
	return ctx.Err()
}

func runReadlink(ctx context.Context, sh *shell, args []string) error {
	return sh.eachOperand(ctx, args, false, nil, func(o operand) error {
		if o.info.Mode&fs.ModeSymlink == 0 {
			return failuref(o.shown, "Invalid argument: not a symbolic link")
		}
		if sh.json {
			sh.printJSON(map[string]string{"path": o.shown, "target": o.info.Target})
			return nil
		}
		fmt.Fprintln(sh.out, o.info.Target)
		return nil
	})
}
