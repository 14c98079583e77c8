package data

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
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

func TestWhatIsStoppedHasItsTimeToEnd(t *testing.T) {
	for text, want := range map[string]time.Duration{
		written: 30 * time.Second,
		strings.Replace(written, "    spec:\n      containers:", "    spec:\n      terminationGracePeriodSeconds: 300\n      containers:", 1): 5 * time.Minute,
		strings.Replace(written, "    spec:\n      containers:", "    spec:\n      terminationGracePeriodSeconds: 5\n      containers:", 1):   30 * time.Second,
	} {
		objects, err := manifest.Parse("test.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := graceOf(objects); err != nil || got != want {
			t.Errorf("%s, %v; want %s", got, err, want)
		}
	}
}
