package testcluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"dfs/client"
	"dfs/internal/dfs"
	"dfs/internal/rpc"
	"dfs/master"
	dfsv1 "dfs/proto/dfs/v1"
)

// snapshot reads all files below dir.
func snapshot(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		files[rel], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// lay writes the files of a snapshot to an empty directory.
func lay(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	for name, b := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// namespaceOf describes everything below the root: what must not change.
func namespaceOf(ctx context.Context, c *client.Client) ([]string, error) {
	var all []string
	var walk func(dir string) error
	walk = func(dir string) error {
		list, err := c.ReadDir(ctx, dir)
		if err != nil {
			return err
		}
		for _, i := range list {
			path := strings.TrimSuffix(dir, "/") + "/" + i.Name()
			a := i.Attr
			line := fmt.Sprintf("%s %v %d %d:%d n%d r%d c%d %q %v", path, a.Mode, a.Size, a.UID, a.GID, a.Nlink, a.Replication, a.Chunks, a.Target, a.Mtime.UnixNano())
			if a.Inline {
				b, err := c.ReadFile(ctx, path)
				if err != nil {
					return err
				}
				line += fmt.Sprintf(" %q", b)
			}
			if names, err := c.Listxattr(ctx, path); err == nil && len(names) > 0 {
				v, err := c.Getxattr(ctx, path, names[0])
				if err != nil {
					return err
				}
				line += fmt.Sprintf(" %s=%q", names[0], v)
			}
			all = append(all, line)
			if a.Mode.IsDir() {
				if err := walk(path); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return all, walk("/")
}

// TestFlippedBitInMasterFiles: with one bit flipped in any of its files a master either refuses to start or has
// everything as it was.
func TestFlippedBitInMasterFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a master for every flipped bit")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	dir := t.TempDir()
	cl, err := Start(ctx, Config{Dir: dir, Chunkservers: 3})
	if err != nil {
		t.Fatal(err)
	}
	c, err := cl.Client(ctx, "test")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		d := fmt.Sprintf("/dir%d", i%4)
		if err := c.MkdirAll(ctx, d, 0o750); err != nil {
			t.Fatal(err)
		}
		path := fmt.Sprintf("%s/file%d", d, i)
		mustWriteFile(ctx, t, c, path, []byte(strings.Repeat(path, 1+i*3)))
		switch i % 5 {
		case 0:
			err = c.Setxattr(ctx, path, "user.note", []byte(path), 0)
		case 1:
			err = c.Symlink(ctx, path, path+"-link")
		case 2:
			err = c.Link(ctx, path, path+"-hard")
		case 3:
			err = c.Rename(ctx, path, path+"-moved")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	mustWriteFile(ctx, t, c, "/large", pattern(dfs.MiB, 1))
	time.Sleep(3 * time.Second) // its length is recorded, so that no chunkserver need be asked
	want, err := namespaceOf(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	var states []map[string][]byte
	live := filepath.Join(dir, "master")
	if err := cl.KillMaster(ctx); err != nil {
		t.Fatal(err)
	}
	states = append(states, snapshot(t, live)) // as a crash leaves it
	if err := cl.StartMaster(ctx); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if err := cl.Close(); err != nil {
		t.Fatal(err)
	}
	states = append(states, snapshot(t, live)) // as a clean stop leaves it
	rng := rand.New(rand.NewPCG(1, 2))
	outcome := map[string]int{}
	for s, files := range states {
		names := make([]string, 0, len(files))
		for name, b := range files {
			if len(b) > 0 && !strings.HasPrefix(name, "BALLAST") {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		for _, name := range names {
			offsets := []int{0, len(files[name]) / 2, rng.IntN(len(files[name]))}
			slices.Sort(offsets)
			for _, off := range slices.Compact(offsets) {
				damaged := map[string][]byte{}
				for n, b := range files {
					damaged[n] = b
				}
				b := slices.Clone(files[name])
				b[off] ^= 1 << rng.IntN(8)
				damaged[name] = b
				what := fmt.Sprintf("state %d, %s, offset %d of %d", s, name, off, len(b))
				got, err := namespaceOfDamaged(ctx, t, damaged)
				switch {
				case err != nil:
					outcome["refused"]++
					if strings.Contains(err.Error(), "panic") {
						t.Errorf("%s: %v", what, err)
					}
				case !reflect.DeepEqual(got, want):
					t.Errorf("%s: the master serves another state:\n got %d entries %q\nwant %d entries %q", what, len(got), got, len(want), want)
				default:
					outcome["as before"]++
				}
			}
		}
	}
	t.Logf("%v", outcome)
	if outcome["refused"] == 0 || outcome["as before"] == 0 {
		t.Errorf("both outcomes were expected: %v", outcome)
	}
}

// namespaceOfDamaged starts a master on files and lists what it has.
func namespaceOfDamaged(ctx context.Context, t *testing.T, files map[string][]byte) ([]string, error) {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	lay(t, dir, files)
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	net := rpc.NewMem()
	m, err := master.New(master.Config{Dir: dir, Listen: "127.0.0.1:7400", Network: net.Host("127.0.0.1"), Ballast: -1})
	if err != nil {
		return nil, err
	}
	if err := m.Start(ctx); err != nil {
		return nil, err
	}
	defer m.Close()
	c, err := client.Dial(ctx, client.Config{Masters: []string{m.Addr()}, Network: net.Host("127.0.0.2"), OpTimeout: 10 * time.Second})
	if err != nil {
		return nil, errors.Join(err, m.Err())
	}
	defer c.Close()
	return namespaceOf(ctx, c)
}

// noise is sent as it is.
type noise []byte

// rawCodec puts bytes on the wire unchanged, whatever the method expects.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*noise), nil }
func (rawCodec) Unmarshal(b []byte, v any) error {
	*v.(*noise) = append(noise(nil), b...)
	return nil
}
func (rawCodec) Name() string { return "proto" }

// hostile returns payloads that no honest peer sends: random bytes, and fields whose length claims gigabytes.
func hostile(rng *rand.Rand) []noise {
	var all []noise
	for _, n := range []int{0, 1, 3, 17, 300, 70_000} {
		b := make(noise, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		all = append(all, b)
	}
	for tag := byte(1); tag < 12; tag++ {
		for _, size := range []uint64{1 << 20, 1 << 31, 1<<32 - 1, 1<<63 - 1, 1<<64 - 1} {
			b := noise{tag<<3 | 2}
			b = append(b, binary.AppendUvarint(nil, size)...)
			all = append(all, append(b, "abc"...))
			// and as numbers, for lengths, offsets and counts
			n := noise{tag << 3}
			n = append(n, binary.AppendUvarint(nil, size)...)
			all = append(all, n, append(noise{8, 1, 16, 1}, n...))
		}
	}
	return all
}

// TestMalformedFrames throws rubbish at every method of a master and a chunkserver, and at their bare ports. Nothing falls
// over, nothing large is allocated, and the cluster works on.
func TestMalformedFrames(t *testing.T) {
	onLoopback(t, Config{Chunkservers: 3}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		c := cl.dial(ctx, t)
		want := pattern(dfs.MiB, 1)
		mustWriteFile(ctx, t, c, "/f", want)
		var before runtime.MemStats
		runtime.ReadMemStats(&before)
		targets := []string{cl.Masters()[0]}
		for _, s := range cl.servers {
			targets = append(targets, s.Addr())
		}
		services := []grpc.ServiceDesc{dfsv1.Master_ServiceDesc, dfsv1.Cluster_ServiceDesc, dfsv1.Chunk_ServiceDesc}
		payloads := hostile(rand.New(rand.NewPCG(3, 4)))
		calls := 0
		for i, addr := range targets[:2] {
			cc, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer cc.Close()
			for _, d := range services {
				if (d.ServiceName == "dfs.v1.Chunk") != (i == 1) {
					continue
				}
				try := func(method string, stream bool) {
					desc := &grpc.StreamDesc{ClientStreams: stream, ServerStreams: stream}
					for _, p := range payloads {
						calls++
						ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
						s, err := cc.NewStream(ctx, desc, "/"+d.ServiceName+"/"+method, grpc.ForceCodec(rawCodec{}))
						if err == nil {
							_ = s.SendMsg(&p)
							_ = s.SendMsg(&p)
							_ = s.CloseSend()
							var reply noise
							_ = s.RecvMsg(&reply) // an error, or an answer: both will do
						}
						cancel()
					}
				}
				for _, m := range d.Methods {
					try(m.MethodName, false)
				}
				for _, m := range d.Streams {
					try(m.StreamName, true)
				}
			}
		}
		rng := rand.New(rand.NewPCG(5, 6))
		for _, addr := range targets {
			for _, opening := range []string{"", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/1.1\r\n\r\n"} {
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				b := make([]byte, 100_000)
				for i := range b {
					b[i] = byte(rng.Uint32())
				}
				_, _ = conn.Write(append([]byte(opening), b...)) // it may well be cut off
				_ = conn.Close()
			}
		}
		runtime.GC()
		var after runtime.MemStats
		runtime.ReadMemStats(&after)
		perCall := (after.TotalAlloc - before.TotalAlloc) / uint64(calls)
		t.Logf("%d calls, %d bytes allocated for each, heap grew by %d", calls, perCall, int64(after.HeapAlloc)-int64(before.HeapAlloc))
		if perCall > 2*dfs.MiB || int64(after.HeapAlloc)-int64(before.HeapAlloc) > 64*dfs.MiB {
			t.Errorf("too much memory is used for rubbish")
		}
		wantContent(ctx, t, cl.dial(ctx, t), "/f", want)
		mustWriteFile(ctx, t, c, "/g", want)
		wantContent(ctx, t, c, "/g", want)
	})
}
