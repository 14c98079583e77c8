package data

import (
	"context"
	"fmt"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/volume"
)

// markData takes the thin clone of the candidate that is verified: the change is complete, and no application has written.
type markData struct{ base }

// marked is what markData keeps.
type marked struct {
	Try  int       `json:"try"`
	Cut  *cut      `json:"cut,omitempty"`
	Site plan.Site `json:"site"`
	Up   bool      `json:"up,omitempty"`
}

func (s marked) copyID(key string) string { return key + "/mark" }

// Plan says what the mark is.
func (markData) Plan(n plan.Node) (plan.Description, error) {
	a, err := args[plan.DataArgs](n.Args)
	return plan.Description{
		Does:     fmt.Sprintf("marks %s: a clone of the candidate after its migrations and before any application writes, started in %s-mark", a.Database.Name, a.To.Namespace),
		UndoneBy: "nothing: the mark is deleted when the delivery ends",
	}, err
}

// Run cuts the candidate and starts the new version on the clone.
func (st markData) Run(ctx context.Context, c step.Call) (step.Outcome, error) {
	a, err := args[plan.DataArgs](c.Args)
	if err != nil {
		return step.Outcome{}, err
	}
	s, err := saved[marked](c.Saved)
	if err != nil {
		return step.Outcome{}, err
	}
	p, err := st.at(a.To.Account)
	if err != nil {
		return step.Outcome{}, err
	}
	at := a.Database
	at.Namespace = a.To.Namespace
	candidate, err := st.live(ctx, p, at)
	if err != nil {
		return step.Outcome{}, err
	}
	s.Try, s.Site = s.Try+1, beside(a.To, "mark")
	if err := c.Save(ctx, s); err != nil {
		return step.Outcome{}, err
	}
	if s.Cut == nil {
		for try := 1; try < s.Try; try++ {
			if err := p.discard(ctx, c.Delivery, cutID(c.Key, try)); err != nil {
				return step.Outcome{}, err
			}
		}
		k, err := st.take(ctx, c, p, a.Database, a.To.Namespace, candidate.sources, cutID(c.Key, s.Try), 0)
		if err != nil {
			return step.Outcome{}, err
		}
		s.Cut = &k
		if err := c.Save(ctx, s); err != nil {
			return step.Outcome{}, err
		}
	}
	from, err := p.find(ctx, c.Delivery, s.Cut.ID)
	if err != nil {
		return step.Outcome{}, err
	}
	if err := st.raiseMark(ctx, c, p, a, candidate, from, &s); err != nil {
		return step.Outcome{}, err
	}
	return step.Done(delivery.Pass, fmt.Sprintf("marked %s: %s", a.Database.Name, s.Cut)), nil
}

func (st markData) raiseMark(ctx context.Context, c step.Call, p place, a plan.DataArgs, l live, from volume.Copy, s *marked) error {
	others, err := st.others(ctx, a.Database)
	if err != nil {
		return err
	}
	err = st.raise(ctx, c, p, a.Database, raising{namespace: s.Site.Namespace, others: others, from: from, workload: l.workload, objects: l.bundle(),
		role: database.Candidate, copyID: s.copyID(c.Key), upKey: fmt.Sprintf("%s/up/%d", c.Key, s.Try), timeout: a.Timeout})
	if err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	server, err := st.open(ctx, p, a.Database, s.Site.Namespace)
	if err != nil {
		return err
	}
	err = covers(ctx, server, s.Cut.Census)
	if e := server.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	s.Up = true
	return c.Save(ctx, *s)
}

// Undo leaves the mark to the clean-up: it changed nothing.
func (markData) Undo(context.Context, step.Call) (step.Outcome, error) {
	return step.Done(delivery.Pass, "a mark changes nothing"), nil
}

// Clean deletes the mark.
func (st markData) Clean(ctx context.Context, c step.Call) (step.Outcome, error) {
	a, err := args[plan.DataArgs](c.Args)
	if err != nil {
		return step.Outcome{}, err
	}
	s, err := saved[marked](c.Saved)
	if err != nil || s.Try == 0 {
		return step.Done(delivery.Pass, ""), err
	}
	p, err := st.at(a.To.Account)
	if err != nil {
		return step.Outcome{}, err
	}
	if err := st.clear(ctx, c, p, s.Site.Namespace, a.Objects, c.Key+"/clean"); err != nil {
		return step.Outcome{}, err
	}
	gone := []string{s.copyID(c.Key)}
	for try := s.Try; try > 0; try-- {
		gone = append(gone, cutID(c.Key, try))
	}
	return step.Done(delivery.Pass, ""), p.discard(ctx, c.Delivery, gone...)
}
