package kubernetes

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/store"
)

// mostEvents is how many Events may wait to be written.
const mostEvents = 4096

// tell records an Event where the phase of a delivery has changed, or the step that it is at, or where it began to wait for a lock.
func (s *Store) tell(old, d *v1alpha1.Delivery) {
	var reason, message string
	switch was, is := old.Status, d.Status; {
	case waits(is) && !waits(was):
		reason, message = waitingForLock, is.Reason
	case was.Phase != is.Phase:
		reason, message = is.Phase, cmp.Or(is.Reason, is.Step, "the delivery is "+is.Phase)
	case was.Step != is.Step && is.Step != "":
		reason, message = "Step", fmt.Sprintf("%s (target %s)", is.Step, is.Target)
	default:
		return
	}
	kind := corev1.EventTypeNormal
	switch reason {
	case string(delivery.Failed), string(delivery.RollingBack), waitingForLock:
		kind = corev1.EventTypeWarning
	}
	// The name follows from the revision, so that a write that is repeated tells nothing twice.
	s.event(d, fmt.Sprintf("%s.%d", d.Name, d.Status.Revision), kind, reason, message)
}

func waits(s v1alpha1.DeliveryStatus) bool {
	c := meta.FindStatusCondition(s.Conditions, "Ready")
	return c != nil && c.Reason == waitingForLock
}

// tellRefused records an Event for each action that a delivery did not take in.
func (s *Store) tellRefused(d *v1alpha1.Delivery, records []store.Record) {
	for i, r := range records {
		var not store.Refusal
		if r.Kind != store.Refused || json.Unmarshal(r.Data, &not) != nil {
			continue
		}
		s.event(d, fmt.Sprintf("%s.%d.refused-%d", d.Name, d.Status.Revision, i), corev1.EventTypeWarning, "ActionRefused",
			fmt.Sprintf("%s by %s: %s", strings.TrimSpace(not.Signal.Kind+" "+not.Signal.Path), cmp.Or(not.Signal.By, "nobody"), not.Why))
	}
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
