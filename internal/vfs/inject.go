package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
)

// OpKind names an operation of FS or File.
type OpKind string

// The operations that Inject numbers, logs and can make fail.
const (
	OpOpen     OpKind = "open"
	OpCreate   OpKind = "create" // OpenFile with O_CREATE
	OpMkdir    OpKind = "mkdir"
	OpRename   OpKind = "rename"
	OpRemove   OpKind = "remove"
	OpReadDir  OpKind = "readdir"
	OpStat     OpKind = "stat"
	OpSyncDir  OpKind = "syncdir"
	OpUsage    OpKind = "usage"
	OpLock     OpKind = "lock"
	OpRead     OpKind = "read"
	OpWrite    OpKind = "write"
	OpTruncate OpKind = "truncate"
	OpSync     OpKind = "sync"
	OpSize     OpKind = "size"
	OpClose    OpKind = "close"
)

// Mutates reports whether the operation changes what is on the disk or makes it durable.
func (k OpKind) Mutates() bool {
	switch k {
	case OpCreate, OpMkdir, OpRename, OpRemove, OpSyncDir, OpWrite, OpTruncate, OpSync:
		return true
	}
	return false
}

// Op is one operation as Inject saw it.
type Op struct {
	N      int    // its number, counted from 0 over all operations of the Inject
	Kind   OpKind //
	Name   string // of the file or directory; for a rename "old new"
	Off    int64  // for reads, writes and, as the new length, truncations
	Len    int    // bytes asked for, for reads and writes
	Failed bool   // a fault was applied
}

// String formats the operation for golden logs, without its number.
func (o Op) String() string {
	s := string(o.Kind) + " " + o.Name
	switch o.Kind {
	case OpRead, OpWrite:
		s += fmt.Sprintf(" off=%d len=%d", o.Off, o.Len)
	case OpTruncate:
		s += fmt.Sprintf(" size=%d", o.Off)
	}
	if o.Failed {
		s += " FAULT"
	}
	return s
}

// Fault says what happens to an operation in place of what it asks for. The zero Fault fails it with ErrIO
// before anything is done.
type Fault struct {
	// Err is returned; nil means ErrIO. NoSpace is the error of a full disk.
	Err error
	// Short, of a write, carries out the first half of the bytes before failing.
	Short bool
	// Apply carries out the whole operation before failing.
	Apply bool
	// Lie makes the operation return success without doing anything: a fsync that does not flush, a write that
	// is lost. Err is ignored. It is for Sync, SyncDir, WriteAt and Truncate.
	Lie bool
	// Dead makes every operation after this one fail with Err too.
	Dead bool
}

// NoSpace is a Fault's Err for a full disk; IsNoSpace is true of it.
var NoSpace = errNoSpace

// Inject is a decorator that numbers the operations of an FS and of the Files opened through it, keeps a
// log of them, and makes chosen ones fail. The numbers are reproducible when the caller's operations are.
type Inject struct {
	inner FS

	mu     sync.Mutex
	next   int
	choose func(Op) *Fault
	dead   *Fault
	fired  int
	keep   bool
	log    []Op
}

var _ FS = (*Inject)(nil)

// NewInject returns a decorator of inner without faults.
func NewInject(inner FS) *Inject { return &Inject{inner: inner} }

// SetFaults makes choose decide on every later operation: nil lets it pass. choose is called with the Inject's
// lock held, one call at a time, and must not use the FS. A nil choose clears faults and revives a dead disk.
func (in *Inject) SetFaults(choose func(Op) *Fault) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.choose, in.dead = choose, nil
}

// FailNth makes operation number n (counted over the Inject's life, see Count) meet the fault.
func (in *Inject) FailNth(n int, fault Fault) {
	in.SetFaults(func(op Op) *Fault {
		if op.N == n {
			return &fault
		}
		return nil
	})
}

// FailNthOf makes the n-th later operation, counted from 0, for which match is true meet the fault.
func (in *Inject) FailNthOf(n int, match func(Op) bool, fault Fault) {
	in.SetFaults(func(op Op) *Fault {
		if !match(op) {
			return nil
		}
		n--
		if n == -1 {
			return &fault
		}
		return nil
	})
}

// Count returns how many operations there have been: the number of the next one.
func (in *Inject) Count() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.next
}

// Fired returns how many operations a fault was applied to. A fault test asserts that it is not 0.
func (in *Inject) Fired() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.fired
}

// Record starts keeping the log of operations, empty.
func (in *Inject) Record() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.keep, in.log = true, nil
}

// Log returns the operations since Record.
func (in *Inject) Log() []Op {
	in.mu.Lock()
	defer in.mu.Unlock()
	return append([]Op(nil), in.log...)
}

// LogText returns the mutating operations since Record, one per line, for golden tests.
func (in *Inject) LogText() string {
	var b strings.Builder
	for _, op := range in.Log() {
		if op.Kind.Mutates() {
			b.WriteString(op.String())
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// begin numbers an operation and returns the fault it meets.
func (in *Inject) begin(op Op) *Fault {
	in.mu.Lock()
	defer in.mu.Unlock()
	op.N = in.next
	in.next++
	fault := in.dead
	if fault == nil && in.choose != nil {
		fault = in.choose(op)
		if fault != nil && fault.Dead {
			in.dead = &Fault{Err: fault.Err}
		}
	}
	if fault != nil {
		in.fired++
		op.Failed = true
	}
	if in.keep {
		in.log = append(in.log, op)
	}
	return fault
}

// do carries out an operation that is all or nothing.
func (in *Inject) do(op Op, run func() error) error {
	fault := in.begin(op)
	if fault == nil {
		return run()
	}
	if fault.Lie {
		return nil
	}
	if fault.Apply {
		if err := run(); err != nil {
			return err
		}
	}
	return fault.err(op)
}

func (f *Fault) err(op Op) error {
	err := f.Err
	if err == nil {
		err = ErrIO
	}
	return &fs.PathError{Op: string(op.Kind), Path: op.Name, Err: fmt.Errorf("injected: %w", err)}
}

// refuse is begin for operations that cannot lie or be applied first.
func (in *Inject) refuse(op Op) error {
	if fault := in.begin(op); fault != nil {
		return fault.err(op)
	}
	return nil
}

// OpenFile implements FS.
func (in *Inject) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	kind := OpOpen
	if flag&os.O_CREATE != 0 {
		kind = OpCreate
	}
	if err := in.refuse(Op{Kind: kind, Name: name}); err != nil {
		return nil, err
	}
	f, err := in.inner.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &injectFile{in: in, f: f, name: name}, nil
}

// Mkdir implements FS.
func (in *Inject) Mkdir(name string, perm fs.FileMode) error {
	return in.do(Op{Kind: OpMkdir, Name: name}, func() error { return in.inner.Mkdir(name, perm) })
}

// Rename implements FS.
func (in *Inject) Rename(oldname, newname string) error {
	return in.do(Op{Kind: OpRename, Name: oldname + " " + newname}, func() error { return in.inner.Rename(oldname, newname) })
}

// Remove implements FS.
func (in *Inject) Remove(name string) error {
	return in.do(Op{Kind: OpRemove, Name: name}, func() error { return in.inner.Remove(name) })
}

// ReadDir implements FS.
func (in *Inject) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := in.refuse(Op{Kind: OpReadDir, Name: name}); err != nil {
		return nil, err
	}
	return in.inner.ReadDir(name)
}

// Stat implements FS.
func (in *Inject) Stat(name string) (fs.FileInfo, error) {
	if err := in.refuse(Op{Kind: OpStat, Name: name}); err != nil {
		return nil, err
	}
	return in.inner.Stat(name)
}

// SyncDir implements FS.
func (in *Inject) SyncDir(name string) error {
	return in.do(Op{Kind: OpSyncDir, Name: name}, func() error { return in.inner.SyncDir(name) })
}

// Usage implements FS.
func (in *Inject) Usage() (capacity, free int64, err error) {
	if err := in.refuse(Op{Kind: OpUsage, Name: "."}); err != nil {
		return 0, 0, err
	}
	return in.inner.Usage()
}

// Lock implements FS.
func (in *Inject) Lock(name string) (Unlocker, error) {
	if err := in.refuse(Op{Kind: OpLock, Name: name}); err != nil {
		return nil, err
	}
	return in.inner.Lock(name)
}

// injectFile is a File opened through an Inject.
type injectFile struct {
	in   *Inject
	f    File
	name string
}

func (f *injectFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.in.refuse(Op{Kind: OpRead, Name: f.name, Off: off, Len: len(p)}); err != nil {
		return 0, err
	}
	return f.f.ReadAt(p, off)
}

func (f *injectFile) WriteAt(p []byte, off int64) (int, error) {
	return f.WriteVAt([][]byte{p}, off)
}

func (f *injectFile) WriteVAt(bufs [][]byte, off int64) (int, error) {
	total := 0
	for _, b := range bufs {
		total += len(b)
	}
	op := Op{Kind: OpWrite, Name: f.name, Off: off, Len: total}
	fault := f.in.begin(op)
	switch {
	case fault == nil:
		return f.f.WriteVAt(bufs, off)
	case fault.Lie:
		return total, nil
	case fault.Apply:
		if n, err := f.f.WriteVAt(bufs, off); err != nil {
			return n, err
		}
		return 0, fault.err(op)
	case fault.Short:
		n, err := f.f.WriteVAt(firstBytes(bufs, total/2), off)
		if err != nil {
			return n, err
		}
		if fault.Err == nil {
			return n, &fs.PathError{Op: string(op.Kind), Path: op.Name, Err: fmt.Errorf("injected: %w", io.ErrShortWrite)}
		}
		return n, fault.err(op)
	}
	return 0, fault.err(op)
}

// firstBytes returns the first n bytes of the concatenation of bufs.
func firstBytes(bufs [][]byte, n int) [][]byte {
	var head [][]byte
	for _, b := range bufs {
		b = b[:min(n, len(b))]
		n -= len(b)
		head = append(head, b)
	}
	return head
}

func (f *injectFile) Truncate(size int64) error {
	return f.in.do(Op{Kind: OpTruncate, Name: f.name, Off: size}, func() error { return f.f.Truncate(size) })
}

func (f *injectFile) Sync() error {
	return f.in.do(Op{Kind: OpSync, Name: f.name}, f.f.Sync)
}

func (f *injectFile) Size() (int64, error) {
	if err := f.in.refuse(Op{Kind: OpSize, Name: f.name}); err != nil {
		return 0, err
	}
	return f.f.Size()
}

// Close always closes the inner file; a fault adds an error.
func (f *injectFile) Close() error {
	err := f.in.refuse(Op{Kind: OpClose, Name: f.name})
	if closeErr := f.f.Close(); closeErr != nil {
		return closeErr
	}
	return err
}
