package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/store"
)

// sample is a delivery of two targets in the middle of the first.
func sample() store.Delivery {
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return store.Delivery{
		Spec: delivery.Spec{ID: "0123456789abcdef", Application: "shop", By: "alice", Context: map[string]string{"team": "web"}, Graph: plan.Graph{
			Targets: []plan.Target{{Name: "staging"}, {Name: "prod eu", DependsOn: []string{"staging"}}},
			Nodes: []plan.Node{
				{Path: "staging/before/1-pause", Title: "pause 5s", Target: "staging", Phase: plan.Before, Kind: plan.KindPause},
				{Path: "staging/deploy/apply", Title: "apply 1 Service", Target: "staging", Phase: plan.Deploy, Kind: plan.KindApply, After: []string{"staging/before/1-pause"}},
				{Path: "staging/deploy/promote", Title: "promote the canary", Target: "staging", Phase: plan.Deploy, Kind: plan.KindPromote, After: []string{"staging/deploy/apply"}},
				{Path: "prod eu/before/1-approval", Title: "approval", Target: "prod eu", Phase: plan.Before, Kind: plan.KindApproval},
			}}},
		Status: delivery.Status{State: delivery.Running, Started: start,
			Targets: map[string]delivery.TargetStatus{"staging": {State: delivery.Running}, "prod eu": {State: delivery.Pending}},
			Nodes: map[string]delivery.NodeStatus{
				"staging/before/1-pause": {Phase: delivery.StepPassed, Verdict: delivery.Pass, Message: "waited 5s", Started: start, Ended: start.Add(5 * time.Second)},
				"staging/deploy/apply":   {Phase: delivery.StepRunning, Started: start.Add(5 * time.Second)},
			}},
	}
}

func set(d store.Delivery, path string, st delivery.NodeStatus) store.Delivery {
	nodes := map[string]delivery.NodeStatus{}
	for p, n := range d.Status.Nodes {
		nodes[p] = n
	}
	nodes[path] = st
	d.Status.Nodes = nodes
	return d
}

func TestWord(t *testing.T) {
	state := func(s delivery.State) store.Delivery { d := sample(); d.Status.State = s; return d }
	waiting := func(path string, held bool) store.Delivery {
		return set(sample(), path, delivery.NodeStatus{Phase: delivery.StepWaiting, Held: held})
	}
	stopped := state(delivery.Running)
	stopped.Status.Paused = true
	for want, deliveries := range map[string][]store.Delivery{
		"QUEUED":            {state(""), state(delivery.Queued)},
		"RUNNING":           {sample(), waiting("staging/before/1-pause", false), state(delivery.RollingBack)},
		"AWAITING_APPROVAL": {waiting("prod eu/before/1-approval", false), waiting("staging/deploy/apply", true)},
		"PAUSED":            {stopped},
		"SUCCEEDED":         {state(delivery.Succeeded)},
		"FAILED":            {state(delivery.Failed)},
		"CANCELLED":         {state(delivery.Cancelled)},
	} {
		for i, d := range deliveries {
			if got := word(d); got != want {
				t.Errorf("%s %d is %s", want, i, got)
			}
		}
	}
}

// The names are those that programs written for Armory's read.
func TestStatusNames(t *testing.T) {
	body, err := json.Marshal(statusOf(sample()))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		ID               string `json:"id"`
		StartedAtIso8601 string `json:"startedAtIso8601"`
		Application      string
		Context          map[string]string
		Source           struct{ Product, Version string }
		Environments     []string
		Status           string
		InitiatedBy      string
		Steps            []struct {
			Status, Ref, Type, ConstraintFor string
			DependsOn                        []string
			Deployment                       *struct {
				ID, Environment  string
				Step, TotalSteps int
			}
		}
	}
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatal(err)
	}
	if got.ID != "0123456789abcdef" || got.StartedAtIso8601 != "2026-03-01T12:00:00Z" || got.Application != "shop" || got.Context["team"] != "web" ||
		got.Source.Product != "Sluice" || got.Source.Version == "" || len(got.Environments) != 2 || got.Status != "RUNNING" || got.InitiatedBy != "alice" || len(got.Steps) != 4 {
		t.Errorf("the status is %s", body)
	}
	if s := got.Steps[0]; s.Status != "SUCCEEDED" || s.Ref != "staging/before/1-pause" || s.Type != "pause" || s.ConstraintFor != "staging" || s.Deployment != nil {
		t.Errorf("a gate's step is %+v", s)
	}
	if s := got.Steps[2]; s.Status != "NOT_STARTED" || s.DependsOn[0] != "staging/deploy/apply" || s.ConstraintFor != "" || s.Deployment == nil ||
		s.Deployment.Step != 2 || s.Deployment.TotalSteps != 2 || s.Deployment.Environment != "staging" {
		t.Errorf("a deploying step is %+v", s)
	}
	if bytes.Contains(body, []byte("completedAtIso8601\":\"0001")) {
		t.Errorf("what has not ended has no end: %s", body)
	}
}

func TestWriteStatus(t *testing.T) {
	d := set(sample(), "prod eu/before/1-approval", delivery.NodeStatus{Phase: delivery.StepWaiting, Message: "waits for approval"})
	var b strings.Builder
	if err := writeStatus(&b, d); err != nil {
		t.Fatal(err)
	}
	want := `application: shop, started: 2026-03-01T12:00:00Z
status: AWAITING_APPROVAL
approval waits for a person: sluice deploy approve 0123456789abcdef 'prod eu/before/1-approval'

staging: RUNNING
  ✔ pause 5s                                 waited 5s (5s)
  ● apply 1 Service
  ○ promote the canary

prod eu: NOT_STARTED
  ◐ approval                                 waits for approval
`
	if b.String() != want {
		t.Errorf("it is shown as\n%s", b.String())
	}
	held := "promote the canary is held by an error: sluice deploy retry 0123456789abcdef tries it again, sluice deploy approve 0123456789abcdef staging/deploy/promote goes on without it\n"
	b.Reset()
	if err := writeStatus(&b, set(d, "staging/deploy/promote", delivery.NodeStatus{Phase: delivery.StepWaiting, Held: true, Verdict: delivery.Error})); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), held) {
		t.Errorf("a step that an error holds is shown as\n%s", b.String())
	}
}

// Plain lines tell what has changed and, now and then, how far a step is; a terminal has one more line for that.
func TestView(t *testing.T) {
	before := sample()
	after := set(set(before, "staging/deploy/apply", delivery.NodeStatus{Phase: delivery.StepPassed, Message: "1 objects are ready",
		Started: before.Status.Started, Ended: before.Status.Started.Add(1500 * time.Millisecond)}),
		"staging/deploy/promote", delivery.NodeStatus{Phase: delivery.StepRunning})
	events := []server.Event{
		{Delivery: &before},
		{Progress: &engine.Progress{Path: "staging/deploy/apply", Line: "1 of 3 ready"}},
		{Progress: &engine.Progress{Path: "staging/deploy/apply", Line: "2 of 3 ready"}},
		{Delivery: &after},
	}
	show := func(width int) string {
		var b strings.Builder
		v := &view{out: &b, width: width, now: func() time.Time { return before.Status.Started }, told: map[string]time.Time{}}
		for _, e := range events {
			v.event(e)
		}
		v.end()
		return b.String()
	}
	first := "12:00:00 staging: ✔ pause 5s                                 waited 5s (5s)\n12:00:00 staging: ● apply 1 Service\n"
	then := "12:00:00 staging: ✔ apply 1 Service                          1 objects are ready (1.5s)\n12:00:00 staging: ● promote the canary\n"
	if got, want := show(0), first+"12:00:00 staging/deploy/apply: 1 of 3 ready\n"+then; got != want {
		t.Errorf("in a log it is\n%s\nnot\n%s", got, want)
	}
	over := func(s string) string { return "\r\x1b[K" + s }
	if got, want := show(24), first+over("  … staging/deploy/appl")+over("  … staging/deploy/appl")+over("")+then; got != want {
		t.Errorf("on a terminal it is\n%q\nnot\n%q", got, want)
	}
}

func TestAgain(t *testing.T) {
	d := sample()
	d.Spec.Graph.Nodes[1].Args = json.RawMessage(`{"annotate":{"id":"0123456789abcdef","rs":"web-01234567"}}`)
	s := again(d.Spec, "fedcba9876543210")
	if got := string(s.Graph.Nodes[1].Args); got != `{"annotate":{"id":"fedcba9876543210","rs":"web-fedcba98"}}` || s.ID != "fedcba9876543210" {
		t.Errorf("it is %s with the arguments %s", s.ID, got)
	}
	if string(d.Spec.Graph.Nodes[1].Args) == string(s.Graph.Nodes[1].Args) {
		t.Error("the earlier delivery was changed")
	}
}

// TestUndone: a step that failed and was undone tells both, and stays one that failed.
func TestUndone(t *testing.T) {
	d := set(sample(), "staging/deploy/apply", delivery.NodeStatus{Phase: delivery.StepUndone, Message: "taken back",
		Ran: &delivery.Ran{Phase: delivery.StepFailed, Message: "it broke"}})
	var text bytes.Buffer
	if err := writeStatus(&text, d); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"✖ apply 1 Service                          it broke\n", "↩ undo: apply 1 Service                    taken back\n"} {
		if !strings.Contains(text.String(), line) {
			t.Errorf("%q is not in\n%s", line, text.String())
		}
	}
	s := statusOf(d).Steps[1]
	if s.Status != failed || s.Message != "taken back" || s.Ran == nil || s.Ran.Message != "it broke" {
		t.Errorf("%+v", s)
	}
}
