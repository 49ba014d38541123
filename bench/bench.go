// Command bench measures the rows of the README's speed table on real processes and a real disk: a
// cluster of one master and four chunkservers that it starts with `dfs local`, used through the SDK.
//
// Each row is measured against a base in the same run, alternating (A B A B …), and reported as the median of
// each and their ratio, so that a noisy machine disturbs both alike. Nothing here decides a test.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// row is one line of the table. run and base return a figure in the row's unit; base may be nil.
type row struct {
	name   string
	unit   string  // of both figures
	target float64 // on the ratio, or on the figure where base is nil
	lower  bool    // lower is better: the ratio or the figure must stay at or below target
	// absolute says that the target is on the figure although there is a base.
	absolute bool
	run      func(context.Context, *env) (float64, error)
	base     func(context.Context, *env) (float64, error)
	rounds   int // 0: the -rounds flag
}

// result is what the JSON file keeps of a row.
type result struct {
	Row         string    `json:"row"`
	Unit        string    `json:"unit"`
	Value       float64   `json:"value"`
	Base        float64   `json:"base,omitempty"`
	Ratio       float64   `json:"ratio,omitempty"`
	Target      float64   `json:"target"`
	LowerBetter bool      `json:"lower_is_better,omitempty"`
	Met         bool      `json:"met"`
	Values      []float64 `json:"values"`
	Bases       []float64 `json:"bases,omitempty"`
	CPUPerGiB   float64   `json:"cpu_seconds_per_gib,omitempty"`
	// Microseconds of all processes together, and of the base where that is calls too.
	CPUPerCall     float64 `json:"cpu_microseconds_per_call,omitempty"`
	BaseCPUPerCall float64 `json:"base_cpu_microseconds_per_call,omitempty"`
}

func main() {
	dfsBin := flag.String("dfs", "bin/dfs", "the dfs binary under test")
	jsonOut := flag.String("json", "", "file to write the results to")
	match := flag.String("rows", ".", "regular expression: which rows to measure")
	rounds := flag.Int("rounds", 5, "how often each row is measured")
	dir := flag.String("dir", "", "directory on the disk to measure (default: a temporary one under the current directory)")
	mib := flag.Int("mib", 1024, "size of the streamed file, in MiB")
	files := flag.Int("files", 1_000_000, "files of the memory row")
	window := flag.Duration("window", 2*time.Second, "how long a rate is measured")
	profile := flag.String("cpuprofile", "", "file for a CPU profile of this process, the client")
	flag.Parse()
	e := &env{bin: *dfsBin, dir: *dir, streamBytes: int64(*mib) << 20, files: *files, window: *window}
	err := profiled(*profile, func() error { return run(e, *jsonOut, *match, *rounds) })
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// profiled runs f and writes a CPU profile of it; an empty path means none.
func profiled(path string, f func() error) error {
	if path == "" {
		return f()
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(out); err != nil {
		return errors.Join(err, out.Close())
	}
	err = f()
	pprof.StopCPUProfile()
	return errors.Join(err, out.Close())
}

func run(e *env, jsonOut, match string, rounds int) (err error) {
	// Interrupted, it still stops the cluster.
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	want, err := regexp.Compile(match)
	if err != nil {
		return fmt.Errorf("-rows %q: %w", match, err)
	}
	if e.dir == "" {
		if err := os.MkdirAll("out", 0o755); err != nil {
			return err
		}
		if e.dir, err = os.MkdirTemp("out", "_bench-"); err != nil {
			return err
		}
		defer os.RemoveAll(e.dir)
	}
	if err := e.start(ctx); err != nil {
		return err
	}
	defer e.stop()

	var results []result
	for _, r := range rows() {
		if !want.MatchString(r.name) {
			continue
		}
		res, err := measure(ctx, e, r, rounds)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		results = append(results, res)
		fmt.Fprintf(os.Stderr, "%-44s %s\n", r.name, summary(res))
	}
	printTable(results)
	if jsonOut == "" {
		return nil
	}
	return writeJSON(jsonOut, results)
}

// measure alternates base and run, and takes the medians.
func measure(ctx context.Context, e *env, r row, rounds int) (result, error) {
	if r.rounds > 0 {
		rounds = r.rounds
	}
	res := result{Row: r.name, Unit: r.unit, Target: r.target, LowerBetter: r.lower}
	e.cpuPerGiB = nil
	var ofBase, ofRow []float64
	for range rounds {
		e.cpuPerCall = nil
		if r.base != nil {
			b, err := r.base(ctx, e)
			if err != nil {
				return res, fmt.Errorf("base: %w", err)
			}
			res.Bases = append(res.Bases, b)
		}
		ofBase, e.cpuPerCall = append(ofBase, e.cpuPerCall...), nil
		v, err := r.run(ctx, e)
		if err != nil {
			return res, err
		}
		res.Values = append(res.Values, v)
		ofRow = append(ofRow, e.cpuPerCall...)
	}
	res.Value, res.Base = median(res.Values), median(res.Bases)
	res.CPUPerGiB, res.CPUPerCall, res.BaseCPUPerCall = median(e.cpuPerGiB), median(ofRow), median(ofBase)
	judged := res.Value
	if r.base != nil {
		res.Ratio = res.Value / res.Base
		if !r.absolute {
			judged = res.Ratio
		}
	}
	res.Met = judged >= r.target
	if r.lower {
		res.Met = judged <= r.target
	}
	return res, nil
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

func summary(r result) string {
	s := fmt.Sprintf("%.4g %s", r.Value, r.Unit)
	if r.Base > 0 {
		s += fmt.Sprintf("   base %.4g   ratio %.2f (target %.4g)", r.Base, r.Ratio, r.Target)
	} else {
		s += fmt.Sprintf("   target %.4g", r.Target)
	}
	if r.CPUPerGiB > 0 {
		s += fmt.Sprintf("   %.1f CPU s/GiB", r.CPUPerGiB)
	}
	if r.CPUPerCall > 0 {
		s += fmt.Sprintf("   %.0f CPU µs/call", r.CPUPerCall)
	}
	if r.BaseCPUPerCall > 0 {
		s += fmt.Sprintf(" (base %.0f)", r.BaseCPUPerCall)
	}
	if !r.Met {
		s += "   BELOW TARGET"
	}
	return s
}

func printTable(results []result) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "row\tvalue\tbase\tratio\ttarget\tCPU\t")
	for _, r := range results {
		base, ratio, cpu := "–", "–", "–"
		if r.Base > 0 {
			base, ratio = fmt.Sprintf("%.4g", r.Base), fmt.Sprintf("%.2f", r.Ratio)
		}
		if r.CPUPerGiB > 0 {
			cpu = fmt.Sprintf("%.1f s/GiB", r.CPUPerGiB)
		}
		if r.CPUPerCall > 0 {
			cpu = fmt.Sprintf("%.0f µs/call", r.CPUPerCall)
		}
		sign := "≥"
		if r.LowerBetter {
			sign = "≤"
		}
		mark := ""
		if !r.Met {
			mark = "below target"
		}
		fmt.Fprintf(w, "%s\t%.4g %s\t%s\t%s\t%s %.4g\t%s\t%s\n", r.Row, r.Value, r.Unit, base, ratio, sign, r.Target, cpu, mark)
	}
	w.Flush()
}

// writeJSON keeps the results with what is needed to compare them: machine and commit.
func writeJSON(path string, results []result) error {
	commit, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		commit = []byte("unknown")
	}
	doc := struct {
		Time    time.Time `json:"time"`
		Commit  string    `json:"commit"`
		Go      string    `json:"go"`
		CPUs    int       `json:"cpus"`
		CPU     string    `json:"cpu"`
		Results []result  `json:"results"`
	}{time.Now().UTC(), strings.TrimSpace(string(commit)), runtime.Version(), runtime.NumCPU(), cpuModel(), results}
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(b)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(strings.TrimSpace(name), ":"))
		}
	}
	return "unknown"
}
