package data

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
)

// keepFailed is how long the volumes that a restore took out of service are protected.
const keepFailed = 30 * 24 * time.Hour

// open ends the fence: from here on production writes to the new version, and R0 no longer exists.
type open struct{ base }

// opened is what open keeps. Path is the way back that its undo has chosen.
type opened struct {
	At      time.Time           `json:"at,omitzero"`
	Stood   time.Duration       `json:"stood,omitempty"`
	Path    Path                `json:"path,omitempty"`
	Pin     string              `json:"pin,omitempty"`   // position from which the engine's log is kept
	NoPin   string              `json:"noPin,omitempty"` // why it is not
	Try     int                 `json:"try,omitempty"`   // of the counting
	Seed    string              `json:"seed,omitempty"`
	AtRisk  *atRisk             `json:"atRisk,omitempty"`
	Restore string              `json:"restore,omitempty"` // copy id of what R4 binds
	Proof   *fingerprint.Digest `json:"proof,omitempty"`   // of the checkpoint, without leaves
	Stay    *staying            `json:"stay,omitempty"`    // the decision to stay on the new version, the last one
	Stays   int                 `json:"stays,omitempty"`   // how many such decisions have been taken up
	Reopens bool                `json:"reopens,omitempty"` // the fence may be open again: what was counted no longer counts
}

// Plan says that R0 ends here.
func (open) Plan(n plan.Node) (plan.Description, error) {
	a, err := args[plan.DataArgs](n.Args)
	ways := "R4: restoring the checkpoint, which loses what was written since, and asks"
	if a.Rehearsal != "" {
		ways = "R1 as far as " + a.Rehearsal + " opens it, else " + ways
	}
	return plan.Description{Does: "opens the Services of " + a.Database.Workload.String() + "; R0 no longer exists afterwards", UndoneBy: ways, NoReturnAfter: true}, err
}

// Run opens the Services.
func (st open) Run(ctx context.Context, c step.Call) (step.Outcome, error) {
	k, err := st.fencedCall(c)
	if err != nil || k.f.Unchanged {
		return unchanged(), err
	}
	f, err := optional[platform.Fencer](k.p, "hold connections back")
	if err != nil {
		return step.Outcome{}, err
	}
	s, err := saved[opened](c.Saved)
	if err != nil {
		return step.Outcome{}, err
	}
	if s.At.IsZero() {
		s.At, s.Stood = c.Now, c.Now.Sub(k.f.Since).Round(10*time.Millisecond)
		if err := c.Save(ctx, s); err != nil {
			return step.Outcome{}, err
		}
	}
	if err := st.pin(ctx, c, k, &s); err != nil {
		return step.Outcome{}, err
	}
	if err := f.Open(ctx, c.Key+"/open", k.f.Services); err != nil {
		return step.Outcome{}, err
	}
	out := step.Done(delivery.Pass, fmt.Sprintf("%s is open on %s; the fence stood %s", k.a.Database.Name, k.next.images(), s.Stood))
	out.Evidence = map[string]any{"fenceMillis": s.Stood.Milliseconds()}
	return out, nil
}

// Undo chooses the way back: what was written since the opening is kept wherever a rehearsed way keeps it.
func (st open) Undo(ctx context.Context, c step.Call) (step.Outcome, error) {
	k, err := st.fencedCall(c)
	if err != nil || k.f.Unchanged {
		return unchanged(), err
	}
	s, err := saved[opened](c.Saved)
	if err != nil || s.At.IsZero() {
		return step.Done(delivery.Pass, "it was not opened"), err
	}
	if s.Path == "" {
		if s.Path, err = st.choose(c, k); err != nil {
			return step.Outcome{}, err
		}
		if err := c.Save(ctx, s); err != nil {
			return step.Outcome{}, err
		}
	}
	if s.Path == Stayed {
		return st.stayed(ctx, c, k, s)
	}
	if s.Path == R4 {
		if given := stays(c.Signals); len(given) > s.Stays {
			return st.stay(ctx, c, k, s, given)
		}
		return st.restore(ctx, c, k, s, "")
	}
	if s.Path == R1App {
		// It stays open. Where the opening itself has failed, it is not yet.
		f, err := optional[platform.Fencer](k.p, "hold connections back")
		if err != nil {
			return step.Outcome{}, err
		}
		if err := f.Open(ctx, c.Key+"/open", k.f.Services); err != nil {
			return step.Outcome{}, err
		}
	}
	return step.Done(delivery.Pass, "the way back is "+s.Path.describe()), nil
}

func (st open) choose(c step.Call, k fencedCall) (Path, error) {
	if k.a.Rehearsal == "" {
		return R4, nil
	}
	r, err := saved[rehearsed](c.Siblings(k.a.Rehearsal))
	if err != nil {
		return "", err
	}
	old, err := k.old()
	if err != nil {
		return "", err
	}
	switch {
	case r.R1Engine && r.From == old.images() && r.To == k.next.images():
		return R1Engine, nil
	case r.R1App:
		return R1App, nil
	}
	return R4, nil
}

// atRisk is what a restore of the checkpoint would discard.
type atRisk struct {
	Value  int64  `json:"value"`
	Kind   string `json:"kind"`
	Source string `json:"source"`
	Digest string `json:"digest"`         // of the export: an acknowledgement quotes it
	Export string `json:"export"`         // file with the differences, as they could be written again
	Rows   int64  `json:"rows,omitempty"` // that differ, where Value counts writes
	Why    string `json:"why,omitempty"`  // no writes could be counted, though the engine has a log
}

// exported reports whether the export is there to be handed to a person: a controller's next pod has files of its own.
func (n atRisk) exported() bool {
	_, err := os.Stat(n.Export)
	return err == nil
}

// restore counts what would be lost, behind the fence, and goes on only within the budget or when a person has quoted the
// number and its digest.
func (st open) restore(ctx context.Context, c step.Call, k fencedCall, s opened, note string) (step.Outcome, error) {
	f, err := optional[platform.Fencer](k.p, "hold connections back")
	if err != nil {
		return step.Outcome{}, err
	}
	if err := st.shut(ctx, fmt.Sprintf("%s/undo/%d", c.Key, s.Stays), k.p, f, k.a, k.f); err != nil {
		return step.Outcome{}, err
	}
	if s.AtRisk != nil && !s.AtRisk.exported() {
		c.Progress("the export of what a restore would discard is not on this machine, where another one has counted; it is counted again")
		s.AtRisk = nil
	}
	if s.AtRisk == nil {
		if err := st.count(ctx, c, k, &s); err != nil {
			return step.Outcome{}, err
		}
	}
	n := s.AtRisk
	if n.Value == 0 {
		return step.Done(delivery.Pass, "a restore of the checkpoint loses nothing"), nil
	}
	if n.within(k.a.MaxLost) {
		return step.Done(delivery.Pass, fmt.Sprintf("a restore of the checkpoint discards %s, which the budget of %d allows (upgrade.maxLost); they are exported to %s",
			n.what(), k.a.MaxLost, n.Export)), nil
	}
	refused := note
	for _, sig := range c.Signals {
		if sig.Kind != delivery.Acknowledge {
			continue
		}
		if sig.Data["digest"] == n.Digest && sig.Data["value"] == fmt.Sprint(n.Value) {
			return step.Done(delivery.Pass, fmt.Sprintf("%s accepted that a restore discards %s; they are exported to %s", sig.By, n.what(), n.Export)), nil
		}
		refused = fmt.Sprintf("the acknowledgement of %s quotes another number or digest and does not count; ", sig.By)
	}
	return step.Wait(c.Now.Add(24*time.Hour), fmt.Sprintf("%sa restore of the checkpoint would discard %s: acknowledge with --value %d --digest %s, or stay on %s",
		refused, n.what(), n.Value, n.Digest, k.next.images()), c.Path), nil
}

// count counts and exports what a restore would discard, and keeps the result.
func (st open) count(ctx context.Context, c step.Call, k fencedCall, s *opened) error {
	u, err := group[upgraded](c, k.a, "upgrade")
	if err != nil {
		return err
	}
	checkpoint, err := k.p.find(ctx, c.Delivery, u.Checkpoint)
	if err != nil {
		return fault.WithRemedy(err, "without its checkpoint the delivery cannot be restored; its old volumes are kept")
	}
	s.Try++
	if s.Seed == "" {
		s.Seed = fingerprint.NewSeed().String()
	}
	if err := c.Save(ctx, *s); err != nil {
		return err
	}
	if s.AtRisk, s.Proof, err = st.countRows(ctx, c, k, *s, checkpoint); err != nil {
		return err
	}
	if err := st.countWrites(ctx, c, k, s); err != nil {
		return err
	}
	s.Restore = restoredClone(c.Key)
	return c.Save(ctx, *s)
}

// Clean deletes what counting left behind.
func (st open) Clean(ctx context.Context, c step.Call) (step.Outcome, error) {
	k, err := st.fencedCall(c)
	if err != nil || k.f.Unchanged {
		return unchanged(), err
	}
	s, err := saved[opened](c.Saved)
	if err != nil || s.At.IsZero() {
		return unchanged(), err
	}
	if err := st.unpin(ctx, c, k); err != nil {
		return step.Outcome{}, err
	}
	if s.Try == 0 {
		return unchanged(), nil
	}
	if err := st.uncount(ctx, c, k, s.Try); err != nil {
		return step.Outcome{}, err
	}
	// What was readied for a restore that did not happen; one that did is what production runs on now.
	if err := k.p.discard(ctx, c.Delivery, restoredClone(c.Key)); err != nil && !fault.Is(err, fault.Denied) {
		return step.Outcome{}, err
	}
	return step.Done(delivery.Pass, ""), st.release(ctx, c, k.p, restoredSite(k.a).Namespace)
}

func failedSite(a plan.DataArgs) plan.Site {
	return beside(plan.Site{Account: a.Database.Account, Namespace: a.Database.Namespace}, "failed")
}

// restoredSite is where what a restore binds is made.
func restoredSite(a plan.DataArgs) plan.Site {
	return beside(plan.Site{Account: a.Database.Account, Namespace: a.Database.Namespace}, "restored")
}
