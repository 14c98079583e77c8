package postgres

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-cd/sluice/internal/database"
)

// Catalog implements database.Server.
func (s *server) Catalog(ctx context.Context) (database.Catalog, error) {
	var c database.Catalog
	err := s.with(ctx, s.home, func(conn *pgx.Conn) error {
		var err error
		if c.Info, err = describe(ctx, conn); err != nil {
			return s.target.fault(ctx, err, "describing the server")
		}
		c.Databases, c.NotComparable, err = s.databases(ctx, conn)
		if err != nil {
			return s.target.fault(ctx, err, "listing the databases")
		}
		if !s.one {
			err = objects(ctx, conn, clusterQueries(s.version), "", &c)
		}
		return s.target.fault(ctx, err, "reading what belongs to the whole cluster")
	})
	if err != nil {
		return c, err
	}
	for _, name := range c.Databases {
		err := s.with(ctx, name, func(conn *pgx.Conn) error {
			return s.target.fault(ctx, s.read(ctx, conn, name, &c), "reading the catalog of database %s", name)
		})
		if err != nil {
			return c, err
		}
	}
	slices.SortFunc(c.Relations, func(a, b database.Relation) int { return cmp.Compare(a.Name.String(), b.Name.String()) })
	slices.SortFunc(c.Objects, func(a, b database.Object) int { return cmp.Compare(a.Kind+" "+a.Name, b.Kind+" "+b.Name) })
	return c, nil
}

// read adds one database to the catalog. Everything is read in one transaction, so that it fits together.
func (s *server) read(ctx context.Context, conn *pgx.Conn, name string, c *database.Catalog) error {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }() // it only reads
	ts, err := loadTypes(ctx, conn)
	if err != nil {
		return err
	}
	if err := relations(ctx, conn, name, ts, c); err != nil {
		return err
	}
	// Databases without large objects, and that is most, are not burdened with relations that are always empty.
	var large bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_largeobject_metadata)").Scan(&large); err != nil {
		return err
	}
	for _, p := range largeObjects() {
		if !large {
			break
		}
		r, err := p.relation(ctx, conn, name)
		if err != nil {
			return err
		}
		c.Relations = append(c.Relations, r)
	}
	prefix := name + "."
	if s.one {
		prefix = ""
	}
	if err := objects(ctx, conn, databaseQueries(s.version), prefix, c); err != nil {
		return err
	}
	return sequences(ctx, conn, prefix, c)
}

// mine limits a query to what users made: not the server's own schemas, not temporary ones.
const mine = `n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'`

// notOfExtension leaves out what an extension brought: the extension and its version stand for it.
func notOfExtension(catalog, oid string) string {
	return ` AND NOT EXISTS (SELECT FROM pg_depend dep
		WHERE dep.classid = '` + catalog + `'::regclass AND dep.objid = ` + oid + ` AND dep.deptype = 'e')`
}

// relations adds what has rows: tables, leaves of partitioned tables and materialised views. A partitioned table has none
// of its own.
func relations(ctx context.Context, conn *pgx.Conn, db string, ts *types, c *database.Catalog) error {
	rows, err := conn.Query(ctx, `
		SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, greatest(c.reltuples, 0)::int8,
		       CASE WHEN c.relkind = 'f' THEN 0 ELSE pg_table_size(c.oid) END, has_table_privilege(c.oid, 'SELECT'), row_security_active(c.oid),
		       c.relispopulated
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'm', 'f') AND c.relpersistence <> 't' AND `+mine)
	if err != nil {
		return err
	}
	type entry struct {
		OID                             uint32
		Schema, Name, Kind, Persistence string
		Rows, Bytes                     int64
		May, Policies, Populated        bool
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[entry])
	if err != nil {
		return err
	}
	columns, err := columnsOf(ctx, conn, ts)
	if err != nil {
		return err
	}
	keys, err := keysOf(ctx, conn)
	if err != nil {
		return err
	}
	for _, e := range list {
		name := database.Name{Database: db, Schema: e.Schema, Relation: e.Name}
		if e.Kind == "f" {
			c.NotComparable = append(c.NotComparable, database.Finding{Object: "foreign table " + name.String(), Class: "not readable",
				Message: "its rows are another server's"})
			continue
		}
		r := database.Relation{Name: name, Columns: columns[e.OID], Key: keys[e.OID], KeyUnique: len(keys[e.OID]) > 0, Rows: e.Rows, Bytes: e.Bytes}
		switch {
		case e.Persistence == "u":
			r.Skip = "it is unlogged: a crash empties it, and so does the recovery of a copy"
		case !e.Populated:
			r.Skip = "the materialised view holds nothing until it is refreshed"
		case !e.May:
			r.Skip = "this user may not read it: GRANT pg_read_all_data TO " + quote(conn.Config().User)
		case e.Policies:
			r.Skip = "its policies would hide rows from this user: ALTER ROLE … BYPASSRLS"
		}
		c.Relations = append(c.Relations, r)
	}
	return nil
}

// columnsOf reads the columns of all relations with rows.
func columnsOf(ctx context.Context, conn *pgx.Conn, ts *types) (map[uint32][]database.Column, error) {
	rows, err := conn.Query(ctx, `
		SELECT a.attrelid, a.attname::text, format_type(a.atttypid, a.atttypmod), a.atttypid
		FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'm') AND a.attnum > 0 AND NOT a.attisdropped AND `+mine+`
		ORDER BY a.attrelid, a.attname COLLATE "C"`)
	if err != nil {
		return nil, err
	}
	out := map[uint32][]database.Column{}
	var relation, typ uint32
	var col database.Column
	_, err = pgx.ForEachRow(rows, []any{&relation, &col.Name, &col.Type, &typ}, func() error {
		col.Family = ts.codec(typ).family
		out[relation] = append(out[relation], col)
		return nil
	})
	return out, err
}

// keysOf chooses a key for every relation that has one: the primary key, else the shortest unique index of plain NOT
// NULL columns that is checked at once. The choice does not depend on names of indexes or on OIDs, so that two servers
// choose alike.
func keysOf(ctx context.Context, conn *pgx.Conn) (map[uint32][]string, error) {
	rows, err := conn.Query(ctx, `
		SELECT DISTINCT ON (i.indrelid) i.indrelid, k.names
		FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace,
		     LATERAL (SELECT array_agg(a.attname::text COLLATE "C" ORDER BY x.ord) AS names, bool_and(a.attnotnull) AS filled
		              FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS x(num, ord)
		              JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = x.num
		              WHERE x.ord <= i.indnkeyatts) AS k
		WHERE i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL AND k.filled AND `+mine+`
		ORDER BY i.indrelid, i.indisprimary DESC, i.indnkeyatts, k.names`)
	if err != nil {
		return nil, err
	}
	out := map[uint32][]string{}
	var relation uint32
	var names []string
	_, err = pgx.ForEachRow(rows, []any{&relation, &names}, func() error {
		out[relation] = slices.Clone(names)
		return nil
	})
	return out, err
}

// objectQuery lists objects of one kind: name, and attributes as a JSON object of texts. A kind of "" is the first column
// of the query.
type objectQuery struct {
	kind string
	sql  string
}

// objects adds what the queries list.
func objects(ctx context.Context, conn *pgx.Conn, queries []objectQuery, prefix string, c *database.Catalog) error {
	for _, q := range queries {
		rows, err := conn.Query(ctx, q.sql)
		if err != nil {
			return fmt.Errorf("kind %s: %w", q.kind, err)
		}
		kind, name := q.kind, ""
		var raw []byte
		into := []any{&name, &raw}
		if q.kind == "" {
			into = []any{&kind, &name, &raw}
		}
		_, err = pgx.ForEachRow(rows, into, func() error {
			o := database.Object{Kind: kind, Name: prefix + name}
			var err error
			o.Attributes, err = attributes(raw)
			c.Objects = append(c.Objects, o)
			return err
		})
		if err != nil {
			return fmt.Errorf("kind %s: %w", q.kind, err)
		}
	}
	return nil
}

// attributes reads a JSON object; what is null is left out.
func attributes(raw []byte) (map[string]string, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var all map[string]any
	if err := d.Decode(&all); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for k, v := range all {
		switch v := v.(type) {
		case nil:
		case string:
			out[k] = v
		case bool, json.Number:
			out[k] = fmt.Sprint(v)
		default:
			b, err := json.Marshal(v)
			if err != nil {
				return nil, err
			}
			out[k] = string(b)
		}
	}
	return out, nil
}

// sequences adds the sequences with where they stand. Each is a relation of its own, so that many are asked at once.
func sequences(ctx context.Context, conn *pgx.Conn, prefix string, c *database.Catalog) error {
	rows, err := conn.Query(ctx, `
		SELECT n.nspname::text, c.relname::text, has_sequence_privilege(c.oid, 'SELECT'), jsonb_build_object('type', format_type(s.seqtypid, NULL),
		       'start', s.seqstart::text, 'increment', s.seqincrement::text, 'min', s.seqmin::text, 'max', s.seqmax::text, 'cache', s.seqcache::text,
		       'cycle', s.seqcycle, 'owner', pg_get_userbyid(c.relowner), 'acl', `+aclText("c.relacl", "s", "c.relowner")+`,
		       'persistence', c.relpersistence::text,
		       'owned by', (SELECT string_agg(d.refobjid::regclass::text || '.' || a.attname, ' ') FROM pg_depend d
		                    JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
		                    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')))
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_sequence s ON s.seqrelid = c.oid
		WHERE c.relpersistence <> 't' AND `+mine+` ORDER BY c.oid`)
	if err != nil {
		return err
	}
	type entry struct {
		Schema, Name string
		May          bool
		Raw          []byte
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[entry])
	if err != nil {
		return err
	}
	for part := range slices.Chunk(list, 200) {
		batch := &pgx.Batch{}
		for _, e := range part {
			if e.May {
				batch.Queue("SELECT last_value::text, is_called::text FROM " + quote(e.Schema) + "." + quote(e.Name))
			}
		}
		results := conn.SendBatch(ctx, batch)
		for _, e := range part {
			o := database.Object{Kind: "sequence", Name: prefix + e.Schema + "." + e.Name}
			if o.Attributes, err = attributes(e.Raw); err != nil {
				return err
			}
			if e.May {
				var last, called string
				if err := results.QueryRow().Scan(&last, &called); err != nil {
					return fmt.Errorf("sequence %s: %w", o.Name, err)
				}
				o.Attributes["last value"], o.Attributes["is called"] = last, called
			} else {
				c.NotComparable = append(c.NotComparable, database.Finding{Object: "sequence " + o.Name, Class: "not readable",
					Message: "this user may not read where it stands: GRANT pg_read_all_data"})
			}
			c.Objects = append(c.Objects, o)
		}
		if err := results.Close(); err != nil {
			return err
		}
	}
	return nil
}
