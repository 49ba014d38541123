package main

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"strconv"
	"time"

	"dfs/internal/dfs"
	"dfs/internal/dfserr"
)

func contentVerbs() []*verb {
	ends := []flagDef{
		{name: "c", long: "bytes", value: "n", help: "so many bytes instead of 1024"},
		{name: "n", long: "lines", value: "n", help: "so many lines"},
	}
	appendFile := &verb{
		name: "append", aliases: []string{"appendToFile"}, usage: "<localsrc> ... <dst>",
		short: "Append local files (- is standard input) to a file, which is made if it is not there", min: 2, run: runAppend,
	}
	return []*verb{
		{
			name: "cat", usage: "[-ignoreCrc] <src> ...", short: "Print files",
			flags: []flagDef{{name: "ignoreCrc", help: "accepted: checksums are always verified"}}, min: 1, run: runCat,
		},
		{
			name: "text", usage: "[-ignoreCrc] <src> ...", short: "Print files, decompressing gzip and bzip2",
			flags: []flagDef{{name: "ignoreCrc", help: "accepted: checksums are always verified"}}, min: 1, run: runText,
		},
		{name: "head", usage: "[-c <n> | -n <n>] <file>", short: "Print the first 1024 bytes of a file", flags: ends, min: 1, max: 1, run: runHead},
		{
			name: "tail", usage: "[-f] [-s <sleep interval>] [-c <n> | -n <n>] <file>", short: "Print the last 1024 bytes of a file",
			flags: append([]flagDef{
				{name: "f", long: "follow", help: "go on printing what is appended"},
				{name: "s", long: "sleep-interval", value: "ms", help: "with -f: look for new data so often (default 1000)"},
			}, ends...), min: 1, max: 1, run: runTail,
		},
		{
			name: "getmerge", usage: "[-nl] [-skip-empty-file] <src> ... <localdst>", short: "Concatenate files, or the files of directories, into one local file",
			flags: []flagDef{
				{name: "nl", help: "end each file with a newline"},
				{name: "skip-empty-file", help: "add no newline for an empty file"},
			}, min: 2, run: runGetmerge,
		},
		{
			name: "checksum", usage: "[-v] <src> ...", short: "Print the CRC32C of the content",
			flags: []flagDef{{name: "v", long: "verbose", help: "print the chunk size, too"}}, min: 1, printsJSON: true, run: runChecksum,
		},
		appendFile,
		{
			name: "truncate", usage: "[-w] [-g] <length> <path> ...", short: "Cut files to a length",
			flags: []flagDef{
				{name: "w", help: "say what is waited for"},
				{name: "g", long: "grow", help: "allow a length beyond the end; the new bytes read as zero"},
			}, min: 2, printsJSON: true, run: runTruncate,
		},
		{
			name: "touch", usage: "[-a] [-m] [-t TIMESTAMP (yyyyMMdd:HHmmss) ] [-c] <path> ...", short: "Set access and modification times; make missing files",
			flags: []flagDef{
				{name: "a", help: "only the access time"},
				{name: "m", help: "only the modification time"},
				{name: "t", value: "timestamp", help: "this time, yyyyMMdd:HHmmss local, instead of now"},
				{name: "c", long: "no-create", help: "make no files"},
			}, min: 1, run: runTouch,
		},
		{name: "touchz", usage: "<path> ...", short: "Make empty files", min: 1, run: runTouchz},
	}
}

// copyBuffer is how much of a file travels in one read or write: a frame.
const copyBuffer = dfs.FrameSize

// pour copies r to w in whole frames until the end.
func pour(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	buf := make([]byte, copyBuffer)
	var n int64
	for {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		m, err := io.ReadFull(r, buf)
		if m > 0 {
			written, writeErr := w.Write(buf[:m])
			n += int64(written)
			if writeErr != nil {
				return n, writeErr
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return n, nil
		case err != nil:
			return n, err
		}
	}
}

// reading opens a regular file and hands it to use.
func (sh *shell) reading(ctx context.Context, o operand, use func(reader) error) error {
	if o.isDir() {
		return failure(o.shown, dfserr.ErrIsDir)
	}
	r, err := sh.fs.Open(ctx, o.path)
	if err != nil {
		return err
	}
	err = use(r)
	if closeErr := r.Close(); err == nil {
		err = closeErr
	}
	return err
}

func runCat(ctx context.Context, sh *shell, args []string) error {
	return sh.eachOperand(ctx, args, true, nil, func(o operand) error {
		return sh.reading(ctx, o, func(r reader) error {
			_, err := pour(ctx, sh.out, r)
			return err
		})
	})
}

func runText(ctx context.Context, sh *shell, args []string) error {
	return sh.eachOperand(ctx, args, true, nil, func(o operand) error {
		return sh.reading(ctx, o, func(r reader) error {
			plain, err := decompress(bufio.NewReaderSize(r, copyBuffer))
			if err != nil {
				return err
			}
			_, err = pour(ctx, sh.out, plain)
			return err
		})
	})
}

// decompress looks at the first bytes to tell gzip and bzip2 from plain data.
func decompress(r *bufio.Reader) (io.Reader, error) {
	magic, err := r.Peek(3)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzip.NewReader(r)
	case bytes.HasPrefix(magic, []byte("BZh")):
		return bzip2.NewReader(r), nil
	}
	return r, nil
}

// endBytes is what head and tail print unless told otherwise.
const endBytes = 1024

// endOptions reads -c and -n; lines is -1 unless -n was given.
func (sh *shell) endOptions() (size, lines int64, err error) {
	size, lines = endBytes, -1
	for name, into := range map[string]*int64{"c": &size, "n": &lines} {
		if !sh.opts.on(name) {
			continue
		}
		n, err := strconv.ParseInt(sh.opts[name], 10, 64)
		if err != nil || n < 0 {
			return 0, 0, usagef("Option -%s needs a number of at least 0, not %q", name, sh.opts[name])
		}
		*into = n
	}
	if sh.opts.on("c") && sh.opts.on("n") {
		return 0, 0, usagef("Options -c and -n exclude each other")
	}
	return size, lines, nil
}

func runHead(ctx context.Context, sh *shell, args []string) error {
	size, lines, err := sh.endOptions()
	if err != nil {
		return err
	}
	return sh.eachOperand(ctx, args, true, nil, func(o operand) error {
		return sh.reading(ctx, o, func(r reader) error {
			if lines < 0 {
				_, err := pour(ctx, sh.out, io.LimitReader(r, size))
				return err
			}
			lineReader := bufio.NewReaderSize(r, 64<<10)
			for n := int64(0); n < lines; {
				part, err := lineReader.ReadSlice('\n')
				if _, writeErr := sh.out.Write(part); writeErr != nil {
					return writeErr
				}
				switch {
				case errors.Is(err, bufio.ErrBufferFull):
				case errors.Is(err, io.EOF):
					return nil
				case err != nil:
					return err
				default:
					n++
				}
			}
			return nil
		})
	})
}

func runTail(ctx context.Context, sh *shell, args []string) error {
	size, lines, err := sh.endOptions()
	if err != nil {
		return err
	}
	every := time.Second
	if sh.opts.on("s") {
		ms, err := strconv.ParseInt(sh.opts["s"], 10, 32)
		if err != nil || ms <= 0 {
			return usagef("Option -s needs a number of milliseconds, not %q", sh.opts["s"])
		}
		every = time.Duration(ms) * time.Millisecond
	}
	return sh.eachOperand(ctx, args, true, nil, func(o operand) error {
		return sh.reading(ctx, o, func(r reader) error {
			length, err := r.Size(ctx)
			if err != nil {
				return err
			}
			from := max(0, length-size)
			if lines >= 0 {
				if from, err = lastLines(r, length, lines); err != nil {
					return err
				}
			}
			if err := sh.printFrom(ctx, r, from, length); err != nil || !sh.opts.on("f") {
				return err
			}
			return sh.follow(ctx, r, length, every)
		})
	})
}

// printFrom prints bytes [from, to).
func (sh *shell) printFrom(ctx context.Context, r reader, from, to int64) error {
	_, err := pour(ctx, sh.out, io.NewSectionReader(r, from, to-from))
	return err
}

// lastLines finds where the last n lines begin, reading backwards.
func lastLines(r io.ReaderAt, length, n int64) (int64, error) {
	if n == 0 {
		return length, nil
	}
	buf := make([]byte, 64<<10)
	end := length
	seen := int64(0)
	for end > 0 {
		begin := max(0, end-int64(len(buf)))
		part := buf[:end-begin]
		if _, err := r.ReadAt(part, begin); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for i := len(part) - 1; i >= 0; i-- {
			at := begin + int64(i)
			if part[i] != '\n' || at == length-1 { // the newline that ends the file ends its last line
				continue
			}
			if seen++; seen == n {
				return at + 1, nil
			}
		}
		end = begin
	}
	return 0, nil
}

// follow prints what is appended until interrupted. A file that got shorter is printed from its new end on.
func (sh *shell) follow(ctx context.Context, r reader, at int64, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := sh.out.Flush(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		length, err := r.Size(ctx)
		if err != nil {
			return err
		}
		if length > at {
			if err := sh.printFrom(ctx, r, at, length); err != nil {
				return err
			}
		}
		at = length
	}
}

func runChecksum(ctx context.Context, sh *shell, args []string) error {
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	return sh.eachOperand(ctx, args, true, nil, func(o operand) error {
		h := crc32.New(castagnoli)
		err := sh.reading(ctx, o, func(r reader) error {
			_, err := pour(ctx, h, r)
			return err
		})
		if err != nil {
			return err
		}
		const algorithm = "COMPOSITE-CRC32C"
		sum := fmt.Sprintf("%08x", h.Sum32())
		if sh.json {
			sh.printJSON(map[string]any{"path": o.shown, "algorithm": algorithm, "checksum": sum, "chunk_size": o.info.ChunkSize})
			return nil
		}
		fmt.Fprintf(sh.out, "%s\t%s\t%s", o.shown, algorithm, sum)
		if sh.opts.on("v") {
			fmt.Fprintf(sh.out, "\tBlockSize=%d", o.info.ChunkSize)
		}
		fmt.Fprintln(sh.out)
		return nil
	})
}

func runGetmerge(ctx context.Context, sh *shell, args []string) error {
	last := len(args) - 1
	out := localPath(args[last])
	return sh.storeLocal(ctx, out, localTarget{perm: 0o666 &^ sh.env.umask, replace: true}, func(w io.Writer) error {
		one := func(o operand) error {
			return sh.reading(ctx, o, func(r reader) error {
				n, err := pour(ctx, w, r)
				if err == nil && sh.opts.on("nl") && (n > 0 || !sh.opts.on("skip-empty-file")) {
					_, err = w.Write([]byte("\n"))
				}
				return err
			})
		}
		err := sh.eachOperand(ctx, args[:last], true, nil, func(o operand) error {
			if !o.isDir() {
				return one(o)
			}
			items, err := sh.list(ctx, o)
			if err != nil {
				return err
			}
			for _, item := range items {
				if item.isDir() {
					continue
				}
				if err := one(item); err != nil {
					return about(item.shown, err)
				}
			}
			return nil
		})
		if err == nil && sh.failed {
			return &exitError{exitFailed} // what is missing was said; the local file is not made
		}
		return err
	})
}

func runAppend(ctx context.Context, sh *shell, args []string) error {
	last := len(args) - 1
	items, err := sh.expand(ctx, args[last], true)
	if err != nil {
		return err
	}
	dst := items[0]
	if dst.isDir() {
		return failure(dst.shown, dfserr.ErrIsDir)
	}
	for _, name := range args[:last] {
		if name == "-" && last > 1 {
			return failuref(name, "standard input cannot be mixed with files")
		}
	}
	for i, name := range args[:last] {
		err := sh.appendOne(ctx, name, dst, i == 0 && !dst.exists())
		if ctx.Err() != nil {
			return ctx.Err()
		}
		sh.fail(about(name, err))
	}
	return ctx.Err()
}

// appendOne appends one local file; the source is opened before the destination is touched.
func (sh *shell) appendOne(ctx context.Context, name string, dst operand, create bool) error {
	var in io.Reader = interruptibleReader{ctx, sh.env.in}
	if name != "-" {
		f, err := os.Open(localPath(name))
		if err != nil {
			return err
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil && info.IsDir() {
			return failure(name, dfserr.ErrIsDir)
		}
		in = f
	}
	open := sh.fs.OpenAppend
	if create {
		open = func(ctx context.Context, path string) (writer, error) {
			return sh.fs.Create(ctx, path, 0o666&^sh.env.umask, false)
		}
	}
	w, err := open(ctx, dst.path)
	if create && errors.Is(err, fs.ErrExist) {
		w, err = sh.fs.OpenAppend(ctx, dst.path)
	}
	if err != nil {
		return about(dst.shown, err)
	}
	if _, err = pour(ctx, w, in); err != nil {
		w.Abandon()
		return err
	}
	return about(dst.shown, w.Close())
}

func runTruncate(ctx context.Context, sh *shell, args []string) error {
	length, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		return usagef("Illegal length, a non-negative integer expected: %q", args[0])
	}
	if length < 0 {
		return usagef("length should be >= 0")
	}
	return sh.eachOperand(ctx, args[1:], true, nil, func(o operand) error {
		if o.isDir() {
			return failure(o.shown, dfserr.ErrIsDir)
		}
		if err := o.sizeKnown(); err != nil && !sh.opts.on("g") {
			return err
		}
		if length > o.info.Size && !sh.opts.on("g") {
			return usagef("Cannot truncate to a larger file size. Current size: %d, truncate size: %d.", o.info.Size, length)
		}
		if sh.opts.on("w") && !sh.json {
			fmt.Fprintf(sh.out, "Waiting for %s ...\n", o.shown)
		}
		if err := sh.fs.Truncate(ctx, o.path, length); err != nil {
			return err
		}
		if sh.json {
			sh.printJSON(map[string]any{"path": o.shown, "length": length})
			return nil
		}
		fmt.Fprintf(sh.out, "Truncated %s to length: %d\n", o.shown, length)
		return nil
	})
}

func runTouch(ctx context.Context, sh *shell, args []string) error {
	at := sh.env.now()
	if text, ok := sh.opts["t"]; ok {
		t, err := time.ParseInLocation("20060102:150405", text, sh.env.zone)
		if err != nil {
			return usagef("Unable to parse the specified timestamp %s. The expected format is yyyyMMdd:HHmmss", text)
		}
		at = t
	}
	set := func(o operand) error {
		atime, mtime := at, at
		if sh.opts.on("m") && !sh.opts.on("a") {
			atime = time.Time{}
		}
		if sh.opts.on("a") && !sh.opts.on("m") {
			mtime = time.Time{}
		}
		return sh.fs.Chtimes(ctx, o.path, atime, mtime)
	}
	missing := func(o operand) error {
		if sh.opts.on("c") {
			return nil
		}
		if err := sh.createEmpty(ctx, o); err != nil {
			return err
		}
		if !sh.opts.on("t") {
			return nil
		}
		return set(o)
	}
	return sh.eachOperand(ctx, args, true, missing, set)
}

// createEmpty makes an empty file; a missing parent is named in full, as HDFS does.
func (sh *shell) createEmpty(ctx context.Context, o operand) error {
	err := sh.fs.WriteSmall(ctx, o.path, nil, 0o666&^sh.env.umask, false)
	if errors.Is(err, fs.ErrNotExist) {
		return &operandError{path: o.shown, text: describe(err), full: sh.qualified(o.path), err: err}
	}
	return err
}

func runTouchz(ctx context.Context, sh *shell, args []string) error {
	missing := func(o operand) error { return sh.createEmpty(ctx, o) }
	return sh.eachOperand(ctx, args, true, missing, func(o operand) error {
		switch {
		case o.isDir():
			return failure(o.shown, dfserr.ErrIsDir)
		case o.info.Size != 0:
			return failuref(o.shown, "Not a zero-length file")
		case o.info.SizeIsBound:
			return o.sizeKnown()
		}
		return sh.fs.Chtimes(ctx, o.path, time.Time{}, sh.env.now())
	})
}
