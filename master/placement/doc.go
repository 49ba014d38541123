// Package placement chooses the chunkservers that hold a chunk (DESIGN §7). It is pure: the same nodes, loads
// and request give the same answer in every process, and nothing here reads a clock, a disk or the network.
//
// A Ring is a consistent-hash ring with virtual nodes in proportion to capacity. It is immutable and safe
// for concurrent use. A Placer is a Ring plus the loads and flags of its nodes; it has no lock and is driven by
// one owner at a time.
//
// Choose walks the ring clockwise from the chunk's hash and takes the first servers that keep the rules. In
// falling order of importance:
//
//  1. replicas are on distinct servers, none of them draining, full, excluded or of weight zero;
//  2. as many replicas as were asked for;
//  3. at least two racks, when two racks have servers that may take the chunk;
//  4. no server beyond BoundFactor times its share of the load (consistent hashing with bounded loads,
//     Mirrokni, Thorup and Zadimoghaddam 2016);
//  5. the first replica on the writer's own server, or in its rack, when asked.
//
// A later rule gives way to an earlier one, and Choice says so.
//
// Joining or leaving moves only what the ring moves. How many virtual nodes a server has depends on its
// own weight and on the ring's unit, never on how many servers there are; the unit is a power of two derived from
// the median weight, so it changes only when the typical server has doubled or halved. Options.Unit pins it.
package placement
