package scrub

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dfs/chunkserver/store"
	"dfs/internal/dfs"
	"dfs/internal/vfs"
)

// TestRun lets the scrubber make three rounds over replicas of which one is damaged between the first and the second.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		fs := vfs.NewMem()
		disk := store.Disk{Name: "d", FS: fs}
		if err := store.Format(disk, store.Identity{Cluster: 1, Server: 2, Disk: 3}); err != nil {
			t.Fatal(err)
		}
		st, err := store.Open(ctx, []store.Disk{disk}, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Kill()
		data := bytes.Repeat([]byte("scrub me"), 128*dfs.KiB/8)
		for id := dfs.ChunkID(1); id <= 5; id++ {
			rep, err := st.Create(id, 7)
			if err != nil {
				t.Fatal(err)
			}
			m := store.Mutation{Kind: store.KindWrite, Version: 7, Seq: 1, Len: int64(len(data)), Data: [][]byte{data}, CRCs: dfs.BlockCRCs(0, data)}
			if err := rep.Append(&m); err != nil {
				t.Fatal(err)
			}
			if err := rep.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		var mu sync.Mutex
		found := map[dfs.ChunkID]int{}
		times := func() (of3, chunks int) {
			mu.Lock()
			defer mu.Unlock()
			return found[3], len(found)
		}
		done := make(chan struct{})
		begin := time.Now()
		go func() {
			defer close(done)
			Run(ctx, st, Options{
				Interval: time.Hour, Delay: time.Minute, Rate: 64 * dfs.KiB,
				Corrupt: func(id dfs.ChunkID, _ error) {
					mu.Lock()
					defer mu.Unlock()
					found[id]++
				},
			})
		}()
		time.Sleep(time.Minute + 9*time.Second)
		synctest.Wait()
		// 5 replicas of 128 KiB at 64 KiB/s take 10 s: the round cannot be over.
		if err := fs.Corrupt("chunks/03/0000000000000003", func(b []byte) { b[len(b)/2] ^= 4 }); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		first, _ := times()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		all, chunks := times()
		if n := all - first; chunks != 1 || n != 2 {
			t.Errorf("after %v the damage was found %d times, then %d times in two rounds, in %d chunks", time.Since(begin), first, n, chunks)
		}
		cancel()
		<-done
	})
}

func TestPacer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pacer{rate: 1 << 20, next: time.Now()}
		begin := time.Now()
		for range 1000 {
			if err := p.pace(context.Background(), 10<<10); err != nil {
				t.Fatal(err)
			}
		}
		if took, want := time.Since(begin), 10*time.Second; took < want-want/20 || took > want {
			t.Errorf("10 MiB at 1 MiB/s took %v", took)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if p.pace(ctx, 1<<20) == nil {
			t.Error("a cancelled read goes on")
		}
	})
}
