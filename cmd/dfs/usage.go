package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

func usageVerbs() []*verb {
	human := flagDef{name: "h", long: "human-readable", help: "print sizes as 1.5 K, 64 M"}
	header := flagDef{name: "v", long: "header", help: "print a header line"}
	du := &verb{
		name: "du", usage: "[-s] [-h] [-v] <path> ...", short: "Print the size of files and directories",
		long:  "Columns: bytes, bytes with all replicas, path. A directory shows what is in it; with -s, its total.",
		flags: []flagDef{{name: "s", long: "summarize", help: "one line per argument"}, human, header}, min: 1, printsJSON: true, run: runDu,
	}
	dus := *du
	dus.name, dus.replaced, dus.short = "dus", "du -s", "Old spelling of du -s"
	dus.run = func(ctx context.Context, sh *shell, args []string) error {
		sh.opts["s"] = ""
		return runDu(ctx, sh, args)
	}
	return []*verb{
		du, &dus,
		{name: "df", usage: "[-h] [<path> ...]", short: "Print the cluster's space", flags: []flagDef{human}, printsJSON: true, run: runDf},
		{
			name: "count", usage: "[-q] [-h] [-v] [-u] <path> ...", short: "Count directories, files and bytes",
			long: "Columns: DIR_COUNT FILE_COUNT CONTENT_SIZE PATHNAME; with -q, quotas first.",
			flags: []flagDef{
				{name: "q", long: "quota", help: "print quotas, too"},
				{name: "u", help: "print quotas only"},
				human, header,
			}, min: 1, printsJSON: true, run: runCount,
		},
		{
			name: "stat", usage: "[format] <path> ...", short: "Print attributes",
			long:  "Format: %a mode in octal, %A in letters, %b bytes, %F type, %g group, %n name, %o chunk size, %r replication,\n%u owner, %x %X access time (UTC, ms), %y %Y modification time. Default %y.",
			flags: []flagDef{{name: "c", long: "format", value: "format", help: "the format, as stat(1) takes it"}},
			min:   1, printsJSON: true, run: runStat,
		},
		{
			name: "test", usage: "-[defswrz] <path>", short: "Answer a question about a path with the exit status",
			flags: []flagDef{
				{name: "d", help: "is it a directory?"},
				{name: "e", help: "does it exist?"},
				{name: "f", help: "is it a file?"},
				{name: "s", help: "is it longer than zero bytes?"},
				{name: "w", help: "may it be written?"},
				{name: "r", help: "may it be read?"},
				{name: "z", help: "is it zero bytes long?"},
			}, min: 1, max: 1, run: runTest,
		},
	}
}

// summary is what is below a path.
type summary struct {
	dirs, files  int64
	length, disk int64 // bytes; bytes with all replicas
}

// summaryReaders is how many directories are listed at a time.
const summaryReaders = 16

// summarize adds up everything at and below o, each inode once; links are counted as files and not followed.
func (sh *shell) summarize(ctx context.Context, o operand) (summary, error) {
	c := counter{sh: sh, seen: map[uint64]bool{}}
	g, ctx := errgroup.WithContext(ctx)
	c.group = g
	g.SetLimit(summaryReaders)
	if err := c.visit(ctx, o); err != nil {
		return summary{}, err
	}
	if err := g.Wait(); err != nil {
		return summary{}, err
	}
	return c.total, nil
}

type counter struct {
	sh    *shell
	group *errgroup.Group

	mu    sync.Mutex // guards total and seen
	total summary
	seen  map[uint64]bool // inodes with several links
}

func (c *counter) visit(ctx context.Context, o operand) error {
	c.mu.Lock()
	if o.isDir() {
		c.total.dirs++
	} else if o.info.Nlink < 2 || !c.seen[o.info.Inode] {
		c.seen[o.info.Inode] = o.info.Nlink > 1
		c.total.files++
		if o.info.Mode.IsRegular() {
			c.total.length += o.info.Size
			c.total.disk += o.info.Size * int64(o.info.Replication)
		}
	}
	c.mu.Unlock()
	if !o.isDir() {
		return nil
	}
	list := func() error {
		items, err := c.sh.list(ctx, o)
		if err != nil {
			return err
		}
		for _, item := range items {
			if err := c.visit(ctx, item); err != nil {
				return err
			}
		}
		return nil
	}
	if !c.group.TryGo(list) {
		return list() // every reader is busy: this one goes down itself
	}
	return nil
}

func runDu(ctx context.Context, sh *shell, args []string) error {
	t := table{}
	if sh.opts.on("v") {
		t.add("SIZE", "DISK_SPACE_CONSUMED_WITH_ALL_REPLICAS", "FULL_PATH_NAME")
	}
	human := sh.opts.on("h")
	row := func(o operand) error {
		s, err := sh.summarize(ctx, o)
		if err != nil {
			return err
		}
		if sh.json {
			sh.printJSON(map[string]any{"path": o.shown, "length": s.length, "disk_bytes": s.disk})
			return nil
		}
		t.add(sizeText(s.length, human), sizeText(s.disk, human), o.shown)
		return nil
	}
	flush := func() {
		t.print(sh.out)
		t = table{}
	}
	err := sh.eachOperand(ctx, args, true, nil, func(o operand) error {
		if sh.opts.on("s") || !o.isDir() {
			return row(o)
		}
		items, err := sh.list(ctx, o)
		if err != nil {
			return err
		}
		for _, item := range items {
			if err := row(item); err != nil {
				sh.fail(about(item.shown, err))
			}
		}
		return nil
	})
	flush()
	return err
}

func runDf(ctx context.Context, sh *shell, args []string) error {
	t := table{right: []bool{false, true, true, true, true}}
	t.add("Filesystem", "Size", "Used", "Available", "Use%")
	human := sh.opts.on("h")
	row := func() error {
		s, err := sh.fs.StatFS(ctx)
		if err != nil {
			return err
		}
		if sh.json {
			sh.printJSON(map[string]any{
				"filesystem": sh.fs.URI(), "capacity_bytes": s.Capacity, "used_bytes": s.Used, "free_bytes": s.Free,
				"inodes": s.Inodes, "chunks": s.Chunks, "data_bytes": s.Data,
			})
			return nil
		}
		t.add(sh.fs.URI(), sizeText(s.Capacity, human), sizeText(s.Used, human), sizeText(s.Free, human), percent(s.Used, s.Capacity, 0)+"%")
		return nil
	}
	var err error
	if len(args) == 0 {
		err = row()
	} else {
		err = sh.eachOperand(ctx, args, true, nil, func(operand) error { return row() })
	}
	if !sh.json && len(t.rows) > 1 {
		t.print(sh.out)
	}
	return err
}

func runCount(ctx context.Context, sh *shell, args []string) error {
	quota, only, human := sh.opts.on("q"), sh.opts.on("u"), sh.opts.on("h")
	if sh.opts.on("v") && !sh.json {
		if quota || only {
			fmt.Fprintf(sh.out, "%12s %15s %15s %15s ", "QUOTA", "REM_QUOTA", "SPACE_QUOTA", "REM_SPACE_QUOTA")
		}
		if !only {
			fmt.Fprintf(sh.out, "%12s %12s %18s ", "DIR_COUNT", "FILE_COUNT", "CONTENT_SIZE")
		}
		fmt.Fprintln(sh.out, "PATHNAME")
	}
	return sh.eachOperand(ctx, args, true, nil, func(o operand) error {
		s, err := sh.summarize(ctx, o)
		if err != nil {
			return err
		}
		if sh.json {
			sh.printJSON(map[string]any{"path": o.shown, "directories": s.dirs, "files": s.files, "length": s.length, "disk_bytes": s.disk})
			return nil
		}
		if quota || only { // no quota is set anywhere: there are none
			fmt.Fprintf(sh.out, "%12s %15s %15s %15s ", "none", "inf", "none", "inf")
		}
		if !only {
			fmt.Fprintf(sh.out, "%12s %12s %18s ", sizeText(s.dirs, human), sizeText(s.files, human), sizeText(s.length, human))
		}
		fmt.Fprintln(sh.out, o.shown)
		return nil
	})
}

func runStat(ctx context.Context, sh *shell, args []string) error {
	format := "%y"
	switch {
	case sh.opts.on("c"):
		format = sh.opts["c"]
	case strings.Contains(args[0], "%"):
		format, args = args[0], args[1:]
		if len(args) == 0 {
			return usagef("Not enough arguments: expected 1 but got 0")
		}
	}
	return sh.eachOperand(ctx, args, true, nil, func(o operand) error {
		if sh.json {
			sh.printJSON(sh.infoJSON(o))
			return nil
		}
		if strings.Contains(format, "%b") {
			if err := o.sizeKnown(); err != nil {
				return err
			}
		}
		fmt.Fprintln(sh.out, sh.statText(format, o))
		return nil
	})
}

// statText fills a stat format; an unknown letter stands for itself.
func (sh *shell) statText(format string, o operand) string {
	var b strings.Builder
	info := o.info
	stamp := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") }
	size, repl, chunk := info.Size, info.Replication, info.ChunkSize
	if !info.Mode.IsRegular() {
		repl, chunk = 0, 0
	}
	if info.Mode.IsDir() {
		size = 0
	}
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		switch format[i] {
		case 'a':
			fmt.Fprintf(&b, "%o", modeBits(info.Mode))
		case 'A':
			b.WriteString(permText(info.Mode))
		case 'b':
			b.WriteString(strconv.FormatInt(size, 10))
		case 'F':
			b.WriteString(typeText(info.Mode))
		case 'g':
			b.WriteString(sh.env.names.group(info.GID))
		case 'n':
			b.WriteString(o.base())
		case 'o':
			b.WriteString(strconv.FormatInt(chunk, 10))
		case 'r':
			b.WriteString(strconv.Itoa(repl))
		case 'u':
			b.WriteString(sh.env.names.owner(info.UID))
		case 'x':
			b.WriteString(stamp(info.ATime))
		case 'X':
			b.WriteString(strconv.FormatInt(info.ATime.UnixMilli(), 10))
		case 'y':
			b.WriteString(stamp(info.MTime))
		case 'Y':
			b.WriteString(strconv.FormatInt(info.MTime.UnixMilli(), 10))
		default:
			b.WriteByte(format[i])
		}
	}
	return b.String()
}

func runTest(ctx context.Context, sh *shell, args []string) error {
	var question string
	for _, f := range sh.verb.flags {
		if !sh.opts.on(f.name) {
			continue
		}
		if question != "" {
			return usagef("Only one test flag is allowed")
		}
		question = f.name
	}
	if question == "" {
		return usagef("No test flag given")
	}
	items, err := sh.expand(ctx, args[0], true)
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, fs.ErrNotExist) {
			sh.fail(err)
		}
		return &exitError{exitFailed}
	}
	for _, o := range items {
		if o.exists() && o.info.Size == 0 && (question == "s" || question == "z") {
			if err := o.sizeKnown(); err != nil {
				return err
			}
		}
		if !o.exists() || !sh.answer(question, o) {
			return &exitError{exitFailed}
		}
	}
	return nil
}

func (sh *shell) answer(question string, o operand) bool {
	size := o.info.Size
	if o.isDir() {
		size = 0
	}
	switch question {
	case "d":
		return o.isDir()
	case "f":
		return !o.isDir()
	case "s":
		return size > 0
	case "z":
		return size == 0
	case "r":
		return sh.env.ids.may(o.info, 4)
	case "w":
		return sh.env.ids.may(o.info, 2)
	}
	return true
}

// may applies POSIX permission rules to the bits of one inode: want is 4 to read, 2 to write, 1 to execute.
func (id identity) may(info *fileInfo, want fs.FileMode) bool {
	perm := info.Mode.Perm()
	switch {
	case id.uid == 0:
		return true
	case id.uid == info.UID:
		perm >>= 6
	case id.gid == info.GID, slices.Contains(id.groups, info.GID):
		perm >>= 3
	}
	return perm&want == want
}
