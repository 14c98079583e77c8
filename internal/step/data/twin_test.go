package data

import (
	"context"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/volume"
)

// fakeStream is a driver whose clones take as long as one waits for them.
type fakeStream struct {
	volume.Driver
	began chan struct{}
}

func (f fakeStream) Clone(ctx context.Context, _, _ string, _ volume.Copy, _ []volume.Place) (volume.Copy, error) {
	close(f.began)
	<-ctx.Done()
	return volume.Copy{}, ctx.Err()
}

func TestACopyWhoseQuarantineDoesNotHoldIsNotStreamedToItsEnd(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f := fakeStream{began: make(chan struct{})}
	r := raising{isolated: func(context.Context) error {
		<-f.began
		return fault.Newf(fault.Denied, "production is reached")
	}}
	if _, err := (base{}).ready(ctx, step.Call{}, place{volumes: f}, plan.Database{}, r); !fault.Is(err, fault.Denied) || ctx.Err() != nil {
		t.Error(err)
	}
}
