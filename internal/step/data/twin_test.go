package data

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
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

func TestWhatHasNotPassedWhenTheFenceEndsFails(t *testing.T) {
	a, now := plan.DataArgs{Deadline: time.Minute}, time.Now()
	almost, cancelled := fenced{Since: now.Add(time.Millisecond - time.Minute)}, fault.Newf(fault.Transient, "the cluster is away")
	for what, c := range map[string]struct {
		since fenced
		out   step.Outcome
		err   error
		want  delivery.Verdict
	}{
		"it is over already":   {fenced{Since: now.Add(-time.Minute)}, step.Done(delivery.Pass, "begun"), nil, delivery.Fail},
		"passed in the end":    {almost, step.Done(delivery.Pass, "well"), nil, delivery.Pass},
		"nobody can tell":      {almost, step.Done(delivery.Inconclusive, "it is not known"), nil, delivery.Fail},
		"ended by an error":    {almost, step.Outcome{}, cancelled, delivery.Fail},
		"waits for somebody":   {almost, step.Wait(now.Add(time.Hour), "somebody"), nil, delivery.Fail},
		"failed by its own":    {almost, step.Done(delivery.Fail, "it is damaged"), nil, delivery.Fail},
		"in time, and unclear": {fenced{Since: now}, step.Done(delivery.Inconclusive, "it is not known"), nil, delivery.Inconclusive},
	} {
		got, err := inTime(t.Context(), step.Call{Now: now}, a, c.since, func(within context.Context) (step.Outcome, error) {
			if c.since.Since.Equal(almost.Since) {
				<-within.Done()
			}
			return c.out, c.err
		})
		if err != nil || got.Verdict != c.want {
			t.Errorf("%s: %s (%s), %v; want %s", what, got.Verdict, got.Message, err, c.want)
		}
	}
	ended, end := context.WithCancel(t.Context())
	if _, err := inTime(ended, step.Call{Now: now}, a, fenced{Since: now}, func(within context.Context) (step.Outcome, error) {
		end()
		return step.Outcome{}, within.Err()
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("that Sluice is ended says nothing of the upgrade: %v", err)
	}
}
