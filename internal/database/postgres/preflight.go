package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluice-cd/sluice/internal/database"
)

// serverError returns what the server said, if it was the server.
func serverError(err error) (*pgconn.PgError, bool) { return errors.AsType[*pgconn.PgError](err) }

// privilege is something that Sluice needs: a question that is true where it is there, and what is missing where it is not.
type privilege struct{ has, name, message string }

func privileges(version int) []privilege {
	p := []privilege{
		{`pg_has_role(current_user, 'pg_read_all_data', 'USAGE')`, "read",
			"GRANT pg_read_all_data TO %s; without it tables are not compared"},
		{`pg_has_role(current_user, 'pg_monitor', 'USAGE')`, "settings",
			"GRANT pg_monitor TO %s; without it settings that only it may see are not compared"},
		{`(SELECT rolbypassrls OR rolsuper FROM pg_roles WHERE rolname = current_user)`, "policies",
			"ALTER ROLE %s BYPASSRLS; without it tables whose policies hide rows are not compared"},
		{`(SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user)`, "log",
			"ALTER ROLE %s REPLICATION; without it the log cannot be kept while a copy is made"},
	}
	if version < 150000 {
		return append(p, privilege{`(SELECT rolsuper FROM pg_roles WHERE rolname = current_user)`, "backup",
			"ALTER ROLE %s SUPERUSER; before PostgreSQL 15 a checkpoint needs it"})
	}
	return append(p,
		privilege{`pg_has_role(current_user, 'pg_checkpoint', 'USAGE')`, "checkpoint",
			"GRANT pg_checkpoint TO %s; without it a copy cannot begin with a checkpoint"},
		privilege{`has_function_privilege('pg_backup_start(text, boolean)', 'EXECUTE') AND has_function_privilege('pg_backup_stop(boolean)', 'EXECUTE')`,
			"backup", "GRANT EXECUTE ON FUNCTION pg_backup_start, pg_backup_stop TO %s; without it no copy can be made where the cut is not atomic"})
}

// Preflight implements database.Preflighter.
func (e *Engine) Preflight(ctx context.Context, u database.URL) ([]database.Finding, error) {
	opened, err := e.Open(ctx, u)
	if err != nil {
		return nil, err
	}
	defer func() { _ = opened.Close() }() // it was only read
	s := opened.(*server)
	var missing []database.Finding
	err = s.with(ctx, s.home, func(c *pgx.Conn) error {
		var user string
		if err := c.QueryRow(ctx, "SELECT quote_ident(current_user)").Scan(&user); err != nil {
			return err
		}
		for _, p := range privileges(s.version) {
			var has bool
			if err := c.QueryRow(ctx, "SELECT "+p.has).Scan(&has); err != nil {
				return err
			}
			if !has {
				missing = append(missing, database.Finding{Object: "privilege " + p.name, Class: "missing", Message: fmt.Sprintf(p.message, user)})
			}
		}
		_, not, err := s.databases(ctx, c)
		for _, f := range not {
			missing = append(missing, database.Finding{Object: f.Object, Class: "missing", Message: f.Message})
		}
		return err
	})
	return missing, s.target.fault(ctx, err, "looking for privileges")
}

// Grants implements database.Preflighter.
func (e *Engine) Grants(role string) string {
	name := quote(role)
	return `-- What Sluice needs of PostgreSQL 15 and later; run as a superuser, the last part in every database.
CREATE ROLE ` + name + ` LOGIN REPLICATION BYPASSRLS CONNECTION LIMIT 20;
ALTER ROLE ` + name + ` SET default_transaction_read_only = on;
GRANT pg_read_all_data, pg_monitor, pg_checkpoint TO ` + name + `;
GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO ` + name + `;  -- in the database of the connection
-- For full checks, in every database:
CREATE EXTENSION IF NOT EXISTS amcheck;
GRANT EXECUTE ON FUNCTION bt_index_check(regclass, boolean), verify_heapam(regclass, boolean, boolean, text, bigint, bigint) TO ` + name + `;
-- Large objects can be read by superusers only.
`
}
