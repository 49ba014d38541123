package chunkserver

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"dfs/chunkserver/store"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// pullRequest says what to copy from another replica's log.
type pullRequest struct {
	source  dfs.ServerID
	version dfs.Version // of the configuration under which the copy is made
	keep    dfs.Seq     // own mutations after this are dropped first
	whole   bool        // everything is replaced instead
	last    dfs.Seq     // the source's log end, if known
}

// pull makes the log here a copy of the source's. The caller holds the token.
func (c *chunk) pull(ctx context.Context, p pullRequest) error {
	if !p.whole {
		rep := c.replica()
		state, err := rep.State()
		if err != nil {
			return err
		}
		if state.LastSeq > p.keep {
			c.srv.log.Info("uncommitted mutations are dropped", "chunk", c.id, "from", p.keep+1, "to", state.LastSeq)
			if err := rep.DropAfter(p.keep); err != nil {
				return err
			}
		}
		if p.keep == p.last {
			return nil
		}
	}
	rep, err := c.srv.fetch(ctx, c.id, p)
	if err != nil {
		return err
	}
	c.setReplica(rep)
	return nil
}

// fetch receives log records from another server into the store, where they are durable when it returns. The replica
// returned replaces any other handle.
func (s *Server) fetch(ctx context.Context, id dfs.ChunkID, p pullRequest) (*store.Replica, error) {
	peer, err := s.dataPeer(p.source)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := peer.FetchLog(ctx, &dfsv1.FetchLogRequest{Chunk: uint64(id), Version: uint64(p.version), AfterSeq: uint64(p.keep), Whole: p.whole})
	if err != nil {
		return nil, err
	}
	recv, err := s.store().Receive(id, store.ReceiveOptions{Whole: p.whole})
	if err != nil {
		return nil, err
	}
	if err := receiveLog(stream, recv); err != nil {
		recv.Abort()
		return nil, err
	}
	return recv.Commit()
}

// receiveLog takes a stream of log bytes up to its end frame.
func receiveLog(stream grpc.ServerStreamingClient[dfsv1.LogFrame], recv *store.Receiver) error {
	header := new(dfsv1.LogHeader)
	frame := rpc.Frame{Header: header}
	for off := int64(0); ; {
		if err := stream.RecvMsg(&frame); err != nil {
			if errors.Is(err, io.EOF) {
				return dfserr.Errorf(dfserr.ErrCorrupt, "copied log ends after %d bytes, without an end", off)
			}
			return err
		}
		crc := uint32(0)
		for _, piece := range frame.Pieces() {
			crc = dfs.UpdateCRC(crc, piece)
		}
		n := int64(frame.Len())
		if header.GetLogOffset() != off || header.GetCrc() != crc {
			frame.Free()
			return dfserr.Errorf(dfserr.ErrCorrupt, "copied log at byte %d: frame of %d bytes for %d has checksum %08x, not %08x",
				off, n, header.GetLogOffset(), crc, header.GetCrc())
		}
		for _, piece := range frame.Pieces() {
			if _, err := recv.Write(piece); err != nil {
				frame.Free()
				return err
			}
		}
		frame.Free()
		off += n
		if header.GetEnd() {
			return nil
		}
	}
}

// FetchLog sends this replica's log, or its tail.
func (h *handlers) FetchLog(req *dfsv1.FetchLogRequest, stream grpc.ServerStreamingServer[dfsv1.LogFrame]) error {
	s := h.srv
	c, err := s.chunks.acquire(dfs.ChunkID(req.GetChunk()))
	if err != nil {
		return err
	}
	defer s.chunks.release(c)
	rep, err := c.source(dfs.Version(req.GetVersion()))
	if errors.Is(err, dfserr.ErrStaleVersion) {
		// A configuration that nobody has used yet: have it brought into use.
		if _, err = c.readable(stream.Context(), dfs.Version(req.GetVersion())); err == nil {
			rep, err = c.source(dfs.Version(req.GetVersion()))
		}
	}
	if err != nil {
		return err
	}
	reader, err := rep.LogReader(dfs.Seq(req.GetAfterSeq()), req.GetWhole())
	if err != nil {
		return c.noticeDamage(err)
	}
	defer reader.Close()
	header := new(dfsv1.LogHeader)
	for off := int64(0); ; {
		buf := s.buffers.Frame()
		n, err := fill(reader, *buf)
		if err != nil && !errors.Is(err, io.EOF) {
			s.buffers.Put(buf)
			return c.noticeDamage(err)
		}
		*buf = (*buf)[:n]
		header.Reset()
		header.LogOffset, header.Crc, header.End = off, dfs.CRC(*buf), err != nil
		if header.End {
			header.LastSeq, header.CommittedSeq = uint64(reader.LastSeq()), uint64(reader.Committed())
		}
		frame := rpc.Frame{Header: header, Data: mem.BufferSlice{s.buffers.Own(buf)}}
		sendErr := stream.SendMsg(&frame)
		frame.Free()
		if sendErr != nil {
			return sendErr
		}
		off += int64(n)
		if header.End {
			return nil
		}
	}
}

// source returns the replica to copy from, if it has the given version or was prepared for it.
func (c *chunk) source(version dfs.Version) (*store.Replica, error) {
	rep, err := c.open()
	if err != nil {
		return nil, err
	}
	state, err := rep.State()
	if err != nil {
		return nil, c.noticeDamage(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.corrupt != nil:
		return nil, c.corrupt
	case c.promised != version && state.Version != version:
		return nil, dfserr.Errorf(dfserr.ErrStaleVersion, "copy of chunk %s version %d: this replica has version %d", c.id, version, max(c.promised, state.Version))
	}
	return rep, nil
}

// noticeDamage notes the replica as corrupt if that is what err says, and returns err.
func (c *chunk) noticeDamage(err error) error {
	if errors.Is(err, dfserr.ErrCorrupt) {
		c.markCorrupt(err)
	}
	return err
}

// fill reads until p is full or the reader ends, which it tells by io.EOF along with the last bytes.
func fill(r io.Reader, p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m, err := r.Read(p[n:])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
