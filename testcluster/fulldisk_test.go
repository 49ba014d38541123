package testcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dfs/client"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master"
)

// TestMasterOnAFullDisk fills a master's disk: nearly, with the default limit, and then to the last byte. Badger writes through memory maps, where a full disk ends the process
// (SIGBUS); so the master takes nothing new long before, and at last no change at all, goes on reading, and can be stopped. It does not start on a disk without any room.
func TestMasterOnAFullDisk(t *testing.T) {
	disk := t.TempDir()
	err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1200m")
	if errors.Is(err, unix.EPERM) {
		t.Skip("a small disk is mounted, which needs root")
	}
	check(t, err)
	defer func() { check(t, unix.Unmount(disk, unix.MNT_DETACH)) }()
	other := filepath.Join(disk, "other")
	cfg := Config{
		Master: func(c *master.Config) { c.Dir, c.Ballast = filepath.Join(disk, "master"), 16*dfs.MiB },
		Client: func(c *client.Config) { c.OpTimeout = 20 * time.Second },
	}
	onLoopback(t, cfg, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c := cl.dial(ctx, t)
		data := pattern(dfs.InlineMax, 1)
		fill(t, other, 514*dfs.MiB)
		n := 0
		for ; ; n++ {
			if err := c.WriteFile(ctx, fmt.Sprintf("/f%d", n), data, 0o644); err != nil {
				wantErr(t, "one file too many", err, dfserr.ErrNoSpace, disk)
				break
			}
		}
		t.Logf("%d files of %d bytes", n, len(data))
		if n < 20 {
			t.Fatal("the disk was full from the start")
		}
		reads := func() {
			t.Helper()
			for i := range n {
				wantContent(ctx, t, c, fmt.Sprintf("/f%d", i), data)
			}
		}
		reads()
		n--
		check(t, c.Remove(ctx, fmt.Sprintf("/f%d", n)))
		fill(t, other, 0)
		wantErr(t, "create on a full disk", c.WriteFile(ctx, "/g", data, 0o644), dfserr.ErrNoSpace, disk)
		wantErr(t, "remove on a full disk", c.Remove(ctx, "/f0"), dfserr.ErrNoSpace, disk)
		reads()
		check(t, cl.KillMaster(ctx)) // the store writes when it is closed: the ballast makes room
		if balls, err := filepath.Glob(filepath.Join(disk, "master", "BALLAST*")); err != nil || len(balls) != 0 {
			t.Fatalf("ballast %v, %v", balls, err)
		}
		fill(t, other, 0)
		wantErr(t, "start on a full disk", cl.StartMaster(ctx), dfserr.ErrNoSpace, disk)
		check(t, os.Remove(other))
		check(t, cl.StartMaster(ctx))
		reads()
		mustWriteFile(ctx, t, c, "/g", data)
		if list, err := c.ReadDir(ctx, "/"); err != nil || len(list) != n+1 {
			t.Fatalf("%d entries, want %d: %v", len(list), n+1, err)
		}
	})
}

// fill lengthens a file until no more than so many bytes of its disk are left.
func fill(t *testing.T, path string, left int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	check(t, err)
	defer f.Close()
	for block := make([]byte, dfs.InlineMax); ; {
		var st unix.Statfs_t
		check(t, unix.Statfs(path, &st))
		if int64(st.Bavail)*st.Bsize <= left {
			return
		}
		_, err = f.Write(block)
		check(t, err)
	}
}
