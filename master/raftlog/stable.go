package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"sync"

	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

// stableStore is raft.StableStore: the term, the vote, and the mark of a clean end, in one small file that is replaced as a whole. Safe for concurrent use.
type stableStore struct {
	fs    vfs.FS
	dir   string
	latch *latch

	mu     sync.Mutex
	values map[string][]byte // Guarded by mu.
}

const (
	stableFile  = "stable"
	stableMagic = "dfsrstb1"
	endKey      = "dfs.end" // last index u64 and chain u32 at a clean end; absent while open

	maxStableKeys  = 64
	maxStableBytes = 64 << 10
)

// openStable reads dir/stable; a missing one is an empty one.
func openStable(fsys vfs.FS, dir string, l *latch) (*stableStore, error) {
	s := &stableStore{fs: fsys, dir: dir, latch: l, values: make(map[string][]byte)}
	b, err := readSmall(fsys, path.Join(dir, stableFile), maxStableBytes)
	if err != nil {
		return nil, err
	}
	if b == nil {
		return s, nil
	}
	if s.values, err = decodeStable(b); err != nil {
		return nil, fmt.Errorf("file %s: %w", path.Join(dir, stableFile), err)
	}
	return s, nil
}

// encodeStable writes magic, number of keys u32, then per key its length u32, the key, the value's length u32, the value, in key order, and the CRC32C of all that.
func encodeStable(values map[string][]byte) []byte {
	keys := make([]string, 0, len(values))
	for k := range values {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	b := binary.BigEndian.AppendUint32([]byte(stableMagic), uint32(len(keys)))
	for _, k := range keys {
		b = appendBytes(appendBytes(b, []byte(k)), values[k])
	}
	return withSum(b)
}

func decodeStable(b []byte) (map[string][]byte, error) {
	b, err := checkSum(b)
	if err != nil {
		return nil, err
	}
	if len(b) < len(stableMagic)+4 || string(b[:len(stableMagic)]) != stableMagic {
		return nil, dfserr.Errorf(dfserr.ErrFormat, "begins with %.8q", b)
	}
	b = b[len(stableMagic):]
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	if n > maxStableKeys {
		return nil, dfserr.Errorf(dfserr.ErrCorrupt, "%d keys", n)
	}
	values := make(map[string][]byte, n)
	for range n {
		var k, v []byte
		if k, b, err = cutBytes(b); err != nil {
			return nil, err
		}
		if v, b, err = cutBytes(b); err != nil {
			return nil, err
		}
		values[string(k)] = slices.Clone(v)
	}
	if len(b) > 0 {
		return nil, dfserr.Errorf(dfserr.ErrCorrupt, "%d bytes too many", len(b))
	}
	return values, nil
}

func appendBytes(b, part []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(part))), part...)
}

// cutBytes undoes appendBytes; the part aliases b.
func cutBytes(b []byte) (part, rest []byte, err error) {
	if len(b) < 4 || uint64(binary.BigEndian.Uint32(b)) > uint64(len(b)-4) {
		return nil, nil, dfserr.Errorf(dfserr.ErrCorrupt, "%d bytes left where a length and that many bytes should be", len(b))
	}
	n := int(binary.BigEndian.Uint32(b))
	return b[4 : 4+n], b[4+n:], nil
}

// errNotFound has the text that Raft compares with.
var errNotFound = errors.New("not found")

// Get returns the value of key, or an error that reads "not found".
func (s *stableStore) Get(key []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.values[string(key)]
	if !ok {
		return nil, errNotFound
	}
	return slices.Clone(v), nil
}

// Set stores a value; it is durable on return. Behind a closed latch it only pretends, because Raft panics on an error here, and nothing that follows can be seen from outside.
func (s *stableStore) Set(key, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.setLocked(string(key), slices.Clone(value))
}

func (s *stableStore) setLocked(key string, value []byte) error {
	s.values[key] = value
	if s.latch.err() != nil {
		return nil
	}
	if err := writeDurable(s.fs, s.dir, stableFile, encodeStable(s.values)); err != nil {
		_ = s.latch.fail(err)
	}
	return nil
}

// SetUint64 is Set of a number.
func (s *stableStore) SetUint64(key []byte, v uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, v))
}

// GetUint64 is Get of a number.
func (s *stableStore) GetUint64(key []byte) (uint64, error) {
	v, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, dfserr.Errorf(dfserr.ErrCorrupt, "stable value %q of %d bytes is no number", key, len(v))
	}
	return binary.BigEndian.Uint64(v), nil
}

// empty reports whether nothing is stored.
func (s *stableStore) empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.values) == 0
}

// reset forgets everything, durably.
func (s *stableStore) reset() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.values) == 0 {
		return nil
	}
	clear(s.values)
	return writeDurable(s.fs, s.dir, stableFile, encodeStable(s.values))
}

// markEnd notes the end of the log at a clean close.
func (s *stableStore) markEnd(last uint64, chain uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[endKey] = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, last), chain)
	return writeDurable(s.fs, s.dir, stableFile, encodeStable(s.values))
}

// takeEnd returns the mark of a clean end and removes it, durably. found is false when the last user did not close.
func (s *stableStore) takeEnd() (last uint64, chain uint32, found bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, found := s.values[endKey]
	if !found {
		return 0, 0, false, nil
	}
	if len(v) != 12 {
		return 0, 0, false, dfserr.Errorf(dfserr.ErrCorrupt, "mark of the clean end has %d bytes", len(v))
	}
	delete(s.values, endKey)
	if err := writeDurable(s.fs, s.dir, stableFile, encodeStable(s.values)); err != nil {
		return 0, 0, false, err
	}
	return binary.BigEndian.Uint64(v), binary.BigEndian.Uint32(v[8:]), true, nil
}

// withSum returns b followed by its CRC32C.
func withSum(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// checkSum undoes withSum.
func checkSum(b []byte) ([]byte, error) {
	if len(b) < 4 {
		return nil, dfserr.Errorf(dfserr.ErrCorrupt, "%d bytes long", len(b))
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if got := crc32.Checksum(body, castagnoli); got != sum {
		return nil, dfserr.Errorf(dfserr.ErrCorrupt, "CRC %08x, stored is %08x", got, sum)
	}
	return body, nil
}

// readSmall reads a file of at most limit bytes whole; nil for a missing one.
func readSmall(fsys vfs.FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, dfserr.Errorf(dfserr.ErrDiskFailed, "read: %v", err)
	}
	size, err := f.Size()
	if err == nil && size > limit {
		return nil, errors.Join(dfserr.Errorf(dfserr.ErrCorrupt, "file %s is %d bytes long", name, size), f.Close())
	}
	b := make([]byte, max(size, 0))
	if err == nil && size > 0 {
		var n int
		if n, err = f.ReadAt(b, 0); n == len(b) && errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, dfserr.Errorf(dfserr.ErrDiskFailed, "read %s: %v", name, err)
	}
	return b, nil
}

// writeDurable replaces file dir/name by content, atomically and durably.
func writeDurable(fsys vfs.FS, dir, name string, content []byte) error {
	tmp := path.Join(dir, name+".tmp")
	f, err := fsys.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.WriteAt(content, 0)
		if err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		err = fsys.Rename(tmp, path.Join(dir, name))
	}
	if err == nil {
		err = fsys.SyncDir(dirName(dir))
	}
	if err != nil {
		return dfserr.Errorf(dfserr.ErrDiskFailed, "write %s: %v", path.Join(dir, name), err)
	}
	return nil
}

// mkdirDurable makes directory dir, if it is missing, durably.
func mkdirDurable(fsys vfs.FS, dir string) error {
	err := fsys.Mkdir(dir, 0o700)
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = fsys.SyncDir(dirName(path.Dir(dir)))
	}
	if err != nil {
		return dfserr.Errorf(dfserr.ErrDiskFailed, "make directory %s: %v", dir, err)
	}
	return nil
}

// dirName returns the name of a directory for SyncDir; the root is ".".
func dirName(dir string) string {
	if dir == "" {
		return "."
	}
	return dir
}
