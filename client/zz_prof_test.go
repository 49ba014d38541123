package client_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"
	"time"
	"syscall"
	"strings"

	"dfs/client"
)

func cpu() time.Duration {
	var r syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano()+r.Stime.Nano())
}

func TestZZ(t *testing.T) {
	m := os.Getenv("ZZ")
	if m == "" {
		t.Skip()
	}
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Config{Masters: strings.Split(m, ",")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const n = 1 << 30
	if _, err := c.Stat(ctx, "/zz"); err != nil {
		f, err := c.Create(ctx, "/zz", 0o644)
		if err != nil {
			t.Fatal(err)
		}
		start, c0 := time.Now(), cpu()
		w := f.Buffered()
		if _, err := w.ReadFrom(io.LimitReader(zeros{}, n)); err != nil {
			t.Fatal(err)
		}
		w.Sync(ctx)
		w.Close()
		t.Logf("write %.0f MiB/s, %v cpu", 1024/time.Since(start).Seconds(), cpu()-c0)
	}
	for range 3 {
		f, _ := c.Open(ctx, "/zz")
		start, c0 := time.Now(), cpu()
		k, err := f.WriteTo(io.Discard)
		t.Logf("WriteTo %.0f MiB/s, %v cpu, %d %v", float64(k)/(1<<20)/time.Since(start).Seconds(), cpu()-c0, k, err)
		f.Close()
	}
	f, _ := c.Open(ctx, "/zz")
	start, c0 := time.Now(), cpu()
	k, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, 1<<20))
	t.Logf("Read 1M %.0f MiB/s, %v cpu, %d %v", float64(k)/(1<<20)/time.Since(start).Seconds(), cpu()-c0, k, err)
	f.Close()
	f, _ = c.OpenFile(ctx, "/zza", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	f.Write(bytes.Repeat([]byte("x"), 5000))
	start, c0 = time.Now(), cpu()
	p := make([]byte, 4096)
	for range 3000 {
		if _, err := f.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	d := time.Since(start)
	t.Logf("append %.0f /s, %v each, cpu each %v", 3000/d.Seconds(), d/3000, (cpu()-c0)/3000)
	f.Close()
	f, _ = c.Open(ctx, "/zz")
	start, c0 = time.Now(), cpu()
	for i := range 10000 {
		if _, err := f.ReadAt(p, int64(i*7919%200000)*4096); err != nil {
			t.Fatal(err)
		}
	}
	d = time.Since(start)
	t.Logf("read4k %.0f /s, %v each, cpu each %v", 10000/d.Seconds(), d/10000, (cpu()-c0)/10000)
	f.Close()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
