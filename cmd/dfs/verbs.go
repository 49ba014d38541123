package main

import "slices"

// shellVerbs are the verbs that work on files, in the order of the help.
func shellVerbs() []*verb {
	return slices.Concat(lsVerbs(), treeVerbs(), copyVerbs(), contentVerbs(), usageVerbs(), attrVerbs(), findVerbs(), inspectVerbs())
}

// verbNamed finds a verb by name or alias.
func verbNamed(verbs []*verb, name string) *verb {
	for _, v := range verbs {
		if v.name == name || slices.Contains(v.aliases, name) {
			return v
		}
	}
	return nil
}
