package kubernetes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"sync"
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

// held are the Leases that this process holds, as it wrote them last: one is renewed without reading it, and whoever has
// changed it since makes that a conflict.
type held struct {
	mu     sync.Mutex
	leases map[string]*unstructured.Unstructured // namespace/name →
}

// by returns a Lease that a holder has.
func (h *held) by(holder, namespace, name string) *unstructured.Unstructured {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.leases[namespace+"/"+name]
	if l != nil && holderOf(l) != holder {
		return nil
	}
	return l
}

// set remembers a Lease; nil forgets it.
func (h *held) set(namespace, name string, l *unstructured.Unstructured) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if l == nil {
		delete(h.leases, namespace+"/"+name)
		return
	}
	if h.leases == nil {
		h.leases = map[string]*unstructured.Unstructured{}
	}
	l.SetManagedFields(nil)
	h.leases[namespace+"/"+name] = l
}

// Lock implements platform.Locker: the Lease of the application is what controllers in this or another cluster and engines
// of other machines see.
func (p *Platform) Lock(ctx context.Context, namespace, application, holder string, within time.Duration) (other string, err error) {
	in, name := p.dynamic.Resource(builtin("coordination.k8s.io", "v1", "leases")).Namespace(namespace), lockName(application)
	live := p.held.by(holder, namespace, name)
	for {
		if live == nil {
			live, err = in.Get(ctx, name, metav1.GetOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				return "", failed(err, "read Lease %s/%s", namespace, name)
			}
		}
		now := metav1.NewMicroTime(time.Now())
		l := &coordinationv1.Lease{TypeMeta: metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{managedBy: manager}, Annotations: map[string]string{"sluice.dev/application": application}}}
		if apierrors.IsNotFound(err) {
			live = nil
		} else {
			l = &coordinationv1.Lease{}
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(live.Object, l); err != nil {
				return "", err
			}
			if h := l.Spec.HolderIdentity; h != nil && *h != holder && !expired(l, now.Time) {
				return *h, nil
			}
		}
		seconds := int32(within / time.Second)
		l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.RenewTime = &holder, &seconds, &now
		body, err := runtime.DefaultUnstructuredConverter.ToUnstructured(l)
		if err != nil {
			return "", err
		}
		var written *unstructured.Unstructured
		if live == nil {
			written, err = in.Create(ctx, &unstructured.Unstructured{Object: body}, metav1.CreateOptions{FieldManager: manager})
		} else {
			written, err = in.Update(ctx, &unstructured.Unstructured{Object: body}, metav1.UpdateOptions{FieldManager: manager})
		}
		p.held.set(namespace, name, written)
		live = nil
		if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || l.ResourceVersion != "" && apierrors.IsNotFound(err) {
			continue // somebody was faster: who, the next look tells
		}
		return "", failed(err, "take Lease %s/%s, which locks application %q", namespace, name, application)
	}
}

func holderOf(l *unstructured.Unstructured) string {
	h, _, _ := unstructured.NestedString(l.Object, "spec", "holderIdentity")
	return h
}

func expired(l *coordinationv1.Lease, now time.Time) bool {
	s := l.Spec
	return s.RenewTime == nil || s.LeaseDurationSeconds == nil || now.After(s.RenewTime.Add(time.Duration(*s.LeaseDurationSeconds)*time.Second))
}

// Unlock implements platform.Locker.
func (p *Platform) Unlock(ctx context.Context, namespace, application, holder string) error {
	in, name := p.dynamic.Resource(builtin("coordination.k8s.io", "v1", "leases")).Namespace(namespace), lockName(application)
	p.held.set(namespace, name, nil)
	live, err := in.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return failed(err, "read Lease %s/%s", namespace, name)
	}
	if holderOf(live) != holder {
		return nil
	}
	uid, version := live.GetUID(), live.GetResourceVersion()
	err = in.Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &version}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return failed(err, "give Lease %s/%s back", namespace, name)
}
