package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

func lsVerbs() []*verb {
	flags := []flagDef{
		{name: "C", help: "print paths only"},
		{name: "d", long: "directory", help: "list directories themselves, not what is in them"},
		{name: "h", long: "human-readable", help: "print sizes as 1.5 K, 64 M"},
		{name: "q", long: "hide-control-chars", help: "print ? for characters that cannot be printed"},
		{name: "R", long: "recursive", help: "list what is below, too"},
		{name: "t", help: "newest first"},
		{name: "S", help: "largest first"},
		{name: "r", long: "reverse", help: "the other way round"},
		{name: "u", help: "show and sort by time of last access"},
	}
	ls := &verb{
		name: "ls", usage: "[-C] [-d] [-h] [-q] [-R] [-t] [-S] [-r] [-u] [<path> ...]", short: "List files and directories",
		long:  "Columns: permissions, replication, owner, group, size in bytes, time of last modification (local), path.",
		flags: flags, printsJSON: true, run: runLs,
	}
	lsr := *ls
	lsr.name, lsr.replaced, lsr.short = "lsr", "ls -R", "Old spelling of ls -R"
	lsr.run = func(ctx context.Context, sh *shell, args []string) error {
		sh.opts["R"] = ""
		return runLs(ctx, sh, args)
	}
	return []*verb{ls, &lsr}
}

// lister prints listings. Column widths only grow during a command, as in HDFS.
type lister struct {
	sh                                *shell
	replWidth, lenWidth               int
	ownerWidth, groupWidth            int
	pathsOnly, human, printable, recv bool
	order                             func(a, b operand) int
}

func runLs(ctx context.Context, sh *shell, args []string) error {
	if len(args) == 0 {
		args = []string{"."}
	}
	l := &lister{
		sh: sh, replWidth: 3, lenWidth: 10,
		pathsOnly: sh.opts.on("C"), human: sh.opts.on("h"), printable: sh.opts.on("q"), recv: sh.opts.on("R"),
		order: lsOrder(sh.opts),
	}
	selfOnly := sh.opts.on("d")
	return sh.eachOperand(ctx, args, !selfOnly, nil, func(o operand) error {
		if selfOnly || !o.isDir() {
			l.print([]operand{o})
			return nil
		}
		return l.directory(ctx, o)
	})
}

// lsOrder is the order of entries that the options ask for; nil keeps byte order.
func lsOrder(opts options) func(a, b operand) int {
	var order func(a, b operand) int
	byName := func(a, b operand) int { return strings.Compare(a.path, b.path) }
	when := func(o operand) time.Time { return o.info.MTime }
	if opts.on("u") {
		when = func(o operand) time.Time { return o.info.ATime }
	}
	switch {
	case opts.on("t"):
		order = func(a, b operand) int { return cmp.Or(when(b).Compare(when(a)), byName(a, b)) }
	case opts.on("S"):
		order = func(a, b operand) int { return cmp.Or(cmp.Compare(b.info.Size, a.info.Size), byName(a, b)) }
	case opts.on("r"):
		order = byName
	default:
		return nil
	}
	if opts.on("r") {
		forward := order
		order = func(a, b operand) int { return forward(b, a) }
	}
	return order
}

// directory lists what is in dir, and with -R what is below.
func (l *lister) directory(ctx context.Context, dir operand) error {
	items, err := l.sh.list(ctx, dir)
	if err != nil {
		return err
	}
	if l.order != nil {
		slices.SortFunc(items, l.order)
	}
	if !l.recv {
		if len(items) > 0 && !l.pathsOnly && !l.sh.json {
			fmt.Fprintf(l.sh.out, "Found %d items\n", len(items))
		}
		l.print(items)
		return nil
	}
	l.measure(items)
	for _, item := range items {
		l.row(item)
		if !item.isDir() {
			continue
		}
		if err := l.directory(ctx, item); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			l.sh.fail(about(item.shown, err))
		}
	}
	return nil
}

func (l *lister) print(items []operand) {
	l.measure(items)
	for _, item := range items {
		l.row(item)
	}
}

func (l *lister) measure(items []operand) {
	names := l.sh.env.names
	for _, item := range items {
		l.replWidth = max(l.replWidth, len(strconv.Itoa(item.info.Replication)))
		l.lenWidth = max(l.lenWidth, len(strconv.FormatInt(item.info.Size, 10)))
		l.ownerWidth = max(l.ownerWidth, utf8.RuneCountInString(names.owner(item.info.UID)))
		l.groupWidth = max(l.groupWidth, utf8.RuneCountInString(names.group(item.info.GID)))
	}
}

func (l *lister) row(item operand) {
	info, out := item.info, l.sh.out
	if l.sh.json {
		l.sh.printJSON(l.sh.infoJSON(item))
		return
	}
	shown := item.shown
	if l.printable {
		shown = printable(shown)
	}
	if l.pathsOnly {
		fmt.Fprintln(out, shown)
		return
	}
	size := info.Size
	repl := strconv.Itoa(info.Replication)
	if !info.Mode.IsRegular() {
		repl = "-"
	}
	if info.Mode.IsDir() {
		size = 0
	}
	when := info.MTime
	if l.sh.opts.on("u") {
		when = info.ATime
	}
	if info.Mode&fs.ModeSymlink != 0 && info.Target != "" {
		target := info.Target
		if l.printable {
			target = printable(target)
		}
		shown += " -> " + target
	}
	names := l.sh.env.names
	fmt.Fprintf(out, "%s %s %s %s %s %s %s\n",
		modeText(info.Mode),
		pad(repl, l.replWidth, true),
		pad(names.owner(info.UID), l.ownerWidth, false),
		pad(names.group(info.GID), l.groupWidth, false),
		pad(sizeText(size, l.human), l.lenWidth, true),
		when.In(l.sh.env.zone).Format("2006-01-02 15:04"),
		shown)
}

// printable puts ? for what a terminal cannot show.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// infoRow is one inode as --json prints it; a documented format. Sizes are in bytes, times in RFC 3339.
type infoRow struct {
	Path        string `json:"path"`
	PathBytes   []byte `json:"path_base64,omitempty"` // only if the path is not valid UTF-8
	Type        string `json:"type"`
	Mode        string `json:"mode"`
	Permission  string `json:"permission"`
	Owner       string `json:"owner"`
	Group       string `json:"group"`
	UID         uint32 `json:"uid"`
	GID         uint32 `json:"gid"`
	Length      int64  `json:"length"`
	LengthBound bool   `json:"length_is_bound,omitempty"` // length is a lower bound
	Replication int    `json:"replication"`
	ChunkSize   int64  `json:"chunk_size"`
	Links       uint32 `json:"links"`
	Inode       uint64 `json:"inode"`
	Inline      bool   `json:"inline"`
	Modified    string `json:"modified"`
	Accessed    string `json:"accessed"`
	Target      string `json:"target,omitempty"`
}

func (sh *shell) infoJSON(o operand) infoRow {
	i := o.info
	row := infoRow{
		Path: o.shown, Type: typeWord(i.Mode), Mode: fmt.Sprintf("%04o", modeBits(i.Mode)), Permission: modeText(i.Mode),
		Owner: sh.env.names.owner(i.UID), Group: sh.env.names.group(i.GID), UID: i.UID, GID: i.GID,
		Links: i.Nlink, Inode: i.Inode, Inline: i.Inline, Target: i.Target,
		Modified: i.MTime.UTC().Format(time.RFC3339Nano), Accessed: i.ATime.UTC().Format(time.RFC3339Nano),
	}
	if !utf8.ValidString(o.shown) {
		row.PathBytes = []byte(o.shown)
	}
	if i.Mode.IsRegular() {
		row.Length, row.LengthBound, row.Replication, row.ChunkSize = i.Size, i.SizeIsBound, i.Replication, i.ChunkSize
	}
	return row
}

// printJSON writes v as one line on standard output.
func (sh *shell) printJSON(v any) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	encodeJSON(sh.out, v, "")
}

// encodeJSON writes v without HTML escapes. The types printed here always encode.
func encodeJSON(w io.Writer, v any, indent string) {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	if err := e.Encode(v); err != nil {
		fmt.Fprintf(w, "{\"error\":%q}\n", err.Error())
	}
}
