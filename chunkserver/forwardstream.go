package chunkserver

import (
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// outAck is an acknowledgement on its way to a predecessor.
type outAck struct {
	chunk      dfs.ChunkID
	version    dfs.Version
	activation uint64
	seq        dfs.Seq
	err        error
	server     dfs.ServerID
}

// forwardStream is the receiving end of a predecessor's stream. Acknowledgements are sent by whoever finds nobody sending.
type forwardStream struct {
	srv    *Server
	stream grpc.BidiStreamingServer[dfsv1.ForwardFrame, dfsv1.ForwardAck]
	window *window

	mu      sync.Mutex
	idle    sync.Cond // on mu: sending became false
	out     []outAck  // guarded by mu
	sending bool      // guarded by mu
	closed  bool      // guarded by mu: the handler is about to return
}

// Forward receives mutations from the chunkserver before this one in chains.
func (h *handlers) Forward(stream grpc.BidiStreamingServer[dfsv1.ForwardFrame, dfsv1.ForwardAck]) error {
	s := h.srv
	f := &forwardStream{srv: s, stream: stream, window: newWindow(s.cfg.StreamWindow)}
	f.idle.L = &f.mu
	defer f.close()
	for {
		w := &work{fs: f, window: f.window}
		w.frame.Header = &w.link
		w.holders.Store(1)
		if err := stream.RecvMsg(&w.frame); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := s.admit(stream.Context(), w); err != nil {
			return err
		}
		c, err := s.chunks.acquire(dfs.ChunkID(w.link.GetChunk()))
		if err != nil {
			w.refuse(s.ID(), err)
			continue
		}
		c.enqueue(w)
		s.chunks.release(c)
	}
}

// ack queues an acknowledgement; flush sends it. Later ones of the same activation replace earlier ones.
func (f *forwardStream) ack(a outAck) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.out); n > 0 {
		if last := &f.out[n-1]; last.err == nil && last.activation == a.activation && last.chunk == a.chunk {
			last.seq = max(last.seq, a.seq)
			return
		}
	}
	f.out = append(f.out, a)
}

// fail tells the predecessor of a mutation that is lost, and by whom. It does not block.
func (f *forwardStream) fail(l *dfsv1.ForwardHeader, err error, server dfs.ServerID) {
	f.mu.Lock()
	f.out = append(f.out, outAck{
		chunk: dfs.ChunkID(l.GetChunk()), version: dfs.Version(l.GetVersion()), activation: l.GetActivation(),
		seq: dfs.Seq(l.GetSeq()), err: err, server: server,
	})
	f.mu.Unlock()
	f.srv.start(f.flush)
}

// flush sends what is queued unless somebody does so already. Calling it on nil does nothing.
func (f *forwardStream) flush() {
	if f == nil {
		return
	}
	f.mu.Lock()
	if f.sending {
		f.mu.Unlock()
		return
	}
	f.sending = true
	msg := new(dfsv1.ForwardAck)
	var spare []outAck
	for len(f.out) > 0 && !f.closed {
		batch := f.out
		f.out = spare[:0]
		f.mu.Unlock()
		for i := range batch {
			a := &batch[i]
			msg.Reset()
			msg.Chunk, msg.Version, msg.Activation, msg.Seq = uint64(a.chunk), uint64(a.version), a.activation, uint64(a.seq)
			if a.err != nil {
				msg.ErrorReason, msg.ErrorText, msg.FailedServer = dfserr.Reason(a.err), a.err.Error(), uint64(a.server)
			}
			if f.stream.SendMsg(msg) != nil {
				break // the stream is over; its receiver finds out as well
			}
		}
		clear(batch)
		spare = batch
		f.mu.Lock()
	}
	f.sending = false
	f.idle.Broadcast()
	f.mu.Unlock()
}

// close keeps the stream from being used after its handler has returned.
func (f *forwardStream) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for f.sending {
		f.idle.Wait()
	}
}
