package client

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	"dfs/internal/rpc"
	dfsv1 "dfs/proto/dfs/v1"
)

// window is how many mutations may be outstanding: half of what the master remembers per session, so the
// reply of a request that is still being retried is never overwritten.
const window = dfs.ReplyWindow / 2

// session is the client's presence at the master (DESIGN §5): opened on first need, kept alive by a stream, and
// replaced when the master no longer knows it.
type session struct {
	c   *Client
	log hclog.Logger

	// opening is held while a session is being opened.
	opening chan struct{}

	mu    sync.Mutex
	epoch *epoch              // guarded by mu: nil before the first and after a lost one
	opens map[dfs.InodeID]int // guarded by mu: handles counted at the master, to be announced again
	ended bool                // guarded by mu

	// Of a client that caches names.
	closes  []*toldClose       // guarded by mu: handles to be told of with the next messages, oldest first
	busy    chan struct{}      // one token: the cache is about to be used
	streams uint64             // guarded by mu: keepalive streams so far
	stream  uint64             // guarded by mu: number of the present one; 0: none
	cut     context.CancelFunc // guarded by mu: ends it
}

// epoch is one session id and the requests made in it.
type epoch struct {
	id     uint64
	ttl    time.Duration
	cancel context.CancelFunc // stops its keepAlive
	lost   chan struct{}      // closed when the master no longer knows the session

	until     time.Time          // guarded by session.mu: the session lives on at the master at least until then
	sure      context.Context    // guarded by session.mu: ends when that has passed, or the session is lost
	unsure    context.CancelFunc // guarded by session.mu: ends sure
	lapse     *time.Timer        // guarded by session.mu: calls unsure in time
	news      chan struct{}      // guarded by session.mu: closed when until moves, or the session is lost
	locksLost bool               // guarded by lockTable.mu

	turn  chan struct{}         // held while a seq is being drawn
	next  uint64                // guarded by turn
	slots [window]chan struct{} // full while the seq with this remainder is free
}

func newSession(c *Client) *session {
	return &session{c: c, log: c.cfg.Logger, opening: make(chan struct{}, 1), opens: map[dfs.InodeID]int{}, busy: make(chan struct{}, 1)}
}

// get returns the current session, opening one if there is none.
func (s *session) get(ctx context.Context) (*epoch, error) {
	if e := s.current(); e != nil {
		return e, nil
	}
	select {
	case s.opening <- struct{}{}:
		defer func() { <-s.opening }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if e := s.current(); e != nil {
		return e, nil
	}
	return s.open(ctx)
}

func (s *session) current() *epoch {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

func (s *session) open(ctx context.Context) (*epoch, error) {
	req := &dfsv1.OpenSessionRequest{Client: s.c.cfg.Name, Nonce: randomID(), ClusterId: uint64(s.c.cfg.ClusterID), Caches: s.c.tree != nil}
	var reply *dfsv1.OpenSessionReply
	asked := time.Now()
	err := s.c.masters.call(ctx, nil, func(ctx context.Context, m dfsv1.MasterClient) (err error) {
		reply, err = m.OpenSession(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	if want := s.c.cfg.ClusterID; want != 0 && dfs.ClusterID(reply.GetClusterId()) != want {
		return nil, dfserr.Errorf(dfserr.ErrWrongCluster, "the masters are of cluster %s, not %s", dfs.ClusterID(reply.GetClusterId()), want)
	}
	s.c.masters.observe(reply.GetIndex())
	ctx, cancel := context.WithCancel(context.Background())
	e := &epoch{
		id: reply.GetSession(), ttl: max(time.Second, time.Duration(reply.GetTtlMs())*time.Millisecond),
		cancel: cancel, lost: make(chan struct{}), news: make(chan struct{}), turn: make(chan struct{}, 1), next: 1,
	}
	for i := range e.slots {
		e.slots[i] = make(chan struct{}, 1)
		e.slots[i] <- struct{}{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		cancel()
		return nil, dfserr.Errorf(dfserr.ErrClosed, "client")
	}
	s.epoch = e
	e.until = livesUntil(asked, reply.GetTtlMs())
	e.sure, e.unsure = context.WithCancel(context.Background())
	e.lapse = time.AfterFunc(time.Until(e.until), func() { s.lapsed(e) })
	s.c.wg.Go(func() { s.keepAlive(ctx, e) })
	return e, nil
}

// lose forgets a session that the master does not know any more.
func (s *session) lose(e *epoch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch != e {
		return
	}
	s.log.Warn("the master no longer knows this client's session; the next operation opens a new one", "session", e.id)
	s.epoch = nil
	s.c.locks.lose(e)
	s.closes = nil // with the session went its handles
	e.cancel()
	e.stopLocked()
	close(e.lost)
	close(e.news)
}

// stopLocked ends what an epoch that is over keeps.
func (e *epoch) stopLocked() {
	e.lapse.Stop()
	e.unsure()
}

// livesUntil is when a session ends at the earliest that was renewed by a message sent at the given time. A tenth of its time is for clocks that do not
// run alike, and for a write to arrive.
func livesUntil(sent time.Time, ttlMS int64) time.Time {
	ttl := time.Duration(ttlMS) * time.Millisecond
	return sent.Add(ttl - ttl/10)
}

// renewed notes until when a session lives at least.
func (s *session) renewed(e *epoch, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch != e || !until.After(e.until) {
		return
	}
	e.until = until
	e.lapse.Reset(time.Until(until))
	if e.sure.Err() != nil {
		e.sure, e.unsure = context.WithCancel(context.Background())
	}
	close(e.news)
	e.news = make(chan struct{})
}

// lapsed is called when the time has passed for which a session was sure to live, unless it was renewed.
func (s *session) lapsed(e *epoch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch == e && !time.Now().Before(e.until) {
		e.unsure()
	}
}

// sure returns a context that lives for as long as the session is sure to live on at the master; nil when it is not sure: then news is closed when there is
// something new to know. Without a session there is nothing to be sure of: both are nil.
func (s *session) sure() (alive context.Context, news <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.epoch
	if e == nil {
		return nil, nil
	}
	// The timer may be late, above all in a process that was stopped.
	if !time.Now().Before(e.until) || e.sure.Err() != nil {
		return nil, e.news
	}
	return e.sure, nil
}

// draw returns the next request number; release ends its use. Numbers are given out in order, and never one that is
// window or more above one still in use.
func (e *epoch) draw(ctx context.Context) (seq uint64, release func(), err error) {
	select {
	case e.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	}
	defer func() { <-e.turn }()
	slot := e.slots[e.next%window]
	select {
	case <-slot:
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	}
	seq = e.next
	e.next++
	return seq, func() { slot <- struct{}{} }, nil
}

// mutate makes a changing call exactly once: every attempt carries the same (session, seq), under which the master
// keeps its reply. When the session has been lost, a request that cannot have been carried out yet is made
// again in a new session; one whose outcome is in doubt gives ErrUnknownSession.
func (c *Client) mutate(ctx context.Context, attempt func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) error) error {
	if c.closed.Load() {
		return dfserr.Errorf(dfserr.ErrClosed, "client")
	}
	ctx, cancel := c.opContext(ctx)
	defer cancel()
	for {
		e, err := c.session.get(ctx)
		if err != nil {
			return err
		}
		doubt, err := c.mutateIn(ctx, e, attempt)
		if !errors.Is(err, dfserr.ErrUnknownSession) {
			return err
		}
		c.session.lose(e)
		if doubt {
			return dfserr.Errorf(dfserr.ErrUnknownSession, "the session was lost while the outcome of the operation was not known; it may have happened")
		}
	}
}

// mutateIn makes a changing call in one session. doubt: it may have been carried out although there is no answer.
func (c *Client) mutateIn(ctx context.Context, e *epoch, attempt func(ctx context.Context, m dfsv1.MasterClient, h *dfsv1.MutationHeader) error) (doubt bool, err error) {
	seq, release, err := e.draw(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	h := &dfsv1.MutationHeader{Session: e.id, Seq: seq, Caller: c.caller()}
	err = c.masters.call(ctx, &doubt, func(ctx context.Context, m dfsv1.MasterClient) error { return attempt(ctx, m, h) })
	return doubt, err
}

// inSession makes a call that names the session without being a numbered mutation (Open).
func (c *Client) inSession(ctx context.Context, attempt func(ctx context.Context, m dfsv1.MasterClient, session uint64) error) error {
	if c.closed.Load() {
		return dfserr.Errorf(dfserr.ErrClosed, "client")
	}
	ctx, cancel := c.opContext(ctx)
	defer cancel()
	for {
		e, err := c.session.get(ctx)
		if err != nil {
			return err
		}
		err = c.masters.call(ctx, nil, func(ctx context.Context, m dfsv1.MasterClient) error { return attempt(ctx, m, e.id) })
		if !errors.Is(err, dfserr.ErrUnknownSession) {
			return err
		}
		c.session.lose(e)
	}
}

// opened counts a handle that the master has counted too.
func (s *session) opened(inode dfs.InodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opens[inode]++
}

// closed takes a handle back.
func (s *session) closed(inode dfs.InodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uncountLocked(inode)
}

func (s *session) uncountLocked(inode dfs.InodeID) {
	if s.opens[inode]--; s.opens[inode] <= 0 {
		delete(s.opens, inode)
		s.c.locks.forget(inode)
	}
}

// openList returns every counted handle, an inode as often as it is open.
func (s *session) openList() []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.openListLocked()
}

func (s *session) openListLocked() []uint64 {
	var l []uint64
	for inode, n := range s.opens {
		for range n {
			l = append(l, uint64(inode))
		}
	}
	return l
}

// keepAlive renews the session until ctx ends or the session is lost.
func (s *session) keepAlive(ctx context.Context, e *epoch) {
	p := newBackoff()
	for {
		err := s.renew(ctx, e, &p)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, dfserr.ErrUnknownSession) {
			s.lose(e)
			s.reopen()
			return
		}
		s.log.Debug("keepalive stream broke", "error", err)
		if p.Wait(ctx) != nil {
			return
		}
	}
}

// renew runs one keepalive stream: a message at a third of the TTL, each answered; more often while the cache is in use. Recalls are carried out as they come.
func (s *session) renew(ctx context.Context, e *epoch, p *rpc.Backoff) error {
	c, i, err := s.c.masters.pick()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.KeepAlive(ctx)
	if err != nil {
		s.c.masters.blame(i)
		return err
	}
	k := &keepAlive{
		s: s, e: e, stream: stream, cancel: cancel, sent: map[uint64]time.Time{},
		confirm: make(chan struct{}, 1), answered: p.Reset,
	}
	if s.c.tree == nil {
		k.open = s.openList()
	} else {
		k.cache, k.open = s.beginStream(cancel)
		defer s.endStream(k.cache)
	}
	done := make(chan error, 1)
	s.c.wg.Go(func() { done <- k.receive() })
	sendErr := k.send(ctx)
	cancel()
	if err = <-done; err == nil {
		err = sendErr
	}
	if !errors.Is(err, dfserr.ErrUnknownSession) {
		s.c.masters.blame(i)
	}
	return err
}

// beginStream gives a new stream its number and the handles to announce: nothing cached before it counts any more.
func (s *session) beginStream(cancel context.CancelFunc) (number uint64, open []uint64) {
	s.c.tree.Reset()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams++
	s.stream, s.cut = s.streams, cancel
	for _, c := range s.closes {
		// The answer may be lost, so they are told again. What is announced now does not contain them.
		c.number = 0
		c.req = &dfsv1.CloseRequest{Session: c.req.GetSession(), Inode: c.req.GetInode(), Write: c.req.GetWrite(), Handle: c.req.GetHandle(), Unannounced: true}
	}
	return s.stream, s.openListLocked()
}

// endStream ends the trust in what was cached under a stream.
func (s *session) endStream(number uint64) {
	s.mu.Lock()
	if s.stream == number {
		s.stream, s.cut = 0, nil
	}
	s.mu.Unlock()
	s.c.tree.Reset()
}

// currentStream returns the number of the stream under which leases are held, 0 when there is none.
func (s *session) currentStream() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream
}

// dropCache forgets everything cached and gives up the leases, by giving up the stream.
func (s *session) dropCache() {
	s.mu.Lock()
	cut := s.cut
	s.stream, s.cut = 0, nil
	s.mu.Unlock()
	s.c.tree.Reset()
	if cut != nil {
		cut()
	}
}

// wanted says that the cache is about to be used, so that the stream of an idle client comes to life.
func (s *session) wanted() {
	select {
	case s.busy <- struct{}{}:
	default:
	}
}

// toldClose is a closed handle of which the master is told on the keepalive stream.
type toldClose struct {
	req    *dfsv1.CloseRequest
	number uint64 // of the message that told it, on the present stream; 0: none has
}

// Bounds of what is told on the stream.
const (
	closesPerMessage = 4096
	maxCloses        = 4 * closesPerMessage
)

// closeLater has the master told of a closed handle with the next keepalive message, within half a second as a rule. false: too
// many wait already.
func (s *session) closeLater(r *dfsv1.CloseRequest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.closes) >= maxCloses || s.epoch == nil || s.epoch.id != r.GetSession() {
		return false
	}
	s.closes = append(s.closes, &toldClose{req: r})
	s.uncountLocked(dfs.InodeID(r.GetInode()))
	return true
}

// closesFor returns the closes to be told with a message.
func (s *session) closesFor(number uint64) (list []*dfsv1.CloseRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.closes {
		if c.number == 0 && len(list) < closesPerMessage {
			c.number = number
			list = append(list, c.req)
		}
	}
	return list
}

// closesTold notes that a message was answered.
func (s *session) closesTold(number uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.closes) > 0 && s.closes[0].number != 0 && s.closes[0].number <= number {
		s.closes = s.closes[1:]
	}
}

// keepAlive is one keepalive stream.
type keepAlive struct {
	s        *session
	e        *epoch
	stream   dfsv1.Master_KeepAliveClient
	cancel   context.CancelFunc
	cache    uint64   // number of the stream; 0: the client does not cache
	open     []uint64 // handles to announce
	confirm  chan struct{}
	answered func()

	mu       sync.Mutex
	number   uint64               // guarded by mu: of the last message that wants an answer
	sent     map[uint64]time.Time // guarded by mu: messages without an answer yet, and when they were sent
	recalled uint64               // guarded by mu: the last recall that was carried out
	told     uint64               // guarded by mu: the last one that was confirmed
}

// idleAfter is how long after its last use the cache is still kept trusted.
const idleAfter = 5 * time.Minute

// send sends messages until one fails or stays without an answer for a third of the TTL.
func (k *keepAlive) send(ctx context.Context) error {
	every := k.e.ttl / 3
	req := &dfsv1.KeepAliveRequest{Session: k.e.id, OpenInodes: k.open, Cache: k.cache}
	for {
		k.mu.Lock()
		k.number++
		req.Number, req.Recalled = k.number, k.recalled
		k.sent[k.number], k.told = time.Now(), k.recalled
		k.mu.Unlock()
		req.Closes = k.s.closesFor(req.GetNumber())
		if err := k.stream.Send(req); err != nil && !isEOF(err) {
			return err
		}
		req = &dfsv1.KeepAliveRequest{Session: k.e.id}
		sentAt := time.Now()
		for due := false; !due; {
			wait := every
			if k.cache != 0 && k.s.c.tree.UsedSince(sentAt.Add(-idleAfter)) {
				wait = min(wait, dfs.CacheRenew)
			}
			timer := time.NewTimer(time.Until(sentAt.Add(wait)))
			select {
			case <-timer.C:
				due = true
			case <-k.s.busy:
				due = time.Since(sentAt) >= dfs.CacheRenew
			case <-k.confirm:
				if err := k.confirmRecalls(); err != nil {
					timer.Stop()
					return err
				}
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			}
			timer.Stop()
		}
		if k.overdue(every) {
			return dfserr.Errorf(dfserr.ErrUnavailable, "the master does not answer keep-alive messages")
		}
	}
}

// confirmRecalls tells the master which recalls have been carried out.
func (k *keepAlive) confirmRecalls() error {
	k.mu.Lock()
	n := k.recalled
	news := n > k.told
	k.told = n
	k.mu.Unlock()
	if !news {
		return nil
	}
	if err := k.stream.Send(&dfsv1.KeepAliveRequest{Session: k.e.id, Recalled: n}); err != nil && !isEOF(err) {
		return err
	}
	return nil
}

// overdue reports whether a message has been without an answer for too long.
func (k *keepAlive) overdue(limit time.Duration) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, at := range k.sent {
		if time.Since(at) >= limit {
			return true
		}
	}
	return false
}

// receive takes answers and recalls until the stream ends.
func (k *keepAlive) receive() error {
	defer k.cancel()
	for {
		r, err := k.stream.Recv()
		if err != nil {
			return err
		}
		if r.GetRecallNumber() != 0 && k.cache != 0 {
			inodes := make([]dfs.InodeID, len(r.GetRecall()))
			for i, n := range r.GetRecall() {
				inodes[i] = dfs.InodeID(n)
			}
			k.s.c.tree.Drop(inodes...)
			k.mu.Lock()
			k.recalled = r.GetRecallNumber()
			k.mu.Unlock()
			select {
			case k.confirm <- struct{}{}:
			default:
			}
			continue
		}
		k.answered()
		k.mu.Lock()
		number := r.GetNumber()
		if number == 0 {
			number = k.number // a master that does not number its answers
		}
		sentAt, ok := k.sent[number]
		for n := range k.sent {
			if n <= number {
				delete(k.sent, n)
			}
		}
		k.mu.Unlock()
		k.s.closesTold(number)
		if !ok {
			continue
		}
		k.s.renewed(k.e, livesUntil(sentAt, r.GetTtlMs()))
		if k.cache != 0 {
			k.s.trustFrom(k.cache, sentAt)
		}
	}
}

// trustFrom lengthens the trust in the cache, unless the stream has been given up.
func (s *session) trustFrom(stream uint64, sentAt time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stream == stream {
		s.c.tree.Answered(sentAt)
	}
}

// reopen gets a new session at once when there are handles to announce, or to cache under.
func (s *session) reopen() {
	s.mu.Lock()
	need := (len(s.opens) > 0 || s.c.tree != nil) && !s.ended
	s.mu.Unlock()
	if !need {
		return
	}
	ctx, cancel := s.c.opContext(s.c.ctx)
	defer cancel()
	if _, err := s.get(ctx); err != nil {
		s.log.Warn("no new session could be opened; the next operation tries again", "error", err)
	}
}

// end closes the session at the master, as well as can be done before ctx ends.
func (s *session) end(ctx context.Context) {
	s.mu.Lock()
	e := s.epoch
	s.epoch, s.ended = nil, true
	s.mu.Unlock()
	if s.c.tree != nil {
		s.dropCache()
	}
	if e == nil {
		return
	}
	e.cancel()
	s.mu.Lock()
	e.stopLocked()
	s.mu.Unlock()
	m, _, err := s.c.masters.pick()
	if err != nil {
		return
	}
	if _, err := m.CloseSession(ctx, &dfsv1.CloseSessionRequest{Session: e.id}); err != nil {
		s.log.Debug("the session was not closed at the master; it lapses by itself", "session", e.id, "error", err)
	}
}
