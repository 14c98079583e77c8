package wire

import (
	"context"
	"log/slog"
	"time"

	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/step/data"
)

// lookAgain is how long after the last look the next one comes at the latest: a delivery may have ended since.
const lookAgain = time.Hour

// expire deletes checkpoints, and volumes that upgrades took out of service, when their time is over, until ctx ends.
func expire(ctx context.Context, st engine.Store, ports step.Ports, log *slog.Logger) {
	nothing := map[string]bool{} // deliveries that have ended and keep nothing
	for {
		wait, before := lookAgain, nothing
		nothing = map[string]bool{}
		heads, err := st.Heads(ctx, false)
		if err != nil {
			log.Warn("whether the time of a kept copy is over cannot be told", "error", err)
		}
		for _, h := range heads {
			if nothing[h.ID] = before[h.ID]; !h.Done || before[h.ID] {
				continue
			}
			d, err := st.Load(ctx, h.ID)
			var next time.Time
			if err == nil {
				next, err = data.Expire(ctx, ports, d.Spec, d.Status, time.Now())
			}
			if err != nil && ctx.Err() == nil {
				log.Warn("whether a copy is to be kept cannot be told, or one is not deleted; it is looked at again later", "delivery", h.ID, "error", err)
			}
			nothing[h.ID] = err == nil && next.IsZero()
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
