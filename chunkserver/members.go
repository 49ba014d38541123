package chunkserver

import (
	"sync"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
	dfsv1 "dfs/proto/dfs/v1"
)

// members knows where the other chunkservers answer. Addresses come from the master only: from heartbeat replies,
// and from configurations in its replies.
type members struct {
	mu   sync.Mutex
	addr map[dfs.ServerID]string // guarded by mu
}

// replace takes over the whole list of members.
func (m *members) replace(list []*dfsv1.ServerAddr) {
	addr := make(map[dfs.ServerID]string, len(list))
	for _, s := range list {
		addr[dfs.ServerID(s.GetServer())] = s.GetAddr()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addr = addr
}

// learn adds the addresses of a configuration that the master sent.
func (m *members) learn(list []*dfsv1.ServerAddr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.addr == nil {
		m.addr = make(map[dfs.ServerID]string, len(list))
	}
	for _, s := range list {
		if s.GetAddr() != "" {
			m.addr[dfs.ServerID(s.GetServer())] = s.GetAddr()
		}
	}
}

// knows reports whether the addresses of all the servers are known.
func (m *members) knows(ids []dfs.ServerID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		if m.addr[id] == "" {
			return false
		}
	}
	return true
}

// lookup returns a server's address. ErrUnavailable: the master has not told it.
func (m *members) lookup(id dfs.ServerID) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.addr[id]; a != "" {
		return a, nil
	}
	return "", dfserr.Errorf(dfserr.ErrUnavailable, "address of chunkserver %s", id)
}
