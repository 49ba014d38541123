package rpc

import (
	"io"
	"net"
	"os"
	"sync"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// pipeWindow is how many bytes one direction of a connection holds before its writer waits.
const pipeWindow = 256 * dfs.KiB

// pipe is one direction of a connection.
//
// Lock order: Mem.mu, then pipe.mu. A pipe never takes Mem.mu while it holds its own.
type pipe struct {
	m    *Mem
	id   uint64 // in order of making
	link memLink

	mu   sync.Mutex
	cond sync.Cond // on mu: any change below, and timers

	segs      []segment // guarded by mu, as all below: oldest first
	size      int       // bytes in segs
	stalled   bool      // nothing arrives: the direction is cut or an end is paused
	delay     time.Duration
	closed    bool // by the writer: io.EOF after segs
	abandoned bool // by the reader: writes fail
	broken    bool // the writer's host died: reset as soon as it is not stalled
	readBy    deadline
	writeBy   deadline
}

// segment is what one write left, to arrive at a time.
type segment struct {
	data    []byte
	readyAt time.Time // zero: at once
}

func newPipe(m *Mem, link memLink) *pipe {
	p := &pipe{m: m, link: link}
	p.cond.L = &p.mu
	return p
}

func (p *pipe) setFaults(stalled bool, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalled, p.delay = stalled, delay
	p.cond.Broadcast()
}

// reset breaks the pipe. At the host that died both ends fail at once; a peer finds out when the path is open.
func (p *pipe) reset(writerDied bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.broken = true
	if writerDied {
		p.segs, p.size = nil, 0
	}
	p.cond.Broadcast()
}

// abandon makes writes fail and reads return nothing.
func (p *pipe) abandon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.abandoned = true
	p.segs, p.size = nil, 0
	p.cond.Broadcast()
}

func (p *pipe) closeWrite() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.cond.Broadcast()
}

// wake is what timers do.
func (p *pipe) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cond.Broadcast()
}

func (p *pipe) errReset(op string) error {
	return dfserr.Errorf(dfserr.ErrUnavailable, "%s between %s and %s: connection reset", op, p.link.from, p.link.to)
}

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		var due time.Time
		switch {
		case p.abandoned:
			return 0, net.ErrClosed
		case p.readBy.passed():
			return 0, os.ErrDeadlineExceeded
		case p.stalled:
		case p.broken:
			return 0, p.errReset("read")
		case len(p.segs) > 0:
			due = p.segs[0].readyAt
			if due.IsZero() || !time.Now().Before(due) {
				return p.takeLocked(b), nil
			}
		case p.closed:
			return 0, io.EOF
		}
		if len(b) == 0 {
			return 0, nil
		}
		p.waitLocked(due)
	}
}

// waitLocked waits for a change, or for due when it is set.
func (p *pipe) waitLocked(due time.Time) {
	if due.IsZero() {
		p.cond.Wait()
		return
	}
	t := time.AfterFunc(time.Until(due), p.wake)
	p.cond.Wait()
	t.Stop()
}

// takeLocked moves what has arrived into b.
func (p *pipe) takeLocked(b []byte) int {
	n := 0
	now := time.Now()
	for n < len(b) && len(p.segs) > 0 {
		s := &p.segs[0]
		if !s.readyAt.IsZero() && now.Before(s.readyAt) {
			break
		}
		c := copy(b[n:], s.data)
		n += c
		s.data = s.data[c:]
		if len(s.data) > 0 {
			break
		}
		p.segs[0] = segment{}
		p.segs = p.segs[1:]
	}
	p.size -= n
	p.cond.Broadcast()
	return n
}

func (p *pipe) write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for {
		switch {
		case p.closed:
			return n, net.ErrClosed
		case (p.broken || p.abandoned) && !p.stalled: // while stalled the news does not arrive
			return n, p.errReset("write")
		case p.writeBy.passed():
			return n, os.ErrDeadlineExceeded
		case n == len(b):
			return n, nil
		case p.size < pipeWindow:
			c := min(len(b)-n, pipeWindow-p.size)
			p.putLocked(b[n : n+c])
			n += c
		default:
			p.cond.Wait()
		}
	}
}

// putLocked appends a copy of b.
func (p *pipe) putLocked(b []byte) {
	s := segment{data: append([]byte(nil), b...)}
	if p.delay > 0 {
		s.readyAt = time.Now().Add(p.delay)
	}
	if k := len(p.segs); k > 0 && s.readyAt.Before(p.segs[k-1].readyAt) {
		s.readyAt = p.segs[k-1].readyAt // bytes never overtake one another
	}
	p.segs = append(p.segs, s)
	p.size += len(b)
	p.cond.Broadcast()
}

// deadline is an instant that wakes the pipe when it comes; the pipe's mu guards it.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) set(p *pipe, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.stop()
	d.at = at
	if wait := time.Until(at); !at.IsZero() && wait > 0 {
		d.timer = time.AfterFunc(wait, p.wake)
	}
	p.cond.Broadcast()
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

// memConn is one end of a connection.
type memConn struct {
	in, out       *pipe
	local, remote memAddr
	closeOnce     sync.Once
}

func (c *memConn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *memConn) Write(b []byte) (int, error) { return c.out.write(b) }
func (c *memConn) LocalAddr() net.Addr         { return c.local }
func (c *memConn) RemoteAddr() net.Addr        { return c.remote }

func (c *memConn) Close() error {
	c.closeOnce.Do(func() {
		c.out.closeWrite()
		c.in.abandon()
		c.in.mu.Lock()
		c.in.readBy.stop()
		c.in.mu.Unlock()
		c.out.mu.Lock()
		c.out.writeBy.stop()
		c.out.mu.Unlock()
		c.in.m.forget(c.in)
	})
	return nil
}

// reset breaks both directions; Mem.mu may be held.
func (c *memConn) reset() {
	c.in.reset(true)
	c.out.reset(true)
}

func (c *memConn) SetDeadline(t time.Time) error {
	c.in.readBy.set(c.in, t)
	c.out.writeBy.set(c.out, t)
	return nil
}

func (c *memConn) SetReadDeadline(t time.Time) error {
	c.in.readBy.set(c.in, t)
	return nil
}

func (c *memConn) SetWriteDeadline(t time.Time) error {
	c.out.writeBy.set(c.out, t)
	return nil
}
