package fingerprint

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"golang.org/x/text/unicode/norm"

	"github.com/sluice-cd/sluice/internal/database"
)

const (
	// examplesKept is how many examples a report keeps per class and column.
	examplesKept = 20
	// columnsKept is how many columns, or paths of documents, get a class of their own in one table.
	columnsKept = 500
	otherPaths  = "(other paths)"
)

// recorder collects the differences of one table.
type recorder struct {
	t       *Table
	views   [2]database.View
	r       *TableReport
	out     *json.Encoder
	rows    func(RowDifference) error
	classes map[classKey]*classState
	changes []change
}

type classKey struct{ class, column string }

type classState struct {
	report   ClassReport
	numbers  int64
	min, max *big.Rat
	instant  bool
}

func newRecorder(t *Table, views [2]database.View, r *TableReport, out *json.Encoder, rows func(RowDifference) error) *recorder {
	return &recorder{t: t, views: views, r: r, out: out, rows: rows, classes: map[classKey]*classState{}}
}

func (c *recorder) class(class, column string) *classState {
	k := classKey{class, column}
	s := c.classes[k]
	if s == nil && column != "" && len(c.classes) >= columnsKept {
		k.column = otherPaths
		s = c.classes[k]
	}
	if s == nil {
		s = &classState{report: ClassReport{Class: class, Column: k.column, Examples: []Example{}}}
		c.classes[k] = s
	}
	return s
}

// wants tells whether a row is among the examples with the smallest keys.
func (s *classState) wants(order []byte) bool {
	e := s.report.Examples
	return len(e) < examplesKept || bytes.Compare(order, e[len(e)-1].order) < 0
}

func (s *classState) keep(e Example, order []byte) {
	e.order = slices.Clone(order)
	list := s.report.Examples
	i, _ := slices.BinarySearchFunc(list, e, func(a, b Example) int {
		// Equal keys count as smaller: the first one that came stays in front.
		return cmp.Or(bytes.Compare(a.order, b.order), -1)
	})
	list = slices.Insert(list, i, e)
	s.report.Examples = list[:min(len(list), examplesKept)]
}

// number takes a difference of numbers into the pattern.
func (s *classState) number(delta *big.Rat, instant bool) {
	s.numbers++
	s.instant = instant
	if s.min == nil || delta.Cmp(s.min) < 0 {
		s.min = delta
	}
	if s.max == nil || delta.Cmp(s.max) > 0 {
		s.max = delta
	}
}

// order is what examples are sorted by: the key, or the row where there is none.
func (c *recorder) order(r database.Row) []byte {
	if r.Key != nil && len(c.t.Key) > 0 {
		return r.Key
	}
	return bytes.Join(r.Values, nil)
}

// fields takes a row apart by its own side's view. Where the engine cannot, the canonical values are shown.
func (c *recorder) fields(role Role, r database.Row) []database.Field {
	side := &c.t.sides[role]
	f, err := c.views[role].Fields(side.relation, &side.projection, r)
	if err == nil && (c.t.document() || len(f) == len(c.t.Columns)) {
		return f
	}
	f = f[:0]
	for j, v := range r.Values {
		family, _ := database.FamilyOf(v)
		f = append(f, database.Field{Path: c.t.Columns[j].Name, Type: string(family), Text: database.TextOf(v), Canon: v})
	}
	return f
}

// keyText shows a key as people read it.
func (c *recorder) keyText(r database.Row, fields []database.Field) string {
	if len(c.t.Key) == 0 {
		return ""
	}
	var parts []string
	if c.t.document() {
		for _, f := range fields {
			if f.Path == "_id" {
				return f.Text
			}
			if strings.HasPrefix(f.Path, "_id.") {
				parts = append(parts, strings.TrimPrefix(f.Path, "_id.")+"="+f.Text)
			}
		}
		if len(parts) > 0 {
			return strings.Join(parts, ", ")
		}
		values, _ := database.KeyValues(r.Key)
		for _, v := range values {
			parts = append(parts, database.TextOf(v))
		}
		return strings.Join(parts, ", ")
	}
	if len(c.t.Key) == 1 {
		return readable(fields[c.t.Key[0]].Text)
	}
	for _, k := range c.t.Key {
		parts = append(parts, c.t.Columns[k].Name+"="+readable(fields[k].Text))
	}
	return strings.Join(parts, ", ")
}

// rowValues shows all of a row.
func rowValues(fields []database.Field, limit int) []Value {
	out := make([]Value, 0, len(fields))
	for _, f := range fields {
		out = append(out, Value{Path: f.Path, Type: f.Type, Text: clip(f.Text, 0, limit)})
	}
	return out
}

// oneSided records rows that one side lacks, or has not as often: count copies of one row.
func (c *recorder) oneSided(class string, role Role, r database.Row, count int64, copies [2]int) error {
	switch class {
	case ClassMissing:
		c.r.Missing += count
	case ClassExtra:
		c.r.Extra += count
	case ClassDuplicate:
		c.r.Duplicate += count
	}
	s, order := c.class(class, ""), c.order(r)
	s.report.Count += count
	raw := RowDifference{Class: class, Count: count, Old: &r}
	if role == Target {
		raw.Old, raw.New = nil, &r
	}
	if err := c.tell(raw); err != nil || !s.wants(order) && c.out == nil {
		return err
	}
	fields := c.fields(role, r)
	key := c.keyText(r, fields)
	if s.wants(order) {
		s.keep(Example{Key: key, Row: rowValues(fields, shownText), SourceCopies: copies[Source], TargetCopies: copies[Target]}, order)
	}
	if c.out == nil {
		return nil
	}
	return c.write(Difference{Class: class, Key: key, Row: rowValues(fields, streamedText), SourceCopies: copies[Source], TargetCopies: copies[Target]})
}

// keyChanged records a row of which the key changed.
func (c *recorder) keyChanged(class string, old, new database.Row) error {
	if class == ClassKeyChanged {
		c.r.KeyChanged++
	} else {
		c.r.KeyRespelled++
	}
	s, order := c.class(class, ""), c.order(old)
	s.report.Count++
	c.keyDelta(s, old.Key, new.Key)
	if err := c.tell(RowDifference{Class: class, Count: 1, Old: &old, New: &new}); err != nil || !s.wants(order) && c.out == nil {
		return err
	}
	d := Difference{Class: class, Key: c.keyText(old, c.fields(Source, old)), NewKey: c.keyText(new, c.fields(Target, new))}
	if s.wants(order) {
		s.keep(Example{Key: d.Key, NewKey: d.NewKey}, order)
	}
	return c.write(d)
}

// keyDelta looks for a pattern in keys of one number.
func (c *recorder) keyDelta(s *classState, old, new []byte) {
	a, okA := database.KeyValues(old)
	b, okB := database.KeyValues(new)
	if okA && okB && len(a) == 1 && len(b) == 1 {
		if d := deltaOf(a[0], b[0]); d != nil {
			s.number(d, isInstant(a[0]))
		}
	}
}

func isInstant(canon []byte) bool {
	f, _ := database.FamilyOf(canon)
	return f == database.Timestamp
}

// changed records a row that both sides have under one key.
func (c *recorder) changed(old, new database.Row) error {
	c.r.Changed++
	var fields [2][]database.Field
	shown := func() {
		if fields[Source] == nil {
			fields = [2][]database.Field{c.fields(Source, old), c.fields(Target, new)}
		}
	}
	if c.t.document() {
		shown()
		c.changes = documentChanges(fields[Source], fields[Target])
	} else {
		c.changes = columnChanges(c.t, old, new, c.changes[:0])
	}
	if err := c.tell(RowDifference{Class: ClassChanged, Count: 1, Old: &old, New: &new}); err != nil {
		return err
	}
	order := c.order(old)
	d := Difference{Class: ClassChanged}
	for _, ch := range c.changes {
		s := c.class(ch.class, ch.path)
		s.report.Count++
		if ch.delta != nil {
			s.number(ch.delta, c.instant(ch, old))
		}
		if !s.wants(order) && c.out == nil {
			continue
		}
		shown()
		d.Key = c.keyText(old, fields[Source])
		if s.wants(order) {
			a, b := c.values(ch, fields, shownText)
			s.keep(Example{Key: d.Key, Old: a, New: b}, order)
		}
		if c.out != nil {
			a, b := c.values(ch, fields, streamedText)
			d.Changes = append(d.Changes, FieldChange{Path: ch.path, Class: ch.class, Old: a, New: b})
		}
	}
	return c.write(d)
}

func (c *recorder) instant(ch change, old database.Row) bool {
	if ch.old != nil {
		return isInstant(ch.old.Canon) || ch.old.Type == "date"
	}
	for j := range c.t.Columns {
		if c.t.Columns[j].Name == ch.path {
			return isInstant(old.Values[j])
		}
	}
	return false
}

// values shows the old and the new value of a change.
func (c *recorder) values(ch change, fields [2][]database.Field, limit int) (old, new *Value) {
	a, b := ch.old, ch.new
	if !c.t.document() {
		for j := range c.t.Columns {
			if c.t.Columns[j].Name == ch.path {
				a, b = &fields[Source][j], &fields[Target][j]
			}
		}
	}
	if a == nil && b == nil { // an order: the names, or the elements, in theirs
		return &Value{Text: clip(inOrder(fields[Source], ch.path), 0, limit)}, &Value{Text: clip(inOrder(fields[Target], ch.path), 0, limit)}
	}
	at := 0
	if a != nil && b != nil {
		at = firstDifference(a.Text, b.Text)
	}
	same := a != nil && b != nil && a.Type == b.Type && norm.NFC.String(clip(a.Text, at, limit)) == norm.NFC.String(clip(b.Text, at, limit))
	show := func(f *database.Field) *Value {
		if f == nil {
			return nil
		}
		v := &Value{Type: f.Type, Text: clip(f.Text, at, limit)}
		if same { // what differs must be seen: é and e with an accent look alike
			v.Text = fmt.Sprintf("%+q", f.Text[:min(len(f.Text), limit)])
		}
		return v
	}
	return show(a), show(b)
}

// inOrder lists what stands directly in a document or array.
func inOrder(fields []database.Field, parent string) string {
	var parts []string
	for _, f := range fields {
		rest := f.Path
		if parent != "" {
			var ok bool
			if rest, ok = strings.CutPrefix(f.Path, parent+"."); !ok {
				continue
			}
		}
		name, _, _ := strings.Cut(rest, ".")
		if isElement(f.Path, parent) {
			name = f.Text
		}
		if len(parts) == 0 || parts[len(parts)-1] != name {
			parts = append(parts, name)
		}
	}
	return strings.Join(parts, ", ")
}

// tell hands a differing row to the caller as it is.
func (c *recorder) tell(d RowDifference) error {
	if c.rows == nil {
		return nil
	}
	d.Relation, d.table, d.views = c.t.Name, c.t, c.views
	return c.rows(d)
}

func (c *recorder) write(d Difference) error {
	if c.out == nil {
		return nil
	}
	d.Relation = c.t.Name
	if err := c.out.Encode(d); err != nil {
		return fmt.Errorf("writing the differing rows: %w", err)
	}
	return nil
}

// finish puts the classes into the report, those of whole rows first.
func (c *recorder) finish() {
	for _, s := range c.classes {
		if s.numbers == s.report.Count && s.min != nil {
			s.report.Pattern = &Pattern{Constant: s.min.Cmp(s.max) == 0, Min: decimal(s.min), Max: decimal(s.max)}
			s.report.Pattern.Text = patternText(s)
		}
		c.r.Classes = append(c.r.Classes, s.report)
	}
	rank := func(r ClassReport) int {
		i := slices.Index([]string{ClassMissing, ClassExtra, ClassDuplicate, ClassKeyChanged, ClassKeyRespelled}, r.Class)
		if i < 0 {
			i = 9
		}
		return i
	}
	slices.SortFunc(c.r.Classes, func(a, b ClassReport) int {
		return cmp.Or(rank(a)-rank(b), strings.Compare(a.Column, b.Column), strings.Compare(a.Class, b.Class))
	})
}

func patternText(s *classState) string {
	if s.min.Cmp(s.max) != 0 {
		return signed(s.min, s.instant) + " to " + signed(s.max, s.instant)
	}
	return signed(s.min, s.instant)
}

func signed(r *big.Rat, instant bool) string {
	text := decimal(r)
	if instant && r.IsInt() && r.Num().IsInt64() {
		if d := r.Num().Int64(); d < 1<<53 && d > -(1<<53) {
			text = (time.Duration(d) * time.Microsecond).String()
		} else {
			text += " µs"
		}
	}
	if r.Sign() > 0 {
		text = "+" + text
	}
	return text
}

func decimal(r *big.Rat) string {
	if r.IsInt() {
		return r.Num().String()
	}
	s := r.FloatString(18)
	return strings.TrimRight(s, "0")
}
