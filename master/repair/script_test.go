package repair

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"dfs/internal/dfs"
	"dfs/master/placement"
)

var rewrite = flag.Bool("rewrite", false, "write the actual output into testdata")

// TestScripts runs testdata/*.txt: a command and its input lines, a line "----", and the expected output up
// to an empty line. The commands are in script.run.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := newScript(t)
			var out strings.Builder
			var command []string
			expecting := false
			for _, line := range strings.Split(strings.TrimRight(string(text), "\n")+"\n", "\n") {
				switch {
				case expecting && line != "": // old expectation
				case expecting:
					expecting = false
					out.WriteString("\n")
				case line == "----":
					fmt.Fprintf(&out, "%s\n----\n%s", strings.Join(command, "\n"), s.run(command))
					command, expecting = nil, true
				case strings.HasPrefix(line, "#") || line == "":
					out.WriteString(line + "\n")
				default:
					command = append(command, line)
				}
			}
			got := strings.TrimRight(out.String(), "\n") + "\n"
			switch {
			case *rewrite:
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			case got != string(text):
				t.Errorf("%s (go test ./master/repair -rewrite accepts this):\n%s", file, got)
			}
		})
	}
}

// script is the state that a script's commands work on.
type script struct {
	t       *testing.T
	placer  *placement.Placer
	planner *Planner
	last    map[dfs.ChunkID]Chunk
}

func newScript(t *testing.T) *script {
	s := &script{t: t, placer: placement.NewPlacer(nil, placement.Options{}), last: map[dfs.ChunkID]Chunk{}}
	s.planner = New(s.placer, Limits{})
	return s
}

// run carries out one command and returns what it prints:
//
//	nodes              lines "id rack load [full] [draining]": the servers
//	limits k=v …       a new planner with these limits
//	observe            lines "chunk=1 v=5 want=3 size=64 members=1:good,2:dead strays=4@3"
//	next t=10s         commands and findings
//	done chunk=1 target=4 t=20s [failed]
//	joined chunk=1 target=4
func (s *script) run(lines []string) string {
	name, rest, _ := strings.Cut(lines[0], " ")
	args := s.args(rest)
	at := time.Unix(0, 0).Add(s.duration(args["t"]))
	var out strings.Builder
	switch name {
	case "nodes":
		var nodes []placement.Node
		for _, line := range lines[1:] {
			f := strings.Fields(line)
			nodes = append(nodes, placement.Node{
				ID: dfs.ServerID(s.int(f[0])), Rack: f[1], Load: s.int(f[2]), Weight: 1000,
				Full: strings.Contains(line, "full"), Draining: strings.Contains(line, "draining"),
			})
		}
		s.placer.Update(nodes)
	case "limits":
		s.planner = New(s.placer, Limits{
			Copies: int(s.int(args["copies"])), CopiesPerServer: int(s.int(args["per_server"])), BytesPerSecond: s.int(args["rate"]),
			Queue: int(s.int(args["queue"])), Commands: int(s.int(args["commands"])),
		})
	case "observe":
		for _, line := range lines[1:] {
			c := s.chunk(s.args(line))
			s.last[c.ID] = c
			s.print(&out, s.planner.Observe(c))
		}
		fmt.Fprintf(&out, "queued %d, dropped %d\n", s.planner.Queued(), s.planner.TakeDropped())
	case "next":
		r := s.planner.Next(at)
		for _, c := range r.Commands {
			fmt.Fprintln(&out, c)
		}
		for _, f := range r.Findings {
			fmt.Fprintln(&out, f)
		}
		fmt.Fprintf(&out, "running %d, queued %d\n", s.planner.Running(), s.planner.Queued())
	case "done":
		_, failed := args["failed"]
		s.planner.Done(dfs.ChunkID(s.int(args["chunk"])), dfs.ServerID(s.int(args["target"])), failed, at)
		fmt.Fprintf(&out, "running %d, queued %d\n", s.planner.Running(), s.planner.Queued())
	case "joined":
		fmt.Fprintln(&out, Joined(s.last[dfs.ChunkID(s.int(args["chunk"]))], dfs.ServerID(s.int(args["target"]))))
	default:
		s.t.Fatalf("unknown command %q", lines[0])
	}
	return strings.ReplaceAll(out.String(), "000000000000000", "")
}

// print prints an assessment.
func (s *script) print(out *strings.Builder, a Assessment) {
	fmt.Fprintf(out, "good=%d", a.Good)
	for _, f := range []struct {
		is   bool
		name string
	}{{a.Under, "under"}, {a.Over, "over"}, {a.Missing, "missing"}, {a.Corrupt, "corrupt"}, {a.OneRack, "one-rack"}} {
		if f.is {
			fmt.Fprintf(out, " %s", f.name)
		}
	}
	fmt.Fprintln(out)
	for _, f := range a.Findings {
		fmt.Fprintf(out, "  %s\n", f)
	}
}

// args splits "k=v k=v flag".
func (s *script) args(text string) map[string]string {
	m := map[string]string{}
	for _, f := range strings.Fields(text) {
		k, v, _ := strings.Cut(f, "=")
		m[k] = v
	}
	return m
}

func (s *script) chunk(args map[string]string) Chunk {
	c := Chunk{
		ID: dfs.ChunkID(s.int(args["chunk"])), Version: dfs.Version(s.int(args["v"])),
		Want: int(s.int(args["want"])), Size: s.int(args["size"]),
	}
	for _, m := range strings.FieldsFunc(args["members"], isComma) {
		id, health, _ := strings.Cut(m, ":")
		h := Good
		for h.String() != health {
			if h++; h > Corrupt {
				s.t.Fatalf("unknown health in %q", m)
			}
		}
		c.Members = append(c.Members, Replica{dfs.ServerID(s.int(id)), h})
	}
	for _, m := range strings.FieldsFunc(args["strays"], isComma) {
		id, version, _ := strings.Cut(m, "@")
		c.Strays = append(c.Strays, Stray{dfs.ServerID(s.int(id)), dfs.Version(s.int(version))})
	}
	return c
}

func isComma(r rune) bool { return r == ',' }

func (s *script) int(text string) int64 {
	if text == "" {
		return 0
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *script) duration(text string) time.Duration {
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}
