//go:build race

package fusefs_test

// raceEnabled: the race detector makes the cluster several times slower.
const raceEnabled = true
