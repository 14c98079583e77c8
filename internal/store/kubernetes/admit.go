package kubernetes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/store"
)

// Admit takes in a delivery that somebody has created in the cluster: it begins, waits in the queue, or is refused because
// another one of its application runs. One that is admitted already stays as it is, and so does one that is gone.
func (s *Store) Admit(ctx context.Context, id string) error {
	d := s.mirror.delivery(s.c.namespace, id)
	if d == nil || d.Status.Revision > 0 {
		return nil
	}
	spec, err := s.c.plan(ctx, d)
	if err != nil {
		if fault.Is(err, fault.Transient) || ctx.Err() != nil {
			return err
		}
		return s.refuse(ctx, d, "it cannot be carried out: "+err.Error())
	}
	if _, err = s.admit(ctx, d, spec); fault.Is(err, fault.Denied) {
		return s.refuse(ctx, d, "it cannot be carried out: "+err.Error())
	}
	return err
}

// refuse ends a delivery that cannot begin.
func (s *Store) refuse(ctx context.Context, d *v1alpha1.Delivery, why string) error {
	_, err := s.first(ctx, d, delivery.Status{State: delivery.Failed, Reason: why, Done: true, Ended: d.CreationTimestamp.UTC()}, nil)
	return err
}

// admit decides whether a delivery begins, and writes its first status.
func (s *Store) admit(ctx context.Context, d *v1alpha1.Delivery, spec delivery.Spec) (*v1alpha1.Delivery, error) {
	if err := s.c.own(ctx, d); err != nil {
		return nil, err
	}
	holder, err := s.c.take(ctx, d)
	if err != nil {
		return nil, err
	}
	st := delivery.Status{State: delivery.Pending}
	d = d.DeepCopy()
	if holder != "" {
		d.Status.BlockedBy = holder
		st = delivery.Status{State: delivery.Queued, Reason: "waits for delivery " + holder}
		if !spec.EnqueueOne {
			running := &store.ErrRunning{ID: holder, Application: spec.Application}
			st = delivery.Status{State: delivery.Failed, Reason: running.Error(), Done: true, Ended: d.CreationTimestamp.UTC()}
		} else if err := s.replaceQueued(ctx, d); err != nil {
			return nil, err
		}
	}
	data, err := json.Marshal(map[string]string{"spec": d.Spec.Plan.SHA256, "by": spec.By})
	if err != nil {
		return nil, err
	}
	at := spec.CreatedAt
	if at.IsZero() {
		at = d.CreationTimestamp.UTC()
	}
	return s.first(ctx, d, st, []store.Record{{Kind: "created", At: at, Data: data}})
}

// first writes the first status of a delivery, unless somebody else has.
func (s *Store) first(ctx context.Context, d *v1alpha1.Delivery, st delivery.Status, records []store.Record) (*v1alpha1.Delivery, error) {
	blocked, now := d.Status.BlockedBy, d.DeepCopy()
	now.Status.BlockedBy = ""
	if !st.Done && !slices.Contains(d.Finalizers, finalizer) && d.DeletionTimestamp == nil {
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": d.ResourceVersion, "finalizers": append(slices.Clone(d.Finalizers), finalizer)}})
		if err != nil {
			return nil, err
		}
		held, err := merge[v1alpha1.Delivery](ctx, s.c, deliveries, d.Name, patch)
		if err != nil && !apierrors.IsConflict(err) {
			return nil, err
		}
		if err == nil {
			now = held
		}
	}
	for {
		if now.Status.Revision > 0 {
			s.mirror.wrote(now)
			return now, nil
		}
		before := now.DeepCopy()
		now.Status.Revision, now.Status.BlockedBy = 1, blocked
		if err := s.c.journal(ctx, now, records); err != nil {
			return nil, err
		}
		if err := s.c.write(ctx, now, st); err != nil {
			return nil, err
		}
		made, err := update(ctx, s.c, deliveries, now.Name, "status", now)
		if err == nil {
			s.mirror.wrote(made)
			s.tell(before, made)
			return made, nil
		}
		if !apierrors.IsConflict(err) {
			return nil, err
		}
		if now, err = get[v1alpha1.Delivery](ctx, s.c, deliveries, d.Name); err != nil {
			return nil, err
		}
	}
}

// release takes the finalizer away from a delivery that has ended: it may be deleted without anybody's help.
func (s *Store) release(ctx context.Context, d *v1alpha1.Delivery) error {
	for {
		i := slices.Index(d.Finalizers, finalizer)
		if i < 0 {
			return nil
		}
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": d.ResourceVersion, "finalizers": slices.Delete(slices.Clone(d.Finalizers), i, i+1)}})
		if err != nil {
			return err
		}
		_, err = merge[v1alpha1.Delivery](ctx, s.c, deliveries, d.Name, patch)
		if err == nil || fault.Is(err, fault.NotFound) {
			return nil
		}
		if !apierrors.IsConflict(err) {
			return err
		}
		if d, err = get[v1alpha1.Delivery](ctx, s.c, deliveries, d.Name); err != nil {
			return err
		}
	}
}

// replaceQueued cancels the deliveries of the application that wait in the queue.
func (s *Store) replaceQueued(ctx context.Context, by *v1alpha1.Delivery) error {
	all, err := list[v1alpha1.DeliveryList](ctx, s.c, deliveries, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.application", by.Spec.Application).String()})
	if err != nil {
		return err
	}
	for i := range all.Items {
		d := &all.Items[i]
		if d.Name == by.Name || d.Status.Phase != string(delivery.Queued) || d.Status.Done {
			continue
		}
		s.mirror.wrote(d)
		st := delivery.Status{State: delivery.Cancelled, Done: true, Ended: by.CreationTimestamp.UTC(), Reason: "replaced in the queue by delivery " + by.Name}
		if _, err := s.Swap(ctx, d.Name, store.Revision(d.Status.Revision), st, nil); err != nil && !fault.Is(err, fault.Conflict) {
			return err
		}
	}
	return nil
}

// applicationLease is what the Lease of an application is called.
func applicationLease(application string) string {
	sum := sha256.Sum256([]byte(application))
	return "sluice-application-" + hex.EncodeToString(sum[:8])
}

// take makes a delivery be the one that runs of its application, or returns which one does. The Lease is never given back:
// a delivery that has ended, or is gone, holds nothing.
func (c *client) take(ctx context.Context, d *v1alpha1.Delivery) (holder string, err error) {
	name := applicationLease(d.Spec.Application)
	for {
		now := metav1.NewMicroTime(time.Now())
		l, err := get[coordinationv1.Lease](ctx, c, leases, name)
		if fault.Is(err, fault.NotFound) {
			l = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: c.namespace, Annotations: map[string]string{"sluice.dev/application": d.Spec.Application}},
				Spec: coordinationv1.LeaseSpec{HolderIdentity: &d.Name, AcquireTime: &now}}
			if _, err = create(ctx, c, leases, l); apierrors.IsAlreadyExists(err) {
				continue
			}
			return "", err
		}
		if err != nil {
			return "", err
		}
		if h := l.Spec.HolderIdentity; h != nil && *h == d.Name {
			return "", nil
		} else if h != nil {
			other, err := get[v1alpha1.Delivery](ctx, c, deliveries, *h)
			if err == nil && !other.Status.Done {
				return *h, nil
			}
			if err != nil && !fault.Is(err, fault.NotFound) {
				return "", err
			}
		}
		l.Spec.HolderIdentity, l.Spec.AcquireTime = &d.Name, &now
		if _, err = update(ctx, c, leases, name, "", l); apierrors.IsConflict(err) {
			continue
		}
		return "", err
	}
}
