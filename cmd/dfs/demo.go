package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"dfs/internal/dfs"
)

// The demo shows what the system is for, on real processes: store many files and a large one, lose a chunkserver in
// the middle of a write, go on, heal, and give every byte back.

const (
	demoServers  = 4
	demoMinFiles = 10_000
	demoBigFile  = int64(dfs.GiB)
	// demoKillAt is how much of the large file is written when the chunkserver is killed.
	demoKillAt = demoBigFile * 2 / 5
	// demoDeadAfter is how soon the master gives a silent chunkserver up, for the sake of an impatient audience.
	demoDeadAfter = 3 * time.Second
	demoHealLimit = 2 * time.Minute
)

// demo is one run.
type demo struct {
	env     *environ
	cluster *localCluster
	tree    string
	big     int64
	begin   time.Time

	files, links, treeBytes int64
	treeTime                time.Duration
	bigSum                  [sha256.Size]byte
	bigTime, stall          time.Duration
	killed                  *localNode
	killedRole              string
	killedAt                time.Time
	readFiles, readBytes    int64
	readTime, healTime      time.Duration
	checked                 int64 // chunks
	restart                 time.Duration
	healing                 chan error // gets the watcher's result
}

func demoCommand(env *environ) *cobra.Command {
	var tree, dir, size string
	var keep bool
	c := &cobra.Command{
		Use: "demo", Short: "Watch a cluster of processes lose a chunkserver and no byte", Args: cobra.NoArgs,
		Long: `Starts a master and 4 chunkservers as processes in a temporary directory, stores the Go source tree and a large
random file, kills a chunkserver (kill -9) that holds a replica of the chunk being written, finishes, reads everything
back through a fresh client and compares SHA-256, waits until every chunk has three replicas again, restarts the dead
server, prints a table and stops everything. The exit status is 0 only if all of it held.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var bytes byteSize
			if err := bytes.UnmarshalText([]byte(size)); err != nil {
				return &usageError{text: "--size: " + err.Error()}
			}
			return runDemo(cmd.Context(), env, tree, dir, int64(bytes), keep)
		},
	}
	c.Flags().StringVar(&tree, "tree", "", "directory to store (default: $(go env GOROOT))")
	c.Flags().StringVar(&dir, "dir", "", "where the cluster lives (default: a temporary directory)")
	c.Flags().StringVar(&size, "size", "1GiB", "size of the large file")
	c.Flags().BoolVar(&keep, "keep", false, "keep the cluster's directory")
	return c
}

func runDemo(ctx context.Context, env *environ, tree, dir string, size int64, keep bool) (err error) {
	d := &demo{env: env, tree: tree, big: size, begin: env.now()}
	if d.tree == "" {
		out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
		if err != nil {
			return fmt.Errorf("finding the Go source tree (go env GOROOT): %w; name a directory with --tree", err)
		}
		d.tree = strings.TrimSpace(string(out))
	}
	if d.tree, err = filepath.EvalSymlinks(d.tree); err != nil {
		return err
	}
	if dir == "" {
		if dir, err = os.MkdirTemp("", "dfs-demo-"); err != nil {
			return err
		}
	}
	defer func() {
		if keep || err != nil {
			fmt.Fprintf(env.err, "the cluster's directory is kept: %s\n", dir)
			return
		}
		err = os.RemoveAll(dir)
	}()
	ctx, cancel := context.WithCancel(ctx)
	c, release, err := openLocalCluster(env, dir, true)
	if err != nil {
		cancel()
		return err
	}
	defer release()
	d.cluster = c
	c.extra = []string{"DFS_MASTER_DEAD_AFTER=" + demoDeadAfter.String()}
	c.say = d.say
	defer func() {
		cancel()
		if d.healing != nil {
			<-d.healing // an earlier step failed; that is what is reported
		}
		if downErr := c.down(context.WithoutCancel(ctx)); downErr != nil {
			err = errors.Join(err, downErr)
		}
		d.say("stopped everything")
	}()
	for _, step := range []func(context.Context) error{d.start, d.storeTree, d.storeBig, d.readBack, d.heal, d.restartKilled} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	d.print()
	return nil
}

// say prints a line with the seconds since the start.
func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.env.out, "[%5.1f s] %s\n", d.env.now().Sub(d.begin).Seconds(), fmt.Sprintf(format, args...))
}

// connect dials a client of its own.
func (d *demo) connect(ctx context.Context) (remote, error) {
	return d.env.dial(ctx, target{masters: d.cluster.Masters, source: "demo"})
}

func (d *demo) start(ctx context.Context) error {
	d.cluster.plan(demoServers, "")
	if err := d.cluster.up(ctx); err != nil {
		return err
	}
	d.say("1 master (%s) and %d chunkservers run as processes in %s", d.cluster.Masters[0], demoServers, d.cluster.dir)
	return nil
}

// countTree counts what is to be stored.
func (d *demo) countTree() error {
	err := filepath.WalkDir(d.tree, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch {
		case e.Type().IsRegular():
			info, err := e.Info()
			if err != nil {
				return err
			}
			d.files++
			d.treeBytes += info.Size()
		case e.Type()&fs.ModeSymlink != 0:
			d.links++
		}
		return nil
	})
	if err == nil && d.files < demoMinFiles {
		err = fmt.Errorf("%s holds %d files; the demo wants at least %d", d.tree, d.files, demoMinFiles)
	}
	return err
}

func (d *demo) storeTree(ctx context.Context) error {
	if err := d.countTree(); err != nil {
		return err
	}
	d.say("storing %s: %d files, %s", d.tree, d.files, byteDesc(d.treeBytes))
	begin := d.env.now()
	args := []string{"put", "--masters", strings.Join(d.cluster.Masters, ","), d.tree, "/tree"}
	quiet := *d.env
	quiet.terminal = false
	if code := runVerb(ctx, &quiet, verbNamed(shellVerbs(), "put"), "put", args[1:]); code != exitDone {
		if interrupted(ctx) {
			return ctx.Err()
		}
		return fmt.Errorf("storing the tree failed (exit status %d)", code)
	}
	d.treeTime = d.env.now().Sub(begin)
	d.say("stored %d files in %.1f s (%.0f files/s)", d.files, d.treeTime.Seconds(), rate(d.files, d.treeTime))
	return nil
}

func rate(n int64, t time.Duration) float64 {
	return float64(n) / max(t.Seconds(), 1e-9)
}

// bigPath is the large file.
const bigPath = "/random.bin"

// storeBig writes the large file and kills a chunkserver in the middle.
func (d *demo) storeBig(ctx context.Context) error {
	fsys, err := d.connect(ctx)
	if err != nil {
		return err
	}
	defer fsys.Close() //nolint:errcheck // what was written is checked by reading it
	d.say("writing %s of random bytes to %s", byteDesc(d.big), bigPath)
	begin := d.env.now()
	w, err := fsys.Create(ctx, bigPath, 0o644, true)
	if err != nil {
		return err
	}
	sum := sha256.New()
	random := rand.NewChaCha8([32]byte{'d', 'e', 'm', 'o'})
	buf := make([]byte, copyBuffer)
	killAt := min(demoKillAt, d.big*2/5)
	for at := int64(0); at < d.big; {
		part := buf[:min(int64(len(buf)), d.big-at)]
		random.Read(part) //nolint:errcheck // never fails
		sum.Write(part)
		if d.killed == nil && at >= killAt {
			if err := d.kill(ctx, fsys); err != nil {
				return err
			}
		}
		before := d.env.now()
		if _, err := w.Write(part); err != nil {
			return fmt.Errorf("writing at offset %d: %w", at, err)
		}
		if d.killed != nil {
			d.stall = max(d.stall, d.env.now().Sub(before))
		}
		at += int64(len(part))
	}
	before := d.env.now()
	if err := w.Close(); err != nil {
		return fmt.Errorf("closing %s: %w", bigPath, err)
	}
	d.bigTime = d.env.now().Sub(begin)
	d.stall = max(d.stall, d.env.now().Sub(before))
	sum.Sum(d.bigSum[:0])
	d.say("wrote it in %.1f s (%.0f MB/s); the kill held the writer up for %.2f s", d.bigTime.Seconds(), rate(d.big, d.bigTime)/1e6, d.stall.Seconds())
	return nil
}

// kill ends, with SIGKILL, a chunkserver that holds a replica of the chunk being written: the primary, the hardest case.
func (d *demo) kill(ctx context.Context, fsys remote) error {
	chunks, err := fsys.Chunks(ctx, bigPath)
	if err != nil {
		return fmt.Errorf("asking which chunk is being written: %w", err)
	}
	if len(chunks) == 0 {
		return errors.New("no chunk is being written")
	}
	last := chunks[len(chunks)-1]
	for i, r := range last.Replicas {
		at := slices.IndexFunc(d.cluster.Nodes, func(n localNode) bool { return n.Address == r.Addr })
		if at < 0 {
			continue
		}
		n := &d.cluster.Nodes[at]
		d.killedRole = fmt.Sprintf("replica %d of %d", i+1, len(last.Replicas))
		if i == 0 {
			d.killedRole = "the primary"
		}
		d.killedAt = d.env.now()
		if err := n.kill(ctx); err != nil {
			return err
		}
		d.cluster.reap(n)
		d.killed = n
		d.healing = make(chan error, 1)
		go func() { d.healing <- d.watchHealing(ctx) }()
		d.say("kill -9 %s (pid %d): %s of chunk %d (%s), which is being written", n.Name, n.Pid, d.killedRole, last.Index, last.ID)
		return nil
	}
	return fmt.Errorf("no chunkserver of this cluster holds chunk %s", last.ID)
}

// readBack compares everything with its source through a client that has seen nothing yet.
func (d *demo) readBack(ctx context.Context) error {
	fsys, err := d.connect(ctx)
	if err != nil {
		return err
	}
	defer fsys.Close() //nolint:errcheck // only read
	d.say("reading everything back through a fresh client")
	begin := d.env.now()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(filesInFlight)
	var files, bytes, links atomic.Int64
	g.Go(func() error {
		r, err := fsys.Open(gctx, bigPath)
		if err != nil {
			return err
		}
		sum := sha256.New()
		n, err := pour(gctx, sum, r)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
		bytes.Add(n)
		files.Add(1)
		if [sha256.Size]byte(sum.Sum(nil)) != d.bigSum {
			return fmt.Errorf("%s: SHA-256 differs", bigPath)
		}
		return nil
	})
	err = filepath.WalkDir(d.tree, func(path string, e fs.DirEntry, err error) error {
		if err != nil || gctx.Err() != nil {
			return errors.Join(err, gctx.Err())
		}
		rel, err := filepath.Rel(d.tree, path)
		if err != nil {
			return err
		}
		stored := tidy("/tree/" + rel)
		switch {
		case e.Type().IsRegular():
			g.Go(func() error {
				n, err := sameFile(gctx, fsys, path, stored)
				files.Add(1)
				bytes.Add(n)
				return err
			})
		case e.Type()&fs.ModeSymlink != 0:
			g.Go(func() error {
				links.Add(1)
				return sameLink(gctx, fsys, path, stored)
			})
		}
		return nil
	})
	if waitErr := g.Wait(); waitErr != nil {
		return waitErr
	}
	if err != nil {
		return err
	}
	d.readTime, d.readFiles, d.readBytes = d.env.now().Sub(begin), files.Load(), bytes.Load()
	if d.readFiles != d.files+1 || links.Load() != d.links || d.readBytes != d.treeBytes+d.big {
		return fmt.Errorf("read %d files and %d bytes, stored %d and %d", d.readFiles, d.readBytes, d.files+1, d.treeBytes+d.big)
	}
	d.say("all %d files have the SHA-256 they were stored with", d.readFiles)
	return nil
}

// sameFile compares the SHA-256 of a local file with that of a stored one.
func sameFile(ctx context.Context, fsys remote, local, stored string) (int64, error) {
	f, err := os.Open(local)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	r, err := fsys.Open(ctx, stored)
	if err != nil {
		return 0, err
	}
	defer r.Close() //nolint:errcheck // only read
	want, got := sha256.New(), sha256.New()
	n, err := copyHash(ctx, got, r)
	if err != nil {
		return n, fmt.Errorf("%s: %w", stored, err)
	}
	if _, err := copyHash(ctx, want, f); err != nil {
		return n, err
	}
	if [sha256.Size]byte(got.Sum(nil)) != [sha256.Size]byte(want.Sum(nil)) {
		return n, fmt.Errorf("%s: SHA-256 differs from %s", stored, local)
	}
	return n, nil
}

// copyHash reads all of r in pieces that suit small files.
func copyHash(ctx context.Context, h hash.Hash, r io.Reader) (int64, error) {
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{r}, make([]byte, 64<<10))
	return n, errors.Join(err, ctx.Err())
}

func sameLink(ctx context.Context, fsys remote, local, stored string) error {
	want, err := os.Readlink(local)
	if err != nil {
		return err
	}
	info, err := fsys.Lstat(ctx, stored)
	if err != nil {
		return err
	}
	if info.Target != want {
		return fmt.Errorf("%s points to %q, not %q", stored, info.Target, want)
	}
	return nil
}

// watchHealing runs beside the demo from the kill on: it returns when the master has given the dead server up, has looked at
// every chunk since, and finds all replicas there.
func (d *demo) watchHealing(ctx context.Context) error {
	fsys, err := d.connect(ctx)
	if err != nil {
		return err
	}
	defer fsys.Close() //nolint:errcheck // only asked questions
	ctx, cancel := context.WithTimeout(ctx, demoHealLimit)
	defer cancel()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		r, err := fsys.Report(ctx)
		if err != nil {
			return fmt.Errorf("waiting for the cluster to heal: %w", err)
		}
		given := slices.ContainsFunc(r.Servers, func(s serverReport) bool { return s.Addr == d.killed.Address && s.State == "dead" })
		if given && r.Scanned && r.UnderReplicated == 0 && r.Missing == 0 && r.RepairsRunning == 0 {
			d.healTime = d.env.now().Sub(d.killedAt)
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the cluster has not healed within %s: %d chunks have too few replicas, %d are missing", demoHealLimit, r.UnderReplicated, r.Missing)
		case <-tick.C:
		}
	}
}

// heal waits until every chunk has all its replicas again, without the dead server.
func (d *demo) heal(ctx context.Context) error {
	d.say("waiting until every chunk has %d replicas again", dfs.DefaultReplication)
	err := <-d.healing
	d.healing = nil
	if err != nil {
		return err
	}
	fsys, err := d.connect(ctx)
	if err != nil {
		return err
	}
	defer fsys.Close() //nolint:errcheck // only asked questions
	return d.verifyReplicas(ctx, fsys)
}

// verifyReplicas asks fsck about every chunk, and the chunkservers about each replica of the large file.
func (d *demo) verifyReplicas(ctx context.Context, fsys remote) error {
	totals, err := fsys.Fsck(ctx, "/", func(f finding) error {
		return fmt.Errorf("fsck: %s chunk %d is %s (%d of %d replicas)", f.Path, f.Index, f.Problem, f.Live, f.Want)
	})
	if err != nil {
		return err
	}
	d.checked = totals.Chunks
	chunks, err := fsys.Chunks(ctx, bigPath)
	if err != nil {
		return err
	}
	for _, c := range chunks {
		if n := validReplicas(c); n < dfs.DefaultReplication {
			return fmt.Errorf("chunk %d of %s has %d valid replicas", c.Index, bigPath, n)
		}
	}
	d.say("healed %.1f s after the kill: all %d chunks have %d replicas", d.healTime.Seconds(), d.checked, dfs.DefaultReplication)
	return nil
}

func (d *demo) restartKilled(ctx context.Context) error {
	begin := d.env.now()
	if err := d.cluster.start(ctx, d.killed); err != nil {
		return err
	}
	if err := d.cluster.waitReady(ctx); err != nil {
		return err
	}
	d.restart = d.env.now().Sub(begin)
	d.say("%s is back", d.killed.Name)
	return nil
}

// print is the table.
func (d *demo) print() {
	t := table{right: []bool{false, true, true, true, true, true}}
	t.add("", "files", "bytes", "seconds", "MB/s", "files/s")
	row := func(what string, files, bytes int64, took time.Duration) {
		t.add(what, fmt.Sprint(files), fmt.Sprint(bytes), fmt.Sprintf("%.1f", took.Seconds()),
			fmt.Sprintf("%.1f", rate(bytes, took)/1e6), fmt.Sprintf("%.0f", rate(files, took)))
	}
	row("store the Go tree", d.files, d.treeBytes, d.treeTime)
	row("store a large file", 1, d.big, d.bigTime)
	row("read all back", d.readFiles, d.readBytes, d.readTime)
	fmt.Fprintln(d.env.out)
	t.print(d.env.out)
	u := table{right: []bool{false, true}}
	u.add("writer held up by the kill of "+d.killedRole, fmt.Sprintf("%.2f s", d.stall.Seconds()))
	u.add("healed after the kill", fmt.Sprintf("%.1f s", d.healTime.Seconds()))
	u.add("dead server back after its restart", fmt.Sprintf("%.1f s", d.restart.Seconds()))
	u.add("SHA-256 compared", fmt.Sprintf("%d files, 0 differ", d.readFiles))
	u.add("chunks with all replicas", fmt.Sprintf("%d of %d", d.checked, d.checked))
	u.add("whole demo", fmt.Sprintf("%.1f s", d.env.now().Sub(d.begin).Seconds()))
	fmt.Fprintln(d.env.out)
	u.print(d.env.out)
}
