package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-cd/sluice/internal/fault"
)

// Query implements database.Querier. It runs in the database that the URL names, with the search path that the user has
// there; everything else is pinned as for scans.
func (s *server) Query(ctx context.Context, query string) (string, error) {
	var value *string
	err := s.with(ctx, s.home, func(c *pgx.Conn) error {
		tx, err := c.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(ctx) }() // it only reads
		if _, err := tx.Exec(ctx, "SET LOCAL search_path TO DEFAULT"); err != nil {
			return err
		}
		// The extended protocol takes one statement only, so that a query cannot end the transaction and write.
		rows := c.PgConn().ExecParams(ctx, query, nil, nil, nil, nil).Read()
		if rows.Err != nil {
			return rows.Err
		}
		if len(rows.Rows) != 1 || len(rows.Rows[0]) != 1 {
			columns := len(rows.FieldDescriptions)
			return fault.Newf(fault.Invalid, "the query returns %d rows of %d columns, an invariant is one value", len(rows.Rows), columns)
		}
		text := "NULL"
		if v := rows.Rows[0][0]; v != nil {
			text = string(v)
		}
		value = &text
		return nil
	})
	if err != nil {
		return "", s.target.fault(ctx, err, "running a query")
	}
	return *value, nil
}
