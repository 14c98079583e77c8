package kubernetes

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/step"
)

const approval = "prod/deploy/approval"

// asking is a delivery that asks a dba for an approval.
func asking(t *testing.T, id string) delivery.Spec {
	t.Helper()
	args, err := json.Marshal(plan.ApprovalArgs{Roles: []string{"dba"}})
	if err != nil {
		t.Fatal(err)
	}
	return delivery.Spec{ID: id, Application: id, CreatedAt: time.Unix(100, 0).UTC(), Graph: plan.Graph{Targets: []plan.Target{{Name: "prod"}},
		Nodes: []plan.Node{{Path: approval, Target: "prod", Phase: plan.Deploy, Kind: plan.KindApproval, Args: args}}}}
}

// carried has an engine carry the deliveries of a fake, where bob and carol are dbas, until the test or stop ends it.
func carried(t *testing.T, f *fake) (s *Store, stop func()) {
	t.Helper()
	o := f.config(t, "controller")
	o.Roles = func(user string) []string {
		if user == "bob" || user == "carol" {
			return []string{"dba"}
		}
		return nil
	}
	s = f.open(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	e := engine.New(engine.Options{Store: s, Steps: step.Simple(step.Ports{}), Log: o.Log})
	go func() {
		defer close(done)
		_ = e.Run(ctx)
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return s, stop
}

// asked makes a delivery that asks for its approval, and has no controller any more.
func (f *fake) asked(t *testing.T, id string) {
	t.Helper()
	s, stop := carried(t, f)
	defer stop()
	if _, err := s.Create(t.Context(), asking(t, id)); err != nil {
		t.Fatal(err)
	}
	until(t, f, id, asks)
}

func (f *fake) remote(t *testing.T, user string) *Remote {
	t.Helper()
	r, err := NewRemote(f.config(t, user))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// act keeps a decision and waits for nobody.
func (f *fake) act(t *testing.T, id, by string, sig delivery.Signal) {
	t.Helper()
	r := f.remote(t, by)
	d, err := get[v1alpha1.Delivery](t.Context(), r.c, deliveries, id)
	if err != nil {
		t.Fatal(err)
	}
	sig.By = by
	if _, _, err := r.c.act(t.Context(), d, actionName(d, sig.Key, by, 0), sig); err != nil {
		t.Fatal(err)
	}
}

// until waits until a delivery is as a test wants it.
func until(t *testing.T, f *fake, id string, is func(*v1alpha1.Delivery) bool) *v1alpha1.Delivery {
	t.Helper()
	var last *v1alpha1.Delivery
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := f.remote(t, "test").follow(ctx, id, func(d *v1alpha1.Delivery, _ *mirror) (bool, error) { last = d; return is(d), nil }); err != nil {
		t.Fatalf("%v; last seen: %+v", err, last)
	}
	return last
}

func asks(d *v1alpha1.Delivery) bool { return d.Status.Step == approval }

// TestRefusedApproval has somebody decide who may not, and then somebody who may.
func TestRefusedApproval(t *testing.T) {
	approve := delivery.Signal{Key: "approve/" + approval, Kind: delivery.Approve, Path: approval}
	type decision struct {
		by      string
		refused bool
	}
	for name, c := range map[string]struct {
		waiting []string // have decided before a controller comes
		then    []decision
		refused []string // whose actions the status names as refused
		state   delivery.State
	}{
		"one who may not keeps nobody from it": {nil, []decision{{"alice", true}, {"bob", false}}, []string{"alice"}, delivery.Succeeded},
		"one who may not is told again":        {nil, []decision{{"alice", true}, {"alice", true}, {"bob", false}}, []string{"alice", "alice"}, delivery.Succeeded},
		"one who may not is first in a queue":  {[]string{"alice", "bob"}, nil, []string{"alice"}, delivery.Succeeded},
		"the second who may is told":           {[]string{"carol", "bob"}, nil, []string{"bob"}, delivery.Succeeded},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.asked(t, "d")
			for _, by := range c.waiting {
				f.act(t, "d", by, approve)
			}
			carried(t, f)
			for _, by := range c.then {
				won, err := f.remote(t, by.by).Signal(t.Context(), "d", approve)
				if refused := fault.Is(err, fault.Denied) && strings.Contains(err.Error(), "none of the roles"); refused != by.refused || !refused && (err != nil || !won) {
					t.Errorf("%s is told %v, %v", by.by, won, err)
				}
			}
			d := until(t, f, "d", func(d *v1alpha1.Delivery) bool { return d.Status.Done })
			all, err := f.remote(t, "test").actionsOf(t.Context(), "d")
			if err != nil {
				t.Fatal(err)
			}
			var refused []string
			for _, a := range all {
				if slices.ContainsFunc(d.Status.Refused, func(r v1alpha1.Refusal) bool { return r.Action == a.Name && r.Why != "" }) {
					refused = append(refused, a.Spec.By)
				}
			}
			if slices.Sort(refused); d.Status.Phase != string(c.state) || !slices.Equal(refused, c.refused) || len(d.Status.Taken) != len(all) {
				t.Errorf("the delivery is %s; %q are refused: %+v", d.Status.Phase, refused, d.Status.Refused)
			}
			told := f.told(t, f.remote(t, "test").c, len(c.refused), func(e corev1.Event) bool { return e.Reason == "ActionRefused" })
			if len(told) != len(c.refused) {
				t.Errorf("Events tell of refusals: %+v", told)
			}
		})
	}
}

// TestRepeatedDecision repeats a request whose answer was lost.
func TestRepeatedDecision(t *testing.T) {
	f := newFake(t)
	f.asked(t, "d")
	approve := delivery.Signal{Key: "approve/" + approval, Kind: delivery.Approve, Path: approval}
	f.act(t, "d", "bob", approve)
	carried(t, f)
	if _, err := f.remote(t, "bob").Signal(t.Context(), "d", approve); err != nil && !fault.Is(err, fault.Conflict) { // it may have been taken in before
		t.Fatal(err)
	}
	until(t, f, "d", func(d *v1alpha1.Delivery) bool { return d.Status.Done })
	if all := f.names(actions); len(all) != 1 {
		t.Errorf("the decision is kept as %q", all)
	}
}
