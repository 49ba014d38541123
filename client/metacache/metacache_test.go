package metacache_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dfs/client/metacache"
	"dfs/internal/dfs"
)

func TestBoundedAndRecent(t *testing.T) {
	c := metacache.New[int](3, time.Minute)
	for i := range 3 {
		c.Put(1, int64(i), i)
	}
	c.Get(1, 0) // the oldest is now the most recent
	c.Put(2, 7, 70)
	if _, ok := c.Get(1, 1); ok {
		t.Error("the least recently used was kept")
	}
	if v, ok := c.Get(1, 0); !ok || v != 0 {
		t.Error("a recently used one was dropped")
	}
	if c.Len() != 3 {
		t.Errorf("%d entries", c.Len())
	}
	c.Put(2, 7, 71)
	if v, _ := c.Get(2, 7); v != 71 || c.Len() != 3 {
		t.Errorf("replacing gave %d, %d entries", v, c.Len())
	}
}

func TestInvalidate(t *testing.T) {
	c := metacache.New[int](100, time.Minute)
	for inode := range dfs.InodeID(3) {
		for i := range int64(5) {
			c.Put(inode, i, int(i))
		}
	}
	c.InvalidateFrom(1, 3)
	c.Drop(1, 0)
	c.InvalidateFrom(2, 0)
	for inode, want := range map[dfs.InodeID][]bool{0: {true, true, true, true, true}, 1: {false, true, true, false, false}, 2: {false, false, false, false, false}} {
		for i, w := range want {
			if _, ok := c.Get(inode, int64(i)); ok != w {
				t.Errorf("inode %d chunk %d: %v", inode, i, ok)
			}
		}
	}
	if c.Len() != 7 {
		t.Errorf("%d entries", c.Len())
	}
}

func TestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := metacache.New[int](10, time.Second)
		c.Put(1, 1, 1)
		time.Sleep(time.Second - 1)
		if _, ok := c.Get(1, 1); !ok {
			t.Error("gone too early")
		}
		time.Sleep(time.Nanosecond)
		if _, ok := c.Get(1, 1); ok || c.Len() != 0 {
			t.Error("kept too long")
		}
		never := metacache.New[int](10, -1)
		never.Put(1, 1, 1)
		if _, ok := never.Get(1, 1); ok {
			t.Error("a cache without time returned something")
		}
	})
}

func TestConcurrent(t *testing.T) {
	c := metacache.New[int](50, time.Minute)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range int64(500) {
				c.Put(dfs.InodeID(g), i%40, int(i))
				c.Get(dfs.InodeID(i%8), i%40)
				if i%50 == 0 {
					c.InvalidateFrom(dfs.InodeID(i%8), 20)
				}
			}
		})
	}
	wg.Wait()
	if c.Len() > 50 {
		t.Errorf("%d entries", c.Len())
	}
}
