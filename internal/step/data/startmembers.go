package data

import (
	"context"
	"fmt"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
)

// startMembers gives the workload of a replicated database its new version, which no member has yet, and takes it back from
// those that have it.
type startMembers struct{ base }

// started is what startMembers keeps; the steps that roll work from it.
type started struct {
	Begun    bool              `json:"begun,omitempty"`
	First    bool              `json:"first,omitempty"` // nothing ran before
	Changes  []platform.Change `json:"changes,omitempty"`
	Handover *handover         `json:"handover,omitempty"` // of the way back
}

// Plan says what is prepared, and what the engine cannot do.
func (st startMembers) Plan(n plan.Node) (plan.Description, error) {
	a, err := args[plan.MembersArgs](n.Args)
	if err != nil {
		return plan.Description{}, err
	}
	if _, err := headless(a.Workload); err != nil {
		return plan.Description{}, err
	}
	roler, err := st.roler(a.Database)
	if err != nil {
		return plan.Description{}, err
	}
	does := fmt.Sprintf("gives %s its new version, which none of its %d members has yet; a member that dies comes back in the old one", a.Database.Workload, a.Members)
	if _, ok := handsOver(roler); !ok {
		does += "; refuses unless the primary is member 0, because its part cannot be handed over"
	}
	return plan.Description{Does: does, WaitsFor: "one primary, and everybody else follows it",
		UndoneBy: "the old version on the same volumes, member by member, the primary last; what was written stays"}, nil
}

// Run looks at the members first: nothing is written where one of them is not as it should be.
func (st startMembers) Run(ctx context.Context, c step.Call) (step.Outcome, error) {
	r, err := st.replica(c)
	if err != nil {
		return step.Outcome{}, err
	}
	s, err := saved[started](c.Saved)
	if err != nil {
		return step.Outcome{}, err
	}
	if !s.Begun {
		get, err := optional[platform.Getter](r.p, "read live objects")
		if err != nil {
			return step.Outcome{}, err
		}
		_, err = get.Get(ctx, r.ref)
		s.First = fault.Is(err, fault.NotFound)
		if err == nil {
			err = r.atRest(ctx)
		}
		if err != nil && !s.First {
			return refusal(ctx, err)
		}
		if err := foresee(ctx, c, r.p, r.a.Then); err != nil {
			return refusal(ctx, err)
		}
		s.Begun = true
		if err := c.Save(ctx, s); err != nil {
			return step.Outcome{}, err
		}
	}
	s.Changes, err = r.start(ctx, s)
	if err != nil {
		return refusal(ctx, err)
	}
	if err := c.Save(ctx, s); err != nil {
		return step.Outcome{}, err
	}
	if s.First {
		if err := step.Await(ctx, r.p, r.a.Timeout, "ready", []manifest.Ref{r.ref}, step.Ready); err != nil {
			return refusal(ctx, err)
		}
		return step.Done(delivery.Pass, fmt.Sprintf("the first version of %s is ready", r.ref)), nil
	}
	return step.Done(delivery.Pass, "no member has the new version yet"), nil
}

// refusal turns what waiting does not cure into the verdict fail.
func refusal(ctx context.Context, err error) (step.Outcome, error) {
	if ctx.Err() != nil || fault.Is(err, fault.Transient) {
		return step.Outcome{}, err
	}
	return step.Done(delivery.Fail, err.Error()), nil
}

// start gives the workload its new version, or makes it where there is none.
func (r replica) start(ctx context.Context, s started) ([]platform.Change, error) {
	opts := platform.Options{Namespace: r.a.Database.Namespace, Delivery: r.c.Delivery, Force: r.a.Force}
	if s.First {
		return r.p.Apply(ctx, r.c.Key+"/first", []manifest.Object{r.a.Workload}, opts)
	}
	return r.roller.StartRoll(ctx, r.c.Key+"/start", r.a.Workload, opts)
}

// atRest refuses to begin with members that are not all well.
func (r replica) atRest(ctx context.Context) error {
	all, err := r.members.Members(ctx, r.ref)
	if err != nil {
		return err
	}
	for _, m := range all {
		if !m.Ready {
			return fault.WithRemedy(fault.Newf(fault.Conflict, "member %s of database %s is not ready", m.Name, r.a.Database.Name), "bring it back first")
		}
	}
	roles, primary, err := r.roles(ctx, all)
	if err != nil {
		return err
	}
	if primary < 0 {
		return fault.Newf(fault.Invalid, "database %s has no primary: its members are %s", r.a.Database.Name, names(all))
	}
	for i, m := range all {
		if i != primary && roles[i].Source == "" {
			return fault.WithRemedy(fault.Newf(fault.Conflict, "member %s of database %s does not follow %s", m.Name, r.a.Database.Name, all[primary].Name),
				"let it catch up first; the user of the connection must be a member of pg_monitor to see that it does")
		}
	}
	if _, ok := handsOver(r.roler); !ok && primary != 0 {
		return fault.WithRemedy(fault.Newf(fault.Invalid, "the primary of database %s is %s, and a %s primary cannot be handed over", r.a.Database.Name, all[primary].Name, r.a.Database.Engine),
			"make member 0 the primary: it is the last one to get the new version")
	}
	return nil
}

// Undo gives the members that have the new version the old one again: first those that do not work, the primary last.
func (st startMembers) Undo(ctx context.Context, c step.Call) (step.Outcome, error) {
	r, err := st.replica(c)
	if err != nil {
		return step.Outcome{}, err
	}
	s, err := saved[started](c.Saved)
	if err != nil {
		return step.Outcome{}, err
	}
	if !s.Begun {
		return step.Done(delivery.Pass, "nothing was changed"), nil
	}
	if s.Changes == nil {
		// The platform may have been asked; the same key tells what it did.
		if s.Changes, err = r.start(ctx, s); err != nil {
			if ctx.Err() != nil || fault.Is(err, fault.Transient) {
				return step.Outcome{}, err
			}
			return step.Done(delivery.Pass, "nothing was changed"), nil
		}
	}
	if !s.First {
		if err := r.roller.TurnBack(ctx, c.Key+"/back", s.Changes); err != nil {
			return step.Outcome{}, err
		}
		if err := r.walkBack(ctx, &s); err != nil {
			return step.Outcome{}, err
		}
	}
	if err := r.p.Revert(ctx, c.Key+"/revert", s.Changes); err != nil {
		return step.Outcome{}, err
	}
	if !s.First {
		if err := step.Await(ctx, r.p, r.a.Timeout, "ready", []manifest.Ref{r.ref}, step.Ready); err != nil {
			return step.Outcome{}, err
		}
	}
	return step.Done(delivery.Pass, "every member has the old version"), nil
}

// walkBack restarts the members that have the new version, one after another.
func (r replica) walkBack(ctx context.Context, s *started) error {
	for {
		if h := s.Handover; h != nil && !h.Done {
			if err := r.handOver(ctx, *h); err != nil {
				return err
			}
			h.Done = true
			if err := r.c.Save(ctx, s); err != nil {
				return err
			}
		}
		all, err := r.members.Members(ctx, r.ref)
		if err != nil {
			return err
		}
		next := -1
		for i, m := range all {
			if !m.Present && (next < 0 || all[next].Ready) {
				next = i
			}
			if !m.Present && !m.Ready {
				break
			}
		}
		if next < 0 {
			_, _, err := r.whole(ctx, -1)
			return err
		}
		if all[next].Ready {
			var primary int
			if all, primary, err = r.whole(ctx, -1); err != nil {
				return err
			}
			followers := false
			for i, m := range all {
				if !m.Present && i != primary {
					next, followers = i, true
				}
			}
			if !followers && next == primary {
				if _, ok := handsOver(r.roler); ok {
					to, err := successor(all, primary)
					if err != nil {
						return err
					}
					s.Handover = &handover{From: all[primary].Name, To: all[to].Name, ID: all[primary].ID}
					if err := r.c.Save(ctx, s); err != nil {
						return err
					}
					continue // it is restarted by that, and comes back in the old version
				}
			}
		}
		r.c.Progress("%s goes back to the old version", all[next].Name)
		if err := r.restart(ctx, next, all[next]); err != nil {
			return err
		}
	}
}
