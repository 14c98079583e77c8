package postgres

import (
	"fmt"
	"strings"
)

// rowDamages are classes 1 to 12: rows, keys and what belongs to which.
func (s *suite) rowDamages() {
	even := s.ids(2 * (1 + s.r.IntN(200)))
	s.add(damage{name: "1 an even number of rows + 1 h", table: "c01", plant: []string{update("c01", "placed = placed + interval '1 hour'", even...)},
		want: map[string][]string{"c01": {fmt.Sprintf("value/placed=%d", len(even))}}, keys: texts(even), pattern: "+1h0m0s"})

	// Rows of equal length in all columns, so that what is known of other checksums shows.
	two := []int{1000 + 8*s.r.IntN(200), 2608 + 8*s.r.IntN(200)}
	s.rows("2 values of two rows swapped", "c02", []string{fmt.Sprintf(
		"UPDATE c02 a SET email = b.email FROM c02 b WHERE (a.id, b.id) IN ((%d, %d), (%[2]d, %[1]d))", two[0], two[1])}, two, "value/email=2")

	const rest = "email, placed, total, weight, note, doc, docb, tags, span, blob, n"
	s.rows("2 all values of two rows swapped", "c02b", []string{fmt.Sprintf(
		"UPDATE c02b a SET (%s) = (b.%s) FROM c02b b WHERE (a.id, b.id) IN ((%d, %d), (%[4]d, %[3]d))",
		rest, strings.ReplaceAll(rest, ", ", ", b."), two[0], two[1])}, two,
		"value/blob=2", "value/doc=2", "value/docb=2", "value/email=2", "value/n=2", "value/note=2", "value/placed=2", "value/span=2",
		"value/tags=2", "value/total=2", "value/weight=2")

	one := s.id()
	s.rows("3 two columns of one row swapped", "c03", []string{update("c03", "email = note, note = email", one)}, []int{one}, "value/email=1",
		"value/note=1")

	s.rows("4 one column rotated over all rows", "c04", []string{`UPDATE c04 a SET note = coalesce(b.note, (SELECT note
		FROM c04 ORDER BY id DESC LIMIT 1))
		FROM (SELECT id, lag(note) OVER (ORDER BY id) AS note FROM c04) b WHERE a.id = b.id`}, nil, fmt.Sprintf("value/note=%d", damageRows))

	middle := 2 + s.r.IntN(damageRows-2)
	s.rows("5 rows missing: first, middle and last by key", "c05a", []string{remove("c05a", 1, middle, damageRows)}, []int{1, middle, damageRows},
		"missing/=3")
	s.rows("5 the last row by storage missing", "c05b", []string{"DELETE FROM c05b WHERE ctid = (SELECT max(ctid) FROM c05b)"}, nil, "missing/=1")
	s.add(damage{name: "5 the only row missing", table: "c05c",
		base:  []string{"CREATE TABLE c05c (id int8 PRIMARY KEY, note text); INSERT INTO c05c VALUES (1, 'alone')"},
		plant: []string{"DELETE FROM c05c"}, want: map[string][]string{"c05c": {"missing/=1"}}, keys: []string{"1"}})
	s.rows("6 a tail of 1,000 missing", "c06", []string{fmt.Sprintf("DELETE FROM c06 WHERE id > %d", damageRows-1000)}, nil, "missing/=1000")
	s.rows("7 row added", "c07", []string{fillOrders("c07", damageRows+10, damageRows+10)}, []int{damageRows + 10}, "extra/=1")

	s.keylessDamages()

	key := s.id()
	s.rows("10 a key changed, the rest equal", "c10", []string{update("c10", fmt.Sprintf("id = %d", damageRows+77), key)}, []int{key}, "key changed/=1")

	double := s.id()
	s.rows("11 two rows under one unique key", "c11", []string{"UPDATE pg_index SET indisready = false WHERE indexrelid = 'c11_pkey'::regclass",
		fmt.Sprintf("INSERT INTO c11 SELECT id, 'other', placed, total, weight, note, doc, docb, tags, span, blob, n FROM c11 WHERE id = %d", double),
		"UPDATE pg_index SET indisready = true WHERE indexrelid = 'c11_pkey'::regclass"}, []int{double}, "duplicate/=1")

	// Both are in one bucket, where XOR would make nothing of them before and after. The index has only one of them, so that
	// the update must not use it.
	twice := s.id()
	ready := func(ready bool) string {
		return fmt.Sprintf("UPDATE pg_index SET indisready = %t WHERE indexrelid = 'c11b_pkey'::regclass", ready)
	}
	s.add(damage{name: "11 two equal rows under one unique key changed", table: "c11b",
		base:  append(ordersTable("c11b", "PRIMARY KEY"), ready(false), fmt.Sprintf("INSERT INTO c11b SELECT * FROM c11b WHERE id = %d", twice), ready(true)),
		plant: []string{ready(false), fmt.Sprintf("UPDATE c11b SET note = 'other' WHERE id + 0 = %d", twice), ready(true)}, want: map[string][]string{"c11b": {"value/note=2"}},
		keys: texts([]int{twice, twice})})

	prefix := strings.Repeat("p", 190)
	s.add(damage{name: "12 columns of a key shifted", table: "c12a", base: []string{"CREATE TABLE c12a (a text, b text, v int4, PRIMARY KEY (a, b))",
		fmt.Sprintf("INSERT INTO c12a SELECT '%s' || i, 'bc', i FROM generate_series(1, %d) AS i", prefix, damageRows),
		"INSERT INTO c12a VALUES ('a', 'bc', 0)"},
		plant: []string{"UPDATE c12a SET a = 'ab', b = 'c' WHERE a = 'a'"}, want: map[string][]string{"c12a": {"key changed/=1"}}})
	long := s.ids(2)
	s.add(damage{name: "12 keys of 200 bytes with a common prefix", table: "c12b", base: []string{"CREATE TABLE c12b (k text PRIMARY KEY, v int4)",
		fmt.Sprintf("INSERT INTO c12b SELECT '%s' || lpad(i::text, 10, '0'), i FROM generate_series(1, %d) AS i", prefix, damageRows)},
		plant: []string{fmt.Sprintf("UPDATE c12b SET v = -v WHERE v = %d; DELETE FROM c12b WHERE v = %d", long[0], long[1])},
		want:  map[string][]string{"c12b": {"missing/=1", "value/v=1"}},
		keys:  []string{fmt.Sprintf("%s%010d", prefix, long[0]), fmt.Sprintf("%s%010d", prefix, long[1])}})
}

// keylessDamages are classes 8 and 9: rows that are nothing but themselves.
func (s *suite) keylessDamages() {
	again := func(table string, id int) string {
		return fmt.Sprintf("INSERT INTO %s SELECT * FROM %[1]s WHERE id = %d", table, id)
	}
	one := func(table string, id int) string {
		return fmt.Sprintf("DELETE FROM %s WHERE ctid = (SELECT min(ctid) FROM %[1]s WHERE id = %d)", table, id)
	}
	// Rows of columns without an order cannot be compared by the server, so that json stays out.
	table := func(name string, more ...string) []string {
		return append([]string{fmt.Sprintf("CREATE TABLE %s (id int8, note text, v float8)", name),
			fmt.Sprintf("INSERT INTO %s SELECT i, 'note ' || i, i / 3.0 FROM generate_series(1, %d) AS i", name, damageRows)}, more...)
	}
	add := func(name, t string, base, plant []string, want ...string) {
		s.add(damage{name: name, table: t, base: base, plant: plant, want: map[string][]string{t: want}})
	}
	id := s.ids(4)
	add("8 keyless 1 to 2", "c08a", table("c08a"), []string{again("c08a", id[0])}, "duplicate/=1")
	triple := fmt.Sprintf("INSERT INTO c08b SELECT c08b.* FROM c08b, generate_series(1, 2) WHERE id = %d", id[1])
	add("8 keyless 1 to 3", "c08b", table("c08b"), []string{triple}, "duplicate/=2")
	add("8 keyless 2 to 0", "c08c", table("c08c", again("c08c", id[2])), []string{one("c08c", id[2]), one("c08c", id[2])}, "missing/=2")
	other := id[3]%damageRows + 1
	add("9 one missing and another doubled", "c09", table("c09"), []string{one("c09", id[3]), again("c09", other)}, "duplicate/=1", "missing/=1")
	add("9 keyless change", "c09b", table("c09b"), []string{fmt.Sprintf("UPDATE c09b SET v = -1 WHERE id = %d", id[0])}, "extra/=1", "missing/=1")
}

func texts(ids []int) []string {
	var out []string
	for _, i := range ids {
		out = append(out, fmt.Sprint(i))
	}
	return out
}

// valueDamages are classes 13 to 30: values.
func (s *suite) valueDamages() {
	id := s.ids(8)
	// set puts values into rows of the base and other ones into the target's.
	set := func(name, table, column string, want []string, pairs ...string) {
		d := damage{name: name, table: table, base: ordersTable(table, "PRIMARY KEY"), want: map[string][]string{table: want}}
		for i := 0; i < len(pairs); i += 2 {
			d.base = append(d.base, update(table, column+" = "+pairs[i], id[i/2]))
			d.plant = append(d.plant, update(table, column+" = "+pairs[i+1], id[i/2]))
			d.keys = append(d.keys, fmt.Sprint(id[i/2]))
		}
		s.add(d)
	}
	set("13 NULL, 'NULL' and ''", "c13", "note", []string{"null/note=3", "value/note=1"}, "NULL", "'NULL'", "NULL", "''", "'NULL'", "''", "''", "NULL")
	s.add(damage{name: "14 delimiter and NULL shift between columns", table: "c14",
		base: []string{"CREATE TABLE c14 (id int8 PRIMARY KEY, a text, b text)",
			fmt.Sprintf("INSERT INTO c14 SELECT i, 'a' || i, 'b' || i FROM generate_series(1, %d) AS i", damageRows),
			update("c14", "a = 'x,', b = 'y'", id[0]),
			update("c14", "a = NULL, b = 'a'", id[1])},
		plant: []string{update("c14", "a = 'x', b = ',y'", id[0]), update("c14", "a = 'a', b = NULL", id[1])},
		want:  map[string][]string{"c14": {"truncated/a=1", "value/b=1", "null/a=1", "null/b=1"}}, keys: texts(id[:2])})
	set("15 0.0 to -0.0", "c15", "weight", []string{"representation/weight=1"}, "'0.0'", "'-0.0'")
	set("16 NaN, infinities and the last bit of a float", "c16", "weight", []string{"value/weight=3"}, "1", "'NaN'", "'Infinity'", "'-Infinity'", "0.1",
		"0.10000000000000002")
	set("17 1.0 to 1.00 as numeric", "c17a", "total", []string{"representation/total=1"}, "1.0", "1.00")
	set("17 1.0 to 1.00 in jsonb", "c17b", "docb", []string{"representation/docb=1"}, `'{"a": 1.0}'`, `'{"a": 1.00}'`)
	s.add(damage{name: "18 integer to text", table: "c18a", plant: []string{"ALTER TABLE c18a ALTER n TYPE text"},
		want:   map[string][]string{"c18a": {fmt.Sprintf("type/n=%d", damageRows)}},
		schema: []string{"column type column control.public.c18a.n: is text, was integer"}})
	s.add(damage{name: "18 int4 to int8 keeps its values", table: "c18b",
		plant: []string{"ALTER TABLE c18b ALTER n TYPE int8", update("c18b", "n = n + 5000000000", id[0])},
		want:  map[string][]string{"c18b": {"value/n=1"}}, keys: texts(id[:1]),
		schema: []string{"column type column control.public.c18b.n: is bigint, was integer"}})
	s.add(damage{name: "19 2^53+1 through float8", table: "c19",
		base: append(ordersTable("c19", "PRIMARY KEY"), "ALTER TABLE c19 ADD big int8", "UPDATE c19 SET big = 9007199254740992 + 2 * n",
			update("c19", "big = 9007199254740993", id[0])), plant: []string{"UPDATE c19 SET big = big::float8::int8"},
		want: map[string][]string{"c19": {"value/big=1"}}, keys: texts(id[:1])})
	set("20 order of fields in json", "c20", "doc", []string{"order/doc=1"}, `'{"a":1,"b":2}'`, `'{"b":2,"a":1}'`)
	set("21 arrays", "c21", "tags", []string{"null/tags=2", "order/tags=1", "representation/tags=1", "value/tags=1"},
		"'{1,2}'", "'{2,1}'", "'{}'", "NULL", "NULL", "'{}'", "'{1,2}'", "'[0:1]={1,2}'", "'{1,2}'", "'{{1,2}}'")
	set("22 spelling and encoding", "c22", "note", []string{"encoding/note=2", "spelling/note=2"},
		"'a'", "'a '", `E'Zo\u00EB'`, `E'Zoe\u0308'`, `E'Zo\u00EB'`, `E'Zo\uFFFD'`,
		`E'Zo\u00EB'`, `convert_from(convert_to(convert_from(convert_to(E'Zo\u00EB', 'UTF8'), 'LATIN1'), 'UTF8'), 'UTF8')`)
	s.add(damage{name: "23 case under a blind collation", table: "c23a",
		base:  append(ordersTable("c23a", "PRIMARY KEY"), "ALTER TABLE c23a ALTER note TYPE text COLLATE blind"),
		plant: []string{update("c23a", "note = upper(note)", id[0])}, want: map[string][]string{"c23a": {"spelling/note=1"}}, keys: texts(id[:1])})
	s.add(damage{name: "23 case of a key under a blind collation", table: "c23b",
		base: []string{"CREATE TABLE c23b (k text COLLATE blind PRIMARY KEY, v int4)",
			fmt.Sprintf("INSERT INTO c23b SELECT 'key ' || i, i FROM generate_series(1, %d) AS i", damageRows)},
		plant: []string{fmt.Sprintf("UPDATE c23b SET k = upper(k) WHERE v = %d", id[0])}, want: map[string][]string{"c23b": {"key respelled/=1"}}})
	set("24 the last byte of 8 MB", "c24", "blob", []string{"value/blob=1"}, "decode(repeat('0123456789abcdef', 1048576), 'hex')",
		"decode(substr(repeat('0123456789abcdef', 1048576), 1, 16777214) || 'ee', 'hex')")
	set("25 cut at 255", "c25", "note", []string{"truncated/note=1"}, "repeat('x', 300)", "left(note, 255)")
	set("26 one zero byte", "c26", "blob", []string{"value/blob=1"}, "'\\x61'", "'\\x6100'")
	set("27 instants", "c27", "placed", []string{"value/placed=3"}, "'2025-03-30 12:00:00.123456+00'", "date_trunc('milliseconds', placed)",
		"'2025-07-01 12:00+00'", "(placed AT TIME ZONE 'UTC') AT TIME ZONE 'Europe/Berlin'", "'infinity'", "'9999-12-31 23:59:59+00'")
	set("28 a month or 30 days", "c28", "span", []string{"value/span=1"}, "'1 month'", "'30 days'")
	s.add(damage{name: "29 an enum's label renamed", table: "c29",
		base: []string{"CREATE TYPE c29_mood AS ENUM ('sad', 'happy')", "CREATE TABLE c29 (id int8 PRIMARY KEY, mood c29_mood)",
			fmt.Sprintf("INSERT INTO c29 SELECT i, CASE WHEN i %% 10 = 0 THEN 'happy' ELSE 'sad' END::c29_mood FROM generate_series(1, %d) AS i", damageRows)},
		plant:  []string{"ALTER TYPE c29_mood RENAME VALUE 'happy' TO 'glad'"},
		want:   map[string][]string{"c29": {fmt.Sprintf("value/mood=%d", damageRows/10)}},
		schema: []string{"object changed type public.c29_mood: labels is"}})
	s.staleDamages(id)
}

// staleDamages are class 30: what was computed once and should have been computed again.
func (s *suite) staleDamages(id []int) {
	s.add(damage{name: "30 a stale generated column", table: "c30a",
		base: append([]string{"CREATE FUNCTION c30_f(int4) RETURNS int4 IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2'"},
			append(ordersTable("c30a", "PRIMARY KEY"), "ALTER TABLE c30a ADD twice int4 GENERATED ALWAYS AS (c30_f(n)) STORED")...),
		plant: []string{"CREATE OR REPLACE FUNCTION c30_f(int4) RETURNS int4 IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 3'",
			update("c30a", "n = n", id[0], id[1])},
		want: map[string][]string{"c30a": {"value/twice=2"}}, keys: texts(id[:2]),
		schema: []string{"object changed function public.c30_f(integer): definition is"}})
	refreshed := update("c30b", "note = 'new'", id[0], id[1])
	s.add(damage{name: "30 a materialised view that was not refreshed", table: "c30b",
		base:    append(ordersTable("c30b", "PRIMARY KEY"), "CREATE MATERIALIZED VIEW c30b_view AS SELECT id, note FROM c30b"),
		control: []string{refreshed, "REFRESH MATERIALIZED VIEW c30b_view"}, plant: []string{refreshed},
		want: map[string][]string{"c30b": nil, "c30b_view": {"extra/=2", "missing/=2"}}})
}
