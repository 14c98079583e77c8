package engine_test

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/store/sqlite"
)

// fake is a step that records what was done and returns what its path says.
type fake struct {
	mu  sync.Mutex
	did []string
}

func (f *fake) note(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.did = append(f.did, what)
}

func (f *fake) Plan(plan.Node) (plan.Description, error) { return plan.Description{}, nil }

func (f *fake) Run(ctx context.Context, c step.Call) (step.Outcome, error) {
	if err := c.Save(ctx, "saved by "+c.Path); err != nil {
		return step.Outcome{}, err
	}
	f.note("run " + c.Path)
	if c.Path == "approve" && len(c.Signals) == 0 {
		return step.Wait(time.Time{}, "waits for a person", "approve/approve"), nil
	}
	if c.Path == "bad" {
		return step.Done(delivery.Fail, "it is bad"), nil
	}
	return step.Done(delivery.Pass, "fine"), nil
}

func (f *fake) Undo(_ context.Context, c step.Call) (step.Outcome, error) {
	f.note("undo " + c.Path)
	return step.Done(delivery.Pass, "undone"), nil
}

func (f *fake) Clean(_ context.Context, c step.Call) (step.Outcome, error) {
	f.note("clean " + c.Path)
	return step.Done(delivery.Pass, ""), nil
}

func graph(paths ...string) plan.Graph {
	g := plan.Graph{Targets: []plan.Target{{Name: "t"}}}
	for i, p := range paths {
		n := plan.Node{Path: p, Target: "t", Phase: plan.Deploy, Kind: "fake"}
		if i > 0 {
			n.After = paths[i-1 : i]
		}
		g.Nodes = append(g.Nodes, n)
	}
	return g
}

func TestDeliveries(t *testing.T) {
	for name, c := range map[string]struct {
		graph plan.Graph
		state delivery.State
		did   []string
	}{
		"succeeds": {graph("a", "approve", "b"), delivery.Succeeded, []string{"run a", "run approve", "run approve", "run b",
			"clean b", "clean approve", "clean a"}},
		"fails and goes back": {graph("a", "bad", "b"), delivery.Failed, []string{"run a", "run bad", "undo bad", "undo a",
			"clean bad", "clean a"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "s.db"))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			f := &fake{}
			e := engine.New(engine.Options{Store: s, Steps: map[string]step.Step{"fake": f}})
			events, err := s.Watch(ctx)
			if err != nil {
				t.Fatal(err)
			}
			end := make(chan error, 1)
			go func() { end <- e.Run(ctx) }()
			defer func() { cancel(); <-end }()
			if err := e.Start(ctx, delivery.Spec{ID: "d", Application: "app", Graph: c.graph}); err != nil {
				t.Fatal(err)
			}
			for range events {
				d, err := s.Load(ctx, "d")
				if err != nil {
					t.Fatal(err)
				}
				if d.Status.Nodes["approve"].Phase == delivery.StepWaiting && len(d.Signals) == 0 {
					if _, err := e.Signal(ctx, "d", delivery.Signal{Key: "approve/approve", Kind: delivery.Approve, Path: "approve"}); err != nil {
						t.Fatal(err)
					}
				}
				if d.Status.Done {
					if d.Status.State != c.state || !slices.Equal(f.did, c.did) {
						t.Errorf("%s (%s): %q", d.Status.State, d.Status.Reason, f.did)
					}
					return
				}
			}
			t.Error("the delivery did not end")
		})
	}
}
