package mongodb

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/database/mongodb/standin"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
)

// What FerretDB refuses or alters is planted in a stand-in for mongod: the engine is held to what such a server would
// say, and whether a real one says it is not proven here.

// standinContent is the content of a twin: orders with values that FerretDB cannot hold, and things around them.
func standinContent() standin.Content {
	documents := make([]bson.Raw, documentsEach)
	for i := range documents {
		documents[i] = raw(standinOrder(int64(i)))
	}
	unit := func(s string) bson.D {
		return bson.D{{Key: "$jsonSchema", Value: bson.D{{Key: "required", Value: bson.A{s}}}}}
	}
	return standin.Content{
		Databases: []standin.Database{
			{Name: "admin", Collections: []standin.Collection{{Name: "system.users"}}}, {Name: "local", Collections: []standin.Collection{{Name: "oplog.rs"}}},
			{Name: "shop", Collections: []standin.Collection{
				{Name: "orders", Documents: documents, Options: bson.D{{Key: "validator", Value: unit("price")}, {Key: "validationLevel", Value: "strict"}},
					Indexes: []bson.D{
						{{Key: "v", Value: 2}, {Key: "key", Value: bson.D{{Key: "at", Value: 1}}}, {Key: "name", Value: "ttl"}, {Key: "expireAfterSeconds", Value: 3600}},
						{{Key: "v", Value: 2}, {Key: "key", Value: bson.D{{Key: "n", Value: 1}}}, {Key: "name", Value: "partial"},
							{Key: "partialFilterExpression", Value: bson.D{{Key: "n", Value: bson.D{{Key: "$gt", Value: 5}}}}}},
						{{Key: "v", Value: 2}, {Key: "key", Value: bson.D{{Key: "name", Value: 1}}}, {Key: "name", Value: "german"},
							{Key: "collation", Value: bson.D{{Key: "locale", Value: "de"}, {Key: "strength", Value: 1}}}},
					}},
				{Name: "cheap", Type: "view", Options: bson.D{{Key: "viewOn", Value: "orders"},
					{Key: "pipeline", Value: bson.A{bson.D{{Key: "$match", Value: bson.D{{Key: "n", Value: 1}}}}}}}},
			}},
		},
		Users: []bson.D{{{Key: "_id", Value: "shop.app"}, {Key: "user", Value: "app"}, {Key: "db", Value: "shop"},
			{Key: "roles", Value: bson.A{bson.D{{Key: "role", Value: "readWrite"}, {Key: "db", Value: "shop"}}}}}},
	}
}

// raw is for documents of the test's own.
func raw(d bson.D) bson.Raw {
	b, err := bson.Marshal(d)
	if err != nil {
		panic(err)
	}
	return b
}

func standinOrder(i int64) bson.D {
	price, err := bson.ParseDecimal128(fmt.Sprintf("%d.50", i))
	if err != nil {
		panic(err)
	}
	return bson.D{
		{Key: "_id", Value: i}, {Key: "name", Value: fmt.Sprintf("Straße %d", i)}, {Key: "price", Value: price}, {Key: "weight", Value: float64(i) + 0.5},
		{Key: "zero", Value: 0.0}, {Key: "matrix", Value: bson.A{bson.A{i, i + 1}, bson.A{i + 2}}}, {Key: "n", Value: int32(i % 10)},
		{Key: "limit", Value: int32(1)}, {Key: "text", Value: "plain"},
	}
}

// standinMutation is damage to a stand-in's content.
type standinMutation struct {
	class  int
	name   string
	damage func(d *standinDamage)
}

type standinDamage struct {
	damage
	content standin.Content
}

func (d *standinDamage) orders() *standin.Collection { return &d.content.Databases[2].Collections[0] }

// value gives a field of one order another value.
func (d *standinDamage) value(class, path string, value func(old any) any) {
	i := d.pick(1)[0] - 1
	o := standinOrder(i)
	d.orders().Documents[i] = raw(with(o, path, value(get(o, path))))
	d.field("orders", class, path, fmt.Sprint(i))
	d.changed("orders", 1)
}

func to(class, path string, v any) func(*standinDamage) {
	return func(d *standinDamage) { d.value(class, path, func(any) any { return v }) }
}

func standinMutations() []standinMutation {
	decimal := func(s string) bson.Decimal128 {
		d, err := bson.ParseDecimal128(s)
		if err != nil {
			panic(err)
		}
		return d
	}
	object := func(kind, name, class string, change func(d *standinDamage)) func(*standinDamage) {
		return func(d *standinDamage) {
			change(d)
			d.schema(kind+" "+name, class)
		}
	}
	const changed, lost = fingerprint.ClassObjectChanged, fingerprint.ClassObjectMissing
	return []standinMutation{
		{15, "0.0 becomes -0.0", to(fingerprint.ClassRepresentation, "zero", math.Copysign(0, -1))},
		{16, "a number becomes NaN", to(fingerprint.ClassValue, "weight", math.NaN())},
		{16, "a number becomes Inf", to(fingerprint.ClassValue, "weight", math.Inf(1))},
		{16, "a number becomes -Inf", to(fingerprint.ClassValue, "weight", math.Inf(-1))},
		{17, "1.50 becomes 1.500", func(d *standinDamage) {
			d.value(fingerprint.ClassRepresentation, "price", func(old any) any { return decimal(old.(bson.Decimal128).String() + "0") })
		}},
		{18, "decimal becomes double", func(d *standinDamage) {
			d.value(fingerprint.ClassType, "price", func(any) any { return 1.5 })
		}},
		{18, "a key becomes a decimal, the same key", func(d *standinDamage) {
			i := d.pick(1)[0] - 1
			d.orders().Documents[i] = raw(with(standinOrder(i), "_id", decimal(fmt.Sprintf("%d.0", i))))
			d.field("orders", fingerprint.ClassType, "_id", fmt.Sprint(i))
			d.changed("orders", 1)
		}},
		{21, "an element of a nested array", func(d *standinDamage) {
			i := d.pick(1)[0] - 1
			d.orders().Documents[i] = raw(with(standinOrder(i), "matrix", bson.A{bson.A{i, i + 2}, bson.A{i + 2}}))
			d.pattern("orders", fingerprint.ClassValue, "matrix.0.1", "+1", fmt.Sprint(i))
			d.changed("orders", 1)
		}},
		{21, "a nested array in another order", func(d *standinDamage) {
			i := d.pick(1)[0] - 1
			d.orders().Documents[i] = raw(with(standinOrder(i), "matrix", bson.A{bson.A{i + 1, i}, bson.A{i + 2}}))
			d.field("orders", fingerprint.ClassOrder, "matrix.0", fmt.Sprint(i))
			d.changed("orders", 1)
		}},
		{22, "text that is no UTF-8", func(d *standinDamage) {
			i := d.pick(1)[0] - 1
			b := slices.Clone(d.orders().Documents[i])
			copy(b[strings.Index(string(b), "plain"):], "pl\xffin")
			d.orders().Documents[i] = b
			d.field("orders", fingerprint.ClassValue, "text", fmt.Sprint(i))
			d.changed("orders", 1)
		}},
		{20, "a field twice", func(d *standinDamage) {
			i := d.pick(1)[0] - 1
			d.orders().Documents[i] = raw(append(standinOrder(i), bson.E{Key: "text", Value: "plain"}))
			d.field("orders", fingerprint.ClassFieldExtra, "text", fmt.Sprint(i))
			d.changed("orders", 1)
		}},
		{18, "a number becomes MaxKey", to(fingerprint.ClassType, "limit", bson.MaxKey{})},
		{23, "another collation", object(kindIndex, "german on shop.orders", changed, func(d *standinDamage) {
			d.orders().Indexes[2] = with(d.orders().Indexes[2], "collation", bson.D{{Key: "locale", Value: "sv"}, {Key: "strength", Value: 1}})
		})},
		{31, "a validator lost", object(kindOptions, "shop.orders", changed, func(d *standinDamage) {
			d.orders().Options = without(d.orders().Options, "validator")
		})},
		{31, "a validator only warns", object(kindOptions, "shop.orders", changed, func(d *standinDamage) {
			d.orders().Options = append(d.orders().Options, bson.E{Key: "validationAction", Value: "warn"})
		})},
		{31, "a view's pipeline", object(kindView, "shop.cheap", changed, func(d *standinDamage) {
			v := &d.content.Databases[2].Collections[1]
			v.Options = with(v.Options, "pipeline", bson.A{})
		})},
		{31, "a view lost", object(kindView, "shop.cheap", lost, func(d *standinDamage) {
			d.content.Databases[2].Collections = d.content.Databases[2].Collections[:1]
		})},
		{31, "a user lost", object(kindUser, "app on shop", lost, func(d *standinDamage) { d.content.Users = nil })},
		{31, "a user may do more", object(kindUser, "app on shop", changed, func(d *standinDamage) {
			d.content.Users = []bson.D{with(d.content.Users[0], "roles", bson.A{bson.D{{Key: "role", Value: "root"}, {Key: "db", Value: "admin"}}})}
		})},
		{32, "documents live longer", object(kindIndex, "ttl on shop.orders", changed, func(d *standinDamage) {
			d.orders().Indexes[0] = with(d.orders().Indexes[0], "expireAfterSeconds", 7200)
		})},
		{32, "an index of other documents", object(kindIndex, "partial on shop.orders", changed, func(d *standinDamage) {
			d.orders().Indexes[1] = with(d.orders().Indexes[1], "partialFilterExpression", bson.D{{Key: "n", Value: bson.D{{Key: "$gt", Value: 6}}}})
		})},
		{41, "definitions written in another way", func(d *standinDamage) {
			x := d.orders().Indexes
			x[0] = with(with(x[0], "background", true), "expireAfterSeconds", int64(3600))
			x[1] = append(with(x[1], "v", 1), bson.E{Key: "sparse", Value: false})
			slices.Reverse(x)
			d.content.Users[0] = append(d.content.Users[0], bson.E{Key: "userId", Value: bson.Binary{Subtype: 4, Data: make([]byte, 16)}})
			slices.Reverse(d.orders().Documents)
		}},
	}
}

// serveStandin starts a stand-in and opens it.
func serveStandin(t *testing.T, c standin.Content) (*standin.Server, database.Server, database.Catalog) {
	t.Helper()
	s, err := standin.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	server, catalog := opened(t, database.URL{Value: s.URL()})
	return s, server, catalog
}

// TestStandinMutations runs the part of the suite that FerretDB cannot hold.
func TestStandinMutations(t *testing.T) {
	t.Parallel()
	_, control, catalog := serveStandin(t, standinContent())
	b := &base{control: control, catalog: catalog, digests: map[string]*fingerprint.Digest{}}
	numbers, seeds := suiteSeeds()
	for _, m := range standinMutations() {
		t.Run(fmt.Sprintf("%d %s", m.class, m.name), func(t *testing.T) {
			for _, n := range numbers {
				d := &standinDamage{damage: *newDamage(n, m.class), content: standinContent()}
				m.damage(d)
				_, candidate, catalog := serveStandin(t, d.content)
				d.holds(t, n, b.compare(t, candidate, catalog, seeds[n], ""))
				if n == 1 {
					d.ablate(t, fmt.Sprintf("%d %s", m.class, m.name), func(part fingerprint.Part) *fingerprint.Report {
						return b.compare(t, candidate, catalog, seeds[n], part)
					})
				}
			}
		})
	}
}

// TestStandinIsMongod is what is different where no FerretDB answers.
func TestStandinIsMongod(t *testing.T) {
	t.Parallel()
	c := standinContent()
	c.Invalid = map[string]string{"shop.orders": "index german has 3 entries too few"}
	s, server, catalog := serveStandin(t, c)
	if i := catalog.Info; i.ServedBy != "" || i.Version != "7.0.0" || !slices.Equal(catalog.Databases, []string{"admin", "shop"}) {
		t.Errorf("%+v, databases %v", i, catalog.Databases)
	}
	var found []database.Finding
	if err := server.Check(t.Context(), database.Full, func(f database.Finding) { found = append(found, f) }); err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].Object != "relation shop.orders" || found[0].Class != classInvalid {
		t.Errorf("the check found %v", found)
	}
	_, err := newEngine().Quiesce(t.Context(), database.QuiesceRequest{URL: database.URL{Value: s.URL()}, Dirs: []string{t.TempDir()}})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "mongod") {
		t.Errorf("holding a real mongod's writers: %v", err)
	}
	for hello, kind := range map[string]fault.Kind{"isdbgrid": fault.Invalid} {
		r, err := standin.Start(standin.Content{Hello: bson.D{{Key: "msg", Value: hello}}})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := newEngine().Open(t.Context(), database.URL{Value: r.URL()}); !fault.Is(err, kind) || !strings.Contains(err.Error(), "sharded") {
			t.Errorf("a router: %v", err)
		}
	}
}

// TestPrivileges is a user that lacks some: who may not list users still compares the rest, and it is said.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	c := standinContent()
	c.Deny = []string{"usersInfo"}
	_, _, catalog := serveStandin(t, c)
	if len(catalog.NotComparable) != 1 || catalog.NotComparable[0].Object != "users" {
		t.Errorf("not comparable: %v", catalog.NotComparable)
	}
	c.Deny = []string{"listCollections"}
	s, err := standin.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	findings, err := newEngine().Preflight(t.Context(), database.URL{Value: s.URL()})
	if err != nil || len(findings) != 1 || !strings.Contains(findings[0].Message, "readAnyDatabase") {
		t.Errorf("preflight: %v, %v", findings, err)
	}
}
