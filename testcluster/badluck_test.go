package testcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dfs/chunkserver"
	"dfs/chunkserver/store"
	"dfs/client"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	"dfs/internal/vfs"
	"dfs/master"
	dfsv1 "dfs/proto/dfs/v1"
)

// Bad input and bad luck: each is met with a clear error that names the input, and loses nothing.

// dial returns a client that the test closes.
func (c *Cluster) dial(ctx context.Context, t *testing.T) *client.Client {
	t.Helper()
	cc, err := c.Client(ctx, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

func mustWriteFile(ctx context.Context, t *testing.T, c *client.Client, path string, data []byte) {
	t.Helper()
	if err := c.WriteFile(ctx, path, data, 0o644); err != nil {
		t.Fatalf("write %s: %v", path, err)
	}
}

// wantContent fails the test unless path holds exactly want.
func wantContent(ctx context.Context, t *testing.T, c *client.Client, path string, want []byte) {
	t.Helper()
	got, err := c.ReadFile(ctx, path)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %s: %d bytes, %v; want %d bytes", path, len(got), err, len(want))
	}
}

// eventually waits, on the test's clock, until the condition holds.
func eventually(t *testing.T, within time.Duration, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !holds(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%v later: not %s", within, what)
		}
	}
}

// kills kills the given chunkservers.
func (c *Cluster) kills(ctx context.Context, t *testing.T, list ...int) {
	t.Helper()
	for _, i := range list {
		if err := c.KillChunkserver(ctx, i); err != nil {
			t.Fatal(err)
		}
	}
}

func (c *Cluster) starts(ctx context.Context, t *testing.T, list ...int) {
	t.Helper()
	for _, i := range list {
		if err := c.StartChunkserver(ctx, i); err != nil {
			t.Fatal(err)
		}
	}
}

// wantErr fails the test unless err is target and its text holds every word.
func wantErr(t *testing.T, what string, err, target error, words ...string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("%s: got %v, want %v", what, err, target)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: the error does not say %q: %v", what, w, err)
		}
	}
}

func TestNamesOutsideTheRules(t *testing.T) {
	inMemory(t, Config{Chunkservers: 1}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c := cl.dial(ctx, t)
		long := strings.Repeat("n", dfs.NameMax+1)
		deep := strings.Repeat("/d", dfs.PathMax/2+1)
		for _, bad := range []struct {
			path string
			want error
		}{
			{"", fs.ErrInvalid},
			{"relative", fs.ErrInvalid},
			{"/nul\x00byte", fs.ErrInvalid},
			{"/" + long, dfserr.ErrNameTooLong},
			{"/x/" + long + "/y", dfserr.ErrNameTooLong},
			{deep, dfserr.ErrNameTooLong},
			{"/missing/f", fs.ErrNotExist},
		} {
			for what, err := range map[string]error{
				"mkdir":  c.Mkdir(ctx, bad.path, 0o755),
				"write":  c.WriteFile(ctx, bad.path, []byte("x"), 0o644),
				"rename": c.Rename(ctx, "/missing2", bad.path),
			} {
				if what == "rename" && errors.Is(err, fs.ErrNotExist) {
					continue // of the old name
				}
				wantErr(t, fmt.Sprintf("%s %.40q", what, bad.path), err, bad.want)
			}
		}
		for _, last := range []string{"/.", "/..", "/"} {
			if err := c.Mkdir(ctx, last, 0o755); err == nil {
				t.Errorf("mkdir %q succeeds", last)
			}
			if err := c.Remove(ctx, last); err == nil {
				t.Errorf("remove %q succeeds", last)
			}
		}
		for _, good := range []string{"/" + strings.Repeat("n", dfs.NameMax), "/a b\n\xff*?[", "/-", "/...", "/~"} {
			mustWriteFile(ctx, t, c, good, []byte(good))
			wantContent(ctx, t, c, good, []byte(good))
		}
		if list, err := c.ReadDir(ctx, "/"); err != nil || len(list) != 5 {
			t.Errorf("%d entries are there: %v", len(list), err)
		}
	})
}

func TestOffsetsOutsideTheRules(t *testing.T) {
	inMemory(t, Config{}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c := cl.dial(ctx, t)
		for _, want := range [][]byte{pattern(100, 1), pattern(dfs.MiB+3, 2)} {
			mustWriteFile(ctx, t, c, "/f", want)
			f, err := c.OpenFile(ctx, "/f", os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 10)
			for what, op := range map[string]struct {
				do   func() error
				want error
			}{
				"read at -1":               {func() error { _, err := f.ReadAt(buf, -1); return err }, fs.ErrInvalid},
				"read at the largest":      {func() error { _, err := f.ReadAt(buf, math.MaxInt64); return err }, io.EOF},
				"read far behind the end":  {func() error { _, err := f.ReadAt(buf, dfs.MaxFileLength); return err }, io.EOF},
				"write at -1":              {func() error { _, err := f.WriteAt(buf, -1); return err }, fs.ErrInvalid},
				"write at the largest":     {func() error { _, err := f.WriteAt(buf, math.MaxInt64); return err }, dfserr.ErrFileTooLarge},
				"write that overflows":     {func() error { _, err := f.WriteAt(buf, math.MaxInt64-5); return err }, dfserr.ErrFileTooLarge},
				"write over the limit":     {func() error { _, err := f.WriteAt(buf, dfs.MaxFileLength-5); return err }, dfserr.ErrFileTooLarge},
				"seek before the start":    {func() error { _, err := f.Seek(-1, io.SeekStart); return err }, fs.ErrInvalid},
				"seek over the top":        {func() error { _, err := f.Seek(math.MaxInt64, io.SeekEnd); return err }, fs.ErrInvalid},
				"truncate to -1":           {func() error { return f.Truncate(ctx, -1) }, fs.ErrInvalid},
				"truncate over the limit":  {func() error { return f.Truncate(ctx, dfs.MaxFileLength+1) }, dfserr.ErrFileTooLarge},
				"truncate by path":         {func() error { return c.Truncate(ctx, "/f", math.MaxInt64) }, dfserr.ErrFileTooLarge},
				"zero a negative range":    {func() error { return f.Zero(ctx, 5, -3) }, fs.ErrInvalid},
				"zero an overflowing one":  {func() error { return f.Zero(ctx, math.MaxInt64-1, 5) }, dfserr.ErrFileTooLarge},
				"zero at a negative start": {func() error { return f.Zero(ctx, -5, 3) }, fs.ErrInvalid},
			} {
				wantErr(t, what, op.do(), op.want)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			wantContent(ctx, t, c, "/f", want)
		}
		// The largest file there can be.
		if err := c.Truncate(ctx, "/f", dfs.MaxFileLength); err != nil {
			t.Fatal(err)
		}
		if info, err := c.Stat(ctx, "/f"); err != nil || info.Size() != dfs.MaxFileLength {
			t.Fatalf("the largest file: %v, %v", info, err)
		}
	})
}

func TestDirectoryWhereAFileIsWanted(t *testing.T) {
	inMemory(t, Config{Chunkservers: 1}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c := cl.dial(ctx, t)
		if err := c.MkdirAll(ctx, "/dir/sub", 0o755); err != nil {
			t.Fatal(err)
		}
		mustWriteFile(ctx, t, c, "/file", []byte("kept"))
		_, openErr := c.OpenFile(ctx, "/dir", os.O_RDWR, 0)
		_, readErr := c.ReadFile(ctx, "/dir")
		_, listErr := c.ReadDir(ctx, "/file")
		_, linkErr := c.Readlink(ctx, "/file")
		for _, x := range []struct {
			what string
			err  error
			want error
		}{
			{"open a directory for writing", openErr, dfserr.ErrIsDir},
			{"read a directory", readErr, dfserr.ErrIsDir},
			{"write a directory", c.WriteFile(ctx, "/dir", []byte("x"), 0o644), dfserr.ErrIsDir},
			{"truncate a directory", c.Truncate(ctx, "/dir", 0), dfserr.ErrIsDir},
			{"unlink a directory", c.Unlink(ctx, "/dir"), dfserr.ErrIsDir},
			{"rmdir a file", c.Rmdir(ctx, "/file"), dfserr.ErrNotDir},
			{"rmdir a full directory", c.Rmdir(ctx, "/dir"), dfserr.ErrNotEmpty},
			{"list a file", listErr, dfserr.ErrNotDir},
			{"a name below a file", c.Mkdir(ctx, "/file/x", 0o755), dfserr.ErrNotDir},
			{"mkdir over a file", c.Mkdir(ctx, "/file", 0o755), fs.ErrExist},
			{"mkdir -p over a file", c.MkdirAll(ctx, "/file", 0o755), fs.ErrExist},
			{"a directory over a file", c.Rename(ctx, "/dir", "/file"), dfserr.ErrNotDir},
			{"a file over a directory", c.Rename(ctx, "/file", "/dir"), dfserr.ErrIsDir},
			{"a directory into itself", c.Rename(ctx, "/dir", "/dir/sub/x"), fs.ErrInvalid},
			{"a hard link to a directory", c.Link(ctx, "/dir", "/dir2"), fs.ErrPermission},
			{"readlink of a file", linkErr, fs.ErrInvalid},
		} {
			wantErr(t, x.what, x.err, x.want)
		}
		wantContent(ctx, t, c, "/file", []byte("kept"))
	})
}

func TestReplicationOutsideTheCluster(t *testing.T) {
	inMemory(t, Config{}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c := cl.dial(ctx, t)
		want := pattern(dfs.MiB, 1)
		mustWriteFile(ctx, t, c, "/f", want)
		wantErr(t, "-1", c.SetReplication(ctx, "/f", -1), fs.ErrInvalid, "-1")
		wantErr(t, "17", c.SetReplication(ctx, "/f", dfs.MaxReplication+1), fs.ErrInvalid, "17")
		if err := c.SetReplication(ctx, "/f", 7); err != nil {
			t.Fatalf("7 replicas on 4 servers: %v", err)
		}
		eventually(t, time.Minute, "on all four servers and reported as under-replicated", func() bool {
			chunks, err := c.Chunks(ctx, "/f")
			if err != nil || len(chunks) != 1 || len(chunks[0].Replicas) != 4 {
				return false
			}
			found := 0
			totals, err := c.Fsck(ctx, "/", func(f client.Finding) error { found++; return nil })
			r, rerr := c.ClusterReport(ctx)
			return err == nil && rerr == nil && totals.UnderReplicated == 1 && found == 1 && r.UnderReplicated == 1
		})
		if err := c.SetReplication(ctx, "/f", 0); err != nil {
			t.Fatalf("0, the cluster's default: %v", err)
		}
		wantContent(ctx, t, c, "/f", want)
	})
}

// TestNoChunkserver: names and small files go on, chunk data says why not, deletes work, and everything is back with the
// servers.
func TestNoChunkserver(t *testing.T) {
	cfg := Config{Client: func(c *client.Config) { c.OpTimeout = 20 * time.Second }}
	inMemory(t, cfg, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c := cl.dial(ctx, t)
		want := pattern(2*dfs.MiB, 1)
		mustWriteFile(ctx, t, c, "/kept", want)
		mustWriteFile(ctx, t, c, "/removed", want)
		mustWriteFile(ctx, t, c, "/fresh", want) // its length may still be the primary's secret
		cl.kills(ctx, t, 0, 1, 2, 3)

		begun := time.Now()
		_, err := c.ReadFile(ctx, "/kept")
		if !errors.Is(err, dfserr.ErrNoReplica) && dfserr.ClassOf(err) != dfserr.Backoff {
			t.Errorf("read without chunkservers: %v", err)
		}
		if took := time.Since(begun); took > time.Minute {
			t.Errorf("the read took %v to fail", took)
		}
		err = c.WriteFile(ctx, "/new", want, 0o644)
		if !errors.Is(err, dfserr.ErrNoReplica) && !errors.Is(err, dfserr.ErrTooFewReplicas) {
			t.Errorf("write without chunkservers: %v", err)
		}
		if err := c.WriteFile(ctx, "/small", []byte("in the inode"), 0o644); err != nil {
			t.Errorf("a small file: %v", err)
		}
		if err := c.Mkdir(ctx, "/dir", 0o755); err != nil {
			t.Errorf("mkdir: %v", err)
		}
		begun = time.Now()
		if _, err := c.ReadDir(ctx, "/"); err != nil {
			t.Errorf("list: %v", err)
		}
		for _, name := range []string{"/kept", "/removed", "/fresh"} {
			if _, err := c.Peek(ctx, name, true); err != nil {
				t.Errorf("peek %s: %v", name, err)
			}
		}
		if err := c.Remove(ctx, "/removed"); err != nil {
			t.Errorf("remove: %v", err)
		}
		if took := time.Since(begun); took > 15*time.Second {
			t.Errorf("names took %v", took)
		}
		cl.starts(ctx, t, 0, 1, 2, 3)
		wantContent(ctx, t, c, "/kept", want)
		wantContent(ctx, t, c, "/fresh", want)
		wantContent(ctx, t, c, "/small", []byte("in the inode"))
		mustWriteFile(ctx, t, c, "/new", want)
		wantContent(ctx, t, c, "/new", want)
	})
}

func TestFewerThanMinReplicas(t *testing.T) {
	cfg := Config{Client: func(c *client.Config) { c.OpTimeout = 20 * time.Second }}
	inMemory(t, cfg, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c := cl.dial(ctx, t)
		want := pattern(dfs.MiB, 1)
		mustWriteFile(ctx, t, c, "/f", want)
		chunks, err := c.Chunks(ctx, "/f")
		if err != nil {
			t.Fatal(err)
		}
		left := cl.index(t, chunks[0].Replicas[2].Server)
		for i := range 4 {
			if i != left {
				cl.kills(ctx, t, i)
			}
		}
		f, err := c.OpenFile(ctx, "/f", os.O_RDWR|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Write([]byte("more"))
		if err == nil {
			err = f.Sync(ctx)
		}
		if err == nil || !strings.Contains(err.Error(), "replicas") {
			t.Errorf("append with one replica of at least two: %v", err)
		}
		_ = f.Close() // fails as well
		wantErr(t, "new file", c.WriteFile(ctx, "/g", want, 0o644), dfserr.ErrTooFewReplicas, "1 chunkservers are alive", "2 replicas")
		wantContent(ctx, t, c, "/f", want)
		for i := range 4 {
			cl.starts(ctx, t, i)
		}
		mustWriteFile(ctx, t, c, "/g", want)
		wantContent(ctx, t, c, "/g", want)
		got, err := c.ReadFile(ctx, "/f")
		if err != nil || !bytes.HasPrefix(got, want) {
			t.Errorf("the file afterwards: %d bytes, %v", len(got), err)
		}
	})
}

func TestMasterUnreachable(t *testing.T) {
	inMemory(t, Config{Chunkservers: 1}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c := cl.dial(ctx, t)
		mustWriteFile(ctx, t, c, "/f", []byte("kept"))
		addr := cl.Masters()[0]
		try := func(what string) {
			t.Helper()
			begun := time.Now()
			_, err := client.Dial(ctx, client.Config{Masters: []string{addr, "127.0.9.9:7400"}, Network: cl.Net.Host("127.0.1.200")})
			wantErr(t, what, err, dfserr.ErrUnavailable, addr, "127.0.9.9:7400")
			if took := time.Since(begun); took > 6*time.Second {
				t.Errorf("%s: it took %v to say so", what, took)
			}
		}
		cl.Net.Pause(MasterHost)
		try("a master that does not answer")
		cl.Net.Resume(MasterHost)
		if err := cl.KillMaster(ctx); err != nil {
			t.Fatal(err)
		}
		try("a master that is gone")
		if err := cl.StartMaster(ctx); err != nil {
			t.Fatal(err)
		}
		wantContent(ctx, t, c, "/f", []byte("kept"))
	})
}

// cloneDisk copies all files of an in-memory disk, which nobody may be writing.
func cloneDisk(t *testing.T, from vfs.FS) *vfs.Mem {
	t.Helper()
	to := vfs.NewMem()
	var walk func(dir string)
	walk = func(dir string) {
		entries, err := from.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			name := strings.TrimPrefix(dir+"/"+e.Name(), "./")
			if e.IsDir() {
				if err := to.Mkdir(name, 0o755); err != nil {
					t.Fatal(err)
				}
				walk(name)
				continue
			}
			b, err := vfs.ReadFile(from, name, dfs.GiB)
			if err == nil {
				err = vfs.WriteFile(to, name, b, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	walk(".")
	return to
}

func TestTwoChunkserversWithOneID(t *testing.T) {
	inMemory(t, Config{}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c := cl.dial(ctx, t)
		want := pattern(dfs.MiB, 1)
		mustWriteFile(ctx, t, c, "/f", want)
		cl.kills(ctx, t, 0)
		twin := cloneDisk(t, cl.Disk(0))
		cl.starts(ctx, t, 0)
		s, err := chunkserver.New(chunkserver.Config{
			Disks: []store.Disk{{Name: "copied", FS: twin}}, Listen: "127.0.0.99:7410", Masters: cl.Masters(), Network: cl.Net.Host("127.0.0.99"),
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start(ctx); err != nil {
			t.Fatal(err)
		}
		defer s.Kill()
		select {
		case err := <-s.Failed():
			wantErr(t, "the copy", err, dfserr.ErrServerConflict, "data directory copied", ChunkserverHost(0))
		case <-s.Ready():
			t.Fatal("a second server with the same id was admitted")
		case <-time.After(2 * time.Minute):
			t.Fatal("the copy still tries")
		}
		wantContent(ctx, t, c, "/f", want)
		mustWriteFile(ctx, t, c, "/g", want)
		if r, err := c.ClusterReport(ctx); err != nil || len(r.Servers) != 4 {
			t.Errorf("report: %+v, %v", r, err)
		}
	})
}

// TestAddressOfAnotherCluster: an address where a chunkserver of another cluster listens by now, which has a
// chunk of the same id, is not mistaken for the one that had it.
func TestAddressOfAnotherCluster(t *testing.T) {
	dir := t.TempDir()
	inMemory(t, Config{Chunkservers: 3}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c := cl.dial(ctx, t)
		want := pattern(dfs.MiB, 1)
		mustWriteFile(ctx, t, c, "/f", want)
		const strangerMaster = "127.0.2.1"
		m, err := master.New(master.Config{Dir: dir, Listen: strangerMaster + ":7400", Network: cl.Net.Host(strangerMaster), MinReplicas: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Start(ctx); err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		cl.kills(ctx, t, 0, 1)
		for i := range 2 {
			host := ChunkserverHost(i)
			s, err := chunkserver.New(chunkserver.Config{
				Disks:  []store.Disk{{Name: "stranger", FS: vfs.NewMem()}},
				Listen: host + ":7410", Masters: []string{m.Addr()}, Network: cl.Net.Host(host),
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Start(ctx); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			<-s.Ready()
		}
		other, err := client.Dial(ctx, client.Config{Masters: []string{m.Addr()}, Network: cl.Net.Host("127.0.2.2")})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		for i := range 3 { // the strangers' chunks have the ids of ours, with higher versions
			mustWriteFile(ctx, t, other, fmt.Sprintf("/g%d", i), pattern(dfs.MiB, uint64(50+i)))
		}
		for range 20 {
			c2 := cl.dial(ctx, t)
			wantContent(ctx, t, c2, "/f", want)
			chunks, err := c2.Chunks(ctx, "/f")
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range chunks[0].Replicas {
				if r.State == client.ReplicaValid && r.Addr != ChunkserverHost(2)+":7410" {
					t.Fatalf("a stranger is taken for a replica: %+v", r)
				}
			}
		}
	})
}

// TestFullChunkserverDisks: the cluster stops taking bytes well before its disks are full, goes on reading and
// deleting, and takes bytes again when deleted ones are gone.
func TestFullChunkserverDisks(t *testing.T) {
	const capacity, reserve = 24 * dfs.MiB, 4 * dfs.MiB
	cfg := Config{
		Chunkservers: 3,
		Master:       func(c *master.Config) { c.GarbageGrace = 2 * time.Second },
		Chunkserver:  func(_ int, c *chunkserver.Config) { c.Reserve = reserve },
		Client:       func(c *client.Config) { c.OpTimeout = 20 * time.Second },
	}
	inMemory(t, cfg, func(ctx context.Context, t *testing.T, cl *Cluster) {
		for i := range 3 {
			cl.Disk(i).(*vfs.Mem).SetCapacity(capacity)
		}
		time.Sleep(5 * time.Second) // heartbeats tell of it
		c := cl.dial(ctx, t)
		var kept []string
		var refused error
		for i := 0; refused == nil && i < 100; i++ {
			path := fmt.Sprintf("/f%d", i)
			if refused = c.WriteFile(ctx, path, pattern(dfs.MiB, uint64(i)), 0o644); refused == nil {
				kept = append(kept, path)
			}
		}
		if !errors.Is(refused, dfserr.ErrNoSpace) || len(kept) < 10 {
			t.Fatalf("after %d files: %v", len(kept), refused)
		}
		for i := range 3 {
			if _, free, err := cl.Disk(i).Usage(); err != nil || free < reserve/2 {
				t.Errorf("disk %d has %d bytes left (%v): the reserve of %d is used up", i, free, err, reserve)
			}
		}
		for i, path := range kept {
			wantContent(ctx, t, c, path, pattern(dfs.MiB, uint64(i)))
		}
		mustWriteFile(ctx, t, c, "/small", []byte("in the inode"))
		for _, path := range kept[:len(kept)/2] {
			if err := c.Remove(ctx, path); err != nil {
				t.Fatalf("remove on full disks: %v", err)
			}
		}
		for i := 0; ; i++ {
			err := c.WriteFile(ctx, "/again", pattern(2*dfs.MiB, 99), 0o644)
			if err == nil {
				break
			}
			if i == 60 {
				t.Fatalf("a minute after half of the files were removed: %v", err)
			}
			time.Sleep(time.Second)
		}
		wantContent(ctx, t, c, "/again", pattern(2*dfs.MiB, 99))
		for i, path := range kept[len(kept)/2:] {
			wantContent(ctx, t, c, path, pattern(dfs.MiB, uint64(i+len(kept)/2)))
		}
		for i := range 3 {
			if _, err := cl.Disk(i).Stat("FAILED"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("disk %d was condemned for being full: %v", i, err)
			}
		}
	})
}

// TestDeletedFilesFreeDisks: what is removed leaves the disks, and the numbers follow.
func TestDeletedFilesFreeDisks(t *testing.T) {
	cfg := Config{Master: func(c *master.Config) { c.GarbageGrace = 5 * time.Second }}
	inMemory(t, cfg, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c := cl.dial(ctx, t)
		mustWriteFile(ctx, t, c, "/kept", pattern(dfs.MiB, 0))
		var free [4]int64
		time.Sleep(5 * time.Second)
		for i := range free {
			_, free[i], _ = cl.Disk(i).Usage()
		}
		used := func() int64 {
			s, err := c.StatFS(ctx)
			if err != nil {
				t.Fatal(err)
			}
			return s.Used
		}
		eventually(t, 10*time.Second, "three MiB reported as used", func() bool { return used() >= 3*dfs.MiB && used() < 4*dfs.MiB })
		if err := c.Mkdir(ctx, "/dir", 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range 8 {
			mustWriteFile(ctx, t, c, fmt.Sprintf("/dir/%d", i), pattern(2*dfs.MiB, uint64(i)))
		}
		eventually(t, 10*time.Second, "51 MiB reported as used", func() bool { return used() >= 51*dfs.MiB && used() < 53*dfs.MiB })
		if err := c.RemoveAll(ctx, "/dir"); err != nil {
			t.Fatal(err)
		}
		eventually(t, 5*time.Minute, "the space given back", func() bool { return used() < 4*dfs.MiB })
		for i := range free {
			if _, now, _ := cl.Disk(i).Usage(); now < free[i]-64*dfs.KiB {
				t.Errorf("disk %d: %d bytes were free before, %d are now", i, free[i], now)
			}
		}
		wantContent(ctx, t, c, "/kept", pattern(dfs.MiB, 0))
	})
}

// replicaFiles returns the names of the replicas' files on a disk.
func replicaFiles(t *testing.T, disk vfs.FS) []string {
	t.Helper()
	var names []string
	for i := range 256 {
		dir := fmt.Sprintf("chunks/%02x", i)
		entries, err := disk.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, dir+"/"+e.Name())
		}
	}
	return names
}

// TestCorruptReplica: readers get the right bytes from another replica, and the damaged one is replaced by itself.
// TestPrimaryCutOffFromChunkservers: a primary that reaches the master and clients, and no other chunkserver, is replaced; it does not shrink the chunk to itself. Nothing is
// acknowledged with fewer than min_replicas meanwhile, and what was acknowledged is there when the primary's disk is lost.
func TestPrimaryCutOffFromChunkservers(t *testing.T) {
	for _, x := range []struct{ servers, replication int }{{3, 3}, {4, 3}, {4, 2}} {
		t.Run(fmt.Sprintf("%d servers, %d replicas", x.servers, x.replication), func(t *testing.T) {
			inMemory(t, Config{Chunkservers: x.servers}, func(ctx context.Context, t *testing.T, cl *Cluster) {
				c := cl.dial(ctx, t)
				f, err := c.CreateFile(ctx, "/f", os.O_RDWR|os.O_EXCL, 0o644, client.CreateOptions{Replication: x.replication})
				check(t, err)
				want := pattern(dfs.MiB, 1)
				_, err = f.WriteAt(want, 0)
				check(t, err)
				chunks, err := c.Chunks(ctx, "/f")
				check(t, err)
				primary := cl.index(t, chunks[0].Replicas[0].Server)
				for i := range x.servers {
					if i != primary {
						cl.Net.Cut(ChunkserverHost(primary), ChunkserverHost(i))
					}
				}
				begun := time.Now()
				more := pattern(dfs.MiB, 2)
				_, err = f.WriteAt(more, dfs.MiB)
				check(t, err)
				took := time.Since(begun)
				t.Logf("the write took %v", took)
				if took > 20*time.Second {
					t.Errorf("the write took %v", took)
				}
				check(t, f.Sync(ctx))
				chunks, err = c.Chunks(ctx, "/f")
				check(t, err)
				for _, r := range chunks[0].Replicas {
					if cl.index(t, r.Server) == primary {
						t.Error("the server that was cut off is still in the chain")
					}
				}
				if n := len(chunks[0].Replicas); n < 2 {
					t.Errorf("acknowledged with %d replicas", n)
				}
				cl.kills(ctx, t, primary)
				wantContent(ctx, t, cl.dial(ctx, t), "/f", append(want, more...))
				check(t, f.Close())
			})
		})
	}
}

// TestReaderThatSeesDamageEverywhere: a client's word that replicas are corrupt costs none of them its place.
func TestReaderThatSeesDamageEverywhere(t *testing.T) {
	inMemory(t, Config{}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c := cl.dial(ctx, t)
		want := pattern(dfs.MiB, 1)
		mustWriteFile(ctx, t, c, "/f", want)
		before, err := c.Chunks(ctx, "/f")
		check(t, err)
		pool := rpc.NewPool(cl.Net.Host("127.0.1.250"), rpc.PoolOptions{})
		defer pool.Close()
		cc, err := pool.Get(cl.Masters()[0])
		check(t, err)
		for range 20 {
			for _, r := range before[0].Replicas {
				_, err := dfsv1.NewMasterClient(cc).ReportFailure(ctx, &dfsv1.ReportFailureRequest{
					Chunk: uint64(before[0].Chunk), Version: uint64(before[0].Version), Server: uint64(r.Server), Reason: "said the test", Corrupt: true,
				})
				check(t, err)
			}
			time.Sleep(time.Second)
		}
		after, err := c.Chunks(ctx, "/f")
		check(t, err)
		if after[0].Version != before[0].Version || len(after[0].Replicas) != 3 {
			t.Errorf("before: %+v, after: %+v", before[0], after[0])
		}
		totals, err := c.Fsck(ctx, "/", func(f client.Finding) error { t.Errorf("%+v", f); return nil })
		check(t, err)
		if totals.CorruptChunks != 0 {
			t.Errorf("%+v", totals)
		}
		// One of them is damaged indeed: the same word has it found and repaired, without anybody reading it.
		victim := cl.index(t, before[0].Replicas[2].Server)
		disk := cl.Disk(victim).(*vfs.Mem)
		check(t, disk.Corrupt(replicaFiles(t, disk)[0], func(b []byte) { b[len(b)/2] ^= 1 }))
		time.Sleep(10 * time.Second)
		_, err = dfsv1.NewMasterClient(cc).ReportFailure(ctx, &dfsv1.ReportFailureRequest{
			Chunk: uint64(before[0].Chunk), Version: uint64(before[0].Version), Server: uint64(before[0].Replicas[2].Server), Reason: "said the test", Corrupt: true,
		})
		check(t, err)
		eventually(t, time.Minute, "repaired", func() bool {
			now, err := c.Chunks(ctx, "/f")
			return err == nil && now[0].Version > before[0].Version && len(now[0].Replicas) == 3
		})
		wantContent(ctx, t, c, "/f", want)
	})
}

func TestCorruptReplica(t *testing.T) {
	inMemory(t, Config{}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c := cl.dial(ctx, t)
		want := pattern(dfs.MiB, 1)
		mustWriteFile(ctx, t, c, "/f", want)
		time.Sleep(5 * time.Second)
		for round := range 6 {
			chunks, err := c.Chunks(ctx, "/f")
			if err != nil || len(chunks) != 1 || len(chunks[0].Replicas) != 3 {
				t.Fatalf("round %d: %+v, %v", round, chunks, err)
			}
			victim := cl.index(t, chunks[0].Replicas[round%3].Server)
			disk := cl.Disk(victim).(*vfs.Mem)
			files := replicaFiles(t, disk)
			if len(files) != 1 {
				t.Fatalf("round %d: disk %d holds %v", round, victim, files)
			}
			restart := round >= 3 // then the damage is found when the log is opened
			if restart {
				cl.kills(ctx, t, victim)
			}
			err = disk.Corrupt(files[0], func(b []byte) {
				switch {
				case restart && round%2 == 1:
					b[20] ^= 1 // the header
				default:
					for at := 1000; at < len(b)-1000; at += 50_000 {
						b[at] ^= 0x10
					}
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if restart {
				cl.starts(ctx, t, victim)
			}
			for range 12 { // some of them ask the victim first
				wantContent(ctx, t, cl.dial(ctx, t), "/f", want)
			}
			// The reads above need not have met the victim: ask for its opinion as the scrubber would.
			eventually(t, 5*time.Minute, fmt.Sprintf("repaired in round %d", round), func() bool {
				wantContent(ctx, t, cl.dial(ctx, t), "/f", want)
				chunks, err := c.Chunks(ctx, "/f")
				if err != nil || len(chunks[0].Replicas) != 3 {
					return false
				}
				return !slices.ContainsFunc(chunks[0].Replicas, func(r client.ReplicaInfo) bool { return r.State != client.ReplicaValid })
			})
			damaged := false
			for i := range 4 {
				for _, name := range replicaFiles(t, cl.Disk(i)) {
					b, err := vfs.ReadFile(cl.Disk(i), name, dfs.GiB)
					if err != nil {
						t.Fatal(err)
					}
					damaged = damaged || !bytes.Contains(b, want[:dfs.BlockSize]) || !bytes.Contains(b, want[len(want)-dfs.BlockSize:])
				}
			}
			if damaged && !restart {
				t.Logf("round %d: the damaged file was not read yet", round)
			}
		}
	})
}

// TestEverythingKilledDuringWrites: what was synced or closed is there after every process died at once.
func TestEverythingKilledDuringWrites(t *testing.T) {
	cfg := Config{Client: func(c *client.Config) { c.OpTimeout = 10 * time.Second }}
	inMemory(t, cfg, func(ctx context.Context, t *testing.T, cl *Cluster) {
		for i := range 4 { // so that there are moments in the middle of things
			cl.Net.SetDelay(ChunkserverHost(i), MasterHost, time.Millisecond)
			for j := range 4 {
				cl.Net.SetDelay(ChunkserverHost(i), ChunkserverHost(j), time.Duration(i+1)*time.Millisecond)
			}
			for n := range 40 {
				cl.Net.SetDelay(ClientHost(n), ChunkserverHost(i), time.Millisecond)
				cl.Net.SetDelay(ClientHost(n), MasterHost, 2*time.Millisecond)
			}
		}
		var mu sync.Mutex
		acked := map[string][]byte{}
		for round := range 4 {
			var wg sync.WaitGroup
			for w := range 6 {
				c, err := cl.Client(ctx, fmt.Sprintf("writer %d", w))
				if err != nil {
					t.Fatal(err)
				}
				wg.Go(func() {
					defer c.Close()
					for i := 0; ; i++ {
						path := fmt.Sprintf("/r%d-w%d-%d", round, w, i)
						data := pattern([]int{10, 5000, 300_000, dfs.MiB + 1}[i%4], uint64(1000*round+100*w+i))
						if err := c.WriteFile(ctx, path, data, 0o644); err != nil {
							return
						}
						mu.Lock()
						acked[path] = data
						mu.Unlock()
					}
				})
			}
			time.Sleep(time.Duration(97+53*round) * time.Millisecond)
			cl.kills(ctx, t, 0, 1, 2, 3)
			if err := cl.KillMaster(ctx); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			if err := cl.start(ctx); err != nil {
				t.Fatal(err)
			}
			c := cl.dial(ctx, t)
			mu.Lock()
			for path, want := range acked {
				wantContent(ctx, t, c, path, want)
			}
			mu.Unlock()
		}
		if len(acked) < 20 {
			t.Errorf("only %d files were acknowledged", len(acked))
		}
	})
}

// TestPausedForAMinute: writes go on within seconds without a server that hangs, which does not serve old bytes when it wakes.
func TestPausedForAMinute(t *testing.T) {
	inMemory(t, Config{}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c := cl.dial(ctx, t)
		want := pattern(dfs.MiB, 0)
		mustWriteFile(ctx, t, c, "/f", want)
		for victim := range 3 {
			chunks, err := c.Chunks(ctx, "/f")
			if err != nil || len(chunks[0].Replicas) < 2 {
				t.Fatalf("%+v, %v", chunks, err)
			}
			i := cl.index(t, chunks[0].Replicas[victim%len(chunks[0].Replicas)].Server)
			if err := cl.PauseChunkserver(ctx, i); err != nil {
				t.Fatal(err)
			}
			f, err := c.OpenFile(ctx, "/f", os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			slowest := time.Duration(0)
			for n, end := 0, time.Now().Add(time.Minute); time.Now().Before(end); n++ {
				begun := time.Now()
				piece := pattern(1000, uint64(100*victim+n))
				if _, err := f.WriteAt(piece, int64(n%1000)*1000); err != nil {
					t.Fatal(err)
				}
				copy(want[n%1000*1000:], piece)
				slowest = max(slowest, time.Since(begun))
				time.Sleep(500 * time.Millisecond)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if err := cl.ResumeChunkserver(ctx, i); err != nil {
				t.Fatal(err)
			}
			for range 10 {
				wantContent(ctx, t, cl.dial(ctx, t), "/f", want)
			}
			if slowest > 20*time.Second {
				t.Errorf("replica %d paused: a write took %v", victim, slowest)
			}
			eventually(t, 3*time.Minute, "back at three replicas", func() bool {
				chunks, err := c.Chunks(ctx, "/f")
				return err == nil && len(chunks[0].Replicas) == 3
			})
		}
		eventually(t, 10*time.Minute, "rid of the replicas that are not needed any more", func() bool {
			n := 0
			for i := range 4 {
				n += len(replicaFiles(t, cl.Disk(i)))
			}
			return n == 3
		})
	})
}

// TestRestartStorm: everybody restarts again and again while clients work; nothing acknowledged is lost, and work goes on after it.
func TestRestartStorm(t *testing.T) {
	cfg := Config{Client: func(c *client.Config) { c.OpTimeout = 5 * time.Minute }}
	inMemory(t, cfg, func(ctx context.Context, t *testing.T, cl *Cluster) {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for w := range 3 {
			c := cl.dial(ctx, t)
			wg.Go(func() {
				path := fmt.Sprintf("/log%d", w)
				var want []byte
				for i := 0; ; i++ {
					select {
					case <-stop:
						if i < 10 {
							t.Errorf("writer %d came to %d records only", w, i)
						}
						got, err := c.ReadFile(ctx, path)
						if err != nil || !bytes.Equal(got, want) {
							t.Errorf("%s: %d bytes, %v; want %d bytes", path, len(got), err, len(want))
						}
						return
					default:
					}
					data := pattern(20_000, uint64(1000*w+i))
					f, err := c.OpenFile(ctx, path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
					if err == nil {
						_, err = f.Write(data)
						err = errors.Join(err, f.Close())
					}
					if err != nil {
						t.Errorf("append %d to %s: %v", i, path, err)
						return
					}
					want = append(want, data...)
					time.Sleep(200 * time.Millisecond)
				}
			})
		}
		for round := range 12 {
			time.Sleep(time.Duration(300+200*round) * time.Millisecond)
			if round%3 == 2 {
				if err := cl.KillMaster(ctx); err != nil {
					t.Fatal(err)
				}
			}
			cl.kills(ctx, t, round%4, (round+1)%4)
			if round%4 == 3 {
				cl.kills(ctx, t, (round+2)%4, (round+3)%4)
			}
			if err := cl.start(ctx); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(30 * time.Second)
		close(stop)
		wg.Wait()
	})
}

// TestPrimaryGoneBeforeItsCommitWasKnown: the other replicas do not know yet that the last bytes are acknowledged when
// their primary dies; a reader, who writes nothing, gets them all the same, and soon.
func TestPrimaryGoneBeforeItsCommitWasKnown(t *testing.T) {
	inMemory(t, Config{}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c := cl.dial(ctx, t)
		for round := range 3 {
			path := fmt.Sprintf("/f%d", round)
			want := pattern(dfs.MiB+round, uint64(round))
			mustWriteFile(ctx, t, c, path, want)
			chunks, err := c.Chunks(ctx, path)
			if err != nil {
				t.Fatal(err)
			}
			primary := cl.index(t, chunks[0].Replicas[0].Server)
			limit := 10 * time.Second
			if hangs := round == 1; hangs {
				limit = 30 * time.Second
				if err := cl.PauseChunkserver(ctx, primary); err != nil {
					t.Fatal(err)
				}
			} else {
				cl.kills(ctx, t, primary)
			}
			begun := time.Now()
			wantContent(ctx, t, cl.dial(ctx, t), path, want)
			if took := time.Since(begun); took > limit {
				t.Errorf("round %d: the read took %v", round, took)
			}
			if err := cl.ResumeChunkserver(ctx, primary); err != nil {
				t.Fatal(err)
			}
			cl.starts(ctx, t, primary)
		}
	})
}
