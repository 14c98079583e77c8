package data

import (
	"maps"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// asCopies makes of a database's objects those of a copy that nobody else should see: one replica of the database itself, with
// no credentials of the cluster, no part of the node it runs on, and no way in from outside. Claims are left out: a copy's are
// made with it.
func asCopies(objects []manifest.Object, sidecars []string) ([]manifest.Object, error) {
	var out []manifest.Object
	for _, o := range objects {
		c := manifest.Object{Unstructured: *o.DeepCopy(), Origin: o.Origin}
		switch o.GetKind() {
		case "PersistentVolumeClaim":
			continue
		case "Service":
			inward(c)
		case "StatefulSet", "Deployment":
			if err := alone(c, sidecars); err != nil {
				return nil, err
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// inward makes a Service one of its namespace only.
func inward(o manifest.Object) {
	spec, _, _ := unstructured.NestedMap(o.Object, "spec")
	for _, f := range []string{"externalIPs", "externalTrafficPolicy", "healthCheckNodePort", "allocateLoadBalancerNodePorts", "loadBalancerIP",
		"loadBalancerClass", "loadBalancerSourceRanges", "type"} {
		delete(spec, f)
	}
	if spec["clusterIP"] != corev1.ClusterIPNone {
		delete(spec, "clusterIP")
		delete(spec, "clusterIPs")
	}
	if selector, ok := spec["selector"].(map[string]any); ok {
		delete(selector, platform.OpenLabel)
	}
	for _, p := range list(spec["ports"]) {
		if m, ok := p.(map[string]any); ok {
			delete(m, "nodePort")
		}
	}
	o.Object["spec"] = spec
	// Annotations have others make load balancers and names for it.
	o.SetAnnotations(nil)
}

// alone reduces a workload to the database and the containers that are named.
func alone(o manifest.Object, sidecars []string) error {
	at := []string{"spec", "template", "spec"}
	pod, ok, err := unstructured.NestedMap(o.Object, at...)
	if err != nil || !ok {
		return fault.Newf(fault.Invalid, "%s has no pod template", o.Ref())
	}
	for _, f := range []string{"serviceAccountName", "serviceAccount", "hostNetwork", "hostPID", "hostIPC", "nodeName", "priority"} {
		delete(pod, f)
	}
	pod["automountServiceAccountToken"] = false
	named := func(v any) bool {
		m, _ := v.(map[string]any)
		name, _ := m["name"].(string)
		return slices.Contains(sidecars, name)
	}
	var kept []any
	for i, v := range list(pod["containers"]) {
		if i == 0 || named(v) {
			kept = append(kept, v)
		}
	}
	pod["containers"] = kept
	before := slices.DeleteFunc(slices.Clone(list(pod["initContainers"])), func(v any) bool { return !named(v) })
	delete(pod, "initContainers")
	if len(before) > 0 {
		pod["initContainers"] = before
	}
	for _, v := range slices.Concat(kept, before) {
		m, _ := v.(map[string]any)
		for _, port := range list(m["ports"]) {
			if m, ok := port.(map[string]any); ok {
				delete(m, "hostPort") // a node has it once
			}
		}
	}
	if err := mounted(o, pod, slices.Concat(kept, before)); err != nil {
		return err
	}
	unstructured.RemoveNestedField(o.Object, "spec", "persistentVolumeClaimRetentionPolicy")
	if err := unstructured.SetNestedField(o.Object, int64(1), "spec", "replicas"); err != nil {
		return err
	}
	return unstructured.SetNestedMap(o.Object, pod, at...)
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

// mounted leaves out volumes that no container mounts any more, and refuses those that a copy would share with production.
func mounted(o manifest.Object, pod map[string]any, containers []any) error {
	used := map[string]bool{}
	for _, v := range containers {
		m, _ := v.(map[string]any)
		for _, f := range []string{"volumeMounts", "volumeDevices"} {
			for _, w := range list(m[f]) {
				if mount, ok := w.(map[string]any); ok {
					name, _ := mount["name"].(string)
					used[name] = true
				}
			}
		}
	}
	var kept []any
	for _, v := range list(pod["volumes"]) {
		m, _ := v.(map[string]any)
		if name, _ := m["name"].(string); !used[name] {
			continue
		}
		if err := apart(o, m); err != nil {
			return err
		}
		kept = append(kept, v)
	}
	delete(pod, "volumes")
	if len(kept) > 0 {
		pod["volumes"] = kept
	}
	return nil
}

// apart refuses a volume that is not known to be a copy's own: storage that a pod names itself is production's, whichever pod names it,
// and a token of the cluster lets a copy act there.
func apart(o manifest.Object, v map[string]any) error {
	for _, source := range slices.Sorted(maps.Keys(v)) {
		switch source {
		case "name", "persistentVolumeClaim", "configMap", "secret", "emptyDir", "downwardAPI", "image":
		case "projected":
			projected, _ := v[source].(map[string]any)
			for _, p := range list(projected["sources"]) {
				m, _ := p.(map[string]any)
				for _, of := range slices.Sorted(maps.Keys(m)) {
					if of != "configMap" && of != "secret" && of != "downwardAPI" && of != "clusterTrustBundle" {
						return fault.WithRemedy(fault.Newf(fault.Denied, "%s mounts a %s (volume %v): a copy gets no credentials of the cluster", o.Ref(), of, v["name"]),
							"have only containers mount it that `sidecars` of the database does not name")
					}
				}
			}
		default:
			return fault.WithRemedy(fault.Newf(fault.Denied, "%s mounts a volume of the kind %s (volume %v): a copy would share it with production", o.Ref(), source, v["name"]),
				"keep what the database needs on its claims, in ConfigMaps or in Secrets")
		}
	}
	return nil
}

// same reports whether two workloads would run the same pods: a live one and what a manifest says. What the manifest leaves
// out may be live only where a cluster fills it in by itself.
func same(live, next workload) bool {
	a, err := runtime.DefaultUnstructuredConverter.ToUnstructured(live.template.Spec.DeepCopy())
	if err != nil {
		return false
	}
	b, err := runtime.DefaultUnstructuredConverter.ToUnstructured(next.template.Spec.DeepCopy())
	return err == nil && agrees(a, b) && live.replicas == next.replicas
}

// agrees reports whether a live value is what the manifest's makes of it.
func agrees(live, wanted any) bool {
	switch w := wanted.(type) {
	case map[string]any:
		l, ok := live.(map[string]any)
		if !ok {
			return false
		}
		for k, v := range w {
			if !agrees(l[k], v) {
				return false
			}
		}
		for k := range l {
			if _, ok := w[k]; !ok && !filledIn(k) {
				return false
			}
		}
		return true
	case []any:
		l, ok := live.([]any)
		return ok && slices.EqualFunc(l, w, agrees)
	}
	return reflect.DeepEqual(live, wanted)
}

// filledIn reports whether a cluster gives this field of a pod template a value where a manifest gives none.
func filledIn(field string) bool {
	switch field {
	case "restartPolicy", "terminationGracePeriodSeconds", "dnsPolicy", "securityContext", "schedulerName", "serviceAccount",
		"terminationMessagePath", "terminationMessagePolicy", "imagePullPolicy", "resources", "protocol",
		"timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold", "scheme", "service", "defaultMode", "apiVersion", "fieldRef",
		"divisor", "optional", "volumeMode", "recursiveReadOnly":
		return true
	}
	return false
}
