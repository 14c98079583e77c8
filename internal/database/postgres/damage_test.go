package postgres

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fingerprint"
)

// damageRows is how many rows every table of the suite has.
const damageRows = 5000

// damage is one row of the suite: a table of its own in two databases that begin alike, and what is done to the target's.
// Every statement is one that people or programs really run, or an edit of a catalog where the damage needs it.
type damage struct {
	name    string // begins with the number of its class
	table   string
	base    []string // makes the table; orders where there is none
	control []string // done to the source only
	plant   []string // done to the target only
	want    map[string][]string
	keys    []string // of all differing rows, where they have an integer key
	pattern string
	schema  []string // differences of the schema: class, object and, after a colon, the begin of the message
}

// suite makes the damages of one seed.
type suite struct {
	r    *rand.Rand
	list []damage
}

// ids draws different ids of orders.
func (s *suite) ids(n int) []int {
	ids := s.r.Perm(damageRows)[:n]
	for i := range ids {
		ids[i]++
	}
	return ids
}

// id draws one id.
func (s *suite) id() int { return s.ids(1)[0] }

// add adds a damage to a table of orders, unless it brings its own.
func (s *suite) add(d damage) {
	if d.base == nil {
		d.base = ordersTable(d.table, "PRIMARY KEY")
	}
	s.list = append(s.list, d)
}

// rows adds a damage that shows in its own table only.
func (s *suite) rows(name, table string, plant []string, keys []int, want ...string) {
	d := damage{name: name, table: table, plant: plant, want: map[string][]string{table: want}}
	for _, k := range keys {
		d.keys = append(d.keys, fmt.Sprint(k))
	}
	s.add(d)
}

// ordersTable makes the table that most damages are planted in. Rows lie in another order than their keys'.
func ordersTable(name, key string) []string {
	return []string{fmt.Sprintf(`CREATE TABLE %s (id int8 %s, email text, placed timestamptz, total numeric, weight float8, note text, doc json,
		docb jsonb,
		tags int4[], span interval, blob bytea, n int4)`, name, key), fillOrders(name, 1, damageRows)}
}

func fillOrders(name string, from, to int) string {
	return fmt.Sprintf(`INSERT INTO %s SELECT i, 'user' || i || '@example.com', timestamptz '2025-03-30 12:00+00' + i * interval '1 minute', i * 1.25,
		i / 8.0, 'note ' || i,
		json_build_object('a', i, 'b', i + 1), jsonb_build_object('a', i), ARRAY[i, i + 1], i * interval '1 hour', decode(md5(i::text), 'hex'), i
		FROM generate_series(%d, %d) AS i ORDER BY md5(i::text)`, name, from, to)
}

func update(table, set string, ids ...int) string {
	return fmt.Sprintf("UPDATE %s SET %s WHERE id IN (%s)", table, set, join64(ids))
}

func remove(table string, ids ...int) string {
	return fmt.Sprintf("DELETE FROM %s WHERE id IN (%s)", table, join64(ids))
}

func join64(ids []int) string {
	var parts []string
	for _, i := range ids {
		parts = append(parts, fmt.Sprint(i))
	}
	return strings.Join(parts, ", ")
}

// TestDamage plants every class and compares. The report, read from its JSON, must be exactly what was planted.
func TestDamage(t *testing.T) {
	h := newHarness(t, "-c", "fsync=off", "-c", "autovacuum=off")
	seeds := []uint64{1}
	if os.Getenv("SLUICE_LONG") != "" {
		seeds = []uint64{1, 2, 3}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			s := &suite{r: rand.New(rand.NewPCG(seed, 0))}
			s.rowDamages()
			s.valueDamages()
			s.schemaDamages()
			s.harmless()
			server := h.start(t, h.bin.new, []string{freshData(t, h.bin)}, nil)
			makeAlike(t, server, s.list)
			undamaged(t, server)
			for _, d := range s.list {
				server.exec(t, "control", d.control...)
				server.exec(t, "target", d.plant...)
			}
			report, differences := compareDatabases(t, server, "control", "target")
			checkReport(t, s.list, report, differences)
			if seed == 1 {
				otherMethods(t, server, s.list)
			}
		})
	}
}

// makeAlike makes both databases.
func makeAlike(t *testing.T, s *instance, list []damage) {
	t.Helper()
	s.exec(t, "postgres", "CREATE ROLE somebody; CREATE ROLE reader", "CREATE DATABASE base")
	s.exec(t, "base", "CREATE EXTENSION pgcrypto", "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
	for _, d := range list {
		s.exec(t, "base", d.base...)
	}
	s.exec(t, "base", "ANALYZE")
	for _, db := range []string{"control", "target"} {
		s.exec(t, "postgres", "CREATE DATABASE "+db+" TEMPLATE base")
	}
}

// undamaged compares what was made alike, each time with another seed: never a finding.
func undamaged(t *testing.T, s *instance) {
	t.Helper()
	runs := 1
	if os.Getenv("SLUICE_LONG") != "" {
		runs = 20 // for each of three seeds
	}
	for range runs {
		r, _ := compareDatabases(t, s, "control", "target")
		if r.Verdict != fingerprint.Equal || len(r.NotCompared) > 0 {
			t.Fatalf("undamaged twins are %s: %s, not compared: %+v", r.Verdict, r.Reason, r.NotCompared)
		}
	}
}

// compareDatabases compares two databases of one server.
func compareDatabases(t testing.TB, s *instance, a, b string) (*fingerprint.Report, []fingerprint.Difference) {
	t.Helper()
	e := New(OneDatabase())
	var servers [2]database.Server
	var catalogs [2]database.Catalog
	for i, name := range []string{a, b} {
		db, err := e.Open(t.Context(), database.URL{Value: s.url(name)})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if catalogs[i], err = db.Catalog(t.Context()); err != nil {
			t.Fatal(err)
		}
		servers[i] = db
	}
	plan, err := fingerprint.NewPlan(catalogs[0], catalogs[1], fingerprint.PlanOptions{Databases: map[string]string{a: b}})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	r, err := fingerprint.Compare(t.Context(), fingerprint.Options{Source: fingerprint.Side{Server: servers[0]},
		Target: fingerprint.Side{Server: servers[1]}, Plan: plan,
		Seed: fingerprint.NewSeed(), Workers: 2, SpillDir: t.TempDir(), Differences: &out})
	if err != nil {
		t.Fatal(err)
	}
	var list []fingerprint.Difference
	for d := json.NewDecoder(&out); d.More(); {
		var x fingerprint.Difference
		if err := d.Decode(&x); err != nil {
			t.Fatal(err)
		}
		list = append(list, x)
	}
	return r, list
}

// checkReport holds a report against all that was planted.
func checkReport(t *testing.T, list []damage, report *fingerprint.Report, differences []fingerprint.Difference) {
	t.Helper()
	raw, err := json.Marshal(report)
	if err != nil {
		t.Fatal(err)
	}
	var r fingerprint.Report // as a reader of the JSON sees it
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	if r.Verdict != fingerprint.Different {
		t.Errorf("verdict %s: %s", r.Verdict, r.Reason)
	}
	if len(r.NotCompared) > 0 {
		t.Errorf("not compared: %v", r.NotCompared)
	}
	tables := map[string]fingerprint.TableReport{}
	for _, x := range r.Tables {
		tables[x.Name.Relation] = x
	}
	keys := map[string][]string{}
	for _, d := range differences {
		keys[d.Relation.Relation] = append(keys[d.Relation.Relation], d.Key)
	}
	schema := map[string]database.Finding{}
	for _, f := range r.Schema {
		schema[f.Class+" "+f.Object] = f
	}
	expected := map[string]bool{}
	for _, d := range list {
		t.Run(d.name, func(t *testing.T) {
			for relation, want := range d.want {
				expected[relation] = true
				checkTable(t, tables[relation], want, d.pattern)
			}
			if len(d.keys) > 0 {
				got := slices.Clone(keys[d.table])
				slices.Sort(got)
				slices.Sort(d.keys)
				if !slices.Equal(got, d.keys) {
					t.Errorf("the differing rows are %v, want %v", got, d.keys)
				}
			}
			for _, want := range d.schema {
				object, message, _ := strings.Cut(want, ": ")
				f, ok := schema[object]
				delete(schema, object)
				if !ok || !strings.HasPrefix(f.Message, message) {
					t.Errorf("schema: want %q, found %+v", want, f)
				}
			}
		})
	}
	for name, x := range tables {
		if !expected[name] && x.Verdict != fingerprint.Equal {
			t.Errorf("%s differs, and nothing was planted in it: %v", name, classes(x))
		}
	}
	for _, f := range schema {
		t.Errorf("a difference of the schema that nobody planted: %+v", f)
	}
}

// classes lists what was found in a table as class/column=count.
func classes(x fingerprint.TableReport) []string {
	var out []string
	for _, c := range x.Classes {
		out = append(out, fmt.Sprintf("%s/%s=%d", c.Class, c.Column, c.Count))
	}
	slices.Sort(out)
	return out
}

func checkTable(t *testing.T, x fingerprint.TableReport, want []string, pattern string) {
	t.Helper()
	verdict := fingerprint.Different
	if len(want) == 0 {
		verdict = fingerprint.Equal
	}
	if x.Verdict != verdict {
		t.Errorf("%s is %s %s, want %s", x.Name, x.Verdict, x.Note, verdict)
	}
	want = slices.Clone(want)
	slices.Sort(want)
	if got := classes(x); !slices.Equal(got, want) {
		t.Errorf("%s: found %v, want %v", x.Name, got, want)
	}
	if pattern == "" {
		return
	}
	if p := x.Classes[0].Pattern; p == nil || !p.Constant || p.Text != pattern {
		t.Errorf("pattern %+v, want %s", p, pattern)
	}
}
