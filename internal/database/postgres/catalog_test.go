package postgres

import (
	"context"
	"fmt"
	"testing"

	"github.com/sluice-cd/sluice/internal/database"
)

// TestQueries runs every query over the catalogs by itself, so that one that a version does not understand is named.
func TestQueries(t *testing.T) {
	h := newHarness(t, "-c", "fsync=off")
	for name, bin := range map[string]string{"old": h.bin.old, "new": h.bin.new} {
		t.Run(name, func(t *testing.T) {
			s := h.start(t, bin, []string{freshData(t, h.bin)}, nil)
			opened, err := New().Open(t.Context(), s.URL())
			if err != nil {
				t.Fatal(err)
			}
			defer opened.Close()
			db := opened.(*server)
			for _, q := range append(clusterQueries(db.version), databaseQueries(db.version)...) {
				c, err := db.acquire(context.Background(), "postgres")
				if err != nil {
					t.Fatal(err)
				}
				var into database.Catalog
				if err := objects(t.Context(), c, []objectQuery{q}, "", &into); err != nil {
					t.Errorf("%v\n%s", err, q.sql)
				}
				db.release("postgres", c)
			}
		})
	}
}

// TestCatalog reads a database with one of each of what has rows, or seems to.
func TestCatalog(t *testing.T) {
	h := newHarness(t, "-c", "fsync=off")
	s := h.start(t, h.bin.new, []string{freshData(t, h.bin)}, nil)
	s.exec(t, "postgres", `CREATE SCHEMA "Mixed.Case"; CREATE TABLE "Mixed.Case"."a ""b""" (x int4 PRIMARY KEY, "Y z" text)`,
		"CREATE TABLE parent (id int4 NOT NULL, at date NOT NULL, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)",
		"CREATE TABLE leaf PARTITION OF parent FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')",
		"CREATE TABLE base (a int4); CREATE TABLE child () INHERITS (base); INSERT INTO base VALUES (1); INSERT INTO child VALUES (2), (3)",
		"CREATE UNLOGGED TABLE fast (a int4); CREATE MATERIALIZED VIEW empty AS SELECT 1 AS a WITH NO DATA; CREATE VIEW seen AS SELECT 1 AS a",
		"CREATE EXTENSION postgres_fdw; CREATE SERVER away FOREIGN DATA WRAPPER postgres_fdw; CREATE FOREIGN TABLE far (a int4) SERVER away",
		"CREATE TABLE keys (a int4 NOT NULL, b int4 NOT NULL, c int4, d int4 NOT NULL)",
		"CREATE UNIQUE INDEX k1 ON keys (c); CREATE UNIQUE INDEX k2 ON keys (a) WHERE a > 0; CREATE UNIQUE INDEX k3 ON keys (abs(a))",
		"ALTER TABLE keys ADD CONSTRAINT k4 UNIQUE (b) DEFERRABLE; CREATE UNIQUE INDEX k5 ON keys (d, a) INCLUDE (c); CREATE UNIQUE INDEX k6 ON keys (a, b, d)",
		"CREATE TABLE none ()")
	opened, err := New().Open(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	c, err := opened.Catalog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{ // relation → key, and whether its rows are left out
		`Mixed.Case.a "b"`: "[x]", "public.leaf": "[id at]", "public.base": "[]", "public.child": "[]", "public.fast": "[] skip", "public.empty": "[] skip",
		"public.keys": "[d a]", "public.none": "[]",
	}
	for _, r := range c.Relations {
		got := fmt.Sprint(r.Key)
		if r.Skip != "" {
			got += " skip"
		}
		name := r.Name.Schema + "." + r.Name.Relation
		if want[name] != got {
			t.Errorf("relation %s: %s, want %q", name, got, want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("relations that are not in the catalog: %v", want)
	}
	if len(c.NotComparable) != 1 || c.NotComparable[0].Object != "foreign table postgres.public.far" {
		t.Errorf("not comparable: %+v", c.NotComparable)
	}
	v, err := opened.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for name, rows := range map[string]int64{"public.base": 1, "public.child": 2, "public.none": 0, `Mixed.Case.a "b"`: 0} {
		r, p := relation(t, c, name)
		if n, err := v.Scan(t.Context(), database.Range{Relation: r}, p, func(database.Row) error { return nil }); n != rows || err != nil {
			t.Errorf("%s has %d rows, %v", name, n, err)
		}
	}
}
