package data

import (
	"context"

	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/step"
)

// forget has a platform keep no longer what was there before an ended delivery changed it.
func (b base) forget(ctx context.Context, c step.Call, at plan.Site) (step.Outcome, error) {
	p, err := b.ports.Platform(at.Account)
	if err != nil {
		return step.Outcome{}, err
	}
	return step.Forget(ctx, p, at.Namespace, c)
}

// Clean is for all that was applied in the target.
func (st applyDatabase) Clean(ctx context.Context, c step.Call) (step.Outcome, error) {
	a, err := args[plan.DataArgs](c.Args)
	if err != nil {
		return step.Outcome{}, err
	}
	return st.forget(ctx, c, a.To)
}

// Clean is for the whole upgrade, whose first step this is.
func (st fence) Clean(ctx context.Context, c step.Call) (step.Outcome, error) {
	a, err := args[plan.DataArgs](c.Args)
	if err != nil {
		return step.Outcome{}, err
	}
	return st.forget(ctx, c, plan.Site{Account: a.Database.Account, Namespace: a.Database.Namespace})
}

// Clean is for the steps that roll, too.
func (st startMembers) Clean(ctx context.Context, c step.Call) (step.Outcome, error) {
	a, err := args[plan.MembersArgs](c.Args)
	if err != nil {
		return step.Outcome{}, err
	}
	return st.forget(ctx, c, plan.Site{Account: a.Database.Account, Namespace: a.Database.Namespace})
}
