package postgres

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// view is one snapshot per database, exported by a session that holds it and imported by every worker.
type view struct {
	s         *server
	snapshots map[string]*snapshot
}

// snapshot is what is seen of one database.
type snapshot struct {
	name   string
	keeper *pgx.Conn
	id     string
	types  *types

	mu   sync.Mutex
	idle []*pgx.Conn // in a transaction that has imported the snapshot
}

// View implements database.Server. The snapshots of all databases are taken at once, so that they lie close together.
func (s *server) View(ctx context.Context) (database.View, error) {
	var names []string
	err := s.with(ctx, s.home, func(c *pgx.Conn) error {
		var err error
		names, _, err = s.databases(ctx, c)
		return s.target.fault(ctx, err, "listing the databases")
	})
	if err != nil {
		return nil, err
	}
	v := &view{s: s, snapshots: map[string]*snapshot{}}
	for _, name := range names {
		c, err := s.acquire(ctx, name)
		if err != nil {
			_ = v.Close() // the first error is the one that matters
			return nil, err
		}
		v.snapshots[name] = &snapshot{name: name, keeper: c}
	}
	for name, p := range v.snapshots {
		if err := p.begin(ctx); err != nil {
			_ = v.Close()
			return nil, s.target.fault(ctx, err, "taking a snapshot of database %s", name)
		}
	}
	return v, nil
}

// begin takes and exports the snapshot.
func (p *snapshot) begin(ctx context.Context) error {
	if _, err := p.keeper.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"); err != nil {
		return err
	}
	if err := p.keeper.QueryRow(ctx, "SELECT pg_export_snapshot()").Scan(&p.id); err != nil {
		return err
	}
	var err error
	p.types, err = loadTypes(ctx, p.keeper)
	return err
}

// Live implements database.View: a snapshot stands still.
func (v *view) Live() bool { return false }

// Close implements database.View. The keepers go back: they have nothing but a transaction that is rolled back.
func (v *view) Close() error {
	for _, p := range v.snapshots {
		p.mu.Lock()
		for _, c := range append(p.idle, p.keeper) {
			v.end(p.name, c)
		}
		p.idle, p.keeper = nil, nil
		p.mu.Unlock()
	}
	v.snapshots = nil
	return nil
}

// end rolls a worker's transaction back and returns the connection to the server's idle ones.
func (v *view) end(name string, c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if c.PgConn().TxStatus() != 'I' {
		if _, err := c.Exec(ctx, "ROLLBACK"); err != nil {
			v.s.target.close(c)
			return
		}
	}
	v.s.release(name, c)
}

// worker runs f on a connection that sees the snapshot. One on which f failed is not used again.
func (v *view) worker(ctx context.Context, name string, f func(*pgx.Conn, *snapshot) error) error {
	p, ok := v.snapshots[name]
	if !ok {
		return fault.Newf(fault.NotFound, "the view has no database %q", name)
	}
	c, err := v.take(ctx, p)
	if err != nil {
		return err
	}
	if err := f(c, p); err != nil {
		v.s.target.close(c)
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, c)
	return nil
}

func (v *view) take(ctx context.Context, p *snapshot) (*pgx.Conn, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return c, nil
	}
	p.mu.Unlock()
	c, err := v.s.target.connect(ctx, p.name)
	if err != nil {
		return nil, err
	}
	// The id is hexadecimal digits and hyphens, made by the server.
	_, err = c.PgConn().Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '"+p.id+"'; "+byTable).ReadAll()
	if err != nil {
		v.s.target.close(c)
		return nil, v.s.target.fault(ctx, err, "importing the snapshot of database %s", p.name)
	}
	return c, nil
}

// Rows are read from the table itself, never from an index alone: an index may be damaged, and a row that it lacks would
// not be seen.
const (
	byTable = "SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = on"
	byIndex = "SET LOCAL enable_indexscan = on; SET LOCAL enable_seqscan = off"
)

// blocks is a range of a relation's blocks. The last range of a relation is open, so that blocks which were added after
// the ranges were cut are read too, and their rows found invisible by the snapshot.
type blocks struct {
	from, to uint32
	open     bool
}

// Ranges implements database.View.
func (v *view) Ranges(ctx context.Context, r database.Relation, n int) ([]database.Range, error) {
	if n <= 1 || pseudo(r.Name) != nil {
		return []database.Range{{Relation: r}}, nil
	}
	var total int64
	err := v.worker(ctx, r.Name.Database, func(c *pgx.Conn, _ *snapshot) error {
		err := c.QueryRow(ctx, `
			SELECT CASE WHEN a.amname = 'heap' THEN pg_relation_size(c.oid) / current_setting('block_size')::int8 ELSE 0 END
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_am a ON a.oid = c.relam
			WHERE n.nspname = $1 AND c.relname = $2`, r.Name.Schema, r.Name.Relation).Scan(&total)
		return v.s.target.fault(ctx, err, "asking for the size of %s", r.Name)
	})
	if err != nil {
		return nil, err
	}
	n = int(min(int64(n), total))
	if n <= 1 {
		return []database.Range{{Relation: r}}, nil
	}
	var out []database.Range
	for i := range int64(n) {
		b := blocks{from: uint32(i * total / int64(n)), to: uint32((i + 1) * total / int64(n)), open: i == int64(n)-1}
		out = append(out, database.Range{Relation: r, Part: b})
	}
	return out, nil
}

// where limits a scan to the range.
func (b blocks) where(alias string) string {
	s := fmt.Sprintf(" WHERE %s.ctid >= '(%d,0)'::pg_catalog.tid", alias, b.from)
	if !b.open {
		s += fmt.Sprintf(" AND %s.ctid < '(%d,0)'::pg_catalog.tid", alias, b.to)
	}
	return s
}

// selection is what is selected of a relation, and how it is decoded.
type selection struct {
	list   string // SELECT list, of alias t
	from   string
	codecs []codec
	equals []string // how a column is compared with the text %s, with an index where that is possible
}

// selection resolves the projection's columns in the relation as this server has it.
func (p *snapshot) selection(ctx context.Context, c *pgx.Conn, r database.Relation, pr *database.Projection) (*selection, error) {
	if x := pseudo(r.Name); x != nil {
		return x.selection(pr)
	}
	rows, err := c.Query(ctx, `
		SELECT a.attname::text, a.atttypid
		FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped`, r.Name.Schema, r.Name.Relation)
	if err != nil {
		return nil, err
	}
	have := map[string]uint32{}
	var name string
	var oid uint32
	if _, err := pgx.ForEachRow(rows, []any{&name, &oid}, func() error { have[name] = oid; return nil }); err != nil {
		return nil, err
	}
	s := &selection{from: "ONLY " + quote(r.Name.Schema) + "." + quote(r.Name.Relation) + " AS t"}
	var list []string
	for _, want := range pr.Columns {
		oid, ok := have[want.Name]
		if !ok {
			return nil, fault.Newf(fault.NotFound, "relation %s has no column %q any more", r.Name, want.Name)
		}
		k, column := p.types.codec(oid), "t."+quote(want.Name)
		s.codecs, s.equals = append(s.codecs, k), append(s.equals, p.types.equals(column, oid))
		list = append(list, column+k.cast)
	}
	s.list = strings.Join(list, ", ")
	return s, nil
}

// quote writes a name as SQL does, whatever is in it.
func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// Scan implements database.View.
func (v *view) Scan(ctx context.Context, r database.Range, p *database.Projection, each func(database.Row) error) (int64, error) {
	var n int64
	err := v.worker(ctx, r.Relation.Name.Database, func(c *pgx.Conn, snap *snapshot) error {
		s, err := snap.selection(ctx, c, r.Relation, p)
		if err != nil {
			return v.s.target.fault(ctx, err, "looking up %s", r.Relation.Name)
		}
		where := ""
		if b, ok := r.Part.(blocks); ok {
			where = b.where("t")
		}
		n, err = v.copy(ctx, c, "SELECT "+s.list+" FROM "+s.from+where, s, p, each)
		return v.s.target.fault(ctx, err, "reading %s", r.Relation.Name)
	})
	return n, err
}

// copy runs a query as COPY in binary form and gives its rows. It returns how many the server counted. An error of each
// comes back as it is.
func (v *view) copy(ctx context.Context, c *pgx.Conn, query string, s *selection, p *database.Projection, each func(database.Row) error) (int64,
	error) {
	w := &copyReader{codecs: s.codecs, key: p.Key, each: each}
	tag, err := c.PgConn().CopyTo(ctx, w, "COPY ("+query+") TO STDOUT (FORMAT binary)")
	if w.stopped != nil {
		return 0, w.stopped
	}
	if err != nil {
		return 0, err
	}
	if !w.complete {
		return 0, fault.Newf(fault.Lost, "the server ended its answer in the middle")
	}
	return tag.RowsAffected(), nil
}

// Fields implements database.View.
func (v *view) Fields(_ database.Relation, p *database.Projection, row database.Row) ([]database.Field, error) {
	if len(row.Values) != len(p.Columns) {
		return nil, fault.Newf(fault.Invalid, "a row of %d values does not fit %d columns", len(row.Values), len(p.Columns))
	}
	out := make([]database.Field, len(p.Columns))
	for j, c := range p.Columns {
		f := database.Field{Path: c.Name, Type: c.Type, Text: database.TextOf(row.Values[j]), Canon: row.Values[j]}
		if n, ok := database.Number(row.Values[j]); ok {
			x, _ := n.Float64()
			f.Number = &x
		}
		out[j] = f
	}
	return out, nil
}
