package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"dfs/client"
	"dfs/testcluster"
)

// servers is how many chunkservers are measured.
const servers = 4

// env is the cluster under measurement and what the rows share.
type env struct {
	bin         string // the dfs binary
	dir         string // on the disk to measure
	tree        string // the Go source tree
	streamBytes int64
	files       int           // of the memory row
	window      time.Duration // how long a rate is measured
	cluster     *testcluster.Processes
	c           *client.Client
	serial      int       // makes names unique between rounds
	inodes      int64     // before the round
	cpuPerGiB   []float64 // of the stream row being measured
	mount       string    // where the cluster is mounted; "": not yet
	cpuPerCall  []float64 // microseconds, of the row of calls being measured
}

func (e *env) start(ctx context.Context) error {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env GOROOT: %w", err)
	}
	e.tree = strings.TrimSpace(string(root))
	if e.bin, err = filepath.Abs(e.bin); err != nil {
		return err
	}
	if e.dir, err = filepath.Abs(e.dir); err != nil {
		return err
	}
	// The row about allocations asks the chunkservers' profiles.
	if err := os.Setenv("DFS_CHUNKSERVER_PPROF", "127.0.0.1:0"); err != nil {
		return err
	}
	if e.cluster, err = testcluster.StartProcesses(ctx, e.bin, filepath.Join(e.dir, "cluster"), servers); err != nil {
		return err
	}
	if err := e.dial(ctx); err != nil {
		e.stop()
		return err
	}
	return nil
}

// dial replaces the client with a fresh one.
func (e *env) dial(ctx context.Context) (err error) {
	if e.c != nil {
		e.c.Close()
	}
	e.c, err = e.cluster.Client(ctx, "bench")
	return err
}

func (e *env) stop() {
	if err := e.unmount(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	if e.c != nil {
		e.c.Close()
	}
	if err := e.cluster.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: stopping the cluster:", err)
	}
}

// fresh returns a new path for a round.
func (e *env) fresh(prefix string) string {
	e.serial++
	return fmt.Sprintf("/%s-%d", prefix, e.serial)
}

// pids returns every process of the cluster, and this one.
func (e *env) pids() []int {
	pids := []int{os.Getpid()}
	for _, role := range []string{"master", "chunkserver"} {
		for _, n := range e.cluster.Nodes(role) {
			pids = append(pids, n.PID)
		}
	}
	if pid := e.mountPID(); pid != 0 {
		pids = append(pids, pid)
	}
	return pids
}

// cpuSeconds is what all of them have used, user and system.
func (e *env) cpuSeconds() float64 {
	const ticksPerSecond = 100
	total := 0.0
	for _, pid := range e.pids() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		for _, f := range fields[11:13] { // utime, stime
			n, _ := strconv.ParseFloat(f, 64)
			total += n / ticksPerSecond
		}
	}
	return total
}

// streamed runs a transfer of the stream's bytes, notes its CPU use, and returns MiB/s.
func (e *env) streamed(transfer func() error) (float64, error) {
	cpu := e.cpuSeconds()
	began := time.Now()
	if err := transfer(); err != nil {
		return 0, err
	}
	took := time.Since(began)
	e.cpuPerGiB = append(e.cpuPerGiB, (e.cpuSeconds()-cpu)/(float64(e.streamBytes)/(1<<30)))
	return mibPerSecond(e.streamBytes, took), nil
}

// residentMiB is a process's resident memory.
func residentMiB(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return n / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}
