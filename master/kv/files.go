package kv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// Names in a metadata directory and in a generation (docs/format/metadata.md).
const (
	ownerFile    = "OWNER"   // locked while a DB is open
	currentFile  = "CURRENT" // names the live generation
	genPrefix    = "gen-"
	corruptName  = "corrupt" // the generation that Discard set aside last
	syncedFile   = "SYNCED"  // in a generation: what SyncTo made durable
	cleanFile    = "CLEAN"   // in a generation: what Close left; removed by Open
	currentMagic = "dfskvcur1"
	markMagic    = "dfskvmrk1"
)

// dirLock is an advisory lock on a metadata directory.
type dirLock struct{ f *os.File }

func lockDir(dir string) (*dirLock, error) {
	f, err := os.OpenFile(filepath.Join(dir, ownerFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock metadata directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		err = errors.Join(dfserr.Errorf(dfserr.ErrInUse, "metadata directory %s (%v)", dir, err), f.Close())
		return nil, err
	}
	return &dirLock{f}, nil
}

func (l *dirLock) release() error { return l.f.Close() }

// withSum returns b followed by its CRC32C.
func withSum(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// checkSum undoes withSum.
func checkSum(name string, b []byte) ([]byte, error) {
	if len(b) < 4 {
		return nil, dfserr.Errorf(dfserr.ErrCorrupt, "file %s is %d bytes long", name, len(b))
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if got := crc32.Checksum(body, castagnoli); got != sum {
		return nil, dfserr.Errorf(dfserr.ErrCorrupt, "file %s has CRC %08x, stored is %08x", name, got, sum)
	}
	return body, nil
}

// maxSmallFile bounds what readSmall allocates.
const maxSmallFile = 4 << 10

// readSmall reads a small file whole; nil for a missing one.
func readSmall(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if info.Size() > maxSmallFile {
		return nil, dfserr.Errorf(dfserr.ErrCorrupt, "file %s is %d bytes long", name, info.Size())
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// writeDurable replaces file dir/name by content, atomically and durably.
func writeDurable(dir, name string, content []byte) error {
	tmp := filepath.Join(dir, name+".tmp")
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", tmp, err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return syncPath(dir)
}

// syncPath fsyncs a file or a directory.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

// readCurrent returns the name of the live generation, "" for none.
func readCurrent(dir string) (string, error) {
	b, err := readSmall(filepath.Join(dir, currentFile))
	if b == nil || err != nil {
		return "", err
	}
	if b, err = checkSum(filepath.Join(dir, currentFile), b); err != nil {
		return "", err
	}
	name, ok := strings.CutPrefix(string(b), currentMagic+" ")
	if !ok || !validGeneration(name) {
		return "", dfserr.Errorf(dfserr.ErrFormat, "file %s begins with %.16q", filepath.Join(dir, currentFile), b)
	}
	return name, nil
}

func writeCurrent(dir, name string) error {
	return writeDurable(dir, currentFile, withSum([]byte(currentMagic+" "+name)))
}

func validGeneration(name string) bool {
	digits, ok := strings.CutPrefix(name, genPrefix)
	_, err := strconv.ParseUint(digits, 16, 64)
	return ok && err == nil && len(digits) == 16
}

// nextGeneration returns a name that no generation in dir has.
func nextGeneration(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("metadata directory: %w", err)
	}
	var highest uint64
	for _, e := range entries {
		if validGeneration(e.Name()) {
			n, _ := strconv.ParseUint(e.Name()[len(genPrefix):], 16, 64)
			highest = max(highest, n)
		}
	}
	return fmt.Sprintf("%s%016x", genPrefix, highest+1), nil
}

// removeOtherGenerations removes what an interrupted restore or an earlier one left.
func removeOtherGenerations(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("metadata directory: %w", err)
	}
	for _, e := range entries {
		if validGeneration(e.Name()) && e.Name() != keep {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("metadata directory: %w", err)
			}
		}
	}
	return nil
}

// Discard sets the state in dir aside, as dir/corrupt, so that the next Open begins with an empty one. An older dir/corrupt is removed. The directory must not be open.
func Discard(dir string) error {
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	name, err := readCurrent(dir)
	if err == nil && name != "" {
		err = errors.Join(os.RemoveAll(filepath.Join(dir, corruptName)), os.Rename(filepath.Join(dir, name), filepath.Join(dir, corruptName)))
	} else {
		err = removeOtherGenerations(dir, "") // CURRENT cannot be read: nothing says which generation was live
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		if err = os.Remove(filepath.Join(dir, currentFile)); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		err = syncPath(dir)
	}
	if err = errors.Join(err, lock.release()); err != nil {
		return fmt.Errorf("discard metadata in %s: %w", dir, err)
	}
	return nil
}

// writeMark notes an applied record in file name of a generation.
func writeMark(genPath, name string, rec appliedRecord) error {
	b := append([]byte(markMagic), binary.BigEndian.AppendUint64(nil, uint64(rec.index))...)
	return writeDurable(genPath, name, withSum(append(b, rec.encode()...)))
}

// readMark reads what writeMark wrote.
func readMark(genPath, name string) (rec appliedRecord, found bool, err error) {
	path := filepath.Join(genPath, name)
	b, err := readSmall(path)
	if b == nil || err != nil {
		return appliedRecord{}, false, err
	}
	if b, err = checkSum(path, b); err != nil {
		return appliedRecord{}, false, err
	}
	return decodeMark(path, b)
}

func decodeMark(path string, b []byte) (appliedRecord, bool, error) {
	body, ok := strings.CutPrefix(string(b), markMagic)
	if !ok || len(body) != 8+appliedSize {
		return appliedRecord{}, false, dfserr.Errorf(dfserr.ErrFormat, "file %s begins with %.16q", path, b)
	}
	index := dfs.Index(binary.BigEndian.Uint64([]byte(body)))
	rest := []byte(body)[8:]
	if index == 0 { // an empty state, closed
		return appliedRecord{}, true, nil
	}
	rec, err := decodeApplied(index, rest)
	return rec, err == nil, err
}
