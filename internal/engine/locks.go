package engine

import (
	"context"
	"errors"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/store"
)

// Locks keep two engines from delivering one application to one place at the same time.
type Locks interface {
	// Take locks what a delivery goes to, for it, and returns when it is to be taken again. Where another delivery has it the
	// error is a *store.ErrRunning.
	Take(ctx context.Context, spec delivery.Spec) (again time.Time, err error)
	// Release gives back what the delivery has taken.
	Release(ctx context.Context, spec delivery.Spec) error
}

// lockAgain is how long after an error a lock is tried again.
const lockAgain = 10 * time.Second

// take locks what a delivery goes to. A delivery of this store that has ended has no use for a lock any more: it could not give
// it back where the cluster was away.
func (e *Engine) take(ctx context.Context, spec delivery.Spec) (time.Time, error) {
	again, err := e.o.Locks.Take(ctx, spec)
	running, ok := errors.AsType[*store.ErrRunning](err)
	if !ok {
		return again, err
	}
	other, missing := e.o.Store.Load(ctx, running.ID)
	if missing != nil || !other.Status.Done {
		return again, err
	}
	if err := e.o.Locks.Release(ctx, other.Spec); err != nil {
		return again, err
	}
	return e.o.Locks.Take(ctx, spec)
}

// locked reports whether what the delivery goes to is its own. Until it is, no step is entered.
func (w *worker) locked(ctx context.Context, spec delivery.Spec) bool {
	if w.e.o.Locks == nil {
		return true
	}
	now := w.e.o.Clock.Now()
	if now.Before(w.lock) {
		return w.held
	}
	again, err := w.e.take(ctx, spec)
	if err == nil {
		w.held, w.lock = true, again
		return true
	}
	if ctx.Err() != nil {
		return false
	}
	w.lock = now.Add(lockAgain)
	_, other := errors.AsType[*store.ErrRunning](err)
	w.held = w.held && !other // a cluster that is away does not give to others what is ours
	w.e.o.Log.Warn("the delivery waits for the lock of its application", "delivery", w.id, "error", err)
	w.e.o.Progress(Progress{Delivery: w.id, Line: "waits: " + err.Error(), At: now})
	return w.held
}

// unlock gives the lock of a delivery that ends back.
func (w *worker) unlock(ctx context.Context, spec delivery.Spec) {
	if w.e.o.Locks == nil {
		return
	}
	w.held, w.lock = false, time.Time{}
	if err := w.e.o.Locks.Release(ctx, spec); err != nil && ctx.Err() == nil {
		w.e.o.Log.Warn("the lock of an application is not given back; it runs out", "delivery", w.id, "error", err)
	}
}
