package database

import (
	"bytes"
	"fmt"
	"math"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// model is a value as the tests think of it; two values are the same exactly when their models are deeply equal.
type model struct {
	Family Family
	Value  any
}

// drawValue draws a value, mostly small ones that are easily confused, and its encoding.
func drawValue(t *rapid.T, depth int) (model, []byte) {
	raw := rapid.SampledFrom([]string{"", "a", "ab", "\x00", "NULL", "1", "\x05a", "\xff", "é"})
	kinds := []Family{"", Integer, Float, Numeric, Boolean, Text, Bytes, Timestamp, Interval, JSONText, JSONB, UUID, Enum, Document, Other, "typed"}
	if depth > 0 {
		kinds = append(kinds, Array, "composite")
	}
	f := rapid.SampledFrom(kinds).Draw(t, "family")
	number := rapid.OneOf(rapid.Int64(), rapid.SampledFrom([]int64{0, 1, -1, 256, math.MinInt64, math.MaxInt64}))
	text := func() string { return raw.Draw(t, "text") }
	switch f {
	case Integer:
		v := rapid.OneOf(rapid.Uint64(), rapid.SampledFrom([]uint64{0, 1, math.MaxInt64, math.MaxInt64 + 1})).Draw(t, "v")
		if rapid.Bool().Draw(t, "signed") {
			if int64(v) < 0 {
				return model{f, fmt.Sprint(int64(v))}, AppendInteger(nil, int64(v))
			}
			return model{f, fmt.Sprint(int64(v))}, AppendInteger(nil, int64(v))
		}
		return model{f, fmt.Sprint(v)}, AppendUnsigned(nil, v)
	case Float:
		v := rapid.OneOf(rapid.Float64(), rapid.SampledFrom([]float64{0, math.Copysign(0, -1), math.NaN(), math.Inf(1)})).Draw(t, "v")
		return model{f, fmt.Sprint(v, math.Signbit(v) && v == v)}, AppendFloat(nil, v)
	case Numeric:
		digits := rapid.StringMatching(`[1-9][0-9]{0,3}`).Draw(t, "digits")
		scale := rapid.Int32Range(-3, 3).Draw(t, "scale")
		kind := NumericKind(rapid.IntRange(0, 4).Draw(t, "kind"))
		canon := AppendNumeric(nil, kind, []byte("00"+digits), scale)
		if kind > NumericNegative {
			return model{f, kind}, canon
		}
		return model{f, fmt.Sprint(kind, digits, scale)}, canon
	case Boolean:
		v := rapid.Bool().Draw(t, "v")
		return model{f, v}, AppendBoolean(nil, v)
	case Timestamp:
		v := number.Draw(t, "v")
		return model{f, v}, AppendTimestamp(nil, v)
	case Interval:
		m, d, us := rapid.Int32Range(-1, 1).Draw(t, "m"), rapid.Int32Range(-1, 1).Draw(t, "d"), number.Draw(t, "us")
		return model{f, fmt.Sprint(m, d, us)}, AppendInterval(nil, m, d, us)
	case UUID:
		v := [16]byte{byte(rapid.IntRange(0, 1).Draw(t, "v"))}
		return model{f, v}, AppendUUID(nil, v)
	case "typed":
		name, v := text(), text()
		return model{f, [2]string{name, v}}, AppendTyped(nil, name, []byte(v))
	case Array, "composite":
		return drawElements(t, f, depth)
	case "":
		return model{}, AppendNull(nil)
	}
	v := text()
	encode := map[Family]func([]byte, []byte) []byte{Text: AppendText, Bytes: AppendBytes, JSONText: AppendJSON, JSONB: AppendJSONB,
		Enum: AppendEnum, Document: AppendDocument, Other: AppendOther}[f]
	return model{f, v}, encode(nil, []byte(v))
}

func drawElements(t *rapid.T, f Family, depth int) (model, []byte) {
	n := rapid.IntRange(0, 3).Draw(t, "n")
	lower := rapid.Int32Range(0, 1).Draw(t, "lower")
	element := rapid.SampledFrom([]Family{Integer, Text}).Draw(t, "element")
	values := []any{}
	canon := AppendComposite(nil, n)
	if f == Array {
		canon = AppendArray(nil, element, []Dimension{{lower, int32(n)}})
		values = append(values, lower, element)
	}
	for range n {
		m, b := drawValue(t, depth-1)
		values = append(values, m)
		canon = AppendElement(canon, b)
	}
	return model{f, values}, canon
}

// TestEncodingIsInjective holds that different values have different bytes and equal ones the same; in keys too.
func TestEncodingIsInjective(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, x := drawValue(t, 2)
		b, y := drawValue(t, 2)
		if same := reflect.DeepEqual(a, b); same != bytes.Equal(x, y) {
			t.Fatalf("%v and %v: the same is %v, but %x and %x", a, b, same, x, y)
		}
		c, z := drawValue(t, 1)
		d, u := drawValue(t, 1)
		same := reflect.DeepEqual([]model{a, c}, []model{b, d})
		if same != bytes.Equal(AppendKey(nil, x, z), AppendKey(nil, y, u)) {
			t.Fatalf("keys of %v and %v: the same is %v", []model{a, c}, []model{b, d}, same)
		}
		if bytes.Equal(AppendKey(nil, x), AppendKey(nil, y, u)) {
			t.Fatal("keys of one and of two values are the same")
		}
		values, ok := KeyValues(AppendKey(nil, x, z))
		if !ok || len(values) != 2 || !bytes.Equal(values[0], x) || !bytes.Equal(values[1], z) {
			t.Fatalf("a key taken apart gave %x", values)
		}
		if prefix := []byte("before"); !bytes.Equal(AppendElement(prefix, x)[:6], prefix) {
			t.Fatal("what stood before was overwritten")
		}
		TextOf(x)
	})
}
