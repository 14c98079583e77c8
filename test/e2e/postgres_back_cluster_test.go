//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// direct writes the manifests of a delivery that upgrades production alone, without a rehearsal: the only way back after the
// fence is the checkpoint. After it a person is asked.
func (p *pgShop) direct(database, migrate string, maxLost int) string {
	p.t.Helper()
	p.write("direct.yaml", fmt.Sprintf(`
application: %[1]s
targets: {production: {account: prod, namespace: %[1]s, strategy: asking}}
strategies: {asking: {canary: {steps: [{pause: {untilApproved: true}}]}}}
manifests: [{path: manifests}]
deploymentConfig: {ifDeploymentInProgress: {strategy: enqueueOne}} # one that has ended may still clean up
data:
  databases:
    - {name: orders, engine: postgres, target: production, workload: statefulset/pg, connection: "postgres://shop:{{secrets.pg}}@pg:5432/postgres",
       upgrade: {contract: release-2, deadline: {duration: 5, unit: minutes}, maxLost: %[2]d}}
  contracts: [{name: release-2, describe: The migration notes the release., exclude: [postgres.public.releases, "* postgres.public.releases*"]}]
`, p.name, maxLost))
	p.write("manifests/database.yaml", database)
	p.write("manifests/web.yaml", pgWeb("2"))
	p.write("manifests/migration.yaml", migrate)
	return p.start(p.path("direct.yaml"))
}

// TestPostgresGoesBackOnClusters fails behind the fence in two ways and goes back by R0 each time; then it goes back where only
// the checkpoint is left, which loses what was written since: within a budget, by an acknowledgement, and not at all.
func TestPostgresGoesBackOnClusters(t *testing.T) {
	p := newPGShop(t)
	play := func(name string, f func(*pgShop)) bool {
		return t.Run(name, func(t *testing.T) {
			q := *p
			q.site = p.site.with(t)
			f(&q)
		})
	}

	for _, c := range []struct{ name, database, migrate, why string }{
		{"a new version that does not start", pgDatabase("postgres:15", "no_such_setting=1"), migration(""), "the upgrade of a clone failed"},
		{"a migration that damages production alone", pgDatabase("postgres:15"), migration("DELETE FROM orders WHERE id = -99"), "postgres.public.orders differ (1 missing)"},
	} {
		play(c.name, func(p *pgShop) {
			p.customers.begin()
			p.customers.more(20)
			old := p.volume()
			d := p.ended(p.direct(c.database, c.migrate, 0), "FAILED")
			p.t.Log(d)
			says(p.t, d.String(), c.why, "orders is back: R0")
			if now := p.volume(); now != old {
				p.t.Errorf("production runs on volume %s, was on %s", now, old)
			}
			p.runs(true)
			p.customers.more(20)
			p.customers.end()
			p.customers.kept()
		})
	}

	play("a budget that nobody could count", func(p *pgShop) {
		old := p.volume()
		d := p.ended(p.direct(pgDatabase("lab/tool:1"), migration(""), 2), "FAILED")
		says(p.t, d.String(), "a pod of lab/tool:1 says: pg_waldump of PostgreSQL 14 to 17 is not installed here (leave maxLost out")
		if now := p.volume(); now != old {
			p.t.Errorf("production runs on volume %s, was on %s", now, old)
		}
		p.runs(true)
	})
	play("the checkpoint is restored after an acknowledgement", (*pgShop).acknowledged)
	play("the checkpoint is restored within the budget", (*pgShop).withinBudget)
	play("the new version stays", (*pgShop).stays)
	p.secrets()
}

// opened starts an upgrade and waits until production is open on the new version.
func (p *pgShop) opened(maxLost int) string {
	p.t.Helper()
	id := p.direct(pgDatabase("postgres:15"), migration(""), maxLost)
	d := p.until(id, "upgraded", func(d delivery) bool { return d.Status == "AWAITING_APPROVAL" || d.final() })
	if d.step(opens).Verdict != "pass" {
		p.t.Fatalf("it is not upgraded\n%s", d)
	}
	p.runs(false)
	return id
}

const opens = "production/deploy/orders/open"

// writes commits transactions of five orders each.
func (p *pgShop) writes(transactions int) {
	p.t.Helper()
	for range transactions {
		p.sql("INSERT INTO orders SELECT coalesce(max(id), 0) + i, 1, 'meanwhile' FROM orders, generate_series(1, 5) i GROUP BY i")
	}
}

// content is every row of the orders.
func (p *pgShop) content() string {
	p.t.Helper()
	var rows string
	p.sql("SELECT string_agg(o::text, E'\\n' ORDER BY id) FROM orders o", &rows)
	return rows
}

var discards = regexp.MustCompile(`would discard (\d+) committed transactions \(exact, PostgreSQL's log from .*\), which left (\d+) differing rows: acknowledge with --value (\d+) --digest ([0-9a-f]+), or stay on postgres:15`)

func (p *pgShop) acknowledged() {
	before, old := p.content(), p.volume()
	id := p.opened(2)
	upgraded := p.volume()
	p.writes(8)
	// What is taken back does not count.
	p.sql("BEGIN; INSERT INTO orders VALUES (1000000, 1, 'never'); ROLLBACK")
	p.must("deploy", "rollback", id)
	d := p.until(id, "asking", func(d delivery) bool { return discards.MatchString(d.step(opens).Message) || d.final() })
	m := discards.FindStringSubmatch(d.step(opens).Message)
	if m == nil {
		p.t.Fatalf("it does not ask\n%s", d)
	}
	if m[1] != "8" || m[2] != "40" || m[3] != "8" {
		p.t.Errorf("8 transactions wrote 40 rows, and it says %s", m[0])
	}
	exported := p.discarded(id)
	if n := strings.Count(exported, "\n"); n != 40 || strings.Count(exported, `"meanwhile"`) != 40 {
		p.t.Errorf("%d of 40 rows are exported:\n%s", n, exported)
	}
	p.must("deploy", "acknowledge", id, "--value", "7", "--digest", m[4])
	p.until(id, "asking again", func(d delivery) bool { return strings.Contains(d.step(opens).Message, "does not count") })
	p.must("deploy", "acknowledge", id, "--value", m[3], "--digest", m[4])
	d = p.ended(id, "FAILED")
	p.t.Log(d)
	says(p.t, d.String(), "orders is back: R4")
	p.runs(true)
	if p.content() != before {
		p.t.Error("production does not hold what the checkpoint held")
	}
	p.stillThere(old, upgraded)
}

func (p *pgShop) withinBudget() {
	before := p.content()
	id := p.opened(2)
	p.writes(2)
	p.must("deploy", "rollback", id)
	d := p.ended(id, "FAILED")
	p.t.Log(d)
	says(p.t, d.step(opens).Message, "discards 2 committed transactions (exact, ", "which left 10 differing rows", "the budget of 2 allows")
	p.runs(true)
	if p.content() != before {
		p.t.Error("production does not hold what the checkpoint held")
	}
}

func (p *pgShop) stays() {
	id := p.opened(0)
	p.writes(1)
	written := p.content()
	p.must("deploy", "rollback", id)
	p.until(id, "asking", func(d delivery) bool { return discards.MatchString(d.step(opens).Message) })
	p.must("deploy", "stay", id, "--reason", "orders are worth more than the old version")
	d := p.ended(id, "FAILED")
	p.t.Log(d)
	says(p.t, d.Reason, "orders stays on the new version postgres:15, decided by ", `("orders are worth more than the old version")`, "which left 5 differing rows")
	p.runs(false)
	if p.content() != written {
		p.t.Error("what was written is not all there")
	}
	p.sql("INSERT INTO orders VALUES (2000000, 1, 'after')")
}

// discarded is the export of what a restore takes away.
func (p *pgShop) discarded(id string) string {
	p.t.Helper()
	files, err := filepath.Glob(filepath.Join(p.data, "reports", id, "*discarded.ndjson"))
	if err != nil || len(files) != 1 {
		p.t.Fatalf("the exports are %v, %v", files, err)
	}
	body, err := os.ReadFile(files[0])
	if err != nil {
		p.t.Fatal(err)
	}
	return string(body)
}

// stillThere holds that volumes which were taken out of service are there, are nobody's, and stay when their claim goes.
func (p *pgShop) stillThere(volumes ...string) {
	p.t.Helper()
	for _, v := range volumes {
		if phase, policy := p.prod.text("", "persistentvolumes", v, "status", "phase"), p.prod.text("", "persistentvolumes", v, "spec", "persistentVolumeReclaimPolicy"); phase != "Released" || policy != "Retain" {
			p.t.Errorf("volume %s is %s with policy %s", v, phase, policy)
		}
	}
	var copies []struct{ Protected time.Time }
	if err := json.Unmarshal([]byte(p.must("data", "list", "--account", "prod", "-o", "json").out), &copies); err != nil {
		p.t.Fatal(err)
	}
	if !slices.ContainsFunc(copies, func(c struct{ Protected time.Time }) bool { return time.Until(c.Protected) > 29*24*time.Hour }) {
		p.t.Errorf("the failed state is not protected for 30 days: %v", copies)
	}
}
