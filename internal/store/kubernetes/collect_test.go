package kubernetes

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/delivery"
)

// TestCollect looks at uploads that are old: one whose delivery nobody has admitted yet, and those that no delivery goes by.
func TestCollect(t *testing.T) {
	f := newFake(t)
	s := f.open(t, f.config(t, "controller"))
	if _, err := s.c.submit(t.Context(), asking(t, "waits")); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"gone", "waits"} { // whoever uploaded these has died, or was too late
		if _, err := s.c.putParts(t.Context(), id, id+"-plan-other", []byte("x"), nil); err != nil {
			t.Fatal(err)
		}
	}
	var all []any
	for _, n := range f.names(secrets) {
		o, err := get[corev1.Secret](t.Context(), s.c, secrets, n)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
	s.collect(t.Context(), all, time.Now().Add(orphanAge/2))
	if left := f.names(secrets); len(left) != 3 {
		t.Errorf("of uploads that are half as old as they may become %q are left", left)
	}
	s.collect(t.Context(), all, time.Now().Add(2*orphanAge))
	if left := f.names(secrets); len(left) != 1 || !strings.HasPrefix(left[0], "waits-plan-") || slices.Contains(left, "waits-plan-other-1") {
		t.Errorf("of old uploads %q are left", left)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := s.mirrored(ctx, "waits", func(*v1alpha1.Delivery) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if err := s.Tend(ctx, "waits"); err != nil {
		t.Fatal(err)
	}
	if d, err := s.Load(ctx, "waits"); err != nil || d.Status.State != delivery.Pending {
		t.Errorf("the delivery that waited is %s: %s (%v)", d.Status.State, d.Status.Reason, err)
	}
}

// mirrored waits until a store knows a delivery as a test wants it.
func (s *Store) mirrored(ctx context.Context, id string, is func(*v1alpha1.Delivery) bool) error {
	events := s.hub.Watch(ctx)
	for {
		if d, err := s.present(id); err == nil && is(d) {
			return nil
		}
		if _, more := <-events; !more {
			return ctx.Err()
		}
	}
}
