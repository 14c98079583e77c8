package postgres

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/database"
)

// values are types with values of each: every value must be distinct from all others of its type in canonical form.
var values = []struct {
	typ, family string
	values      []string
}{
	{"int2", "integer", []string{"0", "-32768", "32767"}},
	{"int4", "integer", []string{"0", "-2147483648", "2147483647"}},
	{"int8", "integer", []string{"0", "9007199254740993", "9007199254740992", "-9223372036854775808"}},
	{"oid", "integer", []string{"0", "4294967295"}},
	{"float4", "float", []string{"0", "-0", "1.1", "NaN", "Infinity", "-Infinity", "1e-40"}},
	{"float8", "float", []string{"0", "-0", "0.1", "0.10000000000000002", "NaN", "Infinity", "-Infinity", "5e-324"}},
	{"numeric", "numeric", []string{"0", "0.00", "1", "1.0", "1.00", "-1.0", "0.0001", "0.00012345", "10000", "100000000", "12345.678", "NaN",
		"Infinity", "-Infinity",
		"99999999999999999999999999999999999999.000000000000000000001", "1e100", "1e-100"}},
	{"bool", "boolean", []string{"t", "f"}},
	{"text", "text", []string{"", "NULL", "a", "a ", "Zoë", "Zoe\u0308", "'", `\`, "a\nb", strings.Repeat("x", 300)}},
	{"varchar(20)", "text", []string{"", "a"}},
	{"char(5)", "text", []string{"a", "b"}},
	{"name", "text", []string{"a", "b"}},
	{`"char"`, "other", []string{"a", "b", ""}},
	{"bytea", "bytes", []string{`\x`, `\x00`, `\x0000`, `\xff`}},
	{"date", "timestamp", []string{"2000-01-01", "1999-12-31", "4713-01-01 BC", "infinity", "-infinity", "9999-12-31"}},
	{"timestamp", "timestamp", []string{"2000-01-01 00:00:00", "2025-03-30 02:30:00.123456", "2025-03-30 02:30:00.123", "infinity", "-infinity",
		"0044-03-15 12:00 BC"}},
	{"timestamptz", "timestamp", []string{"2000-01-01 00:00:00+00", "2000-01-01 00:00:00+01", "9999-12-31 00:00+00", "infinity",
		"294276-12-31 23:59:59.999999+00"}},
	{"interval", "interval", []string{"1 month", "30 days", "720 hours", "-1 day -00:00:00.000001", "0"}},
	{"json", "json", []string{`{"a":1,"b":2}`, `{"b":2,"a":1}`, `{"a": 1,"b":2}`, "null"}},
	{"jsonb", "jsonb", []string{`{"a":1.0}`, `{"a":1.00}`, "null", `"x"`}},
	{"uuid", "uuid", []string{"00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}},
	{"shop.mood", "enum", []string{"sad", "happy"}},
	{"shop.positive", "integer", []string{"1", "2"}},
	{"int4[]", "array", []string{"{}", "{1,2}", "{2,1}", "[0:1]={1,2}", "{{1,2}}", "{NULL,1}"}},
	{"text[]", "array", []string{"{}", `{""}`, "{NULL}", `{"NULL"}`, `{"a,b"}`, "{a,b}", `{"\"","\\"}`}},
	{"shop.mood[]", "array", []string{"{sad}", "{happy}"}},
	{"inet[]", "array", []string{"{}", "{10.0.0.1}", "[5:5]={10.0.0.1}", "{10.0.0.0/8,NULL}"}},
	{"shop.point2", "other", []string{"(1,a)", "(1,)", `(1,"")`, `(,"a b")`, "(,)"}},
	{"shop.place", "other", []string{"(1,10.0.0.1)", "(1,)"}},
	{"inet", "other", []string{"10.0.0.1", "10.0.0.0/8"}},
	{"time", "other", []string{"12:00:00", "12:00:00.000001"}},
	{"timetz", "other", []string{"12:00:00+00", "12:00:00+01"}},
	{"bit(3)", "other", []string{"000", "101"}},
	{"point", "other", []string{"(0,0)", "(-0,0)"}},
	{"int4range", "other", []string{"empty", "[1,5)", "[1,)"}},
	{"tstzrange", "other", []string{`["2000-01-01 00:00:00+00",)`, `["2000-01-01 00:00:00+01",)`}},
	{"int4multirange", "other", []string{"{}", "{[1,3),[5,9)}"}},
	{"money", "other", []string{"1.00", "2.50"}},
	{"xml", "other", []string{"<a/>", "<a></a>"}},
	{"tsvector", "other", []string{"'a':1", "'a'"}},
	{"pg_lsn", "other", []string{"0/0", "1/0"}},
	{"regclass", "other", []string{"pg_class", "shop.kinds"}},
}

// valueTable makes a table of one column of a type, with a key.
func valueTable(i int) string { return fmt.Sprintf("shop.v%d", i) }

func valueServer(t *testing.T) *instance {
	h := newHarness(t, "-c", "fsync=off")
	s := h.start(t, h.bin.new, []string{freshData(t, h.bin)}, nil)
	s.exec(t, "postgres",
		"CREATE SCHEMA shop; CREATE TABLE shop.kinds (); CREATE TYPE shop.mood AS ENUM ('sad', 'happy')",
		"CREATE DOMAIN shop.positive AS int4 CHECK (value > 0)",
		"CREATE TYPE shop.point2 AS (x int4, label text); CREATE TYPE shop.place AS (x int4, address inet)")
	for i, v := range values {
		var rows []string
		for n, x := range append(slices.Clone(v.values), "") {
			text := literal(x)
			if n == len(v.values) {
				text = "NULL"
			}
			rows = append(rows, fmt.Sprintf("(%d, %s::%s)", n, text, v.typ))
		}
		s.exec(t, "postgres", fmt.Sprintf("SET TimeZone = 'UTC'; CREATE TABLE %s (id int4 PRIMARY KEY, v %s); INSERT INTO %[1]s VALUES %[3]s",
			valueTable(i), v.typ, strings.Join(rows, ", ")))
	}
	return s
}

func TestValues(t *testing.T) {
	s := valueServer(t)
	t.Run("read", func(t *testing.T) { readValues(t, s) })
	t.Run("fetched by key", func(t *testing.T) { fetchValues(t, s) })
}

// readValues reads values of every kind of type: none equals another, families are as said, and what is rendered makes
// the same value again.
func readValues(t *testing.T, s *instance) {
	db, err := New().Open(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	c, err := db.Catalog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	opened, err := db.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	for i, want := range values {
		t.Run(want.typ, func(t *testing.T) {
			r, p := relation(t, c, valueTable(i))
			if f := p.Columns[slices.IndexFunc(p.Columns, func(c database.Column) bool { return c.Name == "v" })].Family; string(f) != want.family {
				t.Errorf("family %s", f)
			}
			rows := scan(t, opened, r, p)
			if len(rows) != len(want.values)+1 {
				t.Fatalf("%d rows", len(rows))
			}
			seen := map[string]int{}
			for n, row := range rows {
				if other, ok := seen[row["v"]]; ok {
					t.Errorf("%q and %q have one canonical form", want.values[n], want.values[other])
				}
				seen[row["v"]] = n
				if null := n == len(want.values); database.IsNull([]byte(row["v"])) != null {
					t.Errorf("row %d: %x", n, row["v"])
				}
			}
			if want.typ != "timestamptz" { // one of its values has no text that Go's clock can write
				rendered(t, s, opened, r, p, valueTable(i), want.typ)
			}
		})
	}
}

// rendered writes every row again from its JSON and compares on the server.
func rendered(t *testing.T, s *instance, v database.View, r database.Relation, p *database.Projection, table, typ string) {
	t.Helper()
	var statements []string
	_, err := v.Scan(t.Context(), database.Range{Relation: r}, p, func(row database.Row) error {
		raw, err := v.(database.Renderer).Render(r, p, row)
		if err != nil {
			return err
		}
		var columns map[string]*string
		if err := json.Unmarshal(raw, &columns); err != nil {
			return err
		}
		value := "NULL"
		if x := columns["v"]; x != nil {
			value = literal(*x)
		}
		statements = append(statements, fmt.Sprintf("INSERT INTO again VALUES (%s, %s::%s)", *columns["id"], value, typ))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s.exec(t, "postgres", "SET TimeZone = 'UTC'; CREATE TEMP TABLE again (id int4, v "+typ+"); "+strings.Join(statements, "; ")+
		"; DO $$ BEGIN IF EXISTS (SELECT FROM again a JOIN "+table+" t USING (id) WHERE a.v::text IS DISTINCT FROM t.v::text) THEN RAISE 'differs: %', "+
		"(SELECT string_agg(a.v::text || ' is not ' || t.v::text, '; ') FROM again a JOIN "+table+" t USING (id) "+
		"WHERE a.v::text IS DISTINCT FROM t.v::text); END IF; END $$")
}

// relation finds a relation by schema and name in a catalog, and asks for all its columns.
func relation(t testing.TB, c database.Catalog, name string) (database.Relation, *database.Projection) {
	t.Helper()
	i := slices.IndexFunc(c.Relations, func(r database.Relation) bool { return r.Name.Schema+"."+r.Name.Relation == name })
	if i < 0 {
		t.Fatalf("there is no %s", name)
	}
	r := c.Relations[i]
	p := &database.Projection{Columns: r.Columns}
	for _, k := range r.Key {
		p.Key = append(p.Key, slices.IndexFunc(r.Columns, func(c database.Column) bool { return c.Name == k }))
	}
	return r, p
}

// scan reads a relation whose key is the integer id, by id: canonical values by column.
func scan(t testing.TB, v database.View, r database.Relation, p *database.Projection) map[int]map[string]string {
	t.Helper()
	out := map[int]map[string]string{}
	_, err := v.Scan(t.Context(), database.Range{Relation: r}, p, func(row database.Row) error {
		m := map[string]string{}
		for j, c := range p.Columns {
			m[c.Name] = string(row.Values[j])
		}
		n, _ := database.Number([]byte(m["id"]))
		out[int(n.Num().Int64())] = m
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// fetchValues asks for rows by keys of every type that can be one. It changes the tables.
func fetchValues(t *testing.T, s *instance) {
	for i := range values {
		s.exec(t, "postgres", fmt.Sprintf("DELETE FROM %s WHERE v IS NULL; ALTER TABLE %[1]s DROP COLUMN id", valueTable(i)))
		// Types without an order have no index and so no key.
		_ = s.try("postgres", fmt.Sprintf("ALTER TABLE %s ADD PRIMARY KEY (v)", valueTable(i)))
	}
	db, err := New().Open(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	c, err := db.Catalog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	opened, err := db.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	keyed := 0
	for i, want := range values {
		r, p := relation(t, c, valueTable(i))
		if len(p.Key) == 0 {
			continue
		}
		keyed++
		for _, bytes := range []int64{r.Bytes, smallRelation + 1} { // by the table and by the index
			r.Bytes = bytes
			var keys [][]byte
			_, err := opened.Scan(t.Context(), database.Range{Relation: r}, p, func(row database.Row) error {
				keys = append(keys, slices.Clone(row.Key))
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			// Nobody's: of another family, and beyond the range of most types.
			keys = append(keys, database.AppendKey(nil, database.AppendInteger(nil, 1<<60)), database.AppendKey(nil, database.AppendText(nil, []byte("x'\\"))),
				database.AppendKey(nil, database.AppendEnum(nil, []byte("unknown"))))
			got := 0
			if err := opened.Fetch(t.Context(), r, p, keys, func(database.Row) error { got++; return nil }); err != nil {
				t.Errorf("%s: %v", want.typ, err)
			}
			if got != len(keys)-3 {
				t.Errorf("%s: %d of %d keys were found", want.typ, got, len(keys)-3)
			}
		}
	}
	if keyed < 15 {
		t.Errorf("only %d types have keys", keyed)
	}
}
