package fusefs_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pathCall is a system call that takes a path. What it does at the end of the path does not matter to walkCases.
type pathCall struct {
	name string
	call func(path string) error
	// exists says that the call wants something there.
	exists bool
	// writes says that it would change the file system.
	writes bool
}

// pathCalls are the system calls with a path; other is an existing file that the two-path calls use as their other one.
func pathCalls(other string) []pathCall {
	open := func(flags int) func(string) error {
		return func(path string) error {
			fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o644)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}
	}
	buf := make([]byte, 100)
	return []pathCall{
		{"open O_RDONLY", open(unix.O_RDONLY), true, false},
		{"open O_WRONLY", open(unix.O_WRONLY), true, true},
		{"open O_CREAT", open(unix.O_CREAT | unix.O_WRONLY), false, true},
		{"open O_DIRECTORY", open(unix.O_RDONLY | unix.O_DIRECTORY), true, false},
		{"open O_PATH", open(unix.O_PATH), true, false},
		{"stat", func(path string) error { return unix.Stat(path, &unix.Stat_t{}) }, true, false},
		{"lstat", func(path string) error { return unix.Lstat(path, &unix.Stat_t{}) }, true, false},
		{"statfs", func(path string) error { return unix.Statfs(path, &unix.Statfs_t{}) }, true, false},
		{"access", func(path string) error { return unix.Access(path, unix.F_OK) }, true, false},
		{"chmod", func(path string) error { return unix.Chmod(path, 0o644) }, true, true},
		{"chown", func(path string) error { return unix.Chown(path, -1, -1) }, true, true},
		{"lchown", func(path string) error { return unix.Lchown(path, -1, -1) }, true, true},
		{"utimensat", func(path string) error { return unix.UtimesNanoAt(unix.AT_FDCWD, path, nil, 0) }, true, true},
		{"truncate", func(path string) error { return unix.Truncate(path, 0) }, true, true},
		{"mkdir", func(path string) error { return unix.Mkdir(path, 0o755) }, false, true},
		{"rmdir", unix.Rmdir, true, true},
		{"unlink", unix.Unlink, true, true},
		{"mknod", func(path string) error { return unix.Mknod(path, unix.S_IFREG|0o644, 0) }, false, true},
		{"mkfifo", func(path string) error { return unix.Mkfifo(path, 0o644) }, false, true},
		{"symlink", func(path string) error { return unix.Symlink("x", path) }, false, true},
		{"readlink", func(path string) error { _, err := unix.Readlink(path, buf); return err }, true, false},
		{"link from", func(path string) error { return unix.Link(path, other+"-new") }, true, true},
		{"link to", func(path string) error { return unix.Link(other, path) }, false, true},
		{"rename from", func(path string) error { return unix.Rename(path, other+"-new") }, true, true},
		{"rename to", func(path string) error { return unix.Rename(other, path) }, false, true},
		{"getxattr", func(path string) error { _, err := unix.Getxattr(path, "user.x", buf); return err }, true, false},
		{"setxattr", func(path string) error { return unix.Setxattr(path, "user.x", nil, 0) }, true, true},
		{"listxattr", func(path string) error { _, err := unix.Listxattr(path, buf); return err }, true, false},
		{"removexattr", func(path string) error { return unix.Removexattr(path, "user.x") }, true, true},
		{"execve", func(path string) error {
			_, err := os.StartProcess(path, []string{path}, &os.ProcAttr{})
			return err
		}, true, false},
	}
}

// walkCases are what every call with a path must say about the path itself.
func walkCases() []posixCase {
	var cases []posixCase
	for i, c := range pathCalls("") {
		cases = append(cases, posixCase{"path/" + c.name, func(p *posix) {
			p.file("file", "")
			p.must(unix.Symlink("loop", p.p("loop")))
			p.must(unix.Symlink("loop2/x", p.p("loop2")))
			p.mkdir("locked", 0o700)
			p.mkdir("locked/d", 0o777)
			call := pathCalls(p.file("other", ""))[i].call
			long := strings.Repeat("n", 256)
			for _, w := range []struct {
				path string
				want syscall.Errno
			}{
				{"none/x", unix.ENOENT},
				{"file/x", unix.ENOTDIR},
				{"loop/x", unix.ELOOP},
				{"loop2/x", unix.ELOOP},
				{long + "/x", unix.ENAMETOOLONG},
				{long, unix.ENAMETOOLONG},
				{strings.Repeat("d/", 2100) + "x", unix.ENAMETOOLONG},
			} {
				if err := call(p.p(w.path)); !errors.Is(err, w.want) {
					p.Errorf("%.20s: %v, want %v", w.path, err, w.want)
				}
			}
			p.errno(call(""), unix.ENOENT)
			if c.exists {
				p.errno(call(p.p("missing")), unix.ENOENT)
			}
			p.as(alice, team, nil, func() {
				if err := call(p.p("locked/d/x")); !errors.Is(err, unix.EACCES) {
					p.Errorf("without search permission: %v, want EACCES", err)
				}
			})
		}})
	}
	return cases
}

// bind does f with a bind mount of from on the case's directory to, with flags.
func (p *posix) bind(from, to string, flags uintptr, f func()) {
	p.Helper()
	p.must(unix.Mount(p.p(from), p.p(to), "", unix.MS_BIND, ""))
	defer unix.Unmount(p.p(to), unix.MNT_DETACH)
	if flags != 0 {
		p.must(unix.Mount("", p.p(to), "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""))
	}
	f()
}

func errnoCases() []posixCase {
	return []posixCase{
		{"EROFS/every call that changes something", func(p *posix) {
			p.mkdir("d", 0o777)
			p.mkdir("ro", 0o755)
			p.file("d/f", "x")
			p.mkdir("d/sub", 0o755)
			p.bind("d", "ro", unix.MS_RDONLY, func() {
				for _, c := range pathCalls(p.p("ro/f")) {
					target := "ro/f"
					switch c.name {
					case "rmdir":
						target = "ro/sub"
					case "open O_DIRECTORY", "statfs", "readlink", "execve", "getxattr":
						continue
					}
					if !c.exists {
						target = "ro/new"
					}
					err := c.call(p.p(target))
					if c.writes && !errors.Is(err, unix.EROFS) {
						p.Errorf("%s: %v, want EROFS", c.name, err)
					}
					if !c.writes && err != nil {
						p.Errorf("%s: %v", c.name, err)
					}
				}
			})
			p.content("d/f", "x")
		}},
		{"EXDEV/link and rename between mounts", func(p *posix) {
			p.mkdir("d", 0o777)
			p.mkdir("m", 0o777)
			p.file("f", "x")
			p.bind("d", "m", 0, func() {
				p.errno(unix.Rename(p.p("f"), p.p("m/f")), unix.EXDEV)
				p.errno(unix.Link(p.p("f"), p.p("m/f")), unix.EXDEV)
			})
		}},
		{"EBUSY/a mount point", func(p *posix) {
			p.mkdir("d", 0o777)
			p.mkdir("m", 0o777)
			p.bind("d", "m", 0, func() {
				p.errno(unix.Rmdir(p.p("m")), unix.EBUSY)
				p.errno(unix.Rename(p.p("m"), p.p("x")), unix.EBUSY)
				p.errno(unix.Rename(p.p("d"), p.p("m")), unix.EBUSY)
			})
		}},
		{"ETXTBSY/a program that runs, and one being written", func(p *posix) {
			b, err := os.ReadFile("/bin/sleep")
			p.must(err)
			p.must(os.WriteFile(p.p("prog"), b, 0o755))
			cmd := exec.Command(p.p("prog"), "100")
			p.must(cmd.Start())
			_, err = unix.Open(p.p("prog"), unix.O_WRONLY, 0)
			p.errno(err, unix.ETXTBSY)
			p.errno(unix.Truncate(p.p("prog"), 0), unix.ETXTBSY)
			p.must(cmd.Process.Kill())
			cmd.Wait()
			fd := p.open("prog", unix.O_WRONLY, 0)
			p.errno(exec.Command(p.p("prog"), "0").Start(), unix.ETXTBSY)
			p.must(unix.Close(fd))
			p.must(exec.Command(p.p("prog"), "0").Run())
		}},
		{"ENXIO, ENOEXEC/a fifo without a reader, a text that is no program", func(p *posix) {
			p.must(unix.Mkfifo(p.p("q"), 0o600))
			_, err := unix.Open(p.p("q"), unix.O_WRONLY|unix.O_NONBLOCK, 0)
			p.errno(err, unix.ENXIO)
			p.must(os.WriteFile(p.p("text"), []byte("no program\n"), 0o755))
			p.errno(exec.Command(p.p("text")).Start(), unix.ENOEXEC)
		}},
		{"ESPIPE, EINVAL, EBADF/reading and writing", func(p *posix) {
			p.file("f", "abc")
			fd := p.open("f", unix.O_RDWR, 0)
			_, err := unix.Pread(fd, make([]byte, 1), -1)
			p.errno(err, unix.EINVAL)
			_, err = unix.Pwrite(fd, []byte("x"), -1)
			p.errno(err, unix.EINVAL)
			_, err = unix.Seek(fd, 0, 99)
			p.errno(err, unix.EINVAL)
			p.errno(unix.Ftruncate(fd, -1), unix.EINVAL)
			path := p.open("f", unix.O_PATH, 0)
			_, err = unix.Read(path, make([]byte, 1))
			p.errno(err, unix.EBADF)
			p.errno(unix.Fchmod(path, 0o600), unix.EBADF)
			p.must(unix.Mkfifo(p.p("q"), 0o600))
			q := p.open("q", unix.O_RDWR, 0)
			_, err = unix.Seek(q, 0, 0)
			p.errno(err, unix.ESPIPE)
			_, err = unix.Pread(q, make([]byte, 1), 0)
			p.errno(err, unix.ESPIPE)
		}},
		{"EFBIG/over the process's limit", func(p *posix) {
			cmd := exec.Command("sh", "-c", `trap "" XFSZ; ulimit -f 8; head -c 100000 /dev/zero > f`)
			cmd.Dir = p.dir
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "File too large") {
				p.Fatalf("%v: %s", err, out)
			}
			p.equal(p.lstat("f").Size, int64(4096))
		}},
		{"EACCES/mmap needs what the descriptor has", func(p *posix) {
			p.file("f", "abc")
			r, w := p.open("f", unix.O_RDONLY, 0), p.open("f", unix.O_WRONLY, 0)
			_, err := unix.Mmap(r, 0, 3, unix.PROT_WRITE, unix.MAP_SHARED)
			p.errno(err, unix.EACCES)
			_, err = unix.Mmap(w, 0, 3, unix.PROT_READ, unix.MAP_SHARED)
			p.errno(err, unix.EACCES)
			d := p.open(".", unix.O_RDONLY, 0)
			_, err = unix.Mmap(d, 0, 3, unix.PROT_READ, unix.MAP_SHARED)
			p.errno(err, unix.ENODEV)
		}},
		{"rename/every pair of kinds", func(p *posix) {
			make := map[string]func(name string){
				"file":  func(name string) { p.file(name, "") },
				"dir":   func(name string) { p.mkdir(name, 0o755) },
				"full":  func(name string) { p.mkdir(name, 0o755); p.file(name+"/x", "") },
				"link":  func(name string) { p.must(unix.Symlink("x", p.p(name))) },
				"fifo":  func(name string) { p.must(unix.Mkfifo(p.p(name), 0o600)) },
				"empty": nil,
			}
			isDir := func(kind string) bool { return kind == "dir" || kind == "full" }
			for from, makeFrom := range make {
				for to, makeTo := range make {
					if makeFrom == nil {
						continue
					}
					a, b := from+"-to-"+to, to+"-from-"+from
					makeFrom(a)
					if makeTo != nil {
						makeTo(b)
					}
					err := unix.Rename(p.p(a), p.p(b))
					switch {
					case to == "empty" || isDir(from) && to == "dir" || !isDir(from) && !isDir(to):
						p.must(err)
						p.gone(a)
					case !isDir(from):
						p.errno(err, unix.EISDIR)
					case to == "full":
						if !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
							p.Fatalf("%s: %v", a, err)
						}
					default:
						p.errno(err, unix.ENOTDIR)
					}
				}
			}
		}},
		{"rename/a directory below itself, and the ends . and ..", func(p *posix) {
			p.mkdir("d", 0o755)
			p.mkdir("d/e", 0o755)
			p.errno(unix.Rename(p.p("d"), p.p("d/x")), unix.EINVAL)
			p.errno(unix.Rename(p.p("d"), p.p("d/e/x")), unix.EINVAL)
			if err := unix.Rename(p.p("d/e"), p.p("d")); !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
				p.Fatal(err)
			}
			p.errno(unix.Rename(p.dir+"/d/.", p.p("x")), unix.EBUSY)
			p.errno(unix.Rename(p.dir+"/d/..", p.p("x")), unix.EBUSY)
			p.errno(unix.Rename(p.p("d"), p.dir+"/d/e/.."), unix.EBUSY)
		}},
		{"rename/of somebody else's directory needs write permission on it", func(p *posix) {
			p.mkdir("a", 0o777)
			p.mkdir("b", 0o777)
			p.mkdir("a/d", 0o755)
			p.as(alice, team, nil, func() { p.errno(unix.Rename(p.p("a/d"), p.p("b/d")), unix.EACCES) })
			p.must(unix.Chmod(p.p("a/d"), 0o777))
			p.as(alice, team, nil, func() { p.must(unix.Rename(p.p("a/d"), p.p("b/d"))) })
		}},
		{"sticky/who may remove and rename what", func(p *posix) {
			for i, c := range []struct {
				dirOwner, fileOwner, who int
				may                      bool
			}{
				{0, alice, alice, true},
				{0, alice, bob, false},
				{bob, alice, bob, true},
				{bob, 0, alice, false},
				{alice, bob, 0, true},
			} {
				for _, kind := range []string{"file", "dir"} {
					name := fmt.Sprintf("t%d%s", i, kind)
					p.mkdir(name, 0o777)
					p.must(unix.Chown(p.p(name), c.dirOwner, team))
					p.must(unix.Chmod(p.p(name), 0o1777))
					for _, n := range []string{"removed", "renamed", "replaced"} {
						if kind == "dir" {
							p.mkdir(name+"/"+n, 0o777)
						} else {
							p.file(name+"/"+n, "")
						}
						p.must(unix.Chown(p.p(name+"/"+n), c.fileOwner, team))
					}
					p.as(c.who, team, nil, func() {
						if kind == "dir" {
							p.must(unix.Mkdir(p.p(name+"/own"), 0o755))
						} else {
							p.must(os.WriteFile(p.p(name+"/own"), nil, 0o644))
						}
						remove := unix.Unlink
						if kind == "dir" {
							remove = unix.Rmdir
						}
						errs := []error{
							remove(p.p(name + "/removed")),
							unix.Rename(p.p(name+"/renamed"), p.p(name+"/elsewhere")),
							unix.Rename(p.p(name+"/own"), p.p(name+"/replaced")),
						}
						for j, err := range errs {
							if c.may && err != nil || !c.may && !errors.Is(err, unix.EPERM) {
								p.Errorf("%+v, %s, call %d: %v", c, kind, j, err)
							}
						}
					})
				}
			}
		}},
		{"link/of a directory, and over what is there", func(p *posix) {
			p.mkdir("d", 0o755)
			p.file("f", "")
			p.errno(unix.Link(p.p("d"), p.p("x")), unix.EPERM)
			p.errno(unix.Link(p.p("f"), p.p("d")), unix.EEXIST)
			p.errno(unix.Symlink("x", p.p("d")), unix.EEXIST)
			p.errno(unix.Mknod(p.p("d"), unix.S_IFREG|0o644, 0), unix.EEXIST)
			p.errno(unix.Mkfifo(p.p("f"), 0o644), unix.EEXIST)
		}},
		{"unlink, rmdir/the wrong kind", func(p *posix) {
			p.mkdir("d", 0o755)
			p.file("f", "")
			p.must(unix.Symlink("d", p.p("s")))
			p.errno(unix.Unlink(p.p("d")), unix.EISDIR)
			p.errno(unix.Rmdir(p.p("f")), unix.ENOTDIR)
			p.errno(unix.Rmdir(p.p("s")), unix.ENOTDIR)
			p.file("d/x", "")
			p.errno(unix.Rmdir(p.p("d")), unix.ENOTEMPTY)
		}},
		{"access/by the real user, and root", func(p *posix) {
			p.file("f", "")
			p.must(unix.Chown(p.p("f"), alice, team))
			p.must(unix.Chmod(p.p("f"), 0o640))
			p.must(unix.Access(p.p("f"), unix.R_OK|unix.W_OK))
			p.errno(unix.Access(p.p("f"), unix.X_OK), unix.EACCES)
			p.as(alice, nobody, nil, func() {
				p.must(unix.Access(p.p("f"), unix.R_OK|unix.W_OK))
				p.errno(unix.Access(p.p("f"), unix.X_OK), unix.EACCES)
			})
			p.as(bob, team, nil, func() {
				p.must(unix.Access(p.p("f"), unix.R_OK))
				p.errno(unix.Access(p.p("f"), unix.W_OK), unix.EACCES)
			})
			p.as(bob, nobody, nil, func() { p.errno(unix.Access(p.p("f"), unix.R_OK), unix.EACCES) })
		}},
		{"chmod, chown/of somebody else's", func(p *posix) {
			p.file("f", "")
			p.mkdir("d", 0o777)
			for _, name := range []string{"f", "d"} {
				p.as(alice, team, nil, func() {
					p.errno(unix.Chmod(p.p(name), 0o777), unix.EPERM)
					p.errno(unix.Chown(p.p(name), alice, -1), unix.EPERM)
					p.errno(unix.Chown(p.p(name), -1, team), unix.EPERM)
				})
			}
		}},
		{"open/as a user: what the mode refuses", func(p *posix) {
			p.file("f", "x")
			for perm, flags := range map[uint32][]int{0o222: {unix.O_RDONLY, unix.O_RDWR}, 0o444: {unix.O_WRONLY, unix.O_RDWR, unix.O_RDONLY | unix.O_TRUNC}} {
				p.must(unix.Chmod(p.p("f"), perm))
				for _, flag := range flags {
					p.as(alice, team, nil, func() {
						_, err := unix.Open(p.p("f"), flag, 0)
						p.errno(err, unix.EACCES)
					})
				}
			}
			p.must(unix.Chmod(p.p("f"), 0o644))
			p.content("f", "x")
			p.mkdir("d", 0o755)
			p.as(alice, team, nil, func() {
				_, err := unix.Open(p.p("d/new"), unix.O_CREAT|unix.O_WRONLY, 0o644)
				p.errno(err, unix.EACCES)
				_, err = unix.Open(p.p("f"), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o644)
				p.errno(err, unix.EEXIST)
				_, err = unix.Open(p.p("f"), unix.O_RDONLY|unix.O_NOATIME, 0)
				p.errno(err, unix.EPERM)
			})
		}},
		{"flock/EWOULDBLOCK and EBADF", func(p *posix) {
			p.file("f", "")
			a, b := p.open("f", unix.O_RDWR, 0), p.open("f", unix.O_RDWR, 0)
			p.must(unix.Flock(a, unix.LOCK_EX))
			p.errno(unix.Flock(b, unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
			p.errno(unix.Flock(p.open("f", unix.O_PATH, 0), unix.LOCK_SH), unix.EBADF)
			p.must(unix.Flock(a, unix.LOCK_UN))
			p.must(unix.Flock(b, unix.LOCK_SH|unix.LOCK_NB))
		}},
		{"times/ctime of every change of an inode", func(p *posix) {
			p.file("f", "abc")
			fd := p.open("f", unix.O_RDWR, 0)
			for what, change := range map[string]func() error{
				"chmod":       func() error { return unix.Chmod(p.p("f"), 0o600) },
				"chown":       func() error { return unix.Chown(p.p("f"), alice, team) },
				"link":        func() error { return unix.Link(p.p("f"), p.p("g")) },
				"rename":      func() error { return unix.Rename(p.p("f"), p.p("f2")) },
				"setxattr":    func() error { return unix.Setxattr(p.p("f"), "user.a", nil, 0) },
				"write":       func() error { _, err := unix.Pwrite(fd, []byte("x"), 0); return err },
				"ftruncate":   func() error { return unix.Ftruncate(fd, 10) },
				"fallocate":   func() error { return unix.Fallocate(fd, 0, 0, 1000) },
				"utimensat":   func() error { return p.utimens("f", unix.Timespec{Sec: 1}, unix.Timespec{Sec: 1}, 0) },
				"utimes omit": func() error { return p.utimens("f", timeNow, timeOmit, 0) },
			} {
				var old, now unix.Stat_t
				p.must(unix.Fstat(fd, &old))
				tick()
				if err := change(); err != nil {
					p.Fatalf("%s: %v", what, err)
				}
				p.must(unix.Fstat(fd, &now))
				if nsOf(now.Ctim) <= nsOf(old.Ctim) {
					p.Errorf("%s: ctime unchanged", what)
				}
				if what == "rename" {
					p.must(unix.Rename(p.p("f2"), p.p("f")))
				}
			}
		}},
		{"times/a failed call changes nothing", func(p *posix) {
			p.mkdir("d", 0o755)
			p.file("d/f", "x")
			dir, file := p.lstat("d"), p.lstat("d/f")
			tick()
			p.as(alice, team, nil, func() {
				for _, err := range []error{
					unix.Unlink(p.p("d/f")), unix.Mkdir(p.p("d/n"), 0o755), unix.Rename(p.p("d/f"), p.p("d/g")), unix.Truncate(p.p("d/f"), 0),
					unix.Link(p.p("d/f"), p.p("d/g")), unix.Symlink("x", p.p("d/s")),
				} {
					if err == nil {
						p.Error("a call succeeded without permission")
					}
				}
			})
			_, err := unix.Open(p.p("d/f"), unix.O_CREAT|unix.O_EXCL, 0o644)
			p.errno(err, unix.EEXIST)
			if now := p.lstat("d"); now.Mtim != dir.Mtim || now.Ctim != dir.Ctim {
				p.Error("the directory's times have changed")
			}
			if now := p.lstat("d/f"); now.Mtim != file.Mtim || now.Ctim != file.Ctim {
				p.Error("the file's times have changed")
			}
		}},
		{"times/are the clock's", func(p *posix) {
			before := time.Now().Add(-time.Second)
			p.file("f", "x")
			st := p.lstat("f")
			for _, ts := range []unix.Timespec{st.Atim, st.Mtim, st.Ctim} {
				if at := time.Unix(0, nsOf(ts)); at.Before(before) || at.After(time.Now().Add(time.Second)) {
					p.Errorf("%v is not now", at)
				}
			}
		}},
		{"O_DIRECTORY, O_NOFOLLOW, O_EXCL/combinations", func(p *posix) {
			p.mkdir("d", 0o755)
			p.file("f", "")
			p.must(unix.Symlink("d", p.p("sd")))
			for _, c := range []struct {
				name  string
				flags int
				want  error
			}{
				{"sd", unix.O_RDONLY | unix.O_DIRECTORY, nil},
				{"sd", unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW, unix.ENOTDIR},
				{"sd", unix.O_RDONLY | unix.O_NOFOLLOW, unix.ELOOP},
				{"f", unix.O_RDONLY | unix.O_DIRECTORY, unix.ENOTDIR},
				{"d", unix.O_RDONLY | unix.O_CREAT, unix.EISDIR},
				{"d", unix.O_RDONLY | unix.O_TRUNC, unix.EISDIR},
				{"d/", unix.O_RDONLY, nil},
				{"f/", unix.O_RDONLY, unix.ENOTDIR},
				{"new/", unix.O_WRONLY | unix.O_CREAT, unix.EISDIR},
			} {
				fd, err := unix.Open(p.dir+"/"+c.name, c.flags|unix.O_CLOEXEC, 0o644)
				if err == nil {
					unix.Close(fd)
				}
				if !errors.Is(err, c.want) {
					p.Errorf("open %s with %#x: %v, want %v", c.name, c.flags, err, c.want)
				}
			}
			entries, err := filepath.Glob(p.p("*"))
			p.must(err)
			p.equal(len(entries), 3)
		}},
	}
}
