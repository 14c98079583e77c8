package postgres

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/database/databasetest"
	"github.com/sluice-cd/sluice/internal/fault"
)

// logged is a running server whose log is pinned, with what a client has committed since.
type logged struct {
	*instance
	h    *harness
	from string
}

func newLogged(t *testing.T) *logged {
	t.Helper()
	h := newHarness(t)
	dirs := []string{freshData(t, h.bin)}
	s := h.start(t, h.bin.new, dirs, []string{"-c", "max_prepared_transactions=10"})
	s.exec(t, s.home(), "CREATE TABLE t (id bigint PRIMARY KEY, note text)", "CREATE TABLE big (id int, body text)",
		"INSERT INTO t SELECT i, 'n' FROM generate_series(1, 1000) i")
	from, err := New().Pin(t.Context(), "d1/open", s.URL())
	if err != nil {
		t.Fatal(err)
	}
	return &logged{instance: s, h: h, from: from}
}

// counted stops the server cleanly and counts.
func (l *logged) counted(t *testing.T) (database.AtRisk, error) {
	t.Helper()
	l.Stop(t)
	return New().AtRisk(t.Context(), l.dirs, l.from)
}

// TestCountable looks for the programs that read the log. Scripts stand in for those of PostgreSQL 16, which is not installed here.
func TestCountable(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	data := func(version string) []string {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "global"), 0o700); err != nil {
			t.Fatal(err)
		}
		for name, body := range map[string]string{"PG_VERSION": version + "\n", "global/pg_control": ""} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return []string{dir}
	}
	expect := func(dirs []string, want string) {
		t.Helper()
		err := New().Countable(t.Context(), dirs)
		if (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	expect(data("13"), "the log of PostgreSQL 13 is not understood, that of 14 to 17 is")
	for _, name := range []string{"pg_waldump", "pg_controldata"} {
		expect(data("16"), name+" of PostgreSQL 16 is not installed here")
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\necho '"+name+" (PostgreSQL) 16.2'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	expect(data("16"), "")
	expect(nil, "")
}

// transactions are what a client may do, and how many committed writes each is.
var transactions = []struct {
	name   string
	writes int64
	sql    []string
}{
	{"an insert", 1, []string{"INSERT INTO t VALUES ($ID, 'x')"}},
	{"many rows at once", 1, []string{"INSERT INTO t SELECT $ID::bigint * 1000000 + i, 'x' FROM generate_series(1, 200) i"}},
	{"several statements", 1, []string{"BEGIN", "UPDATE t SET note = note || 'y' WHERE id = 5", "DELETE FROM t WHERE id = 7", "INSERT INTO t VALUES ($ID)", "COMMIT"}},
	{"a rollback", 0, []string{"BEGIN", "UPDATE t SET note = 'z' WHERE id = 11", "ROLLBACK"}},
	{"a part that is rolled back", 0, []string{"BEGIN", "SAVEPOINT a", "INSERT INTO t VALUES ($ID)", "ROLLBACK TO a", "COMMIT"}},
	{"a part that is kept", 1, []string{"BEGIN", "SAVEPOINT a", "INSERT INTO t VALUES ($ID)", "RELEASE a", "COMMIT"}},
	{"parts of both kinds", 1, []string{"BEGIN", "SAVEPOINT a", "SAVEPOINT b", "INSERT INTO t VALUES ($ID)", "RELEASE b", "SAVEPOINT c", "DELETE FROM t WHERE id = 9", "ROLLBACK TO c", "COMMIT"}},
	{"reading", 0, []string{"BEGIN", "SELECT count(*) FROM t", "COMMIT"}},
	{"reading with a number", 0, []string{"BEGIN", "SELECT pg_current_xact_id()", "SELECT count(*) FROM t", "COMMIT"}},
	{"locking rows", 0, []string{"BEGIN", "SELECT * FROM t WHERE id < 4 FOR UPDATE", "COMMIT"}},
	{"a temporary table", 0, []string{"CREATE TEMP TABLE temporary AS SELECT * FROM t", "DROP TABLE temporary"}},
	{"an update that matches nothing", 0, []string{"UPDATE t SET note = '' WHERE id = -1"}},
	{"rows out of line", 1, []string{"INSERT INTO big SELECT $ID, string_agg(md5(i::text), '') FROM generate_series(1, 2000) i"}},
	{"a statistic", 0, []string{"ANALYZE t"}},
	{"vacuum and a checkpoint", 0, []string{"VACUUM t", "CHECKPOINT"}},
	{"a new segment", 0, []string{"SELECT pg_switch_wal()"}},
	{"emptying a table", 1, []string{"TRUNCATE big"}},
	{"a table", 1, []string{"CREATE TABLE new$ID AS SELECT 1 AS one"}},
	{"a role", 0, []string{"CREATE ROLE r$ID"}},
	{"a large object", 1, []string{"SELECT lo_from_bytea(0, 'abc')"}},
	{"prepared and committed", 1, []string{"BEGIN", "SAVEPOINT a", "INSERT INTO t VALUES ($ID)", "RELEASE a", "PREPARE TRANSACTION 'a; subxacts: 1'", "COMMIT PREPARED 'a; subxacts: 1'"}},
	{"prepared and rolled back", 0, []string{"BEGIN", "INSERT INTO t VALUES ($ID)", "PREPARE TRANSACTION 'b'", "ROLLBACK PREPARED 'b'"}},
	{"without waiting for the disk", 1, []string{"BEGIN", "SET LOCAL synchronous_commit = off", "INSERT INTO t VALUES ($ID)", "COMMIT"}},
}

// run does one of them on a session of its own.
func (l *logged) run(t *testing.T, statements []string, id int) {
	t.Helper()
	if err := l.tryRun(t.Context(), statements, id); err != nil {
		t.Fatal(err)
	}
}

func (l *logged) tryRun(ctx context.Context, statements []string, id int) error {
	c, err := pgx.Connect(ctx, l.url(l.home()))
	if err != nil {
		return err
	}
	defer c.Close(context.Background())
	for _, q := range statements {
		if _, err := c.Exec(ctx, strings.ReplaceAll(q, "$ID", fmt.Sprint(id))); err != nil {
			return fmt.Errorf("%s: %w", q, err)
		}
	}
	return nil
}

// TestLogCountsEach does each once, alone: a count that is right in sum could be wrong twice.
func TestLogCountsEach(t *testing.T) {
	l := newLogged(t)
	for i, x := range transactions {
		from, err := New().Pin(t.Context(), "d1/open", l.URL())
		if err != nil {
			t.Fatal(err)
		}
		l.from = from
		l.run(t, x.sql, 2000+i)
		r, err := l.counted(t)
		if err != nil || r.Value != x.writes || r.Kind != database.Exact {
			t.Errorf("%s: counted %+v, want %d; %v", x.name, r, x.writes, err)
		}
		l.instance = l.h.start(t, l.h.bin.new, l.dirs, []string{"-c", "max_prepared_transactions=10"})
	}
	if n := l.ask(t, l.home(), "SELECT count(*)::text FROM pg_replication_slots"); n != "1" {
		t.Errorf("pinning again under the same id left %s slots", n)
	}
	for range 2 {
		if err := New().Unpin(t.Context(), "d1/open", l.URL()); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.ask(t, l.home(), "SELECT count(*)::text FROM pg_replication_slots"); n != "0" {
		t.Errorf("%s slots are left", n)
	}
}

// TestLogCountsLedger runs random transactions from several clients at once and holds the count against their ledger.
func TestLogCountsLedger(t *testing.T) {
	l := newLogged(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const clients, each = 3, 60
	ledger := make(chan int64)
	for n := range clients {
		go func() {
			var committed int64
			r := rand.New(rand.NewPCG(seed, uint64(n)))
			for i := range each {
				// What is of one name for all clients would collide.
				x := transactions[r.IntN(13)]
				if err := l.tryRun(t.Context(), x.sql, 10000+n*1000+i); err != nil {
					t.Error(err)
				} else {
					committed += x.writes
				}
			}
			ledger <- committed
		}()
	}
	var want int64
	for range clients {
		want += <-ledger
	}
	r, err := l.counted(t)
	if err != nil || r.Value != want || r.Kind != database.Exact {
		t.Fatalf("counted %+v, the ledger holds %d; %v", r, want, err)
	}
}

// TestLogDoesNotTell holds that what cannot be counted is refused with its reason.
func TestLogDoesNotTell(t *testing.T) {
	refused := func(t *testing.T, l *logged, want string) {
		t.Helper()
		if r, err := l.counted(t); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("counted %+v, %v; want an error with %q", r, err, want)
		}
	}
	t.Run("a pending prepared transaction", func(t *testing.T) {
		l := newLogged(t)
		l.run(t, []string{"BEGIN", "INSERT INTO t VALUES (5000)", "PREPARE TRANSACTION 'p'"}, 0)
		refused(t, l, "1 prepared transaction(s) wait")
	})
	t.Run("one that was prepared before", func(t *testing.T) {
		l := newLogged(t)
		l.run(t, []string{"BEGIN", "INSERT INTO t VALUES (5000)", "PREPARE TRANSACTION 'p'"}, 0)
		var err error
		if l.from, err = New().Pin(t.Context(), "d1/open", l.URL()); err != nil {
			t.Fatal(err)
		}
		l.run(t, []string{"COMMIT PREPARED 'p'"}, 0)
		if r, err := l.counted(t); err != nil || r.Value != 1 || r.Kind != database.AtMost {
			t.Errorf("counted %+v, %v", r, err)
		}
	})
	t.Run("an unlogged table", func(t *testing.T) {
		l := newLogged(t)
		l.run(t, []string{"CREATE UNLOGGED TABLE u (id int)"}, 0)
		refused(t, l, "unlogged")
	})
	t.Run("a server that crashed", func(t *testing.T) {
		l := newLogged(t)
		l.run(t, []string{"INSERT INTO t VALUES (5000)"}, 0)
		l.Kill(t)
		if r, err := New().AtRisk(t.Context(), l.dirs, l.from); err == nil || !strings.Contains(err.Error(), "not stopped cleanly") {
			t.Errorf("counted %+v, %v", r, err)
		}
	})
	t.Run("a log that lost its beginning", func(t *testing.T) {
		l := newLogged(t)
		l.run(t, []string{"INSERT INTO t VALUES (5000)", "SELECT pg_switch_wal()", "INSERT INTO t VALUES (5001)"}, 0)
		l.Stop(t)
		segments, err := filepath.Glob(filepath.Join(l.dirs[0], "pg_wal", "0*"))
		if err != nil || len(segments) < 2 {
			t.Fatal(segments, err)
		}
		if err := os.Remove(segments[0]); err != nil {
			t.Fatal(err)
		}
		if r, err := New().AtRisk(t.Context(), l.dirs, l.from); !fault.Is(err, fault.Lost) {
			t.Errorf("counted %+v, %v", r, err)
		}
	})
	t.Run("a copy", func(t *testing.T) {
		l := newLogged(t)
		l.Stop(t)
		copied := databasetest.Copy(t, l.dirs)
		if _, err := New().Prepare(t.Context(), copied, database.Control); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(filepath.Join(copied[0], "pg_replslot")); err != nil || len(left) != 0 {
			t.Errorf("a copy keeps the slot: %v %v", left, err)
		}
	})
}

// TestWALText holds the parser against lines that it must refuse.
func TestWALText(t *testing.T) {
	const good = "rmgr: Heap        len (rec/tot):     54/    54, tx:        731, lsn: 0/01000028, prev 0/01000000, desc: INSERT off 2 flags 0x00, blkref #0: rel 1663/5/16384 blk 0\n" +
		"rmgr: Transaction len (rec/tot):     34/    34, tx:        731, lsn: 0/01000060, prev 0/01000028, desc: COMMIT 2026-01-01 00:00:00.000000 UTC\n"
	w, err := countWAL(strings.NewReader("first record is after 0/1000010, at 0/1000028, skipping over 24 bytes\n"+good), "0/1000010")
	if err != nil || w.value != 1 {
		t.Errorf("counted %+v, %v", w, err)
	}
	for name, c := range map[string][2]string{
		"a gap":                  {strings.Replace(good, "prev 0/01000028", "prev 0/01000030", 1), "not complete"},
		"a beginning that lacks": {strings.Replace(good, "prev 0/01000000", "prev 0/01000020", 1), "not complete"},
		"another form":           {strings.Replace(good, "desc: COMMIT", "description: COMMIT", 1), "not understood"},
		"an unknown operation":   {strings.Replace(good, "desc: INSERT", "desc: UPSERT", 1), "operation UPSERT of Heap"},
		"an unknown manager":     {strings.Replace(good, "rmgr: Heap ", "rmgr: custom128", 1), "operation INSERT of custom128"},
		"nothing":                {"", "no record"},
	} {
		if _, err := countWAL(strings.NewReader(c[0]), "0/1000010"); err == nil || !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%s: %v, want %q", name, err, c[1])
		}
	}
}
