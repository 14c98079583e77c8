package engine_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/store/sqlite"
)

// gate is a step that passes when it is approved, and tells when it begins and when it waits.
type gate struct {
	fake
	begun chan time.Time
}

func (g *gate) Run(_ context.Context, c step.Call) (step.Outcome, error) {
	if len(c.Signals) > 0 {
		return step.Done(delivery.Pass, "approved"), nil
	}
	g.begun <- time.Now()
	return step.Wait(time.Time{}, "waits", "approve/"+c.Path), nil
}

// BenchmarkSignalToNextStep measures from the call that gives a signal to the start of the step that it lets begin: the
// signal is kept, the waiting step is entered and passes, and the next one is entered, each with its commit in SQLite
// (synchronous=FULL). It prints quantiles in milliseconds; the design asks for p99 ≤ 50 ms.
func BenchmarkSignalToNextStep(b *testing.B) {
	const gates = 20
	var took []time.Duration
	s, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "s.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(b.Context())
	g := &gate{begun: make(chan time.Time)}
	e := engine.New(engine.Options{Store: s, Steps: map[string]step.Step{"fake": g}})
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	events, err := s.Watch(ctx)
	if err != nil {
		b.Fatal(err)
	}
	waits := func(id, path string) {
		for range events {
			d, err := s.Load(ctx, id)
			if err != nil {
				b.Fatal(err)
			}
			if d.Status.Nodes[path].Phase == delivery.StepWaiting || path == "" && d.Status.Done {
				return
			}
		}
	}
	b.ResetTimer()
	for i := 0; len(took) < b.N; i++ {
		id := fmt.Sprintf("d%d", i)
		var paths []string
		for n := range gates {
			paths = append(paths, fmt.Sprintf("t/deploy/%d", n))
		}
		if err := e.Start(ctx, delivery.Spec{ID: id, Application: "app", Graph: graph(paths...)}); err != nil {
			b.Fatal(err)
		}
		<-g.begun
		for n, p := range paths {
			b.StopTimer()
			waits(id, p)
			b.StartTimer()
			from := time.Now()
			if _, err := e.Signal(ctx, id, delivery.Signal{Kind: delivery.Approve, Key: "approve/" + p, Path: p}); err != nil {
				b.Fatal(err)
			}
			if n+1 < len(paths) {
				took = append(took, (<-g.begun).Sub(from))
			}
		}
		b.StopTimer()
		waits(id, "")
		b.StartTimer()
	}
	slices.Sort(took)
	for _, q := range []struct {
		unit string
		at   float64
	}{{"p50-ms", 0.5}, {"p99-ms", 0.99}, {"max-ms", 1}} {
		b.ReportMetric(float64(took[min(int(q.at*float64(len(took))), len(took)-1)].Microseconds())/1000, q.unit)
	}
}
