package kubernetes

import (
	"context"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// Check implements platform.Checker by the dry run with which Apply begins. What the server refuses of an object whose fields are
// taken over from an adopted manager is passed over: it may be what it accepts once they are.
func (p *Platform) Check(ctx context.Context, objects []manifest.Object, o platform.Options) error {
	all, err := p.standing(ctx, objects, o)
	if err != nil {
		return err
	}
	_, _, err = p.rehearse(ctx, all, o.Force)
	return err
}

// CheckCanary implements platform.Checker by the dry runs with which StartCanaryWith begins. Whether what runs is at rest, and what shares
// the traffic out, is passed over: both may be otherwise by then.
func (p *Platform) CheckCanary(ctx context.Context, objects, settings []manifest.Object, o platform.Options) error {
	all, err := p.standing(ctx, slices.Concat(settings, objects), o)
	if err != nil {
		return err
	}
	_, _, err = p.rehearseVersions(ctx, all, o.Force)
	return err
}

// standing places the objects, and leaves out those whose namespace is not there yet: the server says nothing of them.
func (p *Platform) standing(ctx context.Context, objects []manifest.Object, o platform.Options) ([]manifest.Object, error) {
	all, err := p.place(objects, o)
	if err != nil {
		return nil, err
	}
	home := homeOf(all, o.Namespace)
	_, err = p.dynamic.Resource(namespaces()).Get(ctx, home, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return slices.DeleteFunc(all, func(m manifest.Object) bool { return m.GetNamespace() == home }), nil
	case err != nil && !apierrors.IsForbidden(err):
		return nil, failed(err, "read namespace %s", home)
	}
	return all, nil
}
