package kubernetes

import (
	"context"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// copyFor is on the copies of settings that a delivery's canary has: the delivery.
const copyFor = "sluice.dev/copy-for"

// setting reports whether a kind holds what pods read.
func setting(kind string) bool { return kind == "ConfigMap" || kind == "Secret" }

func configMaps() schema.GroupVersionResource { return builtin("", "v1", "configmaps") }

// deliveryOf is the delivery that a key belongs to.
func deliveryOf(key string) string {
	id, _, _ := strings.Cut(key, "/")
	return id
}

// copyName is what the copy of a setting is called: <name>-<8 of the delivery>.
func copyName(setting, key string) string {
	id := strings.ToLower(labelValue(deliveryOf(key)))
	return setting + "-" + id[:min(8, len(id))]
}

// standsBefore reports whether a Deployment that has run before names the setting, and so must not see it changed.
func (r *record) standsBefore(setting manifest.Ref) bool {
	return slices.ContainsFunc(r.Entries, func(e entry) bool { return !e.Created && names(e, setting) })
}

// names reports whether the new version of a Deployment names a setting.
func names(e entry, setting manifest.Ref) bool {
	if e.Ref.Kind != "Deployment" || e.Next == nil {
		return false
	}
	template, ok, err := manifest.Object{Unstructured: unstructured.Unstructured{Object: e.Next}}.PodTemplate()
	return ok && err == nil && slices.Contains(manifest.Mounts(template.Spec), manifest.Ref{Kind: setting.Kind, Name: setting.Name})
}

// changes reports whether a setting will hold something else than it did.
func (e entry) changes() bool {
	if e.Created || !setting(e.Ref.Kind) || e.Next == nil {
		return false
	}
	return !reflect.DeepEqual(content(e.Before), content(e.Next))
}

// content is what a setting holds.
func content(o map[string]any) map[string]any {
	out := map[string]any{}
	for _, field := range []string{"data", "binaryData"} {
		m, _, _ := unstructured.NestedMap(o, field)
		for k, v := range m {
			out[field+"/"+k] = v
		}
	}
	return out
}

// copySetting gives the canary a setting that will change under another name.
func (p *Platform) copySetting(ctx context.Context, key string, e entry, o manifest.Object) error {
	if !e.changes() {
		return nil
	}
	c := manifest.Object{Unstructured: *o.DeepCopy(), Origin: o.Origin}
	c.SetName(copyName(o.GetName(), key))
	label(c.Object, []string{"metadata", "labels"}, copyFor, labelValue(deliveryOf(key)))
	_, err := p.write(ctx, c, false)
	return err
}

// redirect has the pods of a canary name the copies of the settings.
func (r *record) redirect(canary manifest.Object) error {
	to := map[manifest.Ref]string{}
	for _, e := range r.Entries {
		if e.changes() {
			to[manifest.Ref{Kind: e.Ref.Kind, Name: e.Ref.Name}] = copyName(e.Ref.Name, r.Key)
		}
	}
	if len(to) == 0 {
		return nil
	}
	spec, ok, err := unstructured.NestedMap(canary.Object, "spec", "template", "spec")
	if err != nil || !ok {
		return invalid(canary, "has no pods", err)
	}
	rename := func(m map[string]any, kind, field string) {
		name, _ := m[field].(string)
		if n, ok := to[manifest.Ref{Kind: kind, Name: name}]; ok {
			m[field] = n
		}
	}
	source := func(m map[string]any) {
		for field, kind := range map[string]string{"configMap": "ConfigMap", "configMapRef": "ConfigMap", "configMapKeyRef": "ConfigMap",
			"secret": "Secret", "secretRef": "Secret", "secretKeyRef": "Secret"} {
			if at, ok := m[field].(map[string]any); ok {
				rename(at, kind, "name")
				rename(at, kind, "secretName")
			}
		}
	}
	for _, v := range elements(spec["volumes"]) {
		source(v)
		if projected, ok := v["projected"].(map[string]any); ok {
			for _, s := range elements(projected["sources"]) {
				source(s)
			}
		}
	}
	for _, c := range slices.Concat(elements(spec["initContainers"]), elements(spec["containers"])) {
		for _, e := range elements(c["envFrom"]) {
			source(e)
		}
		for _, e := range elements(c["env"]) {
			if from, ok := e["valueFrom"].(map[string]any); ok {
				source(from)
			}
		}
	}
	return unstructured.SetNestedMap(canary.Object, spec, "spec", "template", "spec")
}

// elements returns the elements of a list that are maps.
func elements(v any) []map[string]any {
	list, _ := v.([]any)
	var out []map[string]any
	for _, e := range list {
		if m, ok := e.(map[string]any); ok {
			out = append(out, m)
		}
	}
	return out
}

// intend notes, before a promotion writes, that what is found of these objects afterwards may be its own: whoever takes it back
// must not take it for somebody else's.
func (p *Platform) intend(ctx context.Context, s shifted, next manifest.Object) error {
	s.start.After = nil
	for i := range s.rec.Entries {
		if e := &s.rec.Entries[i]; setting(e.Ref.Kind) && names(entry{Ref: s.ref, Next: next.Object}, e.Ref) {
			e.After = nil
		}
	}
	return p.journal.note(ctx, s.rec)
}

// promoteSettings gives the settings that a Deployment names their new content under their own names.
func (p *Platform) promoteSettings(ctx context.Context, s shifted, next manifest.Object) error {
	for i := range s.rec.Entries {
		e := &s.rec.Entries[i]
		if e.Created || !setting(e.Ref.Kind) || !names(entry{Ref: s.ref, Next: next.Object}, e.Ref) {
			continue
		}
		after, err := p.write(ctx, manifest.Object{Unstructured: unstructured.Unstructured{Object: e.Next}, Origin: e.Ref.String()}, s.rec.Force)
		if err != nil {
			return err
		}
		e.After = after.Object
	}
	return nil
}

// revertSettings gives the old version its settings back before it starts again.
func (p *Platform) revertSettings(ctx context.Context, s shifted) error {
	for _, e := range s.rec.Entries {
		if !e.Created && setting(e.Ref.Kind) {
			if err := p.revert(ctx, s.rec.Key, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropCopies deletes the copies of settings that the canaries of a delivery had.
func (p *Platform) dropCopies(ctx context.Context, key string, refs []manifest.Ref) error {
	if len(refs) == 0 {
		return nil
	}
	for _, kind := range []schema.GroupVersionResource{configMaps(), secrets()} {
		in := p.dynamic.Resource(kind).Namespace(refs[0].Namespace)
		list, err := in.List(ctx, metav1.ListOptions{LabelSelector: copyFor + "=" + labelValue(deliveryOf(key))})
		if fault.Is(failed(err, ""), fault.Denied) {
			continue // who may not list them has not made any
		}
		if err != nil {
			return failed(err, "look for copies of settings in namespace %s", refs[0].Namespace)
		}
		for i := range list.Items {
			if err := p.deleteLive(ctx, in, &list.Items[i]); err != nil {
				return failed(err, "delete %s %s", kind.Resource, list.Items[i].GetName())
			}
		}
	}
	return nil
}
