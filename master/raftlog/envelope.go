package raftlog

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/hashicorp/raft"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// The envelope of an entry's data: magic, format, a zero byte, and the CRC32C of those four bytes and the payload. It is made by the proposer and verified before
// apply, on every master. The index and the term are not known to the proposer; the log's own records bind the data to them.
const (
	envelopeMagic  = 0xDF5E
	envelopeFormat = 1
	envelopeBytes  = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// MaxEntry is the largest data that Propose takes, in bytes.
const MaxEntry = dfs.MaxEntrySize

// seal returns payload in its envelope.
func seal(payload []byte) []byte {
	out := make([]byte, envelopeBytes+len(payload))
	binary.BigEndian.PutUint16(out, envelopeMagic)
	out[2] = envelopeFormat
	copy(out[envelopeBytes:], payload)
	binary.BigEndian.PutUint32(out[4:], envelopeSum(out))
	return out
}

func envelopeSum(sealed []byte) uint32 {
	return crc32.Update(crc32.Checksum(sealed[:4], castagnoli), castagnoli, sealed[envelopeBytes:])
}

// unseal verifies an envelope and returns the payload, a part of data. Errors wrap ErrCorrupt or ErrFormat.
func unseal(index uint64, data []byte) ([]byte, error) {
	if len(data) < envelopeBytes {
		return nil, dfserr.Errorf(dfserr.ErrCorrupt, "log entry %d has %d bytes", index, len(data))
	}
	if got, want := envelopeSum(data), binary.BigEndian.Uint32(data[4:]); got != want {
		return nil, dfserr.Errorf(dfserr.ErrCorrupt, "log entry %d has CRC %08x, stored is %08x", index, got, want)
	}
	if binary.BigEndian.Uint16(data) != envelopeMagic || data[2] != envelopeFormat {
		return nil, dfserr.Errorf(dfserr.ErrFormat, "log entry %d begins with %x", index, data[:4])
	}
	return data[envelopeBytes:], nil
}

// unsealLog returns a copy of l with the payload as its data.
func unsealLog(l *raft.Log) (*raft.Log, error) {
	payload, err := unseal(l.Index, l.Data)
	if err != nil {
		return nil, err
	}
	c := *l
	c.Data = payload
	return &c, nil
}
