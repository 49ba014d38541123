package locks

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

// mem is a Txn in memory.
type mem struct {
	files map[dfs.InodeID]Record
	marks map[dfs.SessionID]map[dfs.InodeID]bool
	count map[dfs.SessionID]int64
	fail  error // of every getter
}

func newMem(sessions ...dfs.SessionID) *mem {
	m := &mem{files: map[dfs.InodeID]Record{}, marks: map[dfs.SessionID]map[dfs.InodeID]bool{}, count: map[dfs.SessionID]int64{}}
	for _, id := range sessions {
		m.marks[id], m.count[id] = map[dfs.InodeID]bool{}, 0
	}
	return m
}

func (m *mem) Locks(inode dfs.InodeID) (Record, bool, error) {
	r, ok := m.files[inode]
	return r, ok, m.fail
}
func (m *mem) SetLocks(inode dfs.InodeID, r Record)        { m.files[inode] = r }
func (m *mem) DeleteLocks(inode dfs.InodeID)               { delete(m.files, inode) }
func (m *mem) Mark(id dfs.SessionID, inode dfs.InodeID)    { m.marks[id][inode] = true }
func (m *mem) Unmark(id dfs.SessionID, inode dfs.InodeID)  { delete(m.marks[id], inode) }
func (m *mem) LockedFiles(id dfs.SessionID) (int64, error) { return m.count[id], m.fail }
func (m *mem) SetLockedFiles(id dfs.SessionID, n int64)    { m.count[id] = n }
func (m *mem) Marks(id dfs.SessionID, fn func(dfs.InodeID) bool) error {
	var list []dfs.InodeID
	for inode := range m.marks[id] {
		list = append(list, inode)
	}
	slices.Sort(list)
	for _, inode := range list {
		if !fn(inode) {
			break
		}
	}
	return m.fail
}

// check verifies the invariants of the package comment.
func (m *mem) check(t *testing.T) {
	t.Helper()
	has := map[dfs.SessionID]map[dfs.InodeID]bool{}
	for inode, r := range m.files {
		if err := r.Check(); err != nil {
			t.Fatalf("inode %d: %v: %+v", inode, err, r)
		}
		for _, l := range slices.Concat(r.Flock, r.Posix) {
			if has[l.Owner.Session] == nil {
				has[l.Owner.Session] = map[dfs.InodeID]bool{}
			}
			has[l.Owner.Session][inode] = true
		}
	}
	for id := range m.marks {
		if fmt.Sprint(m.marks[id]) != fmt.Sprint(has[id]) && len(m.marks[id])+len(has[id]) > 0 || m.count[id] != int64(len(has[id])) {
			t.Fatalf("session %d: marks %v, count %d, locks on %v", id, m.marks[id], m.count[id], has[id])
		}
	}
}

// bytesModel is what the locks on one file mean, byte by byte. The last byte stands for all that follow.
type bytesModel [][]cell

type cell struct {
	owner Owner
	mode  Mode
}

const modelBytes = 12

// at maps a byte of the model to one of the file: the last one is far out.
func at(i int) int64 {
	if i == modelBytes-1 {
		return End
	}
	return int64(i)
}

func (b bytesModel) blocked(want Lock, first, last int) bool {
	for _, byteLocks := range b[first : last+1] {
		for _, c := range byteLocks {
			if c.owner != want.Owner && (c.mode == Exclusive || want.Mode == Exclusive) {
				return true
			}
		}
	}
	return false
}

func (b bytesModel) clear(o Owner, first, last int) {
	for i := first; i <= last; i++ {
		b[i] = slices.DeleteFunc(b[i], func(c cell) bool { return c.owner == o })
	}
}

// TestAgainstBytes does random operations on a few bytes of a few files and compares what is held, byte by byte, with a model that knows no ranges.
func TestAgainstBytes(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		m := newMem(1, 2, 3)
		model := map[dfs.InodeID]bytesModel{}
		whole := map[dfs.InodeID]bytesModel{} // of flock: one byte
		for inode := dfs.InodeID(1); inode <= 3; inode++ {
			model[inode], whole[inode] = make(bytesModel, modelBytes), make(bytesModel, 1)
		}
		outcomes := map[string]int{}
		for index := dfs.Index(1); index < 3000; index++ {
			inode := dfs.InodeID(1 + rng.IntN(3))
			o := Owner{Session: dfs.SessionID(1 + rng.IntN(3)), ID: uint64(rng.IntN(2))}
			first := rng.IntN(modelBytes)
			last := first + rng.IntN(modelBytes-first)
			want := Lock{Owner: o, First: at(first), Last: at(last), Mode: Mode(rng.IntN(2))}
			if first == modelBytes-1 {
				want.First = int64(first) // its far end is at(last)
			}
			kind, b := Posix, model[inode]
			if rng.IntN(4) == 0 {
				kind, b, first, last, want.First, want.Last = Flock, whole[inode], 0, 0, 0, End
			}
			switch op := rng.IntN(20); {
			case op < 11:
				before := m.files[inode]
				_, err := Set(m, Env{Index: index}, inode, kind, want)
				if blocked := b.blocked(want, first, last); blocked != errors.Is(err, dfserr.ErrWouldBlock) || (err != nil) != blocked {
					t.Fatalf("seed %d: %+v on %+v: %v, the model says blocked: %v", seed, want, before, err, blocked)
				} else if blocked {
					outcomes["blocked"]++
					break
				}
				outcomes["granted"]++
				b.clear(o, first, last)
				for i := first; i <= last; i++ {
					b[i] = append(b[i], cell{o, want.Mode})
				}
			case op < 17:
				if _, err := Unlock(m, inode, kind, o, want.First, want.Last); err != nil {
					t.Fatal(err)
				}
				b.clear(o, first, last)
				outcomes["unlocked"]++
			case op < 19:
				if err := Release(m, inode, kind, o); err != nil {
					t.Fatal(err)
				}
				b.clear(o, 0, len(b)-1)
			default:
				if rng.IntN(4) == 0 {
					if err := Drop(m, inode); err != nil {
						t.Fatal(err)
					}
					model[inode], whole[inode] = make(bytesModel, modelBytes), make(bytesModel, 1)
					break
				}
				for more := true; more; {
					var err error
					if more, err = EndSession(m, o.Session, func() bool { return true }); err != nil {
						t.Fatal(err)
					}
					m.check(t)
				}
				for inode := range model {
					for id := range uint64(2) {
						model[inode].clear(Owner{o.Session, id}, 0, modelBytes-1)
						whole[inode].clear(Owner{o.Session, id}, 0, 0)
					}
				}
				outcomes["ended"]++
			}
			m.check(t)
			for inode := range model {
				compare(t, seed, m.files[inode], Posix, model[inode])
				compare(t, seed, m.files[inode], Flock, whole[inode])
			}
		}
		if outcomes["blocked"] < 100 || outcomes["granted"] < 100 || outcomes["ended"] < 5 {
			t.Errorf("seed %d: too little variety: %v", seed, outcomes)
		}
	}
}

// compare wants the record to say of every byte what the model does, through the locks, Conflict and Held.
func compare(t *testing.T, seed uint64, r Record, k Kind, b bytesModel) {
	t.Helper()
	for i, cells := range b {
		pos := int64(i)
		held := map[Owner]Mode{}
		for _, l := range r.Of(k) {
			if l.First <= pos && pos <= l.Last {
				held[l.Owner] = l.Mode
			}
		}
		if len(held) != len(cells) {
			t.Fatalf("seed %d: byte %d of %+v: %v, the model has %v", seed, i, r, held, cells)
		}
		for _, c := range cells {
			if mode, ok := held[c.owner]; !ok || mode != c.mode {
				t.Fatalf("seed %d: byte %d of %+v: %v, the model has %v", seed, i, r, held, cells)
			}
			stranger := Lock{Owner: Owner{Session: 9}, First: pos, Last: pos, Mode: Shared}
			if (r.Conflict(k, &stranger) != nil) != (c.mode == Exclusive) {
				t.Fatalf("seed %d: byte %d of %+v: a stranger's shared lock is judged wrongly", seed, i, r)
			}
			if r.Held(k, c.owner) == 0 {
				t.Fatalf("seed %d: %+v holds nothing", seed, c.owner)
			}
		}
	}
}

func TestRanges(t *testing.T) {
	a, b := Owner{1, 1}, Owner{2, 1}
	type step struct {
		do          string // "r", "w" or "u"
		owner       Owner
		first, last int64
	}
	for name, c := range map[string]struct {
		steps []step
		want  string
	}{
		"split by unlock":                {[]step{{"w", a, 0, 99}, {"u", a, 40, 49}}, "1w0-39 1w50-99"},
		"split by another mode":          {[]step{{"w", a, 0, 99}, {"r", a, 40, 49}}, "1w0-39 1r40-49 1w50-99"},
		"touching are joined":            {[]step{{"r", a, 0, 9}, {"r", a, 20, 29}, {"r", a, 10, 19}}, "1r0-29"},
		"a gap stays":                    {[]step{{"r", a, 0, 9}, {"r", a, 11, 19}}, "1r0-9 1r11-19"},
		"joined across what it replaces": {[]step{{"w", a, 0, 9}, {"r", a, 10, 19}, {"w", a, 20, 29}, {"w", a, 5, 25}}, "1w0-29"},
		"downgrade of a whole":           {[]step{{"w", a, 0, End}, {"r", a, 0, End}, {"r", b, 5, 5}}, "1r0-9223372036854775807 2r5-5"},
		"unlock touches own only":        {[]step{{"r", a, 0, 9}, {"r", b, 0, 9}, {"u", a, 0, End}}, "2r0-9"},
		"unlock of the first byte":       {[]step{{"w", a, 0, End}, {"u", a, 0, 0}}, "1w1-9223372036854775807"},
		"unlock of the last byte":        {[]step{{"w", a, 0, End}, {"u", a, End, End}}, "1w0-9223372036854775806"},
		"nothing left":                   {[]step{{"w", a, 3, 9}, {"u", a, 0, 5}, {"u", a, 6, 20}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMem(1, 2)
			for i, s := range c.steps {
				var err error
				if s.do == "u" {
					_, err = Unlock(m, 7, Posix, s.owner, s.first, s.last)
				} else {
					mode := Shared
					if s.do == "w" {
						mode = Exclusive
					}
					_, err = Set(m, Env{Index: dfs.Index(i + 1)}, 7, Posix, Lock{Owner: s.owner, First: s.first, Last: s.last, Mode: mode})
				}
				if err != nil {
					t.Fatal(err)
				}
				m.check(t)
			}
			got := ""
			for _, l := range m.files[7].Posix {
				mode := "r"
				if l.Mode == Exclusive {
					mode = "w"
				}
				got += fmt.Sprintf(" %d%s%d-%d", l.Owner.Session, mode, l.First, l.Last)
			}
			if got = trim(got); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func trim(s string) string {
	if s == "" {
		return s
	}
	return s[1:]
}

func TestRefusals(t *testing.T) {
	m := newMem(1)
	o := Owner{1, 1}
	for name, l := range map[string]Lock{
		"before the start": {Owner: o, First: -1, Last: 5},
		"backwards":        {Owner: o, First: 6, Last: 5},
		"no such mode":     {Owner: o, Last: 5, Mode: 2},
		"nobody's":         {Last: 5},
	} {
		if _, err := Set(m, Env{}, 1, Posix, l); !errors.Is(err, dfserr.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Set(m, Env{}, 1, Flock, Lock{Owner: o, Last: 5}); !errors.Is(err, dfserr.ErrInvalid) {
		t.Errorf("a flock lock on a range: %v", err)
	}
	if _, err := Unlock(m, 1, Posix, o, 5, 4); !errors.Is(err, dfserr.ErrInvalid) {
		t.Errorf("backwards unlock: %v", err)
	}
	if len(m.files) != 0 {
		t.Errorf("refused operations left %v", m.files)
	}
	for i := range int64(MaxPerFile) {
		if _, err := Set(m, Env{}, 1, Posix, Lock{Owner: o, First: 4 * i, Last: 4*i + 2}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Set(m, Env{}, 1, Posix, Lock{Owner: o, First: 4 * MaxPerFile, Last: 4 * MaxPerFile}); !errors.Is(err, dfserr.ErrNoLocks) {
		t.Errorf("one lock too many: %v", err)
	}
	if _, err := Unlock(m, 1, Posix, o, 1, 1); !errors.Is(err, dfserr.ErrNoLocks) {
		t.Errorf("a cut in two that makes one lock too many: %v", err)
	}
	if n, err := Unlock(m, 1, Posix, o, 0, 100); err != nil || n != MaxPerFile-25 {
		t.Errorf("%d left, %v", n, err)
	}
	m.check(t)
	m.count[1] = MaxFilesPerSession
	if _, err := Set(m, Env{}, 2, Flock, Lock{Owner: o, Last: End}); !errors.Is(err, dfserr.ErrNoLocks) {
		t.Errorf("a file too many: %v", err)
	}
	broken := errors.New("broken")
	m.fail = broken
	if _, err := Set(m, Env{}, 1, Posix, Lock{Owner: o, Last: 5}); !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, err := Unlock(m, 1, Posix, o, 0, 5); !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, err := EndSession(m, 1, func() bool { return false }); !errors.Is(err, broken) {
		t.Error(err)
	}
	if err := Drop(m, 1); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestCheckRefusesImpossibleRecords(t *testing.T) {
	a, b := Owner{1, 1}, Owner{2, 1}
	for name, r := range map[string]Record{
		"empty":                      {},
		"no session":                 {Posix: []Lock{{Last: 1}}},
		"backwards":                  {Posix: []Lock{{Owner: a, First: 2, Last: 1}}},
		"out of order":               {Posix: []Lock{{Owner: a, First: 5, Last: 6}, {Owner: b, First: 1, Last: 2}}},
		"twice":                      {Flock: []Lock{{Owner: a, Last: End}, {Owner: a, Last: End}}},
		"own overlap":                {Posix: []Lock{{Owner: a, Last: 5}, {Owner: a, First: 3, Last: 8, Mode: Exclusive}}},
		"should be one":              {Posix: []Lock{{Owner: a, Last: 5}, {Owner: a, First: 6, Last: 8}}},
		"exclusive under shared":     {Posix: []Lock{{Owner: a, Last: 50}, {Owner: b, First: 6, Last: 8, Mode: Exclusive}}},
		"shared under exclusive":     {Posix: []Lock{{Owner: a, Last: 50, Mode: Exclusive}, {Owner: b, First: 6, Last: 8}}},
		"under one further back":     {Posix: []Lock{{Owner: a, Last: 50, Mode: Exclusive}, {Owner: b, First: 60, Last: 70}, {Owner: Owner{3, 1}, First: 65, Last: 80, Mode: Exclusive}}},
		"flock on a range":           {Flock: []Lock{{Owner: a, Last: 5}}},
		"flock exclusive and shared": {Flock: []Lock{{Owner: a, Last: End, Mode: Exclusive}, {Owner: b, Last: End}}},
	} {
		if err := r.Check(); !errors.Is(err, dfserr.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
