package data

import (
	"context"
	"fmt"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/step"
)

// Expire deletes the checkpoints of an ended delivery whose time is over, and returns when the next one's is: zero where
// there is none. Only copies that checkpointData made are deleted; volumes that a swap took out of service are not.
func Expire(ctx context.Context, ports step.Ports, spec delivery.Spec, st delivery.Status, now time.Time) (next time.Time, err error) {
	if !st.Done {
		return next, nil
	}
	b := base{ports: ports}
	for _, n := range spec.Graph.Nodes {
		k := st.Nodes[n.Path]
		if n.Kind != plan.KindCheckpointData || k.Verdict != delivery.Pass {
			continue
		}
		a, err := args[plan.DataArgs](n.Args)
		if err != nil {
			return next, err
		}
		s, err := saved[checkpointed](k.Saved)
		if err != nil {
			return next, err
		}
		if s.Cut == nil || a.TTL == 0 {
			continue
		}
		if until := k.Ended.Add(a.TTL); now.Before(until) {
			if next.IsZero() || until.Before(next) {
				next = until
			}
			continue
		}
		p, err := b.at(a.Database.Account)
		if err != nil {
			return next, err
		}
		if err := p.discard(ctx, spec.ID, s.Cut.ID); err != nil {
			return next, fmt.Errorf("the checkpoint %s of delivery %s is over: %w", a.Name, spec.ID, err)
		}
	}
	return next, nil
}
