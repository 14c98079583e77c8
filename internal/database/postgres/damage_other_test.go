package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
)

// twoDatabases starts a server with two databases made alike.
func twoDatabases(t *testing.T, statements ...string) *instance {
	t.Helper()
	h := newHarness(t, "-c", "fsync=off")
	s := h.start(t, h.bin.new, []string{freshData(t, h.bin)}, nil)
	for _, db := range []string{"control", "target"} {
		s.exec(t, "postgres", "CREATE DATABASE "+db)
		s.exec(t, db, append(ordersTable("orders", "PRIMARY KEY"), statements...)...)
	}
	return s
}

// sides opens both databases and plans their comparison. A URL may be changed before.
func sides(t *testing.T, s *instance, change func(*database.URL)) (fingerprint.Options, error) {
	t.Helper()
	e := New(OneDatabase())
	urls := []database.URL{{Value: s.url("control")}, {Value: s.url("target")}}
	if change != nil {
		change(&urls[1])
	}
	var o fingerprint.Options
	var catalogs []database.Catalog
	for i, u := range urls {
		db, err := e.Open(t.Context(), u)
		if err != nil {
			return o, err
		}
		t.Cleanup(func() { db.Close() })
		c, err := db.Catalog(t.Context())
		if err != nil {
			return o, err
		}
		catalogs = append(catalogs, c)
		if i == 0 {
			o.Source.Server = db
		} else {
			o.Target.Server = db
		}
	}
	plan, err := fingerprint.NewPlan(catalogs[0], catalogs[1], fingerprint.PlanOptions{Databases: map[string]string{"control": "target"}})
	o.Plan, o.Seed, o.SpillDir = plan, fingerprint.NewSeed(), t.TempDir()
	return o, err
}

// breaking is a connection that ends after so many bytes have been read.
type breaking struct {
	net.Conn
	left int
	with error
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.left <= 0 {
		b.Close()
		return 0, b.with
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// TestMustNotPass is class 40: what could not be seen must never be called equal.
func TestMustNotPass(t *testing.T) {
	s := twoDatabases(t, "CREATE UNLOGGED TABLE cache AS SELECT 1 AS a",
		"CREATE TABLE secret AS SELECT i FROM generate_series(1, 5000) AS i; ALTER TABLE secret ENABLE ROW LEVEL SECURITY")
	s.exec(t, "postgres", "CREATE ROLE limited LOGIN; GRANT pg_read_all_data TO limited")
	limited := func(u *database.URL) { u.Value = strings.Replace(u.Value, "sluice@", "limited@", 1) }
	unknown := func(t *testing.T, o fingerprint.Options, reason string) {
		t.Helper()
		r, err := fingerprint.Compare(t.Context(), o)
		if r.Verdict != fingerprint.Unknown || !strings.Contains(r.Reason, reason) {
			t.Errorf("verdict %s: %s (%v), want it unknown because of %q", r.Verdict, r.Reason, err, reason)
		}
	}
	plan := func(t *testing.T, change func(*database.URL)) fingerprint.Options {
		t.Helper()
		o, err := sides(t, s, change)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	t.Run("an unlogged table", func(t *testing.T) { unknown(t, plan(t, nil), "unlogged") })
	s.exec(t, "control", "DROP TABLE cache")
	s.exec(t, "target", "DROP TABLE cache")
	t.Run("policies hide rows", func(t *testing.T) { unknown(t, plan(t, limited), "policies") })
	t.Run("policies hide rows after the plan was made", func(t *testing.T) {
		s.exec(t, "target", "ALTER TABLE secret DISABLE ROW LEVEL SECURITY")
		s.exec(t, "control", "ALTER TABLE secret DISABLE ROW LEVEL SECURITY")
		o := plan(t, limited)
		s.exec(t, "target", "ALTER TABLE secret ENABLE ROW LEVEL SECURITY")
		unknown(t, o, "BYPASSRLS")
		s.exec(t, "target", "ALTER TABLE secret DISABLE ROW LEVEL SECURITY")
	})
	t.Run("a mistyped database", func(t *testing.T) {
		_, err := sides(t, s, func(u *database.URL) { u.Value = s.url("targte") })
		if !fault.Is(err, fault.NotFound) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("an empty database of the right name", func(t *testing.T) {
		s.exec(t, "postgres", "CREATE DATABASE empty")
		o := plan(t, func(u *database.URL) { u.Value = s.url("empty") })
		if r, _ := fingerprint.Compare(t.Context(), o); r.Verdict == fingerprint.Equal {
			t.Error("it is equal")
		}
	})
	for name, with := range map[string]error{"killed": errors.New("connection reset by peer"), "ended": io.EOF} {
		t.Run("a connection "+name+" after some rows", func(t *testing.T) {
			armed := false
			o := plan(t, func(u *database.URL) {
				u.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
					var d net.Dialer
					c, err := d.DialContext(ctx, network, address)
					if err != nil || !armed {
						return c, err
					}
					return &breaking{Conn: c, left: 200_000, with: with}, nil
				}
			})
			armed = true
			unknown(t, o, "orders")
		})
	}
	t.Run("the source is written meanwhile", func(t *testing.T) {
		o := plan(t, nil)
		v, err := o.Source.Server.View(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		o.Source.View = v
		s.exec(t, "control", update("orders", "note = 'written'", 1, 2, 3))
		if r, err := fingerprint.Compare(t.Context(), o); r.Verdict != fingerprint.Equal {
			t.Errorf("as of the snapshot: %s %s %v", r.Verdict, r.Reason, err)
		}
		if r, err := fingerprint.Compare(t.Context(), plan(t, nil)); r.Verdict != fingerprint.Different {
			t.Errorf("after it: %s %s %v", r.Verdict, r.Reason, err)
		}
	})
}

// TestIndexLacksEntries is class 33: the function under an index on an expression is replaced. Rows and catalogs are
// equal; only the engine's own check finds it.
func TestIndexLacksEntries(t *testing.T) {
	s := twoDatabases(t, "CREATE EXTENSION amcheck", "CREATE FUNCTION f(int4) RETURNS int4 IMMUTABLE LANGUAGE sql AS 'SELECT $1'",
		"CREATE INDEX by_f ON orders (f(n))")
	replace := "CREATE OR REPLACE FUNCTION f(int4) RETURNS int4 IMMUTABLE LANGUAGE sql AS 'SELECT -$1'"
	s.exec(t, "control", replace, "REINDEX INDEX by_f")
	s.exec(t, "target", replace)
	o, err := sides(t, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := fingerprint.Compare(t.Context(), o); r.Verdict != fingerprint.Equal {
		t.Errorf("%s: %s %v", r.Verdict, r.Reason, err)
	}
	found := func(db database.Server, d database.Depth) (out []database.Finding) {
		if err := db.Check(t.Context(), d, func(f database.Finding) { out = append(out, f) }); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if f := found(o.Source.Server, database.Full); len(f) > 0 {
		t.Errorf("the source: %+v", f)
	}
	f := found(o.Target.Server, database.Full)
	if len(f) != 1 || f[0].Class != ClassCorruption || !strings.Contains(f[0].Object, "index public.by_f") {
		t.Errorf("the target: %+v", f)
	}
	if f := found(o.Target.Server, database.Quick); len(f) > 0 {
		t.Errorf("the quick check reads no index, and says %+v", f)
	}
	s.exec(t, "target", "DROP EXTENSION amcheck")
	if f := found(o.Target.Server, database.Full); len(f) != 1 || f[0].Class != ClassNotChecked {
		t.Errorf("without amcheck: %+v", f)
	}
}

// TestChecksFind plants what the quick check is for.
func TestChecksFind(t *testing.T) {
	s := twoDatabases(t)
	s.exec(t, "target", "CREATE INDEX half ON orders (n); UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'half'::regclass",
		"CREATE COLLATION c (provider = icu, locale = 'de'); CREATE TABLE sorted (a text COLLATE c)",
		"UPDATE pg_collation SET collversion = '1' WHERE collname = 'c'",
		"CREATE TABLE large WITH (autovacuum_enabled = off) AS SELECT repeat('x', 1000) AS a FROM generate_series(1, 10000)")
	db, err := New(OneDatabase()).Open(t.Context(), database.URL{Value: s.url("target")})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var got []string
	if err := db.Check(t.Context(), database.Quick, func(f database.Finding) { got = append(got, f.Class) }); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	if want := []string{ClassCollation, ClassInvalidIndex, ClassStatistics}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

// TestWholeCluster compares two servers with all their databases: class 37 for databases, and what belongs to none.
func TestWholeCluster(t *testing.T) {
	h := newHarness(t, "-c", "fsync=off")
	var servers [2]*instance
	for i := range servers {
		s := h.start(t, []string{h.bin.old, h.bin.new}[i], []string{freshData(t, h.bin)}, nil)
		s.Fill(t, 5000)
		s.exec(t, "postgres", "CREATE ROLE app LOGIN CONNECTION LIMIT 5", "CREATE DATABASE stock OWNER app", "ALTER ROLE app SET work_mem = '8MB'",
			"ALTER SYSTEM SET autovacuum_naptime = 30",
			"CREATE EXTENSION postgres_fdw; CREATE SERVER away FOREIGN DATA WRAPPER postgres_fdw",
			"CREATE USER MAPPING FOR app SERVER away OPTIONS (password 's3cret')",
			"SELECT pg_reload_conf()")
		servers[i] = s
	}
	plan := func() (*fingerprint.Plan, [2]database.Catalog) {
		var c [2]database.Catalog
		for i, s := range servers {
			db, err := New().Open(t.Context(), database.URL{Value: s.url("postgres")})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if c[i], err = db.Catalog(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		p, err := fingerprint.NewPlan(c[0], c[1], fingerprint.PlanOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return p, c
	}
	p, c := plan()
	if len(p.Findings) > 0 || len(p.NotCompared) > 0 {
		t.Errorf("two servers made alike, of two versions: %+v, not compared: %+v", p.Findings, p.NotCompared)
	}
	if strings.Contains(fmt.Sprint(c), "s3cret") {
		t.Error("the catalog tells a password")
	}
	servers[1].exec(t, "postgres", "DROP DATABASE stock", "ALTER ROLE app CREATEDB", "ALTER ROLE app RESET work_mem",
		"ALTER SYSTEM RESET autovacuum_naptime", "SELECT pg_reload_conf()", "CREATE ROLE intruder SUPERUSER")
	p, _ = plan()
	var got []string
	for _, f := range p.Findings {
		if !strings.Contains(f.Object, "stock.") {
			got = append(got, f.Class+" "+f.Object)
		}
	}
	slices.Sort(got)
	want := []string{"database missing database stock", "object changed role app", "object extra role intruder", "object missing database stock",
		"object missing setting autovacuum_naptime",
		"object missing settings of role app"}
	if !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}
