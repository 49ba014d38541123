package fake

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// Server is one chunkserver.
type Server struct {
	dfsv1.UnimplementedChunkServer
	ID         uint64
	Host, Addr string

	// OnWrite sees each frame before it is carried out: an error refuses it. OnAck sees it after: an error is sent in place
	// of the acknowledgement, ErrSilent sends none. OnRead sees each read; an error is returned. Mangle may change the payload of
	// an answer on its way out. Set them before the server is used, or through a synchronised closure.
	OnWrite func(ctx context.Context, h *dfsv1.WriteHeader) error
	OnAck   func(h *dfsv1.WriteHeader) error
	OnRead  func(ctx context.Context, r *dfsv1.ReadRequest) error
	Mangle  func(data []byte)
	OnSync  func(r *dfsv1.SyncRequest) error

	Reads, Writes, Syncs atomic.Int64

	c    *Cluster
	data map[uint64][]byte // guarded by Cluster.mu: replicas
}

// ErrSilent, from OnAck, loses the acknowledgement.
var ErrSilent = errors.New("no acknowledgement")

func (s *Server) start(t *testing.T) {
	s.c.serve(t, s.Host, s.Addr, func(g *grpc.Server) { dfsv1.RegisterChunkServer(g, s) })
}

// Restart makes a killed server listen again, with its data.
func (s *Server) Restart(t *testing.T) { s.start(t) }

// Corrupt flips a bit of a replica behind the checksums' back; the server itself notices.
func (s *Server) Corrupt() {
	s.OnRead = func(_ context.Context, r *dfsv1.ReadRequest) error {
		return dfserr.Errorf(dfserr.ErrCorrupt, "chunk %d", r.GetChunk())
	}
}

// Write implements the service.
func (s *Server) Write(stream grpc.BidiStreamingServer[dfsv1.WriteFrame, dfsv1.WriteAck]) error {
	for {
		h := &dfsv1.WriteHeader{}
		f := rpc.Frame{Header: h}
		if err := stream.RecvMsg(&f); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		data := append([]byte(nil), f.Bytes()...)
		f.Free()
		s.Writes.Add(1)
		ack := &dfsv1.WriteAck{Tag: h.GetTag()}
		err := s.mutate(stream.Context(), h, data, ack)
		if err == nil && s.OnAck != nil {
			err = s.OnAck(h)
		}
		if errors.Is(err, ErrSilent) {
			continue
		}
		if err != nil {
			ack.ErrorReason, ack.ErrorText = dfserr.Reason(err), err.Error()
		}
		if err := stream.Send(ack); err != nil {
			return err
		}
	}
}

func (s *Server) mutate(ctx context.Context, h *dfsv1.WriteHeader, data []byte, ack *dfsv1.WriteAck) error {
	if s.OnWrite != nil {
		if err := s.OnWrite(ctx, h); err != nil {
			return err
		}
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.chunks[h.GetChunk()]
	switch {
	case k == nil:
		return dfserr.Errorf(dfserr.ErrNotExist, "chunk %d", h.GetChunk())
	case k.version != h.GetVersion():
		return dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %d is at %d, not %d", k.id, k.version, h.GetVersion())
	case k.replicas[0] != s:
		return dfserr.Errorf(dfserr.ErrNotPrimary, "chunk %d", k.id)
	}
	id := [2]uint64{h.GetWriter(), h.GetRequest()}
	if off, ok := k.done[id]; ok {
		ack.Offset, ack.ChunkLength = off, int64(len(s.data[k.id]))
		return nil
	}
	off := h.GetOffset()
	length := int64(len(s.data[k.id]))
	switch h.GetKind() {
	case dfsv1.MutationKind_WRITE:
		if err := checkCRCs(h.GetCrcs(), off, data); err != nil {
			return err
		}
	case dfsv1.MutationKind_APPEND:
		off = max(length, h.GetMinOffset())
		if off+int64(len(data)) > k.size {
			return dfserr.Errorf(dfserr.ErrChunkFull, "chunk %d", k.id)
		}
		if dfs.CRC(data) != h.GetAppendCrc() {
			return dfserr.Errorf(dfserr.ErrCorrupt, "append to chunk %d", k.id)
		}
	case dfsv1.MutationKind_ZERO:
		data = make([]byte, h.GetLength())
	}
	if !dfs.CheckRange(off, int64(len(data)), k.size) {
		return dfserr.Errorf(dfserr.ErrInvalid, "%d bytes at %d", len(data), off)
	}
	for _, r := range k.replicas {
		old := r.data[k.id]
		end := off + int64(len(data))
		if h.GetKind() == dfsv1.MutationKind_TRUNCATE {
			r.data[k.id] = append(old[:min(off, int64(len(old)))], make([]byte, max(0, off-int64(len(old))))...)
			continue
		}
		if int64(len(old)) < end {
			old = append(old, make([]byte, end-int64(len(old)))...)
		}
		copy(old[off:], data)
		r.data[k.id] = old
	}
	k.done[id] = off
	k.seq++
	ack.Offset, ack.Seq, ack.ChunkLength = off, k.seq, int64(len(s.data[k.id]))
	return nil
}

func checkCRCs(crcs []uint32, off int64, data []byte) error {
	want := dfs.BlockCRCs(off, data)
	if len(want) != len(crcs) {
		return dfserr.Errorf(dfserr.ErrInvalid, "%d checksums for %d pieces", len(crcs), len(want))
	}
	for i := range want {
		if want[i] != crcs[i] {
			return dfserr.Errorf(dfserr.ErrCorrupt, "piece %d", i)
		}
	}
	return nil
}

// Read implements the service.
func (s *Server) Read(r *dfsv1.ReadRequest, stream grpc.ServerStreamingServer[dfsv1.ReadFrame]) error {
	s.Reads.Add(1)
	if s.OnRead != nil {
		if err := s.OnRead(stream.Context(), r); err != nil {
			return err
		}
	}
	c := s.c
	c.mu.Lock()
	k := c.chunks[r.GetChunk()]
	data, ok := s.data[r.GetChunk()]
	if k == nil || !ok {
		c.mu.Unlock()
		return dfserr.Errorf(dfserr.ErrNotExist, "chunk %d", r.GetChunk())
	}
	if r.GetVersion() > k.version {
		c.mu.Unlock()
		return dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %d", r.GetChunk())
	}
	h := &dfsv1.ReadHeader{Offset: r.GetOffset(), ChunkLength: int64(len(data)), Version: k.version}
	from := min(r.GetOffset(), int64(len(data)))
	out := append([]byte(nil), data[from:min(from+r.GetLength(), int64(len(data)))]...)
	c.mu.Unlock()
	h.Length = int64(len(out))
	h.Crcs = dfs.BlockCRCs(r.GetOffset(), out)
	if s.Mangle != nil {
		s.Mangle(out)
	}
	return stream.SendMsg(&rpc.Frame{Header: h, Data: mem.BufferSlice{mem.SliceBuffer(out)}})
}

// Sync implements the service.
func (s *Server) Sync(_ context.Context, r *dfsv1.SyncRequest) (*dfsv1.SyncReply, error) {
	s.Syncs.Add(1)
	if s.OnSync != nil {
		if err := s.OnSync(r); err != nil {
			return nil, err
		}
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.chunks[r.GetChunk()]
	switch {
	case k == nil:
		return nil, dfserr.Errorf(dfserr.ErrNotExist, "chunk %d", r.GetChunk())
	case k.version != r.GetVersion():
		return nil, dfserr.Errorf(dfserr.ErrStaleVersion, "chunk %d", k.id)
	case k.replicas[0] != s:
		return nil, dfserr.Errorf(dfserr.ErrNotPrimary, "chunk %d", k.id)
	}
	return &dfsv1.SyncReply{ChunkLength: int64(len(s.data[k.id]))}, nil
}

// Stat implements the service.
func (s *Server) Stat(_ context.Context, r *dfsv1.ChunkStatRequest) (*dfsv1.ChunkStatReply, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.chunks[r.GetChunk()]
	data, ok := s.data[r.GetChunk()]
	if k == nil || !ok {
		return nil, dfserr.Errorf(dfserr.ErrNotExist, "chunk %d", r.GetChunk())
	}
	if r.GetExact() && k.replicas[0] != s {
		return nil, dfserr.Errorf(dfserr.ErrNotPrimary, "chunk %d", k.id)
	}
	return &dfsv1.ChunkStatReply{Replica: &dfsv1.ReplicaState{Chunk: k.id, Server: s.ID, Version: k.version, Length: int64(len(data)), State: "valid"}}, nil
}
