//go:build e2e

package kubernetes

import (
	"context"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// settings are what the shop of these tests reads: its version, and a password.
const settings = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {version: one}
---
apiVersion: v1
kind: Secret
metadata: {name: password}
stringData: {password: hush}
`

// configure makes the shop of this test read its version from a setting.
func configure(t *testing.T) (s *shop, next, nextSettings []manifest.Object) {
	t.Helper()
	p, ctx := fresh(t)
	l := theLab(t)
	text := strings.Replace(served, "{name: VERSION, value: one}", "{name: VERSION, valueFrom: {configMapKeyRef: {name: settings, key: version}}}", 1)
	text = strings.Replace(text, "        image: program", "        image: program\n        envFrom: [{secretRef: {name: password}}]", 1)
	s = &shop{Platform: p, t: t, ctx: ctx}
	by(t, p, "kubectl-client-side-apply", settings)
	for _, o := range objectsOf(t, text) {
		o = l.adapt(o)
		body, err := o.Unstructured.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		by(t, p, "kubectl-client-side-apply", string(body))
	}
	s.ready(5 * time.Minute)
	s.before = snapshotOf(t, p)
	return s, []manifest.Object{l.adapt(objectsOf(t, text)[2])}, objectsOf(t, strings.NewReplacer("version: one", "version: two", "hush", "psst").Replace(settings))
}

// renew has the stable pods start anew, and waits until no old one can be asked any more.
func (s *shop) renew() {
	s.t.Helper()
	stable := metav1.ListOptions{LabelSelector: "app=web,!" + trackLabel}
	list, err := s.dynamic.Resource(pods()).Namespace(ns).List(s.ctx, stable)
	s.must(err)
	old, left := []manifest.Ref{}, map[manifest.Ref]bool{}
	for _, p := range list.Items {
		ref := manifest.Ref{Kind: "Pod", Namespace: ns, Name: p.GetName()}
		old, left[ref] = append(old, ref), true
	}
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	states, err := s.Watch(ctx, old)
	s.must(err)
	s.must(s.dynamic.Resource(pods()).Namespace(ns).DeleteCollection(ctx, metav1.DeleteOptions{}, stable))
	for state := range states {
		if !state.Exists {
			delete(left, state.Ref)
		}
		if len(left) == 0 {
			s.ready(time.Minute)
			return
		}
	}
	s.t.Fatalf("the old pods do not end: %v", left)
}

// TestSettings: only the canary sees what has changed, also when a stable pod starts anew; the own name gets it with the
// promotion, and the way back from any step is byte for byte.
func TestSettings(t *testing.T) {
	refs := []manifest.Ref{web}
	own, copied := manifest.Ref{Kind: "ConfigMap", Namespace: ns, Name: "settings"}, manifest.Ref{Kind: "ConfigMap", Namespace: ns, Name: "settings-d1"}
	version := func(s *shop, ref manifest.Ref) string {
		o, err := s.Get(s.ctx, ref)
		if fault.Is(err, fault.NotFound) {
			return "gone"
		}
		s.must(err)
		return o.Object["data"].(map[string]any)["version"].(string)
	}
	for _, last := range []string{"half", "promoted"} {
		t.Run(last, func(t *testing.T) {
			s, next, changed := configure(t)
			changes, err := s.StartCanaryWith(s.ctx, "d1/start", next, changed, inNS)
			s.must(err)
			s.ready(time.Minute)
			if o, c := version(s, own), version(s, copied); o != "one" || c != "two" {
				t.Errorf("the setting is %s, its copy %s", o, c)
			}
			s.settles(webPreview, "the preview", 100, 100)
			s.renew()
			s.settles(webService, "stable pods that have started anew", 0, 0)
			s.must(s.SetWeight(s.ctx, "d1/50", refs, 50))
			s.settles(webService, "at 50 %", 25, 75)
			if last == "promoted" {
				s.must(s.Promote(s.ctx, "d1/promote", refs))
				s.settles(webService, "promoted", 100, 100)
				if o, c := version(s, own), version(s, copied); o != "two" || c != "gone" {
					t.Errorf("after the promotion the setting is %s, its copy %s", o, c)
				}
			}
			s.undo(changes)
			if c := version(s, copied); c != "gone" {
				t.Errorf("the copy is left behind: %s", c)
			}
		})
	}
}
