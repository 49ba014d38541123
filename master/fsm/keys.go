package fsm

import (
	"encoding/binary"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// The key schema (docs/format/metadata.md, "Keys"): a kind, a slash, and big-endian ids, so that byte order is id order. The last part, when
// it is a name, runs to the end of the key.
const (
	kindInode   = 'i' // i/<inode>
	kindDentry  = 'd' // d/<parent><name>
	kindFile    = 'c' // c/<inode><n>
	kindChunk   = 'k' // k/<chunk>
	kindXattr   = 'x' // x/<inode><name>
	kindSession = 's' // s/<session>
	kindNonce   = 'n' // n/<nonce>
	kindReply   = 'r' // r/<session><slot>
	kindOrphan  = 'o' // o/<inode>
	kindGarbage = 'g' // g/<index><chunk>
	kindLocks   = 'l' // l/<inode>
	kindMark    = 'h' // h/<session><inode>
	kindSetting = 'z' // z/…
)

const prefixLen = 2

var (
	keyCounters = []byte("z/counters")
	keyCluster  = []byte("z/cluster")
	keyServers  = []byte("z/server/")
)

func appendID(b []byte, kind byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, kind, '/'), id)
}

func appendInodeKey(b []byte, id dfs.InodeID) []byte { return appendID(b, kindInode, uint64(id)) }

func appendDentryKey(b []byte, dir dfs.InodeID, name []byte) []byte {
	return append(appendID(b, kindDentry, uint64(dir)), name...)
}

func appendFileKey(b []byte, inode dfs.InodeID, index int64) []byte {
	return binary.BigEndian.AppendUint64(appendID(b, kindFile, uint64(inode)), uint64(index))
}

func appendChunkKey(b []byte, id dfs.ChunkID) []byte { return appendID(b, kindChunk, uint64(id)) }

func appendXattrKey(b []byte, inode dfs.InodeID, name []byte) []byte {
	return append(appendID(b, kindXattr, uint64(inode)), name...)
}

func appendSessionKey(b []byte, id dfs.SessionID) []byte { return appendID(b, kindSession, uint64(id)) }

func appendReplyKey(b []byte, id dfs.SessionID, seq uint64) []byte {
	return binary.BigEndian.AppendUint16(appendID(b, kindReply, uint64(id)), uint16(seq%dfs.ReplyWindow))
}

func appendOrphanKey(b []byte, id dfs.InodeID) []byte { return appendID(b, kindOrphan, uint64(id)) }

func appendGarbageKey(b []byte, index dfs.Index, id dfs.ChunkID) []byte {
	return binary.BigEndian.AppendUint64(appendID(b, kindGarbage, uint64(index)), uint64(id))
}

func appendLocksKey(b []byte, inode dfs.InodeID) []byte { return appendID(b, kindLocks, uint64(inode)) }

func appendMarkKey(b []byte, id dfs.SessionID, inode dfs.InodeID) []byte {
	return binary.BigEndian.AppendUint64(appendID(b, kindMark, uint64(id)), uint64(inode))
}

func appendServerKey(b []byte, id dfs.ServerID) []byte {
	return binary.BigEndian.AppendUint64(append(b, keyServers...), uint64(id))
}

// idAt reads the id that starts at an offset of a key.
func idAt(key []byte, off int) (uint64, error) {
	if len(key) < off+8 {
		return 0, dfserr.Errorf(dfserr.ErrCorrupt, "key %q is too short", key)
	}
	return binary.BigEndian.Uint64(key[off:]), nil
}
