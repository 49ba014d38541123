package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// processID names a process for ever: a pid alone is given to another process sooner or later, but never with the
// same start time in the same boot of the machine.
type processID struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start_ticks"` // since boot
	Boot  string `json:"boot_id"`
}

// identify looks a running process up.
func identify(pid int) (processID, error) {
	start, _, err := processStart(pid)
	if err != nil {
		return processID{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return processID{}, err
	}
	return processID{Pid: pid, Start: start, Boot: strings.TrimSpace(string(boot))}, nil
}

// processStart reads start time and state letter from /proc/PID/stat.
func processStart(pid int) (start uint64, state byte, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	return parseStat(b)
}

// parseStat picks field 3 (state) and field 22 (start time) out of a stat line. The second field, the command in
// parentheses, may hold blanks and parentheses itself.
func parseStat(b []byte) (start uint64, state byte, err error) {
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return 0, 0, fmt.Errorf("stat line %.40q has no command", b)
	}
	fields := strings.Fields(string(b[end+1:]))
	const stateField, startField = 0, 19 // fields 3 and 22: two are cut off, and these count from 0
	if len(fields) <= startField || fields[stateField] == "" {
		return 0, 0, fmt.Errorf("stat line %.40q is too short", b)
	}
	start, err = strconv.ParseUint(fields[startField], 10, 64)
	return start, fields[stateField][0], err
}

// alive reports whether the process is still this one and running; a zombie is not.
func (p processID) alive() bool {
	if p.Pid <= 0 {
		return false
	}
	now, err := identify(p.Pid)
	if err != nil || now != p {
		return false
	}
	_, state, err := processStart(p.Pid)
	return err == nil && state != 'Z' && state != 'X'
}

// errNoProcess says that the process is gone; a process that has taken over its pid is not touched.
var errNoProcess = errors.New("the process is not running")

// signal sends a signal to exactly this process: the handle is taken first and the identity checked after, so that
// the pid cannot change hands in between.
func (p processID) signal(sig syscall.Signal) error {
	if p.Pid <= 0 {
		return errNoProcess
	}
	handle, err := os.FindProcess(p.Pid)
	if err != nil {
		return errNoProcess
	}
	defer handle.Release() //nolint:errcheck // only gives the handle back
	if !p.alive() {
		return errNoProcess
	}
	err = handle.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		return errNoProcess
	}
	return err
}

// exitPoll is how often waitGone looks; the process is usually not our child, so there is nothing to wait on.
const exitPoll = 10 * time.Millisecond

// waitGone returns when the process has ended; an error when ctx ends first.
func (p processID) waitGone(ctx context.Context) error {
	tick := time.NewTicker(exitPoll)
	defer tick.Stop()
	for p.alive() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// stop ends the process with SIGTERM, and with SIGKILL if it is still there after patience. forced says that it came
// to that.
func (p processID) stop(ctx context.Context, patience time.Duration) (forced bool, err error) {
	err = p.signal(syscall.SIGTERM)
	if errors.Is(err, errNoProcess) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	gentle, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if p.waitGone(gentle) == nil {
		return false, nil
	}
	if err := p.kill(context.WithoutCancel(ctx)); err != nil {
		return true, err
	}
	return true, ctx.Err()
}

// kill ends the process with SIGKILL and waits until it is gone.
func (p processID) kill(ctx context.Context) error {
	err := p.signal(syscall.SIGKILL)
	if errors.Is(err, errNoProcess) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return p.waitGone(ctx)
}

// tailOf returns the last lines of a file, for messages.
func tailOf(path string, lines int) string {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "(no log)"
	}
	if err != nil {
		return "(" + err.Error() + ")"
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
