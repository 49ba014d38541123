package client

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"dfs/client/chunkio"
	"dfs/client/metacache"
	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// Client is a connection to one cluster. It is safe for concurrent use; one per process and identity is meant.
type Client struct {
	cfg       Config
	callerMsg *dfsv1.Caller
	pool      *rpc.Pool // masters
	dataPool  *rpc.Pool // chunkservers
	masters   *masters
	session   *session
	chunks    *chunkio.IO
	cache     *metacache.Cache[chunkio.Location]
	closer    *closer
	tree      *metacache.Tree[Attr] // nil without CacheNames
	locks     *lockTable

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // goroutines of the client itself
	closed atomic.Bool
}

// cachedLocations bounds the location cache, in chunks.
const cachedLocations = 1 << 16

// cachedInodes bounds the cache of attributes and names, in inodes and names: about 300 bytes each.
const cachedInodes = 1 << 17

// Dial returns a client of the cluster that cfg names, once a master has answered. It fails with ErrUnavailable, naming
// the addresses, when none does within DialTimeout; with ErrWrongCluster; with ErrInvalid for a bad cfg. Close ends
// the client. ctx bounds only Dial.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	c := &Client{
		cfg:       cfg,
		callerMsg: &dfsv1.Caller{Uid: cfg.Caller.UID, Gid: cfg.Caller.GID, Groups: cfg.Caller.Groups},
		pool:      rpc.NewPool(cfg.Network, rpc.PoolOptions{Faults: cfg.Faults}),
		dataPool:  rpc.NewPool(cfg.Network, rpc.PoolOptions{Faults: cfg.Faults, Conns: cfg.DataConns}),
		cache:     metacache.New[chunkio.Location](cachedLocations, cfg.LocationTTL),
	}
	if cfg.CacheNames {
		c.tree = metacache.NewTree(cachedInodes, dfs.CacheTrust, func(a Attr) bool { return a.Xattrs == 0 })
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.masters = &masters{pool: c.pool, addrs: cfg.Masters, timeout: cfg.CallTimeout}
	c.locks = newLockTable()
	c.session = newSession(c)
	c.chunks = chunkio.New(chunkio.Config{
		Pool: c.dataPool, Source: (*source)(c), Logger: cfg.Logger, Near: cfg.NearServer,
		OpTimeout: cfg.OpTimeout, AckTimeout: cfg.AckTimeout, HedgeAfter: cfg.HedgeAfter,
	})
	c.closer = newCloser(c)
	ctx, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
	defer cancel()
	var err error
	if cfg.ClusterID != 0 || cfg.CacheNames {
		_, err = c.session.get(ctx)
	} else {
		err = c.masters.call(ctx, nil, func(ctx context.Context, m dfsv1.MasterClient) error {
			_, err := m.StatFs(ctx, &dfsv1.StatFsRequest{})
			return err
		})
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// closeTimeout bounds what Close says to the master.
const closeTimeout = 2 * time.Second

// Close ends the session and the connections. Files still open become useless; their unflushed write-behind is lost,
// so close them first. Operations in progress fail with ErrClosed or context.Canceled.
func (c *Client) Close() error {
	if c.closed.Swap(true) {
		return dfserr.Errorf(dfserr.ErrClosed, "client")
	}
	c.closer.stop()
	c.locks.stop()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	c.session.end(ctx)
	c.cancel()
	c.chunks.Close()
	c.pool.Close()
	c.dataPool.Close()
	c.wg.Wait()
	return nil
}

// Name returns the name under which the masters know this client.
func (c *Client) Name() string { return c.cfg.Name }

// Masters returns the masters' addresses as configured.
func (c *Client) Masters() []string { return append([]string(nil), c.cfg.Masters...) }

func isEOF(err error) bool { return errors.Is(err, io.EOF) }

// source lets chunkio ask the master about chunks.
type source Client

// Locate implements chunkio.Source.
func (s *source) Locate(ctx context.Context, l chunkio.Location, write bool) (chunkio.Location, error) {
	c := (*Client)(s)
	reply, err := c.getChunks(ctx, l.Inode, l.Index, 1, write)
	if err != nil {
		return chunkio.Location{}, err
	}
	for _, k := range reply.GetChunks() {
		if dfs.ChunkID(k.GetChunk()) == l.Chunk {
			return locationOf(k), nil
		}
	}
	c.cache.InvalidateFrom(l.Inode, l.Index)
	return chunkio.Location{}, dfserr.Errorf(dfserr.ErrNotExist, "chunk %s", l.Chunk)
}

// Report implements chunkio.Source.
func (s *source) Report(ctx context.Context, l chunkio.Location, f chunkio.Failure) (chunkio.Location, error) {
	c := (*Client)(s)
	req := &dfsv1.ReportFailureRequest{
		Chunk: uint64(l.Chunk), Version: uint64(l.Version), Server: uint64(f.Server), Reason: f.Reason, Corrupt: f.Corrupt,
	}
	var reply *dfsv1.ReportFailureReply
	err := c.ask(ctx, func(ctx context.Context, m dfsv1.MasterClient) (err error) {
		reply, err = m.ReportFailure(ctx, req)
		return err
	})
	if err != nil {
		return chunkio.Location{}, err
	}
	c.masters.observe(reply.GetIndex())
	next := locationOf(reply.GetConfig())
	if next.Chunk != l.Chunk {
		return l, nil
	}
	next.Inode, next.Index = l.Inode, l.Index
	c.cache.Put(l.Inode, l.Index, next)
	return next, nil
}

// getChunks asks for the locations of count chunks from first on, and caches them.
func (c *Client) getChunks(ctx context.Context, inode dfs.InodeID, first int64, count uint32, write bool) (*dfsv1.GetChunksReply, error) {
	return c.askChunks(ctx, &dfsv1.GetChunksRequest{
		Inode: uint64(inode), First: first, Count: count, ForWrite: write, Caller: c.caller(), MinIndex: c.minIndex(),
	})
}

func (c *Client) askChunks(ctx context.Context, req *dfsv1.GetChunksRequest) (*dfsv1.GetChunksReply, error) {
	var reply *dfsv1.GetChunksReply
	err := c.ask(ctx, func(ctx context.Context, m dfsv1.MasterClient) (err error) {
		reply, err = m.GetChunks(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	c.masters.observe(reply.GetIndex())
	for _, k := range reply.GetChunks() {
		c.cache.Put(dfs.InodeID(req.GetInode()), k.GetIndex(), locationOf(k))
	}
	return reply, nil
}

func locationOf(k *dfsv1.ChunkConfig) chunkio.Location {
	l := chunkio.Location{
		Chunk: dfs.ChunkID(k.GetChunk()), Version: dfs.Version(k.GetVersion()), Inode: dfs.InodeID(k.GetInode()), Index: k.GetIndex(), ChunkSize: k.GetChunkSize(),
		Replicas: make([]chunkio.Replica, 0, len(k.GetReplicas())),
	}
	for _, r := range k.GetReplicas() {
		l.Replicas = append(l.Replicas, chunkio.Replica{Server: dfs.ServerID(r.GetServer()), Addr: r.GetAddr(), Alive: r.GetAlive()})
	}
	return l
}

// closer tells the master about closed read handles in the background.
type closer struct {
	c *Client

	mu      sync.Mutex
	queue   []*dfsv1.CloseRequest // guarded by mu
	running int                   // guarded by mu: goroutines at work
	stopped bool                  // guarded by mu
}

// closersMax is how many closes are told at a time.
const closersMax = 8

func newCloser(c *Client) *closer { return &closer{c: c} }

// add tells the master of a close, soon.
func (q *closer) add(r *dfsv1.CloseRequest) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stopped {
		return // the end of the session closes everything
	}
	q.queue = append(q.queue, r)
	if q.running < closersMax {
		q.running++
		q.c.wg.Go(q.work)
	}
}

func (q *closer) work() {
	for {
		q.mu.Lock()
		if len(q.queue) == 0 || q.stopped {
			q.running--
			q.mu.Unlock()
			return
		}
		r := q.queue[0]
		q.queue = q.queue[1:]
		q.mu.Unlock()
		if err := q.c.tellClosed(q.c.ctx, r); err != nil {
			q.c.cfg.Logger.Debug("the master was not told of a close", "inode", r.GetInode(), "error", err)
		}
	}
}

func (q *closer) stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stopped = true
	q.queue = nil
}

// tellClosed ends the master's count of one handle.
func (c *Client) tellClosed(ctx context.Context, r *dfsv1.CloseRequest) error {
	ctx, cancel := c.opContext(ctx)
	defer cancel()
	return c.masters.call(ctx, nil, func(ctx context.Context, m dfsv1.MasterClient) error {
		reply, err := m.Close(ctx, r)
		if errors.Is(err, dfserr.ErrUnknownSession) {
			return nil // with the session went its handles
		}
		c.masters.observe(reply.GetIndex())
		return err
	})
}
