package fusefs_test

import (
	"bytes"
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var programsLong = flag.Bool("programs-long", false, "run the databases and builds at full length")

// postgres is where Debian has PostgreSQL's programs, of whatever version.
const postgres = "/usr/lib/postgresql/*/bin"

// program is a shell script that works in an empty directory on the mount ($PWD) and has a local one ($LOCAL). It checks
// its own result. $OTHER is the same directory through a second mount.
type program struct {
	name   string
	needs  []string
	script string
	heavy  bool // not with the race detector
}

// tree makes some files of many kinds under $LOCAL/tree.
const tree = `
mkdir -p $LOCAL/tree && cd $LOCAL/tree
for d in a a/b a/b/c 'with space' é; do mkdir -p "$d"; for i in 1 2 3 4 5 6; do head -c $((i*i*i*700)) /dev/urandom > "$d/f$i"; done; done
ln -s f1 a/link; ln -s /nowhere a/dangling; ln a/f2 a/hard; mkfifo a/pipe
chmod 4755 a/f3; chmod 1777 'with space'; touch -d '2001-02-03 04:05:06.789' a/b/f1; truncate -s 300000 a/sparse; : > a/empty
cd "$WORK"
`

var programs = []program{
	{name: "cp", needs: []string{"cp", "diff"}, script: tree + `
cp -a $LOCAL/tree copy && diff -r --no-dereference $LOCAL/tree/é copy/é && diff -r --no-dereference $LOCAL/tree/a/b copy/a/b
diff -r --no-dereference $LOCAL/tree/a/b $OTHER/copy/a/b
stat -c '%A %n %s %Y' $LOCAL/tree/a/f* $LOCAL/tree/a/b/f1 | sed "s|$LOCAL/tree|X|" > $LOCAL/1
stat -c '%A %n %s %Y' copy/a/f* copy/a/b/f1 | sed "s|copy|X|" > $LOCAL/2; cmp $LOCAL/1 $LOCAL/2
[ "$(stat -c %h copy/a/hard)" = 2 ] && cp -a copy copy2 && diff -r --no-dereference copy/a/b copy2/a/b && rm -r copy2`},
	{name: "tar", needs: []string{"tar"}, script: tree + `
tar -C $LOCAL -cf - tree | tar xf - && tar -C $LOCAL -cf $LOCAL/t.tar tree && tar --compare -f $LOCAL/t.tar && tar cf back.tar tree && tar tf back.tar | wc -l`},
	{name: "rsync", needs: []string{"rsync"}, script: tree + `
rsync -aH $LOCAL/tree/ dst/ && rsync -aH --itemize-changes $LOCAL/tree/ dst/ > $LOCAL/second && cat $LOCAL/second && [ ! -s $LOCAL/second ]
rsync -aHc --itemize-changes $LOCAL/tree/ $OTHER/dst/ > $LOCAL/third && [ ! -s $LOCAL/third ]`},
	{name: "git", needs: []string{"git"}, script: tree + `
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b HOME=$LOCAL
git init -q repo && cd repo && rm -f $LOCAL/tree/a/pipe && cp -r $LOCAL/tree/* . && git add -A && git commit -qm one
for i in 1 2; do echo $i >> a/f1; git commit -qam "c$i"; done
git gc -q && git fsck --full --strict && [ -z "$(git status --porcelain)" ] && cd .. && git clone -q repo clone && diff -r repo/a/b clone/a/b
cd clone && git checkout -q HEAD~2 && git log --oneline | wc -l && git fsck --full`},
	{name: "sqlite", needs: []string{"sqlite3"}, script: `
for mode in delete wal truncate; do
sqlite3 $mode.db "PRAGMA journal_mode=$mode; CREATE TABLE t(i INTEGER PRIMARY KEY, s TEXT);" 
for i in 1 2 3 4 5; do sqlite3 $mode.db "PRAGMA busy_timeout=20000; BEGIN; WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x<300) INSERT INTO t(s) SELECT hex(randomblob(50)) FROM c; COMMIT;" > /dev/null & done; wait
sqlite3 $mode.db "UPDATE t SET s='x'||s WHERE i%3=0; DELETE FROM t WHERE i%7=0; VACUUM;"
[ "$(sqlite3 $mode.db 'PRAGMA integrity_check')" = ok ] && [ "$(sqlite3 $mode.db 'SELECT count(*) FROM t')" = 1286 ]
done`},
	{name: "sqlite on two mounts", needs: []string{"sqlite3"}, script: `
sqlite3 db "PRAGMA journal_mode=delete; CREATE TABLE t(i INTEGER PRIMARY KEY, s TEXT); CREATE TABLE n(n INTEGER); INSERT INTO n VALUES(0);" > /dev/null
for i in 1 2 3 4 5 6; do dir=$PWD; [ $((i%2)) = 0 ] && dir=$OTHER
( cd $dir; for j in 1 2 3 4 5 6; do sqlite3 db "PRAGMA busy_timeout=60000; BEGIN IMMEDIATE; INSERT INTO t(s) SELECT hex(randomblob(2000)) FROM n; UPDATE n SET n=n+1; COMMIT;" > /dev/null || echo failed; done ) & done; wait
for dir in $PWD $OTHER; do cd $dir; [ "$(sqlite3 db 'PRAGMA integrity_check')" = ok ] && [ "$(sqlite3 db 'SELECT count(*), (SELECT n FROM n) FROM t')" = "36|36" ] || exit 1; done`},
	{name: "find and xargs", needs: []string{"find", "xargs"}, script: `
for i in $(seq 150); do echo $i > f$i; done
[ $(find . -type f -print0 | xargs -0 -P4 cat | sort -n | uniq | wc -l) = 150 ]
find . -name 'f*' -delete && [ -z "$(ls -A)" ]`},
	{name: "dpkg-deb", needs: []string{"dpkg-deb"}, script: `
umask 022; mkdir -p pkg/DEBIAN pkg/usr/share/x && head -c 100000 /dev/urandom > pkg/usr/share/x/data && ln -s data pkg/usr/share/x/link
printf 'Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n' > pkg/DEBIAN/control
dpkg-deb -b pkg x.deb >/dev/null && dpkg-deb -x x.deb out && diff -r pkg/usr out/usr && dpkg-deb -I $OTHER/x.deb >/dev/null`},
	{name: "save by rename", script: `
for i in $(seq 50); do echo "version $i" > .doc.tmp && sync .doc.tmp && mv .doc.tmp doc && [ "$(cat doc)" = "version $i" ] && [ "$(cat $OTHER/doc)" = "version $i" ] || exit 1; done`},
	{name: "log rotation", script: `
( for i in $(seq 300); do echo "line $i" >> log; done ) & writer=$!
for i in 1 2 3 4 5; do sleep 0.05; [ -e log ] && mv log log.$i; done; wait $writer
[ $(cat log* | sort -u | wc -l) = 300 ] && [ $(cat $OTHER/log* | wc -l) = 300 ]`},
	{name: "PostgreSQL", heavy: true, needs: []string{"setpriv", postgres + "/initdb", postgres + "/pgbench"}, script: `
PATH=$(echo ` + postgres + `):$PATH; mkdir pg s && chown 65534:65534 pg s
cat > $WORK/as-user <<'END'
log() { "$@" >> s/out 2>&1 || { cat s/out pg/log; exit 1; }; }
db() { pg_ctl -D pg -l pg/log -o "-c listen_addresses= -k $WORK/s -c shared_buffers=16MB -c fsync=on" -w "$@" >> s/out 2>&1 || { cat s/out pg/log; exit 1; }; }
log initdb $NOSYNC -D pg -A trust -U u --no-locale
db start; export PGHOST=$WORK/s PGUSER=u PGDATABASE=postgres
log pgbench -i -q -s $SCALE; log pgbench -n -c 4 -t $TURNS
db stop -m immediate; db start # recovers from its log
log pgbench -n -c 4 -t $TURNS; log psql -qc 'VACUUM ANALYZE' -c 'CREATE INDEX ON pgbench_history (delta)' -c CHECKPOINT
db restart -m fast
check() { got=$(psql -Atc "$1"); [ "$got" = "$2" ] || { echo "$1: $got, want $2"; exit 1; }; }
check "SELECT count(*) FROM pgbench_history" $((8 * TURNS)); check "SELECT count(*) FROM pgbench_accounts" $((100000 * SCALE))
check "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history) AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches)" t
[ -z "$LONG" ] || log pg_amcheck --install-missing --heapallindexed postgres
db stop -m fast
END
cd $WORK; [ -n "$LONG" ] && SCALE=5 TURNS=500 NOSYNC= || SCALE=1 TURNS=10 NOSYNC=--no-sync; export SCALE TURNS NOSYNC
setpriv --reuid=65534 --regid=65534 --clear-groups sh -eu as-user`},
	{name: "vi", needs: []string{"vi"}, script: `
echo one > doc; chmod 640 doc; ln doc hard
for i in 1 2 3; do vi -u NONE -N -es -c "normal Goline $i" -c wq doc < /dev/null || exit 1; done
[ "$(wc -l < $OTHER/doc)" = 4 ] && [ "$(stat -c %a doc)" = 640 ] && [ -z "$(ls -A | grep -v -e doc -e hard)" ]`},
	{name: "go build", heavy: true, needs: []string{"go"}, script: `
export GOCACHE=$WORK/cache GOTOOLCHAIN=local GOFLAGS=-mod=mod HOME=$LOCAL GOMODCACHE=$(go env GOMODCACHE) GOPROXY=off TMPDIR=$LOCAL
cp -r $SOURCE src && cd src
if [ -n "$LONG" ]; then go build -o prog ./cmd/dfs && ./prog version && go vet ./internal/... && go build -o prog2 ./cmd/dfs && cmp prog prog2
else go build -p 2 ./internal/dfs && go list -f {{.Stale}} ./internal/dfs | grep -q false; fi
diff -r $SOURCE/internal internal && diff -r $SOURCE/internal $OTHER/src/internal`},
}

func TestPrograms(t *testing.T) {
	source := projectSource(t)
	a, _ := mountCluster(t)
	b, _ := mountCluster(t)
	for _, p := range programs {
		if p.heavy && raceEnabled {
			continue // make programs runs them
		}
		t.Run(p.name, func(t *testing.T) {
			for _, need := range p.needs {
				if found, _ := filepath.Glob(need); len(found) > 0 && strings.HasPrefix(need, "/") {
					continue
				}
				if _, err := exec.LookPath(need); err != nil {
					t.Skipf("%s is not installed", need)
				}
			}
			long, patience := "", 5*time.Minute
			if *programsLong {
				long, patience = "1", 30*time.Minute
			}
			dir := freshDir(t, a)
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, "sh", "-euc", p.script)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "LOCAL="+t.TempDir(), "WORK="+dir, "OTHER="+filepath.Join(b, filepath.Base(dir)), "LONG="+long, "SOURCE="+source)
			begin := time.Now()
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, bytes.TrimSpace(out))
			}
			t.Logf("%.1f s", time.Since(begin).Seconds())
		})
	}
}

// projectSource copies the sources of this project, as git lists them, to a local directory.
func projectSource(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("sh", "-euc", "cd .. && git ls-files -z | xargs -0 cp --parents -t "+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("copying the sources: %v\n%s", err, out)
	}
	return dir
}
