package kubernetes

import (
	"context"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// Check implements platform.Checker by the dry run with which Apply begins.
func (p *Platform) Check(ctx context.Context, objects []manifest.Object, o platform.Options) error {
	all, err := p.standing(ctx, objects, o)
	if err != nil {
		return err
	}
	_, _, err = p.rehearse(ctx, all, o.Force)
	return err
}

// CheckCanary implements platform.Checker by the dry runs with which StartCanaryWith begins.
func (p *Platform) CheckCanary(ctx context.Context, objects, settings []manifest.Object, o platform.Options) error {
	all, err := p.standing(ctx, slices.Concat(settings, objects), o)
	if err != nil {
		return err
	}
	_, _, err = p.rehearseCanary(ctx, all, o)
	return err
}

// standing places the objects, and leaves out those whose namespace is not there yet: the server says nothing of them.
func (p *Platform) standing(ctx context.Context, objects []manifest.Object, o platform.Options) ([]manifest.Object, error) {
	all, err := p.place(objects, o)
	if err != nil {
		return nil, err
	}
	missing := map[string]bool{"": false}
	for _, m := range all {
		n := m.GetNamespace()
		if _, known := missing[n]; known {
			continue
		}
		_, err := p.dynamic.Resource(namespaces()).Get(ctx, n, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
			return nil, failed(err, "read namespace %s", n)
		}
		missing[n] = apierrors.IsNotFound(err)
	}
	return slices.DeleteFunc(all, func(m manifest.Object) bool { return missing[m.GetNamespace()] }), nil
}
