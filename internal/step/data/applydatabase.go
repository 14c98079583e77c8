package data

import (
	"context"
	"fmt"
	"slices"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
)

// applyDatabase starts the target's database on the candidate's volumes, before anything that could write to it.
type applyDatabase struct{ base }

// Plan says what is started.
func (applyDatabase) Plan(n plan.Node) (plan.Description, error) {
	a, err := args[plan.DataArgs](n.Args)
	if err != nil {
		return plan.Description{}, err
	}
	w, _, _, err := split(a.Objects, a.Database.Workload)
	return plan.Description{
		Does:     fmt.Sprintf("starts %s with %s on the candidate's volumes in %s", a.Database.Workload, w.images(), a.To.Namespace),
		WaitsFor: fmt.Sprintf("it is ready (at most %s)", a.Timeout),
		UndoneBy: "applying what was there before",
	}, err
}

// Run applies the workload quarantined and waits until it is ready.
func (st applyDatabase) Run(ctx context.Context, c step.Call) (step.Outcome, error) {
	a, err := args[plan.DataArgs](c.Args)
	if err != nil {
		return step.Outcome{}, err
	}
	from, err := saved[copied](c.Siblings(a.CopyPath))
	if err != nil {
		return step.Outcome{}, err
	}
	if !from.Candidate {
		return step.Outcome{}, fault.Newf(fault.Lost, "step %s left no candidate", a.CopyPath)
	}
	p, err := st.at(a.To.Account)
	if err != nil {
		return step.Outcome{}, err
	}
	w, _, _, err := split(a.Objects, a.Database.Workload)
	if err != nil {
		return step.Outcome{}, err
	}
	s, err := saved[step.Applied](c.Saved)
	if err != nil {
		return step.Outcome{}, err
	}
	refusal, err := s.Change(ctx, func() error { return c.Save(ctx, s) }, st.apply(ctx, c, p, a, from))
	switch {
	case err != nil:
		return step.Outcome{}, err
	case refusal != nil:
		// A manifest that the platform refuses is as wrong tomorrow: nobody needs to be asked.
		return step.Done(delivery.Fail, refusal.Error()), nil
	}
	c.Progress("starting %s on the candidate's volumes", w.images())
	if err := st.runs(ctx, p, c.Key+"/scale", w, a.To.Namespace, a.Timeout, s.Changes); err != nil {
		if ctx.Err() != nil || fault.Is(err, fault.Transient) {
			return step.Outcome{}, err
		}
		return step.Done(delivery.Fail, "the new version does not start on a copy of production: "+err.Error()), nil
	}
	return step.Done(delivery.Pass, w.images()+" is ready on the candidate's volumes"), nil
}

// apply is the call that starts the database, always with the same key.
func (applyDatabase) apply(ctx context.Context, c step.Call, p place, a plan.DataArgs, from copied) func() ([]platform.Change, error) {
	return func() ([]platform.Change, error) {
		return p.Apply(ctx, c.Key+"/apply", a.Objects, platform.Options{Namespace: a.To.Namespace, Delivery: c.Delivery, Force: a.Force,
			Quarantine: &platform.Quarantine{Args: from.Launch.Args, Env: from.Launch.Env}})
	}
}

// Undo puts back what was there before.
func (st applyDatabase) Undo(ctx context.Context, c step.Call) (step.Outcome, error) {
	a, err := args[plan.DataArgs](c.Args)
	if err != nil {
		return step.Outcome{}, err
	}
	from, err := saved[copied](c.Siblings(a.CopyPath))
	if err != nil {
		return step.Outcome{}, err
	}
	s, err := saved[step.Applied](c.Saved)
	if err != nil {
		return step.Outcome{}, err
	}
	p, err := st.at(a.To.Account)
	if err != nil {
		return step.Outcome{}, err
	}
	if err := s.Settle(ctx, func() error { return c.Save(ctx, s) }, st.apply(ctx, c, p, a, from)); err != nil {
		return step.Outcome{}, err
	}
	if err := stopped(ctx, p, c.Key+"/halt", a, s.Changes); err != nil {
		return step.Outcome{}, err
	}
	return step.Done(delivery.Pass, "what ran before is back"), p.Revert(ctx, c.Key+"/revert", s.Changes)
}

// stopped has a workload be stopped as it was before it was applied. Where its manifest leaves the replicas open, taking that back
// does not: the version before would start on volumes that are not its own.
func stopped(ctx context.Context, p place, key string, a plan.DataArgs, changes []platform.Change) error {
	w, _, _, err := split(a.Objects, a.Database.Workload)
	if err != nil {
		return err
	}
	ref := w.ref(a.To.Namespace)
	was := slices.ContainsFunc(changes, func(c platform.Change) bool { return c.Ref == ref && !c.Created })
	if !was || !w.open() {
		return nil
	}
	f, err := optional[platform.Fencer](p, "stop what it has started")
	if err != nil {
		return err
	}
	return f.Scale(ctx, key, ref, 0)
}
