package testcluster

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"dfs/client"
	"dfs/internal/dfs"
	"dfs/internal/vfs"
)

// Tests of what one client sees of a file whose end another moves.

// two returns two clients of the cluster, closed with the test.
func two(ctx context.Context, t *testing.T, cl *Cluster) (a, b *client.Client) {
	t.Helper()
	var list []*client.Client
	for _, name := range []string{"a", "b"} {
		c, err := cl.Client(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
	}
	return list[0], list[1]
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// chunked makes a file of small chunks with the given content and opens it.
func chunked(ctx context.Context, t *testing.T, c *client.Client, path string, content []byte) *client.File {
	t.Helper()
	f, err := c.CreateFile(ctx, path, os.O_RDWR|os.O_EXCL, 0o644, client.CreateOptions{ChunkSize: dfs.MinChunkSize})
	check(t, err)
	_, err = f.WriteAt(content, 0)
	check(t, err)
	return f
}

// TestCutOffBytesAreGoneForEveryone cuts whole chunks off a file that another client has read just before and knows the chunks of: from the moment the cut returns it reads none
// of them, however it was made, and also when the master cannot reach a server that the reader can.
func TestCutOffBytesAreGoneForEveryone(t *testing.T) {
	cuts := []struct {
		name string
		cut  func(ctx context.Context, c *client.Client, f *client.File) error
	}{
		{"truncate", func(ctx context.Context, _ *client.Client, f *client.File) error {
			return f.Truncate(ctx, dfs.MinChunkSize)
		}},
		{"by path", func(ctx context.Context, c *client.Client, _ *client.File) error { return c.Truncate(ctx, "/f", 0) }},
		{"O_TRUNC", func(ctx context.Context, c *client.Client, _ *client.File) error {
			f, err := c.OpenFile(ctx, "/f", os.O_WRONLY|os.O_TRUNC, 0)
			if err == nil {
				err = f.Close()
			}
			return err
		}},
		{"create", func(ctx context.Context, c *client.Client, _ *client.File) error {
			f, err := c.Create(ctx, "/f", 0o644)
			if err == nil {
				err = f.Close()
			}
			return err
		}},
		{"replaced", func(ctx context.Context, c *client.Client, _ *client.File) error {
			return c.WriteFile(ctx, "/f", []byte("new"), 0o644)
		}},
	}
	for _, reach := range []string{"all reachable", "one cut off from the master"} {
		for _, cut := range cuts {
			t.Run(cut.name+", "+reach, func(t *testing.T) {
				inMemory(t, Config{Chunkservers: 3}, func(ctx context.Context, t *testing.T, cl *Cluster) {
					a, b := two(ctx, t, cl)
					defer a.Close()
					defer b.Close()
					old := bytes.Repeat([]byte{7}, 3*dfs.MinChunkSize)
					fa := chunked(ctx, t, a, "/f", old)
					fb, err := b.Open(ctx, "/f")
					check(t, err)
					buf := make([]byte, len(old))
					if n, err := fb.ReadAt(buf, 0); n != len(old) {
						t.Fatalf("%d bytes, %v", n, err)
					}
					if reach != "all reachable" {
						cl.Net.Cut(MasterHost, ChunkserverHost(1))
					}
					begun := time.Now()
					check(t, cut.cut(ctx, a, fa))
					took := time.Since(begun)
					info, err := b.Stat(ctx, "/f")
					check(t, err)
					end := info.Size()
					for i := range int64(3) {
						off := i * dfs.MinChunkSize
						n, err := fb.ReadAt(buf[:1000], off)
						switch {
						case err != nil && !errors.Is(err, io.EOF):
							t.Fatalf("read at %d: %v", off, err)
						case int64(n) > max(0, end-off):
							t.Errorf("%d bytes are read at %d of a file of %d bytes", n, off, end)
						}
					}
					if reach == "all reachable" && took > 500*time.Millisecond {
						t.Errorf("the cut took %v", took)
					}
					if took > 10*time.Second { // a serving lease, and finding out that a primary does not answer
						t.Errorf("the cut took %v", took)
					}
					cl.Net.Heal(MasterHost, ChunkserverHost(1))
					check(t, fa.Close())
					check(t, fb.Close())
				})
			})
		}
	}
}

// TestAppendGoesBehindWhatOthersAdded has one client append, and so know the last chunk, before another makes the file longer: the next append goes behind that.
func TestAppendGoesBehindWhatOthersAdded(t *testing.T) {
	const size = dfs.MinChunkSize
	grow := []struct {
		name string
		end  int64 // of the file afterwards
		grow func(ctx context.Context, f *client.File) error
	}{
		{"written in the last chunk", 500_010, func(_ context.Context, f *client.File) error {
			_, err := f.WriteAt(make([]byte, 10), 500_000)
			return err
		}},
		{"written chunks further on", 5*size + 110, func(_ context.Context, f *client.File) error {
			_, err := f.WriteAt(make([]byte, 10), 5*size+100)
			return err
		}},
		{"made longer within the chunk", 500_000, func(ctx context.Context, f *client.File) error { return f.Truncate(ctx, 500_000) }},
		{"made longer to the chunk's end", size, func(ctx context.Context, f *client.File) error { return f.Truncate(ctx, size) }},
		{"made longer by chunks", 7*size + 5, func(ctx context.Context, f *client.File) error { return f.Truncate(ctx, 7*size+5) }},
		{"cut and made longer", 9 * size, func(ctx context.Context, f *client.File) error {
			return errors.Join(f.Truncate(ctx, 100), f.Truncate(ctx, 9*size))
		}},
	}
	for _, g := range grow {
		t.Run(g.name, func(t *testing.T) {
			inMemory(t, Config{Chunkservers: 3}, func(ctx context.Context, t *testing.T, cl *Cluster) {
				a, b := two(ctx, t, cl)
				defer a.Close()
				defer b.Close()
				fa := chunked(ctx, t, a, "/f", bytes.Repeat([]byte{1}, 10_000))
				fb, err := b.OpenFile(ctx, "/f", os.O_RDWR, 0)
				check(t, err)
				for _, f := range []*client.File{fa, fb} { // both know the tail now
					_, err = f.Append(ctx, bytes.Repeat([]byte{2}, 10))
					check(t, err)
				}
				check(t, g.grow(ctx, fb))
				end := g.end
				for i, f := range []*client.File{fa, fa, fb, fa} {
					data := bytes.Repeat([]byte{byte(3 + i)}, 5000)
					off, err := f.Append(ctx, data)
					check(t, err)
					if off != end {
						t.Fatalf("append %d went to %d, the file ended at %d", i, off, end)
					}
					end += int64(len(data))
					got := make([]byte, len(data))
					if _, err := fb.ReadAt(got, off); err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, data) {
						t.Fatalf("append %d reads back wrong: %v", i, err)
					}
				}
				info, err := b.Stat(ctx, "/f")
				check(t, err)
				if info.Size() != end {
					t.Errorf("the file has %d bytes, want %d", info.Size(), end)
				}
				check(t, fa.Close())
				check(t, fb.Close())
			})
		})
	}
}

// TestAppendAfterAFailedExtension: an extension that is given up half way does not keep others from appending.
func TestAppendAfterAFailedExtension(t *testing.T) {
	inMemory(t, Config{Chunkservers: 3}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		a, b := two(ctx, t, cl)
		defer a.Close()
		defer b.Close()
		fa := chunked(ctx, t, a, "/f", bytes.Repeat([]byte{1}, 10_000))
		_, err := fa.Append(ctx, []byte("x"))
		check(t, err)
		fb, err := b.OpenFile(ctx, "/f", os.O_RDWR, 0)
		check(t, err)
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		cl.Net.Cut(MasterHost, ClientHost(1))
		if err := fb.Truncate(short, 1<<20); err == nil {
			t.Fatal("truncated without a master")
		}
		if off, err := fa.Append(ctx, []byte("y")); err != nil || off != 10_001 {
			t.Fatalf("append went to %d, %v", off, err)
		}
		cl.Net.Heal(MasterHost, ClientHost(1))
		check(t, fa.Close())
		check(t, fb.Close())
	})
}

// TestRecordsGoBehindWhatOthersAdded is TestAppendGoesBehindWhatOthersAdded for records: they stay whole, once each, and in order.
func TestRecordsGoBehindWhatOthersAdded(t *testing.T) {
	inMemory(t, Config{Chunkservers: 3}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		a, b := two(ctx, t, cl)
		defer a.Close()
		defer b.Close()
		fa, err := a.CreateFile(ctx, "/f", os.O_RDWR|os.O_EXCL, 0o644, client.CreateOptions{ChunkSize: dfs.MinChunkSize})
		check(t, err)
		fb, err := b.OpenFile(ctx, "/f", os.O_RDWR, 0)
		check(t, err)
		var last int64
		for i := range 6 {
			for j, f := range []*client.File{fa, fb} {
				off, err := f.AppendRecord(ctx, bytes.Repeat([]byte{byte(2*i + j + 1)}, 300_000))
				check(t, err)
				if off < last {
					t.Fatalf("record %d begins at %d, before %d", 2*i+j, off, last)
				}
				last = off + 300_000
			}
			if i == 2 { // to a chunk's end, as padding is
				check(t, fb.Truncate(ctx, (last/dfs.MinChunkSize+2)*dfs.MinChunkSize))
				last = (last/dfs.MinChunkSize + 2) * dfs.MinChunkSize
			}
		}
		next := byte(1)
		_, err = fb.ReadRecords(ctx, 0, func(_ int64, data []byte) error {
			if len(data) != 300_000 || data[0] != next {
				t.Errorf("record of %d bytes with %d, want %d", len(data), data[0], next)
			}
			next++
			return nil
		})
		check(t, err)
		if next != 13 {
			t.Errorf("%d records", next-1)
		}
		check(t, fa.Close())
		check(t, fb.Close())
	})
}

// TestSyncCoversWhatOthersWrote: one client writes in several chunks and does not sync, another syncs, and then the power fails everywhere. Also when the writer's primary
// has died in between, and when the master was restarted.
func TestSyncCoversWhatOthersWrote(t *testing.T) {
	for _, between := range []string{"nothing", "the primary of a chunk dies", "the master restarts"} {
		t.Run(between, func(t *testing.T) {
			disks := make([]*vfs.Crashable, 4)
			cfg := Config{Chunkservers: len(disks), disk: func(i int) vfs.FS {
				disks[i] = vfs.NewCrashable()
				return disks[i]
			}}
			inMemory(t, cfg, func(ctx context.Context, t *testing.T, cl *Cluster) {
				a, b := two(ctx, t, cl)
				defer a.Close()
				defer b.Close()
				want := pattern(4*dfs.MinChunkSize, 1)
				fa := chunked(ctx, t, a, "/f", want)
				fb, err := b.OpenFile(ctx, "/f", os.O_RDWR, 0)
				check(t, err)
				chunks, err := b.Chunks(ctx, "/f")
				check(t, err)
				switch between {
				case "the primary of a chunk dies":
					check(t, cl.KillChunkserver(ctx, cl.index(t, chunks[0].Replicas[0].Server)))
					time.Sleep(45 * time.Second) // longer than its leases
				case "the master restarts":
					check(t, cl.KillMaster(ctx))
					check(t, cl.StartMaster(ctx))
					time.Sleep(3 * time.Second) // heartbeats
				}
				check(t, fb.Sync(ctx))
				for i := range disks {
					check(t, cl.KillChunkserver(ctx, i))
					cl.disks[i] = disks[i].CrashKeepNothing()
				}
				check(t, cl.KillMaster(ctx))
				check(t, cl.start(ctx))
				got, err := b.ReadFile(ctx, "/f")
				check(t, err)
				if !bytes.Equal(got, want) {
					t.Errorf("after the power failure: %s", difference(got, want))
				}
				check(t, fa.Close())
				check(t, fb.Close())
			})
		})
	}
}
