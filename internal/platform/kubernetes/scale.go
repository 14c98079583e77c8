package kubernetes

import (
	"context"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// Scale implements platform.Fencer. A workload whose claims would be deleted with its pods is not stopped.
func (p *Platform) Scale(ctx context.Context, key string, workload manifest.Ref, replicas int) error {
	look := func() ([]entry, error) { return p.snapshot(ctx, []manifest.Ref{workload}) }
	return p.once(ctx, workload.Namespace, key, look, func([]entry) error { return p.scaleTo(ctx, workload, int64(replicas)) })
}

func (p *Platform) scaleTo(ctx context.Context, workload manifest.Ref, replicas int64) error {
	in, err := p.where(workload)
	if err != nil {
		return err
	}
	err = p.patch(ctx, in, workload, func(live *unstructured.Unstructured) ([]operation, error) {
		if when, _, _ := unstructured.NestedString(live.Object, "spec", "persistentVolumeClaimRetentionPolicy", "whenScaled"); replicas == 0 && when == "Delete" {
			return nil, fault.WithRemedy(fault.Newf(fault.Invalid, "%s is not stopped: its persistentVolumeClaimRetentionPolicy deletes the claims, and the data with them", workload),
				"set whenScaled: Retain in its persistentVolumeClaimRetentionPolicy")
		}
		return []operation{{Op: "add", Path: "/spec/replicas", Value: replicas}}, nil
	}, "scale")
	return failed(err, "scale %s to %d", workload, replicas)
}

// scaleBack scales a workload to the number that it had, and gives the field back to whom it was.
func (p *Platform) scaleBack(ctx context.Context, workload manifest.Ref, replicas int64) error {
	if err := p.scaleTo(ctx, workload, replicas); err != nil {
		return err
	}
	in, err := p.where(workload)
	if err != nil {
		return err
	}
	return p.patch(ctx, in, workload, func(live *unstructured.Unstructured) ([]operation, error) { return disown(live), nil })
}
