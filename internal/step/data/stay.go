package data

import (
	"context"
	"fmt"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
)

// staying is a person's decision that the database stays on the new version rather than lose what was written with it.
type staying struct {
	By     string `json:"by,omitempty"`
	Reason string `json:"reason,omitempty"`
}

func (d staying) String() string {
	s := "decided by " + d.By
	if d.By == "" {
		s = "decided by a person"
	}
	if d.Reason != "" {
		s += fmt.Sprintf(" (%q)", d.Reason)
	}
	return s
}

// stays returns the decisions to stay among the signals, in the order in which they came.
func stays(signals []delivery.Signal) []staying {
	var out []staying
	for _, s := range signals {
		if s.Kind == delivery.Stay {
			out = append(out, staying{By: s.By, Reason: s.Data["reason"]})
		}
	}
	return out
}

// stay takes a decision up. From here on the checkpoint is not restored, also after a crash.
func (st open) stay(ctx context.Context, c step.Call, k fencedCall, s opened, given []staying) (step.Outcome, error) {
	s.Path, s.Stays, s.Stay = Stayed, len(given), &given[len(given)-1]
	if err := c.Save(ctx, s); err != nil {
		return step.Outcome{}, err
	}
	return st.stayed(ctx, c, k, s)
}

// stayed starts the new version on the volumes that it has and opens the fence. Where it does not start, the question is
// asked again: a restore of the checkpoint is then still what can be chosen.
func (st open) stayed(ctx context.Context, c step.Call, k fencedCall, s opened) (step.Outcome, error) {
	f, err := optional[platform.Fencer](k.p, "hold connections back")
	if err != nil {
		return step.Outcome{}, err
	}
	ref := k.next.ref(k.a.Database.Namespace)
	key := fmt.Sprintf("%s/stay/%d", c.Key, s.Stays)
	if err := f.Scale(ctx, key+"/start", ref, int(k.next.replicas)); err != nil {
		return step.Outcome{}, err
	}
	c.Progress("starting %s again, as %s", k.next.images(), s.Stay)
	if err := step.Await(ctx, k.p, k.a.Timeout, "ready", []manifest.Ref{ref}, step.Ready); err != nil {
		if ctx.Err() != nil || fault.Is(err, fault.Transient) {
			return step.Outcome{}, err
		}
		return st.askAgain(ctx, c, k, s, err)
	}
	s.Reopens = true
	if err := c.Save(ctx, s); err != nil {
		return step.Outcome{}, err
	}
	if err := f.Open(ctx, key+"/open", k.f.Services); err != nil {
		return step.Outcome{}, err
	}
	out := step.Done(delivery.Pass, fmt.Sprintf("%s stays on %s, %s: the fence is open, nothing is restored or lost", k.a.Database.Name, k.next.images(), s.Stay))
	loses := "a restore of the checkpoint would have discarded what was written since"
	if n := s.AtRisk; n != nil {
		loses = "a restore of the checkpoint would have discarded " + n.what()
	}
	out.Kept = fmt.Sprintf("%s stays on the new version %s, %s, since %s", k.a.Database.Name, k.next.images(), s.Stay, loses)
	return out, nil
}

// askAgain closes the fence and asks. Where it may have been open, because a crash came after the opening, it is counted anew.
func (st open) askAgain(ctx context.Context, c step.Call, k fencedCall, s opened, why error) (step.Outcome, error) {
	note := fmt.Sprintf("%s cannot stay on %s, which does not start again: %v; ", k.a.Database.Name, k.next.images(), why)
	if s.Path, s.Stay = R4, nil; s.Reopens {
		s.AtRisk, s.Reopens = nil, false
	}
	if err := c.Save(ctx, s); err != nil {
		return step.Outcome{}, err
	}
	return st.restore(ctx, c, k, s, note)
}
