package cli

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/store"
)

// inTheWay is a fake of what carries deliveries out: another delivery of the application keeps new ones from starting until it
// is done, which it is once somebody watches it.
type inTheWay struct {
	deliveries
	other   delivery.Status
	unknown bool
	stays   bool // its lock does not go
	started []string
	watched int
}

func (f *inTheWay) Start(_ context.Context, spec delivery.Spec) error {
	f.started = append(f.started, spec.ID)
	if f.other.Done && !f.stays {
		return nil
	}
	return &store.ErrRunning{ID: "other", Application: spec.Application}
}

func (f *inTheWay) Get(context.Context, string) (store.Delivery, error) {
	if f.unknown {
		return store.Delivery{}, fault.Newf(fault.NotFound, "there is no delivery")
	}
	return store.Delivery{Spec: delivery.Spec{ID: "other"}, Status: f.other}, nil
}

func (f *inTheWay) Watch(context.Context, string, func(server.Event)) error {
	f.watched++
	f.other.Done = true
	return nil
}

func TestStartBehindAnother(t *testing.T) {
	broken := delivery.Status{State: delivery.Failed, Nodes: map[string]delivery.NodeStatus{"x": {Phase: delivery.StepUndoFailed}}}
	accepted := broken
	accepted.Accepted = true
	for name, c := range map[string]struct {
		client  inTheWay
		waits   bool
		refused string // the remedy; "": it starts
	}{
		"runs":                      {inTheWay{other: delivery.Status{State: delivery.Running}}, false, "sluice deploy watch other"},
		"of another engine":         {inTheWay{unknown: true}, false, "another engine carries it out"},
		"cleans up":                 {inTheWay{other: delivery.Status{State: delivery.Failed}}, true, ""},
		"an undo failed":            {inTheWay{other: broken}, false, "sluice deploy retry other"},
		"a failed undo is accepted": {inTheWay{other: accepted}, true, ""},
		"is done, and in the way":   {inTheWay{other: delivery.Status{State: delivery.Failed, Done: true}, stays: true}, false, "sluice deploy watch other"},
	} {
		t.Run(name, func(t *testing.T) {
			var told bytes.Buffer
			a := &app{errs: &told}
			spec, err := a.inTurn(t.Context(), &c.client, delivery.Spec{ID: "0123456789abcdef", Application: "shop"})
			if (c.client.watched == 1) != c.waits || strings.Contains(told.String(), "cleans up") != c.waits {
				t.Errorf("it was waited for %d times, and told: %s", c.client.watched, told.String())
			}
			if c.refused == "" {
				if last := c.client.started[len(c.client.started)-1]; err != nil || spec.ID != last {
					t.Errorf("%s was started as %s: %v", spec.ID, last, err)
				}
				return
			}
			if e, ok := errors.AsType[*exit](err); !ok || e.code != exitRunning || !strings.Contains(e.Error(), c.refused) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}
