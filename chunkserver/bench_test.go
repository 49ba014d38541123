package chunkserver

import (
	"context"
	"fmt"
	"testing"
	"time"

	"dfs/chunkserver/store"
	"dfs/internal/dfs"
	"dfs/internal/rpc"
	"dfs/internal/vfs"
	dfsv1 "dfs/proto/dfs/v1"
)

// newRealWorld starts three chunkservers on loopback TCP and real directories.
func newRealWorld(b *testing.B) *world {
	w := &world{t: b, ctx: context.Background()}
	w.master = newFakeMaster(b, rpc.TCP(), "127.0.0.1:0")
	for i := range 3 {
		fs, err := vfs.OS(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		srv, err := New(Config{
			Disks: []store.Disk{{Name: fmt.Sprint(i), FS: fs}}, Listen: "127.0.0.1:0", Masters: []string{w.master.addr}, ScrubInterval: -1,
		})
		if err != nil {
			b.Fatal(err)
		}
		if err := srv.Start(w.ctx); err != nil {
			b.Fatal(err)
		}
		<-srv.Ready()
		nd := &node{}
		nd.now.Store(srv)
		w.nodes = append(w.nodes, nd)
	}
	w.pool = rpc.NewPool(rpc.TCP(), rpc.PoolOptions{})
	time.Sleep(1200 * time.Millisecond)
	b.Cleanup(w.close)
	return w
}

// roll makes the next chunk and returns its id and version.
func (w *world) roll(n uint64) (chunk, version uint64) {
	cfg := w.master.configure(10_000+n, func(c *dfsv1.ChunkConfig) { c.ChunkSize = dfs.DefaultChunkSize }, w.nodes...)
	return cfg.GetChunk(), cfg.GetVersion()
}

// BenchmarkUnary is the base for latencies: an empty call over the same connections.
func BenchmarkUnary(b *testing.B) {
	w := newRealWorld(b)
	w.roll(0)
	c := w.client(w.nodes[0])
	req := &dfsv1.ChunkStatRequest{Chunk: 10_000}
	for b.Loop() {
		_, _ = c.Stat(w.ctx, req) // there is no replica; the call is what counts
	}
}

// BenchmarkAppend appends one record at a time, acknowledged by three replicas.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{4 * dfs.KiB, dfs.MiB} {
		b.Run(fmt.Sprintf("%dKiB", size/dfs.KiB), func(b *testing.B) {
			w := newRealWorld(b)
			wr := w.writer(w.nodes[0])
			data := text(1, size)
			b.SetBytes(int64(size))
			n := 0
			perChunk := dfs.DefaultChunkSize / size
			var chunk, version uint64
			for b.Loop() {
				if n%perChunk == 0 {
					chunk, version = w.roll(uint64(n / perChunk))
				}
				n++
				if _, err := answer(wr.send(appendHeader(chunk, version, data, 1, uint64(n)), data)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkWriteStream streams 1 MiB frames with a window of 8, as a client writing a large file does.
func BenchmarkWriteStream(b *testing.B) {
	w := newRealWorld(b)
	wr := w.writer(w.nodes[0])
	data := text(1, dfs.MiB)
	crcs := dfs.BlockCRCs(0, data)
	b.SetBytes(dfs.MiB)
	window := make([]chan *dfsv1.WriteAck, 0, 8)
	n := 0
	var chunk, version uint64
	for b.Loop() {
		if len(window) == cap(window) {
			if _, err := answer(window[0]); err != nil {
				b.Fatal(err)
			}
			window = append(window[:0], window[1:]...)
		}
		off := int64(n%64) * dfs.MiB
		if off == 0 {
			chunk, version = w.roll(uint64(n / 64))
		}
		n++
		window = append(window, wr.send(&dfsv1.WriteHeader{
			Chunk: chunk, Version: version, Kind: dfsv1.MutationKind_WRITE, Offset: off, Length: dfs.MiB, Writer: 1, Request: uint64(n), Crcs: crcs,
		}, data))
	}
	for _, ch := range window {
		if _, err := answer(ch); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRead reads a replica that was just written, so from the page cache.
func BenchmarkRead(b *testing.B) {
	for _, size := range []int{4 * dfs.KiB, dfs.MiB, 16 * dfs.MiB} {
		b.Run(fmt.Sprintf("%dKiB", size/dfs.KiB), func(b *testing.B) {
			w := newRealWorld(b)
			wr := w.writer(w.nodes[0])
			chunk, version := w.roll(0)
			data := text(1, dfs.MiB)
			for i := range 16 {
				if _, err := answer(wr.send(writeHeader(chunk, version, int64(i)*dfs.MiB, data, 1, uint64(i+1)), data)); err != nil {
					b.Fatal(err)
				}
			}
			c := w.client(w.nodes[1])
			b.SetBytes(int64(size))
			header := new(dfsv1.ReadHeader)
			for b.Loop() {
				stream, err := c.Read(w.ctx, &dfsv1.ReadRequest{Chunk: chunk, Version: version, Length: int64(size)})
				if err != nil {
					b.Fatal(err)
				}
				got := 0
				for {
					f := rpc.Frame{Header: header}
					if err := stream.RecvMsg(&f); err != nil {
						break
					}
					got += f.Len()
					f.Free()
				}
				if got != size {
					b.Fatalf("read %d bytes, want %d", got, size)
				}
			}
		})
	}
}
