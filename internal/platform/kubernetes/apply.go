package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/util/csaupgrade"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// wanted is an object as it will be applied, and what is there.
type wanted struct {
	manifest.Object
	live  *unstructured.Unstructured // nil: nothing
	force bool                       // what others hold is taken over
}

// Apply implements platform.Platform. Every object passes a dry run on the server before the first is written; objects of
// kinds that a definition among them brings pass theirs when it is in force. Where a write fails after others were made,
// the changes are returned with the error.
func (p *Platform) Apply(ctx context.Context, key string, objects []manifest.Object, o platform.Options) ([]platform.Change, error) {
	if len(objects) == 0 {
		return nil, nil
	}
	all, err := p.place(objects, o)
	if err != nil {
		return nil, err
	}
	home := homeOf(all, o.Namespace)
	rec, err := p.journal.load(ctx, home, key)
	if err != nil {
		return nil, err
	}
	if rec != nil && rec.done {
		return changesOf(rec), nil
	}
	if err := p.makeNamespaces(ctx, all, home, o.Delivery); err != nil {
		return nil, err
	}
	if rec == nil {
		entries, open, err := p.rehearse(ctx, all, o.Force)
		if err != nil {
			return nil, err
		}
		if rec, err = p.journal.begin(ctx, &record{Namespace: home, Key: key, Entries: entries, Force: o.Force}); err != nil {
			return nil, err
		}
		if err := p.settle(ctx, rec, all, open); err != nil {
			return nil, err
		}
	}
	if err := sameObjects(rec, all); err != nil {
		return nil, err
	}
	return changesOf(rec), p.writeAll(ctx, rec, all)
}

// writeAll writes the objects of a record and notes how they are afterwards.
func (p *Platform) writeAll(ctx context.Context, rec *record, all []manifest.Object) error {
	for i, o := range all {
		after, err := p.write(ctx, o, rec.Force)
		if err != nil {
			return errors.Join(err, p.journal.note(context.WithoutCancel(ctx), rec))
		}
		rec.Entries[i].After = after.Object
	}
	if err := p.journal.note(ctx, rec); err != nil {
		return err
	}
	return p.journal.finish(ctx, rec)
}

// place renders the objects and names their namespaces.
func (p *Platform) place(objects []manifest.Object, o platform.Options) ([]manifest.Object, error) {
	var out []manifest.Object
	var errs []error
	defined := definitions(objects)
	for _, m := range objects {
		r, err := render(m, o)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		k, err := p.kinds.of(r.GroupVersionKind())
		namespaced := k.namespaced
		if fault.Is(err, fault.NotFound) {
			if scope, ok := defined[r.GroupVersionKind().GroupKind().String()]; ok {
				namespaced, err = scope == "Namespaced", nil
			}
		}
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", m.Origin, err))
		case !namespaced:
			r.SetNamespace("")
		case o.Namespace != "":
			r.SetNamespace(o.Namespace)
		case r.GetNamespace() == "":
			r.SetNamespace("default")
		}
		out = append(out, r)
	}
	return out, errors.Join(errs...)
}

// definitions returns the scope of each kind that a definition among the objects brings.
func definitions(objects []manifest.Object) map[string]string {
	out := map[string]string{}
	for _, o := range objects {
		if o.GetKind() != "CustomResourceDefinition" {
			continue
		}
		kind, _, _ := unstructured.NestedString(o.Object, "spec", "names", "kind")
		group, _, _ := unstructured.NestedString(o.Object, "spec", "group")
		scope, _, _ := unstructured.NestedString(o.Object, "spec", "scope")
		out[kind+"."+group] = scope
	}
	return out
}

// homeOf is the namespace whose Secrets keep what was there.
func homeOf(objects []manifest.Object, namespace string) string {
	if namespace != "" {
		return namespace
	}
	for _, o := range objects {
		if o.GetNamespace() != "" {
			return o.GetNamespace()
		}
	}
	return "default"
}

func (p *Platform) makeNamespaces(ctx context.Context, all []manifest.Object, home, delivery string) error {
	names := []string{home}
	for _, o := range all {
		if n := o.GetNamespace(); n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	for _, n := range names {
		_, err := p.dynamic.Resource(namespaces()).Get(ctx, n, metav1.GetOptions{})
		if err == nil || apierrors.IsForbidden(err) {
			continue // who may not read namespaces works in one that was made for him
		}
		if !apierrors.IsNotFound(err) {
			return failed(err, "read namespace %s", n)
		}
		o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace",
			"metadata": map[string]any{"name": n, "labels": map[string]any{managedBy: manager}}}}
		if delivery != "" {
			label(o.Object, []string{"metadata", "labels"}, deliveryLabel, labelValue(delivery))
		}
		_, err = p.dynamic.Resource(namespaces()).Create(ctx, o, metav1.CreateOptions{FieldManager: manager})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return failed(err, "make namespace %s", n)
		}
	}
	return nil
}

// rehearse has the server check every object, and returns what is there now. Where fields of others will be taken over, the
// server may refuse what it will accept then, a Service's port beside the old one: these objects are open.
func (p *Platform) rehearse(ctx context.Context, all []manifest.Object, force bool) (entries []entry, open []int, err error) {
	var errs []error
	defined := definitions(all)
	for i, o := range all {
		e := entry{Ref: o.Ref(), APIVersion: o.GetAPIVersion(), Created: true}
		w, err := p.look(ctx, o)
		if _, brought := defined[o.GroupVersionKind().GroupKind().String()]; brought && fault.Is(err, fault.NotFound) {
			entries = append(entries, e)
			continue
		}
		if err == nil && spent(w.live, o) {
			entries = append(entries, e)
			continue
		}
		w.force = force
		if err == nil {
			err = p.dryRun(ctx, w)
		}
		if fault.Is(err, fault.Invalid) && w.live != nil {
			if patch, unread := p.takeover(w); patch != nil && unread == nil {
				open, err = append(open, i), nil
			}
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if w.live != nil {
			e.Created, e.Before = false, w.live.Object
		}
		entries = append(entries, e)
	}
	return entries, open, errors.Join(errs...)
}

// settle has the server check what rehearse left open. Who owns which field is changed for that, nothing else, and changed
// back where the server refuses.
func (p *Platform) settle(ctx context.Context, rec *record, all []manifest.Object, open []int) error {
	var refusal error
	for _, i := range open {
		w, err := p.migrate(ctx, all[i])
		w.force = rec.Force
		if err == nil {
			err = p.dryRun(ctx, w)
		}
		refusal = errors.Join(refusal, err)
	}
	if refusal == nil {
		return nil
	}
	for _, i := range open {
		e := rec.Entries[i]
		in, err := p.entryResource(e)
		if err == nil {
			var live *unstructured.Unstructured
			if live, err = in.Get(ctx, e.Ref.Name, metav1.GetOptions{}); err == nil {
				err = p.handBack(ctx, in, e, live)
			}
		}
		refusal = errors.Join(refusal, failed(err, "give the fields of %s back", e.Ref))
	}
	return errors.Join(refusal, p.journal.forget(ctx, rec))
}

// look reads what is there, and fits the object to it.
func (p *Platform) look(ctx context.Context, o manifest.Object) (wanted, error) {
	w := wanted{Object: manifest.Object{Unstructured: *o.DeepCopy(), Origin: o.Origin}}
	r, err := p.kinds.of(o.GroupVersionKind())
	if err != nil {
		return w, err
	}
	live, err := p.at(r, o.GetNamespace()).Get(ctx, o.GetName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return w, failed(err, "read %s", o.Ref())
	case live.GetDeletionTimestamp() != nil:
		return w, fault.Newf(fault.Transient, "%s is being deleted", o.Ref())
	default:
		w.live = live
	}
	return w, p.fit(ctx, w)
}

// fit leaves to others what is theirs: the replicas of what an autoscaler scales, and what a fence or a canary requires of a
// Service's pods for as long as it stands.
func (p *Platform) fit(ctx context.Context, w wanted) error {
	switch w.GetKind() {
	case "Service":
		if w.live != nil {
			keepSelector(w.live.Object, w.Object.Object)
		}
	case "Deployment", "StatefulSet":
		scaled, err := p.autoscaled(ctx, w.Ref())
		if err != nil || !scaled {
			return err
		}
		unstructured.RemoveNestedField(w.Object.Object, "spec", "replicas")
		// A field that its only owner leaves out falls back to one replica, so the present number is repeated instead.
		if n, ok := replicasOf(w.live); ok && ownsReplicas(w.live, p.c.Adopt) {
			return unstructured.SetNestedField(w.Object.Object, n, "spec", "replicas")
		}
	}
	return nil
}

// autoscaled reports whether a HorizontalPodAutoscaler scales a workload.
func (p *Platform) autoscaled(ctx context.Context, ref manifest.Ref) (bool, error) {
	list, err := p.dynamic.Resource(autoscalers()).Namespace(ref.Namespace).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		return false, nil
	}
	if err != nil {
		return false, failed(err, "list the autoscalers of namespace %s", ref.Namespace)
	}
	for _, h := range list.Items {
		kind, _, _ := unstructured.NestedString(h.Object, "spec", "scaleTargetRef", "kind")
		name, _, _ := unstructured.NestedString(h.Object, "spec", "scaleTargetRef", "name")
		if kind == ref.Kind && name == ref.Name {
			return true, nil
		}
	}
	return false, nil
}

func replicasOf(o *unstructured.Unstructured) (int64, bool) {
	if o == nil {
		return 0, false
	}
	n, ok, _ := unstructured.NestedInt64(o.Object, "spec", "replicas")
	return n, ok
}

// ownsReplicas reports whether the replicas are ours, or will be when the adopted managers' fields are.
func ownsReplicas(o *unstructured.Unstructured, adopt []string) bool {
	for _, m := range o.GetManagedFields() {
		if (m.Manager == manager || slices.Contains(adopt, m.Manager)) && m.FieldsV1 != nil && strings.Contains(m.FieldsV1.GetRawString(), `"f:replicas"`) {
			return true
		}
	}
	return false
}

// dryRun has the server say what it would say to the write.
func (p *Platform) dryRun(ctx context.Context, w wanted) error {
	_, err := p.serverSide(ctx, w, metav1.DryRunAll)
	return err
}

// serverSide applies an object by server-side apply. What managers that are adopted own is taken over.
func (p *Platform) serverSide(ctx context.Context, w wanted, dryRun ...string) (*unstructured.Unstructured, error) {
	r, err := p.kinds.of(w.GroupVersionKind())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w.Origin, err)
	}
	in := p.at(r, w.GetNamespace())
	o := metav1.ApplyOptions{FieldManager: manager, DryRun: dryRun}
	after, err := in.Apply(ctx, w.GetName(), &w.Unstructured, o)
	if all := conflicts(err); len(all) > 0 {
		if !w.force && !p.adopted(all) {
			live := w.live
			if live == nil {
				live = &unstructured.Unstructured{}
			}
			return nil, p.contested(w.Object, live, all)
		}
		o.Force = true
		after, err = in.Apply(ctx, w.GetName(), &w.Unstructured, o)
	}
	if err != nil {
		return nil, refused(w.Object, err)
	}
	return after, nil
}

// refused explains a refusal of the cluster.
func refused(o manifest.Object, err error) error {
	if !apierrors.IsInvalid(err) {
		return fmt.Errorf("%s: %w", o.Origin, failed(err, "apply %s", o.Ref()))
	}
	for _, c := range causes(err, metav1.CauseTypeFieldValueInvalid) {
		if strings.Contains(c.Message, "immutable") {
			return fault.WithRemedy(fault.Newf(fault.Invalid, "%s: %s of %s cannot be changed once it is made", o.Origin, c.Field, o.Ref()),
				"keep it as it is, give the object another name, or delete it first")
		}
	}
	for _, c := range causes(err, metav1.CauseTypeForbidden) {
		if strings.Contains(c.Message, "updates to") {
			return fault.WithRemedy(fault.Newf(fault.Invalid, "%s: %s cannot be changed so: %s", o.Origin, o.Ref(), c.Message),
				"keep these fields as they are, give the object another name, or delete it first")
		}
	}
	return fmt.Errorf("%s: %w", o.Origin, failed(err, "apply %s", o.Ref()))
}

// write applies one object.
func (p *Platform) write(ctx context.Context, o manifest.Object, force bool) (*unstructured.Unstructured, error) {
	if err := p.clearSpent(ctx, o); err != nil {
		return nil, err
	}
	w, err := p.migrate(ctx, o)
	if err != nil {
		return nil, err
	}
	w.force = force
	after, err := p.serverSide(ctx, w)
	if err == nil && o.GetKind() == "CustomResourceDefinition" {
		err = p.established(ctx, after.GetName())
	}
	return after, err
}

// migrate makes the fields of adopted managers ours, so that what a manifest no longer names goes.
func (p *Platform) migrate(ctx context.Context, o manifest.Object) (wanted, error) {
	var last error
	for range attempts {
		w, err := p.look(ctx, o)
		if err != nil {
			return w, err
		}
		patch, err := p.takeover(w)
		if err != nil || patch == nil {
			return w, err
		}
		r, err := p.kinds.of(w.GroupVersionKind())
		if err != nil {
			return w, err
		}
		_, err = p.at(r, w.GetNamespace()).Patch(ctx, w.GetName(), types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: manager})
		if !apierrors.IsConflict(err) && !apierrors.IsInvalid(err) {
			return w, failed(err, "take over the fields of %s", w.Ref())
		}
		last = err
	}
	return wanted{}, fault.Newf(fault.Transient, "%s is changed by somebody faster than its fields can be taken over: %w", o.Ref(), last)
}

// takeover is the patch that makes the fields of adopted managers ours, nil where there are none.
func (p *Platform) takeover(w wanted) ([]byte, error) {
	if w.live == nil {
		return nil, nil
	}
	from := sets.New(manager)
	for _, m := range p.c.Adopt {
		if !slices.Contains(partial(), m) {
			from.Insert(m)
		}
	}
	patch, err := csaupgrade.UpgradeManagedFieldsPatch(w.live, from, manager)
	return patch, failed(err, "take over the fields of %s", w.Ref())
}

// established waits until a definition is in force.
func (p *Platform) established(ctx context.Context, name string) error {
	ref := manifest.Ref{Kind: "CustomResourceDefinition", Name: name}
	within, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := p.await(within, ref, isReady)
	if err != nil && ctx.Err() == nil && within.Err() != nil {
		return fault.Newf(fault.Transient, "%s is not in force after a minute", ref)
	}
	p.kinds.forget()
	return err
}

// changesOf tells what a record changed. A Secret's pre-image stays in the record.
func changesOf(r *record) []platform.Change {
	out := []platform.Change{}
	for _, e := range r.Entries {
		c := platform.Change{Ref: e.Ref, Created: e.Created, Journal: r.Namespace + "/" + name(r.Key)}
		if e.Before != nil {
			o := manifest.Object{Unstructured: *(&unstructured.Unstructured{Object: e.Before}).DeepCopy()}
			o.SetManagedFields(nil)
			if e.Ref.Kind == "Secret" {
				o.Object = without(o.Object, "data", "stringData")
				a := o.GetAnnotations()
				delete(a, "kubectl.kubernetes.io/last-applied-configuration")
				o.SetAnnotations(a)
			}
			c.PreImage = &o
		}
		out = append(out, c)
	}
	return out
}

// sameObjects refuses a key that has been used for something else.
func sameObjects(r *record, all []manifest.Object) error {
	same := len(r.Entries) == len(all)
	for i := 0; same && i < len(all); i++ {
		same = r.Entries[i].Ref == all[i].Ref()
	}
	if !same {
		return fault.Newf(fault.Conflict, "key %s was used for other objects", r.Key)
	}
	return nil
}
