package chunkserver

import (
	"context"
	"sync"
	"sync/atomic"

	"dfs/chunkserver/store"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// largeFrame is the payload in bytes from which a frame is worth a goroutine of its own.
const largeFrame = 64 * dfs.KiB

// frameOverhead is charged to a window for each frame on top of its payload, in bytes.
const frameOverhead = 1 * dfs.KiB

// work is one frame on its way through its chunk. The payload stays in the buffers that gRPC received it in until it
// is in the log and on its way to the successor.
type work struct {
	frame  rpc.Frame
	client dfsv1.WriteHeader   // of a client's frame
	link   dfsv1.ForwardHeader // of a predecessor's frame; for a client's, what its successor is sent
	ws     *writeStream        // where a client's frame came from
	fs     *forwardStream      // where a predecessor's frame came from

	window  *window // nil: the frame was made here
	charged int64
	holders atomic.Int32 // of the payload; the last one frees it
	tries   int          // activations begun for the sake of this frame
	asked   bool         // the master has been asked, for the sake of this frame, whether the file ends here

	mutation store.Mutation
}

// release drops one hold on the payload.
func (w *work) release() {
	if w.holders.Add(-1) == 0 {
		w.frame.Free()
		if w.window != nil {
			w.window.release(w.charged)
		}
	}
}

// fromClient reports whether the frame is a client's, to be ordered here.
func (w *work) fromClient() bool { return w.ws != nil }

// refuse answers a frame that is not taken, and drops it.
func (w *work) refuse(server dfs.ServerID, err error) {
	if w.ws != nil {
		w.ws.fail(w.client.GetTag(), err, server)
	} else if w.link.GetKind() != dfsv1.MutationKind_MUTATION_UNSPECIFIED {
		w.fs.fail(&w.link, err, server)
	}
	w.release()
}

// window bounds the payload bytes that one stream may have inside the server. One goroutine acquires; any number
// release.
type window struct {
	limit int64
	wake  chan struct{} // holds at most one token

	mu   sync.Mutex
	used int64 // guarded by mu
}

func newWindow(limit int64) *window { return &window{limit: limit, wake: make(chan struct{}, 1)} }

// acquire takes n bytes once the window has room; what is larger than the window fits an empty one.
func (w *window) acquire(ctx context.Context, n int64) error {
	for {
		w.mu.Lock()
		if w.used == 0 || w.used+n <= w.limit {
			w.used += n
			w.mu.Unlock()
			return nil
		}
		w.mu.Unlock()
		select {
		case <-w.wake:
		case <-ctx.Done():
			return dfserr.Errorf(ctx.Err(), "wait for room in a stream's window")
		}
	}
}

func (w *window) release(n int64) {
	w.mu.Lock()
	w.used -= n
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
