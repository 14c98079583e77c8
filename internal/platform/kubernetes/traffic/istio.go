package traffic

import (
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/fault"
)

// Subsets are how Istio tells the two versions of a Service apart, and which routes share its traffic out between them.
type Subsets struct {
	Service         string            `json:"service"`
	VirtualService  string            `json:"virtualService"`
	Route           string            `json:"route,omitempty"` // the only one of its http routes that is meant; "": all that lead to the Service
	DestinationRule string            `json:"destinationRule"`
	Active          string            `json:"active"` // names of subsets
	Canary          string            `json:"canary"`
	ActiveLabels    map[string]string `json:"activeLabels"` // that the stable version's pods have, and its canary's do not
	CanaryLabels    map[string]string `json:"canaryLabels"`
}

// Host returns the Service of a namespace that a host of Istio's means, "" where it means another one.
func Host(host, namespace string) string {
	name, rest, qualified := strings.Cut(host, ".")
	if !qualified || rest == namespace || rest == namespace+".svc" || strings.HasPrefix(rest, namespace+".svc.") {
		return name
	}
	return ""
}

// virtualService returns the http routes of a VirtualService with a split.
func virtualService(o *unstructured.Unstructured, s Split) ([]any, error) {
	rules, _, _ := unstructured.NestedSlice(o.Object, "spec", "http")
	for _, sub := range s.Subsets {
		if sub.VirtualService != o.GetName() {
			continue
		}
		led := false
		for _, rule := range objects(rules) {
			if sub.Route != "" && rule["name"] != sub.Route {
				continue
			}
			list, _ := rule["route"].([]any)
			out, found := shared(objects(list), int64(s.Percent), sub.leads(o.GetNamespace()), sub.version)
			if found {
				rule["route"], led = out, true
			}
		}
		if !led {
			return nil, sub.astray(o)
		}
	}
	return rules, nil
}

// astray says that no route leads to the Service.
func (sub Subsets) astray(o *unstructured.Unstructured) error {
	which := "no http route"
	if sub.Route != "" {
		which = "no http route " + sub.Route
	}
	return fault.WithRemedy(fault.Newf(fault.Invalid, "VirtualService %s/%s has %s that leads to Service %s", o.GetNamespace(), o.GetName(), which, sub.Service),
		"its destinations name the Service with no subset, or with activeSubsetName, which is %s", sub.Active)
}

// leads reports whether a destination is one of the two versions.
func (sub Subsets) leads(namespace string) func(map[string]any) bool {
	return func(d map[string]any) bool {
		subset := text(d, "destination", "subset")
		return Host(text(d, "destination", "host"), namespace) == sub.Service && (subset == "" || subset == sub.Active || subset == sub.Canary)
	}
}

// version is a destination of one of the two.
func (sub Subsets) version(of map[string]any, canary bool) map[string]any {
	out := (&unstructured.Unstructured{Object: of}).DeepCopy().Object
	subset := sub.Active
	if canary {
		subset = sub.Canary
	}
	_ = unstructured.SetNestedField(out, subset, "destination", "subset") // leads has found an object there
	return out
}

// destinationRule returns the subsets of a DestinationRule while there are two versions: whatever their shares are.
func destinationRule(o *unstructured.Unstructured, s Split) ([]any, error) {
	list, _, _ := unstructured.NestedSlice(o.Object, "spec", "subsets")
	for _, sub := range s.Subsets {
		if sub.DestinationRule != o.GetName() {
			continue
		}
		if host := text(o.Object, "spec", "host"); Host(host, o.GetNamespace()) != sub.Service {
			return nil, fault.Newf(fault.Invalid, "DestinationRule %s/%s is about host %s, not Service %s", o.GetNamespace(), o.GetName(), host, sub.Service)
		}
		for _, v := range []struct {
			name   string
			labels map[string]string
			keep   bool // what the subset requires besides
		}{{sub.Active, sub.ActiveLabels, true}, {sub.Canary, sub.CanaryLabels, false}} {
			all := objects(list)
			i := slices.IndexFunc(all, func(m map[string]any) bool { return m["name"] == v.name })
			if i < 0 {
				all = append(all, map[string]any{"name": v.name})
				i = len(all) - 1
			}
			labels := map[string]any{}
			if has, ok := all[i]["labels"].(map[string]any); ok && v.keep {
				maps.Copy(labels, has)
			}
			for k, l := range v.labels {
				labels[k] = l
			}
			all[i]["labels"] = labels
			list = nil
			for _, m := range all {
				list = append(list, m)
			}
		}
	}
	return list, nil
}
