package testcluster

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"dfs/client"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// reopened opens the file of another client once more.
func reopened(ctx context.Context, t *testing.T, c *client.Client, path string) *client.File {
	t.Helper()
	f, err := c.OpenFile(ctx, path, os.O_RDWR, 0)
	check(t, err)
	return f
}

// TestLocksOfTheSDK locks through Files of two clients.
func TestLocksOfTheSDK(t *testing.T) {
	inMemory(t, Config{Chunkservers: 3}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		a, b := two(ctx, t, cl)
		defer b.Close()
		fa := chunked(ctx, t, a, "/f", []byte("old"))
		fb := reopened(ctx, t, b, "/f")
		first, err := fa.Lock(ctx, client.ExclusiveLock)
		check(t, err)
		_, err = fb.TryLock(ctx, client.SharedLock)
		wantErr(t, "a lock that another has", err, dfserr.ErrWouldBlock)

		// Waiting, for a minute; then it reads what was written under the lock.
		type result struct {
			token dfs.Index
			text  string
			err   error
		}
		got := make(chan result, 1)
		go func() {
			token, err := fb.Lock(ctx, client.ExclusiveLock)
			text := make([]byte, 3)
			if err == nil {
				_, err = fb.ReadAt(text, 0)
			}
			got <- result{token, string(text), err}
		}()
		time.Sleep(time.Minute)
		_, err = fa.WriteAt([]byte("new"), 0)
		check(t, err)
		select {
		case r := <-got:
			t.Fatalf("locked twice: %+v", r)
		default:
		}
		check(t, fa.Unlock(ctx))
		if r := <-got; r.err != nil || r.text != "new" || r.token <= first {
			t.Fatalf("%+v; the token before was %d", r, first)
		}

		// A wait that is given up leaves nothing behind.
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err = fa.Lock(short, client.SharedLock)
		wantErr(t, "a wait that is given up", err, context.DeadlineExceeded)
		check(t, fb.Unlock(ctx))
		_, err = fb.TryLock(ctx, client.ExclusiveLock)
		check(t, err)
		check(t, fb.Close())
		_, err = fa.TryLock(ctx, client.ExclusiveLock)
		check(t, err)

		// Ranges, of several Files of one client as well.
		fb, other := reopened(ctx, t, b, "/f"), reopened(ctx, t, b, "/f")
		_, err = fb.TryLockRange(ctx, client.ExclusiveLock, 10, 19)
		check(t, err)
		_, err = other.TryLockRange(ctx, client.SharedLock, 19, client.LastByte)
		wantErr(t, "a range of another File", err, dfserr.ErrWouldBlock)
		c, err := fa.TestLock(ctx, client.LockSpec{Kind: client.ByteRange, Mode: client.SharedLock, First: 0, Last: 100})
		if err != nil || c == nil || c.First != 10 || c.Last != 19 || c.Mode != client.ExclusiveLock || c.Own {
			t.Fatalf("%+v, %v", c, err)
		}
		_, err = fa.TryLockRange(ctx, client.SharedLock, 0, 9)
		check(t, err)
		waits := make(chan error, 1)
		go func() {
			_, err := fa.LockRange(ctx, client.SharedLock, 10, 10)
			waits <- err
		}()
		time.Sleep(time.Second)
		_, err = fb.LockRange(ctx, client.ExclusiveLock, 5, 5)
		wantErr(t, "a deadlock", err, dfserr.ErrDeadlock)
		check(t, fb.UnlockRange(ctx, 0, 15))
		check(t, <-waits)
		ro, err := b.Open(ctx, "/f")
		check(t, err)
		_, err = ro.TryLockRange(ctx, client.ExclusiveLock, 50, 50)
		wantErr(t, "an exclusive range of a file open for reading", err, dfserr.ErrBadHandle)
		check(t, errors.Join(ro.Close(), other.Close()))

		// The end of a client ends its locks.
		check(t, a.Close())
		_, err = fb.TryLockRange(ctx, client.ExclusiveLock, 0, client.LastByte)
		check(t, err)
		_, err = fb.TryLock(ctx, client.ExclusiveLock)
		check(t, err)
		check(t, fb.Close())
	})
}

// TestLostLocksAreNoticed cuts a client off for longer than its session lives: another gets its locks, and it may not write any more, by whatever it has open; not even before
// it has heard that the session is over.
func TestLostLocksAreNoticed(t *testing.T) {
	for _, size := range []int{3, 100_000} { // in the inode, and in a chunk
		t.Run(fmt.Sprintf("%d bytes", size), func(t *testing.T) { lostLocks(t, size) })
	}
}

func lostLocks(t *testing.T, size int) {
	inMemory(t, Config{Chunkservers: 3}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		a, b := two(ctx, t, cl)
		old := make([]byte, size)
		defer a.Close()
		defer b.Close()
		fa := chunked(ctx, t, a, "/f", old)
		second, unlocked := reopened(ctx, t, a, "/f"), chunked(ctx, t, a, "/g", old)
		fb := reopened(ctx, t, b, "/f")
		_, err := fa.Lock(ctx, client.ExclusiveLock)
		check(t, err)
		cl.Net.Cut(MasterHost, ClientHost(0)) // chunkservers can still be reached
		_, err = fb.Lock(ctx, client.ExclusiveLock)
		check(t, err)
		if size > dfs.InlineMax {
			_, err = unlocked.WriteAt([]byte("any"), 0)
			check(t, err)
		}
		waits := make(chan error, 1)
		go func() {
			_, err := fa.WriteAt([]byte("bad"), 0)
			waits <- err
		}()
		time.Sleep(5 * time.Second)
		_, err = fb.WriteAt([]byte("new"), 0)
		check(t, err)
		select {
		case err := <-waits:
			t.Fatalf("a write whose locks are in doubt has ended: %v", err)
		default:
		}
		cl.Net.Heal(MasterHost, ClientHost(0))
		wantErr(t, "the write that waited", <-waits, dfserr.ErrLocksLost)
		for _, f := range []*client.File{fa, second} {
			_, err = f.WriteAt([]byte("bad"), 0)
			wantErr(t, "a write", err, dfserr.ErrLocksLost)
			_, err = f.TryLock(ctx, client.SharedLock)
			wantErr(t, "a lock", err, dfserr.ErrLocksLost)
			wantErr(t, "an unlock", f.Unlock(ctx), dfserr.ErrLocksLost)
			wantErr(t, "a truncation", f.Truncate(ctx, 0), dfserr.ErrLocksLost)
			_, err = f.Append(ctx, []byte("bad"))
			wantErr(t, "an append", err, dfserr.ErrLocksLost)
			text := make([]byte, 3)
			if _, err := f.ReadAt(text, 0); err != nil || string(text) != "new" {
				t.Fatalf("%q, %v", text, err)
			}
			wantErr(t, "the close", f.Close(), dfserr.ErrLocksLost) // the write error it has had
		}
		fa = reopened(ctx, t, a, "/f")
		_, err = fa.TryLock(ctx, client.SharedLock)
		wantErr(t, "a new handle's try", err, dfserr.ErrWouldBlock)
		check(t, fb.Close())
		_, err = fa.Lock(ctx, client.ExclusiveLock)
		check(t, err)
		_, err = fa.WriteAt([]byte("own"), 0)
		check(t, err)
		check(t, errors.Join(fa.Close(), unlocked.Close()))
	})
}

// TestLocksOutliveTheMaster restarts the master, and keeps it away for longer than sessions live, while one client has a lock and another waits for it.
func TestLocksOutliveTheMaster(t *testing.T) {
	inMemory(t, Config{Chunkservers: 3}, func(ctx context.Context, t *testing.T, cl *Cluster) {
		a, b := two(ctx, t, cl)
		defer a.Close()
		defer b.Close()
		fa := chunked(ctx, t, a, "/f", []byte("old"))
		fb := reopened(ctx, t, b, "/f")
		_, err := fa.Lock(ctx, client.ExclusiveLock)
		check(t, err)
		got := make(chan error, 1)
		go func() {
			_, err := fb.Lock(ctx, client.ExclusiveLock)
			got <- err
		}()
		time.Sleep(time.Second)
		check(t, cl.KillMaster(ctx))
		time.Sleep(40 * time.Second)
		wrote := make(chan error, 1)
		go func() {
			_, err := fa.WriteAt([]byte("new"), 0)
			wrote <- err
		}()
		time.Sleep(5 * time.Second)
		select {
		case err := <-wrote:
			t.Fatalf("a write whose locks are in doubt has ended: %v", err)
		case err := <-got:
			t.Fatalf("the waiter has got %v", err)
		default:
		}
		check(t, cl.StartMaster(ctx))
		check(t, <-wrote)
		check(t, fa.Unlock(ctx))
		check(t, <-got)
		check(t, errors.Join(fa.Close(), fb.Close()))
	})
}

// section is what one client did while it had the lock.
type section struct {
	token     dfs.Index
	read      uint64
	wrote     bool // the write of read+1 was acknowledged
	attempted bool
}

// TestLockSimulation has clients count in files, each step under a lock, while the master restarts, chunkservers die and stop, and clients are cut off, also for so long that they lose
// their locks: then they open the file anew. No two may have been in a file at the same time: in the order of the locks' tokens the numbers only
// grow, by what was acknowledged.
func TestLockSimulation(t *testing.T) {
	first, n := uint64(1), 6
	if s := os.Getenv("DFS_SIM_SEEDS"); s != "" {
		v, err := strconv.Atoi(s)
		check(t, err)
		n = v
	}
	if s := os.Getenv("DFS_SIM_SEED"); s != "" {
		v, err := strconv.ParseUint(s, 10, 64)
		check(t, err)
		first, n = v, 1
	}
	for seed := first; seed < first+uint64(n); seed++ {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			cfg := Config{Chunkservers: 4, Client: func(c *client.Config) { c.OpTimeout = 10 * time.Minute }}
			inMemory(t, cfg, func(ctx context.Context, t *testing.T, cl *Cluster) { simulateLocks(ctx, t, cl, seed) })
		})
	}
}

const (
	lockSimClients = 4
	lockSimSteps   = 25
)

// counted is a file in which clients count.
type counted struct {
	path  string
	bytes bool // locked by a range, else as a whole

	mu       sync.Mutex
	sections []section // guarded by mu
}

func simulateLocks(ctx context.Context, t *testing.T, cl *Cluster, seed uint64) {
	files := []*counted{{path: "/whole"}, {path: "/range", bytes: true}}
	setup, err := cl.Client(ctx, "setup")
	check(t, err)
	defer setup.Close()
	for _, f := range files {
		check(t, chunked(ctx, t, setup, f.path, make([]byte, 100_000)).Close())
	}
	stop := make(chan struct{})
	var faults, workers sync.WaitGroup
	fired := map[string]int{}
	faults.Go(func() { lockFaults(ctx, t, cl, rand.New(rand.NewPCG(seed, 100)), stop, fired) })
	lost := make([]int, lockSimClients)
	for i := range lockSimClients {
		c, err := cl.Client(ctx, fmt.Sprintf("client-%d", i))
		check(t, err)
		workers.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			for range lockSimSteps {
				lost[i] += countOnce(ctx, t, c, rng, files[rng.IntN(len(files))])
				time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	workers.Wait()
	close(stop)
	faults.Wait()
	for _, f := range files {
		b, err := setup.ReadFile(ctx, f.path)
		check(t, err)
		f.check(t, seed, binary.BigEndian.Uint64(b))
	}
	t.Logf("seed %d: faults %v, lost locks %v", seed, fired, lost)
}

// countOnce takes one step in a file, and returns how often the client lost its lock on the way.
func countOnce(ctx context.Context, t *testing.T, c *client.Client, rng *rand.Rand, f *counted) (lost int) {
	for {
		file, err := c.OpenFile(ctx, f.path, os.O_RDWR, 0)
		if err != nil {
			t.Error(err)
			return lost
		}
		done, err := f.step(ctx, file, rng)
		if cerr := file.Close(); err == nil && !done {
			err = cerr
		}
		if done {
			return lost
		}
		// With a session that is lost on the way anything but success is allowed to be in doubt.
		if !errors.Is(err, dfserr.ErrLocksLost) && !errors.Is(err, dfserr.ErrUnknownSession) {
			t.Errorf("%s: %v", f.path, err)
			return lost
		}
		lost++
	}
}

func (f *counted) step(ctx context.Context, file *client.File, rng *rand.Rand) (bool, error) {
	var s section
	var err error
	if f.bytes {
		s.token, err = file.LockRange(ctx, client.ExclusiveLock, 0, 7)
	} else {
		s.token, err = file.Lock(ctx, client.ExclusiveLock)
	}
	if err != nil {
		return false, err
	}
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.sections = append(f.sections, s)
	}()
	b := make([]byte, 8)
	if _, err := file.ReadAt(b, 0); err != nil {
		return false, err
	}
	s.read = binary.BigEndian.Uint64(b)
	time.Sleep(time.Duration(rng.IntN(4000)) * time.Millisecond)
	binary.BigEndian.PutUint64(b, s.read+1)
	s.attempted = true
	if _, err := file.WriteAt(b, 0); err != nil {
		return false, err
	}
	s.wrote = true
	// A lock that is lost after the write was acknowledged makes no difference to the step.
	if f.bytes {
		err = file.UnlockRange(ctx, 0, client.LastByte)
	} else {
		err = file.Unlock(ctx)
	}
	return true, err
}

// check wants no step to be lost, and none to be made by two.
func (f *counted) check(t *testing.T, seed, final uint64) {
	t.Helper()
	slices.SortFunc(f.sections, func(a, b section) int { return cmp.Compare(a.token, b.token) })
	low, high := uint64(0), uint64(0) // what the number can be
	for i, s := range f.sections {
		if i > 0 && f.sections[i-1].token == s.token {
			t.Errorf("seed %d: %s: token %d was given twice", seed, f.path, s.token)
		}
		if !s.attempted {
			continue
		}
		if s.read < low || s.read > high {
			t.Errorf("seed %d: %s: with token %d the number was %d, which must be from %d to %d", seed, f.path, s.token, s.read, low, high)
		}
		if s.wrote {
			low, high = s.read+1, s.read+1
		} else {
			low, high = s.read, s.read+1
		}
	}
	if final < low || final > high {
		t.Errorf("seed %d: %s: the number is %d in the end, which must be from %d to %d", seed, f.path, final, low, high)
	}
}

// lockFaults breaks things and mends them until stop.
func lockFaults(ctx context.Context, t *testing.T, cl *Cluster, rng *rand.Rand, stop <-chan struct{}, fired map[string]int) {
	wait := func(from, to int) bool {
		select {
		case <-stop:
			return false
		case <-time.After(time.Duration(from+rng.IntN(to-from)) * time.Millisecond):
			return true
		}
	}
	must := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	for wait(500, 8000) {
		server, host := rng.IntN(cl.Chunkservers()), ClientHost(1+rng.IntN(lockSimClients))
		switch kind := rng.IntN(8); {
		case kind < 2:
			fired["kill chunkserver"]++
			must(cl.KillChunkserver(ctx, server))
			wait(100, 5000)
			must(cl.StartChunkserver(ctx, server))
		case kind < 3:
			fired["pause chunkserver"]++
			must(cl.PauseChunkserver(ctx, server))
			wait(100, 8000)
			must(cl.ResumeChunkserver(ctx, server))
		case kind < 5:
			fired["restart master"]++
			must(cl.KillMaster(ctx))
			wait(10, 3000)
			must(cl.StartMaster(ctx))
		case kind < 7: // from the master only: the data path stays
			fired["cut client from master"]++
			cl.Net.Cut(MasterHost, host)
			wait(1000, 70_000)
			cl.Net.Heal(MasterHost, host)
		default:
			fired["cut client from all"]++
			hosts := []string{MasterHost}
			for i := range cl.Chunkservers() {
				hosts = append(hosts, ChunkserverHost(i))
			}
			for _, h := range hosts {
				cl.Net.Cut(h, host)
			}
			wait(1000, 70_000)
			for _, h := range hosts {
				cl.Net.Heal(h, host)
			}
		}
	}
}
