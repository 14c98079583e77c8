package fingerprint

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math"
	"reflect"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/unicode/norm"

	"github.com/sluice-cd/sluice/internal/database"
)

// deepText is the longest text that is parsed or normalised to learn why it differs.
const deepText = 1 << 20

// classify tells how two canonical values of a column differ. The values are not equal.
func classify(old, new []byte) string {
	if database.IsNull(old) != database.IsNull(new) {
		return ClassNull
	}
	if len(old) == 0 || len(new) == 0 || old[0] != new[0] {
		return ClassType
	}
	f, _ := database.FamilyOf(old)
	x, y := old[1:], new[1:]
	switch f {
	case database.Numeric, database.Float:
		a, okA := database.Number(old)
		b, okB := database.Number(new)
		if okA && okB && a.Cmp(b) == 0 {
			return ClassRepresentation
		}
	case database.JSONText, database.JSONB:
		return classifyJSON(x, y)
	case database.Text, database.Other:
		return classifyText(string(x), string(y))
	case database.Bytes:
		if len(y) > 0 && len(y) < len(x) && bytes.HasPrefix(x, y) {
			return ClassTruncated
		}
	case database.Array:
		return classifyArray(old, new)
	default:
	}
	return ClassValue
}

// classifyText tells how two texts differ.
func classifyText(old, new string) string {
	if len(old) > deepText || len(new) > deepText {
		return plainText(old, new)
	}
	switch {
	case fold(old) == fold(new):
		return ClassSpelling
	case misread(old, new) || misread(new, old) || strings.Count(new, "\uFFFD") != strings.Count(old, "\uFFFD"):
		return ClassEncoding
	}
	return plainText(old, new)
}

func plainText(old, new string) string {
	if len(new) > 0 && len(new) < len(old) && strings.HasPrefix(old, new) {
		return ClassTruncated
	}
	return ClassValue
}

// fold takes away what counts as spelling.
func fold(s string) string {
	s = strings.TrimRightFunc(norm.NFC.String(s), unicode.IsSpace)
	return norm.NFC.String(strings.ToLower(strings.ToUpper(s)))
}

// misread tells whether twice is once, read as a Western single-byte encoding and written as UTF-8 again.
func misread(once, twice string) bool {
	if len(twice) <= len(once) || !utf8.ValidString(twice) {
		return false
	}
	for _, table := range []*charmap.Charmap{charmap.ISO8859_1, charmap.Windows1252} {
		if back, err := table.NewEncoder().String(twice); err == nil && back == once {
			return true
		}
	}
	return false
}

// classifyJSON tells how two JSON texts differ.
func classifyJSON(old, new []byte) string {
	if len(old) > deepText || len(new) > deepText {
		return ClassValue
	}
	var a, b bytes.Buffer
	if json.Compact(&a, old) != nil || json.Compact(&b, new) != nil {
		return ClassValue
	}
	if bytes.Equal(a.Bytes(), b.Bytes()) {
		return ClassRepresentation
	}
	x, okX := parseJSON(old)
	y, okY := parseJSON(new)
	switch {
	case !okX || !okY:
		return ClassValue
	case reflect.DeepEqual(x, y):
		return ClassOrder
	case reflect.DeepEqual(plainNumbers(x), plainNumbers(y)):
		return ClassRepresentation
	}
	return ClassValue
}

func parseJSON(b []byte) (any, bool) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	return v, d.Decode(&v) == nil
}

// plainNumbers writes every number in one way, in place.
func plainNumbers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			v[k] = plainNumbers(x)
		}
	case []any:
		for i, x := range v {
			v[i] = plainNumbers(x)
		}
	case json.Number:
		if canon, ok := database.AppendNumericText(nil, v.String()); ok {
			if r, ok := database.Number(canon); ok {
				return r.RatString()
			}
		}
	}
	return v
}

// classifyArray tells how two arrays differ.
func classifyArray(old, new []byte) string {
	headA, a, okA := database.Elements(old)
	headB, b, okB := database.Elements(new)
	if !okA || !okB {
		return ClassValue
	}
	sameHead := bytes.Equal(headA, headB)
	if slices.EqualFunc(a, b, bytes.Equal) {
		if !sameHead && sameLengths(headA, headB) {
			return ClassRepresentation
		}
		return ClassValue
	}
	if !sameHead {
		return ClassValue
	}
	class := ""
	for i := range min(len(a), len(b)) {
		if bytes.Equal(a[i], b[i]) {
			continue
		}
		switch c := classify(a[i], b[i]); class {
		case "", c:
			class = c
		default:
			class = ClassValue
		}
	}
	if class == ClassRepresentation || class == ClassSpelling {
		return class
	}
	if sameElements(a, b) {
		return ClassOrder
	}
	return class
}

func sameElements(a, b [][]byte) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, bytes.Compare)
	slices.SortFunc(b, bytes.Compare)
	return slices.EqualFunc(a, b, bytes.Equal)
}

// sameLengths tells whether the heads of two arrays differ in lower bounds only.
func sameLengths(a, b []byte) bool {
	lengths := func(head []byte) (out []uint32, ok bool) {
		n, w := binary.Uvarint(head[1:])
		if w <= 0 {
			return nil, false
		}
		rest := head[1+w+int(n):]
		dims, w := binary.Uvarint(rest)
		rest = rest[w:]
		for range dims {
			out, rest = append(out, binary.BigEndian.Uint32(rest[4:])), rest[8:]
		}
		return out, true
	}
	x, okX := lengths(a)
	y, okY := lengths(b)
	return okX && okY && a[0] == b[0] && len(a) == len(b) && slices.Equal(x, y)
}

// respelled tells whether two keys are one key to a collation or by value: the same but for case, normal form, trailing
// space, a numeric's scale or the sign of zero.
func respelled(old, new []byte) bool {
	a, okA := database.KeyValues(old)
	b, okB := database.KeyValues(new)
	if !okA || !okB || len(a) != len(b) {
		return false
	}
	for i := range a {
		if bytes.Equal(a[i], b[i]) {
			continue
		}
		if c := classify(a[i], b[i]); c != ClassSpelling && c != ClassRepresentation {
			return false
		}
	}
	return true
}

// isContainer tells whether a type of a document's field has fields of its own.
func isContainer(kind string) bool {
	switch strings.ToLower(kind) {
	case "object", "document", "array", "embedded document":
		return true
	}
	return false
}

func finite(f float64) bool { return !math.IsNaN(f) && !math.IsInf(f, 0) }
