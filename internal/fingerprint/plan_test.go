package fingerprint

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// schemaOf lists a plan's findings as class object.
func schemaOf(list []database.Finding) (out []string) {
	for _, f := range list {
		out = append(out, f.Class+": "+f.Object)
	}
	slices.Sort(out)
	return out
}

func relation(name string, columns ...database.Column) database.Relation {
	return database.Relation{Name: database.Name{Database: "shop", Relation: name}, Columns: columns, Key: []string{"id"}, KeyUnique: true}
}

func base() database.Catalog {
	id := database.Column{Name: "id", Type: "int4", Family: database.Integer}
	note := database.Column{Name: "note", Type: "text", Family: database.Text}
	return database.Catalog{
		Databases: []string{"shop"},
		Relations: []database.Relation{relation("customers", id, note), relation("orders", id, note)},
		Objects: []database.Object{
			{Kind: "index", Name: "orders_note", Attributes: map[string]string{"unique": "true", "columns": "note"}},
			{Kind: "sequence", Name: "orders_id", Attributes: map[string]string{"last_value": "7"}},
		},
	}
}

func TestSchemaFindings(t *testing.T) {
	tests := []struct {
		name     string
		change   func(*database.Catalog)
		options  PlanOptions
		want     []string
		expected []string
	}{
		{name: "nothing", change: func(*database.Catalog) {}},
		{name: "relation missing", change: func(c *database.Catalog) { c.Relations = c.Relations[:1] }, want: []string{"relation missing: relation shop.orders"}},
		{name: "relation extra", change: func(c *database.Catalog) { c.Relations = append(c.Relations, relation("x")) }, want: []string{"relation extra: relation shop.x"}},
		{name: "37 renamed by case", change: func(c *database.Catalog) { c.Relations[1].Name.Relation = "Orders" }, want: []string{"relation respelled: relation shop.orders"}},
		{name: "database renamed", change: func(c *database.Catalog) { c.Databases[0] = "Shop" }, want: []string{"database extra: database Shop", "database missing: database shop"}},
		{name: "databases of two names", options: PlanOptions{Databases: map[string]string{"shop": "copy"}}, change: func(c *database.Catalog) {
			c.Databases[0], c.Relations[0].Name.Database, c.Relations[1].Name.Database = "copy", "copy", "copy"
		}},
		{name: "column missing", change: func(c *database.Catalog) { c.Relations[1].Columns = c.Relations[1].Columns[:1] }, want: []string{"column missing: column shop.orders.note"}},
		{name: "column extra", change: func(c *database.Catalog) {
			c.Relations[1].Columns = append(slices.Clone(c.Relations[1].Columns), database.Column{Name: "new"})
		}, want: []string{"column extra: column shop.orders.new"}},
		{name: "41 other physical order", change: func(c *database.Catalog) {
			c.Relations[1].Columns = []database.Column{c.Relations[1].Columns[1], c.Relations[1].Columns[0]}
		}},
		{name: "18 wider type", change: func(c *database.Catalog) { c.Relations[1].Columns = widened(c.Relations[1].Columns) }, want: []string{"column type: column shop.orders.id"}},
		{name: "18 wider type, expected", change: func(c *database.Catalog) { c.Relations[1].Columns = widened(c.Relations[1].Columns) },
			options:  PlanOptions{Contract: []Exclusion{{Relation: "orders", Column: "id"}}},
			expected: []string{"column type: column shop.orders.id"}},
		{name: "key", change: func(c *database.Catalog) { c.Relations[1].Key = []string{"note"} }, want: []string{"key columns: relation shop.orders"}},
		{name: "32 index lost", change: func(c *database.Catalog) { c.Objects = c.Objects[1:] }, want: []string{"object missing: index orders_note"}},
		{name: "32 not unique", change: func(c *database.Catalog) {
			c.Objects[0].Attributes = map[string]string{"unique": "false", "columns": "note"}
		},
			want: []string{"object changed: index orders_note"}},
		{name: "36 sequence", change: func(c *database.Catalog) { c.Objects[1].Attributes = map[string]string{"last_value": "1"} }, want: []string{"object changed: sequence orders_id"}},
		{name: "36 sequence, expected", change: func(c *database.Catalog) { c.Objects[1].Attributes = map[string]string{"last_value": "1"} },
			options: PlanOptions{Contract: []Exclusion{{Object: "sequence *", Attribute: "last_value"}}}, expected: []string{"object changed: sequence orders_id"}},
		{name: "attribute gone", change: func(c *database.Catalog) { c.Objects[1].Attributes = nil }, want: []string{"object changed: sequence orders_id"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := base()
			test.change(&b)
			p, err := NewPlan(base(), b, test.options)
			if err != nil {
				t.Fatal(err)
			}
			if got := schemaOf(p.Findings); !slices.Equal(got, test.want) {
				t.Errorf("found %v, want %v", got, test.want)
			}
			if got := schemaOf(p.Expected); !slices.Equal(got, test.expected) {
				t.Errorf("expected %v, want %v", got, test.expected)
			}
		})
	}
}

func widened(columns []database.Column) []database.Column {
	out := slices.Clone(columns)
	out[0].Type = "int8"
	return out
}

func TestWiderTypeComparesValues(t *testing.T) {
	a, b := twins(100, "id")
	b.relations[0].Columns = widened(orderColumns())
	b.relations[0].Columns[0].Type = "int16"
	r := verify(t, a, b, nil)
	if r.Verdict != Different || r.Tables[0].Verdict != Equal || len(r.Schema) != 1 {
		t.Errorf("%s, table %s, schema %v", r.Verdict, r.Tables[0].Verdict, r.Schema)
	}
}

func TestSelection(t *testing.T) {
	names := func(o PlanOptions) string {
		p, err := NewPlan(base(), base(), o)
		if err != nil {
			return string(fault.KindOf(err))
		}
		var out []string
		for _, x := range p.Tables {
			out = append(out, x.Name.Relation)
		}
		for _, n := range p.NotCompared {
			if !n.Expected {
				out = append(out, "unexpected")
			}
		}
		return strings.Join(out, " ")
	}
	for _, test := range []struct {
		o    PlanOptions
		want string
	}{
		{PlanOptions{}, "customers orders"},
		{PlanOptions{Tables: []string{"ord*"}}, "orders"},
		{PlanOptions{Tables: []string{"shop.customers"}}, "customers"},
		{PlanOptions{Exclude: []string{"orders"}}, "customers"},
		{PlanOptions{Contract: []Exclusion{{Relation: "orders", Reason: "is rebuilt"}}}, "customers"},
		{PlanOptions{Tables: []string{"ordres"}}, string(fault.NotFound)},
		{PlanOptions{Exclude: []string{"["}}, string(fault.Invalid)},
	} {
		if got := names(test.o); got != test.want {
			t.Errorf("%+v: %q, want %q", test.o, got, test.want)
		}
	}
}

func TestCoverage(t *testing.T) {
	a, b := twins(10, "id")
	catalog := a.catalog()
	catalog.NotComparable = []database.Finding{{Object: "users", Class: "not comparable", Message: "this server does not list them"}}
	compareWith := func(contract ...Exclusion) *Report {
		plan, err := NewPlan(catalog, b.catalog(), PlanOptions{Contract: contract})
		if err != nil {
			t.Fatal(err)
		}
		return verify(t, a, b, func(o *Options, _ *PlanOptions) { o.Plan = plan })
	}
	r := compareWith()
	wantVerdict(t, r, Unknown, "users (this server does not list them)")
	if r.Coverage.NotCompared != 1 {
		t.Errorf("%+v", r.Coverage)
	}
	wantVerdict(t, compareWith(Exclusion{Object: "users"}), Equal, "")
	b.relations[0].Skip = "row-level security hides rows"
	wantVerdict(t, compareWith(Exclusion{Object: "users"}), Unknown, "row-level security hides rows")
}

func TestKeyOfAPlan(t *testing.T) {
	for _, test := range []struct {
		name     string
		change   func(a, b *database.Relation)
		contract []Exclusion
		keyless  string
	}{
		{name: "both", change: func(a, b *database.Relation) {}},
		{name: "one side", change: func(a, b *database.Relation) { b.Key, b.KeyUnique = nil, false }, keyless: "no key in common"},
		{name: "none", change: func(a, b *database.Relation) { a.Key, b.Key = nil, nil }, keyless: "no primary key"},
		{name: "excluded", change: func(a, b *database.Relation) {}, contract: []Exclusion{{Relation: "orders", Column: "id"}}, keyless: "is excluded"},
	} {
		a, b := base(), base()
		test.change(&a.Relations[1], &b.Relations[1])
		p, err := NewPlan(a, b, PlanOptions{Contract: test.contract})
		if err != nil {
			t.Fatal(err)
		}
		if x := p.Tables[1]; (test.keyless == "") != (len(x.Key) == 1) || !strings.Contains(x.Keyless, test.keyless) {
			t.Errorf("%s: key %v, %q", test.name, x.Key, x.Keyless)
		}
	}
}

func TestPlanDigest(t *testing.T) {
	digest := func(c database.Catalog, o PlanOptions) string {
		p, err := NewPlan(c, c, o)
		if err != nil {
			t.Fatal(err)
		}
		return p.Digest()
	}
	c := base()
	want := digest(c, PlanOptions{})
	c.Relations[0].Rows, c.Relations[0].Bytes = 99, 99
	if digest(c, PlanOptions{}) != want {
		t.Error("estimates change the digest")
	}
	if digest(c, PlanOptions{Contract: []Exclusion{{Relation: "orders", Column: "note"}}}) == want {
		t.Error("an excluded column does not change the digest")
	}
	seed := NewSeed()
	again, err := ParseSeed(seed.String())
	if err != nil || again != seed || strings.Contains(seed.Digest(), seed.String()) {
		t.Error("a seed does not survive the journal")
	}
	if _, err := ParseSeed("12"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("ParseSeed: %v", err)
	}
	if fmt.Sprint(Source, Target) != "source target" {
		t.Error("sides have no names")
	}
}
