package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-cd/sluice/internal/database"
)

// The classes of what a check finds.
const (
	ClassInvalidIndex = "invalid index"
	ClassCollation    = "collation version" // an index may be sorted by rules that are no longer the library's
	ClassChecksums    = "checksum failures"
	ClassStatistics   = "statistics missing" // plans will be bad until ANALYZE
	ClassCorruption   = "corruption"
	ClassNotChecked   = "not checked"
)

// quickChecks read catalogs only: object, class, message.
func quickChecks(version int) []string {
	checks := []string{
		`SELECT 'index ' || n.nspname || '.' || x.relname, '` + ClassInvalidIndex + `',
		        CASE WHEN NOT i.indislive THEN 'it is being dropped' WHEN NOT i.indisready THEN 'it takes no inserts'
		        ELSE 'it is not used by queries' END || ': DROP it and create it again, or REINDEX'
		 FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace n ON n.oid = x.relnamespace
		 WHERE NOT (i.indisvalid AND i.indisready AND i.indislive) AND n.nspname !~ '^pg_temp'`,
		`SELECT 'collation ' || n.nspname || '.' || c.collname, '` + ClassCollation + `',
		        'it was made by version ' || c.collversion || ' of its library, the server has '
		        || coalesce(pg_collation_actual_version(c.oid), 'none') || ': REINDEX what uses it, then ALTER COLLATION … REFRESH VERSION'
		 FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
		 WHERE c.collversion IS NOT NULL AND c.collversion IS DISTINCT FROM pg_collation_actual_version(c.oid)
		   AND EXISTS (SELECT FROM pg_attribute a WHERE a.attcollation = c.oid AND a.attrelid >= 16384)`,
		`SELECT 'table ' || n.nspname || '.' || c.relname, '` + ClassStatistics + `',
		        'it holds ' || pg_size_pretty(pg_relation_size(c.oid)) || ' and was never analysed: ANALYZE'
		 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		 WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p' AND ` + mine + ` AND pg_relation_size(c.oid) >= 8388608
		   AND NOT EXISTS (SELECT FROM pg_stats s WHERE s.schemaname = n.nspname AND s.tablename = c.relname)
		   AND has_table_privilege(c.oid, 'SELECT')`,
		`SELECT 'database ' || datname, '` + ClassChecksums + `',
		        checksum_failures || ' pages failed their checksum since ' || coalesce(stats_reset::text, 'the start')
		 FROM pg_stat_database WHERE datname = current_database() AND checksum_failures > 0`,
	}
	if version >= 150000 {
		checks = append(checks, `SELECT 'database ' || d.datname, '`+ClassCollation+`',
		        'it was made by version ' || d.datcollversion || ' of its library, the server has '
		        || coalesce(pg_database_collation_actual_version(d.oid), 'none') || ': REINDEX it, then ALTER DATABASE … REFRESH COLLATION VERSION'
		 FROM pg_database d WHERE d.datname = current_database() AND d.datcollversion IS NOT NULL
		   AND d.datcollversion IS DISTINCT FROM pg_database_collation_actual_version(d.oid)`)
	}
	return checks
}

// Check implements database.Server. The full check is amcheck's: every entry of a table must be in its B-tree indexes,
// and every page must be well-formed. Where the extension is missing, or may not be used, that is a finding too.
func (s *server) Check(ctx context.Context, d database.Depth, found func(database.Finding)) error {
	var names []string
	err := s.with(ctx, s.home, func(c *pgx.Conn) error {
		var not []database.Finding
		var err error
		names, not, err = s.databases(ctx, c)
		for _, f := range not {
			found(database.Finding{Object: f.Object, Class: ClassNotChecked, Message: f.Message})
		}
		return s.target.fault(ctx, err, "listing the databases")
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		// Objects are named with their database, as several are checked.
		report := func(f database.Finding) {
			f.Object = "database " + name + ": " + f.Object
			found(f)
		}
		err := s.with(ctx, name, func(c *pgx.Conn) error {
			for _, sql := range quickChecks(s.version) {
				if err := findings(ctx, c, sql, report); err != nil {
					return err
				}
			}
			if d == database.Full {
				return amcheck(ctx, c, report)
			}
			return nil
		})
		if err != nil {
			return s.target.fault(ctx, err, "checking database %s", name)
		}
	}
	return nil
}

func findings(ctx context.Context, c *pgx.Conn, sql string, found func(database.Finding)) error {
	rows, err := c.Query(ctx, sql)
	if err != nil {
		return err
	}
	var f database.Finding
	_, err = pgx.ForEachRow(rows, []any{&f.Object, &f.Class, &f.Message}, func() error { found(f); return nil })
	return err
}

// amcheck checks indexes one by one: what is wrong with one is an error of its query, and the next is still checked.
func amcheck(ctx context.Context, c *pgx.Conn, found func(database.Finding)) error {
	var schema string
	var may bool
	err := c.QueryRow(ctx, `
		SELECT coalesce(min(n.nspname::text), ''), coalesce(bool_and(has_function_privilege(p.oid, 'EXECUTE')), false)
		FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
		JOIN pg_proc p ON p.pronamespace = n.oid AND (p.proname = 'bt_index_check' AND p.pronargs = 2 OR p.proname = 'verify_heapam')
		WHERE e.extname = 'amcheck'`).Scan(&schema, &may)
	switch {
	case err != nil:
		return err
	case schema == "":
		found(database.Finding{Object: "tables and indexes", Class: ClassNotChecked,
			Message: "extension amcheck is not installed: CREATE EXTENSION amcheck"})
		return nil
	case !may:
		found(database.Finding{Object: "tables and indexes", Class: ClassNotChecked,
			Message: "this user may not use amcheck: GRANT EXECUTE on its functions"})
		return nil
	}
	if err := checkIndexes(ctx, c, schema, found); err != nil {
		return err
	}
	return checkTables(ctx, c, schema, found)
}

// checkIndexes compares every B-tree with its table. Broken ones are left to the quick check.
func checkIndexes(ctx context.Context, c *pgx.Conn, schema string, found func(database.Finding)) error {
	rows, err := c.Query(ctx, `
		SELECT i.indexrelid, 'index ' || n.nspname || '.' || x.relname, a.amname = 'btree'
		FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace n ON n.oid = x.relnamespace JOIN pg_am a ON a.oid = x.relam
		WHERE i.indisvalid AND i.indisready AND x.relkind = 'i' AND x.relpersistence = 'p' ORDER BY 2`)
	if err != nil {
		return err
	}
	type index struct {
		OID   uint32
		Name  string
		BTree bool
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[index])
	if err != nil {
		return err
	}
	for _, x := range list {
		if !x.BTree {
			found(database.Finding{Object: x.Name, Class: ClassNotChecked, Message: "amcheck knows B-trees only"})
			continue
		}
		_, err := c.Exec(ctx, "SELECT "+quote(schema)+".bt_index_check($1::oid::regclass, true)", x.OID)
		if err := damaged(ctx, c, err, x.Name, found); err != nil {
			return err
		}
	}
	return nil
}

// checkTables looks at every page of every table.
func checkTables(ctx context.Context, c *pgx.Conn, schema string, found func(database.Finding)) error {
	rows, err := c.Query(ctx, `
		SELECT c.oid, 'table ' || n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_am a ON a.oid = c.relam
		WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p' AND a.amname = 'heap' ORDER BY 2`)
	if err != nil {
		return err
	}
	type table struct {
		OID  uint32
		Name string
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[table])
	if err != nil {
		return err
	}
	for _, x := range list {
		sql := fmt.Sprintf(`SELECT %s, '%s', 'block ' || blkno || coalesce(', item ' || offnum, '') || ': ' || msg
			FROM %s.verify_heapam(%d::oid::regclass) LIMIT 20`,
			literal(x.Name), ClassCorruption, quote(schema), x.OID)
		err := findings(ctx, c, sql, found)
		if err := damaged(ctx, c, err, x.Name, found); err != nil {
			return err
		}
	}
	return nil
}

// damaged turns what the server says of a damaged file into a finding. Everything else stays an error.
func damaged(ctx context.Context, c *pgx.Conn, err error, name string, found func(database.Finding)) error {
	p, ok := serverError(err)
	if !ok || ctx.Err() != nil || c.IsClosed() {
		return err
	}
	switch p.Code {
	case "XX000", "XX001", "XX002", "58P01", "58030":
		message := p.Message
		if p.Detail != "" {
			message += ": " + p.Detail
		}
		found(database.Finding{Object: name, Class: ClassCorruption, Message: message})
		return nil
	}
	return err
}
