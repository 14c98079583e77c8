package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The paths of the steps in examples/armory.yaml that the test names.
const (
	staging    = "staging (blue-green)"
	production = "Production, Europe"
)

// armory is the example in the pure dialect, with all that its header asks for.
type armory struct {
	*site
	hooks   *receiver
	example string // the folder of the example
	file    string
}

// newArmory installs the first version in both targets, and starts a Prometheus that scrapes the account.
func newArmory(t *testing.T) *armory {
	hooks := newReceiver(t)
	s := newSite(t, "accounts: {local: {kind: local}}\n"+webImages(t))
	s.env = append(s.env, "HOOK_URL="+hooks.URL, "HOOK_TOKEN=let-me-in")
	example, err := filepath.Abs("../../examples")
	if err != nil {
		t.Fatal(err)
	}
	a := &armory{site: s, hooks: hooks, example: example, file: filepath.Join(example, "armory.yaml")}
	manifests, err := os.ReadFile(filepath.Join(example, "armory-manifests/web/web.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	settings, err := os.ReadFile(filepath.Join(example, "armory-manifests/settings.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("first/web.yaml", strings.ReplaceAll(string(manifests), "image: web:2", "image: web:1")+"---\n"+string(settings))
	file := s.write("first.yaml", `
application: The first version
targets:
  staging: {account: local, namespace: potato-staging}
  production: {account: local, namespace: potato-production}
manifests: [{path: first}]
`)
	if r := s.must("deploy", "start", "-f", file, "--watch"); !strings.Contains(r.out, "completed with status: SUCCEEDED") {
		t.Fatal(r.out)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	s.write("sluice.yaml", fmt.Sprintf(`
accounts:
  local: {kind: local}
metricProviders:
  prometheus: {kind: prometheus, url: "http://%s"}
secrets:
  hook-url: {env: HOOK_URL}
  hook-token: {env: HOOK_TOKEN}
roles:
  %s: [Release Managers]
`, prometheus(a.site, "--scrape", "services="+a.metrics(), "--interval", "1s"), me.Username)+webImages(t))
	return a
}

// metrics is where the account's counters are.
func (a *armory) metrics() string {
	port, err := os.ReadFile(filepath.Join(a.data, "accounts/local/metrics.port"))
	if err != nil {
		a.t.Fatal(err)
	}
	return "http://127.0.0.1:" + strings.TrimSpace(string(port)) + "/metrics"
}

// counted returns how many requests the account has counted for a Service, by track and ReplicaSet.
func (a *armory) counted(namespace, service, track, replicaSet string) int {
	a.t.Helper()
	resp, err := http.Get(a.metrics())
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	total := 0
	of := regexp.MustCompile(fmt.Sprintf(`(?m)^sluice_service_requests_total\{code="\d+",namespace="%s",replica_set="%s",service="%s",track="%s"\} (\d+)$`,
		namespace, replicaSet, service, track))
	for _, m := range of.FindAllStringSubmatch(string(body), -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			a.t.Fatal(err)
		}
		total += n
	}
	return total
}

// callbacks makes the receivers of the three webhooks that wait call back, each where it was told to.
func (a *armory) callbacks() {
	a.hooks.callsBack("/freezer", `{"success": true, "mdMessage": "all **frozen**"}`, func(h hook) string {
		var body struct{ Callback string }
		if err := json.Unmarshal([]byte(h.body), &body); err != nil {
			a.t.Errorf("the body of the freezer is no JSON: %v\n%s", err, h.body)
		}
		return body.Callback
	})
	a.hooks.callsBack("/tests", `{"success": true, "mdMessage": "42 tests"}`, func(h hook) string { return h.header.Get("X-Callback") })
	a.hooks.callsBack("/job/warm-up/buildWithParameters", `{"success": true}`, func(h hook) string {
		q, err := url.ParseQuery(h.query)
		if err != nil {
			a.t.Errorf("the query of the warm-up: %v", err)
		}
		return q.Get("url")
	})
}

// TestArmory runs a file of the pure dialect, with everything that it has, to its end: callbacks, manual analysis,
// blueGreen, a canary and two targets, under load, approved by command.
func TestArmory(t *testing.T) {
	t.Parallel()
	a := newArmory(t)
	a.callbacks()
	inStaging, inProduction := newLoad(t, a.address("potato-staging/web")), newLoad(t, a.address("potato-production/web"))
	production1 := a.address("potato-production/web")
	a.hooks.on("/smoke", func(w http.ResponseWriter, _ hook) {
		// The weight is 0 now.
		for range 40 {
			if got := ask(http.DefaultClient, production1); got.err != nil || got.version != "1" {
				t.Errorf("before any weight production answers %q, %v", got.version, got.err)
				break
			}
		}
		w.WriteHeader(http.StatusOK)
	})
	id := a.start(a.file, "--add-context", "added=yes")

	a.until(id, "waiting for the redirection", func(d delivery) bool {
		return waiting(staging+"/deploy/redirectAfter/1-approval")(d) && d.step(staging+"/deploy/redirectAfter/2-expose").Status == "SUCCEEDED"
	})
	a.previews(id)
	a.second(id)
	inStaging.further(20)
	a.must("deploy", "approve", id)

	a.until(id, "waiting before production", waiting(production+"/before/1-approval"))
	inStaging.further(20)
	a.must("deploy", "approve", id)

	d := a.until(id, "waiting after the analysis", waiting(production+"/deploy/canary/7-analysis"))
	inProduction.further(200)
	a.shares(d, inProduction.end())
	inProduction = newLoad(t, production1)
	if d.Status != "AWAITING_APPROVAL" || !strings.Contains(d.step(production+"/deploy/canary/7-analysis").Message, "always-one") {
		t.Errorf("the analysis that asks: %s", d)
	}
	a.must("deploy", "approve", id)
	a.until(id, "waiting before the end", waiting(production+"/deploy/canary/8-approval"))
	a.must("deploy", "approve", id, production+"/deploy/canary/8-approval")

	d = a.ended(id, "SUCCEEDED")
	inProduction.further(20)
	a.versions(d, inStaging.end(), inProduction.end())
	a.webhooks(d)
	for _, s := range d.Steps {
		if s.Status != "SUCCEEDED" {
			t.Errorf("%s is %s", s.Ref, s.Status)
		}
	}
}

// previews holds that the preview Service reaches the new version alone, and the active one the old version alone.
func (a *armory) previews(id string) {
	a.t.Helper()
	message := a.status(id).step(staging + "/deploy/redirectAfter/2-expose").Message
	m := regexp.MustCompile(`web-preview is at http://(\S+) for `).FindStringSubmatch(message)
	if m == nil {
		a.t.Fatalf("exposeServices says %q", message)
	}
	active := a.address("potato-staging/web")
	for range 40 {
		if got := ask(http.DefaultClient, m[1]); got.err != nil || got.version != "2" || got.replicaSet != "web-"+id[:8] {
			a.t.Fatalf("the preview answers %q of %q, %v", got.version, got.replicaSet, got.err)
		}
		if got := ask(http.DefaultClient, active); got.err != nil || got.version != "1" {
			a.t.Fatalf("before the redirection the active Service answers %q, %v", got.version, got.err)
		}
	}
	if n := a.counted("potato-staging", "web-preview", "stable", "[^\"]*"); n != 0 {
		a.t.Errorf("the preview Service sent %d requests to the old version", n)
	}
	if n := a.counted("potato-staging", "web-preview", "canary", "web-"+id[:8]); n != 40 {
		a.t.Errorf("of 40 requests to the preview Service %d are counted for the new version", n)
	}
}

// second starts the application once more while it is delivered: refused, or queued where the file says so, the newest
// one in place of the others.
func (a *armory) second(running string) {
	a.t.Helper()
	r := a.sluice("deploy", "start", "-f", a.file)
	if r.code != 3 || !strings.Contains(r.errs, running) {
		a.t.Errorf("a second delivery ends with %d: %s", r.code, r.errs)
	}
	body, err := os.ReadFile(a.file)
	if err != nil {
		a.t.Fatal(err)
	}
	queueing := a.write("armory.yaml", strings.Replace(string(body), "{strategy: reject}", "{strategy: enqueueOne}", 1))
	a.folder = a.example
	defer func() { a.folder = a.dir }()
	first, newest := a.start(queueing), a.start(queueing)
	if d := a.status(newest); d.Status != "QUEUED" {
		a.t.Errorf("the newest of the queue is %s", d)
	}
	if d := a.status(first); d.Status != "CANCELLED" {
		a.t.Errorf("the one that was replaced is %s", d)
	}
	a.must("deploy", "cancel", newest)
	a.ended(newest, "CANCELLED")
}

// shares holds that the traffic was measured, and split as the weights say.
func (a *armory) shares(d delivery, all []answer) {
	a.t.Helper()
	canary := func(n string) step { return d.step(production + "/deploy/canary/" + n) }
	for _, w := range []struct {
		from, to time.Time
		percent  int
	}{
		{time.Time{}, canary("4-weight").Started, 0},
		{canary("4-weight").Ended, canary("6-weight").Started, 25},
		{canary("6-weight").Ended, time.Time{}, 50},
	} {
		window := between(all, w.from, w.to)
		// One client, and shares that are exact: only the ends of the window are not.
		if share := 100 * of(window, "2") / max(1, len(window)); len(window) < 20 || share < w.percent-3 || share > w.percent+3 {
			a.t.Errorf("at weight %d the new version got %d of %d requests", w.percent, of(window, "2"), len(window))
		}
	}
	if got, want := a.counted("potato-production", "web", "canary", "web-"+d.ID[:8]), of(all, "2"); got != want {
		a.t.Errorf("the account counted %d requests for the canary, the client %d", got, want)
	}
}

// versions holds which version answered when.
func (a *armory) versions(d delivery, inStaging, inProduction []answer) {
	a.t.Helper()
	redirect := d.step(staging + "/deploy/redirect")
	if early := between(inStaging, time.Time{}, redirect.Started); len(early) < 20 || of(early, "1") != len(early) {
		a.t.Errorf("before the redirection %d of %d requests went to the old version", of(early, "1"), len(early))
	}
	if late := between(inStaging, redirect.Ended, time.Time{}); len(late) < 20 || of(late, "2") != len(late) {
		a.t.Errorf("after the redirection %d of %d requests went to the new version", of(late, "2"), len(late))
	}
	promote := d.step(production + "/deploy/promote")
	if late := between(inProduction, promote.Ended, time.Time{}); len(late) < 20 || of(late, "2") != len(late) {
		a.t.Errorf("after the promotion %d of %d requests went to the new version", of(late, "2"), len(late))
	}
}

// webhooks holds what each receiver was sent.
func (a *armory) webhooks(d delivery) {
	a.t.Helper()
	freezer := a.hooks.one("/freezer")
	var body map[string]any
	if err := json.Unmarshal([]byte(freezer.body), &body); err != nil {
		a.t.Fatal(err)
	}
	delete(body, "callback")
	want := map[string]any{"team": "tubers", "retries": 5.0, "deployment": d.ID, "of": "Potato Facts", "to": staging + "/local/potato-staging"}
	if fmt.Sprint(body) != fmt.Sprint(want) {
		a.t.Errorf("the freezer was sent %v", body)
	}
	if got := freezer.header.Get("Authorization"); got != "Bearer let-me-in" {
		a.t.Errorf("the freezer was sent the header %q", got)
	}
	if m := d.step(staging + "/before/2-webhook").Message; !strings.Contains(m, "all **frozen**") {
		a.t.Errorf("what the freezer called back is not shown: %s", m)
	}
	if tests := a.hooks.one("/tests"); strings.TrimSpace(tests.body) != `{"suite": "integration", "namespace": "potato-staging"}` {
		a.t.Errorf("the tests were sent %s", tests.body)
	}
	if warm := a.hooks.one("/job/warm-up/buildWithParameters"); warm.method != http.MethodGet {
		a.t.Errorf("the warm-up was called by %s", warm.method)
	}
	smoke := a.hooks.one("/smoke").body
	first, rest, _ := strings.Cut(smoke, "\n")
	if !regexp.MustCompile(`^\{"address": "http://127\.\S+", "replicaSet": "web-`+d.ID[:8]+`"\}$`).MatchString(first) ||
		strings.TrimSpace(rest) != "# the address is public for five minutes" {
		a.t.Errorf("the smoke test was sent %s", smoke)
	}
	if got := a.hooks.one("/announce").body; got != `{"text": "Potato Facts is out (${armory.deploymentId})"}` {
		a.t.Errorf("the announcement is %s", got)
	}
}
