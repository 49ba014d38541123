// Package dfsv1 is the protocol: the messages and services by which clients, masters and chunkservers talk, and the
// values and commands that a master stores. The .proto files beside it are the source and carry the
// comments that matter; the Go code is generated from them and committed. There is no logic here.
//
// Fields and members of a oneof are only added, never renumbered or given another meaning.
package dfsv1
