package kubernetes

import (
	"context"
	"errors"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/dynamic"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// Close implements platform.Fencer: the Services also require a label that no pod has, so that they lead nowhere. The cluster
// refuses new connections then; those that are open end with the workload.
func (p *Platform) Close(ctx context.Context, key string, services []manifest.Ref) error {
	return p.fence(ctx, key, services, "true")
}

// Open implements platform.Fencer.
func (p *Platform) Open(ctx context.Context, key string, services []manifest.Ref) error {
	return p.fence(ctx, key, services, "")
}

func (p *Platform) fence(ctx context.Context, key string, services []manifest.Ref, value string) error {
	if len(services) == 0 {
		return nil
	}
	look := func() ([]entry, error) { return p.snapshot(ctx, services) }
	return p.once(ctx, services[0].Namespace, key, look, func([]entry) error {
		for _, s := range services {
			if err := p.require(ctx, s, openLabel, value); err != nil {
				return err
			}
		}
		return nil
	})
}

// snapshot reads what is there before it is changed.
func (p *Platform) snapshot(ctx context.Context, refs []manifest.Ref) ([]entry, error) {
	var out []entry
	for _, ref := range refs {
		live, err := p.read(ctx, ref)
		if err != nil {
			return nil, err
		}
		e := entry{Ref: ref, APIVersion: live.GetAPIVersion(), Before: live.Object}
		if n, ok := replicasOf(live); ok {
			e.Replicas = &n
		}
		out = append(out, e)
	}
	return out, nil
}

// operation is one operation of a JSON patch.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

func pointer(parts ...string) string {
	var b strings.Builder
	for _, s := range parts {
		b.WriteByte('/')
		b.WriteString(strings.ReplaceAll(strings.ReplaceAll(s, "~", "~0"), "/", "~1"))
	}
	return b.String()
}

// require makes a Service require a label of its pods, or, with no value, no longer. It is a patch and no apply, because a
// selector is one field for whoever applies it.
func (p *Platform) require(ctx context.Context, service manifest.Ref, key, value string) error {
	in := p.dynamic.Resource(services()).Namespace(service.Namespace)
	return p.patch(ctx, in, service, func(live *unstructured.Unstructured) ([]operation, error) {
		selector, ok, err := unstructured.NestedStringMap(live.Object, "spec", "selector")
		if err != nil || !ok || len(selector) == 0 {
			return nil, fault.WithRemedy(fault.Newf(fault.Invalid, "Service %s has no selector: whoever keeps its endpoints decides where it leads", service),
				"give it the selector of the workload")
		}
		has, ok := selector[key]
		at := pointer("spec", "selector", key)
		switch {
		case value == "" && !ok, ok && has == value:
			return nil, nil
		case value != "":
			return []operation{{Op: "add", Path: at, Value: value}}, nil
		}
		ops := []operation{{Op: "test", Path: at, Value: has}, {Op: "remove", Path: at}}
		return append(ops, disown(live)...), nil
	})
}

// disown gives up what is ours by patches, once it is as it was: the next apply of whoever owns the object meets no conflict.
func disown(live *unstructured.Unstructured) []operation {
	fields := slices.DeleteFunc(live.GetManagedFields(), func(m metav1.ManagedFieldsEntry) bool {
		return m.Manager == manager && m.Operation == metav1.ManagedFieldsOperationUpdate
	})
	if len(fields) == 0 || len(fields) == len(live.GetManagedFields()) {
		return nil
	}
	return []operation{{Op: "replace", Path: "/metadata/managedFields", Value: fields}}
}

// patch changes a live object, or a subresource of it, by a JSON patch that holds only while the object is as it was read.
func (p *Platform) patch(ctx context.Context, in dynamic.ResourceInterface, ref manifest.Ref,
	change func(*unstructured.Unstructured) ([]operation, error), subresources ...string) error {
	var last error
	for range attempts {
		live, err := in.Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil {
			return failed(err, "read %s", ref)
		}
		ops, err := change(live)
		if err != nil || len(ops) == 0 {
			return err
		}
		ops = append([]operation{{Op: "test", Path: "/metadata/resourceVersion", Value: live.GetResourceVersion()}}, ops...)
		body, err := json.Marshal(ops)
		if err != nil {
			return err
		}
		_, err = in.Patch(ctx, ref.Name, types.JSONPatchType, body, metav1.PatchOptions{FieldManager: manager}, subresources...)
		if err == nil {
			return nil
		}
		// A test that fails is told as an object that is invalid, without a cause.
		var told apierrors.APIStatus
		overtaken := apierrors.IsInvalid(err) && errors.As(err, &told) && (told.Status().Details == nil || len(told.Status().Details.Causes) == 0)
		if !apierrors.IsConflict(err) && !overtaken {
			return failed(err, "change %s", ref)
		}
		last = err
	}
	return fault.Newf(fault.Transient, "%s is changed by somebody faster than it can be patched: %w", ref, last)
}

// servicesOf returns the Services that lead to pods of these labels: those for everybody, and those for the version without
// traffic only.
func (p *Platform) servicesOf(ctx context.Context, namespace string, podLabels map[string]string) (all, previews []manifest.Ref, err error) {
	list, err := p.dynamic.Resource(services()).Namespace(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, failed(err, "list the Services of namespace %s", namespace)
	}
	for _, s := range list.Items {
		if s.GetLabels()[canaryOf] != "" {
			continue // it was made for a canary, and goes with it
		}
		selector, _, _ := unstructured.NestedMap(s.Object, "spec", "selector")
		selector = without(selector, required()...)
		if len(selector) == 0 {
			continue
		}
		want := labels.Set{}
		for k, v := range selector {
			want[k], _ = v.(string)
		}
		if !labels.SelectorFromSet(want).Matches(labels.Set(podLabels)) {
			continue
		}
		ref := manifest.Ref{Kind: "Service", Namespace: namespace, Name: s.GetName()}
		if s.GetAnnotations()[trackLabel] == string(platform.Preview) {
			previews = append(previews, ref)
		} else {
			all = append(all, ref)
		}
	}
	return all, previews, nil
}
