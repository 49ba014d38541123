package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"strconv"
	"strings"
)

func adminVerbs() []*verb {
	return []*verb{
		{
			name: "report", usage: "[-live] [-dead]", short: "Print the state of the cluster and of each chunkserver",
			flags: []flagDef{{name: "live", help: "only live chunkservers"}, {name: "dead", help: "only dead chunkservers"}},
			max:   noLimit, printsJSON: true, run: runReport,
		},
		{
			name: "safemode", usage: "get", short: "Print whether the master is in safe mode", min: 1, max: 1, printsJSON: true, run: runSafeMode,
		},
	}
}

func inspectVerbs() []*verb {
	return []*verb{
		{
			name: "fsck", usage: "<path> [-list-corruptfileblocks | [-files [-blocks [-locations]]]]", short: "Check that every chunk below a path has its replicas",
			long: "Exit status 0: healthy, or the path does not exist; 1: something is missing or corrupt.", raw: true, printsJSON: true, run: runFsck,
		},
		{
			name: "fileinfo", usage: "<path> ...", short: "Print each chunk of a file, and each replica's server, length and state",
			min: 1, printsJSON: true, run: runFileinfo,
		},
	}
}

// hadoopDate is how Java prints a Date.
const hadoopDate = "Mon Jan 02 15:04:05 MST 2006"

func runReport(ctx context.Context, sh *shell, args []string) error {
	if len(args) > 0 {
		return usagef("Too many arguments: expected 0 but got %d", len(args))
	}
	r, err := sh.fs.Report(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(r.Servers, func(a, b serverReport) int { return strings.Compare(a.Addr, b.Addr) })
	if sh.json {
		sh.printJSON(reportJSON(r))
		return nil
	}
	w, t := sh.out, r.Totals
	if r.SafeMode {
		fmt.Fprintln(w, "Safe mode is ON")
	}
	present := t.Free + t.Used
	bytesLine(w, "Configured Capacity", t.Capacity)
	bytesLine(w, "Present Capacity", present)
	bytesLine(w, "DFS Remaining", t.Free)
	bytesLine(w, "DFS Used", t.Used)
	fmt.Fprintf(w, "DFS Used%%: %s%%\n", percent(t.Used, present, 2))
	fmt.Fprintln(w, "Replicated Blocks:")
	if !r.Scanned {
		fmt.Fprintln(w, "\t(a scan is under way; the numbers are of the last one)")
	}
	fmt.Fprintf(w, "\tUnder replicated blocks: %d\n", r.UnderReplicated)
	fmt.Fprintf(w, "\tBlocks with corrupt replicas: %d\n", r.Corrupt)
	fmt.Fprintf(w, "\tMissing blocks: %d\n", r.Missing)
	fmt.Fprintf(w, "\tPending deletion blocks: %d\n", r.PendingDeletion)
	fmt.Fprintf(w, "\tBlocks being re-replicated: %d\n", r.RepairsRunning)
	fmt.Fprintln(w, "\n-------------------------------------------------")
	both := !sh.opts.on("live") && !sh.opts.on("dead")
	for _, state := range []string{"live", "dead"} {
		if both || sh.opts.on(state) {
			sh.reportServers(r, state, both)
		}
	}
	return nil
}

func (sh *shell) reportServers(r clusterReport, state string, quiet bool) {
	var some []serverReport
	for _, s := range r.Servers {
		if s.State == state {
			some = append(some, s)
		}
	}
	if len(some) == 0 && quiet && state != "live" {
		return
	}
	w := sh.out
	fmt.Fprintf(w, "%s datanodes (%d):\n\n", capital(state), len(some))
	for _, s := range some {
		host, _, err := net.SplitHostPort(s.Addr)
		if err != nil {
			host = s.Addr
		}
		fmt.Fprintf(w, "Name: %s (%s)\nHostname: %s\nServer: %s\nRack: %s\n", s.Addr, host, host, s.ID, s.Rack)
		bytesLine(w, "Configured Capacity", s.Capacity)
		bytesLine(w, "DFS Used", s.Used)
		bytesLine(w, "Non DFS Used", max(0, s.Capacity-s.Used-s.Free))
		bytesLine(w, "DFS Remaining", s.Free)
		fmt.Fprintf(w, "DFS Used%%: %s%%\nDFS Remaining%%: %s%%\n", percent(s.Used, s.Capacity, 2), percent(s.Free, s.Capacity, 2))
		if s.ReadOnly {
			fmt.Fprintln(w, "Read only: yes")
		}
		fmt.Fprintf(w, "Last contact: %s\n", sh.env.now().Add(-s.HeartbeatAgo).In(sh.env.zone).Format(hadoopDate))
		fmt.Fprintf(w, "Num of Blocks: %d\n\n\n", s.Chunks)
	}
}

func bytesLine(w io.Writer, label string, n int64) {
	fmt.Fprintf(w, "%s: %d (%s)\n", label, n, byteDesc(n))
}

// reportJSON is the documented form of `dfs admin report --json`.
func reportJSON(r clusterReport) map[string]any {
	servers := slices.Clone(r.Servers)
	if servers == nil {
		servers = []serverReport{}
	}
	return map[string]any{
		"cluster_id": r.ClusterID, "leader": r.Leader, "safe_mode": r.SafeMode,
		"capacity_bytes": r.Totals.Capacity, "used_bytes": r.Totals.Used, "free_bytes": r.Totals.Free,
		"inodes": r.Totals.Inodes, "chunks": r.Totals.Chunks, "data_bytes": r.Totals.Data,
		"under_replicated": r.UnderReplicated, "missing": r.Missing, "corrupt": r.Corrupt,
		"pending_deletion": r.PendingDeletion, "repairs_running": r.RepairsRunning, "scanned": r.Scanned, "servers": servers,
	}
}

func runSafeMode(ctx context.Context, sh *shell, args []string) error {
	if args[0] != "get" {
		return usagef("safemode knows only get")
	}
	r, err := sh.fs.Report(ctx)
	if err != nil {
		return err
	}
	if sh.json {
		sh.printJSON(map[string]bool{"safe_mode": r.SafeMode})
		return nil
	}
	state := "OFF"
	if r.SafeMode {
		state = "ON"
	}
	fmt.Fprintf(sh.out, "Safe mode is %s\n", state)
	return nil
}

// javaFloat prints a float32 as Java does: shortest form, at least one decimal.
func javaFloat(v float32) string {
	s := strconv.FormatFloat(float64(v), 'f', -1, 32)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// share prints n of all as HDFS's fsck does.
func share(n, all int64) string {
	if all == 0 {
		return strconv.FormatInt(n, 10)
	}
	return fmt.Sprintf("%d (%s %%)", n, javaFloat(float32(n*100)/float32(all)))
}

// fsckOptions are read by hand: HDFS lets them stand before and after the path.
type fsckOptions struct{ files, blocks, locations, listCorrupt bool }

func parseFsck(args []string) (fsckOptions, string, error) {
	var o fsckOptions
	path := ""
	for _, a := range args {
		switch a {
		case "-files":
			o.files = true
		case "-blocks":
			o.blocks = true
		case "-locations":
			o.locations = true
		case "-list-corruptfileblocks":
			o.listCorrupt = true
		default:
			if strings.HasPrefix(a, "-") {
				return o, "", usagef("fsck: Illegal option '%s'", a)
			}
			if path != "" {
				return o, "", usagef("fsck: can only operate on one path at a time '%s'", a)
			}
			path = a
		}
	}
	if path == "" {
		path = "/"
	}
	if o.locations && !o.blocks || o.blocks && !o.files {
		return o, "", usagef("fsck: -locations needs -blocks, and -blocks needs -files")
	}
	return o, path, nil
}

func runFsck(ctx context.Context, sh *shell, args []string) error {
	opts, path, err := parseFsck(args)
	if err != nil {
		return err
	}
	items, err := sh.expand(ctx, path, true)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil || !items[0].exists() {
		sh.note("FileSystem is inaccessible due to:\nFile does not exist: %s\nDFSck exiting.", path)
		return nil
	}
	o := items[0]
	begin := sh.env.now()
	var found []finding
	totals, err := sh.fs.Fsck(ctx, o.path, func(f finding) error {
		found = append(found, f)
		return nil
	})
	if err != nil {
		return about(o.shown, err)
	}
	healthy := totals.MissingChunks == 0 && totals.CorruptChunks == 0
	verdict := "HEALTHY"
	if !healthy {
		verdict = "CORRUPT"
	}
	switch {
	case sh.json:
		for _, f := range found {
			sh.printJSON(f)
		}
		sh.printJSON(map[string]any{"path": o.shown, "status": verdict, "totals": totals})
	case opts.listCorrupt:
		sh.listCorrupt(o, found)
	default:
		w := sh.out
		fmt.Fprintf(w, "FSCK started by %s (auth:SIMPLE) from /127.0.0.1 for path %s at %s\n\n", sh.env.user, o.shown, begin.In(sh.env.zone).Format(hadoopDate))
		if opts.files {
			if err := sh.fsckFiles(ctx, o, opts); err != nil {
				return err
			}
		}
		sh.fsckFindings(found)
		fmt.Fprintf(w, "\nStatus: %s\n", verdict)
		if err := sh.fsckTotals(ctx, totals); err != nil {
			return err
		}
		end := sh.env.now()
		fmt.Fprintf(w, "FSCK ended at %s in %d milliseconds\n\n\nThe filesystem under path '%s' is %s\n",
			end.In(sh.env.zone).Format(hadoopDate), end.Sub(begin).Milliseconds(), o.shown, verdict)
	}
	if !healthy {
		return &exitError{exitFailed}
	}
	return nil
}

func (sh *shell) listCorrupt(o operand, found []finding) {
	files := map[string]bool{}
	for _, f := range found {
		if f.Problem == "missing" || f.Problem == "corrupt" {
			fmt.Fprintf(sh.out, "%s\t%s\n", f.Chunk, f.Path)
			files[f.Path] = true
		}
	}
	fmt.Fprintf(sh.out, "The filesystem under path '%s' has %d CORRUPT files\n", o.shown, len(files))
}

// fsckFindings prints a line per problem, in HDFS's words.
func (sh *shell) fsckFindings(found []finding) {
	for _, f := range found {
		switch f.Problem {
		case "missing":
			fmt.Fprintf(sh.out, "\n%s: MISSING chunk %d %s of size %d B\n", f.Path, f.Index, f.Chunk, f.Length)
		case "corrupt":
			fmt.Fprintf(sh.out, "\n%s: CORRUPT chunk %d %s: %d of %d replicas are good\n", f.Path, f.Index, f.Chunk, f.Live, f.Want)
		default:
			fmt.Fprintf(sh.out, "\n%s:  Under replicated %s. Target Replicas is %d but found %d live replica(s).\n", f.Path, f.Chunk, f.Want, f.Live)
		}
	}
}

// fsckTotals prints the block of totals.
func (sh *shell) fsckTotals(ctx context.Context, t fsckTotals) error {
	report, err := sh.fs.Report(ctx)
	if err != nil {
		return err
	}
	w := sh.out
	fmt.Fprintf(w, " Number of data-nodes:\t%d\n Number of racks:\t\t%d\n Total dirs:\t\t\t%d\n Total symlinks:\t\t%d\n\n", t.LiveServers, t.Racks, t.Directories, t.Symlinks)
	fmt.Fprintf(w, "Replicated Blocks:\n Total size:\t%d B\n Total files:\t%d\n Total blocks (validated):\t%d", t.Bytes, t.Files, t.Chunks)
	if t.Chunks > 0 {
		fmt.Fprintf(w, " (avg. block size %d B)", t.Bytes/t.Chunks)
	}
	fmt.Fprintln(w)
	if t.MissingFiles > 0 || t.CorruptChunks > 0 {
		fmt.Fprintf(w, "  ********************************\n  CORRUPT FILES:\t%d\n", t.MissingFiles)
		if t.MissingChunks > 0 {
			fmt.Fprintf(w, "  MISSING BLOCKS:\t%d\n  MISSING SIZE:\t\t%d B\n", t.MissingChunks, t.MissingBytes)
		}
		if t.CorruptChunks > 0 {
			fmt.Fprintf(w, "  CORRUPT BLOCKS: \t%d\n", t.CorruptChunks)
		}
		fmt.Fprintln(w, "  ********************************")
	}
	average := float32(0)
	if t.Chunks > 0 {
		average = float32(t.Replicas) / float32(t.Chunks)
	}
	fmt.Fprintf(w, " Minimally replicated blocks:\t%s\n", share(t.MinimallyReplicated, t.Chunks))
	fmt.Fprintf(w, " Over-replicated blocks:\t%s\n", share(t.OverReplicated, t.Chunks))
	fmt.Fprintf(w, " Under-replicated blocks:\t%s\n", share(t.UnderReplicated, t.Chunks))
	fmt.Fprintf(w, " Default replication factor:\t%d\n", t.DefaultReplication)
	fmt.Fprintf(w, " Average block replication:\t%s\n", javaFloat(average))
	fmt.Fprintf(w, " Missing blocks:\t\t%d\n Corrupt blocks:\t\t%d\n", t.MissingChunks, t.CorruptChunks)
	fmt.Fprintf(w, " Missing replicas:\t\t%s\n", share(t.MissingReplicas, t.Replicas+t.MissingReplicas))
	fmt.Fprintf(w, " Blocks queued for replication:\t%d\n", report.RepairsRunning)
	return nil
}

// fsckFiles lists what was checked, as -files, -blocks and -locations do.
func (sh *shell) fsckFiles(ctx context.Context, o operand, opts fsckOptions) error {
	return sh.walk(ctx, o, func(item operand) error {
		switch {
		case item.isDir():
			fmt.Fprintf(sh.out, "%s <dir>\n", item.shown)
			return nil
		case !item.info.Mode.IsRegular():
			return nil
		}
		chunks, err := sh.fs.Chunks(ctx, item.path)
		if err != nil {
			return err
		}
		state := " OK"
		for _, c := range chunks {
			switch live := validReplicas(c); {
			case live == 0:
				state = "MISSING"
			case live < c.Want && state == " OK":
				state = fmt.Sprintf(" Under replicated %s", c.ID)
			}
		}
		fmt.Fprintf(sh.out, "%s %d bytes, replicated: replication=%d, %d block(s): %s\n", item.shown, item.info.Size, item.info.Replication, len(chunks), state)
		if !opts.blocks {
			return nil
		}
		for _, c := range chunks {
			fmt.Fprintf(sh.out, "%d. %s_%d len=%d Live_repl=%d", c.Index, c.ID, c.Version, c.Length, validReplicas(c))
			if opts.locations {
				var at []string
				for _, r := range c.Replicas {
					at = append(at, r.Addr)
				}
				fmt.Fprintf(sh.out, "  [%s]", strings.Join(at, ", "))
			}
			fmt.Fprintln(sh.out)
		}
		fmt.Fprintln(sh.out)
		return nil
	})
}

func runFileinfo(ctx context.Context, sh *shell, args []string) error {
	return sh.eachOperand(ctx, args, true, nil, func(o operand) error {
		var chunks []chunkInfo
		if o.info.Mode.IsRegular() && !o.info.Inline {
			var err error
			if chunks, err = sh.fs.Chunks(ctx, o.path); err != nil {
				return err
			}
		}
		if sh.json {
			sh.printJSON(sh.fileinfoJSON(o, chunks))
			return nil
		}
		w := sh.out
		fmt.Fprintf(w, "%s: %s, %d bytes, inode %d", o.shown, typeText(o.info.Mode), o.info.Size, o.info.Inode)
		switch {
		case !o.info.Mode.IsRegular():
			fmt.Fprintln(w)
			return nil
		case o.info.Inline:
			fmt.Fprintln(w, ", stored in the inode")
			return nil
		}
		fmt.Fprintf(w, ", %d chunks of %s, replication %d\n", len(chunks), humanSize(o.info.ChunkSize), o.info.Replication)
		for _, c := range chunks {
			fmt.Fprintf(w, "  chunk %d: id %s version %d length %d, %d of %d replicas valid\n", c.Index, c.ID, c.Version, c.Length, validReplicas(c), c.Want)
			t := table{}
			for i, r := range c.Replicas {
				role := ""
				if i == 0 {
					role = "primary"
				}
				t.add("    replica", r.Addr, "server "+r.Server, fmt.Sprintf("version %d", r.Version), fmt.Sprintf("length %d", r.Length), strings.ToUpper(r.State), role)
			}
			t.print(w)
		}
		return nil
	})
}

// fileinfoJSON is the documented form of `dfs fileinfo --json`.
func (sh *shell) fileinfoJSON(o operand, chunks []chunkInfo) any {
	type chunkRow struct {
		Index    int64         `json:"index"`
		ID       string        `json:"id"`
		Version  uint64        `json:"version"`
		Length   int64         `json:"length"`
		Want     int           `json:"want"`
		Replicas []replicaInfo `json:"replicas"`
	}
	rows := []chunkRow{}
	for _, c := range chunks {
		rows = append(rows, chunkRow(c))
	}
	return struct {
		infoRow
		Chunks []chunkRow `json:"chunks"`
	}{sh.infoJSON(o), rows}
}
