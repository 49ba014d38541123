package main

import (
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf8"
)

// humanSize prints a byte count as `hdfs dfs -ls -h` does: below 1024 the number, an exact multiple without
// decimals, anything else with one decimal, rounded half up, and a space before the letter.
func humanSize(n int64) string { return binarySize(n, 1, "") }

// byteDesc prints a byte count as `hdfs dfsadmin -report` does: two decimals and the unit B.
func byteDesc(n int64) string { return binarySize(n, 2, "B") }

// binarySize is Hadoop's TraditionalBinaryPrefix.long2String.
func binarySize(n int64, decimals int, unit string) string {
	sign := ""
	u := uint64(n)
	if n < 0 {
		sign, u = "-", -u
	}
	if u < 1024 {
		if unit != "" {
			unit = " " + unit
		}
		return sign + strconv.FormatUint(u, 10) + unit
	}
	const letters = "KMGTPE"
	i := (bits.Len64(u) - 1) / 10
	if u&(1<<(10*i)-1) == 0 {
		return fmt.Sprintf("%s%d %c%s", sign, u>>(10*i), letters[i-1], unit)
	}
	pow := uint64(1)
	for range decimals {
		pow *= 10
	}
	// u * pow / 2^(10i), rounded half up, in 128 bits.
	hi, lo := bits.Mul64(u, pow)
	lo, carry := bits.Add64(lo, 1<<(10*i-1), 0)
	hi += carry
	scaled := hi<<(64-10*i) | lo>>(10*i)
	if scaled == 1024*pow && i < len(letters) { // rounds up to the next letter
		return fmt.Sprintf("%s1 %c%s", sign, letters[i], unit)
	}
	return fmt.Sprintf("%s%d.%0*d %c%s", sign, scaled/pow, decimals, scaled%pow, letters[i-1], unit)
}

// sizeText prints n as a plain number or for people.
func sizeText(n int64, human bool) string {
	if human {
		return humanSize(n)
	}
	return strconv.FormatInt(n, 10)
}

// modeText prints type and permission bits as ls -l does.
func modeText(m fs.FileMode) string {
	t := byte('-')
	switch {
	case m.IsDir():
		t = 'd'
	case m&fs.ModeSymlink != 0:
		t = 'l'
	case m&fs.ModeNamedPipe != 0:
		t = 'p'
	case m&fs.ModeSocket != 0:
		t = 's'
	case m&fs.ModeCharDevice != 0:
		t = 'c'
	case m&fs.ModeDevice != 0:
		t = 'b'
	}
	return string(t) + permText(m)
}

// permText prints the nine permission letters, with setuid, setgid and sticky in their places.
func permText(m fs.FileMode) string {
	const rwx = "rwxrwxrwx"
	b := []byte(rwx)
	for i := range b {
		if m.Perm()&(1<<(8-i)) == 0 {
			b[i] = '-'
		}
	}
	special := func(set bool, at int, letter byte) {
		if !set {
			return
		}
		if b[at] == '-' {
			letter -= 'a' - 'A'
		}
		b[at] = letter
	}
	special(m&fs.ModeSetuid != 0, 2, 's')
	special(m&fs.ModeSetgid != 0, 5, 's')
	special(m&fs.ModeSticky != 0, 8, 't')
	return string(b)
}

// modeBits returns the twelve permission bits of chmod(1).
func modeBits(m fs.FileMode) uint32 {
	bits := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		bits |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		bits |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	return bits
}

// bitsMode is the inverse of modeBits.
func bitsMode(bits uint32) fs.FileMode {
	m := fs.FileMode(bits & 0o777)
	if bits&0o4000 != 0 {
		m |= fs.ModeSetuid
	}
	if bits&0o2000 != 0 {
		m |= fs.ModeSetgid
	}
	if bits&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// typeText names the type of a file in words, as `stat -c %F` does.
func typeText(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symlink"
	case m.IsRegular():
		return "regular file"
	case m&fs.ModeNamedPipe != 0:
		return "fifo"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeCharDevice != 0:
		return "character special file"
	default:
		return "block special file"
	}
}

// typeWord names the type of a file in one word, for JSON.
func typeWord(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symlink"
	case m.IsRegular():
		return "file"
	case m&fs.ModeNamedPipe != 0:
		return "fifo"
	case m&fs.ModeSocket != 0:
		return "socket"
	default:
		return "device"
	}
}

// table prints rows in columns two spaces apart, without trailing blanks.
type table struct {
	right []bool // by column: align right
	rows  [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) print(w io.Writer) {
	var width []int
	for _, row := range t.rows {
		for i, c := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	for _, row := range t.rows {
		var b strings.Builder
		for i, c := range row {
			if i > 0 {
				b.WriteString("  ")
			}
			b.WriteString(pad(c, width[i], i < len(t.right) && t.right[i]))
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

// pad fills s with blanks to width characters.
func pad(s string, width int, right bool) string {
	fill := strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
	if right {
		return fill + s
	}
	return s + fill
}

// percent prints part of whole with the given decimals; of nothing it is 0.
func percent(part, whole int64, decimals int) string {
	v := 0.0
	if whole > 0 {
		v = float64(part) / float64(whole) * 100
	}
	return strconv.FormatFloat(v, 'f', decimals, 64)
}
