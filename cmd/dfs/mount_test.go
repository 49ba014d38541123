package main

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dfs/fusefs"
)

func TestMountOptions(t *testing.T) {
	m := &mountArgs{opts: fusefs.Options{AllowOther: true}}
	if err := m.setOptions("ro,_netdev,x-systemd.requires=network-online.target,noallow_other,umask=027,uid=12,local_locks,attr_timeout=200ms,max_readahead=1m,nosuid,subdir=/a/b"); err != nil {
		t.Fatal(err)
	}
	o := m.opts
	if !o.ReadOnly || !o.LocalLocks || o.AllowOther || o.Show.Umask != 0o027 || *o.Show.UID != 12 || o.AttrTimeout != 200*time.Millisecond || o.MaxReadahead != 1<<20 || !o.NoSetuid || m.subdir != "/a/b" {
		t.Errorf("%+v", m)
	}
	if err := m.setOptions("attr_timeout=1.5"); err != nil || m.opts.AttrTimeout != 1500*time.Millisecond {
		t.Error(err, m.opts.AttrTimeout)
	}
	for option, want := range map[string]string{
		"alow_other": "allow_other", "read_ahead=1": "unknown option", "rro": "did you mean ro", "uid=x": "not a number", "umask=9": "not a number",
		"remount": "unmount it", "attr_timeout=soon": "not a time", "max_readahead=1": "4k to 1g", "subdir=": "needs a value",
	} {
		if err := m.setOptions(option); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), option) {
			t.Errorf("-o %s: %v, want %q", option, err, want)
		}
	}
}

func TestMountSource(t *testing.T) {
	for source, want := range map[string][2]string{
		"m1:7400,m2:7400":      {"m1:7400,m2:7400", ""},
		"m1,m2,m3:/":           {"m1,m2,m3", ""},
		"m1:7400:/data/x":      {"m1:7400", "/data/x"},
		"dfs://m1:7400/data/x": {"m1:7400", "/data/x"},
		"dfs://m1:7400":        {"m1:7400", ""},
		"none":                 {"", ""},
	} {
		m := &mountArgs{}
		if m.setSource(source); m.masters != want[0] || m.subdir != want[1] {
			t.Errorf("%s: masters %q, directory %q, want %q", source, m.masters, m.subdir, want)
		}
	}
}

func TestMountHelperArguments(t *testing.T) {
	m, err := parseMountHelper([]string{"m1:7400:/sub", "/mnt/x", "-sv", "-t", "fuse.dfs", "-o", "rw,noexec"})
	if err != nil {
		t.Fatal(err)
	}
	if m.masters != "m1:7400" || m.subdir != "/sub" || m.dir != "/mnt/x" || !m.background || !m.opts.NoExec {
		t.Errorf("%+v", m)
	}
	if _, err := parseMountHelper([]string{"only-one"}); err == nil {
		t.Error("a missing directory was accepted")
	}
	if _, err := parseMountHelper([]string{"m1", "/mnt/x", "-o", "of_another_system"}); err == nil {
		t.Error("an unknown option was accepted")
	}
	if _, err := parseMountHelper([]string{"m1", "/mnt/x", "-o", "of_another_system", "-s"}); err != nil {
		t.Errorf("-s: %v", err)
	}
	if m, err := parseMountHelper([]string{"m1", "/mnt/x", "-fv"}); err != nil || m != nil {
		t.Errorf("-f: %+v, %v", m, err)
	}
	fstab := "rw,_netdev,nofail,noauto,user,auto,users,noatime,x-systemd.automount,x-systemd.requires=network-online.target,allow_other,exec,suid,dev"
	if _, err := parseMountHelper([]string{"m1", "/mnt/x", "-o", fstab}); err != nil {
		t.Error(err)
	}
}

// needMount skips where nothing can be mounted.
func needMount(t *testing.T) {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil || os.Geteuid() != 0 {
		t.Skipf("needs root and /dev/fuse (%v)", err)
	} else {
		f.Close() //nolint:errcheck // only looked
	}
}

// mounted reports whether something is mounted on dir.
func mounted(dir string) bool {
	_, _, ok := fusefs.MountedOn(dir)
	return ok
}

// unmountAfter takes away at the end of the test what it has left on dir.
func unmountAfter(t *testing.T, dir string) {
	t.Cleanup(func() {
		if mounted(dir) {
			if err := fusefs.Unmount(dir, true); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestMiniMount has a cluster and a mount of it by one command.
func TestMiniMount(t *testing.T) {
	needMount(t)
	w := newWorld(t)
	dir := filepath.Join(w.dir, "new", "mnt")
	unmountAfter(t, dir)
	m := w.startMini("--mount", "new/mnt")
	if m.banner.Mount != dir {
		t.Errorf("banner: %+v", m.banner)
	}
	if err := os.WriteFile(filepath.Join(dir, "hello"), []byte("through the mount"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := w.ok("cat", "/hello"); got != "through the mount" {
		t.Errorf("cat printed %q", got)
	}
	m.interrupt(t)
	if mounted(dir) {
		t.Error("still mounted after Ctrl-C")
	}
	// A mount point that cannot be: nothing is left running.
	file := w.file("file", "x")
	if code, _, errOut := w.dfs("mini", "--mount", file); code != 1 || !strings.Contains(errOut, "not a directory") {
		t.Errorf("mini --mount on a file: exit %d %s", code, errOut)
	}
}

// TestLocalMount has a mount among the processes of a local cluster: killed, started again, unmounted by down.
func TestLocalMount(t *testing.T) {
	needMount(t)
	w := newWorld(t)
	dir, mnt := filepath.Join(w.dir, "cluster"), filepath.Join(w.dir, "mnt")
	t.Cleanup(func() { w.dfs("local", "down", "--dir", dir) })
	unmountAfter(t, mnt)
	up := []string{"local", "up", "--dir", dir, "--chunkservers", "3", "--mount", "mnt"}
	w.ok(up...)
	n := w.cluster(dir)["mount1"]
	if !n.alive() || n.Role != roleMount || n.DataDir != mnt {
		t.Fatalf("%+v", n)
	}
	if got := w.ok("local", "status", "--dir", dir); !strings.Contains(got, mnt) {
		t.Errorf("status printed\n%s", got)
	}
	name := filepath.Join(mnt, "f")
	if err := os.WriteFile(name, []byte("one"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.ok(up...)
	if again := w.cluster(dir)["mount1"]; again != n {
		t.Errorf("up started the mount again")
	}
	w.ok("local", "kill", "mount1", "--dir", dir)
	if _, err := os.Stat(name); !fusefs.IsDead(err) {
		t.Errorf("after the kill the mount point answers %v", err)
	}
	w.ok("local", "start", "mount1", "--dir", dir)
	if got, err := os.ReadFile(name); err != nil || string(got) != "one" {
		t.Errorf("%q, %v", got, err)
	}
	w.ok("local", "kill", "mount1", "--dir", dir)
	w.ok("local", "down", "--dir", dir)
	if mounted(mnt) {
		t.Error("a dead mount is left after down")
	}
	w.ok(up...)
	w.ok("local", "down", "--dir", dir)
	if mounted(mnt) {
		t.Error("still mounted after down")
	}
}

// TestMountCommand mounts as people and fstab do, and gives what cannot be mounted.
func TestMountCommand(t *testing.T) {
	needMount(t)
	w := newWorld(t)
	w.startMini()
	masters := strings.TrimSpace(string(must(os.ReadFile(filepath.Join(w.dir, "config", "dfs", "current")))))
	mnt := filepath.Join(w.dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	unmountAfter(t, mnt)

	w.ok("mount", "-d", mnt)
	if code, _, errOut := w.dfs("mount", "-d", mnt); code != 1 || !strings.Contains(errOut, "already mounted") {
		t.Errorf("a second mount: exit %d %s", code, errOut)
	}
	if err := os.Mkdir(filepath.Join(mnt, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	busy := must(os.Open(filepath.Join(mnt, "sub")))
	if code, _, errOut := w.dfs("umount", mnt); code != 1 || !strings.Contains(errOut, "programs use it") {
		t.Errorf("umount of a busy mount: exit %d %s", code, errOut)
	}
	if err := busy.Close(); err != nil {
		t.Fatal(err)
	}
	w.ok("umount", mnt)
	if code, _, errOut := w.dfs("umount", mnt); code != 1 || !strings.Contains(errOut, "nothing is mounted") {
		t.Errorf("umount of nothing: exit %d %s", code, errOut)
	}

	// As mount(8) starts it for a line of fstab: under another name, in the background.
	helper := filepath.Join(w.dir, "mount.dfs")
	if err := os.Symlink(must(os.Executable()), helper); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(helper, masters+":/sub", mnt, "-o", "ro,_netdev,nofail,x-systemd.automount,uid=12")
	cmd.Env = w.env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mount.dfs: %v %s", err, out)
	}
	if source, fstype, _ := fusefs.MountedOn(mnt); source != masters+":/sub" || fstype != "fuse.dfs" {
		t.Errorf("mounted as %q, %q", source, fstype)
	}
	if err := os.WriteFile(filepath.Join(mnt, "x"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
		t.Errorf("writing on a read-only mount: %v", err)
	}
	if st := must(os.Stat(mnt)).Sys().(*syscall.Stat_t); st.Uid != 12 {
		t.Errorf("with uid=12 the owner is %d", st.Uid)
	}
	w.ok("umount", mnt)

	full := filepath.Dir(w.file("full/file", "x"))
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"mount", "-d", filepath.Join(w.dir, "none")}, 1, "mkdir -p"},
		{[]string{"mount", "-d", filepath.Join(full, "file")}, 1, "not a directory"},
		{[]string{"mount", "-d", full}, 1, "nonempty"},
		{[]string{"mount", "-o", "alow_other", mnt}, 2, "did you mean allow_other"},
		{[]string{"mount", "-o", "subdir=/none", mnt}, 1, "/none"},
		{[]string{"mount", "-o", "subdir=/sub/../sub/f", mnt}, 1, "subdir"},
	} {
		if code, _, errOut := w.dfs(c.args...); code != c.code || !strings.Contains(errOut, c.want) {
			t.Errorf("dfs %s: exit %d %s; want %d, %q", strings.Join(c.args, " "), code, errOut, c.code, c.want)
		}
	}
	w.ok("mount", "-d", "-o", "nonempty", full)
	unmountAfter(t, full)
	w.ok("umount", full)
	if mounted(mnt) {
		t.Error("a refused mount was left")
	}
}

// The promise is five seconds; what goes beyond mountDialTimeout is starting a process.
const _ = uint(5*time.Second - mountDialTimeout - time.Second/2)

// TestMountWithoutMaster is told within five seconds that nobody answers: neither where connections are refused nor where they are
// taken and nothing is said.
func TestMountWithoutMaster(t *testing.T) {
	needMount(t)
	w := newWorld(t)
	mnt := filepath.Join(w.dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	unmountAfter(t, mnt)
	silent := must((&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0"))
	defer silent.Close()
	for _, masters := range []string{"127.0.0.1:9", silent.Addr().String()} {
		begin := time.Now()
		code, _, errOut := w.dfs("mount", "-d", masters, mnt)
		t.Logf("%s: after %v", masters, time.Since(begin))
		if code != 1 || !strings.Contains(errOut, "cannot reach the cluster at "+masters) {
			t.Errorf("exit %d %s", code, errOut)
		}
		if mounted(mnt) {
			t.Fatal("a mount was left")
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestMountAsUser mounts through fusermount3 as an ordinary user, who needs a /dev/fuse that everybody may open: the test has one
// in a mount namespace of its own. In another there is none at all.
func TestMountAsUser(t *testing.T) {
	needMount(t)
	if _, err := exec.LookPath(fusefs.HelperName); err != nil {
		t.Fatalf("%v: install Debian's package fuse3", err)
	}
	w := newWorld(t)
	w.startMini()
	masters := strings.TrimSpace(string(must(os.ReadFile(filepath.Join(w.dir, "config", "dfs", "current")))))
	dir := must(os.MkdirTemp("", "dfs-user-")) // that others can reach
	t.Cleanup(func() { os.RemoveAll(dir) })    //nolint:errcheck // nothing is mounted there outside of the namespace
	for name, perm := range map[string]os.FileMode{"": 0o755, "own": 0o777, "roots": 0o755} {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, name), perm), os.Chmod(filepath.Join(dir, name), perm)); err != nil {
			t.Fatal(err)
		}
	}
	bin := filepath.Join(dir, "dfs")
	if err := os.WriteFile(bin, must(os.ReadFile(must(os.Executable()))), 0o755); err != nil {
		t.Fatal(err)
	}
	const user = 65534
	if err := os.Chown(filepath.Join(dir, "own"), user, user); err != nil {
		t.Fatal(err)
	}
	inNamespace := func(script string) (string, error) {
		cmd := exec.Command("sh", "-euc", "mount --make-rprivate /\n"+script)
		cmd.Dir = dir
		cmd.Env = append(w.env, "MASTERS="+masters, "XDG_CONFIG_HOME="+filepath.Join(dir, "own"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := inNamespace(`
mknod fuse c 10 229; chmod 666 fuse; mount --bind fuse /dev/fuse
cat > script <<'END'
./dfs mount -d $MASTERS own
echo hello > own/file 2>/dev/null || { ls -ld own; ./dfs umount own; exit 7; }
[ "$(cat own/file)" = hello ]; rm own/file
if ./dfs mount -d $MASTERS own; then exit 8; fi
./dfs umount own
if ./dfs umount own; then exit 9; fi
if ./dfs mount -d $MASTERS roots; then exit 10; fi
if ./dfs mount -d -o allow_other $MASTERS own; then exit 11; fi
echo end
END
./dfs --masters $MASTERS chmod 777 /
setpriv --reuid=65534 --regid=65534 --clear-groups sh -eu script`)
	if err != nil {
		t.Errorf("as an ordinary user: %v\n%s", err, out)
	}
	for _, want := range []string{"already mounted", "own: nothing is mounted there", "user_allow_other", "no write access", "end"} {
		if !strings.Contains(out, want) {
			t.Errorf("nobody said %q in\n%s", want, out)
		}
	}
	out, err = inNamespace("mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; ./dfs mount -d $MASTERS own")
	if err == nil || !strings.Contains(out, "/dev/fuse is missing") {
		t.Errorf("without /dev/fuse: %v\n%s", err, out)
	}
}
