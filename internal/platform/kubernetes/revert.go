package kubernetes

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// attempts is how often a write is tried again that somebody else's write has overtaken.
const attempts = 10

// Revert implements platform.Platform: to the live objects as they were read before the first write. What others have changed
// since stays, and is told in the log and as an Event of the object.
func (p *Platform) Revert(ctx context.Context, key string, changes []platform.Change) error {
	if len(changes) == 0 {
		return nil
	}
	home := "default"
	if ns, _, ok := strings.Cut(changes[0].Journal, "/"); ok {
		home = ns
	}
	return p.once(ctx, home, key, nil, func([]entry) error {
		records := map[string]*record{}
		var sets []manifest.Ref
		for _, c := range slices.Backward(changes) {
			e, err := p.entryOf(ctx, c, records)
			if err != nil {
				return err
			}
			if err := p.revert(ctx, key, e); err != nil {
				return fmt.Errorf("take back the change of %s: %w", c.Ref, err)
			}
			if !e.Created && e.Ref.Kind == "StatefulSet" && strings.HasPrefix(e.APIVersion, "apps/") {
				sets = append(sets, e.Ref)
			}
		}
		// Not before everything is back: the pods that are made then also need the settings of before.
		for _, ref := range sets {
			if err := p.unblock(ctx, ref); err != nil {
				return fmt.Errorf("have the pods of %s replaced: %w", ref, err)
			}
		}
		return nil
	})
}

// entryOf finds what the journal knows of a change. Without the journal the change itself must do.
func (p *Platform) entryOf(ctx context.Context, c platform.Change, records map[string]*record) (entry, error) {
	ns, secret, ok := strings.Cut(c.Journal, "/")
	if !ok {
		return entry{}, fault.Newf(fault.Lost, "the change of %s has no journal", c.Ref)
	}
	r, known := records[c.Journal]
	if !known {
		var err error
		if r, err = p.journal.read(ctx, ns, secret); err != nil {
			return entry{}, err
		}
		records[c.Journal] = r
	}
	if r == nil {
		if !c.Created && (c.PreImage == nil || c.Ref.Kind == "Secret") {
			return entry{}, fault.Newf(fault.Lost, "what %s was before is gone with Secret %s", c.Ref, c.Journal)
		}
		e := entry{Ref: c.Ref, Created: c.Created}
		if c.PreImage != nil {
			e.Before, e.APIVersion = c.PreImage.Object, c.PreImage.GetAPIVersion()
		}
		return e, nil
	}
	for _, e := range r.Entries {
		if e.Ref == c.Ref {
			return e, nil
		}
	}
	return entry{}, fault.Newf(fault.Lost, "Secret %s knows nothing of %s", c.Journal, c.Ref)
}

func (p *Platform) entryResource(e entry) (dynamic.ResourceInterface, error) {
	if e.APIVersion == "" {
		return p.where(e.Ref)
	}
	r, err := p.kinds.of(schema.FromAPIVersionAndKind(e.APIVersion, e.Ref.Kind))
	if err != nil {
		return nil, err
	}
	return p.at(r, e.Ref.Namespace), nil
}

func (p *Platform) revert(ctx context.Context, key string, e entry) error {
	in, err := p.entryResource(e)
	if fault.Is(err, fault.NotFound) && e.Created {
		return nil // its kind is gone, and the object with it
	}
	if err != nil {
		return err
	}
	for range attempts {
		live, err := in.Get(ctx, e.Ref.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err) && e.Created:
			return nil
		case apierrors.IsNotFound(err):
			err = p.recreate(ctx, in, e)
		case err != nil:
			return failed(err, "read %s", e.Ref)
		case e.Created:
			err = p.remove(ctx, in, key, e, live)
		default:
			err = p.putBack(ctx, in, e, live)
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			return failed(err, "restore %s", e.Ref)
		}
	}
	return fault.Newf(fault.Transient, "%s is changed by somebody faster than it can be restored", e.Ref)
}

// kept are the kinds that stay even though a delivery made them: what they hold is more than the delivery.
func kept() []string {
	return []string{"Namespace", "CustomResourceDefinition", "PersistentVolumeClaim", "PersistentVolume"}
}

// remove deletes what a change created, unless it is no longer what was created, or no longer this delivery's.
func (p *Platform) remove(ctx context.Context, in dynamic.ResourceInterface, key string, e entry, live *unstructured.Unstructured) error {
	if slices.Contains(kept(), e.Ref.Kind) {
		return nil
	}
	after := &unstructured.Unstructured{Object: e.After}
	if after.Object != nil && after.GetUID() != live.GetUID() {
		p.leave(ctx, live, "it was deleted and made again by somebody else")
		return nil
	}
	switch of := live.GetLabels()[deliveryLabel]; of {
	case labelValue(deliveryOf(key)):
		return p.deleteLive(ctx, in, live)
	case "":
		p.leave(ctx, live, "it does not carry the label of a delivery any more")
	default:
		p.leave(ctx, live, "delivery "+of+" has applied it since")
	}
	return nil
}

// recreate makes again what somebody deleted since. Its identity is lost, and it says so.
func (p *Platform) recreate(ctx context.Context, in dynamic.ResourceInterface, e entry) error {
	o := &unstructured.Unstructured{Object: e.Before}
	o = o.DeepCopy()
	p.leave(ctx, o, "it was deleted by somebody else and is made again")
	for _, f := range []string{"uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "ownerReferences"} {
		unstructured.RemoveNestedField(o.Object, "metadata", f)
	}
	unstructured.RemoveNestedField(o.Object, "status")
	_, err := in.Create(ctx, o, metav1.CreateOptions{FieldManager: manager})
	return err
}

// putBack restores what the change has changed, field by field.
func (p *Platform) putBack(ctx context.Context, in dynamic.ResourceInterface, e entry, live *unstructured.Unstructured) error {
	before, now := own(e.Before), own(live.Object)
	after := now // never written, or written and not noted: nobody else is known to have changed anything
	if e.After != nil {
		after = own(e.After)
	}
	want, foreign := takeBack(before, after, now)
	if len(foreign) > 0 {
		p.leave(ctx, live, "others have changed since, and keep: "+strings.Join(foreign, ", "))
	}
	next := &unstructured.Unstructured{Object: restore(live.Object, want)}
	got, err := in.Update(ctx, next, metav1.UpdateOptions{FieldManager: manager})
	if err != nil {
		return err
	}
	if len(foreign) > 0 {
		return nil
	}
	return p.handBack(ctx, in, e, got)
}

// handBack gives the fields to those who owned them before, so that their next apply meets no conflict with us. What the
// controllers know of their status stays theirs.
func (p *Platform) handBack(ctx context.Context, in dynamic.ResourceInterface, e entry, live *unstructured.Unstructured) error {
	old := (&unstructured.Unstructured{Object: e.Before}).GetManagedFields()
	if len(old) == 0 {
		return nil
	}
	is := own(live.Object)
	return p.patch(ctx, in, e.Ref, func(now *unstructured.Unstructured) ([]operation, error) {
		if !reflect.DeepEqual(own(now.Object), is) {
			return nil, nil // somebody wrote in between: bookkeeping is not worth overwriting his
		}
		status := func(m metav1.ManagedFieldsEntry) bool { return m.Subresource == "status" }
		fields := slices.DeleteFunc(slices.Clone(old), status)
		for _, m := range now.GetManagedFields() {
			if status(m) {
				fields = append(fields, m)
			}
		}
		return []operation{{Op: "replace", Path: "/metadata/managedFields", Value: fields}}, nil
	})
}

// once does something once for a key. What it needs to know of the time before is recorded first, and read again where an
// earlier call has died.
func (p *Platform) once(ctx context.Context, namespace, key string, look func() ([]entry, error), do func([]entry) error) error {
	rec, err := p.journal.load(ctx, namespace, key)
	if err != nil || rec != nil && rec.done {
		return err
	}
	if rec == nil {
		rec = &record{Namespace: namespace, Key: key}
		if look != nil {
			if rec.Entries, err = look(); err != nil {
				return err
			}
		}
		if rec, err = p.journal.begin(ctx, rec); err != nil {
			return err
		}
	}
	if err := do(rec.Entries); err != nil {
		return err
	}
	return p.journal.finish(ctx, rec)
}

// leave tells that something was not done because the object is not only ours.
func (p *Platform) leave(ctx context.Context, o *unstructured.Unstructured, why string) {
	ref := manifest.Ref{Kind: o.GetKind(), Namespace: o.GetNamespace(), Name: o.GetName()}
	p.log.Warn("an object was left as others made it", "account", p.c.Account, "object", ref.String(), "because", why)
	p.event(ctx, o, "LeftAlone", why)
}
