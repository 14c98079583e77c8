package kubernetes

import (
	"context"
	"fmt"
	"slices"

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
	r, err := p.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	live, err := p.at(r, ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
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
	refs, err := p.namespaced(ctx, refs)
	if err != nil {
		return err
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
		r, err := p.find(ctx, ref)
		if err != nil {
			return err
		}
		in := p.at(r, ref.Namespace)
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

// namespaced leaves out what belongs to no namespace: a delivery that has applied it does not have it for itself.
func (p *Platform) namespaced(ctx context.Context, refs []manifest.Ref) ([]manifest.Ref, error) {
	var out []manifest.Ref
	for _, ref := range refs {
		r, err := p.find(ctx, ref)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		if err != nil || r.namespaced {
			out = append(out, ref)
		}
	}
	return out, nil
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

// retain keeps the claims of a StatefulSet that would go with it. Its controller does not let go of them while a pod is not
// ready, nor once the set is being deleted, so Sluice takes the set from their owners itself; and not before the controller has
// seen the new policy, because by the old one it would put the set back.
func (p *Platform) retain(ctx context.Context, in dynamic.ResourceInterface, live *unstructured.Unstructured) error {
	if templates, _, _ := unstructured.NestedSlice(live.Object, "spec", "volumeClaimTemplates"); len(templates) == 0 {
		return nil
	}
	if deletesClaims(live) {
		patch := []byte(`{"spec":{"persistentVolumeClaimRetentionPolicy":{"whenDeleted":"Retain"}}}`)
		_, err := in.Patch(ctx, live.GetName(), types.MergePatchType, patch, metav1.PatchOptions{FieldManager: manager})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	ref := manifest.Ref{Kind: "StatefulSet", Namespace: live.GetNamespace(), Name: live.GetName()}
	seen, err := p.soon(ctx, ref)
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return fmt.Errorf("%s is not deleted before it is known that its claims stay: %w", ref, err)
	case seen.GetUID() == live.GetUID() && deletesClaims(seen):
		return fault.WithRemedy(fault.Newf(fault.Conflict, "%s is not deleted: somebody has set whenDeleted: Delete again, which would delete its claims", ref),
			"set whenDeleted: Retain in its persistentVolumeClaimRetentionPolicy")
	}
	return p.freeClaims(ctx, ref, live.GetUID())
}

// deletesClaims reports whether the claims of a StatefulSet are to go with it.
func deletesClaims(set *unstructured.Unstructured) bool {
	when, _, _ := unstructured.NestedString(set.Object, "spec", "persistentVolumeClaimRetentionPolicy", "whenDeleted")
	return when == "Delete"
}

// freeClaims takes a StatefulSet from the owners of its claims, and believes it when it is read back.
func (p *Platform) freeClaims(ctx context.Context, set manifest.Ref, uid types.UID) error {
	in := p.dynamic.Resource(claims()).Namespace(set.Namespace)
	is := func(o metav1.OwnerReference) bool { return o.UID == uid }
	owned := func() ([]unstructured.Unstructured, error) {
		list, err := in.List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, failed(err, "list the claims of namespace %s", set.Namespace)
		}
		return slices.DeleteFunc(list.Items, func(c unstructured.Unstructured) bool { return !slices.ContainsFunc(c.GetOwnerReferences(), is) }), nil
	}
	all, err := owned()
	if err != nil {
		return err
	}
	for _, c := range all {
		ref := manifest.Ref{Kind: c.GetKind(), Namespace: c.GetNamespace(), Name: c.GetName()}
		err := p.patch(ctx, in, ref, func(now *unstructured.Unstructured) ([]operation, error) {
			if now.GetUID() != c.GetUID() || !slices.ContainsFunc(now.GetOwnerReferences(), is) {
				return nil, nil
			}
			rest := slices.DeleteFunc(now.GetOwnerReferences(), is)
			return []operation{{Op: "test", Path: "/metadata/uid", Value: now.GetUID()}, {Op: "add", Path: "/metadata/ownerReferences", Value: rest}}, nil
		})
		if err != nil && !fault.Is(err, fault.NotFound) {
			return fmt.Errorf("%s is not deleted, because its claim %s would go with it: %w", set, c.GetName(), err)
		}
	}
	if all, err = owned(); err != nil || len(all) == 0 {
		return err
	}
	return fault.WithRemedy(fault.Newf(fault.Conflict, "%s is not deleted: its claim %s would go with it, because somebody has made the set its owner again", set, all[0].GetName()),
		"take the set from the ownerReferences of its claims")
}
