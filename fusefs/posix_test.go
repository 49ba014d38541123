package fusefs_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func ptr(s []uint32) uintptr { return uintptr(unsafe.Pointer(&s[0])) }

// The POSIX suite: one table of cases, by system call, that runs first on a local directory, to show that the cases are
// right, and then on a mount of a real cluster. Each case has a directory of its own.

// users other than root, and a group that both may be in.
const (
	alice, bob   = 70001, 70002
	team, nobody = 70010, 70011
)

// posix is what a case works with.
type posix struct {
	testing.TB
	dir   string
	mount bool // not the local directory
}

// posixCase is one behaviour.
type posixCase struct {
	name string
	run  func(p *posix)
}

func TestPosix(t *testing.T) {
	needFuse(t)
	var cases []posixCase
	for _, group := range [][]posixCase{
		openCases(), modeCases(), nameCases(), linkCases(), renameCases(), removeCases(), timeCases(), xattrCases(), ioCases(), truncCases(),
		mapCases(), lockCases(), dirCases(), specialCases(), permCases(), statfsCases(), walkCases(), errnoCases(),
	} {
		cases = append(cases, group...)
	}
	run := func(t *testing.T, dir string, mount bool) {
		for i, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				own := filepath.Join(dir, fmt.Sprintf("case%d", i))
				if err := os.Mkdir(own, 0o777); err != nil {
					t.Fatal(err)
				}
				c.run(&posix{TB: t, dir: own, mount: mount})
			})
		}
	}
	t.Run("local", func(t *testing.T) {
		dir := t.TempDir()
		for d := dir; d != "/" && d != "/tmp"; d = filepath.Dir(d) {
			os.Chmod(d, 0o755)
		}
		run(t, dir, false)
	})
	t.Run("mount", func(t *testing.T) {
		mount, _ := mountCluster(t)
		dir, err := os.MkdirTemp(mount, "posix-")
		if err == nil {
			err = os.Chmod(dir, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		run(t, dir, true)
	})
	t.Logf("%d cases", len(cases))
}

// p names something in the case's directory.
func (p *posix) p(name string) string { return filepath.Join(p.dir, name) }

func (p *posix) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

func (p *posix) errno(err error, want syscall.Errno) {
	p.Helper()
	if !errors.Is(err, want) {
		p.Fatalf("got %v, want %v", err, want)
	}
}

func (p *posix) equal(got, want any) {
	p.Helper()
	if got != want {
		p.Fatalf("got %v, want %v", got, want)
	}
}

func (p *posix) open(name string, flags int, perm uint32) int {
	p.Helper()
	fd, err := unix.Open(p.p(name), flags|unix.O_CLOEXEC, perm)
	p.must(err)
	p.Cleanup(func() { unix.Close(fd) })
	return fd
}

func (p *posix) file(name, content string) string {
	p.Helper()
	p.must(os.WriteFile(p.p(name), []byte(content), 0o644))
	return p.p(name)
}

func (p *posix) mkdir(name string, perm uint32) string {
	p.Helper()
	p.must(unix.Mkdir(p.p(name), perm))
	return p.p(name)
}

func (p *posix) content(name, want string) {
	p.Helper()
	b, err := os.ReadFile(p.p(name))
	p.must(err)
	if !bytes.Equal(b, []byte(want)) {
		p.Fatalf("%s holds %.60q (%d bytes), want %.60q (%d)", name, b, len(b), want, len(want))
	}
}

func (p *posix) lstat(name string) unix.Stat_t {
	p.Helper()
	var st unix.Stat_t
	p.must(unix.Lstat(p.p(name), &st))
	return st
}

func (p *posix) perm(name string) uint32 { p.Helper(); return p.lstat(name).Mode & 0o7777 }

func (p *posix) gone(name string) {
	p.Helper()
	var st unix.Stat_t
	p.errno(unix.Lstat(p.p(name), &st), unix.ENOENT)
}

// as runs f as another user in groups.
func (p *posix) as(uid, gid int, groups []int, f func()) {
	p.Helper()
	asUser(p, uid, gid, groups, f)
}

// umask runs f on a thread with a umask of its own.
func (p *posix) umask(mask int, f func()) {
	p.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer close(done)
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- err
			return
		}
		unix.Umask(mask)
		f()
	}()
	p.must(<-done)
}

const long255 = 255

func openCases() []posixCase {
	return []posixCase{
		{"open/creat makes a file with the mode", func(p *posix) {
			p.open("f", unix.O_CREAT|unix.O_WRONLY, 0o640)
			p.equal(p.perm("f"), uint32(0o640))
			st := p.lstat("f")
			p.equal(st.Size, int64(0))
			p.equal(st.Nlink, lstatNlink(1))
			p.equal(st.Mode&unix.S_IFMT, uint32(unix.S_IFREG))
		}},
		{"open/umask applies", func(p *posix) {
			p.umask(0o027, func() {
				fd, err := unix.Open(p.p("f"), unix.O_CREAT|unix.O_WRONLY, 0o777)
				p.must(err)
				unix.Close(fd)
				p.must(unix.Mkdir(p.p("d"), 0o777))
				p.must(unix.Mkfifo(p.p("q"), 0o666))
			})
			p.equal(p.perm("f"), uint32(0o750))
			p.equal(p.perm("d"), uint32(0o750))
			p.equal(p.perm("q"), uint32(0o640))
		}},
		{"open/O_EXCL on an existing name", func(p *posix) {
			p.file("f", "x")
			_, err := unix.Open(p.p("f"), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o600)
			p.errno(err, unix.EEXIST)
			p.must(unix.Symlink("nowhere", p.p("s")))
			_, err = unix.Open(p.p("s"), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o600)
			p.errno(err, unix.EEXIST)
		}},
		{"open/O_TRUNC empties and sets times", func(p *posix) {
			p.file("f", strings.Repeat("x", 10000))
			old := p.lstat("f")
			tick()
			p.open("f", unix.O_WRONLY|unix.O_TRUNC, 0)
			st := p.lstat("f")
			p.equal(st.Size, int64(0))
			if st.Mtim == old.Mtim || st.Ctim == old.Ctim {
				p.Fatal("times unchanged")
			}
		}},
		{"open/errors", func(p *posix) {
			p.file("f", "")
			p.mkdir("d", 0o755)
			_, err := unix.Open(p.p("none"), unix.O_RDONLY, 0)
			p.errno(err, unix.ENOENT)
			_, err = unix.Open(p.p("f/x"), unix.O_RDONLY, 0)
			p.errno(err, unix.ENOTDIR)
			_, err = unix.Open(p.p("d"), unix.O_WRONLY, 0)
			p.errno(err, unix.EISDIR)
			_, err = unix.Open(p.p("d"), unix.O_RDWR|unix.O_CREAT, 0o600)
			p.errno(err, unix.EISDIR)
			_, err = unix.Open(p.p("f"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
			p.errno(err, unix.ENOTDIR)
			p.must(unix.Symlink("loop", p.p("loop")))
			_, err = unix.Open(p.p("loop"), unix.O_RDONLY, 0)
			p.errno(err, unix.ELOOP)
			p.must(unix.Symlink("f", p.p("s")))
			_, err = unix.Open(p.p("s"), unix.O_RDONLY|unix.O_NOFOLLOW, 0)
			p.errno(err, unix.ELOOP)
			_, err = unix.Open(p.p(strings.Repeat("n", 256)), unix.O_RDONLY, 0)
			p.errno(err, unix.ENAMETOOLONG)
		}},
		{"open/creat through a dangling symlink", func(p *posix) {
			p.must(unix.Symlink("target", p.p("s")))
			p.open("s", unix.O_CREAT|unix.O_WRONLY, 0o600)
			p.equal(p.lstat("target").Mode&unix.S_IFMT, uint32(unix.S_IFREG))
		}},
		{"open/permission is checked at open, not later", func(p *posix) {
			p.file("f", "data")
			p.must(unix.Chown(p.p("f"), alice, team))
			p.must(unix.Chmod(p.p("f"), 0o600))
			p.as(alice, team, nil, func() {
				fd, err := unix.Open(p.p("f"), unix.O_RDWR, 0)
				p.must(err)
				defer unix.Close(fd)
				p.must(unix.Chmod(p.p("f"), 0))
				_, err = unix.Pwrite(fd, []byte("DATA"), 0)
				p.must(err)
				b := make([]byte, 4)
				_, err = unix.Pread(fd, b, 0)
				p.must(err)
				p.equal(string(b), "DATA")
				p.must(unix.Ftruncate(fd, 2))
			})
			p.must(unix.Chmod(p.p("f"), 0o644))
			p.content("f", "DA")
		}},
		{"open/a created file is writable whatever its mode", func(p *posix) {
			p.as(alice, team, nil, func() {
				fd, err := unix.Open(p.p("f"), unix.O_CREAT|unix.O_RDWR, 0o000)
				p.must(err)
				defer unix.Close(fd)
				_, err = unix.Write(fd, []byte("abc"))
				p.must(err)
				p.must(unix.Ftruncate(fd, 2))
			})
			p.content("f", "ab")
		}},
		{"open/O_TMPFILE is refused cleanly or works", func(p *posix) {
			fd, err := unix.Open(p.dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
			if err == nil {
				unix.Close(fd)
			} else {
				p.errno(err, unix.EOPNOTSUPP)
			}
		}},
		{"open/O_PATH and fstat", func(p *posix) {
			p.file("f", "abc")
			fd := p.open("f", unix.O_PATH, 0)
			var st unix.Stat_t
			p.must(unix.Fstat(fd, &st))
			p.equal(st.Size, int64(3))
		}},
		{"creat/in a removed directory", func(p *posix) {
			d := p.mkdir("d", 0o755)
			fd := p.open("d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
			p.must(unix.Rmdir(d))
			_, err := unix.Openat(fd, "f", unix.O_CREAT|unix.O_WRONLY, 0o600)
			p.errno(err, unix.ENOENT)
			p.errno(unix.Mkdirat(fd, "x", 0o755), unix.ENOENT)
		}},
	}
}

func modeCases() []posixCase {
	return []posixCase{
		{"chmod/every bit of 07777", func(p *posix) {
			p.file("f", "")
			p.mkdir("d", 0o755)
			for bit := uint32(1); bit < 0o10000; bit <<= 1 {
				for _, name := range []string{"f", "d"} {
					p.must(unix.Chmod(p.p(name), bit))
					p.equal(p.perm(name), bit)
				}
			}
			p.must(unix.Chmod(p.p("d"), 0o7777))
			p.equal(p.perm("d"), uint32(0o7777))
			p.must(unix.Chmod(p.p("d"), 0o755))
		}},
		{"chmod/sticky bit shows in listings and stat", func(p *posix) {
			p.mkdir("d", 0o755)
			p.must(unix.Chmod(p.p("d"), 0o1777))
			i, err := os.Stat(p.p("d"))
			p.must(err)
			p.equal(i.Mode(), os.ModeDir|os.ModeSticky|0o777)
		}},
		{"mkdir/mode with sticky", func(p *posix) {
			p.must(unix.Mkdir(p.p("d"), 0o1755))
			p.equal(p.perm("d"), uint32(0o1755))
		}},
		{"chmod/changes ctime only", func(p *posix) {
			p.file("f", "")
			old := p.lstat("f")
			tick()
			p.must(unix.Chmod(p.p("f"), 0o600))
			st := p.lstat("f")
			if st.Ctim == old.Ctim {
				p.Fatal("ctime unchanged")
			}
			p.equal(st.Mtim, old.Mtim)
		}},
		{"chmod/only the owner", func(p *posix) {
			p.file("f", "")
			p.must(unix.Chown(p.p("f"), alice, team))
			p.as(bob, team, nil, func() { p.errno(unix.Chmod(p.p("f"), 0o777), unix.EPERM) })
			p.as(alice, nobody, nil, func() { p.must(unix.Chmod(p.p("f"), 0o600)) })
		}},
		{"chmod/setgid is dropped for a stranger to the group", func(p *posix) {
			p.file("f", "")
			p.must(unix.Chown(p.p("f"), alice, team))
			p.as(alice, nobody, nil, func() { p.must(unix.Chmod(p.p("f"), 0o2755)) })
			p.equal(p.perm("f"), uint32(0o755))
			p.as(alice, nobody, []int{team}, func() { p.must(unix.Chmod(p.p("f"), 0o2755)) })
			p.equal(p.perm("f"), uint32(0o2755))
		}},
		{"fchmod/on an unlinked file", func(p *posix) {
			p.file("f", "")
			fd := p.open("f", unix.O_RDWR, 0)
			p.must(unix.Unlink(p.p("f")))
			p.must(unix.Fchmod(fd, 0o600))
			var st unix.Stat_t
			p.must(unix.Fstat(fd, &st))
			p.equal(st.Mode&0o7777, uint32(0o600))
			p.equal(st.Nlink, lstatNlink(0))
		}},
		{"chown/changes both and ctime", func(p *posix) {
			p.file("f", "")
			old := p.lstat("f")
			tick()
			p.must(unix.Chown(p.p("f"), alice, team))
			st := p.lstat("f")
			p.equal(st.Uid, uint32(alice))
			p.equal(st.Gid, uint32(team))
			if st.Ctim == old.Ctim {
				p.Fatal("ctime unchanged")
			}
			p.must(unix.Chown(p.p("f"), -1, nobody))
			p.equal(p.lstat("f").Uid, uint32(alice))
			p.equal(p.lstat("f").Gid, uint32(nobody))
		}},
		{"chown/drops setuid and setgid", func(p *posix) {
			p.file("f", "")
			p.must(unix.Chown(p.p("f"), alice, team))
			p.must(unix.Chmod(p.p("f"), 0o6755))
			p.as(alice, team, []int{nobody}, func() { p.must(unix.Chown(p.p("f"), -1, nobody)) })
			p.equal(p.perm("f"), uint32(0o755))
			p.must(unix.Chmod(p.p("f"), 0o6755))
			p.must(unix.Chown(p.p("f"), bob, -1))
			p.equal(p.perm("f"), uint32(0o755))
		}},
		{"chown/of a directory keeps setgid", func(p *posix) {
			p.mkdir("d", 0o755)
			p.must(unix.Chmod(p.p("d"), 0o2755))
			p.must(unix.Chown(p.p("d"), alice, team))
			p.equal(p.perm("d"), uint32(0o2755))
		}},
		{"chown/owner may give to own groups only", func(p *posix) {
			p.file("f", "")
			p.must(unix.Chown(p.p("f"), alice, nobody))
			p.as(alice, nobody, nil, func() { p.errno(unix.Chown(p.p("f"), -1, team), unix.EPERM) })
			p.as(alice, nobody, []int{team}, func() { p.must(unix.Chown(p.p("f"), -1, team)) })
			p.as(alice, team, nil, func() { p.errno(unix.Chown(p.p("f"), bob, -1), unix.EPERM) })
		}},
		{"lchown/of a symlink", func(p *posix) {
			p.must(unix.Symlink("x", p.p("s")))
			p.must(unix.Lchown(p.p("s"), alice, team))
			p.equal(p.lstat("s").Uid, uint32(alice))
		}},
		{"write/drops setuid and setgid for a user", func(p *posix) {
			p.file("f", "abc")
			p.must(unix.Chown(p.p("f"), alice, team))
			for _, size := range []int{1, 8192} {
				p.must(unix.Chmod(p.p("f"), 0o6777))
				p.as(bob, nobody, nil, func() {
					fd, err := unix.Open(p.p("f"), unix.O_WRONLY, 0)
					p.must(err)
					defer unix.Close(fd)
					_, err = unix.Write(fd, make([]byte, size))
					p.must(err)
					p.equal(p.perm("f"), uint32(0o777))
				})
			}
		}},
		{"truncate/drops setuid for a user", func(p *posix) {
			p.file("f", "abc")
			p.must(unix.Chown(p.p("f"), alice, team))
			p.must(unix.Chmod(p.p("f"), 0o6777))
			p.as(bob, nobody, nil, func() { p.must(unix.Truncate(p.p("f"), 1)) })
			p.equal(p.perm("f"), uint32(0o777))
		}},
		{"mkdir/setgid directory passes its group on", func(p *posix) {
			p.mkdir("d", 0o777)
			p.must(unix.Chown(p.p("d"), 0, team))
			p.must(unix.Chmod(p.p("d"), 0o2777))
			p.as(alice, nobody, nil, func() {
				p.must(unix.Mkdir(p.p("d/sub"), 0o755))
				fd, err := unix.Open(p.p("d/f"), unix.O_CREAT|unix.O_WRONLY, 0o644)
				p.must(err)
				unix.Close(fd)
			})
			p.equal(p.lstat("d/sub").Gid, uint32(team))
			p.equal(p.perm("d/sub"), uint32(0o2755))
			p.equal(p.lstat("d/f").Gid, uint32(team))
		}},
	}
}

func nameCases() []posixCase {
	return []posixCase{
		{"name/255 bytes works, 256 does not", func(p *posix) {
			n := strings.Repeat("n", long255)
			p.file(n, "x")
			p.content(n, "x")
			p.errno(unix.Mkdir(p.p(n+"n"), 0o755), unix.ENAMETOOLONG)
			p.must(unix.Rename(p.p(n), p.p(strings.Repeat("m", long255))))
			p.errno(unix.Rename(p.p(strings.Repeat("m", long255)), p.p(n+"n")), unix.ENAMETOOLONG)
			p.errno(unix.Symlink("x", p.p(n+"n")), unix.ENAMETOOLONG)
		}},
		{"name/any bytes", func(p *posix) {
			for _, n := range []string{"a b", "a\nb", "\xff\xfe", "\x01", "-", "...", "ü", "\\", "'", "*", "%s", "con", "a:b"} {
				p.file(n, n)
				p.content(n, n)
			}
			entries, err := os.ReadDir(p.dir)
			p.must(err)
			p.equal(len(entries), 13)
		}},
		{"name/deep paths", func(p *posix) {
			// The path as a whole is longer than PATH_MAX: it is reached step by step.
			fd, err := unix.Open(p.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
			p.must(err)
			name := strings.Repeat("d", 200)
			for range 30 {
				p.must(unix.Mkdirat(fd, name, 0o755))
				next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
				p.must(err)
				unix.Close(fd)
				fd = next
			}
			f, err := unix.Openat(fd, "f", unix.O_CREAT|unix.O_WRONLY, 0o600)
			p.must(err)
			unix.Close(f)
			unix.Close(fd)
			p.must(os.RemoveAll(p.p(name)))
		}},
		{"name/trailing slash and dots", func(p *posix) {
			p.file("f", "")
			p.mkdir("d", 0o755)
			var st unix.Stat_t
			p.errno(unix.Lstat(p.p("f")+"/", &st), unix.ENOTDIR)
			p.must(unix.Lstat(p.p("d")+"/", &st))
			p.must(unix.Lstat(p.p("d")+"/./..", &st))
			p.errno(unix.Rmdir(p.dir+"/d/."), unix.EINVAL)
			p.errno(unix.Rmdir(p.dir+"/d/.."), unix.ENOTEMPTY)
		}},
	}
}

func linkCases() []posixCase {
	return []posixCase{
		{"link/counts and shares", func(p *posix) {
			p.file("a", "one")
			old := p.lstat("a")
			tick()
			p.must(unix.Link(p.p("a"), p.p("b")))
			a, b := p.lstat("a"), p.lstat("b")
			p.equal(a.Ino, b.Ino)
			p.equal(a.Nlink, lstatNlink(2))
			if a.Ctim == old.Ctim {
				p.Fatal("ctime unchanged")
			}
			p.file("b", "two")
			p.content("a", "two")
			p.must(unix.Unlink(p.p("a")))
			p.equal(p.lstat("b").Nlink, lstatNlink(1))
			p.content("b", "two")
		}},
		{"link/errors", func(p *posix) {
			p.file("a", "")
			p.file("b", "")
			p.mkdir("d", 0o755)
			p.errno(unix.Link(p.p("a"), p.p("b")), unix.EEXIST)
			p.errno(unix.Link(p.p("none"), p.p("c")), unix.ENOENT)
			p.errno(unix.Link(p.p("a"), p.p("none/c")), unix.ENOENT)
			p.errno(unix.Link(p.p("a"), p.p("b/c")), unix.ENOTDIR)
			p.errno(unix.Link(p.p("d"), p.p("e")), unix.EPERM)
		}},
		{"link/to a symlink itself", func(p *posix) {
			p.must(unix.Symlink("x", p.p("s")))
			p.must(unix.Link(p.p("s"), p.p("t")))
			p.equal(p.lstat("t").Mode&unix.S_IFMT, uint32(unix.S_IFLNK))
			p.equal(p.lstat("t").Nlink, lstatNlink(2))
		}},
		{"link/needs write permission on the directory", func(p *posix) {
			p.file("a", "")
			p.must(unix.Chown(p.p("a"), alice, team))
			p.mkdir("d", 0o755)
			p.as(alice, team, nil, func() { p.errno(unix.Link(p.p("a"), p.p("d/b")), unix.EACCES) })
		}},
		{"symlink/readlink, size and mode", func(p *posix) {
			target := "../" + strings.Repeat("t", 300)
			p.must(unix.Symlink(target, p.p("s")))
			b := make([]byte, 1000)
			n, err := unix.Readlink(p.p("s"), b)
			p.must(err)
			p.equal(string(b[:n]), target)
			st := p.lstat("s")
			p.equal(st.Size, int64(len(target)))
			p.equal(st.Mode&0o777, uint32(0o777))
			n, err = unix.Readlink(p.p("s"), b[:5])
			p.must(err)
			p.equal(string(b[:n]), target[:5])
			_, err = unix.Readlink(p.dir, b)
			p.errno(err, unix.EINVAL)
		}},
		{"symlink/4095 bytes, not more", func(p *posix) {
			p.must(unix.Symlink(strings.Repeat("t", 4095), p.p("s")))
			p.equal(p.lstat("s").Size, int64(4095))
			p.errno(unix.Symlink(strings.Repeat("t", 4096), p.p("u")), unix.ENAMETOOLONG)
			p.errno(unix.Symlink("", p.p("u")), unix.ENOENT)
			p.errno(unix.Symlink("x", p.p("s")), unix.EEXIST)
		}},
		{"symlink/followed in paths, relative and absolute", func(p *posix) {
			p.mkdir("d", 0o755)
			p.file("d/f", "deep")
			p.must(unix.Symlink("d", p.p("rel")))
			p.must(unix.Symlink(p.p("d"), p.p("abs")))
			p.content("rel/f", "deep")
			p.content("abs/f", "deep")
		}},
	}
}

func renameCases() []posixCase {
	return []posixCase{
		{"rename/replaces a file", func(p *posix) {
			p.file("a", "A")
			p.file("b", "B")
			ino := p.lstat("a").Ino
			p.must(unix.Rename(p.p("a"), p.p("b")))
			p.gone("a")
			p.content("b", "A")
			p.equal(p.lstat("b").Ino, ino)
		}},
		{"rename/over an open file keeps it readable", func(p *posix) {
			p.file("a", "A")
			p.file("b", strings.Repeat("B", 9000))
			fd := p.open("b", unix.O_RDWR, 0)
			p.must(unix.Rename(p.p("a"), p.p("b")))
			b := make([]byte, 9000)
			n, err := unix.Pread(fd, b, 0)
			p.must(err)
			p.equal(n, 9000)
			_, err = unix.Pwrite(fd, []byte("more"), 9000)
			p.must(err)
			var st unix.Stat_t
			p.must(unix.Fstat(fd, &st))
			p.equal(st.Nlink, lstatNlink(0))
			p.equal(st.Size, int64(9004))
			p.content("b", "A")
		}},
		{"rename/open file moves along", func(p *posix) {
			p.file("a", "A")
			fd := p.open("a", unix.O_WRONLY, 0)
			p.must(unix.Rename(p.p("a"), p.p("b")))
			_, err := unix.Pwrite(fd, []byte("xyz"), 0)
			p.must(err)
			p.content("b", "xyz")
		}},
		{"rename/directories", func(p *posix) {
			p.mkdir("a", 0o755)
			p.file("a/f", "x")
			p.mkdir("empty", 0o755)
			p.must(unix.Rename(p.p("a"), p.p("empty")))
			p.content("empty/f", "x")
			p.mkdir("full", 0o755)
			p.file("full/g", "")
			p.errno(unix.Rename(p.p("empty"), p.p("full")), unix.ENOTEMPTY)
			p.errno(unix.Rename(p.p("empty"), p.p("empty/sub")), unix.EINVAL)
			p.file("file", "")
			p.errno(unix.Rename(p.p("empty"), p.p("file")), unix.ENOTDIR)
			p.errno(unix.Rename(p.p("file"), p.p("empty")), unix.EISDIR)
			p.errno(unix.Rename(p.p("none"), p.p("x")), unix.ENOENT)
			p.errno(unix.Rename(p.p("file"), p.p("none/x")), unix.ENOENT)
		}},
		{"rename/moves a directory between parents", func(p *posix) {
			p.mkdir("p1", 0o755)
			p.mkdir("p2", 0o755)
			p.mkdir("p1/d", 0o755)
			p.equal(p.lstat("p1").Nlink, lstatNlink(3))
			p.must(unix.Rename(p.p("p1/d"), p.p("p2/d")))
			p.equal(p.lstat("p1").Nlink, lstatNlink(2))
			p.equal(p.lstat("p2").Nlink, lstatNlink(3))
			var up, want unix.Stat_t
			p.must(unix.Stat(p.p("p2/d")+"/..", &up))
			p.must(unix.Stat(p.p("p2"), &want))
			p.equal(up.Ino, want.Ino)
		}},
		{"rename/of two names of one file does nothing", func(p *posix) {
			p.file("a", "x")
			p.must(unix.Link(p.p("a"), p.p("b")))
			p.must(unix.Rename(p.p("a"), p.p("b")))
			p.content("a", "x")
			p.content("b", "x")
		}},
		{"rename/onto itself", func(p *posix) {
			p.file("a", "x")
			p.must(unix.Rename(p.p("a"), p.p("a")))
			p.content("a", "x")
		}},
		{"rename/sets times of both directories", func(p *posix) {
			p.mkdir("p1", 0o755)
			p.mkdir("p2", 0o755)
			p.file("p1/f", "")
			a, b := p.lstat("p1"), p.lstat("p2")
			tick()
			p.must(unix.Rename(p.p("p1/f"), p.p("p2/f")))
			if p.lstat("p1").Mtim == a.Mtim || p.lstat("p2").Mtim == b.Mtim {
				p.Fatal("mtime unchanged")
			}
		}},
		{"rename/sticky directory", func(p *posix) {
			p.mkdir("d", 0o777)
			p.must(unix.Chmod(p.p("d"), 0o1777))
			p.file("d/f", "")
			p.must(unix.Chown(p.p("d/f"), alice, team))
			p.as(bob, team, nil, func() {
				p.errno(unix.Rename(p.p("d/f"), p.p("d/g")), unix.EPERM)
				p.errno(unix.Unlink(p.p("d/f")), unix.EPERM)
			})
			p.as(alice, team, nil, func() { p.must(unix.Rename(p.p("d/f"), p.p("d/g"))) })
		}},
		{"rename/over a dangling symlink", func(p *posix) {
			p.file("a", "x")
			p.must(unix.Symlink("nowhere", p.p("s")))
			p.must(unix.Rename(p.p("a"), p.p("s")))
			p.content("s", "x")
		}},
	}
}

func removeCases() []posixCase {
	return []posixCase{
		{"unlink/open file lives on", func(p *posix) {
			p.file("f", strings.Repeat("x", 5000))
			fd := p.open("f", unix.O_RDWR, 0)
			p.must(unix.Unlink(p.p("f")))
			p.gone("f")
			b := make([]byte, 6000)
			n, err := unix.Pread(fd, b, 0)
			p.must(err)
			p.equal(n, 5000)
			_, err = unix.Pwrite(fd, []byte("new"), 8000)
			p.must(err)
			p.must(unix.Fsync(fd))
			var st unix.Stat_t
			p.must(unix.Fstat(fd, &st))
			p.equal(st.Size, int64(8003))
			p.equal(st.Nlink, lstatNlink(0))
			p.must(unix.Ftruncate(fd, 10))
			p.file("f", "another")
			p.content("f", "another")
		}},
		{"unlink/errors", func(p *posix) {
			p.mkdir("d", 0o755)
			p.errno(unix.Unlink(p.p("none")), unix.ENOENT)
			p.errno(unix.Unlink(p.p("d")), unix.EISDIR)
			p.file("f", "")
			p.errno(unix.Unlink(p.p("f/x")), unix.ENOTDIR)
			p.errno(unix.Rmdir(p.p("f")), unix.ENOTDIR)
			p.file("d/x", "")
			p.errno(unix.Rmdir(p.p("d")), unix.ENOTEMPTY)
			p.must(unix.Unlink(p.p("d/x")))
			p.must(unix.Rmdir(p.p("d")))
			p.gone("d")
		}},
		{"unlink/symlink, not its target", func(p *posix) {
			p.file("f", "x")
			p.must(unix.Symlink("f", p.p("s")))
			p.must(unix.Unlink(p.p("s")))
			p.content("f", "x")
		}},
		{"unlink/needs write permission on the directory", func(p *posix) {
			p.mkdir("d", 0o755)
			p.file("d/f", "")
			p.must(unix.Chown(p.p("d/f"), alice, team))
			p.as(alice, team, nil, func() { p.errno(unix.Unlink(p.p("d/f")), unix.EACCES) })
		}},
		{"rmdir/nlink of the parent", func(p *posix) {
			p.mkdir("d", 0o755)
			p.mkdir("d/a", 0o755)
			p.mkdir("d/b", 0o755)
			p.equal(p.lstat("d").Nlink, lstatNlink(4))
			p.must(unix.Rmdir(p.p("d/a")))
			p.equal(p.lstat("d").Nlink, lstatNlink(3))
		}},
		{"rmdir/of the working directory, then use it", func(p *posix) {
			p.mkdir("d", 0o755)
			fd := p.open("d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
			p.must(unix.Rmdir(p.p("d")))
			var st unix.Stat_t
			p.must(unix.Fstat(fd, &st))
			p.equal(st.Nlink, lstatNlink(0))
		}},
		{"mkdir/errors", func(p *posix) {
			p.mkdir("d", 0o755)
			p.errno(unix.Mkdir(p.p("d"), 0o755), unix.EEXIST)
			p.errno(unix.Mkdir(p.p("none/d"), 0o755), unix.ENOENT)
			p.file("f", "")
			p.errno(unix.Mkdir(p.p("f/d"), 0o755), unix.ENOTDIR)
			p.errno(unix.Mkdir(p.p("f"), 0o755), unix.EEXIST)
			p.as(alice, team, nil, func() { p.errno(unix.Mkdir(p.p("d/x"), 0o755), unix.EACCES) })
		}},
	}
}
