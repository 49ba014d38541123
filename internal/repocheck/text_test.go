package repocheck

import (
	"fmt"
	"go/ast"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestText looks at the text of every file that git would track.
func TestText(t *testing.T) {
	r := load(t)
	// Written in parts, so that this file is no violation.
	machine := regexp.MustCompile(`(^|[^A-Za-z0-9_./-])/wo` + `rk/`)
	hosts := regexp.MustCompile(`\b(proxy\.gol` + `ang\.org|sum\.gol` + `ang\.org|gopr` + `oxy\.(io|cn)|registry\.npm` + `js\.org|py` + `pi\.org|pythonho` + `sted\.org|` +
		`rubyg` + `ems\.org|crates\.i` + `o|(registry-1\.)?dock` + `er\.io|deb\.deb` + `ian\.org|dl-cdn\.alpine` + `linux\.org)\b`)
	marks := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME)\b`)
	var paths, registries, leftovers []finding
	for _, name := range r.files {
		text := r.read(t, name)
		if text == nil || name == "go.sum" || name == "tools/go.sum" {
			continue
		}
		for i, line := range strings.Split(string(text), "\n") {
			where := fmt.Sprintf("%s:%d", name, i+1)
			if machine.MatchString(line) {
				paths = append(paths, finding{where, strings.TrimSpace(line)})
			}
			if host := hosts.FindString(line); host != "" {
				registries = append(registries, finding{where, host})
			}
			if mark := marks.FindString(line); mark != "" && !strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, ".md") {
				leftovers = append(leftovers, finding{where, mark})
			}
		}
	}
	report(t, "the repository must not depend on the machine it was written on:", paths)
	report(t, "where packages come from is the business of the environment, not of the repository:", registries)
	report(t, "the tree holds finished work:", leftovers)
}

// TestLinks follows every relative link in Markdown, and every mention of a file under docs/ anywhere.
func TestLinks(t *testing.T) {
	r := load(t)
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	mention := regexp.MustCompile(`(^|[^A-Za-z0-9_/.-])(docs/[A-Za-z0-9_/-]+\.md)\b`)
	exists := func(name string) bool {
		_, err := os.Stat(filepath.Join(r.root, filepath.FromSlash(name)))
		return err == nil
	}
	var found []finding
	if !slices.Contains(r.files, "README.md") {
		found = append(found, finding{"README.md", "missing"})
	}
	for _, name := range r.files {
		text := r.read(t, name)
		if text == nil || strings.HasPrefix(name, "internal/repocheck/") {
			continue
		}
		for i, line := range strings.Split(string(text), "\n") {
			where := fmt.Sprintf("%s:%d", name, i+1)
			for _, m := range mention.FindAllStringSubmatch(line, -1) {
				if !exists(m[2]) {
					found = append(found, finding{where, m[2]})
				}
			}
			if !strings.HasSuffix(name, ".md") {
				continue
			}
			for _, m := range link.FindAllStringSubmatch(line, -1) {
				target, _, _ := strings.Cut(m[1], "#")
				if target != "" && !strings.Contains(target, ":") && !exists(path.Join(path.Dir(name), target)) {
					found = append(found, finding{where, m[1]})
				}
			}
		}
	}
	report(t, "a reader who follows a link must find something:", found)
}

// formatPages says where each package's on-disk format is described.
func formatPages() map[string]string {
	return map[string]string{
		"chunkserver/store": "docs/format/replica-log.md",
		"master/kv":         "docs/format/metadata.md",
		"master/raftlog":    "docs/format/raft-log.md",
		"master":            "docs/format/master-directory.md",
		"client":            "docs/format/records.md",
	}
}

// TestFormatPages wants a page for every format on disk, mentioned by the package that writes it, and knows
// a format by the constant that holds its magic number.
func TestFormatPages(t *testing.T) {
	r := load(t)
	mentioned := map[string]bool{}
	var found []finding
	for _, s := range r.sources {
		if s.test || s.generated {
			continue
		}
		for _, group := range s.file.Comments {
			// Comments are wrapped; join the lines before looking.
			if page := formatPages()[s.dir]; page != "" && strings.Contains(strings.Join(strings.Fields(group.Text()), " "), page) {
				mentioned[s.dir] = true
			}
		}
		for _, d := range s.file.Decls {
			decl, ok := d.(*ast.GenDecl)
			if !ok || decl.Tok != token.CONST && decl.Tok != token.VAR {
				continue
			}
			for _, spec := range decl.Specs {
				for _, id := range spec.(*ast.ValueSpec).Names {
					if strings.Contains(strings.ToLower(id.Name), "magic") && formatPages()[s.dir] == "" {
						found = append(found, finding{s.at(id), id.Name + " belongs to a format without a page; add it to docs/format and to this test"})
					}
				}
			}
		}
	}
	for dir, page := range formatPages() {
		if !slices.Contains(r.files, page) {
			found = append(found, finding{page, "missing"})
		}
		if !mentioned[dir] {
			found = append(found, finding{dir, "no comment mentions " + page})
		}
	}
	slices.SortFunc(found, func(a, b finding) int { return strings.Compare(a.where, b.where) })
	report(t, "whoever has only the files must be able to read them:", found)
}
