package kubernetes

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
)

// stateLimit is how large a packed state may be to stand in the status itself: an object in etcd is limited to 1.5 MiB.
const stateLimit = 256 << 10

// state reads the state of a delivery; one that is not admitted yet is pending.
func (c *client) state(ctx context.Context, d *v1alpha1.Delivery) (delivery.Status, error) {
	s := delivery.Status{State: delivery.Pending}
	packed := d.Status.State
	var body []byte
	var err error
	switch {
	case len(d.Status.StateSecrets) > 0:
		if body, err = c.parts(ctx, d.Status.StateSecrets); err != nil {
			return s, fmt.Errorf("read the state of delivery %s: %w", d.Name, err)
		}
	case len(packed) > 0:
		body, err = unpack(packed)
	default:
		return s, nil
	}
	if err == nil {
		s = delivery.Status{}
		err = json.Unmarshal(body, &s)
	}
	if err != nil {
		return s, fault.Newf(fault.Lost, "the state of delivery %s cannot be read: %w", d.Name, err)
	}
	return s, nil
}

// current reads the state of a delivery as it was known, or as it is now where the Secrets of the known one are gone because it has
// gone on since. It returns the delivery that the state is of.
func (c *client) current(ctx context.Context, d *v1alpha1.Delivery) (*v1alpha1.Delivery, delivery.Status, error) {
	for {
		st, err := c.state(ctx, d)
		if !fault.Is(err, fault.Lost) {
			return d, st, err
		}
		now, gone := get[v1alpha1.Delivery](ctx, c, deliveries, d.Name)
		if gone != nil {
			return d, st, gone
		}
		if now.UID == d.UID && now.Status.Revision == d.Status.Revision {
			return d, st, err
		}
		d = now
	}
}

// summary is what a delivery shows of its state to those who may not read its Secrets.
func summary(d *v1alpha1.Delivery) delivery.Status {
	from := d.Status
	s := delivery.Status{State: cmp.Or(delivery.State(from.Phase), delivery.Pending), Reason: from.Reason, Done: from.Done}
	s.Paused = s.State == delivery.Paused
	var since time.Time
	if from.Since != nil {
		since = from.Since.UTC()
	}
	switch {
	case s.State.Final():
		s.Ended = since
	case from.Step != "":
		s.Nodes = map[string]delivery.NodeStatus{from.Step: {Phase: delivery.StepRunning, Started: since}}
	}
	return s
}

// write puts a state into a delivery that is the caller's own, with what people and other programs read of it.
func (c *client) write(ctx context.Context, d *v1alpha1.Delivery, s delivery.Status) error {
	body, err := json.Marshal(s)
	if err != nil {
		return err
	}
	packed, err := pack(body)
	if err != nil {
		return err
	}
	st := &d.Status
	st.State, st.StateSecrets = packed, nil
	if len(packed) > stateLimit {
		// The Secrets are written first, under names that the revision and what they hold decide: until the status names them nobody reads them.
		st.State = nil
		if st.StateSecrets, err = c.putParts(ctx, d.Name, fmt.Sprintf("%s-state-%d", d.Name, st.Revision), packed, d); err != nil {
			return err
		}
	}
	st.ObservedGeneration = d.Generation
	st.Phase, st.Reason, st.Done = string(s.State), s.Reason, s.Done
	describe(st, d.Spec.Steps, s)
	conditions(d, s)
	return nil
}

// describe tells at which step a delivery is: the last that began and has not ended, else the last that began.
func describe(st *v1alpha1.DeliveryStatus, steps []v1alpha1.Step, s delivery.Status) {
	st.Target, st.Step, st.Since = "", "", nil
	at := s.Started
	var last delivery.NodeStatus
	for _, step := range steps {
		n, ok := s.Nodes[step.Path]
		if !ok || n.Order == 0 || st.Step != "" && !later(n, last) {
			continue
		}
		last, st.Step, st.Target = n, step.Path, step.Target
		at = n.Started
		if !n.Ended.IsZero() {
			at = n.Ended
		}
	}
	if s.State.Final() && !s.Ended.IsZero() {
		at = s.Ended
	}
	if !at.IsZero() {
		st.Since = &metav1.Time{Time: at.Truncate(time.Second)}
	}
}

func later(a, b delivery.NodeStatus) bool {
	if o := open(a.Phase) - open(b.Phase); o != 0 {
		return o > 0
	}
	return a.Order > b.Order
}

func open(p delivery.Phase) int {
	switch p {
	case delivery.StepRunning, delivery.StepWaiting, delivery.StepUndoing:
		return 1
	default:
		return 0
	}
}

// waitingForLock is the reason of conditions and Events of a delivery that does nothing because another one, of another engine,
// goes to the same place.
const waitingForLock = "WaitingForLock"

// mostMessage is how long the message of a condition may become.
const mostMessage = 1024

// conditions are what kubectl wait, kstatus and Argo CD's health understand.
func conditions(d *v1alpha1.Delivery, s delivery.Status) {
	ready, moving, stalled := metav1.ConditionFalse, metav1.ConditionTrue, metav1.ConditionFalse
	stuck := ""
	switch s.State {
	case delivery.Succeeded:
		ready, moving = metav1.ConditionTrue, metav1.ConditionFalse
	case delivery.Failed, delivery.Cancelled:
		moving, stalled, stuck = metav1.ConditionFalse, metav1.ConditionTrue, string(s.State)
	default:
		for _, n := range s.Nodes {
			if n.Phase == delivery.StepUndoFailed && !s.Accepted {
				stalled, stuck = metav1.ConditionTrue, "UndoFailed"
			}
		}
	}
	is := string(s.State)
	if s.Waits != "" && !s.State.Final() {
		is = waitingForLock
	}
	message := cmp.Or(s.Reason, d.Status.Step)
	for kind, c := range map[string]struct {
		is     metav1.ConditionStatus
		reason string
	}{"Ready": {ready, is}, "Reconciling": {moving, is}, "Stalled": {stalled, cmp.Or(stuck, "NotStalled")}} {
		meta.SetStatusCondition(&d.Status.Conditions, metav1.Condition{Type: kind, Status: c.is, ObservedGeneration: d.Generation,
			Reason: cmp.Or(c.reason, string(delivery.Pending)), Message: cut(message, mostMessage)})
	}
}
