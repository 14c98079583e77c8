package data

import (
	"context"
	"fmt"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
)

// unchanged applies what belongs to a workload that stays as it runs: no other step does. The workload itself would be started anew.
func (st fence) unchanged(ctx context.Context, c step.Call, p place, a plan.DataArgs, s fenced) (step.Outcome, error) {
	w, rest, _, err := split(a.Objects, a.Database.Workload)
	if err != nil {
		return step.Outcome{}, err
	}
	refused, err := s.Applied.Change(ctx, func() error { return c.Save(ctx, s) }, st.applyRest(ctx, c, p, a))
	switch {
	case err != nil:
		return step.Outcome{}, err
	case refused != nil:
		return step.Done(delivery.Fail, refused.Error()), nil
	}
	does := fmt.Sprintf("%s stays on %s", a.Database.Workload, w.images())
	if len(rest) > 0 {
		does += "; what belongs to it is applied, and starts nothing anew"
	}
	return step.Done(delivery.Pass, does), nil
}

// applyRest is the call that applies a database's objects without its workload, always with the same key.
func (fence) applyRest(ctx context.Context, c step.Call, p place, a plan.DataArgs) func() ([]platform.Change, error) {
	return func() ([]platform.Change, error) {
		_, rest, _, err := split(a.Objects, a.Database.Workload)
		if err != nil || len(rest) == 0 {
			return nil, err
		}
		return p.Apply(ctx, c.Key+"/apply", rest, ownOptions(c, a))
	}
}

// restBack takes back what unchanged has applied.
func (st fence) restBack(ctx context.Context, c step.Call, p place, a plan.DataArgs, s fenced) (step.Outcome, error) {
	if err := s.Applied.Settle(ctx, func() error { return c.Save(ctx, s) }, st.applyRest(ctx, c, p, a)); err != nil {
		return step.Outcome{}, err
	}
	return step.Done(delivery.Pass, "the database was not touched; what belongs to it is as it was"), p.Revert(ctx, c.Key+"/revert", s.Applied.Changes)
}
