package kubernetes

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// Get implements platform.Getter.
func (p *Platform) Get(ctx context.Context, ref manifest.Ref) (manifest.Object, error) {
	live, err := p.read(ctx, ref)
	if err != nil {
		return manifest.Object{}, err
	}
	live.SetManagedFields(nil)
	return manifest.Object{Unstructured: *live, Origin: ref.String()}, nil
}

func (p *Platform) read(ctx context.Context, ref manifest.Ref) (*unstructured.Unstructured, error) {
	in, err := p.where(ref)
	if err != nil {
		return nil, err
	}
	live, err := in.Get(ctx, ref.Name, metav1.GetOptions{})
	return live, failed(err, "read %s", ref)
}

// List implements platform.Getter. With no namespace it lists those of all.
func (p *Platform) List(ctx context.Context, kind, namespace string) ([]manifest.Object, error) {
	in, err := p.where(manifest.Ref{Kind: kind, Namespace: namespace})
	if err != nil {
		return nil, err
	}
	list, err := in.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, failed(err, "list the %ss of namespace %s", kind, namespace)
	}
	var out []manifest.Object
	for _, o := range list.Items {
		o.SetManagedFields(nil)
		m := manifest.Object{Unstructured: o}
		m.Origin = m.Ref().String()
		out = append(out, m)
	}
	return out, nil
}

// Delete implements platform.Deleter. The workloads' pods end before they do, so that what is gone has stopped.
func (p *Platform) Delete(ctx context.Context, _, delivery string, refs []manifest.Ref) error {
	if len(refs) == 0 {
		return nil
	}
	for _, ref := range refs {
		live, err := p.read(ctx, ref)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if of := live.GetLabels()[deliveryLabel]; of != labelValue(delivery) {
			return fault.Newf(fault.Denied, "%s belongs to delivery %q, not to %s", ref, of, delivery)
		}
		if ref.Kind == "PersistentVolumeClaim" && live.GetLabels()[protectedLabel] != "" {
			return fault.Newf(fault.Denied, "%s is protected until %s", ref, live.GetLabels()[protectedLabel])
		}
	}
	for _, ref := range refs {
		in, err := p.where(ref)
		if err != nil {
			return err
		}
		live, err := in.Get(ctx, ref.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && live.GetLabels()[deliveryLabel] != labelValue(delivery) {
			continue
		}
		if err == nil {
			err = p.deleteLive(ctx, in, live)
		}
		if err != nil {
			return failed(err, "delete %s", ref)
		}
	}
	return nil
}

// protectedLabel is on claims whose volumes must outlive the delivery.
const protectedLabel = "sluice.dev/protected"

// deleteLive deletes exactly the object that was read. A workload goes after its pods.
func (p *Platform) deleteLive(ctx context.Context, in dynamic.ResourceInterface, live *unstructured.Unstructured) error {
	if live.GetDeletionTimestamp() != nil {
		return nil
	}
	if live.GetKind() == "StatefulSet" {
		if err := p.retain(ctx, in, live); err != nil {
			return err
		}
	}
	uid, policy := live.GetUID(), metav1.DeletePropagationBackground
	if templateOf(live.GetKind()) != nil {
		policy = metav1.DeletePropagationForeground
	}
	err := in.Delete(ctx, live.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}, PropagationPolicy: &policy})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// retain keeps the claims of a StatefulSet that would go with it.
func (p *Platform) retain(ctx context.Context, in dynamic.ResourceInterface, live *unstructured.Unstructured) error {
	when, _, _ := unstructured.NestedString(live.Object, "spec", "persistentVolumeClaimRetentionPolicy", "whenDeleted")
	if when != "Delete" {
		return nil
	}
	patch := []byte(`{"spec":{"persistentVolumeClaimRetentionPolicy":{"whenDeleted":"Retain"}}}`)
	_, err := in.Patch(ctx, live.GetName(), types.MergePatchType, patch, metav1.PatchOptions{FieldManager: manager})
	return err
}
