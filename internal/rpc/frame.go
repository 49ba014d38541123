package rpc

import (
	"encoding/binary"
	"errors"

	"google.golang.org/grpc/encoding"
	encproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Frame is any protobuf message of the shape {Header header = 1; bytes data = 2;}, with the payload in buffers. It
// is passed to SendMsg and RecvMsg of generated streams in place of the generated message.
//
// A Frame is not safe for concurrent use; distinct Frames are independent.
type Frame struct {
	// Header is the message in field 1. The receiver sets it to an empty message of the right type before
	// RecvMsg, which resets it first.
	Header proto.Message
	// Data is field 2. After RecvMsg the receiver owns one reference to each buffer. Before SendMsg the sender
	// owns one, which SendMsg leaves alone. RecvMsg overwrites the field without freeing what was there.
	Data mem.BufferSlice
}

// Len returns the length of the payload in bytes.
func (f *Frame) Len() int { return f.Data.Len() }

// Bytes returns the payload in one piece. The slice is valid until Free and must not be changed; it is a
// view when the payload is in one buffer and a copy otherwise.
func (f *Frame) Bytes() []byte {
	if len(f.Data) == 1 {
		return f.Data[0].ReadOnlyData()
	}
	return f.Data.Materialize()
}

// Pieces returns views of the payload's buffers in order, valid until Free, not to be changed.
func (f *Frame) Pieces() [][]byte {
	p := make([][]byte, 0, len(f.Data))
	for _, b := range f.Data {
		if d := b.ReadOnlyData(); len(d) > 0 {
			p = append(p, d)
		}
	}
	return p
}

// Take moves the payload and its references to the caller, leaving the frame without payload.
func (f *Frame) Take() mem.BufferSlice {
	d := f.Data
	f.Data = nil
	return d
}

// Free drops the frame's references to its payload. It may be called again, and does nothing then.
func (f *Frame) Free() {
	f.Data.Free()
	f.Data = nil
}

// Codec returns the codec of every connection: protobuf, with *Frame handled without copying the payload.
func Codec() encoding.CodecV2 { return codec{encoding.GetCodecV2(encproto.Name)} }

// codec passes everything but *Frame to gRPC's own codec, whose name it bears.
type codec struct{ inner encoding.CodecV2 }

func (codec) Name() string { return encproto.Name }

// The frame's two fields. Numbers and types are those of WriteFrame, ReadFrame, ForwardFrame and LogFrame.
const (
	headerField = 1
	dataField   = 2
)

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*Frame)
	if !ok {
		return c.inner.Marshal(v)
	}
	headerLen, dataLen := 0, f.Data.Len()
	if f.Header != nil {
		headerLen = proto.Size(f.Header)
	}
	buf := make([]byte, 0, headerLen+2*(1+binary.MaxVarintLen64))
	if f.Header != nil {
		buf = protowire.AppendTag(buf, headerField, protowire.BytesType)
		buf = protowire.AppendVarint(buf, uint64(headerLen))
		var err error
		if buf, err = (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend(buf, f.Header); err != nil {
			return nil, err
		}
	}
	if dataLen == 0 {
		return mem.BufferSlice{mem.SliceBuffer(buf)}, nil
	}
	buf = protowire.AppendTag(buf, dataField, protowire.BytesType)
	buf = protowire.AppendVarint(buf, uint64(dataLen))
	out := make(mem.BufferSlice, 0, 1+len(f.Data))
	out = append(append(out, mem.SliceBuffer(buf)), f.Data...)
	f.Data.Ref() // gRPC frees what Marshal returns
	return out, nil
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*Frame)
	if !ok {
		return c.inner.Unmarshal(data, v)
	}
	if f.Header != nil {
		proto.Reset(f.Header)
	}
	f.Data = nil
	cur := cursor{bufs: data, left: data.Len()}
	var payload mem.BufferSlice
	err := cur.frame(f.Header, &payload)
	if err != nil {
		payload.Free()
		return err
	}
	f.Data = payload
	return nil
}

var (
	errFrameTruncated = errors.New("frame ends inside a field")
	errFrameTag       = errors.New("frame has an invalid field tag")
	errFrameVarint    = errors.New("frame has an invalid number")
	errFrameGroup     = errors.New("frame has an unbalanced group")
)

// cursor walks the bytes of a message that lies in several buffers.
type cursor struct {
	bufs mem.BufferSlice
	i    int // current buffer
	off  int // offset in it
	left int // bytes left in all
}

// frame parses a whole message. As protobuf has it: repeated headers merge, the last data wins, unknown fields
// and known ones of the wrong wire type are skipped.
func (c *cursor) frame(header proto.Message, payload *mem.BufferSlice) error {
	for c.left > 0 {
		num, typ, err := c.tag()
		if err != nil {
			return err
		}
		if typ != protowire.BytesType || (num != headerField && num != dataField) {
			if err := c.skip(num, typ); err != nil {
				return err
			}
			continue
		}
		n, err := c.length()
		if err != nil {
			return err
		}
		if num == dataField {
			payload.Free()
			*payload = c.slice(n)
			continue
		}
		b := c.take(n)
		if header == nil {
			continue
		}
		if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(b, header); err != nil {
			return err
		}
	}
	return nil
}

func (c *cursor) tag() (protowire.Number, protowire.Type, error) {
	v, err := c.varint()
	if err != nil {
		return 0, 0, err
	}
	num, typ := protowire.DecodeTag(v)
	if num < protowire.MinValidNumber || num > protowire.MaxValidNumber {
		return 0, 0, errFrameTag
	}
	return num, typ, nil
}

func (c *cursor) varint() (uint64, error) {
	var v uint64
	for shift := uint(0); shift < 70; shift += 7 {
		b, ok := c.next()
		if !ok {
			return 0, errFrameTruncated
		}
		if shift == 63 && b > 1 {
			return 0, errFrameVarint
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, nil
		}
	}
	return 0, errFrameVarint
}

// length reads the length of a field and checks that so much is there.
func (c *cursor) length() (int, error) {
	v, err := c.varint()
	if err != nil {
		return 0, err
	}
	if v > uint64(c.left) {
		return 0, errFrameTruncated
	}
	return int(v), nil
}

func (c *cursor) next() (byte, bool) {
	if c.left == 0 {
		return 0, false
	}
	for c.off == c.bufs[c.i].Len() {
		c.i, c.off = c.i+1, 0
	}
	b := c.bufs[c.i].ReadOnlyData()[c.off]
	c.off++
	c.left--
	return b, true
}

// each calls use with the next n bytes, which the caller has checked are there, buffer by buffer.
func (c *cursor) each(n int, use func(b mem.Buffer, from, to int)) {
	c.left -= n
	for n > 0 {
		b := c.bufs[c.i]
		m := min(n, b.Len()-c.off)
		if m > 0 && use != nil {
			use(b, c.off, c.off+m)
		}
		n -= m
		c.off += m
		if n > 0 {
			c.i, c.off = c.i+1, 0
		}
	}
}

// take returns the next n bytes in one piece, copied only when they straddle buffers.
func (c *cursor) take(n int) []byte {
	var out []byte
	c.each(n, func(b mem.Buffer, from, to int) {
		d := b.ReadOnlyData()[from:to]
		switch {
		case len(d) == n:
			out = d
		case out == nil:
			out = append(make([]byte, 0, n), d...)
		default:
			out = append(out, d...)
		}
	})
	return out
}

// slice returns references to the next n bytes.
func (c *cursor) slice(n int) mem.BufferSlice {
	if n == 0 {
		return nil
	}
	out := make(mem.BufferSlice, 0, len(c.bufs)-c.i)
	c.each(n, func(b mem.Buffer, from, to int) { out = append(out, b.Slice(from, to)) })
	return out
}

// maxGroupDepth is protobuf's own limit for nested unknown groups.
const maxGroupDepth = 10_000

// skip passes over the value of an unknown field.
func (c *cursor) skip(num protowire.Number, typ protowire.Type) error {
	var open []protowire.Number // groups entered and not yet left
	for {
		switch typ {
		case protowire.VarintType:
			if _, err := c.varint(); err != nil {
				return err
			}
		case protowire.Fixed32Type, protowire.Fixed64Type:
			n := 4
			if typ == protowire.Fixed64Type {
				n = 8
			}
			if c.left < n {
				return errFrameTruncated
			}
			c.each(n, nil)
		case protowire.BytesType:
			n, err := c.length()
			if err != nil {
				return err
			}
			c.each(n, nil)
		case protowire.StartGroupType:
			if len(open) == maxGroupDepth {
				return errFrameGroup
			}
			open = append(open, num)
		case protowire.EndGroupType:
			if len(open) == 0 || open[len(open)-1] != num {
				return errFrameGroup
			}
			open = open[:len(open)-1]
		default:
			return errFrameTag
		}
		if len(open) == 0 {
			return nil
		}
		var err error
		if num, typ, err = c.tag(); err != nil {
			return err
		}
	}
}
