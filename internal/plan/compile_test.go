package plan

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/deployfile"
	"github.com/sluice-cd/sluice/internal/manifest"
)

const id = "0123456789abcdef"

// web is an application: a Service, a Deployment, a ConfigMap.
const web = `
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: web:2}]}}}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}}
`

// mongo is a database with its Service, its claim and what it mounts.
const mongo = `
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Service, metadata: {name: mongo}, spec: {selector: {app: mongo}}}
---
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: data}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: mongo-settings}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: mongo}
spec:
  template:
    metadata: {labels: {app: mongo}}
    spec:
      volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]
      containers: [{name: c, image: mongo:2, envFrom: [{configMapRef: {name: mongo-settings}}]}]
`

const migrate = `
---
{apiVersion: batch/v1, kind: Job, metadata: {name: migrate}}
`

// input parses a deploy file and gives every target the manifests.
func input(t *testing.T, file, manifests string) Input {
	t.Helper()
	f, findings := deployfile.Parse("deploy.yaml", []byte(file))
	if findings.HasErrors() {
		var b strings.Builder
		_ = findings.Write(&b, "deploy.yaml", []byte(file))
		t.Fatal(b.String())
	}
	in := Input{File: f, Delivery: id, Objects: map[string][]manifest.Object{}, Jobs: map[string][]manifest.Object{}}
	for _, target := range f.Targets {
		objects, err := manifest.Parse("m.yaml", []byte(manifests))
		if err != nil {
			t.Fatal(err)
		}
		in.Objects[target.Name] = manifest.Order(objects)
	}
	for _, j := range f.Data.Jobs {
		objects, err := manifest.Parse("job.yaml", []byte(j.Inline))
		if err != nil {
			t.Fatal(err)
		}
		in.Jobs[j.Name] = objects
	}
	return in
}

func compile(t *testing.T, in Input) Graph {
	t.Helper()
	g, err := Compile(in)
	if err != nil {
		t.Fatal(err)
	}
	checkGraph(t, g)
	return g
}

// checkGraph holds what is true of every graph: paths are unique, and a step waits only for steps before it.
func checkGraph(t *testing.T, g Graph) {
	t.Helper()
	seen := map[string]bool{}
	for _, n := range g.Nodes {
		if seen[n.Path] || !strings.HasPrefix(n.Path, n.Target+"/"+string(n.Phase)+"/") {
			t.Errorf("the path %s is twice there or not of its target and phase", n.Path)
		}
		for _, a := range n.After {
			if !seen[a] {
				t.Errorf("%s waits for %s, which does not come before it", n.Path, a)
			}
		}
		seen[n.Path] = true
	}
}

// lines writes a graph: each step, and what it waits for.
func lines(g Graph) string {
	var b strings.Builder
	for _, n := range g.Nodes {
		b.WriteString(n.Path)
		if n.Background {
			b.WriteString(" in the background")
		}
		if len(n.After) > 0 {
			b.WriteString(" < " + strings.Join(n.After, " "))
		}
		b.WriteString("\n")
	}
	return b.String()
}

func wantLines(t *testing.T, g Graph, want string) {
	t.Helper()
	if got, want := strings.TrimSpace(lines(g)), strings.TrimSpace(want); got != want {
		t.Errorf("the graph is\n%s\nnot\n%s", got, want)
	}
}

func TestCompile(t *testing.T) {
	for _, c := range []struct{ name, file, manifests, want string }{
		{"a strategy of nothing is one step", `
application: a
targets: {one: {account: l, namespace: n}}
manifests: [{path: m}]
`, web, `
one/deploy/apply`},

		{"a canary goes in order and ends with a promotion", `
application: a
targets: {one: {account: l, namespace: n, strategy: s}}
manifests: [{path: m}]
strategies: {s: {canary: {steps: [{setWeight: {weight: 25}}, {pause: {duration: 1, unit: minutes}}, {setWeight: {weight: 50}}, {pause: {untilApproved: true}}]}}}
`, web, `
one/deploy/apply
one/deploy/start < one/deploy/apply
one/deploy/canary/1-weight < one/deploy/start
one/deploy/canary/2-pause < one/deploy/canary/1-weight
one/deploy/canary/3-weight < one/deploy/canary/2-pause
one/deploy/canary/4-approval < one/deploy/canary/3-weight
one/deploy/promote < one/deploy/canary/4-approval`},

		{"a strategy without a Deployment is not used", `
application: a
targets: {one: {account: l, namespace: n, strategy: s}}
manifests: [{path: m}]
strategies: {s: {canary: {steps: [{setWeight: {weight: 25}}]}}}
`, `{apiVersion: v1, kind: Service, metadata: {name: web}}`, `
one/deploy/apply`},

		{"the lists of blueGreen run in parallel", `
application: a
targets: {one: {account: l, namespace: n, strategy: s}}
manifests: [{path: m}]
webhooks: [{name: h, method: POST, uriTemplate: "http://h", disableCallback: true}]
strategies:
  s:
    blueGreen:
      redirectTrafficAfter: [{pause: {untilApproved: true}}, {runWebhook: {name: h}}]
      shutDownOldVersionAfter: [{pause: {duration: 1, unit: hours}}, {exposeServices: {services: [web], ttl: {duration: 1, unit: hours}}}]
`, web, `
one/deploy/apply
one/deploy/start < one/deploy/apply
one/deploy/redirectAfter/1-approval < one/deploy/start
one/deploy/redirectAfter/2-webhook < one/deploy/start
one/deploy/redirect < one/deploy/redirectAfter/1-approval one/deploy/redirectAfter/2-webhook
one/deploy/shutDownAfter/1-pause < one/deploy/redirect
one/deploy/shutDownAfter/2-expose < one/deploy/redirect
one/deploy/promote < one/deploy/shutDownAfter/1-pause one/deploy/shutDownAfter/2-expose`},

		{"gates are parallel, a sequence in them is not", `
application: a
targets:
  one:
    account: l
    namespace: n
    constraints:
      beforeDeployment:
        - pause: {duration: 1, unit: seconds}
        - sequence: [{pause: {untilApproved: true}}, {pause: {duration: 2, unit: seconds}}]
        - pause: {untilApproved: true}
      afterDeployment: [{pause: {duration: 1, unit: seconds}}, {pause: {untilApproved: true}}]
manifests: [{path: m}]
`, web, `
one/before/1-pause
one/before/2/1-approval
one/before/2/2-pause < one/before/2/1-approval
one/before/3-approval
one/deploy/apply < one/before/1-pause one/before/2/2-pause one/before/3-approval
one/after/1-pause < one/deploy/apply
one/after/2-approval < one/deploy/apply`},

		{"an analysis in the background holds nothing up", `
application: a
targets: {one: {account: l, namespace: n, strategy: s, constraints: {beforeDeployment: [{analysis: &a {queries: [q], interval: 1, units: seconds, numberOfJudgmentRuns: 3, background: true}}]}}}
manifests: [{path: m}]
analysis: {defaultMetricProviderName: p, queries: [{name: q, queryTemplate: up, lowerLimit: 1}]}
strategies: {s: {canary: {steps: [{analysis: *a}, {setWeight: {weight: 25}}, {pause: {duration: 1, unit: minutes}}]}}}
`, web, `
one/before/1-analysis in the background
one/deploy/apply
one/deploy/start < one/deploy/apply
one/deploy/canary/1-analysis in the background < one/deploy/start
one/deploy/canary/2-weight < one/deploy/start
one/deploy/canary/3-pause < one/deploy/canary/2-weight
one/deploy/promote < one/deploy/canary/3-pause`},

		{"a target waits for all of those it depends on, their gates included", `
application: a
targets:
  last: {account: l, namespace: n3, constraints: {dependsOn: [second, first]}}
  first: {account: l, namespace: n1, constraints: {afterDeployment: [{pause: {untilApproved: true}}]}}
  second: {account: l, namespace: n2}
manifests: [{path: m}]
`, web, `
second/deploy/apply
first/deploy/apply
first/after/1-approval < first/deploy/apply
last/deploy/apply < second/deploy/apply first/deploy/apply first/after/1-approval`},

		{"a target in which nothing is done still stands between others", `
application: a
targets:
  first: {account: l, namespace: n1}
  nothing: {account: l, namespace: n2, constraints: {dependsOn: [first]}}
  last: {account: l, namespace: n3, constraints: {dependsOn: [nothing], beforeDeployment: [{pause: {untilApproved: true}}]}}
manifests: [{path: m, targets: [first]}]
`, "", `
last/before/1-approval`},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantLines(t, compile(t, input(t, c.file, c.manifests)), c.want)
		})
	}
}

const chain = `
application: a
targets:
  dev: {account: l, namespace: n1}
  staging: {account: l, namespace: n2, constraints: {dependsOn: [dev]}}
  prod: {account: l, namespace: n3, constraints: {dependsOn: [staging]}}
manifests: [{path: m}]
`

func TestTargetFilters(t *testing.T) {
	in := input(t, chain, web)
	in.Targets = []string{"prod", "dev"}
	g := compile(t, in)
	wantLines(t, g, "dev/deploy/apply\nprod/deploy/apply < dev/deploy/apply")
	if got := g.Targets[1].DependsOn; !reflect.DeepEqual(got, []string{"dev"}) {
		t.Errorf("without staging prod depends on %q: a failure of dev would not stop it", got)
	}
	in.Targets = []string{"prod"}
	g = compile(t, in)
	wantLines(t, g, "prod/deploy/apply")
	if len(g.Targets) != 1 || len(g.Targets[0].DependsOn) > 0 {
		t.Errorf("alone, prod is %+v", g.Targets)
	}
	in.Targets = []string{"production"}
	if _, err := Compile(in); err == nil || !strings.Contains(err.Error(), "production, which does not exist") {
		t.Error("a filter that matches nothing:", err)
	}
}

// A target without nodes hands on what it waited for.
func TestTargetWithoutSteps(t *testing.T) {
	in := input(t, chain, web)
	in.Objects["staging"] = nil
	wantLines(t, compile(t, in), "dev/deploy/apply\nprod/deploy/apply < dev/deploy/apply")
}

func TestAccountsAndNamespaces(t *testing.T) {
	in := input(t, `
application: a
targets: {named: {account: one, namespace: n}, unnamed: {account: two}}
manifests: [{path: m}]
`, `{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: of-the-manifest}}`)
	sites := func() string {
		var out []string
		for _, target := range compile(t, in).Targets {
			out = append(out, target.Account+"/"+target.Namespace)
		}
		return strings.Join(out, " ")
	}
	if got := sites(); got != "one/n two/of-the-manifest" {
		t.Error("the sites are", got)
	}
	in.Account = "other"
	in.Objects["unnamed"] = nil
	if got := sites(); got != "other/n other/default" {
		t.Error("with --account the sites are", got)
	}
	in.Account = ""
	in.File.Targets[0].Account = ""
	if _, err := Compile(in); err == nil || !strings.Contains(err.Error(), "--account") {
		t.Error("without any account:", err)
	}
}

// args reads the arguments of a step.
func args[T any](t *testing.T, g Graph, path string) T {
	t.Helper()
	i := slices.IndexFunc(g.Nodes, func(n Node) bool { return n.Path == path })
	if i < 0 {
		t.Fatalf("there is no step %s in\n%s", path, lines(g))
	}
	var a T
	if err := json.Unmarshal(g.Nodes[i].Args, &a); err != nil {
		t.Fatal(err)
	}
	return a
}

func TestContext(t *testing.T) {
	in := input(t, `
application: a
context: {file: file, both: file, all: file}
targets: {one: {account: l, namespace: n, constraints: {beforeDeployment: [{runWebhook: {name: h, context: {step: step, both: step, all: step}}}]}}}
manifests: [{path: m}]
webhooks: [{name: h, method: GET, uriTemplate: "http://h", networkMode: remoteNetworkAgent, headers: [{key: K, value: v}], retryCount: 2, disableCallback: true}]
`, web)
	in.Context = map[string]string{"all": "added", "added": "added"}
	g := compile(t, in)
	want := WebhookArgs{Name: "h", Method: "GET", URI: "http://h", Headers: []Header{{"K", "v"}}, RetryCount: 2, DisableCallback: true, Agent: "l",
		Context: map[string]string{"file": "file", "step": "step", "both": "step", "all": "added", "added": "added"},
		Where:   Where{Application: "a", Target: "one", Account: "l", Namespace: "n", ReplicaSetName: "web-01234567"}}
	if got := args[WebhookArgs](t, g, "one/before/1-webhook"); !reflect.DeepEqual(got, want) {
		t.Errorf("the webhook is\n%+v\nnot\n%+v", got, want)
	}
	if got := g.Context; !reflect.DeepEqual(got, map[string]string{"file": "file", "both": "file", "all": "added", "added": "added"}) {
		t.Errorf("the context is %v", got)
	}
}

// Real queries join on these annotations. Which version a pod belongs to is different for each Deployment.
func TestPodsAreAnnotated(t *testing.T) {
	a := args[ApplyArgs](t, compile(t, input(t, chain, web)), "dev/deploy/apply")
	want := map[string]string{"deploy.armory.io/application": "a", "deploy.armory.io/deployment-id": id, "deploy.armory.io/environment": "dev"}
	if !reflect.DeepEqual(a.Annotate, want) {
		t.Errorf("pods are annotated with %v", a.Annotate)
	}
	if got := slices.Sorted(maps.Keys(a.Env)); !reflect.DeepEqual(got, []string{"ARMORY_APPLICATION_NAME", "ARMORY_DEPLOYMENT_ID", "ARMORY_ENVIRONMENT_NAME"}) {
		t.Errorf("pods get the variables %v", got)
	}
	i := slices.IndexFunc(a.Objects, func(o manifest.Object) bool { return o.GetKind() == "Deployment" })
	template, _, err := a.Objects[i].PodTemplate()
	if err != nil || template.Annotations["deploy.armory.io/replica-set-name"] != "web-01234567" {
		t.Errorf("the pods of the Deployment are annotated with %v, %v", template.Annotations, err)
	}
	if env := template.Spec.Containers[0].Env; len(env) != 1 || env[0].Name != "ARMORY_REPLICA_SET_NAME" || env[0].Value != "web-01234567" {
		t.Errorf("the pods of the Deployment get the variables %v", env)
	}
}

func TestAnalysis(t *testing.T) {
	g := compile(t, input(t, `
application: a
targets: {one: {account: l, namespace: n, constraints: {afterDeployment: [
  {analysis: {queries: [q, r], interval: 10, units: seconds, numberOfJudgmentRuns: 3, rollBackMode: MANUAL, metricProviderName: step, onInconclusive: continue}},
  {analysis: {interval: 10, units: seconds, numberOfJudgmentRuns: 3, counts: {canaryTotal: a, canaryBad: b, stableTotal: c, stableBad: d}}}]}}}
manifests: [{path: m}]
analysis: {defaultMetricProviderName: file, queries: [{name: q, queryTemplate: up, lowerLimit: 1}, {name: r, queryTemplate: down, upperLimit: 2, metricProviderName: query}]}
`, web))
	a := args[AnalysisArgs](t, g, "one/after/1-analysis")
	one, two := 1.0, 2.0
	want := []Query{{Name: "q", Template: "up", Provider: "step", Lower: &one}, {Name: "r", Template: "down", Provider: "query", Upper: &two}}
	if !reflect.DeepEqual(a.Queries, want) || a.Judge != "threshold" || a.RollBack != "manual" || a.RollForward != "automatic" || a.Interval != 10*time.Second {
		t.Errorf("the analysis is %+v", a)
	}
	for _, n := range g.Nodes {
		if n.Path == "one/after/1-analysis" && n.OnInconclusive != "continue" {
			t.Errorf("when it cannot be told: %q", n.OnInconclusive)
		}
	}
	if c := args[AnalysisArgs](t, g, "one/after/2-analysis"); c.Judge != "counts" || c.Counts == nil || c.Counts.Provider != "file" || c.Counts.StableBad != "d" {
		t.Errorf("the counted analysis is %+v", c)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct{ name, file, manifests, want string }{
		{"the same object twice", chain, web + "---" + web, "Service/web is declared at"},
		{"a copy of a database into its own target", shopOf(`
  production: {account: l, namespace: shop, constraints: {beforeDeployment: [{copyData: {database: orders}}]}}`, ""), web + mongo, "runs in this very target"},
		{"a copy without the database's workload", shopOf(`
  staging: {account: l, namespace: staging, constraints: {beforeDeployment: [{copyData: {database: orders}}]}}
  production: {account: l, namespace: shop}`, ""), web, "hold no StatefulSet/mongo"},
		{"a workload that migrates at its start and does not exist", shopOf(`
  staging: {account: l, namespace: staging, constraints: {beforeDeployment: [{copyData: {database: orders}}]}}
  production: {account: l, namespace: shop}`, "markAfter: deployment/migrator"), web + mongo, `markAfter names "deployment/migrator"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, _ := deployfile.Parse("deploy.yaml", []byte(c.file))
			in := Input{File: f, Delivery: id, Objects: map[string][]manifest.Object{}}
			for _, target := range f.Targets {
				objects, err := manifest.Parse("m.yaml", []byte(c.manifests))
				if err != nil {
					t.Fatal(err)
				}
				in.Objects[target.Name] = objects
			}
			if _, err := Compile(in); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error is %v, not %s", err, c.want)
			}
		})
	}
}
