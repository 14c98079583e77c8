package step

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
)

// Simple returns the steps that touch no data, by kind.
func Simple(p Ports) map[string]Step {
	return map[string]Step{
		plan.KindPause:       pause{},
		plan.KindApproval:    approval{},
		plan.KindWebhook:     webhook{p},
		plan.KindAnalysis:    analysis{p},
		plan.KindExpose:      expose{p},
		plan.KindApply:       apply{forgetting{p}},
		plan.KindStartCanary: startCanary{forgetting{p}},
		plan.KindSetWeight:   setWeight{p},
		plan.KindRedirect:    setWeight{p},
		plan.KindPromote:     promote{p},
		plan.KindRunJob:      runJob{p},
		plan.KindWaitFor:     waitFor{p},
	}
}

// read reads planned arguments, or what a step has saved.
func read[T any](raw json.RawMessage) (T, error) {
	var v T
	if len(raw) == 0 {
		return v, nil
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return v, fault.Newf(fault.Invalid, "a step's arguments cannot be read: %w", err)
	}
	return v, nil
}

// nothing is the undo of steps that change nothing.
type nothing struct{}

// Undo has nothing to take back.
func (nothing) Undo(context.Context, Call) (Outcome, error) {
	return Done(delivery.Pass, "nothing was changed"), nil
}

// Await waits until every object satisfies until. An object that has failed, or is not there in time, is an error of kind
// invalid that says why in the platform's words, also where ctx has no more time. That ctx was cancelled is returned as it is.
func Await(ctx context.Context, p platform.Platform, timeout time.Duration, what string, refs []manifest.Ref, until func(platform.State) bool) error {
	return await(ctx, p, timeout, what, refs, true, until)
}

// await is Await, which, where it does not give up, waits for what has failed, too.
func await(ctx context.Context, p platform.Platform, timeout time.Duration, what string, refs []manifest.Ref, givesUp bool, until func(platform.State) bool) error {
	if len(refs) == 0 {
		return nil
	}
	start := time.Now()
	within, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	states, err := p.Watch(within, refs)
	if err != nil {
		return err
	}
	last := map[manifest.Ref]platform.State{}
	for s := range states {
		last[s.Ref] = s
		if givesUp && s.Failed && !until(s) {
			return fault.Newf(fault.Invalid, "%s failed: %s: %s", s.Ref, s.Reason, s.Message)
		}
		open := 0
		for _, r := range refs {
			if l, ok := last[r]; !ok || !until(l) {
				open++
			}
		}
		if open == 0 {
			return nil
		}
	}
	if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err()
	}
	for _, r := range refs {
		l := last[r]
		if until(l) {
			continue
		}
		if within.Err() == nil {
			return fault.Newf(fault.Transient, "the platform no longer tells how %s is", r)
		}
		return fault.Newf(fault.Invalid, "%s is not %s after %s: %s: %s", r, what, time.Since(start).Round(time.Second), l.Reason, l.Message)
	}
	return nil
}

// recovery is how long an application may need after its database was away: its pods may have crashed meanwhile, and are started again
// every five minutes at the latest.
const recovery = 6 * time.Minute

// recovered waits until those objects that are there are ready: what is not has no canary. One that does not recover in time is left to the
// platform to refuse, in its own words.
func recovered(ctx context.Context, p platform.Platform, c Call, refs []manifest.Ref) error {
	told := false
	err := await(ctx, p, recovery, "ready again", refs, false, func(s platform.State) bool {
		ok := !s.Exists || s.Ready
		if !ok && !told {
			told = true
			c.Progress("waiting until %s is ready again after its database was away", s.Ref)
		}
		return ok
	})
	if fault.Is(err, fault.Invalid) && ctx.Err() == nil {
		return nil
	}
	return err
}

// Ready reports whether the object serves.
func Ready(s platform.State) bool { return s.Exists && s.Ready }

// Stopped reports whether nothing of the object runs.
func Stopped(s platform.State) bool { return !s.Exists || s.Stopped }

// Gone reports whether there is nothing of the object any more, so that another one can have its name.
func Gone(s platform.State) bool { return !s.Exists }

// verdict turns an error of the change itself into the verdict fail. What may work later stays an error; so does a missing
// privilege, as credentials that have expired are: nothing is wrong with the new version, and a rollback would lack it too.
func verdict(ctx context.Context, err error) (Outcome, error) {
	if ctx.Err() != nil || fault.Is(err, fault.Transient) || fault.Is(err, fault.Denied) {
		return Outcome{}, err
	}
	return Done(delivery.Fail, err.Error()), nil
}

// refs returns the objects' names in the namespace that they are applied to.
func refs(objects []manifest.Object, namespace string) []manifest.Ref {
	var out []manifest.Ref
	for _, o := range objects {
		r := o.Ref()
		if namespace != "" {
			r.Namespace = namespace
		}
		out = append(out, r)
	}
	return out
}
