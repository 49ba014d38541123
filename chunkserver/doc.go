// Package chunkserver is the process that keeps replicas of chunks: it orders and forwards writes along chains,
// answers reads from any replica, reports to the leading master, and copies replicas on the master's order. What a
// replica looks like on disk is chunkserver/store's business, where replicas are to be is the master's.
//
// # Roles
//
// A replica plays a role for the configuration it was last prepared for:
//
//   - none: the process has not been told anything yet (after a start, or a long pause in use);
//   - secondary: a primary prepared it (Prepare) and, once its log is in step, takes mutations from its predecessor;
//   - primary, preparing: it holds the write lease and is bringing the others into step (activate.go);
//   - primary, active: it orders mutations.
//
// A primary draws a random activation number each time it prepares its replicas. Mutations and their
// acknowledgements carry it next to the version, so that frames of an earlier attempt that are still on their way — of
// this process or of one that died, under the same version — can neither enter a log nor count as acknowledged.
// Among the replicas of a configuration the longest log wins: the one whose last mutation has the highest version,
// then the highest seq. Every acknowledged mutation is in it; what is more than that was never acknowledged and may stay.
//
// # What protects reads
//
// A replica answers a read only within a serving period: an unbroken run of serving leases from one heartbeat
// stream. In each period it first learns from the master, by a call begun in that period, that its configuration is
// the committed one; a master that leaves a replica out of a configuration ends that replica's period before the new
// configuration can acknowledge anything. A period ends when the lease lapses, when the heartbeat stream breaks, or when the
// master grants nothing. Leases are counted from before the request was sent, on the monotonic clock, less a margin.
//
// A read takes the bytes first and looks second which of the mutations that they may show are not known to be committed; it
// waits for those, at the primary itself or by asking it (CRAQ, Terrace and Freedman 2009 §3), and answers only if the log was not
// cut back meanwhile.
//
// # Goroutines and order of locks
//
// The token of a chunk (chunk.token) is the right to change its log; its holder may wait for a disk, and while a primary
// is preparing, for peers. Everything else is under mutexes held for short times, taken in this order:
//
//	chunk.token
//	  chunkTable.mu
//	    chunk.mu
//	      downstreams.mu, downstream.mu, writeStream.mu, forwardStream.mu, window.mu,
//	      serving.mu, members.mu, Server.beatMu (none inside another)
//
// No disk is waited for and nothing is sent with any mutex held.
//
// A frame that arrives is put into its chunk's queue; whoever finds the token free works the queue off: the stream's
// own goroutine for small frames, a new one for large frames and for whatever a goroutine would be kept by too long. Each
// Write stream has one goroutine that sends acknowledgements, each downstream (a Forward stream to a successor) one that
// sends and one that receives. Server.Close joins all of them.
//
// # Failures
//
// A replica that cannot be reached, refuses, or stalls is reported to the master by the primary, which then starts over with
// the configuration it is given. Calls between servers carry deadlines and are not retried here, except that
// activation is begun again with each new configuration, a bounded number of times; clients retry whole requests
// under the same request ids.
package chunkserver
