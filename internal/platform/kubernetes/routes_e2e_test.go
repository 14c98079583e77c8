//go:build e2e

package kubernetes

import (
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes/traffic"
)

// routeKind is enough of the Gateway API's definition to keep routes and their status apart.
const routeKind = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: httproutes.gateway.networking.k8s.io, annotations: {api-approved.kubernetes.io: "unapproved, for a test"}}
spec:
  group: gateway.networking.k8s.io
  names: {kind: HTTPRoute, plural: httproutes}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

const shopRoute = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec:
  parentRefs: [{name: gateway}]
  rules: [{backendRefs: [{name: web, port: 8080}]}]
`

// gateway shares real requests out as a route says, and tells the route that it does.
type gateway struct {
	t      *testing.T
	p      *Platform
	client *http.Client
	astray atomic.Bool // some backend is not found
}

func (g *gateway) route() *unstructured.Unstructured {
	o, err := g.p.read(g.t.Context(), manifest.Ref{Kind: "HTTPRoute", Namespace: ns, Name: "web"})
	if err != nil {
		g.t.Error(err)
		return &unstructured.Unstructured{}
	}
	return o
}

// follow takes up every generation of the route until ctx ends.
func (g *gateway) follow(ctx context.Context) {
	in, err := g.p.where(manifest.Ref{Kind: "HTTPRoute", Namespace: ns})
	if err != nil {
		g.t.Error(err)
		return
	}
	w, err := in.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		g.t.Error(err)
		return
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		o, ok := e.Object.(*unstructured.Unstructured)
		if !ok || e.Type == "DELETED" {
			continue
		}
		condition := func(kind string) any {
			met := "True"
			if kind == "ResolvedRefs" && g.astray.Load() {
				met = "False"
			}
			return map[string]any{"type": kind, "status": met, "reason": kind, "message": "", "observedGeneration": o.GetGeneration(),
				"lastTransitionTime": time.Now().UTC().Format(time.RFC3339)}
		}
		was, _, _ := unstructured.NestedSlice(o.Object, "status", "parents")
		if len(was) > 0 {
			c, _, _ := unstructured.NestedSlice(was[0].(map[string]any), "conditions")
			if n, _ := c[0].(map[string]any)["observedGeneration"].(int64); n == o.GetGeneration() {
				continue
			}
		}
		o.Object["status"] = map[string]any{"parents": []any{map[string]any{"parentRef": map[string]any{"name": "gateway"}, "controllerName": "sluice.dev/test",
			"conditions": []any{condition("Accepted"), condition("ResolvedRefs")}}}}
		if _, err := in.UpdateStatus(ctx, o, metav1.UpdateOptions{FieldManager: "gateway"}); err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) {
			g.t.Error(err)
		}
	}
}

// ServeHTTP sends a request to one of the backends of the only rule, by their weights.
func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rules, _, _ := unstructured.NestedSlice(g.route().Object, "spec", "rules")
	refs := rules[0].(map[string]any)["backendRefs"].([]any)
	weight := func(v any) int64 {
		if n, ok := v.(map[string]any)["weight"].(int64); ok {
			return n
		}
		return 1
	}
	sum := int64(0)
	for _, v := range refs {
		sum += weight(v)
	}
	at := rand.Int64N(sum)
	for _, v := range refs {
		if at -= weight(v); at >= 0 {
			continue
		}
		name, _ := v.(map[string]any)["name"].(string)
		req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+address(r.Context(), g.p, manifest.Ref{Kind: "Service", Namespace: ns, Name: name}), nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		resp, err := g.client.Do(req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		_, _ = io.Copy(w, resp.Body)
		return
	}
}

// withRoute has the lab know routes, and the shop have one.
func withRoute(t *testing.T) (*shop, *httptest.Server) {
	t.Helper()
	l := theLab(t)
	p := l.connect(t)
	crds, err := p.where(manifest.Ref{Kind: "CustomResourceDefinition"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = crds.Create(t.Context(), objectOf(t, routeKind), metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	if err == nil {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			const name = "httproutes.gateway.networking.k8s.io"
			if err := crds.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
			// The next test makes it again, which it cannot while this one is on its way out.
			if err := p.await(ctx, manifest.Ref{Kind: "CustomResourceDefinition", Name: name}, func(s platform.State) bool { return !s.Exists }); err != nil {
				t.Error(err)
			}
		})
	}
	if err := p.established(t.Context(), "httproutes.gateway.networking.k8s.io"); err != nil {
		t.Fatal(err)
	}
	s := newShop(t)
	by(t, s.Platform, "kubectl-client-side-apply", shopRoute)
	s.before = snapshotOf(t, s.Platform)
	g := &gateway{t: t, p: s.Platform, client: client()}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); g.follow(ctx) }()
	srv := httptest.NewServer(g)
	t.Cleanup(func() { srv.Close(); cancel(); <-done })
	return s, srv
}

// through counts the answers of the new version that came through the gateway.
func through(s *shop, url string, n int) int {
	s.t.Helper()
	two := 0
	for range n {
		resp, err := http.Get(url)
		s.must(err)
		body, err := io.ReadAll(resp.Body)
		s.must(err)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			s.t.Fatalf("status %d: %s", resp.StatusCode, body)
		}
		if strings.HasPrefix(string(body), "two") {
			two++
		}
	}
	return two
}

// TestWeightsOfRoutes measures 10 % by requests through a gateway, beside 4 pods of which one is a quarter.
func TestWeightsOfRoutes(t *testing.T) {
	s, srv := withRoute(t)
	refs := []manifest.Ref{web}
	route := func() string { o, _ := (&gateway{t: t, p: s.Platform}).route().MarshalJSON(); return string(o) }
	rules := func() any {
		r, _, _ := unstructured.NestedSlice((&gateway{t: t, p: s.Platform}).route().Object, "spec", "rules")
		return r
	}
	first := rules()
	changes := s.start()
	s.must(s.SetWeight(s.ctx, "d1/0", refs, 0))
	if got := through(s, srv.URL, 100); got != 0 {
		t.Errorf("at 0 %% the canary answered %d of 100", got)
	}
	s.must(s.SetWeight(s.ctx, "d1/10", refs, 10))
	s.ready(time.Minute)
	const n, sd = 2400, 15
	if got := through(s, srv.URL, n); got < n/10-4*sd || got > n/10+4*sd {
		t.Errorf("at 10 %% the canary answered %d of %d; the route is %s", got, n, route())
	} else {
		t.Logf("at 10 %% the canary answered %d of %d", got, n)
	}
	s.settles(webService, "past the gateway", 0, 0)
	s.must(s.SetWeight(s.ctx, "d1/100", refs, 100))
	if got := through(s, srv.URL, 50); got != 50 {
		t.Errorf("at 100 %% the canary answered %d of 50", got)
	}
	s.settles(webService, "past the gateway at 100 %", 100, 100)
	s.must(s.SetWeight(s.ctx, "d1/90", refs, 90))
	s.settles(webService, "past the gateway at 90 %", 0, 0)
	s.must(s.SetWeight(s.ctx, "d1/100 again", refs, 100))
	s.settles(webService, "past the gateway at 100 % again", 100, 100)
	s.undo(changes)
	if got := rules(); !reflect.DeepEqual(got, first) {
		t.Errorf("the rules are %v and were %v", got, first)
	}
}

// TestPromotionByRoutes ends with the route as it was and the new version behind it; a route that somebody else changes
// meanwhile is not overwritten.
func TestPromotionByRoutes(t *testing.T) {
	s, srv := withRoute(t)
	refs := []manifest.Ref{web}
	s.start()
	s.must(s.SetWeight(s.ctx, "d1/50", refs, 50))
	in, err := s.where(manifest.Ref{Kind: "HTTPRoute", Namespace: ns})
	s.must(err)
	mine := (&gateway{t: t, p: s.Platform}).route()
	saved := mine.DeepCopy()
	rules, _, _ := unstructured.NestedSlice(mine.Object, "spec", "rules")
	s.must(unstructured.SetNestedSlice(mine.Object, append(rules, map[string]any{"backendRefs": []any{map[string]any{"name": "other", "port": int64(1)}}}), "spec", "rules"))
	_, err = in.Update(s.ctx, mine, metav1.UpdateOptions{FieldManager: "somebody"})
	s.must(err)
	if err := s.SetWeight(s.ctx, "d1/60", refs, 60); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "changed by somebody else") {
		t.Errorf("somebody's rule is overwritten: %v", err)
	}
	now := (&gateway{t: t, p: s.Platform}).route()
	now.Object["spec"] = saved.Object["spec"]
	_, err = in.Update(s.ctx, now, metav1.UpdateOptions{FieldManager: "somebody"})
	s.must(err)
	s.must(s.SetWeight(s.ctx, "d1/100", refs, 100))
	s.must(s.Promote(s.ctx, "d1/promote", refs))
	s.ready(time.Minute)
	if got := through(s, srv.URL, 50); got != 50 {
		t.Errorf("the promoted version answered %d of 50", got)
	}
	if _, err := s.Get(s.ctx, manifest.Ref{Kind: "Service", Namespace: ns, Name: "web-canary"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("the canary's Service is still there: %v", err)
	}
}

// TestCanaryThatCannotBegin: what another Service's name forbids is told before anything is changed; what only the cluster can
// refuse later is taken back, though there is no canary yet.
func TestCanaryThatCannotBegin(t *testing.T) {
	s, srv := withRoute(t)
	by(t, s.Platform, "kubectl-client-side-apply", `
apiVersion: v1
kind: Service
metadata: {name: web-canary}
spec: {selector: {app: another}, ports: [{name: http, port: 8080}]}
`)
	before := snapshotOf(t, s.Platform)
	if _, err := s.StartCanary(s.ctx, "d1/start", s.next, inNS); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "web-canary") {
		t.Errorf("a Service has the canary's name: kind %q: %v", fault.KindOf(err), err)
	}
	same(t, "after the refusal", snapshotOf(t, s.Platform), before)
	s.must(s.dynamic.Resource(services()).Namespace(ns).Delete(s.ctx, "web-canary", metav1.DeleteOptions{}))

	by(t, s.Platform, "kubectl-client-side-apply", `
apiVersion: v1
kind: ResourceQuota
metadata: {name: services}
spec: {hard: {services: "2"}}
`)
	quota := manifest.Ref{Kind: "ResourceQuota", Namespace: ns, Name: "services"}
	s.must(s.await(s.ctx, quota, func(platform.State) bool {
		o, err := s.read(s.ctx, quota)
		used, _, _ := unstructured.NestedString(o.Object, "status", "used", "services")
		return err == nil && used == "2"
	}))
	changes, err := s.StartCanary(s.ctx, "d1/start", s.next, inNS)
	if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "exceeded quota") {
		t.Fatalf("no Service more is allowed: kind %q: %v", fault.KindOf(err), err)
	}
	s.back(changes)
	if got := through(s, srv.URL, 20); got != 0 {
		t.Errorf("a canary that has not begun answered %d of 20", got)
	}
}

// TestRouteThatIsNotAccepted: where a backend of another rule is not found, no canary begins; where it goes missing later, the
// canary gets no more traffic, and the old version all of it.
func TestRouteThatIsNotAccepted(t *testing.T) {
	s, srv := withRoute(t)
	g := srv.Config.Handler.(*gateway)
	refs := []manifest.Ref{web}
	first := g.route().Object["spec"]
	says := func(text string, want bool) {
		t.Helper()
		g.astray.Store(!want)
		in, err := s.where(manifest.Ref{Kind: "HTTPRoute", Namespace: ns})
		s.must(err)
		spec, err := json.Marshal(map[string]any{"spec": objectOf(t, text).Object["spec"]})
		s.must(err)
		_, err = in.Patch(s.ctx, "web", types.MergePatchType, spec, metav1.PatchOptions{FieldManager: "somebody"})
		s.must(err)
		within, cancel := context.WithTimeout(s.ctx, time.Minute)
		defer cancel()
		s.must(s.await(within, manifest.Ref{Kind: "HTTPRoute", Namespace: ns, Name: "web"}, func(platform.State) bool {
			ok, why := traffic.Accepted(g.route().Object)
			return ok == want && (why == nil) == want
		}))
	}
	says(strings.Replace(shopRoute, "rules: [", "rules: [{backendRefs: [{name: missing, port: 1}]}, ", 1), false)
	before := snapshotOf(t, s.Platform)
	if _, err := s.StartCanary(s.ctx, "d1/start", s.next, inNS); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "ResolvedRefs is false") {
		t.Errorf("a canary of a route that is not accepted: kind %q: %v", fault.KindOf(err), err)
	}
	same(t, "after the refusal", snapshotOf(t, s.Platform), before)
	says(shopRoute, true)

	changes := s.start()
	s.must(s.SetWeight(s.ctx, "d1/50", refs, 50))
	g.astray.Store(true)
	if err := s.SetWeight(s.ctx, "d1/60", refs, 60); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "ResolvedRefs is false") {
		t.Errorf("more traffic: kind %q: %v", fault.KindOf(err), err)
	}
	s.back(changes, "50", "60")
	if got := g.route().Object["spec"]; !reflect.DeepEqual(got, first) {
		t.Errorf("the route is %v and was %v", got, first)
	}
}
