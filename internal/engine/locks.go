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

// lockLook is how often it is looked, while a step is in flight, whether the lock is to be taken again: a timer stands still
// while a machine sleeps, and the lock runs out.
const lockLook = time.Minute

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

// locked returns why what the delivery goes to is not its own, "" where it is. Until then no step is entered.
func (w *worker) locked(ctx context.Context, spec delivery.Spec) (why string) {
	now := w.e.o.Clock.Now()
	if w.e.o.Locks == nil || now.Before(w.lock) {
		return w.why
	}
	again, err := w.e.take(ctx, spec)
	if err == nil {
		w.held, w.why, w.lock = true, "", again.Round(0) // the clock that goes on while a machine sleeps
		return ""
	}
	if ctx.Err() != nil {
		return w.why
	}
	w.lock = now.Add(lockAgain).Round(0)
	_, other := errors.AsType[*store.ErrRunning](err)
	if w.held = w.held && !other; !w.held { // a cluster that is away does not give to others what is ours
		w.why = err.Error()
	}
	if other {
		// What is in flight must not go on beside somebody else's. It is entered again once the lock is the delivery's.
		for _, e := range w.running {
			e.withdraw()
		}
	}
	w.e.o.Log.Warn("the delivery waits for the lock of its application", "delivery", w.id, "error", err)
	return w.why
}

// lookAtLock returns when it is to be looked at the lock, zero where there is none.
func (w *worker) lookAtLock(now time.Time) time.Time {
	if len(w.running) > 0 && w.lock.Sub(now) > lockLook {
		return now.Add(lockLook)
	}
	return w.lock
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
