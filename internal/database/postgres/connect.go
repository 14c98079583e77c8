package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// dialTimeout is how long a connection may take to be made where the URL does not say.
const dialTimeout = 15 * time.Second

// closeTimeout is how long a connection may take to be closed in order.
const closeTimeout = 2 * time.Second

// pinned are the settings of every session, so that a value has one text whatever server, database or user prefer, and
// nothing is written by mistake. They are set after the connection is made, because poolers refuse most of them before.
const pinned = `
SET search_path = ''; SET row_security = off; SET default_transaction_read_only = on;
SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = 'hex';
SET lc_monetary = 'C'; SET lc_numeric = 'C'; SET quote_all_identifiers = off; SET array_nulls = on; SET transform_null_equals = off;
SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0;
SET jit = off; SET max_parallel_workers_per_gather = 0; SET synchronize_seqscans = off;`

// target is how a server is reached.
type target struct {
	config *pgx.ConnConfig
}

// parse reads a URL as psql takes it: also as keywords and values, with PGPASSFILE, PGSERVICE and their like.
func parse(u database.URL, application string) (*target, error) {
	config, err := pgx.ParseConfig(u.Value)
	if err != nil {
		// The parser's message repeats the value, which it cleans of passwords as well as it can. That is not enough.
		return nil, fault.WithRemedy(fault.Newf(fault.Invalid, "the connection is no URL that PostgreSQL understands"),
			"write postgres://user@host:5432/database, with reserved characters in user and password percent-encoded")
	}
	if config.ConnectTimeout == 0 || !strings.Contains(u.Value, "connect_timeout") {
		config.ConnectTimeout = dialTimeout
	}
	if u.Dial != nil {
		config.DialFunc = u.Dial
		// The host is the name of a Service and means nothing to this machine's resolver.
		config.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	} else {
		d := &net.Dialer{KeepAlive: 30 * time.Second}
		config.DialFunc = d.DialContext
	}
	config.RuntimeParams["application_name"] = application
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: c, DeadlineDelay: 5 * time.Second}
	}
	return &target{config: config}, nil
}

// home is the database that the URL names; the user's name where it names none, as everywhere in PostgreSQL.
func (t *target) home() string {
	if t.config.Database != "" {
		return t.config.Database
	}
	return t.config.User
}

// connect opens a read-only session with pinned settings.
func (t *target) connect(ctx context.Context, name string) (*pgx.Conn, error) {
	c, err := t.dial(ctx, name)
	if err != nil {
		return nil, err
	}
	sql := pinned
	if c.PgConn().ParameterStatus("server_encoding") == "SQL_ASCII" {
		// Such a database holds bytes of any encoding. Asked for UTF8 the server would refuse those that are not.
		sql += " SET client_encoding = 'SQL_ASCII';"
	}
	if _, err := c.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
		t.close(c)
		return nil, t.fault(ctx, err, "pinning the settings of a session")
	}
	return c, nil
}

// dial opens a session as the server's administrator has configured it.
func (t *target) dial(ctx context.Context, name string) (*pgx.Conn, error) {
	config := t.config.Copy()
	config.Database = name
	c, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, t.fault(ctx, err, "connecting to database %q as user %q", name, config.User)
	}
	return c, nil
}

// close ends a session in order, and without it if that takes too long.
func (t *target) close(c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = c.Close(ctx) // it is closed either way
}

// passed is an error of the caller's own function, which comes back to the caller as it is.
type passed struct{ err error }

func (p *passed) Error() string { return p.err.Error() }

// fault gives an error a kind, and takes passwords out of it.
func (t *target) fault(ctx context.Context, err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	if p, ok := errors.AsType[*passed](err); ok {
		return p.err
	}
	what := fmt.Sprintf(format, args...)
	if cause := ctx.Err(); cause != nil {
		return fmt.Errorf("%s: %w", what, cause)
	}
	if own, ok := errors.AsType[*fault.Error](err); ok {
		if _, connecting := errors.AsType[*pgconn.ConnectError](err); connecting {
			err = own // the outer one repeats it for each address and each way to encrypt
		}
		return fmt.Errorf("%s: %w", what, err)
	}
	if p, ok := errors.AsType[*pgconn.PgError](err); ok {
		return serverFault(what, p)
	}
	if c, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		err = c.Unwrap() // the outer one holds the whole configuration, password included
	}
	if secret := t.config.Password; secret != "" && (strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), url.QueryEscape(secret))) {
		err = errors.New(strings.NewReplacer(secret, "…", url.QueryEscape(secret), "…").Replace(err.Error()))
	}
	return fault.WithRemedy(fault.Newf(fault.Transient, "%s: %w", what, err), "check that a PostgreSQL server listens at %s", t.address())
}

// address is where the server is looked for.
func (t *target) address() string {
	return net.JoinHostPort(t.config.Host, fmt.Sprint(t.config.Port))
}

// serverFault turns what the server says into a kind and a remedy, by its SQLSTATE.
func serverFault(what string, p *pgconn.PgError) error {
	wrap := func(k fault.Kind) error { return fault.Newf(k, "%s: %w", what, p) }
	switch {
	case p.Code == "28P01" || p.Code == "28000":
		return fault.WithRemedy(wrap(fault.Denied), "check user and password, and that pg_hba.conf lets the user in")
	case p.Code == "42501":
		if strings.Contains(p.Message, "row-level security") {
			return fault.WithRemedy(wrap(fault.Denied), "policies would hide rows from this user: ALTER ROLE … BYPASSRLS")
		}
		return fault.WithRemedy(wrap(fault.Denied), "a privilege is missing: sluice data grants postgres prints the GRANTs")
	case p.Code == "3D000":
		return fault.WithRemedy(wrap(fault.NotFound), "check the name of the database in the URL")
	case p.Code == "53300":
		return fault.WithRemedy(wrap(fault.Transient), "all connections are taken: use fewer workers or raise max_connections")
	case p.Code == "57P03", strings.HasPrefix(p.Code, "08"), p.Code == "57P01", p.Code == "57P02", p.Code == "40001":
		return wrap(fault.Transient)
	case strings.HasPrefix(p.Code, "XX"):
		return fault.WithRemedy(wrap(fault.Lost), "the server says that its own files are damaged")
	}
	return wrap(fault.Invalid)
}
