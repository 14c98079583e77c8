package postgres

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// The levels that a copy of this engine can have, in package volume's words.
const (
	levelRecoverable = "recoverable"
	levelAssembled   = "assembled"
)

// finishWithin is how long a finished backup's session, and with it the slot that keeps the log, waits for the copy to be
// finished.
const finishWithin = 15 * time.Minute

// lease is a session of the server: PostgreSQL lets writers go on during a backup, and needs them held by nobody.
type lease struct {
	target *target
	census database.Catalog
	level  string
	notes  []string
	atomic bool
	live   []string // directories

	lost  chan struct{}
	timer *time.Timer

	mu       sync.Mutex // guards the session
	conn     *pgx.Conn
	watching context.CancelFunc
	watched  chan struct{} // closed when nobody watches the session
	err      error         // why the lease is lost
	released bool
	assembly database.Assembly
}

// Quiesce implements database.Quiescer. Where the cut is atomic, a checkpoint makes recovery short and is all that is
// needed. Otherwise the server is put into backup mode: the copy is put together from files of different moments and made
// consistent by the log that was written meanwhile.
func (e *Engine) Quiesce(ctx context.Context, q database.QuiesceRequest) (database.Lease, error) {
	t, err := parse(q.URL, "sluice/"+q.ID)
	if err != nil {
		return nil, err
	}
	// The session is watched by waiting for what never comes. That wait is ended by a deadline, without a request to
	// cancel, because nothing runs on the server.
	t.config.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.DeadlineContextWatcherHandler{Conn: c.Conn()}
	}
	l := &lease{target: t, live: q.Dirs, lost: make(chan struct{}), watched: make(chan struct{}), level: levelRecoverable, atomic: q.Atomic}
	if l.conn, err = t.dial(ctx, t.home()); err != nil {
		return nil, err
	}
	if err := l.begin(ctx, q); err != nil {
		t.close(l.conn)
		return nil, err
	}
	if l.census, err = (&Engine{}).census(ctx, q.URL); err != nil {
		t.close(l.conn)
		return nil, fmt.Errorf("what a copy must hold: %w", err)
	}
	watch, cancel := context.WithCancel(context.Background())
	l.watching = cancel
	go l.watch(watch)
	l.timer = time.AfterFunc(q.MaxHold, func() {
		l.lose(fault.Newf(fault.Transient, "the copy took longer than the maximum hold of %s", q.MaxHold))
	})
	return l, nil
}

// census reads the catalog, whose position is read first: what was committed before it must be in a copy cut from now on.
func (e *Engine) census(ctx context.Context, u database.URL) (database.Catalog, error) {
	s, err := e.Open(ctx, u)
	if err != nil {
		return database.Catalog{}, err
	}
	defer func() { _ = s.Close() }() // it was only read
	return s.Catalog(ctx)
}

// begin makes the server ready for the cut.
func (l *lease) begin(ctx context.Context, q database.QuiesceRequest) error {
	var standby bool
	var fsync, pages string
	var version int
	err := l.conn.QueryRow(ctx, `
		SELECT pg_is_in_recovery(), current_setting('fsync'), current_setting('full_page_writes'), current_setting('server_version_num')::int4`).
		Scan(&standby, &fsync, &pages, &version)
	if err != nil {
		return l.target.fault(ctx, err, "asking how the server runs")
	}
	if standby {
		return fault.Newf(fault.Invalid, "the server is a standby; copies are made of the primary")
	}
	if version < oldest {
		return fault.Newf(fault.Invalid, "the server is PostgreSQL %d, the oldest that is supported is %d", version/10000, oldest/10000)
	}
	if err := l.complete(); err != nil {
		return err
	}
	if l.atomic && (fsync != "on" || pages != "on") {
		// A cut that recovery has to repair needs both. The backup mode writes full pages whatever the setting says.
		l.atomic = false
		l.notes = append(l.notes, fmt.Sprintf("fsync is %s and full_page_writes is %s, so an atomic cut could not be recovered: backup mode was used",
			fsync, pages))
	}
	const unlimited = "SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0"
	if _, err := l.conn.PgConn().Exec(ctx, unlimited).ReadAll(); err != nil {
		return l.target.fault(ctx, err, "preparing the session")
	}
	if version >= 140000 {
		if _, err := l.conn.Exec(ctx, "SET idle_session_timeout = 0"); err != nil {
			return l.target.fault(ctx, err, "preparing the session")
		}
	}
	if l.atomic {
		_, err := l.conn.Exec(ctx, "CHECKPOINT")
		return l.target.fault(ctx, err, "making a checkpoint")
	}
	l.level = levelAssembled
	return l.backup(ctx, q.ID, version)
}

// backup puts the server into backup mode. The slot is temporary: it goes with the session.
func (l *lease) backup(ctx context.Context, id string, version int) error {
	if len(l.live) == 0 {
		return fault.Newf(fault.Invalid, "the directories of the running server are not known, so its log cannot be copied after the files")
	}
	slot := "sluice_" + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToLower(fmt.Sprintf("%.40s_%d", id, l.conn.PgConn().PID())))
	if _, err := l.conn.Exec(ctx, "SELECT pg_create_physical_replication_slot($1, true, true)", slot); err != nil {
		return l.target.fault(ctx, err, "keeping the log by a temporary slot")
	}
	start := "SELECT pg_backup_start($1, true)"
	if version < 150000 {
		start = "SELECT pg_start_backup($1, true, false)"
	}
	_, err := l.conn.Exec(ctx, start, "sluice "+id)
	return l.target.fault(ctx, err, "entering backup mode")
}

// complete refuses to copy a part of a database: tablespaces and the log must lie in the volumes that are copied.
func (l *lease) complete() error {
	if len(l.live) == 0 {
		return nil
	}
	v, err := findVolumes(l.live)
	if err != nil {
		return err
	}
	links, err := v.links()
	if err != nil {
		return err
	}
	for _, link := range links {
		to, err := leadsTo(link)
		if err != nil {
			return err
		}
		if !v.holds(to) {
			return fault.WithRemedy(fault.Newf(fault.Invalid, "%s leads to %s, which is in no volume that is copied", link, to),
				"make it a volume of the database's workload")
		}
	}
	return nil
}

// watch waits until the session ends or watching is cancelled.
func (l *lease) watch(ctx context.Context) {
	defer close(l.watched)
	for {
		err := l.conn.PgConn().WaitForNotification(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			go l.lose(fault.Newf(fault.Lost, "the session that kept the server in backup mode ended: %w", err))
			return
		}
	}
}

// session ends the watch and returns the session, to be used under the lock.
func (l *lease) session() *pgx.Conn {
	l.watching()
	<-l.watched
	return l.conn
}

// lose gives the hold up. The server leaves backup mode and drops the slot with the session.
func (l *lease) lose(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released || l.err != nil {
		return
	}
	l.err = why
	l.target.close(l.session())
	close(l.lost)
}

// Census implements database.Lease.
func (l *lease) Census() database.Catalog { return l.census }

// Level implements database.Lease.
func (l *lease) Level() string { return l.level }

// Lost implements database.Lease.
func (l *lease) Lost() <-chan struct{} { return l.lost }

// Release implements database.Lease.
func (l *lease) Release(ctx context.Context) (database.Assembly, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return database.Assembly{}, l.err
	}
	if l.released {
		return l.assembly, nil
	}
	l.released = true
	l.timer.Stop()
	c := l.session()
	if c.IsClosed() {
		l.err = fault.Newf(fault.Lost, "the session that kept the server in backup mode has ended")
		return database.Assembly{}, l.err
	}
	if l.atomic {
		l.target.close(c)
		l.assembly = database.Assembly{Notes: l.notes}
		return l.assembly, nil
	}
	b, err := l.stop(ctx, c)
	if err != nil {
		l.err = err
		l.target.close(c)
		return database.Assembly{}, err
	}
	// Whoever never finishes the copy must not keep the server's log for ever.
	expire := time.AfterFunc(finishWithin, func() { l.target.close(c) })
	l.assembly = database.Assembly{Notes: append(l.notes, b.String()), Finish: func(ctx context.Context, dirs []string) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if expire.Stop() {
			defer l.target.close(c)
		}
		return b.finish(ctx, c, dirs)
	}}
	return l.assembly, nil
}
