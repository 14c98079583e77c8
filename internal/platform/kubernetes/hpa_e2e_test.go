//go:build e2e

package kubernetes

import (
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/manifest"
)

// budgets are an autoscaler without metrics, which holds the replicas within its limits, and a budget for disruptions.
const budgets = `
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec: {minReplicas: 3, maxReplicas: 9, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
`

// TestCanaryUnderAnAutoscaler: the stable version's replicas are the autoscaler's all the while, the canary has what its share
// of them asks for, and neither the autoscaler nor the budget is made a second time.
func TestCanaryUnderAnAutoscaler(t *testing.T) {
	s := newShop(t)
	by(t, s.Platform, "kubectl-client-side-apply", budgets)
	s.before = snapshotOf(t, s.Platform)
	refs := []manifest.Ref{web}
	replicas := func(what string, stable, canary int64) {
		t.Helper()
		c, err := s.canary(s.ctx, web)
		s.must(err)
		if c == nil {
			t.Fatalf("%s: there is no canary", what)
		}
		live, err := s.read(s.ctx, web)
		s.must(err)
		has, _ := replicasOf(live)
		beside, _ := replicasOf(c)
		if has != stable || beside != canary {
			t.Errorf("%s: %d pods of the stable version and %d of the canary, not %d and %d", what, has, beside, stable, canary)
		}
		for _, kind := range []string{"HorizontalPodAutoscaler", "PodDisruptionBudget"} {
			if all, err := s.List(s.ctx, kind, ns); err != nil || len(all) != 1 {
				t.Errorf("%s: %d of kind %s, %v", what, len(all), kind, err)
			}
		}
	}
	changes := s.start()
	replicas("at 0 %", 4, 1)
	s.must(s.SetWeight(s.ctx, "d1/25", refs, 25))
	replicas("at 25 %", 4, 2) // ceil(4·25/75)
	s.must(s.SetWeight(s.ctx, "d1/50", refs, 50))
	replicas("at 50 %", 4, 4)
	s.settles(webService, "at 50 %", 30, 70)
	s.must(s.SetWeight(s.ctx, "d1/60", refs, 60))
	replicas("at 60 %", 4, 6)
	s.must(s.SetWeight(s.ctx, "d1/100", refs, 100))
	replicas("at 100 %", 4, 4)
	s.settles(webService, "at 100 %", 100, 100)
	s.undo(changes)

	s.next[0].Object["spec"].(map[string]any)["replicas"] = int64(9)
	_, err := s.StartCanary(s.ctx, "d2/start", s.next, inNS)
	s.must(err)
	s.must(s.SetWeight(s.ctx, "d2/50", refs, 50))
	s.must(s.Promote(s.ctx, "d2/promote", refs))
	s.ready(time.Minute)
	live, err := s.read(s.ctx, web)
	s.must(err)
	if n, _ := replicasOf(live); n != 4 {
		t.Errorf("the promotion set the replicas to %d; they are the autoscaler's", n)
	}
	s.settles(webService, "promoted", 100, 100)
}
