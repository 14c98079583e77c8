package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	listers "k8s.io/client-go/listers/core/v1"
	v1 "sigs.k8s.io/gateway-api/apis/v1"
	routelisters "sigs.k8s.io/gateway-api/pkg/client/listers/apis/v1"
)

// controller is who says it in the status of routes.
const controller v1.GatewayController = "sluice.dev/testgateway"

// gateway serves by the routes of a namespace that name it.
type gateway struct {
	namespace, name string
	routes          routelisters.HTTPRouteLister
	services        listers.ServiceLister
	changed         chan struct{}
	tell            func(context.Context, *v1.HTTPRoute) error // writes the status
	transport       http.RoundTripper
	rules           atomic.Pointer[[]rule] // those that it serves by
}

// change has follow look at routes and Services.
func (g *gateway) change() {
	select {
	case g.changed <- struct{}{}:
	default: // it is going to
	}
}

// follow takes every change up, until the context ends.
func (g *gateway) follow(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.changed:
		}
		if err := g.takeUp(ctx); err != nil && ctx.Err() == nil {
			log.Print(err)
			time.AfterFunc(time.Second, g.change)
		}
	}
}

// takeUp serves by the routes as they are now, and then tells them so.
func (g *gateway) takeUp(ctx context.Context) error {
	routes, err := g.routes.List(labels.Everything())
	if err != nil {
		return err
	}
	slices.SortFunc(routes, func(a, b *v1.HTTPRoute) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	var rules []rule
	var news []*v1.HTTPRoute
	for _, route := range routes {
		next := route.DeepCopy()
		of, conditions := g.rulesOf(route)
		if slices.ContainsFunc(route.Spec.ParentRefs, g.isMe) {
			rules = append(rules, of...)
		}
		next.Status.Parents = g.parents(route, conditions)
		if !equality.Semantic.DeepEqual(next.Status, route.Status) {
			news = append(news, next)
		}
	}
	slices.SortStableFunc(rules, closest)
	g.rules.Store(&rules)
	var failed []error
	for _, route := range news {
		// A route that has changed or gone since comes by the watch.
		if err := g.tell(ctx, route); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			failed = append(failed, fmt.Errorf("write the status of HTTPRoute %s: %w", route.Name, err))
		}
	}
	return errors.Join(failed...)
}

// isMe reports whether a reference names this gateway.
func (g *gateway) isMe(ref v1.ParentReference) bool {
	return string(ref.Name) == g.name && or(ref.Group, v1.GroupName) == v1.GroupName && or(ref.Kind, "Gateway") == "Gateway" &&
		or(ref.Namespace, v1.Namespace(g.namespace)) == v1.Namespace(g.namespace)
}

// parents is what is said of a route: by others as it was, by this gateway once for each time that the route names it.
func (g *gateway) parents(route *v1.HTTPRoute, conditions []metav1.Condition) []v1.RouteParentStatus {
	mine := func(p v1.RouteParentStatus) bool { return p.ControllerName == controller && g.isMe(p.ParentRef) }
	out := slices.DeleteFunc(slices.Clone(route.Status.Parents), mine)
	for _, ref := range route.Spec.ParentRefs {
		if !g.isMe(ref) {
			continue
		}
		p := v1.RouteParentStatus{ParentRef: ref, ControllerName: controller}
		for _, was := range route.Status.Parents {
			if mine(was) && equality.Semantic.DeepEqual(was.ParentRef, ref) {
				p.Conditions = slices.Clone(was.Conditions)
			}
		}
		for _, c := range conditions {
			meta.SetStatusCondition(&p.Conditions, c)
		}
		out = append(out, p)
	}
	return out
}

func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var rules []rule
	if now := g.rules.Load(); now != nil {
		rules = *now
	}
	i := slices.IndexFunc(rules, func(one rule) bool { return one.leads(r.URL.Path) })
	if i < 0 {
		http.Error(w, "no route leads from here", http.StatusNotFound)
		return
	}
	to := pick(rules[i].backends, rand.Int64N)
	if to == "" {
		http.Error(w, "the route leads to nothing that is there", http.StatusInternalServerError)
		return
	}
	proxy := httputil.ReverseProxy{Transport: g.transport, Rewrite: func(p *httputil.ProxyRequest) {
		p.SetURL(&url.URL{Scheme: "http", Host: to})
		p.SetXForwarded()
		p.Out.Host = p.In.Host
	}, ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
		http.Error(w, err.Error(), http.StatusBadGateway)
	}}
	proxy.ServeHTTP(w, r)
}

// rule is where the requests of a path go.
type rule struct {
	path     string
	exact    bool // not what is below it
	backends []backend
}

// backend is an address with a weight. Where it is empty, requests are answered by an error.
type backend struct {
	address string
	weight  int64
}

func (r rule) leads(path string) bool {
	if r.exact {
		return path == r.path
	}
	below := strings.TrimSuffix(r.path, "/")
	return path == below || strings.HasPrefix(path, below+"/")
}

// closest orders rules as the Gateway API does: an exact path before a prefix, a long one before a short one.
func closest(a, b rule) int {
	if a.exact != b.exact {
		if a.exact {
			return -1
		}
		return 1
	}
	return cmp.Compare(len(b.path), len(a.path))
}

// pick chooses one of the backends by their weights, none where all of them are 0.
func pick(all []backend, random func(below int64) int64) string {
	sum := int64(0)
	for _, b := range all {
		sum += b.weight
	}
	if sum == 0 {
		return ""
	}
	at := random(sum)
	for _, b := range all {
		if at -= b.weight; at < 0 {
			return b.address
		}
	}
	return ""
}
