package cli

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rogpeppe/go-internal/testscript"
)

// postgresPrograms is where the programs of PostgreSQL are.
func postgresPrograms(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("SLUICE_POSTGRES_NEW")
	if dir == "" {
		dir = "/usr/lib/postgresql/15/bin"
	}
	if _, err := os.Stat(filepath.Join(dir, "postgres")); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("there is no PostgreSQL in %s", dir)
		}
		t.Skipf("there is no PostgreSQL in %s: set SLUICE_POSTGRES_NEW", dir)
	}
	return dir
}

// runner is the user that servers run as: PostgreSQL refuses root.
func runner(t *testing.T) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	name := os.Getenv("SLUICE_TEST_USER")
	if name == "" {
		name = "sluice-test"
	}
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatalf("PostgreSQL does not run as root: %v", err)
	}
	uid, uerr := strconv.Atoi(u.Uid)
	gid, gerr := strconv.Atoi(u.Gid)
	if err := errors.Join(uerr, gerr); err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// startPostgres starts a server that listens in a folder only, and returns the folder.
func startPostgres(t *testing.T) string {
	t.Helper()
	bin, as := postgresPrograms(t), runner(t)
	// The name of a socket is at most some hundred bytes long; the test's own folders are not.
	dir, err := os.MkdirTemp("", "sluice-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if as != nil {
		if err := os.Chown(dir, int(as.Uid), int(as.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(dir, "data")
	command := func(program string, args ...string) *exec.Cmd {
		c := exec.Command(filepath.Join(bin, program), args...)
		c.Dir = dir
		c.SysProcAttr = &syscall.SysProcAttr{Credential: as}
		return c
	}
	if out, err := command("initdb", "-D", data, "-U", "admin", "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	var log strings.Builder
	server := command("postgres", "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "max_connections=50")
	server.Stderr = &log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGQUIT) // at once: nobody needs its data any more
		_ = server.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		// The server offers no event for the moment in which it answers.
		if c, err := pgx.Connect(ctx, "postgres://admin@/postgres?host="+dir); err == nil {
			_ = c.Close(ctx)
			return dir
		}
		select {
		case <-ctx.Done():
			t.Fatalf("PostgreSQL does not answer: %s", log.String())
		case <-tick.C:
		}
	}
}

// sqlRun runs statements on a database of the server.
func sqlRun(t *testing.T, dir, database, statements string) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), "postgres://admin@/"+database+"?host="+dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	if _, err := c.PgConn().Exec(t.Context(), statements).ReadAll(); err != nil {
		t.Fatal(err)
	}
}

const shopTables = `
CREATE TABLE customers(id int PRIMARY KEY, email text NOT NULL);
INSERT INTO customers SELECT i, 'c' || i || '@example.org' FROM generate_series(1, 1000) i;
CREATE TABLE orders(id int PRIMARY KEY, customer text NOT NULL, placed timestamptz NOT NULL);
INSERT INTO orders SELECT i, 'customer ' || i, timestamptz '2026-01-01 00:00+00' + i * interval '1 minute' FROM generate_series(1, 5000) i;
CREATE TABLE visits(id int PRIMARY KEY);
INSERT INTO visits SELECT i FROM generate_series(1, 10) i;
`

// TestDataScripts runs testdata/data/*.txtar against two databases of a real server: the second is the first with damage.
func TestDataScripts(t *testing.T) {
	dir := startPostgres(t)
	sqlRun(t, dir, "postgres", "CREATE DATABASE before")
	sqlRun(t, dir, "postgres", "CREATE DATABASE after")
	sqlRun(t, dir, "before", shopTables)
	sqlRun(t, dir, "after", shopTables+`
		UPDATE orders SET placed = placed + interval '1 hour' WHERE id % 12 = 0;
		DELETE FROM orders WHERE id IN (7, 77, 777);
		INSERT INTO orders VALUES (9001, 'nobody', '2026-02-02 00:00+00');
		UPDATE customers SET email = CASE id WHEN 1 THEN 'c2@example.org' ELSE 'c1@example.org' END WHERE id IN (1, 2);`)
	sqlRun(t, dir, "before", "CREATE ROLE poor LOGIN; CREATE ROLE guarded LOGIN PASSWORD 'hunter2'")
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/data",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			clean(e)
			e.Setenv("BEFORE", "postgres://admin@/before?host="+dir)
			e.Setenv("AFTER", "postgres://admin@/after?host="+dir)
			e.Setenv("HOST", dir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}
