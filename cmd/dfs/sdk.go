package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"dfs/client"
)

// sdk answers the shell's questions with package client.
type sdk struct {
	c *client.Client
}

var _ remote = (*sdk)(nil)

// patience is for how long one operation is tried again while servers are away: longer than it takes to go on without
// one of them or to start them again, shorter than a person waits without a word.
const patience = 30 * time.Second

// dialSDK connects to a cluster; a failure names the addresses and who gave them.
func dialSDK(ctx context.Context, where target) (remote, error) {
	cfg := client.Config{Masters: where.masters, OpTimeout: patience}
	if where.logLevel != "" && where.logLevel != "off" {
		cfg.Logger = hclog.New(&hclog.LoggerOptions{Name: "client", Level: hclog.LevelFromString(where.logLevel), Output: os.Stderr})
	}
	c, err := client.Dial(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the cluster at %s (from %s): %w", strings.Join(where.masters, ","), where.source, err)
	}
	return &sdk{c: c}, nil
}

func (s *sdk) URI() string { return scheme + s.c.Masters()[0] }

func (s *sdk) Close() error { return s.c.Close() }

// infoOf converts what the SDK says about an inode.
func infoOf(i *client.FileInfo) fileInfo {
	a := i.Attr
	return fileInfo{
		Name: i.Name(), Inode: uint64(a.Inode), Mode: a.Mode, UID: a.UID, GID: a.GID, Nlink: a.Nlink, Size: a.Size,
		ATime: a.Atime, MTime: a.Mtime, Target: a.Target, ChunkSize: a.ChunkSize, Replication: a.Replication, Inline: a.Inline,
		SizeIsBound: a.SizeIsBound,
	}
}

func (s *sdk) Stat(ctx context.Context, path string) (fileInfo, error) {
	i, err := s.c.Peek(ctx, path, false)
	if err != nil {
		return fileInfo{}, err
	}
	return infoOf(i), nil
}

func (s *sdk) Lstat(ctx context.Context, path string) (fileInfo, error) {
	i, err := s.c.Peek(ctx, path, true)
	if err != nil {
		return fileInfo{}, err
	}
	return infoOf(i), nil
}

func (s *sdk) ReadDir(ctx context.Context, path string, each func(fileInfo) error) error {
	return s.c.ReadDirFunc(ctx, path, "", func(i *client.FileInfo) error { return each(infoOf(i)) })
}

func (s *sdk) Mkdir(ctx context.Context, path string, perm fs.FileMode) error {
	return s.c.Mkdir(ctx, path, perm)
}

func (s *sdk) MkdirAll(ctx context.Context, path string, perm fs.FileMode) error {
	return s.c.MkdirAll(ctx, path, perm)
}

func (s *sdk) Remove(ctx context.Context, path string) error { return s.c.Remove(ctx, path) }

func (s *sdk) RemoveAll(ctx context.Context, path string) error { return s.c.RemoveAll(ctx, path) }

func (s *sdk) Rename(ctx context.Context, old, new string, replace bool) error {
	if replace {
		return s.c.Rename(ctx, old, new)
	}
	return s.c.RenameNoReplace(ctx, old, new)
}

func (s *sdk) Link(ctx context.Context, old, new string) error { return s.c.Link(ctx, old, new) }

func (s *sdk) Symlink(ctx context.Context, target, path string) error {
	return s.c.Symlink(ctx, target, path)
}

func (s *sdk) Chmod(ctx context.Context, path string, mode fs.FileMode) error {
	return s.c.Chmod(ctx, path, mode)
}

func (s *sdk) Chown(ctx context.Context, path string, uid, gid int) error {
	return s.c.Lchown(ctx, path, uid, gid)
}

func (s *sdk) Chtimes(ctx context.Context, path string, atime, mtime time.Time) error {
	return s.c.Chtimes(ctx, path, atime, mtime)
}

func (s *sdk) Truncate(ctx context.Context, path string, length int64) error {
	return s.c.Truncate(ctx, path, length)
}

func (s *sdk) SetReplication(ctx context.Context, path string, n int) error {
	return s.c.SetReplication(ctx, path, n)
}

func (s *sdk) StatFS(ctx context.Context) (fsTotals, error) {
	t, err := s.c.StatFS(ctx)
	return totalsOf(t), err
}

func totalsOf(t client.FSStats) fsTotals {
	return fsTotals{Capacity: t.Capacity, Used: t.Used, Free: t.Free, Inodes: t.Inodes, Chunks: t.Chunks, Data: t.DataBytes}
}

func (s *sdk) Chunks(ctx context.Context, path string) ([]chunkInfo, error) {
	found, err := s.c.Chunks(ctx, path)
	if err != nil {
		return nil, err
	}
	chunks := make([]chunkInfo, len(found))
	for i, k := range found {
		chunks[i] = chunkInfo{Index: k.Index, ID: k.Chunk.String(), Version: uint64(k.Version), Length: k.Length, Want: k.Replication}
		for _, r := range k.Replicas {
			chunks[i].Replicas = append(chunks[i].Replicas, replicaInfo{
				Server: r.Server.String(), Addr: r.Addr, Version: uint64(r.Version), Length: r.Length, State: r.State,
			})
		}
	}
	return chunks, nil
}

func (s *sdk) Report(ctx context.Context) (clusterReport, error) {
	r, err := s.c.ClusterReport(ctx)
	if err != nil {
		return clusterReport{}, err
	}
	report := clusterReport{
		ClusterID: r.ClusterID.String(), Leader: r.Leader, SafeMode: r.SafeMode, Totals: totalsOf(r.Totals),
		UnderReplicated: r.UnderReplicated, Missing: r.Missing, Corrupt: r.Corrupt, PendingDeletion: r.PendingDeletion,
		RepairsRunning: r.RepairsRunning, Scanned: r.RepairsScanned,
	}
	for _, c := range r.Servers {
		report.Servers = append(report.Servers, serverReport{
			ID: c.Server.String(), Addr: c.Addr, Rack: c.Rack, State: c.State, Capacity: c.Capacity, Used: c.Used, Free: c.Free,
			Chunks: c.Chunks, HeartbeatAgo: c.LastHeartbeat, HeartbeatAgoMS: c.LastHeartbeat.Milliseconds(), Software: c.Software, ReadOnly: c.ReadOnly,
		})
	}
	return report, nil
}

func (s *sdk) Fsck(ctx context.Context, path string, each func(finding) error) (fsckTotals, error) {
	t, err := s.c.Fsck(ctx, path, func(f client.Finding) error {
		return each(finding{Path: f.Path, Chunk: f.Chunk.String(), Index: f.Index, Problem: f.Problem, Live: f.Live, Want: f.Want, Length: f.Length})
	})
	if err != nil {
		return fsckTotals{}, err
	}
	return fsckTotals{
		Bytes: t.Bytes, Directories: t.Directories, Files: t.Files, Symlinks: t.Symlinks, Chunks: t.Chunks,
		MissingChunks: t.MissingChunks, MissingFiles: t.MissingFiles, MissingBytes: t.MissingBytes,
		UnderReplicated: t.UnderReplicated, OverReplicated: t.OverReplicated, CorruptChunks: t.CorruptChunks,
		MissingReplicas: t.MissingReplicas, Replicas: t.Replicas, DefaultReplication: t.DefaultReplication,
		LiveServers: t.LiveServers, Racks: t.Racks, MinimallyReplicated: t.MinimallyReplicated,
	}, nil
}

// sdkReader reads through the context of Open.
type sdkReader struct{ *client.File }

func (r sdkReader) Size(ctx context.Context) (int64, error) {
	i, err := r.Info(ctx)
	if err != nil {
		return 0, err
	}
	return i.Size(), nil
}

func (s *sdk) Open(ctx context.Context, path string) (reader, error) {
	f, err := s.c.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	return sdkReader{f.WithContext(ctx)}, nil
}

// sdkWriter streams through the context of Create or OpenAppend.
type sdkWriter struct {
	f *client.File
	w *client.BufferedWriter
}

func (w sdkWriter) Write(p []byte) (int, error) { return w.w.Write(p) }

func (w sdkWriter) Close() error { return w.f.Close() }

func (w sdkWriter) CloseAs(path string, replace bool) error { return w.f.CloseRename(path, !replace) }

// Abandon closes without waiting for anything.
func (w sdkWriter) Abandon() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = w.f.WithContext(ctx).Close() // what was written is not wanted
}

// writing streams into an open file under ctx.
func writing(ctx context.Context, f *client.File, err error) (writer, error) {
	if err != nil {
		return nil, err
	}
	f = f.WithContext(ctx)
	return sdkWriter{f: f, w: f.Buffered()}, nil
}

func (s *sdk) Create(ctx context.Context, path string, perm fs.FileMode, large bool) (writer, error) {
	f, err := s.c.CreateFile(ctx, path, os.O_WRONLY|os.O_EXCL, perm, client.CreateOptions{Large: large})
	return writing(ctx, f, err)
}

func (s *sdk) OpenAppend(ctx context.Context, path string) (writer, error) {
	f, err := s.c.OpenFile(ctx, path, os.O_WRONLY|os.O_APPEND, 0)
	return writing(ctx, f, err)
}

func (s *sdk) WriteSmall(ctx context.Context, path string, data []byte, perm fs.FileMode, replace bool) error {
	if replace {
		return s.c.WriteFile(ctx, path, data, perm)
	}
	return s.c.WriteNewFile(ctx, path, data, perm)
}
