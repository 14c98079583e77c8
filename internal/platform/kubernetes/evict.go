package kubernetes

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/platform"
)

// evict ends exactly this pod where the budgets for disruptions allow it; or only asks whether they do.
func (p *Platform) evict(ctx context.Context, namespace string, m platform.Member, ask bool) error {
	options := map[string]any{"preconditions": map[string]any{"uid": m.ID}}
	create := metav1.CreateOptions{FieldManager: manager}
	if ask {
		options["dryRun"] = []any{metav1.DryRunAll}
		create.DryRun = []string{metav1.DryRunAll}
	}
	e := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "policy/v1", "kind": "Eviction",
		"metadata": map[string]any{"namespace": namespace, "name": m.Name}, "deleteOptions": options}}
	_, err := p.dynamic.Resource(pods()).Namespace(namespace).Create(ctx, e, create, "eviction")
	if apierrors.IsTooManyRequests(err) {
		why := err.Error()
		if all := causes(err, "DisruptionBudget"); len(all) > 0 {
			why = all[0].Message
		}
		return fault.WithRemedy(fault.Newf(fault.Conflict, "pod %s/%s may not be ended now: %s", namespace, m.Name, why),
			"it goes on as soon as the PodDisruptionBudget allows it")
	}
	return gone(err, "evict pod %s/%s", namespace, m.Name)
}

// gone is failed for the end of a pod that was asked for: one that is no longer there has ended. The cluster calls another
// pod of its name a conflict.
func gone(err error, format string, args ...any) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return failed(err, format, args...)
}
