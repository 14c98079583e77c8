package postgres

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// pseudoRelation is a relation that is compared although it is one of the server's own catalogs.
type pseudoRelation struct {
	name    string
	columns []pseudoColumn
	key     []string
}

type pseudoColumn struct {
	database.Column
	expression string // of alias t
	codec      codec
}

// largeObjects are the contents of large objects in pages, and who owns them.
func largeObjects() []pseudoRelation {
	of := func(name, typ, send, expression string) pseudoColumn {
		c, ok := bySend(send)
		if !ok {
			c = other()
		}
		return pseudoColumn{database.Column{Name: name, Type: typ, Family: c.family}, expression, c}
	}
	return []pseudoRelation{
		{name: "pg_largeobject", key: []string{"loid", "pageno"}, columns: []pseudoColumn{
			of("loid", "oid", "oidsend", "t.loid"),
			of("pageno", "integer", "int4send", "t.pageno"),
			of("data", "bytea", "byteasend", "t.data"),
		}},
		{name: "pg_largeobject_metadata", key: []string{"oid"}, columns: []pseudoColumn{
			of("oid", "oid", "oidsend", "t.oid"), of("owner", "text", "", "pg_get_userbyid(t.lomowner)::pg_catalog.text"),
			of("acl", "text", "", aclText("t.lomacl", "L", "t.lomowner")),
		}},
	}
}

// pseudo returns the catalog that a relation's name means, or nil.
func pseudo(n database.Name) *pseudoRelation {
	if n.Schema != "pg_catalog" {
		return nil
	}
	for _, p := range largeObjects() {
		if p.name == n.Relation {
			return &p
		}
	}
	return nil
}

// relation returns it as a catalog lists it. Reading the pages needs a superuser; another user is told so.
func (p *pseudoRelation) relation(ctx context.Context, c *pgx.Conn, db string) (database.Relation, error) {
	r := database.Relation{Name: database.Name{Database: db, Schema: "pg_catalog", Relation: p.name}, Key: p.key, KeyUnique: true}
	for _, col := range p.columns {
		r.Columns = append(r.Columns, col.Column)
	}
	var may bool
	err := c.QueryRow(ctx, `
		SELECT has_table_privilege(c.oid, 'SELECT'), greatest(c.reltuples, 0)::int8, pg_table_size(c.oid)
		FROM pg_class c WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relname = $1`, p.name).Scan(&may, &r.Rows, &r.Bytes)
	if !may {
		r.Skip = "only a superuser may read the contents of large objects"
	}
	return r, err
}

func (p *pseudoRelation) selection(pr *database.Projection) (*selection, error) {
	s := &selection{from: "pg_catalog." + p.name + " AS t"}
	var list []string
	for _, want := range pr.Columns {
		found := false
		for _, col := range p.columns {
			if found = col.Name == want.Name; found {
				list = append(list, col.expression)
				s.codecs, s.equals = append(s.codecs, col.codec), append(s.equals, "("+col.expression+") = %s::pg_catalog."+map[string]string{
					"integer": "int4", "oid": "oid", "bytea": "bytea", "text": "text"}[col.Type])
				break
			}
		}
		if !found {
			return nil, fault.Newf(fault.NotFound, "%s has no column %q", p.name, want.Name)
		}
	}
	s.list = strings.Join(list, ", ")
	return s, nil
}

// aclText is an expression for privileges in normal form: sorted, and written out where they are the default.
func aclText(acl, kind, owner string) string {
	return `(SELECT pg_catalog.string_agg(x::pg_catalog.text, ' ' ORDER BY x::pg_catalog.text COLLATE "C") FROM pg_catalog.unnest(coalesce(` +
		acl + `, pg_catalog.acldefault('` + kind + `', ` + owner + `))) AS x)`
}
