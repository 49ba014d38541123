package repocheck

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// module is the module path; packages of ours are named without it.
const module = "dfs/"

// source is one parsed Go file.
type source struct {
	path      string // slash-separated, from the repository's root
	dir       string // of path; the package, for our purposes
	name      string // of the package
	test      bool
	generated bool
	fset      *token.FileSet
	file      *ast.File
	imports   map[string]string // local name → import path
}

// finding is one violation.
type finding struct {
	where string
	what  string
}

// parse turns text into a source.
func parse(name string, text []byte) (*source, error) {
	s := &source{path: name, dir: path.Dir(name), test: strings.HasSuffix(name, "_test.go"), fset: token.NewFileSet(), imports: map[string]string{}}
	var err error
	if s.file, err = parser.ParseFile(s.fset, name, text, parser.ParseComments); err != nil {
		return nil, err
	}
	s.name = s.file.Name.Name
	s.generated = ast.IsGenerated(s.file)
	for _, imp := range s.file.Imports {
		p := strings.Trim(imp.Path.Value, `"`)
		local := path.Base(p)
		if imp.Name != nil {
			local = imp.Name.Name
		}
		s.imports[local] = p
	}
	return s, nil
}

// at names a position.
func (s *source) at(n ast.Node) string {
	p := s.fset.Position(n.Pos())
	return fmt.Sprintf("%s:%d", s.path, p.Line)
}

// pkgSelector returns the import path and the name of an expression like time.Sleep, "" for anything else.
func (s *source) pkgSelector(n ast.Node) (importPath, name string) {
	sel, ok := n.(*ast.SelectorExpr)
	if !ok {
		return "", ""
	}
	id, ok := sel.X.(*ast.Ident)
	if !ok || id.Obj != nil { // a local variable of that name
		return "", ""
	}
	return s.imports[id.Name], sel.Sel.Name
}

// repository is everything that the rules look at.
type repository struct {
	root    string
	files   []string // tracked, or about to be: slash-separated, ascending
	sources []*source
}

// repo loads the repository once.
var repo = sync.OnceValues(func() (*repository, error) {
	wd, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	r := &repository{root: filepath.Dir(filepath.Dir(wd))}
	if r.files, err = listFiles(r.root); err != nil {
		return nil, err
	}
	for _, dir := range dirs(r.files) {
		// The go command keeps a test's result until something that it opened changes; this makes it notice new
		// files.
		if _, err := os.ReadDir(filepath.Join(r.root, dir)); err != nil {
			return nil, err
		}
	}
	for _, name := range r.files {
		if !strings.HasSuffix(name, ".go") || strings.HasPrefix(name, "tools/") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(r.root, name))
		if err != nil {
			return nil, err
		}
		s, err := parse(name, text)
		if err != nil {
			return nil, err
		}
		r.sources = append(r.sources, s)
	}
	return r, nil
})

// dirs returns the folders of the files, each once.
func dirs(files []string) []string {
	var all []string
	for _, name := range files {
		all = append(all, path.Dir(name))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// listFiles returns what git tracks or would track; without git, every file outside hidden folders and bin.
func listFiles(root string) ([]string, error) {
	var files []string
	if out, err := exec.Command("git", "-C", root, "ls-files", "-co", "--exclude-standard", "-z").Output(); err == nil {
		for _, name := range bytes.Split(bytes.TrimRight(out, "\x00"), []byte{0}) {
			if info, err := os.Stat(filepath.Join(root, string(name))); err == nil && info.Mode().IsRegular() {
				files = append(files, string(name))
			}
		}
		slices.Sort(files)
		return slices.Compact(files), nil
	}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() && rel != "." && (strings.HasPrefix(d.Name(), ".") || rel == "bin" || rel == "out" || rel == "dfs-data") {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() {
			files = append(files, rel)
		}
		return nil
	})
	return files, err
}

// load returns the repository or ends the test.
func load(t *testing.T) *repository {
	t.Helper()
	r, err := repo()
	if err != nil {
		t.Fatal(err)
	}
	if len(r.sources) < 20 {
		t.Fatalf("only %d Go files found under %s", len(r.sources), r.root)
	}
	return r
}

// read returns a file's text; nil for a binary one.
func (r *repository) read(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(r.root, name))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.IndexByte(text[:min(len(text), 8000)], 0) >= 0 {
		return nil
	}
	return text
}

// report fails the test with the findings and the reason for the rule.
func report(t *testing.T, reason string, found []finding) {
	t.Helper()
	if len(found) == 0 {
		return
	}
	var b strings.Builder
	for _, f := range found {
		fmt.Fprintf(&b, "  %s: %s\n", f.where, f.what)
	}
	t.Errorf("%s\n%s", reason, b.String())
}
