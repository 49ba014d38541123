package fusefs_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestVirtualDirectory reads /.dfs and tries to change it.
func TestVirtualDirectory(t *testing.T) {
	dir, p := mountCluster(t)
	in := func(name string) string { return filepath.Join(dir, ".dfs", name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir)
	must(err)
	for _, e := range entries {
		if e.Name() == ".dfs" {
			t.Error("the root lists .dfs: find and cp -a would descend")
		}
	}
	entries, err = os.ReadDir(filepath.Join(dir, ".dfs"))
	must(err)
	if got := fmt.Sprint(entries); got != "[- accesslog - config - stats]" {
		t.Errorf(".dfs lists %s", got)
	}

	read := func(name string) string {
		t.Helper()
		b, err := os.ReadFile(in(name))
		must(err)
		return string(b)
	}
	if config := read("config"); !strings.Contains(config, fmt.Sprintf("pid = %d\n", p.cmd.Process.Pid)) || !strings.Contains(config, "mount_point = \""+dir) {
		t.Errorf("config:\n%s", config)
	}
	must(os.WriteFile(filepath.Join(dir, "counted"), make([]byte, 12345), 0o644))
	t.Cleanup(func() { must(os.Remove(filepath.Join(dir, "counted"))) })
	stats := read("stats")
	for _, want := range []string{`\ndfs_fuse_ops_total\{op="create"\} [1-9]`, `\ndfs_fuse_written_bytes_total [1-9][0-9]{4}`, `\ngo_goroutines [1-9]`, `\ndfs_fuse_requests_in_flight [1-9]`} {
		if !regexp.MustCompile(want).MatchString(stats) {
			t.Errorf("stats lack %q:\n%s", want, stats)
		}
	}

	for what, c := range map[string]struct {
		err  error
		want error
	}{
		"mkdir of it":       {unix.Mkdir(filepath.Join(dir, ".dfs"), 0o755), unix.EEXIST},
		"symlink as it":     {unix.Symlink("x", filepath.Join(dir, ".dfs")), unix.EEXIST},
		"rmdir":             {unix.Rmdir(filepath.Join(dir, ".dfs")), unix.EPERM},
		"rename of it":      {unix.Rename(filepath.Join(dir, ".dfs"), filepath.Join(dir, "x")), unix.EPERM},
		"create in it":      {os.WriteFile(in("x"), nil, 0o644), unix.EPERM},
		"mkdir in it":       {unix.Mkdir(in("x"), 0o755), unix.EPERM},
		"unlink in it":      {unix.Unlink(in("stats")), unix.EPERM},
		"rename in it":      {unix.Rename(in("stats"), in("x")), unix.EPERM},
		"rename out of it":  {unix.Rename(in("stats"), filepath.Join(dir, "x")), unix.EPERM},
		"rename into it":    {unix.Rename(filepath.Join(dir, "counted"), in("x")), unix.EPERM},
		"link out of it":    {unix.Link(in("stats"), filepath.Join(dir, "x")), unix.EPERM},
		"write to stats":    {os.WriteFile(in("stats"), []byte("x"), 0), unix.EPERM},
		"truncate":          {unix.Truncate(in("stats"), 0), unix.EPERM},
		"chmod":             {unix.Chmod(in("stats"), 0o777), unix.EPERM},
		"another name":      {unix.Access(in("other"), unix.F_OK), unix.ENOENT},
		"an attribute":      {unix.Setxattr(in("stats"), "user.a", nil, 0), unix.EPERM},
		"a name below root": {os.MkdirAll(filepath.Join(dir, "below", ".dfs"), 0o755), nil},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", what, c.err, c.want)
		}
	}
	asUser(t, alice, team, nil, func() {
		if _, err := os.ReadFile(in("stats")); err != nil {
			t.Error(err)
		}
		if _, err := os.Open(in("accesslog")); !errors.Is(err, unix.EACCES) {
			t.Errorf("another user opens the access log: %v", err)
		}
	})
}

// TestAccessLog reads the log of what is done meanwhile, and unmounts under a reader.
func TestAccessLog(t *testing.T) {
	dir, p := mountCluster(t)
	log, err := os.Open(filepath.Join(dir, ".dfs", "accesslog"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if err := os.Mkdir(filepath.Join(dir, "logged dir"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := unix.Rmdir(filepath.Join(dir, "none")); !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(log)
	wanted := []string{`mkdir (1, "logged dir", 0750): ok <`, `lookup (1, "none"): no such file or directory <`}
	for len(wanted) > 0 && lines.Scan() {
		if !strings.Contains(lines.Text(), " uid=0 gid=0 pid=") {
			t.Fatalf("line %q", lines.Text())
		}
		if strings.Contains(lines.Text(), wanted[0]) {
			wanted = wanted[1:]
		}
	}
	if len(wanted) > 0 {
		t.Fatalf("the log ended before %q: %v", wanted, lines.Err())
	}
	// A reader that waits for more meets the end when the mount is taken away.
	ended := make(chan error)
	go func() {
		for lines.Scan() {
		}
		ended <- lines.Err()
	}()
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the log ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("a reader of the log waits for a mount that has gone")
	}
}
