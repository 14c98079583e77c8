package fingerprint

import (
	"bytes"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-cd/sluice/internal/database"
)

// change is one differing value of a row that both sides have.
type change struct {
	path     string
	class    string
	old, new *database.Field // nil where the side has none, and in columns until they are shown
	delta    *big.Rat        // new - old where both are numbers
}

// columnChanges compares two rows column by column, from their canonical bytes alone.
func columnChanges(t *Table, s, d database.Row, out []change) []change {
	for j := range t.Columns {
		x, y := s.Values[j], d.Values[j]
		if bytes.Equal(x, y) {
			continue
		}
		c := change{path: t.Columns[j].Name, class: classify(x, y)}
		if len(x) > 0 && len(y) > 0 && x[0] == y[0] {
			c.delta = deltaOf(x, y)
		}
		out = append(out, c)
	}
	return out
}

func deltaOf(x, y []byte) *big.Rat {
	a, okA := database.Number(x)
	b, okB := database.Number(y)
	if !okA || !okB {
		return nil
	}
	return b.Sub(b, a)
}

// documentChanges compares the fields of two documents that differ.
func documentChanges(old, new []database.Field) []change {
	byPath := map[string][]int{}
	for i, f := range new {
		byPath[f.Path] = append(byPath[f.Path], i)
	}
	used := make([]bool, len(new))
	var out []change
	for i := range old {
		f := &old[i]
		rest := byPath[f.Path]
		if len(rest) == 0 {
			out = append(out, change{path: f.Path, class: ClassFieldMissing, old: f})
			continue
		}
		byPath[f.Path], used[rest[0]] = rest[1:], true
		if g := &new[rest[0]]; !sameField(f, g) {
			out = append(out, fieldChange(f, g))
		}
	}
	for i := range new {
		if !used[i] {
			out = append(out, change{path: new[i].Path, class: ClassFieldExtra, new: &new[i]})
		}
	}
	out = withoutContainers(out)
	if len(out) == 0 {
		return []change{{path: orderPath(old, new), class: ClassOrder}}
	}
	return arrayOrder(old, new, out)
}

func sameField(a, b *database.Field) bool {
	if a.Type != b.Type {
		return false
	}
	if a.Canon != nil && b.Canon != nil {
		return bytes.Equal(a.Canon, b.Canon)
	}
	return a.Text == b.Text
}

func fieldChange(f, g *database.Field) change {
	c := change{path: f.Path, old: f, new: g, class: ClassValue}
	isNull := func(x *database.Field) bool { return x.Type == "null" || database.IsNull(x.Canon) }
	switch {
	case isNull(f) != isNull(g):
		c.class = ClassNull
		return c
	case f.Type != g.Type:
		c.class = ClassType
		return c
	case len(f.Canon) > 0 && len(g.Canon) > 0:
		c.class = classify(f.Canon, g.Canon)
		c.delta = deltaOf(f.Canon, g.Canon)
	case f.Type == "string":
		c.class = classifyText(f.Text, g.Text)
	}
	if c.delta == nil && f.Number != nil && g.Number != nil && finite(*f.Number) && finite(*g.Number) {
		a, b := new(big.Rat).SetFloat64(*f.Number), new(big.Rat).SetFloat64(*g.Number)
		c.delta = b.Sub(b, a)
		if c.delta.Sign() == 0 {
			c.class = ClassRepresentation
		}
	}
	return c
}

// withoutContainers drops a change of a document or array as a whole where the change of a field inside says the same.
// A container in which no field differs holds its fields in another order.
func withoutContainers(changes []change) []change {
	out := changes[:0:0]
	for i, c := range changes {
		if c.old == nil || c.new == nil || !isContainer(c.old.Type) || !isContainer(c.new.Type) || c.old.Type != c.new.Type {
			out = append(out, c)
			continue
		}
		inside := slices.ContainsFunc(changes, func(x change) bool { return strings.HasPrefix(x.path, c.path+".") })
		if inside {
			continue
		}
		changes[i].class = ClassOrder
		out = append(out, changes[i])
	}
	return out
}

// orderPath returns the document inside which the fields stand in another order; "" is the whole document.
func orderPath(old, new []database.Field) string {
	for i := range min(len(old), len(new)) {
		if old[i].Path != new[i].Path {
			a, b := strings.Split(old[i].Path, "."), strings.Split(new[i].Path, ".")
			n := 0
			for n < len(a)-1 && n < len(b)-1 && a[n] == b[n] {
				n++
			}
			return strings.Join(a[:n], ".")
		}
	}
	return ""
}

// arrayOrder turns changes of an array's elements into one change of order, where the array holds the same elements.
func arrayOrder(old, new []database.Field, changes []change) []change {
	for _, parent := range arrays(changes) {
		a, b := elementsOf(old, parent), elementsOf(new, parent)
		slices.Sort(a)
		slices.Sort(b)
		if len(a) == 0 || !slices.Equal(a, b) {
			continue
		}
		changes = slices.DeleteFunc(changes, func(c change) bool { return isElement(c.path, parent) })
		changes = append(changes, change{path: parent, class: ClassOrder})
	}
	return changes
}

// arrays returns the paths of the arrays of which elements changed.
func arrays(changes []change) (out []string) {
	for _, c := range changes {
		i := strings.LastIndexByte(c.path, '.')
		if i > 0 && isElement(c.path, c.path[:i]) && !slices.Contains(out, c.path[:i]) {
			out = append(out, c.path[:i])
		}
	}
	return out
}

func isElement(path, parent string) bool {
	rest, ok := strings.CutPrefix(path, parent+".")
	if !ok {
		return false
	}
	_, err := strconv.ParseUint(rest, 10, 31)
	return err == nil
}

func elementsOf(fields []database.Field, parent string) (out []string) {
	for _, f := range fields {
		if isElement(f.Path, parent) {
			out = append(out, f.Type+"\x00"+f.Text+"\x00"+string(f.Canon))
		}
	}
	return out
}
