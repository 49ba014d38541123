package kv

import (
	"encoding/binary"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// internalPrefix starts the keys of this package; callers' keys must not start with it. Internal keys are not part of the state: no hash,
// no iteration, no snapshot sees them.
const internalPrefix = 0x00

// appliedKey holds the applied record. Each committed index writes a version of it.
var appliedKey = []byte("\x00applied")

// appliedRecord is what is known of the state as of one index; the index itself is the version of the key.
type appliedRecord struct {
	index dfs.Index // not stored: the version
	prev  dfs.Index // the index committed before this one, 0 for the first
	floor dfs.Index // history below this may be gone
	keys  uint64    // number of keys in the state
	hash  Hash
}

const appliedSize = 5 * 8

func (a appliedRecord) encode() []byte {
	out := make([]byte, 0, appliedSize)
	out = binary.BigEndian.AppendUint64(out, uint64(a.prev))
	out = binary.BigEndian.AppendUint64(out, uint64(a.floor))
	out = binary.BigEndian.AppendUint64(out, a.keys)
	out = binary.BigEndian.AppendUint64(out, a.hash[0])
	return binary.BigEndian.AppendUint64(out, a.hash[1])
}

// decodeApplied reads a record whose envelope has been verified.
func decodeApplied(index dfs.Index, b []byte) (appliedRecord, error) {
	if len(b) != appliedSize {
		return appliedRecord{}, dfserr.Errorf(dfserr.ErrCorrupt, "applied record of index %d is %d bytes long, want %d", index, len(b), appliedSize)
	}
	u := func(i int) uint64 { return binary.BigEndian.Uint64(b[8*i:]) }
	a := appliedRecord{index: index, prev: dfs.Index(u(0)), floor: dfs.Index(u(1)), keys: u(2), hash: Hash{u(3), u(4)}}
	if a.prev >= index || a.floor > index {
		return appliedRecord{}, dfserr.Errorf(dfserr.ErrCorrupt, "applied record of index %d names %d as the one before and %d as its floor", index, a.prev, a.floor)
	}
	return a, nil
}
