package testcluster

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dfs/client"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
)

// cached is a cluster with two clients that cache what is in "/d", and a count of the calls for attributes.
type cached struct {
	t     *testing.T
	ctx   context.Context
	cl    *Cluster
	a, b  client.Inodes
	hostA string
	dir   dfs.InodeID
	file  dfs.InodeID
	calls *atomic.Int64 // for attributes
	all   *atomic.Int64 // of the master's unary methods
}

var nobody = client.Caller{}

func withCaches(t *testing.T, f func(w *cached)) {
	calls, all := &atomic.Int64{}, &atomic.Int64{}
	cfg := Config{
		Faults: func(_ context.Context, _, method string) rpc.Fault {
			if method == "/dfs.v1.Master/GetAttr" {
				calls.Add(1)
			}
			if strings.HasPrefix(method, "/dfs.v1.Master/") {
				all.Add(1)
			}
			return rpc.Fault{}
		},
		Client: func(c *client.Config) { c.CacheNames = true; c.OpTimeout = 5 * time.Minute },
	}
	inMemory(t, cfg, func(ctx context.Context, t *testing.T, cl *Cluster) {
		w := &cached{t: t, ctx: ctx, cl: cl, hostA: ClientHost(0), calls: calls, all: all}
		a, err := cl.Client(ctx, "a")
		w.must(err)
		b, err := cl.Client(ctx, "b")
		w.must(err)
		w.a, w.b = a.Inodes(), b.Inodes()
		d, err := w.b.Make(ctx, nobody, dfs.RootInode, []byte("d"), client.NewNode{Mode: 0o040755})
		w.must(err)
		file, err := w.b.Make(ctx, nobody, d.Inode, []byte("f"), client.NewNode{Mode: 0o100644})
		w.must(err)
		w.dir, w.file = d.Inode, file.Inode
		w.warm()
		f(w)
		_ = a.Close() // may have been cut off
		w.must(b.Close())
	})
}

func (w *cached) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// warm makes client a answer from its cache.
func (w *cached) warm() {
	w.t.Helper()
	for range 100 {
		before := w.calls.Load()
		_, err := w.a.GetAttr(w.ctx, w.file)
		w.must(err)
		_, err = w.a.Lookup(w.ctx, nobody, w.dir, []byte("f"))
		w.must(err)
		if _, err := w.a.Lookup(w.ctx, nobody, w.dir, []byte("none")); !errors.Is(err, dfserr.ErrNotExist) {
			w.t.Fatal(err)
		}
		if w.calls.Load() == before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatal("nothing is ever answered from the cache")
}

// chmod has client b change the file, and returns how long that took.
func (w *cached) chmod(mode uint32) time.Duration {
	w.t.Helper()
	begun := time.Now()
	_, err := w.b.SetAttr(w.ctx, nobody, w.file, client.AttrChange{Mode: &mode})
	w.must(err)
	return time.Since(begun)
}

func (w *cached) wantMode(mode uint32) {
	w.t.Helper()
	a, err := w.a.GetAttr(w.ctx, w.file)
	w.must(err)
	if got := client.StatMode(a.Mode) & 0o7777; got != mode {
		w.t.Fatalf("mode %o, want %o", got, mode)
	}
}

// Every kind of change is seen in the other client's cache the moment it has returned.
func TestCacheSeesChanges(t *testing.T) {
	withCaches(t, func(w *cached) {
		other := []byte("other")
		for name, change := range map[string]func() error{
			"chmod": func() error { w.chmod(0o600); return nil },
			"truncate": func() error {
				_, err := w.b.Truncate(w.ctx, nobody, w.file, 100, false)
				return err
			},
			"xattr": func() error { return w.b.SetXattr(w.ctx, nobody, w.file, "user.a", []byte("v"), client.XattrSet) },
			"link": func() error {
				_, err := w.b.Link(w.ctx, nobody, w.file, w.dir, other)
				return err
			},
			"write": func() error {
				f, _, err := w.b.OpenFile(w.ctx, nobody, w.file, true, true)
				if err != nil {
					return err
				}
				if _, err := f.WriteAt([]byte("x"), 200); err != nil {
					return err
				}
				return f.Close()
			},
			"write to chunks": func() error {
				f, _, err := w.b.OpenFile(w.ctx, nobody, w.file, true, true)
				if err != nil {
					return err
				}
				if _, err := f.WriteAt([]byte("x"), 3*dfs.MiB); err != nil {
					return err
				}
				return f.Close()
			},
		} {
			w.warm()
			before, err := w.a.GetAttr(w.ctx, w.file)
			w.must(err)
			w.must(change())
			after, err := w.a.GetAttr(w.ctx, w.file)
			w.must(err)
			truth, err := w.b.GetAttr(w.ctx, w.file)
			w.must(err)
			if after == before || after != truth {
				t.Errorf("%s: was %+v, is %+v, seen elsewhere as %+v", name, before, after, truth)
			}
		}
		lookup := func(name string) error {
			_, err := w.a.Lookup(w.ctx, nobody, w.dir, []byte(name))
			return err
		}
		w.warm()
		w.must(w.b.Rename(w.ctx, nobody, w.dir, []byte("f"), w.dir, []byte("none")))
		w.must(lookup("none"))
		if err := lookup("f"); !errors.Is(err, dfserr.ErrNotExist) {
			t.Errorf("the old name after a rename: %v", err)
		}
		w.must(w.b.Remove(w.ctx, nobody, w.dir, []byte("none"), false))
		if err := lookup("none"); !errors.Is(err, dfserr.ErrNotExist) {
			t.Errorf("a removed name: %v", err)
		}
	})
}

// A client's own changes are seen at once, too, and cost no call for what the change itself tells.
func TestCacheOwnChanges(t *testing.T) {
	withCaches(t, func(w *cached) {
		d, err := w.a.Make(w.ctx, nobody, w.dir, []byte("sub"), client.NewNode{Mode: 0o040755})
		w.must(err)
		before := w.calls.Load()
		names := []string{"x", "y", "z"}
		for _, name := range names {
			if _, err := w.a.Lookup(w.ctx, nobody, d.Inode, []byte(name)); !errors.Is(err, dfserr.ErrNotExist) {
				t.Fatalf("%s in a new directory: %v", name, err)
			}
			f, a, err := w.a.CreateFile(w.ctx, nobody, d.Inode, []byte(name), 0o644, true, false)
			w.must(err)
			w.must(f.Close())
			got, err := w.a.Lookup(w.ctx, nobody, d.Inode, []byte(name))
			w.must(err)
			if got != a {
				t.Fatalf("%s: %+v, made as %+v", name, got, a)
			}
			w.must(w.a.Rename(w.ctx, nobody, d.Inode, []byte(name), d.Inode, []byte(name+"2")))
			if _, err := w.a.Lookup(w.ctx, nobody, d.Inode, []byte(name)); !errors.Is(err, dfserr.ErrNotExist) {
				t.Fatalf("%s after its rename: %v", name, err)
			}
			w.must(w.a.Remove(w.ctx, nobody, d.Inode, []byte(name+"2"), false))
			if _, err := w.a.Lookup(w.ctx, nobody, d.Inode, []byte(name+"2")); !errors.Is(err, dfserr.ErrNotExist) {
				t.Fatalf("%s2 after its removal: %v", name, err)
			}
		}
		if n := w.calls.Load() - before; n != 0 {
			t.Errorf("%d calls for attributes", n)
		}
	})
}

// A small file that is made, written and closed, with all that the kernel asks meanwhile, costs two calls to the master. That it was closed is told on the stream.
func TestSmallFileCalls(t *testing.T) {
	withCaches(t, func(w *cached) {
		d, err := w.a.Make(w.ctx, nobody, w.dir, []byte("small"), client.NewNode{Mode: 0o040755})
		w.must(err)
		_, err = w.a.GetAttr(w.ctx, d.Inode)
		w.must(err)
		const files = 10
		var last dfs.InodeID
		before := w.all.Load()
		for i := range files {
			name := []byte{byte('a' + i)}
			if _, err := w.a.Lookup(w.ctx, nobody, d.Inode, name); !errors.Is(err, dfserr.ErrNotExist) {
				t.Fatal(err)
			}
			f, a, err := w.a.CreateFile(w.ctx, nobody, d.Inode, name, 0o644, false, false)
			w.must(err)
			if _, _, err := w.a.GetAttrShared(w.ctx, a.Inode); err != nil {
				t.Fatal(err)
			}
			if _, err := w.a.GetXattr(w.ctx, nobody, a.Inode, "security.capability"); !errors.Is(err, dfserr.ErrNoAttr) {
				t.Fatal(err)
			}
			_, err = f.WriteAt(make([]byte, 4096), 0)
			w.must(err)
			w.must(f.Record(w.ctx, time.Now()))
			w.must(f.Close())
			after, err := w.a.GetAttr(w.ctx, a.Inode)
			w.must(err)
			if after.Size != 4096 {
				t.Fatalf("length %d", after.Size)
			}
			last = a.Inode
		}
		time.Sleep(10 * time.Second)
		if n := w.all.Load() - before; n > 2*files {
			t.Errorf("%d calls for %d files", n, files)
		}
		_, shared, err := w.b.GetAttrShared(w.ctx, last)
		w.must(err)
		if shared {
			t.Error("the file still counts as open")
		}
	})
}

// Closes that were told on a stream that broke are told again, and count once.
func TestClosesToldAgain(t *testing.T) {
	withCaches(t, func(w *cached) {
		open := func() *client.File {
			f, _, err := w.a.OpenFile(w.ctx, nobody, w.file, true, true)
			w.must(err)
			return f
		}
		shared := func() bool {
			_, shared, err := w.b.GetAttrShared(w.ctx, w.file)
			w.must(err)
			return shared
		}
		kept := open()
		for round := range 3 {
			f := open()
			w.cl.Net.CutOneWay(MasterHost, w.hostA) // the close arrives, its answer does not
			w.must(f.Close())
			time.Sleep(20 * time.Second)
			if round == 1 {
				w.must(w.cl.KillMaster(w.ctx))
				w.must(w.cl.StartMaster(w.ctx))
			}
			w.cl.Net.Heal(MasterHost, w.hostA)
			time.Sleep(10 * time.Second)
			if !shared() {
				t.Fatalf("round %d: the handle that is open does not count", round)
			}
		}
		w.must(kept.Close())
		time.Sleep(10 * time.Second)
		if shared() {
			t.Error("the file still counts as open")
		}
	})
}

// A client that cannot be reached delays a change until its cache has lapsed, by 3 s at most, and does not answer from it after that.
func TestCacheCutOff(t *testing.T) {
	for name, cut := range map[string]func(w *cached) (heal func()){
		"cut": func(w *cached) func() {
			w.cl.Net.Cut(MasterHost, w.hostA)
			return func() { w.cl.Net.Heal(MasterHost, w.hostA) }
		},
		"paused": func(w *cached) func() { w.cl.Net.Pause(w.hostA); return func() { w.cl.Net.Resume(w.hostA) } },
		"deaf": func(w *cached) func() {
			w.cl.Net.CutOneWay(MasterHost, w.hostA)
			return func() { w.cl.Net.Heal(MasterHost, w.hostA) }
		},
		"mute": func(w *cached) func() {
			w.cl.Net.CutOneWay(w.hostA, MasterHost)
			return func() { w.cl.Net.Heal(MasterHost, w.hostA) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			withCaches(t, func(w *cached) {
				heal := cut(w)
				w.wantMode(0o644) // still trusted
				took := make(chan time.Duration, 1)
				go func() { took <- w.chmod(0o600) }()
				read := make(chan struct{})
				time.Sleep(dfs.CacheTrust)
				go func() { defer close(read); w.wantMode(0o600) }() // begins when the cache is no longer trusted
				if d := <-took; d < time.Second || d > 3*time.Second+100*time.Millisecond {
					t.Errorf("the change took %v", d)
				}
				if d := w.chmod(0o601); d > 100*time.Millisecond {
					t.Errorf("the next change took %v", d)
				}
				w.chmod(0o600)
				select {
				case <-read:
					t.Error("a client without a master has answered")
				default:
				}
				heal()
				<-read
				w.warm()
				if d := w.chmod(0o602); d > 100*time.Millisecond {
					t.Errorf("a change after the client was back took %v", d)
				}
				w.wantMode(0o602)
			})
		})
	}
}

// A master that comes back does not know what was cached: it answers nothing before that has lapsed, unless all who cached have come.
func TestCacheMasterRestart(t *testing.T) {
	withCaches(t, func(w *cached) {
		w.must(w.cl.KillMaster(w.ctx))
		w.must(w.cl.StartMaster(w.ctx))
		if d := w.chmod(0o601); d > dfs.CacheWait {
			t.Errorf("with every client there the first change took %v", d)
		}
		w.wantMode(0o601)
		w.warm()
		w.cl.Net.Cut(MasterHost, w.hostA)
		w.must(w.cl.KillMaster(w.ctx))
		w.must(w.cl.StartMaster(w.ctx))
		begun := time.Now()
		w.wantMode(0o601)
		w.chmod(0o602)
		if d := time.Since(begun); d < 2*time.Second || d > dfs.CacheWait+time.Second {
			t.Errorf("with a client away the first change took %v", d)
		}
		w.cl.Net.Heal(MasterHost, w.hostA)
		w.wantMode(0o602)
	})
}

// When the outcome of a client's own change is not known, it forgets what it has cached: the change may come at any time.
func TestCacheOwnChangeInDoubt(t *testing.T) {
	withCaches(t, func(w *cached) {
		w.cl.Net.CutOneWay(MasterHost, w.hostA) // the request arrives, its answer does not
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		mode := uint32(0o611)
		if _, err := w.a.SetAttr(ctx, nobody, w.file, client.AttrChange{Mode: &mode}); err == nil {
			t.Fatal("the change has succeeded without an answer")
		}
		w.cl.Net.Heal(MasterHost, w.hostA)
		w.wantMode(0o611)
		w.warm()
		w.wantMode(0o611)
	})
}
