package repocheck

import (
	"go/ast"
	"go/token"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// rule is a check on single files.
type rule struct {
	name   string
	reason string
	check  func(s *source) []finding
}

// rules are the checks on single files, but for imports.
func rules() []rule {
	return []rule{
		{"Documented", "every exported name needs a comment that says what it promises:", checkDocumented},
		{
			"OneErrorTable", "gRPC codes and errnos are named only in internal/dfserr/table.go, so that a failure means the same " +
				"on the wire, in the SDK and in the mount; return or compare sentinels of internal/dfserr:", checkErrorTable,
		},
		{"NoSleep", "a sleep is either too short or too long; wait for a channel, a timer or a context:", banned("time", []string{"Sleep"}, notTest)},
		{"NoExit", "only cmd/dfs ends the process; libraries return errors:", checkExit},
		{"NoErrorText", "the text of an error is for people; programs use errors.Is and errors.As:", checkErrorText},
		{"ContextFirst", "context.Context is the first parameter of what can block:", checkContextFirst},
		{
			"Deterministic", "these packages must give the same result in every process and in every replay; time and " +
				"randomness are arguments:", checkDeterministic,
		},
		{
			"DiskSeam", "files are reached through internal/vfs, so that tests can fail and crash every operation:",
			banned("os", osFileCalls(), func(s *source) bool {
				return notTest(s) && (s.dir == "chunkserver/store" || s.dir == "chunkserver/scrub" || s.dir == "master/raftlog")
			}),
		},
		{"NoLeftovers", "the tree holds finished work; what is missing is described in docs or not at all:", checkLeftovers},
	}
}

func TestSources(t *testing.T) {
	r := load(t)
	for _, rule := range rules() {
		t.Run(rule.name, func(t *testing.T) {
			var found []finding
			for _, s := range r.sources {
				found = append(found, rule.check(s)...)
			}
			report(t, rule.reason, found)
		})
	}
}

func notTest(s *source) bool { return !s.test }

// banned makes a check that forbids names of a package where in says so.
func banned(importPath string, names []string, in func(*source) bool) func(*source) []finding {
	return func(s *source) (found []finding) {
		if !in(s) {
			return nil
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if p, name := s.pkgSelector(n); p == importPath && slices.Contains(names, name) {
				found = append(found, finding{s.at(n), p + "." + name})
			}
			return true
		})
		return found
	}
}

// osFileCalls are the functions of package os that touch files.
func osFileCalls() []string {
	return strings.Fields("Open OpenFile OpenRoot Create CreateTemp ReadFile WriteFile Remove RemoveAll Rename Mkdir MkdirAll MkdirTemp " +
		"ReadDir Stat Lstat Truncate Link Symlink Readlink Chmod Chown Chtimes DirFS CopyFS")
}

// checkDocumented wants a comment on every exported name outside tests and generated code.
func checkDocumented(s *source) (found []finding) {
	if s.test || s.generated || s.name == "main" {
		return nil
	}
	missing := func(n ast.Node, name string) { found = append(found, finding{s.at(n), name}) }
	for _, d := range s.file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			receiver := receiverName(d)
			selfEvident := receiver != "" && slices.Contains([]string{"Error", "Unwrap"}, d.Name.Name)
			if d.Name.IsExported() && d.Doc == nil && !selfEvident && (receiver == "" || ast.IsExported(receiver)) {
				missing(d, strings.TrimPrefix(receiver+"."+d.Name.Name, "."))
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					if spec.Name.IsExported() && spec.Doc == nil && (d.Doc == nil || d.Lparen.IsValid()) {
						missing(spec, spec.Name.Name)
					}
				case *ast.ValueSpec:
					for _, name := range spec.Names {
						if name.IsExported() && spec.Doc == nil && spec.Comment == nil && d.Doc == nil {
							missing(name, name.Name)
						}
					}
				}
			}
		}
	}
	return found
}

// receiverName returns the name of a method's type, "" for a function.
func receiverName(d *ast.FuncDecl) string {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return ""
	}
	t := d.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.IndexListExpr:
			t = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}

// checkErrorTable finds gRPC codes and errnos outside the one table. internal/vfs is the disk and may say what
// the disk said; fusefs/kernel.go is where the mount names what /dev/fuse itself says and understands; generated
// stubs answer Unimplemented by themselves.
func checkErrorTable(s *source) (found []finding) {
	if s.test || s.generated || s.path == "internal/dfserr/table.go" {
		return nil
	}
	errno := regexp.MustCompile(`^E[A-Z0-9]+$`)
	notErrno := regexp.MustCompile(`^(EPOLL|ECHO|ETH_P_|EXT[AB]|EV_)`)
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch p, name := s.pkgSelector(n); p {
		case "google.golang.org/grpc/codes":
			found = append(found, finding{s.at(n), "codes." + name})
		case "syscall", "golang.org/x/sys/unix":
			if s.dir != "internal/vfs" && s.path != "fusefs/kernel.go" && errno.MatchString(name) && !notErrno.MatchString(name) {
				found = append(found, finding{s.at(n), p + "." + name})
			}
		}
		return true
	})
	return found
}

// checkExit finds calls that end the process, outside the command and tests.
func checkExit(s *source) (found []finding) {
	if s.test || s.name == "main" {
		return nil
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		p, name := s.pkgSelector(n)
		if p == "os" && name == "Exit" || p == "log" && (strings.HasPrefix(name, "Fatal") || strings.HasPrefix(name, "Panic")) ||
			p == "runtime" && name == "Goexit" {
			found = append(found, finding{s.at(n), p + "." + name})
		}
		return true
	})
	return found
}

// checkErrorText finds comparisons and searches of what Error returns.
func checkErrorText(s *source) (found []finding) {
	if s.test {
		return nil
	}
	searches := strings.Fields("Contains ContainsAny ContainsFunc HasPrefix HasSuffix Index IndexByte LastIndex EqualFold Compare Count Cut CutPrefix CutSuffix")
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			p, name := s.pkgSelector(n.Fun)
			method, _ := n.Fun.(*ast.SelectorExpr)
			matcher := p == "strings" && slices.Contains(searches, name) || p == "regexp" ||
				p == "" && method != nil && (strings.HasPrefix(method.Sel.Name, "Match") || strings.HasPrefix(method.Sel.Name, "Find"))
			if matcher && slices.ContainsFunc(n.Args, isErrorText) {
				found = append(found, finding{s.at(n), "the text of an error is searched"})
			}
		case *ast.BinaryExpr:
			if (n.Op == token.EQL || n.Op == token.NEQ) && (isErrorText(n.X) || isErrorText(n.Y)) {
				found = append(found, finding{s.at(n), "the text of an error is compared"})
			}
		case *ast.SwitchStmt:
			if n.Tag != nil && isErrorText(n.Tag) {
				found = append(found, finding{s.at(n), "the text of an error is compared"})
			}
		}
		return true
	})
	return found
}

// isErrorText reports whether an expression is x.Error(), perhaps converted or changed by a call.
func isErrorText(e ast.Expr) bool {
	call, ok := e.(*ast.CallExpr)
	if !ok {
		return false
	}
	if sel, ok := call.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Error" && len(call.Args) == 0 {
		return true
	}
	return slices.ContainsFunc(call.Args, isErrorText)
}

// checkContextFirst finds functions and methods whose context is not their first parameter. A testing.T may come
// before it. Function literals and parameters that are functions are left alone: a handler's parameters are the
// choice of whom it is given to, and a method expression begins with its receiver.
func checkContextFirst(s *source) (found []finding) {
	if s.generated {
		return nil
	}
	check := func(e ast.Expr) {
		f, ok := e.(*ast.FuncType)
		if !ok {
			return
		}
		first := true // only a testing.T so far
		for i, field := range f.Params.List {
			p, name := s.pkgSelector(field.Type)
			if p == "context" && name == "Context" {
				if i > 0 && !first || len(field.Names) > 1 {
					found = append(found, finding{s.at(field), "context.Context after another parameter"})
				}
				return
			}
			typ := field.Type
			if star, ok := typ.(*ast.StarExpr); ok {
				typ = star.X
			}
			p, _ = s.pkgSelector(typ)
			first = first && (p == "testing" || p == "pgregory.net/rapid")
		}
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			check(n.Type)
		case *ast.TypeSpec:
			check(n.Type)
		case *ast.InterfaceType:
			for _, method := range n.Methods.List {
				check(method.Type)
			}
		}
		return true
	})
	return found
}

// checkDeterministic keeps clocks and randomness out of the packages that must not depend on them.
func checkDeterministic(s *source) (found []finding) {
	pure := strings.Fields("master/namespace master/chunks master/locks master/placement master/repair master/cluster master/lease master/fsm")
	if s.test || !slices.Contains(pure, s.dir) {
		return nil
	}
	clocks := strings.Fields("Now Since Until After AfterFunc NewTimer NewTicker Tick Sleep")
	ast.Inspect(s.file, func(n ast.Node) bool {
		if p, name := s.pkgSelector(n); p == "time" && slices.Contains(clocks, name) {
			found = append(found, finding{s.at(n), p + "." + name})
		}
		return true
	})
	for _, imp := range s.file.Imports {
		switch p := strings.Trim(imp.Path.Value, `"`); p {
		case "hash/maphash":
			if s.dir == "master/fsm" {
				continue // spreads a cache over shards; nothing that is stored or answered depends on it
			}
			fallthrough
		case "math/rand", "math/rand/v2", "crypto/rand":
			found = append(found, finding{s.at(imp), "imports " + p})
		}
	}
	return found
}

// checkLeftovers finds the usual marks of unfinished work in comments.
func checkLeftovers(s *source) (found []finding) {
	marks := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b`)
	for _, group := range s.file.Comments {
		for _, c := range group.List {
			if mark := marks.FindString(c.Text); mark != "" {
				found = append(found, finding{s.at(c), mark})
			}
		}
	}
	return found
}

// TestRulesFire gives each rule a file that keeps it and one that breaks it.
func TestRulesFire(t *testing.T) {
	check := map[string]func(*source) []finding{"Imports": checkImports, "Apart": checkApart}
	for _, r := range rules() {
		check[r.name] = r.check
	}
	tested := map[string]bool{}
	for _, c := range []struct {
		rule, path, text string
		found            int
	}{
		{"Imports", "master/repair/x.go", `package repair; import ("dfs/internal/dfs"; "dfs/master/placement"; "fmt")`, 0},
		{"Imports", "master/repair/x.go", `package repair; import "dfs/internal/vfs"`, 1},
		{"Imports", "master/new/x.go", `package new`, 1},
		{"Apart", "client/x_test.go", `package client; import ("dfs/master/kv"; "dfs/chunkserver"; "dfs/client/chunkio")`, 2},
		{"Documented", "a/a.go", "package a\n// A is.\ntype A int\n// B is.\nfunc B() {}\n// C is.\nconst C, D = 1, 2\nfunc (A) Error() string\nfunc (b) E()", 0},
		{"Documented", "a/a.go", "package a\ntype A int\nfunc B() {}\nfunc (*A) C() {}\nvar D int\nconst (\nE = 1 // is\nF = 2\n)", 5},
		{"OneErrorTable", "a/a.go", `package a; import "syscall"; var x = []any{syscall.O_RDWR, syscall.Errno(0), syscall.EpollEvent{}, syscall.EPOLLIN}`, 0},
		{"OneErrorTable", "a/a.go", `package a; import ("google.golang.org/grpc/codes"; "syscall"; "golang.org/x/sys/unix"); var x = []any{codes.OK, syscall.EIO, unix.E2BIG}`, 3},
		{"NoSleep", "a/a_test.go", `package a; import "time"; func f() { time.Sleep(1) }`, 0},
		{"NoSleep", "a/a.go", `package a; import t "time"; func f() { t.Sleep(1) }`, 1},
		{"NoExit", "cmd/dfs/a.go", `package main; import "os"; func f() { os.Exit(1) }`, 0},
		{"NoExit", "a/a.go", `package a; import ("os"; "log"); func f() { os.Exit(1); log.Fatalf("") }`, 2},
		{"NoErrorText", "a/a.go", `package a; func f(err error) string { return "x" + err.Error() }`, 0},
		{"NoErrorText", "a/a.go", `package a; import "strings"; func f(err error) bool { return strings.Contains(strings.ToLower(err.Error()), "x") || err.Error() == "y" || re.MatchString(err.Error()) }`, 3},
		{"ContextFirst", "a/a.go", `package a; import ("context"; "testing"); func f(ctx context.Context, a int); func g(t *testing.T, ctx context.Context); func h(a int)`, 0},
		{"ContextFirst", "a/a.go", `package a; import "context"; func f(a int, ctx context.Context); type I interface { M(a, b int, c context.Context) }; var _ = func(a any, c context.Context) {}`, 2},
		{"Deterministic", "master/lease/a.go", `package lease; import "time"; func f(time time.Time) { time.Now() }; var d = time.Second`, 0},
		{"Deterministic", "master/lease/a.go", `package lease; import ("time"; "math/rand"); func f() { time.Now(); time.Since(x) }`, 3},
		{"DiskSeam", "master/kv/a.go", `package kv; import "os"; func f() { os.Open("") }`, 0},
		{"DiskSeam", "chunkserver/store/a.go", `package store; import "os"; func f() { os.Open(""); g(os.O_RDWR, os.Rename) }`, 2},
		{"NoLeftovers", "a/a.go", "package a // the to-do list, fixed", 0},
		{"NoLeftovers", "a/a.go", "package a // TO" + "DO: more", 1},
	} {
		s, err := parse(c.path, []byte(c.text))
		if err != nil {
			t.Fatalf("%s: %v", c.text, err)
		}
		tested[c.rule] = tested[c.rule] || c.found > 0
		if got := check[c.rule](s); len(got) != c.found {
			t.Errorf("%s finds %d, want %d: %v in\n%s", c.rule, len(got), c.found, got, c.text)
		}
	}
	for name := range check {
		if !tested[name] {
			t.Errorf("no file breaks rule %s", name)
		}
	}
}
