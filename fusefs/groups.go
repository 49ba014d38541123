package fusefs

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// A request names its process (a thread, as the kernel counts) but not the process's supplementary groups nor the
// signals pending for it; both are read from /proc. Nothing is remembered: setgroups(2) counts from the next call on.

// groupsOf returns the supplementary groups of a process, none if it has ended. Root needs none.
func groupsOf(pid, uid uint32) []uint32 {
	if uid == 0 || pid == 0 {
		return nil
	}
	var groups []uint32
	for _, s := range strings.Fields(statusLines(pid, "Groups:")[0]) {
		if n, err := strconv.ParseUint(s, 10, 32); err == nil {
			groups = append(groups, uint32(n))
		}
	}
	return groups
}

// dying reports whether a process is being killed: SIGKILL is pending, into which the kernel turns every signal that ends
// a process. One that cannot be seen is taken to be.
func dying(pid uint32) bool {
	if pid == 0 {
		return true
	}
	const sigkill = 1 << (9 - 1)
	for _, s := range statusLines(pid, "SigPnd:", "ShdPnd:") {
		mask, err := strconv.ParseUint(strings.TrimSpace(s), 16, 64)
		if err != nil || mask&sigkill != 0 {
			return true
		}
	}
	return false
}

// statusLines returns what follows each label in /proc/<pid>/status, "" for what is not there.
func statusLines(pid uint32, labels ...string) []string {
	found := make([]string, len(labels))
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return found
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		for i, label := range labels {
			if rest, ok := strings.CutPrefix(sc.Text(), label); ok {
				found[i] = rest
			}
		}
	}
	return found
}
