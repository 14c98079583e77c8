package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// startPostgres makes a cluster where there is none, as the image of it does: the user sluice is trusted, all others need
// their password.
const startPostgres = `set -e
bin=$1 data=$2/pg
if [ ! -s "$data/PG_VERSION" ]; then
  mkdir -p "$data"; chmod 700 "$data"
  "$bin/initdb" -D "$data" -U sluice --auth=trust --no-sync --locale=C.UTF-8 >/dev/null
  printf 'host all sluice 0.0.0.0/0 trust\nhost all all 0.0.0.0/0 scram-sha-256\n' >"$data/pg_hba.conf"
fi
exec "$bin/postgres" -D "$data" -c listen_addresses="$POD_IP" -c unix_socket_directories= -c port=5432 -c autovacuum=off
`

// rows makes the tables and roles of production.
const rows = `
CREATE TABLE orders (id bigint PRIMARY KEY, placed timestamptz NOT NULL, total numeric(10,2) NOT NULL, note text);
INSERT INTO orders SELECT i, '2026-01-01'::timestamptz + i * interval '1 minute', i * 1.5, 'order ' || i FROM generate_series(1, 5000) i;
CREATE ROLE app LOGIN PASSWORD 'right';
CREATE ROLE reader LOGIN PASSWORD 'right';
VACUUM FREEZE`

// postgresBin is the folder with the programs of one PostgreSQL version.
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

func oldPostgres(t *testing.T) string {
	return postgresBin(t, "SLUICE_POSTGRES_OLD", "../../.cache/postgres-old/bin")
}

func newPostgres(t *testing.T) string {
	return postgresBin(t, "SLUICE_POSTGRES_NEW", "/usr/lib/postgresql/15/bin")
}

// postgresImages are entries of images; the script is a file of the site.
func postgresImages(s *site) string {
	script := s.write("postgres.sh", startPostgres)
	if err := os.Chmod(script, 0o644); err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprintf("  postgres:old: [/bin/sh, %[1]s, %[2]s, /data]\n  postgres:new: [/bin/sh, %[1]s, %[3]s, /data]\n", script, oldPostgres(s.t), newPostgres(s.t))
}

// databaseUser is the security context of databases, which refuse to run as root.
func databaseUser(t *testing.T) string {
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

// postgresManifests are the database at a version, as an inline of a deploy file.
func postgresManifests(t *testing.T, image string) string {
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
  replicas: 1
  selector: {matchLabels: {app: postgres}}
  template:
    metadata: {labels: {app: postgres}}
    spec:
      securityContext: %s
      terminationGracePeriodSeconds: 10
      containers:
      - name: postgres
        image: %s
        readinessProbe: {exec: {command: [%s, -q, -h, $(POD_IP), -U, sluice]}, periodSeconds: 1}
        lifecycle: {stopSignal: SIGINT}
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
`, databaseUser(t), image, filepath.Join(newPostgres(t), "pg_isready"))
	return strings.ReplaceAll(text, "\n", "\n      ")
}

// prod is a site where PostgreSQL runs in namespace prod, and a second one, filled alike, that nobody touches.
type prod struct {
	*site
	at, frozen string // host:port
	before     state
}

// newProduction starts both, in a directory where one is given, and leaves everything else to the defaults.
func newProduction(t *testing.T, directory string) *prod {
	s := newSite(t, "")
	account := "accounts: {local: {kind: local}}\n"
	if directory != "" {
		account = "accounts: {local: {kind: local, directory: " + directory + "}}\n"
	}
	s.write("sluice.yaml", account+webImages(t)+postgresImages(s))
	file := s.write("install.yaml", `
application: production
targets:
  prod: {account: local, namespace: prod}
  frozen: {account: local, namespace: frozen}
manifests:
  - inline: |`+postgresManifests(t, "postgres:old"))
	if r := s.must("deploy", "start", "-f", file, "--watch"); !strings.Contains(r.out, "SUCCEEDED") {
		t.Fatal(r.out)
	}
	p := &prod{site: s, at: s.address("prod/postgres"), frozen: s.address("frozen/postgres")}
	for _, at := range []string{p.at, p.frozen} {
		for statement := range strings.SplitSeq(rows, ";") {
			p.sql(at, statement)
		}
	}
	p.before = p.state()
	return p
}

// pgURL is how a user reaches a database from here.
func pgURL(user, at string) string { return fmt.Sprintf("postgres://%s@%s/postgres", user, at) }

// connect opens a session of the checker's own.
func (p *prod) connect(at string) *pgx.Conn {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	c, err := pgx.Connect(ctx, pgURL("sluice", at))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func (p *prod) sql(at, statement string) {
	p.t.Helper()
	c := p.connect(at)
	defer c.Close(context.Background())
	if _, err := c.Exec(context.Background(), statement); err != nil {
		p.t.Fatal(err)
	}
}

// state is what must be the same before and after: files, settings, slots, locks, sessions of others, and rows.
type state map[string]string

// questions are what the server is asked; each gives one text.
func questions() map[string]string {
	return map[string]string{
		"settings": `SELECT string_agg(name || '=' || coalesce(setting, ''), E'\n' ORDER BY name) FROM pg_settings`,
		"slots":    `SELECT coalesce(string_agg(slot_name, ' '), '') FROM pg_replication_slots`,
		"locks":    `SELECT coalesce(string_agg(l::text, E'\n'), '') FROM pg_locks l WHERE pid <> pg_backend_pid()`,
		"sessions": `SELECT coalesce(string_agg(application_name || ': ' || query, E'\n'), '') FROM pg_stat_activity WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid()`,
		"roles":    `SELECT string_agg(r::text, E'\n' ORDER BY rolname) FROM pg_authid r`,
		"rows":     `SELECT string_agg(o::text, E'\n' ORDER BY id) FROM orders o`,
		"prepared": `SELECT count(*)::text FROM pg_prepared_xacts`,
		"started":  `SELECT pg_postmaster_start_time()::text`,
	}
}

// state reads production by the checker's own means.
func (p *prod) state() state {
	p.t.Helper()
	out := state{}
	c := p.connect(p.at)
	defer c.Close(context.Background())
	for name, q := range questions() {
		var v string
		if err := c.QueryRow(context.Background(), q).Scan(&v); err != nil {
			p.t.Fatalf("%s: %v", name, err)
		}
		out[name] = v
	}
	var dir string
	if err := c.QueryRow(context.Background(), "SHOW data_directory").Scan(&dir); err != nil {
		p.t.Fatal(err)
	}
	if _, err := c.Exec(context.Background(), "CHECKPOINT"); err != nil {
		p.t.Fatal(err)
	}
	out["files"] = files(p.t, dir)
	return out
}

// files digests what belongs to the content and configuration of a cluster; not what any session or checkpoint moves: the
// log, statistics, and caches that the server makes itself.
func files(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	for _, part := range []string{"base", "global", "pg_tblspc", "pg_replslot", "pg_twophase", "postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "backup_label", "standby.signal", "recovery.signal"} {
		err := filepath.WalkDir(filepath.Join(dir, part), func(path string, d fs.DirEntry, err error) error {
			switch {
			case os.IsNotExist(err), err == nil && slices.Contains([]string{"pg_internal.init", "pg_control", "pgsql_tmp"}, d.Name()):
				return nil
			case err != nil:
				return err
			case d.IsDir():
				lines = append(lines, path)
				return nil
			}
			body, err := os.ReadFile(path)
			lines = append(lines, fmt.Sprintf("%s %x", path, sha256.Sum256(body)))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return strings.Join(lines, "\n")
}

// unchanged holds that production is what it was, by the checker's own means and by Sluice's fingerprint. Sessions are
// waited for: one that was cut off ends when its server notices.
func (p *prod) unchanged() {
	p.t.Helper()
	p.eventually("production is as before", func() error {
		now := p.state()
		for name, was := range p.before {
			if now[name] != was {
				return fmt.Errorf("its %s are other ones: %s", name, firstDifference(was, now[name]))
			}
		}
		return nil
	})
	if r := p.sluice("data", "verify", pgURL("sluice", p.at), pgURL("sluice", p.frozen)); r.code != 0 {
		p.t.Errorf("production is not equal to its frozen copy: %d\n%s%s", r.code, r.out, r.errs)
	}
}

// firstDifference shows the first line in which two texts differ.
func firstDifference(was, is string) string {
	a, b := strings.Split(was, "\n"), strings.Split(is, "\n")
	for i := range max(len(a), len(b)) {
		var x, y string
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			return fmt.Sprintf("%q, was %q", y, x)
		}
	}
	return "none"
}

// copying writes a deploy file that copies production's database into a staging of the name, at an image.
func (p *prod) copying(name, connection, image string) string {
	return p.write(name+".yaml", fmt.Sprintf(`
application: %[1]s
targets:
  prod: {account: local, namespace: prod}
  staging: {account: local, namespace: %[1]s, constraints: {beforeDeployment: [{copyData: {database: orders}}], afterDeployment: [{verifyData: {database: orders}}]}}
manifests:
  - targets: [staging]
    inline: |%[3]s
deploymentConfig: {timeout: {duration: 1, unit: minutes}}
data: {databases: [{name: orders, engine: postgres, target: prod, workload: statefulset/postgres, connection: "%[2]s"}]}
`, name, connection, postgresManifests(p.t, image)))
}
