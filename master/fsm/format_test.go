package fsm

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"dfs/internal/dfs"
	"dfs/master/chunks"
	"dfs/master/locks"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/format.txt anew")

// TestFormat compares keys and values of every kind with the bytes on record, and reads them back: what is on disk must stay readable.
func TestFormatOnDisk(t *testing.T) {
	servers := []dfs.ServerID{1 << 63, 5}
	values := []struct {
		key   []byte
		value any
	}{
		{appendInodeKey(nil, 258), &namespace.Inode{
			Mode: 0o100644, UID: 1, GID: 2, Nlink: 3, Rdev: 4, Length: 5, Atime: 6, Mtime: -7, Ctime: 8, Btime: 9, Target: []byte("t"), ChunkSizeLog2: 26, Replication: 3,
			Inline: []byte("data"), TailOpen: true, Chunks: 10, Parent: 11, Entries: 12, Subdirs: 13, Xattrs: 14, XattrBytes: 15, Version: 16,
		}},
		{appendDentryKey(nil, 258, []byte("na\xffme")), namespace.Dentry{Inode: 7, Type: namespace.TypeDir}},
		{appendFileKey(nil, 258, 3), fileChunk(9)},
		{appendChunkKey(nil, 9), &chunks.Record{
			Inode: 258, Index: 3, Version: 4, Replicas: servers, Replication: 3, ChunkSizeLog2: 26, Birth: 5, Born: true, Seed: []byte("s"), CutLength: 6, CutVersion: 4,
		}},
		{appendXattrKey(nil, 258, []byte("user.a")), xattrValue("v")},
		{appendOrphanKey(nil, 258), namespace.Orphan{UnlinkedAt: 5, Subtree: true}},
		{appendGarbageKey(nil, 77, 9), chunks.Garbage{Replicas: servers, Version: 4, DeletedAt: 5}},
		{appendLocksKey(nil, 258), &locks.Record{
			Flock: []locks.Lock{{Owner: locks.Owner{Session: 88, ID: 1 << 63}, Last: locks.End, Mode: locks.Exclusive, PID: 6, Since: 90}},
			Posix: []locks.Lock{{Owner: locks.Owner{Session: 88, ID: 7}, First: 1, Last: 2, PID: 6, Since: 91}, {Owner: locks.Owner{Session: 89, ID: 7}, First: 2, Last: 3, Since: 92}},
		}},
		{appendMarkKey(nil, 88, 258), &dfsv1.LockMark{}},
		{appendSessionKey(nil, 88), &dfsv1.SessionRecord{Client: "c", CreatedAtNs: 1, TtlNs: 2, Nonce: 3, LockedFiles: 4, Ending: true}},
		{appendID(nil, kindNonce, 3), &dfsv1.NonceRecord{Session: 88}},
		{appendReplyKey(nil, 88, 1025), &dfsv1.CachedReply{Seq: 1025, Result: []byte("r")}},
		{appendServerKey(nil, servers[0]), &dfsv1.ServerRecord{Addr: "a", Rack: "r", FirstSeenNs: 1}},
		{keyCluster, &dfsv1.ClusterRecord{ClusterId: 1, FormattedAtNs: 2}},
		{keyCounters, counters{namespace.Totals{NextInode: 1, Inodes: 2, Directories: 3, Bytes: 4, Orphans: 5, Subtrees: 6}, chunks.Totals{NextChunk: 7, Chunks: 8, Garbage: 9}}},
	}
	var got strings.Builder
	for _, v := range values {
		b, err := encode(v.value)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%T\n  %s\n  %s\n", v.value, hex.EncodeToString(v.key), hex.EncodeToString(b))
		back, err := decode(v.key, b)
		if err != nil {
			t.Fatal(err)
		}
		if m, ok := back.(proto.Message); ok {
			if !proto.Equal(m, v.value.(proto.Message)) {
				t.Errorf("%v came back as %v", v.value, m)
			}
		} else if !reflect.DeepEqual(back, v.value) {
			t.Errorf("%+v came back as %+v", v.value, back)
		}
		if len(b) > 3 {
			if back, err := decode(v.key, b[:len(b)-1]); err == nil && reflect.DeepEqual(back, v.value) {
				t.Errorf("%T: a byte less is the same value", v.value)
			}
		}
	}
	const file = "testdata/format.txt"
	if *rewrite {
		if err := os.WriteFile(file, []byte(got.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got.String() {
		t.Errorf("the format has changed; now it is\n%s", got.String())
	}
	for _, key := range []string{"", "i", "q/12345678", "z/other", "z/server/"} {
		if v, err := decode([]byte(key), nil); err == nil {
			t.Errorf("key %q decodes to %v", key, v)
		}
	}
}
