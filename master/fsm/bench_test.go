package fsm

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"

	dfsv1 "dfs/proto/dfs/v1"
)

// filled returns a machine with a directory /d of n files.
func filled(b *testing.B, n int) *machine {
	m := newMachine(b)
	dir := m.mkdir("/", "d")
	var batch []*raft.Log
	for i := range n {
		cmd := createCmd("", fmt.Sprintf("file-%06d", i), 0o100644)
		cmd.GetCreate().Parent = &dfsv1.Ref{Inode: dir}
		batch = append(batch, m.entry(cmd))
		if len(batch) == 512 {
			m.fsm.ApplyBatch(batch)
			batch = nil
		}
	}
	if len(batch) > 0 {
		m.fsm.ApplyBatch(batch)
	}
	return m
}

// reportCPU adds the processor time of the whole process, per operation: unlike the clock's, it does not depend on what else the machine does.
func reportCPU(b *testing.B, fn func()) {
	used := func() int64 {
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return r.Utime.Nano() + r.Stime.Nano()
	}
	before := used()
	fn()
	b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op")
}

// BenchmarkReadDir reads a directory of 10,000 entries with their attributes, in pages of 4096. Cold reads go to kv only.
func BenchmarkReadDir(b *testing.B) {
	m := filled(b, 10_000)
	read := func(b *testing.B) {
		v := m.view()
		defer v.Close()
		var after []byte
		n := 0
		for {
			p, err := v.ReadDir(&dfsv1.Caller{}, &dfsv1.Ref{Path: []byte("d")}, after, 4096, false)
			if err != nil {
				b.Fatal(err)
			}
			n += len(p.Entries)
			if p.End {
				break
			}
			after = p.Entries[len(p.Entries)-1].GetName()
		}
		if n != 10_000 {
			b.Fatal(n)
		}
	}
	b.Run("hot", func(b *testing.B) {
		b.ReportAllocs()
		reportCPU(b, func() {
			for b.Loop() {
				read(b)
			}
		})
	})
	b.Run("cold", func(b *testing.B) {
		b.ReportAllocs()
		reportCPU(b, func() {
			for b.Loop() {
				m.fsm.cache.Store(newCache(defaultCacheBytes))
				read(b)
			}
		})
	})
}

// BenchmarkLookupPath resolves a path of three names.
func BenchmarkLookupPath(b *testing.B) {
	m := newMachine(b)
	m.mkdir("/", "a")
	m.mkdir("/a", "b")
	m.mkfile("/a/b", "c")
	ref, caller := &dfsv1.Ref{Path: []byte("a/b/c")}, &dfsv1.Caller{Uid: 7}
	run := func(b *testing.B, hot bool) {
		b.ReportAllocs()
		for b.Loop() {
			v := m.view()
			if !hot {
				v.cache = nil
			}
			if _, err := v.LookupPath(caller, ref); err != nil {
				b.Fatal(err)
			}
			v.Close()
		}
	}
	b.Run("hot", func(b *testing.B) { run(b, true) })
	b.Run("uncached", func(b *testing.B) { run(b, false) })
}

// BenchmarkCreate creates files through ApplyBatch, 256 entries per batch, in a session; the time is per command.
func BenchmarkCreate(b *testing.B) {
	m := newMachine(b)
	dir := m.mkdir("/", "d")
	session := m.must(&dfsv1.Command{Op: &dfsv1.Command_OpenSession{OpenSession: &dfsv1.OpenSessionCommand{Nonce: 1}}}).GetSession()
	n := 0
	batch := make([]*raft.Log, 0, 256)
	b.ReportAllocs()
	b.ResetTimer()
	reportCPU(b, func() {
		for range b.N {
			cmd := createCmd("", fmt.Sprintf("file-%08d", n), 0o100644)
			n++
			cmd.Header.Session, cmd.Header.Seq = session, uint64(n)
			cmd.GetCreate().Parent = &dfsv1.Ref{Inode: dir}
			batch = append(batch, m.entry(cmd))
			if len(batch) == cap(batch) {
				for _, r := range m.fsm.ApplyBatch(batch) {
					if res, ok := r.(*dfsv1.Result); !ok || res.GetErrorReason() != "" {
						b.Fatal(r)
					}
				}
				batch = batch[:0]
			}
		}
		m.fsm.ApplyBatch(batch)
	})
}
