package database

import (
	"slices"
	"testing"
)

func census() Catalog {
	relation := func(name string, mark int64) Relation {
		return Relation{Name: Name{Database: "shop", Relation: name}, HighWater: mark}
	}
	return Catalog{
		Info:      Info{Identity: "7123", Position: "1/A0000000"},
		Databases: []string{"shop", "stock"},
		Relations: []Relation{relation("orders", 11544), relation("customers", 0)},
		Objects:   []Object{{Kind: "index", Name: "orders_by_day"}, {Kind: KindReplicationSlot, Name: "reporting"}, {Kind: KindSetting, Name: "archive_mode"}},
	}
}

func TestCovers(t *testing.T) {
	tests := []struct {
		name  string
		twist func(*Catalog)
		want  []string
	}{
		{"itself", func(*Catalog) {}, nil},
		{"more than the census", func(c *Catalog) {
			c.Relations[0].HighWater++
			c.Relations = append(c.Relations, Relation{Name: Name{Relation: "new"}})
			c.Databases = append(c.Databases, "new")
			c.Info.Position = "2/0"
		}, nil},
		{"without what quarantine removes", func(c *Catalog) { c.Objects = c.Objects[:1] }, nil},
		{"another server", func(c *Catalog) { c.Info.Identity = "" }, []string{"other identity server"}},
		{"a log that was not replayed", func(c *Catalog) { c.Info.Position = "1/9FFFFFFF" }, []string{"position server"}},
		{"a position that cannot be read", func(c *Catalog) { c.Info.Position = "" }, []string{"position server"}},
		{"a -wal left out", func(c *Catalog) { c.Relations[0].HighWater = 11145 }, []string{"rows missing relation shop.orders"}},
		{"a relation gone", func(c *Catalog) { c.Relations = c.Relations[:1] }, []string{"relation missing relation shop.customers"}},
		{"a relation elsewhere", func(c *Catalog) { c.Relations[1].Name.Database = "stock" }, []string{"relation missing relation shop.customers"}},
		{"a database gone", func(c *Catalog) { c.Databases = c.Databases[:1] }, []string{"database missing database stock"}},
		{"an index gone", func(c *Catalog) { c.Objects = c.Objects[1:] }, []string{"object missing index orders_by_day"}},
		{"everything gone", func(c *Catalog) { *c = Catalog{Info: c.Info} }, []string{
			"database missing database shop", "database missing database stock", "object missing index orders_by_day",
			"relation missing relation shop.customers", "relation missing relation shop.orders",
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			have := census()
			test.twist(&have)
			var got []string
			for _, f := range Covers(census(), have) {
				got = append(got, f.Class+" "+f.Object)
			}
			slices.Sort(got)
			if !slices.Equal(got, test.want) {
				t.Errorf("lacks %q, want %q", got, test.want)
			}
		})
	}
}

func TestBefore(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"0/F", "0/10", true}, {"0/10", "0/F", false}, {"9/0", "A/0", true}, {"1/0", "1/0", false},
		{"9", "10", true}, {"10", "9", false}, {"", "1/0", true}, {"1/0", "", false}, {"x", "y", false},
	} {
		if got := before(test.a, test.b); got != test.want {
			t.Errorf("before(%q, %q) = %v", test.a, test.b, got)
		}
	}
}
