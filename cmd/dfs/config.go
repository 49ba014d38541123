package main

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"dfs/internal/dfs"
)

// Each daemon has one configuration struct. Its fields are the keys of the TOML file, with "-" for "_" the flags, and
// in capitals behind DFS_<SECTION>_ the environment variables. Later layers win: defaults, file, environment, flags.

// duration is a time.Duration written as Go writes it.
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads "1m30s".
func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 30s or 1m30s", text)
	}
	*d = duration(v)
	return nil
}

// byteSize is a number of bytes, written as 64MiB, 64m or a plain number.
type byteSize int64

func (b byteSize) MarshalText() ([]byte, error) {
	return []byte(strings.ReplaceAll(humanize.IBytes(uint64(max(0, b))), " ", "")), nil
}

// UnmarshalText reads a size; letters without "i" mean powers of 1024, too, as everywhere in this project.
func (b *byteSize) UnmarshalText(text []byte) error {
	s := strings.ToLower(strings.TrimSpace(string(text)))
	s = strings.TrimSuffix(strings.TrimSuffix(s, "b"), "i")
	unit := ""
	if s != "" && strings.ContainsAny(s[len(s)-1:], "kmgtpe") {
		s, unit = strings.TrimSpace(s[:len(s)-1]), s[len(s)-1:]+"ib"
	}
	n, err := humanize.ParseBytes(s + unit)
	if err != nil || s == "" || n > math.MaxInt64 {
		return fmt.Errorf("%q is not a size such as 64MiB", text)
	}
	*b = byteSize(n)
	return nil
}

// logSettings are shared by all daemons.
type logSettings struct {
	LogLevel  string `toml:"log_level" usage:"error, warn, info, debug or trace"`
	LogFormat string `toml:"log_format" usage:"text, json, or auto: json when standard error is not a terminal"`
	Pprof     string `toml:"pprof" usage:"host:port to serve Go profiles on (/debug/pprof/); loopback only; empty: none"`
}

// masterSettings configure `dfs master`.
type masterSettings struct {
	Dir                   string   `toml:"dir" usage:"where the metadata lives"`
	Listen                string   `toml:"listen" usage:"host:port to serve on; loopback only, there is no TLS yet"`
	MinReplicas           int      `toml:"min_replicas" usage:"fewest replicas that may acknowledge a write"`
	Fence                 string   `toml:"fence" usage:"when an excluded replica is known to be silent: process (it is seen gone, else wait) or lease (always wait)"`
	DeadAfter             duration `toml:"dead_after" usage:"silence after which a chunkserver's replicas are made anew elsewhere"`
	GarbageGrace          duration `toml:"garbage_grace" usage:"how long the replicas of deleted chunks are kept"`
	SafeModeTimeout       duration `toml:"safe_mode_timeout" usage:"when safe mode ends although chunkservers are missing"`
	RepairCopies          int      `toml:"repair_copies" usage:"replicas copied at a time in the cluster"`
	RepairCopiesPerServer int      `toml:"repair_copies_per_server" usage:"replicas copied at a time from or to one chunkserver"`
	RepairRate            byteSize `toml:"repair_rate" usage:"bytes copied per second in the cluster; 0: no limit"`
	CacheSize             byteSize `toml:"cache_size" usage:"memory for metadata caches"`
	MemoryLimit           byteSize `toml:"memory_limit" usage:"heap size above which garbage is collected more often; not a hard limit; 0: none"`
	logSettings
}

// chunkserverSettings configure `dfs chunkserver`.
type chunkserverSettings struct {
	Dirs          []string `toml:"dirs" usage:"data directories, one per disk"`
	Listen        string   `toml:"listen" usage:"host:port to serve on; loopback only, there is no TLS yet"`
	Masters       []string `toml:"masters" usage:"host:port of every master"`
	Rack          string   `toml:"rack" usage:"failure domain"`
	Reserve       byteSize `toml:"reserve" usage:"space kept free on each disk; 0: a twentieth of it, at most 1GiB"`
	ScrubInterval duration `toml:"scrub_interval" usage:"time in which every replica is read and verified once"`
	ScrubRate     byteSize `toml:"scrub_rate" usage:"bytes verified per second"`
	logSettings
}

// layered is a configuration struct with the origin of every value.
type layered struct {
	section string            // master or chunkserver
	value   reflect.Value     // of the struct
	origin  map[string]string // by key: "default", a file, a variable or a flag
}

func newLayered(section string, config any) *layered {
	l := &layered{section: section, value: reflect.ValueOf(config).Elem(), origin: map[string]string{}}
	l.each(func(key, _ string, _ reflect.Value) { l.origin[key] = "default" })
	return l
}

// each calls do for every key, in the order of the struct.
func (l *layered) each(do func(key, usage string, field reflect.Value)) { eachField(l.value, do) }

func eachField(v reflect.Value, do func(key, usage string, field reflect.Value)) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Anonymous {
			eachField(v.Field(i), do)
			continue
		}
		do(f.Tag.Get("toml"), f.Tag.Get("usage"), v.Field(i))
	}
}

// setText puts text into a field.
func setText(field reflect.Value, text string) error {
	if u, ok := field.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	switch field.Kind() {
	case reflect.String:
		field.SetString(text)
	case reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is not a number", text)
		}
		field.SetInt(int64(n))
	case reflect.Slice:
		var list []string
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				list = append(list, item)
			}
		}
		field.Set(reflect.ValueOf(list))
	default:
		return fmt.Errorf("cannot be given as text")
	}
	return nil
}

// fieldText is the inverse of setText.
func fieldText(field reflect.Value) string {
	switch v := field.Interface().(type) {
	case encoding.TextMarshaler:
		if b, err := v.MarshalText(); err == nil {
			return string(b)
		}
	case []string:
		return strings.Join(v, ",")
	}
	return fmt.Sprint(field.Interface())
}

// loadFile reads a TOML file; an unknown key or a wrong value is an error that names file, line and column.
func (l *layered) loadFile(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	d := toml.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	err = d.Decode(l.value.Addr().Interface())
	var strict *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &strict):
		var all []string
		for _, e := range strict.Errors {
			row, column := e.Position()
			all = append(all, fmt.Sprintf("%s:%d:%d: unknown key %q of %s", path, row, column, strings.Join(e.Key(), "."), l.section))
		}
		return errors.New(strings.Join(all, "\n"))
	case errors.As(err, &wrong):
		row, column := wrong.Position()
		return fmt.Errorf("%s:%d:%d: %s", path, row, column, strings.TrimPrefix(wrong.Error(), "toml: "))
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	}
	var given map[string]any
	if err := toml.Unmarshal(data, &given); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for key := range given {
		l.origin[key] = path
	}
	return nil
}

// variable is the environment variable of a key.
func (l *layered) variable(key string) string {
	return "DFS_" + strings.ToUpper(l.section) + "_" + strings.ToUpper(key)
}

// loadEnv reads DFS_<SECTION>_<KEY>.
func (l *layered) loadEnv(getenv func(string) string) error {
	var failed error
	l.each(func(key, _ string, field reflect.Value) {
		name := l.variable(key)
		text := getenv(name)
		if text == "" || failed != nil {
			return
		}
		if err := setText(field, text); err != nil {
			failed = fmt.Errorf("%s: %w", name, err)
			return
		}
		l.origin[key] = name
	})
	return failed
}

// flagName is the flag of a key.
func flagName(key string) string { return strings.ReplaceAll(key, "_", "-") }

// addFlags declares a flag for every key, and --config.
func (l *layered) addFlags(flags *pflag.FlagSet) {
	flags.String("config", "", "TOML file to read ("+l.variable("config")+")")
	l.each(func(key, usage string, field reflect.Value) {
		flags.String(flagName(key), "", fmt.Sprintf("%s [%s] (%s)", usage, fieldText(field), l.variable(key)))
	})
}

// load applies file, environment and flags, in this order.
func (l *layered) load(flags *pflag.FlagSet, getenv func(string) string) error {
	path, err := flags.GetString("config")
	if err != nil {
		return err
	}
	if path == "" {
		path = getenv(l.variable("config"))
	}
	if path != "" {
		if err := l.loadFile(path); err != nil {
			return err
		}
	}
	if err := l.loadEnv(getenv); err != nil {
		return err
	}
	var failed error
	l.each(func(key, _ string, field reflect.Value) {
		f := flags.Lookup(flagName(key))
		if failed != nil || f == nil || !f.Changed {
			return
		}
		if err := setText(field, f.Value.String()); err != nil {
			failed = &usageError{text: fmt.Sprintf("--%s: %v", f.Name, err)}
			return
		}
		l.origin[key] = "--" + f.Name
	})
	return failed
}

// defaultMaster and defaultChunkserver are what applies when nothing is said.
func defaultMaster() *masterSettings {
	return &masterSettings{
		Dir: "dfs-master", Listen: "127.0.0.1:" + defaultMasterPort, MinReplicas: dfs.DefaultMinReplicas, Fence: "process",
		DeadAfter: duration(time.Minute), GarbageGrace: duration(time.Minute), SafeModeTimeout: duration(30 * time.Second),
		RepairCopies: 32, RepairCopiesPerServer: 2, CacheSize: 96 * dfs.MiB, MemoryLimit: 256 * dfs.MiB,
		logSettings: logSettings{LogLevel: "info", LogFormat: "auto"},
	}
}

func defaultChunkserver() *chunkserverSettings {
	return &chunkserverSettings{
		Dirs: []string{"dfs-chunks"}, Listen: "127.0.0.1:7410", Masters: []string{"127.0.0.1:" + defaultMasterPort}, Rack: "default-rack",
		ScrubInterval: duration(7 * 24 * time.Hour), ScrubRate: 32 * dfs.MiB,
		logSettings: logSettings{LogLevel: "info", LogFormat: "auto"},
	}
}

// configCommand shows what a daemon would run with.
func configCommand(env *environ) *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Show the configuration of daemons", GroupID: "run"}
	show := &cobra.Command{Use: "show", Short: "Print every key with its value"}
	for _, l := range []*layered{newLayered("master", defaultMaster()), newLayered("chunkserver", defaultChunkserver())} {
		sub := &cobra.Command{Use: l.section, Short: "Print the configuration of dfs " + l.section, Args: cobra.NoArgs}
		l.addFlags(sub.Flags())
		origin := sub.Flags().Bool("origin", false, "print where each value came from")
		sub.RunE = func(cmd *cobra.Command, _ []string) error {
			if err := l.load(cmd.Flags(), env.getenv); err != nil {
				return err
			}
			t := table{}
			l.each(func(key, _ string, field reflect.Value) {
				row := []string{key + " = " + tomlText(field)}
				if *origin {
					row = append(row, "# "+l.origin[key])
				}
				t.add(row...)
			})
			t.print(env.out)
			return nil
		}
		show.AddCommand(sub)
	}
	c.AddCommand(show)
	return c
}

// tomlText writes a value as the TOML file would have it.
func tomlText(field reflect.Value) string {
	switch v := field.Interface().(type) {
	case []string:
		quoted := make([]string, len(v))
		for i, s := range v {
			quoted[i] = strconv.Quote(s)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	case int:
		return strconv.Itoa(v)
	}
	return strconv.Quote(fieldText(field))
}
