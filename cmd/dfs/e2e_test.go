package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// These tests run the real command as real processes: the test binary is the command when actAsCommand is set, so that
// `dfs local`, which starts itself, starts the same code. Only processes that were started here are ever signalled.

const actAsCommand = "DFS_TEST_ACT_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(actAsCommand) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// world is a directory with a configuration of its own.
type world struct {
	t   *testing.T
	dir string
	env []string
}

func newWorld(t *testing.T) *world {
	if testing.Short() {
		t.Skip("starts processes")
	}
	w := &world{t: t, dir: t.TempDir()}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "DFS_") {
			w.env = append(w.env, v)
		}
	}
	w.env = append(w.env, actAsCommand+"=1", "XDG_CONFIG_HOME="+filepath.Join(w.dir, "config"), "USER=tester")
	return w
}

func (w *world) command(ctx context.Context, args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Dir, cmd.Env = w.dir, w.env
	return cmd
}

// dfs runs a command to its end.
func (w *world) dfs(args ...string) (code int, stdout, stderr string) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := w.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatalf("dfs %s: %v", strings.Join(args, " "), err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

// ok runs a command that must succeed.
func (w *world) ok(args ...string) string {
	w.t.Helper()
	code, out, errOut := w.dfs(args...)
	if code != 0 {
		w.t.Fatalf("dfs %s: exit %d\n%s%s", strings.Join(args, " "), code, out, errOut)
	}
	return out
}

func (w *world) file(name, content string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// cluster reads cluster.json.
func (w *world) cluster(dir string) map[string]localNode {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, clusterFileName))
	if err != nil {
		w.t.Fatal(err)
	}
	var c localCluster
	if err := json.Unmarshal(b, &c); err != nil {
		w.t.Fatal(err)
	}
	nodes := map[string]localNode{}
	for _, n := range c.Nodes {
		nodes[n.Name] = n
	}
	return nodes
}

func TestLocalCluster(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.dir, "cluster")
	t.Cleanup(func() { w.dfs("local", "down", "--dir", dir) })
	if code, _, errOut := w.dfs("local", "status", "--dir", dir); code != 1 || !strings.Contains(errOut, "no local cluster") {
		t.Errorf("status of nothing: exit %d %s", code, errOut)
	}
	w.ok("local", "up", "--dir", dir, "--chunkservers", "3")
	first := w.cluster(dir)
	if len(first) != 4 {
		t.Fatalf("cluster.json lists %d nodes", len(first))
	}
	for name, n := range first {
		if !n.alive() || n.Address == "" || n.Role == "" {
			t.Errorf("%s: %+v", name, n)
		}
		for _, path := range []string{n.DataDir, n.LogFile} {
			if _, err := os.Stat(path); err != nil {
				t.Error(err)
			}
		}
	}

	large := bytesOf(3*copyBuffer + 17)
	w.file("tree/large", large)
	w.file("tree/sub/small", "small")
	w.file("tree/sub/a\xff b", "odd")
	w.ok("mkdir", "-p", "/user/tester")
	w.ok("put", "tree")
	w.ok("put", "-f", "-p", "tree", "/copy")
	if got := w.ok("cat", "tree/large", "/copy/sub/small"); got != large+"small" {
		t.Errorf("cat returned %d bytes", len(got))
	}
	if got := w.ok("ls", "-C", "-R", "tree"); got != "tree/large\ntree/sub\ntree/sub/a\xff b\ntree/sub/small\n" {
		t.Errorf("ls printed %q", got)
	}
	if got := w.ok("count", "/copy"); !strings.HasPrefix(got, fmt.Sprintf("%12d %12d %18d ", 2, 3, len(large)+8)) {
		t.Errorf("count printed %q", got)
	}
	w.ok("get", "/copy", "back")
	if got, err := os.ReadFile(filepath.Join(w.dir, "back/large")); err != nil || string(got) != large {
		t.Errorf("came back as %d bytes, %v", len(got), err)
	}
	if got := w.ok("fileinfo", "/copy/large"); strings.Count(got, "VALID") != 3 || strings.Count(got, "primary") != 1 {
		t.Errorf("fileinfo printed\n%s", got)
	}
	if got := w.ok("fsck", "/"); !strings.HasSuffix(got, "The filesystem under path '/' is HEALTHY\n") {
		t.Errorf("fsck printed\n%s", got)
	}
	if got := w.ok("admin", "report"); !strings.Contains(got, "Live datanodes (3):") {
		t.Errorf("report printed\n%s", got)
	}
	if code, _, errOut := w.dfs("put", "tree/large", "/copy/large"); code != 1 || errOut != "put: `/copy/large': File exists\n" {
		t.Errorf("put on an existing file: exit %d %s", code, errOut)
	}

	// Starting what runs changes nothing.
	w.ok("local", "up", "--dir", dir, "--chunkservers", "3")
	for name, n := range w.cluster(dir) {
		if n != first[name] {
			t.Errorf("up started %s again", name)
		}
	}

	// A killed chunkserver is missed by nobody.
	w.ok("local", "kill", "chunkserver2", "--dir", dir)
	if n := first["chunkserver2"]; n.alive() {
		t.Error("chunkserver2 lives after kill")
	}
	if got := w.ok("local", "status", "--dir", dir, "--json"); strings.Count(got, `"state":"running"`) != 3 {
		t.Errorf("status printed %s", got)
	}
	w.ok("put", "tree/large", "/during")
	if got := w.ok("cat", "/during", "/copy/large"); got != large+large {
		t.Errorf("cat returned %d bytes", len(got))
	}
	w.ok("local", "start", "chunkserver2", "--dir", dir)
	if n := w.cluster(dir)["chunkserver2"]; !n.alive() || n.Pid == first["chunkserver2"].Pid {
		t.Errorf("chunkserver2 after start: %+v", n)
	}
	if code, _, errOut := w.dfs("local", "stop", "nobody", "--dir", dir); code != 1 || !strings.Contains(errOut, `no node "nobody"`) {
		t.Errorf("stop of nobody: exit %d %s", code, errOut)
	}

	// A clean stop keeps everything.
	begin := time.Now()
	w.ok("local", "stop", "chunkserver1", "--dir", dir)
	t.Logf("clean stop of a chunkserver: %s", time.Since(begin).Round(time.Millisecond))
	begin = time.Now()
	w.ok("local", "down", "--dir", dir)
	t.Logf("down: %s", time.Since(begin).Round(time.Millisecond))
	for name, n := range w.cluster(dir) {
		if n.alive() {
			t.Errorf("%s lives after down", name)
		}
	}
	w.ok("local", "down", "--dir", dir)
	if code, _, errOut := w.dfs("ls", "/"); code != 1 || !strings.Contains(errOut, "No cluster is known") {
		t.Errorf("ls without a cluster: exit %d %s", code, errOut)
	}
	w.ok("local", "up", "--dir", dir, "--chunkservers", "3")
	if got := w.ok("cat", "/during"); got != large {
		t.Errorf("after a restart %d of %d bytes are there", len(got), len(large))
	}
	w.ok("local", "down", "--dir", dir)
	if code, _, errOut := w.dfs("--masters", first["master1"].Address, "ls", "/"); code != 1 || !strings.Contains(errOut, first["master1"].Address) {
		t.Errorf("ls without a master: exit %d %s", code, errOut)
	}
}

// runningMini is `dfs mini` as a process.
type runningMini struct {
	cmd    *exec.Cmd
	banner miniBanner
	errOut bytes.Buffer
}

func (w *world) startMini(args ...string) *runningMini {
	w.t.Helper()
	m := &runningMini{cmd: w.command(context.Background(), append([]string{"mini", "--json"}, args...)...)}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	m.cmd.Stderr = &m.errOut
	if err := m.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if m.cmd.ProcessState == nil {
			m.cmd.Process.Kill() //nolint:errcheck // it may have ended
			m.cmd.Wait()         //nolint:errcheck // it was killed
		}
	})
	if err := json.NewDecoder(out).Decode(&m.banner); err != nil {
		m.cmd.Wait() //nolint:errcheck // what it said is shown
		w.t.Fatalf("mini did not start: %v\n%s", err, m.errOut.String())
	}
	return m
}

// interrupt sends SIGINT and returns how long the process took to end.
func (m *runningMini) interrupt(t *testing.T) time.Duration {
	t.Helper()
	begin := time.Now()
	if err := m.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := m.cmd.Wait(); err != nil {
		t.Errorf("mini: %v\n%s", err, m.errOut.String())
	}
	return time.Since(begin)
}

func TestMini(t *testing.T) {
	w := newWorld(t)
	m := w.startMini()
	t.Logf("ready in %d ms", m.banner.ReadyMS)
	if m.banner.DataDir != filepath.Join(w.dir, "dfs-data") || len(m.banner.Chunkservers) != miniServers {
		t.Errorf("banner: %+v", m.banner)
	}
	large := bytesOf(copyBuffer + 5)
	w.file("README.md", large)
	w.ok("put", "README.md", "/hello")
	w.ok("put", "README.md") // into the user's directory, which mini has made
	if got := w.ok("cat", "/hello", "README.md"); got != large+large {
		t.Errorf("cat returned %d bytes", len(got))
	}
	if code, _, errOut := w.dfs("mini"); code != 1 || !strings.Contains(errOut, "in use by another dfs mini") {
		t.Errorf("a second mini: exit %d %s", code, errOut)
	}
	t.Logf("stopped in %s", m.interrupt(t).Round(time.Millisecond))

	m = w.startMini()
	if got := w.ok("cat", "/hello"); got != large {
		t.Errorf("after a restart %d of %d bytes are there", len(got), len(large))
	}
	w.interruptPut()
	m.interrupt(t)

	m = w.startMini("--reset")
	if got := w.ok("ls", "-C", "/"); got != "/user\n" {
		t.Errorf("after --reset there is %q", got)
	}
	m.interrupt(t)
	other := filepath.Join(w.dir, "other")
	w.file("other/precious", "x")
	if code, _, errOut := w.dfs("mini", "--reset", "--dir", other); code != 1 || !strings.Contains(errOut, "something else") {
		t.Errorf("mini over other data: exit %d %s", code, errOut)
	}
	if _, err := os.Stat(filepath.Join(other, "precious")); err != nil {
		t.Error(err)
	}
}

// interruptPut interrupts a put that is waiting for more input, in the middle of a file.
func (w *world) interruptPut() {
	w.t.Helper()
	cmd := w.command(context.Background(), "put", "-", "/interrupted")
	in, err := cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	if _, err := io.WriteString(in, bytesOf(3*copyBuffer)); err != nil {
		w.t.Fatal(err)
	}
	deadline := time.After(30 * time.Second)
	for !strings.Contains(w.ok("ls", "-C", "/"), temporaryMark) {
		select {
		case <-deadline:
			w.t.Fatal("the temporary name did not appear")
		case <-time.After(20 * time.Millisecond):
		}
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		w.t.Fatal(err)
	}
	cmd.Wait() //nolint:errcheck // the status is looked at
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
		w.t.Errorf("interrupted put: exit %d", code)
	}
	if got := w.ok("ls", "-C", "/"); strings.Contains(got, "interrupted") {
		w.t.Errorf("left behind: %q", got)
	}
}
