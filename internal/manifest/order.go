package manifest

import (
	"slices"

	"github.com/sluice-cd/sluice/internal/fault"
)

// order is what other objects need first. A kind that is not named comes last: it may be a custom one, whose controller is
// among the workloads.
var order = map[string]int{
	"Namespace":                1,
	"CustomResourceDefinition": 2,
	"PriorityClass":            3, "StorageClass": 3, "VolumeSnapshotClass": 3, "ResourceQuota": 3, "LimitRange": 3, "NetworkPolicy": 3,
	"ServiceAccount": 4,
	"ClusterRole":    5, "Role": 5,
	"ClusterRoleBinding": 6, "RoleBinding": 6,
	"ConfigMap": 7, "Secret": 7,
	"PersistentVolume":      8,
	"PersistentVolumeClaim": 9,
	"Service":               10,
	"DaemonSet":             11, "Deployment": 11, "StatefulSet": 11, "ReplicaSet": 11, "Pod": 11,
	"Job": 12, "CronJob": 12,
}

const last = 13

func rank(o Object) int {
	if r, ok := order[o.GetKind()]; ok {
		return r
	}
	return last
}

// Order returns the objects in the order in which they can be applied; those of the same kind stay as they were.
func Order(objects []Object) []Object {
	out := slices.Clone(objects)
	slices.SortStableFunc(out, func(a, b Object) int { return rank(a) - rank(b) })
	return out
}

// Foundation reports whether the object is of a kind that workloads need before they can be made at all, and that holds
// nothing of their own.
func (o Object) Foundation() bool { return rank(o) < order["ConfigMap"] }

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
