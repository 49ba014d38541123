package fusefs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"bazil.org/fuse"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// TestInitFlags checks that bazil's configuration has the two fields that initFlags sets.
func TestInitFlags(t *testing.T) {
	config := reflect.TypeOf(fuse.MountOption(nil)).In(0).Elem()
	for name, want := range map[string]reflect.Type{"initFlags": reflect.TypeOf(fuse.InitFlags(0)), "options": reflect.TypeOf(map[string]string(nil))} {
		f, ok := config.FieldByName(name)
		if !ok || f.Type != want {
			t.Errorf("bazil's mount configuration: field %s is %v, want %v", name, f.Type, want)
		}
	}
	value := reflect.New(config)
	options := value.Elem().FieldByName("options")
	*(*map[string]string)(unsafe.Pointer(options.UnsafeAddr())) = map[string]string{}
	out := reflect.ValueOf(initFlags(fuse.InitAtomicTrunc, map[string]string{"max_read": "1"})).Call([]reflect.Value{value})
	if !out[0].IsNil() {
		t.Fatal(out[0])
	}
	if got := value.Elem().FieldByName("initFlags").Uint(); got != uint64(fuse.InitAtomicTrunc) {
		t.Errorf("flags %#x", got)
	}
	if options.MapIndex(reflect.ValueOf("max_read")).String() != "1" {
		t.Error("the option was not set")
	}
}

// TestReplyLayout pins the kernel's structures: every field where linux/fuse.h has it.
func TestReplyLayout(t *testing.T) {
	a := Attr{
		Inode: 0x1122334455667788, Mode: syscall.S_IFDIR | 0o1777, UID: 11, GID: 12, Nlink: 13, Rdev: 14, Length: 1025,
		AtimeNS: -1, MtimeNS: 2_000_000_003, CtimeNS: 4_000_000_005,
	}
	u32 := func(b []byte, at int) uint64 { return uint64(binary.NativeEndian.Uint32(b[at:])) }
	u64 := func(b []byte, at int) uint64 { return binary.NativeEndian.Uint64(b[at:]) }
	check := func(name string, got, want uint64) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %#x, want %#x", name, got, want)
		}
	}
	r := newReply(entrySize + 16)
	r.entry(&a, 1500*time.Millisecond, 4096)
	r.openOut(77, 1)
	b := r.b[outHeaderSize:]
	check("size", uint64(len(b)), 128+16)
	check("nodeid", u64(b, 0), uint64(a.Inode))
	check("generation", u64(b, 8), 0)
	check("entry_valid", u64(b, 16), 1)
	check("attr_valid", u64(b, 24), 1)
	check("entry_valid_nsec", u32(b, 32), 500_000_000)
	check("attr_valid_nsec", u32(b, 36), 500_000_000)
	at := b[40:]
	check("ino", u64(at, 0), uint64(a.Inode))
	check("length", u64(at, 8), 1025)
	check("blocks", u64(at, 16), 3)
	check("atime", u64(at, 24), 1<<64-1)
	check("mtime", u64(at, 32), 2)
	check("ctime", u64(at, 40), 4)
	check("atimensec", u32(at, 48), 999_999_999)
	check("mtimensec", u32(at, 52), 3)
	check("ctimensec", u32(at, 56), 5)
	check("mode", u32(at, 60), syscall.S_IFDIR|0o1777)
	check("nlink", u32(at, 64), 13)
	check("uid", u32(at, 68), 11)
	check("gid", u32(at, 72), 12)
	check("rdev", u32(at, 76), 14)
	check("blksize", u32(at, 80), 4096)
	check("fh", u64(b, 128), 77)
	check("open_flags", u32(b, 136), 1)

	r = newReply(16 + attrSize)
	r.attrOut(&a, 0, 512)
	check("attr_out size", uint64(len(r.b)-outHeaderSize), 104)
	check("attr_out ino", u64(r.b[outHeaderSize:], 16), uint64(a.Inode))

	for _, name := range []string{"x", "12345678", "a name of some length"} {
		d := appendDirent(nil, 5, 6, syscall.S_IFLNK|0o777, []byte(name))
		if len(d) != direntSize([]byte(name)) || len(d)%8 != 0 {
			t.Errorf("dirent of %q has %d bytes", name, len(d))
		}
		check("dirent ino", u64(d, 0), 5)
		check("dirent off", u64(d, 8), 6)
		check("dirent namelen", u32(d, 16), uint64(len(name)))
		check("dirent type", u32(d, 20), syscall.DT_LNK)
		if string(d[24:24+len(name)]) != name {
			t.Errorf("dirent name %q", d[24:])
		}
	}
}

// TestPages checks when the kernel is told a new mtime.
func TestPages(t *testing.T) {
	p := newPages()
	truth := Attr{Inode: 9, MtimeNS: 100, Version: 1}
	p.opened(9, 0)
	p.truth(&truth)
	ask := func(shared bool) int64 {
		a := truth
		p.beforeRead(&a, shared, 0)
		return a.MtimeNS
	}
	first := ask(false)
	if first != 100 || ask(false) != first {
		t.Error("unchanged attributes were told as changed")
	}
	truth.MtimeNS = 200 // own writes, not recorded: the version is the same
	if ask(false) != first {
		t.Error("the mount's own writes drop its pages")
	}
	one, two := ask(true), ask(true)
	if one == first || two == one {
		t.Error("pages are kept while others write")
	}
	three := ask(false)
	if three == two {
		t.Error("pages are kept after others have written")
	}
	if ask(false) != three {
		t.Error("pages are dropped though nobody writes any more")
	}
	truth.Version++
	if four := ask(false); four == three || ask(false) != four {
		t.Error("a new version must drop the pages once")
	}
	p.closed(9)
	if len(p.files) != 0 {
		t.Error("a closed file is remembered without a lease")
	}
}

// TestPagesKept checks when pages outlive the last close.
func TestPagesKept(t *testing.T) {
	const inode = 9
	for name, c := range map[string]struct {
		before, after  uint64 // leases
		shared, unread bool
		around         bool
		keep           bool
	}{
		"the same lease":                {before: 5, after: 5, keep: true},
		"another lease":                 {before: 5, after: 6},
		"no lease any more":             {before: 5, after: 0},
		"no lease at all":               {},
		"a lease that came late":        {before: 0, after: 5},
		"others wrote":                  {before: 5, after: 5, shared: true},
		"nothing was read":              {before: 5, after: 5, unread: true},
		"written around the page cache": {before: 5, after: 5, around: true},
	} {
		p := newPages()
		if p.opened(inode, c.before) {
			t.Errorf("%s: pages are kept at the first open", name)
		}
		if !c.unread {
			p.beforeRead(&Attr{Inode: inode, Version: 1, MtimeNS: 100}, c.shared, c.before)
		}
		if c.around {
			p.bypassed(inode)
		}
		p.closed(inode)
		if got := p.opened(inode, c.after); got != c.keep {
			t.Errorf("%s: kept: %v", name, got)
		}
		// When the lease was lost since, pages that were kept must go at the next read.
		a := Attr{Inode: inode, Version: 1, MtimeNS: 100}
		p.beforeRead(&a, false, c.after+1)
		if c.keep && a.MtimeNS == 100 {
			t.Errorf("%s: pages outlive the lease", name)
		}
		p.closed(inode)
	}
	p := newPages()
	for i := range dfs.InodeID(idleFiles + 100) {
		p.opened(i+1, 5)
		p.beforeRead(&Attr{Inode: i + 1}, false, 5)
		p.closed(i + 1)
	}
	if len(p.files) != idleFiles || p.idle != idleFiles {
		t.Errorf("%d files are remembered, %d idle", len(p.files), p.idle)
	}
}

func TestWalked(t *testing.T) {
	w := newWalked()
	a := Attr{Inode: 5, Length: 7}
	w.put(1, &a)
	if _, ok := w.take(2, 5); ok {
		t.Error("another thread got the answer")
	}
	if got, ok := w.take(1, 5); !ok || got.Length != 7 {
		t.Error("the answer was not kept")
	}
	if _, ok := w.take(1, 5); ok {
		t.Error("the answer counts twice")
	}
	w.put(1, &a)
	w.seen(&fuse.SetattrRequest{Header: fuse.Header{Pid: 1}})
	if _, ok := w.take(1, 5); ok {
		t.Error("the answer outlives another request of the thread")
	}
	w.put(1, &a)
	if _, ok := w.take(1, 6); ok {
		t.Error("the answer is for another inode")
	}
	for i := range uint32(walkedMax + 10) {
		w.put(i+1, &a)
	}
	if len(w.threads) > walkedMax {
		t.Errorf("%d threads are remembered", len(w.threads))
	}
}

// listBackend is a Backend that can only list.
type listBackend struct {
	Backend
	names []string // sorted
	calls int
	fail  error
}

func (l *listBackend) ReadDir(_ context.Context, _ Caller, _ dfs.InodeID, after []byte, limit int) ([]DirEntry, bool, error) {
	l.calls++
	if l.fail != nil {
		return nil, false, l.fail
	}
	i, _ := slices.BinarySearch(l.names, string(after)+"\x00")
	var out []DirEntry
	for ; i < len(l.names) && len(out) < limit; i++ {
		out = append(out, DirEntry{Name: []byte(l.names[i]), Inode: 3, Mode: syscall.S_IFREG})
	}
	return out, i == len(l.names), nil
}

// TestDirCursor lists with every buffer size, seeks, and changes the directory meanwhile.
func TestDirCursor(t *testing.T) {
	b := &listBackend{}
	for i := range 5000 {
		b.names = append(b.names, fmt.Sprintf("%06d", i*2))
	}
	list := func(d *dirHandle, off int64, size int) (names []string, last int64) {
		for {
			data, err := d.read(t.Context(), b, Caller{}, off, size)
			if err != nil {
				t.Fatal(err)
			}
			if len(data) == 0 {
				return names, off
			}
			for len(data) > 0 {
				n := binary.NativeEndian.Uint32(data[16:])
				off = int64(binary.NativeEndian.Uint64(data[8:]))
				names = append(names, string(data[24:24+n]))
				data = data[(24+n+7)&^7:]
			}
		}
	}
	fresh := func() *dirHandle { return &dirHandle{inode: 1, parent: 1, starts: [][]byte{nil}, number: -1} }
	want := append([]string{".", ".."}, b.names...)
	for _, size := range []int{32, 100, 4096, 128 << 10} {
		if got, _ := list(fresh(), 0, size); !slices.Equal(got, want) {
			t.Fatalf("with buffers of %d bytes: %d names, want %d", size, len(got), len(want))
		}
	}
	d := fresh()
	list(d, 0, 4096)
	for _, off := range []int64{1, 2, 3, 1000, 1025, 1026, 1027, 3000, 5002} {
		if got, _ := list(d, off, 4096); !slices.Equal(got, want[off:]) {
			t.Fatalf("from cookie %d: %d names, want %d", off, len(got), len(want)-int(off))
		}
	}
	// Names that come and go before the cursor move nothing behind it.
	d = fresh()
	data, err := d.read(t.Context(), b, Caller{}, 0, 32*1500)
	if err != nil {
		t.Fatal(err)
	}
	seen := len(data) / 32
	b.names = append([]string{"000000+", "000001"}, b.names[1:]...)
	slices.Sort(b.names)
	rest, _ := list(d, int64(seen), 4096)
	if !slices.Equal(rest, want[seen:]) {
		t.Fatalf("%d names behind the cursor, want %d", len(rest), len(want)-seen)
	}
	b.fail = dfserr.ErrUnavailable
	if _, err := fresh().read(t.Context(), b, Caller{}, 2, 4096); err == nil {
		t.Fatal("an error was swallowed")
	}
}

func TestSplitOptions(t *testing.T) {
	if got := splitOptions(`a,b=c\,d,e=\\`); !slices.Equal(got, []string{"a", "b=c,d", `e=\`}) {
		t.Fatalf("%q", got)
	}
}

func TestProcStatus(t *testing.T) {
	if dying(uint32(os.Getpid())) {
		t.Error("this process is not being killed")
	}
	if !dying(0) {
		t.Error("a process that cannot be seen counts as ended")
	}
	if got := groupsOf(uint32(os.Getpid()), 0); got != nil {
		t.Errorf("root has groups %v", got)
	}
}

// TestAccessLogBounded has a reader that is too slow: it loses the oldest lines and is told how many.
func TestAccessLogBounded(t *testing.T) {
	l := newAccessLog()
	if l.wanted() {
		t.Error("wanted before anybody reads")
	}
	r := l.open()
	const extra = 7
	for i := range accessLogLines + extra {
		l.add(fmt.Sprintf("line %d\n", i))
	}
	if len(r.lines) != accessLogLines {
		t.Errorf("%d lines are kept", len(r.lines))
	}
	var got strings.Builder
	p := make([]byte, 100)
	for len(r.lines) > 0 || r.rest != "" {
		n, err := r.ReadAt(t.Context(), p, 0)
		if err != nil {
			t.Fatal(err)
		}
		got.Write(p[:n])
	}
	lines := strings.Split(strings.TrimSuffix(got.String(), "\n"), "\n")
	if len(lines) != accessLogLines+1 || lines[0] != fmt.Sprintf("# %d lines lost: the reader is too slow", extra) || lines[1] != fmt.Sprintf("line %d", extra) {
		t.Errorf("%d lines, the first two %q", len(lines), lines[:2])
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.ReadAt(ctx, p, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled read: %v", err)
	}
	l.close()
	if n, err := r.ReadAt(t.Context(), p, 0); n != 0 || err != nil {
		t.Errorf("after the end: %d, %v", n, err)
	}
	if err := r.Close(t.Context()); err != nil || l.wanted() {
		t.Error("wanted after the last reader has gone")
	}
	if n, err := l.open().ReadAt(t.Context(), p, 0); n != 0 || err != nil {
		t.Errorf("opened after the end: %d, %v", n, err)
	}
}

// TestOpNames checks that every kind of request has a name of its own.
func TestOpNames(t *testing.T) {
	seen := map[string]bool{}
	for kind, name := range opNames {
		if name == "" || seen[name] {
			t.Errorf("kind %d is called %q", kind, name)
		}
		seen[name] = true
	}
}
