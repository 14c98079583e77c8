package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	v1 "sigs.k8s.io/gateway-api/apis/v1"
	routelisters "sigs.k8s.io/gateway-api/pkg/client/listers/apis/v1"
	"sigs.k8s.io/yaml"
)

// world is a namespace with a gateway. What it tells routes is what they are from then on, and kept by the name.
type world struct {
	*gateway
	t                *testing.T
	routes, services cache.Indexer
	told             map[string]*v1.HTTPRoute
}

func newWorld(t *testing.T) *world {
	index := cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}
	w := &world{t: t, routes: cache.NewIndexer(cache.MetaNamespaceKeyFunc, index), services: cache.NewIndexer(cache.MetaNamespaceKeyFunc, index),
		told: map[string]*v1.HTTPRoute{}}
	w.gateway = &gateway{namespace: "shop", name: "front", routes: routelisters.NewHTTPRouteLister(w.routes), services: listers.NewServiceLister(w.services),
		transport: &http.Transport{DisableKeepAlives: true}, tell: func(_ context.Context, r *v1.HTTPRoute) error {
			w.told[r.Name] = r
			return w.routes.Update(r)
		}}
	return w
}

// service has a Service be there that answers with its name.
func (w *world) service(name string) (port string) {
	w.t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		fmt.Fprint(out, name, " ", r.Host, r.URL)
	}))
	w.t.Cleanup(s.Close)
	host, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		w.t.Fatal(err)
	}
	err = w.services.Add(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: corev1.ServiceSpec{ClusterIP: host, Ports: []corev1.ServicePort{{Port: int32(n)}}}})
	if err != nil {
		w.t.Fatal(err)
	}
	return port
}

// route has a route be there, of the generation after the one before.
func (w *world) route(name, spec string) {
	w.t.Helper()
	r := &v1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Generation: 1}}
	if was, ok, _ := w.routes.GetByKey("shop/" + name); ok {
		r = was.(*v1.HTTPRoute).DeepCopy()
		r.Generation++
	}
	r.Spec = v1.HTTPRouteSpec{}
	if err := yaml.UnmarshalStrict([]byte(spec), &r.Spec); err != nil {
		w.t.Fatal(err)
	}
	if err := w.routes.Update(r); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) follows() {
	w.t.Helper()
	if err := w.takeUp(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// ask returns the status and the body of an answer.
func (w *world) ask(path string) string {
	out := httptest.NewRecorder()
	w.ServeHTTP(out, httptest.NewRequest(http.MethodGet, "http://shop.example.org"+path, nil))
	return fmt.Sprint(out.Code, " ", strings.TrimSpace(out.Body.String()))
}

// said is what this gateway says of a route.
func (w *world) said(name string) string {
	w.t.Helper()
	var all []string
	for _, p := range w.told[name].Status.Parents {
		for _, c := range p.Conditions {
			all = append(all, fmt.Sprintf("%s %s %s: %s is %s by %d %s", p.ControllerName, p.ParentRef.Name, or(p.ParentRef.SectionName, ""), c.Type, c.Reason, c.ObservedGeneration, c.Message))
		}
	}
	return strings.Join(all, "\n")
}

func TestPick(t *testing.T) {
	for name, c := range map[string]struct {
		weights []int64
		want    map[string]int
	}{
		"by weights":              {[]int64{9, 0, 1}, map[string]int{"0": 9, "2": 1}},
		"one alone":               {[]int64{7}, map[string]int{"0": 7}},
		"all 0 lead nowhere":      {[]int64{0, 0}, map[string]int{"": 1}},
		"no backend is no answer": {nil, map[string]int{"": 1}},
	} {
		t.Run(name, func(t *testing.T) {
			var all []backend
			for i, weight := range c.weights {
				all = append(all, backend{fmt.Sprint(i), weight})
			}
			got, below := map[string]int{}, int64(1)
			for n := int64(0); n < below; n++ {
				got[pick(all, func(sum int64) int64 { below = sum; return n })]++
			}
			if !maps.Equal(got, c.want) {
				t.Errorf("%v, not %v", got, c.want)
			}
		})
	}
}

func TestRequestsGoByPathToServices(t *testing.T) {
	w := newWorld(t)
	if got := w.ask("/"); !strings.HasPrefix(got, "404 ") {
		t.Errorf("before it knows any route the answer is %q", got)
	}
	web, api, exact := w.service("web"), w.service("api"), w.service("exact")
	w.route("web", `{parentRefs: [{name: front}], rules: [{backendRefs: [{name: web, port: `+web+`}]}]}`)
	w.route("api", `
parentRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: front}]
rules:
- matches: [{path: {value: /api}}, {path: {type: Exact, value: /v1}}]
  backendRefs: [{group: "", kind: Service, name: api, port: `+api+`, weight: 5}]
- matches: [{path: {type: Exact, value: /api/status}}]
  backendRefs: [{name: exact, port: `+exact+`}]
- matches: [{path: {type: PathPrefix, value: /none}}]
  backendRefs: [{name: web, port: `+web+`, weight: 0}]
- matches: [{path: {type: PathPrefix, value: /gone}}]
  backendRefs: [{name: gone, port: 80}]
`)
	err := w.services.Add(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "silent"},
		Spec: corev1.ServiceSpec{ClusterIP: "127.0.0.1", Ports: []corev1.ServicePort{{Port: 1}}}})
	if err != nil {
		t.Fatal(err)
	}
	w.route("silent", `{parentRefs: [{name: front}], rules: [{matches: [{path: {value: /silent}}], backendRefs: [{name: silent, port: 1}]}]}`)
	w.route("others", `{parentRefs: [{name: back}], rules: [{matches: [{path: {value: /api/others}}], backendRefs: [{name: web, port: `+web+`}]}]}`)
	w.follows()
	for path, want := range map[string]string{
		"/":             "200 web shop.example.org/",
		"/apis":         "200 web shop.example.org/apis",
		"/api":          "200 api shop.example.org/api",
		"/api/others?a": "200 api shop.example.org/api/others?a",
		"/api/status":   "200 exact shop.example.org/api/status",
		"/v1":           "200 api shop.example.org/v1",
		"/v1/":          "200 web shop.example.org/v1/",
		"/none":         "500 the route leads to nothing that is there",
		"/silent":       "502 dial tcp 127.0.0.1:1: connect: connection refused",
		"/gone":         "500 the route leads to nothing that is there",
	} {
		if got := w.ask(path); got != want {
			t.Errorf("%s is answered %q, not %q", path, got, want)
		}
	}
	if w.told["others"] != nil {
		t.Errorf("the route of another gateway is told %s", w.said("others"))
	}
}

// TestARouteIsToldWhatItIsServedBy: not before, and only of what has changed.
func TestARouteIsToldWhatItIsServedBy(t *testing.T) {
	w := newWorld(t)
	w.route("web", `{parentRefs: [{name: front, sectionName: a}, {name: front, sectionName: b}], rules: [{backendRefs: [{name: web, port: 80}]}]}`)
	w.follows()
	const not = `sluice.dev/testgateway front a: Accepted is Accepted by 1 
sluice.dev/testgateway front a: ResolvedRefs is BackendNotFound by 1 there is no Service web
sluice.dev/testgateway front b: Accepted is Accepted by 1 
sluice.dev/testgateway front b: ResolvedRefs is BackendNotFound by 1 there is no Service web`
	if got := w.said("web"); got != not {
		t.Errorf("without the Service:\n%s", got)
	}
	port := w.service("web")
	w.follows()
	if got := w.said("web"); !strings.Contains(got, "Service web has no port 80") {
		t.Errorf("with another port:\n%s", got)
	}
	write, asked := w.tell, ""
	w.tell = func(ctx context.Context, r *v1.HTTPRoute) error { asked = w.ask("/"); return write(ctx, r) }
	w.route("web", `{parentRefs: [{name: front}], rules: [{backendRefs: [{name: web, port: `+port+`}]}]}`)
	w.follows()
	const now = `sluice.dev/testgateway front : Accepted is Accepted by 2 
sluice.dev/testgateway front : ResolvedRefs is ResolvedRefs by 2 `
	if got := w.said("web"); got != now || asked != "200 web shop.example.org/" {
		t.Errorf("when it was told it answered %q, and it says:\n%s", asked, got)
	}
	clear(w.told)
	w.follows()
	if w.told["web"] != nil {
		t.Errorf("it is told again:\n%s", w.said("web"))
	}
}

// TestOthersSayWhatTheySay: their part of the status stays, and this one's goes with the gateway's name.
func TestOthersSayWhatTheySay(t *testing.T) {
	w := newWorld(t)
	w.route("web", `{parentRefs: [{name: front}, {name: back}], rules: []}`)
	w.follows()
	next := w.told["web"].DeepCopy()
	theirs := v1.RouteParentStatus{ParentRef: v1.ParentReference{Name: "back"}, ControllerName: "example.org/another"}
	next.Status.Parents = append(next.Status.Parents, theirs)
	if err := w.routes.Update(next); err != nil {
		t.Fatal(err)
	}
	w.route("web", `{parentRefs: [{name: back}], rules: []}`)
	w.follows()
	if got := w.told["web"].Status.Parents; !reflect.DeepEqual(got, []v1.RouteParentStatus{theirs}) {
		t.Errorf("%+v", got)
	}
}

func TestWhatIsNotKnownIsNotAccepted(t *testing.T) {
	for name, rule := range map[string]string{
		"a header":             `{matches: [{headers: [{name: a, value: b}]}]`,
		"a method":             `{matches: [{method: POST}]`,
		"an expression":        `{matches: [{path: {type: RegularExpression, value: "/a+"}}]`,
		"a filter":             `{filters: [{type: URLRewrite}]`,
		"a timeout":            `{timeouts: {request: 1s}`,
		"a filter of one only": `{backendRefs: [{name: web, port: 80, filters: [{type: URLRewrite}]}]`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.route("web", `{parentRefs: [{name: front}], rules: [`+rule+`}]}`)
			w.follows()
			if got := w.said("web"); !strings.Contains(got, "Accepted is UnsupportedValue by 1") {
				t.Errorf("it is told\n%s", got)
			}
			if got := w.ask("/"); !strings.HasPrefix(got, "404 ") {
				t.Errorf("the answer is %q", got)
			}
		})
	}
}

func TestBackendsThatAreNotServicesOfTheNamespace(t *testing.T) {
	for ref, want := range map[string]string{
		`{group: example.org, kind: Bucket, name: web}`: "ResolvedRefs is InvalidKind by 1 Bucket web is no Service",
		`{name: web, namespace: other, port: 80}`:       "ResolvedRefs is RefNotPermitted by 1 Service web is in another namespace",
	} {
		w := newWorld(t)
		w.route("web", `{parentRefs: [{name: front}], rules: [{backendRefs: [`+ref+`]}]}`)
		w.follows()
		if got := w.said("web"); !strings.Contains(got, want) {
			t.Errorf("%s is told\n%s", ref, got)
		}
	}
}

// TestAStatusThatCannotBeWritten is tried again, but not against a newer route.
func TestAStatusThatCannotBeWritten(t *testing.T) {
	route := schema.GroupResource{Group: v1.GroupName, Resource: "httproutes"}
	for _, c := range []struct {
		err   error
		again bool
	}{{apierrors.NewConflict(route, "web", nil), false}, {apierrors.NewNotFound(route, "web"), false}, {apierrors.NewForbidden(route, "web", nil), true}} {
		w := newWorld(t)
		w.tell = func(context.Context, *v1.HTTPRoute) error { return c.err }
		w.route("web", `{parentRefs: [{name: front}], rules: []}`)
		if err := w.takeUp(t.Context()); (err != nil) != c.again {
			t.Errorf("%v becomes %v", c.err, err)
		}
	}
}
