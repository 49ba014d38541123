package chunkserver

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// maxUnanswered is how many frames of one Write stream may be unanswered: a client that takes no acknowledgements is
// not listened to any further.
const maxUnanswered = 16 * 1024

// clientAck is an acknowledgement on its way to a client.
type clientAck struct {
	tag    uint64
	off    int64
	seq    dfs.Seq
	length int64
	err    error
	server dfs.ServerID
}

// writeStream is the serving end of a client's stream. One goroutine sends the acknowledgements, so that no chunk waits for
// a client that does not read them.
type writeStream struct {
	stream grpc.BidiStreamingServer[dfsv1.WriteFrame, dfsv1.WriteAck]
	window *window
	wake   chan struct{} // holds at most one token: there is something to send
	room   chan struct{} // holds at most one token: something was sent

	mu         sync.Mutex
	acks       []clientAck // guarded by mu
	unanswered int         // guarded by mu: frames taken whose acknowledgement has not been sent
}

// Write takes mutations from a client, for any number of chunks.
func (h *handlers) Write(stream grpc.BidiStreamingServer[dfsv1.WriteFrame, dfsv1.WriteAck]) error {
	s := h.srv
	ws := &writeStream{stream: stream, window: newWindow(s.cfg.StreamWindow), wake: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(stream.Context())
	sender := make(chan error, 1)
	go func() {
		err := ws.send(ctx)
		cancel()
		sender <- err
	}()
	err := ws.receive(ctx, s)
	if err == nil {
		err = ws.settle(ctx)
	}
	cancel()
	if sendErr := <-sender; err == nil && !errors.Is(sendErr, context.Canceled) {
		err = sendErr
	}
	return err
}

// receive takes frames until the client has no more.
func (ws *writeStream) receive(ctx context.Context, s *Server) error {
	for {
		w := &work{ws: ws, window: ws.window}
		w.frame.Header = &w.client
		w.holders.Store(1)
		if err := ws.stream.RecvMsg(&w.frame); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		ws.mu.Lock()
		ws.unanswered++
		ws.mu.Unlock()
		if err := s.admit(ctx, w); err != nil {
			return err
		}
		if err := ws.await(ctx, maxUnanswered); err != nil {
			w.release()
			return err
		}
		c, err := s.chunks.acquire(dfs.ChunkID(w.client.GetChunk()))
		if err != nil {
			w.refuse(0, err)
			continue
		}
		c.enqueue(w)
		s.chunks.release(c)
	}
}

// admit charges a received frame to its stream's window.
func (s *Server) admit(ctx context.Context, w *work) error {
	w.charged = int64(w.frame.Len()) + frameOverhead
	if err := w.window.acquire(ctx, w.charged); err != nil {
		w.frame.Free()
		return err
	}
	return nil
}

// await waits until at most n frames are unanswered.
func (ws *writeStream) await(ctx context.Context, n int) error {
	for {
		ws.mu.Lock()
		ok := ws.unanswered <= n
		ws.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ws.room:
		case <-ctx.Done():
			return dfserr.Errorf(context.Cause(ctx), "acknowledge writes")
		}
	}
}

// settle waits until every frame has its answer.
func (ws *writeStream) settle(ctx context.Context) error { return ws.await(ctx, 0) }

// done acknowledges a mutation. It does not block.
func (ws *writeStream) done(tag uint64, off int64, seq dfs.Seq, length int64) {
	ws.put(clientAck{tag: tag, off: off, seq: seq, length: length})
}

// fail says that a mutation was refused, or that its fate is not known; server is the replica that could not
// take it, or 0. It does not block.
func (ws *writeStream) fail(tag uint64, err error, server dfs.ServerID) {
	ws.put(clientAck{tag: tag, err: err, server: server})
}

func (ws *writeStream) put(a clientAck) {
	ws.mu.Lock()
	ws.acks = append(ws.acks, a)
	first := len(ws.acks) == 1
	ws.mu.Unlock()
	if first {
		select {
		case ws.wake <- struct{}{}:
		default:
		}
	}
}

// send sends acknowledgements until ctx ends or the stream breaks.
func (ws *writeStream) send(ctx context.Context) error {
	msg := new(dfsv1.WriteAck)
	var spare []clientAck
	for {
		ws.mu.Lock()
		batch := ws.acks
		ws.acks = spare[:0]
		ws.mu.Unlock()
		if len(batch) == 0 {
			spare = batch
			select {
			case <-ws.wake:
				continue
			case <-ctx.Done():
				return dfserr.Errorf(context.Canceled, "acknowledge writes")
			}
		}
		for i := range batch {
			batch[i].fill(msg)
			if err := ws.stream.SendMsg(msg); err != nil {
				return err
			}
		}
		ws.mu.Lock()
		ws.unanswered -= len(batch)
		ws.mu.Unlock()
		select {
		case ws.room <- struct{}{}:
		default:
		}
		clear(batch)
		spare = batch
	}
}

// fill writes the acknowledgement into a message.
func (a *clientAck) fill(msg *dfsv1.WriteAck) {
	msg.Reset()
	msg.Tag = a.tag
	if a.err != nil {
		msg.ErrorReason, msg.ErrorText, msg.FailedServer = dfserr.Reason(a.err), a.err.Error(), uint64(a.server)
		return
	}
	msg.Offset, msg.Seq, msg.ChunkLength = a.off, uint64(a.seq), a.length
}
