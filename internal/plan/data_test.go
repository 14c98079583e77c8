package plan

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/deployfile"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// shopOf is a deploy file of a shop whose database runs in production.
func shopOf(targets, more string) string {
	return `
application: shop
targets:` + targets + `
manifests: [{path: m}]
strategies: {s: {canary: {steps: [{setWeight: {weight: 25}}]}}}
data:
  databases:
    - name: orders
      engine: mongodb
      target: production
      workload: statefulset/mongo
      connection: mongodb://{{secrets.user}}:{{secrets.password}}@mongo:27017/
      upgrade: {deadline: {duration: 5, unit: minutes}, contract: patch}
      ` + more + `
  contracts: [{name: patch, exclude: [shop.sessions]}]
  checks: [{name: orders, database: orders, query: '{"count": "orders"}', equals: "7"}, {name: any, query: '{"ping": 1}'}]
  jobs: [{name: smoke, inline: '{apiVersion: batch/v1, kind: Job, metadata: {name: smoke}}'}]
`
}

var rehearsed = `
  staging:
    account: l
    namespace: staging
    constraints:
      beforeDeployment: [{copyData: {database: orders}}]
      afterDeployment:
        - sequence:
            - verifyData: {database: orders, contract: patch}
            - rehearseRollback: {database: orders, require: true}
            - runJob: {name: smoke}
  production:
    account: l
    namespace: shop
    strategy: s
    constraints:
      dependsOn: [staging]
      beforeDeployment: [{checkpointData: {database: orders, name: before}}]`

func refsOf(objects []manifest.Object) string {
	var out []string
	for _, o := range objects {
		out = append(out, o.GetKind()+"/"+o.GetName())
	}
	return strings.Join(out, " ")
}

// On a copy: the new version, the migrations, the mark, and only then what writes. In production: behind the fence.
func TestUpgradeOfADatabase(t *testing.T) {
	in := input(t, shopOf(rehearsed, ""), web+mongo+migrate+`
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: reads}}
---
{apiVersion: batch/v1, kind: CronJob, metadata: {name: nightly}}
---
{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: users}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: outward}, spec: {podSelector: {}, egress: [{}]}}
`)
	in.Force = true
	g := compile(t, in)
	wantLines(t, g, `
staging/before/1-copyData
staging/deploy/prepare < staging/before/1-copyData
staging/deploy/orders/apply < staging/deploy/prepare
staging/deploy/orders/migrate < staging/deploy/orders/apply
staging/deploy/orders/mark < staging/deploy/orders/migrate
staging/deploy/apply < staging/deploy/orders/mark
staging/after/1/1-verifyData < staging/deploy/apply
staging/after/1/2-rehearse < staging/after/1/1-verifyData
staging/after/1/3-job < staging/after/1/2-rehearse
production/before/1-checkpoint < staging/before/1-copyData staging/deploy/prepare staging/deploy/orders/apply staging/deploy/orders/migrate staging/deploy/orders/mark staging/deploy/apply staging/after/1/1-verifyData staging/after/1/2-rehearse staging/after/1/3-job
production/deploy/prepare < production/before/1-checkpoint
production/deploy/orders/fence < production/deploy/prepare
production/deploy/orders/upgrade < production/deploy/orders/fence
production/deploy/orders/verify < production/deploy/orders/upgrade
production/deploy/orders/swap < production/deploy/orders/verify
production/deploy/orders/open < production/deploy/orders/swap
production/deploy/apply < production/deploy/orders/open
production/deploy/start < production/deploy/apply
production/deploy/canary/1-weight < production/deploy/start
production/deploy/promote < production/deploy/canary/1-weight`)

	db := Database{Name: "orders", Engine: "mongodb", Account: "l", Namespace: "shop", Workload: manifest.Ref{Kind: "StatefulSet", Name: "mongo"},
		Connection: "mongodb://{{secrets.user}}:{{secrets.password}}@mongo:27017/"}
	c := args[CopyArgs](t, g, "staging/before/1-copyData")
	if !reflect.DeepEqual(c.Database, db) || c.To != (Site{"l", "staging"}) || refsOf(c.Objects) != "ConfigMap/mongo-settings PersistentVolumeClaim/data Service/mongo StatefulSet/mongo" {
		t.Errorf("copied is %+v with %s", c.Database, refsOf(c.Objects))
	}
	v := args[DataArgs](t, g, "staging/after/1/1-verifyData")
	if v.CopyPath != "staging/before/1-copyData" || v.MarkPath != "staging/deploy/orders/mark" || v.Contract == nil || v.Contract.Exclude[0] != "shop.sessions" || len(v.Checks) != 2 {
		t.Errorf("verified is %+v", v)
	}
	if !args[DataArgs](t, g, "staging/deploy/orders/apply").Force {
		t.Error("--force-conflicts is lost on the copy")
	}
	r := args[DataArgs](t, g, "staging/after/1/2-rehearse")
	if !r.Require || refsOf(r.Jobs) != "Job/smoke" || refsOf(r.Apps) != "ConfigMap/settings Service/web Deployment/web" {
		t.Errorf("rehearsed are %s with the jobs %s", refsOf(r.Apps), refsOf(r.Jobs))
	}
	f := args[DataArgs](t, g, "production/deploy/orders/fence")
	want := DataArgs{Database: db, To: Site{"l", "shop"}, Group: "production/deploy/orders", Rehearsal: "staging/after/1/2-rehearse", Contract: v.Contract,
		Deadline: 5 * time.Minute, Timeout: readyWithin, Force: true}
	objects := refsOf(f.Objects)
	follows(t, g, f.Then)
	f.Objects, f.Then = nil, nil
	if !reflect.DeepEqual(f, want) || objects != "ConfigMap/mongo-settings PersistentVolumeClaim/data Service/mongo StatefulSet/mongo Job/migrate" {
		t.Errorf("fenced is %+v with %s", f, objects)
	}
	if k := args[DataArgs](t, g, "production/before/1-checkpoint"); k.TTL != keptFor || k.Name != "before" {
		t.Errorf("the checkpoint is %+v", k)
	}
}

// follows fails unless what is asked about before a database's upgrade is what is done after it, and only its first step asks.
func follows(t *testing.T, g Graph, then *Application) {
	t.Helper()
	if then == nil || then.Plain == nil || then.Canary == nil {
		t.Fatalf("what follows is not asked about: %+v", then)
	}
	for path, asked := range map[string]*ApplyArgs{"production/deploy/apply": then.Plain, "production/deploy/start": then.Canary} {
		if done := args[ApplyArgs](t, g, path); !reflect.DeepEqual(done, *asked) || done.Recovers != (asked == then.Canary) {
			t.Errorf("asked about is %+v, and %s does %+v", *asked, path, done)
		}
	}
	var ask []string
	for _, n := range g.Nodes {
		if strings.Contains(string(n.Args), `"then":`) {
			ask = append(ask, n.Kind)
		}
	}
	if len(ask) != 1 || ask[0] != KindFence && ask[0] != KindStartMembers {
		t.Errorf("asking are %v", ask)
	}
}

// A rehearsal counts only where it is over before the fence closes.
func TestRehearsalMustComeBefore(t *testing.T) {
	beside := strings.Replace(rehearsed, "dependsOn: [staging]", "dependsOn: []", 1)
	g := compile(t, input(t, shopOf(beside, ""), web+mongo))
	if a := args[DataArgs](t, g, "production/deploy/orders/fence"); a.Rehearsal != "" {
		t.Errorf("a rehearsal that runs at the same time counts: %s", a.Rehearsal)
	}
}

// The application of a rehearsal would meet the other database empty.
func TestRehearsalBesideAnotherDatabase(t *testing.T) {
	two := strings.Replace(shopOf(rehearsed, ""), "  databases:\n", `  databases:
    - {name: users, engine: mongodb, target: production, workload: statefulset/mongo2, connection: "mongodb://mongo2:27017/"}
`, 1)
	if _, err := Compile(input(t, two, web+mongo)); err != nil {
		t.Errorf("the other database is not shipped, and yet: %v", err)
	}
	second := strings.NewReplacer("mongo", "mongo2", "name: shop", "name: shop2", "name: data", "name: data2").Replace(mongo)
	_, err := Compile(input(t, two, web+mongo+second))
	if err == nil || !strings.Contains(err.Error(), "rehearseRollback of orders: the manifests of target staging hold database users too") {
		t.Errorf("it is planned: %v", err)
	}
}

// What is asked about before the upgrade of one of two databases is the application, and nothing of the other one's workload.
func TestTwoDatabasesAsk(t *testing.T) {
	file := strings.Replace(shopOf(`
  production: {account: l, namespace: shop, strategy: s}`, ""), "  databases:\n", `  databases:
    - {name: users, engine: mongodb, target: production, workload: statefulset/mongo2, connection: "mongodb://mongo2:27017/"}
`, 1)
	second := strings.NewReplacer("mongo", "mongo2", "name: shop", "name: shop2", "name: data", "name: data2").Replace(mongo)
	g := compile(t, input(t, file, web+mongo+second))
	for _, d := range []string{"users", "orders"} {
		then := args[DataArgs](t, g, "production/deploy/"+d+"/fence").Then
		if then == nil || then.Plain == nil || then.Canary == nil {
			t.Fatalf("before %s nothing is asked: %+v", d, then)
		}
		if got := refsOf(then.Plain.Objects) + " " + refsOf(then.Canary.Objects); strings.Contains(got, "StatefulSet") || !strings.Contains(got, "Deployment/web") {
			t.Errorf("before %s is asked about %s", d, got)
		}
	}
}

// Without the workload among the manifests the database stays as it is.
func TestDatabaseThatIsNotShipped(t *testing.T) {
	g := compile(t, input(t, shopOf(`
  production: {account: l, namespace: shop}`, ""), web))
	wantLines(t, g, "production/deploy/apply")
}

// A workload that migrates at its own start comes before the mark, with its Service.
func TestMarkAfter(t *testing.T) {
	in := input(t, shopOf(`
  staging: {account: l, namespace: staging, constraints: {beforeDeployment: [{copyData: {database: orders}}]}}
  production: {account: l, namespace: shop}`, "markAfter: deployment/web"), web+mongo)
	in.Objects["production"] = nil
	g := compile(t, in)
	wantLines(t, g, `
staging/before/1-copyData
staging/deploy/prepare < staging/before/1-copyData
staging/deploy/orders/apply < staging/deploy/prepare
staging/deploy/orders/migrate < staging/deploy/orders/apply
staging/deploy/orders/markAfter < staging/deploy/orders/migrate
staging/deploy/orders/mark < staging/deploy/orders/markAfter`)
	if got := refsOf(args[ApplyArgs](t, g, "staging/deploy/orders/markAfter").Objects); got != "Service/web Deployment/web" {
		t.Errorf("before the mark come %s", got)
	}
	if got := refsOf(args[ApplyArgs](t, g, "staging/deploy/orders/migrate").Objects); got != "ConfigMap/settings" {
		t.Errorf("with the migrations come %s", got)
	}
}

func TestNeeds(t *testing.T) {
	in := input(t, strings.Replace(shopOf(rehearsed, ""), "require: true", "require: false", 1)+`
webhooks: [{name: h, method: POST, uriTemplate: "http://{{secrets.host}}/", headers: [{key: A, value: "Bearer {{ secrets.token }}"}], bodyTemplate: {inline: "{{context.x}} {{secrets.body}}"}}]
analysis: {defaultMetricProviderName: prom, queries: [{name: q, queryTemplate: 'up{x="{{secrets.query}}"}', lowerLimit: 1}]}
`, web+mongo)
	in.File.Targets[0].AfterDeployment = append(in.File.Targets[0].AfterDeployment, parseSteps(t, `[{runWebhook: {name: h}}, {analysis: {queries: [q], interval: 1, units: seconds, numberOfJudgmentRuns: 1}}]`)...)
	n, err := compile(t, in).Needs()
	want := Needs{Accounts: []string{"l"}, Providers: []string{"prom"}, Secrets: []string{"body", "host", "password", "query", "token", "user"}}
	if err != nil || !reflect.DeepEqual(n, want) {
		t.Errorf("it needs %+v, %v", n, err)
	}
}

// The deploy file's own reader refuses this with its place; a plan must not depend on it.
func TestCheckBeforeTheChange(t *testing.T) {
	in := input(t, shopOf(rehearsed, ""), web+mongo)
	for _, check := range []deployfile.Step{{VerifyData: &deployfile.VerifyData{Database: "orders"}}, {RehearseRollback: &deployfile.RehearseRollback{Database: "orders"}}} {
		copying := in.File.Targets[0].BeforeDeployment[0]
		in.File.Targets[0].BeforeDeployment = []deployfile.Step{{Sequence: []deployfile.Step{copying, check}}}
		if _, err := Compile(in); err == nil || !strings.Contains(err.Error(), "comes before the change that it checks (move it to afterDeployment)") {
			t.Error("a check before the change:", err)
		}
		in.File.Targets[0].BeforeDeployment = []deployfile.Step{copying}
	}
}

// parseSteps reads a list of steps.
func parseSteps(t *testing.T, list string) []deployfile.Step {
	t.Helper()
	in := input(t, `
application: a
targets: {one: {account: l, namespace: n, constraints: {afterDeployment: `+list+`}}}
manifests: [{path: m}]
webhooks: [{name: h, method: POST, uriTemplate: "http://h", disableCallback: true}]
analysis: {defaultMetricProviderName: prom, queries: [{name: q, queryTemplate: up, lowerLimit: 1}]}
`, web)
	return in.File.Targets[0].AfterDeployment
}
