package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"dfs/internal/dfserr"
	"dfs/internal/rpc"
)

// pair connects host a to host b and returns a's end and b's end.
func pair(t *testing.T, m *rpc.Mem) (net.Conn, net.Conn) {
	t.Helper()
	l, err := m.Host("b").Listen(t.Context(), ":0")
	if err != nil {
		t.Fatal(err)
	}
	a, err := m.Host("a").Dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}

// bubble runs f on a new network in a synctest bubble.
func bubble(t *testing.T, f func(t *testing.T, m *rpc.Mem)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, rpc.NewMem()) })
}

func readN(t *testing.T, c net.Conn, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMemBytes(t *testing.T) {
	bubble(t, func(t *testing.T, m *rpc.Mem) {
		a, b := pair(t, m)
		if a.RemoteAddr().String() != b.LocalAddr().String() || a.LocalAddr().String() != b.RemoteAddr().String() {
			t.Errorf("addresses %v %v, %v %v", a.LocalAddr(), a.RemoteAddr(), b.LocalAddr(), b.RemoteAddr())
		}
		data := bytes.Repeat([]byte("0123456789"), 100_000) // beyond the window
		go func() {
			_, _ = a.Write(data)
			_ = a.Close()
		}()
		got, err := io.ReadAll(b)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if _, err := b.Write([]byte("x")); err == nil {
			t.Error("writing to a closed reader succeeded")
		}
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("reading a closed end: %v", err)
		}
	})
}

func TestMemWindowAndDeadlines(t *testing.T) {
	bubble(t, func(t *testing.T, m *rpc.Mem) {
		a, b := pair(t, m)
		_ = a.SetWriteDeadline(time.Now().Add(3 * time.Second))
		start := time.Now()
		n, err := a.Write(make([]byte, 1<<20))
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 3*time.Second || n != 256<<10 {
			t.Fatalf("wrote %d: %v after %v", n, err, time.Since(start))
		}
		_ = a.SetReadDeadline(time.Now().Add(time.Second))
		start = time.Now()
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Fatalf("read: %v after %v", err, time.Since(start))
		}
		_ = a.SetDeadline(time.Time{})
		go func() { _, _ = b.Write([]byte("y")) }()
		if got := readN(t, a, 1); got[0] != 'y' {
			t.Fatalf("got %q", got)
		}
		// A deadline set while a read waits ends it.
		go func() {
			time.Sleep(time.Second)
			_ = a.SetReadDeadline(time.Now())
		}()
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read: %v", err)
		}
	})
}

func TestMemCutAndHeal(t *testing.T) {
	bubble(t, func(t *testing.T, m *rpc.Mem) {
		a, b := pair(t, m)
		m.CutOneWay("a", "b")
		if _, err := a.Write([]byte("held")); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Write([]byte("flows")); err != nil {
			t.Fatal(err)
		}
		if got := readN(t, a, 5); string(got) != "flows" {
			t.Fatalf("got %q", got)
		}
		_ = b.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := b.Read(make([]byte, 4)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("bytes came through a cut: %v", err)
		}
		_ = b.SetReadDeadline(time.Time{})
		m.Heal("a", "b")
		if got := readN(t, b, 4); string(got) != "held" {
			t.Fatalf("got %q", got)
		}
	})
}

func TestMemDelay(t *testing.T) {
	bubble(t, func(t *testing.T, m *rpc.Mem) {
		a, b := pair(t, m)
		m.SetDelay("a", "b", 100*time.Millisecond)
		start := time.Now()
		_, _ = a.Write([]byte("one"))
		m.SetDelay("a", "b", 0) // what follows does not overtake
		_, _ = a.Write([]byte("two"))
		if got := readN(t, b, 6); string(got) != "onetwo" || time.Since(start) != 100*time.Millisecond {
			t.Fatalf("got %q after %v", got, time.Since(start))
		}
		m.SetDelay("a", "b", 200*time.Millisecond)
		m.SetDelay("b", "a", 300*time.Millisecond)
		l, err := m.Host("b").Listen(t.Context(), "b:80")
		if err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		c, err := m.Host("a").Dial(t.Context(), "b:80")
		if err != nil || time.Since(start) != 500*time.Millisecond {
			t.Fatalf("dial: %v after %v", err, time.Since(start))
		}
		_ = l.Close()
		_ = c.Close()
	})
}

func TestMemPause(t *testing.T) {
	bubble(t, func(t *testing.T, m *rpc.Mem) {
		a, b := pair(t, m)
		l, err := m.Host("b").Listen(t.Context(), "b:80")
		if err != nil {
			t.Fatal(err)
		}
		m.Pause("b")
		_, _ = a.Write([]byte("x"))
		c, err := m.Host("a").Dial(t.Context(), "b:80")
		if err != nil {
			t.Fatalf("dialling a paused host: %v", err)
		}
		var accepted net.Conn
		done := make(chan struct{})
		go func() { defer close(done); accepted, _ = l.Accept() }()
		_ = b.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a paused host received: %v", err)
		}
		_ = b.SetReadDeadline(time.Time{})
		select {
		case <-done:
			t.Fatal("a paused host accepted")
		default:
		}
		m.Resume("b")
		<-done
		readN(t, b, 1)
		_ = accepted.Close()
		_ = c.Close()
		_ = l.Close()
	})
}

func TestMemKill(t *testing.T) {
	bubble(t, func(t *testing.T, m *rpc.Mem) {
		a, b := pair(t, m)
		l, err := m.Host("b").Listen(t.Context(), "b:80")
		if err != nil {
			t.Fatal(err)
		}
		waiting, err := m.Host("a").Dial(t.Context(), "b:80") // in the backlog
		if err != nil {
			t.Fatal(err)
		}
		bNet := m.Host("b")
		m.Kill("b")
		for name, c := range map[string]net.Conn{"open": a, "not yet accepted": waiting} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, dfserr.ErrUnavailable) {
				t.Errorf("%s: read after the kill: %v", name, err)
			}
			if _, err := c.Write([]byte("x")); !errors.Is(err, dfserr.ErrUnavailable) {
				t.Errorf("%s: write after the kill: %v", name, err)
			}
		}
		if _, err := b.Read(make([]byte, 1)); err == nil {
			t.Error("the dead process still reads")
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v", err)
		}
		if _, err := m.Host("a").Dial(t.Context(), "b:80"); !rpc.IsRefused(err) {
			t.Errorf("dial to: %v", err)
		}
		if _, err := bNet.Dial(t.Context(), "a:1"); err == nil || rpc.IsRefused(err) {
			t.Errorf("dial from: %v", err)
		}
		l2, err := bNet.Listen(t.Context(), "b:80") // it starts again
		if err != nil {
			t.Fatal(err)
		}
		c, err := m.Host("a").Dial(t.Context(), "b:80")
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		_ = waiting.Close()
		_ = l2.Close()
	})
}

// TestMemKillBehindCut: the news of a death does not cross a cut.
func TestMemKillBehindCut(t *testing.T) {
	bubble(t, func(t *testing.T, m *rpc.Mem) {
		a, _ := pair(t, m)
		m.Cut("a", "b")
		m.Kill("b")
		if _, err := a.Write([]byte("x")); err != nil {
			t.Errorf("write: %v", err)
		}
		_ = a.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		m.Heal("a", "b")
		_ = a.SetReadDeadline(time.Time{})
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, dfserr.ErrUnavailable) {
			t.Errorf("read after healing: %v", err)
		}
	})
}

func TestMemDial(t *testing.T) {
	bubble(t, func(t *testing.T, m *rpc.Mem) {
		a := m.Host("a")
		if _, err := a.Dial(t.Context(), "b:80"); !rpc.IsRefused(err) {
			t.Errorf("nobody listens: %v", err)
		}
		l, err := m.Host("b").Listen(t.Context(), "b:80")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Host("b").Listen(t.Context(), ":80"); !errors.Is(err, dfserr.ErrInUse) {
			t.Errorf("listening twice: %v", err)
		}
		if _, err := a.Listen(t.Context(), "b:81"); !errors.Is(err, dfserr.ErrInvalid) {
			t.Errorf("listening for another host: %v", err)
		}
		m.Cut("a", "b")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		start := time.Now()
		if _, err := a.Dial(ctx, "b:80"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 5*time.Second {
			t.Errorf("dial through a cut: %v after %v", err, time.Since(start))
		}
		cancel()
		go func() { time.Sleep(time.Second); m.Heal("a", "b") }()
		c, err := a.Dial(t.Context(), "b:80")
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		// A full backlog makes dials wait.
		var conns []net.Conn
		for range 127 {
			c, err := a.Dial(t.Context(), "b:80")
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		if _, err := a.Dial(ctx, "b:80"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial with a full backlog: %v", err)
		}
		cancel()
		_ = l.Close()
		for _, c := range conns {
			_ = c.Close()
		}
		if _, err := a.Dial(t.Context(), "b:80"); !rpc.IsRefused(err) {
			t.Errorf("after Close: %v", err)
		}
	})
}
