// Package postgres is the engine for PostgreSQL 14 and later.
//
// A server is read as a whole: every database of the cluster but template0 and template1, which hold no application's
// data and into which a session would keep production from creating databases. A view holds one exported snapshot per
// database, because PostgreSQL has none that spans several.
package postgres

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// The ports that the engine implements.
var (
	_ database.Engine      = (*Engine)(nil)
	_ database.Quiescer    = (*Engine)(nil)
	_ database.Preflighter = (*Engine)(nil)
	_ database.Log         = (*Engine)(nil)
	_ database.Server      = (*server)(nil)
	_ database.Querier     = (*server)(nil)
	_ database.View        = (*view)(nil)
)

// oldest is the oldest supported server: ranges of ctid are cheap and pg_read_all_data exists since then.
const oldest = 140000

// Engine is PostgreSQL.
type Engine struct {
	oneDatabase bool
}

// Option changes what an Engine does.
type Option func(*Engine)

// OneDatabase limits catalogs and views to the database that the URL names. What belongs to the whole cluster, such as
// roles and settings, is left out, and names of objects carry no database, so that two databases of different names can
// be compared.
func OneDatabase() Option { return func(e *Engine) { e.oneDatabase = true } }

// New returns the engine.
func New(options ...Option) *Engine {
	e := &Engine{}
	for _, o := range options {
		o(e)
	}
	return e
}

// Name implements database.Engine.
func (e *Engine) Name() string { return "postgres" }

// Open connects to the database that the URL names. Other databases of the cluster are reached with the same credentials.
func (e *Engine) Open(ctx context.Context, u database.URL) (database.Server, error) {
	t, err := parse(u, "sluice")
	if err != nil {
		return nil, err
	}
	s := &server{target: t, one: e.oneDatabase, idle: map[string][]*pgx.Conn{}}
	c, err := s.acquire(ctx, t.home())
	if err != nil {
		return nil, err
	}
	if err := c.QueryRow(ctx, "SELECT current_setting('server_version_num')::int4, current_database()").Scan(&s.version, &s.home); err != nil {
		_ = c.Close(ctx)
		return nil, t.fault(ctx, err, "asking for the version")
	}
	if s.version < oldest {
		_ = c.Close(ctx)
		return nil, fault.Newf(fault.Invalid, "the server is PostgreSQL %d, the oldest that is supported is %d", s.version/10000, oldest/10000)
	}
	if s.home != t.home() { // the URL named none
		t.config.Database = s.home
	}
	s.release(s.home, c)
	return s, nil
}

// server is an open server: idle connections by database.
type server struct {
	target  *target
	one     bool
	version int
	home    string

	mu   sync.Mutex
	idle map[string][]*pgx.Conn
}

// keepIdle is how many unused connections to one database are kept.
const keepIdle = 2

// acquire returns a connection to a database, an idle one if there is any that the server has not ended meanwhile.
func (s *server) acquire(ctx context.Context, name string) (*pgx.Conn, error) {
	for {
		c := s.pop(name)
		if c == nil {
			return s.target.connect(ctx, name)
		}
		if c.Ping(ctx) == nil {
			return c, nil
		}
		s.target.close(c)
	}
}

func (s *server) pop(name string) *pgx.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.idle[name]
	if len(list) == 0 {
		return nil
	}
	s.idle[name] = list[:len(list)-1]
	return list[len(list)-1]
}

// release gives a connection back. One that is broken or in a transaction is closed.
func (s *server) release(name string, c *pgx.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.IsClosed() || c.PgConn().TxStatus() != 'I' || s.idle == nil || len(s.idle[name]) >= keepIdle {
		s.target.close(c)
		return
	}
	s.idle[name] = append(s.idle[name], c)
}

// with runs f on a connection to a database.
func (s *server) with(ctx context.Context, name string, f func(*pgx.Conn) error) error {
	c, err := s.acquire(ctx, name)
	if err != nil {
		return err
	}
	defer s.release(name, c)
	return f(c)
}

// Close implements database.Server.
func (s *server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, list := range s.idle {
		for _, c := range list {
			s.target.close(c)
		}
	}
	s.idle = nil
	return nil
}

// Describe implements database.Server.
func (s *server) Describe(ctx context.Context) (database.Info, error) {
	var i database.Info
	err := s.with(ctx, s.home, func(c *pgx.Conn) error {
		var err error
		i, err = describe(ctx, c)
		return s.target.fault(ctx, err, "describing the server")
	})
	return i, err
}

// describe reads what the server says about itself. The position is how far the log is on disk: every commit that was
// acknowledged lies before it, and a copy that reaches it holds them.
func describe(ctx context.Context, c *pgx.Conn) (database.Info, error) {
	i := database.Info{Engine: "postgres", Abilities: []string{"preflight", "quiesce", "query", "snapshot"}}
	var standby bool
	var fsync, pages, commit string
	err := c.QueryRow(ctx, `
		SELECT current_setting('server_version'), (SELECT system_identifier::text FROM pg_control_system()), pg_is_in_recovery(),
		       current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit'),
		       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END::text,
		       pg_postmaster_start_time()`).
		Scan(&i.Version, &i.Identity, &standby, &fsync, &pages, &commit, &i.Position, &i.Started)
	if err != nil {
		return i, err
	}
	i.Role = "primary"
	if standby {
		i.Role = "standby"
	}
	i.Durable = fsync == "on" && pages == "on" && commit != "off"
	return i, nil
}

// databases lists the databases that can be read, and those that cannot with the reason.
func (s *server) databases(ctx context.Context, c *pgx.Conn) (names []string, not []database.Finding, err error) {
	if s.one {
		return []string{s.home}, nil, nil
	}
	rows, err := c.Query(ctx, `
		SELECT datname, datallowconn, has_database_privilege(oid, 'CONNECT')
		FROM pg_database WHERE datname NOT IN ('template0', 'template1') ORDER BY datname COLLATE "C"`)
	if err != nil {
		return nil, nil, err
	}
	type entry struct {
		Name           string
		Allows, Permit bool
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[entry])
	if err != nil {
		return nil, nil, err
	}
	for _, e := range list {
		switch {
		case !e.Allows:
			not = append(not, database.Finding{Object: "database " + e.Name, Class: "not readable", Message: "it does not allow connections"})
		case !e.Permit:
			not = append(not, database.Finding{Object: "database " + e.Name, Class: "not readable",
				Message: fmt.Sprintf("user %s may not connect to it", s.target.config.User)})
		default:
			names = append(names, e.Name)
		}
	}
	slices.Sort(names)
	return names, not, nil
}
