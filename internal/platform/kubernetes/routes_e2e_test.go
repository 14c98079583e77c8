//go:build e2e

package kubernetes

import (
	"context"
	"encoding/json"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes/traffic"
)

const shopRoute = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec:
  parentRefs: [{name: gateway}]
  rules: [{backendRefs: [{name: web, port: 8080}]}]
`

// shopGateway shares the requests to its Service out by the routes of the namespace that name it.
const shopGateway = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: gateway}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: gateway}
rules:
- {apiGroups: [""], resources: [services], verbs: [list, watch]}
- {apiGroups: [gateway.networking.k8s.io], resources: [httproutes], verbs: [list, watch]}
- {apiGroups: [gateway.networking.k8s.io], resources: [httproutes/status], verbs: [update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: gateway}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: gateway}
subjects: [{kind: ServiceAccount, name: gateway, namespace: applied}]
---
apiVersion: v1
kind: Service
metadata: {name: gateway}
spec: {selector: {app: gateway}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: gateway}
spec:
  selector: {matchLabels: {app: gateway}}
  template:
    metadata: {labels: {app: gateway}}
    spec:
      serviceAccountName: gateway
      terminationGracePeriodSeconds: 1
      containers:
      - name: gateway
        image: lab/testgateway:1
        args: [":8080", applied, gateway]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
`

var (
	webRoute       = manifest.Ref{Kind: "HTTPRoute", Namespace: ns, Name: "web"}
	gatewayService = manifest.Ref{Kind: "Service", Namespace: ns, Name: "gateway"}
)

// withRoute has the lab know routes, by the Gateway API's own definition, and the shop have one, and a gateway that serves by it.
func withRoute(t *testing.T) *shop {
	t.Helper()
	define(t, theLab(t).connect(t), filepath.Join(module(t, "sigs.k8s.io/gateway-api"), "config", "crd", "standard", "gateway.networking.k8s.io_httproutes.yaml"),
		"httproutes.gateway.networking.k8s.io")
	s := newShop(t)
	by(t, s.Platform, "kubectl-client-side-apply", shopRoute+"---"+shopGateway)
	within, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	s.must(s.await(within, manifest.Ref{Kind: "Deployment", Namespace: ns, Name: "gateway"}, isReady))
	s.takenUp(true)
	s.before = snapshotOf(t, s.Platform)
	return s
}

func (s *shop) route() *unstructured.Unstructured {
	s.t.Helper()
	o, err := s.read(s.ctx, webRoute)
	s.must(err)
	return o
}

func (s *shop) rules() []any {
	s.t.Helper()
	rules, _, _ := unstructured.NestedSlice(s.route().Object, "spec", "rules")
	return rules
}

// takenUp waits until the gateway serves by the route as it is, or says that it cannot.
func (s *shop) takenUp(want bool) {
	s.t.Helper()
	within, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	s.must(s.await(within, webRoute, func(platform.State) bool {
		ok, why := traffic.Accepted(s.route().Object)
		return ok == want && (why == nil) == want
	}))
}

// says has somebody else write another route in place of the one that is there.
func (s *shop) says(route string) {
	s.t.Helper()
	in, err := s.where(webRoute)
	s.must(err)
	spec, err := json.Marshal(map[string]any{"spec": objectOf(s.t, route).Object["spec"]})
	s.must(err)
	_, err = in.Patch(s.ctx, webRoute.Name, types.MergePatchType, spec, metav1.PatchOptions{FieldManager: "somebody"})
	s.must(err)
}

// TestWeightsOfRoutes measures 10 % by requests through a gateway, beside 4 pods of which one is a quarter. None is refused:
// minReadySeconds gives the network time to know the canary's first pod.
func TestWeightsOfRoutes(t *testing.T) {
	s := withRoute(t)
	s.must(unstructured.SetNestedField(s.next[0].Object, int64(5), "spec", "minReadySeconds"))
	refs := []manifest.Ref{web}
	first := s.rules()
	changes := s.start()
	s.must(s.SetWeight(s.ctx, "d1/0", refs, 0))
	if got := s.twos(gatewayService, 100); got != 0 {
		t.Errorf("at 0 %% the canary answered %d of 100", got)
	}
	s.settles(manifest.Ref{Kind: "Service", Namespace: ns, Name: "web-canary"}, "the canary's Service", 100, 100)
	s.must(s.SetWeight(s.ctx, "d1/10", refs, 10))
	s.ready(time.Minute)
	const n, sd = 2400, 15
	if got := s.twos(gatewayService, n); got < n/10-4*sd || got > n/10+4*sd {
		t.Errorf("at 10 %% the canary answered %d of %d; the rules are %v", got, n, s.rules())
	} else {
		t.Logf("at 10 %% the canary answered %d of %d", got, n)
	}
	s.settles(webService, "past the gateway", 0, 0)
	s.must(s.SetWeight(s.ctx, "d1/100", refs, 100))
	if got := s.twos(gatewayService, 50); got != 50 {
		t.Errorf("at 100 %% the canary answered %d of 50", got)
	}
	s.settles(webService, "past the gateway at 100 %", 100, 100)
	s.must(s.SetWeight(s.ctx, "d1/90", refs, 90))
	s.settles(webService, "past the gateway at 90 %", 0, 0)
	s.must(s.SetWeight(s.ctx, "d1/100 again", refs, 100))
	s.settles(webService, "past the gateway at 100 % again", 100, 100)
	s.undo(changes)
	if got := s.rules(); !reflect.DeepEqual(got, first) {
		t.Errorf("the rules are %v and were %v", got, first)
	}
}

// TestPromotionByRoutes ends with the route as it was and the new version behind it, and is taken back even then; a route that
// somebody else changes meanwhile is not overwritten. Its weight is the largest that there is.
func TestPromotionByRoutes(t *testing.T) {
	s := withRoute(t)
	refs := []manifest.Ref{web}
	s.says(strings.Replace(shopRoute, "port: 8080", "port: 8080, weight: 1000000", 1))
	first := s.rules()
	s.before = snapshotOf(t, s.Platform)
	changes := s.start()
	s.must(s.SetWeight(s.ctx, "d1/50", refs, 50))
	in, err := s.where(webRoute)
	s.must(err)
	mine := s.route()
	saved := mine.DeepCopy()
	rules, _, _ := unstructured.NestedSlice(mine.Object, "spec", "rules")
	s.must(unstructured.SetNestedSlice(mine.Object, append(rules, map[string]any{"backendRefs": []any{map[string]any{"name": "other", "port": int64(1)}}}), "spec", "rules"))
	_, err = in.Update(s.ctx, mine, metav1.UpdateOptions{FieldManager: "somebody"})
	s.must(err)
	if err := s.SetWeight(s.ctx, "d1/60", refs, 60); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "changed by somebody else") {
		t.Errorf("somebody's rule is overwritten: %v", err)
	}
	now := s.route()
	now.Object["spec"] = saved.Object["spec"]
	_, err = in.Update(s.ctx, now, metav1.UpdateOptions{FieldManager: "somebody"})
	s.must(err)
	s.must(s.SetWeight(s.ctx, "d1/100", refs, 100))
	s.must(s.Promote(s.ctx, "d1/promote", refs))
	s.ready(time.Minute)
	s.settles(gatewayService, "promoted, through the gateway", 100, 100)
	if got := s.rules(); !reflect.DeepEqual(got, first) {
		t.Errorf("the rules are %v and were %v", got, first)
	}
	if _, err := s.Get(s.ctx, manifest.Ref{Kind: "Service", Namespace: ns, Name: "web-canary"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("the canary's Service is still there: %v", err)
	}
	s.undo(changes)
	if got := s.twos(gatewayService, 50); got != 0 {
		t.Errorf("after the way back the new version answered %d of 50", got)
	}
}

// TestCanaryThatCannotBegin: what another Service's name forbids is told before anything is changed; what only the cluster can
// refuse later is taken back, though there is no canary yet.
func TestCanaryThatCannotBegin(t *testing.T) {
	s := withRoute(t)
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
spec: {hard: {services: "3"}}
`)
	quota := manifest.Ref{Kind: "ResourceQuota", Namespace: ns, Name: "services"}
	s.must(s.await(s.ctx, quota, func(platform.State) bool {
		o, err := s.read(s.ctx, quota)
		used, _, _ := unstructured.NestedString(o.Object, "status", "used", "services")
		return err == nil && used == "3"
	}))
	changes, err := s.StartCanary(s.ctx, "d1/start", s.next, inNS)
	if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "exceeded quota") {
		t.Fatalf("no Service more is allowed: kind %q: %v", fault.KindOf(err), err)
	}
	s.back(changes)
	if got := s.twos(gatewayService, 20); got != 0 {
		t.Errorf("a canary that has not begun answered %d of 20", got)
	}
}

// TestRouteThatIsNotAccepted: where a backend of another rule is not found, no canary begins; where it goes missing later, the
// canary gets no more traffic, and the old version all of it.
func TestRouteThatIsNotAccepted(t *testing.T) {
	s := withRoute(t)
	refs := []manifest.Ref{web}
	s.says(strings.Replace(shopRoute, "rules: [", "rules: [{matches: [{path: {value: /other}}], backendRefs: [{name: other, port: 80}]}, ", 1))
	s.takenUp(false)
	before := snapshotOf(t, s.Platform)
	if _, err := s.StartCanary(s.ctx, "d1/start", s.next, inNS); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "ResolvedRefs is false: BackendNotFound") {
		t.Errorf("a canary of a route that is not accepted: kind %q: %v", fault.KindOf(err), err)
	}
	same(t, "after the refusal", snapshotOf(t, s.Platform), before)

	s.before = before // without the other Service
	by(t, s.Platform, "kubectl-client-side-apply", "{apiVersion: v1, kind: Service, metadata: {name: other}, spec: {selector: {app: other}, ports: [{port: 80}]}}")
	s.takenUp(true)
	changes := s.start()
	s.must(s.SetWeight(s.ctx, "d1/50", refs, 50))
	s.must(s.dynamic.Resource(services()).Namespace(ns).Delete(s.ctx, "other", metav1.DeleteOptions{}))
	s.takenUp(false)
	if err := s.SetWeight(s.ctx, "d1/60", refs, 60); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "ResolvedRefs is false: BackendNotFound") {
		t.Errorf("more traffic: kind %q: %v", fault.KindOf(err), err)
	}
	s.back(changes, "50", "60")
	s.settles(gatewayService, "after the way back, through the gateway", 0, 0)
}
