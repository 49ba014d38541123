package namespace

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// create makes something and returns its id.
func (w *world) create(path string, mode uint32) (id dfs.InodeID, err error) {
	dir, name := split(path)
	err = w.run(func(tx Txn, env Env) error {
		c, err := Create(tx, env, CreateArgs{Parent: dir, Name: name, Mode: mode, Exclusive: true, Target: target(mode)})
		id = c.ID
		return err
	})
	return id, err
}

func target(mode uint32) []byte {
	if mode&TypeMask == TypeSymlink {
		return []byte("x")
	}
	return nil
}

// TestDetachedTree: whoever still holds an inode of a removed tree can look around in it, but adds nothing that would vanish.
func TestDetachedTree(t *testing.T) {
	w := newWorld(t)
	top, err := w.create("/top", TypeDir|0o755)
	w.must(err)
	inner, err := w.create("/top/inner", TypeDir|0o755)
	w.must(err)
	_, err = w.create("/top/inner/f", TypeRegular|0o644)
	w.must(err)
	file, err := w.create("/file", TypeRegular|0o644)
	w.must(err)
	w.must(w.run(func(tx Txn, env Env) error { return Remove(tx, env, Ref{}, []byte("top"), Tree) }))
	w.must(w.m.invariants())
	if id, _, err := Resolve(w.m, Root(), Ref{Inode: inner, Path: []byte("f/")}); !errors.Is(err, dfserr.ErrNotDir) {
		t.Error(id, err)
	}
	if id, _, err := Resolve(w.m, Root(), Ref{Inode: inner, Path: []byte("..")}); err != nil || id != top {
		t.Error(id, err)
	}
	for _, dir := range []dfs.InodeID{top, inner} {
		at := Ref{Inode: dir}
		for name, op := range map[string]func(tx Txn, env Env) error{
			"create": func(tx Txn, env Env) error {
				_, err := Create(tx, env, CreateArgs{Parent: at, Name: []byte("new"), Mode: TypeRegular})
				return err
			},
			"link": func(tx Txn, env Env) error {
				_, _, err := Link(tx, env, Ref{Inode: file}, at, []byte("new"))
				return err
			},
			"rename": func(tx Txn, env Env) error {
				_, _, err := Rename(tx, env, RenameArgs{OldName: []byte("file"), NewParent: at, NewName: []byte("new")})
				return err
			},
			"rename over": func(tx Txn, env Env) error {
				_, _, err := Rename(tx, env, RenameArgs{OldName: []byte("file"), NewParent: Ref{Inode: inner}, NewName: []byte("f")})
				return err
			},
			"exchange": func(tx Txn, env Env) error {
				_, _, err := Rename(tx, env, RenameArgs{OldParent: Ref{Inode: inner}, OldName: []byte("f"), NewName: []byte("file"), Exchange: true})
				return err
			},
		} {
			if err := w.run(op); !errors.Is(err, dfserr.ErrNotExist) {
				t.Errorf("%s in %d: %v", name, dir, err)
			}
		}
	}
	// Taking something out is fine: it is saved.
	w.must(w.run(func(tx Txn, env Env) error {
		_, _, err := Rename(tx, env, RenameArgs{OldParent: Ref{Inode: top}, OldName: []byte("inner"), NewName: []byte("saved")})
		return err
	}))
	w.must(w.m.invariants())
	w.must(w.reclaimAll(10))
	if id, _, err := Resolve(w.m, Root(), Ref{Path: []byte("/saved/f")}); err != nil {
		t.Error(id, err)
	}
	// With no detached tree left, and in one that is back, names can be added again.
	if _, err := w.create("/saved/g", TypeRegular); err != nil {
		t.Error(err)
	}
	if _, err := Get(w.m, top); !errors.Is(err, dfserr.ErrStaleInode) {
		t.Error(err)
	}
}

func TestLimits(t *testing.T) {
	w := newWorld(t)
	long := strings.Repeat("n", dfs.NameMax)
	if _, err := w.create("/"+long, TypeRegular); err != nil {
		t.Error(err)
	}
	if _, err := w.create("/"+long+"n", TypeRegular); !errors.Is(err, dfserr.ErrNameTooLong) {
		t.Error(err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "a\x00b"} {
		err := w.run(func(tx Txn, env Env) error {
			_, err := Create(tx, env, CreateArgs{Name: []byte(name), Mode: TypeRegular})
			return err
		})
		if !errors.Is(err, dfserr.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, _, err := Resolve(w.m, Root(), Ref{Path: bytes.Repeat([]byte("/x"), dfs.PathMax)}); !errors.Is(err, dfserr.ErrNameTooLong) {
		t.Error(err)
	}
	for _, c := range []struct {
		args CreateArgs
		want error
	}{
		{CreateArgs{Mode: TypeSymlink, Target: bytes.Repeat([]byte("t"), dfs.SymlinkMax)}, nil},
		{CreateArgs{Mode: TypeSymlink, Target: bytes.Repeat([]byte("t"), dfs.SymlinkMax+1)}, dfserr.ErrNameTooLong},
		{CreateArgs{Mode: TypeSymlink, Target: []byte("a\x00")}, dfserr.ErrInvalid},
		{CreateArgs{Mode: TypeRegular, Target: []byte("a")}, dfserr.ErrInvalid},
		{CreateArgs{Mode: TypeRegular | 1<<20}, dfserr.ErrInvalid},
		{CreateArgs{Mode: 0o030000}, dfserr.ErrInvalid},
		{CreateArgs{Mode: TypeRegular, Data: make([]byte, dfs.InlineMax)}, nil},
		{CreateArgs{Mode: TypeRegular, Data: make([]byte, dfs.InlineMax+1)}, dfserr.ErrFileTooLarge},
		{CreateArgs{Mode: TypeRegular, ChunkSize: dfs.MaxChunkSize}, nil},
		{CreateArgs{Mode: TypeRegular, ChunkSize: 2 * dfs.MaxChunkSize}, dfserr.ErrInvalid},
		{CreateArgs{Mode: TypeRegular, ChunkSize: -1}, dfserr.ErrInvalid},
	} {
		w.env.Index++
		c.args.Name = []byte{byte('A' + w.env.Index%26)}
		err := w.run(func(tx Txn, env Env) error {
			_, err := Create(tx, env, c.args)
			return err
		})
		if !errors.Is(err, c.want) {
			t.Errorf("%o: %v, want %v", c.args.Mode, err, c.want)
		}
	}
}

func TestLinkMax(t *testing.T) {
	w := newWorld(t)
	id, err := w.create("/f", TypeRegular|0o644)
	w.must(err)
	n := w.m.inodes[id]
	n.Nlink = dfs.LinkMax - 1
	w.m.inodes[id] = n
	link := func(name string) error {
		return w.run(func(tx Txn, env Env) error {
			_, _, err := Link(tx, env, Ref{Inode: id}, Ref{}, []byte(name))
			return err
		})
	}
	if err := link("a"); err != nil {
		t.Error(err)
	}
	if err := link("b"); !errors.Is(err, dfserr.ErrTooManyLinks) {
		t.Error(err)
	}
	// An open file without a name gets none.
	w = newWorld(t)
	id, err = w.create("/f", TypeRegular|0o644)
	w.must(err)
	w.must(w.run(func(tx Txn, env Env) error { return Remove(tx, env, Ref{}, []byte("f"), File) }))
	if err := link("a"); !errors.Is(err, dfserr.ErrNotExist) {
		t.Error(err)
	}
}

func TestXattrLimits(t *testing.T) {
	w := newWorld(t)
	set := func(name string, size int) error {
		return w.run(func(tx Txn, env Env) error {
			_, _, err := SetXattr(tx, env, Ref{}, []byte(name), make([]byte, size), XattrFlags{})
			return err
		})
	}
	for _, c := range []struct {
		name string
		size int
		want error
	}{
		{"", 1, dfserr.ErrRange},
		{"user." + strings.Repeat("x", dfs.XattrNameMax-4), 1, dfserr.ErrRange},
		{"user.a\x00", 1, dfserr.ErrInvalid},
		{"user.a", dfs.XattrValueMax + 1, dfserr.ErrTooBig},
		{"user.a", dfs.XattrValueMax, nil},
		{"user.b", dfs.XattrValueMax, nil},
		{"user.c", dfs.XattrValueMax, nil},
		{"user.d", dfs.XattrValueMax, dfserr.ErrNoSpace},
		{"user.c", 0, nil},
		{"user.d", dfs.XattrValueMax, nil},
	} {
		if err := set(c.name, c.size); !errors.Is(err, c.want) {
			t.Errorf("%.20q %d: %v, want %v", c.name, c.size, err, c.want)
		}
	}
	w.must(w.m.invariants())
	err := w.run(func(tx Txn, env Env) error {
		_, _, err := SetXattr(tx, env, Ref{}, []byte("user.z"), nil, XattrFlags{Create: true, Replace: true})
		return err
	})
	if !errors.Is(err, dfserr.ErrInvalid) {
		t.Error(err)
	}
}
