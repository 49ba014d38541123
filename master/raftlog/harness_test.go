package raftlog

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// applied is one entry in a listState.
type applied struct {
	index dfs.Index
	data  string
}

// listState is a state machine whose state is the list of what was applied. Like package kv it may lose, at a power loss, what was not synced.
type listState struct {
	mu      sync.Mutex
	list    []applied
	synced  int // length of the durable part
	pins    map[dfs.Index]int
	applies int // calls of ApplyBatch that did something
	replays int // entries applied
	syncErr error
	failAt  string // the entry with these bytes cannot be applied, nor what follows
}

func newListState() *listState { return &listState{pins: make(map[dfs.Index]int)} }

func (s *listState) Applied() dfs.Index {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.appliedLocked()
}

func (s *listState) appliedLocked() dfs.Index {
	if len(s.list) == 0 {
		return 0
	}
	return s.list[len(s.list)-1].index
}

func (s *listState) SyncTo() (dfs.Index, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.syncErr != nil {
		return 0, s.syncErr
	}
	s.synced = len(s.list)
	return s.appliedLocked(), nil
}

func (s *listState) Pin(index dfs.Index) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pins[index]++
	return nil
}

func (s *listState) Unpin(index dfs.Index) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pins[index]--; s.pins[index] < 0 {
		panic("unpinned more often than pinned")
	}
}

func (s *listState) upTo(index dfs.Index) []applied {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.list)
	for n > 0 && s.list[n-1].index > index {
		n--
	}
	return slices.Clone(s.list[:n])
}

func (s *listState) WriteSnapshot(_ context.Context, index dfs.Index, w io.Writer) error {
	var b []byte
	for _, a := range s.upTo(index) {
		b = binary.BigEndian.AppendUint64(b, uint64(a.index))
		b = appendBytes(b, []byte(a.data))
	}
	_, err := w.Write(withSum(b))
	return err
}

func (s *listState) Restore(r io.ReadCloser) error {
	b, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	if b, err = checkSum(b); err != nil {
		return err
	}
	var list []applied
	for len(b) > 8 {
		a := applied{index: dfs.Index(binary.BigEndian.Uint64(b))}
		var data []byte
		if data, b, err = cutBytes(b[8:]); err != nil {
			return err
		}
		a.data = string(data)
		list = append(list, a)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list, s.synced = list, len(list)
	return nil
}

func (s *listState) ApplyBatch(logs []*raft.Log) []any {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applies++
	out := make([]any, len(logs))
	for i, l := range logs {
		if s.failAt != "" && string(l.Data) == s.failAt {
			for j := i; j < len(logs); j++ {
				out[j] = dfserr.Errorf(dfserr.ErrCorrupt, "entry %d", l.Index)
			}
			break
		}
		if last := s.appliedLocked(); dfs.Index(l.Index) <= last {
			panic(fmt.Sprintf("entry %d after %d", l.Index, last))
		}
		s.list = append(s.list, applied{dfs.Index(l.Index), string(l.Data)})
		s.replays++
		out[i] = "did " + string(l.Data)
	}
	return out
}

func (s *listState) Apply(*raft.Log) any                 { panic("not called") }
func (s *listState) Snapshot() (raft.FSMSnapshot, error) { panic("not called") }
func (s *listState) data() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]string, len(s.list))
	for i, a := range s.list {
		out[i] = a.data
	}
	return out
}

// crash returns what a power loss leaves: all that was synced and the first keep entries of the rest.
func (s *listState) crash(keep func(n int) int) *listState {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := newListState()
	out.synced = s.synced + keep(len(s.list)-s.synced)
	out.list = slices.Clone(s.list[:out.synced])
	return out
}

// pipes is a Network in memory.
type pipes struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener
	cut       map[string]bool // hosts that nobody reaches
	conns     map[net.Conn][2]string
}

func newPipes() *pipes {
	return &pipes{listeners: make(map[string]*pipeListener), cut: make(map[string]bool), conns: make(map[net.Conn][2]string)}
}

// host returns the network as one host sees it.
func (p *pipes) host(name string) Network { return pipeHost{p, name} }

// isolate cuts a host off, or brings it back.
func (p *pipes) isolate(name string, cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut[name] = cut
	if !cut {
		return
	}
	for c, ends := range p.conns {
		if ends[0] == name || ends[1] == name {
			_ = c.Close()
			delete(p.conns, c)
		}
	}
}

type pipeHost struct {
	p    *pipes
	name string
}

func (h pipeHost) Listen(_ context.Context, addr string) (net.Listener, error) {
	h.p.mu.Lock()
	defer h.p.mu.Unlock()
	if h.p.listeners[addr] != nil {
		return nil, fmt.Errorf("address %s in use", addr)
	}
	l := &pipeListener{p: h.p, addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
	h.p.listeners[addr] = l
	return l, nil
}

func (h pipeHost) Dial(ctx context.Context, addr string) (net.Conn, error) {
	h.p.mu.Lock()
	l := h.p.listeners[addr]
	cut := h.p.cut[h.name] || h.p.cut[addr]
	h.p.mu.Unlock()
	if l == nil || cut {
		return nil, fmt.Errorf("dial %s: connection refused", addr)
	}
	a, b := net.Pipe()
	select {
	case l.conns <- b:
		h.p.mu.Lock()
		h.p.conns[a] = [2]string{h.name, addr}
		h.p.conns[b] = [2]string{h.name, addr}
		h.p.mu.Unlock()
		return a, nil
	case <-l.closed:
	case <-ctx.Done():
	}
	return nil, errors.Join(fmt.Errorf("dial %s: connection refused", addr), a.Close(), b.Close())
}

type pipeListener struct {
	p      *pipes
	addr   string
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.p.mu.Lock()
		defer l.p.mu.Unlock()
		delete(l.p.listeners, l.addr)
	})
	return nil
}

func (l *pipeListener) Addr() net.Addr { return address(l.addr) }

// config returns quick settings for a node called a.
func config(fsys vfs.FS, state *listState, network Network) Config {
	return Config{
		FS: fsys, ID: "a", Bind: "a", Network: network, Bootstrap: true, FSM: state, State: state,
		Heartbeat: 20 * time.Millisecond, SnapshotInterval: time.Hour, Logger: testLogger(),
	}
}

func testLogger() hclog.Logger {
	if testing.Verbose() && testing.CoverMode() == "never" {
		return hclog.New(&hclog.LoggerOptions{Level: hclog.Debug})
	}
	return hclog.NewNullLogger()
}

// open starts a node and waits until it leads.
func open(t testing.TB, cfg Config) *Node {
	t.Helper()
	n, err := Open(context.Background(), cfg)
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	must(t, n.WaitLeader(ctx))
	return n
}

// propose appends data and checks the answer.
func propose(t testing.TB, n *Node, data string) dfs.Index {
	t.Helper()
	v, index, err := n.Propose(context.Background(), []byte(data))
	must(t, err)
	if v != "did "+data || index == 0 {
		t.Fatalf("propose %q: %v at %d", data, v, index)
	}
	return index
}

func wantErr(t *testing.T, err, want error, words ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
	for _, w := range words {
		if !bytes.Contains([]byte(err.Error()), []byte(w)) {
			t.Fatalf("error %q does not say %q", err, w)
		}
	}
}

var _ = dfserr.ErrCorrupt
