package fusefs

import (
	"errors"
	"syscall"
)

// What the kernel itself says, and is told, by number: errors of /dev/fuse and of mount points. Every other error of
// this package comes out of the table of internal/dfserr.

// The answers that are the mount's own.
const (
	// interrupted ends a request that its caller no longer waits for.
	interrupted = syscall.EINTR
	// askAgain answers an interrupt of a request that is not known: the kernel sends it again, unless the request is over.
	askAgain = syscall.EAGAIN
	// leftToKernel makes the kernel do by itself what a request asks, now and ever after (access, poll, lseek …).
	leftToKernel = syscall.ENOSYS
)

// readAgain reports whether reading a request failed in passing: it was interrupted, or the request went away.
func readAgain(err error) bool {
	return errors.Is(err, syscall.EINTR) || errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOENT)
}

// nobodyWaits reports whether a reply was refused because the request had been interrupted.
func nobodyWaits(err error) bool { return errors.Is(err, syscall.ENOENT) }

// IsDead reports whether a mount point's file system has lost its process.
func IsDead(err error) bool { return errors.Is(err, syscall.ENOTCONN) }

// IsBusy reports whether unmounting failed because programs use the mount.
func IsBusy(err error) bool { return errors.Is(err, syscall.EBUSY) }

// notMounted is umount(2)'s word for a directory on which nothing is mounted.
const notMounted = syscall.EINVAL

// IsNotMounted reports whether unmounting failed because nothing is mounted there.
func IsNotMounted(err error) bool { return errors.Is(err, notMounted) }

// notAllowed reports whether the kernel left mounting and unmounting to root.
func notAllowed(err error) bool { return errors.Is(err, syscall.EPERM) }
