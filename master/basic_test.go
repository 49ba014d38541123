package master

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// inBubble runs a test with a fresh world under virtual time.
func inBubble(t *testing.T, f func(t *testing.T, w *world), change ...func(*Config)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, change...)
		defer w.close()
		f(t, w)
	})
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: got %v, want %v", what, err, want)
	}
}

func TestNamespaceCalls(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		dir := w.mkdir("d")
		if !dir.GetCreated() || dir.GetIndex() == 0 {
			t.Fatalf("mkdir: %v", dir)
		}
		f := w.create("f", func(r *dfsv1.CreateRequest) { r.Parent = path("/d"); r.Data = []byte("hello") })
		if a := w.mustStat("/d/f"); a.GetLength() != 5 || !a.GetInline() || a.GetInode() != f.GetAttr().GetInode() {
			t.Fatalf("stat: %v", a)
		}
		_, err := w.stat("/d/g")
		wantErr(t, "stat of a missing name", err, dfserr.ErrNotExist)

		link, err := w.client.Link(w.ctx(), &dfsv1.LinkRequest{Header: w.header(), Target: path("/d/f"), Parent: path("/"), Name: []byte("l")})
		if err != nil || link.GetAttr().GetNlink() != 2 {
			t.Fatalf("link: %v %v", link, err)
		}
		moved, err := w.client.Rename(w.ctx(), &dfsv1.RenameRequest{Header: w.header(), OldParent: path("/d"), OldName: []byte("f"), NewParent: path("/"), NewName: []byte("g")})
		if err != nil || moved.GetAttr().GetInode() != f.GetAttr().GetInode() {
			t.Fatalf("rename: %v %v", moved, err)
		}
		mode := uint32(0o600)
		set, err := w.client.SetAttr(w.ctx(), &dfsv1.SetAttrRequest{Header: w.header(), Ref: path("/g"), Mode: &mode})
		if err != nil || set.GetAttr().GetMode() != 0o100600 {
			t.Fatalf("setattr: %v %v", set, err)
		}
		if _, err := w.client.SetXattr(w.ctx(), &dfsv1.SetXattrRequest{Header: w.header(), Ref: path("/g"), Name: []byte("user.a"), Value: []byte("v")}); err != nil {
			t.Fatal(err)
		}
		x, err := w.client.GetXattr(w.ctx(), &dfsv1.GetXattrRequest{Caller: &dfsv1.Caller{}, Ref: path("/g"), Name: []byte("user.a")})
		if err != nil || string(x.GetValue()) != "v" {
			t.Fatalf("getxattr: %v %v", x, err)
		}
		names, err := w.client.ListXattr(w.ctx(), &dfsv1.ListXattrRequest{Caller: &dfsv1.Caller{}, Ref: path("/g")})
		if err != nil || len(names.GetNames()) != 1 {
			t.Fatalf("listxattr: %v %v", names, err)
		}
		if _, err := w.client.RemoveXattr(w.ctx(), &dfsv1.RemoveXattrRequest{Header: w.header(), Ref: path("/g"), Name: []byte("user.a")}); err != nil {
			t.Fatal(err)
		}
		_, err = w.client.GetXattr(w.ctx(), &dfsv1.GetXattrRequest{Caller: &dfsv1.Caller{}, Ref: path("/g"), Name: []byte("user.a")})
		wantErr(t, "removed attribute", err, dfserr.ErrNoAttr)

		list, err := w.client.ReadDir(w.ctx(), &dfsv1.ReadDirRequest{Caller: &dfsv1.Caller{}, Ref: path("/"), Limit: 2})
		if err != nil || len(list.GetEntries()) != 2 || list.GetEnd() {
			t.Fatalf("first page: %v %v", list, err)
		}
		rest, err := w.client.ReadDir(w.ctx(), &dfsv1.ReadDirRequest{Caller: &dfsv1.Caller{}, Ref: path("/"), After: list.GetEntries()[1].GetName()})
		if err != nil || len(rest.GetEntries()) != 1 || !rest.GetEnd() || string(rest.GetEntries()[0].GetName()) != "l" {
			t.Fatalf("second page: %v %v", rest, err)
		}
		o, err := w.client.Open(w.ctx(), &dfsv1.OpenRequest{Caller: &dfsv1.Caller{}, Ref: path("/g"), Session: w.session, Read: true})
		if err != nil || string(o.GetInlineData()) != "hello" {
			t.Fatalf("open: %v %v", o, err)
		}
		fs, err := w.client.StatFs(w.ctx(), &dfsv1.StatFsRequest{})
		if err != nil || fs.GetInodes() != 3 || fs.GetDataBytes() != 5 {
			t.Fatalf("statfs: %v %v", fs, err)
		}
	})
}

func TestInlineWritesAndMove(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addServers(3)
		f := w.create("f").GetAttr().GetInode()
		r, err := w.client.WriteInline(w.ctx(), &dfsv1.WriteInlineRequest{Header: w.header(), Inode: f, Data: []byte("abc"), Append: true})
		if err != nil || r.GetAttr().GetLength() != 3 {
			t.Fatalf("write: %v %v", r, err)
		}
		c := w.addChunk(f, 0)
		if string(c.GetChunk().GetSeed()) != "abc" || len(c.GetChunk().GetReplicas()) != 3 || !c.GetAttr().GetTailOpen() {
			t.Fatalf("add chunk: %v", c)
		}
		for _, s := range c.GetChunk().GetReplicas() {
			if s.GetAddr() == "" || !s.GetAlive() {
				t.Fatalf("replica without an address: %v", s)
			}
		}
		_, err = w.client.WriteInline(w.ctx(), &dfsv1.WriteInlineRequest{Header: w.header(), Inode: f, Data: []byte("x"), Append: true})
		wantErr(t, "inline write after the move", err, dfserr.ErrInlineMoved)
		again := w.addChunk(f, 0)
		if again.GetChunk().GetChunk() != c.GetChunk().GetChunk() {
			t.Fatalf("second add made another chunk: %v", again)
		}
		_, err = w.client.AddChunk(w.ctx(), &dfsv1.AddChunkRequest{Header: w.header(), Inode: f, Index: 1 << 50})
		wantErr(t, "chunk beyond the largest file", err, dfserr.ErrFileTooLarge)
		_, err = w.client.AddChunk(w.ctx(), &dfsv1.AddChunkRequest{Header: w.header(), Inode: f, Index: -1})
		wantErr(t, "negative chunk", err, dfserr.ErrFileTooLarge)
	})
}

func TestLimits(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		long := bytes.Repeat([]byte("n"), dfs.NameMax+1)
		create := func(change func(*dfsv1.CreateRequest)) error {
			r := &dfsv1.CreateRequest{Header: w.header(), Parent: path("/"), Name: []byte("f"), Mode: 0o100644}
			change(r)
			_, err := w.client.Create(w.ctx(), r)
			return err
		}
		for _, c := range []struct {
			name   string
			change func(*dfsv1.CreateRequest)
			want   error
		}{
			{"long name", func(r *dfsv1.CreateRequest) { r.Name = long }, dfserr.ErrNameTooLong},
			{"no name", func(r *dfsv1.CreateRequest) { r.Name = nil }, dfserr.ErrInvalid},
			{"dot dot", func(r *dfsv1.CreateRequest) { r.Name = []byte("..") }, dfserr.ErrInvalid},
			{"NUL", func(r *dfsv1.CreateRequest) { r.Name = []byte("a\x00b") }, dfserr.ErrInvalid},
			{"slash", func(r *dfsv1.CreateRequest) { r.Name = []byte("a/b") }, dfserr.ErrInvalid},
			{"long path", func(r *dfsv1.CreateRequest) { r.Parent = path("/" + strings.Repeat("a/", 3000)) }, dfserr.ErrNameTooLong},
			{"much data", func(r *dfsv1.CreateRequest) { r.Data = make([]byte, dfs.InlineMax+1) }, dfserr.ErrFileTooLarge},
			{"chunk size", func(r *dfsv1.CreateRequest) { r.ChunkSize = 3 << 20 }, dfserr.ErrInvalid},
			{"replication", func(r *dfsv1.CreateRequest) { r.Replication = 17 }, dfserr.ErrInvalid},
			{"link target", func(r *dfsv1.CreateRequest) { r.Mode, r.SymlinkTarget = 0o120777, make([]byte, 5000) }, dfserr.ErrNameTooLong},
			{"no session", func(r *dfsv1.CreateRequest) { r.Header.Session = 0 }, dfserr.ErrInvalid},
			{"unknown session", func(r *dfsv1.CreateRequest) { r.Header.Session = 99999 }, dfserr.ErrUnknownSession},
			{"many groups", func(r *dfsv1.CreateRequest) { r.Header.Caller.Groups = make([]uint32, 5000) }, dfserr.ErrTooBig},
		} {
			wantErr(t, c.name, create(c.change), c.want)
		}
		f := w.create("f").GetAttr().GetInode()
		for _, length := range []int64{-1, dfs.MaxFileLength + 1} {
			if _, err := w.client.Truncate(w.ctx(), &dfsv1.TruncateRequest{Header: w.header(), Ref: inode(f), Length: length}); err == nil {
				t.Fatalf("truncate to %d was accepted", length)
			}
		}
		_, err := w.client.SetXattr(w.ctx(), &dfsv1.SetXattrRequest{Header: w.header(), Ref: path("/f"), Name: []byte("user.a"), Value: make([]byte, dfs.XattrValueMax+1)})
		wantErr(t, "large attribute", err, dfserr.ErrTooBig)
		_, err = w.client.WriteInline(w.ctx(), &dfsv1.WriteInlineRequest{Header: w.header(), Inode: f, Data: []byte("x"), Offset: -1})
		wantErr(t, "negative offset", err, dfserr.ErrInvalid)
		_, err = w.client.GetChunks(w.ctx(), &dfsv1.GetChunksRequest{Inode: f, First: -1})
		wantErr(t, "negative chunk", err, dfserr.ErrInvalid)
		_, err = w.client.GetChunks(w.ctx(), &dfsv1.GetChunksRequest{Inode: 4711})
		wantErr(t, "unknown inode", err, dfserr.ErrStaleInode)
		_, err = w.client.GetAttr(w.ctx(), &dfsv1.GetAttrRequest{Caller: &dfsv1.Caller{}, Ref: path("/"), MinIndex: 1 << 40})
		wantErr(t, "index from the future", err, dfserr.ErrUnavailable)
		_, err = w.client.Open(w.ctx(), &dfsv1.OpenRequest{Caller: &dfsv1.Caller{}, Ref: path("/f"), Session: 12345, Read: true})
		wantErr(t, "open by an unknown session", err, dfserr.ErrUnknownSession)
	})
}

func TestNoServers(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		f := w.create("f", func(r *dfsv1.CreateRequest) { r.WantChunk = true })
		if len(f.GetChunks()) != 0 || !f.GetCreated() {
			t.Fatalf("create without servers: %v", f)
		}
		_, err := w.client.AddChunk(w.ctx(), &dfsv1.AddChunkRequest{Header: w.header(), Inode: f.GetAttr().GetInode()})
		wantErr(t, "add chunk without servers", err, dfserr.ErrNoReplica)
		w.addServers(1)
		_, err = w.client.AddChunk(w.ctx(), &dfsv1.AddChunkRequest{Header: w.header(), Inode: f.GetAttr().GetInode()})
		wantErr(t, "add chunk with one server", err, dfserr.ErrTooFewReplicas)
		if !strings.Contains(err.Error(), "1 chunkservers are alive") {
			t.Fatalf("error names no counts: %v", err)
		}
		s := w.addServers(1)
		for _, x := range s {
			x.mu.Lock()
			x.diskFree = 0
			x.mu.Unlock()
		}
		time.Sleep(2 * time.Second)
		_, err = w.client.AddChunk(w.ctx(), &dfsv1.AddChunkRequest{Header: w.header(), Inode: f.GetAttr().GetInode()})
		wantErr(t, "add chunk on full servers", err, dfserr.ErrNoSpace)
		if r := w.report(); len(r.GetServers()) != 2 || !r.GetServers()[0].GetReadOnly() {
			t.Fatalf("report: %v", r)
		}
	})
}

// TestDedup sends requests twice: at once, after a clean restart, after a kill.
func TestDedup(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		req := &dfsv1.CreateRequest{Header: w.header(), Parent: path("/"), Name: []byte("f"), Mode: 0o100644, Exclusive: true}
		first, err := w.client.Create(w.ctx(), req)
		if err != nil {
			t.Fatal(err)
		}
		for i, between := range []func(){func() {}, func() { w.restart(false) }, func() { w.restart(true) }} {
			between()
			again, err := w.client.Create(w.ctx(), req)
			if err != nil || again.GetAttr().GetInode() != first.GetAttr().GetInode() || again.GetIndex() != first.GetIndex() || !again.GetCreated() {
				t.Fatalf("repeat %d: %v %v", i, again, err)
			}
		}
		rm := &dfsv1.RemoveRequest{Header: w.header(), Parent: path("/"), Name: []byte("f")}
		for range 2 {
			if _, err := w.client.Remove(w.ctx(), rm); err != nil {
				t.Fatal(err)
			}
		}
		wantErr(t, "remove under a new number", w.remove("f"), dfserr.ErrNotExist)
		nonce := &dfsv1.OpenSessionRequest{Client: "x", Nonce: 77}
		a, err := w.client.OpenSession(w.ctx(), nonce)
		if err != nil {
			t.Fatal(err)
		}
		b, err := w.client.OpenSession(w.ctx(), nonce)
		if err != nil || a.GetSession() != b.GetSession() {
			t.Fatalf("repeated open: %v %v %v", a, b, err)
		}
	})
}

func TestRestartKeepsEverything(t *testing.T) {
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprintf("kill=%v", kill), func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.addServers(3)
				var last *dfsv1.AddChunkReply
				for i := range 20 {
					f := w.create(fmt.Sprintf("f%d", i), func(r *dfsv1.CreateRequest) { r.Data = []byte("data") })
					last = w.addChunk(f.GetAttr().GetInode(), 0)
				}
				before := w.mustStat("/f7")
				index := last.GetIndex()
				w.restart(kill)
				r, err := w.client.GetAttr(w.ctx(), &dfsv1.GetAttrRequest{Caller: &dfsv1.Caller{}, Ref: path("/f7"), MinIndex: index})
				if err != nil || r.GetAttr().GetInode() != before.GetInode() || r.GetAttr().GetLength() != before.GetLength() {
					t.Fatalf("after restart: %v %v", r, err)
				}
				got, err := w.client.GetChunks(w.ctx(), &dfsv1.GetChunksRequest{Inode: last.GetAttr().GetInode(), Count: 1, ForWrite: true})
				if err != nil || len(got.GetChunks()) != 1 || got.GetChunks()[0].GetVersion() != last.GetChunk().GetVersion() {
					t.Fatalf("chunks after restart: %v %v", got, err)
				}
				if id := w.m.ClusterID(); id == 0 || w.report().GetClusterId() != uint64(id) {
					t.Fatal("the cluster id is gone")
				}
			})
		})
	}
}

func TestDamagedStateIsRebuilt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.mkdir("d")
		if err := w.m.Close(); err != nil {
			t.Fatal(err)
		}
		damaged := 0
		err := filepath.Walk(filepath.Join(w.cfg.Dir, stateDir), func(p string, info os.FileInfo, err error) error {
			if err != nil || info.IsDir() || filepath.Ext(p) != ".sst" {
				return err
			}
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			for i := range b {
				b[i] ^= 0x55
			}
			damaged++
			return os.WriteFile(p, b, 0o600)
		})
		if err != nil || damaged == 0 {
			t.Fatalf("damaged %d files: %v", damaged, err)
		}
		w.cfg.Network = w.net.Host("master")
		w.start()
		if a := w.mustStat("/d"); a.GetInode() == 0 {
			t.Fatal("the directory is gone")
		}
		if _, err := os.Stat(filepath.Join(w.cfg.Dir, stateDir, "corrupt")); err != nil {
			t.Fatalf("the damaged state was not set aside: %v", err)
		}
	})
}

func TestDataDirectoryRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		start := func(change func(*Config)) error {
			c := w.cfg
			c.Listen, c.Network = "other:1", w.net.Host("other")
			change(&c)
			m, err := New(c)
			if err != nil {
				return err
			}
			if err := m.Start(w.ctx()); err != nil {
				return err
			}
			return m.Close()
		}
		err := start(func(*Config) {})
		wantErr(t, "directory in use", err, dfserr.ErrInUse)
		if !strings.Contains(err.Error(), w.cfg.Dir) {
			t.Fatalf("error does not name the directory: %v", err)
		}
		if err := w.m.Close(); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "other cluster", start(func(c *Config) { c.ClusterID = 4711 }), dfserr.ErrWrongCluster)
		if err := start(func(c *Config) { c.ClusterID = w.m.ClusterID() }); err != nil {
			t.Fatalf("own cluster: %v", err)
		}
		ident := filepath.Join(w.cfg.Dir, identityFile)
		good, err := os.ReadFile(ident)
		if err != nil {
			t.Fatal(err)
		}
		put := func(b []byte) {
			if err := os.WriteFile(ident, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		newer := identity{Format: dirFormat + 1, Cluster: w.m.ClusterID(), Node: 1}
		put(newer.encode())
		wantErr(t, "newer format", start(func(*Config) {}), dfserr.ErrFormat)
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 1
			if _, err := parseIdentity(bad); err == nil {
				t.Fatalf("a flipped bit in byte %d of the identity went unnoticed", i)
			}
		}
		bad := bytes.Clone(good)
		bad[len(bad)/2] ^= 1
		put(bad)
		wantErr(t, "flipped bit", start(func(*Config) {}), dfserr.ErrCorrupt)
		put(good)
		logs := filepath.Join(w.cfg.Dir, logDir)
		if err := os.Rename(logs, logs+".away"); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "missing log", start(func(*Config) {}), dfserr.ErrCorrupt)
		if err := os.Rename(logs+".away", logs); err != nil {
			t.Fatal(err)
		}
		foreign := t.TempDir()
		if err := os.WriteFile(filepath.Join(foreign, "thesis.tex"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "foreign directory", start(func(c *Config) { c.Dir = foreign }), dfserr.ErrFormat)
		if err := start(func(c *Config) { c.Dir = filepath.Join(foreign, "thesis.tex", "x") }); err == nil || !strings.Contains(err.Error(), foreign) {
			t.Fatalf("unusable directory: %v", err)
		}
		w.cfg.Network = w.net.Host("master")
		w.start()
	})
}

func TestConfigValidate(t *testing.T) {
	good := Config{Dir: "d", Listen: "127.0.0.1:0"}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no dir":         func(c *Config) { c.Dir = "" },
		"bad listen":     func(c *Config) { c.Listen = "nonsense" },
		"bad raft":       func(c *Config) { c.RaftListen = "nonsense" },
		"min replicas":   func(c *Config) { c.MinReplicas = 17 },
		"fence":          func(c *Config) { c.Fence = 9 },
		"negative ttl":   func(c *Config) { c.SessionTTL = -1 },
		"slow heartbeat": func(c *Config) { c.HeartbeatInterval = 2 * time.Second },
		"cache":          func(c *Config) { c.CacheBytes = -1 },
	} {
		c := good
		change(&c)
		wantErr(t, name, c.Validate(), dfserr.ErrInvalid)
		if _, err := New(c); err == nil {
			t.Fatalf("%s: New accepted it", name)
		}
	}
}

func TestFullDisk(t *testing.T) {
	var free atomic.Int64
	free.Store(1 << 40)
	inBubble(t, func(t *testing.T, w *world) {
		w.mkdir("d")
		w.create("f")
		w.create("f2")
		free.Store(500 << 20)
		time.Sleep(time.Second)
		_, err := w.client.Create(w.ctx(), &dfsv1.CreateRequest{Header: w.header(), Parent: path("/"), Name: []byte("g"), Mode: 0o100644})
		wantErr(t, "create on a full disk", err, dfserr.ErrNoSpace)
		if !strings.Contains(err.Error(), w.cfg.Dir) {
			t.Fatalf("error does not name the directory: %v", err)
		}
		_, err = w.client.SetXattr(w.ctx(), &dfsv1.SetXattrRequest{Header: w.header(), Ref: path("/f"), Name: []byte("user.a")})
		wantErr(t, "setxattr on a full disk", err, dfserr.ErrNoSpace)
		w.mustStat("/f")
		if err := w.remove("f"); err != nil {
			t.Fatalf("remove on a full disk: %v", err)
		}
		free.Store(1 << 20) // now even a deletion might be written to a page that the disk has no room for
		err = w.remove("f2")
		wantErr(t, "remove on a disk without any room", err, dfserr.ErrNoSpace)
		if !strings.Contains(err.Error(), "BALLAST") {
			t.Fatalf("error does not name the way out: %v", err)
		}
		w.mustStat("/f2")
		free.Store(1 << 40)
		time.Sleep(time.Second)
		w.create("g")
	}, func(c *Config) {
		c.MinFree = 512 << 20
		c.DiskUsage = func() (int64, int64, error) { return 1 << 40, free.Load(), nil }
	})
}

func TestWrongCluster(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		_, err := w.client.OpenSession(w.ctx(), &dfsv1.OpenSessionRequest{ClusterId: 4711})
		wantErr(t, "client of another cluster", err, dfserr.ErrWrongCluster)
		pool := rpc.NewPool(w.net.Host("stranger"), rpc.PoolOptions{})
		defer pool.Close()
		conn, err := pool.Get("master:7000")
		if err != nil {
			t.Fatal(err)
		}
		hello := func(r *dfsv1.HeartbeatRequest) error {
			ctx, cancel := context.WithCancel(w.ctx())
			defer cancel()
			stream, err := dfsv1.NewClusterClient(conn).Heartbeat(ctx)
			if err != nil {
				return err
			}
			if err := stream.Send(r); err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		}
		wantErr(t, "server of another cluster", hello(&dfsv1.HeartbeatRequest{Server: 9, Incarnation: 1, Addr: "stranger:1", ClusterId: 4711}), dfserr.ErrWrongCluster)
		wantErr(t, "server without an id", hello(&dfsv1.HeartbeatRequest{Incarnation: 1, Addr: "stranger:1"}), dfserr.ErrInvalid)
		wantErr(t, "server without an address", hello(&dfsv1.HeartbeatRequest{Server: 9, Incarnation: 1}), dfserr.ErrInvalid)
		w.addServers(1)
		wantErr(t, "two servers with one id", hello(&dfsv1.HeartbeatRequest{Server: 1, Incarnation: 999, Addr: "stranger:1"}), dfserr.ErrServerConflict)
		v, err := w.m.leader.Load().view()
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		if rec, err := v.Server(1); err != nil || rec.GetAddr() != "cs1:1" {
			t.Fatalf("the intruder's address was recorded: %v %v", rec, err)
		}
	})
}
