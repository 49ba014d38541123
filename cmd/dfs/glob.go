package main

import (
	"path"
	"strings"

	"dfs/internal/dfserr"
)

// maxPatterns bounds what one argument's braces may expand to.
const maxPatterns = 10_000

// hasMeta reports whether s has an unescaped pattern character.
func hasMeta(s string) bool {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '*', '?', '[', '{':
			return true
		}
	}
	return false
}

// unescape drops the backslashes that protect characters.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// expandBraces turns {a,b} into the patterns it stands for; braces nest, and may hold slashes. A brace that is not
// closed, or more than maxPatterns patterns, is ErrInvalid.
func expandBraces(pattern string) ([]string, error) {
	open := -1
	depth := 0
	var parts []string
	begin := 0
	inClass := false
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; {
		case c == '\\':
			i++
		case inClass:
			inClass = c != ']'
		case c == '[' && open < 0:
			inClass = strings.IndexByte(pattern[i:], ']') > 0
		case c == '{':
			if depth == 0 {
				open, begin = i, i+1
			}
			depth++
		case c == ',' && depth == 1:
			parts = append(parts, pattern[begin:i])
			begin = i + 1
		case c == '}' && depth > 0:
			depth--
			if depth > 0 {
				continue
			}
			parts = append(parts, pattern[begin:i])
			var all []string
			for _, p := range parts {
				more, err := expandBraces(pattern[:open] + p + pattern[i+1:])
				if err != nil {
					return nil, err
				}
				all = append(all, more...)
				if len(all) > maxPatterns {
					return nil, dfserr.Errorf(dfserr.ErrInvalid, "pattern %.60q stands for more than %d paths", pattern, maxPatterns)
				}
			}
			return all, nil
		}
	}
	if open >= 0 {
		return nil, &operandError{path: pattern, text: "Unclosed group in pattern", err: dfserr.ErrInvalid}
	}
	return []string{pattern}, nil
}

// matchName reports whether one name matches one component of a pattern: * ? [abc] [a-z] [^a] [!a] and \ as HDFS
// has them; unlike in a shell, * also matches a leading dot. Names are bytes: ? matches one character, or one byte
// that is none.
func matchName(pattern, name string) (bool, error) {
	ok, err := path.Match(shellClass(pattern), name)
	if err != nil {
		return false, dfserr.Errorf(dfserr.ErrInvalid, "pattern %q", pattern)
	}
	return ok, nil
}

// shellClass rewrites [!…] as [^…].
func shellClass(pattern string) string {
	if !strings.Contains(pattern, "[!") {
		return pattern
	}
	b := []byte(pattern)
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == '\\':
			i++
		case b[i] == '[' && i+1 < len(b) && b[i+1] == '!':
			b[i+1] = '^'
		}
	}
	return string(b)
}
