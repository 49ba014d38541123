package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"dfs/client"
	"dfs/client/internal/fake"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run runs f in a bubble with a fake cluster of three chunkservers and a client.
func run(t *testing.T, f func(t *testing.T, b *fake.Cluster, c *client.Client), change ...func(*client.Config)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := fake.Start(t, 3)
		c := dial(t, b, "client", change...)
		f(t, b, c)
	})
}

func dial(t *testing.T, b *fake.Cluster, host string, change ...func(*client.Config)) *client.Client {
	t.Helper()
	cfg := client.Config{Masters: []string{fake.MasterAddr}, Network: b.Net.Host(host), Caller: &client.Caller{}, Name: host}
	for _, f := range change {
		f(&cfg)
	}
	c, err := client.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
			t.Errorf("Close: %v", err)
		}
	})
	return c
}

func random(n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, c *client.Client, path string) *client.File {
	t.Helper()
	return must[*client.File](t)(c.Create(t.Context(), path, 0o644))
}

func TestSmallFilesTakeOneCall(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		ctx := t.Context()
		check(t, c.WriteFile(ctx, "/warm", nil, 0o644)) // opens the session
		before := b.TotalCalls()
		check(t, c.WriteFile(ctx, "/small", []byte("hello"), 0o644))
		if n := b.TotalCalls() - before; n != 1 {
			t.Errorf("writing took %d calls", n)
		}
		before = b.TotalCalls()
		if got := must[[]byte](t)(c.ReadFile(ctx, "/small")); string(got) != "hello" {
			t.Errorf("read %q", got)
		}
		if n := b.TotalCalls() - before; n != 1 {
			t.Errorf("reading took %d calls", n)
		}
		before = b.TotalCalls()
		f := must[*client.File](t)(c.Open(ctx, "/small"))
		if got := must[[]byte](t)(io.ReadAll(f)); string(got) != "hello" {
			t.Errorf("read %q", got)
		}
		if n := b.TotalCalls() - before; n != 1 {
			t.Errorf("opening and reading took %d calls", n)
		}
		check(t, f.Close())
		synctest.Wait()
		if b.Opens() != 0 {
			t.Errorf("the master still counts %d handles", b.Opens())
		}
		check(t, c.WriteFile(ctx, "/small", []byte("x"), 0o644))
		if got := must[[]byte](t)(c.ReadFile(ctx, "/small")); string(got) != "x" {
			t.Errorf("read %q", got)
		}
	})
}

func TestInlineReadsAreFresh(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		check(t, c.WriteFile(t.Context(), "/f", []byte("old"), 0o644))
		f := must[*client.File](t)(c.Open(t.Context(), "/f"))
		check(t, c.WriteFile(t.Context(), "/f", []byte("newer"), 0o644))
		p := make([]byte, 10)
		if n, err := f.ReadAt(p, 0); string(p[:n]) != "newer" || err != io.EOF {
			t.Errorf("ReadAt: %q, %v", p[:n], err)
		}
		time.Sleep(2 * time.Second) // what came with Open is too old by now
		if got := must[[]byte](t)(io.ReadAll(f)); string(got) != "newer" {
			t.Errorf("Read: %q", got)
		}
		check(t, f.Close())
	})
}

// TestLargeFile writes and reads across chunks (of 1 MiB) in several ways.
func TestLargeFile(t *testing.T) {
	data := random(3<<20 + 777)
	for name, write := range map[string]func(t *testing.T, f *client.File){
		"one Write": func(t *testing.T, f *client.File) {
			if n := must[int](t)(f.Write(data)); n != len(data) {
				t.Fatalf("wrote %d", n)
			}
		},
		"odd Writes": func(t *testing.T, f *client.File) {
			for p := data; len(p) > 0; {
				n := min(len(p), 300_001)
				must[int](t)(f.Write(p[:n]))
				p = p[n:]
			}
		},
		"ReadFrom": func(t *testing.T, f *client.File) {
			if n := must[int64](t)(f.ReadFrom(bytes.NewReader(data))); n != int64(len(data)) {
				t.Fatalf("wrote %d", n)
			}
		},
		"BufferedWriter": func(t *testing.T, f *client.File) {
			w := f.Buffered()
			for p := data; len(p) > 0; {
				n := min(len(p), 100_003)
				must[int](t)(w.Write(p[:n]))
				p = p[n:]
			}
		},
		"WriteAt backwards": func(t *testing.T, f *client.File) {
			for end := len(data); end > 0; {
				from := max(0, end-700_000)
				must[int](t)(f.WriteAt(data[from:end], int64(from)))
				end = from
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
				ctx := t.Context()
				f := create(t, c, "/big")
				write(t, f)
				check(t, f.Sync(ctx))
				check(t, f.Close())
				other := dial(t, b, "other")
				if i := must[*client.FileInfo](t)(other.Stat(ctx, "/big")); i.Size() != int64(len(data)) {
					t.Errorf("length %d", i.Size())
				}
				if got := must[[]byte](t)(other.ReadFile(ctx, "/big")); !bytes.Equal(got, data) {
					t.Error("ReadFile: wrong bytes")
				}
				g := must[*client.File](t)(other.Open(ctx, "/big"))
				var out bytes.Buffer
				if n := must[int64](t)(g.WriteTo(&out)); n != int64(len(data)) || !bytes.Equal(out.Bytes(), data) {
					t.Errorf("WriteTo: %d bytes", n)
				}
				must[int64](t)(g.Seek(0, io.SeekStart))
				for _, size := range []int{7, 4096, 100_000, 3 << 20} {
					must[int64](t)(g.Seek(12345, io.SeekStart))
					want := data[12345:min(len(data), 12345+40*size)]
					got := make([]byte, 0, len(want))
					p := make([]byte, size)
					for len(got) < len(want) {
						n, err := g.Read(p)
						got = append(got, p[:n]...)
						if err != nil {
							t.Fatalf("Read of %d: %v after %d bytes", size, err, len(got))
						}
					}
					if !bytes.Equal(got[:len(want)], want) {
						t.Errorf("Read of %d: wrong bytes", size)
					}
				}
				must[int64](t)(g.Seek(-10, io.SeekEnd))
				if got := must[[]byte](t)(io.ReadAll(g)); !bytes.Equal(got, data[len(data)-10:]) {
					t.Error("the last ten bytes are wrong")
				}
				check(t, g.Close())
				check(t, other.Close())
			})
		})
	}
}

// TestRandomModel compares random operations on one file with a byte slice.
func TestRandomModel(t *testing.T) {
	for seed := range uint64(20) {
		run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
			r := rand.New(rand.NewPCG(seed, 7))
			f := must[*client.File](t)(c.OpenFile(t.Context(), "/f", os.O_RDWR|os.O_CREATE, 0o644))
			var model []byte
			const limit = 4 << 20
			put := func(p []byte, off int) {
				if n := off + len(p); n > len(model) {
					model = append(model, make([]byte, n-len(model))...)
				}
				copy(model[off:], p)
			}
			for step := range 60 {
				size := 1 + r.IntN(1<<uint(1+r.IntN(20)))
				off := r.IntN(1 + r.IntN(limit))
				if r.IntN(2) == 0 {
					off %= 8192
				}
				switch op := r.IntN(8); op {
				case 0, 1:
					p := random(size + step)
					put(p, off)
					if n, err := f.WriteAt(p, int64(off)); n != len(p) || err != nil {
						t.Fatalf("seed %d step %d: WriteAt: %d, %v", seed, step, n, err)
					}
				case 2:
					p := random(size)
					at, err := f.Append(t.Context(), p)
					if err != nil || at != int64(len(model)) {
						t.Fatalf("seed %d step %d: Append of %d went to %d, the length was %d: %v", seed, step, size, at, len(model), err)
					}
					put(p, len(model))
				case 3:
					n := r.IntN(1 + r.IntN(limit))
					check(t, f.Truncate(t.Context(), int64(n)))
					model = append(model[:min(n, len(model))], make([]byte, max(0, n-len(model)))...)
				case 4:
					check(t, f.Zero(t.Context(), int64(off), int64(size)))
					if off < len(model) {
						clear(model[off:min(len(model), off+size)])
					}
				default:
					p := make([]byte, size)
					n, err := f.ReadAt(p, int64(off))
					want := model[min(off, len(model)):min(off+size, len(model))]
					if !bytes.Equal(p[:n], want) || (n < size) != (err == io.EOF) || (err != nil && err != io.EOF) {
						t.Fatalf("seed %d step %d: ReadAt %d at %d of %d: %d bytes, equal %v, %v", seed, step, size, off, len(model), n, bytes.Equal(p[:n], want), err)
					}
				}
			}
			check(t, f.Close())
			if got := must[[]byte](t)(c.ReadFile(t.Context(), "/f")); !bytes.Equal(got, model) {
				t.Fatalf("seed %d: the end is wrong", seed)
			}
		})
	}
}

func TestRandomReadTakesOneCall(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		check(t, c.WriteFile(t.Context(), "/f", random(900_000), 0o644))
		f := must[*client.File](t)(c.Open(t.Context(), "/f"))
		p := make([]byte, 4096)
		must[int](t)(f.ReadAt(p, 0))
		before, reads := b.TotalCalls(), serverReads(b)
		for i := range 50 {
			must[int](t)(f.ReadAt(p, int64(i*17)%200*4096))
		}
		if b.TotalCalls() != before || serverReads(b)-reads != 50 {
			t.Errorf("50 reads took %d calls to the master and %d to chunkservers", b.TotalCalls()-before, serverReads(b)-reads)
		}
		check(t, f.Close())
	})
}

func serverReads(b *fake.Cluster) int64 {
	n := int64(0)
	for _, s := range b.Servers {
		n += s.Reads.Load()
	}
	return n
}

func TestReadaheadGrows(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		data := random(12 << 20)
		check(t, c.WriteFile(t.Context(), "/f", data, 0o644))
		for _, s := range b.Servers {
			s.OnRead = func(context.Context, *dfsv1.ReadRequest) error { time.Sleep(10 * time.Millisecond); return nil }
		}
		f := must[*client.File](t)(c.Open(t.Context(), "/f"))
		start := time.Now()
		var out bytes.Buffer
		must[int64](t)(io.CopyBuffer(struct{ io.Writer }{&out}, struct{ io.Reader }{f}, make([]byte, 64<<10)))
		took := time.Since(start)
		if !bytes.Equal(out.Bytes(), data) {
			t.Error("wrong bytes")
		}
		// Without reading ahead: 192 reads of 64 KiB, 10 ms each.
		if took > 300*time.Millisecond {
			t.Errorf("reading 12 MiB from servers that take 10 ms took %v", took)
		}
		check(t, f.Close())

		f = must[*client.File](t)(c.Open(t.Context(), "/f"))
		start = time.Now()
		out.Reset()
		must[int64](t)(f.WriteTo(&out))
		if took := time.Since(start); took > 60*time.Millisecond || !bytes.Equal(out.Bytes(), data) {
			t.Errorf("WriteTo took %v", took)
		}
		check(t, f.Close())
	})
}

func TestReadaheadSeesOwnWrites(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		check(t, c.WriteFile(t.Context(), "/f", make([]byte, 4<<20), 0o644))
		f := must[*client.File](t)(c.OpenFile(t.Context(), "/f", os.O_RDWR, 0))
		p := make([]byte, 64<<10)
		for range 8 {
			must[int](t)(f.Read(p))
		}
		must[int](t)(f.WriteAt([]byte{1, 2, 3}, 8*64<<10))
		must[int](t)(f.Read(p))
		if !bytes.Equal(p[:4], []byte{1, 2, 3, 0}) {
			t.Errorf("read %v", p[:4])
		}
		check(t, f.Close())
	})
}

func TestSparseFile(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		f := create(t, c, "/sparse")
		must[int](t)(f.WriteAt([]byte("end"), 10<<20))
		p := make([]byte, 3<<20)
		p[0], p[len(p)-1] = 1, 1
		if n := must[int](t)(f.ReadAt(p, 5<<20)); n != len(p) || !bytes.Equal(p, make([]byte, len(p))) {
			t.Errorf("a hole reads as something")
		}
		n, err := f.ReadAt(p, 9<<20)
		if n != 1<<20+3 || err != io.EOF || string(p[n-3:n]) != "end" {
			t.Errorf("%d, %v", n, err)
		}
		if _, err := f.ReadAt(p, 11<<20); err != io.EOF {
			t.Errorf("beyond the end: %v", err)
		}
		check(t, f.Close())
		infos := must[[]client.ChunkInfo](t)(c.Chunks(t.Context(), "/sparse"))
		if len(infos) != 2 || infos[1].Index != 10 || infos[1].Length != 3 || len(infos[1].Replicas) != 3 || infos[1].Replicas[2].State != client.ReplicaValid {
			t.Errorf("chunks: %+v", infos)
		}
		b.Net.Kill(b.Servers[0].Host)
		states := map[string]int{}
		for _, r := range must[[]client.ChunkInfo](t)(c.Chunks(t.Context(), "/sparse"))[1].Replicas {
			states[r.State]++
		}
		if states[client.ReplicaUnreachable] != 1 || states[client.ReplicaValid] != 2 {
			t.Errorf("states: %v", states)
		}
	})
}

func TestAppendAcrossChunks(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		const writers, each, size = 8, 12, 50_000
		var wg sync.WaitGroup
		offs := make([][]int64, writers)
		for w := range writers {
			wg.Go(func() {
				f, err := c.OpenFile(t.Context(), "/log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
				if err != nil {
					t.Error(err)
					return
				}
				p := bytes.Repeat([]byte{byte(w + 1)}, size)
				for range each {
					off, err := f.Append(t.Context(), p)
					if err != nil {
						t.Error(err)
						return
					}
					offs[w] = append(offs[w], off)
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		got := must[[]byte](t)(c.ReadFile(t.Context(), "/log"))
		if len(got) != writers*each*size {
			t.Fatalf("%d bytes, want %d", len(got), writers*each*size)
		}
		counts := map[byte]int{}
		for _, v := range got {
			counts[v]++
		}
		for w := range writers {
			if counts[byte(w+1)] != each*size {
				t.Errorf("writer %d has %d bytes", w, counts[byte(w+1)])
			}
			for _, off := range offs[w] { // what fits into the chunk is in one piece
				n := min(size, int(1<<20-off%(1<<20)))
				if !bytes.Equal(got[off:int(off)+n], bytes.Repeat([]byte{byte(w + 1)}, n)) {
					t.Errorf("writer %d: the append at %d is not in one piece", w, off)
				}
			}
		}
	})
}

func TestRecords(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		// Acknowledgements get lost and a primary dies on the way.
		var acks atomic.Int64
		for _, s := range b.Servers {
			s.OnAck = func(*dfsv1.WriteHeader) error {
				if acks.Add(1)%7 == 0 {
					return fake.ErrSilent
				}
				return nil
			}
		}
		const writers, each = 6, 30
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				f, err := c.OpenFile(t.Context(), "/rec", os.O_RDWR|os.O_CREATE, 0o644)
				if err != nil {
					t.Error(err)
					return
				}
				for i := range each {
					rec := append([]byte(fmt.Sprintf("%d/%d ", w, i)), random(10_000+i*1000)...)
					if _, err := f.AppendRecord(t.Context(), rec); err != nil {
						t.Errorf("record %d/%d: %v", w, i, err)
						return
					}
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		f := must[*client.File](t)(c.Open(t.Context(), "/rec"))
		seen := map[string]int{}
		end := must[int64](t)(f.ReadRecords(t.Context(), 0, func(off int64, data []byte) error {
			name, rest, _ := bytes.Cut(data, []byte(" "))
			var w, i int
			if _, err := fmt.Sscanf(string(name), "%d/%d", &w, &i); err != nil || !bytes.Equal(rest, random(10_000+i*1000)) {
				t.Errorf("record %q at %d is damaged", name, off)
			}
			seen[string(name)]++
			return nil
		}))
		if len(seen) != writers*each {
			t.Errorf("%d records, want %d", len(seen), writers*each)
		}
		for name, n := range seen {
			if n != 1 {
				t.Errorf("record %s is there %d times", name, n)
			}
		}
		if acks.Load()/7 < 10 {
			t.Errorf("only %d acknowledgements were lost", acks.Load()/7)
		}
		// Reading goes on from where it ended.
		w := must[*client.File](t)(c.OpenFile(t.Context(), "/rec", os.O_RDWR, 0))
		at := must[int64](t)(w.AppendRecord(t.Context(), []byte("one more")))
		n := 0
		must[int64](t)(f.ReadRecords(t.Context(), end, func(off int64, data []byte) error {
			n++
			if off != at || string(data) != "one more" {
				t.Errorf("%q at %d, appended at %d", data, off, at)
			}
			return nil
		}))
		if n != 1 {
			t.Errorf("%d new records", n)
		}
		if _, err := w.AppendRecord(t.Context(), make([]byte, client.MaxRecord+1)); !errors.Is(err, dfserr.ErrInvalid) {
			t.Errorf("an oversized record: %v", err)
		}
		check(t, w.Close())
		check(t, f.Close())
		check(t, c.WriteFile(t.Context(), "/text", []byte(strings.Repeat("no records here ", 9)), 0o644))
		g := must[*client.File](t)(c.Open(t.Context(), "/text"))
		if _, err := g.ReadRecords(t.Context(), 0, nil); !errors.Is(err, dfserr.ErrCorrupt) {
			t.Errorf("reading text as records: %v", err)
		}
		check(t, g.Close())
	}, func(c *client.Config) { c.AckTimeout = time.Second })
}

func TestWriteErrorsStay(t *testing.T) {
	for _, how := range []string{"Write", "Buffered"} {
		t.Run(how, func(t *testing.T) {
			run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
				f := create(t, c, "/f")
				must[int](t)(f.Write(make([]byte, 10_000)))
				for _, s := range b.Servers {
					s.OnWrite = func(context.Context, *dfsv1.WriteHeader) error { return dfserr.ErrNoSpace }
				}
				if how == "Write" {
					if _, err := f.Write(make([]byte, 10_000)); !errors.Is(err, dfserr.ErrNoSpace) {
						t.Fatalf("Write: %v", err)
					}
				} else {
					w := f.Buffered()
					must[int](t)(w.Write(make([]byte, 10_000)))
					if err := w.Flush(t.Context()); !errors.Is(err, dfserr.ErrNoSpace) {
						t.Fatalf("Flush: %v", err)
					}
				}
				for _, s := range b.Servers {
					s.OnWrite = nil
				}
				for range 2 {
					if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, dfserr.ErrNoSpace) {
						t.Errorf("a later write: %v", err)
					}
					if err := f.Sync(t.Context()); !errors.Is(err, dfserr.ErrNoSpace) {
						t.Errorf("Sync: %v", err)
					}
				}
				var pe *fs.PathError
				if err := f.Close(); !errors.Is(err, dfserr.ErrNoSpace) || !errors.As(err, &pe) || pe.Path != "/f" {
					t.Errorf("Close: %v", err)
				}
				if err := f.Close(); !errors.Is(err, fs.ErrClosed) {
					t.Errorf("a second Close: %v", err)
				}
			})
		})
	}
}

// TestCallerGoesAway: the end of the caller's context is the caller's, not the file's.
func TestCallerGoesAway(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		f := create(t, c, "/f")
		must[int](t)(f.Write(make([]byte, 10_000)))
		for _, s := range b.Servers {
			s.OnWrite = func(context.Context, *dfsv1.WriteHeader) error { return dfserr.ErrSafeMode }
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := f.WithContext(ctx).Write([]byte("x"))
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Write: %v", err)
		}
		for _, s := range b.Servers {
			s.OnWrite = nil
		}
		must[int](t)(f.Write([]byte("y")))
		check(t, f.Close())
	})
}

func TestMasterUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := rpc.NewMem()
		start := time.Now()
		_, err := client.Dial(t.Context(), client.Config{Masters: []string{"m1:7", "m2:8"}, Network: m.Host("client")})
		if !errors.Is(err, dfserr.ErrUnavailable) || !strings.Contains(fmt.Sprint(err), "tried m1:7, m2:8") || time.Since(start) > 6*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		for _, cfg := range []client.Config{{}, {Masters: []string{""}}} {
			if _, err := client.Dial(t.Context(), cfg); !errors.Is(err, dfserr.ErrInvalid) {
				t.Errorf("%v: %v", cfg.Masters, err)
			}
		}
	})
}

func TestWrongCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := fake.Start(t, 0)
		defer b.Stop()
		_, err := client.Dial(t.Context(), client.Config{Masters: []string{fake.MasterAddr}, Network: b.Net.Host("c"), ClusterID: 8})
		if !errors.Is(err, dfserr.ErrWrongCluster) {
			t.Errorf("got %v", err)
		}
	})
}

// TestMastersRotate: the second address leads, the first is dead, then says that it does not lead.
func TestMastersRotate(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		must[client.FSStats](t)(c.StatFS(t.Context()))
		n := 0
		b.Before = func(string, any) error {
			if n++; n%2 == 1 {
				return dfserr.ErrNotLeader
			}
			return nil
		}
		check(t, c.Mkdir(t.Context(), "/d", 0o755))
		if n < 2 {
			t.Error("the fault did not fire")
		}
	}, func(c *client.Config) { c.Masters = []string{"dead:1", fake.MasterAddr} })
}

// TestMutationsHappenOnce loses requests and replies of every mutation, and the master in the middle.
func TestMutationsHappenOnce(t *testing.T) {
	var fired atomic.Int64
	faults := func(_ context.Context, _, method string) rpc.Fault {
		switch fired.Add(1) % 5 {
		case 1:
			return rpc.Fault{DropReply: true}
		case 2:
			return rpc.Fault{DropRequest: true}
		case 3:
			return rpc.Fault{Duplicate: true}
		}
		return rpc.Fault{}
	}
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		ctx := t.Context()
		for i := range 30 {
			check(t, c.Mkdir(ctx, fmt.Sprintf("/d%d", i), 0o755)) // twice would be ErrExist
			check(t, c.Rename(ctx, fmt.Sprintf("/d%d", i), fmt.Sprintf("/e%d", i)))
			if i%2 == 0 {
				check(t, c.Remove(ctx, fmt.Sprintf("/e%d", i))) // twice would be ErrNotExist
			}
			if i == 15 {
				b.Net.Kill("master")
				time.AfterFunc(3*time.Second, func() { b.RestartMaster(t) })
			}
		}
		if n := len(must[[]*client.FileInfo](t)(c.ReadDir(ctx, "/"))); n != 15 {
			t.Errorf("%d entries", n)
		}
		if fired.Load() < 100 {
			t.Errorf("%d faults", fired.Load())
		}
	}, func(c *client.Config) { c.Faults = faults; c.DialTimeout = time.Minute })
}

func TestSessionLost(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		ctx := t.Context()
		f := create(t, c, "/f")
		synctest.Wait()
		b.ForgetSessions()
		check(t, c.Mkdir(ctx, "/d", 0o755)) // never carried out: made again in a new session
		if n := b.Calls("OpenSession"); n != 2 {
			t.Errorf("%d sessions were opened", n)
		}
		synctest.Wait()
		if b.Opens() != 1 {
			t.Errorf("the open file was announced %d times", b.Opens())
		}
		must[int](t)(f.Write([]byte("still works")))
		check(t, f.Close())

		// In doubt: the reply was lost, and with it the session.
		once := true
		b.After = func(method string, _ any) error {
			if method == "Mkdir" || method != "Create" || !once {
				return nil
			}
			once = false
			b.ForgetSessions()
			return dfserr.ErrUnavailable
		}
		if err := c.Mkdir(ctx, "/e", 0o755); !errors.Is(err, dfserr.ErrUnknownSession) || once {
			t.Errorf("got %v", err)
		}
		if _, err := c.Stat(ctx, "/e"); err != nil {
			t.Errorf("it had happened: %v", err)
		}
	})
}

func TestSessionLostWhileIdle(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		f := create(t, c, "/f")
		synctest.Wait()
		b.ForgetSessions()
		time.Sleep(15 * time.Second) // the keepalive finds out and announces the open file
		if b.Opens() != 1 || b.Calls("OpenSession") != 2 {
			t.Errorf("%d opens, %d sessions", b.Opens(), b.Calls("OpenSession"))
		}
		check(t, f.Close())
	})
}

// TestRequestWindow: while one request hangs, at most ReplyWindow/2 numbers are given out.
func TestRequestWindow(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		check(t, c.Mkdir(t.Context(), "/first", 0o755))
		hang := make(chan struct{})
		var highest, held atomic.Uint64
		b.Before = func(_ string, req any) error {
			if r, ok := req.(*dfsv1.CreateRequest); ok {
				highest.Store(max(highest.Load(), r.GetHeader().GetSeq()))
				if held.CompareAndSwap(0, r.GetHeader().GetSeq()) {
					<-hang
				}
			}
			return nil
		}
		var wg sync.WaitGroup
		for i := range 700 {
			wg.Go(func() {
				if err := c.Mkdir(t.Context(), fmt.Sprintf("/d%d", i), 0o755); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if got, most := highest.Load(), held.Load()+dfs.ReplyWindow/2; got >= most || got < 500 {
			t.Errorf("request %d was made while %d was outstanding", got, held.Load())
		}
		close(hang)
		wg.Wait()
	}, func(c *client.Config) { c.CallTimeout = time.Minute })
}

func TestBadArguments(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		ctx := t.Context()
		f := create(t, c, "/f")
		calls := b.TotalCalls()
		long := strings.Repeat("x", 256)
		for name, err := range map[string]error{
			"relative path":        c.Mkdir(ctx, "d", 0o755),
			"empty path":           c.Mkdir(ctx, "", 0o755),
			"NUL":                  c.Mkdir(ctx, "/a\x00b", 0o755),
			"the root":             c.Mkdir(ctx, "/", 0o755),
			"dot":                  c.Remove(ctx, "/a/."),
			"dotdot":               c.Rename(ctx, "/a/..", "/b"),
			"negative length":      f.Truncate(ctx, -1),
			"empty link":           c.Symlink(ctx, "", "/l"),
			"too many replicas":    c.SetReplication(ctx, "/f", 17),
			"negative replication": c.SetReplication(ctx, "/f", -1),
			"negative id":          c.Chown(ctx, "/f", -2, 0),
			"xattr without name":   c.Setxattr(ctx, "/f", "", nil, client.XattrSet),
			"negative offset":      errOf(f.WriteAt([]byte("x"), -1)),
			"negative read offset": errOf(f.ReadAt(make([]byte, 1), -1)),
			"odd chunk size":       errOf(c.CreateFile(ctx, "/g", os.O_RDWR, 0o644, client.CreateOptions{ChunkSize: 12345})),
		} {
			if !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
		for name, err := range map[string]error{
			"name": c.Mkdir(ctx, "/"+long, 0o755), "path": errOf(c.Stat(ctx, "/"+strings.Repeat("a/", 3000))), "target": c.Symlink(ctx, strings.Repeat("x", 5000), "/l"),
		} {
			if !errors.Is(err, dfserr.ErrNameTooLong) {
				t.Errorf("%s too long: %v", name, err)
			}
		}
		for name, err := range map[string]error{
			"length":   f.Truncate(ctx, dfs.MaxFileLength+1),
			"offset":   errOf(f.WriteAt([]byte("x"), dfs.MaxFileLength)),
			"overflow": errOf(f.WriteAt([]byte("xy"), 1<<63-2)),
		} {
			if !errors.Is(err, dfserr.ErrFileTooLarge) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := f.Seek(1<<62, io.SeekStart); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Seek: %v", err)
		}
		if b.TotalCalls() != calls {
			t.Error("a bad argument went to the master")
		}
		if n, err := f.ReadAt(make([]byte, 1), 1<<62); n != 0 || err != io.EOF {
			t.Errorf("reading far beyond: %d, %v", n, err)
		}
		check(t, f.Close()) // none of this stayed
		g := must[*client.File](t)(c.Open(ctx, "/f"))
		if _, err := g.Write([]byte("x")); !errors.Is(err, dfserr.ErrBadHandle) {
			t.Errorf("writing a file opened for reading: %v", err)
		}
		check(t, g.Close())
		if _, err := g.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("reading a closed file: %v", err)
		}
	})
}

func errOf[T any](_ T, err error) error { return err }

func TestOpenFlags(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		ctx := t.Context()
		check(t, c.WriteFile(ctx, "/f", []byte("content"), 0o640))
		if _, err := c.OpenFile(ctx, "/f", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644); !errors.Is(err, fs.ErrExist) {
			t.Errorf("O_EXCL: %v", err)
		}
		if _, err := c.Open(ctx, "/none"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("missing: %v", err)
		}
		check(t, c.Symlink(ctx, "/f", "/link"))
		f := must[*client.File](t)(c.OpenFile(ctx, "/link", os.O_RDWR|os.O_CREATE, 0o644))
		must[int](t)(f.WriteAt([]byte("C"), 0))
		check(t, f.Close())
		if got := must[[]byte](t)(c.ReadFile(ctx, "/f")); string(got) != "Content" {
			t.Errorf("through the link: %q", got)
		}
		check(t, c.WriteFile(ctx, "/link", []byte("short"), 0o644))
		if got := must[[]byte](t)(c.ReadFile(ctx, "/f")); string(got) != "short" {
			t.Errorf("WriteFile through the link: %q", got)
		}
		f = must[*client.File](t)(c.OpenFile(ctx, "/f", os.O_WRONLY|os.O_TRUNC, 0))
		check(t, f.Close())
		if i := must[*client.FileInfo](t)(c.Stat(ctx, "/f")); i.Size() != 0 || i.Mode() != 0o640 {
			t.Errorf("%v", i)
		}
		f = must[*client.File](t)(c.OpenFile(ctx, "/f", os.O_WRONLY|os.O_APPEND, 0))
		must[int](t)(f.Write([]byte("a")))
		must[int64](t)(f.Seek(0, io.SeekStart))
		must[int](t)(f.Write([]byte("b")))
		if _, err := f.WriteAt([]byte("c"), 0); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("WriteAt with O_APPEND: %v", err)
		}
		must[int64](t)(f.ReadFrom(bytes.NewReader(random(3 << 20))))
		check(t, f.Close())
		if got := must[[]byte](t)(c.ReadFile(ctx, "/f")); len(got) != 2+3<<20 || !bytes.Equal(got, append([]byte("ab"), random(3<<20)...)) {
			t.Errorf("appended: %d bytes", len(got))
		}
		check(t, c.Mkdir(ctx, "/dir", 0o755))
		if _, err := c.OpenFile(ctx, "/dir", os.O_RDWR, 0); !errors.Is(err, dfserr.ErrIsDir) {
			t.Errorf("writing a directory: %v", err)
		}
		if _, err := c.ReadFile(ctx, "/dir"); !errors.Is(err, dfserr.ErrIsDir) {
			t.Errorf("reading a directory: %v", err)
		}
		check(t, c.MkdirAll(ctx, "/a/b/c", 0o755))
		check(t, c.MkdirAll(ctx, "/a/b", 0o755))
		check(t, c.MkdirAll(ctx, "/", 0o755))
		check(t, c.RemoveAll(ctx, "/a"))
		check(t, c.RemoveAll(ctx, "/a"))
	})
}

func TestWritesSurviveChunkservers(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		data := random(9 << 20)
		f := create(t, c, "/f")
		w := f.Buffered()
		for i, p := 0, data; len(p) > 0; i++ {
			n := min(len(p), 500_000)
			must[int](t)(w.Write(p[:n]))
			p = p[n:]
			if i == 6 {
				b.Net.Kill(b.Servers[0].Host)
			}
			if i == 12 {
				b.Net.Kill(b.Servers[1].Host)
			}
		}
		check(t, w.Sync(t.Context()))
		check(t, w.Close())
		if got := must[[]byte](t)(c.ReadFile(t.Context(), "/f")); !bytes.Equal(got, data) {
			t.Error("wrong bytes")
		}
		if len(b.Reports()) < 2 {
			t.Errorf("%d reports", len(b.Reports()))
		}
	})
}

func TestSync(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		syncs := func() (n int64) {
			for _, s := range b.Servers {
				n += s.Syncs.Load()
			}
			return n
		}
		f := create(t, c, "/f")
		must[int](t)(f.Write([]byte("inline")))
		check(t, f.Sync(t.Context()))
		check(t, f.Sync(t.Context()))
		if syncs() != 0 {
			t.Error("an inline file was synced at chunkservers")
		}
		must[int](t)(f.Write(make([]byte, 3<<20)))
		check(t, f.Sync(t.Context()))
		if n := syncs(); n != 4 { // three dirty chunks and a bit of a fourth
			t.Errorf("%d chunks were synced", n)
		}
		check(t, f.Sync(t.Context()))
		if n := syncs(); n != 5 { // nothing is dirty; the tail may be, by others
			t.Errorf("%d chunks were synced", n)
		}
		for _, s := range b.Servers {
			s.OnSync = func(*dfsv1.SyncRequest) error { return dfserr.ErrInvalid }
		}
		must[int](t)(f.WriteAt([]byte("x"), 0))
		if err := f.Sync(t.Context()); !errors.Is(err, dfserr.ErrInvalid) {
			t.Errorf("a failed Sync: %v", err)
		}
		for _, s := range b.Servers {
			s.OnSync = nil
		}
		if err := f.Close(); !errors.Is(err, dfserr.ErrInvalid) {
			t.Errorf("Close after a failed Sync: %v", err)
		}
	})
}

func TestTruncateByOthersIsSeen(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		check(t, c.WriteFile(t.Context(), "/f", random(3<<20), 0o644))
		f := must[*client.File](t)(c.Open(t.Context(), "/f"))
		p := make([]byte, 3<<20)
		must[int](t)(f.ReadAt(p, 0))
		other := dial(t, b, "other")
		check(t, other.Truncate(t.Context(), "/f", 1<<20+5))
		time.Sleep(time.Second)
		if n, err := f.ReadAt(p, 0); n != 1<<20+5 || err != io.EOF {
			t.Errorf("%d, %v", n, err)
		}
		check(t, other.Truncate(t.Context(), "/f", 2<<20))
		if n, err := f.ReadAt(p, 1<<20); n != 1<<20 || err != io.EOF || !bytes.Equal(p[5:n], make([]byte, n-5)) {
			t.Errorf("after growing: %d, %v", n, err)
		}
		check(t, other.Close())
		check(t, f.Close())
	})
}

func TestFS(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		ctx := t.Context()
		check(t, c.MkdirAll(ctx, "/dir/sub", 0o755))
		for i := range 8 {
			check(t, c.WriteFile(ctx, fmt.Sprintf("/dir/file%d", i), random(i*i*i*12), 0o644)) // the last one in a chunk
		}
		check(t, c.WriteFile(ctx, "/dir/sub/deep", []byte("deep"), 0o600))
		check(t, fstest.TestFS(c.FS(ctx), "dir/file0", "dir/file7", "dir/sub/deep"))
		if got := must[[]byte](t)(fs.ReadFile(c.FS(ctx), "dir/file7")); !bytes.Equal(got, random(4116)) {
			t.Error("wrong bytes")
		}
	})
}

func TestListing(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		ctx := t.Context()
		for i := range 20 {
			check(t, c.Mkdir(ctx, fmt.Sprintf("/d%02d", i), 0o755))
		}
		var names []string
		check(t, c.ReadDirFunc(ctx, "/", "d04", func(i *client.FileInfo) error {
			names = append(names, i.Name())
			if len(names) == 7 {
				return fs.SkipAll
			}
			return nil
		}))
		if fmt.Sprint(names) != "[d05 d06 d07 d08 d09 d10 d11]" {
			t.Errorf("%v", names)
		}
		d := must[*client.File](t)(c.Open(ctx, "/"))
		n := 0
		for {
			entries, err := d.ReadDir(7)
			n += len(entries)
			if err == io.EOF {
				break
			}
			check(t, err)
		}
		if n != 20 {
			t.Errorf("%d entries", n)
		}
		check(t, d.Close())
	})
}

// TestManyGoroutines hammers one File; the race detector and the content are the judges.
func TestManyGoroutines(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		f := create(t, c, "/f")
		var wg sync.WaitGroup
		for g := range 16 {
			wg.Go(func() {
				p := bytes.Repeat([]byte{byte(g + 1)}, 70_000)
				for i := range 5 {
					off := int64(g*5+i) * 70_000
					if _, err := f.WriteAt(p, off); err != nil {
						t.Error(err)
					}
					q := make([]byte, len(p))
					if n, err := f.ReadAt(q, off); n != len(q) || (err != nil && err != io.EOF) || !bytes.Equal(p, q) {
						t.Errorf("goroutine %d reads %d bytes, %v", g, n, err)
					}
					if i == 2 {
						if err := f.Sync(t.Context()); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		check(t, f.Close())
		if i := must[*client.FileInfo](t)(c.Stat(t.Context(), "/f")); i.Size() != 16*5*70_000 {
			t.Errorf("length %d", i.Size())
		}
	})
}

func TestClientCloses(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		f := create(t, c, "/f")
		must[int](t)(f.Write(make([]byte, 100_000)))
		for _, s := range b.Servers {
			s.OnAck = func(*dfsv1.WriteHeader) error { return fake.ErrSilent }
		}
		done := make(chan error)
		go func() { _, err := f.Write([]byte("x")); done <- err }()
		synctest.Wait()
		check(t, c.Close())
		if err := <-done; !errors.Is(err, fs.ErrClosed) {
			t.Errorf("a write under way: %v", err)
		}
		if _, err := c.Stat(t.Context(), "/f"); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("Stat: %v", err)
		}
		if b.Calls("CloseSession") != 1 {
			t.Error("the session was not ended")
		}
		if err := c.Close(); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("a second Close: %v", err)
		}
	})
}

// TestCloseRename: closing under another name is one request that also ends the handle's count; when the name is refused the file is
// closed, complete, under its old one.
func TestCloseRename(t *testing.T) {
	run(t, func(t *testing.T, b *fake.Cluster, c *client.Client) {
		ctx, data := t.Context(), random(3*dfs.InlineMax)
		write := func(path string) *client.File {
			f, err := c.CreateFile(ctx, path, os.O_WRONLY|os.O_EXCL, 0o644, client.CreateOptions{Large: true})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Buffered().Write(data); err != nil {
				t.Fatal(err)
			}
			return f
		}
		read := func(path string) {
			t.Helper()
			if got, err := c.ReadFile(ctx, path); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: %d bytes, %v", path, len(got), err)
			}
		}
		if err := write("/temp").CloseRename("/final", true); err != nil {
			t.Fatal(err)
		}
		read("/final")
		if _, err := c.Stat(ctx, "/temp"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the old name: %v", err)
		}
		f := write("/temp")
		if err := f.CloseRename("/final", true); !errors.Is(err, fs.ErrExist) {
			t.Errorf("a name that is taken: %v", err)
		}
		if err := f.Close(); !errors.Is(err, dfserr.ErrClosed) {
			t.Errorf("second close: %v", err)
		}
		read("/temp")
		// What has no chunks is closed and then renamed.
		f, err := c.Create(ctx, "/small", 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(data[:10]); err != nil {
			t.Fatal(err)
		}
		if err := f.CloseRename("/small2", false); err != nil {
			t.Fatal(err)
		}
		if got, err := c.ReadFile(ctx, "/small2"); err != nil || !bytes.Equal(got, data[:10]) {
			t.Errorf("/small2: %d bytes, %v", len(got), err)
		}
	})
}
