//go:build e2e

package kubernetes

import (
	"fmt"
	"testing"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// TestJobsOfEarlierDeliveries: every delivery runs its own Jobs. One that an earlier delivery made gives way once it has
// ended, and only then.
func TestJobsOfEarlierDeliveries(t *testing.T) {
	p, ctx := fresh(t)
	job := func(args string) []manifest.Object {
		return objectsOf(t, fmt.Sprintf(`
apiVersion: batch/v1
kind: Job
metadata: {name: migrate}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 0
      containers: [{name: migrate, image: %q, args: %s}]
`, anyImage, args))
	}
	ref := manifest.Ref{Kind: "Job", Namespace: ns, Name: "migrate"}
	of := func(delivery string) platform.Options { return platform.Options{Namespace: ns, Delivery: delivery} }
	uid := func() string {
		o, err := p.Get(ctx, ref)
		if err != nil {
			t.Fatal(err)
		}
		return string(o.GetUID())
	}
	complete := func(s platform.State) bool { return s.Ready }
	if _, err := p.Apply(ctx, "d1/job", job(`[exit, "0"]`), of("d1")); err != nil {
		t.Fatal(err)
	}
	if err := p.await(ctx, ref, complete); err != nil {
		t.Fatal(err)
	}
	first := uid()
	changes, err := p.Apply(ctx, "d2/job", job(`[exit, "0"]`), of("d2"))
	if err != nil {
		t.Fatal(err)
	}
	if uid() == first || len(changes) != 1 || !changes[0].Created {
		t.Errorf("the Job of the earlier delivery was not replaced: %+v", changes)
	}
	if err := p.await(ctx, ref, complete); err != nil {
		t.Fatal(err)
	}
	if err := p.Revert(ctx, "d2/job/undo", changes); err != nil {
		t.Fatal(err)
	}
	if err := p.await(ctx, ref, func(s platform.State) bool { return !s.Exists }); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Apply(ctx, "d3/job", job(`[sleep, 10m]`), of("d3")); err != nil {
		t.Fatal(err)
	}
	running := uid()
	if _, err := p.Apply(ctx, "d4/job", job(`[exit, "0"]`), of("d4")); !fault.Is(err, fault.Invalid) {
		t.Errorf("a Job that runs was not left alone: %v", err)
	}
	if uid() != running {
		t.Error("the running Job is another one")
	}
}
