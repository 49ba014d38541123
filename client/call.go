package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// newBackoff returns the pauses between attempts at a master.
func newBackoff() rpc.Backoff {
	return rpc.Backoff{First: 10 * time.Millisecond, Last: time.Second}
}

// masters makes calls to whichever master leads. Safe for concurrent use.
type masters struct {
	pool    *rpc.Pool
	addrs   []string
	timeout time.Duration // of one attempt

	mu      sync.Mutex
	current int // guarded by mu: index in addrs of the one to try first

	// seen is the highest Raft index in any reply: what later reads must reflect.
	seen atomic.Uint64
}

// observe notes the index of a reply.
func (m *masters) observe(index uint64) {
	for {
		old := m.seen.Load()
		if index <= old || m.seen.CompareAndSwap(old, index) {
			return
		}
	}
}

// pick returns the master to try, and its turn for blame.
func (m *masters) pick() (dfsv1.MasterClient, int, error) {
	m.mu.Lock()
	i := m.current
	m.mu.Unlock()
	cc, err := m.pool.GetCalls(m.addrs[i])
	if err != nil {
		return nil, i, err
	}
	return dfsv1.NewMasterClient(cc), i, nil
}

// blame moves on to the next master unless somebody has already.
func (m *masters) blame(i int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == i {
		m.current = (i + 1) % len(m.addrs)
	}
}

// call makes attempts until one gives an answer: success, or an error that trying again does not change. Attempts
// that end in a Backoff-class error, a broken connection or the attempt's own time-out are repeated until ctx
// ends, at the next master when the one tried does not lead or does not answer. attempted, when not nil, is set before an attempt that
// may have reached a master without its answer reaching us ends, so the caller knows that the outcome was once in doubt.
func (m *masters) call(ctx context.Context, doubt *bool, attempt func(ctx context.Context, c dfsv1.MasterClient) error) error {
	var last error
	p := newBackoff()
	for {
		if err := ctx.Err(); err != nil {
			return m.gaveUp(err, last)
		}
		c, i, err := m.pick()
		if err != nil {
			return err
		}
		actx, cancel := context.WithTimeout(ctx, m.timeout)
		err = attempt(actx, c)
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			if doubt != nil {
				*doubt = true
			}
			if last == nil {
				last = err
			}
			return m.gaveUp(ctx.Err(), last)
		case errors.Is(err, dfserr.ErrNotLeader), rpc.IsRefused(err):
			m.blame(i)
		case errors.Is(err, dfserr.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
			// Also Canceled: a master that stops cancels its handlers.
			if doubt != nil {
				*doubt = true
			}
			m.blame(i)
		case dfserr.ClassOf(err) != dfserr.Backoff:
			return err
		}
		last = err
		if err := p.Wait(ctx); err != nil {
			return m.gaveUp(err, last)
		}
	}
}

// gaveUp says why a call ended without an answer. When time ran out it is the last failure that counts.
func (m *masters) gaveUp(ctxErr, last error) error {
	if last == nil || errors.Is(ctxErr, context.Canceled) {
		return ctxErr
	}
	if errors.Is(last, dfserr.ErrUnavailable) || errors.Is(last, dfserr.ErrNotLeader) || dfserr.Sentinel(last) == context.DeadlineExceeded {
		what := "no master could be reached"
		if errors.Is(last, dfserr.ErrNotLeader) {
			what = "no leading master was found"
		}
		return &gaveUpError{fmt.Sprintf("%s (tried %s): %v", what, strings.Join(m.addrs, ", "), last), last}
	}
	return &gaveUpError{fmt.Sprintf("gave up: %v", last), last}
}

// gaveUpError is the end of a retry loop.
type gaveUpError struct {
	text string
	last error
}

func (e *gaveUpError) Error() string { return e.text }

// Unwrap: the time-out of our own attempts is the master's absence, not the caller's deadline.
func (e *gaveUpError) Unwrap() error {
	if dfserr.Sentinel(e.last) == context.DeadlineExceeded {
		return dfserr.ErrUnavailable
	}
	return e.last
}

// opContext bounds one operation.
func (c *Client) opContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.cfg.OpTimeout)
}

// ask makes a reading call.
func (c *Client) ask(ctx context.Context, attempt func(ctx context.Context, m dfsv1.MasterClient) error) error {
	if c.closed.Load() {
		return dfserr.Errorf(dfserr.ErrClosed, "client")
	}
	ctx, cancel := c.opContext(ctx)
	defer cancel()
	return c.masters.call(ctx, nil, attempt)
}

// caller is the identity as the wire has it.
func (c *Client) caller() *dfsv1.Caller { return c.callerMsg }

// minIndex is what reads must reflect.
func (c *Client) minIndex() uint64 { return c.masters.seen.Load() }

// pathErr wraps err as os does; nil stays nil.
func pathErr(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// ref names an inode by an absolute path. It checks what can be checked here.
func ref(path string, noFollow bool) (*dfsv1.Ref, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	return &dfsv1.Ref{Path: []byte(path), NoFollow: noFollow}, nil
}

// checkPath tells what is wrong with a path: not absolute, too long, a NUL, a name over NameMax.
func checkPath(path string) error {
	if path == "" || path[0] != '/' {
		return dfserr.Errorf(dfserr.ErrInvalid, "path %q is not absolute", path)
	}
	_, err := dfs.SplitPath([]byte(path))
	return err
}

// parentRef cuts a path into the reference of its directory and its last name.
func parentRef(path string) (*dfsv1.Ref, []byte, error) {
	if err := checkPath(path); err != nil {
		return nil, nil, err
	}
	dir, base, err := dfs.SplitDirBase(path)
	if err != nil {
		return nil, nil, err
	}
	return &dfsv1.Ref{Path: []byte(dir)}, []byte(base), nil
}
