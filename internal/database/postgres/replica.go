package postgres

import (
	"context"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

var _ database.Stepdown = (*Engine)(nil)

// Member implements database.Roler.
func (e *Engine) Member(ctx context.Context, u database.URL) (database.Member, error) {
	var m database.Member
	var position int64
	err := e.session(ctx, u, "asking for the role", func(c *pgx.Conn) error {
		// What was received before the last start is told by what was replayed of it.
		return c.QueryRow(ctx, `
SELECT NOT pg_is_in_recovery(),
  (CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) ELSE pg_current_wal_flush_lsn() END - '0/0')::int8,
  coalesce((SELECT sender_host FROM pg_stat_wal_receiver WHERE status = 'streaming'), '')`).Scan(&m.Primary, &position, &m.Source)
	})
	m.Position = uint64(position)
	return m, err
}

// Follow implements database.Stepdown. A primary gets the file that makes it a standby when it starts next.
func (e *Engine) Follow(ctx context.Context, u, like database.URL, host, name string) error {
	var conninfo, slot string
	err := e.session(ctx, like, "asking how a follower reaches its source", func(c *pgx.Conn) error {
		return c.QueryRow(ctx, "SELECT current_setting('primary_conninfo'), current_setting('primary_slot_name')").Scan(&conninfo, &slot)
	})
	switch {
	case err != nil:
		return err
	case conninfo == "":
		return fault.WithRemedy(fault.Newf(fault.Invalid, "the follower does not tell how it reaches its source"),
			"its primary_conninfo must be set, and the user of the connection must be a superuser or a member of pg_read_all_settings")
	case slot != "":
		return fault.WithRemedy(fault.Newf(fault.Invalid, "the followers use replication slots (%s), which a new primary would not have: handing over with slots is not built yet", slot),
			"unset primary_slot_name and keep enough log with wal_keep_size")
	}
	if conninfo, err = redirect(conninfo, host, name); err != nil {
		return err
	}
	return e.session(ctx, u, "following "+host, func(c *pgx.Conn) error {
		if _, err := c.Exec(ctx, "ALTER SYSTEM SET primary_conninfo = "+literal(conninfo), pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
		var primary bool
		if err := c.QueryRow(ctx, "SELECT NOT pg_is_in_recovery() FROM pg_reload_conf()").Scan(&primary); err != nil || !primary {
			return err
		}
		var dir string
		if err := c.QueryRow(ctx, "SELECT current_setting('data_directory')").Scan(&dir); err != nil {
			return err
		}
		_, err := c.Exec(ctx, "COPY (SELECT WHERE false) TO "+literal(dir+"/standby.signal"), pgx.QueryExecModeSimpleProtocol)
		return err
	})
}

// Promote implements database.Stepdown.
func (e *Engine) Promote(ctx context.Context, u database.URL) error {
	return e.session(ctx, u, "promoting a follower", func(c *pgx.Conn) error {
		var done bool
		if err := c.QueryRow(ctx, "SELECT CASE WHEN pg_is_in_recovery() THEN pg_promote(true, 60) ELSE true END").Scan(&done); err != nil {
			return err
		}
		if !done {
			return fault.Newf(fault.Transient, "the follower was not promoted within a minute")
		}
		return nil
	})
}

// session does something in a session of its own, as the server's administrator has configured it: what is done here writes.
func (e *Engine) session(ctx context.Context, u database.URL, what string, do func(*pgx.Conn) error) error {
	t, err := parse(u, "sluice")
	if err != nil {
		return err
	}
	c, err := t.dial(ctx, t.home())
	if err != nil {
		return err
	}
	defer t.close(c)
	if err := do(c); err != nil {
		if fault.KindOf(err) != "" {
			return err
		}
		return t.fault(ctx, err, "%s", what)
	}
	return nil
}

// redirect returns a conninfo that leads to another host, under another name.
func redirect(conninfo, host, name string) (string, error) {
	unreadable := fault.Newf(fault.Invalid, "the follower's primary_conninfo cannot be read")
	if strings.HasPrefix(conninfo, "postgres://") || strings.HasPrefix(conninfo, "postgresql://") {
		u, err := url.Parse(conninfo)
		if err != nil || strings.Contains(u.Host, ",") {
			return "", unreadable // the parser's message would repeat the password
		}
		if p := u.Port(); p != "" {
			u.Host = host + ":" + p
		} else {
			u.Host = host
		}
		q := u.Query()
		q.Set("application_name", name)
		u.RawQuery = q.Encode()
		return u.String(), nil
	}
	pairs, ok := keywords(conninfo)
	if !ok {
		return "", unreadable
	}
	var out []string
	for _, p := range pairs {
		switch p[0] {
		case "host", "hostaddr", "application_name":
		case "port":
			if strings.Contains(p[1], ",") {
				return "", unreadable
			}
			fallthrough
		default:
			out = append(out, p[0]+"="+parameter(p[1]))
		}
	}
	return strings.Join(append(out, "host="+parameter(host), "application_name="+parameter(name)), " "), nil
}

func parameter(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(s) + "'"
}

// keywords reads a conninfo of the form host=a password='it\'s' as libpq does.
func keywords(s string) (pairs [][2]string, ok bool) {
	const space = " \t\n\r"
	for {
		if s = strings.TrimLeft(s, space); s == "" {
			return pairs, true
		}
		key, rest, found := strings.Cut(s, "=")
		if key = strings.TrimRight(key, space); !found || key == "" || strings.ContainsAny(key, space) {
			return nil, false
		}
		s = strings.TrimLeft(rest, space)
		quote := strings.HasPrefix(s, "'")
		if quote {
			s = s[1:]
		}
		var value strings.Builder
		closed := !quote
		for s != "" {
			c := s[0]
			if quote && c == '\'' {
				s, closed = s[1:], true
				break
			}
			if !quote && strings.IndexByte(space, c) >= 0 {
				break
			}
			if c == '\\' && len(s) > 1 {
				s = s[1:]
				c = s[0]
			}
			value.WriteByte(c)
			s = s[1:]
		}
		if !closed {
			return nil, false
		}
		pairs = append(pairs, [2]string{key, value.String()})
	}
}
