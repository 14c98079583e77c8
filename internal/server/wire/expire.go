package wire

import (
	"context"
	"log/slog"
	"time"

	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/step/data"
	"github.com/sluice-cd/sluice/internal/store"
)

// lookAgain is how long after the last look the next one comes at the latest: a delivery may have ended since.
const lookAgain = time.Hour

// expire deletes checkpoints, and volumes that upgrades took out of service, when their time is over, until ctx ends.
func expire(ctx context.Context, st store.Lister, ports step.Ports, log *slog.Logger) {
	for {
		wait := lookAgain
		all, err := st.List(ctx, false)
		if err != nil {
			log.Warn("whether the time of a kept copy is over cannot be told", "error", err)
		}
		for _, d := range all {
			next, err := data.Expire(ctx, ports, d.Spec, d.Status, time.Now())
			if err != nil && ctx.Err() == nil {
				log.Warn("a kept copy is not deleted, it is looked at again later", "error", err)
			}
			if !next.IsZero() {
				wait = min(wait, max(time.Until(next), time.Second))
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}
