package namespace

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

var rewrite = flag.Bool("rewrite", false, "write the transcripts in testdata anew")

// TestScripts runs the transcripts in testdata: lines that start with "> " are operations, what follows each is its outcome. Comments start with '#'. Run
// with -rewrite to record what happens now.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(err, files)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runScript(t, string(want))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			wantLines, gotLines := strings.Split(string(want), "\n"), strings.Split(got, "\n")
			for i := range max(len(wantLines), len(gotLines)) {
				if i >= len(wantLines) || i >= len(gotLines) || wantLines[i] != gotLines[i] {
					t.Fatalf("%s:%d: differs; got from here:\n%s", file, i+1, strings.Join(gotLines[min(i, len(gotLines)):], "\n"))
				}
			}
		})
	}
}

// runScript executes a transcript and returns it with the outcomes that happened.
func runScript(t *testing.T, text string) string {
	w := newWorld(t)
	var out strings.Builder
	for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
			out.WriteString(line + "\n")
		case strings.HasPrefix(line, "> "):
			out.WriteString(line + "\n")
			out.WriteString(w.command(strings.Fields(line[2:])))
			if err := w.m.invariants(); err != nil {
				t.Fatalf("after %q: %v", line, err)
			}
		}
	}
	return out.String()
}

// outcome prints an error by its wire reason, which does not change with the wording.
func outcome(err error, text string) string {
	if err != nil {
		return "  " + dfserr.Reason(err) + "\n"
	}
	if text == "" {
		return "  ok\n"
	}
	return text
}

func number(s string, base int) uint32 {
	n, err := strconv.ParseUint(s, base, 32)
	if err != nil {
		panic(err)
	}
	return uint32(n)
}

// describe prints an inode on one line.
func (w *world) describe(id dfs.InodeID) string {
	n := w.m.inodes[id]
	s := fmt.Sprintf("  inode %d mode %o owner %d:%d nlink %d length %d", id, n.Mode, n.UID, n.GID, n.Nlink, n.Length)
	if n.IsDir() {
		s += fmt.Sprintf(" entries %d parent %d", n.Entries, n.Parent)
	}
	if n.IsRegular() {
		s += fmt.Sprintf(" replication %d chunk size %d", n.Replication, n.ChunkSize())
	}
	if n.Target != nil {
		s += fmt.Sprintf(" target %s", n.Target)
	}
	return s + fmt.Sprintf(" atime %d mtime %d ctime %d version %d\n", n.Atime, n.Mtime, n.Ctime, n.Version)
}

// command runs one line of a script.
func (w *world) command(f []string) string {
	text := ""
	err := w.run(func(tx Txn, env Env) error {
		var err error
		text, err = w.operation(tx, env, f)
		return err
	})
	if err == nil && text == "stat" {
		id, _, err := Resolve(w.m, w.env.Caller, Ref{Path: []byte(f[1]), NoFollow: true})
		return outcome(err, w.describe(id))
	}
	return outcome(err, text)
}

func (w *world) operation(tx Txn, env Env, f []string) (string, error) {
	arg := func(i int) string {
		if i < len(f) {
			return f[i]
		}
		return ""
	}
	path := func(i int) Ref { return Ref{Path: []byte(arg(i))} }
	dir, name := split(arg(1))
	make := func(a CreateArgs) (string, error) {
		a.Parent, a.Name = dir, name
		for _, option := range f[2:] {
			key, value, _ := strings.Cut(option, "=")
			switch key {
			case "excl":
				a.Exclusive = true
			case "trunc":
				a.Truncate = true
			case "parents":
				a.MakeParents = true
			case "write":
				a.Writing = true
			case "data":
				a.Data = []byte(value)
			case "to":
				a.Target = []byte(value)
			case "mode":
				a.Mode = a.Mode&TypeMask | number(value, 8)
			case "replication":
				a.Replication, a.ReplicationSet = number(value, 10), true
			case "chunk":
				a.ChunkSize = int64(number(value, 10))
			default:
				panic(option)
			}
		}
		c, err := Create(tx, env, a)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("  inode %d created %v cut %v\n", c.ID, c.Created, c.Cut), nil
	}
	switch f[0] {
	case "as":
		ids := strings.Split(arg(1), ":")
		w.env.Caller = Caller{UID: number(ids[0], 10), GID: number(ids[1], 10)}
		for _, g := range f[2:] {
			w.env.Caller.Groups = append(w.env.Caller.Groups, number(g, 10))
		}
		return "", nil
	case "mkdir":
		return make(CreateArgs{Mode: TypeDir | 0o755, Exclusive: true})
	case "mkdirs":
		return make(CreateArgs{Mode: TypeDir | 0o755, MakeParents: true})
	case "create":
		return make(CreateArgs{Mode: TypeRegular | 0o644})
	case "symlink":
		return make(CreateArgs{Mode: TypeSymlink, Exclusive: true})
	case "fifo":
		return make(CreateArgs{Mode: TypeFifo | 0o644})
	case "socket":
		return make(CreateArgs{Mode: TypeSocket | 0o644})
	case "device":
		return make(CreateArgs{Mode: TypeBlock | 0o644, Rdev: 0x801})
	case "unlink":
		return "", Remove(tx, env, dir, name, File)
	case "rmdir":
		return "", Remove(tx, env, dir, name, Directory)
	case "remove":
		return "", Remove(tx, env, dir, name, Any)
	case "rmtree":
		return "", Remove(tx, env, dir, name, Tree)
	case "link":
		to, newName := split(arg(2))
		target := path(1)
		target.NoFollow = arg(3) != "follow"
		_, _, err := Link(tx, env, target, to, newName)
		return "", err
	case "rename":
		to, newName := split(arg(2))
		_, _, err := Rename(tx, env, RenameArgs{
			OldParent: dir, OldName: name, NewParent: to, NewName: newName, NoReplace: arg(3) == "noreplace", Exchange: arg(3) == "exchange",
		})
		return "", err
	case "chmod", "chown", "touch", "replicate", "times":
		var a AttrChange
		ref := path(1)
		switch f[0] {
		case "chmod":
			mode := number(arg(2), 8)
			a.Mode = &mode
		case "chown":
			ref.NoFollow = true
			ids := strings.Split(arg(2), ":")
			if ids[0] != "" {
				uid := number(ids[0], 10)
				a.UID = &uid
			}
			if ids[1] != "" {
				gid := number(ids[1], 10)
				a.GID = &gid
			}
		case "touch":
			a.AtimeNow, a.MtimeNow = true, true
		case "times":
			atime, mtime := int64(number(arg(2), 10)), int64(number(arg(3), 10))
			a.Atime, a.Mtime = &atime, &mtime
		case "replicate":
			n := number(arg(2), 10)
			a.Replication = &n
		}
		_, _, err := SetAttr(tx, env, ref, a)
		return "", err
	case "truncate":
		length := int64(number(arg(2), 10))
		id, old, n, err := ForTruncate(tx, env, path(1), 0, length)
		if err != nil {
			return "", err
		}
		n.Length = length
		return "", SetFile(tx, env, id, old, n)
	case "setxattr":
		_, _, err := SetXattr(tx, env, path(1), []byte(arg(2)), []byte(arg(3)), XattrFlags{Create: arg(4) == "create", Replace: arg(4) == "replace"})
		return "", err
	case "getxattr":
		v, err := GetXattr(tx, env.Caller, path(1), []byte(arg(2)))
		return fmt.Sprintf("  %q\n", v), err
	case "rmxattr":
		_, _, err := RemoveXattr(tx, env, path(1), []byte(arg(2)))
		return "", err
	case "lsxattr":
		names, err := ListXattr(tx, env.Caller, path(1))
		return fmt.Sprintf("  %q\n", names), err
	case "stat":
		return "stat", nil
	case "resolve":
		id, _, err := Resolve(tx, env.Caller, path(1))
		return fmt.Sprintf("  inode %d\n", id), err
	case "tree":
		return "  " + strings.Join(w.m.tree(dfs.RootInode, "/"), "\n  ") + "\n", nil
	case "orphans":
		text := ""
		for _, id := range slices.Sorted(maps.Keys(w.m.orphans)) {
			text += fmt.Sprintf("  inode %d subtree %v\n", id, w.m.orphans[id].Subtree)
		}
		return text + fmt.Sprintf("  %+v\n", w.m.totals), nil
	case "reclaim":
		id := dfs.InodeID(number(arg(1), 10))
		n, empty, err := ReclaimEntries(tx, env, id, int(number(arg(2), 10)), 1<<20)
		if err == nil && empty {
			_, err = Drop(tx, id)
		}
		return fmt.Sprintf("  %d names, gone: %v\n", n, empty), err
	}
	panic("unknown operation " + f[0])
}
