package chunkserver

import (
	"context"
	"errors"
	"slices"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// An append goes to the end of the file, and where that is only the master knows: another client may have added a chunk further on, or made the file longer without
// writing. So a primary takes appends only while it knows from the master that the file ends in its chunk, and the master, before it lets the file end elsewhere, has the
// primary forget that (Stat with hold_appends). From then on the next append makes the primary ask again.

// fileEnd is what a primary knows about the end of the file. chunk.mu guards it.
type fileEnd struct {
	may     bool      // the file ends in this chunk
	from    int64     // at this offset in it, or later
	holds   uint64    // grows when the master takes may back
	askedAt time.Time // when the master last said
	last    dfs.Seq   // of the newest append in this activation

	refused []requestID // appends that were refused for good: at most refusedKept, oldest first
}

// requestID names a client's mutation of one chunk.
type requestID struct{ writer, request uint64 }

const (
	// refusedKept is how many refused appends a chunk remembers.
	refusedKept = 256
	// askPause is for how long the answer that the file ends elsewhere is not doubted.
	askPause = 5 * time.Millisecond
)

// learn takes the master's word, unless it was taken back after the question.
func (e *fileEnd) learn(g grantReply, now time.Time) {
	e.askedAt = now
	e.may = !g.noAppend && e.holds == g.holds
	e.from = g.appendFrom
}

// unsure reports whether the master must be asked before an append is decided on.
func (e *fileEnd) unsure(now time.Time) bool { return !e.may && now.Sub(e.askedAt) >= askPause }

// tailLackedBy refuses an append that the file does not end here for, or that has been refused before: its client has gone on
// elsewhere, and what arrives is a late copy.
func (c *chunk) tailLackedBy(h *dfsv1.WriteHeader) error {
	if h.GetKind() != dfsv1.MutationKind_APPEND {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.end.may || (h.GetWriter() != 0 && slices.Contains(c.end.refused, requestID{h.GetWriter(), h.GetRequest()})) {
		return c.notTailLocked(h)
	}
	return nil
}

// takeAppendLocked notes the seq that an append is about to get, or refuses it because the master has taken the permission back since it was looked at.
func (c *chunk) takeAppendLocked(h *dfsv1.WriteHeader, seq dfs.Seq) error {
	if h.GetKind() != dfsv1.MutationKind_APPEND {
		return nil
	}
	if !c.end.may {
		return c.notTailLocked(h)
	}
	c.end.last = seq
	return nil
}

func (c *chunk) notTailLocked(h *dfsv1.WriteHeader) error {
	err := dfserr.Errorf(dfserr.ErrNotTail, "append to chunk %s", c.id)
	c.end.refuse(h)
	return err
}

// noteRefused remembers an append that had no room.
func (c *chunk) noteRefused(h *dfsv1.WriteHeader, err error) {
	if h.GetKind() != dfsv1.MutationKind_APPEND || !errors.Is(err, dfserr.ErrChunkFull) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end.refuse(h)
}

func (e *fileEnd) refuse(h *dfsv1.WriteHeader) {
	id := requestID{h.GetWriter(), h.GetRequest()}
	if id.writer == 0 || slices.Contains(e.refused, id) {
		return
	}
	if len(e.refused) == refusedKept {
		e.refused = slices.Delete(e.refused, 0, 1)
	}
	e.refused = append(e.refused, id)
}

// holdAppends takes no appends until the master has been asked again, and waits until those taken are committed.
func (c *chunk) holdAppends(ctx context.Context, v view) error {
	c.mu.Lock()
	c.end.holds++
	c.end.may = false
	last := c.end.last
	c.mu.Unlock()
	if last == 0 {
		return nil
	}
	return c.awaitCommit(ctx, v, last)
}
