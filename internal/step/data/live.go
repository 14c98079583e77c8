package data

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/volume"
)

// workload is a database's workload as given by a manifest or found running, with all that it needs to run elsewhere.
type workload struct {
	object   manifest.Object
	template corev1.PodTemplateSpec
	claims   []string
	volumes  []string          // what the pod calls them, parallel to claims
	classes  map[string]string // of claims whose template names one
	replicas int32
}

// ref returns the workload's name in a namespace.
func (w workload) ref(namespace string) manifest.Ref {
	return manifest.Ref{Kind: w.object.GetKind(), Namespace: namespace, Name: w.object.GetName()}
}

// readWorkload understands a StatefulSet or a Deployment of one replica that mounts claims.
func readWorkload(o manifest.Object) (workload, error) {
	w := workload{object: o, replicas: 1, classes: map[string]string{}}
	for _, r := range o.GetOwnerReferences() {
		return w, fault.Newf(fault.Denied, "%s belongs to %s %s: its operator would undo what Sluice does", o.Ref(), r.Kind, r.Name)
	}
	var replicas *int32
	switch o.GetKind() {
	case "StatefulSet":
		var s appsv1.StatefulSet
		if err := o.Into(&s); err != nil {
			return w, err
		}
		w.template, replicas = s.Spec.Template, s.Spec.Replicas
		for _, t := range s.Spec.VolumeClaimTemplates {
			claim := fmt.Sprintf("%s-%s-0", t.Name, o.GetName())
			w.claims, w.volumes = append(w.claims, claim), append(w.volumes, t.Name)
			if t.Spec.StorageClassName != nil {
				w.classes[claim] = *t.Spec.StorageClassName
			}
		}
	case "Deployment":
		var d appsv1.Deployment
		if err := o.Into(&d); err != nil {
			return w, err
		}
		w.template, replicas = d.Spec.Template, d.Spec.Replicas
	default:
		return w, fault.Newf(fault.Invalid, "%s cannot be a database's workload: a StatefulSet or a Deployment can", o.Ref())
	}
	if replicas != nil {
		w.replicas = *replicas
	}
	for _, v := range w.template.Spec.Volumes {
		if v.PersistentVolumeClaim != nil {
			w.claims, w.volumes = append(w.claims, v.PersistentVolumeClaim.ClaimName), append(w.volumes, v.Name)
		}
	}
	if w.replicas > 1 {
		return w, fault.Newf(fault.Invalid, "%s has %d replicas: copies of replicated databases are not built yet", o.Ref(), w.replicas)
	}
	if len(w.claims) == 0 {
		return w, fault.Newf(fault.Invalid, "%s mounts no claim, so there is nothing to copy", o.Ref())
	}
	return w, nil
}

// otherClasses returns the classes that a workload's claims ask for and those of the running one do not: what both name may be
// a class that only production has.
func (w workload) otherClasses(running workload) map[string]string {
	other := maps.Clone(w.classes)
	maps.DeleteFunc(other, func(claim, class string) bool { return running.classes[claim] == class })
	return other
}

// live is a running database.
type live struct {
	workload
	services []manifest.Object
	configs  []manifest.Object
	sources  []volume.Source
}

// live finds the running database with its Services, its configuration and its volumes.
func (b base) live(ctx context.Context, p place, db plan.Database) (live, error) {
	var l live
	get, err := optional[platform.Getter](p, "read live objects")
	if err != nil {
		return l, err
	}
	ref := db.Workload
	ref.Namespace = db.Namespace
	o, err := get.Get(ctx, ref)
	if err != nil {
		return l, fault.WithRemedy(fmt.Errorf("database %s: %w", db.Name, err), "data.databases[].workload must name what runs in target namespace %s", db.Namespace)
	}
	if l.workload, err = readWorkload(o); err != nil {
		return l, err
	}
	all, err := get.List(ctx, "Service", db.Namespace)
	if err != nil {
		return l, err
	}
	selected := maps.Clone(l.template.Labels)
	if selected == nil {
		selected = map[string]string{}
	}
	selected[platform.OpenLabel] = "true" // one that a fence has closed is still one of its Services
	for _, s := range all {
		if s.Selects(selected) {
			l.services = append(l.services, s)
		}
	}
	if len(l.services) == 0 {
		return l, fault.Newf(fault.Invalid, "no Service of namespace %s selects %s, so writers could not be held back", db.Namespace, ref)
	}
	if l.configs, err = configs(ctx, get, db.Namespace, l.template.Spec); err != nil {
		return l, err
	}
	for _, c := range l.claims {
		from := volume.Source{Account: p.account, Namespace: db.Namespace, Claim: c}
		if bind, ok := p.Platform.(volume.Binder); ok {
			if from.Dir, err = bind.Bound(ctx, volume.Place{Account: p.account, Namespace: db.Namespace, Claim: c}); err != nil {
				return l, fmt.Errorf("claim %s of %s: %w", c, ref, err)
			}
		}
		l.sources = append(l.sources, from)
	}
	return l, nil
}

// configs returns the ConfigMaps and Secrets that a pod names and no others.
func configs(ctx context.Context, get platform.Getter, namespace string, pod corev1.PodSpec) ([]manifest.Object, error) {
	var out []manifest.Object
	for _, r := range manifest.Mounts(pod) {
		if r.Kind == "PersistentVolumeClaim" {
			continue
		}
		r.Namespace = namespace
		o, err := get.Get(ctx, r)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		if err == nil {
			out = append(out, o)
		}
	}
	return out, nil
}

// bundle is everything that makes a copy of the database run: configuration and Services first.
func bundle(w workload, services, configs []manifest.Object) []manifest.Object {
	var out []manifest.Object
	for _, o := range slices.Concat(configs, services, []manifest.Object{w.object}) {
		out = append(out, fresh(o))
	}
	return out
}

func (l live) bundle() []manifest.Object { return bundle(l.workload, l.services, l.configs) }

// fresh returns the object without what a platform wrote into it.
func fresh(o manifest.Object) manifest.Object {
	c := manifest.Object{Unstructured: *o.DeepCopy(), Origin: o.Origin}
	for _, f := range []string{"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "ownerReferences", "namespace"} {
		if m, ok := c.Object["metadata"].(map[string]any); ok {
			delete(m, f)
		}
	}
	delete(c.Object, "status")
	return c
}

// split takes the database's workload out of the objects of a target, and the Jobs.
func split(objects []manifest.Object, ref manifest.Ref) (w workload, rest, jobs []manifest.Object, err error) {
	found := false
	for _, o := range objects {
		switch {
		case o.GetKind() == ref.Kind && o.GetName() == ref.Name:
			if w, err = readWorkload(o); err != nil {
				return w, nil, nil, err
			}
			found = true
		case o.GetKind() == "Job":
			jobs = append(jobs, o)
		default:
			rest = append(rest, o)
		}
	}
	if !found {
		err = fault.Newf(fault.NotFound, "the manifests hold no %s", ref)
	}
	return w, rest, jobs, err
}

// runs waits until a version that was applied is ready, and holds that it is that one. Its workload was stopped before: where the
// manifest leaves the replicas open, applying it does not start it.
func (base) runs(ctx context.Context, p place, key string, w workload, namespace string, timeout time.Duration, changes []platform.Change) error {
	ref := w.ref(namespace)
	if w.open() {
		f, err := optional[platform.Fencer](p, "start what was stopped")
		if err != nil {
			return err
		}
		if err := f.Scale(ctx, key, ref, int(w.replicas)); err != nil {
			return err
		}
	}
	if err := step.Await(ctx, p, timeout, "ready", []manifest.Ref{ref}, step.Ready); err != nil {
		return err
	}
	return step.Kept(ctx, p.Platform, changes)
}

// open reports whether the manifest leaves the number of replicas to whoever runs it.
func (w workload) open() bool {
	said, _, _ := unstructured.NestedFieldNoCopy(w.object.Object, "spec", "replicas")
	return said == nil
}

// images names what a workload runs.
func (w workload) images() string {
	var s string
	for i, c := range w.template.Spec.Containers {
		if i > 0 {
			s += ", "
		}
		s += c.Image
	}
	return s
}
