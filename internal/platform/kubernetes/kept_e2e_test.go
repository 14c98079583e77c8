//go:build e2e

package kubernetes

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// patchAs has somebody write a part of an object.
func (s *shop) patchAs(who string, ref manifest.Ref, body string) {
	s.t.Helper()
	in, err := s.where(ref)
	s.must(err)
	_, err = in.Patch(s.ctx, ref.Name, types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{FieldManager: who})
	s.must(err)
}

// TestUndoneByAController: what a controller sets back is found, with its name and both values; what a person or an autoscaler
// does is not taken for one.
func TestUndoneByAController(t *testing.T) {
	p, ctx := fresh(t)
	s := &shop{Platform: p, t: t, ctx: ctx}
	by(t, p, "kubectl-client-side-apply", website+others)
	changes, err := p.Apply(ctx, "d1/a", objectsOf(t, changed(website+others)), inNS)
	s.must(err)
	s.must(p.Kept(ctx, changes))
	s.patchAs("kubectl-set", web, `{"spec":{"template":{"metadata":{"annotations":{"by":"hand"}}}}}`)
	s.patchAs("vpa", web, `{"spec":{"replicas":1}}`)
	s.must(p.Kept(ctx, changes))
	s.patchAs("argocd-controller", web, `{"spec":{"template":{"spec":{"containers":[{"name":"web","image":"shop:1"}]}}}}`)
	err = p.Kept(ctx, changes)
	for _, says := range []string{"argocd-controller has undone", "applied/Deployment/web", `.spec.template.spec.containers[name="web"].image is "shop:1" again, not "shop:2"`} {
		if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q is missing in: %v", says, err)
		}
	}
	s.patchAs("flux", manifest.Ref{Kind: "Secret", Namespace: ns, Name: "password"}, `{"data":{"password":"aHVzaC1odXNo"}}`)
	if err := p.Kept(ctx, changes[2:3]); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "flux") || strings.Contains(err.Error(), "aHVz") {
		t.Errorf("of a Secret: %v", err)
	}
	in, err := p.where(web)
	s.must(err)
	s.must(in.Delete(ctx, "web", metav1.DeleteOptions{}))
	if err := p.Kept(ctx, changes); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "deleted by somebody") {
		t.Errorf("after it was deleted: %v", err)
	}
}

// TestForce takes over what a live manager holds, once it is told to, and gives it back with the rollback.
func TestForce(t *testing.T) {
	p, ctx := fresh(t)
	s := &shop{Platform: p, t: t, ctx: ctx}
	by(t, p, "argocd-controller", website)
	before, owners := snapshotOf(t, p), managersOf(t, p, web)
	_, err := p.Apply(ctx, "d1/a", objectsOf(t, changed(website)), inNS)
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "--force-conflicts") || !strings.Contains(err.Error(), "argocd-controller") {
		t.Fatalf("without force: %v", err)
	}
	same(t, "after the refusal", snapshotOf(t, p), before)
	force := inNS
	force.Force = true
	changes, err := p.Apply(ctx, "d2/a", objectsOf(t, changed(website)), force)
	s.must(err)
	s.must(p.Kept(ctx, changes))
	if got := snapshotOf(t, p)["applied/Deployment/web"]; !strings.Contains(got, "shop:2") {
		t.Errorf("with force it is %s", got)
	}
	s.must(p.Revert(ctx, "d2/r", changes))
	same(t, "after the rollback", snapshotOf(t, p), before)
	for who, fields := range owners {
		if got := managersOf(t, p, web)[who]; got != fields {
			t.Errorf("%s owned %s and owns %s", who, fields, got)
		}
	}
}
