package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/database/databasetest"
	"github.com/sluice-cd/sluice/internal/fault"
)

// dangerous is a production server that reaches out in every way: it archives by ALTER SYSTEM, has slots, publishes,
// subscribes, waits for a synchronous standby, keeps a table in a tablespace on another volume and its log on a third.
type dangerous struct {
	*instance
	publisher *instance
	archive   string
	outside   []string // directories that no clone may touch
}

func newDangerous(t *testing.T) *dangerous {
	h := newHarness(t, "-c", "fsync=off", "-c", "wal_level=logical", "-c", "log_connections=on", "-c", "log_replication_commands=on", "-c",
		"max_prepared_transactions=5")
	publisher := h.start(t, h.bin.new, []string{freshData(t, h.bin)}, nil)
	publisher.exec(t, "postgres", "CREATE TABLE feed (id int4 PRIMARY KEY); INSERT INTO feed VALUES (1); CREATE PUBLICATION feed FOR TABLE feed")
	d := &dangerous{publisher: publisher, archive: databasetest.Root(t)}
	own(t, d.archive)
	data, spaces, wal := freshData(t, h.bin), databasetest.Root(t), databasetest.Root(t)
	own(t, spaces)
	for _, dir := range []string{filepath.Join(spaces, "fast"), filepath.Join(wal, "log")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		own(t, dir)
	}
	// The log lives on a volume of its own, behind a link, as initdb --waldir makes it.
	moveInto(t, filepath.Join(data, "pg_wal"), filepath.Join(wal, "log"))
	appendTo(t, filepath.Join(data, "postgresql.conf"), "cron.launch_active_jobs = on\n")
	d.instance = h.start(t, h.bin.old, []string{data, spaces, wal}, nil)
	d.Fill(t, 5000)
	d.exec(t, "postgres", "ALTER SYSTEM SET archive_mode = on", fmt.Sprintf("ALTER SYSTEM SET archive_command = 'cp %%p %s/%%f'", d.archive),
		"ALTER SYSTEM SET synchronous_commit = local", "ALTER SYSTEM SET primary_conninfo = 'host=nobody password=s3cret'",
		"SELECT pg_create_physical_replication_slot('standby', true)", fmt.Sprintf("CREATE TABLESPACE fast LOCATION '%s/fast'", spaces),
		"CREATE TABLE feed (id int4 PRIMARY KEY)",
		fmt.Sprintf("CREATE SUBSCRIPTION feed CONNECTION 'host=%s port=%s user=sluice dbname=postgres' PUBLICATION feed", publisher.address, port))
	d.exec(t, databasetest.Shop, "CREATE TABLE archive TABLESPACE fast AS SELECT i FROM generate_series(1, 1000) AS i",
		"SELECT pg_create_logical_replication_slot('changes', 'pgoutput')")
	d.Stop(t)
	d.instance = h.start(t, h.bin.old, d.dirs, nil) // archiving begins with a start
	d.exec(t, databasetest.Shop, "BEGIN; INSERT INTO archive VALUES (-1); PREPARE TRANSACTION 'undecided'", "SELECT pg_switch_wal()", "CHECKPOINT")
	d.outside = append(slices.Clone(d.dirs), d.archive)
	return d
}

// moveInto moves a directory's files and leaves a link.
func moveInto(t testing.TB, from, to string) {
	t.Helper()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(from); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(to, from); err != nil {
		t.Fatal(err)
	}
}

// exercise makes a clone do all that it could do harm with.
func exercise(t *testing.T, s *instance) {
	t.Helper()
	s.exec(t, databasetest.Shop, "INSERT INTO archive SELECT generate_series(1, 10000)", "DELETE FROM archive WHERE i < 500", "VACUUM archive",
		"UPDATE orders SET note = 'clone'",
		"SELECT pg_switch_wal()", "INSERT INTO archive VALUES (0)", "SELECT pg_switch_wal()", "CHECKPOINT")
	if n := s.ask(t, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ '(logical|archiver|walsender|walreceiver)'"); n != "0" {
		t.Errorf("%s processes of the clone talk to others", n)
	}
	if n := s.ask(t, "postgres", "SELECT count(*) FROM pg_replication_slots"); n != "0" {
		t.Errorf("the clone has %s replication slots", n)
	}
}

// TestQuarantine starts, writes, checkpoints and stops a clone of such a server. Archive, slots, every byte outside the
// copy and the publisher's connections must be as they were.
func TestQuarantine(t *testing.T) {
	d := newDangerous(t)
	waitFor(t, "the archive holds a segment", func() bool { return len(names(t, d.archive)) > 0 })
	waitFor(t, "the subscription has its row", func() bool { return d.ask(t, "postgres", "SELECT count(*) FROM feed") == "1" })
	d.Stop(t)
	dirs := databasetest.Copy(t, d.dirs)
	before, published := databasetest.Tree(t, d.outside), connections(d.publisher)

	l, err := New().Prepare(t.Context(), dirs, database.Control)
	if err != nil {
		t.Fatal(err)
	}
	notes := strings.Join(l.Notes, "\n")
	for _, want := range []string{"replication slot standby was removed", "replication slot changes was removed", "prepared transaction",
		"archive_command was", "fast and now leads to", "log and now leads to",
		"primary_conninfo was set"} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notes do not say %q:\n%s", want, notes)
		}
	}
	if strings.Contains(notes, "s3cret") {
		t.Errorf("the notes tell a password: %s", notes)
	}
	clone := d.h.start(t, d.h.bin.new, dirs, l.Args)
	exercise(t, clone)
	clone.Stop(t)
	if after := databasetest.Tree(t, d.outside); after != before {
		t.Errorf("files outside of the copy have changed:\n%s", firstDifference(before, after))
	}
	if now := connections(d.publisher); now != published {
		t.Errorf("the publisher had %d connections, now %d", published, now)
	}
	d.instance = d.h.start(t, d.h.bin.old, d.dirs, nil)
	if n := d.ask(t, "postgres", "SELECT count(*) FROM pg_replication_slots WHERE slot_name IN ('standby', 'changes')"); n != "2" {
		t.Errorf("production has %s of its slots", n)
	}
	if n := d.ask(t, databasetest.Shop, "SELECT count(*) FROM archive"); n != "1000" {
		t.Errorf("production's table in the tablespace has %s rows", n)
	}
}

// TestQuarantineOfBackup is the same for a copy of the running server, put together by the backup mode, whose map of
// tablespaces names production's directories.
func TestQuarantineOfBackup(t *testing.T) {
	d := newDangerous(t)
	lease, err := New().Quiesce(t.Context(), database.QuiesceRequest{ID: "backup", URL: d.URL(), Dirs: d.dirs, MaxHold: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	dirs := databasetest.Copy(t, d.dirs)
	a, err := lease.Release(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Finish(t.Context(), dirs); err != nil {
		t.Fatal(err)
	}
	d.Stop(t)
	before := databasetest.Tree(t, d.outside)
	l, err := New().Prepare(t.Context(), dirs, database.Candidate)
	if err != nil {
		t.Fatal(err)
	}
	clone := d.h.start(t, d.h.bin.new, dirs, l.Args)
	exercise(t, clone)
	clone.Stop(t)
	if after := databasetest.Tree(t, d.outside); after != before {
		t.Errorf("files outside of the copy have changed:\n%s", firstDifference(before, after))
	}
}

// TestPrepareRefuses shows what cannot be neutralised.
func TestPrepareRefuses(t *testing.T) {
	elsewhere := databasetest.Root(t)
	tests := []struct {
		name  string
		twist func(t *testing.T, data string)
		want  string
	}{
		{"a tablespace that was not copied", func(t *testing.T, data string) {
			symlink(t, elsewhere, filepath.Join(data, "pg_tblspc", "16400"))
		}, "pg_tblspc/16400"},
		{"a log that was not copied", func(t *testing.T, data string) {
			if err := os.RemoveAll(filepath.Join(data, "pg_wal")); err != nil {
				t.Fatal(err)
			}
			symlink(t, elsewhere, filepath.Join(data, "pg_wal"))
		}, "pg_wal"},
		{"a link into nowhere known", func(t *testing.T, data string) { symlink(t, elsewhere, filepath.Join(data, "log")) }, "log leads to"},
		{"an include outside", func(t *testing.T, data string) {
			appendTo(t, filepath.Join(data, "postgresql.conf"), "include '"+elsewhere+"/more.conf'\n")
		}, "postgresql.conf:"},
		{"an include_dir outside, in an included file", func(t *testing.T, data string) {
			appendTo(t, filepath.Join(data, "postgresql.conf"), "include_if_exists 'more.conf' # fine\n")
			appendTo(t, filepath.Join(data, "more.conf"), "\ninclude_dir = '../../elsewhere'\n")
		}, "more.conf:2"},
		{"a running server", func(t *testing.T, data string) {
			cmd := sleeper(t, data)
			appendTo(t, filepath.Join(data, "postmaster.pid"), fmt.Sprintf("%d\n", cmd))
		}, "is running"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			data := skeleton(t)
			test.twist(t, data)
			_, err := New().Prepare(t.Context(), []string{data}, database.Control)
			if fault.KindOf(err) != fault.Invalid && fault.KindOf(err) != fault.Conflict || !strings.Contains(fmt.Sprint(err), test.want) {
				t.Errorf("got %v, want an error about %q", err, test.want)
			}
		})
	}
	t.Run("no data directory", func(t *testing.T) {
		if _, err := New().Prepare(t.Context(), []string{t.TempDir()}, database.Control); !fault.Is(err, fault.NotFound) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("two data directories", func(t *testing.T) {
		if _, err := New().Prepare(t.Context(), []string{skeleton(t), skeleton(t)}, database.Control); !fault.Is(err, fault.Invalid) {
			t.Errorf("got %v", err)
		}
	})
}

// TestPrepareConfiguration shows what the command line says for what configuration files said.
func TestPrepareConfiguration(t *testing.T) {
	data := skeleton(t)
	elsewhere := databasetest.Root(t)
	appendTo(t, filepath.Join(data, "postgresql.conf"), `
shared_preload_libraries = 'pg_cron, pg_stat_statements,$libdir/timescaledb' # a comment
archive_library 'it''s'
Data_Directory='`+elsewhere+`'
hba_file = '`+elsewhere+`/pg_hba.conf'
include_dir 'conf.d'
`)
	if err := os.Mkdir(filepath.Join(data, "conf.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	appendTo(t, filepath.Join(data, "conf.d", "1.conf"), "synchronous_standby_names = 'a'\n")
	appendTo(t, filepath.Join(data, "conf.d", "2.conf"), "synchronous_standby_names = 'b'\n")
	appendTo(t, filepath.Join(data, "standby.signal"), "")
	l, err := New().Prepare(t.Context(), []string{data}, database.Rehearsal)
	if err != nil {
		t.Fatal(err)
	}
	args, notes := strings.Join(l.Args, " "), strings.Join(l.Notes, "\n")
	for _, want := range []string{"shared_preload_libraries=pg_stat_statements ", "data_directory=" + data, "hba_file=" + data + "/pg_hba.conf",
		"archive_mode=off", "restore_command= ",
		"max_logical_replication_workers=0", "cron.launch_active_jobs=off", "synchronous_standby_names= ", "unix_socket_directories= "} {
		if !strings.Contains(args+" ", want) {
			t.Errorf("the arguments do not hold %q: %s", want, args)
		}
	}
	for _, want := range []string{"pg_cron, $libdir/timescaledb not loaded",
		`archive_library was "it's"`, `synchronous_standby_names was "b"`, "standby.signal was removed"} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notes do not hold %q:\n%s", want, notes)
		}
	}
	if _, err := os.Stat(filepath.Join(data, "standby.signal")); !os.IsNotExist(err) {
		t.Error("standby.signal is still there")
	}
}

// names lists a directory.
func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// waitFor polls for what the server gives no event of.
func waitFor(t testing.TB, what string, is func() bool) {
	t.Helper()
	deadline, tick := time.After(30*time.Second), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after 30 s it is still not so that %s", what)
		}
	}
}

// connections counts the replication connections that a server has seen.
func connections(s *instance) int {
	return len(regexp.MustCompile(`replication connection authorized|received replication command`).FindAllString(s.log.String(), -1))
}

// firstDifference returns the lines that only one of two texts has.
func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	var out []string
	for _, l := range x {
		if !slices.Contains(y, l) && len(out) < 10 {
			out = append(out, "- "+l)
		}
	}
	for _, l := range y {
		if !slices.Contains(x, l) && len(out) < 20 {
			out = append(out, "+ "+l)
		}
	}
	return strings.Join(out, "\n")
}

func symlink(t testing.TB, to, link string) {
	t.Helper()
	if err := os.Symlink(to, link); err != nil {
		t.Fatal(err)
	}
}

func appendTo(t testing.TB, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	own(t, path)
}

// TestRepoint finds tablespaces in the copy by the end of their paths, and refuses to guess.
func TestRepoint(t *testing.T) {
	tests := []struct {
		name    string
		links   map[string]string // of pg_tblspc
		copied  []string          // below the second volume
		want    map[string]string
		refused bool
	}{
		{name: "two on one volume", links: map[string]string{"1": "/prod/ts/fast", "2": "/prod/ts/slow"}, copied: []string{"fast", "slow"}, want: map[string]string{"1": "fast", "2": "slow"}},
		{name: "one, under another name", links: map[string]string{"1": "/prod/ts"}, copied: []string{"."}, want: map[string]string{"1": "."}},
		{name: "which of two", links: map[string]string{"1": "/prod/one"}, copied: []string{"a", "b"}, refused: true},
		{name: "none", links: map[string]string{"1": "/prod/one"}, refused: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			data, spaces := skeleton(t), databasetest.Root(t)
			for oid, to := range test.links {
				symlink(t, to, filepath.Join(data, "pg_tblspc", oid))
			}
			for _, dir := range test.copied {
				if err := os.MkdirAll(filepath.Join(spaces, dir, "PG_15_202209061"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // a second call finds everything done
				_, err := New().Prepare(t.Context(), []string{data, spaces}, database.Control)
				if fault.Is(err, fault.Invalid) != test.refused {
					t.Fatalf("got %v", err)
				}
				for oid, dir := range test.want {
					if to, err := os.Readlink(filepath.Join(data, "pg_tblspc", oid)); err != nil || to != filepath.Join(spaces, dir) {
						t.Errorf("tablespace %s leads to %s, %v", oid, to, err)
					}
				}
			}
		})
	}
}
