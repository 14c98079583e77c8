package step

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/plan"
)

// pause lets time pass.
type pause struct{ nothing }

// until is what waiting steps keep: the instant does not move when they are entered again.
type until struct {
	Until time.Time `json:"until,omitzero"`
}

// Plan says for how long.
func (pause) Plan(n plan.Node) (plan.Description, error) {
	a, err := read[plan.PauseArgs](n.Args)
	return plan.Description{Does: "waits " + a.For.String()}, err
}

// Run waits.
func (pause) Run(ctx context.Context, c Call) (Outcome, error) {
	a, err := read[plan.PauseArgs](c.Args)
	if err != nil {
		return Outcome{}, err
	}
	s, err := read[until](c.Saved)
	if err != nil {
		return Outcome{}, err
	}
	if s.Until.IsZero() {
		s.Until = c.Now.Add(a.For)
		if err := c.Save(ctx, s); err != nil {
			return Outcome{}, err
		}
	}
	if c.Now.Before(s.Until) {
		return Wait(s.Until, "until "+s.Until.Format(time.TimeOnly)), nil
	}
	return Done(delivery.Pass, "waited "+a.For.String()), nil
}

// approval waits for a person.
type approval struct{ nothing }

// Plan says who may approve.
func (approval) Plan(n plan.Node) (plan.Description, error) {
	a, err := read[plan.ApprovalArgs](n.Args)
	d := plan.Description{Does: "asks for approval", WaitsFor: "sluice deploy approve"}
	if len(a.Roles) > 0 {
		d.Does += " by one of the roles " + strings.Join(a.Roles, ", ")
	}
	if a.Expires > 0 {
		d.WaitsFor += fmt.Sprintf(", at most %s", a.Expires)
	}
	return d, err
}

// Run waits for the first decision.
func (approval) Run(ctx context.Context, c Call) (Outcome, error) {
	a, err := read[plan.ApprovalArgs](c.Args)
	if err != nil {
		return Outcome{}, err
	}
	for _, s := range c.Signals {
		switch s.Kind {
		case delivery.Approve:
			return Done(delivery.Pass, "approved by "+who(s)), nil
		case delivery.Reject:
			return Done(delivery.Fail, "rejected by "+who(s)), nil
		}
	}
	s, err := read[until](c.Saved)
	if err != nil {
		return Outcome{}, err
	}
	if a.Expires > 0 && s.Until.IsZero() {
		s.Until = c.Now.Add(a.Expires)
		if err := c.Save(ctx, s); err != nil {
			return Outcome{}, err
		}
	}
	if a.Expires > 0 && !c.Now.Before(s.Until) {
		return Done(delivery.Fail, fmt.Sprintf("nobody approved within %s", a.Expires)), nil
	}
	return Wait(s.Until, "waits for approval: sluice deploy approve "+c.Delivery, "approve/"+c.Path, "reject/"+c.Path), nil
}

func who(s delivery.Signal) string {
	if s.By == "" {
		return "somebody"
	}
	return s.By
}
