package fsm

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/master/chunks"
	"dfs/master/namespace"
	dfsv1 "dfs/proto/dfs/v1"
)

func TestReadDirPages(t *testing.T) {
	m := newMachine(t)
	m.mkdir("/", "d")
	for i := range 25 {
		m.mkfile("/d", fmt.Sprintf("f%02d", i))
	}
	v := m.view()
	defer v.Close()
	m.must(removeCmd("/d", "f03", dfsv1.RemoveRequest_FILE)) // after the view began
	var names []string
	var after []byte
	for pages := 1; ; pages++ {
		p, err := v.ReadDir(&dfsv1.Caller{}, &dfsv1.Ref{Path: []byte("d")}, after, 10, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Entries {
			names = append(names, string(e.GetName()))
			if e.GetAttr().GetReplication() != dfs.DefaultReplication || e.GetAttr().GetNlink() != 1 {
				t.Error(e)
			}
		}
		if p.Dir.GetMode() != 0o40755 {
			t.Error(p.Dir)
		}
		if p.End {
			if pages != 3 {
				t.Errorf("%d pages", pages)
			}
			break
		}
		after = p.Entries[len(p.Entries)-1].GetName()
	}
	if len(names) != 25 || !slices.IsSorted(names) {
		t.Error(names)
	}
}

func TestReadDirPermissions(t *testing.T) {
	m := newMachine(t)
	m.mkdir("/", "d")
	m.mkfile("/d", "f")
	chmod := func(mode uint32) {
		m.must(&dfsv1.Command{Header: asRoot(), Op: &dfsv1.Command_SetAttr{SetAttr: &dfsv1.SetAttrRequest{Ref: &dfsv1.Ref{Path: []byte("d")}, Mode: &mode}}})
	}
	read := func(c *dfsv1.Caller, path string, namesOnly bool) (Page, error) {
		v := m.view()
		defer v.Close()
		return v.ReadDir(c, &dfsv1.Ref{Path: []byte(path)}, nil, 0, namesOnly)
	}
	chmod(0o744)
	// Names need read permission; attributes search permission as well.
	p, err := read(&dfsv1.Caller{Uid: 9, Gid: 9}, "d", false)
	if err != nil || len(p.Entries) != 1 || p.Entries[0].GetAttr().GetMode() != namespace.TypeRegular || p.Entries[0].GetAttr().GetInode() == 0 {
		t.Error(p, err)
	}
	chmod(0o711)
	if _, err := read(&dfsv1.Caller{Uid: 9, Gid: 9}, "d", false); !errors.Is(err, dfserr.ErrPermission) {
		t.Error(err)
	}
	if p, err := read(&dfsv1.Caller{}, "d", true); err != nil || p.Entries[0].GetAttr().GetNlink() != 0 {
		t.Error(p, err)
	}
	if _, err := read(&dfsv1.Caller{}, "d/f", false); !errors.Is(err, dfserr.ErrNotDir) {
		t.Error(err)
	}
	// Who does not say who asks is not root.
	if _, err := read(nil, "d", false); !errors.Is(err, dfserr.ErrPermission) {
		t.Error(err)
	}
}

func TestOpen(t *testing.T) {
	m := newMachine(t)
	m.mkdir("/", "d")
	m.mkfile("/d", "f")
	m.inView(func(v *View) {
		user := &dfsv1.Caller{Uid: 9, Gid: 9}
		file, dir := &dfsv1.Ref{Path: []byte("d/f")}, &dfsv1.Ref{Path: []byte("d")}
		if id, n, err := v.Open(user, file, true, false); err != nil || !n.IsRegular() || id != 3 {
			t.Error(id, n, err)
		}
		if _, _, err := v.Open(user, file, true, true); !errors.Is(err, dfserr.ErrPermission) {
			t.Error(err)
		}
		if _, _, err := v.Open(&dfsv1.Caller{}, dir, true, true); !errors.Is(err, dfserr.ErrIsDir) {
			t.Error(err)
		}
		if _, err := v.Attr(99); !errors.Is(err, dfserr.ErrStaleInode) {
			t.Error(err)
		}
	})
}

func TestFileConfigs(t *testing.T) {
	m := newMachine(t)
	f, empty := m.mkfile("/", "f"), m.mkfile("/", "empty")
	for _, i := range []int64{0, 1, 4, 9} {
		m.addChunk(f, i, 0)
	}
	m.inView(func(v *View) {
		for _, c := range []struct {
			first int64
			count int
			want  []int64
		}{
			{0, 1, []int64{0}}, {1, 2, []int64{1}}, {2, 2, nil}, {0, 1024, []int64{0, 1, 4, 9}}, {1, 4, []int64{1, 4}}, {5, 3, nil}, {9, 5, []int64{9}}, {10, 5, nil}, {3, 0, nil},
		} {
			configs, err := v.FileConfigs(dfs.InodeID(f), c.first, c.count)
			var got []int64
			for _, x := range configs {
				got = append(got, x.GetIndex())
				if len(x.GetReplicas()) != 3 || x.GetInode() != f || x.GetChunkSize() != dfs.DefaultChunkSize {
					t.Error(x)
				}
			}
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%+v: got %v, %v", c, got, err)
			}
		}
		if _, err := v.FileConfigs(dfs.InodeID(f), -1, 1); !errors.Is(err, dfserr.ErrInvalid) {
			t.Error(err)
		}
		if last, err := v.LastConfig(dfs.InodeID(f)); err != nil || last.GetIndex() != 9 {
			t.Error(last, err)
		}
		if last, err := v.LastConfig(dfs.InodeID(empty)); err != nil || last != nil {
			t.Error(last, err)
		}
		n := 0
		if err := v.Chunks(1, func(id dfs.ChunkID, r *chunks.Record) bool { n++; return id > 1 && r.Index > 0 }); err != nil || n != 3 {
			t.Error(n, err)
		}
	})
}

func TestWalkAndPathOf(t *testing.T) {
	m := newMachine(t)
	m.mkdir("/", "a")
	b := m.mkdir("/a", "b")
	c := m.mkdir("/a/b", "c")
	m.mkfile("/a/b", "f")
	m.mkfile("/a", "z")
	for i := range walkPageSize + 5 {
		m.mkfile("/a/b/c", fmt.Sprintf("%04d", i))
	}
	mode := uint32(0o700)
	m.must(&dfsv1.Command{Header: asRoot(), Op: &dfsv1.Command_SetAttr{SetAttr: &dfsv1.SetAttrRequest{Ref: &dfsv1.Ref{Inode: c}, Mode: &mode}}})
	m.inView(func(v *View) {
		walk := func(caller *dfsv1.Caller, path string) (paths []string) {
			if err := v.Walk(caller, &dfsv1.Ref{Path: []byte(path)}, func(path []byte, id dfs.InodeID, n *namespace.Inode) bool {
				paths = append(paths, string(path))
				if a, err := v.LookupPath(&dfsv1.Caller{}, &dfsv1.Ref{Path: path}); err != nil || a.GetInode() != uint64(id) || a.GetMode() != n.Mode {
					t.Error(string(path), a, err)
				}
				return true
			}); err != nil {
				t.Error(err)
			}
			return paths
		}
		if got := walk(&dfsv1.Caller{}, "/"); len(got) != 6+walkPageSize+5 || !slices.Equal(got[:6], []string{"/", "/a", "/a/b", "/a/b/c", "/a/b/c/0000", "/a/b/c/0001"}) || got[len(got)-1] != "/a/z" {
			t.Error(len(got), got[:6])
		}
		// The user may not enter /a/b/c.
		if got := walk(&dfsv1.Caller{Uid: 5}, "/a/b"); !slices.Equal(got, []string{"/a/b", "/a/b/c", "/a/b/f"}) {
			t.Error(got)
		}
		if got := walk(&dfsv1.Caller{}, "/a/b/f"); !slices.Equal(got, []string{"/a/b/f"}) {
			t.Error(got)
		}
		for id, want := range map[dfs.InodeID]string{dfs.RootInode: "/", dfs.InodeID(b): "/a/b", dfs.InodeID(c): "/a/b/c"} {
			if p, err := v.PathOf(id); err != nil || string(p) != want {
				t.Error(string(p), err)
			}
		}
	})
	m.must(removeCmd("/a", "b", dfsv1.RemoveRequest_TREE))
	m.inView(func(v *View) {
		if _, err := v.PathOf(dfs.InodeID(c)); !errors.Is(err, dfserr.ErrNotExist) {
			t.Error(err)
		}
	})
}

func TestXattrViews(t *testing.T) {
	m := newMachine(t)
	m.mkfile("/", "f")
	ref := &dfsv1.Ref{Path: []byte("f")}
	for _, name := range []string{"user.b", "user.a", "trusted.t"} {
		m.must(&dfsv1.Command{Header: asRoot(), Op: &dfsv1.Command_SetXattr{SetXattr: &dfsv1.SetXattrRequest{Ref: ref, Name: []byte(name), Value: []byte("v-" + name)}}})
	}
	m.inView(func(v *View) {
		names, err := v.ListXattr(&dfsv1.Caller{Uid: 5}, ref)
		if err != nil || fmt.Sprintf("%s", names) != "[user.a user.b]" {
			t.Errorf("%s %v", names, err)
		}
		value, err := v.GetXattr(&dfsv1.Caller{}, ref, []byte("trusted.t"))
		if err != nil || string(value) != "v-trusted.t" {
			t.Errorf("%s %v", value, err)
		}
	})
}

// TestViewAt reads the past, with a cache full of the present.
func TestViewAt(t *testing.T) {
	m := newMachine(t)
	m.mkfile("/", "f")
	at := m.db.Applied()
	m.must(removeCmd("/", "f", dfsv1.RemoveRequest_FILE))
	m.mkfile("/", "g")
	v, err := m.fsm.ViewAt(at)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	p, err := v.ReadDir(&dfsv1.Caller{}, nil, nil, 0, false)
	if err != nil || len(p.Entries) != 1 || string(p.Entries[0].GetName()) != "f" || p.Entries[0].GetAttr().GetNlink() != 1 || v.Index() != at {
		t.Error(p, err)
	}
	if _, err := m.fsm.ViewAt(at + 100); !errors.Is(err, dfserr.ErrUnavailable) {
		t.Error(err)
	}
}

// TestCacheRules checks the three rules in the comment of cache, one by one.
func TestCacheRules(t *testing.T) {
	c := newCache(cacheShards * 1000)
	key := appendInodeKey(nil, 5)
	value := func(mode uint32) *namespace.Inode { return &namespace.Inode{Mode: mode} }
	get := func(at dfs.Index) uint32 {
		v, ok := c.get(key, at)
		if !ok {
			return 0
		}
		if v == nil {
			return 999
		}
		return v.(*namespace.Inode).Mode
	}
	c.fill(key, value(1), 10)
	c.put(string(key), value(2), 20)
	if get(19) != 0 || get(20) != 2 || get(30) != 2 {
		t.Error("an index sees a value that is not its own", get(19), get(20))
	}
	c.fill(key, value(1), 15)
	if get(20) != 2 {
		t.Error("an old reader replaced a newer value")
	}
	c.put(string(key), nil, 25)
	if get(25) != 999 {
		t.Error("a deletion is not kept")
	}
	// Evict the change; a reader from before it must not bring the old value back.
	s := c.shard(key)
	for i := dfs.InodeID(1000); s.find(key) != nil; i++ {
		if k := appendInodeKey(nil, i); c.shard(k) == s {
			c.fill(k, value(3), 26)
		}
	}
	if s.floor != 25 {
		t.Errorf("floor is %d", s.floor)
	}
	c.fill(key, value(2), 24)
	if get(100) != 0 {
		t.Error("a reader from before an evicted change filled")
	}
	c.fill(key, nil, 25)
	if get(25) != 999 {
		t.Error("a reader from after the change could not fill")
	}
	if s.bytes > s.max {
		t.Errorf("%d bytes, the limit is %d", s.bytes, s.max)
	}
}

// FuzzDecode: no stored bytes make the decoder panic.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("i/12345678"), []byte{0x08, 0x01})
	f.Add([]byte("z/counters"), []byte{0x08, 0x01})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		v, err := decode(key, value)
		if err != nil {
			return
		}
		if _, err := encode(v); err != nil {
			t.Errorf("%T was read and cannot be written: %v", v, err)
		}
	})
}
