package fusefs_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"dfs/client"
	"dfs/fusefs"
	"dfs/master"
	"dfs/testcluster"
)

// The test binary plays more parts, in processes of its own, because a process that serves a mount and uses it can
// deadlock: the cluster, a mount of it, a mount of a file system in memory, a user of directories, and programs that
// lock files.
const (
	roleVariable = "FUSEFS_TEST_ROLE"
	roleCluster  = "cluster" // DIR SESSION-TTL; takes the commands kill N and start N
	roleMount    = "mount"   // DIR MASTERS
	roleFake     = "fake"    // DIR ENTRIES
	roleLocker   = "locker"  // see locks_test.go
	roleCounter  = "counter" // FILE HOW TIMES; see there
	roleStress   = "stress"  // DIR WORKER OPERATIONS SEED; see stress_test.go
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == fusefs.HelperName {
		if err := fusefs.Helper(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if role := os.Getenv(roleVariable); role != "" {
		if err := play(role, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	syscall.Umask(0)
	code := m.Run()
	if shared.cluster != nil {
		shared.cluster.kill()
		os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}

// ready is what a part prints once it serves, with what the parent needs to know.
const ready = "ready "

// play runs a part until its standard input ends, or SIGTERM.
func play(role string, args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	level := hclog.LevelFromString(os.Getenv("FUSEFS_TEST_LOG"))
	if level == hclog.NoLevel {
		level = hclog.Off
	}
	log := hclog.New(&hclog.LoggerOptions{Name: role, Level: level})
	switch role {
	case roleCluster:
		return playCluster(ctx, args, log)
	case roleStress:
		return playStress(args)
	case roleLocker:
		return playLocker()
	case roleCounter:
		return playCounter(args[0], args[1], args[2])
	}
	over := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	var backend fusefs.Backend
	if role == roleFake {
		backend = newFake(args[1])
	} else {
		c, err := client.Dial(ctx, client.Config{CacheNames: true, Masters: strings.Split(args[1], ","), Caller: &client.Caller{}, Logger: log})
		if err != nil {
			return err
		}
		defer c.Close()
		backend = fusefs.SDK(c)
	}
	m, err := fusefs.New(ctx, args[0], backend, fusefs.Options{Source: "test", AllowOther: true, Logger: log})
	if err != nil {
		return err
	}
	fmt.Println(ready)
	select {
	case <-m.Done():
		return m.Err()
	case <-ctx.Done():
	case <-over:
	}
	return m.Shutdown(context.Background())
}

// playCluster serves a cluster and does to it what its standard input says, until that ends.
func playCluster(ctx context.Context, args []string, log hclog.Logger) error {
	ttl, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	c, err := testcluster.Start(ctx, testcluster.Config{
		Dir: args[0], Real: true, Logger: log, Master: func(c *master.Config) { c.SessionTTL = ttl },
	})
	if err != nil {
		return err
	}
	fmt.Println(ready + strings.Join(c.Masters(), ","))
	commands := make(chan string)
	go func() {
		defer close(commands)
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			commands <- in.Text()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return c.Close()
		case line, ok := <-commands:
			if !ok {
				return c.Close()
			}
			var what string
			var i int
			_, err := fmt.Sscan(line, &what, &i)
			switch {
			case err != nil:
			case what == "kill":
				err = c.KillChunkserver(ctx, i)
			case what == "start":
				err = c.StartChunkserver(ctx, i)
			}
			fmt.Println(what, err)
		}
	}
}

// part is a process playing a role.
type part struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
	said  string // after ready
	once  sync.Once
	err   error
}

func start(role string, args ...string) (*part, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p := &part{cmd: cmd}
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	line, err := p.out.ReadString('\n')
	said, ok := strings.CutPrefix(line, ready)
	if !ok {
		return nil, fmt.Errorf("%s said %q and ended: %w", role, line, errors.Join(err, cmd.Wait()))
	}
	p.said = strings.TrimSpace(said)
	return p, nil
}

// command gives the cluster a command and waits until it is done.
func (p *part) command(what string, i int) error {
	if _, err := fmt.Fprintln(p.stdin, what, i); err != nil {
		return err
	}
	line, err := p.out.ReadString('\n')
	if err == nil && line != what+" <nil>\n" {
		err = errors.New(line)
	}
	return err
}

// stop ends the part and waits for it.
func (p *part) stop() error {
	p.once.Do(func() {
		p.stdin.Close()
		kill := time.AfterFunc(30*time.Second, func() { p.cmd.Process.Kill() })
		p.err = p.cmd.Wait()
		kill.Stop()
	})
	return p.err
}

// kill ends it as kill -9 does.
func (p *part) kill() {
	p.cmd.Process.Kill()
	p.stop()
}

// shared is the cluster that all tests of this binary use.
var shared struct {
	once    sync.Once
	dir     string
	cluster *part
	err     error
}

// masters starts the cluster on first need.
func masters(t testing.TB) string {
	t.Helper()
	needFuse(t)
	shared.once.Do(func() {
		if shared.dir, shared.err = os.MkdirTemp("", "dfs-fusefs-"); shared.err == nil {
			shared.cluster, shared.err = start(roleCluster, shared.dir, "30s")
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.cluster.said
}

// ownCluster starts a cluster for one test, to be broken, and returns its masters. prepare may do something to its directory.
func ownCluster(t testing.TB, sessionTTL string, prepare func(dir string)) (string, *part) {
	t.Helper()
	needFuse(t)
	dir := t.TempDir()
	if prepare != nil {
		prepare(dir)
	}
	c, err := start(roleCluster, dir, sessionTTL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.kill() })
	return c.said, c
}

func needFuse(t testing.TB) {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil || os.Geteuid() != 0 {
		t.Skipf("these tests mount: they need root and /dev/fuse (%v)", err)
	} else {
		f.Close()
	}
}

// mountPoint makes a directory that every user can reach.
func mountPoint(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dfs-mount-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Unmount(dir, unix.MNT_DETACH)
		os.Remove(dir)
	})
	return dir
}

// mountCluster mounts the shared cluster until the test ends and returns where.
func mountCluster(t testing.TB) (string, *part) {
	t.Helper()
	return mountOf(t, masters(t))
}

// mountOf mounts the cluster with these masters until the test ends.
func mountOf(t testing.TB, m string) (string, *part) {
	t.Helper()
	dir := mountPoint(t)
	p, err := start(roleMount, dir, m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.stop() })
	return dir, p
}

// freshDir makes a directory of its own for a test on a mount, open to all.
func freshDir(t testing.TB, mount string) string {
	t.Helper()
	name := strings.NewReplacer("/", "_", " ", "_").Replace(t.Name())
	dir := filepath.Join(mount, name)
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// asUser runs f on a thread with other credentials.
func asUser(t testing.TB, uid, gid int, groups []int, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		defer close(done)
		gids := make([]uint32, len(groups)+1)
		for i, g := range groups {
			gids[i] = uint32(g)
		}
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETGROUPS, uintptr(len(groups)), ptr(gids), 0); e != 0 {
			done <- e
			return
		}
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); e != 0 {
			done <- e
			return
		}
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
			done <- e
			return
		}
		f()
	}()
	if err := <-done; err != nil {
		t.Fatal("changing user:", err)
	}
}
