package testcluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"time"

	"dfs/client"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// names is the part of the simulation in which clients that cache attributes and names read them all the time while all change them. Each register is written by several
// clients with values that are never the same twice, and read through caches, so its history must be linearizable, whatever is cut off, frozen or restarted meanwhile:
// the modification time of a file; the modification time of the file that a name stands for, 0 while there is none; and the length of a file.
type names struct {
	attr, entry, length [simNames]*History

	hits atomic.Int64 // answers that came without asking the master
}

const (
	simNames   = 2 // registers of each kind
	simCachers = 3
	namesDir   = "/names"
)

func newNames() *names {
	n := &names{}
	for i := range simNames {
		n.attr[i], n.entry[i], n.length[i] = &History{}, &History{}, &History{}
	}
	return n
}

// setup makes the files.
func (n *names) setup(ctx context.Context, s *sim, c *client.Client) {
	s.must(c.Mkdir(ctx, namesDir, 0o755))
	for i := range simNames {
		for _, kind := range []string{"attr", "length"} {
			path := fmt.Sprintf("%s/%s%d", namesDir, kind, i)
			f, err := c.OpenFile(ctx, path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
			s.must(err)
			s.must(f.Close())
			s.must(c.Chtimes(ctx, path, time.Time{}, time.Unix(0, 0)))
		}
	}
}

// distances keeps changing how far clients are from the master, so that a recall takes longer to reach one than the answer takes to reach another.
func (n *names) distances(s *sim, stop <-chan struct{}) {
	rng := s.rng(4000)
	for {
		for i := range simClients + simHammers + simCachers + 1 {
			s.cl.Net.SetDelay(MasterHost, ClientHost(i), time.Duration(rng.IntN(60))*time.Millisecond)
		}
		select {
		case <-stop:
			return
		case <-time.After(time.Second):
		}
	}
}

// hammer reads and changes the registers until stop.
func (n *names) hammer(ctx context.Context, s *sim, id int, stop <-chan struct{}) {
	defer s.recoverFailed()
	rng := s.rng(uint64(3000 + id))
	c := s.client(ctx, fmt.Sprintf("cacher-%d", id))
	defer c.Close()
	t := c.Inodes()
	who := client.Caller{}
	root, err := t.Lookup(ctx, who, dfs.RootInode, []byte(namesDir[1:]))
	s.must(err)
	value := int64(id+1) << 32
	var made int
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(rng.IntN(10)) * time.Millisecond):
		}
		i := rng.IntN(simNames)
		value++
		if rng.IntN(6) > 0 {
			n.read(ctx, s, rng, t, root.Inode, i)
			continue
		}
		now := time.Unix(0, value)
		switch rng.IntN(4) {
		case 0:
			a, err := t.Lookup(ctx, who, root.Inode, fmt.Appendf(nil, "attr%d", i))
			s.must(err)
			invoked := s.tick()
			_, err = t.SetAttr(ctx, who, a.Inode, client.AttrChange{Mtime: &now})
			s.must(err)
			n.attr[i].Wrote(uint64(value), invoked, s.tick())
		case 1:
			made++
			temp := fmt.Appendf(nil, "temp-%d-%d", id, made)
			a, err := t.Make(ctx, who, root.Inode, temp, client.NewNode{Mode: 0o100644})
			s.must(err)
			_, err = t.SetAttr(ctx, who, a.Inode, client.AttrChange{Mtime: &now})
			s.must(err)
			invoked := s.tick()
			s.must(t.Rename(ctx, who, root.Inode, temp, root.Inode, fmt.Appendf(nil, "entry%d", i)))
			n.entry[i].Wrote(uint64(value), invoked, s.tick())
			if _, err := t.Lookup(ctx, who, root.Inode, temp); !errors.Is(err, dfserr.ErrNotExist) {
				s.t.Errorf("seed %d: lookup of %s after its rename: %v", s.seed, temp, err)
			}
		case 2:
			invoked := s.tick()
			err := t.Remove(ctx, who, root.Inode, fmt.Appendf(nil, "entry%d", i), false)
			if !errors.Is(err, dfserr.ErrNotExist) {
				s.must(err)
				n.entry[i].Zeroed(invoked, s.tick())
			}
		case 3:
			a, err := t.Lookup(ctx, who, root.Inode, fmt.Appendf(nil, "length%d", i))
			s.must(err)
			invoked := s.tick()
			_, err = t.Truncate(ctx, who, a.Inode, value, false)
			s.must(err)
			n.length[i].Wrote(uint64(value), invoked, s.tick())
		}
	}
}

// read reads one register, by name, by inode or by listing the directory.
func (n *names) read(ctx context.Context, s *sim, rng *rand.Rand, t client.Inodes, dir dfs.InodeID, i int) {
	who := client.Caller{}
	kind := []string{"attr", "entry", "length"}[rng.IntN(3)]
	name := fmt.Sprintf("%s%d", kind, i)
	if rng.IntN(20) == 0 {
		invoked := s.tick()
		list, end, err := t.ReadDir(ctx, who, dir, nil, 1000)
		s.must(err)
		returned := s.tick()
		if !end {
			s.t.Errorf("seed %d: the directory has more than 1000 entries", s.seed)
		}
		found := false
		for _, e := range list {
			if e.Name() == name {
				found = true
				n.record(kind, i, e.Attr, invoked, returned)
			}
		}
		if !found {
			n.record(kind, i, client.Attr{Mtime: time.Unix(0, 0)}, invoked, returned)
		}
		return
	}
	calls := s.getAttrs.Load()
	invoked := s.tick()
	a, err := t.Lookup(ctx, who, dir, []byte(name))
	returned := s.tick()
	if errors.Is(err, dfserr.ErrNotExist) {
		a, err = client.Attr{Mtime: time.Unix(0, 0)}, nil
	}
	s.must(err)
	if s.getAttrs.Load() == calls {
		n.hits.Add(1)
	}
	n.record(kind, i, a, invoked, returned)
	if a.Inode != 0 && kind != "entry" && rng.IntN(2) == 0 {
		invoked := s.tick()
		a, err := t.GetAttr(ctx, a.Inode)
		s.must(err)
		n.record(kind, i, a, invoked, s.tick())
	}
}

func (n *names) record(kind string, i int, a client.Attr, invoked, returned int64) {
	switch kind {
	case "attr":
		n.attr[i].Read(uint64(a.Mtime.UnixNano()), invoked, returned)
	case "entry":
		n.entry[i].Read(uint64(a.Mtime.UnixNano()), invoked, returned)
	case "length":
		n.length[i].Read(uint64(a.Size), invoked, returned)
	}
}

func (n *names) check(s *sim) {
	for i := range simNames {
		for kind, h := range map[string]*History{"attr": n.attr[i], "entry": n.entry[i], "length": n.length[i]} {
			if err := h.Check(); err != nil {
				s.t.Errorf("seed %d: %s%d: %v", s.seed, kind, i, err)
			}
		}
	}
	if n.hits.Load() == 0 {
		s.t.Errorf("seed %d: nothing was answered from a cache", s.seed)
	}
}
