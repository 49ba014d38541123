package master

import (
	"context"
	"sync"
)

// keyedLocks is a set of locks, one per key, that exist only while held or waited for.
type keyedLocks[K comparable] struct {
	mu   sync.Mutex
	held map[K]*keyedLock // guarded by mu
}

type keyedLock struct {
	sem  chan struct{} // holds one token while the lock is free
	refs int           // guarded by keyedLocks.mu: holder and waiters
}

// lock waits for the key's lock until ctx ends, and returns what releases it.
func (l *keyedLocks[K]) lock(ctx context.Context, key K) (unlock func(), err error) {
	k := l.ref(key)
	select {
	case <-k.sem:
		return func() { k.sem <- struct{}{}; l.unref(key, k) }, nil
	case <-ctx.Done():
		l.unref(key, k)
		return nil, ctx.Err()
	}
}

// tryLock takes the key's lock if it is free.
func (l *keyedLocks[K]) tryLock(key K) (unlock func(), ok bool) {
	k := l.ref(key)
	select {
	case <-k.sem:
		return func() { k.sem <- struct{}{}; l.unref(key, k) }, true
	default:
		l.unref(key, k)
		return nil, false
	}
}

func (l *keyedLocks[K]) ref(key K) *keyedLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		l.held = map[K]*keyedLock{}
	}
	k := l.held[key]
	if k == nil {
		k = &keyedLock{sem: make(chan struct{}, 1)}
		k.sem <- struct{}{}
		l.held[key] = k
	}
	k.refs++
	return k
}

func (l *keyedLocks[K]) unref(key K, k *keyedLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.refs--; k.refs == 0 {
		delete(l.held, key)
	}
}
