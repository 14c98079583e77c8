package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

// TestTargets: what a delivery that ended may still become, what one target's failure means for those before it, and what
// is refused before anything begins.
func TestTargets(t *testing.T) {
	t.Parallel()
	s := newSite(t, "accounts: {local: {kind: local}}\n"+webImages(t))
	file := func(version, gate string) string {
		return s.write("shop.yaml", `
application: shop
targets:
  first: {account: local, namespace: first}
  second: {account: local, namespace: second, strategy: s, constraints: {dependsOn: [first]}}
strategies: {s: {canary: {steps: [`+gate+`]}}}
manifests:
  - inline: |`+strings.Replace(webManifests, "IMAGE", "web:"+version, 1))
	}
	serve := func(first, second string) {
		t.Helper()
		for namespace, version := range map[string]string{"first": first, "second": second} {
			if got := ask(http.DefaultClient, s.address(namespace+"/web")); got.err != nil || got.version != version {
				t.Errorf("%s: version %q answers, %v", namespace, got.version, got.err)
			}
		}
	}
	old := s.start(file("1", "{setWeight: {weight: 50}}"))
	s.ended(old, "SUCCEEDED")
	serve("1", "1")

	id := s.start(file("2", asks))
	decides("second/deploy/canary/1-approval", "rollback", "second")(s, id)
	if d := s.ended(id, "FAILED"); d.target("first") != "SUCCEEDED" || d.target("second") != "FAILED" {
		t.Errorf("the targets of one that went back: %s", d)
	}
	serve("2", "1")

	// What has ended cannot go back; an older one is run once more instead.
	if r := s.sluice("deploy", "rollback", id, "first"); r.code != 1 {
		t.Errorf("a delivery that has ended goes back: %d %s", r.code, r.errs)
	}
	var again struct{ DeploymentID string }
	if err := json.Unmarshal([]byte(s.must("deploy", "redeploy", old, "-o", "json").out), &again); err != nil {
		t.Fatal(err)
	}
	s.ended(again.DeploymentID, "SUCCEEDED")
	serve("1", "1")

	text := "\ntrafficManagement: [{targets: [second], istio: [{virtualService: {name: web}, destinationRule: {name: web}}]}]\n"
	mesh := s.write("mesh.yaml", strings.Replace(`
application: mesh
targets: {second: {account: local, namespace: second, strategy: s}}
strategies: {s: {canary: {steps: []}}}
manifests:
  - inline: |`+strings.Replace(webManifests, "IMAGE", "web:2", 1), "\nstrategies:", text+"strategies:", 1))
	for _, command := range [][]string{{"plan", "-f", mesh}, {"deploy", "start", "-f", mesh}} {
		r := s.sluice(command...)
		if r.code != 1 {
			t.Errorf("%s ends with %d", command, r.code)
		}
		says(t, r.errs, "account local is this machine, where trafficManagement finds no mesh")
	}
	serve("1", "1")
}
