package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-cd/sluice/internal/database"
)

// smallRelation is the size up to which keys are looked for in the table itself. An index may be damaged, and where it
// lacks an entry a lookup hides the row that a scan has found.
const smallRelation = 64 << 20

// Fetch implements database.View. Keys become arrays of text that the server casts to the columns' types and joins.
func (v *view) Fetch(ctx context.Context, r database.Relation, p *database.Projection, keys [][]byte, each func(database.Row) error) error {
	if len(keys) == 0 || len(p.Key) == 0 {
		return nil
	}
	wanted := make(map[string]bool, len(keys))
	for _, k := range keys {
		wanted[string(k)] = true
	}
	// The server's equality is wider than ours: under some collations 'a' is 'A', and 1.0 is 1.00.
	exact := func(row database.Row) error {
		if !wanted[string(row.Key)] {
			return nil
		}
		return each(row)
	}
	return v.worker(ctx, r.Name.Database, func(c *pgx.Conn, snap *snapshot) error {
		s, err := snap.selection(ctx, c, r, p)
		if err != nil {
			return v.s.target.fault(ctx, err, "looking up %s", r.Name)
		}
		query := "SELECT " + s.list + " FROM " + s.from
		if params, ok := parameters(s, p, wanted); ok {
			query += join(s, p, params)
		}
		large := r.Bytes > smallRelation
		if large {
			if _, err := c.PgConn().Exec(ctx, byIndex).ReadAll(); err != nil {
				return v.s.target.fault(ctx, err, "planning the reading of %s", r.Name)
			}
		}
		_, err = v.copy(ctx, c, query, s, p, exact)
		if err == nil && large {
			_, err = c.PgConn().Exec(ctx, byTable).ReadAll()
		}
		return v.s.target.fault(ctx, err, "reading %d keys of %s", len(keys), r.Name)
	})
}

// parameters writes the keys column by column; ok is false where one has a form that cannot be asked for. A key of
// another family than the column's, from a side where the type is another one, is nobody's here and is left out.
func parameters(s *selection, p *database.Projection, keys map[string]bool) (columns [][]string, ok bool) {
	columns = make([][]string, len(p.Key))
	texts := make([]string, len(p.Key))
next:
	for key := range keys {
		values, ok := database.KeyValues([]byte(key))
		if !ok || len(values) != len(p.Key) {
			return nil, false
		}
		for i, canon := range values {
			k := s.codecs[p.Key[i]]
			if f, ok := database.FamilyOf(canon); !ok || f != k.family {
				continue next
			}
			if k.param == nil {
				return nil, false
			}
			if texts[i], ok = k.param(canon); !ok || strings.ContainsRune(texts[i], 0) {
				return nil, false
			}
		}
		for i, t := range texts {
			columns[i] = append(columns[i], t)
		}
	}
	return columns, true
}

// join restricts a query to keys. COPY takes no parameters, so that they are written as literals, all of them quoted. Two
// keys may mean one row to the server, as 'a' and 'A' do under some collations: rows are collected by their place first.
func join(s *selection, p *database.Projection, columns [][]string) string {
	var arrays, names, on []string
	for i, list := range columns {
		quoted := make([]string, len(list))
		for j, t := range list {
			quoted[j] = literal(t)
		}
		name := fmt.Sprintf("k%d", i)
		arrays = append(arrays, "pg_catalog.unnest(ARRAY["+strings.Join(quoted, ",")+"]::pg_catalog.text[])")
		names = append(names, name)
		on = append(on, strings.ReplaceAll(s.equals[p.Key[i]], "%s", "u."+name))
	}
	return fmt.Sprintf(" WHERE t.ctid = ANY (ARRAY(SELECT t.ctid FROM %s JOIN ROWS FROM (%s) AS u(%s) ON %s))", s.from, strings.Join(arrays, ","),
		strings.Join(names, ","), strings.Join(on, " AND "))
}

// literal quotes text. An escape string has one meaning whatever standard_conforming_strings says.
func literal(s string) string {
	return "E'" + strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(s) + "'"
}
