package fusefs_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dfs/internal/dfs"
)

func ioCases() []posixCase {
	return []posixCase{
		{"write/small, growing over the inline limit", func(p *posix) {
			fd := p.open("f", unix.O_CREAT|unix.O_RDWR, 0o644)
			var want []byte
			for i := range 40 {
				b := bytes.Repeat([]byte{byte('a' + i%26)}, 300)
				_, err := unix.Write(fd, b)
				p.must(err)
				want = append(want, b...)
				var st unix.Stat_t
				p.must(unix.Fstat(fd, &st))
				p.equal(st.Size, int64(len(want)))
			}
			p.content("f", string(want))
		}},
		{"write/holes read as zeros", func(p *posix) {
			fd := p.open("f", unix.O_CREAT|unix.O_RDWR, 0o644)
			_, err := unix.Pwrite(fd, []byte("end"), 3<<20)
			p.must(err)
			_, err = unix.Pwrite(fd, []byte("mid"), 5000)
			p.must(err)
			want := make([]byte, 3<<20+3)
			copy(want[5000:], "mid")
			copy(want[3<<20:], "end")
			p.content("f", string(want))
		}},
		{"write/far out", func(p *posix) {
			fd := p.open("f", unix.O_CREAT|unix.O_RDWR, 0o644)
			at := int64(1) << 43
			if p.mount {
				at = 1<<53 - 4096
			}
			_, err := unix.Pwrite(fd, []byte("far"), at)
			p.must(err)
			p.equal(p.lstat("f").Size, at+3)
			b := make([]byte, 10)
			n, err := unix.Pread(fd, b, at)
			p.must(err)
			p.equal(string(b[:n]), "far")
			n, err = unix.Pread(fd, b, at/2)
			p.must(err)
			p.equal(n, 10)
			_, err = unix.Pwrite(fd, []byte("x"), math.MaxInt64-1)
			if !errors.Is(err, unix.EFBIG) && !errors.Is(err, unix.EINVAL) {
				p.Fatal(err)
			}
		}},
		{"write/O_APPEND", func(p *posix) {
			for _, size := range []int{10, 6000} {
				name := fmt.Sprint("f", size)
				a := p.open(name, unix.O_CREAT|unix.O_WRONLY|unix.O_APPEND, 0o644)
				b := p.open(name, unix.O_WRONLY|unix.O_APPEND, 0)
				var want []byte
				for i := range 10 {
					rec := bytes.Repeat([]byte{byte('0' + i)}, size)
					fd := a
					if i%2 == 1 {
						fd = b
					}
					_, err := unix.Seek(fd, 0, 0)
					p.must(err)
					_, err = unix.Write(fd, rec)
					p.must(err)
					want = append(want, rec...)
				}
				p.content(name, string(want))
			}
		}},
		{"write/position after O_APPEND", func(p *posix) {
			p.file("f", "12345")
			fd := p.open("f", unix.O_RDWR|unix.O_APPEND, 0)
			_, err := unix.Write(fd, []byte("678"))
			p.must(err)
			at, err := unix.Seek(fd, 0, 1)
			p.must(err)
			p.equal(at, int64(8))
		}},
		{"write/concurrent appends keep every line", func(p *posix) {
			var wg sync.WaitGroup
			for w := range 4 {
				wg.Go(func() {
					f, err := os.OpenFile(p.p("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
					if err != nil {
						p.Error(err)
						return
					}
					defer f.Close()
					for i := range 100 {
						if _, err := fmt.Fprintf(f, "writer %d line %03d %s\n", w, i, strings.Repeat("#", i)); err != nil {
							p.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			checkLog(p, p.p("log"), 4, 100)
		}},
		{"write/handle's mode is enforced", func(p *posix) {
			p.file("f", "abc")
			r, w := p.open("f", unix.O_RDONLY, 0), p.open("f", unix.O_WRONLY, 0)
			_, err := unix.Write(r, []byte("x"))
			p.errno(err, unix.EBADF)
			_, err = unix.Read(w, make([]byte, 1))
			p.errno(err, unix.EBADF)
			if err := unix.Ftruncate(r, 0); !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EBADF) {
				p.Fatal(err)
			}
		}},
		{"write/partial overwrite through O_WRONLY", func(p *posix) {
			p.file("f", strings.Repeat("a", 20000))
			fd := p.open("f", unix.O_WRONLY, 0)
			_, err := unix.Pwrite(fd, []byte("BBB"), 9999)
			p.must(err)
			p.content("f", strings.Repeat("a", 9999)+"BBB"+strings.Repeat("a", 20000-10002))
		}},
		{"write/O_SYNC and O_DSYNC", func(p *posix) {
			for i, flag := range []int{unix.O_SYNC, unix.O_DSYNC} {
				fd := p.open(fmt.Sprint("f", i), unix.O_CREAT|unix.O_WRONLY|flag, 0o644)
				_, err := unix.Write(fd, bytes.Repeat([]byte("s"), 10000))
				p.must(err)
				p.content(fmt.Sprint("f", i), strings.Repeat("s", 10000))
			}
		}},
		{"write/O_DIRECT", func(p *posix) {
			fd := p.open("f", unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT, 0o644)
			m, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
			p.must(err)
			defer unix.Munmap(m)
			for i := range m {
				m[i] = byte(i / 4096)
			}
			n, err := unix.Pwrite(fd, m, 0)
			p.must(err)
			p.equal(n, len(m))
			want := string(m)
			clear(m)
			n, err = unix.Pread(fd, m, 0)
			p.must(err)
			p.equal(n, len(m))
			p.equal(string(m) == want, true)
			p.content("f", want)
		}},
		{"write/buffered and direct handles agree", func(p *posix) {
			p.file("f", strings.Repeat("a", 8192))
			buffered, direct := p.open("f", unix.O_RDWR, 0), p.open("f", unix.O_RDWR|unix.O_DIRECT, 0)
			b := make([]byte, 8192)
			_, err := unix.Pread(buffered, b, 0)
			p.must(err)
			m, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
			p.must(err)
			defer unix.Munmap(m)
			for i := range m {
				m[i] = 'd'
			}
			_, err = unix.Pwrite(direct, m, 4096)
			p.must(err)
			_, err = unix.Pread(buffered, b, 0)
			p.must(err)
			p.equal(string(b), strings.Repeat("a", 4096)+strings.Repeat("d", 4096))
		}},
		{"read/at and past the end", func(p *posix) {
			p.file("f", "12345")
			fd := p.open("f", unix.O_RDONLY, 0)
			b := make([]byte, 10)
			n, err := unix.Pread(fd, b, 3)
			p.must(err)
			p.equal(n, 2)
			n, err = unix.Pread(fd, b, 5)
			p.must(err)
			p.equal(n, 0)
			n, err = unix.Pread(fd, b, 1<<40)
			p.must(err)
			p.equal(n, 0)
		}},
		{"seek/end, and past it", func(p *posix) {
			p.file("f", "12345")
			fd := p.open("f", unix.O_RDWR, 0)
			at, err := unix.Seek(fd, -2, 2)
			p.must(err)
			p.equal(at, int64(3))
			_, err = unix.Seek(fd, -10, 0)
			p.errno(err, unix.EINVAL)
			_, err = unix.Seek(fd, 10, 2)
			p.must(err)
			_, err = unix.Write(fd, []byte("x"))
			p.must(err)
			p.equal(p.lstat("f").Size, int64(16))
		}},
		{"read/readv and writev", func(p *posix) {
			fd := p.open("f", unix.O_CREAT|unix.O_RDWR, 0o644)
			n, err := unix.Pwritev(fd, [][]byte{[]byte("abc"), bytes.Repeat([]byte("d"), 5000), []byte("e")}, 100)
			p.must(err)
			p.equal(n, 5004)
			a, b := make([]byte, 103), make([]byte, 10)
			n, err = unix.Preadv(fd, [][]byte{a, b}, 0)
			p.must(err)
			p.equal(n, 113)
			p.equal(string(a[100:])+string(b), "abc"+strings.Repeat("d", 10))
		}},
		{"copy/copy_file_range and sendfile", func(p *posix) {
			content := strings.Repeat("0123456789", 50000)
			p.file("f", content)
			in, out := p.open("f", unix.O_RDONLY, 0), p.open("g", unix.O_CREAT|unix.O_WRONLY, 0o644)
			for left := len(content); left > 0; {
				n, err := unix.CopyFileRange(in, nil, out, nil, left, 0)
				p.must(err)
				left -= n
			}
			p.content("g", content)
			out = p.open("h", unix.O_CREAT|unix.O_WRONLY, 0o644)
			off := int64(0)
			for int(off) < len(content) {
				_, err := unix.Sendfile(out, in, &off, len(content))
				p.must(err)
			}
			p.content("h", content)
		}},
		{"fsync/and fdatasync", func(p *posix) {
			fd := p.open("f", unix.O_CREAT|unix.O_RDWR, 0o644)
			for _, n := range []int{100, 100000} {
				_, err := unix.Write(fd, make([]byte, n))
				p.must(err)
				p.must(unix.Fsync(fd))
				p.must(unix.Fdatasync(fd))
			}
			p.must(unix.Fsync(p.open("f", unix.O_RDONLY, 0)))
		}},
		{"close/of a duplicate leaves the other usable", func(p *posix) {
			fd := p.open("f", unix.O_CREAT|unix.O_RDWR, 0o644)
			dup, err := unix.Dup(fd)
			p.must(err)
			_, err = unix.Write(dup, bytes.Repeat([]byte("1"), 5000))
			p.must(err)
			p.must(unix.Close(dup))
			_, err = unix.Write(fd, bytes.Repeat([]byte("2"), 5000))
			p.must(err)
			p.equal(p.lstat("f").Size, int64(10000))
			p.content("f", strings.Repeat("1", 5000)+strings.Repeat("2", 5000))
		}},
	}
}

// checkLog checks that every line of every writer is there once, whole, and in that writer's order.
func checkLog(p interface {
	Fatalf(string, ...any)
	Helper()
}, name string, writers, lines int,
) {
	p.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		p.Fatalf("%v", err)
	}
	next := make([]int, writers)
	for _, line := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		var w, i int
		if _, err := fmt.Sscanf(line, "writer %d line %d", &w, &i); err != nil || w < 0 || w >= writers {
			p.Fatalf("torn line %q", line)
		}
		if want := fmt.Sprintf("writer %d line %03d %s", w, next[w], strings.Repeat("#", next[w])); line != want {
			p.Fatalf("got line %q, want %q", line, want)
		}
		next[w]++
	}
	for w, n := range next {
		if n != lines {
			p.Fatalf("writer %d has %d lines, want %d", w, n, lines)
		}
	}
}

func truncCases() []posixCase {
	return []posixCase{
		{"truncate/cut and grow", func(p *posix) {
			for _, size := range []int{100, 3000, 5000, 300000} {
				name := fmt.Sprint("f", size)
				p.file(name, strings.Repeat("x", size))
				p.must(unix.Truncate(p.p(name), int64(size/2)))
				p.content(name, strings.Repeat("x", size/2))
				p.must(unix.Truncate(p.p(name), int64(size*2)))
				p.content(name, strings.Repeat("x", size/2)+strings.Repeat("\x00", size*2-size/2))
			}
		}},
		{"truncate/cut bytes do not come back", func(p *posix) {
			fd := p.open("f", unix.O_CREAT|unix.O_RDWR, 0o644)
			_, err := unix.Write(fd, bytes.Repeat([]byte("s"), 50000))
			p.must(err)
			p.must(unix.Ftruncate(fd, 10001))
			_, err = unix.Pwrite(fd, []byte("E"), 60000)
			p.must(err)
			p.content("f", strings.Repeat("s", 10001)+strings.Repeat("\x00", 60000-10001)+"E")
		}},
		{"truncate/open handle writes on", func(p *posix) {
			fd := p.open("f", unix.O_CREAT|unix.O_RDWR, 0o644)
			_, err := unix.Write(fd, bytes.Repeat([]byte("1"), 20000))
			p.must(err)
			p.must(unix.Truncate(p.p("f"), 0))
			_, err = unix.Write(fd, []byte("2"))
			p.must(err)
			p.content("f", strings.Repeat("\x00", 20000)+"2")
			p.must(unix.Ftruncate(fd, 0))
			_, err = unix.Pwrite(fd, bytes.Repeat([]byte("3"), 10000), 0)
			p.must(err)
			p.content("f", strings.Repeat("3", 10000))
			p.must(unix.Close(fd))
			p.content("f", strings.Repeat("3", 10000))
		}},
		{"truncate/length after close is that of the cut", func(p *posix) {
			fd := p.open("f", unix.O_CREAT|unix.O_RDWR, 0o644)
			_, err := unix.Write(fd, bytes.Repeat([]byte("1"), 20000))
			p.must(err)
			p.must(unix.Ftruncate(fd, 777))
			p.must(unix.Close(fd))
			p.equal(p.lstat("f").Size, int64(777))
			time.Sleep(50 * time.Millisecond) // what follows a close in the background
			p.equal(p.lstat("f").Size, int64(777))
		}},
		{"truncate/errors", func(p *posix) {
			p.file("f", "x")
			p.mkdir("d", 0o755)
			p.errno(unix.Truncate(p.p("f"), -1), unix.EINVAL)
			p.errno(unix.Truncate(p.p("d"), 0), unix.EISDIR)
			p.errno(unix.Truncate(p.p("none"), 0), unix.ENOENT)
			p.as(alice, team, nil, func() { p.errno(unix.Truncate(p.p("f"), 0), unix.EACCES) })
			if p.mount {
				p.errno(unix.Truncate(p.p("f"), dfs.MaxFileLength+1), unix.EFBIG)
			}
		}},
		{"fallocate/grows, or keeps the size", func(p *posix) {
			p.file("f", "abc")
			fd := p.open("f", unix.O_RDWR, 0)
			p.must(unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 100000))
			p.equal(p.lstat("f").Size, int64(3))
			p.must(unix.Fallocate(fd, 0, 0, 100000))
			p.content("f", "abc"+strings.Repeat("\x00", 99997))
			p.must(unix.Fallocate(fd, 0, 10, 10))
			p.equal(p.lstat("f").Size, int64(100000))
			p.errno(unix.Fallocate(fd, 0, 0, 0), unix.EINVAL)
			p.errno(unix.Fallocate(p.open("f", unix.O_RDONLY, 0), 0, 0, 10), unix.EBADF)
		}},
		{"fallocate/punch hole", func(p *posix) {
			for _, size := range []int{3000, 200000} {
				name := fmt.Sprint("f", size)
				p.file(name, strings.Repeat("x", size))
				fd := p.open(name, unix.O_RDWR, 0)
				b := make([]byte, size)
				_, err := unix.Pread(fd, b, 0)
				p.must(err)
				p.must(unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 100, int64(size)/2))
				want := strings.Repeat("x", 100) + strings.Repeat("\x00", size/2) + strings.Repeat("x", size-size/2-100)
				p.content(name, want)
				p.must(unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(size)-10, 1000))
				p.content(name, want[:size-10]+strings.Repeat("\x00", 10))
			}
		}},
		{"fallocate/zero range", func(p *posix) {
			p.file("f", strings.Repeat("x", 20000))
			fd := p.open("f", unix.O_RDWR, 0)
			p.must(unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 19000, 2000))
			p.content("f", strings.Repeat("x", 19000)+strings.Repeat("\x00", 2000))
		}},
	}
}

func mapCases() []posixCase {
	return []posixCase{
		{"mmap/shared writes reach the file", func(p *posix) {
			p.file("f", strings.Repeat("a", 10000))
			fd := p.open("f", unix.O_RDWR, 0)
			m, err := unix.Mmap(fd, 0, 10000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			p.must(err)
			p.equal(m[9999], byte('a'))
			copy(m[4000:], "MAPPED")
			p.must(unix.Msync(m, unix.MS_SYNC))
			p.content("f", strings.Repeat("a", 4000)+"MAPPED"+strings.Repeat("a", 10000-4006))
			copy(m[8000:], "LATE")
			p.must(unix.Munmap(m))
			p.must(unix.Close(fd))
			p.content("f", strings.Repeat("a", 4000)+"MAPPED"+strings.Repeat("a", 8000-4006)+"LATE"+strings.Repeat("a", 10000-8004))
			p.equal(p.lstat("f").Size, int64(10000))
		}},
		{"mmap/sees write(2) and the other way round", func(p *posix) {
			p.file("f", strings.Repeat("a", 8192))
			fd := p.open("f", unix.O_RDWR, 0)
			m, err := unix.Mmap(fd, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			p.must(err)
			defer unix.Munmap(m)
			_ = m[0] + m[5000]
			_, err = unix.Pwrite(fd, []byte("written"), 5000)
			p.must(err)
			p.equal(string(m[5000:5007]), "written")
			copy(m[100:], "mapped")
			b := make([]byte, 6)
			_, err = unix.Pread(fd, b, 100)
			p.must(err)
			p.equal(string(b), "mapped")
		}},
		{"mmap/private writes stay private", func(p *posix) {
			p.file("f", strings.Repeat("a", 4096))
			fd := p.open("f", unix.O_RDONLY, 0)
			m, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
			p.must(err)
			m[0] = 'z'
			p.must(unix.Munmap(m))
			p.content("f", strings.Repeat("a", 4096))
		}},
		{"mmap/outlives the descriptor and the name", func(p *posix) {
			p.file("f", strings.Repeat("a", 9000))
			fd, err := unix.Open(p.p("f"), unix.O_RDWR, 0)
			p.must(err)
			m, err := unix.Mmap(fd, 0, 9000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			p.must(err)
			p.must(unix.Close(fd))
			p.must(unix.Link(p.p("f"), p.p("g")))
			p.must(unix.Unlink(p.p("f")))
			m[4097] = 'M'
			p.must(unix.Msync(m, unix.MS_SYNC))
			p.equal(m[8999], byte('a'))
			p.must(unix.Munmap(m))
			p.content("g", strings.Repeat("a", 4097)+"M"+strings.Repeat("a", 9000-4098))
		}},
		{"mmap/truncation shows in the mapping", func(p *posix) {
			p.file("f", strings.Repeat("a", 4096))
			fd := p.open("f", unix.O_RDWR, 0)
			m, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			p.must(err)
			defer unix.Munmap(m)
			p.equal(m[1000], byte('a'))
			p.must(unix.Ftruncate(fd, 500))
			p.must(unix.Ftruncate(fd, 4096))
			p.equal(m[499], byte('a'))
			p.equal(m[1000], byte(0))
		}},
	}
}

func lockCases() []posixCase {
	return []posixCase{
		{"flock/excludes between descriptors", func(p *posix) {
			p.file("f", "")
			a, b := p.open("f", unix.O_RDWR, 0), p.open("f", unix.O_RDWR, 0)
			p.must(unix.Flock(a, unix.LOCK_EX))
			p.errno(unix.Flock(b, unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
			p.must(unix.Flock(a, unix.LOCK_SH))
			p.must(unix.Flock(b, unix.LOCK_SH|unix.LOCK_NB))
			p.must(unix.Flock(b, unix.LOCK_UN))
			p.must(unix.Flock(a, unix.LOCK_EX|unix.LOCK_NB))
			got := make(chan error)
			go func() { got <- unix.Flock(b, unix.LOCK_EX) }()
			p.must(unix.Flock(a, unix.LOCK_UN))
			p.must(<-got)
		}},
		{"fcntl/open file description locks by range", func(p *posix) {
			p.file("f", strings.Repeat("x", 100))
			a, b := p.open("f", unix.O_RDWR, 0), p.open("f", unix.O_RDWR, 0)
			lock := func(fd int, typ int16, from, n int64) error {
				return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: typ, Start: from, Len: n})
			}
			p.must(lock(a, unix.F_WRLCK, 0, 50))
			p.must(lock(b, unix.F_WRLCK, 50, 50))
			p.errno(lock(b, unix.F_RDLCK, 49, 1), unix.EAGAIN)
			p.must(lock(a, unix.F_UNLCK, 10, 20))
			p.must(lock(b, unix.F_WRLCK, 10, 20))
			p.errno(lock(b, unix.F_WRLCK, 9, 1), unix.EAGAIN)
			got := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 5}
			p.must(unix.FcntlFlock(uintptr(b), unix.F_OFD_GETLK, &got))
			p.equal(got.Type, int16(unix.F_WRLCK))
			p.equal(got.Len, int64(10))
		}},
	}
}

func permCases() []posixCase {
	return []posixCase{
		{"perm/table of mode bits and users", func(p *posix) {
			for mode := uint32(0); mode <= 0o777; mode += 0o111 / 3 * 7 {
				name := fmt.Sprintf("f%03o", mode)
				p.file(name, "x")
				p.must(unix.Chown(p.p(name), alice, team))
				p.must(unix.Chmod(p.p(name), mode))
				for _, u := range []struct {
					uid, gid int
					groups   []int
					shift    uint
				}{{alice, nobody, nil, 6}, {bob, team, nil, 3}, {bob, nobody, []int{team}, 3}, {bob, nobody, nil, 0}} {
					bits := mode >> u.shift & 7
					p.as(u.uid, u.gid, u.groups, func() {
						for _, want := range []struct {
							flag int
							bit  uint32
						}{{unix.O_RDONLY, 4}, {unix.O_WRONLY, 2}, {unix.O_RDWR, 6}} {
							fd, err := unix.Open(p.p(name), want.flag, 0)
							if ok := bits&want.bit == want.bit; ok != (err == nil) || err != nil && !errors.Is(err, unix.EACCES) {
								p.Errorf("mode %03o, uid %d gid %d groups %v, flag %d: %v", mode, u.uid, u.gid, u.groups, want.flag, err)
							}
							if err == nil {
								unix.Close(fd)
							}
						}
						for _, bit := range []uint32{1, 2, 4} {
							err := unix.Access(p.p(name), bit)
							if ok := bits&bit != 0; ok != (err == nil) {
								p.Errorf("mode %03o, uid %d: access %d: %v", mode, u.uid, bit, err)
							}
						}
					})
				}
			}
		}},
		{"perm/search permission on every directory of a path", func(p *posix) {
			p.mkdir("a", 0o755)
			p.mkdir("a/b", 0o755)
			p.file("a/b/f", "x")
			p.must(unix.Chmod(p.p("a"), 0o700))
			p.as(bob, nobody, nil, func() {
				var st unix.Stat_t
				p.errno(unix.Stat(p.p("a/b/f"), &st), unix.EACCES)
				_, err := unix.Open(p.p("a/b/f"), unix.O_RDONLY, 0)
				p.errno(err, unix.EACCES)
			})
			p.must(unix.Chmod(p.p("a"), 0o711))
			p.as(bob, nobody, nil, func() {
				var st unix.Stat_t
				p.must(unix.Stat(p.p("a/b/f"), &st))
			})
		}},
		{"perm/supplementary groups count at once", func(p *posix) {
			p.mkdir("d", 0o770)
			p.must(unix.Chown(p.p("d"), 0, team))
			p.must(unix.Chmod(p.p("d"), 0o770))
			p.as(bob, nobody, nil, func() { p.errno(unix.Mkdir(p.p("d/x"), 0o755), unix.EACCES) })
			p.as(bob, nobody, []int{team}, func() { p.must(unix.Mkdir(p.p("d/x"), 0o755)) })
			p.equal(p.lstat("d/x").Gid, uint32(nobody))
		}},
		{"perm/root needs an x bit to execute", func(p *posix) {
			p.file("f", "x")
			p.errno(unix.Access(p.p("f"), unix.X_OK), unix.EACCES)
			p.must(unix.Chmod(p.p("f"), 0o010))
			p.must(unix.Access(p.p("f"), unix.X_OK))
			p.must(unix.Access(p.p("f"), unix.R_OK|unix.W_OK))
		}},
	}
}
