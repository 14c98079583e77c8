package kubernetes

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/delivery"
)

// tell records an Event where the phase of a delivery has changed, or the step that it is at. Its name follows from the
// revision, so that a write that is repeated tells nothing twice. Events are for people: one that cannot be written is only
// logged.
func (c *client) tell(ctx context.Context, old, d *v1alpha1.Delivery, log *slog.Logger) {
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
	if len(message) > 1000 {
		message = message[:1000]
	}
	now := metav1.NewTime(time.Now())
	e := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s.%d", d.Name, d.Status.Revision), Namespace: c.namespace},
		InvolvedObject: corev1.ObjectReference{APIVersion: v1alpha1.GroupVersion().String(), Kind: "Delivery", Namespace: d.Namespace, Name: d.Name, UID: d.UID},
		Reason:         reason, Message: message, Type: kind, Source: corev1.EventSource{Component: manager}, FirstTimestamp: now, LastTimestamp: now, Count: 1}
	if _, err := create(ctx, c, events, e); err != nil && !apierrors.IsAlreadyExists(err) && ctx.Err() == nil {
		log.Warn("an Event could not be recorded", "delivery", d.Name, "error", err)
	}
}
