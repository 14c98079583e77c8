package mongodb

import (
	"context"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/unicode/norm"

	"github.com/sluice-cd/sluice/internal/database/databasetest"
	"github.com/sluice-cd/sluice/internal/fingerprint"
)

// one changes a field of one order drawn at random among those that the condition takes.
func one(class, path string, ok func(int64) bool, value func(i int64, old any) any) func(*testing.T, *damage) {
	return func(t *testing.T, d *damage) {
		i := d.pick(1)[0]
		for ok != nil && !ok(i) {
			i = 1 + i%documentsEach
		}
		d.replace(t, i, path, value(i, get(suiteOrder(i), path)))
		d.field("orders", class, path, orderID(i))
		d.changed("orders", 1)
	}
}

func rest(n int64, of int64) func(int64) bool { return func(i int64) bool { return i%of == n } }

// reading is one with another text.
func reading(class string, f func(string) string) func(*testing.T, *damage) {
	return one(class, "email", nil, func(_ int64, old any) any { return f(old.(string)) })
}

// constant is one whose number differs by what the pattern says.
func constant(path, pattern string, value func(i int64, old any) any) func(*testing.T, *damage) {
	return func(t *testing.T, d *damage) {
		i := d.pick(1)[0]
		d.replace(t, i, path, value(i, get(suiteOrder(i), path)))
		d.pattern("orders", fingerprint.ClassValue, path, pattern, orderID(i))
		d.changed("orders", 1)
	}
}

// wireMutations are those that a client can do.
func wireMutations() []mutation {
	on := func(class int, name, base string, f func(*testing.T, *damage)) mutation {
		return mutation{class: class, name: name, base: base, damage: f}
	}
	orders := func(class int, name string, f func(*testing.T, *damage)) mutation {
		return on(class, name, "orders", f)
	}
	return slices.Concat([]mutation{
		orders(1, "100 documents an hour later", later),
		orders(2, "two e-mails swapped", swapped),
		on(2, "all values of two documents swapped", "people", exchanged),
		orders(3, "two fields of one document swapped", crossed),
		orders(4, "one field rotated over all documents", rotated),
		orders(5, "the first document missing", missing(func(*damage) int64 { return 1 })),
		orders(5, "a document missing", missing(func(d *damage) int64 { return d.pick(1)[0] })),
		orders(5, "the last document missing", missing(func(*damage) int64 { return documentsEach })),
		orders(5, "the last by storage missing", missingLastStored),
		orders(5, "the only document missing", func(t *testing.T, d *damage) {
			d.remove(t, "single", "only")
			d.rows("single", fingerprint.ClassMissing, "only")
		}),
		orders(6, "a tail of 1,000 missing", tail),
		orders(7, "a document added", added),
		orders(10, "a key changed, the rest equal", rekeyed),
		on(12, "a key of 200 bytes and a common prefix", "keys", prefixed),
		on(12, "('a','bc') becomes ('ab','c')", "keys", shifted),
		on(18, "a key of another type is the same key", "people", retyped),
		on(23, "the case of a key", "people", respelledKey),
		on(24, "the last byte of 8 MB", "huge", lastByte),
		orders(36, "a counter behind", func(t *testing.T, d *damage) {
			by := 1 + d.random.Int64N(100)
			d.set(t, "counters", "orders", bson.D{{Key: "seq", Value: documentsEach - by}})
			d.pattern("counters", fingerprint.ClassValue, "seq", fmt.Sprintf("-%d", by), "orders")
			d.changed("counters", 1)
		}),
	}, valueMutations(orders), equalMutations(orders))
}

// valueMutations change single values.
func valueMutations(orders func(int, string, func(*testing.T, *damage)) mutation) []mutation {
	kind := func(path string, v any) func(*testing.T, *damage) {
		return one(fingerprint.ClassType, path, nil, func(int64, any) any { return v })
	}
	return []mutation{
		orders(13, "null becomes 'NULL'", one(fingerprint.ClassNull, "note", rest(0, 4), func(int64, any) any { return "NULL" })),
		orders(13, "'NULL' becomes null", one(fingerprint.ClassNull, "note", rest(1, 4), func(int64, any) any { return nil })),
		orders(13, "'NULL' becomes ''", one(fingerprint.ClassValue, "note", rest(1, 4), func(int64, any) any { return "" })),
		orders(13, "'' becomes null", one(fingerprint.ClassNull, "note", rest(2, 4), func(int64, any) any { return nil })),
		orders(13, "missing becomes null", one(fingerprint.ClassFieldExtra, "note", rest(3, 4), func(int64, any) any { return nil })),
		orders(13, "null becomes missing", func(t *testing.T, d *damage) {
			i := d.pick(1)[0] / 4 * 4
			i = max(i, 4)
			d.rewrite(t, "orders", orderID(i), without(suiteOrder(i), "note"))
			d.field("orders", fingerprint.ClassFieldMissing, "note", orderID(i))
			d.changed("orders", 1)
		}),
		orders(14, "a delimiter shifts between fields", delimiter),
		orders(14, "a null shifts between fields", nullShift),
		orders(16, "the last bit of a float", one(fingerprint.ClassValue, "weight", nil, func(_ int64, old any) any {
			return math.Nextafter(old.(float64), math.Inf(1))
		})),
		orders(18, "int becomes long", one(fingerprint.ClassType, "quantity", nil, func(_ int64, old any) any { return int64(old.(int32)) })),
		orders(18, "long becomes double", one(fingerprint.ClassType, "cents", nil, func(_ int64, old any) any { return float64(old.(int64)) })),
		orders(18, "int becomes string", one(fingerprint.ClassType, "quantity", nil, func(_ int64, old any) any { return fmt.Sprint(old) })),
		orders(19, "2^53+1 becomes 2^53", constant("cents", "-1", func(i int64, old any) any { return old.(int64) - 1 })),
		orders(20, "fields in another order", reordered),
		orders(21, "an array in another order", one(fingerprint.ClassOrder, "items", nil, func(_ int64, old any) any {
			a := slices.Clone(old.(bson.A))
			slices.Reverse(a)
			return a
		})),
		orders(21, "an empty array becomes null", one(fingerprint.ClassNull, "tags", nil, func(int64, any) any { return nil })),
		orders(22, "a trailing space", reading(fingerprint.ClassSpelling, func(s string) string { return s + " " })),
		orders(22, "NFC becomes NFD", reading(fingerprint.ClassSpelling, norm.NFD.String)),
		orders(22, "U+FFFD", reading(fingerprint.ClassEncoding, func(s string) string { return replaceRune(s, 'ü', '\uFFFD') })),
		orders(22, "UTF-8 encoded twice", reading(fingerprint.ClassEncoding, func(s string) string {
			twice, _ := charmap.ISO8859_1.NewDecoder().String(s)
			return twice
		})),
		orders(23, "another case", reading(fingerprint.ClassSpelling, func(s string) string { return "k" + s[1:] })),
		orders(25, "cut at 255", one(fingerprint.ClassTruncated, "long", nil, func(_ int64, old any) any { return old.(string)[:255] })),
		orders(26, "binary subtype 0 becomes 4", subtype(rest(0, 2))),
		orders(26, "binary subtype 3 becomes 4", subtype(rest(1, 2))),
		orders(27, "date becomes an ISO string", one(fingerprint.ClassType, "placed", nil, func(_ int64, old any) any {
			return old.(bson.DateTime).Time().UTC().Format(time.RFC3339Nano)
		})),
		orders(27, "date becomes timestamp", kind("placed", bson.Timestamp{T: 1743336000, I: 1})),
		orders(27, "milliseconds are lost", func(t *testing.T, d *damage) {
			i := d.pick(1)[0]
			old := get(suiteOrder(i), "placed").(bson.DateTime)
			if old%1000 == 0 {
				i--
				old = get(suiteOrder(i), "placed").(bson.DateTime)
			}
			d.replace(t, i, "placed", old-old%1000)
			d.pattern("orders", fingerprint.ClassValue, "placed", "-"+(time.Duration(old%1000)*time.Millisecond).String(), orderID(i))
			d.changed("orders", 1)
		}),
	}
}

func replaceRune(s string, from, to rune) string {
	r := []rune(s)
	for i := range r {
		if r[i] == from {
			r[i] = to
		}
	}
	return string(r)
}

func subtype(ok func(int64) bool) func(*testing.T, *damage) {
	return one(fingerprint.ClassType, "token", ok, func(_ int64, old any) any { return bson.Binary{Subtype: 4, Data: old.(bson.Binary).Data} })
}

func later(t *testing.T, d *damage) {
	n := d.pick(100)
	for _, i := range n {
		d.set(t, "orders", orderID(i), bson.D{{Key: "placed", Value: get(suiteOrder(i), "placed").(bson.DateTime) + 3_600_000}})
	}
	d.pattern("orders", fingerprint.ClassValue, "placed", "+1h0m0s", orderIDs(n)...)
	d.changed("orders", 100)
}

func swapped(t *testing.T, d *damage) {
	n := d.pick(2)
	for k, i := range n {
		d.set(t, "orders", orderID(i), bson.D{{Key: "email", Value: get(suiteOrder(n[1-k]), "email")}})
	}
	d.field("orders", fingerprint.ClassValue, "email", orderIDs(n)...)
	d.changed("orders", 2)
}

// exchanged swaps all that two people have but their keys: a sum over documents without their keys stays what it was.
func exchanged(t *testing.T, d *damage) {
	n := []int64{100 + 12*d.random.Int64N(20), 500 + 12*d.random.Int64N(20)}
	for k, i := range n {
		d.rewrite(t, "people", int32(i), bson.D{{Key: "_id", Value: int32(i)}, {Key: "name", Value: fmt.Sprintf("person %d", n[1-k])}})
	}
	d.field("people", fingerprint.ClassValue, "name", fmt.Sprint(n[0]), fmt.Sprint(n[1]))
	d.changed("people", 2)
}

func crossed(t *testing.T, d *damage) {
	i := d.pick(1)[0]
	o := suiteOrder(i)
	d.set(t, "orders", orderID(i), bson.D{{Key: "left", Value: get(o, "right")}, {Key: "right", Value: get(o, "left")}})
	d.field("orders", fingerprint.ClassValue, "left", orderID(i))
	d.field("orders", fingerprint.ClassValue, "right", orderID(i))
	d.changed("orders", 1)
}

func rotated(t *testing.T, d *damage) {
	all := allOrders()
	by := 1 + int(d.random.Int64N(documentsEach-1))
	keys := make([]string, documentsEach)
	for i := range all {
		all[i] = with(all[i], "left", get(suiteOrder(int64((i+by)%documentsEach)+1), "left"))
		keys[i] = orderID(int64(i) + 1)
	}
	d.reload(t, "orders", all, 1000)
	d.indexes(t)
	d.field("orders", fingerprint.ClassValue, "left", keys...)
	d.changed("orders", documentsEach)
	// x1 that was x12 is a value cut short, and is told apart.
	var cut []string
	var plain []string
	for i := range all {
		old, new := get(suiteOrder(int64(i)+1), "left").(string), get(all[i], "left").(string)
		if len(new) < len(old) && old[:len(new)] == new {
			cut = append(cut, orderID(int64(i)+1))
		} else {
			plain = append(plain, orderID(int64(i)+1))
		}
	}
	d.field("orders", fingerprint.ClassValue, "left", plain...)
	if len(cut) > 0 {
		d.field("orders", fingerprint.ClassTruncated, "left", cut...)
	}
}

// indexes makes those of the base, in another order.
func (d *damage) indexes(t *testing.T) {
	t.Helper()
	d.index(t, "orders", bson.D{{Key: "customer", Value: 1}, {Key: "placed", Value: -1}}, "by_customer", false)
	d.index(t, "orders", bson.D{{Key: "placed", Value: 1}}, "placed_1", false)
}

func missing(which func(*damage) int64) func(*testing.T, *damage) {
	return func(t *testing.T, d *damage) {
		i := which(d)
		d.remove(t, "orders", orderID(i))
		d.rows("orders", fingerprint.ClassMissing, orderID(i))
	}
}

// missingLastStored moves a document to the end of the table first, then removes it.
func missingLastStored(t *testing.T, d *damage) {
	i := d.pick(1)[0]
	d.rewrite(t, "orders", orderID(i), suiteOrder(i))
	d.remove(t, "orders", orderID(i))
	d.rows("orders", fingerprint.ClassMissing, orderID(i))
}

func tail(t *testing.T, d *damage) {
	var keys []string
	for i := int64(documentsEach - 999); i <= documentsEach; i++ {
		keys = append(keys, orderID(i))
	}
	filter := bson.D{{Key: "_id", Value: bson.D{{Key: "$gte", Value: keys[0]}}}}
	if r, err := d.collection("orders").DeleteMany(context.Background(), filter); err != nil || r.DeletedCount != 1000 {
		t.Fatal(r, err)
	}
	d.rows("orders", fingerprint.ClassMissing, keys...)
}

func added(t *testing.T, d *damage) {
	i := documentsEach + 1 + d.random.Int64N(1000)
	if _, err := d.collection("orders").InsertOne(context.Background(), suiteOrder(i)); err != nil {
		t.Fatal(err)
	}
	d.rows("orders", fingerprint.ClassExtra, orderID(i))
}

func rekeyed(t *testing.T, d *damage) {
	i := d.pick(1)[0]
	d.rewrite(t, "orders", orderID(i), with(suiteOrder(i), "_id", orderID(i)+"-moved"))
	d.rows("orders", fingerprint.ClassKeyChanged, orderID(i))
}

func prefixed(t *testing.T, d *damage) {
	n := d.pick(2)
	d.set(t, "keys", longKey(n[0]), bson.D{{Key: "value", Value: n[0] + 7}})
	d.remove(t, "keys", longKey(n[1]))
	d.pattern("keys", fingerprint.ClassValue, "value", "+7", longKey(n[0]))
	d.rows("keys", fingerprint.ClassMissing, longKey(n[1]))
	d.changed("keys", 1)
}

func shifted(t *testing.T, d *damage) {
	i := d.pick(1)[0]
	id := func(a, b string) bson.D { return bson.D{{Key: "a", Value: a}, {Key: "b", Value: b}} }
	d.rewrite(t, "composite", id(fmt.Sprintf("a%d", i), fmt.Sprintf("bc%d", i)),
		bson.D{{Key: "_id", Value: id(fmt.Sprintf("a%db", i), fmt.Sprintf("c%d", i))}, {Key: "value", Value: i}})
	d.rows("composite", fingerprint.ClassKeyChanged, fmt.Sprintf("a=a%d, b=bc%d", i, i))
}

func retyped(t *testing.T, d *damage) {
	n := d.pick(2)
	for k, id := range []any{n[0], float64(n[1])} {
		d.rewrite(t, "people", int32(n[k]), bson.D{{Key: "_id", Value: id}, {Key: "name", Value: fmt.Sprintf("person %d", n[k])}})
	}
	d.field("people", fingerprint.ClassType, "_id", fmt.Sprint(n[0]), fmt.Sprint(n[1]))
	d.changed("people", 2)
}

func respelledKey(t *testing.T, d *damage) {
	i := d.pick(1)[0]
	d.rewrite(t, "spelled", fmt.Sprintf("Name-%05d", i), bson.D{{Key: "_id", Value: fmt.Sprintf("NAME-%05d", i)}, {Key: "n", Value: i}})
	d.rows("spelled", fingerprint.ClassKeyRespelled, fmt.Sprintf("Name-%05d", i))
}

func lastByte(t *testing.T, d *damage) {
	i := documentsEach/2 + d.random.Int64N(2)
	body := hugeText()
	body[len(body)-1]++
	d.set(t, "files", orderID(i), bson.D{{Key: "body", Value: string(body)}})
	d.field("files", fingerprint.ClassValue, "body", orderID(i))
	d.changed("files", 1)
}

func delimiter(t *testing.T, d *damage) {
	i := d.pick(1)[0]
	d.set(t, "orders", orderID(i), bson.D{{Key: "left", Value: fmt.Sprintf("x%d|y%d", i, i)}, {Key: "right", Value: fmt.Sprintf("z%d", i)}})
	d.field("orders", fingerprint.ClassValue, "left", orderID(i))
	d.field("orders", fingerprint.ClassValue, "right", orderID(i))
	d.changed("orders", 1)
}

func nullShift(t *testing.T, d *damage) {
	i := max(d.pick(1)[0]/4*4, 4) // its note is null
	o := suiteOrder(i)
	d.set(t, "orders", orderID(i), bson.D{{Key: "note", Value: get(o, "left")}, {Key: "left", Value: nil}})
	d.field("orders", fingerprint.ClassNull, "note", orderID(i))
	d.field("orders", fingerprint.ClassNull, "left", orderID(i))
	d.changed("orders", 1)
}

func reordered(t *testing.T, d *damage) {
	i := d.pick(1)[0]
	o := suiteOrder(i)
	slices.Reverse(o[1:])
	d.rewrite(t, "orders", orderID(i), o)
	d.field("orders", fingerprint.ClassOrder, "", orderID(i))
	d.changed("orders", 1)
}

// equalMutations must not be found.
func equalMutations(orders func(int, string, func(*testing.T, *damage)) mutation) []mutation {
	return []mutation{
		orders(41, "nothing but another version", func(*testing.T, *damage) {}),
		orders(41, "reloaded in reverse", func(t *testing.T, d *damage) {
			all := allOrders()
			slices.Reverse(all)
			d.reload(t, "orders", all, 1000)
			d.indexes(t)
		}),
		orders(41, "reloaded in other batches", func(t *testing.T, d *damage) {
			d.reload(t, "orders", allOrders(), 37)
			d.indexes(t)
		}),
		orders(41, "indexes built in another order", func(t *testing.T, d *damage) {
			for _, name := range []string{"placed_1", "by_customer"} {
				if err := d.collection("orders").Indexes().DropOne(context.Background(), name); err != nil {
					t.Fatal(err)
				}
			}
			d.indexes(t)
		}),
		orders(41, "written and deleted again", func(t *testing.T, d *damage) {
			for i := int64(documentsEach + 1); i <= documentsEach+500; i++ {
				if _, err := d.collection("orders").InsertOne(context.Background(), suiteOrder(i)); err != nil {
					t.Fatal(err)
				}
				d.remove(t, "orders", orderID(i))
			}
		}),
	}
}

// schemaMutations change what is around the documents.
func schemaMutations() []mutation {
	on := func(class int, name string, f func(*testing.T, *damage)) mutation {
		return mutation{class: class, name: name, base: "schema", damage: f}
	}
	command := func(t *testing.T, d *damage, db string, c bson.D) {
		t.Helper()
		if err := d.client.Database(db).RunCommand(context.Background(), c).Err(); err != nil {
			t.Fatal(err)
		}
	}
	dropIndex := func(t *testing.T, d *damage, name string) {
		t.Helper()
		if err := d.collection("orders").Indexes().DropOne(context.Background(), name); err != nil {
			t.Fatal(err)
		}
	}
	return []mutation{
		on(32, "an index lost", func(t *testing.T, d *damage) {
			dropIndex(t, d, "a_1")
			d.schema("index a_1 on shop.orders", fingerprint.ClassObjectMissing)
		}),
		on(32, "an index no longer unique", func(t *testing.T, d *damage) {
			dropIndex(t, d, "a_1")
			d.index(t, "orders", bson.D{{Key: "a", Value: 1}}, "a_1", false)
			d.schema("index a_1 on shop.orders", fingerprint.ClassObjectChanged)
		}),
		on(32, "an index in another order", func(t *testing.T, d *damage) {
			dropIndex(t, d, "a_1_b_-1")
			d.index(t, "orders", bson.D{{Key: "b", Value: -1}, {Key: "a", Value: 1}}, "a_1_b_-1", false)
			d.schema("index a_1_b_-1 on shop.orders", fingerprint.ClassObjectChanged)
		}),
		on(32, "an index in the other direction", func(t *testing.T, d *damage) {
			dropIndex(t, d, "a_1_b_-1")
			d.index(t, "orders", bson.D{{Key: "a", Value: 1}, {Key: "b", Value: 1}}, "a_1_b_-1", false)
			d.schema("index a_1_b_-1 on shop.orders", fingerprint.ClassObjectChanged)
		}),
		on(37, "a collection missing", func(t *testing.T, d *damage) {
			if err := d.collection("log").Drop(context.Background()); err != nil {
				t.Fatal(err)
			}
			d.schema("relation shop.log", fingerprint.ClassRelationMissing)
			d.schema("collection options shop.log", fingerprint.ClassObjectMissing)
			d.schema("index _id_ on shop.log", fingerprint.ClassObjectMissing)
		}),
		on(37, "a database missing", func(t *testing.T, d *damage) {
			if err := d.client.Database("second").Drop(context.Background()); err != nil {
				t.Fatal(err)
			}
			d.schema("database second", fingerprint.ClassDatabaseMissing)
			d.schema("relation second.things", fingerprint.ClassRelationMissing)
			d.schema("index _id_ on second.things", fingerprint.ClassObjectMissing)
		}),
		on(37, "a collection empty", func(t *testing.T, d *damage) {
			if _, err := d.collection("log").DeleteMany(context.Background(), bson.D{}); err != nil {
				t.Fatal(err)
			}
			var all []int64
			for i := int64(1); i <= 100; i++ {
				all = append(all, i)
			}
			d.rows("log", fingerprint.ClassMissing, orderIDs(all)...)
		}),
		on(37, "a collection renamed by case", func(t *testing.T, d *damage) {
			command(t, d, "admin", bson.D{{Key: "renameCollection", Value: "second.things"}, {Key: "to", Value: "second.Things"}})
			d.schema("relation second.things", fingerprint.ClassRelationRespelled)
			d.schema("index _id_ on second.things", fingerprint.ClassObjectMissing)
			d.schema("index _id_ on second.Things", fingerprint.ClassObjectExtra)
		}),
		on(37, "no longer capped", func(t *testing.T, d *damage) {
			var all []bson.D
			for i := int64(1); i <= 100; i++ {
				all = append(all, bson.D{{Key: "_id", Value: orderID(i)}})
			}
			d.reload(t, "log", all, 100)
			d.schema("collection options shop.log", fingerprint.ClassObjectMissing)
		}),
		on(37, "a collection more", func(t *testing.T, d *damage) {
			command(t, d, databasetest.Shop, bson.D{{Key: "create", Value: "more"}})
			d.schema("relation shop.more", fingerprint.ClassRelationExtra)
			d.schema("index _id_ on shop.more", fingerprint.ClassObjectExtra)
		}),
	}
}
