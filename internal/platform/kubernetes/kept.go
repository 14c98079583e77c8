package kubernetes

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// Kept implements platform.Keeper. A field that was ours when we wrote it and is no longer tells that somebody has set it to
// another value, and the cluster knows who.
func (p *Platform) Kept(ctx context.Context, changes []platform.Change) error {
	records := map[string]*record{}
	for _, c := range changes {
		e, err := p.entryOf(ctx, c, records)
		if err != nil {
			return err
		}
		if e.After == nil {
			continue
		}
		if err := p.kept(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

func (p *Platform) kept(ctx context.Context, e entry) error {
	in, err := p.entryResource(e)
	if err != nil {
		return err
	}
	live, err := in.Get(ctx, e.Ref.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return fault.Newf(fault.Conflict, "%s was deleted by somebody after it was applied", e.Ref)
	}
	if err != nil {
		return failed(err, "read %s", e.Ref)
	}
	after := &unstructured.Unstructured{Object: e.After}
	if after.GetUID() != live.GetUID() {
		return fault.Newf(fault.Conflict, "%s was deleted by somebody after it was applied, and made again", e.Ref)
	}
	lost := ours(after).Difference(ours(live))
	var lines, who []string
	lost.Leaves().Iterate(func(path fieldpath.Path) {
		at := path.String()
		was, had := valueAt(after.Object, at)
		is, has := valueAt(live.Object, at)
		if at == ".spec.replicas" || had == has && show(was, had) == show(is, has) {
			return // what people and autoscalers scale is theirs
		}
		by := p.writer(live, path)
		if by == "" || slices.Contains(kubectls(), by) {
			return // a person's command is no controller that will do it again
		}
		if !slices.Contains(who, by) {
			who = append(who, by)
		}
		if e.Ref.Kind == "Secret" {
			lines = append(lines, at+" is another again")
			return
		}
		lines = append(lines, fmt.Sprintf("%s is %s again, not %s", at, show(is, has), show(was, had)))
	})
	if len(lines) == 0 {
		return nil
	}
	err = fault.Newf(fault.Conflict, "%s has undone what was applied to %s: %s", strings.Join(who, ", "), e.Ref, strings.Join(lines[:min(3, len(lines))], "; "))
	return fault.WithRemedy(err, "have it deliver the new version itself, or take the object out of what %s keeps in order", strings.Join(who, ", "))
}

// ours are the fields that belong to Sluice.
func ours(o *unstructured.Unstructured) *fieldpath.Set {
	out := fieldpath.NewSet()
	for _, m := range o.GetManagedFields() {
		if m.Manager == manager && m.Subresource == "" {
			out = out.Union(fieldsOf(m))
		}
	}
	return out
}

func fieldsOf(m metav1.ManagedFieldsEntry) *fieldpath.Set {
	out := fieldpath.NewSet()
	if m.FieldsV1 != nil {
		_ = out.FromJSON(bytes.NewReader(m.FieldsV1.GetRawBytes())) // the cluster's own, which reads what it writes
	}
	return out
}

// writer tells who owns a field now; of one that is gone, who wrote last.
func (p *Platform) writer(live *unstructured.Unstructured, path fieldpath.Path) string {
	var last metav1.ManagedFieldsEntry
	for _, m := range live.GetManagedFields() {
		if m.Manager == manager || m.Subresource == "status" {
			continue
		}
		if fieldsOf(m).Has(path) {
			return m.Manager
		}
		if m.Time != nil && (last.Time == nil || last.Time.Before(m.Time)) {
			last = m
		}
	}
	return last.Manager
}

// keeps is kept for one object that was written just now.
func (p *Platform) keeps(ctx context.Context, ref manifest.Ref, after map[string]any) error {
	return p.kept(ctx, entry{Ref: ref, After: after, APIVersion: (&unstructured.Unstructured{Object: after}).GetAPIVersion()})
}
