package mongodb

import (
	"context"
	"database/sql"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/database/databasetest"
	"github.com/sluice-cd/sluice/internal/fault"
)

// started returns a filled server.
func started(t testing.TB, version string, n int) *ferret {
	t.Helper()
	f := harness{version}.New(t).(*ferret)
	f.Fill(t, n)
	return f
}

func lend(t testing.TB, f *ferret, most time.Duration) *lease {
	t.Helper()
	l, err := newEngine().Quiesce(t.Context(), database.QuiesceRequest{ID: t.Name(), URL: f.URL(), Dirs: f.Dirs(), MaxHold: most})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.(*lease).abandon)
	return l.(*lease)
}

// outside opens a file of SQLite as another program would, without FerretDB.
func outside(t testing.TB, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?mode=rw&_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func (f *ferret) file() string { return filepath.Join(f.dir, databasetest.Shop+extension) }

// TestWithoutLog leaves the write-ahead log out of a copy. Both what ends the copy and what compares the started copy
// with the census must tell: the file alone opens without a complaint.
func TestWithoutLog(t *testing.T) {
	t.Parallel()
	f := started(t, older, 6000)
	// What the last batch left is in the file itself, because SQLite moves it there by and by; these are in the log only.
	for i := range int64(20) {
		if err := f.Insert(t.Context(), 1_000_000+i); err != nil {
			t.Fatal(err)
		}
	}
	l := lend(t, f, 0)
	dirs := databasetest.Copy(t, f.Dirs())
	assembly, err := l.Release(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := assembly.Finish(t.Context(), dirs); err != nil {
		t.Errorf("a whole copy is refused: %v", err)
	}
	log := filepath.Join(dirs[0], databasetest.Shop+extension+writeAheadLog)
	if st, err := os.Stat(log); err != nil || st.Size() == 0 {
		t.Fatalf("there is no log to leave out: %v", err)
	}
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	if err := assembly.Finish(t.Context(), dirs); !fault.Is(err, fault.Lost) || !strings.Contains(err.Error(), writeAheadLog) {
		t.Errorf("a copy without its log gives %v", err)
	}
	clone := databasetest.Raise(t, harness{older}, dirs, database.Control)
	s, err := newEngine().Open(t.Context(), clone.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	have, err := s.Catalog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if lacks := database.Covers(l.Census(), have); !slices.ContainsFunc(lacks, func(x database.Finding) bool {
		return x.Class == database.LacksRows || x.Class == database.LacksRelation || x.Class == database.LacksDatabase
	}) {
		t.Errorf("the census covers a copy without its log: %v", lacks)
	}
}

// TestHelperKilled kills the process that holds writers: the lease is lost and the writers go on.
func TestHelperKilled(t *testing.T) {
	t.Parallel()
	f := started(t, newer, 100)
	l := lend(t, f, 0)
	done := make(chan error, 1)
	begun := time.Now()
	go func() { done <- f.Insert(context.Background(), 1_000_001) }()
	select {
	case err := <-done:
		t.Fatalf("a write went through under the hold: %v", err)
	case <-time.After(300 * time.Millisecond): // it is held
	}
	if err := l.command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-l.Lost():
	case <-time.After(5 * time.Second):
		t.Error("the lease of a dead holder is not lost")
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("the writer went on after %s", took)
	}
	if _, err := l.Release(t.Context()); !fault.Is(err, fault.Lost) {
		t.Errorf("releasing a lost lease gives %v", err)
	}
}

// TestDatabasesChange creates or drops a database while the others are held: nothing keeps FerretDB from that, so the
// copy must be refused.
func TestDatabasesChange(t *testing.T) {
	t.Parallel()
	f := started(t, newer, 10)
	other := f.client.Database("other").Collection("things")
	if _, err := f.client.Database("spare").Collection("things").InsertOne(t.Context(), bson.D{{Key: "_id", Value: "a"}}); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func() error{
		"other was created": func() error {
			_, err := other.InsertOne(context.Background(), bson.D{{Key: "_id", Value: "a"}})
			return err
		},
		"spare was dropped": func() error { return f.client.Database("spare").Drop(context.Background()) },
	} {
		l := lend(t, f, 0)
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Release(t.Context()); !fault.Is(err, fault.Transient) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: releasing gives %v", name, err)
		}
	}
	if _, err := lend(t, f, 0).Release(t.Context()); err != nil {
		t.Errorf("the next lease: %v", err)
	}
}

// TestCheckpointUnderHold forces checkpoints while a copy is made, by another program, in every mode there is.
func TestCheckpointUnderHold(t *testing.T) {
	t.Parallel()
	f := started(t, older, 5000)
	for i, mode := range []string{"PASSIVE", "FULL", "RESTART", "TRUNCATE"} {
		if err := f.Insert(t.Context(), 1_000_000+int64(i)); err != nil {
			t.Fatal(err)
		}
		l := lend(t, f, 0)
		var busy, log, moved int
		db := outside(t, f.file())
		if _, err := db.Exec("PRAGMA busy_timeout = 0"); err != nil {
			t.Fatal(err)
		}
		if err := db.QueryRow("PRAGMA wal_checkpoint("+mode+")").Scan(&busy, &log, &moved); err != nil {
			t.Fatal(err)
		}
		dirs := databasetest.Copy(t, f.Dirs())
		assembly, err := l.Release(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := assembly.Finish(t.Context(), dirs); err != nil {
			t.Errorf("%s: %v", mode, err)
		}
		clone := databasetest.Raise(t, harness{older}, dirs, database.Control).(*ferret)
		n, err := clone.collection(databasetest.Orders).CountDocuments(t.Context(), bson.D{})
		if err != nil {
			t.Fatal(err)
		}
		if have, _ := f.collection(databasetest.Orders).CountDocuments(t.Context(), bson.D{}); n != have {
			t.Errorf("%s (busy %d, %d of %d frames): the clone holds %d of %d documents", mode, busy, moved, log, n, have)
		}
	}
}

// TestQuiesceRefuses is what must not be held.
func TestQuiesceRefuses(t *testing.T) {
	t.Parallel()
	a, b := started(t, newer, 10), started(t, newer, 10)
	if _, err := b.client.Database("second").Collection("x").InsertOne(t.Context(), bson.D{{Key: "_id", Value: 1}}); err != nil {
		t.Fatal(err)
	}
	q := func(u database.URL, dirs ...string) error {
		l, err := newEngine().Quiesce(t.Context(), database.QuiesceRequest{ID: t.Name(), URL: u, Dirs: dirs})
		if err == nil {
			_, _ = l.Release(t.Context())
		}
		return err
	}
	if err := q(b.URL(), a.dir); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), `"second"`) {
		t.Errorf("a server of other files: %v", err)
	}
	if err := q(a.URL(), t.TempDir()); !fault.Is(err, fault.NotFound) {
		t.Errorf("a directory without a database: %v", err)
	}
	dir := t.TempDir()
	if err := os.Symlink(a.file(), filepath.Join(dir, databasetest.Shop+extension)); err != nil {
		t.Fatal(err)
	}
	if err := q(a.URL(), dir); !fault.Is(err, fault.Denied) {
		t.Errorf("a link to a database: %v", err)
	}
	e := New(Options{HelperCommand: []string{"/nonexistent/program"}})
	if _, err := e.Quiesce(t.Context(), database.QuiesceRequest{URL: a.URL(), Dirs: a.Dirs()}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a helper that is not there: %v", err)
	}
	e = New(Options{HelperCommand: []string{"/bin/sh", "-c", "echo gone wrong >&2"}})
	if _, err := e.Quiesce(t.Context(), database.QuiesceRequest{URL: a.URL(), Dirs: a.Dirs()}); err == nil || !strings.Contains(err.Error(), "gone wrong") {
		t.Errorf("a helper that fails: %v", err)
	}
	// A writer that does not let go keeps the lease away, with a reason.
	db := outside(t, a.file())
	if _, err := db.Exec("BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	l, err := newEngine().Quiesce(t.Context(), database.QuiesceRequest{URL: a.URL(), Dirs: a.Dirs(), MaxHold: 500 * time.Millisecond})
	if !fault.Is(err, fault.Transient) {
		t.Errorf("a writer that does not let go: %v, %v", l, err)
	}
}

// TestHelperByItself is a person who calls the hidden command.
func TestHelperByItself(t *testing.T) {
	t.Parallel()
	for _, input := range []string{"", "hello\n", "{}\n"} {
		cmd := exec.Command(os.Args[0], helperWord)
		cmd.Stdin = strings.NewReader(input)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "started by Sluice") {
			t.Errorf("%q: %v, %s", input, err, out)
		}
	}
}

// TestPrepareRefuses is what leads out of a copy.
func TestPrepareRefuses(t *testing.T) {
	t.Parallel()
	source := filepath.Join(t.TempDir(), "live.sqlite")
	if err := os.WriteFile(source, []byte("live"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := func(make func(old, new string) error, old, name string) func(string) error {
		return func(dir string) error { return make(old, filepath.Join(dir, name)) }
	}
	write := func(name string) func(string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), nil, 0o600) }
	}
	for _, c := range []struct {
		what string
		make []func(string) error
		kind fault.Kind
	}{
		{"a symbolic link to a live file", []func(string) error{link(os.Symlink, source, "shop.sqlite")}, fault.Denied},
		{"a symbolic link to a live directory", []func(string) error{write("a.sqlite"), link(os.Symlink, filepath.Dir(source), "more")}, fault.Denied},
		{"a symbolic link to nothing", []func(string) error{write("a.sqlite"), link(os.Symlink, "/nonexistent/x.sqlite", "x.sqlite")}, fault.Denied},
		{"a hard link to a live file", []func(string) error{link(os.Link, source, "shop.sqlite")}, fault.Denied},
		{"mongod's files", []func(string) error{write("WiredTiger.wt")}, fault.Invalid},
		{"no database", []func(string) error{write("readme")}, fault.NotFound},
		{"links inside", []func(string) error{write("a.sqlite"), link(os.Symlink, "a.sqlite", "b.sqlite"),
			func(dir string) error { return os.Link(filepath.Join(dir, "a.sqlite"), filepath.Join(dir, "c.sqlite")) }}, ""},
	} {
		dir := t.TempDir()
		for _, f := range c.make {
			if err := f(dir); err != nil {
				t.Fatal(err)
			}
		}
		for _, role := range []database.Role{database.Control, database.Candidate, database.Rehearsal, database.Upgrade} {
			if _, err := newEngine().Prepare(t.Context(), []string{dir}, role); fault.KindOf(err) != c.kind {
				t.Errorf("%s as %s: %v", c.what, role, err)
			}
		}
	}
	if b, err := os.ReadFile(source); err != nil || string(b) != "live" {
		t.Errorf("the live file: %q, %v", b, err)
	}
}

// TestNobodyIsHeldForAnAtomicCut takes the lease of volumes whose files are not at hand: writers go on.
func TestNobodyIsHeldForAnAtomicCut(t *testing.T) {
	t.Parallel()
	f := started(t, older, 300)
	l, err := newEngine().Quiesce(t.Context(), database.QuiesceRequest{ID: t.Name(), URL: f.URL(), Atomic: true, MaxHold: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if l.Level() != levelRecoverable || len(l.Census().Relations) == 0 {
		t.Errorf("level %s, census %v", l.Level(), l.Census().Relations)
	}
	if err := f.Insert(t.Context(), 1_000_000); err != nil {
		t.Errorf("a writer is held: %v", err)
	}
	a, err := l.Release(t.Context())
	if err != nil || a.Finish != nil {
		t.Errorf("release: %v, something is left to do: %v", err, a.Finish != nil)
	}
	if lacking := database.Covers(l.Census(), catalogOf(t, f)); len(lacking) > 0 {
		t.Errorf("the source itself lacks %v", lacking)
	}
}

func catalogOf(t *testing.T, f *ferret) database.Catalog {
	t.Helper()
	s, err := newEngine().Open(t.Context(), f.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := s.Catalog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}
