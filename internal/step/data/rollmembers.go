package data

import (
	"context"
	"fmt"
	"strings"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
)

// rollMembers gives some members of a replicated database the new version, from the last ordinal down. A primary is handed
// over before its turn.
type rollMembers struct{ base }

// rolling is what rollMembers keeps.
type rolling struct {
	Handovers []handover `json:"handovers,omitempty"`
}

// open returns the handover that has begun and not ended.
func (s *rolling) open() *handover {
	if n := len(s.Handovers); n > 0 && !s.Handovers[n-1].Done {
		return &s.Handovers[n-1]
	}
	return nil
}

// Plan says which members.
func (st rollMembers) Plan(n plan.Node) (plan.Description, error) {
	a, err := args[plan.MembersArgs](n.Args)
	if err != nil {
		return plan.Description{}, err
	}
	roler, err := st.roler(a.Database)
	if err != nil {
		return plan.Description{}, err
	}
	last := fmt.Sprintf("members %d to %d", a.Members-1, a.Members-a.Roll)
	switch a.Roll {
	case 0:
		last = "no member"
	case 1:
		last = fmt.Sprintf("member %d", a.Members-1)
	}
	does := fmt.Sprintf("gives %s of %s the new version, one after another", last, a.Database.Workload)
	if _, ok := handsOver(roler); ok {
		does += "; a primary steps down before its turn, and writes wait for as long as its pod takes to start again"
	}
	return plan.Description{Does: does, WaitsFor: fmt.Sprintf("before each, all others are ready and follow the primary; after each, it does (at most %s)", a.Timeout),
		UndoneBy: "what prepared the new version takes it back"}, nil
}

// Run walks from the last ordinal down.
func (st rollMembers) Run(ctx context.Context, c step.Call) (step.Outcome, error) {
	r, err := st.replica(c)
	if err != nil {
		return step.Outcome{}, err
	}
	s, err := saved[rolling](c.Saved)
	if err != nil {
		return step.Outcome{}, err
	}
	begun, err := saved[started](c.Siblings(r.a.Group + "/start"))
	if err != nil {
		return step.Outcome{}, err
	}
	if begun.First {
		return step.Done(delivery.Pass, "it is the first version: every member has it"), nil
	}
	told, err := r.roll(ctx, &s)
	if err != nil {
		return refusal(ctx, err)
	}
	if r.a.Last {
		if err := r.roller.EndRoll(ctx, c.Key+"/end", begun.Changes); err != nil {
			return refusal(ctx, err)
		}
	}
	return step.Done(delivery.Pass, told), nil
}

// roll gives as many members as it should the new version, and tells what it did.
func (r replica) roll(ctx context.Context, s *rolling) (string, error) {
	var told []string
	for done := 0; ; {
		if h := s.open(); h != nil {
			if err := r.handOver(ctx, *h); err != nil {
				return "", err
			}
			h.Done = true
			if err := r.c.Save(ctx, s); err != nil {
				return "", err
			}
			told = append(told, fmt.Sprintf("the primary went from %s to %s", h.From, h.To))
		}
		all, err := r.members.Members(ctx, r.ref)
		if err != nil {
			return "", err
		}
		i := len(all) - 1 - done
		if done >= r.a.Roll || i < 0 {
			return strings.Join(append([]string{fmt.Sprintf("%d of %d members have the new version", done, len(all))}, told...), "; "), nil
		}
		if !all[i].Present {
			begun, err := r.turn(ctx, s, i)
			if err != nil {
				return "", err
			}
			if begun {
				continue
			}
		}
		if err := r.arrives(ctx, i, "ready with the new version", func(m platform.Member) bool { return m.Present && m.Ready }); err != nil {
			return "", err
		}
		if _, _, err := r.whole(ctx, -1); err != nil {
			return "", err
		}
		done++
	}
}

// turn is one member's turn to get the new version; or, of a primary, to step down first, which it reports.
func (r replica) turn(ctx context.Context, s *rolling, i int) (stepsDown bool, err error) {
	all, primary, err := r.whole(ctx, i)
	if err != nil {
		return false, err
	}
	switch _, can := handsOver(r.roler); {
	case primary < 0:
		return false, fault.Newf(fault.Invalid, "database %s has no primary any more", r.a.Database.Name)
	case primary != i:
	case can:
		to, err := successor(all, primary)
		if err != nil {
			return false, err
		}
		s.Handovers = append(s.Handovers, handover{From: all[primary].Name, To: all[to].Name, ID: all[primary].ID})
		return true, r.c.Save(ctx, s)
	case i != 0:
		return false, fault.WithRemedy(fault.Newf(fault.Invalid, "%s has become the primary of database %s, and its part cannot be handed over", all[i].Name, r.a.Database.Name),
			"make member 0 the primary")
	}
	r.c.Progress("%s gets the new version", all[i].Name)
	return false, r.allowed(ctx, func(ctx context.Context) error {
		return r.roller.Roll(ctx, fmt.Sprintf("%s/roll/%d", r.c.Key, i), r.ref, i)
	})
}

// Undo carries a handover that has begun to its end; the members are for the step that prepared the new version.
func (st rollMembers) Undo(ctx context.Context, c step.Call) (step.Outcome, error) {
	s, err := saved[rolling](c.Saved)
	if err != nil {
		return step.Outcome{}, err
	}
	if h := s.open(); h != nil {
		r, err := st.replica(c)
		if err != nil {
			return step.Outcome{}, err
		}
		if err := r.handOver(ctx, *h); err != nil {
			return step.Outcome{}, err
		}
		h.Done = true
		if err := c.Save(ctx, s); err != nil {
			return step.Outcome{}, err
		}
	}
	return step.Done(delivery.Pass, "the members go back next"), nil
}
