//go:build race

package rpc_test

// raceEnabled says that pools drop at random, as they do under the race detector.
const raceEnabled = true
