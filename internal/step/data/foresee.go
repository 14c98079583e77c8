package data

import (
	"context"
	"errors"

	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
)

// foresee returns what the platform would refuse of the application that follows the upgrade of its database: known before,
// it costs nobody an interruption and a way back. What platforms cannot say beforehand they say in its turn.
func foresee(ctx context.Context, c step.Call, p place, then *plan.Application) error {
	if then == nil {
		return nil
	}
	var errs []error
	if a := then.Plain; a != nil {
		errs = append(errs, accepted(ctx, p, a.Objects, step.Options(c, *a)))
	}
	if checker, ok := p.Platform.(platform.Checker); ok && then.Canary != nil {
		errs = append(errs, checker.CheckCanary(ctx, then.Canary.Objects, then.Canary.Settings, step.Options(c, *then.Canary)))
	}
	return errors.Join(errs...)
}

// accepted returns what the platform would refuse objects with.
func accepted(ctx context.Context, p place, objects []manifest.Object, o platform.Options) error {
	if checker, ok := p.Platform.(platform.Checker); ok {
		return checker.Check(ctx, objects, o)
	}
	return nil
}
