package data

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/volume"
)

// fence makes sure that nobody can write: the database's Services are closed and its workload is stopped cleanly.
type fence struct{ base }

// fenced is what fence keeps; the later steps of the upgrade work from it.
type fenced struct {
	Unchanged bool              `json:"unchanged,omitempty"` // the database stays as it is: the other steps have nothing to do
	Applied   step.Applied      `json:"applied,omitzero"`    // what belongs to a database that stays as it is
	Since     time.Time         `json:"since,omitzero"`
	Replicas  int               `json:"replicas,omitempty"`
	Services  []manifest.Ref    `json:"services,omitempty"`
	Sources   []volume.Source   `json:"sources,omitempty"`
	Old       []manifest.Object `json:"old,omitempty"` // the database as it ran
}

// DefaultFence is how long a fence stands at most where the deploy file does not say.
const DefaultFence = 10 * time.Minute

func deadline(a plan.DataArgs) time.Duration {
	if a.Deadline == 0 {
		return DefaultFence
	}
	return a.Deadline
}

// group returns what a sibling of the same fenced upgrade kept.
func group[T any](c step.Call, a plan.DataArgs, name string) (T, error) {
	return saved[T](c.Siblings(a.Group + "/" + name))
}

// Plan says who is held and for how long.
func (fence) Plan(n plan.Node) (plan.Description, error) {
	a, err := args[plan.DataArgs](n.Args)
	return plan.Description{
		Does: fmt.Sprintf("closes the Services of %s in %s and stops it: connections are held, not refused, for at most %s; where it does not change, only what belongs to it is applied",
			a.Database.Workload, a.Database.Namespace, deadline(a)) + budget(a.MaxLost),
		UndoneBy: "R0: the old version starts on the untouched volumes and the Services open",
	}, err
}

// budget says what is looked for first where a restore may discard writes.
func budget(writes int64) string {
	if writes == 0 {
		return ""
	}
	return fmt.Sprintf("; fails before that where the up to %d writes that a restore may discard could not be counted", writes)
}

// Run closes and stops.
func (st fence) Run(ctx context.Context, c step.Call) (step.Outcome, error) {
	begun := time.Now()
	a, err := args[plan.DataArgs](c.Args)
	if err != nil {
		return step.Outcome{}, err
	}
	s, err := saved[fenced](c.Saved)
	if err != nil {
		return step.Outcome{}, err
	}
	p, err := st.at(a.Database.Account)
	if err != nil {
		return step.Outcome{}, err
	}
	f, err := optional[platform.Fencer](p, "hold connections back")
	if err != nil {
		return step.Outcome{}, err
	}
	if s.Unchanged {
		return st.unchanged(ctx, c, p, a, s)
	}
	if s.Since.IsZero() {
		l, err := st.live(ctx, p, a.Database)
		if err != nil {
			return step.Outcome{}, err
		}
		next, rest, jobs, err := split(a.Objects, a.Database.Workload)
		if err != nil {
			return step.Outcome{}, err
		}
		if same(l.workload, next) && len(jobs) == 0 {
			return st.unchanged(ctx, c, p, a, fenced{Unchanged: true})
		}
		if err := errors.Join(keepsClaims(l.object, "as it runs"), keepsClaims(next.object, "in its manifest")); err != nil {
			return refusal(ctx, err)
		}
		if err := sameClaims(l.workload, next); err != nil {
			return refusal(ctx, err)
		}
		if err := st.countable(ctx, c, p, a, l, next); err != nil {
			return refusal(ctx, err)
		}
		if err := errors.Join(accepted(ctx, p, append(rest, next.object), ownOptions(c, a)), foresee(ctx, c, p, a.Then)); err != nil {
			return refusal(ctx, err)
		}
		// What was asked beforehand is none of the fence's time.
		s = fenced{Since: c.Now.Add(time.Since(begun)), Replicas: int(l.replicas), Sources: l.sources, Old: withoutSecrets(l.bundle())}
		for _, o := range l.services {
			s.Services = append(s.Services, manifest.Ref{Kind: "Service", Namespace: a.Database.Namespace, Name: o.GetName()})
		}
		if err := c.Save(ctx, s); err != nil {
			return step.Outcome{}, err
		}
	}
	c.Progress("closing %d Service(s) and stopping %s", len(s.Services), a.Database.Workload)
	return inTime(ctx, c, a, s, func(within context.Context) (step.Outcome, error) {
		return step.Done(delivery.Pass, fmt.Sprintf("nobody can write to %s since %s", a.Database.Name, s.Since.Format(time.TimeOnly))), st.shut(within, c.Key, p, f, a, s)
	})
}

// keepsClaims refuses a workload that would lose its claims when it is stopped, before anything of it is closed: the running one
// is stopped by the fence, and the new version by every way back.
func keepsClaims(o manifest.Object, which string) error {
	when, _, _ := unstructured.NestedString(o.Object, "spec", "persistentVolumeClaimRetentionPolicy", "whenScaled")
	if when != "Delete" {
		return nil
	}
	return fault.WithRemedy(fault.Newf(fault.Invalid, "%s %s cannot be stopped: its persistentVolumeClaimRetentionPolicy deletes the claims, and the data with them", o.Ref(), which),
		"set whenScaled: Retain in its persistentVolumeClaimRetentionPolicy")
}

// sameClaims refuses a new version that mounts other claims than the running one, which are those that the upgraded volumes are
// bound to, in their order. It would start on empty or exchanged volumes.
func sameClaims(running, next workload) error {
	if slices.Equal(running.claims, next.claims) {
		return nil
	}
	return fault.WithRemedy(fault.Newf(fault.Invalid, "%s mounts the claims %s as it runs, and %s in its manifest: the new version would not start on the upgraded volumes",
		running.object.Ref(), strings.Join(running.claims, ", "), strings.Join(next.claims, ", ")), "keep the claims, their names and their order, as they are")
}

// shut closes the Services and stops the workload.
func (b base) shut(ctx context.Context, key string, p place, f platform.Fencer, a plan.DataArgs, s fenced) error {
	if err := f.Close(ctx, key+"/close", s.Services); err != nil {
		return err
	}
	ref := a.Database.Workload
	ref.Namespace = a.Database.Namespace
	if err := f.Scale(ctx, key+"/stop", ref, 0); err != nil {
		return err
	}
	return step.Await(ctx, p, a.Timeout, "stopped", []manifest.Ref{ref}, step.Stopped)
}

// Undo starts the workload as it is now declared and opens the Services. Which version and which volumes that means has
// been put right by the steps that were undone before.
func (st fence) Undo(ctx context.Context, c step.Call) (step.Outcome, error) {
	a, err := args[plan.DataArgs](c.Args)
	if err != nil {
		return step.Outcome{}, err
	}
	s, err := saved[fenced](c.Saved)
	if err != nil || s.Since.IsZero() && !s.Unchanged {
		return step.Done(delivery.Pass, "the database was not touched"), err
	}
	p, err := st.at(a.Database.Account)
	if err != nil {
		return step.Outcome{}, err
	}
	if s.Unchanged {
		return st.restBack(ctx, c, p, a, s)
	}
	o, err := group[opened](c, a, "open")
	if err != nil {
		return step.Outcome{}, err
	}
	if o.Path.staysOpen() {
		return step.Done(delivery.Pass, o.Path.describe()), nil
	}
	f, err := optional[platform.Fencer](p, "hold connections back")
	if err != nil {
		return step.Outcome{}, err
	}
	ref := a.Database.Workload
	ref.Namespace = a.Database.Namespace
	if err := isBack(ctx, c, p, ref, s.Old); err != nil {
		return step.Outcome{}, err
	}
	if err := f.Scale(ctx, c.Key+"/start", ref, s.Replicas); err != nil {
		return step.Outcome{}, err
	}
	if err := step.Await(ctx, p, a.Timeout, "ready", []manifest.Ref{ref}, step.Ready); err != nil {
		return step.Outcome{}, fmt.Errorf("the old version does not start: %w", err)
	}
	if o.Path == R4 {
		// Nobody has written yet: what is wrong now is the restore's doing, and the fence stays closed.
		if err := st.prove(ctx, c, p, a.Database, o); err != nil {
			return step.Outcome{}, err
		}
	}
	if err := f.Open(ctx, c.Key+"/open", s.Services); err != nil {
		return step.Outcome{}, err
	}
	return step.Done(delivery.Pass, fmt.Sprintf("%s is back: %s", a.Database.Name, o.Path.describe())), nil
}

// isBack refuses to start a workload that does not run the old version's images: whatever others have made of it meanwhile, the
// volumes are those of the old version by now.
func isBack(ctx context.Context, c step.Call, p place, ref manifest.Ref, old []manifest.Object) error {
	get, err := optional[platform.Getter](p, "read live objects")
	if err != nil {
		return err
	}
	was, _, _, err := split(old, ref)
	if err != nil {
		return err
	}
	o, err := get.Get(ctx, ref)
	if err != nil {
		return err
	}
	is := workload{object: o}
	if is.template, _, err = o.PodTemplate(); err != nil {
		return err
	}
	if is.images() == was.images() {
		return nil
	}
	return fault.WithRemedy(fault.Newf(fault.Conflict, "%s asks for %s, and its volumes are those of %s: it is not started, and its Services stay closed", ref, is.images(), was.images()),
		"give its pod template %s again, leave it at 0 replicas, and undo again with sluice deploy retry %s", was.images(), c.Delivery)
}

// Path is a way back.
type Path string

// The ways back, cheapest first.
const (
	R0       Path = ""          // behind the fence: the old version on the untouched volumes
	R1Engine Path = "R1-engine" // the old version on the volumes that hold the new writes
	R1App    Path = "R1-app"    // only the application goes back
	R4       Path = "R4"        // the checkpoint is restored
	Stayed   Path = "stayed"    // in place of R4, because a person decided so: the database does not go back
)

// staysOpen reports whether the database goes on running the new version.
func (p Path) staysOpen() bool { return p == R1App || p == Stayed }

func (p Path) describe() string {
	switch p {
	case R1Engine:
		return "R1-engine, the old version on the volumes that hold what was written meanwhile"
	case R1App:
		return "R1-app, the old application on the new database"
	case R4:
		return "R4, the checkpoint is restored and what was written since is exported"
	case Stayed:
		return "the database stays on the new version, nothing is restored or lost"
	default:
		return "R0, the old version on its untouched volumes"
	}
}

// inTime does a part of the upgrade behind the fence within what is left of the fence's time. What has not passed by then fails,
// so that R0 follows by itself.
func inTime(ctx context.Context, c step.Call, a plan.DataArgs, s fenced, do func(within context.Context) (step.Outcome, error)) (step.Outcome, error) {
	over := fmt.Sprintf("the fence stands for %s, its deadline", deadline(a))
	rest := deadline(a) - c.Now.Sub(s.Since)
	if rest <= 0 {
		return step.Done(delivery.Fail, over), nil
	}
	within, cancel := context.WithTimeout(ctx, rest)
	defer cancel()
	out, err := do(within)
	switch {
	case within.Err() == nil || ctx.Err() != nil || err == nil && out.Verdict == delivery.Pass:
		return out, err
	case err != nil:
		return step.Done(delivery.Fail, over+": "+err.Error()), nil
	}
	out.Verdict, out.Message = delivery.Fail, over+": "+out.Message
	return out, nil
}
