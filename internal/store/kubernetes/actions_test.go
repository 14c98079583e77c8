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

// users are how people and a controller reach the deliveries of one namespace.
type users func(user string) Config

// carried has an engine carry the deliveries, where bob and carol are dbas, until the test or stop ends it.
func (u users) carried(t *testing.T) (s *Store, stop func()) {
	t.Helper()
	o := u("controller")
	o.Roles = func(user string) []string {
		if user == "bob" || user == "carol" {
			return []string{"dba"}
		}
		return nil
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
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
func (u users) asked(t *testing.T, id string) {
	t.Helper()
	s, stop := u.carried(t)
	defer stop()
	if _, err := s.Create(t.Context(), asking(t, id)); err != nil {
		t.Fatal(err)
	}
	u.until(t, id, asks)
}

func (u users) remote(t *testing.T, user string) *Remote {
	t.Helper()
	r, err := NewRemote(u(user))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// act keeps a decision and waits for nobody.
func (u users) act(t *testing.T, id, by string, sig delivery.Signal) {
	t.Helper()
	r := u.remote(t, by)
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
func (u users) until(t *testing.T, id string, is func(*v1alpha1.Delivery) bool) *v1alpha1.Delivery {
	t.Helper()
	var last *v1alpha1.Delivery
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := u.remote(t, "test").follow(ctx, id, func(d *v1alpha1.Delivery, _ *mirror) (bool, error) { last = d; return is(d), nil }); err != nil {
		t.Fatalf("%v; last seen: %+v", err, last)
	}
	return last
}

func asks(d *v1alpha1.Delivery) bool { return d.Status.Step == approval }

// TestRefusedApproval has somebody decide who may not, and then somebody who may.
func TestRefusedApproval(t *testing.T) {
	refusedApprovals(t, func(t *testing.T) users { return newFake(t).users(t) })
}

// refusedApprovals runs its cases each in a place of its own.
func refusedApprovals(t *testing.T, place func(*testing.T) users) {
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
			u := place(t)
			u.asked(t, "d")
			for _, by := range c.waiting {
				u.act(t, "d", by, approve)
			}
			u.carried(t)
			for _, by := range c.then {
				won, err := u.remote(t, by.by).Signal(t.Context(), "d", approve)
				if refused := fault.Is(err, fault.Denied) && strings.Contains(err.Error(), "none of the roles"); refused != by.refused || !refused && (err != nil || !won) {
					t.Errorf("%s is told %v, %v", by.by, won, err)
				}
			}
			d := u.until(t, "d", func(d *v1alpha1.Delivery) bool { return d.Status.Done })
			all, err := u.remote(t, "test").actionsOf(t.Context(), "d")
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
			events := told(t, u.remote(t, "test").c, len(c.refused), func(e corev1.Event) bool { return e.Reason == "ActionRefused" })
			if len(events) != len(c.refused) {
				t.Errorf("Events tell of refusals: %+v", events)
			}
		})
	}
}

// TestRepeatedDecision repeats a request whose answer was lost.
func TestRepeatedDecision(t *testing.T) {
	f := newFake(t)
	u := f.users(t)
	u.asked(t, "d")
	approve := delivery.Signal{Key: "approve/" + approval, Kind: delivery.Approve, Path: approval}
	u.act(t, "d", "bob", approve)
	u.carried(t)
	if _, err := u.remote(t, "bob").Signal(t.Context(), "d", approve); err != nil && !fault.Is(err, fault.Conflict) { // it may have been taken in before
		t.Fatal(err)
	}
	u.until(t, "d", func(d *v1alpha1.Delivery) bool { return d.Status.Done })
	if all := f.names(actions); len(all) != 1 {
		t.Errorf("the decision is kept as %q", all)
	}
}
