package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// TestStay goes back where only the checkpoint is left: an acknowledgement of another number does not count, and a person
// keeps the new version by the command line.
func TestStay(t *testing.T) {
	long(t)
	p := newProduction(t, "")
	id := p.start(p.write("upgrade.yaml", fmt.Sprintf(`
application: upgrade
targets: {prod: {account: local, namespace: prod, strategy: s}}
strategies: {s: {canary: {steps: [{pause: {untilApproved: true}}]}}}
manifests:
  - inline: |%s
  - inline: |%s
deploymentConfig: {timeout: {duration: 1, unit: minutes}}
data: {databases: [{name: orders, engine: postgres, target: prod, workload: statefulset/postgres, connection: "%s"}]}
`, postgresManifests(t, "postgres:new"), strings.Replace(webManifests, "IMAGE", "web:2", 1), superuser)))
	p.until(id, "asking for approval", func(d delivery) bool { return d.Status == "AWAITING_APPROVAL" })
	p.sql(p.at, "INSERT INTO orders SELECT i, now(), 1, 'meanwhile' FROM generate_series(5001, 5040) i")
	written := p.state()["rows"]

	if r := p.sluice("deploy", "stay", id); r.code == 0 || !strings.Contains(r.errs, "nothing to stay now") {
		t.Errorf("stay before anything goes back ends with %d: %s", r.code, r.errs)
	}
	p.must("deploy", "rollback", id)
	const open = "prod/deploy/orders/open"
	asks := func(d delivery) bool { return strings.Contains(d.step(open).Message, "acknowledge with --value 1 ") }
	says(t, p.until(id, "asking", asks).step(open).Message, "or stay on postgres:new")
	p.must("deploy", "acknowledge", id, "--value", "39", "--digest", "0000000000000000")
	p.until(id, "asking again", func(d delivery) bool { return asks(d) && strings.Contains(d.step(open).Message, "does not count") })

	p.must("deploy", "stay", id, "--reason", "40 orders are worth more than the old version")
	d := p.ended(id, "FAILED")
	says(t, d.Reason, "orders stays on the new version postgres:new, decided by ", `("40 orders are worth more than the old version")`, "1 committed transactions (exact, PostgreSQL's log from ", "which left 40 differing rows",
		"what else the delivery changed in prod is taken back")
	if d.target("prod") != "FAILED" {
		t.Errorf("the target is %s\n%s", d.target("prod"), d)
	}
	p.at = p.address("prod/postgres")
	if p.state()["rows"] != written {
		t.Error("what was written is not all there")
	}
	p.sql(p.at, "INSERT INTO orders VALUES (6000, now(), 1, 'after')")
}
