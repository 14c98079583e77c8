package mongodb

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"
	"pgregory.net/rapid"

	"github.com/sluice-cd/sluice/internal/database"
)

func valueOf(t testing.TB, v any) bson.RawValue {
	t.Helper()
	if v == nil {
		return bson.RawValue{Type: bson.TypeNull}
	}
	kind, data, err := bson.MarshalValue(v)
	if err != nil {
		t.Fatal(err)
	}
	return bson.RawValue{Type: kind, Value: data}
}

func decimalOf(t testing.TB, s string) bson.Decimal128 {
	t.Helper()
	d, err := bson.ParseDecimal128(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestIdentifiers holds which _ids are one key to the server: groups of one key, each unlike every other group.
func TestIdentifiers(t *testing.T) {
	d := func(s string) bson.Decimal128 { return decimalOf(t, s) }
	id := bson.ObjectID{1, 2, 3}
	groups := [][]any{
		{int32(1), int64(1), 1.0, d("1"), d("1.00"), d("10E-1")},
		{int32(0), int64(0), 0.0, math.Copysign(0, -1), d("0"), d("-0.0"), d("0E+30")},
		{0.5, d("0.5"), d("0.50")},
		{0.1}, {d("0.1"), d("0.10")}, // a float is never exactly a tenth
		{int64(1<<53 + 1), d("9007199254740993")}, {int64(1 << 53), float64(1 << 53)},
		{1e300}, {d("1E+300")}, {int64(math.MaxInt64)}, {float64(1 << 63), d("9223372036854775808")},
		{math.NaN(), math.Float64frombits(0x7ff8000000000001), d("NaN")}, {math.Inf(1), d("Infinity")}, {math.Inf(-1), d("-Infinity")},
		{"1", bson.Symbol("1")}, {"1.0"}, {""}, {true}, {false}, {nil}, {bson.MinKey{}}, {bson.MaxKey{}}, {bson.Undefined{}},
		{id}, {id.Hex()}, {bson.Binary{Data: id[:]}}, {bson.Binary{Subtype: 5, Data: id[:]}},
		{bson.Binary{Subtype: 4, Data: make([]byte, 16)}}, {bson.Binary{Subtype: 3, Data: make([]byte, 16)}},
		{bson.DateTime(1000)}, {bson.DateTime(math.MaxInt64)}, {bson.Timestamp{T: 1}}, {bson.JavaScript("x")},
		{bson.D{{Key: "a", Value: 1}}, bson.D{{Key: "a", Value: 1.0}}, bson.D{{Key: "a", Value: d("1.0")}}},
		{bson.D{{Key: "a", Value: "bc"}, {Key: "b", Value: "c"}}}, {bson.D{{Key: "a", Value: "b"}, {Key: "b", Value: "cc"}}},
		{bson.D{{Key: "a", Value: bson.A{1, 2}}}, bson.D{{Key: "a", Value: bson.A{1.0, int64(2)}}}}, {bson.D{{Key: "a", Value: bson.A{2, 1}}}},
		{bson.D{}}, {bson.D{{Key: "b", Value: 1}}},
	}
	seen := map[string]string{}
	for i, g := range groups {
		first := identifier(nil, valueOf(t, g[0]))
		if was, ok := seen[string(first)]; ok {
			t.Errorf("%v is one key with %s", g[0], was)
		}
		seen[string(first)] = fmt.Sprintf("group %d: %v", i, g[0])
		for _, v := range g[1:] {
			if k := identifier(nil, valueOf(t, v)); !bytes.Equal(k, first) {
				t.Errorf("%v (%T) is not one key with %v (%T): %x, %x", v, v, g[0], g[0], k, first)
			}
		}
	}
}

// TestNumbersPair draws numbers and holds that keys are equal exactly when the numbers are.
func TestNumbersPair(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		draw := func(name string) (bson.RawValue, float64) {
			n := rapid.Int32Range(-50, 50).Draw(rt, name)
			switch rapid.SampledFrom([]string{"int", "long", "double", "half", "decimal"}).Draw(rt, name+" kind") {
			case "int":
				return valueOf(t, n), float64(n)
			case "long":
				return valueOf(t, int64(n)), float64(n)
			case "half":
				return valueOf(t, float64(n)/2), float64(n) / 2
			case "decimal":
				return valueOf(t, decimalOf(t, fmt.Sprintf("%.*f", rapid.IntRange(1, 5).Draw(rt, name+" scale"), float64(n)/2))), float64(n) / 2
			}
			return valueOf(t, float64(n)), float64(n)
		}
		a, x := draw("a")
		b, y := draw("b")
		if same := bytes.Equal(identifier(nil, a), identifier(nil, b)); same != (x == y) {
			rt.Fatalf("%v and %v: one key is %v", a, b, same)
		}
	})
}

// TestPoints holds that an id which is asked for is the one that the key was made of.
func TestPoints(t *testing.T) {
	mongod, ferretdb := &server{}, &server{ferretdb: true}
	for _, c := range []struct {
		id               any
		mongod, ferretdb bool
	}{
		{"order-1", true, true}, {"", true, true}, {bson.NewObjectID(), true, true}, {int64(7), true, false}, {1.5, true, false},
		{bson.DateTime(5000), true, false}, {bson.Binary{Subtype: 4, Data: []byte("0123456789abcdef")}, true, false},
		{true, false, false}, {nil, false, false}, {bson.D{{Key: "a", Value: 1}}, false, false}, {bson.Binary{Data: []byte("ObjectId0123")}, false, false},
		{decimalOf(t, "0.1"), false, false},
	} {
		key := database.AppendKey(nil, identifier(nil, valueOf(t, c.id)))
		for s, want := range map[*server]bool{mongod: c.mongod, ferretdb: c.ferretdb} {
			got, ok := s.point(key)
			if ok != want {
				t.Errorf("%v can be asked for: %v, want %v (FerretDB %v)", c.id, ok, want, s.ferretdb)
			}
			if ok && !bytes.Equal(database.AppendKey(nil, identifier(nil, valueOf(t, got))), key) {
				t.Errorf("%v would be asked for as %v", c.id, got)
			}
		}
	}
}

// TestFields shows what a report shows, and that nothing that differs looks the same.
func TestFields(t *testing.T) {
	doc := bson.D{
		{Key: "_id", Value: 1}, {Key: "d", Value: 0.25}, {Key: "neg", Value: math.Copysign(0, -1)}, {Key: "nan", Value: math.NaN()},
		{Key: "s", Value: "é"}, {Key: "o", Value: bson.D{{Key: "x", Value: int64(2)}}}, {Key: "a", Value: bson.A{"p", bson.A{"q"}}},
		{Key: "eo", Value: bson.D{}}, {Key: "ea", Value: bson.A{}}, {Key: "bin", Value: bson.Binary{Subtype: 4, Data: []byte{255}}},
		{Key: "date", Value: bson.DateTime(1743336000123)}, {Key: "ts", Value: bson.Timestamp{T: 1, I: 2}}, {Key: "dec", Value: decimalOf(t, "1.00")},
		{Key: "n", Value: nil}, {Key: "re", Value: bson.Regex{Pattern: "a", Options: "i"}}, {Key: "min", Value: bson.MinKey{}},
	}
	f, err := flatten("", raw(doc), nil)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, x := range f {
		lines = append(lines, x.Path+" "+x.Type+" "+x.Text)
	}
	want := `_id int 1|d double 0.25|neg double -0|nan double NaN|s string é|o.x long 2|a.0 string p|a.1.0 string q|eo object {}|ea array []|bin binData 4 ff|` +
		`date date 2025-03-30T12:00:00.123Z|ts timestamp Timestamp(1, 2)|dec decimal 1.00|n null null|re regex {"$regularExpression":{"pattern":"a","options":"i"}}|min minKey {"$minKey":1}`
	if got := strings.Join(lines, "|"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if f[0].Number == nil || *f[0].Number != 1 || f[4].Number != nil || f[3].Number != nil {
		t.Errorf("numbers %v %v %v", f[0].Number, f[4].Number, f[3].Number)
	}
	for _, bad := range []bson.Raw{nil, {5, 0, 0, 0}, {12, 0, 0, 0, 2, 'a', 0, 0, 0, 0, 9, 0}} {
		if _, err := flatten("", bad, nil); err == nil {
			t.Errorf("%x is no document", bad)
		}
	}
}

// FuzzDocument holds that no bytes make the reading of documents panic.
func FuzzDocument(f *testing.F) {
	f.Add([]byte(raw(standinOrder(3))))
	f.Add([]byte(raw(suiteOrder(4))))
	f.Fuzz(func(t *testing.T, b []byte) {
		var rows rowBuffer
		row, err := rows.read(b, &database.Projection{Key: []int{0}})
		if err != nil {
			return
		}
		v := &view{&server{}}
		if _, err := v.Fields(database.Relation{}, nil, row); err == nil {
			_, _ = v.Render(database.Relation{}, nil, row)
		}
	})
}
