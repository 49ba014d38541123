// Package repocheck tests the repository itself: who may import whom, what must be documented, and which calls
// are banned where. It has no code but tests. Each rule gives its reason in the message; a rule that turns
// out to be wrong is changed here, in the open, not worked around.
//
// The rules look at syntax only and parse every file once, so the whole takes a second or two. TestRulesFire
// proves for each rule on source that it can fail.
package repocheck
