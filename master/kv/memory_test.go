package kv

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var memoryTest = flag.Bool("memory", false, "run TestMemory")

// rss returns the process's resident memory, anonymous and mapped, as the kernel reports it.
func rss(t *testing.T) []string {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "Vm") || strings.HasPrefix(line, "Rss") {
			out = append(out, strings.Join(strings.Fields(line), " "))
		}
	}
	return out
}
