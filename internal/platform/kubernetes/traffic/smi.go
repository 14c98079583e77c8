package traffic

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/fault"
)

// trafficSplit returns the backends of a TrafficSplit with a split: of the Service that clients call, and of its canary's.
func trafficSplit(o *unstructured.Unstructured, s Split) ([]any, error) {
	root := text(o.Object, "spec", "service")
	canary := s.Canaries[root]
	list, _, _ := unstructured.NestedSlice(o.Object, "spec", "backends")
	mine := func(b map[string]any) bool { return b["service"] == root || b["service"] == canary }
	out, found := shared(objects(list), int64(s.Percent), mine, func(of map[string]any, isCanary bool) map[string]any {
		name := root
		if isCanary {
			name = canary
		}
		b := weighted(of, 0)
		b["service"] = name
		return b
	})
	if canary == "" || !found {
		return nil, fault.WithRemedy(fault.Newf(fault.Invalid, "TrafficSplit %s/%s has no backend that is its root Service %s", o.GetNamespace(), o.GetName(), root),
			"name the root Service among its backends: the running version is behind it")
	}
	return out, nil
}
