// Package traffic shares requests out between two versions by weights, in the objects of those who route them: HTTPRoutes of
// the Gateway API, VirtualServices and DestinationRules of Istio, TrafficSplits of SMI.
package traffic

import (
	"reflect"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/fault"
)

// A Split is a share of the traffic of some Services that a new version gets.
type Split struct {
	Canaries map[string]string // which Service the canary of a Service has
	Subsets  []Subsets         // of Services whose versions Istio tells apart
	Percent  int
}

// At is where the field is that a split changes in objects of a kind, nil for kinds that share nothing out.
func At(kind string) []string {
	switch kind {
	case "HTTPRoute":
		return []string{"spec", "rules"}
	case "VirtualService":
		return []string{"spec", "http"}
	case "DestinationRule":
		return []string{"spec", "subsets"}
	case "TrafficSplit":
		return []string{"spec", "backends"}
	}
	return nil
}

// With returns that field of an object as it is with a split. First is the object as it was before there was one.
func With(first map[string]any, s Split) ([]any, error) {
	o := (&unstructured.Unstructured{Object: first}).DeepCopy()
	switch kind := o.GetKind(); kind {
	case "HTTPRoute":
		return HTTPRoute(o.Object, s), nil
	case "VirtualService":
		return virtualService(o, s)
	case "DestinationRule":
		return destinationRule(o, s)
	case "TrafficSplit":
		return trafficSplit(o, s)
	default:
		return nil, fault.Newf(fault.Invalid, "no traffic is shared out by a %s", kind)
	}
}

// Ours reports whether the field of an object is as at first, or with a split of any percentage. Another one is somebody's who
// has changed it since.
func Ours(first map[string]any, now []any, s Split) bool {
	original, _, _ := unstructured.NestedSlice(first, At((&unstructured.Unstructured{Object: first}).GetKind())...)
	if reflect.DeepEqual(original, now) {
		return true
	}
	for p := range 101 {
		s.Percent = p
		if with, err := With(first, s); err == nil && reflect.DeepEqual(with, now) {
			return true
		}
	}
	return false
}

// objects are the elements of a list that are objects.
func objects(list []any) []map[string]any {
	var out []map[string]any
	for _, v := range list {
		if o, ok := v.(map[string]any); ok {
			out = append(out, o)
		}
	}
	return out
}

func text(o map[string]any, at ...string) string {
	v, _, _ := unstructured.NestedString(o, at...)
	return v
}

// shared replaces the destinations of one Service by two, one for each version. Which they are says mine; others keep their
// share. A destination that stands alone has the whole traffic, in percent, whatever weight it has.
func shared(list []map[string]any, percent int64, mine func(map[string]any) bool, version func(of map[string]any, canary bool) map[string]any) (out []any, found bool) {
	var base, others int64
	for _, d := range list {
		w, _ := d["weight"].(int64)
		switch {
		case !mine(d):
			others++
		case len(list) == 1:
			base = 100
		default:
			base += w
		}
	}
	if others == 0 {
		base = 1 // the two versions have all of it
	}
	for _, d := range list {
		w, _ := d["weight"].(int64)
		switch {
		case !mine(d):
			out = append(out, weighted(d, w*100))
		case !found:
			found = true
			out = append(out, weighted(version(d, false), base*(100-percent)), weighted(version(d, true), base*percent))
		}
	}
	return out, found
}
