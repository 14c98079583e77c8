package data

import (
	"context"
	"fmt"
	"time"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/platform"
)

// handover is the part of the primary on its way from one member to another. It is saved before the first change, and once
// begun it is always carried to its end: a primary that is told to follow is one until it is started anew.
type handover struct {
	From string `json:"from"`
	To   string `json:"to"`
	ID   string `json:"id"` // the old primary's pod
	Done bool   `json:"done,omitempty"`
}

// handOver hands the part of the primary over: the old one is made a follower and started anew, and when the other one holds
// all that it holds, that one is promoted. There are never two primaries, and no acknowledged write is lost; between the
// restart and the promotion there is none.
func (r replica) handOver(ctx context.Context, h handover) error {
	engine, ok := handsOver(r.roler)
	if !ok {
		return fault.Newf(fault.Invalid, "database %s: a %s primary cannot be handed over", r.a.Database.Name, r.a.Database.Engine)
	}
	all, err := r.members.Members(ctx, r.ref)
	if err != nil {
		return err
	}
	from, to := indexOf(all, h.From), indexOf(all, h.To)
	if from < 0 || to < 0 {
		return fault.Newf(fault.Lost, "database %s has no members %s and %s any more", r.a.Database.Name, h.From, h.To)
	}
	old, err := r.url(h.From)
	if err != nil {
		return err
	}
	next, err := r.url(h.To)
	if err != nil {
		return err
	}
	host, err := r.host(h.To)
	if err != nil {
		return err
	}
	began := time.Now()
	r.c.Progress("handing the primary over from %s to %s: no writes meanwhile", h.From, h.To)
	if all[from].ID == h.ID {
		if all[from].Ready {
			if err := engine.Follow(ctx, old, next, host, h.From); err != nil {
				return err
			}
		}
		if err := r.restart(ctx, from, all[from]); err != nil {
			return err
		}
	}
	if err := r.arrives(ctx, from, "ready again", func(m platform.Member) bool { return m.Ready }); err != nil {
		return err
	}
	if err := r.catchUp(ctx, h); err != nil {
		return err
	}
	if err := engine.Promote(ctx, next); err != nil {
		return err
	}
	r.c.Progress("%s is the primary: no writes for %s", h.To, since(began))
	if err := r.gather(ctx, engine, h.To); err != nil {
		return err
	}
	_, _, err = r.whole(ctx, -1)
	return err
}

// catchUp waits until the member that is to be promoted holds all that the old primary holds, which takes no writes any more.
func (r replica) catchUp(ctx context.Context, h handover) error {
	var old, next database.Member
	return r.until(ctx, func(ctx context.Context) (ok bool, err error) {
		if next, err = r.ask(ctx, h.To); err != nil || next.Primary {
			return err == nil, err
		}
		if old, err = r.ask(ctx, h.From); err != nil {
			return false, err
		}
		if old.Primary {
			return false, fault.WithRemedy(fault.Newf(fault.Invalid, "member %s was told to follow %s and came back as the primary", h.From, h.To),
				"whatever starts it must not decide that it is the primary while its data directory holds standby.signal")
		}
		return next.Position >= old.Position, nil
	}, func() string {
		return fmt.Sprintf("%s holds less than %s, which was the primary (%x of %x)", h.To, h.From, next.Position, old.Position)
	})
}

// gather has every other member follow the primary.
func (r replica) gather(ctx context.Context, engine database.Stepdown, primary string) error {
	host, err := r.host(primary)
	if err != nil {
		return err
	}
	all, err := r.members.Members(ctx, r.ref)
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.Name == primary || !m.Ready {
			continue
		}
		u, err := r.url(m.Name)
		if err != nil {
			return err
		}
		if err := engine.Follow(ctx, u, u, host, m.Name); err != nil {
			return fmt.Errorf("member %s: %w", m.Name, err)
		}
	}
	return nil
}

// successor chooses who takes over from the primary at an ordinal: one of the version that it has itself, the first ordinal
// first, because a follower may read the log of an older version but not of a newer one; the last of all hands over to the
// newest.
func successor(all []platform.Member, primary int) (int, error) {
	for i, m := range all {
		if i != primary && m.Ready && m.Present == all[primary].Present {
			return i, nil
		}
	}
	for i := len(all) - 1; i >= 0; i-- {
		if i != primary && all[i].Ready {
			return i, nil
		}
	}
	return -1, fault.Newf(fault.Invalid, "there is nobody to take over from %s", all[primary].Name)
}
