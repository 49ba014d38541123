package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"dfs/client"
	"dfs/fusefs"
	"dfs/internal/dfs"
)

// mountOptionHelp is what -o accepts, and what each means.
var mountOptionHelp = []struct{ name, usage string }{
	{"ro", "read-only"},
	{"allow_other", "other users may use the mount (the default for root)"},
	{"noallow_other", "only the user who mounts may"},
	{"default_permissions", "the kernel checks permissions too (always so)"},
	{"nonempty", "mount over a directory that is not empty"},
	{"subdir=PATH", "mount this directory of the cluster instead of its root"},
	{"local_locks", "file locks of this mount alone, kept by the kernel: other mounts do not see them"},
	{"attr_timeout=TIME", "use attributes and names for so long without asking [0]; others' changes are seen that much later"},
	{"max_readahead=SIZE", "how far the kernel reads ahead [16m]"},
	{"uid=N, gid=N", "show everything as owned by N"},
	{"umask=MODE", "show permissions without these bits"},
	{"noexec, nosuid, nodev", "as for any mount"},
	{"masters=A;B", "the masters, in fstab where the source is \"dfs\""},
	{"log_file=FILE", "where a background mount logs; log_level=info and so on says how much"},
}

// mountArgs is a command line of `dfs mount`, taken apart.
type mountArgs struct {
	masters    string // "" means the current cluster
	subdir     string
	dir        string
	background bool
	sloppy     bool // unknown options are passed over
	opts       fusefs.Options
	logLevel   string
	logFile    string
}

func newMountArgs() *mountArgs {
	return &mountArgs{logLevel: "warn", opts: fusefs.Options{AllowOther: os.Geteuid() == 0}}
}

// makeMountPoint makes dir, unless a killed mount is on it, and returns its absolute name.
func makeMountPoint(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil && !fusefs.IsDead(err) && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return dir, nil
}

// ignoredMountOptions are those of fstab that mean nothing here.
var ignoredMountOptions = []string{
	"rw", "defaults", "_netdev", "auto", "noauto", "user", "users", "nouser", "owner", "group", "exec", "suid", "dev", "async", "sync", "dirsync",
	"atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime", "nofail",
	"default_permissions", "comment", "big_writes", "intr",
}

// errUnknownOption marks an option that nobody knows, which mount -s lets pass.
var errUnknownOption = errors.New("unknown option")

// setOptions reads the value of one -o.
func (m *mountArgs) setOptions(list string) error {
	for o := range strings.SplitSeq(list, ",") {
		name, value, hasValue := strings.Cut(o, "=")
		if err := m.setOption(name, value, hasValue); err != nil && !(m.sloppy && errors.Is(err, errUnknownOption)) {
			return &usageError{text: fmt.Sprintf("mount: -o %s: %v", o, err)}
		}
	}
	return nil
}

func (m *mountArgs) setOption(name, value string, hasValue bool) (err error) {
	number := func(base int) *uint32 {
		n, perr := strconv.ParseUint(value, base, 32)
		if perr != nil {
			err = fmt.Errorf("%q is not a number", value)
		}
		v := uint32(n)
		return &v
	}
	switch name {
	case "":
	case "remount":
		return errors.New("a mount cannot be changed while it serves; unmount it and mount it again")
	case "ro":
		m.opts.ReadOnly = true
	case "allow_other":
		m.opts.AllowOther = true
	case "noallow_other":
		m.opts.AllowOther = false
	case "local_locks":
		m.opts.LocalLocks = true
	case "nonempty":
		m.opts.NonEmpty = true
	case "noexec":
		m.opts.NoExec = true
	case "nosuid":
		m.opts.NoSetuid = true
	case "nodev":
		m.opts.NoDevices = true
	case "subdir":
		m.subdir = value
	case "masters":
		m.masters = strings.ReplaceAll(value, ";", ",")
	case "log_file":
		m.logFile = value
	case "log_level":
		m.logLevel = value
	case "uid":
		m.opts.Show.UID = number(10)
	case "gid":
		m.opts.Show.GID = number(10)
	case "umask":
		m.opts.Show.Umask = *number(8) & 0o777
	case "attr_timeout":
		if m.opts.AttrTimeout, err = time.ParseDuration(value); err != nil {
			seconds, perr := strconv.ParseFloat(value, 64)
			if perr != nil || seconds < 0 || seconds > 1e6 {
				return fmt.Errorf("%q is not a time such as 1s or 200ms", value)
			}
			m.opts.AttrTimeout, err = time.Duration(seconds*float64(time.Second)), nil
		}
	case "max_readahead":
		var size byteSize
		if err := size.UnmarshalText([]byte(value)); err != nil {
			return err
		}
		if size < 4*dfs.KiB || size > dfs.GiB {
			return fmt.Errorf("%q: want 4k to 1g", value)
		}
		m.opts.MaxReadahead = uint32(size)
	default:
		if slices.Contains(ignoredMountOptions, name) || strings.HasPrefix(name, "x-") {
			return nil
		}
		return fmt.Errorf("%w%s", errUnknownOption, nearestMountOption(name))
	}
	if hasValue && value == "" {
		return errors.New("it needs a value")
	}
	return err
}

// nearestMountOption says which option was perhaps meant.
func nearestMountOption(name string) string {
	best, least := "", max(2, len(name)/2)
	for _, o := range mountOptionHelp {
		for known := range strings.SplitSeq(o.name, ", ") {
			known, _, _ = strings.Cut(known, "=")
			if d := editDistance(name, known); d < least {
				best, least = known, d
			}
		}
	}
	if best == "" {
		return " (see dfs mount --help)"
	}
	return "; did you mean " + best + "?"
}

// editDistance counts the letters to insert, delete or replace to get from a to b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j]+1, row[j+1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// setSource reads MASTERS[:/subdir], dfs://MASTERS/subdir, or none (for fstab: "dfs", "none").
func (m *mountArgs) setSource(s string) {
	if rest, ok := strings.CutPrefix(s, scheme); ok {
		host, path, found := strings.Cut(rest, "/")
		m.masters = host
		if found && path != "" {
			m.subdir = "/" + path
		}
		return
	}
	if masters, path, found := strings.Cut(s, ":/"); found {
		m.masters = masters
		if path != "" {
			m.subdir = "/" + path
		}
		return
	}
	if s != "dfs" && s != "none" {
		m.masters = s
	}
}

func mountCommand(env *environ) *cobra.Command {
	m := newMountArgs()
	var list []string
	long := "Mount the cluster on DIR. MASTERS is host:port[,host:port…]; without it the current cluster is mounted.\n\nOptions of -o, separated by commas:\n"
	for _, o := range mountOptionHelp {
		long += fmt.Sprintf("  %-22s %s\n", o.name, o.usage)
	}
	c := &cobra.Command{
		Use: "mount [-d] [-o OPTIONS] [MASTERS[:/DIR]] DIR", Short: "Mount the cluster as a file system", Long: long, Args: cobra.RangeArgs(1, 2),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, o := range list {
				if err := m.setOptions(o); err != nil {
					return err
				}
			}
			if len(args) == 2 {
				m.setSource(args[0])
			}
			m.dir = args[len(args)-1]
			return m.run(cmd.Context(), env)
		},
	}
	c.Flags().StringArrayVarP(&list, "options", "o", nil, "mount options, separated by commas")
	c.Flags().BoolVarP(&m.background, "daemon", "d", false, "serve in the background; return when the mount serves")
	c.Flags().StringVar(&m.logLevel, "log-level", m.logLevel, "error, warn, info, debug or trace")
	c.Flags().StringVar(&m.logFile, "log-file", "", "where a background mount logs")
	return c
}

func umountCommand(*environ) *cobra.Command {
	var lazy bool
	c := &cobra.Command{
		Use: "umount [-f] DIR", Aliases: []string{"unmount"}, Short: "Unmount what dfs mount has mounted", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			err := fusefs.Unmount(args[0], lazy)
			if fusefs.IsBusy(err) {
				return fmt.Errorf("%w; programs use it (see: fuser -vm %s); -f detaches it all the same", err, args[0])
			}
			if fusefs.IsNotMounted(err) {
				return fmt.Errorf("%s: nothing is mounted there", args[0])
			}
			return err
		},
	}
	c.Flags().BoolVarP(&lazy, "force", "f", false, "detach a mount that is in use: it ends when its last user does")
	return c
}

// readyVariable names, in the environment of a background mount, the descriptor on which it tells how mounting went.
const readyVariable = "DFS_MOUNT_READY"

func (m *mountArgs) run(ctx context.Context, env *environ) error {
	if env.getenv(readyVariable) != "" {
		return m.serveDaemon(ctx, env)
	}
	if m.background {
		return m.spawn(ctx, env)
	}
	return m.serve(ctx, env, env.err, func() { fmt.Fprintf(env.err, "%s is mounted; Ctrl-C unmounts it\n", m.dir) })
}

// serve mounts, calls ready, and returns when the mount has gone or ctx has ended and it was taken away.
func (m *mountArgs) serve(ctx context.Context, env *environ, logTo io.Writer, ready func()) (err error) {
	level := hclog.LevelFromString(m.logLevel)
	if level == hclog.NoLevel {
		return &usageError{text: fmt.Sprintf("mount: log level %q: want error, warn, info, debug or trace", m.logLevel)}
	}
	m.opts.Logger = hclog.New(&hclog.LoggerOptions{Name: "mount", Level: level, Output: logTo})
	opts := options{}
	if m.masters != "" {
		opts["masters"] = m.masters
	}
	where, err := findCluster(env, opts, nil)
	if err != nil {
		return err
	}
	a, err := m.attach(ctx, where)
	if err != nil {
		return err
	}
	ready()
	select {
	case <-a.mount.Done():
	case <-ctx.Done():
	}
	return a.detach(context.WithoutCancel(ctx))
}

// attached is a mount that serves, with its own connection to the cluster.
type attached struct {
	mount *fusefs.Mount
	c     *client.Client
}

// attach mounts the cluster. When it fails, nothing is left mounted.
func (m *mountArgs) attach(ctx context.Context, where target) (a *attached, err error) {
	c, err := client.Dial(ctx, client.Config{
		CacheNames: true,
		Masters:    where.masters, Logger: m.opts.Logger, Caller: &client.Caller{}, DialTimeout: mountDialTimeout, OpTimeout: mountPatience,
		AckTimeout: mountAckTimeout,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot reach the cluster at %s (from %s): %w", strings.Join(where.masters, ","), where.source, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	m.opts.Source = mountSource(where.masters, m.subdir)
	if m.subdir != "" {
		info, err := c.Stat(ctx, "/"+strings.Trim(m.subdir, "/"))
		if err != nil {
			return nil, fmt.Errorf("subdir: %w", err)
		}
		if !info.IsDir() {
			return nil, fmt.Errorf("subdir: %s is not a directory", m.subdir)
		}
		m.opts.Root = info.Attr.Inode
	}
	mount, err := fusefs.New(ctx, m.dir, fusefs.SDK(c), m.opts)
	if err != nil {
		return nil, err
	}
	return &attached{mount, c}, nil
}

// mountSource is what the list of mounts shows for a directory of a cluster.
func mountSource(masters []string, subdir string) string {
	return strings.Join(masters, ",") + ":/" + strings.Trim(subdir, "/")
}

// detach flushes, unmounts unless somebody else has, and ends the connection.
func (a *attached) detach(ctx context.Context) error {
	select {
	case <-a.mount.Done():
		return errors.Join(a.mount.Err(), a.c.Close())
	default:
		return errors.Join(a.mount.Shutdown(ctx), a.c.Close())
	}
}

// A mount waits longer than a command for a cluster that is away: programs on it know no retry. Mounting itself does not wait: who
// asked is told within five seconds that no master answers.
const (
	mountDialTimeout = 4 * time.Second
	mountPatience    = 10 * time.Minute
	mountAckTimeout  = 5 * time.Second
)

// spawn starts this command line again as a process of its own and returns when that says that it serves.
func (m *mountArgs) spawn(ctx context.Context, _ *environ) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(self, os.Args[1:]...) //nolint:noctx // it outlives this command
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), readyVariable+"=3")
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return errors.Join(err, w.Close())
	}
	if err := w.Close(); err != nil {
		return err
	}
	told := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(r) // what did not come is missing from the text
		told <- string(b)
	}()
	select {
	case text := <-told:
		switch {
		case text == readyText:
			return nil
		case text == "":
			return fmt.Errorf("the background process ended without mounting: %w", cmd.Wait())
		}
		_ = cmd.Wait() // its text says why
		return errors.New(text)
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), cmd.Process.Signal(syscall.SIGTERM))
	}
}

const readyText = "ready\n"

// serveDaemon is the background process.
func (m *mountArgs) serveDaemon(ctx context.Context, env *environ) error {
	fd, err := strconv.Atoi(env.getenv(readyVariable))
	if err != nil {
		return fmt.Errorf("%s: %w", readyVariable, err)
	}
	tell := os.NewFile(uintptr(fd), "ready")
	syscall.CloseOnExec(fd)
	logTo := io.Writer(io.Discard)
	if m.logFile != "" {
		f, err := os.OpenFile(m.logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			fmt.Fprint(tell, err)
			return err
		}
		defer f.Close()
		logTo = f
	}
	serving := false
	err = m.serve(ctx, env, logTo, func() {
		serving = true
		fmt.Fprint(tell, readyText)
		tell.Close() //nolint:errcheck // nothing more to tell
	})
	if !serving && err != nil {
		fmt.Fprint(tell, err)
	}
	return err
}

// asMountHelper runs this binary under one of the names by which others start it: mount(8)'s helper for fstab, and the
// one that mounts for the FUSE library.
func asMountHelper(env *environ, args []string) (code int, ok bool) {
	fail := func(err error) (int, bool) {
		if err != nil {
			fmt.Fprintf(env.err, "%s: %v\n", filepath.Base(args[0]), err)
			return exitFailed, true
		}
		return exitDone, true
	}
	switch filepath.Base(args[0]) {
	case fusefs.HelperName:
		return fail(fusefs.Helper(args[1:]))
	case "mount.dfs", "mount.fuse.dfs":
		m, err := parseMountHelper(args[1:])
		if err != nil || m == nil {
			return fail(err)
		}
		ctx, stop := interruptible(context.Background())
		defer stop()
		return fail(m.run(ctx, env))
	}
	return 0, false
}

// parseMountHelper reads what mount(8) gives: SOURCE DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]. With -f (fake) there is
// nothing to do, and it returns nil.
func parseMountHelper(args []string) (*mountArgs, error) {
	m := newMountArgs()
	m.background = true
	var operands, lists []string
	fake := false
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case a == "-o" && i+1 < len(args):
			i++
			lists = append(lists, args[i])
		case (a == "-N" || a == "-t") && i+1 < len(args):
			i++
		case strings.HasPrefix(a, "-"):
			fake = fake || strings.Contains(a, "f")
			m.sloppy = m.sloppy || strings.Contains(a, "s")
		default:
			operands = append(operands, a)
		}
	}
	for _, list := range lists {
		if err := m.setOptions(list); err != nil {
			return nil, err
		}
	}
	if len(operands) != 2 {
		return nil, fmt.Errorf("want SOURCE and DIR, got %q", operands)
	}
	if fake {
		return nil, nil
	}
	m.setSource(operands[0])
	m.dir = operands[1]
	return m, nil
}
