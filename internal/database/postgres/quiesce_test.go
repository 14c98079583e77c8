package postgres

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/database/databasetest"
	"github.com/sluice-cd/sluice/internal/fault"
)

// load moves money between accounts, whose sum stays zero in every consistent copy, and makes checkpoints, until stopped.
func load(t *testing.T, s *instance) (stop func()) {
	t.Helper()
	s.exec(t, databasetest.Shop, "CREATE TABLE accounts (id int4 PRIMARY KEY, balance int8 NOT NULL, filler text)",
		"INSERT INTO accounts SELECT i, 0, repeat('x', 400) FROM generate_series(1, 20000) AS i", "ANALYZE accounts")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	run := func(sql string) {
		c, err := pgx.Connect(context.Background(), s.url(databasetest.Shop))
		if err != nil {
			done <- err
			return
		}
		defer c.Close(context.Background())
		for ctx.Err() == nil && err == nil {
			_, err = c.PgConn().Exec(context.Background(), sql).ReadAll()
		}
		done <- err
	}
	go run("BEGIN; UPDATE accounts SET balance = balance - 1 WHERE id = 1 + random() * 19998; " +
		"UPDATE accounts SET balance = balance + 1 WHERE id = 20000; " +
		"UPDATE accounts SET balance = -(SELECT sum(balance) FROM accounts WHERE id <> 20000) WHERE id = 20000; COMMIT")
	go run("CHECKPOINT")
	return func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
}

var consistentAt = regexp.MustCompile(`consistent recovery state reached at ([0-9A-F]+/[0-9A-F]+)`)

// TestBackupUnderLoad copies a server that is being written and makes checkpoints, starts the clone and looks whether it
// became consistent where the backup said.
func TestBackupUnderLoad(t *testing.T) {
	h := newHarness(t, "-c", "checkpoint_timeout=30s")
	s := h.start(t, h.bin.old, []string{freshData(t, h.bin)}, nil)
	s.Fill(t, 5000)
	stop := load(t, s)
	defer stop()
	copies := 1
	if os.Getenv("SLUICE_LONG") != "" {
		copies = 25
	}
	for i := range copies {
		lease, err := New().Quiesce(t.Context(), database.QuiesceRequest{ID: fmt.Sprintf("load-%d", i), URL: s.URL(), Dirs: s.dirs, MaxHold: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		dirs := databasetest.Copy(t, s.dirs)
		a, err := lease.Release(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n := s.ask(t, "postgres", "SELECT count(*) FROM pg_replication_slots WHERE temporary"); n != "1" {
			t.Errorf("%s slots keep the log until the copy is finished", n)
		}
		if err := a.Finish(t.Context(), dirs); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the slot is gone", func() bool { return s.ask(t, "postgres", "SELECT count(*) FROM pg_replication_slots") == "0" })
		consistent(t, h, dirs, a.Notes)
	}
}

// consistent starts a clone of a finished copy.
func consistent(t *testing.T, h *harness, dirs, notes []string) {
	t.Helper()
	l, err := New().Prepare(t.Context(), dirs, database.Control)
	if err != nil {
		t.Fatal(err)
	}
	clone := h.start(t, h.bin.new, dirs, l.Args)
	defer clone.Stop(t)
	stop := regexp.MustCompile(`consistent at ([0-9A-F]+/[0-9A-F]+)`).FindStringSubmatch(strings.Join(notes, " "))
	at := consistentAt.FindStringSubmatch(clone.log.String())
	if stop == nil || at == nil {
		t.Fatalf("notes %v; the clone does not say where it became consistent: %s", notes, clone.log)
	}
	if clone.ask(t, "postgres", fmt.Sprintf("SELECT '%s'::pg_lsn >= '%s'::pg_lsn", at[1], stop[1])) != "t" {
		t.Errorf("the clone became consistent at %s, the backup ended at %s", at[1], stop[1])
	}
	if sum := clone.ask(t, databasetest.Shop, "SELECT sum(balance) FROM accounts"); sum != "0" {
		t.Errorf("the balances of the clone sum up to %s", sum)
	}
	db, err := New().Open(t.Context(), clone.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Check(t.Context(), database.Full, func(f database.Finding) { t.Errorf("%+v", f) }); err != nil {
		t.Error(err)
	}
}

// TestBackupIsNotFinished shows what happens to copies that are used without what the backup mode left.
func TestBackupIsNotFinished(t *testing.T) {
	h := newHarness(t, "-c", "fsync=off")
	s := h.start(t, h.bin.old, []string{freshData(t, h.bin)}, nil)
	s.Fill(t, 1000)
	lease, err := New().Quiesce(t.Context(), database.QuiesceRequest{ID: "x", URL: s.URL(), Dirs: s.dirs, MaxHold: time.Minute, Atomic: true})
	if err != nil {
		t.Fatal(err)
	}
	if lease.Level() != levelAssembled {
		t.Errorf("without fsync the copy is %s", lease.Level())
	}
	s.exec(t, databasetest.Shop, "INSERT INTO orders SELECT "+orderValues+" FROM generate_series(2000, 3000) AS i", "SELECT pg_switch_wal()",
		"CHECKPOINT")
	dirs := databasetest.Copy(t, s.dirs)
	a, err := lease.Release(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Finish(t.Context(), s.dirs); !fault.Is(err, fault.Invalid) {
		t.Errorf("finishing the running server as if it were its copy gives %v", err)
	}
	if err := a.Finish(t.Context(), dirs); err == nil {
		t.Error("a backup that was not finished in its only try can still be")
	}
}

// TestCloneWithoutLog takes the last segment out of a finished copy: it must not start.
func TestCloneWithoutLog(t *testing.T) {
	h := newHarness(t, "-c", "fsync=off")
	s := h.start(t, h.bin.old, []string{freshData(t, h.bin)}, nil)
	s.Fill(t, 1000)
	lease, err := New().Quiesce(t.Context(), database.QuiesceRequest{ID: "x", URL: s.URL(), Dirs: s.dirs, MaxHold: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	s.exec(t, databasetest.Shop, "INSERT INTO orders SELECT "+orderValues+" FROM generate_series(2000, 3000) AS i", "SELECT pg_switch_wal()",
		"CHECKPOINT")
	dirs := databasetest.Copy(t, s.dirs)
	a, err := lease.Release(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Finish(t.Context(), dirs); err != nil {
		t.Fatal(err)
	}
	l, err := New().Prepare(t.Context(), dirs, database.Control)
	if err != nil {
		t.Fatal(err)
	}
	segments := names(t, filepath.Join(dirs[0], "pg_wal"))
	last := ""
	for _, name := range segments {
		if walSegment.MatchString(name) {
			last = max(last, name)
		}
	}
	if err := os.Remove(filepath.Join(dirs[0], "pg_wal", last)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.tryStart(t, h.bin.new, dirs, l.Args); err == nil || !strings.Contains(err.Error(), "WAL ends before end of online backup") {
		t.Errorf("a clone without the end of its log: %v", err)
	}
}

// TestLeaseIsLost ends the session from outside.
func TestLeaseIsLost(t *testing.T) {
	h := newHarness(t, "-c", "fsync=off")
	s := h.start(t, h.bin.old, []string{freshData(t, h.bin)}, nil)
	for _, atomic := range []bool{true, false} {
		lease, err := New().Quiesce(t.Context(), database.QuiesceRequest{ID: "x", URL: s.URL(), Dirs: s.dirs, MaxHold: time.Minute, Atomic: atomic})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-lease.Lost():
			t.Fatal("it is lost at once")
		default:
		}
		if n := s.ask(t, "postgres", "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'sluice/x'"); n != "1" {
			t.Fatalf("%s sessions hold the lease", n)
		}
		select {
		case <-lease.Lost():
		case <-time.After(10 * time.Second):
			t.Fatal("its session is gone, and it is not lost")
		}
		if _, err := lease.Release(t.Context()); !fault.Is(err, fault.Lost) {
			t.Errorf("release gives %v", err)
		}
	}
}

// TestIncompleteSet refuses to copy a part of a database.
func TestIncompleteSet(t *testing.T) {
	h := newHarness(t, "-c", "fsync=off")
	s := h.start(t, h.bin.old, []string{freshData(t, h.bin)}, nil)
	spaces := databasetest.Root(t)
	own(t, spaces)
	s.exec(t, "postgres", "CREATE TABLESPACE aside LOCATION '"+spaces+"'")
	_, err := New().Quiesce(t.Context(), database.QuiesceRequest{ID: "x", URL: s.URL(), Dirs: s.dirs, MaxHold: time.Minute})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), spaces) {
		t.Errorf("got %v", err)
	}
}

// TestGrants gives a role what Grants prints and does everything with it.
func TestGrants(t *testing.T) {
	h := newHarness(t, "-c", "fsync=off")
	s := h.start(t, h.bin.old, []string{freshData(t, h.bin)}, nil)
	s.Fill(t, 1000)
	s.exec(t, databasetest.Shop, "ALTER TABLE orders ENABLE ROW LEVEL SECURITY; ALTER TABLE orders FORCE ROW LEVEL SECURITY; CREATE SEQUENCE s")
	u := database.URL{Value: strings.Replace(s.url(databasetest.Shop), "sluice@", "least@", 1)}
	s.exec(t, databasetest.Shop, "CREATE ROLE least LOGIN")
	before, err := New().Preflight(t.Context(), u)
	if err != nil || len(before) < 6 {
		t.Errorf("a role without privileges lacks %v, %v", before, err)
	}
	s.exec(t, databasetest.Shop, "DROP ROLE least", New().Grants("least"))
	s.exec(t, "postgres", regexp.MustCompile(`(?s)CREATE EXTENSION.*`).FindString(New().Grants("least")))
	if after, err := New().Preflight(t.Context(), u); err != nil || len(after) > 0 {
		t.Errorf("after the grants it lacks %v, %v", after, err)
	}
	db, err := New().Open(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	c, err := db.Catalog(t.Context())
	if err != nil || len(c.NotComparable) > 0 {
		t.Fatalf("not comparable: %v, %v", c.NotComparable, err)
	}
	for _, r := range c.Relations {
		if r.Skip != "" {
			t.Errorf("%s: %s", r.Name, r.Skip)
		}
	}
	r, p := relation(t, c, "public.orders")
	v, err := db.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if n := len(scan(t, v, r, p)); n != 1000 {
		t.Errorf("%d rows", n)
	}
	if err := db.Check(t.Context(), database.Full, func(f database.Finding) { t.Errorf("%+v", f) }); err != nil {
		t.Error(err)
	}
	for _, atomic := range []bool{true, false} {
		lease, err := New().Quiesce(t.Context(), database.QuiesceRequest{ID: "least", URL: u, Dirs: s.dirs, MaxHold: time.Minute, Atomic: atomic})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := lease.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
