package main

import (
	"fmt"
	"net"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	v1 "sigs.k8s.io/gateway-api/apis/v1"
)

// rulesOf returns the rules of a route, none if it has more to it than is known here, and what is to be said of it.
func (g *gateway) rulesOf(route *v1.HTTPRoute) ([]rule, []metav1.Condition) {
	met := func(kind v1.RouteConditionType, reason v1.RouteConditionReason) metav1.Condition {
		return metav1.Condition{Type: string(kind), Status: metav1.ConditionTrue, Reason: string(reason), ObservedGeneration: route.Generation}
	}
	accepted := met(v1.RouteConditionAccepted, v1.RouteReasonAccepted)
	resolved := met(v1.RouteConditionResolvedRefs, v1.RouteReasonResolvedRefs)
	var rules []rule
	for _, r := range route.Spec.Rules {
		var backends []backend
		for _, ref := range r.BackendRefs {
			address, reason, message := g.resolve(ref.BackendObjectReference)
			if address == "" && resolved.Status == metav1.ConditionTrue {
				resolved.Status, resolved.Reason, resolved.Message = metav1.ConditionFalse, string(reason), message
			}
			backends = append(backends, backend{address, int64(or(ref.Weight, 1))})
		}
		for _, p := range paths(r) {
			rules = append(rules, rule{or(p.Value, "/"), or(p.Type, v1.PathMatchPathPrefix) == v1.PathMatchExact, backends})
		}
	}
	if !equality.Semantic.DeepEqual(route.Spec, known(route.Spec)) {
		accepted.Status, accepted.Reason = metav1.ConditionFalse, string(v1.RouteReasonUnsupportedValue)
		accepted.Message = "only paths, exact or prefixes, and backends with weights are known to this gateway"
		return nil, []metav1.Condition{accepted, resolved}
	}
	return rules, []metav1.Condition{accepted, resolved}
}

// paths are those of a rule; one without any is for all requests.
func paths(r v1.HTTPRouteRule) []v1.HTTPPathMatch {
	if len(r.Matches) == 0 {
		return []v1.HTTPPathMatch{{}}
	}
	var out []v1.HTTPPathMatch
	for _, m := range r.Matches {
		out = append(out, or(m.Path, v1.HTTPPathMatch{}))
	}
	return out
}

// known is the part of what a route says that this gateway goes by.
func known(spec v1.HTTPRouteSpec) v1.HTTPRouteSpec {
	out := v1.HTTPRouteSpec{CommonRouteSpec: spec.CommonRouteSpec}
	for _, r := range spec.Rules {
		next := v1.HTTPRouteRule{Name: r.Name}
		for _, m := range r.Matches {
			if m.Path != nil && or(m.Path.Type, v1.PathMatchPathPrefix) == v1.PathMatchRegularExpression {
				m.Path = nil
			}
			next.Matches = append(next.Matches, v1.HTTPRouteMatch{Path: m.Path})
		}
		for _, ref := range r.BackendRefs {
			next.BackendRefs = append(next.BackendRefs, v1.HTTPBackendRef{BackendRef: ref.BackendRef})
		}
		out.Rules = append(out.Rules, next)
	}
	return out
}

// resolve returns where a backend is, or why it is nowhere.
func (g *gateway) resolve(ref v1.BackendObjectReference) (address string, reason v1.RouteConditionReason, message string) {
	if kind := or(ref.Kind, "Service"); or(ref.Group, corev1.GroupName) != corev1.GroupName || kind != "Service" {
		return "", v1.RouteReasonInvalidKind, fmt.Sprintf("%s %s is no Service", kind, ref.Name)
	}
	if or(ref.Namespace, v1.Namespace(g.namespace)) != v1.Namespace(g.namespace) {
		return "", v1.RouteReasonRefNotPermitted, fmt.Sprintf("Service %s is in another namespace", ref.Name)
	}
	s, err := g.services.Services(g.namespace).Get(string(ref.Name))
	if err != nil {
		return "", v1.RouteReasonBackendNotFound, fmt.Sprintf("there is no Service %s", ref.Name)
	}
	port := or(ref.Port, 0)
	for _, p := range s.Spec.Ports {
		if p.Port == int32(port) && s.Spec.ClusterIP != corev1.ClusterIPNone {
			return net.JoinHostPort(s.Spec.ClusterIP, fmt.Sprint(port)), "", ""
		}
	}
	return "", v1.RouteReasonBackendNotFound, fmt.Sprintf("Service %s has no port %d with an address", ref.Name, port)
}

// or is what a pointer points to, or what stands for it.
func or[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
