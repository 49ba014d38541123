package metacache

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dfs/internal/dfs"
)

// bare of attributes: a "+" stands for extended ones.
func bare(attr string) bool { return !strings.Contains(attr, "+") }

func trusted(limit int) *Tree[string] {
	t := NewTree(limit, 2*time.Second, bare)
	t.Answered(time.Now())
	return t
}

func wantAttr(t *testing.T, tree *Tree[string], inode dfs.InodeID, want string) {
	t.Helper()
	if got, ok := tree.Attr(inode); got != want || ok != (want != "") {
		t.Fatalf("attributes of inode %d: %q, %v; want %q", inode, got, ok, want)
	}
}

func wantName(t *testing.T, tree *Tree[string], name Name, want string) {
	t.Helper()
	got, absent, ok := tree.Lookup(name)
	if !ok {
		got = "unknown"
	} else if absent {
		got = "absent"
	}
	if got != want {
		t.Fatalf("%v: %s, want %s", name, got, want)
	}
}

func TestTrust(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree := NewTree(100, 2*time.Second, bare)
		tree.PutAttr(tree.Mark(), 7, "a")
		wantAttr(t, tree, 7, "") // never answered
		tree.Answered(time.Now())
		wantAttr(t, tree, 7, "") // what came before trust began is gone
		tree.PutAttr(tree.Mark(), 7, "a")
		sentAt := time.Now()
		time.Sleep(1500 * time.Millisecond)
		wantAttr(t, tree, 7, "a")
		tree.Answered(sentAt.Add(time.Second))
		time.Sleep(1499 * time.Millisecond)
		wantAttr(t, tree, 7, "a")
		time.Sleep(time.Millisecond)
		wantAttr(t, tree, 7, "") // 2 s after the message was sent, whenever the answer came
		m := tree.Mark()
		tree.Answered(time.Now())
		wantAttr(t, tree, 7, "") // changes may have been missed
		tree.PutAttr(m, 7, "old")
		wantAttr(t, tree, 7, "")
	})
}

func TestDrop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree := trusted(100)
		name := Name{3, "x"}
		before := tree.Mark()
		tree.PutAttr(before, 7, "a")
		tree.PutName(before, name, 7)
		wantName(t, tree, name, "a")
		tree.Drop(7)
		wantName(t, tree, name, "unknown")
		tree.PutAttr(before, 7, "old") // was on its way
		wantAttr(t, tree, 7, "")
		tree.PutAttr(tree.Mark(), 7, "b")
		wantName(t, tree, name, "b")
		tree.Drop(3)
		wantName(t, tree, name, "unknown")
		tree.PutName(before, name, 0)
		wantName(t, tree, name, "unknown")
		tree.PutName(tree.Mark(), name, 0)
		wantName(t, tree, name, "absent")
		tree.Reset()
		tree.Answered(time.Now())
		wantName(t, tree, name, "unknown")
	})
}

func TestOwnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree := trusted(100)
		f, g := Name{3, "f"}, Name{3, "g"}
		tree.PutEmptyDir(tree.Mark(), 3, "dir")
		wantName(t, tree, f, "absent")

		create := tree.Begin([]dfs.InodeID{3}, f)
		wantAttr(t, tree, 3, "")
		wantName(t, tree, f, "unknown")
		wantName(t, tree, g, "absent")
		tree.PutAttr(tree.Mark(), 3, "of which moment?")
		tree.PutAttr(create.Mark(), 7, "new")
		create.End([]dfs.InodeID{7}, nil)
		wantName(t, tree, f, "new")
		wantAttr(t, tree, 3, "")

		refused := tree.Begin([]dfs.InodeID{3}, f)
		refused.Cancel()
		wantName(t, tree, f, "new")

		chmod, attr := tree.Begin([]dfs.InodeID{7}), "chmodded"
		chmod.End(nil, &attr)
		wantName(t, tree, f, "chmodded")

		// Two at a time: which came last is not known.
		one, two := tree.Begin([]dfs.InodeID{7}), tree.Begin([]dfs.InodeID{7})
		two.End(nil, &attr)
		one.End(nil, &attr)
		wantAttr(t, tree, 7, "")
		remove, again := tree.Begin([]dfs.InodeID{3}, g), tree.Begin([]dfs.InodeID{3}, g)
		again.End([]dfs.InodeID{8}, nil)
		remove.End([]dfs.InodeID{0}, nil)
		wantName(t, tree, g, "unknown")

		// A recall in between: others have changed the directory too, before or after.
		tree.PutEmptyDir(tree.Mark(), 4, "dir")
		h := Name{4, "h"}
		made := tree.Begin([]dfs.InodeID{4}, h)
		tree.Drop(4)
		tree.PutAttr(made.Mark(), 4, "old")
		made.End([]dfs.InodeID{9}, nil)
		wantName(t, tree, h, "unknown")
		tree.PutName(made.Mark(), h, 9)
		wantName(t, tree, h, "unknown")

		// A recall of what the answer tells, before the answer.
		made = tree.Begin([]dfs.InodeID{4}, h)
		tree.Drop(20)
		tree.PutEmptyDir(made.Mark(), 20, "no longer empty")
		made.End([]dfs.InodeID{20}, nil)
		wantName(t, tree, Name{20, "x"}, "unknown")
		if len(tree.attrs) != 0 || len(tree.names) != 0 {
			t.Fatalf("left over: %v, %v", tree.attrs, tree.names)
		}
	})
}

// That there are no extended attributes stays known while others change, but not when one is set.
func TestBare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree := trusted(100)
		if tree.Bare(7) {
			t.Fatal("an inode that is not known is bare")
		}
		tree.PutAttr(tree.Mark(), 7, "a")
		tree.Begin([]dfs.InodeID{7}).End(nil, nil)
		wantAttr(t, tree, 7, "")
		if !tree.Bare(7) {
			t.Fatal("not bare after a change of other attributes")
		}
		set := tree.Begin([]dfs.InodeID{7})
		tree.BareNoMore(7)
		tree.PutAttr(tree.Mark(), 7, "a")
		if tree.Bare(7) {
			t.Fatal("bare while an extended attribute is being set")
		}
		attr := "a+"
		set.End(nil, &attr)
		wantAttr(t, tree, 7, "a+")
		tree.PutAttr(tree.Mark(), 7, attr)
		if tree.Bare(7) {
			t.Fatal("bare with an extended attribute")
		}
		tree.PutAttr(tree.Mark(), 8, "a")
		tree.Drop(8)
		if tree.Bare(8) {
			t.Fatal("bare after a recall")
		}
		tree.PutAttr(tree.Mark(), 9, "a")
		time.Sleep(3 * time.Second)
		if tree.Bare(9) {
			t.Fatal("bare after trust has ended")
		}
	})
}

func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree := trusted(10)
		for i := range 100 {
			tree.PutAttr(tree.Mark(), dfs.InodeID(i+1), "a")
			tree.PutName(tree.Mark(), Name{1000, string(rune('a' + i))}, 0)
			if tree.Len() > 10 {
				t.Fatalf("%d entries after %d", tree.Len(), i)
			}
		}
		wantAttr(t, tree, 100, "a")
		wantAttr(t, tree, 1, "")
		// Whatever was changed too long ago counts as changed.
		m := tree.Mark()
		for i := range changedMax + 1 {
			tree.Drop(dfs.InodeID(10_000 + i))
		}
		tree.PutAttr(m, 5, "old")
		wantAttr(t, tree, 5, "")
		if len(tree.changed) > changedMax {
			t.Fatalf("%d changes are remembered", len(tree.changed))
		}
	})
}
