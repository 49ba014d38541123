package testcluster

import (
	"context"
	"testing"
	"time"

	"dfs/client"
	"dfs/internal/dfs"
)

// BenchmarkRecall measures a change of attributes over loopback: when nobody else has them cached, and when one other client has, so that each
// change waits for a recall.
func BenchmarkRecall(b *testing.B) {
	ctx := context.Background()
	cl, err := Start(ctx, Config{Dir: b.TempDir(), Real: true, Chunkservers: 1, Logger: testLogger(), Client: func(c *client.Config) { c.CacheNames = true }})
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	var trees [2]client.Inodes
	for i := range trees {
		c, err := cl.Client(ctx, "bench")
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		trees[i] = c.Inodes()
	}
	f, err := trees[0].Make(ctx, client.Caller{}, dfs.RootInode, []byte("f"), client.NewNode{Mode: 0o100644})
	if err != nil {
		b.Fatal(err)
	}
	change := func(b *testing.B, cached bool) {
		var spent time.Duration
		for i := range b.N {
			if cached {
				if _, err := trees[1].GetAttr(ctx, f.Inode); err != nil {
					b.Fatal(err)
				}
			}
			mode := uint32(0o600 + i%2)
			begun := time.Now()
			if _, err := trees[0].SetAttr(ctx, client.Caller{}, f.Inode, client.AttrChange{Mode: &mode}); err != nil {
				b.Fatal(err)
			}
			spent += time.Since(begun)
		}
		b.ReportMetric(float64(spent.Microseconds())/float64(b.N), "us/change")
	}
	b.Run("not cached elsewhere", func(b *testing.B) { change(b, false) })
	b.Run("cached elsewhere", func(b *testing.B) { change(b, true) })
	b.Run("cached read", func(b *testing.B) {
		for range b.N {
			if _, err := trees[1].GetAttr(ctx, f.Inode); err != nil {
				b.Fatal(err)
			}
		}
	})
}
