package data

import (
	"context"
	"fmt"
	"time"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
)

// pinWithin is how long the fence waits at most for the engine's log to be pinned.
const pinWithin = 15 * time.Second

// pin has the engine keep its log from before the opening on, so that a restore could count what it would discard. An engine
// without a log, or one that refuses, keeps nobody from opening: the difference of rows is counted then.
func (st open) pin(ctx context.Context, c step.Call, k fencedCall, s *opened) error {
	l, u, err := st.log(k)
	if l == nil || err != nil || s.Pin != "" || s.NoPin != "" {
		return err
	}
	within, cancel := context.WithTimeout(ctx, pinWithin)
	defer cancel()
	if s.Pin, err = l.Pin(within, c.Key, u); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.Pin, s.NoPin = "", err.Error()
		c.Progress("what a restore of the checkpoint would discard can be counted by rows only: %v", err)
	}
	return c.Save(ctx, *s)
}

// unpin lets the log go, if production still has it pinned.
func (st open) unpin(ctx context.Context, c step.Call, k fencedCall) error {
	l, u, err := st.log(k)
	if l == nil || err != nil {
		return err
	}
	return l.Unpin(ctx, c.Key, u)
}

// log returns the engine where it has a log, and how production is reached.
func (st open) log(k fencedCall) (database.Log, database.URL, error) {
	engine, err := st.ports.Engine(k.a.Database.Engine)
	if err != nil {
		return nil, database.URL{}, err
	}
	l, ok := engine.(database.Log)
	if !ok {
		return nil, database.URL{}, nil
	}
	u, err := st.url(k.p, k.a.Database, k.a.Database.Namespace, false)
	return l, u, err
}

// countWrites replaces the number of rows by that of writes where the engine's log tells it. Behind the fence, the stopped
// database's own volumes hold the log to its end.
func (st open) countWrites(ctx context.Context, c step.Call, k fencedCall, s *opened) error {
	l, _, err := st.log(k)
	if l == nil || err != nil {
		return err
	}
	n := s.AtRisk
	if s.Pin == "" {
		n.Why = "the log was not kept: " + s.NoPin
		return nil
	}
	now, err := st.live(ctx, k.p, k.a.Database)
	if err != nil {
		return err
	}
	writes, err := st.atRisk(ctx, c, k.p, k.a.Database, l, now, s.Pin, fmt.Sprintf("%s/at-risk/%d", c.Key, s.Try))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case fault.Is(err, fault.Transient):
		return err
	case err != nil:
		n.Why = err.Error()
	case writes.Value == 0 && n.Value > 0:
		n.Why = fmt.Sprintf("%s holds no write, and yet rows differ", writes.Source)
	default:
		n.Rows, n.Value, n.Kind, n.Source = n.Value, writes.Value, string(writes.Kind), writes.Source
	}
	return nil
}

// countable refuses a budget of writes that could not be counted when it matters, before anything of production is closed: by the
// programs of the new version's image, which a restore would find in service.
func (b base) countable(ctx context.Context, c step.Call, p place, a plan.DataArgs, l live, next workload) error {
	engine, err := b.ports.Engine(a.Database.Engine)
	if err != nil || a.MaxLost == 0 {
		return err
	}
	log, ok := engine.(database.Log)
	if !ok {
		return nil // the deploy file is refused
	}
	if r, away := p.Platform.(platform.Runner); away {
		image := next.template.Spec.Containers[0].Image
		if _, err = r.Run(ctx, c.Key+"/countable", platform.Errand{Namespace: a.Database.Namespace, Delivery: c.Delivery, Like: next.template.Spec, Image: image,
			Args: []string{"countable", "--engine", a.Database.Engine}}); err != nil {
			err = fmt.Errorf("a pod of %s says: %w", image, err)
		}
	} else {
		err = log.Countable(ctx, dirsOf(l.sources))
	}
	if err == nil || ctx.Err() != nil || fault.Is(err, fault.Transient) {
		return err
	}
	return fault.WithRemedy(fault.Newf(fault.Invalid, "the writes that upgrade.maxLost of database %s allows to discard could not be counted: %w", a.Database.Name, err),
		"leave maxLost out, and a restore asks a person; or use an image with the programs that read the log")
}

// within reports whether a budget of writes covers what would be discarded. Rows are no writes: two writes to one row are one
// row, so they fit into no budget.
func (n atRisk) within(budget int64) bool {
	return n.Kind != string(database.NetRows) && n.Value <= budget
}

// what says how much a restore would discard.
func (n atRisk) what() string {
	if n.Kind != string(database.NetRows) {
		return fmt.Sprintf("%d committed transactions (%s, %s), which left %d differing rows", n.Value, n.Kind, n.Source, n.Rows)
	}
	s := fmt.Sprintf("%d differing rows (%s, %s)", n.Value, n.Kind, n.Source)
	if n.Why != "" {
		s += ", the writes were not counted (" + n.Why + ")"
	}
	return s
}
