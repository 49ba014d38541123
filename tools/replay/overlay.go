package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// patch replaces one piece of text, which must occur exactly once, in a file of the Go distribution.
type patch struct{ file, old, new string }

// patches make a program behave the same every time it runs, as far as what it does in a synctest bubble on one P goes. What a
// goroutine outside bubbles does is left as it is.
var patches = []patch{
	// Hashes of maps are seeded when the process starts.
	{"runtime/rand.go", "\tglobalRand.state.Init(*seed)\n", "\tclear(seed[:])\n\tseed[0] = 1\n\tglobalRand.state.Init(*seed)\n"},
	// Whatever else is random for a program, such as the choice of select and the order of maps, comes from one sequence per bubble instead of one per thread.
	{"runtime/synctest.go", "type synctestBubble struct {\n", replayRand + "type synctestBubble struct {\n\treplay uint64\n"},
	{"runtime/rand.go", "func rand() uint64 {\n", "func rand() uint64 {\n\tif b := getg().bubble; b != nil {\n\t\treturn b.replayRand()\n\t}\n"},
	{"runtime/select.go", "\t\tj := cheaprandn(uint32(norder + 1))\n", "\t\tj := randn(uint32(norder + 1))\n"},
	{"runtime/time.go", "\t\t\tt.rand = cheaprand()\n", "\t\t\tt.rand = uint32(rand())\n"},
	// A select locks its channels, and starts their timers, in the order of their addresses, which differ a little from run to run.
	{"runtime/chan.go", "\tbubble   *synctestBubble\n\n\t// lock protects", "\tbubble   *synctestBubble\n\treplayID uintptr\n\n\t// lock protects"},
	{"runtime/chan.go", "type waitq struct {\n", "var replayChans atomic.Uintptr\n\ntype waitq struct {\n"},
	{"runtime/chan.go", "\tlockInit(&c.lock, lockRankHchan)\n", "\tlockInit(&c.lock, lockRankHchan)\n\tc.replayID = replayChans.Add(1)\n"},
	{"runtime/select.go", "func (c *hchan) sortkey() uintptr {\n", "func (c *hchan) sortkey() uintptr {\n\tif c.replayID != 0 {\n\t\treturn c.replayID\n\t}\n"},
	// Goroutines take turns only where they block: not by real time, and not because a system call takes long. How often there were turns before the bubble
	// does not count.
	{"runtime/proc.go", "func retake(now int64) uint32 {\n", "func retake(now int64) uint32 {\n\tif now != 0 {\n\t\treturn 0\n\t}\n"},
	{"runtime/proc.go", "\tif !inheritTime {\n\t\tmp.p.ptr().schedtick++\n", "\tif !inheritTime && gp.bubble != nil {\n\t\tmp.p.ptr().schedtick++\n"},
	{"runtime/synctest.go", "\tgp.bubble = bubble\n\tdefer func() {\n", "\tgp.m.p.ptr().schedtick = 0\n\tgp.bubble = bubble\n\tdefer func() {\n"},
	// A mutex is fair or not by real time.
	{"internal/sync/mutex.go", "starvationThresholdNs = 1e6\n", "starvationThresholdNs = 1e18\n"},
}

// replayRand is splitmix64.
const replayRand = `//go:nosplit
func (b *synctestBubble) replayRand() uint64 {
	b.replay += 0x9e3779b97f4a7c15
	z := b.replay
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

`

// overlay writes patched copies of files of the Go distribution below dir, and returns the file that tells the go command of them.
func overlay(dir string) (string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOROOT: %w", err)
	}
	src := filepath.Join(strings.TrimSpace(string(out)), "src")
	text := map[string]string{}
	for _, p := range patches {
		if _, ok := text[p.file]; !ok {
			b, err := os.ReadFile(filepath.Join(src, p.file))
			if err != nil {
				return "", err
			}
			text[p.file] = string(b)
		}
		if n := strings.Count(text[p.file], p.old); n != 1 {
			return "", fmt.Errorf("%s has %q %d times, want once: this version of Go needs other patches", p.file, p.old, n)
		}
		text[p.file] = strings.Replace(text[p.file], p.old, p.new, 1)
	}
	replace := map[string]string{}
	for file, t := range text {
		to := filepath.Join(dir, filepath.FromSlash(file))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(to, []byte(t), 0o644); err != nil {
			return "", err
		}
		replace[filepath.Join(src, file)] = to
	}
	b, err := json.MarshalIndent(map[string]any{"Replace": replace}, "", "  ")
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "overlay.json")
	return name, os.WriteFile(name, b, 0o644)
}
