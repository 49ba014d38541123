package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

// verb is one command of the shell. Its options are parsed the way Hadoop's CommandFormat does it: single-dash words,
// before the operands, unknown ones refused with status 255. On top of that, options may be bundled (-rf), and the
// GNU spellings (--skip-trash, --json) are understood anywhere before "--".
type verb struct {
	name    string
	aliases []string
	usage   string // what follows the name in the usage line
	short   string // one line of help
	long    string // more help
	flags   []flagDef
	min     int
	max     int // 0: no limit
	// printsJSON says that the verb prints something that --json can replace.
	printsJSON bool
	// lenient leaves unknown single-dash words among the operands, for modes like -w.
	lenient bool
	// raw leaves everything but the global options to the verb.
	raw bool
	// replaced is set on deprecated spellings: what to type instead.
	replaced string
	run      func(ctx context.Context, sh *shell, args []string) error
}

// flagDef is one option of a verb.
type flagDef struct {
	name  string // Hadoop spelling, without the dash
	long  string // GNU spelling, without the dashes; empty: derived from name if that has several letters
	value string // what the option's value is called; empty: the option takes none
	help  string
	// attached lists letters that may follow the option in the same word (-ptopax).
	attached string
}

func (f flagDef) longName() string {
	if f.long != "" || len(f.name) == 1 {
		return f.long
	}
	var b strings.Builder
	for _, r := range strings.TrimLeft(f.name, "-") {
		if unicode.IsUpper(r) {
			b.WriteByte('-')
			r = unicode.ToLower(r)
		}
		b.WriteRune(r)
	}
	return b.String()
}

// options are the parsed options of one command line: a present option maps to its value.
type options map[string]string

func (o options) on(name string) bool { _, ok := o[name]; return ok }

// globalFlags are options of every verb.
func globalFlags(printsJSON bool) []flagDef {
	defs := []flagDef{
		{name: "--masters", long: "masters", value: "host:port,…", help: "the cluster's masters (else DFS_MASTERS, else the current cluster)"},
		{name: "fs", long: "fs", value: "dfs://host:port", help: "the same as an address"},
		{name: "--log-level", long: "log-level", value: "level", help: "what the client logs to standard error: off, error, warn, info, debug"},
		{name: "help", long: "help", help: "show this help"},
	}
	if printsJSON {
		defs = append(defs, flagDef{name: "--json", long: "json", help: "print JSON, one object per line"})
	}
	return defs
}

// parse cuts args into options and operands.
func (v *verb) parse(args []string) (options, []string, error) {
	opts := options{}
	var operands []string
	globals := globalFlags(v.printsJSON)
	own := v.flags
	if v.raw {
		own = nil
	}
	defs := slices.Concat(own, globals)
	over := false // no more single-dash options: an operand was seen
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			if v.raw {
				operands = append(operands, arg)
			}
			operands = append(operands, args[i+1:]...)
			break
		}
		if !strings.HasPrefix(arg, "-") || arg == "-" || over && !strings.HasPrefix(arg, "--") {
			over = true
			operands = append(operands, arg)
			continue
		}
		def, value, hasValue, ok := findFlag(defs, arg)
		if !ok && !strings.HasPrefix(arg, "--") {
			if bundle, fits := v.bundle(own, arg); fits {
				for _, name := range bundle {
					opts[name] = ""
				}
				continue
			}
		}
		if !ok {
			if v.lenient || v.raw {
				over = over || v.raw
				operands = append(operands, arg)
				continue
			}
			return nil, nil, usagef("Illegal option %s", arg)
		}
		switch {
		case def.value == "" && hasValue && def.attached == "":
			return nil, nil, usagef("Option %s takes no value", arg)
		case def.value != "" && !hasValue:
			if i+1 == len(args) {
				return nil, nil, usagef("Option %s needs a value", arg)
			}
			i++
			value = args[i]
		}
		opts[strings.TrimLeft(def.name, "-")] = value
	}
	if opts.on("help") {
		return opts, operands, nil
	}
	if len(operands) < v.min {
		return nil, nil, usagef("Not enough arguments: expected %d but got %d", v.min, len(operands))
	}
	if v.max > 0 && len(operands) > v.max {
		return nil, nil, usagef("Too many arguments: expected %d but got %d", v.max, len(operands))
	}
	return opts, operands, nil
}

// findFlag looks arg up in any of its spellings: -name, --name, --long, --long=value, -p with attached letters.
func findFlag(defs []flagDef, arg string) (def flagDef, value string, hasValue, ok bool) {
	if len(arg) < 2 || arg[0] != '-' {
		return flagDef{}, "", false, false
	}
	if word, double := strings.CutPrefix(arg, "--"); double {
		word, value, hasValue = strings.Cut(word, "=")
		for _, d := range defs {
			if word == d.longName() || word == d.name && len(word) > 1 {
				return d, value, hasValue, true
			}
		}
		return flagDef{}, "", false, false
	}
	word := arg[1:]
	for _, d := range defs {
		if word == d.name {
			return d, "", false, true
		}
	}
	for _, d := range defs {
		if letters, cut := strings.CutPrefix(word, d.name); cut && d.attached != "" && strings.Trim(letters, d.attached) == "" {
			return d, letters, true, true
		}
	}
	return flagDef{}, "", false, false
}

// bundle splits -rf into r and f if every letter is an option without a value.
func (v *verb) bundle(defs []flagDef, arg string) ([]string, bool) {
	var names []string
	for _, r := range arg[1:] {
		i := slices.IndexFunc(defs, func(d flagDef) bool { return d.name == string(r) && d.value == "" })
		if i < 0 {
			return nil, false
		}
		names = append(names, defs[i].name)
	}
	return names, len(names) > 1
}

// shell is one run of one verb.
type shell struct {
	env  *environ
	fs   remote
	verb *verb
	opts options
	as   string // the verb as typed
	out  *bufio.Writer
	json bool

	// mu guards failed, talk and standard output, which the goroutines of a copy share.
	mu     sync.Mutex
	failed bool
	talk   io.Writer // where messages go
}

// environ is what a command sees of the process around it; tests make their own.
type environ struct {
	in       io.Reader
	out      io.Writer
	err      io.Writer
	terminal bool // err is a terminal: progress may be shown
	getenv   func(string) string
	user     string // for relative paths
	ids      identity
	umask    fs.FileMode
	now      func() time.Time
	zone     *time.Location
	names    *nameCache
	dial     func(ctx context.Context, where target) (remote, error)
	// configDir is where the current cluster is noted.
	configDir string
}

// identity is on whose behalf the shell acts.
type identity struct {
	uid, gid uint32
	groups   []uint32
}

// fail reports err about no operand in particular, or about the one it names, and goes on.
func (sh *shell) fail(err error) {
	if err == nil {
		return
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.failed = true
	if errors.Is(err, context.Canceled) {
		return // the interrupt is reported once, by the exit status
	}
	text := describe(err)
	var known *operandError
	if errors.As(err, &known) {
		text = known.Error()
	}
	fmt.Fprintf(sh.talk, "%s: %s\n", sh.as, firstLine(text))
}

// note prints a line of talk on standard error.
func (sh *shell) note(format string, args ...any) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	fmt.Fprintf(sh.talk, format+"\n", args...)
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// runVerb runs v with args and returns the exit status.
func runVerb(ctx context.Context, env *environ, v *verb, as string, args []string) int {
	opts, operands, err := v.parse(args)
	if err != nil {
		return reportUsage(env, v, as, err)
	}
	if opts.on("help") {
		printVerbHelp(env.out, v)
		return exitDone
	}
	sh := &shell{env: env, verb: v, opts: opts, as: as, out: bufio.NewWriterSize(env.out, 64<<10), json: opts.on("json"), talk: env.err}
	if v.replaced != "" {
		sh.note("%s: DEPRECATED: Please use '%s' instead.", as, v.replaced)
	}
	where, err := findCluster(env, opts, operands)
	if err != nil {
		sh.fail(err)
		return exitFailed
	}
	sh.fs, err = env.dial(ctx, where)
	if err != nil {
		if interrupted(ctx) {
			return exitInterrupted
		}
		sh.fail(err)
		return exitFailed
	}
	err = v.run(ctx, sh, operands)
	if flushErr := sh.out.Flush(); err == nil && flushErr != nil {
		err = fmt.Errorf("writing to standard output: %w", flushErr)
	}
	if closeErr := sh.fs.Close(); err == nil && closeErr != nil {
		sh.env.debugf("closing the session: %v", closeErr)
	}
	var exit *exitError
	var usage *usageError
	switch {
	case interrupted(ctx):
		return exitInterrupted
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &usage):
		return reportUsage(env, v, as, err)
	case err != nil:
		sh.fail(err)
	}
	if sh.failed {
		return exitFailed
	}
	return exitDone
}

// debugf prints only where DFS_DEBUG is set.
func (env *environ) debugf(format string, args ...any) {
	if env.getenv("DFS_DEBUG") != "" {
		fmt.Fprintf(env.err, "dfs: "+format+"\n", args...)
	}
}

func reportUsage(env *environ, v *verb, as string, err error) int {
	fmt.Fprintf(env.err, "-%s: %s\n%s\n", as, err, v.usageLine())
	return exitVerbUsage
}

func (v *verb) usageLine() string {
	return strings.TrimRight("Usage: dfs [generic options] -"+v.name+" "+v.usage, " ")
}

func printVerbHelp(w io.Writer, v *verb) {
	fmt.Fprintf(w, "%s\n\n%s.\n", v.usageLine(), strings.TrimRight(v.short, "."))
	if v.long != "" {
		fmt.Fprintf(w, "%s\n", v.long)
	}
	if len(v.aliases) > 0 {
		fmt.Fprintf(w, "\nAlso: %s\n", strings.Join(v.aliases, ", "))
	}
	fmt.Fprintln(w, "\nOptions:")
	t := table{}
	for _, d := range append(slices.Clone(v.flags), globalFlags(v.printsJSON)...) {
		spelling := d.name
		if !strings.HasPrefix(d.name, "--") {
			spelling = "-" + d.name
		}
		if d.attached != "" {
			spelling += "[" + d.attached + "]"
		}
		if long := "--" + d.longName(); long != "--" && long != spelling {
			spelling += ", " + long
		}
		if d.value != "" {
			spelling += " " + d.value
		}
		t.add("  "+spelling, d.help)
	}
	t.print(w)
}

// noLimit is the max of verbs that take any number of operands but need an explicit figure.
const noLimit = math.MaxInt

// eachOperand expands every argument and calls do for each path it stands for, in order. A path that does not exist
// is reported, unless missing takes care of it. Failures are reported and the rest goes on.
func (sh *shell) eachOperand(ctx context.Context, args []string, follow bool, missing, do func(operand) error) error {
	return sh.eachItem(ctx, sh.expandAll(ctx, args, follow), missing, do)
}

// expandAll expands every argument; what cannot be expanded is reported and left out.
func (sh *shell) expandAll(ctx context.Context, args []string, follow bool) []operand {
	var all []operand
	for _, arg := range args {
		items, err := sh.expand(ctx, arg, follow)
		if err != nil {
			sh.fail(err)
			continue
		}
		all = append(all, items...)
	}
	return all
}

// eachItem calls do for each item that exists and missing for the others; see eachOperand.
func (sh *shell) eachItem(ctx context.Context, items []operand, missing, do func(operand) error) error {
	for _, item := range items {
		var err error
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case item.exists():
			err = do(item)
		case missing != nil:
			err = missing(item)
		default:
			err = failure(item.shown, fs.ErrNotExist)
		}
		var usage *usageError
		if errors.As(err, &usage) {
			return err
		}
		sh.fail(about(item.shown, err))
	}
	return ctx.Err()
}
