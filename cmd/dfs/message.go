package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"dfs/internal/dfserr"
)

// operandError is a failure that concerns one operand, in the form HDFS prints it:
// `path' [to `to']: Message[: `full'].
type operandError struct {
	path string
	to   string // the other operand, if any
	text string
	full string // fully qualified form, if it says more
	err  error  // what it wraps, if anything
}

func (e *operandError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "`%s'", e.path)
	if e.to != "" {
		fmt.Fprintf(&b, " to `%s'", e.to)
	}
	b.WriteString(": " + e.text)
	if e.full != "" {
		fmt.Fprintf(&b, ": `%s'", e.full)
	}
	return b.String()
}

func (e *operandError) Unwrap() error { return e.err }

// about attaches the operand to err; an error that already names its operand passes unchanged.
func about(path string, err error) error {
	if err == nil {
		return nil
	}
	var known *operandError
	if errors.As(err, &known) {
		return err
	}
	return &operandError{path: path, text: describe(err), err: err}
}

// failure makes an operandError of a sentinel.
func failure(path string, sentinel error) error {
	return &operandError{path: path, text: describe(sentinel), err: sentinel}
}

// failuref makes an operandError with words of its own.
func failuref(path, format string, args ...any) error {
	return &operandError{path: path, text: fmt.Sprintf(format, args...)}
}

// usageError is a command line that cannot be understood: status 255, with the verb's usage.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error {
	return &usageError{text: fmt.Sprintf(format, args...)}
}

// exitError ends a command with a status and nothing more to say.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// describe puts an error into the words HDFS uses, without the path.
func describe(err error) string {
	switch {
	case errors.Is(err, dfserr.ErrNotPermitted):
		return "Operation not permitted"
	case errors.Is(err, dfserr.ErrPermission), errors.Is(err, fs.ErrPermission):
		return "Permission denied"
	case errors.Is(err, fs.ErrNotExist):
		return "No such file or directory"
	case errors.Is(err, fs.ErrExist):
		return "File exists"
	case errors.Is(err, dfserr.ErrNotDir):
		return "Is not a directory"
	case errors.Is(err, dfserr.ErrIsDir):
		return "Is a directory"
	case errors.Is(err, dfserr.ErrNotEmpty):
		return "Directory is not empty"
	case errors.Is(err, dfserr.ErrNameTooLong):
		return "File name too long"
	case errors.Is(err, context.Canceled):
		return "Interrupted"
	case errors.Is(err, context.DeadlineExceeded):
		return "Timed out: " + cause(err).Error()
	}
	return capital(cause(err).Error())
}

// cause takes off the wrappers that only name an operation and a path.
func cause(err error) error {
	for {
		var path *fs.PathError
		var link *os.LinkError
		var call *os.SyscallError
		switch {
		case errors.As(err, &path) && path.Err != nil:
			err = path.Err
		case errors.As(err, &link) && link.Err != nil:
			err = link.Err
		case errors.As(err, &call) && call.Err != nil:
			err = call.Err
		default:
			return err
		}
	}
}

// capital writes the first letter of s large.
func capital(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	if n == 0 || r == utf8.RuneError {
		return s
	}
	return string(unicode.ToUpper(r)) + s[n:]
}
