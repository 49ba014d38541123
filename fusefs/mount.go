package fusefs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"bazil.org/fuse"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// HelperName is the program bazil starts to mount: this binary plays it when started under that name
// (Helper), so that root needs no fuse3 package.
const HelperName = "fusermount3"

// Options say how to mount. The zero value mounts read-write with nothing cached by time.
type Options struct {
	Source     string // shown in the list of mounts
	ReadOnly   bool
	AllowOther bool
	NonEmpty   bool
	// AttrTimeout is how long the kernel may use attributes and names without asking. 0 asks every time, so that
	// changes by other clients are seen at once.
	AttrTimeout  time.Duration
	MaxReadahead uint32       // bytes; 0: 16 MiB
	Root         dfs.InodeID  // the directory to mount; 0: the cluster's root
	NoExec       bool         // programs on it cannot be run
	NoSetuid     bool         // setuid and setgid bits have no effect
	NoDevices    bool         // device nodes cannot be opened
	LocalLocks   bool         // locks are kept by the kernel for this mount alone, and other mounts do not see them
	Show         Show         // what stat(2) shows instead of the truth
	Logger       hclog.Logger // nil: silent
}

// Show overrides owner and permissions in what the kernel is told. The master checks permissions by the true ones all the
// same. Nil and zero change nothing.
type Show struct {
	UID, GID *uint32
	Umask    uint32 // taken off the permission bits
}

func (s *Show) apply(a *Attr) {
	if s.UID != nil {
		a.UID = *s.UID
	}
	if s.GID != nil {
		a.GID = *s.GID
	}
	if a.Mode&syscall.S_IFMT != syscall.S_IFLNK {
		a.Mode &^= s.Umask
	}
}

// Mount is a mounted file system.
type Mount struct {
	dir    string
	conn   *fuse.Conn
	server *Server
	done   chan struct{}
	err    error // of serving; valid after done is closed
}

// New mounts backend on dir and serves it until Unmount, or until somebody unmounts it. When it returns, the
// mount answers. A dead mount left on dir by a killed process is replaced.
func New(ctx context.Context, dir string, backend Backend, opts Options) (*Mount, error) {
	if opts.Logger == nil {
		opts.Logger = hclog.NewNullLogger()
	}
	if opts.MaxReadahead == 0 {
		opts.MaxReadahead = 16 * dfs.MiB
	}
	if opts.Root == 0 {
		opts.Root = dfs.RootInode
	}
	dir, err := checkDir(dir, opts.NonEmpty)
	if err != nil {
		return nil, err
	}
	conn, fd, err := connect(dir, opts)
	if err != nil {
		return nil, err
	}
	m := &Mount{dir: dir, conn: conn, server: newServer(conn, fd, backend, dir, opts), done: make(chan struct{})}
	go func() {
		defer close(m.done)
		m.err = m.server.Serve(context.WithoutCancel(ctx))
		conn.Close()
		syscall.Close(fd)
	}()
	setReadahead(dir, opts.MaxReadahead)
	return m, nil
}

// Done is closed when the file system is no longer mounted and all requests have ended.
func (m *Mount) Done() <-chan struct{} { return m.done }

// Err returns why serving ended, nil for an ordinary unmount. Valid after Done.
func (m *Mount) Err() error { return m.err }

// Unmount takes the file system away and waits until serving has ended. With lazy, a busy mount is detached: it is
// gone from the tree at once and ends when its last user does.
func (m *Mount) Unmount(ctx context.Context, lazy bool) error {
	if err := Unmount(m.dir, lazy); err != nil {
		return err
	}
	select {
	case <-m.done:
		return m.err
	case <-ctx.Done():
		return dfserr.Errorf(ctx.Err(), "unmounting %s: still in use", m.dir)
	}
}

// closingTime is how long Shutdown waits for a detached mount's last users.
const closingTime = 5 * time.Second

// Shutdown ends the mount for good: what open files have not reported yet is flushed, and a mount that is in use is
// detached; programs that still use it then get errors once this process has ended.
func (m *Mount) Shutdown(ctx context.Context) error {
	m.server.access.close()
	err := m.Unmount(ctx, false)
	if err == nil || !IsBusy(err) {
		return err
	}
	m.server.flushAll(ctx)
	ctx, cancel := context.WithTimeout(ctx, closingTime)
	defer cancel()
	err = m.Unmount(ctx, true)
	if errors.Is(err, context.DeadlineExceeded) {
		m.server.log.Warn("programs still use files of the mount", "dir", m.dir)
		m.server.flushAll(context.WithoutCancel(ctx))
		return nil
	}
	return err
}

// Unmount takes away whatever FUSE file system is mounted on dir.
func Unmount(dir string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(dir, flags)
	if os.Geteuid() != 0 && notAllowed(err) {
		if abs, absErr := filepath.Abs(dir); absErr == nil {
			if _, _, ok := MountedOn(abs); !ok {
				return fmt.Errorf("unmounting %s: %w", dir, notMounted)
			}
		}
		args := []string{"-u"}
		if lazy {
			args = append(args, "-z")
		}
		if out, helperErr := exec.Command(HelperName, append(args, dir)...).CombinedOutput(); helperErr != nil {
			return dfserr.Errorf(dfserr.ErrInUse, "unmounting %s: %s", dir, strings.TrimSpace(string(out)))
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", dir, err)
	}
	return nil
}

// checkDir returns the absolute mount point after taking away a dead mount from it.
func checkDir(dir string, nonEmpty bool) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(abs)
	if IsDead(err) {
		if err := Unmount(abs, true); err != nil {
			return "", fmt.Errorf("mount point %s holds a dead mount that cannot be removed; try: umount -l %s: %w", abs, abs, err)
		}
		info, err = os.Stat(abs)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", dfserr.Errorf(dfserr.ErrNotExist, "mount point %s; create it with: mkdir -p %s", abs, abs)
	case err != nil:
		return "", fmt.Errorf("mount point %s: %w", abs, err)
	case !info.IsDir():
		return "", dfserr.Errorf(dfserr.ErrNotDir, "mount point %s", abs)
	}
	if source, fs, ok := MountedOn(abs); ok && strings.HasPrefix(fs, "fuse") {
		return "", dfserr.Errorf(dfserr.ErrInUse, "mount point %s: already mounted (%s, %s); unmount it first with: dfs umount %s", abs, source, fs, abs)
	}
	if nonEmpty {
		return abs, nil
	}
	d, err := os.Open(abs)
	if err != nil {
		return "", fmt.Errorf("mount point %s: %w", abs, err)
	}
	defer d.Close()
	if _, err := d.Readdirnames(1); err != io.EOF {
		return "", dfserr.Errorf(dfserr.ErrNotEmpty, "mount point %s; mount over its files with -o nonempty, or choose an empty directory", abs)
	}
	return abs, nil
}

// MountedOn returns source and type of the file system whose mount point is exactly dir, an absolute path.
func MountedOn(dir string) (source, fstype string, ok bool) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", "", false
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) > 2 && unescapeMount(fields[1]) == dir {
			source, fstype, ok = unescapeMount(fields[0]), fields[2], true // the last one listed is on top
		}
	}
	return source, fstype, ok
}

// unescapeMount undoes the octal escapes of /proc/self/mounts.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// connect mounts and returns bazil's connection and our own duplicate of its descriptor.
func connect(dir string, opts Options) (*fuse.Conn, int, error) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return nil, 0, dfserr.Errorf(dfserr.ErrUnsupported, "/dev/fuse is missing; load the kernel's fuse module with: modprobe fuse")
	}
	restore, err := helperInPath()
	if err != nil {
		return nil, 0, err
	}
	defer restore()
	before := fuseDescriptors()
	extra := map[string]string{}
	if os.Geteuid() == 0 {
		for option, on := range map[string]bool{"dev": !opts.NoDevices, "suid": !opts.NoSetuid, "noexec": opts.NoExec} {
			if on {
				extra[option] = ""
			}
		}
	}
	options := []fuse.MountOption{
		fuse.FSName(opts.Source), fuse.Subtype("dfs"), fuse.DefaultPermissions(),
		fuse.MaxReadahead(opts.MaxReadahead), fuse.AsyncRead(), fuse.MaxBackground(128), fuse.CongestionThreshold(96), fuse.HandleKillPriv(),
		initFlags(fuse.InitAtomicTrunc|fuse.InitAutoInvalData, extra),
	}
	if opts.ReadOnly {
		options = append(options, fuse.ReadOnly())
	}
	if !opts.LocalLocks {
		options = append(options, fuse.LockingFlock(), fuse.LockingPOSIX())
	}
	if opts.AllowOther {
		options = append(options, fuse.AllowOther())
	}
	said := listenToHelper()
	conn, err := fuse.Mount(dir, options...)
	words := said()
	if err != nil {
		return nil, 0, mountError(dir, words, err)
	}
	for fd := range fuseDescriptors() {
		if before[fd] {
			continue
		}
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err == nil {
			return conn, dup, nil
		}
	}
	conn.Close()
	return nil, 0, dfserr.Errorf(dfserr.ErrUnsupported, "the connection to /dev/fuse was not found among this process's descriptors")
}

// listenToHelper collects what the program that mounts says, which bazil hands to the standard logger, until the function
// returned is called.
func listenToHelper() (said func() string) {
	var words bytes.Buffer
	out, flags := log.Writer(), log.Flags()
	log.SetOutput(&words)
	log.SetFlags(0)
	return func() string {
		log.SetOutput(out)
		log.SetFlags(flags)
		return strings.TrimSpace(strings.ReplaceAll(words.String(), "mount helper error: ", ""))
	}
}

// mountError explains a refused mount: words is what the helper said of it.
func mountError(dir, words string, err error) error {
	if words != "" {
		err = dfserr.Errorf(dfserr.ErrPermission, "%s", words)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("mounting on %s: %w; an ordinary user needs Debian's package fuse3, a directory of their own, and for -o allow_other the line user_allow_other in /etc/fuse.conf", dir, err)
	}
	return fmt.Errorf("mounting on %s: %w", dir, err)
}

// fuseDescriptors returns this process's descriptors of /dev/fuse.
func fuseDescriptors() map[int]bool {
	fds := map[int]bool{}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fds
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && target == "/dev/fuse" {
			if fd, err := strconv.Atoi(e.Name()); err == nil {
				fds[fd] = true
			}
		}
	}
	return fds
}

// initFlags is a mount option that bazil has no function for: it sets flags of the INIT exchange and options
// of the mount in bazil's unexported configuration. Both field names are checked by TestInitFlags; the module's version is pinned.
func initFlags(flags fuse.InitFlags, options map[string]string) fuse.MountOption {
	t := reflect.TypeOf(fuse.MountOption(nil))
	return reflect.MakeFunc(t, func(args []reflect.Value) []reflect.Value {
		config := args[0].Elem()
		*(*fuse.InitFlags)(unsafe.Pointer(config.FieldByName("initFlags").UnsafeAddr())) |= flags
		m := *(*map[string]string)(unsafe.Pointer(config.FieldByName("options").UnsafeAddr()))
		for k, v := range options {
			m[k] = v
		}
		return []reflect.Value{reflect.Zero(t.Out(0))}
	}).Interface().(fuse.MountOption)
}

// helperInPath puts a directory with this binary under HelperName first in PATH when running as root. restore undoes it.
func helperInPath() (restore func(), err error) {
	if os.Geteuid() != 0 {
		return func() {}, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "dfs-mount-")
	if err != nil {
		return nil, err
	}
	if err := os.Symlink(self, filepath.Join(dir, HelperName)); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	old := os.Getenv("PATH")
	os.Setenv("PATH", dir+string(os.PathListSeparator)+old)
	return func() {
		os.Setenv("PATH", old)
		os.RemoveAll(dir)
	}, nil
}

// setReadahead raises the mount's readahead window, which the kernel keeps at 128 KiB whatever was negotiated. It
// needs root; without it the mount works, slower.
func setReadahead(dir string, bytes uint32) {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return
	}
	name := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	// An error means no root: the mount reads on with the kernel's default.
	_ = os.WriteFile(name, []byte(strconv.Itoa(int(min(bytes, 4*dfs.MiB)/dfs.KiB))), 0o644)
}

// Helper is the mount helper: it does what bazil asks of fusermount3 (-o OPTIONS -- DIR, with a socket on
// descriptor 3 for the result). It returns an error for stderr.
func Helper(args []string) error {
	var opts, dir string
	for i := 0; i < len(args); i++ {
		switch {
		case args[i] == "-o" && i+1 < len(args):
			i++
			opts = args[i]
		case args[i] == "--" && i+1 < len(args):
			i++
			dir = args[i]
		}
	}
	if dir == "" {
		return dfserr.Errorf(dfserr.ErrInvalid, "usage: %s -o OPTIONS -- DIR", HelperName)
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/fuse: %w", err)
	}
	source, fstype, flags := "dfs", "fuse", uintptr(unix.MS_NOSUID|unix.MS_NODEV)
	data := []string{fmt.Sprintf("fd=%d", fd), "rootmode=40000", fmt.Sprintf("user_id=%d", os.Getuid()), fmt.Sprintf("group_id=%d", os.Getgid())}
	for _, o := range splitOptions(opts) {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "fsname":
			source = value
		case "subtype":
			fstype = "fuse." + value
		case "ro":
			flags |= unix.MS_RDONLY
		case "dev":
			flags &^= unix.MS_NODEV
		case "suid":
			flags &^= unix.MS_NOSUID
		case "noexec":
			flags |= unix.MS_NOEXEC
		case "allow_other", "default_permissions", "max_read":
			data = append(data, o)
		}
	}
	if err := unix.Mount(source, dir, fstype, flags, strings.Join(data, ",")); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	return unix.Sendmsg(3, []byte{0}, unix.UnixRights(fd), nil, 0)
}

// splitOptions cuts at commas that no backslash escapes, and takes the escapes away.
func splitOptions(s string) []string {
	var out []string
	var cur strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			cur.WriteByte(s[i])
		case s[i] == ',':
			out = append(out, cur.String())
			cur.Reset()
		default:
			cur.WriteByte(s[i])
		}
	}
	return append(out, cur.String())
}
