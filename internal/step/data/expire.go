package data

import (
	"context"
	"fmt"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/step"
)

// Kept is a copy that outlives its delivery and is deleted when its time is over.
type Kept struct {
	ID      string
	Account string
	What    string // "the checkpoint before-upgrade"
	Until   time.Time
	// needed copies are deleted once nothing that was made of them is in use any more; until then they stay without an error.
	needed bool
}

// Keeps returns what an ended delivery keeps and for how long: its checkpoints, and, where it succeeded, the volumes that a
// promoted upgrade took out of service, with the copies that it was made from. All other copies are deleted by a person:
// those are the state before or after something that failed.
func Keeps(spec delivery.Spec, st delivery.Status) ([]Kept, error) {
	if !st.Done {
		return nil, nil
	}
	var out []Kept
	for _, n := range spec.Graph.Nodes {
		k := st.Nodes[n.Path]
		if k.Verdict != delivery.Pass || n.Kind != plan.KindCheckpointData && n.Kind != plan.KindSwap {
			continue
		}
		a, err := args[plan.DataArgs](n.Args)
		if err != nil {
			return nil, err
		}
		var more []Kept
		if n.Kind == plan.KindCheckpointData {
			more, err = keepsCheckpoint(a, k)
		} else {
			more, err = keepsVolumes(a, st, k)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

func keepsCheckpoint(a plan.DataArgs, k delivery.NodeStatus) ([]Kept, error) {
	s, err := saved[checkpointed](k.Saved)
	if err != nil || s.Cut == nil || a.TTL == 0 {
		return nil, err
	}
	return []Kept{{ID: s.Cut.ID, Account: a.Database.Account, What: "the checkpoint " + a.Name, Until: k.Ended.Add(a.TTL)}}, nil
}

func keepsVolumes(a plan.DataArgs, st delivery.Status, k delivery.NodeStatus) ([]Kept, error) {
	opened := st.Nodes[a.Group+"/open"]
	if st.State != delivery.Succeeded || k.Phase != delivery.StepPassed || opened.Phase != delivery.StepPassed || opened.Verdict != delivery.Pass {
		return nil, nil
	}
	s, err := saved[swapped](k.Saved)
	if err != nil || s.Old == "" || s.Back {
		return nil, err
	}
	f, err := saved[fenced](st.Nodes[a.Group+"/fence"].Saved)
	if err != nil {
		return nil, err
	}
	u, err := saved[upgraded](st.Nodes[a.Group+"/upgrade"].Saved)
	if err != nil {
		return nil, err
	}
	until := f.Since.Add(bakeOf(a))
	out := []Kept{{ID: s.Old, Account: a.Database.Account, What: "the volumes that the upgrade of " + a.Database.Name + " took out of service", Until: until}}
	for _, id := range []string{u.Clone, u.Checkpoint} {
		out = append(out, Kept{ID: id, Account: a.Database.Account, What: "a copy that the upgrade of " + a.Database.Name + " was made from", Until: until, needed: true})
	}
	return out, nil
}

// Expire deletes what an ended delivery kept and whose time is over, and returns when the next one's is: zero where there
// is none. What runs, what is protected, and what something in use was made from stay.
func Expire(ctx context.Context, ports step.Ports, spec delivery.Spec, st delivery.Status, now time.Time) (next time.Time, err error) {
	all, err := Keeps(spec, st)
	if err != nil {
		return next, err
	}
	b := base{ports: ports}
	for _, k := range all {
		if now.Before(k.Until) {
			if next.IsZero() || k.Until.Before(next) {
				next = k.Until
			}
			continue
		}
		p, err := b.at(k.Account)
		if err != nil {
			return next, err
		}
		err = p.discard(ctx, spec.ID, k.ID)
		if k.needed && (fault.Is(err, fault.Denied) || fault.Is(err, fault.Conflict)) {
			continue
		}
		if err != nil {
			return next, fmt.Errorf("%s is over, delivery %s: %w", k.What, spec.ID, err)
		}
	}
	return next, nil
}
