package dfserr

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The sentinels. Those with a twin in io/fs wrap it, so that errors.Is(err, fs.ErrNotExist) holds at the SDK.
var (
	ErrNotExist       = sentinel("no such file or directory", fs.ErrNotExist)
	ErrExist          = sentinel("file exists", fs.ErrExist)
	ErrNotDir         = sentinel("not a directory", nil)
	ErrIsDir          = sentinel("is a directory", nil)
	ErrNotEmpty       = sentinel("directory is not empty", nil)
	ErrInvalid        = sentinel("invalid argument", fs.ErrInvalid)
	ErrNameTooLong    = sentinel("file name too long", nil)
	ErrPermission     = sentinel("permission denied", fs.ErrPermission)
	ErrNotPermitted   = sentinel("operation not permitted", fs.ErrPermission)
	ErrNoSpace        = sentinel("no space left", nil)
	ErrUnsupported    = sentinel("operation not supported", errors.ErrUnsupported)
	ErrLoop           = sentinel("too many levels of symbolic links", nil)
	ErrTooManyLinks   = sentinel("too many links", nil)
	ErrFileTooLarge   = sentinel("file too large", nil)
	ErrNoAttr         = sentinel("no such attribute", nil)
	ErrRange          = sentinel("result too large", nil)
	ErrTooBig         = sentinel("argument too big", nil)
	ErrReadOnly       = sentinel("read-only", nil)
	ErrStaleInode     = sentinel("stale file handle", nil)
	ErrBadHandle      = sentinel("handle does not allow this", nil)
	ErrStaleVersion   = sentinel("stale chunk version", nil)
	ErrNotPrimary     = sentinel("not the primary of this chunk", nil)
	ErrLeaseExpired   = sentinel("lease expired", nil)
	ErrChunkFull      = sentinel("chunk full", nil)
	ErrNotTail        = sentinel("the file does not end in this chunk", nil)
	ErrInlineMoved    = sentinel("file has moved to chunks", nil)
	ErrDuplicate      = sentinel("stale duplicate of a request", nil)
	ErrNotLeader      = sentinel("not the leading master", nil)
	ErrSafeMode       = sentinel("in safe mode", nil)
	ErrLeaseHeld      = sentinel("lease held by another", nil)
	ErrBusy           = sentinel("busy, try again", nil)
	ErrUnavailable    = sentinel("not available", nil)
	ErrRefused        = sentinel("connection refused", ErrUnavailable)
	ErrCorrupt        = sentinel("data is corrupt", nil)
	ErrNoReplica      = sentinel("no replica available", nil)
	ErrTooFewReplicas = sentinel("too few replicas to accept writes", nil)
	ErrUnknownSession = sentinel("unknown session", nil)
	ErrWrongCluster   = sentinel("wrong cluster", nil)
	ErrServerConflict = sentinel("another chunkserver has this id", nil)
	ErrInUse          = sentinel("in use by another process", nil)
	ErrFormat         = sentinel("unknown on-disk format", nil)
	ErrDiskFailed     = sentinel("disk failed", nil)
	ErrWouldBlock     = sentinel("locked by another", nil)
	ErrDeadlock       = sentinel("waiting for this lock would be a deadlock", nil)
	ErrNoLocks        = sentinel("no locks available", nil)
	ErrLocksLost      = sentinel("locks were lost with the session", nil)
	ErrClosed         = sentinel("already closed", fs.ErrClosed)
)

// sentinelError is a member of the closed list; like is its twin in the standard library, if it has one.
type sentinelError struct {
	text string
	like error
}

func sentinel(text string, like error) error { return &sentinelError{text, like} }

func (s *sentinelError) Error() string { return s.text }
func (s *sentinelError) Unwrap() error { return s.like }

// row is one line of the table.
type row struct {
	sentinel error
	reason   string // stable wire name
	code     codes.Code
	errno    syscall.Errno
	class    Class
}

// domain is the ErrorInfo domain under which reasons are unique.
const domain = "dfs"

// table lists each sentinel once. More specific sentinels stand before those they wrap.
var table = []row{
	{ErrNotExist, "NOT_EXIST", codes.NotFound, syscall.ENOENT, GiveUp},
	{ErrExist, "EXIST", codes.AlreadyExists, syscall.EEXIST, GiveUp},
	{ErrNotDir, "NOT_DIR", codes.FailedPrecondition, syscall.ENOTDIR, GiveUp},
	{ErrIsDir, "IS_DIR", codes.FailedPrecondition, syscall.EISDIR, GiveUp},
	{ErrNotEmpty, "NOT_EMPTY", codes.FailedPrecondition, syscall.ENOTEMPTY, GiveUp},
	{ErrInvalid, "INVALID", codes.InvalidArgument, syscall.EINVAL, GiveUp},
	{ErrNameTooLong, "NAME_TOO_LONG", codes.InvalidArgument, syscall.ENAMETOOLONG, GiveUp},
	{ErrPermission, "PERMISSION", codes.PermissionDenied, syscall.EACCES, GiveUp},
	{ErrNotPermitted, "NOT_PERMITTED", codes.PermissionDenied, syscall.EPERM, GiveUp},
	{ErrNoSpace, "NO_SPACE", codes.ResourceExhausted, syscall.ENOSPC, GiveUp},
	{ErrUnsupported, "UNSUPPORTED", codes.Unimplemented, syscall.ENOTSUP, GiveUp},
	{ErrLoop, "LOOP", codes.FailedPrecondition, syscall.ELOOP, GiveUp},
	{ErrTooManyLinks, "TOO_MANY_LINKS", codes.FailedPrecondition, syscall.EMLINK, GiveUp},
	{ErrFileTooLarge, "FILE_TOO_LARGE", codes.OutOfRange, syscall.EFBIG, GiveUp},
	{ErrNoAttr, "NO_ATTR", codes.NotFound, syscall.ENODATA, GiveUp},
	{ErrRange, "RANGE", codes.OutOfRange, syscall.ERANGE, GiveUp},
	{ErrTooBig, "TOO_BIG", codes.InvalidArgument, syscall.E2BIG, GiveUp},
	{ErrReadOnly, "READ_ONLY", codes.FailedPrecondition, syscall.EROFS, GiveUp},
	{ErrStaleInode, "STALE_INODE", codes.NotFound, syscall.ESTALE, GiveUp},
	{ErrBadHandle, "BAD_HANDLE", codes.FailedPrecondition, syscall.EBADF, GiveUp},
	{ErrStaleVersion, "STALE_VERSION", codes.FailedPrecondition, syscall.ESTALE, Refresh},
	{ErrNotPrimary, "NOT_PRIMARY", codes.FailedPrecondition, syscall.EIO, Refresh},
	{ErrLeaseExpired, "LEASE_EXPIRED", codes.FailedPrecondition, syscall.EIO, Refresh},
	{ErrChunkFull, "CHUNK_FULL", codes.OutOfRange, syscall.EIO, Refresh},
	{ErrNotTail, "NOT_TAIL", codes.FailedPrecondition, syscall.EIO, Refresh},
	{ErrInlineMoved, "INLINE_MOVED", codes.FailedPrecondition, syscall.EIO, Refresh},
	{ErrDuplicate, "DUPLICATE", codes.Aborted, syscall.EIO, GiveUp},
	{ErrNotLeader, "NOT_LEADER", codes.Unavailable, syscall.EAGAIN, Backoff},
	{ErrSafeMode, "SAFE_MODE", codes.Unavailable, syscall.EAGAIN, Backoff},
	{ErrLeaseHeld, "LEASE_HELD", codes.Unavailable, syscall.EAGAIN, Backoff},
	{ErrBusy, "BUSY", codes.Unavailable, syscall.EAGAIN, Backoff},
	{ErrRefused, "REFUSED", codes.Unavailable, syscall.EIO, Backoff},
	{ErrUnavailable, "UNAVAILABLE", codes.Unavailable, syscall.EIO, Backoff},
	{ErrCorrupt, "CORRUPT", codes.DataLoss, syscall.EIO, OtherReplica},
	{ErrNoReplica, "NO_REPLICA", codes.Unavailable, syscall.EIO, OtherReplica},
	{ErrTooFewReplicas, "TOO_FEW_REPLICAS", codes.Unavailable, syscall.EIO, Backoff},
	{ErrUnknownSession, "UNKNOWN_SESSION", codes.Unauthenticated, syscall.EIO, GiveUp},
	{ErrWrongCluster, "WRONG_CLUSTER", codes.FailedPrecondition, syscall.EIO, GiveUp},
	{ErrServerConflict, "SERVER_CONFLICT", codes.AlreadyExists, syscall.EIO, GiveUp},
	{ErrInUse, "IN_USE", codes.FailedPrecondition, syscall.EBUSY, GiveUp},
	{ErrFormat, "FORMAT", codes.FailedPrecondition, syscall.EIO, GiveUp},
	{ErrDiskFailed, "DISK_FAILED", codes.Unavailable, syscall.EIO, OtherReplica},
	{ErrWouldBlock, "WOULD_BLOCK", codes.FailedPrecondition, syscall.EAGAIN, GiveUp},
	{ErrDeadlock, "DEADLOCK", codes.FailedPrecondition, syscall.EDEADLK, GiveUp},
	{ErrNoLocks, "NO_LOCKS", codes.ResourceExhausted, syscall.ENOLCK, GiveUp},
	{ErrLocksLost, "LOCKS_LOST", codes.FailedPrecondition, syscall.EIO, GiveUp},
	{ErrClosed, "CLOSED", codes.FailedPrecondition, syscall.EBADF, GiveUp},
	{context.Canceled, "CANCELED", codes.Canceled, syscall.EINTR, GiveUp},
	{context.DeadlineExceeded, "DEADLINE_EXCEEDED", codes.DeadlineExceeded, syscall.ETIMEDOUT, GiveUp},
}

// ToStatus turns an error into what gRPC sends. nil stays nil; an error that already is a status passes
// unchanged; one that wraps no sentinel becomes Internal.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	r := rowOf(err)
	if r == nil {
		if _, ok := status.FromError(err); ok {
			return err
		}
		return status.Error(codes.Internal, err.Error())
	}
	st, detailErr := status.New(r.code, err.Error()).WithDetails(&errdetails.ErrorInfo{Reason: r.reason, Domain: domain})
	if detailErr != nil {
		return status.Error(r.code, err.Error())
	}
	return st.Err()
}

// FromStatus turns what gRPC delivered back into an error that wraps the sentinel. A status without our
// reason maps by what gRPC itself raises: Canceled, DeadlineExceeded, Unavailable (the peer cannot be
// reached), Unimplemented; anything else is returned as it is.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, d := range st.Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		if !ok || info.GetDomain() != domain {
			continue
		}
		for i := range table {
			if table[i].reason == info.GetReason() {
				return &remote{text: st.Message(), sentinel: table[i].sentinel}
			}
		}
	}
	switch st.Code() {
	case codes.Canceled:
		return &remote{text: st.Message(), sentinel: context.Canceled}
	case codes.DeadlineExceeded:
		return &remote{text: st.Message(), sentinel: context.DeadlineExceeded}
	case codes.Unavailable:
		return &remote{text: st.Message(), sentinel: ErrUnavailable}
	case codes.Unimplemented:
		return &remote{text: st.Message(), sentinel: ErrUnsupported}
	}
	return err
}

// remote is an error that came over the wire: the sender's text, our sentinel.
type remote struct {
	text     string
	sentinel error
}

func (r *remote) Error() string { return r.text }
func (r *remote) Unwrap() error { return r.sentinel }

// Errno returns the error number that POSIX callers see: 0 for nil, EIO for what the table does not know.
func Errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if r := rowOf(err); r != nil {
		return r.errno
	}
	return syscall.EIO
}

// Sentinel returns the member of the closed list that err wraps, or nil.
func Sentinel(err error) error {
	if r := rowOf(err); r != nil {
		return r.sentinel
	}
	return nil
}

// IsRefused reports whether err says that the peer's machine answered a dial and nothing listened there:
// ErrRefused, or the operating system's own error for it.
func IsRefused(err error) bool {
	return errors.Is(err, ErrRefused) || errors.Is(err, syscall.ECONNREFUSED)
}

// Reason returns the wire reason of the sentinel that err wraps: "" for nil, "INTERNAL" for what the table does not know. Replies that are
// not gRPC statuses (the master's cached results, acks on a stream) carry it.
func Reason(err error) string {
	if err == nil {
		return ""
	}
	if r := rowOf(err); r != nil {
		return r.reason
	}
	return "INTERNAL"
}

// FromReason turns a wire reason and its text back into an error that wraps the sentinel; nil for the empty reason. An unknown reason gives an
// error that wraps none.
func FromReason(reason, text string) error {
	if reason == "" {
		return nil
	}
	for i := range table {
		if table[i].reason == reason {
			return &remote{text: text, sentinel: table[i].sentinel}
		}
	}
	return errors.New(reason + ": " + text)
}
