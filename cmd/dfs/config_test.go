package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// loadMaster loads a configuration from a file's text, variables and flags.
func loadMaster(t *testing.T, file string, env map[string]string, args ...string) (*masterSettings, *layered, error) {
	t.Helper()
	s := defaultMaster()
	l := newLayered("master", s)
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	l.addFlags(flags)
	if file != "" {
		path := filepath.Join(t.TempDir(), "master.toml")
		if err := os.WriteFile(path, []byte(file), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"--config", path}, args...)
	}
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return s, l, l.load(flags, func(k string) string { return env[k] })
}

func TestConfigPrecedence(t *testing.T) {
	s, l, err := loadMaster(t, "dir = \"/file\"\nmin_replicas = 1\ndead_after = \"10s\"\nrepair_rate = \"5MiB\"\n",
		map[string]string{"DFS_MASTER_DIR": "/env", "DFS_MASTER_DEAD_AFTER": "20s", "DFS_MASTER_CACHE_SIZE": "1g"}, "--dir", "/flag")
	if err != nil {
		t.Fatal(err)
	}
	if s.Dir != "/flag" || s.MinReplicas != 1 || time.Duration(s.DeadAfter) != 20*time.Second || s.RepairRate != 5<<20 || s.CacheSize != 1<<30 || s.Fence != "process" {
		t.Errorf("loaded %+v", s)
	}
	for key, want := range map[string]string{"dir": "--dir", "dead_after": "DFS_MASTER_DEAD_AFTER", "fence": "default"} {
		if l.origin[key] != want {
			t.Errorf("%s comes from %s, want %s", key, l.origin[key], want)
		}
	}
	if !strings.HasSuffix(l.origin["min_replicas"], "master.toml") {
		t.Errorf("min_replicas comes from %s", l.origin["min_replicas"])
	}
}

func TestConfigErrors(t *testing.T) {
	for file, want := range map[string]string{
		"dir = \"/x\"\n  colour = 1\n": "master.toml:2:3: unknown key \"colour\" of master",
		"[chunk]\nsize = 1\n":          "unknown key \"chunk",
		"min_replicas = \"many\"\n":    "master.toml:1:",
		"dead_after = \"soon\"\n":      "\"soon\" is not a duration",
		"repair_rate = \"much\"\n":     "\"much\" is not a size",
		"dir = \"/x\"\ndir = \"/y\"\n": "master.toml:2:",
		"dir =\n":                      "master.toml:1:",
	} {
		if _, _, err := loadMaster(t, file, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", file, err, want)
		}
	}
	if _, _, err := loadMaster(t, "", map[string]string{"DFS_MASTER_MIN_REPLICAS": "x"}); err == nil || !strings.HasPrefix(err.Error(), "DFS_MASTER_MIN_REPLICAS: ") {
		t.Errorf("a bad variable gives %v", err)
	}
	if _, _, err := loadMaster(t, "", nil, "--dead-after", "x"); err == nil || !strings.HasPrefix(err.Error(), "--dead-after: ") {
		t.Errorf("a bad flag gives %v", err)
	}
	if _, _, err := loadMaster(t, "", nil, "--config", "/nope/x.toml"); err == nil || !strings.Contains(err.Error(), "/nope/x.toml") {
		t.Errorf("a missing file gives %v", err)
	}
}

func TestConfigShow(t *testing.T) {
	r := newRig(t)
	r.env.getenv = func(k string) string { return map[string]string{"DFS_CHUNKSERVER_MASTERS": "a:1,b:2"}[k] }
	out := r.ok("config", "show", "chunkserver", "--origin", "--reserve", "10g")
	for _, want := range []string{`masters = ["a:1", "b:2"]`, "# DFS_CHUNKSERVER_MASTERS", `reserve = "10GiB"`, "# --reserve", "# default"} {
		if !strings.Contains(out, want) {
			t.Errorf("config show lacks %s:\n%s", want, out)
		}
	}
}

func TestByteSize(t *testing.T) {
	for text, want := range map[string]byteSize{"64MiB": 64 << 20, "64m": 64 << 20, "64 MB": 64 << 20, "1g": 1 << 30, "4096": 4096, "1.5k": 1536, "0": 0} {
		var b byteSize
		if err := b.UnmarshalText([]byte(text)); err != nil || b != want {
			t.Errorf("%q is %d, %v; want %d", text, b, err, want)
		}
	}
	for _, text := range []string{"", "x", "-1", "1x", "m", "99999999999999999999"} {
		var b byteSize
		if err := b.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is accepted as %d", text, b)
		}
	}
}

func TestFindCluster(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		opts     options
		env      string
		operands []string
		want     string
	}{
		{options{}, "", nil, "127.0.0.1:7400"},
		{options{}, "e1,e2:1", nil, "e1:7400 e2:1"},
		{options{"masters": "f:1"}, "e", nil, "f:1"},
		{options{"masters": "f:1", "fs": "dfs://g:2/"}, "e", nil, "g:2"},
		{options{"masters": "f:1"}, "e", []string{"/x", "dfs://h:3/y"}, "h:3"},
		{options{}, "e", []string{"dfs:///y"}, "e:7400"},
	} {
		r.env.getenv = func(string) string { return c.env }
		if got, err := findCluster(r.env, c.opts, c.operands); err != nil || strings.Join(got.masters, " ") != c.want {
			t.Errorf("%v %q %v: %v, %v; want %s", c.opts, c.env, c.operands, got.masters, err, c.want)
		}
	}
	r.env.getenv = func(string) string { return "" }
	r.env.dropCurrent([]string{"other:1"})
	if _, err := findCluster(r.env, options{}, nil); err != nil {
		t.Errorf("another cluster's end made ours forgotten: %v", err)
	}
	r.env.dropCurrent([]string{"127.0.0.1:7400"})
	if _, err := findCluster(r.env, options{}, nil); err == nil || !strings.Contains(err.Error(), "dfs mini") {
		t.Errorf("without any cluster: %v", err)
	}
}

func TestProcessIdentity(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := identify(cmd.Process.Pid)
	if err != nil || !id.alive() {
		t.Fatalf("identify: %+v, %v", id, err)
	}
	other := id
	other.Start++ // what a recorded process looks like whose pid was given to another
	if other.alive() {
		t.Error("a recycled pid counts as alive")
	}
	if err := other.signal(syscall.SIGKILL); err != errNoProcess { //nolint:errorlint // the very value
		t.Errorf("signalling a recycled pid: %v", err)
	}
	if err := other.kill(t.Context()); err != nil {
		t.Errorf("killing a recycled pid: %v", err)
	}
	rebooted := id
	rebooted.Boot = "before"
	if rebooted.alive() {
		t.Error("a process of an earlier boot counts as alive")
	}
	if !id.alive() {
		t.Fatal("the process was hit")
	}
	// A zombie is dead: it is not reaped before the end of this test.
	if err := id.kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if id.alive() {
		t.Error("a killed process counts as alive")
	}
	if err := id.signal(syscall.SIGTERM); err != errNoProcess { //nolint:errorlint // the very value
		t.Errorf("signalling a dead process: %v", err)
	}
	cmd.Wait() //nolint:errcheck // it was killed
	if _, state, err := parseStat([]byte("12 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20\n")); err != nil || state != 'S' {
		t.Errorf("parseStat: %c, %v", state, err)
	}
	for _, bad := range []string{"", "12", "12 (x) S 1"} {
		if _, _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("parseStat(%q) is accepted", bad)
		}
	}
}

func TestPorts(t *testing.T) {
	ctx := t.Context()
	first, err := nextFreePort(ctx, "127.0.0.1:38400", nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := nextFreePort(ctx, first, map[string]bool{first: true})
	if err != nil || second == first {
		t.Errorf("next free port after %s: %s, %v", first, second, err)
	}
	r := newRig(t)
	for _, line := range []string{"master --dir DIR/m --listen 0.0.0.0:7400", "chunkserver --dirs DIR/c --listen 192.0.2.1:7410"} {
		code, _, errOut := r.run(strings.Fields(strings.ReplaceAll(line, "DIR", r.dir))...)
		if code != 1 || !strings.Contains(errOut, "TLS") {
			t.Errorf("dfs %s: exit %d %s", line, code, errOut)
		}
	}
}
