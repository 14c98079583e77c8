package kubernetes

import (
	"context"
	"errors"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// DryRun implements platform.DryRunner by a dry run on the server. What a dry run cannot know is told from the manifest
// alone: objects of a namespace or of a kind that comes with them, and what the cluster takes only after the fields of
// adopted managers have been taken over. Fields that such a manager has set and no manifest names seem to stay.
func (p *Platform) DryRun(ctx context.Context, objects []manifest.Object, o platform.Options) ([]platform.Difference, error) {
	all, err := p.place(objects, o)
	if err != nil {
		return nil, err
	}
	defined := definitions(all)
	var out []platform.Difference
	var errs []error
	for _, o := range all {
		w, err := p.look(ctx, o)
		if _, brought := defined[o.GroupVersionKind().GroupKind().String()]; brought && fault.Is(err, fault.NotFound) {
			out = append(out, platform.Difference{Applied: o})
			continue
		}
		var v platform.Difference
		if err == nil {
			v, err = p.difference(ctx, w)
		}
		out, errs = append(out, v), append(errs, err)
	}
	return out, errors.Join(errs...)
}

func (p *Platform) difference(ctx context.Context, w wanted) (platform.Difference, error) {
	var v platform.Difference
	if w.live != nil {
		v.Live = &manifest.Object{Unstructured: *w.live.DeepCopy(), Origin: w.Ref().String()}
	}
	after, err := p.serverSide(ctx, w, metav1.DryRunAll)
	switch {
	case err == nil:
		v.Applied = manifest.Object{Unstructured: *after, Origin: w.Origin}
	case fault.Is(err, fault.NotFound) && w.live == nil:
		v.Applied, err = w.Object, nil // its namespace is made with it
	case fault.Is(err, fault.Invalid) && w.live != nil:
		if patch, unread := p.takeover(w); patch != nil && unread == nil {
			v.Applied = manifest.Object{Unstructured: unstructured.Unstructured{Object: overlaid(v.Live.DeepCopy().Object, w.Object.Object)}, Origin: w.Origin}
			err = nil
		}
	}
	return v, err
}

// overlaid sets the fields of one object in another.
func overlaid(under, over map[string]any) map[string]any {
	for k, v := range over {
		below, both := under[k].(map[string]any)
		if m, ok := v.(map[string]any); ok && both {
			v = overlaid(below, m)
		}
		under[k] = v
	}
	return under
}
