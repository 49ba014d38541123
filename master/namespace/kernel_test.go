//go:build linux

package namespace

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// The kernel test runs random operations, by several users, on a tree of ours and on a real directory, and wants the same errors and the same
// trees. One thread is locked to the goroutine for good: it has its own root directory and file-system uid.

// kernel executes operations through system calls, as the user that became was called with.
type kernel struct{}

func (kernel) become(c Caller) error {
	// As root first: only root may change to another user.
	unix.RawSyscall(unix.SYS_SETFSUID, 0, 0, 0)
	groups := slices.Clone(c.Groups)
	var first *uint32
	if len(groups) > 0 {
		first = &groups[0]
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(first)), 0); e != 0 {
		return e
	}
	unix.RawSyscall(unix.SYS_SETFSGID, uintptr(c.GID), 0, 0)
	unix.RawSyscall(unix.SYS_SETFSUID, uintptr(c.UID), 0, 0)
	if got, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, uintptr(c.UID), 0, 0); uint32(got) != c.UID {
		return fmt.Errorf("fsuid is %d, want %d", got, c.UID)
	}
	return nil
}

// step is one random operation.
type step struct {
	kind     string
	a, b     string // absolute paths
	mode     uint32
	uid, gid int
	flag     int
}

func (s step) String() string {
	return fmt.Sprintf("%s %s %s mode %o owner %d:%d flag %d", s.kind, s.a, s.b, s.mode, s.uid, s.gid, s.flag)
}

// do runs a step on the kernel.
func (kernel) do(s step) error {
	switch s.kind {
	case "mkdir":
		return unix.Mkdir(s.a, s.mode)
	case "create":
		flags := unix.O_CREAT | unix.O_WRONLY | unix.O_NONBLOCK
		if s.flag&1 != 0 {
			flags |= unix.O_EXCL
		}
		if s.flag&2 != 0 {
			flags |= unix.O_TRUNC
		}
		fd, err := unix.Open(s.a, flags, s.mode)
		if err == nil {
			err = unix.Close(fd)
		}
		if errors.Is(err, unix.ENXIO) {
			err = nil // a fifo without a reader, found and permitted
		}
		return err
	case "fifo":
		return unix.Mknod(s.a, s.mode|unix.S_IFIFO, 0)
	case "device":
		return unix.Mknod(s.a, s.mode|unix.S_IFCHR, int(unix.Mkdev(1, 3)))
	case "symlink":
		return unix.Symlink(s.b, s.a)
	case "link":
		return unix.Linkat(unix.AT_FDCWD, s.a, unix.AT_FDCWD, s.b, 0)
	case "unlink":
		return unix.Unlink(s.a)
	case "rmdir":
		return unix.Rmdir(s.a)
	case "rename":
		return unix.Renameat2(unix.AT_FDCWD, s.a, unix.AT_FDCWD, s.b, uint(s.flag))
	case "chmod":
		return unix.Chmod(s.a, s.mode)
	case "chown":
		return unix.Lchown(s.a, s.uid, s.gid)
	case "truncate":
		return unix.Truncate(s.a, int64(s.flag))
	case "utime":
		return unix.UtimesNano(s.a, []unix.Timespec{{Sec: 5}, {Sec: 6}})
	case "touch":
		return unix.UtimesNano(s.a, nil)
	case "access":
		var st unix.Stat_t
		return unix.Stat(s.a, &st)
	case "setxattr":
		return unix.Setxattr(s.a, "user."+s.b, []byte("v"), s.flag)
	case "rmxattr":
		return unix.Removexattr(s.a, "user."+s.b)
	case "getxattr":
		_, err := unix.Getxattr(s.a, "user."+s.b, make([]byte, 10))
		return err
	}
	panic("unknown step " + s.kind)
}

func split(path string) (Ref, []byte) {
	path = strings.TrimRight(path, "/")
	i := strings.LastIndexByte(path, '/')
	return Ref{Path: []byte(path[:i+1])}, []byte(path[i+1:])
}

// do runs a step on the tree.
func (w *world) do(s step) error {
	return w.run(func(tx Txn, env Env) error {
		dir, name := split(s.a)
		at := Ref{Path: []byte(s.a)}
		create := func(mode uint32, args CreateArgs) error {
			args.Parent, args.Name, args.Mode = dir, name, mode
			c, err := Create(tx, env, args)
			if err == nil && c.Cut {
				old := c.Inode
				c.Inode.Length = 0
				err = SetFile(tx, env, c.ID, old, c.Inode)
			}
			return err
		}
		switch s.kind {
		case "mkdir":
			return create(TypeDir|s.mode&^0o6000, CreateArgs{Exclusive: true}) // mkdir(2) takes no setuid and setgid
		case "create":
			return create(TypeRegular|s.mode, CreateArgs{Exclusive: s.flag&1 != 0, Truncate: s.flag&2 != 0, Writing: true})
		case "fifo":
			return create(TypeFifo|s.mode, CreateArgs{Exclusive: true})
		case "device":
			return create(TypeChar|s.mode, CreateArgs{Exclusive: true, Rdev: 0x103})
		case "symlink":
			return create(TypeSymlink, CreateArgs{Exclusive: true, Target: []byte(s.b)})
		case "link":
			at.NoFollow = true
			to, name := split(s.b)
			_, _, err := Link(tx, env, at, to, name)
			return err
		case "unlink":
			return Remove(tx, env, dir, name, File)
		case "rmdir":
			return Remove(tx, env, dir, name, Directory)
		case "rename":
			to, newName := split(s.b)
			_, _, err := Rename(tx, env, RenameArgs{
				OldParent: dir, OldName: name, NewParent: to, NewName: newName,
				NoReplace: s.flag == unix.RENAME_NOREPLACE, Exchange: s.flag == unix.RENAME_EXCHANGE,
			})
			return err
		case "chmod":
			_, _, err := SetAttr(tx, env, at, AttrChange{Mode: &s.mode})
			return err
		case "chown":
			at.NoFollow = true
			var change AttrChange
			if s.uid >= 0 {
				uid := uint32(s.uid)
				change.UID = &uid
			}
			if s.gid >= 0 {
				gid := uint32(s.gid)
				change.GID = &gid
			}
			_, _, err := SetAttr(tx, env, at, change)
			return err
		case "truncate":
			id, old, n, err := ForTruncate(tx, env, at, 0, int64(s.flag))
			if err != nil {
				return err
			}
			n.Length = int64(s.flag)
			return SetFile(tx, env, id, old, n)
		case "utime":
			atime, mtime := int64(5e9), int64(6e9)
			_, _, err := SetAttr(tx, env, at, AttrChange{Atime: &atime, Mtime: &mtime})
			return err
		case "touch":
			_, _, err := SetAttr(tx, env, at, AttrChange{AtimeNow: true, MtimeNow: true})
			return err
		case "access":
			_, _, err := Resolve(tx, env.Caller, at)
			return err
		case "setxattr":
			_, _, err := SetXattr(tx, env, at, []byte("user."+s.b), []byte("v"), XattrFlags{Create: s.flag == unix.XATTR_CREATE, Replace: s.flag == unix.XATTR_REPLACE})
			return err
		case "rmxattr":
			_, _, err := RemoveXattr(tx, env, at, []byte("user."+s.b))
			return err
		case "getxattr":
			_, err := GetXattr(tx, env.Caller, at, []byte("user."+s.b))
			return err
		}
		panic("unknown step " + s.kind)
	})
}

var users = []Caller{{}, {}, {UID: 101, GID: 201}, {UID: 102, GID: 202, Groups: []uint32{201, 203}}, {UID: 103, GID: 203}}

// randomStep draws a step over few names, so that they meet.
func randomStep(r *rand.Rand) step {
	names := []string{"a", "b", "c", "d"}
	path := func() string {
		p := ""
		for range 1 + r.IntN(3) {
			n := names[r.IntN(len(names))]
			if r.IntN(25) == 0 {
				n = ".."
			}
			p += "/" + n
		}
		if strings.HasSuffix(p, "..") {
			p += "/" + names[r.IntN(len(names))]
		}
		return p
	}
	pick := func(list ...int) int { return list[r.IntN(len(list))] }
	kinds := []string{
		"mkdir", "mkdir", "mkdir", "create", "create", "fifo", "device", "symlink", "symlink", "link", "link", "unlink", "unlink", "rmdir", "rename", "rename",
		"rename", "rename", "chmod", "chmod", "chown", "chown", "truncate", "utime", "touch", "access", "setxattr", "rmxattr", "getxattr",
	}
	s := step{kind: kinds[r.IntN(len(kinds))], a: path(), b: path(), uid: pick(-1, 0, 101, 102), gid: pick(-1, 0, 201, 203)}
	s.mode = uint32(pick(0o777, 0o755, 0o700, 0o750, 0o070, 0o2777, 0o1777, 0o4755, 0o6711, 0o644, 0o2745, 0o7777, 0o555, 0o000))
	switch s.kind {
	case "create":
		s.flag = r.IntN(4)
	case "rename":
		s.flag = pick(0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE)
	case "truncate":
		s.flag = pick(0, 10, 5000)
	case "setxattr":
		s.flag = pick(0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE)
	case "symlink":
		switch r.IntN(4) {
		case 0:
			s.b = s.b[1:]
		case 1:
			s.b = "../" + s.b[1:]
		}
	}
	if s.uid < 0 && s.gid < 0 {
		s.gid = 203 // a chown of neither still drops setuid, which nobody can ask of us
	}
	if strings.HasSuffix(s.kind, "xattr") {
		s.b = names[r.IntN(2)]
	}
	return s
}

// treeLine describes one inode of either tree.
func treeLine(path string, mode, uid, gid, nlink uint32, length int64, target string, xattrs []string) string {
	if mode&TypeMask == TypeDir {
		length = 0
	}
	return fmt.Sprintf("%s %o %d:%d nlink %d length %d target %q xattrs %v", path, mode, uid, gid, nlink, length, target, xattrs)
}

func (kernel) tree() ([]string, error) {
	var out []string
	err := filepath.Walk("/", func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		target, _ := os.Readlink(path)
		buf := make([]byte, 1000)
		n, _ := unix.Llistxattr(path, buf)
		var xattrs []string
		for _, x := range bytes.Split(buf[:max(n, 0)], []byte{0}) {
			if len(x) > 0 {
				xattrs = append(xattrs, string(x))
			}
		}
		slices.Sort(xattrs)
		out = append(out, treeLine(path, st.Mode, st.Uid, st.Gid, uint32(st.Nlink), st.Size, target, xattrs))
		return nil
	})
	return out, err
}

func (m *memTxn) tree(dir dfs.InodeID, path string) []string {
	n := m.inodes[dir]
	out := []string{treeLine(path, n.Mode, n.UID, n.GID, n.Nlink, n.Length, string(n.Target), slices.Sorted(maps.Keys(m.xattrs[dir])))}
	for _, name := range slices.Sorted(maps.Keys(m.dentries[dir])) {
		out = append(out, m.tree(m.dentries[dir][name].Inode, strings.TrimSuffix(path, "/")+"/"+name)...)
	}
	return out
}

// hardlinkProtected reports whether the kernel forbids a link for a reason that POSIX and we do not know (fs.protected_hardlinks).
func hardlinkProtected(w *world, s step) bool {
	if s.kind != "link" || w.env.Caller.IsRoot() {
		return false
	}
	_, n, err := Resolve(w.m, w.env.Caller, Ref{Path: []byte(s.a), NoFollow: true})
	return err == nil && n.UID != w.env.Caller.UID
}

// deviceInSticky reports whether a step opens somebody's device in a sticky directory with O_CREAT, which the kernel refuses besides what POSIX
// says (may_create_in_sticky, for everything but what fs.protected_regular and fs.protected_fifos govern).
func deviceInSticky(w *world, s step) bool {
	dir, name := split(s.a)
	p, err := LookupPlace(w.m, w.env.Caller, dir, name)
	if err == nil && p.Inode.IsSymlink() {
		chase := walker{r: w.m, caller: w.env.Caller}
		p, err = chase.chase(p)
	}
	return s.kind == "create" && err == nil && p.Inode.Type() == TypeChar && p.Parent.Mode&Sticky != 0
}

// TestKernel compares with the kernel's file system.
func TestKernel(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for chroot and file-system uids")
	}
	for _, seed := range []uint64{1, 2} {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { testKernel(t, seed, 4_000) })
	}
}

func testKernel(t *testing.T, seed uint64, steps int) {
	dir, err := os.MkdirTemp("", "kernel")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	failure := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		failure <- compareWithKernel(t, dir, seed, steps)
	}()
	if err := <-failure; err != nil {
		t.Fatal(err)
	}
}

func compareWithKernel(t *testing.T, dir string, seed uint64, steps int) error {
	if _, _, e := unix.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_FS, 0, 0); e != 0 {
		return fmt.Errorf("unshare: %w", e)
	}
	unix.Umask(0)
	if err := errors.Join(unix.Chroot(dir), unix.Chdir("/"), unix.Chmod("/", 0o777)); err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(seed, 0))
	w, k := newWorld(t), kernel{}
	perm := uint32(0o777)
	if err := w.run(func(tx Txn, env Env) error {
		_, _, err := SetAttr(tx, env, Ref{}, AttrChange{Mode: &perm})
		return err
	}); err != nil {
		return err
	}
	outcomes := map[syscall.Errno]int{}
	for i := range steps {
		s := randomStep(r)
		w.env.Caller = users[r.IntN(len(users))]
		if hardlinkProtected(w, s) {
			continue
		}
		if err := k.become(w.env.Caller); err != nil {
			return fmt.Errorf("become %v: %w", w.env.Caller, err)
		}
		var want syscall.Errno
		if err := k.do(s); err != nil {
			errors.As(err, &want)
		}
		err := w.do(s)
		got := dfserr.Errno(err)
		outcomes[got]++
		if got == 0 && want == syscall.EACCES && deviceInSticky(w, s) {
			continue
		}
		if got != want {
			return fmt.Errorf("step %d, seed %d, caller %v: %v\nkernel says %v, we say %v (%v); tree before or after:\n%s", i, seed, w.env.Caller, s, want, got, err,
				strings.Join(w.m.tree(dfs.RootInode, "/"), "\n"))
		}
		if err := w.m.invariants(); err != nil {
			return fmt.Errorf("step %d, seed %d: %v: %w", i, seed, s, err)
		}
		if i%20 != 0 && err != nil {
			continue
		}
		if err := k.become(Caller{}); err != nil {
			return err
		}
		real, err := k.tree()
		if err != nil {
			return err
		}
		ours := w.m.tree(dfs.RootInode, "/")
		if !slices.Equal(real, ours) {
			return fmt.Errorf("step %d, seed %d, caller %v: %v\nkernel:\n%s\nours:\n%s", i, seed, w.env.Caller, s, strings.Join(real, "\n"), strings.Join(ours, "\n"))
		}
		if i%500 == 0 {
			if err := w.reclaimAll(2); err != nil {
				return err
			}
		}
	}
	for _, e := range []syscall.Errno{
		0, syscall.ENOENT, syscall.EEXIST, syscall.ENOTDIR, syscall.EISDIR, syscall.ENOTEMPTY, syscall.EINVAL, syscall.EACCES, syscall.EPERM, syscall.ELOOP, syscall.ENODATA,
	} {
		if outcomes[e] == 0 {
			return fmt.Errorf("no step ended with %v: %v", e, outcomes)
		}
	}
	t.Logf("%d steps: %v", steps, outcomes)
	return nil
}
