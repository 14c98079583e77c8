package traffic

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// mostWeight is the largest weight that an HTTPRoute can have.
const mostWeight = 1_000_000

// Routes reports whether an HTTPRoute leads to a Service of its own namespace.
func Routes(route map[string]any, service string) bool {
	found := false
	each(route, func(rule map[string]any) {
		for _, ref := range refs(rule) {
			found = found || leads(ref, service)
		}
	})
	return found
}

// HTTPRoute returns the rules of an HTTPRoute as they are with a split. Other backends of a rule keep their share of it.
func HTTPRoute(route map[string]any, s Split) []any {
	next := (&unstructured.Unstructured{Object: route}).DeepCopy()
	each(next.Object, func(rule map[string]any) {
		var out []any
		split := false
		for _, ref := range refs(rule) {
			split = split || s.of(ref) != ""
		}
		if !split {
			return
		}
		for _, ref := range refs(rule) {
			weight := weightOf(ref)
			name := s.of(ref)
			if name == "" {
				out = append(out, weighted(ref, weight*100))
				continue
			}
			out = append(out, weighted(ref, weight*int64(100-s.Percent)))
			canary := weighted(ref, weight*int64(s.Percent))
			canary["name"] = name
			out = append(out, canary)
		}
		rule["backendRefs"] = within(out)
	})
	rules, _, _ := unstructured.NestedSlice(next.Object, "spec", "rules")
	return rules
}

// within makes weights that are too large for an HTTPRoute smaller, all by the same factor. None becomes 0 by that.
func within(refs []any) []any {
	list, largest := objects(refs), int64(0)
	for _, ref := range list {
		largest = max(largest, weightOf(ref))
	}
	for _, ref := range list {
		if w := weightOf(ref); largest > mostWeight && w > 0 {
			ref["weight"] = max(1, w*mostWeight/largest)
		}
	}
	return refs
}

// of returns the Service of the canary of what a reference leads to, "" where it has none.
func (s Split) of(ref map[string]any) string {
	name, _ := ref["name"].(string)
	if !leads(ref, name) {
		return ""
	}
	return s.Canaries[name]
}

// Accepted reports whether every gateway of an HTTPRoute has taken up its present generation, or why one will not. What is said
// of gateways that it no longer names does not count.
func Accepted(route map[string]any) (bool, error) {
	o := &unstructured.Unstructured{Object: route}
	parents, _, _ := unstructured.NestedSlice(route, "status", "parents")
	some := false
	for _, parent := range objects(parents) {
		if !names(o, parent) {
			continue
		}
		some = true
		list, _, _ := unstructured.NestedSlice(parent, "conditions")
		met := map[string]bool{}
		for _, c := range objects(list) {
			kind, _ := c["type"].(string)
			if kind != "Accepted" && kind != "ResolvedRefs" {
				continue
			}
			generation, _ := c["observedGeneration"].(int64)
			if generation < o.GetGeneration() {
				return false, nil
			}
			met[kind] = c["status"] == "True"
			if c["status"] == "False" {
				return false, fmt.Errorf("%s is false: %v: %v", kind, c["reason"], c["message"])
			}
		}
		if !met["Accepted"] || !met["ResolvedRefs"] {
			return false, nil
		}
	}
	return some, nil
}

// names reports whether a route still names the gateway that a part of its status is about.
func names(route *unstructured.Unstructured, parent map[string]any) bool {
	about, _ := parent["parentRef"].(map[string]any)
	key := func(ref map[string]any) [6]any {
		out := [6]any{"gateway.networking.k8s.io", "Gateway", route.GetNamespace(), ref["name"], ref["sectionName"], ref["port"]}
		for i, field := range []string{"group", "kind", "namespace"} {
			if v, ok := ref[field]; ok {
				out[i] = v
			}
		}
		return out
	}
	list, _, _ := unstructured.NestedSlice(route.Object, "spec", "parentRefs")
	return slices.ContainsFunc(objects(list), func(ref map[string]any) bool { return key(ref) == key(about) })
}

func each(route map[string]any, do func(rule map[string]any)) {
	spec, _ := route["spec"].(map[string]any)
	rules, _ := spec["rules"].([]any)
	for _, v := range rules {
		if rule, ok := v.(map[string]any); ok {
			do(rule)
		}
	}
}

func refs(rule map[string]any) []map[string]any {
	list, _ := rule["backendRefs"].([]any)
	return objects(list)
}

// leads reports whether a reference is to a Service. Its group and kind may be left out.
func leads(ref map[string]any, service string) bool {
	kind, _ := ref["kind"].(string)
	group, _ := ref["group"].(string)
	_, elsewhere := ref["namespace"]
	return ref["name"] == service && (kind == "" || kind == "Service") && group == "" && !elsewhere
}

func weightOf(ref map[string]any) int64 {
	if w, ok := ref["weight"].(int64); ok {
		return w
	}
	return 1
}

func weighted(ref map[string]any, weight int64) map[string]any {
	out := map[string]any{}
	for k, v := range ref {
		out[k] = v
	}
	out["weight"] = weight
	return out
}
