//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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
  replicas: 1
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
        readinessProbe: {exec: {command: [pg_isready, -q, -h, 127.0.0.1]}, periodSeconds: 1}
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

// customers order all the time: they read the prices in the shop and write their order.
type customers struct {
	p    *pgShop
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	next    int64
	ledger  map[int64]time.Time // acknowledged orders
	visits  map[string][2]int   // by pod: all, and those that failed
	longest time.Duration
}

func newCustomers(p *pgShop) *customers {
	return &customers{p: p, stop: func() {}, ledger: map[int64]time.Time{}, visits: map[string][2]int{}}
}

// ServeHTTP tells how the visits went, as Prometheus reads it.
func (c *customers) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	for pod, n := range c.visits {
		fmt.Fprintf(w, "visits_total{pod=%[1]q} %[2]d\nvisits_failed_total{pod=%[1]q} %[3]d\n", pod, n[0], n[1])
	}
}

// begin sends the customers in.
func (c *customers) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	c.stop, c.done = cancel, make(chan struct{})
	web := "http://" + c.p.prod.address("web")
	c.p.t.Cleanup(c.end)
	go func() {
		defer close(c.done)
		var session *pgx.Conn
		pace := time.NewTicker(20 * time.Millisecond)
		defer pace.Stop()
		last := time.Now()
		for ctx.Err() == nil {
			<-pace.C
			if !c.visit(ctx, web) {
				continue
			}
			within, cancel := context.WithTimeout(ctx, 5*time.Second)
			ok := c.order(within, &session)
			cancel()
			if ok {
				c.mu.Lock()
				c.longest = max(c.longest, time.Since(last))
				c.mu.Unlock()
				last = time.Now()
			}
		}
		if session != nil {
			session.Close(context.Background())
		}
	}()
}

// end sends them home.
func (c *customers) end() {
	if c.stop(); c.done != nil {
		<-c.done
	}
}

// visit reads the prices, each time by a connection of its own, so that the Service chooses the pod anew.
func (c *customers) visit(ctx context.Context, web string) bool {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	get := func(path string) (string, int) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, web+path, nil)
		if err != nil {
			return "", 0
		}
		a, err := client.Do(r)
		if err != nil {
			return "", 0
		}
		defer a.Body.Close()
		body, err := io.ReadAll(a.Body)
		if err != nil {
			return "", 0
		}
		return string(body), a.StatusCode
	}
	who, code := get("/")
	if code != http.StatusOK {
		return false
	}
	pod, _, _ := strings.Cut(who, " ")
	_, code = get("/file/prices/list")
	if code == 0 {
		return false // the pod has ended in between
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.visits[pod]
	n[0]++
	if code != http.StatusOK {
		n[1]++
	}
	c.visits[pod] = n
	return code == http.StatusOK
}

// order writes one order, the same again after a failure: it may have been taken.
func (c *customers) order(ctx context.Context, session **pgx.Conn) bool {
	if *session == nil || (*session).IsClosed() {
		s, err := c.p.connect(ctx)
		if err != nil {
			return false
		}
		*session = s
	}
	c.mu.Lock()
	id := c.next + 1
	c.mu.Unlock()
	if _, err := (*session).Exec(ctx, "INSERT INTO orders VALUES ($1, $2, 'by a customer') ON CONFLICT DO NOTHING", id, id*3); err != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next, c.ledger[id] = id, time.Now()
	return true
}

// more waits until some more orders have been acknowledged.
func (c *customers) more(n int) {
	c.p.t.Helper()
	count := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.ledger)
	}
	until := count() + n
	c.p.eventually(fmt.Sprintf("%d more orders are acknowledged", n), func() error {
		if is := count(); is < until {
			return fmt.Errorf("there are %d of %d", is, until)
		}
		return nil
	})
}

// failed counts the failed visits so far.
func (c *customers) failed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, v := range c.visits {
		n += v[1]
	}
	return n
}

// kept holds that every acknowledged order is in production as it was written, and says how long somebody had to wait.
func (c *customers) kept() {
	c.p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	s, err := c.p.connect(ctx)
	if err != nil {
		c.p.t.Fatal(err)
	}
	defer s.Close(context.Background())
	c.mu.Lock()
	var ids []int64
	for id := range c.ledger {
		ids = append(ids, id)
	}
	longest := c.longest
	c.longest = 0
	c.mu.Unlock()
	var missing, differing int
	err = s.QueryRow(ctx, "SELECT count(*) FILTER (WHERE id IS NULL), count(*) FILTER (WHERE total <> a * 3) FROM unnest($1::bigint[]) a LEFT JOIN orders ON id = a", ids).
		Scan(&missing, &differing)
	if err != nil {
		c.p.t.Fatal(err)
	}
	if len(ids) == 0 || missing+differing > 0 {
		c.p.t.Errorf("of %d acknowledged orders %d are missing and %d differ", len(ids), missing, differing)
	}
	c.p.t.Logf("of %d acknowledged orders %d are missing and %d differ; the longest wait was %s", len(ids), missing, differing, longest.Round(time.Millisecond))
}

// pgDeploy is the deploy file: staging rehearses what production gets.
func (p *pgShop) pgDeploy() string {
	p.write("tests.yaml", pgJob("tests", "INSERT INTO orders SELECT coalesce(min(id), 0) - 1, 1, 'by the tests' FROM orders"))
	return p.write("deploy.yaml", fmt.Sprintf(`
application: %[1]s
targets:
  staging:
    account: staging
    namespace: %[1]s
    constraints:
      beforeDeployment: [{copyData: {database: orders}}]
      afterDeployment: [{sequence: [{verifyData: {database: orders, contract: release-2}}, {rehearseRollback: {database: orders, require: true}}]}]
  production:
    account: prod
    namespace: %[1]s
    strategy: careful
    constraints:
      dependsOn: [staging]
      beforeDeployment: [{checkpointData: {database: orders, name: before, ttl: {duration: 1, unit: hours}}}]
strategies:
  careful:
    canary:
      steps:
        - setWeight: {weight: 50}
        - analysis:
            interval: 1
            units: seconds
            numberOfJudgmentRuns: 8
            onInconclusive: rollback
            counts:
              canaryTotal: sum(visits_total{pod=~"{{armory.replicaSetName}}-.*"})
              canaryBad: sum(visits_failed_total{pod=~"{{armory.replicaSetName}}-.*"})
              stableTotal: sum(visits_total{pod!~"{{armory.replicaSetName}}-.*"})
              stableBad: sum(visits_failed_total{pod!~"{{armory.replicaSetName}}-.*"})
              alpha: 0.01
              minRequests: 25
analysis: {defaultMetricProviderName: prometheus}
manifests: [{path: manifests}]
deploymentConfig: {ifDeploymentInProgress: {strategy: enqueueOne}} # one that has ended may still clean up
data:
  databases:
    - {name: orders, engine: postgres, target: production, workload: statefulset/pg, connection: "postgres://shop:{{secrets.pg}}@pg:5432/postgres",
       upgrade: {contract: release-2, deadline: {duration: 5, unit: minutes}}}
  contracts: [{name: release-2, describe: The migration notes the release., exclude: [postgres.public.releases, "* postgres.public.releases*"]}]
  jobs: [{name: tests, path: tests.yaml}]
`, p.name))
}

// deliver checks a release out and starts it.
func (p *pgShop) deliver(database, web, migrate string) string {
	p.t.Helper()
	p.write("manifests/database.yaml", database)
	p.write("manifests/web.yaml", web)
	p.write("manifests/migration.yaml", migrate)
	return p.start(p.path("deploy.yaml"))
}

// TestPostgresStoryOnClusters upgrades PostgreSQL 15.10 to the newest minor version on two clusters, while customers order: a
// migration that damages data is stopped in staging, a bad release goes back with its database, the good one stays.
func TestPostgresStoryOnClusters(t *testing.T) {
	p := newPGShop(t, "staging")
	p.pgDeploy()
	p.runs(true)
	p.customers.begin()
	p.customers.more(50)
	if t.Failed() {
		return
	}
	play := func(name string, f func(*pgShop)) bool {
		return t.Run(name, func(t *testing.T) {
			q := *p
			q.site = p.site.with(t)
			f(&q)
		})
	}

	play("a migration that damages data is stopped in staging", func(p *pgShop) {
		d := p.ended(p.deliver(pgDatabase("postgres:15"), pgWeb("2"),
			migration("UPDATE orders SET total = total + 1 WHERE id IN (-17, -42); UPDATE orders SET note = NULL WHERE id = -1999; DELETE FROM orders WHERE id = -99")), "FAILED")
		p.t.Log(d)
		says(p.t, d.step("staging/after/1/1-verifyData").Message, "4 rows of postgres.public.orders differ")
		report := p.report(d.ID, "verifyData")
		says(p.t, report, "-17", "-42", "-1999", "-99", "total", "note", "missing")
		if d.target("production") != "CANCELLED" {
			p.t.Errorf("production is %s", d.target("production"))
		}
		p.runs(true)
		p.customers.kept()
	})

	play("a release that fails customers goes back with its database", func(p *pgShop) {
		old := p.volume()
		id := p.deliver(pgDatabase("postgres:15"), pgWeb("2-rc1"), migration(""))
		open := "production/deploy/orders/open"
		p.until(id, "open in production", func(d delivery) bool { return d.step(open).Verdict == "pass" })
		opened := time.Now()
		d := p.ended(id, "FAILED")
		p.t.Log(d)
		says(p.t, d.Reason, "the canary is worse")
		says(p.t, d.String(), "R1-engine open, R1-app open", "orders is back: R1-engine")
		if p.customers.failed() == 0 {
			p.t.Error("no customer met the release that fails")
		}
		p.runs(true)
		if p.volume() == old {
			p.t.Error("what was written meanwhile is on another volume")
		}
		if n := p.customers.since(opened); n == 0 {
			p.t.Error("nothing was ordered on the new version")
		}
		p.customers.more(20)
		p.customers.kept()
	})

	play("the good release stays", func(p *pgShop) {
		failed := p.customers.failed()
		d := p.ended(p.deliver(pgDatabase("postgres:15"), pgWeb("2"), migration("")), "SUCCEEDED")
		p.t.Log(d)
		if n := p.customers.failed() - failed; n > 0 {
			p.t.Errorf("%d visits failed", n)
		}
		p.runs(false)
		p.customers.more(20)
		p.customers.kept()
		p.eventually("the clean-up lets the log go", func() error {
			var slots int
			if p.sql("SELECT count(*) FROM pg_replication_slots", &slots); slots > 0 {
				return fmt.Errorf("%d replication slots are left in production", slots)
			}
			return nil
		})
	})
	p.secrets()
}

// since counts the orders that were acknowledged after an instant.
func (c *customers) since(t time.Time) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, at := range c.ledger {
		if at.After(t) {
			n++
		}
	}
	return n
}

// report returns the text of a delivery's report by the name of its step.
func (p *pgShop) report(id, of string) string {
	p.t.Helper()
	files, err := filepath.Glob(filepath.Join(p.data, "reports", id, "*"+of+"*.txt"))
	if err != nil || len(files) == 0 {
		p.t.Fatalf("there is no report of %s: %v", of, err)
	}
	body, err := os.ReadFile(files[0])
	if err != nil {
		p.t.Fatal(err)
	}
	return string(body)
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
