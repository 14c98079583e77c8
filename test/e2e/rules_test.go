package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"os/user"
	"strings"
	"testing"
)

// webManifests are the application at an image, with a Service.
const webManifests = `
      apiVersion: v1
      kind: Service
      metadata: {name: web}
      spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
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
            terminationGracePeriodSeconds: 5
            containers:
              - name: web
                image: IMAGE
                env: [{name: LISTEN, value: "$(POD_IP):8080"}]
                readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
`

// rule is one row of the dialect's table of what leads to which effect: a delivery of version 2 over version 1, in a
// target on which another one depends.
type rule struct {
	name     string
	strategy string // of the target; none: the manifests are applied
	before   string // its gates
	after    string
	image    string // where it is not version 2
	fresh    bool   // nothing runs before
	act      func(*site, string)
	status   string // of the delivery
	one      string // of the target
	version  string // that serves at the end, "" where none does
	later    bool   // whether the dependant was deployed
	step     string // that says why
	says     string
}

// The strategies of the rules. What stands for STEP is where the event happens.
const (
	inCanary   = "canary: {steps: [{setWeight: {weight: 50}}, STEP]}"
	inRedirect = "blueGreen: {redirectTrafficAfter: [STEP], activeService: web}"
	inShutDown = "blueGreen: {shutDownOldVersionAfter: [STEP]}"
	asks       = "{pause: {untilApproved: true}}"
	expires    = "{pause: {untilApproved: true, approvalExpiration: {duration: 1, unit: seconds}}}"
	analysed   = "{analysis: {queries: [one], interval: 1, units: seconds, numberOfJudgmentRuns: 2}}"
	byHand     = "{analysis: {queries: [one], interval: 1, units: seconds, numberOfJudgmentRuns: 1, rollBackMode: manual}}"
)

func at(strategy, step string) string { return strings.Replace(strategy, "STEP", step, 1) }

func hooked(name string) string { return "{runWebhook: {name: " + name + "}}" }

// decides returns what a person does when a step waits.
func decides(step string, decision ...string) func(*site, string) {
	return func(s *site, id string) {
		s.t.Helper()
		s.until(id, "waiting for a person", waiting(step))
		s.must(append([]string{"deploy", decision[0], id}, decision[1:]...)...)
	}
}

func rules() []rule {
	const canary = "one/deploy/canary/2-"
	rolledBack := rule{status: "FAILED", one: "FAILED", version: "1"}
	as := func(r rule, name, strategy, step, says string) rule {
		r.name, r.strategy, r.step, r.says = name, strategy, step, says
		return r
	}
	by := func(r rule, act func(*site, string)) rule { r.act = act; return r }
	delivers := func(r rule, image string) rule { r.image = image; return r }
	gates := func(name, list, step, says string) rule {
		return rule{name: name, before: list, status: "FAILED", one: "FAILED", version: "1", step: step, says: says}
	}
	stays := func(name, list, step, says string) rule {
		return rule{name: name, after: list, status: "FAILED", one: "FAILED", version: "2", step: step, says: says}
	}
	return []rule{
		delivers(as(rolledBack, "a manifest without a command", at(inCanary, asks), "one/deploy/start", `image "nothing:1" is not mapped to one (add command:`), "nothing:1"),
		delivers(as(rolledBack, "pods that are not ready", at(inCanary, asks), "one/deploy/start", "web failed"), "web:crash"),
		delivers(as(rolledBack, "pods that are not ready, without a strategy", "", "one/deploy/apply", "web failed"), "web:crash"),
		{name: "a first version that is not ready", strategy: at(inCanary, asks), image: "web:crash", fresh: true, status: "FAILED", one: "FAILED",
			step: "one/deploy/start", says: "web failed"},
		as(rolledBack, "a webhook that is not accepted", at(inCanary, hooked("refused")), canary+"webhook", "was not accepted in 3 attempts: 500"),
		as(rolledBack, "a job that calls back without success", at(inCanary, hooked("unsuccessful")), canary+"webhook", "success: false: the tests fail"),
		as(rolledBack, "a webhook before the redirection", at(inRedirect, hooked("unsuccessful")), "one/deploy/redirectAfter/1-webhook", "success: false"),
		as(rolledBack, "a webhook after the redirection", at(inShutDown, hooked("unsuccessful")), "one/deploy/shutDownAfter/1-webhook", "success: false"),
		as(rolledBack, "an analysis that fails", at(inCanary, analysed), canary+"analysis", "one: the mean of"),
		by(as(rolledBack, "an analysis that fails and asks, and a person who goes back", at(inCanary, byHand), canary+"analysis", "rolled back by"), decides(canary+"analysis", "rollback")),
		{name: "an analysis that fails and asks, and a person who goes on", strategy: at(inCanary, byHand), act: decides(canary+"analysis", "approve"),
			status: "SUCCEEDED", one: "SUCCEEDED", version: "2", later: true, step: canary + "analysis", says: "one: the mean of"},
		as(rolledBack, "an approval that expires", at(inCanary, expires), canary+"approval", "nobody approved within 1s"),
		gates("an approval before that expires", expires, "one/before/1-approval", "nobody approved within 1s"),
		gates("a gate that fails beside one that is open", asks+", "+hooked("unsuccessful"), "one/before/2-webhook", "success: false"),
		gates("an analysis before that fails", analysed, "one/before/1-analysis", "one: the mean of"),
		stays("a webhook after the deployment", hooked("unsuccessful"), "one/after/1-webhook", "success: false"),
		stays("an analysis after the deployment", analysed, "one/after/1-analysis", "one: the mean of"),
		by(as(rolledBack, "a person goes back in a canary", at(inCanary, asks), canary+"approval", "rolled back by"), decides(canary+"approval", "rollback")),
		by(as(rolledBack, "a person refuses", at(inCanary, asks), canary+"approval", "rejected"), decides(canary+"approval", "reject")),
		by(as(rolledBack, "a person goes back before blue is deleted", at(inShutDown, asks), "one/deploy/shutDownAfter/1-approval", "rolled back by"),
			decides("one/deploy/shutDownAfter/1-approval", "rollback", "one")),
		{name: "a person cancels the delivery", strategy: at(inCanary, asks), act: decides(canary+"approval", "cancel"), status: "CANCELLED", one: "FAILED", version: "1", says: "cancelled by"},
	}
}

// rulesSite has what the rules need: a provider for which every query "one" is 1, and receivers.
func rulesSite(t *testing.T) (*site, *receiver) {
	hooks := newReceiver(t)
	hooks.on("/refused", func(w http.ResponseWriter, _ hook) {
		http.Error(w, "the job server is down", http.StatusInternalServerError)
	})
	hooks.callsBack("/unsuccessful", `{"success": false, "mdMessage": "the tests fail"}`, func(h hook) string {
		q, err := url.ParseQuery(h.query)
		if err != nil {
			t.Errorf("the query of a webhook: %v", err)
		}
		return q.Get("to")
	})
	s := newSite(t, "")
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	s.write("sluice.yaml", fmt.Sprintf(`
accounts: {local: {kind: local}}
metricProviders: {prometheus: {kind: prometheus, url: "http://%s"}}
roles: {%s: [everything]}
`, prometheus(s), me.Username)+webImages(t))
	return s, hooks
}

// file writes the deploy file of a rule. A name ends up as application and namespace.
func (r rule) file(s *site, name, receiver, image string) string {
	target := fmt.Sprintf("{account: local, namespace: %s, strategy: s, constraints: {beforeDeployment: [%s], afterDeployment: [%s]}}", name, r.before, r.after)
	strategies := ""
	if r.strategy != "" {
		strategies = "strategies: {s: {" + r.strategy + "}}"
	} else {
		target = strings.Replace(target, "strategy: s, ", "", 1)
	}
	return s.write(name+".yaml", fmt.Sprintf(`
application: %[1]s
targets:
  one: %[2]s
  later: {account: local, namespace: %[1]s-later, constraints: {dependsOn: [one]}}
manifests:
  - targets: [one]
    inline: |%[3]s
  - targets: [later]
    inline: |%[4]s
%[5]s
deploymentConfig: {timeout: {duration: 1, unit: minutes}}
analysis: {defaultMetricProviderName: prometheus, queries: [{name: one, queryTemplate: vector(1), upperLimit: 0}]}
webhooks:
  - {name: refused, method: POST, uriTemplate: "%[6]s/refused?of=%[1]s", retryCount: 2, disableCallback: true}
  - {name: unsuccessful, method: POST, uriTemplate: "%[6]s/unsuccessful?to={{armory.callbackUri}}/callback"}
`, name, target, strings.Replace(webManifests, "IMAGE", image, 1), strings.Replace(webManifests, "IMAGE", "web:2", 1), strategies, receiver))
}

// TestRules runs every row of the dialect's table of rollbacks on real processes: event → effect.
func TestRules(t *testing.T) {
	t.Parallel()
	s, hooks := rulesSite(t)
	s.must("deploy", "list") // the server is there before all ask for it at once
	for i, r := range rules() {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			r.run(s.with(t), fmt.Sprintf("rule-%d", i), hooks)
		})
	}
}

func (r rule) run(s *site, name string, hooks *receiver) {
	if !r.fresh {
		s.ended(s.start(rule{}.file(s, name, hooks.URL, "web:1"), "-t", "one"), "SUCCEEDED")
	}
	image := r.image
	if image == "" {
		image = "web:2"
	}
	id := s.start(r.file(s, name, hooks.URL, image))
	if r.act != nil {
		r.act(s, id)
	}
	d := s.ended(id, r.status)
	if got := d.target("one"); got != r.one {
		s.t.Errorf("the target is %s\n%s", got, d)
	}
	// A step that is undone says so; why it failed stands in the reason.
	if why := d.step(r.step).Message + "\n" + d.Reason; !strings.Contains(why, r.says) || d.Status != "SUCCEEDED" && d.Reason == "" {
		s.t.Errorf("it is not told why\n%s", d)
	}
	r.serves(s, name, d)
	if later := d.target("later"); r.later != (later == "SUCCEEDED") || !r.later && later != "CANCELLED" {
		s.t.Errorf("the dependant is %s\n%s", later, d)
	}
	if n := len(s.running("ARMORY_APPLICATION_NAME="+name, "ARMORY_ENVIRONMENT_NAME=later")); r.later != (n > 0) {
		s.t.Errorf("%d processes of the dependant run", n)
	}
	if strings.Contains(r.strategy, "refused") {
		keys := map[string]int{}
		for _, h := range hooks.got("/refused") {
			keys[h.header.Get("Idempotency-Key")]++
		}
		if len(keys) != 1 || len(hooks.got("/refused")) != 3 {
			s.t.Errorf("the webhook was sent with the keys %v", keys)
		}
	}
	if r := s.sluice("deploy", "rollback", id); r.code != 1 {
		s.t.Errorf("a finished delivery can be rolled back: %d %s", r.code, r.errs)
	}
}

// serves holds that one version serves, and no process of another one is left.
func (r rule) serves(s *site, name string, d delivery) {
	s.t.Helper()
	for _, version := range []string{"1", "2"} {
		n := len(s.running("ARMORY_APPLICATION_NAME="+name, "ARMORY_ENVIRONMENT_NAME=one", "VERSION="+version))
		if want := 2; version == r.version && n != want || version != r.version && n != 0 {
			s.t.Errorf("%d processes of version %s run\n%s", n, version, d)
		}
	}
	if r.version == "" {
		return
	}
	service := s.address(name + "/web")
	for range 10 {
		if got := ask(http.DefaultClient, service); got.err != nil || got.version != r.version {
			s.t.Errorf("version %q answers, %v\n%s", got.version, got.err, d)
			return
		}
	}
}
