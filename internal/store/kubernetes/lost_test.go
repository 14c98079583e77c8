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
	"github.com/sluice-cd/sluice/internal/fault"
)

// TestLost takes a Secret from a delivery, puts it back, takes it again and deletes the delivery.
func TestLost(t *testing.T) {
	for reason, of := range map[string]func(*v1alpha1.Delivery) string{
		planLost:  func(d *v1alpha1.Delivery) string { return d.Spec.Plan.Secrets[0] },
		stateLost: func(d *v1alpha1.Delivery) string { return d.Status.StateSecrets[0] },
	} {
		t.Run(reason, func(t *testing.T) {
			f := newFake(t)
			first := f.open(t, f.config(t, "controller"))
			if _, err := first.Create(t.Context(), asking(t, "d")); err != nil {
				t.Fatal(err)
			}
			st, _ := large(t, "it waits for an approval")
			st.Nodes = map[string]delivery.NodeStatus{approval: {Phase: delivery.StepWaiting, Order: 1}}
			if _, err := first.Swap(t.Context(), "d", 1, st, nil); err != nil {
				t.Fatal(err)
			}
			now := func() *v1alpha1.Delivery {
				t.Helper()
				d, err := get[v1alpha1.Delivery](t.Context(), first.c, deliveries, "d")
				if err != nil {
					t.Fatal(err)
				}
				return d
			}
			part, err := get[corev1.Secret](t.Context(), first.c, secrets, of(now()))
			if err != nil {
				t.Fatal(err)
			}
			s := f.open(t, f.config(t, "controller")) // one that leads since, and has read nothing
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			missing := func() {
				t.Helper()
				s.specs.remove("d")
				if err := s.c.remove(ctx, secrets, part.Name, ""); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					if _, err := s.Load(ctx, "d"); !fault.Is(err, fault.Lost) || !strings.Contains(err.Error(), "backup") {
						t.Fatalf("a delivery that is lost: %v", err)
					}
				}
				if d := now(); stalledBy(d) != reason || !strings.Contains(d.Status.Reason, part.Name) || d.Status.Revision != 2 {
					t.Fatalf("its status tells %q, %q", stalledBy(d), d.Status.Reason)
				}
			}
			missing()
			part.ResourceVersion, part.UID = "", ""
			if _, err := create(ctx, s.c, secrets, part); err != nil {
				t.Fatal(err)
			}
			if d, err := s.Load(ctx, "d"); err != nil || d.Status.Cancel != st.Cancel {
				t.Fatalf("with its Secret the delivery is %+v (%v)", d.Status, err)
			}
			if d := now(); stalledBy(d) != "NotStalled" || d.Status.Reason != st.Reason {
				t.Errorf("its status tells %q, %q", stalledBy(d), d.Status.Reason)
			}
			missing()
			if err := s.c.remove(ctx, deliveries, "d", ""); err != nil {
				t.Fatal(err)
			}
			if err := s.mirrored(ctx, "d", func(d *v1alpha1.Delivery) bool { return d.DeletionTimestamp != nil }); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Load(ctx, "d"); !fault.Is(err, fault.Lost) {
				t.Fatalf("a delivery that is lost and being deleted: %v", err)
			}
			if left := f.names(deliveries); len(left) != 0 {
				t.Errorf("left is %q", left)
			}
			var reasons []string
			for _, e := range told(t, s.c, 2, func(e corev1.Event) bool { return e.Type == corev1.EventTypeWarning }) {
				reasons = append(reasons, e.Reason)
				if e.Reason == letGo && (!strings.Contains(e.Message, approval) || !strings.Contains(e.Message, "target prod")) {
					t.Errorf("told is %q", e.Message)
				}
			}
			if want := []string{letGo, reason}; !slices.Equal(slices.Sorted(slices.Values(reasons)), want) {
				t.Errorf("told are %q, not %q", reasons, want)
			}
		})
	}
}
