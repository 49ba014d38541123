package fusefs_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Lock tests. Programs that lock are processes of their own (roleLocker), which do what they are told, a line at a time, and answer with a line. The same table of cases
// runs on a local directory, to show that the cases are right, on one mount, and on two.

// File descriptors that a locker inherits, in the order of lockerWith's files.
const inherited = 3

// playLocker does what standard input says.
func playLocker() error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1) // so that it interrupts, and does not kill
	if err := interrupting(unix.SIGUSR1); err != nil {
		return err
	}
	fmt.Println(ready)
	files := map[string]int{"inherited": inherited}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		// The thread that waits must be known to whoever wants to interrupt it.
		runtime.LockOSThread()
		answer, err := obey(files, strings.Fields(in.Text()))
		if err != nil {
			answer = "error " + errnoName(err)
		}
		fmt.Println("answer " + answer)
	}
	return in.Err()
}

// interrupting makes a signal that is handled end system calls, which Go's handlers do not: they have them restarted.
func interrupting(sig syscall.Signal) error {
	var action struct { // the kernel's struct sigaction
		handler, flags, restorer uintptr
		mask                     uint64
	}
	const restart = 0x10000000 // SA_RESTART
	if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&action)), 8, 0, 0); e != 0 {
		return e
	}
	action.flags &^= restart
	if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0); e != 0 {
		return e
	}
	return nil
}

func errnoName(err error) string {
	var e syscall.Errno
	if errors.As(err, &e) {
		return unix.ErrnoName(e)
	}
	return err.Error()
}

// obey does one command: open NAME PATH ro|rw · close NAME · flock NAME sh|ex|un [nb] · set|wait|ofd NAME r|w|u START LENGTH · get NAME r|w START LENGTH ·
// read NAME · write NAME TEXT · map NAME · mapped.
func obey(files map[string]int, c []string) (string, error) {
	if c[0] == "open" {
		flag := map[string]int{"ro": unix.O_RDONLY, "rw": unix.O_RDWR}[c[3]]
		fd, err := unix.Open(c[2], flag|unix.O_CREAT|unix.O_CLOEXEC, 0o666)
		files[c[1]] = fd
		return "ok", err
	}
	fd := files[c[1]]
	switch c[0] {
	case "close":
		return "ok", unix.Close(fd)
	case "flock":
		how := map[string]int{"sh": unix.LOCK_SH, "ex": unix.LOCK_EX, "un": unix.LOCK_UN}[c[2]]
		if len(c) > 3 {
			how |= unix.LOCK_NB
		} else {
			fmt.Println("thread " + strconv.Itoa(unix.Gettid()))
		}
		return "ok", unix.Flock(fd, how)
	case "set", "wait", "get", "ofd":
		l := unix.Flock_t{Type: map[string]int16{"r": unix.F_RDLCK, "w": unix.F_WRLCK, "u": unix.F_UNLCK}[c[2]]}
		l.Start, _ = strconv.ParseInt(c[3], 10, 64)
		l.Len, _ = strconv.ParseInt(c[4], 10, 64)
		cmd := map[string]int{"set": unix.F_SETLK, "wait": unix.F_SETLKW, "get": unix.F_GETLK, "ofd": unix.F_OFD_SETLK}[c[0]]
		if c[0] == "wait" {
			fmt.Println("thread " + strconv.Itoa(unix.Gettid()))
		}
		if err := unix.FcntlFlock(uintptr(fd), cmd, &l); err != nil || c[0] != "get" {
			return "ok", err
		}
		if l.Type == unix.F_UNLCK {
			return "free", nil
		}
		kind := map[int16]string{unix.F_RDLCK: "r", unix.F_WRLCK: "w"}[l.Type]
		return fmt.Sprintf("%s %d %d %d", kind, l.Start, l.Len, l.Pid), nil
	case "read":
		b := make([]byte, 100)
		n, err := unix.Pread(fd, b, 0)
		return "text " + strings.TrimRight(string(b[:max(n, 0)]), "\x00"), err
	case "write":
		_, err := unix.Pwrite(fd, []byte(c[2]), 0)
		return "ok", err
	case "truncate":
		return "ok", unix.Ftruncate(fd, 1)
	case "mapped": // the first five bytes of the file, through a mapping that is made at the first command of the kind and stays
		if _, ok := mappings[c[1]]; !ok {
			m, err := unix.Mmap(fd, 0, 5, unix.PROT_READ, unix.MAP_SHARED)
			if err != nil {
				return "", err
			}
			mappings[c[1]] = m
		}
		return "text " + string(mappings[c[1]]), nil
	}
	return "", fmt.Errorf("unknown command %q", c)
}

// mappings are those that a locker has made.
var mappings = map[string][]byte{}

// locker is a process that locks.
type locker struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
	once  sync.Once
}

// lockerWith starts a locker that has files open from descriptor 3 on.
func lockerWith(t testing.TB, files ...*os.File) *locker {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l := &locker{t: t, cmd: exec.Command(self), lines: make(chan string, 100)}
	l.cmd.Env = append(os.Environ(), roleVariable+"="+roleLocker)
	l.cmd.Stderr = os.Stderr
	l.cmd.ExtraFiles = files
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if l.in, err = l.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.kill)
	go func() {
		defer close(l.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			l.lines <- s.Text()
		}
	}()
	if line := l.line(); !strings.HasPrefix(line, strings.TrimSpace(ready)) {
		t.Fatalf("the locker said %q", line)
	}
	return l
}

// patience is how long a test waits for what must happen.
const patience = 60 * time.Second

func (l *locker) line() string {
	l.t.Helper()
	select {
	case line := <-l.lines:
		return line
	case <-time.After(patience):
		l.t.Fatal("the locker does not answer")
		return ""
	}
}

// begin gives an order.
func (l *locker) begin(format string, args ...any) {
	l.t.Helper()
	if _, err := fmt.Fprintf(l.in, format+"\n", args...); err != nil {
		l.t.Fatal(err)
	}
}

// answer is how the order went.
func (l *locker) answer() string {
	l.t.Helper()
	for {
		if a, ok := strings.CutPrefix(l.line(), "answer "); ok {
			return a
		}
	}
}

// do gives an order and wants an answer.
func (l *locker) do(want, format string, args ...any) {
	l.t.Helper()
	l.begin(format, args...)
	if got := l.answer(); got != want {
		l.t.Fatalf("%s: %s, want %s", fmt.Sprintf(format, args...), got, want)
	}
}

// block gives an order that will wait for a lock, and returns its thread once that is in the system call.
func (l *locker) block(format string, args ...any) int {
	l.t.Helper()
	l.begin(format, args...)
	said, ok := strings.CutPrefix(l.line(), "thread ")
	if !ok {
		l.t.Fatalf("%s: it said %q", fmt.Sprintf(format, args...), said)
	}
	tid, err := strconv.Atoi(said)
	if err != nil {
		l.t.Fatal(err)
	}
	flock, fcntl := strconv.Itoa(unix.SYS_FLOCK)+" ", strconv.Itoa(unix.SYS_FCNTL)+" "
	for end := time.Now().Add(patience); ; {
		call, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/syscall", l.cmd.Process.Pid, tid))
		if err == nil && (strings.HasPrefix(string(call), flock) || strings.HasPrefix(string(call), fcntl)) {
			return tid
		}
		select {
		case line := <-l.lines:
			l.t.Fatalf("%s: it does not wait: %s", fmt.Sprintf(format, args...), line)
		default:
		}
		if time.Now().After(end) {
			l.t.Fatalf("%s: it does not wait: %q, %v", fmt.Sprintf(format, args...), call, err)
		}
		runtime.Gosched()
	}
}

// soon gives an order again and again until the answer is the one wanted: for what happens after a process has died.
func (l *locker) soon(want, format string, args ...any) {
	l.t.Helper()
	for end := time.Now().Add(patience); ; {
		l.begin(format, args...)
		got := l.answer()
		if got == want {
			return
		}
		if time.Now().After(end) {
			l.t.Fatalf("%s: still %s, want %s", fmt.Sprintf(format, args...), got, want)
		}
	}
}

// pid is its process id.
func (l *locker) pid() int { return l.cmd.Process.Pid }

// kill ends it as kill -9 does.
func (l *locker) kill() {
	l.once.Do(func() {
		l.cmd.Process.Kill()
		l.in.Close()
		l.cmd.Wait()
	})
}

// lockEnv is where a case runs: two ways to one directory.
type lockEnv struct {
	t     testing.TB
	a, b  string // the same file, seen through the one and the other
	where string // "local", "one mount", "two mounts"
}

// two returns lockers that have the file open as "f", through the one way and the other.
func (e *lockEnv) two() (a, b *locker) {
	e.t.Helper()
	return e.opened(e.a), e.opened(e.b)
}

func (e *lockEnv) opened(path string) *locker {
	e.t.Helper()
	l := lockerWith(e.t)
	l.do("ok", "open f %s rw", path)
	return l
}

// processLockCases are the cases; each has a fresh file.
var processLockCases = []struct {
	name string
	run  func(t *testing.T, e *lockEnv)
}{
	{name: "flock excludes", run: func(t *testing.T, e *lockEnv) {
		a, b := e.two()
		a.do("ok", "flock f ex nb")
		b.do("error EAGAIN", "flock f ex nb")
		b.do("error EAGAIN", "flock f sh nb")
		a.do("ok", "flock f ex nb")
		a.do("ok", "flock f un")
		a.do("ok", "flock f un")
		b.do("ok", "flock f sh nb")
		a.do("ok", "flock f sh nb")
		a.do("error EAGAIN", "flock f ex nb")
	}},
	{name: "flock upgrade and downgrade", run: func(t *testing.T, e *lockEnv) {
		a, b := e.two()
		a.do("ok", "flock f sh")
		b.do("ok", "flock f sh")
		b.do("ok", "flock f un")
		a.do("ok", "flock f ex nb")
		b.do("error EAGAIN", "flock f sh nb")
		a.do("ok", "flock f sh")
		b.do("ok", "flock f sh nb")
		// Both want more, and do not wait for one another for ever: who waits gives its own up, as flock(2) says.
		a.block("flock f ex")
		b.begin("flock f ex")
		b.line() // its thread
		first, second := a, b
		select {
		case line := <-a.lines:
			if line != "answer ok" {
				t.Fatal(line)
			}
		case line := <-b.lines:
			first, second = b, a
			if line != "answer ok" {
				t.Fatal(line)
			}
		case <-time.After(patience):
			t.Fatal("both wait")
		}
		first.do("ok", "flock f un")
		if got := second.answer(); got != "ok" {
			t.Fatal(got)
		}
	}},
	{name: "flock waits", run: func(t *testing.T, e *lockEnv) {
		a, b := e.two()
		a.do("ok", "flock f ex")
		b.block("flock f ex")
		a.do("ok", "flock f un")
		if got := b.answer(); got != "ok" {
			t.Fatal(got)
		}
		a.do("error EAGAIN", "flock f sh nb")
	}},
	{name: "flock belongs to the open file", run: func(t *testing.T, e *lockEnv) {
		a, b := e.two()
		a.do("ok", "open g %s ro", e.a)
		a.do("ok", "flock f ex")
		a.do("error EAGAIN", "flock g sh nb")
		a.do("ok", "close g")
		b.do("error EAGAIN", "flock f sh nb")
		a.do("ok", "close f")
		b.soon("ok", "flock f ex nb")
	}},
	{name: "flock is shared by who inherits the descriptor", run: func(t *testing.T, e *lockEnv) {
		f, err := os.OpenFile(e.a, os.O_RDWR|os.O_CREATE, 0o666)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		child, b := lockerWith(t, f), e.opened(e.b)
		child.do("ok", "flock inherited ex nb")
		f.Close()
		b.do("error EAGAIN", "flock f sh nb")
		child.kill()
		b.soon("ok", "flock f ex nb")
	}},
	{name: "flock and fcntl do not see one another", run: func(t *testing.T, e *lockEnv) {
		a, b := e.two()
		a.do("ok", "flock f ex")
		b.do("ok", "set f w 0 0")
		b.do("error EAGAIN", "flock f ex nb")
		a.do("error EAGAIN", "set f r 5 1")
	}},
	{name: "fcntl ranges", run: func(t *testing.T, e *lockEnv) {
		a, b := e.two()
		a.do("ok", "set f w 0 100")
		a.do("ok", "set f u 40 10")
		b.do("ok", "set f w 40 10")
		b.do("error EAGAIN", "set f w 39 1")
		b.do("error EAGAIN", "set f r 50 1")
		a.do("error EAGAIN", "set f r 0 100")
		b.do("ok", "set f r 40 10")
		a.do("ok", "set f r 0 100")
		b.do("ok", "set f r 0 0")
		a.do("error EAGAIN", "set f w 200 1")
		a.do("ok", "set f u 0 0")
		b.do("ok", "set f w 0 0")
		b.do("ok", "set f u 1000 0")
		a.do("ok", "set f w 1000 9223372036854774807")
		b.do("error EAGAIN", "set f r 9223372036854775806 1")
	}},
	{name: "F_GETLK", run: func(t *testing.T, e *lockEnv) {
		a, b := e.two()
		a.do("ok", "set f w 10 10")
		a.do("ok", "set f w 20 10")
		a.do("ok", "set f r 100 0")
		pid := a.pid()
		if e.where == "two mounts" {
			pid = 0 // of another machine, perhaps
		}
		b.do(fmt.Sprintf("w 10 20 %d", pid), "get f r 0 50")
		b.do(fmt.Sprintf("r 100 0 %d", pid), "get f w 300 1")
		b.do("free", "get f r 300 1")
		b.do("free", "get f w 30 70")
		a.do("free", "get f w 0 0")
	}},
	{name: "fcntl waits", run: func(t *testing.T, e *lockEnv) {
		a, b := e.two()
		a.do("ok", "set f w 0 10")
		b.block("wait f w 5 10")
		a.do("ok", "set f u 0 5")
		a.do("ok", "set f r 5 1")
		a.do("ok", "set f u 5 5")
		if got := b.answer(); got != "ok" {
			t.Fatal(got)
		}
		a.do("error EAGAIN", "set f r 14 1")
	}},
	{name: "fcntl locks go with any close of the file", run: func(t *testing.T, e *lockEnv) {
		a, b := e.two()
		a.do("ok", "open g %s ro", e.a)
		a.do("ok", "set f w 0 10")
		b.block("wait f w 0 10")
		a.do("ok", "close g")
		if got := b.answer(); got != "ok" {
			t.Fatal(got)
		}
		a.do("error EAGAIN", "set f w 0 1")
	}},
	{name: "fcntl locks are not inherited", run: func(t *testing.T, e *lockEnv) {
		a := e.opened(e.a)
		f, err := os.OpenFile(e.b, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Len: 10}); err != nil {
			t.Fatal(err)
		}
		child := lockerWith(t, f)
		child.do("error EAGAIN", "set inherited r 0 1")
		child.do("ok", "close inherited") // which is not ours
		a.do("error EAGAIN", "set f w 0 1")
		f.Close()
		a.soon("ok", "set f w 0 1")
	}},
	{name: "fcntl deadlock", run: func(t *testing.T, e *lockEnv) {
		a, b := e.two()
		a.do("ok", "set f w 0 1")
		b.do("ok", "set f w 1 1")
		a.block("wait f w 1 1")
		b.begin("wait f w 0 1")
		// Whichever began to wait last is told. It gives way, and the other has both.
		loser, winner := b, a
		select {
		case line := <-a.lines:
			loser, winner = a, b
			if line != "answer error EDEADLK" {
				t.Fatal(line)
			}
		case line := <-b.lines: // first its thread
			_ = line
			select {
			case line := <-a.lines:
				loser, winner = a, b
				if line != "answer error EDEADLK" {
					t.Fatal(line)
				}
			case line := <-b.lines:
				if line != "answer error EDEADLK" {
					t.Fatal(line)
				}
			case <-time.After(patience):
				t.Fatal("nobody is told of the deadlock")
			}
		case <-time.After(patience):
			t.Fatal("nobody is told of the deadlock")
		}
		loser.do("ok", "set f u 0 0")
		if got := winner.answer(); got != "ok" {
			t.Fatal(got)
		}
	}},
	{name: "fcntl needs a descriptor that may", run: func(t *testing.T, e *lockEnv) {
		a, _ := e.two()
		a.do("ok", "open g %s ro", e.a)
		a.do("error EBADF", "set g w 0 1")
		a.do("ok", "set g r 0 1")
		a.do("error EINVAL", "set f w -1 1")
	}},
	{name: "open file description locks", run: func(t *testing.T, e *lockEnv) {
		a, b := e.two()
		a.do("ok", "open g %s rw", e.a)
		a.do("ok", "ofd f w 0 10")
		a.do("error EAGAIN", "ofd g w 5 10")
		b.do("error EAGAIN", "set f w 5 1")
		a.do("ok", "close g") // ends process locks, not these
		b.do("error EAGAIN", "set f w 5 1")
		a.do("ok", "close f")
		b.soon("ok", "set f w 5 1")
	}},
	{name: "a process that is killed", run: func(t *testing.T, e *lockEnv) {
		a, b := e.two()
		c := e.opened(e.b)
		a.do("ok", "flock f ex")
		a.do("ok", "set f w 0 0")
		b.block("flock f ex")
		c.block("wait f w 7 1")
		a.kill()
		if got := b.answer(); got != "ok" {
			t.Fatal(got)
		}
		if got := c.answer(); got != "ok" {
			t.Fatal(got)
		}
	}},
	{name: "locks are free when their process has been waited for", run: func(t *testing.T, e *lockEnv) {
		f, err := os.OpenFile(e.a, os.O_RDWR|os.O_CREATE, 0o666)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for range 5 {
			a := e.opened(e.a)
			a.do("ok", "flock f ex nb")
			a.do("ok", "set f w 0 0")
			a.kill()
			if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
				t.Fatal(err)
			}
			if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_UNLCK})); err != nil {
				t.Fatal(err)
			}
		}
	}},
	{name: "a killed child's range goes although its parent has the file open", run: func(t *testing.T, e *lockEnv) {
		f, err := os.OpenFile(e.a, os.O_RDWR|os.O_CREATE, 0o666)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		child, b := lockerWith(t, f), e.opened(e.b)
		child.do("ok", "set inherited w 0 10")
		b.do("error EAGAIN", "set f r 5 1")
		child.kill()
		b.soon("ok", "set f r 5 1")
	}},
	{name: "one that is killed while it waits", run: func(t *testing.T, e *lockEnv) {
		a, b := e.two()
		c := e.opened(e.b)
		a.do("ok", "flock f ex")
		a.do("ok", "set f w 0 0")
		b.block("flock f ex")
		c.block("wait f w 7 1")
		b.kill()
		c.kill()
		a.do("ok", "flock f un")
		a.do("ok", "set f u 0 0")
		d := e.opened(e.b)
		d.soon("ok", "flock f ex nb")
		d.soon("ok", "set f w 0 0")
	}},
	{name: "a signal ends the waiting", run: func(t *testing.T, e *lockEnv) {
		a, b := e.two()
		for _, wait := range []string{"flock f ex", "wait f w 3 1"} {
			a.do("ok", "flock f ex")
			a.do("ok", "set f w 0 0")
			tid := b.block("%s", wait)
			if err := unix.Tgkill(b.pid(), tid, unix.SIGUSR1); err != nil {
				t.Fatal(err)
			}
			if got := b.answer(); got != "error EINTR" {
				t.Fatalf("%s: %s", wait, got)
			}
			a.do("ok", "flock f un")
			a.do("ok", "set f u 0 0")
			// It has left nothing behind.
			a.do("ok", "flock f ex")
			a.do("ok", "wait f w 0 0")
			a.do("ok", "flock f un")
			a.do("ok", "set f u 0 0")
		}
	}},
	{name: "who has the lock sees what was written under it", run: func(t *testing.T, e *lockEnv) {
		a, b := e.two()
		for i := range 20 {
			from, to := a, b
			if i%2 == 1 {
				from, to = b, a
			}
			text := fmt.Sprintf("%05d", i)
			lock, unlock := "flock f ex", "flock f un"
			if i%4 > 1 {
				lock, unlock = "wait f w 0 0", "set f u 0 0"
			}
			from.do("ok", "%s", lock)
			to.block("%s", lock)
			from.do("ok", "write f %s", text)
			from.do("ok", "%s", unlock)
			if got := to.answer(); got != "ok" {
				t.Fatal(got)
			}
			to.do("text "+text, "read f")
			to.do("text "+text, "mapped f")
			to.do("ok", "%s", unlock)
		}
	}},
}

func TestLocks(t *testing.T) {
	t.Run("local", func(t *testing.T) {
		dir := t.TempDir()
		runLockCases(t, "local", dir, dir)
	})
	a, _ := mountCluster(t)
	b, _ := mountCluster(t)
	t.Run("one mount", func(t *testing.T) {
		dir := freshDir(t, a)
		runLockCases(t, "one mount", dir, dir)
	})
	t.Run("two mounts", func(t *testing.T) {
		dir := freshDir(t, a)
		runLockCases(t, "two mounts", dir, filepath.Join(b, filepath.Base(dir)))
	})
}

func runLockCases(t *testing.T, where, a, b string) {
	for i, c := range processLockCases {
		t.Run(c.name, func(t *testing.T) {
			name := fmt.Sprintf("file-%d", i)
			c.run(t, &lockEnv{t, filepath.Join(a, name), filepath.Join(b, name), where})
		})
	}
}

// playCounter adds 1 to the number in a file, again and again, under a lock.
func playCounter(path, how, times string) error {
	n, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	fmt.Println(ready)
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	lock := func(on bool) error {
		if how == "flock" {
			op := unix.LOCK_UN
			if on {
				op = unix.LOCK_EX
			}
			return unix.Flock(fd, op)
		}
		l := &unix.Flock_t{Type: unix.F_UNLCK}
		if on {
			l.Type = unix.F_WRLCK
		}
		return unix.FcntlFlock(uintptr(fd), unix.F_SETLKW, l)
	}
	// Go's runtime sends signals to threads, also while they wait.
	patient := func(on bool) error {
		for {
			if err := lock(on); !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	}
	for range n {
		if err := patient(true); err != nil {
			return err
		}
		b := make([]byte, 8)
		if _, err := unix.Pread(fd, b, 0); err != nil {
			return err
		}
		binary.BigEndian.PutUint64(b, binary.BigEndian.Uint64(b)+1)
		if _, err := unix.Pwrite(fd, b, 0); err != nil {
			return err
		}
		if err := patient(false); err != nil {
			return err
		}
	}
	return unix.Close(fd)
}

// TestCounterUnderLocks has many processes on two mounts count in one file: no step is lost. Some files are small, others have chunks.
func TestCounterUnderLocks(t *testing.T) {
	a, _ := mountCluster(t)
	b, _ := mountCluster(t)
	const processes, times = 6, 25
	dir := freshDir(t, a)
	for _, how := range []string{"flock", "fcntl"} {
		for _, size := range []int{8, 100_000} {
			t.Run(fmt.Sprintf("%s, %d bytes", how, size), func(t *testing.T) {
				name := fmt.Sprintf("%s-%d", how, size)
				if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o644); err != nil {
					t.Fatal(err)
				}
				var parts []*part
				for i := range processes {
					on := []string{a, b}[i%2]
					p, err := start(roleCounter, filepath.Join(on, filepath.Base(dir), name), how, strconv.Itoa(times))
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(p.kill)
					parts = append(parts, p)
				}
				for _, p := range parts {
					if err := p.cmd.Wait(); err != nil {
						t.Error(err)
					}
				}
				got, err := os.ReadFile(filepath.Join(b, filepath.Base(dir), name))
				if err != nil || len(got) != size || binary.BigEndian.Uint64(got) != processes*times {
					t.Fatalf("%d bytes, counted to %x (%v), want %d", len(got), got[:min(8, len(got))], err, processes*times)
				}
			})
		}
	}
}

// ttl is the sessions' lifetime in tests of their end.
const ttl = 3 * time.Second

// TestLocksOfAMountThatIsGone kills a mount, unmounts one, and stops one for so long that its session ends. Then its locks are free, and who had them hears it.
func TestLocksOfAMountThatIsGone(t *testing.T) {
	needFuse(t)
	cluster, err := start(roleCluster, t.TempDir(), ttl.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cluster.stop() })
	mount := func(t *testing.T) (string, *part) {
		t.Helper()
		dir := mountPoint(t)
		p, err := start(roleMount, dir, cluster.said)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.stop() })
		return dir, p
	}
	b, _ := mount(t)
	two := func(t *testing.T) (aPart *part, la, lb *locker, path string) {
		t.Helper()
		a, aPart := mount(t)
		name := strings.NewReplacer("/", "_", " ", "_").Replace(t.Name())
		e := &lockEnv{t: t, a: filepath.Join(a, name), b: filepath.Join(b, name)}
		if err := os.WriteFile(e.b, make([]byte, 100_000), 0o644); err != nil { // too long for its inode
			t.Fatal(err)
		}
		la, lb = e.two()
		la.do("ok", "write f first")
		la.do("ok", "flock f ex")
		la.do("ok", "set f w 0 10")
		lb.do("error EAGAIN", "flock f sh nb")
		lb.do("error EAGAIN", "set f r 0 1")
		return aPart, la, lb, e.a
	}
	t.Run("killed", func(t *testing.T) {
		aPart, la, lb, _ := two(t)
		lb.do("text first", "mapped f")
		la.do("ok", "write f later")
		began := time.Now()
		lb.block("flock f ex")
		aPart.kill()
		if got := lb.answer(); got != "ok" {
			t.Fatal(got)
		}
		lb.do("text later", "mapped f")
		lb.do("ok", "wait f w 0 0")
		t.Logf("free after %v; sessions live %v", time.Since(began), ttl)
	})
	t.Run("unmounted", func(t *testing.T) {
		aPart, la, lb, _ := two(t)
		la.kill()
		if err := aPart.stop(); err != nil {
			t.Fatal(err)
		}
		lb.do("ok", "flock f ex nb")
		lb.do("ok", "set f w 0 0")
	})
	t.Run("stopped", func(t *testing.T) {
		aPart, la, lb, path := two(t)
		other := lockerWith(t)
		other.do("ok", "open f %s rw", path)
		if err := aPart.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		lb.do("ok", "flock f ex")
		lb.do("ok", "wait f w 0 10")
		lb.do("ok", "write f other")
		la.begin("write f stale")
		if err := aPart.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if got := la.answer(); got != "error EIO" {
			t.Fatalf("writing under locks that are lost: %s", got)
		}
		la.do("error EIO", "write f again")
		la.do("error EIO", "truncate f")
		la.do("error EIO", "flock f ex nb")
		la.do("error EIO", "flock f un")
		la.do("error EIO", "set f r 0 1")
		la.do("error EIO", "set f u 0 1")
		other.do("error EIO", "write f third") // open at the time
		la.do("text other", "read f")
		lb.do("text other", "read f")
		la.do("ok", "open g %s rw", path)
		la.do("error EAGAIN", "flock g ex nb")
		lb.do("ok", "flock f un")
		la.do("ok", "flock g ex nb")
		la.do("ok", "write g fresh")
		lb.do("text fresh", "read f")
	})
}
