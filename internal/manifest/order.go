package manifest

import (
	"slices"

	"github.com/sluice-cd/sluice/internal/fault"
)

// The ranks of kinds: what others need comes first. A kind that is not named comes last: it may be a custom one, whose
// controller is among the workloads.
const (
	namespaces = iota
	definitions
	limits
	accounts
	roles
	bindings
	configuration
	volumes
	claims
	services
	workloads
	jobs
	rest
)

func rank(o Object) int {
	switch o.GetKind() {
	case "Namespace":
		return namespaces
	case "CustomResourceDefinition":
		return definitions
	case "PriorityClass", "StorageClass", "VolumeSnapshotClass", "ResourceQuota", "LimitRange", "NetworkPolicy":
		return limits
	case "ServiceAccount":
		return accounts
	case "ClusterRole", "Role":
		return roles
	case "ClusterRoleBinding", "RoleBinding":
		return bindings
	case "ConfigMap", "Secret":
		return configuration
	case "PersistentVolume":
		return volumes
	case "PersistentVolumeClaim":
		return claims
	case "Service":
		return services
	case "DaemonSet", "Deployment", "StatefulSet", "ReplicaSet", "Pod":
		return workloads
	case "Job", "CronJob":
		return jobs
	}
	return rest
}

// Order returns the objects in the order in which they can be applied; those of the same kind stay as they were.
func Order(objects []Object) []Object {
	out := slices.Clone(objects)
	slices.SortStableFunc(out, func(a, b Object) int { return rank(a) - rank(b) })
	return out
}

// Foundation reports whether the object is of a kind that workloads need before they can be made at all, and that holds
// nothing of their own.
func (o Object) Foundation() bool { return rank(o) < configuration }

// ClusterWide reports whether the object is of a kind of Kubernetes' own that belongs to no namespace. What a definition brings is
// taken for one of a namespace.
func (o Object) ClusterWide() bool {
	switch o.GetKind() {
	case "Namespace", "Node", "PersistentVolume", "CustomResourceDefinition", "APIService", "ClusterRole", "ClusterRoleBinding", "PriorityClass", "RuntimeClass",
		"StorageClass", "CSIDriver", "VolumeSnapshotClass", "VolumeSnapshotContent", "IngressClass", "GatewayClass", "MutatingWebhookConfiguration",
		"ValidatingWebhookConfiguration", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding":
		return true
	}
	return false
}

// Unique refuses two objects of the same name, of which the second would silently win. A namespace that is given is the
// one to which all of them are applied.
func Unique(objects []Object, namespace string) error {
	type id struct {
		group string
		Ref
	}
	seen := map[id]string{}
	for _, o := range objects {
		k := id{o.GroupVersionKind().Group, o.Ref()}
		if namespace != "" {
			k.Namespace = namespace
		}
		if first, ok := seen[k]; ok {
			return fault.WithRemedy(fault.Newf(fault.Invalid, "%s: %s is declared at %s already", o.Origin, o.Ref(), first), "keep one of them")
		}
		seen[k] = o.Origin
	}
	return nil
}
