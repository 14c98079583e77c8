package fingerprint

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sluice-cd/sluice/internal/database"
)

// How much of a value a report shows, and a line of NDJSON.
const (
	shownText    = 200
	streamedText = 4096
)

// readable returns text that can be printed: bytes that are no UTF-8 and control characters are escaped.
func readable(s string) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return s
	}
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}

// firstDifference returns where two texts begin to differ.
func firstDifference(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// clip cuts a long text around a place, to about so many bytes.
func clip(s string, at, limit int) string {
	if len(s) <= limit {
		return readable(s)
	}
	from := 0
	if at > limit/2 {
		from = min(at-limit/2, len(s)-limit)
	}
	to := min(len(s), max(from, 0)+limit)
	for from > 0 && !utf8.RuneStart(s[from]) && at-from < limit {
		from--
	}
	for to < len(s) && !utf8.RuneStart(s[to]) {
		to++
	}
	out := readable(s[from:to])
	if from > 0 {
		out = fmt.Sprintf("…(%d bytes) ", from) + out
	}
	if to < len(s) {
		out += fmt.Sprintf(" …(%d bytes)", len(s)-to)
	}
	return out
}

func byteText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n), -1
	for f >= unit && i < 5 {
		f /= unit
		i++
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTPE"[i])
}

// textReport writes and remembers the first error.
type textReport struct {
	w   io.Writer
	err error
}

func (t *textReport) line(format string, args ...any) {
	if t.err == nil {
		_, t.err = fmt.Fprintf(t.w, format+"\n", args...)
	}
}

// textExamples is how many examples of a class the text shows; the JSON has all that were kept.
const textExamples = 5

// WriteText writes the report for people.
func (r *Report) WriteText(w io.Writer) error {
	t := &textReport{w: w}
	t.line("%s%s", strings.ToUpper(string(r.Verdict)), ifText(r.Reason, ": "))
	t.line("")
	for role, s := range []SideReport{r.Source, r.Target} {
		t.line("%s: %s, %d rows, %s%s", Role(role), product(s.Info), s.Rows, byteText(s.Bytes), sideNotes(s))
	}
	for i := range r.Tables {
		if r.Tables[i].Verdict != Equal {
			r.Tables[i].writeText(t)
		}
	}
	equal := 0
	for _, x := range r.Tables {
		if x.Verdict == Equal {
			equal++
		}
	}
	t.line("")
	t.line("%d of %d tables are equal; %d objects were compared", equal, len(r.Tables), r.Coverage.Objects)
	for _, f := range r.Schema {
		t.line("  schema: %s: %s: %s", f.Object, f.Class, f.Message)
	}
	for _, f := range r.Expected {
		t.line("  expected: %s: %s: %s", f.Object, f.Class, f.Message)
	}
	for _, n := range r.NotCompared {
		t.line("  not compared: %s: %s%s", n.Object, n.Reason, map[bool]string{true: "", false: " (not expected)"}[n.Expected])
	}
	t.line("%.1f s, %.0f rows/s, %s spilled; seed %s, plan %s", r.Cost.Seconds, r.Cost.RowsPerSecond, byteText(r.Cost.SpillBytes), short(r.Seed), short(r.Plan))
	return t.err
}

func ifText(s, before string) string {
	if s == "" {
		return ""
	}
	return before + s
}

// product names what answered: a wire protocol is not the product whose protocol it is.
func product(i database.Info) string {
	name := i.Engine
	switch name {
	case "mongodb":
		name = "MongoDB"
	case "postgres":
		name = "PostgreSQL"
	}
	if i.ServedBy == "" {
		return strings.TrimSpace(name + " " + i.Version)
	}
	return strings.TrimSpace(fmt.Sprintf("%s wire protocol, served by %s %s", name, i.ServedBy, i.Version))
}

func sideNotes(s SideReport) string {
	var out string
	if s.Live {
		out += ", live: no snapshot"
	}
	if s.Reused {
		out += ", fingerprint made earlier"
	}
	return out
}

func short(digest string) string { return digest[:min(len(digest), 19)] }

func (x *TableReport) writeText(t *textReport) {
	t.line("")
	t.line("%s: %s; %d rows, was %d", x.Name, x.Verdict, x.TargetRows, x.SourceRows)
	if x.Note != "" {
		t.line("  %s", x.Note)
	}
	var counts []string
	for _, c := range []struct {
		name string
		n    int64
	}{{"missing", x.Missing}, {"extra", x.Extra}, {"changed", x.Changed}, {"duplicate", x.Duplicate},
		{ClassKeyChanged, x.KeyChanged}, {ClassKeyRespelled, x.KeyRespelled}, {"not classified", x.NotClassified}} {
		if c.n > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", c.n, c.name))
		}
	}
	if len(counts) > 0 {
		t.line("  %s", strings.Join(counts, ", "))
	}
	if len(x.Columns) > 0 {
		t.line("  columns: %s", strings.Join(x.Columns, ", "))
	}
	for _, c := range x.Classes {
		c.writeText(t)
	}
}

func (c *ClassReport) writeText(t *textReport) {
	pattern := ""
	if c.Pattern != nil && c.Pattern.Constant {
		pattern = ", each by " + c.Pattern.Text
	} else if c.Pattern != nil {
		pattern = ", by " + c.Pattern.Text
	}
	t.line("  %s%s: %d%s", c.Class, ifText(c.Column, " in "), c.Count, pattern)
	for i, e := range c.Examples {
		if i == textExamples {
			t.line("    …")
			break
		}
		t.line("    %s", e.text())
	}
}

func (e *Example) text() string {
	key := e.Key
	if key == "" {
		key = "row"
	}
	switch {
	case e.NewKey != "":
		return fmt.Sprintf("%s → %s", key, e.NewKey)
	case e.Old != nil || e.New != nil:
		return fmt.Sprintf("%s: %s → %s", key, e.Old.text(e.New), e.New.text(e.Old))
	}
	var parts []string
	for _, v := range e.Row {
		parts = append(parts, v.Path+"="+v.Text)
	}
	text := key + ": " + strings.Join(parts, ", ")
	if e.SourceCopies+e.TargetCopies > 0 {
		text += fmt.Sprintf(" (%d copies, was %d)", e.TargetCopies, e.SourceCopies)
	}
	return text
}

// text shows a value, with its type where the other's is another.
func (v *Value) text(other *Value) string {
	switch {
	case v == nil:
		return "absent"
	case other != nil && other.Type != v.Type:
		return v.Text + " (" + v.Type + ")"
	}
	return v.Text
}
