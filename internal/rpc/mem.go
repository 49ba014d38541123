package rpc

import (
	"cmp"
	"context"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"dfs/internal/dfserr"
)

// Mem is a network in memory, for tests: named hosts, connections like TCP's (ordered, reliable, flow-controlled),
// and faults between hosts. Every wait is on a sync.Cond or a timer, so it works inside a testing/synctest bubble; a Mem
// belongs to the bubble that made it. Given the same calls in the same order it does the same. Safe for
// concurrent use.
//
// Faults act on bytes, as on a real network: while a direction is cut or a host is paused, what is written is
// kept (up to the window) and arrives after healing; nobody is told, keepalives and deadlines find out.
type Mem struct {
	mu    sync.Mutex
	cond  sync.Cond              // on mu: anything a Dial or an Accept waits for
	hosts map[string]*memHost    // guarded by mu
	links map[memLink]*linkState // guarded by mu: only those with a fault
	pipes map[*pipe]struct{}     // guarded by mu: all that are open
	made  uint64                 // guarded by mu: pipes made so far
}

// memLink is one direction between two hosts.
type memLink struct{ from, to string }

type linkState struct {
	cut   bool
	delay time.Duration
}

type memHost struct {
	name      string
	listeners map[string]*memListener // by address
	nextPort  int
	paused    bool
	down      bool // killed and not yet listening again
}

// NewMem returns a network without hosts; a host exists once it is named.
func NewMem() *Mem {
	m := &Mem{hosts: map[string]*memHost{}, links: map[memLink]*linkState{}, pipes: map[*pipe]struct{}{}}
	m.cond.L = &m.mu
	return m
}

// Host returns the network as the named host sees it. It also brings a killed host back.
func (m *Mem) Host(name string) Network {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hostLocked(name).down = false
	return &hostNetwork{m, name}
}

func (m *Mem) hostLocked(name string) *memHost {
	h := m.hosts[name]
	if h == nil {
		h = &memHost{name: name, listeners: map[string]*memListener{}, nextPort: 1}
		m.hosts[name] = h
	}
	return h
}

// Cut stops all bytes between hosts a and b, both ways. Dials hang until healed.
func (m *Mem) Cut(a, b string) {
	m.change(func() { m.linkLocked(a, b).cut, m.linkLocked(b, a).cut = true, true })
}

// CutOneWay stops the bytes sent by one host to another; the other direction flows.
func (m *Mem) CutOneWay(from, to string) { m.change(func() { m.linkLocked(from, to).cut = true }) }

// Heal ends cuts between a and b, both ways; what was kept arrives.
func (m *Mem) Heal(a, b string) {
	m.change(func() { m.linkLocked(a, b).cut, m.linkLocked(b, a).cut = false, false })
}

// SetDelay makes bytes from one host to another arrive d after they were written, for what is written from now on.
func (m *Mem) SetDelay(from, to string, d time.Duration) {
	m.change(func() { m.linkLocked(from, to).delay = d })
}

// Pause stops a host as SIGSTOP would, seen from outside: it neither sends nor receives, its connections stay,
// and dials to it succeed without being served. Its own timers run on.
func (m *Mem) Pause(host string) { m.change(func() { m.hostLocked(host).paused = true }) }

// Resume ends Pause.
func (m *Mem) Resume(host string) { m.change(func() { m.hostLocked(host).paused = false }) }

// Kill ends a host's process, seen from outside: its listeners and connections are gone, peers get a reset as soon as
// the network lets it through, and dials to it are refused until it listens again. Dials from it fail until it
// listens or Host is called for it.
func (m *Mem) Kill(host string) {
	m.mu.Lock()
	h := m.hostLocked(host)
	h.down, h.paused = true, false
	for addr, l := range h.listeners {
		l.closed = true
		delete(h.listeners, addr)
		for _, c := range l.backlog {
			c.reset()
		}
		l.backlog = nil
	}
	victims := slices.DeleteFunc(m.pipesLocked(), func(p *pipe) bool { return p.link.from != host && p.link.to != host })
	m.applyLocked()
	m.mu.Unlock()
	for _, p := range victims {
		p.reset(p.link.from == host)
		if p.link.to == host {
			p.abandon()
		}
	}
}

func (m *Mem) linkLocked(from, to string) *linkState {
	k := memLink{from, to}
	l := m.links[k]
	if l == nil {
		l = &linkState{}
		m.links[k] = l
	}
	return l
}

// change runs f, then tells every pipe and every waiter.
func (m *Mem) change(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	m.applyLocked()
}

// pipesLocked returns the open pipes in the order in which they were made.
func (m *Mem) pipesLocked() []*pipe {
	return slices.SortedFunc(maps.Keys(m.pipes), func(a, b *pipe) int { return cmp.Compare(a.id, b.id) })
}

func (m *Mem) applyLocked() {
	for _, p := range m.pipesLocked() {
		stalled, delay := m.pathLocked(p.link)
		p.setFaults(stalled, delay)
	}
	m.cond.Broadcast()
}

// pathLocked says whether bytes along a link are held, and for how long they travel.
func (m *Mem) pathLocked(k memLink) (stalled bool, delay time.Duration) {
	stalled = m.hostLocked(k.from).paused || m.hostLocked(k.to).paused
	if l := m.links[k]; l != nil {
		stalled = stalled || l.cut
		delay = l.delay
	}
	return stalled, delay
}

func (m *Mem) cutLocked(from, to string) bool {
	l := m.links[memLink{from, to}]
	return l != nil && l.cut
}

// forget drops pipes that carry nothing any more.
func (m *Mem) forget(p *pipe) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pipes, p)
}

// hostNetwork is a Mem seen from one host.
type hostNetwork struct {
	m    *Mem
	host string
}

type memAddr string

func (memAddr) Network() string  { return "mem" }
func (a memAddr) String() string { return string(a) }

// Listen accepts "host:port" with this host's name or an empty host, and port 0 for a free one.
func (n *hostNetwork) Listen(_ context.Context, addr string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || (host != "" && host != n.host) {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "listen on %q at host %q", addr, n.host)
	}
	m := n.m
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.hostLocked(n.host)
	for port == "0" || port == "" {
		candidate := strconv.Itoa(h.nextPort)
		h.nextPort++
		if h.listeners[net.JoinHostPort(n.host, candidate)] == nil {
			port = candidate
		}
	}
	full := net.JoinHostPort(n.host, port)
	if h.listeners[full] != nil {
		return nil, dfserr.Errorf(dfserr.ErrInUse, "listen on %s", full)
	}
	h.down = false
	l := &memListener{m: m, host: h, addr: memAddr(full)}
	h.listeners[full] = l
	return l, nil
}

// backlogLimit is how many connections wait to be accepted before dials wait themselves.
const backlogLimit = 128

// Dial connects; it waits while the path is cut, this host is paused, or the backlog is full.
func (n *hostNetwork) Dial(ctx context.Context, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "dial %q", addr)
	}
	m := n.m
	stop := context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.cond.Broadcast()
	})
	defer stop()
	if err := n.travel(ctx, host, addr); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		if ctx.Err() != nil {
			return nil, dfserr.Errorf(ctx.Err(), "dial %s", addr)
		}
		self := m.hostLocked(n.host)
		if self.down {
			return nil, dfserr.Errorf(dfserr.ErrUnavailable, "dial %s: host %s is down", addr, n.host)
		}
		if !self.paused && !m.cutLocked(n.host, host) && !m.cutLocked(host, n.host) {
			l := m.hostLocked(host).listeners[addr]
			if l == nil {
				return nil, dfserr.Errorf(dfserr.ErrRefused, "dial %s", addr)
			}
			if len(l.backlog) < backlogLimit {
				return n.connectLocked(self, l), nil
			}
		}
		m.cond.Wait()
	}
}

// travel waits for the round trip that opening a connection takes.
func (n *hostNetwork) travel(ctx context.Context, host, addr string) error {
	n.m.mu.Lock()
	_, out := n.m.pathLocked(memLink{n.host, host})
	_, back := n.m.pathLocked(memLink{host, n.host})
	n.m.mu.Unlock()
	if out+back <= 0 {
		return nil
	}
	t := time.NewTimer(out + back)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return dfserr.Errorf(ctx.Err(), "dial %s", addr)
	}
}

// connectLocked makes the two pipes of a connection and queues its far end.
func (n *hostNetwork) connectLocked(self *memHost, l *memListener) net.Conn {
	local := memAddr(net.JoinHostPort(n.host, strconv.Itoa(1<<16+self.nextPort)))
	self.nextPort++
	out := newPipe(n.m, memLink{n.host, l.host.name})
	in := newPipe(n.m, memLink{l.host.name, n.host})
	for _, p := range []*pipe{out, in} {
		p.stalled, p.delay = n.m.pathLocked(p.link)
		n.m.made++
		p.id = n.m.made
		n.m.pipes[p] = struct{}{}
	}
	l.backlog = append(l.backlog, &memConn{in: out, out: in, local: l.addr, remote: local})
	n.m.cond.Broadcast()
	return &memConn{in: in, out: out, local: local, remote: l.addr}
}

// memListener hands out connections; its fields are guarded by Mem.mu.
type memListener struct {
	m       *Mem
	host    *memHost
	addr    memAddr
	backlog []*memConn
	closed  bool
}

func (l *memListener) Addr() net.Addr { return l.addr }

func (l *memListener) Accept() (net.Conn, error) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	for {
		if l.closed {
			return nil, &net.OpError{Op: "accept", Net: "mem", Addr: l.addr, Err: net.ErrClosed}
		}
		if len(l.backlog) > 0 && !l.host.paused {
			c := l.backlog[0]
			l.backlog = l.backlog[1:]
			l.m.cond.Broadcast()
			return c, nil
		}
		l.m.cond.Wait()
	}
}

func (l *memListener) Close() error {
	l.m.mu.Lock()
	if l.closed {
		l.m.mu.Unlock()
		return nil
	}
	l.closed = true
	if l.host.listeners[string(l.addr)] == l {
		delete(l.host.listeners, string(l.addr))
	}
	backlog := l.backlog
	l.backlog = nil
	l.m.cond.Broadcast()
	l.m.mu.Unlock()
	for _, c := range backlog {
		_ = c.Close()
	}
	return nil
}
