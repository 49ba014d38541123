package rpc

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"dfs/internal/dfserr"
)

// FaultFunc decides what happens to one unary call to addr; method is the full gRPC name
// ("/dfs.v1.Master/Create"). It must be safe for concurrent use.
type FaultFunc func(ctx context.Context, addr, method string) Fault

// Fault is what a test does to one unary call. The zero value does nothing. Effects combine in the order
// of the fields.
type Fault struct {
	// Delay holds the request back.
	Delay time.Duration
	// DropRequest loses the request: the peer never sees it and the caller gets ErrUnavailable.
	DropRequest bool
	// Duplicate delivers the request a second time after the first delivery was answered; the caller gets
	// the second answer.
	Duplicate bool
	// DropReply loses the answer: the peer has handled the request and the caller gets ErrUnavailable.
	DropReply bool
}

// apply runs call under the fault.
func (f Fault) apply(ctx context.Context, addr string, reply any, call func() error) error {
	if f.Delay > 0 {
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return dfserr.Errorf(ctx.Err(), "call to %s", addr)
		}
	}
	if f.DropRequest {
		return dfserr.Errorf(dfserr.ErrUnavailable, "call to %s: injected fault: request lost", addr)
	}
	if f.Duplicate {
		_ = call() // the answer of the first delivery is the one that is lost
		resetReply(reply)
	}
	err := call()
	if f.DropReply {
		resetReply(reply)
		return dfserr.Errorf(dfserr.ErrUnavailable, "call to %s: injected fault: reply lost", addr)
	}
	return err
}

func resetReply(reply any) {
	switch m := reply.(type) {
	case *Frame:
		m.Free()
	case proto.Message:
		proto.Reset(m)
	}
}
