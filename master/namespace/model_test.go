package namespace

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// modelNode is an inode of the model: a directory when children is not nil, else a file.
type modelNode struct {
	children map[string]*modelNode
	nlink    int
}

// model is the tree as plainly as it can be written down, for root, without links, modes and times.
type model struct{ root *modelNode }

func (m *model) find(p string) (*modelNode, error) {
	n := m.root
	for _, name := range strings.FieldsFunc(p, func(r rune) bool { return r == '/' }) {
		if n.children == nil {
			return nil, dfserr.ErrNotDir
		}
		next, ok := n.children[name]
		if !ok {
			return nil, dfserr.ErrNotExist
		}
		n = next
	}
	return n, nil
}

// place finds the directory of a path, and what the path names, nil for nothing.
func (m *model) place(p string) (dir, node *modelNode, name string, err error) {
	name = path.Base(p)
	if dir, err = m.find(path.Dir(p)); err != nil {
		return nil, nil, name, err
	}
	if dir.children == nil {
		return nil, nil, name, dfserr.ErrNotDir
	}
	return dir, dir.children[name], name, nil
}

func (m *model) make(p string, dir bool) error {
	parent, node, name, err := m.place(p)
	switch {
	case err != nil:
		return err
	case node != nil:
		return dfserr.ErrExist
	}
	parent.children[name] = &modelNode{nlink: 1}
	if dir {
		parent.children[name].children = map[string]*modelNode{}
	}
	return nil
}

func (m *model) remove(p string, what What) error {
	parent, node, name, err := m.place(p)
	switch {
	case err != nil:
		return err
	case node == nil:
		return dfserr.ErrNotExist
	case node.children != nil && what == File:
		return dfserr.ErrIsDir
	case node.children == nil && what == Directory:
		return dfserr.ErrNotDir
	case len(node.children) > 0 && what != Tree:
		return dfserr.ErrNotEmpty
	}
	node.forget()
	delete(parent.children, name)
	return nil
}

func (n *modelNode) forget() {
	n.nlink--
	for _, c := range n.children {
		c.forget()
	}
}

func (n *modelNode) contains(o *modelNode) bool {
	if n == o {
		return true
	}
	for _, c := range n.children {
		if c.contains(o) {
			return true
		}
	}
	return false
}

func (m *model) link(from, to string) error {
	node, err := m.find(from)
	if err != nil {
		return err
	}
	dir, old, name, err := m.place(to)
	switch {
	case err != nil:
		return err
	case old != nil:
		return dfserr.ErrExist
	case node.children != nil:
		return dfserr.ErrNotPermitted
	}
	node.nlink++
	dir.children[name] = node
	return nil
}

func (m *model) rename(from, to string, noReplace, exchange bool) error {
	oldDir, node, oldName, err := m.place(from)
	if err != nil {
		return err
	}
	newDir, target, newName, err := m.place(to)
	switch {
	case err != nil:
		return err
	case node == nil, exchange && target == nil:
		return dfserr.ErrNotExist
	case noReplace && target != nil:
		return dfserr.ErrExist
	case node.contains(newDir), exchange && target.contains(oldDir):
		return dfserr.ErrInvalid
	case target != nil && target.contains(oldDir):
		return dfserr.ErrNotEmpty
	case node == target:
		return nil
	}
	if exchange {
		oldDir.children[oldName], newDir.children[newName] = target, node
		return nil
	}
	if target != nil {
		switch {
		case node.children != nil && target.children == nil:
			return dfserr.ErrNotDir
		case node.children == nil && target.children != nil:
			return dfserr.ErrIsDir
		case len(target.children) > 0:
			return dfserr.ErrNotEmpty
		}
		target.forget()
	}
	delete(oldDir.children, oldName)
	newDir.children[newName] = node
	return nil
}

// lines describes the model's tree, as modelLines does ours.
func (n *modelNode) lines(p string) []string {
	if n.children == nil {
		return []string{fmt.Sprintf("%s file %d", p, n.nlink)}
	}
	out := []string{p + " directory"}
	for name, c := range n.children {
		out = append(out, c.lines(p+"/"+name)...)
	}
	return out
}

func (m *memTxn) modelLines(id dfs.InodeID, p string) []string {
	n := m.inodes[id]
	if !n.IsDir() {
		return []string{fmt.Sprintf("%s file %d", p, n.Nlink)}
	}
	out := []string{p + " directory"}
	for name, d := range m.dentries[id] {
		out = append(out, m.modelLines(d.Inode, p+"/"+name)...)
	}
	return out
}

// TestModel runs random operations on a tree and on the model and wants the same errors and the same trees.
func TestModel(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	m := &model{root: &modelNode{children: map[string]*modelNode{}, nlink: 1}}
	w := newWorld(t)
	randomPath := func() string {
		p := ""
		for range 1 + r.IntN(4) {
			p += "/" + string(rune('a'+r.IntN(3)))
		}
		return p
	}
	outcomes := map[string]int{}
	for i := range 15_000 {
		a, b := randomPath(), randomPath()
		dirA, nameA := split(a)
		dirB, nameB := split(b)
		flag := r.IntN(4)
		var what string
		var want, got error
		switch k := r.IntN(8); k {
		case 0, 1, 2:
			what, want = "make", m.make(a, k > 0)
			got = w.run(func(tx Txn, env Env) error {
				mode := uint32(TypeDir)
				if k == 0 {
					mode = TypeRegular
				}
				_, err := Create(tx, env, CreateArgs{Parent: dirA, Name: nameA, Mode: mode | 0o700, Exclusive: true})
				return err
			})
		case 3, 4:
			kind := What(flag)
			if kind == Tree && r.IntN(4) > 0 {
				kind = Any
			}
			what, want = fmt.Sprint("remove ", kind), m.remove(a, kind)
			got = w.run(func(tx Txn, env Env) error { return Remove(tx, env, dirA, nameA, kind) })
		case 5:
			what, want = "link", m.link(a, b)
			got = w.run(func(tx Txn, env Env) error {
				_, _, err := Link(tx, env, Ref{Path: []byte(a)}, dirB, nameB)
				return err
			})
		case 6, 7:
			what, want = fmt.Sprint("rename ", flag), m.rename(a, b, flag == 1, flag == 2)
			got = w.run(func(tx Txn, env Env) error {
				_, _, err := Rename(tx, env, RenameArgs{OldParent: dirA, OldName: nameA, NewParent: dirB, NewName: nameB, NoReplace: flag == 1, Exchange: flag == 2})
				return err
			})
		}
		outcomes[dfserr.Reason(got)]++
		if !errors.Is(got, want) || (want == nil) != (got == nil) {
			t.Fatalf("step %d: %s %s %s: got %v, want %v", i, what, a, b, got, want)
		}
		if got != nil {
			continue
		}
		if err := w.m.invariants(); err != nil {
			t.Fatalf("step %d: %s %s %s: %v", i, what, a, b, err)
		}
		// Reclaiming is what lets the link counts of files in removed trees sink.
		if err := w.reclaimAll(3); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		ours, theirs := w.m.modelLines(dfs.RootInode, ""), m.root.lines("")
		slices.Sort(ours)
		slices.Sort(theirs)
		if !slices.Equal(ours, theirs) {
			t.Fatalf("step %d: %s %s %s: ours\n%s\nmodel\n%s", i, what, a, b, strings.Join(ours, "\n"), strings.Join(theirs, "\n"))
		}
	}
	if outcomes[""] < 1000 || len(outcomes) < 8 {
		t.Errorf("too little variety: %v", outcomes)
	}
	t.Log(outcomes)
}
