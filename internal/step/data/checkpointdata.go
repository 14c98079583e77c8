package data

import (
	"context"
	"fmt"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/step"
)

// checkpointData keeps a copy of the running database under a name. It is never the restore point of an upgrade: that
// one is taken behind the fence.
type checkpointData struct{ base }

// checkpointed is what checkpointData keeps.
type checkpointed struct {
	Try int  `json:"try"`
	Cut *cut `json:"cut,omitempty"`
}

// Plan says what is kept and for how long.
func (checkpointData) Plan(n plan.Node) (plan.Description, error) {
	a, err := args[plan.DataArgs](n.Args)
	return plan.Description{
		Does:     fmt.Sprintf("keeps a copy of the running %s as checkpoint %q for %s, its writers held for at most %s", a.Database.Name, a.Name, a.TTL, hold),
		UndoneBy: "nothing: production is only read; the checkpoint is deleted when its time is over",
	}, err
}

// Run copies. The copy belongs to the delivery and outlives it.
func (st checkpointData) Run(ctx context.Context, c step.Call) (step.Outcome, error) {
	a, err := args[plan.DataArgs](c.Args)
	if err != nil {
		return step.Outcome{}, err
	}
	s, err := saved[checkpointed](c.Saved)
	if err != nil {
		return step.Outcome{}, err
	}
	p, err := st.at(a.Database.Account)
	if err != nil {
		return step.Outcome{}, err
	}
	l, err := st.live(ctx, p, a.Database)
	if err != nil {
		return step.Outcome{}, err
	}
	if s.Cut == nil {
		for try := s.Try; try > 0; try-- {
			if err := p.discard(ctx, c.Delivery, cutID(c.Key, try)); err != nil {
				return step.Outcome{}, err
			}
		}
		s.Try++
		if err := c.Save(ctx, s); err != nil {
			return step.Outcome{}, err
		}
		k, err := st.take(ctx, c, p, a.Database, a.Database.Namespace, l.sources, cutID(c.Key, s.Try), 0)
		if err != nil {
			return step.Outcome{}, err
		}
		s.Cut = &k
		if err := c.Save(ctx, s); err != nil {
			return step.Outcome{}, err
		}
	}
	return step.Done(delivery.Pass, fmt.Sprintf("checkpoint %q of %s: %s", a.Name, a.Database.Name, s.Cut)), nil
}

// Undo has nothing to take back.
func (checkpointData) Undo(context.Context, step.Call) (step.Outcome, error) {
	return step.Done(delivery.Pass, "production was only read"), nil
}
