package kubernetes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// lockName is the Lease of an application in a namespace.
func lockName(application string) string {
	sum := sha256.Sum256([]byte(application))
	return "sluice-delivers-" + hex.EncodeToString(sum[:8])
}

// Lock implements platform.Locker: the Lease of the application is what controllers in this or another cluster and engines
// of other machines see.
func (p *Platform) Lock(ctx context.Context, namespace, application, holder string, within time.Duration) (other string, err error) {
	in, name := p.dynamic.Resource(builtin("coordination.k8s.io", "v1", "leases")).Namespace(namespace), lockName(application)
	for {
		now, seconds := metav1.NewMicroTime(time.Now()), int32(within/time.Second)
		l := &coordinationv1.Lease{TypeMeta: metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{managedBy: manager}, Annotations: map[string]string{"sluice.dev/application": application}}}
		live, err := in.Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			live = nil
		case err != nil:
			return "", failed(err, "read Lease %s/%s", namespace, name)
		default:
			l = &coordinationv1.Lease{}
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(live.Object, l); err != nil {
				return "", err
			}
			if h := l.Spec.HolderIdentity; h != nil && *h != holder && !expired(l, now.Time) {
				return *h, nil
			}
		}
		l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.RenewTime = &holder, &seconds, &now
		body, err := runtime.DefaultUnstructuredConverter.ToUnstructured(l)
		if err != nil {
			return "", err
		}
		if live == nil {
			_, err = in.Create(ctx, &unstructured.Unstructured{Object: body}, metav1.CreateOptions{FieldManager: manager})
		} else {
			_, err = in.Update(ctx, &unstructured.Unstructured{Object: body}, metav1.UpdateOptions{FieldManager: manager})
		}
		if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
			continue // somebody was faster: who, the next look tells
		}
		return "", failed(err, "take Lease %s/%s, which locks application %q", namespace, name, application)
	}
}

func expired(l *coordinationv1.Lease, now time.Time) bool {
	s := l.Spec
	return s.RenewTime == nil || s.LeaseDurationSeconds == nil || now.After(s.RenewTime.Add(time.Duration(*s.LeaseDurationSeconds)*time.Second))
}

// Unlock implements platform.Locker.
func (p *Platform) Unlock(ctx context.Context, namespace, application, holder string) error {
	in, name := p.dynamic.Resource(builtin("coordination.k8s.io", "v1", "leases")).Namespace(namespace), lockName(application)
	live, err := in.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return failed(err, "read Lease %s/%s", namespace, name)
	}
	if h, _, _ := unstructured.NestedString(live.Object, "spec", "holderIdentity"); h != holder {
		return nil
	}
	uid, version := live.GetUID(), live.GetResourceVersion()
	err = in.Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &version}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return failed(err, "give Lease %s/%s back", namespace, name)
}
