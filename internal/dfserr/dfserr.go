// Package dfserr is the closed list of errors that cross a process boundary, and the one table that
// says, for each, its gRPC code, its wire reason, its errno, and what a client does about it. No other file
// in the project names a gRPC code or an errno.
//
// Servers return errors that wrap a sentinel (Errorf); the RPC interceptors call ToStatus and FromStatus, so
// that errors.Is works the same on both sides of a connection. The reason travels in the status
// details, never in the text. Everything here is safe for concurrent use.
package dfserr

import (
	"errors"
	"fmt"
)

// Errorf returns an error that wraps the sentinel and says, in the words of format, what was being
// done to which operand. The text reads "<words>: <sentinel>".
func Errorf(sentinel error, format string, args ...any) error {
	return &wrapped{text: fmt.Sprintf(format, args...), sentinel: sentinel}
}

// wrapped carries a message for people and a sentinel for programs.
type wrapped struct {
	text     string
	sentinel error
}

func (w *wrapped) Error() string { return w.text + ": " + w.sentinel.Error() }
func (w *wrapped) Unwrap() error { return w.sentinel }

// Class says what a client does about an error.
type Class int

const (
	// GiveUp returns the error to the caller: trying again cannot help.
	GiveUp Class = iota
	// Refresh drops cached locations and configuration, asks the master again, and retries.
	Refresh
	// Backoff waits, with jitter, and retries until the caller's deadline.
	Backoff
	// OtherReplica reports the replica and tries another.
	OtherReplica
)

// ClassOf returns the retry class of err; an error that wraps no sentinel is GiveUp.
func ClassOf(err error) Class {
	if r := rowOf(err); r != nil {
		return r.class
	}
	return GiveUp
}

// rowOf finds the table row whose sentinel err wraps.
func rowOf(err error) *row {
	if err == nil {
		return nil
	}
	for i := range table {
		if errors.Is(err, table[i].sentinel) {
			return &table[i]
		}
	}
	return nil
}
