package store

import (
	"math/rand/v2"
	"testing"

	"dfs/internal/dfs"
	"dfs/internal/vfs"
)

// benchReplica makes a replica on a real disk.
func benchReplica(b *testing.B) *Replica {
	d, err := vfs.OS(b.TempDir())
	must(b, err)
	b.Cleanup(func() { d.Close() })
	s := openStore(b, formatted(b, d), Options{NoCompaction: true})
	r, err := s.Create(testChunk, 1)
	must(b, err)
	return r
}

// benchAppend appends records of n bytes, in buffers of bufLen, around a chunk of 64 MiB.
func benchAppend(b *testing.B, n, bufLen int) {
	r := benchReplica(b)
	data := fill(1, n)
	m := write(0, data)
	m.Version, m.Data = 1, nil
	for i := 0; i < n; i += bufLen {
		m.Data = append(m.Data, data[i:min(i+bufLen, n)])
	}
	b.SetBytes(int64(n))
	b.ReportAllocs()
	for b.Loop() {
		m.Seq++
		m.Off = int64(m.Seq) * int64(n) % (64 * dfs.MiB)
		must(b, r.Append(m))
		must(b, r.SetCommitted(m.Seq))
		if m.Seq%4096 == 0 { // keep the file from growing for ever
			b.StopTimer()
			must(b, r.Compact(b.Context()))
			b.StartTimer()
		}
	}
}

func BenchmarkAppend1MiB(b *testing.B)        { benchAppend(b, dfs.MiB, dfs.MiB) }
func BenchmarkAppend1MiBIn32KiB(b *testing.B) { benchAppend(b, dfs.MiB, 32*dfs.KiB) }
func BenchmarkAppend4KiB(b *testing.B)        { benchAppend(b, 4*dfs.KiB, 4*dfs.KiB) }

func benchRead(b *testing.B, n int64, off func() int64) {
	r := benchReplica(b)
	for i := range 64 {
		next(b, r, write(int64(i)*dfs.MiB, fill(byte(i), dfs.MiB)))
	}
	b.SetBytes(n)
	b.ReportAllocs()
	for b.Loop() {
		res, err := r.ReadAt(off(), n)
		must(b, err)
		res.Release()
	}
}

func BenchmarkRead1MiB(b *testing.B) {
	var i int64
	benchRead(b, dfs.MiB, func() int64 { i++; return i % 64 * dfs.MiB })
}

func BenchmarkReadRandom4KiB(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	benchRead(b, 4*dfs.KiB, func() int64 { return rng.Int64N(64*256) * 4 * dfs.KiB })
}

func BenchmarkReadRandomUnaligned(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	benchRead(b, 10_000, func() int64 { return rng.Int64N(63 * dfs.MiB) })
}

// BenchmarkOpen measures opening a replica of 16384 records with and without its index footer.
func BenchmarkOpen(b *testing.B) {
	for name, clean := range map[string]bool{"footer": true, "scan": false} {
		b.Run(name, func(b *testing.B) {
			r := benchReplica(b)
			for i := range 16 * 1024 {
				next(b, r, write(int64(i)*4*dfs.KiB, fill(byte(i), 4*dfs.KiB)))
			}
			must(b, r.Sync())
			for b.Loop() {
				r.openMu.Lock()
				must(b, r.st.shutdown(clean, dfs.CheckName([]byte("closed"))))
				r.s.mu.Lock()
				r.s.open = nil
				r.s.mu.Unlock()
				r.st = nil
				r.openMu.Unlock()
				state(b, r)
			}
		})
	}
}
