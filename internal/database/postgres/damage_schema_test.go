package postgres

import "fmt"

// schemaDamages are classes 31 to 39: what is not rows, or not in them only.
func (s *suite) schemaDamages() {
	only := func(name, table string, more, plant []string, schema ...string) {
		s.add(damage{name: name, table: table, base: append(ordersTable(table, "PRIMARY KEY"), more...), plant: plant,
			want: map[string][]string{table: nil}, schema: schema})
	}
	only("31 default lost", "c31a", []string{"ALTER TABLE c31a ALTER note SET DEFAULT 'none'"}, []string{"ALTER TABLE c31a ALTER note DROP DEFAULT"},
		"object changed table public.c31a: column note is absent")
	only("31 NOT NULL lost", "c31b", []string{"ALTER TABLE c31b ALTER note SET NOT NULL"}, []string{"ALTER TABLE c31b ALTER note DROP NOT NULL"},
		"object changed table public.c31b: column note is absent")
	only("31 CHECK lost", "c31c", []string{"ALTER TABLE c31c ADD CONSTRAINT positive CHECK (n > 0)"},
		[]string{"ALTER TABLE c31c DROP CONSTRAINT positive"}, "object missing constraint public.c31c.positive")
	only("31 foreign key not valid", "c31d", []string{"ALTER TABLE c31d ADD CONSTRAINT self FOREIGN KEY (n) REFERENCES c31d"},
		[]string{"ALTER TABLE c31d DROP CONSTRAINT self, ADD CONSTRAINT self FOREIGN KEY (n) REFERENCES c31d NOT VALID"},
		"object changed constraint public.c31d.self: definition is")
	trigger := []string{"CREATE FUNCTION c31_t() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
		"CREATE TRIGGER audit BEFORE UPDATE ON c31e FOR EACH ROW EXECUTE FUNCTION c31_t()"}
	only("31 trigger disabled", "c31e", trigger, []string{"ALTER TABLE c31e DISABLE TRIGGER audit"},
		`object changed trigger public.c31e.audit: enabled is "D"`)
	only("31 foreign key's triggers disabled", "c31f", []string{"ALTER TABLE c31f ADD CONSTRAINT self FOREIGN KEY (n) REFERENCES c31f"},
		[]string{"ALTER TABLE c31f DISABLE TRIGGER ALL"},
		`object changed constraint public.c31f.self: disabled triggers is "D"`)
	only("31 body of a view", "c31g", []string{"CREATE VIEW c31g_view AS SELECT id FROM c31g WHERE n > 10"},
		[]string{"CREATE OR REPLACE VIEW c31g_view AS SELECT id FROM c31g WHERE n > 11"},
		"object changed view public.c31g_view: definition is")
	only("31 body of a function", "c31h", []string{"CREATE FUNCTION c31_f() RETURNS int4 LANGUAGE sql AS 'SELECT 1'"},
		[]string{"CREATE OR REPLACE FUNCTION c31_f() RETURNS int4 LANGUAGE sql AS 'SELECT 2'"},
		"object changed function public.c31_f(): definition is")
	only("31 row security on", "c31i", nil, []string{"ALTER TABLE c31i ENABLE ROW LEVEL SECURITY"},
		`object changed table public.c31i: row security is "true"`)
	only("31 policy lost", "c31j", []string{"CREATE POLICY own ON c31j USING (email = current_user)"}, []string{"DROP POLICY own ON c31j"},
		"object missing policy public.c31j.own")
	only("31 grant", "c31k", []string{"GRANT SELECT ON c31k TO reader"}, []string{"REVOKE SELECT ON c31k FROM reader"},
		"object changed table public.c31k: acl is")
	only("31 grant on a column", "c31l", nil, []string{"GRANT SELECT (email) ON c31l TO reader"}, "object changed table public.c31l: column email is")
	only("31 owner", "c31m", nil, []string{"ALTER TABLE c31m OWNER TO somebody"}, "object changed table public.c31m: acl is",
		"object changed index public.c31m_pkey: owner is")

	only("32 index lost", "c32a", []string{"CREATE INDEX c32a_n ON c32a (n)"}, []string{"DROP INDEX c32a_n"}, "object missing index public.c32a_n")
	index := func(name, table, was, is, schema string) {
		only(name, table, []string{"CREATE " + was}, []string{"DROP INDEX " + table + "_x; CREATE " + is},
			"object changed index public."+table+"_x: "+schema)
	}
	index("32 index not unique", "c32b", "UNIQUE INDEX c32b_x ON c32b (n)", "INDEX c32b_x ON c32b (n)", "definition is")
	index("32 index in another order", "c32c", "INDEX c32c_x ON c32c (n, total)", "INDEX c32c_x ON c32c (n, total DESC)", "definition is")
	index("32 index of other columns", "c32d", "INDEX c32d_x ON c32d (n, total)", "INDEX c32d_x ON c32d (total, n)", "definition is")
	index("32 index with a predicate", "c32e", "INDEX c32e_x ON c32e (n)", "INDEX c32e_x ON c32e (n) WHERE n > 0", "definition is")
	index("32 index with another operator class", "c32f", "INDEX c32f_x ON c32f (note)", "INDEX c32f_x ON c32f (note text_pattern_ops)", "definition is")
	only("32 index not valid", "c32g", []string{"CREATE INDEX c32g_n ON c32g (n)"},
		[]string{"UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'c32g_n'::regclass"},
		`object changed index public.c32g_n: valid is "false"`)
	s.placeDamages()
	s.missingDamages()

	s.add(damage{name: "38 a large object changed", table: "pg_largeobject",
		base:  []string{"SELECT lo_from_bytea(16000 + i, decode(repeat(md5(i::text), 200), 'hex')) FROM generate_series(1, 100) AS i"},
		plant: []string{fmt.Sprintf("SELECT lo_put(%d, 100, 'changed')", 16001+s.r.IntN(100))},
		want:  map[string][]string{"pg_largeobject": {"value/data=1"}}})
	only("39 version of a collation", "c39", []string{`CREATE COLLATION c39_c (provider = icu, locale = 'de')`,
		"ALTER TABLE c39 ALTER note TYPE text COLLATE c39_c"},
		[]string{"UPDATE pg_collation SET collversion = '1.2.3' WHERE collname = 'c39_c'"}, `object changed collation public.c39_c: version is "1.2.3"`)
	only("39 version of an extension", "c39b", nil, []string{"UPDATE pg_extension SET extversion = '0.9' WHERE extname = 'pgcrypto'"},
		`object changed extension pgcrypto: version is "0.9"`)
}

// placeDamages are classes 34 to 36: rows in the wrong place, rows that point nowhere, numbers that will be used again.
func (s *suite) placeDamages() {
	half := damageRows / 2
	stray := half + 1 + s.r.IntN(half)
	s.add(damage{name: "34 a row in the wrong partition", table: "c34_1",
		base: []string{"CREATE TABLE c34 (id int8 PRIMARY KEY, note text) PARTITION BY RANGE (id)",
			fmt.Sprintf("CREATE TABLE c34_1 PARTITION OF c34 FOR VALUES FROM (0) TO (%d); CREATE TABLE c34_2 PARTITION OF c34 FOR VALUES FROM (%[1]d) TO (%d)",
				half+1, damageRows+1),
			fmt.Sprintf("INSERT INTO c34 SELECT i, 'note ' || i FROM generate_series(1, %d) AS i", damageRows)},
		plant: []string{"ALTER TABLE c34 DETACH PARTITION c34_1",
			fmt.Sprintf("INSERT INTO c34_1 SELECT * FROM c34_2 WHERE id = %d; DELETE FROM c34_2 WHERE id = %[1]d", stray),
			fmt.Sprintf("ALTER TABLE c34_1 ADD CONSTRAINT trust CHECK (id IS NOT NULL AND id >= 0 AND id < %d) NOT VALID", half+1),
			"UPDATE pg_constraint SET convalidated = true WHERE conname = 'trust'",
			fmt.Sprintf("ALTER TABLE c34 ATTACH PARTITION c34_1 FOR VALUES FROM (0) TO (%d)", half+1),
			"ALTER TABLE c34_1 DROP CONSTRAINT trust"},
		want: map[string][]string{"c34_1": {"extra/=1"}, "c34_2": {"missing/=1"}}, keys: []string{fmt.Sprint(stray)}})
	orphan := s.id()
	s.add(damage{name: "35 an orphan", table: "c35", base: append(ordersTable("c35", "PRIMARY KEY"),
		"CREATE TABLE c35_lines (id int8 PRIMARY KEY, parent int8 REFERENCES c35)",
		"INSERT INTO c35_lines SELECT id, id FROM c35"), plant: []string{"SET session_replication_role = replica; " + remove("c35", orphan)},
		want: map[string][]string{"c35": {"missing/=1"}, "c35_lines": nil}, keys: []string{fmt.Sprint(orphan)}})
	s.add(damage{name: "36 a sequence behind its column", table: "c36",
		base: []string{"CREATE TABLE c36 (id int8 PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY, note text)",
			fmt.Sprintf("INSERT INTO c36 (note) SELECT 'note ' || i FROM generate_series(1, %d) AS i", damageRows)},
		plant: []string{"SELECT setval('c36_id_seq', 10)"},
		want:  map[string][]string{"c36": nil}, schema: []string{`object changed sequence public.c36_id_seq: last value is "10", was "5000"`}})
}

// missingDamages are class 37.
func (s *suite) missingDamages() {
	s.add(damage{name: "37 a relation missing", table: "c37a", plant: []string{"DROP TABLE c37a"},
		schema: []string{"relation missing relation control.public.c37a", "object missing table public.c37a",
			"object missing index public.c37a_pkey", "object missing constraint public.c37a.c37a_pkey"}})
	s.rows("37 a relation empty", "c37b", []string{"TRUNCATE c37b"}, nil, fmt.Sprintf("missing/=%d", damageRows))
	s.add(damage{name: "37 a relation renamed by case", table: "c37c", plant: []string{`ALTER TABLE c37c RENAME TO "C37c"`},
		schema: []string{"relation respelled relation control.public.c37c",
			"object missing table public.c37c", "object extra table public.C37c", "object missing constraint public.c37c.c37c_pkey",
			"object extra constraint public.C37c.c37c_pkey",
			"object changed index public.c37c_pkey: definition is"}})
	s.add(damage{name: "37 a schema missing", table: "c37d", base: []string{"CREATE SCHEMA c37; CREATE TABLE c37.c37d AS SELECT 1 AS a"},
		plant:  []string{"DROP SCHEMA c37 CASCADE"},
		schema: []string{"relation missing relation control.c37.c37d", "object missing table c37.c37d", "object missing schema c37"}})
}

// harmless is class 41: what changes storage but no content must not be found.
func (s *suite) harmless() {
	none := func(name, table string, more []string, plant ...string) {
		s.add(damage{name: name, table: table, base: append(ordersTable(table, "PRIMARY KEY"), more...), plant: plant,
			want: map[string][]string{table: nil}})
	}
	none("41 VACUUM FULL", "c41a", nil, remove("c41a", 0), "VACUUM FULL c41a")
	none("41 CLUSTER", "c41b", nil, "CLUSTER c41b USING c41b_pkey", "ANALYZE c41b")
	none("41 REINDEX", "c41c", nil, "REINDEX TABLE c41c", "REINDEX TABLE CONCURRENTLY c41c")
	none("41 reload in reverse", "c41d", nil, "CREATE TABLE c41d_kept AS SELECT * FROM c41d ORDER BY id DESC", "TRUNCATE c41d",
		"INSERT INTO c41d SELECT * FROM c41d_kept", "DROP TABLE c41d_kept")
	none("41 storage and compression", "c41e", nil,
		"ALTER TABLE c41e ALTER note SET STORAGE EXTERNAL, ALTER blob SET COMPRESSION pglz, ALTER note SET STATISTICS 10", "UPDATE c41e SET note = note")
	// The table is made anew with its columns in another order, as a restore of a dump written by hand does.
	none("41 another order of columns", "c41f", nil,
		`CREATE TABLE c41f_new (note text, id int8, blob bytea, email text, placed timestamptz, weight float8,
			total numeric, docb jsonb, doc json, span interval, tags int4[], n int4)`,
		"INSERT INTO c41f_new (id, email, placed, total, weight, note, doc, docb, tags, span, blob, n) SELECT * FROM c41f", "DROP TABLE c41f",
		"ALTER TABLE c41f_new RENAME TO c41f",
		"ALTER TABLE c41f ADD CONSTRAINT c41f_pkey PRIMARY KEY (id)")
	none("41 a dropped column", "c41g", nil, "ALTER TABLE c41g ADD gone text DEFAULT 'x'", "ALTER TABLE c41g DROP gone")
	none("41 rows that were rolled back", "c41h", nil, "BEGIN; "+fillOrders("c41h", 9000, 9999)+"; "+remove("c41h", 1, 2, 3)+"; ROLLBACK")
	s.add(damage{name: "41 an enum made anew", table: "c41i",
		base: []string{"CREATE TYPE c41i_mood AS ENUM ('sad', 'happy'); CREATE TABLE c41i (id int8 PRIMARY KEY, mood c41i_mood, moods c41i_mood[])",
			fmt.Sprintf("INSERT INTO c41i SELECT i, 'sad', '{happy}' FROM generate_series(1, %d) AS i", damageRows)},
		plant: []string{"ALTER TYPE c41i_mood RENAME TO c41i_old; CREATE TYPE c41i_mood AS ENUM ('sad', 'happy')",
			"ALTER TABLE c41i ALTER mood TYPE c41i_mood USING mood::text::c41i_mood, ALTER moods TYPE c41i_mood[] USING moods::text[]::c41i_mood[]",
			"DROP TYPE c41i_old"},
		want: map[string][]string{"c41i": nil}})
}
