package wire

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/store"
)

// A lock is kept for longer than a program needs to be started again, and renewed seldom: a thousand deliveries that wait
// for approval cost less than one write a second, also where all were locked at once.
const (
	lockedFor   = time.Hour
	renewAfter  = 15 * time.Minute
	renewBefore = 25 * time.Minute
	lookFor     = time.Minute // a namespace that is not there yet
)

// locks lock an application in the target namespaces of a delivery, in clusters that others may deliver to.
type locks struct {
	accounts *accounts
	log      *slog.Logger
}

func (l locks) each(spec delivery.Spec, f func(p platform.Locker, namespace string) error) error {
	for _, t := range spec.Graph.Targets {
		// What is not configured, or is this machine's own, is no concern of others.
		if c, err := l.accounts.o.Config.Current().Account(t.Account); err != nil || c.Kind != config.Kubernetes {
			continue
		}
		p, err := l.accounts.platform(t.Account)
		if err != nil {
			return err
		}
		if locker, ok := p.(platform.Locker); ok {
			if err := f(locker, t.Namespace); err != nil {
				return err
			}
		}
	}
	return nil
}

// Take implements engine.Locks.
func (l locks) Take(ctx context.Context, spec delivery.Spec) (time.Time, error) {
	again := time.Now().Add(renewAfter + rand.N(renewBefore-renewAfter))
	err := l.each(spec, func(p platform.Locker, namespace string) error {
		other, err := p.Lock(ctx, namespace, spec.Application, spec.ID, lockedFor)
		switch {
		case fault.Is(err, fault.NotFound):
			again = time.Now().Add(lookFor)
			return nil
		case fault.Is(err, fault.Denied):
			// The steps have the same privileges and say what they lack.
			l.log.Warn("an application is delivered without a lock", "delivery", spec.ID, "namespace", namespace, "error", err)
			return nil
		case err != nil:
			return err
		case other != "":
			return &store.ErrRunning{ID: other, Application: spec.Application}
		}
		return nil
	})
	return again, err
}

// Release implements engine.Locks.
func (l locks) Release(ctx context.Context, spec delivery.Spec) error {
	return l.each(spec, func(p platform.Locker, namespace string) error {
		err := p.Unlock(ctx, namespace, spec.Application, spec.ID)
		if fault.Is(err, fault.Denied) || fault.Is(err, fault.NotFound) {
			return nil
		}
		return err
	})
}
