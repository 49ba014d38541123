package repocheck

import (
	"go/ast"
	"go/token"
	"maps"
	"slices"
	"strings"
	"testing"
)

// byPackage groups sources without tests by folder.
func byPackage(sources []*source) map[string][]*source {
	m := map[string][]*source{}
	for _, s := range sources {
		if !s.test {
			m[s.dir] = append(m[s.dir], s)
		}
	}
	return m
}

// checkPackageComment wants exactly one package comment.
func checkPackageComment(dir string, files []*source) (found []finding) {
	var with []string
	for _, s := range files {
		if doc := s.file.Doc.Text(); doc != "" {
			with = append(with, s.path)
			if want := "Package " + s.name + " "; s.name != "main" && !strings.HasPrefix(doc, want) {
				found = append(found, finding{s.path, "the package comment does not begin with " + strings.TrimSpace(want)})
			}
		}
	}
	switch len(with) {
	case 0:
		found = append(found, finding{dir, "no package comment"})
	case 1:
	default:
		found = append(found, finding{dir, "package comments in " + strings.Join(with, " and ")})
	}
	return found
}

func TestPackageComments(t *testing.T) {
	var found []finding
	packages := byPackage(load(t).sources)
	for _, dir := range slices.Sorted(maps.Keys(packages)) {
		found = append(found, checkPackageComment(dir, packages[dir])...)
	}
	report(t, "each package says once what its job is, what it does not do, and its invariants:", found)
}

// constantCalls are the functions that may initialise a package-level variable: their results are not changed by
// anyone.
func constantCalls() []string {
	return strings.Fields("errors.New fmt.Errorf dfserr.Errorf regexp.MustCompile crc32.MakeTable template.Must strings.NewReplacer " +
		"sync.OnceValue sync.OnceValues sync.OnceFunc sentinel metadata.New big.NewInt")
}

// checkGlobals finds package-level variables that can change. Sentinels, compiled tables, functions, pools and
// embedded files may stay, if nothing assigns to them.
func checkGlobals(files []*source) (found []finding) {
	globals, top := map[string]bool{}, map[*ast.ValueSpec]bool{}
	for _, s := range files {
		if s.generated {
			continue
		}
		for _, d := range s.file.Decls {
			decl, ok := d.(*ast.GenDecl)
			if !ok || decl.Tok != token.VAR {
				continue
			}
			for _, spec := range decl.Specs {
				v := spec.(*ast.ValueSpec)
				top[v] = true
				if why := s.mutableVar(decl, v); why != "" {
					found = append(found, finding{s.at(v), v.Names[0].Name + ": " + why})
				}
				for _, name := range v.Names {
					globals[name.Name] = name.Name != "_"
				}
			}
		}
	}
	for _, s := range files {
		ast.Inspect(s.file, func(n ast.Node) bool {
			var targets []ast.Expr
			switch n := n.(type) {
			case *ast.AssignStmt:
				if n.Tok != token.DEFINE {
					targets = n.Lhs
				}
			case *ast.IncDecStmt:
				targets = []ast.Expr{n.X}
			}
			for _, target := range targets {
				if id := root(target); id != nil && globals[id.Name] && packageLevel(id, top) {
					found = append(found, finding{s.at(target), id.Name + ": assigned to"})
				}
			}
			return true
		})
	}
	return found
}

// mutableVar says why a package-level declaration is mutable state, "" when it is not.
func (s *source) mutableVar(decl *ast.GenDecl, v *ast.ValueSpec) string {
	if v.Names[0].Name == "_" {
		return ""
	}
	for _, doc := range []*ast.CommentGroup{decl.Doc, v.Doc} {
		if doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool {
			return strings.HasPrefix(c.Text, "//go:embed ") || s.name == "main" && strings.Contains(c.Text, "set by the linker")
		}) {
			return ""
		}
	}
	if p, name := s.pkgSelector(v.Type); p == "sync" && name == "Pool" {
		return ""
	}
	if array, ok := v.Type.(*ast.ArrayType); ok && array.Len != nil && len(v.Values) == 0 {
		return "" // a table of zeros
	}
	if len(v.Values) == 0 {
		return "a variable without a value can only be meant to change"
	}
	for _, value := range v.Values {
		switch x := value.(type) {
		case *ast.CompositeLit, *ast.FuncLit:
		case *ast.UnaryExpr:
			if _, ok := x.X.(*ast.CompositeLit); !ok {
				return "not a constant table"
			}
		case *ast.CallExpr:
			if _, ok := x.Fun.(*ast.FuncLit); ok {
				continue // a table that is computed once
			}
			if _, ok := x.Fun.(*ast.ArrayType); ok {
				continue // []byte("…")
			}
			if name := callName(x); !slices.Contains(constantCalls(), name) {
				return "the result of " + name + " is not known to be immutable"
			}
		case *ast.SelectorExpr: // another package's constant, function or sentinel
		case *ast.Ident:
			if !strings.HasPrefix(strings.ToLower(x.Name), "err") {
				return "a plain variable; make it a constant or a field"
			}
		default:
			return "a plain variable; make it a constant or a field"
		}
	}
	return ""
}

// callName prints the function of a call the way it is written.
func callName(c *ast.CallExpr) string {
	fun := c.Fun
	for {
		switch f := fun.(type) {
		case *ast.IndexExpr:
			fun = f.X
		case *ast.Ident:
			return f.Name
		case *ast.SelectorExpr:
			if x, ok := f.X.(*ast.Ident); ok {
				return x.Name + "." + f.Sel.Name
			}
			return f.Sel.Name
		default:
			return "a call"
		}
	}
}

// root returns the variable that an assignment to e changes: x of x, x.f, x[i], (*x).
func root(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// packageLevel reports whether an identifier means a variable of the package and not a local one: one of the
// given top-level specs, or something that another file of the package declares.
func packageLevel(id *ast.Ident, top map[*ast.ValueSpec]bool) bool {
	if id.Obj == nil {
		return true
	}
	spec, ok := id.Obj.Decl.(*ast.ValueSpec)
	return ok && top[spec]
}

func TestGlobals(t *testing.T) {
	var found []finding
	packages := byPackage(load(t).sources)
	for _, dir := range slices.Sorted(maps.Keys(packages)) {
		found = append(found, checkGlobals(packages[dir])...)
	}
	report(t, "package-level state is shared by everything in a process, several clusters in one test among it; put it in a value:", found)
}

// TestPackageRulesFire is TestRulesFire for the rules on packages.
func TestPackageRulesFire(t *testing.T) {
	one := func(text string) []*source {
		s, err := parse("a/a.go", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return []*source{s}
	}
	for _, c := range []struct {
		text  string
		found int
	}{
		{"// Package a is.\npackage a", 0},
		{"// This is a.\npackage a", 1},
		{"// Copyright.\n\npackage a", 1},
	} {
		if got := checkPackageComment("a", one(c.text)); len(got) != c.found {
			t.Errorf("found %d, want %d: %v in\n%s", len(got), c.found, got, c.text)
		}
	}
	if got := checkPackageComment("a", append(one("// Package a is.\npackage a"), one("// Package a is.\npackage a")...)); len(got) != 1 {
		t.Errorf("two package comments: %v", got)
	}
	for _, c := range []struct {
		text  string
		found int
	}{
		{`package a; var (ErrX = errors.New("x"); table = []int{1}; p = &row{}; f = func() {}; _ I = (*t)(nil); re = regexp.MustCompile("x"); b = []byte("x"); z [9]byte; Full = errFull; q = func() int { return 1 }())`, 0},
		{`package a; var _ I = 1; func f() { _ = 1 }`, 0},
		{"package a; import \"sync\"; var pool sync.Pool\n//go:embed x\nvar files embed.FS", 0},
		{"package main\n// version is set by the linker.\nvar version = \"x\"", 0},
		{`package a; import "sync"; var (n int; m sync.Mutex; s = "x"; c = make(chan int); d = *e)`, 5},
		{`package a; var t = []int{1}; func f() { t[0] = 2 }`, 1},
		{`package a; var t = []int{1}; func f() { t := 1; t = 2; var u int; u++ }`, 0},
		{`package a; var t = []int{1}; func f() { var t []int; t[0] = 1 }`, 0},
	} {
		if got := checkGlobals(one(c.text)); len(got) != c.found {
			t.Errorf("found %d, want %d: %v in\n%s", len(got), c.found, got, c.text)
		}
	}
}
