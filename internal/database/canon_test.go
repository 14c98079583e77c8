package database

import (
	"bytes"
	"math"
	"testing"
)

// TestCanonDistinct holds values that a careless encoding confuses: all must differ from each other.
func TestCanonDistinct(t *testing.T) {
	numeric := func(s string) []byte {
		b, ok := AppendNumericText(nil, s)
		if !ok {
			t.Fatalf("AppendNumericText(%q) refused", s)
		}
		return b
	}
	one, two, null := AppendInteger(nil, 1), AppendInteger(nil, 2), AppendNull(nil)
	array := func(lower int32, dims int, values ...[]byte) []byte {
		d := []Dimension{{Lower: lower, Length: int32(len(values))}}
		if dims == 2 {
			d = []Dimension{{1, 1}, {lower, int32(len(values))}}
		}
		if dims == 0 {
			d = nil
		}
		b := AppendArray(nil, Integer, d)
		for _, v := range values {
			b = AppendElement(b, v)
		}
		return b
	}
	values := map[string][]byte{
		"null": null, "empty text": AppendText(nil, nil), "text NULL": AppendText(nil, []byte("NULL")),
		"1": one, "2": two, "-1": AppendInteger(nil, -1), "0": AppendInteger(nil, 0),
		"max": AppendInteger(nil, math.MaxInt64), "max+1": AppendUnsigned(nil, math.MaxInt64+1), "maxuint": AppendUnsigned(nil, math.MaxUint64),
		"2^53": AppendInteger(nil, 1<<53), "2^53+1": AppendInteger(nil, 1<<53+1),
		"1.0f": AppendFloat(nil, 1), "0.0f": AppendFloat(nil, 0), "-0.0f": AppendFloat(nil, math.Copysign(0, -1)),
		"nan": AppendFloat(nil, math.NaN()), "inf": AppendFloat(nil, math.Inf(1)), "last bit": AppendFloat(nil, math.Nextafter(1, 2)),
		"n1": numeric("1"), "n1.0": numeric("1.0"), "n1.00": numeric("1.00"), "n-1": numeric("-1"), "n0": numeric("0"), "n0.0": numeric("0.0"),
		"nNaN": numeric("NaN"), "nInf": numeric("Infinity"), "n-Inf": numeric("-Infinity"), "n1E+3": numeric("1E+3"), "n1000": numeric("1000"),
		"n-0": numeric("-0"), "n10": numeric("10"), "true": AppendBoolean(nil, true), "false": AppendBoolean(nil, false),
		"bytes": AppendBytes(nil, nil), "t0": AppendTimestamp(nil, 0), "t+": AppendTimestamp(nil, math.MaxInt64), "t-": AppendTimestamp(nil, math.MinInt64),
		"month": AppendInterval(nil, 1, 0, 0), "days": AppendInterval(nil, 0, 30, 0), "hours": AppendInterval(nil, 0, 0, 30*24*3600e6),
		"json": AppendJSON(nil, []byte("{}")), "jsonb": AppendJSONB(nil, []byte("{}")), "uuid": AppendUUID(nil, [16]byte{}),
		"enum": AppendEnum(nil, []byte("a")), "text": AppendText(nil, []byte("a")), "other": AppendOther(nil, []byte("a")),
		"a()": array(1, 0), "a(1)": array(1, 1, one), "a(null)": array(1, 1, null), "a(1,2)": array(1, 1, one, two), "a(2,1)": array(1, 1, two, one),
		"a[0:]": array(0, 1, one, two), "a nested": array(1, 2, one, two), "typed": AppendTyped(nil, "a", nil), "typed2": AppendTyped(nil, "", []byte("a")),
		"row": AppendElement(AppendComposite(nil, 1), one), "document": AppendDocument(nil, nil),
	}
	for a, x := range values {
		for b, y := range values {
			if a != b && bytes.Equal(x, y) {
				t.Errorf("%s and %s have one encoding: %x", a, b, x)
			}
		}
	}
}

func TestCanonSame(t *testing.T) {
	same := func(what string, a, b []byte) {
		t.Helper()
		if !bytes.Equal(a, b) {
			t.Errorf("%s: %x != %x", what, a, b)
		}
	}
	same("NaN", AppendFloat(nil, math.NaN()), AppendFloat(nil, math.Float64frombits(0xfff0000000000abc)))
	same("unsigned", AppendUnsigned(nil, 7), AppendInteger(nil, 7))
	same("whole number", AppendNumber(nil, 7), AppendInteger(nil, 7))
	same("minus zero as key", AppendNumber(nil, math.Copysign(0, -1)), AppendInteger(nil, 0))
	same("fraction", AppendNumber(nil, 7.5), AppendFloat(nil, 7.5))
	text, _ := AppendNumericText(nil, "-0012.50")
	same("numeric text", text, AppendNumeric(nil, NumericNegative, []byte("1250"), 2))
	text, _ = AppendNumericText(nil, "1.5E-2")
	same("exponent", text, AppendNumeric(nil, NumericPositive, []byte("15"), 3))
	for _, bad := range []string{"", "-", "1.2.3", "x", "1E", "1E99999999", "."} {
		if _, ok := AppendNumericText(nil, bad); ok {
			t.Errorf("AppendNumericText(%q) accepted", bad)
		}
	}
}

func TestAppendKeyKeepsBoundaries(t *testing.T) {
	text := func(s string) []byte { return AppendText(nil, []byte(s)) }
	if bytes.Equal(AppendKey(nil, text("a"), text("bc")), AppendKey(nil, text("ab"), text("c"))) {
		t.Error("('a','bc') and ('ab','c') have one key")
	}
}

func TestTextOf(t *testing.T) {
	for _, s := range []string{"0", "0.00", "12.50", "-0.001", "NaN", "-Infinity"} {
		b, _ := AppendNumericText(nil, s)
		if got := TextOf(b); got != s {
			t.Errorf("TextOf(numeric %s) = %s", s, got)
		}
	}
	array := AppendElement(AppendElement(AppendArray(nil, Integer, []Dimension{{1, 2}}), AppendInteger(nil, -4)), AppendNull(nil))
	for want, b := range map[string][]byte{
		"{-4,NULL}": array, "1970-01-01 00:00:00.000001Z": AppendTimestamp(nil, 1), "18446744073709551615": AppendUnsigned(nil, math.MaxUint64),
		"-0": AppendFloat(nil, math.Copysign(0, -1)), "ObjectId(00ff)": AppendTyped(nil, "ObjectId", []byte{0, 255}), `\x00`: AppendBytes(nil, []byte{0}),
	} {
		if got := TextOf(b); got != want {
			t.Errorf("TextOf(%x) = %s, want %s", b, got, want)
		}
	}
	half, _ := AppendNumericText(nil, "0.50")
	if a, ok := Number(half); !ok || a.RatString() != "1/2" {
		t.Errorf("Number(0.50) = %v", a)
	}
}

// FuzzRead holds that no bytes make the readers panic, and that a key taken apart is put together the same.
func FuzzRead(f *testing.F) {
	f.Add(AppendElement(AppendArray(nil, Integer, []Dimension{{1, 1}}), AppendInteger(nil, 3)))
	f.Add(AppendNumeric(nil, NumericNegative, []byte("15"), 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		TextOf(b)
		Number(b)
		if head, elements, ok := Elements(b); ok {
			head = bytes.Clone(head)
			for _, e := range elements {
				head = AppendElement(head, e)
			}
			if len(head) > len(b) {
				t.Errorf("%x put together is longer: %x", b, head)
			}
		}
	})
}
