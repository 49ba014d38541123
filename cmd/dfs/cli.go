package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// version is set by the linker (make build) and read-only otherwise.
var version = "0.1.0"

// processEnviron is the real environ of this process.
func processEnviron() *environ {
	env := &environ{
		in: os.Stdin, out: os.Stdout, err: os.Stderr, terminal: isTerminal(os.Stderr),
		getenv: os.Getenv, now: time.Now, zone: time.Local, names: systemNames(), dial: dialSDK,
	}
	env.ids = identity{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
	if groups, err := os.Getgroups(); err == nil {
		for _, g := range groups {
			env.ids.groups = append(env.ids.groups, uint32(g))
		}
	}
	env.user = os.Getenv("USER")
	if env.user == "" {
		env.user = env.names.owner(env.ids.uid)
	}
	mask := syscall.Umask(0)
	syscall.Umask(mask)
	env.umask = os.FileMode(mask) & 0o777
	dir, err := os.UserConfigDir()
	if err != nil {
		dir = filepath.Join(os.TempDir(), "dfs-config-"+strconv.Itoa(os.Geteuid()))
		if u, err := user.Current(); err == nil && u.HomeDir != "" {
			dir = filepath.Join(u.HomeDir, ".config")
		}
	}
	env.configDir = filepath.Join(dir, "dfs")
	return env
}

// isTerminal reports whether f is a terminal.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// run carries out one command line and returns the exit status.
func run(ctx context.Context, env *environ, args []string) int {
	args, err := normalize(args)
	if err != nil {
		fmt.Fprintf(env.err, "dfs: %v\n", err)
		return exitVerbUsage
	}
	root := newRoot(env)
	root.SetArgs(args)
	root.SetIn(env.in)
	root.SetOut(env.out)
	root.SetErr(env.err)
	err = root.ExecuteContext(ctx)
	var exit *exitError
	var usage *usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &usage):
		fmt.Fprintf(env.err, "dfs: %v\n", err)
		return exitNativeUsage
	case interrupted(ctx):
		return exitInterrupted
	}
	fmt.Fprintf(env.err, "dfs: %v\n", err)
	return exitFailed
}

// normalize brings every accepted spelling into cobra's order: `dfs [generic options] [dfs|fs] [-]verb …` becomes
// verb, generic options, rest. dfsadmin is admin.
func normalize(args []string) ([]string, error) {
	var generic []string
	i := 0
	for i < len(args) {
		def, _, hasValue, ok := findFlag(globalFlags(true), args[i])
		if !ok || def.value == "" && def.name != "--json" {
			break
		}
		generic = append(generic, args[i])
		if i++; def.value != "" && !hasValue {
			if i == len(args) {
				return nil, fmt.Errorf("option %s needs a value", args[i-1])
			}
			generic = append(generic, args[i])
			i++
		}
	}
	rest := args[i:]
	if len(rest) > 0 && (rest[0] == "dfs" || rest[0] == "fs") {
		rest = rest[1:]
	}
	if len(rest) == 0 {
		return generic, nil
	}
	name := rest[0]
	if name == "admin" || name == "dfsadmin" {
		if len(rest) > 1 {
			rest = append([]string{"admin", strings.TrimPrefix(rest[1], "-")}, rest[2:]...)
			return append(rest[:2:2], append(generic, rest[2:]...)...), nil
		}
		return []string{"admin"}, nil
	}
	if word, dashed := strings.CutPrefix(name, "-"); dashed && (verbNamed(shellVerbs(), word) != nil || word == "help" || word == "usage") {
		name = word
	} else if dashed && name != "-h" && !strings.HasPrefix(word, "-") {
		return []string{"--", name}, nil // no verb, and not to be taken for options of one letter
	}
	return append([]string{name}, append(generic, rest[1:]...)...), nil
}

// newRoot builds the command tree.
func newRoot(env *environ) *cobra.Command {
	root := &cobra.Command{
		Use:   "dfs",
		Short: "A distributed file system: shell, administration and daemons in one command",
		Long: `dfs is a distributed file system in one binary.

  dfs mini                            a whole cluster in this terminal; nothing to configure
  dfs put README.md /hello            then, in another terminal
  dfs cat /hello

File commands are spelled as you know them: dfs ls, dfs -ls, dfs fs -ls and dfs dfs -ls are the same.`,
		SilenceErrors: true, SilenceUsage: true,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownVerb(env, cmd, args[0])
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if cmd == root {
			fmt.Fprintf(env.err, "dfs: %v\n", err)
			return &exitError{exitVerbUsage}
		}
		return &usageError{text: fmt.Sprintf("%s: %v (see dfs %s --help)", cmd.Name(), err, strings.TrimPrefix(cmd.CommandPath(), "dfs "))}
	})
	root.AddGroup(
		&cobra.Group{ID: "files", Title: "Files:"},
		&cobra.Group{ID: "admin", Title: "Administration:"},
		&cobra.Group{ID: "run", Title: "Running clusters:"},
	)
	for _, v := range shellVerbs() {
		root.AddCommand(verbCommand(env, v, "files"))
	}
	admin := &cobra.Command{Use: "admin", Aliases: []string{"dfsadmin"}, Short: "Look after the cluster", GroupID: "admin"}
	for _, v := range adminVerbs() {
		admin.AddCommand(verbCommand(env, v, ""))
	}
	admin.AddCommand(verbCommand(env, verbNamed(inspectVerbs(), "fsck"), ""))
	root.AddCommand(admin, usageCommand(env), versionCommand(env))
	for _, c := range daemonCommands(env) {
		c.GroupID = "run"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{mountCommand(env), umountCommand(env)} {
		c.GroupID = "files"
		root.AddCommand(c)
	}
	root.AddCommand(configCommand(env))
	return root
}

// verbCommand wraps a verb for cobra; the verb parses its own options.
func verbCommand(env *environ, v *verb, group string) *cobra.Command {
	return &cobra.Command{
		Use: v.name + " " + v.usage, Aliases: v.aliases, Short: v.short, GroupID: group,
		Hidden: v.replaced != "", DisableFlagParsing: true, DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			as := v.name
			if called := cmd.CalledAs(); called != "" {
				as = called
			}
			if code := runVerb(cmd.Context(), env, v, as, args); code != exitDone {
				return &exitError{code}
			}
			return nil
		},
	}
}

// unknownVerb answers what is no command, as HDFS does, with what was perhaps meant.
func unknownVerb(env *environ, root *cobra.Command, name string) error {
	fmt.Fprintf(env.err, "%s: Unknown command\n", name)
	if near := root.SuggestionsFor(strings.TrimLeft(name, "-")); len(near) > 0 {
		fmt.Fprintf(env.err, "Did you mean %s?\n", strings.Join(near, ", "))
	}
	fmt.Fprintln(env.err, "'dfs help' lists the commands.")
	return &exitError{exitVerbUsage}
}

// usageCommand prints usage lines, as `hdfs dfs -usage` does.
func usageCommand(env *environ) *cobra.Command {
	return &cobra.Command{
		Use: "usage [cmd ...]", Short: "Print the usage lines of commands", DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				for _, v := range shellVerbs() {
					if v.replaced == "" {
						fmt.Fprintf(env.out, "\t[-%s]\n", strings.TrimSpace(v.name+" "+v.usage))
					}
				}
				return nil
			}
			for _, name := range args {
				v := verbNamed(shellVerbs(), strings.TrimLeft(name, "-"))
				if v == nil {
					fmt.Fprintf(env.err, "%s: Unknown command\n", name)
					return &exitError{exitVerbUsage}
				}
				fmt.Fprintln(env.out, v.usageLine())
			}
			return nil
		},
	}
}

// build describes the binary.
type build struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Date    string `json:"date"`
	Go      string `json:"go"`
}

func thisBuild() build {
	b := build{Version: version, Commit: "unknown", Date: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Go = info.GoVersion
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Date = s.Value
		}
	}
	return b
}

func versionCommand(env *environ) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			printVersion(env.out, asJSON)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printVersion(w io.Writer, asJSON bool) {
	b := thisBuild()
	if asJSON {
		encodeJSON(w, b, "")
		return
	}
	fmt.Fprintf(w, "dfs %s (commit %s, %s, %s)\n", b.Version, b.Commit, b.Date, b.Go)
}
