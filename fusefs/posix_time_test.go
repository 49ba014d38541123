package fusefs_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tick lets the clock of file times move on: kernels advance it by up to 10 ms at a time.
func tick() { time.Sleep(12 * time.Millisecond) }

func nsOf(t unix.Timespec) int64 { return t.Sec*1e9 + int64(t.Nsec) }

// lstatNlink has the type of Stat_t.Nlink on every architecture.
func lstatNlink(n int) uint64 { return uint64(n) }

func (p *posix) utimens(name string, atime, mtime unix.Timespec, flags int) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, p.p(name), []unix.Timespec{atime, mtime}, flags)
}

var (
	timeNow  = unix.Timespec{Nsec: unix.UTIME_NOW}
	timeOmit = unix.Timespec{Nsec: unix.UTIME_OMIT}
)

func timeCases() []posixCase {
	return []posixCase{
		{"utimens/nanoseconds", func(p *posix) {
			p.file("f", "")
			old := p.lstat("f")
			tick()
			p.must(p.utimens("f", unix.Timespec{Sec: 1000, Nsec: 123456789}, unix.Timespec{Sec: 2000, Nsec: 987654321}, 0))
			st := p.lstat("f")
			p.equal(nsOf(st.Atim), int64(1000123456789))
			p.equal(nsOf(st.Mtim), int64(2000987654321))
			if st.Ctim == old.Ctim {
				p.Fatal("ctime unchanged")
			}
		}},
		{"utimens/before 1970 and after 2106", func(p *posix) {
			p.file("f", "")
			p.must(p.utimens("f", unix.Timespec{Sec: -1, Nsec: 5}, unix.Timespec{Sec: 5e9, Nsec: 7}, 0))
			st := p.lstat("f")
			p.equal(nsOf(st.Atim), int64(-999999995))
			p.equal(nsOf(st.Mtim), int64(5e18)+7)
		}},
		{"utimens/NOW and OMIT", func(p *posix) {
			p.file("f", "")
			p.must(p.utimens("f", unix.Timespec{Sec: 10}, unix.Timespec{Sec: 20}, 0))
			p.must(p.utimens("f", timeOmit, unix.Timespec{Sec: 30}, 0))
			st := p.lstat("f")
			p.equal(nsOf(st.Atim), int64(10e9))
			p.equal(nsOf(st.Mtim), int64(30e9))
			before := time.Now().Add(-time.Second).UnixNano()
			p.must(p.utimens("f", timeNow, timeOmit, 0))
			st = p.lstat("f")
			p.equal(nsOf(st.Mtim), int64(30e9))
			if nsOf(st.Atim) < before {
				p.Fatalf("atime %d is not now", nsOf(st.Atim))
			}
			old := p.lstat("f")
			tick()
			p.must(p.utimens("f", timeOmit, timeOmit, 0))
			p.equal(p.lstat("f").Ctim, old.Ctim)
		}},
		{"utimens/who may", func(p *posix) {
			p.file("f", "")
			p.must(unix.Chown(p.p("f"), alice, team))
			p.must(unix.Chmod(p.p("f"), 0o664))
			p.as(bob, team, nil, func() {
				p.must(p.utimens("f", timeNow, timeNow, 0)) // may write
				p.errno(p.utimens("f", unix.Timespec{Sec: 1}, unix.Timespec{Sec: 1}, 0), unix.EPERM)
			})
			p.as(bob, nobody, nil, func() { p.errno(p.utimens("f", timeNow, timeNow, 0), unix.EACCES) })
		}},
		{"utimens/of a symlink itself", func(p *posix) {
			p.file("f", "")
			p.must(unix.Symlink("f", p.p("s")))
			p.must(p.utimens("s", unix.Timespec{Sec: 5}, unix.Timespec{Sec: 6}, unix.AT_SYMLINK_NOFOLLOW))
			p.equal(nsOf(p.lstat("s").Mtim), int64(6e9))
			if nsOf(p.lstat("f").Mtim) == 6e9 {
				p.Fatal("the target's time changed")
			}
		}},
		{"times/write changes mtime and ctime, seen before close", func(p *posix) {
			for _, size := range []int{10, 100000} {
				name := "f" + strings.Repeat("x", size%7)
				fd := p.open(name, unix.O_CREAT|unix.O_WRONLY, 0o644)
				old := p.lstat(name)
				tick()
				_, err := unix.Write(fd, make([]byte, size))
				p.must(err)
				st := p.lstat(name)
				if nsOf(st.Mtim) <= nsOf(old.Mtim) || nsOf(st.Ctim) <= nsOf(old.Ctim) {
					p.Fatalf("%d bytes: times unchanged", size)
				}
				p.must(unix.Close(fd))
				p.equal(p.lstat(name).Mtim, st.Mtim)
			}
		}},
		{"times/futimens after write survives close", func(p *posix) {
			for _, size := range []int{10, 100000} {
				fd, err := unix.Open(p.p("f"), unix.O_CREAT|unix.O_WRONLY, 0o644)
				p.must(err)
				_, err = unix.Write(fd, make([]byte, size))
				p.must(err)
				p.must(p.utimens("f", unix.Timespec{Sec: 111}, unix.Timespec{Sec: 222, Nsec: 3}, 0))
				p.must(unix.Close(fd))
				tick()
				p.equal(nsOf(p.lstat("f").Mtim), int64(222e9)+3)
			}
		}},
		{"times/writing nothing changes nothing", func(p *posix) {
			p.file("f", "abc")
			old := p.lstat("f")
			tick()
			fd := p.open("f", unix.O_WRONLY, 0)
			_, err := unix.Write(fd, nil)
			p.must(err)
			p.must(unix.Close(fd))
			p.equal(p.lstat("f").Mtim, old.Mtim)
		}},
		{"times/creation and removal change the directory", func(p *posix) {
			p.mkdir("d", 0o755)
			steps := []func() error{
				func() error { return os.WriteFile(p.p("d/f"), nil, 0o644) },
				func() error { return unix.Mkdir(p.p("d/s"), 0o755) },
				func() error { return unix.Symlink("x", p.p("d/l")) },
				func() error { return unix.Link(p.p("d/f"), p.p("d/h")) },
				func() error { return unix.Rename(p.p("d/h"), p.p("d/i")) },
				func() error { return unix.Unlink(p.p("d/i")) },
				func() error { return unix.Rmdir(p.p("d/s")) },
			}
			for i, step := range steps {
				old := p.lstat("d")
				tick()
				p.must(step())
				if st := p.lstat("d"); nsOf(st.Mtim) <= nsOf(old.Mtim) || nsOf(st.Ctim) <= nsOf(old.Ctim) {
					p.Fatalf("step %d: the directory's times are unchanged", i)
				}
			}
		}},
		{"times/unlink changes ctime of the other names", func(p *posix) {
			p.file("a", "")
			p.must(unix.Link(p.p("a"), p.p("b")))
			old := p.lstat("a")
			tick()
			p.must(unix.Unlink(p.p("b")))
			if p.lstat("a").Ctim == old.Ctim {
				p.Fatal("ctime unchanged")
			}
		}},
		{"times/truncate changes mtime", func(p *posix) {
			p.file("f", "abc")
			old := p.lstat("f")
			tick()
			p.must(unix.Truncate(p.p("f"), 1))
			if st := p.lstat("f"); st.Mtim == old.Mtim || st.Ctim == old.Ctim {
				p.Fatal("times unchanged")
			}
		}},
		{"times/mapped write changes mtime by msync", func(p *posix) {
			fd := p.open("f", unix.O_CREAT|unix.O_RDWR, 0o644)
			p.must(unix.Ftruncate(fd, 8192))
			old := p.lstat("f")
			tick()
			m, err := unix.Mmap(fd, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			p.must(err)
			m[5000] = 1
			p.must(unix.Msync(m, unix.MS_SYNC))
			if st := p.lstat("f"); st.Mtim == old.Mtim {
				p.Fatal("mtime unchanged")
			}
			p.must(unix.Munmap(m))
		}},
	}
}

func xattrCases() []posixCase {
	return []posixCase{
		{"xattr/set, get, list, remove", func(p *posix) {
			f := p.file("f", "")
			p.must(unix.Setxattr(f, "user.a", []byte("1"), 0))
			p.must(unix.Setxattr(f, "user.b", nil, 0))
			p.must(unix.Setxattr(f, "trusted.c", []byte("\x00\xff"), 0))
			b := make([]byte, 100)
			n, err := unix.Getxattr(f, "user.a", b)
			p.must(err)
			p.equal(string(b[:n]), "1")
			n, err = unix.Getxattr(f, "user.b", b)
			p.must(err)
			p.equal(n, 0)
			n, err = unix.Listxattr(f, b)
			p.must(err)
			names := strings.Split(strings.TrimRight(string(b[:n]), "\x00"), "\x00")
			sort.Strings(names)
			p.equal(strings.Join(names, " "), "trusted.c user.a user.b")
			p.must(unix.Removexattr(f, "user.a"))
			_, err = unix.Getxattr(f, "user.a", b)
			p.errno(err, unix.ENODATA)
			p.errno(unix.Removexattr(f, "user.a"), unix.ENODATA)
		}},
		{"xattr/sizes and ERANGE", func(p *posix) {
			f := p.file("f", "")
			p.must(unix.Setxattr(f, "user.a", []byte("12345"), 0))
			n, err := unix.Getxattr(f, "user.a", nil)
			p.must(err)
			p.equal(n, 5)
			_, err = unix.Getxattr(f, "user.a", make([]byte, 4))
			p.errno(err, unix.ERANGE)
			n, err = unix.Listxattr(f, nil)
			p.must(err)
			p.equal(n, len("user.a")+1)
			_, err = unix.Listxattr(f, make([]byte, 3))
			p.errno(err, unix.ERANGE)
		}},
		{"xattr/XATTR_CREATE and XATTR_REPLACE", func(p *posix) {
			f := p.file("f", "")
			p.errno(unix.Setxattr(f, "user.a", []byte("1"), unix.XATTR_REPLACE), unix.ENODATA)
			p.must(unix.Setxattr(f, "user.a", []byte("1"), unix.XATTR_CREATE))
			p.errno(unix.Setxattr(f, "user.a", []byte("2"), unix.XATTR_CREATE), unix.EEXIST)
			p.must(unix.Setxattr(f, "user.a", []byte("3"), unix.XATTR_REPLACE))
			b := make([]byte, 10)
			n, err := unix.Getxattr(f, "user.a", b)
			p.must(err)
			p.equal(string(b[:n]), "3")
		}},
		{"xattr/names", func(p *posix) {
			f := p.file("f", "")
			p.errno(unix.Setxattr(f, "user."+strings.Repeat("n", 251), nil, 0), unix.ERANGE)
			p.must(unix.Setxattr(f, "user."+strings.Repeat("n", 250), nil, 0))
			p.errno(unix.Setxattr(f, "other.x", nil, 0), unix.EOPNOTSUPP)
			p.errno(unix.Setxattr(f, "user.", nil, 0), unix.EINVAL)
		}},
		{"xattr/large values", func(p *posix) {
			f := p.file("f", "")
			p.must(unix.Setxattr(f, "user.a", bytes.Repeat([]byte{7}, 3000), 0))
			b := make([]byte, 4000)
			n, err := unix.Getxattr(f, "user.a", b)
			p.must(err)
			p.equal(n, 3000)
			p.errno(unix.Setxattr(f, "user.b", make([]byte, 65537), 0), unix.E2BIG)
		}},
		{"xattr/on directories and special files", func(p *posix) {
			d := p.mkdir("d", 0o755)
			p.must(unix.Setxattr(d, "user.a", []byte("x"), 0))
			p.must(unix.Mkfifo(p.p("q"), 0o666))
			p.errno(unix.Setxattr(p.p("q"), "user.a", []byte("x"), 0), unix.EPERM)
			p.must(unix.Symlink("d", p.p("s")))
			p.errno(unix.Lsetxattr(p.p("s"), "user.a", []byte("x"), 0), unix.EPERM)
			b := make([]byte, 10)
			_, err := unix.Getxattr(p.p("s"), "user.a", b)
			p.must(err)
		}},
		{"xattr/permissions", func(p *posix) {
			f := p.file("f", "")
			p.must(unix.Setxattr(f, "user.a", []byte("x"), 0))
			p.must(unix.Chmod(f, 0o600))
			b := make([]byte, 10)
			p.as(bob, nobody, nil, func() {
				_, err := unix.Getxattr(f, "user.a", b)
				p.errno(err, unix.EACCES)
				p.errno(unix.Setxattr(f, "user.a", []byte("y"), 0), unix.EACCES)
				p.errno(unix.Setxattr(f, "trusted.a", []byte("y"), 0), unix.EPERM)
			})
		}},
		{"xattr/change ctime, not mtime", func(p *posix) {
			f := p.file("f", "")
			old := p.lstat("f")
			tick()
			p.must(unix.Setxattr(f, "user.a", []byte("x"), 0))
			st := p.lstat("f")
			if st.Ctim == old.Ctim {
				p.Fatal("ctime unchanged")
			}
			p.equal(st.Mtim, old.Mtim)
		}},
		{"xattr/ACLs are refused, not swallowed", func(p *posix) {
			if !p.mount {
				return // the local file system has them
			}
			f := p.file("f", "")
			p.errno(unix.Setxattr(f, "system.posix_acl_access", []byte("\x02\x00\x00\x00"), 0), unix.EOPNOTSUPP)
		}},
	}
}

func dirCases() []posixCase {
	return []posixCase{
		{"readdir/all entries once, with types and inodes", func(p *posix) {
			want := map[string]uint8{}
			for i := range 300 {
				n := strings.Repeat("n", i%60) + string(rune('a'+i%26)) + strings.Repeat("k", i/26)
				if i%3 == 0 {
					p.mkdir(n, 0o755)
					want[n] = unix.DT_DIR
				} else {
					p.file(n, "")
					want[n] = unix.DT_REG
				}
			}
			p.must(unix.Symlink("x", p.p("sym")))
			want["sym"] = unix.DT_LNK
			p.must(unix.Mkfifo(p.p("fifo"), 0o600))
			want["fifo"] = unix.DT_FIFO
			got := map[string]uint8{}
			for _, e := range p.dirents(p.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0), 1000) {
				if _, twice := got[e.name]; twice {
					p.Fatalf("%q twice", e.name)
				}
				got[e.name] = e.typ
				if e.name != "." && e.name != ".." {
					p.equal(e.ino, p.lstat(e.name).Ino)
				}
			}
			p.equal(got["."], uint8(unix.DT_DIR))
			p.equal(got[".."], uint8(unix.DT_DIR))
			delete(got, ".")
			delete(got, "..")
			p.equal(len(got), len(want))
			for n, typ := range want {
				p.equal(got[n], typ)
			}
		}},
		{"readdir/seekdir and rewinddir", func(p *posix) {
			for i := range 50 {
				p.file(strings.Repeat("x", i+1), "")
			}
			fd := p.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
			all := p.dirents(fd, 512)
			p.equal(len(all), 52)
			for _, i := range []int{0, 1, 2, 10, 25, 50} {
				_, err := unix.Seek(fd, all[i].off, 0)
				p.must(err)
				rest := p.dirents(fd, 400)
				p.equal(len(rest), len(all)-i-1)
				if len(rest) > 0 {
					p.equal(rest[0].name, all[i+1].name)
				}
			}
			_, err := unix.Seek(fd, 0, 0)
			p.must(err)
			p.file("new", "")
			p.equal(len(p.dirents(fd, 4096)), 53)
		}},
		{"readdir/removing while listing loses nothing", func(p *posix) {
			for i := range 200 {
				p.file(strings.Repeat("y", i+1), "")
			}
			p.must(os.RemoveAll(p.dir))
			p.gone(".")
		}},
		{"readdir/on a file", func(p *posix) {
			p.file("f", "")
			fd := p.open("f", unix.O_RDONLY, 0)
			_, err := unix.Getdents(fd, make([]byte, 100))
			p.errno(err, unix.ENOTDIR)
		}},
		{"readdir/read(2) on a directory", func(p *posix) {
			fd := p.open(".", unix.O_RDONLY, 0)
			_, err := unix.Read(fd, make([]byte, 10))
			p.errno(err, unix.EISDIR)
		}},
		{"readdir/of a removed directory", func(p *posix) {
			p.mkdir("d", 0o755)
			fd := p.open("d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
			p.must(unix.Rmdir(p.p("d")))
			_, err := unix.Getdents(fd, make([]byte, 1000))
			p.errno(err, unix.ENOENT)
		}},
		{"fsync/of a directory", func(p *posix) {
			fd := p.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
			p.must(unix.Fsync(fd))
			p.must(unix.Fdatasync(fd))
		}},
		{"readdir/permission", func(p *posix) {
			p.mkdir("d", 0o711)
			p.file("d/f", "x")
			p.as(alice, team, nil, func() {
				_, err := unix.Open(p.p("d"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
				p.errno(err, unix.EACCES)
				var st unix.Stat_t
				p.must(unix.Stat(p.p("d/f"), &st))
			})
			p.must(unix.Chmod(p.p("d"), 0o744))
			p.as(alice, team, nil, func() {
				entries, err := os.ReadDir(p.p("d"))
				p.must(err)
				p.equal(len(entries), 1)
				var st unix.Stat_t
				p.errno(unix.Stat(p.p("d/f"), &st), unix.EACCES)
			})
		}},
	}
}

// dirent is one entry as getdents64(2) gives it.
type dirent struct {
	ino  uint64
	off  int64
	typ  uint8
	name string
}

// dirents reads a directory from its position to the end with a small buffer.
func (p *posix) dirents(fd, size int) []dirent {
	p.Helper()
	var all []dirent
	b := make([]byte, size)
	for {
		n, err := unix.Getdents(fd, b)
		p.must(err)
		if n == 0 {
			return all
		}
		all = append(all, p.parse(b[:n])...)
	}
}

// parse takes getdents64's answer apart.
func (p *posix) parse(r []byte) []dirent {
	var all []dirent
	for len(r) > 0 {
		// struct linux_dirent64
		size := binary.NativeEndian.Uint16(r[16:])
		name := r[19:size]
		name = name[:bytes.IndexByte(name, 0)]
		all = append(all, dirent{binary.NativeEndian.Uint64(r), int64(binary.NativeEndian.Uint64(r[8:])), r[18], string(name)})
		r = r[size:]
	}
	return all
}

func specialCases() []posixCase {
	return []posixCase{
		{"mkfifo/carries data", func(p *posix) {
			p.must(unix.Mkfifo(p.p("q"), 0o600))
			p.equal(p.lstat("q").Mode&unix.S_IFMT, uint32(unix.S_IFIFO))
			done := make(chan error)
			go func() { done <- os.WriteFile(p.p("q"), []byte("through"), 0) }()
			b, err := os.ReadFile(p.p("q"))
			p.must(err)
			p.must(<-done)
			p.equal(string(b), "through")
		}},
		{"mknod/devices", func(p *posix) {
			p.must(unix.Mknod(p.p("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
			st := p.lstat("null")
			p.equal(st.Mode, uint32(unix.S_IFCHR|0o666))
			p.equal(st.Rdev, unix.Mkdev(1, 3))
			p.must(unix.Mknod(p.p("b"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))))
			p.equal(p.lstat("b").Rdev, unix.Mkdev(259, 70000))
			if p.mount {
				b, err := os.ReadFile(p.p("null"))
				p.must(err)
				p.equal(len(b), 0)
			}
			p.as(alice, team, nil, func() {
				p.errno(unix.Mknod(p.p("no"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.EPERM)
				p.must(unix.Mknod(p.p("reg"), unix.S_IFREG|0o640, 0))
			})
			p.equal(p.lstat("reg").Mode, uint32(unix.S_IFREG|0o640))
			p.errno(unix.Mknod(p.p("reg"), unix.S_IFREG|0o640, 0), unix.EEXIST)
		}},
		{"socket/bind and connect", func(p *posix) {
			s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			p.must(err)
			defer unix.Close(s)
			dir, err := unix.Open(p.dir, unix.O_PATH, 0)
			p.must(err)
			defer unix.Close(dir)
			name := filepath.Join("/proc/self/fd", itoa(dir), "sock")
			p.must(unix.Bind(s, &unix.SockaddrUnix{Name: name}))
			p.equal(p.lstat("sock").Mode&unix.S_IFMT, uint32(unix.S_IFSOCK))
			p.must(unix.Listen(s, 1))
			c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			p.must(err)
			defer unix.Close(c)
			p.must(unix.Connect(c, &unix.SockaddrUnix{Name: name}))
		}},
		{"exec/a program, also without read permission", func(p *posix) {
			b, err := os.ReadFile("/bin/true")
			p.must(err)
			p.must(os.WriteFile(p.p("prog"), b, 0o755))
			p.must(unix.Chmod(p.p("prog"), 0o111))
			for _, uid := range []uint32{0, alice} {
				proc, err := os.StartProcess(p.p("prog"), []string{"prog"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: nobody}}})
				p.must(err)
				state, err := proc.Wait()
				p.must(err)
				p.equal(state.ExitCode(), 0)
			}
			p.must(unix.Chmod(p.p("prog"), 0o644))
			_, err = os.StartProcess(p.p("prog"), []string{"prog"}, &os.ProcAttr{})
			p.errno(err, unix.EACCES)
		}},
	}
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + string(rune('0'+n%10))
}

func statfsCases() []posixCase {
	return []posixCase{{"statfs/real numbers", func(p *posix) {
		var s unix.Statfs_t
		p.must(unix.Statfs(p.dir, &s))
		if s.Blocks == 0 || s.Bfree == 0 || s.Bfree > s.Blocks || s.Bsize == 0 || s.Files == 0 {
			p.Fatalf("%+v", s)
		}
		p.equal(s.Namelen, int64(255))
	}}}
}
