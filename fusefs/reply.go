package fusefs

import (
	"encoding/binary"
	"syscall"
	"time"

	"bazil.org/fuse"
)

// The kernel's reply structures (linux/include/uapi/linux/fuse.h, protocol 7.33), encoded here because bazil's
// Attr cannot carry the sticky bit. All integers are in the machine's byte order.
const (
	outHeaderSize = 16
	attrSize      = 88
	entrySize     = 40 + attrSize
)

// reply builds one message to the kernel.
type reply struct{ b []byte }

func newReply(size int) *reply {
	return &reply{b: make([]byte, outHeaderSize, outHeaderSize+size)}
}

func (r *reply) u32(v uint32) { r.b = binary.NativeEndian.AppendUint32(r.b, v) }
func (r *reply) u64(v uint64) { r.b = binary.NativeEndian.AppendUint64(r.b, v) }

// attr appends struct fuse_attr.
func (r *reply) attr(a *Attr, blksize uint32) {
	r.u64(uint64(a.Inode))
	r.u64(uint64(a.Length))
	r.u64(uint64(a.Length+511) / 512)
	for _, ns := range []int64{a.AtimeNS, a.MtimeNS, a.CtimeNS} {
		sec, _ := splitNS(ns)
		r.u64(uint64(sec))
	}
	for _, ns := range []int64{a.AtimeNS, a.MtimeNS, a.CtimeNS} {
		_, nsec := splitNS(ns)
		r.u32(nsec)
	}
	r.u32(a.Mode)
	r.u32(a.Nlink)
	r.u32(a.UID)
	r.u32(a.GID)
	r.u32(a.Rdev)
	r.u32(blksize)
	r.u32(0) // flags
}

// entry appends struct fuse_entry_out.
func (r *reply) entry(a *Attr, valid time.Duration, blksize uint32) {
	r.u64(uint64(a.Inode))
	r.u64(0) // generation: inode numbers are never reused
	r.u64(uint64(valid / time.Second))
	r.u64(uint64(valid / time.Second))
	r.u32(uint32(valid % time.Second))
	r.u32(uint32(valid % time.Second))
	r.attr(a, blksize)
}

// attrOut appends struct fuse_attr_out.
func (r *reply) attrOut(a *Attr, valid time.Duration, blksize uint32) {
	r.u64(uint64(valid / time.Second))
	r.u32(uint32(valid % time.Second))
	r.u32(0)
	r.attr(a, blksize)
}

// openOut appends struct fuse_open_out.
func (r *reply) openOut(handle uint64, flags uint32) {
	r.u64(handle)
	r.u32(flags)
	r.u32(0)
}

// splitNS cuts nanoseconds since the epoch into seconds, rounded down, and the rest.
func splitNS(ns int64) (sec int64, nsec uint32) {
	sec, rest := ns/1e9, ns%1e9
	if rest < 0 {
		sec, rest = sec-1, rest+1e9
	}
	return sec, uint32(rest)
}

// send writes the reply to request h and gives the request's buffer back to bazil.
func (s *Server) send(h *fuse.Header, r *reply) {
	binary.NativeEndian.PutUint32(r.b[0:], uint32(len(r.b)))
	binary.NativeEndian.PutUint64(r.b[8:], uint64(h.ID))
	if _, err := syscall.Write(s.fd, r.b); err != nil && !nobodyWaits(err) {
		s.log.Debug("reply refused by the kernel", "error", err)
	}
	recycle(h)
}

// recycle gives the request's buffer back without a reply: what bazil does for FORGET, the one request that has none.
func recycle(h *fuse.Header) { (&fuse.ForgetRequest{Header: *h}).Respond() }

// appendDirent appends struct fuse_dirent with padding.
func appendDirent(b []byte, inode, cookie uint64, mode uint32, name []byte) []byte {
	b = binary.NativeEndian.AppendUint64(b, inode)
	b = binary.NativeEndian.AppendUint64(b, cookie)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(name)))
	b = binary.NativeEndian.AppendUint32(b, mode>>12&0xf)
	b = append(b, name...)
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	return b
}

// direntSize is how many bytes appendDirent adds.
func direntSize(name []byte) int { return (24 + len(name) + 7) &^ 7 }
