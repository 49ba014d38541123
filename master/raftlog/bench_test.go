package raftlog

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"

	"dfs/internal/dfs"
	"dfs/internal/vfs"
)

// countState applies nothing.
type countState struct {
	listState
	last atomic.Uint64
}

func (s *countState) Applied() dfs.Index { return dfs.Index(s.last.Load()) }

func (s *countState) ApplyBatch(logs []*raft.Log) []any {
	s.last.Store(logs[len(logs)-1].Index)
	return make([]any, len(logs))
}

func benchNode(b *testing.B) *Node {
	disk, err := vfs.OS(b.TempDir())
	must(b, err)
	b.Cleanup(func() { _ = disk.Close() })
	state := &countState{}
	state.pins = make(map[dfs.Index]int)
	cfg := config(disk, nil, newPipes().host("a"))
	cfg.FSM, cfg.State = state, state
	n := open(b, cfg)
	b.Cleanup(func() { must(b, n.Close()) })
	return n
}

// BenchmarkPropose is 256 bytes from so many callers at once, on the disk that holds the temporary directory.
func BenchmarkPropose(b *testing.B) {
	for _, callers := range []int{1, 64, 256} {
		b.Run(map[int]string{1: "1", 64: "64", 256: "256"}[callers], func(b *testing.B) {
			n := benchNode(b)
			data := make([]byte, 256)
			b.ReportAllocs()
			b.SetParallelism(max(1, callers/2)) // GOMAXPROCS is 2 where this is measured
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, _, err := n.Propose(context.Background(), data); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

// BenchmarkReadBarrier is the only voter's, from 64 callers.
func BenchmarkReadBarrier(b *testing.B) {
	n := benchNode(b)
	b.ReportAllocs()
	b.SetParallelism(32)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := n.ReadBarrier(context.Background()); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reads/s")
}

// BenchmarkReadBarrierAsking is the way of several voters, with a single one to ask.
func BenchmarkReadBarrierAsking(b *testing.B) {
	n := benchNode(b)
	b.SetParallelism(32)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r := n.barrier.join()
			<-r.done
			if r.err != nil {
				b.Error(r.err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reads/s")
}
