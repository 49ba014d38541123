package master

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"

	"golang.org/x/sys/unix"
)

// The data directory (docs/format/master-directory.md):
//
//	identity   which cluster and which node this is; text, with a CRC
//	lock       held while a process uses the directory
//	log/       the Raft log and its snapshots
//	state/     the materialised state, rebuilt from log/ when it is lost
const (
	identityFile = "identity"
	lockFile     = "lock"
	logDir       = "log"
	stateDir     = "state"
)

// dirFormat is the version of the layout above.
const dirFormat = 1

// identity says whose data a directory holds.
type identity struct {
	Format  int
	Cluster dfs.ClusterID
	Node    uint64
	// Formatted says that a log with the cluster in it has been made, so that it must be there from now on.
	Formatted bool
}

// dataDir is a locked data directory.
type dataDir struct {
	path  string
	lock  *os.File
	ident identity
	fresh bool // the identity was made by this call
}

// openDir creates or opens the data directory, takes its lock and reads or writes its identity. want is the cluster that
// it must belong to, or 0. Errors name the directory and what to do: ErrInUse, ErrWrongCluster, ErrFormat,
// ErrCorrupt, ErrPermission.
func openDir(path string, want dfs.ClusterID) (*dataDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("master data directory %s cannot be created (choose another directory, or fix its permissions): %w", path, err)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("master data directory %s is not writable (fix its owner or permissions, or choose another): %w", path, err)
	}
	d := &dataDir{path: path, lock: lock}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(dfserr.Errorf(dfserr.ErrInUse,
			"master data directory %s is used by a running master (stop that one, or choose another directory)", path), lock.Close())
	}
	if err := d.loadIdentity(want); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return d, nil
}

// close releases the lock.
func (d *dataDir) close() error { return d.lock.Close() }

func (d *dataDir) statePath() string { return filepath.Join(d.path, stateDir) }

// loadIdentity reads the identity file, or writes one into a directory that holds nothing else.
func (d *dataDir) loadIdentity(want dfs.ClusterID) error {
	file, err := os.Open(filepath.Join(d.path, identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return d.makeIdentity(want)
	}
	if err != nil {
		return fmt.Errorf("master data directory %s: %w", d.path, err)
	}
	defer func() { _ = file.Close() }() // nothing was written
	text, err := io.ReadAll(io.LimitReader(file, maxIdentity+1))
	if err != nil {
		return fmt.Errorf("master data directory %s: read %s: %w", d.path, identityFile, err)
	}
	d.ident, err = parseIdentity(text)
	if err != nil {
		return fmt.Errorf("master data directory %s: %w", d.path, err)
	}
	if want != 0 && d.ident.Cluster != want {
		return dfserr.Errorf(dfserr.ErrWrongCluster, "master data directory %s belongs to cluster %s, not %s (use that cluster's id, or another directory)",
			d.path, d.ident.Cluster, want)
	}
	return nil
}

func (d *dataDir) makeIdentity(want dfs.ClusterID) error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("master data directory %s: %w", d.path, err)
	}
	for _, e := range entries {
		if n := e.Name(); n != lockFile && n != identityFile+".tmp" {
			return dfserr.Errorf(dfserr.ErrFormat, "master data directory %s has no %s file but holds %q: not a master's (choose an empty directory)",
				d.path, identityFile, n)
		}
	}
	d.ident = identity{Format: dirFormat, Cluster: want, Node: randomID()}
	if want == 0 {
		d.ident.Cluster = dfs.ClusterID(randomID())
	}
	d.fresh = true
	if err := writeFileDurably(d.path, identityFile, d.ident.encode()); err != nil {
		return fmt.Errorf("master data directory %s is not writable: %w", d.path, err)
	}
	return nil
}

// markFormatted notes in the identity file that the log holds the cluster.
func (d *dataDir) markFormatted() error {
	if d.ident.Formatted {
		return nil
	}
	next := d.ident
	next.Formatted = true
	if err := writeFileDurably(d.path, identityFile, next.encode()); err != nil {
		return fmt.Errorf("master data directory %s: %w", d.path, err)
	}
	d.ident = next
	return nil
}

// maxIdentity bounds the identity file, in bytes.
const maxIdentity = 4096

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode returns the file's text; its last line is the CRC of what stands above it.
func (i identity) encode() []byte {
	body := fmt.Sprintf("dfs master\nformat %d\ncluster %s\nnode %016x\nformatted %t\n", i.Format, i.Cluster, i.Node, i.Formatted)
	return fmt.Appendf([]byte(body), "crc %08x\n", crc32.Checksum([]byte(body), castagnoli))
}

// parseIdentity reads what encode wrote. The format is judged before the rest, so that a newer layout is
// named as such.
func parseIdentity(text []byte) (identity, error) {
	var i identity
	if len(text) > maxIdentity {
		return i, dfserr.Errorf(dfserr.ErrCorrupt, "file %s is over %d bytes long", identityFile, maxIdentity)
	}
	at := bytes.LastIndex(text, []byte("crc "))
	if at < 0 || !bytes.HasPrefix(text, []byte("dfs master\n")) {
		return i, dfserr.Errorf(dfserr.ErrFormat, "file %s is not a dfs master's", identityFile)
	}
	if want := fmt.Sprintf("crc %08x\n", crc32.Checksum(text[:at], castagnoli)); string(text[at:]) != want {
		return i, dfserr.Errorf(dfserr.ErrCorrupt, "file %s fails its checksum (restore it from a backup; it says which cluster the data is of)", identityFile)
	}
	for line := range strings.Lines(string(text[:at])) {
		var err error
		switch key, value, _ := strings.Cut(strings.TrimSpace(line), " "); key {
		case "format":
			_, err = fmt.Sscanf(value, "%d", &i.Format)
		case "cluster":
			_, err = fmt.Sscanf(value, "%x", (*uint64)(&i.Cluster))
		case "node":
			_, err = fmt.Sscanf(value, "%x", &i.Node)
		case "formatted":
			i.Formatted, err = strconv.ParseBool(value)
		}
		if err != nil {
			return i, dfserr.Errorf(dfserr.ErrCorrupt, "file %s: line %q", identityFile, line)
		}
	}
	if i.Format != dirFormat {
		return i, dfserr.Errorf(dfserr.ErrFormat, "layout version %d, this program knows %d (use the version of dfs that wrote it)", i.Format, dirFormat)
	}
	if i.Cluster == 0 || i.Node == 0 {
		return i, dfserr.Errorf(dfserr.ErrCorrupt, "file %s names no cluster or no node", identityFile)
	}
	return i, nil
}

// writeFileDurably replaces dir/name as a whole: after a crash it holds the old or the new bytes.
func writeFileDurably(dir, name string, data []byte) error {
	tmp := filepath.Join(dir, name+".tmp")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return err
	}
	parent, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}

// randomID draws a non-zero 64-bit number.
func randomID() uint64 {
	for {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails (crypto/rand)
		if id := binary.LittleEndian.Uint64(b[:]); id != 0 {
			return id
		}
	}
}
