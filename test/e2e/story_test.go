//go:build e2e

package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The paths of the steps that the story names.
const (
	waitsForMigration = "Migrate Prod DB To Staging/after/1-webhook"
	integrationTests  = "Staging/after/1-webhook"
	atHalf            = "Production/deploy/canary/2-analysis"
	atAll             = "Production/deploy/canary/4-analysis"
)

const orders = 500 // of the shop when it opens

// story is the shop on two clusters: production under load, staging of last week.
type story struct {
	*site
	prod, staging *shopCluster
	hooks         *receiver // the team's own tests, which are called like any service
	name          string    // of the application and of its namespaces
	read          int       // of the customers' log
}

// openShop has production serve the shop, with the customers' orders in a ledger outside of it.
func openShop(t *testing.T, name string) *story {
	st := &story{hooks: newReceiver(t), name: name + "-" + strings.ToLower(rand.Text()[:6])}
	st.site = newSite(t, "accounts: {local: {kind: local}}\n")
	st.wait = 8 * time.Minute // whole deliveries, on a machine with other things to do
	st.prod, st.staging = newShopCluster(t, "prod", "LAB_KUBECONFIG", st.name), newShopCluster(t, "staging", "LAB_KUBECONFIG_STAGING", st.name)
	st.prod.apply("shop", st.shipped("database.yaml", "ferretdb:1.17")+"\n---\n"+st.shipped("shop.yaml", "shop:1"))
	st.prod.apply("prometheus", st.shipped("prometheus.yaml", ""))
	st.shop("seed", "--database", st.database(st.prod), "--ledger", st.path("ledger"), "--orders", fmt.Sprint(orders))
	if said := st.begin("shop", "load", "--url", "http://"+st.prod.address("web"), "--ledger", st.path("ledger"), "--log", st.path("requests")); said != "load begins" {
		t.Fatalf("the customers say %q", said)
	}
	return st
}

// newStory opens the shop, and has staging as it was last week.
func newStory(t *testing.T) *story {
	st := openShop(t, "story")
	st.prod.apply("stork", st.file("story/stork.yaml"))
	st.staging.apply("shop", st.shipped("database.yaml", "ferretdb:1.17")+"\n---\n"+st.shipped("shop.yaml", "shop:1"))
	for _, c := range []*shopCluster{st.prod, st.staging} {
		c.apply("hook", st.file("story/hook.yaml"))
	}
	(&stork{t: t, from: st.prod, to: st.staging, cut: st.keepLedger}).start()
	st.env = append(st.env, "HOOK_PRODUCTION=http://"+st.prod.address("cmd-hook"), "HOOK_STAGING=http://"+st.staging.address("cmd-hook"), "TESTS="+st.hooks.URL)
	st.write("sluice.yaml", fmt.Sprintf(`
accounts:
  production: {kind: kubernetes, kubeconfig: %s}
  staging: {kind: kubernetes, kubeconfig: %s}
metricProviders:
  prometheus: {url: "http://%s"}
secrets:
  hook-production: {env: HOOK_PRODUCTION}
  hook-staging: {env: HOOK_STAGING}
  tests: {env: TESTS}
server: {listen: "%s:0"}   # pods call back
`, st.prod.file, st.staging.file, st.prod.address("prometheus"), st.prod.host))
	st.write("deploy.yaml", st.file("story/deploy.yaml"))
	st.hooks.on("/tests", st.test)
	return st
}

// during plays a part of the story as a test of its own.
func (st *story) during(t *testing.T, title string, play func(t *testing.T)) bool {
	all := st.site
	defer func() { st.site = all }()
	return t.Run(title, func(t *testing.T) {
		st.site = all.with(t)
		play(t)
	})
}

// file reads a file of the story.
func (st *story) file(name string) string {
	st.t.Helper()
	body, err := os.ReadFile(name)
	if err != nil {
		st.t.Fatal(err)
	}
	return strings.ReplaceAll(string(body), "$(NAME)", st.name)
}

// shipped is one of the demo's manifests, with an image.
func (st *story) shipped(name, image string) string {
	st.t.Helper()
	return strings.NewReplacer("$(DATABASE)", image, "$(SHOP)", image, "$(MIGRATION)", image, "$(LISTEN)", "0.0.0.0", "$(SEED)", "1", "$(ORDERS)", fmt.Sprint(orders)).
		Replace(st.file(filepath.Join("../../internal/demo/files", name)))
}

func (st *story) database(c *shopCluster) string { return "mongodb://" + c.address("mongo") + "/shop" }

// shop runs one of the shop's commands that has to succeed.
func (st *story) shop(args ...string) []byte {
	st.t.Helper()
	out, err := exec.Command(companion(st.t, "shop"), args...).Output()
	if err != nil {
		failed, _ := errors.AsType[*exec.ExitError](err)
		st.t.Fatalf("shop %s: %v %+v", args[0], err, failed)
	}
	return out
}

// deliver checks a release out and starts it.
func (st *story) deliver(shop, migration string, args ...string) string {
	st.t.Helper()
	st.write("manifests/copy.yaml", st.file("story/copy.yaml"))
	// A Job's template never changes, so each commit names its own. In production the database restarts while it runs, for
	// the dialect applies both at once: a try that hangs on the old pod's address is given up.
	st.checkOut(shop, strings.NewReplacer("{name: migrate}", fmt.Sprintf("{name: migrate-%s}", strings.ToLower(rand.Text()[:6])),
		"backoffLimit: 0", "backoffLimit: 4", "restartPolicy: Never", "restartPolicy: Never\n      activeDeadlineSeconds: 60").Replace(st.shipped("migration.yaml", migration)))
	return st.start(st.path("deploy.yaml"), args...)
}

// checkOut puts the manifests of a release where the deploy file looks for them.
func (st *story) checkOut(shop, migration string) {
	st.t.Helper()
	st.write("manifests/database.yaml", st.shipped("database.yaml", "ferretdb:1.24"))
	st.write("manifests/shop.yaml", st.shipped("shop.yaml", shop))
	st.write("manifests/migration.yaml", migration)
}

// checked is what the shop's checker found: it reads a database with the plain driver and holds it against a ledger.
type checked struct {
	Acknowledged, Stored int
	Missing, Differing   []string
}

func (c checked) String() string {
	return fmt.Sprintf("of %d acknowledged documents %d are missing and %d differ: %s", c.Acknowledged, len(c.Missing), len(c.Differing),
		strings.Join(slices.Concat(c.Missing, c.Differing), "; "))
}

func (st *story) check(c *shopCluster, ledger string) (checked, error) {
	var r checked
	// It fails where it finds something; then it has said what.
	out, err := exec.Command(companion(st.t, "shop"), "check", "--url", st.database(c), "--ledger", st.path(ledger)).Output()
	if e := json.Unmarshal(out, &r); e != nil {
		return r, errors.Join(err, e)
	}
	return r, nil
}

// keepLedger notes what has been acknowledged until now: that much a copy of the database has to hold.
func (st *story) keepLedger() {
	body, err := os.ReadFile(st.path("ledger"))
	if err == nil {
		// The last line may be under way, and then nobody has been told of it.
		err = os.WriteFile(st.path("ledger-of-the-cut"), body[:bytes.LastIndexByte(body, '\n')+1], 0o600)
	}
	if err != nil {
		st.t.Errorf("keep the ledger: %v", err)
	}
}

// test is the team's integration test of staging: is all there that was when the copy was made, and does the shop work at the
// address that the delivery exposes?
func (st *story) test(w http.ResponseWriter, h hook) {
	w.WriteHeader(http.StatusAccepted)
	st.hooks.calls.Go(func() {
		found, err := st.check(st.staging, "ledger-of-the-cut")
		message := found.String()
		if err == nil && len(found.Missing)+len(found.Differing) == 0 {
			var out []byte
			out, err = exec.Command(companion(st.t, "shop"), "test", "--url", h.body).CombinedOutput()
			message += "\n" + string(out)
		}
		if err != nil {
			message += "\n" + err.Error()
		}
		body, _ := json.Marshal(map[string]any{"success": err == nil && len(found.Missing)+len(found.Differing) == 0, "mdMessage": message})
		st.hooks.call(h.header.Get("X-Callback"), string(body))
	})
}

// runs holds what a cluster runs.
func (st *story) runs(c *shopCluster, database, shop string) {
	st.t.Helper()
	if d, s := c.image("StatefulSet", "mongo"), c.image("Deployment", "web"); d != database || s != shop {
		st.t.Errorf("the cluster of %s runs %s and %s, and should run %s and %s", c.name, d, s, database, shop)
	}
}

// kept holds that nothing which the shop has acknowledged to a customer is missing in production, or differs.
func (st *story) kept() {
	st.t.Helper()
	r, err := st.check(st.prod, "ledger")
	if err != nil {
		st.t.Fatal(err)
	}
	if r.Acknowledged <= orders || len(r.Missing)+len(r.Differing) > 0 {
		st.t.Errorf("in production %s", r)
	}
	st.t.Logf("in production %s", r)
}

// served holds that no customer noticed anything.
func (st *story) served() {
	st.t.Helper()
	if by := st.failed(); len(by) > 0 {
		st.t.Errorf("customers' requests failed, by release %v", by)
	}
}

// failed counts the customers' requests that failed since it was asked last, by the release that answered.
func (st *story) failed() map[string]int {
	st.t.Helper()
	body, err := os.ReadFile(st.path("requests"))
	if err != nil {
		st.t.Fatal(err)
	}
	whole := body[:bytes.LastIndexByte(body, '\n')+1]
	by := map[string]int{}
	for line := range bytes.Lines(whole[st.read:]) {
		var q struct{ Release, Failed string }
		if err := json.Unmarshal(line, &q); err != nil {
			st.t.Fatal(err)
		}
		if q.Failed != "" {
			by[q.Release]++
		}
	}
	st.t.Logf("the customers sent %d requests; by release %v failed", bytes.Count(whole[st.read:], []byte{'\n'}), by)
	st.read = len(whole)
	return by
}

// TestStoryOnClusters plays the seed's story with a deploy file of the pure Armory dialect on two real clusters, production
// and staging, while customers order: a migration of the volumes that fails, an upgrade that damages data, a release that
// fails some customers, and the good one.
func TestStoryOnClusters(t *testing.T) {
	st := newStory(t)

	st.during(t, "the copy fails", func(t *testing.T) {
		// The database of staging keeps running, by a mistake of whoever starts it.
		d := st.ended(st.deliver("shop:2", "shop-migration:2", "--add-context", "staging-replicas=1"), "FAILED")
		if s := d.step(waitsForMigration); s.Verdict != "fail" || !strings.Contains(s.Message, "Failed:volume of claim data-mongo-0 is in use by pod mongo-0") {
			t.Errorf("the migration that failed at the stage Final: %s\n%s", s.Message, d)
		}
		if d.target("Staging") != "CANCELLED" || d.target("Production") != "CANCELLED" {
			t.Errorf("what depends on the copy went on\n%s", d)
		}
		st.served()
		st.runs(st.staging, "ferretdb:1.17", "shop:1")
		st.runs(st.prod, "ferretdb:1.17", "shop:1")
		st.kept()
	})

	st.during(t, "an upgrade that damages data is stopped in staging", func(t *testing.T) {
		d := st.ended(st.deliver("shop:2", "shop-migration:2-rc1"), "FAILED")
		if s := d.step(integrationTests); s.Verdict != "fail" {
			t.Errorf("the integration tests passed\n%s", d)
		}
		st.foundAll(d.step(integrationTests).Message)
		if d.target("Staging") != "FAILED" || d.target("Production") != "CANCELLED" {
			t.Errorf("the targets\n%s", d)
		}
		st.served()
		st.runs(st.prod, "ferretdb:1.17", "shop:1")
		st.kept()
	})

	st.during(t, "a release that fails customers goes back", func(t *testing.T) {
		id := st.deliver("shop:2-rc1", "shop-migration:2")
		st.until(id, "tested in staging", func(d delivery) bool { return d.step(integrationTests).Verdict == "pass" })
		d := st.ended(id, "FAILED")
		if !strings.Contains(d.Reason, atHalf+" of target Production: fail: failed-percent") {
			t.Errorf("the analysis at half of the traffic did not find it\n%s", d)
		}
		// The application goes back, and the database to its old version. The dialect has no way back for data: the volume
		// stays with all that was ordered meanwhile, and the old version reads it.
		if s := d.step("Production/deploy/apply"); s.Phase != "undone" {
			t.Errorf("production did not go back\n%s", d)
		}
		if st.failed()["2-rc1"] == 0 {
			t.Error("no customer met the release that fails")
		}
		st.runs(st.prod, "ferretdb:1.17", "shop:1")
		st.kept()
	})

	st.during(t, "the good release stays", func(t *testing.T) {
		id := st.deliver("shop:2", "shop-migration:2")
		st.until(id, "tested in staging", func(d delivery) bool { return d.step(integrationTests).Verdict == "pass" })
		d := st.until(id, "waiting after the analysis", waiting(atHalf))
		if s := d.step(atHalf); !strings.Contains(s.Message, "answered") {
			t.Errorf("the analysis that asks says %s", s.Message)
		}
		st.must("deploy", "approve", id)
		d = st.ended(id, "SUCCEEDED")
		if s := d.step(atAll); s.Verdict != "pass" {
			t.Errorf("the analysis of all traffic: %s\n%s", s.Message, d)
		}
		st.failed()
		st.runs(st.prod, "ferretdb:1.24", "shop:2")
		st.runs(st.staging, "ferretdb:1.24", "shop:2")
		st.kept()
	})
}

// foundAll holds that a message names every document that the bad migration has damaged.
func (st *story) foundAll(message string) {
	st.t.Helper()
	var all []struct{ Collection, ID, Field string }
	if err := json.Unmarshal(st.shop("damages", "--seed", "1", "--orders", fmt.Sprint(orders)), &all); err != nil {
		st.t.Fatal(err)
	}
	for _, d := range all {
		name := strings.TrimSuffix(d.Collection, "s") + " " + d.ID
		if d.Field != "" {
			name += ": " + d.Field
		}
		if !strings.Contains(message, name) {
			st.t.Errorf("%s was damaged, and the tests say only %s", name, message)
		}
	}
	if len(all) == 0 {
		st.t.Error("nothing was damaged")
	}
}
