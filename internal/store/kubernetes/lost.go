package kubernetes

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
)

// Reasons of conditions and Events of a delivery that cannot go on because the Secrets that it goes by are gone or damaged.
const (
	planLost  = "PlanLost"
	stateLost = "StateLost"
	letGo     = "LetGo" // and it was deleted
)

// lost tells of a delivery that cannot be read, in an Event, its condition Stalled and its reason. Its state it leaves as it
// is: whoever puts the Secrets back has it go on. One that is being deleted is let go, as nobody can take it back any more.
func (s *Store) lost(ctx context.Context, d *v1alpha1.Delivery, reason string, err error) error {
	if !fault.Is(err, fault.Lost) {
		return err
	}
	err = remedied(err)
	switch {
	case d.DeletionTimestamp != nil:
		s.letGo(ctx, d, err)
		return err
	case d.Status.Done || stalledBy(d) == reason:
		return err
	}
	now := d.DeepCopy()
	now.Status.Reason = err.Error()
	meta.SetStatusCondition(&now.Status.Conditions, metav1.Condition{Type: "Stalled", Status: metav1.ConditionTrue, ObservedGeneration: d.Generation,
		Reason: reason, Message: cut(err.Error(), mostMessage)})
	if s.tellStalled(ctx, now) {
		s.event(d, fmt.Sprintf("%s.%d.lost", d.Name, d.Status.Revision), corev1.EventTypeWarning, reason, err.Error())
	}
	return err
}

// remedied adds to the error of a delivery that is lost what can be done.
func remedied(err error) error {
	if !fault.Is(err, fault.Lost) {
		return err
	}
	return fault.WithRemedy(err, "put the Secret back from a backup, or delete the Delivery: what it has changed stays as it is then")
}

// found takes back what lost has told, once a delivery can be read again.
func (s *Store) found(ctx context.Context, d *v1alpha1.Delivery, st delivery.Status) {
	if why := stalledBy(d); why != planLost && why != stateLost {
		return
	}
	now := d.DeepCopy()
	now.Status.Reason = st.Reason
	conditions(now, st)
	s.tellStalled(ctx, now)
}

func stalledBy(d *v1alpha1.Delivery) string {
	if c := meta.FindStatusCondition(d.Status.Conditions, "Stalled"); c != nil {
		return c.Reason
	}
	return ""
}

// tellStalled writes what people read of a status. Where that is not possible it is tried again when the delivery is read
// the next time: its state is as it was.
func (s *Store) tellStalled(ctx context.Context, d *v1alpha1.Delivery) bool {
	made, err := update(ctx, s.c, deliveries, d.Name, "status", d)
	if err != nil {
		if ctx.Err() == nil {
			s.o.Log.Warn("whether a delivery is lost could not be told; it is tried again", "delivery", d.Name, "error", err)
		}
		return false
	}
	s.mirror.wrote(made)
	return true
}

// letGo takes the finalizer away from a delivery that is lost and being deleted, and tells what it leaves.
func (s *Store) letGo(ctx context.Context, d *v1alpha1.Delivery, why error) {
	if !slices.Contains(d.Finalizers, finalizer) {
		return
	}
	left := "it had begun no step"
	if at := d.Status.Step; at != "" {
		left = fmt.Sprintf("what its steps have changed up to %s stays as it is: look after target %s", at, d.Status.Target)
	}
	s.event(d, fmt.Sprintf("%s.%d.let-go", d.Name, d.Status.Revision), corev1.EventTypeWarning, letGo, fmt.Sprintf("it is deleted and not taken back, because %v; %s", why, left))
	if err := s.release(ctx, d); err != nil && ctx.Err() == nil {
		s.o.Log.Warn("a delivery that is lost and being deleted keeps its finalizer; it is tried again", "delivery", d.Name, "error", err)
	}
}
