package data_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/deployfile"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// postgresBin is the directory with the programs of one PostgreSQL version.
func postgresBin(t *testing.T, env, otherwise string) string {
	t.Helper()
	bin := os.Getenv(env)
	if bin == "" {
		bin = otherwise
	}
	bin, err := filepath.Abs(bin)
	if err == nil {
		_, err = os.Stat(filepath.Join(bin, "postgres"))
	}
	if err != nil {
		t.Fatalf("PostgreSQL of %s is missing: run test/postgres, and install postgresql-15 (%v)", env, err)
	}
	return bin
}

// cluster is the command of a PostgreSQL version: it makes the cluster where there is none, as the image of it does.
func cluster(t *testing.T, env, otherwise string) []string {
	t.Helper()
	const start = `set -e
bin=$1; shift
if [ ! -s /data/pg/PG_VERSION ]; then
  mkdir -p /data/pg; chmod 700 /data/pg
  "$bin/initdb" -D /data/pg -U sluice --auth=trust --no-sync --locale=C.UTF-8 >/dev/null
fi
exec "$bin/postgres" -D /data/pg -c listen_addresses="$POD_IP" -c unix_socket_directories= -c port=5432 "$@"`
	return []string{"/bin/sh", "-c", start, "postgres", postgresBin(t, env, otherwise)}
}

// account is the user that databases run as where the tests run as root.
func account(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		return "{}"
	}
	name := os.Getenv("SLUICE_TEST_USER")
	if name == "" {
		name = "sluice-test"
	}
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatalf("the tests run as root and PostgreSQL refuses that: make the user %s, or name one by SLUICE_TEST_USER (%v)", name, err)
	}
	return fmt.Sprintf("{runAsUser: %s}", u.Uid)
}

func postgresAt(t *testing.T, image, migration string) string {
	text := fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: postgres}
spec: {selector: {app: postgres}, ports: [{port: 5432}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: postgres}
spec:
  serviceName: postgres
  selector: {matchLabels: {app: postgres}}
  template:
    metadata: {labels: {app: postgres}}
    spec:
      securityContext: %s
      containers:
      - name: postgres
        image: postgres:%s
        readinessProbe: {exec: {command: [%s, -q, -h, $(POD_IP), -U, sluice]}, periodSeconds: 1}
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
`, account(t), image, filepath.Join(postgresBin(t, "SLUICE_POSTGRES_NEW", "/usr/lib/postgresql/15/bin"), "pg_isready"))
	if migration != "" {
		text += fmt.Sprintf(`---
apiVersion: batch/v1
kind: Job
metadata: {name: migrate}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: migrate, image: migrate, env: [{name: %s, value: %q}]}]}}}
`, migrateEnv, migration)
	}
	return text
}

// migrateSQL runs one statement as a migration Job.
func migrateSQL(ctx context.Context, statement string) error {
	c, err := pgx.Connect(ctx, fmt.Sprintf("postgres://sluice@%s:%s/postgres", os.Getenv("POSTGRES_SERVICE_HOST"), os.Getenv("POSTGRES_SERVICE_PORT")))
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	_, err = c.Exec(ctx, statement)
	return err
}

func postgresFile(staging bool) *deployfile.File {
	f := file(staging)
	f.Data.Databases[0] = deployfile.Database{Name: "orders", Engine: "postgres", Target: "production", Workload: "statefulset/postgres",
		Connection: "postgres://sluice@postgres:5432/postgres"}
	f.Data.Checks = []deployfile.Check{{Name: "sum of totals", Database: "orders", Query: "SELECT sum(total) FROM orders"}}
	return f
}

// sql runs statements against production, past a closed Service.
func (s *site) sql(statements ...string) {
	s.t.Helper()
	s.withSQL(func(c *pgx.Conn) error {
		for _, q := range statements {
			if _, err := c.Exec(context.Background(), q); err != nil {
				return err
			}
		}
		return nil
	})
}

// rows returns the rows of orders as text, sorted.
func (s *site) rows() (out []string) {
	s.t.Helper()
	s.withSQL(func(c *pgx.Conn) error {
		rows, err := c.Query(context.Background(), "SELECT o::text FROM orders o ORDER BY 1")
		if err != nil {
			return err
		}
		out, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	return out
}

func (s *site) withSQL(f func(*pgx.Conn) error) {
	s.t.Helper()
	c, err := connect(context.Background(), "postgres://sluice@postgres:5432/postgres", func(ctx context.Context, _, _ string) (net.Conn, error) {
		return s.platform.Dial(ctx, manifest.Ref{Kind: "Service", Namespace: "prod", Name: "postgres"}, "5432")
	})
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close(context.Background())
	if err := f(c); err != nil {
		s.t.Fatal(err)
	}
}

// connect connects to PostgreSQL by a way of the test's own, past what the names in the URL mean to this machine.
func connect(ctx context.Context, url string, dial pgconn.DialFunc) (*pgx.Conn, error) {
	c, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	c.DialFunc, c.LookupFunc = dial, func(_ context.Context, h string) ([]string, error) { return []string{h}, nil }
	return pgx.ConnectConfig(ctx, c)
}

// slots counts production's replication slots.
func (s *site) slots() (n int) {
	s.t.Helper()
	s.withSQL(func(c *pgx.Conn) error {
		return c.QueryRow(context.Background(), "SELECT count(*) FROM pg_replication_slots").Scan(&n)
	})
	return n
}

func (s *site) installPostgres() {
	s.t.Helper()
	s.install(postgresAt(s.t, "old", "") + "---" + strings.Replace(web, "%s", "1", 1))
	s.sql("CREATE TABLE orders (id bigint PRIMARY KEY, placed timestamptz NOT NULL, total numeric(10,2) NOT NULL, note text)",
		"INSERT INTO orders SELECT i, '2026-01-01'::timestamptz + i * interval '1 minute', i * 1.5, 'order ' || i FROM generate_series(1, 5000) i",
		"CREATE INDEX orders_placed ON orders (placed)")
}

// TestPostgresUpgrade takes PostgreSQL from one minor version to the next, back with what was written meanwhile, and holds
// that the gate stops an hour added to an even number of rows.
func TestPostgresUpgrade(t *testing.T) {
	s := newSite(t)
	s.installPostgres()
	app := "---" + strings.Replace(web, "%s", "2", 1)
	was := s.rows()

	damage := "UPDATE orders SET placed = placed + interval '1 hour' WHERE id % 100 = 7"
	s.deploy("damaged", postgresFile(true), postgresAt(t, "new", damage)+app, postgresAt(t, "new", damage)+app)
	d := s.until("damaged", "done", done)
	if n := d.Status.Nodes["staging/after/1/1-verifyData"]; n.Verdict != delivery.Fail || !strings.Contains(n.Message, "50 rows of postgres.public.orders differ") {
		t.Errorf("the gate says %s: %s\n%s", n.Verdict, n.Message, steps(d))
	}
	if !slices.Equal(was, s.rows()) {
		t.Error("the delivery that the gate stopped changed production")
	}

	next := postgresAt(t, "new", "") + app
	s.deploy("back", postgresFile(true), next, next)
	s.until("back", "asking for approval", waits("production/deploy/canary/1-approval"))
	s.sql("INSERT INTO orders SELECT i, now(), 1, 'meanwhile' FROM generate_series(5001, 5040) i")
	meanwhile := s.rows()
	if _, err := s.engine.Signal(t.Context(), "back", delivery.Signal{Kind: delivery.Rollback, Key: "rollback/production", Path: "production"}); err != nil {
		t.Fatal(err)
	}
	if d = s.until("back", "done", done); d.Status.Targets["production"].State != delivery.RolledBack {
		t.Fatalf("%s: %s\n%s", d.Status.State, d.Status.Reason, steps(d))
	}
	if !slices.Equal(meanwhile, s.rows()) {
		t.Error("the way back lost what was written meanwhile")
	}

	if n := s.slots(); n != 0 {
		t.Errorf("%d replication slots are left", n)
	}

	// Where nothing was rehearsed only the checkpoint is left: one that discards no more than the budget goes back by itself.
	checked := s.rows()
	f := postgresFile(false)
	f.Data.Databases[0].Upgrade.MaxLost = 3
	s.deploy("budget", f, "", next)
	s.until("budget", "asking for approval", waits("production/deploy/canary/1-approval"))
	if n := s.slots(); n != 1 {
		t.Errorf("%d replication slots keep the log while a restore is possible", n)
	}
	s.sql("INSERT INTO orders VALUES (7000, now(), 1, 'lost')", "UPDATE orders SET note = 'lost' WHERE id = 7000", "DELETE FROM orders WHERE id < 20")
	if _, err := s.engine.Signal(t.Context(), "budget", delivery.Signal{Kind: delivery.Rollback, Key: "rollback/production", Path: "production"}); err != nil {
		t.Fatal(err)
	}
	d = s.until("budget", "done", done)
	if m := d.Status.Nodes["production/deploy/orders/open"].Message; !strings.Contains(m, "3 committed transactions (exact, PostgreSQL's log from ") ||
		!strings.Contains(m, "which the budget of 3 allows") || d.Status.Targets["production"].State != delivery.RolledBack {
		t.Errorf("%s: %s\n%s", d.Status.State, d.Status.Reason, steps(d))
	}
	if !slices.Equal(checked, s.rows()) || s.slots() != 0 {
		t.Errorf("the restore did not bring the checkpoint back, or a slot is left")
	}

	s.deploy("good", postgresFile(true), next, next)
	s.until("good", "asking for approval", waits("production/deploy/canary/1-approval"))
	const approval = "production/deploy/canary/1-approval"
	if _, err := s.engine.Signal(t.Context(), "good", delivery.Signal{Kind: delivery.Approve, Key: "approve/" + approval, Path: approval}); err != nil {
		t.Fatal(err)
	}
	if d = s.until("good", "done", done); d.Status.State != delivery.Succeeded {
		t.Fatalf("%s: %s\n%s", d.Status.State, d.Status.Reason, steps(d))
	}
	if !slices.Equal(meanwhile, s.rows()) {
		t.Error("the promotion changed production's rows")
	}
}
