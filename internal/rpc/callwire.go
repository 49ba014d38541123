package rpc

import (
	"context"
	"encoding/binary"
	"sync"

	"google.golang.org/grpc/mem"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// Many small calls share one stream, the call stream: an HTTP/2 stream of its own for each, with its headers and its goroutines, is most of the
// processor time of a small call. Messages in both directions are Frames without a header whose payload is any number of records:
//
//	type (1 byte), call (uvarint), then by type
//	request: time-out in microseconds (uvarint, 0: none), method (uvarint length, bytes), message (uvarint length, bytes)
//	reply:   message (uvarint length, bytes)
//	failure: google.rpc.Status (uvarint length, bytes)
//	cancel:  nothing
//
// A call is the client's number for it, used once per stream. Each request is answered by one reply or failure, in any order. A cancel ends the context of the
// handler, whose answer then interests nobody.
const (
	recordRequest = 1
	recordReply   = 2
	recordFailure = 3
	recordCancel  = 4
)

// callsMethod is the stream's name; it is no service of package proto because this package carries any.
const (
	callsService = "dfs.rpc.Calls"
	callsStream  = "Carry"
	callsMethod  = "/" + callsService + "/" + callsStream
)

const (
	// batchBytes is how many bytes of records go into one Frame, unless a single record is longer.
	batchBytes = 256 * dfs.KiB
	// outboxBytes is how many bytes of records may wait to be sent.
	outboxBytes = 8 * dfs.MiB
	// maxRecord bounds the message in a record, so that a Frame with it stays below MaxMessage.
	maxRecord = MaxMessage - 4*dfs.KiB
	maxMethod = 256
)

// record is one parsed record. The slices lie in what was parsed.
type record struct {
	kind          byte
	call          uint64
	timeoutMicros uint64
	method        []byte
	message       []byte
}

var errRecord = dfserr.Errorf(dfserr.ErrInvalid, "malformed record on the call stream")

func appendRequest(b []byte, call, timeoutMicros uint64, method string, message []byte) []byte {
	b = binary.AppendUvarint(append(b, recordRequest), call)
	b = binary.AppendUvarint(b, timeoutMicros)
	b = append(binary.AppendUvarint(b, uint64(len(method))), method...)
	return append(binary.AppendUvarint(b, uint64(len(message))), message...)
}

// appendAnswer appends a reply or a failure.
func appendAnswer(b []byte, kind byte, call uint64, message []byte) []byte {
	b = binary.AppendUvarint(append(b, kind), call)
	return append(binary.AppendUvarint(b, uint64(len(message))), message...)
}

func appendCancel(b []byte, call uint64) []byte {
	return binary.AppendUvarint(append(b, recordCancel), call)
}

// parseRecord returns the first record of b and what follows it.
func parseRecord(b []byte) (r record, rest []byte, err error) {
	if len(b) == 0 {
		return r, nil, errRecord
	}
	r.kind = b[0]
	if r.call, b, err = parseNumber(b[1:]); err != nil {
		return r, nil, err
	}
	switch r.kind {
	case recordCancel:
		return r, b, nil
	case recordRequest:
		if r.timeoutMicros, b, err = parseNumber(b); err != nil {
			return r, nil, err
		}
		if r.method, b, err = parseBytes(b, maxMethod); err != nil {
			return r, nil, err
		}
	case recordReply, recordFailure:
	default:
		return r, nil, errRecord
	}
	r.message, b, err = parseBytes(b, maxRecord)
	return r, b, err
}

func parseNumber(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, errRecord
	}
	return v, b[n:], nil
}

func parseBytes(b []byte, limit uint64) (part, rest []byte, err error) {
	n, b, err := parseNumber(b)
	if err != nil || n > limit || n > uint64(len(b)) {
		return nil, nil, errRecord
	}
	return b[:n:n], b[n:], nil
}

// records calls each with the records in a Frame's payload.
func records(b []byte, each func(record) error) error {
	for len(b) > 0 {
		r, rest, err := parseRecord(b)
		if err != nil {
			return err
		}
		if err := each(r); err != nil {
			return err
		}
		b = rest
	}
	return nil
}

// outbox gathers records, of any number of goroutines, for the one that sends them.
type outbox struct {
	buffers *Buffers
	wake    chan struct{} // buffered: there is something to send

	mu     sync.Mutex
	full   []*[]byte     // guarded by mu; complete batches
	last   *[]byte       // guarded by mu; the batch that is being filled; nil: none
	bytes  int           // guarded by mu; in all of them
	room   chan struct{} // guarded by mu; closed when bytes has fallen; nil: nobody waits
	closed bool          // guarded by mu
}

func newOutbox(b *Buffers) *outbox { return &outbox{buffers: b, wake: make(chan struct{}, 1)} }

// add appends a record, which write puts at the end of what it is given and which takes at most size bytes. It waits while too much is queued, and returns false when ctx has ended
// or the outbox has been closed: the record is not sent then.
func (o *outbox) add(ctx context.Context, size int, write func([]byte) []byte) bool {
	for {
		o.mu.Lock()
		if o.closed {
			o.mu.Unlock()
			return false
		}
		if o.bytes < outboxBytes {
			break
		}
		if o.room == nil {
			o.room = make(chan struct{})
		}
		room := o.room
		o.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return false
		}
	}
	if o.last != nil && cap(*o.last)-len(*o.last) < size {
		o.full, o.last = append(o.full, o.last), nil
	}
	if o.last == nil {
		want := size
		if o.bytes > 0 {
			want = max(size, batchBytes) // the sender is behind
		}
		o.last = o.buffers.Get(want)
		*o.last = (*o.last)[:0]
	}
	before := len(*o.last)
	*o.last = write(*o.last)
	o.bytes += len(*o.last) - before
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
	return true
}

// take returns all that is queued.
func (o *outbox) take() []*[]byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	batches := o.full
	if o.last != nil {
		batches = append(batches, o.last)
	}
	o.full, o.last, o.bytes = nil, nil, 0
	if o.room != nil {
		close(o.room)
		o.room = nil
	}
	return batches
}

// close forgets what is queued and refuses more.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	for _, b := range o.take() {
		o.buffers.Put(b)
	}
}

// send sends batches as they come until ctx ends or one cannot be sent.
func (o *outbox) send(ctx context.Context, stream interface{ SendMsg(m any) error }) {
	for {
		select {
		case <-o.wake:
		case <-ctx.Done():
			return
		}
		batches := o.take()
		for i, b := range batches {
			f := Frame{Data: mem.BufferSlice{o.buffers.Own(b)}}
			err := stream.SendMsg(&f)
			f.Free()
			if err != nil { // the receiving side gets to know why
				for _, rest := range batches[i+1:] {
					o.buffers.Put(rest)
				}
				return
			}
		}
	}
}
