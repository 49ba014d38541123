package testcluster

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dfs/chunkserver"
	"dfs/client"
	"dfs/internal/dfs"
	"dfs/internal/rpc"
	"dfs/master"
)

// The simulation runs a whole cluster in one process on virtual time: four clients write, append, truncate, read and
// rename, and two more read and overwrite the same few bytes all the time, while chunkservers are killed, paused and isolated, links are cut and delayed, calls are lost and
// doubled, and the master restarts. Every read is checked: against a model for files that one client owns, as a linearizable register for
// cells that all share (History), in one file of which all also cut off and lengthen, and as an exactly-once set for appended records. Where a file is appended to
// while others make it longer (extension), each append must go behind everything that was there when it began.
//
// A seed fixes every client's operations and the whole schedule of faults in virtual time; built and run by tools/replay (make sim), it fixes
// everything, so that a run can be repeated exactly. DFS_SIM_SEEDS says how many seeds to run, DFS_SIM_SEED runs one.

const (
	simClients = 4
	simHammers = 2
	simOps     = 50 // per client
	cellBytes  = 512
	regionLen  = 8 // cells
)

// regions are where the shared cells lie in the shared files: at their start, over the boundary of two chunks, and
// across blocks in a third chunk.
var regions = []int64{0, dfs.MiB - 4*cellBytes, 2*dfs.MiB + 300}

// cuts are lengths that the file "/cut" is given, all between cells: nothing, within the first region, at its end, at the ends of chunks, within the last region, and beyond everything.
var cuts = []int64{0, 3 * cellBytes, dfs.MiB - 4*cellBytes, dfs.MiB, 2 * dfs.MiB, 2*dfs.MiB + 300 + 5*cellBytes, 3 * dfs.MiB, 5 * dfs.MiB}

// cellSet is the cells of one file, by region.
type cellSet [][]*History

func newCellSet() cellSet {
	var set cellSet
	for range regions {
		row := make([]*History, regionLen)
		for i := range row {
			row[i] = &History{}
		}
		set = append(set, row)
	}
	return set
}

func TestSimulation(t *testing.T) {
	first, n := uint64(1), 12
	if s := os.Getenv("DFS_SIM_SEEDS"); s != "" {
		v, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("DFS_SIM_SEEDS=%q: %v", s, err)
		}
		n = v
	}
	if s := os.Getenv("DFS_SIM_SEED"); s != "" {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("DFS_SIM_SEED=%q: %v", s, err)
		}
		first, n = v, 1
	}
	for seed := first; seed < first+uint64(n); seed++ {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { simulate(t, seed) })
	}
}

// sim is one run.
type sim struct {
	t     *testing.T
	seed  uint64
	cl    *Cluster
	ticks atomic.Int64
	trace *trace

	cells cellSet   // of "/shared"
	cut   cellSet   // of "/cut"
	ext   extension // of "/extended"
	names *names

	getAttrs atomic.Int64 // calls of the masters that tell attributes

	mu      sync.Mutex
	records map[record]bool // guarded by mu: sent; true once acknowledged
	fired   map[string]int  // guarded by mu: faults, by kind

	callMu  sync.Mutex
	callRNG *rand.Rand // guarded by callMu: fates of unary calls
	calm    atomic.Bool
}

// record names one appended record.
type record struct{ client, seq uint32 }

func (s *sim) tick() int64 { return s.ticks.Add(1) }

func (s *sim) rng(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(s.seed, stream)) }

func simulate(t *testing.T, seed uint64) {
	s := &sim{t: t, seed: seed, records: map[record]bool{}, fired: map[string]int{}}
	s.callRNG = s.rng(1000)
	s.cells, s.cut, s.names = newCellSet(), newCellSet(), newNames()
	cfg := Config{
		Faults:      s.fate,
		Master:      func(c *master.Config) { c.DeadAfter = 10 * time.Second; c.GarbageGrace = 5 * time.Second },
		Chunkserver: func(_ int, c *chunkserver.Config) { c.Reserve = dfs.MiB },
		Client: func(c *client.Config) {
			c.OpTimeout = 10 * time.Minute
			c.CacheNames = strings.HasPrefix(c.Name, "cacher")
		},
	}
	s.calm.Store(true)
	inMemory(t, cfg, func(ctx context.Context, t *testing.T, cl *Cluster) {
		s.t, s.cl = t, cl
		s.trace = newTrace(t, seed)
		s.run(ctx)
		t.Logf("seed %d: trace %s", seed, s.trace.end())
	})
}

// fate decides about one unary call: most go through. Those of a change of configuration have it harder: that is when replicas are put out that could go on serving (Prepare), the
// master tells them so (DeleteReplicas), and new ones are brought into step (Activate).
func (s *sim) fate(_ context.Context, addr, method string) rpc.Fault {
	if strings.HasSuffix(method, "/GetAttr") {
		s.getAttrs.Add(1)
	}
	if s.calm.Load() {
		return rpc.Fault{}
	}
	s.trace.note("call %s %s", addr, method)
	s.callMu.Lock()
	defer s.callMu.Unlock()
	var f rpc.Fault
	of, late := 200, 300
	switch method[strings.LastIndexByte(method, '/')+1:] {
	case "Prepare":
		of = 60
	case "DeleteReplicas", "Activate":
		of, late = 20, 3000
	}
	switch x := s.callRNG.IntN(of); {
	case x < 2:
		f.DropRequest = true
	case x < 4:
		f.DropReply = true
	case x < 6:
		f.Duplicate = true
	case x < 10:
		f.Delay = time.Duration(s.callRNG.IntN(late)) * time.Millisecond
	default:
		return f
	}
	s.count("call " + method[strings.LastIndexByte(method, '/')+1:])
	return f
}

func (s *sim) count(kind string) {
	s.trace.note("fault: %s", kind)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fired[kind]++
}

func (s *sim) run(ctx context.Context) {
	s.ext.turn = make(chan struct{}, 1) // here, because it belongs to the bubble
	c := s.client(ctx, "setup")
	for _, path := range []string{"/shared", "/cut", "/records", "/appended", "/extended"} {
		f, err := c.CreateFile(ctx, path, os.O_RDWR|os.O_EXCL, 0o644, client.CreateOptions{ChunkSize: dfs.MinChunkSize})
		s.must(err)
		s.must(f.Close())
	}
	s.names.setup(ctx, s, c)
	var wg sync.WaitGroup
	s.calm.Store(false)
	stop, faultsDone := make(chan struct{}), make(chan struct{})
	go func() { defer close(faultsDone); s.faults(ctx, stop) }()
	for i := range simClients {
		wg.Go(func() { s.work(ctx, i) })
	}
	var hammers sync.WaitGroup
	for i := range simHammers {
		hammers.Go(func() { s.hammer(ctx, simClients+i, stop) })
	}
	hammers.Go(func() { s.names.distances(s, stop) })
	for i := range simCachers {
		hammers.Go(func() { s.names.hammer(ctx, s, i, stop) })
	}
	wg.Wait()
	close(stop)
	hammers.Wait()
	<-faultsDone
	s.calm.Store(true)
	if s.t.Failed() {
		return
	}
	s.check(ctx, c)
	s.must(c.Close())
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.fired) < 3 {
		s.t.Errorf("seed %d: only these faults fired: %v", s.seed, s.fired)
	}
}

func (s *sim) client(ctx context.Context, name string) *client.Client {
	c, err := s.cl.Client(ctx, name)
	s.must(err)
	return c
}

// must ends the test: under faults that pass, every operation succeeds in the end.
func (s *sim) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Errorf("seed %d: %v", s.seed, err)
		panic(simFailed{})
	}
}

// simFailed unwinds a goroutine of the simulation whose test has failed.
type simFailed struct{}

func (s *sim) recoverFailed() {
	if r := recover(); r != nil {
		if _, ok := r.(simFailed); !ok {
			panic(r)
		}
	}
}

// faults breaks things and mends them until stop, then mends everything.
func (s *sim) faults(ctx context.Context, stop <-chan struct{}) {
	defer s.recoverFailed()
	rng := s.rng(2000)
	wait := func(d time.Duration) bool {
		select {
		case <-stop:
			return false
		case <-time.After(d):
			return true
		}
	}
	hosts := []string{MasterHost}
	for i := range s.cl.Chunkservers() {
		hosts = append(hosts, ChunkserverHost(i))
	}
	for i := range simClients + simHammers + simCachers + 1 {
		hosts = append(hosts, ClientHost(i))
	}
	ms := func(from, to int) time.Duration { return time.Duration(from+rng.IntN(to-from)) * time.Millisecond }
	for wait(ms(50, 1500)) {
		i := rng.IntN(s.cl.Chunkservers())
		switch kind := rng.IntN(14); {
		case kind < 3:
			s.count("kill chunkserver")
			s.must(s.cl.KillChunkserver(ctx, i))
			wait(ms(100, 5000))
			s.must(s.cl.StartChunkserver(ctx, i))
		case kind < 5:
			s.count("pause chunkserver")
			s.must(s.cl.PauseChunkserver(ctx, i))
			wait(ms(100, 8000))
			s.must(s.cl.ResumeChunkserver(ctx, i))
		case kind < 7:
			a, b := hosts[rng.IntN(len(hosts))], hosts[rng.IntN(len(hosts))]
			s.count("cut")
			if rng.IntN(2) == 0 {
				s.cl.Net.Cut(a, b)
			} else {
				s.cl.Net.CutOneWay(a, b)
			}
			wait(ms(100, 6000))
			s.cl.Net.Heal(a, b)
		case kind < 9:
			a, b := hosts[rng.IntN(len(hosts))], hosts[rng.IntN(len(hosts))]
			if rng.IntN(2) == 0 { // within a chain
				a, b = ChunkserverHost(i), ChunkserverHost((i+1+rng.IntN(s.cl.Chunkservers()-1))%s.cl.Chunkservers())
			}
			s.count("delay")
			s.cl.Net.SetDelay(a, b, ms(1, 400))
			wait(ms(100, 4000))
			s.cl.Net.SetDelay(a, b, 0)
		case kind < 12: // clients still reach it, and perhaps the master
			others := hosts[1 : 1+s.cl.Chunkservers()]
			if kind < 11 {
				s.count("isolate chunkserver")
				others = hosts[:1+s.cl.Chunkservers()]
			} else {
				s.count("isolate chunkserver from chunkservers")
			}
			for _, h := range others {
				if h != ChunkserverHost(i) {
					s.cl.Net.Cut(h, ChunkserverHost(i))
				}
			}
			wait(ms(1000, 6000))
			for _, h := range others {
				if h != ChunkserverHost(i) {
					s.cl.Net.Heal(h, ChunkserverHost(i))
				}
			}
		case kind < 13:
			host := ClientHost(rng.IntN(simClients + simHammers + simCachers + 1))
			s.count("pause client")
			s.cl.Net.Pause(host)
			wait(ms(100, 6000))
			s.cl.Net.Resume(host)
		default:
			s.count("restart master")
			s.must(s.cl.KillMaster(ctx))
			wait(ms(10, 2000))
			s.must(s.cl.StartMaster(ctx))
		}
	}
}

// owned is a file that one client has for itself, with its model.
type owned struct {
	path  string
	model []byte
	f     *client.File
	moves int
}

// work is one client's operations.
func (s *sim) work(ctx context.Context, id int) {
	defer s.recoverFailed()
	rng := s.rng(uint64(id))
	c := s.client(ctx, fmt.Sprintf("client-%d", id))
	defer c.Close()
	open := func(path string) *client.File {
		f, err := c.OpenFile(ctx, path, os.O_RDWR, 0)
		s.must(err)
		return f
	}
	shared, cut, records, appended, extended := open("/shared"), open("/cut"), open("/records"), open("/appended"), open("/extended")
	own := &owned{path: fmt.Sprintf("/own-%d-0", id)}
	var err error
	own.f, err = c.CreateFile(ctx, own.path, os.O_RDWR|os.O_EXCL, 0o644, client.CreateOptions{ChunkSize: dfs.MinChunkSize})
	s.must(err)
	value := uint64(id+1) << 32
	seq := uint32(0)
	for range simOps {
		switch op := rng.IntN(16); {
		case op < 2:
			s.writeCells(rng, shared, s.cells, &value)
		case op < 5:
			s.readCells(rng, s.cells, shared.ReadAt)
		case op < 6:
			seq++
			s.append(ctx, record{uint32(id), seq}, 24+rng.IntN(5000), records.AppendRecord)
		case op < 7:
			seq++
			s.append(ctx, record{uint32(id), seq | 1<<31}, 24+rng.IntN(5000), appended.Append)
		case op < 8:
			s.writeCells(rng, cut, s.cut, &value)
		case op < 9:
			s.readCells(rng, s.cut, s.reader(ctx, rng, c, cut))
		case op < 10:
			s.cutCells(ctx, rng, c, cut)
			s.readCells(rng, s.cut, s.reader(ctx, rng, c, cut))
		case op < 12:
			seq++
			s.ext.append(ctx, s, record{uint32(id), seq}, 24+rng.IntN(5000), extended)
			if rng.IntN(3) == 0 {
				s.ext.extend(ctx, s, rng, extended)
			}
		default:
			s.ownedOp(ctx, rng, c, own)
		}
		if rng.IntN(8) == 0 {
			time.Sleep(time.Duration(rng.IntN(2000)) * time.Millisecond)
		}
	}
	s.readOwned(own, 0, int64(len(own.model))+10)
	for _, f := range []*client.File{shared, cut, records, appended, extended, own.f} {
		s.must(f.Close())
	}
	got, err := c.ReadFile(ctx, own.path)
	s.must(err)
	if !bytes.Equal(got, own.model) {
		s.t.Errorf("seed %d: %s: %s", s.seed, own.path, difference(got, own.model))
	}
}

// hammer reads and overwrites the shared cells until stop.
func (s *sim) hammer(ctx context.Context, id int, stop <-chan struct{}) {
	defer s.recoverFailed()
	rng := s.rng(uint64(id))
	c := s.client(ctx, fmt.Sprintf("hammer-%d", id))
	defer c.Close()
	f, err := c.OpenFile(ctx, "/shared", os.O_RDWR, 0)
	s.must(err)
	value := uint64(id+1) << 32
	for {
		select {
		case <-stop:
			s.must(f.Close())
			return
		case <-time.After(time.Duration(rng.IntN(40)) * time.Millisecond):
		}
		if rng.IntN(5) == 0 {
			s.writeCells(rng, f, s.cells, &value)
		} else {
			s.readCells(rng, s.cells, f.ReadAt)
		}
	}
}

func (s *sim) writeCells(rng *rand.Rand, f *client.File, cells cellSet, value *uint64) {
	region, from := rng.IntN(len(regions)), rng.IntN(regionLen)
	n := 1 + rng.IntN(regionLen-from)
	var data []byte
	values := make([]uint64, n)
	for i := range values {
		*value++
		values[i] = *value
		data = append(data, bytes.Repeat(binary.BigEndian.AppendUint64(nil, *value), cellBytes/8)...)
	}
	invoked := s.tick()
	_, err := f.WriteAt(data, regions[region]+int64(from)*cellBytes)
	returned := s.tick()
	s.trace.note("wrote %x at %d of region %d, ticks %d to %d", values, from, region, invoked, returned)
	s.must(err)
	for i, v := range values {
		cells[region][from+i].Wrote(v, invoked, returned)
	}
}

func (s *sim) readCells(rng *rand.Rand, cells cellSet, readAt func(p []byte, off int64) (int, error)) {
	region, from := rng.IntN(len(regions)), rng.IntN(regionLen)
	n := 1 + rng.IntN(regionLen-from)
	data := make([]byte, n*cellBytes)
	invoked := s.tick()
	got, err := readAt(data, regions[region]+int64(from)*cellBytes)
	returned := s.tick()
	if err != nil && !errors.Is(err, io.EOF) {
		s.must(err)
	}
	s.trace.note("read %d bytes, CRC %08x, at %d of region %d, ticks %d to %d", got, dfs.CRC(data[:got]), from, region, invoked, returned)
	clear(data[got:]) // past the end: as if zero
	for i := range n {
		cell := data[i*cellBytes:][:cellBytes]
		if !bytes.Equal(cell, bytes.Repeat(cell[:8], cellBytes/8)) {
			s.t.Errorf("seed %d: region %d cell %d is torn", s.seed, region, from+i)
			continue
		}
		cells[region][from+i].Read(binary.BigEndian.Uint64(cell), invoked, returned)
	}
}

// reader is one of the ways to read "/cut": through a handle that has been open all along, or as a whole.
func (s *sim) reader(ctx context.Context, rng *rand.Rand, c *client.Client, f *client.File) func(p []byte, off int64) (int, error) {
	if rng.IntN(4) > 0 {
		return f.ReadAt
	}
	return func(p []byte, off int64) (int, error) {
		whole, err := c.ReadFile(ctx, "/cut")
		return copy(p, whole[min(off, int64(len(whole))):]), err
	}
}

// cutCells gives "/cut" another length: every cell beyond is zero from then on.
func (s *sim) cutCells(ctx context.Context, rng *rand.Rand, c *client.Client, f *client.File) {
	length := cuts[rng.IntN(len(cuts))]
	invoked := s.tick()
	switch kind := rng.IntN(4); {
	case length == 0 && kind == 0:
		trunc, err := c.OpenFile(ctx, "/cut", os.O_RDWR|os.O_TRUNC, 0)
		s.must(err)
		s.must(trunc.Close())
	case length == 0 && kind == 1:
		created, err := c.Create(ctx, "/cut", 0o644)
		s.must(err)
		s.must(created.Close())
	case kind == 2:
		s.must(c.Truncate(ctx, "/cut", length))
	default:
		s.must(f.Truncate(ctx, length))
	}
	returned := s.tick()
	s.trace.note("cut to %d, ticks %d to %d", length, invoked, returned)
	for r, at := range regions {
		for i := range int64(regionLen) {
			if at+i*cellBytes >= length {
				s.cut[r][i].Zeroed(invoked, returned)
			}
		}
	}
}

// append adds a record and notes that it was acknowledged.
func (s *sim) append(ctx context.Context, r record, n int, add func(context.Context, []byte) (int64, error)) {
	off, err := add(ctx, r.bytes(n))
	s.trace.note("appended %v of %d bytes at %d", r, n, off)
	s.must(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[r] = true
}

// bytes makes a record of n bytes: {client, seq, length, CRC of the payload, payload}.
func (r record) bytes(n int) []byte {
	payload := pattern(n-16, uint64(r.seq))
	b := binary.BigEndian.AppendUint32(nil, r.client)
	b = binary.BigEndian.AppendUint32(b, r.seq)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(payload))
	return append(b, payload...)
}

func (s *sim) ownedOp(ctx context.Context, rng *rand.Rand, c *client.Client, o *owned) {
	const maxLen = 2*dfs.MiB + 512*dfs.KiB
	switch op := rng.IntN(10); {
	case op < 4:
		off := rng.Int64N(maxLen)
		if rng.IntN(2) == 0 {
			off = rng.Int64N(int64(len(o.model)) + 1)
		}
		data := pattern(1+rng.IntN(200_000), rng.Uint64())
		_, err := o.f.WriteAt(data, off)
		s.trace.note("wrote %s: %d bytes at %d", o.path, len(data), off)
		s.must(err)
		o.model = grown(o.model, int(off)+len(data))
		copy(o.model[off:], data)
	case op < 5:
		n := rng.IntN(maxLen)
		s.must(o.f.Truncate(ctx, int64(n)))
		s.trace.note("cut %s to %d", o.path, n)
		o.model = grown(o.model, n)[:n]
	case op < 6:
		data := pattern(1+rng.IntN(100_000), rng.Uint64())
		_, err := o.f.Append(ctx, data)
		s.trace.note("appended to %s: %d bytes", o.path, len(data))
		s.must(err)
		o.model = append(o.model, data...)
	case op < 7:
		s.trace.note("rename %s", o.path)
		o.moves++
		to := fmt.Sprintf("%s%d", o.path[:strings.LastIndexByte(o.path, '-')+1], o.moves)
		s.must(c.Rename(ctx, o.path, to))
		if _, err := c.Stat(ctx, o.path); err == nil {
			s.t.Errorf("seed %d: %s is still there after its rename", s.seed, o.path)
		}
		o.path = to
	case op < 8:
		s.must(o.f.Sync(ctx))
		s.trace.note("synced %s", o.path)
		info, err := c.Stat(ctx, o.path)
		s.must(err)
		if info.Size() != int64(len(o.model)) {
			s.t.Errorf("seed %d: %s has length %d, want %d", s.seed, o.path, info.Size(), len(o.model))
		}
	default:
		off := rng.Int64N(int64(len(o.model)) + 1)
		s.readOwned(o, off, rng.Int64N(300_000))
	}
}

// grown returns model with at least n bytes; new ones are zero.
func grown(model []byte, n int) []byte {
	if n <= len(model) {
		return model
	}
	return append(model, make([]byte, n-len(model))...)
}

func (s *sim) readOwned(o *owned, off, n int64) {
	buf := make([]byte, n)
	got, err := o.f.ReadAt(buf, off)
	if err != nil && !errors.Is(err, io.EOF) {
		s.must(err)
	}
	s.trace.note("read %s: %d bytes at %d", o.path, got, off)
	want := o.model[off:min(off+n, int64(len(o.model)))]
	if !bytes.Equal(buf[:got], want) {
		s.t.Errorf("seed %d: %s at %d: %s", s.seed, o.path, off, difference(buf[:got], want))
	}
}

// difference says where two byte slices first differ.
func difference(got, want []byte) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("%d bytes, want %d; they differ from byte %d on", len(got), len(want), i)
		}
	}
	return fmt.Sprintf("%d bytes, want %d", len(got), len(want))
}

// check looks at everything when all is quiet.
func (s *sim) check(ctx context.Context, c *client.Client) {
	defer s.recoverFailed()
	for path, set := range map[string]cellSet{"/shared": s.cells, "/cut": s.cut} {
		for r, row := range set {
			for i, h := range row {
				if err := h.Check(); err != nil {
					s.t.Errorf("seed %d: %s: region %d cell %d: %v", s.seed, path, r, i, err)
				}
			}
		}
	}
	s.names.check(s)
	s.ext.check(ctx, s, c)
	f, err := c.Open(ctx, "/records")
	s.must(err)
	var whole []byte
	_, err = f.ReadRecords(ctx, 0, func(_ int64, data []byte) error {
		whole = append(whole, data...)
		return nil
	})
	s.must(err)
	s.must(f.Close())
	s.checkRecords("/records", whole, false)
	whole, err = c.ReadFile(ctx, "/appended")
	s.must(err)
	s.checkRecords("/appended", whole, true)
	s.waitHealed(ctx, c)
}

// checkRecords wants every acknowledged record once, whole and contiguous, and each client's in order.
func (s *sim) checkRecords(path string, b []byte, plain bool) {
	seen := map[record]bool{}
	last := map[uint32]uint32{}
	for off := 0; off < len(b); {
		if len(b)-off < 16 {
			s.t.Errorf("seed %d: %s: %d bytes are left at %d", s.seed, path, len(b)-off, off)
			return
		}
		r := record{binary.BigEndian.Uint32(b[off:]), binary.BigEndian.Uint32(b[off+4:])}
		n, crc := int(binary.BigEndian.Uint32(b[off+8:])), binary.BigEndian.Uint32(b[off+12:])
		off += 16
		if n > len(b)-off || crc32.ChecksumIEEE(b[off:off+n]) != crc {
			s.t.Errorf("seed %d: %s: the record at %d is damaged", s.seed, path, off-16)
			return
		}
		off += n
		if seen[r] {
			s.t.Errorf("seed %d: %s: record %v stands there twice", s.seed, path, r)
		}
		seen[r] = true
		if r.seq <= last[r.client] {
			s.t.Errorf("seed %d: %s: client %d: record %d after %d", s.seed, path, r.client, r.seq, last[r.client])
		}
		last[r.client] = r.seq
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.records {
		if (r.seq&(1<<31) != 0) == plain && !seen[r] {
			s.t.Errorf("seed %d: %s: acknowledged record %v is missing", s.seed, path, r)
		}
	}
}

// waitHealed wants every chunk fully replicated again, in bounded time.
func (s *sim) waitHealed(ctx context.Context, c *client.Client) {
	deadline := time.Now().Add(10 * time.Minute)
	for {
		r, err := c.ClusterReport(ctx)
		s.must(err)
		if r.RepairsScanned && r.UnderReplicated == 0 && r.Missing == 0 && r.Corrupt == 0 && r.RepairsRunning == 0 {
			break
		}
		if time.Now().After(deadline) {
			s.t.Errorf("seed %d: not healed after 10 minutes: %+v", s.seed, r)
			return
		}
		time.Sleep(time.Second)
	}
	// Sessions that were lost may end as late as now, and the files they had open get their lengths recorded: then replicas are out of date for a moment.
	for {
		bad := s.badReplicas(ctx, c)
		if len(bad) == 0 {
			return
		}
		if time.Now().After(deadline) {
			s.t.Errorf("seed %d: not healed after 10 minutes: %q", s.seed, bad)
			return
		}
		time.Sleep(time.Second)
	}
}

func (s *sim) badReplicas(ctx context.Context, c *client.Client) (bad []string) {
	for _, path := range []string{"/shared", "/cut", "/records", "/appended", "/extended"} {
		chunks, err := c.Chunks(ctx, path)
		s.must(err)
		for _, k := range chunks {
			for _, r := range k.Replicas {
				if r.State != "valid" {
					bad = append(bad, fmt.Sprintf("%s chunk %s: the replica on %s is %s", path, k.Chunk, r.Server, r.State))
				}
			}
		}
	}
	return bad
}
