package kubernetes

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/cache"

	"github.com/sluice-cd/sluice/internal/manifest"
)

// TestMisled: a canary is ready once its preview Services lead to it, and to nobody but canaries.
func TestMisled(t *testing.T) {
	const (
		web     = "{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: ns, name: web-d1, uid: u}, spec: {replicas: 1, selector: {matchLabels: {app: web}}}}"
		preview = "{apiVersion: v1, kind: Service, metadata: {namespace: ns, name: preview}, spec: {selector: {app: web, sluice.dev/track: canary}}}"
		set     = "{apiVersion: apps/v1, kind: ReplicaSet, metadata: {namespace: ns, name: web-d1-1, uid: r, ownerReferences: [{uid: u, controller: true}]}}"
		own     = "{apiVersion: v1, kind: Pod, metadata: {namespace: ns, name: own, labels: {app: web, sluice.dev/track: canary}, ownerReferences: [{uid: r, controller: true}]}}"
		another = "{apiVersion: v1, kind: Pod, metadata: {namespace: ns, name: another, labels: {app: web, sluice.dev/track: canary}}}"
		stable  = "{apiVersion: v1, kind: Pod, metadata: {namespace: ns, name: stable, labels: {app: web}}}"
	)
	slice := func(name, endpoints string) string {
		return "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: ns, name: " + name + "}, addressType: IPv4, endpoints: [" + endpoints + "]}"
	}
	to := func(pod, conditions string) string {
		return "{addresses: [192.0.2.1], conditions: {" + conditions + "}, targetRef: {kind: Pod, name: " + pod + "}}"
	}
	for _, c := range []struct {
		name, canary, service string
		slices                []string
		says                  string
	}{
		{"no endpoints yet", web, preview, nil, "does not lead to web-d1 yet"},
		{"its pod is not ready there", web, preview, []string{slice("a", to("own", "ready: false"))}, "does not lead to web-d1 yet"},
		{"its pod", web, preview, []string{slice("a", to("own", "ready: true"))}, ""},
		{"ready is not said", web, preview, []string{slice("a", to("own", ""))}, ""},
		{"the stable version's, too", web, preview, []string{slice("a", to("own", "ready: true")), slice("b", to("stable", "ready: true"))}, "still leads to pod stable"},
		{"the stable version's that is not ready", web, preview, []string{slice("a", to("own", "ready: true")+", "+to("stable", "ready: false"))}, ""},
		{"a pod that is gone", web, preview, []string{slice("a", to("own", "ready: true")+", "+to("gone", "ready: true"))}, "still leads to pod gone"},
		{"another canary's, too", web, preview, []string{slice("a", to("own", "ready: true")+", "+to("another", "ready: true"))}, ""},
		{"another canary's alone", web, preview, []string{slice("a", to("another", "ready: true"))}, "does not lead to web-d1 yet"},
		{"somewhere else", web, preview, []string{slice("a", "{addresses: [192.0.2.9], conditions: {ready: true}}")}, "still leads to 192.0.2.9"},
		{"a canary of no pods", strings.Replace(web, "replicas: 1", "replicas: 0", 1), preview, nil, ""},
		{"a Service that is given back", web, strings.Replace(preview, ", sluice.dev/track: canary", "", 1), []string{slice("a", to("stable", "ready: true"))}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			ref := manifest.Ref{Kind: "Deployment", Namespace: "ns", Name: "web"}
			s := manifest.Ref{Kind: "Service", Namespace: "ns", Name: "preview"}
			w := &watcher{stores: map[source]cache.Store{}, previews: map[manifest.Ref][]manifest.Ref{ref: {s}}}
			for at, texts := range map[source][]string{
				{pods(), "ns", "", ""}: {own, another, stable}, {replicaSets(), "ns", "", ""}: {set}, serviceAt(s): {c.service}, endpointsOf(s): c.slices,
			} {
				w.stores[at] = cache.NewStore(cache.MetaNamespaceKeyFunc)
				for _, text := range texts {
					if err := w.stores[at].Add(&unstructured.Unstructured{Object: parsed(t, text)}); err != nil {
						t.Fatal(err)
					}
				}
			}
			got := w.misled(ref, &unstructured.Unstructured{Object: parsed(t, c.canary)})
			if (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
				t.Errorf("it says %q, and not %q", got, c.says)
			}
		})
	}
}
