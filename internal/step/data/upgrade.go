package data

import (
	"context"
	"fmt"
	"time"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
)

// upgradeClone takes the checkpoint behind the fence and upgrades a clone of it: the new version starts on it and the
// migrations run. Production's own volumes are not touched.
type upgradeClone struct{ base }

// upgraded is what upgradeClone keeps.
type upgraded struct {
	Try        int       `json:"try"`
	Checkpoint string    `json:"checkpoint,omitempty"` // copy id
	Clone      string    `json:"clone,omitempty"`      // copy id
	Site       plan.Site `json:"site"`
}

// Plan says what is upgraded.
func (upgradeClone) Plan(n plan.Node) (plan.Description, error) {
	a, err := args[plan.DataArgs](n.Args)
	if err != nil {
		return plan.Description{}, err
	}
	w, _, jobs, err := split(a.Objects, a.Database.Workload)
	return plan.Description{
		Does: fmt.Sprintf("takes the checkpoint of %s, starts %s on a clone of it in %s and runs %d migration Job(s) there",
			a.Database.Name, w.images(), a.Database.Namespace+"-upgrade", len(jobs)),
		UndoneBy: "deleting the clone",
	}, err
}

// fencedCall is what every step of the fenced upgrade begins with.
type fencedCall struct {
	a       plan.DataArgs
	p       place
	f       fenced
	next    workload
	objects []manifest.Object // without Jobs
	jobs    []manifest.Object
}

func (b base) fencedCall(c step.Call) (fencedCall, error) {
	var k fencedCall
	var err error
	if k.a, err = args[plan.DataArgs](c.Args); err != nil {
		return k, err
	}
	if k.f, err = group[fenced](c, k.a, "fence"); err != nil {
		return k, err
	}
	if k.p, err = b.at(k.a.Database.Account); err != nil {
		return k, err
	}
	var rest []manifest.Object
	if k.next, rest, k.jobs, err = split(k.a.Objects, k.a.Database.Workload); err != nil {
		return k, err
	}
	k.objects = append(rest, k.next.object)
	return k, nil
}

// ownOptions are how a database's own objects are applied.
func ownOptions(c step.Call, a plan.DataArgs) platform.Options {
	return platform.Options{Namespace: a.Database.Namespace, Delivery: c.Delivery, Force: a.Force}
}

// old returns the database as it ran before the fence.
func (k fencedCall) old() (workload, error) {
	w, _, _, err := split(k.f.Old, k.a.Database.Workload)
	return w, err
}

func unchanged() step.Outcome {
	return step.Done(delivery.Pass, "nothing to do: the database does not change")
}

// Run upgrades a clone. What goes wrong with the new version fails the step, and R0 follows.
func (st upgradeClone) Run(ctx context.Context, c step.Call) (step.Outcome, error) {
	k, err := st.fencedCall(c)
	if err != nil || k.f.Unchanged {
		return unchanged(), err
	}
	s, err := saved[upgraded](c.Saved)
	if err != nil {
		return step.Outcome{}, err
	}
	s = upgraded{Try: s.Try + 1, Checkpoint: c.Key + "/checkpoint", Clone: c.Key + "/clone",
		Site: plan.Site{Account: k.a.Database.Account, Namespace: k.a.Database.Namespace + "-upgrade"}}
	if err := c.Save(ctx, s); err != nil {
		return step.Outcome{}, err
	}
	start := time.Now()
	return inTime(ctx, c, k.a, k.f, func(within context.Context) (step.Outcome, error) {
		if err := st.upgrade(within, c, k, s); err != nil {
			if within.Err() != nil || fault.Is(err, fault.Transient) {
				return step.Outcome{}, err
			}
			return step.Done(delivery.Fail, "the upgrade of a clone failed: "+err.Error()), nil
		}
		return step.Done(delivery.Pass, fmt.Sprintf("a clone of the checkpoint runs %s after %d migration Job(s), in %s", k.next.images(), len(k.jobs), since(start))), nil
	})
}

func (st upgradeClone) upgrade(ctx context.Context, c step.Call, k fencedCall, s upgraded) error {
	// An interrupted entry may have left half a migration: the clone is made anew.
	if s.Try > 1 {
		if err := st.stop(ctx, c, k.p, s.Site.Namespace, k.a.Objects, fmt.Sprintf("%s/again/%d", c.Key, s.Try)); err != nil {
			return err
		}
		if err := k.p.discard(ctx, c.Delivery, s.Clone); err != nil {
			return err
		}
	}
	c.Progress("taking the checkpoint of %s", k.a.Database.Name)
	checkpoint, err := k.p.volumes.Cut(ctx, s.Checkpoint, c.Delivery, k.f.Sources)
	if err != nil {
		return err
	}
	if err := k.p.volumes.Ready(ctx, checkpoint); err != nil {
		return err
	}
	err = st.raise(ctx, c, k.p, k.a.Database, raising{namespace: s.Site.Namespace, from: checkpoint, workload: k.next, objects: k.objects,
		role: database.Upgrade, copyID: s.Clone, upKey: fmt.Sprintf("%s/up/%d", c.Key, s.Try), timeout: k.a.Timeout})
	if err != nil {
		return err
	}
	for i, j := range k.jobs {
		c.Progress("running migration Job %s", j.GetName())
		_, err := k.p.Apply(ctx, fmt.Sprintf("%s/job/%d/%d", c.Key, s.Try, i), []manifest.Object{j}, platform.Options{Namespace: s.Site.Namespace, Delivery: c.Delivery})
		if err != nil {
			return err
		}
		if err := step.Await(ctx, k.p, k.a.Timeout, "complete", podRefs([]manifest.Object{j}, s.Site.Namespace), step.Ready); err != nil {
			return err
		}
	}
	return nil
}

// Undo has what runs on the clone stop; the clean-up waits for it and deletes it. Production, which is to start next, waits neither
// for pods of a clone that may take long to end nor for what cannot be deleted.
func (st upgradeClone) Undo(ctx context.Context, c step.Call) (step.Outcome, error) {
	k, err := st.fencedCall(c)
	if err != nil || k.f.Unchanged {
		return unchanged(), err
	}
	s, err := saved[upgraded](c.Saved)
	if err != nil || s.Try == 0 {
		return unchanged(), err
	}
	said := "the clone is being stopped"
	if _, err := st.beginStop(ctx, c, k.p, s.Site.Namespace, k.a.Objects, c.Key+"/undo"); err != nil {
		said = "the clone is left to the clean-up: " + err.Error()
	}
	return step.Done(delivery.Pass, said), ctx.Err()
}

// Clean deletes the checkpoint and, where it did not become production, the clone. The volumes that the swap took out of
// service are kept until the bake ends; they hold the same.
func (st upgradeClone) Clean(ctx context.Context, c step.Call) (step.Outcome, error) {
	k, err := st.fencedCall(c)
	if err != nil || k.f.Unchanged {
		return unchanged(), err
	}
	s, err := saved[upgraded](c.Saved)
	if err != nil || s.Try == 0 {
		return unchanged(), err
	}
	if err := st.clear(ctx, c, k.p, s.Site.Namespace, k.a.Objects, c.Key+"/clean"); err != nil {
		return step.Outcome{}, err
	}
	for _, id := range []string{s.Clone, s.Checkpoint} {
		// A copy that production runs on now, and what it was cloned from, stay.
		if err := k.p.discard(ctx, c.Delivery, id); err != nil && !fault.Is(err, fault.Denied) && !fault.Is(err, fault.Conflict) {
			return step.Outcome{}, err
		}
	}
	return step.Done(delivery.Pass, ""), nil
}

// quickVerify compares the upgraded clone with the checkpoint, behind the fence.
type quickVerify struct{ base }

// Plan says what is compared.
func (quickVerify) Plan(n plan.Node) (plan.Description, error) {
	a, err := args[plan.DataArgs](n.Args)
	return plan.Description{
		Does:     fmt.Sprintf("compares every row of the upgraded clone of %s with the checkpoint, read by the old version", a.Database.Name),
		UndoneBy: "nothing: it only reads",
	}, err
}

// Run verifies within what is left of the fence's time.
func (st quickVerify) Run(ctx context.Context, c step.Call) (step.Outcome, error) {
	k, err := st.fencedCall(c)
	if err != nil || k.f.Unchanged {
		return unchanged(), err
	}
	u, err := group[upgraded](c, k.a, "upgrade")
	if err != nil {
		return step.Outcome{}, err
	}
	s, err := saved[verifying](c.Saved)
	if err != nil {
		return step.Outcome{}, err
	}
	if s, err = s.begin(ctx, c); err != nil {
		return step.Outcome{}, err
	}
	return inTime(ctx, c, k.a, k.f, func(within context.Context) (step.Outcome, error) { return st.verify(within, c, k, u, s) })
}

func (k fencedCall) before() plan.Site {
	return beside(plan.Site{Account: k.a.Database.Account, Namespace: k.a.Database.Namespace}, "before")
}

func (st quickVerify) verify(ctx context.Context, c step.Call, k fencedCall, u upgraded, s verifying) (step.Outcome, error) {
	checkpoint, err := k.p.find(ctx, c.Delivery, u.Checkpoint)
	if err != nil {
		return step.Outcome{}, err
	}
	old, err := k.old()
	if err != nil {
		return step.Outcome{}, err
	}
	at := k.before()
	err = st.raise(ctx, c, k.p, k.a.Database, raising{namespace: at.Namespace, from: checkpoint, workload: old, objects: k.f.Old,
		role: database.Control, copyID: c.Key + "/before", upKey: fmt.Sprintf("%s/up/%d", c.Key, s.Try), timeout: k.a.Timeout})
	if err != nil {
		return step.Outcome{}, fmt.Errorf("start the old version on a clone of the checkpoint: %w", err)
	}
	out, err := st.compare(ctx, c, k.p, k.a, twins{old: at.Namespace, new: u.Site.Namespace}, s, fmt.Sprintf("%s/compare/%d", c.Key, s.Try))
	if err != nil {
		return out, err
	}
	if err := st.stop(ctx, c, k.p, at.Namespace, k.f.Old, fmt.Sprintf("%s/down/%d", c.Key, s.Try)); err != nil {
		return step.Outcome{}, err
	}
	return out, nil
}

// Undo has nothing to take back.
func (st quickVerify) Undo(context.Context, step.Call) (step.Outcome, error) {
	return step.Done(delivery.Pass, "it only reads"), nil
}

// Clean deletes the clone of the checkpoint that was read.
func (st quickVerify) Clean(ctx context.Context, c step.Call) (step.Outcome, error) {
	k, err := st.fencedCall(c)
	if err != nil || k.f.Unchanged || k.f.Since.IsZero() {
		return unchanged(), err
	}
	if err := st.clear(ctx, c, k.p, k.before().Namespace, k.f.Old, c.Key+"/clean"); err != nil {
		return step.Outcome{}, err
	}
	return step.Done(delivery.Pass, ""), k.p.discard(ctx, c.Delivery, c.Key+"/before")
}

// bake is how long the old volumes stay protected where the deploy file does not say.
const bake = 24 * time.Hour

func bakeOf(a plan.DataArgs) time.Duration {
	if a.Bake == 0 {
		return bake
	}
	return a.Bake
}
