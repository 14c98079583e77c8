package kubernetes

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/fault"
)

// orphanAge is how old a part of a plan may become that no delivery owns: whoever uploaded it has died since.
const orphanAge = time.Hour

// Tend does what is to be done for a delivery besides carrying it out: it admits one that is new, and lets one go that has
// ended.
func (s *Store) Tend(ctx context.Context, id string) error {
	d := s.mirror.delivery(s.c.namespace, id)
	switch {
	case d == nil:
		return nil
	case d.Status.Revision == 0:
		return s.Admit(ctx, id)
	case d.Status.Done:
		return s.release(ctx, d)
	}
	return nil
}

// Tended reports whether nothing is to be done for a delivery but to carry it out.
func (s *Store) Tended(id string) bool {
	d := s.mirror.delivery(s.c.namespace, id)
	return d == nil || d.Status.Revision > 0 && !(d.Status.Done && slices.Contains(d.Finalizers, finalizer))
}

// Untended returns the names of the deliveries that are not tended, oldest first.
func (s *Store) Untended() []string {
	var all []*v1alpha1.Delivery
	for id, d := range s.mirror.all() {
		if !s.Tended(id) {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b *v1alpha1.Delivery) int {
		return cmp.Or(a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	var out []string
	for _, d := range all {
		out = append(out, d.Name)
	}
	return out
}

// Application returns what a delivery delivers, "" where it is gone.
func (s *Store) Application(id string) string {
	if d := s.mirror.delivery(s.c.namespace, id); d != nil {
		return d.Spec.Application
	}
	return ""
}

// Collect deletes parts of plans that no delivery goes by an hour after they were made, until ctx ends.
func (s *Store) Collect(ctx context.Context) {
	kick := make(chan struct{}, 1)
	wake := func(any) {
		select {
		case kick <- struct{}{}:
		default:
		}
	}
	only := uploadLabel + "=true"
	i := cache.NewSharedIndexInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = only
			return list[corev1.SecretList](ctx, s.c, secrets, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector, o.Watch = only, true
			return s.c.core.Get().Namespace(s.c.namespace).Resource(secrets).VersionedParams(&o, metav1.ParameterCodec).Watch(ctx)
		},
	}, &corev1.Secret{}, 0, cache.Indexers{})
	_ = i.SetTransform(func(v any) (any, error) {
		if o, ok := v.(*corev1.Secret); ok {
			o.Data = nil
		}
		return lean(v)
	})
	_, _ = i.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: wake})
	done := make(chan struct{})
	go func() {
		defer close(done)
		i.RunWithContext(ctx)
	}()
	timer := time.NewTimer(orphanAge)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			<-done
			return
		case <-kick:
		case <-timer.C:
		}
		timer.Reset(s.collect(ctx, i.GetStore().List(), time.Now()))
	}
}

// collect deletes the orphans among some Secrets and returns when to look again.
func (s *Store) collect(ctx context.Context, all []any, now time.Time) time.Duration {
	next := orphanAge
	for _, v := range all {
		o, ok := v.(*corev1.Secret)
		if !ok || len(o.OwnerReferences) > 0 || o.Type != secretType {
			continue
		}
		if left := o.CreationTimestamp.Add(orphanAge).Sub(now); left > 0 {
			next = min(next, left)
			continue
		}
		if err := s.collectOne(ctx, o); err != nil {
			s.o.Log.Warn("an upload that nobody owns is not deleted; it is tried again", "secret", o.Name, "error", err)
			next = min(next, time.Minute)
		}
	}
	return next
}

// collectOne deletes a part of a plan, unless a delivery goes by it. One that nobody has admitted yet does not own its plan:
// while there was no controller it may have waited for longer than any upload takes.
func (s *Store) collectOne(ctx context.Context, o *corev1.Secret) error {
	if id := o.Labels[deliveryLabel]; id != "" {
		d, err := get[v1alpha1.Delivery](ctx, s.c, deliveries, id)
		if err != nil && !fault.Is(err, fault.NotFound) || err == nil && slices.Contains(d.Spec.Plan.Secrets, o.Name) {
			return err
		}
	}
	return s.c.remove(ctx, secrets, o.Name, o.UID)
}

// Key returns a random key of 32 bytes that is kept in a Secret of the namespace, made at its first use.
func (s *Store) Key(ctx context.Context, name string) ([]byte, error) {
	for {
		o, err := get[corev1.Secret](ctx, s.any, secrets, name)
		if err == nil {
			if key := o.Data["key"]; len(key) == sha256.Size {
				return key, nil
			}
			return nil, fault.WithRemedy(fault.Newf(fault.Lost, "Secret %s/%s is damaged", s.c.namespace, name), "delete it: what was handed out under the old key stops working")
		}
		if !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		key := make([]byte, sha256.Size)
		// rand.Read never returns an error and always fills the slice.
		_, _ = rand.Read(key)
		fixed := true
		_, err = create(ctx, s.any, secrets, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.c.namespace}, Immutable: &fixed, Data: map[string][]byte{"key": key}})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return nil, err
		}
	}
}
