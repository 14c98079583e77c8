package fingerprint

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluice-cd/sluice/internal/database"
)

// damage is one way in which a target may differ. Want is the whole of what the report must say.
type damage struct {
	name    string
	keyless bool
	columns []database.Column
	key     []string
	rows    [][][]byte
	plant   func(rows [][][]byte) [][][]byte
	want    []string
	pattern string // of the first class with one
}

const manyRows = 5000

// set changes one value of one row.
func set(i, column int, v []byte) func([][][]byte) [][][]byte {
	return func(rows [][][]byte) [][][]byte {
		rows[i][column] = v
		return rows
	}
}

// single is a table of one value column, of which every value becomes another.
func single(name string, family database.Family, old, new []byte, want ...string) damage {
	n := 100
	if len(old) > 1<<20 {
		n = 2
	}
	rows := make([][][]byte, n)
	for i := range rows {
		rows[i] = [][]byte{integer(int64(i)), old}
	}
	return damage{name: name, rows: rows, key: []string{"id"}, want: want,
		columns: []database.Column{{Name: "id", Family: database.Integer}, {Name: "v", Family: family}}, plant: set(1, 1, new)}
}

func array(lower int32, values ...[]byte) []byte {
	var dims []database.Dimension
	if len(values) > 0 {
		dims = []database.Dimension{{Lower: lower, Length: int32(len(values))}}
	}
	b := database.AppendArray(nil, database.Integer, dims)
	for _, v := range values {
		b = database.AppendElement(b, v)
	}
	return b
}

func rowDamages() []damage {
	keep := func(rows [][][]byte, from, to int) [][][]byte { return slices.Delete(rows, from, to) }
	return []damage{
		{name: "nothing", plant: func(r [][][]byte) [][][]byte { return r }},
		{name: "1 even number of rows + 1 h", want: []string{"value/placed=1000"}, pattern: "+1h0m0s", plant: func(r [][][]byte) [][][]byte {
			for i := range 1000 {
				r[i*4][2] = instant(day.Add(time.Duration(i*4)*time.Minute + time.Hour))
			}
			return r
		}},
		{name: "2 values of two rows swapped", want: []string{"value/email=2"}, plant: func(r [][][]byte) [][][]byte {
			r[16][1], r[24][1] = r[24][1], r[16][1]
			return r
		}},
		{name: "3 two columns of one row swapped", want: []string{"value/email=1", "value/note=1"}, plant: func(r [][][]byte) [][][]byte {
			r[10][1], r[10][5] = r[10][5], r[10][1]
			return r
		}},
		{name: "4 one column rotated over all rows", want: []string{"value/note=5000"}, plant: func(r [][][]byte) [][][]byte {
			first := r[0][5]
			for i := range len(r) - 1 {
				r[i][5] = r[i+1][5]
			}
			r[len(r)-1][5] = first
			return r
		}},
		{name: "5 first row missing", want: []string{"missing/=1"}, plant: func(r [][][]byte) [][][]byte { return keep(r, 0, 1) }},
		{name: "5 last row missing", want: []string{"missing/=1"}, plant: func(r [][][]byte) [][][]byte { return keep(r, len(r)-1, len(r)) }},
		{name: "5 the only row missing", rows: orders(1), want: []string{"missing/=1"}, plant: func(r [][][]byte) [][][]byte { return nil }},
		{name: "6 tail missing", want: []string{"missing/=1000"}, plant: func(r [][][]byte) [][][]byte { return keep(r, 4000, 5000) }},
		{name: "7 row added", want: []string{"extra/=1"}, plant: func(r [][][]byte) [][][]byte { return append(r, order(9999)) }},
		{name: "8 keyless 1 to 2", keyless: true, want: []string{"duplicate/=1"}, plant: func(r [][][]byte) [][][]byte { return append(r, r[5]) }},
		{name: "8 keyless 1 to 3", keyless: true, want: []string{"duplicate/=2"}, plant: func(r [][][]byte) [][][]byte { return append(r, r[5], r[5]) }},
		{name: "8 keyless 2 to 0", keyless: true, rows: append(orders(manyRows), order(7)), want: []string{"missing/=2"},
			plant: func(r [][][]byte) [][][]byte { return slices.Delete(keep(r, manyRows, manyRows+1), 7, 8) }},
		{name: "9 one missing and another doubled", keyless: true, want: []string{"duplicate/=1", "missing/=1"},
			plant: func(r [][][]byte) [][][]byte { r[8] = r[9]; return r }},
		{name: "keyless change", keyless: true, want: []string{"extra/=1", "missing/=1"}, plant: set(4, 5, text("x"))},
		{name: "10 key changed", want: []string{"key changed/=1"}, pattern: "+100000", plant: set(30, 0, integer(100030))},
		{name: "10 all keys changed", want: []string{"key changed/=5000"}, pattern: "+100000", plant: func(r [][][]byte) [][][]byte {
			for i := range r {
				r[i][0] = integer(int64(i + 100000))
			}
			return r
		}},
		{name: "11 two rows under one key", want: []string{"duplicate/=1"}, plant: func(r [][][]byte) [][][]byte {
			other := slices.Clone(r[3])
			other[5] = text("second")
			return append(r, other)
		}},
		{name: "11 same row twice under one key", want: []string{"duplicate/=1"}, plant: func(r [][][]byte) [][][]byte { return append(r, r[3]) }},
		{name: "14 text shifts between columns", want: []string{"value/email=1", "value/note=1"}, plant: func(r [][][]byte) [][][]byte {
			r[3][1], r[3][5] = text("user3@example.comno"), text("te 3")
			return r
		}},
		{name: "14 NULL shifts between columns", want: []string{"null/email=1", "null/note=1"},
			rows:  func() [][][]byte { r := orders(100); r[3][1] = null(); return r }(),
			plant: func(r [][][]byte) [][][]byte { r[3][1], r[3][5] = r[3][5], null(); return r }},
		{name: "41 another order", plant: func(r [][][]byte) [][][]byte { slices.Reverse(r); return r }},
	}
}

func compositeDamages() []damage {
	columns := []database.Column{{Name: "a", Family: database.Text}, {Name: "b", Family: database.Text}, {Name: "v", Family: database.Integer}}
	var long [][][]byte
	for i := range 1000 {
		long = append(long, [][]byte{text(strings.Repeat("k", 200) + fmt.Sprint(i)), text("x"), integer(int64(i))})
	}
	return []damage{
		{name: "12 long keys", columns: columns, key: []string{"a", "b"}, rows: long, plant: set(500, 2, integer(-1)), want: []string{"value/v=1"}, pattern: "-501"},
		{name: "12 boundary in the key", columns: columns, key: []string{"a", "b"}, rows: [][][]byte{{text("a"), text("bc"), integer(1)}},
			plant: func(r [][][]byte) [][][]byte { return [][][]byte{{text("ab"), text("c"), integer(1)}} }, want: []string{"key changed/=1"}},
		{name: "23 key respelled", columns: columns, key: []string{"a", "b"}, rows: [][][]byte{{text("Anna"), text("x"), integer(1)}, {text("Bert"), text("x"), integer(1)}},
			plant: func(r [][][]byte) [][][]byte {
				return [][][]byte{{text("bert"), text("x"), integer(1)}, {text("anna"), text("x"), integer(1)}}
			}, want: []string{"key respelled/=2"}},
		{name: "nothing but the key", columns: columns[:1], key: []string{"a"}, rows: [][][]byte{{text("a")}, {text("Zoë")}},
			plant: func(r [][][]byte) [][][]byte { return [][][]byte{{text("b")}, {text("Zoe\u0308")}} },
			want:  []string{"extra/=1", "key respelled/=1", "missing/=1"}},
	}
}

func valueDamages() []damage {
	interval := func(m, d int32, us int64) []byte { return database.AppendInterval(nil, m, d, us) }
	json := func(s string) []byte { return database.AppendJSON(nil, []byte(s)) }
	jsonb := func(s string) []byte { return database.AppendJSONB(nil, []byte(s)) }
	raw := func(s string) []byte { return database.AppendBytes(nil, []byte(s)) }
	big := strings.Repeat("0123456789abcdef", 1<<19)
	return []damage{
		single("13 NULL to 'NULL'", database.Text, null(), text("NULL"), "null/v=1"),
		single("13 NULL to empty", database.Text, null(), text(""), "null/v=1"),
		single("13 'NULL' to empty", database.Text, text("NULL"), text(""), "value/v=1"),
		single("15 0.0 to -0.0", database.Float, float(0), float(math.Copysign(0, -1)), "representation/v=1"),
		single("16 NaN", database.Float, float(1), float(math.NaN()), "value/v=1"),
		single("16 infinity", database.Float, float(math.Inf(1)), float(math.Inf(-1)), "value/v=1"),
		single("16 last bit", database.Float, float(0.1), float(math.Nextafter(0.1, 1)), "value/v=1"),
		single("17 1.0 to 1.00", database.Numeric, numeric("1.0"), numeric("1.00"), "representation/v=1"),
		single("17 in jsonb", database.JSONB, jsonb(`{"a": 1.0}`), jsonb(`{"a": 1.00}`), "representation/v=1"),
		single("18 integer to float", database.Integer, integer(1), float(1), "type/v=1"),
		single("18 integer to text", database.Integer, integer(1), text("1"), "type/v=1"),
		single("19 2^53+1", database.Integer, integer(1<<53+1), integer(1<<53), "value/v=1"),
		single("20 order of fields", database.JSONText, json(`{"a":1,"b":2}`), json(`{"b":2,"a":1}`), "order/v=1"),
		single("20 white space", database.JSONText, json(`{"a":1}`), json(`{"a": 1}`), "representation/v=1"),
		single("20 value", database.JSONText, json(`{"a":1}`), json(`{"a":2}`), "value/v=1"),
		single("21 order of elements", database.Array, array(1, integer(1), integer(2)), array(1, integer(2), integer(1)), "order/v=1"),
		single("21 empty to NULL", database.Array, array(1), null(), "null/v=1"),
		single("21 lower bound", database.Array, array(1, integer(1)), array(0, integer(1)), "representation/v=1"),
		single("21 element", database.Array, array(1, integer(1), integer(2)), array(1, integer(1), integer(3)), "value/v=1"),
		single("21 element to NULL", database.Array, array(1, integer(1)), array(1, null()), "null/v=1"),
		single("22 trailing space", database.Text, text("a"), text("a "), "spelling/v=1"),
		single("22 normal form", database.Text, text("Zo\u00eb"), text("Zoe\u0308"), "spelling/v=1"),
		single("22 replacement character", database.Text, text("Zo\u00eb"), text("Zo\ufffd"), "encoding/v=1"),
		single("22 UTF-8 twice", database.Text, text("Zo\u00eb"), text("Zo\u00c3\u00ab"), "encoding/v=1"),
		single("22 UTF-8 twice by 1252", database.Text, text("5 \u20ac"), text("5 \u00e2\u201a\u00ac"), "encoding/v=1"),
		single("23 case", database.Text, text("Stra\u00dfe"), text("STRASSE"), "value/v=1"),
		single("23 plain case", database.Text, text("Anna"), text("ANNA"), "spelling/v=1"),
		single("24 last byte of 8 MB", database.Bytes, raw(big), raw(big[:len(big)-1]+"X"), "value/v=1"),
		single("25 cut", database.Text, text(big[:300]), text(big[:255]), "truncated/v=1"),
		single("26 a zero byte", database.Bytes, raw("a"), raw("a\x00"), "value/v=1"),
		single("27 microseconds to milliseconds", database.Timestamp, instant(day.Add(1234*time.Microsecond)), instant(day.Add(time.Millisecond)), "value/v=1"),
		single("27 infinity", database.Timestamp, database.AppendTimestamp(nil, math.MaxInt64), instant(day), "value/v=1"),
		single("28 a month", database.Interval, interval(1, 0, 0), interval(0, 30, 0), "value/v=1"),
		single("29 enum", database.Enum, database.AppendEnum(nil, []byte("new")), database.AppendEnum(nil, []byte("fresh")), "value/v=1"),
		single("uuid", database.UUID, database.AppendUUID(nil, [16]byte{1}), database.AppendUUID(nil, [16]byte{2}), "value/v=1"),
		single("boolean", database.Boolean, database.AppendBoolean(nil, true), database.AppendBoolean(nil, false), "value/v=1"),
	}
}

// fakes makes both sides of a damage.
func (d *damage) fakes() (a, b *fake) {
	if d.columns == nil {
		d.columns = orderColumns()
	}
	if d.key == nil && !d.keyless {
		d.key = []string{"id"}
	}
	if d.rows == nil {
		d.rows = orders(manyRows)
	}
	a, b = newFake(), newFake()
	a.table("orders", d.key, d.columns, d.rows)
	b.table("orders", d.key, d.columns, d.plant(cloneRows(d.rows)))
	return a, b
}

func TestClasses(t *testing.T) {
	for _, d := range slices.Concat(rowDamages(), compositeDamages(), valueDamages()) {
		t.Run(d.name, func(t *testing.T) {
			a, b := d.fakes()
			for _, cells := range []int{DefaultCells, 3} {
				r := verify(t, a, b, func(o *Options, _ *PlanOptions) { o.Cells = cells })
				if want := len(d.want) > 0; (r.Verdict == Different) != want || r.Verdict == Unknown {
					t.Fatalf("%d cells: %s: %s", cells, r.Verdict, r.Reason)
				}
				if got := summary(r); !slices.Equal(got, d.want) {
					t.Errorf("%d cells: found %v, want %v", cells, got, d.want)
				}
				if d.pattern == "" {
					continue
				}
				p := r.Tables[0].Classes[0].Pattern
				if p == nil || !p.Constant || p.Text != d.pattern {
					t.Errorf("%d cells: pattern %+v, want %s", cells, p, d.pattern)
				}
			}
		})
	}
}

func TestDocumentClasses(t *testing.T) {
	doc := func(i int) bson.D {
		return bson.D{{Key: "_id", Value: i}, {Key: "email", Value: fmt.Sprintf("user%d", i)}, {Key: "placed", Value: day.Add(time.Duration(i) * time.Minute)},
			{Key: "n", Value: int32(i)}, {Key: "tags", Value: bson.A{"a", "b", i}}, {Key: "address", Value: bson.D{{Key: "city", Value: "Ulm"}, {Key: "zip", Value: nil}}}}
	}
	edit := func(i int, key string, v any) func([]bson.D) []bson.D {
		return func(d []bson.D) []bson.D {
			for j := range d[i] {
				if d[i][j].Key == key {
					d[i][j].Value = v
				}
			}
			return d
		}
	}
	tests := []struct {
		name  string
		plant func([]bson.D) []bson.D
		want  []string
	}{
		{"nothing", func(d []bson.D) []bson.D { slices.Reverse(d); return d }, nil},
		{"1 h", edit(4, "placed", day.Add(64*time.Minute)), []string{"value/placed=1"}},
		{"type", edit(4, "n", "4"), []string{"type/n=1"}},
		{"long", edit(4, "n", int64(4)), []string{"type/n=1"}},
		{"null", edit(4, "n", nil), []string{"null/n=1"}},
		{"element order", edit(4, "tags", bson.A{"b", "a", 4}), []string{"order/tags=1"}},
		{"element", edit(4, "tags", bson.A{"a", "x", 4}), []string{"value/tags.1=1"}},
		{"field gone", func(d []bson.D) []bson.D { d[4] = d[4][:5]; return d }, []string{"field missing/address.city=1", "field missing/address.zip=1"}},
		{"field new", func(d []bson.D) []bson.D { d[4] = append(d[4], bson.E{Key: "x", Value: 1}); return d }, []string{"field extra/x=1"}},
		{"nested", edit(4, "address", bson.D{{Key: "city", Value: "ULM"}, {Key: "zip", Value: nil}}), []string{"value/address.city=1"}},
		{"order", func(d []bson.D) []bson.D { d[4][1], d[4][2] = d[4][2], d[4][1]; return d }, []string{"order/=1"}},
		{"nested order", edit(4, "address", bson.D{{Key: "zip", Value: nil}, {Key: "city", Value: "Ulm"}}), []string{"order/address=1"}},
		{"missing", func(d []bson.D) []bson.D { return slices.Delete(d, 3, 4) }, []string{"missing/=1"}},
		{"extra", func(d []bson.D) []bson.D { return append(d, doc(99999)) }, []string{"extra/=1"}},
		{"key changed", edit(4, "_id", 44444), []string{"key changed/=1"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var source, target []bson.D
			for i := range 1000 {
				source, target = append(source, doc(i)), append(target, doc(i))
			}
			a, b := newFake(), newFake()
			a.documents(t, "orders", source)
			b.documents(t, "orders", test.plant(target))
			got := summary(verify(t, a, b, nil))
			want := slices.Clone(test.want)
			for i, w := range want { // text of documents is classified as text
				want[i] = strings.Replace(w, "value/address.city", "spelling/address.city", 1)
			}
			if !slices.Equal(got, want) {
				t.Errorf("found %v, want %v", got, want)
			}
		})
	}
}
