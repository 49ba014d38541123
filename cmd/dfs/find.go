package main

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"dfs/internal/dfserr"
)

func findVerbs() []*verb {
	return []*verb{{
		name: "find", usage: "<path> ... <expression> ...", short: "Find files by name, type, size and time", raw: true, printsJSON: true, run: runFind,
		long: `Expressions: -name PATTERN, -iname PATTERN (patterns as in ls), -type f|d|l|p|s|b|c,
-size [+-]N[c|k|M|G|T] (rounded up to the unit; without one, bytes), -mtime [+-]DAYS, -newer FILE,
-maxdepth N, -print, -print0; joined by -a (or nothing), -o, ! and ( ).`,
	}}
}

// findTest is one condition, or several joined.
type findTest func(ctx context.Context, o operand) bool

// findParser reads an expression: or := and {-o and}; and := not {[-a] not}; not := ! not | ( or ) | test.
type findParser struct {
	sh       *shell
	ctx      context.Context
	words    []string
	acts     bool // -print or -print0 was among the words
	maxDepth int
}

func runFind(ctx context.Context, sh *shell, args []string) error {
	at := slices.IndexFunc(args, func(a string) bool {
		return strings.HasPrefix(a, "-") && a != "-" || a == "(" || a == "!"
	})
	if at < 0 {
		at = len(args)
	}
	paths := args[:at]
	if len(paths) == 0 {
		paths = []string{"."}
	}
	p := &findParser{sh: sh, ctx: ctx, words: args[at:], maxDepth: -1}
	test := func(context.Context, operand) bool { return true }
	if len(p.words) > 0 {
		parsed, err := p.or()
		if err != nil {
			return err
		}
		if len(p.words) > 0 {
			return usagef("Unexpected argument: %s", p.words[0])
		}
		test = parsed
	}
	if !p.acts {
		inner := test
		test = func(ctx context.Context, o operand) bool {
			if inner(ctx, o) {
				sh.printFound(o, '\n')
			}
			return true
		}
	}
	return sh.eachOperand(ctx, paths, true, nil, func(o operand) error {
		return sh.walkDepth(ctx, o, p.maxDepth, func(item operand) error {
			test(ctx, item)
			return nil
		})
	})
}

// walkDepth is walk, not deeper than limit levels below o; a negative limit is none.
func (sh *shell) walkDepth(ctx context.Context, o operand, limit int, do func(operand) error) error {
	if limit < 0 {
		return sh.walk(ctx, o, do)
	}
	if err := do(o); err != nil {
		return err
	}
	if limit == 0 || !o.isDir() {
		return ctx.Err()
	}
	items, err := sh.list(ctx, o)
	if err != nil {
		return err
	}
	for _, item := range items {
		if err := sh.walkDepth(ctx, item, limit-1, do); err != nil {
			if ctx.Err() != nil {
				return err
			}
			sh.fail(about(item.shown, err))
		}
	}
	return ctx.Err()
}

func (sh *shell) printFound(o operand, end byte) {
	if sh.json {
		sh.printJSON(sh.infoJSON(o))
		return
	}
	fmt.Fprintf(sh.out, "%s%c", o.shown, end)
}

func (p *findParser) next() (string, bool) {
	if len(p.words) == 0 {
		return "", false
	}
	w := p.words[0]
	p.words = p.words[1:]
	return w, true
}

func (p *findParser) value(of string) (string, error) {
	w, ok := p.next()
	if !ok {
		return "", usagef("%s needs an argument", of)
	}
	return w, nil
}

func (p *findParser) or() (findTest, error) {
	left, err := p.and()
	for err == nil && len(p.words) > 0 && (p.words[0] == "-o" || p.words[0] == "-or") {
		p.next()
		var right findTest
		right, err = p.and()
		first := left
		left = func(ctx context.Context, o operand) bool { return first(ctx, o) || right(ctx, o) }
	}
	return left, err
}

func (p *findParser) and() (findTest, error) {
	left, err := p.not()
	for err == nil && len(p.words) > 0 && !slices.Contains([]string{"-o", "-or", ")"}, p.words[0]) {
		if p.words[0] == "-a" || p.words[0] == "-and" {
			p.next()
		}
		var right findTest
		right, err = p.not()
		first := left
		left = func(ctx context.Context, o operand) bool { return first(ctx, o) && right(ctx, o) }
	}
	return left, err
}

func (p *findParser) not() (findTest, error) {
	word, ok := p.next()
	switch {
	case !ok:
		return nil, usagef("the expression ends too early")
	case word == "!" || word == "-not":
		inner, err := p.not()
		return func(ctx context.Context, o operand) bool { return !inner(ctx, o) }, err
	case word == "(":
		inner, err := p.or()
		if err != nil {
			return nil, err
		}
		if end, _ := p.next(); end != ")" {
			return nil, usagef("( without )")
		}
		return inner, nil
	}
	return p.test(word)
}

func (p *findParser) test(word string) (findTest, error) {
	switch word {
	case "-print", "-print0":
		p.acts = true
		end := byte('\n')
		if word == "-print0" {
			end = 0
		}
		return func(_ context.Context, o operand) bool {
			p.sh.printFound(o, end)
			return true
		}, nil
	}
	if !slices.Contains([]string{"-name", "-iname", "-type", "-size", "-mtime", "-newer", "-maxdepth"}, word) {
		return nil, usagef("Unexpected argument: %s", word)
	}
	value, err := p.value(word)
	if err != nil {
		return nil, err
	}
	switch word {
	case "-type":
		return typeTest(value)
	case "-size":
		return sizeTest(value)
	case "-mtime":
		return p.mtimeTest(value)
	case "-newer":
		return p.newerTest(value)
	case "-maxdepth":
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 {
			return nil, usagef("-maxdepth needs a number of levels, not %q", value)
		}
		p.maxDepth = n
		return func(context.Context, operand) bool { return true }, nil
	}
	return nameTest(value, word == "-iname")
}

func nameTest(pattern string, fold bool) (findTest, error) {
	if fold {
		pattern = strings.ToLower(pattern)
	}
	patterns, err := expandBraces(pattern)
	if err == nil {
		for _, p := range patterns {
			if _, matchErr := matchName(p, ""); matchErr != nil {
				err = matchErr
			}
		}
	}
	if err != nil {
		return nil, usagef("-name: %s", describe(err))
	}
	return func(_ context.Context, o operand) bool {
		name := o.base()
		if name == "" {
			name = "/"
		}
		if fold {
			name = strings.ToLower(name)
		}
		return slices.ContainsFunc(patterns, func(p string) bool {
			ok, _ := matchName(p, name)
			return ok
		})
	}, nil
}

func typeTest(letter string) (findTest, error) {
	kinds := map[string]func(fs.FileMode) bool{
		"f": fs.FileMode.IsRegular,
		"d": fs.FileMode.IsDir,
		"l": func(m fs.FileMode) bool { return m&fs.ModeSymlink != 0 },
		"p": func(m fs.FileMode) bool { return m&fs.ModeNamedPipe != 0 },
		"s": func(m fs.FileMode) bool { return m&fs.ModeSocket != 0 },
		"c": func(m fs.FileMode) bool { return m&fs.ModeCharDevice != 0 },
		"b": func(m fs.FileMode) bool { return m&fs.ModeDevice != 0 && m&fs.ModeCharDevice == 0 },
	}
	is, ok := kinds[letter]
	if !ok {
		return nil, usagef("-type needs one of f d l p s b c, not %q", letter)
	}
	return func(_ context.Context, o operand) bool { return is(o.info.Mode) }, nil
}

// compareTo reads +N, -N or N.
func compareTo(text string) (sign byte, rest string) {
	if text != "" && (text[0] == '+' || text[0] == '-') {
		return text[0], text[1:]
	}
	return '=', text
}

func compared(sign byte, have, want int64) bool {
	switch sign {
	case '+':
		return have > want
	case '-':
		return have < want
	}
	return have == want
}

func sizeTest(text string) (findTest, error) {
	sign, number := compareTo(text)
	unit := int64(1)
	if i := strings.LastIndexAny(number, "ckMGT"); i >= 0 && i == len(number)-1 {
		unit = map[byte]int64{'c': 1, 'k': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40}[number[i]]
		number = number[:i]
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 {
		return nil, usagef("-size needs [+-]N[ckMGT], not %q", text)
	}
	return func(_ context.Context, o operand) bool {
		if !o.info.Mode.IsRegular() {
			return false
		}
		units := o.info.Size / unit
		if o.info.Size%unit != 0 {
			units++
		}
		return compared(sign, units, n)
	}, nil
}

func (p *findParser) mtimeTest(text string) (findTest, error) {
	sign, number := compareTo(text)
	n, err := strconv.ParseInt(number, 10, 32)
	if err != nil || n < 0 {
		return nil, usagef("-mtime needs [+-]DAYS, not %q", text)
	}
	now := p.sh.env.now()
	return func(_ context.Context, o operand) bool {
		return compared(sign, int64(now.Sub(o.info.MTime)/(24*time.Hour)), n)
	}, nil
}

func (p *findParser) newerTest(path string) (findTest, error) {
	o := p.sh.env.locate(path)
	if err := p.sh.fill(p.ctx, &o, true); err != nil {
		return nil, err
	}
	if !o.exists() {
		return nil, &operandError{path: o.shown, text: describe(fs.ErrNotExist), err: dfserr.ErrNotExist}
	}
	than := o.info.MTime
	return func(_ context.Context, o operand) bool { return o.info.MTime.After(than) }, nil
}
