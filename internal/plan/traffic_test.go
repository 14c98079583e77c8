package plan

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/fault"
)

// preview is a second Service of the application, other one of something else.
const (
	preview = `
---
{apiVersion: v1, kind: Service, metadata: {name: web-preview, annotations: {kept: "yes"}}, spec: {selector: {app: web}}}
`
	other = `
---
{apiVersion: v1, kind: Service, metadata: {name: other}, spec: {selector: {app: other}}}
`
)

// shifted is a deploy file of one target with a strategy and trafficManagement.
func shifted(strategy, traffic string) string {
	file := `
application: a
targets: {one: {account: l, namespace: n, strategy: s}, two: {account: l, namespace: m}}
manifests: [{path: m}]
strategies: {s: {` + strategy + `}}
`
	if traffic != "" {
		file += "trafficManagement: " + traffic + "\n"
	}
	return file
}

// The named preview Service reaches the new version alone, wherever it is named, and the title says what is redirected.
func TestServicesOfBlueGreen(t *testing.T) {
	for _, c := range []struct {
		name, strategy, traffic string
		previews                []string
		title                   string
	}{
		{"none named", "blueGreen: {}", "", nil, "redirect the traffic"},
		{"in the strategy", "blueGreen: {activeService: web, previewService: web-preview}", "", []string{"web-preview"}, "redirect the traffic of web"},
		{"in trafficManagement", "blueGreen: {}", "[{kubernetes: [{activeService: web, previewService: web-preview}]}]", []string{"web-preview"}, "redirect the traffic of web"},
		{"the preview in an item of its own", "blueGreen: {}", "[{kubernetes: [{activeService: web}, {previewService: web-preview}]}]", []string{"web-preview"}, "redirect the traffic of web"},
		{"half of it in each place", "blueGreen: {activeService: web}", "[{targets: [one], kubernetes: [{activeService: web, previewService: web-preview}]}]",
			[]string{"web-preview"}, "redirect the traffic of web"},
		{"a later entry replaces an earlier one", "blueGreen: {}", "[{kubernetes: [{activeService: gone}]}, {targets: [one], kubernetes: [{activeService: web}]}]", nil, "redirect the traffic of web"},
		{"an entry for another target", "blueGreen: {}", "[{targets: [two], kubernetes: [{activeService: gone}]}]", nil, "redirect the traffic"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := input(t, shifted(c.strategy, c.traffic), web+preview)
			g := compile(t, in)
			var previews []string
			for _, o := range args[ApplyArgs](t, g, "one/deploy/apply").Objects {
				if o.GetAnnotations()["sluice.dev/track"] == "preview" {
					previews = append(previews, o.GetName())
				}
			}
			if !slices.Equal(previews, c.previews) {
				t.Errorf("preview Services are %v", previews)
			}
			i := slices.IndexFunc(g.Nodes, func(n Node) bool { return n.Kind == KindRedirect })
			if i < 0 || g.Nodes[i].Title != c.title {
				t.Errorf("the steps are\n%s", lines(g))
			}
			for _, o := range slices.Concat(in.Objects["one"], args[ApplyArgs](t, g, "two/deploy/apply").Objects) {
				if o.GetAnnotations()["sluice.dev/track"] != "" {
					t.Errorf("%s is marked where it is not meant", o.Ref())
				}
			}
		})
	}
}

func TestTrafficRefused(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		{"an active Service that is not there", shifted("blueGreen: {activeService: wbe}", ""), "activeService of blueGreen is Service wbe, which is not among the target's manifests"},
		{"a preview Service that is not there", shifted("blueGreen: {}", "[{kubernetes: [{activeService: web, previewService: gone}]}]"),
			"previewService of blueGreen is Service gone, which is not among the target's manifests"},
		{"a Service of something else", shifted("blueGreen: {activeService: other}", ""), "activeService of blueGreen is Service other, which selects no pod"},
		{"one Service for both", shifted("blueGreen: {activeService: web, previewService: web}", ""), "web is both activeService and previewService"},
		{"istio", shifted("canary: {steps: []}", "[{targets: [one], istio: [{virtualService: {name: v}}]}]"), "VirtualService v has no destinationRule"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Compile(input(t, c.file, web+preview+other))
			if err == nil || !strings.Contains(err.Error(), "target one") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error is %v, not %s", err, c.want)
			}
			if fault.KindOf(err) == "" {
				t.Errorf("the error has no kind: %v", err)
			}
		})
	}
}

// The canary of a target is told which objects of a mesh share its traffic out; a later entry replaces an earlier one.
func TestMeshes(t *testing.T) {
	in := input(t, shifted("canary: {steps: [{setWeight: {weight: 5}}]}", `[{smi: [{rootServiceName: gone}]}, {targets: [one], smi: {rootServiceName: web}},
  {targets: [one], istio: [{virtualService: {name: v, httpRouteName: main}, destinationRule: {name: d, activeSubsetName: stable}}]}, {targets: [two], smi: [{rootServiceName: other}]}]`), web)
	g := compile(t, in)
	want := []Mesh{{VirtualService: "v", Route: "main", DestinationRule: "d", ActiveSubset: "stable", CanarySubset: "canary"},
		{TrafficSplit: "web", RootService: "web", CanaryService: "web-canary"}}
	if got := args[ApplyArgs](t, g, "one/deploy/start").Meshes; !reflect.DeepEqual(got, want) {
		t.Errorf("the canary is told of %+v", got)
	}
	if n, err := g.Needs(); err != nil || !slices.Equal(n.Meshes, []string{"l"}) {
		t.Errorf("a mesh is needed by %q, %v", n.Meshes, err)
	}
	if notes := g.Targets[1].Notes; len(notes) != 1 || !strings.Contains(notes[0], "names a mesh for a canary") {
		t.Errorf("the notes of a target without a canary are %q", notes)
	}
}

// What has no effect is told: entries for a strategy that is not used.
func TestTrafficWithoutEffect(t *testing.T) {
	in := input(t, shifted("canary: {steps: [{setWeight: {weight: 5}}]}", "[{targets: [one], kubernetes: [{activeService: web}]}, {targets: [two], smi: [{rootServiceName: web}]}]"), web)
	in.Targets = []string{"one"}
	g := compile(t, in)
	if want := []string{"trafficManagement names Service web for blueGreen, which this target does not use: it stays as it is"}; !reflect.DeepEqual(g.Targets[0].Notes, want) {
		t.Errorf("the notes are %q", g.Targets[0].Notes)
	}
}

// TestSettingsOfACanary: what the Deployments alone name is kept for their canary; what others need, too, is applied before.
func TestSettingsOfACanary(t *testing.T) {
	const objects = `
{apiVersion: v1, kind: ConfigMap, metadata: {name: own}}
---
{apiVersion: v1, kind: Secret, metadata: {name: shared}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: nobodys}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: web:2, envFrom: [{configMapRef: {name: own}}, {secretRef: {name: shared}}]}]}}}}
---
{apiVersion: batch/v1, kind: Job, metadata: {name: j}, spec: {template: {spec: {containers: [{name: c, image: j:1, envFrom: [{secretRef: {name: shared}}]}]}}}}
`
	const file = "application: shop\nmanifests: [{path: m}]\nstrategies: {s: {canary: {steps: [{setWeight: {weight: 25}}]}}}\ntargets: {p: {account: l, namespace: n, strategy: s}}\n"
	in := input(t, file, objects)
	in.Force = true
	g := compile(t, in)
	first, start := args[ApplyArgs](t, g, "p/deploy/apply"), args[ApplyArgs](t, g, "p/deploy/start")
	if got := refsOf(start.Settings); got != "ConfigMap/own" {
		t.Errorf("kept for the canary: %s", got)
	}
	if got := refsOf(first.Objects); got != "Secret/shared ConfigMap/nobodys Job/j" && got != "ConfigMap/nobodys Secret/shared Job/j" {
		t.Errorf("applied before: %s", got)
	}
	if !first.Force || !start.Force {
		t.Error("--force-conflicts is lost")
	}
	if g = compile(t, input(t, file, objects+"---\n{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: d}}\n")); len(args[ApplyArgs](t, g, "p/deploy/start").Settings) != 0 {
		t.Error("a DaemonSet may need the settings, too")
	}
}
