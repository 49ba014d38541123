package raftlog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

// snapshotStore is raft.SnapshotStore. In directory snap there are
//
//	rec-<index>    a snapshot's record: Raft's metadata, and which index of the state it stands for
//	recv-<index>   the stream of a snapshot that came from the leader, until the state has it
//	ckpt-<index>   the newest checkpoint: the state's stream as of that index
//
// and *.tmp of things being written. A snapshot taken here is only a record; opened for a follower it streams from State, where its index is pinned. Safe for concurrent use.
type snapshotStore struct {
	fs     vfs.FS
	dir    string
	state  State
	latch  *latch
	logger hclog.Logger
	every  int64 // entries between checkpoints, negative for none

	ctx  context.Context // of streams being sent
	stop context.CancelFunc
	wg   sync.WaitGroup // of goroutines that stream

	mu         sync.Mutex
	records    []record  // ascending. Guarded by mu.
	pinned     dfs.Index // pinned in state, 0 for none. Guarded by mu.
	checkpoint dfs.Index // newest, 0 for none. Guarded by mu.
}

// record is what is known of one snapshot.
type record struct {
	index, term uint64 // of Raft
	state       dfs.Index
	conf        []byte // raft.EncodeConfiguration
	confIndex   uint64
	received    bool  // the stream is, or was, in recv-<index>
	size        int64 // of that stream
}

const (
	recordFileMagic = "dfsrsnp1"
	recordPrefix    = "rec-"
	receivedPrefix  = "recv-"
	ckptPrefix      = "ckpt-"
	tmpSuffix       = ".tmp"
	maxRecordFile   = 1 << 20
)

func fileName(prefix string, index uint64) string { return fmt.Sprintf("%s%020d", prefix, index) }

// parseName undoes fileName.
func parseName(name, prefix string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil && fileName(prefix, n) == name
}

// encode writes magic, index, term, state index, configuration index, size, received u8, configuration length u32, configuration, CRC32C.
func (r record) encode() []byte {
	b := []byte(recordFileMagic)
	for _, v := range []uint64{r.index, r.term, uint64(r.state), r.confIndex, uint64(r.size)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	received := byte(0)
	if r.received {
		received = 1
	}
	return withSum(appendBytes(append(b, received), r.conf))
}

func decodeRecord(b []byte) (record, error) {
	b, err := checkSum(b)
	if err != nil {
		return record{}, err
	}
	const head = len(recordFileMagic) + 5*8 + 1
	if len(b) < head || string(b[:8]) != recordFileMagic {
		return record{}, dfserr.Errorf(dfserr.ErrFormat, "begins with %.8q", b)
	}
	u := func(i int) uint64 { return binary.BigEndian.Uint64(b[8+8*i:]) }
	r := record{index: u(0), term: u(1), state: dfs.Index(u(2)), confIndex: u(3), size: int64(u(4)), received: b[48] == 1}
	conf, rest, err := cutBytes(b[head:])
	if err != nil {
		return record{}, err
	}
	if len(rest) > 0 || r.index == 0 || uint64(r.state) > r.index || r.size < 0 || b[48] > 1 {
		return record{}, dfserr.Errorf(dfserr.ErrCorrupt, "snapshot record of index %d, state %d, size %d", r.index, r.state, r.size)
	}
	r.conf = slices.Clone(conf)
	return r, nil
}

// meta returns the record as Raft sees it.
func (r record) meta() *raft.SnapshotMeta {
	return &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: fileName(recordPrefix, r.index), Index: r.index, Term: r.term,
		Configuration: raft.DecodeConfiguration(r.conf), ConfigurationIndex: r.confIndex, Size: r.size,
	}
}

// openSnapshots reads dir/snap and removes what was never finished.
func openSnapshots(ctx context.Context, cfg Config, l *latch) (*snapshotStore, error) {
	s := &snapshotStore{
		fs: cfg.FS, dir: path.Join(cfg.Dir, "snap"), state: cfg.State, latch: l, logger: cfg.Logger, every: cfg.CheckpointEntries,
	}
	s.ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	if err := mkdirDurable(s.fs, s.dir); err != nil {
		return nil, err
	}
	entries, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return nil, dfserr.Errorf(dfserr.ErrDiskFailed, "raft snapshots: %v", err)
	}
	received := make(map[uint64]bool)
	for _, e := range entries {
		name := e.Name()
		if n, ok := parseName(name, recordPrefix); ok {
			if err := s.load(name, n); err != nil {
				return nil, err
			}
		} else if n, ok := parseName(name, receivedPrefix); ok {
			received[n] = true
		} else if n, ok := parseName(name, ckptPrefix); ok {
			s.checkpoint = max(s.checkpoint, dfs.Index(n))
		} else if !strings.HasSuffix(name, tmpSuffix) {
			return nil, dfserr.Errorf(dfserr.ErrFormat, "raft snapshots: unknown file %q", path.Join(s.dir, name))
		}
	}
	slices.SortFunc(s.records, func(a, b record) int {
		if a.index < b.index {
			return -1
		}
		return 1
	})
	for _, r := range s.records {
		delete(received, r.index)
	}
	for _, e := range entries { // what no record names was never finished
		n, isReceived := parseName(e.Name(), receivedPrefix)
		c, isCkpt := parseName(e.Name(), ckptPrefix)
		if strings.HasSuffix(e.Name(), tmpSuffix) || isReceived && received[n] || isCkpt && dfs.Index(c) < s.checkpoint {
			if err := s.remove(e.Name()); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

func (s *snapshotStore) load(name string, index uint64) error {
	b, err := readSmall(s.fs, path.Join(s.dir, name), maxRecordFile)
	if err != nil {
		return err
	}
	r, err := decodeRecord(b)
	if err == nil && r.index != index {
		err = dfserr.Errorf(dfserr.ErrCorrupt, "record is of index %d", r.index)
	}
	if err == nil {
		err = checkConfiguration(r.conf)
	}
	if err != nil {
		return fmt.Errorf("raft snapshot record %s: %w", path.Join(s.dir, name), err)
	}
	s.records = append(s.records, r)
	return nil
}

// checkConfiguration makes sure that raft.DecodeConfiguration, which panics, will not.
func checkConfiguration(b []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = dfserr.Errorf(dfserr.ErrCorrupt, "configuration of %d bytes: %v", len(b), p)
		}
	}()
	_ = raft.DecodeConfiguration(b)
	return nil
}

// remove deletes a file in the directory. A crash may bring it back; Open deletes it again.
func (s *snapshotStore) remove(name string) error {
	if err := s.fs.Remove(path.Join(s.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return dfserr.Errorf(dfserr.ErrDiskFailed, "raft snapshots: %v", err)
	}
	return nil
}

// newest returns the newest record.
func (s *snapshotStore) newest() (record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.records) == 0 {
		return record{}, false
	}
	return s.records[len(s.records)-1], true
}

// checkpointIndex returns the index of the newest checkpoint, 0 for none: the log must be kept from the entry after it. Without checkpoints nothing is kept for their sake.
func (s *snapshotStore) checkpointIndex() uint64 {
	if s.every < 0 {
		return ^uint64(0)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return uint64(s.checkpoint)
}

// List returns the newest snapshot, or none.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	r, ok := s.newest()
	if !ok {
		return nil, nil
	}
	return []*raft.SnapshotMeta{r.meta()}, nil
}

// Create begins a snapshot. Written to, the sink keeps a stream from the leader; left empty, it becomes a record of the local state.
func (s *snapshotStore) Create(_ raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	if err := s.latch.err(); err != nil {
		return nil, err
	}
	return &sink{store: s, rec: record{index: index, term: term, conf: raft.EncodeConfiguration(conf), confIndex: confIndex}}, nil
}

// sink writes one snapshot. It belongs to one goroutine.
type sink struct {
	store *snapshotStore
	rec   record
	local bool // Persist has run
	f     vfs.File
	done  bool
}

// ID returns the name under which Open will find the snapshot.
func (k *sink) ID() string { return fileName(recordPrefix, k.rec.index) }

func (k *sink) tmp() string { return fileName(receivedPrefix, k.rec.index) + tmpSuffix }

// Write appends to the stream of a received snapshot.
func (k *sink) Write(p []byte) (int, error) {
	s := k.store
	if err := s.latch.err(); err != nil {
		return 0, err
	}
	if k.f == nil {
		f, err := s.fs.OpenFile(path.Join(s.dir, k.tmp()), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return 0, s.latch.fail(dfserr.Errorf(dfserr.ErrDiskFailed, "receive snapshot: %v", err))
		}
		k.f = f
	}
	n, err := k.f.WriteAt(p, k.rec.size)
	k.rec.size += int64(n)
	if err != nil {
		return n, s.latch.fail(dfserr.Errorf(dfserr.ErrDiskFailed, "receive snapshot: %v", err))
	}
	return n, nil
}

// Cancel forgets the snapshot.
func (k *sink) Cancel() error {
	if k.done {
		return nil
	}
	k.done = true
	if k.f == nil {
		return nil
	}
	return errors.Join(k.f.Close(), k.store.remove(k.tmp()))
}

// Close makes the snapshot durable and the newest one.
func (k *sink) Close() error {
	if k.done {
		return nil
	}
	k.done = true
	s := k.store
	if !k.local && k.f == nil {
		return dfserr.Errorf(dfserr.ErrInvalid, "snapshot of index %d is empty", k.rec.index)
	}
	if err := s.latch.err(); err != nil {
		return err
	}
	return s.latch.fail(k.finish())
}

func (k *sink) finish() error {
	s := k.store
	if k.f != nil {
		k.rec.received, k.rec.state = true, dfs.Index(k.rec.index)
		err := errors.Join(k.f.Sync(), k.f.Close())
		if err == nil {
			err = s.fs.Rename(path.Join(s.dir, k.tmp()), path.Join(s.dir, fileName(receivedPrefix, k.rec.index)))
		}
		if err != nil {
			return dfserr.Errorf(dfserr.ErrDiskFailed, "receive snapshot: %v", err)
		}
	}
	if err := writeDurable(s.fs, s.dir, fileName(recordPrefix, k.rec.index), k.rec.encode()); err != nil {
		return err
	}
	s.mu.Lock()
	s.records = slices.DeleteFunc(s.records, func(r record) bool { return r.index == k.rec.index })
	s.records = append(s.records, k.rec)
	s.mu.Unlock()
	if k.rec.received {
		return nil // the older record stays until the state has this one: see settle
	}
	return s.settle()
}

// settle is called when the state holds the newest record's index: it pins that index and removes what has become superfluous.
func (s *snapshotStore) settle() error {
	s.mu.Lock()
	if len(s.records) == 0 {
		s.mu.Unlock()
		return nil
	}
	newest := s.records[len(s.records)-1]
	old := s.records[:len(s.records)-1]
	s.records = []record{newest}
	unpin := s.pinned
	s.pinned = 0
	s.mu.Unlock()
	if err := s.state.Pin(newest.state); err != nil {
		// History below the state's floor cannot be streamed; a follower that needs it waits for the next snapshot.
		s.logger.Warn("state as of the newest snapshot cannot be pinned", "index", newest.state, "error", err)
	} else {
		s.mu.Lock()
		s.pinned = newest.state
		s.mu.Unlock()
	}
	if unpin != 0 {
		s.state.Unpin(unpin)
	}
	for _, r := range old {
		if err := errors.Join(s.remove(fileName(recordPrefix, r.index)), s.remove(fileName(receivedPrefix, r.index))); err != nil {
			return err
		}
	}
	return s.remove(fileName(receivedPrefix, newest.index))
}

// dropReceived forgets the newest record, whose stream turned out to be bad.
func (s *snapshotStore) dropReceived() error {
	s.mu.Lock()
	n := len(s.records)
	if n == 0 || !s.records[n-1].received {
		s.mu.Unlock()
		return nil
	}
	r := s.records[n-1]
	s.records = s.records[:n-1]
	s.mu.Unlock()
	err := errors.Join(s.remove(fileName(recordPrefix, r.index)), s.remove(fileName(receivedPrefix, r.index)))
	if err == nil {
		if err = s.fs.SyncDir(s.dir); err != nil {
			err = dfserr.Errorf(dfserr.ErrDiskFailed, "raft snapshots: %v", err)
		}
	}
	return s.latch.fail(err)
}

// Open returns the snapshot's stream: the received one while that is there, else the state's.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	r, ok := s.newest()
	if !ok || fileName(recordPrefix, r.index) != id {
		return nil, nil, dfserr.Errorf(dfserr.ErrNotExist, "snapshot %q", id)
	}
	if r.received {
		in, err := s.openReceived(r)
		if err == nil {
			return r.meta(), in, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
	}
	return s.stream(r)
}

// openReceived returns the stream of a snapshot from the leader; fs.ErrNotExist when it is gone, because the state has it.
func (s *snapshotStore) openReceived(r record) (io.ReadCloser, error) {
	f, err := s.fs.OpenFile(path.Join(s.dir, fileName(receivedPrefix, r.index)), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, dfserr.Errorf(dfserr.ErrDiskFailed, "open snapshot: %v", err)
	}
	return &fileReader{f: f, size: r.size}, nil
}

// stream sends the state as of a record. Raft announces the size first, so the stream is made twice; it is the same both times.
func (s *snapshotStore) stream(r record) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if uint64(r.state) != r.index && r.state == 0 {
		return nil, nil, dfserr.Errorf(dfserr.ErrNotExist, "snapshot of index %d has no state", r.index)
	}
	var count counter
	if err := s.state.WriteSnapshot(s.ctx, r.state, &count); err != nil {
		return nil, nil, fmt.Errorf("measure snapshot of index %d: %w", r.index, err)
	}
	r.size = count.n
	pr, pw := io.Pipe()
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		_ = pw.CloseWithError(s.state.WriteSnapshot(s.ctx, r.state, pw)) // always nil
	}()
	return r.meta(), pr, nil
}

// close ends streams and waits for them.
func (s *snapshotStore) close() {
	s.stop()
	s.wg.Wait()
	s.mu.Lock()
	unpin := s.pinned
	s.pinned = 0
	s.mu.Unlock()
	if unpin != 0 {
		s.state.Unpin(unpin)
	}
}

// counter counts what is written to it.
type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// fileReader reads a file front to back. It belongs to one goroutine.
type fileReader struct {
	f         vfs.File
	off, size int64
}

func (r *fileReader) Read(p []byte) (int, error) {
	if r.off >= r.size {
		return 0, io.EOF
	}
	n, err := r.f.ReadAt(p[:min(int64(len(p)), r.size-r.off)], r.off)
	r.off += int64(n)
	if errors.Is(err, io.EOF) {
		err = nil
		if n == 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

func (r *fileReader) Close() error { return r.f.Close() }
