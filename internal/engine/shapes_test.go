package engine_test

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
)

// shape is one kind of delivery for the crash tests.
type shape struct {
	build  func(b *builder, hooks string)
	people func(delivery.Spec, delivery.Status) delivery.Signal // what somebody would do now; no kind for nothing
	state  delivery.State
	ends   map[string]delivery.State // of the targets
	world  world                     // of namespace "shop", in which version 1 of "web" ran before
	jobs   int                       // how many different requests the webhooks' receiver sees
}

func (s shape) spec(hooks string) delivery.Spec {
	g := &builder{}
	s.build(g, hooks)
	return delivery.Spec{ID: "d", Application: "shop", Graph: g.Graph, CreatedAt: time.Unix(0, 0).UTC()}
}

// object is a manifest of which only the version matters.
func object(kind, name, version string) manifest.Object {
	return manifest.Object{Unstructured: unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": kind,
		"metadata": map[string]any{"name": name}, "spec": map[string]any{"version": version}}}}
}

// builder builds the graph of a delivery.
type builder struct{ plan.Graph }

func (g *builder) target(name string, dependsOn ...string) {
	g.Targets = append(g.Targets, plan.Target{Name: name, DependsOn: dependsOn})
}

// node adds a step and returns its path.
func (g *builder) node(path, kind string, args any, after ...string) string {
	body, err := json.Marshal(args)
	if err != nil {
		panic(err) // the arguments are literals of this file
	}
	parts := strings.SplitN(path, "/", 3)
	g.Nodes = append(g.Nodes, plan.Node{Path: path, Target: parts[0], Phase: plan.Phase(parts[1]), Kind: kind, Args: body, After: after})
	return path
}

func (g *builder) background() { g.Nodes[len(g.Nodes)-1].Background = true }

const within = time.Minute

func (g *builder) apply(path string, objects []manifest.Object, after ...string) string {
	return g.node(path, plan.KindApply, plan.ApplyArgs{Account: "a", Namespace: "shop", Objects: objects, Timeout: within}, after...)
}

func (g *builder) start(path string, after ...string) string {
	return g.node(path, plan.KindStartCanary, plan.ApplyArgs{Account: "a", Namespace: "shop", Objects: []manifest.Object{object("Deployment", "web", "2")},
		Timeout: within}, after...)
}

func (g *builder) weight(path, kind string, percent int, after ...string) string {
	return g.node(path, kind, plan.WeightArgs{Account: "a", Namespace: "shop", Weight: percent, Timeout: within,
		Deployments: []manifest.Ref{{Kind: "Deployment", Namespace: "shop", Name: "web"}}}, after...)
}

func (g *builder) hook(path, url string, retries int, after ...string) string {
	return g.node(path, plan.KindWebhook, plan.WebhookArgs{Name: path, URI: url, RetryCount: retries, DisableCallback: strings.HasSuffix(url, "/tell"),
		Headers: []plan.Header{{Key: "Authorization", Value: "Bearer {{secrets.token}}"}},
		Body:    `{"run": "{{armory.deploymentId}}", "url": "{{armory.callbackUri}}/callback"}`}, after...)
}

func (g *builder) judge(path, query, mode string, after ...string) string {
	limit := 3.0
	return g.node(path, plan.KindAnalysis, plan.AnalysisArgs{Interval: time.Second, Runs: 3, RollBack: mode, RollForward: "automatic",
		Queries: []plan.Query{{Name: query, Template: query, Provider: "p", Upper: &limit}}}, after...)
}

func (g *builder) approval(path string, after ...string) string {
	return g.node(path, plan.KindApproval, plan.ApprovalArgs{}, after...)
}

func (g *builder) pause(path string, after ...string) string {
	return g.node(path, plan.KindPause, plan.PauseArgs{For: 2 * time.Second}, after...)
}

// before are the objects that ran before: the crash tests apply them with a target of their own.
func (g *builder) before() string {
	g.target("old")
	return g.apply("old/deploy/apply", []manifest.Object{object("Deployment", "web", "1"), object("ConfigMap", "conf", "1")})
}

// approves approves whatever asks.
func approves(spec delivery.Spec, s delivery.Status) delivery.Signal {
	if c := delivery.Candidates(spec, s, delivery.Approve); len(c) > 0 {
		return delivery.Signal{Kind: delivery.Approve, Key: "approve/" + c[0], Path: c[0], By: "ann"}
	}
	return delivery.Signal{}
}

// at does something while a step waits.
func at(path string, sig delivery.Signal) func(delivery.Spec, delivery.Status) delivery.Signal {
	return func(_ delivery.Spec, s delivery.Status) delivery.Signal {
		if s.Nodes[path].Phase == delivery.StepWaiting {
			return sig
		}
		return delivery.Signal{}
	}
}

func runs(web, conf string) world {
	return world{Objects: map[string]string{"shop/Deployment/web": web, "shop/ConfigMap/conf": conf}, Canaries: map[string]string{}, Weights: map[string]int{}}
}

// shapes are the deliveries that are killed everywhere.
func shapes() map[string]shape {
	type states = map[string]delivery.State
	conf := []manifest.Object{object("ConfigMap", "conf", "2")}
	return map[string]shape{
		"a canary with every kind of step is promoted": {build: canaryOfEverything, people: approves, state: delivery.Succeeded,
			ends: states{"p": delivery.Succeeded}, world: runs("2", "2"), jobs: 3},
		"a canary that is judged bad goes back": {build: func(g *builder, _ string) {
			g.target("p", "old")
			a := g.apply("p/deploy/apply", conf, g.before())
			a = g.weight("p/deploy/w10", plan.KindSetWeight, 10, g.start("p/deploy/start", a))
			a = g.judge("p/deploy/judge", "bad", "automatic", a)
			g.weight("p/deploy/promote", plan.KindPromote, 100, a)
		}, state: delivery.Failed, ends: states{"p": delivery.RolledBack}, world: runs("1", "1")},
		"counters in the background stop a canary": {build: watchedCanary, state: delivery.Failed, ends: states{"p": delivery.RolledBack}, world: runs("1", "1")},
		"blueGreen with parallel lists": {build: func(g *builder, hooks string) {
			g.target("p", "old")
			a := g.start("p/deploy/start", g.before())
			l := []string{g.hook("p/deploy/redirectAfter/1", hooks+"/ok", 0, a), g.approval("p/deploy/redirectAfter/2", a), g.pause("p/deploy/redirectAfter/3", a)}
			a = g.weight("p/deploy/redirect", plan.KindRedirect, 100, l...)
			l = []string{g.judge("p/deploy/shutDownAfter/1", "good", "automatic", a), g.pause("p/deploy/shutDownAfter/2", a)}
			g.weight("p/deploy/promote", plan.KindPromote, 100, l...)
		}, people: approves, state: delivery.Succeeded, ends: states{"p": delivery.Succeeded}, world: runs("2", "1"), jobs: 1},
		"a gate before the second target fails": {build: func(g *builder, hooks string) {
			g.target("s", "old")
			g.target("p", "s")
			a := g.hook("s/after/test", hooks+"/ok", 0, g.apply("s/deploy/apply", conf, g.before()))
			l := []string{g.hook("p/before/test", hooks+"/bad", 0, a), g.approval("p/before/ok", a)}
			g.start("p/deploy/start", l...)
		}, state: delivery.Failed, ends: states{"s": delivery.Succeeded, "p": delivery.Failed}, world: runs("1", "2"), jobs: 2},
		"a test after the deployment fails": {build: func(g *builder, hooks string) {
			g.target("s", "old")
			g.target("p", "s")
			a := g.apply("s/deploy/apply", conf, g.before())
			l := []string{g.hook("s/after/1", hooks+"/bad", 0, a)}
			g.start("p/deploy/start", l...)
		}, state: delivery.Failed, ends: states{"s": delivery.Failed, "p": delivery.Cancelled}, world: runs("1", "2"), jobs: 1},
		"a person cancels a canary": {build: func(g *builder, _ string) {
			g.target("p", "old")
			a := g.weight("p/deploy/w10", plan.KindSetWeight, 10, g.start("p/deploy/start", g.before()))
			g.weight("p/deploy/promote", plan.KindPromote, 100, g.approval("p/deploy/ok", a))
		}, people: at("p/deploy/ok", delivery.Signal{Kind: delivery.CancelAll, Key: "cancel/", By: "ann"}), state: delivery.Cancelled,
			ends: states{"p": delivery.RolledBack}, world: runs("1", "1")},
		"a person goes on against a bad judgement": {build: func(g *builder, _ string) {
			g.target("p", "old")
			a := g.weight("p/deploy/w10", plan.KindSetWeight, 10, g.start("p/deploy/start", g.before()))
			g.weight("p/deploy/promote", plan.KindPromote, 100, g.judge("p/deploy/judge", "bad", "manual", a))
		}, people: approves, state: delivery.Succeeded, ends: states{"p": delivery.Succeeded}, world: runs("2", "1")},
		"an undo fails and is retried": {build: func(g *builder, hooks string) {
			g.target("p", "old")
			a := g.apply("p/deploy/apply", []manifest.Object{object("ConfigMap", "conf", "2"), object("ConfigMap", "stuck", "2")}, g.before())
			g.hook("p/deploy/test", hooks+"/bad", 0, a)
		}, people: func(spec delivery.Spec, s delivery.Status) delivery.Signal {
			if len(delivery.Candidates(spec, s, delivery.Retry)) > 0 {
				return delivery.Signal{Kind: delivery.Retry, Key: "retry//1", By: "ann"}
			}
			return delivery.Signal{}
		}, state: delivery.Failed, ends: states{"p": delivery.RolledBack}, world: runs("1", "1"), jobs: 1},
		"the platform refuses one of two parallel targets": {build: func(g *builder, hooks string) {
			g.target("a", "old")
			g.target("b", "old")
			o := g.before()
			g.apply("a/deploy/2", []manifest.Object{object("ConfigMap", "no", "refused")}, g.apply("a/deploy/1", conf, o))
			g.hook("b/deploy/1", hooks+"/tell", 0, o)
		}, state: delivery.Failed, ends: states{"a": delivery.RolledBack, "b": delivery.Succeeded}, world: runs("1", "1"), jobs: 1},
	}
}

// canaryOfEverything has every kind of step that touches no data.
func canaryOfEverything(g *builder, hooks string) {
	g.target("p", "old")
	o := g.before()
	a := g.hook("p/before/test", hooks+"/flaky", 2, o)
	a = g.apply("p/deploy/apply", []manifest.Object{object("ConfigMap", "conf", "2")}, a)
	a = g.start("p/deploy/start", a)
	a = g.node("p/deploy/expose", plan.KindExpose, plan.ExposeArgs{Account: "a", Namespace: "shop", Services: []string{"web"}, TTL: time.Minute}, a)
	a = g.weight("p/deploy/w10", plan.KindSetWeight, 10, a)
	a = g.pause("p/deploy/pause", a)
	a = g.judge("p/deploy/judge", "good", "automatic", a)
	a = g.weight("p/deploy/w50", plan.KindSetWeight, 50, a)
	a = g.approval("p/deploy/ok", a)
	a = g.weight("p/deploy/promote", plan.KindPromote, 100, a)
	g.hook("p/after/tell", hooks+"/tell", 0, a)
	g.hook("p/after/test", hooks+"/ok", 0, a)
	g.node("p/after/job", plan.KindRunJob, plan.JobArgs{Name: "t", To: plan.Site{Account: "a", Namespace: "shop"},
		Objects: []manifest.Object{object("Job", "t", "1")}, Timeout: within}, a)
}

// watchedCanary has counters that show it bad while it pauses.
func watchedCanary(g *builder, _ string) {
	g.target("p", "old")
	o := g.before()
	a := g.apply("p/deploy/apply", []manifest.Object{object("ConfigMap", "conf", "2")}, o)
	a = g.weight("p/deploy/w10", plan.KindSetWeight, 10, g.start("p/deploy/start", a))
	g.node("p/deploy/watch", plan.KindAnalysis, plan.AnalysisArgs{Judge: "counts", Interval: time.Second, Runs: 100, RollBack: "automatic", RollForward: "automatic",
		Counts: &plan.CountsArgs{CanaryTotal: "canary_total", CanaryBad: "canary_bad", StableTotal: "stable_total", StableBad: "stable_bad", Provider: "p"}}, a)
	g.background()
	a = g.approval("p/deploy/ok", a) // which nobody gives
	g.weight("p/deploy/promote", plan.KindPromote, 100, a)
}

// names are the shapes in a fixed order.
func names() []string {
	var out []string
	for name := range shapes() {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
