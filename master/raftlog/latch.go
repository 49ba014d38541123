package raftlog

import (
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
)

// latch closes once, on the first error after which this process must not acknowledge anything. Safe for concurrent use.
type latch struct {
	once   sync.Once
	ch     chan struct{}
	cause  atomic.Pointer[error]
	logger hclog.Logger
}

func newLatch(logger hclog.Logger) *latch { return &latch{ch: make(chan struct{}), logger: logger} }

// fail closes the latch and returns the error that closed it first. nil does nothing.
func (l *latch) fail(err error) error {
	if err == nil {
		return nil
	}
	l.once.Do(func() {
		l.cause.Store(&err)
		l.logger.Error("raft storage failed, nothing is acknowledged any more", "error", err)
		close(l.ch)
	})
	return l.err()
}

// err returns why the latch closed, nil while it is open.
func (l *latch) err() error {
	if p := l.cause.Load(); p != nil {
		return *p
	}
	return nil
}
