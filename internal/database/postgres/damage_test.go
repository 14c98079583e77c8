package postgres

import (
	"bytes"
	"context"
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
			report, differences := compareDatabases(t, server, "control", "target", fingerprint.Compare)
			checkReport(t, s.list, see(t, report, differences))
			if seed == 1 {
				ablations(t, server, s.list)
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
		r, _ := compareDatabases(t, s, "control", "target", fingerprint.Compare)
		if r.Verdict != fingerprint.Equal || len(r.NotCompared) > 0 {
			t.Fatalf("undamaged twins are %s: %s, not compared: %+v", r.Verdict, r.Reason, r.NotCompared)
		}
	}
}

// comparing is Compare, whole or without a part.
type comparing func(context.Context, fingerprint.Options) (*fingerprint.Report, error)

// compareDatabases compares two databases of one server.
func compareDatabases(t testing.TB, s *instance, a, b string, compare comparing) (*fingerprint.Report, []fingerprint.Difference) {
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
	r, err := compare(t.Context(), fingerprint.Options{Source: fingerprint.Side{Server: servers[0]},
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

// seen is a report as a reader of its JSON sees it, by what the suite asks for.
type seen struct {
	report fingerprint.Report
	tables map[string]fingerprint.TableReport
	keys   map[string][]string // of the differing rows, by relation
	schema map[string]database.Finding
}

func see(t *testing.T, report *fingerprint.Report, differences []fingerprint.Difference) *seen {
	t.Helper()
	raw, err := json.Marshal(report)
	if err != nil {
		t.Fatal(err)
	}
	s := &seen{tables: map[string]fingerprint.TableReport{}, keys: map[string][]string{}, schema: map[string]database.Finding{}}
	if err := json.Unmarshal(raw, &s.report); err != nil {
		t.Fatal(err)
	}
	for _, x := range s.report.Tables {
		s.tables[x.Name.Relation] = x
	}
	for _, d := range differences {
		s.keys[d.Relation.Relation] = append(s.keys[d.Relation.Relation], d.Key)
	}
	for _, f := range s.report.Schema {
		s.schema[f.Class+" "+f.Object] = f
	}
	return s
}

// checkReport holds a report against all that was planted.
func checkReport(t *testing.T, list []damage, s *seen) {
	t.Helper()
	if s.report.Verdict != fingerprint.Different {
		t.Errorf("verdict %s: %s", s.report.Verdict, s.report.Reason)
	}
	if len(s.report.NotCompared) > 0 {
		t.Errorf("not compared: %v", s.report.NotCompared)
	}
	expected := map[string]bool{}
	for i := range list {
		for relation := range list[i].want {
			expected[relation] = true
		}
		t.Run(list[i].name, func(t *testing.T) {
			for _, wrong := range list[i].wrong(s) {
				t.Error(wrong)
			}
		})
	}
	for name, x := range s.tables {
		if !expected[name] && x.Verdict != fingerprint.Equal {
			t.Errorf("%s differs, and nothing was planted in it: %v", name, classes(x))
		}
	}
	for _, f := range s.schema {
		t.Errorf("a difference of the schema that nobody planted: %+v", f)
	}
}

// wrong says where a report is not exactly what was planted. The differences of the schema that it names are taken out of
// what was seen.
func (d *damage) wrong(s *seen) []string {
	var out []string
	for relation, want := range d.want {
		out = append(out, wrongTable(s.tables[relation], want, d.pattern)...)
	}
	if len(d.keys) > 0 {
		got, want := slices.Sorted(slices.Values(s.keys[d.table])), slices.Sorted(slices.Values(d.keys))
		if !slices.Equal(got, want) {
			out = append(out, fmt.Sprintf("the differing rows are %v, want %v", got, want))
		}
	}
	for _, want := range d.schema {
		object, message, _ := strings.Cut(want, ": ")
		f, ok := s.schema[object]
		delete(s.schema, object)
		if !ok || !strings.HasPrefix(f.Message, message) {
			out = append(out, fmt.Sprintf("schema: want %q, found %+v", want, f))
		}
	}
	return out
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

func wrongTable(x fingerprint.TableReport, want []string, pattern string) (out []string) {
	verdict := fingerprint.Different
	if len(want) == 0 {
		verdict = fingerprint.Equal
	}
	if x.Verdict != verdict {
		out = append(out, fmt.Sprintf("%s is %s %s, want %s", x.Name, x.Verdict, x.Note, verdict))
	}
	want = slices.Sorted(slices.Values(want))
	if got := classes(x); !slices.Equal(got, want) {
		out = append(out, fmt.Sprintf("%s: found %v, want %v", x.Name, got, want))
	}
	if got, moved := slices.Sorted(slices.Values(x.Columns)), moved(want); moved != nil && !slices.Equal(got, moved) {
		out = append(out, fmt.Sprintf("%s: the columns %v moved, want %v", x.Name, got, moved))
	}
	if pattern == "" {
		return out
	}
	if len(x.Classes) == 0 || x.Classes[0].Pattern == nil || !x.Classes[0].Pattern.Constant || x.Classes[0].Pattern.Text != pattern {
		out = append(out, fmt.Sprintf("%s: the classes %+v have no pattern %s", x.Name, x.Classes, pattern))
	}
	return out
}

// moved are the columns whose sums differ; nil where whole rows do, which move all of them.
func moved(want []string) []string {
	var out []string
	for _, w := range want {
		_, column, _ := strings.Cut(w, "/")
		column, _, _ = strings.Cut(column, "=")
		if column == "" {
			return nil
		}
		out = append(out, column)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
