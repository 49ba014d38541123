package chunkserver

import (
	"slices"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// chunkConfig is a configuration that the master committed. It is not changed once made.
type chunkConfig struct {
	chunk       dfs.ChunkID
	version     dfs.Version
	replicas    []dfs.ServerID // primary first
	chunkSize   int64
	replication int
	born        bool
	seed        []byte
	cutLength   int64
	cutVersion  dfs.Version

	wire *dfsv1.ChunkConfig // as received, to be passed on
}

// parseConfig checks a configuration received from the master or from a peer.
func parseConfig(w *dfsv1.ChunkConfig) (*chunkConfig, error) {
	c := &chunkConfig{
		chunk: dfs.ChunkID(w.GetChunk()), version: dfs.Version(w.GetVersion()), chunkSize: w.GetChunkSize(),
		replication: int(w.GetReplication()), born: w.GetBorn(), seed: w.GetSeed(),
		cutLength: w.GetCutLength(), cutVersion: dfs.Version(w.GetCutVersion()), wire: w,
	}
	bad := func(format string, args ...any) (*chunkConfig, error) {
		return nil, dfserr.Errorf(dfserr.ErrInvalid, "configuration of chunk "+c.chunk.String()+": "+format, args...)
	}
	switch {
	case c.chunk == 0 || c.version == 0:
		return bad("no chunk or no version")
	case !dfs.ValidChunkSize(c.chunkSize):
		return bad("chunk size %d", c.chunkSize)
	case len(c.seed) > dfs.InlineMax:
		return bad("a seed of %d bytes", len(c.seed))
	case c.cutVersion != 0 && !dfs.CheckRange(c.cutLength, 0, c.chunkSize):
		return bad("a cut at %d", c.cutLength)
	case len(w.GetReplicas()) == 0 || len(w.GetReplicas()) > 2*dfs.MaxReplication:
		return bad("%d replicas", len(w.GetReplicas()))
	}
	for _, r := range w.GetReplicas() {
		id := dfs.ServerID(r.GetServer())
		if id == 0 || slices.Contains(c.replicas, id) {
			return bad("replica on server %s, twice or without an id", id)
		}
		c.replicas = append(c.replicas, id)
	}
	return c, nil
}

// primary returns the server that orders writes.
func (c *chunkConfig) primary() dfs.ServerID { return c.replicas[0] }

// has reports whether the server holds a replica.
func (c *chunkConfig) has(id dfs.ServerID) bool { return slices.Contains(c.replicas, id) }
