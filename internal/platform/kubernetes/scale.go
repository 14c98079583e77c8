package kubernetes

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

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
	if workload.Kind == "StatefulSet" && replicas == 0 {
		live, err := p.read(ctx, workload)
		if err != nil {
			return err
		}
		if when, _, _ := unstructured.NestedString(live.Object, "spec", "persistentVolumeClaimRetentionPolicy", "whenScaled"); when == "Delete" {
			return fault.WithRemedy(fault.Newf(fault.Invalid, "%s is not stopped: its persistentVolumeClaimRetentionPolicy deletes the claims, and the data with them", workload),
				"set whenScaled: Retain in its persistentVolumeClaimRetentionPolicy")
		}
	}
	body := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
	_, err = in.Patch(ctx, workload.Name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: manager}, "scale")
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
