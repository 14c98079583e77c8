package data

import (
	"context"
	"slices"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
)

// lend reads the ConfigMaps and Secrets that the pods of a copy name, and that its objects do not hold, where the database
// itself runs: manifests often leave Secrets to somebody else, and none is kept in the record of a delivery. What is not there
// either is left out: a pod that needs it says so.
func (b base) lend(ctx context.Context, db plan.Database, objects []manifest.Object) ([]manifest.Object, error) {
	refs, err := lacking(objects, db.Namespace)
	if err != nil || len(refs) == 0 {
		return nil, err
	}
	p, err := b.at(db.Account)
	if err != nil {
		return nil, err
	}
	get, err := optional[platform.Getter](p, "read live objects")
	if err != nil {
		return nil, err
	}
	var out []manifest.Object
	for _, r := range refs {
		o, err := get.Get(ctx, r)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, fresh(o))
	}
	return out, nil
}

// lacking returns the ConfigMaps and Secrets that the pods of objects name and that are not among the objects.
func lacking(objects []manifest.Object, namespace string) ([]manifest.Ref, error) {
	var refs []manifest.Ref
	for _, o := range objects {
		template, ok, err := o.PodTemplate()
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		for _, r := range manifest.Mounts(template.Spec) {
			there := slices.ContainsFunc(objects, func(o manifest.Object) bool { return o.GetKind() == r.Kind && o.GetName() == r.Name })
			if r.Namespace = namespace; r.Kind != "PersistentVolumeClaim" && !there && !slices.Contains(refs, r) {
				refs = append(refs, r)
			}
		}
	}
	return refs, nil
}

// clear stops a copy for good and deletes what was lent to it and what kept its pods from everything else, too. Nothing that was
// applied beside the target is taken back.
func (b base) clear(ctx context.Context, c step.Call, p place, namespace string, objects []manifest.Object, key string) error {
	if err := b.stop(ctx, c, p, namespace, objects, key); err != nil {
		return err
	}
	lent, err := lacking(objects, namespace)
	if err != nil {
		return err
	}
	del, err := optional[platform.Deleter](p, "delete what it created")
	if err != nil {
		return err
	}
	if err := del.Delete(ctx, key+"/lent", c.Delivery, lent); err != nil {
		return err
	}
	if _, err := step.Forget(ctx, p.Platform, namespace, c); err != nil {
		return err
	}
	return b.release(ctx, c, p, namespace)
}

// withoutSecrets is what may be kept in the record of a delivery.
func withoutSecrets(objects []manifest.Object) []manifest.Object {
	return slices.DeleteFunc(slices.Clone(objects), func(o manifest.Object) bool { return o.GetKind() == "Secret" })
}
