package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

// Names in a disk's root.
const (
	identityFile = "identity"
	lockFile     = "lock"
	chunksDir    = "chunks"
	failedFile   = "FAILED" // says why the disk was condemned
)

// identityVersion is the version of the layout of a disk: this file, chunks/<hh>/ and what is in it.
const identityVersion = 1

// Identity says whose disk it is. It is written once, when the disk is formatted.
type Identity struct {
	Cluster dfs.ClusterID
	Server  dfs.ServerID
	Disk    uint64 // random; names the disk for ever
}

const identityLayout = "dfs-chunkserver-disk %d\ncluster %016x\nserver %016x\ndisk %016x\n"

// encode returns the contents of the identity file.
func (id Identity) encode() []byte {
	b := fmt.Appendf(nil, identityLayout, identityVersion, uint64(id.Cluster), uint64(id.Server), id.Disk)
	return fmt.Appendf(b, "crc %08x\n", dfs.CRC(b))
}

// decodeIdentity reads what encode wrote, to the byte: ErrCorrupt for anything else, ErrFormat for a file of
// a later version.
func decodeIdentity(b []byte) (Identity, error) {
	var version int
	var id Identity
	if n, err := fmt.Sscanf(string(b), identityLayout, &version, (*uint64)(&id.Cluster), (*uint64)(&id.Server), &id.Disk); n >= 1 && version > identityVersion {
		return Identity{}, dfserr.Errorf(dfserr.ErrFormat, "layout version %d, this program knows %d", version, identityVersion)
	} else if err != nil {
		return Identity{}, dfserr.Errorf(dfserr.ErrCorrupt, "identity file does not parse (%v)", err)
	}
	if !bytes.Equal(id.encode(), b) {
		return Identity{}, dfserr.Errorf(dfserr.ErrCorrupt, "identity file fails its checksum")
	}
	return id, nil
}

// Format makes an empty directory a disk of the store, durably: it lays out the directories and writes the
// identity file last, so that an interrupted Format can be repeated. ErrExist when the disk is formatted
// already; ErrInvalid for an identity with a zero field; ErrNotEmpty when the directory holds something else.
func Format(disk Disk, id Identity) error {
	if id.Cluster == 0 || id.Server == 0 || id.Disk == 0 {
		return dfserr.Errorf(dfserr.ErrInvalid, "identity %+v for disk %s has a zero field", id, disk.Name)
	}
	unlock, err := lockDisk(disk)
	if err != nil {
		return err
	}
	defer unlock.Close()
	if _, err := ReadIdentity(disk); err == nil {
		return dfserr.Errorf(dfserr.ErrExist, "disk %s is formatted already", disk.Name)
	} else if !errors.Is(err, dfserr.ErrNotExist) {
		return err
	}
	entries, err := disk.FS.ReadDir(".")
	if err != nil {
		return diskError(disk, "list", err)
	}
	for _, e := range entries {
		switch e.Name() {
		case lockFile, chunksDir, identityFile + ".tmp", "lost+found":
		default:
			return dfserr.Errorf(dfserr.ErrNotEmpty, "disk %s holds %q and no identity file; use an empty directory", disk.Name, e.Name())
		}
	}
	if err := layOut(disk); err != nil {
		return diskError(disk, "lay out", err)
	}
	if err := vfs.WriteFile(disk.FS, identityFile, id.encode(), 0o644); err != nil {
		return diskError(disk, "write identity of", err)
	}
	return nil
}

// layOut creates the directories that are missing and makes them durable.
func layOut(disk Disk) error {
	if err := vfs.MkdirAll(disk.FS, chunksDir, 0o755); err != nil {
		return err
	}
	entries, err := disk.FS.ReadDir(chunksDir)
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, e := range entries {
		have[e.Name()] = true
	}
	missing := false
	for i := range 256 {
		name := fmt.Sprintf("%02x", i)
		if have[name] {
			continue
		}
		missing = true
		if err := disk.FS.Mkdir(chunksDir+"/"+name, 0o755); err != nil {
			return err
		}
	}
	if !missing {
		return nil
	}
	return disk.FS.SyncDir(chunksDir)
}

// ReadIdentity reads a disk's identity. ErrNotExist when it is not formatted, ErrFormat when a newer program
// formatted it, ErrCorrupt when the file is damaged, ErrPermission or ErrDiskFailed when it cannot be read;
// each names the directory and what to do.
func ReadIdentity(disk Disk) (Identity, error) {
	b, err := vfs.ReadFile(disk.FS, identityFile, 4*dfs.KiB)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Identity{}, dfserr.Errorf(dfserr.ErrNotExist, "disk %s has no identity file: mount it if it is a mount point, or format it", disk.Name)
	case errors.Is(err, vfs.ErrTooLong):
		return Identity{}, dfserr.Errorf(dfserr.ErrCorrupt, "disk %s: identity file is too long: restore it, or empty the directory and let its chunks be copied again", disk.Name)
	case err != nil:
		return Identity{}, diskError(disk, "read identity of", err)
	}
	id, err := decodeIdentity(b)
	switch {
	case errors.Is(err, dfserr.ErrFormat):
		return id, dfserr.Errorf(dfserr.ErrFormat, "disk %s was written by a newer program (%v): upgrade, or use another directory", disk.Name, err)
	case err != nil:
		return id, dfserr.Errorf(dfserr.ErrCorrupt, "disk %s: %v: restore it, or empty the directory and let its chunks be copied again", disk.Name, err)
	}
	return id, nil
}

// Readmit clears the condemnation of a disk that is not in use by a Store, after an operator has repaired or
// checked it and mounted it anew, so that nothing in the page cache pretends to be on the disk. ErrInUse while a
// Store has it.
func Readmit(disk Disk) error {
	unlock, err := lockDisk(disk)
	if err != nil {
		return err
	}
	defer unlock.Close()
	if err := disk.FS.Remove(failedFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return diskError(disk, "re-admit", err)
	}
	if err := disk.FS.SyncDir("."); err != nil {
		return diskError(disk, "re-admit", err)
	}
	return nil
}

// CheckWritable finds out, without changing anything but the lock file, whether a disk could be formatted and used:
// ErrInUse, ErrPermission, ErrNoSpace or ErrDiskFailed, naming the directory and what to do.
func CheckWritable(disk Disk) error {
	unlock, err := lockDisk(disk)
	if err != nil {
		return err
	}
	if err := unlock.Close(); err != nil {
		return diskError(disk, "unlock", err)
	}
	return nil
}

// lockDisk takes the disk's lock, which also shows that the directory is writable.
func lockDisk(disk Disk) (vfs.Unlocker, error) {
	unlock, err := disk.FS.Lock(lockFile)
	if errors.Is(err, vfs.ErrLocked) {
		return nil, dfserr.Errorf(dfserr.ErrInUse, "disk %s is in use by another process: stop it, or use another directory", disk.Name)
	}
	if err != nil {
		return nil, diskError(disk, "lock", err)
	}
	return unlock, nil
}

// diskError turns an error of the file system into one for operators.
func diskError(disk Disk, what string, err error) error {
	switch {
	case vfs.IsReadOnly(err):
		return dfserr.Errorf(dfserr.ErrPermission, "%s disk %s (%v): make the directory writable for this user, or use another", what, disk.Name, err)
	case vfs.IsNoSpace(err):
		return dfserr.Errorf(dfserr.ErrNoSpace, "%s disk %s", what, disk.Name)
	}
	return dfserr.Errorf(dfserr.ErrDiskFailed, "%s disk %s (%v): check the disk, or take it out of the configuration", what, disk.Name, err)
}
