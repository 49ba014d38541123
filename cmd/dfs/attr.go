package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

func attrVerbs() []*verb {
	recursive := flagDef{name: "R", long: "recursive", help: "also what is below directories"}
	return []*verb{
		{
			name: "chmod", usage: "[-R] <MODE[,MODE]... | OCTALMODE> PATH...", short: "Change permissions",
			flags: []flagDef{recursive}, min: 2, lenient: true, run: runChmod,
		},
		{name: "chown", usage: "[-R] [OWNER][:[GROUP]] PATH...", short: "Change owner and group", flags: []flagDef{recursive}, min: 2, run: runChown},
		{name: "chgrp", usage: "[-R] GROUP PATH...", short: "Change the group", flags: []flagDef{recursive}, min: 2, run: runChgrp},
		{
			name: "setrep", usage: "[-R] [-w] <rep> <path> ...", short: "Set how many replicas the chunks of files have",
			long: "A directory means every file below it.",
			flags: []flagDef{
				{name: "R", help: "accepted: directories are always descended into"},
				{name: "w", long: "wait", help: "wait until the replicas are there"},
			}, min: 2, printsJSON: true, run: runSetrep,
		},
	}
}

// each calls do for every operand, and with -R for everything below it. Links below are left alone.
func (sh *shell) each(ctx context.Context, args []string, do func(operand) error) error {
	return sh.eachOperand(ctx, args, true, nil, func(o operand) error {
		if !sh.opts.on("R") {
			return do(o)
		}
		return sh.walk(ctx, o, func(item operand) error {
			if item.info.Mode&fs.ModeSymlink != 0 {
				return nil
			}
			return do(item)
		})
	})
}

func runChmod(ctx context.Context, sh *shell, args []string) error {
	change, err := parseMode(args[0])
	if err != nil {
		return usagef("chmod : mode '%s' does not match the expected pattern.", args[0])
	}
	return sh.each(ctx, args[1:], func(o operand) error {
		mode := change(o.info.Mode, sh.env.umask)
		if mode == bitsMode(modeBits(o.info.Mode)) {
			return nil
		}
		return sh.fs.Chmod(ctx, o.path, mode)
	})
}

// modeChange computes new permission bits from a file's mode and the umask.
type modeChange func(old, umask fs.FileMode) fs.FileMode

// parseMode reads an octal mode or a list of symbolic ones, as chmod(1) does: [ugoa]*([-+=]([rwxXst]*|[ugo]))+,…
func parseMode(text string) (modeChange, error) {
	if n, err := strconv.ParseUint(text, 8, 32); err == nil {
		if n > 0o7777 {
			return nil, dfserr.Errorf(dfserr.ErrInvalid, "mode %q", text)
		}
		return func(fs.FileMode, fs.FileMode) fs.FileMode { return bitsMode(uint32(n)) }, nil
	}
	var steps []func(bits, umask uint32, dir bool) uint32
	for clause := range strings.SplitSeq(text, ",") {
		who := strings.TrimLeft(clause, "ugoa")
		letters := clause[:len(clause)-len(who)]
		if who == "" {
			return nil, dfserr.Errorf(dfserr.ErrInvalid, "mode %q", text)
		}
		for who != "" {
			op := who[0]
			rest := who[1:]
			end := strings.IndexAny(rest, "+-=")
			if end < 0 {
				end = len(rest)
			}
			perms := rest[:end]
			who = rest[end:]
			isCopy := len(perms) == 1 && strings.Contains("ugo", perms)
			if !strings.ContainsRune("+-=", rune(op)) || !isCopy && strings.Trim(perms, "rwxXst") != "" {
				return nil, dfserr.Errorf(dfserr.ErrInvalid, "mode %q", text)
			}
			steps = append(steps, func(bits, umask uint32, dir bool) uint32 { return applyMode(bits, umask, dir, letters, op, perms) })
		}
	}
	return func(old, umask fs.FileMode) fs.FileMode {
		bits := modeBits(old)
		for _, step := range steps {
			bits = step(bits, modeBits(umask), old.IsDir())
		}
		return bitsMode(bits)
	}, nil
}

// applyMode carries out one symbolic step on twelve permission bits.
func applyMode(bits, umask uint32, dir bool, who string, op byte, perms string) uint32 {
	mask := uint32(0) // bits that the step may touch
	for _, w := range who {
		switch w {
		case 'u':
			mask |= 0o4700
		case 'g':
			mask |= 0o2070
		case 'o':
			mask |= 0o1007
		case 'a':
			mask |= 0o7777
		}
	}
	if who == "" {
		mask = 0o7777 &^ umask
	}
	set := uint32(0)
	for _, p := range perms {
		switch p {
		case 'r':
			set |= 0o444
		case 'w':
			set |= 0o222
		case 'x':
			set |= 0o111
		case 'X':
			if dir || bits&0o111 != 0 {
				set |= 0o111
			}
		case 's':
			set |= 0o6000
		case 't':
			set |= 0o1000
			mask |= 0o1000
		case 'u':
			set |= bits >> 6 & 7 * 0o111
		case 'g':
			set |= bits >> 3 & 7 * 0o111
		case 'o':
			set |= bits & 7 * 0o111
		}
	}
	switch op {
	case '+':
		return bits | set&mask
	case '-':
		return bits &^ (set & mask)
	}
	if dir {
		mask &^= 0o6000 &^ set // = keeps a directory's setuid and setgid unless named
	}
	return bits&^mask | set&mask
}

// ownerPattern is what HDFS accepts as [owner][:group].
func ownerPattern() *regexp.Regexp {
	return regexp.MustCompile(`^\s*([-_./@a-zA-Z0-9]+)?([:]([-_./@a-zA-Z0-9]+)?)?\s*$`)
}

func runChown(ctx context.Context, sh *shell, args []string) error {
	m := ownerPattern().FindStringSubmatch(args[0])
	if m == nil || m[1] == "" && m[3] == "" {
		return usagef("'%s' does not match expected pattern for [owner][:group].", args[0])
	}
	return sh.chown(ctx, m[1], m[3], args[1:])
}

func runChgrp(ctx context.Context, sh *shell, args []string) error {
	m := ownerPattern().FindStringSubmatch(args[0])
	if m == nil || m[1] == "" || m[2] != "" {
		return usagef("'%s' does not match expected pattern for group", args[0])
	}
	return sh.chown(ctx, "", m[1], args[1:])
}

func (sh *shell) chown(ctx context.Context, owner, group string, paths []string) error {
	uid, gid := -1, -1
	var ok bool
	if owner != "" {
		if uid, ok = sh.env.names.userID(owner); !ok {
			return failuref(owner, "no such user on this machine; give the number instead")
		}
	}
	if group != "" {
		if gid, ok = sh.env.names.groupID(group); !ok {
			return failuref(group, "no such group on this machine; give the number instead")
		}
	}
	return sh.each(ctx, paths, func(o operand) error {
		return sh.fs.Chown(ctx, o.path, uid, gid)
	})
}

// setrepPoll is how often setrep -w looks.
const setrepPoll = 500 * time.Millisecond

func runSetrep(ctx context.Context, sh *shell, args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		sh.fail(errors.New("illegal replication, a positive integer expected"))
		return usagef("For input string: %q", args[0])
	}
	if n < 1 {
		return usagef("replication must be >= 1")
	}
	if n > dfs.MaxReplication {
		return usagef("replication must be <= %d", dfs.MaxReplication)
	}
	var changed []operand
	err = sh.eachOperand(ctx, args[1:], true, nil, func(o operand) error {
		return sh.walk(ctx, o, func(item operand) error {
			if !item.info.Mode.IsRegular() {
				return nil
			}
			if err := sh.fs.SetReplication(ctx, item.path, n); err != nil {
				return err
			}
			changed = append(changed, item)
			if sh.json {
				sh.printJSON(map[string]any{"path": item.shown, "replication": n})
				return nil
			}
			fmt.Fprintf(sh.out, "Replication %d set: %s\n", n, item.shown)
			return nil
		})
	})
	if err != nil || len(changed) == 0 {
		return err
	}
	live, err := sh.liveServers(ctx)
	if err != nil {
		return err
	}
	if live < n {
		sh.note("%s: %d replicas are wanted and %d chunkservers are live: the files stay under-replicated until more join", sh.as, n, live)
	}
	if !sh.opts.on("w") {
		return nil
	}
	for _, o := range changed {
		if !sh.json {
			fmt.Fprintf(sh.out, "Waiting for %s ...", o.shown)
		}
		if err := sh.waitReplicated(ctx, o, min(n, live)); err != nil {
			return about(o.shown, err)
		}
		if !sh.json {
			fmt.Fprintln(sh.out, " done")
		}
	}
	return nil
}

// liveServers counts the chunkservers that answer.
func (sh *shell) liveServers(ctx context.Context) (int, error) {
	report, err := sh.fs.Report(ctx)
	if err != nil {
		return 0, err
	}
	live := 0
	for _, s := range report.Servers {
		if s.State == "live" {
			live++
		}
	}
	return live, nil
}

// waitReplicated returns when every chunk has n good replicas and no more.
func (sh *shell) waitReplicated(ctx context.Context, o operand, n int) error {
	tick := time.NewTicker(setrepPoll)
	defer tick.Stop()
	for {
		chunks, err := sh.fs.Chunks(ctx, o.path)
		if err != nil {
			return err
		}
		done := true
		for _, c := range chunks {
			done = done && validReplicas(c) == n
		}
		if done {
			return nil
		}
		if !sh.json {
			fmt.Fprint(sh.out, ".")
		}
		if err := sh.out.Flush(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func validReplicas(c chunkInfo) int {
	n := 0
	for _, r := range c.Replicas {
		if r.State == "valid" {
			n++
		}
	}
	return n
}
