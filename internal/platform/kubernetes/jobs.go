package kubernetes

import (
	"context"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// spent reports whether a Job stands where a delivery wants its own: one that an earlier delivery made and that has ended. A
// Job cannot be changed and does not run twice, but each delivery means its Jobs to run: a migration, on another copy.
func spent(live *unstructured.Unstructured, o manifest.Object) bool {
	if live == nil || o.GetKind() != "Job" {
		return false
	}
	of := live.GetLabels()[deliveryLabel]
	if of == "" || of == o.GetLabels()[deliveryLabel] {
		return false
	}
	conditions, _, _ := unstructured.NestedSlice(live.Object, "status", "conditions")
	for _, c := range conditions {
		m, ok := c.(map[string]any)
		if ok && (m["type"] == "Complete" || m["type"] == "Failed") && m["status"] == "True" {
			return true
		}
	}
	return false
}

// clearSpent deletes a spent Job with its pods, and waits until it is gone.
func (p *Platform) clearSpent(ctx context.Context, o manifest.Object) error {
	if o.GetKind() != "Job" {
		return nil
	}
	in, err := p.where(o.Ref())
	if err != nil {
		return err
	}
	live, err := p.read(ctx, o.Ref())
	if fault.Is(err, fault.NotFound) || err == nil && live.GetDeletionTimestamp() == nil && !spent(live, o) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := p.deleteLive(ctx, in, live); err != nil {
		return failed(err, "delete %s of an earlier delivery", o.Ref())
	}
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	states, err := p.watch(within, []manifest.Ref{o.Ref()}, false)
	if err != nil {
		return err
	}
	for s := range states {
		if !s.Exists {
			return nil
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fault.Newf(fault.Transient, "the cluster no longer tells whether %s is gone", o.Ref())
}
