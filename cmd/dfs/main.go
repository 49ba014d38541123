// Package main is the dfs command, the project's only binary: the shell that HDFS users know (ls, put, get …),
// administration, the daemons (master, chunkserver), whole clusters on one machine (mini, local) and the demo.
//
// It holds no file-system logic. Its shape is flags → configuration → construct → run → stop:
//
//   - cli.go turns any accepted spelling of a command line (dfs ls, dfs -ls, dfs fs -ls, dfs dfs -ls) into one.
//   - verb.go has the table of shell verbs and their Hadoop-like option parser; each verb group has a file.
//   - remote.go states, as small interfaces, what the shell asks of a cluster; sdk.go answers them with package
//     client, and the tests with a working file system in memory.
//   - config.go layers defaults < TOML < DFS_* < flags, and remembers where each value came from.
//   - local.go and process.go run clusters of real processes; mini.go runs one inside this process.
//
// Goroutines: a verb joins all that it started before it returns. Failure model: an interrupt cancels the context
// once, clean-up runs under a short context of its own, and a second interrupt ends the process at once.
//
// Exit status: 0 done; 1 an operand failed; 2 wrong usage of a native command; 255 wrong usage of a shell verb;
// 130 interrupted; fsck as HDFS has it.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
)

// errInterrupted is the cause of a context that a signal has cancelled.
var errInterrupted = errors.New("interrupted")

// Exit statuses; see the package comment.
const (
	exitDone        = 0
	exitFailed      = 1
	exitNativeUsage = 2
	exitInterrupted = 130
	exitVerbUsage   = 255
)

func main() {
	if code, ok := asMountHelper(processEnviron(), os.Args); ok {
		os.Exit(code)
	}
	ctx, stop := interruptible(context.Background())
	code := run(ctx, processEnviron(), os.Args[1:])
	stop()
	os.Exit(code)
}

// interruptible returns a context that the first SIGINT, SIGTERM or SIGHUP cancels with errInterrupted; the second
// ends the process with status 130 there and then.
func interruptible(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	ch := make(chan os.Signal, 2)
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	signal.Notify(ch, signals...)
	done := make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			select {
			case <-ch:
				if n > 0 {
					os.Exit(exitInterrupted)
				}
				cancel(errInterrupted)
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		close(done)
		cancel(nil)
	}
}

// interrupted reports whether a signal has ended ctx.
func interrupted(ctx context.Context) bool {
	return errors.Is(context.Cause(ctx), errInterrupted)
}
