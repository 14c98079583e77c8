package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// StartCanary implements platform.Shifter. The stable version's pods stay as they are; the new version runs in a Deployment of
// its own beside it, whose pods the Services do not lead to yet. That the promotion will be accepted is asked now.
func (p *Platform) StartCanary(ctx context.Context, key string, objects []manifest.Object, o platform.Options) ([]platform.Change, error) {
	return p.StartCanaryWith(ctx, key, objects, nil, o)
}

// StartCanaryWith implements platform.Separator.
func (p *Platform) StartCanaryWith(ctx context.Context, key string, objects, settings []manifest.Object, o platform.Options) ([]platform.Change, error) {
	if len(objects)+len(settings) == 0 {
		return nil, nil
	}
	// Settings first: what starts finds them.
	all, err := p.place(slices.Concat(settings, objects), o)
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
		entries, open, err := p.rehearseCanary(ctx, all, o)
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
	for i := range rec.Entries {
		if err := p.startOne(ctx, rec, i, all[i]); err != nil {
			return changesOf(rec), errors.Join(err, p.journal.note(context.WithoutCancel(ctx), rec))
		}
	}
	if err := p.journal.note(ctx, rec); err != nil {
		return changesOf(rec), err
	}
	return changesOf(rec), p.journal.finish(ctx, rec)
}

// rehearseCanary has the server check the new versions, both as what they will be when promoted and as canaries.
func (p *Platform) rehearseCanary(ctx context.Context, all []manifest.Object, opts platform.Options) ([]entry, []int, error) {
	entries, open, err := p.rehearseVersions(ctx, all, opts.Force)
	if err != nil {
		return nil, nil, err
	}
	var errs []error
	for i := range entries {
		e := &entries[i]
		if e.Created || setting(e.Ref.Kind) {
			continue
		}
		stable := &unstructured.Unstructured{Object: e.Before}
		err := atRest(e.Ref, stable)
		if err == nil {
			err = p.routed(ctx, e, stable, opts)
		}
		if err == nil {
			err = p.namesFree(ctx, *e)
		}
		if err == nil {
			err = p.takenUp(ctx, *e)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err == nil {
		errs = append(errs, unshared(entries, opts.Meshes))
	}
	return entries, open, errors.Join(errs...)
}

// rehearseVersions is rehearseCanary without what may be otherwise by then: the state of what runs, and what shares the traffic out.
func (p *Platform) rehearseVersions(ctx context.Context, all []manifest.Object, force bool) ([]entry, []int, error) {
	entries, open, err := p.rehearse(ctx, all, force)
	if err != nil {
		return nil, nil, err
	}
	var errs []error
	for i, o := range all {
		e := &entries[i]
		if e.Created {
			continue
		}
		e.Next = o.Object
		if setting(o.GetKind()) {
			continue
		}
		stable := &unstructured.Unstructured{Object: e.Before}
		n, _ := replicasOf(stable)
		e.Replicas = &n
		c, err := beside(o, stable, "")
		if err == nil {
			err = p.fitForCanary(ctx, o)
		}
		if err == nil {
			err = p.dryRun(ctx, wanted{Object: c})
		}
		if err == nil {
			_, err = p.previewsOf(ctx, stable)
		}
		errs = append(errs, err)
	}
	return entries, open, errors.Join(errs...)
}

// atRest refuses a canary beside what is not ready.
func atRest(ref manifest.Ref, stable *unstructured.Unstructured) error {
	s := computed(ref, stable)
	if s.Ready {
		return nil
	}
	return fault.WithRemedy(fault.Newf(fault.Conflict, "%s is not at rest, so a canary would be measured against nothing that stands: %s", ref, s.Message),
		"wait for its rollout, or undo it")
}

// fitForCanary refuses what cannot have a canary.
func (p *Platform) fitForCanary(ctx context.Context, o manifest.Object) error {
	if o.GetKind() != "Deployment" {
		return fault.Newf(fault.Invalid, "%s: a %s has no canary of this kind", o.Origin, o.GetKind())
	}
	var d appsv1.Deployment
	if err := o.Into(&d); err != nil {
		return err
	}
	for _, v := range d.Spec.Template.Spec.Volumes {
		if v.PersistentVolumeClaim != nil {
			return fault.WithRemedy(fault.Newf(fault.Invalid, "%s: %s mounts claim %s, which its canary would share: two versions would write to one volume",
				o.Origin, o.Ref(), v.PersistentVolumeClaim.ClaimName), "declare it under data.databases, or deploy it without a canary")
		}
	}
	other, err := p.canary(ctx, o.Ref())
	if err == nil && other != nil {
		err = fault.WithRemedy(fault.Newf(fault.Conflict, "%s has the canary %s already, of delivery %s", o.Ref(), other.GetName(), other.GetLabels()[deliveryLabel]),
			"end that delivery first")
	}
	return err
}

// beside is the Deployment of a canary. Its pods carry all labels of the stable ones, so that the same Services lead to them,
// and one more, by which they can be told apart.
func beside(o manifest.Object, stable *unstructured.Unstructured, journal string) (manifest.Object, error) {
	c := manifest.Object{Unstructured: *o.DeepCopy(), Origin: o.Origin}
	c.SetName(canaryName(o))
	label(c.Object, []string{"metadata", "labels"}, canaryOf, labelValue(o.GetName()))
	if journal != "" {
		label(c.Object, []string{"metadata", "annotations"}, startedBy, journal)
	}
	all, _, err := unstructured.NestedStringMap(stable.Object, "spec", "template", "metadata", "labels")
	if err != nil {
		return c, invalid(o, "has labels that are none", err)
	}
	own, _, err := unstructured.NestedStringMap(o.Object, "spec", "template", "metadata", "labels")
	if err != nil {
		return c, invalid(o, "has labels that are none", err)
	}
	maps.Copy(all, own)
	all[trackLabel] = string(platform.Canary)
	selector, _, err := unstructured.NestedStringMap(stable.Object, "spec", "selector", "matchLabels")
	if err != nil {
		return c, invalid(o, "has a selector that is none", err)
	}
	if selector == nil {
		selector = map[string]string{}
	}
	maps.Copy(selector, map[string]string{trackLabel: string(platform.Canary)})
	for _, set := range []struct {
		value map[string]string
		at    []string
	}{{all, []string{"spec", "template", "metadata", "labels"}}, {selector, []string{"spec", "selector", "matchLabels"}}} {
		if err := unstructured.SetNestedStringMap(c.Object, set.value, set.at...); err != nil {
			return c, invalid(o, "cannot have a canary", err)
		}
	}
	return c, unstructured.SetNestedField(c.Object, int64(1), "spec", "replicas")
}

// canaryName is the name that annotations and queries know the new version by.
func canaryName(o manifest.Object) string {
	if n, _, _ := unstructured.NestedString(o.Object, "spec", "template", "metadata", "annotations", revisionName); strings.HasPrefix(n, o.GetName()+"-") {
		return n
	}
	id := o.GetLabels()[deliveryLabel]
	return o.GetName() + "-" + strings.TrimRight(strings.ToLower(id[:min(8, len(id))]), "-._") // people give Deliveries names, too
}

// startOne brings one canary up, or, where nothing ran before, the first version.
func (p *Platform) startOne(ctx context.Context, rec *record, i int, o manifest.Object) error {
	e := &rec.Entries[i]
	if e.Created || setting(o.GetKind()) && !rec.standsBefore(e.Ref) {
		after, err := p.write(ctx, o, rec.Force)
		if err == nil {
			e.After = after.Object
		}
		return err
	}
	if setting(o.GetKind()) {
		e.After = e.Before
		return p.copySetting(ctx, rec.Key, *e, o)
	}
	stable, err := p.read(ctx, e.Ref)
	if err != nil {
		return err
	}
	e.After = e.Before // the stable version was not touched
	if err := p.lead(ctx, stable, stable); err != nil {
		return err
	}
	c, err := beside(o, &unstructured.Unstructured{Object: e.Before}, rec.Namespace+"/"+name(rec.Key))
	if err != nil {
		return err
	}
	live, err := p.canary(ctx, e.Ref)
	if err != nil {
		return err
	}
	if live == nil {
		if err := rec.redirect(c); err != nil {
			return err
		}
		if err := p.makeServices(ctx, *e, c); err != nil {
			return err
		}
		if live, err = p.write(ctx, c, false); err != nil {
			return err
		}
	}
	if err := p.makeSplits(ctx, *e); err != nil {
		return err
	}
	if e.meshed() {
		// Before the Service leads to the canary, too, Istio knows the versions apart.
		if err := p.weigh(ctx, shifted{ref: e.Ref, stable: stable, canary: live, rec: rec, start: e}, 0); err != nil {
			return err
		}
	}
	return p.preview(ctx, stable, string(platform.Canary))
}

// canary returns the Deployment that stands beside another, nil where none does.
func (p *Platform) canary(ctx context.Context, ref manifest.Ref) (*unstructured.Unstructured, error) {
	list, err := p.dynamic.Resource(deployments()).Namespace(ref.Namespace).List(ctx, metav1.ListOptions{LabelSelector: canaryOf + "=" + labelValue(ref.Name)})
	if err != nil {
		return nil, failed(err, "look for a canary of %s", ref)
	}
	for _, c := range list.Items {
		if c.GetDeletionTimestamp() == nil {
			return &c, nil
		}
	}
	return nil, nil
}

// templateLabels are those of a Deployment's pods.
func templateLabels(d *unstructured.Unstructured) map[string]string {
	l, _, _ := unstructured.NestedStringMap(d.Object, "spec", "template", "metadata", "labels")
	return l
}

// lead has the Services of a Deployment's pods lead to one version only, the stable one or its canary.
func (p *Platform) lead(ctx context.Context, stable, to *unstructured.Unstructured) error {
	all, err := p.setsOf(ctx, to)
	if err != nil {
		return err
	}
	rs := newest(to, all)
	if rs == nil || rs.GetLabels()[templateHash] == "" {
		return fault.Newf(fault.Transient, "Deployment %s/%s has no ReplicaSet yet", to.GetNamespace(), to.GetName())
	}
	return p.pin(ctx, stable, rs.GetLabels()[templateHash])
}

func (p *Platform) setsOf(ctx context.Context, d *unstructured.Unstructured) ([]*unstructured.Unstructured, error) {
	list, err := p.dynamic.Resource(replicaSets()).Namespace(d.GetNamespace()).List(ctx, metav1.ListOptions{LabelSelector: selectorOf(d).String()})
	if err != nil {
		return nil, failed(err, "list the ReplicaSets of %s/%s", d.GetNamespace(), d.GetName())
	}
	var out []*unstructured.Unstructured
	for i := range list.Items {
		out = append(out, &list.Items[i])
	}
	return out, nil
}

// hashes returns the versions that a Deployment has or had pods of.
func (p *Platform) hashes(ctx context.Context, d *unstructured.Unstructured) (map[string]bool, error) {
	if d == nil {
		return nil, nil
	}
	all, err := p.setsOf(ctx, d)
	out := map[string]bool{}
	for _, rs := range all {
		if owned(rs.GetOwnerReferences(), map[types.UID]bool{d.GetUID(): true}) {
			out[rs.GetLabels()[templateHash]] = true
		}
	}
	return out, err
}

// pin has the Services of a Deployment's pods require a version, or, with none, no longer.
func (p *Platform) pin(ctx context.Context, stable *unstructured.Unstructured, hash string) error {
	all, _, err := p.servicesOf(ctx, stable.GetNamespace(), templateLabels(stable))
	if err != nil {
		return err
	}
	for _, s := range all {
		if err := p.require(ctx, s, templateHash, hash); err != nil {
			return err
		}
	}
	return nil
}

// pinned reports whether the Services lead to one version only.
func (p *Platform) pinned(ctx context.Context, stable *unstructured.Unstructured) (bool, error) {
	all, _, err := p.servicesOf(ctx, stable.GetNamespace(), templateLabels(stable))
	if err != nil {
		return false, err
	}
	for _, s := range all {
		live, err := p.read(ctx, s)
		if err != nil {
			return false, err
		}
		if _, ok, _ := unstructured.NestedString(live.Object, "spec", "selector", templateHash); ok {
			return true, nil
		}
	}
	return false, nil
}

// startOf finds what a canary's start has recorded.
func (p *Platform) startOf(ctx context.Context, ref manifest.Ref, canary *unstructured.Unstructured) (*record, *entry, error) {
	ns, secret, ok := strings.Cut(canary.GetAnnotations()[startedBy], "/")
	if !ok {
		return nil, nil, fault.Newf(fault.Lost, "Deployment %s/%s does not tell which start it came from", canary.GetNamespace(), canary.GetName())
	}
	rec, err := p.journal.read(ctx, ns, secret)
	if err != nil {
		return nil, nil, err
	}
	if rec == nil {
		return nil, nil, fault.Newf(fault.Lost, "what %s was before its canary is gone with Secret %s/%s", ref, ns, secret)
	}
	for i := range rec.Entries {
		if rec.Entries[i].Ref == ref {
			return rec, &rec.Entries[i], nil
		}
	}
	return nil, nil, fmt.Errorf("secret %s/%s: %w", ns, secret, fault.Newf(fault.Lost, "it knows nothing of %s", ref))
}

// startBy finds what a delivery has recorded of the start of a canary, nil where it has begun none.
func (p *Platform) startBy(ctx context.Context, key string, ref manifest.Ref) (*record, *entry, error) {
	list, err := p.dynamic.Resource(secrets()).Namespace(ref.Namespace).List(ctx,
		metav1.ListOptions{LabelSelector: journalLabel + "=true," + deliveryLabel + "=" + labelValue(deliveryOf(key))})
	if err != nil {
		return nil, nil, failed(err, "look for what delivery %s has begun, among the Secrets of namespace %s", deliveryOf(key), ref.Namespace)
	}
	// The last one counts: what an earlier attempt has begun was taken back.
	slices.SortStableFunc(list.Items, func(a, b unstructured.Unstructured) int {
		return b.GetCreationTimestamp().Compare(a.GetCreationTimestamp().Time)
	})
	for _, s := range list.Items {
		if of := s.GetAnnotations()[keyAnnotation]; deliveryOf(of) != deliveryOf(key) || s.GetName() != name(of) {
			continue // a further part, or a note of how things were after it
		}
		rec, err := p.journal.read(ctx, ref.Namespace, s.GetName())
		if err != nil {
			return nil, nil, err
		}
		if rec == nil {
			continue
		}
		for i := range rec.Entries {
			if e := &rec.Entries[i]; e.Ref == ref && e.Next != nil {
				return rec, e, nil
			}
		}
	}
	return nil, nil, nil
}
