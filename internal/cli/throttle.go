package cli

import (
	"context"
	"sync"
	"time"

	"github.com/sluice-cd/sluice/internal/database"
)

// pace lets through so many rows a second, all scans of a side together.
type pace struct {
	every time.Duration // between two rows

	mu   sync.Mutex
	next time.Time // when the next row may pass
}

func newPace(rowsPerSecond int) *pace {
	return &pace{every: time.Second / time.Duration(rowsPerSecond), next: time.Now()}
}

// pass waits until so many rows may pass. After a standstill what was not used is not made up for.
func (p *pace) pass(ctx context.Context, rows int) error {
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	wait := p.next.Sub(now)
	p.next = p.next.Add(time.Duration(rows) * p.every)
	p.mu.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// paceStep is how many rows pass at once: waiting for each would cost more than reading it.
const paceStep = 100

// paced is a view whose rows come no faster than a pace.
type paced struct {
	database.View
	pace *pace
}

// Scan implements database.View.
func (v paced) Scan(ctx context.Context, r database.Range, p *database.Projection, each func(database.Row) error) (int64, error) {
	return v.View.Scan(ctx, r, p, v.slowly(ctx, each))
}

// Fetch implements database.View.
func (v paced) Fetch(ctx context.Context, r database.Relation, p *database.Projection, keys [][]byte, each func(database.Row) error) error {
	return v.View.Fetch(ctx, r, p, keys, v.slowly(ctx, each))
}

func (v paced) slowly(ctx context.Context, each func(database.Row) error) func(database.Row) error {
	rows := 0
	return func(r database.Row) error {
		if rows++; rows%paceStep == 0 {
			if err := v.pace.pass(ctx, paceStep); err != nil {
				return err
			}
		}
		return each(r)
	}
}
