package deployfile

import (
	"cmp"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Severity says how bad a finding is.
type Severity string

// The severities. A file with an Error is refused; a Warning is probably a mistake; a Note says what is ignored or how
// something is understood.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
	Note    Severity = "note"
)

// Finding is one thing that was found in a deploy file.
type Finding struct {
	Severity Severity `json:"severity"`
	Pos
	Message    string `json:"message"`
	Suggestion string `json:"suggestion,omitempty"`
}

// Findings are sorted by their place in the file.
type Findings []Finding

// HasErrors reports whether the file is refused.
func (f Findings) HasErrors() bool {
	return slices.ContainsFunc(f, func(x Finding) bool { return x.Severity == Error })
}

// sorted returns the findings by place, and each only once: an anchor that is used twice is read twice. What they quote
// of the file holds no password.
func (f Findings) sorted() Findings {
	for i := range f {
		for _, s := range []*string{&f[i].Message, &f[i].Suggestion} {
			masked, _ := maskPasswords(*s, 0)
			*s = printable(masked)
		}
	}
	slices.SortStableFunc(f, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	seen := map[Finding]bool{}
	f = slices.DeleteFunc(f, func(x Finding) bool {
		again := seen[x]
		seen[x] = true
		return again
	})
	if len(f) <= maxFindings {
		return f
	}
	if i := slices.IndexFunc(f, func(x Finding) bool { return x.Severity == Error }); i >= maxFindings {
		f[maxFindings-1] = f[i] // what refuses the file is not left out
	}
	return f[:maxFindings]
}

// inlinePassword is the password of a URL. People write them into deploy files, and a finding must not carry them on into
// the log of a CI job.
var inlinePassword = regexp.MustCompile(`://[^:/@\s{}]*:([^@\s{}]+)@`)

// maskPasswords puts stars in place of passwords, and returns where a column is afterwards.
func maskPasswords(line string, column int) (string, int) {
	const stars = "***"
	found := inlinePassword.FindAllStringSubmatchIndex(line, -1)
	for _, m := range slices.Backward(found) {
		begin, end := utf8.RuneCountInString(line[:m[2]])+1, utf8.RuneCountInString(line[:m[3]])+1
		switch {
		case column >= end:
			column -= end - begin - len(stars)
		case column > begin:
			column = begin
		}
		line = line[:m[2]] + stars + line[m[3]:]
	}
	return line, column
}

// Write prints each finding with the offending line and a caret under the place.
func (f Findings) Write(w io.Writer, path string, body []byte) error {
	lines := splitLines(body)
	for _, x := range f {
		if _, err := fmt.Fprintf(w, "%s:%d:%d: %s: %s\n", path, x.Line, x.Column, x.Severity, x.Message); err != nil {
			return err
		}
		if x.Line >= 1 && x.Line <= len(lines) {
			line, caret := excerpt(lines[x.Line-1], x.Column)
			if _, err := fmt.Fprintf(w, "  %s\n  %s\n", line, caret); err != nil {
				return err
			}
		}
		if x.Suggestion != "" {
			if _, err := fmt.Fprintf(w, "  suggestion: %s\n", x.Suggestion); err != nil {
				return err
			}
		}
	}
	return nil
}

// printable puts blanks in place of what could move a terminal's cursor.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return ' '
	}, s)
}

// excerpt returns a line as it may be shown on a terminal, and a line with a caret under the column. Of a long line it
// shows the part around the column.
func excerpt(line string, column int) (shown, caret string) {
	const before, most = 80, 140
	line, column = maskPasswords(line, column)
	runes := []rune(line)
	from := 0
	if column-1 > before && len(runes) > most {
		from = column - 1 - before
	}
	to := min(len(runes), from+most)
	from = min(from, to)
	for i, r := range runes[:to] {
		if r != '\t' && !unicode.IsPrint(r) {
			runes[i] = '\ufffd'
		}
	}
	shown = string(runes[from:to])
	var pad strings.Builder
	for i := from; i < min(column-1, to); i++ {
		if runes[i] == '\t' {
			pad.WriteByte('\t')
		} else {
			pad.WriteByte(' ')
		}
	}
	return shown, pad.String() + "^"
}

// splitLines returns the lines without their ends. Positions count them like this, too.
func splitLines(body []byte) []string {
	return strings.Split(string(normalise(body)), "\n")
}

// normalise makes every line end in a single newline and takes a byte order mark away.
func normalise(body []byte) []byte {
	s := strings.TrimPrefix(string(body), "\ufeff")
	return []byte(strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(s))
}
