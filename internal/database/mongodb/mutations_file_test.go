package mongodb

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/fingerprint"
)

// fileMutations are planted in the stopped clone's file, because no wire lets them through.
func fileMutations() []mutation {
	on := func(class int, name, base string, f func(*testing.T, *damage)) mutation {
		return mutation{class: class, name: name, base: base, offline: f}
	}
	return []mutation{
		on(9, "one missing and another doubled", "orders", func(t *testing.T, d *damage) {
			n := d.pick(2)
			d.file(t, "orders", func(t *testing.T, db *sql.DB, table string) {
				execute(t, db, fmt.Sprintf(`DELETE FROM %q WHERE _ferretdb_sjson->>'_id' = ?`, table), orderID(n[0]))
			})
			double(t, d, orderID(n[1]))
			d.rows("orders", fingerprint.ClassMissing, orderID(n[0]))
			d.rows("orders", fingerprint.ClassDuplicate, orderID(n[1]))
		}),
		on(11, "two documents under one key", "orders", func(t *testing.T, d *damage) {
			i := d.pick(1)[0]
			d.file(t, "orders", func(t *testing.T, db *sql.DB, table string) {
				dropKey(t, db, table)
				double := `INSERT INTO %q (_ferretdb_sjson) SELECT replace(_ferretdb_sjson, '"Utrecht"', '"Amsterdam"') FROM %q
					WHERE _ferretdb_sjson->>'_id' = ?`
				execute(t, db, fmt.Sprintf(double, table, table), orderID(i))
			})
			d.rows("orders", fingerprint.ClassDuplicate, orderID(i))
		}),
		on(11, "two equal documents under one key changed", "doubled", func(t *testing.T, d *damage) {
			d.file(t, "orders", func(t *testing.T, db *sql.DB, table string) {
				update := `UPDATE %q SET _ferretdb_sjson = replace(_ferretdb_sjson, '"Utrecht"', '"Amsterdam"') WHERE _ferretdb_sjson->>'_id' = ?`
				if n := execute(t, db, fmt.Sprintf(update, table), orderID(doubled)); n != 2 {
					t.Fatalf("%d documents were changed", n)
				}
			})
			d.field("orders", fingerprint.ClassValue, "address.city", orderID(doubled), orderID(doubled))
			d.changed("orders", 2)
		}),
		on(15, "0.0 becomes -0.0", "orders", func(t *testing.T, d *damage) {
			i := d.pick(1)[0]
			d.edit(t, i, `"zero":0`, `"zero":-0.0`)
			d.field("orders", fingerprint.ClassRepresentation, "zero", orderID(i))
			d.changed("orders", 1)
		}),
		// FerretDB's validate says "valid" of anything, and integrity_check cannot be reached over the wire: this is what
		// the engine says that it cannot check. What the documents say is still right, and is equal.
		on(33, "an index lacks entries", "orders", func(t *testing.T, d *damage) {
			d.file(t, "orders", func(t *testing.T, db *sql.DB, table string) {
				i := orderID(d.pick(1)[0])
				forgetIndex(t, db, table+"_placed_1", func() {
					moved := fmt.Sprintf(`UPDATE %q SET rowid = (SELECT max(rowid) + 1 FROM %q) WHERE _ferretdb_sjson->>'_id' = ?`, table, table)
					if n := execute(t, db, moved, i); n != 1 {
						t.Fatalf("%d documents were moved", n)
					}
				})
				var verdict string
				if err := db.QueryRow("PRAGMA integrity_check").Scan(&verdict); err != nil || verdict == "ok" {
					t.Fatalf("the index is whole: %q, %v", verdict, err)
				}
			})
		}),
	}
}

// doubled is the order that the base of this name has twice.
const doubled = 1234

// double stores a document a second time.
func double(t *testing.T, d *damage, id string) {
	t.Helper()
	d.file(t, "orders", func(t *testing.T, db *sql.DB, table string) {
		dropKey(t, db, table)
		again := `INSERT INTO %q (_ferretdb_sjson) SELECT _ferretdb_sjson FROM %q WHERE _ferretdb_sjson->>'_id' = ?`
		if n := execute(t, db, fmt.Sprintf(again, table, table), id); n != 1 {
			t.Fatalf("%d documents were doubled", n)
		}
	})
}

// file changes a stopped server's file.
func (d *damage) file(t *testing.T, collection string, change func(t *testing.T, db *sql.DB, table string)) {
	t.Helper()
	path, table := d.table(t, collection)
	db := outside(t, path)
	db.SetMaxOpenConns(1)
	change(t, db, table)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func execute(t *testing.T, db *sql.DB, query string, args ...any) int64 {
	t.Helper()
	r, err := db.Exec(query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	n, err := r.RowsAffected()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// dropKey drops the index that makes _id unique; FerretDB's own list of indexes still has it.
func dropKey(t *testing.T, db *sql.DB, table string) {
	t.Helper()
	execute(t, db, fmt.Sprintf(`DROP INDEX %q`, table+"__id_"))
}

// edit replaces a part of one document's text as FerretDB stores it.
func (d *damage) edit(t *testing.T, i int64, from, to string) {
	t.Helper()
	d.file(t, "orders", func(t *testing.T, db *sql.DB, table string) {
		var text string
		where := fmt.Sprintf(`FROM %q WHERE _ferretdb_sjson->>'_id' = ?`, table)
		if err := db.QueryRow(`SELECT _ferretdb_sjson `+where, orderID(i)).Scan(&text); err != nil {
			t.Fatal(err)
		}
		if strings.Count(text, from) != 1 {
			t.Fatalf("%q is not once in %s", from, text)
		}
		update := fmt.Sprintf(`UPDATE %q SET _ferretdb_sjson = ? WHERE _ferretdb_sjson->>'_id' = ?`, table)
		if n := execute(t, db, update, strings.Replace(text, from, to, 1), orderID(i)); n != 1 {
			t.Fatalf("%d rows were edited", n)
		}
	})
}

// forgetIndex hides an index from SQLite while the table is changed, so that it lacks what was done meanwhile.
func forgetIndex(t *testing.T, db *sql.DB, index string, change func()) {
	t.Helper()
	var row, root int64
	var definition string
	if err := db.QueryRow(`SELECT rowid, rootpage, sql FROM sqlite_schema WHERE name = ?`, index).Scan(&row, &root, &definition); err != nil {
		t.Fatal(err)
	}
	var kind, table string
	if err := db.QueryRow(`SELECT type, tbl_name FROM sqlite_schema WHERE name = ?`, index).Scan(&kind, &table); err != nil {
		t.Fatal(err)
	}
	execute(t, db, `PRAGMA writable_schema = ON`)
	execute(t, db, `DELETE FROM sqlite_schema WHERE name = ?`, index)
	execute(t, db, `PRAGMA writable_schema = RESET`)
	change()
	execute(t, db, `PRAGMA writable_schema = ON`)
	execute(t, db, `INSERT INTO sqlite_schema (type, name, tbl_name, rootpage, sql) VALUES (?, ?, ?, ?, ?)`, kind, index, table, root, definition)
	execute(t, db, `PRAGMA writable_schema = RESET`)
}
