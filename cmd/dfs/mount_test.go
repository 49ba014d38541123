package main

import (
	"strings"
	"testing"
	"time"

	"dfs/fusefs"
)

func TestMountOptions(t *testing.T) {
	m := &mountArgs{opts: fusefs.Options{AllowOther: true}}
	if err := m.setOptions("ro,_netdev,x-systemd.requires=network-online.target,noallow_other,umask=027,uid=12,attr_timeout=200ms,max_readahead=1m,nosuid,subdir=/a/b"); err != nil {
		t.Fatal(err)
	}
	o := m.opts
	if !o.ReadOnly || o.AllowOther || o.Show.Umask != 0o027 || *o.Show.UID != 12 || o.AttrTimeout != 200*time.Millisecond || o.MaxReadahead != 1<<20 || !o.NoSetuid || m.subdir != "/a/b" {
		t.Errorf("%+v", m)
	}
	if err := m.setOptions("attr_timeout=1.5"); err != nil || m.opts.AttrTimeout != 1500*time.Millisecond {
		t.Error(err, m.opts.AttrTimeout)
	}
	for option, want := range map[string]string{
		"alow_other": "allow_other", "read_ahead=1": "unknown option", "rro": "did you mean ro", "uid=x": "not a number", "umask=9": "not a number",
		"attr_timeout=soon": "not a time", "max_readahead=1": "4k to 1g", "subdir=": "needs a value",
	} {
		if err := m.setOptions(option); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), option) {
			t.Errorf("-o %s: %v, want %q", option, err, want)
		}
	}
}

func TestMountSource(t *testing.T) {
	for source, want := range map[string][2]string{
		"m1:7400,m2:7400":      {"m1:7400,m2:7400", ""},
		"m1,m2,m3:/":           {"m1,m2,m3", ""},
		"m1:7400:/data/x":      {"m1:7400", "/data/x"},
		"dfs://m1:7400/data/x": {"m1:7400", "/data/x"},
		"dfs://m1:7400":        {"m1:7400", ""},
		"none":                 {"", ""},
	} {
		m := &mountArgs{}
		if m.setSource(source); m.masters != want[0] || m.subdir != want[1] {
			t.Errorf("%s: masters %q, directory %q, want %q", source, m.masters, m.subdir, want)
		}
	}
}

func TestMountHelperArguments(t *testing.T) {
	m, err := parseMountHelper([]string{"m1:7400:/sub", "/mnt/x", "-sv", "-t", "fuse.dfs", "-o", "rw,noexec"})
	if err != nil {
		t.Fatal(err)
	}
	if m.masters != "m1:7400" || m.subdir != "/sub" || m.dir != "/mnt/x" || !m.background || !m.opts.NoExec {
		t.Errorf("%+v", m)
	}
	if _, err := parseMountHelper([]string{"only-one"}); err == nil {
		t.Error("a missing directory was accepted")
	}
}
