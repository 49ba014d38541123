package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// defaultMasterPort is where a master listens unless told otherwise.
const defaultMasterPort = "7400"

// target is a cluster to connect to, and who said so, for messages.
type target struct {
	masters  []string // host:port
	source   string
	logLevel string
}

// findCluster decides which cluster a command line means: an address in an operand, -fs or --masters, DFS_MASTERS, or
// the current cluster as mini or local noted it, in this order.
func findCluster(env *environ, opts options, operands []string) (target, error) {
	t := target{logLevel: opts["log-level"]}
	if t.logLevel == "" {
		t.logLevel = env.getenv("DFS_LOG_LEVEL")
	}
	named := ""
	for _, o := range operands {
		authority, _, ok := splitURI(o)
		if !ok || authority == "" {
			continue
		}
		if named != "" && named != authority {
			return t, failuref(o, "names another cluster than %s%s; one command works on one cluster", scheme, named)
		}
		named = authority
	}
	list, source := named, "the path's address"
	if fromURI, _, ok := splitURI(opts["fs"]); list == "" && opts.on("fs") {
		if list, source = opts["fs"], "-fs"; ok {
			list = fromURI
		}
	}
	if list == "" && opts.on("masters") {
		list, source = opts["masters"], "--masters"
	}
	if list == "" {
		list, source = env.getenv("DFS_MASTERS"), "DFS_MASTERS"
	}
	if list == "" {
		b, err := os.ReadFile(env.currentFile())
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return t, fmt.Errorf("reading which cluster is current: %w", err)
		}
		list, source = strings.TrimSpace(string(b)), env.currentFile()
	}
	if list == "" {
		return t, errors.New("no cluster is known: start one with 'dfs mini', or name its masters with --masters host:port or DFS_MASTERS")
	}
	masters, err := parseMasters(list)
	if err != nil {
		return t, fmt.Errorf("%s: %w", source, err)
	}
	t.masters, t.source = masters, source
	return t, nil
}

// parseMasters reads host:port,host:port; a missing port is the default one.
func parseMasters(list string) ([]string, error) {
	var masters []string
	for m := range strings.SplitSeq(list, ",") {
		m = strings.TrimSpace(m)
		if m == "" {
			continue
		}
		host, port, err := net.SplitHostPort(m)
		if err != nil {
			host, port = strings.Trim(m, "[]"), defaultMasterPort
		}
		if host == "" || port == "" || strings.ContainsAny(host, "/ ") {
			return nil, fmt.Errorf("%q is not a list of host:port", list)
		}
		masters = append(masters, net.JoinHostPort(host, port))
	}
	if len(masters) == 0 {
		return nil, fmt.Errorf("%q is not a list of host:port", list)
	}
	return masters, nil
}

func (env *environ) currentFile() string { return filepath.Join(env.configDir, "current") }

// setCurrent notes the cluster that commands without an address mean.
func (env *environ) setCurrent(masters []string) error {
	if err := os.MkdirAll(env.configDir, 0o755); err != nil {
		return fmt.Errorf("noting the current cluster: %w", err)
	}
	return writeFileAtomic(env.currentFile(), []byte(strings.Join(masters, ",")+"\n"))
}

// dropCurrent forgets the current cluster if it is still this one.
func (env *environ) dropCurrent(masters []string) {
	b, err := os.ReadFile(env.currentFile())
	if err == nil && strings.TrimSpace(string(b)) == strings.Join(masters, ",") {
		if err := os.Remove(env.currentFile()); err != nil {
			env.debugf("forgetting the current cluster: %v", err)
		}
	}
}

// writeFileAtomic replaces a local file in one step.
func writeFileAtomic(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
