package repocheck

import (
	"slices"
	"strings"
	"testing"
)

// mayImport is the import table: for each package, the packages of ours that its code (not its tests) may import.
// An entry that ends in "/…" stands for everything below.
func mayImport() map[string][]string {
	return map[string][]string{
		"proto/dfs/v1":       {},
		"internal/dfserr":    {},
		"internal/dfs":       {"internal/dfserr"}, // docs/adr/0004-import-table.md
		"internal/vfs":       {},
		"internal/repocheck": {},
		"internal/rpc":       {"internal/dfs", "internal/dfserr"},
		"internal/auth":      {"internal/dfs", "internal/dfserr"},

		"master/kv":        {"internal/vfs", "internal/dfs", "internal/dfserr"},
		"master/raftlog":   {"internal/vfs", "internal/dfs", "internal/dfserr"},
		"master/namespace": {"internal/dfs", "internal/dfserr"},
		"master/chunks":    {"internal/dfs", "internal/dfserr"},
		"master/locks":     {"internal/dfs", "internal/dfserr"},
		"master/fsm":       {"master/namespace", "master/chunks", "master/locks", "master/kv", "proto/…", "internal/dfs", "internal/dfserr"},
		"master/cluster":   {"internal/dfs", "internal/dfserr"},
		"master/lease":     {"internal/dfs", "internal/dfserr"},
		"master/placement": {"internal/dfs", "internal/dfserr"},
		"master/repair":    {"internal/dfs", "master/placement"},
		"master":           {"master/…", "proto/…", "internal/…"},

		"chunkserver/store": {"internal/vfs", "internal/dfs", "internal/dfserr"},
		"chunkserver/scrub": {"chunkserver/store", "internal/dfs", "internal/dfserr"},
		"chunkserver":       {"chunkserver/…", "proto/…", "internal/…"},

		"client/chunkio":   {"proto/…", "internal/dfs", "internal/dfserr", "internal/rpc"},
		"client/metacache": {"internal/dfs"},
		"client":           {"client/…", "proto/…", "internal/…"},
		// A master and chunkservers in memory, for the client's own tests.
		"client/internal/fake": {"proto/…", "internal/…"},

		"fusefs":      {"client", "internal/dfs", "internal/dfserr"},
		"testcluster": {"…"},
		// Of the processes' parts only those whose types their Config has.
		"cmd/dfs": {"master", "master/cluster", "master/repair", "chunkserver", "chunkserver/store", "client", "fusefs", "testcluster", "internal/…"},
		"bench":   {"client", "testcluster", "proto/…", "internal/…"}, // it measures whole clusters
	}
}

// matches reports whether a pattern of the table covers a package.
func matches(pattern, pkg string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "…"); ok {
		return strings.HasPrefix(pkg, prefix)
	}
	return pattern == pkg
}

// checkImports applies the table to one file.
func checkImports(s *source) (found []finding) {
	if s.test || strings.HasPrefix(s.dir, "examples/") {
		return nil
	}
	allowed, known := mayImport()[s.dir]
	if !known {
		return []finding{{s.path, "package " + s.dir + " is not in the import table of internal/repocheck: add its row"}}
	}
	for _, imp := range s.file.Imports {
		pkg, ours := strings.CutPrefix(strings.Trim(imp.Path.Value, `"`), module)
		if ours && !slices.ContainsFunc(allowed, func(p string) bool { return matches(p, pkg) }) {
			found = append(found, finding{s.at(imp), s.dir + " must not import " + pkg})
		}
	}
	return found
}

// checkApart keeps the three processes from one another, in tests as well.
func checkApart(s *source) (found []finding) {
	processes := []string{"master", "chunkserver", "client"}
	own, _, _ := strings.Cut(s.dir, "/")
	if !slices.Contains(processes, own) {
		return nil
	}
	for _, imp := range s.file.Imports {
		pkg, ours := strings.CutPrefix(strings.Trim(imp.Path.Value, `"`), module)
		other, _, _ := strings.Cut(pkg, "/")
		if ours && other != own && slices.Contains(processes, other) {
			found = append(found, finding{s.at(imp), own + " imports " + pkg})
		}
	}
	return found
}

func TestImports(t *testing.T) {
	var table, apart []finding
	for _, s := range load(t).sources {
		table = append(table, checkImports(s)...)
		apart = append(apart, checkApart(s)...)
	}
	report(t, "the import table keeps each package at one job, and the deterministic ones away from disk, network and wire types:", table)
	report(t, "master, chunkserver and client meet only in proto, so that each can be understood and replaced alone; "+
		"tests that need several belong in testcluster:", apart)
}
