// Replay runs seeds of the cluster simulation (testcluster) so that a seed does the same every time: each in a process of its own, on one P, without the garbage
// collector, built with a copy of Go's runtime in which nothing is random and nothing depends on real time (overlay.go). The Go distribution is
// not changed.
//
// Some seeds are run twice, and their traces compared. See docs/adr/0013-replay.md for what this can do and what not.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
)

func main() {
	r := &runner{}
	flag.StringVar(&r.repo, "repo", "..", "root of the repository")
	flag.Uint64Var(&r.first, "first", 1, "first seed")
	flag.Uint64Var(&r.seeds, "seeds", 200, "how many seeds")
	flag.IntVar(&r.jobs, "jobs", runtime.NumCPU(), "how many at once")
	flag.Uint64Var(&r.twice, "twice", 10, "every how many seeds one is run twice, 0 for none")
	flag.Parse()
	if err := r.run(); err != nil {
		fmt.Fprintln(os.Stderr, "replay:", err)
		os.Exit(1)
	}
}

type runner struct {
	repo                string
	first, seeds, twice uint64
	jobs                int

	dir, binary string

	mu                       sync.Mutex
	failed, checked, differs int // guarded by mu
}

func (r *runner) run() error {
	var err error
	if r.repo, err = filepath.Abs(r.repo); err != nil {
		return err
	}
	r.dir = filepath.Join(r.repo, "out", "_replay")
	// The underscore keeps it out of "./...".
	if err := os.RemoveAll(r.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return err
	}
	if err := r.build(); err != nil {
		return err
	}
	seeds := make(chan uint64)
	var wg sync.WaitGroup
	for range r.jobs {
		wg.Go(func() {
			for s := range seeds {
				r.seed(s)
			}
		})
	}
	for s := r.first; s < r.first+r.seeds; s++ {
		seeds <- s
	}
	close(seeds)
	wg.Wait()
	fmt.Printf("%d seeds, %d failed; %d run twice, %d of them not the same\n", r.seeds, r.failed, r.checked, r.differs)
	if r.failed > 0 {
		return errors.New("a seed failed")
	}
	return nil
}

// build makes the test binary.
func (r *runner) build() error {
	name, err := overlay(r.dir)
	if err != nil {
		return err
	}
	r.binary = filepath.Join(r.dir, "testcluster.test")
	cmd := exec.Command("go", "test", "-c", "-overlay", name, "-o", r.binary, "./testcluster")
	cmd.Dir = r.repo
	cmd.Env = append(os.Environ(), "GOEXPERIMENT=norandomizedheapbase64", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go test -c: %w\n%s", err, out)
	}
	return nil
}

// seed runs a seed, once or twice.
func (r *runner) seed(seed uint64) {
	first, ok := r.once(seed, "a")
	if !ok || r.twice == 0 || (seed-r.first)%r.twice != 0 {
		return
	}
	second, ok := r.once(seed, "b")
	if !ok {
		return
	}
	same := bytes.Equal(first, second)
	if !same {
		fmt.Printf("seed %d: two runs differ: %s\n", seed, difference(first, second))
		third, ok := r.once(seed, "c")
		if ok && !bytes.Equal(third, first) && !bytes.Equal(third, second) {
			r.fail(seed, "c", "three runs, and no two are the same")
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.checked++
	if !same {
		r.differs++
	}
}

var traceLine = regexp.MustCompile(`trace [0-9a-f]{16} of \d+ events`)

// once runs a seed in a process of its own and returns its trace. What it needs lies in directories of the same names every time.
func (r *runner) once(seed uint64, run string) ([]byte, bool) {
	dir := filepath.Join(r.dir, fmt.Sprintf("seed-%d", seed))
	tmp := filepath.Join(dir, "tmp")
	defer os.RemoveAll(dir)
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		r.fail(seed, run, err.Error())
		return nil, false
	}
	cmd := exec.Command(r.binary, "-test.v", "-test.timeout=10m", "-test.run=^TestSimulation$")
	cmd.Dir = filepath.Join(r.repo, "testcluster")
	// No more of the environment than needed: its size is seen in the addresses of what comes after it.
	cmd.Env = []string{
		"PATH=/usr/bin:/bin", "HOME=/", "TMPDIR=" + tmp, "DFS_SIM_TRACE=" + dir, fmt.Sprintf("DFS_SIM_SEED=%d", seed),
		"GOMAXPROCS=1", "GOGC=off", "GODEBUG=memprofilerate=0",
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.fail(seed, run, fmt.Sprintf("%v\n%s", err, out))
		return nil, false
	}
	trace, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("seed-%d.trace", seed)))
	if err != nil {
		r.fail(seed, run, err.Error())
		return nil, false
	}
	if run == "a" {
		fmt.Printf("seed %d: %s\n", seed, traceLine.Find(out))
	}
	return trace, true
}

func (r *runner) fail(seed uint64, run, what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed++
	log := filepath.Join(r.dir, fmt.Sprintf("seed-%d-%s.log", seed, run))
	_ = os.WriteFile(log, []byte(what), 0o644) // the end of it is printed all the same
	lines := strings.Split(strings.TrimSpace(what), "\n")
	if len(lines) > 40 {
		lines = lines[len(lines)-40:]
	}
	fmt.Printf("seed %d FAILED (%s; again: make sim SEED=%d):\n%s\n", seed, log, seed, strings.Join(lines, "\n"))
}

// difference says where two traces first differ.
func difference(a, b []byte) string {
	la, lb := strings.Split(string(a), "\n"), strings.Split(string(b), "\n")
	for i := range min(len(la), len(lb)) {
		if la[i] != lb[i] {
			return fmt.Sprintf("event %d of %d:\n  %s\n  %s", i+1, len(la)-1, la[i], lb[i])
		}
	}
	return fmt.Sprintf("%d and %d events", len(la)-1, len(lb)-1)
}
