package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
	"dfs/testcluster"
)

// The rows that need more than calls of the SDK.

// putTree is `dfs put -r` of the Go tree. Seconds.
func putTree(ctx context.Context, e *env) (float64, error) {
	dst := e.fresh("tree")
	began := time.Now()
	cmd := exec.CommandContext(ctx, e.bin, "put", "-r", e.tree, dst)
	cmd.Env = append(os.Environ(), "DFS_MASTERS="+strings.Join(e.cluster.Masters(), ","))
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("dfs put -r: %w: %s", err, bytes.TrimSpace(out))
	}
	took := time.Since(began).Seconds()
	return took, e.c.RemoveAll(ctx, dst)
}

// coldStart stops every process, drops the caches, starts them and reads one file of 20,000. Seconds.
func coldStart(ctx context.Context, e *env) (float64, error) {
	const dirs, each = 100, 200
	name := func(d, i int) string { return fmt.Sprintf("/bench-cold/%d/f%d", d, i) }
	data := randomBytes(8*dfs.KiB, 9)
	if _, err := e.c.Stat(ctx, name(dirs-1, each-1)); err != nil {
		if err := forAll(dirs, func(d int) error {
			if err := e.c.MkdirAll(ctx, fmt.Sprintf("/bench-cold/%d", d), 0o755); err != nil {
				return err
			}
			for i := range each {
				if err := e.c.WriteFile(ctx, name(d, i), data, 0o644); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return 0, err
		}
	}
	e.c.Close()
	e.c = nil
	if err := e.cluster.Close(); err != nil {
		return 0, err
	}
	if err := dropCaches(); err != nil {
		return 0, err
	}
	began := time.Now()
	var err error
	if e.cluster, err = testcluster.StartProcesses(ctx, e.bin, filepath.Join(e.dir, "cluster"), servers); err != nil {
		return 0, err
	}
	if err := e.dial(ctx); err != nil {
		return 0, err
	}
	got, err := e.c.ReadFile(ctx, name(dirs/2, each/2))
	took := time.Since(began).Seconds()
	if err == nil && !bytes.Equal(got, data) {
		err = errors.New("the first read after the start returned other bytes")
	}
	return took, err
}

// heapPerGiB writes the stream and reads it back, and returns what the chunkservers allocated meanwhile, in MiB, per GiB that went
// through one of them: what is written goes through three.
func heapPerGiB(ctx context.Context, e *env) (float64, error) {
	transfer := func() error {
		if _, err := streamWrite(ctx, e); err != nil {
			return err
		}
		_, err := streamRead(ctx, e)
		return err
	}
	defer func() { e.cpuPerGiB = nil }()
	if err := transfer(); err != nil { // fills the pools
		return 0, err
	}
	before, err := e.allocated(ctx)
	if err != nil {
		return 0, err
	}
	if err := transfer(); err != nil {
		return 0, err
	}
	after, err := e.allocated(ctx)
	const passes = dfs.DefaultReplication + 1 // written, and read once
	return (after - before) / dfs.MiB / (passes * float64(e.streamBytes) / dfs.GiB), err
}

// allocated returns the bytes that the chunkservers have allocated on their heaps since they started, as their profiles say.
func (e *env) allocated(ctx context.Context) (float64, error) {
	total := 0.0
	for _, n := range e.cluster.Nodes("chunkserver") {
		address, err := profileAddress(n.LogFile)
		if err != nil {
			return 0, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/debug/pprof/heap?debug=1", nil)
		if err != nil {
			return 0, err
		}
		reply, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err
		}
		text, err := io.ReadAll(reply.Body)
		if err = errors.Join(err, reply.Body.Close()); err != nil {
			return 0, err
		}
		const mark = "# TotalAlloc = "
		_, rest, _ := strings.Cut(string(text), mark)
		line, _, _ := strings.Cut(rest, "\n")
		bytes, err := strconv.ParseFloat(line, 64)
		if err != nil {
			return 0, fmt.Errorf("profile of %s has no line %q: %w", n.Name, mark, err)
		}
		total += bytes
	}
	return total, nil
}

// profileAddress finds in a daemon's log where its latest process serves profiles.
func profileAddress(logFile string) (string, error) {
	text, err := os.ReadFile(logFile)
	if err != nil {
		return "", err
	}
	address := ""
	for line := range strings.Lines(string(text)) {
		var entry struct {
			Message string `json:"@message"`
			Address string `json:"address"`
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Message == "serving profiles" {
			address = entry.Address
		}
	}
	if address == "" {
		return "", fmt.Errorf("log %s does not say where profiles are served", logFile)
	}
	return address, nil
}

// masterMemory makes files of one chunk (the chunk is allocated, not written) until there are e.files, and returns
// the master's resident memory, in MiB.
func masterMemory(ctx context.Context, e *env) (float64, error) {
	pool := rpc.NewPool(rpc.TCP(), rpc.PoolOptions{})
	defer pool.Close()
	cc, err := pool.Get(e.cluster.Masters()[0])
	if err != nil {
		return 0, err
	}
	m := dfsv1.NewMasterClient(cc)
	const perDir = 10_000
	if err := forAll(callers, func(caller int) error {
		open, err := m.OpenSession(ctx, &dfsv1.OpenSessionRequest{Client: "bench", Nonce: rand.Uint64()})
		if err != nil {
			return err
		}
		stop, err := keepAlive(ctx, m, open.GetSession(), time.Duration(open.GetTtlMs())*time.Millisecond/3)
		if err != nil {
			return err
		}
		defer stop()
		for i := range e.files / callers {
			req := &dfsv1.CreateRequest{
				Header: &dfsv1.MutationHeader{Session: open.GetSession(), Seq: uint64(i + 1), Caller: &dfsv1.Caller{}},
				Parent: &dfsv1.Ref{Path: fmt.Appendf(nil, "/bench-million/%d/%d", caller, i/perDir)}, Name: fmt.Appendf(nil, "file-%07d", i),
				Mode: 0o100644, MakeParents: true, WantChunk: true,
			}
			if _, err := m.Create(ctx, req); err != nil {
				return err
			}
		}
		_, err = m.CloseSession(ctx, &dfsv1.CloseSessionRequest{Session: open.GetSession()})
		return err
	}); err != nil {
		return 0, err
	}
	return residentMiB(e.cluster.Nodes("master")[0].PID)
}

// keepAlive renews a session until stop is called.
func keepAlive(ctx context.Context, m dfsv1.MasterClient, session uint64, every time.Duration) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := m.KeepAlive(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			if stream.Send(&dfsv1.KeepAliveRequest{Session: session}) != nil {
				return
			}
			if _, err := stream.Recv(); err != nil {
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { cancel(); <-done }, nil
}
