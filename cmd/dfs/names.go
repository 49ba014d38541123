package main

import (
	"os/user"
	"strconv"
	"sync"
)

// nameCache turns user and group ids into names and back, with the local machine's tables. It is safe for
// concurrent use and remembers each answer for the life of the process.
type nameCache struct {
	// lookup functions, by id and by name.
	userByID, groupByID     func(id string) (string, bool)
	userByName, groupByName func(name string) (string, bool)

	mu     sync.Mutex // guards users and groups
	users  map[uint32]string
	groups map[uint32]string
}

// systemNames is the cache over /etc/passwd and /etc/group.
func systemNames() *nameCache {
	return &nameCache{
		userByID: func(id string) (string, bool) {
			u, err := user.LookupId(id)
			if err != nil {
				return "", false
			}
			return u.Username, true
		},
		groupByID: func(id string) (string, bool) {
			g, err := user.LookupGroupId(id)
			if err != nil {
				return "", false
			}
			return g.Name, true
		},
		userByName: func(name string) (string, bool) {
			u, err := user.Lookup(name)
			if err != nil {
				return "", false
			}
			return u.Uid, true
		},
		groupByName: func(name string) (string, bool) {
			g, err := user.LookupGroup(name)
			if err != nil {
				return "", false
			}
			return g.Gid, true
		},
	}
}

// owner is the name of a user, or the number where there is none.
func (c *nameCache) owner(id uint32) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users == nil {
		c.users = map[uint32]string{}
	}
	return lookUp(c.users, id, c.userByID)
}

// group is the name of a group, or the number where there is none.
func (c *nameCache) group(id uint32) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.groups == nil {
		c.groups = map[uint32]string{}
	}
	return lookUp(c.groups, id, c.groupByID)
}

func lookUp(known map[uint32]string, id uint32, find func(string) (string, bool)) string {
	name, ok := known[id]
	if !ok {
		text := strconv.FormatUint(uint64(id), 10)
		if name, ok = find(text); !ok {
			name = text
		}
		known[id] = name
	}
	return name
}

// userID is the id of a user given by name or by number.
func (c *nameCache) userID(name string) (int, bool) { return idOf(name, c.userByName) }

// groupID is the id of a group given by name or by number.
func (c *nameCache) groupID(name string) (int, bool) { return idOf(name, c.groupByName) }

func idOf(name string, find func(string) (string, bool)) (int, bool) {
	text, ok := find(name)
	if !ok {
		text = name
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0, false
	}
	return int(n), true
}
