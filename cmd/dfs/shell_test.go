package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dfs/internal/dfs"
)

var rewrite = flag.Bool("rewrite", false, "replace the expected answers in testdata by the actual ones")

// recordedAt is the time at which the recordings were made.
var recordedAt = time.Date(2026, 11, 23, 3, 30, 46, 0, time.UTC)

// rig is a shell over a file system in memory.
type rig struct {
	t   *testing.T
	fs  *fakeFS
	env *environ
	now time.Time
	dir string // of local files; relative local paths of scripts are relative to it
}

func fixedNames() *nameCache {
	find := func(m map[string]string) func(string) (string, bool) {
		return func(k string) (string, bool) { v, ok := m[k]; return v, ok }
	}
	users := map[string]string{"0": "root", "1001": "alice", "1002": "bob", "1003": "carol"}
	groups := map[string]string{"0": "supergroup", "1": "root", "2001": "staff", "2002": "crew"}
	invert := func(m map[string]string) map[string]string {
		n := map[string]string{}
		for k, v := range m {
			n[v] = k
		}
		return n
	}
	return &nameCache{userByID: find(users), groupByID: find(groups), userByName: find(invert(users)), groupByName: find(invert(groups))}
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, now: recordedAt, dir: t.TempDir()}
	now := func() time.Time { return r.now }
	r.fs = newFakeFS(now)
	r.fs.totals = fsTotals{Capacity: 811659522048, Used: 9171609, Free: 230437490688}
	for i := range 3 {
		r.fs.report.Servers = append(r.fs.report.Servers, serverReport{ID: fmt.Sprintf("%016x", i+1), Addr: fmt.Sprintf("127.0.0.1:741%d", i), State: "live", Rack: "default-rack"})
	}
	r.env = &environ{
		in: strings.NewReader(""), getenv: func(string) string { return "" }, user: "root", umask: 0o022,
		now: now, zone: time.UTC, names: fixedNames(), configDir: filepath.Join(r.dir, "config"),
		dial: func(context.Context, target) (remote, error) { return r.fs, nil },
	}
	if err := r.env.setCurrent([]string{"127.0.0.1:7400"}); err != nil {
		t.Fatal(err)
	}
	return r
}

// run executes one command line and returns what it printed.
func (r *rig) run(args ...string) (code int, stdout, stderr string) {
	return r.runContext(context.Background(), args...)
}

func (r *rig) runContext(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, errOut bytes.Buffer
	env := *r.env
	env.out, env.err = &out, &errOut
	code = run(ctx, &env, args)
	return code, out.String(), errOut.String()
}

// ok executes a command line that must succeed and returns its standard output.
func (r *rig) ok(args ...string) string {
	r.t.Helper()
	code, out, errOut := r.run(args...)
	if code != 0 {
		r.t.Fatalf("dfs %s: exit %d\n%s", strings.Join(args, " "), code, errOut)
	}
	return out
}

// local makes a file of this machine and returns its path.
func (r *rig) local(name, content string) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// place puts a file or, with a trailing slash, a directory into the cluster.
func (r *rig) place(path, content string, at time.Time) {
	r.t.Helper()
	ctx := context.Background()
	if dir, isDir := strings.CutSuffix(path, "/"); isDir {
		if err := r.fs.MkdirAll(ctx, dir, 0o755); err != nil {
			r.t.Fatal(err)
		}
		path = dir
	} else {
		w, err := r.fs.Create(ctx, path, 0o644, false)
		if err != nil {
			r.t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := r.fs.Chtimes(ctx, path, at, at); err != nil {
		r.t.Fatal(err)
	}
}

func seqText(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, i+1)
	}
	return b.String()
}

// script runs the commands of a recording and compares answers.
func (r *rig) script(file string) {
	r.t.Helper()
	r.t.Chdir(r.dir)
	data, err := os.ReadFile(file)
	if err != nil {
		r.t.Fatal(err)
	}
	head, rest, _ := strings.Cut(string(data), "\n\n")
	var got strings.Builder
	got.WriteString(head + "\n\n")
	commands := 0
	for block := range strings.SplitSeq(rest, "\n$ ") {
		line, _, _ := strings.Cut(strings.TrimPrefix(block, "$ "), "\n")
		if line == "" {
			continue
		}
		commands++
		code, out, errOut := r.line(line)
		fmt.Fprintf(&got, "$ %s\n[exit %d]\n[stdout]\n%s[stderr]\n%s\n", line, code, open(out), open(errOut))
	}
	if commands < 20 {
		r.t.Fatalf("%s holds only %d commands", file, commands)
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			r.t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(strings.TrimSpace(string(data)), strings.TrimSpace(got.String())); diff != "" {
		r.t.Errorf("%s (-recorded +ours):\n%s", file, diff)
	}
}

// open marks text without a final newline as the recordings do.
func open(s string) string {
	if s == "" || strings.HasSuffix(s, "\n") {
		return s
	}
	return s + "[no newline at end]\n"
}

// line runs one line of a script: a dfs command, or cat of a local file; "| tail -n N" and "| tr "\0" "|"" are known.
func (r *rig) line(line string) (int, string, string) {
	command, filter, _ := strings.Cut(line, " | ")
	words := splitWords(command)
	var code int
	var out, errOut string
	switch words[0] {
	case "dfs":
		code, out, errOut = r.run(words[1:]...)
	case "cat":
		b, err := os.ReadFile(filepath.Join(r.dir, words[1]))
		if err != nil {
			r.t.Fatal(err)
		}
		out = string(b)
	default:
		r.t.Fatalf("script: unknown command %q", line)
	}
	switch {
	case filter == "":
	case strings.HasPrefix(filter, "tail -n 3"):
		lines := strings.SplitAfter(out, "\n")
		out = strings.Join(lines[len(lines)-4:], "")
	case strings.HasPrefix(filter, "tr "):
		out = strings.ReplaceAll(out, "\x00", "|")
	default:
		r.t.Fatalf("script: unknown filter %q", filter)
	}
	return code, out, errOut
}

// splitWords cuts a line at blanks outside double quotes.
func splitWords(line string) []string {
	var words []string
	var word strings.Builder
	quoted, any := false, false
	for _, c := range line {
		switch {
		case c == '"':
			quoted, any = !quoted, true
		case c == ' ' && !quoted:
			if any || word.Len() > 0 {
				words = append(words, word.String())
			}
			word.Reset()
			any = false
		default:
			word.WriteRune(c)
		}
	}
	if any || word.Len() > 0 {
		words = append(words, word.String())
	}
	return words
}

// files places the files that the recordings begin with.
func (r *rig) files() {
	at := func(s int) time.Time { return recordedAt.Add(time.Duration(s-46) * time.Second) }
	r.place("/g/", "", at(0))
	r.place("/user/root/", "", at(0))
	r.place("/g/empty/", "", at(1))
	r.place("/g/d/", "", at(9))
	r.place("/g/a.txt", "hello\nworld\n", at(2))
	r.place("/g/n.txt", seqText(2000), at(3))
	r.place("/g/big.bin", strings.Repeat("x", 3_000_000), at(4))
	r.place("/g/d/b.txt", "tail", at(9))
	if err := r.fs.Chtimes(context.Background(), "/g/d", at(9), at(9)); err != nil {
		r.t.Fatal(err)
	}
	r.local("a.txt", "hello\nworld\n")
	r.local("b.txt", "tail")
}

func TestRecordedNamespace(t *testing.T) {
	r := newRig(t)
	r.files()
	file, err := filepath.Abs("testdata/namespace.txt")
	if err != nil {
		t.Fatal(err)
	}
	r.script(file)
}

func TestRecordedUsage(t *testing.T) {
	r := newRig(t)
	r.files()
	ctx := context.Background()
	r.place("/g/a.txt.gz", strings.Repeat("z", 38), recordedAt)
	r.place("/g/cfl.txt", "hello\nworld\n", recordedAt)
	r.place("/g/d/a.txt", "hello\nworld\n", recordedAt)
	r.place("/g/ld/", "", recordedAt)
	r.place("/g/ld/a.txt", "hello\nworld\n", recordedAt)
	r.place("/g/ld/b.txt", "tail", recordedAt)
	r.place("/g/p.txt", "tail", time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC))
	r.place("/g/stdin.txt", "from stdin\n", recordedAt)
	for path, mode := range map[string]fs.FileMode{"/g/a.txt": 0o740, "/g/ld/a.txt": 0o750, "/g/ld/b.txt": 0o750} {
		if err := r.fs.Chmod(ctx, path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.fs.Chown(ctx, "/g/p.txt", -1, 1); err != nil {
		t.Fatal(err)
	}
	if err := r.fs.Chtimes(ctx, "/g/a.txt", recordedAt, recordedAt); err != nil {
		t.Fatal(err)
	}
	file, err := filepath.Abs("testdata/usage.txt")
	if err != nil {
		t.Fatal(err)
	}
	r.script(file)
}

func TestHumanSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0", 1: "1", 1023: "1023", 1024: "1 K", 1025: "1.0 K", 1280: "1.3 K", 1536: "1.5 K", 8893: "8.7 K", 26679: "26.1 K",
		3000000: "2.9 M", 9000000: "8.6 M", 9171609: "8.7 M", 64 << 20: "64 M", 1<<20 - 1: "1 M", 811659522048: "755.9 G",
		230437490688: "214.6 G", 1 << 50: "1 P", 1<<63 - 1: "8.0 E", -2048: "-2 K",
	} {
		if got := humanSize(n); got != want {
			t.Errorf("humanSize(%d) = %q, want %q", n, got, want)
		}
	}
	for n, want := range map[int64]string{207929917440: "193.65 GB", 0: "0 B", 64 << 20: "64 MB", 1234567: "1.18 MB"} {
		if got := byteDesc(n); got != want {
			t.Errorf("byteDesc(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestModes(t *testing.T) {
	for _, c := range []struct {
		old  fs.FileMode
		text string
		want fs.FileMode
	}{
		{0o644, "755", 0o755},
		{0o644, "1777", 0o777 | fs.ModeSticky},
		{0o644, "u+x", 0o744},
		{0o644, "+x", 0o755},
		{0o666, "-w", 0o466},
		{0o644, "a=r,u+w", 0o644},
		{0o644, "go=u", 0o666},
		{0o644, "g=,o=", 0o600},
		{0o644, "a+X", 0o644},
		{0o744, "a+X", 0o755},
		{fs.ModeDir | 0o700, "a+X", 0o711},
		{0o755, "u+s,g+s", 0o755 | fs.ModeSetuid | fs.ModeSetgid},
		{0o755, "o+t", 0o755 | fs.ModeSticky},
		{0o777, "o=,ug-w+t", 0o550 | fs.ModeSticky},
	} {
		change, err := parseMode(c.text)
		if err != nil {
			t.Errorf("parseMode(%q): %v", c.text, err)
			continue
		}
		if got := change(c.old, 0o022); got != c.want {
			t.Errorf("%s applied to %v = %v, want %v", c.text, c.old, got, c.want)
		}
	}
	for _, text := range []string{"", "u", "9", "u+q", "77777", "z+x", "u+x,", "+-z"} {
		if _, err := parseMode(text); err == nil {
			t.Errorf("parseMode(%q) is accepted", text)
		}
	}
	if got := modeText(fs.ModeDir | fs.ModeSticky | 0o776); got != "drwxrwxrwT" {
		t.Errorf("modeText = %s", got)
	}
}

func TestBraces(t *testing.T) {
	for pattern, want := range map[string]string{
		"/a":             "/a",
		"/{a,b}":         "/a /b",
		"/{a,b{c,d}}x":   "/ax /bcx /bdx",
		`/\{a,b}`:        `/\{a,b}`,
		"/{a/b,c}/{1,2}": "/a/b/1 /a/b/2 /c/1 /c/2",
		"/{a}":           "/a",
		"/[{,]x":         "/[{,]x",
	} {
		got, err := expandBraces(pattern)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("expandBraces(%q) = %q, %v; want %q", pattern, got, err, want)
		}
	}
	for _, bad := range []string{"/{a", "/{a,{b}", strings.Repeat("{0,1,2,3,4,5,6,7,8,9}", 6)} {
		if _, err := expandBraces(bad); err == nil {
			t.Errorf("expandBraces(%.20q) is accepted", bad)
		}
	}
}

func TestSpellings(t *testing.T) {
	r := newRig(t)
	r.files()
	want := r.ok("ls", "-C", "/g")
	for _, line := range []string{
		"-ls -C /g", "dfs -ls -C /g", "fs -ls -C /g", "dfs ls -C /g", "ls -C dfs://127.0.0.1:7400/g", "-fs dfs://127.0.0.1:7400 -ls -C /g",
		"--masters 127.0.0.1:7400 ls -C /g", "ls -C /g --masters=127.0.0.1:7400",
	} {
		got := r.ok(strings.Fields(line)...)
		if got = strings.ReplaceAll(got, "dfs://127.0.0.1:7400", ""); got != want {
			t.Errorf("dfs %s printed\n%s want\n%s", line, got, want)
		}
	}
	if got := r.ok("rm", "-rf", "/g/d", "/g/nope"); got != "Deleted /g/d\n" {
		t.Errorf("rm -rf printed %q", got)
	}
	for line, want := range map[string]int{
		"foo": 255, "-foo": 255, "ls --bogus": 255, "ls -lz": 255, "mkdir": 255, "head a b": 255, "head -c x /g/a.txt": 255,
		"test /g": 255, "test -d -e /g": 255, "version --bogus": 2, "ls /nope": 1, "help": 0, "ls --help": 0, "-usage ls": 0, "-help ls": 0,
	} {
		if code, out, errOut := r.run(strings.Fields(line)...); code != want {
			t.Errorf("dfs %s: exit %d, want %d\n%s%s", line, code, want, out, errOut)
		}
	}
	if _, _, errOut := r.run("-lss", "/"); !strings.HasPrefix(errOut, "-lss: Unknown command\n") {
		t.Errorf("dfs -lss says %q", errOut)
	}
}

func TestRelativePathsAndOddNames(t *testing.T) {
	r := newRig(t)
	r.files()
	odd := "/user/root/a\xff *[x]\n"
	r.place(odd, "odd", recordedAt)
	if got, want := r.ok("ls", "-C"), "a\xff *[x]\n\n"; got != want {
		t.Errorf("ls printed %q, want %q", got, want)
	}
	if got, want := r.ok("ls", "-C", "-q"), "a? *[x]?\n"; got != want {
		t.Errorf("ls -q printed %q, want %q", got, want)
	}
	if got := r.ok("cat", "a\xff \\*\\[x\\]\n"); got != "odd" {
		t.Errorf("cat printed %q", got)
	}
	if got := r.ok("cat", "a*"); got != "odd" {
		t.Errorf("cat printed %q", got)
	}
	if got := r.ok("cat", "../../g/[!b-z]*.t?t"); got != "hello\nworld\n" {
		t.Errorf("cat printed %q", got)
	}
}

func TestJSON(t *testing.T) {
	r := newRig(t)
	r.files()
	got := r.ok("ls", "--json", "/g/a.txt")
	want := `{"path":"/g/a.txt","type":"file","mode":"0644","permission":"-rw-r--r--","owner":"root","group":"supergroup","uid":0,"gid":0,` +
		`"length":12,"replication":3,"chunk_size":67108864,"links":1,"inode":8,"inline":true,"modified":"2026-11-23T03:30:02Z","accessed":"2026-11-23T03:30:02Z"}` + "\n"
	if !strings.HasPrefix(got, `{"path":"/g/a.txt","type":"file"`) || len(got) != len(want) {
		t.Errorf("ls --json printed\n%s want\n%s", got, want)
	}
	for _, line := range []string{"du --json /g", "df --json", "count --json /g", "stat --json /g", "checksum --json /g/a.txt", "fileinfo --json /g/big.bin", "find /g --json", "fsck / --json", "admin report --json", "version --json", "setrep --json 2 /g/a.txt", "truncate --json 3 /g/a.txt", "rm --json /g/n.txt"} {
		for row := range strings.SplitSeq(strings.TrimSpace(r.ok(strings.Fields(line)...)), "\n") {
			if !strings.HasPrefix(row, "{") || !strings.HasSuffix(row, "}") {
				t.Errorf("dfs %s printed %q", line, row)
			}
		}
	}
}

func TestTailAndHead(t *testing.T) {
	r := newRig(t)
	r.place("/n", seqText(3000), recordedAt)
	all := seqText(3000)
	for line, want := range map[string]string{
		"tail /n":         all[len(all)-1024:],
		"tail -c 5 /n":    "3000\n",
		"tail -n 2 /n":    "2999\n3000\n",
		"tail -n 0 /n":    "",
		"head -n 2 /n":    "1\n2\n",
		"head -c 3 /n":    "1\n2",
		"head /n":         all[:1024],
		"tail -n 9999 /n": all,
	} {
		if got := r.ok(strings.Fields(line)...); got != want {
			t.Errorf("dfs %s printed %.40q…, want %.40q…", line, got, want)
		}
	}
}

func TestFindExpressions(t *testing.T) {
	r := newRig(t)
	r.files()
	for line, want := range map[string]string{
		"find /g -type d":                             "/g /g/d /g/empty",
		"find /g -type f -size +1k":                   "/g/big.bin /g/n.txt",
		"find /g -size 12":                            "/g/a.txt",
		"find /g -newer /g/n.txt -type f":             "/g/big.bin /g/d/b.txt",
		"find /g -mtime -1 -name a*":                  "/g/a.txt",
		"find /g -mtime +1":                           "",
		"find /g ( -name a.txt -o -name b.txt )":      "/g/a.txt /g/d/b.txt",
		"find /g ! -type d -maxdepth 1 ! -name *.txt": "/g/big.bin",
		"find /g -name {a,n}.txt":                     "/g/a.txt /g/n.txt",
	} {
		if got := strings.Join(strings.Fields(r.ok(strings.Fields(line)...)), " "); got != want {
			t.Errorf("dfs %s printed %q, want %q", line, got, want)
		}
	}
	for _, line := range []string{"find /g -bogus", "find /g -name", "find /g (", "find /g -size x", "find /g -type z"} {
		if code, _, _ := r.run(strings.Fields(line)...); code != 255 {
			t.Errorf("dfs %s: exit %d", line, code)
		}
	}
}

func TestFsckAndReport(t *testing.T) {
	r := newRig(t)
	r.files()
	r.fs.fsck = fsckTotals{Bytes: 3009067, Directories: 8, Files: 18, Chunks: 16, Replicas: 47, DefaultReplication: 3, LiveServers: 3, Racks: 1, MinimallyReplicated: 16}
	want := `FSCK started by root (auth:SIMPLE) from /127.0.0.1 for path / at Mon Nov 23 03:30:46 UTC 2026


Status: HEALTHY
 Number of data-nodes:	3
 Number of racks:		1
 Total dirs:			8
 Total symlinks:		0

Replicated Blocks:
 Total size:	3009067 B
 Total files:	18
 Total blocks (validated):	16 (avg. block size 188066 B)
 Minimally replicated blocks:	16 (100.0 %)
 Over-replicated blocks:	0 (0.0 %)
 Under-replicated blocks:	0 (0.0 %)
 Default replication factor:	3
 Average block replication:	2.9375
 Missing blocks:		0
 Corrupt blocks:		0
 Missing replicas:		0 (0.0 %)
 Blocks queued for replication:	0
FSCK ended at Mon Nov 23 03:30:46 UTC 2026 in 0 milliseconds


The filesystem under path '/' is HEALTHY
`
	for _, line := range [][]string{{"fsck", "/"}, {"admin", "fsck", "/"}, {"-fsck"}} {
		if diff := cmp.Diff(want, r.ok(line...)); diff != "" {
			t.Errorf("fsck (-want +got):\n%s", diff)
		}
	}
	r.fs.fsck.MissingChunks, r.fs.fsck.MissingFiles, r.fs.fsck.MissingBytes = 1, 1, 12
	r.fs.found = []finding{{Path: "/g/a.txt", Chunk: "00000000000000aa", Problem: "missing", Want: 3, Length: 12}}
	code, out, _ := r.run("fsck", "/")
	if code != 1 || !strings.HasSuffix(out, "The filesystem under path '/' is CORRUPT\n") || !strings.Contains(out, "/g/a.txt: MISSING chunk 0") {
		t.Errorf("fsck of a corrupt tree: exit %d\n%s", code, out)
	}
	code, out, errOut := r.run("fsck", "/nope")
	if code != 0 || out != "" || !strings.HasSuffix(errOut, "DFSck exiting.\n") {
		t.Errorf("fsck of nothing: exit %d\n%s%s", code, out, errOut)
	}
	r.fs.report.Totals = fsTotals{Capacity: 207929917440, Used: 24576, Free: 100}
	r.fs.report.Servers[2].State = "dead"
	out = r.ok("admin", "report")
	for _, line := range []string{"Configured Capacity: 207929917440 (193.65 GB)", "DFS Used: 24576 (24 KB)", "Live datanodes (2):", "Dead datanodes (1):", "Name: 127.0.0.1:7410 (127.0.0.1)", "Missing blocks: 0"} {
		if !strings.Contains(out, line) {
			t.Errorf("report lacks %q:\n%s", line, out)
		}
	}
	if out = r.ok("dfsadmin", "-safemode", "get"); out != "Safe mode is OFF\n" {
		t.Errorf("safemode printed %q", out)
	}
}

func TestFileinfo(t *testing.T) {
	r := newRig(t)
	r.files()
	n, err := r.fs.walk("/g/big.bin", true, 0)
	if err != nil {
		t.Fatal(err)
	}
	n.chunks = []chunkInfo{{ID: dfs.ChunkID(7).String(), Version: 12, Length: 3000000, Want: 3, Replicas: []replicaInfo{
		{Server: "0000000000000001", Addr: "127.0.0.1:7410", Version: 12, Length: 3000000, State: "valid"},
		{Server: "0000000000000002", Addr: "127.0.0.1:7411", Version: 11, Length: 2000000, State: "stale"},
	}}}
	want := fmt.Sprintf(`/g/big.bin: regular file, 3000000 bytes, inode %d, 1 chunks of 64 M, replication 3
  chunk 0: id 0000000000000007 version 12 length 3000000, 1 of 3 replicas valid
    replica  127.0.0.1:7410  server 0000000000000001  version 12  length 3000000  VALID  primary
    replica  127.0.0.1:7411  server 0000000000000002  version 11  length 2000000  STALE
/g/a.txt: regular file, 12 bytes, inode %d, stored in the inode
`, n.inode, n.inode-2)
	if diff := cmp.Diff(want, r.ok("fileinfo", "/g/big.bin", "/g/a.txt")); diff != "" {
		t.Errorf("fileinfo (-want +got):\n%s", diff)
	}
}
