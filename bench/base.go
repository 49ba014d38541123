package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"dfs/internal/dfs"
)

// The bases: what this machine does without us, measured beside each row.

// baseThreeFiles writes the stream's bytes to three local files in turn, 1 MiB at a time, each fsynced. MiB/s of one copy.
func baseThreeFiles(_ context.Context, e *env) (float64, error) {
	began := time.Now()
	for i := range 3 {
		name := filepath.Join(e.dir, fmt.Sprintf("base-%d", i))
		if err := writeLocal(name, e.streamBytes); err != nil {
			return 0, err
		}
		defer os.Remove(name)
	}
	return mibPerSecond(e.streamBytes, time.Since(began)), nil
}

// writeLocal writes n pseudo-random bytes and fsyncs.
func writeLocal(name string, n int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := randomBytes(dfs.MiB, 1)
	for done := int64(0); done < n; done += int64(len(buf)) {
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	return f.Sync()
}

// baseLocalRead reads one local file of the stream's size with caches dropped. MiB/s.
func baseLocalRead(_ context.Context, e *env) (float64, error) {
	name := filepath.Join(e.dir, "base-read")
	if _, err := os.Stat(name); err != nil {
		if err := writeLocal(name, e.streamBytes); err != nil {
			return 0, err
		}
	}
	if err := dropCaches(); err != nil {
		return 0, err
	}
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, dfs.MiB)
	began := time.Now()
	for {
		_, err := f.Read(buf)
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, err
		}
	}
	return mibPerSecond(e.streamBytes, time.Since(began)), nil
}

// baseTCP moves the stream's bytes through one raw loopback TCP connection in 1 MiB writes. MiB/s.
func baseTCP(_ context.Context, e *env) (float64, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	received := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			received <- err
			return
		}
		defer c.Close()
		buf := make([]byte, dfs.MiB)
		for got := int64(0); got < e.streamBytes; {
			n, err := c.Read(buf)
			if err != nil {
				received <- err
				return
			}
			got += int64(n)
		}
		received <- nil
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	buf := randomBytes(dfs.MiB, 2)
	began := time.Now()
	for sent := int64(0); sent < e.streamBytes; sent += int64(len(buf)) {
		if _, err := c.Write(buf); err != nil {
			return 0, err
		}
	}
	if err := <-received; err != nil {
		return 0, err
	}
	return mibPerSecond(e.streamBytes, time.Since(began)), nil
}

// baseUnary returns a base that makes unary gRPC calls over loopback from `callers` goroutines; each
// reply carries replyBytes. Calls per second.
func baseUnary(callers, replyBytes int) func(context.Context, *env) (float64, error) {
	return func(ctx context.Context, e *env) (float64, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		reply := wrapperspb.Bytes(make([]byte, replyBytes))
		server := grpc.NewServer()
		server.RegisterService(&grpc.ServiceDesc{
			ServiceName: "bench.Unary", HandlerType: (*any)(nil),
			Methods: []grpc.MethodDesc{{MethodName: "Call", Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				return reply, decode(&wrapperspb.BytesValue{})
			}}},
		}, nil)
		go server.Serve(l)
		defer server.Stop()
		conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		request := wrapperspb.Bytes(make([]byte, 64))
		return e.callRate(ctx, callers, func(ctx context.Context, _, _ int) error {
			return conn.Invoke(ctx, "/bench.Unary/Call", request, &wrapperspb.BytesValue{})
		})
	}
}

// baseAppendSync appends 4 KiB to a local file and fdatasyncs, one at a time. Per second.
func baseAppendSync(_ context.Context, e *env) (float64, error) {
	name := filepath.Join(e.dir, "base-append")
	f, err := os.Create(name)
	if err != nil {
		return 0, err
	}
	defer os.Remove(name)
	defer f.Close()
	buf := randomBytes(4*dfs.KiB, 3)
	n := 0
	began := time.Now()
	for time.Since(began) < e.window {
		if _, err := f.Write(buf); err != nil {
			return 0, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return 0, err
		}
		n++
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// baseCopyTree is `cp -r` of the tree and sync on the local disk. Seconds.
func baseCopyTree(_ context.Context, e *env) (float64, error) {
	dst := filepath.Join(e.dir, "base-tree")
	defer os.RemoveAll(dst)
	began := time.Now()
	if out, err := exec.Command("cp", "-r", e.tree, dst).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("cp -r: %w: %s", err, bytes.TrimSpace(out))
	}
	f, err := os.Open(e.dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	const sysSyncfs = 306
	if _, _, errno := syscall.Syscall(sysSyncfs, f.Fd(), 0, 0); errno != 0 {
		return 0, errno
	}
	return time.Since(began).Seconds(), nil
}

// callRate runs call from n goroutines for the window, notes the CPU use per call, and returns calls per second. call gets the
// goroutine's number and how many calls that goroutine has made before.
func (e *env) callRate(ctx context.Context, n int, call func(ctx context.Context, caller, i int) error) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var total atomic.Int64
	var first error
	var once sync.Once
	var wg sync.WaitGroup
	cpu := e.cpuSeconds()
	began := time.Now()
	for caller := range n {
		wg.Go(func() {
			for i := 0; time.Since(began) < e.window && ctx.Err() == nil; i++ {
				if err := call(ctx, caller, i); err != nil {
					once.Do(func() { first = err; cancel() })
					return
				}
				total.Add(1)
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	e.noteCalls(cpu, int(total.Load()))
	return float64(total.Load()) / took.Seconds(), first
}

// noteCalls notes the CPU use per call of n calls that began when cpuSeconds was before.
func (e *env) noteCalls(before float64, n int) {
	if n > 0 {
		e.cpuPerCall = append(e.cpuPerCall, (e.cpuSeconds()-before)/float64(n)*1e6)
	}
}

func mibPerSecond(n int64, d time.Duration) float64 {
	return float64(n) / dfs.MiB / d.Seconds()
}

func randomBytes(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	r.Read(b)
	return b
}

// dropCaches empties the page cache, so that reads come from the disk. Needs root.
func dropCaches() error {
	syscall.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200)
}
