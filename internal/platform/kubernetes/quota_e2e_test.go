//go:build e2e

package kubernetes

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// allow limits how many pods there may be beside each other, and waits until the cluster does.
func (s *shop) allow(pods int) {
	s.t.Helper()
	by(s.t, s.Platform, "kubectl-client-side-apply", fmt.Sprintf("{apiVersion: v1, kind: ResourceQuota, metadata: {name: pods}, spec: {hard: {pods: \"%d\"}}}", pods))
	quota := manifest.Ref{Kind: "ResourceQuota", Namespace: ns, Name: "pods"}
	s.must(s.await(s.ctx, quota, func(platform.State) bool {
		o, err := s.read(s.ctx, quota)
		s.must(err)
		used, _, _ := unstructured.NestedString(o.Object, "status", "used", "pods")
		return used != ""
	}))
}

// TestNoRoomForTheCanary: what a quota leaves no room for is told by its name when the time is over, and can be taken back.
func TestNoRoomForTheCanary(t *testing.T) {
	s := newShop(t)
	s.allow(6)
	changes := s.start()
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	err := s.SetWeight(ctx, "d1/100", []manifest.Ref{web}, 100)
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "exceeded quota") || !strings.Contains(err.Error(), "raise the namespace's ResourceQuota") {
		t.Errorf("kind %q: %v", fault.KindOf(err), err)
	}
	s.settles(webService, "meanwhile", 0, 0)
	s.back(changes, "100")
}

// TestRoomForOnePodMore: with room for one pod more than there were, a canary comes to all the traffic step by step, and from
// there also back and forward: each version makes room for the other.
func TestRoomForOnePodMore(t *testing.T) {
	refs := []manifest.Ref{web}
	for _, end := range []string{"back", "promoted"} {
		t.Run(end, func(t *testing.T) {
			s := newShop(t)
			s.allow(5)
			changes := s.start()
			for _, w := range []int{25, 50, 75, 100} {
				s.timely(func(ctx context.Context) error { return s.SetWeight(ctx, fmt.Sprintf("d1/%d", w), refs, w) })
				s.ready(time.Minute)
			}
			s.settles(webService, "at 100 %", 100, 100)
			if end == "promoted" {
				s.timely(func(ctx context.Context) error { return s.Promote(ctx, "d1/promote", refs) })
				s.settles(webService, "promoted", 100, 100)
			}
			s.back(changes, "25", "50", "75", "100")
		})
	}
}

// timely gives a call no more time than it needs.
func (s *shop) timely(do func(context.Context) error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	s.must(do(ctx))
}
