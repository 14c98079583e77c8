package postgres

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

var _ database.Renderer = (*view)(nil)

// Render implements database.Renderer: a JSON object of the text of every column, from which the server makes the same
// value again.
func (v *view) Render(r database.Relation, p *database.Projection, row database.Row) (json.RawMessage, error) {
	if len(row.Values) != len(p.Columns) {
		return nil, fault.Newf(fault.Invalid, "a row of %d values does not fit %d columns of %s", len(row.Values), len(p.Columns), r.Name)
	}
	out := make(map[string]*string, len(p.Columns))
	for j, c := range p.Columns {
		out[c.Name] = nil
		if database.IsNull(row.Values[j]) {
			continue
		}
		text, err := sqlText(row.Values[j])
		if err != nil {
			return nil, fmt.Errorf("column %s of %s: %w", c.Name, r.Name, err)
		}
		out[c.Name] = &text
	}
	return json.Marshal(out)
}

// sqlText writes a value as the server reads it.
func sqlText(canon []byte) (string, error) {
	f, ok := database.FamilyOf(canon)
	if !ok {
		return "", errWire
	}
	switch f {
	case database.Float:
		text, _ := paramFloat(canon)
		return text, nil
	case database.Timestamp:
		text, ok := paramTimestamp(canon)
		if !ok {
			return "", fault.Newf(fault.Invalid, "an instant after the year 294246 cannot be written")
		}
		return text, nil
	case database.Interval:
		text, _ := paramInterval(canon)
		return text, nil
	case database.Array:
		return arrayText(canon)
	default:
	}
	if _, elements, ok := database.Elements(canon); ok {
		return compositeText(elements)
	}
	text, _ := paramText(canon)
	return text, nil
}

// arrayText writes an array with its bounds and every element in quotes.
func arrayText(canon []byte) (string, error) {
	head, elements, ok := database.Elements(canon)
	if !ok {
		return "", errWire
	}
	lower, length, ok := dimensions(head)
	if !ok {
		return "", errWire
	}
	if len(length) == 0 {
		return "{}", nil
	}
	var b strings.Builder
	for i, l := range lower {
		fmt.Fprintf(&b, "[%d:%d]", l, l+length[i]-1)
	}
	b.WriteByte('=')
	rest, err := writeDimension(&b, length, elements)
	if err == nil && len(rest) > 0 {
		err = errWire
	}
	return b.String(), err
}

// dimensions reads the head of an array.
func dimensions(head []byte) (lower, length []int32, ok bool) {
	n, w := binary.Uvarint(head[1:])
	if w <= 0 {
		return nil, nil, false
	}
	head = head[1+w+int(n):]
	dims, w := binary.Uvarint(head)
	if w <= 0 || len(head) != w+8*int(dims) {
		return nil, nil, false
	}
	for head = head[w:]; len(head) > 0; head = head[8:] {
		lower = append(lower, int32(binary.BigEndian.Uint32(head)))
		length = append(length, int32(binary.BigEndian.Uint32(head[4:])))
	}
	return lower, length, true
}

// writeDimension writes one dimension and what is inside it, and returns the elements that it did not use.
func writeDimension(b *strings.Builder, length []int32, elements [][]byte) (rest [][]byte, err error) {
	b.WriteByte('{')
	for i := range length[0] {
		if i > 0 {
			b.WriteByte(',')
		}
		switch {
		case len(length) > 1:
			if elements, err = writeDimension(b, length[1:], elements); err != nil {
				return nil, err
			}
			continue
		case len(elements) == 0:
			return nil, errWire
		case database.IsNull(elements[0]):
			b.WriteString("NULL")
		default:
			text, err := sqlText(elements[0])
			if err != nil {
				return nil, err
			}
			b.WriteString(quoted(text))
		}
		elements = elements[1:]
	}
	b.WriteByte('}')
	return elements, nil
}

func compositeText(fields [][]byte) (string, error) {
	parts := make([]string, len(fields))
	for i, f := range fields {
		if database.IsNull(f) {
			continue
		}
		text, err := sqlText(f)
		if err != nil {
			return "", err
		}
		parts[i] = quoted(text)
	}
	return "(" + strings.Join(parts, ",") + ")", nil
}

// quoted puts an element of an array or a composite in quotes.
func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
