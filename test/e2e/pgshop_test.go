//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// pgShop is a shop on PostgreSQL in two clusters. Its pages are served by pods of a Deployment, and its customers' orders go,
// acknowledged, into a ledger outside of the database.
type pgShop struct {
	*site
	prod, staging *shopCluster
	name          string // of the application and of its namespaces
	customers     *customers
}

const pgPassword = "not-a-s3cret"

// pgSecret is made by whoever keeps the passwords: no manifest of a delivery holds it.
const pgSecret = `{apiVersion: v1, kind: Secret, metadata: {name: pg}, stringData: {password: ` + pgPassword + `}}`

// pgDatabase are the manifests of PostgreSQL with an image and further settings. The image's program is started as the
// well-known images do it: as its own user, on a cluster that is made where there is none.
func pgDatabase(image string, settings ...string) string {
	args := ""
	for _, s := range settings {
		args += fmt.Sprintf(", -c, %q", s)
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: ConfigMap
metadata: {name: pg}
data:
  run: |
    set -e
    export PGDATA=/data/pg
    if [ "$(id -u)" = 0 ]; then
      chown postgres /data
      exec setpriv --reuid=postgres --regid=postgres --clear-groups sh /etc/pg/run "$@"
    fi
    if [ ! -s $PGDATA/PG_VERSION ]; then
      initdb -U shop --auth=scram-sha-256 --pwfile=/etc/pg-password/password --locale=C.UTF-8 >/dev/null
      printf 'host all all all scram-sha-256\n' >>$PGDATA/pg_hba.conf
    fi
    postgres -c listen_addresses='*' -c unix_socket_directories=/tmp "$@" &
    trap 'kill -INT $!' TERM INT
    wait $! || wait $!
---
apiVersion: v1
kind: Service
metadata: {name: pg}
spec: {selector: {app: pg}, ports: [{name: pg, port: 5432}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: pg}
spec:
  serviceName: pg
  selector: {matchLabels: {app: pg}}
  template:
    metadata: {labels: {app: pg}}
    spec:
      terminationGracePeriodSeconds: 20
      containers:
      - name: pg
        image: %q
        command: [sh, /etc/pg/run]
        args: [-c, shared_buffers=16MB, -c, max_wal_size=128MB%s]
        ports: [{name: pg, containerPort: 5432}]
        readinessProbe: {exec: {command: [pg_isready, -q, -h, 127.0.0.1]}, periodSeconds: 1, timeoutSeconds: 10}
        volumeMounts: [{name: data, mountPath: /data}, {name: run, mountPath: /etc/pg}, {name: password, mountPath: /etc/pg-password}]
      volumes: [{name: run, configMap: {name: pg}}, {name: password, secret: {secretName: pg}}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {storageClassName: cow, accessModes: [ReadWriteOnce], resources: {requests: {storage: 512Mi}}}
`, image, args)
}

// pgWeb are the shop's pods of a release. Customers read the prices there; one release forgot to mount them.
func pgWeb(release string) string {
	mount := "volumeMounts: [{name: prices, mountPath: /prices}]"
	if release == "2-rc1" {
		mount = "volumeMounts: []"
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: ConfigMap
metadata: {name: prices}
data: {list: "potato: 3"}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: web
        image: "lab/tool:1"
        args: [http, %q]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        %s
      volumes: [{name: prices, configMap: {name: prices}}]
`, release, mount)
}

// pgJob is a Job that runs SQL in the shop's database.
func pgJob(name, sql string) string {
	return fmt.Sprintf(`
apiVersion: batch/v1
kind: Job
metadata: {name: %s}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: psql
        image: "postgres:15"
        # A pod may be ready a moment before its Service leads to it.
        command: [sh, -c, 'until pg_isready -q -h pg; do sleep 0.1; done; exec psql -h pg -U shop -d postgres -v ON_ERROR_STOP=1 --single-transaction -c "$0"', %q]
        env: [{name: PGPASSWORD, valueFrom: {secretKeyRef: {name: pg, key: password}}}]
`, name, sql)
}

// migration notes the release, and may do something else besides.
func migration(besides string) string {
	return pgJob("migrate", "CREATE TABLE IF NOT EXISTS releases (release int); INSERT INTO releases VALUES (2); "+besides)
}

// newPGShop has production run the older minor version with some orders.
func newPGShop(t *testing.T, targets ...string) *pgShop {
	p := &pgShop{site: newSite(t, ""), name: fmt.Sprintf("pg-%d-%d", os.Getpid(), time.Now().UnixNano()%100000)}
	p.wait = 8 * time.Minute // whole deliveries, on a machine with other things to do
	p.prod = newShopCluster(t, "prod", "LAB_KUBECONFIG", p.name)
	p.prod.apply("secret", pgSecret)
	p.prod.apply("shop", pgDatabase("postgres:15.10")+"---"+pgWeb("1"))
	if len(targets) > 0 {
		p.staging = newShopCluster(t, "staging", "LAB_KUBECONFIG_STAGING", p.name)
		p.staging.apply("secret", pgSecret)
		t.Cleanup(func() { p.staging.remove(p.name + "-") })
	}
	t.Cleanup(func() { p.prod.remove(p.name + "-") })
	p.sql(`CREATE TABLE orders (id bigint PRIMARY KEY, total numeric(10,2) NOT NULL, note text)`)
	p.sql(`INSERT INTO orders SELECT -i, i * 1.5, 'order ' || i FROM generate_series(1, 2000) i`)
	p.customers = newCustomers(p)
	prices := httptest.NewServer(p.customers)
	t.Cleanup(prices.Close)
	kubeconfigs := fmt.Sprintf("  prod: {kind: kubernetes, kubeconfig: %s, jobs: {image: \"sluice:dev\", limits: {memory: 512Mi}}}\n", p.prod.file)
	if p.staging != nil {
		kubeconfigs += fmt.Sprintf("  staging: {kind: kubernetes, kubeconfig: %s, jobs: {image: \"sluice:dev\", limits: {memory: 512Mi}}}\n", p.staging.file)
	}
	p.write("pg-password", pgPassword)
	p.write("sluice.yaml", fmt.Sprintf(`
accounts:
%smetricProviders:
  prometheus: {url: "http://%s"}
secrets:
  pg: {file: pg-password}
`, kubeconfigs, prometheus(p.site, "--scrape", "customers="+prices.URL, "--interval", "500ms")))
	return p
}

// connect opens a session by the plain driver. It tries again as clients do, as long as ctx lets it.
func (p *pgShop) connect(ctx context.Context) (*pgx.Conn, error) {
	c, err := pgx.ParseConfig(fmt.Sprintf("postgres://shop:%s@%s/postgres?sslmode=disable&connect_timeout=5", pgPassword, p.prod.address("pg")))
	if err != nil {
		return nil, err
	}
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		session, err := pgx.ConnectConfig(ctx, c)
		if err == nil || ctx.Err() != nil {
			return session, err
		}
		select {
		case <-ctx.Done():
		case <-again.C:
		}
	}
}

func (p *pgShop) sql(statement string, into ...any) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	c, err := p.connect(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Close(context.Background())
	if len(into) == 0 {
		_, err = c.Exec(ctx, statement)
	} else {
		err = c.QueryRow(ctx, statement).Scan(into...)
	}
	if err != nil {
		p.t.Fatalf("%s: %v", statement, err)
	}
}

// older is the minor version that production starts from, as the image says it.
const older = "15.10"

// runs holds whether production's database is of the older version or of the newer one, by its own word.
func (p *pgShop) runs(old bool) {
	p.t.Helper()
	var is string
	p.sql("SELECT current_setting('server_version')", &is)
	is, _, _ = strings.Cut(is, " ")
	if !strings.HasPrefix(is, "15.") || (is == older) != old {
		p.t.Errorf("production runs PostgreSQL %s", is)
	}
}

func (p *pgShop) volume() string {
	p.t.Helper()
	return p.prod.text(p.name, "persistentvolumeclaims", "data-pg-0", "spec", "volumeName")
}

// secrets holds that the password is nowhere in what Sluice keeps, and in no namespace that it made.
func (p *pgShop) secrets() {
	p.t.Helper()
	err := filepath.WalkDir(p.data, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		body, err := os.ReadFile(path)
		if strings.Contains(string(body), pgPassword) || strings.Contains(string(body), "bm90LWEtczNjcmV0") {
			p.t.Errorf("%s holds the password", path)
		}
		return err
	})
	if err != nil {
		p.t.Error(err)
	}
	for _, c := range []*shopCluster{p.prod, p.staging} {
		if c == nil {
			continue
		}
		for _, purpose := range []string{"upgrade", "before", "failed", "rehearsal", "mark", "control", "base"} {
			p.eventually("the clean-up deletes what was lent", func() error {
				if slices.Contains(c.names(p.name+"-"+purpose, "secrets"), "pg") {
					return fmt.Errorf("namespace %s-%s of %s still has the database's Secret", p.name, purpose, c.cluster.name)
				}
				return nil
			})
		}
	}
}
