package data

import (
	"context"
	"fmt"
	"time"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
)

// swap puts the upgraded clone in production's place, and the new version on it, still behind the fence.
type swap struct{ base }

// swapped is what swap keeps.
type swapped struct {
	Old          string `json:"old,omitempty"` // copy id of the volumes that were taken out of service
	step.Applied        // from when the claims hold the clone
	Back         bool   `json:"back,omitempty"` // the volumes are back in place
}

// Plan says what is swapped.
func (swap) Plan(n plan.Node) (plan.Description, error) {
	a, err := args[plan.DataArgs](n.Args)
	return plan.Description{
		Does:     fmt.Sprintf("binds the claims of %s to the upgraded clone and starts the new version behind the fence; the old volumes stay protected for %s", a.Database.Workload, bakeOf(a)),
		UndoneBy: "R0: binding the claims to the old volumes again; after opening, the cheapest way back that was rehearsed",
	}, err
}

// Run swaps the volumes and starts the new version.
func (st swap) Run(ctx context.Context, c step.Call) (step.Outcome, error) {
	k, err := st.fencedCall(c)
	if err != nil || k.f.Unchanged {
		return unchanged(), err
	}
	// What was done is kept also where the fence's time has ended meanwhile.
	save := c.Save
	c.Save = func(_ context.Context, v any) error { return save(ctx, v) }
	return inTime(ctx, c, k.a, k.f, func(within context.Context) (step.Outcome, error) { return st.forward(within, c, k) })
}

// forward is Run within what is left of the fence's time.
func (st swap) forward(ctx context.Context, c step.Call, k fencedCall) (step.Outcome, error) {
	s, err := saved[swapped](c.Saved)
	if err != nil {
		return step.Outcome{}, err
	}
	u, err := group[upgraded](c, k.a, "upgrade")
	if err != nil {
		return step.Outcome{}, err
	}
	if err := st.stop(ctx, c, k.p, u.Site.Namespace, k.a.Objects, c.Key+"/release"); err != nil {
		return step.Outcome{}, err
	}
	clone, err := k.p.find(ctx, c.Delivery, u.Clone)
	if err != nil {
		return step.Outcome{}, err
	}
	old, err := k.p.volumes.Swap(ctx, c.Key+"/swap", k.f.Sources, clone, k.f.Since.Add(bakeOf(k.a)))
	if err != nil {
		return step.Outcome{}, err
	}
	s.Old = old.ID()
	c.Progress("starting %s on the upgraded volumes, behind the fence", k.next.images())
	refusal, err := s.Change(ctx, func() error { return c.Save(ctx, s) }, st.apply(ctx, c, k))
	switch {
	case err != nil:
		return step.Outcome{}, err
	case refusal != nil:
		return step.Done(delivery.Fail, refusal.Error()), nil
	}
	if err := st.runs(ctx, k.p, c.Key+"/scale", k.next, k.a.Database.Namespace, k.a.Timeout, s.Changes); err != nil {
		if ctx.Err() != nil || fault.Is(err, fault.Transient) {
			return step.Outcome{}, err
		}
		return step.Done(delivery.Fail, "the new version does not start on the upgraded volumes: "+err.Error()), nil
	}
	return step.Done(delivery.Pass, fmt.Sprintf("production's claims hold the upgraded volumes; the old ones are kept as %s", s.Old)), nil
}

// apply is the call that starts the new version, always with the same key.
func (swap) apply(ctx context.Context, c step.Call, k fencedCall) func() ([]platform.Change, error) {
	return func() ([]platform.Change, error) {
		return k.p.Apply(ctx, c.Key+"/apply", k.objects, ownOptions(c, k.a))
	}
}

// Undo puts back what the way that open's undo has chosen asks for.
func (st swap) Undo(ctx context.Context, c step.Call) (step.Outcome, error) {
	k, err := st.fencedCall(c)
	if err != nil || k.f.Unchanged {
		return unchanged(), err
	}
	s, err := saved[swapped](c.Saved)
	if err != nil {
		return step.Outcome{}, err
	}
	o, err := group[opened](c, k.a, "open")
	if err != nil {
		return step.Outcome{}, err
	}
	if o.Path.staysOpen() {
		return step.Done(delivery.Pass, o.Path.describe()), nil
	}
	f, err := optional[platform.Fencer](k.p, "hold connections back")
	if err != nil {
		return step.Outcome{}, err
	}
	// While the claims still hold the clone: this may start the new version, and must not on the old volumes.
	if err := s.Settle(ctx, func() error { return c.Save(ctx, s) }, st.apply(ctx, c, k)); err != nil {
		return step.Outcome{}, err
	}
	if err := st.shut(ctx, c.Key+"/undo", k.p, f, k.a, k.f); err != nil {
		return step.Outcome{}, err
	}
	if err := st.volumesBack(ctx, c, k, &s, o); err != nil {
		return step.Outcome{}, err
	}
	if err := k.p.Revert(ctx, c.Key+"/revert", s.Changes); err != nil {
		return step.Outcome{}, err
	}
	return step.Done(delivery.Pass, o.Path.describe()), nil
}

// volumesBack binds production's claims to what the way back starts from.
func (st swap) volumesBack(ctx context.Context, c step.Call, k fencedCall, s *swapped, o opened) error {
	if s.Back {
		return nil
	}
	switch o.Path {
	case R0:
		if s.Old == "" {
			// The swap itself may have begun without having been kept; then there is a copy of its key.
			if _, err := k.p.find(ctx, c.Delivery, c.Key+"/swap"); fault.Is(err, fault.NotFound) {
				return nil
			} else if err != nil {
				return err
			}
			s.Old = c.Key + "/swap"
		}
		old, err := k.p.find(ctx, c.Delivery, s.Old)
		if err != nil {
			return err
		}
		if _, err := k.p.volumes.Swap(ctx, c.Key+"/back", k.f.Sources, old, time.Time{}); err != nil {
			return err
		}
	case R1Engine:
		old, err := k.old()
		if err != nil {
			return err
		}
		l, err := st.live(ctx, k.p, k.a.Database)
		if err != nil {
			return err
		}
		if _, err := st.prepare(ctx, c, k.p, k.a.Database, old, l.sources, database.Production, c.Key+"/r1/prepare"); err != nil {
			return err
		}
	case R1App, Stayed: // undone before: the volumes stay as they are
	case R4:
		restored, err := k.p.find(ctx, c.Delivery, o.Restore)
		if err != nil {
			return err
		}
		if _, err := k.p.volumes.Swap(ctx, c.Key+"/restore", k.f.Sources, restored, c.Now.Add(keepFailed)); err != nil {
			return err
		}
	}
	s.Back = true
	return c.Save(ctx, *s)
}
