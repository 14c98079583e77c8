//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

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
            numberOfJudgmentRuns: 15
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
