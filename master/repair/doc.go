// Package repair plans what brings chunks back to their wanted replicas (DESIGN §6 "Joining", §7): copies to
// make, configurations to commit, and replicas to delete. It moves nothing itself. The same observations in the
// same order give the same commands in the same order.
//
// The owner walks the chunk records and calls Observe for each with what it knows of the replicas; Observe keeps
// the most urgent tasks, at most Limits.Queue of each class, so memory does not grow with the number of chunks. Next
// turns tasks into commands within the limits. A command names the version of the record that it was planned for:
// whoever carries it out checks that the record still has it.
//
// The order of urgency: configurations that contain a replica known to be bad; chunks that lack replicas, those
// with the fewest good ones first; chunks on draining servers; chunks in one rack; configurations with
// replicas too many; deletions.
//
// Invariants, which the tests check against a model:
//
//   - a configuration is never left without a good replica that had one, and nothing is done to a chunk that has
//     no good replica: its other replicas may be the last hope;
//   - a replica that is good, draining, away or dead is dropped only when as many good ones as wanted remain;
//   - replicas outside the configuration are deleted only when the chunk has as many good ones as
//     wanted, and never when their version is above the record's.
//
// A dead replica stays in the configuration until then on purpose: when its server comes back and nothing was
// written meanwhile, it is good again without a copy. When something is to be written, the write path drops it
// at once.
//
// A Planner has no lock, clock or goroutine: calls must not overlap.
package repair
