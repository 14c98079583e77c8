package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/store"
)

// After an error something is tried again, ever later.
const (
	firstPause   = 50 * time.Millisecond
	longestPause = time.Minute
)

// admit gives a delivery that has none a worker, if it may run.
func (e *Engine) admit(ctx context.Context, id string) {
	h, err := e.o.Store.Head(ctx, id)
	switch {
	case fault.Is(err, fault.NotFound) || err == nil && h.Done:
	case err == nil && h.State != delivery.Queued:
		e.work(ctx, id)
	default:
		// Whether it is its turn, the others of its application decide. One that could not be looked at is open, for all that
		// is known.
		e.look()
	}
}

// look has the queue be looked at.
func (e *Engine) look() {
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// queue gives deliveries workers, when it is their turn, until ctx ends. What cannot be read is read again after a while, and
// keeps nothing else waiting.
func (e *Engine) queue(ctx context.Context) {
	for pause := firstPause; ; {
		var again <-chan time.Time
		stop := func() {}
		if err := e.recover(ctx); err == nil {
			pause = firstPause
		} else if ctx.Err() == nil {
			e.o.Log.Error("the queue cannot be read as a whole; it is tried again", "error", err, "in", pause)
			again, stop = e.o.Clock.After(pause)
		}
		select {
		case <-ctx.Done():
			stop()
			return
		case <-e.changed:
		case <-again:
			pause = min(2*pause, longestPause)
		}
		stop()
	}
}

// recover gives every open delivery that may run a worker: the oldest of each application, and one that is cancelled
// while it waits behind another. Its error tells of those of which that could not be found out.
func (e *Engine) recover(ctx context.Context) error {
	open, err := e.o.Store.Heads(ctx, true)
	if err != nil {
		return fmt.Errorf("list the open deliveries: %w", err)
	}
	busy := map[string]bool{}
	for _, d := range open {
		busy[d.Application] = busy[d.Application] || d.State != delivery.Queued
	}
	var behind []string
	for _, d := range open {
		if d.State != delivery.Queued || !busy[d.Application] {
			e.work(ctx, d.ID)
		} else {
			behind = append(behind, d.ID)
		}
	}
	var unread []error
	for _, id := range behind {
		cancelled, err := e.cancelled(ctx, id)
		if err != nil {
			unread = append(unread, fmt.Errorf("look whether delivery %s, which waits behind another, is cancelled: %w", id, err))
		}
		if cancelled {
			e.work(ctx, id)
		}
	}
	return errors.Join(unread...)
}

func (e *Engine) cancelled(ctx context.Context, id string) (bool, error) {
	d, err := e.o.Store.Load(ctx, id)
	if fault.Is(err, fault.NotFound) {
		return false, nil // it is gone, and waits no more
	}
	return slices.ContainsFunc(d.Signals, func(s store.Signal) bool { return s.Kind == delivery.CancelAll }), err
}
