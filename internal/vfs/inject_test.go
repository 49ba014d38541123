package vfs

import (
	"errors"
	"io"
	"testing"
)

func TestInjectKinds(t *testing.T) {
	fsys := NewCrashable()
	in := NewInject(fsys)
	f := create(t, in, "a")
	write(t, f, 0, "12345678")

	in.FailNth(in.Count(), Fault{})
	if _, err := f.WriteAt([]byte("abcd"), 0); !errors.Is(err, ErrIO) {
		t.Errorf("failed write returned %v", err)
	}
	if got := contents(t, fsys, "a"); got != "12345678" {
		t.Errorf("failed write left %q", got)
	}
	in.FailNth(in.Count(), Fault{Short: true})
	if n, err := f.WriteVAt([][]byte{[]byte("a"), []byte("bcd")}, 0); n != 2 || !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("short write returned %d, %v", n, err)
	}
	if got := contents(t, fsys, "a"); got != "ab345678" {
		t.Errorf("short write left %q", got)
	}
	in.FailNth(in.Count(), Fault{Err: NoSpace, Short: true})
	if _, err := f.WriteAt([]byte("xxxx"), 0); !IsNoSpace(err) {
		t.Errorf("full disk returned %v", err)
	}
	in.FailNth(in.Count(), Fault{Apply: true})
	if _, err := f.WriteAt([]byte("applied!"), 0); !errors.Is(err, ErrIO) {
		t.Errorf("applied write returned %v", err)
	}
	if got := contents(t, fsys, "a"); got != "applied!" {
		t.Errorf("applied write left %q", got)
	}
	if got := in.Fired(); got != 4 {
		t.Errorf("%d faults fired, want 4", got)
	}
}

func TestInjectLyingSync(t *testing.T) {
	fsys := NewCrashable()
	in := NewInject(fsys)
	f := create(t, in, "a")
	must(t, in.SyncDir("."))
	write(t, f, 0, "data")
	in.FailNthOf(0, func(op Op) bool { return op.Kind == OpSync }, Fault{Lie: true})
	must(t, f.Sync())
	if in.Fired() != 1 {
		t.Fatal("the lie was not told")
	}
	if got := readOr(fsys.CrashKeepNothing(), "a"); got != "" {
		t.Errorf("the lying sync kept %q", got)
	}
}

func TestInjectDeadDisk(t *testing.T) {
	in := NewInject(NewMem())
	f := create(t, in, "a")
	in.FailNthOf(1, func(op Op) bool { return op.Kind == OpWrite }, Fault{Dead: true})
	write(t, f, 0, "one")
	if _, err := f.WriteAt([]byte("two"), 0); err == nil {
		t.Fatal("second write passed")
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrIO) {
		t.Errorf("a dead disk read: %v", err)
	}
	if _, err := in.Stat("a"); !errors.Is(err, ErrIO) {
		t.Errorf("a dead disk answered stat: %v", err)
	}
	in.SetFaults(nil)
	write(t, f, 0, "revived")
}

func TestInjectLog(t *testing.T) {
	in := NewInject(NewMem())
	in.Record()
	f := create(t, in, "a")
	write(t, f, 7, "data")
	in.FailNth(in.Count(), Fault{})
	if err := f.Sync(); err == nil {
		t.Error("sync passed")
	}
	if _, err := f.Size(); err != nil {
		t.Error(err)
	}
	must(t, f.Truncate(3))
	must(t, in.Rename("a", "b"))
	must(t, in.SyncDir("."))
	want := "create a\nwrite a off=7 len=4\nsync a FAULT\ntruncate a size=3\nrename a b\nsyncdir .\n"
	if got := in.LogText(); got != want {
		t.Errorf("log is\n%swant\n%s", got, want)
	}
}
