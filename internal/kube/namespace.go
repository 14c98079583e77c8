package kube

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/sluice-cd/sluice/internal/fault"
)

// OwnNamespace makes a namespace of Sluice's own for a delivery, where copies run that nobody else should see. One that
// somebody else made is refused.
func OwnNamespace(ctx context.Context, client dynamic.Interface, account, name, delivery string) error {
	in := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"})
	live, err := in.Create(ctx, &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace",
		"metadata": map[string]any{"name": name, "labels": map[string]any{ManagedByLabel: Manager, DeliveryLabel: LabelValue(delivery)}}}},
		metav1.CreateOptions{FieldManager: Manager})
	if apierrors.IsAlreadyExists(err) {
		live, err = in.Get(ctx, name, metav1.GetOptions{})
	}
	if err != nil {
		return Fault(err, "make namespace %s in account %s", name, account)
	}
	if live.GetLabels()[ManagedByLabel] != Manager {
		return fault.WithRemedy(fault.Newf(fault.Denied, "namespace %s of account %s is where a copy of its own would run, and somebody else made it", name, account),
			"rename it, or delete it if nothing needs it: Sluice makes it with the label %s=%s", ManagedByLabel, Manager)
	}
	if live.GetDeletionTimestamp() != nil {
		return fault.Newf(fault.Conflict, "namespace %s of account %s is being deleted: wait until it is gone", name, account)
	}
	return nil
}
