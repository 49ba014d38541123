package fusefs_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var stressOps = flag.Int("stress-ops", 0, "operations per worker of the directory stress; 0: 100, with the race detector 30")

// The directory stress: processes create, rename, link and unlink in directories that they share, through two mounts. What a worker made
// only it touches, so its model says what every one of its calls must return. Besides, all of them fight for tokens: files
// that whoever renames them first has, and gives back later. At the end the directories must hold what the models say together, and every
// token once.
const (
	stressWorkers = 16
	stressDirs    = 3
	stressTokens  = 5
)

// stressModel is what a worker has: names, as DIRECTORY/NAME, of files by number, and its own directories.
type stressModel struct {
	Files map[string]int  // name → number of the file
	Dirs  map[string]bool // empty directories
}

type stressWorker struct {
	dir   string
	id    int
	rng   *rand.Rand
	model stressModel
	made  int
	held  []int // tokens
}

func playStress(args []string) error {
	id, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	ops, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	seed, err := strconv.ParseUint(args[3], 10, 64)
	if err != nil {
		return err
	}
	w := &stressWorker{dir: args[0], id: id, rng: rand.New(rand.NewPCG(seed, uint64(id))), model: stressModel{map[string]int{}, map[string]bool{}}}
	fmt.Println(ready)
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil { // until all are there
		return err
	}
	for i := range ops {
		if err := w.step(); err != nil {
			return fmt.Errorf("worker %d, seed %d, operation %d: %w", id, seed, i, err)
		}
	}
	for len(w.held) > 0 {
		if err := w.release(); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(w.model)
}

func (w *stressWorker) path(name string) string { return filepath.Join(w.dir, name) }

// fresh draws a name that the worker does not have, in one of the shared directories.
func (w *stressWorker) fresh() string {
	for {
		name := fmt.Sprintf("d%d/w%d-%d", w.rng.IntN(stressDirs), w.id, w.rng.IntN(1000))
		if _, ok := w.model.Files[name]; !ok && !w.model.Dirs[name] {
			return name
		}
	}
}

func (w *stressWorker) any() (string, bool) {
	if len(w.model.Files) == 0 {
		return "", false
	}
	return slices.Sorted(maps.Keys(w.model.Files))[w.rng.IntN(len(w.model.Files))], true
}

func (w *stressWorker) links(number int) (n int) {
	for _, other := range w.model.Files {
		if other == number {
			n++
		}
	}
	return n
}

func (w *stressWorker) content(number int) string {
	return fmt.Sprintf("worker %d file %d", w.id, number)
}

// expect returns an error unless err is what the model says.
func expect(what string, err, want error) error {
	if !errors.Is(err, want) || (want == nil && err != nil) {
		return fmt.Errorf("%s: %v, want %v", what, err, want)
	}
	return nil
}

func (w *stressWorker) step() error {
	name, ok := w.any()
	switch k := w.rng.IntN(100); {
	case k < 30 || !ok:
		name := w.fresh()
		w.made++
		f, err := os.OpenFile(w.path(name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return fmt.Errorf("create: %w", err)
		}
		_, err = f.WriteString(w.content(w.made))
		w.model.Files[name] = w.made
		return errors.Join(err, f.Close())
	case k < 45:
		to := w.fresh()
		if err := os.Rename(w.path(name), w.path(to)); err != nil {
			return err
		}
		w.model.Files[to] = w.model.Files[name]
		delete(w.model.Files, name)
		return expect("stat of the old name", unix.Access(w.path(name), unix.F_OK), unix.ENOENT)
	case k < 52: // over another of its own
		to, _ := w.any()
		same := w.model.Files[to] == w.model.Files[name] // then rename does nothing
		if err := os.Rename(w.path(name), w.path(to)); err != nil {
			return err
		}
		if !same {
			w.model.Files[to] = w.model.Files[name]
			delete(w.model.Files, name)
		}
		return nil
	case k < 62:
		to := w.fresh()
		if err := os.Link(w.path(name), w.path(to)); err != nil {
			return err
		}
		w.model.Files[to] = w.model.Files[name]
		return expect("link over a name", os.Link(w.path(name), w.path(to)), unix.EEXIST)
	case k < 72:
		if err := os.Remove(w.path(name)); err != nil {
			return err
		}
		delete(w.model.Files, name)
		return expect("unlink again", unix.Unlink(w.path(name)), unix.ENOENT)
	case k < 78:
		d := w.fresh()
		if err := os.Mkdir(w.path(d), 0o755); err != nil {
			return err
		}
		w.model.Dirs[d] = true
		return expect("rename of a file over a directory", unix.Rename(w.path(name), w.path(d)), unix.EISDIR)
	case k < 82:
		dirs := slices.Sorted(maps.Keys(w.model.Dirs))
		if len(dirs) == 0 {
			return nil
		}
		d := dirs[w.rng.IntN(len(dirs))]
		delete(w.model.Dirs, d)
		return os.Remove(w.path(d))
	case k < 90:
		var st unix.Stat_t
		if err := unix.Lstat(w.path(name), &st); err != nil {
			return err
		}
		if want := w.links(w.model.Files[name]); int(st.Nlink) != want {
			return fmt.Errorf("%s has %d links, want %d", name, st.Nlink, want)
		}
		b, err := os.ReadFile(w.path(name))
		if want := w.content(w.model.Files[name]); err == nil && string(b) != want {
			err = fmt.Errorf("%s holds %q, want %q", name, b, want)
		}
		return err
	case k < 97:
		return w.grab()
	default:
		return w.release()
	}
}

// grab tries to get a token; another may be faster.
func (w *stressWorker) grab() error {
	token := w.rng.IntN(stressTokens)
	err := os.Rename(w.path(fmt.Sprintf("pool/%d", token)), w.path(fmt.Sprintf("d0/token-%d", token)))
	if err == nil {
		w.held = append(w.held, token)
	} else if !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("grabbing a token: %w", err)
	}
	return nil
}

// release gives a token back: nobody else can have it.
func (w *stressWorker) release() error {
	if len(w.held) == 0 {
		return nil
	}
	token := w.held[0]
	w.held = w.held[1:]
	return os.Rename(w.path(fmt.Sprintf("d0/token-%d", token)), w.path(fmt.Sprintf("pool/%d", token)))
}

func TestDirectoryStress(t *testing.T) {
	if *stressOps == 0 {
		*stressOps = 100
		if raceEnabled {
			*stressOps = 30
		}
	}
	one, _ := mountCluster(t)
	two, _ := mountCluster(t)
	dir := freshDir(t, one)
	dirs := []string{dir, filepath.Join(two, filepath.Base(dir))}
	for _, name := range []string{"pool", "d0", "d1", "d2"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i := range stressTokens {
		if err := os.WriteFile(filepath.Join(dir, "pool", fmt.Sprint(i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	workers := make([]*part, stressWorkers)
	for i := range workers {
		w, err := start(roleStress, dirs[i%2], fmt.Sprint(i), fmt.Sprint(*stressOps), fmt.Sprint(seed))
		if err != nil {
			t.Fatal(err)
		}
		workers[i] = w
		defer w.kill()
	}
	for _, w := range workers {
		if _, err := io.WriteString(w.stdin, "go\n"); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{} // name → content, "/" for a directory
	links := map[string]int{}   // content → names
	for i, w := range workers {
		var m stressModel
		if err := json.NewDecoder(w.out).Decode(&m); err != nil {
			t.Fatalf("worker %d: %v", i, errors.Join(err, w.stop()))
		}
		worker := stressWorker{id: i}
		for name, number := range m.Files {
			want[name] = worker.content(number)
			links[worker.content(number)]++
		}
		for name := range m.Dirs {
			want[name] = "/"
		}
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range stressTokens {
		want[fmt.Sprintf("pool/%d", i)] = ""
	}
	for _, dir := range dirs {
		got := 0
		for _, d := range []string{"pool", "d0", "d1", "d2"} {
			entries, err := os.ReadDir(filepath.Join(dir, d))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				name := d + "/" + e.Name()
				content, ok := want[name]
				if !ok {
					t.Errorf("%s is there, and should not be", name)
					continue
				}
				got++
				if e.IsDir() != (content == "/") {
					t.Errorf("%s: a directory or not", name)
				}
				if e.IsDir() || strings.HasPrefix(name, "pool") {
					continue
				}
				b, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil || string(b) != content {
					t.Errorf("%s holds %q, want %q (%v)", name, b, content, err)
				}
				var st unix.Stat_t
				if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil || int(st.Nlink) != links[content] {
					t.Errorf("%s has %d links, want %d (%v)", name, st.Nlink, links[content], err)
				}
			}
		}
		if got != len(want) {
			t.Errorf("%s has %d names, want %d", dir, got, len(want))
		}
	}
	t.Logf("%d names are left", len(want))
}
