package kubernetes

import (
	"cmp"
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/delivery"
)

// mostEvents is how many Events may wait to be written.
const mostEvents = 4096

// tell records an Event where the phase of a delivery has changed, or the step that it is at.
func (s *Store) tell(old, d *v1alpha1.Delivery) {
	var reason, message string
	switch was, is := old.Status, d.Status; {
	case was.Phase != is.Phase:
		reason, message = is.Phase, cmp.Or(is.Reason, is.Step, "the delivery is "+is.Phase)
	case was.Step != is.Step && is.Step != "":
		reason, message = "Step", fmt.Sprintf("%s (target %s)", is.Step, is.Target)
	default:
		return
	}
	kind := corev1.EventTypeNormal
	switch d.Status.Phase {
	case string(delivery.Failed), string(delivery.RollingBack):
		kind = corev1.EventTypeWarning
	}
	// The name follows from the revision, so that a write that is repeated tells nothing twice.
	s.event(d, fmt.Sprintf("%s.%d", d.Name, d.Status.Revision), kind, reason, message)
}

// event has an Event of a delivery be written, which nothing waits for: Events are for people, the status is what holds.
func (s *Store) event(d *v1alpha1.Delivery, name, kind, reason, message string) {
	if len(message) > 1000 {
		message = message[:1000]
	}
	now := metav1.NewTime(time.Now())
	e := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: d.Namespace},
		InvolvedObject: corev1.ObjectReference{APIVersion: v1alpha1.GroupVersion().String(), Kind: "Delivery", Namespace: d.Namespace, Name: d.Name, UID: d.UID},
		Reason:         reason, Message: message, Type: kind, Source: corev1.EventSource{Component: manager}, FirstTimestamp: now, LastTimestamp: now, Count: 1}
	select {
	case s.events <- e:
	default:
		s.o.Log.Warn("an Event is dropped, too many wait to be recorded", "delivery", d.Name, "reason", reason, "message", message)
	}
}

// record writes Events one after another until ctx ends.
func (s *Store) record(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-s.events:
			if _, err := create(ctx, s.c, events, e); err != nil && !apierrors.IsAlreadyExists(err) && ctx.Err() == nil {
				s.o.Log.Warn("an Event could not be recorded", "delivery", e.InvolvedObject.Name, "error", err)
			}
		}
	}
}
